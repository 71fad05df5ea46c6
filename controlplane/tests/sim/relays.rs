//! Requests that come to an issuer through another member.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{ErrorCode, LogRequest};
use weir_controlplane::codec;
use weir_controlplane::issuer::Refused;
use weir_controlplane::node::message::{IssuerCall, Message};
use weir_controlplane::pki::token::Token;

use super::hostile::Misuse;
use super::issuers::{farewell, said};
use super::*;

/// How often requests came to nobody who could pass them on.
fn unreachable(world: &World, sites: &[Site]) -> Vec<u64> {
    sites.iter().map(|site| world.count(*site, "issuer_unreachable")).collect()
}

#[test]
fn a_member_without_a_way_to_the_issuer_renews_and_leaves_through_another() {
    let (mut world, sites) = network(610, 4);
    let far = sites[3];
    let node = world.id(far).unwrap();
    world.sever(sites[0], far);
    world.run(20 * HOUR);
    assert_eq!(["renewed", "renewal_failed"].map(|name| world.count(far, name)), [1, 0]);
    let log = world.ask(sites[0], Call::AuditLog(LogRequest { after: None, limit: None }), SECOND);
    let Some(Ok(Answer::Log(entries))) = log else { panic!("{log:?}") };
    let renewal = entries.iter().find(|entry| entry.act == "renew" && entry.subject == node.to_string());
    let actor = &renewal.expect("an entry").actor;
    let between = [sites[1], sites[2]].map(|site| world.id(site).unwrap().to_string());
    // The log keeps the beginning of an id.
    assert!(between.iter().any(|node| node.starts_with(actor)), "{actor} passed it on");
    assert!(matches!(world.ask(far, Call::Leave, SECOND), Some(Ok(Answer::Done(_)))));
    world.run(ms(20));
    assert!(sites[..3].iter().all(|site| world.knows_revoked(*site, node)));
}

/// A token may name any member, and so does one of an issuer's node that has moved behind another.
#[test]
fn a_token_is_redeemed_through_any_member() {
    let (mut world, sites) = network(611, 3);
    let mut token: Token = world.invite(sites[0], 1, None).unwrap().parse().unwrap();
    let door = world.node(sites[1]).unwrap();
    token.issuer = door.id().unwrap();
    token.endpoints = door.directory().entry(token.issuer).unwrap().record.endpoints.clone();
    let new = world.add_machine();
    world.sever(sites[0], new);
    world.start(new);
    let call = world.join(new, &token.to_text());
    world.run(MINUTE);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(Answer::Joined(_)))), "{answer:?}");
    let others = [sites[1], sites[2], new];
    assert!(is_mesh(&world, &others) && agree(&world, &world.sites().collect::<Vec<_>>()));
}

/// A joiner was told where a member is, and not which; whom the token names does not answer.
#[test]
fn who_joins_through_a_member_that_was_named_by_its_address_needs_no_way_to_the_issuer() {
    let (mut world, sites) = network(614, 3);
    let token = world.invite(sites[0], 2, None).unwrap();
    let (new, stranger) = (world.add_machine(), world.add_machine());
    [new, stranger].iter().for_each(|site| world.start(*site));
    world.sever(sites[0], new);
    let call = world.join_through(new, &token, sites[1]);
    world.run(5 * SECOND);
    assert!(matches!(world.answer(call), Some(Ok(Answer::Joined(_)))));
    world.run(MINUTE);
    assert!(is_mesh(&world, &[sites[1], sites[2], new]) && agree(&world, &[sites[0], sites[1], sites[2], new]));
    // Nobody is there, or a stranger is: then the token's own addresses have their turn.
    let late = world.add_machine();
    world.start(late);
    let call = world.join_through(late, &token, stranger);
    world.run(MINUTE);
    assert!(matches!(world.answer(call), Some(Ok(Answer::Joined(_)))));
}

/// The same over real handshakes.
#[test]
fn who_joins_through_another_member_shows_and_believes_real_certificates() {
    let mut world = World::real(seed(615), |_, _| RTT);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let door = world.grow(founder, 1).expect("it joins")[0];
    world.run(5 * SECOND);
    let token = world.invite(founder, 1, None).unwrap();
    let new = world.add_machine();
    world.sever(founder, new);
    world.start(new);
    let call = world.join_through(new, &token, door);
    world.run(10 * SECOND);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(Answer::Joined(_)))), "{answer:?}");
    assert!(agree(&world, &[founder, door, new]));
}

