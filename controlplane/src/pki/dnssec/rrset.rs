//! RRsets in canonical form, signed and verified (RFC 4034 §3.1.8.1 and §6, RFC 8080).
//!
//! ```text
//!  signed    type covered (2) │ 15 │ labels │ TTL (4) │ expiration (4) │ inception (4) │ key tag (2) │ signer's name │ RR …
//!  RR        owner │ type (2) │ class (2): 1 │ TTL (4) │ length (2) │ RDATA            in the order of RDATA, none twice
//!  kept      type │ TTL │ count, RDATA: len, bytes … │ expiration │ inception │ key tag │ signature (64)        in records of the DHT
//! ```
//!
//! RDATA comes from the DNS library in canonical form, so order and bytes are what every validator has.

use domain::base::Rtype;
use domain::base::name::Label;
use serde::{Deserialize, Serialize};

use super::key::{ALGORITHM, ZoneKey};
use super::{LongName, Name, below};
use crate::pki::key::{PrivateKey, Signature};
use crate::time::UnixSecs;

/// RRs of a set. Ours: as many keys as a trust bundle can name.
pub const RRS_MAX: usize = 256;
/// Bytes of one RDATA. Ours: a record of the DHT is 4 KiB.
pub const RDATA_LEN_MAX: usize = 1024;

/// Why a set is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The owner is not in the zone of the signer.
    #[error("the owner is outside of the signer's zone")]
    OutOfZone,
    /// No key of the zone has this tag.
    #[error("no key of the zone has the tag {0}")]
    Key(u16),
    /// Signed for later.
    #[error("the signature is not valid yet")]
    NotYet,
    /// Signed for earlier.
    #[error("the signature has expired")]
    Expired,
    /// The signature does not fit.
    #[error("the signature does not fit")]
    Signature,
    /// Its records are too many, too long, out of order, or its TTL is too long.
    #[error("the set is not in canonical form")]
    Form,
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] LongName),
}

/// Records of one owner and type, class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RrSet {
    /// Whose.
    pub owner: Name,
    /// Of which type.
    pub rtype: Rtype,
    /// For how long others may keep them, in seconds.
    pub ttl: u32,
    rdata: Vec<Vec<u8>>,
}

impl RrSet {
    /// A set of these RDATA, each in canonical form.
    pub fn new(owner: Name, rtype: Rtype, ttl: u32, rdata: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut rdata: Vec<Vec<u8>> = rdata.into_iter().collect();
        rdata.sort_unstable();
        rdata.dedup();
        Self { owner, rtype, ttl, rdata }
    }

    /// All RDATA, in canonical order.
    pub fn rdata(&self) -> &[Vec<u8>] {
        &self.rdata
    }

    /// Labels of the owner without the root and without a star (RFC 4034 §3.1.3).
    fn labels(&self) -> u8 {
        let all = self.owner.label_count() - 1;
        let is_wild = self.owner.first() == Label::wildcard();
        // A name has 127 labels at most.
        (all - usize::from(is_wild)) as u8
    }

    /// Whether others take it: neither empty nor too long, in order.
    pub fn has_form(&self) -> bool {
        let fits = self.rdata.iter().all(|rdata| rdata.len() <= RDATA_LEN_MAX);
        let is_ordered = self.rdata.windows(2).all(|pair| pair[0] < pair[1]);
        fits && is_ordered && (1..=RRS_MAX).contains(&self.rdata.len())
    }

    /// With a signature, as of this zone; believed only after [`SignedSet::verify`].
    pub fn with(self, zone: &Name, rrsig: Rrsig) -> SignedSet {
        SignedSet { labels: self.labels(), set: self, signer: zone.clone(), rrsig }
    }

    /// Signs it as of this zone.
    pub fn sign(self, zone: &Name, key: &ZoneKey, private: &PrivateKey, window: Window) -> SignedSet {
        let mut signed = self.with(zone, Rrsig { window, key_tag: key.tag(), signature: Signature([0; 64]) });
        signed.rrsig.signature = private.sign_raw(&signed.signed_bytes());
        signed
    }
}

/// When a signature is valid, in seconds since 1970 modulo 2^32, both ends included (RFC 4034 §3.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The last second.
    pub expiration: u32,
    /// The first one.
    pub inception: u32,
}

