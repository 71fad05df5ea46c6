//! The opening end: follows the generations that tags prove, and opens no datagram twice.

use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::wire::{DataHeader, HEADER_LEN, ReceiverIndex};

use super::{AHEAD_MAX, Limits, RETAIN_MIN, RETAIN_ROUND_TRIPS};
use crate::engine::keys::{DatagramKey, LaneSecret};
use crate::engine::replay::ReplayWindow;
use crate::engine::time::Time;

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
    /// Of the current generation; none before the first datagram that asks for it.
    key: Option<DatagramKey>,
    /// Of the current generation as long as `key` is none, of the one after it from then on.
    next: LaneSecret,
    old: Option<Old>,
    /// Keys of the generations after the current one, as far as they were asked for. Most lanes never see one.
    ahead: Option<Box<[Option<DatagramKey>; AHEAD_MAX]>>,
    /// None before the first datagram that was authentic: a lane that a peer's worker never uses costs no window.
    window: Option<Box<ReplayWindow>>,
}

impl OpenLane {
    /// A lane at generation 0 that has seen no counter. `receiver` is the index that this side gave out for it.
    ///
    /// Key and window come with the first datagrams; only an authentic one makes the window's 2 KiB.
    pub fn new(secret: &LaneSecret, number: u8, receiver: ReceiverIndex, now: Time, limits: Limits) -> Self {
        Self {
            number,
            receiver,
            limits,
            installed: now,
            retain: RETAIN_MIN,
            generation: 0,
            key: None,
            next: secret.clone(),
            old: None,
            ahead: None,
            window: None,
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
        if let Some(window) = &self.window {
            window.check(header.counter)?;
        }
        let sealed = datagram.get_mut(HEADER_LEN..).ok_or(DropReason::OuterTruncated)?;
        let key = match (ahead, &self.old) {
            (Generation::Old, Some(old)) => &old.key,
            (Generation::Ahead(by), _) => self.key_ahead(by),
            (Generation::Old, None) | (Generation::Current, _) => self.current_key(),
        };
        // The header that was judged is the one that is authenticated, whatever the buffer holds by now.
        let plaintext = key.open(header.counter, &header.encode(), sealed).map_err(|_| DropReason::AuthFailed)?;
        if self.window.is_none() {
            // All that the lane will ever allocate, so that nothing is once it is warm.
            self.ahead.get_or_insert_default();
        }
        self.window.get_or_insert_default().accept(header.counter);
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

    /// The key of the current generation, expanded now if nobody has asked for it yet.
    #[inline]
    fn current_key(&mut self) -> &DatagramKey {
        let next = &mut self.next;
        self.key.get_or_insert_with(|| {
            let key = next.key();
            *next = next.ratchet();
            key
        })
    }

    /// The key `by` generations after the current one, `1..=AHEAD_MAX`.
    fn key_ahead(&mut self, by: usize) -> &DatagramKey {
        // From here on `next` is of the generation after the current one.
        self.current_key();
        let next = &self.next;
        self.ahead.get_or_insert_default()[by - 1].get_or_insert_with(|| match by {
            1 => next.key(),
            _ => (2..by).fold(next.ratchet(), |secret, _| secret.ratchet()).key(),
        })
    }

    /// Makes the key `by` generations ahead the current one, after its tag has fitted.
    fn advance(&mut self, by: usize, now: Time) {
        let Some(ahead) = &mut self.ahead else {
            debug_assert!(false, "a key that has opened is there");
            return;
        };
        let Some(key) = ahead[by - 1].take() else {
            debug_assert!(false, "a key that has opened is there");
            return;
        };
        // What was further ahead is nearer now; what was skipped goes.
        ahead[..by].fill_with(|| None);
        ahead.rotate_left(by);
        if let Some(before) = self.key.replace(key) {
            self.old = Some(Old { generation: self.generation, key: before, until: now.plus(self.retain) });
        }
        for _ in 0..by {
            self.next = self.next.ratchet();
        }
        self.generation += by as u8;
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::*;
    use super::*;
    use crate::engine::replay::WINDOW_LEN;
    use weir_abi::wire::DATA_LEN_MIN;

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
    fn only_an_authentic_datagram_wakes_a_lane() {
        let (mut seal, mut receiver) = lanes(Limits::default());
        assert!(receiver.key.is_none() && receiver.window.is_none());
        let good = sealed(&mut seal, Time::ZERO).unwrap();
        let mut forged = good;
        forged[LEN - 1] ^= 1;
        assert_eq!(open(&mut receiver, forged, Time::ZERO), Err(DropReason::AuthFailed));
        assert!(receiver.window.is_none(), "a forger makes us allocate no window");
        assert_eq!(open(&mut receiver, good, Time::ZERO), Ok(()));
        assert_eq!(open(&mut receiver, good, Time::ZERO), Err(DropReason::Replayed));
        assert!(size_of::<OpenLane>() <= 256, "{} bytes asleep", size_of::<OpenLane>());
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
        seal.counter = WINDOW_LEN + 1;
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
        assert_eq!(receiver.ahead.iter().flat_map(|ahead| ahead.iter()).flatten().count(), AHEAD_MAX);
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
