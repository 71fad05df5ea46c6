//! What can be done to bytes without keys: the floor under every figure of the engine. And the queues that packets pass.

use std::hint::black_box;

use weir_dataplane::engine::icmp::checksum;
use weir_dataplane::engine::port::{BURST_LEN, RxBurst, RxPort, TxMeta, TxPort, TxSink};
use weir_dataplane::engine::replay::ReplayWindow;
use weir_dataplane::io::memory::{MemoryConfig, Trains, pair};

use super::Subject;

const TIMES: u32 = 100_000;

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    for len in [64, 1400, 65_536] {
        let (from, mut to) = (vec![1u8; len], vec![0u8; len]);
        let times = if len > 1400 { TIMES / 50 } else { TIMES };
        subjects.push(Subject::timed(format!("copy {len} B"), times, move |_| {
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
        }));
    }
    let bytes = vec![1u8; 1400];
    subjects.push(Subject::timed("Internet checksum of 1400 B", TIMES, move |_| {
        black_box(checksum(black_box(&bytes)));
    }));
    let (mut window, mut counter) = (ReplayWindow::new(), 0);
    subjects.push(Subject::timed("replay window, counters in order", TIMES, move |_| {
        counter += 1;
        if black_box(&window).check(counter).is_ok() {
            window.accept(counter);
        }
    }));
    let (mut window, mut counter) = (ReplayWindow::new(), 0u64);
    subjects.push(Subject::timed("replay window, counters in reverse within 64", TIMES, move |_| {
        counter += 1;
        let turned = counter ^ 63;
        if black_box(&window).check(turned).is_ok() {
            window.accept(turned);
        }
    }));
    subjects.push(Subject::measured("memory port, a packet of 64 B in a burst of 64", memory_port));
    subjects
}

/// Through the port that tests use: what of a figure over memory ports is the ports'.
fn memory_port() -> f64 {
    const BURSTS: u32 = 200;
    let config = MemoryConfig { wire_len: 1024, slots: 256, frame_len: 2048, trains: Trains::Kept };
    let (mut near, mut far) = pair(config, None, None);
    let start = std::time::Instant::now();
    for _ in 0..BURSTS {
        for _ in 0..BURST_LEN {
            if let Some(slot) = near.tx.slot(64) {
                slot[0] = 1;
                near.tx.commit(64, TxMeta::default());
            }
        }
        let whole = near.tx.flush().is_ok_and(|left| left == 0) && far.rx.receive().is_ok_and(|got| got == BURST_LEN);
        if !whole || far.rx.frame(0).0[0] != 1 {
            return f64::NAN;
        }
    }
    start.elapsed().as_nanos() as f64 / f64::from(BURSTS * BURST_LEN as u32)
}
