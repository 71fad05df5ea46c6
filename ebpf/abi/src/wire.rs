//! The overlay datagram: what a gateway sends to another over UDP.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |0 0 1|  type   |    version    |  generation   |     zero      |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                        receiver index                         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! +                            counter                            +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! ~        AEAD( blocks … ) ‖ 16-byte tag,  AAD = the above       ~
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! The first byte tells Weir's datagrams from QUIC and STUN on the same port, as RFC 9443 does for its protocols: ours are
//! `0x20..=0x3f`. All integers are big-endian. The plaintext is a run of blocks; the first four bits of each say what it is:
//!
//! ```text
//! 4, 6   an inner IP packet, as long as its own header says        0   padding, to the end of the datagram
//! 2      the rest of a packet that the previous datagram began     1   a control block
//!
//!  0                   1                     0                   1
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5           0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+         +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |0 0 1 0| bytes here (12 bits)  | …       |0 0 0 1| kind  |   body bytes  | …
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+         +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//!        continuation                               control
//! ```

use crate::cursor::Bytes;

/// Bytes of the header, all of them under AAD.
pub const HEADER_LEN: usize = 16;
/// Bytes of the AEAD tag at the end of each datagram.
pub const TAG_LEN: usize = 16;
/// The only version of the datagram so far.
pub const VERSION: u8 = 1;
/// Top three bits of the first byte of each of our datagrams.
pub const MARK: u8 = 0b0010_0000;
/// Bits of the first byte that hold [`MARK`].
pub const MARK_MASK: u8 = 0b1110_0000;
/// Shortest data datagram: a header and the tag of an empty plaintext.
pub const DATA_LEN_MIN: usize = HEADER_LEN + TAG_LEN;

/// What follows the header. Five bits; values that have no name are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Blocks of inner packets, sealed under a lane's key.
    Data = 0,
    /// A datagram on its way through a relay. Reserved: no program forwards it yet.
    Relay = 1,
    /// A sealed DHT datagram. Reserved for the control plane.
    Rpc = 2,
}

impl Kind {
    /// The kind named by the first byte of a datagram, if that byte is ours and the kind has a name.
    #[inline(always)]
    pub const fn from_first_byte(byte: u8) -> Option<Self> {
        if byte & MARK_MASK != MARK {
            return None;
        }
        match byte & !MARK_MASK {
            0 => Some(Self::Data),
            1 => Some(Self::Relay),
            2 => Some(Self::Rpc),
            _ => None,
        }
    }

    /// The first byte of a datagram of this kind.
    #[inline(always)]
    pub const fn first_byte(self) -> u8 {
        MARK | self as u8
    }
}

/// Names the lane that opens a datagram; chosen by the receiver.
///
/// ```text
///  31                22 21                             6 5         0
/// +--------------------+--------------------------------+-----------+
/// |   tag (10 bits)    |         slot (16 bits)         | worker (6)|
/// +--------------------+--------------------------------+-----------+
/// ```
///
/// `steer` needs the worker, `wan` and the worker need the slot; the tag is drawn anew at each reuse of a slot, so that a late
/// datagram of a removed lane is not taken for one of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ReceiverIndex(pub u32);

impl ReceiverIndex {
    /// Bits that name the worker.
    pub const WORKER_BITS: u32 = 6;
    /// Bits that name the slot in the worker's table.
    pub const SLOT_BITS: u32 = 16;
    /// Bits of the tag.
    pub const TAG_BITS: u32 = 10;

    /// Joins the parts; bits that do not fit are cut off.
    #[inline(always)]
    pub const fn new(worker: u8, slot: u16, tag: u16) -> Self {
        let worker = worker as u32 & ((1 << Self::WORKER_BITS) - 1);
        Self(((tag as u32) << (Self::WORKER_BITS + Self::SLOT_BITS)) | ((slot as u32) << Self::WORKER_BITS) | worker)
    }

    /// The worker that owns the lane, `0..64`.
    #[inline(always)]
    pub const fn worker(self) -> u8 {
        (self.0 & ((1 << Self::WORKER_BITS) - 1)) as u8
    }

    /// The lane's slot in its worker's table.
    #[inline(always)]
    pub const fn slot(self) -> u16 {
        (self.0 >> Self::WORKER_BITS) as u16
    }

    /// The random tag of this use of the slot.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> (Self::WORKER_BITS + Self::SLOT_BITS)) as u16
    }
}

