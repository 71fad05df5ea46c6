//! A log-linear histogram: exact below 16, then 16 steps in each power of two, so any quantile is right to 1/16.
//!
//! The sink's program files latencies under [`bucket`]; this is the reading side.

use crate::layout::{BUCKETS, BUCKETS_PER_OCTAVE, bucket};

/// Counts by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS as usize] }
    }
}

impl Histogram {
    /// Notes one value.
    pub fn record(&mut self, value: u64) {
        self.add(bucket(value), 1);
    }

    /// Adds to a bucket; one out of range is ignored.
    pub fn add(&mut self, bucket: u32, count: u64) {
        if let Some(slot) = self.counts.get_mut(bucket as usize) {
            *slot += count;
        }
    }

    /// Values noted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The smallest value such that at least `share` (0 to 1) of all values are not above its bucket: the upper end of that bucket.
    /// `None` when empty.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64 * share).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let at = self.counts.iter().position(|&count| {
            seen += count;
            seen >= rank
        })?;
        Some(upper_end(at as u32))
    }
}

/// Largest value of a bucket.
fn upper_end(bucket: u32) -> u64 {
    let (octave, step) = (bucket / BUCKETS_PER_OCTAVE, u64::from(bucket % BUCKETS_PER_OCTAVE));
    match octave {
        0 => step,
        // The width is 2^(octave - 1); computed from the lower end so that the last bucket does not overflow.
        _ => ((u64::from(BUCKETS_PER_OCTAVE) + step) << (octave - 1)) + ((1 << (octave - 1)) - 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_cover_all_values_without_gap_or_overlap() {
        for b in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_end(b)), b);
            assert_eq!(bucket(upper_end(b) + 1), b + 1);
        }
        assert_eq!(upper_end(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn quantiles_of_known_values_are_exact_when_values_are_small() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=10).for_each(|v| histogram.record(v));
        assert_eq!(histogram.total(), 10);
        assert_eq!([0.0, 0.1, 0.11, 0.5, 0.99, 1.0].map(|q| histogram.quantile(q)), [1, 1, 2, 5, 10, 10].map(Some));
    }

    #[test]
    fn a_bucket_out_of_range_is_ignored() {
        let mut histogram = Histogram::default();
        histogram.add(BUCKETS, 1);
        assert_eq!(histogram.total(), 0);
        histogram.add(BUCKETS - 1, 1);
        assert_eq!(histogram.total(), 1);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_sixteenth_of_the_sorted_oracle(
            mut values in proptest::collection::vec(0u64..1 << 40, 1..200), share in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&v| histogram.record(v));
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
            let (exact, found) = (values[rank - 1], histogram.quantile(share).unwrap());
            prop_assert!(exact <= found && found <= exact + exact / 16, "{exact} {found}");
        }
    }
}
