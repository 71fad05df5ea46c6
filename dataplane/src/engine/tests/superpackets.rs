//! Superpackets of the local side, cut on the way out and joined on the way in.

use super::rig::*;
use crate::engine::inner::testing::{fix_checksum, ipv4, ipv6};
use crate::engine::inner::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::engine::port::{Offload, Segmentation};
use crate::engine::*;

/// One flow of the local side of gateway 1 towards gateway 2.
#[derive(Clone, Copy, Debug)]
struct Flow {
    is_v6: bool,
    is_tcp: bool,
    port: u16,
}

const FLOWS: [Flow; 4] = [
    Flow { is_v6: false, is_tcp: true, port: 1 },
    Flow { is_v6: true, is_tcp: true, port: 1 },
    Flow { is_v6: false, is_tcp: false, port: 1 },
    Flow { is_v6: true, is_tcp: false, port: 1 },
];

impl Flow {
    fn headers(self) -> usize {
        (if self.is_v6 { 40 } else { 20 }) + (if self.is_tcp { 20 } else { 8 })
    }

    /// A packet of the flow with this payload, which begins at byte `at` of the stream; the IPv4 identification is `id`.
    fn packet(self, at: u32, id: u16, last: bool, payload: &[u8]) -> Vec<u8> {
        let (protocol, checksum_at, mut l4) = if self.is_tcp {
            let mut l4 = [self.port.to_be_bytes(), 80u16.to_be_bytes()].concat();
            l4.extend(at.to_be_bytes());
            l4.extend([0, 0, 0, 9, 0x50, if last { 0x18 } else { 0x10 }, 0x20, 0, 0, 0, 0, 0]);
            (PROTOCOL_TCP, 16, l4)
        } else {
            let mut l4 = [self.port.to_be_bytes(), 53u16.to_be_bytes()].concat();
            l4.extend(((8 + payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
            (PROTOCOL_UDP, 6, l4)
        };
        l4.extend(payload);
        let addresses = if self.is_v6 { ["fd00:1::5", "fd00:2::9"] } else { ["10.1.0.5", "10.2.0.9"] };
        let octets = |text: &str| match text.parse().unwrap() {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let pseudo =
            [&octets(addresses[0])[..], &octets(addresses[1]), &[0, protocol], &(l4.len() as u16).to_be_bytes()];
        let sum = icmp::checksum(&[&pseudo.concat()[..], &l4].concat());
        // Zero would mean that there is none (RFC 768).
        let sum = if sum == 0 && !self.is_tcp { 0xffff } else { sum };
        l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        if self.is_v6 {
            return ipv6(addresses[0], addresses[1], protocol, &l4);
        }
        let mut packet = ipv4(addresses[0], addresses[1], protocol, 0x4000, &l4);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        fix_checksum(&mut packet);
        packet
    }

    /// `len` bytes of payload as one frame of the local side, and as the packets that it stands for.
    fn superpacket(self, len: usize, segment: usize) -> ((Vec<u8>, RxMeta), Vec<Vec<u8>>) {
        let payload: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(167) >> 3) as u8 ^ self.port as u8).collect();
        let segments: Vec<_> = payload.chunks(segment).collect();
        let of_segment = |(k, bytes): (usize, &&[u8])| {
            self.packet((k * segment) as u32, 7 + k as u16, k + 1 == segments.len(), bytes)
        };
        let packets = segments.iter().enumerate().map(of_segment).collect();
        let segmentation = if self.is_tcp { Segmentation::Tcp { cwr: false } } else { Segmentation::Udp };
        let at = if self.is_v6 { 40 } else { 20 };
        let offload = Offload {
            cut: Some((segmentation, segment as u16)),
            checksum: Some((at, if self.is_tcp { 16 } else { 6 })),
        };
        ((self.packet(0, 7, true, &payload), RxMeta { offload, ..RxMeta::default() }), packets)
    }
}

fn bytes(packets: &[Vec<u8>]) -> u64 {
    packets.iter().map(|packet| packet.len() as u64).sum()
}

#[test]
fn a_superpacket_crosses_as_its_segments_in_one_or_two_trains_and_leaves_as_one() {
    for flow in FLOWS {
        for (len, segment) in [(1, 1000), (1360, 1340), (64_000, 1340), (65_535 - flow.headers(), 1340), (60_000, 1000)]
        {
            // UDP superpackets are no longer than a train of the kernel's.
            if !flow.is_tcp && len > 64 * segment {
                continue;
            }
            let (mut one, mut two) = pair(&Link::default());
            let (frame, packets) = flow.superpacket(len, segment);
            let (wan, back) = one.encapsulate(START, Burst(vec![frame.clone()]));
            assert_eq!(back.frames, []);
            let (trains, datagrams) = (wan.frames.len() as u64, wan.datagrams().len() as u64);
            assert!(trains <= 2, "{trains} trains for {flow:?} {len}");
            let moved = one.moved();
            assert_eq!(
                moved[..3],
                [
                    ("lan_to_wan_packets", packets.len() as u64),
                    ("lan_to_wan_bytes", bytes(&packets)),
                    ("sealed_datagrams", datagrams)
                ]
            );
            let again = Sink { frames: wan.frames.clone(), ..Sink::new() };
            let mut twin = Gateway::new(2, &[1]);
            twin.install(1, &Link::default());
            let (direct, _) = twin.decapsulate(START, Burst::trains(again));
            assert!(direct.bytes() == packets, "{flow:?} {len}");
            let lan = two.join(START, Burst::trains(wan));
            assert!(lan.packets() == packets);
            assert_eq!(lan.frames.len(), 1, "{flow:?} {len} by {segment}");
            assert_eq!(lan.frames[0].0.len(), frame.0.len());
            assert_eq!(
                two.moved(),
                [
                    ("wan_to_lan_packets", packets.len() as u64),
                    ("wan_to_lan_bytes", bytes(&packets)),
                    ("opened_datagrams", datagrams),
                    ("wan_bursts", 1)
                ]
            );
        }
    }
}

#[test]
fn a_burst_of_superpackets_goes_out_in_several_rounds_and_small_packets_still_share_datagrams() {
    let (mut one, mut two) = pair(&Link::default());
    let flows: Vec<_> = (0..12).map(|i| Flow { port: 100 + i, ..FLOWS[usize::from(i) % 2] }).collect();
    let mut frames = Vec::new();
    let mut expected = Vec::new();
    for (i, flow) in flows.iter().enumerate() {
        let (frame, packets) = flow.superpacket(30_000 + 2_000 * i, 1340);
        frames.push(frame);
        expected.push(packets);
        frames.extend((0..4).map(|k| (v4(1, 2, 60, 4 * i + k), RxMeta::default())));
    }
    let (wan, _) = one.encapsulate(START, Burst(frames));
    let all: Vec<Vec<u8>> = expected.concat();
    assert_eq!(one.moved()[0], ("lan_to_wan_packets", all.len() as u64 + 48));
    // 391 segments, 43 in a train, and up to one train that is cut short each time the batch is full.
    assert!(wan.frames.len() <= 391 / 43 + 5, "{} trains", wan.frames.len());
    assert!(wan.datagrams().len() <= 391 + 8, "{} datagrams", wan.datagrams().len());
    let lan = two.join(START, Burst::trains(wan));
    let arrived = lan.packets();
    for (flow, expected) in flows.iter().zip(&expected) {
        let at = if flow.is_v6 { 40 } else { 20 };
        let of_flow =
            |packet: &&Vec<u8>| (packet[0] >> 4 == 6) == flow.is_v6 && packet[at..at + 2] == flow.port.to_be_bytes();
        assert!(arrived.iter().filter(of_flow).eq(expected), "{flow:?}");
    }
    assert_eq!((arrived.len(), two.dropped()), (all.len() + 48, 0));
}

#[test]
fn the_mtu_is_for_segments_and_never_for_the_superpacket() {
    let (mut one, mut two) = pair(&Link { inner_mtu: 1380, ..Link::default() });
    for flow in FLOWS {
        let fits = 1380 - flow.headers();
        let (frame, packets) = flow.superpacket(20_000, fits);
        let (wan, back) = one.encapsulate(START, Burst(vec![frame]));
        assert_eq!(back.frames, []);
        assert!(two.decapsulate(START, Burst::trains(wan)).0.bytes() == packets);
        one.moved();
        let (frame, packets) = flow.superpacket(20_000, fits + 1);
        let (wan, back) = one.encapsulate(START, Burst(vec![frame.clone()]));
        assert_eq!(wan.frames, []);
        let expected = if flow.is_v6 { (2, 0, 1380) } else { (3, 4, 1380) };
        assert_eq!(icmp_error(1, 1, &back.frames[0].0, &frame.0), expected);
        assert_eq!(one.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), ("packet_too_big", packets.len() as u64)]);
    }
    // What may be fragmented is cut by the lane.
    let (mut frame, packets) = FLOWS[2].superpacket(9_000, 1500);
    frame.0[6] &= !0x40;
    fix_checksum(&mut frame.0);
    let may_fragment = |mut packet: Vec<u8>| {
        packet[6] &= !0x40;
        fix_checksum(&mut packet);
        packet
    };
    let expected: Vec<_> = packets.into_iter().map(may_fragment).collect();
    let (wan, back) = one.encapsulate(START, Burst(vec![frame]));
    assert_eq!(back.frames, []);
    let lan = two.join(START, Burst::trains(wan));
    assert!(lan.packets() == expected);
}

