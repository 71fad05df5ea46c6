//! Clamping the maximum segment size of TCP connections to what the path carries whole.
//!
//! ```text
//!   IP header │ source port … offset, flags, window │ checksum, urgent │ options: … │2│4│ MSS │ …
//!             └ SYN set ─────────────┘                └ follows          └ at most what fits the inner MTU
//! ```
//!
//! The two ends of a connection tell each other once, in SYN and SYN/ACK, how long their segments may be (RFC 9293 §3.7.1). A gateway that
//! lowers the number spares the connection the loss and the ICMP error that would tell it later, or never where ICMP is filtered. It never
//! raises it. Segments without the option are left alone: such hosts send 536 bytes (IPv4) or 1220 (IPv6) at most, which always fits.
//!
//! It changes one number in a packet that was judged before, and knows neither sessions nor paths.

use super::{Inner, PROTOCOL_TCP};

/// Bytes of a TCP header without options (RFC 9293 §3.1).
const TCP_LEN: usize = 20;
/// Where the flags stand in it.
const FLAGS: usize = 13;
/// The SYN flag.
const SYN: u8 = 0x02;
/// Where the checksum stands in it.
const CHECKSUM: usize = 16;
/// Option kinds (RFC 9293 §3.2): end of the list, no operation, maximum segment size.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Bytes of the MSS option.
const MSS_LEN: u8 = 4;
/// What a host may send that was told nothing (RFC 9293 §3.7.1): no clamp goes below it.
const DEFAULT_V4: u16 = 536;
const DEFAULT_V6: u16 = 1220;

/// Lowers the MSS option of a TCP SYN or SYN/ACK, so that segments fit packets of `mtu` bytes behind headers like these. Returns whether
/// it did. `inner` was parsed from `packet`.
///
/// With `partial_checksum`, the checksum field holds the sum of the pseudo-header alone, and whoever sends the packet on will add the
/// segment to it as it is then: the field must not follow the option here.
#[inline]
pub fn clamp(packet: &mut [u8], inner: &Inner, mtu: u16, partial_checksum: bool) -> bool {
    let Some(offset) = inner.l4_offset.map(usize::from) else { return false };
    let is_syn = packet.get(offset + FLAGS).is_some_and(|flags| flags & SYN != 0);
    if !is_syn || inner.protocol != PROTOCOL_TCP || inner.fragment.is_some() {
        return false;
    }
    let default = if inner.source.is_ipv4() { DEFAULT_V4 } else { DEFAULT_V6 };
    let most = usize::from(mtu).saturating_sub(offset + TCP_LEN).max(default.into());
    packet.get_mut(offset..).is_some_and(|segment| clamp_segment(segment, most as u16, partial_checksum))
}

/// Looks through the options of a SYN. What is malformed ends the search and is left for the host to judge.
fn clamp_segment(segment: &mut [u8], most: u16, partial_checksum: bool) -> bool {
    let header_len = segment.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4);
    if header_len < TCP_LEN || header_len > segment.len() {
        return false;
    }
    let (mut at, mut clamped) = (TCP_LEN, false);
    while at < header_len {
        let len = match segment[at] {
            END => break,
            NO_OPERATION => 1,
            kind => {
                let Some(&len) = segment[..header_len].get(at + 1) else { break };
                if len < 2 || at + usize::from(len) > header_len {
                    break;
                }
                if kind == MSS && len == MSS_LEN {
                    clamped |= lower(segment, at + 2, most, partial_checksum);
                }
                usize::from(len)
            }
        };
        at += len;
    }
    clamped
}

