//! The packet engine: a batch in, a batch out, every drop named.
//!
//! It knows sessions, lanes, blocks, inner packets and routes. It knows no socket, no clock, no thread and no lock: frames and the time are
//! lent to it, frames and events are what it gives back.
//!
//! ```text
//!              LAN                                                           WAN
//!   RxBurst ──▶ parse ─▶ cut ─▶ route ─▶ policy ─▶ MTU ─▶ group by stream ─▶ plan ─▶ lay ─▶ seal ─▶ TxSink      Engine::encapsulate
//!   TxSink ◀── join ◀─ policy ◀─ route ◀─ source ◀─ parse ◀─ blocks ◀─ replay ◀─ open ◀─ generation ◀─ RxBurst       Engine::decapsulate
//!                 └─▶ peers, answers ─▶ outbox ─▶ plan ─▶ lay ─▶ seal ──────────────▶ TxSink        (same batch)
//! ```
//!
//! One engine serves one worker. Per batch it touches each frame's bytes twice: once to look at the headers, once to copy and seal (or to
//! open in place and copy out). Per packet it allocates nothing, calls nothing in the kernel and takes no lock.

pub mod aead;
mod arrival;
mod batch;
pub mod block;
pub mod bundle;
pub mod class;
pub mod counters;
mod delivery;
mod departure;
mod destinations;
pub mod foreign;
pub mod held;
pub mod icmp;
pub mod inner;
pub mod keys;
pub mod lane;
pub mod lane_port;
pub mod limit;
pub mod lpm;
pub mod offload;
mod outbox;
pub mod path;
pub mod path_mtu;
pub mod policy;
pub mod port;
pub mod prefix_set;
pub mod replay;
pub mod roam;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod traffic;
pub mod wheel;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::map::SLOTS_PER_WORKER;
use weir_abi::wire::{DataHeader, HEADER_LEN, HeaderError, ReceiverIndex};

use self::arrival::Arrival;
use self::batch::Batch;
use self::block::Control;
use self::class::Ecn;
use self::counters::{Counters, Metric};
use self::delivery::Delivery;
use self::departure::Departure;
use self::destinations::Destinations;
use self::foreign::{FOREIGN_RUNS_MAX, Foreign, ForeignRun};
use self::held::Held;
use self::icmp::{ERROR_RATE, ErrorLimiter};
use self::inner::Inner;
use self::lane_port::SharedLanePorts;
use self::outbox::Outbox;
use self::path::SharedPath;
use self::policy::Policy;
use self::port::{BURST_LEN, RxBurst, RxMeta, TRAIN_LEN_MAX, TxSink};
use self::roam::{Asides, ELSEWHERE_INTERVAL};
use self::session::{KeysId, OpenEnd, Session};
use self::snapshot::{Recent, SessionSlot, Snapshot};
use self::time::Time;
use self::wheel::{TimerId, Wheel};
use crate::api::SESSIONS_MAX;
use crate::api::message::SessionId;

/// Most events that wait for the control thread; what comes after is counted and lost, which the control thread is told.
pub const EVENTS_MAX: usize = 1024;

