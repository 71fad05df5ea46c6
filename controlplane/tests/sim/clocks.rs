//! Clocks that are wrong.

use super::*;

const YEAR: i64 = 365 * 86_400;

fn is_right(world: &mut World, site: Site) -> bool {
    world.clock_ahead_secs(site).abs() <= 10
}

/// A box without a battery: off for two days, its clock begins in 1970, and all certificates are from its future.
#[test]
fn a_member_that_boots_in_1970_comes_back() {
    boots_after(&[(MINUTE, 0), (2 * DAY, 1)]);
}

#[test]
#[ignore = "minutes"]
fn a_member_that_boots_in_1970_after_weeks_comes_back() {
    boots_after(&[(20 * DAY, 2)]);
}

fn boots_after(times: &[(Duration, u64)]) {
    for &(off, number) in times {
        let mut world = World::new(seed(60 + number), |_, _| RTT);
        world.set_idle(300);
        let founder = world.found().unwrap();
        world.run(5 * SECOND);
        world.grow(founder, 4).expect("all join");
        let sites: Vec<Site> = world.sites().collect();
        world.run(HOUR);
        world.power_off(sites[3]);
        world.run(off);
        let to_1970 = -i64::try_from(world.true_time().0).unwrap();
        world.set_clock(sites[3], to_1970);
        world.start(sites[3]);
        let back = world.run_until(HOUR, SECOND, |world| agree(world, &sites) && is_right(world, sites[3]));
        let ahead = world.clock_ahead_secs(sites[3]);
        let back = back.unwrap_or_else(|| panic!("off for {off:?}, it stays {ahead} s ahead"));
        // Its own certificate is past all grace then, and attempts to renew it come a minute apart at best.
        let limit = if off < 8 * DAY { 15 * MINUTE } else { 45 * MINUTE };
        assert!(back <= limit, "after {back:?}");
    }
}

#[test]
fn a_box_that_boots_in_1970_joins() {
    let (mut world, sites) = network(64, 4);
    let token = world.invite(sites[0], 1, None).unwrap();
    let new = world.add_machine();
    let to_1970 = -i64::try_from(world.true_time().0).unwrap();
    world.set_clock(new, to_1970);
    world.start(new);
    let call = world.join(new, &token);
    world.run(20 * SECOND);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
    let all: Vec<Site> = world.sites().collect();
    world.run_until(15 * MINUTE, SECOND, |world| is_mesh(world, &all) && is_right(world, new)).expect("a member");
}

#[test]
fn a_running_clock_that_jumps_costs_nothing() {
    jumps(HOUR);
}

#[test]
#[ignore = "minutes"]
fn a_running_clock_that_jumps_costs_nothing_in_a_day() {
    jumps(30 * HOUR);
}

fn jumps(long: Duration) {
    // Twenty days ahead everybody's certificate is past its grace.
    for (jump, number) in [(7200, 0), (-7200, 1), (10 * YEAR, 2), (-10 * YEAR, 3), (20 * 86_400, 4)] {
        let (mut world, sites) = network(65 + number, 5);
        let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, ms(500))).collect();
        world.run(15 * MINUTE);
        world.set_clock(sites[1], jump);
        world.run(20 * MINUTE);
        let ahead = world.clock_ahead_secs(sites[1]);
        assert!(ahead.abs() <= 10, "a jump by {jump} s is {ahead} s after twenty minutes");
        world.run(long);
        assert!(is_mesh(&world, &sites) && agree(&world, &sites));
        assert!(long < DAY || world.count(sites[1], "renewed") >= 1);
        let lost: u64 = streams.iter().map(|stream| world.stats(*stream).lost()).sum();
        assert_eq!(lost, 0, "after a jump by {jump} s");
    }
}

#[test]
fn a_machine_that_slept_for_eight_hours_goes_on() {
    let (mut world, sites) = network(69, 4);
    world.run(10 * HOUR);
    world.suspend(sites[2], 8 * HOUR);
    world.run(8 * HOUR);
    let back = world.run_until(10 * MINUTE, SECOND, |world| is_mesh(world, &sites)).expect("sessions come back");
    assert!(back <= 2 * MINUTE, "after {back:?}");
    assert!(is_right(&mut world, sites[2]));
    // Its renewal fell into its sleep, by a clock that did not stand still.
    world.run(5 * MINUTE);
    assert!(world.count(sites[2], "renewed") >= 1);
}
