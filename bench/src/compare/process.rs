//! A program that a peer runs on a gateway: started inside its namespace, ended by the id that it was started with.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::signal;
use crate::{Error, Result};

/// How long a program may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How often something that must come about is looked at.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// A running program. It ends when this is dropped, and the kernel ends it when the bench dies.
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output in a file.
    pub(super) fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let failed = || Error::io(format!("cannot start {name}"));
        let file = File::create(&log).map_err(failed())?;
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed())?).stderr(file);
        signal::end_with_parent(&mut command);
        Ok(Self { name: name.to_owned(), child: command.spawn().map_err(failed())?, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Looks until something is there: an interface, a socket. The program must live meanwhile.
    pub(super) fn until<T>(&mut self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let ended = self.child.try_wait().map_err(Error::io(format!("cannot wait for {}", self.name)))?;
            if ended.is_some() || start.elapsed() > limit {
                let how = ended.map_or_else(|| "is not ready".to_owned(), |status| format!("ended with {status}"));
                return Err(Error::Broken { what: self.name.clone(), detail: format!("{how}: {}", self.said()) });
            }
            std::thread::sleep(POLL);
        }
    }

    /// The last lines that it wrote.
    pub(super) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let start = Instant::now();
        // One that has ended already cannot be told to; it is waited for all the same.
        let _ = signal::terminate(self.child.id());
        while start.elapsed() < STOP_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for a peer's files, until dropped.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        // It will hold keys, and one that somebody else made beforehand is not ours to fill.
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Self(path))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.file(name);
        fs::write(&file, text).map_err(Error::io(format!("cannot write {}", file.display())))?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("weir-bench: cannot remove {}: {error}", self.0.display());
        }
    }
}
