//! The rig, generator and sink against the real kernel. Needs root; each test has namespaces of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weir_bench::external::{ping, tcp_transfer};
use weir_bench::generator::{Amount, Sent, flood, pace, pace_in_turn};
use weir_bench::layout::MAGIC;
use weir_bench::object::Pass;
use weir_bench::pcap;
use weir_bench::rig::{Family, Rig, RigConfig};
use weir_bench::sink::{Report, Sink, SinkConfig};
use weir_bench::stream::{Sizes, Stream, checksums_hold};
use weir_bench::sys::clock::monotonic_ns;
use weir_bench::sys::cpu;

/// Floods and paced runs in parallel would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn plain() -> Rig {
    Rig::new(RigConfig { plain: true, ..RigConfig::default() }).unwrap()
}

fn settled(sink: &Sink) -> weir_bench::sink::Tally {
    sink.settle(Duration::from_millis(100), Duration::from_secs(5)).unwrap()
}

fn names(rig: &Rig) -> Vec<String> {
    rig.hosts().iter().map(|h| format!("/run/netns/{}", h.name())).collect()
}

#[test]
fn plain_rig_forwards_both_families_and_leaves_nothing_behind() {
    let rig = plain();
    for (from, to) in [(rig.h1(), rig.h2()), (rig.h2(), rig.h1())] {
        for family in [Family::V4, Family::V6] {
            let ping = ping(from, to.lan.address(family), 5).unwrap();
            assert_eq!((ping.sent, ping.received), (5, 5), "{family:?}");
        }
    }
    let names = names(&rig);
    assert!(names.iter().all(|n| Path::new(n).exists()));
    drop(rig);
    assert!(names.iter().all(|n| !Path::new(n).exists()));
}

#[test]
fn without_plain_routes_the_lans_do_not_reach_each_other() {
    let rig = Rig::new(RigConfig::default()).unwrap();
    assert_eq!(ping(rig.h1(), rig.h2().lan.v4.into(), 3).unwrap().received, 0);
    assert_eq!(ping(rig.h1(), rig.g1().lan.v4.into(), 3).unwrap().received, 3);
    assert_eq!(ping(rig.g1(), rig.g2().wan.unwrap().v6.into(), 3).unwrap().received, 3);
}

#[test]
fn a_panic_inside_a_namespace_reaches_the_caller_and_the_rig_is_removed() {
    let mut seen = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let rig = Rig::new(RigConfig::default()).unwrap();
        seen = names(&rig);
        rig.g1().enter(|| panic!("on purpose")).unwrap();
    }));
    assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|n| !Path::new(n).exists()));
}

/// Starts the program and waits for the last line that it prints about its rig; returns it with the names of the namespaces.
fn rig_up(args: &[&str]) -> (std::process::Child, Vec<String>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir-bench"))
        .args(["rig", "up"])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut names = Vec::new();
    for line in lines {
        match line.split_once("ip netns exec ") {
            Some((_, rest)) => names.push(format!("/run/netns/{}", rest.trim_end_matches(" bash"))),
            None if line.contains("removes it") => break,
            None => {}
        }
    }
    names.dedup();
    assert_eq!(names.len(), 4);
    (child, names)
}

#[test]
fn a_signal_removes_a_rig() {
    for signal in ["INT", "TERM"] {
        let (mut child, names) = rig_up(&[]);
        assert!(names.iter().all(|n| Path::new(n).exists()));
        assert!(
            Command::new("sh").args(["-c", &format!("kill -s {signal} {}", child.id())]).status().unwrap().success()
        );
        assert_eq!(child.wait().unwrap().code(), Some(if signal == "INT" { 130 } else { 143 }));
        assert!(names.iter().all(|n| !Path::new(n).exists()));
    }
}

#[test]
fn clean_removes_what_a_killed_process_left_and_nothing_else() {
    let living = Rig::new(RigConfig::default()).unwrap();
    let (mut child, killed) = rig_up(&[]);
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, kept) = rig_up(&["--keep"]);
    assert!(child.wait().unwrap().success());
    assert!(killed.iter().chain(&kept).all(|n| Path::new(n).exists()));
    let removed = weir_bench::rig::clean().unwrap();
    assert!(killed.iter().chain(&kept).all(|n| !Path::new(n).exists()));
    assert!(killed.iter().chain(&kept).all(|n| removed.contains(&n.replace("/run/netns/", ""))), "{removed:?}");
    assert!(names(&living).iter().all(|n| Path::new(n).exists()));
}

