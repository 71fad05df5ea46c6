//! Receiver indices: which slots of which worker are free, and the tag of each next use.

use std::collections::VecDeque;

use weir_abi::map::SLOTS_PER_WORKER;
use weir_abi::wire::ReceiverIndex;

use super::state::Random;

/// Hands out receiver indices. A slot that is given back goes to the end of the line, so that it rests as long as possible before its
/// next use, and comes back with another tag.
#[derive(Debug)]
pub(super) struct Indices {
    /// By worker, each free slot with the tag that it had last.
    free: Vec<VecDeque<(u16, Option<u16>)>>,
}

impl Indices {
    /// All slots of so many workers, each worker's from another one on: ten bits of tag alone would let a plane that comes after another
    /// give out an index that peers still send to under the keys of the former.
    pub(super) fn new(workers: u8, random: &mut impl Random) -> Self {
        // Slot 0 of worker 0 with tag 0 would be index 0, which means "none" in the map; leaving slot 0 out costs nothing.
        let mut slots = || {
            let mut slots: VecDeque<_> = (1..SLOTS_PER_WORKER as u16).map(|slot| (slot, None)).collect();
            slots.rotate_left((random.u64() % slots.len() as u64) as usize);
            slots
        };
        Self { free: (0..workers).map(|_| slots()).collect() }
    }

    /// Takes a slot of a worker, with `random` as its tag, or the next one if it had just that; `None` when the worker has none left.
    pub(super) fn take(&mut self, worker: u8, random: u16) -> Option<ReceiverIndex> {
        let (slot, last) = self.free.get_mut(usize::from(worker))?.pop_front()?;
        let index = ReceiverIndex::new(worker, slot, random);
        Some(if last == Some(index.tag()) { ReceiverIndex::new(worker, slot, random.wrapping_add(1)) } else { index })
    }

    /// Gives an index back.
    pub(super) fn give_back(&mut self, index: ReceiverIndex) {
        if let Some(free) = self.free.get_mut(usize::from(index.worker())) {
            debug_assert!(free.iter().all(|(slot, _)| *slot != index.slot()), "given back twice");
            free.push_back((index.slot(), Some(index.tag())));
        }
    }

    /// The free slots of all workers.
    #[cfg(test)]
    pub(super) fn free(&self) -> impl Iterator<Item = (u8, u16)> {
        (0u8..).zip(&self.free).flat_map(|(worker, free)| free.iter().map(move |&(slot, _)| (worker, slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws the same number again and again.
    struct Fixed(u64);

    impl Random for Fixed {
        fn fill(&mut self, bytes: &mut [u8]) {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
            }
        }
    }

    fn indices(workers: u8) -> Indices {
        Indices::new(workers, &mut Fixed(0))
    }

    #[test]
    fn every_slot_is_given_once_until_it_comes_back() {
        let mut indices = indices(2);
        let taken: Vec<_> = std::iter::from_fn(|| indices.take(1, 5)).collect();
        assert_eq!(taken.len(), SLOTS_PER_WORKER as usize - 1);
        assert!(taken.iter().all(|index| index.worker() == 1 && index.tag() == 5 && index.slot() > 0));
        assert_eq!(indices.take(1, 5), None);
        assert!(indices.take(0, 5).is_some(), "the other worker has its own");
        indices.give_back(taken[7]);
        assert_eq!(indices.take(1, 9), Some(ReceiverIndex::new(1, taken[7].slot(), 9)));
        assert_eq!(indices.take(2, 0), None, "no such worker");
    }

    /// Each plane began with slot 1, so that after a restart one index in a thousand was one of before.
    #[test]
    fn a_plane_begins_with_another_slot_than_the_one_before() {
        let slots_of = |random| {
            let mut indices = Indices::new(1, &mut Fixed(random));
            std::iter::from_fn(|| indices.take(0, 0)).map(ReceiverIndex::slot).collect::<Vec<_>>()
        };
        let max = SLOTS_PER_WORKER as u16 - 1;
        assert_eq!((slots_of(0)[..3].to_vec(), slots_of(u64::from(max))[0]), (vec![1, 2, 3], 1));
        let mut slots = slots_of(u64::from(max) - 2);
        assert_eq!(slots[..4], [max - 1, max, 1, 2]);
        slots.sort_unstable();
        assert!(slots.into_iter().eq(1..=max), "each of them once");
    }

    #[test]
    fn a_slot_never_comes_back_with_the_tag_it_had() {
        for tag in [0, 1, 1023, 1024, u16::MAX] {
            let mut indices = indices(1);
            let before: Vec<_> = std::iter::from_fn(|| indices.take(0, tag)).collect();
            before.iter().for_each(|&index| indices.give_back(index));
            let after: Vec<_> = std::iter::from_fn(|| indices.take(0, tag)).collect();
            assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(&after) {
                assert!(before.slot() == after.slot() && before.tag() != after.tag(), "{before:?} {after:?}");
            }
        }
    }

    #[test]
    fn a_slot_rests_as_long_as_possible() {
        let mut indices = indices(1);
        let first = indices.take(0, 0).unwrap();
        indices.give_back(first);
        for _ in 0..SLOTS_PER_WORKER - 2 {
            assert_ne!(indices.take(0, 0).unwrap().slot(), first.slot());
        }
        assert_eq!(indices.take(0, 0).unwrap().slot(), first.slot());
    }
}
