//! What is known of one sender.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::inbox::INBOX_TOPIC_BYTES_MAX;
use super::outbox::{MESSAGE_OVERHEAD, TTL_MAX};
use super::wire::{MessageId, Topic};
use super::{Effects, Key};
use crate::codec;
use crate::pki::id::NodeId;
use crate::store::{Batch, Table};
use crate::time::UnixSecs;

/// How long a datagram waits: it is news, and nobody was there for it.
pub const DATAGRAM_FOR: Duration = Duration::from_secs(60);
/// How long it is kept in mind that a message was taken, counted from when it was accepted: as long as any is offered, and a day for clocks.
pub(super) const TAKEN_FOR: Duration = Duration::from_secs(TTL_MAX.as_secs() + 86_400);
/// Longest row of [`Table::Inbox`].
pub(super) const ROW_LEN_MAX: usize = 64 << 10;

/// What outlives a restart: which messages that the sender may offer again were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) life: u64,
    pub(super) taken: BTreeSet<MessageId>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// No room yet, or the policy is against it.
    Offered,
    /// There is room for all of it.
    Partial(Vec<u8>),
    Whole(Arc<[u8]>),
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) topic: Topic,
    pub(super) len: usize,
    pub(super) sent: UnixSecs,
    pub(super) not_after: Instant,
    pub(super) body: Body,
    /// The call that has it.
    pub(super) lent: Option<u64>,
}

impl Known {
    pub(super) fn cost(&self) -> usize {
        match self.body {
            Body::Offered => 0,
            Body::Partial(_) | Body::Whole(_) => self.len + MESSAGE_OVERHEAD,
        }
    }
}

#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) topic: Topic,
    pub(super) bytes: Vec<u8>,
    pub(super) got: Instant,
    pub(super) sent: UnixSecs,
}

impl Datagram {
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + MESSAGE_OVERHEAD
    }

    /// Nobody came for it.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.got) >= DATAGRAM_FOR
    }
}

/// One sender.
#[derive(Debug, Default)]
pub(super) struct Sender {
    pub(super) row: Row,
    /// What is on disk names messages that the sender has deleted meanwhile.
    pub(super) is_row_old: bool,
    /// It has said what is pending, on the link that stands.
    pub(super) has_begun: bool,
    pub(super) known: BTreeMap<MessageId, Known>,
    /// Those without room.
    pub(super) offered: BTreeSet<MessageId>,
    /// Those that the policy is against; they are not among the others.
    pub(super) denied: BTreeSet<MessageId>,
    /// Those that were refused, until they are gone: an offer may be on its way still, or the refusal lost with its link.
    pub(super) refused: BTreeSet<MessageId>,
    pub(super) datagrams: VecDeque<Datagram>,
    pub(super) datagram_bytes: usize,
    pub(super) bytes: usize,
    pub(super) topic_bytes: HashMap<Topic, usize>,
    pub(super) credit: u32,
    pub(super) misplaced: u32,
}

impl Sender {
    /// Whether nothing of it need be kept in mind.
    pub(super) fn is_idle(&self) -> bool {
        self.row.taken.is_empty() && self.has_nothing_here()
    }

    /// The same when its time is looked at: what was taken so long ago is past its time for whoever sent it, and not offered again.
    pub(super) fn is_over(&self, now: UnixSecs) -> bool {
        self.row.taken.iter().all(|id| id.accepted().plus(TAKEN_FOR) < now) && self.has_nothing_here()
    }

    fn has_nothing_here(&self) -> bool {
        !self.has_begun && self.known.is_empty() && self.refused.is_empty() && self.datagrams.is_empty()
    }

    /// Takes room.
    pub(super) fn charge(&mut self, total: &mut usize, topic: &Topic, cost: usize) {
        (*total, self.bytes) = (*total + cost, self.bytes + cost);
        *self.topic_bytes.entry(topic.clone()).or_default() += cost;
    }

    /// Gives it back.
    pub(super) fn discharge(&mut self, total: &mut usize, topic: &Topic, cost: usize) {
        (*total, self.bytes) = (*total - cost, self.bytes - cost);
        if let Some(of_topic) = self.topic_bytes.get_mut(topic) {
            *of_topic -= cost;
            if *of_topic == 0 {
                self.topic_bytes.remove(topic);
            }
        }
    }

    /// Knows nothing of a message any more.
    pub(super) fn remove(&mut self, total: &mut usize, id: MessageId) -> Option<Known> {
        let known = self.known.remove(&id)?;
        self.offered.remove(&id);
        self.denied.remove(&id);
        self.discharge(total, &known.topic, known.cost());
        Some(known)
    }

    /// Gives back the room of a message, which is to come again from its beginning. Says whether it had any.
    pub(super) fn put_back(&mut self, total: &mut usize, id: MessageId) -> bool {
        let Some(known) = self.known.get_mut(&id) else { return false };
        let (topic, cost) = (known.topic.clone(), known.cost());
        known.body = Body::Offered;
        self.discharge(total, &topic, cost);
        cost > 0
    }

    /// Whether a topic may take so much more.
    pub(super) fn has_topic_room(&self, topic: &Topic, cost: usize) -> bool {
        let of_topic = self.topic_bytes.get(topic).copied().unwrap_or(0);
        of_topic == 0 || of_topic + cost <= INBOX_TOPIC_BYTES_MAX
    }

    /// Writes what outlives a restart.
    pub(super) fn store(&mut self, node: NodeId, batch: &mut Batch) {
        self.is_row_old = false;
        match self.row.taken.is_empty() {
            true => batch.delete(Table::Inbox, node.0),
            false => batch.put(Table::Inbox, node.0, codec::encode(&self.row)),
        }
    }

    /// Adds a datagram.
    pub(super) fn push(&mut self, total: &mut usize, datagram: Datagram) {
        (*total, self.datagram_bytes) = (*total + datagram.cost(), self.datagram_bytes + datagram.cost());
        self.datagrams.push_back(datagram);
    }

    /// Takes the datagram of this place.
    pub(super) fn pop(&mut self, total: &mut usize, at: usize) -> Option<Datagram> {
        let datagram = self.datagrams.remove(at)?;
        (*total, self.datagram_bytes) = (*total - datagram.cost(), self.datagram_bytes - datagram.cost());
        Some(datagram)
    }

    /// Drops datagrams that nobody came for.
    pub(super) fn drop_stale(&mut self, total: &mut usize, now: Instant, effects: &mut Effects) {
        while self.datagrams.front().is_some_and(|datagram| datagram.is_stale(now)) {
            self.pop(total, 0);
            effects.count("message_datagram_dropped");
        }
    }
}

/// Takes the deadlines of a message away.
pub(super) fn forget_timers(node: NodeId, id: MessageId, effects: &mut Effects) {
    for key in [Key::Stale(node, id), Key::Lease(node, id), Key::Denied(node, id)] {
        effects.timers.cancel(key);
    }
}
