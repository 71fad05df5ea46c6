//! A packet plane without packets: reservations, keys, lanes and routes as the real one keeps them, and no ciphertext.
//!
//! A datagram carries a receiver index and the hash of its key. It is let in when the receiver has that lane open under the same key, its
//! source belongs to the peer, and a route leads to the local side. So whatever would cost a packet in operation costs one here.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weir_dataplane::api::admission::KEYS_MAX;
use weir_dataplane::api::client::Welcome;
use weir_dataplane::api::message::{
    DumpItem, Event, Incarnation, Install, LANE_PORT, Offer, Refusal, Reply, Request, ReservationId, Route,
    SessionDump, SessionId, Target,
};
use weir_dataplane::api::{PolicyRule, Prefix, ROUTES_MAX, ROUTES_PER_MESSAGE};

use crate::pki::id::sha256;
use crate::random::{Random, SeededRandom};

/// As in the packet plane: `RESERVATION_LIFETIME`, `REKEY_AFTER`, `KEY_LIFETIME`, `OPEN_GRACE`, `HOLD_LIFETIME`, `HOLD_REST_MIN`,
/// `RETAIN_MIN`, `ELSEWHERE_INTERVAL`.
const RESERVATION_LIFETIME: Duration = Duration::from_secs(60);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const KEY_LIFETIME: Duration = Duration::from_secs(3600);
const OPEN_GRACE: Duration = Duration::from_secs(10);
const HOLD_LIFETIME: Duration = Duration::from_secs(5);
const HOLD_REST: Duration = Duration::from_secs(5);
const RETAIN_MIN: Duration = Duration::from_secs(1);
const ELSEWHERE_INTERVAL: Duration = Duration::from_secs(1);
const RESERVATIONS_MAX: usize = 4096;
/// Packets that wait for one session.
const HELD_MAX: usize = 64;

/// A packet of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) stream: usize,
    pub(super) sequence: u64,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// What is under the seal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Packet(Packet),
    EchoRequest(Duration),
    EchoReply(Duration),
    ProbeRequest(u64, Duration),
    ProbeReply(u64, Duration),
    Close,
}

/// A sealed datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    index: u32,
    key: [u8; 32],
    pub(super) body: Body,
}

/// What became of something, for the world to carry out or count.
#[derive(Debug)]
pub(super) enum Effect {
    Tell(Event),
    Send(Datagram),
    Delivered(Packet),
    Dropped(Packet, &'static str),
}

struct Reservation {
    salt: [u8; 16],
    indices: Vec<u32>,
    until: Duration,
}

#[derive(Clone)]
struct Keys {
    number: u64,
    key: [u8; 32],
    open: Vec<u32>,
    seal: Vec<u32>,
    since: Duration,
    first_sealed: Option<Duration>,
    rekey_told: bool,
    expired_told: bool,
    install: Install,
}

struct Lane {
    session: SessionId,
    number: u64,
    key: [u8; 32],
    since: Duration,
    closes: Option<Duration>,
}

#[derive(Default)]
struct Session {
    installed: Option<Keys>,
    pending: Option<Keys>,
    endpoint: Option<SocketAddr>,
    elsewhere_from: Duration,
    came_up: Duration,
    last_packet: Option<Duration>,
    idle_told: Option<Duration>,
    wanted_until: Duration,
    held: VecDeque<(Duration, Packet)>,
    rtt: Option<Duration>,
    tx: u64,
    rx: u64,
}

/// What a packet plane did about peers that seemed to be elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roaming {
    /// It told that authentic datagrams come from elsewhere.
    pub told: u64,
    /// Questions sent there.
    pub probes: u64,
    /// Answers that came from there.
    pub answers: u64,
    /// Sessions moved there.
    pub moves: u64,
}

