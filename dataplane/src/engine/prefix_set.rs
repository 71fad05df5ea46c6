//! The inner sources that one peer may use.
//!
//! Asked once for every packet that is opened, and nearly always over a handful of prefixes. So the set is kept as disjoint ranges of
//! addresses, nested and adjacent prefixes joined, and the first few of each family stand in the set itself: one cache line for IPv4, two
//! for IPv6, compared one after the other. A set with more ranges keeps them sorted on the heap and is searched by halves.
//!
//! ```text
//!   10.1.0.0/16, 10.1.2.0/24, 10.2.0.0/16, fd00:1::/48   ▸   v4 [10.1.0.0 + 2^17)        v6 [fd00:1:: + 2^80)
//! ```

use std::net::IpAddr;

use crate::api::{Prefix, SOURCES_MAX};

/// Ranges of IPv4 addresses that stand in the set itself.
const INLINE_V4: usize = 8;
/// Ranges of IPv6 addresses that stand in the set itself.
const INLINE_V6: usize = 4;

/// More prefixes than [`SOURCES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer has at most {SOURCES_MAX} source prefixes")]
pub struct TooManySources;

/// A set of addresses, given as prefixes. The families are kept apart: `::/0` holds no IPv4 address.
#[derive(Clone, Debug)]
pub struct PrefixSet {
    v4: Ranges<u32, INLINE_V4>,
    v6: Ranges<u128, INLINE_V6>,
}

impl PrefixSet {
    /// The addresses that any of `prefixes` covers; none, if there are none.
    ///
    /// # Errors
    /// [`TooManySources`] when there are more than [`SOURCES_MAX`] prefixes, duplicates included.
    pub fn new(prefixes: &[Prefix]) -> Result<Self, TooManySources> {
        if prefixes.len() > SOURCES_MAX {
            return Err(TooManySources);
        }
        let (mut v4, mut v6) = (vec![], vec![]);
        for prefix in prefixes {
            let len = u32::from(prefix.bit_len());
            match prefix.address() {
                IpAddr::V4(address) => {
                    v4.push(Range { first: address.to_bits(), more: u32::MAX.checked_shr(len).unwrap_or(0) });
                }
                IpAddr::V6(address) => {
                    v6.push(Range { first: address.to_bits(), more: u128::MAX.checked_shr(len).unwrap_or(0) });
                }
            }
        }
        Ok(Self { v4: Ranges::new(v4), v6: Ranges::new(v6) })
    }

    /// Whether the address is in the set.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.contains(v6.to_bits()),
        }
    }

    /// Whether the set holds no address at all.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// What the two widths of addresses have in common.
trait Number: Copy + Ord + Default {
    /// `self - other`, around the end of the numbers.
    fn minus(self, other: Self) -> Self;
    /// `self + other`, not beyond the largest number.
    fn plus(self, other: Self) -> Self;
    /// The number behind this one, or the largest.
    fn next(self) -> Self;
}

macro_rules! number {
    ($($width:ty)*) => {$(
        impl Number for $width {
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            fn plus(self, other: Self) -> Self {
                self.saturating_add(other)
            }

            fn next(self) -> Self {
                self.saturating_add(1)
            }
        }
    )*};
}

number!(u32 u128);

/// The address `first` and `more` behind it, so that one subtraction and one comparison decide.
#[derive(Clone, Copy, Debug, Default)]
struct Range<A> {
    first: A,
    more: A,
}

impl<A: Number> Range<A> {
    #[inline(always)]
    fn contains(&self, address: A) -> bool {
        address.minus(self.first) <= self.more
    }
}

/// Disjoint ranges in rising order: the first `inline_len` of `inline`, or when those do not suffice, all in `sorted`.
#[derive(Clone, Debug)]
struct Ranges<A, const N: usize> {
    inline: [Range<A>; N],
    inline_len: usize,
    sorted: Box<[Range<A>]>,
}

