//! Links by QUIC itself over a network of datagrams: what [`links`](super::links) is a model of.
//!
//! ```text
//!  Node ◀─DriverLinks─▶ Driver ══ datagrams ══▶ [ half a round trip · lost · cut ] ══▶ Driver ◀─DriverLinks─▶ Node
//! ```
//!
//! Everything that the process around a node has is here, but for sockets and threads: quinn-proto, rustls, the groups, real chains of real
//! certificates. Only TLS draws randomness of its own, for keys and nonces, and those change neither a length nor a moment: such a run can
//! be repeated from its seed as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use zeroize::Zeroizing;

use super::links::{HANDSHAKE_CPU, ModelLinks, Net, Place};
use super::queue::Due;
use super::{Machine, Site, World};
use crate::contact::FIRST_BYTE;
use crate::membership::Membership;
use crate::node::Links;
use crate::node::driver_links::DriverLinks;
use crate::pki::id::sha256;
use crate::quic::{CloseReason, Config, Driver, Event, LeafIdentity, Limits, LinkId, Side};
use crate::random::{Random, SeededRandom};
use crate::time::Now;

/// Headers around a datagram: UDP and IPv6 (RFC 768, RFC 8200 §3).
const HEADERS_LEN: u64 = 48;

/// A datagram under way.
#[derive(Debug)]
pub(super) struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<u8>,
    bytes: Vec<u8>,
}

impl Flight {
    /// A datagram of a contact session.
    pub(super) const fn sealed(from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) -> Self {
        Self { from, to, ecn: None, bytes }
    }
}

/// One machine's end of all its links, in one life of its control plane.
struct Station {
    driver: Driver,
    /// Links that others began.
    accepted: BTreeSet<LinkId>,
    /// Messages that the costs have in them already.
    messages: u64,
}

/// The drivers of all machines that run.
#[derive(Default)]
pub(super) struct Wire {
    seed: u64,
    stations: BTreeMap<Site, Station>,
    train: Vec<u8>,
}

impl Wire {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// A machine's control plane starts.
    pub(super) fn open(&mut self, site: Site, accept_legacy_kyber: bool, random: &mut SeededRandom) {
        // The same in all its lives, so that a reset of one is believed about the one before.
        let key = sha256("weir-sim-quic", &[&self.seed.to_be_bytes(), &site.0.to_be_bytes()]);
        let (key, limits) = (Zeroizing::new(key), Limits::default());
        let config = Config { identity: None, membership: None, key, accept_legacy_kyber, limits };
        let driver = Driver::new(config, &mut SeededRandom::new(random.u64()));
        self.stations.insert(site, Station { driver, accepted: BTreeSet::new(), messages: 0 });
    }

    /// It is gone, and says nothing any more.
    pub(super) fn close(&mut self, site: Site) {
        self.stations.remove(&site);
    }

    /// Links of a machine, those that are closing included.
    pub(super) fn links(&self, site: Site) -> usize {
        self.stations.get(&site).map_or(0, |station| station.driver.links())
    }

    pub(super) fn next_deadline(&self, site: Site) -> Option<Instant> {
        self.stations.get(&site).and_then(|station| station.driver.next_deadline())
    }

    pub(super) fn driver(&mut self, site: Site) -> Option<&mut Driver> {
        self.stations.get_mut(&site).map(|station| &mut station.driver)
    }
}

/// The links of a site, for whoever acts there.
pub(super) fn links_of<'a>(net: &'a mut Net, wire: &'a mut Option<Wire>, site: Site, now: Now) -> Box<dyn Links + 'a> {
    match wire.as_mut().and_then(|wire| wire.driver(site)) {
        Some(driver) => Box::new(DriverLinks { driver, now }),
        None => Box::new(ModelLinks { net, site }),
    }
}

impl Place {
    /// What an event says of costs, and of how links end. The accepting side has done its part of a handshake when it answered, the dialling
    /// one when it judged the other's chain.
    fn note(&mut self, event: &Event, was_accepted: bool) {
        let is_handshake = match event {
            Event::Opening { .. } | Event::Connected { side: Side::Dialled, .. } => true,
            Event::Closed { reason, .. } => {
                *self.ended.entry(reason.name()).or_default() += 1;
                matches!(reason, CloseReason::Refused(_)) && !was_accepted
            }
            Event::Connected { side: Side::Accepted, .. } | Event::Message { .. } => false,
        };
        if is_handshake {
            self.costs.handshakes += 1;
            self.costs.cpu += HANDSHAKE_CPU;
        }
    }
}

