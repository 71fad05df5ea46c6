//! The demonstration: two gateways, a session, and traffic of programs that we did not write, told in a few tables.
//!
//! ```text
//!   rig ─▶ two weir-dataplane ─▶ session ─▶ ping ─▶ echo ─▶ TCP ─▶ generator ─▶ counters ─▶ all torn down ─▶ three whole nodes
//! ```
//!
//! What must work and does not ends it with an error: an answerless ping, a transfer of nothing, a generator run of which nothing arrives.
//! Figures are shown, not judged: they are the machine's.

use std::time::Duration;

use serde::Serialize;
use weir_dataplane::api::message::NamedCount;
use weir_dataplane::config::{Attach, WanIo};

use crate::external::{Ping, Transfer, ping, tcp_transfer};
use crate::generator::{Amount, flood, pace};
use crate::network::{self, Network};
use crate::pair::{INNER_MTU, Pair, PairConfig};
use crate::plain::{self, Plain, PlainConfig};
use crate::rig::{Family, Rig, RigConfig};
use crate::sink::{Report, Sink, SinkConfig};
use crate::stream::{Sizes, Stream};
use crate::{Error, Result, table};

/// Echo requests of each ping.
const PINGS: u32 = 50;
/// Rate of the paced run of small frames, frames per second: a tenth of what plain forwarding does on two slow cores.
const SMALL_PPS: f64 = 50_000.0;
/// Rate of the paced run of IMIX, frames per second.
const IMIX_PPS: f64 = 20_000.0;
/// Flows of each generator run.
const FLOWS: u32 = 16;

/// What to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoConfig {
    /// How `wan` is attached.
    pub attach: Attach,
    /// What moves datagrams.
    pub io: WanIo,
    /// Length of each TCP transfer and generator run.
    pub duration: Duration,
    /// Measure plain kernel forwarding too.
    pub yardstick: bool,
    /// Leave everything up.
    pub keep: bool,
}

/// A generator run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// What was sent.
    pub what: String,
    /// What both ends saw.
    pub report: Report,
}

/// One gateway after all runs.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayState {
    /// Its place in the rig.
    pub name: String,
    /// Ports and attach modes in use, by name.
    pub facts: Vec<(String, String)>,
    /// Counters that moved, by name; drops carry their reason.
    pub counters: Vec<(String, u64)>,
    /// Drops that moved, by reason.
    pub drops: Vec<(String, u64)>,
    /// Packets that the kernel dropped because the TUN's queue was full: the flat-out run does that.
    pub tun_queue_drops: u64,
    /// Datagrams, or trains, that the kernel dropped because a UDP socket's buffer was full.
    pub udp_buffer_drops: u64,
}

/// Everything that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    /// Ping over IPv4, h1 to h2.
    pub ping_v4: Ping,
    /// Ping over IPv6, h1 to h2.
    pub ping_v6: Ping,
    /// Round trip between the gateways, measured inside the session, µs.
    pub echo_us: f64,
    /// One TCP stream over IPv4.
    pub tcp_v4: Transfer,
    /// One TCP stream over IPv6.
    pub tcp_v6: Transfer,
    /// Generator runs.
    pub runs: Vec<Run>,
    /// Both gateways.
    pub gateways: Vec<GatewayState>,
    /// Three whole nodes; not when the pair is left up.
    pub network: Option<Network>,
    /// The same rig with the kernel's own forwarding.
    pub yardstick: Option<Plain>,
    /// What to do with what was left up.
    pub left: Option<Left>,
}

/// How to enter what was left up, and how to end it.
#[derive(Clone, Debug, Serialize)]
pub struct Left {
    /// One command for each host.
    pub enter: Vec<String>,
    /// The API sockets of the gateways.
    pub sockets: Vec<String>,
    /// The command that ends it.
    pub stop: String,
}

/// Runs the demonstration. `progress` is told what is being done.
///
/// # Errors
/// [`Error::Broken`] when something that must work does not; other errors of whichever step failed.
pub fn run(config: &DemoConfig, mut progress: impl FnMut(&str)) -> Result<Demo> {
    let yardstick = match config.yardstick {
        true => {
            progress("measuring the kernel's own forwarding on a rig of its own");
            let plain = PlainConfig {
                duration: config.duration,
                sizes: Sizes::Fixed(64),
                flows: FLOWS,
                udp_gro_forwarding: false,
            };
            Some(plain::measure(&plain)?)
        }
        false => None,
    };
    progress("building the rig: h1 – g1 – g2 – h2");
    let rig = Rig::new(RigConfig::default())?;
    progress("starting weir-dataplane on g1 and g2, bringing a session up");
    let pair = PairConfig { attach: config.attach, io: config.io, outlive: config.keep, ..PairConfig::default() };
    let mut pair = Pair::up(&rig, pair)?;
    let shown = show(config, &rig, &mut pair, &mut progress);
    let mut demo = match shown {
        Ok(demo) => Demo { yardstick, ..demo },
        Err(error) => {
            progress(&format!("the gateways say:\n{}", pair.report().trim_end()));
            return Err(error);
        }
    };
    if config.keep {
        demo.left = Some(left(&rig, &pair));
        pair.keep();
        rig.keep();
    } else {
        progress("tearing down");
        for side in [1, 0] {
            let status = pair.side(side).stop()?;
            if !status.success() {
                let detail = format!("{status}: {}", pair.side(side).log().trim());
                return Err(Error::Broken { what: "a clean stop".into(), detail });
            }
        }
        drop(pair);
        drop(rig);
        demo.network = Some(network::run(config.duration, &mut progress)?);
    }
    Ok(demo)
}

