//! A network namespace of a test's own, and iproute2 as the second opinion.
#![allow(unsafe_code, reason = "unshare(2) and setns(2) have no safe wrapper in the standard library")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

/// A fresh network namespace for this thread and the processes it starts. The thread returns to the old one at the end; with its last
/// thread the kernel removes the namespace and all in it.
pub(crate) struct Namespace {
    before: File,
}

impl Namespace {
    /// A namespace with a pair of interfaces, `va` and `vb`, both down, with two queues each.
    pub(crate) fn with_veth() -> Self {
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        // SAFETY: unshare changes only which namespace this thread uses; no memory is involved.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
        let namespace = Self { before };
        ip("link add va numtxqueues 2 numrxqueues 2 type veth peer name vb numtxqueues 2 numrxqueues 2");
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // SAFETY: `before` is an open descriptor of a network namespace for the whole call.
        unsafe { libc::setns(self.before.as_raw_fd(), libc::CLONE_NEWNET) };
    }
}

fn run(arguments: &str, json: bool) -> Output {
    let mut command = Command::new("ip");
    if json {
        command.args(["-j", "-d"]);
    }
    command.args(arguments.split(' ')).output().expect("iproute2 is installed")
}

/// What `ip` says in JSON; null when it says nothing.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> serde_json::Value {
    let output = run(arguments, true);
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// What `ip` says as text.
#[track_caller]
pub(super) fn ip_text(arguments: &str) -> String {
    let output = run(arguments, false);
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The error of an `ip` that must fail.
#[track_caller]
pub(super) fn ip_fails(arguments: &str) -> String {
    let output = run(arguments, false);
    assert!(!output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}
