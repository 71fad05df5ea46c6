//! Revocation: who is a member no longer. One list per signer, only ever longer; what counts is the union.
//!
//! ```text
//!  head, signed:  signer (20) │ version │ issued at │ fresh until │ count │ link of the last entry (32)
//!  entries:       what │ reason │ at
//!
//!  link 0 = 32 zeros         link n = SHA-256("weir-revoked-1" ‖ link n-1 ‖ entry n)
//! ```
//!
//! The signature covers a chain over the entries rather than the entries, so a list that was only signed afresh travels as its head, and a
//! longer one as its new entries. A signer that takes an entry back, or writes another in its place, shows it by a link that does not fit.
//!
//! A list counts for as long as the bundle names its signer. Whoever revokes an issuer has another issuer adopt the entries to be kept.

pub mod text;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::bundle::Bundle;
use super::id::{InviteId, KeyId, NodeId, sha256};
use super::key::{Domain, PrivateKey};
use super::signed::{Document, OpenError, Signed};
use crate::codec;
use crate::time::UnixSecs;

/// Longest reason in bytes.
pub const REASON_LEN_MAX: usize = 200;
/// Entries in one list: with the longest reasons they fill a message of 1 MiB. A signer that is full is followed by a new key, which
/// adopts the entries that still matter.
pub const ENTRIES_MAX: usize = 4096;
/// Lists in the union: every issuer and every revocation key of a bundle, and a rotation's worth of their predecessors.
pub const SIGNERS_MAX: usize = 256;
/// How far ahead of our clock a list may be issued and still count as fresh.
const SKEW_SECS: u64 = 300;

/// Who or what is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Revoked {
    /// A member.
    Node(NodeId),
    /// An issuer, at once; the bundle follows in a ceremony.
    Issuer(KeyId),
    /// An invitation.
    Invite(InviteId),
}

impl std::fmt::Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
            Self::Invite(invite) => write!(f, "invite {invite}"),
        }
    }
}

/// One revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who or what.
    pub what: Revoked,
    /// For people.
    pub reason: String,
    /// When.
    pub at: UnixSecs,
}

/// What a signer says of its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationHead {
    /// Whose list.
    pub signer: KeyId,
    /// Rises with each signature.
    pub version: u64,
    /// When it was signed.
    pub issued_at: UnixSecs,
    /// Until when the lack of a newer one is no reason to warn.
    pub fresh_until: UnixSecs,
    /// How many entries it has.
    pub count: u32,
    /// The link of the last entry.
    pub link: [u8; 32],
}

impl Document for RevocationHead {
    const DOMAIN: Domain = Domain::Revocation;
    const BODY_LEN_MAX: usize = 128;
}

/// A list, or its end, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRevocationList {
    /// The head.
    pub head: Signed<RevocationHead>,
    /// How many entries are left out because the receiver has them.
    pub from: u32,
    /// All entries after those.
    pub entries: Vec<Entry>,
}

/// Why a list is refused. What was known stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The bundle names no such signer, or has revoked it.
    #[error("{0} may not revoke in this network")]
    Stranger(KeyId),
    /// The head is not what its signer signed.
    #[error("a revocation list: {0}")]
    Open(#[from] OpenError),
    /// The head names another signer than its signature.
    #[error("the revocation list of {0} is signed by another")]
    OtherSigner(KeyId),
    /// We have a newer one, or two lists share a version.
    #[error("version {found} of a revocation list is no newer than version {have}")]
    Old {
        /// The version that is known.
        have: u64,
        /// The one that came.
        found: u64,
    },
    /// It begins after what we have; ask from there.
    #[error("the revocation list begins at entry {from}, {have} are known; ask for the ones between")]
    Gap {
        /// Entries that are known.
        have: u32,
        /// Where it begins.
        from: u32,
    },
    /// It has fewer entries than before, or others: its signer breaks its word.
    #[error("{0} took revocations back; treat its key as stolen")]
    Rewritten(KeyId),
    /// The entries that came are not the ones that were signed.
    #[error("the entries do not fit the head of the revocation list")]
    Entries,
    /// More entries than a list may have.
    #[error("{0} entries in a revocation list, {ENTRIES_MAX} are read")]
    TooLong(usize),
    /// A reason is too long.
    #[error("a reason of {0} bytes, {REASON_LEN_MAX} are read")]
    Reason(usize),
    /// It would be fresh before it was issued.
    #[error("a revocation list ends before it is issued")]
    Freshness,
    /// More signers than we keep.
    #[error("the lists of {SIGNERS_MAX} signers are known; have the bundle drop some")]
    Signers,
}

