//! A router's duties: forwarding between peers, and telling senders what became of their packets.

use std::sync::Arc;
use std::time::Duration;

use super::rig::*;
use crate::engine::*;

/// Gateways 1, 2 and 3 in a row; 2 forwards between the others when `transit` says so.
fn chain(transit: bool) -> [Gateway; 3] {
    let peer = |m| (m, NextHop::Session(slot(m)));
    let mut all = [Gateway::new(1, &[2]), Gateway::new(2, &[1, 3]), Gateway::new(3, &[2])];
    let via = |m| (m, NextHop::Session(slot(2)));
    all[0].route(&[peer(2), via(3)], false);
    all[1].route(&[peer(1), peer(3)], transit);
    all[2].route(&[peer(2), via(1)], false);
    all[0].install(2, &Link { behind: &[3, 7], ..Link::default() });
    all[1].install(1, &Link::default());
    all[1].install(3, &Link::default());
    all[2].install(2, &Link { behind: &[1], ..Link::default() });
    for gateway in &mut all {
        gateway.events();
    }
    all
}

/// What the burst from gateway 1 makes gateway 2 send.
fn through(one: &mut Gateway, two: &mut Gateway, packets: &[Vec<u8>]) -> Sink {
    let (wan, _) = one.encapsulate(START, Burst::of(packets.to_vec()));
    let (lan, wan) = two.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.frames, []);
    wan
}

#[test]
fn packets_between_peers_arrive_with_the_ttl_counted_down() {
    let [mut one, mut two, mut three] = chain(true);
    let packets = [v4(1, 3, 100, 0), v6(1, 3, 100, 0), with_ttl(v4(1, 3, 60, 1), 2), with_ttl(v6(1, 3, 60, 1), 2)];
    let wan = through(&mut one, &mut two, &packets);
    assert_eq!(wan.frames.len(), 1);
    assert_eq!(wan.frames[0].1.destination, Some(endpoint(3)));
    let sealed = wan.frames[0].0.len() as u64;
    assert_eq!(
        two.moved(),
        [
            ("transit_packets", 4),
            ("transit_bytes", 320),
            ("sealed_datagrams", 1),
            ("sealed_bytes", sealed),
            ("opened_datagrams", 1),
            ("sent_trains", 1),
            ("wan_bursts", 1)
        ]
    );
    let (lan, _) = three.decapsulate(START, Burst::trains(wan));
    let expected = [63, 63, 1, 1].iter().zip(packets).map(|(&ttl, packet)| with_ttl(packet, ttl));
    assert_eq!(lan.bytes(), expected.collect::<Vec<_>>(), "checksums included");
    assert_eq!(three.dropped(), 0);
}

#[test]
fn transit_that_is_not_configured_is_refused_and_the_sender_told() {
    let [mut one, mut two, _] = chain(false);
    for (packet, code) in [(v4(1, 3, 100, 0), (3, 13, 0)), (v6(1, 3, 100, 0), (1, 1, 0))] {
        let wan = through(&mut one, &mut two, std::slice::from_ref(&packet));
        assert_eq!(wan.frames[0].1.destination, Some(endpoint(1)));
        let sealed = wan.frames[0].0.len() as u64;
        let (lan, _) = one.decapsulate(START, Burst::trains(wan));
        assert_eq!(lan.frames.len(), 1);
        assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &packet), code);
        assert_eq!(
            two.moved(),
            [
                ("sealed_datagrams", 1),
                ("sealed_bytes", sealed),
                ("opened_datagrams", 1),
                ("sent_trains", 1),
                ("wan_bursts", 1),
                ("sent_icmp_errors", 1),
                ("transit_refused", 1)
            ]
        );
    }
    assert_eq!(one.dropped(), 0);
}

#[test]
fn a_ttl_that_ends_here_is_answered_from_our_own_address_at_a_limited_rate() {
    let [mut one, mut two, _] = chain(true);
    for (packet, code) in [(with_ttl(v4(1, 3, 700, 0), 1), (11, 0, 0)), (with_ttl(v6(1, 3, 1300, 0), 1), (3, 0, 0))] {
        let wan = through(&mut one, &mut two, std::slice::from_ref(&packet));
        let (lan, _) = one.decapsulate(START, Burst::trains(wan));
        assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &packet), code);
        two.moved();
    }
    // A burst of 50 was allowed, and two are spent.
    let packets: Vec<_> = (0..60).map(|i| with_ttl(v4(1, 3, 60, i), 1)).collect();
    through(&mut one, &mut two, &packets);
    let moved = two.moved();
    assert!(moved.contains(&("sent_icmp_errors", 48)) && moved.contains(&("ttl_expired", 60)), "{moved:?}");
}

#[test]
fn an_icmp_error_is_never_answered() {
    let [mut one, mut two, _] = chain(false);
    let quoted = v4(3, 1, 40, 0);
    let error = inner::testing::ipv4("10.1.0.5", "10.3.0.9", 1, 0, &[&[11, 0, 0, 0, 0, 0, 0, 0], &quoted[..]].concat());
    assert_eq!(through(&mut one, &mut two, &[error]).frames, []);
    assert_eq!(two.moved(), [("opened_datagrams", 1), ("wan_bursts", 1), ("transit_refused", 1)]);
}

