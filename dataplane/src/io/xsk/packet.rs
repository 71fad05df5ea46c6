//! Headers of frames that AF_XDP ports receive and send, and the checksums that the stack would have cared for.
//!
//! ```text
//!   WAN   │ Ethernet 14 │ IPv4 20 or IPv6 40 │ UDP 8 │ our datagram │          LAN   │ Ethernet 14 │ inner packet │
//! ```
//!
//! A frame that a local kernel sent over a device without wires (veth, virtio) bears in its TCP or UDP checksum field only the sum of the
//! pseudo-header: the stack leaves the rest to a device that never comes (`CHECKSUM_PARTIAL` in `include/linux/skbuff.h`). On the local
//! side it is completed here. On the underlay the checksum of what we receive is not looked at: our datagrams are authenticated.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use weir_abi::address::Address;
use weir_abi::drop::DropReason;
use weir_abi::frame::{self, ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, PROTOCOL_UDP, UDP_LEN};

use crate::engine::icmp::checksum;
use crate::engine::inner::decrement_ttl;
use crate::engine::port::RxMeta;
use crate::io::netlink::L2;

/// Bytes of the longest headers of a datagram that we send: Ethernet, IPv6, UDP.
pub(super) const WAN_HEADERS_LEN_MAX: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;
/// Bytes of the longest headers that are written anew for a packet to the LAN: Ethernet, IPv6.
pub(super) const LAN_HEADERS_LEN_MAX: usize = ETHERNET_LEN + IPV6_LEN;
/// Next-header number of hop-by-hop options (RFC 8200 §4.3).
const HOP_BY_HOP: u8 = 0;
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

fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address.octets()).to_canonical()
}

