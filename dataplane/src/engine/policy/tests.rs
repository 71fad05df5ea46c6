//! One packet after the other, against one policy and one memory of flows.

use std::time::Duration;

use super::*;
use crate::api::policy::{PortRange, Protocol};
use crate::engine::inner::testing::{extensions, fix_checksum, ipv4, ipv6, ipv6_fragment, udp};
use crate::engine::policy::flows::{HashKeys, WAYS};

const START: Time = Time::from_nanos(1 << 50);
const PASSES: Result<(), Denial> = Ok(());
const DENIED: Result<(), Denial> = Err(Denial::Denied);
const UNDECIDED: Result<(), Denial> = Err(Denial::Undecided);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn keys() -> HashKeys {
    HashKeys(std::array::from_fn(|i| (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

fn flows() -> Arc<Flows> {
    Arc::new(Flows::new(1024, keys()))
}

fn rule(from: &str, to: &str, protocol: Protocol, ports: &[u16], allow: bool) -> PolicyRule {
    PolicyRule {
        sources: vec![from.parse().unwrap()],
        destinations: vec![to.parse().unwrap()],
        protocol,
        ports: ports.iter().map(|&port| PortRange { first: port, last: port }).collect(),
        allow,
    }
}

/// From network 1 to network 2: TCP 22, UDP 53 and echo; nothing the other way.
fn rules() -> Vec<PolicyRule> {
    let mut rules = vec![];
    for (from, to) in [("10.1.0.0/16", "10.2.0.0/16"), ("fd00:1::/32", "fd00:2::/32")] {
        rules.push(rule(from, to, Protocol::Tcp, &[22], true));
        rules.push(rule(from, to, Protocol::Udp, &[53], true));
        rules.push(rule(from, to, Protocol::Icmp, &[], true));
    }
    rules
}

fn policy_of(rules: &[PolicyRule], epoch: u32, flows: &Arc<Flows>) -> Policy {
    Policy::new(rules, false, epoch, Arc::clone(flows), 2).unwrap()
}

fn policy() -> Policy {
    policy_of(&rules(), 1, &flows())
}

fn at(policy: &Policy, seconds: u64, packet: &[u8]) -> Result<(), Denial> {
    let inner = Inner::parse(packet).unwrap();
    policy.admit(&inner, packet, (seconds % 3) as u8, START.plus(Duration::from_secs(seconds)))
}

fn ask(policy: &Policy, packet: &[u8]) -> Result<(), Denial> {
    at(policy, 0, packet)
}

fn tcp(ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut segment = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &[0; 16]].concat();
    (segment[12], segment[13]) = (0x50, flags);
    segment
}

fn echo(icmp_type: u8, id: u16) -> Vec<u8> {
    let [i0, i1] = id.to_be_bytes();
    vec![icmp_type, 0, 0, 0, i0, i1, 0, 1]
}

/// From network 1 to network 2.
fn there(protocol: u8, upper: &[u8]) -> Vec<u8> {
    ipv4("10.1.0.5", "10.2.0.9", protocol, 0, upper)
}

/// From network 2 to network 1.
fn back(protocol: u8, upper: &[u8]) -> Vec<u8> {
    ipv4("10.2.0.9", "10.1.0.5", protocol, 0, upper)
}

#[test]
fn replies_pass_and_what_nobody_asked_for_does_not() {
    for (there, back) in [
        (there(17, &udp(4000, 53, b"?")), back(17, &udp(53, 4000, b"!"))),
        (there(6, &tcp((4000, 22), SYN)), back(6, &tcp((22, 4000), SYN | ACK))),
        (there(1, &echo(8, 7)), back(1, &echo(0, 7))),
        (
            ipv6("fd00:1::5", "fd00:2::9", 17, &udp(4000, 53, b"?")),
            ipv6("fd00:2::9", "fd00:1::5", 17, &udp(53, 4000, b"!")),
        ),
        (ipv6("fd00:1::5", "fd00:2::9", 58, &echo(128, 7)), ipv6("fd00:2::9", "fd00:1::5", 58, &echo(129, 7))),
        (
            ipv6("fd00:1::5", "fd00:2::9", 60, &[extensions(&[60], 6), tcp((4000, 22), SYN)].concat()),
            ipv6("fd00:2::9", "fd00:1::5", 6, &tcp((22, 4000), ACK)),
        ),
    ] {
        let policy = policy();
        assert_eq!(ask(&policy, &back), DENIED);
        assert_eq!(ask(&policy, &there), PASSES);
        assert_eq!(ask(&policy, &back), PASSES);
        // A little of the same is not the same.
        let mut other = back.clone();
        let last = if other[0] >> 4 == 4 { 15 } else { 23 };
        other[last] ^= 1;
        if last == 15 {
            fix_checksum(&mut other);
        }
        assert_eq!(ask(&policy, &other), DENIED);
    }
}

#[test]
fn a_packet_that_begins_something_does_not_pass_as_a_reply() {
    let policy = policy();
    assert_eq!(ask(&policy, &there(6, &tcp((4000, 22), SYN))), PASSES);
    assert_eq!(ask(&policy, &back(6, &tcp((22, 4000), ACK))), PASSES);
    assert_eq!(ask(&policy, &back(6, &tcp((22, 4000), SYN))), DENIED);
    assert_eq!(ask(&policy, &there(1, &echo(8, 7))), PASSES);
    assert_eq!(ask(&policy, &back(1, &echo(8, 7))), DENIED);
    assert_eq!(ask(&policy, &back(1, &echo(0, 8))), DENIED, "another id");
    assert_eq!(ask(&policy, &back(6, &tcp((22, 4000), ACK))), PASSES, "the flow is still known");
}

#[test]
fn a_connection_may_be_picked_up_in_its_middle_but_not_by_a_reset_or_an_answer() {
    for (flags, after) in [(ACK, PASSES), (FIN | ACK, PASSES), (RST, DENIED), (RST | ACK, DENIED), (SYN | ACK, DENIED)]
    {
        let policy = policy();
        assert_eq!(ask(&policy, &back(6, &tcp((22, 4000), ACK))), DENIED);
        assert_eq!(ask(&policy, &there(6, &tcp((4000, 22), flags))), PASSES, "the rules allow the direction");
        assert_eq!(ask(&policy, &back(6, &tcp((22, 4000), ACK))), after, "{flags:#x}");
    }
}

#[test]
fn flows_end_with_their_time_or_with_their_connection() {
    let policy = policy();
    assert_eq!(at(&policy, 0, &there(17, &udp(4000, 53, b"?"))), PASSES);
    assert_eq!(at(&policy, 119, &back(17, &udp(53, 4000, b"!"))), PASSES);
    assert_eq!(at(&policy, 119 + 299, &back(17, &udp(53, 4000, b"!"))), PASSES, "answered, so it lives longer");
    assert_eq!(at(&policy, 119 + 299 + 303, &back(17, &udp(53, 4000, b"!"))), DENIED);

    assert_eq!(at(&policy, 0, &there(6, &tcp((4000, 22), SYN))), PASSES);
    assert_eq!(at(&policy, 1, &back(6, &tcp((22, 4000), SYN | ACK))), PASSES);
    assert_eq!(at(&policy, 7400, &back(6, &tcp((22, 4000), ACK))), PASSES);
    assert_eq!(at(&policy, 7401, &there(6, &tcp((4000, 22), RST))), PASSES);
    assert_eq!(at(&policy, 7402, &back(6, &tcp((22, 4000), ACK))), PASSES);
    assert_eq!(at(&policy, 7420, &back(6, &tcp((22, 4000), ACK))), DENIED);
}

#[test]
fn a_new_connection_on_the_ports_of_an_old_one_has_a_life_of_its_own() {
    let policy = policy();
    assert_eq!(at(&policy, 0, &there(6, &tcp((4000, 22), SYN))), PASSES);
    assert_eq!(at(&policy, 0, &back(6, &tcp((22, 4000), RST | ACK))), PASSES);
    assert_eq!(at(&policy, 1, &there(6, &tcp((4000, 22), SYN))), PASSES);
    assert_eq!(at(&policy, 60, &back(6, &tcp((22, 4000), SYN | ACK))), PASSES);
}

#[test]
fn errors_about_known_flows_pass_and_others_do_not() {
    let sent = there(17, &udp(4000, 53, b"long enough"));
    let dropped = there(17, &udp(4001, 53, b"long enough"));
    // From a router on the way, about a packet to network 2; the rules let no ICMP come from there.
    let about =
        |quoted: &[u8], to: &str| ipv4("10.2.0.1", to, 1, 0, &[&[3, 4, 0, 0, 0, 0, 5, 0], &quoted[..28]].concat());
    let policy = policy();
    assert_eq!(ask(&policy, &about(&sent, "10.1.0.5")), DENIED);
    assert_eq!(ask(&policy, &sent), PASSES);
    assert_eq!(ask(&policy, &about(&sent, "10.1.0.5")), PASSES);
    assert_eq!(ask(&policy, &about(&sent, "10.1.0.6")), DENIED, "another host did not send it");
    assert_eq!(ask(&policy, &about(&dropped, "10.1.0.5")), DENIED);
    let tcp_sent = there(6, &tcp((4000, 22), SYN));
    assert_eq!(ask(&policy, &about(&tcp_sent, "10.1.0.5")), DENIED);
    assert_eq!(ask(&policy, &tcp_sent), PASSES);
    assert_eq!(ask(&policy, &about(&tcp_sent, "10.1.0.5")), PASSES);
    let pinged = there(1, &echo(8, 7));
    assert_eq!(ask(&policy, &pinged), PASSES);
    assert_eq!(ask(&policy, &about(&pinged, "10.1.0.5")), PASSES);
    // An error the other way, about a reply, is of the same flow.
    let reply = back(17, &udp(53, 4000, b"long enough"));
    let error = ipv4("10.1.0.5", "10.2.0.9", 1, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0], &reply[..28]].concat());
    let strict = policy_of(&rules()[..2], 1, &policy.flows);
    assert_eq!(ask(&strict, &error), PASSES);

    let sent = ipv6("fd00:1::5", "fd00:2::9", 17, &udp(4000, 53, b"?"));
    let error = ipv6("fd00:2::1", "fd00:1::5", 58, &[&[2, 0, 0, 0, 0, 0, 5, 0], &sent[..]].concat());
    assert_eq!(ask(&policy, &error), DENIED);
    assert_eq!(ask(&policy, &sent), PASSES);
    assert_eq!(ask(&policy, &error), PASSES);
}

#[test]
fn other_icmp_stands_for_itself() {
    let policy = policy();
    let timestamp = [13, 0, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ask(&policy, &there(1, &timestamp)), PASSES);
    assert_eq!(ask(&policy, &back(1, &timestamp)), DENIED);
}

#[test]
fn fragments_pass_behind_the_first_one_and_not_before() {
    let whole = udp(4000, 53, &[7; 40]);
    let first = ipv4("10.1.0.5", "10.2.0.9", 17, 0x2000, &whole[..24]);
    let last = ipv4("10.1.0.5", "10.2.0.9", 17, 3, &whole[24..]);
    let policy = policy();
    assert_eq!(ask(&policy, &last), UNDECIDED);
    assert_eq!(ask(&policy, &first), PASSES);
    assert_eq!(at(&policy, 29, &last), PASSES);
    assert_eq!(at(&policy, 33, &last), UNDECIDED);
    let mut of_another = last;
    of_another[5] ^= 1;
    fix_checksum(&mut of_another);
    assert_eq!(ask(&policy, &of_another), UNDECIDED);
    // A reply in fragments.
    let whole = udp(53, 4000, &[7; 40]);
    let first = ipv4("10.2.0.9", "10.1.0.5", 17, 0x2000, &whole[..24]);
    let last = ipv4("10.2.0.9", "10.1.0.5", 17, 3, &whole[24..]);
    assert_eq!((ask(&policy, &first), ask(&policy, &last)), (PASSES, PASSES));
    // A first fragment that is refused speaks for nothing.
    let first = ipv4("10.1.0.5", "10.2.0.9", 17, 0x2000, &udp(4000, 54, &[7; 16]));
    let last = ipv4("10.1.0.5", "10.2.0.9", 17, 3, &[7; 16]);
    let policy = policy_of(&rules(), 1, &flows());
    assert_eq!((ask(&policy, &first), ask(&policy, &last)), (DENIED, UNDECIDED));

    let first = ipv6_fragment(1, 17, &udp(4000, 53, &[7; 16]));
    let last = ipv6_fragment(24, 17, &[7; 5]);
    assert_eq!((ask(&policy, &last), ask(&policy, &first), ask(&policy, &last)), (UNDECIDED, PASSES, PASSES));
}

#[test]
fn fragments_are_decided_where_their_ports_do_not_matter() {
    let all = rule("10.1.0.0/16", "10.2.0.0/16", Protocol::Any, &[], true);
    let later = ipv4("10.1.0.5", "10.2.0.9", 17, 3, &[7; 16]);
    let policy = policy_of(&[rules()[1].clone(), all.clone()], 1, &flows());
    assert_eq!(ask(&policy, &later), PASSES);
    let policy = policy_of(&[rule("10.1.0.0/16", "10.2.0.0/16", Protocol::Udp, &[53], false), all], 1, &flows());
    assert_eq!(ask(&policy, &later), UNDECIDED);
    assert_eq!(ask(&policy, &ipv4("10.3.0.5", "10.2.0.9", 17, 3, &[7; 16])), DENIED);
}

/// RFC 1858 and RFC 3128: a first fragment without flags, and one that would change them afterwards.
#[test]
fn tcp_flags_cannot_be_hidden_in_fragments() {
    let policy = policy();
    let segment = tcp((4000, 22), SYN);
    assert_eq!(ask(&policy, &ipv4("10.1.0.5", "10.2.0.9", 6, 0x2000, &segment[..8])), UNDECIDED);
    assert_eq!(ask(&policy, &ipv4("10.1.0.5", "10.2.0.9", 6, 0x2000, &segment[..16])), PASSES);
    assert_eq!(ask(&policy, &ipv4("10.1.0.5", "10.2.0.9", 6, 0x2001, &segment[8..16])), UNDECIDED);
    assert_eq!(ask(&policy, &ipv4("10.1.0.5", "10.2.0.9", 6, 2, &segment[16..])), PASSES);
    assert_eq!(ask(&policy, &there(6, &segment[..13])), UNDECIDED);
    assert_eq!(ask(&policy, &there(17, &udp(1, 53, b"")[..3])), UNDECIDED);
    assert_eq!(ask(&policy, &there(1, &[])), PASSES, "no rule about ICMP asks for more");
}

#[test]
fn a_new_policy_keeps_the_flows_that_it_allows_and_cuts_the_others() {
    let flows = flows();
    let before = policy_of(&rules(), 1, &flows);
    let (query, answer) = (there(17, &udp(4000, 53, b"?")), back(17, &udp(53, 4000, b"!")));
    let (syn, ack) = (there(6, &tcp((4000, 22), SYN)), back(6, &tcp((22, 4000), ACK)));
    assert_eq!((ask(&before, &query), ask(&before, &syn)), (PASSES, PASSES));
    // Only TCP is left, and it was the peer's packet that asked.
    let after = policy_of(&rules()[..1], 2, &flows);
    assert_eq!(ask(&after, &ack), PASSES);
    assert_eq!(after.hits(), [1, 0], "asked once");
    assert_eq!(ask(&after, &ack), PASSES);
    assert_eq!(after.hits(), [1, 0]);
    let error = ipv4("10.2.0.1", "10.1.0.5", 1, 0, &[&[3, 4, 0, 0, 0, 0, 5, 0], &query[..28]].concat());
    assert_eq!(ask(&after, &error), DENIED, "the flow is known, and not allowed any more");
    assert_eq!(ask(&after, &answer), DENIED);
    assert_eq!(ask(&after, &query), DENIED);
    // What was cut does not come back by itself.
    let again = policy_of(&rules(), 3, &flows);
    assert_eq!(ask(&again, &answer), DENIED);
    assert_eq!(ask(&again, &query), PASSES);
    assert_eq!(ask(&again, &answer), PASSES);
}

#[test]
fn decisions_are_counted_for_the_rule_that_made_them() {
    let policy = policy();
    for worker in 0..5 {
        let query = there(17, &udp(4000 + u16::from(worker), 53, b"?"));
        let inner = Inner::parse(&query).unwrap();
        assert_eq!(policy.admit(&inner, &query, worker, START), PASSES);
        assert_eq!(policy.admit(&inner, &query, worker, START), PASSES);
    }
    assert_eq!(ask(&policy, &back(17, &udp(53, 9, b"!"))), DENIED);
    assert_eq!(ask(&policy, &there(1, &echo(8, 7))), PASSES);
    assert_eq!(policy.hits(), [0, 5, 1, 0, 0, 0, 1]);
}

#[test]
fn a_flow_beyond_the_last_place_is_refused_and_the_known_ones_live() {
    let policy = policy_of(&rules(), 1, &Arc::new(Flows::new(WAYS, keys())));
    let query = |port: usize| there(17, &udp(4000 + port as u16, 53, b"?"));
    let answer = |port: usize| back(17, &udp(53, 4000 + port as u16, b"!"));
    for port in 0..WAYS {
        assert_eq!((ask(&policy, &query(port)), ask(&policy, &answer(port))), (PASSES, PASSES));
    }
    assert_eq!(ask(&policy, &query(WAYS)), Err(Denial::FlowsFull));
    assert!((0..WAYS).all(|port| ask(&policy, &answer(port)) == PASSES));
    assert_eq!(at(&policy, 303, &query(WAYS)), PASSES);
}

#[test]
fn protocols_without_ports_are_flows_of_their_addresses() {
    let flows = flows();
    let rules = [rule("10.1.0.0/16", "10.2.0.0/16", Protocol::Number(47), &[], true)];
    let policy = policy_of(&rules, 1, &flows);
    assert_eq!(ask(&policy, &back(47, &[0; 4])), DENIED);
    assert_eq!(ask(&policy, &there(47, &[0; 4])), PASSES);
    assert_eq!(ask(&policy, &back(47, &[0; 4])), PASSES);
    assert_eq!(ask(&policy, &back(50, &[0; 4])), DENIED);
}
