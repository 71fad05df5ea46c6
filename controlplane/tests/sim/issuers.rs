//! More issuers than one, and what becomes of requests when one of them hangs, ends, is off or is revoked.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{Certificate, ErrorCode, RevokeIssuerRequest};
use weir_controlplane::codec;
use weir_controlplane::issuer::{LeaveBody, LeaveRequest, Refused};
use weir_controlplane::membership;
use weir_controlplane::node::link::Code;
use weir_controlplane::node::message::{IssuerCall, MemberRequest, Message};
use weir_controlplane::pki::admission::SignedAdmission;
use weir_controlplane::pki::id::KeyId;
use weir_controlplane::quic::{CloseReason, Event};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::sim::StreamId;

use super::hostile::Misuse;
use super::*;

/// Label of the exporter that requests to issuers are bound to, as in the node.
const EXPORT_LABEL: &[u8] = b"EXPORTER-weir-issuer-1";

/// Two members with issuers, so many others that the first one admitted, and the ids of the issuers' keys.
fn two_issuers(own_seed: u64, others: u32) -> (World, Vec<Site>, [KeyId; 2]) {
    let mut world = World::new(seed(own_seed), |_, _| RTT);
    let first = world.found().unwrap();
    world.run(5 * SECOND);
    let (second, key) = world.add_issuer(first).expect("a second issuer");
    let mut sites = vec![first, second];
    sites.extend(world.grow(first, others).expect("all join"));
    world.run(MINUTE);
    let keys = [world.founding_keys().unwrap().issuer.public().id(), key];
    (world, sites, keys)
}

fn certificate(world: &mut World, site: Site, call: Call) -> Certificate {
    let answer = world.ask(site, call, 10 * SECOND);
    let Some(Ok(Answer::Certificate(certificate))) = answer else { panic!("{site:?}: {answer:?}") };
    *certificate
}

fn certified_by(world: &mut World, sites: &[Site]) -> Vec<String> {
    sites.iter().map(|site| certificate(world, *site, Call::CertShow).issuer).collect()
}

/// The admission seed that a machine keeps.
fn admission(world: &World, site: Site) -> SignedAdmission {
    membership::admission(world.store(site)).unwrap().expect("a seed")
}

fn lost(world: &World, streams: &[StreamId]) -> Vec<u64> {
    streams.iter().map(|stream| world.stats(*stream).lost()).collect()
}

/// All certificates of `sites` were renewed by `issuer`, at the first attempt and long before they ended.
fn all_renewed_by(world: &mut World, sites: &[Site], issuer: KeyId) {
    for site in sites {
        let counted = ["renewed", "renewal_failed"].map(|name| world.count(*site, name));
        assert_eq!(counted, [1, 0], "{site:?}");
        let certificate = certificate(world, *site, Call::CertShow);
        assert_eq!(certificate.issuer, issuer.to_string(), "{site:?}");
        let left = certificate.not_after.0.since(world.true_time());
        assert!(left > 18 * HOUR, "{site:?}: {left:?} left");
    }
}

/// In a large network, after a restart, whoever passes a request on dials an issuer: it dialled the same one again, which was off.
#[test]
fn who_dials_an_issuer_for_others_in_vain_dials_another_one_next() {
    let (mut world, mut sites, _) = two_issuers(617, 10);
    // Who was there while the network was small has met both.
    let old = sites.clone();
    sites.extend(world.grow(sites[0], 28).expect("all join"));
    world.run(MINUTE);
    let ids = [0, 1].map(|at| world.id(sites[at]).unwrap());
    let mut dialled = vec![];
    for off in [0, 1] {
        sites.iter().for_each(|site| world.power_off(*site));
        world.run(SECOND);
        let on: Vec<Site> = sites.iter().copied().filter(|site| *site != sites[off]).collect();
        on.iter().for_each(|site| world.start(*site));
        world.run(MINUTE);
        let linked = |site: Site| ids.iter().any(|id| world.node(site).unwrap().has_link(*id));
        let far: Vec<Site> = on.iter().copied().filter(|site| *site != sites[1 - off] && !linked(*site)).collect();
        let is_near = |(one, other): &(Site, Site)| world.node(*one).unwrap().has_link(world.id(*other).unwrap());
        let mut ways = pairs(&far).filter(|(door, _)| old.contains(door));
        let (door, asker) = ways.find(is_near).expect("neighbours that are far from both issuers");
        sites.iter().filter(|site| **site != door && **site != asker).for_each(|site| world.sever(*site, asker));
        world.run(MINUTE);
        let before = world.count(door, "issuer_dialled");
        let mut is_renewed = false;
        for _ in 0..2 {
            if !is_renewed {
                let answer = world.ask(asker, Call::CertRenew, 12 * SECOND);
                is_renewed = matches!(answer, Some(Ok(Answer::Certificate(_))));
            }
        }
        let count = world.count(door, "issuer_dialled") - before;
        assert!(is_renewed && count >= 1, "{off}: {count}");
        dialled.push(count);
        world.heal();
    }
    assert!(dialled.contains(&2), "who is off was never dialled first: {dialled:?}");
}

