//! Superpackets become packets.

use proptest::prelude::*;
use weir_abi::drop::DropReason;

use super::super::super::inner::Inner;
use super::super::super::port::{Offload, Segmentation};
use super::super::checksum::testing::plain_checksum;
use super::super::segment::Segments;
use super::model::*;

const REFUSED: Result<usize, DropReason> = Err(DropReason::LocalOffload);

/// All packets, each laid whole.
pub(super) fn laid(packet: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, DropReason> {
    let segments = Segments::new(packet, &Inner::parse(packet)?, offload)?;
    Ok((0..segments.count())
        .map(|k| {
            let mut out = vec![0xaa; segments.len(k)];
            segments.lay(packet, k, 0, &mut out);
            out
        })
        .collect())
}

fn bytes_of(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::bytes).collect()
}

fn count(packet: &[u8], offload: Offload) -> Result<usize, DropReason> {
    Segments::new(packet, &Inner::parse(packet).unwrap(), offload).map(|segments| segments.count())
}

#[test]
fn a_description_is_small() {
    assert!(size_of::<Segments>() <= 16);
}

#[test]
fn a_packet_without_offload_is_itself() {
    for len in [0, 1, 1400] {
        let packet = Packet { payload: vec![5; len], ..Packet::new(true, false) }.bytes();
        assert_eq!(laid(&packet, Offload::default()), Ok(vec![packet.clone()]));
    }
}

#[test]
fn flags_and_numbers_of_a_tcp_superpacket_go_where_they_belong() {
    let whole = Packet {
        sequence: u32::MAX - 1500,
        id: u16::MAX,
        flags: ACK | PSH | FIN | CWR | ECE,
        payload: (0..3001u32).map(|i| i as u8).collect(),
        ..Packet::new(true, true)
    };
    let packets = laid(&whole.partial_bytes(), whole.offload(1000, true)).unwrap();
    assert_eq!(packets.len(), 4);
    assert_eq!(packets.iter().map(Vec::len).collect::<Vec<_>>(), [1040, 1040, 1040, 41]);
    assert_eq!(packets.iter().map(|p| p[33]).collect::<Vec<_>>(), [0xd0, 0x50, 0x50, 0x59]);
    assert_eq!(packets.iter().map(|p| [p[4], p[5]]).collect::<Vec<_>>(), [[255, 255], [0, 0], [0, 1], [0, 2]]);
    let sequences = packets.iter().map(|p| u32::from_be_bytes([p[24], p[25], p[26], p[27]]));
    assert_eq!(sequences.collect::<Vec<_>>(), [u32::MAX - 1500, u32::MAX - 500, 499, 1499]);
    for packet in &packets {
        assert!(Inner::parse(packet).is_ok());
        let pseudo = [&packet[12..20], &[0, 6], &(packet.len() as u16 - 20).to_be_bytes()].concat();
        assert_eq!(plain_checksum(&[&pseudo, &packet[20..]].concat()), 0);
    }
    // Without the event, every packet keeps the flag.
    let packets = laid(&whole.partial_bytes(), whole.offload(1000, false)).unwrap();
    assert_eq!(packets.iter().map(|p| p[33]).collect::<Vec<_>>(), [0xd0, 0xd0, 0xd0, 0xd9]);
}

#[test]
fn a_superpacket_of_one_segment_is_one_finished_packet() {
    for (payload, packets) in [(999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3)] {
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let whole = Packet { payload: vec![3; payload], flags: ACK | PSH | CWR, ..Packet::new(v4, tcp) };
            let found = laid(&whole.partial_bytes(), whole.offload(1000, true)).unwrap();
            assert_eq!((found.len(), &found), (packets, &bytes_of(&whole.cut(1000, true))));
        }
    }
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_sent_as_all_ones() {
    let mut packet = Packet { payload: vec![0; 2], ..Packet::new(true, false) };
    // The checksum of the packet with zeros, put into the payload, makes the whole sum all ones.
    let bytes = packet.bytes();
    packet.payload = bytes[26..28].to_vec();
    assert_eq!(packet.bytes()[26..28], [0xff; 2]);
    assert_eq!(laid(&packet.partial_bytes(), packet.offload(2, false)), Ok(vec![packet.bytes()]));
    let only = Offload { cut: None, checksum: Some(packet.checksum_only()) };
    assert_eq!(laid(&packet.partial_bytes(), only), Ok(vec![packet.bytes()]));
}

