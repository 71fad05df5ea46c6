//! One inner packet: what a gateway has to know of it before it forwards it, and the little that it changes.
//!
//! ```text
//!            IPv4                                       IPv6
//!   +-----+--------+------+-----+        +-----+------------------------+-----+
//!   |4|IHL| … total length … TTL|        |6| class … payload length … hop limit |
//!   +-----+--------+------+-----+        +-----+------------------------+-----+
//!   |  options (0..=40 bytes)   |        | ≤ 8 extension headers, each inside |
//!   +---------------------------+        +------------------------------------+
//!   |  l4_offset ▸ TCP, UDP, …  |        |  l4_offset ▸ TCP, UDP, ICMPv6, …   |
//!   +---------------------------+        +------------------------------------+
//! ```
//!
//! The packet is exactly the slice: a length field that says more or less is an error, never a hint. Inner packets come from hosts, so any
//! bytes are expected. This part knows nothing of sessions, routes or ports: who may send a packet, and where it goes, others decide.
//!
//! Parsing reads one or two cache lines of the packet, and no more unless it carries IPv6 extension headers.

mod chain;
mod duty;
pub mod mss;
mod quote;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_abi::drop::DropReason;
use weir_abi::flow;

pub use self::chain::EXTENSIONS_MAX;
use self::chain::{HOP_BY_HOP, check_fragment, follow};
pub use self::duty::decrement_ttl;
pub(super) use self::duty::{ICMP_LEN, is_confined, is_group};
pub(super) use self::quote::Quote;
use super::icmp::checksum;

/// Protocol number of ICMP (RFC 792).
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP (RFC 9293).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6 (RFC 4443).
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Bytes of an IPv4 header without options (RFC 791 §3.1).
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200 §3).
pub const IPV6_LEN: usize = 40;

/// What the fragment fields of a packet say (RFC 791 §3.1, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Where the fragment's bytes belong in the whole, in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// An inner packet whose lengths and header chain were found consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// DSCP in the upper six bits and ECN in the lower two (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// Whether routers may not fragment the packet: the DF flag, always true for IPv6.
    pub dont_fragment: bool,
    /// The upper-layer protocol. In a non-first IPv6 fragment, what the fragment header names, which may be an extension header.
    pub protocol: u8,
    /// Where the upper-layer header begins; `None` in a non-first fragment. At most the packet's length: nothing is said of what is there.
    pub l4_offset: Option<u16>,
    /// Set when the packet is a fragment or carries an IPv6 fragment header.
    pub fragment: Option<Fragment>,
    /// Source and destination port of TCP and UDP, unless the packet is a fragment or too short to have them.
    pub ports: Option<[u16; 2]>,
}