impl RevocationError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stranger(_) => "revocation_stranger",
            Self::Open(_) => "revocation_signature",
            Self::OtherSigner(_) => "revocation_other_signer",
            Self::Old { .. } => "revocation_old",
            Self::Gap { .. } => "revocation_gap",
            Self::Rewritten(_) => "revocation_rewritten",
            Self::Entries => "revocation_entries",
            Self::TooLong(_) | Self::Reason(_) => "revocation_too_long",
            Self::Freshness => "revocation_freshness",
            Self::Signers => "revocation_signers",
        }
    }
}

/// The link before the first entry.
pub const FIRST_LINK: [u8; 32] = [0; 32];

/// The link of an entry, given the one before.
pub fn link(before: [u8; 32], entry: &Entry) -> [u8; 32] {
    sha256("weir-revoked-1", &[&before, &codec::encode(entry)])
}

impl SignedRevocationList {
    /// Signs a whole list.
    pub fn sign(
        key: &PrivateKey,
        version: u64,
        issued_at: UnixSecs,
        fresh_until: UnixSecs,
        entries: Vec<Entry>,
    ) -> Self {
        let link = entries.iter().fold(FIRST_LINK, link);
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let head = RevocationHead { signer: key.public().id(), version, issued_at, fresh_until, count, link };
        Self { head: Signed::sign(&head, key), from: 0, entries }
    }
}

/// What a list changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Entries that were not in the signer's list before.
    pub added: Vec<Entry>,
}

/// A list that was judged good, as far as it is not known yet.
#[derive(Clone, Debug)]
pub struct NextList {
    signed: Signed<RevocationHead>,
    head: RevocationHead,
    added: Vec<Entry>,
}

/// A signer's list as we keep it.
#[derive(Clone, Debug)]
struct Known {
    signed: Signed<RevocationHead>,
    head: RevocationHead,
    entries: Vec<Entry>,
}

/// The union of all lists.
#[derive(Clone, Debug, Default)]
pub struct RevocationSet {
    lists: BTreeMap<KeyId, Known>,
    /// How many lists name it.
    union: HashMap<Revoked, u32>,
}

impl RevocationSet {
    /// Takes a signer's list, or the end of one.
    ///
    /// # Errors
    /// [`RevocationError`]; nothing has changed then.
    pub fn apply(&mut self, list: SignedRevocationList, bundle: &Bundle) -> Result<Applied, RevocationError> {
        let next = self.judge(list, bundle)?;
        let added = next.added.clone();
        self.take(next);
        Ok(Applied { added })
    }

    /// What a list, or the end of one, adds to what is known. Nothing is taken yet.
    ///
    /// # Errors
    /// [`RevocationError`].
    pub fn judge(&self, list: SignedRevocationList, bundle: &Bundle) -> Result<NextList, RevocationError> {
        let signer = list.head.signer;
        let key = bundle.revoker(signer).ok_or(RevocationError::Stranger(signer))?;
        let head = list.head.open(&key)?;
        if head.signer != signer {
            return Err(RevocationError::OtherSigner(head.signer));
        }
        if head.fresh_until < head.issued_at {
            return Err(RevocationError::Freshness);
        }
        let known = self.lists.get(&signer);
        if known.is_none() && self.lists.len() >= SIGNERS_MAX {
            return Err(RevocationError::Signers);
        }
        let (have_version, have) = known.map_or((0, &[][..]), |known| (known.head.version, &known.entries));
        if head.version <= have_version {
            return Err(RevocationError::Old { have: have_version, found: head.version });
        }
        let added = new_entries(have, known.map_or(FIRST_LINK, |known| known.head.link), &head, &list)?;
        Ok(NextList { signed: list.head, head, added })
    }

