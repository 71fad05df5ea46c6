//! What is kept for others: bounded for each signer and in all, and never an older record in the place of a newer one.
//!
//! ```text
//!  put ─▶ cheap: network, life, sequence, swap, quota ─▶ dear: statement, place, signature ─▶ room? the farthest goes ─▶ kept
//! ```
//!
//! The highest sequence of each place outlives its record, until that one would have expired: what is evicted cannot be put back in an
//! older form, and what has expired is refused as such.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::place::Key;
use serde::{Deserialize, Serialize};

use super::record::{ENVELOPE_LEN_MAX, Envelope, Judge, Kind, RecordError, SignedRecord};
use crate::codec;
use crate::pki::id::NodeId;
use crate::time::UnixSecs;

/// Records that are kept. Ours: at 20 copies of each, a network of ten thousand nodes with 5 % servers leaves 400 of each kind to one.
pub const RECORDS_MAX: usize = 4096;
/// Bytes of all records.
pub const BYTES_MAX: usize = 8 << 20;
/// Places whose highest sequence is remembered.
pub const PLACES_MAX: usize = 2 * RECORDS_MAX;
/// Bytes of one signer's records. Ours: a zone's two as long as they may be, sixteen services, and one of each other kind.
pub const SIGNER_BYTES_MAX: usize = 20 << 10;

/// Why a record is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// It is not to be believed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A newer one, or another of the same sequence, was here.
    #[error("sequence {sequence} is not above {highest}, the highest seen")]
    Old {
        /// Of the record.
        sequence: u64,
        /// The highest seen.
        highest: u64,
    },
    /// It replaces another than the one that is here.
    #[error("to replace {expected}, but {have:?} is here")]
    Conflict {
        /// The sequence that it was to replace.
        expected: u64,
        /// The one that is here.
        have: Option<u64>,
    },
    /// The signer has too much here.
    #[error("{0} has as much here as one signer may")]
    Quota(NodeId),
    /// Everything that is here lies nearer.
    #[error("full, and everything here lies nearer")]
    Full,
}

/// How a put went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is new here.
    Stored,
    /// It was here already.
    Held,
}

#[derive(Clone, Debug)]
struct Place {
    /// The highest sequence that was ever here, what it belongs to, and whose it is.
    highest: u64,
    digest: u64,
    node: NodeId,
    /// Until when it has to be remembered: as long as its record could be put here.
    until: UnixSecs,
    held: Option<SignedRecord>,
}

/// A highest sequence that outlives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highest {
    /// Of which place.
    pub kind: Kind,
    /// Of which place.
    pub key: Key,
    /// The sequence.
    pub sequence: u64,
    /// Names the record that has it.
    pub digest: u64,
    /// Whose record that is.
    pub node: NodeId,
    /// How long it matters.
    pub until: UnixSecs,
}

/// The store of one node.
#[derive(Clone, Debug)]
pub struct Store {
    own: Key,
    /// By key first: what is of one key lies together.
    places: BTreeMap<(Key, Kind), Place>,
    signers: BTreeMap<NodeId, usize>,
    records: usize,
    bytes: usize,
}

/// The first bytes of the signature, by which different records of one sequence are told apart. Two that agree would share their nonce
/// (RFC 8032 §5.1.6), and their signer would give its key away.
pub(super) fn digest(record: &SignedRecord) -> u64 {
    record.signature.0.iter().take(8).fold(0, |digest, byte| digest << 8 | u64::from(*byte))
}

impl Store {
    /// An empty one beside this place; `highest` is what [`Self::highest`] said before a restart.
    pub fn new(own: Key, highest: impl IntoIterator<Item = Highest>) -> Self {
        let place = |known: Highest| {
            let Highest { kind, key, sequence, digest, node, until } = known;
            ((key, kind), Place { highest: sequence, digest, node, until, held: None })
        };
        let places = highest.into_iter().take(PLACES_MAX).map(place).collect();
        Self { own, places, signers: BTreeMap::new(), records: 0, bytes: 0 }
    }

