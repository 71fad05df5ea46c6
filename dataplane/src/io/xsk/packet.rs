//! Headers of frames that AF_XDP ports receive and send, and the checksums that the stack would have cared for.
//!
//! ```text
//!   WAN   │ Ethernet 14 │ IPv4 20 or IPv6 40 │ UDP 8 │ our datagram │          LAN   │ Ethernet 14 │ inner packet │
//! ```
//!
//! A frame that a local kernel sent over a device without wires (veth, virtio) bears in its TCP or UDP checksum field only the sum of the
//! pseudo-header: the stack leaves the rest to a device that never comes (`CHECKSUM_PARTIAL` in `include/linux/skbuff.h`). On the local
//! side it is completed here. On the underlay the checksum of what we receive is not looked at: our datagrams are authenticated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use weir_abi::drop::DropReason;
use weir_abi::frame::{self, ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, PROTOCOL_UDP, UDP_LEN};

use crate::engine::icmp::checksum;
use crate::engine::port::RxMeta;
use crate::io::netlink::L2;

/// Bytes of the longest headers of a datagram that we send: Ethernet, IPv6, UDP.
pub(super) const WAN_HEADERS_LEN_MAX: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;
/// Bytes of an IPv4 header without options (RFC 791).
const IPV4_LEN: usize = 20;
/// The hop limit of our datagrams: what Linux gives a socket's (`IPDEFTTL`).
const HOP_LIMIT: u8 = 64;
/// Don't Fragment, as the sockets of the port set it by `IP_PMTUDISC_PROBE`.
const DONT_FRAGMENT: u16 = 0x4000;
/// Protocol number of TCP (RFC 9293).
const PROTOCOL_TCP: u8 = 6;
/// Most IPv6 extension headers that are followed to a checksum; behind more, it is left as it is.
const EXTENSIONS_MAX: usize = 8;

/// One's-complement addition of 16-bit words (RFC 1071).
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// The one's-complement sum of the bytes.
fn sum(bytes: &[u8]) -> u16 {
    !checksum(bytes)
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1): both addresses as they stand in the header, protocol, length.
fn pseudo_sum(addresses: &[u8], protocol: u8, len: usize) -> u16 {
    add(sum(addresses), add(u16::from(protocol), add((len >> 16) as u16, len as u16)))
}

