//! The header that a TUN puts before a packet when offloads are on (`struct virtio_net_hdr` in `include/uapi/linux/virtio_net.h`), and the
//! [`Offload`] that it means.
//!
//! ```text
//!   0       1          2         4          6            8             10
//!   ┌───────┬──────────┬─────────┬──────────┬────────────┬─────────────┬───────────────────────
//!   │ flags │ gso_type │ hdr_len │ gso_size │ csum_start │ csum_offset │ IP packet or superpacket
//!   └───────┴──────────┴─────────┴──────────┴────────────┴─────────────┴───────────────────────
//!     1: complete the checksum    headers,   payload of   where the     where in those
//!                                 a hint     each piece   summed bytes  bytes the
//!                                                         begin         checksum stands
//! ```
//!
//! Numbers are in the byte order of the machine. What is read here is checked against the packet's length and first byte, so that
//! whoever cuts may rely on it; whether the packet itself is sound, others find out.

use crate::engine::port::{Offload, Segmentation};

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`. The other flags say what has been verified; nothing is left to do then.
const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where the checksum stands in a TCP header (RFC 9293 §3.1), and in a UDP header (RFC 768).
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// A TCP header without options (RFC 9293 §3.1), and a UDP header (RFC 768), in bytes.
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// A header that means nothing we know, or contradicts its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// What is left to do with the packet of a frame that begins with `header_len` bytes of header, or with none.
pub(super) fn offload_of(frame: &[u8], header_len: usize) -> Result<Offload, Refused> {
    if header_len == 0 {
        return Ok(Offload::default());
    }
    let (header, packet) = frame.split_first_chunk().ok_or(Refused)?;
    decode(header, packet)
}

/// What is left to do with the packet behind a header.
fn decode(header: &[u8; HEADER_LEN], packet: &[u8]) -> Result<Offload, Refused> {
    let &[flags, gso_type, _, _, s0, s1, c0, c1, o0, o1] = header;
    let [size, start, offset] = [[s0, s1], [c0, c1], [o0, o1]].map(u16::from_ne_bytes);
    let checksum = (flags & NEEDS_CSUM != 0).then_some((start, offset));
    let version = packet.first().map(|first| first >> 4);
    let cut = match (gso_type & !GSO_ECN, version) {
        (GSO_NONE, _) => None,
        (GSO_TCPV4, Some(4)) | (GSO_TCPV6, Some(6)) => Some(Segmentation::Tcp { cwr: gso_type & GSO_ECN != 0 }),
        (GSO_UDP_L4, Some(4 | 6)) => Some(Segmentation::Udp),
        _ => return Err(Refused),
    };
    // ECN is about a TCP superpacket's CWR flag and about nothing else.
    if gso_type & GSO_ECN != 0 && !matches!(cut, Some(Segmentation::Tcp { .. })) {
        return Err(Refused);
    }
    let offload = Offload { cut: cut.map(|how| (how, size)), checksum };
    check(&offload, packet).map(|_| offload)
}

/// The header that says what is left to do with a packet.
pub(super) fn encode(offload: &Offload, packet: &[u8]) -> Result<[u8; HEADER_LEN], Refused> {
    let header_len = check(offload, packet)?;
    let (start, offset) = offload.checksum.unwrap_or_default();
    let (gso_type, size) = match (offload.cut, packet.first().map(|first| first >> 4)) {
        (None, _) => (GSO_NONE, 0),
        (Some((Segmentation::Tcp { cwr }, size)), Some(version @ (4 | 6))) => {
            let kind = if version == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
            (kind | if cwr { GSO_ECN } else { 0 }, size)
        }
        (Some((Segmentation::Udp, size)), Some(4 | 6)) => (GSO_UDP_L4, size),
        _ => return Err(Refused),
    };
    let flags = if offload.checksum.is_some() { NEEDS_CSUM } else { 0 };
    let [[h0, h1], [s0, s1], [c0, c1], [o0, o1]] = [header_len, size, start, offset].map(u16::to_ne_bytes);
    Ok([flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1])
}

/// Compares an offload with its packet. Gives the length of the headers that each piece repeats, in bytes, or zero for what is not cut.
fn check(offload: &Offload, packet: &[u8]) -> Result<u16, Refused> {
    let Some((start, offset)) = offload.checksum else {
        return if offload.cut.is_none() { Ok(0) } else { Err(Refused) };
    };
    let at = usize::from(start);
    if at + usize::from(offset) + 2 > packet.len() {
        return Err(Refused);
    }
    let Some((how, size)) = offload.cut else { return Ok(0) };
    let (field, l4_len) = match how {
        // The data offset counts words of four bytes (RFC 9293 §3.1).
        Segmentation::Tcp { .. } => (TCP_CHECKSUM, packet.get(at + 12).map_or(0, |byte| usize::from(byte >> 4) * 4)),
        Segmentation::Udp => (UDP_CHECKSUM, UDP_LEN),
    };
    let len_min = if matches!(how, Segmentation::Udp) { UDP_LEN } else { TCP_LEN };
    if size == 0 || offset != field || l4_len < len_min || at + l4_len > packet.len() {
        return Err(Refused);
    }
    u16::try_from(at + l4_len).map_err(|_| Refused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: Segmentation = Segmentation::Tcp { cwr: false };

    /// The headers of a TCP packet without options, and `payload` bytes.
    fn packet(version: u8, payload: usize) -> (Vec<u8>, u16) {
        let start = if version == 4 { 20 } else { 40 };
        let mut packet = vec![0; start + 20 + payload];
        packet[0] = if version == 4 { 0x45 } else { 0x60 };
        packet[start + 12] = 5 << 4;
        (packet, start as u16)
    }

    fn header(flags: u8, gso_type: u8, size: u16, start: u16, offset: u16) -> [u8; HEADER_LEN] {
        let [[s0, s1], [c0, c1], [o0, o1]] = [size, start, offset].map(u16::to_ne_bytes);
        [flags, gso_type, 0, 0, s0, s1, c0, c1, o0, o1]
    }

    #[test]
    fn every_kind_is_read_and_written_alike() {
        for (version, tcp) in [(4, GSO_TCPV4), (6, GSO_TCPV6)] {
            let (packet, start) = packet(version, 3000);
            let offload = |how, field| Offload { cut: Some((how, 1200)), checksum: Some((start, field)) };
            for (written, expected) in [
                (header(0, GSO_NONE, 0, 0, 0), Offload::default()),
                (header(1, GSO_NONE, 0, start, 16), Offload { cut: None, checksum: Some((start, 16)) }),
                (header(1, tcp, 1200, start, 16), offload(TCP, 16)),
                (header(1, tcp | GSO_ECN, 1200, start, 16), offload(Segmentation::Tcp { cwr: true }, 16)),
                (header(1, GSO_UDP_L4, 1200, start, 6), offload(Segmentation::Udp, 6)),
            ] {
                assert_eq!(decode(&written, &packet), Ok(expected));
                let mut encoded = encode(&expected, &packet).unwrap();
                let header_len = u16::from_ne_bytes([encoded[2], encoded[3]]);
                let l4_len = match expected.cut {
                    None => 0,
                    Some((Segmentation::Udp, _)) => start + 8,
                    Some(_) => start + 20,
                };
                assert_eq!(header_len, l4_len);
                encoded[2..4].fill(0);
                assert_eq!(encoded, written);
            }
        }
    }

    #[test]
    fn what_is_verified_already_leaves_nothing_to_do() {
        let (packet, _) = packet(4, 0);
        // VIRTIO_NET_HDR_F_DATA_VALID, with garbage where the checksum fields are.
        assert_eq!(decode(&header(2, GSO_NONE, 7, 9, 9), &packet), Ok(Offload::default()));
    }

    #[test]
    fn kinds_that_nobody_knows_and_contradictions_are_refused() {
        let (four, start) = packet(4, 3000);
        let (six, start_six) = packet(6, 3000);
        for (case, header, packet) in [
            ("UFO, gone since Linux 4.14", header(1, 3, 1200, start, 6), &four),
            ("unknown type", header(1, 6, 1200, start, 16), &four),
            ("ECN without TCP", header(1, GSO_ECN, 0, start, 16), &four),
            ("ECN with UDP", header(1, GSO_UDP_L4 | GSO_ECN, 1200, start, 6), &four),
            ("TCP over IPv4 in IPv6", header(1, GSO_TCPV4, 1200, start_six, 16), &six),
            ("TCP over IPv6 in IPv4", header(1, GSO_TCPV6, 1200, start, 16), &four),
            ("pieces of no byte", header(1, GSO_TCPV4, 0, start, 16), &four),
            ("cut, but no checksum to complete", header(0, GSO_TCPV4, 1200, start, 16), &four),
            ("UDP's checksum in a TCP header", header(1, GSO_TCPV4, 1200, start, 6), &four),
            ("TCP's checksum in a UDP header", header(1, GSO_UDP_L4, 1200, start, 16), &four),
            ("a data offset of zero", header(1, GSO_TCPV4, 1200, start + 4, 16), &four),
            ("no packet", header(1, GSO_UDP_L4, 1200, 0, 6), &vec![]),
        ] {
            assert_eq!(decode(&header, packet), Err(Refused), "{case}");
        }
    }

    #[test]
    fn a_checksum_lies_inside_its_packet_to_the_byte() {
        let (packet, start) = packet(4, 0);
        let offset = packet.len() as u16 - start - 2;
        assert!(decode(&header(1, GSO_NONE, 0, start, offset), &packet).is_ok());
        assert_eq!(decode(&header(1, GSO_NONE, 0, start, offset + 1), &packet), Err(Refused));
        assert_eq!(decode(&header(1, GSO_NONE, 0, u16::MAX, u16::MAX), &packet), Err(Refused));
        let mut long = packet.clone();
        long[usize::from(start) + 12] = 6 << 4;
        assert_eq!(decode(&header(1, GSO_TCPV4, 1, start, 16), &long), Err(Refused), "a header longer than the packet");
        assert!(decode(&header(1, GSO_TCPV4, 1, start, 16), &packet).is_ok());
    }

    proptest! {
        #[test]
        fn no_header_panics_and_what_is_accepted_is_written_again(
            bytes: [u8; HEADER_LEN],
            known: bool,
            version in prop::sample::select(vec![0u8, 0x45, 0x60]),
            mut packet in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = bytes;
            if known {
                bytes[0] &= 3;
                bytes[1] &= 0x87;
                let [start, offset] = [u16::from(bytes[6] % 64), u16::from(bytes[8] % 20)].map(u16::to_ne_bytes);
                bytes[6..8].copy_from_slice(&start);
                bytes[8..10].copy_from_slice(&offset);
            }
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            if let Ok(offload) = decode(&bytes, &packet) {
                prop_assert!(offload.cut.is_none_or(|(_, size)| size > 0) && (offload.cut.is_none() || offload.checksum.is_some()));
                if let Some((start, offset)) = offload.checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= packet.len());
                }
                let encoded = encode(&offload, &packet).unwrap();
                prop_assert!(usize::from(u16::from_ne_bytes([encoded[2], encoded[3]])) <= packet.len());
                prop_assert_eq!(decode(&encoded, &packet), Ok(offload));
            }
        }
    }
}
