//! The commands with many options: `compare`, `control`, `sim` and `profile`.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weir_bench::compare::metric::Measure;
use weir_bench::compare::subject::Subject;
use weir_bench::compare::{self, Plan};
use weir_bench::control::{self, Part};
use weir_bench::fleet::GATEWAYS_MAX;
use weir_bench::profile::{self, Load};
use weir_bench::sim::{self, Adversary};
use weir_bench::stream::Sizes;
use weir_bench::{Error, Result};

use crate::parse_seconds;

/// Longest time that is sampled, seconds: a minute of all cores is some hundred MB of stacks.
const SAMPLED_MAX: f64 = 60.0;

/// What becomes of a report besides what is printed.
#[derive(Args)]
struct Output {
    /// Write everything to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail when a target is missed, or a round comes to nothing
    #[arg(long)]
    check: bool,
}

impl Output {
    /// Makes its file and that of a drawing. Called first: an hour of traffic for a file that cannot be written helps nobody.
    fn make_files(&self, svg: Option<&PathBuf>) -> Result<()> {
        [self.json.as_ref(), svg].into_iter().flatten().try_for_each(|file| write(file, ""))
    }

    /// Prints the tables of a report and writes what was asked for; what the program ends with.
    fn hand_out(&self, report: &impl Serialize, tables: &str, is_met: bool) -> Result<ExitCode> {
        print!("{tables}");
        if let Some(file) = &self.json {
            let json = serde_json::to_string_pretty(report).map_err(std::io::Error::from);
            write(file, &json.map_err(failed(file))?)?;
        }
        Ok(if self.check && !is_met { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Weir, the kernel and other programs on the same rig.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Who takes part, separated by commas; `weir` is every combination of its ports. All if not given
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// What to measure, separated by commas: tcp, udp, ndr, rtt, idle, wire, micro. All if not given
    #[arg(long, value_delimiter = ',')]
    measures: Vec<Measure>,
    /// Frame sizes of the generator, separated by commas: bytes with FCS, `imix` or `tunnel-imix`. 64, 512, 1400 and tunnel-imix if not given
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<Sizes>,
    /// Rounds; figures are medians over them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each TCP transfer, flat-out run and echo run
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Seconds of each trial of a search for a rate
    #[arg(long, value_parser = parse_seconds)]
    trial_seconds: Option<f64>,
    /// Most trials of a search
    #[arg(long)]
    trials: Option<usize>,
    /// How exact a search is, as a share of the rate
    #[arg(long)]
    tolerance: Option<f64>,
    /// One short round: shows that everything works
    #[arg(long)]
    quick: bool,
    /// Install Debian packages that are missing
    #[arg(long)]
    install: bool,
    /// Draw all medians into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl CompareArgs {
    fn plan(&self) -> Plan {
        let mut plan = Plan { install: self.install, ..Plan::default() };
        if self.quick {
            plan = plan.quick();
        }
        if !self.measures.is_empty() {
            plan.measures = self.measures.iter().copied().collect();
        }
        if !self.sizes.is_empty() {
            plan.sizes.clone_from(&self.sizes);
        }
        plan.rounds = self.rounds.unwrap_or(plan.rounds);
        plan.duration = self.seconds.map_or(plan.duration, Duration::from_secs_f64);
        plan.trial = self.trial_seconds.map_or(plan.trial, Duration::from_secs_f64);
        plan.trials = self.trials.unwrap_or(plan.trials).max(1);
        plan.tolerance = self.tolerance.unwrap_or(plan.tolerance).clamp(0.001, 0.5);
        plan
    }

    /// Compares, prints and writes what was asked for.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let subjects = match self.subjects.is_empty() {
            true => Subject::all(),
            false => Subject::choose(&self.subjects)
                .map_err(|detail| Error::Broken { what: "choosing subjects".into(), detail })?,
        };
        self.output.make_files(self.svg.as_ref())?;
        let report = compare::run(&self.plan(), &subjects, |step| eprintln!("… {step}"))?;
        let is_met = report.targets.iter().all(|target| target.met);
        let code = self.output.hand_out(&report, &report.tables(), is_met)?;
        if let Some(file) = &self.svg {
            write(file, &report.svg())?;
        }
        Ok(code)
    }
}

/// What the control plane promised.
#[derive(Args)]
pub(crate) struct ControlArgs {
    /// What to measure, separated by commas: handshakes, first-packet, flood, outage, changes, revocation, memory, fleet. All if not given
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Rounds; figures are medians over them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each run of handshakes, of the flood, and of the traffic beside each change
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Seconds that both control planes are dead; 10 if not given
    #[arg(long, value_parser = parse_seconds, conflicts_with = "long")]
    outage: Option<f64>,
    /// Have both control planes dead for 300 seconds, one round of it
    #[arg(long)]
    long: bool,
    /// Peers of the control plane whose memory is measured, 2 to 23
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=23))]
    peers: Option<u8>,
    /// Gateways that look for each other, 4 to 60
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=i64::from(GATEWAYS_MAX)))]
    gateways: Option<u8>,
    /// Spoofed Initials a second
    #[arg(long, value_parser = crate::parse_rate)]
    spoofed: Option<f64>,
    /// One short round: shows that everything works
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// What `--long` stands for, seconds.
const LONG_OUTAGE: f64 = 300.0;

