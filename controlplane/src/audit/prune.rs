//! How a log stays within a length: the oldest entries go, and the log itself says which.
//!
//! ```text
//!              ┌ dropped ┐
//!  entries     0 … 124     125 … 998      999 an act      1000 "dropped 0 to 124, the last with hash H"
//!  "start"                 125, H, told by 1000
//! ```
//!
//! The act that fills the log, the entry that tells, the deletions and the note of the new start are one batch, so that a crash leaves all of it
//! or nothing. A walk over what is kept begins with the hash that the note has; that it is the issuer's word shows in the entry that the note
//! names, which is signed and in the chain. So who drops entries without the issuer's key is found as before, and a [`Position`] that was noted
//! before still says whether anything behind it was changed: only what is kept is checked, and what is gone is named.

use serde::{Deserialize, Serialize};

use super::{Act, AuditError, Position, decode, hash, stored};
use crate::codec;
use crate::pki::id::KeyId;
use crate::pki::key::{PrivateKey, PublicKey};
use crate::store::{Batch, Store, Table};
use crate::time::UnixSecs;

/// Entries that are kept when the configuration says nothing. Ours: four months of a thousand members, and with that many of them and their
/// records it still fits a backup.
pub const ENTRIES_MAX_DEFAULT: u64 = 200_000;
/// How many may be set. Fewer would be gone before somebody has looked; more than some 300,000 fit no backup.
pub const ENTRIES_MAX_RANGE: std::ops::RangeInclusive<u64> = 1_000..=10_000_000;
/// Most entries that go in one batch: what waits for that commit waits for the deletions too.
const DROPPED_MAX: u64 = 4096;
/// Which part of the log goes when it is full, or [`DROPPED_MAX`] if that is less: not every act shall have an entry that tells what it cost.
const PART: u64 = 8;
/// Where the beginning of the log is noted; entries have keys of 8 bytes.
pub(super) const START: &[u8] = b"start";
/// Who drops entries, as the log names it.
const BY: &str = "the limit of the log";

/// Where what is kept begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The first entry that is kept, and the hash of the one before it.
    pub at: Position,
    /// The entry that tells of it. There is none while `at` is the first of all.
    told_by: u64,
}

