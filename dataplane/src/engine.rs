//! The packet engine: a batch in, a batch out, every drop named.
//!
//! It knows sessions, lanes, blocks, inner packets and routes. It knows no socket, no clock, no thread and no lock: frames and the time are
//! lent to it, frames and events are what it gives back.
//!
//! ```text
//!              LAN                                                           WAN
//!   RxBurst ──▶ parse ─▶ route ─▶ MTU ─▶ group by session ─▶ plan ─▶ lay ─▶ seal ──▶ TxSink        Engine::encapsulate
//!   TxSink ◀── route ◀─ source ◀─ parse ◀─ blocks ◀─ replay ◀─ open ◀─ generation ◀─ RxBurst       Engine::decapsulate
//!                 └─▶ peers, answers ─▶ outbox ─▶ plan ─▶ lay ─▶ seal ──────────────▶ TxSink        (same batch)
//! ```
//!
//! One engine serves one worker. Per batch it touches each frame's bytes twice: once to look at the headers, once to copy and seal (or to
//! open in place and copy out). Per packet it allocates nothing, calls nothing in the kernel and takes no lock.

pub mod aead;
pub mod block;
pub mod bundle;
pub mod counters;
pub mod icmp;
pub mod inner;
pub mod keys;
pub mod lane;
pub mod lpm;
mod outbox;
pub mod port;
pub mod prefix_set;
pub mod replay;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod wheel;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::map::SLOTS_PER_WORKER;
use weir_abi::wire::{DataHeader, HeaderError, ReceiverIndex};

use self::block::{Control, Visitor};
use self::bundle::{Packets, Plan};
use self::counters::{Counters, Metric};
use self::icmp::{ERROR_RATE, ErrorKind, ErrorLimiter};
use self::inner::Inner;
use self::outbox::Outbox;
use self::port::{BURST_LEN, RxBurst, TRAIN_LEN_MAX, TxMeta, TxSink};
use self::session::{OpenEnd, Session};
use self::snapshot::{NextHop, SessionSlot, Snapshot};
use self::time::Time;
use self::wheel::{TimerId, Wheel};
use crate::api::SESSIONS_MAX;
use crate::api::message::SessionId;

/// Most events that wait for the control thread; what comes after is counted and lost, which the control thread is told.
pub const EVENTS_MAX: usize = 1024;

/// What the control thread orders a worker's engine to do.
#[derive(Debug)]
pub enum Command {
    /// Brings a session up, or gives it new keys and parameters. Lanes that it opened before stay until they are closed.
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
    /// Stops opening a lane and erases its keys.
    CloseLane(ReceiverIndex),
    /// Takes a session down, with the lane that this worker seals.
    Remove(SessionSlot),
    /// Swaps the snapshot.
    Routes(Arc<Snapshot>),
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
    /// A snapshot that this worker no longer reads, to be freed elsewhere.
    Retired(Arc<Snapshot>),
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
}

/// Events on their way out, bounded.
#[derive(Debug, Default)]
struct Events {
    queue: VecDeque<Event>,
    lost: u64,
}