#[test]
fn the_longest_superpacket_in_the_smallest_pieces() {
    let whole = Packet { payload: vec![7; 65_535 - 40], ..Packet::new(true, true) };
    let bytes = whole.partial_bytes();
    assert_eq!(count(&bytes, whole.offload(1, false)), Ok(65_495));
    let segments = Segments::new(&bytes, &Inner::parse(&bytes).unwrap(), whole.offload(1, false)).unwrap();
    let mut out = [0; 41];
    segments.lay(&bytes, 65_494, 0, &mut out);
    assert_eq!(out[..], whole.cut(1, false)[65_494].bytes());
}

#[test]
fn an_offload_that_does_not_fit_is_refused() {
    let tcp = Packet { payload: vec![1; 100], ..Packet::new(true, true) };
    let udp = Packet { payload: vec![1; 100], ..Packet::new(true, false) };
    let bytes = tcp.partial_bytes();
    assert_eq!(count(&bytes, tcp.offload(10, false)), Ok(10));
    assert_eq!(count(&bytes, tcp.offload(0, false)), REFUSED);
    assert_eq!(count(&bytes, udp.offload(10, false)), REFUSED);
    assert_eq!(count(&udp.partial_bytes(), tcp.offload(10, false)), REFUSED);
    let elsewhere = Offload { checksum: Some((21, 16)), ..tcp.offload(10, false) };
    assert_eq!(count(&bytes, elsewhere), REFUSED);
    // The recomputed checksum does not depend on what is said of it.
    let unsaid = Offload { checksum: None, ..tcp.offload(10, false) };
    assert_eq!(laid(&bytes, unsaid), Ok(bytes_of(&tcp.cut(10, false))));
    for offset in [0x40, 0x50, 0x5f, 0xf0] {
        let mut bytes = Packet { payload: vec![1; 39], ..Packet::new(true, true) }.partial_bytes();
        bytes[32] = offset;
        assert_eq!(count(&bytes, tcp.offload(10, false)).is_ok(), matches!(offset, 0x50 | 0x5f), "{offset}");
    }
    for (payload, whole) in [(vec![], &tcp), (vec![], &udp)] {
        let empty = Packet { payload, ..whole.clone() };
        assert_eq!(count(&empty.partial_bytes(), whole.offload(10, false)), REFUSED);
    }
    for whole in [&tcp, &udp] {
        for len in 20..whole.l4_offset() + whole.l4_len() {
            let mut cut = whole.partial_bytes();
            cut.truncate(len);
            cut[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            super::super::super::inner::testing::fix_checksum(&mut cut);
            assert_eq!(count(&cut, whole.offload(10, false)), REFUSED);
        }
    }
}

#[test]
fn a_fragment_is_neither_cut_nor_completed() {
    use super::super::super::inner::testing::{fix_checksum, ipv6_fragment};
    let tcp = Packet { payload: vec![1; 100], ..Packet::new(true, true) };
    let only = Offload { cut: None, checksum: Some((20, 16)) };
    // More fragments behind it; or it is itself behind others.
    for field in [[0x20, 0], [0x20, 8], [0, 8]] {
        let mut bytes = tcp.partial_bytes();
        bytes[6..8].copy_from_slice(&field);
        fix_checksum(&mut bytes);
        assert_eq!(count(&bytes, tcp.offload(10, false)), REFUSED);
        assert_eq!(count(&bytes, only), REFUSED);
        assert_eq!(count(&bytes, Offload::default()), Ok(1));
    }
    let atomic = ipv6_fragment(0, 6, &[0x50; 100]);
    let cut = Offload { cut: Some((Segmentation::Tcp { cwr: false }, 10)), checksum: Some((48, 16)) };
    assert_eq!(count(&atomic, cut), REFUSED);
}

#[test]
fn a_checksum_is_completed_within_the_packet_only() {
    let packet = Packet { payload: vec![1; 9], ..Packet::new(true, false) };
    let bytes = packet.partial_bytes();
    assert_eq!(bytes.len(), 37);
    for (start, offset, fits) in [
        (20, 6, true),
        (20, 15, true),
        (20, 16, false),
        (35, 0, true),
        (36, 0, false),
        (19, 7, false),
        (0, 10, false),
        (u16::MAX, 1, false),
        (u16::MAX, 0, false),
        (20, u16::MAX, false),
    ] {
        let offload = Offload { cut: None, checksum: Some((start, offset)) };
        assert_eq!(laid(&bytes, offload).is_ok(), fits, "{start} {offset}");
    }
}

proptest! {
    #[test]
    fn a_superpacket_is_cut_as_the_plain_model_does(
        whole in any_packet(1..5000),
        segment in 1u16..2000,
        cwr in any::<bool>(),
    ) {
        let offload = whole.offload(segment, cwr);
        prop_assert_eq!(laid(&whole.partial_bytes(), offload), Ok(bytes_of(&whole.cut(usize::from(segment), cwr))));
    }

    #[test]
    fn a_checksum_is_completed_as_the_plain_model_does(whole in any_packet(0..2000)) {
        let offload = Offload { cut: None, checksum: Some(whole.checksum_only()) };
        let mut expected = whole.bytes();
        let field = whole.l4_offset() + whole.checksum_offset();
        if expected[field..field + 2] == [0; 2] {
            expected[field..field + 2].fill(0xff);
        }
        prop_assert_eq!(laid(&whole.partial_bytes(), offload), Ok(vec![expected]));
    }

    #[test]
    fn a_packet_laid_in_pieces_is_the_same(
        whole in any_packet(1..3000),
        segment in 1u16..2000,
        only_checksum in any::<bool>(),
        k in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let bytes = whole.partial_bytes();
        let mut offload = whole.offload(segment, false);
        if only_checksum {
            offload.cut = None;
        }
        let expected = laid(&bytes, offload).unwrap();
        let segments = Segments::new(&bytes, &Inner::parse(&bytes).unwrap(), offload).unwrap();
        let k = k.index(expected.len());
        let len = segments.len(k);
        // Some cuts fall into the headers.
        let mut cuts: Vec<usize> =
            cuts.iter().enumerate().map(|(i, cut)| cut.index(if i % 2 == 0 { len + 1 } else { len.min(100) })).collect();
        cuts.sort_unstable();
        let mut found = vec![];
        for cut in cuts {
            let mut out = vec![0xaa; cut - found.len()];
            segments.lay(&bytes, k, found.len(), &mut out);
            found.extend(out);
        }
        // More room than bytes: what is beyond stays.
        let mut out = vec![0xaa; len - found.len() + 5];
        segments.lay(&bytes, k, found.len(), &mut out);
        found.extend(out);
        prop_assert_eq!(found.split_off(len), [0xaa; 5]);
        prop_assert_eq!(&found, &expected[k]);
        segments.lay(&bytes, k, len + 1, &mut [0]);
        segments.lay(&bytes, expected.len(), 0, &mut [0]);
    }

    #[test]
    fn no_offload_makes_cutting_panic(
        mut packet in prop::collection::vec(any::<u8>(), 20..300),
        whole in any_packet(0..100),
        v4 in any::<bool>(),
        well_formed in any::<bool>(),
        offload in (
            prop::option::of((any::<bool>(), any::<bool>(), prop_oneof![0u16..200, any::<u16>()])),
            prop::option::of((prop_oneof![0u16..120, any::<u16>()], prop_oneof![0u16..40, any::<u16>()])),
        ),
        from in 0usize..400,
        room in 0usize..400,
    ) {
        if well_formed {
            packet = whole.partial_bytes();
        } else if v4 {
            packet[0] = 0x45 + packet[0] % 3;
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6] &= 0x40;
            packet[9] = if packet[9] & 1 == 0 { 6 } else { 17 };
            packet.resize(packet.len().max(28), 0);
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            super::super::super::inner::testing::fix_checksum(&mut packet);
        }
        let cut = offload.0.map(|(tcp, cwr, segment)| {
            (if tcp { Segmentation::Tcp { cwr } } else { Segmentation::Udp }, segment)
        });
        let offload = Offload { cut, checksum: offload.1 };
        let Ok(inner) = Inner::parse(&packet) else { return Ok(()) };
        let Ok(segments) = Segments::new(&packet, &inner, offload) else { return Ok(()) };
        for k in 0..segments.count() + 1 {
            let mut out = vec![0; room];
            segments.lay(&packet, k, from, &mut out);
            // Nor do bytes that are not those of the description.
            segments.lay(&packet[..from.min(packet.len())], k, 0, &mut out);
            segments.lay(&[], k, 0, &mut out);
        }
    }
}
