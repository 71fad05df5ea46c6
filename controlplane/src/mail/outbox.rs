//! The sending side: what was accepted from applications here, until it is settled.
//!
//! ```text
//!             disk                link               Want                  last byte        Held             Taken
//!  Storing ────────▶ Queued ───────────▶ Offered ───────────▶ Sending(next) ─────▶ Sent ─────────▶ Held ───────────▶ settled
//!                      ▲                    └─ short: the body came along ─────────▶ │               │
//!                      └──────────────────────────── the link is lost ───────────────┴───────────────┘
//! ```
//!
//! A message is on disk before its id is given out, and deleted there before the receiver may forget it. It leaves in no other way than
//! taken, refused, past its time, or parted with its peer, and what became of it is remembered for those who ask.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bodies::{self, Bodies, PART_LEN, PARTS_AT_ONCE};
use super::window::Window;
use super::wire::{
    BODY_LEN_MAX, Bytes, DATAGRAM_OVERHEAD, Frame, Head, MessageId, OFFERS_MAX, OFFERS_TOPIC_MAX, PENDING_MAX,
    PIECE_LEN_MAX, Refusal, START_LEN_MAX, Topic,
};
use super::{Effects, Key, LoadError, Violation};
use crate::codec;
use crate::pki::id::NodeId;
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
/// Key of [`Life`] in [`Table::Outbox`]; those of messages are longer.
const LIFE_KEY: &[u8] = b"life";
/// Longest row of a message.
const STORED_LEN_MAX: usize = 1024;
/// Longest body that is written in the turn in which it is accepted; of longer ones parts are, one turn after the other.
const STORED_AT_ONCE: usize = PART_LEN;
/// Between two of those turns: whatever else waits has its own.
const STORE_GAP: Duration = Duration::from_millis(1);
/// How long a peer may take to say that it has read something.
const STALL: Duration = Duration::from_secs(30);

/// What an outbox keeps of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    life: u64,
    last: MessageId,
}

/// A message on disk; its body is kept by [`bodies`].
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    topic: Topic,
    sent: UnixSecs,
    not_after: UnixSecs,
    body: MessageId,
    len: u32,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is being written to disk, and its id not told yet.
    Storing,
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

impl Stage {
    /// Whether the peer knows of it on the link that stands.
    const fn is_told(self) -> bool {
        !matches!(self, Self::Storing | Self::Queued)
    }
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
    /// What its body is kept by.
    body_id: MessageId,
}

impl Queued {
    /// The peer knows nothing of it any more.
    fn take_back(&mut self) {
        self.stage = Stage::Queued;
    }

    fn cost(&self) -> usize {
        self.body.len() + MESSAGE_OVERHEAD
    }
}

/// A link on which the peer takes messages.
#[derive(Debug, Default)]
struct Link {
    has_begun: bool,
    window: Window,
    /// Those that are wanted, each piece in turn.
    sending: VecDeque<MessageId>,
    offered: usize,
    offered_by_topic: HashMap<Topic, usize>,
}

impl Link {
    /// These bytes leave. The peer's time to say that it reads begins when they are enough for it to say so: of fewer nobody hears.
    fn send(&mut self, node: NodeId, len: usize, now: Now, effects: &mut Effects) {
        let was_owed = self.window.is_owed();
        self.window.send(len, now.mono);
        let at = now.mono + STALL;
        match self.window.is_owed() && !was_owed {
            true => effects.timers.set(Key::Stall(node), at),
            false => effects.timers.set_at_latest(Key::Stall(node), at),
        }
    }
}

/// What waits for one peer.
#[derive(Debug, Default)]
struct Line {
    messages: BTreeMap<MessageId, Queued>,
    /// Those of them that the peer has not been told of on the link that stands.
    untold: BTreeSet<MessageId>,
    bytes: usize,
    link: Option<Link>,
}

/// Messages with one body that is being written.
#[derive(Debug)]
struct Storing {
    body: MessageId,
    /// Parts that are.
    parts: usize,
    messages: Vec<(NodeId, MessageId)>,
}

/// A message that is settled, and on disk still; its body with so many parts if it was the last one with it.
#[derive(Debug)]
struct Unstored {
    node: NodeId,
    id: MessageId,
    body: Option<(MessageId, usize)>,
}

