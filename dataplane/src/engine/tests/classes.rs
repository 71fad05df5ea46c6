//! Traffic classes: what the underlay sees, the marks that it makes, who goes first, and how much may go.

use super::rig::*;
use crate::api::message::RateLimit;
use crate::engine::class::{Dscp, Ecn};
use crate::engine::*;

const RATE: RateLimit = RateLimit { bytes_per_s: 1_000_000, burst: 80_000 };

/// DSCP EF, AF11 and lower effort, with a codepoint.
const EF: u8 = 46 << 2;
const AF11: u8 = 10 << 2;
const LE: u8 = 1 << 2;

fn classes(sink: &Sink) -> Vec<u8> {
    sink.frames.iter().map(|(_, meta)| meta.class).collect()
}

/// Each datagram with the packets in it, by a gateway of its own.
fn packets_by_train(sink: &Sink) -> Vec<(u8, Vec<Vec<u8>>)> {
    let mut two = Gateway::new(2, &[1]);
    two.install(1, &Link::default());
    let open = |(bytes, meta): &(Vec<u8>, TxMeta)| {
        let mut train = Sink::new();
        train.frames.push((bytes.clone(), *meta));
        (meta.class, two.decapsulate(START, Burst::trains(train)).0.bytes())
    };
    sink.frames.iter().map(open).collect()
}

#[test]
fn a_datagram_has_the_ecn_codepoint_of_every_packet_in_it_and_shows_no_dscp() {
    let (mut one, _) = pair(&Link::default());
    let packets: Vec<_> = (0..16u8)
        .map(|i| {
            let mut packet = if i % 2 == 0 { v4(1, 2, 100, i.into()) } else { v6(1, 2, 100, i.into()) };
            // Each codepoint has a flow of its own.
            packet[if i % 2 == 0 { 21 } else { 41 }] = i / 2 % 4;
            with_class(packet, EF | (i / 2 % 4))
        })
        .collect();
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    let trains = packets_by_train(&wan);
    assert_eq!(trains.len(), 4, "{:?}", classes(&wan));
    for (class, inside) in trains {
        let expected = packets.iter().filter(|packet| Inner::parse(packet).unwrap().traffic_class & 3 == class);
        assert!(inside.iter().eq(expected), "{class}");
    }
}

#[test]
fn a_flow_of_which_some_packets_are_marked_keeps_its_order_and_others_stay_together() {
    let (mut one, mut two) = pair(&Link::default());
    let class = |i: usize| [Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::Ect0][i % 4] as u8;
    let marked: Vec<_> = (0..24).map(|i| with_class(v4(1, 2, 100, i), class(i))).collect();
    let (wan, _) = one.encapsulate(START, Burst::of(marked.clone()));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), marked);
    // Flows that have nothing to do with each other share the trains of their codepoints.
    let apart: Vec<_> = (0..24)
        .map(|i| with_class(if i % 2 == 0 { v4(1, 2, 100, i) } else { v6(1, 2, 100, i) }, 2 * (i % 2) as u8))
        .collect();
    let (wan, _) = one.encapsulate(START, Burst::of(apart));
    assert_eq!(classes(&wan), [0, 2]);
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.frames.len(), 24);
}

#[test]
fn dscp_is_shown_when_the_operator_wants_it_and_then_separates() {
    let (mut one, _) = pair(&Link::default());
    let packets = [AF11, EF, 0, EF].map(|class| with_class(v4(1, 2, 100, class.into()), class));
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    assert_eq!(packets_by_train(&wan), [(0, packets.to_vec())]);
    one.dscp = Dscp::Copy;
    one.route(&[(2, NextHop::Session(slot(2)))], false);
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    let [af, ef, default, again] = packets;
    let trains = packets_by_train(&wan);
    // A second gateway has not seen the first datagram, which is what it takes to open these.
    assert_eq!(trains, [(EF, vec![ef, again]), (AF11, vec![af]), (0, vec![default])], "the urgent ones go first");
}

