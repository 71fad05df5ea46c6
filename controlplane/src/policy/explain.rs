//! Why a packet passes or does not, in words.

use std::net::IpAddr;

use serde::Serialize;
use weir_dataplane::api::policy::Protocol;

use super::{Action, Document, MemberView, Rule, Term, list, port_text, protocol_text};

/// What decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decider {
    /// The rule with this name.
    Rule {
        /// Its number in the document, counted from one.
        number: usize,
        /// Its name.
        name: String,
    },
    /// No rule fits.
    Default,
}

/// A rule that was tried and did not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// Its name.
    pub rule: String,
    /// What did not fit.
    pub why: String,
}

/// Why a packet passes or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What happens to it.
    pub action: Action,
    /// What decides that.
    pub decided_by: Decider,
    /// The same in a sentence.
    pub why: String,
    /// Names of the members that have the source.
    pub source_members: Vec<String>,
    /// Names of the members that have the destination.
    pub destination_members: Vec<String>,
    /// The rules before the one that decides.
    pub considered: Vec<Considered>,
}

/// Explains what happens to a packet that opens a flow. [`Protocol::Any`] asks about a protocol that no rule names.
///
/// Answers to it, and ICMP errors about it, pass without being asked about.
pub fn explain(
    document: &Document,
    members: &[MemberView],
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: Option<u16>,
) -> Explanation {
    let names = |address: IpAddr| members.iter().filter(|m| m.has(address)).map(|m| m.name.clone()).collect();
    let mut explanation = Explanation {
        action: document.default,
        decided_by: Decider::Default,
        why: String::new(),
        source_members: names(source),
        destination_members: names(destination),
        considered: vec![],
    };
    for (number, rule) in (1..).zip(&document.rules) {
        match misfit(rule, members, source, destination, protocol, port) {
            Some(why) => explanation.considered.push(Considered { rule: rule.name.clone(), why }),
            None => {
                explanation.action = rule.action;
                explanation.decided_by = Decider::Rule { number, name: rule.name.clone() };
                let by = |side: &[Term], address| list(side.iter().filter(|term| term.covers(members, address)));
                explanation.why = format!(
                    "rule {number}, {}, says {}: {source} is in {}, {destination} is in {}",
                    rule.name,
                    rule.action,
                    by(&rule.from, source),
                    by(&rule.to, destination),
                );
                return explanation;
            }
        }
    }
    explanation.why = format!("no rule fits, and the default is {}", document.default);
    explanation
}

/// What of the rule does not fit; `None` if all does.
fn misfit(
    rule: &Rule,
    members: &[MemberView],
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: Option<u16>,
) -> Option<String> {
    let outside = |side: &[Term], address| !side.iter().any(|term| term.covers(members, address));
    if source.is_ipv4() != destination.is_ipv4() {
        return Some("source and destination are of two families".to_owned());
    }
    if outside(&rule.from, source) {
        return Some(format!("{source} is in none of {}", list(&rule.from)));
    }
    if outside(&rule.to, destination) {
        return Some(format!("{destination} is in none of {}", list(&rule.to)));
    }
    let is_about = match (rule.protocol, protocol) {
        (Protocol::Any, _) => true,
        (_, Protocol::Any) => false,
        (one, other) => number(one, source.is_ipv4()) == number(other, source.is_ipv4()),
    };
    if !is_about {
        return Some(format!("it is about {}", protocol_text(rule.protocol)));
    }
    let named = |port: u16| rule.ports.iter().any(|range| (range.first..=range.last).contains(&port));
    if !rule.ports.is_empty() && !port.is_some_and(named) {
        return Some(format!("it is about ports {}", list(rule.ports.iter().map(|&range| port_text(range)))));
    }
    None
}

/// The number in the IP header.
fn number(protocol: Protocol, is_ipv4: bool) -> Option<u8> {
    match protocol {
        Protocol::Any => None,
        Protocol::Tcp => Some(6),
        Protocol::Udp => Some(17),
        Protocol::Icmp => Some(if is_ipv4 { 1 } else { 58 }),
        Protocol::Number(number) => Some(number),
    }
}

/// The addresses that a word means: an address, or the first of each family of a member, by name or id.
///
/// Both ends of a question are asked for together, so that they are of one family.
pub fn ask(members: &[MemberView], source: &str, destination: &str) -> Option<(IpAddr, IpAddr)> {
    let addresses = |word: &str| -> Vec<IpAddr> {
        match word.parse() {
            Ok(address) => vec![address],
            Err(_) => {
                let member = members.iter().filter(|member| member.is(word));
                member.flat_map(|m| m.addresses.iter().copied().chain(m.prefixes.iter().map(|p| p.address()))).collect()
            }
        }
    };
    let destinations = addresses(destination);
    addresses(source).into_iter().find_map(|source| {
        let of_its_family = |address: &&IpAddr| address.is_ipv4() == source.is_ipv4();
        destinations.iter().find(of_its_family).map(|&destination| (source, destination))
    })
}
