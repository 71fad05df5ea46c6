//! What a worker knows of one peer: where it is, what it may send, and the lane that this worker seals.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::wire::ReceiverIndex;
use weir_abi::wire::block::ECHO_LEN;

use super::block::{Control, Reassembly};
use super::bundle::{CONTROL_LEN_MAX, PayloadLen};
use super::icmp::{ERROR_RATE, ErrorLimiter};
use super::lane::{OpenLane, SealLane};
use super::lane_port::LanePorts;
use super::limit::Limiter;
use super::path::Path;
use super::prefix_set::PrefixSet;
use super::snapshot::SessionSlot;
use super::time::Time;
use super::traffic::Traffic;
use super::wheel::TimerId;
use crate::api::message::SessionId;

/// Most control blocks that wait for one peer. Echoes come at human rates; a peer that asks faster is not answered faster.
pub const CONTROL_BLOCKS_MAX: usize = 8;
/// Longest round trip that an echo may report; anything longer is a forged or very late reply.
pub const ROUND_TRIP_MAX: Duration = Duration::from_secs(60);

/// Most challenges of one session that await their response: the addresses that a peer may be at, and some more tries.
pub const CHALLENGES_MAX: usize = 8;

/// Which keys of a session: each install has others. Given by the control thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeysId(pub u64);

/// A session as one worker has it.
#[derive(Debug)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// Which of its keys these are.
    pub keys: KeysId,
    /// Where its datagrams go. Only the control thread moves it: data never moves a peer.
    pub endpoint: SocketAddr,
    /// Which of our addresses the peer's datagrams hit, and ours leave from; `None` until an authentic one has come from the endpoint.
    pub source: Option<IpAddr>,
    /// How much the peer may be sent, by all workers; `None` for as much as there is.
    pub limiter: Option<Arc<Limiter>>,
    /// Inner sources that the peer may use.
    pub sources: PrefixSet,
    /// Bytes of plaintext that fit one datagram on the path.
    pub payload_len: PayloadLen,
    /// Largest inner packet that is carried without an error to its sender.
    pub inner_mtu: u16,
    /// The lane that this worker seals.
    pub seal: SealLane,
    /// Whether the control plane was told that a fresh key exchange is due.
    pub rekey_told: bool,
    /// Whether the control plane was told that the peer has closed the session.
    pub(super) close_told: bool,
    /// Echoes of ours that were not answered yet.
    pub echoes: Echoes,
    /// Challenges of ours that were not answered yet.
    pub challenges: Challenges,
    /// What it has carried.
    pub traffic: Traffic,
    /// From when on it may be told again that the peer's datagrams come from elsewhere.
    pub(super) elsewhere_from: Time,
    /// How many ICMP errors the peer gets.
    pub(super) errors: ErrorLimiter,
    /// The engine's timer for the end of the keys.
    pub(super) expiry: Option<TimerId>,
    /// What is found out of the path, if it is: see [`Self::follow`].
    pub(super) path: Option<Path>,
    /// The lane ports, where both sides have some: see [`Self::use_lane_ports`].
    pub(super) lane_ports: Option<Box<LanePorts>>,
    /// Control blocks that wait to be sent, encoded.
    control: ControlQueue,
}

/// Encoded control blocks in the order in which they will be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlQueue {
    bytes: [u8; CONTROL_BLOCKS_MAX * Control::LEN_MAX],
    used: usize,
    blocks: u64,
}

const _: () = assert!(CONTROL_BLOCKS_MAX * Control::LEN_MAX <= CONTROL_LEN_MAX);

impl ControlQueue {
    const EMPTY: Self = Self { bytes: [0; CONTROL_BLOCKS_MAX * Control::LEN_MAX], used: 0, blocks: 0 };

    /// The encoded blocks.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.blocks
    }
}

impl Session {
    /// A session whose first datagram will be sealed by `seal`.
    pub fn new(
        id: SessionId,
        endpoint: SocketAddr,
        sources: PrefixSet,
        payload_len: PayloadLen,
        inner_mtu: u16,
        seal: SealLane,
    ) -> Self {
        Self {
            id,
            keys: KeysId::default(),
            endpoint,
            source: None,
            limiter: None,
            sources,
            payload_len,
            inner_mtu,
            seal,
            rekey_told: false,
            close_told: false,
            echoes: Echoes::default(),
            challenges: Challenges::default(),
            traffic: Traffic::default(),
            elsewhere_from: Time::ZERO,
            errors: ErrorLimiter::new(ERROR_RATE),
            expiry: None,
            path: None,
            lane_ports: None,
            control: ControlQueue::EMPTY,
        }
    }

    /// Queues a control block for the next datagram to the peer.
    ///
    /// # Errors
    /// [`DropReason::ControlBlockQueueFull`].
    pub fn queue_control(&mut self, control: Control) -> Result<(), DropReason> {
        let queue = &mut self.control;
        let space = queue.bytes.get_mut(queue.used..).and_then(|space| space.first_chunk_mut());
        queue.used += control.encode(space.ok_or(DropReason::ControlBlockQueueFull)?);
        queue.blocks += 1;
        Ok(())
    }

    /// The round trip that a reply tells, when one is awaited and it can be true.
    pub(super) fn take_echo(&mut self, token: [u8; ECHO_LEN], now: Time) -> Option<Duration> {
        let elapsed = round_trip(token, now)?;
        self.echoes.answer().then_some(elapsed)
    }