fn show(config: &DemoConfig, rig: &Rig, pair: &mut Pair<'_>, progress: &mut impl FnMut(&str)) -> Result<Demo> {
    let (h1, h2) = (rig.h1(), rig.h2());
    let mut answered = |family| {
        progress(&format!("ping {} from h1", h2.lan.address(family)));
        match ping(h1, h2.lan.address(family), PINGS)? {
            silent if silent.received == 0 => Err(broken(format!("ping over {family}"), "no answer")),
            ping => Ok(ping),
        }
    };
    let (ping_v4, ping_v6) = (answered(Family::V4)?, answered(Family::V6)?);
    let echo_us = pair.echo()?.as_secs_f64() * 1e6;
    let mut transferred = |family| {
        progress(&format!("iperf3 to {} from h1", h2.lan.address(family)));
        match tcp_transfer(h1, h2, h2.lan.address(family), config.duration)? {
            nothing if nothing.gbps <= 0.0 => Err(broken(format!("TCP over {family}"), "nothing arrived")),
            transfer => Ok(transfer),
        }
    };
    let (tcp_v4, tcp_v6) = (transferred(Family::V4)?, transferred(Family::V6)?);
    let mut sink = Sink::attach(h2, h2.lan.name, SinkConfig { every_segment: true, pass: false })?;
    let mut runs = Vec::new();
    for (family, sizes, rate) in [
        (Family::V4, Sizes::Fixed(64), Some(SMALL_PPS)),
        (Family::V4, Sizes::Imix, Some(IMIX_PPS)),
        (Family::V6, Sizes::Imix, Some(IMIX_PPS)),
        (Family::V4, Sizes::Fixed(64), None),
    ] {
        let how = rate.map_or("flat out".to_owned(), |rate| format!("{:.0} kpps", rate / 1e3));
        let what =
            format!("{family}, {}, {how}", if sizes == Sizes::Imix { "IMIX".into() } else { format!("{sizes} B") });
        progress(&format!("generator: {what}"));
        let stream = Stream { flows: FLOWS, sizes, ..Stream::new(rig.forward(family)) };
        let amount = Amount::Duration(config.duration);
        let sent = match rate {
            Some(rate) => pace(h1, h1.lan.name, &stream, rate, amount)?,
            None => flood(h1, h1.lan.name, &stream, amount)?,
        };
        let tally = sink.settle(Duration::from_millis(200), Duration::from_secs(5))?;
        if tally.datagrams == 0 {
            return Err(broken(what, "nothing arrived"));
        }
        runs.push(Run { what, report: Report::new(&sent, &tally) });
        sink.reset()?;
    }
    let gateways =
        [("g1", 0), ("g2", 1)].into_iter().map(|(name, side)| state(name, pair, side)).collect::<Result<_>>()?;
    Ok(Demo { ping_v4, ping_v6, echo_us, tcp_v4, tcp_v6, runs, gateways, network: None, yardstick: None, left: None })
}

fn broken(what: impl Into<String>, detail: &str) -> Error {
    Error::Broken { what: what.into(), detail: detail.to_owned() }
}

fn state(name: &str, pair: &mut Pair<'_>, side: usize) -> Result<GatewayState> {
    let gateway = pair.side(side);
    let counters = gateway.counters()?;
    let moved = |counts: Vec<NamedCount>, more: Vec<NamedCount>| {
        counts.into_iter().chain(more).filter(|c| c.count > 0).map(|c| (c.name, c.count)).collect()
    };
    Ok(GatewayState {
        name: name.to_owned(),
        facts: gateway.facts()?,
        counters: moved(counters.engine, counters.bpf),
        drops: moved(counters.engine_drops, counters.bpf_drops),
        tun_queue_drops: gateway.tun_queue_drops()?,
        udp_buffer_drops: gateway.udp_buffer_drops()?,
    })
}

