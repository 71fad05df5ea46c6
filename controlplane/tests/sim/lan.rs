//! Members that are named by a list or by the local network, and hosts that change or sleep.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{Candidate, CandidateState, RevokeRequest};
use weir_controlplane::node::candidates::{FAILURES_MAX, Source};
use weir_controlplane::node::link::Code;
use weir_controlplane::quic::{Alpn, Event};

use super::*;

fn candidates(world: &mut World, site: Site) -> Vec<Candidate> {
    let call = world.call(site, Call::Candidates);
    match world.answer(call) {
        Some(Ok(Answer::Candidates(candidates))) => candidates,
        other => panic!("{other:?}"),
    }
}

/// All hear of all on the segment, themselves included, as mDNS has it.
fn announce(world: &mut World, sites: &[Site]) {
    sites.iter().for_each(|site| world.hear_of(*site, Source::Mdns, sites));
}

fn is_whole(world: &World, sites: &[Site]) -> bool {
    agree(world, sites) && is_mesh(world, sites)
}

/// Everybody is switched off, and comes back so much later with another address than anybody knows.
fn lost_for(world: &mut World, sites: &[Site], long: Duration) {
    sites.iter().for_each(|site| world.power_off(*site));
    world.run(long);
    for site in sites {
        world.readdress(*site);
        world.start(*site);
    }
    world.run(5 * MINUTE);
    assert!(pairs(sites).all(|(one, other)| !world.is_session(one, other)), "nobody can know where anybody is");
}

#[test]
fn members_whose_addresses_all_changed_while_they_were_off_find_each_other_by_mdns_alone() {
    let (mut world, sites) = network(900, 4);
    lost_for(&mut world, &sites, HOUR);
    announce(&mut world, &sites);
    let found = world.run_until(MINUTE, ms(100), |world| is_whole(world, &sites)).expect("they find each other");
    assert!(found <= 5 * SECOND, "after {found:?}");
    for site in &sites {
        let of = |name: &str| world.count(*site, name);
        assert_eq!((of("candidate_self"), of("candidate_member"), of("candidate_failed")), (1, 3, 0), "{site:?}");
    }
    // Hearing the same again costs nothing, and ourselves we do not ask twice.
    let tried = |world: &World| sites.iter().map(|site| world.count(*site, "candidate_tried")).sum::<u64>();
    let before = tried(&world);
    for _ in 0..10 {
        announce(&mut world, &sites);
        world.run(MINUTE);
    }
    assert!(is_whole(&world, &sites));
    assert_eq!(tried(&world), before);
    let rows = candidates(&mut world, sites[0]);
    let states: Vec<_> = rows.iter().map(|row| (row.state, row.name.as_deref().is_some())).collect();
    assert_eq!(states.iter().filter(|state| **state == (CandidateState::Own, false)).count(), 1, "{rows:?}");
    assert_eq!(states.iter().filter(|state| **state == (CandidateState::Member, true)).count(), 3, "{rows:?}");
}

/// No record holds any more, no certificate is within its grace, and nobody is where anybody remembers.
#[test]
fn members_that_were_off_for_nine_days_and_moved_find_each_other_by_one_address() {
    let (mut world, sites) = network(901, 3);
    lost_for(&mut world, &sites, 9 * DAY);
    // One of them has the issuer's node in its list; the others hear of that one, again and again.
    world.hear_of(sites[1], Source::Bootstrap, &sites[..1]);
    let mut found = None;
    for minute in 0..10 {
        world.hear_of(sites[2], Source::Mdns, &sites[1..2]);
        found = world.run_until(MINUTE, SECOND, |world| is_whole(world, &sites)).map(|after| minute * MINUTE + after);
        if found.is_some() {
            break;
        }
    }
    let found = found.expect("they find each other");
    // The third has its first attempt refused, since the second has no certificate either then; the next one is a minute later.
    assert!(found <= Duration::from_secs(100), "after {found:?}");
}

/// The same over real handshakes: a dial that names nobody, a chain that says who it is.
#[test]
fn a_member_is_found_by_its_address_alone_over_quic_itself() {
    let mut world = World::real(seed(902), |_, _| RTT);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 2).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(MINUTE);
    lost_for(&mut world, &sites, HOUR);
    announce(&mut world, &sites);
    let found = world.run_until(MINUTE, ms(100), |world| is_whole(world, &sites)).expect("they find each other");
    assert!(found <= 5 * SECOND, "after {found:?}");
    assert!(sites.iter().all(|site| world.count(*site, "candidate_self") == 1));
}

