//! Lanes by ports of their own: whether the peer's lane port can be reached from ours, asked before it is used and while it is.
//!
//! A tunnel over one pair of ports is one flow to every network card and router on its way. Where both gateways have lane ports, a lane
//! goes from the port of the worker that seals it to the port of the worker that opens it, if a probe came that way and back:
//!
//! ```text
//!   worker w, port + w mod (n + 1) ──── request ───▶ worker r, peer's port + r mod (peer's n + 1)
//!                                  ◀──── reply ────      lane w of the peer: so much it knows by itself, and asks no header
//!
//!            ┌─────────── answered ────────────┐  ┌─────┐ answered: asked again later, if there is traffic
//!            │                                 ▼  │     ▼
//!       ┌────────┐                            ┌────────┐
//!   ──▶ │ ASKING │                            │ IN USE │
//!       └────────┘                            └────────┘
//!            │ ▲ rest is over                      │
//!   lost     ▼ │                                   │ lost
//!       ┌─────────┐                                │
//!       │ RESTING │ ◀──────────────────────────────┘      "lost": MAX_LOSSES requests in a row were not answered
//!       └─────────┘  each rest is longer than the one before
//! ```
//!
//! Data goes by the lane port only while in use and by the common port otherwise, so a port that is blocked or behind an address
//! translator costs probes and nothing else; one that becomes blocked costs what is sent until the loss is seen. Nothing here moves a peer:
//! the endpoint is what the control plane says, and each lane port follows from it. A peer that answers what it was not asked is not heard.
//!
//! Like [`path`](super::path), this carries values between workers by atomics, for the reply comes by a lane that another worker may open,
//! and connects the machine to session, timers and port. [`Prober`] itself knows nothing but the time and what happened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::map::WORKERS_MAX;
use weir_abi::wire::{HEADER_LEN, ReceiverIndex, TAG_LEN};

use super::block::Control;
use super::counters::Metric;
use super::departure::Departure;
use super::port::{TxMeta, TxSink};
use super::session::Session;
use super::snapshot::SessionSlot;
use super::time::Time;
use super::wheel::TimerId;
use super::{Deadline, session_mut};

/// Requests that must be lost in a row before the lane port counts as lost: as many as for a path MTU (RFC 8899 §5.1.2).
pub const MAX_LOSSES: usize = 3;
/// How long an answer is awaited while no round trip is known.
pub const ANSWER_TIMER_UNKNOWN: Duration = Duration::from_millis(500);
/// Shortest wait for an answer once the round trip is known: what a busy peer may add to a short path.
pub const ANSWER_TIMER_MIN: Duration = Duration::from_millis(200);
/// Longest wait for one answer.
pub const ANSWER_TIMER_MAX: Duration = Duration::from_secs(2);
/// Round trips that an answer is awaited.
pub const ANSWER_TIMER_ROUND_TRIPS: u32 = 2;
/// Time from the first answer to the next request. It doubles with every answer, up to [`CONFIRMATION_INTERVAL_MAX`].
pub const CONFIRMATION_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time for which a lane port is used without a request: what a lane that has become blocked may lose, but for the wait for
/// [`MAX_LOSSES`] answers.
pub const CONFIRMATION_INTERVAL_MAX: Duration = Duration::from_secs(4);
/// The first rest of a lane port that does not answer. It doubles up to [`REST_MAX`].
pub const REST_MIN: Duration = Duration::from_secs(10);
/// The longest rest. A firewall that is opened is found out within this.
pub const REST_MAX: Duration = Duration::from_secs(600);
/// How long a lane counts as used after its last packet.
pub const ACTIVE_FOR: Duration = Duration::from_secs(2);

/// Bits of a token that name the worker which asks.
const WORKER_BITS: u32 = 4;
/// Bytes of a datagram that holds one request or reply.
const DATAGRAM_LEN: usize = HEADER_LEN + Control::LEN_MAX + TAG_LEN;

const _: () = assert!(WORKERS_MAX as usize <= 1 << WORKER_BITS);

/// Where the machine is; see the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asking,
    InUse,
    Resting,
}

