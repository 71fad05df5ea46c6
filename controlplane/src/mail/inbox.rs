//! The receiving side: what others have sent, until an application here has taken it.
//!
//! ```text
//!           Offer              room for all of it         last byte           take                    taken
//!  nothing ───────▶ Offered ───────────────────▶ Partial ───────────▶ Whole ───────▶ Whole and lent ───────▶ on disk: taken
//!                    │ ▲                            │                   │  ▲                  │
//!     policy says no │ └── another needs the room ──┴───────────────────┘  └── time is over ──┘
//!                    ▼
//!                  Denied ──── and says so for a minute ──▶ refused
//! ```
//!
//! All of it is a copy of what the sender keeps, and in memory: only that a message was taken is on disk, before the sender hears of it. So
//! a restart loses nothing, what others send never fills a disk, and room can be taken back from whoever has most of it. In a topic of a
//! sender messages find room in their order, so the first one always has what it needs to come to its end.
//!
//! A policy is not everybody's at the same moment. So a message that ours forbids waits for a while before it is refused, and each is judged again
//! when the policy changes, until it is in an application's hands.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outbox::{MESSAGE_OVERHEAD, TTL_MAX};
use super::sender::{Body, Datagram, Known, ROW_LEN_MAX, Sender, forget_timers};
use super::wire::{
    BODY_LEN_MAX, CREDIT_MIN, DATAGRAM_LEN_MAX, DATAGRAM_OVERHEAD, Frame, Head, MessageId, OFFERS_MAX, PENDING_MAX,
    PIECE_LEN_MAX, Refusal, START_LEN_MAX, Topic, TopicPattern,
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
/// Datagrams of one sender that wait, and bytes of them: 64 of the longest. They have room of their own, so that they take none from messages.
pub const DATAGRAMS_MAX: usize = 256;
const DATAGRAM_SENDER_BYTES_MAX: usize = 64 * (DATAGRAM_LEN_MAX + MESSAGE_OVERHEAD);
/// Bytes of datagrams of all senders together.
pub const DATAGRAM_BYTES_MAX: usize = 16 << 20;
/// How long an application may take to say that it has a message.
pub const LEASE: Duration = Duration::from_secs(60);
/// How long a message that the policy forbids waits for another policy: one comes to everybody in seconds, over links that stand.
pub const DENIED_FOR: Duration = Duration::from_secs(60);
/// Bytes that a body's buffer grows by.
const GROWTH: usize = 1 << 20;

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
    datagram_bytes: usize,
    has_arrived: bool,
    /// Who was served last, so that nobody is always first.
    last: NodeId,
}

impl Inbox {
    /// What was kept.
    pub(super) fn load(store: &impl Store, now: Now, effects: &mut Effects) -> Result<Self, LoadError> {
        let mut inbox = Self::default();
        for (key, bytes) in store.entries(Table::Inbox)? {
            let node = NodeId(key.try_into().map_err(|_| LoadError::Key)?);
            let row = codec::decode(&bytes, ROW_LEN_MAX).map_err(LoadError::Decode)?;
            inbox.senders.insert(node, Sender { row, ..Sender::default() });
        }
        inbox.forget_past(now, effects);
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
        if sender.is_row_old {
            let mut batch = Batch::default();
            sender.store(node, &mut batch);
            effects.store(batch);
        }
        if sender.is_idle() {
            self.senders.remove(&node);
        }
    }

    /// Forgets senders that offer nothing again of what was taken.
    fn forget_past(&mut self, now: Now, effects: &mut Effects) {
        let mut batch = Batch::default();
        for (node, _) in self.senders.extract_if(.., |_, sender| sender.is_over(now.wall)) {
            batch.delete(Table::Inbox, node.0);
        }
        effects.store(batch);
    }

    /// Whether there is place for one more sender, if it is none of those that are known.
    fn has_place(&mut self, node: NodeId, now: Now, effects: &mut Effects) -> bool {
        if !self.senders.contains_key(&node) && self.senders.len() >= SENDERS_MAX {
            self.forget_past(now, effects);
            if self.senders.len() >= SENDERS_MAX {
                effects.count("message_senders_full");
                return false;
            }
        }
        true
    }

