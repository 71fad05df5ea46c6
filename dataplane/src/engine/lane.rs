//! One-way lanes: a key, a counter and, on the opening side, a replay window.
//!
//! A lane has one core that seals and one that opens, so nothing here is shared. Keys go through generations by a one-way ratchet; the
//! counter goes on across them, so one replay window serves all. The sealing side decides when; the opening side follows the generation
//! byte of the header, which is under AAD:
//!
//! ```text
//!              seal: the generation is 60 s old or has sealed its bytes
//!   generation g ───────────────────────────────────────────────────────▶ generation g+1 … 255, then KeyExhausted
//!
//!   open, header says  < g, the one before, not yet erased   open with the old key
//!                      = g                                   open
//!                      g+1 ..= g+8                           derive ahead, open; only a tag that fits makes it the current one
//!                      anything else                         WrongGeneration
//! ```
//!
//! The old key stays for three round trips, at least a second, and is then erased: late datagrams are not lost, and a stolen machine does
//! not tell what was said a minute ago. Keys derived ahead are kept until the lane gets there, so a forged generation costs what any
//! forged datagram costs, one AEAD open, except for at most eight derivations per generation that the lane is in (1.3 µs and 0.5 µs for each step, measured: 25 µs for all).
//!
//! An [`OpenLane`] is about 2.6 KiB, of which the window is 2; each prepared key is some 0.6 KiB more.
//!
//! Neither lane knows sockets, peers or what a datagram carries. The time is an argument.

use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::wire::{DATA_LEN_MIN, DataHeader, HEADER_LEN, ReceiverIndex};

use super::keys::{DatagramKey, LaneSecret};
use super::replay::ReplayWindow;
use super::time::Time;

// From specifications.

/// Bytes that one AES-GCM key may seal, a datagram counting for at least [`DATAGRAM_CHARGE_MIN`]: RFC 9001 appendix B.1.1 allows 2^28
/// packets of up to 2^11 bytes, which keeps an attacker's advantage below 2^-57; its bound falls with the square of all blocks sealed,
/// so longer datagrams count by their length (2^26 of 8 KiB). ChaCha20-Poly1305 has no such limit and keeps to the same.
pub const GENERATION_BYTES: u64 = 1 << 39;
/// What a short datagram counts for: the size that RFC 9001 speaks of.
pub const DATAGRAM_CHARGE_MIN: u64 = 1 << 11;
/// The last generation that the header's byte can name.
pub const GENERATION_LAST: u8 = u8::MAX;

// Our own choices.

/// Age at which a generation ends with the next datagram. A minute is what a stolen key may tell, and costs 2 µs.
pub const GENERATION_AGE: Duration = Duration::from_secs(60);
/// Time of use after which a fresh key exchange is due. WireGuard's REKEY_AFTER_TIME; long enough that exchanges cost nothing.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which keys seal no more: how long the packet plane may outlive its control plane.
pub const KEY_LIFETIME: Duration = Duration::from_secs(3600);
/// How much longer keys open than seal: both sides install within an exchange's round trips, and datagrams are on their way.
pub const OPEN_GRACE: Duration = Duration::from_secs(10);
/// Counters of one lane. 256 generations of 2^28 datagrams are 2^36; the rest leaves room for jumps at hand-over, and anything beyond is
/// a broken peer that would push the window to its end.
pub const COUNTERS: u64 = 1 << 48;
/// Generations that the opening side derives ahead: eight minutes in which nothing arrived.
pub const AHEAD_MAX: usize = 8;
/// Shortest time that an old key is kept.
pub const RETAIN_MIN: Duration = Duration::from_secs(1);
/// Round trips that an old key is kept.
pub const RETAIN_ROUND_TRIPS: u32 = 3;

/// The limits of a lane. Tests make them small; everything else uses the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`GENERATION_BYTES`].
    pub generation_bytes: u64,
    /// See [`GENERATION_AGE`].
    pub generation_age: Duration,
    /// See [`GENERATION_LAST`].
    pub generation_last: u8,
    /// See [`COUNTERS`]; the largest counter is one less.
    pub counters: u64,
    /// See [`KEY_LIFETIME`].
    pub lifetime: Duration,
    /// See [`OPEN_GRACE`].
    pub open_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            generation_bytes: GENERATION_BYTES,
            generation_age: GENERATION_AGE,
            generation_last: GENERATION_LAST,
            counters: COUNTERS,
            lifetime: KEY_LIFETIME,
            open_grace: OPEN_GRACE,
        }
    }
}

