//! What a comparison found: medians over rounds, as a table for people, as JSON for programs, as a plot for a page.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Plan;
use super::metric::Metric;
use super::subject::Subject;
use super::system::{self, Machine};
use super::targets::Outcome;
use crate::micro::Figure;
use crate::plot::{self, Panel, figure};
use crate::table;

/// Version of the JSON; it grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// A comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Where it was run.
    pub machine: Machine,
    /// The commit, if known.
    pub commit: Option<String>,
    /// How it was run.
    pub plan: Plan,
    /// How long a core takes to wake another, µs: the unit that round trips through sleeping gateways are made of.
    pub wake_us: f64,
    /// The subjects, in the order that they were given.
    pub entries: Vec<Entry>,
    /// Single pieces.
    pub micro: Vec<Figure>,
    /// What was promised and what became of it.
    pub targets: Vec<Outcome>,
}

/// A subject in a report.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its version, in its own words.
    pub version: String,
    /// Whether it is Weir.
    pub weir: bool,
    /// Whether it is somebody else's program.
    pub peer: bool,
    /// Why it took no part.
    pub skipped: Option<String>,
    /// What it said of itself in the last round: for Weir, ports and attach modes.
    pub facts: Vec<(String, String)>,
    /// What went wrong.
    pub problems: Vec<String>,
    /// Figures.
    #[serde(serialize_with = "list")]
    pub values: BTreeMap<Metric, Samples>,
}

/// A figure of every round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The one in the middle, or between the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The smallest and the largest.
    pub fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
    }
}

#[derive(Serialize)]
struct Value<'a> {
    metric: Metric,
    unit: &'static str,
    median: f64,
    samples: &'a Samples,
}

fn list<S: serde::Serializer>(values: &BTreeMap<Metric, Samples>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|(metric, samples)| Value {
        metric: *metric,
        unit: metric.unit(),
        median: samples.median(),
        samples,
    }))
}

impl Entry {
    /// A subject that takes part.
    pub fn new(subject: &Subject, version: &str) -> Self {
        Self {
            name: subject.name(),
            version: version.to_owned(),
            weir: matches!(subject, Subject::Weir { .. }),
            peer: matches!(subject, Subject::Peer(_)),
            skipped: None,
            facts: vec![],
            problems: vec![],
            values: BTreeMap::new(),
        }
    }

    /// A subject that does not.
    pub fn skipped(subject: &Subject, reason: String) -> Self {
        Self { skipped: Some(reason), ..Self::new(subject, "") }
    }

    /// Notes a round.
    pub fn add(&mut self, values: BTreeMap<Metric, f64>, facts: Vec<(String, String)>, problems: Vec<String>) {
        for (metric, value) in values {
            self.values.entry(metric).or_default().0.push(value);
        }
        self.facts = facts;
        self.problems.extend(problems);
    }

    /// The median of a metric.
    pub fn median(&self, metric: Metric) -> Option<f64> {
        self.values.get(&metric).map(Samples::median)
    }
}

impl Report {
    /// An empty report of this machine.
    pub fn new(plan: &Plan, wake_us: f64) -> Self {
        Self {
            version: VERSION,
            machine: Machine::this(),
            commit: system::commit(),
            plan: plan.clone(),
            wake_us,
            entries: vec![],
            micro: vec![],
            targets: vec![],
        }
    }

    /// The median of a metric of a subject.
    pub fn median(&self, name: &str, metric: Metric) -> Option<f64> {
        self.entries.iter().find(|entry| entry.name == name)?.median(metric)
    }

    /// The best median of a metric among some of the subjects, and whose it is.
    pub fn best(&self, metric: Metric, among: impl Fn(&Entry) -> bool) -> Option<(&str, f64)> {
        let medians = self.entries.iter().filter(|entry| among(entry));
        let medians = medians.filter_map(|entry| Some((entry.name.as_str(), entry.median(metric)?)));
        if metric.higher_is_better() {
            medians.max_by(|a, b| a.1.total_cmp(&b.1))
        } else {
            medians.min_by(|a, b| a.1.total_cmp(&b.1))
        }
    }

