//! Two networks on one host: everything that must not be shared is derived from the instance's name.
//!
//! ```text
//!                  weir (the default)     lab
//!  file            /etc/weir/weir.toml    /etc/weir/lab.toml
//!  state           /var/lib/weir          /var/lib/weir-lab
//!  runtime         /run/weir              /run/weir-lab
//!  TUN             weir0                  weir-lab
//!  table, rule     7770                   7770 + n         n = 1 + SHA-256("weir-instance-1" ‖ "lab") mod 997
//!  mark            0x7765                 0x7765 + n
//!  UDP port        4646                   4646 + 16 n      so that lane ports do not meet
//! ```
//!
//! Two names may have the same n, once in a thousand pairs; then one of the files has to set its numbers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::pki::id::sha256;

/// Longest name: with `weir-` before it, it is the TUN's.
pub const INSTANCE_LEN_MAX: usize = 10;

/// The default instance's name.
const DEFAULT: &str = "weir";
/// Its numbers.
const PORT: u16 = 4646;
const TABLE: u32 = 7770;
const MARK: u32 = 0x7765;
/// How many sets of numbers the other instances share: a prime, so that every bit of the hash counts.
const SETS: u16 = 997;
/// Ports from one set to the next: a common one and the lane ports that there may be.
const PORTS: u16 = 16;

/// Why a text is no name of an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no instance: write 1 to {INSTANCE_LEN_MAX} of a-z, 0-9 and -, and begin with a letter")]
pub struct InstanceError(String);

/// The name of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Default for Instance {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl FromStr for Instance {
    type Err = InstanceError;

    fn from_str(text: &str) -> Result<Self, InstanceError> {
        let fits = (1..=INSTANCE_LEN_MAX).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if fits { Ok(Self(text.into())) } else { Err(InstanceError(text.into())) }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Instance {
    fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }

    /// `weir`, or `weir-NAME`.
    fn prefixed(&self) -> String {
        if self.is_default() { self.0.clone() } else { format!("{DEFAULT}-{}", self.0) }
    }

    /// Zero for the default.
    fn set(&self) -> u16 {
        if self.is_default() {
            return 0;
        }
        let hash = sha256("weir-instance-1", &[self.0.as_bytes()]);
        1 + u16::from_be_bytes([hash[0], hash[1]]) % SETS
    }

    pub(super) fn state_directory(&self) -> PathBuf {
        PathBuf::from("/var/lib").join(self.prefixed())
    }

    pub(super) fn runtime_directory(&self) -> PathBuf {
        PathBuf::from("/run").join(self.prefixed())
    }

    pub(super) fn tun(&self) -> String {
        if self.is_default() { "weir0".into() } else { self.prefixed() }
    }

    pub(super) fn port(&self) -> u16 {
        PORT + PORTS * self.set()
    }

    pub(super) fn table(&self) -> u32 {
        TABLE + u32::from(self.set())
    }

    pub(super) fn mark(&self) -> u32 {
        MARK + u32::from(self.set())
    }
}

#[cfg(test)]
mod tests {
    use weir_dataplane::config::file::value::{INTERFACE_NAME_LEN_MAX, RULE_PRIORITIES};

    use super::*;

    #[test]
    fn names_are_taken_at_their_limits_and_refused_beyond() {
        for name in ["weir", "a", "site-2", "abcdefghij"] {
            assert_eq!(name.parse::<Instance>().unwrap().to_string(), name);
        }
        for name in ["", "abcdefghijk", "Lab", "2", "-a", "a/b", "a.b", "ü", "a b"] {
            assert!(name.parse::<Instance>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn two_instances_share_nothing() {
        let (weir, lab): (Instance, Instance) = (Instance::default(), "lab".parse().unwrap());
        assert_eq!((weir.port(), weir.table(), weir.mark(), weir.tun()), (4646, 7770, 0x7765, "weir0".into()));
        assert_eq!(lab.state_directory(), PathBuf::from("/var/lib/weir-lab"));
        assert_eq!(lab.runtime_directory(), PathBuf::from("/run/weir-lab"));
        assert_eq!(lab.tun(), "weir-lab");
        assert!(lab.port() >= weir.port() + 16 && lab.table() != weir.table() && lab.mark() != weir.mark());
    }

    /// The last set's ports lie below the ephemeral ones (`net.ipv4.ip_local_port_range` begins at 32768) and its rule before `main`'s.
    #[test]
    fn the_highest_numbers_fit() {
        assert!(u32::from(PORT) + u32::from(PORTS) * u32::from(SETS) + 15 < 32_768);
        assert!(RULE_PRIORITIES.contains(&u64::from(TABLE + u32::from(SETS))));
        assert!("abcdefghij".parse::<Instance>().unwrap().tun().len() <= INTERFACE_NAME_LEN_MAX);
    }
}
