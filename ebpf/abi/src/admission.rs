//! The admission tag: how a member's first QUIC packet shows that it comes from a member, before anybody spends anything on it.
//!
//! A QUIC client chooses the destination connection id of its first Initial (RFC 9000 §7.2), and everything that it writes there can be
//! seen without a key of the connection. Weir's are 20 bytes, the most that QUIC version 1 allows:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                            random                             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                             nonce                             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |               slot: 32-second spans since 1970                |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |         tag = SipHash-2-4(admission key,                      |
//! +               receiver's node id ‖ nonce ‖ slot)              +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! All integers are big-endian. The same form is used for the ids that a member gives to its own connections, with its own node id, so that
//! an Initial that answers a Retry, or that comes back from the dialled side, bears a tag too.
//!
//! The tag proves neither who sent the packet nor that it was not sent before; it only tells which bucket the packet is charged to. The node
//! id stands first in what is hashed because the receiver's never changes: the rounds over it are done once per key ([`Key`]), and what is
//! left per packet and key is one word.

use crate::cursor::Bytes;
use crate::siphash::SipHash24;

/// Bytes of a tagged connection id: the most that QUIC version 1 allows (RFC 9000 §17.2).
pub const CID_LEN: usize = 20;
/// Seconds of one slot. Short enough that an id is of use for minutes only, long enough that it need not be exact.
pub const SLOT_SECS: u64 = 32;
/// How many slots a tag may be away from the receiver's own: 5 minutes, by which members' clocks may differ without a word about it,
/// and up to a slot more.
pub const WINDOW_SLOTS: u32 = 10;
/// Most keys that are accepted at a time: today's and those of the two days before.
pub const KEYS_MAX: usize = 3;

const NONCE_AT: usize = 4;
const SLOT_AT: usize = 8;
const TAG_AT: usize = 12;
/// Bytes that are hashed: a node id, a nonce and a slot.
const HASHED_LEN: u64 = 40;

/// The slot of a time in seconds since 1970.
#[inline(always)]
pub const fn slot_at(unix_secs: u64) -> u32 {
    // Enough until the year 6325; what lies beyond counts as that.
    let slot = unix_secs / SLOT_SECS;
    if slot > u32::MAX as u64 { u32::MAX } else { slot as u32 }
}

/// Whether a tag of this slot is still, or already, accepted in slot `now`.
#[inline(always)]
pub const fn in_window(slot: u32, now: u32) -> bool {
    slot.abs_diff(now) <= WINDOW_SLOTS
}

/// The two words of a key's 16 bytes.
#[inline(always)]
pub const fn key_words(key: &[u8; 16]) -> [u64; 2] {
    let k = u128::from_le_bytes(*key);
    [k as u64, (k >> 64) as u64]
}

/// An admission key and the node id of the receiver, hashed as far as they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Key(SipHash24);

impl Key {
    /// Prepares a key for the tags of one receiver.
    pub const fn new(key: [u64; 2], node: &[u8; 32]) -> Self {
        let mut state = SipHash24::new(key);
        let mut i = 0;
        while i < 32 {
            let mut word = [0; 8];
            let mut j = 0;
            while j < 8 {
                word[j] = node[i + j];
                j += 1;
            }
            state = state.word(u64::from_le_bytes(word));
            i += 8;
        }
        Self(state)
    }

    /// The words of the prepared key, which are as secret as the key.
    pub const fn words(&self) -> [u64; 4] {
        self.0.words()
    }

    /// A prepared key that was kept as words.
    #[inline(always)]
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self(SipHash24::from_words(words))
    }

    /// The tag over a nonce and a slot.
    #[inline(always)]
    pub const fn tag(&self, nonce: u32, slot: u32) -> u64 {
        // The eight bytes as they stand in the id, read as SipHash reads them.
        let word = ((nonce as u64) << 32 | slot as u64).swap_bytes();
        self.0.word(word).finish(HASHED_LEN << 56)
    }
}

/// The tag for a receiver, under a key of two words ([`key_words`]).
pub const fn tag(key: [u64; 2], nonce: u32, slot: u32, node: &[u8; 32]) -> u64 {
    Key::new(key, node).tag(nonce, slot)
}

/// A connection id with these fields.
pub fn cid(random: [u8; 4], nonce: u32, slot: u32, tag: u64) -> [u8; CID_LEN] {
    let mut cid = [0; CID_LEN];
    cid[..NONCE_AT].copy_from_slice(&random);
    cid[NONCE_AT..SLOT_AT].copy_from_slice(&nonce.to_be_bytes());
    cid[SLOT_AT..TAG_AT].copy_from_slice(&slot.to_be_bytes());
    cid[TAG_AT..].copy_from_slice(&tag.to_be_bytes());
    cid
}

/// What a connection id says behind its random bytes, if it is one of ours; only the tag can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// What was drawn for the tag.
    pub nonce: u32,
    /// When the id was made.
    pub slot: u32,
    /// The claim.
    pub tag: u64,
}

