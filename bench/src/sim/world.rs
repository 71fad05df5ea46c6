//! Ten thousand nodes and what is between them, on virtual time: the real DHT, and a model of sessions.
//!
//! ```text
//!  Dht ── Send ─▶ session? ──no──▶ handshake: 1 round trip, 9.5 kB, 0.3 ms of CPU on each side ──▶ session on both sides
//!                    └─yes─▶ datagram: its bytes and 60 around them, one way with jitter, lost with some probability ──▶ Dht
//! ```
//!
//! Who a peer is, is known as after a handshake; everything else is the code of the product, signatures included. One seed gives one run.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_controlplane::contact::SESSION_LEN;
use weir_controlplane::dht::message::{Message, Query, Request};
use weir_controlplane::dht::place::{Contact, Key, Peer};
use weir_controlplane::dht::record::{Kind, SignedRecord};
use weir_controlplane::dht::{Dht, LookupId, Mode, Outcome, Output, Saved};
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::random::{Random, SeededRandom};
use weir_controlplane::time::{Now, UnixSecs};

use super::hasher::IdHasher;
use super::hostile::{self, Adversary, Deed, FLOOD_INTERVAL, Gang};
use super::latency::{Location, unit};
use super::members::{BEGIN, Member, Network, address};
use super::session::Sessions;
use super::traffic::{Purpose, Tally};

/// What a handshake costs: bytes on the wire in both directions together, and processor time of each side. Measured: docs/benchmarks.md.
const HANDSHAKE_LEN: u64 = 9_500;
const HANDSHAKE_CPU: Duration = Duration::from_micros(300);
/// IPv4, UDP, our header and the tag, for each datagram.
const AROUND_LEN: u64 = 20 + 8 + 16 + 16;
/// Bytes of a message in one datagram; a longer one is several.
const DATAGRAM_LEN: u64 = 1_200;
/// Packets of a handshake of which none may be lost, and what it takes to send one again (RFC 9002 §6.2.2).
const HANDSHAKE_PACKETS: i32 = 4;
const HANDSHAKE_AGAIN: Duration = Duration::from_millis(999);
/// A handshake with somebody who is gone is given up after this.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Ports of one who has many nodes at one address.
const FIRST_PORT: u16 = 10_000;
/// Messages that wait for one session.
const WAITING_MAX: usize = 8;

#[derive(Clone, Debug)]
enum Due {
    Deliver { to: u32, from: u32, message: Vec<u8> },
    Connected { from: u32, to: u32 },
    Unreachable { from: u32, contact: Box<Contact> },
    Wake(u32),
    Flood(u32),
}

#[derive(Clone, Debug)]
struct Event {
    at: Duration,
    /// Of two at one moment the one that was made first comes first.
    number: u64,
    due: Due,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// One node.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) member: Arc<Member>,
    pub(super) is_server: bool,
    location: Location,
    /// Gone when there is none.
    pub(super) dht: Option<Dht<SeededRandom>>,
    pub(super) adversary: Option<Adversary>,
    sessions: Sessions,
    /// Messages that wait for sessions.
    opening: Vec<(u32, Vec<Vec<u8>>)>,
    wake: Option<Duration>,
    cpu_free: Duration,
    /// Bytes that it sent and received.
    pub(super) bytes: u64,
    /// When it was started, when its first session was there, and when it had joined.
    pub(super) born: Duration,
    pub(super) met: Option<Duration>,
    pub(super) joined: Option<Duration>,
    /// When its own record was kept by somebody for the first time.
    pub(super) published: Option<Duration>,
    /// Of its newest record.
    pub(super) sequence: u64,
    /// Whom it looks for as soon as it has joined.
    pub(super) first: Option<u32>,
}

/// A look-up that is over.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// Whether it found the newest record.
    pub(super) is_right: bool,
}

/// What all nodes together cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    pub(super) events: u64,
    pub(super) messages: u64,
    pub(super) handshakes: u64,
    pub(super) tally: Tally,
}