#[test]
fn a_packet_from_a_peer_to_nowhere_is_answered_over_the_overlay() {
    let [mut one, mut two, _] = chain(true);
    one.route(&[(7, NextHop::Session(slot(2))), (3, NextHop::Session(slot(2)))], false);
    let no_route = v4(1, 7, 100, 0);
    let wan = through(&mut one, &mut two, std::slice::from_ref(&no_route));
    let (lan, _) = one.decapsulate(START, Burst::trains(wan));
    assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &no_route), (3, 0, 0));
    assert_eq!(two.moved().last(), Some(&("no_route", 1)));
    two.route(&[(3, NextHop::Session(slot(77)))], true);
    two.give_up(3);
    let down = v6(1, 3, 100, 0);
    let wan = through(&mut one, &mut two, std::slice::from_ref(&down));
    let (lan, _) = one.decapsulate(START, Burst::trains(wan));
    assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &down), (1, 3, 0));
    assert_eq!(two.moved().last(), Some(&("no_session", 1)));
}

/// The route may name a session that has just gone; its packets vanished without a word to their sender.
#[test]
fn a_packet_between_peers_whose_session_has_gone_is_answered() {
    let [mut one, mut two, _] = chain(true);
    two.engine.command(Command::Remove(slot(3)), START);
    two.give_up(3);
    let packet = v4(1, 3, 100, 0);
    let wan = through(&mut one, &mut two, std::slice::from_ref(&packet));
    let (lan, _) = one.decapsulate(START, Burst::trains(wan));
    assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &packet), (3, 1, 0));
    let moved = two.moved();
    assert_eq!(moved.last(), Some(&("no_session", 1)));
    assert!(moved.iter().all(|(name, _)| !name.starts_with("transit")), "{moved:?}");
}

/// The MTU was asked only for packets from the local side.
#[test]
fn a_packet_between_peers_that_the_second_path_does_not_carry_is_answered_with_its_mtu() {
    let [mut one, mut two, mut three] = chain(true);
    two.install(3, &Link { inner_mtu: 1300, ..Link::default() });
    for (packet, code) in [(v6(1, 3, 1301, 0), (2, 0, 1300)), (dont_fragment(v4(1, 3, 1301, 0)), (3, 4, 1300))] {
        let wan = through(&mut one, &mut two, std::slice::from_ref(&packet));
        let (lan, _) = one.decapsulate(START, Burst::trains(wan));
        assert_eq!(icmp_error(2, 1, &lan.frames[0].0, &with_ttl(packet, 63)), code);
        assert_eq!(two.moved().last(), Some(&("packet_too_big", 1)));
    }
    let packets = [v6(1, 3, 1300, 0), dont_fragment(v4(1, 3, 1300, 0)), v4(1, 3, 1301, 0)];
    let wan = through(&mut one, &mut two, &packets);
    let (lan, _) = three.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.bytes(), packets.map(|packet| with_ttl(packet, 63)));
}

#[test]
fn a_full_send_queue_is_counted_for_packets_between_peers() {
    let [mut one, mut two, _] = chain(true);
    let (wan, _) = one.encapsulate(START, Burst::of((0..5).map(|i| v4(1, 3, 100, i))));
    let (mut lan, mut full) = (Sink::new(), Sink::with_room(0));
    two.engine.decapsulate(START, &mut Burst::trains(wan), &mut lan, &mut full);
    assert_eq!((lan.frames, full.frames), (vec![], vec![]));
    assert_eq!(two.moved(), [("opened_datagrams", 1), ("wan_bursts", 1), ("wan_queue_full", 5)]);
}

#[test]
fn more_packets_between_peers_than_the_outbox_holds_are_sent_in_parts() {
    let [mut one, mut two, mut three] = chain(true);
    let packets: Vec<_> = (0..3 * BURST_LEN).map(|i| v4(1, 3, 700, i)).collect();
    let mut burst = Burst(Vec::new());
    for packets in packets.chunks(BURST_LEN) {
        burst.0.extend(Burst::trains(one.encapsulate(START, Burst::of(packets.to_vec())).0).0);
    }
    let (_, wan) = two.decapsulate(START, burst);
    assert!(wan.frames.len() >= 3);
    let (lan, _) = three.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.bytes(), packets.into_iter().map(|packet| with_ttl(packet, 63)).collect::<Vec<_>>());
    assert_eq!((two.dropped(), three.dropped()), (0, 0));
}

/// The outbox held one burst, and was emptied when half of one had come: 31 packets and a datagram full of small ones were too many.
#[test]
fn a_datagram_of_small_packets_between_peers_finds_room_behind_others() {
    let [mut one, mut two, mut three] = chain(true);
    let packets: Vec<_> = (0..31 + BURST_LEN).map(|i| v4(1, 3, 40, i)).collect();
    let (few, many) = packets.split_at(31);
    let mut burst = Burst::trains(one.encapsulate(START, Burst::of(few.to_vec())).0);
    burst.0.extend(Burst::trains(one.encapsulate(START, Burst::of(many.to_vec())).0).0);
    let (_, wan) = two.decapsulate(START, burst);
    let (lan, _) = three.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.bytes(), packets.into_iter().map(|packet| with_ttl(packet, 63)).collect::<Vec<_>>());
    assert_eq!((two.dropped(), three.dropped()), (0, 0));
}

