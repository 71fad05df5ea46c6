//! Lanes of two workers each way: in order, lossless, and by ports of their own where these can be reached.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weir_bench::gateway::PORT;
use weir_bench::generator::{Amount, pace};
use weir_bench::pair::{Pair, PairConfig};
use weir_bench::rig::{Family, Host, Rig, RigConfig};
use weir_bench::sink::{Sink, SinkConfig, Tally};
use weir_bench::stream::Stream;

use crate::capture::Capture;
use crate::support::*;

const FLOWS: usize = 8;
/// How long a lane port may take to be found: a probe or two, on a machine that does something else.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// How long one may take to be given up: the longest time between two confirmations, and the wait for three answers.
const LOST_WITHIN: Duration = Duration::from_secs(15);

/// Two workers on each side, with so many lane ports.
fn two_workers(lane_ports: u8) -> PairConfig {
    let settings = vec![("wan.lane_ports".to_owned(), lane_ports.to_string())];
    PairConfig { cores: [vec![0, 1], vec![0, 1]], settings, ..PairConfig::default() }
}

/// Has every interface take in on one core: a veth queues to the core that it is called on, so the kernel alone would reorder.
fn take_in_on_one_core(rig: &Rig) {
    for host in [rig.h1(), rig.g1(), rig.g2(), rig.h2()] {
        let one_core = "for queue in /sys/class/net/*an/queues/rx-*/rps_cpus; do echo 1 > $queue; done";
        output(host, "ip", &["netns", "exec", host.name(), "sh", "-ec", one_core]);
    }
}

/// A paced stream of eight flows from h1 to h2. Returns how many frames went, and what arrived.
fn eight_flows(rig: &Rig, rate_pps: f64, duration: Duration) -> (u64, Tally) {
    let sink = Sink::attach(rig.h2(), "lan", SinkConfig { every_segment: true, pass: false }).unwrap();
    let stream = Stream { flows: FLOWS as u32, ..Stream::new(rig.forward(Family::V4)) };
    let sent = pace(rig.h1(), "lan", &stream, rate_pps, Amount::Duration(duration)).unwrap();
    (sent.frames, sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap())
}

/// A UDP socket of a host.
fn socket(host: &Host, port: u16) -> UdpSocket {
    let at = SocketAddr::new(host.lan.v4.into(), port);
    let socket = host.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    socket
}

/// Sends on eight flows each way until `done`, and returns whether it came true within the limit.
fn with_traffic(rig: &Rig, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let flows = |host: &Host| -> Vec<_> { (0..FLOWS).map(|flow| socket(host, 31_000 + flow as u16)).collect() };
    let ends = [flows(rig.h1()), flows(rig.h2())];
    eventually(limit, || {
        for (from, to) in [(0, 1), (1, 0)] {
            for (from, to) in ends[from].iter().zip(&ends[to]) {
                // Nobody reads them: what a socket does not hold is gone.
                from.send_to(&[7; 32], to.local_addr().unwrap()).unwrap();
            }
        }
        done()
    })
}

/// Asserts that whatever a gateway's workers handed over was taken, and that no worker and no peer lost anything.
#[track_caller]
fn nothing_was_lost_between_workers(pair: &mut Pair<'_>) {
    for side in 0..2 {
        let gateway = pair.side(side);
        let (sent, received) = (count(gateway, "sent_handoffs"), count(gateway, "received_handoffs"));
        assert_eq!(sent, received, "hand-offs of gateway {side}");
        let counters = gateway.counters().unwrap();
        assert_eq!(foreign_drops(&counters), [].into(), "gateway {side}");
        assert!(!counters.engine_drops.iter().any(|drop| drop.name.contains("handoff")), "{counters:?}");
    }
}

