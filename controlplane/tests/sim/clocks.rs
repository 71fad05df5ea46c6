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

/// The certificate that it was given seemed to be from the future as well, and it asked for another one for ever.
#[test]
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

const OFF: &str = "the clock of ";

/// Two members: nobody knows whose clock is right, so they agree on nothing but what time cannot spoil.
#[test]
fn beyond_an_hour_two_members_agree_on_no_keys_until_the_clock_is_set() {
    for (number, off, way) in [(0, 3 * 3600, "ahead of"), (1, -3 * 3600, "behind")] {
        let (mut world, sites) = network(640 + number, 2);
        let stream = world.stream(sites[0], sites[1], ms(200));
        // A new one has no clock but the machine's: with others to ask it would be set right.
        world.power_off(sites[1]);
        let kept: i64 = if off < 0 { 4 * 3600 } else { 0 };
        if kept > 0 {
            // Behind by as much as the others went on without it.
            world.run(Duration::from_secs(kept.unsigned_abs()));
        }
        world.set_clock(sites[1], off);
        world.start(sites[1]);
        world.run(5 * MINUTE);
        let counted = |world: &World, name: &str| sites.iter().map(|site| world.count(*site, name)).collect::<Vec<_>>();
        assert!(counted(&world, "peer_clock_off").iter().all(|count| *count >= 1), "off by {off} s");
        assert!(counted(&world, "exchange_clock").iter().sum::<u64>() > 0);
        assert!(!world.is_session(sites[0], sites[1]), "off by {off} s");
        let warned = warnings(&mut world, sites[0], OFF);
        let what = &warned[0].0;
        assert!(what.contains(way) && what.ends_with("no keys are agreed on with it until that is settled"), "{what}");
        assert_eq!(warned[0].1, "set whichever of the two is wrong, and let NTP keep it");
        // What takes rights away is known all the same, and so is the way to a certificate.
        let (bundle, ..) = world.documents(sites[1]).unwrap();
        world.hold_ceremony(sites[0], |ceremony, _| ceremony.allow_legacy_kyber(true)).expect("a new bundle");
        world.run(SECOND);
        assert_eq!(world.documents(sites[1]).unwrap().0, bundle + 1);
        // A certificate begins an hour before it is made, so to one that is further behind it is from the future.
        assert_eq!(world.ask(sites[1], Call::CertRenew, 5 * SECOND).unwrap().is_ok(), off > 0);
        // Set right, the two have keys again within minutes, and nothing is left to say.
        world.kill(sites[1]);
        world.set_clock(sites[1], 0);
        world.run(if off > 0 { Duration::from_secs(off.unsigned_abs()) } else { SECOND });
        world.start(sites[1]);
        let back = world.run_until(10 * MINUTE, SECOND, |world| world.is_session(sites[0], sites[1]));
        assert!(back.is_some(), "off by {off} s");
        world.run(10 * SECOND);
        for site in &sites {
            assert_eq!(warnings(&mut world, *site, OFF), [], "{site:?}, off by {off} s");
        }
        let delivered = world.stats(stream).delivered;
        world.run(MINUTE);
        assert!(world.stats(stream).delivered > delivered + 250);
    }
}

#[test]
fn up_to_an_hour_a_clock_is_warned_of_and_costs_nothing() {
    for (number, off, warned) in [(0, 290, 0), (1, 320, 1), (2, 3500, 1)] {
        let (mut world, sites) = network(642 + number, 3);
        // One of three: two are too few to set it.
        world.set_clock(sites[2], off);
        world.run(6 * MINUTE);
        let about: Vec<_> = sites[..2].iter().flat_map(|site| warnings(&mut world, *site, OFF)).collect();
        assert_eq!(about.len(), 2 * warned, "off by {off} s: {about:?}");
        assert!(about.iter().all(|(what, _)| what.ends_with("s ahead of this node's")), "{about:?}");
        // Whom all others contradict hears that it is its own.
        let ours = warnings(&mut world, sites[2], "2 of 2 members say another time than this node");
        assert_eq!(ours.len(), warned, "off by {off} s");
        world.run(20 * MINUTE);
        assert!(is_mesh(&world, &sites) && agree(&world, &sites));
        assert_eq!(sites.iter().map(|site| world.count(*site, "peer_clock_off")).sum::<u64>(), 0);
    }
}

/// It says another time with each word, and nobody but itself is the worse for it.
#[test]
fn a_member_that_lies_about_its_clock_harms_itself_alone() {
    let mut misuse = super::hostile::Misuse::of(645, 1);
    let others = misuse.sites[..4].to_vec();
    let streams: Vec<_> = pairs(&others).map(|(one, other)| misuse.world.stream(one, other, ms(200))).collect();
    for round in 0..40_u64 {
        misuse.link = misuse.dial();
        let wall = misuse.world.true_time().0;
        let wall = match round % 4 {
            1 => wall + 86_400 * round,
            3 => wall.saturating_sub(86_400 * round),
            _ => wall,
        };
        misuse.say(&super::messages::hello_at(wall));
        misuse.world.run(20 * SECOND);
    }
    assert!(misuse.counted("peer_clock_off") >= 20, "{}", misuse.counted("peer_clock_off"));
    assert_eq!(misuse.counted("clock_corrected"), 0);
    assert!(is_right(&mut misuse.world, misuse.sites[1]));
    assert!(is_mesh(&misuse.world, &others) && agree(&misuse.world, &others));
    assert!(streams.iter().all(|stream| misuse.world.stats(*stream).lost() == 0));
}