impl Events {
    fn push(&mut self, event: Event) {
        // One place is kept for the note about what was lost.
        if self.queue.len() + 1 < EVENTS_MAX {
            self.queue.push_back(event);
        } else {
            self.lost += 1;
        }
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
/// Call order per batch: [`Self::command`] for what waits, [`Self::decapsulate`], [`Self::encapsulate`], [`Self::expire`], then drain
/// [`Self::poll_event`]; sleep no longer than [`Self::next_deadline`].
pub struct Engine {
    worker: u8,
    snapshot: Arc<Snapshot>,
    sessions: Vec<Option<Box<Session>>>,
    open: Vec<Option<Box<OpenEnd>>>,
    counters: Counters,
    limiter: ErrorLimiter,
    outbox: Outbox,
    batch: Batch,
    /// Sessions whose control blocks wait for a datagram.
    waiting: Waiting,
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

/// The packets of one batch, chained by session without moving them.
struct Batch {
    /// Length of packet `i`.
    len: [u32; BURST_LEN],
    /// The packet after `i` for the same session.
    next: [u8; BURST_LEN],
    /// Sessions with packets, in the order of their first one.
    chains: [Chain; BURST_LEN],
    count: usize,
}

#[derive(Clone, Copy)]
struct Chain {
    slot: SessionSlot,
    first: u8,
    last: u8,
}

/// End of a chain.
const NONE: u8 = u8::MAX;

impl Batch {
    const fn new() -> Self {
        let unused = Chain { slot: SessionSlot(u32::MAX), first: NONE, last: NONE };
        Self { len: [0; BURST_LEN], next: [NONE; BURST_LEN], chains: [unused; BURST_LEN], count: 0 }
    }

    fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds packet `i` for a session. Bursts have few sessions, so the newest chains are looked at first.
    fn push(&mut self, i: usize, slot: SessionSlot, len: usize) {
        self.len[i] = len as u32;
        self.next[i] = NONE;
        match self.chains[..self.count].iter_mut().rev().find(|chain| chain.slot == slot) {
            Some(chain) => {
                self.next[usize::from(chain.last)] = i as u8;
                chain.last = i as u8;
            }
            None => {
                self.chains[self.count] = Chain { slot, first: i as u8, last: i as u8 };
                self.count += 1;
            }
        }
    }

    /// The packets of chain `c`.
    fn members(&self, c: usize) -> Members {
        let mut members = Members { numbers: [0; BURST_LEN], lens: [0; BURST_LEN], count: 0 };
        let mut at = self.chains[c].first;
        while at != NONE {
            members.numbers[members.count] = at;
            members.lens[members.count] = self.len[usize::from(at)];
            members.count += 1;
            at = self.next[usize::from(at)];
        }
        members
    }
}

/// The packets for one session: their numbers in the batch and their lengths.
struct Members {
    numbers: [u8; BURST_LEN],
    lens: [u32; BURST_LEN],
    count: usize,
}

impl Members {
    const EMPTY: Self = Self { numbers: [0; BURST_LEN], lens: [0; BURST_LEN], count: 0 };

    /// Bytes of the first `count` of them.
    fn bytes(&self, count: usize) -> u64 {
        self.lens[..count].iter().map(|&len| u64::from(len)).sum()
    }
}

/// The members' bytes, in a port's burst.
struct InBurst<'a, R>(&'a mut R, &'a Members);

impl<R: RxBurst> Packets for InBurst<'_, R> {
    fn packet(&mut self, i: usize) -> &[u8] {
        self.0.frame(usize::from(self.1.numbers[i])).0
    }
}

/// The members' bytes, in the outbox.
struct InOutbox<'a>(&'a Outbox, &'a Members);

impl Packets for InOutbox<'_> {
    fn packet(&mut self, i: usize) -> &[u8] {
        self.0.packet(usize::from(self.1.numbers[i]))
    }
}

impl Engine {
    /// An engine without sessions or routes, for worker number `worker`.
    pub fn new(worker: u8, counters: Counters) -> Self {
        Self {
            worker,
            snapshot: Arc::new(Snapshot::empty()),
            sessions: std::iter::repeat_with(|| None).take(SESSIONS_MAX).collect(),
            open: std::iter::repeat_with(|| None).take(SLOTS_PER_WORKER as usize).collect(),
            counters,
            limiter: ErrorLimiter::new(ERROR_RATE),
            outbox: Outbox::new(),
            batch: Batch::new(),
            waiting: Waiting { slots: [SessionSlot(u32::MAX); BURST_LEN], count: 0 },
            events: Events { queue: VecDeque::with_capacity(EVENTS_MAX), lost: 0 },
            wheel: Wheel::new(SESSIONS_MAX + 2 * SLOTS_PER_WORKER as usize),
        }
    }

    /// Carries out one order of the control thread.
    pub fn command(&mut self, command: Command, now: Time) {
        match command {
            Command::Install { slot, session, lanes } => self.install(slot, session, lanes),
            Command::CloseLane(index) => {
                if let Some(entry) = self.open.get_mut(usize::from(index.slot()))
                    && entry.as_ref().is_some_and(|end| end.receiver() == index)
                {
                    *entry = None;
                }
            }
            Command::Remove(slot) => self.remove(slot),
            Command::Routes(snapshot) => {
                let old = std::mem::replace(&mut self.snapshot, snapshot);
                self.events.push(Event::Retired(old));
            }
            Command::Echo(slot) => {
                if let Some(session) = session_mut(&mut self.sessions, slot) {
                    let request = Control::EchoRequest(session::echo_token(now));
                    if let Err(reason) = session.queue_control(request).and_then(|()| self.waiting.push(slot)) {
                        self.counters.drop(reason);
                    }
                }
            }
        }
    }