/// The one of its members that has no way to the other issuer but through it, too.
#[test]
fn a_node_whose_issuer_has_ended_renews_through_another_and_passes_requests_on() {
    let (mut world, sites, [of_first, of_second]) = two_issuers(600, 2);
    let [first, second, near, far] = sites[..] else { panic!() };
    world.sever(far, second);
    world.end_issuer(first);
    let ways = [(first, second), (first, near), (first, far), (near, far), (near, second)];
    let streams = ways.map(|(one, other)| world.stream(one, other, 10 * SECOND));
    world.run(20 * HOUR);
    all_renewed_by(&mut world, &sites, of_second);
    assert_eq!(lost(&world, &streams), [0; 5]);
    // One that is there again renews again.
    world.set_issuer(first, true);
    world.run(SECOND);
    assert_eq!(certificate(&mut world, first, Call::CertRenew).issuer, of_first.to_string());
}

/// The link to an issuer that lost its power is silent for half a minute before it ends, and for so long whoever asked for a certificate waited,
/// to hear then that there was none.
#[test]
fn who_wants_a_certificate_gets_it_by_another_way_than_one_that_is_silent() {
    let (mut world, sites, [of_first, of_second]) = two_issuers(604, 2);
    for (gone, stays, issuer) in [(sites[0], sites[1], of_second), (sites[1], sites[0], of_first)] {
        world.power_off(gone);
        let calls = [sites[2], sites[3]].map(|site| world.call(site, Call::CertRenew));
        world.run(11 * SECOND);
        for call in calls {
            let Some(Ok(Answer::Certificate(renewed))) = world.answer(call) else { panic!("{gone:?}") };
            assert_eq!(renewed.issuer, issuer.to_string());
        }
        world.start(gone);
        world.run_until(5 * MINUTE, SECOND, |world| is_mesh(world, &sites)).expect("one again");
        assert!(world.links_open(stays) > 0);
    }
    assert_eq!([sites[2], sites[3]].map(|site| world.count(site, "renewal_failed")), [0; 2]);
}

#[test]
fn a_node_that_starts_without_its_issuer_renews_through_another() {
    let (mut world, sites, [_, of_second]) = two_issuers(601, 2);
    world.end_issuer(sites[0]);
    world.kill(sites[0]);
    world.run(10 * SECOND);
    world.start(sites[0]);
    world.run(20 * HOUR);
    all_renewed_by(&mut world, &sites, of_second);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
}

#[test]
fn renewals_go_on_while_the_first_issuer_is_off_for_thirty_hours() {
    let (mut world, sites, [of_first, of_second]) = two_issuers(602, 3);
    let others = &sites[1..];
    let streams: Vec<_> = pairs(others).map(|(one, other)| world.stream(one, other, 10 * SECOND)).collect();
    world.run(HOUR);
    world.power_off(sites[0]);
    world.run(30 * HOUR);
    assert_eq!(lost(&world, &streams), vec![0; streams.len()]);
    assert_eq!(certified_by(&mut world, others), vec![of_second.to_string(); 4]);
    for site in others {
        assert_eq!(world.count(*site, "renewal_failed"), 0, "{site:?}");
    }
    world.start(sites[0]);
    world.run_until(5 * MINUTE, SECOND, |world| is_mesh(world, &sites) && agree(world, &sites)).expect("one again");
    assert_eq!(certificate(&mut world, sites[0], Call::CertRenew).issuer, of_first.to_string());
    assert_eq!(lost(&world, &streams), vec![0; streams.len()]);
}