/// All that waits.
#[derive(Debug, Default)]
pub struct Outbox {
    life: Life,
    lines: BTreeMap<NodeId, Line>,
    by_id: HashMap<MessageId, NodeId>,
    bodies: Bodies,
    /// What counts as under way on all links.
    in_flight: usize,
    /// Peers that wait for others' bytes to arrive.
    starved: BTreeSet<NodeId>,
    ended: VecDeque<MessageId>,
    outcomes: HashMap<MessageId, (NodeId, Outcome)>,
    /// Long ones are written one after the other.
    storing: VecDeque<Storing>,
    /// Bodies that have been since somebody asked, or are wanted no more.
    stored: Vec<MessageId>,
    unstored: Vec<Unstored>,
    is_settled: bool,
}

fn key(node: NodeId, id: MessageId) -> Vec<u8> {
    [&node.0[..], &id.0.to_be_bytes()].concat()
}

impl Outbox {
    /// What was kept.
    pub(super) fn load(store: &impl Store, now: Now, effects: &mut Effects) -> Result<Self, LoadError> {
        // An outbox that is made anew under one identity is made at another time.
        let mut outbox = Self { life: Life { life: now.wall.0, last: MessageId(0) }, ..Self::default() };
        let mut kept: BTreeMap<MessageId, (Arc<[u8]>, usize)> = BTreeMap::new();
        let mut parts: BTreeMap<MessageId, usize> = BTreeMap::new();
        for (id, (bytes, count)) in bodies::load(store)? {
            kept.insert(id, (bytes.into(), 0));
            parts.insert(id, count);
        }
        for (key, bytes) in store.entries(Table::Outbox)? {
            if key == LIFE_KEY {
                outbox.life = codec::decode(&bytes, bytes.len()).map_err(LoadError::Decode)?;
                continue;
            }
            let Some((node, id)) = key.split_first_chunk::<32>() else { return Err(LoadError::Key) };
            let id = MessageId(u64::from_be_bytes(id.try_into().map_err(|_| LoadError::Key)?));
            let stored: Stored = codec::decode(&bytes, STORED_LEN_MAX).map_err(LoadError::Decode)?;
            let Stored { topic, sent, not_after, body: body_id, len } = stored;
            let (body, messages) = kept.entry(body_id).or_default();
            if body.len() != len as usize {
                return Err(LoadError::Body);
            }
            *messages += 1;
            let body = Arc::clone(body);
            let queued = Queued { topic, sent, not_after, body, stage: Stage::Queued, body_id };
            outbox.insert(NodeId(*node), id, queued, now, effects);
        }
        let mut batch = Batch::default();
        for (id, (bytes, messages)) in kept {
            match messages {
                // The process ended while it was being written: nobody was told that it was taken.
                0 => bodies::delete(&mut batch, id, parts.get(&id).copied().unwrap_or(0)),
                _ => outbox.bodies.insert(id, bytes, messages),
            }
        }
        effects.store(batch);
        Ok(outbox)
    }

    /// Takes a message from an application, for each of these members. A long one is on disk only when [`Self::take_stored`] says so.
    pub(super) fn send(
        &mut self,
        to: &[NodeId],
        topic: &Topic,
        body: &Arc<[u8]>,
        ttl: Duration,
        now: Now,
        effects: &mut Effects,
    ) -> Vec<Result<MessageId, SendError>> {
        let (sent, not_after) = (now.wall, now.wall.plus(ttl.min(TTL_MAX)));
        let (mut accepted, mut answers) = (vec![], vec![]);
        for node in to {
            answers.push(self.room_for(*node, body.len(), accepted.is_empty()).map(|()| {
                // With the time in front, not even a state directory that was put back to an earlier day gives an id twice.
                let id = MessageId::first_of(now.wall).max(MessageId(self.life.last.0.saturating_add(1)));
                self.life.last = id;
                let body_id = accepted.first().map_or(id, |(_, first)| *first);
                let (topic, body) = (topic.clone(), Arc::clone(body));
                let queued = Queued { topic, sent, not_after, body, stage: Stage::Storing, body_id };
                if accepted.is_empty() {
                    self.bodies.insert(body_id, Arc::clone(&queued.body), to.len());
                }
                self.insert(*node, id, queued, now, effects);
                accepted.push((*node, id));
                id
            }));
        }
        let Some(&(_, first)) = accepted.first() else { return answers };
        // It was inserted for all of them.
        for _ in accepted.len()..to.len() {
            self.bodies.release(first);
        }
        let storing = Storing { body: first, parts: 0, messages: accepted };
        if body.len() <= STORED_AT_ONCE {
            self.store(storing, now, effects);
            self.stored.retain(|body| *body != first);
        } else {
            self.storing.push_back(storing);
            effects.timers.set_at_latest(Key::Store, now.mono + STORE_GAP);
        }
        answers
    }

