//! Application messages: what programs beside one member say to programs beside another.
//!
//! ```text
//!  weir send ──▶ Outbox ── on disk ──┐                                   ┌── in memory ── Inbox ──▶ weir recv
//!                 ▲ by peer, by topic│ Offer, Piece      Want, Credit    │  by sender, by topic        │
//!                 │                  └──────────▶  weir/1 link  ◀────────┘                             ▼
//!                 └──── delete ◀──────────── Taken{id} ◀──────────────── on disk: taken ◀────── "I have it"
//! ```
//!
//! A message is acknowledged when an application has taken it, not when it lies in an inbox. So it is on one disk only, its sender's; the
//! receiver's memory is a bounded copy that any restart may lose and that may be taken back from whoever has too much of it; an acknowledgement
//! means something to whoever waits for it; and a receiver that does not read slows its sender down all the way to `weir send`.
//!
//! What holds, whatever links and processes do:
//!
//! - Of one sender messages of one topic are delivered in the order in which they were accepted. Topics do not wait for one another.
//! - Each is taken at most once, and exactly once when neither its time runs out nor the receiver refuses it. An application that ends between
//!   getting a message and saying that it has it gets it again, and before all that follow it.
//! - A long one that is cut off goes on from the byte that it had come to, as long as the receiver has not been started anew.
//!
//! This knows no link and no policy: it says [`Frame`]s to members, and is told what the policy thinks of each message. `wire` is what is said,
//! `outbox` the sending side, `inbox` the receiving one.

mod bodies;
mod inbox;
mod outbox;
mod sender;
#[cfg(test)]
mod tests;
mod window;
pub mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use inbox::{
    DATAGRAM_BYTES_MAX, DATAGRAMS_MAX, DENIED_FOR, Delivery, INBOX_BYTES_MAX, INBOX_SENDER_BYTES_MAX,
    INBOX_TOPIC_BYTES_MAX, Inbox, LEASE, SENDERS_MAX, Waiting,
};
pub use outbox::{
    IN_FLIGHT_MAX, MESSAGE_OVERHEAD, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, OUTBOX_PEER_BYTES_MAX, OUTCOMES_MAX,
    Outbox, Outcome, Queued, SendError, Stage, TTL_DEFAULT, TTL_MAX,
};
pub use sender::DATAGRAM_FOR;
use wire::{DATAGRAM_LEN_MAX, Frame, MessageId, Topic, TopicPattern};

use crate::codec;
use crate::pki::id::NodeId;
use crate::store::{Batch, Store, StoreError};
use crate::time::Now;
use crate::timer::Timers;

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// A message of ours is past its time.
    Expire(NodeId, MessageId),
    /// A message of another's is.
    Stale(NodeId, MessageId),
    /// An application has had a message for long enough.
    Lease(NodeId, MessageId),
    /// The policy has forbidden a message for long enough.
    Denied(NodeId, MessageId),
    /// A peer has not said for long that it reads.
    Stall(NodeId),
    /// The next part of a long message is written.
    Store,
    /// What is settled is deleted now.
    Flush,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keep this, before anything that comes after.
    Store(Batch),
    /// Say this to a member that takes messages on a link.
    Say(NodeId, Frame),
    /// Count this.
    Count(&'static str),
}

/// What the two sides want.
#[derive(Debug, Default)]
struct Effects {
    outputs: VecDeque<Output>,
    timers: Timers<Key>,
}

impl Effects {
    fn say(&mut self, node: NodeId, frame: Frame) {
        self.outputs.push_back(Output::Say(node, frame));
    }

    fn count(&mut self, what: &'static str) {
        self.outputs.push_back(Output::Count(what));
    }

    /// Adds to what is stored just before, if that is all that happened since.
    fn store(&mut self, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        match self.outputs.back_mut() {
            Some(Output::Store(before)) => before.0.extend(batch.0),
            Some(Output::Say(..) | Output::Count(_)) | None => self.outputs.push_back(Output::Store(batch)),
        }
    }
}

