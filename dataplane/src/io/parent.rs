//! Ending with the process that started this one, where that is wanted: the supervisor of a node.
//!
//! The kernel is asked for a signal when the parent ends (`PR_SET_PDEATHSIG`, prctl(2)). It sends none for a parent that has ended before it
//! was asked, so who the parent is gets looked at afterwards. Giving up capabilities keeps the setting, since it is lost with other or more
//! rights only.

use std::io;

use rustix::process::{Pid, getppid, set_parent_process_death_signal};

pub use rustix::process::Signal;

/// Why this process does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// It ended before we asked to be told, or never was our parent.
    #[error(
        "process {0}, with which this one is to end, is not its parent: start `weir run` again, or leave out --parent"
    )]
    Gone(u32),
    /// The kernel refused.
    #[error("cannot ask to be ended with the parent: {0}")]
    Refused(io::Error),
}

/// From now on this process gets a signal when its parent ends, which must be the one with this id: [`Signal::TERM`] to stop as when it is
/// told to, [`Signal::KILL`] where a loop that hangs shall end as well. Call it from the thread that lives longest, and before anything is put
/// in place or opened that the next process needs.
///
/// # Errors
/// [`ParentError`].
pub fn end_with(parent: u32, by: Signal) -> Result<(), ParentError> {
    set_parent_process_death_signal(Some(by)).map_err(|error| ParentError::Refused(error.into()))?;
    let is_there = getppid().map(Pid::as_raw_nonzero).is_some_and(|found| u32::try_from(found.get()) == Ok(parent));
    if is_there { Ok(()) } else { Err(ParentError::Gone(parent)) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Has a process play a part in [`a_child_ends_with_its_parent`].
    const PART: &str = "WEIR_TEST_PARENT";

    fn play(part: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "io::parent::tests::in_a_process_of_its_own", "--nocapture"]).env(PART, part);
        command
    }

    #[test]
    fn in_a_process_of_its_own() {
        let Ok(part) = std::env::var(PART) else { return };
        let mut child = None;
        if part == "parent" {
            let started = play(&std::process::id().to_string()).stdin(Stdio::inherit()).spawn().unwrap();
            println!("child {}", started.id());
            child = Some(started);
        } else {
            end_with(part.parse().unwrap(), Signal::KILL).unwrap();
            println!("ready");
        }
        io::stdout().flush().unwrap();
        // Nothing ever comes: both are ended from outside, unless the test has given up.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        child.map(|mut child| child.wait().unwrap());
    }

    #[test]
    fn a_child_ends_with_its_parent() {
        let mut parent = play("parent").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(parent.stdout.take().unwrap());
        let mut text = String::new();
        while !(text.contains("ready") && text.contains("child ")) {
            assert_ne!(said.read_line(&mut text).unwrap(), 0, "{text}");
        }
        parent.kill().unwrap();
        parent.wait().unwrap();
        // The child has the other end of both pipes: this one ends when it does. The other one stays open here until then.
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(said.read_to_string(&mut text)));
        let ended = ended.recv_timeout(PATIENCE);
        drop(parent.stdin);
        assert!(ended.is_ok(), "the child goes on without its parent");
    }

    #[test]
    fn a_parent_that_is_gone_is_noticed() {
        let gone = end_with(std::process::id(), Signal::TERM);
        assert!(matches!(gone, Err(ParentError::Gone(pid)) if pid == std::process::id()), "{gone:?}");
        set_parent_process_death_signal(None).unwrap();
    }
}
