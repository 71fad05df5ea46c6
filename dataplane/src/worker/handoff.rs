//! From worker to worker: datagrams that the kernel merged into a train for somebody else.
//!
//! `steer` sees only the first header of a merged train, so a train of two lanes reaches one of their workers whole. That worker copies the
//! foreign runs into buffers of a common pool and queues them; the owner opens them like a burst of its own.
//!
//! ```text
//!   worker 0 ── run ──▶ [ inbox of 1 ] ──▶ worker 1
//!       ▲                                     │
//!       └──────────── pool of buffers ◀───────┘
//! ```
//!
//! Everything is bounded: a run that finds no buffer is dropped and counted. The queues are crossbeam's, so nobody waits for anybody.

use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;

use crate::engine::port::{BURST_LEN, RxBurst, RxMeta};
use crate::io::reactor::Waker;

/// Buffers in the pool for each worker. A burst in which every second train is foreign fits.
const BUFFERS_PER_WORKER: usize = BURST_LEN / 2;
/// Bytes of a buffer: the longest train that the kernel merges.
const BUFFER_LEN: usize = 65_536;

/// A run of datagrams on its way.
struct Run {
    bytes: Box<[u8]>,
    len: usize,
    meta: RxMeta,
}

/// What all workers share.
struct Mesh {
    inboxes: Vec<ArrayQueue<Run>>,
    wakers: Vec<OnceLock<Waker>>,
    pool: ArrayQueue<Run>,
}

/// One worker's end.
pub struct Handoff {
    mesh: Arc<Mesh>,
    number: usize,
    burst: Vec<Run>,
}

impl Handoff {
    /// The ends of so many workers, in order. A single worker has nobody to hand over to, and no buffers.
    pub fn mesh(workers: u8) -> Vec<Self> {
        let count = usize::from(workers);
        let buffers = if count > 1 { count * BUFFERS_PER_WORKER } else { 0 };
        let pool = ArrayQueue::new(buffers.max(1));
        for _ in 0..buffers {
            // Zeroed memory costs nothing until it is used. The pool has room for exactly these.
            let _ = pool.push(Run { bytes: vec![0; BUFFER_LEN].into_boxed_slice(), len: 0, meta: RxMeta::default() });
        }
        let mesh = Arc::new(Mesh {
            inboxes: (0..count).map(|_| ArrayQueue::new(buffers.max(1))).collect(),
            wakers: (0..count).map(|_| OnceLock::new()).collect(),
            pool,
        });
        (0..count)
            .map(|number| Self { mesh: Arc::clone(&mesh), number, burst: Vec::with_capacity(BURST_LEN) })
            .collect()
    }

    /// Says how this worker is woken. Runs that arrive before wait for its next pass.
    pub(super) fn set_waker(&self, waker: Waker) {
        // Set once, when the worker starts.
        let _ = self.mesh.wakers[self.number].set(waker);
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> u8 {
        // `mesh` was given a `u8`.
        self.mesh.inboxes.len() as u8
    }

    /// Hands a run over; `false` when there is no buffer, or no such worker.
    pub fn give(&self, worker: u8, datagrams: &[u8], meta: RxMeta) -> bool {
        let to = usize::from(worker);
        if to == self.number || to >= self.mesh.inboxes.len() || datagrams.len() > BUFFER_LEN {
            return false;
        }
        let Some(mut run) = self.mesh.pool.pop() else { return false };
        run.bytes[..datagrams.len()].copy_from_slice(datagrams);
        (run.len, run.meta) = (datagrams.len(), meta);
        // An inbox has room for every buffer that there is.
        let queued = self.mesh.inboxes[to].push(run).is_ok();
        debug_assert!(queued);
        if let Some(waker) = self.mesh.wakers[to].get() {
            waker.wake();
        }
        queued
    }

    /// Gives the burst's buffers back to the pool, for all workers: as soon as it is opened, since a worker may not come to receive again
    /// for as long as its other side has no room.
    pub(super) fn give_back(&mut self) {
        for run in self.burst.drain(..) {
            // The pool has room for every buffer that there is.
            let _ = self.mesh.pool.push(run);
        }
    }

    /// Takes what has arrived. Returns how many runs that is.
    pub fn receive(&mut self) -> usize {
        self.give_back();
        while self.burst.len() < BURST_LEN
            && let Some(run) = self.mesh.inboxes[self.number].pop()
        {
            self.burst.push(run);
        }
        self.burst.len()
    }
}

impl RxBurst for Handoff {
    fn len(&self) -> usize {
        self.burst.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let run = &mut self.burst[i];
        (&mut run.bytes[..run.len], run.meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(segment: u16) -> RxMeta {
        RxMeta { segment, class: 3, ..RxMeta::default() }
    }

    #[test]
    fn a_run_arrives_as_it_was_given() {
        let mut ends = Handoff::mesh(2);
        assert!(ends[0].give(1, &[7; 300], meta(100)));
        assert!(ends[0].give(1, &[8; 50], meta(0)));
        assert_eq!(ends[0].receive(), 0);
        assert_eq!(ends[1].receive(), 2);
        let (frame, meta) = ends[1].frame(0);
        assert_eq!((&*frame, meta.segment, meta.truncated), (&[7; 300][..], 100, false));
        let (frame, meta) = ends[1].frame(1);
        assert_eq!((&*frame, meta.segment, meta.class), (&[8; 50][..], 0, 3));
        assert_eq!(ends[1].receive(), 0);
    }

    #[test]
    fn the_pool_bounds_what_is_under_way_and_is_filled_again() {
        let mut ends = Handoff::mesh(2);
        let buffers = 2 * BUFFERS_PER_WORKER;
        for _ in 0..3 {
            for i in 0..buffers {
                assert!(ends[0].give(1, &[i as u8], meta(0)), "run {i}");
            }
            assert!(!ends[0].give(1, &[0], meta(0)), "one more than there are buffers");
            let mut received = 0;
            while ends[1].receive() > 0 {
                received += ends[1].len();
            }
            assert_eq!(received, buffers);
        }
    }

    #[test]
    fn what_was_opened_can_be_lent_again_before_the_owner_receives() {
        let mut ends = Handoff::mesh(2);
        while ends[0].give(1, &[1], meta(0)) {}
        assert_eq!(ends[1].receive(), 2 * BUFFERS_PER_WORKER);
        assert!(!ends[0].give(1, &[2], meta(0)), "every buffer is the owner's");
        ends[1].give_back();
        assert_eq!(ends[1].len(), 0);
        assert!(ends[0].give(1, &[2], meta(0)));
    }

    #[test]
    fn nobody_hands_over_to_himself_or_to_nobody() {
        let ends = Handoff::mesh(2);
        assert!(!ends[0].give(0, &[1], meta(0)));
        assert!(!ends[0].give(2, &[1], meta(0)));
        assert!(!ends[0].give(1, &[0; BUFFER_LEN + 1], meta(0)));
        assert!(!Handoff::mesh(1)[0].give(0, &[1], meta(0)));
    }
}
