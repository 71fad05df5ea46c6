//! The traffic class of inner packets and of the datagrams that carry them: congestion marks, what is shown outside, who goes first.
//!
//! ```text
//!    0   1   2   3   4   5   6   7
//!  +---+---+---+---+---+---+---+---+
//!  |         DSCP          |  ECN  |      RFC 2474 §3, RFC 3168 §5
//!  +---+---+---+---+---+---+---+---+
//! ```
//!
//! A datagram's ECN codepoint is that of every packet in it (RFC 6040 §4.1, normal mode), so packets of different codepoints never share
//! one; on the way out again the marks that the path has made go into the packets (RFC 6040 §4.2). This part does not know sessions or
//! datagrams: it answers questions about one byte, and sets two bits of a packet.

use weir_abi::drop::DropReason;

use super::inner::{IPV4_LEN, IPV6_LEN};

/// The bits of a traffic class that are ECN.
const ECN_MASK: u8 = 0b11;

/// The traffic class of a packet that was parsed before; zero when it is none.
#[inline]
pub(super) fn of_packet(packet: &[u8]) -> u8 {
    match *packet {
        [first, class, ..] if first >> 4 == 4 => class,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// A codepoint of explicit congestion notification (RFC 3168 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not understand congestion marks.
    NotEct = 0b00,
    /// The transport does, and wants few and early ones (RFC 9331).
    Ect1 = 0b01,
    /// The transport does.
    Ect0 = 0b10,
    /// A router on the way was congested.
    Ce = 0b11,
}

impl Ecn {
    /// All codepoints, by number.
    pub const ALL: [Self; 4] = [Self::NotEct, Self::Ect1, Self::Ect0, Self::Ce];

    /// The codepoint of a traffic class.
    #[inline]
    pub const fn of(class: u8) -> Self {
        Self::ALL[(class & ECN_MASK) as usize]
    }

    /// What a packet with this codepoint leaves the tunnel with when its datagram came with `outer` (RFC 6040 §4.2, figure 4).
    ///
    /// # Errors
    /// [`DropReason::CongestionUnmarkable`] when the path was congested and the packet's sender would not understand a mark: dropping the
    /// packet is the only sign that it takes.
    #[inline]
    pub const fn decapsulated(self, outer: Self) -> Result<Self, DropReason> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => Err(DropReason::CongestionUnmarkable),
            (Self::NotEct, _) => Ok(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Ok(Self::Ce),
            (Self::Ect1, _) | (_, Self::Ect1) => Ok(Self::Ect1),
            (Self::Ect0, Self::NotEct | Self::Ect0) => Ok(Self::Ect0),
        }
    }

    /// Writes the codepoint into an IP header in place; IPv4's header checksum follows (RFC 1624, equation 3). What is no IP header stays
    /// as it is.
    #[inline]
    pub fn mark(self, packet: &mut [u8]) {
        match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let Some(h) = packet.first_chunk_mut::<IPV4_LEN>() else { return };
                let old = u16::from_be_bytes([h[0], h[1]]);
                h[1] = h[1] & !ECN_MASK | self as u8;
                let new = u16::from_be_bytes([h[0], h[1]]);
                let sum = u32::from(!u16::from_be_bytes([h[10], h[11]])) + u32::from(!old) + u32::from(new);
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = (sum & 0xffff) + (sum >> 16);
                [h[10], h[11]] = (!(sum as u16)).to_be_bytes();
            }
            Some(6) => {
                let Some(h) = packet.first_chunk_mut::<IPV6_LEN>() else { return };
                h[1] = h[1] & !(ECN_MASK << 4) | (self as u8) << 4;
            }
            _ => {}
        }
    }
}

/// What of an inner packet's DSCP the underlay sees (RFC 2983 §3: which is right is for whoever runs both networks to say).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dscp {
    /// Datagrams carry the DSCP of the packets in them, so the underlay can give them what it gives that class; and whoever watches it
    /// learns which packets are voice.
    Copy,
    /// Datagrams carry DSCP zero.
    #[default]
    Clear,
}

impl Dscp {
    /// The traffic class of the datagrams that carry packets of this one.
    #[inline]
    pub const fn outer(self, class: u8) -> u8 {
        match self {
            Self::Copy => class,
            Self::Clear => class & ECN_MASK,
        }
    }
}