/// What no member that keeps to the rules says: its link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Something came before [`Frame::Begin`].
    #[error("a message was offered before it was said which are pending")]
    Unbegun,
    /// [`Frame::Begin`] came a second time.
    #[error("it was said twice which messages are pending")]
    Begun,
    /// More than may be pending, or not in order.
    #[error("the list of pending messages is too long or not in order")]
    Pending,
    /// Longer than a message may be, not as long as it says, or another than before under the same id.
    #[error("an offer contradicts itself, its message or the longest that is allowed")]
    Offer,
    /// More than may be offered.
    #[error("too many messages were offered")]
    Offers,
    /// Empty, too long, beyond the end of its message, or one of too many that belong nowhere.
    #[error("a piece is empty, too long, beyond the end of its message, or one of too many that belong nowhere")]
    Piece,
    /// Beyond the end of the message.
    #[error("a message is wanted from beyond its end")]
    Want,
    /// More than was sent.
    #[error("credit was given for more than was sent")]
    Credit,
    /// A datagram that is too long.
    #[error("a datagram has more than {DATAGRAM_LEN_MAX} bytes")]
    Datagram,
}

impl Violation {
    /// By what it is counted.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unbegun => "message_unbegun",
            Self::Begun => "message_begun_twice",
            Self::Pending => "message_pending_wrong",
            Self::Offer => "message_offer_wrong",
            Self::Offers => "message_offers_overrun",
            Self::Piece => "message_piece_wrong",
            Self::Want => "message_want_wrong",
            Self::Credit => "message_credit_wrong",
            Self::Datagram => "message_datagram_wrong",
        }
    }
}

/// Why what is stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key that is none of ours.
    #[error("a stored message has a key that is none; restore the state directory")]
    Key,
    /// A message without its body.
    #[error("the body of a stored message is missing or of another length; restore the state directory")]
    Body,
    /// Bytes that are no message.
    #[error("a stored message cannot be read: {0}; restore the state directory")]
    Decode(codec::DecodeError),
}

/// Both sides of it.
#[derive(Debug)]
pub struct Mail {
    outbox: Outbox,
    inbox: Inbox,
    effects: Effects,
}

