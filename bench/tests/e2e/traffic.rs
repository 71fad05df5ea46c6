//! What works: every attach mode, both ports, both families, in order.

use std::collections::HashMap;
use std::time::Duration;

use weir_bench::external::{ping, tcp_transfer};
use weir_bench::generator::{Amount, pace};
use weir_bench::pair::{Pair, PairConfig};
use weir_bench::rig::{Family, Rig};
use weir_bench::sink::{Sink, SinkConfig};
use weir_bench::stream::Stream;
use weir_dataplane::config::{Attach, WanIo};

use crate::capture::{Capture, only_ours};
use crate::support::*;

/// Sixteen bytes that ping fills its requests with, and that nobody else says.
const PATTERN: [u8; 16] = *b"weir-in-the-open";

fn ping_with_pattern(rig: &Rig, family: Family) {
    let pattern: String = PATTERN.iter().map(|byte| format!("{byte:02x}")).collect();
    let to = rig.h2().lan.address(family).to_string();
    let text = output(rig.h1(), "ping", &["-n", "-q", "-i", "0.01", "-c", "21", "-W", "2", "-p", &pattern, &to]);
    // The last answer may come after ping has stopped to wait for it.
    assert!(text.contains(" 21 received") || text.contains(" 20 received"), "{text}");
}

/// Ping, TCP and an echo over a pair, with a capture on the WAN beside it.
fn traffic_crosses(config: PairConfig, mode: &str, port: &str) {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, config, |pair| {
        let capture = Capture::start(rig.g1(), "wan");
        let inside = Capture::start(rig.h2(), "lan");
        for family in [Family::V4, Family::V6] {
            ping_with_pattern(&rig, family);
        }
        // The pattern is looked for where it must be found, too.
        let inside = inside.stop();
        let found = inside.iter().filter(|frame| frame.contains(&PATTERN)).count();
        assert!(found >= 80, "{found} of {} frames", inside.len());
        for family in [Family::V4, Family::V6] {
            let (h1, h2) = (rig.h1(), rig.h2());
            let transfer = tcp_transfer(h1, h2, h2.lan.address(family), Duration::from_secs(1)).unwrap();
            assert!(transfer.gbps > 0.05, "{family}: {transfer:?}");
        }
        assert!(pair.echo().unwrap() < Duration::from_millis(500));
        let frames = capture.stop();
        let headers = only_ours(&rig, &frames);
        assert!(headers.len() > 80, "{} datagrams", headers.len());
        assert!(!frames.iter().any(|frame| frame.contains(&PATTERN)), "a ping crossed the WAN in clear");
        check_both(pair, mode, port);
    });
}

fn check_both(pair: &mut Pair<'_>, mode: &str, port: &str) {
    for side in 0..2 {
        let gateway = pair.side(side);
        assert_no_io_worker(gateway);
        let facts = gateway.facts().unwrap();
        let fact = |name: &str| facts.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value);
        assert!(fact("wan on wan").starts_with(mode), "{facts:?}");
        assert!(fact("ports").starts_with(port), "{facts:?}");
        for name in ["sealed_datagrams", "opened_datagrams", "lan_to_wan_packets", "wan_to_lan_packets"] {
            assert!(count(gateway, name) > 80, "{name} of gateway {side}");
        }
        if mode.starts_with("nothing") {
            assert_eq!(count(gateway, "wan_deliver"), 0);
        } else {
            assert!(count(gateway, "wan_deliver") > 80);
        }
        assert!(count(gateway, "steer_worker") > 80);
        let drops = foreign_drops(&gateway.counters().unwrap());
        assert!(drops.is_empty(), "gateway {side} dropped {drops:?}");
    }
}

#[test]
fn traffic_crosses_with_wan_in_the_driver() {
    traffic_crosses(
        PairConfig { attach: Attach::Native, ..PairConfig::default() },
        "xdp-native",
        "udp+tun over io_uring",
    );
}

#[test]
fn traffic_crosses_with_wan_in_the_stack() {
    traffic_crosses(
        PairConfig { attach: Attach::Generic, ..PairConfig::default() },
        "xdp-generic",
        "udp+tun over io_uring",
    );
}

#[test]
fn traffic_crosses_with_wan_at_tc_ingress() {
    traffic_crosses(PairConfig { attach: Attach::Tc, ..PairConfig::default() }, "tc", "udp+tun over io_uring");
}