/// What the control thread orders a worker's engine to do.
#[derive(Debug)]
pub enum Command {
    /// Brings a session up, or gives it new keys and parameters. Lanes that it opened before stay until they are closed; those of another
    /// session in the same slot go at once.
    Install {
        /// Its place in the table.
        slot: SessionSlot,
        /// The session with the lane that this worker seals.
        session: Box<Session>,
        /// The lanes of the session that this worker opens. Boxed by the control thread, so that the worker only moves pointers.
        #[allow(
            clippy::vec_box,
            reason = "the engine's table holds boxes, and boxing there would allocate on the packet thread"
        )]
        lanes: Vec<Box<OpenEnd>>,
    },
    /// As [`Self::Install`], but the session's datagrams are sealed as before until [`Self::Activate`], or until the peer proves with a
    /// datagram that it has the new keys. One that was prepared before and not activated is replaced.
    Prepare {
        /// Its place in the table.
        slot: SessionSlot,
        /// The session with the lane that this worker will seal.
        session: Box<Session>,
        /// The lanes of the session that this worker opens, from now on.
        #[allow(clippy::vec_box, reason = "see Command::Install")]
        lanes: Vec<Box<OpenEnd>>,
    },
    /// Seals under the prepared keys from now on, if these are they.
    Activate {
        /// The session's place.
        slot: SessionSlot,
        /// Which keys.
        keys: KeysId,
    },
    /// Sends a session's datagrams elsewhere. What was found out of the path before is forgotten.
    Move {
        /// The session's place.
        slot: SessionSlot,
        /// Under which keys: the session that is prepared moves by a command of its own.
        keys: KeysId,
        /// Where to.
        endpoint: SocketAddr,
        /// The path to there.
        path: Arc<SharedPath>,
        /// The lane ports there, where both sides have some.
        lane_ports: Option<Arc<SharedLanePorts>>,
    },
    /// Asks whether the peer is at this address, with a token that cannot be guessed.
    Challenge {
        /// The session's place.
        slot: SessionSlot,
        /// Where to ask.
        to: SocketAddr,
        /// One of those that the session's [`Challenges`](session::Challenges) expect.
        token: u64,
    },
    /// Stops opening a lane and erases its keys.
    CloseLane(ReceiverIndex),
    /// Takes a session down, with the lane that this worker seals and those that it opens.
    ///
    /// Whoever gives the slot to another session swaps the snapshot before: routes name slots, and packets for the one would reach the other.
    Remove(SessionSlot),
    /// Swaps the snapshot.
    Routes(Arc<Snapshot>),
    /// Swaps the policy; without one, everything passes.
    Policy(Option<Arc<Policy>>),
    /// Sends an echo request to the peer.
    Echo(SessionSlot),
}

/// What an engine tells the control thread.
#[derive(Debug)]
pub enum Event {
    /// A peer answered an echo.
    Echo {
        /// Which session.
        session: SessionId,
        /// How long it took.
        round_trip: Duration,
    },
    /// The session has been used long enough.
    RekeyDue(SessionId),
    /// The keys of the session are past their hard limit.
    Expired(SessionId),
    /// The peer said that it has closed the session.
    Closed(SessionId),
    /// The longest datagram of a path, or the inner MTU that follows from it, has changed.
    PathMtu {
        /// Which session.
        session: SessionId,
        /// Bytes of UDP payload.
        datagram_len: u16,
        /// Bytes of an inner packet.
        inner_mtu: u16,
    },
    /// The peer has sealed under prepared keys; this worker does so as well now.
    Activated {
        /// Which session.
        session: SessionId,
        /// Which keys.
        keys: KeysId,
    },
    /// Packets wait for a session that is not there.
    Wanted(SessionSlot),
    /// A challenge was answered by the peer.
    Response {
        /// Which session.
        session: SessionId,
        /// Where the answer came from.
        from: SocketAddr,
        /// The challenge's token.
        token: u64,
        /// When it came.
        at: Time,
    },
    /// An authentic datagram came from where the peer is not known to be.
    Elsewhere {
        /// Which session.
        session: SessionId,
        /// Where it came from.
        from: SocketAddr,
    },
    /// A snapshot that this worker no longer reads, to be freed elsewhere.
    Retired(Arc<Snapshot>),
    /// The same of a policy.
    RetiredPolicy(Arc<Policy>),
    /// So many events were lost before this one.
    Lost(u64),
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deadline {
    /// The old key of an open lane is to be erased.
    EraseOld(ReceiverIndex),
    /// The sealing keys of a session end.
    Expire(SessionSlot),
    /// The session's path may have to be probed.
    Probe(SessionSlot),
    /// The lane port of the session's peer may have to be asked for.
    LanePort(SessionSlot),
    /// Packets have waited long enough for a session, or were refused long enough.
    Hold(SessionSlot),
}

/// Events on their way out, bounded.
#[derive(Debug, Default)]
struct Events {
    queue: VecDeque<Event>,
    lost: u64,
}

impl Events {
    /// Queues an event; tells whether there was room for it.
    fn push(&mut self, event: Event) -> bool {
        // One place is kept for the note about what was lost.
        let has_room = self.queue.len() + 1 < EVENTS_MAX;
        if has_room {
            self.queue.push_back(event);
        } else {
            self.lost += 1;
        }
        has_room
    }