/// One life of a packet plane.
pub(super) struct ModelPlane {
    incarnation: Incarnation,
    address: SocketAddr,
    workers: u8,
    random: SeededRandom,
    is_subscribed: bool,
    reservations: BTreeMap<u64, Reservation>,
    sessions: BTreeMap<SessionId, Session>,
    lanes: BTreeMap<u32, Lane>,
    last_keys: u64,
    stage: Vec<Route>,
    routes: BTreeMap<Prefix, Target>,
    policy_stage: Vec<PolicyRule>,
    policy: (Vec<PolicyRule>, bool, u64),
    pub(super) effects: Vec<Effect>,
    /// Requests, by whether they were refused.
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) roaming: Roaming,
}

fn invalid(what: &str) -> Reply {
    Reply::Refused(Refusal::Invalid(what.to_owned()))
}

fn refused_limit(what: &str, limit: usize) -> Reply {
    Reply::Refused(Refusal::Limit { what: what.to_owned(), limit: limit as u64 })
}

impl ModelPlane {
    pub(super) fn new(seed: u64, address: SocketAddr, workers: u8) -> Self {
        let mut random = SeededRandom::new(seed);
        Self {
            incarnation: Incarnation(random.u64()),
            address,
            workers,
            random,
            is_subscribed: false,
            reservations: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lanes: BTreeMap::new(),
            last_keys: 0,
            stage: vec![],
            routes: BTreeMap::new(),
            policy_stage: vec![],
            policy: (vec![], true, 0),
            effects: vec![],
            requests: 0,
            refused: 0,
            roaming: Roaming::default(),
        }
    }

    /// Its datagrams come from another address from now on.
    pub(super) const fn rebind(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub(super) fn welcome(&self) -> Welcome {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Welcome { incarnation: self.incarnation, workers: self.workers, port: self.address.port(), program }
    }

    /// Sessions that seal now.
    pub(super) fn active(&self, now: Duration) -> usize {
        let seals = |keys: &Keys| now.saturating_sub(keys.since) < KEY_LIFETIME;
        self.sessions.values().filter(|session| session.installed.as_ref().is_some_and(seals)).count()
    }

    /// Whether the session seals now.
    pub(super) fn seals(&self, session: SessionId, now: Duration) -> bool {
        let keys = self.sessions.get(&session).and_then(|session| session.installed.as_ref());
        keys.is_some_and(|keys| now.saturating_sub(keys.since) < KEY_LIFETIME)
    }

    /// Everything that grows: reservations, sessions with keys, open lanes.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let keyed = |session: &&Session| session.installed.is_some() || session.pending.is_some();
        (self.reservations.len(), self.sessions.values().filter(keyed).count(), self.lanes.len())
    }

    /// The connection to the control plane is a new one.
    pub(super) fn connected(&mut self) {
        self.is_subscribed = false;
        self.stage.clear();
        self.policy_stage.clear();
    }

    fn tell(&mut self, event: Event) {
        if self.is_subscribed {
            self.effects.push(Effect::Tell(event));
        }
    }

