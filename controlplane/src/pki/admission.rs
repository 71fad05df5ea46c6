//! The seed of the admission tags, by which a gateway tells a member's first packet from a stranger's.
//!
//! ```text
//!  day key (16) = HKDF-SHA-256( salt: none, secret: seed, info: "weir-admission-1" ‖ day, big endian )     day = seconds since 1970 / 86,400
//! ```
//!
//! Every member knows the seed, so it keeps strangers out and nobody else; an issuer draws a new one when a member was revoked. It stands
//! in a document of its own and not in the trust bundle, because the bundle is public and needs a ceremony. It travels over authenticated
//! links only; an invitation carries the key of one day instead.

use std::fmt;

use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::bundle::Bundle;
use super::id::KeyId;
use super::key::Domain;
use super::revocation::RevocationSet;
use super::signed::{Document, OpenError, Signed};
use crate::codec::DecodeError;
use crate::time::UnixSecs;

/// Seconds of a day.
const DAY_SECS: u64 = 86_400;
/// How long the day keys of the seed before are accepted. Ours: as long as any other day key, so that nobody who slept a day is locked out.
const OLD_SEED_SECS: u64 = 2 * DAY_SECS;

/// The seed, with its version.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionDocument {
    /// Rises with each new seed.
    pub version: u64,
    /// What the day keys are made of.
    pub seed: Zeroizing<[u8; 32]>,
    /// When it was drawn.
    pub since: UnixSecs,
}

impl fmt::Debug for AdmissionDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdmissionDocument(version {}, since {})", self.version, self.since)
    }
}

impl Document for AdmissionDocument {
    const DOMAIN: Domain = Domain::Admission;
    const BODY_LEN_MAX: usize = 64;
}

/// The document as it travels.
pub type SignedAdmission = Signed<AdmissionDocument>;

/// The key of one day.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayKey {
    /// Days since 1970.
    pub day: u32,
    /// The key.
    pub key: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for DayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DayKey(day {})", self.day)
    }
}

/// The day of a moment.
pub fn day(at: UnixSecs) -> u32 {
    u32::try_from(at.0 / DAY_SECS).unwrap_or(u32::MAX)
}

struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        16
    }
}

impl AdmissionDocument {
    /// The key of a day.
    pub fn day_key(&self, day: u32) -> DayKey {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&*self.seed);
        let mut key = Zeroizing::new([0; 16]);
        let day_octets = day.to_be_bytes();
        let info = [&b"weir-admission-1"[..], &day_octets];
        let expanded = secret.expand(&info, KeyLen).and_then(|output| output.fill(&mut *key));
        // HKDF fails beyond 255 hashes of output (RFC 5869 §2.3); half a hash is asked for.
        expanded.expect("16 bytes are within HKDF's limit");
        DayKey { day, key }
    }
}

/// Why an admission document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// No issuer of the bundle signed it.
    #[error("{0} is no issuer of this network")]
    Stranger(KeyId),
    /// A list names its signer.
    #[error("{0} is revoked and gives out no seed any more")]
    Revoked(KeyId),
    /// It is not what its issuer signed.
    #[error("the admission document: {0}")]
    Open(#[from] OpenError),
    /// We have a newer one.
    #[error("version {found} of the admission document is older than version {have}")]
    Old {
        /// The version that is known.
        have: u64,
        /// The one that came.
        found: u64,
    },
}

impl AdmissionError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stranger(_) => "admission_stranger",
            Self::Revoked(_) => "admission_revoked",
            Self::Open(_) => "admission_signature",
            Self::Old { .. } => "admission_old",
        }
    }
}

/// What a member knows of seeds: the one that holds and the one before.
#[derive(Clone, Debug)]
pub struct AdmissionKeys {
    signed: SignedAdmission,
    current: AdmissionDocument,
    previous: Option<AdmissionDocument>,
    /// Whether the signer of the one that holds still is an issuer.
    is_believed: bool,
}

/// The document, if an issuer signed it that neither the bundle nor a list has revoked.
///
/// # Errors
/// [`AdmissionError`].
pub fn open(
    signed: &SignedAdmission,
    bundle: &Bundle,
    revoked: &RevocationSet,
) -> Result<AdmissionDocument, AdmissionError> {
    let issuer = bundle.issuer(signed.signer).ok_or(AdmissionError::Stranger(signed.signer))?;
    if revoked.is_issuer_revoked(signed.signer) {
        return Err(AdmissionError::Revoked(signed.signer));
    }
    Ok(signed.open(&issuer)?)
}

