//! Finding a peer's program, and getting it where it may be got.
//!
//! Crates are built into `target/peers`, beside our own programs, when they are asked for and not there. Packages change the machine, so
//! they are installed only when that was allowed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::peer::{Peer, Source};

/// The program of a peer; `Err` says why it cannot be had, and what to do.
pub(super) fn program(peer: Peer, install: bool, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, String> {
    if let Some(found) = find(peer.program()) {
        return Ok(found);
    }
    match peer.source() {
        Source::Crate(name, version) => {
            let root = own_directories().nth(1).ok_or("the build directory is unknown")?.join("peers");
            let mut command = Command::new("cargo");
            command.args(["install", "--locked", "--root"]).arg(&root).args(["--version", version, name]);
            progress(&format!("building {name} {version} into {}: this takes minutes", root.display()));
            finish(command)?;
        }
        Source::Package(package) if install => {
            let mut command = Command::new("apt-get");
            command
                .args(["install", "--yes", "--no-install-recommends", package])
                .env("DEBIAN_FRONTEND", "noninteractive");
            progress(&format!("installing Debian's package {package}"));
            finish(command)?;
        }
        Source::Package(package) => {
            return Err(format!("not installed: `apt-get install {package}`, or run with --install"));
        }
    }
    find(peer.program()).ok_or_else(|| format!("{} is not where its installation should have put it", peer.program()))
}

/// Looks in `target/peers/bin` and in `PATH`, with the system directories that an ordinary user's leaves out.
fn find(program: &str) -> Option<PathBuf> {
    let built = own_directories().map(|directory| directory.join("peers/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = built.chain(std::env::split_paths(&path)).chain(system).map(|directory| directory.join(program));
    places.find(|candidate| candidate.is_file())
}

/// Where this program is, and above: `target/release` and `target`.
fn own_directories() -> impl Iterator<Item = PathBuf> {
    let this = std::env::current_exe().unwrap_or_default();
    let directories: Vec<_> = this.ancestors().skip(1).take(3).map(PathBuf::from).collect();
    directories.into_iter()
}

fn finish(mut command: Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed: {}", said.lines().last().unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }

    #[test]
    fn a_failed_installation_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo last >&2; exit 1"]);
        assert_eq!(finish(command), Err("sh failed: last".to_owned()));
        assert!(finish(Command::new("no-such-program-here")).is_err());
    }
}