#[test]
fn the_marks_of_the_path_go_into_the_packets() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    for (id, (inner, outer)) in Ecn::ALL.iter().flat_map(|a| Ecn::ALL.map(|b| (*a, b))).enumerate() {
        for packet in [v4(1, 2, 100, id), v6(1, 2, 100, id)] {
            let packet = with_class(packet, EF | inner as u8);
            let mut burst = Burst::of([peer.sealed(&packet, START)]);
            burst.0[0].1.class = AF11 | outer as u8;
            let (lan, _) = two.decapsulate(START, burst);
            match inner.decapsulated(outer) {
                Ok(after) => assert_eq!(lan.bytes(), [with_class(packet, EF | after as u8)], "{inner:?} {outer:?}"),
                Err(_) => assert_eq!(lan.bytes(), Vec::<Vec<u8>>::new(), "{inner:?} {outer:?}"),
            }
        }
    }
    assert_eq!(two.moved().last(), Some(&("congestion_unmarkable", 2)), "once for each version");
}

#[test]
fn the_mark_of_any_datagram_counts_for_the_packet_that_it_carried_a_piece_of() {
    let ect = |id| with_class(v4(1, 2, 3000, id), Ecn::Ect0 as u8);
    let ce = |id| with_class(v4(1, 2, 3000, id), Ecn::Ce as u8);
    for marked in 0..4 {
        let (mut one, mut two) = pair(&Link { inner_mtu: 9000, ..Link::default() });
        // Three datagrams; the one after them is the next packet's.
        let mut datagrams = one.encapsulate(START, Burst::of([ect(1)])).0.datagrams();
        assert_eq!(datagrams.len(), 3);
        datagrams.extend(one.encapsulate(START, Burst::of([ect(2)])).0.datagrams());
        let mut burst = Burst::of(datagrams);
        burst.0.iter_mut().for_each(|(_, meta)| meta.class = Ecn::Ect0 as u8);
        burst.0[marked].1.class = Ecn::Ce as u8;
        let (lan, _) = two.decapsulate(START, burst);
        let expected = if marked < 3 { [ce(1), ect(2)] } else { [ect(1), ce(2)] };
        assert_eq!(lan.bytes(), expected, "datagram {marked}");
    }
    // A packet whose sender does not understand is lost with the mark.
    let (mut one, mut two) = pair(&Link { inner_mtu: 9000, ..Link::default() });
    let mut burst = Burst::of(one.encapsulate(START, Burst::of([v4(1, 2, 3000, 1)])).0.datagrams());
    burst.0[1].1.class = Ecn::Ce as u8;
    assert_eq!(two.decapsulate(START, burst).0.bytes(), Vec::<Vec<u8>>::new());
    assert_eq!(two.moved().last(), Some(&("congestion_unmarkable", 1)));
}

#[test]
fn a_packet_between_peers_takes_its_marks_along() {
    let mut two = Gateway::new(2, &[1, 3]);
    two.route(&[(1, NextHop::Session(slot(1))), (3, NextHop::Session(slot(3)))], true);
    two.install(3, &Link::default());
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let mut three = Gateway::new(3, &[2]);
    three.install(2, &Link { behind: &[1], ..Link::default() });
    let mut burst = Burst::of([peer.sealed(&with_class(v4(1, 3, 100, 1), Ecn::Ect1 as u8), START)]);
    burst.0[0].1.class = Ecn::Ce as u8;
    let (_, wan) = two.decapsulate(START, burst);
    assert_eq!(classes(&wan), [Ecn::Ce as u8]);
    let (lan, _) = three.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.bytes(), [with_ttl(with_class(v4(1, 3, 100, 1), Ecn::Ce as u8), 63)]);
}

#[test]
fn control_blocks_alone_have_class_zero() {
    let (mut one, _) = pair(&Link::default());
    one.dscp = Dscp::Copy;
    one.route(&[(2, NextHop::Session(slot(2)))], false);
    one.engine.command(Command::Echo(slot(2)), START);
    let mut wan = Sink::new();
    one.engine.send_waiting(START, &mut wan);
    assert_eq!(classes(&wan), [0]);
}

