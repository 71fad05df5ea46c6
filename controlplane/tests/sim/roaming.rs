//! Members whose addresses change, and datagrams that only look as if they had.

use std::net::SocketAddr;

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::RekeyRequest;
use weir_controlplane::sim::{Roaming, StreamId, StreamStats};

use super::*;

/// After the last packet's flight.
fn settle(world: &mut World, streams: &[StreamId]) -> Vec<StreamStats> {
    streams.iter().for_each(|stream| world.stop(*stream));
    world.run(10 * SECOND);
    streams.iter().map(|stream| world.stats(*stream).clone()).collect()
}

/// What must not happen because somebody moves: links and sessions that end, and exchanges that fail.
fn ends(world: &World, sites: &[Site]) -> Vec<[u64; 3]> {
    let ended = |site: Site, why: &str| world.ended(site).get(why).copied().unwrap_or(0);
    let of = |site: &Site| {
        [ended(*site, "timed_out"), ended(*site, "handshake_timed_out"), world.count(*site, "exchange_failed")]
    };
    sites.iter().map(of).collect()
}

#[test]
fn a_member_whose_address_changes_keeps_its_sessions_and_links() {
    let (mut world, sites) = network(700, 3);
    let [one, other, mover] = sites[..] else { panic!() };
    let out = [one, other].map(|site| world.stream(mover, site, ms(5)));
    let back = [one, other].map(|site| world.stream(site, mover, ms(5)));
    world.run(MINUTE);
    let before = ends(&world, &sites);
    for times in 1..=3 {
        let lost = back.map(|stream| world.stats(stream).lost());
        world.rebind(mover);
        for _ in 0..100 {
            world.run(ms(10));
            assert!(is_mesh(&world, &sites));
        }
        // It is noticed by the first packet, half a round trip later, and believed after a whole one.
        let lost = [0, 1].map(|at| world.stats(back[at]).lost() - lost[at]);
        assert!(lost.iter().all(|lost| (6..=9).contains(lost)), "{lost:?}");
        let once = Roaming { told: times, probes: times, answers: times, moves: times };
        assert_eq!([one, other].map(|site| world.roaming(site)), [once; 2]);
        world.run(5 * MINUTE);
        assert!(is_mesh(&world, &sites) && agree(&world, &sites));
    }
    assert_eq!(ends(&world, &sites), before);
    assert_eq!(world.roaming(mover), Roaming::default());
    // Links go on as well, whichever side speaks first.
    for site in &sites {
        assert!(matches!(world.ask(*site, Call::CertRenew, ms(100)), Some(Ok(Answer::Certificate(_)))), "{site:?}");
    }
    for stats in settle(&mut world, &out) {
        assert_eq!((stats.lost(), stats.delivered), (0, stats.sent), "{stats:?}");
    }
    for stats in settle(&mut world, &back) {
        assert_eq!(stats.lost.keys().copied().collect::<Vec<_>>(), ["network"]);
        assert!(stats.lost() <= 27 && stats.gap <= ms(50), "{stats:?}");
    }
}

/// Nothing of its own is on the way: the echo by which it measures a session gives it away.
#[test]
fn a_member_that_only_listens_is_found_where_it_went() {
    let (mut world, sites) = network(701, 3);
    let mover = sites[1];
    let streams = [sites[0], sites[2]].map(|site| world.stream(site, mover, ms(100)));
    // No exchange is due in the next minute.
    world.run(90 * SECOND);
    let before = ends(&world, &sites);
    world.rebind(mover);
    world.run(10 * MINUTE);
    assert_eq!(ends(&world, &sites), before);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
    for stats in settle(&mut world, &streams) {
        assert!(stats.gap <= 5 * SECOND + ms(200), "{stats:?}");
        assert!(stats.lost() <= 52, "{stats:?}");
    }
}

