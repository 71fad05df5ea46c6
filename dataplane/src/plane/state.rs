//! What the control thread knows, as a plain state machine: requests and worker events in, replies, notices and effects out.
//!
//! ```text
//!                Reserve                      Install
//!   ( nothing ) ────────▶ reservation ─────────────────▶ session ──▶ Install again: new keys, new indices,
//!        ▲                    │ Release, or 60 s             │        old lanes open for a grace
//!        └────────────────────┴──────────────────────────────┘ Remove
//!
//!   Install without activation: the keys are pending, their lanes open already, and the keys before go on sealing until
//!   Activate, or until a worker tells that the peer seals under the new ones. Only then the grace of the old lanes begins.
//! ```
//!
//! **Keys are write-once.** A reservation is drawn at random, serves one install, and its salt goes into the key derivation. So no message,
//! repeated or replayed by whomever, can make this incarnation derive a key that it has derived before
//! (`docs/decisions/0002-write-once-keys.md`).
//!
//! It knows no socket and no thread. Randomness and time come in as arguments.

mod check;
mod dump;
mod idle;
mod policy;
mod roam;
mod turn;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weir_abi::map::WORKERS_MAX;
use weir_abi::wire::ReceiverIndex;

use self::check::{Checked, check};
use self::policy::Policies;
use super::indices::Indices;
use crate::api::message::{
    Event, Incarnation, Install, Offer, Refusal, Reply, Request, ReservationId, Route, Salt, SessionId, Target,
};
use crate::api::{Prefix, ROUTES_MAX, ROUTES_PER_MESSAGE, SESSIONS_MAX};
use crate::engine::aead::Algorithm;
use crate::engine::block::Reassembly;
use crate::engine::class::Dscp;
use crate::engine::keys::{Context, Direction, LaneSecret, Side};
use crate::engine::lane::{Limits, OpenLane, SealLane};
use crate::engine::lane_port::SharedLanePorts;
use crate::engine::limit::Limiter;
use crate::engine::lpm::Lpm;
pub use crate::engine::path::INNER_MTU_MIN;
use crate::engine::path::SharedPath;
use crate::engine::session::{Echoes, KeysId, OpenEnd, Session};
use crate::engine::snapshot::{NextHop, SessionSlot, Snapshot};
use crate::engine::time::Time;
use crate::engine::traffic::Traffic;
use crate::engine::wheel::{TimerId, Wheel};
use crate::engine::{self, Command};

/// How long a reservation waits for its install: a key exchange over the worst path takes seconds, and an index is a scarce thing.
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(60);
/// Most reservations at a time.
pub const RESERVATIONS_MAX: usize = 4096;

/// What the outside must do. Carried out in order, before the replies are sent.
#[derive(Debug)]
pub enum Effect {
    /// Give this to a worker.
    Worker(u8, Command),
    /// Open or close an index for `wan` and `steer`.
    Live(ReceiverIndex, bool),
    /// Tell this to subscribers.
    Tell(Event),
}

/// A source of randomness for identifiers. Keys never come from here.
pub trait Random {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);

    /// A random number.
    fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// What does not change while the plane runs.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// This life of the plane.
    pub incarnation: Incarnation,
    /// Worker threads.
    pub workers: u8,
    /// The UDP port.
    pub port: u16,
    /// The gateway's own addresses in the overlay.
    pub gateway: Vec<IpAddr>,
    /// Whether packets between peers are forwarded.
    pub transit: bool,
    /// What datagrams show of the DSCP of the packets in them.
    pub dscp: Dscp,
    /// Whether this CPU has AES instructions.
    pub has_aes: bool,
    /// How many ports after [`Self::port`] workers have for themselves.
    pub lane_ports: u8,
}

#[derive(Debug)]
struct Reservation {
    salt: Salt,
    indices: Vec<ReceiverIndex>,
    timer: Option<TimerId>,
}

#[derive(Debug)]
struct Installed {
    keys: KeysId,
    algorithm: Algorithm,
    idle_after: Option<Duration>,
    endpoint: SocketAddr,
    sources: Vec<Prefix>,
    indices: Vec<ReceiverIndex>,
    peer_indices: Vec<u32>,
    since: Time,
    path: Arc<SharedPath>,
    lane_ports: Option<Arc<SharedLanePorts>>,
}

