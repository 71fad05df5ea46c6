//! The packets of a batch, grouped by the peer that they go to.
//!
//! Nothing is moved: a chain of packet numbers runs through the batch for each peer, in the order in which the packets came.

use super::bundle::Packets;
use super::outbox::Outbox;
use super::port::{BURST_LEN, RxBurst};
use super::snapshot::SessionSlot;

/// The packets of one batch, chained by session without moving them.
pub(super) struct Batch {
    /// Length of packet `i`.
    len: [u32; BURST_LEN],
    /// The packet after `i` for the same session.
    next: [u8; BURST_LEN],
    /// Sessions with packets, in the order of their first one.
    pub(super) chains: [Chain; BURST_LEN],
    pub(super) count: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) slot: SessionSlot,
    first: u8,
    last: u8,
}

/// End of a chain.
const NONE: u8 = u8::MAX;

impl Batch {
    pub(super) const fn new() -> Self {
        let unused = Chain { slot: SessionSlot(u32::MAX), first: NONE, last: NONE };
        Self { len: [0; BURST_LEN], next: [NONE; BURST_LEN], chains: [unused; BURST_LEN], count: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds packet `i` for a session. Bursts have few sessions, so the newest chains are looked at first.
    pub(super) fn push(&mut self, i: usize, slot: SessionSlot, len: usize) {
        self.len[i] = len as u32;
        self.next[i] = NONE;
        match self.chains[..self.count].iter_mut().rev().find(|chain| chain.slot == slot) {
            Some(chain) => {
                self.next[usize::from(chain.last)] = i as u8;
                chain.last = i as u8;
            }
            None => {
                self.chains[self.count] = Chain { slot, first: i as u8, last: i as u8 };
                self.count += 1;
            }
        }
    }

    /// The packets of chain `c`.
    pub(super) fn members(&self, c: usize) -> Members {
        let mut members = Members { numbers: [0; BURST_LEN], lens: [0; BURST_LEN], count: 0 };
        let mut at = self.chains[c].first;
        while at != NONE {
            members.numbers[members.count] = at;
            members.lens[members.count] = self.len[usize::from(at)];
            members.count += 1;
            at = self.next[usize::from(at)];
        }
        members
    }
}

/// The packets for one session: their numbers in the batch and their lengths.
pub(super) struct Members {
    pub(super) numbers: [u8; BURST_LEN],
    pub(super) lens: [u32; BURST_LEN],
    pub(super) count: usize,
}

impl Members {
    pub(super) const EMPTY: Self = Self { numbers: [0; BURST_LEN], lens: [0; BURST_LEN], count: 0 };

    /// Bytes of the first `count` of them.
    pub(super) fn bytes(&self, count: usize) -> u64 {
        self.lens[..count].iter().map(|&len| u64::from(len)).sum()
    }
}

/// The members' bytes, in a port's burst.
pub(super) struct InBurst<'a, R>(pub(super) &'a mut R, pub(super) &'a Members);

impl<R: RxBurst> Packets for InBurst<'_, R> {
    fn packet(&mut self, i: usize) -> &[u8] {
        self.0.frame(usize::from(self.1.numbers[i])).0
    }
}

/// The members' bytes, in the outbox, where the batch begins at the packet with this number.
pub(super) struct InOutbox<'a>(pub(super) &'a Outbox, pub(super) &'a Members, pub(super) usize);

impl Packets for InOutbox<'_> {
    fn packet(&mut self, i: usize) -> &[u8] {
        self.0.packet(self.2 + usize::from(self.1.numbers[i]))
    }
}

/// No packets at all: a datagram of control blocks.
pub(super) struct Nothing;

impl Packets for Nothing {
    fn packet(&mut self, _: usize) -> &[u8] {
        &[]
    }
}