const _: () = assert!(ReceiverIndex::WORKER_BITS + ReceiverIndex::SLOT_BITS + ReceiverIndex::TAG_BITS == 32);

/// The first four bytes of every datagram of ours, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// Ratchet steps since the key exchange.
    pub generation: u8,
    /// The lane that opens it.
    pub receiver: ReceiverIndex,
    /// Nonce of the datagram in its lane; never repeats under one key.
    pub counter: u64,
}

/// Why a datagram is not one that this version understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Shorter than a header and a tag.
    Truncated,
    /// The first byte is not ours, or its type is not `Data`.
    Type,
    /// A version that this build does not speak.
    Version,
    /// The byte that must be zero is not.
    Reserved,
}

/// The part of [`DataHeader`] that `wan` and `steer` judge: which lane, if the rest of the first word is right.
///
/// `len` is the datagram's length; it may be more than `bytes` can read.
///
/// # Errors
/// [`HeaderError`] for the first check that fails, in the order type, length, version, reserved.
#[inline(always)]
pub fn receiver_of<B: Bytes + ?Sized>(bytes: &B, offset: usize, len: usize) -> Result<ReceiverIndex, HeaderError> {
    let word = bytes.u32(offset).ok_or(HeaderError::Truncated)?;
    if Kind::from_first_byte((word >> 24) as u8) != Some(Kind::Data) {
        return Err(HeaderError::Type);
    }
    if len < DATA_LEN_MIN {
        return Err(HeaderError::Truncated);
    }
    if (word >> 16) as u8 != VERSION {
        return Err(HeaderError::Version);
    }
    if word as u8 != 0 {
        return Err(HeaderError::Reserved);
    }
    bytes.u32(offset + 4).map(ReceiverIndex).ok_or(HeaderError::Truncated)
}

impl DataHeader {
    /// Reads the header of a whole datagram.
    ///
    /// # Errors
    /// [`HeaderError`] for the first check that fails.
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<Self, HeaderError> {
        let receiver = receiver_of(datagram, 0, datagram.len())?;
        let generation = datagram.u8(2).ok_or(HeaderError::Truncated)?;
        let counter = datagram.u64(8).ok_or(HeaderError::Truncated)?;
        Ok(Self { generation, receiver, counter })
    }

    /// The header's bytes, ready to send and to be used as AAD.
    #[inline]
    pub const fn encode(&self) -> [u8; HEADER_LEN] {
        let r = self.receiver.0.to_be_bytes();
        let c = self.counter.to_be_bytes();
        [
            Kind::Data.first_byte(),
            VERSION,
            self.generation,
            0,
            r[0],
            r[1],
            r[2],
            r[3],
            c[0],
            c[1],
            c[2],
            c[3],
            c[4],
            c[5],
            c[6],
            c[7],
        ]
    }
}

/// Numbers of the block format. See the picture at the top of the module.
pub mod block {
    /// First four bits of padding; it runs to the end of the datagram.
    pub const PADDING: u8 = 0;
    /// First four bits of a control block.
    pub const CONTROL: u8 = 1;
    /// First four bits of a continuation.
    pub const CONTINUATION: u8 = 2;
    /// First four bits of an IPv4 packet.
    pub const IPV4: u8 = 4;
    /// First four bits of an IPv6 packet.
    pub const IPV6: u8 = 6;
    /// Bytes before the piece in a continuation block.
    pub const CONTINUATION_HEADER_LEN: usize = 2;
    /// Most bytes that one continuation block can carry (12 bits).
    pub const CONTINUATION_LEN_MAX: usize = 4095;
    /// Bytes before the body of a control block.
    pub const CONTROL_HEADER_LEN: usize = 2;