#[test]
fn what_the_kernel_asks_for_and_cannot_be_done_is_dropped() {
    let (mut one, _) = pair(&Link::default());
    let (frame, _) = FLOWS[0].superpacket(5000, 1000);
    let mut udp_for_tcp = frame.clone();
    udp_for_tcp.1.offload.cut = Some((Segmentation::Udp, 1000));
    let mut nowhere = frame;
    nowhere.1.offload = Offload { cut: None, checksum: Some((20, 60_000)) };
    let (wan, lan) = one.encapsulate(START, Burst(vec![udp_for_tcp, nowhere]));
    assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
    assert_eq!(one.moved(), [("lan_bursts", 1), ("local_offload", 2)]);
}

#[test]
fn a_checksum_that_was_left_open_is_completed() {
    let (mut one, mut two) = pair(&Link::default());
    for flow in FLOWS {
        let whole = flow.packet(1, 2, true, b"some bytes");
        let (at, field) = (if flow.is_v6 { 40 } else { 20 }, if flow.is_tcp { 16 } else { 6 });
        let mut open = whole.clone();
        // With the pseudo-header's sum in the field, the sum over all is that of the packet: one from a zeroed one, by arithmetic.
        let sum = !icmp::checksum(&{
            let mut rest = whole[usize::from(at)..].to_vec();
            rest[field..field + 2].fill(0);
            rest
        });
        let full = !u16::from_be_bytes([whole[usize::from(at) + field], whole[usize::from(at) + field + 1]]);
        let pseudo = u32::from(full) + u32::from(!sum);
        let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        open[usize::from(at) + field..][..2].copy_from_slice(&(pseudo as u16).to_be_bytes());
        let offload = Offload { cut: None, checksum: Some((at, field as u16)) };
        let (wan, _) = one.encapsulate(START, Burst(vec![(open, RxMeta { offload, ..RxMeta::default() })]));
        assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), [whole]);
    }
}

