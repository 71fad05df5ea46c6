//! From a frame on the underlay to the UDP datagram inside it.
//!
//! One parser for XDP, for tc and for user space. It follows Ethernet II, at most two VLAN tags, IPv4 with options or IPv6 with a bounded
//! chain of extension headers, and UDP. Whatever it does not follow is not an error: it is the kernel's ([`NotDatagram`]), which knows
//! more protocols than we do.

use crate::address::Address;
use crate::cursor::{Bytes, Contiguous};

/// Bytes of an Ethernet II header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of one IEEE 802.1Q or 802.1ad tag.
pub const VLAN_TAG_LEN: usize = 4;
/// Most VLAN tags that are followed.
pub const VLAN_TAGS_MAX: usize = 2;
/// Bytes of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Most IPv6 extension headers that are followed in a frame of the underlay. Two cover what hosts send before UDP.
pub const EXTENSIONS_MAX: usize = 3;
/// Longest extension header that is followed, in bytes.
pub const EXTENSION_LEN_MAX: usize = 256;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol number of UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;
/// More-fragments flag and fragment offset of an IPv4 header (RFC 791 §3.1).
const FRAGMENT_FIELD: u16 = 0x3fff;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A UDP datagram found in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where the network header begins, from the first byte of the frame.
    pub network_offset: usize,
    /// Where the UDP header begins.
    pub udp_offset: usize,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Bytes of UDP payload by the length fields of both headers, whichever is smaller.
    pub payload_len: usize,
    /// Whether the UDP length field is impossible: under 8, or more than the IP packet holds.
    pub length_mismatch: bool,
}

impl Datagram {
    /// What the fields of both headers say. Pairs are source and destination.
    #[inline(always)]
    fn new(
        network_offset: usize,
        udp_offset: usize,
        ip_payload_len: usize,
        [source, destination]: [Address; 2],
        [source_port, destination_port]: [u16; 2],
        udp_len: u16,
    ) -> Self {
        let udp_len = usize::from(udp_len);
        let length_mismatch = udp_len < UDP_LEN || udp_len > ip_payload_len;
        let payload_len = if length_mismatch { 0 } else { udp_len - UDP_LEN };
        Self {
            network_offset,
            udp_offset,
            source,
            destination,
            source_port,
            destination_port,
            payload_len,
            length_mismatch,
        }
    }

    /// Where the UDP payload begins.
    #[inline(always)]
    pub const fn payload_offset(&self) -> usize {
        self.udp_offset + UDP_LEN
    }
}

/// Why a frame is not ours to judge; the kernel gets it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NotDatagram {
    /// Neither IPv4 nor IPv6, or more than [`VLAN_TAGS_MAX`] tags.
    NotIp = 0,
    /// IP, but not UDP.
    NotUdp = 1,
    /// A fragment, first or later: the kernel reassembles.
    Fragment = 2,
    /// A header that is cut short, or whose fields contradict each other.
    Odd = 3,
    /// More or longer extension headers than are followed.
    Extensions = 4,
}

/// Finds the UDP datagram in a frame that begins with an Ethernet header.
///
/// # Errors
/// [`NotDatagram`] when the frame belongs to the kernel.
#[inline(always)]
pub fn parse_ethernet<B: Contiguous + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    match plain_ipv4(frame).or_else(|| plain_ipv6(frame)) {
        Some(datagram) => Ok(datagram),
        None => parse_any(frame),
    }
}

/// The usual datagram over IPv4: no tag, no option, no fragment. All its fields stand where they always stand, behind one look at the bounds,
/// which makes it half as long as [`parse_any`], and that says the same of it.
#[inline(always)]
fn plain_ipv4<B: Contiguous + ?Sized>(frame: &B) -> Option<Datagram> {
    const UDP_AT: usize = ETHERNET_LEN + 20;
    let h: &[u8; UDP_AT + UDP_LEN] = frame.head()?;
    let at = ETHERNET_LEN;
    let ip_payload_len = usize::from(u16_at(h, at + 2)).checked_sub(20 + UDP_LEN)? + UDP_LEN;
    let is_whole = u16_at(h, at + 6) & FRAGMENT_FIELD == 0;
    if u16_at(h, at - 2) != ETHERTYPE_IPV4 || h[at] != 0x45 || !is_whole || h[at + 9] != PROTOCOL_UDP {
        return None;
    }
    let addresses = [Address::v4(u32_at(h, at + 12)), Address::v4(u32_at(h, at + 16))];
    let ports = [u16_at(h, UDP_AT), u16_at(h, UDP_AT + 2)];
    Some(Datagram::new(at, UDP_AT, ip_payload_len, addresses, ports, u16_at(h, UDP_AT + 4)))
}

