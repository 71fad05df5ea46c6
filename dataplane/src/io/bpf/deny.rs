//! The sources that `wan` refuses, as it looks for them.
//!
//! ```text
//!   IPv4 ─▶ DENY_BLOCKS: does a refused prefix meet its /24? ──no──▶ not refused: one read of an array
//!             │yes
//!             └─▶ flag::DENY_SITES_V4 ─▶ DENY_SITES: may the address be refused? ──no──▶ not refused: two reads
//!                   │yes
//!                   └─▶ DENY_V4, a trie over 4 bytes
//!   IPv6 ─▶ flag::DENY_V6: is any refused? ──yes──▶ flag::DENY_SITES_V6 ─▶ DENY_SITES: may its /48 hold one?
//!                                                     │yes
//!                                                     └─▶ DENY_V6, a trie over 16 bytes
//! ```
//!
//! A walk down the kernel's trie is a cache miss for each bit that tells prefixes apart; with 10,000 of them it cost more than all else that
//! `wan` does to a handshake. Who is not refused seldom has a neighbour that is, and seldom shares a hashed bit with one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie};
use weir_abi::map::{deny_block, deny_site, flag, name};

use super::{BpfError, address_key, step};
use crate::api::Prefix;

/// Most sites of a family that are told apart. With a quarter of its bits set a filter still spares three walks in four; a family with more, as
/// a single `10.0.0.0/8` makes it, is looked for in its trie at once.
const SITES_MAX: u128 = 1 << 22;

