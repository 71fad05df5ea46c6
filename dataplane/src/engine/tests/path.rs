//! The path MTU: probes among data, what follows from their answers, and the clamp of TCP's segment size.

use std::time::Duration;

use super::rig::*;
use crate::engine::block::Control;
use crate::engine::bundle::DATAGRAM_LEN_MIN;
use crate::engine::inner::testing::{ipv4, ipv6};
use crate::engine::path::SharedPath;
use crate::engine::path_mtu::{ACTIVE_FOR, BASE_LEN};
use crate::engine::session::CONTROL_BLOCKS_MAX;
use crate::engine::wheel::TICK_NS;
use crate::engine::*;

const CEILING: u16 = 1472;

fn shared(m: u8) -> Arc<SharedPath> {
    Arc::new(SharedPath::new(endpoint(m), CEILING, 1440))
}

fn session(gateway: &mut Gateway, m: u8) -> &mut Session {
    gateway.engine.sessions[usize::from(m)].as_mut().unwrap()
}

/// Gateways 1 and 2; the first finds out what its path carries.
fn prober_and_peer() -> (Gateway, Gateway) {
    let (mut one, two) = pair(&Link::default());
    session(&mut one, 2).follow(shared(2));
    (one, two)
}

/// What a worker sends when it is its turn: timers, then what waits.
fn turn(gateway: &mut Gateway, now: Time) -> Sink {
    let mut wan = Sink::new();
    gateway.engine.expire(now);
    gateway.engine.send_waiting(now, &mut wan);
    wan
}

/// Sends `packet` each millisecond from one to two, over a path that carries datagrams of `carries` bytes. Returns what arrived.
fn exchange(
    one: &mut Gateway,
    two: &mut Gateway,
    packet: &[u8],
    carries: u16,
    from: Time,
    millis: u64,
) -> (Vec<Vec<u8>>, Time) {
    let (mut arrived, mut now) = (vec![], from);
    for _ in 0..millis {
        now = now.plus(Duration::from_millis(1));
        let mut datagrams = one.encapsulate(now, Burst::of([packet.to_vec()])).0.datagrams();
        datagrams.extend(turn(one, now).datagrams());
        datagrams.retain(|datagram| datagram.len() <= usize::from(carries));
        let (lan, back) = two.decapsulate(now, Burst::of(datagrams));
        arrived.extend(lan.bytes());
        let (_, more) = one.decapsulate(now, Burst::trains(back));
        let more = more.datagrams().into_iter().filter(|datagram| datagram.len() <= usize::from(carries));
        let (_, back) = two.decapsulate(now, Burst::of(more));
        one.decapsulate(now, Burst::trains(back));
    }
    (arrived, now)
}

#[test]
fn a_session_grows_from_the_base_to_what_the_path_carries_and_tells() {
    for (carries, found, millis) in
        [(CEILING, 1472usize, 100), (1471, 1464, 9_000), (1432, 1432, 9_000), (1000, 997, 25_000)]
    {
        let (mut one, mut two) = prober_and_peer();
        assert_eq!(session(&mut one, 2).payload_len.bytes(), usize::from(BASE_LEN) - 32);
        exchange(&mut one, &mut two, &v4(1, 2, 100, 0), carries, START, millis);
        let session = session(&mut one, 2);
        let (len, mtu) = (session.payload_len.bytes() + 32, session.inner_mtu);
        assert!(len <= usize::from(carries) && len + len / 64 >= found, "{len} of {carries}");
        assert_eq!(mtu, (len as u16 - 32).max(1280));
        let told = format!("PathMtu {{ session: SessionId(258), datagram_len: {len}, inner_mtu: {mtu} }}");
        assert_eq!(one.events().pop(), Some(told));
        assert_eq!(two.dropped(), 0, "a probe is nothing that could be dropped");
    }
}

