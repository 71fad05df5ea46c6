//! From TOML to a [`Document`]: which keys there are and what each may say.
//!
//! ```toml
//! default = "deny"
//!
//! [[rule]]
//! name = "web"
//! from = ["group:edge", "node:site-a", "prefix:10.7.0.0/16"]
//! to = ["group:servers"]          # or ["any"]
//! proto = "tcp"                   # any (the default), tcp, udp, icmp, or a number
//! ports = [443, "8000-8100"]      # destination ports of tcp and udp; all of them when left out
//! action = "allow"                # the default
//!
//! [[message]]                     # of applications, by `weir send`; the same default
//! name = "reports"
//! from = ["group:edge"]           # no prefixes: a message comes from a member
//! to = ["node:collector"]
//! topic = "report/*"              # one topic, or all that begin alike; all of them when left out
//! ```

use std::collections::HashSet;
use std::fmt;

use toml::{Table, Value};
use weir_dataplane::api::policy::{PortRange, Protocol};

use super::{
    Action, DOCUMENT_LEN_MAX, Document, MessageRule, NAME_LEN_MAX, PORTS_MAX, RULES_MAX, Rule, TERMS_MAX, Term, list,
};
use crate::mail::wire::TopicPattern;

/// Keys of a rule.
const RULE_KEYS: &[&str] = &["name", "from", "to", "proto", "ports", "action"];
/// Keys of a rule about messages.
const MESSAGE_KEYS: &[&str] = &["name", "from", "to", "topic", "action"];
/// Keys of a document.
const DOCUMENT_KEYS: &[&str] = &["default", "rule", "message"];
/// Longest key or word that is compared with the known ones: the comparison takes time with the product of the lengths.
const COMPARED_LEN_MAX: usize = 64;
/// Bytes of a document's own words that an error repeats.
const QUOTED_LEN_MAX: usize = 64;

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Longer than [`DOCUMENT_LEN_MAX`].
    #[error("the document has {0} bytes; at most {DOCUMENT_LEN_MAX} are read")]
    TooLong(usize),
    /// Not TOML; the library says what and where.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that means nothing here.
    #[error("unknown key `{key}`: {}", suggestion(.nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key that it resembles.
        nearest: Option<String>,
    },
    /// A key that has to be there.
    #[error("`{key}` is missing: write {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// For example.
        remedy: &'static str,
    },
    /// A value that cannot be; the text ends with the remedy.
    #[error("`{key}`: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what to do.
        why: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| "remove it".to_owned(), |nearest| format!("did you mean `{nearest}`?"))
}

