//! What the workers know together of a session's path: how long its datagrams may be, and who finds that out.
//!
//! ```text
//!   worker 0 ── sent, heard ──▶ ┌────────────┐ ◀── sent, heard ── worker 1       any worker: follows what is in force
//!                answer ──────▶ │ SharedPath │ ◀── answer                        the prober: the first that sends on a path which
//!                               └────────────┘                                   nobody looks after; it drives a PathMtu until the
//!                                     ▲ in force, prober                         path is idle, then anyone may be the next
//! ```
//!
//! The bytes of a datagram follow every step of the search at once, but the inner MTU only its end: meanwhile continuation blocks carry
//! what does not fit, and no host is told a number that a moment later is another (`docs/decisions/0007-start-at-the-base.md`).
//!
//! Nothing here locks: each value is one atomic, and a late look at it costs a probe at most. What is asked for and when is decided by
//! [`PathMtu`]; this part carries it between workers, session, timers and port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::wire::{DATA_LEN_MIN, HEADER_LEN};

use super::block::Control;
use super::bundle::{DATAGRAM_LEN_MIN, PayloadLen};
use super::counters::Metric;
use super::departure::Departure;
use super::path_mtu::{BASE_LEN, PathMtu, Traffic};
use super::port::{TRAIN_LEN_MAX, TxMeta, TxSink};
use super::session::Session;
use super::snapshot::SessionSlot;
use super::time::Time;
use super::wheel::{TICK_NS, TimerId};
use super::{Deadline, Event, session_mut};

/// Smallest inner MTU: what IPv6 asks of every link (RFC 8200 §5). On narrower paths the lane cuts.
pub const INNER_MTU_MIN: u16 = 1280;
/// Bytes of an IPv4 header and a UDP header (RFC 791, RFC 768).
const OVERHEAD_V4: u16 = 28;
/// Bytes of an IPv6 header and a UDP header (RFC 8200, RFC 768).
const OVERHEAD_V6: u16 = 48;

/// Nobody looks after the path; no worker has this number.
const NOBODY: u8 = u8::MAX;

// Bits of what has happened since the prober looked.
const SENT: u8 = 1;
const SENT_LONG: u8 = 2;
const HEARD: u8 = 4;

/// One session's path, shared by its workers and the control thread.
#[derive(Debug)]
pub struct SharedPath {
    endpoint: SocketAddr,
    ceiling: u16,
    inner_mtu_max: u16,
    /// Bytes of a datagram in the upper half, the inner MTU in the lower one.
    in_force: AtomicU32,
    happened: AtomicU8,
    prober: AtomicU8,
    /// The newest answer's token; zero when it was taken.
    answer: AtomicU64,
    /// When that answer came, in nanoseconds. Written before it, read after it.
    answered_at: AtomicU64,
}

impl SharedPath {
    /// A path of which nothing is known but its limits: no datagram will be longer than `datagram_len_max` bytes of UDP payload, no inner
    /// packet longer than `inner_mtu_max` passes without an error to its sender.
    pub fn new(endpoint: SocketAddr, datagram_len_max: u16, inner_mtu_max: u16) -> Self {
        let ceiling = datagram_len_max.min(TRAIN_LEN_MAX as u16).max(DATAGRAM_LEN_MIN);
        Self {
            endpoint,
            ceiling,
            inner_mtu_max,
            in_force: AtomicU32::new(pack(BASE_LEN.min(ceiling), inner_mtu_max)),
            happened: AtomicU8::new(0),
            prober: AtomicU8::new(NOBODY),
            answer: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
        }
    }

    /// Whether this is what [`Self::new`] would make of these, so that what was found out still holds.
    pub fn is_for(&self, endpoint: SocketAddr, datagram_len_max: u16, inner_mtu_max: u16) -> bool {
        let other = Self::new(endpoint, datagram_len_max, inner_mtu_max);
        (self.endpoint, self.ceiling, self.inner_mtu_max) == (other.endpoint, other.ceiling, other.inner_mtu_max)
    }

    /// The path to another endpoint with the same limits, of which nothing is known.
    pub fn to(&self, endpoint: SocketAddr) -> Self {
        Self::new(endpoint, self.ceiling, self.inner_mtu_max)
    }

    /// Bytes of UDP payload of the longest datagram, and the inner MTU, as they are now.
    pub fn in_force(&self) -> (u16, u16) {
        let both = self.in_force.load(Ordering::Relaxed);
        ((both >> 16) as u16, both as u16)
    }

