//! Blocks: what stands in a datagram's plaintext, and how a packet that was cut is put together again.
//!
//! The picture of each block is in [`weir_abi::wire`]. A packet is as long as its own header says. When it does not end within the
//! datagram, it goes on at the front of the datagram with the next counter:
//!
//! ```text
//!  counter n          │ packet │ packet │ beginning of P │
//!  counter n+1        │ 2 │ rest of P │ packet │ … │            P is complete: delivered before what follows it
//!
//!  counter n+1        │ 2 │ more of P │ 2 │ more of P │         P fills the datagram (a block holds 4095 bytes): goes on in n+2
//! ```
//!
//! [`Reassembly`] puts cut packets together.
//!
//! The grammar here is about lengths only. Whether a packet's header makes sense beyond its length, and whether its sender may send it,
//! is judged by those who get it.

mod reassembly;

use std::ops::Range;

pub use reassembly::{CONTINUATION_HOLD, Origin, PARTIAL_LEN_MAX, Reassembly, Visitor};

use weir_abi::cursor::Bytes;
use weir_abi::drop::DropReason;
use weir_abi::wire::block::{
    CLOSE, CONTINUATION, CONTINUATION_HEADER_LEN, CONTROL, CONTROL_HEADER_LEN, ECHO_LEN, ECHO_REPLY, ECHO_REQUEST,
    IPV4, IPV6, LANE_REPLY, LANE_REQUEST, PADDING, PATH_CHALLENGE, PATH_RESPONSE, PROBE_REPLY, PROBE_REQUEST,
};

// From specifications.

/// Shortest IPv4 packet: a header without options (RFC 791 §3.1).
const IPV4_LEN_MIN: usize = 20;
/// Bytes of the IPv6 header, which its payload length does not count (RFC 8200 §3).
const IPV6_HEADER_LEN: usize = 40;

// Our own choices.

/// Shortest beginning of a packet that was cut: it must show the packet's length, and IPv6 has that in bytes 4 and 5.
pub const BEGINNING_LEN_MIN: usize = 6;

/// One block; ranges are within the plaintext that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A whole packet.
    Packet(Range<usize>),
    /// The beginning of a packet that goes on in the next datagram; it ends the plaintext.
    Beginning {
        /// What is here of it.
        piece: Range<usize>,
        /// Bytes of the whole packet, by its own header.
        packet_len: usize,
    },
    /// The rest, or more, of a packet begun before.
    Continuation(Range<usize>),
    /// A control block that has not been looked into.
    Control {
        /// Four bits.
        kind: u8,
        /// What follows the header.
        body: Range<usize>,
    },
    /// Padding; it ends the plaintext.
    Padding,
}

/// Reads the block at `at`, which is below the plaintext's length, and returns it with the place where the next one begins.
///
/// # Errors
/// [`DropReason::BlockMalformed`] when the first four bits name no block or the block is too short for its own header. Nothing can be said
/// then of the bytes that follow.
#[inline]
pub fn block_at(plaintext: &[u8], at: usize) -> Result<(Block, usize), DropReason> {
    let malformed = DropReason::BlockMalformed;
    let first = plaintext.u8(at).ok_or(malformed)?;
    let end = plaintext.len();
    match first >> 4 {
        IPV4 | IPV6 => {
            let packet_len = packet_len(&plaintext[at..]).ok_or(malformed)?;
            if packet_len <= end - at {
                Ok((Block::Packet(at..at + packet_len), at + packet_len))
            } else if end - at >= BEGINNING_LEN_MIN {
                Ok((Block::Beginning { piece: at..end, packet_len }, end))
            } else {
                Err(malformed)
            }
        }
        CONTINUATION => {
            let len = usize::from(plaintext.u16(at).ok_or(malformed)? & 0x0fff);
            let from = at + CONTINUATION_HEADER_LEN;
            if len == 0 || len > end - from {
                return Err(malformed);
            }
            Ok((Block::Continuation(from..from + len), from + len))
        }
        CONTROL => {
            let len = usize::from(plaintext.u8(at + 1).ok_or(malformed)?);
            let from = at + CONTROL_HEADER_LEN;
            if len > end - from {
                return Err(malformed);
            }
            Ok((Block::Control { kind: first & 0x0f, body: from..from + len }, from + len))
        }
        PADDING => Ok((Block::Padding, end)),
        _ => Err(malformed),
    }
}

/// Bytes of the packet that begins here, as its own header says; `None` when there is too little of it or no such packet can be.
#[inline]
pub fn packet_len(packet: &[u8]) -> Option<usize> {
    match packet.u8(0)? >> 4 {
        IPV4 => Some(usize::from(packet.u16(2)?)).filter(|len| *len >= IPV4_LEN_MIN),
        IPV6 => Some(IPV6_HEADER_LEN + usize::from(packet.u16(4)?)),
        _ => None,
    }
}