#[test]
fn lanes_that_share_a_pair_of_ports_lose_nothing() {
    let _alone = alone();
    // One queue for both workers, so that their datagrams alternate; trains are cut before the wire and merged behind it.
    let rig = Rig::new(RigConfig { queues: 1, ..RigConfig::default() }).unwrap();
    for gateway in [rig.g1(), rig.g2()] {
        gateway.feature("wan", "tx-udp-segmentation", false).unwrap();
        // A veth merges what a socket sent only with both of these, and goes on merging for a while, as a card under load does.
        gateway.feature("wan", "rx-gro", true).unwrap();
        gateway.feature("wan", "rx-udp-gro-forwarding", true).unwrap();
        let hold = "echo 1000000 > /sys/class/net/wan/gro_flush_timeout";
        output(gateway, "ip", &["netns", "exec", gateway.name(), "sh", "-ec", hold]);
    }
    with_pair(&rig, two_workers(0), |pair| {
        let capture = Capture::start(rig.g1(), "wan");
        let (sent, tally) = eight_flows(&rig, 40_000.0, Duration::from_secs(2));
        assert_eq!((tally.datagrams, tally.flows, tally.gaps), (sent, FLOWS as u32, 0));
        let lanes: Vec<_> = capture.stop().iter().filter_map(|f| f.datagram()).map(|(.., h)| h.receiver).collect();
        let changes = lanes.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(changes > lanes.len() / 10, "lanes alternate: {changes} of {}", lanes.len());
        nothing_was_lost_between_workers(pair);
    });
}

/// Numbered datagrams on eight flows to an echo server and back, at most a few of each flow on their way. Returns how many came back.
///
/// Answers reach the first gateway by whichever worker opens the lane, and are written to that worker's queue of the TUN: mostly not the
/// one that the flow's requests come by. Neither direction may be reordered by that.
fn echoes_in_order(rig: &Rig, duration: Duration) -> u64 {
    const AHEAD: u64 = 4;
    let server = socket(rig.h2(), 7007);
    let flows: Vec<_> = (0..FLOWS).map(|flow| socket(rig.h1(), 30_000 + flow as u16)).collect();
    let to = SocketAddr::new(rig.h2().lan.v4.into(), 7007);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut buffer, mut seen) = ([0; 64], [0u64; FLOWS]);
            while !stop.load(Ordering::Relaxed) {
                match server.recv_from(&mut buffer) {
                    Ok((len, from)) => {
                        let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                        let last = &mut seen[usize::from(from.port() - 30_000)];
                        assert!(number > *last, "request {number} of {from} after {last}");
                        *last = number;
                        server.send_to(&buffer[..len], from).unwrap();
                    }
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
                }
            }
        });
        let (start, mut numbers, mut answers) = (Instant::now(), [0u64; FLOWS], 0);
        let mut last = [0u64; FLOWS];
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while start.elapsed() < duration {
                for _ in 0..AHEAD {
                    for (flow, number) in flows.iter().zip(&mut numbers) {
                        *number += 1;
                        let mut datagram = [0; 32];
                        datagram[..8].copy_from_slice(&number.to_be_bytes());
                        flow.send_to(&datagram, to).unwrap();
                    }
                }
                for ((flow, number), last) in flows.iter().zip(&numbers).zip(&mut last) {
                    let mut buffer = [0; 64];
                    while *last < *number && flow.recv(&mut buffer).is_ok() {
                        let answer = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                        assert!(answer > *last, "answer {answer} after {last}");
                        *last = answer;
                        answers += 1;
                    }
                }
            }
        }));
        // The server must stop in any case, or the scope would wait for it for ever.
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        let asked: u64 = numbers.iter().sum();
        assert!(asked - answers <= asked / 1000, "{answers} of {asked} were answered");
        answers
    })
}

/// Two streams of eight flows towards each other, and echoes on eight flows: no datagram overtakes another of its flow.
fn parallel_flows_keep_their_order(lane_ports: u8) {
    let _alone = alone();
    let rig = rig();
    take_in_on_one_core(&rig);
    one_datagram_a_frame([rig.g1(), rig.g2()]);
    with_pair(&rig, two_workers(lane_ports), |pair| {
        if lane_ports > 0 {
            let on = with_traffic(&rig, FOUND_WITHIN, || (0..2).all(|side| session(pair, side).lanes_by_port == 1));
            assert!(on, "{:?}", session(pair, 0));
        }
        let answers = echoes_in_order(&rig, Duration::from_secs(2));
        assert!(answers > 1000, "{answers}");
        let streams = [(rig.h1(), rig.h2(), rig.forward(Family::V4)), (rig.h2(), rig.h1(), rig.backward(Family::V4))];
        let tallies = std::thread::scope(|scope| {
            let run = |(from, to, path)| {
                let (from, to): (&Host, &Host) = (from, to);
                scope.spawn(move || {
                    let sink = Sink::attach(to, "lan", SinkConfig { every_segment: true, pass: false }).unwrap();
                    let stream = Stream { flows: FLOWS as u32, ..Stream::new(path) };
                    pace(from, "lan", &stream, 10_000.0, Amount::Duration(Duration::from_secs(2))).unwrap();
                    sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap()
                })
            };
            streams.map(run).map(|thread| thread.join().unwrap())
        });
        for tally in tallies {
            assert_eq!((tally.flows, tally.reordered), (FLOWS as u32, 0), "{} arrived", tally.datagrams);
        }
        nothing_was_lost_between_workers(pair);
    });
}

