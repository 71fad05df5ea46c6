//! The receiving side: what others have sent, until an application here has taken it.
//!
//! ```text
//!           Offer              room for all of it         last byte           take                    taken
//!  nothing ───────▶ Offered ───────────────────▶ Partial ───────────▶ Whole ───────▶ Whole and lent ───────▶ on disk: taken
//!                      ▲                            │                   │  ▲                  │
//!                      └── another needs the room ──┴───────────────────┘  └── time is over ──┘
//! ```
//!
//! All of it is a copy of what the sender keeps, and in memory: only that a message was taken is on disk, before the sender hears of it. So
//! a restart loses nothing, what others send never fills a disk, and room can be taken back from whoever has most of it. In a topic of a
//! sender messages find room in their order, so the first one always has what it needs to come to its end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::outbox::{MESSAGE_OVERHEAD, TTL_MAX};
use super::wire::{
    BODY_LEN_MAX, DATAGRAM_LEN_MAX, Frame, Head, MessageId, OFFERS_MAX, PENDING_MAX, PIECE_LEN_MAX, Refusal,
    START_LEN_MAX, Topic, TopicPattern,
};
use super::{Effects, Key, LoadError, Violation};
use crate::codec;
use crate::pki::id::NodeId;
use crate::store::{Batch, Store, Table};
use crate::time::{Now, UnixSecs};

/// Bytes of all senders together, those included that are still to come.
pub const INBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes of one sender: two of the longest messages.
pub const INBOX_SENDER_BYTES_MAX: usize = 32 << 20;
/// Bytes of one topic of a sender, one longest message excepted: a topic that nobody reads leaves room for others.
pub const INBOX_TOPIC_BYTES_MAX: usize = 16 << 20;
/// Senders of whom something is kept in mind.
pub const SENDERS_MAX: usize = 4096;
/// Messages of one sender that are known here: those of the link before may still be there while as many are offered on this one.
const KNOWN_MAX: usize = 2 * OFFERS_MAX;
/// Messages of one sender that are kept in mind as taken. One that keeps to the rules needs as many as may be pending, and as are on the way.
const TAKEN_MAX: usize = 2 * PENDING_MAX;
/// Pieces of one link that belong nowhere: a few are on the way when room is taken back, and more than a window is no accident.
const MISPLACED_MAX: u32 = 4096;
/// Datagrams of one sender that wait.
pub const DATAGRAMS_MAX: usize = 256;
/// How long each of them does: it is news, and nobody was there for it.
pub const DATAGRAM_FOR: Duration = Duration::from_secs(60);
/// How long an application may take to say that it has a message.
pub const LEASE: Duration = Duration::from_secs(60);
/// Bytes that are read before the sender is told: a message about each of many short ones would be as long as they are.
const CREDIT_MIN: u32 = 32 << 10;
/// Bytes that a body's buffer grows by.
const GROWTH: usize = 1 << 20;
/// Longest row of [`Table::Inbox`].
const ROW_LEN_MAX: usize = 64 << 10;

/// What outlives a restart: which messages that the sender may offer again were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    life: u64,
    taken: BTreeSet<MessageId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    /// No room yet.
    Offered,
    /// There is room for all of it.
    Partial(Vec<u8>),
    Whole(Arc<[u8]>),
}

#[derive(Debug)]
struct Known {
    topic: Topic,
    len: usize,
    sent: UnixSecs,
    not_after: Instant,
    body: Body,
    /// The call that has it.
    lent: Option<u64>,
}

impl Known {
    fn cost(&self) -> usize {
        match self.body {
            Body::Offered => 0,
            Body::Partial(_) | Body::Whole(_) => self.len + MESSAGE_OVERHEAD,
        }
    }
}

#[derive(Debug)]
struct Datagram {
    topic: Topic,
    bytes: Vec<u8>,
    got: Instant,
    sent: UnixSecs,
}

