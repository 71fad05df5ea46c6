//! What the control plane promised, measured on real nodes between network namespaces and on the real QUIC endpoint.
//!
//! | part | what it says |
//! |---|---|
//! | [`Part::Handshakes`] | mutual handshakes that one core accepts, with and without Retry |
//! | [`Part::FirstPacket`] | from a dial to the first packet of a new session, over a long line |
//! | [`Part::Flood`] | fresh keys, a control plane's restart and echoes, while spoofed Initials arrive |
//! | [`Part::Outage`] | traffic while both control planes are dead, and how soon they know everything again |
//! | [`Part::Changes`] | what keys, certificates, a root and a policy cost traffic at full load when they change |
//! | [`Part::Revocation`] | how soon nothing of a revoked member is accepted any more |
//! | [`Part::Memory`] | what each connected peer costs a control plane |
//! | [`Part::Fleet`] | how soon many gateways find each other from one address |
//!
//! Every figure is the median of its rounds; rounds of the parts take turns. Nothing is judged here: a missed target is a line.

mod changes;
mod fleet;
mod flood;
mod handshakes;
mod initials;
mod line;
mod memory;
mod outage;
mod packet;
mod party;
mod revocation;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::compare::system::{self, Machine};
use crate::micro::{Figure, Target};
use crate::{Error, Result, table};

/// Lines of a log that are shown with a problem.
const LOG_LINES_MAX: usize = 10;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Handshakes a second.
    Handshakes,
    /// Dial to first packet.
    FirstPacket,
    /// Spoofed Initials.
    Flood,
    /// Dead control planes.
    Outage,
    /// Keys, certificates, a root and a policy that change.
    Changes,
    /// A member that is cut off.
    Revocation,
    /// Memory.
    Memory,
    /// Many gateways that look for each other.
    Fleet,
}

impl Part {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 8] = [
        Self::Handshakes,
        Self::FirstPacket,
        Self::Flood,
        Self::Outage,
        Self::Changes,
        Self::Revocation,
        Self::Memory,
        Self::Fleet,
    ];

    /// As a person writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handshakes => "handshakes",
            Self::FirstPacket => "first-packet",
            Self::Flood => "flood",
            Self::Outage => "outage",
            Self::Changes => "changes",
            Self::Revocation => "revocation",
            Self::Memory => "memory",
            Self::Fleet => "fleet",
        }
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|part| part.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("one of {} is needed", names.join(", "))
        })
    }
}

/// How to measure.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What.
    pub parts: BTreeSet<Part>,
    /// Rounds; figures are medians over them.
    pub rounds: u32,
    /// Length of each run of handshakes, of the flood, and of the traffic beside each change.
    pub duration: Duration,
    /// Whether keys that step on by themselves are waited for, a minute.
    pub ratchet: bool,
    /// How long both control planes are dead.
    pub outage: Duration,
    /// Peers that a control plane is given, at most 23.
    pub peers: u8,
    /// Gateways that look for each other.
    pub gateways: u8,
    /// Spoofed Initials a second.
    pub spoofed: f64,
    /// Round trips of the line.
    pub round_trips: Vec<Duration>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            parts: Part::ALL.into(),
            rounds: 3,
            duration: Duration::from_secs(5),
            ratchet: true,
            outage: Duration::from_secs(10),
            peers: memory::PEERS_MAX,
            gateways: 30,
            spoofed: 200_000.0,
            round_trips: [10, 50, 100].map(Duration::from_millis).into(),
        }
    }
}

impl Plan {
    /// One short round: shows that everything works, and little more.
    #[must_use]
    pub fn quick(self) -> Self {
        Self {
            rounds: 1,
            duration: Duration::from_millis(500),
            ratchet: false,
            outage: Duration::from_secs(1),
            peers: 2,
            gateways: 4,
            spoofed: 5_000.0,
            round_trips: vec![Duration::from_millis(10)],
            ..self
        }
    }
}

/// Figures of rounds, as they come in.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(String, &'static str, Option<Target>, Vec<f64>)>);

impl Samples {
    /// A figure of one round.
    fn add(&mut self, what: String, unit: &'static str, target: Option<Target>, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == what) {
            Some((.., values)) => values.push(value),
            None => self.0.push((what, unit, target, vec![value])),
        }
    }

    fn figures(self) -> Vec<Figure> {
        self.0.into_iter().filter_map(|(what, unit, target, values)| Figure::of(what, unit, target, values)).collect()
    }
}

fn at_most(value: f64) -> Option<Target> {
    Some(Target { value, at_least: false })
}

