//! Whoever asks is answered, whatever goes away meanwhile; and what is asked is done once it is asked again.

use std::collections::BTreeSet;

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{ErrorCode, LogRequest, RevokeRequest};
use weir_controlplane::codec;
use weir_controlplane::node::link::Code;
use weir_controlplane::node::message::{Message, VERSION};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::quic::{Alpn, Event};
use weir_controlplane::store::{Store, Table};

use super::messages::hello;
use super::policies::{DENY, signed};
use super::*;

fn code(answer: Option<Result<Answer, weir_controlplane::api::types::Error>>) -> Option<ErrorCode> {
    answer.expect("an answer").err().map(|error| error.code)
}

#[test]
fn a_renewal_that_is_lost_with_its_link_is_reported() {
    let (mut world, sites) = network(500, 2);
    world.set_issuer(sites[0], false);
    let call = world.call(sites[1], Call::CertRenew);
    world.run(SECOND);
    assert!(world.answer(call).is_none(), "the issuer does not answer");
    world.kill(sites[0]);
    world.run(2 * MINUTE);
    assert_eq!(code(world.answer(call)), Some(ErrorCode::NoAnswer));
    assert!(world.count(sites[1], "renewal_failed") >= 1);
}

/// The only other member takes links for renewals, says nothing on them, and has no others.
#[test]
fn a_renewal_on_a_silent_link_is_given_up_and_tried_again() {
    let (mut world, sites) = network(501, 2);
    let puppet = sites[0];
    world.make_puppet(puppet);
    let (mut joins, mut call, mut answer) = (BTreeSet::new(), None, None);
    for second in 0..3 * 3600 {
        for event in world.heard(puppet) {
            match event {
                Event::Opening { link, alpn: Alpn::Join, .. } => {
                    world.links(puppet).keep_alive(link);
                    joins.insert(link);
                }
                Event::Opening { link, .. } => world.links(puppet).close(link, 0, "no"),
                _ => {}
            }
        }
        if second == 300 {
            call = Some(world.call(sites[1], Call::CertRenew));
        }
        world.run(SECOND);
        answer = answer.or_else(|| world.answer(call?));
    }
    assert_eq!(code(answer), Some(ErrorCode::NoAnswer));
    assert!(joins.len() >= 2, "{} attempts", joins.len());
    assert!(world.links_open(sites[1]) <= 3, "{} links", world.links_open(sites[1]));
}

/// A member whose records are of another time, say, greets and hangs up: each link began the waits anew, and it was dialled every second.
#[test]
fn who_greets_and_hangs_up_is_dialled_ever_more_rarely() {
    let (mut world, sites) = network(505, 2);
    let puppet = sites[0];
    world.make_puppet(puppet);
    let mut dials = 0;
    let hello = hello(VERSION, world.true_time());
    for _ in 0..30 * 60 {
        for event in world.heard(puppet) {
            match event {
                Event::Connected { link, alpn: Alpn::Member, .. } => {
                    dials += 1;
                    let greeting = codec::encode(&Message::Hello(hello.clone()));
                    world.links(puppet).send(link, &greeting).unwrap();
                    world.links(puppet).close(link, Code::Failed as u32, "not now");
                }
                Event::Opening { link, alpn: Alpn::Member, .. } => world.links(puppet).keep_alive(link),
                Event::Opening { link, .. } => world.links(puppet).close(link, 0, "no"),
                _ => {}
            }
        }
        world.run(SECOND);
    }
    assert!((10..=80).contains(&dials), "{dials} dials in half an hour");
}

#[test]
fn so_many_calls_wait_for_a_certificate_and_no_more() {
    let (mut world, sites) = network(502, 2);
    world.set_issuer(sites[0], false);
    let calls: Vec<_> = (0..257).map(|_| world.call(sites[1], Call::CertRenew)).collect();
    assert!(calls[..256].iter().all(|call| world.answer(*call).is_none()));
    assert_eq!(code(world.answer(calls[256])), Some(ErrorCode::Busy));
}

#[test]
fn a_renewal_that_somebody_waits_for_ends_with_the_membership() {
    let (mut world, sites) = network(503, 2);
    world.set_issuer(sites[0], false);
    let call = world.call(sites[1], Call::CertRenew);
    let left = world.ask(sites[1], Call::Leave, 5 * SECOND);
    assert!(matches!(left, Some(Ok(Answer::Done(_)))), "{left:?}");
    assert_eq!(code(world.answer(call)), Some(ErrorCode::Conflict));
}