impl Window {
    /// From one moment to another.
    pub fn new(from: UnixSecs, until: UnixSecs) -> Self {
        Self { expiration: until.0 as u32, inception: from.0 as u32 }
    }

    fn judge(self, now: UnixSecs) -> Result<(), SetError> {
        // Serial number arithmetic (RFC 1982).
        let later = |one: u32, other: u32| (one.wrapping_sub(other) as i32) > 0;
        if later(self.inception, now.0 as u32) {
            return Err(SetError::NotYet);
        }
        if later(now.0 as u32, self.expiration) {
            return Err(SetError::Expired);
        }
        Ok(())
    }

    /// Seconds that are left of it.
    pub fn left(self, now: UnixSecs) -> u32 {
        let left = self.expiration.wrapping_sub(now.0 as u32);
        if left > i32::MAX as u32 { 0 } else { left }
    }
}

/// What of a signature does not follow from the set and its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rrsig {
    /// When it is valid.
    pub window: Window,
    /// Which key.
    pub key_tag: u16,
    /// The signature.
    pub signature: Signature,
}

/// A set with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedSet {
    /// The records. Of what a wildcard stands for, the owner is what was asked for.
    pub set: RrSet,
    /// Labels of the owner that was signed.
    labels: u8,
    /// The zone.
    pub signer: Name,
    /// The signature.
    pub rrsig: Rrsig,
}

impl SignedSet {
    /// The RDATA of the RRSIG.
    pub fn rrsig_rdata(&self) -> Vec<u8> {
        let mut rdata = self.rrsig_head();
        rdata.extend(self.rrsig.signature.0);
        rdata
    }

    fn rrsig_head(&self) -> Vec<u8> {
        let Window { expiration, inception } = self.rrsig.window;
        let mut head = self.set.rtype.to_int().to_be_bytes().to_vec();
        head.extend([ALGORITHM, self.labels]);
        for part in [self.set.ttl, expiration, inception] {
            head.extend(part.to_be_bytes());
        }
        head.extend(self.rrsig.key_tag.to_be_bytes());
        head.extend(self.signer.as_slice());
        head
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = self.rrsig_head();
        for rdata in &self.set.rdata {
            bytes.extend(self.set.owner.as_slice());
            bytes.extend(self.set.rtype.to_int().to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(self.set.ttl.to_be_bytes());
            // A set with more was not taken.
            bytes.extend((rdata.len() as u16).to_be_bytes());
            bytes.extend(rdata);
        }
        bytes
    }

    /// Whether one of these keys signed it for now, as of the zone that it names. Not for what a wildcard was expanded to.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn verify(&self, keys: &[ZoneKey], now: UnixSecs) -> Result<(), SetError> {
        if !self.set.owner.ends_with(&self.signer) {
            return Err(SetError::OutOfZone);
        }
        if !self.set.has_form() || self.set.ttl > super::TTL_SECS {
            return Err(SetError::Form);
        }
        self.rrsig.window.judge(now)?;
        let bytes = self.signed_bytes();
        let mut named = keys.iter().filter(|key| key.tag() == self.rrsig.key_tag).peekable();
        if named.peek().is_none() {
            return Err(SetError::Key(self.rrsig.key_tag));
        }
        let fits = named.any(|key| key.public.verify_raw(&bytes, &self.rrsig.signature).is_ok());
        if fits { Ok(()) } else { Err(SetError::Signature) }
    }

    /// Whether its signature is valid now; that it fits was seen before.
    ///
    /// # Errors
    /// [`SetError::NotYet`], [`SetError::Expired`].
    pub fn is_current(&self, now: UnixSecs) -> Result<(), SetError> {
        self.rrsig.window.judge(now)
    }

    /// The same records under a name that the wildcard, which is their owner, stands for (RFC 4035 §3.1.3.3).
    #[must_use]
    pub fn expanded(&self, to: Name) -> Self {
        Self { set: RrSet { owner: to, ..self.set.clone() }, ..self.clone() }
    }

    /// As it lies in a record.
    pub fn keep(&self) -> Kept {
        Kept { rtype: self.set.rtype.to_int(), ttl: self.set.ttl, rdata: self.set.rdata.clone(), rrsig: self.rrsig }
    }
}

/// A signed set as it lies in records, whose owner and zone are known from where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    rtype: u16,
    ttl: u32,
    rdata: Vec<Vec<u8>>,
    rrsig: Rrsig,
}

