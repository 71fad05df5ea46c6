//! Whole networks on virtual time: real node machines, real issuers and certificates, and a model of what costs time.
//!
//! ```text
//!                    ┌ World: one clock, one queue, one seed ┐
//!  machine 0         │           machine 1                   │      …
//!   Node ── Links ───┼── model or wire ── Links ── Node      │   certificates judged by the real verifier
//!   Issuer           │                                       │   the real issuer, asked and answered
//!   ModelPlane ──────┼── datagrams ───────── ModelPlane      │   keys, lanes and routes without ciphertext
//!   MemoryStore      │                          MemoryStore  │   what a crash leaves
//! ```
//!
//! Links come in two fidelities, chosen by the constructor; the nodes above them see the same port.
//!
//! | | [`World::new`]: a model | [`World::real`]: QUIC itself |
//! |---|---|---|
//! | handshakes, messages | charged: round trips, bytes, processor time | made: quinn-proto, rustls, real chains, real exporters |
//! | loss | delays | retransmissions and congestion control |
//! | for | an hour of a thousand nodes in minutes | some tens of nodes, and to keep the model honest |
//!
//! `tests/sim/fidelity.rs` runs one life of a network in both and compares. A run of either can be repeated from its seed. What both leave
//! out: real sockets, lane ports, paths that carry short datagrams only, and the time that the node machine itself needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::SessionId;

use crate::api::call::{Answer, Call};
use crate::api::types::Error as ApiError;
use crate::dht::record::ServiceValue;
use crate::dns::publish::Entry;
use crate::dns::server::{Asker, Server};
use crate::issuer::Seat;
use crate::node::directory::Directory;
use crate::node::plane::PlaneInput;
use crate::node::{CallId, Links, Node, Output, Part, Settings};
use crate::pki::id::{NodeId, overlay_address, session_id};
use crate::quic::Event;
use crate::random::{Random, SeededRandom};
use crate::store::{MemoryStore, Store};
use crate::time::{Now, UnixSecs};

mod found;
mod issuers;
mod links;
mod names;
mod plane;
mod queue;
mod roam;
mod streams;
mod wire;

use issuers::Process;
use links::Net;
pub use plane::Roaming;
use plane::{Effect, ModelPlane};
use queue::{Due, Life};
use streams::Stream;
pub use streams::{StreamId, StreamStats};
use wire::{Flight, Wire, links_of};

/// A machine of the network, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub usize);

/// What the network does to messages of links. Datagrams between packet planes are not touched: what a stream loses, keys have lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Share of datagrams that are lost, so that what was in them comes late.
    pub loss: f64,
    /// Share of messages that come twice, which no QUIC does: a peer with a fault of its own. In a real world: of datagrams, as networks do.
    pub repeat: f64,
}

/// What a machine spent on its links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Handshakes, of both sides.
    pub handshakes: u64,
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent, headers of UDP and IPv6 included: handshakes, messages, keep-alives.
    pub bytes: u64,
    /// Processor time of handshakes: charged in both fidelities, measured in none.
    pub cpu: Duration,
}

/// The true time when a world begins.
pub const BEGIN: UnixSecs = UnixSecs(1_796_000_000);
/// When the program was built, as machines of a world know it.
pub const BUILD: UnixSecs = UnixSecs(BEGIN.0 - 30 * 86_400);

/// How long it takes to start a packet plane, after its end or a new configuration.
const PLANE_START: Duration = Duration::from_millis(100);
/// To find a socket again, and to cross it.
const RECONNECT: Duration = Duration::from_millis(10);
const LOCAL: Duration = Duration::from_micros(100);
/// What an issuer needs for an answer: a signature and a write to disk.
const ISSUER_TIME: Duration = Duration::from_millis(2);
/// How often a packet plane looks for idle sessions.
const PLANE_TICK: Duration = Duration::from_secs(5);
/// Worker threads of a packet plane.
const WORKERS: u8 = 2;

/// The clocks of a machine.
#[derive(Clone, Copy, Debug, Default)]
struct Clocks {
    /// Seconds by which the system clock is off.
    off_secs: i64,
    /// How long it slept: its monotonic clock stood still.
    slept: Duration,
}

