//! What is away for a while: the issuer, half of the network, a member.

use super::*;

fn lost(world: &World, streams: &[weir_controlplane::sim::StreamId]) -> u64 {
    streams.iter().map(|stream| world.stats(*stream).lost()).sum()
}

#[test]
fn certificates_are_renewed_for_three_days_and_nothing_is_lost() {
    let (mut world, sites) = network(3, 3);
    let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, SECOND)).collect();
    world.run(3 * DAY);
    for site in &sites {
        let renewed = world.count(*site, "renewed");
        assert!((3..=6).contains(&renewed), "{site:?}: {renewed}");
        assert_eq!(world.count(*site, "renewal_failed"), 0);
    }
    assert_eq!(lost(&world, &streams), 0);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
}

#[test]
fn the_only_issuer_is_off_for_thirty_hours_and_nothing_is_lost() {
    let (mut world, sites) = network(30, 4);
    let others = &sites[1..];
    let streams: Vec<_> = pairs(others).map(|(one, other)| world.stream(one, other, SECOND)).collect();
    world.run(HOUR);
    world.power_off(sites[0]);
    world.run(30 * HOUR);
    assert_eq!(lost(&world, &streams), 0);
    for site in others {
        // More often towards the end, but no storm.
        let costs = world.count(*site, "renewal_failed");
        assert!(costs < 2000, "{costs} attempts failed");
    }
    world.start(sites[0]);
    let renewed = |world: &mut World| others.iter().all(|site| world.count(*site, "renewed") >= 1);
    world.run_until(15 * MINUTE, SECOND, renewed).expect("all renew once the issuer is back");
    world.run(5 * MINUTE);
    assert_eq!(lost(&world, &streams), 0);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
}

#[test]
fn an_issuers_process_that_is_gone_is_asked_no_end_of_things() {
    let (mut world, sites) = network(34, 3);
    world.set_issuer(sites[0], false);
    world.run(30 * HOUR);
    world.set_issuer(sites[0], true);
    let renewed = |world: &mut World| sites.iter().all(|site| world.count(*site, "renewed") >= 1);
    world.run_until(15 * MINUTE, SECOND, renewed).expect("all renew once the issuer is back");
    assert!(is_mesh(&world, &sites));
}

#[test]
fn both_halves_of_a_cut_network_work_and_become_one_again() {
    cut_for(3 * HOUR);
}

#[test]
#[ignore = "minutes"]
fn both_halves_of_a_cut_network_work_for_three_days_and_become_one_again() {
    cut_for(3 * DAY);
}

fn cut_for(long: Duration) {
    let (mut world, sites) = network(72, 6);
    let (near, far) = sites.split_at(3);
    let within: Vec<_> =
        pairs(near).chain(pairs(far)).map(|(one, other)| world.stream(one, other, 10 * SECOND)).collect();
    world.run(MINUTE);
    world.cut(&[near, far]);
    world.run(long);
    assert_eq!(lost(&world, &within), 0);
    assert!(is_mesh(&world, near) && is_mesh(&world, far) && agree(&world, near) && agree(&world, far));
    let handshakes: Vec<u64> = sites.iter().map(|site| world.costs(*site).handshakes).collect();
    world.heal();
    let healed = world.run_until(10 * MINUTE, SECOND, |world| agree(world, &sites) && is_mesh(world, &sites));
    let healed = healed.expect("the halves become one");
    assert!(healed <= 2 * MINUTE, "after {healed:?}");
    assert_eq!(lost(&world, &within), 0);
    for (site, before) in sites.iter().zip(handshakes) {
        let made = world.costs(*site).handshakes - before;
        assert!(made < 60, "{made} handshakes of {site:?} to become one again");
    }
    world.run(HOUR);
    assert!(agree(&world, &sites) && is_mesh(&world, &sites));
}

/// Longer than any record lives: each half has forgotten the other, but where it was.
#[test]
#[ignore = "minutes"]
fn halves_that_were_apart_for_ten_days_find_one_another() {
    let mut world = World::new(seed(73), |_, _| RTT);
    world.set_idle(300);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 3).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(MINUTE);
    world.cut(&[&sites[..2], &sites[2..]]);
    world.run(10 * DAY);
    world.heal();
    let healed = world.run_until(HOUR, SECOND, |world| agree(world, &sites)).expect("the halves become one");
    assert!(healed <= 15 * MINUTE, "after {healed:?}");
}

#[test]
#[ignore = "minutes"]
fn a_member_that_was_off_for_thirty_days_returns_without_a_token() {
    let mut world = World::new(seed(74), |_, _| RTT);
    world.set_idle(300);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 3).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(HOUR);
    world.power_off(sites[2]);
    world.run(30 * DAY);
    world.start(sites[2]);
    let back = world.run_until(HOUR, SECOND, |world| agree(world, &sites)).expect("it is a member again");
    assert!(back <= 5 * MINUTE, "after {back:?}");
    let stream = world.stream(sites[2], sites[1], ms(100));
    world.run(MINUTE);
    assert!(world.stats(stream).delivered > 500);
}

#[test]
fn a_root_is_rotated_while_the_network_is_cut() {
    let (mut world, sites) = network(75, 5);
    let (near, far) = sites.split_at(2);
    let within: Vec<_> = pairs(near).chain(pairs(far)).map(|(one, other)| world.stream(one, other, SECOND)).collect();
    world.cut(&[near, far]);
    world.run(10 * MINUTE);
    assert_eq!(world.rotate_root(near[0]), Some(2));
    world.run(30 * HOUR);
    assert_eq!(world.documents(near[1]).map(|known| known.0), Some(2));
    assert_eq!(world.documents(far[1]).map(|known| known.0), Some(1));
    world.heal();
    world.run_until(5 * MINUTE, SECOND, |world| agree(world, &sites) && is_mesh(world, &sites)).expect("one again");
    assert_eq!(world.documents(far[1]).map(|known| known.0), Some(2));
    assert_eq!(lost(&world, &within), 0);
}