#[test]
fn a_local_sender_learns_why_its_packet_goes_nowhere() {
    let (mut one, _) = pair(&Link::default());
    let hops = [(2, NextHop::Session(slot(2))), (3, NextHop::Session(slot(77))), (4, NextHop::Session(slot(4)))];
    one.route(&hops, false);
    [3, 4].into_iter().for_each(|m| one.give_up(m));
    let cases = [
        (v4(1, 7, 100, 0), (3, 0, 0), "no_route"),
        (v6(1, 7, 100, 0), (1, 0, 0), "no_route"),
        (v4(1, 1, 100, 0), (3, 0, 0), "no_route"),
        (v4(1, 3, 100, 0), (3, 1, 0), "no_session"),
        (v6(1, 3, 100, 0), (1, 3, 0), "no_session"),
        (v4(1, 4, 100, 0), (3, 1, 0), "no_session"),
        (dont_fragment(v4(1, 2, 1401, 0)), (3, 4, 1400), "packet_too_big"),
        (v6(1, 2, 1401, 0), (2, 0, 1400), "packet_too_big"),
    ];
    for (packet, code, reason) in cases {
        let (wan, lan) = one.encapsulate(START, Burst::of([packet.clone()]));
        assert_eq!((wan.frames.len(), lan.frames.len()), (0, 1));
        assert_eq!(icmp_error(1, 1, &lan.frames[0].0, &packet), code);
        assert_eq!(one.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), (reason, 1)]);
    }
    // Whether or not there is room for the error, the packet is counted.
    let (mut wan, mut lan) = (Sink::new(), Sink::with_room(0));
    one.engine.encapsulate(START, &mut Burst::of([v4(1, 7, 100, 0)]), &mut wan, &mut lan);
    assert_eq!(one.moved(), [("lan_bursts", 1), ("no_route", 1)]);
}

/// Gateways of a whole network have IPv6 addresses only, and told their IPv4 hosts nothing.
#[test]
fn a_gateway_without_an_ipv4_address_tells_its_own_hosts_all_the_same() {
    let (mut one, _) = pair(&Link::default());
    let snapshot = Snapshot { gateway_v4: None, ..one.snapshot(&[(2, NextHop::Session(slot(2)))], false) };
    one.engine.command(Command::Routes(Arc::new(snapshot)), START);
    let (_, lan) = one.encapsulate(START, Burst::of([v4(1, 7, 100, 0)]));
    let inner = Inner::parse(&lan.frames[0].0).unwrap();
    assert_eq!((inner.source, inner.destination), ([192, 0, 0, 8].into(), [10, 1, 0, 5].into()));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), ("no_route", 1)]);
}

#[test]
fn an_ipv4_packet_that_may_be_fragmented_is_carried_whatever_its_size() {
    let (mut one, mut two) = pair(&Link::default());
    let packets = [v4(1, 2, 1401, 0), dont_fragment(v4(1, 2, 1400, 1)), v6(1, 2, 1400, 2), v4(1, 2, 9000, 3)];
    let (wan, lan) = one.encapsulate(START, Burst::of(packets.clone()));
    assert_eq!(lan.frames, []);
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), packets);
    assert_eq!((one.dropped(), two.dropped()), (0, 0));
}

#[test]
fn errors_to_the_local_side_are_rate_limited_and_come_back_with_time() {
    let (mut one, _) = pair(&Link::default());
    let packets = |n| Burst::of((0..n).map(|i| v4(1, 7, 60, i)));
    assert_eq!(one.encapsulate(START, packets(60)).1.frames.len(), 50);
    assert_eq!(one.encapsulate(START, packets(10)).1.frames.len(), 0);
    assert_eq!(one.encapsulate(START.plus(Duration::from_millis(5)), packets(10)).1.frames.len(), 5);
    assert_eq!(one.moved(), [("lan_bursts", 3), ("sent_icmp_errors", 55), ("no_route", 80)]);
}

/// One bucket for all: a peer's dead packets kept local hosts from learning their path MTU.
#[test]
fn a_peer_cannot_use_up_the_errors_of_the_local_side_or_of_another_peer() {
    let [mut one, mut two, mut three] = chain(false);
    let packets: Vec<_> = (0..60).map(|i| v4(1, 3, 60, i)).collect();
    through(&mut one, &mut two, &packets);
    assert!(two.moved().contains(&("sent_icmp_errors", 50)));
    let (_, lan) = two.encapsulate(START, Burst::of([v4(2, 7, 60, 0)]));
    assert_eq!(lan.frames.len(), 1);
    let (wan, _) = three.encapsulate(START, Burst::of([v4(3, 1, 60, 0)]));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).1.frames.len(), 1);
}