fn at_least(value: f64) -> Option<Target> {
    Some(Target { value, at_least: true })
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was run.
    pub machine: Machine,
    /// The commit, if known.
    pub commit: Option<String>,
    /// How it was run.
    pub plan: Plan,
    /// The figures with their targets.
    pub figures: Vec<Figure>,
    /// Rounds that came to nothing, and why.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether every figure keeps its target, and no round came to nothing.
    pub fn is_met(&self) -> bool {
        self.problems.is_empty() && self.figures.iter().all(Figure::is_met)
    }

    /// The table that a person reads.
    pub fn tables(&self) -> String {
        let rows: Vec<_> = self.figures.iter().map(Figure::row).collect();
        let commit = self.commit.as_deref().unwrap_or("an unknown commit");
        let machine = &self.machine;
        let mut text = format!("{}, {} cores, Linux {}, {commit}\n\n", machine.cpu, machine.cores, machine.kernel);
        text += &table::render(&["the control plane", "unit", "median", "least", "most", "target"], &rows);
        for problem in &self.problems {
            text += &format!("\nproblem: {problem}\n");
        }
        text
    }
}

/// Measures; `progress` hears what is next.
///
/// # Errors
/// [`Error::NotRoot`]. A round that fails is a line in the report.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Report> {
    if !crate::sys::is_root() {
        return Err(Error::NotRoot);
    }
    let (mut samples, mut problems) = (Samples::default(), vec![]);
    for round in 1..=plan.rounds {
        for part in &plan.parts {
            let mut step = |what: &str| {
                progress(&format!("round {round} of {}: {}{what}", plan.rounds, part.name()));
            };
            step("");
            let mut step = |what: &str| step(&format!(": {what}"));
            let done = match part {
                Part::Handshakes => handshakes::round(plan.duration, &mut samples),
                Part::FirstPacket => packet::round(&plan.round_trips, &mut samples, &mut step),
                Part::Flood => flood::round(plan.spoofed, plan.duration, &mut samples, &mut step),
                Part::Outage => outage::round(plan.outage, &mut samples),
                Part::Changes => changes::round(plan.duration, plan.ratchet, &mut samples, &mut step),
                Part::Revocation => revocation::round(&mut samples, &mut step),
                Part::Memory => memory::round(plan.peers, &mut samples, &mut step),
                Part::Fleet => fleet::round(plan.gateways, &mut samples, &mut step),
            };
            if let Err(error) = done {
                let problem = format!("{}, round {round}: {}", part.name(), shortened(&error.to_string()));
                progress(&problem);
                problems.push(problem);
            }
        }
    }
    let (machine, commit) = (Machine::this(), system::commit());
    Ok(Report { machine, commit, plan: plan.clone(), figures: samples.figures(), problems })
}

/// A problem without all but the last lines of the logs that come with it.
fn shortened(problem: &str) -> String {
    let mut lines = problem.lines();
    let first = lines.next().unwrap_or_default();
    let rest: Vec<_> = lines.collect();
    let last = &rest[rest.len().saturating_sub(LOG_LINES_MAX)..];
    [&[first], last].concat().join("\n")
}

/// Tells those who wait for it that something has ended, whatever it has ended by.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_what_it_says_and_the_end_of_the_log() {
        let log: Vec<_> = (0..=LOG_LINES_MAX).map(|line| line.to_string()).collect();
        let shown = shortened(&format!("it broke: began\n{}", log.join("\n")));
        assert_eq!(shown, format!("it broke: began\n{}", log[1..].join("\n")));
        assert_eq!((shortened("one"), shortened("")), ("one".to_owned(), String::new()));
    }

    #[test]
    fn parts_are_named_as_a_person_writes_them() {
        for part in Part::ALL {
            assert_eq!(part.name().parse(), Ok(part));
            assert_eq!(serde_json::to_value(part).unwrap(), part.name());
        }
        assert!("everything".parse::<Part>().unwrap_err().contains("outage"));
    }

    #[test]
    fn a_missed_target_and_a_failed_round_are_told_apart_from_success() {
        let mut samples = Samples::default();
        for value in [3.0, 1.0, 2.0] {
            samples.add("rate".into(), "1/s", at_least(2.0), value);
        }
        samples.add("lost".into(), "packets", at_most(0.0), 0.0);
        let report = Report {
            machine: Machine::this(),
            commit: None,
            plan: Plan::default(),
            figures: samples.figures(),
            problems: vec![],
        };
        assert!(report.is_met() && report.figures[0].median == 2.0, "{report:?}");
        assert!(!Report { problems: vec!["no".into()], ..report.clone() }.is_met());
        let mut missed = report;
        missed.figures[1].median = 1.0;
        assert!(!missed.is_met() && missed.tables().contains("≤ 0.00 MISSED"), "{}", missed.tables());
    }
}
