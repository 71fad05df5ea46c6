//! The sending side: what was accepted from applications here, until it is settled.
//!
//! ```text
//!             send                link               Want                  last byte        Held             Taken
//!  accepted ───────▶ Queued ───────────▶ Offered ───────────▶ Sending(next) ─────▶ Sent ─────────▶ Held ───────────▶ settled
//!                      ▲                    └─ short: the body came along ─────────▶ │               │
//!                      └──────────────────────────── the link is lost ───────────────┴───────────────┘
//! ```
//!
//! A message is on disk before its id is given out, and deleted there before the receiver may forget it. It leaves in no other way than
//! taken, refused, past its time, or parted with its peer, and what became of it is remembered for those who ask.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::{
    BODY_LEN_MAX, Bytes, Frame, Head, MessageId, OFFERS_MAX, OFFERS_TOPIC_MAX, PENDING_MAX, PIECE_LEN_MAX, Refusal,
    START_LEN_MAX, Topic, WINDOW,
};
use super::{Effects, Key, LoadError, Violation};
use crate::codec;
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::store::{Batch, Store, Table};
use crate::time::{Now, UnixSecs};

/// Bytes that wait for all peers together: they are in memory as well as on disk.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes that wait for one peer: two of the longest, so that one that is away does not take all of it.
pub const OUTBOX_PEER_BYTES_MAX: usize = 32 << 20;
/// Messages that wait for all peers together.
pub const OUTBOX_MESSAGES_MAX: usize = 8192;
/// What a message takes besides its body: it counts for so much more.
pub const MESSAGE_OVERHEAD: usize = 256;
/// Bytes of bodies under way on all links together: a quarter of what links queue, which other messages share.
pub const IN_FLIGHT_MAX: usize = 16 << 20;
/// How long a message is kept when nobody says.
pub const TTL_DEFAULT: Duration = Duration::from_secs(7 * 86_400);
/// How long at most: as long as a record of a member holds, and some more.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Messages whose end is remembered.
pub const OUTCOMES_MAX: usize = 4096;
/// Settled messages are deleted together when so many are, or after so long: a write to disk takes milliseconds, and nobody waits for it.
const UNSTORED_MAX: usize = 64;
const UNSTORED_FOR: Duration = Duration::from_millis(50);
/// Bits of an id below the second of its making.
const ID_SUB_BITS: u32 = 20;
/// Key of [`Life`] in [`Table::Outbox`]; those of messages are longer.
const LIFE_KEY: &[u8] = b"life";
/// Longest stored message.
const STORED_LEN_MAX: usize = BODY_LEN_MAX + 1024;

/// What an outbox keeps of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    life: u64,
    last: MessageId,
}

/// A message on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    topic: Topic,
    sent: UnixSecs,
    not_after: UnixSecs,
    body: Bytes,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Only here.
    Queued,
    /// The receiver knows of it and has not found room yet.
    Offered,
    /// On its way; so many bytes have left.
    Sending(usize),
    /// All of it has left.
    Sent,
    /// It waits there for an application.
    Held,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An application has taken it.
    Taken,
    /// The receiver does not want it.
    Refused(Refusal),
    /// Nobody took it in time.
    Expired,
    /// The receiver is no member any more.
    Parted,
}

/// Why a message is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Longer than [`BODY_LEN_MAX`].
    #[error("{0} bytes; a message has at most {BODY_LEN_MAX}")]
    TooLong(usize),
    /// Too much waits for this peer.
    #[error(
        "{messages} messages with {bytes} bytes wait for this member already; at most {PENDING_MAX} and {OUTBOX_PEER_BYTES_MAX} do"
    )]
    PeerFull {
        /// How many.
        messages: usize,
        /// How long.
        bytes: usize,
    },
    /// Too much waits.
    #[error(
        "{messages} messages with {bytes} bytes wait already; at most {OUTBOX_MESSAGES_MAX} and {OUTBOX_BYTES_MAX} do"
    )]
    Full {
        /// How many.
        messages: usize,
        /// How long.
        bytes: usize,
    },
    /// There is no link, or one that does not take more now. Of datagrams only.
    #[error("no link to it takes a datagram now")]
    NoLink,
}

