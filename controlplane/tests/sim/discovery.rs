//! The DHT in whole nodes: who is found by whom, over contact sessions that the nodes make themselves.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{DhtStatus, ErrorCode, FindRequest, Found};
use weir_controlplane::node::Part;
use weir_controlplane::sim::Faults;

use super::*;

/// A network whose members take part in the DHT.
fn found_by_all(seed_number: u64, count: u32) -> (World, Vec<Site>) {
    let mut world = World::new(seed(seed_number), spread);
    let sites = populate(&mut world, count);
    (world, sites)
}

fn populate(world: &mut World, count: u32) -> Vec<Site> {
    world.set_discovery(Some(Part::Server));
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let others = world.grow(founder, count - 1).expect("all join");
    world.run(2 * MINUTE);
    [vec![founder], others].concat()
}

fn find(world: &mut World, at: Site, what: &str) -> Result<Found, ErrorCode> {
    let request = FindRequest { what: what.to_owned(), dht: true };
    match world.ask(at, Call::Find(request), 40 * SECOND).expect("an answer") {
        Ok(Answer::Found(found)) => Ok(*found),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.code),
    }
}

fn dht(world: &mut World, at: Site) -> DhtStatus {
    match world.ask(at, Call::DhtStatus, SECOND) {
        Some(Ok(Answer::DhtStatus(status))) => *status,
        other => panic!("{other:?}"),
    }
}

/// By any of its names, from anywhere.
fn all_find_all(world: &mut World, sites: &[Site]) {
    for (one, other) in pairs(sites) {
        let identity = status(world, other).identity.unwrap();
        let address = identity.addresses.iter().find(|address| address.contains(':')).expect("an overlay address");
        for what in [&identity.name, &identity.node, address] {
            let found = find(world, one, what).unwrap_or_else(|code| panic!("{one:?} asks for {what}: {code:?}"));
            assert_eq!((&found.node, &found.name, &found.address), (&identity.node, &identity.name, address));
            assert_eq!((found.endpoints.len(), found.source.as_str()), (1, "dht"));
        }
    }
}

#[test]
fn members_find_each_other_by_name_id_and_address() {
    let (mut world, sites) = found_by_all(800, 8);
    // Who published before the last ones came does so again.
    for site in &sites {
        assert!(matches!(world.ask(*site, Call::DhtPublish, SECOND), Some(Ok(Answer::Done(_)))));
    }
    world.run(10 * SECOND);
    for site in &sites {
        let status = dht(&mut world, *site);
        assert!(status.is_joined && status.contacts == 7, "{site:?}: {status:?}");
        assert!(status.published.len() == 3 && status.published.iter().all(|own| own.stored == 7), "{status:?}");
        // Who was asked before there was a link to it may have been given up; and what was asked twice is answered twice.
        let odd = status.counters.iter().find(|counter| !["unmatched", "timeouts"].contains(&counter.name.as_str()));
        assert!(status.records == 3 * 8 && odd.is_none(), "{status:?}");
    }
    all_find_all(&mut world, &sites);
    assert_eq!(find(&mut world, sites[0], "nobody"), Err(ErrorCode::NotFound));
}

/// The same by QUIC itself, with exporters, keys and sealed datagrams that cross a network which loses some.
#[test]
fn members_find_each_other_over_real_links() {
    let mut world = World::real(seed(801), spread);
    let sites = populate(&mut world, 5);
    world.set_faults(Faults { loss: 0.05, repeat: 0.05 });
    all_find_all(&mut world, &sites);
    let counted = |world: &World, name| sites.iter().map(|site| world.count(*site, name)).sum::<u64>();
    assert!(counted(&world, "contact_replayed") > 0, "what comes twice is dropped");
    assert_eq!(counted(&world, "contact_forged"), 0);
}

/// A restart forgets keys: the others make new sessions when they find out.
#[test]
fn a_node_that_was_restarted_is_found_and_finds() {
    let (mut world, sites) = found_by_all(802, 6);
    world.kill(sites[2]);
    world.run(SECOND);
    world.start(sites[2]);
    world.run(MINUTE);
    let status = dht(&mut world, sites[2]);
    assert!(status.is_joined && status.contacts == 5, "{status:?}");
    all_find_all(&mut world, &sites[..4]);
}

