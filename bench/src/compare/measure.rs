//! One round of one subject: every metric that was asked for, on a rig of its own.
//!
//! ```text
//!   rig ─▶ machine's own work ─▶ start ─▶ idle ─▶ TCP ─▶ flat out ─▶ NDR, PDR ─▶ RTT loaded ─▶ wire ─▶ all torn down
//! ```
//!
//! A measurement that fails is a line in the report, not the end of the others; a subject that dies is the end of its round.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Plan;
use super::metric::{Measure, Metric, Quantile};
use super::search::{PDR_LOSS, Search, Trial};
use super::subject::{Ready, Running};
use super::system::{self, Workers};
use crate::external::{ping, tcp_transfers};
use crate::generator::{Amount, flood, pace};
use crate::histogram::Histogram;
use crate::rig::{Family, Namespace, Rig};
use crate::sink::{Report, Sink, SinkConfig};
use crate::stream::{Sizes, Stream};
use crate::sys::clock::monotonic_ns;
use crate::sys::udp;
use crate::{Error, Result};

/// Most that the paced generator sends: AF_XDP in copy mode on one core.
pub(crate) const PACED_MAX_PPS: f64 = 1_000_000.0;
/// Rate for the runs beside a load when no rate is known: a tenth of what slow gateways carry.
const FALLBACK_PPS: f64 = 10_000.0;
/// Between echo requests to an idle subject: long enough for everybody to fall asleep.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);
/// Between echo requests beside a load: enough samples for a 99.9th percentile in a few seconds.
const LOADED_INTERVAL: Duration = Duration::from_millis(1);
/// Echo requests, of a second each, after which a subject that answers none is taken for dead.
const ALIVE_TRIES: u32 = 5;
/// How long a reply is waited for.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);
/// Silence after which a run has arrived, and how long that is waited for.
const QUIET: (Duration, Duration) = (Duration::from_millis(40), Duration::from_secs(2));

/// What a round gave.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) values: BTreeMap<Metric, f64>,
    pub(super) facts: Vec<(String, String)>,
    /// What did not work.
    pub(super) problems: Vec<String>,
}