#[test]
fn a_candidate_where_nobody_is_costs_little_and_is_forgotten_but_for_a_configured_one() {
    let (mut world, sites) = network(903, 2);
    let stranger = world.add_machine();
    let off = world.add_machine();
    world.start(stranger);
    world.hear_of(sites[0], Source::Mdns, &[stranger, off]);
    world.hear_of(sites[0], Source::Bootstrap, &[off]);
    world.run(30 * MINUTE);
    let rows = candidates(&mut world, sites[0]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].state, rows[0].sources.join(" ").as_str()), (CandidateState::Failed, "mdns bootstrap"));
    assert_eq!(world.count(sites[0], "candidate_forgotten"), 1);
    let failed = world.count(sites[0], "candidate_failed");
    assert!((u64::from(FAILURES_MAX) + 8..u64::from(FAILURES_MAX) + 24).contains(&failed), "{failed} in half an hour");
    assert!(is_whole(&world, &sites));
}

/// In a large network links go to neighbours, and whoever starts and has none yet dials nobody else for that.
#[test]
fn who_starts_in_a_large_network_dials_neighbours_and_whoever_is_found() {
    let (mut world, sites) = network(906, 40);
    world.run_until(5 * MINUTE, SECOND, |world| agree(world, &sites)).expect("all know all");
    let late = sites[20];
    world.power_off(late);
    world.run(MINUTE);
    let before = world.costs(late).handshakes;
    world.start(late);
    world.run(ms(500));
    let made = world.costs(late).handshakes - before;
    assert!((4..=24).contains(&made), "{made} handshakes");
    // All have moved, and it hears of one that is no neighbour, perhaps: that one knows the others.
    sites.iter().for_each(|site| world.power_off(*site));
    for site in &sites {
        world.readdress(*site);
        world.start(*site);
    }
    for pair in sites.windows(2) {
        world.hear_of(pair[0], Source::Mdns, &pair[1..]);
    }
    let all = world.run_until(10 * MINUTE, SECOND, |world| agree(world, &sites)).expect("all know all");
    assert!(all <= 2 * MINUTE, "after {all:?}");
}

/// More than have links each to each. Whoever was dialled where it had been was dialled again after up to a minute only, whoever had met the bootstrap
/// let go of it, and twenty members that had moved left no place in the DHT for the one that had been found.
#[test]
fn thirty_members_that_moved_find_each_other_from_one_address_and_are_linked() {
    let (mut world, sites) = network(908, 30);
    world.run_until(5 * MINUTE, SECOND, |world| agree(world, &sites)).expect("all know all");
    sites.iter().for_each(|site| world.power_off(*site));
    for site in &sites {
        world.readdress(*site);
        world.start(*site);
    }
    // Nobody answers anywhere for a while, and what comes to nothing is tried ever later.
    world.run(2 * MINUTE);
    for site in &sites {
        world.hear_of(*site, Source::Bootstrap, &sites[1..2]);
    }
    let found = world.run_until(MINUTE, ms(100), |world| agree(world, &sites)).expect("they find each other");
    assert!(found <= 5 * SECOND, "after {found:?}");
    let neighbours = 2 * weir_controlplane::node::link::NEIGHBOURS;
    let are_linked = |world: &mut World| {
        let linked = |site: &Site, other: &Site| world.node(*site).unwrap().has_link(world.id(*other).unwrap());
        sites.iter().all(|site| sites.iter().filter(|other| linked(site, other)).count() >= neighbours)
    };
    let linked = world.run_until(MINUTE, ms(100), |world| are_linked(world)).expect("everybody has its neighbours");
    assert!(linked <= 5 * SECOND, "after {linked:?}");
    world.run(MINUTE);
    assert!(are_linked(&mut world), "and keeps them");
}

/// A network without sessions, through which a packet plane would find out for itself that somebody has moved.
fn idle(mut world: World) -> (World, Vec<Site>) {
    world.set_idle(30);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.grow(founder, 3).expect("all join");
    let sites: Vec<Site> = world.sites().collect();
    world.run(5 * MINUTE);
    assert_eq!(sites.iter().map(|site| world.sessions(*site)).sum::<usize>(), 0);
    (world, sites)
}