/// All of it.
#[derive(Clone)]
pub(super) struct World {
    pub(super) now: Duration,
    origin: Instant,
    pub(super) network: Arc<Network>,
    pub(super) random: SeededRandom,
    pub(super) machines: Vec<Machine>,
    index: HashMap<NodeId, u32, IdHasher>,
    queue: BinaryHeap<Event>,
    events: u64,
    loss: f64,
    /// Every two nodes have a session, as if they had met before.
    pub(super) is_warm: bool,
    pub(super) gang: Arc<Gang>,
    /// Look-ups under way, and the sequences that they should find.
    looking: BTreeMap<(u32, LookupId), u64>,
    pub(super) ended: Vec<Ended>,
    pub(super) costs: Costs,
}

impl World {
    pub(super) fn new(network: Arc<Network>, loss: f64, random: SeededRandom) -> Self {
        Self {
            now: Duration::ZERO,
            // The origin of a virtual clock: only what is later than it counts.
            origin: Instant::now(),
            network,
            random,
            machines: vec![],
            index: HashMap::default(),
            queue: BinaryHeap::new(),
            events: 0,
            loss,
            is_warm: false,
            gang: Arc::default(),
            looking: BTreeMap::new(),
            ended: vec![],
            costs: Costs::default(),
        }
    }

    fn moment(&self) -> Now {
        Now { mono: self.origin + self.now, wall: UnixSecs(BEGIN.0 + self.now.as_secs()) }
    }

    fn push(&mut self, at: Duration, due: Due) {
        self.events += 1;
        self.queue.push(Event { at, number: self.events, due });
    }

    /// A new node, whose record is its own; it begins with somebody, unless it is the first.
    pub(super) fn add(&mut self, is_server: bool, bootstrap: Option<u32>) -> u32 {
        let member = self.network.enrol(self.machines.len() as u32, &mut self.random);
        self.add_member(member, is_server, bootstrap)
    }

    /// The same with an id that no issuer would draw.
    pub(super) fn add_beside(&mut self, key: Key, bootstrap: u32) -> u32 {
        let mut member = self.network.enrol(self.machines.len() as u32, &mut self.random);
        member.contact.node = hostile::beside(key, &mut self.random);
        self.add_member(member, true, Some(bootstrap))
    }

    /// The same at the line of somebody who has others there already.
    pub(super) fn add_at(&mut self, owner: u32, port: u16, bootstrap: u32) -> u32 {
        let mut member = self.network.enrol(self.machines.len() as u32, &mut self.random);
        member.contact.address = address(owner);
        member.contact.address.set_port(FIRST_PORT + port);
        self.add_member(member, true, Some(bootstrap))
    }

    fn add_member(&mut self, member: Member, is_server: bool, bootstrap: Option<u32>) -> u32 {
        let number = self.machines.len() as u32;
        let node = member.contact.node;
        let mode = if is_server { Mode::Server } else { Mode::Client };
        let now = self.moment();
        let random = SeededRandom::new(self.random.u64());
        let mut dht = Dht::new(node, mode, Saved::default(), random, now);
        let (network, member) = (Arc::clone(&self.network), Arc::new(member));
        // An id that does not fit its statement publishes nothing.
        let _ = dht.publish(network.record(&member, 1, now.wall), None, network.judge(now.wall), now);
        let contacts: Vec<Contact> =
            bootstrap.map(|other| self.machines[other as usize].member.contact).into_iter().collect();
        dht.join(&contacts, now);
        self.machines.push(Machine {
            member,
            is_server,
            location: Location::draw(&mut self.random),
            dht: Some(dht),
            adversary: None,
            sessions: Sessions::default(),
            opening: vec![],
            wake: None,
            cpu_free: Duration::ZERO,
            bytes: 0,
            born: self.now,
            met: None,
            joined: None,
            published: None,
            sequence: 1,
            first: None,
        });
        self.index.insert(node, number);
        self.drain(number);
        number
    }

    /// A node goes without a word.
    pub(super) fn kill(&mut self, number: u32) {
        let machine = &mut self.machines[number as usize];
        machine.dht = None;
        machine.sessions.clear();
        machine.opening.clear();
    }