/// Builds a rig, starts the subject on it, measures, and tears both down.
pub(super) fn round(ready: &Ready, plan: &Plan) -> Result<Round> {
    let rig = Rig::new(ready.rig())?;
    let mut bench = Bench { rig: &rig, ready, plan, round: Round::default(), idle_busy: 0.0, is_dead: false };
    bench.idle_busy = busy_share(plan.idle)?;
    let mut running = ready.start(&rig)?;
    bench.round.facts = running.facts();
    let workers = running.workers();
    let order: [(Measure, Step<'_>); 6] = [
        (Measure::Idle, &|bench| bench.idle(&workers)),
        (Measure::Rtt, &|bench| bench.rtt_idle()),
        (Measure::Tcp, &|bench| bench.tcp()),
        (Measure::Udp, &|bench| bench.saturated()),
        (Measure::Ndr, &|bench| bench.searches()),
        (Measure::Rtt, &|bench| bench.rtt_loaded()),
    ];
    for (measure, step) in order {
        bench.try_step(measure, &mut running, step);
    }
    bench.try_step(Measure::Wire, &mut running, &|bench| bench.wire());
    Ok(bench.round)
}

type Step<'s> = &'s dyn Fn(&mut Bench<'_>) -> Result<()>;

struct Bench<'a> {
    rig: &'a Rig,
    ready: &'a Ready,
    plan: &'a Plan,
    round: Round,
    /// Cores that are busy without the subject.
    idle_busy: f64,
    /// It has stopped to carry anything.
    is_dead: bool,
}

impl Bench<'_> {
    fn try_step(&mut self, measure: Measure, running: &mut Running<'_>, step: Step<'_>) {
        if self.is_dead || !self.plan.measures.contains(&measure) {
            return;
        }
        let before = self.round.values.clone();
        let failed = step(self).err().map(|error| error.to_string());
        self.is_dead = !self.carries();
        let problem = match self.is_dead {
            // It may have died anywhere in the step: an idle core or a rate of zero would be a figure of nothing.
            true => {
                self.round.values = before;
                Some("nothing is carried any more, so figures of this round end here".to_owned())
            }
            false => failed,
        };
        if let Some(problem) = problem {
            let said = running.said();
            let said = said.lines().last().unwrap_or_default();
            self.round.problems.push(format!("{}: {problem} {said}", measure.name()).trim_end().to_owned());
        }
    }

    /// Whether the subject still carries an echo. After a flood its queues may be full for a while.
    fn carries(&self) -> bool {
        let (from, to) = (self.rig.h1(), self.rig.h2().lan.address(Family::V4));
        (0..ALIVE_TRIES).any(|_| ping(from, to, 1).is_ok_and(|answered| answered.received > 0))
    }

    fn set(&mut self, metric: Metric, value: f64) {
        self.round.values.insert(metric, value);
    }

    fn idle(&mut self, workers: &Workers) -> Result<()> {
        let before = workers.run_seconds();
        let start_ns = monotonic_ns();
        std::thread::sleep(self.plan.idle);
        let elapsed = (monotonic_ns() - start_ns) as f64 / 1e9;
        let ran = workers.run_seconds().into_iter().zip(before).map(|(after, before)| after - before);
        if let Some(most) = ran.max_by(f64::total_cmp) {
            self.set(Metric::IdleCpu, most / elapsed * 100.0);
        }
        if let Some(megabytes) = workers.memory_mb() {
            self.set(Metric::Memory, megabytes);
        }
        Ok(())
    }

    fn tcp(&mut self) -> Result<()> {
        let (h1, h2) = (self.rig.h1(), self.rig.h2());
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.ready.subject.carries(*family)) {
            for &streams in &self.plan.streams {
                let (busy, start_ns) = (system::busy_seconds()?, monotonic_ns());
                let transfer = tcp_transfers(h1, h2, h2.lan.address(family), self.plan.duration, streams)?;
                let elapsed = (monotonic_ns() - start_ns) as f64 / 1e9;
                let worked = system::busy_seconds()? - busy - self.idle_busy * elapsed;
                self.set(Metric::Tcp { family, streams }, transfer.gbps);
                // A machine that was busier before than during the run says nothing about it.
                if family == Family::V4 && streams == 1 && transfer.bytes > 0 && worked > 0.0 {
                    self.set(Metric::CpuPerGb, worked / (transfer.bytes as f64 / 1e9));
                }
            }
        }
        Ok(())
    }

    fn stream(&self, sizes: Sizes, flows: u32) -> Stream {
        Stream { sizes, flows, ..Stream::new(self.rig.forward(Family::V4)) }
    }

    fn sink(&self) -> Result<Sink> {
        let h2 = self.rig.h2();
        Sink::attach(h2, h2.lan.name, SinkConfig::default())
    }

    fn saturated(&mut self) -> Result<()> {
        let mut sink = self.sink()?;
        for &sizes in &self.plan.sizes {
            for &flows in &self.plan.flows {
                let stream = self.stream(sizes, flows);
                let sent = flood(self.rig.h1(), self.rig.h1().lan.name, &stream, Amount::Duration(self.plan.duration))?;
                let report = Report::new(&sent, &sink.settle(QUIET.0, QUIET.1)?);
                self.set(Metric::Saturated { sizes, flows }, report.received_mpps);
                sink.reset()?;
            }
        }
        Ok(())
    }

    fn searches(&mut self) -> Result<()> {
        let sink = self.sink()?;
        for &sizes in &self.plan.sizes {
            for &flows in &self.plan.flows {
                let stream = self.stream(sizes, flows);
                let flat_out = self.round.values.get(&Metric::Saturated { sizes, flows });
                let start = flat_out.map_or(PACED_MAX_PPS, |mpps| (mpps * 1e6).clamp(FALLBACK_PPS, PACED_MAX_PPS));
                let search = self.search(&sink, &stream, start)?;
                self.set(Metric::Ndr { sizes, flows }, search.found(0.0).unwrap_or(0.0) / 1e6);
                self.set(Metric::Pdr { sizes, flows }, search.found(PDR_LOSS).unwrap_or(0.0) / 1e6);
            }
        }
        Ok(())
    }

    fn search(&self, sink: &Sink, stream: &Stream, start: f64) -> Result<Search> {
        let mut search = Search::new(start, PACED_MAX_PPS, self.plan.tolerance);
        for allowed in [0.0, PDR_LOSS] {
            while let Some(rate) = search.next(allowed).filter(|_| search.len() < self.plan.trials) {
                let h1 = self.rig.h1();
                search.record(rate, trial(h1, h1.lan.name, stream, sink, rate, self.plan.trial)?);
            }
        }
        Ok(search)
    }

    /// Half of the rate without loss, or of what arrived flat out, whichever is known.
    fn half_rate(&self, sizes: Sizes) -> f64 {
        let known = [Metric::Ndr { sizes, flows: 1 }, Metric::Saturated { sizes, flows: 1 }];
        let found = known.iter().find_map(|metric| self.round.values.get(metric).filter(|mpps| **mpps > 0.0));
        found.map_or(FALLBACK_PPS, |mpps| (mpps * 1e6 / 2.0).min(PACED_MAX_PPS / 2.0))
    }

    fn rtt_idle(&mut self) -> Result<()> {
        let to = self.rig.h2().lan.v4.into();
        let seen = echoes(self.rig.h1(), to, IDLE_INTERVAL, self.plan.duration)?;
        for quantile in Quantile::ALL {
            if let Some(ns) = seen.quantile(quantile.share()) {
                self.set(Metric::RttIdle(quantile), ns as f64 / 1e3);
            }
        }
        Ok(())
    }

    fn rtt_loaded(&mut self) -> Result<()> {
        let (sizes, h1) = (Sizes::Fixed(64), self.rig.h1());
        let (stream, rate) = (self.stream(sizes, 1), self.half_rate(sizes));
        let to = self.rig.h2().lan.v4.into();
        // Counted datagrams are dropped by the sink; echoes pass it.
        let _sink = self.sink()?;
        let duration = self.plan.duration;
        let load = duration + Duration::from_millis(200);
        let seen = std::thread::scope(|scope| {
            let sender = scope.spawn(|| pace(h1, h1.lan.name, &stream, rate, Amount::Duration(load)));
            let seen = echoes(h1, to, LOADED_INTERVAL, duration);
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            seen
        })?;
        for quantile in Quantile::ALL {
            if let Some(ns) = seen.quantile(quantile.share()) {
                self.set(Metric::RttLoaded(quantile), ns as f64 / 1e3);
            }
        }
        Ok(())
    }

    /// Counts what leaves the first gateway's WAN. Trains are counted as the gateway sends them; for bytes the kernel cuts them first, since
    /// it counts the headers of a train once.
    fn wire(&mut self) -> Result<()> {
        let mut sink = self.sink()?;
        let (h1, g1) = (self.rig.h1(), self.rig.g1());
        for sizes in [Sizes::Fixed(64), Sizes::TunnelImix].into_iter().filter(|sizes| self.plan.sizes.contains(sizes)) {
            let (stream, rate) = (self.stream(sizes, 1), self.half_rate(sizes));
            for whole in [true, false] {
                for feature in ["tx-udp-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation"] {
                    g1.feature("wan", feature, whole)?;
                }
                sink.reset()?;
                let before = system::transmitted(g1, "wan")?;
                pace(h1, h1.lan.name, &stream, rate, Amount::Duration(self.plan.trial))?;
                let tally = sink.settle(QUIET.0, QUIET.1)?;
                let after = system::transmitted(g1, "wan")?;
                let (bytes, packets) = (after.bytes - before.bytes, after.packets - before.packets);
                if tally.datagrams == 0 {
                    let what = format!("carrying {sizes} at {rate:.0} frames a second");
                    return Err(Error::Broken { what, detail: "nothing arrived".into() });
                }
                if whole {
                    self.set(Metric::Sends(sizes), packets as f64 * 64.0 / tally.datagrams as f64);
                } else {
                    let inner = tally.bytes.saturating_sub(tally.datagrams * ETHERNET_LEN).max(1);
                    let outer = bytes.saturating_sub(packets * ETHERNET_LEN);
                    self.set(Metric::WireBytes(sizes), outer as f64 / inner as f64);
                }
            }
            for feature in ["tx-udp-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation"] {
                g1.feature("wan", feature, true)?;
            }
        }
        Ok(())
    }
}

