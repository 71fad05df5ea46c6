//! What a peer gets of what the local side sends.

use super::rig::*;
use crate::engine::port::{TRAIN_LEN_MAX, TRAIN_SEGMENTS_MAX};
use crate::engine::*;

/// Sends one burst from gateway 1 to gateway 2 and returns what arrived there, and how many trains and datagrams it took.
fn across(one: &mut Gateway, two: &mut Gateway, packets: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, usize, usize) {
    let (wan, back) = one.encapsulate(START, Burst::of(packets));
    assert_eq!(back.frames, []);
    for (bytes, meta) in &wan.frames {
        assert_eq!(meta.destination, Some(endpoint(2)));
        assert!(bytes.len() <= TRAIN_LEN_MAX);
        let datagrams = if meta.segment == 0 { 1 } else { bytes.len().div_ceil(usize::from(meta.segment)) };
        assert!(datagrams <= TRAIN_SEGMENTS_MAX);
    }
    let (trains, datagrams) = (wan.frames.len(), wan.datagrams().len());
    assert!(wan.datagrams().iter().all(|datagram| datagram.len() <= 1472));
    let (lan, own) = two.decapsulate(START, Burst::trains(wan));
    assert_eq!(own.frames, []);
    assert!(lan.frames.iter().all(|(_, meta)| *meta == TxMeta::default()));
    (lan.bytes(), trains, datagrams)
}

#[test]
fn packets_of_every_size_cross_byte_identical_and_in_order() {
    let (mut one, mut two) = pair(&Link::default());
    let packets: Vec<_> = (20..=1400)
        .flat_map(|len| [Some(v4(1, 2, len, len)), (len >= 40).then(|| v6(1, 2, len, len))])
        .flatten()
        .collect();
    let (mut trains, mut datagrams, mut bytes) = (0, 0, 0);
    for burst in packets.chunks(BURST_LEN) {
        let (arrived, t, d) = across(&mut one, &mut two, burst.to_vec());
        assert_eq!(arrived, burst);
        (trains, datagrams) = (trains + t as u64, datagrams + d as u64);
        bytes += burst.iter().map(|packet| packet.len() as u64).sum::<u64>();
    }
    let (packets, bursts) = (packets.len() as u64, packets.len().div_ceil(BURST_LEN) as u64);
    let sealed = one.moved();
    let sealed_bytes = sealed.iter().find(|(name, _)| *name == "sealed_bytes").unwrap().1;
    assert_eq!(
        sealed,
        [
            ("lan_to_wan_packets", packets),
            ("lan_to_wan_bytes", bytes),
            ("sealed_datagrams", datagrams),
            ("sealed_bytes", sealed_bytes),
            ("sent_trains", trains),
            ("lan_bursts", bursts)
        ]
    );
    assert!(sealed_bytes > bytes && sealed_bytes < bytes + bytes / 20 + 40 * datagrams);
    assert_eq!(
        two.moved(),
        [
            ("wan_to_lan_packets", packets),
            ("wan_to_lan_bytes", bytes),
            ("opened_datagrams", datagrams),
            ("wan_bursts", bursts)
        ]
    );
}

#[test]
fn packets_for_several_peers_in_one_burst_each_reach_theirs_in_order() {
    let peers = [2, 3, 4];
    let mut one = Gateway::new(1, &peers);
    let mut others = peers.map(|m| Gateway::new(m, &[1]));
    for other in &mut others {
        one.install(other.n, &Link::default());
        other.install(1, &Link::default());
    }
    let packets: Vec<_> = (0..BURST_LEN).map(|i| v4(1, peers[i * i % 3], 60 + i, i)).collect();
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    for other in &mut others {
        let mut theirs = Sink::new();
        theirs.frames = wan.frames.iter().filter(|(_, m)| m.destination == Some(endpoint(other.n))).cloned().collect();
        let (lan, _) = other.decapsulate(START, Burst::trains(theirs));
        let expected: Vec<_> = packets.iter().filter(|packet| packet[17] == other.n).cloned().collect();
        assert_eq!(lan.bytes(), expected, "peer {}", other.n);
        assert_eq!(other.dropped(), 0);
    }
    assert_eq!(one.moved()[0], ("lan_to_wan_packets", 64));
}

