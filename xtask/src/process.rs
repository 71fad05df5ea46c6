//! Starting programs.
//!
//! Output of what runs goes straight to the terminal, so nothing is hidden; the command line is printed before it.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Where programs are that an ordinary user's `PATH` may leave out.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Variables that `cargo run` sets for this program and that would make the next cargo believe that it builds xtask.
const OWN_PREFIXES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// Prints the command line, runs it and says in one line what went wrong.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let line = line(command);
    println!("$ {line}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed: {}", describe(status))),
        Err(e) => Err(format!("cannot start `{line}`: {e}")),
    }
}

/// Standard output of a program that is expected to succeed; `None` when it did not or does not exist.
pub(crate) fn capture(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// The command as one would type it: changed variables, program, arguments.
pub(crate) fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(key, value)| {
        let value = value?;
        Some(format!("{}={}", key.to_string_lossy(), quoted(value)))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// How a program ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The path of a program, looked for in `PATH` and in the system directories.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// A command that runs as root: directly when we are, through sudo when not.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.arg("-E").arg(program);
        command
    }
}

/// Cargo in `dir`, found on `PATH`: under rustup that is the toolchain that started us, which it names in the environment.
pub(crate) fn cargo(dir: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(dir);
    forget_own_build(&mut command);
    command
}

/// Removes the variables that describe the build of xtask itself.
pub(crate) fn forget_own_build(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        if OWN_PREFIXES.iter().any(|prefix| key.to_string_lossy().starts_with(prefix)) {
            command.env_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_reads_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["test", "--", "a b", "it's"]).env("RUNNER", "sudo -E").env_remove("GONE");
        assert_eq!(line(&command), "RUNNER='sudo -E' cargo test -- 'a b' 'it'\\''s'");
    }

    #[test]
    fn failure_names_command_and_status() {
        let message = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(message, "`sh -c 'exit 3'` failed: exit status 3");
        let message = run(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap_err();
        assert!(message.ends_with("killed by signal 9"), "{message}");
        assert!(run(&mut Command::new("no-such-program-here")).unwrap_err().starts_with("cannot start"));
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }
}