impl Start {
    /// Where the log in this store begins.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(store: &impl Store) -> Result<Self, AuditError> {
        let noted = store.value(Table::Audit, START)?;
        noted.map_or(Ok(Self::default()), |bytes| codec::decode(&bytes, 64).map_err(|_| AuditError::Record))
    }

    /// Whether the issuer has said so, in an entry that is kept.
    pub(super) fn check(
        self,
        store: &impl Store,
        issuer: impl Fn(KeyId) -> Option<PublicKey>,
    ) -> Result<(), AuditError> {
        if self == Self::default() {
            return Ok(());
        }
        let untold = AuditError::Start(self.at.next);
        if self.told_by < self.at.next {
            return Err(untold);
        }
        let Some(bytes) = stored(store, self.told_by)? else { return Err(untold) };
        let signed = decode(&bytes)?;
        let entry = issuer(signed.signer).and_then(|key| signed.open(&key).ok());
        let told = entry.filter(|entry| entry.sequence == self.told_by).map(|entry| entry.what);
        if matches!(told, Some(Act::Pruned { kept_from, .. }) if kept_from == self.at) { Ok(()) } else { Err(untold) }
    }

    /// Adds to a batch with new entries, the last of which is before `end`, what brings the log below `max` entries again if it has reached
    /// them. Where it begins and ends once the batch is committed. A damaged entry is never the last that goes, since nothing could continue
    /// it: it becomes the first that is kept, and who verifies the log is told of it.
    ///
    /// # Errors
    /// [`AuditError`] when the store fails, or has nothing that could go. Nothing is added to the batch then.
    pub fn prune(
        self,
        store: &impl Store,
        batch: &mut Batch,
        end: Position,
        max: u64,
        key: &PrivateKey,
        now: UnixSecs,
    ) -> Result<(Self, Position), AuditError> {
        let kept = end.next.saturating_sub(self.at.next);
        if kept < max {
            return Ok((self, end));
        }
        // What is in the batch itself has to be committed before it can go.
        let committed = Position::open(store)?.next;
        let goal = self.at.next + (kept - max + max / PART).clamp(1, DROPPED_MAX);
        let Some(kept_from) = self.kept_from(store, goal.min(committed))? else { return Ok((self, end)) };
        for sequence in self.at.next..kept_from.next {
            batch.delete(Table::Audit, sequence.to_be_bytes());
        }
        let start = Self { at: kept_from, told_by: end.next };
        batch.put(Table::Audit, START, codec::encode(&start));
        let what = Act::Pruned { from: self.at.next, kept_from };
        Ok((start, end.append(batch, key, now, BY, what)))
    }

    /// The last place up to `goal` that the log could begin at, which is behind an entry that is good; none if no entry may go.
    fn kept_from(self, store: &impl Store, goal: u64) -> Result<Option<Position>, AuditError> {
        let mut damaged = None;
        for last in (self.at.next..goal).rev() {
            let bytes = stored(store, last)?;
            let entry = bytes.ok_or(AuditError::Sequence { expected: last, found: last + 1 });
            match entry.and_then(|bytes| decode(&bytes)) {
                Ok(entry) => return Ok(Some(Position { next: last + 1, last: hash(&entry) })),
                Err(error) => damaged = damaged.or(Some(error)),
            }
        }
        damaged.map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tests::{change, issuer, key, log, verify_whole};
    use crate::audit::{END, Entry, read, verify_part};
    use crate::pki::signed::Signed;
    use crate::store::MemoryStore;

    const MAX: u64 = 80;

    fn act(store: &mut MemoryStore, start: Start, end: Position, version: u64) -> (Start, Position) {
        let mut batch = Batch::default();
        let end = end.append(&mut batch, &key(), UnixSecs(version), "uid 0", Act::Admission { version });
        let after = start.prune(store, &mut batch, end, MAX, &key(), UnixSecs(version)).unwrap();
        store.commit(batch).unwrap();
        after
    }

    /// A log that has been full so often, and what was told of it.
    fn pruned(acts: u64) -> (MemoryStore, Start, Position) {
        let (mut store, mut end) = log(0);
        let mut start = Start::default();
        for version in 0..acts {
            (start, end) = act(&mut store, start, end, version);
        }
        (store, start, end)
    }

    fn kept(store: &MemoryStore) -> Vec<Entry> {
        read(store, 0, usize::MAX).unwrap().iter().map(|entry| entry.peek().unwrap()).collect()
    }

    #[test]
    fn a_log_at_its_limit_loses_the_oldest_and_says_which() {
        // One act before the limit, and the one that reaches it.
        let (store, start, end) = pruned(MAX - 1);
        assert_eq!((start, end.next, kept(&store).len() as u64), (Start::default(), MAX - 1, MAX - 1));
        let (store, start, end) = pruned(MAX);
        let hash_of_the_last = hash(&read(&log(MAX).0, MAX / PART - 1, 1).unwrap()[0]);
        assert_eq!(start.at, Position { next: MAX / PART, last: hash_of_the_last });
        assert_eq!(end.next, MAX + 1);
        let entries = kept(&store);
        let told = entries.last().unwrap();
        assert_eq!((told.sequence, told.by.as_str()), (MAX, BY));
        assert_eq!(told.what, Act::Pruned { from: 0, kept_from: start.at });
        assert_eq!(told.what.to_string().split(", ").next(), Some("dropped entries 1 to 10"));
        assert_eq!(entries[0].sequence, start.at.next);
        assert_eq!(verify_whole(&store).unwrap(), end);
        // Nothing else is left of what was dropped.
        assert_eq!(store.entries(Table::Audit).unwrap().len(), entries.len() + 2);
    }

    #[test]
    fn a_log_goes_on_below_its_limit_and_stays_good() {
        let (mut store, mut start, mut end) = pruned(MAX);
        let mut drops = 0;
        for version in MAX..10 * MAX {
            let before = start;
            (start, end) = act(&mut store, start, end, version);
            assert!(kept(&store).len() as u64 <= MAX);
            assert_eq!((Start::open(&store).unwrap(), Position::open(&store).unwrap()), (start, end));
            drops += u64::from(start != before);
            if start != before {
                assert_eq!(verify_whole(&store).unwrap(), end);
            }
        }
        // Not with every act.
        assert!((60..100).contains(&drops), "{drops}");
        // Who asks for what is gone gets what is there.
        assert_eq!(kept(&store)[0].sequence, start.at.next);
        assert_eq!(verify_part(&store, 0, 1, issuer).unwrap().next, start.at.next + 1);
    }

    /// One batch may have more acts than a log may have entries, as when another issuer's list is taken over.
    #[test]
    fn what_is_not_committed_yet_is_never_dropped() {
        let (mut store, mut end) = log(5);
        let mut batch = Batch::default();
        for version in 0..3 * MAX {
            end = end.append(&mut batch, &key(), UnixSecs(1), "uid 0", Act::Admission { version });
        }
        let (start, end) = Start::default().prune(&store, &mut batch, end, MAX, &key(), UnixSecs(1)).unwrap();
        store.commit(batch).unwrap();
        assert_eq!((start.at.next, verify_whole(&store).unwrap()), (5, end));
        let (start, end) = act(&mut store, start, end, 0);
        assert!(kept(&store).len() as u64 <= MAX, "the next act makes up for it");
        assert_eq!((Start::open(&store).unwrap(), verify_whole(&store).unwrap()), (start, end));
        let (store, end) = log(0);
        let nothing = Start::default().prune(&store, &mut Batch::default(), end, 0, &key(), UnixSecs(1)).unwrap();
        assert_eq!(nothing, (Start::default(), end));
    }

    /// One damaged entry at the place that the log was to begin behind stopped every act for good.
    #[test]
    fn a_damaged_entry_is_never_the_last_that_goes() {
        let part = MAX / PART;
        // The last of the part and the two before it; with all of them nothing can go.
        for (damaged, first_kept) in [(part - 1..part, part - 1), (part - 3..part, part - 3), (0..1, part)] {
            let (mut store, start, end) = pruned(MAX - 1);
            damaged.clone().for_each(|sequence| change(&mut store, sequence, (sequence % 2 == 0).then(|| vec![1])));
            let (start, end) = act(&mut store, start, end, MAX - 1);
            assert_eq!((start.at.next, Position::open(&store).unwrap()), (first_kept, end), "{damaged:?}");
            // What is damaged and kept is found.
            assert_eq!(verify_whole(&store).is_ok(), first_kept == part, "{damaged:?}");
        }
        let (mut store, start, end) = pruned(MAX - 1);
        (0..part).for_each(|sequence| change(&mut store, sequence, None));
        let mut batch = Batch::default();
        let end = end.append(&mut batch, &key(), UnixSecs(1), "uid 0", Act::Admission { version: 1 });
        let before = batch.clone();
        let refused = start.prune(&store, &mut batch, end, MAX, &key(), UnixSecs(1)).unwrap_err();
        assert!(matches!(refused, AuditError::Sequence { expected, .. } if expected == part - 1), "{refused}");
        assert_eq!(batch, before);
    }

    #[test]
    fn entries_that_the_issuer_did_not_drop_are_missed() {
        let (whole, start, end) = pruned(MAX + 5);
        let refused = |store: &MemoryStore| verify_whole(store).unwrap_err();
        let noted = |start: Start| {
            let mut store = whole.clone();
            let mut batch = Batch::default();
            batch.put(Table::Audit, START, codec::encode(&start));
            store.commit(batch).unwrap();
            store
        };
        // A later start, which nobody has told of, with entries taken out up to there.
        let next = read(&whole, start.at.next, 1).unwrap();
        let later = Position { next: start.at.next + 1, last: hash(&next[0]) };
        for told_by in [start.told_by, start.told_by + 1, later.next, 0, end.next, u64::MAX] {
            let mut store = noted(Start { at: later, told_by });
            change(&mut store, start.at.next, None);
            assert!(matches!(refused(&store), AuditError::Start(first) if first == later.next), "{told_by}");
        }
        // Another past before what is kept.
        let other = Position { last: [7; 32], ..start.at };
        assert!(matches!(refused(&noted(Start { at: other, ..start })), AuditError::Start(_)));
        // The first entry that is kept is gone, or the note.
        let mut store = whole.clone();
        change(&mut store, start.at.next, None);
        assert!(matches!(refused(&store), AuditError::Sequence { .. }));
        assert!(matches!(refused(&noted(Start::default())), AuditError::Sequence { expected: 0, .. }));
        // The entry that tells, by somebody else.
        let stranger = PrivateKey::from_seed(&[2; 32]);
        let told = read(&whole, start.told_by, 1).unwrap()[0].peek().unwrap();
        let mut store = whole.clone();
        change(&mut store, start.told_by, Some(codec::encode(&Signed::sign(&told, &stranger))));
        assert!(matches!(refused(&store), AuditError::Start(_)));
        // A note of another kind, and a beginning behind the end.
        let mut store = whole.clone();
        let mut batch = Batch::default();
        batch.put(Table::Audit, START, vec![1]);
        store.commit(batch).unwrap();
        assert!(matches!(refused(&store), AuditError::Record));
        let mut store = whole.clone();
        let mut batch = Batch::default();
        batch.put(Table::Audit, END, codec::encode(&Position { next: 3, last: [0; 32] }));
        store.commit(batch).unwrap();
        assert!(matches!(refused(&store), AuditError::End { noted: 3, .. }));
    }
}