    fn pop(&mut self) -> Option<Event> {
        if self.queue.is_empty() && self.lost > 0 {
            return Some(Event::Lost(std::mem::take(&mut self.lost)));
        }
        self.queue.pop_front()
    }
}

/// One worker's engine. See the module for what flows through it.
///
/// Call order per batch: [`Self::command`] for what waits, [`Self::send_held`], [`Self::decapsulate`], [`Self::encapsulate`], [`Self::expire`], then drain
/// [`Self::poll_event`]; sleep no longer than [`Self::next_deadline`].
pub struct Engine {
    worker: u8,
    workers: u8,
    snapshot: Arc<Snapshot>,
    policy: Option<Arc<Policy>>,
    /// For the burst that is being opened.
    recent: Recent,
    /// For the burst of the local side that is being sent.
    destinations: Destinations,
    sessions: Vec<Option<Box<Session>>>,
    /// Sessions whose keys wait for their activation, by slot.
    prepared: Vec<Option<Box<Session>>>,
    open: Vec<Option<Box<OpenEnd>>>,
    /// For each open lane, when its old key is erased: one timer a lane, however fast a peer goes through its generations.
    erasures: Vec<Option<TimerId>>,
    counters: Counters,
    /// For errors to the local side. Each peer has its own, so that none can use up another's.
    limiter: ErrorLimiter,
    outbox: Outbox,
    batch: Batch,
    delivery: Delivery,
    /// Sessions whose control blocks wait for a datagram.
    waiting: Waiting,
    /// Packets that wait for a session.
    held: Held,
    /// Control blocks that go to an address of their own.
    asides: Asides,
    foreign: Foreign,
    events: Events,
    wheel: Wheel<Deadline>,
}

/// Sessions with control blocks to send, each once, bounded like a batch.
struct Waiting {
    slots: [SessionSlot; BURST_LEN],
    count: usize,
}

impl Waiting {
    fn push(&mut self, slot: SessionSlot) -> Result<(), DropReason> {
        if self.slots[..self.count].contains(&slot) {
            return Ok(());
        }
        *self.slots.get_mut(self.count).ok_or(DropReason::ControlBlockQueueFull)? = slot;
        self.count += 1;
        Ok(())
    }
}

impl Engine {
    /// An engine without sessions or routes, for worker number `worker` of `workers`.
    pub fn new(worker: u8, workers: u8, counters: Counters) -> Self {
        Self {
            worker,
            workers,
            snapshot: Arc::new(Snapshot::empty()),
            policy: None,
            recent: Recent::default(),
            destinations: Destinations::new(),
            sessions: std::iter::repeat_with(|| None).take(SESSIONS_MAX).collect(),
            prepared: std::iter::repeat_with(|| None).take(SESSIONS_MAX).collect(),
            open: std::iter::repeat_with(|| None).take(SLOTS_PER_WORKER as usize).collect(),
            erasures: vec![None; SLOTS_PER_WORKER as usize],
            counters,
            limiter: ErrorLimiter::new(ERROR_RATE),
            outbox: Outbox::new(),
            batch: Batch::new(),
            delivery: Delivery::new(),
            waiting: Waiting { slots: [SessionSlot(u32::MAX); BURST_LEN], count: 0 },
            held: Held::default(),
            asides: Asides::new(),
            foreign: Foreign(Vec::with_capacity(FOREIGN_RUNS_MAX)),
            events: Events { queue: VecDeque::with_capacity(EVENTS_MAX), lost: 0 },
            wheel: Wheel::new(4 * SESSIONS_MAX + SLOTS_PER_WORKER as usize),
        }
    }