#[test]
fn datagrams_leave_from_the_address_that_the_peers_authentic_ones_hit() {
    let (mut one, mut two) = pair(&Link::default());
    let ours = ["192.0.2.77", "192.0.2.78"].map(|text| text.parse().ok());
    let mut source_after = |local, from, damaged: bool| {
        let mut burst = Burst::trains(one.encapsulate(START, Burst::of([v4(1, 2, 100, 1)])).0);
        let (bytes, meta) = &mut burst.0[0];
        (meta.local, meta.source) = (local, Some(from));
        *bytes.last_mut().unwrap() ^= u8::from(damaged);
        two.decapsulate(START, burst);
        let (wan, _) = two.encapsulate(START, Burst::of([v4(2, 1, 100, 1)]));
        wan.frames[0].1.source
    };
    assert_eq!(source_after(None, endpoint(1), false), None);
    assert_eq!(source_after(ours[0], endpoint(1), true), None, "forged");
    assert_eq!(source_after(ours[0], endpoint(9), false), None, "from elsewhere");
    assert_eq!(source_after(ours[0], endpoint(1), false), ours[0]);
    assert_eq!(source_after(None, endpoint(1), false), ours[0], "a port that cannot tell changes nothing");
    assert_eq!(source_after(ours[1], endpoint(1), false), ours[1]);
    // A fresh key exchange keeps it.
    two.install(1, &Link { exchange: EXCHANGE + 1, ..Link::default() });
    let (wan, _) = two.encapsulate(START, Burst::of([v4(2, 1, 100, 1)]));
    assert_eq!(wan.frames[0].1.source, ours[1]);
}

#[test]
fn a_peer_is_sent_no_more_than_its_rate_and_a_fresh_key_exchange_does_not_fill_the_bucket() {
    let link = Link { rate: Some(RATE), ..Link::default() };
    let (mut one, mut two) = pair(&link);
    let packets: Vec<_> = (0..BURST_LEN).map(|id| v4(1, 2, 1000, id)).collect();
    let (wan, _) = one.encapsulate(START, Burst::of(packets.clone()));
    // Half of the burst is for what is above best effort, and one packet is the class's own.
    let moved = one.moved();
    assert_eq!(moved[..2], [("lan_to_wan_packets", 41), ("lan_to_wan_bytes", 41_000)]);
    assert_eq!(moved.last(), Some(&("peer_rate", 23)));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), packets[..41]);
    one.install(2, &Link { exchange: EXCHANGE + 1, ..link });
    one.encapsulate(START, Burst::of([packets[0].clone()]));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("peer_rate", 1)]);
    // Another rate is another bucket.
    let rate = Some(RateLimit { bytes_per_s: 2_000_000, ..RATE });
    one.install(2, &Link { exchange: EXCHANGE + 2, rate, ..link });
    one.encapsulate(START, Burst::of([packets[0].clone()]));
    assert_eq!(one.moved()[0], ("lan_to_wan_packets", 1));
}

#[test]
fn the_higher_class_of_one_burst_is_served_first_even_when_the_underlay_cannot_see_it() {
    let (mut one, _) = pair(&Link { rate: Some(RATE), ..Link::default() });
    let packet = |id: usize| {
        let class = if id % 4 == 3 {
            EF
        } else if id % 4 == 2 {
            LE
        } else {
            0
        };
        with_class(v4(1, 2, 1000, id), class)
    };
    let packets: Vec<_> = (0..BURST_LEN).map(packet).collect();
    let (wan, _) = one.encapsulate(START, Burst::of(packets));
    assert!(classes(&wan).iter().all(|class| *class == 0));
    let arrived: Vec<_> = packets_by_train(&wan).into_iter().flat_map(|(_, packets)| packets).collect();
    let count = |class| arrived.iter().filter(|packet| packet[1] == class).count();
    // All sixteen voice packets, then best effort down to half of the bucket, and each class its own packet.
    assert_eq!((count(EF), count(0), count(LE)), (16, 24 + 1, 1));
    assert!(arrived[..16].iter().all(|packet| packet[1] == EF));
    assert_eq!(one.moved().last(), Some(&("peer_rate", 64 - 42)));
}

#[test]
fn packets_between_peers_and_errors_count_against_the_rate_too() {
    let mut two = Gateway::new(2, &[1, 3]);
    two.route(&[(1, NextHop::Session(slot(1))), (3, NextHop::Session(slot(3)))], true);
    two.install(3, &Link { rate: Some(RATE), ..Link::default() });
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let datagrams = (0..50).map(|id| peer.sealed(&v4(1, 3, 1000, id), START));
    two.decapsulate(START, Burst::of(datagrams.collect::<Vec<_>>()));
    let moved = two.moved();
    assert!(moved.contains(&("transit_packets", 41)), "{moved:?}");
    assert_eq!(moved.last(), Some(&("peer_rate", 9)));
}
