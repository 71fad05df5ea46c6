//! One identity in two places: a state directory that somebody copied.

use super::*;

const WORDS: &str = "is in two places at once";

fn seen(world: &World, sites: &[Site]) -> Vec<u64> {
    sites.iter().map(|site| world.count(*site, "peer_twice")).collect()
}

#[test]
fn a_copied_state_directory_is_seen_by_all_others_and_said() {
    let (mut world, sites) = network(700, 5);
    let (original, others) = (sites[2], [sites[0], sites[1], sites[3], sites[4]]);
    for (one, other) in pairs(&sites) {
        world.stream(one, other, ms(500));
    }
    world.run(5 * MINUTE);
    let copy = world.copy_machine(original);
    world.start(copy);
    assert_eq!(world.id(copy), world.id(original));
    let all = |world: &mut World| others.iter().all(|site| !warnings(world, *site, WORDS).is_empty());
    let took = world.run_until(10 * MINUTE, SECOND, all).expect("all see it");
    println!("seen by all after {took:?}: {:?} times", seen(&world, &others));
    assert!(took <= 5 * MINUTE, "{took:?}");
    assert!(seen(&world, &others).iter().all(|times| *times >= 1));
    let warned = warnings(&mut world, sites[0], WORDS);
    let name = warned[0].0.split(' ').next().unwrap().to_owned();
    let remedy = format!(
        "stop the copy, which was made of its state directory; where nobody made one, `weir revoke {name} --replace`"
    );
    let what = format!("{name} is in two places at once: two gateways run with the same identity");
    assert_eq!(warned, [(what, remedy)]);
    // Without the copy nothing is seen any more, and after an hour nothing is said.
    world.power_off(copy);
    world.run(2 * MINUTE);
    let before = seen(&world, &others);
    world.run(HOUR + MINUTE);
    assert_eq!(seen(&world, &others), before);
    assert!(others.iter().all(|site| warnings(&mut world, *site, WORDS).is_empty()));
    assert!(is_mesh(&world, &sites));
}

/// Restarts of either process or both, of the machine, and other addresses: one place all the same.
#[test]
fn one_place_is_never_taken_for_two() {
    let (mut world, sites) = network(701, 5);
    for (one, other) in pairs(&sites) {
        world.stream(one, other, ms(500));
    }
    for round in 0..6 {
        let site = sites[round % 5];
        world.kill_plane(site);
        world.run(ms(10 + 300 * round as u64));
        world.kill_plane(site);
        world.run(20 * SECOND);
        world.kill(site);
        world.run(SECOND);
        world.start(site);
        world.rebind(site);
        world.run(3 * MINUTE);
        world.power_off(site);
        world.run(10 * SECOND);
        world.start(site);
        world.run(2 * MINUTE);
    }
    assert_eq!(seen(&world, &sites), [0; 5]);
    assert!(sites.iter().all(|site| warnings(&mut world, *site, WORDS).is_empty()));
    assert!(is_mesh(&world, &sites));
}