/// One trial of a search: sends at a rate, and looks at what arrives.
///
/// # Errors
/// As [`pace`] and [`Sink::datagrams`].
pub(crate) fn trial(
    from: &Namespace,
    interface: &str,
    stream: &Stream,
    sink: &Sink,
    rate_pps: f64,
    duration: Duration,
) -> Result<Trial> {
    let before = sink.datagrams()?;
    let sent = pace(from, interface, stream, rate_pps, Amount::Duration(duration))?;
    let arrived = sink.quiesce(QUIET.0, QUIET.1)?.saturating_sub(before);
    let loss = sent.frames.saturating_sub(arrived) as f64 / sent.frames.max(1) as f64;
    // A sender that is late offers less than it was asked to; never more.
    Ok(Trial { rate_pps: sent.pps().min(rate_pps), loss })
}

/// Bytes of an Ethernet header, which interfaces count and IP does not.
const ETHERNET_LEN: u64 = 14;

/// Cores that are busy, on average over a while.
fn busy_share(window: Duration) -> Result<f64> {
    let (before, start_ns) = (system::busy_seconds()?, monotonic_ns());
    std::thread::sleep(window);
    let elapsed = (monotonic_ns() - start_ns) as f64 / 1e9;
    Ok((system::busy_seconds()? - before) / elapsed)
}

