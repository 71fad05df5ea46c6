//! Counts what arrives: a program at tc ingress, so that merged packets stay merged up to the last hop and are counted by their segments.
//!
//! Only stamped datagrams are counted; everything else goes on to the stack untouched, so ping works beside it. Of a merged packet the
//! first stamp is read and the others are taken to follow it, unless [`SinkConfig::every_segment`] says otherwise.

use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::util::nr_cpus;
use serde::Serialize;

use crate::generator::Sent;
use crate::histogram::Histogram;
use crate::layout::{self, BUCKETS, FLOWS_MAX, FlowState, SinkCount, name};
use crate::object;
use crate::rig::Namespace;
use crate::stream::FCS_LEN;
use crate::{Error, Result};

/// How a sink treats datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkConfig {
    /// Let counted datagrams go on to the stack; by default they are dropped.
    pub pass: bool,
    /// Read the stamp of every datagram inside a merged packet: exact order and latency, for some 80 ns each.
    pub every_segment: bool,
}

/// A sink, attached until dropped.
pub struct Sink {
    count: PerCpuArray<MapData, SinkCount>,
    latency: PerCpuArray<MapData, u64>,
    flows: Array<MapData, FlowState>,
    _bpf: Ebpf,
}

/// What a sink has counted since it was attached or reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams.
    pub datagrams: u64,
    /// Packets of the stack that they came in: fewer, when they were merged.
    pub skbs: u64,
    /// Bytes of the frames before they were merged, without FCS.
    pub bytes: u64,
    /// Datagrams that came after a later one of their flow (RFC 4737 §3).
    pub reordered: u64,
    /// Datagrams missing below the highest sequence of their flow. What was lost after it, only the sender knows.
    pub gaps: u64,
    /// Flows seen.
    pub flows: u32,
    /// Packets without a stamp.
    pub others: u64,
    /// From the first datagram to the last, ns.
    pub elapsed_ns: u64,
    /// When the last one came, by [`monotonic_ns`](crate::sys::clock::monotonic_ns); zero when none did.
    pub last_ns: u64,
    /// Latencies in ns, one for each stamp read.
    pub latency: Histogram,
}

impl Sink {
    /// Attaches a sink to an interface, after other tc programs.
    ///
    /// # Errors
    /// [`Error::NoInterface`], or [`Error::Bpf`] when the kernel refuses the program.
    pub fn attach(namespace: &Namespace, interface: &str, config: SinkConfig) -> Result<Self> {
        // Asked first, for its clearer error.
        namespace.interface_index(interface)?;
        let mut bpf = object::load()?;
        let mut map = object::array::<layout::SinkConfig>(&mut bpf, name::SINK_CONFIG)?;
        let config =
            layout::SinkConfig { pass: u32::from(config.pass), every_segment: u32::from(config.every_segment) };
        map.set(0, config, 0).map_err(Error::bpf("cannot configure the sink"))?;
        let count = object::per_cpu_array(&mut bpf, name::SINK_COUNT)?;
        let latency = object::per_cpu_array(&mut bpf, name::LATENCY)?;
        let flows = object::array(&mut bpf, name::FLOWS)?;
        let program: &mut SchedClassifier = object::program(&mut bpf, name::SINK)?;
        program.load().map_err(Error::bpf("the kernel refused the sink"))?;
        namespace
            .enter(|| program.attach(interface, TcAttachType::Ingress))?
            .map_err(Error::bpf(format!("cannot attach the sink to {interface}")))?;
        Ok(Self { count, latency, flows, _bpf: bpf })
    }

    /// Forgets everything counted so far. Datagrams still on their way will count as of the next run.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a map cannot be written.
    pub fn reset(&mut self) -> Result<()> {
        let failed = || Error::bpf("cannot reset the sink");
        let cpus = nr_cpus().map_err(|(what, source)| Error::Io { what: what.to_owned(), source })?;
        let zeros =
            |_| PerCpuValues::try_from(vec![SinkCount::default(); cpus]).map_err(Error::io("cannot reset the sink"));
        self.count.set(0, zeros(())?, 0).map_err(failed())?;
        for bucket in 0..BUCKETS {
            let zeros = PerCpuValues::try_from(vec![0; cpus]).map_err(Error::io("cannot reset the sink"))?;
            self.latency.set(bucket, zeros, 0).map_err(failed())?;
        }
        for flow in 0..FLOWS_MAX {
            self.flows.set(flow, FlowState::default(), 0).map_err(failed())?;
        }
        Ok(())
    }

    /// Reads the counts.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a map cannot be read.
    pub fn read(&self) -> Result<Tally> {
        let failed = || Error::bpf("cannot read the sink");
        let mut tally = Tally::default();
        let (mut first_ns, mut last_ns) = (u64::MAX, 0);
        for count in self.count.get(&0, 0).map_err(failed())?.iter() {
            tally.datagrams += count.datagrams;
            tally.skbs += count.skbs;
            tally.bytes += count.bytes;
            tally.reordered += count.reordered;
            tally.others += count.others;
            if count.first_ns != 0 {
                first_ns = first_ns.min(count.first_ns);
                last_ns = last_ns.max(count.last_ns);
            }
        }
        tally.elapsed_ns = last_ns.saturating_sub(first_ns);
        tally.last_ns = last_ns;
        for bucket in 0..BUCKETS {
            let counts = self.latency.get(&bucket, 0).map_err(failed())?;
            tally.latency.add(bucket, counts.iter().sum());
        }
        for flow in 0..FLOWS_MAX {
            let flow = self.flows.get(&flow, 0).map_err(failed())?;
            tally.flows += u32::from(flow.received > 0);
            tally.gaps += flow.next.saturating_sub(flow.received);
        }
        Ok(tally)
    }

