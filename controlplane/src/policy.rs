//! Who may talk to whom, from the document that a person writes to what a packet plane is told.
//!
//! ```text
//!   policy.toml ─▶ Document ─▶ check, diff          the operator's side: nothing is signed that does not parse
//!        │                        │
//!        └─▶ SignedPolicy ─▶ every member ─▶ Document + members ─▶ compile ─▶ packet plane
//!                                                        └─────▶ explain
//! ```
//!
//! A document names groups and nodes. What addresses these have is known from the members' certificates and differs from one moment to
//! the next, so each member compiles for itself, whenever document or members change.

mod check;
mod compile;
mod diff;
mod explain;
mod message;
mod parse;
mod signed;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use weir_dataplane::api::policy::{PortRange, Protocol};
use weir_dataplane::api::{POLICY_RULE_PORTS_MAX, Prefix};

use crate::pki::id::NodeId;

pub use self::check::{Finding, Severity, check};
pub use self::compile::{Compiled, RuleHits, compile};
pub use self::diff::{Change, diff};
pub use self::explain::{Considered, Decider, Explanation, ask, explain};
pub use self::message::{MessageRule, explain_message};
pub use self::parse::{ParseError, Problem, parse};
pub use self::signed::{HISTORY_MAX, History, HistoryError, PolicyError, SignedPolicy, Version};

/// Longest document in bytes.
pub const DOCUMENT_LEN_MAX: usize = 256 * 1024;
/// Most rules of a document; as many again about messages.
pub const RULES_MAX: usize = 256;
/// Most entries of one `from` or `to`.
pub const TERMS_MAX: usize = 256;
/// Most port ranges of one rule.
pub const PORTS_MAX: usize = POLICY_RULE_PORTS_MAX;
/// Most bytes of a rule's name.
pub const NAME_LEN_MAX: usize = 64;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl Action {
    const fn of(allow: bool) -> Self {
        if allow { Self::Allow } else { Self::Deny }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Who a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Everybody.
    Any,
    /// All members of a group: their addresses, and the networks behind them.
    Group(String),
    /// One member, by name or id: the same.
    Node(String),
    /// These addresses, whoever has them.
    Prefix(Prefix),
}

/// As it stands in a document.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Prefix(prefix) => write!(f, "prefix:{prefix}"),
        }
    }
}

/// One rule of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which no other rule has.
    pub name: String,
    /// Sources.
    pub from: Vec<Term>,
    /// Destinations.
    pub to: Vec<Term>,
    /// The protocol.
    pub protocol: Protocol,
    /// Destination ports; none for all.
    pub ports: Vec<PortRange>,
    /// What happens to what fits.
    pub action: Action,
}

/// What a rule is about, as it is named where rules of both kinds are spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Packets.
    Packet,
    /// Messages of applications.
    Message,
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "rule",
            Self::Message => "message rule",
        })
    }
}

/// A policy as a person means it: the first rule that fits decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// For what no rule fits.
    pub default: Action,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
    /// The same for messages of applications.
    pub messages: Vec<MessageRule>,
}

impl Document {
    /// A policy that says nothing but what becomes of everything.
    pub const fn empty(default: Action) -> Self {
        Self { default, rules: vec![], messages: vec![] }
    }
}

impl Rule {
    /// Its protocol, as the document writes it.
    pub fn protocol_text(&self) -> String {
        protocol_text(self.protocol)
    }

    /// Its ports, as the document writes them; `any` for all.
    pub fn ports_text(&self) -> String {
        if self.ports.is_empty() {
            return "any".to_owned();
        }
        let range = |range: &PortRange| match range.first == range.last {
            true => range.first.to_string(),
            false => format!("{}-{}", range.first, range.last),
        };
        self.ports.iter().map(range).collect::<Vec<_>>().join(", ")
    }
}

/// What the policy has to know of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// Networks behind it.
    pub prefixes: Vec<Prefix>,
    /// Addresses of its own.
    pub addresses: Vec<IpAddr>,
}

impl MemberView {
    /// All addresses that are its own or behind it.
    fn all(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.prefixes.iter().copied().chain(self.addresses.iter().map(|&address| Prefix::host(address)))
    }

    fn has(&self, address: IpAddr) -> bool {
        self.all().any(|prefix| prefix.contains(address))
    }

    /// Whether `name` is its name or its id.
    fn is(&self, name: &str) -> bool {
        self.name == name || name.parse() == Ok(self.node)
    }
}

impl Term {
    /// Whether the term means this member.
    fn names(&self, member: &MemberView) -> bool {
        match self {
            Self::Any | Self::Prefix(_) => false,
            Self::Group(group) => member.groups.contains(group),
            Self::Node(name) => member.is(name),
        }
    }

    /// Whether the term is about an address.
    fn covers(&self, members: &[MemberView], address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => prefix.contains(address),
            Self::Group(_) | Self::Node(_) => members.iter().any(|member| self.names(member) && member.has(address)),
        }
    }
}

/// As a document says it.
fn protocol_text(protocol: Protocol) -> String {
    match protocol {
        Protocol::Any => "any".to_owned(),
        Protocol::Tcp => "tcp".to_owned(),
        Protocol::Udp => "udp".to_owned(),
        Protocol::Icmp => "icmp".to_owned(),
        Protocol::Number(number) => number.to_string(),
    }
}

fn port_text(range: PortRange) -> String {
    if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
