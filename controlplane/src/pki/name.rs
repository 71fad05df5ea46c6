//! Names of members and networks: one DNS label each.
//!
//! A label is 1 to 63 of `a-z`, `0-9` and `-`, without a hyphen at either end (RFC 1123 §2.1), in lower case: DNS compares without case, and
//! two spellings of one name would be two members. Labels that look like `xn--` or have hyphens in third and fourth place mean something
//! else (RFC 5891 §4.2.3.1) and are refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest label (RFC 1035 §2.3.4).
pub const LABEL_LEN_MAX: usize = 63;

/// Names that no member gets, because programs or our own zone give them a meaning.
pub const RESERVED: [&str; 12] =
    ["localhost", "local", "internal", "weir", "ns", "dns", "www", "wpad", "isatap", "gateway", "group", "zone"];

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NameError {
    /// Not a label.
    #[error("a name has 1 to 63 of a-z, 0-9 and hyphens, none at the ends or in both third and fourth place")]
    Label,
    /// A label with another meaning.
    #[error("the name is reserved; choose another")]
    Reserved,
    /// A pattern with more than one star, or one that is not at its end.
    #[error("a pattern is a name, or the beginning of one with a * behind it")]
    Pattern,
}

/// Checks that a text is one label.
///
/// # Errors
/// [`NameError::Label`].
pub fn check_label(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let plain = bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    let framed = !text.starts_with('-') && !text.ends_with('-') && bytes.get(2..4) != Some(b"--");
    if plain && framed && (1..=LABEL_LEN_MAX).contains(&bytes.len()) { Ok(()) } else { Err(NameError::Label) }
}

/// Checks that a text may name a member.
///
/// # Errors
/// [`NameError`].
pub fn check_member_name(text: &str) -> Result<(), NameError> {
    check_label(text)?;
    if RESERVED.contains(&text) { Err(NameError::Reserved) } else { Ok(()) }
}

/// One name (`berlin`), all names that begin alike (`edge-*`), or all names (`*`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    start: String,
    open: bool,
}

impl NamePattern {
    /// All names.
    pub const fn any() -> Self {
        Self { start: String::new(), open: true }
    }

    /// The one name that fits, if it is only one.
    pub fn exact(&self) -> Option<&str> {
        (!self.open).then_some(self.start.as_str())
    }

    /// What every name that fits begins with.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// Whether the name fits.
    pub fn fits(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.start) } else { name == self.start }
    }

    /// Whether every name that fits `other` fits this.
    pub fn covers(&self, other: &Self) -> bool {
        if self.open { other.start.starts_with(&self.start) } else { self == other }
    }

    /// Whether some name fits both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix('*') {
            // The beginning of a label: put one more letter behind it and it must be one.
            Some(start) if start.contains('*') => Err(NameError::Pattern),
            Some(start) if start.len() < LABEL_LEN_MAX => {
                check_label(&format!("{start}x"))?;
                Ok(Self { start: start.to_owned(), open: true })
            }
            Some(_) => Err(NameError::Label),
            None if text.contains('*') => Err(NameError::Pattern),
            None => {
                check_member_name(text)?;
                Ok(Self { start: text.to_owned(), open: false })
            }
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.start, if self.open { "*" } else { "" })
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_one_label_in_lower_case() {
        for good in ["a", "9", "berlin-2", "a-b", "ab-c", &"x".repeat(63)] {
            assert_eq!(check_member_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "A", "ä", "a_b", "xn--bcher-kva", "ab--c", "a b", &"x".repeat(64)] {
            assert_eq!(check_member_name(bad), Err(NameError::Label), "{bad}");
        }
        assert_eq!(check_member_name("localhost"), Err(NameError::Reserved));
    }

    #[test]
    fn a_pattern_ends_in_its_only_star() {
        assert_eq!("a*b".parse::<NamePattern>(), Err(NameError::Pattern));
        assert_eq!("a**".parse::<NamePattern>(), Err(NameError::Pattern));
        assert_eq!("-*".parse::<NamePattern>(), Err(NameError::Label));
        assert_eq!(format!("{}*", "x".repeat(63)).parse::<NamePattern>(), Err(NameError::Label));
        assert_eq!(format!("{}*", "x".repeat(62)).parse::<NamePattern>().map(|p| p.to_string().len()), Ok(63));
        assert!(pattern("edge-*").fits("edge-7") && !pattern("edge-*").fits("core-7"));
        assert!(pattern("edge").fits("edge") && !pattern("edge").fits("edge-7"));
        assert_eq!(pattern("*"), NamePattern::any());
    }

    #[test]
    fn patterns_overlap_when_one_holds_the_other() {
        assert!(pattern("*").overlaps(&pattern("edge-*")));
        assert!(pattern("edge-*").overlaps(&pattern("edge-*")));
        assert!(pattern("edge-1").overlaps(&pattern("edge-*")));
        assert!(!pattern("edge-*").overlaps(&pattern("core-*")));
        assert!(!pattern("edge").overlaps(&pattern("edge-1")));
        assert!(pattern("edge-*").covers(&pattern("edge-b*")) && !pattern("edge-b*").covers(&pattern("edge-*")));
    }
}
