//! How much one peer may ask: a bucket for each group of peers, in little memory that does not grow.
//!
//! A peer's group is a hash under a random key, so nobody knows with whom it shares one. Each group has a theoretical arrival time (GCRA,
//! ITU-T I.371), as everywhere in this program.

use std::time::{Duration, Instant};

use crate::pki::id::NodeId;

/// Groups. Ours: who floods takes one honest peer in 256 along.
const GROUPS: usize = 256;
/// Between two requests of one group, over time, in whole milliseconds. Ours: sixteen a second, some times what a peer needs that joins.
const INTERVAL: Duration = Duration::from_millis(62);
/// How far a group may be ahead: 160 requests at once, as when somebody joins or many of one group come together.
const AHEAD_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Limit {
    key: u64,
    began: Instant,
    /// Milliseconds since `began`, so that a group takes four bytes; 49 days, after which all begins anew.
    arrivals: Box<[u32; GROUPS]>,
}

impl Limit {
    pub(super) fn new(key: u64, now: Instant) -> Self {
        Self { key, began: now, arrivals: Box::new([0; GROUPS]) }
    }

    /// Whether this peer may ask now.
    pub(super) fn admit(&mut self, node: NodeId, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.began);
        let Ok(at) = u32::try_from(since.as_millis()) else {
            *self = Self::new(self.key, now);
            return self.admit(node, now);
        };
        let (first, _) = node.0.split_at(8);
        let id = first.iter().fold(0u64, |id, byte| id << 8 | u64::from(*byte));
        // Multiplication by an odd random number spreads ids, which are hashes already (Dietzfelbinger et al., J. Algorithms 25, 1997).
        let group = (id.wrapping_mul(self.key | 1) >> 56) as usize;
        let arrival = &mut self.arrivals[group];
        let next = (*arrival).max(at);
        if u128::from(next - at) > AHEAD_MAX.as_millis() {
            return false;
        }
        *arrival = next.saturating_add(INTERVAL.as_millis() as u32);
        true
    }

    pub(super) const fn heap_len() -> usize {
        GROUPS * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_to_the_rate_and_leaves_others_alone() {
        let start = Instant::now();
        let mut limit = Limit::new(0x9e37_79b9_7f4a_7c15, start);
        let at = |ms| start + Duration::from_millis(ms);
        let taken = (0..1000).filter(|_| limit.admit(NodeId([1; 32]), start)).count();
        assert!((155..=165).contains(&taken), "{taken}");
        assert!(limit.admit(NodeId([2; 32]), start));
        assert!(!limit.admit(NodeId([1; 32]), start) && limit.admit(NodeId([1; 32]), at(200)));
        let over_a_minute = (0..60_000).filter(|ms| limit.admit(NodeId([1; 32]), at(1000 + ms))).count();
        assert!((900..1200).contains(&over_a_minute), "{over_a_minute}");
        // After 49 days the books begin anew.
        assert!(limit.admit(NodeId([1; 32]), start + Duration::from_secs(50 * 86_400)));
    }
}
