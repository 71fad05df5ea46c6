//! Discovery, simulated: a small network of everything that `weir-bench sim` tries. It needs no root.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use weir_bench::sim::{self, Plan, Report};

fn simulated(plan: &Plan) -> (Report, Vec<String>) {
    let mut parts: Vec<String> = vec![];
    let report = sim::run(plan, &mut |part, share| {
        assert!((0.0..=1.0).contains(&share), "{part}: {share}");
        if parts.last().is_none_or(|last| last != part) {
            parts.push(part.to_owned());
        }
    });
    (report.unwrap(), parts)
}

/// The figures that do not depend on the machine.
fn figures(report: &Report) -> Vec<(String, f64)> {
    let is_of_the_run = |what: &str| what.ends_with("of the run") || what.contains("of the run,");
    let figures = report.figures.iter().filter(|figure| !is_of_the_run(&figure.what));
    figures.map(|figure| (figure.what.clone(), figure.median)).collect()
}

#[test]
fn a_small_network_finds_its_records_whoever_does_harm() {
    let plan = Plan { servers: 100, ..Plan::default().quick() };
    let (report, parts) = simulated(&plan);
    for part in ["arrivals", "idle", "newcomers", "calm", "churn and attacks"] {
        assert!(parts.iter().any(|seen| seen == part), "{part}: {parts:?}");
    }
    let missed: Vec<_> =
        report.figures.iter().filter(|figure| !figure.is_met() && figure.what.contains("found")).collect();
    assert!(missed.is_empty(), "seed {}: {missed:?}", plan.seed);
    let figure = |what: &str| report.figures.iter().find(|figure| figure.what == what).unwrap().median;
    // Nothing is faster than light: without a session an answer takes two round trips, and one with it.
    assert!(
        figure("calm, no session yet: time over the median round trip")
            > figure("calm, warm contacts: time over the median round trip")
    );
    assert!(report.figures.iter().any(|figure| figure.what.contains("half-life as nodes see it")), "churn");
    for part in ["eclipse adversaries", "slow adversaries"] {
        assert!(report.figures.iter().any(|figure| figure.what.starts_with(part)), "{part}");
    }
    assert!(report.svg().contains("stale adversaries") && report.tables().contains("200 nodes, 100 % servers"));
    assert_eq!(serde_json::to_value(&report).unwrap()["plan"]["seed"], plan.seed);
}

#[test]
fn a_seed_gives_one_run() {
    let plan = Plan {
        nodes: 60,
        lookups: 20,
        idle: Duration::from_secs(60),
        adversaries: [sim::Adversary::Lying].into(),
        ..Plan::default().quick()
    };
    let [one, again, other] = [1, 1, 2].map(|seed| figures(&simulated(&Plan { seed, ..plan.clone() }).0));
    assert_eq!(one, again);
    assert_ne!(one, other);
}