    /// Notes what has happened. Mostly it is known already, and then the line stays shared.
    fn note(&self, what: u8) {
        if self.happened.load(Ordering::Relaxed) & what != what {
            self.happened.fetch_or(what, Ordering::Relaxed);
        }
    }
}

fn pack(datagram_len: u16, inner_mtu: u16) -> u32 {
    u32::from(datagram_len) << 16 | u32::from(inner_mtu)
}

/// One worker's view of a session's path.
#[derive(Debug)]
pub(super) struct Path {
    shared: Arc<SharedPath>,
    machine: PathMtu,
    /// Whether this worker is the prober.
    is_prober: bool,
    timer: Option<TimerId>,
}

impl Path {
    /// The packets of the peer arrive.
    pub(super) fn heard(&self) {
        self.shared.note(HEARD);
    }

    /// An authenticated answer to a probe. Returns whether this worker is the one that waits for it.
    pub(super) fn answered(&self, token: u64, now: Time) -> bool {
        self.shared.answered_at.store(now.as_nanos(), Ordering::Relaxed);
        self.shared.answer.store(token, Ordering::Release);
        self.is_prober
    }

    /// Lets another worker look after the path. Returns the timer that is no longer needed.
    pub(super) fn release(&mut self) -> Option<TimerId> {
        if std::mem::take(&mut self.is_prober) {
            self.shared.prober.store(NOBODY, Ordering::Relaxed);
        }
        self.timer.take()
    }

    /// What all workers know of it.
    #[cfg(test)]
    pub(super) fn share(&self) -> Arc<SharedPath> {
        Arc::clone(&self.shared)
    }

    /// Whether both are views of one path.
    pub(super) fn is_of_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Notes that packets went out in `bytes` of datagrams. Returns whether this worker has something to do about the path: nobody else looks
    /// after it, or an answer came by another worker.
    fn sent(&mut self, bytes: usize, worker: u8, now: Time) -> bool {
        let (len, _) = self.shared.in_force();
        let short = if len > BASE_LEN { BASE_LEN } else { DATAGRAM_LEN_MIN };
        self.shared.note(if bytes > usize::from(short) { SENT | SENT_LONG } else { SENT });
        if self.is_prober {
            return self.shared.answer.load(Ordering::Relaxed) != 0;
        }
        let prober = &self.shared.prober;
        if prober.load(Ordering::Relaxed) != NOBODY
            || prober.compare_exchange(NOBODY, worker, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return false;
        }
        self.is_prober = true;
        self.machine.resume(len, now);
        true
    }

    /// Tells the machine what has happened, and makes what it then says known to all workers.
    fn poll(&mut self, now: Time) -> Option<super::path_mtu::Probe> {
        let answer = self.shared.answer.swap(0, Ordering::Acquire);
        if answer != 0 {
            let at = Time::from_nanos(self.shared.answered_at.load(Ordering::Relaxed));
            // A late answer is no fault of the peer's.
            self.machine.on_answer(answer, at.min(now));
        }
        let happened = self.shared.happened.swap(0, Ordering::Relaxed);
        let has = |what| happened & what != 0;
        let traffic = Traffic { sent: has(SENT), sent_long: has(SENT_LONG), heard: has(HEARD) };
        let probe = self.machine.poll(now, traffic);
        let inner_mtu = self
            .machine
            .settled()
            .map(|len| (len - DATA_LEN_MIN as u16).max(INNER_MTU_MIN).min(self.shared.inner_mtu_max));
        let (_, before) = self.shared.in_force();
        let in_force = pack(self.machine.datagram_len(), inner_mtu.unwrap_or(before));
        self.shared.in_force.store(in_force, Ordering::Relaxed);
        probe
    }
}

impl Session {
    /// Has the session's sizes follow what is found out of its path, from now on. Without this they stay as [`Session::new`] was told.
    pub fn follow(&mut self, shared: Arc<SharedPath>) {
        let overhead = if shared.endpoint.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let machine = PathMtu::new(shared.ceiling, overhead);
        self.path = Some(Path { shared, machine, is_prober: false, timer: None });
        self.follow_path();
    }