    /// Carries out one order of the control thread.
    pub fn command(&mut self, command: Command, now: Time) {
        match command {
            Command::Install { slot, session, lanes } => {
                if self.prepare(slot, session, lanes) {
                    self.activate(slot, None);
                }
            }
            Command::Prepare { slot, session, mut lanes } => {
                lanes.iter_mut().for_each(|end| end.proves_keys = true);
                self.prepare(slot, session, lanes);
            }
            Command::Activate { slot, keys } => {
                self.activate(slot, Some(keys));
            }
            Command::Move { slot, keys, endpoint, path, lane_ports } => {
                self.relocate(slot, keys, endpoint, path, lane_ports, now);
            }
            Command::Challenge { slot, to, token } => {
                if session(&self.sessions, slot).is_some() {
                    self.asides.push(slot, to, Control::PathChallenge(token.to_be_bytes()), &self.counters);
                }
            }
            Command::CloseLane(index) => {
                let at = usize::from(index.slot());
                if self.open.get(at).and_then(Option::as_ref).is_some_and(|end| end.receiver() == index) {
                    self.close(at);
                }
            }
            Command::Remove(slot) => {
                self.take_session(slot);
                self.prepared.get_mut(slot.0 as usize).and_then(Option::take);
                self.close_lanes_of(slot);
            }
            Command::Routes(snapshot) => {
                let old = std::mem::replace(&mut self.snapshot, snapshot);
                self.events.push(Event::Retired(old));
            }
            Command::Policy(policy) => {
                if let Some(old) = std::mem::replace(&mut self.policy, policy) {
                    self.events.push(Event::RetiredPolicy(old));
                }
            }
            Command::Echo(slot) => {
                if let Some(session) = session_mut(&mut self.sessions, slot) {
                    let request = Control::EchoRequest(session::echo_token(now));
                    match self.waiting.push(slot).and_then(|()| session.queue_control(request)) {
                        Ok(()) => session.echoes.expect(),
                        Err(reason) => self.counters.drop(reason),
                    }
                }
            }
        }
    }

    /// Opens the lanes of a session and keeps the rest for its activation. `false` when there is no such place.
    #[allow(clippy::vec_box, reason = "see Command::Install")]
    fn prepare(&mut self, slot: SessionSlot, session: Box<Session>, lanes: Vec<Box<OpenEnd>>) -> bool {
        let at = slot.0 as usize;
        let (Some(current), Some(prepared)) = (self.sessions.get(at), self.prepared.get(at)) else { return false };
        let id = session.id;
        if !current.iter().chain(prepared).all(|former| former.id == id) || (current.is_none() && prepared.is_none()) {
            // A lane knows its session by the slot; what is left of another's must not speak for this one.
            self.take_session(slot);
            self.close_lanes_of(slot);
        }
        self.prepared[at] = Some(session);
        for end in lanes {
            let at = usize::from(end.receiver().slot());
            if at < self.open.len() {
                self.close(at);
                self.open[at] = Some(end);
            }
        }
        true
    }

    /// Seals under the prepared keys from now on, if they are the ones that are meant. Tells whether they are.
    fn activate(&mut self, slot: SessionSlot, keys: Option<KeysId>) -> bool {
        let prepared = self.prepared.get_mut(slot.0 as usize);
        let is_meant = |session: &mut Box<Session>| keys.is_none_or(|keys| session.keys == keys);
        let Some(mut session) = prepared.and_then(|prepared| prepared.take_if(is_meant)) else { return false };
        if let Some(former) = self.take_session(slot) {
            session.take_over(*former);
        }
        session.traffic.begin_keys(session.seal.number());
        session.expiry = self.schedule(session.seal.expires_at(), Deadline::Expire(slot));
        self.sessions[slot.0 as usize] = Some(session);
        self.held.is_up(slot, &mut self.wheel);
        true
    }

    fn take_session(&mut self, slot: SessionSlot) -> Option<Box<Session>> {
        let mut session = self.sessions.get_mut(slot.0 as usize).and_then(Option::take)?;
        let probing = session.path.as_mut().and_then(|path| path.release());
        let asking = session.lane_ports.as_mut().and_then(|ports| ports.release());
        for timer in [session.expiry, probing, asking].into_iter().flatten() {
            self.wheel.cancel(timer);
        }
        Some(session)
    }