#[test]
fn mistakes_get_one_line_and_a_failure() {
    for (args, says) in [
        (&["gen", "--to", "10.2.0.2", "-i", "nope", "--netns", "weir-none"][..], "no network namespace weir-none"),
        (&["gen", "--to", "10.2.0.2", "-i", "nope"], "no interface nope"),
        (&["sink", "-i", "nope"], "no interface nope"),
        (&["gen", "--to", "10.2.0.2", "-i", "lo", "--size", "63"], "between 64 and 1518"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_weir-bench")).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(says), "{args:?}: {text}");
    }
}

#[test]
fn links_have_the_mtu_and_queues_asked_for() {
    let rig = Rig::new(RigConfig { lan_mtu: 1400, wan_mtu: 9000, queues: 3, ..RigConfig::default() }).unwrap();
    for (host, name, mtu) in [(rig.h1(), "lan", "1400"), (rig.g1(), "wan", "9000"), (rig.g2(), "wan", "9000")] {
        let output = host.command("ip").args(["-d", "link", "show", name]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("mtu {mtu}")) && text.contains("numrxqueues 3"), "{text}");
    }
}

#[test]
fn resolved_addresses_are_those_of_the_rig() {
    let rig = plain();
    for family in [Family::V4, Family::V6] {
        let expected = rig.forward(family);
        assert_eq!(rig.h1().resolve("lan", expected.destination).unwrap(), expected);
    }
    let error = rig.h1().resolve("nope", rig.h2().lan.v4.into()).unwrap_err().to_string();
    assert!(error.contains("no interface nope"), "{error}");
}

/// Frames are forwarded on the generator's core. If the scheduler moved it to another in the middle, what waited on the first would come
/// late, and nothing but the scheduler would be at fault. A thread of its own, so that no later test inherits the core.
fn flood_on_one_core(rig: &Rig, stream: &Stream, frames: u64) -> Sent {
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            cpu::pin(cpu::allowed().unwrap()[0]).unwrap();
            flood(rig.h1(), "lan", stream, Amount::Frames(frames)).unwrap()
        });
        generator.join().unwrap()
    })
}

#[test]
fn a_flood_is_accounted_for_frame_by_frame() {
    let _alone = alone();
    let rig = plain();
    for (family, sizes, flows) in [(Family::V4, Sizes::Fixed(64), 100), (Family::V6, Sizes::Imix, 7)] {
        let mut sink = Sink::attach(rig.h2(), "lan", SinkConfig::default()).unwrap();
        let stream = Stream { flows, sizes, ..Stream::new(rig.forward(family)) };
        let sent = flood_on_one_core(&rig, &stream, 1_000_000);
        assert_eq!(sent.frames, 1_000_000);
        let tally = settled(&sink);
        let report = Report::new(&sent, &tally);
        assert_eq!(report.received + report.lost, 1_000_000);
        assert_eq!(tally.flows, flows);
        assert_eq!(tally.reordered, 0);
        assert!(tally.datagrams > 100_000, "{report:?}");
        // Seen from the receiver alone: what is missing lies below the highest sequence of its flow, but for the tail of each.
        let tail = 1_000_000 - tally.datagrams - tally.gaps;
        assert!(tally.gaps <= report.lost && tail < 100_000, "{tally:?}");
        assert_eq!(tally.latency.total(), tally.skbs);
        sink.reset().unwrap();
        assert_eq!(sink.read().unwrap().datagrams, 0);
    }
}

/// At the first hop, before a router trims what follows the IP packet.
#[test]
fn both_generators_send_frames_of_exactly_their_size() {
    let _alone = alone();
    let rig = plain();
    let mut sink = Sink::attach(rig.g1(), "lan", SinkConfig::default()).unwrap();
    for family in [Family::V4, Family::V6] {
        for sizes in [Sizes::Fixed(64), Sizes::Imix, Sizes::Fixed(1518)] {
            let stream = Stream { flows: 2, sizes, ..Stream::new(rig.forward(family)) };
            let frames = stream.compile().unwrap();
            let bytes: usize = (0..48).map(|n| frames.frame(n, 0).len()).sum();
            for paced in [false, true] {
                let amount = Amount::Frames(48);
                let sent = match paced {
                    true => pace(rig.h1(), "lan", &stream, 10_000.0, amount),
                    false => flood(rig.h1(), "lan", &stream, amount),
                };
                let tally = settled(&sink);
                assert_eq!((tally.datagrams, tally.bytes), (48, bytes as u64), "{family:?} {sizes} {paced}");
                assert_eq!(sent.unwrap().bytes, bytes as u64);
                sink.reset().unwrap();
            }
        }
    }
}