fn ip(address: frame::Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// The datagram of ours in a frame from the underlay, and what the engine wants to know of it.
///
/// # Errors
/// When the frame is not one that `wan` gives to a socket: tagged, no datagram, or with lengths that contradict each other.
pub(super) fn parse_wan(bytes: &[u8]) -> Result<(Range<usize>, RxMeta), DropReason> {
    let datagram = frame::parse_ethernet(bytes).map_err(|_| DropReason::XskMalformed)?;
    let at = datagram.network_offset;
    let payload = datagram.payload_offset()..datagram.payload_offset() + datagram.payload_len;
    if at != ETHERNET_LEN || datagram.length_mismatch || payload.end > bytes.len() {
        return Err(DropReason::XskMalformed);
    }
    // The parser read beyond these bytes.
    let class = if bytes[at] >> 4 == 4 { bytes[at + 1] } else { bytes[at] << 4 | bytes[at + 1] >> 4 };
    let meta = RxMeta {
        source: Some(SocketAddr::new(ip(datagram.source), datagram.source_port)),
        local: Some(ip(datagram.destination)),
        class,
        ..RxMeta::default()
    };
    Ok((payload, meta))
}

/// Writes the headers before a datagram that `hop` leads to and returns their length; `None` when `from` and `to` are of two families or
/// the datagram is longer than a length field says. The UDP checksum is valid and never zero, which would end the peer's merging.
pub(super) fn write_wan_headers(
    headers: &mut [u8; WAN_HEADERS_LEN_MAX],
    hop: &L2,
    (from, to): (SocketAddr, SocketAddr),
    class: u8,
    payload: &[u8],
) -> Option<usize> {
    let udp_len = u16::try_from(UDP_LEN + payload.len()).ok()?;
    headers[..6].copy_from_slice(&hop.destination_mac);
    headers[6..12].copy_from_slice(&hop.source_mac);
    let network = &mut headers[ETHERNET_LEN..];
    let (ethertype, ip_len, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            network[..IPV4_LEN].fill(0);
            (network[0], network[1]) = (0x45, class);
            network[2..4].copy_from_slice(&udp_len.checked_add(IPV4_LEN as u16)?.to_be_bytes());
            network[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
            (network[8], network[9]) = (HOP_LIMIT, PROTOCOL_UDP);
            network[12..16].copy_from_slice(&source.octets());
            network[16..20].copy_from_slice(&destination.octets());
            let header_sum = checksum(&network[..IPV4_LEN]);
            network[10..12].copy_from_slice(&header_sum.to_be_bytes());
            (ETHERTYPE_IPV4, IPV4_LEN, 12..20)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            network[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
            network[4..6].copy_from_slice(&udp_len.to_be_bytes());
            (network[6], network[7]) = (PROTOCOL_UDP, HOP_LIMIT);
            network[8..24].copy_from_slice(&source.octets());
            network[24..40].copy_from_slice(&destination.octets());
            (ETHERTYPE_IPV6, IPV6_LEN, 8..40)
        }
        _ => return None,
    };
    let pseudo = pseudo_sum(&network[addresses], PROTOCOL_UDP, usize::from(udp_len));
    let udp = &mut network[ip_len..ip_len + UDP_LEN];
    udp[0..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let total = add(pseudo, add(sum(&udp[..6]), sum(payload)));
    udp[6..8].copy_from_slice(&udp_checksum(total).to_be_bytes());
    headers[12..14].copy_from_slice(&ethertype.to_be_bytes());
    Some(ETHERNET_LEN + ip_len + UDP_LEN)
}

/// The field for a sum; a computed zero is sent as all ones (RFC 768).
const fn udp_checksum(sum: u16) -> u16 {
    if sum == 0xffff { 0xffff } else { !sum }
}

/// The Ethernet header before an inner packet; `None` when it is neither IPv4 nor IPv6.
pub(super) fn lan_header(hop: &L2, packet: &[u8]) -> Option<[u8; ETHERNET_LEN]> {
    let ethertype = match packet.first()? >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return None,
    };
    let mut header = [0; ETHERNET_LEN];
    header[..6].copy_from_slice(&hop.destination_mac);
    header[6..12].copy_from_slice(&hop.source_mac);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    Some(header)
}

/// The destination of an IP packet.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// The inner packet in a frame from the local side, without padding. Unless the device has `wire_checksums`, its transport checksum is
/// looked at and completed where the sender left that to a device.
///
/// # Errors
/// When the frame is not one that `lan` gives to a socket, or the checksum is wrong.
pub(super) fn parse_lan(bytes: &mut [u8], wire_checksums: bool) -> Result<Range<usize>, DropReason> {
    let ethertype = bytes.get(12..14).ok_or(DropReason::XskMalformed)?;
    let version = match u16::from_be_bytes([ethertype[0], ethertype[1]]) {
        ETHERTYPE_IPV4 => 4,
        ETHERTYPE_IPV6 => 6,
        _ => return Err(DropReason::XskMalformed),
    };
    let packet = &mut bytes[ETHERNET_LEN..];
    let len = packet_len(packet, version).ok_or(DropReason::XskMalformed)?;
    if !wire_checksums {
        settle_checksum(&mut packet[..len])?;
    }
    Ok(ETHERNET_LEN..ETHERNET_LEN + len)
}

/// Bytes of a packet by its own header, if they are there and are enough for that header.
fn packet_len(packet: &[u8], version: u8) -> Option<usize> {
    let field = |at: usize| packet.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let (len, header_len) = match version {
        4 => (field(2)?, usize::from(packet.first()? & 0x0f) * 4),
        _ => (field(4)? + IPV6_LEN, IPV6_LEN),
    };
    let enough = header_len >= IPV4_LEN && len >= header_len && len <= packet.len();
    (packet.first()? >> 4 == version && enough).then_some(len)
}

/// Where the transport header of a whole packet begins, its protocol, and the bytes of the addresses that its checksum covers; `None` when
/// there is no checksum to look at: a fragment, another protocol, a source-routed or too long header chain.
fn transport(packet: &[u8]) -> Option<(usize, u8, Range<usize>)> {
    if packet.first()? >> 4 == 4 {
        let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
        let at = usize::from(packet[0] & 0x0f) * 4;
        return (!fragment).then_some((at, *packet.get(9)?, 12..20));
    }
    let (mut at, mut next) = (IPV6_LEN, *packet.get(6)?);
    for _ in 0..EXTENSIONS_MAX {
        match next {
            // Hop-by-hop and destination options (RFC 8200 §4.3, §4.6).
            0 | 60 => {}
            // A routing header changes the destination of the pseudo-header unless it is used up (RFC 8200 §8.1).
            43 if *packet.get(at + 3)? == 0 => {}
            _ => return Some((at, next, 8..40)),
        }
        let (following, units) = (*packet.get(at)?, usize::from(*packet.get(at + 1)?));
        (next, at) = (following, at + (units + 1) * 8);
    }
    None
}

fn settle_checksum(packet: &mut [u8]) -> Result<(), DropReason> {
    let Some((at, protocol, addresses)) = transport(packet) else { return Ok(()) };
    let (header_len, field_at) = match protocol {
        PROTOCOL_TCP => (20, 16),
        PROTOCOL_UDP => (UDP_LEN, 6),
        _ => return Ok(()),
    };
    let len = packet.len().checked_sub(at).filter(|&len| len >= header_len).ok_or(DropReason::XskMalformed)?;
    let pseudo = pseudo_sum(&packet[addresses], protocol, len);
    let is_ipv4 = packet[0] >> 4 == 4;
    let segment = &mut packet[at..];
    let field = u16::from_be_bytes([segment[field_at], segment[field_at + 1]]);
    if protocol == PROTOCOL_UDP && field == 0 && is_ipv4 {
        // Its sender uses none (RFC 768).
        return Ok(());
    }
    let total = sum(segment);
    if field == pseudo {
        // The field's own value stands for the pseudo-header in the sum. A field that is right and happens to have this value comes out
        // the same.
        let complete = if protocol == PROTOCOL_UDP { udp_checksum(total) } else { !total };
        segment[field_at..field_at + 2].copy_from_slice(&complete.to_be_bytes());
        return Ok(());
    }
    if add(pseudo, total) == 0xffff { Ok(()) } else { Err(DropReason::XskChecksum) }
}