impl ControlArgs {
    fn plan(&self) -> control::Plan {
        let mut plan = control::Plan::default();
        if self.quick {
            plan = plan.quick();
        }
        if self.long {
            plan.parts = [Part::Outage].into();
            (plan.rounds, plan.outage) = (1, Duration::from_secs_f64(LONG_OUTAGE));
        }
        if !self.parts.is_empty() {
            plan.parts = self.parts.iter().copied().collect();
        }
        plan.rounds = self.rounds.unwrap_or(plan.rounds);
        plan.duration = self.seconds.map_or(plan.duration, Duration::from_secs_f64);
        plan.outage = self.outage.map_or(plan.outage, Duration::from_secs_f64);
        plan.peers = self.peers.unwrap_or(plan.peers);
        plan.gateways = self.gateways.unwrap_or(plan.gateways);
        plan.spoofed = self.spoofed.unwrap_or(plan.spoofed);
        plan
    }

    /// Measures, prints and writes what was asked for.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        self.output.make_files(None)?;
        let report = control::run(&self.plan(), |step| eprintln!("… {step}"))?;
        self.output.hand_out(&report, &report.tables(), report.is_met())
    }
}

/// Discovery in a large network, on virtual time. It needs no root.
#[derive(Args)]
pub(crate) struct SimArgs {
    /// Nodes; 10000 if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    nodes: Option<u32>,
    /// How many of a hundred nodes answer others; 30 if not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    servers: Option<u8>,
    /// Share of all nodes that is replaced in a minute; 0 leaves that part out, 0.1 if not given
    #[arg(long, value_parser = parse_share)]
    churn: Option<f64>,
    /// Let few nodes stay very long and most go soon
    #[arg(long)]
    heavy_tailed: bool,
    /// Share of datagrams that are lost; 0.01 if not given
    #[arg(long, value_parser = parse_share)]
    loss: Option<f64>,
    /// Who does harm, separated by commas: silent, lying, eclipse, sybil, flood, stale, slow. All if not given
    #[arg(long, value_delimiter = ',')]
    adversaries: Vec<Adversary>,
    /// Let nobody do harm
    #[arg(long, conflicts_with = "adversaries")]
    no_adversaries: bool,
    /// Share of all nodes that does harm; 0.2 if not given
    #[arg(long, value_parser = parse_share)]
    adversary_share: Option<f64>,
    /// Look-ups of each part; 2000 if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    lookups: Option<u32>,
    /// Seconds in which nobody wants anything; an hour if not given
    #[arg(long, value_parser = parse_seconds)]
    idle: Option<f64>,
    /// From which everything random comes: the same seed gives the same run
    #[arg(long)]
    seed: Option<u64>,
    /// A small network and few look-ups: shows that everything works
    #[arg(long)]
    quick: bool,
    /// Draw success, time, requests and hops into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=0.9).contains(share));
    share.ok_or_else(|| "a share from 0 to 0.9 is needed".to_owned())
}

impl SimArgs {
    fn plan(&self) -> sim::Plan {
        let mut plan = sim::Plan { heavy_tailed: self.heavy_tailed, ..sim::Plan::default() };
        if self.quick {
            plan = plan.quick();
        }
        if self.no_adversaries || !self.adversaries.is_empty() {
            plan.adversaries = self.adversaries.iter().copied().collect();
        }
        plan.nodes = self.nodes.map_or(plan.nodes, |nodes| nodes as usize);
        plan.servers = self.servers.unwrap_or(plan.servers);
        plan.churn = self.churn.unwrap_or(plan.churn);
        plan.loss = self.loss.unwrap_or(plan.loss);
        plan.adversary_share = self.adversary_share.unwrap_or(plan.adversary_share);
        plan.lookups = self.lookups.map_or(plan.lookups, |lookups| lookups as usize);
        plan.idle = self.idle.map_or(plan.idle, Duration::from_secs_f64);
        plan.seed = self.seed.unwrap_or(plan.seed);
        plan
    }

