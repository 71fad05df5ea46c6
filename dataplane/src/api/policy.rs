//! What a control plane says about who may talk to whom: rules over addresses, protocols and ports.
//!
//! The first rule that fits a packet decides; a packet that none fits has the default. Rules are about packets that open something: what
//! answers them, the packet plane lets pass by itself.

use serde::{Deserialize, Serialize};

use super::message::Request;
use super::{POLICY_MESSAGE_LEN_MAX, Prefix};

/// Protocols that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// All of them.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP in IPv4 and ICMPv6 in IPv6.
    Icmp,
    /// The one with this number (IANA, Protocol Numbers), in both versions of IP.
    Number(u8),
}

/// Destination ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port, not below the lowest.
    pub last: u16,
}

/// One rule. It fits a packet whose source, destination, protocol and destination port it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Sources; at least one, at most [`POLICY_RULE_PREFIXES_MAX`](super::POLICY_RULE_PREFIXES_MAX).
    pub sources: Vec<Prefix>,
    /// Destinations; as many.
    pub destinations: Vec<Prefix>,
    /// The protocol.
    pub protocol: Protocol,
    /// Destination ports, for TCP and UDP only; none for all. At most [`POLICY_RULE_PORTS_MAX`](super::POLICY_RULE_PORTS_MAX).
    pub ports: Vec<PortRange>,
    /// Whether the packet passes.
    pub allow: bool,
}

/// The requests that stage `rules`, each short enough for a message, in order.
pub fn stage(rules: &[PolicyRule]) -> Vec<Request> {
    let mut requests = vec![];
    let (mut waiting, mut bytes) = (vec![], 0);
    for rule in rules {
        // A rule that cannot be measured is refused when its message is encoded.
        let len = postcard::experimental::serialized_size(rule).unwrap_or(POLICY_MESSAGE_LEN_MAX);
        if bytes + len > POLICY_MESSAGE_LEN_MAX && !waiting.is_empty() {
            requests.push(Request::StagePolicy(std::mem::take(&mut waiting)));
            bytes = 0;
        }
        waiting.push(rule.clone());
        bytes += len;
    }
    if !waiting.is_empty() {
        requests.push(Request::StagePolicy(waiting));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::codec::encode;
    use crate::api::{POLICY_RULE_PORTS_MAX, POLICY_RULE_PREFIXES_MAX};

    fn rule(prefixes: usize) -> PolicyRule {
        let prefix = |i: usize| format!("fd00:{i:x}::/128").parse().unwrap();
        PolicyRule {
            sources: (0..prefixes).map(prefix).collect(),
            destinations: (0..prefixes).map(prefix).collect(),
            protocol: Protocol::Number(u8::MAX),
            ports: vec![PortRange { first: u16::MAX, last: u16::MAX }; POLICY_RULE_PORTS_MAX],
            allow: true,
        }
    }

    #[test]
    fn rules_are_staged_in_order_in_messages_that_are_not_too_long() {
        assert_eq!(stage(&[]).len(), 0);
        let rules: Vec<_> = (0..500).map(|i| rule(1 + i % 97)).chain(vec![rule(POLICY_RULE_PREFIXES_MAX); 3]).collect();
        let requests = stage(&rules);
        assert!(requests.len() > 4 && requests.len() < 100, "{}", requests.len());
        let mut staged = vec![];
        for request in requests {
            assert!(encode(u32::MAX, &request).is_ok(), "the longest rule there can be fits a message");
            let Request::StagePolicy(rules) = request else { panic!("{request:?}") };
            staged.extend(rules);
        }
        assert_eq!(staged, rules);
    }
}
