//! Who may talk to whom, from gateway to gateway.

use super::rig::*;
use crate::api::policy::{PolicyRule, PortRange, Protocol};
use crate::engine::inner::testing::{ipv4, udp};
use crate::engine::policy::Policy;
use crate::engine::policy::flows::{FLOWS_MAX, Flows, HashKeys};
use crate::engine::*;

/// UDP port 53 of network `to` for network `from`, and nothing else.
fn dns(from: u8, to: u8) -> Vec<PolicyRule> {
    vec![PolicyRule {
        sources: prefixes(from).to_vec(),
        destinations: prefixes(to).to_vec(),
        protocol: Protocol::Udp,
        ports: vec![PortRange { first: 53, last: 53 }],
        allow: true,
    }]
}

/// Keys like random ones: with short ones, every flow would be the same.
fn keys() -> HashKeys {
    HashKeys(std::array::from_fn(|i| (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

fn flows() -> Arc<Flows> {
    Arc::new(Flows::new(FLOWS_MAX, keys()))
}

fn enforce(gateway: &mut Gateway, rules: &[PolicyRule], epoch: u32, flows: &Arc<Flows>) {
    let policy = Policy::new(rules, false, epoch, Arc::clone(flows), 1).unwrap();
    gateway.engine.command(Command::Policy(Some(Arc::new(policy))), START);
}

/// UDP from host 5 of network `from` to host 9 of network `to`.
fn query(from: u8, to: u8, port: u16) -> Vec<u8> {
    ipv4(&format!("10.{from}.0.5"), &format!("10.{to}.0.9"), 17, 0, &udp(4000, port, b"?"))
}

fn answer(from: u8, to: u8, port: u16) -> Vec<u8> {
    ipv4(&format!("10.{from}.0.9"), &format!("10.{to}.0.5"), 17, 0, &udp(port, 4000, b"!"))
}

/// What reaches the other side's hosts.
fn across(from: &mut Gateway, to: &mut Gateway, packet: Vec<u8>) -> Vec<Vec<u8>> {
    let (wan, lan) = from.encapsulate(START, Burst::of([packet]));
    assert_eq!(lan.frames, []);
    let (lan, wan) = to.decapsulate(START, Burst::trains(wan));
    assert_eq!(wan.frames, [], "a peer is not told");
    lan.bytes()
}

#[test]
fn what_waits_for_a_session_is_judged_and_counted_once() {
    let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1]));
    let policy = Policy::new(&dns(1, 2), false, 1, flows(), 1).unwrap();
    let policy = Arc::new(policy);
    one.engine.command(Command::Policy(Some(Arc::clone(&policy))), START);
    for packet in [query(1, 2, 53), query(1, 2, 54)] {
        let (wan, lan) = one.encapsulate(START, Burst::of([packet]));
        assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
    }
    assert_eq!(policy.hits(), [0, 0]);
    one.install(2, &Link::default());
    two.install(1, &Link::default());
    let (mut wan, mut lan) = (Sink::new(), Sink::new());
    one.engine.send_held(START, &mut wan, &mut lan);
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), [query(1, 2, 53)]);
    assert_eq!(policy.hits(), [1, 1]);
}

/// How many packets were dropped since the last time, and why.
fn drops(gateway: &mut Gateway) -> Vec<(&'static str, u64)> {
    let moved = gateway.moved().into_iter();
    moved.filter(|(name, _)| name.contains("policy")).collect()
}

#[test]
fn the_receiver_enforces_what_the_sender_does_not_know() {
    let (mut one, mut two) = pair(&Link::default());
    enforce(&mut two, &dns(1, 2), 1, &flows());
    assert_eq!(across(&mut one, &mut two, query(1, 2, 53)), [query(1, 2, 53)]);
    assert_eq!(across(&mut two, &mut one, answer(2, 1, 53)), [answer(2, 1, 53)], "a reply");
    assert!(across(&mut one, &mut two, query(1, 2, 54)).is_empty());
    let moved = two.moved();
    assert_eq!(moved.last(), Some(&("policy_denied", 1)));
    assert_eq!(moved.iter().filter(|(name, _)| name.contains("icmp")).count(), 0);
}