/// Somebody on the path sends a member's datagrams on from an address that answers nobody.
#[test]
fn a_move_that_nobody_confirms_changes_nothing_and_is_counted() {
    let (mut world, sites) = network(702, 3);
    let [victim, peer, third] = sites[..] else { panic!() };
    let streams: Vec<_> = pairs(&sites)
        .flat_map(|(one, other)| [(one, other), (other, one)])
        .map(|(from, to)| world.stream(from, to, ms(10)))
        .collect();
    world.run(MINUTE);
    let before = ends(&world, &sites);
    let thief: SocketAddr = "203.0.113.7:4444".parse().unwrap();
    world.divert(peer, victim, Some(thief));
    world.run(10 * MINUTE);
    world.divert(peer, victim, None);
    // What is on the way still arrives.
    world.run(SECOND);
    let counted = world.roaming(victim);
    // Once a second, and no answer.
    assert!((590..=601).contains(&counted.told), "{counted:?}");
    assert_eq!(counted, Roaming { told: counted.told, probes: counted.told, answers: 0, moves: 0 });
    world.run(MINUTE);
    assert_eq!(
        [victim, peer, third].map(|site| world.roaming(site)),
        [counted, Roaming::default(), Roaming::default()]
    );
    assert_eq!(ends(&world, &sites), before);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
    for stats in settle(&mut world, &streams) {
        assert_eq!((stats.lost(), stats.delivered), (0, stats.sent), "{stats:?}");
    }
}

/// Its record still says where it was. Where its sessions are, a packet plane remembers; and whoever is new is dialled by it.
#[test]
fn a_member_that_has_moved_is_found_after_a_crash_and_by_newcomers() {
    let (mut world, sites) = network(703, 3);
    let [founder, peer, mover] = sites[..] else { panic!() };
    let streams = [(peer, mover), (mover, peer)].map(|(from, to)| world.stream(from, to, ms(20)));
    world.run(MINUTE);
    world.rebind(mover);
    world.run(MINUTE);
    let lost = streams.map(|stream| world.stats(stream).lost());
    assert!(lost[0] <= 4 && lost[1] == 0, "{lost:?}");
    world.kill(peer);
    world.run(10 * SECOND);
    world.start(peer);
    world.run(5 * MINUTE);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
    world.grow(founder, 3).expect("all join");
    let all: Vec<Site> = world.sites().collect();
    world.run_until(MINUTE, SECOND, |world| is_mesh(world, &all) && agree(world, &all)).expect("all have sessions");
    let after = settle(&mut world, &streams);
    assert_eq!([after[0].lost(), after[1].lost()], lost);
}

/// Keys that were agreed on while the peer was at its old address lead to it at its new one.
#[test]
fn a_move_in_the_middle_of_a_key_exchange_costs_no_more_than_another() {
    for after in (0..80).step_by(4) {
        let (mut world, sites) = network(720 + after, 2);
        let (peer, mover) = (sites[0], sites[1]);
        let streams = [(mover, peer), (peer, mover)].map(|(from, to)| world.stream(from, to, ms(2)));
        world.run(10 * SECOND);
        let node = world.id(mover).unwrap().to_string();
        let call = world.call(peer, Call::Rekey(RekeyRequest { peer: node }));
        world.run(ms(after));
        world.rebind(mover);
        world.run(MINUTE);
        assert!(world.answer(call).is_some() && is_mesh(&world, &sites), "{after} ms");
        let stats = settle(&mut world, &streams);
        assert_eq!((stats[0].lost(), stats[0].delivered), (0, stats[0].sent), "{after} ms: {stats:?}");
        assert!(stats[1].gap <= ms(50), "{after} ms: {stats:?}");
    }
}

/// Both moved while nothing passed between them, and do not know it themselves: no record says where they are, and who has a link with both does.
#[test]
fn two_that_moved_unaware_are_told_by_others_where_they_are() {
    let (mut world, sites) = network(706, 5);
    let [one, _, _, _, other] = sites[..] else { panic!() };
    world.sever(one, other);
    world.run(70 * MINUTE);
    assert!(!world.is_session(one, other));
    world.rebind(one);
    world.rebind(other);
    world.run(MINUTE);
    world.heal();
    world.run(6 * MINUTE);
    assert!(world.is_session(one, other), "{:?}", [one, other].map(|site| world.count(site, "peers_news")));
}

/// Nobody else is there to tell: each has told the other where it is on the network behind both.
#[test]
fn two_that_are_near_find_each_other_by_their_private_addresses() {
    let (mut world, sites) = network(707, 2);
    for site in &sites {
        world.give_private(*site);
        world.kill(*site);
        world.start(*site);
    }
    world.run(6 * MINUTE);
    world.sever(sites[0], sites[1]);
    world.run(70 * MINUTE);
    assert!(!is_mesh(&world, &sites));
    for site in &sites {
        world.rebind(*site);
    }
    world.heal();
    world.run(5 * MINUTE);
    assert!(is_mesh(&world, &sites));
}
