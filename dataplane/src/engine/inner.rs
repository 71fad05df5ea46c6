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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_abi::drop::DropReason;

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
/// Bytes of ICMP before the packet that an error quotes (RFC 792, RFC 4443 §2.1).
pub(super) const ICMP_LEN: usize = 8;

// Next-header numbers of the extension headers (IANA, IPv6 Extension Header Types).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Most IPv6 extension headers that are followed. RFC 8200 §4.1 recommends an order in which seven occur; nobody sends as many.
pub const EXTENSIONS_MAX: usize = 8;

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
        if checksum(packet.get(..header_len).ok_or(MALFORMED)?) != 0 {
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

    /// A hash that steers: the same for both directions of a flow, and for all fragments of a packet.
    ///
    /// It covers both addresses and, unless the packet is a fragment, both ports. It is not keyed: whoever chooses the addresses can
    /// choose the worker, as with any receive-side scaling.
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        let [source_port, destination_port] = self.ports.unwrap_or([0, 0]);
        // A sum does not know the order of its terms. Each end is mixed by itself first, so that neighbours do not cancel out.
        let both = mix_end(self.source, source_port).wrapping_add(mix_end(self.destination, destination_port));
        (mix(both) >> 32) as u32
    }

    /// Refuses packets that no router forwards: those that mean everybody, and those whose addresses end at the link or the host.
    ///
    /// # Errors
    /// [`DropReason::InnerLinkScope`] when either address is link-local, loopback, unspecified or an IPv4-mapped IPv6 address;
    /// [`DropReason::InnerMulticast`] when either is multicast or the limited broadcast. Both are usual on a TUN, where the kernel sends
    /// router solicitations and MLD reports of its own.
    #[inline]
    pub fn scope(&self) -> Result<(), DropReason> {
        if is_confined(self.source) || is_confined(self.destination) {
            return Err(DropReason::InnerLinkScope);
        }
        if is_group(self.destination) || is_group(self.source) {
            return Err(DropReason::InnerMulticast);
        }
        Ok(())
    }

    /// Judges an ICMP error by the packet that it quotes; lets everything else pass.
    ///
    /// A peer that may send an error from its own address could still end foreign connections or shrink their path MTU. So the quoted
    /// packet must have been on its way to one of the sender's own prefixes. `packet` is the one that this was parsed from.
    ///
    /// # Errors
    /// [`DropReason::InnerForgedError`] when it was not, or when the error is a fragment: no error has to be fragmented (RFC 1812
    /// §4.3.2.3, RFC 4443 §2.4(c)), and fragments could overlay what was judged here. [`DropReason::InnerMalformed`] when the quoted header
    /// is cut short or of another version.
    #[inline]
    pub fn forged_error(&self, packet: &[u8], belongs_to_sender: impl Fn(IpAddr) -> bool) -> Result<(), DropReason> {
        let Some(icmp_type) = self.icmp_type(packet)? else { return Ok(()) };
        if !self.is_error_type(icmp_type) {
            return Ok(());
        }
        if self.fragment.is_some_and(|f| f.more) {
            return Err(DropReason::InnerForgedError);
        }
        let quoted = self.l4_offset.and_then(|offset| packet.get(usize::from(offset) + ICMP_LEN..)).unwrap_or_default();
        let destination = quoted_destination(quoted, self.source.is_ipv4()).ok_or(DropReason::InnerMalformed)?;
        if belongs_to_sender(destination) { Ok(()) } else { Err(DropReason::InnerForgedError) }
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

/// Counts a packet's TTL or hop limit down by one, in place; IPv4's header checksum follows (RFC 1624, equation 3).
///
/// # Errors
/// [`DropReason::TtlExpired`] when it would reach zero, [`DropReason::InnerMalformed`] when this is no IP header; the packet is unchanged.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) -> Result<(), DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let h: &mut [u8; IPV4_LEN] = packet.first_chunk_mut().ok_or(DropReason::InnerMalformed)?;
            if h[8] <= 1 {
                return Err(DropReason::TtlExpired);
            }
            let old = u16::from_be_bytes([h[8], h[9]]);
            h[8] -= 1;
            let new = u16::from_be_bytes([h[8], h[9]]);
            let sum = u32::from(!u16::from_be_bytes([h[10], h[11]])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [h[10], h[11]] = (!(sum as u16)).to_be_bytes();
            Ok(())
        }
        Some(6) => {
            let h: &mut [u8; IPV6_LEN] = packet.first_chunk_mut().ok_or(DropReason::InnerMalformed)?;
            if h[7] <= 1 {
                return Err(DropReason::TtlExpired);
            }
            h[7] -= 1;
            Ok(())
        }
        _ => Err(DropReason::InnerMalformed),
    }
}

