//! Signals: SIGINT and SIGTERM taken by a waiting thread instead of a handler, so that tearing down may allocate and lock; and sent to children.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn stop_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid place for `sigemptyset` to write to, and the calls only touch the set.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        set
    }
}

/// Blocks SIGINT and SIGTERM in this thread, and in threads and processes that it starts from now on.
///
/// # Errors
/// The errno of `pthread_sigmask`.
pub fn block_stop_signals() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Takes [`block_stop_signals`] back, for a child. Allocates nothing.
///
/// # Errors
/// The errno of `pthread_sigmask`.
pub fn unblock_stop_signals() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: libc::c_int) -> io::Result<()> {
    // SAFETY: the set is initialised; a null old set is allowed.
    match unsafe { libc::pthread_sigmask(how, &stop_signals(), std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Waits for SIGINT or SIGTERM, which must be blocked, and returns its number.
pub fn wait_for_stop() -> i32 {
    let mut signal = 0;
    // SAFETY: both arguments are valid; the call fails only for an invalid set.
    unsafe { libc::sigwait(&stop_signals(), &mut signal) };
    signal
}

/// Whether a process with this id exists.
pub fn process_exists(pid: u32) -> bool {
    // SAFETY: signal 0 checks for existence and sends nothing.
    let result = unsafe { libc::kill(pid as libc::pid_t, 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Asks a child of this process to end: SIGTERM.
///
/// # Errors
/// The errno of `kill`.
pub fn terminate(child: u32) -> io::Result<()> {
    // SAFETY: sends a signal and touches no memory.
    super::check(unsafe { libc::kill(child as libc::pid_t, libc::SIGTERM) }).map(|_| ())
}

/// Ends a process of ours at once: SIGKILL.
///
/// # Errors
/// The errno of `kill`.
pub fn kill9(pid: u32) -> io::Result<()> {
    // SAFETY: sends a signal and touches no memory.
    super::check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }).map(|_| ())
}

/// Those that stand still.
static HELD: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<u32>> {
    // A list that a panicking thread left names no process too few.
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a process of ours stand still: SIGSTOP.
///
/// # Errors
/// The errno of `kill`.
pub fn hold(pid: u32) -> io::Result<()> {
    held().push(pid);
    // SAFETY: sends a signal and touches no memory.
    super::check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGSTOP) }).map(|_| ())
}

/// Takes [`hold`] back: SIGCONT.
///
/// # Errors
/// The errno of `kill`.
pub fn release(pid: u32) -> io::Result<()> {
    held().retain(|other| *other != pid);
    // SAFETY: sends a signal and touches no memory.
    super::check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGCONT) }).map(|_| ())
}

/// Takes every [`hold`] back, on the way out where no destructor runs: who stands still does not hear that it shall end.
pub fn release_all() {
    let all = std::mem::take(&mut *held());
    for pid in all {
        // One that is gone has nothing to go on with.
        let _ = release(pid);
    }
}

/// Has the kernel send SIGTERM to the child of `command` when the thread that starts it ends, so that none outlives its bench.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure does one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| super::check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM)).map(|_| ()));
    }
}
