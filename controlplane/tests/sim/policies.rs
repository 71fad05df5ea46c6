//! Policies: how soon one is everybody's, and what becomes of two.

use data_encoding::BASE64;
use weir_controlplane::api::types::{Error, ErrorCode, PolicyApplyRequest, PolicyRollbackRequest};
use weir_controlplane::membership;
use weir_controlplane::pki::bundle::network_id;
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::policy::SignedPolicy;

use super::*;

const ALLOW: &str = "default = \"allow\"";
pub(super) const DENY: &str = "default = \"deny\"";

fn all_have(world: &World, sites: &[Site], wanted: u64) -> bool {
    sites.iter().all(|site| world.policy_version(*site) == wanted)
}

/// Version and text of the policy in force.
fn in_force(answer: Option<Result<Answer, Error>>) -> (u64, String) {
    match answer {
        Some(Ok(Answer::Policy(policy))) => (policy.version, policy.text),
        other => panic!("{other:?}"),
    }
}

fn shown(world: &mut World, site: Site) -> (u64, String) {
    in_force(world.ask(site, Call::PolicyShow, SECOND))
}

fn text(text: &str) -> Call {
    Call::PolicyApply(PolicyApplyRequest { text: Some(text.to_owned()), signed: None })
}

fn apply(world: &mut World, site: Site, policy: &str) -> u64 {
    in_force(world.ask(site, text(policy), SECOND)).0
}

/// Signed somewhere else.
pub(super) fn signed(world: &World, site: Site, version: u64, text: &str, by: &PrivateKey) -> Call {
    let bundles = membership::bundles(world.store(site)).unwrap();
    let policy = SignedPolicy::sign(network_id(&bundles[0]), version, world.true_time(), text, by).unwrap();
    Call::PolicyApply(PolicyApplyRequest { text: None, signed: Some(BASE64.encode(&policy.to_bytes())) })
}

/// When half of them have a version, and when all have, since one of them was told.
fn spread_over(world: &mut World, sites: &[Site], wanted: u64) -> (Duration, Duration) {
    let have = |world: &World| sites.iter().filter(|site| world.policy_version(**site) >= wanted).count();
    let mut until = |count: usize, patience: Duration| {
        let took = world.run_until(patience, ms(1), |world| have(world) >= count);
        took.unwrap_or_else(|| panic!("{} of {} have it", have(world), sites.len()))
    };
    let half = until(sites.len().div_ceil(2), MINUTE);
    (half, half + until(sites.len(), MINUTE - half))
}

#[test]
fn a_policy_that_one_is_told_is_everybodys_in_a_fraction_of_a_second() {
    let mut world = World::new(seed(710), spread);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 20).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(MINUTE);
    let streams: Vec<_> = pairs(&sites[..5]).map(|(one, other)| world.stream(one, other, ms(50))).collect();
    world.run(SECOND);
    world.call(founder, text(DENY));
    let (half, all) = spread_over(&mut world, &sites, 1);
    println!("21 members: half have it after {half:?}, all after {all:?}");
    // The issuer signs in 2 ms, and it is half a round trip to everybody: the longest are of 104 ms.
    assert!(half <= ms(60) && all <= ms(150), "{half:?}, {all:?}");
    world.run(SECOND);
    let before: Vec<_> = streams.iter().map(|stream| world.stats(*stream).delivered).collect();
    world.run(MINUTE);
    let after: Vec<_> = streams.iter().map(|stream| world.stats(*stream).delivered).collect();
    assert_eq!(after, before, "nothing passes any more");
    assert!(before.iter().all(|delivered| *delivered > 0));
}

#[test]
fn a_policy_reaches_sixty_members_over_neighbours() {
    let mut world = World::new(seed(711), spread);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let mut sites = world.enrol(60).expect("members are made");
    world.start_enrolled(&sites);
    sites.push(founder);
    world.run(MINUTE);
    world.call(founder, text(DENY));
    let (half, all) = spread_over(&mut world, &sites, 1);
    println!("61 members: half have it after {half:?}, all after {all:?}");
    assert!(half <= SECOND && all <= 2 * SECOND, "{half:?}, {all:?}");
}

#[test]
fn a_policy_crosses_a_healed_cut_and_the_newest_counts() {
    let (mut world, sites) = network(712, 6);
    let (near, far) = sites.split_at(3);
    assert_eq!(apply(&mut world, near[0], ALLOW), 1);
    world.run(SECOND);
    assert!(all_have(&world, &sites, 1));
    world.cut(&[near, far]);
    world.run(5 * MINUTE);
    assert_eq!((apply(&mut world, near[0], ALLOW), apply(&mut world, near[0], DENY)), (2, 3));
    // Who signs elsewhere and carries it to the far half has not seen the third.
    let operator = world.founding_keys().unwrap().issuer.clone();
    let second = signed(&world, far[0], 2, ALLOW, &operator);
    assert_eq!(in_force(world.ask(far[0], second, SECOND)).0, 2);
    world.run(MINUTE);
    assert!(all_have(&world, near, 3) && all_have(&world, far, 2));
    world.heal();
    let took = world.run_until(MINUTE, ms(10), |world| all_have(world, &sites, 3)).expect("all have it");
    println!("over a healed cut after {took:?}");
    assert!(took <= 5 * SECOND, "{took:?}");
    for site in &sites {
        assert_eq!(shown(&mut world, *site), (3, DENY.to_owned()));
    }
}

