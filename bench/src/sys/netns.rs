//! Network namespaces: making, naming, entering, removing.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::check;

/// Where named namespaces live, by the convention of `ip netns`.
pub const DIRECTORY: &str = "/run/netns";

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Mounts with the given flags and no data.
fn mount(source: Option<&Path>, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map(c_path).transpose()?;
    let target = c_path(target)?;
    let source = source.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: the strings are null-terminated and live through the call; null is allowed for what these flags ignore.
    check(unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) }).map(|_| ())
}

/// Makes [`DIRECTORY`] a shared mount point, so that namespaces made here are seen, and can be removed, from other mount namespaces.
fn prepare_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    // The same lock that `ip netns add` takes: two processes that prepare at once would mount twice.
    let lock = File::open(directory)?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) })?;
    match mount(None, directory, libc::MS_SHARED | libc::MS_REC) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount(Some(directory), directory, libc::MS_BIND | libc::MS_REC)?;
            mount(None, directory, libc::MS_SHARED | libc::MS_REC)
        }
        other => other,
    }
}

/// Makes a network namespace and binds it to `path`, which must not exist.
///
/// # Errors
/// The errno of the call that failed; nothing is left behind.
pub fn create(path: &Path) -> io::Result<()> {
    prepare_directory()?;
    OpenOptions::new().write(true).create_new(true).open(path)?;
    // A thread of its own: the caller's must stay in its namespace.
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: changes the namespace of this thread only, which ends with the closure.
                check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
                mount(Some(Path::new("/proc/thread-self/ns/net")), path, libc::MS_BIND)
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that makes the namespace panicked")))
    });
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(path);
    }
    result
}

/// Unbinds and deletes the name of a namespace. The namespace itself ends with its last process.
///
/// # Errors
/// The errno of `umount2` or `unlink`.
pub fn remove(path: &Path) -> io::Result<()> {
    let target = c_path(path)?;
    // SAFETY: the string is null-terminated and lives through the call.
    match check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }) {
        // A name whose mount is gone, after a crash between the two steps.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        _ => {}
    }
    fs::remove_file(path)
}

/// Moves the calling thread into a namespace.
///
/// # Errors
/// The errno of `setns`.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open; only the calling thread is moved.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(|_| ())
}

/// Makes the child of `command` start inside a namespace, open to the signals that end it: `std` lets children inherit the mask.
pub fn start_inside(command: &mut Command, namespace: Arc<File>) {
    // SAFETY: between fork and exec the closure does two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            super::signal::unblock_stop_signals()?;
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// The index of an interface in the namespace of the calling thread.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the string is null-terminated and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