    /// The whole list that [`Self::take`] would leave, to write it down first.
    pub fn whole(&self, next: &NextList) -> SignedRevocationList {
        let known = self.lists.get(&next.head.signer).map_or(&[][..], |known| &known.entries);
        let entries = known.iter().chain(&next.added).cloned().collect();
        SignedRevocationList { head: next.signed.clone(), from: 0, entries }
    }

    /// Takes a list that was judged against what is known now.
    pub fn take(&mut self, next: NextList) {
        let NextList { signed, head, added } = next;
        added.iter().for_each(|entry| *self.union.entry(entry.what).or_default() += 1);
        let mut entries = self.lists.remove(&head.signer).map(|known| known.entries).unwrap_or_default();
        entries.extend(added);
        self.lists.insert(head.signer, Known { signed, head, entries });
    }

    /// Forgets the lists whose signers the bundle does not name any more; returns who they were. For a new version of the bundle.
    pub fn retain(&mut self, bundle: &Bundle) -> Vec<KeyId> {
        let gone: Vec<KeyId> = self.lists.keys().copied().filter(|id| bundle.revoker(*id).is_none()).collect();
        for known in gone.iter().filter_map(|id| self.lists.remove(id)) {
            for entry in known.entries {
                if let Some(lists) = self.union.get_mut(&entry.what) {
                    *lists -= 1;
                }
            }
        }
        self.union.retain(|_, lists| *lists > 0);
        gone
    }

    /// Whether any list names this.
    pub fn is_revoked(&self, what: Revoked) -> bool {
        self.union.contains_key(&what)
    }

    /// Whether any list names this member.
    pub fn is_node_revoked(&self, node: NodeId) -> bool {
        self.is_revoked(Revoked::Node(node))
    }

    /// Whether any list names this issuer.
    pub fn is_issuer_revoked(&self, issuer: KeyId) -> bool {
        self.is_revoked(Revoked::Issuer(issuer))
    }

    /// Whether some signer vouches now that nothing newer is missing.
    pub fn is_fresh(&self, now: UnixSecs) -> bool {
        let mut heads = self.lists.values().map(|known| &known.head);
        heads.any(|head| head.issued_at.0 <= now.0.saturating_add(SKEW_SECS) && now < head.fresh_until)
    }

    /// Names what is known: two members with one digest have the same lists.
    pub fn digest(&self) -> [u8; 32] {
        let pairs: Vec<(KeyId, u64)> = self.versions().collect();
        sha256("weir-revocations-1", &[&codec::encode(&pairs)])
    }

    /// Signers and the versions of their lists, in the order of the signers.
    pub fn versions(&self) -> impl Iterator<Item = (KeyId, u64)> {
        self.lists.iter().map(|(signer, known)| (*signer, known.head.version))
    }

    /// A signer's version and number of entries; what to ask for the rest of its list with.
    pub fn have(&self, signer: KeyId) -> (u64, u32) {
        self.lists.get(&signer).map_or((0, 0), |known| (known.head.version, known.head.count))
    }

    /// A signer's list for someone who has its first `from` entries.
    pub fn list(&self, signer: KeyId, from: u32) -> Option<SignedRevocationList> {
        let known = self.lists.get(&signer)?;
        let from = from.min(known.head.count);
        let left_out = usize::try_from(from).ok()?;
        Some(SignedRevocationList { head: known.signed.clone(), from, entries: known.entries[left_out..].to_vec() })
    }

    /// All lists, whole.
    pub fn lists(&self) -> Vec<SignedRevocationList> {
        self.lists.keys().filter_map(|signer| self.list(*signer, 0)).collect()
    }

    /// All entries of all lists.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lists.values().flat_map(|known| &known.entries)
    }
}