/// Clients ask and publish, and nobody asks them.
#[test]
fn a_client_is_found_and_finds_and_stands_in_no_table() {
    let (mut world, sites) = found_by_all(803, 5);
    world.set_discovery(Some(Part::Client));
    world.kill(sites[4]);
    world.start(sites[4]);
    world.run(2 * MINUTE);
    all_find_all(&mut world, &[sites[0], sites[4]]);
    assert_eq!((dht(&mut world, sites[4]).records, dht(&mut world, sites[4]).mode), (0, "client".to_owned()));
    for site in &sites[..4] {
        assert_eq!(dht(&mut world, *site).contacts, 3, "{site:?}");
    }
}

#[test]
fn a_revoked_member_is_found_no_more() {
    let (mut world, sites) = found_by_all(804, 6);
    let identity = status(&mut world, sites[5]).identity.unwrap();
    super::revocation::revoke(&mut world, sites[0], sites[5]);
    world.run(10 * SECOND);
    for site in &sites[..5] {
        assert_eq!(find(&mut world, *site, &identity.name), Err(ErrorCode::NotFound), "{site:?}");
        assert_eq!(dht(&mut world, *site).contacts, 4, "{site:?}");
    }
}

#[test]
fn a_node_without_the_dht_says_so_and_knows_the_directory() {
    let (mut world, sites) = network(805, 2);
    let name = status(&mut world, sites[1]).identity.unwrap().name;
    assert_eq!(find(&mut world, sites[0], &name), Err(ErrorCode::Conflict));
    let request = FindRequest { what: name, dht: false };
    let Some(Ok(Answer::Found(found))) = world.ask(sites[0], Call::Find(request), SECOND) else { panic!("not found") };
    assert_eq!((found.source.as_str(), found.endpoints.len()), ("directory", 1));
}

/// Whom others reach keeps records; who sits behind a firewall with a memory only asks. Nobody was told what it is.
#[test]
fn who_is_reached_by_others_becomes_a_server() {
    let mut world = World::real(seed(806), spread);
    world.set_discovery(Some(Part::Auto));
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let others = world.grow(founder, 5).expect("all join");
    let sites = [vec![founder], others].concat();
    // However many clients were asked in vain before, and sockets changed while others sent to the old ones.
    world.run(10 * SECOND);
    for site in &sites {
        let status = dht(&mut world, *site);
        assert!(
            status.is_joined && status.mode == "server" && status.witnesses >= 3 && status.witnesses_wanted == 3,
            "{status:?}"
        );
    }
    // One moves behind a firewall: it is told so by the host, and nobody reaches it there.
    world.wall_in(sites[5]);
    world.readdress(sites[5]);
    world.run(5 * MINUTE);
    let status = dht(&mut world, sites[5]);
    assert_eq!((status.mode.as_str(), status.witnesses), ("client", 0), "{status:?}");
    all_find_all(&mut world, &[sites[5], sites[1]]);
    for site in &sites[..5] {
        assert_eq!(dht(&mut world, *site).contacts, 4, "{site:?}");
    }
}

/// Nobody can have a member send to somebody else, nor more than once in five seconds.
#[test]
fn two_members_are_enough_to_witness_for_each_other_and_one_alone_is_nothing() {
    let mut world = World::new(seed(807), spread);
    world.set_discovery(Some(Part::Auto));
    let founder = world.found().unwrap();
    world.run(MINUTE);
    assert_eq!(dht(&mut world, founder).mode, "client");
    let other = world.grow(founder, 1).expect("it joins")[0];
    world.run(MINUTE);
    for site in [founder, other] {
        let status = dht(&mut world, site);
        assert_eq!((status.mode.as_str(), status.witnesses, status.witnesses_wanted), ("server", 1, 1));
        assert!(world.count(site, "reach_probed") <= 4 && world.count(site, "reach_limited") <= 2);
    }
    all_find_all(&mut world, &[founder, other]);
}

/// Its record in the directory is old, and in the DHT is the new one: who cannot dial it looks there.
#[test]
fn a_member_that_is_not_where_its_record_says_is_looked_for_and_dialled() {
    let (mut world, sites) = found_by_all(808, 6);
    // Two of them move while they are cut off from each other, and nobody tells either what the other one says of itself.
    world.cut(&[&sites[..1], &sites[5..]]);
    world.readdress(sites[0]);
    world.readdress(sites[5]);
    world.run(MINUTE);
    sites[1..5].iter().for_each(|site| world.withhold_records(*site));
    world.heal();
    world.run(5 * MINUTE);
    assert!(world.is_session(sites[0], sites[5]));
    assert!(sites.iter().map(|site| world.count(*site, "dht_sought_found")).sum::<u64>() > 0);
}
