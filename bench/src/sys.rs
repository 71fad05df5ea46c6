//! The only unsafe code of the bench: system calls that no safe crate of ours wraps.
//!
//! Everything here takes and returns safe types; nothing here knows of rigs, streams or measurements.
#![allow(unsafe_code, reason = "system calls, the rings of AF_XDP and the promise that map values are plain bytes")]

pub mod clock;
pub mod cpu;
pub mod ethtool;
pub mod fd;
pub mod netns;
pub mod poll;
pub mod signal;
pub mod tun;
pub mod udp;
pub mod xsk;

use crate::layout::{FlowState, GeneratorConfig, GeneratorState, SinkConfig, SinkCount, Template};

// SAFETY: `repr(C)`, integers only, no padding (the sizes are multiples of the alignment and the fields fill them).
unsafe impl aya::Pod for GeneratorConfig {}
// SAFETY: as above.
unsafe impl aya::Pod for GeneratorState {}
// SAFETY: as above.
unsafe impl aya::Pod for SinkConfig {}
// SAFETY: as above.
unsafe impl aya::Pod for SinkCount {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowState {}
// SAFETY: as above.
unsafe impl aya::Pod for Template {}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Turns the `-1` of a system call into its errno.
fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