#[derive(Default)]
struct Machine {
    node: Option<Node<SeededRandom>>,
    life: Life,
    store: MemoryStore,
    has_issuer: bool,
    issuer: Option<Seat<MemoryStore>>,
    issuer_process: Process,
    plane: Option<ModelPlane>,
    plane_life: Life,
    /// What the supervisor was told to run.
    wanted_plane: Option<(Vec<Prefix>, Vec<Prefix>)>,
    clocks: Clocks,
    wake: Option<Duration>,
    /// A machine without a node, whose links a test holds itself.
    is_puppet: bool,
    heard: Vec<Event>,
    /// What came while it slept: its own timers find out about it when it wakes.
    missed: Vec<Event>,
    stores: u64,
    /// Whoever answers questions about names beside the node, and what was answered.
    dns: Option<Server>,
    told_names: BTreeMap<Asker, Vec<u8>>,
}

/// A network of machines.
pub struct World {
    seed: u64,
    epoch: Instant,
    random: SeededRandom,
    net: Net,
    /// What carries links in a real world.
    wire: Option<Wire>,
    machines: Vec<Machine>,
    answers: BTreeMap<CallId, Result<Answer, ApiError>>,
    next_call: u64,
    streams: Vec<Stream>,
    idle_after_s: u32,
    legacy_kyber: Vec<NodeId>,
    /// The part of machines in the DHT, from their next start on.
    discovery: Option<Part>,
    services: Vec<ServiceValue>,
    names: Vec<Entry>,
    authority: Option<found::Authority>,
    /// What enrolled members know of one another.
    known: Option<Directory>,
}

impl World {
    /// An empty one. `latency` is the round trip between two machines.
    pub fn new(seed: u64, latency: impl Fn(Site, Site) -> Duration + 'static) -> Self {
        Self {
            seed,
            // Only differences to it are ever looked at.
            epoch: Instant::now(),
            random: SeededRandom::new(seed),
            net: Net::new(seed, Box::new(latency)),
            wire: None,
            machines: vec![],
            answers: BTreeMap::new(),
            next_call: 0,
            streams: vec![],
            idle_after_s: 0,
            legacy_kyber: vec![],
            discovery: None,
            services: vec![],
            names: vec![],
            authority: None,
            known: None,
        }
    }

    /// The same with links by QUIC itself.
    pub fn real(seed: u64, latency: impl Fn(Site, Site) -> Duration + 'static) -> Self {
        let mut world = Self::new(seed, latency);
        world.wire = Some(Wire::new(seed));
        world
    }

    /// Sessions end after so many seconds without packets, on machines that start from now on; 0 for never.
    pub const fn set_idle(&mut self, secs: u32) {
        self.idle_after_s = secs;
    }

    /// The draft group is for these members, on machines that start from now on.
    pub fn set_legacy_kyber(&mut self, nodes: Vec<NodeId>) {
        self.legacy_kyber = nodes;
    }

    /// Since the world began.
    pub const fn at(&self) -> Duration {
        self.net.at
    }

    /// The true time.
    pub const fn true_time(&self) -> UnixSecs {
        BEGIN.plus(self.net.at)
    }