fn left(rig: &Rig, pair: &Pair<'_>) -> Left {
    let gateways = [&pair.g1, &pair.g2];
    let pids = gateways.iter().filter_map(|g| g.pid()).map(|pid| pid.to_string()).collect::<Vec<_>>().join(" ");
    let directories = gateways.map(|g| g.directory().display().to_string()).join(" ");
    Left {
        enter: rig.hosts().iter().map(|host| format!("ip netns exec {} bash", host.name())).collect(),
        sockets: gateways.iter().map(|g| g.socket().display().to_string()).collect(),
        stop: format!("kill {pids}; weir-bench rig clean; rm -r {directories}"),
    }
}

impl Demo {
    /// The tables that a person reads.
    pub fn tables(&self) -> String {
        let rtt = |ping: Ping| {
            let mean = ping.mean_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0} µs"));
            format!("{} of {} answered, mean {mean}", ping.received, ping.sent)
        };
        let tcp = |transfer: Transfer| format!("{:.2} Gbit/s, {} retransmits", transfer.gbps, transfer.retransmits);
        let row = |what: &str, result: String| [what.to_owned(), result];
        let mut rows = vec![
            row("ping IPv4", rtt(self.ping_v4)),
            row("ping IPv6", rtt(self.ping_v6)),
            row("in-band echo g1–g2", format!("{:.0} µs", self.echo_us)),
            row("TCP IPv4, one stream", tcp(self.tcp_v4)),
            row("TCP IPv6, one stream", tcp(self.tcp_v6)),
        ];
        if let Some(plain) = &self.yardstick {
            rows.push(row("plain forwarding: ping IPv4", rtt(plain.ping_v4)));
            rows.push(row("plain forwarding: TCP IPv4", tcp(plain.tcp)));
        }
        let mut text = table::render(&["h1 to h2 through the overlay", "result"], &rows);
        let named = |what: &str, report: &Report| {
            let mut row = vec![what.to_owned()];
            row.extend(report.row());
            row
        };
        let mut rows: Vec<_> = self.runs.iter().map(|run| named(&run.what, &run.report)).collect();
        if let Some(plain) = &self.yardstick {
            rows.push(named("plain forwarding: IPv4, 64 B, flat out", &plain.flood));
        }
        let headings: Vec<_> = ["generator"].into_iter().chain(Report::HEADINGS).collect();
        text = text + "\n" + &table::render(&headings, &rows);
        text += &format!(
            "One IMIX frame in twelve has 1518 bytes: more than the overlay's MTU of {INNER_MTU}, so its sender is told to send less.\n"
        );
        let facts = self.gateways.first().map(|g| g.facts.as_slice()).unwrap_or_default();
        text = text
            + "\n"
            + &self.side_by_side("in use", facts.iter().map(|(name, _)| name.clone()), |g, name| {
                g.facts.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
            });
        let count = |counts: &[(String, u64)], name: &str| {
            counts.iter().find(|(n, _)| n == name).map(|(_, count)| count.to_string())
        };
        let names = self.names(|g| &g.counters);
        text = text + "\n" + &self.side_by_side("packets and bytes", names, |g, name| count(&g.counters, name));
        const TUN_FULL: &str = "kernel: TUN queue full";
        /// The same for drops at the sockets.
        const UDP_FULL: &str = "kernel: UDP buffer full";
        let names = self.names(|g| &g.drops).into_iter().chain([TUN_FULL, UDP_FULL].map(str::to_owned));
        text = text
            + "\n"
            + &self.side_by_side("dropped", names, |g, name| match name {
                TUN_FULL => Some(g.tun_queue_drops.to_string()),
                UDP_FULL => Some(g.udp_buffer_drops.to_string()),
                _ => count(&g.drops, name),
            });
        match &self.network {
            Some(network) => text + "\n" + &network.tables(),
            None => text,
        }
    }

    /// Names that any gateway has counted, each once, in the order of the first that has it.
    fn names(&self, counts: impl Fn(&GatewayState) -> &Vec<(String, u64)>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in self.gateways.iter().flat_map(counts) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// One row for each name, one column for each gateway.
    fn side_by_side(
        &self,
        heading: &str,
        names: impl IntoIterator<Item = String>,
        value: impl Fn(&GatewayState, &str) -> Option<String>,
    ) -> String {
        let cell = |gateway, name: &str| value(gateway, name).unwrap_or_else(|| "-".to_owned());
        let row = |name: String| {
            let mut row: Vec<_> = self.gateways.iter().map(|gateway| cell(gateway, &name)).collect();
            row.insert(0, name);
            row
        };
        let rows: Vec<_> = names.into_iter().map(row).collect();
        let headings: Vec<_> = [heading].into_iter().chain(self.gateways.iter().map(|g| g.name.as_str())).collect();
        table::render(&headings, &rows)
    }
}