#[test]
fn udp_gro_forwarding_merges_and_segments_are_counted() {
    let _alone = alone();
    let rig = Rig::new(RigConfig { plain: true, udp_gro_forwarding: true, ..RigConfig::default() }).unwrap();
    for every_segment in [false, true] {
        let sink = Sink::attach(rig.h2(), "lan", SinkConfig { every_segment, pass: false }).unwrap();
        let stream = Stream { sizes: Sizes::Fixed(128), ..Stream::new(rig.forward(Family::V4)) };
        let sent = flood(rig.h1(), "lan", &stream, Amount::Frames(1_000_000)).unwrap();
        let tally = settled(&sink);
        let report = Report::new(&sent, &tally);
        assert!(report.merge > 4.0, "{report:?}");
        assert!(tally.datagrams > 100_000 && tally.datagrams <= 1_000_000, "{report:?}");
        // Frames of one size, so the bytes must come out as if they had never been merged.
        assert_eq!(tally.bytes, tally.datagrams * 124);
        assert_eq!(tally.latency.total(), if every_segment { tally.datagrams } else { tally.skbs });
    }
}

#[test]
fn a_paced_stream_arrives_whole_and_in_order() {
    let _alone = alone();
    let rig = plain();
    for family in [Family::V4, Family::V6] {
        let sink = Sink::attach(rig.h2(), "lan", SinkConfig::default()).unwrap();
        let stream = Stream { flows: 16, sizes: Sizes::Imix, ..Stream::new(rig.forward(family)) };
        let sent = pace(rig.h1(), "lan", &stream, 10_000.0, Amount::Duration(Duration::from_secs(1))).unwrap();
        let tally = settled(&sink);
        assert_eq!((sent.frames, tally.datagrams, tally.gaps, tally.reordered), (10_000, 10_000, 0, 0));
        assert_eq!(tally.bytes, sent.bytes);
        assert!((0.99..3.0).contains(&(sent.elapsed_ns as f64 / 1e9)), "{sent:?}");
        assert!((0.9e9..3e9).contains(&(tally.elapsed_ns as f64)), "{tally:?}");
        assert_eq!(tally.latency.total(), 10_000);
    }
}

#[test]
fn streams_take_turns_until_they_are_told_to_stop() {
    let _alone = alone();
    let rig = plain();
    let [first, second] = [7777, 7778].map(|port| {
        let socket = rig.h2().enter(|| UdpSocket::bind((rig.h2().lan.v4, port))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    });
    let stream = |destination_port| Stream { destination_port, ..Stream::new(rig.forward(Family::V4)) };
    let send = |stop| {
        let streams = [stream(7777), stream(7778)];
        pace_in_turn(rig.h1(), "lan", &streams, 1000.0, Amount::Frames(5), &AtomicBool::new(stop)).unwrap().frames
    };
    assert_eq!((send(true), send(false)), (0, 5));
    for (socket, expected) in [(first, 3), (second, 2)] {
        for sequence in 0..expected {
            let mut buffer = [0; 64];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 18);
            assert_eq!(buffer[6..10], u32::to_be_bytes(sequence));
        }
    }
}