/// The datagram of ours in a frame from the underlay, and what the engine wants to know of it. What came to another port than `port` came to
/// a lane port.
///
/// # Errors
/// When the frame is not one that `wan` gives to a socket: tagged, no datagram, or with lengths that contradict each other.
pub(super) fn parse_wan(bytes: &[u8], port: u16) -> Result<(Range<usize>, RxMeta), DropReason> {
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
        lane_port: datagram.destination_port != port,
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

/// Writes the headers with which an inner packet leaves to the LAN, and returns their length: Ethernet, and the packet's own with one hop
/// less to go. `None` when the kernel's router has to see it: it answers when a TTL ends, and it minds options.
pub(super) fn write_lan_headers(headers: &mut [u8; LAN_HEADERS_LEN_MAX], hop: &L2, packet: &[u8]) -> Option<usize> {
    let (ethertype, ip_len) = match (packet.first()?, packet.get(6)?) {
        (0x45, _) => (ETHERTYPE_IPV4, IPV4_LEN),
        (first, next) if first >> 4 == 6 && *next != HOP_BY_HOP => (ETHERTYPE_IPV6, IPV6_LEN),
        _ => return None,
    };
    headers[..6].copy_from_slice(&hop.destination_mac);
    headers[6..12].copy_from_slice(&hop.source_mac);
    headers[12..14].copy_from_slice(&ethertype.to_be_bytes());
    let network = headers.get_mut(ETHERNET_LEN..ETHERNET_LEN + ip_len)?;
    network.copy_from_slice(packet.get(..ip_len)?);
    decrement_ttl(network).ok()?;
    Some(ETHERNET_LEN + ip_len)
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
            HOP_BY_HOP | 60 => {}
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
    let mut len = packet.len().checked_sub(at).filter(|&len| len >= header_len).ok_or(DropReason::XskMalformed)?;
    if protocol == PROTOCOL_UDP {
        // What follows the datagram in its packet is not summed (RFC 9868).
        let told = usize::from(u16::from_be_bytes([packet[at + 4], packet[at + 5]]));
        len = if (UDP_LEN..=len).contains(&told) { told } else { return Err(DropReason::XskMalformed) };
    }
    let pseudo = pseudo_sum(&packet[addresses], protocol, len);
    let segment = &mut packet[at..at + len];
    let field = u16::from_be_bytes([segment[field_at], segment[field_at + 1]]);
    if protocol == PROTOCOL_UDP && field == 0 {
        // Its sender uses none (RFC 768). With IPv6 that is for tunnels, and for the receiver to judge (RFC 6935 §5).
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: u8 = PROTOCOL_TCP;
    const UDP: u8 = PROTOCOL_UDP;
    const V4: [&str; 2] = ["10.1.0.7", "10.2.0.9"];
    const V6: [&str; 2] = ["fd01::7", "fd02::9"];

    /// What a transport header's checksum field holds when a frame comes.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Field {
        Right,
        Partial,
        Zero,
        Wrong,
    }

    fn hop() -> L2 {
        L2 { interface: 1, source_mac: [2; 6], destination_mac: [4; 6], source: None, mtu: 1500 }
    }

    fn octets(address: &str) -> Vec<u8> {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    /// The sum over pseudo-header and segment by the plain rule, 16 bits at a time.
    fn plain_sum(addresses: &[u8], protocol: u8, segment: &[u8]) -> u16 {
        let pseudo = [addresses, &[0, protocol], &(segment.len() as u16).to_be_bytes()].concat();
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
        };
        let mut sum = words(&pseudo) + words(segment);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn field_at(protocol: u8) -> usize {
        if protocol == TCP { 16 } else { 6 }
    }

    /// A segment of `protocol` between the ends with this payload.
    fn segment([source, destination]: [&str; 2], protocol: u8, payload: &[u8], field: Field) -> Vec<u8> {
        let addresses = [octets(source), octets(destination)].concat();
        let mut segment = vec![0x11; if protocol == TCP { 20 } else { 8 }];
        segment.extend(payload);
        if protocol == UDP {
            let len = segment.len() as u16;
            segment[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let at = field_at(protocol);
        segment[at..at + 2].fill(0);
        let right = match !plain_sum(&addresses, protocol, &segment) {
            0 if protocol == UDP => 0xffff,
            sum => sum,
        };
        let value = match field {
            Field::Right => right,
            Field::Partial => {
                let len = (segment.len() as u16).to_be_bytes();
                plain_sum(&[&addresses[..], &[0, protocol], &len].concat(), 0, &[])
            }
            Field::Zero => 0,
            Field::Wrong => right ^ 0x0100,
        };
        segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
        segment
    }

    /// A frame of the LAN with this packet, and padding as short ones have.
    fn frame_of(packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let mut frame = [&[0x02; 12][..], &ethertype.to_be_bytes(), packet].concat();
        frame.resize(frame.len().max(60), 0xee);
        frame
    }

    fn v4_packet(ends: [&str; 2], protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet.extend([octets(ends[0]), octets(ends[1])].concat());
        packet.extend(body);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        let header_sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&header_sum.to_be_bytes());
        packet
    }

    /// With extension headers before the body: numbers and their bytes, whose first is set to what follows.
    fn v6_packet(ends: [&str; 2], protocol: u8, extensions: &[(u8, [u8; 8])], body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet.extend([octets(ends[0]), octets(ends[1])].concat());
        let mut next_at = 6;
        for (number, bytes) in extensions {
            packet[next_at] = *number;
            next_at = packet.len();
            packet.extend(bytes);
            packet[next_at] = protocol;
        }
        packet.extend(body);
        let len = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn packet_of(ends: [&str; 2], protocol: u8, body: &[u8]) -> Vec<u8> {
        if ends == V4 { v4_packet(ends, protocol, 0, body) } else { v6_packet(ends, protocol, &[], body) }
    }

    /// The packet as the engine gets it.
    fn taken(packet: &[u8], wire_checksums: bool) -> Result<Vec<u8>, DropReason> {
        let mut frame = frame_of(packet);
        parse_lan(&mut frame, wire_checksums).map(|span| frame[span].to_vec())
    }

    #[test]
    fn a_checksum_is_kept_completed_or_refused() {
        for ends in [V4, V6] {
            for (protocol, len) in [(TCP, 0), (TCP, 1), (TCP, 33), (UDP, 0), (UDP, 1), (UDP, 18), (UDP, 1001)] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let packet = |field| packet_of(ends, protocol, &segment(ends, protocol, &payload, field));
                let right = packet(Field::Right);
                assert_eq!(taken(&packet(Field::Right), false), Ok(right.clone()), "{ends:?} {protocol} {len}");
                assert_eq!(taken(&packet(Field::Partial), false), Ok(right), "{ends:?} {protocol} {len}");
                assert_eq!(taken(&packet(Field::Wrong), false), Err(DropReason::XskChecksum));
                let zero = taken(&packet(Field::Zero), false);
                match protocol {
                    UDP => assert_eq!(zero, Ok(packet(Field::Zero)), "none is none in both families"),
                    _ => assert_eq!(zero, Err(DropReason::XskChecksum)),
                }
            }
        }
    }

    #[test]
    fn what_hardware_has_checked_is_not_looked_at() {
        for field in [Field::Partial, Field::Wrong, Field::Zero] {
            let packet = packet_of(V4, TCP, &segment(V4, TCP, b"abc", field));
            assert_eq!(taken(&packet, true), Ok(packet.clone()));
        }
    }

    #[test]
    fn bytes_behind_a_datagram_in_its_packet_are_not_summed() {
        for ends in [V4, V6] {
            for field in [Field::Right, Field::Partial] {
                let whole = |field| [&segment(ends, UDP, b"abc", field)[..], b"option"].concat();
                let packet = packet_of(ends, UDP, &whole(field));
                assert_eq!(taken(&packet, false), Ok(packet_of(ends, UDP, &whole(Field::Right))));
            }
            for told in [0, 7, 12] {
                let mut body = segment(ends, UDP, b"abc", Field::Right);
                body[4..6].copy_from_slice(&u16::to_be_bytes(told));
                assert_eq!(taken(&packet_of(ends, UDP, &body), false), Err(DropReason::XskMalformed), "{told}");
            }
        }
    }

    #[test]
    fn fragments_and_other_protocols_are_left_as_they_are() {
        let body = segment(V4, UDP, b"abcdefgh", Field::Wrong);
        for fragment in [0x2000, 0x2001, 0x0001, 0x1fff] {
            let packet = v4_packet(V4, UDP, fragment, &body);
            assert_eq!(taken(&packet, false), Ok(packet), "{fragment:#x}");
        }
        let packet = v4_packet(V4, UDP, 0x4000, &body);
        assert_eq!(taken(&packet, false), Err(DropReason::XskChecksum), "DF alone makes no fragment");
        let v6_fragment = v6_packet(V6, UDP, &[(44, [0, 0, 0, 1, 0, 0, 0, 1])], &body);
        for packet in [v6_fragment, packet_of(V4, 1, &body), packet_of(V6, 58, &body)] {
            assert_eq!(taken(&packet, false), Ok(packet));
        }
    }

    #[test]
    fn a_checksum_is_found_behind_extension_headers() {
        let spent_route = (43, [0; 8]);
        let route = (43, [0, 0, 0, 1, 0, 0, 0, 0]);
        let options = (60, [0, 0, 1, 4, 0, 0, 0, 0]);
        for (extensions, found) in [
            (vec![(0, options.1), options, spent_route], true),
            (vec![options; EXTENSIONS_MAX - 1], true),
            (vec![options; EXTENSIONS_MAX], false),
            (vec![options, route], false),
        ] {
            let packet = |field| v6_packet(V6, UDP, &extensions, &segment(V6, UDP, b"abc", field));
            let expected = packet(if found { Field::Right } else { Field::Partial });
            assert_eq!(taken(&packet(Field::Partial), false), Ok(expected), "{}", extensions.len());
        }
    }

    #[test]
    fn a_frame_cut_off_anywhere_is_malformed() {
        for packet in [
            packet_of(V4, TCP, &segment(V4, TCP, b"abc", Field::Right)),
            packet_of(V6, UDP, &segment(V6, UDP, b"abc", Field::Right)),
            v6_packet(V6, UDP, &[(60, [0; 8])], &segment(V6, UDP, b"abc", Field::Right)),
        ] {
            let frame = [&frame_of(&packet)[..ETHERNET_LEN], &packet].concat();
            for len in 0..frame.len() {
                assert_eq!(parse_lan(&mut frame[..len].to_vec(), false), Err(DropReason::XskMalformed), "{len}");
            }
            assert!(parse_lan(&mut frame.clone(), false).is_ok());
            // Its own header says that it ends earlier: within the transport header there is nothing to sum.
            let mut short = packet.clone();
            let at = if short[0] >> 4 == 4 { 2 } else { 4 };
            short[at..at + 2].copy_from_slice(&(if at == 2 { 27u16 } else { 7 }).to_be_bytes());
            assert_eq!(parse_lan(&mut frame_of(&short), false), Err(DropReason::XskMalformed));
        }
        let mut tagged = frame_of(&packet_of(V4, 1, &[0; 8]));
        tagged[12..14].copy_from_slice(&[0x81, 0]);
        assert_eq!(parse_lan(&mut tagged, false), Err(DropReason::XskMalformed));
    }

    /// The same packet one hop later.
    fn later(packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        decrement_ttl(&mut packet).unwrap();
        packet
    }

    #[test]
    fn a_packet_leaves_to_the_lan_with_a_hop_less_or_by_the_router() {
        for ends in [V4, V6] {
            let packet = packet_of(ends, UDP, &segment(ends, UDP, b"abc", Field::Right));
            let mut headers = [0; LAN_HEADERS_LEN_MAX];
            let len = write_lan_headers(&mut headers, &hop(), &packet).unwrap();
            assert_eq!((&headers[..6], &headers[6..12]), (&[4; 6][..], &[2; 6][..]));
            let sent = [&headers[..len], &packet[len - ETHERNET_LEN..]].concat();
            assert_eq!(sent[ETHERNET_LEN..], later(&packet));
            assert_eq!(sent[12..], frame_of(&later(&packet))[12..12 + 2 + packet.len()]);
            for cut in 0..len - ETHERNET_LEN {
                assert_eq!(write_lan_headers(&mut headers, &hop(), &packet[..cut]), None, "{cut}");
            }
            let mut last = packet.clone();
            last[if ends == V4 { 8 } else { 7 }] = 1;
            assert_eq!(write_lan_headers(&mut headers, &hop(), &last), None);
            let mut options = packet.clone();
            if ends == V4 {
                options[0] = 0x46
            } else {
                options[6] = HOP_BY_HOP
            }
            assert_eq!(write_lan_headers(&mut headers, &hop(), &options), None);
        }
    }

    fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
        let [from, to] = if v6 { V6 } else { V4 };
        (SocketAddr::new(from.parse().unwrap(), 4646), SocketAddr::new(to.parse().unwrap(), 4647))
    }

    #[test]
    fn a_datagram_that_is_no_longer_than_its_length_fields_has_headers() {
        let mut headers = [0; WAN_HEADERS_LEN_MAX];
        for (v6, longest) in [(false, 65_535 - 28), (true, 65_535 - 8)] {
            for (len, fits) in [(longest, true), (longest + 1, false)] {
                let written = write_wan_headers(&mut headers, &hop(), ends(v6), 0, &vec![0; len]);
                assert_eq!(written.is_some(), fits, "{v6} {len}");
            }
        }
        let (from, to) = (ends(false).0, ends(true).1);
        assert_eq!(write_wan_headers(&mut headers, &hop(), (from, to), 0, b"x"), None, "two families");
    }

    #[test]
    fn a_computed_zero_is_sent_as_ones() {
        let mut headers = [0; WAN_HEADERS_LEN_MAX];
        let len = write_wan_headers(&mut headers, &hop(), ends(false), 0, &[0, 0]).unwrap();
        // A payload of the very value of the field makes the sum zero.
        let payload = [headers[len - 2], headers[len - 1]];
        let len = write_wan_headers(&mut headers, &hop(), ends(false), 0, &payload).unwrap();
        assert_eq!(headers[len - 2..len], [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            v6: bool, class: u8, payload in prop::collection::vec(any::<u8>(), 1..200), padding in 0usize..30,
        ) {
            let mut headers = [0; WAN_HEADERS_LEN_MAX];
            let (from, to) = ends(v6);
            let len = write_wan_headers(&mut headers, &hop(), (from, to), class, &payload).unwrap();
            let frame = [&headers[..len], &payload, &vec![0xee; padding]].concat();
            let (span, meta) = parse_wan(&frame, 4646).unwrap();
            prop_assert_eq!(&frame[span], &payload[..]);
            prop_assert_eq!((meta.source, meta.local, meta.class), (Some(from), Some(to.ip()), class));
            let comes_by_lane_port = |port| parse_wan(&frame, port).map(|(_, meta)| meta.lane_port);
            prop_assert_eq!((comes_by_lane_port(to.port()), comes_by_lane_port(to.port() ^ 1)), (Ok(false), Ok(true)));
            let addresses = if v6 { &frame[22..54] } else { &frame[26..34] };
            prop_assert_eq!(plain_sum(addresses, UDP, &frame[len - 8..len + payload.len()]), 0xffff);
            prop_assert!(frame[len - 2..len] != [0, 0]);
            for cut in 0..len + payload.len() {
                prop_assert!(parse_wan(&frame[..cut], 4646).is_err(), "{}", cut);
            }
        }

        #[test]
        fn any_bytes_are_judged(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..3) {
            if let Some(ethertype) = bytes.get_mut(12..15) {
                match kind {
                    0 => ethertype.copy_from_slice(&[0x08, 0x00, 0x45]),
                    1 => ethertype.copy_from_slice(&[0x86, 0xdd, 0x60]),
                    _ => {}
                }
            }
            let _ = parse_wan(&bytes, 4646);
            for wire_checksums in [true, false] {
                if let Ok(span) = parse_lan(&mut bytes.clone(), wire_checksums) {
                    prop_assert!(span.end <= bytes.len());
                }
            }
        }
    }
}