/// In a large network links go to neighbours, and after a restart the issuer is nobody's who is not one: requests came back from wherever they
/// were passed on to, renewals among them.
#[test]
fn a_member_that_is_no_neighbour_of_the_issuer_dials_it_for_others() {
    let (mut world, sites) = network(616, 40);
    sites.iter().for_each(|site| world.power_off(*site));
    world.run(SECOND);
    sites.iter().for_each(|site| world.start(*site));
    world.run(MINUTE);
    let (issuer, founder) = (sites[0], world.id(sites[0]).unwrap());
    let far = |world: &World| {
        let linked = |site: Site| world.node(site).is_some_and(|node| node.has_link(founder));
        sites[1..].iter().copied().filter(|site| !linked(*site)).collect::<Vec<_>>()
    };
    let doors = far(&world);
    assert!(doors.len() > 20, "{} of 39 have no link to the issuer", doors.len());
    let token = world.invite(issuer, 1, None).unwrap();
    let new = world.add_machine();
    world.sever(issuer, new);
    world.start(new);
    let call = world.join_through(new, &token, doors[7]);
    world.run(5 * SECOND);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(Answer::Joined(_)))), "{answer:?}");
    assert_eq!(world.count(doors[7], "issuer_dialled"), 1);
    // The link was for that alone.
    world.run(MINUTE);
    assert_eq!(far(&world).len(), doors.len());
    // And so everybody renews, whoever its neighbours are.
    world.run(20 * HOUR);
    let failed = |world: &World| sites.iter().map(|site| world.count(*site, "renewal_failed")).collect::<Vec<_>>();
    assert!(sites.iter().all(|site| world.count(*site, "renewed") >= 1), "{:?}", failed(&world));
    // Also one whose first neighbour has no way: it had asked that one again and again.
    assert_eq!(failed(&world).iter().sum::<u64>(), 0, "{:?}", failed(&world));
}

#[test]
fn a_request_that_no_issuer_takes_is_passed_on_once_and_counted() {
    let (mut world, sites) = network(612, 4);
    world.end_issuer(sites[0]);
    let answer = world.ask(sites[3], Call::CertRenew, SECOND).expect("an answer");
    let error = answer.expect_err("no issuer runs");
    assert_eq!((error.code, error.message.contains(&Refused::NotIssuer.to_string())), (ErrorCode::NoAnswer, true));
    // The issuer's node had it first, and passed it on.
    let counted = unreachable(&world, &sites);
    assert_eq!((counted[0], counted.iter().sum::<u64>()), (0, 1), "{counted:?}");
}

/// It went round among members for as long as its number said.
#[test]
fn a_made_up_number_of_hops_counts_no_more_than_an_honest_one() {
    let mut misuse = Misuse::of(613, 1);
    misuse.world.end_issuer(misuse.sites[0]);
    misuse.world.run(SECOND);
    let others = misuse.sites[..4].to_vec();
    let sent = |world: &World| others.iter().map(|site| world.costs(*site).messages).sum::<u64>();
    let request = farewell(&mut misuse);
    said(&mut misuse);
    let before = sent(&misuse.world);
    for (ticket, hops) in [(1, 0), (2, 1), (3, 2), (4, u8::MAX)] {
        let call = IssuerCall { ticket, hops, exporter: [0; 32], request: request.clone() };
        let (link, bytes) = (misuse.link, codec::encode(&Message::Issuer(call)));
        misuse.world.links(misuse.sites[4]).send(link, &bytes).unwrap();
    }
    misuse.world.run(10 * SECOND);
    // One is answered where it came first; the others are at the issuer's node, which is known by its role.
    assert_eq!(unreachable(&misuse.world, &others), [3, 1, 0, 0]);
    let messages = sent(&misuse.world) - before;
    assert!((10..40).contains(&messages), "{messages} messages for four requests");
    let mut answers: Vec<u32> = said(&mut misuse)
        .iter()
        .filter_map(|message| match message {
            Message::IssuerSaid { ticket, reply } if **reply == Err(Refused::NotIssuer) => Some(*ticket),
            _ => None,
        })
        .collect();
    answers.sort_unstable();
    assert_eq!(answers, [1, 2, 3, 4]);
}
