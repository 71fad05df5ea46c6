//! The directory: what each member says of itself, signed by itself, kept by everybody.
//!
//! ```text
//!  signed record
//!  ┌───────────────────────────┬──────────────────────────────────────────┬──────────────────────────┐
//!  │ statement, signed by an   │ body: node · sequence · not after ·      │ signature over the body  │
//!  │ issuer: node ▸ key, name  │       endpoints                          │ by the node's own key    │
//!  └───────────────────────────┴──────────────────────────────────────────┴──────────────────────────┘
//! ```
//!
//! Who has never met a member can check its record all the same: the statement gives the key, the key signed the body. A record with a
//! sequence that is not above the one known is no news, so nobody can bring an old one back. This part knows neither links nor clocks.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::pki::bundle::Bundle;
use crate::pki::id::{NetworkId, NodeId, sha256};
use crate::pki::key::{Domain, PrivateKey, Signature};
use crate::pki::revocation::RevocationSet;
use crate::pki::statement::{self, MemberStatement, SignedStatement, StatementError};
use crate::time::UnixSecs;

/// Most members that the directory holds.
pub const RECORDS_MAX: usize = 16 * 1024;
/// Most endpoints of one record: a few interfaces in two families, and what peers observed.
pub const ENDPOINTS_MAX: usize = 16;
/// Longest body in bytes.
pub const BODY_LEN_MAX: usize = 1024;
/// How long a record is good for: as long as a leaf may live in grace.
pub const LIFETIME: Duration = Duration::from_secs(8 * 86_400);

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who.
    pub node: NodeId,
    /// Higher for each newer record; the moment of signing in seconds, or one more than the last.
    pub sequence: u64,
    /// When it stops to be worth anything.
    pub not_after: UnixSecs,
    /// Where the member can be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Worker threads of its packet plane: as many lanes it seals. 0 while it does not know.
    pub workers: u8,
}

/// A record as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// Who the member is, by an issuer.
    pub statement: SignedStatement,
    /// [`Record`], encoded.
    pub body: Vec<u8>,
    /// Over the body, by the identity key of the statement.
    pub signature: Signature,
}

impl SignedRecord {
    /// Signs what we say of ourselves.
    pub fn sign(record: &Record, statement: SignedStatement, identity: &PrivateKey) -> Self {
        let body = codec::encode(record);
        let signature = identity.sign(Domain::Record, &body);
        Self { statement, body, signature }
    }
}

/// Why a record is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The statement in it is not good.
    #[error("the member statement: {0}")]
    Statement(#[from] StatementError),
    /// The body does not decode.
    #[error("the body of a record: {0}")]
    Body(#[from] codec::DecodeError),
    /// Not signed by the member that it speaks of.
    #[error("the record of {0} is not signed by its identity key")]
    Signature(NodeId),
    /// Body and statement speak of different members.
    #[error("the record speaks of {body}, its statement of {statement}")]
    OtherNode {
        /// In the body.
        body: NodeId,
        /// In the statement.
        statement: NodeId,
    },
    /// We have a newer one.
    #[error("record {found} of {node} is older than {have}, which is known")]
    Old {
        /// Whose.
        node: NodeId,
        /// The sequence that is known.
        have: u64,
        /// The one that came.
        found: u64,
    },
    /// The member was revoked.
    #[error("{0} is revoked")]
    Revoked(NodeId),
    /// It is past its end.
    #[error("the record of {node} ended at {not_after}")]
    Expired {
        /// Whose.
        node: NodeId,
        /// When.
        not_after: UnixSecs,
    },
    /// It claims to be good for longer than any may.
    #[error("the record of {0} claims a life beyond {LIFETIME:?}, or a sequence from the future")]
    TooLong(NodeId),
    /// More endpoints than a record may have.
    #[error("{0} endpoints, at most {ENDPOINTS_MAX}")]
    Endpoints(usize),
    /// The directory is full.
    #[error("the directory is full: {RECORDS_MAX} members")]
    Full,
}

impl RecordError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Statement(_) => "record_statement",
            Self::Body(_) => "record_malformed",
            Self::Signature(_) => "record_signature",
            Self::OtherNode { .. } => "record_other_node",
            Self::Old { .. } => "record_old",
            Self::Revoked(_) => "record_revoked",
            Self::Expired { .. } => "record_expired",
            Self::TooLong(_) => "record_too_long",
            Self::Endpoints(_) => "record_endpoints",
            Self::Full => "record_full",
        }
    }
}

/// A member of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What an issuer says of it.
    pub statement: MemberStatement,
    /// What it says of itself.
    pub record: Record,
    /// The bytes, to pass on.
    pub signed: SignedRecord,
}

/// How far ahead of our clock the sequence of a record may be, since others' clocks may be wrong by that much.
const SEQUENCE_AHEAD_MAX: Duration = Duration::from_secs(2 * 86_400);

/// What is known of all members.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Shared, since simulations hold the same thousand entries a thousand times.
    entries: BTreeMap<NodeId, Arc<Entry>>,
    /// Worked out when it is asked for, and again only after a change: every link begins with it.
    digest: OnceLock<[u8; 32]>,
}

/// By what a record is judged.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// The network that this is.
    pub network: NetworkId,
    /// Its bundle in force.
    pub bundle: &'a Bundle,
    /// Who was revoked.
    pub revoked: &'a RevocationSet,
    /// The moment.
    pub now: UnixSecs,
}

fn is_neighbour<T>(ring: &BTreeMap<NodeId, T>, own: NodeId, node: NodeId, reach: usize) -> bool {
    let (after, before) = (|| ring.range((Bound::Excluded(own), Bound::Unbounded)), || ring.range(..own));
    let ahead = after().chain(before()).take(reach);
    let behind = before().rev().chain(after().rev()).take(reach);
    ahead.chain(behind).any(|(known, _)| *known == node)
}

