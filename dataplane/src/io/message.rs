//! Socket addresses and control messages as the kernel lays them out.
//!
//! Everything here is bytes in, values out, and the other way round, so both socket ports share it and ordinary tests reach it. It
//! knows nothing of sockets and of who calls.
//!
//! ```text
//!   struct cmsghdr (include/linux/socket.h)          the two that matter to us
//!   +-----------+-----------+----------+--------+    SOL_UDP, UDP_SEGMENT: u16, on the way out
//!   | len usize | level i32 | type i32 | data … |    SOL_UDP, UDP_GRO:     int, on the way in
//!   +-----------+-----------+----------+--------+    each padded to the size of a usize
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

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

/// Room for the one control message that we send, `CMSG_SPACE(sizeof(u16))`.
pub(super) const SEGMENT_CONTROL_LEN: usize = CMSG_HEADER_LEN + size_of::<usize>();

/// Room for control messages that we receive. `UDP_GRO` takes 24 bytes; the rest is for what another layer may switch on later.
pub(super) const RX_CONTROL_LEN: usize = 64;

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

/// The control message that asks for datagrams of `segment` bytes.
pub(super) fn encode_segment(segment: u16) -> [u8; SEGMENT_CONTROL_LEN] {
    let mut out = [0; SEGMENT_CONTROL_LEN];
    // A socklen_t with padding (musl) reads the same as a size_t (glibc) on the little-endian machines that Weir runs on.
    out[..size_of::<usize>()].copy_from_slice(&(CMSG_HEADER_LEN + size_of::<u16>()).to_ne_bytes());
    out[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    out[12..16].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
    out[16..18].copy_from_slice(&segment.to_ne_bytes());
    out
}

/// The segment size that `UDP_GRO` reports among `control`, if it does.
pub(super) fn decode_segment(control: &[u8]) -> Option<u16> {
    let mut rest = control;
    loop {
        let len = usize::from_ne_bytes(array(rest, 0)?);
        let level = i32::from_ne_bytes(array(rest, 8)?);
        let kind = i32::from_ne_bytes(array(rest, 12)?);
        if len < CMSG_HEADER_LEN || len > rest.len() {
            return None;
        }
        if level == libc::SOL_UDP && kind == UDP_GRO {
            return u16::try_from(i32::from_ne_bytes(array(&rest[..len], CMSG_HEADER_LEN)?)).ok();
        }
        rest = rest.get(len.next_multiple_of(size_of::<usize>())..)?;
    }
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

    #[test]
    fn segment_is_found_behind_another_message() {
        let mut control = cmsg(libc::SOL_IP, libc::IP_TOS, &[3]);
        control.extend(cmsg(libc::SOL_UDP, UDP_GRO, &1400i32.to_ne_bytes()));
        assert_eq!(decode_segment(&control), Some(1400));
        assert_eq!(decode_segment(&control[..control.len() - 8]), None, "the value is cut off");
        assert_eq!(decode_segment(&[]), None);
    }

    #[test]
    fn control_of_impossible_length_is_refused() {
        for len in [0usize, 15, 25, usize::MAX] {
            let mut control = cmsg(libc::SOL_UDP, UDP_GRO, &1400i32.to_ne_bytes());
            control[..8].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(decode_segment(&control), None, "{len}");
        }
        assert_eq!(decode_segment(&cmsg(libc::SOL_UDP, UDP_GRO, &(-1i32).to_ne_bytes())), None);
        assert_eq!(decode_segment(&cmsg(libc::SOL_UDP, UDP_GRO, &65_536i32.to_ne_bytes())), None);
    }

    #[test]
    fn segment_request_is_what_the_kernel_header_says() {
        assert_eq!(encode_segment(1400)[..18], cmsg(libc::SOL_UDP, UDP_SEGMENT, &1400u16.to_ne_bytes())[..18]);
    }
}
