//! Descriptors that a child gets from us.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Leaves these descriptors open in the child of `command`, under the same numbers. They must be open when it is started.
pub fn pass_on(command: &mut Command, descriptors: &[OwnedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec the closure does system calls on numbers and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for &number in &numbers {
                super::check(libc::fcntl(number, libc::F_SETFD, 0))?;
            }
            Ok(())
        });
    }
}