    /// Waits until nothing has arrived for `quiet`, but at most `limit`, and reads the counts.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn settle(&self, quiet: Duration, limit: Duration) -> Result<Tally> {
        self.quiesce(quiet, limit)?;
        self.read()
    }

    /// Waits as [`Self::settle`] does, and returns only [`Self::datagrams`]: reading everything takes a system call for each flow.
    ///
    /// # Errors
    /// As [`Self::datagrams`].
    pub fn quiesce(&self, quiet: Duration, limit: Duration) -> Result<u64> {
        let start = Instant::now();
        let (mut last, mut since) = (self.datagrams()?, start);
        while since.elapsed() < quiet && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.datagrams()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }

    /// Datagrams so far: the one count that is cheap to read.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the map cannot be read.
    pub fn datagrams(&self) -> Result<u64> {
        let counts = self.count.get(&0, 0).map_err(Error::bpf("cannot read the sink"))?;
        Ok(counts.iter().map(|c| c.datagrams).sum())
    }
}

/// A run as both ends saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Frames sent.
    pub sent: u64,
    /// Rate offered, in millions of frames a second.
    pub sent_mpps: f64,
    /// Datagrams received.
    pub received: u64,
    /// Rate received, in millions of datagrams a second.
    pub received_mpps: f64,
    /// The same in Gbit/s of frames, FCS included.
    pub received_gbps: f64,
    /// Datagrams per packet at the last hop: above one when they came merged.
    pub merge: f64,
    /// Sent and not received.
    pub lost: u64,
    /// Share of the sent, 0 to 1.
    pub loss: f64,
    /// Datagrams that came after a later one of their flow.
    pub reordered: u64,
    /// Median latency, µs.
    pub p50_us: Option<f64>,
    /// 99th percentile, µs.
    pub p99_us: Option<f64>,
    /// 99.9th percentile, µs.
    pub p999_us: Option<f64>,
    /// How late the sender was at worst, µs: latencies below this may be its own.
    pub sender_late_max_us: f64,
}

impl Report {
    /// Sets what was sent against what arrived.
    pub fn new(sent: &Sent, tally: &Tally) -> Self {
        let seconds = tally.elapsed_ns as f64 / 1e9;
        let per_second = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let micros = |share| tally.latency.quantile(share).map(|ns| ns as f64 / 1e3);
        let lost = sent.frames.saturating_sub(tally.datagrams);
        let bytes = tally.bytes + tally.datagrams * u64::from(FCS_LEN);
        Self {
            sent: sent.frames,
            sent_mpps: sent.pps() / 1e6,
            received: tally.datagrams,
            received_mpps: per_second(tally.datagrams as f64) / 1e6,
            received_gbps: per_second(bytes as f64 * 8.0) / 1e9,
            merge: if tally.skbs == 0 { 0.0 } else { tally.datagrams as f64 / tally.skbs as f64 },
            lost,
            loss: if sent.frames == 0 { 0.0 } else { lost as f64 / sent.frames as f64 },
            reordered: tally.reordered,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
            sender_late_max_us: sent.late_max_ns as f64 / 1e3,
        }
    }

    /// Headings for [`Self::row`].
    pub const HEADINGS: [&'static str; 11] = [
        "sent",
        "Mpps out",
        "received",
        "Mpps in",
        "Gbit/s",
        "merge",
        "loss %",
        "reordered",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
    ];

    /// The cells of a table.
    pub fn row(&self) -> [String; 11] {
        let micros = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
        [
            self.sent.to_string(),
            format!("{:.3}", self.sent_mpps),
            self.received.to_string(),
            format!("{:.3}", self.received_mpps),
            format!("{:.3}", self.received_gbps),
            format!("{:.1}", self.merge),
            format!("{:.3}", self.loss * 100.0),
            self.reordered.to_string(),
            micros(self.p50_us),
            micros(self.p99_us),
            micros(self.p999_us),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_sets_both_ends_against_each_other() {
        let sent = Sent { frames: 1000, bytes: 60_000, elapsed_ns: 1_000_000, late_max_ns: 2000 };
        let mut tally =
            Tally { datagrams: 900, skbs: 450, bytes: 54_000, elapsed_ns: 900_000, reordered: 3, ..Tally::default() };
        (0..900).for_each(|_| tally.latency.record(15));
        let report = Report::new(&sent, &tally);
        let expected = Report {
            sent: 1000,
            sent_mpps: 1.0,
            received: 900,
            received_mpps: 1.0,
            received_gbps: 64.0 * 8.0 / 1000.0,
            merge: 2.0,
            lost: 100,
            loss: 0.1,
            reordered: 3,
            p50_us: Some(0.015),
            p99_us: Some(0.015),
            p999_us: Some(0.015),
            sender_late_max_us: 2.0,
        };
        assert!((report.received_gbps - expected.received_gbps).abs() < 1e-9);
        assert_eq!(
            Report { received_gbps: 0.0, received_mpps: 1.0, ..report },
            Report { received_gbps: 0.0, ..expected }
        );
    }

    #[test]
    fn a_report_of_nothing_has_no_infinities() {
        let report = Report::new(&Sent::default(), &Tally::default());
        assert_eq!((report.loss, report.received_mpps, report.merge, report.p50_us), (0.0, 0.0, 0.0, None));
    }
}