impl Directory {
    /// Takes a record and says whose it is; `None` when it is known.
    ///
    /// # Errors
    /// [`RecordError`]; nothing changes then.
    pub fn accept(&mut self, signed: SignedRecord, judge: Judge<'_>) -> Result<Option<NodeId>, RecordError> {
        let record: Record = codec::decode(&signed.body, BODY_LEN_MAX)?;
        // Cheap before dear: what is known already needs no signature checked.
        if let Some(known) = self.entries.get(&record.node).map(|known| known.record.sequence) {
            match known.cmp(&record.sequence) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(None),
                Ordering::Greater => {
                    return Err(RecordError::Old { node: record.node, have: known, found: record.sequence });
                }
            }
        }
        if record.endpoints.len() > ENDPOINTS_MAX {
            return Err(RecordError::Endpoints(record.endpoints.len()));
        }
        let node = record.node;
        if record.not_after < judge.now {
            return Err(RecordError::Expired { node, not_after: record.not_after });
        }
        let latest = judge.now.plus(SEQUENCE_AHEAD_MAX);
        if record.not_after > latest.plus(LIFETIME) || record.sequence > latest.0 {
            return Err(RecordError::TooLong(node));
        }
        if judge.revoked.is_node_revoked(node) {
            return Err(RecordError::Revoked(node));
        }
        let statement = statement::verify(&signed.statement, judge.network, judge.bundle, judge.revoked, judge.now)?;
        if statement.node != node {
            return Err(RecordError::OtherNode { body: node, statement: statement.node });
        }
        let verified = statement.identity.verify(Domain::Record, &signed.body, &signed.signature);
        verified.map_err(|_| RecordError::Signature(node))?;
        if self.entries.len() >= RECORDS_MAX && !self.entries.contains_key(&node) {
            return Err(RecordError::Full);
        }
        self.insert(Arc::new(Entry { statement, record, signed }));
        Ok(Some(node))
    }

    /// Takes what another directory has verified and is newer there.
    pub fn adopt(&mut self, other: Self) {
        for (node, entry) in other.entries {
            if self.entries.get(&node).is_none_or(|known| known.record.sequence < entry.record.sequence) {
                self.insert(entry);
            }
        }
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        self.entries.insert(entry.record.node, entry);
        self.digest.take();
    }

    /// Forgets a member; `true` when there was one.
    pub fn remove(&mut self, node: NodeId) -> bool {
        self.digest.take();
        self.entries.remove(&node).is_some()
    }

    /// Forgets whoever has ended by `now`, and says who.
    pub fn expire(&mut self, now: UnixSecs) -> Vec<Arc<Entry>> {
        let ended: Vec<Arc<Entry>> =
            self.entries.values().filter(|entry| entry.record.not_after < now).cloned().collect();
        for entry in &ended {
            self.remove(entry.record.node);
        }
        ended
    }

    /// A member.
    pub fn entry(&self, node: NodeId) -> Option<&Entry> {
        self.entries.get(&node).map(Arc::as_ref)
    }

    /// A member by its name.
    pub fn named(&self, name: &str) -> Option<&Entry> {
        self.entries().find(|entry| entry.statement.name == name)
    }

    /// All members, by node id.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(Arc::as_ref)
    }

    /// The largest number of workers that any member has: as many lanes a peer may seal.
    pub fn workers_max(&self) -> u8 {
        self.entries.values().map(|entry| entry.record.workers).max().unwrap_or(0)
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Equal on both sides exactly when they know the same records.
    pub fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| {
            let row =
                |(node, entry): (&NodeId, &Arc<Entry>)| [&node.0[..], &entry.record.sequence.to_be_bytes()].concat();
            let known: Vec<u8> = self.entries.iter().flat_map(row).collect();
            sha256("weir-directory-1", &[&known])
        })
    }

    /// Whether `node` is within `reach` of `own`, on either side, when all others stand in a ring in the order of their ids.
    pub fn is_neighbour(&self, own: NodeId, node: NodeId, reach: usize) -> bool {
        is_neighbour(&self.entries, own, node, reach)
    }

    /// What is known, for [`super::message::Ask::Records`].
    pub fn known(&self) -> Vec<(NodeId, u64)> {
        self.entries.iter().map(|(node, entry)| (*node, entry.record.sequence)).collect()
    }

    /// Records that whoever knows `known` lacks.
    pub fn newer_than<'a>(&'a self, known: &[(NodeId, u64)]) -> impl Iterator<Item = &'a SignedRecord> {
        let known: BTreeMap<NodeId, u64> = known.iter().copied().collect();
        self.entries
            .iter()
            .filter(move |(node, entry)| known.get(node).is_none_or(|sequence| *sequence < entry.record.sequence))
            .map(|(_, entry)| &entry.signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_those_next_in_the_ring_on_both_sides() {
        let node = |number: u8| NodeId([number; 32]);
        for count in 1..14 {
            let ring: BTreeMap<NodeId, ()> = (0..count).map(|number| (node(2 * number), ())).collect();
            // In the ring itself, and between two of it.
            for own in 0..2 * count {
                let others: Vec<NodeId> = ring.keys().copied().filter(|other| *other != node(own)).collect();
                let at = others.partition_point(|other| *other < node(own));
                for (theirs, other) in others.iter().enumerate() {
                    let ahead = (theirs + others.len() - at) % others.len();
                    let is_near = ahead < 4 || ahead + 4 >= others.len();
                    assert_eq!(is_neighbour(&ring, node(own), *other, 4), is_near, "{own} of {count}: {other}");
                }
                assert!(!is_neighbour(&ring, node(own), node(own), 4));
            }
        }
    }
}
