//! The errors that a router owes to the senders of packets it cannot forward, and how many of them it sends.
//!
//! ```text
//!   IPv4: at most 576 bytes (RFC 1812 §4.3.2.3)      IPv6: at most 1280 bytes (RFC 4443 §2.4(c))
//!  +------------------------------------------+------------------------+---------------------------+
//!  | IP header: gateway ▸ sender of the packet | type code sum | rest  | as much of it as fits     |
//!  +------------------------------------------+------------------------+---------------------------+
//!              20 or 40 bytes                           8 bytes
//! ```
//!
//! An error is written into the caller's buffer; nothing is sent here, and nothing is known of where the packet came from but its own
//! source address. What must not be answered is not answered, so that two gateways never answer each other for ever and no error goes
//! to many hosts at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_abi::gcra::Rate;

use super::inner::{ICMP_LEN, IPV4_LEN, IPV6_LEN, Inner, PROTOCOL_ICMP, PROTOCOL_ICMPV6, is_confined, is_group};
use super::offload::checksum::Sum;
use super::time::Time;

/// Longest ICMP error in bytes, IPv4 header included (RFC 1812 §4.3.2.3).
pub const ERROR_V4_LEN_MAX: usize = 576;
/// Longest ICMPv6 error in bytes, IPv6 header included (RFC 4443 §2.4(c)).
pub const ERROR_V6_LEN_MAX: usize = 1280;
/// A buffer of this many bytes holds any error.
pub const ERROR_LEN_MAX: usize = ERROR_V6_LEN_MAX;

/// Errors per second of one engine towards the local side or towards one peer, and how many back to back. Linux sends as many by default (`icmp_msgs_per_sec`, `icmp_msgs_burst`):
/// enough for a traceroute and for path MTU discovery by thousands of flows, and too little to be worth an attacker's while.
pub const ERROR_RATE: Rate = Rate::per_second(1000, 50);

/// TTL and hop limit of our errors (the value recommended by RFC 1700 and IANA).
const ERROR_TTL: u8 = 64;
/// DSCP CS6, internetwork control, as RFC 1812 §4.3.2.5 asks of IPv4 errors. RFC 4443 asks nothing, so ICMPv6 stays at zero.
const ERROR_V4_TOS: u8 = 0xc0;
/// An IPv6 redirect is not in the error range but must not be answered either (RFC 4443 §2.4(e.2)).
const ICMPV6_REDIRECT: u8 = 137;

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The TTL or hop limit reached zero in transit.
    TimeExceeded,
    /// There is no route to the destination.
    NoRoute,
    /// There is a route, but its next hop cannot be reached now.
    HostUnreachable,
    /// Forwarding is refused by configuration.
    AdminProhibited,
    /// The packet does not fit: "fragmentation needed and DF set" (RFC 1191 §4) or "packet too big" (RFC 8201). An IPv4 packet that may
    /// be fragmented gets no such error; that is for the caller to see.
    PacketTooBig {
        /// Largest packet that fits, in bytes.
        mtu: u16,
    },
}

/// Where errors to our own hosts come from when the gateway has no IPv4 address in the overlay: the dummy address (RFC 7600 §4.8), which the
/// kernel takes in the same place. A peer would not believe it, since it is in nobody's networks.
pub const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

impl ErrorKind {
    /// Type, code and the rest of the ICMP header.
    const fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::NoRoute => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::AdminProhibited => (3, 13, 0),
            Self::PacketTooBig { mtu } => (3, 4, mtu as u32),
        }
    }

    /// Type, code and the rest of the ICMPv6 header.
    const fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::NoRoute => (1, 0, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::AdminProhibited => (1, 1, 0),
            Self::PacketTooBig { mtu } => (2, 0, mtu as u32),
        }
    }
}

