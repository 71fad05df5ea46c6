//! The sources that `wan` refuses, as it looks for them.
//!
//! ```text
//!   IPv4 ─▶ DENY_BLOCKS: does a refused prefix meet its /24? ──no──▶ not refused: one read of an array
//!                          │yes
//!                          └─▶ DENY_V4, a trie over 4 bytes
//!   IPv6 ─▶ flag::DENY_V6: is any refused? ──yes──▶ DENY_V6, a trie over 16 bytes
//! ```
//!
//! A walk down the kernel's trie is a cache miss for each bit that tells prefixes apart; with 10,000 of them it cost more than all else that
//! `wan` does to a handshake. Who is not refused seldom has a neighbour that is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie};
use weir_abi::map::{deny_block, flag, name};

use super::{BpfError, address_key, step};
use crate::api::Prefix;

/// The flags that tell `wan` of this list.
pub fn deny_flags(prefixes: &[Prefix]) -> u32 {
    if prefixes.iter().any(|prefix| prefix.address().is_ipv6()) { flag::DENY_V6 } else { 0 }
}

/// Writes the list to the maps of an object in which none was written yet. An IPv6 prefix refuses no IPv4 source, not even `::/0`.
///
/// # Errors
/// [`BpfError::Step`], [`BpfError::Missing`].
pub fn deny(ebpf: &mut Ebpf, prefixes: &[Prefix]) -> Result<(), BpfError> {
    let adding = |prefix: &Prefix| step(format!("adding {prefix} to the refused sources"));
    let map = ebpf.map_mut(name::DENY_V4).ok_or(BpfError::Missing(name::DENY_V4))?;
    let mut v4: LpmTrie<_, [u8; 4], u32> = map.try_into().map_err(step("opening the map of refused IPv4 sources"))?;
    let mut blocks = BTreeMap::<u32, u64>::new();
    for prefix in prefixes {
        let IpAddr::V4(address) = prefix.address() else { continue };
        v4.insert(&Key::new(prefix.bit_len().into(), address.octets()), 1, 0).map_err(adding(prefix))?;
        let (first, last) = prefix.range();
        let ((first, from), (last, to)) = (deny_block(first as u32), deny_block(last as u32));
        for element in first..=last {
            let from = if element == first { !(from - 1) } else { u64::MAX };
            let to = if element == last { to | (to - 1) } else { u64::MAX };
            *blocks.entry(element).or_default() |= from & to;
        }
    }
    let map = ebpf.map_mut(name::DENY_BLOCKS).ok_or(BpfError::Missing(name::DENY_BLOCKS))?;
    let mut array: Array<_, u64> = map.try_into().map_err(step("opening the map of blocks with refused sources"))?;
    for (element, bits) in blocks {
        array.set(element, bits, 0).map_err(step("writing the map of blocks with refused sources"))?;
    }
    let map = ebpf.map_mut(name::DENY_V6).ok_or(BpfError::Missing(name::DENY_V6))?;
    let mut v6: LpmTrie<_, [u8; 16], u32> = map.try_into().map_err(step("opening the map of refused IPv6 sources"))?;
    for prefix in prefixes.iter().filter(|prefix| prefix.address().is_ipv6()) {
        let key = Key::new(prefix.bit_len().into(), address_key(prefix.address()));
        v6.insert(&key, 1, 0).map_err(adding(prefix))?;
    }
    Ok(())
}