    /// Takes over what is under way from the same session under its former keys.
    pub(super) fn take_over(&mut self, mut former: Self) {
        let is_of_same = |new: &Path, old: &Path| new.is_of_same(old);
        if self.path.as_ref().zip(former.path.as_ref()).is_some_and(|(new, old)| is_of_same(new, old)) {
            self.path = former.path.take();
        }
        if let (Some(new), Some(old)) = (&mut self.lane_ports, former.lane_ports) {
            new.take_over(*old);
        }
        self.control = former.control;
        self.echoes = former.echoes;
        self.challenges = former.challenges;
        self.traffic = former.traffic;
        self.elsewhere_from = former.elsewhere_from;
        self.errors = former.errors;
        if self.endpoint == former.endpoint {
            self.source = former.source;
        }
        // A full bucket with every fresh key exchange would be more than the rate allows. All workers take the same one over.
        let rate = |limiter: &Option<Arc<Limiter>>| limiter.as_ref().map(|limiter| limiter.rate());
        if rate(&self.limiter) == rate(&former.limiter) {
            self.limiter = former.limiter;
        }
    }

    /// Whether control blocks wait.
    pub fn has_control(&self) -> bool {
        self.control.blocks > 0
    }

    /// Takes the control blocks that wait, if any do.
    pub(super) fn take_control(&mut self) -> Option<ControlQueue> {
        self.has_control().then(|| std::mem::replace(&mut self.control, ControlQueue::EMPTY))
    }

    /// Puts control blocks back that could not be sent.
    pub(super) fn put_back_control(&mut self, control: ControlQueue) {
        self.control = control;
    }
}

/// The token of an echo request sent now: the sender's own clock, which only the sender reads again.
pub fn echo_token(now: Time) -> [u8; ECHO_LEN] {
    now.as_nanos().to_be_bytes()
}

/// The round trip that a returned token tells, if it can be true.
pub fn round_trip(token: [u8; ECHO_LEN], now: Time) -> Option<Duration> {
    let sent = Time::from_nanos(u64::from_be_bytes(token));
    let elapsed = now.since(sent);
    (sent <= now && elapsed <= ROUND_TRIP_MAX).then_some(elapsed)
}

/// How many echoes of a session await their reply; a reply beyond them would be the peer's own idea.
///
/// Shared by all workers: a reply comes by whichever lane the peer likes, and often before another worker could be told to expect it.
#[derive(Clone, Debug, Default)]
pub struct Echoes(Arc<AtomicU32>);

impl Echoes {
    /// One more was sent.
    pub(super) fn expect(&self) {
        // Beyond four thousand million unanswered echoes the count may be wrong.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One was answered; `false` when none was awaited.
    fn answer(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |awaited| awaited.checked_sub(1)).is_ok()
    }
}

/// The tokens of a session's challenges that await their response; any other response is the peer's own idea.
///
/// Shared by all workers and the control thread, which draws the tokens. Zero is none.
#[derive(Clone, Debug, Default)]
pub struct Challenges(Arc<[AtomicU64; CHALLENGES_MAX]>);

impl Challenges {
    /// Awaits the response to this token, which is not zero. `false` when as many as can be are awaited.
    pub fn expect(&self, token: u64) -> bool {
        let empty = self.0.iter().find(|place| place.load(Ordering::Relaxed) == 0);
        empty.inspect(|place| place.store(token, Ordering::Relaxed)).is_some()
    }

    /// Whether the token is awaited; it no longer is then.
    pub fn answer(&self, token: u64) -> bool {
        let take = |place: &AtomicU64| place.compare_exchange(token, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        token != 0 && self.0.iter().any(take)
    }
}

/// The opening end of a lane with what belongs to it.
#[derive(Debug)]
pub struct OpenEnd {
    /// Whose lane it is.
    pub session: SessionSlot,
    /// Which keys of the session it has.
    pub keys: KeysId,
    /// Whether the next authentic datagram shows that the peer has keys which we do not seal under yet.
    pub(super) proves_keys: bool,
    /// Keys and replay window.
    pub lane: OpenLane,
    /// The packet that was cut by the end of a datagram.
    pub partial: Reassembly,
}

impl OpenEnd {
    /// An end with nothing begun. `partial` may have its memory already.
    pub fn new(session: SessionSlot, keys: KeysId, lane: OpenLane, partial: Reassembly) -> Self {
        Self { session, keys, proves_keys: false, lane, partial }
    }

    /// Our index of the lane.
    pub fn receiver(&self) -> ReceiverIndex {
        self.lane.receiver()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_limited_and_each_is_answered_once() {
        let challenges = Challenges::default();
        let tokens: Vec<u64> = (1..=CHALLENGES_MAX as u64).collect();
        assert!(tokens.iter().all(|&token| challenges.expect(token)));
        assert!(!challenges.expect(99));
        let worker = challenges.clone();
        assert!(tokens.iter().all(|&token| worker.answer(token)));
        assert!(!tokens.iter().any(|&token| challenges.answer(token)));
        assert!(!challenges.answer(0), "an empty place is no token");
        assert!(challenges.expect(99));
    }

    #[test]
    fn a_token_tells_the_round_trip_only_when_it_can_be_true() {
        let sent = Time::from_nanos(5_000_000_000);
        let after = |elapsed| round_trip(echo_token(sent), sent.plus(elapsed));
        assert_eq!(after(Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(after(Duration::from_millis(3)), Some(Duration::from_millis(3)));
        assert_eq!(after(ROUND_TRIP_MAX), Some(ROUND_TRIP_MAX));
        assert_eq!(after(ROUND_TRIP_MAX + Duration::from_nanos(1)), None);
        assert_eq!(round_trip(echo_token(sent), Time::from_nanos(1)), None, "a token from the future");
        assert_eq!(round_trip([0xff; 8], sent), None);
    }
}