/// The sealing end of a lane.
#[derive(Debug)]
pub struct SealLane {
    number: u8,
    receiver: ReceiverIndex,
    limits: Limits,
    installed: Time,
    used_since: Option<Time>,
    counter: u64,
    generation: u8,
    generation_since: Time,
    generation_bytes: u64,
    key: DatagramKey,
    next: LaneSecret,
}

impl SealLane {
    /// A lane at generation 0, counter 0. `receiver` is the index that the peer gave out for it, `number` its place in the session.
    pub fn new(secret: &LaneSecret, number: u8, receiver: ReceiverIndex, now: Time, limits: Limits) -> Self {
        Self {
            number,
            receiver,
            limits,
            installed: now,
            used_since: None,
            counter: 0,
            generation: 0,
            generation_since: now,
            generation_bytes: 0,
            key: secret.key(),
            next: secret.ratchet(),
        }
    }

    /// Seals `datagram` in place and returns its counter. The caller has laid the plaintext between [`HEADER_LEN`] bytes of room for the
    /// header and 16 for the tag, and `datagram` ends with these.
    ///
    /// # Errors
    /// [`DropReason::KeyExpired`] past the lifetime, [`DropReason::KeyExhausted`] past the last counter or generation, both for ever;
    /// [`DropReason::OuterTruncated`] when there is no room for header and tag. The bytes must not be sent then.
    #[inline]
    pub fn seal(&mut self, datagram: &mut [u8], now: Time) -> Result<u64, DropReason> {
        if now.since(self.installed) >= self.limits.lifetime {
            return Err(DropReason::KeyExpired);
        }
        if self.counter >= self.limits.counters {
            return Err(DropReason::KeyExhausted);
        }
        let charge = (datagram.len() as u64).max(DATAGRAM_CHARGE_MIN);
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::OuterTruncated)?;
        let (plaintext, tag) = rest.split_last_chunk_mut().ok_or(DropReason::OuterTruncated)?;
        if self.generation_bytes.saturating_add(charge) > self.limits.generation_bytes
            || now.since(self.generation_since) >= self.limits.generation_age
        {
            self.ratchet(now)?;
        }
        let counter = self.counter;
        // Counted before sealing: a counter is gone even if sealing should fail.
        self.counter += 1;
        self.generation_bytes = self.generation_bytes.saturating_add(charge);
        self.used_since.get_or_insert(now);
        *header = DataHeader { generation: self.generation, receiver: self.receiver, counter }.encode();
        match self.key.seal(counter, header, plaintext, tag) {
            Ok(()) => Ok(counter),
            Err(_) => {
                debug_assert!(false, "a datagram is far shorter than what the AEAD takes");
                Err(DropReason::KeyExhausted)
            }
        }
    }

    fn ratchet(&mut self, now: Time) -> Result<(), DropReason> {
        if self.generation >= self.limits.generation_last {
            return Err(DropReason::KeyExhausted);
        }
        self.key = self.next.key();
        self.next = self.next.ratchet();
        self.generation += 1;
        self.generation_since = now;
        self.generation_bytes = 0;
        Ok(())
    }

    /// The lane's place in its session.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// The peer's index of the lane.
    pub const fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// The counter that the next datagram gets.
    pub const fn counter(&self) -> u64 {
        self.counter
    }

    /// The generation that sealed last.
    pub const fn generation(&self) -> u8 {
        self.generation
    }

    /// When the first datagram was sealed.
    pub const fn used_since(&self) -> Option<Time> {
        self.used_since
    }

    /// Whether a fresh key exchange is due: [`REKEY_AFTER`] of use have passed.
    pub fn rekey_due(&self, now: Time) -> bool {
        self.used_since.is_some_and(|since| now.since(since) >= REKEY_AFTER)
    }

    /// When the keys stop sealing.
    pub const fn expires_at(&self) -> Time {
        self.installed.plus(self.limits.lifetime)
    }
}

/// The key before the current one.
#[derive(Debug)]
struct Old {
    generation: u8,
    key: DatagramKey,
    until: Time,
}

