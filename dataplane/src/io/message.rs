//! Socket addresses and control messages as the kernel lays them out.
//!
//! Everything here is bytes in, values out, and the other way round, so both socket ports share it and ordinary tests reach it. It
//! knows nothing of sockets and of who calls.
//!
//! ```text
//!   struct cmsghdr (include/linux/socket.h)          what they say
//!   +-----------+-----------+----------+--------+    SOL_UDP   UDP_SEGMENT u16 out        UDP_GRO      int in
//!   | len usize | level i32 | type i32 | data … |    SOL_IP    IP_TOS      int out        IP_TOS       u8  in
//!   +-----------+-----------+----------+--------+    SOL_IPV6  IPV6_TCLASS int out and in
//!    each padded to the size of a usize              SOL_IP    IP_PKTINFO, SOL_IPV6 IPV6_PKTINFO, out and in
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::engine::port::TxMeta;

/// Bytes that hold any address of ours: `struct sockaddr_in6` (`include/uapi/linux/in6.h`).
pub(super) const ADDRESS_LEN: usize = 28;

/// Bytes of a `struct sockaddr_in` (`include/uapi/linux/in.h`).
const ADDRESS_V4_LEN: usize = 16;

/// `UDP_SEGMENT` of `include/uapi/linux/udp.h`.
pub(super) const UDP_SEGMENT: libc::c_int = 103;

/// `UDP_GRO` of `include/uapi/linux/udp.h`.
pub(super) const UDP_GRO: libc::c_int = 104;

/// Bytes of a `struct cmsghdr`; its data starts right behind, for that is a multiple of its alignment.
const CMSG_HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// Bytes of a `struct in_pktinfo` (`include/uapi/linux/in.h`): interface, our address, the destination of the header.
const PKTINFO_V4_LEN: usize = 12;

/// Bytes of a `struct in6_pktinfo` (`include/uapi/linux/ipv6.h`): our address, interface.
const PKTINFO_V6_LEN: usize = 20;

/// Room for what we send: segment size, class and the longer of the two source addresses.
pub(super) const TX_CONTROL_LEN: usize = space(2) + space(4) + space(PKTINFO_V6_LEN);

/// Room for what we receive: segment size, class and the longer of the two addresses are 88 bytes; the rest is for what another layer (a
/// cgroup's BPF program, say) may switch on, since a datagram whose control data is cut cannot be used.
pub(super) const RX_CONTROL_LEN: usize = 128;

/// `CMSG_SPACE` of so many bytes of data.
const fn space(len: usize) -> usize {
    (CMSG_HEADER_LEN + len).next_multiple_of(size_of::<usize>())
}