/// What is known of one sender.
#[derive(Debug, Default)]
struct Sender {
    row: Row,
    /// It has said what is pending, on the link that stands.
    has_begun: bool,
    known: BTreeMap<MessageId, Known>,
    /// Those without room.
    offered: BTreeSet<MessageId>,
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    topic_bytes: HashMap<Topic, usize>,
    credit: u32,
    misplaced: u32,
}

/// A message as an application gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who sent it.
    pub from: NodeId,
    /// Which; `None` for a datagram, of which nothing need be said.
    pub id: Option<MessageId>,
    /// What about.
    pub topic: Topic,
    /// When it was handed to the sender's node; a datagram: when it came.
    pub sent: UnixSecs,
    /// The body.
    pub body: Arc<[u8]>,
}

/// What waits here of one topic of one sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who sent it.
    pub from: NodeId,
    /// What about.
    pub topic: Topic,
    /// Whole messages.
    pub messages: u64,
    /// Bytes of them, and of those that are not whole.
    pub bytes: u64,
    /// Messages that are on their way, or wait for room.
    pub coming: u64,
}

/// All that has come.
#[derive(Debug, Default)]
pub struct Inbox {
    senders: BTreeMap<NodeId, Sender>,
    bytes: usize,
    has_arrived: bool,
    /// Who was served last, so that nobody is always first.
    last: NodeId,
}

impl Sender {
    /// Whether nothing of it need be kept in mind.
    fn is_idle(&self) -> bool {
        !self.has_begun && self.row.taken.is_empty() && self.known.is_empty() && self.datagrams.is_empty()
    }

    /// Takes room, or gives it back.
    fn charge(&mut self, total: &mut usize, topic: &Topic, cost: usize) {
        (*total, self.bytes) = (*total + cost, self.bytes + cost);
        *self.topic_bytes.entry(topic.clone()).or_default() += cost;
    }

    fn discharge(&mut self, total: &mut usize, topic: &Topic, cost: usize) {
        (*total, self.bytes) = (*total - cost, self.bytes - cost);
        if let Some(of_topic) = self.topic_bytes.get_mut(topic) {
            *of_topic -= cost;
            if *of_topic == 0 {
                self.topic_bytes.remove(topic);
            }
        }
    }

    fn remove(&mut self, total: &mut usize, id: MessageId) -> Option<Known> {
        let known = self.known.remove(&id)?;
        self.offered.remove(&id);
        self.discharge(total, &known.topic, known.cost());
        Some(known)
    }

    /// Whether a topic may take so much more.
    fn has_topic_room(&self, topic: &Topic, cost: usize) -> bool {
        let of_topic = self.topic_bytes.get(topic).copied().unwrap_or(0);
        of_topic == 0 || of_topic + cost <= INBOX_TOPIC_BYTES_MAX
    }

    fn store(&self, node: NodeId, batch: &mut Batch) {
        match self.row.taken.is_empty() {
            true => batch.delete(Table::Inbox, node.0),
            false => batch.put(Table::Inbox, node.0, codec::encode(&self.row)),
        }
    }
}

impl Inbox {
    /// What was kept.
    pub(super) fn load(store: &impl Store) -> Result<Self, LoadError> {
        let mut inbox = Self::default();
        for (key, bytes) in store.entries(Table::Inbox)? {
            let node = NodeId(key.try_into().map_err(|_| LoadError::Key)?);
            let row = codec::decode(&bytes, ROW_LEN_MAX).map_err(LoadError::Decode)?;
            inbox.senders.insert(node, Sender { row, ..Sender::default() });
        }
        Ok(inbox)
    }

    /// A link to this member is gone, or new: what was offered on the one before counts no more.
    pub(super) fn link_down(&mut self, node: NodeId, effects: &mut Effects) {
        let Some(sender) = self.senders.get_mut(&node) else { return };
        (sender.has_begun, sender.credit, sender.misplaced) = (false, 0, 0);
        for id in std::mem::take(&mut sender.offered) {
            sender.known.remove(&id);
            effects.timers.cancel(Key::Stale(node, id));
        }
        if sender.is_idle() {
            self.senders.remove(&node);
        }
    }

