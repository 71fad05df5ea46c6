//! `cargo xtask tidy`: rules about the structure that neither rustc nor clippy checks.
//!
//! It reads source text, not syntax trees: [`source`] tells code from comments and strings, which is enough for every rule here and keeps
//! the checker free of dependencies. A rule that needs types belongs to clippy.
//!
//! | module | rule |
//! |---|---|
//! | [`arrows`] | which crate and which module may use which |
//! | [`fence`] | where unsafe code may stand, and that each piece says why it is sound |
//! | [`words`] | leftovers, waiting by the clock, files that hold two ideas, paths of private machines |
//! | [`dependencies`] | every version once in the root manifest, every dependency with its reason in the docs |
//! | [`drops`] | the page of drop reasons is the registry |

mod arrows;
mod dependencies;
mod drops;
mod fence;
mod manifest;
mod source;
mod words;

use std::fmt;
use std::fs;
use std::process::ExitCode;

use self::manifest::Manifest;
use self::source::Source;
use crate::workspace::Workspace;

/// One violation.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    /// Counted from 1.
    line: usize,
    rule: &'static str,
    /// What to do about it.
    remedy: String,
}

impl Finding {
    fn new(file: &str, line: usize, rule: &'static str, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.rule, self.remedy)
    }
}

/// The task: rewrites generated pages when asked, then checks.
pub(crate) fn run(workspace: &Workspace, write: bool) -> Result<ExitCode, String> {
    if write {
        let registry = read(workspace, drops::REGISTRY)?;
        let page = drops::page(&registry).map_err(|finding| finding.to_string())?;
        let path = workspace.root.join(drops::PAGE);
        fs::write(&path, page).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        println!("wrote {}", drops::PAGE);
    }
    check(workspace).map(|()| ExitCode::SUCCESS)
}

/// Checks everything and prints each finding as `file:line: rule: what to do`.
pub(crate) fn check(workspace: &Workspace) -> Result<(), String> {
    let mut findings = Vec::new();
    let mut manifests = Vec::new();
    let (mut files, mut lines) = (0, 0);
    for path in workspace.files()? {
        let Some(name) = path.to_str() else {
            return Err(format!("{}: a file name that is not UTF-8", path.display()));
        };
        let bytes = fs::read(workspace.root.join(&path)).map_err(|e| format!("cannot read {name}: {e}"))?;
        // Objects and captures are looked through too: a path inside them is still text.
        let text = String::from_utf8_lossy(&bytes);
        words::private_paths(name, &text, &mut findings);
        if name.ends_with(".rs") {
            let source = Source::parse(name, &text);
            arrows::modules(&source, &mut findings);
            fence::check(&source, &mut findings);
            words::check(&source, &mut findings);
            files += 1;
            lines += source.lines.len();
        } else if name.ends_with("Cargo.toml") {
            manifests.push(Manifest::parse(name, &text));
        }
    }
    arrows::crates(&manifests, &mut findings);
    dependencies::check(&manifests, &read(workspace, dependencies::PAGE)?, &mut findings);
    let page = fs::read_to_string(workspace.root.join(drops::PAGE)).unwrap_or_default();
    drops::check(&read(workspace, drops::REGISTRY)?, &page, &mut findings);

    if findings.is_empty() {
        println!("tidy: {files} source files, {lines} lines, nothing to say");
        return Ok(());
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    Err(format!("tidy: {} findings", findings.len()))
}

fn read(workspace: &Workspace, name: &str) -> Result<String, String> {
    fs::read_to_string(workspace.root.join(name)).map_err(|e| format!("cannot read {name}: {e}"))
}

/// Runs one rule over a snippet and hands over the lines that it complains about.
#[cfg(test)]
fn lines_found(rule: fn(&Source, &mut Vec<Finding>), path: &str, text: &str) -> Vec<usize> {
    let mut findings = Vec::new();
    rule(&Source::parse(path, text), &mut findings);
    findings.iter().map(|finding| finding.line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_is_one_line_that_editors_can_follow() {
        let finding = Finding::new("a/b.rs", 7, "fence", "move it");
        assert_eq!(finding.to_string(), "a/b.rs:7: fence: move it");
    }
}