#[test]
fn a_probe_goes_out_alone_with_exactly_its_size_and_is_answered_without_padding() {
    let (mut one, mut two) = prober_and_peer();
    one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    let now = START.plus(Duration::from_millis(2));
    one.moved();
    let probe = turn(&mut one, now);
    assert_eq!(probe.frames.len(), 1);
    let (bytes, meta) = &probe.frames[0];
    assert_eq!((bytes.len(), meta.segment, meta.destination), (1200, 0, Some(endpoint(2))));
    assert_eq!(one.moved(), [("sealed_datagrams", 1), ("sealed_bytes", 1200), ("sent_trains", 1), ("sent_probes", 1)]);
    let (lan, reply) = two.decapsulate(now, Burst::trains(probe));
    assert_eq!((lan.frames, reply.bytes().iter().map(Vec::len).collect::<Vec<_>>()), (vec![], vec![42]));
    // The answer is followed by the next question at once.
    let (_, next) = one.decapsulate(now, Burst::trains(reply));
    assert_eq!(next.bytes().iter().map(Vec::len).collect::<Vec<_>>(), [usize::from(CEILING)]);
}

#[test]
fn while_a_search_runs_long_packets_are_cut_and_no_host_is_told() {
    let (mut one, mut two) = prober_and_peer();
    let packet = dont_fragment(v4(1, 2, 1440, 0));
    let (wan, lan) = one.encapsulate(START, Burst::of([packet.clone()]));
    assert_eq!(lan.frames, []);
    assert!(wan.datagrams().iter().all(|datagram| datagram.len() <= usize::from(BASE_LEN)));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), [packet]);
}

#[test]
fn after_the_search_hosts_are_told_the_new_inner_mtu_and_ipv4_that_may_be_cut_is_cut() {
    let (mut one, mut two) = prober_and_peer();
    let (_, now) = exchange(&mut one, &mut two, &v4(1, 2, 100, 0), 1372, START, 9_000);
    assert_eq!(session(&mut one, 2).inner_mtu, 1340);
    for (packet, expected) in [(v6(1, 2, 1341, 0), (2, 0, 1340)), (dont_fragment(v4(1, 2, 1341, 0)), (3, 4, 1340))] {
        let (wan, lan) = one.encapsulate(now, Burst::of([packet.clone()]));
        assert_eq!(wan.frames, []);
        assert_eq!(icmp_error(1, 1, &lan.frames[0].0, &packet), expected);
    }
    for packet in [v6(1, 2, 1340, 0), dont_fragment(v4(1, 2, 1340, 0)), v4(1, 2, 1341, 0)] {
        let (wan, lan) = one.encapsulate(now, Burst::of([packet.clone()]));
        assert_eq!(lan.frames, []);
        assert!(wan.datagrams().iter().all(|datagram| datagram.len() <= 1372));
        assert_eq!(two.decapsulate(now, Burst::trains(wan)).0.bytes(), [packet]);
    }
}

#[test]
fn a_peer_is_told_the_inner_mtu_of_the_second_path() {
    let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1, 3]));
    two.route(&[(1, NextHop::Session(slot(1))), (3, NextHop::Session(slot(3)))], true);
    one.route(&[(2, NextHop::Session(slot(2))), (3, NextHop::Session(slot(2)))], false);
    one.install(2, &Link { behind: &[3], ..Link::default() });
    two.install(1, &Link::default());
    two.install(3, &Link::default());
    let mut three = Gateway::new(3, &[2]);
    three.install(2, &Link::default());
    session(&mut two, 3).follow(shared(3));
    let (_, now) = exchange(&mut two, &mut three, &v4(2, 3, 100, 0), 1392, START, 9_000);
    assert_eq!(session(&mut two, 3).inner_mtu, 1360);
    let packet = v6(1, 3, 1361, 0);
    let (wan, _) = one.encapsulate(now, Burst::of([packet.clone()]));
    let (_, back) = two.decapsulate(now, Burst::trains(wan));
    let (lan, _) = one.decapsulate(now, Burst::trains(back));
    assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &with_ttl(packet, 63)), (2, 0, 1360));
}