/// One message that waits.
#[derive(Debug)]
pub struct Queued {
    /// What about.
    pub topic: Topic,
    /// Since when.
    pub sent: UnixSecs,
    /// Until when.
    pub not_after: UnixSecs,
    /// The body.
    pub body: Arc<[u8]>,
    /// Where it stands.
    pub stage: Stage,
}

impl Queued {
    fn cost(&self) -> usize {
        self.body.len() + MESSAGE_OVERHEAD
    }
}

/// A link on which the peer takes messages.
#[derive(Debug, Default)]
struct Link {
    has_begun: bool,
    in_flight: usize,
    /// Those that are wanted, each piece in turn.
    sending: VecDeque<MessageId>,
    offered: usize,
    offered_by_topic: HashMap<Topic, usize>,
}

/// What waits for one peer.
#[derive(Debug, Default)]
struct Line {
    messages: BTreeMap<MessageId, Queued>,
    bytes: usize,
    link: Option<Link>,
}

/// All that waits.
#[derive(Debug, Default)]
pub struct Outbox {
    life: Life,
    lines: BTreeMap<NodeId, Line>,
    by_id: HashMap<MessageId, NodeId>,
    bytes: usize,
    in_flight: usize,
    /// Peers that wait for others' bytes to arrive.
    starved: BTreeSet<NodeId>,
    ended: VecDeque<MessageId>,
    outcomes: HashMap<MessageId, (NodeId, Outcome)>,
    /// Settled, and on disk still.
    unstored: Vec<(NodeId, MessageId)>,
    is_settled: bool,
}

fn key(node: NodeId, id: MessageId) -> Vec<u8> {
    [&node.0[..], &id.0.to_be_bytes()].concat()
}

impl Outbox {
    /// What was kept.
    pub(super) fn load(
        store: &impl Store,
        random: &mut impl Random,
        now: Now,
        effects: &mut Effects,
    ) -> Result<Self, LoadError> {
        let mut outbox = Self { life: Life { life: random.u64(), last: MessageId(0) }, ..Self::default() };
        for (key, bytes) in store.entries(Table::Outbox)? {
            if key == LIFE_KEY {
                outbox.life = codec::decode(&bytes, bytes.len()).map_err(LoadError::Decode)?;
                continue;
            }
            let Some((node, id)) = key.split_first_chunk::<32>() else { return Err(LoadError::Key) };
            let id = MessageId(u64::from_be_bytes(id.try_into().map_err(|_| LoadError::Key)?));
            let stored: Stored = codec::decode(&bytes, STORED_LEN_MAX).map_err(LoadError::Decode)?;
            let Stored { topic, sent, not_after, body } = stored;
            let queued = Queued { topic, sent, not_after, body: body.0.into(), stage: Stage::Queued };
            outbox.insert(NodeId(*node), id, queued, now, effects);
        }
        Ok(outbox)
    }

    /// Takes a message from an application.
    pub(super) fn send(
        &mut self,
        to: NodeId,
        topic: Topic,
        body: Arc<[u8]>,
        ttl: Duration,
        now: Now,
        effects: &mut Effects,
    ) -> Result<MessageId, SendError> {
        if body.len() > BODY_LEN_MAX {
            return Err(SendError::TooLong(body.len()));
        }
        let cost = body.len() + MESSAGE_OVERHEAD;
        let (messages, bytes) = self.lines.get(&to).map_or((0, 0), |line| (line.messages.len(), line.bytes));
        if messages >= PENDING_MAX || bytes + cost > OUTBOX_PEER_BYTES_MAX {
            return Err(SendError::PeerFull { messages, bytes });
        }
        let (messages, bytes) = (self.by_id.len(), self.bytes);
        if messages >= OUTBOX_MESSAGES_MAX || bytes + cost > OUTBOX_BYTES_MAX {
            return Err(SendError::Full { messages, bytes });
        }
        // With the time in front, not even a state directory that was put back to an earlier day gives an id twice.
        let by_time = now.wall.0.saturating_mul(1 << ID_SUB_BITS);
        let id = MessageId(by_time.max(self.life.last.0.saturating_add(1)));
        self.life.last = id;
        let queued =
            Queued { topic, sent: now.wall, not_after: now.wall.plus(ttl.min(TTL_MAX)), body, stage: Stage::Queued };
        let stored = Stored {
            topic: queued.topic.clone(),
            sent: queued.sent,
            not_after: queued.not_after,
            body: Bytes(queued.body.to_vec()),
        };
        let mut batch = Batch::default();
        batch.put(Table::Outbox, LIFE_KEY, codec::encode(&self.life));
        batch.put(Table::Outbox, key(to, id), codec::encode(&stored));
        effects.store(batch);
        self.insert(to, id, queued, now, effects);
        self.pump(to, now, effects);
        Ok(id)
    }

