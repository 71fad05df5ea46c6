//! Giving up, once everything is open, whatever a process needs no more: who takes it over then has little to go on with.
//!
//! ```text
//!                         before            after
//!  capabilities           the user's        none, in any set        whoever is root still owns root's files, so that
//!  no_new_privs           0                 1                       what was opened can be written
//!  core dumps, ptrace     as it is set      none
//!  files                  the user's        those that are open     Landlock, Linux 5.13
//!  TCP                    all               none                    Landlock, Linux 6.7
//!  others' processes      the user's        no signal to any        Landlock, Linux 6.12
//! ```
//!
//! Sockets that have a path in the file system can still be connected to: that is how the packet plane and the issuer are reached.

use std::io;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetError, RulesetStatus, Scope};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What of Landlock is asked for, as far as the kernel has it. A later one would close sockets in the file system as well.
const LANDLOCK: ABI = ABI::V7;
/// More capabilities than a set of 64 bits has there will never be.
const CAPABILITIES_MAX: u32 = u64::BITS;

/// Why a process is not confined. A kernel without Landlock is no error: [`Files`] says so.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Other threads would keep what this one gives up.
    #[error("{0} threads are running: a process is confined while it has one; this is a mistake in weir")]
    Threads(usize),
    /// The kernel refused.
    #[error("cannot {doing}: {error}; let the security module, container or seccomp filter around weir allow it")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Landlock is there, and refused.
    #[error("cannot close the file system by Landlock: {0}; let the container or seccomp filter around weir allow it")]
    Landlock(#[from] RulesetError),
}

/// What this kernel keeps a confined process from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Files, TCP, others' processes.
    Closed,
    /// Files, and not all of the rest.
    Partly,
    /// Nothing: it has no Landlock.
    Open,
}

impl Files {
    /// What to tell a person, with the remedy; `None` when all is as it should be.
    pub fn warning(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Closed => None,
            Self::Partly => Some((
                "this kernel's Landlock is old: the control plane could use TCP or signal other processes if it were taken over",
                "Linux 6.12 or later closes that",
            )),
            Self::Open => Some((
                "this kernel has no Landlock: the control plane could use all files of its user if it were taken over",
                "Linux 5.13 or later, with `landlock` among the security modules (lsm=) of the kernel's command line",
            )),
        }
    }
}

fn refused<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError::Refused { doing, error: error.into() }
}

/// Keeps what is in memory out of core dumps, also those of processes that this one starts, and out of reach for debuggers of the same user.
///
/// # Errors
/// [`ConfineError::Refused`].
pub fn keep_memory_private() -> Result<(), ConfineError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(refused("forbid core dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("close this process to debuggers"))
}

/// Gives everything up, for good. Call it when all files and listening sockets are open, and before anything of the network is read.
///
/// # Errors
/// [`ConfineError`].
pub fn confine() -> Result<Files, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(refused("count the threads of this process"))?.count();
    if threads > 1 {
        return Err(ConfineError::Threads(threads));
    }
    keep_memory_private()?;
    drop_capabilities()?;
    set_no_new_privs(true).map_err(refused("set no_new_privs"))?;
    let files = close_files()?;
    tracing::info!("confined: no capability, no new privileges, no core dump");
    match files.warning() {
        None => tracing::info!("confined: no file but those that are open, no TCP, no signal to others"),
        Some((what, remedy)) => tracing::warn!("{what}; {remedy}"),
    }
    Ok(files)
}

fn drop_capabilities() -> Result<(), ConfineError> {
    // The bounding set comes first: lowering it takes a capability that goes with the rest. Without that one no_new_privs has to do.
    let own = rustix::thread::capabilities(None).map_err(refused("read the capabilities"))?;
    if own.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..CAPABILITIES_MAX {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            // The kernel does not know of the ones beyond its last.
            let Ok(has) = capability_is_in_bounding_set(capability) else { break };
            if has {
                remove_capability_from_bounding_set(capability).map_err(refused("lower the bounding set"))?;
            }
        }
    }
    clear_ambient_capability_set().map_err(refused("clear the ambient capabilities"))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(refused("drop the capabilities"))
}

/// Everything that Landlock can forbid, without an exception.
fn close_files() -> Result<Files, ConfineError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Files::Closed,
        RulesetStatus::PartiallyEnforced => Files::Partly,
        RulesetStatus::NotEnforced => Files::Open,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// Has a child process play [`in_a_process_of_its_own`], in this directory.
    const DIRECTORY: &str = "WEIR_TEST_CONFINE";

    /// What the kernel says of this thread.
    fn status(field: &str) -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect(field);
        line.trim().to_owned()
    }

    /// Everything of [`confine`] that is not for the only thread of a process, which a test never is.
    fn confine_this_thread() -> Files {
        keep_memory_private().unwrap();
        drop_capabilities().unwrap();
        set_no_new_privs(true).unwrap();
        // Nobody can read it afterwards.
        for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(field), "0".repeat(16), "{field}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        close_files().unwrap()
    }

    #[test]
    fn in_a_process_of_its_own() {
        let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
        let (path, socket) = (directory.join("file"), directory.join("socket"));
        let mut open = std::fs::File::options().create(true).read(true).append(true).open(&path).unwrap();
        let mut routes = std::fs::File::open("/proc/self/net/route").unwrap();
        let unix = UnixListener::bind(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let files = confine_this_thread();

        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        // What is open goes on: a store that grows, a table that is read again, a socket with a path.
        open.write_all(b"goes on").unwrap();
        open.set_len(4096).unwrap();
        open.sync_all().unwrap();
        for _ in 0..2 {
            let mut text = String::new();
            routes.rewind().unwrap();
            routes.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("Iface"), "{text}");
        }
        let _stream = UnixStream::connect(&socket).unwrap();
        assert!(unix.accept().is_ok());
        assert!(UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:9").is_ok());
        if files == Files::Open {
            eprintln!("SKIPPED: this kernel has no Landlock");
            return;
        }
        let denied = |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        denied(std::fs::read(&path).map(drop));
        denied(std::fs::read("/etc/passwd").map(drop));
        denied(std::fs::write(directory.join("another"), b"").map(drop));
        denied(std::fs::remove_file(&path));
        denied(Command::new("/bin/true").status().map(drop));
        if files == Files::Closed {
            denied(TcpStream::connect(tcp.local_addr().unwrap()).map(drop));
            let parent = rustix::process::getppid().unwrap();
            let signalled = rustix::process::test_kill_process(parent);
            assert_eq!(signalled, Err(rustix::io::Errno::PERM));
        }
    }

    #[test]
    fn what_is_open_goes_on_and_nothing_else_is_left() {
        let directory = std::env::temp_dir().join(format!("weir-confine-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shell::confine::tests::in_a_process_of_its_own", "--nocapture"])
            .env(DIRECTORY, &directory)
            .output()
            .unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn a_process_with_threads_is_refused_and_keeps_everything() {
        std::thread::scope(|scope| {
            let (done, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(matches!(confine(), Err(ConfineError::Threads(count)) if count >= 2));
            drop(done);
        });
        assert_eq!(status("NoNewPrivs"), "0");
    }

    #[test]
    fn what_a_kernel_lacks_is_said_with_the_remedy() {
        assert_eq!(Files::Closed.warning(), None);
        for files in [Files::Partly, Files::Open] {
            let (what, remedy) = files.warning().unwrap();
            assert!(what.contains("Landlock") && remedy.contains("Linux"), "{what}; {remedy}");
        }
    }
}