    /// All machines.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.machines.len()).map(Site)
    }

    /// Adds a machine that is no member of anything. It does not run yet.
    pub fn add_machine(&mut self) -> Site {
        self.machines.push(Machine::default());
        self.net.places.push(links::Place::default());
        Site(self.machines.len() - 1)
    }

    /// Adds a machine with a copy of another's state directory. It does not run yet.
    pub fn copy_machine(&mut self, site: Site) -> Site {
        let copy = self.add_machine();
        self.machines[copy.0].store = self.machines[site.0].store.clone();
        copy
    }

    /// What the network does to messages from now on.
    pub const fn set_faults(&mut self, faults: Faults) {
        self.net.faults = faults;
    }

    /// Cuts the network: machines reach those of their own part only. Whoever is in no part is in one with all the others.
    pub fn cut(&mut self, parts: &[&[Site]]) {
        self.net.places.iter_mut().for_each(|place| place.group = 0);
        for (group, part) in (1..).zip(parts) {
            part.iter().for_each(|site| self.net.places[site.0].group = group);
        }
    }

    /// Makes it whole again.
    pub fn heal(&mut self) {
        self.cut(&[]);
        self.net.severed.clear();
    }

    fn clocks(&self, site: Site) -> (Instant, UnixSecs) {
        let Clocks { off_secs, slept } = self.machines[site.0].clocks;
        let system = UnixSecs(self.true_time().0.saturating_add_signed(off_secs));
        (self.epoch + self.net.at.saturating_sub(slept), system)
    }

    /// Sets a machine's system clock so many seconds off the true time.
    pub fn set_clock(&mut self, site: Site, off_secs: i64) {
        self.machines[site.0].clocks.off_secs = off_secs;
    }

    /// Puts a machine behind a firewall with a memory: what comes from where it has sent nothing is dropped. Links of a model are not seen by it.
    pub fn wall_in(&mut self, site: Site) {
        self.net.places[site.0].firewall = Some(BTreeSet::new());
    }

    /// Makes a machine keep records of members and revocation lists to itself. In a model only.
    pub fn withhold_news(&mut self, site: Site) {
        self.net.places[site.0].withholds_news = true;
    }

    /// A machine sleeps: nothing reaches it, and its monotonic clock stands still.
    pub fn suspend(&mut self, site: Site, long: Duration) {
        self.net.places[site.0].is_asleep = true;
        self.machines[site.0].clocks.slept += long;
        let until = self.net.at + long;
        self.net.queue.push(until, Due::Awake(site));
    }

    /// The node on a machine, while it runs.
    pub fn node(&self, site: Site) -> Option<&Node<SeededRandom>> {
        self.machines[site.0].node.as_ref()
    }

    /// Its id, once it is a member.
    pub fn id(&self, site: Site) -> Option<NodeId> {
        self.node(site).and_then(Node::id)
    }

    /// Its counter of this name.
    pub fn count(&self, site: Site, name: &str) -> u64 {
        self.node(site).map_or(0, |node| node.counters().of(name))
    }

    /// What it spent on links so far.
    pub fn costs(&self, site: Site) -> Costs {
        self.net.places[site.0].costs
    }

    /// How its links ended, by name.
    pub fn ended(&self, site: Site) -> &BTreeMap<&'static str, u64> {
        &self.net.places[site.0].ended
    }

    /// How many links it has, those under way included.
    pub fn links_open(&self, site: Site) -> usize {
        self.wire.as_ref().map_or_else(|| self.net.open(site), |wire| wire.links(site))
    }

    /// How often it wrote to its store.
    pub fn stores(&self, site: Site) -> u64 {
        self.machines[site.0].stores
    }

    /// Requests to its packet plane in this life of it, and how many of them were refused.
    pub fn plane_requests(&self, site: Site) -> (u64, u64) {
        self.machines[site.0].plane.as_ref().map_or((0, 0), |plane| (plane.requests, plane.refused))
    }

    /// Reservations, sessions and open lanes of its packet plane.
    pub fn plane_sizes(&self, site: Site) -> (usize, usize, usize) {
        self.machines[site.0].plane.as_ref().map_or((0, 0, 0), ModelPlane::sizes)
    }

    /// Sessions of its packet plane that seal.
    pub fn sessions(&self, site: Site) -> usize {
        self.machines[site.0].plane.as_ref().map_or(0, |plane| plane.active(self.net.at))
    }

    /// Whether both packet planes seal for one another.
    pub fn is_session(&self, one: Site, other: Site) -> bool {
        let (Some(a), Some(b)) = (self.id(one), self.id(other)) else { return false };
        let seals = |site: Site| {
            let plane = self.machines[site.0].plane.as_ref();
            plane.is_some_and(|plane| plane.seals(SessionId(session_id(a, b)), self.net.at))
        };
        seals(one) && seals(other)
    }

    /// Whether a machine knows that a member is revoked.
    pub fn knows_revoked(&self, site: Site, node: NodeId) -> bool {
        let trust = self.net.places[site.0].trust.as_ref();
        trust.is_some_and(|(_, trust)| trust.load().revoked.is_node_revoked(node))
    }

    /// What a machine judges others by: version of the bundle, digest of the lists, digest of the directory.
    pub fn documents(&self, site: Site) -> Option<(u64, [u8; 32], [u8; 32])> {
        let (_, trust) = self.net.places[site.0].trust.as_ref()?;
        let trust = trust.load();
        Some((trust.bundle.version, trust.revoked.digest(), self.node(site)?.directory().digest()))
    }

    /// Version of the policy in force at a machine; 0 for none.
    pub fn policy_version(&self, site: Site) -> u64 {
        self.node(site).map_or(0, Node::policy_version)
    }

    /// The network's clock as a machine has it, in seconds ahead of the true time.
    pub fn clock_ahead_secs(&mut self, site: Site) -> i64 {
        let (mono, system) = self.clocks(site);
        let wall = self.machines[site.0].node.as_mut().map_or(system, |node| node.now(mono, system).wall);
        i64::try_from(i128::from(wall.0) - i128::from(self.true_time().0)).unwrap_or(i64::MAX)
    }

    /// Lets machines take part in the DHT from their next start on. Without, they know others by the directory alone.
    pub fn set_discovery(&mut self, part: Option<Part>) {
        self.discovery = part;
    }

    /// Has machines offer services from their next start on.
    pub fn set_services(&mut self, services: Vec<ServiceValue>) {
        self.services = services;
    }

    /// Has machines publish records under their names from their next start on.
    pub fn set_names(&mut self, names: Vec<Entry>) {
        self.names = names;
    }

    /// Starts a machine's control plane from its store. Nothing happens when it runs, or when its store cannot be read.
    pub fn start(&mut self, site: Site) {
        let (mono, wall) = self.clocks(site);
        let settings = Settings {
            endpoints: vec![self.net.places[site.0].told.unwrap_or_else(|| links::address_of(site))],
            local_endpoints: self.net.places[site.0].local.into_iter().collect(),
            datagram_len_max: 1452,
            inner_mtu: 1372,
            idle_after_s: self.idle_after_s,
            legacy_kyber: self.legacy_kyber.clone(),
            has_issuer: self.machines[site.0].has_issuer,
            discovery: self.discovery,
            services: self.services.clone(),
            names: self.names.clone(),
            unconfined: None,
            build: BUILD,
        };
        let random = SeededRandom::new(self.random.u64());
        let machine = &mut self.machines[site.0];
        if machine.node.is_some() {
            return;
        }
        machine.life.0 += 1;
        machine.dns = None;
        let life = machine.life;
        self.net.places[site.0].is_up = true;
        if let Some(wire) = &mut self.wire {
            wire.open(site, !self.legacy_kyber.is_empty(), &mut self.random);
        }
        let now = Now { mono, wall };
        let mut links = links_of(&mut self.net, &mut self.wire, site, now);
        let node = Node::new(settings, random, &mut machine.store, &mut *links, now);
        drop(links);
        match node {
            Ok(node) => machine.node = Some(node),
            Err(error) => {
                tracing::error!(%error, site = site.0, "a node cannot start");
                self.net.places[site.0].is_up = false;
                return;
            }
        }
        let soon = self.net.at + RECONNECT;
        if machine.plane.is_some() {
            let plane = machine.plane_life;
            self.net.queue.push(soon, Due::PlaneUp(site, plane));
        }
        if machine.has_issuer {
            self.net.queue.push(soon, Due::IssuerConnected(site, life));
        }
        self.carry_out(site);
    }

    /// Kills a machine's control plane. Its packet plane goes on.
    pub fn kill(&mut self, site: Site) {
        let machine = &mut self.machines[site.0];
        (machine.node, machine.wake) = (None, None);
        machine.life.0 += 1;
        let place = &mut self.net.places[site.0];
        (place.is_up, place.identity, place.trust) = (false, None, None);
        self.forget_links(site);
    }

    fn forget_links(&mut self, site: Site) {
        self.net.forget(site);
        if let Some(wire) = &mut self.wire {
            wire.close(site);
        }
    }

    /// Kills a machine's packet plane; its supervisor starts another.
    pub fn kill_plane(&mut self, site: Site) {
        self.stop_plane(site);
        self.launch_plane(site);
    }

    /// Switches a machine off: both planes.
    pub fn power_off(&mut self, site: Site) {
        self.kill(site);
        self.machines[site.0].plane = None;
        self.machines[site.0].plane_life.0 += 1;
        self.machines[site.0].wanted_plane = None;
    }

    fn stop_plane(&mut self, site: Site) {
        let machine = &mut self.machines[site.0];
        machine.plane_life.0 += 1;
        if machine.plane.take().is_some() {
            self.plane_input(site, PlaneInput::Gone);
        }
    }

    fn launch_plane(&mut self, site: Site) {
        let life = self.machines[site.0].plane_life;
        self.net.queue.push(self.net.at + PLANE_START, Due::PlaneUp(site, life));
    }

    fn plane_input(&mut self, site: Site, input: PlaneInput) {
        let life = self.machines[site.0].life;
        self.net.queue.push(self.net.at + LOCAL, Due::Plane(site, life, Box::new(input)));
    }

    fn plane_up(&mut self, site: Site, life: Life) {
        let seed = self.random.u64();
        let machine = &mut self.machines[site.0];
        if machine.plane_life != life || machine.wanted_plane.is_none() {
            return;
        }
        let is_new = machine.plane.is_none();
        let address = self.net.address(site);
        let plane = machine.plane.get_or_insert_with(|| ModelPlane::new(seed, address, WORKERS));
        plane.connected();
        let welcome = plane.welcome();
        if is_new {
            self.net.queue.push(self.net.at + PLANE_TICK, Due::PlaneTick(site, life));
        }
        self.plane_input(site, PlaneInput::Connected(welcome));
    }

    /// Makes a call of the local API.
    pub fn call(&mut self, site: Site, call: Call) -> CallId {
        self.next_call += 1;
        let id = CallId(self.next_call);
        self.with_node(site, |node, links, now| node.handle_call(id, call, "a test", links, now));
        id
    }

    /// Hands in what the loop around a machine's node has counted.
    pub fn counted(&mut self, site: Site, counted: Vec<(String, u64)>) {
        self.with_node(site, |node, _, _| node.handle_counted(counted));
    }

    /// The answer to a call, once there is one.
    pub fn answer(&mut self, call: CallId) -> Option<Result<Answer, ApiError>> {
        self.answers.remove(&call)
    }

    /// Makes a call and waits for its answer, for as long as `patience`.
    pub fn ask(&mut self, site: Site, call: Call, patience: Duration) -> Option<Result<Answer, ApiError>> {
        let id = self.call(site, call);
        let until = self.net.at + patience;
        while self.net.at < until && !self.answers.contains_key(&id) {
            self.run(Duration::from_millis(10));
        }
        self.answer(id)
    }

    /// Takes a machine's node away and gives its links, with its certificate, into the hands of a test: a member that does as it likes.
    pub fn make_puppet(&mut self, site: Site) {
        let machine = &mut self.machines[site.0];
        machine.node = None;
        machine.life.0 += 1;
        machine.is_puppet = true;
        self.forget_links(site);
        self.open_puppet(site);
    }

    /// The links of a puppet. What is said on them is on its way when the world goes on.
    pub fn links(&mut self, site: Site) -> Box<dyn Links + '_> {
        let now = self.moment(site);
        links_of(&mut self.net, &mut self.wire, site, now)
    }

    /// What a puppet's links told since the last time.
    pub fn heard(&mut self, site: Site) -> Vec<Event> {
        std::mem::take(&mut self.machines[site.0].heard)
    }

    /// What a machine has kept.
    pub fn store(&self, site: Site) -> &MemoryStore {
        &self.machines[site.0].store
    }

    /// Lets so much time pass.
    pub fn run(&mut self, long: Duration) {
        let until = self.net.at + long;
        if self.wire.is_some() {
            let puppets: Vec<Site> = self.sites().filter(|site| self.machines[site.0].is_puppet).collect();
            puppets.into_iter().for_each(|site| self.carry_out(site));
        }
        while let Some((at, due)) = self.net.queue.pop(until) {
            self.net.at = self.net.at.max(at);
            self.handle(due);
        }
        self.net.at = until;
    }

    /// Lets time pass in steps until `is_so`, and says how much; `None` when it was not so within `patience`.
    pub fn run_until(
        &mut self,
        patience: Duration,
        step: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let begin = self.net.at;
        while !is_so(self) {
            if self.net.at >= begin + patience {
                return None;
            }
            self.run(step);
        }
        Some(self.net.at - begin)
    }

    fn handle(&mut self, due: Due) {
        match due {
            Due::Link(step) => {
                let Some((site, event)) = self.net.step(step) else { return };
                if self.machines[site.0].is_puppet {
                    return self.machines[site.0].heard.push(event);
                }
                if self.net.places[site.0].is_asleep {
                    return self.machines[site.0].missed.push(event);
                }
                self.with_node(site, |node, links, now| node.handle_link(event, links, now));
            }
            Due::Wake(site) => {
                if self.machines[site.0].wake.is_none_or(|wake| wake > self.net.at) {
                    return;
                }
                self.machines[site.0].wake = None;
                self.with_node(site, |node, links, now| node.handle_timeout(links, now));
                if self.machines[site.0].is_puppet {
                    self.carry_out(site);
                }
            }
            Due::Quic(site, flight) => self.arrive(site, &flight),
            Due::Plane(site, life, input) if self.machines[site.0].life == life => {
                self.with_node(site, |node, links, now| node.handle_plane(*input, links, now));
            }
            Due::PlaneUp(site, life) => self.plane_up(site, life),
            Due::PlaneTick(site, life) if self.machines[site.0].plane_life == life => {
                let at = self.net.at;
                if let Some(plane) = &mut self.machines[site.0].plane {
                    plane.tick(at);
                    self.net.queue.push(at + PLANE_TICK, Due::PlaneTick(site, life));
                }
                self.plane_effects(site);
            }
            Due::Issuer(site, life, ticket, reply) if self.machines[site.0].life == life => {
                self.with_node(site, |node, links, now| node.handle_issuer(ticket, *reply, links, now));
            }
            Due::IssuerConnected(site, life) => {
                let machine = &self.machines[site.0];
                if machine.life == life && machine.issuer_process == Process::Runs {
                    self.with_node(site, |node, links, now| {
                        node.handle_issuer_gone(links);
                        node.handle_issuer_connected(links, now);
                    });
                }
            }
            Due::Wanted(site, life, wanted) if self.machines[site.0].life == life => {
                self.with_node(site, |node, links, now| node.handle_wanted(wanted, links, now));
            }
            Due::Plane(..) | Due::PlaneTick(..) | Due::Issuer(..) | Due::Wanted(..) => {}
            Due::Datagram(site, datagram) => {
                let at = self.net.at;
                match &mut self.machines[site.0].plane {
                    Some(plane) => plane.receive(*datagram, at),
                    None => self.lost(&datagram),
                }
                self.plane_effects(site);
            }
            Due::Stream(number) => self.stream_due(number),
            Due::Awake(site) => {
                self.net.places[site.0].is_asleep = false;
                self.with_node(site, |node, links, now| node.handle_resumed(links, now));
                self.with_node(site, |node, links, now| node.handle_timeout(links, now));
                for event in std::mem::take(&mut self.machines[site.0].missed) {
                    self.with_node(site, |node, links, now| node.handle_link(event, links, now));
                }
            }
        }
    }

    fn with_node(&mut self, site: Site, act: impl FnOnce(&mut Node<SeededRandom>, &mut dyn Links, Now)) {
        // What comes for a machine that sleeps is lost but for its own deadlines, which are looked at when it wakes.
        if self.net.places[site.0].is_asleep {
            return;
        }
        let now = self.moment(site);
        let Some(node) = &mut self.machines[site.0].node else { return };
        act(node, &mut *links_of(&mut self.net, &mut self.wire, site, now), now);
        self.carry_out(site);
    }

    /// Carries out what a node wants and sends what QUIC made of it, as the loop around a node does.
    fn carry_out(&mut self, site: Site) {
        if self.net.places[site.0].is_asleep {
            return;
        }
        loop {
            let mut any = self.hear(site);
            while let Some(output) = self.machines[site.0].node.as_mut().and_then(Node::poll_output) {
                any = true;
                self.output(site, output);
            }
            self.transmit(site);
            if !any {
                break;
            }
        }
        let at = self.net.at;
        let (mono, _) = self.clocks(site);
        let machine = &mut self.machines[site.0];
        let of_driver = self.wire.as_ref().and_then(|wire| wire.next_deadline(site));
        let of_node = machine.node.as_ref().and_then(Node::next_deadline);
        let Some(deadline) = [of_node, of_driver].into_iter().flatten().min() else { return };
        let wake = at + deadline.saturating_duration_since(mono);
        if machine.wake.is_none_or(|known| wake < known || known < at) {
            machine.wake = Some(wake);
            self.net.queue.push(wake, Due::Wake(site));
        }
    }

    fn output(&mut self, site: Site, output: Output) {
        let at = self.net.at;
        let machine = &mut self.machines[site.0];
        match output {
            Output::Store(batch) => {
                machine.stores += 1;
                if let Err(error) = machine.store.commit(batch) {
                    tracing::error!(%error, "memory is full");
                }
            }
            Output::Plane(ticket, request) => {
                let replies = machine.plane.as_mut().map(|plane| plane.request(request, at)).unwrap_or_default();
                for reply in replies {
                    self.plane_input(site, PlaneInput::Reply(ticket, reply));
                }
                self.plane_effects(site);
            }
            Output::Issuer(ticket, asked) => self.ask_process(site, ticket, asked),
            Output::Datagram(to, bytes) => self.net.launch(site, Flight::sealed(self.net.address(site), to, bytes)),
            Output::Probe(to, bytes) => {
                let mut from = self.net.address(site);
                from.set_port(from.port() + 1);
                self.net.launch(site, Flight::sealed(from, to, bytes));
            }
            Output::Answer(call, answer) => drop(self.answers.insert(call, answer)),
            Output::Membership(node, trust) => {
                if let Some(driver) = self.wire.as_mut().and_then(|wire| wire.driver(site)) {
                    driver.set_membership(node, trust.clone());
                }
                self.net.places[site.0].trust = Some((node, trust));
            }
            Output::Configure { addresses, prefixes } => {
                let wanted = Some((addresses, prefixes));
                if machine.wanted_plane != wanted {
                    machine.wanted_plane = wanted;
                    self.stop_plane(site);
                    self.launch_plane(site);
                }
            }
            Output::Names(update) => self.dns_update(site, update),
            Output::Unconfigure => {
                machine.wanted_plane = None;
                self.stop_plane(site);
            }
        }
    }

    fn plane_effects(&mut self, site: Site) {
        let Some(plane) = &mut self.machines[site.0].plane else { return };
        for effect in std::mem::take(&mut plane.effects) {
            match effect {
                Effect::Tell(event) => self.plane_input(site, PlaneInput::Event(event)),
                Effect::Send(mut datagram) => match self.net.site_at(datagram.to) {
                    Some(to) if self.net.reaches(site, to) => {
                        datagram.from = self.net.diverted.get(&(site, to)).copied().unwrap_or(datagram.from);
                        let arrives = self.net.at + self.net.rtt(site, to) / 2;
                        self.net.queue.push(arrives, Due::Datagram(to, Box::new(datagram)));
                    }
                    Some(_) | None => self.lost(&datagram),
                },
                Effect::Delivered(packet) => self.delivered(packet),
                Effect::Dropped(packet, why) => self.dropped(packet, why),
            }
        }
    }

    /// A member's address in the overlay.
    fn overlay(&self, site: Site) -> Option<std::net::IpAddr> {
        let (node, trust) = self.net.places[site.0].trust.as_ref()?;
        Some(overlay_address(trust.load().network, *node).into())
    }
}

/// A run that ends in a panic says from which seed it can be repeated.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(seed = self.seed, at = ?self.net.at, "the run failed");
            // A test has no subscriber, and whoever looks at its output needs the seed.
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("world: seed {} failed at {:?}\n", self.seed, self.net.at),
            );
        }
    }
}