    /// The sender says what it may still offer.
    pub(super) fn begin(
        &mut self,
        node: NodeId,
        life: u64,
        pending: &[MessageId],
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        if pending.len() > PENDING_MAX || pending.windows(2).any(|two| two[0] >= two[1]) {
            return Err(Violation::Pending);
        }
        if !self.has_place(node, now, effects) {
            return Ok(());
        }
        let Self { senders, bytes: total, .. } = self;
        let sender = senders.entry(node).or_default();
        if sender.has_begun {
            return Err(Violation::Begun);
        }
        let before = sender.row.taken.len();
        let is_same = sender.row.life == life;
        let is_pending = |id: &MessageId| is_same && pending.binary_search(id).is_ok();
        sender.row.life = life;
        sender.row.taken.retain(is_pending);
        sender.refused.retain(is_pending);
        let gone: Vec<MessageId> = sender.known.keys().filter(|id| !is_pending(id)).copied().collect();
        for id in gone {
            sender.remove(total, id);
            forget_timers(node, id, effects);
        }
        sender.has_begun = true;
        if sender.row.taken.len() < before || sender.is_row_old {
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
        // Of one for whom there was no place nothing is wanted.
        let Some(sender) = self.senders.get_mut(&node) else { return Ok(()) };
        if !sender.has_begun {
            return Err(Violation::Unbegun);
        }
        let id = head.id;
        if sender.row.taken.contains(&id) {
            effects.say(node, Frame::Taken { id });
            return Ok(());
        }
        if sender.refused.contains(&id) {
            effects.say(node, Frame::Refused { id, why: Refusal::Policy });
            return Ok(());
        }
        if let Some(known) = sender.known.get(&id) {
            if (&known.topic, known.len) != (&head.topic, len) {
                return Err(Violation::Offer);
            }
            self.judge(node, id, is_allowed, now, effects);
            match self.senders.get(&node).and_then(|sender| sender.known.get(&id)).map(|known| &known.body) {
                Some(Body::Partial(body)) => effects.say(node, Frame::Want { id, from: body.len() as u32 }),
                Some(Body::Whole(_)) => effects.say(node, Frame::Held { id }),
                Some(Body::Offered) | None => self.admit(effects),
            }
            return Ok(());
        }
        if sender.known.len() + sender.refused.len() >= KNOWN_MAX {
            return Err(Violation::Offers);
        }
        // One that ended here a moment before it does at the sender is not waited for by those after it.
        let is_after = |(known, other): (&MessageId, &Known)| {
            *known > id && other.topic == head.topic && other.lent.is_none() && !sender.denied.contains(known)
        };
        if sender.known.iter().any(is_after) {
            effects.count("message_misordered");
            return Ok(());
        }
        let not_after = now.mono + Duration::from_secs(head.expires_in_secs.into()).min(TTL_MAX);
        effects.timers.set(Key::Stale(node, id), not_after);
        let Head { topic, sent, .. } = head;
        sender.known.insert(id, Known { topic, len, sent, not_after, body: Body::Offered, lent: None });
        sender.offered.insert(id);
        if is_allowed {
            self.admit_of(node, Some((id, start)).filter(|_| comes_along), effects);
        } else {
            self.judge(node, id, false, now, effects);
        }
        Ok(())
    }

    /// Does with a message what the policy says, unless an application has it.
    fn judge(&mut self, node: NodeId, id: MessageId, is_allowed: bool, now: Now, effects: &mut Effects) {
        let Self { senders, bytes: total, .. } = self;
        let Some(sender) = senders.get_mut(&node) else { return };
        if sender.known.get(&id).is_none_or(|known| known.lent.is_some()) {
            return;
        }
        match (is_allowed, sender.denied.contains(&id)) {
            (false, false) => {
                if sender.put_back(total, id) && sender.has_begun {
                    effects.say(node, Frame::PutBack { id });
                }
                sender.offered.remove(&id);
                sender.denied.insert(id);
                effects.timers.set(Key::Denied(node, id), now.mono + DENIED_FOR);
                effects.count("message_denied");
            }
            (true, true) if sender.has_begun => {
                sender.denied.remove(&id);
                sender.offered.insert(id);
                effects.timers.cancel(Key::Denied(node, id));
            }
            // It is offered again on the next link.
            (true, true) => {
                sender.remove(total, id);
                forget_timers(node, id, effects);
            }
            (true, false) | (false, true) => {}
        }
    }

    /// The policy is another: `allows` is what it says of a sender and a topic.
    pub(super) fn rejudge(&mut self, allows: impl Fn(NodeId, &Topic) -> bool, now: Now, effects: &mut Effects) {
        let nodes: Vec<NodeId> = self.senders.keys().copied().collect();
        for node in nodes {
            let Self { senders, datagram_bytes: total, .. } = self;
            let Some(sender) = senders.get_mut(&node) else { continue };
            let mut said: HashMap<Topic, bool> = HashMap::new();
            let mut is_allowed = |topic: &Topic| match said.get(topic) {
                Some(said) => *said,
                None => *said.entry(topic.clone()).or_insert(allows(node, topic)),
            };
            while let Some(at) = sender.datagrams.iter().position(|datagram| !is_allowed(&datagram.topic)) {
                sender.pop(total, at);
                effects.count("message_denied");
            }
            let judged: Vec<(MessageId, bool)> =
                sender.known.iter().map(|(id, known)| (*id, is_allowed(&known.topic))).collect();
            judged.into_iter().for_each(|(id, is_allowed)| self.judge(node, id, is_allowed, now, effects));
        }
        self.admit(effects);
    }

    /// The policy has forbidden a message for long enough.
    pub(super) fn denied(&mut self, node: NodeId, id: MessageId, effects: &mut Effects) {
        let Self { senders, bytes: total, .. } = self;
        let Some(sender) = senders.get_mut(&node).filter(|sender| sender.denied.contains(&id)) else { return };
        if sender.has_begun {
            sender.remove(total, id);
            forget_timers(node, id, effects);
            sender.refused.insert(id);
            effects.say(node, Frame::Refused { id, why: Refusal::Policy });
        } else {
            // A policy comes with the next link, so it is judged anew then; and those behind it in its topic with it.
            let topic = sender.known.get(&id).map(|known| known.topic.clone());
            let is_of_topic = |id: &&MessageId| sender.known.get(id).map(|known| &known.topic) == topic.as_ref();
            let with_it: Vec<MessageId> = sender.denied.iter().filter(is_of_topic).copied().collect();
            for id in with_it {
                sender.remove(total, id);
                forget_timers(node, id, effects);
            }
            if sender.is_idle() {
                senders.remove(&node);
            }
        }
        self.admit(effects);
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
        let mut denied: HashMap<Topic, MessageId> = HashMap::new();
        for id in &sender.denied {
            if let Some(known) = sender.known.get(id) {
                denied.entry(known.topic.clone()).or_insert(*id);
            }
        }
        for id in ids {
            let Some(sender) = self.senders.get(&node) else { break };
            let Some(Known { topic, len, body: Body::Offered, .. }) = sender.known.get(&id) else { continue };
            let (topic, cost) = (topic.clone(), len + MESSAGE_OVERHEAD);
            let is_behind = denied.get(&topic).is_some_and(|first| *first < id);
            if is_behind || full.contains(&topic) || !sender.has_topic_room(&topic, cost) {
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
                // Of nothing no piece comes.
                None if known.len == 0 => {
                    known.body = Body::Whole(Arc::default());
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
            if sender.has_begun {
                sender.put_back(total, id);
                effects.say(other, Frame::PutBack { id });
                sender.offered.insert(id);
            } else {
                sender.remove(total, id);
                forget_timers(other, id, effects);
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
        if sender.credit as usize >= CREDIT_MIN {
            effects.say(node, Frame::Credit(std::mem::take(&mut sender.credit)));
        }
    }

    /// The sender has deleted a message, and never offers it again.
    pub(super) fn gone(&mut self, node: NodeId, id: MessageId, effects: &mut Effects) {
        let Self { senders, bytes: total, .. } = self;
        let Some(sender) = senders.get_mut(&node) else { return };
        // On disk it stays until the next one is taken, or the next link: a write for each would be one too many.
        sender.is_row_old |= sender.row.taken.remove(&id);
        sender.refused.remove(&id);
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
        self.read(node, bytes.len() + DATAGRAM_OVERHEAD, effects);
        if !is_allowed {
            effects.count("message_denied");
            return Ok(());
        }
        if !self.has_place(node, now, effects) {
            return Ok(());
        }
        let Self { senders, datagram_bytes: total, .. } = self;
        let sender = senders.entry(node).or_default();
        sender.drop_stale(total, now.mono, effects);
        let datagram = Datagram { topic, bytes, got: now.mono, sent: now.wall };
        let wanted = sender.datagram_bytes + datagram.cost();
        if sender.datagrams.len() >= DATAGRAMS_MAX || wanted > DATAGRAM_SENDER_BYTES_MAX {
            effects.count("message_datagram_dropped");
            return Ok(());
        }
        while *total + datagram.cost() > DATAGRAM_BYTES_MAX {
            let most = senders.iter_mut().filter(|(other, _)| **other != node);
            let most =
                most.max_by_key(|(_, other)| other.datagram_bytes).filter(|(_, other)| other.datagram_bytes > wanted);
            effects.count("message_datagram_dropped");
            let Some((_, other)) = most else { return Ok(()) };
            other.pop(total, 0);
        }
        senders.entry(node).or_default().push(total, datagram);
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
        let Self { senders, datagram_bytes: total, last, .. } = self;
        for node in after.into_iter().chain(before).collect::<Vec<NodeId>>() {
            let Some(sender) = senders.get_mut(&node) else { continue };
            let before = taken.len();
            sender.drop_stale(total, now, effects);
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
                let Some(Datagram { topic, bytes: body, sent, .. }) = sender.pop(total, at) else { break };
                bytes += body.len();
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
            senders.get_mut(&node).into_iter().for_each(|sender| sender.store(node, &mut batch));
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
    pub(super) fn give_back(&mut self, by: u64, now: Instant, effects: &mut Effects) {
        let of_sender = |(node, sender): (&NodeId, &Sender)| -> Vec<(NodeId, MessageId)> {
            let lent = sender.known.iter().filter(|(_, known)| known.lent == Some(by));
            lent.map(|(id, _)| (*node, *id)).collect()
        };
        let lent: Vec<(NodeId, MessageId)> = self.senders.iter().flat_map(of_sender).collect();
        self.returned(&lent, now, effects);
    }

    /// An application does not want what it was lent after all. Says how many of them it had.
    pub(super) fn returned(&mut self, ids: &[(NodeId, MessageId)], now: Instant, effects: &mut Effects) -> usize {
        ids.iter().filter(|(node, id)| self.unlend(*node, *id, now, effects)).count()
    }

    /// Nobody said in time that it has the message: it is there for others.
    pub(super) fn lease_ended(&mut self, node: NodeId, id: MessageId, now: Instant, effects: &mut Effects) {
        if self.unlend(node, id, now, effects) {
            effects.count("message_lease_ended");
        }
    }

    /// A message is in nobody's hands any more, and there for others unless it is past its time. Says whether somebody had it.
    fn unlend(&mut self, node: NodeId, id: MessageId, now: Instant, effects: &mut Effects) -> bool {
        let known = self.senders.get_mut(&node).and_then(|sender| sender.known.get_mut(&id));
        let Some(known) = known.filter(|known| known.lent.is_some()) else { return false };
        known.lent = None;
        self.has_arrived = true;
        effects.timers.cancel(Key::Lease(node, id));
        if known.not_after <= now {
            self.stale(node, id, effects);
        }
        true
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
        (self.bytes, self.datagram_bytes) = (self.bytes - sender.bytes, self.datagram_bytes - sender.datagram_bytes);
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
    pub fn waiting(&self, now: Instant) -> Vec<Waiting> {
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
            for datagram in sender.datagrams.iter().filter(|datagram| !datagram.is_stale(now)) {
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

    /// Those whose messages are judged by the policy.
    pub fn senders(&self) -> impl Iterator<Item = NodeId> {
        let has_any = |(_, sender): &(&NodeId, &Sender)| !sender.known.is_empty() || !sender.datagrams.is_empty();
        self.senders.iter().filter(has_any).map(|(node, _)| *node)
    }

    /// Bytes that are taken, as they count: of messages.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same of datagrams.
    pub const fn datagram_bytes(&self) -> usize {
        self.datagram_bytes
    }

    /// Whether something can be taken since the last time that could not before.
    pub(super) fn take_arrived(&mut self) -> bool {
        std::mem::take(&mut self.has_arrived)
    }
}

/// A piece that fits nowhere: what was on its way when its message was put back, or nonsense.
fn misplaced(sender: &mut Sender, effects: &mut Effects) -> Result<(), Violation> {
    effects.count("message_misplaced");
    sender.misplaced += 1;
    if sender.misplaced > MISPLACED_MAX { Err(Violation::Piece) } else { Ok(()) }
}
