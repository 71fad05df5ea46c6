//! The DHT in whole nodes: who is found by whom, over contact sessions that the nodes make themselves.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{
    CandidateState, DhtRecord, DhtRecordRequest, DhtStatus, ErrorCode, FindRequest, Found, FoundService, Lookups,
    LookupsRequest,
};
use weir_controlplane::dht::record::ServiceValue;
use weir_controlplane::node::Part;
use weir_controlplane::node::link::NEIGHBOURS;
use weir_controlplane::pki::id::NodeId;
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
    find_by(world, at, what, true)
}

fn find_by(world: &mut World, at: Site, what: &str, dht: bool) -> Result<Found, ErrorCode> {
    let request = FindRequest { what: what.to_owned(), dht };
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
        assert!(
            status.published.len() == 4 + usize::from(*site == sites[0])
                && status.published.iter().all(|own| own.stored == 7),
            "{status:?}"
        );
        // Who was asked before there was a link to it may have been given up; and what was asked twice is answered twice.
        let odd = status
            .counters
            .iter()
            .find(|counter| !["unmatched", "timeouts", "handed_over"].contains(&counter.name.as_str()));
        assert!(status.records == 4 * 8 + 1 && odd.is_none(), "{status:?}");
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
    world.run(10 * SECOND);
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

/// What a member says ended after four days, and it said nothing new before it signed its next record, after six.
#[test]
fn members_are_found_though_no_issuer_is_there_for_days() {
    let (mut world, sites) = found_by_all(812, 4);
    world.end_issuer(sites[0]);
    world.run(5 * DAY);
    all_find_all(&mut world, &sites);
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

/// All its neighbours keep the list to themselves; a digest in the DHT says that there is one.
#[test]
fn whoever_is_kept_from_revocation_lists_finds_out() {
    let (mut world, sites) = found_by_all(811, 6);
    let ours = dht(&mut world, sites[0]).published;
    assert!(ours.iter().any(|own| own.kind == "revocations"), "the issuer's node says which lists it holds: {ours:?}");
    world.sever(sites[0], sites[5]);
    sites[1..5].iter().for_each(|site| world.withhold_news(*site));
    let victim = world.id(sites[4]).unwrap();
    super::revocation::revoke(&mut world, sites[0], sites[4]);
    world.run(MINUTE);
    assert!(world.knows_revoked(sites[1], victim) && !world.knows_revoked(sites[5], victim));
    world.run_until(2 * HOUR, MINUTE, |world| world.count(sites[5], "lists_behind") > 0).expect("it finds out");
    world.heal();
    world.run_until(MINUTE, SECOND, |world| world.knows_revoked(sites[5], victim)).expect("an issuer is dialled");
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

/// Nobody can have a member send to somebody else, nor more than once in four seconds.
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

/// Its record in the directory is old, and in the DHT is the new one: who cannot dial it looks there. Neither serves, or the upkeep of the DHT would come
/// across the other one.
#[test]
fn a_member_that_is_not_where_its_record_says_is_looked_for_and_dialled() {
    let mut world = World::new(seed(808), spread);
    world.set_discovery(Some(Part::Client));
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    world.set_discovery(Some(Part::Server));
    let servers = world.grow(founder, 4).expect("all join");
    world.set_discovery(Some(Part::Client));
    let other = world.grow(founder, 1).expect("it joins")[0];
    world.run(2 * MINUTE);
    // Both move while they are cut off from each other, and nobody tells either what the other one says of itself.
    world.cut(&[&[founder], &[other]]);
    world.readdress(founder);
    world.readdress(other);
    world.run(MINUTE);
    servers.iter().for_each(|site| world.withhold_news(*site));
    world.heal();
    world.run(5 * MINUTE);
    assert!(world.is_session(founder, other));
    let found = [founder, other].map(|site| world.count(site, "dht_sought_found"));
    assert!(found.iter().sum::<u64>() > 0, "{found:?}");
}

fn record(world: &mut World, at: Site, kind: &str, what: &str) -> Result<DhtRecord, ErrorCode> {
    let request = DhtRecordRequest { kind: kind.to_owned(), what: what.to_owned() };
    match world.ask(at, Call::DhtRecord(request), 40 * SECOND).expect("an answer") {
        Ok(Answer::DhtRecord(record)) => Ok(*record),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.code),
    }
}

fn http() -> ServiceValue {
    ServiceValue { label: "_http._tcp".into(), port: 8080, texts: vec![b"path=/".to_vec(), b"v=1".to_vec()] }
}

/// Its control plane begins anew, offering these services.
fn restart_with(world: &mut World, site: Site, services: Vec<ServiceValue>) {
    world.kill(site);
    world.run(SECOND);
    world.set_services(services);
    world.start(site);
    world.set_services(vec![]);
    world.run(MINUTE);
}

#[test]
fn a_service_is_found_with_its_port_and_gone_at_once_when_it_is_configured_no_more() {
    let (mut world, sites) = found_by_all(807, 6);
    let all = (0..15).map(|n| ServiceValue { label: format!("_s{n}._udp"), port: 1 + n, texts: vec![] });
    restart_with(&mut world, sites[2], all.chain([http()]).collect());
    let identity = status(&mut world, sites[2]).identity.unwrap();
    let (service, last) = (format!("_http._tcp.{}", identity.name), format!("_s14._udp.{}", identity.name));
    for site in [sites[0], sites[2], sites[5]] {
        for dht in [true, false] {
            let found = find_by(&mut world, site, &service, dht).unwrap();
            let texts = vec!["path=/".to_owned(), "v=1".to_owned()];
            let expected = FoundService { label: "_http._tcp".into(), port: 8080, texts };
            assert_eq!((&found.node, &found.name), (&identity.node, &identity.name));
            assert_eq!((found.service, found.source.as_str(), found.endpoints.len()), (Some(expected), "dht", 1));
            assert!(identity.addresses.contains(&found.address) && !found.dialled);
        }
        assert_eq!(find(&mut world, site, &last).unwrap().service.unwrap().port, 15);
    }
    let status = dht(&mut world, sites[2]);
    let told = |status: &DhtStatus| {
        let services =
            status.published.iter().filter_map(|own| Some((own.service.clone()?, own.withdrawn, own.stored)));
        services.collect::<Vec<_>>()
    };
    assert!(told(&status).contains(&("_http._tcp".into(), false, 5)), "{status:?}");
    assert_eq!((told(&status).len(), status.published.len()), (16, 20));
    let shown = record(&mut world, sites[4], "service", &service).unwrap();
    assert_eq!(shown.says, ["_http._tcp at port 8080", "text path=/", "text v=1"]);

    restart_with(&mut world, sites[2], vec![]);
    for site in [sites[0], sites[2], sites[5]] {
        assert_eq!(find(&mut world, site, &service), Err(ErrorCode::NotFound), "{site:?}");
    }
    let status = dht(&mut world, sites[2]);
    assert!(told(&status).iter().all(|(_, withdrawn, stored)| *withdrawn && *stored == 5), "{status:?}");
    let shown = record(&mut world, sites[4], "service", &service).unwrap();
    assert_eq!(shown.says, ["_http._tcp is not offered any more"]);
    // It comes back.
    restart_with(&mut world, sites[2], vec![http()]);
    assert_eq!(find(&mut world, sites[0], &service).unwrap().service.unwrap().port, 8080);
}

#[test]
fn a_record_is_shown_as_it_lies_there_by_whatever_names_it() {
    let (mut world, sites) = found_by_all(808, 5);
    let identity = status(&mut world, sites[3]).identity.unwrap();
    let address = identity.addresses.iter().find(|address| address.contains(':')).expect("an overlay address");
    let (name, node) = (identity.name.as_str(), identity.node.as_str());
    for (kind, names) in
        [("node", vec![node, name, address]), ("name", vec![name, node]), ("overlay", vec![address, name])]
    {
        let first = record(&mut world, sites[1], kind, names[0]).unwrap();
        assert_eq!((first.kind.as_str(), first.node.as_str(), first.name.as_str()), (kind, node, name));
        assert_eq!((first.key.len(), first.value.len()), (64, 2 * first.value_len as usize));
        assert!(first.requests > 0 && first.trace.len() == first.requests as usize, "{first:?}");
        for other in names[1..].iter().copied().chain([first.key.to_uppercase().as_str()]) {
            let again = record(&mut world, sites[1], kind, other).unwrap();
            assert_eq!((&again.record, &again.key), (&first.record, &first.key), "{kind} {other}");
        }
        // Another kind lies elsewhere.
        assert_eq!(record(&mut world, sites[1], "revocations", &first.key), Err(ErrorCode::NotFound));
    }
    let says = record(&mut world, sites[1], "node", node).unwrap().says;
    assert!(says.len() == 1 && says[0].starts_with("endpoint "), "{says:?}");
    assert_eq!(record(&mut world, sites[1], "revocations", name), Err(ErrorCode::NotFound));
    assert_eq!(record(&mut world, sites[1], "node", "nobody"), Err(ErrorCode::NotFound));
    assert_eq!(record(&mut world, sites[1], "service", name), Err(ErrorCode::BadRequest));
    assert_eq!(record(&mut world, sites[1], "member", name), Err(ErrorCode::BadRequest));
}

fn watch(world: &mut World, at: Site, after: Option<u64>, patience: Duration) -> Option<Result<Lookups, ErrorCode>> {
    world.ask(at, Call::DhtLookups(LookupsRequest { after }), patience).map(|answer| match answer {
        Ok(Answer::Lookups(lookups)) => Ok(lookups),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.code),
    })
}

#[test]
fn whoever_watches_look_ups_hears_of_each_change_and_else_once_a_second() {
    let (mut world, sites) = found_by_all(809, 8);
    let at = sites[0];
    let name = status(&mut world, sites[7]).identity.unwrap().name;
    let begin = watch(&mut world, at, None, ms(20)).expect("at once").unwrap();
    assert!(begin.lookups.is_empty(), "{begin:?}");
    // A number that is not the last one, from whatever life of the node, is answered at once as well.
    assert_eq!(watch(&mut world, at, Some(begin.change + 5), ms(20)).expect("at once").unwrap(), begin);
    let asked_at = world.at();
    assert_eq!(watch(&mut world, at, Some(begin.change), 2 * SECOND).expect("in a second").unwrap(), begin);
    assert!((SECOND..=SECOND + ms(20)).contains(&(world.at() - asked_at)));

    let request = FindRequest { what: name.clone(), dht: true };
    let finding = world.call(at, Call::Find(request));
    let (mut change, mut seen) = (begin.change, vec![]);
    let found = loop {
        let told = watch(&mut world, at, Some(change), 2 * SECOND).expect("an answer").unwrap();
        let row = told.lookups.iter().find(|row| row.what == name).cloned();
        seen.extend(row.map(|row| (row.asked, row.answered, row.paths, row.hops, row.took_ms)));
        change = told.change;
        if told.lookups.is_empty() {
            break world.answer(finding).expect("it is over");
        }
    };
    let Ok(Answer::Found(found)) = found else { panic!("{found:?}") };
    // Both steps of it: whose the name is, and where that member is.
    assert!(seen.len() >= 4 && seen.is_sorted_by_key(|row| row.0) && seen.is_sorted_by_key(|row| row.4), "{seen:?}");
    let last = seen.last().unwrap();
    assert!(last.0 <= found.requests && last.1 >= 4 && last.1 <= last.0 && last.2 >= 4 && last.3 >= 1, "{seen:?}");

    let calls: Vec<_> =
        (0..9).map(|_| world.call(at, Call::DhtLookups(LookupsRequest { after: Some(change) }))).collect();
    let busy: Vec<_> = calls.iter().map(|call| world.answer(*call)).collect();
    assert!(busy[..8].iter().all(Option::is_none), "{busy:?}");
    assert!(matches!(&busy[8], Some(Err(error)) if error.code == ErrorCode::Busy), "{busy:?}");
    world.run(SECOND + ms(10));
    assert!(calls[..8].iter().all(|call| matches!(world.answer(*call), Some(Ok(Answer::Lookups(_))))));
}

/// Neighbours in the order of ids, with whom links are kept in a large network.
fn neighbours(world: &World, of: Site) -> Vec<Site> {
    let mut ring: Vec<(NodeId, Site)> = world.sites().filter_map(|site| Some((world.id(site)?, site))).collect();
    ring.sort();
    let (at, len) = (ring.iter().position(|(_, site)| *site == of).unwrap(), ring.len());
    (1..=NEIGHBOURS).flat_map(|step| [ring[(at + step) % len].1, ring[(at + len - step) % len].1]).collect()
}

/// In a large network everybody hears of a new member by its neighbours. Those of one are all off, and it was cut off itself while somebody joined; the DHT
/// answers it all the same, by contact sessions, and so it meets the new one.
#[test]
fn who_is_known_to_the_dht_alone_is_met_when_it_is_found() {
    let (mut world, sites) = found_by_all(810, 30);
    world.set_discovery(Some(Part::Client));
    let clients = world.grow(sites[0], 3).expect("they join");
    world.run(3 * MINUTE);
    // The issuer is needed.
    let is_free = |site: &&Site| !neighbours(&world, **site).contains(&sites[0]);
    let lonely = *clients.iter().find(is_free).expect("one of them has other neighbours");
    neighbours(&world, lonely).into_iter().for_each(|site| world.power_off(site));
    world.run(MINUTE);
    world.cut(&[&[lonely]]);
    // Whom it meets on the way keeps to itself what others say of themselves.
    world.sites().for_each(|site| world.withhold_news(site));
    let new = world.grow(sites[0], 1).expect("it joins")[0];
    world.run(20 * SECOND);
    world.heal();
    // Nor does the new one come by itself before it is asked for.
    world.sever(new, lonely);
    let node = world.id(new).unwrap();
    let is_known = |world: &World| world.node(lonely).unwrap().directory().entry(node).is_some();
    assert!(!is_known(&world));

    let name = status(&mut world, new).identity.unwrap().name;
    let found = find_by(&mut world, lonely, &name, false).expect("the DHT has it");
    assert!(!is_known(&world));
    world.heal();
    assert_eq!((found.source.as_str(), found.dialled, found.node), ("dht", true, node.to_string()));
    let met = world.run_until(MINUTE, ms(100), |world| is_known(world)).expect("it is met");
    assert!(met <= 5 * SECOND, "after {met:?}");
    let Some(Ok(Answer::Candidates(rows))) = world.ask(lonely, Call::Candidates, SECOND) else { panic!("no answer") };
    let rows: Vec<_> = rows.iter().map(|row| (row.sources.join(" "), row.state, row.node.clone())).collect();
    assert_eq!(rows, [("dht".to_owned(), CandidateState::Member, Some(node.to_string()))]);
    let stream = world.stream(lonely, new, ms(200));
    world.run_until(MINUTE, SECOND, |world| world.is_session(lonely, new)).expect("packets go");
    world.run(SECOND);
    assert!(world.stats(stream).delivered > 0);
    let found = find_by(&mut world, lonely, &name, false).unwrap();
    assert_eq!((found.source.as_str(), found.dialled), ("directory", false));
}