    fn insert(&mut self, node: NodeId, id: MessageId, queued: Queued, now: Now, effects: &mut Effects) {
        effects.timers.set(Key::Expire(node, id), now.mono + queued.not_after.since(now.wall));
        let line = self.lines.entry(node).or_default();
        (line.bytes, self.bytes) = (line.bytes + queued.cost(), self.bytes + queued.cost());
        line.messages.insert(id, queued);
        self.by_id.insert(id, node);
    }

    /// Sends what is taken at most once, or not at all.
    pub(super) fn datagram(
        &mut self,
        to: NodeId,
        topic: Topic,
        bytes: Vec<u8>,
        effects: &mut Effects,
    ) -> Result<(), SendError> {
        let link = self.lines.get_mut(&to).and_then(|line| line.link.as_mut()).ok_or(SendError::NoLink)?;
        if link.in_flight + bytes.len() > WINDOW || self.in_flight + bytes.len() > IN_FLIGHT_MAX {
            return Err(SendError::NoLink);
        }
        (link.in_flight, self.in_flight) = (link.in_flight + bytes.len(), self.in_flight + bytes.len());
        effects.say(to, Frame::Datagram { topic, bytes: Bytes(bytes) });
        Ok(())
    }

    /// There is a link on which the peer takes messages.
    pub(super) fn link_up(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        self.link_down(node, now, effects);
        self.lines.entry(node).or_default().link = Some(Link::default());
        self.pump(node, now, effects);
    }

    /// There is none any more.
    pub(super) fn link_down(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let Some(line) = self.lines.get_mut(&node) else { return };
        let Some(link) = line.link.take() else { return };
        self.in_flight -= link.in_flight;
        self.starved.remove(&node);
        line.messages.values_mut().for_each(|queued| queued.stage = Stage::Queued);
        self.tidy(node);
        self.feed(now, effects);
    }

    /// Forgets a line that has nothing on it.
    fn tidy(&mut self, node: NodeId) {
        if self.lines.get(&node).is_some_and(|line| line.link.is_none() && line.messages.is_empty()) {
            self.lines.remove(&node);
        }
    }