    #[allow(clippy::vec_box, reason = "see Command::Install")]
    fn install(&mut self, slot: SessionSlot, mut session: Box<Session>, lanes: Vec<Box<OpenEnd>>) {
        self.remove(slot);
        session.expiry = self.schedule(session.seal.expires_at(), Deadline::Expire(slot));
        for end in lanes {
            if let Some(entry) = self.open.get_mut(usize::from(end.receiver().slot())) {
                *entry = Some(end);
            }
        }
        if let Some(entry) = self.sessions.get_mut(slot.0 as usize) {
            *entry = Some(session);
        }
    }

    fn remove(&mut self, slot: SessionSlot) {
        let session = self.sessions.get_mut(slot.0 as usize).and_then(Option::take);
        if let Some(timer) = session.and_then(|session| session.expiry) {
            self.wheel.cancel(timer);
        }
    }

    fn schedule(&mut self, at: Time, what: Deadline) -> Option<TimerId> {
        // The wheel has room for a deadline of every session and two of every lane there can be.
        let scheduled = self.wheel.schedule(at, what);
        debug_assert!(scheduled.is_ok(), "the wheel is large enough");
        scheduled.ok()
    }

    /// Opens a burst of datagrams: inner packets go to `lan`, packets for other peers and answers to `wan`.
    pub fn decapsulate(&mut self, now: Time, rx: &mut impl RxBurst, lan: &mut impl TxSink, wan: &mut impl TxSink) {
        self.counters.add(Metric::WanBursts, 1);
        for i in 0..rx.len() {
            let (frame, meta) = rx.frame(i);
            if meta.truncated {
                self.counters.drop(DropReason::OuterOversized);
                continue;
            }
            let segment = if meta.segment == 0 { frame.len().max(1) } else { usize::from(meta.segment) };
            for datagram in frame.chunks_mut(segment) {
                if let Err(reason) = self.open(now, datagram, lan) {
                    self.counters.drop(reason);
                }
                // One train can bring more for other peers than the outbox holds, so the batch's end is not the only place to empty it.
                if self.outbox.is_half_full() {
                    self.send_own(now, wan);
                }
            }
        }
        self.send_own(now, wan);
    }

    /// Opens one datagram.
    fn open(&mut self, now: Time, datagram: &mut [u8], lan: &mut impl TxSink) -> Result<(), DropReason> {
        if datagram.len() > TRAIN_LEN_MAX {
            return Err(DropReason::OuterOversized);
        }
        let header = DataHeader::parse(datagram).map_err(|error| match error {
            HeaderError::Truncated => DropReason::OuterTruncated,
            HeaderError::Type => DropReason::OuterType,
            HeaderError::Version => DropReason::OuterVersion,
            HeaderError::Reserved => DropReason::OuterReserved,
        })?;
        if header.receiver.worker() != self.worker {
            return Err(DropReason::UnknownIndex);
        }
        let end = self.open.get_mut(usize::from(header.receiver.slot())).and_then(Option::as_mut);
        let end = end.ok_or(DropReason::UnknownIndex)?;
        let generation = end.lane.generation();
        let plaintext = end.lane.open(&header, datagram, now)?;
        self.counters.add(Metric::DatagramsOpened, 1);
        let mut arrival = Arrival {
            now,
            from: end.session,
            session: self.sessions.get_mut(end.session.0 as usize).and_then(Option::as_deref_mut),
            snapshot: &self.snapshot,
            counters: &self.counters,
            limiter: &mut self.limiter,
            outbox: &mut self.outbox,
            waiting: &mut self.waiting,
            events: &mut self.events,
            round_trip: None,
            lan,
        };
        end.partial.feed(header.counter, plaintext, &mut arrival);
        if let Some(round_trip) = arrival.round_trip {
            end.lane.set_round_trip(round_trip);
        }
        if end.lane.generation() != generation
            && let Some(at) = end.lane.next_deadline()
        {
            self.schedule(at, Deadline::EraseOld(header.receiver));
        }
        Ok(())
    }

    /// Seals a burst of inner packets towards the peers that they are routed to; errors to their senders go to `lan`.
    pub fn encapsulate(&mut self, now: Time, rx: &mut impl RxBurst, wan: &mut impl TxSink, lan: &mut impl TxSink) {
        self.counters.add(Metric::LanBursts, 1);
        self.batch.clear();
        for i in 0..rx.len().min(BURST_LEN) {
            let (packet, meta) = rx.frame(i);
            let judged = if meta.truncated { Err(DropReason::LanReadTruncated) } else { self.route(now, packet, lan) };
            match judged {
                Ok(slot) => self.batch.push(i, slot, packet.len()),
                Err(reason) => self.counters.drop(reason),
            }
        }
        for chain in 0..self.batch.count {
            let members = self.batch.members(chain);
            let sent = self.send(now, self.batch.chains[chain].slot, &members, &mut InBurst(rx, &members), wan);
            self.counters.add(Metric::LanToWanPackets, sent as u64);
            self.counters.add(Metric::LanToWanBytes, members.bytes(sent));
        }
        self.send_own(now, wan);
    }

