//! Many look-ups at once, so that the processor waits for all of their memory at the same time.
//!
//! ```text
//!   one by one:   root ── node ── node ── leaf │ root ── node ── leaf │ root …      each waits for what it has read
//!
//!   in stages:    root root root …  │  node node node …  │  node node …  │  leaf leaf leaf …
//! ```
//!
//! A single look-up is a chain of reads, and how long the chain is has to be guessed by the processor, wrongly about every second time in
//! a large table; after a wrong guess nothing of the next look-up has begun. Here each stage is a loop of reads that do not depend on each
//! other and of arithmetic without branches, so the processor runs ahead of the reads that are on their way. Keys that have arrived at a
//! leaf leave the list of those that go on. This needs no prefetch instructions.

use super::{Key, LEAF, Lpm, STRIDE, Trie};
use std::net::IpAddr;

/// Most look-ups at once: a burst.
pub const BATCH_LEN: usize = 64;

impl<T: Copy> Lpm<T> {
    /// [`Self::lookup`] for each of at most [`BATCH_LEN`] addresses; answers are written to the beginning of `found`, in their order.
    ///
    /// # Panics
    /// When there are more, or `found` is shorter than `addresses`.
    pub fn lookup_batch(&self, addresses: &[IpAddr], found: &mut [Option<T>]) {
        let found = &mut found[..addresses.len()];
        let (mut v4, mut v6) = (Keys::new(), Keys::new());
        for (i, address) in (0u8..).zip(addresses) {
            match address {
                IpAddr::V4(address) => v4.push(i, u64::from(address.to_bits()) << 32),
                IpAddr::V6(address) => v6.push(i, address.to_bits()),
            }
        }
        v4.look_up(&self.v4, found);
        v6.look_up(&self.v6, found);
    }
}

/// Addresses of one family that are looked up together.
struct Keys<K> {
    /// What of each key is not consumed yet.
    keys: [K; BATCH_LEN],
    /// The places of their answers.
    places: [u8; BATCH_LEN],
    len: usize,
}

impl<K: Key + Default> Keys<K> {
    fn new() -> Self {
        Self { keys: [K::default(); BATCH_LEN], places: [0; BATCH_LEN], len: 0 }
    }

    #[inline]
    fn push(&mut self, place: u8, key: K) {
        (self.keys[self.len], self.places[self.len]) = (key, place);
        self.len += 1;
    }

    fn look_up<T: Copy>(&mut self, trie: &Trie<T>, found: &mut [Option<T>]) {
        let keys = &mut self.keys[..self.len];
        let mut at = [0u32; BATCH_LEN];
        // Those that have not arrived at a leaf: the first `left` of the list.
        let (mut going, mut left) = ([0u8; BATCH_LEN], 0);
        let (shared, root_bits) = (trie.shared, trie.root_bits);
        for (i, (key, at)) in keys.iter_mut().zip(&mut at).enumerate() {
            let is_outside = key.top(shared.count()) != shared.bits();
            let inside = key.advance(shared.count());
            let reference = trie.root[inside.top(root_bits) as usize];
            // The first leaf is the default.
            *at = if is_outside { LEAF } else { reference };
            *key = inside.advance(root_bits);
            going[left] = i as u8;
            left += usize::from(*at & LEAF == 0);
        }
        while left != 0 {
            let stage = left;
            left = 0;
            for turn in 0..stage {
                let i = usize::from(going[turn]) % BATCH_LEN;
                let node = &trie.nodes[at[i] as usize];
                let key = keys[i];
                let differs = key.top(node.skip.count()) != node.skip.bits();
                let behind = key.advance(node.skip.count());
                let branch = behind.top(STRIDE);
                keys[i] = behind.advance(STRIDE);
                let is_node = node.internal >> branch & 1 != 0;
                let (bits, first, leaf) =
                    if is_node { (node.internal, node.children, 0) } else { (node.runs, node.leaves, LEAF) };
                // With this branch's, so at least one.
                let up_to = (bits & (u64::MAX >> (63 - branch))).count_ones();
                let next = leaf | first.wrapping_add(up_to).wrapping_sub(1);
                // Only a node that skips bits can be left this way, and it has a leaf of its own before the others.
                at[i] = if differs { LEAF | node.leaves.wrapping_sub(1) } else { next };
                going[left] = i as u8;
                left += usize::from(at[i] & LEAF == 0);
            }
        }
        for (place, at) in self.places[..self.len].iter().zip(&at) {
            found[usize::from(*place)] = trie.leaves[(at & !LEAF) as usize];
        }
    }
}