/// The flags that tell `wan` of this list.
pub fn deny_flags(prefixes: &[Prefix]) -> u32 {
    let has_v6 = prefixes.iter().any(|prefix| prefix.address().is_ipv6());
    let flags = [
        (has_v6, flag::DENY_V6),
        (are_told_apart(prefixes, Family::V4), flag::DENY_SITES_V4),
        (are_told_apart(prefixes, Family::V6), flag::DENY_SITES_V6),
    ];
    flags.into_iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Numbers of the first and the last site of each prefix of a family: IPv4 addresses, or IPv6 networks of 48 bits.
fn ranges(prefixes: &[Prefix], family: Family) -> impl Iterator<Item = (u128, u128)> {
    let of_family = prefixes.iter().filter(move |prefix| prefix.address().is_ipv4() == (family == Family::V4));
    of_family.map(move |prefix| match (family, prefix.range()) {
        (Family::V4, range) => range,
        (Family::V6, (first, last)) => (first >> 80, last >> 80),
    })
}

fn are_told_apart(prefixes: &[Prefix], family: Family) -> bool {
    ranges(prefixes, family).map(|(first, last)| last - first + 1).sum::<u128>() <= SITES_MAX
}

/// Writes the list to the maps of an object in which none was written yet. An IPv6 prefix refuses no IPv4 source, not even `::/0`.
///
/// # Errors
/// [`BpfError::Step`], [`BpfError::Missing`].
pub fn deny(ebpf: &mut Ebpf, prefixes: &[Prefix]) -> Result<(), BpfError> {
    let adding = |prefix: &Prefix| step(format!("adding {prefix} to the refused sources"));
    let map = ebpf.map_mut(name::DENY_V4).ok_or(BpfError::Missing(name::DENY_V4))?;
    let mut v4: LpmTrie<_, [u8; 4], u32> = map.try_into().map_err(step("opening the map of refused IPv4 sources"))?;
    for prefix in prefixes {
        let IpAddr::V4(address) = prefix.address() else { continue };
        v4.insert(&Key::new(prefix.bit_len().into(), address.octets()), 1, 0).map_err(adding(prefix))?;
    }
    let map = ebpf.map_mut(name::DENY_V6).ok_or(BpfError::Missing(name::DENY_V6))?;
    let mut v6: LpmTrie<_, [u8; 16], u32> = map.try_into().map_err(step("opening the map of refused IPv6 sources"))?;
    for prefix in prefixes.iter().filter(|prefix| prefix.address().is_ipv6()) {
        let key = Key::new(prefix.bit_len().into(), address_key(prefix.address()));
        v6.insert(&key, 1, 0).map_err(adding(prefix))?;
    }
    set(ebpf, name::DENY_BLOCKS, blocks(prefixes))?;
    set(ebpf, name::DENY_SITES, sites(prefixes))
}

/// Bits of an array, by element.
type Bits = BTreeMap<u32, u64>;

fn set(ebpf: &mut Ebpf, name: &'static str, bits: Bits) -> Result<(), BpfError> {
    let map = ebpf.map_mut(name).ok_or(BpfError::Missing(name))?;
    let mut array: Array<_, u64> =
        map.try_into().map_err(step(format!("opening the map {name} of refused sources")))?;
    for (element, bits) in bits {
        array.set(element, bits, 0).map_err(step(format!("writing the map {name} of refused sources")))?;
    }
    Ok(())
}

/// Which IPv4 networks of 24 bits refused prefixes meet.
fn blocks(prefixes: &[Prefix]) -> Bits {
    let mut blocks = Bits::new();
    for prefix in prefixes.iter().filter(|prefix| prefix.address().is_ipv4()) {
        let (first, last) = prefix.range();
        let ((first, from), (last, to)) = (deny_block(first as u32), deny_block(last as u32));
        for element in first..=last {
            let from = if element == first { !(from - 1) } else { u64::MAX };
            let to = if element == last { to | (to - 1) } else { u64::MAX };
            *blocks.entry(element).or_default() |= from & to;
        }
    }
    blocks
}

/// Which IPv4 addresses and IPv6 networks of 48 bits may be refused, of the families whose sites are told apart.
fn sites(prefixes: &[Prefix]) -> Bits {
    let mut sites = Bits::new();
    for family in [Family::V4, Family::V6].into_iter().filter(|family| are_told_apart(prefixes, *family)) {
        for site in ranges(prefixes, family).flat_map(|(first, last)| first..=last) {
            let (element, bit) = deny_site(site as u64);
            *sites.entry(element).or_default() |= bit;
        }
    }
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(bits: &Bits, (element, bit): (u32, u64)) -> bool {
        bits.get(&element).is_some_and(|bits| bits & bit != 0)
    }

    fn site(address: &str) -> (u32, u64) {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => deny_site(u32::from(v4).into()),
            IpAddr::V6(v6) => deny_site((u128::from(v6) >> 80) as u64),
        }
    }

    fn list(prefixes: &[&str]) -> Vec<Prefix> {
        prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
    }

    #[test]
    fn sites_are_all_that_a_prefix_covers_and_few_others() {
        let bits = sites(&list(&[
            "192.0.2.64/26",
            "198.51.100.7/32",
            "2001:db8:7::/48",
            "2001:db8:9:1::/64",
            "2001:db9::/36",
        ]));
        for refused in [
            "192.0.2.64",
            "192.0.2.127",
            "198.51.100.7",
            "2001:db8:7::1",
            "2001:db8:9:1::5",
            "2001:db9::1",
            "2001:db9:fff::1",
        ] {
            assert!(holds(&bits, site(refused)), "{refused}");
        }
        for other in ["192.0.2.63", "192.0.2.128", "198.51.100.8", "2001:db8:8::1", "2001:db9:1000::1"] {
            assert!(!holds(&bits, site(other)), "{other}");
        }
        assert_eq!(bits.values().map(|bits| bits.count_ones()).sum::<u32>(), 64 + 1 + 1 + 1 + 4096);
    }

    #[test]
    fn a_family_that_covers_too_much_is_left_to_its_trie_and_the_other_is_not() {
        let both = ["192.0.2.1/32", "2001:db8:7::/48"];
        let all = flag::DENY_V6 | flag::DENY_SITES_V4 | flag::DENY_SITES_V6;
        for (wide, flags, left) in [
            ("192.0.2.2/32", all, 3),
            ("10.0.0.0/8", flag::DENY_V6 | flag::DENY_SITES_V6, 1),
            ("2001:d00::/24", flag::DENY_V6 | flag::DENY_SITES_V4, 1),
        ] {
            let list = list(&[both[0], both[1], wide]);
            let bits = sites(&list).values().map(|bits| bits.count_ones()).sum::<u32>();
            assert_eq!((deny_flags(&list), bits), (flags, left), "{wide}");
        }
        assert_eq!(deny_flags(&[]), flag::DENY_SITES_V4 | flag::DENY_SITES_V6);
    }
}
