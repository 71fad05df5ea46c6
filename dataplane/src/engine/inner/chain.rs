//! The chain of IPv6 extension headers (RFC 8200 §4), followed to the upper-layer header or to a bound.

use weir_abi::drop::DropReason;

use super::{Fragment, IPV6_LEN, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};

// Next-header numbers of the extension headers (IANA, IPv6 Extension Header Types).
pub(super) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Most IPv6 extension headers that are followed. RFC 8200 §4.1 recommends an order in which seven occur; nobody sends as many.
pub const EXTENSIONS_MAX: usize = 8;

/// The end of an IPv6 header chain.
pub(super) struct Chain {
    pub(super) protocol: u8,
    pub(super) l4_offset: Option<usize>,
    pub(super) fragment: Option<Fragment>,
}

/// Follows the extension headers of an IPv6 packet from the one that its fixed header names.
#[inline]
pub(super) fn follow(packet: &[u8], first: u8) -> Result<Chain, DropReason> {
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
pub(super) fn check_fragment(offset: u16, more: bool, len: usize) -> Result<(), DropReason> {
    if (more && !len.is_multiple_of(8)) || usize::from(offset) + len > usize::from(u16::MAX) {
        return Err(DropReason::InnerMalformed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Inner;
    use super::super::testing::{extensions, ipv6, ipv6_fragment, udp};
    use super::*;

    const BROKEN: Result<Inner, DropReason> = Err(DropReason::InnerHeaderChain);

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        ipv6("fd00:1::5", "fd00:2::9", next, payload)
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

    #[test]
    fn a_first_ipv6_fragment_holds_the_whole_header_chain() {
        assert!(Inner::parse(&ipv6_fragment(1, PROTOCOL_TCP, &[0; 24])).is_ok());
        assert_eq!(Inner::parse(&ipv6_fragment(1, PROTOCOL_TCP, &[0; 16])), BROKEN);
        assert!(Inner::parse(&ipv6_fragment(1, PROTOCOL_UDP, &[0; 8])).is_ok());
        assert_eq!(Inner::parse(&ipv6_fragment(1, PROTOCOL_UDP, &[])), BROKEN);
        assert_eq!(Inner::parse(&ipv6_fragment(1, DESTINATION_OPTIONS, &[])), BROKEN);
    }
}