    /// Says what may be said to a peer now.
    fn pump(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let Some(line) = self.lines.get_mut(&node) else { return };
        let Some(link) = line.link.as_mut().filter(|link| link.has_begun || !line.messages.is_empty()) else { return };
        if !link.has_begun {
            link.has_begun = true;
            let begin = Frame::Begin { life: self.life.life, pending: line.messages.keys().copied().collect() };
            // What is not pending the receiver forgets, so it must not come up again.
            self.flush(effects);
            effects.say(node, begin);
        }
        let Some(Line { messages, link: Some(link), .. }) = self.lines.get_mut(&node) else { return };
        while let Some(id) = link.sending.pop_front() {
            let Some(Queued { body, stage, .. }) = messages.get_mut(&id) else { continue };
            let Stage::Sending(at) = *stage else { continue };
            let end = (at + PIECE_LEN_MAX).min(body.len());
            let len = end - at;
            let is_starved = self.in_flight + len > IN_FLIGHT_MAX;
            if is_starved || link.in_flight + len > WINDOW {
                link.sending.push_front(id);
                if is_starved {
                    self.starved.insert(node);
                }
                break;
            }
            if len > 0 {
                (link.in_flight, self.in_flight) = (link.in_flight + len, self.in_flight + len);
                effects.say(node, Frame::Piece { id, at: at as u32, bytes: Bytes(body[at..end].to_vec()) });
            }
            *stage = if end < body.len() { Stage::Sending(end) } else { Stage::Sent };
            if end < body.len() {
                link.sending.push_back(id);
            }
        }
        for (id, queued) in messages.iter_mut() {
            if link.offered >= OFFERS_MAX {
                break;
            }
            let of_topic = link.offered_by_topic.entry(queued.topic.clone()).or_default();
            if queued.stage != Stage::Queued || *of_topic >= OFFERS_TOPIC_MAX {
                continue;
            }
            (*of_topic, link.offered) = (*of_topic + 1, link.offered + 1);
            let len = queued.body.len();
            let comes_along =
                len <= START_LEN_MAX && link.in_flight + len <= WINDOW && self.in_flight + len <= IN_FLIGHT_MAX;
            let start = if comes_along { queued.body.to_vec() } else { vec![] };
            (link.in_flight, self.in_flight) = (link.in_flight + start.len(), self.in_flight + start.len());
            queued.stage = if comes_along { Stage::Sent } else { Stage::Offered };
            let left = queued.not_after.since(now.wall).as_secs();
            let head = Head {
                id: *id,
                topic: queued.topic.clone(),
                len: len as u32,
                sent: queued.sent,
                expires_in_secs: u32::try_from(left).unwrap_or(u32::MAX),
            };
            effects.say(node, Frame::Offer { head, start: Bytes(start) });
        }
        link.offered_by_topic.retain(|_, offered| *offered > 0);
    }

    /// There is room again for those that waited for others.
    fn feed(&mut self, now: Now, effects: &mut Effects) {
        for node in std::mem::take(&mut self.starved) {
            self.pump(node, now, effects);
        }
    }

    /// The peer wants a message from a byte on.
    pub(super) fn wanted(
        &mut self,
        node: NodeId,
        id: MessageId,
        from: u32,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        // Of one that is settled meanwhile it hears in a moment.
        let Some(line) = self.lines.get_mut(&node) else { return Ok(()) };
        let (Some(queued), Some(link)) = (line.messages.get_mut(&id), line.link.as_mut()) else { return Ok(()) };
        let from = from as usize;
        if queued.stage == Stage::Queued || from > queued.body.len() {
            return Err(Violation::Want);
        }
        if !link.sending.contains(&id) {
            link.sending.push_back(id);
        }
        queued.stage = Stage::Sending(from);
        self.pump(node, now, effects);
        Ok(())
    }

    /// The peer has read so many bytes.
    pub(super) fn credit(
        &mut self,
        node: NodeId,
        bytes: u32,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        let Some(link) = self.lines.get_mut(&node).and_then(|line| line.link.as_mut()) else { return Ok(()) };
        let bytes = bytes as usize;
        link.in_flight = link.in_flight.checked_sub(bytes).ok_or(Violation::Credit)?;
        self.in_flight -= bytes;
        self.pump(node, now, effects);
        self.feed(now, effects);
        Ok(())
    }

    /// A message waits at the peer for an application.
    pub(super) fn held(&mut self, node: NodeId, id: MessageId) {
        let queued = self.lines.get_mut(&node).and_then(|line| line.messages.get_mut(&id));
        if let Some(queued) = queued.filter(|queued| queued.stage != Stage::Queued) {
            queued.stage = Stage::Held;
        }
    }

