//! What one worker has done, counted without locks.
//!
//! ```text
//!   worker thread                                control thread
//!   Counters ──── add, drop ────▶ [ u64 … ] ◀──── snapshot ──── CountersReader
//!                 load + store     Arc, own       relaxed
//!                                  cache lines
//! ```
//!
//! Each number has one writer, so adding is a plain load and a plain store: no bus lock, no contended line. [`Counters`] is not `Sync`
//! and not `Clone`, which is what keeps it to one writer. A reader may see one number newer than another, never a torn one.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_abi::drop::DropReason;

use crate::api::message::NamedCount;

macro_rules! metrics {
    ($($variant:ident $name:literal $sentence:literal;)*) => {
        /// What is counted besides drops.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Metric {
            $(#[doc = $sentence] $variant,)*
        }

        impl Metric {
            /// All metrics, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in metrics and tables: lower case, words joined by `_`, the unit last.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

metrics! {
    LanToWanPackets "lan_to_wan_packets" "Inner packets from the local side that were sealed for a peer.";
    LanToWanBytes "lan_to_wan_bytes" "Bytes of those packets, inner headers included.";
    WanToLanPackets "wan_to_lan_packets" "Inner packets from peers that were given to the local side.";
    WanToLanBytes "wan_to_lan_bytes" "Bytes of those packets, inner headers included.";
    TransitPackets "transit_packets" "Inner packets that went from one peer to another.";
    TransitBytes "transit_bytes" "Bytes of those packets, inner headers included.";
    DatagramsSealed "sealed_datagrams" "Datagrams that were sealed and queued for sending.";
    SealedBytes "sealed_bytes" "Bytes of those datagrams, header and tag included, UDP and IP not.";
    DatagramsOpened "opened_datagrams" "Datagrams whose tag fitted and whose counter was new.";
    TrainsSent "sent_trains" "Trains handed to the underlay port; a datagram that goes alone counts as one.";
    WanBursts "wan_bursts" "Bursts received from the underlay that held at least one frame.";
    LanBursts "lan_bursts" "Bursts received from the local side that held at least one frame.";
    HandoffsSent "sent_handoffs" "Runs of datagrams handed to the worker that owns their lane.";
    HandoffsReceived "received_handoffs" "Runs of datagrams taken over from other workers.";
    IcmpErrorsSent "sent_icmp_errors" "ICMP errors of our own: time exceeded, unreachable, packet too big.";
    ProbesSent "sent_probes" "Datagrams of nothing but padding that ask how long the path's datagrams may be.";
    LaneProbesSent "sent_lane_probes" "Datagrams that ask whether a lane port of a peer can be reached from one of ours, and back.";
}

const METRICS: usize = Metric::ALL.len();

/// The numbers themselves. 128 bytes keep neighbours off the line and off the one that the prefetcher takes with it.
#[derive(Debug)]
#[repr(align(128))]
struct Cells {
    metrics: [AtomicU64; METRICS],
    drops: [AtomicU64; DropReason::TABLE_LEN],
}

/// The writing end; one worker's.
#[derive(Debug)]
pub struct Counters {
    cells: Arc<Cells>,
    /// Two threads may not write at once; the marker takes `Sync` away.
    one_writer: PhantomData<Cell<()>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Counters {
    /// All zero.
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let cells = Cells { metrics: std::array::from_fn(|_| zero()), drops: std::array::from_fn(|_| zero()) };
        Self { cells: Arc::new(cells), one_writer: PhantomData }
    }

    /// A reading end, for the control thread.
    pub fn reader(&self) -> CountersReader {
        CountersReader { cells: Arc::clone(&self.cells) }
    }

    /// Adds `n` to a metric.
    #[inline]
    pub fn add(&self, metric: Metric, n: u64) {
        bump(&self.cells.metrics[metric as usize], n);
    }

    /// Counts one dropped packet.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drop_n(reason, 1);
    }

    /// Counts `n` dropped packets.
    #[inline]
    pub fn drop_n(&self, reason: DropReason, n: u64) {
        bump(&self.cells.drops[reason as usize], n);
    }
}

#[inline(always)]
fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// A reading end of one worker's counters.
#[derive(Clone, Debug)]
pub struct CountersReader {
    cells: Arc<Cells>,
}

impl CountersReader {
    /// The numbers as they stand.
    pub fn snapshot(&self) -> Snapshot {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Snapshot {
            metrics: std::array::from_fn(|i| read(&self.cells.metrics[i])),
            drops: std::array::from_fn(|i| read(&self.cells.drops[i])),
        }
    }
}

/// Counters at one moment, of one worker or summed over several with `+=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    metrics: [u64; METRICS],
    drops: [u64; DropReason::TABLE_LEN],
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { metrics: [0; METRICS], drops: [0; DropReason::TABLE_LEN] }
    }
}