    /// Keeps a record; `replaces` is the sequence that the one who puts it believes to be here.
    ///
    /// # Errors
    /// [`PutError`]; nothing changes then.
    pub fn put(&mut self, record: SignedRecord, replaces: Option<u64>, judge: Judge<'_>) -> Result<Put, PutError> {
        let envelope = record.read(judge.network, judge.now)?;
        let at = (envelope.key, envelope.kind);
        let known = self.places.get(&at);
        let held = known.and_then(|place| Some((place, place.held.as_ref()?)));
        if held.is_some_and(|(_, held)| *held == record) {
            return Ok(Put::Held);
        }
        self.check_sequence(&envelope, &record)?;
        let have = held.map(|(place, _)| place.highest);
        if let Some(expected) = replaces.filter(|expected| Some(*expected) != have) {
            return Err(PutError::Conflict { expected, have });
        }
        let its = held.filter(|(place, _)| place.node == envelope.node);
        let (frees, len) = (its.map_or(0, |(_, held)| held.byte_len()), record.byte_len());
        if self.signers.get(&envelope.node).copied().unwrap_or(0) - frees + len > SIGNER_BYTES_MAX {
            return Err(PutError::Quota(envelope.node));
        }
        let until = record.verify_signer(&envelope, judge)?;
        self.make_room(at, len)?;
        self.insert(envelope, record, until);
        Ok(Put::Stored)
    }

    /// Whether a record is above the highest sequence that was seen of its place, or the very one that has it.
    ///
    /// # Errors
    /// [`PutError::Old`].
    pub(super) fn check_sequence(&self, envelope: &Envelope, record: &SignedRecord) -> Result<(), PutError> {
        let Some(place) = self.places.get(&(envelope.key, envelope.kind)) else { return Ok(()) };
        let is_same = match &place.held {
            Some(held) => held == record,
            None => envelope.sequence == place.highest && digest(record) == place.digest,
        };
        if envelope.sequence <= place.highest && !is_same {
            return Err(PutError::Old { sequence: envelope.sequence, highest: place.highest });
        }
        Ok(())
    }

    /// Evicts what lies farther than this, the farthest first, as far as that is needed; nothing if that is not enough.
    fn make_room(&mut self, at: (Key, Kind), len: usize) -> Result<(), PutError> {
        let there = self.places.get(&at);
        let is_new = usize::from(there.is_none());
        let frees = there.and_then(|place| place.held.as_ref()).map(SignedRecord::byte_len);
        let mut records = self.records + usize::from(frees.is_none());
        let mut bytes = self.bytes + len - frees.unwrap_or(0);
        let mut places = self.places.len() + is_new;
        let is_enough = |records, bytes, places| records <= RECORDS_MAX && bytes <= BYTES_MAX && places <= PLACES_MAX;
        if is_enough(records, bytes, places) {
            return Ok(());
        }
        let own = self.own.distance(at.0);
        let beyond = |key: Key| self.own.distance(key) > own;
        let mut far: Vec<_> = self.places.keys().copied().filter(|(key, _)| beyond(*key)).collect();
        far.sort_by_key(|(key, _)| std::cmp::Reverse(self.own.distance(*key)));
        let mut gone = 0;
        for place in far.iter().map(|at| &self.places[at]) {
            if is_enough(records, bytes, places) {
                break;
            }
            if let Some(held) = &place.held {
                records -= 1;
                bytes -= held.byte_len();
            }
            places -= usize::from(places > PLACES_MAX);
            gone += 1;
        }
        if !is_enough(records, bytes, places) {
            return Err(PutError::Full);
        }
        for at in &far[..gone] {
            self.release(*at);
            if self.places.len() + is_new > PLACES_MAX {
                self.places.remove(at);
            }
        }
        Ok(())
    }

    fn insert(&mut self, envelope: Envelope, record: SignedRecord, until: UnixSecs) {
        let Envelope { kind, key, sequence: highest, node, .. } = envelope;
        self.release((key, kind));
        self.records += 1;
        self.bytes += record.byte_len();
        *self.signers.entry(node).or_default() += record.byte_len();
        let place = Place { highest, digest: digest(&record), node, until, held: Some(record) };
        self.places.insert((key, kind), place);
    }

    /// Keeps a record of our own that was found good before and ends then, unless a later one was here.
    pub(super) fn keep_own(&mut self, record: &SignedRecord, until: UnixSecs) {
        let Ok(envelope) = codec::decode::<Envelope>(&record.body, ENVELOPE_LEN_MAX) else { return };
        let at = (envelope.key, envelope.kind);
        let is_here = self.places.get(&at).is_some_and(|place| place.held.is_some());
        if !is_here && self.check_sequence(&envelope, record).is_ok() && self.make_room(at, record.byte_len()).is_ok() {
            self.insert(envelope, record.clone(), until);
        }
    }

