//! Names in whole nodes: signed by one, verified by another, answered by the server beside it.

use domain::base::iana::{OptRcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::AllRecordData;
use weir_controlplane::api::types::{DnsRefusal, DnsSetRequest, DnsStatus, DnsUnsetRequest, RevokeRequest};
use weir_controlplane::dns::publish::Entry;
use weir_controlplane::dns::server::Transport;
use weir_controlplane::node::Part;
use weir_controlplane::pki::dnssec;

use super::*;

fn query(name: &str, rtype: Rtype, is_dnssec_ok: bool) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    let mut question = builder.question();
    question.push((name.parse::<Name<Vec<u8>>>().unwrap(), rtype)).unwrap();
    let mut additional = question.additional();
    additional
        .opt(|opt| {
            opt.set_udp_payload_size(1232);
            opt.set_dnssec_ok(is_dnssec_ok);
            Ok(())
        })
        .unwrap();
    additional.finish()
}

/// An answer: how it ended, and its sections, each record as `name type` or `name type data` where that is short.
#[derive(Debug, PartialEq)]
struct Told {
    rcode: OptRcode,
    answer: Vec<String>,
    authority: Vec<String>,
}

fn told(bytes: &[u8]) -> Told {
    let message = Message::from_octets(bytes).unwrap();
    let (_, answer, authority, _) = message.sections().unwrap();
    let read = |section: domain::base::message::RecordSection<'_, &[u8]>| {
        let all = section.limit_to::<AllRecordData<_, _>>().map(|record| {
            let record = record.unwrap();
            let data = match record.data() {
                AllRecordData::A(a) => format!(" {}", a.addr()),
                AllRecordData::Aaaa(aaaa) => format!(" {}", aaaa.addr()),
                AllRecordData::Ptr(ptr) => format!(" {}", ptr.ptrdname()),
                _ => String::new(),
            };
            format!("{} {}{data}", record.owner(), record.rtype())
        });
        all.collect::<Vec<_>>()
    };
    Told { rcode: message.opt_rcode(), answer: read(answer), authority: read(authority) }
}

fn ask(world: &mut World, at: Site, name: &str, rtype: Rtype, is_dnssec_ok: bool) -> Told {
    let reply = world.ask_name(at, &query(name, rtype, is_dnssec_ok), Transport::Udp, 5 * SECOND);
    told(&reply.unwrap_or_else(|| panic!("{at:?} says nothing to {name} {rtype}")))
}

fn dns(world: &mut World, at: Site) -> DnsStatus {
    match world.ask(at, Call::DnsStatus, SECOND) {
        Some(Ok(Answer::DnsStatus(status))) => *status,
        other => panic!("{other:?}"),
    }
}

fn log(world: &mut World, at: Site) -> Vec<DnsRefusal> {
    match world.ask(at, Call::DnsLog, SECOND) {
        Some(Ok(Answer::DnsLog(log))) => log,
        other => panic!("{other:?}"),
    }
}

/// A network whose members take part in the DHT and publish `www` and a wildcard.
fn named(seed_number: u64, count: u32) -> (World, Vec<Site>) {
    let mut world = World::new(seed(seed_number), spread);
    world.set_discovery(Some(Part::Server));
    world.set_names(vec![
        Entry::new("www", "A", "192.0.2.7").unwrap(),
        Entry::new("*.pool", "A", "192.0.2.8").unwrap(),
        Entry::new("alias", "CNAME", "www").unwrap(),
    ]);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let others = world.grow(founder, count - 1).expect("all join");
    world.run(2 * MINUTE);
    (world, [vec![founder], others].concat())
}

fn name_of(world: &mut World, site: Site) -> (String, String) {
    let identity = status(world, site).identity.unwrap();
    let address = identity.addresses.iter().find(|address| address.contains(':')).expect("an overlay address").clone();
    (identity.name, address)
}

