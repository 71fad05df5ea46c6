//! The audit log: what an issuer signed, when, and for whom, so that nothing signed can be denied or hidden later.
//!
//! ```text
//!  entry, signed by the issuer:  sequence │ previous hash (32) │ at │ by │ what
//!
//!  hash n = SHA-256("weir-audit-entry-1" ‖ body n)      previous of entry n = hash n-1, of entry 0 = 32 zeros
//! ```
//!
//! An entry goes to the store in the batch that allows the act, before anything is signed: the log may tell of a certificate that a crash
//! kept from being sent, never the other way round. Entries that were changed, taken out or moved are found by [`verify`]; entries cut off
//! at the end only by someone who noted a later [`Position`], which is why it is shown and part of a backup. A log that is full drops its
//! oldest entries and says so ([`Start`]).

mod prune;

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;

pub use self::prune::{ENTRIES_MAX_DEFAULT, ENTRIES_MAX_RANGE, Start};
use crate::codec;
use crate::pki::id::{InviteId, KeyId, NodeId, sha256};
use crate::pki::key::{Domain, PrivateKey, PublicKey};
use crate::pki::revocation::Revoked;
use crate::pki::signed::{Document, OpenError, Signed};
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::UnixSecs;

/// Longest name of someone who asks.
pub const BY_LEN_MAX: usize = 128;
/// Longest entry in the store, with its signature.
const RECORD_LEN_MAX: usize = 4096;
/// Where the end of the log is noted; entries have keys of 8 bytes.
const END: &[u8] = b"end";

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// A member was admitted.
    Joined {
        /// Its id.
        node: NodeId,
        /// Its name.
        name: String,
        /// What it may announce.
        prefixes: Vec<Prefix>,
        /// On which invitation.
        invite: InviteId,
    },
    /// A certificate was renewed.
    Renewed {
        /// Whose.
        node: NodeId,
        /// Until when.
        not_after: UnixSecs,
    },
    /// Someone was invited.
    Invited {
        /// The invitation.
        invite: InviteId,
        /// Under which name or pattern.
        name: String,
        /// How many may use it.
        uses: u32,
    },
    /// Something was revoked.
    Revoked {
        /// Who or what.
        what: Revoked,
        /// Why.
        reason: String,
    },
    /// A policy was signed.
    Policy {
        /// Its version.
        version: u64,
        /// SHA-256 of its bytes.
        digest: [u8; 32],
    },
    /// A new admission seed was drawn.
    Admission {
        /// Its version.
        version: u64,
    },
    /// State was given out as a backup, keys and all.
    BackedUp {
        /// The allocation counter in it.
        counter: u64,
    },
    /// State was put back from a backup.
    Restored {
        /// The allocation counter in it.
        counter: u64,
    },
    /// The oldest entries were dropped, because there were as many as are kept.
    Pruned {
        /// The first of them.
        from: u64,
        /// The first that is kept, and the hash of the last that was dropped.
        kept_from: Position,
    },
}