#[test]
fn traffic_crosses_without_wan() {
    traffic_crosses(
        PairConfig { attach: Attach::None, ..PairConfig::default() },
        "nothing attached",
        "udp+tun over io_uring",
    );
}

#[test]
fn traffic_crosses_by_plain_system_calls() {
    traffic_crosses(PairConfig { io: WanIo::Mmsg, ..PairConfig::default() }, "tc", "udp+tun over recvmmsg");
}

#[test]
fn traffic_crosses_an_ipv6_underlay() {
    traffic_crosses(PairConfig { underlay: Family::V6, ..PairConfig::default() }, "tc", "udp+tun over io_uring");
}

#[test]
fn traffic_crosses_with_one_worker_against_two() {
    traffic_crosses(
        PairConfig { cores: [vec![0], vec![0, 1]], ..PairConfig::default() },
        "tc",
        "udp+tun over io_uring",
    );
}

#[test]
fn the_gateways_reach_each_other_and_the_hosts_by_their_overlay_addresses() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |_| {
        for (from, to) in
            [(rig.g1(), "10.200.0.2"), (rig.h1(), "10.200.0.2"), (rig.g2(), "fd00:c8::1"), (rig.h2(), "fd00:c8::1")]
        {
            answered(from, to.parse().unwrap(), 5);
        }
    });
}

/// A paced stream faster than a token bucket lets through: the socket pushes back all the time, and nothing may overtake.
///
/// The bucket is emptied by whichever core has the time, and a veth queues to the core that it is called on: the kernel alone would
/// reorder. So g2 takes everything in on one core, and the capture shows the order in which g1 sent, before any of that.
fn order_holds_under_back_pressure(io: WanIo) {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig { io, ..PairConfig::default() }, |pair| {
        let wan = rig.g1();
        let one_core = "for queue in /sys/class/net/wan/queues/rx-*/rps_cpus; do echo 1 > $queue; done";
        output(wan, "ip", &["netns", "exec", rig.g2().name(), "sh", "-ec", one_core]);
        one_datagram_a_frame([rig.g1(), rig.g2()]);
        let capture = Capture::start(wan, "wan");
        output(
            wan,
            "tc",
            &"qdisc add dev wan root tbf rate 20mbit burst 64kb latency 20ms".split(' ').collect::<Vec<_>>(),
        );
        let sink = Sink::attach(rig.h2(), "lan", SinkConfig { every_segment: true, pass: false }).unwrap();
        let stream = Stream { flows: 8, ..Stream::new(rig.forward(Family::V4)) };
        let sent = pace(rig.h1(), "lan", &stream, 80_000.0, Amount::Duration(Duration::from_secs(2))).unwrap();
        let tally = sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap();
        assert!(tally.datagrams > 1000, "{tally:?}");
        assert!(
            tally.datagrams < sent.frames * 9 / 10,
            "the bucket held nothing back: {} of {}",
            tally.datagrams,
            sent.frames
        );
        assert_eq!(tally.reordered, 0, "{} of {} arrived", tally.datagrams, sent.frames);
        assert_eq!(tally.flows, 8);
        let mut next: HashMap<u32, u64> = HashMap::new();
        for (_, header) in only_ours(&rig, &capture.stop()) {
            let next = next.entry(header.receiver.0).or_default();
            assert!(header.counter >= *next, "{header:?} was overtaken by {}", *next - 1);
            *next = header.counter + 1;
        }
        assert!(!next.is_empty());
        assert_no_io_worker(&pair.g1);
        output(wan, "tc", &["qdisc", "del", "dev", "wan", "root"]);
        // What waited has gone; the session is as good as before.
        answered(rig.h1(), rig.h2().lan.v4.into(), 10);
    });
}

#[test]
fn order_holds_under_back_pressure_with_io_uring() {
    order_holds_under_back_pressure(WanIo::Uring);
}

#[test]
fn order_holds_under_back_pressure_with_plain_system_calls() {
    order_holds_under_back_pressure(WanIo::Mmsg);
}

#[test]
fn a_rekey_under_traffic_loses_nothing() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        std::thread::scope(|scope| {
            let pinging = scope.spawn(|| ping(rig.h1(), rig.h2().lan.v4.into(), 200).unwrap());
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(200));
                pair.connect().unwrap();
            }
            let ping = pinging.join().unwrap();
            assert!(ping.received >= 198, "{ping:?}");
        });
    });
}
