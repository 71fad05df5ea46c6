//! What a document that parses may still get wrong: names that nobody has, and rules that never decide.

use serde::Serialize;
use weir_dataplane::api::policy::Protocol;
use weir_dataplane::api::{POLICY_PREFIXES_MAX, POLICY_RULES_MAX};

use super::compile::Sides;
use super::{Document, MemberView, Rule, RuleKind, Term};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It may be meant: a group whose first member is yet to come.
    Warning,
    /// Some member's packet plane would refuse the policy.
    Error,
}

/// Something that deserves a look before the policy is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The rule; `None` for the document as a whole.
    pub rule: Option<String>,
    /// What that one is about.
    pub about: Option<RuleKind>,
    /// What it is, and what to do.
    pub what: String,
}

/// Looks the document through beside those who are members now. A network has at least one; without any, they are not known, and nothing is
/// said about names.
pub fn check(document: &Document, members: &[MemberView]) -> Vec<Finding> {
    let mut findings = vec![];
    for (at, rule) in document.rules.iter().enumerate() {
        let before = document.rules[..at].iter().find(|before| hides(before, rule));
        look(
            (RuleKind::Packet, &rule.name),
            [&rule.from, &rule.to],
            before.map(|rule| &rule.name),
            members,
            &mut findings,
        );
    }
    for (at, rule) in document.messages.iter().enumerate() {
        let before = document.messages[..at].iter().find(|before| {
            covers(&before.from, &rule.from) && covers(&before.to, &rule.to) && before.topic.covers(&rule.topic)
        });
        look(
            (RuleKind::Message, &rule.name),
            [&rule.from, &rule.to],
            before.map(|rule| &rule.name),
            members,
            &mut findings,
        );
    }
    let sides = Sides::new(document, members);
    for member in members {
        let rules = sides.compile(document, members, member.node).rules;
        let prefixes: usize = rules.iter().map(|rule| rule.sources.len() + rule.destinations.len()).sum();
        if rules.len() > POLICY_RULES_MAX || prefixes > POLICY_PREFIXES_MAX {
            let what = format!(
                "for {} it comes to {} rules over {prefixes} prefixes; {POLICY_RULES_MAX} and {POLICY_PREFIXES_MAX} are the limits: name prefixes in place of large groups",
                member.name,
                rules.len()
            );
            findings.push(Finding { severity: Severity::Error, rule: None, about: None, what });
        }
    }
    findings
}

/// Looks at one rule: at the names on its sides, and at the one before that leaves it nothing to decide.
fn look(
    (kind, rule): (RuleKind, &str),
    sides: [&Vec<Term>; 2],
    hidden_by: Option<&String>,
    members: &[MemberView],
    findings: &mut Vec<Finding>,
) {
    let mut find = |what: String| {
        findings.push(Finding { severity: Severity::Warning, rule: Some(rule.to_owned()), about: Some(kind), what });
    };
    for (side, terms) in ["from", "to"].into_iter().zip(sides) {
        for term in terms {
            let is_name = matches!(term, Term::Group(_) | Term::Node(_));
            if is_name && !members.is_empty() && !members.iter().any(|member| term.names(member)) {
                find(format!("`{side}` names {term}, which is nobody now: `weir members` shows who there is"));
            }
        }
    }
    if let Some(before) = hidden_by {
        find(format!("it never decides, because {before} before it fits all that it fits: move it up, or remove it"));
    }
}

/// Whether the one side says of itself that it has everybody in it whom the other has.
fn covers(one: &[Term], other: &[Term]) -> bool {
    let covered = |term: &Term| match term {
        Term::Prefix(inner) => one.iter().any(|outer| match outer {
            Term::Any => true,
            Term::Prefix(outer) => outer.bit_len() <= inner.bit_len() && outer.contains(inner.address()),
            Term::Group(_) | Term::Node(_) => false,
        }),
        Term::Any | Term::Group(_) | Term::Node(_) => one.contains(term) || one.contains(&Term::Any),
    };
    other.iter().all(covered)
}

/// Whether the one rule says of itself that it fits all that the other does.
fn hides(one: &Rule, other: &Rule) -> bool {
    let ports = one.ports.is_empty()
        || !other.ports.is_empty()
            && other.ports.iter().all(|o| one.ports.iter().any(|range| range.first <= o.first && o.last <= range.last));
    covers(&one.from, &other.from)
        && covers(&one.to, &other.to)
        && (one.protocol == Protocol::Any || one.protocol == other.protocol)
        && ports
}
