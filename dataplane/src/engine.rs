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
mod arrival;
mod batch;
pub mod block;
pub mod bundle;
pub mod counters;
pub mod foreign;
pub mod icmp;
pub mod inner;
pub mod keys;
pub mod lane;
pub mod lpm;
pub mod offload;
mod outbox;
pub mod path;
pub mod path_mtu;
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

use self::arrival::Arrival;
use self::batch::{Batch, InBurst, InOutbox, Members, Nothing};
use self::block::Control;
use self::bundle::{Packets, Plan};
use self::counters::{Counters, Metric};
use self::foreign::{FOREIGN_RUNS_MAX, Foreign, ForeignRun};
use self::icmp::{ERROR_RATE, ErrorKind, ErrorLimiter};
use self::inner::{Inner, mss};
use self::outbox::Outbox;
use self::port::{BURST_LEN, RxBurst, RxMeta, TRAIN_LEN_MAX, TxMeta, TxSink};
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
    /// Stops opening a lane and erases its keys.
    CloseLane(ReceiverIndex),
    /// Takes a session down, with the lane that this worker seals and those that it opens.
    ///
    /// Whoever gives the slot to another session swaps the snapshot before: routes name slots, and packets for the one would reach the other.
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
    /// The longest datagram of a path, or the inner MTU that follows from it, has changed.
    PathMtu {
        /// Which session.
        session: SessionId,
        /// Bytes of UDP payload.
        datagram_len: u16,
        /// Bytes of an inner packet.
        inner_mtu: u16,
    },
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
    /// The session's path may have to be probed.
    Probe(SessionSlot),
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
/// Call order per batch: [`Self::command`] for what waits, [`Self::decapsulate`], [`Self::encapsulate`], [`Self::expire`], then drain
/// [`Self::poll_event`]; sleep no longer than [`Self::next_deadline`].
pub struct Engine {
    worker: u8,
    workers: u8,
    snapshot: Arc<Snapshot>,
    sessions: Vec<Option<Box<Session>>>,
    open: Vec<Option<Box<OpenEnd>>>,
    /// For each open lane, when its old key is erased: one timer a lane, however fast a peer goes through its generations.
    erasures: Vec<Option<TimerId>>,
    counters: Counters,
    /// For errors to the local side. Each peer has its own, so that none can use up another's.
    limiter: ErrorLimiter,
    outbox: Outbox,
    batch: Batch,
    /// Sessions whose control blocks wait for a datagram.
    waiting: Waiting,
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
            sessions: std::iter::repeat_with(|| None).take(SESSIONS_MAX).collect(),
            open: std::iter::repeat_with(|| None).take(SLOTS_PER_WORKER as usize).collect(),
            erasures: vec![None; SLOTS_PER_WORKER as usize],
            counters,
            limiter: ErrorLimiter::new(ERROR_RATE),
            outbox: Outbox::new(),
            batch: Batch::new(),
            waiting: Waiting { slots: [SessionSlot(u32::MAX); BURST_LEN], count: 0 },
            foreign: Foreign(Vec::with_capacity(FOREIGN_RUNS_MAX)),
            events: Events { queue: VecDeque::with_capacity(EVENTS_MAX), lost: 0 },
            wheel: Wheel::new(2 * SESSIONS_MAX + SLOTS_PER_WORKER as usize),
        }
    }

    /// Carries out one order of the control thread.
    pub fn command(&mut self, command: Command, now: Time) {
        match command {
            Command::Install { slot, session, lanes } => self.install(slot, session, lanes),
            Command::CloseLane(index) => {
                let at = usize::from(index.slot());
                if self.open.get(at).and_then(Option::as_ref).is_some_and(|end| end.receiver() == index) {
                    self.close(at);
                }
            }
            Command::Remove(slot) => {
                self.take_session(slot);
                self.close_lanes_of(slot);
            }
            Command::Routes(snapshot) => {
                let old = std::mem::replace(&mut self.snapshot, snapshot);
                self.events.push(Event::Retired(old));
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

    #[allow(clippy::vec_box, reason = "see Command::Install")]
    fn install(&mut self, slot: SessionSlot, mut session: Box<Session>, lanes: Vec<Box<OpenEnd>>) {
        if self.sessions.len() <= slot.0 as usize {
            return;
        }
        match self.take_session(slot) {
            Some(former) if former.id == session.id => session.take_over(*former),
            // A lane knows its session by the slot; what is left of another's must not speak for this one.
            _ => self.close_lanes_of(slot),
        }
        session.expiry = self.schedule(session.seal.expires_at(), Deadline::Expire(slot));
        self.sessions[slot.0 as usize] = Some(session);
        for end in lanes {
            let at = usize::from(end.receiver().slot());
            if at < self.open.len() {
                self.close(at);
                self.open[at] = Some(end);
            }
        }
    }

    fn take_session(&mut self, slot: SessionSlot) -> Option<Box<Session>> {
        let mut session = self.sessions.get_mut(slot.0 as usize).and_then(Option::take)?;
        let probing = session.path.as_mut().and_then(|path| path.release());
        for timer in [session.expiry, probing].into_iter().flatten() {
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
        // The wheel has room for two deadlines of every session and one of every lane there can be.
        let scheduled = self.wheel.schedule(at, what);
        debug_assert!(scheduled.is_ok(), "the wheel is large enough");
        scheduled.ok()
    }

    /// Opens a burst of datagrams: inner packets go to `lan`, packets for other peers and answers to `wan`.
    pub fn decapsulate(&mut self, now: Time, rx: &mut impl RxBurst, lan: &mut impl TxSink, wan: &mut impl TxSink) {
        self.counters.add(Metric::WanBursts, u64::from(!rx.is_empty()));
        for i in 0..rx.len() {
            let (frame, meta) = rx.frame(i);
            if meta.truncated {
                self.counters.drop(DropReason::OuterOversized);
                continue;
            }
            if frame.is_empty() {
                self.counters.drop(DropReason::OuterTruncated);
                continue;
            }
            let segment = if meta.segment == 0 { frame.len() } else { usize::from(meta.segment) };
            for (k, datagram) in frame.chunks_mut(segment).enumerate() {
                match self.open(now, datagram, lan) {
                    Ok(()) => {}
                    Err(Refused::Foreign(worker)) => {
                        self.foreign.push(i, k * segment, datagram.len(), worker, &self.counters)
                    }
                    Err(Refused::Dropped(reason)) => self.counters.drop(reason),
                }
                // One train can bring more for other peers than the outbox holds, so the batch's end is not the only place to empty it.
                if self.outbox.is_half_full() {
                    self.send_own(now, wan);
                }
            }
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

    /// Opens one datagram.
    fn open(&mut self, now: Time, datagram: &mut [u8], lan: &mut impl TxSink) -> Result<(), Refused> {
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
        let at = usize::from(header.receiver.slot());
        let end = self.open.get_mut(at).and_then(Option::as_mut);
        let end = end.ok_or(DropReason::UnknownIndex)?;
        let generation = end.lane.generation();
        let plaintext = end.lane.open(&header, datagram, now)?;
        self.counters.add(Metric::DatagramsOpened, 1);
        let mut arrival = Arrival {
            now,
            from: end.session,
            sessions: &mut self.sessions,
            snapshot: &self.snapshot,
            counters: &self.counters,
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
            && let Some(due) = end.lane.next_deadline()
        {
            // The key that an earlier timer was for is gone already.
            if let Some(timer) = self.erasures[at].take() {
                self.wheel.cancel(timer);
            }
            self.erasures[at] = self.schedule(due, Deadline::EraseOld(header.receiver));
        }
        Ok(())
    }

    /// Seals a burst of inner packets towards the peers that they are routed to; errors to their senders go to `lan`.
    pub fn encapsulate(&mut self, now: Time, rx: &mut impl RxBurst, wan: &mut impl TxSink, lan: &mut impl TxSink) {
        self.counters.add(Metric::LanBursts, u64::from(!rx.is_empty()));
        self.batch.clear();
        for i in 0..rx.len().min(BURST_LEN) {
            let (packet, meta) = rx.frame(i);
            let judged =
                if meta.truncated { Err(DropReason::LanReadTruncated) } else { self.route(now, packet, meta, lan) };
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
    fn route(
        &mut self,
        now: Time,
        packet: &mut [u8],
        meta: RxMeta,
        lan: &mut impl TxSink,
    ) -> Result<SessionSlot, DropReason> {
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
                Some(session) if !too_big(&inner, packet.len(), session) => {
                    mss::clamp(packet, &inner, session.inner_mtu, meta.offload.checksum.is_some());
                    return Ok(slot);
                }
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
        let outbox = std::mem::take(&mut self.outbox);
        for from in (0..outbox.len()).step_by(BURST_LEN) {
            self.batch.clear();
            for i in from..outbox.len().min(from + BURST_LEN) {
                self.batch.push(i - from, outbox.to(i), outbox.packet(i).len());
            }
            for chain in 0..self.batch.count {
                let members = self.batch.members(chain);
                let mut packets = InOutbox(&outbox, &members, from);
                let sent = self.send(now, self.batch.chains[chain].slot, &members, &mut packets, wan);
                for &number in &members.numbers[..sent] {
                    let i = from + usize::from(number);
                    if outbox.is_transit(i) {
                        self.counters.add(Metric::TransitPackets, 1);
                        self.counters.add(Metric::TransitBytes, outbox.packet(i).len() as u64);
                    } else {
                        self.counters.add(Metric::IcmpErrorsSent, 1);
                    }
                }
            }
        }
        self.outbox = outbox;
        self.outbox.clear();
        for i in 0..std::mem::take(&mut self.waiting.count) {
            let slot = self.waiting.slots[i];
            if session(&self.sessions, slot).is_some_and(Session::has_control) {
                self.send(now, slot, &Members::EMPTY, &mut Nothing, wan);
            }
            self.drive_path(slot, now, wan);
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
        session.follow_path();
        let control = session.take_control();
        let plan = Plan::new(control.bytes().len(), &members.lens[..members.count], session.payload_len);
        let (endpoint, lane) = (Some(session.endpoint), &mut session.seal);
        let sent = bundle::transmit(&plan, control.bytes(), packets, lane, wan, endpoint, now);
        if let Some(reason) = sent.stopped {
            self.counters.drop_n(reason, (members.count - sent.packets) as u64);
            match reason {
                DropReason::WanQueueFull if sent.trains == 0 && control.len() > 0 => {
                    session.put_back_control(control);
                    // If too many wait already, the blocks go with the session's next packets.
                    let _ = self.waiting.push(slot);
                }
                // With keys that are at their end, they would wait for ever.
                _ if sent.trains == 0 => self.counters.drop_n(reason, control.len()),
                _ => {}
            }
        }
        self.counters.add(Metric::TrainsSent, sent.trains as u64);
        self.counters.add(Metric::DatagramsSealed, sent.datagrams as u64);
        self.counters.add(Metric::SealedBytes, sent.bytes as u64);
        if !session.rekey_told && session.seal.rekey_due(now) {
            session.rekey_told = self.events.push(Event::RekeyDue(session.id));
        }
        if sent.trains > 0 && members.count > 0 {
            self.note_sent(slot, sent.bytes, now);
        }
        sent.packets
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Time) {
        while let Some(deadline) = self.wheel.poll(now) {
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
                Deadline::Probe(slot) => self.path_is_due(slot, now),
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
            self.send(now, slot, &Members::EMPTY, &mut Nothing, wan);
        }
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
