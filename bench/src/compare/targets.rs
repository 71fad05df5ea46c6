//! What Weir promised itself, set against one and the same run.
//!
//! Each target takes the best port combination, with what `auto` picked and got beside it. A target whose figures are not in the run is not
//! judged.

use serde::Serialize;

use super::metric::{Metric, Quantile};
use super::report::Report;
use crate::plot::figure;
use crate::rig::Family;
use crate::stream::Sizes;

/// Most that an idle gateway may use of a core for its round trip to count as that of a sleeper, %.
const SLEEPING_CPU: f64 = 1.0;
/// The combination that never sleeps.
const SPIN: &str = "weir-spin";

const TCP: Metric = Metric::Tcp { family: Family::V4, streams: 1 };
const SMALL: Metric = Metric::Saturated { sizes: Sizes::Fixed(64), flows: 1 };
const SMALL_MANY: Metric = Metric::Saturated { sizes: Sizes::Fixed(64), flows: 1000 };
const SMALL_NDR: Metric = Metric::Ndr { sizes: Sizes::Fixed(64), flows: 1 };
const RTT: Metric = Metric::RttIdle(Quantile::P50);

/// A target and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// What was measured, and against what.
    pub what: String,
    /// The port combination that it was best with; empty for a single piece.
    pub subject: String,
    /// What was reached.
    pub value: f64,
    /// What `auto` reached.
    pub auto: Option<f64>,
    /// What was promised.
    pub target: f64,
    /// Whether more than the target is good.
    pub at_least: bool,
    /// Whether it was met.
    pub met: bool,
}

