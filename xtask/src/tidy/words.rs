//! Leftovers and habits: notes to self, waiting by the clock, files that hold two ideas, paths of private machines.

use super::Finding;
use super::source::Source;

/// Most lines of one source file.
const FILE_LINES_MAX: usize = 800;
/// Notes that belong into an issue.
const NOTES: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];
/// Macros that stand for code that is not there.
const STUBS: [&str; 2] = ["todo", "unimplemented"];
/// Calls that wait by the clock.
const SLEEPS: [&str; 4] = ["sleep", "sleep_until", "usleep", "nanosleep"];
/// Beginnings of paths that exist on somebody's machine only. In pieces, so that this list does not find itself.
const PRIVATE: [&str; 5] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/mnt/", "c/"),
    concat!("C:\\", "Users\\"),
];

/// Checks one source file.
pub(crate) fn check(source: &Source, findings: &mut Vec<Finding>) {
    let mut complain = |line, rule, remedy: String| findings.push(Finding::new(&source.path, line, rule, remedy));
    if source.lines.len() > FILE_LINES_MAX {
        let remedy =
            format!("{} lines, at most {FILE_LINES_MAX}: give the second idea its own file", source.lines.len());
        complain(FILE_LINES_MAX + 1, "length", remedy);
    }
    for (i, line) in source.lines.iter().enumerate() {
        for text in [&line.code, &line.comment] {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            if let Some(note) = words.find(|word| NOTES.contains(word)) {
                complain(i + 1, "notes", format!("{note}: do it now, or say in an issue what is missing"));
            }
        }
    }
    for pair in source.tokens().windows(2) {
        let (word, sign, line) = (pair[0].text, pair[1].text, pair[0].line);
        if sign == "!" && STUBS.contains(&word) {
            complain(line, "stubs", format!("{word}!: write the code or leave the function out"));
        }
        if sign == "(" && SLEEPS.contains(&word) && !source.is_test(line) && !source.path.starts_with("bench/") {
            complain(line, "sleep", "wait for the event or arm a timer; intervals follow what is measured".into());
        }
    }
}

/// Looks for paths of private machines in any file.
pub(crate) fn private_paths(path: &str, text: &str, findings: &mut Vec<Finding>) {
    for (i, line) in text.lines().enumerate() {
        if let Some(private) = PRIVATE.iter().find(|private| names_private(line, private)) {
            let remedy =
                format!("a path below {private} exists on one machine only: write it relative, or with a variable");
            findings.push(Finding::new(path, i + 1, "private path", remedy));
        }
    }
}

/// Whether the line has this beginning of a path as the beginning, not in the middle of a longer path or an address.
fn names_private(line: &str, private: &str) -> bool {
    line.match_indices(private).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + private.len()..].chars().next();
        !before.is_some_and(|c| c.is_alphanumeric() || "-_.~".contains(c))
            && after.is_some_and(|c| c.is_alphanumeric() || c == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::super::lines_found;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        lines_found(check, path, text)
    }

    fn private(line: &str) -> bool {
        let mut findings = Vec::new();
        private_paths("x.md", line, &mut findings);
        !findings.is_empty()
    }

    #[test]
    fn files_end_at_the_limit() {
        assert!(found("a.rs", &"x\n".repeat(FILE_LINES_MAX)).is_empty());
        assert_eq!(found("a.rs", &"x\n".repeat(FILE_LINES_MAX + 1)), [FILE_LINES_MAX + 1]);
    }

    #[test]
    fn notes_and_stubs_are_found() {
        assert_eq!(found("a.rs", &format!("a();\n// {}: later", NOTES[0])), [2]);
        assert_eq!(found("a.rs", &format!("/* {} */ a();", NOTES[2])), [1]);
        assert_eq!(found("a.rs", &format!("fn a() {{ {}!() }}", STUBS[0])), [1]);
        assert!(found("a.rs", "let s = \"TODO\"; // a todo list, XXXX, HACKED\nlet todo = 1;").is_empty());
    }

    #[test]
    fn sleeping_is_for_tests_and_the_bench() {
        let text = "std::thread::sleep(d);";
        assert_eq!(found("dataplane/src/worker.rs", text), [1]);
        assert!(found("bench/src/demo.rs", text).is_empty());
        assert!(found("dataplane/tests/plane.rs", text).is_empty());
        assert!(found("dataplane/src/worker.rs", "let asleep = sleep;").is_empty());
    }

    #[test]
    fn private_paths_are_found() {
        assert!(private(&format!("see {}ann/weir", PRIVATE[0])));
        assert!(private(&format!("`{}.cargo/bin`", PRIVATE[1])));
        assert!(!private(&format!("https://example.org{}page", PRIVATE[0])));
        assert!(!private("target/debug, ~/.cargo, $HOME/x, /usr/lib, /etc/weir"));
    }
}