/// Writes the error about `offending`, a whole IP packet, into `out`, as it was when it arrived or with its TTL counted down.
///
/// Returns the error's length in bytes, or `None` when there is none to send: the packet must not be answered (RFC 1812 §4.3.2.7, RFC 4443
/// §2.4(e)): it is itself an ICMP error or a redirect, a non-first fragment, malformed, from or to a group, or from an address that names
/// no host; or the gateway has no address of the packet's family; or `out` cannot hold the quoted header and eight bytes more.
/// [`ERROR_LEN_MAX`] bytes always suffice.
pub fn error(
    kind: ErrorKind,
    gateway_v4: Option<Ipv4Addr>,
    gateway_v6: Option<Ipv6Addr>,
    offending: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let inner = Inner::parse(offending).ok()?;
    let l4_offset = usize::from(inner.l4_offset?);
    if is_confined(inner.source) || is_group(inner.source) || is_group(inner.destination) {
        return None;
    }
    match inner.icmp_type(offending).ok()? {
        Some(icmp_type) if inner.is_error_type(icmp_type) => return None,
        Some(ICMPV6_REDIRECT) if inner.source.is_ipv6() => return None,
        _ => {}
    }
    match inner.source {
        IpAddr::V4(sender) => error_v4(kind, gateway_v4?, sender, offending, l4_offset, out),
        IpAddr::V6(sender) => error_v6(kind, gateway_v6?, sender, offending, out),
    }
}

fn error_v4(
    kind: ErrorKind,
    gateway: Ipv4Addr,
    sender: Ipv4Addr,
    offending: &[u8],
    header_len: usize,
    out: &mut [u8],
) -> Option<usize> {
    let len = error_len(IPV4_LEN, ERROR_V4_LEN_MAX, header_len, offending, out)?;
    let out = out.get_mut(..len)?;
    let (header, message) = out.split_first_chunk_mut::<IPV4_LEN>()?;
    let [len_high, len_low] = (len as u16).to_be_bytes();
    let [g0, g1, g2, g3] = gateway.octets();
    let [s0, s1, s2, s3] = sender.octets();
    // DF makes the datagram atomic, so it needs no identification of its own (RFC 6864 §4).
    *header = [
        0x45,
        ERROR_V4_TOS,
        len_high,
        len_low,
        0,
        0,
        0x40,
        0,
        ERROR_TTL,
        PROTOCOL_ICMP,
        0,
        0,
        g0,
        g1,
        g2,
        g3,
        s0,
        s1,
        s2,
        s3,
    ];
    [header[10], header[11]] = checksum(header).to_be_bytes();
    write_message(message, kind.v4(), Sum::default(), offending);
    Some(len)
}

fn error_v6(kind: ErrorKind, gateway: Ipv6Addr, sender: Ipv6Addr, offending: &[u8], out: &mut [u8]) -> Option<usize> {
    let len = error_len(IPV6_LEN, ERROR_V6_LEN_MAX, IPV6_LEN, offending, out)?;
    let out = out.get_mut(..len)?;
    let (header, message) = out.split_first_chunk_mut::<IPV6_LEN>()?;
    let message_len = message.len() as u16;
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&message_len.to_be_bytes());
    header[6] = PROTOCOL_ICMPV6;
    header[7] = ERROR_TTL;
    header[8..24].copy_from_slice(&gateway.octets());
    header[24..].copy_from_slice(&sender.octets());
    // The pseudo-header (RFC 8200 §8.1): addresses, length and next header.
    let pseudo = Sum::of(&header[8..]) + Sum::word(u16::from(PROTOCOL_ICMPV6)) + Sum::word(message_len);
    write_message(message, kind.v6(), pseudo, offending);
    Some(len)
}

/// The length of an error with as much of the packet as fits, if its header and eight bytes more do.
fn error_len(ip_len: usize, len_max: usize, header_len: usize, offending: &[u8], out: &[u8]) -> Option<usize> {
    let fixed = ip_len + ICMP_LEN;
    let quoted_min = offending.len().min(header_len + 8);
    let len = (fixed + offending.len()).min(len_max).min(out.len());
    (len >= fixed + quoted_min).then_some(len)
}

