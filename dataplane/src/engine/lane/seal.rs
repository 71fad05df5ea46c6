//! The sealing end: counts, ratchets, and stops at its limits.

use weir_abi::drop::DropReason;
use weir_abi::wire::{DataHeader, HEADER_LEN, ReceiverIndex};

use super::{DATAGRAM_CHARGE_MIN, Limits, REKEY_AFTER};
use crate::engine::keys::{DatagramKey, LaneSecret};
use crate::engine::time::Time;

/// The sealing end of a lane.
#[derive(Debug)]
pub struct SealLane {
    number: u8,
    receiver: ReceiverIndex,
    limits: Limits,
    installed: Time,
    used_since: Option<Time>,
    /// Of the next datagram. The tests move it, to get to its limits.
    pub(super) counter: u64,
    generation: u8,
    generation_since: Time,
    generation_bytes: u64,
    /// Of the current generation; none before the first datagram.
    key: Option<DatagramKey>,
    /// Of the generation after the one that `key` is for.
    next: LaneSecret,
}

impl SealLane {
    /// A lane at generation 0, counter 0. `receiver` is the index that the peer gave out for it, `number` its place in the session.
    ///
    /// Its key is expanded with the first datagram, so that a lane that a worker never uses costs next to nothing.
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
            key: None,
            next: secret.clone(),
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
        let key = match &self.key {
            Some(key) => key,
            None => {
                let key = self.next.key();
                self.next = self.next.ratchet();
                self.key.insert(key)
            }
        };
        let counter = self.counter;
        // Counted before sealing: a counter is gone even if sealing should fail.
        self.counter += 1;
        self.generation_bytes = self.generation_bytes.saturating_add(charge);
        self.used_since.get_or_insert(now);
        *header = DataHeader { generation: self.generation, receiver: self.receiver, counter }.encode();
        match key.seal(counter, header, plaintext, tag) {
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
        if self.key.is_none() {
            // Nothing was sealed under generation 0: it is passed over.
            self.next = self.next.ratchet();
        }
        self.key = Some(self.next.key());
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::*;
    use super::*;

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
    fn a_lane_that_was_never_used_goes_through_its_generations_all_the_same() {
        let (mut seal, mut open) = lanes(Limits::default());
        let datagram = sealed(&mut seal, at(GENERATION_AGE)).unwrap();
        assert_eq!(seal.generation(), 1, "the first datagram is sealed under a key that is not older than it may be");
        assert_eq!(super::super::testing::open(&mut open, datagram, at(GENERATION_AGE)), Ok(()));
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
}