    /// Control kind: body is an 8-byte token that the peer returns. RFC 792's echo, inside the AEAD.
    pub const ECHO_REQUEST: u8 = 1;
    /// Control kind: the 8-byte token of a request, and nothing else.
    pub const ECHO_REPLY: u8 = 2;
    /// Control kind: the sender has closed the session; no body.
    pub const CLOSE: u8 = 3;
    /// Bytes of an echo's body, and of a probe's.
    pub const ECHO_LEN: usize = 8;
    /// Control kind: body is an 8-byte token. Padding follows, so that the datagram has the length that is asked about (RFC 8899).
    ///
    /// ```text
    ///  0                   1
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+-+-+-+-  …  -+
    /// |0 0 0 1|0 1 0 0|       8       |  token  |0 0 0 0 …     |   request: alone in its datagram
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+-+-+-+-  …  -+
    /// |0 0 0 1|0 1 0 1|       8       |  token  |                  reply: like an echo's, without padding
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// ```
    pub const PROBE_REQUEST: u8 = 4;
    /// Control kind: the 8-byte token of a probe request that arrived whole.
    pub const PROBE_REPLY: u8 = 5;
    /// Control kind: the 8-byte token of a lane probe, which asks whether a lane port can be reached from another and back.
    ///
    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// |0 0 0 1|0 1 1 0|       8       |  token  |   request: alone in a datagram from the sealing worker's port to the opening worker's
    /// |0 0 0 1|0 1 1 1|       8       |  token  |   reply: alone in a datagram that goes the same way back
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// ```
    pub const LANE_REQUEST: u8 = 6;
    /// Control kind: the 8-byte token of a lane probe that came to the lane port.
    pub const LANE_REPLY: u8 = 7;
    /// Control kind: an 8-byte token to be returned to the very address that this came from, as RFC 9000 §8.2 names it.
    ///
    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// |0 0 0 1|1 0 0 0|       8       |  token  |                  challenge: alone in its datagram
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// |0 0 0 1|1 0 0 1|       8       |  token  |                  response: to the challenge's source, of the same size
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-  …  -+
    /// ```
    pub const PATH_CHALLENGE: u8 = 8;
    /// Control kind: the 8-byte token of a path challenge.
    pub const PATH_RESPONSE: u8 = 9;
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: DataHeader =
        DataHeader { generation: 7, receiver: ReceiverIndex(0xdead_beef), counter: 0x0102_0304_0506_0708 };

    fn datagram() -> [u8; DATA_LEN_MIN] {
        let mut bytes = [0xaa; DATA_LEN_MIN];
        bytes[..HEADER_LEN].copy_from_slice(&HEADER.encode());
        bytes
    }

    #[test]
    fn the_header_is_laid_out_as_in_the_picture() {
        assert_eq!(HEADER.encode(), [0x20, 1, 7, 0, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        assert_eq!(DataHeader::parse(&datagram()), Ok(HEADER));
    }

    #[test]
    fn each_broken_field_has_its_own_error() {
        let broken = |at: usize, value: u8| {
            let mut bytes = datagram();
            bytes[at] = value;
            DataHeader::parse(&bytes)
        };
        for len in 0..DATA_LEN_MIN {
            assert_eq!(DataHeader::parse(&datagram()[..len]), Err(HeaderError::Truncated), "{len} bytes");
        }
        assert_eq!(broken(0, 0x40), Err(HeaderError::Type));
        assert_eq!(broken(0, 0x21), Err(HeaderError::Type));
        assert_eq!(broken(0, 0x3f), Err(HeaderError::Type));
        assert_eq!(broken(1, 2), Err(HeaderError::Version));
        assert_eq!(broken(3, 1), Err(HeaderError::Reserved));
    }

    #[test]
    fn first_bytes_are_ours_only_from_0x20_to_0x3f() {
        for byte in 0..=255u8 {
            let ours = (0x20..=0x3f).contains(&byte);
            assert_eq!(byte & MARK_MASK == MARK, ours);
            assert_eq!(Kind::from_first_byte(byte).is_some(), (0x20..=0x22).contains(&byte));
        }
        for kind in [Kind::Data, Kind::Relay, Kind::Rpc] {
            assert_eq!(Kind::from_first_byte(kind.first_byte()), Some(kind));
        }
    }

    #[test]
    fn index_parts_do_not_touch_each_other() {
        for (worker, slot, tag) in
            [(0, 0, 0), (63, 0, 0), (0, u16::MAX, 0), (0, 0, 1023), (63, u16::MAX, 1023), (5, 77, 3)]
        {
            let index = ReceiverIndex::new(worker, slot, tag);
            assert_eq!((index.worker(), index.slot(), index.tag()), (worker, slot, tag));
        }
        assert_eq!(
            ReceiverIndex::new(64, 0, 0).worker(),
            0,
            "a worker that does not fit is cut, not spilled into the slot"
        );
        assert_eq!(ReceiverIndex::new(0, 0, 1024).0, 0);
    }
}