/// What is wrong, and with which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The rule's number, counted from one, and its name if it has one. `None` for the document as a whole.
    pub rule: Option<(usize, Option<String>)>,
    /// The rule is one about messages.
    pub is_message: bool,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_message { "message rule" } else { "rule" };
        match &self.rule {
            Some((number, Some(name))) => write!(f, "{kind} {number} ({name:?}): {}", self.problem),
            Some((number, None)) => write!(f, "{kind} {number}: {}", self.problem),
            None => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for ParseError {}

/// Reads a document.
///
/// # Errors
/// [`ParseError`].
pub fn parse(text: &str) -> Result<Document, ParseError> {
    let whole = |problem| ParseError { rule: None, is_message: false, problem };
    if text.len() > DOCUMENT_LEN_MAX {
        return Err(whole(Problem::TooLong(text.len())));
    }
    let table: Table = text.parse().map_err(|error: toml::de::Error| whole(Problem::Syntax(error.to_string())))?;
    known(&table, DOCUMENT_KEYS).map_err(whole)?;
    let default = match table.get("default") {
        None => Err(Problem::Missing { key: "default", remedy: "default = \"deny\"" }),
        Some(value) => word(value, "default", &["deny", "allow"]),
    };
    let default = action(default.map_err(whole)?);
    let rules = items(&table, "rule", rule, |rule: &Rule| &rule.name)?;
    let messages = items(&table, "message", message_rule, |rule: &MessageRule| &rule.name)?;
    Ok(Document { default, rules, messages })
}

/// The rules of one kind.
fn items<T>(
    table: &Table,
    key: &'static str,
    read: impl Fn(&Table) -> Result<T, Problem>,
    name_of: impl Fn(&T) -> &String,
) -> Result<Vec<T>, ParseError> {
    let is_message = key == "message";
    let whole = |problem| ParseError { rule: None, is_message, problem };
    let apart = || whole(wrong(key, format!("write each rule below a [[{key}]] of its own")));
    let items = match table.get(key) {
        None => &[][..],
        Some(Value::Array(items)) => items,
        Some(_) => return Err(apart()),
    };
    if items.len() > RULES_MAX {
        return Err(whole(wrong(key, format!("{} rules; at most {RULES_MAX} are read", items.len()))));
    }
    let mut rules: Vec<T> = Vec::with_capacity(items.len());
    let mut names = HashSet::new();
    for (number, item) in (1..).zip(items) {
        let name = item.get("name").and_then(Value::as_str).map(quoted);
        let named = |problem| ParseError { rule: Some((number, name.clone())), is_message, problem };
        let Value::Table(item) = item else { return Err(apart()) };
        let rule = read(item).map_err(named)?;
        if !names.insert(name_of(&rule).clone()) {
            return Err(named(wrong("name", "an earlier rule has this name: choose another")));
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn rule(table: &Table) -> Result<Rule, Problem> {
    known(table, RULE_KEYS)?;
    let name = name(table)?;
    let protocol = table.get("proto").map_or(Ok(Protocol::Any), protocol)?;
    let ports = table.get("ports").map_or(Ok(vec![]), ports)?;
    if !ports.is_empty() && !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        return Err(wrong("ports", "only tcp and udp have ports: write proto = \"tcp\" or proto = \"udp\""));
    }
    let action = verdict(table)?;
    Ok(Rule { name, from: side(table, "from")?, to: side(table, "to")?, protocol, ports, action })
}

fn message_rule(table: &Table) -> Result<MessageRule, Problem> {
    known(table, MESSAGE_KEYS)?;
    let name = name(table)?;
    let members = |key: &'static str| {
        let terms = side(table, key)?;
        match terms.iter().find(|term| matches!(term, Term::Prefix(_))) {
            None => Ok(terms),
            Some(prefix) => {
                let why = "messages go from member to member: write group:NAME, node:NAME or any";
                Err(wrong(key, format!("`{prefix}` is no member; {why}")))
            }
        }
    };
    let topic = match table.get("topic") {
        None => TopicPattern::any(),
        Some(value) => {
            let found = text(value, "topic")?;
            let why = |error| format!("{:?}: {error}, and perhaps a `*` at its end", quoted(found));
            found.parse().map_err(|error: crate::mail::wire::TopicError| wrong("topic", why(error)))?
        }
    };
    Ok(MessageRule { name, from: members("from")?, to: members("to")?, topic, action: verdict(table)? })
}

fn name(table: &Table) -> Result<String, Problem> {
    let name = match table.get("name") {
        None => {
            return Err(Problem::Missing { key: "name", remedy: "name = \"…\", by which it is shown and counted" });
        }
        Some(value) => text(value, "name")?,
    };
    let printable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(printable) {
        return Err(wrong("name", format!("1 to {NAME_LEN_MAX} letters, digits, `-`, `_` and `.` make a name")));
    }
    Ok(name.to_owned())
}

fn side(table: &Table, key: &'static str) -> Result<Vec<Term>, Problem> {
    match table.get(key) {
        None => Err(Problem::Missing { key, remedy: "for example [\"group:edge\"], or [\"any\"]" }),
        Some(value) => terms(value, key),
    }
}

fn verdict(table: &Table) -> Result<Action, Problem> {
    match table.get("action") {
        None => Ok(Action::Allow),
        Some(value) => Ok(action(word(value, "action", &["allow", "deny"])?)),
    }
}

fn terms(value: &Value, key: &'static str) -> Result<Vec<Term>, Problem> {
    let Value::Array(items) = value else {
        return Err(wrong(key, "write a list, for example [\"group:edge\"]"));
    };
    if items.is_empty() {
        return Err(wrong(key, "an empty list fits nothing: remove the rule, or write [\"any\"]"));
    }
    if items.len() > TERMS_MAX {
        return Err(wrong(key, format!("{} entries; at most {TERMS_MAX} are read", items.len())));
    }
    let mut terms = Vec::with_capacity(items.len());
    for item in items {
        let term = term(text(item, key)?).map_err(|why| wrong(key, why))?;
        if terms.contains(&term) {
            return Err(wrong(key, format!("`{term}` stands here twice: remove one")));
        }
        terms.push(term);
    }
    Ok(terms)
}

fn term(text: &str) -> Result<Term, String> {
    const KINDS: &[&str] = &["group", "node", "prefix"];
    if text == "any" {
        return Ok(Term::Any);
    }
    let Some((kind, name)) = text.split_once(':') else {
        let as_what = "group:NAME, node:NAME, prefix:ADDRESS/LENGTH or any";
        return Err(format!("{:?} says not what it is: write {as_what}", quoted(text)));
    };
    let is_name = !name.is_empty() && name.len() <= 253 && !name.chars().any(|c| c.is_whitespace() || c.is_control());
    match kind {
        "prefix" => name.parse().map(Term::Prefix).map_err(|error| format!("{:?} is {error}", quoted(name))),
        "group" | "node" if !is_name => Err(format!("{:?} is no name of a {kind}", quoted(name))),
        "group" => Ok(Term::Group(name.to_owned())),
        "node" => Ok(Term::Node(name.to_owned())),
        _ => Err(format!("{:?} is none of {}: {}", quoted(kind), list(KINDS), suggestion(nearest(kind, KINDS)))),
    }
}

fn protocol(value: &Value) -> Result<Protocol, Problem> {
    if let Value::Integer(number) = value {
        let number = u8::try_from(*number).map_err(|_| wrong("proto", format!("{number} is none of 0 to 255")))?;
        // One spelling each, so that ports can be asked for.
        return Ok(match number {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            number => Protocol::Number(number),
        });
    }
    Ok(match word(value, "proto", &["any", "tcp", "udp", "icmp"])? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        _ => Protocol::Any,
    })
}

fn ports(value: &Value) -> Result<Vec<PortRange>, Problem> {
    let Value::Array(items) = value else { return Err(wrong("ports", "write a list, as in [443, \"8000-8100\"]")) };
    if items.is_empty() || items.len() > PORTS_MAX {
        return Err(wrong("ports", format!("{} entries: write 1 to {PORTS_MAX}, or leave it out", items.len())));
    }
    items.iter().map(port_range).collect()
}

fn port_range(value: &Value) -> Result<PortRange, Problem> {
    let refuse = |what: String| wrong("ports", format!("{what} is no port: write 0 to 65535, or \"8000-8100\""));
    let range = match value {
        Value::Integer(port) => u16::try_from(*port).ok().map(|port| PortRange { first: port, last: port }),
        Value::String(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let number = |text: &str| text.trim().parse::<u16>().ok();
            number(first).zip(number(last)).map(|(first, last)| PortRange { first, last })
        }
        Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    };
    let Some(range) = range else { return Err(refuse(quoted(&value.to_string()))) };
    if range.first > range.last {
        return Err(wrong("ports", format!("{}-{} ends before it begins", range.first, range.last)));
    }
    Ok(range)
}

fn known(table: &Table, keys: &[&'static str]) -> Result<(), Problem> {
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let nearest = nearest(key, keys).map(str::to_owned);
            Err(Problem::UnknownKey { key: quoted(key), nearest })
        }
    }
}

