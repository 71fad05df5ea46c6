//! A network of drivers: datagrams take time, get lost, doubled and overtaken, all from a seed. Only TLS draws randomness of its own.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::pki::fixture::{NETWORK, NOW, Network, leaf_key, node};
use crate::pki::id::NodeId;
use crate::pki::revocation::RevocationSet;
use crate::pki::trust::{SharedTrust, Trust};
use crate::pki::verifier::Member;
use crate::quic::{
    AdmissionKey, Alpn, CloseReason, Config, DialTarget, Driver, Event, LeafIdentity, Limits, LinkId, Side, Transmit,
};
use crate::random::{Random as _, SeededRandom};
use crate::time::Now;

/// One way.
pub(super) const LATENCY: Duration = Duration::from_millis(10);

/// What the network does to datagrams, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Delayed by up to twice the latency, so that others overtake it.
    pub(super) late: u64,
}

/// A datagram under way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Option<u8>,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Node {
    pub(super) driver: Driver,
    pub(super) trust: Option<SharedTrust>,
    pub(super) address: SocketAddr,
    pub(super) events: Vec<Event>,
    /// Sent on every link as soon as it may carry something.
    pub(super) greeting: Option<Vec<u8>>,
    /// Events are left where they are.
    pub(super) deaf: bool,
}

pub(super) struct World {
    pub(super) now: Now,
    pub(super) network: Network,
    pub(super) nodes: Vec<Node>,
    pub(super) homes: HashMap<SocketAddr, usize>,
    pub(super) weather: Weather,
    /// Whether drivers accept the draft group.
    pub(super) legacy: bool,
    pub(super) log: Vec<Flight>,
    pub(super) random: SeededRandom,
    /// What came to addresses where none of the nodes lives.
    pub(super) unclaimed: Vec<Flight>,
    flying: BTreeMap<(Instant, u64), Flight>,
    sent: u64,
}

pub(super) fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index + 1).unwrap()], 4500))
}

pub(super) fn member(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap()
}

/// A member's id.
pub(super) fn id(index: usize) -> NodeId {
    node(member(index))
}

pub(super) fn identity(network: &Network, index: usize) -> LeafIdentity {
    let chain: Vec<Vec<u8>> = network.chain(member(index)).iter().map(|der| der.to_vec()).collect();
    LeafIdentity::new(&chain, &leaf_key(member(index))).unwrap()
}

impl World {
    /// So many members.
    pub(super) fn new(members: usize) -> Self {
        Self::with(members, Limits::default())
    }

    pub(super) fn with(members: usize, limits: Limits) -> Self {
        let mut world = Self {
            now: Now { mono: Instant::now(), wall: NOW },
            network: Network::new(),
            nodes: Vec::new(),
            homes: HashMap::new(),
            weather: Weather::default(),
            legacy: false,
            log: Vec::new(),
            random: SeededRandom::new(1),
            unclaimed: Vec::new(),
            flying: BTreeMap::new(),
            sent: 0,
        };
        for index in 0..members {
            world.add(index, true, limits);
        }
        world
    }

    /// One more node: a member, or one who has nothing yet.
    pub(super) fn add(&mut self, index: usize, is_member: bool, limits: Limits) {
        let trust = is_member.then(|| {
            let revoked = Arc::new(RevocationSet::default());
            let bundle = Arc::new(self.network.bundle.clone());
            SharedTrust::new(Trust { network: NETWORK, bundle, revoked }, self.now.wall)
        });
        let driver = self.driver(index, trust.clone(), limits);
        let address = address(index);
        self.homes.insert(address, self.nodes.len());
        self.nodes.push(Node { driver, trust, address, events: Vec::new(), greeting: None, deaf: false });
    }

    /// A node as it comes from a start.
    pub(super) fn driver(&self, index: usize, trust: Option<SharedTrust>, limits: Limits) -> Driver {
        let config = Config {
            identity: trust.is_some().then(|| identity(&self.network, index)),
            membership: trust.map(|trust| (id(index), trust)),
            key: Zeroizing::new([member(index); 32]),
            accept_legacy_kyber: self.legacy,
            limits,
        };
        let mut driver = Driver::new(config, &mut SeededRandom::new(u64::from(member(index))));
        driver.set_admission(Some(AdmissionKey::new(&[9; 16])));
        driver
    }

    pub(super) fn dial(&mut self, from: usize, to: usize, alpn: Alpn) -> LinkId {
        self.dial_at(from, to, alpn, address(to))
    }

    pub(super) fn dial_at(&mut self, from: usize, to: usize, alpn: Alpn, remote: SocketAddr) -> LinkId {
        let now = self.now;
        self.nodes[from].driver.dial(alpn, &DialTarget::member(id(to)), remote, now).unwrap()
    }

    /// Dials and waits until both sides are connected.
    pub(super) fn connect(&mut self, from: usize, to: usize, alpn: Alpn) -> (LinkId, LinkId) {
        let ours = self.dial(from, to, alpn);
        let before = self.nodes[to].events.len();
        self.run_until(Duration::from_secs(30), |world| {
            world.connected(from, ours).is_some() && world.accepted_since(to, before).is_some()
        });
        (ours, self.accepted_since(to, before).unwrap())
    }