impl Inner {
    /// Reads the packet that fills the slice exactly.
    ///
    /// An IPv4 header checksum must be correct (RFC 1812 §5.2.2): an incremental update would otherwise carry the damage on.
    ///
    /// # Errors
    /// [`DropReason::InnerJumbogram`], [`DropReason::InnerHeaderChain`], and [`DropReason::InnerMalformed`] for all else.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(DropReason::InnerMalformed),
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, DropReason> {
        const MALFORMED: DropReason = DropReason::InnerMalformed;
        let h: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(MALFORMED)?;
        let header_len = usize::from(h[0] & 0x0f) * 4;
        if usize::from(u16::from_be_bytes([h[2], h[3]])) != packet.len() || header_len < IPV4_LEN {
            return Err(MALFORMED);
        }
        // Nearly all headers have no options, and a sum of known length is a handful of additions.
        let sum =
            if header_len == IPV4_LEN { checksum(h) } else { checksum(packet.get(..header_len).ok_or(MALFORMED)?) };
        if sum != 0 {
            return Err(MALFORMED);
        }
        let flags = u16::from_be_bytes([h[6], h[7]]);
        let (more, offset) = (flags & 0x2000 != 0, (flags & 0x1fff) * 8);
        let fragment = if more || offset != 0 {
            check_fragment(offset, more, packet.len() - header_len)?;
            Some(Fragment { id: u32::from(u16::from_be_bytes([h[4], h[5]])), offset, more })
        } else {
            None
        };
        let protocol = h[9];
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::new(h[12], h[13], h[14], h[15])),
            destination: IpAddr::V4(Ipv4Addr::new(h[16], h[17], h[18], h[19])),
            ttl: h[8],
            traffic_class: h[1],
            dont_fragment: flags & 0x4000 != 0,
            protocol,
            l4_offset: (offset == 0).then_some(header_len as u16),
            fragment,
            ports: if fragment.is_none() { ports(packet, protocol, header_len) } else { None },
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Result<Self, DropReason> {
        let h: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(DropReason::InnerMalformed)?;
        let payload_len = usize::from(u16::from_be_bytes([h[4], h[5]]));
        // RFC 2675 §3: the length of a jumbogram stands in a hop-by-hop option. Whoever cut the packets apart by their length fields saw 40
        // bytes here, so the option itself need not be in the slice.
        if payload_len == 0 && h[6] == HOP_BY_HOP {
            return Err(DropReason::InnerJumbogram);
        }
        if payload_len + IPV6_LEN != packet.len() {
            return Err(DropReason::InnerMalformed);
        }
        let chain = follow(packet, h[6])?;
        let [_, _, _, _, _, _, _, _, addresses @ ..] = h;
        let source: &[u8; 16] = addresses.first_chunk().ok_or(DropReason::InnerMalformed)?;
        let destination: &[u8; 16] = addresses.last_chunk().ok_or(DropReason::InnerMalformed)?;
        Ok(Self {
            source: IpAddr::V6(Ipv6Addr::from(*source)),
            destination: IpAddr::V6(Ipv6Addr::from(*destination)),
            ttl: h[7],
            traffic_class: h[0] << 4 | h[1] >> 4,
            dont_fragment: true,
            protocol: chain.protocol,
            l4_offset: chain.l4_offset.map(|offset| offset as u16),
            fragment: chain.fragment,
            ports: match (chain.fragment, chain.l4_offset) {
                (None, Some(offset)) => ports(packet, chain.protocol, offset),
                _ => None,
            },
        })
    }

    /// The hash that steers, as [`flow::hash_of`] says it of the packet's bytes: the same for both directions of a flow, and for all
    /// fragments of a packet. Ports behind IPv6 extension headers do not count there, so they do not here.
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        let direct = self.source.is_ipv4() || self.l4_offset == Some(IPV6_LEN as u16);
        let [source_port, destination_port] = self.ports.filter(|_| direct).unwrap_or([0, 0]);
        flow::hash(end(self.source, source_port), end(self.destination, destination_port))
    }

    /// A hash of addresses and ports wherever they stand, which tells flows apart where nobody else has to come to the same result.
    #[inline]
    pub(super) fn tuple_hash(&self) -> u32 {
        let [source_port, destination_port] = self.ports.unwrap_or([0, 0]);
        flow::hash(end(self.source, source_port), end(self.destination, destination_port))
    }

    /// The type field, when the packet is ICMP of its own version and begins here.
    pub(super) fn icmp_type(&self, packet: &[u8]) -> Result<Option<u8>, DropReason> {
        let of_its_version = match self.source {
            IpAddr::V4(_) => self.protocol == PROTOCOL_ICMP,
            IpAddr::V6(_) => self.protocol == PROTOCOL_ICMPV6,
        };
        match self.l4_offset {
            Some(offset) if of_its_version => {
                packet.get(usize::from(offset)).copied().map(Some).ok_or(DropReason::InnerMalformed)
            }
            _ => Ok(None),
        }
    }

    /// Whether this ICMP type reports an error (RFC 792 and RFC 1122 §3.2.2; RFC 4443 §2.1).
    pub(super) fn is_error_type(&self, icmp_type: u8) -> bool {
        match self.source {
            IpAddr::V4(_) => matches!(icmp_type, 3 | 4 | 5 | 11 | 12),
            IpAddr::V6(_) => icmp_type < 128,
        }
    }
}