/// The entries of `list` that we do not have, once they are known to be what was signed.
fn new_entries(
    have: &[Entry],
    have_link: [u8; 32],
    head: &RevocationHead,
    list: &SignedRevocationList,
) -> Result<Vec<Entry>, RevocationError> {
    let from = list.from as usize;
    let count = from.saturating_add(list.entries.len());
    if count > ENTRIES_MAX {
        return Err(RevocationError::TooLong(count));
    }
    if let Some(entry) = list.entries.iter().find(|entry| entry.reason.len() > REASON_LEN_MAX) {
        return Err(RevocationError::Reason(entry.reason.len()));
    }
    if count != head.count as usize {
        return Err(RevocationError::Entries);
    }
    if count < have.len() {
        return Err(RevocationError::Rewritten(head.signer));
    }
    if from > have.len() {
        return Err(RevocationError::Gap { have: have.len() as u32, from: list.from });
    }
    // Whether the entries are what was signed comes first: only then is a difference the signer's doing and not the carrier's.
    let before = have[..from].iter().fold(FIRST_LINK, link);
    if list.entries.iter().fold(before, link) != head.link {
        // A piece hangs on what we have; the whole list would tell which of the two is wrong.
        return Err(if from == 0 {
            RevocationError::Entries
        } else {
            RevocationError::Gap { have: 0, from: list.from }
        });
    }
    let ours = have.len() - from;
    if list.entries[..ours].iter().fold(before, link) != have_link {
        return Err(RevocationError::Rewritten(head.signer));
    }
    Ok(list.entries[ours..].to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pki::bundle::tests::{chain, first, key, next};

    fn entry(byte: u8) -> Entry {
        Entry { what: Revoked::Node(NodeId([byte; 32])), reason: "stolen".into(), at: UnixSecs(7) }
    }

    fn entries(count: u8) -> Vec<Entry> {
        (0..count).map(entry).collect()
    }

    fn list(seed: u8, version: u64, entries: Vec<Entry>) -> SignedRevocationList {
        SignedRevocationList::sign(&key(seed), version, UnixSecs(1000), UnixSecs(4600), entries)
    }

    fn known(count: u8) -> RevocationSet {
        let mut set = RevocationSet::default();
        set.apply(list(11, 1, entries(count)), &first()).unwrap();
        set
    }

    fn applied(set: &mut RevocationSet, list: SignedRevocationList) -> Result<usize, RevocationError> {
        set.apply(list, &first()).map(|applied| applied.added.len())
    }

    #[test]
    fn what_counts_is_the_union_of_issuers_and_revocation_keys() {
        let mut set = known(2);
        assert_eq!(applied(&mut set, list(21, 1, vec![entry(9), entry(1)])), Ok(2));
        let revoked =
            |set: &RevocationSet| (0..12).filter(|byte| set.is_node_revoked(NodeId([*byte; 32]))).collect::<Vec<_>>();
        assert_eq!(revoked(&set), [0, 1, 9]);
        let stranger = key(13).public().id();
        assert_eq!(applied(&mut set, list(13, 1, vec![entry(5)])), Err(RevocationError::Stranger(stranger)));
        // What two lists name stays when one of them counts no longer.
        let dropped = next(&chain(), |bundle| bundle.revokers.clear(), &[&key(1)]).peek().unwrap();
        assert_eq!(set.retain(&dropped), [key(21).public().id()]);
        assert_eq!(revoked(&set), [0, 1]);
    }

    #[test]
    fn versions_never_go_back_and_entries_are_never_taken_back() {
        let signer = key(11).public().id();
        let mut set = known(3);
        assert_eq!(applied(&mut set, list(11, 1, entries(4))), Err(RevocationError::Old { have: 1, found: 1 }));
        assert_eq!(applied(&mut set, list(11, 2, entries(2))), Err(RevocationError::Rewritten(signer)));
        let mut other = entries(4);
        other[1].reason.push('!');
        assert_eq!(applied(&mut set, list(11, 2, other)), Err(RevocationError::Rewritten(signer)));
        assert_eq!((set.have(signer), set.entries().count()), ((1, 3), 3));
        assert_eq!(applied(&mut set, list(11, 2, entries(3))), Ok(0));
        assert_eq!(applied(&mut set, list(11, 9, entries(5))), Ok(2));
    }

    #[test]
    fn the_end_of_a_list_suffices_for_who_has_its_begin() {
        let signer = key(11).public().id();
        let mut ahead = known(3);
        ahead.apply(list(11, 2, entries(6)), &first()).unwrap();
        for from in 0..=3 {
            let mut set = known(3);
            assert_eq!(applied(&mut set, ahead.list(signer, from).unwrap()), Ok(3), "{from}");
            assert_eq!(set.digest(), ahead.digest());
        }
        let gap = applied(&mut known(3), ahead.list(signer, 4).unwrap());
        assert_eq!(gap, Err(RevocationError::Gap { have: 3, from: 4 }));
        assert_eq!(ahead.list(signer, 99).map(|list| list.entries.len()), Some(0));
    }

    #[test]
    fn a_carrier_can_change_nothing() {
        let whole = list(11, 2, entries(4));
        let refused = |change: &dyn Fn(&mut SignedRevocationList)| {
            let mut list = whole.clone();
            change(&mut list);
            applied(&mut known(2), list).unwrap_err()
        };
        assert_eq!(refused(&|list| drop(list.entries.pop())), RevocationError::Entries);
        assert_eq!(refused(&|list| list.entries.swap(0, 3)), RevocationError::Entries);
        assert_eq!(refused(&|list| list.entries[2].at = UnixSecs(0)), RevocationError::Entries);
        assert_eq!(refused(&|list| list.from = 1), RevocationError::Entries);
        assert!(matches!(refused(&|list| list.head.body[0] ^= 1), RevocationError::Open(_)));
        assert!(matches!(refused(&|list| list.head.signer = key(12).public().id()), RevocationError::Open(_)));
        assert_eq!(applied(&mut known(2), whole), Ok(2));
    }

    #[test]
    fn lists_and_reasons_are_read_up_to_their_limits() {
        let many = |count: usize| (0..count).map(|at| Entry { at: UnixSecs(at as u64), ..entry(1) }).collect();
        assert_eq!(applied(&mut RevocationSet::default(), list(11, 1, many(ENTRIES_MAX))), Ok(ENTRIES_MAX));
        let more = applied(&mut RevocationSet::default(), list(11, 1, many(ENTRIES_MAX + 1)));
        assert_eq!(more, Err(RevocationError::TooLong(ENTRIES_MAX + 1)));
        let reason = |len: usize| vec![Entry { reason: "x".repeat(len), ..entry(1) }];
        assert_eq!(applied(&mut RevocationSet::default(), list(11, 1, reason(REASON_LEN_MAX))), Ok(1));
        let more = applied(&mut RevocationSet::default(), list(11, 1, reason(REASON_LEN_MAX + 1)));
        assert_eq!(more, Err(RevocationError::Reason(REASON_LEN_MAX + 1)));
    }

    #[test]
    fn a_list_is_fresh_from_its_signing_to_its_end() {
        let set = known(0);
        let fresh = [699, 700, 1000, 4599, 4600].map(|secs| set.is_fresh(UnixSecs(secs)));
        assert_eq!(fresh, [false, true, true, true, false]);
        assert!(!RevocationSet::default().is_fresh(UnixSecs(1000)));
        let reversed = SignedRevocationList::sign(&key(11), 1, UnixSecs(2), UnixSecs(1), vec![]);
        assert_eq!(applied(&mut RevocationSet::default(), reversed), Err(RevocationError::Freshness));
    }

    proptest! {
        /// Whatever pieces arrive in whatever order, what is known is a beginning of what the signer signed, and never less than before.
        #[test]
        fn pieces_in_any_order_never_shrink_a_list(pieces in proptest::collection::vec((0_u8..12, 0_u32..12), 1..20)) {
            let signer = key(11).public().id();
            let mut set = RevocationSet::default();
            for (count, from) in pieces {
                let before = set.entries().count();
                let mut piece = list(11, u64::from(count) + 1, entries(count));
                piece.from = from.min(u32::from(count));
                piece.entries.drain(..piece.from as usize);
                let _ = set.apply(piece, &first());
                let after: Vec<Entry> = set.entries().cloned().collect();
                prop_assert!(after.len() >= before);
                prop_assert_eq!(&after[..], &entries(12)[..after.len()]);
                prop_assert_eq!(set.have(signer).1 as usize, after.len());
            }
        }
    }
}