#[test]
fn the_sender_is_told_by_its_own_gateway() {
    let (mut one, mut two) = pair(&Link::default());
    enforce(&mut two, &dns(1, 2), 1, &flows());
    for (packet, code) in [(query(2, 1, 53), (3, 13, 0)), (v6(2, 1, 100, 1), (1, 1, 0))] {
        let (wan, lan) = two.encapsulate(START, Burst::of([packet.clone()]));
        assert_eq!((wan.frames.len(), lan.frames.len()), (0, 1));
        assert_eq!(icmp_error(2, 2, &lan.frames[0].0, &packet), code);
        assert_eq!(two.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), ("local_policy_denied", 1)]);
    }
    // It opens a flow as well, which the peer answers.
    enforce(&mut two, &dns(2, 1), 2, &flows());
    assert!(across(&mut one, &mut two, answer(1, 2, 53)).is_empty());
    assert_eq!(across(&mut two, &mut one, query(2, 1, 53)).len(), 1);
    assert_eq!(across(&mut one, &mut two, answer(1, 2, 53)), [answer(1, 2, 53)]);
}

/// With lanes, the two directions of a flow come to two workers: here to two engines.
#[test]
fn workers_share_their_memory_of_flows() {
    let (mut one, mut two) = pair(&Link::default());
    let mut beside = Gateway::new(2, &[1]);
    beside.install(1, &Link { exchange: 2, ..Link::default() });
    let shared = flows();
    enforce(&mut two, &dns(2, 1), 1, &shared);
    enforce(&mut beside, &dns(2, 1), 1, &shared);
    assert!(across(&mut one, &mut two, answer(1, 2, 53)).is_empty());
    let (wan, _) = beside.encapsulate(START, Burst::of([query(2, 1, 53)]));
    assert_eq!(wan.frames.len(), 1);
    assert_eq!(across(&mut one, &mut two, answer(1, 2, 53)), [answer(1, 2, 53)]);
}

#[test]
fn packets_between_peers_are_left_to_the_last_gateway() {
    let peer = |m| (m, NextHop::Session(slot(m)));
    let mut two = Gateway::new(2, &[1, 3]);
    two.route(&[peer(1), peer(3)], true);
    let mut one = Gateway::new(1, &[2]);
    one.route(&[peer(2), (3, NextHop::Session(slot(2)))], false);
    one.install(2, &Link::default());
    two.install(1, &Link::default());
    two.install(3, &Link::default());
    enforce(&mut two, &[], 1, &flows());
    let (wan, _) = one.encapsulate(START, Burst::of([query(1, 3, 53), query(1, 2, 53)]));
    let (lan, wan) = two.decapsulate(START, Burst::trains(wan));
    assert_eq!((lan.frames.len(), wan.frames.len()), (0, 1));
    assert_eq!(drops(&mut two), [("policy_denied", 1)]);
}

#[test]
fn a_policy_is_swapped_between_batches_and_given_back() {
    let (mut one, mut two) = pair(&Link::default());
    let shared = flows();
    enforce(&mut two, &dns(1, 2), 1, &shared);
    two.events();
    assert_eq!(across(&mut one, &mut two, query(1, 2, 53)).len(), 1);
    enforce(&mut two, &[], 2, &shared);
    assert!(matches!(two.engine.poll_event(), Some(Event::RetiredPolicy(_))));
    assert!(across(&mut one, &mut two, query(1, 2, 53)).is_empty(), "a flow that is not allowed any more");
    two.engine.command(Command::Policy(None), START);
    assert!(matches!(two.engine.poll_event(), Some(Event::RetiredPolicy(_))));
    assert_eq!(across(&mut one, &mut two, query(1, 2, 54)).len(), 1);
    assert_eq!(drops(&mut two), [("policy_denied", 1)]);
}

#[test]
fn fragments_without_their_first_and_flows_without_a_place_have_reasons_of_their_own() {
    let (mut one, mut two) = pair(&Link::default());
    let small = Arc::new(Flows::new(1, keys()));
    enforce(&mut two, &dns(1, 2), 1, &small);
    let later = ipv4("10.1.0.5", "10.2.0.9", 17, 3, &[7; 16]);
    assert!(across(&mut one, &mut two, later).is_empty());
    assert_eq!(drops(&mut two), [("policy_undecided", 1)]);
    for host in 0..9 {
        let source = format!("10.1.0.{}", 10 + host);
        let there = ipv4(&source, "10.2.0.9", 17, 0, &udp(4000, 53, b"?"));
        let back = ipv4("10.2.0.9", &source, 17, 0, &udp(53, 4000, b"!"));
        let arrived = across(&mut one, &mut two, there).len();
        if host < 8 {
            assert_eq!((arrived, across(&mut two, &mut one, back).len()), (1, 1));
        } else {
            assert_eq!((arrived, drops(&mut two)), (0, vec![("policy_flows_full", 1)]));
        }
    }
}
