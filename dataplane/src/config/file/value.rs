//! Values that mean the same wherever they stand, with their limits.
//!
//! Each parser's error says what is wrong and what to write, for [`Section::text`](super::section::Section::text) and
//! [`Section::texts`](super::section::Section::texts).

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use weir_abi::wire::{HEADER_LEN, TAG_LEN};

use crate::api::Prefix;

// From specifications.

/// Longest interface name in bytes: `IFNAMSIZ` less its terminator (`linux/if.h`).
pub const INTERFACE_NAME_LEN_MAX: usize = 15;
/// Longest path of a unix socket in bytes: `sun_path` less its terminator (`linux/un.h`).
pub const SOCKET_PATH_LEN_MAX: usize = 107;
/// Smallest MTU in bytes: IPv6 stops working below it (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Largest MTU in bytes whose sealed datagram still fits an IPv6 packet: 40 bytes of IPv6, 8 of UDP, header and tag are ours.
pub const MTU_MAX: u16 = u16::MAX - (40 + 8 + HEADER_LEN + TAG_LEN) as u16;
/// Highest core number: `CPU_SETSIZE` less one (`sched.h`).
pub const CORE_MAX: u64 = 1023;
/// Priorities of a rule that comes before the one for the kernel's table `main`, which has 32,766 (`net/ipv4/fib_rules.c`).
pub const RULE_PRIORITIES: RangeInclusive<u64> = 1..=32_765;
/// Numbers of the tables `default`, `main` and `local` (`linux/rtnetlink.h`).
pub const KERNEL_TABLES: Range<u32> = 253..256;

// Ours.

/// Most workers.
pub const WORKERS_MAX: usize = weir_abi::map::WORKERS_MAX as usize;
/// Most lane ports: with the common one, one for each worker that there may be.
pub const LANE_PORTS_MAX: u8 = weir_abi::map::WORKERS_MAX - 1;
/// Most LAN interfaces.
pub const LAN_INTERFACES_MAX: usize = 64;
/// Most overlay prefixes: each costs the kernel two routes, and thousands of routes cost every route change time.
pub const PREFIXES_MAX: usize = 1024;
/// Most addresses of the TUN.
pub const TUN_ADDRESSES_MAX: usize = 64;

/// A path that begins at the root.
///
/// # Errors
/// Another one.
pub fn absolute_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(format!("{text:?} is not an absolute path: begin it with /"));
    }
    Ok(text.into())
}

/// An absolute path that a unix socket can have.
///
/// # Errors
/// Another one.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > SOCKET_PATH_LEN_MAX {
        let len = text.len();
        return Err(format!("{len} bytes are too long for a unix socket: use a path of at most {SOCKET_PATH_LEN_MAX}"));
    }
    absolute_path(text)
}

/// What `dev_valid_name` of the kernel accepts, in characters that survive a terminal.
///
/// # Errors
/// Anything else.
pub fn interface_name(text: &str) -> Result<String, String> {
    let fits = (1..=INTERFACE_NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && text != "."
        && text != "..";
    if fits {
        return Ok(text.into());
    }
    let len = INTERFACE_NAME_LEN_MAX;
    Err(format!("{text:?} cannot name an interface: use 1 to {len} visible ASCII characters without / and :"))
}

/// The name of an interface that is still to be made.
///
/// # Errors
/// What [`interface_name`] refuses, and patterns.
pub fn tun_name(text: &str) -> Result<String, String> {
    // The kernel would take it for a pattern and choose the number itself.
    if text.contains('%') {
        return Err(format!("{text:?} is a pattern: write the name in full, as weir0"));
    }
    interface_name(text)
}

/// A prefix of addresses.
///
/// # Errors
/// Anything else.
pub fn prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}
