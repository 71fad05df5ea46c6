//! Passphrases: from a file or from the terminal, erased when they are dropped.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

/// Shortest passphrase in characters. What guards a root is guessed off line, at some thousand guesses a second and core under scrypt.
pub(super) const LEN_MIN: usize = 12;
/// Longest file that is read.
const FILE_LEN_MAX: u64 = 4096;

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassphraseError {
    #[error("{0}: {1}: check the path of the passphrase file")]
    File(String, io::Error),
    #[error("{0} may be read by others: chmod 600 it, and think of who has read it so far")]
    Open(String),
    #[error("{0} is no passphrase file: its first line, of at most {FILE_LEN_MAX} bytes, is the passphrase")]
    Content(String),
    #[error("a passphrase of {0} characters is too short: use {LEN_MIN} at least, as four words of a dictionary")]
    Short(usize),
    #[error("the two passphrases differ: try again")]
    Differ,
    #[error("no terminal to ask for a passphrase ({0}): name a file with the option for it")]
    Terminal(io::Error),
}

/// A passphrase of an existing file: asked for once.
pub(super) fn known(what: &str, file: Option<&Path>) -> Result<Zeroizing<String>, PassphraseError> {
    match file {
        Some(file) => from_file(file),
        None => ask(&format!("Passphrase of {what}: ")),
    }
}

/// A passphrase for something new: asked for twice, not too short.
pub(super) fn new(what: &str, file: Option<&Path>) -> Result<Zeroizing<String>, PassphraseError> {
    let passphrase = match file {
        Some(file) => from_file(file)?,
        None => {
            let first = ask(&format!("New passphrase of {what}: "))?;
            let second = ask("The same again: ")?;
            if *first != *second {
                return Err(PassphraseError::Differ);
            }
            first
        }
    };
    let len = passphrase.chars().count();
    if len < LEN_MIN { Err(PassphraseError::Short(len)) } else { Ok(passphrase) }
}

fn ask(prompt: &str) -> Result<Zeroizing<String>, PassphraseError> {
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(PassphraseError::Terminal)
}

fn from_file(file: &Path) -> Result<Zeroizing<String>, PassphraseError> {
    let name = || file.display().to_string();
    let metadata = fs::metadata(file).map_err(|error| PassphraseError::File(name(), error))?;
    // A pipe, as a shell's `<(…)`, is nobody else's.
    if metadata.is_file() {
        if metadata.mode() & 0o077 != 0 {
            return Err(PassphraseError::Open(name()));
        }
        if metadata.len() > FILE_LEN_MAX {
            return Err(PassphraseError::Content(name()));
        }
    }
    // With room for all of it, so that no shorter copy is left behind, and one byte more to tell what is too long.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX as usize + 1));
    let read = fs::File::open(file).and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes));
    let read = read.map_err(|error| PassphraseError::File(name(), error))?;
    let text = std::str::from_utf8(&bytes).ok().filter(|_| read as u64 <= FILE_LEN_MAX);
    match text.and_then(|text| text.lines().next()) {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(PassphraseError::Content(name())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_gives_its_first_line_and_is_nobody_elses() {
        let path = std::env::temp_dir().join(format!("weir-passphrase-{}", std::process::id()));
        let with = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = new("it", Some(&path)).map(|passphrase| passphrase.to_string());
            fs::remove_file(&path).unwrap();
            read.map_err(|error| error.to_string())
        };
        assert_eq!(with("correct horse\nsecond line\n", 0o600).unwrap(), "correct horse");
        assert_eq!(with(&"p".repeat(12), 0o400).unwrap(), "p".repeat(12));
        assert!(with(&"p".repeat(11), 0o600).unwrap_err().contains("too short"));
        assert!(with("correct horse", 0o640).unwrap_err().contains("chmod 600"));
        assert!(with("\nsecond", 0o600).unwrap_err().contains("is no passphrase file"));
        assert!(with(&"p".repeat(4097), 0o600).unwrap_err().contains("is no passphrase file"));
        assert!(new("it", Some(&path)).unwrap_err().to_string().contains("check the path"));
        // It has no length to look at beforehand, and no end.
        let endless = new("it", Some(Path::new("/dev/zero"))).unwrap_err().to_string();
        assert!(endless.contains("at most 4096 bytes"), "{endless}");
    }
}