    /// The sender says what it may still offer.
    pub(super) fn begin(
        &mut self,
        node: NodeId,
        life: u64,
        pending: &[MessageId],
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        if pending.len() > PENDING_MAX || pending.windows(2).any(|two| two[0] >= two[1]) {
            return Err(Violation::Pending);
        }
        if !self.senders.contains_key(&node) && self.senders.len() >= SENDERS_MAX {
            effects.count("message_senders_full");
            return Ok(());
        }
        let Self { senders, bytes: total, .. } = self;
        let sender = senders.entry(node).or_default();
        let before = sender.row.taken.len();
        let is_same = sender.row.life == life;
        let is_pending = |id: &MessageId| is_same && pending.binary_search(id).is_ok();
        sender.row.life = life;
        sender.row.taken.retain(is_pending);
        let gone: Vec<MessageId> = sender.known.keys().filter(|id| !is_pending(id)).copied().collect();
        for id in gone {
            sender.remove(total, id);
            forget_timers(node, id, effects);
        }
        sender.has_begun = true;
        if sender.row.taken.len() < before {
            let mut batch = Batch::default();
            sender.store(node, &mut batch);
            effects.store(batch);
        }
        self.admit(effects);
        Ok(())
    }

    /// The sender has a message. `is_allowed` is what the policy says.
    pub(super) fn offered(
        &mut self,
        node: NodeId,
        head: Head,
        start: Vec<u8>,
        is_allowed: bool,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        let len = head.len as usize;
        let comes_along = start.len() == len && len <= START_LEN_MAX;
        if len > BODY_LEN_MAX || !(start.is_empty() || comes_along) {
            return Err(Violation::Offer);
        }
        self.read(node, start.len(), effects);
        let Self { senders, bytes: total, .. } = self;
        // Of one for whom there was no place nothing is wanted.
        let Some(sender) = senders.get_mut(&node) else { return Ok(()) };
        if !sender.has_begun {
            return Err(Violation::Unbegun);
        }
        let id = head.id;
        if !is_allowed {
            sender.remove(total, id);
            forget_timers(node, id, effects);
            effects.count("message_denied");
            effects.say(node, Frame::Refused { id, why: Refusal::Policy });
            return Ok(());
        }
        if sender.row.taken.contains(&id) {
            effects.say(node, Frame::Taken { id });
            return Ok(());
        }
        if let Some(known) = sender.known.get(&id) {
            if (&known.topic, known.len) != (&head.topic, len) {
                return Err(Violation::Offer);
            }
            match &known.body {
                Body::Offered => {}
                Body::Partial(body) => effects.say(node, Frame::Want { id, from: body.len() as u32 }),
                Body::Whole(_) => effects.say(node, Frame::Held { id }),
            }
            return Ok(());
        }
        if sender.known.len() >= KNOWN_MAX {
            return Err(Violation::Offers);
        }
        // One that ended here a moment before it does at the sender is not waited for by those after it.
        if sender.known.iter().any(|(known, other)| *known > id && other.topic == head.topic) {
            effects.count("message_misordered");
            return Ok(());
        }
        let not_after = now.mono + Duration::from_secs(head.expires_in_secs.into()).min(TTL_MAX);
        effects.timers.set(Key::Stale(node, id), not_after);
        let Head { topic, sent, .. } = head;
        sender.known.insert(id, Known { topic, len, sent, not_after, body: Body::Offered, lent: None });
        sender.offered.insert(id);
        self.admit_of(node, Some((id, start)).filter(|_| comes_along), effects);
        Ok(())
    }

