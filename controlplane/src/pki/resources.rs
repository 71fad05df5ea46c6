//! Which addresses a certificate grants: the IP address blocks of RFC 3779.
//!
//! ```text
//!  IPAddrBlocks      ::= SEQUENCE OF IPAddressFamily
//!  IPAddressFamily   ::= SEQUENCE { addressFamily OCTET STRING (0001 IPv4, 0002 IPv6), IPAddressChoice }
//!  IPAddressChoice   ::= CHOICE { inherit NULL, addressesOrRanges SEQUENCE OF IPAddressOrRange }
//!  IPAddressOrRange  ::= CHOICE { addressPrefix BIT STRING, addressRange SEQUENCE { min BIT STRING, max BIT STRING } }
//! ```
//!
//! A set of addresses has exactly one encoding (§2.2.3: sorted, what touches is joined, what is a prefix is written as one), and only that
//! one is read. So two certificates grant the same when their bytes are the same, and no other reader can see another set than we do.
//! Blocks of which one family inherits and the other does not, and families with a SAFI, are valid and refused: we never write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_dataplane::api::Prefix;

/// Most prefixes and ranges, over both families, in one certificate. Ours to choose: sixteen slices of four ranges leave room, and what a
/// peer can make us read stays small.
pub const RANGES_MAX: usize = 64;

/// Why bytes are no address blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourcesError {
    /// Not the encoding of address blocks.
    #[error("the address blocks do not decode")]
    Malformed,
    /// Address blocks, but not in the one form that RFC 3779 §2.2.3 allows.
    #[error("the address blocks are not in canonical form (RFC 3779 §2.2.3)")]
    NotCanonical,
    /// More prefixes and ranges than a certificate may have.
    #[error("more than {RANGES_MAX} prefixes and ranges")]
    TooMany,
    /// One family is inherited and the other is not, or a family has a SAFI.
    #[error("address blocks that inherit one family only, or have a SAFI, are not supported")]
    Unsupported,
}

/// Addresses from one to another, both included, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Range {
    first: u128,
    last: u128,
}