/// Sends echo requests one after the other and files their round trips, in ns. A lost one has none.
///
/// # Errors
/// [`Error::Io`], or [`Error::Broken`] when no reply comes at all.
fn echoes(from: &Namespace, to: IpAddr, interval: Duration, duration: Duration) -> Result<Histogram> {
    const REQUEST_V4: u8 = 8;
    const REQUEST_V6: u8 = 128;
    const SEQUENCE: std::ops::Range<usize> = 6..8;
    from.sysctl("ipv4/ping_group_range", "0 2147483647")?;
    let failed = || Error::io("cannot send echo requests");
    let seen = from
        .enter(|| {
            let socket = udp::echo_socket(to)?;
            socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
            let mut request = [0; 64];
            request[0] = if to.is_ipv6() { REQUEST_V6 } else { REQUEST_V4 };
            let mut reply = [0; 128];
            let mut seen = Histogram::default();
            let end_ns = monotonic_ns() + duration.as_nanos() as u64;
            let mut sequence = 0u16;
            while monotonic_ns() < end_ns {
                sequence = sequence.wrapping_add(1);
                request[SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
                let sent_ns = monotonic_ns();
                socket.send_to(&request, (to, 0))?;
                // A reply to an earlier request, which was given up, is not the one.
                while let Ok(len) = socket.recv(&mut reply) {
                    if reply[..len].get(SEQUENCE) == Some(&sequence.to_be_bytes()[..]) {
                        seen.record(monotonic_ns() - sent_ns);
                        break;
                    }
                }
                std::thread::sleep(interval);
            }
            Ok(seen)
        })?
        .map_err(failed())?;
    match seen.total() {
        0 => Err(Error::Broken { what: "the echo".into(), detail: "no reply at all".into() }),
        _ => Ok(seen),
    }
}
