//! Whether somebody keeps revocation lists from us: an issuer's node says in the DHT which lists it holds.
//!
//! Lists come by neighbours, and all of a node's may lie, or be cut off with it. A digest lies with twenty others that a hash has chosen. Who is behind it
//! asks everybody it has a link with, and dials an issuer.

use std::time::{Duration, Instant};

use super::link::Links;
use super::message::{Ask, Message};
use super::{Node, Timer};
use crate::codec;
use crate::dht::Outcome;
use crate::dht::record::{Kind, RevocationsValue, revocations_key};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;

/// How long until an issuer's digest is looked for again: without a fresh list, and with one. Ours: half of the time that a list is fresh, and often
/// enough beside the day that a certificate lasts.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(3600)];

/// When that is due; at once after a start.
#[derive(Debug, Default)]
pub(super) struct Due(Option<Instant>);

impl<R: Random> Node<R> {
    /// What an issuer's node says of the lists that it holds. Versions only rise, so their sum tells which of two holds more.
    pub(super) fn lists_held(&self) -> RevocationsValue {
        RevocationsValue {
            version: self.revocations.versions().map(|(_, version)| version).sum(),
            hash: self.revocations.digest(),
            size: u32::try_from(codec::encode(&self.revocations.lists()).len()).unwrap_or(u32::MAX),
        }
    }

    /// Looks for an issuer's digest, when that is due.
    pub(super) fn look_after_lists(&mut self, now: Now) {
        if self.lists_due.0.is_some_and(|at| now.mono < at) {
            return;
        }
        let issuers = self.other_issuers();
        let (Some(discovery), Some(network)) = (&mut self.discovery, &self.network) else { return };
        if issuers.is_empty() || !discovery.dht.is_joined() {
            return;
        }
        let node = issuers[(self.random.u64() % issuers.len() as u64) as usize];
        // With every place for look-ups taken its turn comes with the next upkeep.
        let Ok(id) = discovery.dht.get(Kind::Revocations, revocations_key(network.id, node), now) else { return };
        discovery.lists.insert(id, node);
        let [soon, later] = LOOK_AGAIN;
        let wait = if self.revocations.is_fresh(now.wall) { later } else { soon };
        self.lists_due.0 = Some(now.mono + wait.mul_f64(0.75 + 0.5 * self.random.unit()));
        self.timers.set_at_latest(Timer::Discover, now.mono);
    }

    /// An issuer's node holds these, as far as anybody said.
    pub(super) fn lists_told(&mut self, node: NodeId, outcome: &Outcome, links: &mut dyn Links, now: Now) {
        let envelope = outcome.record.as_ref().and_then(|record| record.read(self.network.as_ref()?.id, now.wall).ok());
        let Some(told) = envelope.and_then(|envelope| RevocationsValue::decode(&envelope.value).ok()) else { return };
        let held = self.lists_held();
        if told.hash == held.hash || told.version <= held.version {
            return;
        }
        self.counters.count("lists_behind");
        tracing::warn!(issuer = %node.short(), "there are newer revocation lists than anybody told this node");
        self.say_to_all(&Message::Ask(Ask::Revocations), None, links);
        self.dial_issuer(links, now);
    }
}