    pub(super) fn request(&mut self, request: Request, now: Duration) -> Vec<Reply> {
        self.requests += 1;
        self.tidy(now);
        let reply = match request {
            Request::Hello { .. } => {
                let Welcome { incarnation, workers, port, program } = self.welcome();
                Reply::Welcome { incarnation, workers, port, program }
            }
            Request::Reserve { lanes } => self.reserve(lanes, now),
            Request::Release(id) => match self.reservations.remove(&id.0) {
                Some(_) => Reply::Done,
                None => Reply::Refused(Refusal::NoReservation),
            },
            Request::Install(install) => self.install(*install, now),
            Request::Remove(session) => self.remove(session, now),
            Request::StageRoutes(routes) if routes.len() > ROUTES_PER_MESSAGE => {
                refused_limit("routes of one message", ROUTES_PER_MESSAGE)
            }
            Request::StageRoutes(routes) if self.stage.len() + routes.len() > ROUTES_MAX => {
                refused_limit("routes", ROUTES_MAX)
            }
            Request::StageRoutes(routes) => {
                self.stage.extend(routes);
                Reply::Done
            }
            Request::CommitRoutes => {
                let stage = std::mem::take(&mut self.stage);
                self.routes = stage.into_iter().map(|route| (route.prefix, route.target)).collect();
                Reply::Done
            }
            Request::DiscardRoutes => {
                self.stage.clear();
                Reply::Done
            }
            Request::Echo(session) => {
                if self.seal(session, Body::EchoRequest(now), now) {
                    Reply::Done
                } else {
                    Reply::Refused(Refusal::NoSession(session.0))
                }
            }
            Request::Counters => Reply::Counters(Box::default()),
            Request::Dump => return self.dump(now),
            Request::Subscribe => {
                self.is_subscribed = true;
                Reply::Done
            }
            Request::TakeControlSockets => Reply::ControlSockets { count: 0 },
            Request::Activate(session) => self.activate(session, now),
            Request::Probe { session, endpoint, token } => self.probe(session, endpoint, token, now),
            Request::Move { session, endpoint } => match self.sessions.get_mut(&session) {
                Some(known) if known.installed.is_some() => {
                    known.endpoint = Some(endpoint);
                    let pending = known.pending.as_mut();
                    pending.into_iter().for_each(|keys| keys.install.endpoint = endpoint);
                    self.roaming.moves += 1;
                    Reply::Done
                }
                _ => Reply::Refused(Refusal::NoSession(session.0)),
            },
            Request::SetAdmission { keys, .. } if keys.len() > KEYS_MAX => refused_limit("admission keys", KEYS_MAX),
            Request::SetAdmission { .. } => Reply::Done,
            Request::StagePolicy(rules) => {
                self.policy_stage.extend(rules);
                Reply::Done
            }
            Request::CommitPolicy { default_allow, version } => {
                self.policy = (std::mem::take(&mut self.policy_stage), default_allow, version);
                Reply::Done
            }
            Request::DiscardPolicy => {
                self.policy_stage.clear();
                Reply::Done
            }
            Request::PolicyHits => Reply::PolicyHits { version: self.policy.2, hits: vec![] },
        };
        if matches!(reply, Reply::Refused(_)) {
            self.refused += 1;
        }
        vec![reply]
    }

    fn tidy(&mut self, now: Duration) {
        self.reservations.retain(|_, reservation| reservation.until > now);
        self.lanes.retain(|_, lane| lane.closes.is_none_or(|closes| closes > now));
    }

    fn reserve(&mut self, lanes: u8, now: Duration) -> Reply {
        if self.reservations.len() >= RESERVATIONS_MAX {
            return refused_limit("reservations", RESERVATIONS_MAX);
        }
        let indices: Vec<u32> = (0..lanes).map(|_| self.random.u64() as u32).collect();
        let salt: [u8; 16] = self.random.array();
        let reservation = ReservationId(self.random.u64());
        let offer =
            Offer { incarnation: self.incarnation, salt, indices: indices.clone(), has_aes: true, lane_ports: 0 };
        let until = now + RESERVATION_LIFETIME;
        self.reservations.insert(reservation.0, Reservation { salt, indices, until });
        Reply::Reserved { reservation, offer }
    }

    fn install(&mut self, install: Install, now: Duration) -> Reply {
        if install.incarnation != self.incarnation {
            let (ours, theirs) = (self.incarnation.0, install.incarnation.0);
            return Reply::Refused(Refusal::WrongIncarnation { ours, theirs });
        }
        if install.peer.indices.len() < usize::from(self.workers) {
            return invalid("the peer opens fewer lanes than this side seals");
        }
        let Some(reservation) = self.reservations.remove(&install.reservation.0) else {
            return Reply::Refused(Refusal::NoReservation);
        };
        let ours = (self.incarnation.0.to_be_bytes(), reservation.salt);
        let theirs = (install.peer.incarnation.0.to_be_bytes(), install.peer.salt);
        let (first, second) = if install.initiator { (ours, theirs) } else { (theirs, ours) };
        let session = install.session;
        let name = session.0.to_be_bytes();
        let parts: [&[u8]; 6] = [install.secret.expose(), &name, &first.0, &first.1, &second.0, &second.1];
        let key = sha256("weir-sim-keys", &parts);
        self.last_keys += 1;
        let number = self.last_keys;
        for index in &reservation.indices {
            self.lanes.insert(*index, Lane { session, number, key, since: now, closes: None });
        }
        let activate = install.activate;
        let keys = Keys {
            number,
            key,
            open: reservation.indices,
            seal: install.peer.indices.clone(),
            since: now,
            first_sealed: None,
            rekey_told: false,
            expired_told: false,
            install,
        };
        let entry = self.sessions.entry(session).or_default();
        let replaced = entry.pending.replace(keys);
        if let Some(replaced) = replaced {
            self.close_later(&replaced, now);
        }
        if activate {
            self.use_pending(session, now);
        }
        Reply::Done
    }

