//! Places in the id space, and how far they are from one another.
//!
//! ```text
//!  key:       32 bytes; a member's is its node id, others are hashes that name what lies there
//!  distance:  one XOR the other, as a number (Maymounkov, Mazières: "Kademlia", IPTPS 2002, §2.1)
//! ```

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::pki::id::NodeId;
use crate::random::Random;

/// Bits of a key.
pub const KEY_BITS: usize = 256;

/// A place in the id space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

impl From<NodeId> for Key {
    fn from(node: NodeId) -> Self {
        Self(node.0)
    }
}

impl Key {
    /// How far it is to another.
    #[must_use]
    pub fn distance(self, to: Self) -> Distance {
        let mut xor = self.0;
        xor.iter_mut().zip(to.0).for_each(|(byte, other)| *byte ^= other);
        Distance(xor)
    }

    /// A random place that has so many bits in common with this one, and not one more.
    #[must_use]
    pub(super) fn random_beyond(self, shared_bits: usize, random: &mut impl Random) -> Self {
        let mut drawn = [0; 32];
        random.fill(&mut drawn);
        for bit in 0..=shared_bits.min(KEY_BITS - 1) {
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let flip = if bit == shared_bits { mask } else { 0 };
            drawn[byte] = drawn[byte] & !mask | (self.0[byte] & mask) ^ flip;
        }
        Self(drawn)
    }
}

/// How far two places are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance([u8; 32]);

impl Distance {
    /// Leading bits that both places have in common: 0 to [`KEY_BITS`].
    pub fn shared_bits(self) -> usize {
        // Word by word: tables are looked through by this for every question.
        let (words, _) = self.0.as_chunks::<8>();
        let zeros = words.iter().take_while(|word| **word == [0; 8]).count();
        64 * zeros + words.get(zeros).map_or(0, |word| u64::from_be_bytes(*word).leading_zeros() as usize)
    }

    /// As a share of the id space, from 0 to below 1.
    pub fn share(self) -> f64 {
        let (words, _) = self.0.as_chunks::<8>();
        words.first().map_or(0, |word| u64::from_be_bytes(*word)) as f64 / 2f64.powi(64)
    }
}

/// Where a member stands, by its issuer's word: members of one site fail together, and belong to one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site(pub u32);

/// A member and where it can be reached, by somebody's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Contact {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: SocketAddr,
}

/// The other side of a session: who it is was proven by a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who and where.
    pub contact: Contact,
    /// Its site, if its issuer names one. Nothing names sites yet.
    pub site: Option<Site>,
}

/// Whether everybody reaches this address. Others are told only to those that are not public themselves: a fleet behind one router has
/// nothing else, and nobody outside has any use for them.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.octets()[0] == 0)
                && !(v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local())
        }
    }
}

/// The part of a public address that one owner gets as a rule: a /24, or a /48 (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Prefix {
    V4([u8; 3]),
    V6([u8; 6]),
}

impl Prefix {
    /// `None` for addresses that are not public: those say nothing of who owns them.
    pub(crate) fn of(address: IpAddr) -> Option<Self> {
        if !is_public(address) {
            return None;
        }
        Some(match address {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let mut first = [0; 6];
                first.copy_from_slice(&v6.octets()[..6]);
                Self::V6(first)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    #[test]
    fn distances_are_symmetric_and_count_shared_bits() {
        let (one, mut other) = (Key([0xa5; 32]), Key([0xa5; 32]));
        assert_eq!((one.distance(other).shared_bits(), one.distance(other).share()), (KEY_BITS, 0.0));
        other.0[2] ^= 0x10;
        assert_eq!(one.distance(other), other.distance(one));
        assert_eq!(one.distance(other).shared_bits(), 19);
        assert_eq!(Key([0; 32]).distance(Key([0x80; 32])).shared_bits(), 0);
        let half = Key([0; 32]).distance(Key([0x80; 32])).share();
        assert!((0.5..0.51).contains(&half), "{half}");
    }

    #[test]
    fn a_random_place_shares_exactly_as_many_bits() {
        let (own, mut random) = (Key([0x5a; 32]), SeededRandom::new(1));
        for bits in 0..KEY_BITS {
            assert_eq!(own.distance(own.random_beyond(bits, &mut random)).shared_bits(), bits);
        }
    }

    #[test]
    fn only_public_addresses_have_a_prefix() {
        let of = |text: &str| Prefix::of(text.parse().unwrap());
        for private in
            ["10.1.2.3", "192.168.0.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "fd00::1", "fe80::1", "::1"]
        {
            assert_eq!(of(private), None, "{private}");
        }
        assert_eq!(of("198.51.100.7"), Some(Prefix::V4([198, 51, 100])));
        assert_eq!(of("100.128.0.1"), Some(Prefix::V4([100, 128, 0])));
        assert_eq!(of("2001:db8:1:2::3"), Some(Prefix::V6([0x20, 1, 0xd, 0xb8, 0, 1])));
    }
}
