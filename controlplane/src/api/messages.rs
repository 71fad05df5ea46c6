//! Requests and answers about messages of applications.

use super::describe::{object, words};
use super::types::Moment;

words! {
    /// How far a message has come.
    pub enum MessageState {
        /// It is kept by the sender's node, or on its way.
        Queued = "queued",
        /// It is at the receiver's node, and waits there for an application; the sender's node keeps it still.
        Held = "held",
        /// An application has taken it.
        Delivered = "delivered",
        /// A datagram has left. Nothing more will be known of it.
        Sent = "sent",
        /// It was not accepted, by the sender's node or by the receiver's.
        Refused = "refused",
        /// Nobody took it in time.
        Expired = "expired",
        /// This node knows nothing of it, or nothing any more.
        Unknown = "unknown",
    }
}

object! {
    /// A message for a member or a group.
    #[serde(deny_unknown_fields)]
    pub struct SendRequest {
        /// Its name, id or overlay address; or `@` and a group, for each other member of it.
        to: String,
        /// What it is about: 1 to 64 letters, digits, `-`, `_`, `.` and `/`; `default` if nothing is said.
        #[serde(default)]
        topic: Option<String>,
        /// The body in base64: at most 16 MiB, of a datagram 16 KiB.
        body: String,
        /// How long it is kept, in seconds; seven days if nothing is said, at most 30.
        #[serde(default)]
        ttl_secs: Option<u64>,
        /// Send it once, now or never, and keep nothing.
        #[serde(default)]
        datagram: bool,
    }

    /// Where a message stands.
    pub struct Sent {
        /// The receiver's name.
        name: String,
        /// The receiver's id.
        node: String,
        /// The message's id; empty if it was not accepted, and of datagrams.
        id: String,
        /// How far it has come.
        state: MessageState,
        /// Why it was refused, and what to do.
        #[serde(default)]
        reason: Option<String>,
    }

    /// Messages that were sent here.
    #[serde(deny_unknown_fields)]
    pub struct OutcomesRequest {
        /// Their ids, at most 1,024.
        ids: Vec<String>,
        /// How long to wait until each has come to its end, in milliseconds: at most 30,000, none if nothing is said.
        #[serde(default)]
        wait_ms: Option<u32>,
    }

    /// What to receive.
    #[serde(deny_unknown_fields)]
    pub struct ReceiveRequest {
        /// A topic, or the beginning of some and `*`; all of them if nothing is said.
        #[serde(default)]
        topic: Option<String>,
        /// How many at most: one if nothing is said, at most 64. Of long ones fewer come.
        #[serde(default)]
        count: Option<u16>,
        /// How long to wait for the first one, in milliseconds: at most 30,000, none if nothing is said.
        #[serde(default)]
        wait_ms: Option<u32>,
    }

    /// A message. Say within a minute that you have it, or it is given out again.
    pub struct Received {
        /// The sender's name.
        name: String,
        /// The sender's id.
        node: String,
        /// What to name it by when you have it; empty for a datagram, of which nothing need be said.
        id: String,
        /// What it is about.
        topic: String,
        /// When it was handed to the sender's node, by that one's clock.
        sent_at: Moment,
        /// The body in base64.
        body: String,
    }

    /// Messages that an application was given.
    #[serde(deny_unknown_fields)]
    pub struct TakenRequest {
        /// Their ids, as they were received.
        ids: Vec<String>,
    }

    /// Of how many of them the node did not know it yet: the others were given out again and taken by others, or their time was over.
    pub struct TakenAnswer {
        /// How many.
        messages: u64,
    }

    /// Messages that wait for one member.
    pub struct OutboxRow {
        /// Its name.
        name: String,
        /// Its id.
        node: String,
        /// The member takes messages on a link now.
        linked: bool,
        /// How many wait.
        messages: u64,
        /// Bytes of their bodies.
        bytes: u64,
        /// How many of them are at its node, and wait there for an application.
        held: u64,
        /// When the oldest of them was accepted.
        oldest_at: Moment,
        /// When the first of them ends.
        expires_at: Moment,
    }

    /// Messages of one topic of one member that wait here.
    pub struct InboxRow {
        /// The sender's name.
        name: String,
        /// The sender's id.
        node: String,
        /// What they are about.
        topic: String,
        /// How many are whole.
        messages: u64,
        /// Bytes of them, and of those that are not whole.
        bytes: u64,
        /// How many are on their way, wait for room, or for a policy that lets them in.
        coming: u64,
    }

    /// What waits.
    pub struct Messages {
        /// For others.
        outbox: Vec<OutboxRow>,
        /// For applications here.
        inbox: Vec<InboxRow>,
    }
}