/// Whether an address has no meaning beyond a link or a host.
pub(super) fn is_confined(address: IpAddr) -> bool {
    match address {
        // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3).
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => {
            // Mapped addresses are a notation inside a host; on a wire they dodge IPv4 filters (RFC 4942 §2.2).
            v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some()
        }
    }
}

/// Whether an address means more than one host.
pub(super) fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// The end of an IPv6 header chain.
struct Chain {
    protocol: u8,
    l4_offset: Option<usize>,
    fragment: Option<Fragment>,
}

/// Follows the extension headers of an IPv6 packet from the one that its fixed header names.
#[inline]
fn follow(packet: &[u8], first: u8) -> Result<Chain, DropReason> {
    const BROKEN: DropReason = DropReason::InnerHeaderChain;
    let mut next = first;
    let mut at = IPV6_LEN;
    let mut fragment: Option<Fragment> = None;
    for _ in 0..=EXTENSIONS_MAX {
        let is_extension = matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6
        );
        if !is_extension {
            // RFC 7112 §5: the first fragment holds the whole chain, the upper-layer header included.
            if fragment.is_some_and(|f| f.more) && packet.len() - at < upper_len_min(next) {
                return Err(BROKEN);
            }
            return Ok(Chain { protocol: next, l4_offset: Some(at), fragment });
        }
        // Every extension header is at least eight bytes (RFC 8200 §4).
        let h: &[u8; 8] = packet.get(at..).and_then(<[u8]>::first_chunk).ok_or(BROKEN)?;
        let len = match next {
            // Only directly behind the fixed header (RFC 8200 §4.1).
            HOP_BY_HOP if at != IPV6_LEN => return Err(BROKEN),
            // A fragment of a fragment has no meaning.
            FRAGMENT if fragment.is_some() => return Err(BROKEN),
            FRAGMENT => 8,
            // In units of four bytes, less two (RFC 4302 §2.2).
            AUTHENTICATION => (usize::from(h[1]) + 2) * 4,
            _ => (usize::from(h[1]) + 1) * 8,
        };
        if len < 8 || len > packet.len() - at {
            return Err(BROKEN);
        }
        at += len;
        if next == FRAGMENT {
            let field = u16::from_be_bytes([h[2], h[3]]);
            let (offset, more) = (field & 0xfff8, field & 1 != 0);
            check_fragment(offset, more, packet.len() - at)?;
            fragment = Some(Fragment { id: u32::from_be_bytes([h[4], h[5], h[6], h[7]]), offset, more });
            if offset != 0 {
                return Ok(Chain { protocol: h[0], l4_offset: None, fragment });
            }
        }
        next = h[0];
    }
    Err(BROKEN)
}

/// Bytes of the upper-layer header that a first fragment must hold.
const fn upper_len_min(protocol: u8) -> usize {
    match protocol {
        PROTOCOL_TCP => 20,
        PROTOCOL_UDP | PROTOCOL_ICMPV6 => 8,
        _ => 0,
    }
}

/// A fragment but the last is cut at a multiple of eight bytes, and none ends behind the longest packet (RFC 8200 §4.5, RFC 791 §3.2).
#[inline]
fn check_fragment(offset: u16, more: bool, len: usize) -> Result<(), DropReason> {
    if (more && !len.is_multiple_of(8)) || usize::from(offset) + len > usize::from(u16::MAX) {
        return Err(DropReason::InnerMalformed);
    }
    Ok(())
}