fn text<'a>(value: &'a Value, key: &'static str) -> Result<&'a str, Problem> {
    value.as_str().ok_or_else(|| wrong(key, format!("is {}: write a string in quotes", value.type_str())))
}

/// One of these words.
fn word<'a>(value: &'a Value, key: &'static str, words: &[&'static str]) -> Result<&'a str, Problem> {
    let found = text(value, key)?;
    if words.contains(&found) {
        return Ok(found);
    }
    let why = format!("{:?} is none of {}: {}", quoted(found), list(words), suggestion(nearest(found, words)));
    Err(wrong(key, why))
}

fn action(word: &str) -> Action {
    Action::of(word == "allow")
}

fn wrong(key: &'static str, why: impl Into<String>) -> Problem {
    Problem::Value { key, why: why.into() }
}

/// The known word that `found` most likely is a slip of, if any is near enough.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    if found.len() > COMPARED_LEN_MAX {
        return None;
    }
    let distance = |word: &str| strsim::osa_distance(&found.to_lowercase(), word);
    let best = known.iter().copied().min_by_key(|word| distance(word))?;
    (distance(best) <= 1 + best.len() / 3).then_some(best)
}

/// A document's own words, short enough and without what a terminal would obey.
fn quoted(text: &str) -> String {
    let mut end = text.len().min(QUOTED_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].escape_debug().to_string()
}
