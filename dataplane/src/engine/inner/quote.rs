//! The packet that an ICMP error quotes: cut short as a rule, so nothing is said of its length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::chain::follow;
use super::duty::ICMP_LEN;
use super::{IPV4_LEN, IPV6_LEN, Inner};

/// What is known of a quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Quote<'a> {
    pub(in crate::engine) source: IpAddr,
    pub(in crate::engine) destination: IpAddr,
    pub(in crate::engine) protocol: u8,
    /// As much of the upper-layer header, and of what follows, as is quoted.
    pub(in crate::engine) upper: &'a [u8],
}

impl Inner {
    /// What this ICMP error quotes: `None` when it is none, or when it quotes no beginning of a packet of its own version.
    pub(in crate::engine) fn quote<'a>(&self, packet: &'a [u8]) -> Option<Quote<'a>> {
        let icmp_type = self.icmp_type(packet).ok()??;
        if !self.is_error_type(icmp_type) {
            return None;
        }
        let quoted = packet.get(usize::from(self.l4_offset?) + ICMP_LEN..)?;
        if self.source.is_ipv4() { quote_v4(quoted) } else { quote_v6(quoted) }
    }
}

fn quote_v4(quoted: &[u8]) -> Option<Quote<'_>> {
    let h: &[u8; IPV4_LEN] = quoted.first_chunk()?;
    let header_len = usize::from(h[0] & 0x0f) * 4;
    let offset = u16::from_be_bytes([h[6], h[7]]) & 0x1fff;
    if h[0] >> 4 != 4 || header_len < IPV4_LEN || offset != 0 {
        return None;
    }
    Some(Quote {
        source: IpAddr::V4(Ipv4Addr::new(h[12], h[13], h[14], h[15])),
        destination: IpAddr::V4(Ipv4Addr::new(h[16], h[17], h[18], h[19])),
        protocol: h[9],
        upper: quoted.get(header_len..)?,
    })
}

fn quote_v6(quoted: &[u8]) -> Option<Quote<'_>> {
    let h: &[u8; IPV6_LEN] = quoted.first_chunk()?;
    if h[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*h.get(at..)?.first_chunk::<16>()?)));
    let chain = follow(quoted, h[6]).ok()?;
    Some(Quote {
        source: address(8)?,
        destination: address(24)?,
        protocol: chain.protocol,
        upper: quoted.get(chain.l4_offset?..)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{extensions, ipv4, ipv6, ipv6_fragment, udp};
    use super::*;

    /// An error of this type about `quoted`, from fd00:2::1 or 10.2.0.1 to what sent it.
    fn error(icmp_type: u8, quoted: &[u8]) -> Vec<u8> {
        let message = [&[icmp_type, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
        if quoted.first().is_some_and(|first| first >> 4 == 4) {
            ipv4("10.2.0.1", "10.1.0.5", 1, 0, &message)
        } else {
            ipv6("fd00:2::1", "fd00:1::5", 58, &message)
        }
    }

    fn quote(packet: &[u8]) -> Option<(String, u8, Vec<u8>)> {
        let quote = Inner::parse(packet).unwrap().quote(packet)?;
        Some((format!("{} {}", quote.source, quote.destination), quote.protocol, quote.upper.to_vec()))
    }

    #[test]
    fn a_quote_is_read_as_far_as_it_goes() {
        let upper = udp(4000, 53, b"long");
        let v4 = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &upper);
        let expected = |upper: &[u8]| Some(("10.1.0.5 10.2.0.9".to_owned(), 17, upper.to_vec()));
        assert_eq!(quote(&error(3, &v4)), expected(&upper));
        assert_eq!(quote(&error(11, &v4[..28])), expected(&upper[..8]));
        assert_eq!(quote(&error(11, &v4[..20])), expected(&[]));
        assert_eq!(quote(&error(11, &v4[..19])), None);
        let chain = [extensions(&[60], 17), upper.clone()].concat();
        let v6 = ipv6("fd00:1::5", "fd00:2::9", 60, &chain);
        let expected = |upper: &[u8]| Some(("fd00:1::5 fd00:2::9".to_owned(), 17, upper.to_vec()));
        assert_eq!(quote(&error(1, &v6)), expected(&upper));
        assert_eq!(quote(&error(2, &v6[..52])), expected(&upper[..4]));
        assert_eq!(quote(&error(2, &v6[..47])), None);
    }

    #[test]
    fn only_errors_about_the_beginning_of_a_packet_are_quotes() {
        let v4 = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &udp(4000, 53, b""));
        for icmp_type in [0, 8, 13] {
            assert_eq!(quote(&error(icmp_type, &v4)), None);
        }
        assert_eq!(quote(&error(3, &ipv4("10.1.0.5", "10.2.0.9", 17, 1, &[0; 8]))), None);
        assert_eq!(quote(&error(1, &ipv6_fragment(8, 17, &[0; 8]))), None);
        assert_eq!(quote(&ipv4("10.2.0.1", "10.1.0.5", 17, 0, &[3; 60])), None);
    }

    proptest! {
        #[test]
        fn no_quote_makes_it_panic(mut quoted in prop::collection::vec(any::<u8>(), 1..120), v6: bool) {
            quoted[0] = if v6 { 0x60 } else { 0x45 };
            let packet = error(3, &quoted);
            let _ = Inner::parse(&packet).unwrap().quote(&packet);
        }
    }
}