    /// Takes the sizes over that are in force now. Returns whether they are others than before.
    pub(super) fn follow_path(&mut self) -> bool {
        let Some(path) = &self.path else { return false };
        let (datagram_len, inner_mtu) = path.shared.in_force();
        // It is never below the least that a path may carry.
        let Some(payload_len) = PayloadLen::new(datagram_len) else { return false };
        let before = (self.payload_len, self.inner_mtu);
        (self.payload_len, self.inner_mtu) = (payload_len, inner_mtu);
        before != (payload_len, inner_mtu)
    }
}

impl Departure<'_> {
    /// Packets of the session in this slot went out in `bytes` of datagrams.
    pub(super) fn note_sent(&mut self, slot: SessionSlot, bytes: usize) {
        let now = self.now;
        let Some(path) = session_mut(self.sessions, slot).and_then(|session| session.path.as_mut()) else {
            return;
        };
        if path.sent(bytes, self.worker, now) {
            match path.timer {
                // An answer: what it leads to need not wait until it would have been given up.
                Some(_) => self.path_is_due(slot),
                None => path.timer = self.wheel.schedule(now, Deadline::Probe(slot)).ok(),
            }
        }
    }

    /// There is something to do about the path: it is done when what waits is sent, at the end of this batch or pass.
    pub(super) fn path_is_due(&mut self, slot: SessionSlot) {
        let now = self.now;
        let Some(path) = session_mut(self.sessions, slot).and_then(|session| session.path.as_mut()) else {
            return;
        };
        // It may be the one that has just run out; then it names nothing any more.
        if let Some(timer) = path.timer.take() {
            self.wheel.cancel(timer);
        }
        if self.waiting.push(slot).is_err() {
            // So many others wait that there is no place in this pass. A tick later is another pass: what is due now would be found by this
            // one, again and again.
            let later = now.plus(Duration::from_nanos(TICK_NS));
            path.timer = self.wheel.schedule(later, Deadline::Probe(slot)).ok();
        }
    }

    /// Does what the machine of the session's path wants done, if this worker looks after it.
    pub(super) fn drive_path(&mut self, slot: SessionSlot, wan: &mut impl TxSink) {
        let now = self.now;
        let Some(session) = session_mut(self.sessions, slot) else { return };
        let Some(path) = session.path.as_mut().filter(|path| path.is_prober) else { return };
        let probe = path.poll(now);
        let sent = probe.map(|probe| (probe, send_probe(session, probe.token, usize::from(probe.len), now, wan)));
        let Some(path) = session.path.as_mut() else { return };
        if let Some((_, Err(DropReason::WanQueueFull))) = sent {
            path.machine.on_unsent(now);
        }
        let deadline = path.machine.next_deadline();
        let former = if deadline.is_some() { path.timer.take() } else { path.release() };
        if let Some(timer) = former {
            self.wheel.cancel(timer);
        }
        if let Some(deadline) = deadline {
            path.timer = self.wheel.schedule(deadline, Deadline::Probe(slot)).ok();
        }
        if session.follow_path() {
            let datagram_len = (session.payload_len.bytes() + DATA_LEN_MIN) as u16;
            self.events.push(Event::PathMtu { session: session.id, datagram_len, inner_mtu: session.inner_mtu });
        }
        match sent {
            Some((probe, Ok(()))) => {
                self.counters.add(Metric::ProbesSent, 1);
                self.counters.add(Metric::TrainsSent, 1);
                self.counters.add(Metric::DatagramsSealed, 1);
                self.counters.add(Metric::SealedBytes, u64::from(probe.len));
            }
            Some((_, Err(reason))) => self.counters.drop(reason),
            None => {}
        }
    }
}

/// Seals a datagram of `len` bytes that holds a probe request and padding.
fn send_probe(
    session: &mut Session,
    token: u64,
    len: usize,
    now: Time,
    wan: &mut impl TxSink,
) -> Result<(), DropReason> {
    let slot = wan.slot(len).ok_or(DropReason::WanQueueFull)?;
    let slot = slot.get_mut(..len).ok_or(DropReason::WanQueueFull)?;
    slot.fill(0);
    let block = slot.get_mut(HEADER_LEN..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::WanQueueFull)?;
    Control::ProbeRequest(token.to_be_bytes()).encode(block);
    session.seal.seal(slot, now)?;
    wan.commit(len, TxMeta { destination: Some(session.endpoint), source: session.source, ..TxMeta::default() });
    Ok(())
}