#[test]
fn parallel_flows_keep_their_order_both_ways_by_the_common_port() {
    parallel_flows_keep_their_order(0);
}

#[test]
fn parallel_flows_keep_their_order_both_ways_by_lane_ports() {
    parallel_flows_keep_their_order(1);
}

/// How many datagrams on the WAN went to each port, by the worker that opens them: `[[common, lane]; workers]`.
fn by_worker_and_port(capture: Capture) -> [[usize; 2]; 2] {
    let mut counts = [[0; 2]; 2];
    for (_, to, header) in capture.stop().iter().filter_map(|frame| frame.datagram()) {
        counts[usize::from(header.receiver.worker())][usize::from(to - PORT)] += 1;
    }
    counts
}

#[test]
fn lanes_go_by_lane_ports_that_answer_and_by_the_common_port_when_they_stop() {
    let _alone = alone();
    let rig = rig();
    one_datagram_a_frame([rig.g1(), rig.g2()]);
    with_pair(&rig, two_workers(1), |pair| {
        let on = with_traffic(&rig, FOUND_WITHIN, || (0..2).all(|side| session(pair, side).lanes_by_port == 1));
        assert!(on, "{:?}", session(pair, 0));
        let capture = Capture::start(rig.g1(), "wan");
        let (sent, tally) = eight_flows(&rig, 10_000.0, Duration::from_secs(1));
        assert_eq!((tally.datagrams, tally.flows), (sent, FLOWS as u32));
        let [[common, replies], [few, lane]] = by_worker_and_port(capture);
        assert!(common > 100 && lane > 100, "both workers have flows: {common} and {lane}");
        // A reply goes to the port of the worker that asked, by whichever lane; a probe of the path goes by the common port.
        assert!(replies < 5 && few < lane / 10, "{replies}, {few} of {lane}");

        for gateway in [rig.g1(), rig.g2()] {
            for command in [
                "add table inet lanes".to_owned(),
                "add chain inet lanes input { type filter hook input priority 0; }".to_owned(),
                format!("add rule inet lanes input udp dport {} drop", PORT + 1),
            ] {
                output(gateway, "nft", &[&command]);
            }
        }
        let off = with_traffic(&rig, LOST_WITHIN, || (0..2).all(|side| session(pair, side).lanes_by_port == 0));
        assert!(off, "{:?}", session(pair, 0));
        let capture = Capture::start(rig.g1(), "wan");
        let (sent, tally) = eight_flows(&rig, 10_000.0, Duration::from_secs(1));
        assert_eq!((tally.datagrams, tally.flows), (sent, FLOWS as u32));
        let [[_, replies], [common, probes]] = by_worker_and_port(capture);
        assert!(common > 100 && replies + probes < 5, "{replies} {common} {probes}");
        assert!(count(&mut pair.g1, "sent_lane_probes") >= 4);
    });
}

#[test]
fn a_gateway_without_lane_ports_is_reached_by_the_common_port() {
    let _alone = alone();
    let rig = rig();
    let config = PairConfig { cores: [vec![0, 1], vec![0, 1]], ..PairConfig::default() };
    with_pair(&rig, config, |pair| {
        let (sent, tally) = eight_flows(&rig, 5_000.0, Duration::from_secs(1));
        assert_eq!(tally.datagrams, sent);
        assert_eq!((session(pair, 0).lanes_by_port, count(&mut pair.g1, "sent_lane_probes")), (0, 0));
    });
}
