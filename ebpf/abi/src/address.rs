//! An address as the maps key it.

use crate::cursor::Bytes;

/// The first twelve bytes of an IPv4-mapped address are ten of zeros and two of ones (RFC 4291 §2.5.5.2).
const MAPPED: u64 = 0xffff << 32;

/// An IPv6 address, or an IPv4 address mapped into IPv6.
///
/// ```text
///   octets in network order   0             7 8            15
///   IPv6                      [   first     ] [   second    ]
///   IPv4                      [ 0 …       0 ] [0 0 ff ff v4 ]
/// ```
///
/// Two words and not sixteen bytes: the kernel's maps compare and hash words, and a word that was written byte by byte cannot be read
/// before all its bytes have left the store buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address([u64; 2]);

impl Address {
    /// The address with these octets, in network order.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(octets);
        Self::from_halves((bits >> 64) as u64, bits as u64)
    }

    /// The octets, in network order.
    pub const fn octets(self) -> [u8; 16] {
        let [first, second] = self.halves();
        ((first as u128) << 64 | second as u128).to_be_bytes()
    }

    /// An IPv4 address, given as a big-endian number.
    #[inline(always)]
    pub const fn v4(bits: u32) -> Self {
        Self::from_halves(0, MAPPED | bits as u64)
    }

    /// Reads the 16 octets at `offset`; `None` past the end.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Option<Self> {
        Some(Self::from_halves(bytes.u64(offset)?, bytes.u64(offset + 8)?))
    }

    /// The IPv4 address as a big-endian number, if it is one.
    #[inline(always)]
    pub const fn to_v4(self) -> Option<u32> {
        match self.halves() {
            [0, second] if second >> 32 == MAPPED >> 32 => Some(second as u32),
            _ => None,
        }
    }

    /// What stands for the address where sources are held to account: all of an IPv4 address, or the /64 of an IPv6 address (one host has
    /// all of a /64). The two never meet but in a prefix that is reserved (RFC 4291 §4).
    #[inline(always)]
    pub const fn source_key(self) -> u64 {
        let Self([first, second]) = self;
        if self.to_v4().is_some() { second } else { first }
    }

    /// The first 48 bits as a number: what a site with IPv6 is given as a rule (RFC 6177 §2).
    #[inline(always)]
    pub const fn network_48(self) -> u64 {
        let [first, _] = self.halves();
        first >> 16
    }

    #[inline(always)]
    const fn from_halves(first: u64, second: u64) -> Self {
        Self([first.to_be(), second.to_be()])
    }

    #[inline(always)]
    const fn halves(self) -> [u64; 2] {
        let Self([first, second]) = self;
        [u64::from_be(first), u64::from_be(second)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCTETS: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    const V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];

    /// The bytes as they lie in memory, where the maps find them.
    fn memory(Address([first, second]): Address) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_ne_bytes());
        bytes[8..].copy_from_slice(&second.to_ne_bytes());
        bytes
    }

    #[test]
    fn in_memory_lie_the_octets_in_network_order() {
        assert_eq!(memory(Address::from_octets(OCTETS)), OCTETS);
        assert_eq!(memory(Address::v4(0xc000_0201)), V4);
        assert_eq!(Address::from_octets(OCTETS).octets(), OCTETS);
        assert_eq!(Address::from_octets(V4), Address::v4(0xc000_0201));
        assert_eq!(Address::read(&OCTETS[..], 0), Some(Address::from_octets(OCTETS)));
        assert_eq!(Address::read(&OCTETS[..], 1), None);
        assert_eq!(Address::read(&OCTETS[..15], 0), None);
    }

    #[test]
    fn only_mapped_addresses_are_ipv4() {
        assert_eq!(Address::from_octets(V4).to_v4(), Some(0xc000_0201));
        for bit in 0..96 {
            let mut octets = V4;
            octets[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(Address::from_octets(octets).to_v4(), None, "bit {bit}");
        }
    }

    #[test]
    fn ipv4_sources_are_kept_whole_and_ipv6_sources_by_their_64() {
        let key = |octets| Address::from_octets(octets).source_key();
        let mut neighbour = OCTETS;
        neighbour[15] = 0;
        assert_eq!(key(OCTETS), key(neighbour));
        neighbour[7] = 0;
        assert_ne!(key(OCTETS), key(neighbour));
        assert_ne!(Address::v4(1).source_key(), Address::v4(2).source_key());
        assert_ne!(Address::v4(1).source_key(), key([0; 16]));
    }
}