/// Who goes first towards a peer, lowest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// CS1 (RFC 3662) and LE (RFC 8622): what may wait for ever.
    LowerEffort,
    /// Default forwarding, and every codepoint without a meaning here (RFC 4594 §4.9, RFC 2474 §3).
    Standard,
    /// The assured forwarding classes AF1 to AF4 (RFC 2597), and CS2 to CS5, which RFC 4594 §2.3 places among them.
    Assured,
    /// EF (RFC 3246) and VOICE-ADMIT (RFC 5865): voice.
    Expedited,
    /// CS6 and CS7, network control (RFC 4594 §3.1): without routing and keep-alives nothing else arrives either.
    Control,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// The priority of a traffic class, by its DSCP.
    #[inline]
    pub const fn of(class: u8) -> Self {
        match class >> 2 {
            0b00_0001 | 0b00_1000 => Self::LowerEffort,
            0b10_1110 | 0b10_1100 => Self::Expedited,
            0b11_0000 | 0b11_1000 => Self::Control,
            // CS2 to CS5; AFxy is x in three bits, y in two, and a zero.
            0b01_0000 | 0b01_1000 | 0b10_0000 | 0b10_1000 => Self::Assured,
            dscp if dscp & 1 == 0 && matches!(dscp >> 3, 1..=4) && dscp & 0b110 != 0 => Self::Assured,
            _ => Self::Standard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::Inner;
    use super::super::inner::testing::{fix_checksum, ipv4, ipv6};
    use super::*;

    #[test]
    fn every_pair_of_codepoints_combines_as_figure_4_of_rfc_6040_says() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let outer = [NotEct, Ect0, Ect1, Ce];
        let figure = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in outer.into_iter().zip(row) {
                let expected = expected.ok_or(DropReason::CongestionUnmarkable);
                assert_eq!(inner.decapsulated(outer), expected, "{inner:?} in {outer:?}");
            }
        }
    }

    #[test]
    fn a_codepoint_is_the_two_lower_bits() {
        for class in 0..=u8::MAX {
            assert_eq!(Ecn::of(class) as u8, class & 3);
            assert_eq!((Dscp::Copy.outer(class), Dscp::Clear.outer(class)), (class, class & 3));
        }
    }

    #[test]
    fn a_mark_changes_the_codepoint_and_nothing_else() {
        for class in 0..=u8::MAX {
            for mark in Ecn::ALL {
                for is_v6 in [false, true] {
                    let of_class = |class: u8| {
                        let mut packet;
                        if is_v6 {
                            packet = ipv6("fd00:1::5", "fd00:2::9", 17, &[7; 30]);
                            (packet[0], packet[1]) = (0x60 | class >> 4, class << 4 | 0x0a);
                        } else {
                            packet = ipv4("10.1.0.5", "10.2.0.9", 17, 0x4000, &[7; 30]);
                            packet[1] = class;
                            fix_checksum(&mut packet);
                        }
                        packet
                    };
                    let mut packet = of_class(class);
                    mark.mark(&mut packet);
                    let expected = class & !3 | mark as u8;
                    assert_eq!(Inner::parse(&packet).map(|inner| inner.traffic_class), Ok(expected));
                    assert_eq!(packet, of_class(expected));
                    assert_eq!(of_packet(&packet), expected);
                }
            }
        }
    }

    #[test]
    fn what_is_no_ip_header_is_left_alone() {
        for bytes in [&[][..], &[0x45; 19], &[0x60; 39], &[0x55; 60]] {
            let mut packet = bytes.to_vec();
            Ecn::Ce.mark(&mut packet);
            assert_eq!(packet, bytes);
        }
    }

    #[test]
    fn every_dscp_has_the_priority_that_its_rfc_gives_it() {
        let by_name = [
            (Priority::LowerEffort, &[1u8, 8][..]),
            (Priority::Assured, &[10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40]),
            (Priority::Expedited, &[44, 46]),
            (Priority::Control, &[48, 56]),
        ];
        for dscp in 0..64 {
            let named = by_name.iter().find(|(_, dscps)| dscps.contains(&dscp));
            let expected = named.map_or(Priority::Standard, |(priority, _)| *priority);
            for ecn in 0..4 {
                assert_eq!(Priority::of(dscp << 2 | ecn), expected, "DSCP {dscp}");
            }
        }
    }
}
