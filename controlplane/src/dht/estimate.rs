//! How many servers there are, from how near the nearest ones lie to a place; and so, within which distance of a key its records are kept.
//!
//! ```text
//!   place ├──x1──┼───x2───┼─x3─┼──── … ──┤xm          servers ≈ (m − 1/3) / xm        distances as shares of the id space
//! ```
//!
//! xm is Gamma distributed where ids are drawn at random, and its median is (m − 1/3) / servers nearly. The median over many places counts: whoever
//! crowds one place, or withholds its neighbours, changes one sample. Before there is one, what others name around our own place has to do.

use std::collections::VecDeque;

use super::place::Distance;

/// Servers that keep a record, as far as the estimate is right. Ours: k, as elsewhere.
pub const REGION: f64 = 20.0;
/// Places that are remembered. Ours: the estimate is within a fifth as a rule.
const SAMPLES_MAX: usize = 15;
/// Neighbours below which a place says nothing.
pub(super) const NEIGHBOURS_MIN: usize = 4;
/// Neighbours beyond which more say little.
const NEIGHBOURS_MAX: usize = 12;

/// The distance from a key, as a share of the id space, within which its records are kept: everywhere in a small network.
pub fn region(servers: f64) -> f64 {
    (REGION / servers.max(1.0)).min(1.0)
}

/// Samples that are kept though the network has become another.
const SAMPLES_MIN: usize = 4;
/// How many of the oldest go with each new one then.
const FORGET: usize = 2;

/// The estimate of one node.
#[derive(Clone, Debug, Default)]
pub(super) struct Size {
    samples: VecDeque<f64>,
    /// By hearsay.
    hint: Option<f64>,
}

fn servers_of(nearest: &[Distance]) -> Option<f64> {
    let nearest = &nearest[..nearest.len().min(NEIGHBOURS_MAX)];
    let last = nearest.last().filter(|_| nearest.len() >= NEIGHBOURS_MIN)?;
    Some((nearest.len() as f64 - 1.0 / 3.0) / last.share().max(f64::MIN_POSITIVE))
}

impl Size {
    /// Notes the distances from a place of those nearest to it that answered, nearest first.
    pub(super) fn sample(&mut self, nearest: &[Distance]) {
        let Some(servers) = servers_of(nearest) else { return };
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(servers);
    }

    /// Notes the distances from a place of those who were named there, whether they answer or not. It counts while nothing better is known.
    pub(super) fn hear(&mut self, nearest: &[Distance]) {
        if self.samples.is_empty() {
            self.hint = servers_of(nearest).or(self.hint);
        }
    }

    /// Whether it rests on more than hearsay.
    pub(super) fn is_seen(&self) -> bool {
        !self.samples.is_empty()
    }

    #[cfg(test)]
    pub(super) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// The network has become another than it was: what was seen first counts no more.
    pub(super) fn forget_oldest(&mut self) {
        let gone = self.samples.len().saturating_sub(SAMPLES_MIN).min(FORGET);
        self.samples.drain(..gone);
    }

    /// Servers in the network; `None` before anything is known.
    pub(super) fn servers(&self) -> Option<f64> {
        if self.samples.is_empty() {
            return self.hint;
        }
        let mut sorted: Vec<f64> = self.samples.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    pub(super) fn heap_len(&self) -> usize {
        self.samples.capacity() * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::Key;
    use super::*;
    use crate::random::{Random as _, SeededRandom};

    fn neighbours(of: Key, network: &[Key]) -> Vec<Distance> {
        let mut distances: Vec<_> = network.iter().map(|key| of.distance(*key)).collect();
        distances.sort_unstable();
        distances
    }

    #[test]
    fn the_estimate_is_right_within_a_half_whatever_the_size_and_a_crowded_place_does_not_change_that() {
        let mut random = SeededRandom::new(5);
        for count in [50usize, 500, 5000] {
            let network: Vec<Key> = (0..count).map(|_| Key(random.array())).collect();
            let mut size = Size::default();
            for at in 0..SAMPLES_MAX {
                let mut nearest = neighbours(Key(random.array()), &network);
                if at % 3 == 0 {
                    // 32 ids next to the place.
                    nearest.splice(..0, vec![Key([0; 32]).distance(Key([0; 32])); 32]);
                }
                size.sample(&nearest);
            }
            let found = size.servers().unwrap() / count as f64;
            assert!((0.66..1.5).contains(&found), "{found} of {count}");
            assert!((region(count as f64 * found) * count as f64 * found - REGION).abs() < 1e-6);
        }
    }

    /// A newcomer took the network for as small as its table was, and so the whole of it for one region: its first look-ups wandered.
    #[test]
    fn what_is_heard_counts_until_something_is_seen_and_what_is_old_goes_first() {
        let mut random = SeededRandom::new(6);
        let [small, large] = [100, 4000].map(|count| -> Vec<Key> { (0..count).map(|_| Key(random.array())).collect() });
        let mut size = Size::default();
        let place = || Key(SeededRandom::new(7).array());
        size.hear(&neighbours(place(), &large)[..20]);
        assert!(size.servers().is_some_and(|servers| (1500.0..9000.0).contains(&servers)));
        let mut random = SeededRandom::new(8);
        (0..SAMPLES_MAX).for_each(|_| size.sample(&neighbours(Key(random.array()), &small)));
        size.hear(&neighbours(place(), &large));
        assert!(size.servers().is_some_and(|servers| servers < 200.0));
        for _ in 0..5 {
            size.forget_oldest();
            size.sample(&neighbours(Key(random.array()), &large));
        }
        assert!(size.servers().is_some_and(|servers| servers > 2000.0), "{size:?}");
    }

    #[test]
    fn few_neighbours_say_nothing_and_a_small_network_is_one_region() {
        let mut size = Size::default();
        assert_eq!((size.servers(), region(0.0), region(REGION)), (None, 1.0, 1.0));
        let network: Vec<Key> = (0..3u8).map(|byte| Key([byte; 32])).collect();
        size.sample(&neighbours(Key([0; 32]), &network));
        assert_eq!(size.servers(), None);
        let network: Vec<Key> = (0..8u8).map(|byte| Key([byte << 5; 32])).collect();
        size.sample(&neighbours(Key([0; 32]), &network));
        assert!(size.servers().is_some_and(|servers| region(servers) == 1.0));
    }
}