/// Where a packet goes, as its header says, whatever else is wrong with it. `None` without a whole header.
#[inline]
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[inline]
fn ports(packet: &[u8], protocol: u8, l4_offset: usize) -> Option<[u16; 2]> {
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return None;
    }
    let &[s0, s1, d0, d1] = packet.get(l4_offset..)?.first_chunk()?;
    Some([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
}

#[inline]
fn end(address: IpAddr, port: u16) -> flow::End {
    match address {
        IpAddr::V4(v4) => flow::End { upper: 0, lower: u64::from(v4.to_bits()), port },
        IpAddr::V6(v6) => flow::End { upper: (v6.to_bits() >> 64) as u64, lower: v6.to_bits() as u64, port },
    }
}

/// Packets for the tests of this and other parts.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An IPv4 packet with TTL 64, DF clear and a correct header checksum. `flags` is the whole flags-and-offset field.
    pub(crate) fn ipv4(source: &str, destination: &str, protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(((IPV4_LEN + payload.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(flags.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(source.parse::<Ipv4Addr>().unwrap().octets());
        packet.extend(destination.parse::<Ipv4Addr>().unwrap().octets());
        packet.extend(payload);
        fix_checksum(&mut packet);
        packet
    }

    /// Makes the header checksum of an IPv4 packet correct again.
    pub(crate) fn fix_checksum(packet: &mut [u8]) {
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..header_len]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// An IPv6 packet with hop limit 64; `next` is what the payload begins with.
    pub(crate) fn ipv6(source: &str, destination: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([next, 64]);
        packet.extend(source.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(destination.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(payload);
        packet
    }

    /// A fragment between fd00:1::5 and fd00:2::9, whose offset-and-flags field is given whole.
    pub(crate) fn ipv6_fragment(offset_and_more: u16, last: u8, rest: &[u8]) -> Vec<u8> {
        let mut payload = vec![last, 0];
        payload.extend(offset_and_more.to_be_bytes());
        payload.extend(0xdead_beefu32.to_be_bytes());
        payload.extend(rest);
        ipv6("fd00:1::5", "fd00:2::9", 44, &payload)
    }

    /// Extension headers of these kinds, eight bytes each; the last one names `last`.
    pub(crate) fn extensions(kinds: &[u8], last: u8) -> Vec<u8> {
        let mut bytes = vec![];
        for i in 0..kinds.len() {
            bytes.extend([kinds.get(i + 1).copied().unwrap_or(last), 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes
    }

    /// A UDP header with a zero checksum, and `payload`.
    pub(crate) fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = source_port.to_be_bytes().to_vec();
        datagram.extend(destination_port.to_be_bytes());
        datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{fix_checksum, ipv4, ipv6, ipv6_fragment, udp};
    use super::*;

    const MALFORMED: Result<Inner, DropReason> = Err(DropReason::InnerMalformed);

    fn v4(flags: u16, payload: &[u8]) -> Vec<u8> {
        ipv4("10.1.0.5", "10.2.0.9", PROTOCOL_UDP, flags, payload)
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        ipv6("fd00:1::5", "fd00:2::9", next, payload)
    }

    #[test]
    fn destinations_are_found_in_whole_headers() {
        for (packet, expected) in [(v4(0, &[]), "10.2.0.9"), (v6(58, &[]), "fd00:2::9")] {
            assert_eq!(destination(&packet), expected.parse().ok());
            assert_eq!(destination(&packet[..packet.len() - 1]), None);
        }
        assert_eq!((destination(&[]), destination(&[0x55; 60])), (None, None));
    }

    #[test]
    fn every_field_of_an_ipv4_packet_is_read() {
        let mut packet = v4(0x4000, &udp(4000, 53, b"hello"));
        packet[1] = 0xb9;
        fix_checksum(&mut packet);
        let expected = Inner {
            source: "10.1.0.5".parse().unwrap(),
            destination: "10.2.0.9".parse().unwrap(),
            ttl: 64,
            traffic_class: 0xb9,
            dont_fragment: true,
            protocol: 17,
            l4_offset: Some(20),
            fragment: None,
            ports: Some([4000, 53]),
        };
        assert_eq!(Inner::parse(&packet), Ok(expected));
    }

    #[test]
    fn every_field_of_an_ipv6_packet_is_read() {
        let mut packet = v6(PROTOCOL_UDP, &udp(4000, 53, b"hello"));
        packet[0] = 0x6b;
        packet[1] = 0x9f;
        let expected = Inner {
            source: "fd00:1::5".parse().unwrap(),
            destination: "fd00:2::9".parse().unwrap(),
            ttl: 64,
            traffic_class: 0xb9,
            dont_fragment: true,
            protocol: 17,
            l4_offset: Some(40),
            fragment: None,
            ports: Some([4000, 53]),
        };
        assert_eq!(Inner::parse(&packet), Ok(expected));
    }

    #[test]
    fn the_packet_is_exactly_the_slice() {
        for packet in [v4(0, &udp(1, 2, b"hello")), v6(PROTOCOL_UDP, &udp(1, 2, b"hello"))] {
            assert!(Inner::parse(&packet).is_ok());
            for len in 0..packet.len() {
                assert_eq!(Inner::parse(&packet[..len]), MALFORMED, "{len}");
            }
            let mut longer = packet.clone();
            longer.push(0);
            assert_eq!(Inner::parse(&longer), MALFORMED);
        }
    }

    #[test]
    fn versions_and_header_lengths_that_cannot_be_are_malformed() {
        for first in [0x05, 0x15, 0x35, 0x55, 0x75, 0xf5, 0x40, 0x44, 0x4f] {
            let mut packet = v4(0, &[0; 8]);
            packet[0] = first;
            if first >> 4 == 4 && first & 0x0f >= 5 {
                // The options would end behind the packet.
                assert_eq!(Inner::parse(&packet), MALFORMED);
                continue;
            }
            fix_checksum_if_possible(&mut packet);
            assert_eq!(Inner::parse(&packet), MALFORMED, "{first:#x}");
        }
        let mut options = v4(0, &[0; 40]);
        options[0] = 0x4f;
        fix_checksum(&mut options);
        assert_eq!(Inner::parse(&options).map(|inner| inner.l4_offset), Ok(Some(60)));
    }

    fn fix_checksum_if_possible(packet: &mut [u8]) {
        if usize::from(packet[0] & 0x0f) * 4 >= IPV4_LEN {
            fix_checksum(packet);
        }
    }

    #[test]
    fn a_damaged_ipv4_header_is_malformed() {
        let good = v4(0, &udp(1, 2, b""));
        for byte in 0..IPV4_LEN {
            for bit in 0..8 {
                let mut packet = good.clone();
                packet[byte] ^= 1 << bit;
                assert_eq!(Inner::parse(&packet), MALFORMED, "byte {byte} bit {bit}");
            }
        }
    }

    #[test]
    fn an_ipv6_packet_may_be_empty_but_not_a_jumbogram() {
        assert_eq!(Inner::parse(&v6(59, &[])).map(|inner| inner.l4_offset), Ok(Some(40)));
        let jumbo = |payload: &[u8]| {
            let mut packet = v6(HOP_BY_HOP, payload);
            packet[4..6].fill(0);
            Inner::parse(&packet)
        };
        assert_eq!(jumbo(&[17, 0, 0xc2, 4, 0, 1, 0, 0]), Err(DropReason::InnerJumbogram));
        assert_eq!(jumbo(&[]), Err(DropReason::InnerJumbogram));
        let mut no_hop_by_hop = v6(PROTOCOL_UDP, &[0; 8]);
        no_hop_by_hop[4..6].fill(0);
        assert_eq!(Inner::parse(&no_hop_by_hop), MALFORMED);
    }

    #[test]
    fn fragments_are_told_apart() {
        let first = Inner::parse(&v4(0x2000, &udp(1, 2, b""))).unwrap();
        assert_eq!(first.fragment, Some(Fragment { id: 0x1234, offset: 0, more: true }));
        assert_eq!((first.l4_offset, first.ports), (Some(20), None));
        let last = Inner::parse(&v4(0x0003, &[0; 5])).unwrap();
        assert_eq!(last.fragment, Some(Fragment { id: 0x1234, offset: 24, more: false }));
        assert_eq!((last.l4_offset, last.protocol), (None, 17));

        let first = Inner::parse(&ipv6_fragment(1, 17, &udp(1, 2, b""))).unwrap();
        assert_eq!(first.fragment, Some(Fragment { id: 0xdead_beef, offset: 0, more: true }));
        assert_eq!((first.l4_offset, first.ports), (Some(48), None));
        let last = Inner::parse(&ipv6_fragment(24, 17, &[0; 5])).unwrap();
        assert_eq!(last.fragment, Some(Fragment { id: 0xdead_beef, offset: 24, more: false }));
        assert_eq!((last.l4_offset, last.protocol), (None, 17));
    }

    #[test]
    fn fragments_that_cannot_be_reassembled_are_malformed() {
        assert_eq!(Inner::parse(&v4(0x2000, &[0; 9])), MALFORMED);
        assert_eq!(Inner::parse(&ipv6_fragment(9, 17, &[0; 9])), MALFORMED);
        // The last possible offset is 65,528: seven bytes fit behind it.
        assert!(Inner::parse(&v4(0x1fff, &[0; 7])).is_ok());
        assert_eq!(Inner::parse(&v4(0x1fff, &[0; 8])), MALFORMED);
        assert!(Inner::parse(&ipv6_fragment(0xfff8, 17, &[0; 7])).is_ok());
        assert_eq!(Inner::parse(&ipv6_fragment(0xfff8, 17, &[0; 8])), MALFORMED);
    }

    #[test]
    fn both_directions_of_a_flow_hash_alike_and_other_flows_do_not() {
        let hash = |packet: &[u8]| Inner::parse(packet).unwrap().flow_hash();
        let there = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(4000, 53, b""));
        let back = ipv4("10.2.0.9", "10.1.0.5", 17, 0, &udp(53, 4000, b""));
        let other = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(4001, 53, b""));
        let crossed = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(53, 4000, b""));
        assert_eq!(hash(&there), hash(&back));
        assert_ne!(hash(&there), hash(&other));
        assert_ne!(hash(&there), hash(&crossed));
        let there = ipv6("fd00:1::5", "fd00:2::9", 17, &udp(4000, 53, b""));
        let back = ipv6("fd00:2::9", "fd00:1::5", 17, &udp(53, 4000, b""));
        assert_eq!(hash(&there), hash(&back));
        // All fragments of one packet, the first included, go to one worker.
        let first = v4(0x2000, &udp(4000, 53, b""));
        let last = v4(0x0001, b"rest");
        assert_eq!(hash(&first), hash(&last));
    }

    #[test]
    fn hashes_of_neighbouring_flows_spread_over_workers() {
        for workers in [2u8, 3, 8, 16] {
            let mut load = vec![0u32; usize::from(workers)];
            for host in 0..64u8 {
                for port in 0..64 {
                    let packet =
                        ipv4(&format!("10.1.0.{host}"), &format!("10.2.0.{host}"), 17, 0, &udp(4000 + port, 53, b""));
                    let hash = Inner::parse(&packet).unwrap().flow_hash();
                    load[usize::from(flow::worker_of(hash, workers))] += 1;
                }
            }
            let fair = 4096 / u32::from(workers);
            assert!(load.iter().all(|&n| n > fair / 2 && n < fair * 2), "{load:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            v6: bool,
            honest: bool,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            let len = bytes.len();
            if honest && v6 && len >= 40 {
                bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
                // Mostly a chain of extension headers.
                for at in (6..len).step_by(8) {
                    bytes[at] %= 64;
                }
            } else if honest && !v6 && len >= 20 {
                bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                fix_checksum(&mut bytes);
            }
            if let Ok(inner) = Inner::parse(&bytes) {
                prop_assert!(inner.l4_offset.is_none_or(|offset| usize::from(offset) <= len));
                prop_assert_eq!(inner.flow_hash(), flow::hash_of(&bytes[..]));
                let _ = inner.scope();
                let _ = inner.forged_error(&bytes, |_| true);
            }
            let _ = decrement_ttl(&mut bytes);
        }
    }
}