    /// A message has come to its end.
    pub(super) fn settled(
        &mut self,
        node: NodeId,
        id: MessageId,
        outcome: Outcome,
        now: Now,
        effects: &mut Effects,
    ) -> bool {
        let Some(line) = self.lines.get_mut(&node) else { return false };
        let Some(queued) = line.messages.remove(&id) else { return false };
        (line.bytes, self.bytes) = (line.bytes - queued.cost(), self.bytes - queued.cost());
        if let Some(link) = line.link.as_mut().filter(|_| queued.stage != Stage::Queued) {
            link.offered -= 1;
            if let Some(of_topic) = link.offered_by_topic.get_mut(&queued.topic) {
                *of_topic = of_topic.saturating_sub(1);
            }
        }
        self.by_id.remove(&id);
        effects.timers.cancel(Key::Expire(node, id));
        self.unstored.push((node, id));
        effects.timers.set_at_latest(Key::Flush, now.mono + UNSTORED_FOR);
        if self.unstored.len() >= UNSTORED_MAX {
            self.flush(effects);
        }
        if self.outcomes.insert(id, (node, outcome)).is_none() {
            self.ended.push_back(id);
        }
        while self.ended.len() > OUTCOMES_MAX {
            self.ended.pop_front().map(|oldest| self.outcomes.remove(&oldest));
        }
        self.is_settled = true;
        self.pump(node, now, effects);
        self.tidy(node);
        true
    }

    /// Deletes what is settled, and then tells the peers so.
    pub(super) fn flush(&mut self, effects: &mut Effects) {
        effects.timers.cancel(Key::Flush);
        let settled = std::mem::take(&mut self.unstored);
        let mut batch = Batch::default();
        settled.iter().for_each(|(node, id)| batch.delete(Table::Outbox, key(*node, *id)));
        effects.store(batch);
        for (node, id) in settled {
            let link = self.lines.get(&node).and_then(|line| line.link.as_ref());
            if link.is_some_and(|link| link.has_begun) {
                effects.say(node, Frame::Gone { id });
            }
        }
    }

    /// The peer is no member any more.
    pub(super) fn forget(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let ids: Vec<MessageId> =
            self.lines.get(&node).into_iter().flat_map(|line| line.messages.keys().copied()).collect();
        for id in ids {
            self.settled(node, id, Outcome::Parted, now, effects);
        }
    }

    /// Deletes everything.
    pub(super) fn clear(&mut self, effects: &mut Effects) {
        let mut batch = Batch::default();
        batch.delete(Table::Outbox, LIFE_KEY);
        let ids = self.by_id.iter().map(|(id, node)| (*node, *id)).chain(self.unstored.iter().copied());
        for (node, id) in ids {
            batch.delete(Table::Outbox, key(node, id));
            effects.timers.cancel(Key::Expire(node, id));
        }
        effects.store(batch);
        // Ids go on from where they were: another network must not know of them, and programs that ask must not mix them up.
        *self = Self { life: self.life, ..Self::default() };
    }

    /// Whether something waits for this peer.
    pub fn has_for(&self, node: NodeId) -> bool {
        self.lines.get(&node).is_some_and(|line| !line.messages.is_empty())
    }

    /// Whether the peer takes messages on a link now.
    pub fn is_linked(&self, node: NodeId) -> bool {
        self.lines.get(&node).is_some_and(|line| line.link.is_some())
    }

    /// What waits, by peer and in order.
    pub fn waiting(&self) -> impl Iterator<Item = (NodeId, MessageId, &Queued)> {
        self.lines.iter().flat_map(|(node, line)| line.messages.iter().map(|(id, queued)| (*node, *id, queued)))
    }

    /// Bytes that wait, as they count.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// For whom a message waits, and where it stands.
    pub fn stage(&self, id: MessageId) -> Option<(NodeId, Stage)> {
        let node = *self.by_id.get(&id)?;
        let queued = self.lines.get(&node)?.messages.get(&id)?;
        Some((node, queued.stage))
    }

    /// For whom a message was, and what became of it, if that is still remembered.
    pub fn outcome(&self, id: MessageId) -> Option<(NodeId, Outcome)> {
        self.outcomes.get(&id).copied()
    }

    /// Whether a message was settled since the last time.
    pub(super) fn take_settled(&mut self) -> bool {
        std::mem::take(&mut self.is_settled)
    }
}
