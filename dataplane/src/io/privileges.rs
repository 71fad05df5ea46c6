//! Giving up every privilege that the packet plane does not need.
//!
//! ```text
//!              before          after
//! permitted    anything     ─▸ NEEDED            no thread can ever raise more
//! effective    anything     ─▸ NEEDED
//! bounding     anything     ─▸ NEEDED            (as far as CAP_SETPCAP allows)
//! inheritable  anything     ─▸ empty             the plane starts no program; were it made to, that
//! ambient      anything     ─▸ empty             program would have nothing, or NEEDED as root,
//! no_new_privs 0            ─▸ 1                 and could gain nothing
//! ```
//!
//! Capabilities belong to threads and are copied to new ones, so this comes before the first thread. User and group ids stay as they are.
#![allow(unsafe_code, reason = "prctl(PR_SET_NO_NEW_PRIVS) has no safe wrapper among our dependencies")]

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// What the packet plane needs: routes, TUN and XDP; SO_MARK and raw sockets; eBPF; the verifier's leave for variable packet offsets;
/// locked memory for rings and packet buffers.
pub const NEEDED: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_IPC_LOCK,
];

/// Why the privileges are not as they should be. One line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is needed and not there.
    #[error("{} not permitted: {REMEDY}", names(.0))]
    Missing(Vec<Capability>),
    /// Other threads would keep what this one gives up.
    #[error("{0} threads are running: privileges have to be dropped before the first one is started")]
    Threads(usize),
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// How to get what is missing.
pub const REMEDY: &str = "start as root, or run `setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep` on the program, \
                          or list them in AmbientCapabilities= of its systemd unit";

/// Reduces the privileges of this process to [`NEEDED`]. Call it before any thread is started.
///
/// # Errors
/// [`Error::Missing`] and [`Error::Threads`] before anything is changed; [`Error::Refused`].
pub fn drop_to_needed() -> Result<(), Error> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| Error::Refused { action: "count the threads of this process", source })?;
    match threads.count() {
        0 | 1 => drop_on_this_thread(),
        count => Err(Error::Threads(count)),
    }
}

/// Those of [`NEEDED`] that are not in the effective set of this thread.
///
/// # Errors
/// [`Error::Refused`].
pub fn missing() -> Result<Vec<Capability>, Error> {
    let effective = caps::read(None, CapSet::Effective).map_err(refused("read the effective capabilities"))?;
    Ok(NEEDED.into_iter().filter(|capability| !effective.contains(capability)).collect())
}

/// The names of capabilities for a message.
pub fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(Capability::to_string).collect::<Vec<_>>().join(", ")
}

fn drop_on_this_thread() -> Result<(), Error> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(refused("read the permitted capabilities"))?;
    let missing: Vec<_> = NEEDED.into_iter().filter(|capability| !permitted.contains(capability)).collect();
    if !missing.is_empty() {
        return Err(Error::Missing(missing));
    }
    let needed = CapsHashSet::from(NEEDED);

    // The bounding set comes first: lowering it takes CAP_SETPCAP, which goes with the rest. Without it no_new_privs has to do.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        let action = "lower the bounding set";
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(refused(action))?;
        for capability in caps::all().difference(&needed) {
            // A capability that this kernel is too old to know is not in the set.
            if caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, *capability).map_err(refused(action))?;
            }
        }
    }
    // The kernel takes from the ambient set whatever leaves the inheritable one (capabilities(7)).
    caps::clear(None, CapSet::Inheritable).map_err(refused("clear the inheritable capabilities"))?;
    caps::set(None, CapSet::Effective, &needed).map_err(refused("set the effective capabilities"))?;
    caps::set(None, CapSet::Permitted, &needed).map_err(refused("set the permitted capabilities"))?;

    // SAFETY: this prctl takes no pointers; it sets a flag of the calling thread.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(Error::Refused { action: "set no_new_privs", source: io::Error::last_os_error() });
    }
    Ok(())
}

