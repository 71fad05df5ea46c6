//! The rules of a policy, compiled: which one decides about a packet.
//!
//! Every address that a rule names begins or ends a range, and within a range all addresses are named by the same rules. So each range has
//! a set of rules, one bit each, and a decision is two look-ups and the first bit that both sets have and whose protocol and ports fit:
//!
//! ```text
//!   sources       │ 0…          10.1.0.0          10.2.0.0        …      rule 0: 10.1.0.0/16 ▸ 10.9.0.0/16, TCP 443
//!                 │   ....          11..              .1..               rule 1: any ▸ 10.9.7.0/24
//!   destinations  │ 0…          10.9.0.0          10.9.7.0        …
//!                 │   ....          1...              11..         and ▸ 11.. ▸ rule 0, unless it is about other ports
//! ```
//!
//! Some hundred nanoseconds for a thousand rules over ten thousand prefixes: two searches by halves and a few words of bits. It is asked
//! for what opens a flow and for what is refused, not for every packet.

use std::net::IpAddr;

use crate::api::policy::{PolicyRule, PortRange, Protocol};
use crate::api::{POLICY_PREFIXES_MAX, POLICY_RULE_PORTS_MAX, POLICY_RULE_PREFIXES_MAX, POLICY_RULES_MAX, Prefix};
use crate::engine::inner::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};

/// Why rules are no policy. Rules are counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// More than [`POLICY_RULES_MAX`].
    #[error("a policy has at most {POLICY_RULES_MAX} rules")]
    Rules,
    /// More than [`POLICY_PREFIXES_MAX`] in all.
    #[error("the rules of a policy have at most {POLICY_PREFIXES_MAX} prefixes together")]
    Prefixes,
    /// More than [`POLICY_RULE_PREFIXES_MAX`] on one side, or none.
    #[error("rule {0} has no sources or no destinations, or more than {POLICY_RULE_PREFIXES_MAX}")]
    Sides(usize),
    /// More than [`POLICY_RULE_PORTS_MAX`], or one that ends before it begins.
    #[error("rule {0} has a port range that ends before it begins, or more than {POLICY_RULE_PORTS_MAX}")]
    Ports(usize),
    /// Ports with a protocol that has none.
    #[error("rule {0} names ports, which only TCP and UDP have")]
    NoPorts(usize),
}

/// What is asked about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// The destination port; `None` where there is none, or where it is not known.
    pub(super) port: Option<u16>,
}

/// Which rule decides, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// One more than the last rule for the default.
    pub(super) rule: usize,
    pub(super) allow: bool,
}

/// What a rule says besides addresses.
#[derive(Clone, Copy, Debug)]
struct Test {
    protocol: Protocol,
    /// Where its port ranges are; none for all ports.
    ports: (u32, u32),
    allow: bool,
}

/// All rules of a policy.
#[derive(Debug)]
pub(super) struct Rules {
    tests: Box<[Test]>,
    ports: Box<[PortRange]>,
    sources: Sides,
    destinations: Sides,
    default_allow: bool,
}

/// Checks one rule by itself; `number` is for the error.
///
/// # Errors
/// [`RulesError`].
pub fn check(number: usize, rule: &PolicyRule) -> Result<(), RulesError> {
    let fits = |side: &[Prefix]| (1..=POLICY_RULE_PREFIXES_MAX).contains(&side.len());
    if !fits(&rule.sources) || !fits(&rule.destinations) {
        return Err(RulesError::Sides(number));
    }
    if rule.ports.len() > POLICY_RULE_PORTS_MAX || rule.ports.iter().any(|range| range.first > range.last) {
        return Err(RulesError::Ports(number));
    }
    let has_ports = match rule.protocol {
        Protocol::Tcp | Protocol::Udp => true,
        Protocol::Number(number) => number == PROTOCOL_TCP || number == PROTOCOL_UDP,
        Protocol::Any | Protocol::Icmp => false,
    };
    if has_ports || rule.ports.is_empty() { Ok(()) } else { Err(RulesError::NoPorts(number)) }
}

