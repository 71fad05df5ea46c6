//! Time among members: whose word sets our clock, and what is done with a member that says another time.
//!
//! | apart by | |
//! |---|---|
//! | up to 5 minutes | nothing |
//! | up to an hour | a warning |
//! | more | no key exchange; no records, policy or admission document are taken, which one of the two would judge by a wrong time |
//!
//! Known of the other's time is what it said on a link between the two: members of a large network that keep none judge nothing. The last is
//! a matter between two: a member that lies about its clock harms nobody but itself. Joining, renewing, telling the time, and
//! what takes rights away and stands by its signatures alone (bundles and revocation lists) go on. Sessions that stand end with their keys.

use super::message::Message;
use super::{Node, documents};
use crate::codec;
use crate::pki::clock::{Learned, Skew, ahead};
use crate::pki::id::NodeId;
use crate::pki::trust::SharedTrust;
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::store::{Batch, Table};
use crate::time::{Now, UnixSecs};

/// Whether what a message says is judged by the time.
pub(super) const fn needs_time(message: &Message) -> bool {
    match message {
        Message::Policy(_)
        | Message::Admission(_)
        | Message::Records(_)
        | Message::Contact { .. }
        | Message::Rpc(_) => true,
        Message::Hello(_)
        | Message::Ask(_)
        | Message::Bundles(_)
        | Message::Revocations(_)
        | Message::Issuer(_)
        | Message::IssuerSaid { .. }
        | Message::Ping(_)
        | Message::Pong(_)
        | Message::Mail(_)
        | Message::Peers(_) => false,
    }
}

impl<R: Random> Node<R> {
    /// A member whose certificate was checked told its time.
    pub(super) fn heard_time(&mut self, node: NodeId, wall: UnixSecs, now: Now) {
        if let Learned::Corrected { from, to } = self.clock.learn(node, wall, now.mono) {
            tracing::warn!(%from, %to, "the network's clock was corrected by its members");
            self.counters.count("clock_corrected");
            self.clock_moved(from, to);
        }
    }

    /// A chain that is not valid yet, and good but for that, proves that it is later than we believe.
    pub(super) fn learn_proved_time(&mut self, now: Now) {
        if let Some(proved) = self.trust.as_ref().and_then(SharedTrust::proved) {
            self.is_at_least(proved, now);
        }
    }

    /// A certificate that is good but for its beginning says that it is as late as that at least; whether a clock that was never set was set by it.
    pub(super) fn is_at_least(&mut self, proved: UnixSecs, now: Now) -> bool {
        if !self.clock.at_least(proved) {
            return false;
        }
        tracing::warn!(from = %now.wall, to = %proved, "the network's clock was set by a certificate");
        self.counters.count("clock_proved");
        self.clock_moved(now.wall, proved);
        true
    }

    /// Keeps the latest moment that is sure, so that a restart does not fall behind it.
    pub(super) fn keep_clock(&mut self) {
        let mut batch = Batch::default();
        batch.put(Table::Clock, documents::CLOCK_KEY, codec::encode(&self.clock.to_disk()));
        self.store(batch);
    }

    /// Our clock was set: certificates are judged by it, others' clocks are as far from it, and all are to hear of it soon.
    fn clock_moved(&mut self, from: UnixSecs, to: UnixSecs) {
        if let Some(trust) = &self.trust {
            trust.set_now(to);
        }
        let by = ahead(to, from);
        for known in self.peers.values_mut().filter_map(|peer| peer.clock_ahead_secs.as_mut()) {
            *known = known.saturating_sub(by);
        }
        self.greet_at = None;
    }

    /// A member told its time. `true` when that was more than an hour from ours before, and is not any more.
    pub(super) fn judge_clock(&mut self, node: NodeId, wall: UnixSecs, now: Now) -> bool {
        let (ahead, skew) = self.clock.skew(wall);
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let before = peer.skew();
        peer.clock_ahead_secs = Some(ahead);
        if skew == Skew::TimeOnly && before != skew {
            tracing::warn!(peer = %node.short(), ahead, "its clock and ours are more than an hour apart");
            self.counters.count("peer_clock_off");
        }
        let is_settled = before == Skew::TimeOnly && skew != before;
        if is_settled {
            self.begin_soon(node, now);
        }
        is_settled
    }

    /// Whether the member at the other end says a time that is more than an hour from ours.
    pub(super) fn is_time_only(&self, link: LinkId) -> bool {
        let held = self.links.get(&link).filter(|held| held.alpn == Alpn::Member);
        let peer = held.and_then(|held| self.peers.get(&held.peer?));
        peer.is_some_and(|peer| peer.skew() == Skew::TimeOnly)
    }
}