impl<A: Number, const N: usize> Ranges<A, N> {
    fn new(mut ranges: Vec<Range<A>>) -> Self {
        ranges.sort_by_key(|range| range.first);
        let mut joined: Vec<Range<A>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                // It begins inside the one before, or directly behind it.
                Some(last) if range.first <= last.first.plus(last.more).next() => {
                    let last_address = range.first.plus(range.more);
                    last.more = last.more.max(last_address.minus(last.first));
                }
                _ => joined.push(range),
            }
        }
        let mut inline = [Range::default(); N];
        if joined.len() <= N {
            inline[..joined.len()].copy_from_slice(&joined);
            Self { inline, inline_len: joined.len(), sorted: Box::default() }
        } else {
            Self { inline, inline_len: 0, sorted: joined.into() }
        }
    }

    #[inline]
    fn contains(&self, address: A) -> bool {
        if self.inline[..self.inline_len].iter().any(|range| range.contains(address)) {
            return true;
        }
        let behind = self.sorted.partition_point(|range| range.first <= address);
        behind != 0 && self.sorted[behind - 1].contains(address)
    }

    fn is_empty(&self) -> bool {
        self.inline_len == 0 && self.sorted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn set(texts: &[&str]) -> PrefixSet {
        PrefixSet::new(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    fn holds(set: &PrefixSet, address: &str) -> bool {
        set.contains(address.parse().unwrap())
    }

    #[test]
    fn a_prefix_ends_at_its_last_address() {
        let set = set(&["10.1.0.0/16", "192.168.7.7/32", "fd00:1::/48"]);
        for (address, held) in [
            ("10.0.255.255", false),
            ("10.1.0.0", true),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("192.168.7.6", false),
            ("192.168.7.7", true),
            ("192.168.7.8", false),
            ("fd00:0:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("fd00:1::", true),
            ("fd00:1:0:ffff:ffff:ffff:ffff:ffff", true),
            ("fd00:1:1::", false),
        ] {
            assert_eq!(holds(&set, address), held, "{address}");
        }
    }

    #[test]
    fn the_families_are_kept_apart() {
        assert!(holds(&set(&["0.0.0.0/0"]), "255.255.255.255") && holds(&set(&["0.0.0.0/0"]), "0.0.0.0"));
        assert!(!holds(&set(&["0.0.0.0/0"]), "::"));
        assert!(holds(&set(&["::/0"]), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") && holds(&set(&["::/0"]), "::"));
        assert!(!holds(&set(&["::/0"]), "0.0.0.0"));
    }

    #[test]
    fn an_empty_set_holds_nothing() {
        let empty = set(&[]);
        assert!(empty.is_empty());
        // The unused ranges are all zero; the zero address must not fall into them.
        assert!(!holds(&empty, "0.0.0.0") && !holds(&empty, "::"));
        assert!(!set(&["::1/128"]).is_empty());
    }

    #[test]
    fn nested_and_adjacent_prefixes_become_one_range() {
        let set = set(&["10.1.2.0/24", "10.1.0.0/16", "10.0.0.0/16", "10.1.255.0/24", "10.3.0.0/16"]);
        assert_eq!(set.v4.inline_len, 2);
        assert!(holds(&set, "10.1.200.1") && !holds(&set, "10.2.0.0") && holds(&set, "10.3.0.0"));
        let whole = self::set(&["128.0.0.0/1", "0.0.0.0/1", "255.255.255.255/32"]);
        assert_eq!(whole.v4.inline_len, 1);
        assert!(holds(&whole, "0.0.0.0") && holds(&whole, "255.255.255.255"));
    }

    #[test]
    fn a_set_answers_alike_inside_and_beyond_its_inline_room() {
        for count in [INLINE_V6, INLINE_V6 + 1, INLINE_V4, INLINE_V4 + 1, SOURCES_MAX / 2] {
            let prefixes: Vec<_> = (0..count as u32)
                .flat_map(|i| {
                    let v4 = Ipv4Addr::from_bits(0x0a00_0000 + i * 512);
                    let v6 = Ipv6Addr::from_bits(0xfd << 120 | u128::from(i) << 65);
                    [Prefix::new(v4.into(), 24).unwrap(), Prefix::new(v6.into(), 64).unwrap()]
                })
                .collect();
            let set = PrefixSet::new(&prefixes).unwrap();
            for i in 0..count as u32 + 2 {
                let inside = i < count as u32;
                for address in [0x0a00_0000, 0x0a00_00ff] {
                    let address = Ipv4Addr::from_bits(address + i * 512);
                    assert_eq!(set.contains(address.into()), inside, "{address} of {count}");
                }
                assert!(!set.contains(Ipv4Addr::from_bits(0x0a00_0100 + i * 512).into()));
                let v6 = 0xfd << 120 | u128::from(i) << 65 | u128::from(u64::MAX);
                assert_eq!(set.contains(Ipv6Addr::from_bits(v6).into()), inside, "{i} of {count}");
                assert!(!set.contains(Ipv6Addr::from_bits(v6 + 1).into()));
            }
        }
    }

    #[test]
    fn more_prefixes_than_the_limit_are_refused() {
        let prefixes: Vec<_> =
            (0..=SOURCES_MAX as u32).map(|i| Prefix::host(Ipv4Addr::from_bits(i * 2).into())).collect();
        assert!(PrefixSet::new(&prefixes[..SOURCES_MAX]).is_ok());
        assert_eq!(PrefixSet::new(&prefixes).err(), Some(TooManySources));
    }

    proptest! {
        #[test]
        fn the_set_equals_a_scan_of_its_prefixes(
            given in prop::collection::vec((0u32..64, 26u8..=32, any::<bool>()), 0..40),
            asked in 0u32..64,
        ) {
            // A small corner of the address space at either end, so that prefixes nest, touch and meet the end.
            let at = |low: u32, end: bool| if end { !low } else { low };
            let prefixes: Vec<_> = given
                .into_iter()
                .map(|(low, len, end)| {
                    let bits = at(low, end) & u32::MAX << (32 - u32::from(len));
                    Prefix::new(Ipv4Addr::from_bits(bits).into(), len).unwrap()
                })
                .collect();
            let set = PrefixSet::new(&prefixes).unwrap();
            for end in [false, true] {
                let address = Ipv4Addr::from_bits(at(asked, end)).into();
                prop_assert_eq!(set.contains(address), prefixes.iter().any(|prefix| prefix.contains(address)));
            }
        }
    }
}
