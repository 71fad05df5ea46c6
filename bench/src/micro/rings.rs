//! Queues between two parties that share memory, without waking anybody: AF_XDP's rings without a kernel, and runs from worker to worker.
//!
//! Both ends are on one core, so a figure is that of the instructions, not of a cache line on its way between two cores.

use std::hint::black_box;
use std::time::Instant;

use weir_dataplane::engine::port::{BURST_LEN, RxBurst, RxMeta};
use weir_dataplane::io::xsk::ring;
use weir_dataplane::worker::Handoff;

use super::Subject;

const BATCHES: u32 = 2000;
/// Entries of the ring: those of a socket with the default number of frames.
const RING_LEN: u32 = 2048;
/// Runs that are handed over at once: those that two workers' buffers hold, while those of the time before are still lent.
const RUNS: usize = BURST_LEN / 2;
const RUN_LEN: usize = 1400;

/// Nanoseconds for each of `count` things in a batch; no figure when a batch fails.
fn batches(count: usize, mut batch: impl FnMut() -> bool) -> f64 {
    let start = Instant::now();
    for _ in 0..BATCHES {
        if !batch() {
            return f64::NAN;
        }
    }
    start.elapsed().as_nanos() as f64 / f64::from(BATCHES) / count as f64
}

/// Descriptors of 16 bytes (`struct xdp_desc`): room is asked for, they are written and published, read and given back.
fn descriptors() -> f64 {
    let Ok((mut producer, mut consumer)) = ring::pair::<[u64; 2]>(RING_LEN) else { return f64::NAN };
    batches(BURST_LEN, || {
        let mut whole = producer.free(BURST_LEN as u32) >= BURST_LEN as u32;
        for i in 0..BURST_LEN as u64 {
            whole &= producer.push(black_box([i << 12, RUN_LEN as u64]));
        }
        producer.submit();
        for _ in 0..BURST_LEN {
            whole &= black_box(consumer.pop()).is_some();
        }
        consumer.release();
        whole
    })
}

/// Runs copied into buffers of the pool, queued, and taken by the other worker, whose buffers then go back.
fn runs() -> f64 {
    let mut ends = Handoff::mesh(2);
    let run = vec![1u8; RUN_LEN];
    batches(RUNS, || {
        let given = (0..RUNS).all(|_| ends[0].give(1, black_box(&run), RxMeta::default()));
        given && ends[1].receive() == RUNS && black_box(ends[1].frame(RUNS - 1)).0.len() == RUN_LEN
    })
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    vec![
        Subject::measured("AF_XDP ring over plain memory, a descriptor in a batch of 64", descriptors),
        Subject::measured("handoff of a run of 1400 B between two workers", runs),
    ]
}