    /// Which peer a packet from the local side goes to.
    fn route(&mut self, now: Time, packet: &[u8], lan: &mut impl TxSink) -> Result<SessionSlot, DropReason> {
        let inner = Inner::parse(packet).map_err(|reason| match reason {
            DropReason::InnerMalformed | DropReason::InnerHeaderChain => DropReason::LocalMalformed,
            other => other,
        })?;
        inner.scope()?;
        if self.snapshot.next_hop(inner.source) != Some(NextHop::Local) {
            return Err(DropReason::LocalSource);
        }
        let (kind, reason) = match self.snapshot.next_hop(inner.destination) {
            Some(NextHop::Session(slot)) => match session(&self.sessions, slot) {
                Some(session) if !too_big(&inner, packet.len(), session) => return Ok(slot),
                Some(session) => (ErrorKind::PacketTooBig { mtu: session.inner_mtu }, DropReason::PacketTooBig),
                None => (ErrorKind::HostUnreachable, DropReason::NoSession),
            },
            Some(NextHop::Local) | None => (ErrorKind::NoRoute, DropReason::NoRoute),
        };
        if self.limiter.admit(now)
            && let Some(out) = lan.slot(icmp::ERROR_LEN_MAX)
            && let Some(len) = icmp::error(kind, self.snapshot.gateway_v4, self.snapshot.gateway_v6, packet, out)
        {
            lan.commit(len, TxMeta::default());
            self.counters.add(Metric::IcmpErrorsSent, 1);
        }
        Err(reason)
    }

    /// Sends what came up inside the engine: packets between peers, ICMP errors, echoes.
    fn send_own(&mut self, now: Time, wan: &mut impl TxSink) {
        self.batch.clear();
        for i in 0..self.outbox.len() {
            self.batch.push(i, self.outbox.to(i), self.outbox.packet(i).len());
        }
        for chain in 0..self.batch.count {
            let members = self.batch.members(chain);
            let outbox = std::mem::take(&mut self.outbox);
            self.send(now, self.batch.chains[chain].slot, &members, &mut InOutbox(&outbox, &members), wan);
            self.outbox = outbox;
        }
        self.outbox.clear();
        for i in 0..std::mem::take(&mut self.waiting.count) {
            let slot = self.waiting.slots[i];
            if session(&self.sessions, slot).is_some_and(Session::has_control) {
                self.send(now, slot, &Members::EMPTY, &mut Nothing, wan);
            }
        }
    }

