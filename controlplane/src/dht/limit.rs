//! How much one peer may ask.

use std::time::Instant;

use crate::gcra::Groups;
use crate::pki::id::NodeId;

/// Groups, as a power of two. Ours: who floods takes one honest peer in 256 along.
const GROUP_BITS: u32 = 8;
/// Between two requests of one group, over time. Ours: sixteen a second, some times what a peer needs that joins.
const INTERVAL_MS: u32 = 62;
/// How far a group may be ahead: 160 requests at once, as when somebody joins or many of one group come together.
const AHEAD_MAX_MS: u32 = 10_000;

#[derive(Clone, Debug)]
pub(super) struct Limit(Groups);

impl Limit {
    pub(super) fn new(key: u64, now: Instant) -> Self {
        Self(Groups::new(GROUP_BITS, INTERVAL_MS, AHEAD_MAX_MS, key, now))
    }

    /// Whether this peer may ask now. Ids are hashes already.
    pub(super) fn admit(&mut self, node: NodeId, now: Instant) -> bool {
        let id = node.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        self.0.admit(id, now)
    }

    pub(super) fn heap_len(&self) -> usize {
        self.0.heap_len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_held_to_the_rate_and_leaves_others_alone() {
        let start = Instant::now();
        let mut limit = Limit::new(0x9e37_79b9_7f4a_7c15, start);
        let taken = (0..1000).filter(|_| limit.admit(NodeId([1; 32]), start)).count();
        assert!((155..=165).contains(&taken), "{taken}");
        assert!(limit.admit(NodeId([2; 32]), start));
        assert!(limit.admit(NodeId([1; 32]), start + Duration::from_millis(200)));
    }
}
