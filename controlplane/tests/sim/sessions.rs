//! Sessions under traffic: what rekeys, crashes and restarts cost. The answer is to be nothing.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::time::UnixSecs;

use super::*;

/// After the last packet's flight.
fn settle(world: &mut World, streams: &[weir_controlplane::sim::StreamId]) -> Vec<weir_controlplane::sim::StreamStats> {
    streams.iter().for_each(|stream| world.stop(*stream));
    world.run(10 * SECOND);
    streams.iter().map(|stream| world.stats(*stream).clone()).collect()
}

#[test]
fn rekeys_lose_nothing_in_an_hour() {
    let (mut world, sites) = network(120, 3);
    let before: Vec<u64> = sites.iter().map(|site| world.count(*site, "exchange_installed")).collect();
    let failed: Vec<u64> = sites.iter().map(|site| world.count(*site, "exchange_failed")).collect();
    let both = [(sites[0], sites[1]), (sites[1], sites[0]), (sites[1], sites[2])];
    let streams: Vec<_> = both.map(|(from, to)| world.stream(from, to, ms(5))).to_vec();
    world.run(HOUR);
    for (site, before) in sites.iter().zip(before) {
        let exchanges = world.count(*site, "exchange_installed") - before;
        assert!((50..=64).contains(&exchanges), "{exchanges} exchanges with two peers in an hour");
        assert_eq!(world.count(*site, "exchange_failed"), failed[site.0]);
    }
    for stats in settle(&mut world, &streams) {
        assert_eq!((stats.lost(), stats.delivered), (0, stats.sent), "{stats:?}");
        assert!(stats.gap <= ms(6), "{stats:?}");
    }
}

#[test]
fn a_dead_control_plane_costs_no_packet_and_is_back_within_a_second() {
    for (down, number) in [(10, 0), (300, 1), (10, 2), (300, 3)] {
        let (mut world, sites) = network(10 + number, 4);
        let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, ms(10))).collect();
        world.run(MINUTE);
        let victim = sites[number as usize];
        world.kill(victim);
        world.run(SECOND * down);
        world.start(victim);
        let installed = |world: &World| world.count(victim, "exchange_installed");
        let fresh = world.run_until(5 * SECOND, ms(20), |world| installed(world) >= 3).expect("fresh keys with all");
        assert!(fresh <= SECOND, "reconciled after {fresh:?}");
        world.run(10 * MINUTE);
        assert!(is_mesh(&world, &sites) && agree(&world, &sites));
        for stats in settle(&mut world, &streams) {
            assert_eq!((stats.lost(), stats.delivered), (0, stats.sent), "down for {down} s: {stats:?}");
        }
    }
}

#[test]
fn sessions_are_back_a_second_after_a_packet_plane_died() {
    for number in 0..4 {
        let (mut world, sites) = network(20 + number, 4);
        let victim = sites[number as usize];
        let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, ms(10))).collect();
        world.run(MINUTE);
        world.kill_plane(victim);
        world.run(ms(50));
        let back = world.run_until(10 * SECOND, ms(10), |world| is_mesh(world, &sites)).expect("sessions come back");
        assert!(back <= SECOND, "after {back:?}");
        world.run(SECOND);
        let lost: Vec<u64> = streams.iter().map(|stream| world.stats(*stream).lost()).collect();
        world.run(10 * MINUTE);
        let after = settle(&mut world, &streams);
        for (stats, lost) in after.iter().zip(lost) {
            assert_eq!(stats.lost(), lost, "what was lost, was lost within a second: {stats:?}");
            assert!(stats.gap <= SECOND, "{stats:?}");
        }
    }
}

#[test]
fn both_planes_of_a_machine_come_back_together() {
    let (mut world, sites) = network(31, 4);
    world.power_off(sites[1]);
    world.run(10 * MINUTE);
    world.start(sites[1]);
    let back = world.run_until(MINUTE, ms(50), |world| is_mesh(world, &sites)).expect("sessions come back");
    assert!(back <= 10 * SECOND, "after {back:?}");
}

#[test]
fn idle_sessions_end_and_come_back_with_the_first_packet() {
    let mut world = World::new(seed(33), |_, _| RTT);
    world.set_idle(300);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 3).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(20 * MINUTE);
    assert_eq!(sites.iter().map(|site| world.sessions(*site)).collect::<Vec<_>>(), [0; 4]);
    let before: Vec<_> = sites.iter().map(|site| world.costs(*site).handshakes).collect();
    world.run(HOUR);
    let spent: Vec<_> = sites.iter().zip(before).map(|(site, before)| world.costs(*site).handshakes - before).collect();
    assert!(spent.iter().all(|spent| *spent <= 2), "nothing is asked for, and {spent:?} handshakes were made");
    let stream = world.stream(sites[2], sites[3], ms(100));
    world.run(MINUTE);
    let stats = settle(&mut world, &[stream]);
    assert_eq!((stats[0].lost(), stats[0].delivered), (0, stats[0].sent), "{stats:?}");
}

/// Without an issuer for a day and a week: grace is the end of keys and links that stand, not of new ones alone.
#[test]
fn nothing_outlives_a_certificate_and_its_grace() {
    let (mut world, sites) = network(34, 3);
    world.set_issuer(sites[0], false);
    let mut end = |site: Site| match world.ask(site, Call::CertShow, SECOND) {
        Some(Ok(Answer::Certificate(certificate))) => certificate.not_after.0.plus(7 * DAY),
        other => panic!("{other:?}"),
    };
    let ends: Vec<UnixSecs> = sites.iter().map(|site| end(*site)).collect();
    // All clocks go on by almost all of that at once; what a member says of itself is to hold for longer.
    let first = *ends.iter().min().unwrap();
    let jump = i64::try_from(first.since(world.true_time()).as_secs()).unwrap() - 3600;
    sites.iter().for_each(|site| world.set_clock(*site, jump));
    world.run(10 * SECOND);
    sites.iter().for_each(|site| world.kill_plane(*site));
    world.run(MINUTE);
    assert!(is_mesh(&world, &sites), "in grace");
    let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, ms(100))).collect();
    let now = |world: &World| UnixSecs(world.true_time().0.saturating_add_signed(jump));
    let over = first.since(now(&world));
    world.run(over - MINUTE);
    assert!(is_mesh(&world, &sites) && streams.iter().all(|stream| world.stats(*stream).lost() == 0));
    // Keys are two minutes old at most, and end all the same: within a second or two of each member's end.
    let last = ends.iter().max().unwrap().since(first);
    world.run(MINUTE + last + 3 * SECOND);
    for site in &sites {
        assert_eq!((world.sessions(*site), world.count(*site, "peer_ended")), (0, 2), "{site:?}");
    }
    let stats: Vec<_> = streams.iter().map(|stream| world.stats(*stream).delivered).collect();
    world.run(10 * MINUTE);
    let after: Vec<_> = streams.iter().map(|stream| world.stats(*stream).delivered).collect();
    assert_eq!(after, stats, "nothing passes");
    for site in &sites {
        assert_eq!(world.count(*site, "peer_ended"), 2, "none of them came in again");
        let Some(Ok(Answer::Status(status))) = world.ask(*site, Call::Status, SECOND) else { panic!("no status") };
        let cut = status.warnings.iter().filter(|warning| warning.what.ends_with("its grace: it is cut off"));
        assert_eq!(cut.count(), 2, "{:?}", status.warnings);
    }
    // With an issuer they renew, and find one another.
    world.set_issuer(sites[0], true);
    world.run_until(HOUR, SECOND, |world| is_mesh(world, &sites)).expect("back");
}
