//! A router's duties towards one packet: count its TTL down, and refuse what no router may carry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_abi::drop::DropReason;

use super::{IPV4_LEN, IPV6_LEN, Inner};

/// Bytes of ICMP before the packet that an error quotes (RFC 792, RFC 4443 §2.1).
pub(in crate::engine) const ICMP_LEN: usize = 8;

impl Inner {
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
#[inline]
pub(in crate::engine) fn is_confined(address: IpAddr) -> bool {
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
#[inline]
pub(in crate::engine) fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{extensions, fix_checksum, ipv4, ipv6, udp};
    use super::*;
    use crate::engine::icmp::checksum;

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
        let mut packet = ipv4("10.1.0.5", "10.2.0.9", 17, 0, &[]);
        for ttl in (1..64).rev() {
            assert_eq!(decrement_ttl(&mut packet), Ok(()));
            assert_eq!(Inner::parse(&packet).map(|inner| inner.ttl), Ok(ttl));
        }
        let before = packet.clone();
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        assert_eq!(packet, before);

        let mut packet = ipv6("fd00:1::5", "fd00:2::9", 59, &[]);
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
        let mut payload = extensions(&[60], 58);
        payload.extend(quote(&ipv6("fd00:1::5", "fd00:3::9", 17, &udp(1, 2, b"")), 1));
        let packet = ipv6("fd00:2::1", "fd00:1::5", 60, &payload);
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