impl Kept {
    /// With its owner and its zone; believed only after [`SignedSet::verify`].
    pub fn of(self, owner: Name, zone: &Name) -> SignedSet {
        let Self { rtype, ttl, rdata, rrsig } = self;
        RrSet { owner, rtype: Rtype::from_int(rtype), ttl, rdata }.with(zone, rrsig)
    }
}

/// The name that these labels, each with its length before it, make below a zone; none for labels that are in upper case or none.
///
/// # Errors
/// [`SetError::Form`], [`SetError::Name`].
pub fn owner(labels: &[u8], zone: &Name) -> Result<Name, SetError> {
    let mut rest = labels;
    let mut parts = vec![];
    while let Some((len, after)) = rest.split_first() {
        let (label, after) = after.split_at_checked(usize::from(*len)).ok_or(SetError::Form)?;
        if label.is_empty() || label.iter().any(u8::is_ascii_uppercase) {
            return Err(SetError::Form);
        }
        parts.push(label);
        rest = after;
    }
    Ok(below(parts, zone)?)
}

/// The labels of a name below a zone, each with its length before it.
pub fn labels_below<'a>(owner: &'a Name, zone: &Name) -> &'a [u8] {
    let len = owner.len().saturating_sub(zone.len());
    &owner.as_slice()[..len]
}

#[cfg(test)]
mod tests {
    use super::super::key::Role;
    use super::*;

    const NOW: UnixSecs = UnixSecs(1_796_000_000);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn window() -> Window {
        Window::new(UnixSecs(NOW.0 - 3600), UnixSecs(NOW.0 + 3600))
    }

    fn keys() -> (PrivateKey, ZoneKey) {
        let private = PrivateKey::from_seed(&[7; 32]);
        let key = ZoneKey { public: private.public(), role: Role::EntryPoint };
        (private, key)
    }

    fn signed(owner: &str) -> SignedSet {
        let (private, key) = keys();
        let rdata = [vec![192, 0, 2, 9], vec![192, 0, 2, 1], vec![192, 0, 2, 9]];
        RrSet::new(name(owner), Rtype::A, 30, rdata).sign(&name("b.net.internal"), &key, &private, window())
    }

    /// RFC 8080 §6: the signature of the MX set of example.com by the first key.
    #[test]
    fn the_example_of_the_rfc_is_signed_with_the_same_bytes() {
        let seed = data_encoding::BASE64.decode(b"ODIyNjAzODQ2MjgwODAxMjI2NDUxOTAyMDQxNDIyNjI=").unwrap();
        let private = PrivateKey::from_seed(&seed.try_into().unwrap());
        let key = ZoneKey { public: private.public(), role: Role::EntryPoint };
        assert_eq!(data_encoding::BASE64.encode(&key.public.0), "l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4=");
        let mail = [&[0, 10][..], name("mail.example.com").as_slice()].concat();
        let window = Window { expiration: 1_440_021_600, inception: 1_438_207_200 };
        let set = RrSet::new(name("example.com"), Rtype::MX, 3600, [mail]);
        let signed = set.sign(&name("example.com"), &key, &private, window);
        let expected = b"oL9krJun7xfBOIWcGHi7mag5/hdZrKWw15jPGrHpjQeRAvTdszaPD+QLs3fx8A4M3e23mRZ9VrbpMngwcrqNAg==";
        assert_eq!(data_encoding::BASE64.encode(&signed.rrsig.signature.0).as_bytes(), &expected[..]);
    }