impl Act {
    /// One word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "join",
            Self::Renewed { .. } => "renew",
            Self::Invited { .. } => "invite",
            Self::Revoked { .. } => "revoke",
            Self::Policy { .. } => "policy",
            Self::Admission { .. } => "admission",
            Self::BackedUp { .. } => "backup",
            Self::Restored { .. } => "restore",
            Self::Pruned { .. } => "prune",
        }
    }

    /// To whom or what it was done.
    pub fn subject(&self) -> String {
        match self {
            Self::Joined { node, .. } | Self::Renewed { node, .. } => node.to_string(),
            Self::Invited { invite, .. } => invite.to_string(),
            Self::Revoked { what, .. } => what.to_string(),
            Self::Policy { version, .. } | Self::Admission { version } => format!("version {version}"),
            Self::BackedUp { counter } | Self::Restored { counter } => format!("allocation {counter}"),
            // Numbers count from 1 for people.
            Self::Pruned { from, kept_from } => format!("entries {} to {}", from.saturating_add(1), kept_from.next),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined { node, name, prefixes, invite } => {
                write!(f, "admitted {name} as {node} on invite {invite}, with")?;
                prefixes.iter().try_for_each(|prefix| write!(f, " {prefix}"))
            }
            Self::Renewed { node, not_after } => write!(f, "renewed {node} until {not_after}"),
            Self::Invited { invite, name, uses } => write!(f, "invited {name} by invite {invite}, {uses} uses"),
            Self::Revoked { what, reason } => write!(f, "revoked {what}: {reason}"),
            Self::Policy { version, digest: _ } => write!(f, "signed version {version} of the policy"),
            Self::Admission { version } => write!(f, "drew version {version} of the admission seed"),
            Self::BackedUp { counter } => write!(f, "wrote a backup of allocation {counter}"),
            Self::Restored { counter } => write!(f, "restored the backup of allocation {counter}"),
            Self::Pruned { kept_from, .. } => {
                write!(f, "dropped {}, the last with hash {}", self.subject(), HEXLOWER.encode(&kept_from.last))
            }
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 0.
    pub sequence: u64,
    /// Hash of the entry before.
    pub previous: [u8; 32],
    /// When.
    pub at: UnixSecs,
    /// Who asked.
    pub by: String,
    /// For what.
    pub what: Act,
}

impl Document for Entry {
    const DOMAIN: Domain = Domain::Audit;
    const BODY_LEN_MAX: usize = 2048;
}

/// Why a log is not believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry is missing, or one stands there twice.
    #[error("the audit log has entry {found} where {expected} belongs; compare it with a backup")]
    Sequence {
        /// Which one belongs there.
        expected: u64,
        /// Which one is there.
        found: u64,
    },
    /// An entry does not continue the one before.
    #[error("entry {0} of the audit log does not continue the one before; compare it with a backup")]
    Chain(u64),
    /// An entry is signed by a stranger.
    #[error("entry {sequence} of the audit log is signed by {signer}, which is no issuer of ours")]
    Signer {
        /// Which one.
        sequence: u64,
        /// By whom.
        signer: KeyId,
    },
    /// An entry was changed.
    #[error("entry {sequence} of the audit log was changed ({source}); compare it with a backup")]
    Entry {
        /// Which one.
        sequence: u64,
        /// What is wrong.
        source: OpenError,
    },
    /// The end of the log is not where it was noted.
    #[error("the audit log ends at entry {found}, {noted} were noted; compare it with a backup")]
    End {
        /// As noted.
        noted: u64,
        /// As found.
        found: u64,
    },
    /// Nobody has said that the entries before this one were dropped.
    #[error(
        "the audit log begins at entry {0}, and none of the issuer's entries tells of that; compare it with a backup"
    )]
    Start(u64),
    /// A record in the table is none.
    #[error("the audit table has a record that is none")]
    Record,
}

/// The end of a log: how many entries there are, and the hash of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The sequence of the next entry.
    pub next: u64,
    /// The hash of the last one.
    pub last: [u8; 32],
}

impl Position {
    /// Where the log in this store ends.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(store: &impl Store) -> Result<Self, AuditError> {
        let Some(noted) = store.value(Table::Audit, END)? else { return Ok(Self::default()) };
        let position: Self = codec::decode(&noted, 64).map_err(|_| AuditError::Record)?;
        // No log comes that far, and one that says so could not be continued.
        if position.next == u64::MAX { Err(AuditError::Record) } else { Ok(position) }
    }

    /// Adds an entry to a batch and returns the end that holds once the batch is committed.
    #[must_use]
    pub fn append(self, batch: &mut Batch, key: &PrivateKey, at: UnixSecs, by: &str, what: Act) -> Self {
        let by = by.chars().take(BY_LEN_MAX / 4).collect();
        let entry = Entry { sequence: self.next, previous: self.last, at, by, what };
        let signed = Signed::sign(&entry, key);
        let end = self.after(&signed);
        batch.put(Table::Audit, self.next.to_be_bytes(), codec::encode(&signed));
        batch.put(Table::Audit, END, codec::encode(&end));
        end
    }

    fn after(self, entry: &Signed<Entry>) -> Self {
        Self { next: self.next + 1, last: hash(entry) }
    }
}

/// What the next entry calls its previous one.
pub fn hash(entry: &Signed<Entry>) -> [u8; 32] {
    sha256("weir-audit-entry-1", &[&entry.body])
}