#[test]
fn segments_that_find_no_room_are_counted_one_by_one() {
    let (mut one, mut two) = pair(&Link::default());
    let (frame, packets) = FLOWS[0].superpacket(64_000, 1340);
    let (mut wan, mut lan) = (Sink::with_room(1), Sink::new());
    one.engine.encapsulate(START, &mut Burst(vec![frame]), &mut wan, &mut lan);
    let moved = one.moved();
    let sent = moved[0].1 as usize;
    assert!((40..48).contains(&sent));
    assert_eq!(moved.last(), Some(&("wan_queue_full", (packets.len() - sent) as u64)));
    assert!(two.decapsulate(START, Burst::trains(wan)).0.bytes() == packets[..sent]);
}

#[test]
fn segments_cut_by_a_small_path_are_joined_in_order() {
    let (mut one, mut two) = pair(&Link { datagram_len_max: 700, inner_mtu: 9000, ..Link::default() });
    for flow in &FLOWS[..2] {
        // More rejoined packets than the arena holds at once.
        let (frame, packets) = flow.superpacket(60_000, 2000);
        let (wan, _) = one.encapsulate(START, Burst(vec![frame; 8]));
        let lan = two.join(START, Burst::trains(wan));
        assert!(lan.packets() == vec![packets; 8].concat());
        assert!(lan.frames.len() <= 3 * 8 + 8, "{} frames", lan.frames.len());
    }
    assert_eq!((one.dropped(), two.dropped()), (0, 0));
}