    /// Whether one more of this length may wait for a member.
    fn room_for(&self, to: NodeId, len: usize, is_first: bool) -> Result<(), SendError> {
        if len > BODY_LEN_MAX {
            return Err(SendError::TooLong(len));
        }
        let (messages, bytes) = self.lines.get(&to).map_or((0, 0), |line| (line.messages.len(), line.bytes));
        if messages >= PENDING_MAX || bytes + len + MESSAGE_OVERHEAD > OUTBOX_PEER_BYTES_MAX {
            return Err(SendError::PeerFull { messages, bytes });
        }
        let (messages, bytes) = (self.by_id.len(), self.bytes());
        let more = MESSAGE_OVERHEAD + if is_first { len } else { 0 };
        if messages >= OUTBOX_MESSAGES_MAX || bytes + more > OUTBOX_BYTES_MAX {
            return Err(SendError::Full { messages, bytes });
        }
        Ok(())
    }

    /// Writes the next parts of the first of what is being written.
    pub(super) fn store_next(&mut self, now: Now, effects: &mut Effects) {
        let Some(storing) = self.storing.pop_front() else { return };
        if let Some(rest) = self.store(storing, now, effects) {
            self.storing.push_front(rest);
        }
        if !self.storing.is_empty() {
            effects.timers.set(Key::Store, now.mono + STORE_GAP);
        }
    }

    /// Writes as much as is written at a time, with the last of it the messages themselves; what is left to write.
    fn store(&mut self, mut storing: Storing, now: Now, effects: &mut Effects) -> Option<Storing> {
        let bytes = Arc::clone(self.bodies.bytes_of(storing.body)?);
        let to = (storing.parts + PARTS_AT_ONCE).min(bodies::parts(bytes.len()));
        let mut batch = Batch::default();
        bodies::put(&mut batch, storing.body, &bytes, storing.parts, to);
        storing.parts = to;
        if to < bodies::parts(bytes.len()) {
            effects.store(batch);
            return Some(storing);
        }
        let mut written = vec![];
        for (node, id) in storing.messages {
            let queued = self.lines.get_mut(&node).and_then(|line| line.messages.get_mut(&id));
            let Some(queued) = queued else { continue };
            queued.stage = Stage::Queued;
            let stored = Stored {
                topic: queued.topic.clone(),
                sent: queued.sent,
                not_after: queued.not_after,
                body: storing.body,
                len: bytes.len() as u32,
            };
            batch.put(Table::Outbox, key(node, id), codec::encode(&stored));
            written.push(node);
        }
        batch.put(Table::Outbox, LIFE_KEY, codec::encode(&self.life));
        effects.store(batch);
        self.stored.push(storing.body);
        written.into_iter().for_each(|node| self.pump(node, now, effects));
        None
    }

    /// First messages of those that were written since the last time, or are wanted no more.
    pub(super) fn take_stored(&mut self) -> Vec<MessageId> {
        std::mem::take(&mut self.stored)
    }

    fn insert(&mut self, node: NodeId, id: MessageId, queued: Queued, now: Now, effects: &mut Effects) {
        effects.timers.set(Key::Expire(node, id), now.mono + queued.not_after.since(now.wall));
        let line = self.lines.entry(node).or_default();
        line.bytes += queued.cost();
        line.messages.insert(id, queued);
        line.untold.insert(id);
        self.by_id.insert(id, node);
    }