/// Fills `message` with the ICMP header and the beginning of the packet; `pseudo` is the sum of a pseudo-header.
fn write_message(message: &mut [u8], (icmp_type, code, rest): (u8, u8, u32), pseudo: Sum, offending: &[u8]) {
    let Some((header, quote)) = message.split_first_chunk_mut::<ICMP_LEN>() else { return };
    let [r0, r1, r2, r3] = rest.to_be_bytes();
    *header = [icmp_type, code, 0, 0, r0, r1, r2, r3];
    let quoted_len = quote.len().min(offending.len());
    quote[..quoted_len].copy_from_slice(&offending[..quoted_len]);
    let total = pseudo + Sum::of(header) + Sum::of(quote);
    [header[2], header[3]] = total.checksum().to_be_bytes();
}

/// The Internet checksum of the bytes (RFC 1071): what a checksum field that was zero must hold, and zero over bytes whose field is right.
///
/// A byte at an odd end counts as if a zero followed.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::of(bytes).checksum()
}

/// How many errors one engine sends to one side: a token bucket over all of them (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
#[derive(Clone, Debug)]
pub struct ErrorLimiter {
    rate: Rate,
    tat: u64,
}

impl ErrorLimiter {
    /// A full bucket; see [`ERROR_RATE`].
    pub const fn new(rate: Rate) -> Self {
        Self { rate, tat: 0 }
    }

