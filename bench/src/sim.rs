//! Discovery at the size of a large network: the DHT of the control plane, ten thousand times, on virtual time.
//!
//! | part | what it says |
//! |---|---|
//! | arrivals, idle | what a node costs that nobody asks for anything: bytes, handshakes, memory |
//! | newcomers | from the first handshake to a table that works |
//! | calm | hops, rounds, time and success of look-ups: as nodes are, without any session, with all of them |
//! | one in twenty gone | the same with stale entries in every table |
//! | churn | success while nodes go and others come |
//! | adversaries | success while a share of all nodes does harm, one kind after the other |
//!
//! What is simulated is links: the other side is known, and every handshake is charged. Everything else is the product's own code, and every
//! signature is real; all nodes share one memory of signatures that were good, so each is computed once. One seed gives one run.

mod attack;
mod experiment;
mod hasher;
mod hostile;
mod latency;
mod members;
mod session;
mod traffic;
mod world;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::experiment::Lab;
pub use self::hostile::Adversary;
use crate::compare::system::{self, Machine};
use crate::micro::{Figure, Target};
use crate::plot::{self, Panel};
use crate::{Error, Result, table};

/// Version of the JSON; it grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// What to simulate.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// How many of a hundred are servers.
    pub servers: u8,
    /// Share of all nodes that is replaced in a minute, while that is tried; 0 leaves it out.
    pub churn: f64,
    /// Whether few nodes stay very long and most go soon.
    pub heavy_tailed: bool,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Who does harm, one kind after the other.
    pub adversaries: BTreeSet<Adversary>,
    /// Share of all nodes that does.
    pub adversary_share: f64,
    /// Look-ups of each part.
    pub lookups: usize,
    /// How long nobody wants anything.
    pub idle: Duration,
    /// From which everything random comes.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 10_000,
            servers: 30,
            churn: 0.1,
            heavy_tailed: false,
            loss: 0.01,
            adversaries: Adversary::ALL.into(),
            adversary_share: 0.2,
            lookups: 2_000,
            idle: Duration::from_secs(3600),
            seed: 1,
        }
    }
}

impl Plan {
    /// A small network and few look-ups: shows that everything works, and little more.
    #[must_use]
    pub fn quick(self) -> Self {
        Self { nodes: 200, lookups: 100, idle: Duration::from_secs(300), ..self }
    }
}

fn at_most(value: f64) -> Option<Target> {
    Some(Target { value, at_least: false })
}

fn at_least(value: f64) -> Option<Target> {
    Some(Target { value, at_least: true })
}

/// Figures as they come.
#[derive(Debug, Default)]
struct Samples(Vec<Figure>);

impl Samples {
    fn add(&mut self, what: String, unit: &'static str, target: Option<Target>, value: f64) {
        self.0.extend(Figure::of(what, unit, target, vec![value]));
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Where it was run.
    pub machine: Machine,
    /// The commit, if known.
    pub commit: Option<String>,
    /// What was simulated.
    pub plan: Plan,
    /// The figures with their targets.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Whether every figure keeps its target.
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(Figure::is_met)
    }

    /// The table that a person reads.
    pub fn tables(&self) -> String {
        let row = |figure: &Figure| {
            let [what, unit, value, _, _, target] = figure.row();
            [what, unit, value, target]
        };
        let rows: Vec<_> = self.figures.iter().map(row).collect();
        let Plan { nodes, servers, loss, seed, .. } = &self.plan;
        let commit = self.commit.as_deref().unwrap_or("an unknown commit");
        let title = format!("{nodes} nodes, {servers} % servers, {:.1} % loss, seed {seed}; {commit}", loss * 100.0);
        title + "\n\n" + &table::render(&["discovery", "unit", "figure", "target"], &rows)
    }