#[test]
fn a_burst_of_small_packets_leaves_in_two_sends_at_most() {
    let (mut one, mut two) = pair(&Link::default());
    for len in [40, 64, 128, 200] {
        let packets: Vec<_> = (0..BURST_LEN).map(|i| v4(1, 2, len, i)).collect();
        let (arrived, trains, datagrams) = across(&mut one, &mut two, packets.clone());
        assert_eq!(arrived, packets);
        assert!(trains <= 2, "{trains} trains for packets of {len}");
        assert!(datagrams <= (BURST_LEN * len).div_ceil(1440 - len) + 1, "{datagrams} datagrams for packets of {len}");
    }
}

#[test]
fn packets_longer_than_a_datagram_cross_by_continuation() {
    let (mut one, mut two) = pair(&Link { inner_mtu: u16::MAX, ..Link::default() });
    for len in [1440, 1441, 1442, 1443, 2000, 4096, 8900, 30_000, 65_535] {
        let packets = vec![v4(1, 2, len, 1), v4(1, 2, 100, 2), v4(1, 2, len, 3)];
        assert_eq!(across(&mut one, &mut two, packets.clone()).0, packets, "{len} bytes");
        let packets = vec![v6(1, 2, len, 4)];
        assert_eq!(across(&mut one, &mut two, packets.clone()).0, packets, "{len} bytes");
    }
    assert_eq!((one.dropped(), two.dropped()), (0, 0));
}

#[test]
fn a_lost_rest_costs_the_cut_packet_and_nothing_else() {
    let (mut one, mut two) = pair(&Link { inner_mtu: 9000, ..Link::default() });
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 2000, 1)]));
    let mut datagrams = wan.datagrams();
    assert_eq!(datagrams.len(), 2);
    datagrams.truncate(1);
    // It is waited for as long as it may have been overtaken.
    let after: Vec<_> = (0..8).map(|id| v4(1, 2, 500, id)).collect();
    for packet in &after {
        datagrams.extend(one.encapsulate(START, Burst::of([packet.clone()])).0.datagrams());
    }
    let last = datagrams.pop().unwrap();
    let (lan, _) = two.decapsulate(START, Burst::of(datagrams));
    assert_eq!(lan.bytes(), after[..7]);
    assert_eq!(
        two.moved(),
        [("wan_to_lan_packets", 7), ("wan_to_lan_bytes", 3500), ("opened_datagrams", 8), ("wan_bursts", 1)]
    );
    two.decapsulate(START, Burst::of([last]));
    assert_eq!(
        two.moved(),
        [
            ("wan_to_lan_packets", 1),
            ("wan_to_lan_bytes", 500),
            ("opened_datagrams", 1),
            ("wan_bursts", 1),
            ("continuation_lost", 1)
        ]
    );
}

#[test]
fn the_gateways_own_address_is_delivered_locally() {
    let (mut one, mut two) = pair(&Link::default());
    let packets = vec![
        inner::testing::ipv4("10.1.0.5", "10.2.0.1", 17, 0, b"12345678"),
        inner::testing::ipv6("fd00:1::5", "fd00:2::1", 17, b"12345678"),
    ];
    assert_eq!(across(&mut one, &mut two, packets.clone()).0, packets);
    assert_eq!(two.dropped(), 0);
}

