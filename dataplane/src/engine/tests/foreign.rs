//! Trains in which the kernel merged datagrams for several workers.

use super::rig::*;
use crate::engine::port::RxMeta;
use crate::engine::*;

/// Two datagrams of equal length that gateway 2 opens, and gateway 2 as worker 2 of 4.
fn two_datagrams() -> (Vec<Vec<u8>>, Gateway) {
    let (mut one, mut two) = pair(&Link::default());
    two.engine.workers = 4;
    let datagrams =
        (0..2).map(|i| one.encapsulate(START, Burst::of([v4(1, 2, 64, i)])).0.frames[0].0.clone()).collect();
    (datagrams, two)
}

fn meta(segment: usize) -> RxMeta {
    RxMeta { segment: segment as u16, ..RxMeta::default() }
}

/// The same datagram, for another worker.
fn for_worker(worker: u8, datagram: &[u8]) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    datagram[7] = (datagram[7] & 0xc0) | worker;
    datagram
}

#[test]
fn foreign_runs_of_a_train_are_left_to_the_caller_and_the_rest_is_opened() {
    let (own, mut two) = two_datagrams();
    let len = own[0].len();
    let train =
        [&own[0][..], &for_worker(3, &own[0]), &for_worker(3, &own[1]), &for_worker(0, &own[0]), &own[1]].concat();
    let (lan, wan) = two.decapsulate(START, Burst(vec![(train, meta(len))]));
    assert_eq!((lan.frames.len(), wan.frames.len()), (2, 0));
    let runs: Vec<_> = two.engine.foreign_runs().iter().map(|run| (run.frame, run.worker, run.range())).collect();
    assert_eq!(runs, [(0, 3, len..3 * len), (0, 0, 3 * len..4 * len)]);
    assert_eq!(two.dropped(), 0);
    two.engine.clear_foreign_runs();
    assert_eq!(two.engine.foreign_runs(), []);
}

#[test]
fn a_worker_that_does_not_exist_is_nobody_to_hand_over_to() {
    let (own, mut two) = two_datagrams();
    two.decapsulate(START, Burst::of([for_worker(4, &own[0])]));
    assert_eq!(two.engine.foreign_runs(), []);
    assert_eq!(two.moved(), [("wan_bursts", 1), ("unknown_index", 1)]);
}

#[test]
fn the_limit_of_foreign_runs_holds_and_what_is_beyond_is_counted() {
    let (own, mut two) = two_datagrams();
    let len = own[0].len();
    let alternating: Vec<u8> = (0..64).flat_map(|i| for_worker(i % 2, &own[0])).collect();
    let trains = FOREIGN_RUNS_MAX / 64;
    two.decapsulate(START, Burst(vec![(alternating.clone(), meta(len)); trains]));
    assert_eq!((two.engine.foreign_runs().len(), two.dropped()), (FOREIGN_RUNS_MAX, 0));
    two.engine.clear_foreign_runs();
    two.decapsulate(START, Burst(vec![(alternating, meta(len)); trains + 1]));
    assert_eq!((two.engine.foreign_runs().len(), two.dropped()), (FOREIGN_RUNS_MAX, 64));
}