    /// Finds room for what was offered, each sender in turn.
    fn admit(&mut self, effects: &mut Effects) {
        let waits = |(node, sender): (&NodeId, &Sender)| (!sender.offered.is_empty()).then_some(*node);
        let (after, before): (Vec<_>, Vec<_>) =
            self.senders.iter().filter_map(waits).partition(|node| *node > self.last);
        for node in after.into_iter().chain(before) {
            if self.admit_of(node, None, effects) {
                self.last = node;
            }
        }
    }

    /// Finds room for what one sender has offered, in the order of its ids. Where a message finds none, none after it does, so that a long one
    /// is not kept waiting by many short ones; where a topic has no room, those of others go on.
    fn admit_of(&mut self, node: NodeId, mut start: Option<(MessageId, Vec<u8>)>, effects: &mut Effects) -> bool {
        let Some(sender) = self.senders.get(&node).filter(|sender| sender.has_begun) else { return false };
        let ids: Vec<MessageId> = sender.offered.iter().copied().collect();
        let (mut full, mut any) = (HashSet::new(), false);
        for id in ids {
            let Some(sender) = self.senders.get(&node) else { break };
            let Some(Known { topic, len, body: Body::Offered, .. }) = sender.known.get(&id) else { continue };
            let (topic, cost) = (topic.clone(), len + MESSAGE_OVERHEAD);
            if full.contains(&topic) || !sender.has_topic_room(&topic, cost) {
                full.insert(topic);
                continue;
            }
            let kept = sender.row.taken.len() + sender.known.len();
            let has_room = sender.bytes + cost <= INBOX_SENDER_BYTES_MAX && kept <= TAKEN_MAX;
            if !has_room || !self.make_room(node, cost, effects) {
                break;
            }
            let Self { senders, bytes: total, has_arrived, .. } = self;
            let Some(sender) = senders.get_mut(&node) else { break };
            sender.charge(total, &topic, cost);
            sender.offered.remove(&id);
            any = true;
            let Some(known) = sender.known.get_mut(&id) else { break };
            match start.take_if(|(first, _)| *first == id) {
                Some((_, whole)) => {
                    known.body = Body::Whole(whole.into());
                    *has_arrived = true;
                    effects.say(node, Frame::Held { id });
                }
                None => {
                    known.body = Body::Partial(vec![]);
                    effects.say(node, Frame::Want { id, from: 0 });
                }
            }
        }
        any
    }

    /// Takes room back from whoever has most, as long as it has more than the one who needs it would have then.
    fn make_room(&mut self, node: NodeId, cost: usize, effects: &mut Effects) -> bool {
        while self.bytes + cost > INBOX_BYTES_MAX {
            let own = self.senders.get(&node).map_or(0, |sender| sender.bytes);
            let most = self.senders.iter().filter(|(other, _)| **other != node);
            let Some((other, sender)) = most.max_by_key(|(_, sender)| sender.bytes) else { return false };
            if sender.bytes <= own + cost {
                return false;
            }
            // The newest: what is before it in its topic must come first.
            let is_movable = |(_, known): &(&MessageId, &Known)| known.cost() > 0 && known.lent.is_none();
            let newest = sender.known.iter().rev().find(is_movable).map(|(id, _)| *id);
            let (other, Some(id)) = (*other, newest) else { return false };
            effects.count("message_put_back");
            let Self { senders, bytes: total, .. } = self;
            let Some(sender) = senders.get_mut(&other) else { return false };
            let Some(known) = sender.remove(total, id) else { return false };
            if sender.has_begun {
                sender.known.insert(id, Known { body: Body::Offered, ..known });
                sender.offered.insert(id);
            } else {
                effects.timers.cancel(Key::Stale(other, id));
            }
        }
        true
    }