/// Writes `address` as the kernel reads it and says how many bytes count.
pub(super) fn encode_address(address: SocketAddr, out: &mut [u8; ADDRESS_LEN]) -> u32 {
    *out = [0; ADDRESS_LEN];
    match address {
        SocketAddr::V4(v4) => {
            out[0..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[2..4].copy_from_slice(&v4.port().to_be_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            ADDRESS_V4_LEN as u32
        }
        SocketAddr::V6(v6) => {
            out[0..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[2..4].copy_from_slice(&v6.port().to_be_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            ADDRESS_LEN as u32
        }
    }
}

/// The address that the kernel wrote; `None` when it is of no family of ours or shorter than its family says.
pub(super) fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(array(bytes, 0)?);
    let port = u16::from_be_bytes(array(bytes, 2)?);
    match i32::from(family) {
        libc::AF_INET if bytes.len() >= ADDRESS_V4_LEN => {
            Some(SocketAddrV4::new(Ipv4Addr::from(array::<4>(bytes, 4)?), port).into())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(array::<16>(bytes, 8)?);
            let scope_id = u32::from_ne_bytes(array(bytes, 24)?);
            // The flow label of a received packet is no part of where to answer.
            Some(SocketAddrV6::new(ip, port, 0, scope_id).into())
        }
        _ => None,
    }
}

/// Writes the control messages that `meta` asks for and says how many bytes they take; zero when the kernel's defaults will do. `train`
/// is whether the kernel is to cut the message.
pub(super) fn encode_control(meta: &TxMeta, train: bool, with_source: bool, out: &mut [u8; TX_CONTROL_LEN]) -> usize {
    let mut len = 0;
    let mut put = |level: libc::c_int, kind: libc::c_int, data: &[u8]| {
        let out = &mut out[len..len + space(data.len())];
        out.fill(0);
        // A socklen_t with padding (musl) reads the same as a size_t (glibc) on the little-endian machines that Weir runs on.
        out[..size_of::<usize>()].copy_from_slice(&(CMSG_HEADER_LEN + data.len()).to_ne_bytes());
        out[8..12].copy_from_slice(&level.to_ne_bytes());
        out[12..16].copy_from_slice(&kind.to_ne_bytes());
        out[CMSG_HEADER_LEN..CMSG_HEADER_LEN + data.len()].copy_from_slice(data);
        len += out.len();
    };
    if train {
        put(libc::SOL_UDP, UDP_SEGMENT, &meta.segment.to_ne_bytes());
    }
    let by_v6 = meta.destination.is_some_and(is_v6);
    if meta.class != 0 {
        let (level, kind) =
            if by_v6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
        put(level, kind, &i32::from(meta.class).to_ne_bytes());
    }
    match meta.source.filter(|_| with_source) {
        Some(IpAddr::V4(source)) if !by_v6 => {
            let mut info = [0; PKTINFO_V4_LEN];
            // The interface stays zero: the routing table chooses it.
            info[4..8].copy_from_slice(&source.octets());
            put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(source)) if by_v6 => {
            let scope = match meta.destination {
                Some(SocketAddr::V6(destination)) if source.is_unicast_link_local() => destination.scope_id(),
                _ => 0,
            };
            // A link-local address means something on its link only; without one the kernel refuses it (EINVAL).
            if scope != 0 || !source.is_unicast_link_local() {
                let mut info = [0; PKTINFO_V6_LEN];
                info[..16].copy_from_slice(&source.octets());
                info[16..].copy_from_slice(&scope.to_ne_bytes());
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
        _ => {}
    }
    len
}

/// What the kernel says of a datagram, or train, besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    /// The length of each datagram of a train; zero when `UDP_GRO` says nothing.
    pub(super) segment: u16,
    /// DSCP and ECN of the outer header.
    pub(super) class: u8,
    /// Which of our addresses it came to. A group address is none of ours.
    pub(super) local: Option<IpAddr>,
}

/// Reads control messages. Unknown ones are passed over; from one of impossible length on, nothing is read.
pub(super) fn decode_control(control: &[u8]) -> Control {
    let mut said = Control::default();
    let mut rest = control;
    while let (Some(len), Some(level), Some(kind)) = (array(rest, 0), array(rest, 8), array(rest, 12)) {
        let len = usize::from_ne_bytes(len);
        let Some(data) = rest.get(CMSG_HEADER_LEN..len) else { break };
        match (i32::from_ne_bytes(level), i32::from_ne_bytes(kind)) {
            (libc::SOL_UDP, UDP_GRO) => {
                let segment = array(data, 0).map(i32::from_ne_bytes);
                said.segment = segment.and_then(|segment| u16::try_from(segment).ok()).unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => said.class = data.first().copied().unwrap_or(0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = array(data, 0).map(i32::from_ne_bytes);
                said.class = class.and_then(|class| u8::try_from(class).ok()).unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= PKTINFO_V4_LEN => {
                // The address to answer from, which for a broadcast is not the header's destination.
                said.local = array::<4>(data, 4).map(Ipv4Addr::from).filter(|ip| !ip.is_unspecified()).map(IpAddr::V4);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= PKTINFO_V6_LEN => {
                let ip = array::<16>(data, 0).map(Ipv6Addr::from);
                said.local = ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).map(IpAddr::V6);
            }
            _ => {}
        }
        let Some(next) = rest.get(len.next_multiple_of(size_of::<usize>())..) else { break };
        rest = next;
    }
    said
}

/// Whether `address` goes out by the IPv6 socket. A mapped IPv4 address does not: our IPv6 sockets are V6ONLY.
pub(super) fn is_v6(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(_))
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

const _: () = assert!(CMSG_HEADER_LEN == 16 && size_of::<usize>() == 8, "the layouts above are those of 64-bit Linux");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.1:4646", "0.0.0.0:0", "[2001:db8::1]:65535", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut bytes = [0xff; ADDRESS_LEN];
            let len = encode_address(address, &mut bytes) as usize;
            assert_eq!(decode_address(&bytes[..len]), Some(address));
            assert_eq!(decode_address(&bytes[..len - 1]), None, "{text} cut by one byte");
        }
        assert_eq!(decode_address(&[0; ADDRESS_LEN]), None);
    }

    fn cmsg(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut out = (16 + data.len()).to_ne_bytes().to_vec();
        out.extend(level.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(data);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }

    fn said(control: &[u8]) -> (u16, u8, Option<String>) {
        let Control { segment, class, local } = decode_control(control);
        (segment, class, local.map(|ip| ip.to_string()))
    }

    #[test]
    fn everything_is_found_whatever_the_order() {
        let segment = cmsg(libc::SOL_UDP, UDP_GRO, &1400i32.to_ne_bytes());
        let info = cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &[2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 255]);
        let class = cmsg(libc::IPPROTO_IP, libc::IP_TOS, &[0xbb]);
        let unknown = cmsg(libc::SOL_SOCKET, 9999, &[7; 8]);
        let all = (1400, 0xbb, Some("192.0.2.1".to_owned()));
        assert_eq!(said(&[&*segment, &unknown, &info, &class].concat()), all);
        assert_eq!(said(&[&*class, &info, &unknown, &segment].concat()), all);
        let mut info = Ipv6Addr::LOCALHOST.octets().to_vec();
        info.extend(1u32.to_ne_bytes());
        let info = cmsg(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        let class = cmsg(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3i32.to_ne_bytes());
        assert_eq!(said(&[&*info, &class, &segment].concat()), (1400, 3, Some("::1".to_owned())));
        assert_eq!(said(&[]), (0, 0, None));
        assert!(segment.len() + class.len() + info.len() <= RX_CONTROL_LEN);
    }

    #[test]
    fn control_that_makes_no_sense_says_nothing_and_ends() {
        let good = cmsg(libc::SOL_UDP, UDP_GRO, &1400i32.to_ne_bytes());
        assert_eq!(said(&good[..good.len() - 5]).0, 0, "the value is cut off");
        for len in [0usize, 15, 25, usize::MAX, usize::MAX - 6] {
            let mut control = good.clone();
            control[..8].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(said(&control), (0, 0, None), "{len}");
            control.extend(&good);
            assert_eq!(said(&control).0, if len == 25 { 1400 } else { 0 }, "{len}");
        }
        for control in [
            cmsg(libc::SOL_UDP, UDP_GRO, &(-1i32).to_ne_bytes()),
            cmsg(libc::SOL_UDP, UDP_GRO, &70_000i32.to_ne_bytes()),
            cmsg(libc::SOL_UDP, UDP_GRO, &[1, 2, 3]),
            cmsg(libc::IPPROTO_IP, libc::IP_TOS, &[]),
            cmsg(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &256i32.to_ne_bytes()),
            cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1; 11]),
            cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &[0; 12]),
            cmsg(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &[1; 19]),
            cmsg(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &[0xff; 20]),
        ] {
            assert_eq!(said(&control), (0, 0, None), "{control:?}");
        }
    }

    fn asked(destination: &str, source: Option<&str>, class: u8, train: bool) -> Vec<u8> {
        let source = source.map(|ip| ip.parse().unwrap());
        let destination = Some(destination.parse().unwrap());
        let meta = TxMeta { destination, source, class, segment: 1400, ..TxMeta::default() };
        let mut out = [0xee; TX_CONTROL_LEN];
        let len = encode_control(&meta, train, true, &mut out);
        let mut without = [0xee; TX_CONTROL_LEN];
        let shorter = encode_control(&TxMeta { source: None, ..meta }, train, true, &mut without);
        assert_eq!(encode_control(&meta, train, false, &mut without), shorter);
        out[..len].to_vec()
    }

    #[test]
    fn only_what_differs_from_the_default_is_asked_for() {
        let v4 = "192.0.2.9:1";
        assert_eq!(asked(v4, None, 0, false), vec![0u8; 0]);
        assert_eq!(asked(v4, Some("2001:db8::1"), 0, false), vec![0u8; 0], "an address of the other family");
        assert_eq!(asked("[2001:db8::9]:1", Some("192.0.2.1"), 0, false), vec![0u8; 0]);
        assert_eq!(asked(v4, None, 0, true), cmsg(libc::SOL_UDP, UDP_SEGMENT, &1400u16.to_ne_bytes()));
        let class = cmsg(libc::IPPROTO_IP, libc::IP_TOS, &0xb9i32.to_ne_bytes());
        let info = cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0]);
        assert_eq!(asked(v4, Some("192.0.2.1"), 0xb9, false), [class, info].concat());
        assert_eq!(asked("[2001:db8::9]:1", Some("2001:db8::1"), 1, true).len(), TX_CONTROL_LEN);
    }

    #[test]
    fn a_link_local_source_names_its_link_or_is_left_out() {
        let sent = asked("[fe80::9%7]:1", Some("fe80::1"), 0, false);
        assert_eq!(decode_control(&sent).local, Some("fe80::1".parse().unwrap()));
        assert_eq!(sent[32..36], 7u32.to_ne_bytes());
        assert_eq!(asked("[2001:db8::9]:1", Some("fe80::1"), 0, false), vec![0u8; 0]);
        assert_eq!(asked("[fe80::9%7]:1", Some("2001:db8::1"), 0, false)[32..36], [0; 4]);
    }
}