    /// Sends what is taken at most once, or not at all.
    pub(super) fn datagram(
        &mut self,
        to: NodeId,
        topic: Topic,
        bytes: Vec<u8>,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), SendError> {
        let link = self.lines.get_mut(&to).and_then(|line| line.link.as_mut()).ok_or(SendError::NoLink)?;
        let cost = bytes.len() + DATAGRAM_OVERHEAD;
        if !link.window.has_room(cost) || self.in_flight + cost > IN_FLIGHT_MAX {
            return Err(SendError::NoLink);
        }
        self.in_flight += cost;
        link.send(to, cost, now, effects);
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
        self.in_flight -= link.window.counted();
        self.starved.remove(&node);
        effects.timers.cancel(Key::Stall(node));
        line.messages.values_mut().filter(|queued| queued.stage != Stage::Storing).for_each(Queued::take_back);
        line.untold = line.messages.keys().copied().collect();
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
        self.send_pieces(node, now, effects);
        self.offer(node, now, effects);
    }

    /// Sends of what is wanted as much as may be under way.
    fn send_pieces(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let Some(Line { messages, link: Some(link), .. }) = self.lines.get_mut(&node) else { return };
        while let Some(id) = link.sending.pop_front() {
            let Some(Queued { body, stage, .. }) = messages.get_mut(&id) else { continue };
            let Stage::Sending(at) = *stage else { continue };
            let end = (at + PIECE_LEN_MAX).min(body.len());
            let len = end - at;
            let is_starved = self.in_flight + len > IN_FLIGHT_MAX;
            if is_starved || !link.window.has_room(len) {
                link.sending.push_front(id);
                if is_starved {
                    self.starved.insert(node);
                }
                break;
            }
            if len > 0 {
                self.in_flight += len;
                link.send(node, len, now, effects);
                effects.say(node, Frame::Piece { id, at: at as u32, bytes: Bytes(body[at..end].to_vec()) });
            }
            *stage = if end < body.len() { Stage::Sending(end) } else { Stage::Sent };
            if end < body.len() {
                link.sending.push_back(id);
            }
        }
    }