    fn close_lanes_of(&mut self, slot: SessionSlot) {
        for at in 0..self.open.len() {
            if self.open[at].as_ref().is_some_and(|end| end.session == slot) {
                self.close(at);
            }
        }
    }

    /// Erases the lane at this place, which is in the table.
    fn close(&mut self, at: usize) {
        self.open[at] = None;
        if let Some(timer) = self.erasures[at].take() {
            self.wheel.cancel(timer);
        }
    }

    fn schedule(&mut self, at: Time, what: Deadline) -> Option<TimerId> {
        // The wheel has room for four deadlines of every session and one of every lane there can be.
        let scheduled = self.wheel.schedule(at, what);
        debug_assert!(scheduled.is_ok(), "the wheel is large enough");
        scheduled.ok()
    }

    /// Opens a burst of datagrams: inner packets go to `lan`, packets for other peers and answers to `wan`.
    pub fn decapsulate(&mut self, now: Time, rx: &mut impl RxBurst, lan: &mut impl TxSink, wan: &mut impl TxSink) {
        self.counters.add(Metric::WanBursts, u64::from(!rx.is_empty()));
        self.recent = Recent::default();
        let joins = lan.takes_offloads();
        for i in 0..rx.len() {
            let (frame, meta) = rx.frame(i);
            let len = frame.len();
            if meta.truncated {
                self.counters.drop(DropReason::OuterOversized);
                continue;
            }
            if len == 0 {
                self.counters.drop(DropReason::OuterTruncated);
                continue;
            }
            let segment = if meta.segment == 0 { len } else { usize::from(meta.segment) };
            for start in (0..len).step_by(segment) {
                let (frame, _) = rx.frame(i);
                let datagram = &mut frame[start..len.min(start + segment)];
                let datagram_len = datagram.len();
                match self.open(now, datagram, (i, start), &meta, lan, joins) {
                    Ok(()) => {}
                    Err(Refused::Foreign(worker)) => self.foreign.push(i, start, datagram_len, worker, &self.counters),
                    Err(Refused::Dropped(reason)) => self.counters.drop(reason),
                }
                if self.held.is_due() {
                    self.send_held(now, wan, lan);
                }
                // One train can bring more for other peers than the outbox holds, so the batch's end is not the only place to empty it.
                if self.outbox.is_half_full() {
                    self.send_own(now, wan);
                }
                if joins && self.delivery.is_due() {
                    self.delivery.flush(rx, lan, &self.counters);
                }
            }
        }
        if joins {
            self.delivery.flush(rx, lan, &self.counters);
        }
        self.send_own(now, wan);
    }

    /// Datagrams of the bursts since the last [`Self::clear_foreign_runs`] that belong to other workers; the caller still has their bytes.
    pub fn foreign_runs(&self) -> &[ForeignRun] {
        &self.foreign.0
    }

    /// Forgets the foreign runs: they were handed over, or their burst is gone.
    pub fn clear_foreign_runs(&mut self) {
        self.foreign.0.clear();
    }