/// The opening end of a lane.
#[derive(Debug)]
pub struct OpenLane {
    number: u8,
    receiver: ReceiverIndex,
    limits: Limits,
    installed: Time,
    retain: Duration,
    generation: u8,
    key: DatagramKey,
    /// Of the generation after the current one.
    next: LaneSecret,
    old: Option<Old>,
    /// Keys of the generations after the current one, as far as they were asked for.
    ahead: [Option<DatagramKey>; AHEAD_MAX],
    window: ReplayWindow,
}

impl OpenLane {
    /// A lane at generation 0 that has seen no counter. `receiver` is the index that this side gave out for it.
    pub fn new(secret: &LaneSecret, number: u8, receiver: ReceiverIndex, now: Time, limits: Limits) -> Self {
        Self {
            number,
            receiver,
            limits,
            installed: now,
            retain: RETAIN_MIN,
            generation: 0,
            key: secret.key(),
            next: secret.ratchet(),
            old: None,
            ahead: [const { None }; AHEAD_MAX],
            window: ReplayWindow::new(),
        }
    }

    /// Opens `datagram`, whose header was parsed into `header`, in place and returns the plaintext.
    ///
    /// # Errors
    /// In the order of the checks: [`DropReason::UnknownIndex`], [`DropReason::RxKeyExpired`], [`DropReason::CounterLimit`],
    /// [`DropReason::WrongGeneration`], [`DropReason::Replayed`] or [`DropReason::ReplayTooOld`], [`DropReason::AuthFailed`]. The lane
    /// is then as before; after the last of them the datagram's bytes are gone.
    #[inline]
    pub fn open<'a>(
        &mut self,
        header: &DataHeader,
        datagram: &'a mut [u8],
        now: Time,
    ) -> Result<&'a mut [u8], DropReason> {
        if header.receiver != self.receiver {
            return Err(DropReason::UnknownIndex);
        }
        if now.since(self.installed) >= self.limits.lifetime + self.limits.open_grace {
            return Err(DropReason::RxKeyExpired);
        }
        if header.counter >= self.limits.counters {
            return Err(DropReason::CounterLimit);
        }
        let ahead = self.judge_generation(header.generation, now)?;
        self.window.check(header.counter)?;
        let sealed = datagram.get_mut(HEADER_LEN..).ok_or(DropReason::OuterTruncated)?;
        let key = match (ahead, &self.old) {
            (Generation::Ahead(by), _) => self.key_ahead(by),
            (Generation::Old, Some(old)) => &old.key,
            (Generation::Old, None) | (Generation::Current, _) => &self.key,
        };
        // The header that was judged is the one that is authenticated, whatever the buffer holds by now.
        let plaintext = key.open(header.counter, &header.encode(), sealed).map_err(|_| DropReason::AuthFailed)?;
        self.window.accept(header.counter);
        if let Generation::Ahead(by) = ahead {
            self.advance(by, now);
        }
        Ok(plaintext)
    }

    fn judge_generation(&self, generation: u8, now: Time) -> Result<Generation, DropReason> {
        match usize::from(generation).checked_sub(usize::from(self.generation)) {
            Some(0) => Ok(Generation::Current),
            Some(by) if by <= AHEAD_MAX && generation <= self.limits.generation_last => Ok(Generation::Ahead(by)),
            None if self.old.as_ref().is_some_and(|old| old.generation == generation && now < old.until) => {
                Ok(Generation::Old)
            }
            _ => Err(DropReason::WrongGeneration),
        }
    }

    /// The key `by` generations after the current one, `1..=AHEAD_MAX`.
    fn key_ahead(&mut self, by: usize) -> &DatagramKey {
        let next = &self.next;
        self.ahead[by - 1].get_or_insert_with(|| match by {
            1 => next.key(),
            _ => (2..by).fold(next.ratchet(), |secret, _| secret.ratchet()).key(),
        })
    }

    /// Makes the key `by` generations ahead the current one, after its tag has fitted.
    fn advance(&mut self, by: usize, now: Time) {
        let Some(key) = self.ahead[by - 1].take() else {
            debug_assert!(false, "a key that has opened is there");
            return;
        };
        let before = std::mem::replace(&mut self.key, key);
        self.old = Some(Old { generation: self.generation, key: before, until: now.plus(self.retain) });
        for _ in 0..by {
            self.next = self.next.ratchet();
        }
        self.generation += by as u8;
        // What was further ahead is nearer now; what was skipped goes.
        self.ahead[..by].fill_with(|| None);
        self.ahead.rotate_left(by);
    }

    /// Erases the old key if its time is over.
    pub fn erase_old(&mut self, now: Time) {
        self.old.take_if(|old| now >= old.until);
    }

    /// When [`Self::erase_old`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.old.as_ref().map(|old| old.until)
    }

    /// Sets how long old keys are kept from now on, by the measured round trip.
    pub fn set_round_trip(&mut self, round_trip: Duration) {
        self.retain = RETAIN_MIN.max(round_trip.saturating_mul(RETAIN_ROUND_TRIPS));
    }

    /// The lane's place in its session.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Our index of the lane.
    pub const fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// The newest generation that a tag has proved.
    pub const fn generation(&self) -> u8 {
        self.generation
    }

    /// When the keys stop opening.
    pub fn expires_at(&self) -> Time {
        self.installed.plus(self.limits.lifetime + self.limits.open_grace)
    }
}