    /// Lets all records go, and remembers their sequences.
    pub(super) fn let_all_go(&mut self) {
        let all: Vec<_> = self.places.keys().copied().collect();
        all.into_iter().for_each(|at| self.release(at));
    }

    /// Lets the record of a place go, and remembers its sequence.
    fn release(&mut self, at: (Key, Kind)) {
        let Some(place) = self.places.get_mut(&at) else { return };
        let Some(held) = place.held.take() else { return };
        self.records -= 1;
        self.bytes -= held.byte_len();
        if let Some(bytes) = self.signers.get_mut(&place.node) {
            *bytes -= held.byte_len();
            if *bytes == 0 {
                self.signers.remove(&place.node);
            }
        }
    }

    /// The record of a place with its sequence, unless it is past its end.
    pub fn get(&self, kind: Kind, key: Key, now: UnixSecs) -> Option<(u64, &SignedRecord)> {
        let place = self.places.get(&(key, kind)).filter(|place| place.until >= now)?;
        place.held.as_ref().map(|held| (place.highest, held))
    }

    /// The places of records that are here and have not ended, in their order, after this one, and whose they are.
    pub(super) fn held_after(
        &self,
        after: Option<(Key, Kind)>,
        now: UnixSecs,
    ) -> impl Iterator<Item = ((Key, Kind), NodeId)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let held = self
            .places
            .range((from, Bound::Unbounded))
            .filter(move |(_, place)| place.held.is_some() && place.until >= now);
        held.map(|(at, place)| (*at, place.node))
    }

    /// Forgets everything of a signer that was revoked, its sequences as well: it puts nothing here any more, and whoever has its name
    /// after it begins anew.
    pub(super) fn remove_signer(&mut self, node: NodeId) {
        self.forget(|place| place.node == node);
    }

    /// Forgets what has ended, its sequence as well.
    pub fn expire(&mut self, now: UnixSecs) {
        self.forget(|place| place.until < now);
    }

    fn forget(&mut self, is_past: impl Fn(&Place) -> bool) {
        let past: Vec<_> = self.places.iter().filter(|(_, place)| is_past(place)).map(|(at, _)| *at).collect();
        for at in past {
            self.release(at);
            self.places.remove(&at);
        }
    }

    /// What must outlive the process.
    pub fn highest(&self) -> impl Iterator<Item = Highest> {
        let known = |((key, kind), place): (&(Key, Kind), &Place)| Highest {
            kind: *kind,
            key: *key,
            sequence: place.highest,
            digest: place.digest,
            node: place.node,
            until: place.until,
        };
        self.places.iter().map(known)
    }

    /// Records that are here.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes of all records that are here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::{Fixture, NOW};
    use super::*;
    use crate::pki::statement::MemberStatement;

    fn store() -> Store {
        Store::new(Key([0; 32]), [])
    }

    #[test]
    fn a_sequence_never_goes_back_not_even_when_the_record_is_gone() {
        let (fixture, mut store) = (Fixture::new(), store());
        let record = |sequence| fixture.record(1, Kind::Node, sequence, b"x");
        assert_eq!(store.put(record(5), None, fixture.judge()), Ok(Put::Stored));
        assert_eq!(store.put(record(5), None, fixture.judge()), Ok(Put::Held));
        let old = |sequence| Err(PutError::Old { sequence, highest: 5 });
        assert_eq!(store.put(record(4), None, fixture.judge()), old(4));
        let twin = fixture.record(1, Kind::Node, 5, b"another of the same sequence");
        assert_eq!(store.put(twin.clone(), None, fixture.judge()), old(5));
        // A restart loses records and keeps sequences.
        let mut again = Store::new(Key([0; 32]), store.highest());
        assert_eq!((again.len(), again.put(record(4), None, fixture.judge())), (0, old(4)));
        assert_eq!(again.put(twin, None, fixture.judge()), old(5));
        assert_eq!(again.put(record(5), None, fixture.judge()), Ok(Put::Stored));
        assert_eq!(again.put(record(6), None, fixture.judge()), Ok(Put::Stored));
    }

    #[test]
    fn an_update_that_expects_another_record_is_refused() {
        let (fixture, mut store) = (Fixture::new(), store());
        let record = |sequence| fixture.record(1, Kind::Name, sequence, b"x");
        let refused = |expected, have| Err(PutError::Conflict { expected, have });
        assert_eq!(store.put(record(1), Some(0), fixture.judge()), refused(0, None));
        assert_eq!(store.put(record(1), None, fixture.judge()), Ok(Put::Stored));
        assert_eq!(store.put(record(3), Some(2), fixture.judge()), refused(2, Some(1)));
        assert_eq!(store.put(record(3), Some(1), fixture.judge()), Ok(Put::Stored));
    }

    #[test]
    fn a_signer_has_a_quota_and_an_update_frees_what_it_replaces() {
        let (fixture, mut store) = (Fixture::new(), store());
        let long = |kind, sequence| fixture.record(1, kind, sequence, &[7; 4096]);
        assert_eq!(store.put(long(Kind::Node, 1), None, fixture.judge()), Ok(Put::Stored));
        for kind in [Kind::Name, Kind::Overlay, Kind::Revocations] {
            assert_eq!(store.put(long(kind, 1), None, fixture.judge()), Ok(Put::Stored));
        }
        let over = Err(PutError::Quota(fixture.node(1)));
        assert_eq!(store.put(long(Kind::Zone, 1), None, fixture.judge()), over);
        assert_eq!(store.put(long(Kind::Name, 2), None, fixture.judge()), Ok(Put::Stored));
        let other = fixture.record(2, Kind::Zone, 1, &[7; 4096]);
        assert_eq!(store.put(other, None, fixture.judge()), Ok(Put::Stored));
        assert_eq!((store.len(), store.bytes() > 5 * 4096), (5, true));
    }

    #[test]
    fn what_has_ended_is_not_given_out_and_is_forgotten() {
        let (fixture, mut store) = (Fixture::new(), store());
        let record = fixture.record(1, Kind::Node, 1, b"x");
        let key = fixture.node(1).into();
        store.put(record.clone(), None, fixture.judge()).unwrap();
        let (end, after) = (UnixSecs(NOW.0 + 3600), UnixSecs(NOW.0 + 3601));
        assert_eq!(store.get(Kind::Node, key, end), Some((1, &record)));
        assert_eq!((store.get(Kind::Node, key, after), store.get(Kind::Zone, key, NOW)), (None, None));
        store.expire(end);
        assert_eq!(store.len(), 1);
        store.expire(after);
        assert_eq!((store.len(), store.bytes(), store.highest().count()), (0, 0, 0));
        let refused = store.put(record, None, fixture.judge_at(after));
        assert_eq!(refused, Err(PutError::Record(RecordError::Expired(end))));
    }

    /// A store gave out records whose signers' statements had ended, and readers took it for a liar.
    #[test]
    fn a_record_ends_with_its_signers_statement() {
        let (fixture, mut store) = (Fixture::new(), store());
        let said = fixture.statement(1);
        let last = said.not_after.0 + u64::from(fixture.judge().bundle.parameters.grace_secs);
        let (last_put, key) = (UnixSecs(last - 60), said.node.into());
        let envelope = fixture.record(1, Kind::Node, 1, b"x").read(fixture.network(), NOW).unwrap();
        let record = fixture.signed(1, &Envelope { not_after: UnixSecs(last + 3600), ..envelope });
        assert_eq!(store.put(record.clone(), None, fixture.judge_at(last_put)), Ok(Put::Stored));
        let (end, after) = (UnixSecs(last), UnixSecs(last + 1));
        assert!(record.verify(fixture.judge_at(end)).is_ok() && record.verify(fixture.judge_at(after)).is_err());
        assert_eq!(store.get(Kind::Node, key, end), Some((1, &record)));
        assert_eq!(store.get(Kind::Node, key, after), None);
        assert_eq!(store.highest().next().unwrap().until, end);
    }

    /// Revoked, a member still locked whoever had its name after it out of that, until its last record would have ended.
    #[test]
    fn who_is_revoked_leaves_nothing_in_the_way_of_a_successor_not_even_after_a_restart() {
        let (fixture, mut store) = (Fixture::new(), store());
        for member in [1, 2] {
            store.put(fixture.record(member, Kind::Name, 9, b"x"), None, fixture.judge()).unwrap();
        }
        let mut again = Store::new(Key([0; 32]), store.highest());
        let said = MemberStatement { name: fixture.statement(1).name, ..fixture.statement(3) };
        let before = fixture.record(1, Kind::Name, 9, b"x").read(fixture.network(), NOW).unwrap();
        let first = Envelope { sequence: 1, node: fixture.node(3), ..before };
        let first = fixture.signed_as(&said, 3, &first);
        for store in [&mut store, &mut again] {
            let locked = store.put(first.clone(), None, fixture.judge());
            assert_eq!(locked, Err(PutError::Old { sequence: 1, highest: 9 }));
            store.remove_signer(fixture.node(1));
            let left: Vec<NodeId> = store.highest().map(|known| known.node).collect();
            assert_eq!(left, [fixture.node(2)]);
            assert_eq!(store.put(first.clone(), None, fixture.judge()), Ok(Put::Stored));
        }
        assert_eq!((store.len(), store.bytes(), again.len()), (2, store.signers.values().sum(), 1));
    }

    #[test]
    fn a_wrong_signature_takes_nobodys_place() {
        let (fixture, mut store) = (Fixture::new(), store());
        let mut bent = fixture.record(1, Kind::Node, 9, b"x");
        bent.signature.0[0] ^= 1;
        let refused = PutError::Record(RecordError::Signature(fixture.node(1)));
        assert_eq!(store.put(bent, None, fixture.judge()), Err(refused));
        assert_eq!((store.len(), store.highest().count()), (0, 0));
        assert_eq!(store.put(fixture.record(1, Kind::Node, 1, b"x"), None, fixture.judge()), Ok(Put::Stored));
    }

    /// Filled to the limit and one beyond: whatever is farthest goes, and what is farther still does not come in.
    #[test]
    fn a_full_store_keeps_what_is_nearest() {
        let (fixture, mut store) = (Fixture::new(), store());
        let mut members: Vec<u16> = (0..RECORDS_MAX as u16 + 2).collect();
        members.sort_by_key(|member| Key::from(fixture.node(*member)));
        let [first, rest @ .., last] = &members[..] else { panic!("there are members") };
        for member in rest {
            let kept = store.put(fixture.record(*member, Kind::Node, 1, b""), None, fixture.judge());
            assert_eq!(kept, Ok(Put::Stored));
        }
        assert_eq!(store.len(), RECORDS_MAX);
        let far = fixture.record(*last, Kind::Node, 1, b"");
        assert_eq!(store.put(far, None, fixture.judge()), Err(PutError::Full));
        let near = fixture.record(*first, Kind::Node, 1, b"");
        assert_eq!(store.put(near, None, fixture.judge()), Ok(Put::Stored));
        let evicted = fixture.node(rest[rest.len() - 1]).into();
        assert_eq!((store.len(), store.get(Kind::Node, evicted, NOW)), (RECORDS_MAX, None));
        assert_eq!(store.highest().count(), RECORDS_MAX + 1, "and its sequence is remembered");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// In any order of puts, restarts and ends, what is given out has a sequence that never falls.
        #[test]
        fn no_order_of_puts_takes_a_sequence_back(
            steps in proptest::collection::vec((0u16..3, 0usize..6, 0u64..6, 0u8..3, any::<bool>()), 1..60),
        ) {
            let (fixture, mut store) = (Fixture::new(), store());
            let mut highest: BTreeMap<(Key, Kind), u64> = BTreeMap::new();
            for (member, kind, sequence, value, restarts) in steps {
                let kind = Kind::ALL[kind];
                let at = (kind.key_of(&fixture.statement(member), &Fixture::service("_test._tcp", b"")).unwrap(), kind);
                if restarts {
                    store = Store::new(Key([0; 32]), store.highest().collect::<Vec<_>>());
                }
                let put = store.put(fixture.record(member, kind, sequence, &[value]), None, fixture.judge());
                let known = highest.get(&at).copied();
                prop_assert!(put.is_err() || known.is_none_or(|known| sequence >= known));
                if put.is_ok() {
                    highest.insert(at, sequence);
                }
                if let Some((sequence, record)) = store.get(kind, at.0, NOW) {
                    prop_assert_eq!(record.verify(fixture.judge()).unwrap().sequence, sequence);
                    prop_assert_eq!(Some(sequence), highest.get(&at).copied());
                }
                let bytes: usize = store.places.values().filter_map(|place| place.held.as_ref()).map(SignedRecord::byte_len).sum();
                prop_assert_eq!((bytes, bytes), (store.bytes(), store.signers.values().sum()));
            }
        }
    }
}