    /// A part of a message.
    pub(super) fn piece(
        &mut self,
        node: NodeId,
        id: MessageId,
        at: u32,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        if bytes.is_empty() || bytes.len() > PIECE_LEN_MAX {
            return Err(Violation::Piece);
        }
        self.read(node, bytes.len(), effects);
        let Some(sender) = self.senders.get_mut(&node) else { return Ok(()) };
        if !sender.has_begun {
            return Err(Violation::Unbegun);
        }
        let known = sender.known.get_mut(&id);
        let Some(Known { len, body, .. }) = known else { return misplaced(sender, effects) };
        match body {
            Body::Partial(have) if have.len() == at as usize => {
                if have.len() + bytes.len() > *len {
                    return Err(Violation::Piece);
                }
                if have.capacity() < have.len() + bytes.len() {
                    have.reserve_exact((*len - have.len()).min(GROWTH));
                }
                have.extend_from_slice(bytes);
                if have.len() == *len {
                    *body = Body::Whole(std::mem::take(have).into());
                    self.has_arrived = true;
                    effects.say(node, Frame::Held { id });
                }
                Ok(())
            }
            Body::Offered | Body::Partial(_) | Body::Whole(_) => misplaced(sender, effects),
        }
    }

    /// Bytes were read: the sender may send as many again.
    fn read(&mut self, node: NodeId, bytes: usize, effects: &mut Effects) {
        let Some(sender) = self.senders.get_mut(&node) else {
            return if bytes > 0 {
                effects.say(node, Frame::Credit(bytes as u32))
            };
        };
        sender.credit += bytes as u32;
        if sender.credit >= CREDIT_MIN {
            effects.say(node, Frame::Credit(std::mem::take(&mut sender.credit)));
        }
    }

    /// The sender has deleted a message, and never offers it again.
    pub(super) fn gone(&mut self, node: NodeId, id: MessageId, effects: &mut Effects) {
        let Self { senders, bytes: total, .. } = self;
        let Some(sender) = senders.get_mut(&node) else { return };
        // On disk it stays until the next one is taken, or the next link: a write for each would be one too many.
        sender.row.taken.remove(&id);
        if sender.remove(total, id).is_some() {
            forget_timers(node, id, effects);
            // Those behind it in its topic are first now.
            self.has_arrived = true;
        }
        self.admit(effects);
    }

    /// A datagram came.
    pub(super) fn datagram(
        &mut self,
        node: NodeId,
        topic: Topic,
        bytes: Vec<u8>,
        is_allowed: bool,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        if bytes.len() > DATAGRAM_LEN_MAX {
            return Err(Violation::Datagram);
        }
        self.read(node, bytes.len(), effects);
        if !is_allowed {
            effects.count("message_denied");
            return Ok(());
        }
        if !self.senders.contains_key(&node) && self.senders.len() >= SENDERS_MAX {
            effects.count("message_senders_full");
            return Ok(());
        }
        let Self { senders, bytes: total, .. } = self;
        let sender = senders.entry(node).or_default();
        drop_stale(sender, total, now.mono, effects);
        let cost = bytes.len() + MESSAGE_OVERHEAD;
        let has_room = sender.datagrams.len() < DATAGRAMS_MAX
            && sender.has_topic_room(&topic, cost)
            && sender.bytes + cost <= INBOX_SENDER_BYTES_MAX
            && *total + cost <= INBOX_BYTES_MAX;
        if !has_room {
            effects.count("message_datagram_dropped");
            return Ok(());
        }
        sender.charge(total, &topic, cost);
        sender.datagrams.push_back(Datagram { topic, bytes, got: now.mono, sent: now.wall });
        self.has_arrived = true;
        Ok(())
    }