/// Lowers the number at `at`, which is within the header, to `most`.
fn lower(segment: &mut [u8], at: usize, most: u16, partial_checksum: bool) -> bool {
    let value = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if value <= most {
        return false;
    }
    [segment[at], segment[at + 1]] = most.to_be_bytes();
    if !partial_checksum {
        let checksum = u16::from_be_bytes([segment[CHECKSUM], segment[CHECKSUM + 1]]);
        // At an odd offset the number lies across two words of the sum; its bytes count the other way round there (RFC 1071 §2(B)).
        let (before, after) =
            if at.is_multiple_of(2) { (value, most) } else { (value.swap_bytes(), most.swap_bytes()) };
        [segment[CHECKSUM], segment[CHECKSUM + 1]] = updated(checksum, before, after).to_be_bytes();
    }
    true
}

/// The checksum after one summed word has changed (RFC 1624, equation 3).
fn updated(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{extensions, ipv4, ipv6};
    use super::*;
    use crate::engine::icmp::checksum;

    fn pseudo(packet: &[u8], len: usize) -> Vec<u8> {
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        [addresses, &(len as u32).to_be_bytes(), &[0, 0, 0, 6]].concat()
    }

    /// Zero when the checksum of the segment at `offset` is right.
    fn verify(packet: &[u8], offset: usize) -> u16 {
        checksum(&[&pseudo(packet, packet.len() - offset), &packet[offset..]].concat())
    }

    fn segment(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
        segment.extend(options);
        segment.resize(segment.len().next_multiple_of(4), 0);
        segment[12] = (segment.len() as u8 / 4) << 4;
        segment
    }

    fn with_checksum(mut packet: Vec<u8>, offset: usize) -> Vec<u8> {
        let sum = verify(&packet, offset);
        packet[offset + CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn v4(flags: u8, options: &[u8]) -> Vec<u8> {
        with_checksum(ipv4("10.1.0.5", "10.2.0.9", PROTOCOL_TCP, 0x4000, &segment(flags, options)), 20)
    }

    fn clamped(packet: &mut [u8], mtu: u16) -> bool {
        let inner = Inner::parse(packet).unwrap();
        clamp(packet, &inner, mtu, false)
    }

    const MSS_1460: [u8; 4] = [2, 4, 0x05, 0xb4];

    #[test]
    fn a_syn_is_lowered_to_what_fits_and_its_checksum_follows() {
        for flags in [SYN, SYN | 0x10, SYN | 0xc0] {
            let mut packet = v4(flags, &MSS_1460);
            assert!(clamped(&mut packet, 1400));
            assert_eq!(packet, v4(flags, &[2, 4, 0x05, 0x50]), "1360");
        }
    }

    #[test]
    fn what_fits_already_is_left_alone() {
        for (mtu, lowered) in [(1499, true), (1500, false), (1501, false)] {
            let mut packet = v4(SYN, &MSS_1460);
            assert_eq!(clamped(&mut packet, mtu), lowered, "{mtu}");
            assert_eq!(packet == v4(SYN, &MSS_1460), !lowered);
        }
    }

    #[test]
    fn ipv6_counts_its_extension_headers() {
        for kinds in [&[][..], &[60], &[0, 60]] {
            let offset = 40 + 8 * kinds.len();
            let chain = extensions(kinds, PROTOCOL_TCP);
            let next = kinds.first().copied().unwrap_or(PROTOCOL_TCP);
            let packet = ipv6("fd00:1::5", "fd00:2::9", next, &[chain, segment(SYN, &MSS_1460)].concat());
            let mut packet = with_checksum(packet, offset);
            assert!(clamped(&mut packet, 1400));
            assert_eq!(packet[offset + 22..offset + 24], (1400 - offset as u16 - 20).to_be_bytes());
            assert_eq!(verify(&packet, offset), 0);
        }
    }

    #[test]
    fn no_clamp_goes_below_what_hosts_may_send_anyway() {
        let mut packet = v4(SYN, &MSS_1460);
        assert!(clamped(&mut packet, 100));
        assert_eq!(packet, v4(SYN, &[2, 4, 0x02, 0x18]), "536");
        let packet = ipv6("fd00:1::5", "fd00:2::9", PROTOCOL_TCP, &segment(SYN, &MSS_1460));
        let mut packet = with_checksum(packet, 40);
        assert!(clamped(&mut packet, 1279));
        assert_eq!(packet[62..64], 1220u16.to_be_bytes());
    }

    #[test]
    fn segments_that_are_no_syn_or_say_nothing_are_left_alone() {
        for packet in [
            v4(0x10, &MSS_1460),
            v4(SYN, &[]),
            v4(SYN, &[1, 1, 1, 1]),
            v4(SYN, &[3, 3, 7, 0]),
            // Behind the end of the list.
            v4(SYN, &[1, 0, 2, 4, 0x05, 0xb4]),
            ipv4("10.1.0.5", "10.2.0.9", 17, 0, &segment(SYN, &MSS_1460)),
            // The first fragment of a segment.
            ipv4("10.1.0.5", "10.2.0.9", PROTOCOL_TCP, 0x2000, &segment(SYN, &MSS_1460)),
        ] {
            let mut after = packet.clone();
            assert!(!clamped(&mut after, 1280));
            assert_eq!(after, packet);
        }
    }

    #[test]
    fn malformed_options_end_the_search() {
        for options in [
            &[3u8, 0, 2, 4, 0x05, 0xb4, 1, 1][..],
            &[3, 1, 2, 4, 0x05, 0xb4, 1, 1],
            &[3, 40, 2, 4, 0x05, 0xb4, 1, 1],
            &[2, 3, 0x05, 0xb4],
            &[2, 5, 0x05, 0xb4],
            &[1, 1, 1, 2],
            &[1, 1, 2, 4],
            &[1, 2, 4, 5],
        ] {
            let mut packet = v4(SYN, options);
            assert!(!clamped(&mut packet, 1280), "{options:?}");
            assert_eq!(packet, v4(SYN, options));
        }
        for header_len in [0x00, 0x40, 0x70, 0xf0] {
            let mut packet = v4(SYN, &MSS_1460);
            packet[32] = header_len;
            assert!(!clamped(&mut packet, 1280), "{header_len:#x}");
        }
        for len in 0..20 {
            let mut packet = ipv4("10.1.0.5", "10.2.0.9", PROTOCOL_TCP, 0, &segment(SYN, &MSS_1460)[..len]);
            assert!(!clamped(&mut packet, 1280), "{len} bytes of TCP");
        }
    }

    #[test]
    fn a_partial_checksum_stays_as_it_is() {
        let mut packet = v4(SYN, &MSS_1460);
        packet[36..38].copy_from_slice(&[0x12, 0x34]);
        let inner = Inner::parse(&packet).unwrap();
        assert!(clamp(&mut packet, &inner, 1400, true));
        assert_eq!((&packet[36..38], &packet[42..44]), (&[0x12, 0x34][..], &1360u16.to_be_bytes()[..]));
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right_and_no_mss_is_above_the_limit(
            before in prop::collection::vec(prop_oneof![Just(vec![1]), Just(vec![3, 3, 7]), Just(vec![4, 2])], 0..5),
            mss in any::<u16>(),
            mtu in 1280..9000u16,
        ) {
            let before = before.concat();
            let options = [&before[..], &[2, 4], &mss.to_be_bytes()].concat();
            let mut packet = v4(SYN, &options);
            let lowered = clamped(&mut packet, mtu);
            prop_assert_eq!(lowered, mss > mtu - 40);
            prop_assert_eq!(verify(&packet, 20), 0);
            let at = 40 + before.len() + 2;
            prop_assert_eq!(&packet[at..at + 2], &mss.min(mtu - 40).to_be_bytes());
        }

        #[test]
        fn no_options_make_it_touch_anything_but_option_and_checksum(options in prop::collection::vec(0..6u8, 0..40), mtu in any::<u16>()) {
            let packet = v4(SYN, &options);
            let mut after = packet.clone();
            clamped(&mut after, mtu);
            prop_assert_eq!(&after[..36], &packet[..36]);
            prop_assert_eq!(verify(&after, 20), 0);
        }
    }
}
