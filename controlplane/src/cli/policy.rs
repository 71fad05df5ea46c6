//! `weir policy check`, `diff` and `sign`: about documents that are files, before a node has them.

use std::path::Path;

use serde_json::json;

use super::arguments::{Arguments, Sign};
use super::files::{self, named};
use super::table::printable;
use super::{FAILED, Failure, Outcome, failed, print, remote};
use crate::api::Call;
use crate::api::types::{self, Member, MemberState};
use crate::pki::bundle::{Chain, network_id};
use crate::policy::{self, Action, Document, Finding, MemberView, Severity, SignedPolicy};

fn read(file: &Path) -> Result<Document, Failure> {
    policy::parse(&files::text(file)?).map_err(|error| named(file, error))
}

/// Signs a policy with a key that is in a file. Whether the number is high enough only members know.
pub(super) fn sign(arguments: &Arguments, sign: &Sign) -> Outcome {
    let Sign { file, key, passphrase_file, bundle, version, out } = sign;
    let versions = files::bundle(bundle)?;
    let network = versions.first().map(network_id).unwrap_or_default();
    let chain = Chain::walk(network, &versions).map_err(|error| named(bundle, error))?;
    let operator = files::private_key(key, "the operator", passphrase_file.as_deref())?;
    let id = operator.public().id();
    if chain.current().operator(id).is_none() {
        let why = format!(
            "{id} is no operator of version {} of the trust bundle: weir ca add-operator",
            chain.current().version
        );
        return Err(named(key, why));
    }
    let signed = SignedPolicy::sign(network, *version, remote::now(), &files::text(file)?, &operator);
    files::write(out, &signed.map_err(|error| named(file, error))?.to_bytes())?;
    let out = out.display();
    let message = format!(
        "{out}: version {version} of the policy.\nIt takes hold when a member has it: weir policy apply {out} --signed"
    );
    remote::report(arguments, &message)
}

/// What is wrong with a policy; nothing is said of members when the node is not to be asked for them.
pub(super) fn check(arguments: &Arguments, file: &Path, ask_members: bool) -> Outcome {
    let document = read(file)?;
    let members = if ask_members { members(arguments)? } else { vec![] };
    let findings = policy::check(&document, &members);
    if arguments.json {
        let (rules, messages) = (document.rules.len(), document.messages.len());
        let default = document.default;
        remote::json(&json!({ "rules": rules, "message_rules": messages, "default": default, "findings": findings }))?;
    } else {
        print(&found(&document, &findings))?;
    }
    let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
    if bad { Err(Failure::Status(FAILED)) } else { Ok(()) }
}

fn found(document: &Document, findings: &[Finding]) -> String {
    if findings.is_empty() {
        let (rules, messages, default) = (document.rules.len(), document.messages.len(), document.default);
        let about = if messages == 0 { String::new() } else { format!(" and {messages} message rules") };
        return format!("Nothing is wrong with it: {rules} rules{about}, and what none fits: {default}.\n");
    }
    let line = |finding: &Finding| {
        let severity = match finding.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let rule = finding.about.zip(finding.rule.as_ref());
        let rule = rule.map(|(kind, rule)| format!("{kind} {rule}: ")).unwrap_or_default();
        format!("{severity}: {}\n", printable(&format!("{rule}{}", finding.what)))
    };
    findings.iter().map(line).collect()
}

fn members(arguments: &Arguments) -> Result<Vec<MemberView>, Failure> {
    let members: Vec<Member> = remote::ask_for(arguments, &Call::Members)?;
    let view = |member: Member| {
        Some(MemberView {
            node: member.node.parse().ok()?,
            name: member.name,
            groups: member.groups,
            prefixes: member.prefixes.iter().filter_map(|prefix| prefix.parse().ok()).collect(),
            addresses: member.address.parse().into_iter().collect(),
        })
    };
    Ok(members.into_iter().filter(|member| member.state != MemberState::Revoked).filter_map(view).collect())
}

/// What a policy would change: compared with another file, or with the one in force.
pub(super) fn diff(arguments: &Arguments, file: &Path, from: Option<&Path>) -> Outcome {
    let after = read(file)?;
    let before = match from {
        Some(from) => read(from)?,
        None => in_force(remote::ask_for(arguments, &Call::PolicyShow)?)?,
    };
    let changes = policy::diff(&before, &after);
    if arguments.json {
        return remote::json(&changes);
    }
    if changes.is_empty() {
        return print("Nothing would change.\n");
    }
    print(&changes.iter().map(|change| format!("{change}\n")).collect::<String>())
}

fn in_force(policy: types::Policy) -> Result<Document, Failure> {
    if policy.version == 0 {
        return Ok(Document::empty(if policy.otherwise == "deny" { Action::Deny } else { Action::Allow }));
    }
    let wrong = |error| failed(format!("the policy in force, as the node tells it: {error}; are both of one version?"));
    policy::parse(&policy.text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::policy::RuleKind;

    const TEXT: &str = "default = \"deny\"\n[[rule]]\nname = \"web\"\nfrom = [\"group:edge\"]\nto = [\"any\"]\n";

    #[test]
    fn a_policy_without_fault_is_said_to_be_one() {
        let document = policy::parse(TEXT).unwrap();
        assert_eq!(policy::check(&document, &[]), []);
        assert_eq!(found(&document, &[]), "Nothing is wrong with it: 1 rules, and what none fits: deny.\n");
    }

    #[test]
    fn findings_are_a_line_each_and_nothing_in_them_steers_a_terminal() {
        let document = policy::parse(TEXT).unwrap();
        let finding = |severity, rule: Option<&str>, what: &str| Finding {
            severity,
            rule: rule.map(str::to_owned),
            about: rule.map(|_| RuleKind::Packet),
            what: what.to_owned(),
        };
        let findings = [
            finding(Severity::Warning, Some("web"), "it never\x1b[2J decides"),
            finding(Severity::Error, None, "too long"),
        ];
        let of_messages = [Finding { about: Some(RuleKind::Message), ..findings[0].clone() }];
        assert!(found(&document, &of_messages).starts_with("warning: message rule web: it never"));
        let text = found(&document, &findings);
        assert!(text.starts_with("warning: rule web: it never") && text.ends_with("\nerror: too long\n"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn no_policy_is_the_default_that_the_network_was_founded_with() {
        let policy = |version, otherwise: &str, text: &str| types::Policy {
            version,
            signer: None,
            signed_at: None,
            otherwise: otherwise.to_owned(),
            rules: vec![],
            text: text.to_owned(),
        };
        let document = in_force(policy(0, "deny", "")).ok();
        assert_eq!(document, Some(Document::empty(Action::Deny)));
        assert_eq!(in_force(policy(3, "deny", TEXT)).ok(), policy::parse(TEXT).ok());
        assert!(in_force(policy(3, "deny", "nonsense")).is_err());
    }
}
