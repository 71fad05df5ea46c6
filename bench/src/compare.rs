//! The comparison: Weir, the kernel, the ceiling of the approach and other people's programs, one after the other on the same rig.
//!
//! ```text
//!   round 1:  plain  splice  weir-auto  weir-…  gotatun  …        each on a fresh rig, torn down before the next
//!   round 2:  plain  splice  …                                    medians over the rounds
//! ```
//!
//! - [`subject`]: what is compared, how it is started; [`splice`], [`peer`] with [`uapi`]: those that are not Weir;
//! - [`metric`]: what is measured; `measure`: how; [`search`]: rates without loss;
//! - [`system`]: what the kernel tells of machine and processes;
//! - [`report`]: medians, tables, JSON, the plot; [`targets`]: what Weir promised itself.
//!
//! Rounds are interleaved, so that a machine that is busy for a while is busy for all. Nothing is judged here: a missed target is a line.

mod install;
pub(crate) mod measure;
pub mod metric;
pub mod peer;
mod process;
pub mod report;
pub mod search;
pub mod splice;
pub mod subject;
pub mod system;
pub mod targets;
pub mod uapi;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::metric::Measure;
use self::report::{Entry, Report};
use self::subject::Subject;
use crate::stream::Sizes;
use crate::{Error, Result, micro};

/// Frame sizes of the generator runs, FCS included. IMIX with frames that fit the tunnel: a frame too long is refused, not lost.
const SIZES: [Sizes; 4] = [Sizes::Fixed(64), Sizes::Fixed(512), Sizes::Fixed(1400), Sizes::TunnelImix];

/// How to compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What to measure.
    #[serde(serialize_with = "names")]
    pub measures: BTreeSet<Measure>,
    /// Rounds; figures are medians over them.
    pub rounds: u32,
    /// Length of each TCP transfer, flat-out run and echo run.
    pub duration: Duration,
    /// Numbers of TCP streams.
    pub streams: Vec<u32>,
    /// Frame sizes of the generator.
    pub sizes: Vec<Sizes>,
    /// Numbers of flows of the generator.
    pub flows: Vec<u32>,
    /// Length of each trial of a search, and of the runs that count bytes.
    pub trial: Duration,
    /// Most trials of a search.
    pub trials: usize,
    /// How exact a search is, as a share of the rate.
    pub tolerance: f64,
    /// How long an idle machine is watched.
    pub idle: Duration,
    /// Whether packages may be installed.
    pub install: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            measures: Measure::ALL.into(),
            rounds: 5,
            duration: Duration::from_secs(2),
            streams: vec![1, 8],
            sizes: SIZES.to_vec(),
            flows: vec![1, 1000],
            trial: Duration::from_millis(400),
            trials: 12,
            tolerance: 0.03,
            idle: Duration::from_secs(2),
            install: false,
        }
    }
}

impl Plan {
    /// One short round: shows that everything works, and little more.
    #[must_use]
    pub fn quick(self) -> Self {
        Self {
            rounds: 1,
            duration: Duration::from_millis(200),
            streams: vec![1],
            sizes: vec![Sizes::Fixed(64)],
            flows: vec![1],
            trial: Duration::from_millis(50),
            trials: 3,
            tolerance: 0.3,
            idle: Duration::from_millis(200),
            ..self
        }
    }
}

fn names<S: serde::Serializer>(measures: &BTreeSet<Measure>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(measures.iter().map(|measure| measure.name()))
}

/// Measures every subject in every round. `progress` hears what is next, and how long it will take.
///
/// # Errors
/// [`Error::NotRoot`], and what the micro set or the machine itself refuse. A subject that fails is a line in the report.
pub fn run(plan: &Plan, subjects: &[Subject], mut progress: impl FnMut(&str)) -> Result<Report> {
    if !crate::sys::is_root() {
        return Err(Error::NotRoot);
    }
    let mut report = Report::new(plan, system::wake_us()?);
    let mut ready = Vec::new();
    for subject in subjects {
        match subject.ready(plan.install, &mut progress) {
            Ok(found) => {
                report.entries.push(Entry::new(subject, &found.version));
                ready.push((report.entries.len() - 1, found));
            }
            Err(reason) => {
                progress(&format!("{} is skipped: {reason}", subject.name()));
                report.entries.push(Entry::skipped(subject, reason));
            }
        }
    }
    if plan.measures.contains(&Measure::Micro) {
        progress("single pieces");
        report.micro = micro::run(&micro::Piece::ALL, |next| progress(&format!("single pieces: {next}")))?;
    }
    let rounds_only = plan.measures.iter().any(|measure| *measure != Measure::Micro);
    let total = if rounds_only { plan.rounds as usize * ready.len() } else { 0 };
    let start = Instant::now();
    for done in 0..total {
        let (index, subject) = &ready[done % ready.len()];
        let entry = &mut report.entries[*index];
        let left = match done {
            0 => String::new(),
            _ => format!(", about {} left", minutes(start.elapsed().mul_f64((total - done) as f64 / done as f64))),
        };
        let round = done / ready.len() + 1;
        progress(&format!("round {round} of {}: {} ({} of {total}{left})", plan.rounds, entry.name, done + 1));
        match measure::round(subject, plan) {
            Ok(round) => {
                round.problems.iter().for_each(|problem| progress(&format!("{}: {problem}", entry.name)));
                entry.add(round.values, round.facts, round.problems);
            }
            Err(error) => {
                progress(&format!("{}: {error}", entry.name));
                entry.problems.push(error.to_string());
            }
        }
    }
    report.targets = targets::evaluate(&report);
    Ok(report)
}

fn minutes(left: Duration) -> String {
    let seconds = left.as_secs();
    if seconds < 90 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_in_minutes_once_it_is_long() {
        assert_eq!(minutes(Duration::from_secs(89)), "89 s");
        assert_eq!(minutes(Duration::from_secs(90)), "2 min");
        assert_eq!(minutes(Duration::from_secs(3600)), "60 min");
    }

    #[test]
    fn a_quick_plan_keeps_what_was_asked_for() {
        let plan = Plan { measures: [Measure::Tcp].into(), install: true, ..Plan::default() };
        let quick = plan.clone().quick();
        assert_eq!((quick.measures, quick.install, quick.rounds), (plan.measures, true, 1));
        assert!(quick.duration < plan.duration);
    }
}