    /// What a failing run is repeated with; `None` when all is well.
    pub fn again(&self) -> Option<String> {
        let Plan { nodes, servers, churn, loss, adversary_share, lookups, idle, seed, .. } = &self.plan;
        let adversaries: Vec<_> = self.plan.adversaries.iter().map(|adversary| adversary.name()).collect();
        let harm = match &adversaries[..] {
            [] => "--no-adversaries".to_owned(),
            named => format!("--adversaries {}", named.join(",")),
        };
        let heavy = if self.plan.heavy_tailed { " --heavy-tailed" } else { "" };
        (!self.is_met()).then(|| {
            format!(
                "weir-bench sim --nodes {nodes} --servers {servers} --churn {churn}{heavy} --loss {loss} {harm} \
                 --adversary-share {adversary_share} --lookups {lookups} --idle {} --seed {seed}",
                idle.as_secs()
            )
        })
    }

    /// Success and times as bars.
    pub fn svg(&self) -> String {
        let bars = |ending: &str| -> Vec<(String, f64)> {
            let named = |figure: &Figure| Some((figure.what.strip_suffix(ending)?.to_owned(), figure.median));
            self.figures.iter().filter_map(named).collect()
        };
        let panel = |title: &str, unit: &str, ending: &str| Panel {
            title: title.into(),
            unit: unit.into(),
            bars: bars(ending),
        };
        let panels = [
            panel("Found the newest record", "share (more is better)", ": found the newest record"),
            panel("Time of a look-up", "median round trips (less is better)", ": time over the median round trip"),
            panel("Requests of a look-up", "mean (less is better)", ": requests, mean"),
            panel("Hops of a look-up", "mean (less is better)", ": hops, mean"),
        ];
        let Plan { nodes, servers, seed, .. } = &self.plan;
        plot::bars("Discovery", &format!("{nodes} nodes, {servers} % servers, seed {seed}"), &panels)
    }
}

/// Most memory that this process ever had, MiB, as the kernel counts it (`proc_pid_status(5)`, VmHWM); `None` when it does not say.
fn memory_most() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// Simulates; `progress` hears what is done and how much of it is.
///
/// # Errors
/// [`Error::Broken`] when the network's certificates cannot be made.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&str, f64)) -> Result<Report> {
    let begin = Instant::now();
    let broken = |error| Error::Broken { what: "making certificates".into(), detail: format!("{error}") };
    let mut samples = Lab::new(plan, progress).map_err(broken)?.run();
    let most =
        memory_most().and_then(|most| Figure::of("memory of the run, most".into(), "MiB", at_most(4096.0), vec![most]));
    samples.0.extend(most);
    samples.add("time of the run".into(), "s", at_most(600.0), begin.elapsed().as_secs_f64());
    let (machine, commit) = (Machine::this(), system::commit());
    Ok(Report { version: VERSION, machine, commit, plan: plan.clone(), figures: samples.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut samples = Samples::default();
        samples.add("calm: found the newest record".into(), "share", at_least(0.999), 1.0);
        samples.add("calm: time over the median round trip".into(), "", at_most(3.0), 2.5);
        let (machine, plan) = (Machine::this(), Plan::default());
        Report { version: VERSION, machine, commit: None, plan, figures: samples.0 }
    }

    #[test]
    fn a_missed_target_says_how_to_see_it_again() {
        let mut report = report();
        assert_eq!((report.is_met(), report.again()), (true, None));
        report.figures[1].median = 3.5;
        report.plan.seed = 77;
        let again = report.again().unwrap();
        assert!(again.contains("--seed 77") && report.tables().contains("MISSED"));
        assert!(again.contains("--adversaries silent,lying,"), "{again}");
        report.plan.adversaries.clear();
        let again = report.again().unwrap();
        assert!(again.contains(" --no-adversaries ") && !again.contains(" --adversaries "), "{again}");
    }

    #[test]
    fn figures_are_drawn_by_what_they_say() {
        let svg = report().svg();
        assert!(svg.contains("Found the newest record, share") && svg.matches(">calm<").count() == 2, "{svg}");
    }
}