/// How long it takes until a member hears what the issuer says now.
fn heard_after(world: &mut World, sites: &[Site]) -> Duration {
    let node = world.id(sites[3]).unwrap();
    let revoke = RevokeRequest { member: node.to_string(), reason: String::new(), replace: false };
    world.call(sites[0], Call::Revoke(revoke));
    world.run_until(2 * MINUTE, ms(100), |world| world.knows_revoked(sites[1], node)).expect("it hears")
}

#[test]
fn a_host_that_changes_its_address_tells_everybody_and_its_links_follow_at_once() {
    let (mut world, sites) = idle(World::new(seed(904), |_, _| RTT));
    let to = world.readdress(sites[1]);
    let node = world.id(sites[1]).unwrap();
    // A link's idle time would be over after thirty seconds.
    let heard = heard_after(&mut world, &sites);
    assert!(heard <= 4 * SECOND, "after {heard:?}");
    for site in &sites[..3] {
        let known = &world.node(*site).unwrap().directory().entry(node).unwrap().record.endpoints;
        assert_eq!(known, &[to], "{site:?}");
    }
    assert_eq!(world.count(sites[1], "host_changed"), 1);
}

/// Over QUIC itself, whose clock stood still while the others gave the sleeper up.
#[test]
fn a_host_that_slept_has_its_links_back_at_once() {
    for run in 0..4 {
        let (mut world, sites) = idle(World::real(seed(905 + run), |_, _| RTT));
        // Keep-alives of its own come at other moments each time.
        world.run(Duration::from_secs(4 * run));
        world.suspend(sites[1], 10 * MINUTE);
        world.run(10 * MINUTE);
        let heard = heard_after(&mut world, &sites);
        assert!(heard <= 2 * SECOND, "run {run}: after {heard:?}");
        assert_eq!(world.count(sites[1], "resumed"), 1);
    }
}

/// Lets time pass in which a puppet closes each member's link that is dialled to it as soon as it stands, and whoever asks there is shown its
/// certificate; how many it was dialled by, by those who ask and by members.
fn close_all(world: &mut World, puppet: Site, long: Duration) -> [u64; 2] {
    let mut dialled = [0; 2];
    for _ in 0..long.as_millis() / 20 {
        world.run(ms(20));
        for event in world.heard(puppet) {
            match event {
                Event::Opening { alpn: Alpn::Join, .. } => dialled[0] += 1,
                Event::Opening { alpn: Alpn::Member, .. } => dialled[1] += 1,
                Event::Connected { link, alpn: Alpn::Member, .. } => {
                    world.links(puppet).close(link, Code::Failed as u32, "not today");
                }
                Event::Opening { .. } | Event::Connected { .. } | Event::Message { .. } | Event::Closed { .. } => {}
            }
        }
    }
    dialled
}

/// It was asked who it is and dialled at once each time that it had closed a link, since nobody else was there: thousands of times.
#[test]
fn a_member_that_closes_every_link_is_dialled_ever_more_rarely() {
    let (mut world, sites) = network(907, 2);
    world.make_puppet(sites[1]);
    announce(&mut world, &sites);
    let dialled: Vec<_> = (0..5).map(|_| close_all(&mut world, sites[1], 2 * MINUTE)).collect();
    let members: Vec<u64> = dialled.iter().map(|[_, members]| *members).collect();
    assert!((4..=12).contains(&members[0]), "{dialled:?}");
    assert!(members[1..].iter().all(|often| (1..=4).contains(often)), "{dialled:?}");
    assert!(dialled.iter().all(|[asked, members]| *asked <= members + 1), "{dialled:?}");
}

/// On a host with containers something changes every second.
#[test]
fn a_host_that_changes_all_the_time_dials_who_is_missing_no_more_often_for_that_and_finds_dead_links() {
    let (mut world, sites) = network(908, 3);
    world.make_puppet(sites[2]);
    close_all(&mut world, sites[2], 10 * MINUTE);
    let mut dialled = 0;
    for _ in 0..5 * 60 {
        world.flap(sites[0]);
        dialled += close_all(&mut world, sites[2], SECOND)[1];
    }
    // Twenty rounds, and its own dials between them.
    assert!((8..=40).contains(&dialled), "{dialled}");
    // Who is silent has two seconds, however often it is asked meanwhile.
    assert_eq!(world.count(sites[0], "link_gave_no_sign"), 0);
    world.sever(sites[0], sites[1]);
    for _ in 0..4 {
        world.flap(sites[0]);
        close_all(&mut world, sites[2], SECOND);
    }
    assert_eq!(world.count(sites[0], "link_gave_no_sign"), 1);
}