impl AdmissionKeys {
    /// Begins with a document.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn new(signed: SignedAdmission, bundle: &Bundle, revoked: &RevocationSet) -> Result<Self, AdmissionError> {
        let current = open(&signed, bundle, revoked)?;
        Ok(Self { signed, current, previous: None, is_believed: true })
    }

    /// Goes on with our own copy of a document, which was believed when it came. Its signer may be revoked since; without its seed we would
    /// be a stranger to all others, who still know it, so it holds until another comes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn kept(signed: SignedAdmission, bundle: &Bundle, revoked: &RevocationSet) -> Result<Self, DecodeError> {
        let current = signed.peek()?;
        let mut keys = Self { signed, current, previous: None, is_believed: true };
        keys.judge(bundle, revoked);
        Ok(keys)
    }

    /// Looks again whether the signer is an issuer: for a new version of the bundle, or a list that names one. A seed of somebody who is
    /// none any more counts as the version 0, so that every other comes after it, whatever number its signer gave it.
    pub fn judge(&mut self, bundle: &Bundle, revoked: &RevocationSet) {
        self.is_believed =
            bundle.issuer(self.signed.signer).is_some() && !revoked.is_issuer_revoked(self.signed.signer);
    }

    /// Takes a document if it comes after what is known; `false` when it is known, or lost against one of its version. When two issuers draw a seed at once, all members prefer
    /// the same one: the higher version, then the higher key id.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn apply(
        &mut self,
        signed: SignedAdmission,
        bundle: &Bundle,
        revoked: &RevocationSet,
    ) -> Result<bool, AdmissionError> {
        let next = open(&signed, bundle, revoked)?;
        if next.version < self.version() {
            return Err(AdmissionError::Old { have: self.version(), found: next.version });
        }
        if (next.version, signed.signer) <= (self.version(), self.signed.signer) {
            return Ok(false);
        }
        self.previous = Some(std::mem::replace(&mut self.current, next));
        (self.signed, self.is_believed) = (signed, true);
        Ok(true)
    }

    /// The document that holds, to hand on.
    pub const fn signed(&self) -> &SignedAdmission {
        &self.signed
    }

    /// Its version; 0 while its signer is revoked, and so not to be handed on.
    pub const fn version(&self) -> u64 {
        if self.is_believed { self.current.version } else { 0 }
    }

    /// The key to make tags with.
    pub fn today(&self, now: UnixSecs) -> DayKey {
        self.current.day_key(day(now))
    }

    /// The keys whose tags are good: yesterday's, today's and tomorrow's, and for two days also those of the seed before.
    pub fn accepted(&self, now: UnixSecs) -> Vec<DayKey> {
        let today = day(now);
        let days = today.saturating_sub(1)..=today.saturating_add(1);
        let previous = self.previous.as_ref().filter(|_| now.0 < self.current.since.0.saturating_add(OLD_SEED_SECS));
        let seeds = [Some(&self.current), previous];
        seeds.into_iter().flatten().flat_map(|seed| days.clone().map(|day| seed.day_key(day))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::{first, key};
    use crate::pki::key::PrivateKey;
    use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};

    const NOON: u64 = 20_000 * DAY_SECS + DAY_SECS / 2;

    fn signed(version: u64, seed: u8, signer: &PrivateKey) -> SignedAdmission {
        let since = UnixSecs(NOON);
        Signed::sign(&AdmissionDocument { version, seed: Zeroizing::new([seed; 32]), since }, signer)
    }

    fn nobody() -> RevocationSet {
        RevocationSet::default()
    }

    /// What the other issuer's list makes of issuer 11.
    fn revoked() -> RevocationSet {
        let entry = Entry { what: Revoked::Issuer(key(11).public().id()), reason: "stolen".into(), at: UnixSecs(1) };
        let list = SignedRevocationList::sign(&key(12), 1, UnixSecs(1), UnixSecs(2), vec![entry]);
        let mut set = nobody();
        set.apply(list, &first()).unwrap();
        set
    }

    #[test]
    fn yesterday_today_and_tomorrow_are_accepted() {
        let keys = AdmissionKeys::new(signed(1, 5, &key(11)), &first(), &nobody()).unwrap();
        let accepted = keys.accepted(UnixSecs(NOON));
        assert_eq!(accepted.iter().map(|key| key.day).collect::<Vec<_>>(), [19_999, 20_000, 20_001]);
        assert_eq!(accepted[1], keys.today(UnixSecs(NOON)));
        assert!(accepted[0].key != accepted[1].key && accepted[1].key != accepted[2].key);
        // A key made the day before is still good the day after, and no longer then.
        let later = |days: u64| keys.accepted(UnixSecs(NOON + days * DAY_SECS)).contains(&accepted[1]);
        assert_eq!([later(1), later(2)], [true, false]);
    }

    #[test]
    fn the_seed_before_is_accepted_for_two_days() {
        let mut keys = AdmissionKeys::new(signed(1, 5, &key(11)), &first(), &nobody()).unwrap();
        let old = keys.today(UnixSecs(NOON));
        assert_eq!(keys.apply(signed(2, 6, &key(12)), &first(), &nobody()), Ok(true));
        assert_ne!(keys.today(UnixSecs(NOON)), old);
        assert!(keys.accepted(UnixSecs(NOON)).contains(&old));
        let at = |secs| keys.accepted(UnixSecs(NOON + secs)).len();
        assert_eq!([at(0), at(OLD_SEED_SECS - 1), at(OLD_SEED_SECS)], [6, 6, 3]);
    }

    #[test]
    fn all_members_prefer_the_same_of_two_seeds() {
        let (one, other) = (signed(2, 6, &key(11)), signed(2, 7, &key(12)));
        let after = |order: [&SignedAdmission; 2]| {
            let mut keys = AdmissionKeys::new(signed(1, 5, &key(11)), &first(), &nobody()).unwrap();
            order.into_iter().for_each(|next| drop(keys.apply(next.clone(), &first(), &nobody())));
            keys.signed().clone()
        };
        assert_eq!(after([&one, &other]), after([&other, &one]));
    }

    #[test]
    fn only_issuers_give_seeds_and_none_is_printed() {
        let stranger = signed(9, 6, &key(13));
        let id = key(13).public().id();
        let refused = AdmissionKeys::new(stranger.clone(), &first(), &nobody()).unwrap_err();
        assert_eq!(refused, AdmissionError::Stranger(id));
        let mut keys = AdmissionKeys::new(signed(1, 0xab, &key(11)), &first(), &nobody()).unwrap();
        assert_eq!(keys.apply(stranger, &first(), &nobody()), Err(AdmissionError::Stranger(id)));
        let shown = format!("{keys:?} {:?}", keys.today(UnixSecs(NOON)));
        assert!(!shown.contains("171, 171"), "{shown}");
    }

    /// A stolen issuer's key could set the seed, and with the highest version for ever, after everybody knew that it was stolen.
    #[test]
    fn an_issuer_on_a_list_gives_no_seed_and_the_one_it_gave_yields_to_any() {
        let id = key(11).public().id();
        let refused = AdmissionKeys::new(signed(9, 6, &key(11)), &first(), &revoked()).unwrap_err();
        assert_eq!(refused, AdmissionError::Revoked(id));
        let mut keys = AdmissionKeys::new(signed(u64::MAX, 5, &key(11)), &first(), &nobody()).unwrap();
        let before = keys.today(UnixSecs(NOON));
        let old = AdmissionError::Old { have: u64::MAX, found: 7 };
        assert_eq!(keys.apply(signed(7, 6, &key(12)), &first(), &nobody()), Err(old));
        keys.judge(&first(), &revoked());
        // It is still known to all others, so tags go on until there is another; but nobody is given it.
        assert_eq!((keys.version(), keys.today(UnixSecs(NOON))), (0, before.clone()));
        let mut kept = AdmissionKeys::kept(keys.signed().clone(), &first(), &revoked()).unwrap();
        assert_eq!((kept.version(), kept.today(UnixSecs(NOON))), (0, before.clone()));
        assert_eq!(keys.apply(signed(9, 6, &key(11)), &first(), &revoked()), Err(AdmissionError::Revoked(id)));
        for keys in [&mut keys, &mut kept] {
            assert_eq!(keys.apply(signed(7, 6, &key(12)), &first(), &revoked()), Ok(true));
            assert_eq!(keys.version(), 7);
            assert!(keys.accepted(UnixSecs(NOON)).contains(&before));
        }
    }
}