    fn close_later(&mut self, keys: &Keys, now: Duration) {
        let rtt = self.sessions.get(&keys.install.session).and_then(|session| session.rtt).unwrap_or_default();
        let closes = now + RETAIN_MIN.max(rtt * 3);
        for index in &keys.open {
            if let Some(lane) = self.lanes.get_mut(index) {
                lane.closes = Some(closes);
            }
        }
    }

    fn use_pending(&mut self, session: SessionId, now: Duration) -> bool {
        let Some(entry) = self.sessions.get_mut(&session) else { return false };
        let Some(pending) = entry.pending.take() else { return false };
        entry.endpoint = Some(pending.install.endpoint);
        entry.wanted_until = Duration::ZERO;
        let before = entry.installed.replace(pending);
        if before.is_none() {
            entry.came_up = now;
        }
        let held = std::mem::take(&mut entry.held);
        if let Some(before) = before {
            self.close_later(&before, now);
        }
        for (until, packet) in held {
            if until > now {
                self.seal_packet(session, packet, now);
            } else {
                self.effects.push(Effect::Dropped(packet, "waited_too_long"));
            }
        }
        true
    }

    fn activate(&mut self, session: SessionId, now: Duration) -> Reply {
        let has_keys = |known: &Session| known.installed.is_some() || known.pending.is_some();
        if !self.sessions.get(&session).is_some_and(has_keys) {
            return Reply::Refused(Refusal::NoSession(session.0));
        }
        self.use_pending(session, now);
        Reply::Done
    }

    fn remove(&mut self, session: SessionId, now: Duration) -> Reply {
        self.seal(session, Body::Close, now);
        let Some(entry) = self.sessions.remove(&session) else { return Reply::Refused(Refusal::NoSession(session.0)) };
        if entry.installed.is_none() && entry.pending.is_none() {
            self.sessions.insert(session, entry);
            return Reply::Refused(Refusal::NoSession(session.0));
        }
        self.lanes.retain(|_, lane| lane.session != session);
        for (_, packet) in entry.held {
            self.effects.push(Effect::Dropped(packet, "session_removed"));
        }
        Reply::Done
    }

    fn probe(&mut self, session: SessionId, endpoint: SocketAddr, token: u64, now: Duration) -> Reply {
        let before = self.sessions.get_mut(&session).map(|known| known.endpoint.replace(endpoint));
        let sealed = self.seal(session, Body::ProbeRequest(token, now), now);
        if let (Some(before), Some(known)) = (before, self.sessions.get_mut(&session)) {
            known.endpoint = before;
        }
        self.roaming.probes += u64::from(sealed);
        if sealed { Reply::Done } else { Reply::Refused(Refusal::NoSession(session.0)) }
    }

