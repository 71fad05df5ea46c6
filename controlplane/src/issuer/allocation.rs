//! What is given out: names and prefixes, each once.
//!
//! Nothing here is ever free again by itself. A member that left may still be believed by a partition that has not heard of it, so its
//! name and prefixes pass on only when a person names the successor.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use weir_dataplane::api::Prefix;

use crate::pki::id::NodeId;
use crate::pki::name::{LABEL_LEN_MAX, NamePattern, check_member_name};

/// Addresses as numbers, IPv4 apart from IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    v6: bool,
    number: u128,
}

/// First and last address of a prefix.
fn span(prefix: &Prefix) -> (Place, u128) {
    let (v6, number, width) = match prefix.address() {
        IpAddr::V4(address) => (false, u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (true, address.to_bits(), 128),
    };
    let host_bits = width - u32::from(prefix.bit_len());
    let more = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
    (Place { v6, number }, number | more)
}

/// Names and prefixes with their holders.
#[derive(Clone, Debug, Default)]
pub(super) struct Allocations {
    names: BTreeMap<String, NodeId>,
    /// Disjoint spans by their first address: the last one, and a prefix to name in an error.
    spans: BTreeMap<Place, (u128, Prefix)>,
}

impl Allocations {
    /// Who has the name.
    pub(super) fn holder(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// A prefix that is given out and shares an address with this one.
    pub(super) fn overlap(&self, prefix: &Prefix) -> Option<Prefix> {
        let (first, last) = span(prefix);
        self.overlap_of(first, last).map(|(_, prefix)| prefix)
    }

    fn overlap_of(&self, first: Place, last: u128) -> Option<(u128, Prefix)> {
        // Spans are disjoint, so only the one that begins last before our end can reach us.
        let (before, span) = self.spans.range(..=Place { number: last, ..first }).next_back()?;
        (before.v6 == first.v6 && span.0 >= first.number).then_some(*span)
    }

    /// Gives a name and prefixes. The name's holder before, if any, has it no more; prefixes may be given that were so already.
    pub(super) fn give(&mut self, node: NodeId, name: &str, prefixes: &[Prefix]) {
        self.names.insert(name.to_owned(), node);
        for prefix in prefixes {
            let (mut first, mut last) = span(prefix);
            // What another issuer gave out may overlap ours; one span for both keeps them disjoint.
            while let Some((at, (end, _))) = self.spans.range(..=Place { number: last, ..first }).next_back() {
                if at.v6 != first.v6 || *end < first.number {
                    break;
                }
                let at = *at;
                last = last.max(*end);
                first = first.min(at);
                self.spans.remove(&at);
            }
            self.spans.insert(first, (last, *prefix));
        }
    }

    /// The free name with the lowest number under a pattern.
    pub(super) fn numbered(&self, pattern: &NamePattern, promised: impl Fn(&str) -> bool) -> Option<String> {
        let free = |name: &String| {
            let known = self.names.contains_key(name) || promised(name);
            !known && check_member_name(name).is_ok()
        };
        // A name that is too long ends the search; among one more than there are names, one is free.
        let numbers = 1..=self.names.len() as u64 + super::INVITES_MAX as u64 + 1;
        let names = numbers.map(|number| format!("{}{number}", pattern.start()));
        names.take_while(|name| name.len() <= LABEL_LEN_MAX).find(free)
    }

    /// The lowest free prefix of IPv4 with this many bits in the slice.
    pub(super) fn free(&self, slice: &[Prefix], bit_len: u8, promised: &[Prefix]) -> Option<Prefix> {
        let size = 1_u128.checked_shl(u32::from(32_u8.checked_sub(bit_len)?))?;
        let all = self.spans_with(promised);
        let parts = slice.iter().filter(|part| part.address().is_ipv4() && part.bit_len() <= bit_len);
        parts.map(span).find_map(|(first, end)| {
            let mut candidate = first.number;
            while candidate + size - 1 <= end {
                let Some((taken, _)) = all.overlap_of(Place { number: candidate, ..first }, candidate + size - 1)
                else {
                    let address = Ipv4Addr::from_bits(u32::try_from(candidate).ok()?);
                    return Prefix::new(address.into(), bit_len).ok();
                };
                // Behind what is in the way, at the next border.
                candidate = (taken / size + 1) * size;
            }
            None
        })
    }

    fn spans_with(&self, promised: &[Prefix]) -> Self {
        let mut all = Self { names: BTreeMap::new(), spans: self.spans.clone() };
        all.give(NodeId::default(), "", promised);
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    #[test]
    fn free_prefixes_come_in_order_around_what_is_taken() {
        let mut given = Allocations::default();
        let slice = [prefix("fd00::/48"), prefix("10.0.0.0/30"), prefix("10.1.0.0/22")];
        given.give(node(1), "a", &[prefix("10.1.0.128/25"), prefix("10.1.2.0/24")]);
        assert_eq!(given.free(&slice, 24, &[]), Some(prefix("10.1.1.0/24")));
        assert_eq!(given.free(&slice, 25, &[]), Some(prefix("10.1.0.0/25")));
        assert_eq!(given.free(&slice, 30, &[]), Some(prefix("10.0.0.0/30")));
        assert_eq!(given.free(&slice, 24, &[prefix("10.1.1.0/24")]), Some(prefix("10.1.3.0/24")));
        assert_eq!(given.free(&slice, 22, &[]), None);
        assert_eq!(given.free(&slice, 33, &[]), None);
        assert_eq!(given.free(&[prefix("0.0.0.0/0")], 0, &[]), None);
        assert_eq!(Allocations::default().free(&[prefix("0.0.0.0/0")], 0, &[]), Some(prefix("0.0.0.0/0")));
        assert_eq!(given.free(&[prefix("255.255.255.255/32")], 32, &[]), Some(prefix("255.255.255.255/32")));
    }

    #[test]
    fn an_overlap_is_found_from_either_side_and_not_across_families() {
        let mut given = Allocations::default();
        given.give(node(1), "a", &[prefix("10.1.0.0/16"), prefix("fd00::/16")]);
        assert_eq!(given.overlap(&prefix("10.1.2.0/24")), Some(prefix("10.1.0.0/16")));
        assert_eq!(given.overlap(&prefix("10.0.0.0/8")), Some(prefix("10.1.0.0/16")));
        assert_eq!(given.overlap(&prefix("10.2.0.0/16")), None);
        assert_eq!(given.overlap(&prefix("::/0")), Some(prefix("fd00::/16")));
        assert_eq!(given.overlap(&prefix("::a01:0/112")), None);
    }

    #[test]
    fn numbers_skip_what_is_taken_or_promised() {
        let mut given = Allocations::default();
        given.give(node(1), "edge-1", &[]);
        let pattern: NamePattern = "edge-*".parse().unwrap();
        assert_eq!(given.numbered(&pattern, |name| name == "edge-2"), Some("edge-3".into()));
        let long: NamePattern = format!("{}*", "x".repeat(62)).parse().unwrap();
        for number in 1..=9 {
            given.give(node(number), &given.numbered(&long, |_| false).unwrap(), &[]);
        }
        assert_eq!(given.numbered(&long, |_| false), None);
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        (0_u32..1 << 8, 24_u8..=32).prop_map(|(low, len)| {
            let mask = if len == 32 { u32::MAX } else { u32::MAX << (32 - len) };
            Prefix::new(Ipv4Addr::from_bits((0x0a00_0000 | low) & mask).into(), len).unwrap()
        })
    }

    proptest! {
        /// Against the plain answer: compare with each prefix.
        #[test]
        fn overlaps_are_those_of_a_comparison_with_all(
            given in proptest::collection::vec(any_prefix(), 0..12), asked in any_prefix(), bit_len in 24_u8..=32,
        ) {
            let mut allocations = Allocations::default();
            given.iter().for_each(|prefix| allocations.give(node(1), "a", &[*prefix]));
            let shares = |one: &Prefix| given.iter().any(|two| crate::pki::bundle::prefixes_overlap(one, two));
            prop_assert_eq!(allocations.overlap(&asked).is_some(), shares(&asked));
            let size = 1_u32 << (32 - bit_len);
            let blocks = (0..256 / size).map(|at| Prefix::new(Ipv4Addr::from_bits(0x0a00_0000 + at * size).into(), bit_len).unwrap());
            let expected = blocks.into_iter().find(|block| !shares(block));
            prop_assert_eq!(allocations.free(&[prefix("10.0.0.0/24")], bit_len, &[]), expected);
        }
    }
}
