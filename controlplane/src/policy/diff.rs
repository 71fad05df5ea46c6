//! What one document says that another does not.

use std::fmt;

use serde::Serialize;

use super::{Document, Rule, RuleKind, list, port_text, protocol_text};

/// One difference between two documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Change {
    /// The default is another.
    Default {
        /// What it was.
        before: String,
        /// What it is.
        after: String,
    },
    /// A rule that was not there.
    Added {
        /// What it is about.
        about: RuleKind,
        /// Its name.
        rule: String,
        /// Its place, counted from one.
        place: usize,
        /// What it says.
        says: String,
    },
    /// A rule that is not there any more.
    Removed {
        /// What it is about.
        about: RuleKind,
        /// Its name.
        rule: String,
        /// What it said.
        said: String,
    },
    /// A rule that says something else.
    Changed {
        /// What it is about.
        about: RuleKind,
        /// Its name.
        rule: String,
        /// What it said.
        said: String,
        /// What it says.
        says: String,
    },
    /// A rule that is tried earlier or later among those that stayed.
    Moved {
        /// What it is about.
        about: RuleKind,
        /// Its name.
        rule: String,
        /// Its place, counted from one.
        place: usize,
    },
}

/// A line or two, as a person reads differences.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default { before, after } => write!(f, "- default {before}\n+ default {after}"),
            Self::Added { about, rule, place, says } => write!(f, "+ {rule} ({about} {place}): {says}"),
            Self::Removed { rule, said, .. } => write!(f, "- {rule}: {said}"),
            Self::Changed { rule, said, says, .. } => write!(f, "- {rule}: {said}\n+ {rule}: {says}"),
            Self::Moved { about, rule, place } => write!(f, "~ {rule}: is {about} {place} now"),
        }
    }
}

/// A rule in one line.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from {} to {}", self.action, protocol_text(self.protocol), list(&self.from), list(&self.to))?;
        match self.ports.is_empty() {
            true => Ok(()),
            false => write!(f, " ports {}", list(self.ports.iter().map(|&range| port_text(range)))),
        }
    }
}

/// What has to change in `before` to make it `after`; nothing when they decide alike by the same names. Rules are known by their names.
pub fn diff(before: &Document, after: &Document) -> Vec<Change> {
    let mut changes = vec![];
    if before.default != after.default {
        changes.push(Change::Default { before: before.default.to_string(), after: after.default.to_string() });
    }
    let of_packets = |document: &Document| -> Vec<(String, String)> {
        document.rules.iter().map(|rule| (rule.name.clone(), rule.to_string())).collect()
    };
    let of_messages = |document: &Document| -> Vec<(String, String)> {
        document.messages.iter().map(|rule| (rule.name.clone(), rule.to_string())).collect()
    };
    rules(RuleKind::Packet, &of_packets(before), &of_packets(after), &mut changes);
    rules(RuleKind::Message, &of_messages(before), &of_messages(after), &mut changes);
    changes
}

/// The same for rules of one kind, each a name and what it says.
fn rules(about: RuleKind, before: &[(String, String)], after: &[(String, String)], changes: &mut Vec<Change>) {
    let find = |rules: &[(String, String)], name: &str| rules.iter().position(|(known, _)| known == name);
    for (rule, said) in before.iter().filter(|(name, _)| find(after, name).is_none()) {
        changes.push(Change::Removed { about, rule: rule.clone(), said: said.clone() });
    }
    // Where the rules that stayed were, in the order in which they are now.
    let mut reached: Option<usize> = None;
    for (place, (rule, says)) in (1..).zip(after) {
        let Some(was) = find(before, rule) else {
            changes.push(Change::Added { about, rule: rule.clone(), place, says: says.clone() });
            continue;
        };
        let (_, said) = &before[was];
        if said != says {
            changes.push(Change::Changed { about, rule: rule.clone(), said: said.clone(), says: says.clone() });
        }
        if reached.is_some_and(|reached| was < reached) {
            changes.push(Change::Moved { about, rule: rule.clone(), place });
        }
        reached = reached.max(Some(was));
    }
}