    fn dump(&self, now: Duration) -> Vec<Reply> {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let item = |(name, session): (&SessionId, &Session)| {
            let keys = session.installed.as_ref().or(session.pending.as_ref())?;
            Some(Reply::Dump(DumpItem::Session(SessionDump {
                session: *name,
                endpoint: session.endpoint.unwrap_or(keys.install.endpoint),
                sources: keys.install.sources.clone(),
                indices: keys.open.clone(),
                peer_indices: keys.seal.clone(),
                age_ns: ns(now.saturating_sub(keys.since)),
                rtt_ns: session.rtt.map_or(0, ns),
                datagram_len: keys.install.datagram_len_max,
                inner_mtu: keys.install.inner_mtu,
                lanes_by_port: u8::from(session.installed.is_some()),
                activated: session.installed.is_some(),
                has_pending_keys: session.pending.is_some(),
                algorithm: "AES-256-GCM".to_owned(),
                generation: 0,
                tx_packets: session.tx,
                tx_bytes: session.tx * 100,
                rx_packets: session.rx,
                rx_bytes: session.rx * 100,
                tx_last_ns: session.last_packet.map(|last| ns(now.saturating_sub(last))),
                rx_last_ns: session.last_packet.map(|last| ns(now.saturating_sub(last))),
            })))
        };
        // Its second worker is said to have a port of its own; datagrams know nothing of that.
        let place = format!("core 1, {LANE_PORT}{}", self.address.port() + 1);
        let about = Reply::Dump(DumpItem::Plane(vec![("worker 1".to_owned(), place)]));
        let sessions = self.sessions.iter().filter_map(item);
        std::iter::once(about).chain(sessions).chain([Reply::Done]).collect()
    }

    /// Seals under the keys in use; `false` when there are none that still seal.
    fn seal(&mut self, session: SessionId, body: Body, now: Duration) -> bool {
        let from = self.address;
        let Some(entry) = self.sessions.get_mut(&session) else { return false };
        let Some(keys) = entry.installed.as_mut() else { return false };
        if now.saturating_sub(keys.since) >= KEY_LIFETIME {
            if !std::mem::replace(&mut keys.expired_told, true) {
                self.tell(Event::Expired(session));
            }
            return false;
        }
        let first = *keys.first_sealed.get_or_insert(now);
        let datagram = Datagram {
            from,
            to: entry.endpoint.unwrap_or(keys.install.endpoint),
            index: keys.seal.first().copied().unwrap_or_default(),
            key: keys.key,
            body,
        };
        let due = now.saturating_sub(first) >= REKEY_AFTER && !std::mem::replace(&mut keys.rekey_told, true);
        // Told once; with nobody there to hear it, it is told again.
        keys.rekey_told &= !due || self.is_subscribed;
        self.effects.push(Effect::Send(datagram));
        if due {
            self.tell(Event::RekeyDue(session));
        }
        true
    }

    /// A packet of the local side.
    pub(super) fn transmit(&mut self, packet: Packet, now: Duration) {
        match self.route(packet.destination) {
            Some(Target::Local) => self.effects.push(Effect::Delivered(packet)),
            Some(Target::Session(session)) => {
                if !self.is_allowed(packet) {
                    return self.effects.push(Effect::Dropped(packet, "policy"));
                }
                self.seal_packet(session, packet, now);
            }
            None => self.effects.push(Effect::Dropped(packet, "no_route")),
        }
    }

    fn seal_packet(&mut self, session: SessionId, packet: Packet, now: Duration) {
        let entry = self.sessions.entry(session).or_default();
        if entry.installed.is_some() {
            (entry.tx, entry.last_packet) = (entry.tx + 1, Some(now));
            if !self.seal(session, Body::Packet(packet), now) {
                self.effects.push(Effect::Dropped(packet, "keys_expired"));
            }
            return;
        }
        while entry.held.front().is_some_and(|(until, _)| *until <= now) {
            let gone = entry.held.pop_front();
            self.effects.extend(gone.map(|(_, packet)| Effect::Dropped(packet, "waited_too_long")));
        }
        let is_resting = now < entry.wanted_until && now + HOLD_REST >= entry.wanted_until;
        if is_resting || entry.held.len() >= HELD_MAX {
            return self.effects.push(Effect::Dropped(packet, "no_session"));
        }
        entry.held.push_back((now + HOLD_LIFETIME, packet));
        if now >= entry.wanted_until {
            entry.wanted_until = now + HOLD_LIFETIME + HOLD_REST;
            self.tell(Event::Wanted(session));
        }
    }

    fn route(&self, to: IpAddr) -> Option<Target> {
        let host = self.routes.get(&Prefix::host(to)).copied();
        let covering = self.routes.iter().filter(|(prefix, _)| prefix.contains(to));
        host.or_else(|| covering.max_by_key(|(prefix, _)| prefix.bit_len()).map(|(_, target)| *target))
    }

