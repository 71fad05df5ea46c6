//! Who may send messages to whom, and about what. The receiver's word counts; the sender asks itself first, to spare the way.

use std::fmt;

use super::{Action, Considered, Decider, Document, Explanation, MemberView, Term, list};
use crate::mail::wire::{Topic, TopicPattern};

/// One rule about messages of applications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRule {
    /// Its name, which no other rule about messages has.
    pub name: String,
    /// Senders.
    pub from: Vec<Term>,
    /// Receivers.
    pub to: Vec<Term>,
    /// Topics.
    pub topic: TopicPattern,
    /// What happens to what fits.
    pub action: Action,
}

/// A rule in one line.
impl fmt::Display for MessageRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name: _, from, to, topic, action } = self;
        write!(f, "{action} messages from {} to {} about {topic}", list(from), list(to))
    }
}

/// Whether a side of a rule means this member.
fn means(side: &[Term], member: &MemberView) -> bool {
    side.iter().any(|term| *term == Term::Any || term.names(member))
}

impl MessageRule {
    /// What of it does not fit; `None` if all does.
    fn misfit(&self, from: &MemberView, to: &MemberView, topic: &str) -> Option<String> {
        if !means(&self.from, from) {
            return Some(format!("{} is in none of {}", from.name, list(&self.from)));
        }
        if !means(&self.to, to) {
            return Some(format!("{} is in none of {}", to.name, list(&self.to)));
        }
        (!self.topic.fits(topic)).then(|| format!("it is about {}", self.topic))
    }
}

impl Document {
    /// What happens to a message: the first rule that fits decides, and the document's default if none does.
    pub fn judge_message(&self, from: &MemberView, to: &MemberView, topic: &Topic) -> Action {
        let decides = self
            .messages
            .iter()
            .find(|rule| means(&rule.from, from) && means(&rule.to, to) && rule.topic.fits(topic.as_str()));
        decides.map_or(self.default, |rule| rule.action)
    }
}

/// Explains what happens to a message.
pub fn explain_message(document: &Document, from: &MemberView, to: &MemberView, topic: &Topic) -> Explanation {
    let mut explanation = Explanation {
        action: document.default,
        decided_by: Decider::Default,
        why: format!("no rule about messages fits, and the default is {}", document.default),
        source_members: vec![from.name.clone()],
        destination_members: vec![to.name.clone()],
        considered: vec![],
    };
    for (number, rule) in (1..).zip(&document.messages) {
        match rule.misfit(from, to, topic.as_str()) {
            Some(why) => explanation.considered.push(Considered { rule: rule.name.clone(), why }),
            None => {
                explanation.action = rule.action;
                explanation.decided_by = Decider::Rule { number, name: rule.name.clone() };
                explanation.why = format!("message rule {number}, {}, says {rule}", rule.name);
                return explanation;
            }
        }
    }
    explanation
}

#[cfg(test)]
mod tests {
    use super::super::{Change, RuleKind, check, diff, parse};
    use super::*;
    use crate::pki::id::NodeId;

    const TEXT: &str = r#"
default = "deny"
[[message]]
name = "secrets"
from = ["any"]
to = ["any"]
topic = "secret/*"
action = "deny"
[[message]]
name = "reports"
from = ["group:edge"]
to = ["node:collector"]
"#;

    fn member(number: u8, name: &str, group: &str) -> MemberView {
        let groups = vec![group.to_owned()];
        MemberView { node: NodeId([number; 32]), name: name.to_owned(), groups, prefixes: vec![], addresses: vec![] }
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_its_explanation_agrees() {
        let document = parse(TEXT).unwrap();
        let (edge, collector) = (member(1, "a", "edge"), member(2, "collector", "servers"));
        for (from, to, topic, allowed, number) in [
            (&edge, &collector, "report", true, Some(2)),
            (&edge, &collector, "secret/key", false, Some(1)),
            (&edge, &collector, "secret", true, Some(2)),
            (&collector, &edge, "report", false, None),
            (&edge, &edge, "report", false, None),
        ] {
            let topic = topic.parse().unwrap();
            assert_eq!(document.judge_message(from, to, &topic), Action::of(allowed), "{topic}");
            let explained = explain_message(&document, from, to, &topic);
            let decider = match &explained.decided_by {
                Decider::Rule { number, .. } => Some(*number),
                Decider::Default => None,
            };
            assert_eq!((explained.action, decider), (Action::of(allowed), number), "{explained:?}");
        }
    }

    #[test]
    fn a_document_without_the_section_says_what_it_said() {
        let document = parse("default = \"allow\"").unwrap();
        assert_eq!(document.messages, []);
        let someone = member(1, "a", "b");
        assert_eq!(document.judge_message(&someone, &someone, &Topic::default()), Action::Allow);
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said_with_its_name() {
        let wrong = |line: &str| {
            let text = format!("default = \"deny\"\n[[message]]\nname = \"x\"\n{line}\n");
            parse(&text).unwrap_err().to_string()
        };
        assert_eq!(
            wrong("from = [\"any\"]"),
            "message rule 1 (\"x\"): `to` is missing: write for example [\"group:edge\"], or [\"any\"]"
        );
        assert!(wrong("from = [\"any\"]\nto = [\"prefix:10.0.0.0/8\"]").contains("messages go from member to member"));
        assert!(wrong("from = [\"any\"]\nto = [\"any\"]\ntopic = \"a b\"").contains("a topic has 1 to 64"));
        assert!(wrong("from = [\"any\"]\nto = [\"any\"]\nproto = \"tcp\"").contains("unknown key `proto`"));
    }

    #[test]
    fn names_that_are_nobody_and_hidden_rules_are_found_and_changes_are_told() {
        let before = parse(TEXT).unwrap();
        let members = [member(1, "a", "edge")];
        let found: Vec<String> = check(&before, &members).into_iter().map(|finding| finding.what).collect();
        assert!(found.len() == 1 && found[0].contains("node:collector"), "{found:?}");
        let after = parse(&TEXT.replace("topic = \"secret/*\"\n", "")).unwrap();
        assert!(check(&after, &[]).iter().any(|finding| finding.what.contains("it never decides, because secrets")));
        let changes = diff(&before, &after);
        let last = diff(&Document { messages: vec![], ..before.clone() }, &before).pop().unwrap();
        assert!(last.to_string().starts_with("+ reports (message rule 2): "), "{last}");
        let said = "deny messages from any to any about secret/*".to_owned();
        let says = "deny messages from any to any about *".to_owned();
        assert_eq!(changes, [Change::Changed { about: RuleKind::Message, rule: "secrets".to_owned(), said, says }]);
    }
}