#[test]
fn a_rollback_is_a_new_version_with_old_rules_for_all() {
    let (mut world, sites) = network(713, 5);
    apply(&mut world, sites[0], ALLOW);
    apply(&mut world, sites[0], DENY);
    world.run(SECOND);
    let stream = world.stream(sites[1], sites[2], ms(50));
    world.run(5 * SECOND);
    assert_eq!(world.stats(stream).delivered, 0);
    let rollback = Call::PolicyRollback(PolicyRollbackRequest { version: 1 });
    assert_eq!(in_force(world.ask(sites[0], rollback, SECOND)), (3, ALLOW.to_owned()));
    world.run(SECOND);
    for site in &sites {
        assert_eq!(shown(&mut world, *site), (3, ALLOW.to_owned()));
    }
    world.run(5 * SECOND);
    assert!(world.stats(stream).delivered > 90, "{:?}", world.stats(stream));
    // To one that nobody has, nobody can go back.
    let unknown = world.ask(sites[0], Call::PolicyRollback(PolicyRollbackRequest { version: 9 }), SECOND);
    assert_eq!(unknown.unwrap().unwrap_err().code, ErrorCode::NotFound);
    assert!(all_have(&world, &sites, 3));
}

/// Each half of the network kept the version that it had heard of first, under one number, for good.
#[test]
fn of_two_operators_at_once_all_follow_the_same_one() {
    for (number, is_cut) in [(0, false), (1, true)] {
        let (mut world, sites) = network(714 + number, 6);
        let (near, far) = sites.split_at(3);
        if is_cut {
            world.cut(&[near, far]);
            world.run(5 * MINUTE);
        }
        let operator = world.founding_keys().unwrap().issuer.clone();
        let two = [(near[1], ALLOW), (far[1], DENY)].map(|(site, text)| signed(&world, site, 1, text, &operator));
        let calls = [near[1], far[1]].into_iter().zip(two).map(|(site, call)| world.call(site, call));
        let calls: Vec<_> = calls.collect();
        world.run(SECOND);
        assert!(calls.into_iter().all(|call| world.answer(call).is_some_and(|answer| answer.is_ok())));
        if is_cut {
            assert_ne!(shown(&mut world, near[0]), shown(&mut world, far[0]));
            world.heal();
            world.run(10 * SECOND);
        }
        let first = shown(&mut world, sites[0]);
        for site in &sites {
            assert_eq!(shown(&mut world, *site), first, "{site:?}");
        }
        // It stays so across a restart, and the next one is above both.
        world.kill(sites[3]);
        world.start(sites[3]);
        world.run(10 * SECOND);
        assert_eq!(shown(&mut world, sites[3]), first);
        assert_eq!(apply(&mut world, sites[0], DENY), 2);
        world.run(SECOND);
        assert!(all_have(&world, &sites, 2));
    }
}

/// Two people at the node that signs: its issuer gives out each number once.
#[test]
fn of_two_people_at_one_node_the_second_hears_that_it_was_too_late() {
    let (mut world, sites) = network(716, 4);
    let calls = [ALLOW, DENY].map(|policy| world.call(sites[0], text(policy)));
    world.run(SECOND);
    let [first, second] = calls.map(|call| world.answer(call).expect("an answer"));
    assert_eq!(in_force(Some(first)), (1, ALLOW.to_owned()));
    assert_eq!(second.unwrap_err().code, ErrorCode::Conflict);
    for site in &sites {
        assert_eq!(shown(&mut world, *site), (1, ALLOW.to_owned()));
    }
}

#[test]
fn a_member_that_was_off_for_days_has_the_newest_policy_when_it_is_back() {
    let (mut world, sites) = network(717, 5);
    apply(&mut world, sites[0], DENY);
    world.run(SECOND);
    world.power_off(sites[3]);
    for policy in [ALLOW, DENY, ALLOW, DENY] {
        apply(&mut world, sites[0], policy);
        world.run(18 * HOUR);
    }
    world.start(sites[3]);
    // What it had holds until it hears of another.
    assert_eq!(shown(&mut world, sites[3]), (1, DENY.to_owned()));
    let back = world.run_until(MINUTE, ms(100), |world| world.policy_version(sites[3]) == 5).expect("it hears of it");
    println!("after three days the newest policy is there {back:?} after the start");
    assert!(back <= 5 * SECOND, "{back:?}");
    assert_eq!(shown(&mut world, sites[3]), (5, DENY.to_owned()));
}
