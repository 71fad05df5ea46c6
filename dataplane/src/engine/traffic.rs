//! What one session has carried, counted by each worker for itself and summed when somebody asks.
//!
//! ```text
//!   worker 0 ─ add ─▶ │ cell 0: packets, bytes, last, both ways; generation │  one cache line
//!   worker 1 ─ add ─▶ │ cell 1: …                                           │  another one      ◀── total ── control thread
//! ```
//!
//! Each cell has one writer, as in [`counters`](super::counters): a plain load and a plain store a number. A datagram that is opened and
//! a batch that is sealed touch one line each, which no other worker writes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::time::Time;

/// One worker's numbers of one session.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    /// Nanoseconds; zero for never, which is no time that a worker sees.
    tx_at: AtomicU64,
    rx_at: AtomicU64,
    generation: AtomicU64,
}

const _: () = assert!(size_of::<Cell>() == 64);

/// The numbers of one session, shared by its workers and the control thread. The default one counts nothing.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Option<Arc<[Cell]>>);

/// What all workers have counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Inner packets that were sealed for the peer.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Inner packets of the peer that were let in.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// When the last one was sealed; [`Time::ZERO`] for never.
    pub tx_at: Time,
    /// When the last one came; [`Time::ZERO`] for never.
    pub rx_at: Time,
    /// The newest generation that any worker seals under.
    pub generation: u8,
}

fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Traffic {
    /// Nothing yet, for so many workers.
    pub fn new(workers: u8) -> Self {
        Self(Some((0..workers).map(|_| Cell::default()).collect()))
    }

    #[inline]
    fn of(&self, worker: u8) -> Option<&Cell> {
        self.0.as_ref()?.get(usize::from(worker))
    }

    /// Packets went out. Only the worker with this number says so.
    #[inline]
    pub(crate) fn sent(&self, worker: u8, packets: usize, bytes: u64, generation: u8, now: Time) {
        if let Some(cell) = self.of(worker) {
            add(&cell.tx_packets, packets as u64);
            add(&cell.tx_bytes, bytes);
            cell.tx_at.store(now.as_nanos(), Ordering::Relaxed);
            cell.generation.store(generation.into(), Ordering::Relaxed);
        }
    }

    /// Packets came in. Only the worker with this number says so.
    #[inline]
    pub(crate) fn received(&self, worker: u8, packets: u64, bytes: u64, now: Time) {
        if let Some(cell) = self.of(worker) {
            add(&cell.rx_packets, packets);
            add(&cell.rx_bytes, bytes);
            cell.rx_at.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// The worker seals under other keys now.
    pub(super) fn begin_keys(&self, worker: u8) {
        if let Some(cell) = self.of(worker) {
            cell.generation.store(0, Ordering::Relaxed);
        }
    }

    /// The sum as it stands.
    pub fn total(&self) -> Total {
        let mut total = Total::default();
        for cell in self.0.iter().flat_map(|cells| cells.iter()) {
            let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
            total.tx_packets += read(&cell.tx_packets);
            total.tx_bytes += read(&cell.tx_bytes);
            total.rx_packets += read(&cell.rx_packets);
            total.rx_bytes += read(&cell.rx_bytes);
            total.tx_at = total.tx_at.max(Time::from_nanos(read(&cell.tx_at)));
            total.rx_at = total.rx_at.max(Time::from_nanos(read(&cell.rx_at)));
            total.generation = total.generation.max(read(&cell.generation) as u8);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_the_latest_is_the_last() {
        let traffic = Traffic::new(2);
        let at = Time::from_nanos;
        traffic.sent(0, 3, 300, 7, at(50));
        traffic.sent(1, 1, 40, 2, at(40));
        traffic.received(1, 5, 5000, at(90));
        traffic.received(0, 1, 1, at(80));
        // A worker that there is not counts nothing.
        traffic.sent(2, 1, 1, 200, at(99));
        let total = Total {
            tx_packets: 4,
            tx_bytes: 340,
            rx_packets: 6,
            rx_bytes: 5001,
            tx_at: at(50),
            rx_at: at(90),
            generation: 7,
        };
        assert_eq!(traffic.clone().total(), total);
        traffic.begin_keys(0);
        assert_eq!(traffic.total(), Total { generation: 2, ..total });
        assert_eq!(Traffic::default().total(), Total::default());
    }
}