#[test]
fn a_full_send_queue_drops_all_that_it_has_no_room_for_and_leaves_the_lane_usable() {
    let (mut one, mut two) = pair(&Link::default());
    let packets: Vec<_> = (0..60).map(|i| v4(1, 2, 1400, i)).collect();
    let (mut wan, mut lan) = (Sink::with_room(0), Sink::new());
    one.engine.encapsulate(START, &mut Burst::of(packets.clone()), &mut wan, &mut lan);
    assert_eq!((wan.bytes(), lan.bytes()), (vec![], vec![]));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("wan_queue_full", 60)]);
    // Room for one train only: what does not fit it is dropped, what does arrives.
    wan.room = 1;
    one.engine.encapsulate(START, &mut Burst::of(packets.clone()), &mut wan, &mut lan);
    let moved = one.moved();
    let (sent, bytes) = (moved[0].1, wan.frames[0].0.len() as u64);
    assert!((40..60).contains(&sent));
    assert_eq!(
        moved,
        [
            ("lan_to_wan_packets", sent),
            ("lan_to_wan_bytes", sent * 1400),
            ("sealed_datagrams", wan.datagrams().len() as u64),
            ("sealed_bytes", bytes),
            ("sent_trains", 1),
            ("lan_bursts", 1),
            ("wan_queue_full", 60 - sent)
        ]
    );
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), packets[..sent as usize]);
    two.moved();
    let next = vec![v4(1, 2, 333, 99)];
    assert_eq!(across(&mut one, &mut two, next.clone()).0, next);
    // When the train ended with the beginning of a packet, its rest never comes.
    assert!(two.dropped() <= 1);
}

#[test]
fn a_full_local_queue_drops_each_packet_that_it_has_no_room_for() {
    let (mut one, mut two) = pair(&Link::default());
    let packets: Vec<_> = (0..10).map(|i| v4(1, 2, 100, i)).collect();
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    let (mut lan, mut own) = (Sink::with_room(4), Sink::new());
    two.engine.decapsulate(START, &mut Burst::trains(wan), &mut lan, &mut own);
    assert_eq!((lan.bytes(), own.bytes()), (packets[..4].to_vec(), vec![]));
    assert_eq!(
        two.moved(),
        [
            ("wan_to_lan_packets", 4),
            ("wan_to_lan_bytes", 400),
            ("opened_datagrams", 1),
            ("wan_bursts", 1),
            ("lan_queue_full", 6)
        ]
    );
}

#[test]
fn what_no_peer_would_accept_from_us_is_not_sent() {
    let (mut one, _) = pair(&Link::default());
    let foreign = [v4(7, 2, 100, 0), v6(7, 2, 100, 0), v4(2, 2, 100, 0)];
    let (wan, lan) = one.encapsulate(START, Burst::of(foreign));
    assert_eq!((wan.frames, lan.frames), (vec![], vec![]), "nobody is told, as the address may be anybody's");
    assert_eq!(one.moved(), [("lan_bursts", 1), ("local_source", 3)]);
}

#[test]
fn the_kernels_own_chatter_is_dropped_quietly() {
    let (mut one, _) = pair(&Link::default());
    let chatter = [
        inner::testing::ipv6("fe80::1", "ff02::2", 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
        inner::testing::ipv6("::", "ff02::16", 58, &[143, 0, 0, 0, 0, 0, 0, 0]),
        inner::testing::ipv4("10.1.0.5", "224.0.0.251", 17, 0, &[0; 8]),
        inner::testing::ipv4("10.1.0.5", "255.255.255.255", 17, 0, &[0; 8]),
        inner::testing::ipv4("10.1.0.5", "169.254.1.1", 17, 0, &[0; 8]),
    ];
    let (wan, lan) = one.encapsulate(START, Burst::of(chatter));
    assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("inner_multicast", 2), ("inner_link_scope", 3)]);
}

#[test]
fn a_malformed_or_cut_packet_from_the_local_side_is_dropped() {
    let (mut one, _) = pair(&Link::default());
    let mut short = v4(1, 2, 100, 0);
    short.pop();
    let mut burst = Burst::of([short, vec![], vec![0x50; 60], v4(1, 2, 100, 0)]);
    burst.0[3].1.truncated = true;
    let (wan, lan) = one.encapsulate(START, burst);
    assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("local_malformed", 3), ("lan_read_truncated", 1)]);
}