#[test]
fn a_revoked_issuer_takes_those_whom_only_it_certified_and_its_seed_with_it() {
    let (mut world, sites, [of_first, of_second]) = two_issuers(603, 4);
    let [first, second, stays, also_stays, certified, leaves] = sites[..] else { panic!() };
    world.end_issuer(first);
    assert_eq!(certificate(&mut world, certified, Call::CertRenew).issuer, of_second.to_string());
    // Who leaves has the second issuer draw a seed.
    assert!(matches!(world.ask(leaves, Call::Leave, SECOND), Some(Ok(Answer::Done(_)))));
    world.run(SECOND);
    world.set_issuer(first, true);
    // Key exchanges show the new certificate to everybody.
    world.run(10 * MINUTE);
    let rest = [first, second, stays, also_stays];
    let all = [first, second, stays, also_stays, certified];
    assert!(is_mesh(&world, &all) && agree(&world, &all));
    let seed = admission(&world, first);
    assert_eq!(seed.signer, of_second);
    assert!(all.iter().all(|site| admission(&world, *site) == seed));

    let streams = rest.map(|site| world.stream(certified, site, ms(50)));
    world.run(MINUTE);
    let begin = world.at();
    let request = RevokeIssuerRequest { issuer: of_second.to_string(), reason: "stolen".to_owned() };
    let answer = world.ask(first, Call::RevokeIssuer(request), SECOND);
    assert!(matches!(answer, Some(Ok(Answer::Done(_)))), "{answer:?}");
    world.run(SECOND);
    let seed = admission(&world, first);
    assert_eq!(seed.signer, of_first);
    assert!(rest.iter().all(|site| admission(&world, *site) == seed));
    world.run(30 * MINUTE);
    for (site, stream) in rest.iter().zip(streams) {
        assert_eq!(world.count(*site, "member_of_revoked_issuer"), 1, "{site:?}");
        let last = world.stats(stream).last.expect("it was heard before");
        assert!(last <= begin + SECOND, "{site:?} heard it until {:?} after", last - begin);
        assert!(!world.is_session(*site, certified));
    }
    // The node beside it was admitted by the first issuer, and has its next certificate from there.
    assert!(is_mesh(&world, &rest) && agree(&world, &rest));
    assert_eq!(certificate(&mut world, second, Call::CertRenew).issuer, of_first.to_string());
    let version = world.hold_ceremony(first, |ceremony, _| ceremony.revoke_issuer(of_second, None));
    assert_eq!(version, Some(3));
    world.run(MINUTE);
    assert!(is_mesh(&world, &rest) && agree(&world, &rest));
    assert!(rest.iter().all(|site| admission(&world, *site) == seed));

    // With a token it is a member as before.
    assert!(matches!(world.ask(certified, Call::Leave, SECOND), Some(Ok(Answer::Done(_)))));
    let token = world.invite(first, 1, None).unwrap();
    let call = world.join(certified, &token);
    world.run(MINUTE);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(Answer::Joined(_)))), "{answer:?}");
    assert!(is_mesh(&world, &all) && agree(&world, &all));
}

/// What the puppet of a [`Misuse`] asks for when it leaves.
pub(super) fn farewell(misuse: &mut Misuse) -> MemberRequest {
    let Misuse { ref mut world, ref sites, ref own, link, .. } = *misuse;
    let exporter = world.links(sites[4]).export(link, EXPORT_LABEL, b"").unwrap();
    let body = LeaveBody { network: own.network, certificate: own.chain[0].clone() };
    MemberRequest::Leave(LeaveRequest::new(&body, &own.identity, &exporter))
}

/// What others said to the puppet since the last time, on whatever link.
pub(super) fn said(misuse: &mut Misuse) -> Vec<Message> {
    let message = |event: Event| match event {
        Event::Message { bytes, .. } => codec::decode(&bytes, 1 << 20).ok(),
        Event::Opening { .. } | Event::Connected { .. } | Event::Closed { .. } => None,
    };
    misuse.world.heard(misuse.sites[4]).into_iter().filter_map(message).collect()
}