impl Rules {
    /// Compiles rules that are tried in this order.
    pub(super) fn new(rules: &[PolicyRule], default_allow: bool) -> Result<Self, RulesError> {
        if rules.len() > POLICY_RULES_MAX {
            return Err(RulesError::Rules);
        }
        rules.iter().enumerate().try_for_each(|(number, rule)| check(number, rule))?;
        if rules.iter().map(|rule| rule.sources.len() + rule.destinations.len()).sum::<usize>() > POLICY_PREFIXES_MAX {
            return Err(RulesError::Prefixes);
        }
        let mut ports: Vec<PortRange> = vec![];
        let mut test = |rule: &PolicyRule| {
            let first = ports.len() as u32;
            ports.extend(&rule.ports);
            Test { protocol: rule.protocol, ports: (first, ports.len() as u32), allow: rule.allow }
        };
        Ok(Self {
            tests: rules.iter().map(&mut test).collect(),
            sources: Sides::new(rules.iter().map(|rule| &rule.sources[..])),
            destinations: Sides::new(rules.iter().map(|rule| &rule.destinations[..])),
            ports: ports.into(),
            default_allow,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.tests.len()
    }

    /// The decision; `None` when it depends on the port, which is not known.
    pub(super) fn decide(&self, question: &Question) -> Option<Decision> {
        // What the rules before would do that may or may not fit.
        let mut perhaps: Option<bool> = None;
        let decided = |perhaps: Option<bool>, rule, allow| {
            perhaps.is_none_or(|perhaps| perhaps == allow).then_some(Decision { rule, allow })
        };
        let sets = self.sources.set(question.source).iter().zip(self.destinations.set(question.destination));
        for (word, (from, to)) in sets.enumerate() {
            let mut both = from & to;
            while both != 0 {
                let rule = word * 64 + both.trailing_zeros() as usize;
                both &= both - 1;
                let test = &self.tests[rule];
                if !is_about(test.protocol, question.protocol, question.source.is_ipv4()) {
                    continue;
                }
                let ranges = &self.ports[test.ports.0 as usize..test.ports.1 as usize];
                match question.port {
                    _ if ranges.is_empty() => return decided(perhaps, rule, test.allow),
                    Some(port) if ranges.iter().any(|range| (range.first..=range.last).contains(&port)) => {
                        return decided(perhaps, rule, test.allow);
                    }
                    Some(_) => {}
                    None if perhaps.is_some_and(|perhaps| perhaps != test.allow) => return None,
                    None => perhaps = Some(test.allow),
                }
            }
        }
        decided(perhaps, self.tests.len(), self.default_allow)
    }
}

fn is_about(protocol: Protocol, number: u8, is_ipv4: bool) -> bool {
    match protocol {
        Protocol::Any => true,
        Protocol::Tcp => number == PROTOCOL_TCP,
        Protocol::Udp => number == PROTOCOL_UDP,
        Protocol::Icmp => number == if is_ipv4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 },
        Protocol::Number(own) => number == own,
    }
}

/// Sets of rules by address, families apart.
#[derive(Debug)]
struct Sides {
    v4: Side,
    v6: Side,
}

impl Sides {
    fn new<'a>(rules: impl Iterator<Item = &'a [Prefix]> + Clone) -> Self {
        let family = |is_ipv4: bool| {
            let of = move |side: &'a [Prefix]| side.iter().filter(move |prefix| prefix.address().is_ipv4() == is_ipv4);
            Side::new(rules.clone().map(|side| of(side).map(Prefix::range).collect()).collect())
        };
        Self { v4: family(true), v6: family(false) }
    }

    fn set(&self, address: IpAddr) -> &[u64] {
        match address {
            IpAddr::V4(v4) => self.v4.set(u128::from(v4.to_bits())),
            IpAddr::V6(v6) => self.v6.set(v6.to_bits()),
        }
    }
}

