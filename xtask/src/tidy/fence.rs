//! Where unsafe code may stand, and that each piece of it says why it is sound.
//!
//! The compiler's lint denies unsafe code by default; a file reopens it with an `allow`. This rule says which files may. It also looks at
//! the eBPF programs, which clippy never sees because they do not compile for the host.

use super::Finding;
use super::source::{Source, Token};

const RULE: &str = "fence";
const PLACES: &str =
    "ebpf/src, ebpf/abi/src/cursor.rs, dataplane/src/engine/offload/checksum.rs, dataplane/src/io/ and bench/src/sys";

/// Whether unsafe code may stand in this file.
fn is_inside(path: &str) -> bool {
    path == "ebpf/abi/src/cursor.rs"
        // A counting allocator cannot be written without it.
        || path == "dataplane/tests/no_alloc.rs"
        // Vector instructions that the baseline lacks: docs/decisions/0006-checksum-by-vectors.md.
        || path == "dataplane/src/engine/offload/checksum.rs"
        || path.starts_with("ebpf/src/")
        || path.starts_with("dataplane/src/io/")
        || path == "bench/src/sys.rs"
        || path.starts_with("bench/src/sys/")
}

/// Checks one file.
pub(crate) fn check(source: &Source, findings: &mut Vec<Finding>) {
    let mut complain = |line, remedy: String| findings.push(Finding::new(&source.path, line, RULE, remedy));
    let inside = is_inside(&source.path);
    let tokens = source.tokens();
    for (i, token) in tokens.iter().enumerate() {
        let next = tokens.get(i + 1).map(|next| next.text);
        if token.text == "unsafe" && !inside {
            complain(token.line, format!("unsafe code belongs to {PLACES}: use or add a safe function there"));
        } else if token.text == "unsafe" && matches!(next, Some("{" | "impl")) && !has_reason(source, token.line) {
            complain(token.line, "say in a `// SAFETY:` sentence above which invariant holds and who keeps it".into());
        } else if token.text == "unsafe_code" && !inside && is_reopened(&tokens[..i]) {
            complain(token.line, format!("the unsafe_code lint is reopened only in {PLACES}"));
        }
    }
}

/// Whether the tokens before a lint's name are the opening of an `allow`, `expect` or `warn`.
fn is_reopened(before: &[Token<'_>]) -> bool {
    let mut back = before.iter().rev().skip_while(|token| token.text != "(");
    back.next();
    back.next().is_some_and(|level| matches!(level.text, "allow" | "expect" | "warn"))
}

/// Whether a comment with the reason stands on the line, or above the statement that the line is part of.
fn has_reason(source: &Source, line: usize) -> bool {
    let says_why = |i: usize| source.lines[i].comment.trim_start().starts_with("SAFETY:");
    let at = line - 1;
    if says_why(at) {
        return true;
    }
    for i in (0..at).rev() {
        let code = source.lines[i].code.trim();
        if code.is_empty() {
            if says_why(i) {
                return true;
            }
            if source.lines[i].comment.is_empty() {
                return false;
            }
        } else if !code.starts_with("#[") && code.ends_with([';', '{', '}', ',']) {
            // The end of another statement.
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::lines_found;
    use super::*;

    const IO: &str = "dataplane/src/io/ring.rs";

    fn found(path: &str, text: &str) -> Vec<usize> {
        lines_found(check, path, text)
    }

    #[test]
    fn unsafe_outside_the_fence_is_found() {
        let text = "// SAFETY: fine.\nunsafe { f() }";
        for path in [
            "dataplane/src/engine/lane.rs",
            "dataplane/src/engine/offload/segment.rs",
            "ebpf/abi/src/wire.rs",
            "controlplane/src/main.rs",
            "bench/src/system.rs",
        ] {
            assert_eq!(found(path, text), [2], "{path}");
        }
        for path in [
            IO,
            "dataplane/src/engine/offload/checksum.rs",
            "ebpf/src/main.rs",
            "ebpf/abi/src/cursor.rs",
            "bench/src/sys.rs",
            "bench/src/sys/xsk.rs",
        ] {
            assert!(found(path, text).is_empty(), "{path}");
        }
        assert!(found("dataplane/src/engine/lane.rs", "// unsafe\nf(\"unsafe\"); let not_unsafe = 1;").is_empty());
    }

    #[test]
    fn lint_is_reopened_inside_the_fence_only() {
        let allow = "#![allow(unsafe_code, reason = \"syscalls\")]";
        assert!(found(IO, allow).is_empty());
        assert_eq!(found("dataplane/src/engine/lane.rs", allow), [1]);
        assert_eq!(found("dataplane/src/engine/lane.rs", "#[expect(missing_docs, unsafe_code)]"), [1]);
        assert!(found("dataplane/src/engine/lane.rs", "#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn unsafe_without_reason_is_found() {
        assert_eq!(found(IO, "fn f() {\n    unsafe { g() }\n}"), [2]);
        assert_eq!(found(IO, "unsafe impl Send for X {}"), [1]);
        assert_eq!(found(IO, "// It works.\nunsafe { g() }"), [2]);
        assert_eq!(found(IO, "// SAFETY: for the first.\nlet a = unsafe { g() };\nlet b = unsafe { g() };"), [3]);
        assert_eq!(found(IO, "// SAFETY: far away.\n\nlet a = unsafe { g() };"), [3]);
    }

    #[test]
    fn reason_stands_on_the_line_or_above_the_statement() {
        assert!(
            found(IO, "// SAFETY: g keeps it,\n// as its doc says.\n#[inline]\nunsafe impl Send for X {}").is_empty()
        );
        assert!(found(IO, "// SAFETY: as above.\nlet a =\n    unsafe { g() };").is_empty());
        assert!(found(IO, "unsafe { g() } // SAFETY: right here.").is_empty());
    }
}
