//! A bad network between the gateways: loss, duplicates, reordering, datagrams cut short and flipped bits, in both directions and from a
//! seed. What arrives is whole and comes once, TCP completes, and each datagram that is refused is counted under a reason that fits.

use std::time::{Duration, Instant};

use weir_bench::pair::PairConfig;
use weir_bench::rig::Family;

use crate::support::*;
use crate::transfer::{Arrived, tcp_file, udp_numbers};

/// What faults may be counted under: a flipped bit may stand in any field, and the programs look at some of them first.
const REASONS: [&str; 19] = [
    "wan_unknown_index",
    "wan_truncated",
    "wan_odd_first_byte",
    "wan_malformed",
    "wan_relay_label",
    "wan_source_rate",
    "outer_truncated",
    "outer_type",
    "outer_version",
    "outer_reserved",
    "unknown_index",
    "wrong_generation",
    "auth_failed",
    "replayed",
    "replay_too_old",
    "counter_limit",
    "continuation_orphan",
    "continuation_lost",
    "congestion_unmarkable",
];

/// Of 10,000 datagrams.
const LOSS: u64 = 150;
const DUPLICATION: u64 = 150;
const REORDERING: u64 = 200;
const TRUNCATION: u64 = 20;
const FLIPS: u64 = 50;

const TCP_LEN: usize = 2 << 20;
const DATAGRAMS: u64 = 6000;

fn settings(io: &str, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut settings = vec![("wan.io".to_owned(), format!("\"{io}\"")), ("fault.seed".to_owned(), "42".to_owned())];
    let rates = [
        ("loss", LOSS),
        ("duplication", DUPLICATION),
        ("reordering", REORDERING),
        ("truncation", TRUNCATION),
        ("flips", FLIPS),
    ];
    settings.extend(rates.map(|(name, rate)| (format!("fault.{name}"), rate.to_string())));
    settings.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    settings
}

/// A file by TCP and numbered datagrams by UDP, both families, over a pair with these settings.
fn a_bad_network_corrupts_and_repeats_nothing(underlay: Family, settings: Vec<(String, String)>) {
    let _alone = alone();
    let rig = rig();
    let config = PairConfig { underlay, settings, ..PairConfig::default() };
    with_pair(&rig, config, |pair| {
        let start = Instant::now();
        for side in 0..2 {
            let gateway = pair.side(side);
            let facts = gateway.facts().unwrap();
            assert!(
                facts.iter().any(|(name, text)| name == "fault" && text.contains("never in operation")),
                "{facts:?}"
            );
            assert!(gateway.log().contains("WARN worker 0: A BAD NETWORK ON PURPOSE"), "{}", gateway.log());
        }
        for family in [Family::V4, Family::V6] {
            tcp_file(&rig, family, TCP_LEN);
            // Lengths that neither fill datagrams nor end with them: packets are bundled and cut.
            let Arrived { sent, arrived, again } = udp_numbers(&rig, family, &[700, 1300, 90, 1372, 30], DATAGRAMS);
            assert_eq!(again, 0, "{family}: duplicates were delivered");
            // Both gateways strike, so of 10,000 some 440 datagrams do not arrive or come to no good, and 400 come late. A packet may be in
            // two, and is lost when the second is late: no beginning is waited with.
            assert!(arrived < sent, "{family}: nothing was lost: there was no bad network");
            assert!(arrived > sent * 75 / 100, "{family}: {arrived} of {sent}");
        }
        for side in 0..2 {
            let drops = foreign_drops(&pair.side(side).counters().unwrap());
            assert!(drops.keys().all(|reason| REASONS.contains(&reason.as_str())), "gateway {side}: {drops:?}");
            let sealed = count(pair.side(1 - side), "sealed_datagrams");
            // Struck twice on the way, when sent and when received.
            for (reason, rate) in [("replayed", 2 * DUPLICATION), ("auth_failed", 2 * (FLIPS + TRUNCATION))] {
                let (counted, expected) = (drops.get(reason).copied().unwrap_or(0), sealed * rate / 10_000);
                let bounds = expected / 2 - expected.min(10) / 2..=expected * 3 / 2 + 10;
                assert!(
                    bounds.contains(&counted),
                    "gateway {side}: {reason}: {counted}, of {sealed} {expected} expected"
                );
            }
        }
        // The second gateway received packets in pieces, and lost some of these.
        let drops = foreign_drops(&pair.g2.counters().unwrap());
        let pieces = ["continuation_lost", "continuation_orphan"].map(|reason| drops.get(reason).copied().unwrap_or(0));
        assert!(pieces.iter().sum::<u64>() > 0, "{drops:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    });
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_io_uring() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V4, settings("uring", &[]));
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_io_uring_and_ipv6() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V6, settings("uring", &[]));
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_plain_system_calls() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V4, settings("mmsg", &[]));
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_without_superpackets() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V6, settings("mmsg", &[("tun.offload", "\"off\"")]));
}

/// AF_XDP on the sides named.
fn af_xdp(wan: bool, lan: bool) -> Vec<(&'static str, &'static str)> {
    let halves = [(wan, "wan.rx"), (wan, "wan.tx"), (lan, "lan.rx"), (lan, "lan.tx")];
    halves.into_iter().filter(|(wanted, _)| *wanted).map(|(_, key)| (key, "\"xsk\"")).collect()
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_af_xdp() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V4, settings("uring", &af_xdp(true, true)));
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_af_xdp_on_the_wan() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V6, settings("uring", &af_xdp(true, false)));
}

#[test]
fn a_bad_network_corrupts_and_repeats_nothing_over_af_xdp_on_the_lan() {
    a_bad_network_corrupts_and_repeats_nothing(Family::V4, settings("mmsg", &af_xdp(false, true)));
}