    /// Tells a peer of what it has not heard of yet, in the order of each topic.
    fn offer(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let Some(Line { messages, untold, link: Some(link), .. }) = self.lines.get_mut(&node) else { return };
        let (mut told, mut held_up) = (vec![], HashSet::new());
        for id in untold.iter() {
            if link.offered >= OFFERS_MAX {
                break;
            }
            let Some(queued) = messages.get_mut(id) else { continue };
            // What comes after one that is being written waits for it.
            if queued.stage == Stage::Storing {
                held_up.insert(queued.topic.clone());
                continue;
            }
            let of_topic = link.offered_by_topic.get(&queued.topic).copied().unwrap_or(0);
            if of_topic >= OFFERS_TOPIC_MAX || held_up.contains(&queued.topic) {
                continue;
            }
            link.offered_by_topic.insert(queued.topic.clone(), of_topic + 1);
            link.offered += 1;
            told.push(*id);
            let len = queued.body.len();
            let comes_along =
                len <= START_LEN_MAX && link.window.has_room(len) && self.in_flight + len <= IN_FLIGHT_MAX;
            let start = if comes_along { queued.body.to_vec() } else { vec![] };
            if !start.is_empty() {
                self.in_flight += len;
                link.send(node, len, now, effects);
            }
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
        untold.retain(|id| told.binary_search(id).is_err());
    }

    /// There is room again for those that waited for others.
    fn feed(&mut self, now: Now, effects: &mut Effects) {
        for node in std::mem::take(&mut self.starved) {
            self.send_pieces(node, now, effects);
        }
    }

    /// A peer has not said for long that it reads what was sent, or it was too little to tell of. It is not held against others.
    pub(super) fn stalled(&mut self, node: NodeId, now: Now, effects: &mut Effects) {
        let Some(link) = self.lines.get_mut(&node).and_then(|line| line.link.as_mut()) else { return };
        if link.window.is_owed() {
            effects.count("message_stalled");
        }
        self.in_flight -= link.window.write_off();
        self.feed(now, effects);
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
        if from > queued.body.len() {
            return Err(Violation::Want);
        }
        // It may have it from the link before, and need it again; it says so once more when it hears of it.
        if !queued.stage.is_told() {
            return Ok(());
        }
        if !link.sending.contains(&id) {
            link.sending.push_back(id);
        }
        queued.stage = Stage::Sending(from);
        self.send_pieces(node, now, effects);
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
        self.in_flight -= link.window.credit(bytes as usize, now.mono).ok_or(Violation::Credit)?;
        match link.window.counted() {
            0 => effects.timers.cancel(Key::Stall(node)),
            _ => effects.timers.set(Key::Stall(node), now.mono + STALL),
        }
        self.send_pieces(node, now, effects);
        self.feed(now, effects);
        Ok(())
    }

    /// A message waits at the peer for an application.
    pub(super) fn held(&mut self, node: NodeId, id: MessageId) {
        let queued = self.lines.get_mut(&node).and_then(|line| line.messages.get_mut(&id));
        if let Some(queued) = queued.filter(|queued| queued.stage.is_told()) {
            queued.stage = Stage::Held;
        }
    }

    /// The peer keeps nothing of a message, until it wants it again.
    pub(super) fn put_back(&mut self, node: NodeId, id: MessageId) {
        let Some(Line { messages, link: Some(link), .. }) = self.lines.get_mut(&node) else { return };
        if let Some(queued) = messages.get_mut(&id).filter(|queued| queued.stage.is_told()) {
            queued.stage = Stage::Offered;
            link.sending.retain(|other| *other != id);
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
        line.bytes -= queued.cost();
        line.untold.remove(&id);
        if let Some(link) = line.link.as_mut().filter(|_| queued.stage.is_told()) {
            link.offered -= 1;
            if let Some(of_topic) = link.offered_by_topic.get_mut(&queued.topic) {
                *of_topic -= 1;
                if *of_topic == 0 {
                    link.offered_by_topic.remove(&queued.topic);
                }
            }
        }
        self.by_id.remove(&id);
        effects.timers.cancel(Key::Expire(node, id));
        let body = self.release(queued.body_id);
        self.unstored.push(Unstored { node, id, body });
        effects.timers.set_at_latest(Key::Flush, now.mono + UNSTORED_FOR);
        // One that was taken or is past its time is that again after a restart; one that was refused might be taken then.
        if self.unstored.len() >= UNSTORED_MAX || matches!(outcome, Outcome::Refused(_)) {
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

    /// A message has this body no more. If it was the last one: what is to be deleted of it.
    fn release(&mut self, body: MessageId) -> Option<(MessageId, usize)> {
        let len = self.bodies.release(body)?;
        let is_it = |storing: &Storing| storing.body == body;
        let written = match self.storing.iter().position(is_it).and_then(|at| self.storing.remove(at)) {
            Some(storing) => {
                self.stored.push(body);
                storing.parts
            }
            None => bodies::parts(len),
        };
        Some((body, written))
    }

    /// Deletes what is settled, and then tells the peers so.
    pub(super) fn flush(&mut self, effects: &mut Effects) {
        effects.timers.cancel(Key::Flush);
        let settled = std::mem::take(&mut self.unstored);
        let mut batch = Batch::default();
        for Unstored { node, id, body } in &settled {
            batch.delete(Table::Outbox, key(*node, *id));
            if let Some((body, parts)) = body {
                bodies::delete(&mut batch, *body, *parts);
            }
        }
        effects.store(batch);
        for Unstored { node, id, .. } in settled {
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
        self.flush(effects);
    }

    /// Deletes everything.
    pub(super) fn clear(&mut self, now: Now, effects: &mut Effects) {
        let nodes: Vec<NodeId> = self.lines.keys().copied().collect();
        for node in nodes {
            self.link_down(node, now, effects);
            self.forget(node, now, effects);
        }
        self.flush(effects);
        let mut batch = Batch::default();
        batch.delete(Table::Outbox, LIFE_KEY);
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

    /// Bytes that wait, as they count: a body once, for however many members it is.
    pub fn bytes(&self) -> usize {
        self.bodies.bytes() + self.by_id.len() * MESSAGE_OVERHEAD
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