#[test]
fn a_path_that_becomes_narrower_in_silence_carries_again_within_seconds() {
    let (mut one, mut two) = prober_and_peer();
    let packet = v4(1, 2, 1440, 0);
    let (_, now) = exchange(&mut one, &mut two, &packet, CEILING, START, 1_000);
    let (_, now) = exchange(&mut one, &mut two, &packet, 1372, now, 6_000);
    let (arrived, _) = exchange(&mut one, &mut two, &packet, 1372, now, 5_000);
    assert_eq!(arrived.len(), 5_000);
}

#[test]
fn an_idle_path_has_no_timer_and_no_prober() {
    let (mut one, mut two) = prober_and_peer();
    let before = one.engine.next_deadline();
    let (_, mut now) = exchange(&mut one, &mut two, &v4(1, 2, 100, 0), CEILING, START, 50);
    assert!(one.engine.next_deadline() < before);
    one.moved();
    for _ in 0..100 {
        now = now.plus(ACTIVE_FOR / 10);
        turn(&mut one, now);
    }
    assert_eq!((one.moved(), one.engine.next_deadline()), (vec![], before));
    // Another worker of the gateway is the first to send again.
    let mut other = Gateway::new(1, &[2]);
    other.install(2, &Link::default());
    let shared = session(&mut one, 2).path.as_ref().map(path::Path::share).unwrap();
    session(&mut other, 2).follow(shared);
    assert_eq!(session(&mut other, 2).payload_len.bytes(), usize::from(CEILING) - 32, "it knows already");
    other.encapsulate(now, Burst::of([v4(1, 2, 100, 0)]));
    one.encapsulate(now, Burst::of([v4(1, 2, 100, 0)]));
    assert!(other.engine.next_deadline() < before);
    assert_eq!(one.engine.next_deadline(), before, "one of them is enough");
}

#[test]
fn an_answer_may_come_by_a_worker_that_did_not_ask() {
    let (mut one, mut two) = prober_and_peer();
    let mut other = Gateway::new(1, &[2]);
    other.install(2, &Link::default());
    let shared = session(&mut one, 2).path.as_ref().map(path::Path::share).unwrap();
    session(&mut other, 2).follow(shared);
    one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    let now = START.plus(Duration::from_millis(2));
    let reply = two.decapsulate(now, Burst::trains(turn(&mut one, now))).1;
    assert_eq!(other.decapsulate(now, Burst::trains(reply)).1.frames, [], "it asks nothing itself");
    assert_eq!(other.dropped(), 0);
    // The prober finds it with the next packet, or when it would otherwise have asked again.
    let (wan, _) = one.encapsulate(now, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!(wan.bytes().iter().map(Vec::len).collect::<Vec<_>>(), [132, usize::from(CEILING)]);
    let reply = two.decapsulate(now, Burst::trains(wan)).1;
    other.decapsulate(now, Burst::trains(reply));
    assert_eq!(turn(&mut one, now.plus(Duration::from_millis(210))).frames, []);
    assert_eq!(session(&mut one, 2).payload_len.bytes(), usize::from(CEILING) - 32);
}

#[test]
fn new_keys_keep_what_was_found_and_another_path_does_not() {
    let (mut one, mut two) = prober_and_peer();
    let (_, now) = exchange(&mut one, &mut two, &v4(1, 2, 100, 0), CEILING, START, 50);
    let shared_before = session(&mut one, 2).path.as_ref().map(path::Path::share).unwrap();
    for (path, found) in [(shared_before, CEILING), (shared(2), BASE_LEN)] {
        let link = Link { exchange: EXCHANGE + 1, ..Link::default() };
        let mut session_new = Session::new(
            session_id(1, 2),
            endpoint(2),
            prefix_set::PrefixSet::new(&prefixes(2)).unwrap(),
            bundle::PayloadLen::new(CEILING).unwrap(),
            1440,
            link.seal_lane(1, 2),
        );
        session_new.follow(path);
        one.engine.command(Command::Install { slot: slot(2), session: Box::new(session_new), lanes: vec![] }, now);
        assert_eq!(session(&mut one, 2).payload_len.bytes() + 32, usize::from(found));
    }
}

#[test]
fn probes_are_answered_like_echoes_and_no_more() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let mut block = [0; Control::LEN_MAX];
    Control::ProbeRequest([7; 8]).encode(&mut block);
    let datagram = peer.sealed(&[block; 140].concat(), START);
    let (_, wan) = two.decapsulate(START, Burst::of([datagram]));
    Control::ProbeReply([7; 8]).encode(&mut block);
    assert_eq!(wan.bytes().len(), 1);
    assert_eq!(peer.opened(wan.bytes().remove(0), START), [block; CONTROL_BLOCKS_MAX].concat());
    assert_eq!(two.dropped(), (140 - CONTROL_BLOCKS_MAX) as u64);
}