    /// A node is hostile from now on.
    pub(super) fn turn(&mut self, number: u32, adversary: Adversary) {
        self.machines[number as usize].adversary = Some(adversary);
        if adversary == Adversary::Flood {
            self.push(self.now, Due::Flood(number));
        }
    }

    /// A node forgets its sessions.
    pub(super) fn cool(&mut self, number: u32) {
        self.machines[number as usize].sessions.clear();
    }

    /// A node says something new; its record before is returned.
    pub(super) fn update(&mut self, number: u32) -> SignedRecord {
        let now = self.moment();
        let (network, machine) = (Arc::clone(&self.network), &mut self.machines[number as usize]);
        let old = network.record(&machine.member, machine.sequence, now.wall);
        machine.sequence += 1;
        let record = network.record(&machine.member, machine.sequence, now.wall);
        if let Some(dht) = &mut machine.dht {
            // The same member says it under a higher sequence: there is nothing to refuse.
            let _ = dht.publish(record, None, network.judge(now.wall), now);
        }
        self.drain(number);
        old
    }

    /// One node looks for another's record.
    pub(super) fn look_up(&mut self, from: u32, target: u32) {
        let (now, target) = (self.moment(), &self.machines[target as usize]);
        let (key, sequence) = (target.member.contact.node.into(), target.sequence);
        let Some(dht) = &mut self.machines[from as usize].dht else { return };
        // As many at once are nobody's here.
        if let Ok(id) = dht.get(Kind::Node, key, now) {
            self.looking.insert((from, id), sequence);
        }
        self.drain(from);
    }

    /// Look-ups that are under way.
    pub(super) fn looking(&self) -> usize {
        self.looking.len()
    }

    /// Time between two nodes, there and back.
    pub(super) fn round_trip(&self, one: u32, other: u32) -> Duration {
        self.machines[one as usize].location.round_trip(self.machines[other as usize].location)
    }

    /// Bytes of memory of a node: table, books, sessions; and of what it keeps for others.
    pub(super) fn memory(&self, number: u32) -> Option<(usize, usize)> {
        let machine = &self.machines[number as usize];
        let dht = machine.dht.as_ref()?;
        Some((dht.memory_len() + machine.sessions.len() * SESSION_LEN, dht.store().bytes()))
    }

    /// Lets time pass.
    pub(super) fn run_until(&mut self, until: Duration) {
        while self.queue.peek().is_some_and(|event| event.at <= until) {
            let Some(Event { at, due, .. }) = self.queue.pop() else { break };
            self.now = at;
            self.costs.events += 1;
            match due {
                Due::Deliver { to, from, message } => self.deliver(to, from, &message),
                Due::Connected { from, to } => self.connected(from, to),
                Due::Unreachable { from, contact } => self.unreachable(from, *contact),
                Due::Wake(number) => self.wake(number, at),
                Due::Flood(number) => self.flood(number),
            }
        }
        self.now = until;
    }

    fn wake(&mut self, number: u32, at: Duration) {
        let now = self.moment();
        let machine = &mut self.machines[number as usize];
        if machine.wake != Some(at) {
            return;
        }
        machine.wake = None;
        if let Some(dht) = &mut machine.dht {
            dht.handle_timeout(now);
        }
        self.drain(number);
    }

    /// Does what a node wants done.
    fn drain(&mut self, number: u32) {
        loop {
            let machine = &mut self.machines[number as usize];
            let Some(dht) = &mut machine.dht else { return };
            match dht.poll_output() {
                Some(Output::Send { to, message }) => self.send(number, to, message),
                Some(Output::Joined) => {
                    machine.joined = Some(self.now);
                    if let Some(target) = machine.first.take() {
                        self.look_up(number, target);
                    }
                }
                Some(Output::Published { stored, .. }) => {
                    if stored > 0 {
                        machine.published.get_or_insert(self.now);
                    }
                }
                Some(Output::Found { id, outcome }) => {
                    if let Some(sequence) = self.looking.remove(&(number, id)) {
                        let is_right = outcome.record.is_some() && outcome.sequence == sequence;
                        self.ended.push(Ended { outcome: *outcome, is_right });
                    }
                }
                None => break,
            }
        }
        let machine = &mut self.machines[number as usize];
        let next = machine.dht.as_ref().and_then(Dht::poll_timeout);
        let Some(next) = next.map(|at| at.saturating_duration_since(self.origin).max(self.now)) else { return };
        if machine.wake.is_none_or(|known| next < known) {
            machine.wake = Some(next);
            self.push(next, Due::Wake(number));
        }
    }