    #[test]
    fn what_was_signed_is_believed_and_nothing_else() {
        let (_, key) = keys();
        let good = signed("www.b.net.internal");
        assert_eq!(good.verify(&[key], NOW), Ok(()));
        assert_eq!(good.set.rdata(), [vec![192, 0, 2, 1], vec![192, 0, 2, 9]]);
        let kept: Kept = crate::codec::decode(&crate::codec::encode(&good.keep()), 4096).unwrap();
        assert_eq!(kept.of(name("www.b.net.internal"), &name("b.net.internal")), good);

        let bent = |change: &dyn Fn(&mut SignedSet)| {
            let mut bent = good.clone();
            change(&mut bent);
            bent.verify(&[key], NOW).unwrap_err()
        };
        assert_eq!(bent(&|set| set.set.rdata[0][3] = 2), SetError::Signature);
        assert_eq!(bent(&|set| set.set.rdata.swap(0, 1)), SetError::Form);
        assert_eq!(bent(&|set| set.set.rdata.clear()), SetError::Form);
        assert_eq!(bent(&|set| set.set.ttl = 29), SetError::Signature);
        assert_eq!(bent(&|set| set.set.ttl = 31), SetError::Form);
        assert_eq!(bent(&|set| set.set.rtype = Rtype::AAAA), SetError::Signature);
        assert_eq!(bent(&|set| set.set.owner = name("wwx.b.net.internal")), SetError::Signature);
        assert_eq!(bent(&|set| set.set.owner = name("www.c.net.internal")), SetError::OutOfZone);
        assert_eq!(bent(&|set| set.signer = name("net.internal")), SetError::Signature);
        assert_eq!(bent(&|set| set.labels = 3), SetError::Signature);
        assert_eq!(bent(&|set| set.rrsig.key_tag ^= 1), SetError::Key(key.tag() ^ 1));
        assert_eq!(bent(&|set| set.rrsig.window.expiration += 1), SetError::Signature);
        assert_eq!(bent(&|set| set.rrsig.signature.0[5] ^= 1), SetError::Signature);
        let other = ZoneKey { public: PrivateKey::from_seed(&[8; 32]).public(), role: Role::EntryPoint };
        assert!(matches!(good.verify(&[other], NOW), Err(SetError::Key(_))));
    }

    /// As the page of formats shows it.
    #[test]
    fn a_kept_set_begins_with_these_bytes() {
        let (private, key) = keys();
        let set = RrSet::new(name("b.net.internal"), Rtype::A, 30, [vec![192, 0, 2, 1]]);
        let bytes = crate::codec::encode(&set.sign(&name("b.net.internal"), &key, &private, window()).keep());
        assert_eq!(bytes[..8], [1, 30, 1, 4, 192, 0, 2, 1]);
        // Two moments of five bytes each, a tag of at most three, and two halves of a signature with their lengths.
        assert!((8 + 10 + 1 + 66..=8 + 10 + 3 + 66).contains(&bytes.len()), "{}", bytes.len());
    }

    #[test]
    fn a_signature_holds_from_its_first_second_to_its_last_also_around_2106() {
        let (_, key) = keys();
        let good = signed("www.b.net.internal");
        let at = |secs: u64| good.verify(&[key], UnixSecs(secs));
        assert_eq!((at(NOW.0 - 3601), at(NOW.0 - 3600)), (Err(SetError::NotYet), Ok(())));
        assert_eq!((at(NOW.0 + 3600), at(NOW.0 + 3601)), (Ok(()), Err(SetError::Expired)));
        let turn = 1 << 32;
        let window = Window::new(UnixSecs(turn - 10), UnixSecs(turn + 10));
        let judged = |secs| window.judge(UnixSecs(secs));
        assert_eq!((judged(turn - 11), judged(turn - 10)), (Err(SetError::NotYet), Ok(())));
        assert_eq!((judged(turn + 10), judged(turn + 11)), (Ok(()), Err(SetError::Expired)));
        assert_eq!((window.left(UnixSecs(turn)), window.left(UnixSecs(turn + 11))), (10, 0));
    }

    #[test]
    fn a_wildcard_counts_no_star_and_stands_for_others() {
        let (_, key) = keys();
        let wild = signed("*.b.net.internal");
        assert_eq!((wild.labels, wild.verify(&[key], NOW)), (3, Ok(())));
        let expanded = wild.expanded(name("x.y.b.net.internal"));
        assert_eq!((expanded.labels, expanded.rrsig), (3, wild.rrsig));
    }

    #[test]
    fn labels_of_a_record_make_a_name_or_are_refused() {
        let zone = name("b.net.internal");
        let host = name("_http._tcp.b.net.internal");
        assert_eq!(owner(labels_below(&host, &zone), &zone), Ok(host));
        assert_eq!((owner(b"", &zone), labels_below(&zone, &zone)), (Ok(zone.clone()), &b""[..]));
        for wrong in [&b"\x03ab"[..], b"\x00", b"\x01A", b"\x01a\x00"] {
            assert_eq!(owner(wrong, &zone), Err(SetError::Form), "{wrong:?}");
        }
        assert_eq!(owner(&[&[64][..], &[b'a'; 64]].concat(), &zone), Err(SetError::Name(LongName)));
    }
}