#[test]
fn answers_to_no_probe_change_nothing() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let mut block = [0; Control::LEN_MAX];
    Control::ProbeReply(START.as_nanos().to_be_bytes()).encode(&mut block);
    two.decapsulate(START, Burst::of([peer.sealed(&block, START)]));
    assert_eq!(two.moved(), [("opened_datagrams", 1), ("wan_bursts", 1), ("control_malformed", 1)], "none was sent");
    session(&mut two, 1).follow(shared(1));
    two.encapsulate(START, Burst::of([v4(2, 1, 100, 0)]));
    let (_, wan) = two.decapsulate(START, Burst::of([peer.sealed(&block.repeat(140), START)]));
    assert!(wan.bytes().len() <= 1, "the first probe at most");
    assert_eq!(session(&mut two, 1).payload_len.bytes() + 32, usize::from(BASE_LEN));
    assert_eq!(two.events(), Vec::<String>::new());
}

#[test]
fn a_probe_that_has_no_room_is_counted_and_asked_again() {
    let (mut one, _) = prober_and_peer();
    one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    one.moved();
    let now = START.plus(Duration::from_millis(2));
    one.engine.expire(now);
    one.engine.send_waiting(now, &mut Sink::with_room(0));
    assert_eq!(one.moved(), [("wan_queue_full", 1)]);
    let later = now.plus(Duration::from_millis(1_010));
    one.encapsulate(later, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!(turn(&mut one, later).bytes().len(), 1);
}

#[test]
fn probes_that_find_no_room_say_nothing_of_the_path() {
    let (mut one, mut two) = prober_and_peer();
    let (_, mut now) = exchange(&mut one, &mut two, &v4(1, 2, 1440, 0), CEILING, START, 50);
    assert_eq!(session(&mut one, 2).payload_len.bytes() + 32, usize::from(CEILING));
    one.moved();
    for _ in 0..1_000 {
        now = now.plus(Duration::from_millis(20));
        one.encapsulate(now, Burst::of([v4(1, 2, 1440, 0)]));
        one.engine.expire(now);
        one.engine.send_waiting(now, &mut Sink::with_room(0));
    }
    assert_eq!(session(&mut one, 2).payload_len.bytes() + 32, usize::from(CEILING));
    let unsent = one.moved().into_iter().find(|(name, _)| *name == "wan_queue_full").unwrap().1;
    assert!((10..=100).contains(&unsent), "{unsent} probes in twenty seconds");
    // As soon as there is room, the path is asked, and the answer counts.
    let (arrived, _) = exchange(&mut one, &mut two, &v4(1, 2, 1440, 0), CEILING, now, 1_000);
    assert_eq!(arrived.len(), 1_000);
}

#[test]
fn of_more_probes_than_may_wait_the_rest_goes_a_tick_later() {
    let peers: Vec<u8> = (2..BURST_LEN as u8 + 5).collect();
    let mut one = Gateway::new(1, &peers);
    for &m in &peers {
        one.install(m, &Link::default());
        session(&mut one, m).follow(shared(m));
    }
    // What is put off at a tick's very beginning is due at once again, and must not be found again in the same pass.
    let now = Time::from_nanos(1_000_000 * TICK_NS);
    for &m in &peers {
        one.encapsulate(now, Burst::of([v4(1, m, 100, 0)]));
    }
    assert_eq!(turn(&mut one, now).frames.len(), BURST_LEN);
    assert_eq!(turn(&mut one, now.plus(Duration::from_nanos(TICK_NS))).frames.len(), 3);
}

/// A TCP SYN from a host of one network to one of another that offers segments of `mss` bytes.
fn syn(from: u8, to: u8, mss: u16) -> [Vec<u8>; 2] {
    let [high, low] = mss.to_be_bytes();
    let segment = |sum: u16| {
        let [s0, s1] = sum.to_be_bytes();
        [0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, s0, s1, 0, 0, 2, 4, high, low]
    };
    let (v4_from, v4_to) = (format!("10.{from}.0.5"), format!("10.{to}.0.9"));
    let (v6_from, v6_to) = (format!("fd00:{from}::5"), format!("fd00:{to}::9"));
    let sum = |addresses: &[u8]| icmp::checksum(&[addresses, &[0, 24, 0, 6], &segment(0)].concat());
    let v4 = ipv4(&v4_from, &v4_to, 6, 0x4000, &segment(0));
    let v6 = ipv6(&v6_from, &v6_to, 6, &segment(0));
    [
        ipv4(&v4_from, &v4_to, 6, 0x4000, &segment(sum(&v4[12..20]))),
        ipv6(&v6_from, &v6_to, 6, &segment(sum(&v6[8..40]))),
    ]
}

#[test]
fn the_segment_size_is_clamped_both_ways() {
    // Only gateway 1 clamps: its path has an inner MTU of 1300, that of gateway 2 is larger than any segment.
    let (mut one, mut two) = pair(&Link { inner_mtu: 1300, ..Link::default() });
    two.install(1, &Link { inner_mtu: 9000, ..Link::default() });
    let lowered = |from, to| [syn(from, to, 1260)[0].clone(), syn(from, to, 1240)[1].clone()];
    let (wan, _) = one.encapsulate(START, Burst::of(syn(1, 2, 1460)));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), lowered(1, 2));
    let (wan, _) = two.encapsulate(START, Burst::of(syn(2, 1, 1460)));
    assert_eq!(one.decapsulate(START, Burst::trains(wan)).0.bytes(), lowered(2, 1));
}

#[test]
fn a_partial_checksum_is_completed_over_the_clamped_segment() {
    let (mut one, mut two) = pair(&Link { inner_mtu: 1300, ..Link::default() });
    two.install(1, &Link { inner_mtu: 9000, ..Link::default() });
    let mut packet = syn(1, 2, 1460)[0].clone();
    // What a host leaves in the field: the sum of the pseudo-header alone.
    let pseudo = !icmp::checksum(&[&packet[12..20], &[0, 6, 0, 24]].concat());
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let offload = port::Offload { cut: None, checksum: Some((20, 16)) };
    let (wan, _) = one.encapsulate(START, Burst(vec![(packet, RxMeta { offload, ..RxMeta::default() })]));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), [syn(1, 2, 1260)[0].clone()]);
}

#[test]
fn the_least_that_a_path_may_carry_is_enough_for_a_probe() {
    assert_eq!(SharedPath::new(endpoint(1), 0, 1280).in_force(), (DATAGRAM_LEN_MIN, 1280));
    assert_eq!(SharedPath::new(endpoint(1), u16::MAX, 9000).in_force(), (BASE_LEN, 9000));
}
