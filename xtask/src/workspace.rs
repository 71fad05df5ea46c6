//! Where things are: the checkout, its target directory, its source files.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold no source of ours.
const SKIPPED_DIRS: [&str; 5] = ["target", ".git", "reports", "corpus", "artifacts"];

/// One checkout.
pub(crate) struct Workspace {
    /// The directory of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The checkout that this program was built from.
    pub(crate) fn locate() -> Self {
        // `cargo run` sets the variable; a binary that was copied elsewhere still knows where it came from.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let manifest = PathBuf::from(manifest);
        let root = manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf);
        // cargo marks its target directory; this finds it however it was configured.
        let target = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf))
            .unwrap_or_else(|| root.join("target"));
        Self { root, target }
    }

    /// All files of the checkout, sorted, with their path relative to the root. Build output is left out.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, String> {
        let mut found = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(dir) = pending.pop() {
            let absolute = self.root.join(&dir);
            let entries = fs::read_dir(&absolute).map_err(|e| format!("cannot list {}: {e}", absolute.display()))?;
            for entry in entries {
                let entry = entry.map_err(|e| format!("cannot list {}: {e}", absolute.display()))?;
                let kind = entry.file_type().map_err(|e| format!("cannot look at {}: {e}", entry.path().display()))?;
                let path = dir.join(entry.file_name());
                if kind.is_dir() {
                    if !SKIPPED_DIRS.iter().any(|skipped| entry.file_name() == *skipped) {
                        pending.push(path);
                    }
                } else if kind.is_file() && entry.file_name() != ".git" {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_and_without_build_output() {
        let files = Workspace::locate().files().unwrap();
        assert!(files.contains(&PathBuf::from("Cargo.toml")));
        assert!(files.contains(&PathBuf::from("xtask/src/workspace.rs")));
        assert!(files.is_sorted());
        assert!(!files.iter().any(|file| file.starts_with("target") || file.starts_with(".git")));
    }
}
