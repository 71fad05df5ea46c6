//! A hierarchical timer wheel (Varghese and Lauck, SOSP 1987): deadlines in, due keys out.
//!
//! ```text
//!   level 7 … │ level 2            │ level 1            │ level 0
//!             │ 64 slots of 4.3 s  │ 64 slots of 67 ms  │ 64 slots of 1.05 ms (one tick)
//!             └── a slot that comes due is dealt out to the levels on its right ──▶ due ▶ poll
//! ```
//!
//! Eight levels of 64 slots span all of [`Time`], so no deadline is too far. A timer stands at the level of the highest six-bit digit in
//! which its tick differs from the current one; it moves at most once a level. To schedule and to cancel is O(1): timers live in a slab,
//! and a slot is a doubly linked list through it. One bit a slot says whether the list is empty, so idle time costs nothing.
//!
//! A timer is never due before its deadline, and due at most one tick behind it. What the keys mean is not known here, nor what time it is.
//! Time that runs backwards is harmless: nothing becomes due by it.

use super::time::Time;

/// Nanoseconds of one tick: 2^20, or 1.05 ms. Nothing that a worker waits for needs better, and a power of two spares a division.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
const TICK_SHIFT: u32 = 20;

/// Timers that one worker's wheel need hold: four for each session ([`crate::api::SESSIONS_MAX`]).
pub const TIMERS_MAX: usize = 4 * crate::api::SESSIONS_MAX;

/// Bits of a tick that one level decides.
const LEVEL_BITS: u32 = 6;
const SLOTS: usize = 1 << LEVEL_BITS;
/// Enough for the 44 bits of the last tick.
const LEVELS: usize = 8;
/// The list of timers that are due, behind the lists of all slots.
const DUE: usize = LEVELS * SLOTS;
/// No timer: the end of a list.
const NIL: u32 = u32::MAX;

/// The wheel holds as many timers as its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all timers of the wheel are in use")]
pub struct WheelFull;

/// Names a scheduled timer. An id that was cancelled or came due names nothing any more, until its slot in the slab was used 2^32 times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

/// A slab entry: a timer, or a free entry on the free list.
#[derive(Clone, Copy, Debug)]
struct Timer<K> {
    key: K,
    /// The first tick at which the timer may be due.
    tick: u64,
    next: u32,
    prev: u32,
    /// Raised whenever the entry is freed.
    generation: u32,
    /// The list that the timer is in; `None` while the entry is free.
    list: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

/// Pending timers, each with a key.
///
/// Call [`Self::poll`] until it returns `None`, then sleep until [`Self::next_deadline`] at the latest.
#[derive(Debug)]
pub struct Wheel<K> {
    timers: Vec<Timer<K>>,
    free: u32,
    len: usize,
    limit: usize,
    /// No timer of a slot is due at or before this tick.
    now: u64,
    lists: Box<[List; DUE + 1]>,
    /// One bit for each slot of a level whose list is not empty.
    occupied: [u64; LEVELS],
}

impl<K: Copy> Wheel<K> {
    /// An empty wheel for at most `limit` timers (at most 2^32 - 1, see [`TIMERS_MAX`]). All memory is taken now.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(NIL as usize);
        Self {
            timers: Vec::with_capacity(limit),
            free: NIL,
            len: 0,
            limit,
            now: 0,
            lists: Box::new([List { head: NIL, tail: NIL }; DUE + 1]),
            occupied: [0; LEVELS],
        }
    }

    /// Has [`Self::poll`] return `key` at `deadline`, or soon if that has passed.
    ///
    /// # Errors
    /// [`WheelFull`] when as many timers as the limit allows are pending.
    pub fn schedule(&mut self, deadline: Time, key: K) -> Result<TimerId, WheelFull> {
        let tick = deadline.as_nanos().div_ceil(TICK_NS);
        let index = if self.free != NIL {
            let index = self.free;
            let timer = &mut self.timers[index as usize];
            self.free = timer.next;
            (timer.key, timer.tick) = (key, tick);
            index
        } else if self.timers.len() < self.limit {
            self.timers.push(Timer { key, tick, next: NIL, prev: NIL, generation: 0, list: None });
            (self.timers.len() - 1) as u32
        } else {
            return Err(WheelFull);
        };
        self.len += 1;
        self.link(index);
        Ok(TimerId { index, generation: self.timers[index as usize].generation })
    }

