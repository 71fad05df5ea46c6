//! Peer exchange: members that have a link tell each other where others are, and where they are themselves on networks that both may be on.
//!
//! Nothing of it is believed. An address of a member that is known is tried after all others, and one of somebody unknown is a candidate like any.
//! Of others only public addresses are told: a private one means nothing elsewhere, and whoever is behind it may not want it known.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidates::{Offered, Source, may_be_dialled};
use super::message::{FEATURE_PEERS, Message, PEERS_HERE_MAX, PEERS_OTHERS_MAX, Peers};
use super::{Links, Node, Timer};
use crate::dht::place::{Contact, is_public};
use crate::pki::id::NodeId;
use crate::quic::LinkId;
use crate::random::{Random, draw};
use crate::time::Now;

/// Between two tellings on one link that are listened to. Ours: a fifth of the time after which members greet each other again.
const HEARD_GAP: Duration = Duration::from_secs(60);

impl<R: Random> Node<R> {
    /// Tells the other end of a link where others are.
    pub(super) fn tell_peers(&mut self, link: LinkId, node: NodeId, links: &mut dyn Links) {
        if self.peers.get(&node).and_then(|peer| peer.features).unwrap_or(0) & FEATURE_PEERS == 0 {
            return;
        }
        let linked = self.peers.iter().filter(|(other, _)| **other != node);
        let linked =
            linked.filter_map(|(other, peer)| Some(Contact { node: *other, address: links.remote(peer.link?)? }));
        let mut others: Vec<Contact> = linked.filter(|contact| is_public(contact.address.ip())).collect();
        draw(&mut others, PEERS_OTHERS_MAX, &mut self.random);
        let here: Vec<SocketAddr> = self.settings.local_endpoints.iter().take(PEERS_HERE_MAX).copied().collect();
        if !(here.is_empty() && others.is_empty()) {
            self.say(link, &Message::Peers(Peers { here, others }), links);
        }
    }

    /// The other end of a link tells where others are.
    pub(super) fn heard_peers(&mut self, link: LinkId, peers: Peers, links: &mut dyn Links, now: Now) {
        let Some(held) = self.links.get_mut(&link) else { return };
        let Some(node) = held.peer else { return };
        let Peers { here, others } = peers;
        if here.len() > PEERS_HERE_MAX || others.len() > PEERS_OTHERS_MAX {
            return self.misspoke(link, links, now);
        }
        if held.heard_peers.is_some_and(|at| now.mono < at + HEARD_GAP) {
            return self.counters.count("peers_early");
        }
        let is_first = held.heard_peers.replace(now.mono).is_none();
        for endpoint in here.into_iter().filter(|endpoint| may_be_dialled(*endpoint)) {
            if !self.is_in_record(node, endpoint) {
                self.peer(node).heard_of(endpoint);
            }
        }
        for Contact { node, address } in others {
            if Some(node) == self.id() || self.revocations.is_node_revoked(node) || !is_public(address.ip()) {
                self.counters.count("peers_unwanted");
            } else if self.peers.contains_key(&node) {
                self.heard_where(node, address, now);
            } else if !is_first {
                // On a new link the records of all are on their way; who is not among them is worth asking who it is.
                match self.candidates.offer(Source::Exchange, address, now) {
                    Offered::New => self.counters.count("peers_news"),
                    Offered::Known => {}
                    Offered::NoAddress => self.counters.count("candidate_no_address"),
                    Offered::Full => self.counters.count("candidate_full"),
                }
            }
        }
        self.schedule_knocks();
    }

    /// Whether a member's own record says that it is there.
    pub(super) fn is_in_record(&self, node: NodeId, address: SocketAddr) -> bool {
        self.directory.entry(node).is_some_and(|entry| entry.record.endpoints.contains(&address))
    }

    /// Somebody says where a member is that is known already.
    fn heard_where(&mut self, node: NodeId, address: SocketAddr, now: Now) {
        let is_in_record = self.is_in_record(node, address);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !is_in_record && may_be_dialled(address) && peer.heard_of(address) {
            let is_missed = peer.link.is_none() && peer.dialling.is_none() && peer.has_failed(1);
            self.counters.count("peers_news");
            if is_missed {
                self.timers.set_at_latest(Timer::Connect(node), now.mono);
            }
        }
    }
}
