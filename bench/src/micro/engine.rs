//! What the engine costs without I/O: from inner packets to sealed trains and back, over plain memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_dataplane::api::{PolicyRule, Protocol};
use weir_dataplane::engine::Command;
use weir_dataplane::engine::lpm::Lpm;
use weir_dataplane::engine::policy::Policy;
use weir_dataplane::engine::policy::flows::{FLOWS_MAX, Flows, HashKeys};
use weir_dataplane::engine::port::{BURST_LEN, Offload, RxMeta, Segmentation};
use weir_dataplane::engine::snapshot::{NextHop, SessionSlot, Snapshot};

use super::planes::{Frames, START, Sink, packet, packet_to, pair};
use super::{Subject, lookup};

const BURSTS: usize = 200;
/// IPv4 and TCP without options.
const HEADERS_LEN: usize = 40;
/// Payload of a segment that makes a packet of 1400 bytes.
const SEGMENT_LEN: usize = 1360;
/// Segments of a superpacket: all that fit an IPv4 length.
const SEGMENTS: usize = (65_535 - HEADERS_LEN) / SEGMENT_LEN;

/// Names of the figures that ratios are made of.
pub(super) const SEAL_WHOLE: &str = "encapsulate a packet of 1400 B in a burst of 64";
pub(super) const SEAL_CUT: &str = "encapsulate a packet of 1400 B out of a TCP superpacket";

/// Both directions of a burst of `burst` packets of `len` bytes, all of one flow, with a policy to pass or without; the time of sealing and of opening one packet, in nanoseconds.
fn round(burst: usize, len: usize, policy: bool) -> (f64, f64) {
    let Some([mut ones, mut twos]) = pair(1) else { return (f64::NAN, f64::NAN) };
    let (one, two) = (&mut ones[0], &mut twos[0]);
    if policy {
        let Some(policy) = one_allowed() else { return (f64::NAN, f64::NAN) };
        one.command(Command::Policy(Some(Arc::clone(&policy))), START);
        two.command(Command::Policy(Some(policy)), START);
    }
    let mut lan = Frames(vec![(packet(len), RxMeta::default()); burst]);
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    let [mut wan, mut errors, mut out, mut answers] = [true, false, false, false].map(Sink::new);
    for _ in 0..BURSTS {
        let start = Instant::now();
        one.encapsulate(START, &mut lan, &mut wan, &mut errors);
        sealing += start.elapsed();
        let mut datagrams = wan.take();
        let start = Instant::now();
        two.decapsulate(START, &mut datagrams, &mut out, &mut answers);
        opening += start.elapsed();
    }
    // A figure for packets that did not arrive would be no figure.
    if out.frames != (BURSTS * burst) as u64 {
        return (f64::NAN, f64::NAN);
    }
    let packets = (BURSTS * burst) as f64;
    (sealing.as_nanos() as f64 / packets, opening.as_nanos() as f64 / packets)
}

/// Packets of 64 bytes for places at random among 100,000 networks, all behind one peer; nanoseconds to seal one.
fn scattered_round() -> f64 {
    let Some([mut ones, _]) = pair(1) else { return f64::NAN };
    let routes = lookup::routes_v4();
    let Ok(local) = "10.1.0.0/16".parse() else { return f64::NAN };
    let behind = routes.prefixes.into_iter().map(|prefix| (prefix, NextHop::Session(SessionSlot(0))));
    let Ok(routes_of_all) = Lpm::build(behind.chain([(local, NextHop::Local)])) else { return f64::NAN };
    let snapshot = Snapshot { routes: routes_of_all, ..Snapshot::empty() };
    ones[0].command(Command::Routes(Arc::new(snapshot)), START);
    let mut sealing = Duration::ZERO;
    let (mut packets, mut offered) = (0, 0);
    let [mut wan, mut errors] = [false; 2].map(Sink::new);
    for destinations in routes.destinations.chunks_exact(BURST_LEN).take(5 * BURSTS) {
        // A few of the networks are no places that a router sends packets to.
        let frames = destinations.iter().filter_map(|destination| packet_to(*destination, 64));
        let mut lan = Frames(frames.map(|packet| (packet, RxMeta::default())).collect());
        offered += lan.0.len() as u64;
        let start = Instant::now();
        ones[0].encapsulate(START, &mut lan, &mut wan, &mut errors);
        sealing += start.elapsed();
        packets = wan.bytes / 64;
    }
    // A figure for packets that were dropped would be no figure.
    if packets < offered * 9 / 10 {
        return f64::NAN;
    }
    sealing.as_nanos() as f64 / offered as f64
}