    /// Lends messages to the call `by`: whole ones, in the order of each topic of each sender, up to so many and to so many bytes, but for the
    /// first. What stands behind one that is lent already waits for the end of that.
    pub(super) fn take(
        &mut self,
        topics: &TopicPattern,
        max: usize,
        bytes_max: usize,
        by: u64,
        now: Instant,
        effects: &mut Effects,
    ) -> Vec<Delivery> {
        let (mut taken, mut bytes) = (vec![], 0);
        let (after, before): (Vec<_>, Vec<_>) = self.senders.keys().partition(|node| **node > self.last);
        let Self { senders, bytes: total, last, .. } = self;
        for node in after.into_iter().chain(before).collect::<Vec<NodeId>>() {
            let Some(sender) = senders.get_mut(&node) else { continue };
            let before = taken.len();
            drop_stale(sender, total, now, effects);
            let mut blocked: HashSet<Topic> = HashSet::new();
            let is_full = |taken: &[Delivery], bytes: usize, len: usize| {
                taken.len() >= max || !taken.is_empty() && bytes + len > bytes_max
            };
            for (id, known) in &mut sender.known {
                if !topics.fits(known.topic.as_str()) || blocked.contains(&known.topic) {
                    continue;
                }
                match &known.body {
                    Body::Whole(body) if known.lent.is_none() && !is_full(&taken, bytes, known.len) => {
                        known.lent = Some(by);
                        bytes += known.len;
                        effects.timers.set(Key::Lease(node, *id), now + LEASE);
                        taken.push(Delivery {
                            from: node,
                            id: Some(*id),
                            topic: known.topic.clone(),
                            sent: known.sent,
                            body: Arc::clone(body),
                        });
                    }
                    Body::Whole(_) | Body::Partial(_) | Body::Offered => {
                        blocked.insert(known.topic.clone());
                    }
                }
            }
            while let Some(at) = sender.datagrams.iter().position(|datagram| topics.fits(datagram.topic.as_str())) {
                if is_full(&taken, bytes, sender.datagrams[at].bytes.len()) {
                    break;
                }
                let Some(Datagram { topic, bytes: body, sent, .. }) = sender.datagrams.remove(at) else { break };
                bytes += body.len();
                sender.discharge(total, &topic, body.len() + MESSAGE_OVERHEAD);
                taken.push(Delivery { from: node, id: None, topic, sent, body: body.into() });
            }
            if taken.len() > before {
                *last = node;
            }
        }
        taken
    }

    /// An application has these messages: never again, and their senders may forget them. Says how many of them were here.
    pub(super) fn taken(&mut self, ids: &[(NodeId, MessageId)], effects: &mut Effects) -> usize {
        let Self { senders, bytes: total, .. } = self;
        let (mut batch, mut said, mut changed) = (Batch::default(), vec![], BTreeSet::new());
        for (node, id) in ids {
            let Some(sender) = senders.get_mut(node) else { continue };
            if !matches!(sender.known.get(id), Some(Known { body: Body::Whole(_), .. })) {
                continue;
            }
            sender.remove(total, *id);
            sender.row.taken.insert(*id);
            forget_timers(*node, *id, effects);
            changed.insert(*node);
            said.push((*node, *id, sender.has_begun));
        }
        for node in changed {
            senders.get(&node).into_iter().for_each(|sender| sender.store(node, &mut batch));
        }
        effects.store(batch);
        for (node, id, is_linked) in &said {
            if *is_linked {
                effects.say(*node, Frame::Taken { id: *id });
            }
        }
        self.has_arrived |= !said.is_empty();
        self.admit(effects);
        said.len()
    }

    /// Whoever made this call is gone, and what it was lent is there for others.
    pub(super) fn give_back(&mut self, by: u64, effects: &mut Effects) {
        for (node, sender) in &mut self.senders {
            for (id, known) in sender.known.iter_mut().filter(|(_, known)| known.lent == Some(by)) {
                known.lent = None;
                effects.timers.cancel(Key::Lease(*node, *id));
                self.has_arrived = true;
            }
        }
    }