#[test]
fn everybody_answers_for_everybody_with_proofs() {
    let (mut world, sites) = named(900, 6);
    let zone = dns(&mut world, sites[0]).zone.unwrap();
    for (one, other) in pairs(&sites).collect::<Vec<_>>() {
        let (name, address) = name_of(&mut world, other);
        let full = format!("{name}.{zone}");
        let short = full.trim_end_matches('.').to_owned();
        let plain = ask(&mut world, one, &full, Rtype::AAAA, false);
        assert_eq!(plain.answer, [format!("{short} AAAA {address}")]);
        let signed = ask(&mut world, one, &full, Rtype::AAAA, true);
        assert_eq!(signed.answer, [format!("{short} AAAA {address}"), format!("{short} RRSIG")]);
        let alias = ask(&mut world, one, &format!("alias.{full}"), Rtype::A, false);
        assert_eq!(alias.answer, [format!("alias.{short} CNAME"), format!("www.{short} A 192.0.2.7")]);
        let wild = ask(&mut world, one, &format!("x.pool.{full}"), Rtype::A, true);
        assert_eq!(
            (wild.answer[0].as_str(), wild.authority.len()),
            (format!("x.pool.{short} A 192.0.2.8").as_str(), 2)
        );
        let none = ask(&mut world, one, &format!("none.{full}"), Rtype::A, true);
        assert_eq!((none.rcode, none.answer.len()), (OptRcode::NXDOMAIN, 0));
        assert!(none.authority.iter().filter(|record| record.ends_with("NSEC")).count() >= 1, "{none:?}");
        let reverse = dnssec::reverse(address.parse().unwrap()).to_string();
        let ptr = ask(&mut world, one, &reverse, Rtype::PTR, true);
        assert_eq!(ptr.answer[0], format!("{reverse} PTR {short}"));
        assert_eq!(ask(&mut world, one, &full, Rtype::DS, true).answer.len(), 2);
        assert_eq!(ask(&mut world, one, &full, Rtype::DNSKEY, true).answer.len(), 2);
    }
    // The network's own names; other names are others' business; and nobody is denied without proof to one who asks for it.
    assert_eq!(ask(&mut world, sites[1], &zone, Rtype::DNSKEY, true).answer.len(), 4);
    assert_eq!(ask(&mut world, sites[1], &zone, Rtype::SOA, true).answer.len(), 2);
    assert_eq!(ask(&mut world, sites[1], "example.com.", Rtype::A, false).rcode, OptRcode::REFUSED);
    let nobody = format!("nobody.{zone}");
    assert_eq!(ask(&mut world, sites[1], &nobody, Rtype::A, false).rcode, OptRcode::NXDOMAIN);
    assert_eq!(ask(&mut world, sites[1], &nobody, Rtype::A, true).rcode, OptRcode::SERVFAIL);
    assert!(sites.iter().all(|site| log(&mut world, *site).is_empty()));
}

#[test]
fn what_is_set_is_answered_elsewhere_within_its_ttl_and_outlives_a_restart() {
    let (mut world, sites) = named(901, 4);
    let (one, other) = (sites[1], sites[2]);
    let zone = dns(&mut world, one).own.unwrap();
    let host = format!("new.{zone}");
    assert_eq!(ask(&mut world, other, &host, Rtype::A, false).rcode, OptRcode::NXDOMAIN);
    let set = |data: &str| Call::DnsSet(DnsSetRequest { name: "new".into(), rtype: "A".into(), data: data.into() });
    assert!(matches!(world.ask(one, set("192.0.2.9"), SECOND), Some(Ok(Answer::Done(_)))));
    let wrong = world.ask(one, set("192.0.2"), SECOND).unwrap().unwrap_err();
    assert!(wrong.message.contains("192.0.2"), "{wrong:?}");
    world.run(31 * SECOND);
    let expected = format!("{} A 192.0.2.9", host.trim_end_matches('.'));
    assert_eq!(ask(&mut world, other, &host, Rtype::A, false).answer, std::slice::from_ref(&expected));
    world.kill(one);
    world.run(SECOND);
    world.start(one);
    world.run(31 * SECOND);
    assert_eq!(ask(&mut world, other, &host, Rtype::A, false).answer, std::slice::from_ref(&expected));
    assert_eq!(ask(&mut world, one, &host, Rtype::A, false).answer, [expected]);
    assert!(dns(&mut world, one).records.iter().any(|record| record.source == "set" && record.data == "192.0.2.9"));
    let unset = Call::DnsUnset(DnsUnsetRequest { name: "NEW".into(), rtype: None, data: None });
    assert!(matches!(world.ask(one, unset.clone(), SECOND), Some(Ok(Answer::Done(_)))));
    assert!(world.ask(one, unset, SECOND).unwrap().is_err());
    world.run(31 * SECOND);
    assert_eq!(ask(&mut world, other, &host, Rtype::A, false).rcode, OptRcode::NXDOMAIN);
}

