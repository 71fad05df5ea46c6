//! Rust source as lines of code and comment.
//!
//! A small scanner that knows comments (nested ones too), strings (raw, byte, C), character literals and lifetimes. What is inside a
//! string or comment never looks like code to a rule. It knows nothing of syntax beyond that, except two things that rules ask for: which
//! lines are test code, and which paths a piece of code names, with `use a::{b, c::d}` taken apart.

/// One line, split.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The code, with comments and the contents of strings left out.
    pub(crate) code: String,
    /// The text of comments.
    pub(crate) comment: String,
    /// Whether it belongs to an item under `#[cfg(test)]` or to a test file.
    pub(crate) test: bool,
}

/// A source file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its path from the root of the checkout, with `/`.
    pub(crate) path: String,
    /// Its lines.
    pub(crate) lines: Vec<Line>,
}

/// A word or sign of code, with its line counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// An identifier, a number, `::`, or one character.
    pub(crate) text: &'a str,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// A path that code names, such as `std::time::Instant`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    /// Its parts.
    pub(crate) parts: Vec<&'a str>,
    /// The line of its last part.
    pub(crate) line: usize,
}

impl Path<'_> {
    /// Whether the path is `prefix` or something inside it.
    pub(crate) fn is_within(&self, prefix: &str) -> bool {
        let mut parts = self.parts.iter();
        prefix.split("::").all(|part| parts.next() == Some(&part))
    }
}

enum State {
    Code,
    LineComment,
    BlockComment { depth: usize },
    Text,
    RawText { hashes: usize },
}

impl Source {
    /// Splits a file.
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let mut source = Self { path: path.to_owned(), lines: split(text) };
        source.mark_tests();
        source
    }

    /// Words and signs of all code lines.
    pub(crate) fn tokens(&self) -> Vec<Token<'_>> {
        let mut tokens = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let mut rest = line.code.as_str();
            while let Some(first) = rest.chars().next() {
                let len = if is_word(first) {
                    rest.find(|c| !is_word(c)).unwrap_or(rest.len())
                } else if rest.starts_with("::") {
                    2
                } else {
                    first.len_utf8()
                };
                let (text, after) = rest.split_at(len);
                if !first.is_whitespace() {
                    tokens.push(Token { text, line: i + 1 });
                }
                rest = after;
            }
        }
        tokens
    }

    /// Every path that code names; single names too.
    pub(crate) fn paths(&self) -> Vec<Path<'_>> {
        let tokens = self.tokens();
        let mut paths = Vec::new();
        let mut i = 0;
        while i < tokens.len() {
            // A word after `::` that we did not come through is a method of something in brackets: no path of its own.
            let continues =
                i >= 2 && tokens[i - 1].text == "::" && (is_name(tokens[i - 2].text) || tokens[i - 2].text == ">");
            if is_name(tokens[i].text) && !continues {
                i = path_tree(&tokens, i, &[], &mut paths);
            } else {
                i += 1;
            }
        }
        paths
    }

    /// Whether the line, counted from 1, is test code.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.lines.get(line - 1).is_some_and(|line| line.test)
    }

    fn mark_tests(&mut self) {
        // Files of their own, by name: whole folders of tests, and `lane_tests.rs` beside `lane.rs`.
        let whole = self.path.ends_with("tests.rs")
            || self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "fuzz_targets"));
        // Inside an item under `#[cfg(test)]`: the braces open so far, `None` before the first.
        let mut item: Option<Option<usize>> = None;
        for line in &mut self.lines {
            if item.is_none() && (line.code.contains("#[cfg(test)]") || line.code.contains("#[cfg(all(test")) {
                item = Some(None);
            }
            line.test = whole || item.is_some();
            for c in line.code.chars() {
                item = match (item, c) {
                    (Some(depth), '{') => Some(Some(depth.unwrap_or(0) + 1)),
                    (Some(Some(1)), '}') | (Some(None), ';') => None,
                    (Some(Some(depth)), '}') => Some(Some(depth - 1)),
                    (other, _) => other,
                };
            }
        }
    }
}