/// An entry as it stands in the table.
fn decode(bytes: &[u8]) -> Result<Signed<Entry>, AuditError> {
    codec::decode(bytes, RECORD_LEN_MAX).map_err(|_| AuditError::Record)
}

/// What the table has of an entry.
fn stored(store: &impl Store, sequence: u64) -> Result<Option<Vec<u8>>, StoreError> {
    store.value(Table::Audit, &sequence.to_be_bytes())
}

/// Entries from `from` on, or from the first that is kept, at most `max`, as they stand in the store.
///
/// # Errors
/// [`AuditError`].
pub fn read(store: &impl Store, from: u64, max: usize) -> Result<Vec<Signed<Entry>>, AuditError> {
    let (start, end) = (Start::open(store)?.at.next, Position::open(store)?.next);
    let mut entries = Vec::new();
    for sequence in (from.max(start)..end).take(max) {
        let bytes = stored(store, sequence)?;
        let bytes = bytes.ok_or(AuditError::Sequence { expected: sequence, found: sequence + 1 })?;
        entries.push(decode(&bytes)?);
    }
    Ok(entries)
}

/// Checks entries that begin at `from`: signatures, sequence and chain. Returns where they end.
///
/// # Errors
/// [`AuditError`] at the first entry that is wrong.
pub fn verify(
    entries: &[Signed<Entry>],
    from: Position,
    issuer: impl Fn(KeyId) -> Option<PublicKey>,
) -> Result<Position, AuditError> {
    entries.iter().try_fold(from, |position, signed| {
        let sequence = position.next;
        let key = issuer(signed.signer).ok_or(AuditError::Signer { sequence, signer: signed.signer })?;
        let entry = signed.open(&key).map_err(|source| AuditError::Entry { sequence, source })?;
        if entry.sequence != sequence {
            return Err(AuditError::Sequence { expected: sequence, found: entry.sequence });
        }
        if entry.previous != position.last {
            return Err(AuditError::Chain(sequence));
        }
        Ok(position.after(signed))
    })
}