    /// Opens one datagram, which begins at byte `at.1` of frame `at.0`.
    fn open(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        at: (usize, usize),
        meta: &RxMeta,
        lan: &mut impl TxSink,
        joins: bool,
    ) -> Result<(), Refused> {
        if datagram.len() > TRAIN_LEN_MAX {
            return Err(DropReason::OuterOversized.into());
        }
        let header = DataHeader::parse(datagram).map_err(|error| match error {
            HeaderError::Truncated => DropReason::OuterTruncated,
            HeaderError::Type => DropReason::OuterType,
            HeaderError::Version => DropReason::OuterVersion,
            HeaderError::Reserved => DropReason::OuterReserved,
        })?;
        match header.receiver.worker() {
            own if own == self.worker => {}
            other if other < self.workers => return Err(Refused::Foreign(other)),
            _ => return Err(DropReason::UnknownIndex.into()),
        }
        let lane = usize::from(header.receiver.slot());
        let mut end = self.open.get_mut(lane).and_then(Option::as_mut).ok_or(DropReason::UnknownIndex)?;
        let generation = end.lane.generation();
        let plaintext = end.lane.open(&header, datagram, now)?;
        self.counters.add(Metric::DatagramsOpened, 1);
        // Only now is it certain that the peer has sent it.
        if std::mem::take(&mut end.proves_keys) {
            let (slot, keys) = (end.session, end.keys);
            if self.activate(slot, Some(keys))
                && let Some(session) = session(&self.sessions, slot)
            {
                self.events.push(Event::Activated { session: session.id, keys });
            }
            end = self.open.get_mut(lane).and_then(Option::as_mut).ok_or(DropReason::UnknownIndex)?;
        }
        if let Some(session) = session_mut(&mut self.sessions, end.session)
            && let Some(source) = meta.source
        {
            if session.is_from_peer(meta.source) {
                if meta.local.is_some() && session.source != meta.local {
                    session.source = meta.local;
                }
            } else if now >= session.elsewhere_from {
                session.elsewhere_from = now.plus(ELSEWHERE_INTERVAL);
                self.events.push(Event::Elsewhere { session: session.id, from: source });
            }
        }
        let ecn = Ecn::of(meta.class);
        let mut arrival = Arrival {
            now,
            from: end.session,
            lane: end.lane.number(),
            by_lane_port: meta.lane_port,
            source: meta.source,
            sessions: &mut self.sessions,
            snapshot: &self.snapshot,
            policy: self.policy.as_deref(),
            worker: self.worker,
            recent: &mut self.recent,
            counters: &self.counters,
            outbox: &mut self.outbox,
            waiting: &mut self.waiting,
            events: &mut self.events,
            held: &mut self.held,
            asides: &mut self.asides,
            wheel: &mut self.wheel,
            round_trip: None,
            carried: (0, 0),
            ecn,
            at: (at.0, at.1 + HEADER_LEN),
            lan,
            delivery: joins.then_some(&mut self.delivery),
        };
        end.partial.feed(header.counter, ecn == Ecn::Ce, plaintext, &mut arrival);
        let (round_trip, (packets, bytes)) = (arrival.round_trip, arrival.carried);
        if packets > 0
            && let Some(session) = session(&self.sessions, end.session)
        {
            session.traffic.received(session.seal.number(), packets, bytes, now);
        }
        if let Some(round_trip) = round_trip {
            end.lane.set_round_trip(round_trip);
        }
        if end.lane.generation() != generation
            && let Some(due) = end.lane.next_deadline()
        {
            // The key that an earlier timer was for is gone already.
            if let Some(timer) = self.erasures[lane].take() {
                self.wheel.cancel(timer);
            }
            self.erasures[lane] = self.schedule(due, Deadline::EraseOld(header.receiver));
        }
        Ok(())
    }

    /// Seals a burst of inner packets towards the peers that they are routed to; errors to their senders go to `lan`.
    pub fn encapsulate(&mut self, now: Time, rx: &mut impl RxBurst, wan: &mut impl TxSink, lan: &mut impl TxSink) {
        self.counters.add(Metric::LanBursts, u64::from(!rx.is_empty()));
        self.send_held(now, wan, lan);
        let (mut departure, batch, _) = self.departure(now);
        departure.burst(batch, rx, wan, lan);
        self.send_own(now, wan);
    }

    /// Sends the packets that have waited for sessions which are there now, before any that come later. Batches do so by themselves; this is
    /// for after [`Self::command`], when there may be none.
    pub fn send_held(&mut self, now: Time, wan: &mut impl TxSink, lan: &mut impl TxSink) {
        while let Some(packets) = self.held.next_due(&mut self.wheel) {
            let (transit, local): (VecDeque<_>, _) = packets.into_iter().partition(|packet| packet.is_transit);
            if !transit.is_empty() && self.outbox.is_half_full() {
                self.send_own(now, wan);
            }
            let (mut departure, batch, outbox) = self.departure(now);
            departure.burst(batch, &mut held::Burst(local), wan, lan);
            for mut packet in transit {
                if let Err(reason) = departure.held_transit(&mut packet.bytes, outbox) {
                    departure.counters.drop(reason);
                }
            }
            self.send_own(now, wan);
        }
    }