    /// Whether one more error may be sent at `now`; if so, it is counted.
    pub fn admit(&mut self, now: Time) -> bool {
        match self.rate.admit(self.tat, now.as_nanos()) {
            Some(tat) => {
                self.tat = tat;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::inner::testing::{fix_checksum, ipv4, ipv6, udp};
    use super::*;

    const KINDS: [ErrorKind; 5] = [
        ErrorKind::TimeExceeded,
        ErrorKind::NoRoute,
        ErrorKind::HostUnreachable,
        ErrorKind::AdminProhibited,
        ErrorKind::PacketTooBig { mtu: 1380 },
    ];

    /// The checksum as RFC 1071 §4.1 describes it: one 16-bit word after the other.
    fn plain_checksum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    /// What the message's checksum comes to, pseudo-header included: zero when it is right.
    fn message_checksum(packet: &[u8]) -> u16 {
        if packet[0] >> 4 == 4 {
            return plain_checksum(&packet[20..]);
        }
        let mut bytes = packet[8..40].to_vec();
        bytes.extend(((packet.len() - 40) as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 58]);
        bytes.extend(&packet[40..]);
        plain_checksum(&bytes)
    }

    fn answer(kind: ErrorKind, offending: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xaa; 2000];
        let v4 = Some("10.2.0.1".parse().unwrap());
        let v6 = Some("fd00:2::1".parse().unwrap());
        error(kind, v4, v6, offending, &mut out).map(|len| out[..len].to_vec())
    }

    fn v4(payload: &[u8]) -> Vec<u8> {
        ipv4("10.1.0.5", "10.2.0.9", 17, 0x4000, payload)
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        ipv6("fd00:1::5", "fd00:2::9", 17, payload)
    }

    #[test]
    fn an_ipv4_error_is_complete() {
        for (kind, head) in KINDS.iter().zip([
            [11, 0, 0, 0, 0, 0],
            [3, 0, 0, 0, 0, 0],
            [3, 1, 0, 0, 0, 0],
            [3, 13, 0, 0, 0, 0],
            [3, 4, 0, 0, 0x05, 0x64],
        ]) {
            let offending = v4(&udp(1, 2, b"odd"));
            let packet = answer(*kind, &offending).unwrap();
            let inner = Inner::parse(&packet).unwrap();
            assert_eq!(inner.source, "10.2.0.1".parse::<IpAddr>().unwrap());
            assert_eq!(inner.destination, "10.1.0.5".parse::<IpAddr>().unwrap());
            assert_eq!((inner.ttl, inner.protocol, inner.l4_offset), (64, 1, Some(20)));
            assert_eq!(packet[20..22], head[..2]);
            assert_eq!(packet[24..28], head[2..]);
            assert_eq!(packet[28..], offending);
            assert_eq!(message_checksum(&packet), 0);
        }
    }

    #[test]
    fn an_ipv6_error_is_complete() {
        for (kind, head) in KINDS.iter().zip([
            [3, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0],
            [1, 3, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [2, 0, 0, 0, 0x05, 0x64],
        ]) {
            let offending = v6(&udp(1, 2, b"odd"));
            let packet = answer(*kind, &offending).unwrap();
            let inner = Inner::parse(&packet).unwrap();
            assert_eq!(inner.source, "fd00:2::1".parse::<IpAddr>().unwrap());
            assert_eq!(inner.destination, "fd00:1::5".parse::<IpAddr>().unwrap());
            assert_eq!((inner.ttl, inner.protocol, inner.l4_offset), (64, 58, Some(40)));
            assert_eq!(packet[40..42], head[..2]);
            assert_eq!(packet[44..48], head[2..]);
            assert_eq!(packet[48..], offending);
            assert_eq!(message_checksum(&packet), 0);
        }
    }

    #[test]
    fn as_much_is_quoted_as_the_limit_allows() {
        for (offending, ip_len, limit) in [
            (v4(&[7; 576 - 28 - 20]), 20, ERROR_V4_LEN_MAX),
            (v4(&[7; 576 - 28 - 20 + 1]), 20, ERROR_V4_LEN_MAX),
            (v4(&[7; 1480]), 20, ERROR_V4_LEN_MAX),
            (v6(&[7; 1280 - 48 - 40]), 40, ERROR_V6_LEN_MAX),
            (v6(&[7; 1280 - 48 - 40 + 1]), 40, ERROR_V6_LEN_MAX),
            (v6(&[7; 9000]), 40, ERROR_V6_LEN_MAX),
        ] {
            let packet = answer(ErrorKind::TimeExceeded, &offending).unwrap();
            assert_eq!(packet.len(), limit);
            assert_eq!(packet[ip_len + 8..], offending[..limit - ip_len - 8]);
            assert_eq!(message_checksum(&packet), 0);
            assert!(Inner::parse(&packet).is_ok());
        }
        let shorter = v4(&[7; 576 - 28 - 20 - 1]);
        assert_eq!(answer(ErrorKind::TimeExceeded, &shorter).unwrap().len(), ERROR_V4_LEN_MAX - 1);
    }

    #[test]
    fn a_short_buffer_shortens_the_quote_but_not_below_the_header_and_eight_bytes() {
        for (offending, least) in [(v4(&[7; 100]), 28 + 28), (v6(&[7; 100]), 48 + 48), (v4(&[7; 4]), 28 + 24)] {
            for room in 0..=offending.len() + 48 {
                let mut out = vec![0; room];
                let v4 = Some("10.2.0.1".parse().unwrap());
                let v6 = Some("fd00:2::1".parse().unwrap());
                let len = error(ErrorKind::NoRoute, v4, v6, &offending, &mut out);
                assert_eq!(len.is_some(), room >= least, "{room}");
                if let Some(len) = len {
                    assert_eq!(message_checksum(&out[..len]), 0);
                }
            }
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not_answered() {
        let v4_to = |source: &str, destination: &str| ipv4(source, destination, 17, 0, &udp(1, 2, b""));
        let v6_to = |source: &str, destination: &str| ipv6(source, destination, 17, &udp(1, 2, b""));
        let icmp = |icmp_type| ipv4("10.1.0.5", "10.2.0.9", 1, 0, &[icmp_type, 0, 0, 0, 0, 0, 0, 0]);
        let icmpv6 = |icmp_type| ipv6("fd00:1::5", "fd00:2::9", 58, &[icmp_type, 0, 0, 0, 0, 0, 0, 0]);
        let answered = [
            v4_to("10.1.0.5", "10.2.0.9"),
            v6_to("fd00:1::5", "fd00:2::9"),
            icmp(8),
            icmp(0),
            icmp(13),
            icmpv6(128),
            icmpv6(129),
            ipv4("10.1.0.5", "10.2.0.9", 17, 0x2000, &udp(1, 2, b"")),
        ];
        for offending in answered {
            assert!(answer(ErrorKind::TimeExceeded, &offending).is_some(), "{offending:x?}");
        }
        let mut malformed = v4(&[0; 8]);
        malformed[2] = 0xff;
        fix_checksum(&mut malformed);
        let unanswered = [
            icmp(3),
            icmp(4),
            icmp(5),
            icmp(11),
            icmp(12),
            icmpv6(1),
            icmpv6(2),
            icmpv6(3),
            icmpv6(127),
            icmpv6(137),
            ipv4("10.1.0.5", "10.2.0.9", 1, 0, &[]),
            ipv4("10.1.0.5", "10.2.0.9", 17, 0x0001, &[0; 8]),
            ipv6("fd00:1::5", "fd00:2::9", 44, &[17, 0, 0, 8, 0, 0, 0, 1, 0]),
            v4_to("0.0.0.0", "10.2.0.9"),
            v4_to("127.0.0.1", "10.2.0.9"),
            v4_to("224.0.0.1", "10.2.0.9"),
            v4_to("255.255.255.255", "10.2.0.9"),
            v4_to("10.1.0.5", "224.0.0.251"),
            v4_to("10.1.0.5", "255.255.255.255"),
            v6_to("::", "fd00:2::9"),
            v6_to("::1", "fd00:2::9"),
            v6_to("fe80::1", "fd00:2::9"),
            v6_to("ff02::1", "fd00:2::9"),
            v6_to("fd00:1::5", "ff02::1"),
            malformed,
            vec![],
        ];
        for offending in unanswered {
            assert_eq!(answer(ErrorKind::TimeExceeded, &offending), None, "{offending:x?}");
        }
    }

    #[test]
    fn a_gateway_without_an_address_of_the_family_is_silent() {
        let mut out = [0; ERROR_LEN_MAX];
        let v6_only = Some("fd00:2::1".parse().unwrap());
        assert_eq!(error(ErrorKind::NoRoute, None, v6_only, &v4(&[0; 8]), &mut out), None);
        assert!(error(ErrorKind::NoRoute, None, v6_only, &v6(&[0; 8]), &mut out).is_some());
        assert_eq!(error(ErrorKind::NoRoute, Some("10.2.0.1".parse().unwrap()), None, &v6(&[0; 8]), &mut out), None);
    }

    #[test]
    fn an_error_of_ours_is_never_answered_and_is_not_forged_to_the_one_who_sent_the_packet() {
        for offending in [v4(&udp(1, 2, b"x")), v6(&udp(1, 2, b"x"))] {
            for kind in KINDS {
                let packet = answer(kind, &offending).unwrap();
                assert_eq!(answer(ErrorKind::TimeExceeded, &packet), None);
                let destination = Inner::parse(&offending).unwrap().destination;
                let inner = Inner::parse(&packet).unwrap();
                assert_eq!(inner.forged_error(&packet, |address| address == destination), Ok(()));
            }
        }
    }

    #[test]
    fn the_limiter_lets_a_burst_through_and_then_the_rate() {
        let mut limiter = ErrorLimiter::new(ERROR_RATE);
        let start = Time::from_nanos(7_000_000_000);
        assert_eq!((0..200).filter(|_| limiter.admit(start)).count(), 50);
        assert_eq!((0..10).filter(|_| limiter.admit(start.plus(Duration::from_millis(1)))).count(), 1);
        let later = start.plus(Duration::from_secs(60));
        assert_eq!((0..200).filter(|_| limiter.admit(later)).count(), 50);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_builder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), room in 0usize..600) {
            let mut out = vec![0; room];
            let v4 = Some(Ipv4Addr::new(10, 0, 0, 1));
            let _ = error(ErrorKind::NoRoute, v4, Some(Ipv6Addr::LOCALHOST), &bytes, &mut out);
        }
    }
}