/// Which key a header asks for.
#[derive(Clone, Copy)]
enum Generation {
    Current,
    Old,
    Ahead(usize),
}

const _: () = assert!(DATA_LEN_MIN == HEADER_LEN + weir_abi::wire::TAG_LEN);

#[cfg(test)]
mod tests {
    use super::super::aead::Algorithm;
    use super::super::keys::{Context, Direction, Side};
    use super::*;
    use crate::api::message::{Incarnation, Secret, SessionId};

    const RECEIVER: ReceiverIndex = ReceiverIndex(0x0102_0304);
    const BODY: &[u8] = b"a packet";
    const LEN: usize = DATA_LEN_MIN + BODY.len();

    fn at(time: Duration) -> Time {
        Time::ZERO.plus(time)
    }

    fn ns(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    fn secret() -> LaneSecret {
        let side = Side { incarnation: Incarnation(1), salt: [1; 16] };
        let context = Context::new(SessionId(1), side, side, true, Algorithm::for_this_cpu());
        LaneSecret::derive(&Secret::new([9; 32]), &context, Direction::FromInitiator, 0)
    }

    fn lanes(limits: Limits) -> (SealLane, OpenLane) {
        let secret = secret();
        (
            SealLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
            OpenLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
        )
    }

    fn sealed(lane: &mut SealLane, now: Time) -> Result<[u8; LEN], DropReason> {
        let mut datagram = [0xee; LEN];
        datagram[HEADER_LEN..][..BODY.len()].copy_from_slice(BODY);
        lane.seal(&mut datagram, now).map(|_| datagram)
    }

    /// What became of a datagram: nothing for opened.
    fn open(lane: &mut OpenLane, mut datagram: [u8; LEN], now: Time) -> Result<(), DropReason> {
        let header = DataHeader::parse(&datagram).unwrap();
        lane.open(&header, &mut datagram, now).map(|plaintext| assert_eq!(plaintext, BODY))
    }

    /// Datagrams of the generations 0, 1, 2, …: each is one generation's first.
    fn one_of_each_generation(lane: &mut SealLane, count: u32) -> Vec<[u8; LEN]> {
        (0..count).map(|i| sealed(lane, at(GENERATION_AGE * i)).unwrap()).collect()
    }

    #[test]
    fn a_datagram_carries_the_header_and_opens_to_what_was_sealed() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        for counter in 0..3 {
            let datagram = sealed(&mut seal, Time::ZERO).unwrap();
            let header = DataHeader::parse(&datagram).unwrap();
            assert_eq!(header, DataHeader { generation: 0, receiver: RECEIVER, counter });
            assert_ne!(&datagram[HEADER_LEN..][..BODY.len()], BODY);
            assert_eq!(open(&mut receiver, datagram, Time::ZERO), Ok(()));
        }
        assert_eq!(seal.counter(), 3);
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_changes_nothing() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let datagram = sealed(&mut seal, Time::ZERO).unwrap();
        for bit in 0..LEN * 8 {
            let mut broken = datagram;
            broken[bit / 8] ^= 1 << (bit % 8);
            // Bits of the first word are the parser's; it refuses all of them but those of the generation.
            let Ok(header) = DataHeader::parse(&broken) else { continue };
            let refused = receiver.open(&header, &mut broken, Time::ZERO).unwrap_err();
            let expected = match bit / 8 {
                2 if header.generation > AHEAD_MAX as u8 => DropReason::WrongGeneration,
                4..8 => DropReason::UnknownIndex,
                8..16 if header.counter >= COUNTERS => DropReason::CounterLimit,
                _ => DropReason::AuthFailed,
            };
            assert_eq!(refused, expected, "bit {bit}");
        }
        assert_eq!(open(&mut receiver, datagram, Time::ZERO), Ok(()));
    }