/// The state machine of one sealing lane.
///
/// Call [`Self::poll`] at [`Self::next_deadline`], and send a request with the token that it returns.
#[derive(Clone, Debug)]
pub struct Prober {
    worker: u8,
    state: State,
    /// Tokens of the requests of this round, the first `tries` of them.
    tokens: [u64; MAX_LOSSES],
    tries: usize,
    deadline: Time,
    /// Nothing is to be done until there is traffic.
    dormant: bool,
    used_at: Time,
    round_trip: Option<Duration>,
    interval: Duration,
    rest: Duration,
}

impl Prober {
    /// A machine for the lane that `worker` seals, of which nothing is known.
    pub fn new(worker: u8) -> Self {
        Self {
            worker,
            state: State::Asking,
            tokens: [0; MAX_LOSSES],
            tries: 0,
            deadline: Time::ZERO,
            dormant: true,
            used_at: Time::ZERO,
            round_trip: None,
            interval: CONFIRMATION_INTERVAL_MIN,
            rest: REST_MIN,
        }
    }

    /// Whether data goes by the lane port.
    pub fn is_in_use(&self) -> bool {
        self.state == State::InUse
    }

    /// When [`Self::poll`] has something to do; `None` until there is traffic.
    pub fn next_deadline(&self) -> Option<Time> {
        (!self.dormant).then_some(self.deadline)
    }

    /// Packets went out. Returns whether the machine was at rest for want of them and has a deadline now.
    pub fn sent(&mut self, now: Time) -> bool {
        self.used_at = now;
        let wakes = std::mem::take(&mut self.dormant);
        if wakes {
            // A port that was good before may have been forgotten by a firewall meanwhile.
            self.deadline = if self.state == State::Resting { self.deadline.max(now) } else { now };
        }
        wakes
    }

    /// A reply. Only one to a request of the present round says anything.
    pub fn on_answer(&mut self, token: u64, now: Time) {
        if !self.tokens[..self.tries].contains(&token) {
            return;
        }
        self.round_trip = Some(now.since(Time::from_nanos(token >> WORKER_BITS)));
        self.interval = match self.state {
            State::InUse => (self.interval * 2).min(CONFIRMATION_INTERVAL_MAX),
            State::Asking | State::Resting => CONFIRMATION_INTERVAL_MIN,
        };
        self.state = State::InUse;
        self.rest = REST_MIN;
        self.tries = 0;
        self.deadline = now.plus(self.interval);
    }

    /// Does what is due; returns the token of a request to be sent.
    pub fn poll(&mut self, now: Time) -> Option<u64> {
        if self.dormant || now < self.deadline {
            return None;
        }
        if self.tries == MAX_LOSSES {
            self.state = State::Resting;
            self.tries = 0;
            self.deadline = now.plus(self.rest);
            self.rest = (self.rest * 2).min(REST_MAX);
            return None;
        }
        if self.tries == 0 {
            if now.since(self.used_at) >= ACTIVE_FOR {
                self.dormant = true;
                return None;
            }
            if self.state == State::Resting {
                self.state = State::Asking;
            }
        }
        let token = now.as_nanos() << WORKER_BITS | u64::from(self.worker);
        self.tokens[self.tries] = token;
        self.tries += 1;
        self.deadline = now.plus(self.answer_timer());
        Some(token)
    }

    fn answer_timer(&self) -> Duration {
        self.round_trip.map_or(ANSWER_TIMER_UNKNOWN, |round_trip| {
            (round_trip * ANSWER_TIMER_ROUND_TRIPS).clamp(ANSWER_TIMER_MIN, ANSWER_TIMER_MAX)
        })
    }
}

/// What the workers of a session and the control thread know together of its lane ports.
#[derive(Debug)]
pub struct SharedLanePorts {
    endpoint: SocketAddr,
    peer_ports: u8,
    /// The newest answer for each worker; zero when it was taken.
    answers: [AtomicU64; WORKERS_MAX as usize],
    /// A bit for each worker whose lane goes by its port.
    in_use: AtomicU16,
}

