//! Waiting for one of a few descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Waits until one of the descriptors can be read, or is broken, and tells which: `poll(2)` without a timeout.
///
/// # Errors
/// The errno of `poll`; a signal is none.
pub fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut polled = descriptors.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: the array has N elements and lives through the call.
        match check(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, -1) }) {
            Ok(_) => return Ok(polled.map(|fd| fd.revents != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