    fn send(&mut self, from: u32, contact: Contact, message: Vec<u8>) {
        let Some(to) = self.at(contact) else {
            // Somebody is there, and has no certificate for this id: it takes a round trip to see that.
            self.charge_handshake(from, &message);
            let after =
                2 * self.machines[from as usize].location.one_way(Location::draw(&mut self.random), &mut self.random);
            return self.push(self.now + after, Due::Unreachable { from, contact: Box::new(contact) });
        };
        let is_known = self.machines[from as usize].sessions.take(to, self.now);
        if self.is_warm || is_known && self.machines[to as usize].sessions.take(from, self.now) {
            return self.transmit(from, to, message, Duration::ZERO);
        }
        let opening = &mut self.machines[from as usize].opening;
        if let Some((_, waiting)) = opening.iter_mut().find(|(with, _)| *with == to) {
            if waiting.len() < WAITING_MAX && !waiting.contains(&message) {
                waiting.push(message);
            }
            return;
        }
        self.charge_handshake(from, &message);
        self.machines[from as usize].opening.push((to, vec![message]));
        self.open(from, to, is_known);
    }

    /// Begins a handshake. Where the other side has forgotten a session, it says so first.
    fn open(&mut self, from: u32, to: u32, was_known: bool) {
        let round_trip = self.round_trip(from, to);
        let contact = self.machines[to as usize].member.contact;
        if self.machines[to as usize].dht.is_none() {
            return self.push(self.now + HANDSHAKE_MAX, Due::Unreachable { from, contact: Box::new(contact) });
        }
        let mut done = self.now + self.busy(from) + round_trip + self.busy(to);
        self.machines[to as usize].bytes += HANDSHAKE_LEN;
        if was_known {
            done += round_trip;
        }
        let survives = (1.0 - self.loss).powi(HANDSHAKE_PACKETS);
        while unit(&mut self.random) >= survives {
            done += HANDSHAKE_AGAIN;
        }
        if done - self.now > HANDSHAKE_MAX {
            return self.push(self.now + HANDSHAKE_MAX, Due::Unreachable { from, contact: Box::new(contact) });
        }
        self.push(done, Due::Connected { from, to });
    }

    /// One handshake more, for this message.
    fn charge_handshake(&mut self, number: u32, message: &[u8]) {
        self.machines[number as usize].bytes += HANDSHAKE_LEN;
        self.costs.handshakes += 1;
        self.costs.tally.handshakes[Purpose::of(message) as usize] += 1;
    }

    /// How long a node needs for its side of one more handshake, those before it included. The other side's is put down now, too, though it
    /// begins half a round trip later: that changes who waits for whom, and not how long all wait.
    fn busy(&mut self, number: u32) -> Duration {
        let now = self.now;
        let machine = &mut self.machines[number as usize];
        machine.cpu_free = machine.cpu_free.max(now) + HANDSHAKE_CPU;
        machine.cpu_free - now
    }

    fn peer(&self, number: u32) -> Peer {
        Peer { contact: self.machines[number as usize].member.contact, site: None }
    }

    fn connected(&mut self, from: u32, to: u32) {
        if self.machines[to as usize].dht.is_none() || self.machines[from as usize].dht.is_none() {
            let contact = self.machines[to as usize].member.contact;
            return self.unreachable(from, contact);
        }
        let now = self.moment();
        for (one, other) in [(from, to), (to, from)] {
            let peer = self.peer(other);
            let machine = &mut self.machines[one as usize];
            machine.sessions.add(other, self.now);
            machine.met.get_or_insert(self.now);
            if let Some(dht) = &mut machine.dht {
                dht.handle_session(peer, now);
            }
        }
        let opening = &mut self.machines[from as usize].opening;
        if let Some(at) = opening.iter().position(|(with, _)| *with == to) {
            let (_, waiting) = opening.swap_remove(at);
            waiting.into_iter().for_each(|message| self.transmit(from, to, message, Duration::ZERO));
        }
        self.drain(from);
        self.drain(to);
    }