    /// Nobody said in time that it has the message: it is there for others.
    pub(super) fn lease_ended(&mut self, node: NodeId, id: MessageId, now: Now, effects: &mut Effects) {
        let known = self.senders.get_mut(&node).and_then(|sender| sender.known.get_mut(&id));
        let Some(known) = known.filter(|known| known.lent.is_some()) else { return };
        known.lent = None;
        self.has_arrived = true;
        effects.count("message_lease_ended");
        if known.not_after <= now.mono {
            self.stale(node, id, effects);
        }
    }

    /// A message is past its time. One that an application has in its hands is left to it.
    pub(super) fn stale(&mut self, node: NodeId, id: MessageId, effects: &mut Effects) {
        let Self { senders, bytes: total, .. } = self;
        let Some(sender) = senders.get_mut(&node) else { return };
        if sender.known.get(&id).is_none_or(|known| known.lent.is_some()) {
            return;
        }
        sender.remove(total, id);
        effects.count("message_stale");
        self.has_arrived = true;
        self.admit(effects);
    }

    /// The sender is no member any more: its word counts no longer.
    pub(super) fn forget(&mut self, node: NodeId, effects: &mut Effects) {
        let Some(sender) = self.senders.remove(&node) else { return };
        self.bytes -= sender.bytes;
        sender.known.keys().for_each(|id| forget_timers(node, *id, effects));
        let mut batch = Batch::default();
        batch.delete(Table::Inbox, node.0);
        effects.store(batch);
        self.admit(effects);
    }

    /// Deletes everything.
    pub(super) fn clear(&mut self, effects: &mut Effects) {
        let nodes: Vec<NodeId> = self.senders.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.forget(node, effects));
    }

    /// What waits, by sender and topic.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut rows: BTreeMap<(NodeId, &Topic), (u64, u64, u64)> = BTreeMap::new();
        for (node, sender) in &self.senders {
            for known in sender.known.values() {
                let (messages, bytes, coming) = rows.entry((*node, &known.topic)).or_default();
                match &known.body {
                    Body::Whole(body) => (*messages, *bytes) = (*messages + 1, *bytes + body.len() as u64),
                    Body::Partial(body) => (*coming, *bytes) = (*coming + 1, *bytes + body.len() as u64),
                    Body::Offered => *coming += 1,
                }
            }
            for datagram in &sender.datagrams {
                let (messages, bytes, _) = rows.entry((*node, &datagram.topic)).or_default();
                (*messages, *bytes) = (*messages + 1, *bytes + datagram.bytes.len() as u64);
            }
        }
        let row = |((from, topic), (messages, bytes, coming)): ((NodeId, &Topic), _)| Waiting {
            from,
            topic: topic.clone(),
            messages,
            bytes,
            coming,
        };
        rows.into_iter().map(row).collect()
    }

    /// Bytes that are taken, as they count.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something can be taken since the last time that could not before.
    pub(super) fn take_arrived(&mut self) -> bool {
        std::mem::take(&mut self.has_arrived)
    }
}

fn forget_timers(node: NodeId, id: MessageId, effects: &mut Effects) {
    effects.timers.cancel(Key::Stale(node, id));
    effects.timers.cancel(Key::Lease(node, id));
}

/// A piece that fits nowhere: what was on its way when its message was put back, or nonsense.
fn misplaced(sender: &mut Sender, effects: &mut Effects) -> Result<(), Violation> {
    effects.count("message_misplaced");
    sender.misplaced += 1;
    if sender.misplaced > MISPLACED_MAX { Err(Violation::Piece) } else { Ok(()) }
}

/// Datagrams that nobody came for.
fn drop_stale(sender: &mut Sender, total: &mut usize, now: Instant, effects: &mut Effects) {
    while sender.datagrams.front().is_some_and(|datagram| now.saturating_duration_since(datagram.got) >= DATAGRAM_FOR) {
        let Some(Datagram { topic, bytes, .. }) = sender.datagrams.pop_front() else { break };
        sender.discharge(total, &topic, bytes.len() + MESSAGE_OVERHEAD);
        effects.count("message_datagram_dropped");
    }
}