    /// Sends what came up inside the engine: packets between peers, ICMP errors, echoes.
    fn send_own(&mut self, now: Time, wan: &mut impl TxSink) {
        if self.outbox.len() > 0 || self.waiting.count > 0 || !self.asides.is_empty() {
            let (mut departure, batch, outbox) = self.departure(now);
            departure.own(batch, outbox, wan);
        }
    }

    /// Everything that packets meet on their way outwards, with what holds them meanwhile.
    fn departure(&mut self, now: Time) -> (Departure<'_>, &mut Batch, &mut Outbox) {
        let departure = Departure {
            now,
            sessions: &mut self.sessions,
            snapshot: &self.snapshot,
            policy: self.policy.as_deref(),
            counters: &self.counters,
            limiter: &mut self.limiter,
            waiting: &mut self.waiting,
            held: &mut self.held,
            asides: &mut self.asides,
            events: &mut self.events,
            wheel: &mut self.wheel,
            worker: self.worker,
            sources: Recent::default(),
            destinations: &mut self.destinations,
        };
        (departure, &mut self.batch, &mut self.outbox)
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Time) {
        // Once each: what is put off may be due again at once.
        for _ in 0..self.wheel.len() {
            let Some(deadline) = self.wheel.poll(now) else { break };
            match deadline {
                Deadline::EraseOld(index) => {
                    if let Some(timer) = self.erasures.get_mut(usize::from(index.slot())) {
                        *timer = None;
                    }
                    if let Some(end) = self.open.get_mut(usize::from(index.slot())).and_then(Option::as_mut)
                        && end.receiver() == index
                    {
                        end.lane.erase_old(now);
                    }
                }
                Deadline::Expire(slot) => {
                    if let Some(session) = session_mut(&mut self.sessions, slot) {
                        session.expiry = None;
                        self.events.push(Event::Expired(session.id));
                    }
                }
                Deadline::Probe(slot) => self.departure(now).0.path_is_due(slot),
                Deadline::LanePort(slot) => self.departure(now).0.lane_port_is_due(slot),
                Deadline::Hold(slot) => self.held.expire(slot, now, &mut self.wheel, &self.counters),
            }
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wheel.next_deadline()
    }

    /// Tells the peer that the session ends, before [`Command::Remove`]. One worker says it for all.
    pub fn send_close(&mut self, slot: SessionSlot, now: Time, wan: &mut impl TxSink) {
        if self.worker == 0
            && let Some(session) = session_mut(&mut self.sessions, slot)
            && session.queue_control(Control::Close).is_ok()
        {
            self.departure(now).0.control(slot, wan);
        }
    }

    /// Sends control blocks that wait, in datagrams of their own. Batches take them along; this is for when there is none.
    pub fn send_waiting(&mut self, now: Time, wan: &mut impl TxSink) {
        self.send_own(now, wan);
    }

    /// The engine's counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The next event for the control thread.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }
}

fn session(sessions: &[Option<Box<Session>>], slot: SessionSlot) -> Option<&Session> {
    sessions.get(slot.0 as usize).and_then(Option::as_deref)
}

fn session_mut(sessions: &mut [Option<Box<Session>>], slot: SessionSlot) -> Option<&mut Session> {
    sessions.get_mut(slot.0 as usize).and_then(Option::as_deref_mut)
}

/// Whether the packet's sender must be told to send smaller ones. An IPv4 packet that may be fragmented is cut by the lane instead.
fn too_big(inner: &Inner, len: usize, session: &Session) -> bool {
    len > usize::from(session.inner_mtu) && (inner.dont_fragment || inner.destination.is_ipv6())
}

/// Why a datagram was not opened here.
enum Refused {
    /// It is another worker's.
    Foreign(u8),
    /// It is nobody's any more.
    Dropped(DropReason),
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

#[cfg(test)]
mod tests;