/// Reads one path from `start` on, with all its branches; answers where to go on.
fn path_tree<'a>(tokens: &[Token<'a>], start: usize, prefix: &[&'a str], paths: &mut Vec<Path<'a>>) -> usize {
    let text = |i: usize| tokens.get(i).map(|token| token.text);
    let mut parts = prefix.to_vec();
    let mut i = start;
    loop {
        parts.push(tokens[i].text);
        if text(i + 1) != Some("::") {
            break;
        }
        match text(i + 2) {
            Some(next) if is_name(next) || next == "*" => i += 2,
            Some("{") => {
                i += 3;
                while let Some(next) = text(i) {
                    match next {
                        "}" => return i + 1,
                        name if is_name(name) || name == "*" => i = path_tree(tokens, i, &parts, paths),
                        // Commas, and `as` is a name whose path nobody asks for.
                        _ => i += 1,
                    }
                }
                return i;
            }
            _ => break,
        }
    }
    paths.push(Path { parts, line: tokens[i].line });
    i + 1
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn split(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut i = 0;
    while let Some(c) = at(i) {
        if c == '\n' {
            lines.push(Line::default());
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            i += 1;
            continue;
        }
        let last = lines.len() - 1;
        let line = &mut lines[last];
        match state {
            State::Code => {
                let word_before = i > 0 && at(i - 1).is_some_and(is_word);
                if c == '/' && at(i + 1) == Some('/') {
                    state = State::LineComment;
                    i += 2;
                } else if c == '/' && at(i + 1) == Some('*') {
                    state = State::BlockComment { depth: 1 };
                    i += 2;
                } else if let Some((hashes, len)) = raw_text_start(&chars, i).filter(|_| !word_before) {
                    line.code.push('"');
                    state = State::RawText { hashes };
                    i += len;
                } else if c == '"' {
                    line.code.push('"');
                    state = State::Text;
                    i += 1;
                } else if c == '\'' {
                    line.code.push('\'');
                    i += character_len(&chars, i);
                } else {
                    line.code.push(c);
                    i += 1;
                }
            }
            State::LineComment => {
                line.comment.push(c);
                i += 1;
            }
            State::BlockComment { depth } => {
                let step = match (c, at(i + 1)) {
                    ('/', Some('*')) => Some(depth + 1),
                    ('*', Some('/')) => Some(depth - 1),
                    _ => None,
                };
                match step {
                    Some(0) => state = State::Code,
                    Some(depth) => state = State::BlockComment { depth },
                    None => line.comment.push(c),
                }
                i += if step.is_some() { 2 } else { 1 };
            }
            State::Text => {
                if c == '"' {
                    line.code.push('"');
                    state = State::Code;
                }
                // An escaped line end still begins a new line.
                i += if c == '\\' && at(i + 1) != Some('\n') { 2 } else { 1 };
            }
            State::RawText { hashes } => {
                if c == '"' && (1..=hashes).all(|n| at(i + n) == Some('#')) {
                    line.code.push('"');
                    state = State::Code;
                    i += hashes;
                }
                i += 1;
            }
        }
    }
    if text.ends_with('\n') {
        lines.pop();
    }
    lines
}

/// The number of `#` and the length of the opening of a raw string at `i`, if one begins there.
fn raw_text_start(chars: &[char], i: usize) -> Option<(usize, usize)> {
    let prefix = match (chars.get(i)?, chars.get(i + 1)) {
        ('r', _) => 1,
        ('b' | 'c', Some('r')) => 2,
        _ => return None,
    };
    let hashes = chars[i + prefix..].iter().take_while(|c| **c == '#').count();
    (chars.get(i + prefix + hashes) == Some(&'"')).then_some((hashes, prefix + hashes + 1))
}

/// How far to go on from a `'`: over a character literal, or over the sign alone when it begins a lifetime.
fn character_len(chars: &[char], i: usize) -> usize {
    match (chars.get(i + 1), chars.get(i + 2)) {
        (Some('\\'), _) => {
            let rest = chars.get(i + 3..).unwrap_or_default();
            rest.iter().position(|c| *c == '\'').map_or(1, |end| end + 4)
        }
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        split(text).into_iter().map(|line| line.code.trim_end().to_owned()).collect()
    }

    fn paths(text: &str) -> Vec<String> {
        Source::parse("x.rs", text).paths().iter().map(|path| path.parts.join("::")).collect()
    }

    #[test]
    fn comments_are_not_code() {
        assert_eq!(code("a // b\nc /* d /* e */ f\n g */ h\n"), ["a", "c", " h"]);
        assert_eq!(split("a // b\n")[0].comment, " b");
    }

    #[test]
    fn strings_are_not_code() {
        assert_eq!(code(r#"f("unsafe \" {", b"x // y"); // z"#), [r#"f("", b"");"#]);
        assert_eq!(code("f(r#\"a\"b\nunsafe\"#); g(br\"\\\"); h(c\"x\")"), ["f(\"", "\"); g(\"\"); h(c\"\")"]);
        assert_eq!(code("f(\"a \\\n  unsafe\") + 1"), ["f(\"", "\") + 1"]);
    }

    #[test]
    fn quotes_and_lifetimes_are_told_apart() {
        assert_eq!(
            code(r"f('{', '\'', '\u{7b}', b'/'); fn g<'a>(x: &'a str) {}"),
            ["f(', ', ', b'); fn g<'a>(x: &'a str) {}"]
        );
        assert_eq!(code("let r#type = 1;"), ["let r#type = 1;"]);
    }

    #[test]
    fn test_code_ends_with_its_item() {
        let source =
            Source::parse("a/src/x.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { c(); }\n}\nfn d() {}\n");
        assert_eq!(
            source.lines.iter().map(|line| line.test).collect::<Vec<_>>(),
            [false, true, true, true, true, false]
        );
        let source = Source::parse("a/src/x.rs", "#[cfg(test)]\nmod tests;\nfn d() {}\n");
        assert_eq!(source.lines.iter().map(|line| line.test).collect::<Vec<_>>(), [true, true, false]);
        assert!(Source::parse("a/tests/x.rs", "fn a() {}").is_test(1));
        assert!(Source::parse("a/src/x_tests.rs", "fn a() {}").is_test(1));
        assert!(!Source::parse("a/src/contest.rs", "fn a() {}").is_test(1));
    }

    #[test]
    fn grouped_imports_are_taken_apart() {
        assert_eq!(
            paths("use std::{fs, net::{IpAddr, UdpSocket as U}, time::*};"),
            [
                "use",
                "std::fs",
                "std::net::IpAddr",
                "std::net::UdpSocket",
                "std::net::as",
                "std::net::U",
                "std::time::*"
            ]
        );
        assert_eq!(paths("x(std::env::var::<A>(b));"), ["x", "std::env::var", "A", "b"]);
        assert_eq!(paths("<T as a::B>::c(::std::fs::read)"), ["T", "as", "a::B", "std::fs::read"]);
    }

    #[test]
    fn path_prefix_is_compared_by_parts() {
        let source = Source::parse("x.rs", "std::thread_local");
        assert!(!source.paths()[0].is_within("std::thread"));
        assert!(source.paths()[0].is_within("std"));
    }
}