/// The set of rules of each range of addresses. A range begins at its entry of `starts` and ends before the next one.
#[derive(Debug)]
struct Side {
    starts: Box<[u128]>,
    sets: Box<[u64]>,
    words: usize,
}

impl Side {
    /// From the ranges, first and last address, of each rule.
    fn new(rules: Vec<Vec<(u128, u128)>>) -> Self {
        let words = rules.len().div_ceil(64);
        let mut starts: Vec<u128> =
            rules.iter().flatten().flat_map(|&(first, last)| [Some(first), last.checked_add(1)]).flatten().collect();
        starts.push(0);
        starts.sort_unstable();
        starts.dedup();
        let mut sets = vec![0; starts.len() * words];
        for (rule, ranges) in rules.iter().enumerate() {
            for &(first, last) in ranges {
                let from = starts.partition_point(|&start| start < first);
                let to = starts.partition_point(|&start| start <= last);
                for range in from..to {
                    sets[range * words + rule / 64] |= 1 << (rule % 64);
                }
            }
        }
        Self { starts: starts.into(), sets: sets.into(), words }
    }

    fn set(&self, address: u128) -> &[u64] {
        // There is a range that begins at zero.
        let range = self.starts.partition_point(|&start| start <= address) - 1;
        &self.sets[range * self.words..][..self.words]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One rule after the other, as the API's documentation reads.
    fn plain(rules: &[PolicyRule], default_allow: bool, question: &Question) -> Decision {
        let fits = |rule: &&PolicyRule| {
            rule.sources.iter().any(|prefix| prefix.contains(question.source))
                && rule.destinations.iter().any(|prefix| prefix.contains(question.destination))
                && match (rule.protocol, question.protocol) {
                    (Protocol::Any, _) | (Protocol::Tcp, 6) | (Protocol::Udp, 17) => true,
                    (Protocol::Icmp, 1) => question.source.is_ipv4(),
                    (Protocol::Icmp, 58) => question.source.is_ipv6(),
                    (Protocol::Number(own), number) => own == number,
                    _ => false,
                }
                && (rule.ports.is_empty()
                    || question.port.is_some_and(|port| rule.ports.iter().any(|r| r.first <= port && port <= r.last)))
        };
        let first = rules.iter().enumerate().find(|(_, rule)| fits(rule));
        first.map_or(Decision { rule: rules.len(), allow: default_allow }, |(number, rule)| Decision {
            rule: number,
            allow: rule.allow,
        })
    }

    fn rule(
        sources: &[&str],
        destinations: &[&str],
        protocol: Protocol,
        ports: &[(u16, u16)],
        allow: bool,
    ) -> PolicyRule {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        PolicyRule {
            sources: prefixes(sources),
            destinations: prefixes(destinations),
            protocol,
            ports: ports.iter().map(|&(first, last)| PortRange { first, last }).collect(),
            allow,
        }
    }

    fn ask(source: &str, destination: &str, protocol: u8, port: Option<u16>) -> Question {
        Question { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, port }
    }

    const ANY: &[&str] = &["0.0.0.0/0", "::/0"];

    #[test]
    fn the_first_rule_that_fits_decides_and_else_the_default() {
        let rules = [
            rule(&["10.1.0.0/16"], &["10.9.0.0/16"], Protocol::Tcp, &[(443, 443), (8000, 8100)], true),
            rule(ANY, &["10.9.7.0/24"], Protocol::Any, &[], false),
            rule(&["10.1.0.5/32", "fd00::/16"], ANY, Protocol::Icmp, &[], true),
        ];
        let compiled = Rules::new(&rules, true).unwrap();
        let decide = |question| compiled.decide(&question).map(|d| (d.rule, d.allow));
        assert_eq!(decide(ask("10.1.0.5", "10.9.7.1", 6, Some(443))), Some((0, true)));
        assert_eq!(decide(ask("10.1.0.5", "10.9.7.1", 6, Some(8100))), Some((0, true)));
        assert_eq!(decide(ask("10.1.0.5", "10.9.7.1", 6, Some(8101))), Some((1, false)));
        assert_eq!(decide(ask("10.1.0.5", "10.9.7.1", 17, Some(443))), Some((1, false)));
        assert_eq!(decide(ask("10.2.0.5", "10.9.8.1", 6, Some(443))), Some((3, true)));
        assert_eq!(decide(ask("10.1.0.5", "10.8.0.1", 1, None)), Some((2, true)));
        assert_eq!(decide(ask("10.1.0.5", "10.8.0.1", 58, None)), Some((3, true)));
        assert_eq!(decide(ask("fd00::1", "fd01::1", 58, None)), Some((2, true)));
        assert_eq!(decide(ask("255.255.255.255", "0.0.0.0", 58, None)), Some((3, true)));
    }

    #[test]
    fn without_a_port_rules_decide_only_when_all_that_may_fit_agree() {
        let web = rule(ANY, ANY, Protocol::Tcp, &[(443, 443)], true);
        let ssh = rule(ANY, ANY, Protocol::Tcp, &[(22, 22)], false);
        let unknown = ask("10.1.0.5", "10.2.0.5", 6, None);
        let decide = |rules: &[PolicyRule], default| Rules::new(rules, default).unwrap().decide(&unknown);
        assert_eq!(decide(std::slice::from_ref(&web), false), None);
        assert_eq!(decide(std::slice::from_ref(&web), true), Some(Decision { rule: 1, allow: true }));
        assert_eq!(decide(&[ssh.clone(), web.clone()], true), None);
        assert_eq!(decide(std::slice::from_ref(&ssh), false), Some(Decision { rule: 1, allow: false }));
        let all = rule(ANY, ANY, Protocol::Any, &[], true);
        assert_eq!(decide(&[web, all, ssh], false), Some(Decision { rule: 1, allow: true }));
        // Another protocol has no ports, so nothing is unknown.
        let other = Question { protocol: 47, ..unknown };
        let rules = [rule(ANY, ANY, Protocol::Udp, &[(1, 1)], true)];
        assert_eq!(Rules::new(&rules, false).unwrap().decide(&other), Some(Decision { rule: 1, allow: false }));
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_beyond() {
        let host = |i: usize| format!("fd00::{i:x}/128").parse::<Prefix>().unwrap();
        let with = |count: usize| PolicyRule {
            sources: (0..count).map(host).collect(),
            ..rule(ANY, ANY, Protocol::Any, &[], true)
        };
        let build = |rules: &[PolicyRule]| Rules::new(rules, true).map(|rules| rules.len());
        let one = rule(&["10.0.0.0/8"], &["::/0"], Protocol::Any, &[], true);
        assert_eq!(build(&vec![one.clone(); POLICY_RULES_MAX]), Ok(POLICY_RULES_MAX));
        assert_eq!(build(&vec![one.clone(); POLICY_RULES_MAX + 1]), Err(RulesError::Rules));
        assert_eq!(build(&[one.clone(), with(0)]), Err(RulesError::Sides(1)));
        assert_eq!(build(&[with(POLICY_RULE_PREFIXES_MAX)]), Ok(1));
        assert_eq!(build(&[with(POLICY_RULE_PREFIXES_MAX + 1)]), Err(RulesError::Sides(0)));
        // Each has two destinations besides its sources.
        let mut full = vec![with(POLICY_RULE_PREFIXES_MAX - 2); POLICY_PREFIXES_MAX / POLICY_RULE_PREFIXES_MAX];
        assert_eq!(build(&full), Ok(64));
        full[0] = with(POLICY_RULE_PREFIXES_MAX - 1);
        assert_eq!(build(&full), Err(RulesError::Prefixes));
        let ports = |count: usize| rule(ANY, ANY, Protocol::Udp, &vec![(7, 7); count], true);
        assert_eq!(build(&[ports(POLICY_RULE_PORTS_MAX)]), Ok(1));
        assert_eq!(build(&[ports(POLICY_RULE_PORTS_MAX + 1)]), Err(RulesError::Ports(0)));
        assert_eq!(build(&[rule(ANY, ANY, Protocol::Udp, &[(8, 7)], true)]), Err(RulesError::Ports(0)));
        for protocol in [Protocol::Any, Protocol::Icmp, Protocol::Number(47)] {
            assert_eq!(build(&[rule(ANY, ANY, protocol, &[(7, 7)], true)]), Err(RulesError::NoPorts(0)));
        }
        assert_eq!(build(&[rule(ANY, ANY, Protocol::Number(6), &[(7, 7)], true)]), Ok(1));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few bits differ, so that prefixes and questions meet.
        let v4 = (any::<u32>(), 0..4u32)
            .prop_map(|(bits, at)| (0x0a00_0000 | bits & 0x0101_0103 << at).to_be_bytes().into());
        let v6 =
            (any::<u128>(), 0..4u32).prop_map(|(bits, at)| IpAddr::V6((0xfd << 120 | bits & 0x10101 << at).into()));
        prop_oneof![v4, v6, Just("255.255.255.255".parse().unwrap()), Just(IpAddr::V6(u128::MAX.into()))]
    }

    fn prefixes() -> impl Strategy<Value = Vec<Prefix>> {
        let prefix = (address(), 0..=128u8).prop_map(|(address, len)| {
            let len = if address.is_ipv4() { len / 4 } else { len };
            let cut = |bits: u128, width: u32| {
                if len == 0 { 0 } else { bits >> (width - u32::from(len)) << (width - u32::from(len)) }
            };
            let address = match address {
                IpAddr::V4(v4) => IpAddr::V4((cut(v4.to_bits().into(), 32) as u32).into()),
                IpAddr::V6(v6) => IpAddr::V6(cut(v6.to_bits(), 128).into()),
            };
            Prefix::new(address, len).unwrap()
        });
        prop::collection::vec(prefix, 1..5)
    }

    fn rules() -> impl Strategy<Value = Vec<PolicyRule>> {
        let protocol = prop_oneof![
            Just(Protocol::Any),
            Just(Protocol::Tcp),
            Just(Protocol::Udp),
            Just(Protocol::Icmp),
            Just(Protocol::Number(6)),
            Just(Protocol::Number(47)),
        ];
        let port = (0..6u16, 0..3u16).prop_map(|(first, more)| PortRange { first, last: first + more });
        let rule = (prefixes(), prefixes(), protocol, prop::collection::vec(port, 0..3), any::<bool>());
        let rule = rule.prop_map(|(sources, destinations, protocol, mut ports, allow)| {
            if matches!(protocol, Protocol::Any | Protocol::Icmp | Protocol::Number(47)) {
                ports.clear();
            }
            PolicyRule { sources, destinations, protocol, ports, allow }
        });
        prop::collection::vec(rule, 0..80)
    }

    proptest! {
        #[test]
        fn compiled_rules_decide_as_the_plain_ones_do(
            rules in rules(),
            default_allow: bool,
            questions in prop::collection::vec((address(), address(), prop::sample::select(vec![1u8, 6, 17, 47, 58]), 0..8u16), 1..40),
        ) {
            let compiled = Rules::new(&rules, default_allow).unwrap();
            for (source, destination, protocol, port) in questions {
                // No packet is between two families, and the rules have no opinion on one.
                if source.is_ipv4() != destination.is_ipv4() {
                    continue;
                }
                let port = matches!(protocol, 6 | 17).then_some(port);
                let question = Question { source, destination, protocol, port };
                prop_assert_eq!(compiled.decide(&question), Some(plain(&rules, default_allow, &question)));
                // Whatever an unknown port is, a decision without it holds.
                let unknown = Question { port: None, ..question };
                if let Some(decision) = compiled.decide(&unknown) {
                    for port in 0..10 {
                        let known = plain(&rules, default_allow, &Question { port: Some(port), ..question });
                        prop_assert_eq!(known.allow, decision.allow);
                    }
                }
            }
        }
    }
}