fn refused(action: &'static str) -> impl Fn(caps::errors::CapsError) -> Error {
    move |error| Error::Refused { action, source: io::Error::other(error) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Names the part of [`in_a_process_of_its_own`] that a child process plays.
    const PART: &str = "WEIR_TEST_PRIVILEGES";
    /// Bits of [`NEEDED`] (`linux/capability.h`): 12 and 13, 14, 38 and 39.
    const NEEDED_BITS: &str = "000000c000007000";

    fn status(field: &str) -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect(field);
        line.trim().to_owned()
    }

    /// Runs a part below in a child, so that this process keeps its privileges.
    #[track_caller]
    fn play(part: &str) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "io::privileges::tests::in_a_process_of_its_own", "--nocapture"])
            .env(PART, part)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn in_a_process_of_its_own() {
        match std::env::var(PART).as_deref() {
            Ok("all") => {
                drop_on_this_thread().unwrap();
                for field in ["CapPrm", "CapEff", "CapBnd"] {
                    assert_eq!(status(field), NEEDED_BITS, "{field}");
                }
                for field in ["CapInh", "CapAmb"] {
                    assert_eq!(status(field), "0000000000000000", "{field}");
                }
                assert_eq!(status("NoNewPrivs"), "1");
                assert_eq!(missing().unwrap(), []);
                assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_err());
                // A program started as root gets the bounding set and no more.
                let child = Command::new("cat").arg("/proc/self/status").output().unwrap();
                let child = String::from_utf8(child.stdout).unwrap();
                assert!(child.contains(&format!("CapEff:\t{NEEDED_BITS}")), "{child}");
                drop_on_this_thread().expect("twice is once");
            }
            Ok("ambient") => {
                let everything = caps::read(None, CapSet::Permitted).unwrap();
                caps::set(None, CapSet::Inheritable, &everything).unwrap();
                caps::raise(None, CapSet::Ambient, Capability::CAP_SYS_ADMIN).unwrap();
                drop_on_this_thread().unwrap();
                assert_eq!((status("CapInh"), status("CapAmb")), ("0".repeat(16), "0".repeat(16)));
            }
            Ok("without setpcap") => {
                let few = CapsHashSet::from(NEEDED);
                caps::set(None, CapSet::Effective, &few).unwrap();
                caps::set(None, CapSet::Permitted, &few).unwrap();
                drop_on_this_thread().unwrap();
                assert_eq!((status("CapPrm").as_str(), status("NoNewPrivs").as_str()), (NEEDED_BITS, "1"));
            }
            Ok("too few") => {
                let mut few = CapsHashSet::from(NEEDED);
                few.remove(&Capability::CAP_BPF);
                few.remove(&Capability::CAP_PERFMON);
                caps::set(None, CapSet::Effective, &few).unwrap();
                caps::set(None, CapSet::Permitted, &few).unwrap();
                let (bounding, error) = (status("CapBnd"), drop_on_this_thread().unwrap_err().to_string());
                assert!(
                    error.starts_with("CAP_BPF, CAP_PERFMON not permitted: start as root, or run `setcap"),
                    "{error}"
                );
                assert_eq!(error.lines().count(), 1);
                assert_eq!((status("CapBnd"), status("NoNewPrivs").as_str()), (bounding, "0"), "nothing is changed");
                assert_eq!(missing().unwrap(), [Capability::CAP_BPF, Capability::CAP_PERFMON]);
            }
            _ => {}
        }
    }

    #[test]
    fn all_sets_end_at_what_is_needed() {
        play("all");
        play("ambient");
    }

    #[test]
    fn a_process_that_may_not_lower_its_bounding_set_drops_the_rest() {
        play("without setpcap");
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_changed() {
        play("too few");
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        std::thread::scope(|scope| {
            let (done, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(matches!(drop_to_needed(), Err(Error::Threads(count)) if count >= 2));
            drop(done);
        });
        assert_eq!(status("NoNewPrivs"), "0");
    }
}