/// A session's place: taken while it is installed or a route names it.
#[derive(Debug)]
struct Entry {
    slot: SessionSlot,
    /// What is sealed under.
    installed: Option<Installed>,
    /// What waits for its activation.
    pending: Option<Installed>,
    /// Lanes under keys before, which are still opened. They go with the session: its place may be another's the next moment.
    closing: Vec<(ReceiverIndex, TimerId)>,
    round_trip: Duration,
    echoes: Echoes,
    probes: roam::Probes,
    traffic: Traffic,
    idle: idle::Watch,
    /// Until when nobody needs to be told once more that the session is wanted.
    wanted_until: Time,
    routes: usize,
}

impl Entry {
    fn new(slot: SessionSlot) -> Self {
        Self {
            slot,
            installed: None,
            pending: None,
            closing: vec![],
            round_trip: Duration::ZERO,
            echoes: Echoes::default(),
            probes: roam::Probes::default(),
            traffic: Traffic::default(),
            idle: idle::Watch::default(),
            wanted_until: Time::ZERO,
            routes: 0,
        }
    }

    /// Whether there are any keys.
    fn has_keys(&self) -> bool {
        self.installed.is_some() || self.pending.is_some()
    }

    /// The keys in use and those that wait, newest first.
    fn all(&self) -> impl Iterator<Item = &Installed> {
        self.pending.iter().chain(&self.installed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deadline {
    Reservation(ReservationId),
    Close(SessionId, ReceiverIndex),
    Idle(SessionId),
}

/// The state machine. Drive it with [`Self::handle_request`], [`Self::handle_event`] and [`Self::handle_timeout`]; after each, carry out
/// [`Self::poll_effect`] until there is none.
pub struct State<R> {
    fixed: Fixed,
    random: R,
    sessions: HashMap<SessionId, Entry>,
    names: HashMap<SessionSlot, SessionId>,
    free_slots: Vec<SessionSlot>,
    reservations: HashMap<ReservationId, Reservation>,
    indices: Indices,
    last_keys: u64,
    stage: Vec<Route>,
    routes: Vec<Route>,
    epoch: u64,
    policies: Policies,
    wheel: Wheel<Deadline>,
    effects: std::collections::VecDeque<Effect>,
}

impl<R: Random> State<R> {
    /// A plane without sessions that routes its own addresses and nothing else.
    pub fn new(fixed: Fixed, mut random: R) -> Self {
        let free_slots = (0..SESSIONS_MAX as u32).rev().map(SessionSlot).collect();
        let lanes_max = usize::from(fixed.workers) * weir_abi::map::SLOTS_PER_WORKER as usize;
        let mut state = Self {
            indices: Indices::new(fixed.workers, &mut random),
            fixed,
            random,
            sessions: HashMap::new(),
            names: HashMap::new(),
            free_slots,
            reservations: HashMap::new(),
            last_keys: 0,
            stage: vec![],
            routes: vec![],
            epoch: 0,
            policies: Policies::default(),
            wheel: Wheel::new(RESERVATIONS_MAX + lanes_max + SESSIONS_MAX),
            effects: std::collections::VecDeque::new(),
        };
        // The gateway's own addresses fit any table.
        let published = state.publish(&[]);
        debug_assert!(published.is_ok());
        state
    }

    /// What never changes.
    pub fn fixed(&self) -> &Fixed {
        &self.fixed
    }

    /// Carries out one request, all or nothing. [`Request::Hello`], counters, subscriptions, sockets and what concerns the
    /// programs alone are the server's business and
    /// are refused here.
    pub fn handle_request(&mut self, request: Request, now: Time) -> Vec<Reply> {
        let done = match request {
            Request::Reserve { lanes } => return vec![self.reserve(lanes, now).unwrap_or_else(Reply::Refused)],
            Request::Dump => return self.dump(now),
            Request::Release(id) => self.release(id),
            Request::Install(install) => self.install(*install, now),
            Request::Remove(session) => self.remove(session),
            Request::StageRoutes(routes) => self.stage(routes),
            Request::CommitRoutes => {
                let staged = std::mem::take(&mut self.stage);
                let published = self.publish(&staged);
                if published.is_err() {
                    self.stage = staged;
                }
                published
            }
            Request::DiscardRoutes => {
                self.stage = vec![];
                Ok(())
            }
            Request::Echo(session) => self.echo(session),
            Request::Activate(session) => self.activate(session, now),
            Request::Probe { session, endpoint, token } => self.probe(session, endpoint, token, now),
            Request::Move { session, endpoint } => self.relocate(session, endpoint),
            Request::StagePolicy(rules) => self.stage_policy(rules),
            Request::CommitPolicy { default_allow, version } => self.commit_policy(default_allow, version),
            Request::DiscardPolicy => {
                self.discard_policy();
                Ok(())
            }
            Request::PolicyHits => return vec![self.policy_hits()],
            Request::Hello { .. }
            | Request::Counters
            | Request::Subscribe
            | Request::TakeControlSockets
            | Request::SetAdmission { .. } => {
                Err(Refusal::Invalid("this request does not concern sessions, routes or policy".to_owned()))
            }
        };
        vec![done.map_or_else(Reply::Refused, |()| Reply::Done)]
    }

    fn reserve(&mut self, lanes: u8, now: Time) -> Result<Reply, Refusal> {
        if lanes == 0 || lanes > WORKERS_MAX {
            return Err(Refusal::Invalid(format!("a session has 1 to {WORKERS_MAX} lanes each way, not {lanes}")));
        }
        if self.reservations.len() >= RESERVATIONS_MAX {
            return Err(limit("open reservations", RESERVATIONS_MAX));
        }
        let mut indices = Vec::with_capacity(usize::from(lanes));
        // Lanes go round the workers from a random one, so that sessions with one lane spread over all of them.
        let first = self.random.u64() % u64::from(self.fixed.workers);
        for lane in 0..u64::from(lanes) {
            let worker = ((first + lane) % u64::from(self.fixed.workers)) as u8;
            let tag = self.random.u64() as u16;
            match self.indices.take(worker, tag) {
                Some(index) => indices.push(index),
                None => {
                    indices.into_iter().for_each(|index| self.indices.give_back(index));
                    return Err(limit("lanes of one worker", weir_abi::map::SLOTS_PER_WORKER as usize - 1));
                }
            }
        }
        let mut salt = Salt::default();
        self.random.fill(&mut salt);
        let id = loop {
            let id = ReservationId(self.random.u64());
            if !self.reservations.contains_key(&id) {
                break id;
            }
        };
        let timer = self.wheel.schedule(now.plus(RESERVATION_LIFETIME), Deadline::Reservation(id)).ok();
        let offer = Offer {
            incarnation: self.fixed.incarnation,
            salt,
            indices: indices.iter().map(|index| index.0).collect(),
            has_aes: self.fixed.has_aes,
            lane_ports: self.fixed.lane_ports,
        };
        self.reservations.insert(id, Reservation { salt, indices, timer });
        Ok(Reply::Reserved { reservation: id, offer })
    }

    fn release(&mut self, id: ReservationId) -> Result<(), Refusal> {
        let reservation = self.reservations.remove(&id).ok_or(Refusal::NoReservation)?;
        if let Some(timer) = reservation.timer {
            self.wheel.cancel(timer);
        }
        reservation.indices.into_iter().for_each(|index| self.indices.give_back(index));
        Ok(())
    }

    fn install(&mut self, install: Install, now: Time) -> Result<(), Refusal> {
        if install.incarnation != self.fixed.incarnation {
            let (ours, theirs) = (self.fixed.incarnation.0, install.incarnation.0);
            return Err(Refusal::WrongIncarnation { ours, theirs });
        }
        let Checked { sources, payload_len } = check(&install, self.fixed.workers)?;
        if !self.reservations.contains_key(&install.reservation) {
            return Err(Refusal::NoReservation);
        }
        let workers = self.fixed.workers;
        let entry = self.entry(install.session)?;
        if !entry.has_keys() {
            entry.traffic = Traffic::new(workers);
        }
        let (slot, echoes, challenges) = (entry.slot, entry.echoes.clone(), entry.probes.challenges.clone());
        let traffic = entry.traffic.clone();
        let (endpoint, datagram_len_max, inner_mtu) = (install.endpoint, install.datagram_len_max, install.inner_mtu);
        // New keys change nothing about the path.
        let is_for = |path: &&Arc<SharedPath>| path.is_for(endpoint, datagram_len_max, inner_mtu);
        let known = entry.all().map(|installed| &installed.path).find(is_for).cloned();
        let path = known.unwrap_or_else(|| Arc::new(SharedPath::new(endpoint, datagram_len_max, inner_mtu)));
        let is_for = |ports: &&Arc<SharedLanePorts>| ports.is_for(endpoint, install.peer.lane_ports);
        let known = entry.all().filter_map(|installed| installed.lane_ports.as_ref()).find(is_for).cloned();
        let both = self.fixed.lane_ports > 0 && install.peer.lane_ports > 0;
        let lane_ports =
            both.then(|| known.unwrap_or_else(|| Arc::new(SharedLanePorts::new(endpoint, install.peer.lane_ports))));
        // From here on nothing can fail, so the reservation is used up and the keys exist once.
        let Some(reservation) = self.reservations.remove(&install.reservation) else {
            return Err(Refusal::NoReservation);
        };
        if let Some(timer) = reservation.timer {
            self.wheel.cancel(timer);
        }
        let algorithm =
            if self.fixed.has_aes && install.peer.has_aes { Algorithm::Aes256Gcm } else { Algorithm::ChaCha20Poly1305 };
        let ours = Side { incarnation: self.fixed.incarnation, salt: reservation.salt };
        let theirs = Side { incarnation: install.peer.incarnation, salt: install.peer.salt };
        let context = Context::new(install.session, ours, theirs, install.initiator, algorithm);
        let limits = Limits::default();
        self.last_keys += 1;
        let keys = KeysId(self.last_keys);
        let limiter = install.rate.map(|rate| Arc::new(Limiter::new(rate)));
        for worker in 0..self.fixed.workers {
            let seal_secret =
                LaneSecret::derive(&install.secret, &context, Direction::sealed_by(install.initiator), worker);
            let receiver = ReceiverIndex(install.peer.indices[usize::from(worker)]);
            let seal = SealLane::new(&seal_secret, worker, receiver, now, limits);
            let mut session =
                Session::new(install.session, install.endpoint, sources.clone(), payload_len, install.inner_mtu, seal);
            session.keys = keys;
            session.echoes = echoes.clone();
            session.challenges = challenges.clone();
            session.traffic = traffic.clone();
            session.follow(Arc::clone(&path));
            session.limiter = limiter.clone();
            if let Some(ports) = &lane_ports {
                session.use_lane_ports(Arc::clone(ports));
            }
            let opened = (0u8..).zip(&reservation.indices).filter(|(_, index)| index.worker() == worker);
            let lanes = opened
                .map(|(number, &index)| {
                    let direction = Direction::opened_by(install.initiator);
                    let secret = LaneSecret::derive(&install.secret, &context, direction, number);
                    let mut partial = Reassembly::new();
                    partial.reserve(usize::from(install.inner_mtu));
                    let lane = OpenLane::new(&secret, number, index, now, limits);
                    Box::new(OpenEnd::new(slot, keys, lane, partial))
                })
                .collect();
            let session = Box::new(session);
            let command = match install.activate {
                true => Command::Install { slot, session, lanes },
                false => Command::Prepare { slot, session, lanes },
            };
            self.effects.push_back(Effect::Worker(worker, command));
        }
        for &index in &reservation.indices {
            self.effects.push_back(Effect::Live(index, true));
        }
        let installed = Installed {
            keys,
            algorithm,
            idle_after: (install.idle_after_s > 0).then(|| Duration::from_secs(install.idle_after_s.into())),
            endpoint: install.endpoint,
            sources: install.sources,
            indices: reservation.indices,
            peer_indices: install.peer.indices,
            since: now,
            path,
            lane_ports,
        };
        let Some(entry) = self.sessions.get_mut(&install.session) else { return Err(Refusal::NoReservation) };
        // The peer may have sealed under keys that it takes for the newest.
        if let Some(replaced) = entry.pending.replace(installed) {
            self.close_later(install.session, replaced.indices, now);
        }
        if install.activate {
            self.use_pending(install.session, now);
        }
        Ok(())
    }

    fn remove(&mut self, session: SessionId) -> Result<(), Refusal> {
        let entry = self.sessions.get_mut(&session).ok_or(Refusal::NoSession(session.0))?;
        if !entry.has_keys() {
            return Err(Refusal::NoSession(session.0));
        }
        let all = [entry.installed.take(), entry.pending.take()];
        let closing = std::mem::take(&mut entry.closing);
        if let Some(timer) = entry.idle.stop() {
            self.wheel.cancel(timer);
        }
        let slot = entry.slot;
        for worker in 0..self.fixed.workers {
            self.effects.push_back(Effect::Worker(worker, Command::Remove(slot)));
        }
        for index in all.into_iter().flatten().flat_map(|installed| installed.indices) {
            self.close(index);
        }
        for (index, timer) in closing {
            self.wheel.cancel(timer);
            self.close(index);
        }
        self.forget_if_unused(session);
        Ok(())
    }

    /// Stops opening a lane; its index rests before it is given again.
    fn close(&mut self, index: ReceiverIndex) {
        self.effects.push_back(Effect::Live(index, false));
        self.effects.push_back(Effect::Worker(index.worker(), Command::CloseLane(index)));
        self.indices.give_back(index);
    }

    fn echo(&mut self, session: SessionId) -> Result<(), Refusal> {
        let entry = self.sessions.get(&session).filter(|entry| entry.installed.is_some());
        let slot = entry.ok_or(Refusal::NoSession(session.0))?.slot;
        self.effects.push_back(Effect::Worker(0, Command::Echo(slot)));
        Ok(())
    }

    fn stage(&mut self, routes: Vec<Route>) -> Result<(), Refusal> {
        if routes.len() > ROUTES_PER_MESSAGE {
            return Err(limit("routes of one message", ROUTES_PER_MESSAGE));
        }
        if self.stage.len() + routes.len() > self.routes_max() {
            return Err(limit("routes", self.routes_max()));
        }
        self.stage.extend(routes);
        Ok(())
    }

    /// Most routes of a control plane: the gateway's own addresses have their places in the table too.
    fn routes_max(&self) -> usize {
        ROUTES_MAX - self.fixed.gateway.len()
    }

    /// Makes `routes` the current ones.
    fn publish(&mut self, routes: &[Route]) -> Result<(), Refusal> {
        let own = self.fixed.gateway.clone().into_iter().map(|address| (Prefix::host(address), NextHop::Local));
        let mut table = Vec::with_capacity(routes.len() + self.fixed.gateway.len());
        let mut named: Vec<SessionId> = vec![];
        for route in routes {
            let next_hop = match route.target {
                Target::Local => NextHop::Local,
                Target::Session(session) => match self.entry(session) {
                    Ok(entry) => {
                        entry.routes += 1;
                        named.push(session);
                        NextHop::Session(entry.slot)
                    }
                    Err(refusal) => {
                        self.unname(&named);
                        return Err(refusal);
                    }
                },
            };
            table.push((route.prefix, next_hop));
        }
        // Own addresses come last: nothing that a control plane sends can take them away.
        let routes_lpm = match Lpm::build(table.into_iter().chain(own)) {
            Ok(lpm) => lpm,
            Err(_) => {
                self.unname(&named);
                return Err(limit("routes", self.routes_max()));
            }
        };
        self.epoch += 1;
        let snapshot = Arc::new(Snapshot {
            epoch: self.epoch,
            routes: routes_lpm,
            gateway_v4: self.fixed.gateway.iter().find_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None }),
            gateway_v6: self.fixed.gateway.iter().find_map(|a| if let IpAddr::V6(v6) = a { Some(*v6) } else { None }),
            transit: self.fixed.transit,
            dscp: self.fixed.dscp,
        });
        for worker in 0..self.fixed.workers {
            self.effects.push_back(Effect::Worker(worker, Command::Routes(Arc::clone(&snapshot))));
        }
        let before = std::mem::replace(&mut self.routes, routes.to_vec());
        let unnamed: Vec<SessionId> = before.iter().filter_map(session_of).collect();
        self.unname(&unnamed);
        Ok(())
    }

    /// Takes one route's claim from each of these sessions.
    fn unname(&mut self, sessions: &[SessionId]) {
        for &session in sessions {
            if let Some(entry) = self.sessions.get_mut(&session) {
                entry.routes = entry.routes.saturating_sub(1);
            }
            self.forget_if_unused(session);
        }
    }

    /// The session's entry, made if need be.
    fn entry(&mut self, session: SessionId) -> Result<&mut Entry, Refusal> {
        match self.sessions.entry(session) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(place) => {
                let slot = self.free_slots.pop().ok_or_else(|| limit("sessions", SESSIONS_MAX))?;
                self.names.insert(slot, session);
                Ok(place.insert(Entry::new(slot)))
            }
        }
    }

