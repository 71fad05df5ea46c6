//! A policy is built, put in force and asked about.

use super::*;
use crate::api::policy::{PolicyRule, PortRange, Protocol};
use crate::api::{POLICY_PREFIXES_MAX, POLICY_RULE_PREFIXES_MAX, POLICY_RULES_MAX};

fn rule(prefixes: usize) -> PolicyRule {
    let host = |i: usize| prefix(&format!("fd00:2::{i:x}/128"));
    PolicyRule {
        sources: (0..prefixes).map(host).collect(),
        destinations: vec![prefix("::/0")],
        protocol: Protocol::Any,
        ports: vec![],
        allow: true,
    }
}

fn commit(state: &mut State<Seeded>, default_allow: bool, version: u64) -> Vec<String> {
    done(state, Request::CommitPolicy { default_allow, version }, START);
    brief(&effects(state))
}

fn hits(state: &mut State<Seeded>) -> (u64, Vec<u64>) {
    match ask(state, Request::PolicyHits, START) {
        Reply::PolicyHits { version, hits } => (version, hits),
        other => panic!("{other:?}"),
    }
}

#[test]
fn staged_rules_take_effect_together_and_every_worker_is_told() {
    let mut state = plane(1, 2);
    assert_eq!(hits(&mut state), (0, vec![]));
    done(&mut state, Request::StagePolicy(vec![rule(1)]), START);
    done(&mut state, Request::StagePolicy(vec![rule(2)]), START);
    assert_eq!(effects(&mut state).len(), 0);
    assert_eq!(commit(&mut state, false, 7), ["0: policy true", "1: policy true"]);
    assert_eq!(hits(&mut state), (7, vec![0, 0, 0]), "each rule's and the default's");
    // The stage is empty again; what was thrown away does not come back.
    done(&mut state, Request::StagePolicy(vec![rule(1)]), START);
    done(&mut state, Request::DiscardPolicy, START);
    assert_eq!(commit(&mut state, false, 8), ["0: policy true", "1: policy true"]);
    assert_eq!(hits(&mut state), (8, vec![0]));
    assert_eq!(commit(&mut state, true, 9), ["0: policy false", "1: policy false"]);
    assert_eq!(hits(&mut state), (9, vec![]));
}

#[test]
fn a_rule_that_cannot_be_is_refused_with_all_that_came_with_it() {
    let mut state = plane(1, 1);
    done(&mut state, Request::StagePolicy(vec![rule(1)]), START);
    let ports = |first, last| vec![PortRange { first, last }];
    for wrong in [
        PolicyRule { sources: vec![], ..rule(1) },
        PolicyRule { destinations: vec![], ..rule(1) },
        PolicyRule { ports: ports(1, 2), ..rule(1) },
        PolicyRule { protocol: Protocol::Tcp, ports: ports(2, 1), ..rule(1) },
        rule(POLICY_RULE_PREFIXES_MAX + 1),
    ] {
        let refusal = refused(&mut state, Request::StagePolicy(vec![rule(1), wrong]), START);
        assert!(matches!(&refusal, Refusal::Invalid(why) if why.starts_with("rule 2 ")), "{refusal}");
    }
    assert_eq!(state.policies.stage, [rule(1)]);
}

#[test]
fn the_stage_ends_at_its_limits() {
    let mut state = plane(1, 1);
    done(&mut state, Request::StagePolicy(vec![rule(1); POLICY_RULES_MAX]), START);
    assert!(is_limit(&refused(&mut state, Request::StagePolicy(vec![rule(1)]), START), POLICY_RULES_MAX));
    assert_eq!(commit(&mut state, false, 1), ["0: policy true"]);
    let long = rule(POLICY_RULE_PREFIXES_MAX - 1);
    done(&mut state, Request::StagePolicy(vec![long; POLICY_PREFIXES_MAX / POLICY_RULE_PREFIXES_MAX]), START);
    assert!(is_limit(&refused(&mut state, Request::StagePolicy(vec![rule(1)]), START), POLICY_PREFIXES_MAX));
    done(&mut state, Request::DiscardPolicy, START);
    done(&mut state, Request::StagePolicy(vec![rule(1)]), START);
}

#[test]
fn flows_are_remembered_from_one_policy_to_the_next() {
    let mut state = plane(1, 1);
    commit(&mut state, false, 1);
    let flows = state.flows();
    commit(&mut state, true, 2);
    commit(&mut state, false, 3);
    assert!(Arc::ptr_eq(&flows, &state.flows()));
    assert_eq!(state.policies.epoch, 3);
}