/// A policy that lets the packets pass that are measured.
fn one_allowed() -> Option<Arc<Policy>> {
    let rule = PolicyRule {
        sources: vec!["10.1.0.0/16".parse().ok()?],
        destinations: vec!["10.2.0.0/16".parse().ok()?],
        protocol: Protocol::Any,
        ports: vec![],
        allow: true,
    };
    let keys =
        HashKeys(std::array::from_fn(|i| (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)));
    Policy::new(&[rule], false, 1, Arc::new(Flows::new(FLOWS_MAX, keys)), 1).ok().map(Arc::new)
}

/// A superpacket of TCP as the kernel reads it from a TUN: cut, summed, sealed, and opened again; nanoseconds to seal one segment. Not a
/// number while the engine leaves superpackets whole.
fn superpacket_round() -> f64 {
    let Some([mut ones, mut twos]) = pair(1) else { return f64::NAN };
    let mut lan = Frames(vec![superpacket()]);
    let mut sealing = Duration::ZERO;
    let [mut wan, mut errors, mut out, mut answers] = [true, false, false, false].map(Sink::new);
    for _ in 0..BURSTS {
        let start = Instant::now();
        ones[0].encapsulate(START, &mut lan, &mut wan, &mut errors);
        sealing += start.elapsed();
        let mut datagrams = wan.take();
        twos[0].decapsulate(START, &mut datagrams, &mut out, &mut answers);
    }
    if out.bytes < (BURSTS * SEGMENTS * SEGMENT_LEN) as u64 {
        return f64::NAN;
    }
    sealing.as_nanos() as f64 / (BURSTS * SEGMENTS) as f64
}

/// Segments of 1400 bytes with their headers.
fn superpacket() -> (Vec<u8>, RxMeta) {
    const TCP: u8 = 6;
    let mut bytes = packet(HEADERS_LEN + SEGMENTS * SEGMENT_LEN);
    bytes[9] = TCP;
    bytes[10..12].fill(0);
    let checksum = weir_dataplane::engine::icmp::checksum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    // Data offset of 20 bytes, ACK set (RFC 9293 §3.1); the checksum is left to the engine.
    bytes[32..34].copy_from_slice(&[0x50, 0x10]);
    let offload =
        Offload { cut: Some((Segmentation::Tcp { cwr: false }, SEGMENT_LEN as u16)), checksum: Some((20, 16)) };
    (bytes, RxMeta { offload, ..RxMeta::default() })
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    for (burst, len, target, policy) in [
        (1, 64, Some(250.0), false),
        (BURST_LEN, 64, Some(60.0), false),
        (BURST_LEN, 64, None, true),
        (BURST_LEN, 1400, None, false),
    ] {
        let what = format!("a packet of {len} B in a burst of {burst}{}", if policy { ", by policy" } else { "" });
        let subject = |what, opening: bool| {
            let measure = move || {
                let (sealing, opening_time) = round(burst, len, policy);
                if opening { opening_time } else { sealing }
            };
            let subject = Subject::measured(what, measure);
            match target {
                Some(target) => subject.at_most(target),
                None => subject,
            }
        };
        subjects.push(subject(format!("encapsulate {what}"), false));
        subjects.push(subject(format!("decapsulate {what}"), true));
    }
    let scattered = "encapsulate a packet of 64 B in a burst of 64, to 64 of 100,000 networks";
    subjects.push(Subject::measured(scattered, scattered_round));
    subjects.push(Subject::measured(SEAL_CUT, superpacket_round));
    subjects
}
