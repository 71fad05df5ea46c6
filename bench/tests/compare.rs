//! A comparison against the real kernel: one quick round. Needs root and the built `weir-dataplane`.

use std::fs;

use weir_bench::compare::metric::{Measure, Metric, Quantile};
use weir_bench::compare::subject::Subject;
use weir_bench::compare::{self, Plan};
use weir_bench::stream::Sizes;

#[test]
fn a_quick_round_measures_every_subject_and_leaves_nothing_behind() {
    let names = ["plain", "splice", "weir-auto"].map(str::to_owned);
    let subjects = Subject::choose(&names).unwrap();
    let measures = [Measure::Idle, Measure::Rtt, Measure::Udp, Measure::Ndr, Measure::Wire];
    let plan = Plan { measures: measures.into(), ..Plan::default() }.quick();
    let mut steps = vec![];
    let report = compare::run(&plan, &subjects, |step| steps.push(step.to_owned())).unwrap();

    assert_eq!(report.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), names);
    let sizes = Sizes::Fixed(64);
    for entry in &report.entries {
        assert!(entry.problems.is_empty() && entry.skipped.is_none(), "{entry:?}");
        let rates = [Metric::Saturated { sizes, flows: 1 }, Metric::RttIdle(Quantile::P50), Metric::Sends(sizes)];
        for metric in rates {
            assert!(entry.median(metric).is_some_and(|value| value > 0.0), "{} {metric}", entry.name);
        }
        // Nobody sends less than it carries, and plain forwarding exactly that.
        let ratio = entry.median(Metric::WireBytes(sizes)).unwrap();
        assert!(if entry.name == "plain" { (0.99..1.01).contains(&ratio) } else { ratio > 1.05 }, "{ratio}");
    }
    assert!(report.median("weir-auto", Metric::Memory).is_some_and(|megabytes| megabytes > 1.0));
    assert!(!report.targets.is_empty() && steps.iter().any(|step| step.contains("(3 of 3, about ")), "{steps:?}");

    let own = format!("weir-{}-", std::process::id());
    let left: Vec<_> = fs::read_dir("/run/netns").unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&own)), "{left:?}");
}
