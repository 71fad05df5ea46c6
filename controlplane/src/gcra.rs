//! How often something may happen, for each of very many: a bucket for each group of them, in little memory that does not grow.
//!
//! A group is a hash under a random key, so nobody knows with whom it shares one. Each group has a theoretical arrival time (GCRA, ITU-T I.371), as
//! everywhere in this program.

use std::time::Instant;

/// All groups.
#[derive(Clone, Debug)]
pub struct Groups {
    key: u64,
    began: Instant,
    interval_ms: u32,
    ahead_max_ms: u32,
    /// Milliseconds since `began`, so that a group takes four bytes; 49 days, after which all begins anew.
    arrivals: Box<[u32]>,
}

impl Groups {
    /// Two to the power of `bits` groups, each with one in `interval_ms` over time, and `ahead_max_ms` of them at once.
    pub fn new(bits: u32, interval_ms: u32, ahead_max_ms: u32, key: u64, now: Instant) -> Self {
        Self { key, began: now, interval_ms, ahead_max_ms, arrivals: vec![0; 1 << bits].into() }
    }

    /// Whether it may happen now, for the one with this number.
    pub fn admit(&mut self, number: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.began);
        let at = u32::try_from(since.as_millis()).unwrap_or_else(|_| {
            self.began = now;
            self.arrivals.fill(0);
            0
        });
        // Multiplication by an odd random number spreads them (Dietzfelbinger et al., J. Algorithms 25, 1997).
        let bits = self.arrivals.len().trailing_zeros();
        let group = number.wrapping_mul(self.key | 1).checked_shr(64 - bits).unwrap_or(0) as usize;
        let arrival = &mut self.arrivals[group];
        let next = (*arrival).max(at);
        if next - at > self.ahead_max_ms {
            return false;
        }
        *arrival = next.saturating_add(self.interval_ms);
        true
    }

    /// Bytes on the heap.
    pub fn heap_len(&self) -> usize {
        size_of_val(&*self.arrivals)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_is_held_to_its_rate_and_leaves_others_alone() {
        let start = Instant::now();
        let mut groups = Groups::new(8, 62, 10_000, 0x9e37_79b9_7f4a_7c15, start);
        let at = |ms| start + Duration::from_millis(ms);
        let taken = (0..1000).filter(|_| groups.admit(1, start)).count();
        assert!((155..=165).contains(&taken), "{taken}");
        assert!(groups.admit(2, start));
        assert!(!groups.admit(1, start) && groups.admit(1, at(200)));
        let over_a_minute = (0..60_000).filter(|ms| groups.admit(1, at(1000 + ms))).count();
        assert!((900..1200).contains(&over_a_minute), "{over_a_minute}");
        // After 49 days the books begin anew.
        assert!(groups.admit(1, start + Duration::from_secs(50 * 86_400)));
        assert_eq!(groups.heap_len(), 1024);
    }
}
