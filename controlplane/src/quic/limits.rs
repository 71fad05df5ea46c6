//! How much there may be of everything that others can cause, and what was counted.

use std::time::Duration;

use super::CloseReason;

/// How much there may be of everything that others can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Links, those that are closing included.
    pub links_max: usize,
    /// Accepted links whose peers are not verified yet.
    pub unverified_max: usize,
    /// From so many of those on, an address must prove itself by a Retry.
    pub retry_from: usize,
    /// A handshake that takes longer is given up.
    pub handshake_max: Duration,
    /// Bytes of messages that wait to be sent on one link.
    pub queued_link_max: usize,
    /// The same on all links together.
    pub queued_total_max: usize,
    /// Bytes of messages of one link that wait to be taken by [`Driver::poll_event`](super::Driver::poll_event). Beyond it, its peer has to wait.
    pub unread_link_max: usize,
    /// The same of all links together.
    pub unread_total_max: usize,
    /// Bytes of messages that are not complete yet, of all links together. A link that would need more is closed.
    pub partial_total_max: usize,
    /// Events that wait to be taken; beyond it nobody new is let in.
    pub events_max: usize,
    /// Bytes that are taken from a stream between two looks at the limits.
    pub read_once_max: usize,
    /// Datagrams of one [`Transmit`](super::Transmit). Linux takes 64 and 64 KiB at a time.
    pub segments_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links_max: 4096,
            unverified_max: 1024,
            retry_from: 128,
            handshake_max: Duration::from_secs(10),
            queued_link_max: 4 << 20,
            queued_total_max: 64 << 20,
            unread_link_max: 4 << 20,
            unread_total_max: 64 << 20,
            partial_total_max: 64 << 20,
            events_max: 16 << 10,
            read_once_max: 64 << 10,
            segments_max: 32,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was counted since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Each by its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Datagrams that came in.
    datagrams_in,
    /// Of those, the ones that belong to no link and begin none.
    datagrams_ignored,
    /// Datagrams that went out.
    datagrams_out,
    /// Links that we began.
    dialled,
    /// Links that others began.
    accepted,
    /// Links that others began with what is no proper first packet.
    accept_failed,
    /// Beginners who were told to prove their address.
    retries,
    /// Beginners for whom there was no room.
    saturated,
    /// Answers without a link, such as resets, that were sent.
    answers_out,
    /// Answers without a link that were dropped, since too many waited.
    answers_dropped,
    /// Links that came to be connected.
    connected,
    /// Links that ended.
    closed,
    /// Of those, for a certificate that we refused.
    certificates_refused,
    /// For want of a certificate.
    no_certificate,
    /// For a certificate of ours that the peer refused, or TLS that did not agree.
    handshakes_failed,
    /// By a stateless reset.
    resets_in,
    /// For a handshake that took too long, or for silence.
    timeouts,
    /// For a rule that was broken.
    protocol_errors,
    /// Messages that came in.
    messages_in,
    /// Messages that were queued.
    messages_out,
    /// Messages that were refused since too much waited.
    messages_refused,
    /// Streams of a type that is not known here.
    streams_refused,
}

impl Counters {
    pub(super) fn count_closed(&mut self, reason: &CloseReason) {
        self.closed += 1;
        let of_reason = match reason {
            CloseReason::Local { .. } | CloseReason::Peer { .. } => return,
            CloseReason::Refused(_) => &mut self.certificates_refused,
            CloseReason::NoCertificate => &mut self.no_certificate,
            CloseReason::RefusedByPeer { .. }
            | CloseReason::Handshake { .. }
            | CloseReason::Version
            | CloseReason::PeerSaturated => &mut self.handshakes_failed,
            CloseReason::TimedOut | CloseReason::HandshakeTimedOut => &mut self.timeouts,
            CloseReason::Reset => &mut self.resets_in,
            CloseReason::Protocol(_) => &mut self.protocol_errors,
        };
        *of_reason += 1;
    }
}