    /// Metrics that somebody has, in order.
    fn metrics(&self) -> BTreeSet<Metric> {
        self.entries.iter().flat_map(|entry| entry.values.keys().copied()).collect()
    }

    /// Everything for a person: the machine, who took part, all medians, the targets.
    pub fn tables(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{}, {} cores{}, {} MB, Linux {}; commit {}\none core wakes another in {:.0} µs; medians of {} round(s) of {:.1} s, trials of {:.2} s\n\n",
            machine.cpu,
            machine.cores,
            if machine.virtualised { " (virtual)" } else { "" },
            machine.memory_mb,
            machine.kernel,
            self.commit.as_deref().unwrap_or("unknown"),
            self.wake_us,
            self.plan.rounds,
            self.plan.duration.as_secs_f64(),
            self.plan.trial.as_secs_f64(),
        );
        let about = |entry: &Entry| match &entry.skipped {
            Some(reason) => [entry.name.clone(), format!("skipped: {reason}"), String::new()],
            None => {
                let facts = entry.facts.iter().map(|(name, value)| format!("{name} {value}"));
                [entry.name.clone(), entry.version.clone(), facts.collect::<Vec<_>>().join(", ")]
            }
        };
        text += &table::render(
            &["subject", "version", "says of itself"],
            &self.entries.iter().map(about).collect::<Vec<_>>(),
        );
        text += &self.figures();
        if !self.micro.is_empty() {
            text += &format!("\n{}", crate::micro::render(&self.micro));
        }
        if !self.targets.is_empty() {
            let rows: Vec<_> = self.targets.iter().map(Outcome::row).collect();
            text += &format!("\n{}", table::render(&Outcome::HEADINGS, &rows));
        }
        for entry in &self.entries {
            entry.problems.iter().for_each(|problem| text += &format!("\n{}: {problem}", entry.name));
        }
        text.trim_end().to_owned() + "\n"
    }

    /// Metrics by subjects, with ratios to plain forwarding and, for the best of Weir, to the best peer.
    fn figures(&self) -> String {
        let present: Vec<_> = self.entries.iter().filter(|entry| !entry.values.is_empty()).collect();
        if present.is_empty() {
            return String::new();
        }
        let mut headings = vec!["median (× plain)", "unit"];
        headings.extend(present.iter().map(|entry| entry.name.as_str()));
        headings.push("best weir / best peer");
        let row = |metric: Metric| {
            let plain = self.median("plain", metric).filter(|value| *value > 0.0);
            let cell = |entry: &&Entry| {
                let Some(value) = entry.median(metric) else { return "-".to_owned() };
                match plain {
                    Some(plain) if entry.name != "plain" => format!("{} ({})", figure(value), figure(value / plain)),
                    _ => figure(value),
                }
            };
            let mut cells = vec![metric.to_string(), metric.unit().to_owned()];
            cells.extend(present.iter().map(cell));
            let weir = self.best(metric, |entry| entry.weir);
            let peer = self.best(metric, |entry| entry.peer).filter(|(_, value)| *value > 0.0);
            cells.push(
                weir.zip(peer)
                    .map_or_else(String::new, |((_, weir), (name, peer))| format!("{} ({name})", figure(weir / peer))),
            );
            cells
        };
        format!("\n{}", table::render(&headings, &self.metrics().into_iter().map(row).collect::<Vec<_>>()))
    }

    /// A panel of bars for each metric, as SVG.
    pub fn svg(&self) -> String {
        let panel = |metric: Metric| {
            let bars = self.entries.iter().filter_map(|entry| Some((entry.name.clone(), entry.median(metric)?)));
            let better = if metric.higher_is_better() { "more is better" } else { "less is better" };
            Panel { title: metric.to_string(), unit: format!("{} ({better})", metric.unit()), bars: bars.collect() }
        };
        let panels: Vec<_> = self.metrics().into_iter().map(panel).collect();
        let subtitle = format!(
            "{}, {} cores{}, Linux {}; commit {}; medians of {}",
            self.machine.cpu,
            self.machine.cores,
            if self.machine.virtualised { " (virtual)" } else { "" },
            self.machine.kernel,
            self.commit.as_deref().unwrap_or("unknown"),
            self.plan.rounds,
        );
        plot::bars("Weir and others between h1 and h2", &subtitle, &panels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::Peer;
    use super::super::subject::Place;
    use super::*;
    use crate::rig::Family;

    pub(in super::super) const TCP: Metric = Metric::Tcp { family: Family::V4, streams: 1 };

    fn report() -> Report {
        let mut report = Report::new(&Plan::default(), 45.0);
        let subjects = [
            (Subject::Plain { udp_gro_forwarding: false }, vec![10.0, 30.0, 20.0]),
            (Subject::Weir { variant: "auto".into(), place: Place::Chosen, settings: vec![] }, vec![8.0, 12.0]),
            (Subject::Weir { variant: "spin".into(), place: Place::Chosen, settings: vec![] }, vec![9.0]),
            (Subject::Peer(Peer::Gotatun), vec![0.5]),
        ];
        for (subject, samples) in subjects {
            let mut entry = Entry::new(&subject, "1.0");
            samples.into_iter().for_each(|value| entry.add([(TCP, value)].into(), vec![], vec![]));
            report.entries.push(entry);
        }
        report.entries.push(Entry::skipped(&Subject::Peer(Peer::Nebula), "not installed".into()));
        report
    }

    #[test]
    fn medians_are_of_odd_and_even_numbers_of_rounds() {
        let report = report();
        assert_eq!((report.median("plain", TCP), report.median("weir-auto", TCP)), (Some(20.0), Some(10.0)));
        assert_eq!(report.median("nebula", TCP), None);
        assert!(Samples::default().median().is_nan());
        assert_eq!(Samples(vec![2.0, 1.0, 3.0]).range(), (1.0, 3.0));
    }

    #[test]
    fn best_is_most_of_a_rate_and_least_of_a_cost() {
        let mut report = report();
        assert_eq!(report.best(TCP, |entry| entry.weir), Some(("weir-auto", 10.0)));
        for (entry, cost) in report.entries.iter_mut().zip([1.0, 4.0, 3.0]) {
            entry.add([(Metric::CpuPerGb, cost)].into(), vec![], vec![]);
        }
        assert_eq!(report.best(Metric::CpuPerGb, |entry| entry.weir), Some(("weir-spin", 3.0)));
        assert_eq!(report.best(Metric::CpuPerGb, |entry| entry.peer), None);
    }

    #[test]
    fn a_table_has_ratios_and_says_who_was_skipped() {
        let text = report().tables();
        for part in ["10.0 (0.500)", "20.0 (gotatun)", "skipped: not installed", "wakes another in 45 µs"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        let mut report = report();
        let metric = Metric::Ndr { sizes: crate::stream::Sizes::Fixed(64), flows: 1 };
        report.entries.iter_mut().for_each(|entry| entry.add([(metric, 0.0)].into(), vec![], vec![]));
        let text = report.tables();
        let line = text.lines().find(|line| line.starts_with("NDR")).unwrap();
        assert!(!line.contains("NaN") && !line.contains("inf") && !line.contains("(gotatun)"), "{line}");
    }

    #[test]
    fn json_has_its_version_and_all_samples() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["version"], VERSION);
        let value = &json["entries"][0]["values"][0];
        assert_eq!((value["metric"].as_str(), value["median"].as_f64()), (Some("TCP IPv4, 1 stream"), Some(20.0)));
        assert_eq!(value["samples"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_plot_has_a_bar_for_each_subject_with_a_figure() {
        let svg = report().svg();
        assert_eq!(svg.matches("<rect ").count(), 1 + 4);
        assert!(svg.contains("Gbit/s (more is better)"));
    }
}