impl Snapshot {
    /// The sum over workers.
    pub fn sum<'a>(readers: impl IntoIterator<Item = &'a CountersReader>) -> Self {
        let mut total = Self::default();
        for reader in readers {
            total += reader.snapshot();
        }
        total
    }

    /// One metric.
    pub const fn metric(&self, metric: Metric) -> u64 {
        self.metrics[metric as usize]
    }

    /// Packets dropped for one reason.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// All metrics, zero or not: [`Counters::engine`](crate::api::message::Counters::engine).
    pub fn engine(&self) -> Vec<NamedCount> {
        Metric::ALL.iter().map(|&metric| named(metric.name(), self.metric(metric))).collect()
    }

    /// The reasons that happened: [`Counters::engine_drops`](crate::api::message::Counters::engine_drops).
    pub fn engine_drops(&self) -> Vec<NamedCount> {
        let happened = DropReason::ALL.iter().filter(|&&reason| self.dropped(reason) != 0);
        happened.map(|&reason| named(reason.name(), self.dropped(reason))).collect()
    }
}

impl AddAssign for Snapshot {
    fn add_assign(&mut self, other: Self) {
        let ours = self.metrics.iter_mut().chain(&mut self.drops);
        for (ours, theirs) in ours.zip(other.metrics.into_iter().chain(other.drops)) {
            *ours = ours.wrapping_add(theirs);
        }
    }
}

fn named(name: &str, count: u64) -> NamedCount {
    NamedCount { name: name.to_owned(), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_metrics() {
        for (i, metric) in Metric::ALL.iter().enumerate() {
            assert_eq!(*metric as usize, i);
            assert!(metric.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", metric.name());
            assert!(metric.sentence().ends_with('.'));
            assert!(Metric::ALL[..i].iter().all(|other| other.name() != metric.name()), "{}", metric.name());
        }
    }

    #[test]
    fn each_metric_and_each_reason_has_a_number_of_its_own() {
        let counters = Counters::new();
        for (i, &metric) in Metric::ALL.iter().enumerate() {
            counters.add(metric, i as u64);
            counters.add(metric, 1000);
        }
        for &reason in DropReason::ALL {
            counters.drop(reason);
            counters.drop_n(reason, reason as u64);
        }
        let snapshot = counters.reader().snapshot();
        for (i, &metric) in Metric::ALL.iter().enumerate() {
            assert_eq!(snapshot.metric(metric), 1000 + i as u64);
        }
        for &reason in DropReason::ALL {
            assert_eq!(snapshot.dropped(reason), 1 + reason as u64);
        }
    }

    #[test]
    fn workers_are_summed_and_only_drops_that_happened_are_named() {
        let workers = [Counters::new(), Counters::new()];
        workers[0].add(Metric::DatagramsSealed, 3);
        workers[1].add(Metric::DatagramsSealed, 4);
        workers[1].drop(DropReason::Replayed);
        let readers = workers.each_ref().map(Counters::reader);
        let total = Snapshot::sum(&readers);
        assert_eq!(total.engine().len(), Metric::ALL.len());
        assert!(total.engine().contains(&named("sealed_datagrams", 7)));
        assert_eq!(total.engine_drops(), [named("replayed", 1)]);
        assert_eq!(Snapshot::default().engine_drops(), []);
    }

    #[test]
    fn a_reader_on_another_thread_sees_every_count_once_the_worker_is_done() {
        let counters = Counters::new();
        let reader = counters.reader();
        let worker = std::thread::spawn(move || {
            for _ in 0..100_000 {
                counters.add(Metric::LanToWanBytes, 2);
            }
        });
        let mut before = 0;
        while !worker.is_finished() {
            let now = reader.snapshot().metric(Metric::LanToWanBytes);
            assert!(now >= before && now.is_multiple_of(2));
            before = now;
        }
        worker.join().unwrap();
        assert_eq!(reader.snapshot().metric(Metric::LanToWanBytes), 200_000);
    }

    #[test]
    fn workers_do_not_share_cache_lines() {
        assert_eq!(align_of::<Cells>(), 128);
        assert_eq!(size_of::<Cells>() % 128, 0);
    }
}
