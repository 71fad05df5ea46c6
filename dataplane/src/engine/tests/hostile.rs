//! Datagrams that nobody should have sent, from strangers and from peers.

use super::rig::*;
use crate::engine::inner::testing::{ipv4, ipv6};
use crate::engine::*;

/// A datagram from gateway 1 that gateway 2 would open, and gateway 2.
fn captured() -> (Vec<u8>, Gateway, Gateway) {
    let (mut one, two) = pair(&Link::default());
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 64, 0)]));
    (wan.frames[0].0.clone(), one, two)
}

/// Nothing comes of the frame but these counters.
fn nothing_but(two: &mut Gateway, frame: Vec<u8>, expected: &[(&str, u64)]) {
    let (lan, wan) = two.decapsulate(START, Burst::of([frame]));
    assert_eq!((lan.frames, wan.frames, two.events()), (vec![], vec![], vec![]));
    assert_eq!(two.moved(), expected);
}

/// The datagram is not opened.
fn refused(two: &mut Gateway, frame: Vec<u8>, reason: &str) {
    nothing_but(two, frame, &[("wan_bursts", 1), (reason, 1)]);
}

/// The datagram is opened, and what is in it is dropped.
fn refused_inside(two: &mut Gateway, frame: Vec<u8>, reason: &str, packets: u64) {
    nothing_but(two, frame, &[("opened_datagrams", 1), ("wan_bursts", 1), (reason, packets)]);
}

fn accepted(two: &mut Gateway, frame: Vec<u8>) {
    assert_eq!(two.decapsulate(START, Burst::of([frame])).0.frames.len(), 1);
    two.moved();
}

#[test]
fn a_replayed_datagram_is_dropped() {
    let (datagram, _, mut two) = captured();
    accepted(&mut two, datagram.clone());
    for _ in 0..3 {
        refused(&mut two, datagram.clone(), "replayed");
    }
}

#[test]
fn a_datagram_before_the_replay_window_is_dropped() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let datagrams: Vec<_> = (0..=replay::WINDOW_LEN).map(|_| peer.sealed(&v4(1, 2, 40, 0), START)).collect();
    accepted(&mut two, datagrams[replay::WINDOW_LEN as usize].clone());
    refused(&mut two, datagrams[0].clone(), "replay_too_old");
    accepted(&mut two, datagrams[1].clone());
}

#[test]
fn a_truncated_datagram_of_any_length_is_dropped() {
    let (datagram, _, mut two) = captured();
    for len in 0..datagram.len() {
        let reason = if len < 32 { "outer_truncated" } else { "auth_failed" };
        refused(&mut two, datagram[..len].to_vec(), reason);
    }
    accepted(&mut two, datagram);
}

#[test]
fn a_lengthened_datagram_is_dropped() {
    let (datagram, _, mut two) = captured();
    refused(&mut two, [&datagram[..], &[0]].concat(), "auth_failed");
    accepted(&mut two, datagram);
}

#[test]
fn a_datagram_with_any_bit_flipped_is_dropped_under_the_reason_of_its_field() {
    let (datagram, _, mut two) = captured();
    for bit in 0..datagram.len() * 8 {
        let mut flipped = datagram.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let reason = match bit / 8 {
            0 => "outer_type",
            1 => "outer_version",
            // Generation 0 becomes 1, 2, 4 and 8, which could be ahead, or more, which could not.
            2 if flipped[2] <= 8 => "auth_failed",
            2 => "wrong_generation",
            3 => "outer_reserved",
            4..8 => "unknown_index",
            // Counters from 2^48 on are beyond any lane.
            8..10 => "counter_limit",
            _ => "auth_failed",
        };
        refused(&mut two, flipped, reason);
    }
    accepted(&mut two, datagram);
}

#[test]
fn an_index_that_names_no_lane_here_is_refused() {
    let (datagram, _, mut two) = captured();
    for other in [
        index(2, 1, EXCHANGE + 1),
        index(2, 3, EXCHANGE),
        index(1, 1, EXCHANGE),
        ReceiverIndex::new(2, 4095, 0),
        ReceiverIndex::new(2, 4096, 0),
        ReceiverIndex::new(2, u16::MAX, 0),
        ReceiverIndex(u32::MAX),
    ] {
        let mut wrong = datagram.clone();
        wrong[4..8].copy_from_slice(&other.0.to_be_bytes());
        refused(&mut two, wrong, "unknown_index");
    }
    accepted(&mut two, datagram);
}