    fn forget_if_unused(&mut self, session: SessionId) {
        if let Some(entry) = self.sessions.get(&session)
            && !entry.has_keys()
            && entry.routes == 0
        {
            let slot = entry.slot;
            self.sessions.remove(&session);
            self.names.remove(&slot);
            self.free_slots.push(slot);
        }
    }

    /// Takes in what a worker told. Returns the notice for subscribers, if it is one.
    pub fn handle_event(&mut self, event: engine::Event, now: Time) -> Option<Event> {
        match event {
            engine::Event::Echo { session, round_trip } => {
                if let Some(entry) = self.sessions.get_mut(&session) {
                    entry.round_trip = round_trip;
                }
                Some(Event::Echo { session, rtt_ns: round_trip.as_nanos() as u64 })
            }
            engine::Event::RekeyDue(session) => Some(Event::RekeyDue(session)),
            engine::Event::Expired(session) => Some(Event::Expired(session)),
            engine::Event::Closed(session) => Some(Event::Closed(session)),
            engine::Event::Lost(count) => Some(Event::Lost(count)),
            engine::Event::PathMtu { session, datagram_len, inner_mtu } => {
                Some(Event::PathMtu { session, datagram_len, inner_mtu })
            }
            engine::Event::Activated { session, keys } => self.proved(session, keys, now),
            engine::Event::Wanted(slot) => self.wanted(slot, now),
            engine::Event::Response { session, from, token, at } => {
                self.sessions.get_mut(&session)?.probes.answered(session, from, token, at)
            }
            engine::Event::Elsewhere { session, from } => Some(Event::Elsewhere { session, from }),
            // Freed here, where nobody waits for a packet.
            engine::Event::Retired(_) | engine::Event::RetiredPolicy(_) => None,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(deadline) = self.wheel.poll(now) {
            match deadline {
                Deadline::Reservation(id) => {
                    // Its timer is gone with it, so what remains is to give the indices back.
                    if let Some(reservation) = self.reservations.remove(&id) {
                        reservation.indices.into_iter().for_each(|index| self.indices.give_back(index));
                    }
                }
                Deadline::Close(session, index) => {
                    if let Some(entry) = self.sessions.get_mut(&session) {
                        entry.closing.retain(|(closing, _)| *closing != index);
                    }
                    self.close(index);
                }
                Deadline::Idle(session) => self.look_whether_idle(session, now),
            }
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wheel.next_deadline()
    }

    /// What to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}

fn session_of(route: &Route) -> Option<SessionId> {
    match route.target {
        Target::Session(session) => Some(session),
        Target::Local => None,
    }
}

fn limit(what: &str, limit: usize) -> Refusal {
    Refusal::Limit { what: what.to_owned(), limit: limit as u64 }
}

#[cfg(test)]
mod tests;
