//! An IP prefix, and the check that makes one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, u8)", into = "(IpAddr, u8)")]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why something is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// More bits than the address has.
    #[error("a prefix length of {0} is longer than the address")]
    Length(u8),
    /// Bits set behind the prefix.
    #[error("{0} has bits set behind its prefix length of {1}")]
    HostBits(IpAddr, u8),
    /// Not ADDRESS or ADDRESS/LENGTH.
    #[error("not a prefix; write it as 10.1.0.0/16 or fd00::/48")]
    Syntax,
}

/// The address as a left-aligned 128-bit number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A number whose first `len` bits are ones.
fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len)) }
}

impl Prefix {
    /// Joins address and length.
    ///
    /// # Errors
    /// [`PrefixError`] when the length does not fit or the address has bits behind it.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        if len > Self::len_max(address) {
            return Err(PrefixError::Length(len));
        }
        if bits(address) & !mask(len) != 0 {
            return Err(PrefixError::HostBits(address, len));
        }
        Ok(Self { address, len })
    }

    /// The prefix of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, len: Self::len_max(address) }
    }

    /// The network address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that are fixed.
    pub const fn bit_len(&self) -> u8 {
        self.len
    }

    /// Whether the address is of this family and begins with these bits.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && bits(address) & mask(self.len) == bits(self.address)
    }

    /// The first and the last address, as numbers of the family's own width.
    pub fn range(&self) -> (u128, u128) {
        let width = u32::from(Self::len_max(self.address));
        let first = bits(self.address) >> (128 - width);
        let more = u128::MAX.checked_shr(128 - width + u32::from(self.len)).unwrap_or(0);
        (first, first | more)
    }

    const fn len_max(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

impl TryFrom<(IpAddr, u8)> for Prefix {
    type Error = PrefixError;

    fn try_from((address, len): (IpAddr, u8)) -> Result<Self, PrefixError> {
        Self::new(address, len)
    }
}

impl From<Prefix> for (IpAddr, u8) {
    fn from(prefix: Prefix) -> Self {
        (prefix.address, prefix.len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        match text.split_once('/') {
            Some((address, len)) => Self::new(
                address.parse().map_err(|_| PrefixError::Syntax)?,
                len.parse().map_err(|_| PrefixError::Syntax)?,
            ),
            None => Ok(Self::host(text.parse().map_err(|_| PrefixError::Syntax)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn text_survives_the_round_trip() {
        for text in ["0.0.0.0/0", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00:1::/48", "::1/128"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.0.0.1").to_string(), "10.0.0.1/32");
    }

    #[test]
    fn what_is_not_a_prefix_is_refused() {
        for text in ["", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.1/8", "fd00::1/64", "10.0.0/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Prefix>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_range_holds_what_the_prefix_contains() {
        let ends = |text: &str| prefix(text).range();
        assert_eq!(ends("10.1.0.0/16"), (0x0a01_0000, 0x0a01_ffff));
        assert_eq!(ends("0.0.0.0/0"), (0, u32::MAX.into()));
        assert_eq!(ends("255.255.255.255"), (u32::MAX.into(), u32::MAX.into()));
        assert_eq!(ends("::/0"), (0, u128::MAX));
        assert_eq!(ends("fd00::/16"), (0xfd00 << 112, (0xfd01 << 112) - 1));
        assert_eq!(ends("::7"), (7, 7));
    }

    #[test]
    fn contains_stops_at_the_last_bit_and_at_the_family() {
        assert!(prefix("10.1.0.0/16").contains("10.1.255.255".parse().unwrap()));
        assert!(!prefix("10.1.0.0/16").contains("10.2.0.0".parse().unwrap()));
        assert!(prefix("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::".parse().unwrap()));
        assert!(!prefix("::/0").contains("0.0.0.0".parse().unwrap()));
    }
}