impl Mail {
    /// With what was kept.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(store: &impl Store, now: Now) -> Result<Self, LoadError> {
        let mut effects = Effects::default();
        let outbox = Outbox::load(store, now, &mut effects)?;
        let inbox = Inbox::load(store, now, &mut effects)?;
        Ok(Self { outbox, inbox, effects })
    }

    /// Takes a message for each of these members, in their order; it is kept until it is settled or `ttl` is over. As long as
    /// [`Stage::Storing`] is where it stands a restart forgets it, so nobody may be told yet that it was taken.
    pub fn send(
        &mut self,
        to: &[NodeId],
        topic: &Topic,
        body: &Arc<[u8]>,
        ttl: Duration,
        now: Now,
    ) -> Vec<Result<MessageId, SendError>> {
        self.outbox.send(to, topic, body, ttl, now, &mut self.effects)
    }

    /// The first one of each [`Self::send`] whose messages have left [`Stage::Storing`] since the last time.
    pub fn take_stored(&mut self) -> Vec<MessageId> {
        self.outbox.take_stored()
    }

    /// Sends what arrives at most once, or not at all.
    ///
    /// # Errors
    /// [`SendError`]: there is no link, or no room on it.
    pub fn send_datagram(&mut self, to: NodeId, topic: Topic, bytes: Vec<u8>, now: Now) -> Result<(), SendError> {
        self.outbox.datagram(to, topic, bytes, now, &mut self.effects)
    }

    /// A member takes messages on a link from now on.
    pub fn handle_link_up(&mut self, node: NodeId, now: Now) {
        self.inbox.link_down(node, &mut self.effects);
        self.outbox.link_up(node, now, &mut self.effects);
    }

    /// That link is gone.
    pub fn handle_link_down(&mut self, node: NodeId, now: Now) {
        self.inbox.link_down(node, &mut self.effects);
        self.outbox.link_down(node, now, &mut self.effects);
    }

    /// A member said something. `allows` is what the policy says of a topic of it.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn handle_frame(
        &mut self,
        from: NodeId,
        frame: Frame,
        allows: impl FnOnce(&Topic) -> bool,
        now: Now,
    ) -> Result<(), Violation> {
        let Self { outbox, inbox, effects } = self;
        match frame {
            Frame::Begin { life, pending } => inbox.begin(from, life, &pending, now, effects),
            Frame::Offer { head, start } => {
                let is_allowed = allows(&head.topic);
                inbox.offered(from, head, start.0, is_allowed, now, effects)
            }
            Frame::Piece { id, at, bytes } => inbox.piece(from, id, at, &bytes.0, effects),
            Frame::Gone { id } => {
                inbox.gone(from, id, effects);
                Ok(())
            }
            Frame::Datagram { topic, bytes } => {
                let is_allowed = allows(&topic);
                inbox.datagram(from, topic, bytes.0, is_allowed, now, effects)
            }
            Frame::Want { id, from: byte } => outbox.wanted(from, id, byte, now, effects),
            Frame::Credit(bytes) => outbox.credit(from, bytes, now, effects),
            Frame::Held { id } => {
                outbox.held(from, id);
                Ok(())
            }
            Frame::PutBack { id } => {
                outbox.put_back(from, id);
                Ok(())
            }
            Frame::Taken { id } => {
                if outbox.settled(from, id, Outcome::Taken, now, effects) {
                    effects.count("message_delivered");
                }
                Ok(())
            }
            Frame::Refused { id, why } => {
                if outbox.settled(from, id, Outcome::Refused(why), now, effects) {
                    effects.count("message_refused");
                }
                Ok(())
            }
        }
    }

    /// Lends messages of these topics to the call `by`: at most so many, and at most so many bytes, but for the first.
    pub fn take(
        &mut self,
        topics: &TopicPattern,
        max: usize,
        bytes_max: usize,
        by: u64,
        now: Instant,
    ) -> Vec<Delivery> {
        self.inbox.take(topics, max, bytes_max, by, now, &mut self.effects)
    }

    /// An application has these messages. Says how many of them were here.
    pub fn taken(&mut self, ids: &[(NodeId, MessageId)]) -> usize {
        self.inbox.taken(ids, &mut self.effects)
    }

    /// An application does not want these messages after all: they are there for others, in their old places. Says how many of them it had.
    pub fn returned(&mut self, ids: &[(NodeId, MessageId)], now: Instant) -> usize {
        self.inbox.returned(ids, now, &mut self.effects)
    }

    /// The policy, or what it has to know of members, has changed: `allows` is what it says now of a sender and a topic.
    pub fn rejudge(&mut self, allows: impl Fn(NodeId, &Topic) -> bool, now: Now) {
        self.inbox.rejudge(allows, now, &mut self.effects);
    }

    /// Whoever made this call did not hear its answer: what it was lent is there for others.
    pub fn give_back(&mut self, by: u64, now: Instant) {
        self.inbox.give_back(by, now, &mut self.effects);
    }

    /// This member is one no more: nothing is sent to it or taken from it.
    pub fn forget(&mut self, node: NodeId, now: Now) {
        self.outbox.forget(node, now, &mut self.effects);
        self.inbox.forget(node, &mut self.effects);
    }

    /// Deletes everything, as of a network that was left.
    pub fn clear(&mut self, now: Now) {
        self.outbox.clear(now, &mut self.effects);
        self.inbox.clear(&mut self.effects);
    }

    /// Carries out what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let Self { outbox, inbox, effects } = self;
        while let Some(key) = effects.timers.pop(now.mono) {
            match key {
                Key::Expire(node, id) => {
                    if outbox.settled(node, id, Outcome::Expired, now, effects) {
                        effects.count("message_expired");
                    }
                }
                Key::Stale(node, id) => inbox.stale(node, id, effects),
                Key::Lease(node, id) => inbox.lease_ended(node, id, now.mono, effects),
                Key::Denied(node, id) => inbox.denied(node, id, effects),
                Key::Stall(node) => outbox.stalled(node, now, effects),
                Key::Store => outbox.store_next(now, effects),
                Key::Flush => outbox.flush(effects),
            }
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.effects.timers.next()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.effects.outputs.pop_front()
    }

    /// What waits to be taken by others.
    pub const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What waits to be taken here.
    pub const fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Whether something can be taken since the last time that could not before.
    pub fn take_arrived(&mut self) -> bool {
        self.inbox.take_arrived()
    }

    /// Whether a message was settled since the last time.
    pub fn take_settled(&mut self) -> bool {
        self.outbox.take_settled()
    }
}
