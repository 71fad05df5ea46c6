//! Giving up, once everything is open, whatever a process needs no more: who takes it over then has little to go on with.
//!
//! ```text
//!                         before            after
//!  capabilities           the user's        none, in any set        whoever is root still owns root's files, so that
//!  no_new_privs           0                 1                       what was opened can be written
//!  core dumps, ptrace     as it is set      none
//!  sockets with a path    the user's        weir's own              root only: the runtime directory is all that there is
//!  files                  the user's        those that are open     Landlock, Linux 5.13
//!  TCP                    all               none                    Landlock, Linux 6.7
//!  others' processes      the user's        no signal to any        Landlock, Linux 6.12
//! ```
//!
//! Landlock leaves sockets that have a path alone, and by some of them root is obeyed: those of systemd, of a container engine. So a process that
//! may makes the runtime directory, where those of the packet plane and the issuer are, its root directory.

use std::io;
use std::path::{Path, PathBuf};

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

/// Gives everything up, for good. Call it when all files and listening sockets are open, and before anything of the network is read. Says what
/// is closed, and where `runtime`, the directory with the sockets that are still to be reached, is from now on.
///
/// # Errors
/// [`ConfineError`].
pub fn confine(runtime: &Path) -> Result<(Files, PathBuf), ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(refused("count the threads of this process"))?.count();
    if threads > 1 {
        return Err(ConfineError::Threads(threads));
    }
    let confined = confine_this_thread(runtime)?;
    tracing::info!("confined: no capability, no new privileges, no core dump");
    match confined.0.warning() {
        None => tracing::info!("confined: no file but those that are open, no TCP, no signal to others"),
        Some((what, remedy)) => tracing::warn!("{what}; {remedy}"),
    }
    Ok(confined)
}

fn confine_this_thread(runtime: &Path) -> Result<(Files, PathBuf), ConfineError> {
    keep_memory_private()?;
    let runtime = enter(runtime)?;
    drop_capabilities()?;
    set_no_new_privs(true).map_err(refused("set no_new_privs"))?;
    Ok((close_files()?, runtime))
}

/// Makes a directory the root directory, as far as this process may; where it is then.
fn enter(directory: &Path) -> Result<PathBuf, ConfineError> {
    let own = rustix::thread::capabilities(None).map_err(refused("read the capabilities"))?;
    if !own.effective.contains(CapabilitySet::SYS_CHROOT) {
        return Ok(directory.to_owned());
    }
    let entered = std::os::unix::fs::chroot(directory).and_then(|()| std::env::set_current_dir("/"));
    entered.map_err(refused("make the runtime directory the root directory"))?;
    Ok(PathBuf::from("/"))
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
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;

    /// Has a child process play [`in_a_process_of_its_own`], in this directory.
    const DIRECTORY: &str = "WEIR_TEST_CONFINE";

    /// What the kernel says of a thread.
    fn said(status: &str, field: &str) -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect(field);
        line.trim().to_owned()
    }

    #[test]
    fn in_a_process_of_its_own() {
        let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
        let (path, socket) = (directory.join("file"), directory.join("socket"));
        let mut open = std::fs::File::options().create(true).read(true).append(true).open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut routes = std::fs::File::open("/proc/self/net/route").unwrap();
        let unix = UnixListener::bind(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut own = std::fs::File::open("/proc/thread-self/status").unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let (files, now_at) = confine_this_thread(&directory).unwrap();
        let mut status = String::new();
        own.read_to_string(&mut status).unwrap();
        for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(said(&status, field), "0".repeat(16), "{field}");
        }
        assert_eq!(said(&status, "NoNewPrivs"), "1");

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
        let _stream = UnixStream::connect(now_at.join("socket")).unwrap();
        assert!(unix.accept().is_ok());
        if is_root {
            // Not even the name of another socket leads anywhere.
            assert_eq!(UnixStream::connect(&socket).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert!(UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:9").is_ok());
        if files == Files::Open {
            eprintln!("SKIPPED: this kernel has no Landlock");
            return;
        }
        let denied = |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let path = now_at.join("file");
        denied(std::fs::read(&path).map(drop));
        denied(std::fs::write(now_at.join("another"), b"").map(drop));
        denied(std::fs::remove_file(&path));
        denied(Command::new(&path).status().map(drop));
        assert!(std::fs::read("/etc/passwd").is_err());
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
            assert!(matches!(confine(Path::new("/")), Err(ConfineError::Threads(count)) if count >= 2));
            drop(done);
        });
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_eq!(said(&status, "NoNewPrivs"), "0");
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