/// Sends with both generators to a socket of the kernel, which drops whatever has a wrong checksum.
#[test]
fn a_udp_socket_accepts_the_frames_of_both_generators() {
    let _alone = alone();
    let rig = plain();
    // GRO on the way would leave checksums unlooked at.
    let _pass = Pass::attach(rig.g1(), "lan").unwrap();
    for family in [Family::V4, Family::V6] {
        let socket = rig.h2().enter(|| UdpSocket::bind((rig.h2().lan.address(family), 7777))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        for paced in [false, true] {
            let stream =
                Stream { flows: 3, sizes: Sizes::Imix, destination_port: 7777, ..Stream::new(rig.forward(family)) };
            // Fewer than the default socket buffer holds, since a flood does not wait for the reader.
            let amount = Amount::Frames(36);
            let sent = match paced {
                true => pace(rig.h1(), "lan", &stream, 10_000.0, amount),
                false => flood(rig.h1(), "lan", &stream, amount),
            };
            assert_eq!(sent.unwrap().frames, 36);
            let frames = stream.compile().unwrap();
            let headers = if family == Family::V4 { 42 } else { 62 };
            let mut by_port: HashMap<u16, u32> = HashMap::new();
            for n in 0..36 {
                let mut buffer = [0; 2048];
                let (len, from) =
                    socket.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{family:?} {paced} {n}: {e}"));
                let expected = frames.frame(n, 0);
                assert_eq!(len, expected.len() - headers);
                // All but the time is known beforehand, filler included.
                assert_eq!(buffer[..10], expected[headers..headers + 10]);
                assert_eq!(buffer[18..len], expected[headers + 18..]);
                *by_port.entry(from.port()).or_default() += 1;
            }
            assert_eq!(by_port, HashMap::from([(20_000, 12), (20_001, 12), (20_002, 12)]));
        }
    }
}

#[test]
fn the_sink_lets_go_on_what_is_not_stamped_and_when_told_what_is() {
    let _alone = alone();
    let rig = plain();
    let sink = Sink::attach(rig.h2(), "lan", SinkConfig { pass: true, every_segment: false }).unwrap();
    assert_eq!(ping(rig.h1(), rig.h2().lan.v4.into(), 3).unwrap().received, 3);
    let socket = rig.h2().enter(|| UdpSocket::bind((rig.h2().lan.v4, 7777))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let stream = Stream { destination_port: 7777, ..Stream::new(rig.forward(Family::V4)) };
    pace(rig.h1(), "lan", &stream, 1000.0, Amount::Frames(1)).unwrap();
    assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 18);
    let tally = sink.read().unwrap();
    assert_eq!(tally.datagrams, 1);
    assert!(tally.others >= 3);
}

/// Stamps written by hand, so that what the sink must find is known.
#[test]
fn the_sink_tells_gaps_late_datagrams_and_latency() {
    let rig = plain();
    for family in [Family::V4, Family::V6] {
        let sink = Sink::attach(rig.h2(), "lan", SinkConfig::default()).unwrap();
        let (from, to) = (rig.h1().lan.address(family), rig.h2().lan.address(family));
        let socket = rig.h1().enter(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        assert_eq!(sink.read().unwrap().last_ns, 0);
        let began_ns = monotonic_ns();
        let send = |magic: u32, flow: u16, sequence: u32, age_ns: u64| {
            let mut payload = magic.to_be_bytes().to_vec();
            payload.extend(flow.to_be_bytes());
            payload.extend(sequence.to_be_bytes());
            payload.extend((monotonic_ns() - age_ns).to_be_bytes());
            socket.send_to(&payload, (to, 9)).unwrap();
        };
        // Flow 0: 2, 3 and 7 are missing, 5 and 1 are late. Flow 65535: whole.
        for sequence in [0, 4, 6, 5, 8, 1] {
            send(MAGIC, 0, sequence, 2_000_000);
        }
        for sequence in 0..3 {
            send(MAGIC, u16::MAX, sequence, 2_000_000);
        }
        // Not ours: another magic, and a payload one byte too short for a stamp.
        send(MAGIC + 1, 0, 100, 0);
        socket.send_to(&MAGIC.to_be_bytes().repeat(5)[..17], (to, 9)).unwrap();
        let tally = settled(&sink);
        assert_eq!((tally.datagrams, tally.gaps, tally.reordered, tally.flows), (9, 3, 2, 2), "{tally:?}");
        assert!((began_ns..=monotonic_ns()).contains(&tally.last_ns), "{tally:?} since {began_ns}");
        let p50 = tally.latency.quantile(0.5).unwrap();
        assert!((2_000_000..100_000_000).contains(&p50), "{p50}");
    }
}

#[test]
fn tcp_and_its_refusal_are_measured_by_iperf3() {
    let _alone = alone();
    let rig = plain();
    for family in [Family::V4, Family::V6] {
        let address = rig.h2().lan.address(family);
        let transfer = tcp_transfer(rig.h1(), rig.h2(), address, Duration::from_secs(1)).unwrap();
        assert!(transfer.gbps > 0.1, "{transfer:?}");
    }
    let nobody = "10.2.0.77".parse().unwrap();
    let error = tcp_transfer(rig.h1(), rig.h2(), nobody, Duration::from_secs(1)).unwrap_err().to_string();
    assert!(error.starts_with("iperf3 failed:"), "{error}");
}

#[test]
fn a_pcap_holds_the_stream_and_tcpdump_reads_it() {
    let rig = plain();
    let stream = Stream { flows: 5, sizes: Sizes::Imix, ..Stream::new(rig.forward(Family::V4)) };
    let frames = stream.compile().unwrap();
    let mut bytes = Vec::new();
    pcap::write(&frames, 24, 1000.0, &mut bytes).unwrap();
    let mut rest = &bytes[24..];
    for n in 0..24 {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (0, n as u32 * 1000));
        let len = word(8) as usize;
        let frame = &rest[16..16 + len];
        assert_eq!(frame, frames.frame(n, n * 1_000_000));
        assert!(checksums_hold(frame));
        rest = &rest[16 + len..];
    }
    assert!(rest.is_empty());
    let file = std::env::temp_dir().join(format!("weir-bench-{}.pcap", std::process::id()));
    std::fs::write(&file, &bytes).unwrap();
    let output = Command::new("tcpdump").args(["-nn", "-vv", "-r"]).arg(&file).output();
    std::fs::remove_file(&file).unwrap();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert_eq!(text.matches("[udp sum ok]").count(), 24, "{text}");
    assert!(text.contains("10.1.0.2.20004 > 10.2.0.2.9") && !text.contains("bad"), "{text}");
}