/// Checks at most `max` entries of a log in a store, from `from` on and against what stands before them. Returns where they end; the whole
/// log is good when a walk from 0, or from the first entry that is kept, has come to the end that is noted.
///
/// # Errors
/// [`AuditError`].
pub fn verify_part(
    store: &impl Store,
    from: u64,
    max: usize,
    issuer: impl Fn(KeyId) -> Option<PublicKey>,
) -> Result<Position, AuditError> {
    let (start, noted) = (Start::open(store)?, Position::open(store)?);
    if start.at.next > noted.next {
        return Err(AuditError::End { noted: noted.next, found: start.at.next });
    }
    let from = from.clamp(start.at.next, noted.next);
    let before = if from == start.at.next {
        start.check(store, &issuer)?;
        start.at
    } else {
        let last = read(store, from - 1, 1)?.first().map(hash);
        Position { next: from, last: last.ok_or(AuditError::Record)? }
    };
    let found = verify(&read(store, from, max)?, before, issuer)?;
    if found.next == noted.next {
        if found.last != noted.last {
            return Err(AuditError::Chain(noted.next));
        }
        // Somebody put an earlier end back.
        if stored(store, noted.next)?.is_some() {
            return Err(AuditError::End { noted: noted.next, found: noted.next + 1 });
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::MemoryStore;

    pub(crate) fn key() -> PrivateKey {
        PrivateKey::from_seed(&[1; 32])
    }

    pub(crate) fn issuer(id: KeyId) -> Option<PublicKey> {
        Some(key().public()).filter(|key| key.id() == id)
    }

    pub(crate) fn log(count: u64) -> (MemoryStore, Position) {
        let mut store = MemoryStore::default();
        let mut end = Position::open(&store).unwrap();
        for version in 0..count {
            let mut batch = Batch::default();
            end = end.append(&mut batch, &key(), UnixSecs(version), "uid 0", Act::Admission { version });
            store.commit(batch).unwrap();
        }
        (store, end)
    }

    /// The whole log, in parts of a length that does not divide it.
    pub(crate) fn verify_whole(store: &MemoryStore) -> Result<Position, AuditError> {
        let (mut from, end) = (0, Position::open(store)?.next);
        loop {
            let found = verify_part(store, from, 7, issuer)?;
            if found.next >= end {
                return Ok(found);
            }
            from = found.next;
        }
    }

    pub(crate) fn change(store: &mut MemoryStore, sequence: u64, value: Option<Vec<u8>>) {
        let mut batch = Batch::default();
        match value {
            Some(value) => batch.put(Table::Audit, sequence.to_be_bytes(), value),
            None => batch.delete(Table::Audit, sequence.to_be_bytes()),
        }
        store.commit(batch).unwrap();
    }

    #[test]
    fn a_log_continues_where_the_store_left_it() {
        let (store, end) = log(300);
        assert_eq!(Position::open(&store).unwrap(), end);
        assert_eq!(verify_whole(&store).unwrap(), end);
        let some = read(&store, 298, 10).unwrap();
        assert_eq!(some.iter().map(|entry| entry.peek().unwrap().sequence).collect::<Vec<_>>(), [298, 299]);
    }

    #[test]
    fn a_part_is_checked_against_the_entry_before_it() {
        let (store, end) = log(5);
        for from in 0..8 {
            assert_eq!(verify_part(&store, from, 9, issuer).unwrap(), end, "{from}");
        }
        let two = verify_part(&store, 1, 2, issuer).unwrap();
        assert_eq!((two.next, two.last), (3, hash(&read(&store, 2, 1).unwrap()[0])));
        assert_eq!(verify_part(&MemoryStore::default(), 0, 9, issuer).unwrap(), Position::default());
    }

    #[test]
    fn every_tampering_is_found() {
        let whole = log(5).0;
        let value = |at: u64| whole.value(Table::Audit, &at.to_be_bytes()).unwrap().unwrap();
        let tampered = |at, value| {
            let mut store = whole.clone();
            change(&mut store, at, value);
            verify_whole(&store).unwrap_err()
        };
        let mut cut = whole.clone();
        let mut batch = Batch::default();
        batch.put(Table::Audit, END, log(4).0.value(Table::Audit, END).unwrap().unwrap());
        cut.commit(batch).unwrap();
        assert!(matches!(verify_whole(&cut), Err(AuditError::End { noted: 4, found: 5 })));
        let mut bent: Signed<Entry> = codec::decode(&value(2), 4096).unwrap();
        bent.body[40] ^= 1;
        assert!(matches!(tampered(2, Some(codec::encode(&bent))), AuditError::Entry { sequence: 2, .. }));
        assert!(matches!(tampered(2, None), AuditError::Sequence { expected: 2, found: 3 }));
        assert!(matches!(tampered(2, Some(value(1))), AuditError::Sequence { expected: 2, found: 1 }));
        assert!(matches!(tampered(4, None), AuditError::Sequence { expected: 4, found: 5 }));
        let entry = Entry { sequence: 2, ..codec::decode::<Signed<Entry>>(&value(3), 4096).unwrap().peek().unwrap() };
        let forged = |key: &PrivateKey| Some(codec::encode(&Signed::sign(&entry, key)));
        assert!(matches!(
            tampered(2, forged(&PrivateKey::from_seed(&[2; 32]))),
            AuditError::Signer { sequence: 2, .. }
        ));
        // Even the issuer itself cannot write another past without writing all that came after it.
        assert!(matches!(tampered(2, forged(&key())), AuditError::Chain(2)));
    }

    #[test]
    fn an_end_that_nobody_could_go_beyond_is_none() {
        for (next, is_one) in [(u64::MAX - 1, true), (u64::MAX, false)] {
            let (mut store, mut batch) = (MemoryStore::default(), Batch::default());
            batch.put(Table::Audit, END, codec::encode(&Position { next, last: [0; 32] }));
            store.commit(batch).unwrap();
            assert_eq!(Position::open(&store).is_ok(), is_one, "{next}");
        }
    }

    #[test]
    fn whoever_asks_is_named_up_to_a_limit() {
        let mut batch = Batch::default();
        let mut store = MemoryStore::default();
        let what = Act::Admission { version: 1 };
        let _end = Position::default().append(&mut batch, &key(), UnixSecs(1), &"ü".repeat(1000), what);
        store.commit(batch).unwrap();
        assert_eq!(read(&store, 0, 1).unwrap()[0].peek().unwrap().by.chars().count(), BY_LEN_MAX / 4);
    }
}