impl SharedLanePorts {
    /// The ports of a peer at `endpoint` that has `peer_ports` lane ports after that one.
    pub fn new(endpoint: SocketAddr, peer_ports: u8) -> Self {
        let answers = std::array::from_fn(|_| AtomicU64::new(0));
        Self { endpoint, peer_ports, answers, in_use: AtomicU16::new(0) }
    }

    /// Whether this is what [`Self::new`] would make of these.
    pub fn is_for(&self, endpoint: SocketAddr, peer_ports: u8) -> bool {
        (self.endpoint, self.peer_ports) == (endpoint, peer_ports)
    }

    /// The ports of the same peer at another endpoint.
    pub fn to(&self, endpoint: SocketAddr) -> Self {
        Self::new(endpoint, self.peer_ports)
    }

    /// How many lanes go by their ports now.
    pub fn in_use(&self) -> u8 {
        self.in_use.load(Ordering::Relaxed).count_ones() as u8
    }

    fn note_in_use(&self, worker: u8, is_in_use: bool) {
        let bit = 1u16 << (worker % WORKERS_MAX);
        if is_in_use {
            self.in_use.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.in_use.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Where the peer's worker is reached alone; `None` when there is no such port. For some workers it is the common port.
    fn of_worker(&self, worker: u8) -> Option<SocketAddr> {
        let port = self.endpoint.port().checked_add(u16::from(worker) % (u16::from(self.peer_ports) + 1))?;
        // Everything else of it stays: a link-local address has a scope.
        let mut to = self.endpoint;
        to.set_port(port);
        Some(to)
    }
}

/// One worker's view of a session's lane ports.
#[derive(Debug)]
pub(super) struct LanePorts {
    shared: Arc<SharedLanePorts>,
    worker: u8,
    /// Where the lane goes that this worker seals, with the machine that asks; nothing when that is the common port in any case.
    own: Option<(SocketAddr, Prober)>,
    timer: Option<TimerId>,
    /// The newest request of each of the peer's workers that waits for its reply; zero for none.
    replies: [u64; WORKERS_MAX as usize],
}

impl LanePorts {
    fn new(shared: Arc<SharedLanePorts>, worker: u8, receiver: ReceiverIndex) -> Self {
        let to = shared.of_worker(receiver.worker()).filter(|to| *to != shared.endpoint);
        let own = to.map(|to| (to, Prober::new(worker)));
        Self { shared, worker, own, timer: None, replies: [0; WORKERS_MAX as usize] }
    }

    /// Where data goes, when it goes by the lane port.
    pub(super) fn in_use(&self) -> Option<SocketAddr> {
        self.own.as_ref().filter(|(_, prober)| prober.is_in_use()).map(|(to, _)| *to)
    }

    /// Whether a datagram of the peer's may come from there.
    fn is_from(&self, source: SocketAddr) -> bool {
        let (ip, port) = (self.shared.endpoint.ip(), self.shared.endpoint.port());
        source.ip() == ip && source.port().checked_sub(port).is_some_and(|off| off <= self.shared.peer_ports.into())
    }

    /// Queues the reply to a request of the peer's worker `number`, which came to our lane port.
    pub(super) fn asked(&mut self, number: u8, token: u64) {
        self.replies[usize::from(number % WORKERS_MAX)] = token;
    }

    /// An authenticated reply. Returns whether it is for this worker.
    pub(super) fn answered(&self, token: u64) -> bool {
        let worker = token as u8 % WORKERS_MAX;
        self.shared.answers[usize::from(worker)].store(token, Ordering::Relaxed);
        worker == self.worker
    }

    /// Notes that packets went out. Returns whether there is something to do.
    fn sent(&mut self, now: Time) -> bool {
        let Some((_, prober)) = &mut self.own else { return false };
        prober.sent(now) || self.shared.answers[usize::from(self.worker)].load(Ordering::Relaxed) != 0
    }

    /// Tells the machine what has happened and does what is due. Returns where to send a request.
    fn poll(&mut self, now: Time) -> Option<(SocketAddr, u64)> {
        let (to, prober) = self.own.as_mut()?;
        let before = prober.is_in_use();
        let answer = self.shared.answers[usize::from(self.worker)].swap(0, Ordering::Relaxed);
        if answer != 0 {
            prober.on_answer(answer, now);
        }
        let token = prober.poll(now);
        if prober.is_in_use() != before {
            self.shared.note_in_use(self.worker, !before);
        }
        Some(*to).zip(token)
    }

    /// Gives the timer up; the next packets wake the machine again.
    pub(super) fn release(&mut self) -> Option<TimerId> {
        if let Some((_, prober)) = &mut self.own {
            prober.dormant = true;
        }
        self.timer.take()
    }

    /// Goes on where the same session was under its former keys, if its lane goes to the same port.
    pub(super) fn take_over(&mut self, former: Self) {
        let is_same = Arc::ptr_eq(&self.shared, &former.shared);
        match (&mut self.own, former.own) {
            (Some(own), Some(former)) if is_same && own.0 == former.0 => own.1 = former.1,
            _ if is_same => self.shared.note_in_use(self.worker, false),
            _ => {}
        }
    }
}

impl Session {
    /// Has the lane that this worker seals go by lane ports where that works, from now on.
    pub fn use_lane_ports(&mut self, shared: Arc<SharedLanePorts>) {
        self.lane_ports = Some(Box::new(LanePorts::new(shared, self.seal.number(), self.seal.receiver())));
    }

    /// Where data goes, and whether from a lane port.
    pub(super) fn way(&self) -> (SocketAddr, bool) {
        match self.lane_ports.as_ref().and_then(|ports| ports.in_use()) {
            Some(to) => (to, true),
            None => (self.endpoint, false),
        }
    }

    /// Whether an authentic datagram from there comes from where the peer is.
    pub(super) fn is_from_peer(&self, source: Option<SocketAddr>) -> bool {
        let Some(source) = source else { return false };
        source == self.endpoint || self.lane_ports.as_ref().is_some_and(|ports| ports.is_from(source))
    }
}

impl Departure<'_> {
    /// Packets of the session in this slot went out.
    pub(super) fn note_sent_by_lane(&mut self, slot: SessionSlot) {
        let now = self.now;
        let session = session_mut(self.sessions, slot);
        let Some(ports) = session.and_then(|session| session.lane_ports.as_deref_mut()) else { return };
        if ports.sent(now) {
            match ports.timer {
                // An answer that came by another worker.
                Some(_) => self.lane_port_is_due(slot),
                None => ports.timer = self.wheel.schedule(now, Deadline::LanePort(slot)).ok(),
            }
        }
    }

    /// There is something to do about a lane port: it is done when what waits is sent, at the end of this batch or pass.
    pub(super) fn lane_port_is_due(&mut self, slot: SessionSlot) {
        let now = self.now;
        let session = session_mut(self.sessions, slot);
        let Some(ports) = session.and_then(|session| session.lane_ports.as_deref_mut()) else { return };
        // It may be the one that has just run out; then it names nothing any more.
        if let Some(timer) = ports.timer.take() {
            self.wheel.cancel(timer);
        }
        if self.waiting.push(slot).is_err() {
            // So many others wait that there is no place in this pass.
            ports.timer = self.wheel.schedule(now, Deadline::LanePort(slot)).ok();
        }
    }

    /// Answers the peer's requests and does what our own machine wants done.
    pub(super) fn drive_lane_ports(&mut self, slot: SessionSlot, wan: &mut impl TxSink) {
        let now = self.now;
        let Some(session) = session_mut(self.sessions, slot) else { return };
        let Some(ports) = session.lane_ports.as_deref_mut() else { return };
        let request = ports.poll(now);
        if let Some(timer) = ports.timer.take() {
            self.wheel.cancel(timer);
        }
        if let Some(deadline) = ports.own.as_ref().and_then(|(_, prober)| prober.next_deadline()) {
            ports.timer = self.wheel.schedule(deadline, Deadline::LanePort(slot)).ok();
        }
        let replies = std::mem::replace(&mut ports.replies, [0; WORKERS_MAX as usize]);
        let shared = Arc::clone(&ports.shared);
        if let Some((to, token)) = request {
            self.counters.add(Metric::LaneProbesSent, 1);
            self.send_alone(slot, to, Control::LaneRequest(token.to_be_bytes()), wan);
        }
        for (worker, token) in (0..WORKERS_MAX).zip(replies).filter(|(_, token)| *token != 0) {
            if let Some(to) = shared.of_worker(worker) {
                self.send_alone(slot, to, Control::LaneReply(token.to_be_bytes()), wan);
            }
        }
    }

    /// Sends a control block from our lane port, in a datagram of its own.
    fn send_alone(&mut self, slot: SessionSlot, to: SocketAddr, control: Control, wan: &mut impl TxSink) {
        let Some(session) = session_mut(self.sessions, slot) else { return };
        match seal_alone(session, to, control, self.now, wan) {
            Ok(()) => {
                self.counters.add(Metric::TrainsSent, 1);
                self.counters.add(Metric::DatagramsSealed, 1);
                self.counters.add(Metric::SealedBytes, DATAGRAM_LEN as u64);
            }
            Err(reason) => self.counters.drop(reason),
        }
    }
}

fn seal_alone(
    session: &mut Session,
    to: SocketAddr,
    control: Control,
    now: Time,
    wan: &mut impl TxSink,
) -> Result<(), DropReason> {
    let slot = wan.slot(DATAGRAM_LEN).ok_or(DropReason::WanQueueFull)?;
    let slot = slot.get_mut(..DATAGRAM_LEN).ok_or(DropReason::WanQueueFull)?;
    let block = slot.get_mut(HEADER_LEN..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::WanQueueFull)?;
    control.encode(block);
    session.seal.seal(slot, now)?;
    let meta = TxMeta { destination: Some(to), source: session.source, lane_port: true, ..TxMeta::default() };
    wan.commit(DATAGRAM_LEN, meta);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Time = Time::from_nanos(1_000_000_000_000);

    /// Drives a machine from `START` for `millis`, with traffic in each of them; `answers` tells for each request after how long its reply
    /// comes. Returns the milliseconds at which requests went out, and those in which data went by the lane port.
    fn run(prober: &mut Prober, millis: u64, mut answers: impl FnMut(u64) -> Option<u64>) -> (Vec<u64>, Vec<bool>) {
        let (mut requests, mut in_use, mut replies) = (vec![], vec![], vec![]);
        for ms in 0..millis {
            let now = START.plus(Duration::from_millis(ms));
            prober.sent(now);
            replies.retain(|&(at, token)| {
                if at == ms {
                    prober.on_answer(token, now);
                }
                at > ms
            });
            if let Some(token) = prober.poll(now) {
                requests.push(ms);
                replies.extend(answers(ms).map(|after| (ms + after, token)));
            }
            in_use.push(prober.is_in_use());
        }
        (requests, in_use)
    }

    #[test]
    fn a_lane_port_is_used_from_its_first_answer_on_and_confirmed_ever_less_often() {
        let mut prober = Prober::new(3);
        let (requests, in_use) = run(&mut prober, 14_000, |_| Some(20));
        assert_eq!(requests, [0, 1020, 3040, 7060, 11_080]);
        assert!(in_use.iter().enumerate().all(|(ms, used)| *used == (ms >= 20)));
    }

    #[test]
    fn a_lane_port_that_never_answers_is_never_used_and_asked_ever_less_often() {
        let mut prober = Prober::new(0);
        let (requests, in_use) = run(&mut prober, 40_000, |_| None);
        assert_eq!(requests, [0, 500, 1000, 11_500, 12_000, 12_500, 33_000, 33_500, 34_000]);
        assert!(!in_use.contains(&true));
        for _ in 0..20 {
            prober.tries = MAX_LOSSES;
            prober.poll(prober.deadline);
        }
        assert_eq!(prober.rest, REST_MAX);
    }

    #[test]
    fn a_lane_port_in_use_survives_two_losses_and_falls_with_the_third() {
        for losses in [MAX_LOSSES - 1, MAX_LOSSES] {
            let mut prober = Prober::new(0);
            let mut nth = 0;
            let (requests, in_use) = run(&mut prober, 2000, |_| {
                nth += 1;
                (nth == 1 || nth > losses + 1).then_some(20)
            });
            assert_eq!(requests[..4], [0, 1020, 1220, 1420]);
            let falls_at = in_use.iter().skip(20).position(|used| !used).map(|ms| ms + 20);
            assert_eq!(falls_at, (losses == MAX_LOSSES).then_some(1620));
        }
    }

    #[test]
    fn a_late_reply_within_the_round_counts_and_one_of_a_round_before_does_not() {
        let mut prober = Prober::new(0);
        prober.sent(START);
        let first = prober.poll(START).unwrap();
        let second_at = START.plus(ANSWER_TIMER_UNKNOWN);
        assert_eq!(prober.poll(second_at.plus(Duration::from_nanos(0))).map(|token| token != first), Some(true));
        prober.on_answer(first, second_at.plus(Duration::from_millis(1)));
        assert!(prober.is_in_use());
        let mut prober = Prober::new(0);
        prober.sent(START);
        let first = prober.poll(START).unwrap();
        while prober.state != State::Resting {
            prober.poll(prober.deadline);
        }
        prober.on_answer(first, prober.deadline);
        assert!(!prober.is_in_use());
    }

    #[test]
    fn an_idle_lane_asks_nothing_and_asks_at_once_when_it_wakes() {
        let mut prober = Prober::new(0);
        assert_eq!(prober.next_deadline(), None);
        run(&mut prober, 100, |_| Some(20));
        // The confirmation that is due after a second still goes out, the next one no more.
        let mut now = START;
        let mut requests = 0;
        while let Some(at) = prober.next_deadline() {
            now = at;
            if let Some(token) = prober.poll(now) {
                requests += 1;
                prober.on_answer(token, now.plus(Duration::from_millis(20)));
            }
        }
        assert_eq!((requests, prober.is_in_use()), (1, true));
        let later = now.plus(Duration::from_secs(3600));
        assert!(prober.sent(later));
        assert!(prober.poll(later).is_some());
        assert!(!prober.sent(later), "awake");
    }

    #[test]
    fn a_peer_has_a_port_for_each_worker_round_and_round() {
        let ports = |port, peer_ports| -> Vec<_> {
            let shared = SharedLanePorts::new(([192, 0, 2, 1], port).into(), peer_ports);
            (0..5).map(|worker| shared.of_worker(worker).map(|to| to.port())).collect()
        };
        assert_eq!(ports(4646, 2), [4646, 4647, 4648, 4646, 4647].map(Some));
        assert_eq!(ports(65_534, 15), [Some(65_534), Some(65_535), None, None, None]);
    }

    proptest! {
        /// Whatever is lost and however late replies are: data goes by the lane port only while its last answered request is younger than the
        /// longest interval and the wait for all answers.
        #[test]
        fn a_lane_port_is_never_used_long_after_its_last_answer(replies in prop::collection::vec(prop::option::of(1..900u64), 1..60)) {
            let mut prober = Prober::new(0);
            let mut replies = replies.into_iter();
            let mut answered = vec![];
            let (requests, in_use) = run(&mut prober, 60_000, |ms| {
                let reply = replies.next().flatten();
                answered.extend(reply.map(|after| ms + after));
                reply
            });
            prop_assert!(requests.windows(2).all(|two| two[1] - two[0] >= ANSWER_TIMER_MIN.as_millis() as u64));
            let longest = CONFIRMATION_INTERVAL_MAX + ANSWER_TIMER_MAX * MAX_LOSSES as u32;
            for (ms, used) in (0..).zip(in_use) {
                let fresh = answered.iter().any(|&at| at <= ms && ms - at <= longest.as_millis() as u64);
                prop_assert!(!used || fresh, "in use at {ms} ms");
            }
        }
    }
}