    /// Plans, lays and seals the members for one peer, its waiting control blocks first. Returns how many packets went out.
    fn send(
        &mut self,
        now: Time,
        slot: SessionSlot,
        members: &Members,
        packets: &mut impl Packets,
        wan: &mut impl TxSink,
    ) -> usize {
        let Some(session) = session_mut(&mut self.sessions, slot) else {
            self.counters.drop_n(DropReason::NoSession, members.count as u64);
            return 0;
        };
        let control = session.take_control();
        let plan = Plan::new(control.bytes().len(), &members.lens[..members.count], session.payload_len);
        let (endpoint, lane) = (Some(session.endpoint), &mut session.seal);
        let sent = bundle::transmit(&plan, control.bytes(), packets, lane, wan, endpoint, now);
        if sent.trains == 0 {
            session.put_back_control(control);
        }
        if let Some(reason) = sent.stopped {
            self.counters.drop_n(reason, (members.count - sent.packets) as u64);
        }
        self.counters.add(Metric::TrainsSent, sent.trains as u64);
        self.counters.add(Metric::DatagramsSealed, sent.datagrams as u64);
        self.counters.add(Metric::SealedBytes, sent.bytes as u64);
        if !session.rekey_told && session.seal.rekey_due(now) {
            session.rekey_told = true;
            self.events.push(Event::RekeyDue(session.id));
        }
        sent.packets
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Time) {
        while let Some(deadline) = self.wheel.poll(now) {
            match deadline {
                Deadline::EraseOld(index) => {
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
            }
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wheel.next_deadline()
    }

    /// Sends control blocks that wait, in datagrams of their own. Batches take them along; this is for when there is none.
    pub fn send_waiting(&mut self, now: Time, wan: &mut impl TxSink) {
        if self.waiting.count > 0 {
            self.send_own(now, wan);
        }
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

/// No packets at all: a datagram of control blocks.
struct Nothing;

impl Packets for Nothing {
    fn packet(&mut self, _: usize) -> &[u8] {
        &[]
    }
}

/// What one opened datagram meets on its way inwards.
struct Arrival<'a, L> {
    now: Time,
    from: SessionSlot,
    session: Option<&'a mut Session>,
    snapshot: &'a Snapshot,
    counters: &'a Counters,
    limiter: &'a mut ErrorLimiter,
    outbox: &'a mut Outbox,
    waiting: &'a mut Waiting,
    events: &'a mut Events,
    round_trip: Option<Duration>,
    lan: &'a mut L,
}

impl<L: TxSink> Arrival<'_, L> {
    fn judge(&mut self, packet: &mut [u8]) -> Result<(), DropReason> {
        let session = self.session.as_deref().ok_or(DropReason::NoSession)?;
        let inner = Inner::parse(packet)?;
        inner.scope()?;
        if !session.sources.contains(inner.source) {
            return Err(DropReason::InnerSpoofedSource);
        }
        inner.forged_error(packet, |address| session.sources.contains(address))?;
        match self.snapshot.next_hop(inner.destination) {
            Some(NextHop::Local) => self.deliver(packet),
            Some(NextHop::Session(slot)) if slot == self.from => Err(DropReason::Hairpin),
            Some(NextHop::Session(slot)) => self.pass_on(slot, packet),
            None => Err(self.answer(ErrorKind::NoRoute, DropReason::NoRoute, packet)),
        }
    }

    fn deliver(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let slot = self.lan.slot(packet.len()).ok_or(DropReason::LanQueueFull)?;
        slot[..packet.len()].copy_from_slice(packet);
        self.lan.commit(packet.len(), TxMeta::default());
        self.counters.add(Metric::WanToLanPackets, 1);
        self.counters.add(Metric::WanToLanBytes, packet.len() as u64);
        Ok(())
    }

    /// Forwards a packet to another peer, as a router.
    fn pass_on(&mut self, to: SessionSlot, packet: &mut [u8]) -> Result<(), DropReason> {
        if !self.snapshot.transit {
            return Err(self.answer(ErrorKind::AdminProhibited, DropReason::TransitRefused, packet));
        }
        if let Err(reason) = inner::decrement_ttl(packet) {
            return Err(self.answer(ErrorKind::TimeExceeded, reason, packet));
        }
        self.outbox.push(to, packet)?;
        self.counters.add(Metric::TransitPackets, 1);
        self.counters.add(Metric::TransitBytes, packet.len() as u64);
        Ok(())
    }

    /// Tells the packet's sender why it was dropped, as far as the rate allows; gives the reason back.
    fn answer(&mut self, kind: ErrorKind, reason: DropReason, packet: &[u8]) -> DropReason {
        if self.limiter.admit(self.now) {
            let (v4, v6) = (self.snapshot.gateway_v4, self.snapshot.gateway_v6);
            match self.outbox.push_with(self.from, icmp::ERROR_LEN_MAX, |out| icmp::error(kind, v4, v6, packet, out)) {
                Ok(true) => self.counters.add(Metric::IcmpErrorsSent, 1),
                Ok(false) => {}
                Err(full) => self.counters.drop(full),
            }
        }
        reason
    }
}

impl<L: TxSink> Visitor for Arrival<'_, L> {
    fn packet(&mut self, packet: &mut [u8]) {
        if let Err(reason) = self.judge(packet) {
            self.counters.drop(reason);
        }
    }

    fn control(&mut self, control: Control) {
        let Some(session) = self.session.as_deref_mut() else { return };
        match control {
            Control::EchoRequest(token) => {
                let queued =
                    session.queue_control(Control::EchoReply(token)).and_then(|()| self.waiting.push(self.from));
                if let Err(reason) = queued {
                    self.counters.drop(reason);
                }
            }
            Control::EchoReply(token) => match session::round_trip(token, self.now) {
                Some(round_trip) => {
                    self.round_trip = Some(round_trip);
                    self.events.push(Event::Echo { session: session.id, round_trip });
                }
                None => self.counters.drop(DropReason::ControlMalformed),
            },
            Control::Close => self.events.push(Event::Closed(session.id)),
        }
    }

    fn dropped(&mut self, reason: DropReason) {
        self.counters.drop(reason);
    }
}