    /// Who has this id at this address.
    fn at(&self, contact: Contact) -> Option<u32> {
        self.index.get(&contact.node).copied().filter(|to| self.machines[*to as usize].member.contact == contact)
    }

    fn unreachable(&mut self, from: u32, contact: Contact) {
        let (now, to) = (self.moment(), self.at(contact));
        let machine = &mut self.machines[from as usize];
        machine.opening.retain(|(with, _)| Some(*with) != to);
        if let Some(dht) = &mut machine.dht {
            dht.handle_unreachable(contact, now);
        }
        self.drain(from);
    }

    fn transmit(&mut self, from: u32, to: u32, message: Vec<u8>, later: Duration) {
        let len = message.len() as u64;
        let bytes = len + len.div_ceil(DATAGRAM_LEN) * AROUND_LEN;
        self.costs.messages += 1;
        self.costs.tally.bytes[Purpose::of(&message) as usize] += bytes;
        self.machines[from as usize].bytes += bytes;
        if unit(&mut self.random) < self.loss {
            return;
        }
        self.machines[to as usize].bytes += bytes;
        let (here, there) = (self.machines[from as usize].location, self.machines[to as usize].location);
        let at = self.now + later + here.one_way(there, &mut self.random);
        self.push(at, Due::Deliver { to, from, message });
    }

    fn deliver(&mut self, to: u32, from: u32, message: &[u8]) {
        let (now, peer, network) = (self.moment(), self.peer(from), Arc::clone(&self.network));
        let adversary = self.machines[to as usize].adversary;
        let gang = Arc::clone(&self.gang);
        match adversary.map_or(Deed::Honest, |adversary| hostile::deed(adversary, &gang, message, &mut self.random)) {
            Deed::Honest => {
                if let Some(dht) = &mut self.machines[to as usize].dht {
                    dht.handle_message(peer, message, network.judge(now.wall), now);
                    self.drain(to);
                }
            }
            Deed::Late(later) => self.answer_late(to, from, message, later),
            Deed::Instead(answer) => {
                if let Some(answer) = answer {
                    self.transmit(to, from, answer, Duration::ZERO);
                }
            }
        }
    }

    /// Lets a node answer, and holds the answer back.
    fn answer_late(&mut self, to: u32, from: u32, message: &[u8], later: Duration) {
        let (now, peer, network) = (self.moment(), self.peer(from), Arc::clone(&self.network));
        let Some(dht) = &mut self.machines[to as usize].dht else { return };
        dht.handle_message(peer, message, network.judge(now.wall), now);
        let mut others = vec![];
        while let Some(output) = self.machines[to as usize].dht.as_mut().and_then(Dht::poll_output) {
            match output {
                Output::Send { to: asker, message } if asker == peer.contact => self.transmit(to, from, message, later),
                Output::Send { to, message } => others.push((to, message)),
                Output::Joined | Output::Found { .. } | Output::Published { .. } => {}
            }
        }
        others.into_iter().for_each(|(contact, message)| self.send(to, contact, message));
        self.drain(to);
    }

    /// One that floods puts the longest record on somebody.
    fn flood(&mut self, number: u32) {
        let victim = (self.random.u64() % self.machines.len() as u64) as u32;
        let wall = self.moment().wall;
        if self.machines[victim as usize].is_server && self.machines[number as usize].dht.is_some() {
            let machine = &mut self.machines[number as usize];
            machine.sequence += 1;
            let record = self.network.long_record(&machine.member, machine.sequence, wall);
            let query = Query::Put { record, replaces: None };
            let request = Request { transaction: self.random.u64(), is_server: true, query };
            let contact = self.machines[victim as usize].member.contact;
            self.send(number, contact, Message::Request(request).encode());
        }
        self.push(self.now + FLOOD_INTERVAL, Due::Flood(number));
    }
}