impl Fields {
    /// Reads an id; `None` when it is not of the one length.
    pub fn parse(cid: &[u8]) -> Option<Self> {
        if cid.len() == CID_LEN { Self::read(cid, 0) } else { None }
    }

    /// Reads the id of [`CID_LEN`] bytes that begins at `at`; `None` when the bytes end before it does.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(bytes: &B, at: usize) -> Option<Self> {
        let nonce = bytes.u32(at + NONCE_AT)?;
        let slot = bytes.u32(at + SLOT_AT)?;
        let tag = u64::from(bytes.u32(at + TAG_AT)?) << 32 | u64::from(bytes.u32(at + TAG_AT + 4)?);
        Some(Self { nonce, slot, tag })
    }

    /// Whether the tag is the key's.
    #[inline(always)]
    pub const fn is_tagged_by(&self, key: &Key) -> bool {
        key.tag(self.nonce, self.slot) == self.tag
    }
}

const _: () = assert!(size_of::<Key>() == 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: [u8; 32] = [7; 32];

    #[test]
    fn the_tag_is_the_hash_of_node_nonce_and_slot_as_bytes() {
        let key: [u8; 16] = core::array::from_fn(|i| i as u8);
        let node: [u8; 32] = core::array::from_fn(|i| i as u8);
        // Nonce and slot continue the bytes of the node id, so that the whole is the reference implementation's message of 40 bytes.
        let made = tag(key_words(&key), 0x2021_2223, 0x2425_2627, &node);
        assert_eq!(made, judge(&key, &core::array::from_fn(|i| i as u8)));
    }

    #[expect(deprecated, reason = "the standard library's SipHash-2-4 is as good a judge as ever")]
    fn judge(key: &[u8; 16], message: &[u8; 40]) -> u64 {
        use core::hash::{Hasher as _, SipHasher};
        let [k0, k1] = key_words(key);
        let mut hasher = SipHasher::new_with_keys(k0, k1);
        hasher.write(message);
        hasher.finish()
    }

    #[test]
    fn the_window_ends_after_ten_slots_on_either_side() {
        let now = slot_at(1_790_000_000);
        for (away, accepted) in [(0, true), (1, true), (9, true), (10, true), (11, false), (1000, false)] {
            assert_eq!((in_window(now - away, now), in_window(now + away, now)), (accepted, accepted), "{away}");
        }
        // A box that boots in 1970 has no slots before its own, and the last slot none after.
        assert!(in_window(0, 0) && in_window(10, 0) && !in_window(11, 0) && !in_window(u32::MAX, 0));
        assert!(in_window(u32::MAX, u32::MAX) && !in_window(0, u32::MAX));
    }

    #[test]
    fn a_slot_begins_every_32_seconds() {
        for (secs, slot) in [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (1_790_000_000, 55_937_500)] {
            assert_eq!(slot_at(secs), slot, "{secs}");
        }
        assert_eq!((slot_at(32 * u64::from(u32::MAX) + 32), slot_at(u64::MAX)), (u32::MAX, u32::MAX));
    }

    #[test]
    fn an_id_of_another_length_is_none_of_ours() {
        let made = cid([1, 2, 3, 4], 0x0506_0708, 0x090a_0b0c, 0x0d0e_0f10_1112_1314);
        assert_eq!(made, core::array::from_fn(|i| i as u8 + 1));
        assert_eq!(Fields::parse(&made[..19]), None);
        assert_eq!(Fields::parse(&[0; 21]), None);
        assert_eq!(Fields::parse(&[]), None);
        let fields = Fields { nonce: 0x0506_0708, slot: 0x090a_0b0c, tag: 0x0d0e_0f10_1112_1314 };
        assert_eq!(Fields::parse(&made), Some(fields));
        let mut later = [0xee; CID_LEN + 3];
        later[3..].copy_from_slice(&made);
        assert_eq!((Fields::read(&later[..], 3), Fields::read(&later[..], 4)), (Some(fields), None));
    }

    proptest! {
        #[test]
        fn an_id_verifies_for_its_key_node_nonce_and_slot_and_no_other(
            key: [u64; 2], random: [u8; 4], nonce: u32, slot: u32, bit in 0..384u32,
        ) {
            let made = cid(random, nonce, slot, tag(key, nonce, slot, &NODE));
            let fields = Fields::parse(&made).unwrap();
            prop_assert!(fields.is_tagged_by(&Key::new(key, &NODE)));
            prop_assert!(fields.is_tagged_by(&Key::from_words(Key::new(key, &NODE).words())));
            // One bit of the node id, or of the id behind its random bytes.
            let (mut node, mut other) = (NODE, made);
            match bit {
                0..256 => node[bit as usize / 8] ^= 1 << (bit % 8),
                _ => other[4 + (bit as usize - 256) / 8] ^= 1 << (bit % 8),
            }
            prop_assert!(!Fields::parse(&other).unwrap().is_tagged_by(&Key::new(key, &node)));
            prop_assert!(!fields.is_tagged_by(&Key::new([key[0] ^ 1, key[1]], &NODE)));
        }
    }
}