#[inline]
fn ports(packet: &[u8], protocol: u8, l4_offset: usize) -> Option<[u16; 2]> {
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return None;
    }
    let &[s0, s1, d0, d1] = packet.get(l4_offset..)?.first_chunk()?;
    Some([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
}

/// Where the packet that an ICMP error quotes was going. Its total length is not checked: a quote is cut short as a rule.
fn quoted_destination(quoted: &[u8], is_ipv4: bool) -> Option<IpAddr> {
    if is_ipv4 {
        let h: &[u8; IPV4_LEN] = quoted.first_chunk()?;
        let header_len = usize::from(h[0] & 0x0f) * 4;
        if h[0] >> 4 != 4 || header_len < IPV4_LEN || header_len > quoted.len() {
            return None;
        }
        Some(IpAddr::V4(Ipv4Addr::new(h[16], h[17], h[18], h[19])))
    } else {
        let h: &[u8; IPV6_LEN] = quoted.first_chunk()?;
        let destination: &[u8; 16] = h.last_chunk()?;
        (h[0] >> 4 == 6).then(|| IpAddr::V6(Ipv6Addr::from(*destination)))
    }
}

/// One end of a flow as a well-spread number.
#[inline]
fn mix_end(address: IpAddr, port: u16) -> u64 {
    let address = match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            // The upper half is spread before it meets the lower one, or networks and interface numbers would cancel out.
            mix((bits >> 64) as u64) ^ bits as u64
        }
    };
    mix(address ^ (u64::from(port) << 48))
}

