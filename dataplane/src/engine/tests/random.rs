//! Facts about whatever comes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::rig::*;
use crate::engine::offload::Segments;
use crate::engine::port::{Offload, Segmentation};
use crate::engine::*;

/// Bytes that look like something often enough to get beyond the first check.
fn likely_plaintext() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (20usize..200, 1u8..5, 1u8..5, any::<u8>())
            .prop_map(|(len, from, to, ttl)| with_ttl(v4(from, to, len, 1), ttl)),
        (40usize..200, 1u8..5, 1u8..5, any::<u8>())
            .prop_map(|(len, from, to, ttl)| with_ttl(v6(from, to, len, 1), ttl)),
        (any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(kind, len, body)| [
            vec![0x10 | kind & 0x0f, len % 12],
            body
        ]
        .concat()),
        (any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(len, body)| [
            &(0x2000 | (len % 64)).to_be_bytes()[..],
            &body
        ]
        .concat()),
        // The beginning of something long.
        (prop::collection::vec(any::<u8>(), 6..40), any::<u16>()).prop_map(|(mut bytes, len)| {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes
        }),
    ];
    prop::collection::vec(block, 0..8).prop_map(|blocks| blocks.concat())
}

fn gateway(limits: lane::Limits) -> (Gateway, Attacker, Gateway) {
    let mut two = Gateway::new(2, &[1, 3]);
    two.route(&[(1, NextHop::Session(slot(1))), (3, NextHop::Session(slot(3))), (4, NextHop::Session(slot(77)))], true);
    two.install(3, &Link::default());
    let peer = Attacker::against(&mut two, 1, &Link { limits, ..Link::default() });
    let mut three = Gateway::new(3, &[2]);
    three.install(2, &Link { behind: &[1], ..Link::default() });
    two.events();
    (two, peer, three)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_datagram_makes_the_engine_panic_and_each_is_counted(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), any::<bool>(), 0u16..80), 0..40),
    ) {
        let (mut two, ..) = gateway(lane::Limits::default());
        let mut burst = Burst(Vec::new());
        let mut datagrams = 0;
        for (mut bytes, ours, segment) in frames {
            if ours && bytes.len() >= 16 {
                bytes[..4].copy_from_slice(&[0x20, 1, 0, 0]);
                bytes[4..8].copy_from_slice(&index(2, 1, EXCHANGE).0.to_be_bytes());
            }
            datagrams += if segment == 0 { 1 } else { bytes.len().div_ceil(usize::from(segment)).max(1) } as u64;
            burst.0.push((bytes, RxMeta { segment, ..RxMeta::default() }));
        }
        let (lan, wan) = two.decapsulate(START, burst);
        prop_assert_eq!((lan.frames, wan.frames), (vec![], vec![]));
        prop_assert_eq!(two.dropped(), datagrams);
    }

    #[test]
    fn no_packet_from_the_local_side_makes_the_engine_panic_and_each_is_sent_or_counted(
        packets in prop::collection::vec(likely_plaintext(), 0..BURST_LEN),
        more in prop::collection::vec((20usize..3000, 1u8..6), 0..20),
    ) {
        let (mut two, ..) = gateway(lane::Limits::default());
        let more = more.into_iter().enumerate().map(|(id, (len, to))| v4(2, to, len, id));
        let packets: Vec<_> = packets.into_iter().chain(more).take(BURST_LEN).collect();
        let count = packets.len() as u64;
        two.encapsulate(START, Burst::of(packets));
        // Those that wait for a session wait in vain.
        two.engine.expire(START.plus(2 * held::HOLD_LIFETIME));
        let moved: BTreeMap<_, _> = two.moved().into_iter().collect();
        let sent = moved.get("lan_to_wan_packets").copied().unwrap_or(0);
        let dropped: u64 = DropReason::ALL.iter().filter_map(|reason| moved.get(reason.name())).sum();
        prop_assert_eq!(sent + dropped, count);
    }

    #[test]
    fn no_offload_that_the_kernel_may_ask_for_makes_the_engine_panic_and_each_segment_is_sent_or_counted(
        frames in prop::collection::vec(
            (likely_plaintext(), 20usize..9000, any::<Option<(bool, u16)>>(), any::<Option<(u16, u16)>>()),
            1..20,
        ),
    ) {
        let (mut two, ..) = gateway(lane::Limits::default());
        let mut burst = Burst(vec![]);
        let mut expected = 0;
        for (i, (bytes, len, cut, checksum)) in frames.into_iter().enumerate() {
            let mut packet = if i % 3 == 0 { bytes } else { v4(2, 1, len, i) };
            if i % 3 == 1 && len >= 40 {
                // Something with a TCP header, right or not.
                packet[9] = 6;
                packet[32] = 0x50;
                inner::testing::fix_checksum(&mut packet);
            }
            let cut = cut.map(|(is_tcp, segment)| {
                (if is_tcp { Segmentation::Tcp { cwr: true } } else { Segmentation::Udp }, segment % 2000)
            });
            // Half of the places are where they should be.
            let checksum = checksum.map(|(start, at)| if at % 2 == 0 { (20, at % 40) } else { (start, at) });
            let offload = Offload { cut, checksum };
            let segments = Inner::parse(&packet).and_then(|inner| Segments::new(&packet, &inner, offload));
            expected += segments.map_or(1, |segments| segments.count()) as u64;
            burst.0.push((packet, RxMeta { offload, ..RxMeta::default() }));
        }
        two.encapsulate(START, burst);
        two.engine.expire(START.plus(2 * held::HOLD_LIFETIME));
        let moved: BTreeMap<_, _> = two.moved().into_iter().collect();
        let sent = moved.get("lan_to_wan_packets").copied().unwrap_or(0);
        let dropped: u64 = DropReason::ALL.iter().filter_map(|reason| moved.get(reason.name())).sum();
        prop_assert_eq!(sent + dropped, expected);
    }

    #[test]
    fn no_plaintext_of_a_malicious_peer_makes_the_engine_panic_or_lets_a_foreign_source_in(
        plaintexts in prop::collection::vec(likely_plaintext(), 1..30),
        generations: bool,
    ) {
        let generation_bytes = if generations { lane::DATAGRAM_CHARGE_MIN } else { lane::GENERATION_BYTES };
        let (mut two, mut peer, mut three) = gateway(lane::Limits { generation_bytes, ..lane::Limits::default() });
        for plaintext in plaintexts {
            let datagram = peer.sealed(&plaintext, START);
            let len = datagram.len();
            let (lan, wan) = two.decapsulate(START, Burst::of([datagram]));
            for packet in lan.bytes() {
                let inner = Inner::parse(&packet).unwrap();
                prop_assert!(prefixes(1).iter().any(|prefix| prefix.contains(inner.source)));
                prop_assert!(prefixes(2).iter().any(|prefix| prefix.contains(inner.destination)));
            }
            // An ICMP error is up to 48 bytes longer than what it answers, so not quite one for one.
            let sent: usize = wan.bytes().iter().map(Vec::len).sum();
            prop_assert!(sent <= 4 * len, "{} bytes made {}", len, sent);
            let onward: Vec<_> = wan.frames.into_iter().filter(|(_, m)| m.destination == Some(endpoint(3))).collect();
            let mut theirs = Sink::new();
            theirs.frames = onward;
            three.decapsulate(START, Burst::trains(theirs));
            prop_assert_eq!(three.dropped(), 0, "what we forward is well-formed");
            // One datagram may close a session and carry a packet for another that is not there; it says neither twice.
            let events = two.events();
            prop_assert!(events.len() <= 2 && events.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", events);
            two.engine.expire(START);
        }
    }

    #[test]
    fn a_bad_wire_delivers_only_what_was_sent_and_that_at_most_once(
        bursts in prop::collection::vec(prop::collection::vec((28usize..4000, any::<bool>()), 1..BURST_LEN), 1..6),
        fates in prop::collection::vec((0u8..10, 0usize..1000), 64),
        path in 548u16..2000,
    ) {
        let link = Link { datagram_len_max: path, inner_mtu: u16::MAX, ..Link::default() };
        let (mut one, mut two) = pair(&link);
        let mut sent: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        let mut wire = Vec::new();
        for (b, burst) in bursts.into_iter().enumerate() {
            let packet = |(i, (len, is_v6)): (usize, (usize, bool))| {
                let id = b * BURST_LEN + i;
                if is_v6 { v6(1, 2, len.max(60), id) } else { v4(1, 2, len, id) }
            };
            let packets: Vec<_> = burst.into_iter().enumerate().map(packet).collect();
            for packet in &packets {
                *sent.entry(packet.clone()).or_default() += 1;
            }
            wire.extend(one.encapsulate(START, Burst::of(packets)).0.datagrams());
        }
        let perfect = fates.iter().all(|(fate, _)| *fate >= 3);
        let mut arriving = Vec::new();
        for (i, datagram) in wire.into_iter().enumerate() {
            match fates[i % fates.len()] {
                (0, _) => {}
                (1, _) => arriving.extend([datagram.clone(), datagram]),
                (2, place) => arriving.insert(place % (arriving.len() + 1), datagram),
                _ => arriving.push(datagram),
            }
        }
        for burst in arriving.chunks(BURST_LEN) {
            for packet in two.decapsulate(START, Burst::of(burst.to_vec())).0.bytes() {
                let left = sent.get_mut(&packet);
                prop_assert!(left.as_ref().is_some_and(|left| **left > 0), "never sent, or sent less often");
                *left.unwrap() -= 1;
            }
        }
        if perfect {
            prop_assert!(sent.values().all(|left| *left == 0));
            prop_assert_eq!(two.dropped(), 0);
        }
    }
}