/// The usual datagram over IPv6: no tag, no extension header.
#[inline(always)]
fn plain_ipv6<B: Contiguous + ?Sized>(frame: &B) -> Option<Datagram> {
    const UDP_AT: usize = ETHERNET_LEN + IPV6_LEN;
    let h: &[u8; UDP_AT + UDP_LEN] = frame.head()?;
    let at = ETHERNET_LEN;
    let ip_payload_len = usize::from(u16_at(h, at + 4)).checked_sub(UDP_LEN)? + UDP_LEN;
    if u16_at(h, at - 2) != ETHERTYPE_IPV6 || h[at] >> 4 != 6 || h[at + 6] != PROTOCOL_UDP {
        return None;
    }
    let addresses = [Address::read(frame, at + 8)?, Address::read(frame, at + 24)?];
    let ports = [u16_at(h, UDP_AT), u16_at(h, UDP_AT + 2)];
    Some(Datagram::new(at, UDP_AT, ip_payload_len, addresses, ports, u16_at(h, UDP_AT + 4)))
}

#[inline(always)]
fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Follows tags, options and extension headers.
#[inline(always)]
fn parse_any<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let mut offset = ETHERNET_LEN;
    let mut ethertype = frame.u16(offset - 2).ok_or(NotDatagram::Odd)?;
    let mut tags = 0;
    while tags < VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        offset += VLAN_TAG_LEN;
        ethertype = frame.u16(offset - 2).ok_or(NotDatagram::Odd)?;
        tags += 1;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(frame, offset),
        ETHERTYPE_IPV6 => parse_ipv6(frame, offset),
        _ => Err(NotDatagram::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4<B: Bytes + ?Sized>(frame: &B, offset: usize) -> Result<Datagram, NotDatagram> {
    let version_ihl = frame.u8(offset).ok_or(NotDatagram::Odd)?;
    if version_ihl >> 4 != 4 {
        return Err(NotDatagram::Odd);
    }
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let total_len = usize::from(frame.u16(offset + 2).ok_or(NotDatagram::Odd)?);
    if header_len < 20 || total_len < header_len {
        return Err(NotDatagram::Odd);
    }
    if frame.u16(offset + 6).ok_or(NotDatagram::Odd)? & FRAGMENT_FIELD != 0 {
        return Err(NotDatagram::Fragment);
    }
    if frame.u8(offset + 9).ok_or(NotDatagram::Odd)? != PROTOCOL_UDP {
        return Err(NotDatagram::NotUdp);
    }
    let source = Address::v4(frame.u32(offset + 12).ok_or(NotDatagram::Odd)?);
    let destination = Address::v4(frame.u32(offset + 16).ok_or(NotDatagram::Odd)?);
    parse_udp(frame, offset, offset + header_len, total_len - header_len, source, destination)
}

#[inline(always)]
fn parse_ipv6<B: Bytes + ?Sized>(frame: &B, offset: usize) -> Result<Datagram, NotDatagram> {
    if frame.u8(offset).ok_or(NotDatagram::Odd)? >> 4 != 6 {
        return Err(NotDatagram::Odd);
    }
    let mut rest = usize::from(frame.u16(offset + 4).ok_or(NotDatagram::Odd)?);
    let mut next = frame.u8(offset + 6).ok_or(NotDatagram::Odd)?;
    let source = Address::read(frame, offset + 8).ok_or(NotDatagram::Odd)?;
    let destination = Address::read(frame, offset + 24).ok_or(NotDatagram::Odd)?;
    let mut at = offset + IPV6_LEN;
    let mut extensions = 0;
    // Fixed header, then `next` and a length in units of 8 bytes at the start of each extension (RFC 8200 §4).
    while next == HOP_BY_HOP || next == ROUTING || next == DESTINATION_OPTIONS {
        if extensions == EXTENSIONS_MAX {
            return Err(NotDatagram::Extensions);
        }
        // One read for both bytes: the verifier learns nothing from the bound check of a single byte at a variable offset.
        let next_and_len = frame.u16(at).ok_or(NotDatagram::Odd)?;
        let following = (next_and_len >> 8) as u8;
        let len = (usize::from(next_and_len & 0xff) + 1) * 8;
        if len > EXTENSION_LEN_MAX {
            return Err(NotDatagram::Extensions);
        }
        if len > rest {
            return Err(NotDatagram::Odd);
        }
        next = following;
        at += len;
        rest -= len;
        extensions += 1;
    }
    match next {
        PROTOCOL_UDP => parse_udp(frame, offset, at, rest, source, destination),
        FRAGMENT => Err(NotDatagram::Fragment),
        _ => Err(NotDatagram::NotUdp),
    }
}

#[inline(always)]
fn parse_udp<B: Bytes + ?Sized>(
    frame: &B,
    network_offset: usize,
    udp_offset: usize,
    ip_payload_len: usize,
    source: Address,
    destination: Address,
) -> Result<Datagram, NotDatagram> {
    let source_port = frame.u16(udp_offset).ok_or(NotDatagram::Odd)?;
    let destination_port = frame.u16(udp_offset + 2).ok_or(NotDatagram::Odd)?;
    let udp_len = frame.u16(udp_offset + 4).ok_or(NotDatagram::Odd)?;
    if ip_payload_len < UDP_LEN {
        return Err(NotDatagram::Odd);
    }
    let (addresses, ports) = ([source, destination], [source_port, destination_port]);
    Ok(Datagram::new(network_offset, udp_offset, ip_payload_len, addresses, ports, udp_len))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        bytes.extend(4000u16.to_be_bytes());
        bytes.extend(4646u16.to_be_bytes());
        bytes.extend(((payload.len() + UDP_LEN) as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        bytes
    }

    fn ipv4(options: usize, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x40 | (5 + options as u8), 0];
        bytes.extend(((20 + options * 4 + payload.len()) as u16).to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(flags.to_be_bytes());
        bytes.extend([64, PROTOCOL_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(vec![1; options * 4]);
        bytes.extend(payload);
        bytes
    }

    fn ipv6(extensions: &[(u8, usize)], last: u8, payload: &[u8]) -> Vec<u8> {
        let rest = extensions.iter().map(|(_, units)| units * 8).sum::<usize>() + payload.len();
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((rest as u16).to_be_bytes());
        bytes.extend([extensions.first().map_or(last, |e| e.0), 64]);
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        for (i, (_, units)) in extensions.iter().enumerate() {
            let mut header = vec![0; units * 8];
            header[0] = extensions.get(i + 1).map_or(last, |e| e.0);
            header[1] = (units - 1) as u8;
            bytes.extend(header);
        }
        bytes.extend(payload);
        bytes
    }

    fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        for tag in tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0, 20]);
        }
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn parse(frame: &[u8]) -> Result<Datagram, NotDatagram> {
        parse_ethernet(frame)
    }

    #[test]
    fn a_plain_ipv4_datagram_is_found() {
        let frame = ethernet(&[], ETHERTYPE_IPV4, &ipv4(0, 0x4000, &udp(b"hello")));
        assert_eq!(
            parse(&frame),
            Ok(Datagram {
                network_offset: 14,
                udp_offset: 34,
                source: Address::v4(0x0a00_0001),
                destination: Address::v4(0x0a00_0002),
                source_port: 4000,
                destination_port: 4646,
                payload_len: 5,
                length_mismatch: false,
            })
        );
        assert_eq!(parse(&frame).map(|d| d.payload_offset()), Ok(42));
    }

    #[test]
    fn tags_and_options_move_the_offsets() {
        for tags in [&[][..], &[ETHERTYPE_VLAN], &[ETHERTYPE_QINQ, ETHERTYPE_VLAN]] {
            for options in 0..=10 {
                let frame = ethernet(tags, ETHERTYPE_IPV4, &ipv4(options, 0, &udp(b"x")));
                let found = parse(&frame).unwrap();
                assert_eq!(found.network_offset, 14 + tags.len() * 4);
                assert_eq!(found.udp_offset, 34 + tags.len() * 4 + options * 4);
            }
        }
        let three =
            ethernet(&[ETHERTYPE_QINQ, ETHERTYPE_VLAN, ETHERTYPE_VLAN], ETHERTYPE_IPV4, &ipv4(0, 0, &udp(b"x")));
        assert_eq!(parse(&three), Err(NotDatagram::NotIp));
    }

    #[test]
    fn extension_headers_are_followed_up_to_the_bound() {
        let with = |n: usize, units: usize| {
            let chain: Vec<_> = [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, DESTINATION_OPTIONS]
                .iter()
                .take(n)
                .map(|&h| (h, units))
                .collect();
            parse(&ethernet(&[], ETHERTYPE_IPV6, &ipv6(&chain, PROTOCOL_UDP, &udp(b"x")))).map(|d| d.udp_offset)
        };
        for n in 0..=EXTENSIONS_MAX {
            assert_eq!(with(n, 1), Ok(54 + n * 8));
        }
        assert_eq!(with(EXTENSIONS_MAX + 1, 1), Err(NotDatagram::Extensions));
        assert_eq!(with(1, 32), Ok(54 + 256));
        assert_eq!(with(1, 33), Err(NotDatagram::Extensions));
    }

    #[test]
    fn fragments_go_to_the_kernel() {
        for flags in [0x2000, 0x0001, 0x3fff] {
            assert_eq!(parse(&ethernet(&[], ETHERTYPE_IPV4, &ipv4(0, flags, &udp(b"x")))), Err(NotDatagram::Fragment));
        }
        let v6 = ipv6(&[], FRAGMENT, &[PROTOCOL_UDP, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(parse(&ethernet(&[], ETHERTYPE_IPV6, &v6)), Err(NotDatagram::Fragment));
    }

    #[test]
    fn what_is_not_udp_over_ip_goes_to_the_kernel() {
        assert_eq!(parse(&ethernet(&[], 0x0806, &[0; 28])), Err(NotDatagram::NotIp));
        let mut tcp = ethernet(&[], ETHERTYPE_IPV4, &ipv4(0, 0, &udp(b"x")));
        tcp[14 + 9] = 6;
        assert_eq!(parse(&tcp), Err(NotDatagram::NotUdp));
        assert_eq!(parse(&ethernet(&[], ETHERTYPE_IPV6, &ipv6(&[], 58, &[0; 8]))), Err(NotDatagram::NotUdp));
    }

    #[test]
    fn impossible_lengths_are_told_apart() {
        let base = ethernet(&[], ETHERTYPE_IPV4, &ipv4(0, 0, &udp(b"hello")));
        let with_udp_len = |len: u16| {
            let mut frame = base.clone();
            frame[38..40].copy_from_slice(&len.to_be_bytes());
            parse(&frame).map(|d| (d.length_mismatch, d.payload_len))
        };
        assert_eq!(with_udp_len(7), Ok((true, 0)));
        assert_eq!(with_udp_len(8), Ok((false, 0)));
        assert_eq!(with_udp_len(13), Ok((false, 5)));
        assert_eq!(with_udp_len(14), Ok((true, 0)));
        let mut short_ihl = base.clone();
        short_ihl[14] = 0x44;
        assert_eq!(parse(&short_ihl), Err(NotDatagram::Odd));
        let mut short_total = base.clone();
        short_total[16..18].copy_from_slice(&19u16.to_be_bytes());
        assert_eq!(parse(&short_total), Err(NotDatagram::Odd));
    }

    #[test]
    fn every_prefix_of_a_frame_is_judged_without_a_panic() {
        let v4 = ethernet(&[ETHERTYPE_VLAN], ETHERTYPE_IPV4, &ipv4(3, 0, &udp(b"hello")));
        let v6 = ethernet(&[], ETHERTYPE_IPV6, &ipv6(&[(HOP_BY_HOP, 1)], PROTOCOL_UDP, &udp(b"hello")));
        for frame in [v4, v6] {
            let headers = frame.len() - 5 - 2;
            for len in 0..frame.len() {
                assert_eq!(parse(&frame[..len]).is_ok(), len >= headers, "{len} of {}", frame.len());
            }
        }
    }

    #[test]
    fn the_usual_frames_are_judged_as_the_others() {
        let v4 = ethernet(&[], ETHERTYPE_IPV4, &ipv4(0, 0, &udp(b"hello")));
        let v6 = ethernet(&[], ETHERTYPE_IPV6, &ipv6(&[], PROTOCOL_UDP, &udp(b"hello")));
        assert!(plain_ipv4(&v4[..]).is_some() && plain_ipv6(&v6[..]).is_some());
        for frame in [v4, v6] {
            // Each byte with each value: what is no more usual goes the long way, and what is usual is judged the same.
            for at in 0..frame.len() {
                for value in 0..=255 {
                    let mut frame = frame.clone();
                    frame[at] = value;
                    assert_eq!(parse_ethernet(&frame[..]), parse_any(&frame[..]), "{value:#x} at {at}");
                }
            }
            for len in 0..frame.len() {
                assert_eq!(parse_ethernet(&frame[..len]), parse_any(&frame[..len]), "{len} bytes");
            }
        }
    }
}
