//! Looking in the DHT for a member that does not answer where it is said to be.
//!
//! The directory comes by neighbours, of whom some may keep news to themselves; a record in the DHT is kept by twenty that a hash has chosen, and
//! signed by the member all the same.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidates::may_be_dialled;
use super::{Node, Timer};
use crate::dht::Outcome;
use crate::dht::record::{Kind, NodeValue};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;

/// Failures in a row after which a member is looked for. Ours: two attempts take as long as a link that was lost.
const SEEK_AFTER: u32 = 2;
/// Between two looks for one, which cost a score of datagrams each.
const SEEK_GAP: Duration = Duration::from_secs(120);
/// How many are looked for at a time: people's look-ups have room beside them.
const SOUGHT_MAX: usize = 4;

impl<R: Random> Node<R> {
    /// An attempt to reach a member has failed: it may have said since that it is somewhere else.
    pub(super) fn seek(&mut self, node: NodeId, now: Now) {
        let Some(discovery) = self.discovery.as_mut().filter(|discovery| discovery.sought.len() < SOUGHT_MAX) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.has_failed(SEEK_AFTER)) else { return };
        if peer.sought.is_some_and(|sought| now.mono < sought + SEEK_GAP) || !discovery.dht.is_joined() {
            return;
        }
        // With every place for look-ups taken its turn comes with the next failure.
        let Ok(id) = discovery.dht.get(Kind::Node, node.into(), now) else { return };
        peer.sought = Some(now.mono);
        discovery.sought.insert(id, node);
        self.timers.set_at_latest(Timer::Discover, now.mono);
    }

    /// A member that was looked for has said this, or nothing is known of it.
    pub(super) fn was_sought(&mut self, node: NodeId, outcome: &Outcome, now: Now) {
        let envelope = outcome.record.as_ref().and_then(|record| record.read(self.network.as_ref()?.id, now.wall).ok());
        let value = envelope.and_then(|envelope| NodeValue::decode(&envelope.value).ok()).unwrap_or_default();
        // It may have been cut off while it was looked for.
        let is_wanted = self.peers.contains_key(&node) && !self.revocations.is_node_revoked(node);
        let endpoints = value
            .endpoints
            .into_iter()
            .filter(|endpoint| is_wanted && may_be_dialled(*endpoint) && !self.is_in_record(node, *endpoint));
        let endpoints: Vec<SocketAddr> = endpoints.collect();
        let mut is_news = false;
        // What it named first is tried first.
        for endpoint in endpoints.into_iter().rev() {
            is_news |= self.told_of(node, endpoint);
        }
        self.counters.count(if is_news { "dht_sought_found" } else { "dht_sought_in_vain" });
        if is_news && self.peers.get(&node).is_some_and(|peer| peer.link.is_none() && peer.dialling.is_none()) {
            self.timers.set(Timer::Connect(node), now.mono);
        }
    }
}