/// The farewell was said on a link that was closed in the same moment, so it never left the host: the others went on to believe in who had gone.
#[test]
fn who_leaves_is_gone_when_an_issuer_knows_or_says_that_none_does() {
    let (mut world, sites) = network(507, 4);
    let [founder, stays, leaves, leaves_unheard] = sites[..] else { panic!() };
    let node = world.id(leaves).unwrap();
    let said = |answer: Option<Result<Answer, _>>| match answer {
        Some(Ok(Answer::Done(done))) => done.message,
        other => panic!("{other:?}"),
    };
    let done = "this node has left the network and forgotten its keys";
    let message = said(world.ask(leaves, Call::Leave, SECOND));
    assert_eq!((message.as_str(), world.id(leaves)), (done, None));
    world.run(RTT);
    for site in [founder, stays, leaves_unheard] {
        assert!(world.knows_revoked(site, node) && !world.is_session(site, leaves), "{site:?}");
    }

    world.set_issuer(founder, false);
    let calls = [(); 2].map(|()| world.call(leaves_unheard, Call::Leave));
    world.run(ms(2_900));
    assert!(calls.iter().all(|call| world.answer(*call).is_none()), "the issuer has some time to answer");
    world.run(ms(200));
    for call in calls {
        let message = said(world.answer(call));
        assert!(message.starts_with(done) && message.contains("no issuer has heard of it: `weir revoke"), "{message}");
    }
    assert_eq!(world.id(leaves_unheard), None);
}

/// The issuer beside who leaves lists it, but its word goes nowhere any more.
#[test]
fn an_issuers_node_leaves_by_another_issuer_or_says_that_none_has_heard() {
    let (mut world, sites) = network(508, 3);
    let said = |answer: Option<Result<Answer, _>>| match answer {
        Some(Ok(Answer::Done(done))) => done.message,
        other => panic!("{other:?}"),
    };
    let (second, _) = world.add_issuer(sites[0]).expect("a second issuer");
    world.run(MINUTE);
    let first = world.id(sites[0]).unwrap();
    let message = said(world.ask(sites[0], Call::Leave, SECOND));
    assert!(message.ends_with("forgotten its keys"), "{message}");
    world.run(RTT);
    for site in [sites[1], sites[2], second] {
        assert!(world.knows_revoked(site, first), "{site:?}");
    }
    let message = said(world.ask(second, Call::Leave, SECOND));
    assert!(message.contains("no issuer has heard of it"), "{message}");
}

/// The packet plane's end is noticed a moment after it.
#[test]
fn what_the_packet_plane_took_with_it_is_answered_all_the_same() {
    let (mut world, sites) = network(504, 2);
    world.kill_plane(sites[1]);
    let calls = [Call::PolicyShow, Call::Peers].map(|call| world.call(sites[1], call));
    world.run(ms(50));
    for call in calls {
        assert!(matches!(world.answer(call), Some(Ok(Answer::Policy(_) | Answer::Peers(_)))));
    }
}

/// An issuer gives the same key the same grant, so what counts is that the key is there again.
#[test]
fn a_join_after_leaving_outlives_a_crash() {
    let (mut world, sites) = network(505, 2);
    let identity = |world: &World| world.store(sites[1]).value(Table::Membership, b"identity").unwrap();
    let before = identity(&world);
    let left = world.ask(sites[1], Call::Leave, SECOND);
    assert!(matches!(left, Some(Ok(_))), "{left:?}");
    let kept = identity(&world);
    assert!(kept.is_some() && kept != before, "somebody else from now on");
    let token = world.invite(sites[0], 1, None).unwrap();
    world.join(sites[1], &token);
    // The issuer has signed, and nobody has heard it yet.
    world.run(ms(37));
    world.kill(sites[1]);
    let invites = world.ask(sites[0], Call::Invites, SECOND);
    let Some(Ok(Answer::Invites(invites))) = invites else { panic!("{invites:?}") };
    assert!(invites.len() == 3 && invites.iter().all(|invite| invite.used_by.len() == 1), "{invites:?}");
    world.start(sites[1]);
    assert_eq!(world.id(sites[1]), None);
    let call = world.join(sites[1], &token);
    world.run(5 * SECOND);
    let answer = world.answer(call);
    assert!(matches!(answer, Some(Ok(Answer::Joined(_)))), "{answer:?}");
}

#[test]
fn the_audit_log_names_who_asked_for_a_replacement() {
    let (mut world, sites) = network(506, 2);
    let member = world.id(sites[1]).unwrap().to_string();
    let request = RevokeRequest { member, reason: "lost".to_owned(), replace: true };
    let answer = world.ask(sites[0], Call::Revoke(request), SECOND);
    assert!(matches!(answer, Some(Ok(Answer::Revoked(_)))), "{answer:?}");
    let log = world.ask(sites[0], Call::AuditLog(LogRequest { after: None, limit: None }), SECOND);
    let Some(Ok(Answer::Log(entries))) = log else { panic!("{log:?}") };
    let actors: Vec<&str> = entries.iter().rev().take(2).map(|entry| entry.actor.as_str()).collect();
    assert_eq!(actors, ["a test"; 2]);
}