/// It was handed the seed that was drawn because of it, and nobody else heard of list and seed.
#[test]
fn who_leaves_is_cut_off_and_the_others_get_list_and_seed_at_once() {
    let mut misuse = Misuse::of(604, 0);
    let others = misuse.sites[..4].to_vec();
    let before = admission(&misuse.world, others[0]);
    let request = farewell(&mut misuse);
    said(&mut misuse);
    let call = IssuerCall { ticket: 7, hops: 1, exporter: [0; 32], request };
    let bytes = codec::encode(&Message::Issuer(call));
    let (link, puppet) = (misuse.link, misuse.sites[4]);
    misuse.world.links(puppet).send(link, &bytes).unwrap();
    // There, the issuer, and one step further.
    misuse.world.run(ms(30));
    let after = admission(&misuse.world, others[0]);
    assert!(after != before);
    for site in &others {
        assert!(misuse.world.knows_revoked(*site, misuse.own.node), "{site:?}");
        assert!(admission(&misuse.world, *site) == after, "{site:?}");
    }
    misuse.world.run(MINUTE);
    // That it is done is said on the link that ends for it, and lost with it: the end says as much.
    let mut heard = misuse.world.heard(puppet);
    heard.retain(|event| matches!(event, Event::Message { .. } | Event::Closed { .. }));
    let revoked = Code::Revoked as u32;
    let is_cut = |event: &Event| matches!(event, Event::Closed { link: of, reason: CloseReason::Peer { code, .. } } if *of == link && *code == revoked);
    assert!(heard.iter().any(is_cut), "{heard:?}");
    assert!(heard.iter().all(|event| matches!(event, Event::Closed { .. })), "neither list nor seed: {heard:?}");
    assert!(is_mesh(&misuse.world, &others) && agree(&misuse.world, &others));
}

#[test]
fn members_that_wait_for_an_issuer_that_hangs_leave_room_for_people() {
    let mut misuse = Misuse::of(605, 0);
    let (founder, puppet) = (misuse.sites[0], misuse.sites[4]);
    misuse.world.set_issuer(founder, false);
    let request = farewell(&mut misuse);
    said(&mut misuse);
    for ticket in 0..600 {
        let call = IssuerCall { ticket, hops: 1, exporter: [0; 32], request: request.clone() };
        let (link, bytes) = (misuse.link, codec::encode(&Message::Issuer(call)));
        misuse.world.links(puppet).send(link, &bytes).unwrap();
    }
    misuse.world.run(SECOND);
    let is_refused = |message: &&Message| match message {
        Message::IssuerSaid { reply, .. } => matches!(**reply, Err(Refused::Store(_))),
        _ => false,
    };
    // What the node itself asks has a place or two among the 512.
    let refused = said(&mut misuse).iter().filter(is_refused).count() as u64;
    assert!((88..=90).contains(&refused), "{refused} of 600 are refused");
    assert_eq!(misuse.world.count(founder, "issuer_busy"), refused);
    let world = &mut misuse.world;
    let calls: Vec<_> = (0..257).map(|_| world.call(founder, Call::Invites)).collect();
    assert!(calls[..256].iter().all(|call| world.answer(*call).is_none()));
    let busy = world.answer(calls[256]).expect("an answer");
    assert!(busy.is_err_and(|error| error.code == ErrorCode::Busy));
    // Whoever waited hears of the end, and asks once more.
    world.set_issuer(founder, true);
    world.run(SECOND);
    for call in &calls[..256] {
        let answer = world.answer(*call).expect("an answer");
        assert!(answer.is_err_and(|error| error.code == ErrorCode::Internal));
    }
    assert!(matches!(world.ask(founder, Call::Invites, SECOND), Some(Ok(Answer::Invites(_)))));
}

#[test]
fn a_wider_pool_reaches_every_member_and_who_joins_is_given_of_it() {
    let (mut world, mut sites) = network(605, 3);
    let of_it = Some("172.16.5.0/24");
    assert!(world.invite(sites[0], 1, of_it).is_none(), "not in the pool yet");
    let more = ["172.16.0.0/12".parse().unwrap()];
    let mut random = SeededRandom::new(7);
    let widened = world.hold_ceremony(sites[1], |ceremony, _| ceremony.widen_pool(&more, None, &mut random).map(drop));
    assert_eq!(widened, Some(2));
    world.run(MINUTE);
    let token = world.invite(sites[0], 1, of_it).expect("an invitation");
    let new = world.add_machine();
    world.start(new);
    let call = world.join(new, &token);
    world.run(MINUTE);
    assert!(matches!(world.answer(call), Some(Ok(Answer::Joined(_)))));
    sites.push(new);
    // Those that were there show certificates of before, the new one a certificate under what the issuer has now.
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
    world.run(DAY);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites), "and all renew under it");
    let certificate = certificate(&mut world, new, Call::CertRenew);
    assert!(certificate.prefixes.iter().any(|prefix| prefix == "172.16.5.0/24"), "{certificate:?}");
}