#[test]
fn more_packets_than_can_wait_leave_in_order() {
    let link = Link { datagram_len_max: u16::MAX, ..Link::default() };
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &link);
    for count in [255, 256, 257, 512, 513, 1500] {
        let packets: Vec<_> = (0..count).map(|id| v4(1, 2, 40, id)).collect();
        let datagrams = [peer.sealed(&packets.concat(), START), peer.sealed(&packets.concat(), START)];
        let lan = two.join(START, Burst::of(datagrams));
        assert!(lan.bytes() == [&packets[..], &packets].concat(), "{count}");
    }
    assert_eq!(two.dropped(), 0);
}

#[test]
fn a_full_local_queue_drops_each_joined_packet_that_it_has_no_room_for() {
    let (mut one, mut two) = pair(&Link::default());
    let flows = [0, 1, 2].map(|port| Flow { port, ..FLOWS[0] }.superpacket(6_000, 1000));
    let frames = flows.iter().map(|(frame, _)| frame.clone()).collect();
    let (wan, _) = one.encapsulate(START, Burst(frames));
    let datagrams = wan.datagrams().len() as u64;
    let (mut lan, mut own) = (Sink { room: 2, ..Sink::joining() }, Sink::new());
    two.engine.decapsulate(START, &mut Burst::trains(wan), &mut lan, &mut own);
    assert!(lan.packets() == [&flows[0].1[..], &flows[1].1].concat());
    assert_eq!(
        two.moved(),
        [
            ("wan_to_lan_packets", 12),
            ("wan_to_lan_bytes", 12 * 1040),
            ("opened_datagrams", datagrams),
            ("wan_bursts", 1),
            ("lan_queue_full", 6)
        ]
    );
}

#[test]
fn a_packet_longer_than_any_slot_is_told_from_a_full_queue() {
    let (mut one, mut two) = pair(&Link { inner_mtu: u16::MAX, ..Link::default() });
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 9000, 1), v4(1, 2, 9001, 2), v4(1, 2, 100, 3)]));
    let mut lan = Sink { slot_len: 9000, room: 1, ..Sink::new() };
    two.engine.decapsulate(START, &mut Burst::trains(wan), &mut lan, &mut Sink::new());
    assert_eq!(lan.frames.len(), 1);
    lan.room = 2;
    let moved = two.moved();
    assert_eq!(moved[moved.len() - 1..], [("lan_queue_full", 2)], "without room nothing can be said of lengths");
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 9000, 1), v4(1, 2, 9001, 2), v4(1, 2, 100, 3)]));
    two.engine.decapsulate(START, &mut Burst::trains(wan), &mut lan, &mut Sink::new());
    assert_eq!(lan.frames.len(), 3);
    let moved = two.moved();
    assert_eq!(moved[moved.len() - 1..], [("lan_oversized", 1)]);
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_burst_of_superpackets_arrives_as_its_segments_flow_by_flow(
            frames in prop::collection::vec((0usize..4, 1usize..20_000, 500usize..2500), 1..20),
            path in 548u16..2000,
            alone: bool,
        ) {
            let link = Link { datagram_len_max: path, inner_mtu: u16::MAX, ..Link::default() };
            let (mut one, mut two) = pair(&link);
            let made: Vec<_> = (1u16..)
                .zip(frames)
                .map(|(port, (flow, len, segment))| {
                    let flow = Flow { port, ..FLOWS[flow] };
                    (flow, flow.superpacket(len, segment))
                })
                .collect();
            let burst = made.iter().map(|(_, (frame, _))| frame.clone()).collect();
            let (wan, back) = one.encapsulate(START, Burst(burst));
            prop_assert_eq!(back.frames, vec![]);
            let burst = Burst::trains(wan);
            let lan = if alone { two.decapsulate(START, burst).0 } else { two.join(START, burst) };
            let arrived = lan.packets();
            prop_assert_eq!((one.dropped(), two.dropped()), (0, 0));
            prop_assert_eq!(arrived.len(), made.iter().map(|(_, (_, packets))| packets.len()).sum::<usize>());
            for (flow, (_, packets)) in &made {
                let at = if flow.is_v6 { 40 } else { 20 };
                let of_flow = |packet: &&Vec<u8>| (packet[0] >> 4 == 6) == flow.is_v6 && packet[at..at + 2] == flow.port.to_be_bytes();
                prop_assert!(arrived.iter().filter(of_flow).eq(packets), "{:?}", flow);
            }
        }
    }
}