    #[test]
    fn a_replayed_datagram_is_dropped_and_an_old_one_too() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let first = sealed(&mut seal, Time::ZERO).unwrap();
        let second = sealed(&mut seal, Time::ZERO).unwrap();
        seal.counter = super::super::replay::WINDOW_LEN + 1;
        let far = sealed(&mut seal, Time::ZERO).unwrap();
        assert_eq!(open(&mut receiver, far, Time::ZERO), Ok(()));
        assert_eq!(open(&mut receiver, far, Time::ZERO), Err(DropReason::Replayed));
        assert_eq!(open(&mut receiver, first, Time::ZERO), Err(DropReason::ReplayTooOld));
        assert_eq!(open(&mut receiver, second, Time::ZERO), Err(DropReason::ReplayTooOld));
    }

    #[test]
    fn a_forged_counter_does_not_move_the_window() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let genuine = sealed(&mut seal, Time::ZERO).unwrap();
        let mut forged = genuine;
        forged[8..16].copy_from_slice(&(COUNTERS - 1).to_be_bytes());
        assert_eq!(open(&mut receiver, forged, Time::ZERO), Err(DropReason::AuthFailed));
        assert_eq!(open(&mut receiver, genuine, Time::ZERO), Ok(()));
    }

    #[test]
    fn a_generation_ends_at_its_age() {
        let (mut seal, _) = lanes(Limits::default());
        sealed(&mut seal, at(GENERATION_AGE - ns(1))).unwrap();
        assert_eq!(seal.generation(), 0);
        sealed(&mut seal, at(GENERATION_AGE)).unwrap();
        assert_eq!(seal.generation(), 1);
        sealed(&mut seal, at(GENERATION_AGE * 2 - ns(1))).unwrap();
        assert_eq!(seal.generation(), 1);
        // Idle time is one step, however long.
        sealed(&mut seal, at(GENERATION_AGE * 30)).unwrap();
        assert_eq!((seal.generation(), seal.counter()), (2, 4));
    }

    #[test]
    fn a_generation_ends_with_its_bytes() {
        let limits = Limits { generation_bytes: 4 * DATAGRAM_CHARGE_MIN, ..Limits::default() };
        let generations = |lens: &[usize]| -> Vec<u8> {
            let (mut seal, _) = lanes(limits);
            lens.iter()
                .map(|len| seal.seal(&mut vec![0; *len], Time::ZERO).map(|_| seal.generation()).unwrap())
                .collect()
        };
        assert_eq!(generations(&[LEN; 5]), [0, 0, 0, 0, 1], "short datagrams count for 2 KiB");
        assert_eq!(generations(&[2048; 5]), [0, 0, 0, 0, 1]);
        assert_eq!(generations(&[2049; 5]), [0, 0, 0, 1, 1], "longer ones by their length");
        assert_eq!(generations(&[4096; 3]), [0, 0, 1]);
        assert_eq!(generations(&[8192, 32]), [0, 1]);
        let production = Limits::default();
        assert_eq!(production.generation_bytes / DATAGRAM_CHARGE_MIN, 1 << 28);
        assert_eq!(production.generation_bytes / 8192, 1 << 26);
    }

    #[test]
    fn the_last_generation_is_used_up_and_then_nothing_is_sealed() {
        let limits = Limits { lifetime: GENERATION_AGE * 1000, ..Limits::default() };
        let (mut seal, mut receiver) = lanes(limits);
        for i in 0..=u32::from(GENERATION_LAST) {
            let now = at(GENERATION_AGE * i);
            let datagram = sealed(&mut seal, now).unwrap();
            assert_eq!(open(&mut receiver, datagram, now), Ok(()));
        }
        assert_eq!((seal.generation(), receiver.generation()), (GENERATION_LAST, GENERATION_LAST));
        let end = GENERATION_AGE * 256;
        assert!(sealed(&mut seal, at(end - ns(1))).is_ok());
        assert_eq!(sealed(&mut seal, at(end)), Err(DropReason::KeyExhausted));
        assert_eq!(sealed(&mut seal, at(end)), Err(DropReason::KeyExhausted));
        assert_eq!(seal.counter(), 257);
    }

    #[test]
    fn the_last_counter_is_used_and_no_other_after_it() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        seal.counter = COUNTERS - 1;
        let last = sealed(&mut seal, Time::ZERO).unwrap();
        assert_eq!(sealed(&mut seal, Time::ZERO), Err(DropReason::KeyExhausted));
        assert_eq!(seal.counter(), COUNTERS);
        // A sender without that limit.
        let (mut broken, _) = lanes(Limits { counters: u64::MAX, ..Limits::default() });
        broken.counter = COUNTERS;
        let beyond = sealed(&mut broken, Time::ZERO).unwrap();
        assert_eq!(open(&mut receiver, beyond, Time::ZERO), Err(DropReason::CounterLimit));
        assert_eq!(open(&mut receiver, last, Time::ZERO), Ok(()));
    }

    #[test]
    fn keys_seal_for_an_hour_and_open_a_little_longer() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let datagrams = [0, 1].map(|_| sealed(&mut seal, at(KEY_LIFETIME - ns(1))).unwrap());
        assert_eq!(sealed(&mut seal, at(KEY_LIFETIME)), Err(DropReason::KeyExpired));
        assert_eq!(seal.expires_at(), at(KEY_LIFETIME));
        let end = receiver.expires_at();
        assert_eq!(end, at(KEY_LIFETIME + OPEN_GRACE));
        assert_eq!(open(&mut receiver, datagrams[0], at(KEY_LIFETIME + OPEN_GRACE - ns(1))), Ok(()));
        assert_eq!(open(&mut receiver, datagrams[1], end), Err(DropReason::RxKeyExpired));
    }

    #[test]
    fn a_rekey_is_due_after_two_minutes_of_use_not_of_life() {
        let (mut seal, _) = lanes(Limits::default());
        assert_eq!(seal.used_since(), None);
        assert!(!seal.rekey_due(at(REKEY_AFTER * 9)));
        let first = Duration::from_secs(500);
        sealed(&mut seal, at(first)).unwrap();
        sealed(&mut seal, at(first + ns(5))).unwrap();
        assert_eq!(seal.used_since(), Some(at(first)));
        assert!(!seal.rekey_due(at(first + REKEY_AFTER - ns(1))));
        assert!(seal.rekey_due(at(first + REKEY_AFTER)));
    }

    #[test]
    fn a_lane_follows_up_to_eight_generations_ahead() {
        for ahead in 1..=AHEAD_MAX + 1 {
            let (mut seal, mut receiver) = lanes(Limits::default());
            let datagrams = one_of_each_generation(&mut seal, 12);
            let expected = if ahead <= AHEAD_MAX { Ok(()) } else { Err(DropReason::WrongGeneration) };
            assert_eq!(open(&mut receiver, datagrams[ahead], Time::ZERO), expected, "{ahead} ahead");
            if expected.is_err() {
                assert_eq!(receiver.generation(), 0);
                continue;
            }
            // From there it goes on by the same chain of secrets.
            assert_eq!(receiver.generation(), ahead as u8);
            assert_eq!(open(&mut receiver, datagrams[ahead + 1], Time::ZERO), Ok(()));
            assert_eq!(open(&mut receiver, datagrams[ahead + 3], Time::ZERO), Ok(()));
        }
    }

    #[test]
    fn keys_derived_for_forgeries_serve_when_their_generation_comes() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let datagrams = one_of_each_generation(&mut seal, 12);
        for (generation, datagram) in datagrams.iter().enumerate().skip(1) {
            let mut forged = *datagram;
            forged[LEN - 1] ^= 1;
            let expected = if generation <= AHEAD_MAX { DropReason::AuthFailed } else { DropReason::WrongGeneration };
            assert_eq!(open(&mut receiver, forged, Time::ZERO), Err(expected));
        }
        assert_eq!(receiver.generation(), 0, "a forged generation moves nothing");
        assert_eq!(receiver.ahead.iter().flatten().count(), AHEAD_MAX);
        for generation in [0, 1, 2, 5, 6, 11] {
            assert_eq!(open(&mut receiver, datagrams[generation], Time::ZERO), Ok(()), "generation {generation}");
            assert_eq!(receiver.generation(), generation as u8);
        }
    }

    #[test]
    fn the_old_key_opens_until_its_time_is_over() {
        for (round_trip, retain) in [(0, 1000), (333, 1000), (334, 1002), (2000, 6000)] {
            let retain = Duration::from_millis(retain);
            let (mut seal, mut receiver) = lanes(Limits::default());
            receiver.set_round_trip(Duration::from_millis(round_trip));
            let late = [0, 1, 2].map(|_| sealed(&mut seal, Time::ZERO).unwrap());
            let new = sealed(&mut seal, at(GENERATION_AGE)).unwrap();
            let turn = GENERATION_AGE + ns(77);
            assert_eq!(receiver.next_deadline(), None);
            assert_eq!(open(&mut receiver, new, at(turn)), Ok(()));
            assert_eq!(receiver.next_deadline(), Some(at(turn + retain)));
            assert_eq!(open(&mut receiver, late[0], at(turn + retain - ns(1))), Ok(()));
            // Past its time it opens nothing even when no timer has come to erase it.
            assert_eq!(open(&mut receiver, late[1], at(turn + retain)), Err(DropReason::WrongGeneration));
            receiver.erase_old(at(turn + retain - ns(1)));
            assert!(receiver.old.is_some());
            receiver.erase_old(at(turn + retain));
            assert!(receiver.old.is_none());
            assert_eq!(receiver.next_deadline(), None);
            assert_eq!(open(&mut receiver, late[2], at(turn)), Err(DropReason::WrongGeneration));
        }
    }

    #[test]
    fn only_the_generation_just_left_is_kept() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let datagrams = one_of_each_generation(&mut seal, 5);
        assert_eq!(open(&mut receiver, datagrams[1], Time::ZERO), Ok(()));
        assert_eq!(open(&mut receiver, datagrams[4], Time::ZERO), Ok(()));
        let late = [0, 2, 3].map(|i: usize| open(&mut receiver, datagrams[i], Time::ZERO));
        assert_eq!(late, [Err(DropReason::WrongGeneration); 3]);
        assert_eq!(open(&mut receiver, datagrams[1], Time::ZERO), Err(DropReason::Replayed), "1 is the one left");
    }

    #[test]
    fn a_counter_is_not_replayed_under_another_generation() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        let first = sealed(&mut seal, Time::ZERO).unwrap();
        seal.counter = 0;
        let same_counter = sealed(&mut seal, at(GENERATION_AGE)).unwrap();
        assert_eq!(open(&mut receiver, first, Time::ZERO), Ok(()));
        assert_eq!(open(&mut receiver, same_counter, Time::ZERO), Err(DropReason::Replayed));
    }

    #[test]
    fn no_room_for_header_and_tag_is_an_error() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        for len in 0..DATA_LEN_MIN {
            assert_eq!(seal.seal(&mut vec![0; len], Time::ZERO), Err(DropReason::OuterTruncated));
        }
        let header = DataHeader { generation: 0, receiver: RECEIVER, counter: 0 };
        assert_eq!(receiver.open(&header, &mut [0; HEADER_LEN - 1], Time::ZERO), Err(DropReason::OuterTruncated));
        assert_eq!(receiver.open(&header, &mut [0; DATA_LEN_MIN - 1], Time::ZERO), Err(DropReason::AuthFailed));
        let mut empty = [0; DATA_LEN_MIN];
        assert_eq!(seal.seal(&mut empty, Time::ZERO), Ok(0), "no counter was used before");
        assert_eq!(receiver.open(&header, &mut empty, Time::ZERO).unwrap(), b"");
    }

    #[test]
    fn lanes_move_to_their_worker_and_stay_small() {
        fn is_send<T: Send>() {}
        is_send::<SealLane>();
        is_send::<OpenLane>();
        assert!(size_of::<OpenLane>() <= 2640, "{} bytes", size_of::<OpenLane>());
        assert!(size_of::<SealLane>() <= 256, "{} bytes", size_of::<SealLane>());
    }
}