/// An address family, and what is particular to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn bits(self) -> u32 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The address family number (RFC 3779 §2.2.3.3).
    const fn afi(self) -> [u8; 2] {
        match self {
            Self::V4 => [0, 1],
            Self::V6 => [0, 2],
        }
    }

    const fn max(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            // A number of this family fits 32 bits: it came from an address or was read with that bound.
            Self::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
            Self::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

/// The low bits that vary when the last `host_bits` of an address do.
const fn host_mask(host_bits: u32) -> u128 {
    if host_bits == 0 { 0 } else { u128::MAX >> (128 - host_bits) }
}

impl Range {
    fn of(prefix: Prefix) -> (Family, Self) {
        let (family, first) = match prefix.address() {
            IpAddr::V4(v4) => (Family::V4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (Family::V6, v6.to_bits()),
        };
        let last = first | host_mask(family.bits() - u32::from(prefix.bit_len()));
        (family, Self { first, last })
    }

    /// Bits that vary, when these are the addresses of one prefix.
    fn host_bits(self) -> Option<u32> {
        let host_bits = 128 - (self.first ^ self.last).leading_zeros();
        let mask = host_mask(host_bits);
        (self.first & mask == 0 && self.last & mask == mask).then_some(host_bits)
    }
}

/// A set of addresses.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Sorted, and no range touches the next.
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl Resources {
    /// Every address of both families: what a root grants.
    pub fn everything() -> Self {
        let all = |family: Family| vec![Range { first: 0, last: family.max() }];
        Self { v4: all(Family::V4), v6: all(Family::V6) }
    }

    /// The addresses of these prefixes, which may overlap.
    pub fn from_prefixes(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let mut resources = Self::default();
        for prefix in prefixes {
            let (family, range) = Range::of(prefix);
            resources.ranges_mut(family).push(range);
        }
        resources.join();
        resources
    }

    /// The fewest prefixes that have exactly these addresses, in order, IPv4 first.
    pub fn prefixes(&self) -> Vec<Prefix> {
        let mut prefixes = Vec::new();
        for family in [Family::V4, Family::V6] {
            for range in self.ranges(family) {
                split(family, *range, &mut prefixes);
            }
        }
        prefixes
    }

    /// Whether every address of `other` is one of these.
    pub fn contains(&self, other: &Self) -> bool {
        [Family::V4, Family::V6].into_iter().all(|family| {
            // What touches is joined, so a range lies in one of ours or not at all.
            let ours = self.ranges(family);
            other.ranges(family).iter().all(|wanted| {
                let at = ours.partition_point(|range| range.last < wanted.first);
                ours.get(at).is_some_and(|range| range.first <= wanted.first && wanted.last <= range.last)
            })
        })
    }

    /// Whether there is no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many prefixes and ranges a certificate needs for it; at most [`RANGES_MAX`] are read.
    pub fn range_count(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn ranges(&self, family: Family) -> &[Range] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn ranges_mut(&mut self, family: Family) -> &mut Vec<Range> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Sorts, and joins what overlaps or touches.
    fn join(&mut self) {
        for ranges in [&mut self.v4, &mut self.v6] {
            ranges.sort_unstable();
            ranges.dedup_by(|next, kept| {
                let joined = next.first <= kept.last.saturating_add(1);
                if joined {
                    kept.last = kept.last.max(next.last);
                }
                joined
            });
        }
    }
}

/// Cuts a range into prefixes, the largest that fits first.
fn split(family: Family, range: Range, prefixes: &mut Vec<Prefix>) {
    let mut first = range.first;
    loop {
        let aligned = first.trailing_zeros().min(family.bits());
        let mut host_bits = aligned;
        while host_bits > 0 && host_mask(host_bits) > range.last - first {
            host_bits -= 1;
        }
        let len = u8::try_from(family.bits() - host_bits).unwrap_or(u8::MAX);
        // The host bits are zero, because `first` has at least as many trailing zeros.
        prefixes.extend(Prefix::new(family.address(first), len));
        let last = first | host_mask(host_bits);
        if last >= range.last {
            return;
        }
        first = last + 1;
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Prefixes, and ranges that are none, with commas between them.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let mut separator = "";
        for family in [Family::V4, Family::V6] {
            for range in self.ranges(family) {
                let (first, last) = (family.address(range.first), family.address(range.last));
                match range.host_bits() {
                    Some(host_bits) => write!(f, "{separator}{first}/{}", family.bits() - host_bits)?,
                    None => write!(f, "{separator}{first}-{last}")?,
                }
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// What the extension of a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpBlocks {
    /// What the certificate above grants, in both families.
    Inherit,
    /// These addresses.
    Explicit(Resources),
}

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;
const NULL: u8 = 0x05;

impl IpBlocks {
    /// Its object identifier: id-pe-ipAddrBlocks (RFC 3779 §2.2.1).
    pub const OID: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 7];

    /// The DER of the extension's value.
    pub fn to_der(&self) -> Vec<u8> {
        let mut families = Vec::new();
        for family in [Family::V4, Family::V6] {
            let choice = match self {
                Self::Inherit => wrap(NULL, &[]),
                // An absent family grants nothing; an empty list is not allowed for it.
                Self::Explicit(resources) if resources.ranges(family).is_empty() => continue,
                Self::Explicit(resources) => {
                    let encoded: Vec<u8> =
                        resources.ranges(family).iter().flat_map(|range| encode_range(family, *range)).collect();
                    wrap(SEQUENCE, &encoded)
                }
            };
            families.extend(wrap(SEQUENCE, &[wrap(OCTET_STRING, &family.afi()), choice].concat()));
        }
        wrap(SEQUENCE, &families)
    }

    /// Reads the extension's value.
    ///
    /// # Errors
    /// [`ResourcesError`].
    pub fn from_der(der: &[u8]) -> Result<Self, ResourcesError> {
        let mut outer = Reader(der);
        let mut families = Reader(outer.read(SEQUENCE)?);
        outer.end()?;
        let mut resources = Resources::default();
        let mut inherited = 0;
        let mut count = 0;
        while !families.0.is_empty() {
            let mut fields = Reader(families.read(SEQUENCE)?);
            let family = match fields.read(OCTET_STRING)? {
                [0, 1] => Family::V4,
                [0, 2] => Family::V6,
                [0, 1 | 2, _] => return Err(ResourcesError::Unsupported),
                _ => return Err(ResourcesError::Malformed),
            };
            if fields.0.first() == Some(&NULL) {
                if !fields.read(NULL)?.is_empty() {
                    return Err(ResourcesError::Malformed);
                }
                inherited += 1;
            } else {
                let mut list = Reader(fields.read(SEQUENCE)?);
                while !list.0.is_empty() {
                    count += 1;
                    if count > RANGES_MAX {
                        return Err(ResourcesError::TooMany);
                    }
                    let range = decode_range(family, &mut list)?;
                    resources.ranges_mut(family).push(range);
                }
            }
            fields.end()?;
        }
        let blocks = match (inherited, count) {
            (0, _) => {
                resources.join();
                Self::Explicit(resources)
            }
            (2, 0) => Self::Inherit,
            _ => return Err(ResourcesError::Unsupported),
        };
        // The one form is the one that we write: order, repeated families, touching ranges and stray bits are all settled by this.
        if blocks.to_der() == der { Ok(blocks) } else { Err(ResourcesError::NotCanonical) }
    }
}

/// A prefix, or a range that is none (§2.2.3.7 to §2.2.3.9).
fn encode_range(family: Family, range: Range) -> Vec<u8> {
    match range.host_bits() {
        Some(host_bits) => encode_bits(family, range.first, family.bits() - host_bits),
        None => {
            // The lower end is written without its trailing zeros, the upper one without its trailing ones.
            let min = family.bits() - range.first.trailing_zeros().min(family.bits());
            let max = family.bits() - range.last.trailing_ones().min(family.bits());
            let ends = [encode_bits(family, range.first, min), encode_bits(family, range.last, max)];
            wrap(SEQUENCE, &ends.concat())
        }
    }
}

/// The first `len` bits of an address as a BIT STRING.
fn encode_bits(family: Family, number: u128, len: u32) -> Vec<u8> {
    let kept = number & !host_mask(family.bits() - len);
    let octets = (kept << (128 - family.bits())).to_be_bytes();
    let used = len.div_ceil(8) as usize;
    let unused_bits = u8::try_from(len.next_multiple_of(8) - len).unwrap_or(0);
    wrap(BIT_STRING, &[&[unused_bits], &octets[..used]].concat())
}

fn decode_range(family: Family, list: &mut Reader<'_>) -> Result<Range, ResourcesError> {
    if list.0.first() == Some(&SEQUENCE) {
        let mut ends = Reader(list.read(SEQUENCE)?);
        let (first, _) = decode_bits(family, ends.read(BIT_STRING)?)?;
        let (last, host_mask) = decode_bits(family, ends.read(BIT_STRING)?)?;
        ends.end()?;
        let last = last | host_mask;
        return if first <= last { Ok(Range { first, last }) } else { Err(ResourcesError::Malformed) };
    }
    let (first, host_mask) = decode_bits(family, list.read(BIT_STRING)?)?;
    Ok(Range { first, last: first | host_mask })
}

/// The address whose first bits these are, and a mask of the others.
fn decode_bits(family: Family, content: &[u8]) -> Result<(u128, u128), ResourcesError> {
    let (unused_bits, octets) = content.split_first().ok_or(ResourcesError::Malformed)?;
    let max = family.bits() as usize / 8;
    if *unused_bits > 7 || octets.len() > max || (octets.is_empty() && *unused_bits > 0) {
        return Err(ResourcesError::Malformed);
    }
    let mut padded = [0; 16];
    padded[16 - max..][..octets.len()].copy_from_slice(octets);
    let host_bits = (max - octets.len()) as u32 * 8 + u32::from(*unused_bits);
    let mask = host_mask(host_bits);
    Ok((u128::from_be_bytes(padded) & !mask, mask))
}

/// Tag, length and content. Lengths up to 65,535 are enough: [`RANGES_MAX`] ranges need less than 3 KiB.
fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u32).to_be_bytes();
    let header: &[u8] = match len {
        [0, 0, 0, short] if short < 0x80 => &[tag, short],
        [0, 0, 0, one] => &[tag, 0x81, one],
        [_, _, one, two] => &[tag, 0x82, one, two],
    };
    [header, content].concat()
}

/// Reads elements of DER one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The content of the next element, which has this tag.
    fn read(&mut self, tag: u8) -> Result<&'a [u8], ResourcesError> {
        let (len, rest) = match self.0 {
            [found, len @ 0..=0x7f, rest @ ..] if *found == tag => (usize::from(*len), rest),
            [found, 0x81, len, rest @ ..] if *found == tag => (usize::from(*len), rest),
            [found, 0x82, one, two, rest @ ..] if *found == tag => {
                (usize::from(u16::from_be_bytes([*one, *two])), rest)
            }
            _ => return Err(ResourcesError::Malformed),
        };
        let (content, rest) = rest.split_at_checked(len).ok_or(ResourcesError::Malformed)?;
        self.0 = rest;
        Ok(content)
    }

    const fn end(&self) -> Result<(), ResourcesError> {
        if self.0.is_empty() { Ok(()) } else { Err(ResourcesError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resources(text: &[&str]) -> Resources {
        Resources::from_prefixes(text.iter().map(|prefix| prefix.parse::<Prefix>().unwrap()))
    }

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(text.replace(' ', "").as_bytes()).unwrap()
    }

    /// The example of RFC 3779 appendix B.1, without the SAFI and the second family, which we do not write.
    #[test]
    fn the_example_of_rfc_3779_is_encoded_as_there() {
        let set =
            resources(&["10.0.32.0/20", "10.0.64.0/24", "10.1.0.0/16", "10.2.48.0/20", "10.2.64.0/24", "10.3.0.0/16"]);
        let der = IpBlocks::Explicit(set.clone()).to_der();
        let list = "03 04 04 0a0020 03 04 00 0a0040 03 03 00 0a01 30 0c 03 04 04 0a0230 03 04 00 0a0240 03 03 00 0a03";
        assert_eq!(der, hex(&format!("30 2c 30 2a 04 02 0001 30 24 {list}")));
        assert_eq!(IpBlocks::from_der(&der), Ok(IpBlocks::Explicit(set)));
    }

    #[test]
    fn everything_nothing_and_inheritance_have_their_form() {
        let cases = [
            (
                IpBlocks::Explicit(Resources::everything()),
                "30 16 30 09 04 02 0001 30 03 03 01 00 30 09 04 02 0002 30 03 03 01 00",
            ),
            (IpBlocks::Explicit(Resources::default()), "30 00"),
            (IpBlocks::Inherit, "30 10 30 06 04 02 0001 05 00 30 06 04 02 0002 05 00"),
            (IpBlocks::Explicit(resources(&["10.0.0.1/32"])), "30 0f 30 0d 04 02 0001 30 07 03 05 00 0a000001"),
        ];
        for (blocks, text) in cases {
            assert_eq!(blocks.to_der(), hex(text), "{blocks:?}");
            assert_eq!(IpBlocks::from_der(&hex(text)), Ok(blocks));
        }
    }

    #[test]
    fn other_encodings_of_a_set_are_refused() {
        use ResourcesError::{Malformed, NotCanonical, Unsupported};
        let cases = [
            ("two halves of one prefix", "30 13 30 11 04 02 0001 30 0b 03 03 00 0a00 03 04 00 0a0100", NotCanonical),
            ("out of order", "30 12 30 10 04 02 0001 30 0a 03 03 00 0a03 03 03 00 0a01", NotCanonical),
            ("a prefix as a range", "30 14 30 12 04 02 0001 30 0c 30 0a 03 03 00 0a01 03 03 00 0a01", NotCanonical),
            ("a stray bit", "30 0e 30 0c 04 02 0001 30 06 03 04 04 0a0021", NotCanonical),
            ("a length in long form", "30 81 0d 30 0b 04 02 0001 30 05 03 03 00 0a01", NotCanonical),
            ("an empty family", "30 08 30 06 04 02 0001 30 00", NotCanonical),
            ("IPv6 first", "30 10 30 06 04 02 0002 05 00 30 06 04 02 0001 05 00", NotCanonical),
            ("one family inherited", "30 08 30 06 04 02 0001 05 00", Unsupported),
            ("a SAFI", "30 09 30 07 04 03 000101 05 00", Unsupported),
            ("another family", "30 08 30 06 04 02 0003 05 00", Malformed),
            ("too long a prefix", "30 10 30 0e 04 02 0001 30 08 03 06 00 0a00000000", Malformed),
            ("a range backwards", "30 14 30 12 04 02 0001 30 0c 30 0a 03 03 00 0a03 03 03 00 0a01", Malformed),
            ("eight unused bits", "30 0d 30 0b 04 02 0001 30 05 03 03 08 0a00", Malformed),
            ("unused bits of nothing", "30 0b 30 09 04 02 0001 30 03 03 01 01", Malformed),
            ("bytes after it", "30 00 00", Malformed),
            ("a length beyond the end", "30 02 30", Malformed),
            ("nothing at all", "", Malformed),
        ];
        for (what, text, error) in cases {
            assert_eq!(IpBlocks::from_der(&hex(text)), Err(error), "{what}");
        }
    }

    #[test]
    fn a_certificate_has_at_most_so_many_ranges() {
        let scattered = |count: u8| {
            let prefixes = (0..count).map(|at| Prefix::new(IpAddr::from([10, at, 0, 0]), 24).unwrap());
            Resources::from_prefixes(prefixes)
        };
        let most = scattered(RANGES_MAX as u8);
        assert_eq!(most.range_count(), RANGES_MAX);
        assert_eq!(IpBlocks::from_der(&IpBlocks::Explicit(most.clone()).to_der()), Ok(IpBlocks::Explicit(most)));
        let more = IpBlocks::Explicit(scattered(RANGES_MAX as u8 + 1)).to_der();
        assert_eq!(IpBlocks::from_der(&more), Err(ResourcesError::TooMany));
    }

    #[test]
    fn sets_are_shown_by_prefixes_and_ranges() {
        assert_eq!(
            resources(&["10.2.48.0/20", "10.2.64.0/24", "fd00::/48"]).to_string(),
            "10.2.48.0-10.2.64.255, fd00::/48"
        );
        assert_eq!(Resources::default().to_string(), "nothing");
        assert_eq!(Resources::everything().to_string(), "0.0.0.0/0, ::/0");
    }

    #[test]
    fn a_range_ends_with_its_last_address() {
        let ours = resources(&["10.0.1.0/24", "10.0.2.0/24"]);
        for (prefix, inside) in [
            ("10.0.1.0/24", true),
            ("10.0.2.255/32", true),
            ("10.0.3.0/32", false),
            ("10.0.0.255/32", false),
            ("10.0.0.0/22", false),
            ("fd00::/8", false),
        ] {
            assert_eq!(ours.contains(&resources(&[prefix])), inside, "{prefix}");
        }
        assert!(ours.contains(&Resources::default()) && !Resources::default().contains(&ours));
    }

    /// Prefixes that often overlap and touch.
    fn any_prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (0u32..1024, 20u8..=32).prop_map(|(low, len)| {
            let cut = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Prefix::new(IpAddr::V4(Ipv4Addr::from_bits((0x0a00_0000 | low << 3) & cut)), len).unwrap()
        });
        let v6 = (any::<u128>(), 0u8..=128).prop_map(|(address, len)| {
            let cut = !host_mask(128 - u32::from(len));
            Prefix::new(IpAddr::V6(Ipv6Addr::from_bits(address & cut)), len).unwrap()
        });
        prop_oneof![4 => v4, 1 => v6]
    }

    fn any_set() -> impl Strategy<Value = Resources> {
        proptest::collection::vec(any_prefix(), 0..12).prop_map(Resources::from_prefixes)
    }

    proptest! {
        #[test]
        fn a_set_is_read_back_from_its_der(set in any_set()) {
            let blocks = IpBlocks::Explicit(set);
            prop_assert_eq!(IpBlocks::from_der(&blocks.to_der()), Ok(blocks));
        }

        #[test]
        fn prefixes_and_set_say_the_same(prefixes in proptest::collection::vec(any_prefix(), 0..12)) {
            let set = Resources::from_prefixes(prefixes.iter().copied());
            prop_assert_eq!(&Resources::from_prefixes(set.prefixes()), &set);
            for prefix in prefixes {
                prop_assert!(set.contains(&Resources::from_prefixes([prefix])));
                prop_assert!(set.prefixes().iter().any(|kept| kept.contains(prefix.address())));
            }
        }

        #[test]
        fn subsets_are_ordered(one in any_set(), other in any_set(), third in any_set()) {
            let joined = Resources::from_prefixes(one.prefixes().into_iter().chain(other.prefixes()));
            prop_assert!(one.contains(&one));
            prop_assert!(joined.contains(&one) && joined.contains(&other));
            prop_assert_eq!(one.contains(&other) && other.contains(&one), one == other);
            prop_assert_eq!(joined == one, one.contains(&other));
            prop_assert!(!third.contains(&joined) || third.contains(&one));
            prop_assert!(Resources::everything().contains(&joined));
        }

        /// Whatever is read is written as the same bytes, and nothing panics.
        #[test]
        fn hostile_bytes_are_refused_or_canonical(
            set in any_set(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<proptest::sample::Index>()
        ) {
            let mut der = IpBlocks::Explicit(set).to_der();
            let at = at.index(der.len());
            der[at] = byte;
            der.truncate(cut.index(der.len() * 4));
            if let Ok(blocks) = IpBlocks::from_der(&der) {
                prop_assert_eq!(blocks.to_der(), der);
            }
        }

        #[test]
        fn random_bytes_never_panic(der in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = IpBlocks::from_der(&der);
        }
    }
}