    /// Forgets a timer. Returns whether it was still pending; an id that names nothing is harmless.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let pending =
            self.timers.get(id.index as usize).is_some_and(|t| t.generation == id.generation && t.list.is_some());
        if pending {
            self.unlink(id.index);
            self.release(id.index);
        }
        pending
    }

    /// The key of a timer that is due at `now`, if there is one; in the order of ticks.
    pub fn poll(&mut self, now: Time) -> Option<K> {
        let target = now.as_nanos() >> TICK_SHIFT;
        while self.lists[DUE].head == NIL {
            match self.next_slot() {
                Some((level, slot, tick)) if tick <= target => {
                    self.now = tick;
                    self.deal(level, slot);
                }
                _ => {
                    self.now = self.now.max(target);
                    return None;
                }
            }
        }
        let index = self.lists[DUE].head;
        self.unlink(index);
        self.release(index);
        Some(self.timers[index as usize].key)
    }

    /// When to poll next, at the latest; `None` when nothing is pending.
    ///
    /// Exact for timers in the current block of 64 ticks. For others it may be the earlier time at which a slot has to be dealt out: a poll
    /// then returns `None`, and the time after it is later. So a distant timer costs at most one idle wake-up a level.
    pub fn next_deadline(&self) -> Option<Time> {
        let tick = if self.lists[DUE].head != NIL { self.now } else { self.next_slot()?.2 };
        Some(Time::from_nanos(tick.saturating_mul(TICK_NS)))
    }

    /// Pending timers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is pending.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first slot that is not empty, by time: its level, its number, and the tick at which it begins.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        // All of a level lies within one slot of the next, so the lowest level that holds anything holds the first.
        let level = self.occupied.iter().position(|&occupied| occupied != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = LEVEL_BITS * level as u32;
        let above = self.now >> (shift + LEVEL_BITS) << (shift + LEVEL_BITS);
        Some((level, slot, above | (slot as u64) << shift))
    }

    /// Empties a slot that has come: its timers are due, or go to lower levels.
    fn deal(&mut self, level: usize, slot: usize) {
        let list = &mut self.lists[level * SLOTS + slot];
        let mut index = list.head;
        *list = List { head: NIL, tail: NIL };
        self.occupied[level] &= !(1 << slot);
        while index != NIL {
            let next = self.timers[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    /// Appends a timer to the list where its tick belongs.
    fn link(&mut self, index: u32) {
        let tick = self.timers[index as usize].tick;
        let list = if tick <= self.now {
            DUE
        } else {
            let level = (tick ^ self.now).ilog2() / LEVEL_BITS;
            let slot = (tick >> (level * LEVEL_BITS)) as usize % SLOTS;
            self.occupied[level as usize] |= 1 << slot;
            level as usize * SLOTS + slot
        };
        let tail = self.lists[list].tail;
        let timer = &mut self.timers[index as usize];
        (timer.prev, timer.next, timer.list) = (tail, NIL, Some(list as u16));
        match tail {
            NIL => self.lists[list].head = index,
            _ => self.timers[tail as usize].next = index,
        }
        self.lists[list].tail = index;
    }

    /// Takes a linked timer out of its list.
    fn unlink(&mut self, index: u32) {
        let Timer { next, prev, list, .. } = self.timers[index as usize];
        let Some(list) = list.map(usize::from) else { return };
        match prev {
            NIL => self.lists[list].head = next,
            _ => self.timers[prev as usize].next = next,
        }
        match next {
            NIL => self.lists[list].tail = prev,
            _ => self.timers[next as usize].prev = prev,
        }
        if list != DUE && self.lists[list].head == NIL {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    /// Puts an unlinked entry on the free list.
    fn release(&mut self, index: u32) {
        let timer = &mut self.timers[index as usize];
        timer.generation = timer.generation.wrapping_add(1);
        (timer.next, timer.list) = (self.free, None);
        self.free = index;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    fn ticks(count: u64) -> Time {
        at(count * TICK_NS)
    }

    fn due<K: Copy>(wheel: &mut Wheel<K>, now: Time) -> Vec<K> {
        std::iter::from_fn(|| wheel.poll(now)).collect()
    }

    #[test]
    fn a_timer_is_never_early_and_at_most_one_tick_late() {
        for deadline in [1, TICK_NS - 1, TICK_NS, TICK_NS + 1, 64 * TICK_NS, 64 * TICK_NS + 1, 4097 * TICK_NS, 1 << 50]
        {
            let mut wheel = Wheel::new(1);
            wheel.schedule(at(deadline), ()).unwrap();
            assert_eq!(wheel.poll(at(deadline - 1)), None, "{deadline}");
            assert_eq!(wheel.poll(at(deadline + TICK_NS - 1)), Some(()), "{deadline}");
            assert_eq!(wheel.poll(at(u64::MAX)), None);
            assert!(wheel.is_empty());
        }
    }

    #[test]
    fn a_deadline_that_has_passed_is_due_at_once() {
        let mut wheel = Wheel::new(2);
        assert_eq!(wheel.poll(ticks(1000)), None);
        wheel.schedule(ticks(999), 'a').unwrap();
        wheel.schedule(Time::ZERO, 'b').unwrap();
        assert_eq!(wheel.next_deadline(), Some(ticks(1000)));
        assert_eq!(due(&mut wheel, ticks(1000)), ['a', 'b']);
    }

    #[test]
    fn timers_come_due_in_the_order_of_their_ticks() {
        let mut wheel = Wheel::new(16);
        for tick in [70, 3, 5000, 64, 63, 3, 262_144, 1] {
            wheel.schedule(ticks(tick), tick).unwrap();
        }
        assert_eq!(due(&mut wheel, ticks(64)), [1, 3, 3, 63, 64]);
        assert_eq!(due(&mut wheel, ticks(1 << 30)), [70, 5000, 262_144]);
    }

    #[test]
    fn the_wheel_wakes_for_a_distant_timer_a_few_times_at_most() {
        let mut wheel = Wheel::new(1);
        let deadline = 0x0123_4567_89ab_u64;
        wheel.schedule(ticks(deadline), ()).unwrap();
        let mut wakes = 0;
        loop {
            let now = wheel.next_deadline().unwrap();
            assert!(now <= ticks(deadline));
            wakes += 1;
            if wheel.poll(now).is_some() {
                assert_eq!(now, ticks(deadline));
                break;
            }
        }
        assert!(wakes <= LEVELS, "{wakes}");
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn more_timers_than_the_limit_are_refused_until_one_is_gone() {
        let mut wheel = Wheel::new(3);
        let ids: Vec<_> = (0..3).map(|i| wheel.schedule(ticks(i + 1), i).unwrap()).collect();
        assert_eq!(wheel.schedule(ticks(9), 9), Err(WheelFull));
        assert!(wheel.cancel(ids[1]));
        assert!(wheel.schedule(ticks(9), 9).is_ok());
        assert_eq!(wheel.schedule(ticks(9), 9), Err(WheelFull));
        assert_eq!(wheel.poll(ticks(1)), Some(0));
        assert!(wheel.schedule(ticks(9), 9).is_ok());
        assert_eq!(wheel.len(), 3);
        assert_eq!(Wheel::new(0).schedule(Time::ZERO, ()), Err(WheelFull));
    }

    #[test]
    fn a_stale_id_cancels_nothing() {
        let mut wheel = Wheel::new(1);
        let first = wheel.schedule(ticks(1), 'a').unwrap();
        assert!(wheel.cancel(first));
        assert!(!wheel.cancel(first));
        let second = wheel.schedule(ticks(1), 'b').unwrap();
        assert!(!wheel.cancel(first));
        assert_eq!(wheel.poll(ticks(1)), Some('b'));
        assert!(!wheel.cancel(second));
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_timer_that_is_due_but_not_yet_polled_can_be_cancelled() {
        let mut wheel = Wheel::new(3);
        wheel.schedule(ticks(1), 'a').unwrap();
        let b = wheel.schedule(ticks(1), 'b').unwrap();
        wheel.schedule(ticks(1), 'c').unwrap();
        assert_eq!(wheel.poll(ticks(1)), Some('a'));
        assert!(wheel.cancel(b));
        assert_eq!(due(&mut wheel, ticks(1)), ['c']);
    }

    #[test]
    fn the_last_deadline_of_all_does_not_overflow() {
        let mut wheel = Wheel::new(2);
        wheel.schedule(at(u64::MAX), 'z').unwrap();
        wheel.schedule(at(u64::MAX - TICK_NS), 'y').unwrap();
        assert_eq!(due(&mut wheel, at(u64::MAX)), ['y']);
        assert_eq!(wheel.next_deadline(), Some(at(u64::MAX)));
    }

    #[test]
    fn no_memory_is_taken_after_the_start() {
        let mut wheel = Wheel::new(100);
        let capacity = wheel.timers.capacity();
        for round in 0..10 {
            for i in 0..100 {
                wheel.schedule(ticks(round * 100 + i), i).unwrap();
            }
            assert_eq!(due(&mut wheel, ticks(round * 100 + 100)).len(), 100);
        }
        assert_eq!((wheel.timers.capacity(), wheel.timers.len()), (capacity, 100));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule(u64),
        Cancel(usize),
        Poll(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Distances of every magnitude, in nanoseconds.
        let distance = || (0u32..46, any::<u64>()).prop_map(|(bits, noise)| noise & ((1 << bits) - 1));
        prop_oneof![
            4 => distance().prop_map(Step::Schedule),
            1 => any::<usize>().prop_map(Step::Cancel),
            3 => distance().prop_map(Step::Poll),
        ]
    }

    proptest! {
        #[test]
        fn the_wheel_equals_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new(200);
            // What is pending, by deadline; the ids of all timers ever made.
            let mut model = BTreeMap::new();
            let mut ids = vec![];
            let mut now = 0u64;
            for step in steps {
                match step {
                    Step::Schedule(distance) => {
                        let key = ids.len();
                        ids.push((wheel.schedule(at(now + distance), key).unwrap(), now + distance));
                        model.insert((now + distance, key), ());
                    }
                    Step::Cancel(pick) => {
                        if !ids.is_empty() {
                            let key = pick % ids.len();
                            let (id, deadline) = ids[key];
                            prop_assert_eq!(wheel.cancel(id), model.remove(&(deadline, key)).is_some());
                        }
                    }
                    Step::Poll(distance) => {
                        now += distance;
                        while let Some(key) = wheel.poll(at(now)) {
                            let deadline = ids[key].1;
                            prop_assert!(deadline <= now, "early by {}", deadline - now);
                            prop_assert!(model.remove(&(deadline, key)).is_some(), "came twice, or was cancelled");
                        }
                        if let Some((&(deadline, _), ())) = model.first_key_value() {
                            prop_assert!(deadline + TICK_NS > now, "late by more than a tick");
                        }
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                // Sleeping until then misses nothing.
                let earliest = model
                    .first_key_value()
                    .map(|(&(deadline, _), ())| deadline.max(now).div_ceil(TICK_NS) * TICK_NS);
                prop_assert_eq!(wheel.next_deadline().is_some(), earliest.is_some());
                prop_assert!(wheel.next_deadline().map(Time::as_nanos) <= earliest);
            }
            // Woken only when the wheel asks for it, every timer comes at its own tick.
            while let Some(time) = wheel.next_deadline() {
                now = now.max(time.as_nanos());
                while let Some(key) = wheel.poll(at(now)) {
                    let deadline = ids[key].1;
                    prop_assert!(deadline <= now);
                    model.remove(&(deadline, key));
                }
                prop_assert!(wheel.next_deadline().is_none_or(|next| next.as_nanos() > now));
            }
            prop_assert!(model.is_empty() && wheel.is_empty());
        }
    }
}