#[test]
fn a_generation_left_behind_or_too_far_ahead_is_refused() {
    let mut two = Gateway::new(2, &[1]);
    let limits = lane::Limits { generation_bytes: lane::DATAGRAM_CHARGE_MIN, ..lane::Limits::default() };
    let mut peer = Attacker::against(&mut two, 1, &Link { limits, ..Link::default() });
    let datagrams: Vec<_> = (0..=18).map(|_| peer.sealed(&v4(1, 2, 40, 0), START)).collect();
    assert_eq!(datagrams[18][2], 18, "each datagram is a generation");
    refused(&mut two, datagrams[9].clone(), "wrong_generation");
    accepted(&mut two, datagrams[8].clone());
    refused(&mut two, datagrams[7].clone(), "wrong_generation");
    accepted(&mut two, datagrams[0].clone());
    refused(&mut two, datagrams[17].clone(), "wrong_generation");
    accepted(&mut two, datagrams[16].clone());
    refused(&mut two, datagrams[15].clone(), "wrong_generation");
}

#[test]
fn a_frame_that_the_kernel_cut_is_not_read() {
    let (datagram, _, mut two) = captured();
    let mut burst = Burst::of([datagram.clone()]);
    burst.0[0].1.truncated = true;
    let (lan, wan) = two.decapsulate(START, burst);
    assert_eq!((lan.frames, wan.frames), (vec![], vec![]));
    assert_eq!(two.moved(), [("wan_bursts", 1), ("outer_oversized", 1)]);
    accepted(&mut two, datagram);
}

/// The empty UDP datagram made no round in the loop over a train's datagrams and was counted nowhere.
#[test]
fn an_empty_datagram_is_counted() {
    let (_, _, mut two) = captured();
    refused(&mut two, vec![], "outer_truncated");
}

#[test]
fn an_inner_source_that_is_not_the_peers_is_dropped() {
    let mut two = Gateway::new(2, &[1, 3]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let spoofed = [v4(3, 2, 60, 0), v6(3, 2, 60, 0), v4(2, 2, 60, 0)].concat();
    let datagram = peer.sealed(&spoofed, START);
    refused_inside(&mut two, datagram, "inner_spoofed_source", 3);
}

#[test]
fn an_icmp_error_about_a_packet_that_never_went_to_the_peer_is_dropped() {
    let mut two = Gateway::new(2, &[1, 3]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let error = |quoted: &[u8]| [&[3, 4, 0, 0, 0, 0, 2, 0], quoted].concat();
    let forged = ipv4("10.1.0.5", "10.2.0.9", 1, 0, &error(&v4(2, 3, 40, 0)));
    let honest = ipv4("10.1.0.5", "10.2.0.9", 1, 0, &error(&v4(2, 1, 40, 0)));
    let datagram = peer.sealed(&[forged, honest.clone()].concat(), START);
    let (lan, wan) = two.decapsulate(START, Burst::of([datagram]));
    assert_eq!((lan.bytes(), wan.bytes()), (vec![honest], vec![]));
    assert_eq!(
        two.moved(),
        [
            ("wan_to_lan_packets", 1),
            ("wan_to_lan_bytes", 68),
            ("opened_datagrams", 1),
            ("wan_bursts", 1),
            ("inner_forged_error", 1)
        ]
    );
}

#[test]
fn packets_that_a_router_must_not_forward_are_dropped_and_not_answered() {
    let mut two = Gateway::new(2, &[1]);
    two.route(&[(1, NextHop::Session(slot(1)))], true);
    two.events();
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let mut damaged = v4(1, 2, 40, 0);
    damaged[11] ^= 1;
    let cases = [
        (v4(1, 1, 40, 0), "hairpin"),
        (v6(1, 1, 60, 0), "hairpin"),
        (ipv4("10.1.0.5", "224.0.0.1", 17, 0, &[0; 8]), "inner_multicast"),
        (ipv4("10.1.0.5", "127.0.0.1", 17, 0, &[0; 8]), "inner_link_scope"),
        (ipv6("fd00:1::5", "fe80::1", 17, &[0; 8]), "inner_link_scope"),
        (ipv6("fd00:1::5", "fd00:2::9", 0, &[]), "inner_jumbogram"),
        (ipv6("fd00:1::5", "fd00:2::9", 60, &[17, 9, 0, 0, 0, 0, 0, 0]), "inner_header_chain"),
        (damaged, "inner_malformed"),
        (vec![0x70; 20], "block_malformed"),
        (vec![0x20, 4, 1, 2, 3, 4], "continuation_orphan"),
        (vec![0x19, 0], "control_malformed"),
        (vec![0x11, 7, 0, 0, 0, 0, 0, 0, 0], "control_malformed"),
    ];
    for (plaintext, reason) in cases {
        let datagram = peer.sealed(&plaintext, START);
        refused_inside(&mut two, datagram, reason, 1);
    }
}