/// What two packet planes tell each other inside the AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Asks for the token back.
    EchoRequest([u8; ECHO_LEN]),
    /// Brings a request's token back.
    EchoReply([u8; ECHO_LEN]),
    /// The sender has closed the session.
    Close,
    /// Asks for the token back, in a datagram whose length is what is asked about.
    ProbeRequest([u8; ECHO_LEN]),
    /// Brings a probe's token back: the datagram arrived.
    ProbeReply([u8; ECHO_LEN]),
    /// Asks for the token back, from the lane port that it came to.
    LaneRequest([u8; ECHO_LEN]),
    /// Brings a lane probe's token back: both lane ports can be reached from each other.
    LaneReply([u8; ECHO_LEN]),
    /// Asks for the token back, at the address that this came from.
    PathChallenge([u8; ECHO_LEN]),
    /// Brings a challenge's token back: whoever holds the keys is where the challenge went.
    PathResponse([u8; ECHO_LEN]),
}

impl Control {
    /// Bytes of the longest control block.
    pub const LEN_MAX: usize = CONTROL_HEADER_LEN + ECHO_LEN;

    /// Reads the body of a control block of `kind`.
    ///
    /// # Errors
    /// [`DropReason::ControlMalformed`] for an unknown kind or a body of the wrong size.
    pub fn parse(kind: u8, body: &[u8]) -> Result<Self, DropReason> {
        let token = || <[u8; ECHO_LEN]>::try_from(body).map_err(|_| DropReason::ControlMalformed);
        match kind {
            ECHO_REQUEST => token().map(Self::EchoRequest),
            ECHO_REPLY => token().map(Self::EchoReply),
            CLOSE if body.is_empty() => Ok(Self::Close),
            PROBE_REQUEST => token().map(Self::ProbeRequest),
            PROBE_REPLY => token().map(Self::ProbeReply),
            LANE_REQUEST => token().map(Self::LaneRequest),
            LANE_REPLY => token().map(Self::LaneReply),
            PATH_CHALLENGE => token().map(Self::PathChallenge),
            PATH_RESPONSE => token().map(Self::PathResponse),
            _ => Err(DropReason::ControlMalformed),
        }
    }

    /// Writes the block to the front of `out` and returns how many bytes it takes.
    pub fn encode(&self, out: &mut [u8; Self::LEN_MAX]) -> usize {
        let (kind, token) = match self {
            Self::EchoRequest(token) => (ECHO_REQUEST, Some(token)),
            Self::EchoReply(token) => (ECHO_REPLY, Some(token)),
            Self::Close => (CLOSE, None),
            Self::ProbeRequest(token) => (PROBE_REQUEST, Some(token)),
            Self::ProbeReply(token) => (PROBE_REPLY, Some(token)),
            Self::LaneRequest(token) => (LANE_REQUEST, Some(token)),
            Self::LaneReply(token) => (LANE_REPLY, Some(token)),
            Self::PathChallenge(token) => (PATH_CHALLENGE, Some(token)),
            Self::PathResponse(token) => (PATH_RESPONSE, Some(token)),
        };
        let body = token.map_or(0, |token| token.len());
        out[0] = CONTROL << 4 | kind;
        out[1] = body as u8;
        if let Some(token) = token {
            out[CONTROL_HEADER_LEN..].copy_from_slice(token);
        }
        CONTROL_HEADER_LEN + body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn v4(len: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet
    }

    pub(super) fn v6(len: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|i| (i * 11) as u8).collect();
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        packet
    }

    pub(super) fn rest(piece: &[u8]) -> Vec<u8> {
        let mut block = (0x2000 | piece.len() as u16).to_be_bytes().to_vec();
        block.extend_from_slice(piece);
        block
    }

    /// Bytes that look like blocks often enough to get deep into the parser.
    pub(super) fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (20..80usize).prop_map(v4),
            (40..80usize).prop_map(v6),
            prop::collection::vec(any::<u8>(), 1..60).prop_map(|bytes| rest(&bytes)),
            prop::collection::vec(any::<u8>(), 0..20),
            any::<[u8; 3]>().prop_map(|[a, b, c]| vec![a & 0x7f, 0, b & 0x0f, c]),
        ];
        (prop::collection::vec(piece, 0..6), 0..40usize).prop_map(|(pieces, cut)| {
            let mut bytes = pieces.concat();
            bytes.truncate(bytes.len().saturating_sub(cut));
            bytes
        })
    }

    #[test]
    fn lengths_are_read_at_their_limits() {
        assert_eq!(packet_len(&v4(20)), Some(20));
        assert_eq!(packet_len(&[0x45, 0, 0, 19]), None);
        assert_eq!(packet_len(&[0x4f, 0, 0xff, 0xff]), Some(65_535));
        assert_eq!(packet_len(&[0x60, 0, 0, 0, 0, 0]), Some(40));
        assert_eq!(packet_len(&[0x60, 0, 0, 0, 0xff, 0xff]), Some(65_575));
        assert_eq!(packet_len(&[0x60, 0, 0, 0, 0]), None);
        assert_eq!(packet_len(&[]), None);
    }

    proptest! {
        #[test]
        fn the_blocks_of_a_plaintext_cover_it_without_overlap(plaintext in hostile()) {
            let mut at = 0;
            while at < plaintext.len() {
                let Ok((block, next)) = block_at(&plaintext, at) else { break };
                prop_assert!(next > at && next <= plaintext.len());
                if let Block::Packet(range) | Block::Continuation(range) | Block::Control { body: range, .. }
                    | Block::Beginning { piece: range, .. } = block
                {
                    prop_assert!(range.start >= at && range.end == next);
                }
                at = next;
            }
        }
    }
}
