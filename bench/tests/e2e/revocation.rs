//! Five whole gateways, of which four cut the fifth off while it goes on sending.
//!
//! ```text
//!   h5 ── g5 ══ g1 … g4 ── h1 … h4 (sinks)      g5's control plane stands still: it hears nothing, and its packet plane goes on sealing
//! ```

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use weir_bench::control::StopOnDrop;
use weir_bench::external::ping;
use weir_bench::generator::{Amount, pace_in_turn};
use weir_bench::member::{Member, Part};
use weir_bench::network::found;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_bench::sink::{Sink, SinkConfig};
use weir_bench::stream::Stream;
use weir_bench::sys::clock::monotonic_ns;

use crate::support::{alone, answered, eventually};

/// Frames a second of h5 to all others together.
const RATE_PPS: f64 = 2_000.0;
/// Frames that every host has had before the revocation.
const BEFORE: u64 = 100;
/// Datagrams that come to every gateway after it, to be refused.
const MORE: u64 = 500;
/// What the slowest machine is allowed; `weir-bench control --parts revocation` says what it takes.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);

fn each_other(sites: &[Site]) -> impl Iterator<Item = (&Site, &Site)> {
    sites.iter().flat_map(move |from| sites.iter().map(move |to| (from, to))).filter(|(a, b)| a.number != b.number)
}

#[test]
fn four_gateways_take_nothing_more_of_a_revoked_fifth_that_goes_on_sending() {
    let _alone = alone();
    let mesh = Mesh::new(5).unwrap();
    let members = found(&mesh).expect("a network of five sites");
    for (from, to) in each_other(mesh.sites()) {
        answered(&from.host, to.host.lan.address(Family::V4), 3);
    }
    let (fifth, others) = members.split_last().unwrap();
    let sinks: Vec<_> =
        others.iter().map(|other| Sink::attach(&other.site().host, "lan", SinkConfig::default()).unwrap()).collect();
    let streams: Vec<_> =
        others.iter().map(|other| Stream::new(fifth.site().path_to(other.site(), Family::V4))).collect();
    let stop = AtomicBool::new(false);
    let amount = Amount::Duration(PATIENCE * 4);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| pace_in_turn(&fifth.site().host, "lan", &streams, RATE_PPS, amount, &stop).unwrap());
        let arrives = || sinks.iter().all(|sink| sink.datagrams().unwrap() >= BEFORE);
        assert!(eventually(PATIENCE, arrives), "{}", fifth.log());

        let held = fifth.hold_part(Part::Control).unwrap();
        let (called, called_ns) = (Instant::now(), monotonic_ns());
        members[0].weir(&["revoke", "site-5", "--reason", "stolen"]).expect("revoked");
        for other in others {
            let is_cut_off = |other: &Member<'_>| other.weir(&["status"]).unwrap()["peers_connected"] == 3;
            other.wait_for("the end of the session with site-5", is_cut_off).unwrap();
            assert!(called.elapsed() < STOPPED_WITHIN, "g{}: {}", other.site().number, other.log());
        }
        let accepted: Vec<_> =
            sinks.iter().map(|sink| sink.quiesce(Duration::from_millis(200), STOPPED_WITHIN).unwrap()).collect();
        // What it refuses is data without keys.
        let refused = |other: &Member<'_>| other.counted_without_keys().unwrap();
        let came = || others.iter().zip(&sinks).map(|(other, sink)| refused(other) + sink.datagrams().unwrap());
        let before: Vec<_> = came().collect();
        let comes_on = || came().zip(&before).all(|(came, before)| came >= before + MORE);
        assert!(eventually(PATIENCE, comes_on), "g5 goes on sending: {}", fifth.log());
        for ((other, sink), accepted) in others.iter().zip(&sinks).zip(accepted) {
            let (tally, number) = (sink.read().unwrap(), other.site().number);
            assert_eq!(tally.datagrams, accepted, "g{number} took more of it: {}", other.log());
            let last = Duration::from_nanos(tally.last_ns.saturating_sub(called_ns));
            assert!(last < STOPPED_WITHIN, "g{number} took the last of it {last:?} after");
        }
        drop(held);
    });
    drop(sinks);
    for other in others {
        let seen = ping(&other.site().host, fifth.site().host.lan.address(Family::V4), 5).unwrap();
        assert_eq!(seen.received, 0, "g{} still sends to it", other.site().number);
    }
    for (from, to) in each_other(&mesh.sites()[..4]) {
        answered(&from.host, to.host.lan.address(Family::V4), 5);
    }
}