#[test]
fn a_status_tells_of_the_certificates_that_were_judged() {
    let (mut world, sites) = network(507, 3);
    let Some(Ok(Answer::Status(status))) = world.ask(sites[1], Call::Status, SECOND) else { panic!("a status") };
    let count = |name: &str| status.counters.iter().find(|row| row.name == name).map_or(0, |row| row.count);
    assert!(count("chain_accepted") >= 4, "{:?}", status.counters);
    assert_eq!(count("exchange_installed"), world.count(sites[1], "exchange_installed"));
    assert!(status.counters.iter().all(|row| row.count > 0));
}

#[test]
fn a_status_tells_of_what_was_counted_around_the_node() {
    let (mut world, sites) = network(508, 2);
    world.counted(sites[1], vec![("quic_retries".to_owned(), 5), ("control_sealed".to_owned(), 0)]);
    let Some(Ok(Answer::Status(status))) = world.ask(sites[1], Call::Status, SECOND) else { panic!("a status") };
    let count = |name: &str| status.counters.iter().find(|row| row.name == name).map(|row| row.count);
    assert_eq!((count("quic_retries"), count("control_sealed")), (Some(5), None), "what never happened is left out");
}

/// The model's packet plane says that its second worker has a port for itself.
#[test]
fn lane_ports_are_told_where_there_are_any() {
    let (mut world, sites) = network(509, 2);
    let Some(Ok(Answer::Status(status))) = world.ask(sites[1], Call::Status, SECOND) else { panic!("a status") };
    assert_eq!(status.plane.lane_ports, [status.plane.port + 1]);
    let Some(Ok(Answer::Peers(peers))) = world.ask(sites[1], Call::Peers, SECOND) else { panic!("peers") };
    assert_eq!(
        peers.iter().map(|peer| (peer.port, peer.lanes_by_port)).collect::<Vec<_>>(),
        [(Some(status.plane.port), Some(1))]
    );
    world.kill_plane(sites[1]);
    world.run(ms(50));
    let Some(Ok(Answer::Status(status))) = world.ask(sites[1], Call::Status, SECOND) else { panic!("a status") };
    assert_eq!((status.plane.running, status.plane.lane_ports.len()), (false, 0));
}

/// A policy whose number nobody could go beyond was refused by a line that no test had ever reached.
#[test]
fn a_signed_policy_that_is_not_put_in_force_says_why_and_changes_nothing() {
    let (mut world, sites) = network(510, 2);
    let operator = world.founding_keys().unwrap().issuer.clone();
    let now = world.true_time().0;
    let stranger = PrivateKey::from_seed(&[7; 32]);
    let in_force = |world: &mut World| match world.ask(sites[1], Call::PolicyShow, SECOND) {
        Some(Ok(Answer::Policy(policy))) => policy.version,
        other => panic!("{other:?}"),
    };
    let mut apply = |version: u64, by: &PrivateKey| {
        let call = signed(&world, sites[1], version, DENY, by);
        let answer = world.ask(sites[1], call, SECOND).expect("an answer");
        let said = answer.map_err(|error| {
            assert_eq!((error.code, error.remedy.is_empty()), (ErrorCode::Conflict, false), "{error:?}");
            error.message
        });
        (said.map(drop), in_force(&mut world))
    };
    assert_eq!(apply(3, &operator), (Ok(()), 3));
    let beyond = now + 32 * DAY.as_secs();
    for (version, by, why) in [
        (u64::MAX, &operator, "count from 1"),
        (beyond, &operator, "count from 1"),
        (4, &stranger, "no operator of this network"),
        (3, &operator, "version 3 is in force"),
        (0, &operator, "version 3 is in force"),
    ] {
        let (said, version_in_force) = apply(version, by);
        let said = said.expect_err("refused");
        assert!(said.contains(why) && version_in_force == 3, "{version}: {said}, {version_in_force} in force");
    }
    // None of the numbers that were refused is used up.
    assert_eq!(apply(4, &operator), (Ok(()), 4));
    assert_eq!(world.count(sites[1], "policy_refused"), 0, "whoever asks is told; what is counted came from others");
    let Some(Ok(Answer::Policy(elsewhere))) = world.ask(sites[0], Call::PolicyShow, SECOND) else { panic!("a policy") };
    assert_eq!(elsewhere.version, 4, "and what holds here holds everywhere");
}