/// A bijection that spreads every bit over the upper half (a multiply by an odd constant between two folds).
#[inline]
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
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

    use super::testing::{fix_checksum, ipv4, ipv6, udp};
    use super::*;

    const MALFORMED: Result<Inner, DropReason> = Err(DropReason::InnerMalformed);
    const BROKEN: Result<Inner, DropReason> = Err(DropReason::InnerHeaderChain);

    fn v4(flags: u16, payload: &[u8]) -> Vec<u8> {
        ipv4("10.1.0.5", "10.2.0.9", PROTOCOL_UDP, flags, payload)
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        ipv6("fd00:1::5", "fd00:2::9", next, payload)
    }

    /// `n` extension headers of `kind`, eight bytes each, then `last`.
    fn extensions(kinds: &[u8], last: u8) -> Vec<u8> {
        let mut bytes = vec![];
        for i in 0..kinds.len() {
            bytes.extend([kinds.get(i + 1).copied().unwrap_or(last), 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes
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
    fn extension_headers_are_followed_up_to_the_bound() {
        for n in 0..=EXTENSIONS_MAX + 1 {
            let kinds = vec![DESTINATION_OPTIONS; n];
            let mut payload = extensions(&kinds, PROTOCOL_UDP);
            payload.extend(udp(7, 8, b""));
            let parsed = Inner::parse(&v6(if n == 0 { PROTOCOL_UDP } else { DESTINATION_OPTIONS }, &payload));
            if n <= EXTENSIONS_MAX {
                let parsed = parsed.unwrap();
                assert_eq!(
                    (parsed.protocol, parsed.l4_offset, parsed.ports),
                    (17, Some(40 + n as u16 * 8), Some([7, 8]))
                );
            } else {
                assert_eq!(parsed, BROKEN);
            }
        }
    }

    #[test]
    fn every_kind_of_extension_header_is_followed_by_its_own_length() {
        for (kind, length_field, len) in [
            (HOP_BY_HOP, 1, 16),
            (ROUTING, 2, 24),
            (DESTINATION_OPTIONS, 0, 8),
            (AUTHENTICATION, 4, 24),
            (AUTHENTICATION, 0, 8),
            (MOBILITY, 0, 8),
            (HOST_IDENTITY, 4, 40),
            (SHIM6, 0, 8),
        ] {
            let mut payload = vec![0; len];
            payload[0] = PROTOCOL_UDP;
            payload[1] = length_field;
            payload.extend(udp(7, 8, b""));
            let parsed = Inner::parse(&v6(kind, &payload)).map(|inner| (inner.l4_offset, inner.ports));
            assert_eq!(parsed, Ok((Some((40 + len) as u16), Some([7, 8]))), "{kind}");
            // The header may end with the packet, not behind it.
            assert!(Inner::parse(&v6(kind, &payload[..len])).is_ok());
            assert_eq!(Inner::parse(&v6(kind, &payload[..len - 1])), BROKEN, "{kind}");
        }
    }

    #[test]
    fn chains_that_contradict_the_standard_are_broken() {
        let behind = extensions(&[DESTINATION_OPTIONS, HOP_BY_HOP], PROTOCOL_UDP);
        assert_eq!(Inner::parse(&v6(DESTINATION_OPTIONS, &behind)), BROKEN);
        let twice = [FRAGMENT, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(Inner::parse(&v6(FRAGMENT, &twice)), BROKEN);
    }

    fn v6_fragment(offset_and_more: u16, last: u8, rest: &[u8]) -> Vec<u8> {
        let mut payload = vec![last, 0];
        payload.extend(offset_and_more.to_be_bytes());
        payload.extend(0xdead_beefu32.to_be_bytes());
        payload.extend(rest);
        v6(FRAGMENT, &payload)
    }

    #[test]
    fn fragments_are_told_apart() {
        let first = Inner::parse(&v4(0x2000, &udp(1, 2, b""))).unwrap();
        assert_eq!(first.fragment, Some(Fragment { id: 0x1234, offset: 0, more: true }));
        assert_eq!((first.l4_offset, first.ports), (Some(20), None));
        let last = Inner::parse(&v4(0x0003, &[0; 5])).unwrap();
        assert_eq!(last.fragment, Some(Fragment { id: 0x1234, offset: 24, more: false }));
        assert_eq!((last.l4_offset, last.protocol), (None, 17));

        let first = Inner::parse(&v6_fragment(1, 17, &udp(1, 2, b""))).unwrap();
        assert_eq!(first.fragment, Some(Fragment { id: 0xdead_beef, offset: 0, more: true }));
        assert_eq!((first.l4_offset, first.ports), (Some(48), None));
        let last = Inner::parse(&v6_fragment(24, 17, &[0; 5])).unwrap();
        assert_eq!(last.fragment, Some(Fragment { id: 0xdead_beef, offset: 24, more: false }));
        assert_eq!((last.l4_offset, last.protocol), (None, 17));
    }

    #[test]
    fn fragments_that_cannot_be_reassembled_are_malformed() {
        assert_eq!(Inner::parse(&v4(0x2000, &[0; 9])), MALFORMED);
        assert_eq!(Inner::parse(&v6_fragment(9, 17, &[0; 9])), MALFORMED);
        // The last possible offset is 65,528: seven bytes fit behind it.
        assert!(Inner::parse(&v4(0x1fff, &[0; 7])).is_ok());
        assert_eq!(Inner::parse(&v4(0x1fff, &[0; 8])), MALFORMED);
        assert!(Inner::parse(&v6_fragment(0xfff8, 17, &[0; 7])).is_ok());
        assert_eq!(Inner::parse(&v6_fragment(0xfff8, 17, &[0; 8])), MALFORMED);
    }

    #[test]
    fn a_first_ipv6_fragment_holds_the_whole_header_chain() {
        assert!(Inner::parse(&v6_fragment(1, PROTOCOL_TCP, &[0; 24])).is_ok());
        assert_eq!(Inner::parse(&v6_fragment(1, PROTOCOL_TCP, &[0; 16])), BROKEN);
        assert!(Inner::parse(&v6_fragment(1, PROTOCOL_UDP, &[0; 8])).is_ok());
        assert_eq!(Inner::parse(&v6_fragment(1, PROTOCOL_UDP, &[])), BROKEN);
        assert_eq!(Inner::parse(&v6_fragment(1, DESTINATION_OPTIONS, &[])), BROKEN);
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
        for workers in [2u64, 3, 8, 16] {
            let mut load = vec![0u32; workers as usize];
            for host in 0..64u8 {
                for port in 0..64 {
                    let packet =
                        ipv4(&format!("10.1.0.{host}"), &format!("10.2.0.{host}"), 17, 0, &udp(4000 + port, 53, b""));
                    let hash = Inner::parse(&packet).unwrap().flow_hash();
                    load[((u64::from(hash) * workers) >> 32) as usize] += 1;
                }
            }
            let fair = 4096 / workers as u32;
            assert!(load.iter().all(|&n| n > fair / 2 && n < fair * 2), "{load:?}");
        }
    }

    #[test]
    fn addresses_of_everybody_and_of_the_link_are_out_of_scope() {
        let scope = |source: &str, destination: &str| {
            let packet = if source.contains(':') {
                ipv6(source, destination, 59, &[])
            } else {
                ipv4(source, destination, 17, 0, &[])
            };
            Inner::parse(&packet).unwrap().scope()
        };
        let multicast = Err(DropReason::InnerMulticast);
        let link = Err(DropReason::InnerLinkScope);
        for (source, destination, expected) in [
            ("10.0.0.1", "10.0.0.2", Ok(())),
            ("10.0.0.1", "223.255.255.255", Ok(())),
            ("10.0.0.1", "224.0.0.251", multicast),
            ("10.0.0.1", "239.255.255.255", multicast),
            ("10.0.0.1", "240.0.0.0", Ok(())),
            ("10.0.0.1", "255.255.255.255", multicast),
            ("224.0.0.1", "10.0.0.1", multicast),
            ("0.0.0.0", "10.0.0.1", link),
            ("10.0.0.1", "0.255.255.255", link),
            ("10.0.0.1", "1.0.0.0", Ok(())),
            ("127.0.0.1", "10.0.0.1", link),
            ("10.0.0.1", "127.255.255.255", link),
            ("10.0.0.1", "169.254.169.254", link),
            ("10.0.0.1", "169.255.0.0", Ok(())),
            ("fd00::1", "fd00::2", Ok(())),
            ("fd00::1", "ff02::fb", multicast),
            ("ff0e::1", "fd00::1", multicast),
            ("fe80::1", "ff02::2", link),
            ("::", "ff02::16", link),
            ("fd00::1", "febf:ffff::1", link),
            ("fd00::1", "fec0::1", Ok(())),
            ("::1", "fd00::1", link),
            ("fd00::1", "::ffff:10.0.0.1", link),
        ] {
            assert_eq!(scope(source, destination), expected, "{source} > {destination}");
        }
    }

    #[test]
    fn a_ttl_counts_down_to_one_and_no_further() {
        let mut packet = v4(0, &[]);
        for ttl in (1..64).rev() {
            assert_eq!(decrement_ttl(&mut packet), Ok(()));
            assert_eq!(Inner::parse(&packet).map(|inner| inner.ttl), Ok(ttl));
        }
        let before = packet.clone();
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        assert_eq!(packet, before);

        let mut packet = v6(59, &[]);
        packet[7] = 2;
        assert_eq!(decrement_ttl(&mut packet), Ok(()));
        assert_eq!(Inner::parse(&packet).map(|inner| inner.ttl), Ok(1));
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        packet[7] = 0;
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        assert_eq!(decrement_ttl(&mut packet[..39]), Err(DropReason::InnerMalformed));
        assert_eq!(decrement_ttl(&mut []), Err(DropReason::InnerMalformed));
    }

    proptest! {
        #[test]
        fn the_checksum_stays_correct_when_the_ttl_changes(source: [u8; 4], ttl in 2u8.., protocol: u8, id: [u8; 2]) {
            let mut packet = ipv4("10.0.0.1", "10.0.0.2", protocol, 0, &[]);
            packet[12..16].copy_from_slice(&source);
            packet[4..6].copy_from_slice(&id);
            packet[8] = ttl;
            fix_checksum(&mut packet);
            decrement_ttl(&mut packet).unwrap();
            prop_assert_eq!(checksum(&packet[..20]), 0);
            prop_assert_eq!(packet[8], ttl - 1);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, honest: bool) {
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
                inner.flow_hash();
                let _ = inner.scope();
                let _ = inner.forged_error(&bytes, |_| true);
            }
            let _ = decrement_ttl(&mut bytes);
        }
    }

    fn quote(packet: &[u8], icmp_type: u8) -> Vec<u8> {
        let mut message = vec![icmp_type, 0, 0, 0, 0, 0, 0, 0];
        message.extend(packet);
        message
    }

    /// Judges `packet` as sent by the peer that owns 10.2.0.0/16 and fd00:2::/32.
    fn judge(packet: &[u8]) -> Result<(), DropReason> {
        let own = ["10.2.0.0/16", "fd00:2::/32"].map(|text| text.parse::<crate::api::Prefix>().unwrap());
        Inner::parse(packet).unwrap().forged_error(packet, |address| own.iter().any(|p| p.contains(address)))
    }

    #[test]
    fn an_error_is_judged_by_where_its_quoted_packet_went() {
        let to_the_peer = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(1, 2, b""));
        let to_another = ipv4("10.1.0.5", "10.3.0.9", 17, 0, &udp(1, 2, b""));
        for icmp_type in 0..=255 {
            let error = |quoted: &[u8]| judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0, &quote(quoted, icmp_type)));
            let is_error = [3, 4, 5, 11, 12].contains(&icmp_type);
            assert_eq!(error(&to_the_peer), Ok(()));
            assert_eq!(error(&to_another), if is_error { Err(DropReason::InnerForgedError) } else { Ok(()) });
        }
        let to_the_peer = ipv6("fd00:1::5", "fd00:2::9", 17, &udp(1, 2, b""));
        let to_another = ipv6("fd00:1::5", "fd00:3::9", 17, &udp(1, 2, b""));
        for icmp_type in 0..=255 {
            let error = |quoted: &[u8]| judge(&ipv6("fd00:2::1", "fd00:1::5", 58, &quote(quoted, icmp_type)));
            assert_eq!(error(&to_the_peer), Ok(()));
            assert_eq!(error(&to_another), if icmp_type < 128 { Err(DropReason::InnerForgedError) } else { Ok(()) });
        }
    }

    #[test]
    fn an_error_behind_an_extension_header_is_still_judged() {
        let mut payload = extensions(&[DESTINATION_OPTIONS], 58);
        payload.extend(quote(&ipv6("fd00:1::5", "fd00:3::9", 17, &udp(1, 2, b"")), 1));
        let packet = ipv6("fd00:2::1", "fd00:1::5", DESTINATION_OPTIONS, &payload);
        assert_eq!(judge(&packet), Err(DropReason::InnerForgedError));
    }

    #[test]
    fn a_quote_cut_inside_its_header_is_malformed() {
        let mut options = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &[0; 12]);
        options[0] = 0x46;
        for (len, expected) in [(0, false), (19, false), (20, false), (23, false), (24, true)] {
            let packet = ipv4("10.2.0.1", "10.1.0.5", 1, 0, &quote(&options[..len], 3));
            assert_eq!(judge(&packet), if expected { Ok(()) } else { Err(DropReason::InnerMalformed) }, "{len}");
        }
        let quoted = ipv6("fd00:1::5", "fd00:2::9", 17, &udp(1, 2, b""));
        for (len, expected) in [(0, false), (39, false), (40, true)] {
            let packet = ipv6("fd00:2::1", "fd00:1::5", 58, &quote(&quoted[..len], 2));
            assert_eq!(judge(&packet), if expected { Ok(()) } else { Err(DropReason::InnerMalformed) }, "{len}");
        }
        // No type at all, and a quote of the other version.
        assert_eq!(judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0, &[])), Err(DropReason::InnerMalformed));
        assert_eq!(judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0, &quote(&quoted, 3))), Err(DropReason::InnerMalformed));
    }

    #[test]
    fn an_error_in_fragments_is_forged_and_an_echo_in_fragments_is_not() {
        let quoted = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(1, 2, b"1234"));
        assert_eq!(judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0, &quote(&quoted, 3))), Ok(()));
        assert_eq!(
            judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0x2000, &quote(&quoted, 3))),
            Err(DropReason::InnerForgedError)
        );
        assert_eq!(judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0x2000, &quote(&[0; 32], 8))), Ok(()));
        assert_eq!(judge(&ipv4("10.2.0.1", "10.1.0.5", 1, 0x0001, &quote(&[0; 32], 3))), Ok(()));
    }
}
