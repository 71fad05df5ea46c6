//! Cores: pinning a thread to one, and which there are.

use std::io;

use super::check;

/// Cores that this thread may run on, by number.
///
/// # Errors
/// The errno of `sched_getaffinity`.
pub fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: all-zero is an empty set, and the call writes at most the size it is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set))?;
        Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &set)).collect())
    }
}

/// Keeps the calling thread on a core.
///
/// # Errors
/// The errno of `sched_setaffinity`.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: all-zero is an empty set, and the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core.min(libc::CPU_SETSIZE as usize - 1), &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)).map(|_| ())
    }
}

/// The number of the calling thread, as `/proc/self/task` names it.
pub fn thread_id() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() as u32 }
}
