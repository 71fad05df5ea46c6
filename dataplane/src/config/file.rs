//! How a configuration file is read: what is the same in every program of Weir.
//!
//! ```text
//!  file ──▶ load: bounded, UTF-8, TOML ──▶ Section: keys and types ──▶ value: what a text may say ──▶ the program's own rules
//!                                 every error: FILE:LINE:COLUMN: what: remedy
//! ```
//!
//! This part does not know which keys there are. It is one of the two that the control plane uses of this crate, so that a limit or a
//! word of advice is written once.

pub mod section;
pub mod value;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use section::{Located, Problem};

/// Longest file in bytes: a thousand times what anybody writes.
pub const FILE_LEN_MAX: u64 = 1 << 20;

/// A line and a column of the file, both counted from one; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// Why there is no configuration: one line, `FILE:LINE:COLUMN: what: remedy`.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, when it is about a place.
    pub position: Option<Position>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.problem)
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

/// Reads a file of at most [`FILE_LEN_MAX`] bytes, and hands document and text to `read`.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read, is no TOML, or says something that `read` refuses.
pub fn load<T>(file: &Path, read: impl FnOnce(&DeTable<'_>, &str) -> Result<T, Located>) -> Result<T, ConfigError> {
    let whole = |problem| ConfigError { file: file.into(), position: None, problem };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| whole(Problem::Unreadable(error)))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(whole(Problem::TooLong { limit: FILE_LEN_MAX }));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(file, text, read),
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let position = Some(position(&valid, valid.len()));
            let problem = Problem::Syntax("a byte that is not UTF-8: save the file as UTF-8".into());
            Err(ConfigError { file: file.into(), position, problem })
        }
    }
}

/// Reads a text; `file` is for errors only.
///
/// # Errors
/// [`ConfigError`] when the text is no TOML or says something that `read` refuses.
pub fn parse<T>(
    file: &Path,
    text: &str,
    read: impl FnOnce(&DeTable<'_>, &str) -> Result<T, Located>,
) -> Result<T, ConfigError> {
    DeTable::parse(text)
        .map_err(|error| {
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            Located { span: error.span(), problem: Problem::Syntax(message) }
        })
        .and_then(|document| read(document.get_ref(), text))
        .map_err(|Located { span, problem }| ConfigError {
            file: file.into(),
            position: span.map(|span| position(text, span.start)),
            problem,
        })
}

fn position(text: &str, at: usize) -> Position {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}
