//! Ending with whoever started us, where that is wanted: the supervisor of a node.
//!
//! The kernel is asked for a signal when the parent ends (`PR_SET_PDEATHSIG`, prctl(2)). It sends none for a parent that has ended before it
//! was asked, so who the parent is gets looked at afterwards. The signal is SIGTERM: this plane stops as it does when it is told to, so
//! programs, pins and TUN go, and overlay prefixes stay unreachable. Giving up capabilities keeps the setting.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Why this process does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ended before we asked to be told, or never was our parent.
    #[error(
        "process {0}, with which this one is to end, is not its parent: start `weir run` again, or leave out --parent"
    )]
    Gone(u32),
    /// The kernel refused.
    #[error("cannot ask to be stopped with the parent: {0}")]
    Refused(io::Error),
}

/// From now on this process is told to stop when its parent ends, which must be the one with this id. Call it from the first thread, before
/// anything is put in place.
///
/// # Errors
/// [`Error`].
pub fn end_with(parent: u32) -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| Error::Refused(error.into()))?;
    let is_there = getppid().map(Pid::as_raw_nonzero).is_some_and(|found| u32::try_from(found.get()) == Ok(parent));
    if is_there { Ok(()) } else { Err(Error::Gone(parent)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That the signal comes is seen end to end, where a supervisor is killed.
    #[test]
    fn who_is_not_our_parent_is_noticed() {
        let own = std::process::id();
        assert!(matches!(end_with(own), Err(Error::Gone(pid)) if pid == own));
        end_with(std::os::unix::process::parent_id()).unwrap();
        set_parent_process_death_signal(None).unwrap();
    }
}
