//! How contact sessions come about, and what goes by them: messages of the DHT, a datagram each.
//!
//! ```text
//!  one side                                    the other
//!     ── link, Hello (features) ─▶  ◀─ Hello ──
//!     ── Contact: our index ─────▶  ◀─ Contact: theirs ──       exporter(lower id's index ‖ the other's)
//!     ═══ sealed datagrams, for an hour ═══════▶                 the link may go
//! ```
//!
//! Whoever is to be asked something, and with whom there is no session, is dialled; that link goes soon after. With whom a link is kept anyhow a
//! session is made beside it. What is longer than a datagram goes by a link.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::link::{Code, Links};
use super::message::{FEATURE_CONTACT, Message};
use super::{Node, Output, Timer, reach};
use crate::contact::{Agreed, Contacts, PLAINTEXT_LEN_MAX};
use crate::dht::place::Contact;
use crate::pki::id::NodeId;
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::time::Now;

/// Label of the exporter (RFC 8446 §7.5).
const EXPORT_LABEL: &[u8] = b"EXPORTER-weir-contact-1";
/// Links that are dialled for contact sessions, those that have served it and linger included.
const DIALS_MAX: usize = 64;
/// Messages that wait for one of them.
const WAITING_MAX: usize = 8;
/// How long such a link stays: what is longer than a datagram, or overtook the session, still comes by it.
const LINGER: Duration = Duration::from_secs(5);
/// How long it may take to come about.
const PATIENCE: Duration = Duration::from_secs(3);

/// A link that was dialled for a session, or a session that is awaited on a link that is there.
#[derive(Debug)]
struct Dial {
    /// None when there is a link to the member already.
    link: Option<LinkId>,
    to: Contact,
    waiting: Vec<Vec<u8>>,
    /// Its session is there.
    has_served: bool,
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    /// Indices that we told on links, and the other side has not answered.
    offered: BTreeMap<LinkId, u32>,
    dials: BTreeMap<NodeId, Dial>,
}

impl<R: Random> Node<R> {
    /// The other end of a link has told what it can do.
    pub(super) fn offer_contact(&mut self, link: LinkId, node: NodeId, links: &mut dyn Links, now: Now) {
        let told = self.peers.get(&node).and_then(|peer| peer.features).unwrap_or(0);
        // Nothing else is said by such sessions so far; and who has another time drops the offer.
        let can = self.discovery.is_some() && told & FEATURE_CONTACT != 0 && !self.is_time_only(link);
        if !can || self.meetings.offered.contains_key(&link) || self.contacts.has(node, now.mono) {
            return;
        }
        let index = self.contacts.draw_index(&mut self.random);
        self.meetings.offered.insert(link, index);
        self.say(link, &Message::Contact { index }, links);
    }

    /// The other end of a link has drawn an index.
    pub(super) fn heard_contact(&mut self, link: LinkId, theirs: u32, links: &mut dyn Links, now: Now) {
        if self.discovery.is_none() {
            return self.counters.count("contact_unwanted");
        }
        let (Some(own), Some(node)) = (self.id(), self.links.get(&link).and_then(|held| held.peer)) else { return };
        let ours = match self.meetings.offered.remove(&link) {
            Some(ours) => ours,
            None => {
                let index = self.contacts.draw_index(&mut self.random);
                self.say(link, &Message::Contact { index }, links);
                index
            }
        };
        // Another pair of indices is another secret: keys never come twice, however often one link is asked.
        let (lower, higher) = if own < node { (ours, theirs) } else { (theirs, ours) };
        let context = [lower.to_be_bytes(), higher.to_be_bytes()].concat();
        let (Some(remote), Ok(secret)) = (links.remote(link), links.export(link, EXPORT_LABEL, &context)) else {
            return self.misspoke(link, links, now);
        };
        self.contacts.agree(own, node, &Agreed { secret, ours, theirs, remote }, now.mono);
        self.contact_agreed(node, remote, links, now);
    }

    /// What was offered on a link was not heard, for the other end had another time than we.
    pub(super) fn withdraw_offer(&mut self, link: LinkId) {
        self.meetings.offered.remove(&link);
    }

    fn contact_agreed(&mut self, node: NodeId, remote: SocketAddr, links: &mut dyn Links, now: Now) {
        let contact = Contact { node, address: remote };
        self.discovery_met(contact, now);
        self.reach_met(now);
        let Some(dial) = self.meetings.dials.get_mut(&node) else { return };
        dial.has_served = true;
        let (to, waiting) = (dial.to, std::mem::take(&mut dial.waiting));
        match dial.link {
            Some(_) => self.timers.set(Timer::Contact(node), now.mono + LINGER),
            None => {
                self.meetings.dials.remove(&node);
                self.timers.cancel(Timer::Contact(node));
            }
        }
        for message in waiting {
            self.send_rpc(to, message, links, now);
        }
    }