#[test]
fn names_of_who_is_revoked_are_gone_within_their_ttl() {
    let (mut world, sites) = named(902, 5);
    let (one, gone) = (sites[2], sites[3]);
    let (name, _) = name_of(&mut world, gone);
    let full = format!("{name}.{}", dns(&mut world, one).zone.unwrap());
    assert_eq!(ask(&mut world, one, &full, Rtype::AAAA, false).answer.len(), 1);
    let revoke = Call::Revoke(RevokeRequest { member: name, reason: "stolen".into(), replace: false });
    assert!(matches!(world.ask(sites[0], revoke, 5 * SECOND), Some(Ok(_))));
    world.run(30 * SECOND);
    for site in [sites[0], one, sites[4]] {
        let told = ask(&mut world, site, &full, Rtype::AAAA, false);
        assert_eq!((told.rcode, told.answer), (OptRcode::NXDOMAIN, vec![]), "{site:?}");
    }
}

#[test]
fn who_is_cut_off_answers_what_it_knows_until_the_signatures_end() {
    let (mut world, sites) = named(903, 4);
    let (one, other) = (sites[1], sites[2]);
    let (zone, own) = (dns(&mut world, other).zone.unwrap(), dns(&mut world, other).own.unwrap());
    let full = format!("www.{own}");
    let known = ask(&mut world, one, &full, Rtype::A, true);
    assert_eq!(known.answer.len(), 2);
    for site in sites.iter().filter(|site| **site != one) {
        world.kill(*site);
    }
    world.run(10 * MINUTE);
    assert_eq!(ask(&mut world, one, &full, Rtype::A, true), known);
    let unknown = format!("www.nobody.{zone}");
    assert_eq!(ask(&mut world, one, &unknown, Rtype::A, true).rcode, OptRcode::SERVFAIL);
    world.run(9 * DAY);
    assert_eq!(ask(&mut world, one, &full, Rtype::A, true).rcode, OptRcode::SERVFAIL);
}

/// What an issuer said of a member's zone was kept from its first certificate only, and ended with that.
#[test]
fn names_outlive_the_certificates_that_they_came_with() {
    let (mut world, sites) = named(905, 3);
    let own = dns(&mut world, sites[2]).own.unwrap();
    world.run(20 * DAY);
    for (name, rtype) in [(own.clone(), Rtype::AAAA), (format!("www.{own}"), Rtype::A), (own, Rtype::DS)] {
        let told = ask(&mut world, sites[1], &name, rtype, true);
        assert_eq!((told.rcode, told.answer.len()), (OptRcode::NOERROR, 2), "{name} {rtype}");
    }
    let zone = dns(&mut world, sites[1]).zone.unwrap();
    assert_eq!(ask(&mut world, sites[1], &zone, Rtype::SOA, true).answer.len(), 2);
}

#[test]
fn a_storm_for_one_name_makes_one_look_up() {
    let (mut world, sites) = named(904, 4);
    let own = dns(&mut world, sites[2]).own.unwrap();
    let before = world.dns(sites[1]).unwrap().counters();
    for number in 0..200 {
        let asked = query(&format!("h{number}.{own}"), Rtype::A, false);
        assert!(world.ask_name(sites[1], &asked, Transport::Tcp, Duration::ZERO).is_none());
    }
    world.run(2 * SECOND);
    let after = world.dns(sites[1]).unwrap().counters();
    assert_eq!((after.waited - before.waited, after.denied - before.denied), (200, 200));
    assert_eq!(world.dns(sites[1]).unwrap().catalog().len(), 2, "itself and the other");
}