impl Outcome {
    /// Headings for [`Self::row`].
    pub const HEADINGS: [&'static str; 6] = ["target", "wanted", "got", "with", "auto got", ""];

    /// The cells of a table.
    pub fn row(&self) -> [String; 6] {
        [
            self.what.clone(),
            format!("{} {}", if self.at_least { "≥" } else { "≤" }, figure(self.target)),
            figure(self.value),
            self.subject.clone(),
            self.auto.map_or_else(String::new, figure),
            if self.met { "met" } else { "MISSED" }.to_owned(),
        ]
    }

    fn judged(what: &str, value: f64, at_least: bool, target: f64) -> Self {
        // What is not a number meets nothing.
        let met = if at_least { value >= target } else { value <= target };
        Self { what: what.to_owned(), subject: String::new(), value, auto: None, target, at_least, met }
    }
}

/// A ratio to another subject's figure.
struct Ratio {
    what: &'static str,
    metric: Metric,
    to: &'static str,
    /// The other's metric, when it is another.
    of: Metric,
    target: f64,
}

const RATIOS: [Ratio; 10] = [
    Ratio { what: "TCP, 1 stream / plain", metric: TCP, to: "plain", of: TCP, target: 0.45 },
    Ratio { what: "TCP, 1 stream / splice", metric: TCP, to: "splice", of: TCP, target: 0.75 },
    Ratio { what: "TCP, 1 stream / gotatun", metric: TCP, to: "gotatun", of: TCP, target: 9.0 },
    Ratio { what: "64 B flat out, 1 flow / plain", metric: SMALL, to: "plain", of: SMALL, target: 1.3 },
    Ratio { what: "64 B flat out, 1 flow / plain-gro", metric: SMALL, to: "plain-gro", of: SMALL, target: 0.5 },
    Ratio { what: "64 B flat out, 1 flow / gotatun", metric: SMALL, to: "gotatun", of: SMALL, target: 10.0 },
    Ratio { what: "64 B flat out, 1000 flows / plain", metric: SMALL_MANY, to: "plain", of: SMALL_MANY, target: 0.9 },
    Ratio {
        what: "64 B flat out, 1000 flows / gotatun",
        metric: SMALL_MANY,
        to: "gotatun",
        of: SMALL_MANY,
        target: 6.0,
    },
    Ratio { what: "64 B NDR / plain flat out", metric: SMALL_NDR, to: "plain", of: SMALL, target: 0.6 },
    Ratio { what: "CPU per GB / gotatun", metric: Metric::CpuPerGb, to: "gotatun", of: Metric::CpuPerGb, target: 0.2 },
];

/// Judges every target that the run has figures for.
pub fn evaluate(report: &Report) -> Vec<Outcome> {
    let mut outcomes: Vec<_> = RATIOS.iter().filter_map(|ratio| judge(report, ratio)).collect();
    outcomes.extend(round_trips(report));
    for figure in &report.micro {
        if let Some(target) = figure.target {
            outcomes.push(Outcome::judged(&figure.what, figure.median, target.at_least, target.value));
        }
    }
    outcomes
}

fn judge(report: &Report, ratio: &Ratio) -> Option<Outcome> {
    let other = report.median(ratio.to, ratio.of).filter(|value| *value > 0.0)?;
    let (subject, value) = report.best(ratio.metric, |entry| entry.weir)?;
    let auto = report.median("weir-auto", ratio.metric).map(|value| value / other);
    let judged = Outcome::judged(ratio.what, value / other, ratio.metric.higher_is_better(), ratio.target);
    Some(Outcome { subject: subject.to_owned(), auto, ..judged })
}

/// Round trips over plain forwarding, ms: of the best that sleeps, and of the one that does not.
fn round_trips(report: &Report) -> Vec<Outcome> {
    let Some(plain) = report.median("plain", RTT) else { return vec![] };
    let over = |us: f64| (us - plain) / 1e3;
    let auto = report.median("weir-auto", RTT).map(over);
    let sleeps = |name: &str| report.median(name, Metric::IdleCpu).is_some_and(|cpu| cpu <= SLEEPING_CPU);
    let sleeper = report.best(RTT, |entry| entry.weir && sleeps(&entry.name));
    let spinner = report.median(SPIN, RTT).map(|us| (SPIN, us));
    let judged = |what: &str, (subject, us): (&str, f64), target| Outcome {
        subject: subject.to_owned(),
        auto,
        ..Outcome::judged(what, over(us), false, target)
    };
    let mut outcomes = vec![];
    outcomes.extend(sleeper.map(|found| judged("idle RTT over plain, ms, asleep at ≤ 1 % CPU", found, 0.20)));
    outcomes.extend(spinner.map(|found| judged("idle RTT over plain, ms, latency = spin", found, 0.07)));
    outcomes
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::super::peer::Peer;
    use super::super::report::Entry;
    use super::super::subject::{Place, Subject};
    use super::*;

    fn weir(variant: &str) -> Subject {
        Subject::Weir { variant: variant.into(), place: Place::Chosen, settings: vec![] }
    }

    fn report(figures: &[(Subject, &[(Metric, f64)])]) -> Report {
        let mut report = Report::new(&Plan::default(), 45.0);
        for (subject, values) in figures {
            let mut entry = Entry::new(subject, "1.0");
            entry.add(values.iter().copied().collect(), vec![], vec![]);
            report.entries.push(entry);
        }
        report
    }

    const PLAIN: Subject = Subject::Plain { udp_gro_forwarding: false };

    #[test]
    fn a_ratio_takes_the_best_combination_and_is_met_at_the_target() {
        let run = |best: f64| {
            report(&[(PLAIN, &[(TCP, 10.0)]), (weir("auto"), &[(TCP, 3.0)]), (weir("spin"), &[(TCP, best)])])
        };
        let outcomes = evaluate(&run(4.5));
        let expected = Outcome {
            what: "TCP, 1 stream / plain".into(),
            subject: "weir-spin".into(),
            value: 0.45,
            auto: Some(0.3),
            target: 0.45,
            at_least: true,
            met: true,
        };
        assert_eq!(outcomes, [expected]);
        assert!(!evaluate(&run(4.49))[0].met);
    }

    #[test]
    fn a_cost_is_met_from_below() {
        let run = |cost| {
            let metric = Metric::CpuPerGb;
            report(&[(Subject::Peer(Peer::Gotatun), &[(metric, 10.0)]), (weir("auto"), &[(metric, cost)])])
        };
        assert_eq!([evaluate(&run(2.0))[0].met, evaluate(&run(2.1))[0].met], [true, false]);
    }

    #[test]
    fn a_round_trip_counts_as_asleep_only_with_little_processor_time() {
        let run = |cpu| {
            report(&[
                (PLAIN, &[(RTT, 100.0)]),
                (weir("auto"), &[(RTT, 290.0), (Metric::IdleCpu, 0.5)]),
                (weir("uring"), &[(RTT, 200.0), (Metric::IdleCpu, cpu)]),
                (weir("spin"), &[(RTT, 180.0), (Metric::IdleCpu, 100.0)]),
            ])
        };
        let values = |cpu| {
            evaluate(&run(cpu)).into_iter().map(|o| (o.subject, (o.value * 1e3).round(), o.met)).collect::<Vec<_>>()
        };
        let spin = ("weir-spin".to_owned(), 80.0, false);
        assert_eq!(values(1.0), [("weir-uring".to_owned(), 100.0, true), spin.clone()]);
        assert_eq!(values(1.1), [("weir-auto".to_owned(), 190.0, true), spin]);
    }

    #[test]
    fn without_figures_nothing_is_judged() {
        assert!(evaluate(&report(&[])).is_empty());
        assert!(evaluate(&report(&[(PLAIN, &[(TCP, 0.0)]), (weir("auto"), &[(TCP, 3.0)])])).is_empty());
    }
}