    /// Sends a message to a member: by the session with it, by a link, or by one that is dialled for it.
    pub(super) fn send_rpc(&mut self, to: Contact, message: Vec<u8>, links: &mut dyn Links, now: Now) {
        if Some(to.node) == self.id() || self.revocations.is_node_revoked(to.node) {
            return self.discovery_unreachable(to);
        }
        let is_short = message.len() <= PLAINTEXT_LEN_MAX;
        if is_short && let Some((remote, datagram)) = self.contacts.seal(to.node, &message, now.mono) {
            self.outputs.push_back(Output::Datagram(remote, datagram));
            return;
        }
        let link = self.peers.get(&to.node).and_then(|peer| Some((peer.link?, peer.features?)));
        match link {
            Some((link, features)) if features & FEATURE_CONTACT != 0 => {
                self.say(link, &Message::Rpc(message), links);
                self.offer_contact(link, to.node, links, now);
            }
            Some(_) => self.discovery_unreachable(to),
            None => self.dial_for_contact(to, message, links, now),
        }
    }

    fn dial_for_contact(&mut self, to: Contact, message: Vec<u8>, links: &mut dyn Links, now: Now) {
        if let Some(dial) = self.meetings.dials.get_mut(&to.node).filter(|dial| !dial.has_served) {
            // The same comes again while nothing is answered.
            if dial.waiting.len() < WAITING_MAX && !dial.waiting.contains(&message) {
                dial.waiting.push(message);
            }
            return;
        }
        if self.meetings.dials.len() >= DIALS_MAX {
            let served = self.meetings.dials.iter().find(|(_, dial)| dial.has_served).map(|(node, _)| *node);
            let Some(node) = served else { return self.counters.count("contact_busy") };
            self.end_meeting(node, links);
        }
        let is_dialled = self.peers.get(&to.node).is_some_and(|peer| peer.link.is_some() || peer.dialling.is_some());
        let link = match is_dialled {
            true => None,
            false => match self.dial(Alpn::Member, to.node, to.address, links) {
                Ok(link) => Some(link),
                Err(why) => {
                    tracing::debug!(peer = %to.node.short(), why, "no link for a contact session");
                    return self.discovery_unreachable(to);
                }
            },
        };
        let dial = Dial { link, to, waiting: vec![message], has_served: false };
        self.meetings.dials.insert(to.node, dial);
        self.timers.set(Timer::Contact(to.node), now.mono + PATIENCE);
    }

    /// Its time is over: of one that came to nothing, or of one that has served.
    pub(super) fn contact_timed_out(&mut self, node: NodeId, links: &mut dyn Links) {
        if let Some(dial) = self.meetings.dials.get(&node).filter(|dial| !dial.has_served) {
            let to = dial.to;
            self.counters.count("contact_timeout");
            self.discovery_unreachable(to);
        }
        self.end_meeting(node, links);
    }

    fn end_meeting(&mut self, node: NodeId, links: &mut dyn Links) {
        self.timers.cancel(Timer::Contact(node));
        let Some(dial) = self.meetings.dials.remove(&node) else { return };
        // The link may have become one that is kept, or be all that we have: whoever was found last is the way to all others.
        if let Some(link) = dial.link.filter(|link| !self.keeps_link(node) && !self.is_only_link(*link)) {
            self.drop_link(link, Code::Done, "the contact session is there", links);
        }
    }

    /// A link is gone.
    pub(super) fn contact_link_gone(&mut self, link: LinkId) {
        self.meetings.offered.remove(&link);
        let of_link = self.meetings.dials.iter().find(|(_, dial)| dial.link == Some(link)).map(|(node, _)| *node);
        let Some(node) = of_link else { return };
        // It was there, and one of us dials again: the session comes by that link, or the time for it ends.
        let is_there = self.links.get(&link).is_some_and(|held| held.since.is_some()) && self.keeps_link(node);
        if let Some(dial) = self.meetings.dials.get_mut(&node).filter(|dial| is_there && !dial.has_served) {
            dial.link = None;
            return;
        }
        let Some(dial) = self.meetings.dials.remove(&node) else { return };
        self.timers.cancel(Timer::Contact(dial.to.node));
        if !dial.has_served {
            self.discovery_unreachable(dial.to);
        }
    }

    /// A sealed datagram for us, which came from this address.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], links: &mut dyn Links, now: Now) {
        match self.contacts.open(bytes, now.mono) {
            Ok(opened) if opened.plaintext.first() == Some(&reach::FIRST_BYTE) => self.reach_said(&opened, from, now),
            Ok(opened) => {
                let contact = Contact { node: opened.node, address: opened.remote };
                self.discovery_said(contact, &opened.plaintext, links, now);
            }
            Err(error) => self.counters.count(error.name()),
        }
        self.settle(links);
    }

    /// A message came by a link.
    pub(super) fn heard_rpc(&mut self, link: LinkId, message: &[u8], links: &mut dyn Links, now: Now) {
        let node = self.links.get(&link).and_then(|held| held.peer);
        if let (Some(node), Some(address)) = (node, links.remote(link)) {
            self.discovery_said(Contact { node, address }, message, links, now);
        }
    }

    /// We are a member no more, so with nobody.
    pub(super) fn forget_contacts(&mut self) {
        self.contacts = Contacts::default();
        for node in std::mem::take(&mut self.meetings).dials.into_keys() {
            self.timers.cancel(Timer::Contact(node));
        }
    }

    /// Nothing is said to this member any more.
    pub(super) fn part_contact(&mut self, node: NodeId) {
        self.contacts.forget(node);
        self.reach.forget(node);
        self.meetings.dials.remove(&node);
        self.timers.cancel(Timer::Contact(node));
    }
}