impl World {
    /// The moment at a machine.
    pub(super) fn moment(&mut self, site: Site) -> Now {
        let (mono, wall) = self.clocks(site);
        self.machines[site.0].node.as_mut().map_or(Now { mono, wall }, |node| node.now(mono, wall))
    }

    /// The links of a puppet are its former node's no more: new ones, with the same certificate.
    pub(super) fn open_puppet(&mut self, site: Site) {
        let Some(wire) = &mut self.wire else { return };
        wire.open(site, !self.legacy_kyber.is_empty(), &mut self.random);
        let mut store = self.machines[site.0].store.clone();
        let own = Membership::load(&mut store, &mut self.random).ok().flatten();
        let identity = own.and_then(|own| LeafIdentity::new(&own.chain, &own.leaf).ok());
        let (Some(driver), Some(identity)) = (wire.driver(site), identity) else { return };
        driver.set_identity(identity);
        if let Some((node, trust)) = &self.net.places[site.0].trust {
            driver.set_membership(*node, trust.clone());
        }
    }

    /// A datagram reaches a machine.
    pub(super) fn arrive(&mut self, site: Site, flight: &Flight) {
        let place = &self.net.places[site.0];
        if place.is_asleep || place.firewall.as_ref().is_some_and(|sent_to| !sent_to.contains(&flight.from)) {
            return;
        }
        // By the byte that real sockets go by.
        if flight.bytes.first() == Some(&FIRST_BYTE) {
            return self
                .with_node(site, |node, links, now| node.handle_datagram(flight.from, &flight.bytes, links, now));
        }
        let now = self.moment(site);
        if let Some(driver) = self.wire.as_mut().and_then(|wire| wire.driver(site)) {
            driver.handle_datagram(now, flight.from, Some(flight.to.ip()), flight.ecn, &flight.bytes);
        }
        self.carry_out(site);
    }

    /// Takes what a machine's driver has to tell; `false` when that is nothing.
    pub(super) fn hear(&mut self, site: Site) -> bool {
        if self.wire.is_none() {
            return false;
        }
        let now = self.moment(site);
        let Some(station) = self.wire.as_mut().and_then(|wire| wire.stations.get_mut(&site)) else { return false };
        let (Machine { node, heard, .. }, place) = (&mut self.machines[site.0], &mut self.net.places[site.0]);
        let Station { driver, accepted, messages } = station;
        driver.handle_timeout(now);
        let mut any = false;
        while let Some(event) = driver.poll_event() {
            any = true;
            let was_accepted = match &event {
                Event::Opening { link, .. } => accepted.insert(*link),
                Event::Closed { link, .. } => accepted.remove(link),
                Event::Connected { .. } | Event::Message { .. } => false,
            };
            place.note(&event, was_accepted);
            match node {
                Some(node) => node.handle_link(event, &mut DriverLinks { driver, now }, now),
                None => heard.push(event),
            }
        }
        let said = driver.counters().messages_out;
        place.costs.messages += said - std::mem::replace(messages, said);
        any
    }

    /// Sends what a machine's driver has to send.
    pub(super) fn transmit(&mut self, site: Site) {
        if self.wire.is_none() {
            return;
        }
        let now = self.moment(site);
        let (Some(wire), net) = (&mut self.wire, &mut self.net) else { return };
        let Wire { stations, train, .. } = wire;
        let Some(Station { driver, .. }) = stations.get_mut(&site) else { return };
        while let Some(transmit) = driver.poll_transmit(now, train) {
            for bytes in train[..transmit.len].chunks(transmit.segment_len.unwrap_or(transmit.len).max(1)) {
                let flight =
                    Flight { from: net.address(site), to: transmit.to, ecn: transmit.ecn, bytes: bytes.to_vec() };
                net.launch(site, flight);
            }
        }
    }
}

impl Net {
    pub(super) fn launch(&mut self, from: Site, flight: Flight) {
        self.places[from.0].costs.bytes += HEADERS_LEN + flight.bytes.len() as u64;
        if let Some(sent_to) = &mut self.places[from.0].firewall {
            sent_to.insert(flight.to);
        }
        let Some(to) = self.site_at(flight.to).filter(|to| self.reaches(from, *to)) else { return };
        let (loss, repeat) = (self.faults.loss, self.faults.repeat);
        if self.draw(loss) {
            return;
        }
        let arrives = self.at + self.rtt(from, to) / 2;
        if self.draw(repeat) {
            let Flight { from, to: address, ecn, ref bytes } = flight;
            let again = Flight { from, to: address, ecn, bytes: bytes.clone() };
            self.queue.push(arrives, Due::Quic(to, Box::new(again)));
        }
        self.queue.push(arrives, Due::Quic(to, Box::new(flight)));
    }
}