    fn is_allowed(&self, packet: Packet) -> bool {
        let (rules, default_allow, _) = &self.policy;
        let holds = |prefixes: &[Prefix], address| prefixes.iter().any(|prefix| prefix.contains(address));
        let fits =
            |rule: &&PolicyRule| holds(&rule.sources, packet.source) && holds(&rule.destinations, packet.destination);
        rules.iter().find(fits).map_or(*default_allow, |rule| rule.allow)
    }

    /// A datagram from the network.
    pub(super) fn receive(&mut self, datagram: Datagram, now: Duration) {
        let lane = self.lanes.get(&datagram.index);
        let is_open = |lane: &&Lane| {
            lane.key == datagram.key
                && lane.closes.is_none_or(|closes| closes > now)
                && now.saturating_sub(lane.since) < KEY_LIFETIME + OPEN_GRACE
        };
        let Some((session, number)) = lane.filter(is_open).map(|lane| (lane.session, lane.number)) else {
            if let Body::Packet(packet) = datagram.body {
                self.effects.push(Effect::Dropped(packet, "not_opened"));
            }
            return;
        };
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.pending.as_ref().is_some_and(|pending| pending.number == number) {
            self.use_pending(session, now);
            self.tell(Event::Activated(session));
        }
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let (endpoint, address) = (entry.endpoint, datagram.from);
        match datagram.body {
            Body::Packet(packet) => {
                let sources = entry.installed.as_ref().map(|keys| keys.install.sources.as_slice()).unwrap_or_default();
                let is_its_own = sources.iter().any(|prefix| prefix.contains(packet.source));
                (entry.rx, entry.last_packet) = (entry.rx + 1, Some(now));
                let effect = match self.route(packet.destination) {
                    _ if !is_its_own => Effect::Dropped(packet, "source_of_another"),
                    Some(Target::Local) if self.is_allowed(packet) => Effect::Delivered(packet),
                    Some(Target::Local) => Effect::Dropped(packet, "policy"),
                    Some(Target::Session(_)) | None => Effect::Dropped(packet, "not_local"),
                };
                self.effects.push(effect);
            }
            Body::EchoRequest(sent) => drop(self.seal(session, Body::EchoReply(sent), now)),
            Body::EchoReply(sent) => {
                let rtt = now.saturating_sub(sent);
                entry.rtt = Some(rtt);
                self.tell(Event::Echo { session, rtt_ns: u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX) });
            }
            Body::ProbeRequest(token, sent) => {
                entry.endpoint = Some(address);
                self.seal(session, Body::ProbeReply(token, sent), now);
                if let Some(entry) = self.sessions.get_mut(&session) {
                    entry.endpoint = endpoint;
                }
            }
            Body::ProbeReply(token, sent) => {
                let rtt_ns = u64::try_from(now.saturating_sub(sent).as_nanos()).unwrap_or(u64::MAX);
                self.roaming.answers += 1;
                self.tell(Event::Probed { session, endpoint: address, token, rtt_ns });
            }
            Body::Close => self.tell(Event::Closed(session)),
        }
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if endpoint.is_some_and(|endpoint| endpoint != address) && now >= entry.elsewhere_from {
            entry.elsewhere_from = now + ELSEWHERE_INTERVAL;
            self.roaming.told += 1;
            self.tell(Event::Elsewhere { session, from: address });
        }
    }

    /// Tells of sessions that nobody uses.
    pub(super) fn tick(&mut self, now: Duration) {
        self.tidy(now);
        let idle = |(name, session): (&SessionId, &mut Session)| {
            let after = Duration::from_secs(session.installed.as_ref()?.install.idle_after_s.into());
            let last = session.last_packet.unwrap_or_default().max(session.came_up);
            let is_due = !after.is_zero() && now >= last + after && session.idle_told != Some(last);
            session.idle_told = if is_due { Some(last) } else { session.idle_told };
            is_due.then_some(*name)
        };
        let idle: Vec<SessionId> = self.sessions.iter_mut().filter_map(idle).collect();
        idle.into_iter().for_each(|session| self.tell(Event::Idle(session)));
    }
}
