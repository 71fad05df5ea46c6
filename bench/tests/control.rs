//! The control plane's measurements against the real kernel: one quick round of each. Needs root, and the built `weir` and `weir-dataplane`.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use weir_bench::control::{self, Part, Plan};

/// Runs one part, and leaves nothing behind. What it measured is not judged: this machine may be busy with other tests.
fn measured(part: Part) -> control::Report {
    let plan = Plan { parts: [part].into(), ..Plan::default() }.quick();
    let mut steps = vec![];
    let report = control::run(&plan, |step| steps.push(step.to_owned())).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert!(!report.figures.is_empty() && report.tables().lines().count() > report.figures.len());
    assert!(steps.iter().any(|step| step.starts_with(&format!("round 1 of 1: {}", part.name()))), "{steps:?}");
    report
}

/// The first figure whose name has these words in it.
fn figure(report: &control::Report, words: &str) -> f64 {
    let found = report.figures.iter().find(|figure| figure.what.contains(words));
    found.unwrap_or_else(|| panic!("{words}: {:?}", report.figures)).median
}

#[test]
fn every_part_measures_real_nodes_and_leaves_nothing_behind() {
    let seen = measured(Part::Handshakes);
    assert!(figure(&seen, "accepted for a second of a core") > 0.0);
    let seen = measured(Part::Outage);
    assert!(figure(&seen, "packets sent") > 1000.0 && figure(&seen, "known again") > 0.0);
    let seen = measured(Part::Changes);
    for change in [
        "nothing changes",
        "g1 renews its certificate",
        "g2 renews its certificate",
        "the issuer gets its next certificate",
        "a root is replaced",
        "another policy",
        "fresh keys, asked for by g1",
        "fresh keys, asked for by g2",
    ] {
        let of = |what: &str| figure(&seen, &format!("{change}: {what}"));
        // Traffic that stops for good beside one of them, as under a policy that lets nothing pass or keys that nobody has, is a problem of
        // the round, of which there is none. This is about what goes on and loses.
        assert!(of("packets sent") > 0.0 && of("packets lost") < of("packets sent") / 2.0, "{change}: {seen:?}");
        assert!(change == "nothing changes" || of("until it was done") > 0.0, "{change}: {seen:?}");
    }
    let seen = measured(Part::Revocation);
    for gateway in 1..=4 {
        assert!(figure(&seen, &format!("last packet that g{gateway} accepted of it")) < 2_000.0, "{seen:?}");
    }
    assert!(figure(&seen, "packets of it accepted before") >= 800.0);
    assert!(figure(&seen, "datagrams of it refused") > 0.0);
    let seen = measured(Part::Memory);
    assert!(figure(&seen, "without peers") > 1000.0);
    let seen = measured(Part::Fleet);
    assert_eq!(figure(&seen, "look-ups of all by all in the DHT that found"), 100.0, "{seen:?}");
    assert!(figure(&seen, "one more has joined") > 0.0);
    let seen = measured(Part::Flood);
    assert!(figure(&seen, "beside a flood: key exchanges tried") >= 2.0);
    assert!(figure(&seen, "spoofed Initials that arrived") > 0.0);
    let seen = measured(Part::FirstPacket);
    // Nothing is faster than light: a packet needs a handshake of one round trip and half of another.
    assert!(figure(&seen, "round trip of 10 ms") >= 15.0, "{seen:?}");

    let own = format!("weir-{}-", std::process::id());
    let left: Vec<_> = fs::read_dir("/run/netns").unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&own)), "{left:?}");
}
