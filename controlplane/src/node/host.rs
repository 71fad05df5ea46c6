//! This host: its addresses change, and it sleeps and wakes.
//!
//! What stands may be of no use then, and nothing says so: a link whose local address went is silent until its idle time is over. So each
//! link is asked for a sign of life, and who gives none soon is dialled anew; whoever could not be reached is tried at once.

use std::net::SocketAddr;
use std::time::Duration;

use super::link::Code;
use super::message::Message;
use super::{Links, Node, Timer};
use crate::pki::id::NodeId;
use crate::quic::LinkId;
use crate::random::Random;
use crate::time::Now;

/// How long a link may take to give a sign of life: some probe timeouts of the longest paths (RFC 9002 §6.2), and a fifteenth of its idle time.
const SIGN_PATIENCE: Duration = Duration::from_secs(2);

impl<R: Random> Node<R> {
    /// Addresses or interfaces of this host came or went. `endpoints` is where others may reach us now.
    pub fn handle_host_changed(&mut self, endpoints: Vec<SocketAddr>, links: &mut dyn Links, now: Now) {
        self.counters.count("host_changed");
        if self.settings.endpoints != endpoints {
            self.settings.endpoints = endpoints;
            self.renew_record(now);
        }
        self.look_around(links, now);
        self.settle(links);
    }

    /// This host has slept: others have given us up meanwhile, and certificates may have ended.
    pub fn handle_resumed(&mut self, links: &mut dyn Links, now: Now) {
        self.counters.count("resumed");
        self.timers.set(Timer::Upkeep, now.mono);
        self.look_around(links, now);
        self.settle(links);
    }

    /// Looks at once after everything that would be noticed by and by.
    fn look_around(&mut self, links: &mut dyn Links, now: Now) {
        let standing: Vec<LinkId> = self.peers.values().filter_map(|peer| peer.link).collect();
        for link in standing {
            self.timers.set(Timer::Sign(link), now.mono + SIGN_PATIENCE);
            self.say(link, &Message::Ping(0), links);
        }
        self.peers.values_mut().for_each(super::Peer::begins_anew);
        let missing = self.peers.iter().filter(|(_, peer)| peer.link.is_none() && peer.dialling.is_none());
        let missing: Vec<NodeId> = missing.map(|(node, _)| *node).collect();
        for node in missing {
            self.timers.set(Timer::Connect(node), now.mono);
        }
        self.candidates.hurry(now.mono);
        self.schedule_knocks();
    }

    /// A link has given a sign of life.
    pub(super) fn gave_sign(&mut self, link: LinkId) {
        self.timers.cancel(Timer::Sign(link));
    }

    /// It has given none: another one takes its place.
    pub(super) fn gave_no_sign(&mut self, link: LinkId, links: &mut dyn Links, now: Now) {
        if self.links.contains_key(&link) {
            self.counters.count("link_gave_no_sign");
            self.fell_silent(link);
            self.fail_link(link, Code::Failed, "no sign of life after this host changed or slept", links, now);
        }
    }
}