    fn accepted_since(&self, node: usize, before: usize) -> Option<LinkId> {
        self.nodes[node].events[before..].iter().find_map(|event| match event {
            Event::Connected { link, side: Side::Accepted, .. } => Some(*link),
            _ => None,
        })
    }

    /// The link's event of being connected.
    pub(super) fn connected(&self, node: usize, of: LinkId) -> Option<&Event> {
        self.nodes[node].events.iter().find(|event| matches!(event, Event::Connected { link, .. } if *link == of))
    }

    pub(super) fn peer(&self, node: usize, of: LinkId) -> Option<&Member> {
        match self.connected(node, of) {
            Some(Event::Connected { peer, .. }) => peer.as_deref(),
            _ => None,
        }
    }

    pub(super) fn closed(&self, node: usize, of: LinkId) -> Option<&CloseReason> {
        self.nodes[node].events.iter().find_map(|event| match event {
            Event::Closed { link, reason } if *link == of => Some(reason),
            _ => None,
        })
    }

    /// Why the only link of a node that ended did.
    pub(super) fn only_end(&self, node: usize) -> &CloseReason {
        let mut ends = self.nodes[node].events.iter().filter_map(|event| match event {
            Event::Closed { reason, .. } => Some(reason),
            _ => None,
        });
        let end = ends.next().expect("an end");
        assert!(ends.next().is_none(), "more than one end");
        end
    }

    pub(super) fn messages(&self, node: usize, of: LinkId) -> Vec<&[u8]> {
        let events = self.nodes[node].events.iter();
        events
            .filter_map(|event| match event {
                Event::Message { link, bytes } if *link == of => Some(&bytes[..]),
                _ => None,
            })
            .collect()
    }

    pub(super) fn send(&mut self, node: usize, link: LinkId, message: &[u8]) {
        self.nodes[node].driver.send(link, message).unwrap();
    }

    /// Runs for so long.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while self.turn(end) {}
        self.now = end;
    }

    /// Runs until `done`; it must come about within `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now.plus(limit);
        self.flush();
        while !done(self) {
            assert!(self.turn(end), "not within {limit:?}");
        }
    }

    /// One step of time, if there is one before `end`.
    fn turn(&mut self, end: Now) -> bool {
        self.flush();
        let arrival = self.flying.keys().next().map(|&(at, _)| at);
        let due = self.nodes.iter().filter_map(|node| node.driver.next_deadline()).min();
        let Some(next) = [arrival, due].into_iter().flatten().min().filter(|next| *next <= end.mono) else {
            return false;
        };
        // The wall stands still within a run; tests that need it move it.
        self.now.mono = next.max(self.now.mono);
        let later = self.flying.split_off(&(self.now.mono + Duration::from_nanos(1), 0));
        for (_, flight) in std::mem::replace(&mut self.flying, later) {
            self.deliver(&flight);
        }
        let now = self.now;
        for node in &mut self.nodes {
            node.driver.handle_timeout(now);
        }
        self.flush();
        true
    }

    pub(super) fn deliver(&mut self, flight: &Flight) {
        let now = self.now;
        let Some(&home) = self.homes.get(&flight.to) else {
            self.unclaimed.push(flight.clone());
            return;
        };
        let driver = &mut self.nodes[home].driver;
        driver.handle_datagram(now, flight.from, Some(flight.to.ip()), flight.ecn, &flight.bytes);
    }

    /// Takes what the drivers have to give.
    pub(super) fn flush(&mut self) {
        let mut buf = Vec::new();
        for index in 0..self.nodes.len() {
            loop {
                let (now, node) = (self.now, &mut self.nodes[index]);
                if !node.deaf
                    && let Some(event) = node.driver.poll_event()
                {
                    let link = match &event {
                        Event::Opening { link, .. } => Some(*link),
                        Event::Connected { link, side: Side::Dialled, .. } => Some(*link),
                        _ => None,
                    };
                    if let (Some(link), Some(greeting)) = (link, node.greeting.clone()) {
                        node.driver.send(link, &greeting).unwrap();
                    }
                    node.events.push(event);
                    continue;
                }
                let Some(transmit) = node.driver.poll_transmit(now, &mut buf) else { break };
                let from = node.address;
                self.launch(from, &transmit, &buf);
            }
        }
    }

    pub(super) fn launch(&mut self, from: SocketAddr, transmit: &Transmit, buf: &[u8]) {
        for bytes in buf[..transmit.len].chunks(transmit.segment_len.unwrap_or(transmit.len).max(1)) {
            let flight = Flight { from, to: transmit.to, ecn: transmit.ecn, bytes: bytes.to_vec() };
            self.log.push(flight.clone());
            if self.chance(self.weather.lost) {
                continue;
            }
            for _ in 0..=u8::from(self.chance(self.weather.doubled)) {
                let late = if self.chance(self.weather.late) { 2 * LATENCY } else { Duration::ZERO };
                self.sent += 1;
                self.flying.insert((self.now.mono + LATENCY + late, self.sent), flight.clone());
            }
        }
    }

    /// Marks what is under way, or does not.
    pub(super) fn mark_all(&mut self, mark: bool) {
        self.flying.values_mut().filter(|_| mark).for_each(|flight| flight.ecn = Some(0b11));
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        thousandths > 0 && self.random.u64() % 1000 < thousandths
    }
}