    /// Simulates, prints and writes what was asked for.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        self.output.make_files(self.svg.as_ref())?;
        let report = sim::run(&self.plan(), &mut Bar::default().into_progress())?;
        let code = self.output.hand_out(&report, &report.tables(), report.is_met())?;
        if let Some(file) = &self.svg {
            write(file, &report.svg())?;
        }
        if let Some(again) = report.again() {
            println!("\nseed {}; again with:\n  {again}", report.plan.seed);
        }
        Ok(code)
    }
}

/// What is done, on one line that a terminal sees grow; without a terminal a line for each thing that begins.
#[derive(Default)]
struct Bar {
    what: String,
}

const BAR_LEN: usize = 30;

impl Bar {
    fn into_progress(mut self) -> impl FnMut(&str, f64) {
        move |what, share| self.show(what, share)
    }

    fn show(&mut self, what: &str, share: f64) {
        let is_new = self.what != what;
        if is_new {
            what.clone_into(&mut self.what);
        }
        let mut out = std::io::stderr().lock();
        // A terminal that is gone sees nothing.
        let _ = if out.is_terminal() {
            let done = (share * BAR_LEN as f64) as usize;
            write!(out, "\r\x1b[K{:#<done$}{:.<rest$} {what}", "", "", rest = BAR_LEN.saturating_sub(done))
        } else if is_new {
            writeln!(out, "… {what}")
        } else {
            Ok(())
        };
        let _ = out.flush();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let mut out = std::io::stderr().lock();
        if out.is_terminal() {
            let _ = write!(out, "\r\x1b[K");
        }
    }
}

/// Where the time goes.
#[derive(Args)]
pub(crate) struct ProfileArgs {
    /// Who is profiled: a name of `compare`
    #[arg(long, default_value = "weir-auto")]
    subject: String,
    /// TCP streams; without it the generator sends datagrams
    #[arg(long, conflicts_with_all = ["size", "flows"])]
    tcp: Option<u32>,
    /// Frame size in bytes with FCS (64 to 1518), imix or tunnel-imix
    #[arg(long, default_value = "64")]
    size: Sizes,
    /// Number of flows
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Seconds to sample for, at most a minute
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Draw the flame graph into this file
    #[arg(long, default_value = "profile.svg")]
    svg: PathBuf,
    /// Write the stacks to this file, one a line with its count
    #[arg(long)]
    folded: Option<PathBuf>,
}

impl ProfileArgs {
    /// Profiles, prints the lists and writes the files.
    pub(crate) fn run(&self) -> Result<()> {
        let unclear = |detail| Error::Broken { what: "choosing the subject".into(), detail };
        let subjects = Subject::choose(std::slice::from_ref(&self.subject)).map_err(unclear)?;
        let [subject] = &subjects[..] else {
            return Err(unclear(format!("{} is more than one", self.subject)));
        };
        let load = match self.tcp {
            Some(streams) => Load::Tcp { streams },
            None => Load::Udp { sizes: self.size, flows: self.flows },
        };
        write(&self.svg, "")?;
        let seconds = self.seconds.min(SAMPLED_MAX);
        eprintln!("… sampling {} for {seconds} s", self.subject);
        let profile = profile::record(subject, load, Duration::from_secs_f64(seconds))?;
        let title = match load {
            Load::Tcp { streams } => format!("{}, TCP, {streams} stream(s)", self.subject),
            Load::Udp { sizes, flows } => format!("{}, frames of {sizes} flat out, {flows} flow(s)", self.subject),
        };
        write(&self.svg, &profile::flame::graph(&title, &profile))?;
        if let Some(file) = &self.folded {
            write(file, &profile.folded())?;
        }
        print!("{title}\n{}", profile::tables(&profile));
        println!("\nflame graph: {}", self.svg.display());
        Ok(())
    }
}

fn failed(file: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("cannot write {}", file.display());
    move |source| Error::Io { what, source }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).map_err(failed(file))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Sim {
        #[command(flatten)]
        args: SimArgs,
    }

    fn planned(words: &str) -> std::result::Result<sim::Plan, String> {
        let parsed = Sim::try_parse_from(["sim"].into_iter().chain(words.split_whitespace()));
        parsed.map(|sim| sim.args.plan()).map_err(|error| error.to_string())
    }

    #[test]
    fn adversaries_are_all_some_or_none() {
        assert_eq!(planned("").unwrap().adversaries, Adversary::ALL.into());
        let some = planned("--adversaries slow,lying --quick").unwrap();
        assert_eq!(some.adversaries, [Adversary::Lying, Adversary::Slow].into());
        assert!(planned("--no-adversaries").unwrap().adversaries.is_empty());
        let said = planned("--adversaries none").unwrap_err();
        assert!(said.contains("one of silent, lying"), "{said}");
        assert!(planned("--no-adversaries --adversaries slow").unwrap_err().contains("cannot be used with"));
    }
}
