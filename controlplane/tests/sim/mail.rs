//! Messages of applications, through what happens to links and processes.

use data_encoding::BASE64;
use weir_controlplane::api::messages::{
    MessageState, OutcomesRequest, ReceiveRequest, Received, SendRequest, Sent, TakenAnswer, TakenRequest,
};
use weir_controlplane::api::types::{ErrorCode, PolicyApplyRequest};

use super::*;

fn send(world: &mut World, from: Site, to: &str, topic: &str, body: &[u8]) -> Vec<Sent> {
    let (to, topic, body) = (to.to_owned(), Some(topic.to_owned()), BASE64.encode(body));
    let call = Call::SendMessage(SendRequest { to, topic, body, ttl_secs: None, datagram: false });
    match world.ask(from, call, SECOND) {
        Some(Ok(Answer::Sent(sent))) => sent,
        other => panic!("{other:?}"),
    }
}

fn receive(world: &mut World, at: Site, wait_ms: u32) -> Vec<Received> {
    let call = Call::ReceiveMessages(ReceiveRequest { topic: None, count: Some(64), wait_ms: Some(wait_ms) });
    match world.ask(at, call, MINUTE) {
        Some(Ok(Answer::Received(received))) => received,
        other => panic!("{other:?}"),
    }
}

fn taken(world: &mut World, at: Site, received: &[Received]) {
    let ids = received.iter().map(|one| one.id.clone()).collect();
    assert!(world.ask(at, Call::MessagesTaken(TakenRequest { ids }), SECOND).is_some_and(|answer| answer.is_ok()));
}

fn state(world: &mut World, at: Site, id: &str) -> MessageState {
    let call = Call::MessageOutcomes(OutcomesRequest { ids: vec![id.to_owned()], wait_ms: None });
    match world.ask(at, call, SECOND) {
        Some(Ok(Answer::Sent(sent))) => sent[0].state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_to_a_member_that_is_away_come_in_order_and_once_when_it_is_back() {
    let (mut world, sites) = network(901, 3);
    let to = world.id(sites[2]).unwrap().to_string();
    world.power_off(sites[2]);
    let bodies: Vec<Vec<u8>> = (0..40u32).map(|number| vec![number as u8; number as usize * 5000]).collect();
    let ids: Vec<String> = bodies.iter().map(|body| send(&mut world, sites[1], &to, "a", body)[0].id.clone()).collect();
    world.run(HOUR);
    // The sender forgets nothing, and the receiver dies once on the way.
    world.kill(sites[1]);
    world.start(sites[1]);
    world.start(sites[2]);
    let mut got = vec![];
    let first = receive(&mut world, sites[2], 30_000);
    got.extend(first.iter().map(|one| BASE64.decode(one.body.as_bytes()).unwrap()));
    taken(&mut world, sites[2], &first);
    world.kill(sites[2]);
    world.start(sites[2]);
    while got.len() < bodies.len() {
        let some = receive(&mut world, sites[2], 30_000);
        assert!(!some.is_empty(), "{} of {}", got.len(), bodies.len());
        got.extend(some.iter().map(|one| BASE64.decode(one.body.as_bytes()).unwrap()));
        taken(&mut world, sites[2], &some);
    }
    assert!(got == bodies);
    world.run(SECOND);
    for id in ids {
        assert!(matches!(state(&mut world, sites[1], &id), MessageState::Delivered));
    }
    assert!(receive(&mut world, sites[2], 1000).is_empty());
}

/// A policy in force everywhere that lets nobody send such messages to this member.
fn forbid(world: &mut World, issuer: Site, to: &str, topic: &str) {
    let text = format!(
        "default = \"allow\"\n[[message]]\nname = \"no\"\nfrom = [\"any\"]\nto = [\"node:{to}\"]\ntopic = \"{topic}\"\n\
         action = \"deny\"\n"
    );
    let call = Call::PolicyApply(PolicyApplyRequest { text: Some(text), signed: None });
    assert!(world.ask(issuer, call, SECOND).is_some_and(|answer| answer.is_ok()));
    world.run(SECOND);
}

#[test]
fn the_policy_says_who_may_send_and_what_waits_is_judged_by_each_new_one() {
    let (mut world, sites) = network(902, 3);
    let to = world.id(sites[2]).unwrap().to_string();
    forbid(&mut world, sites[0], &to, "x*");
    assert_eq!(send(&mut world, sites[1], &to, "xy", b"1")[0].state, MessageState::Refused);
    let held = send(&mut world, sites[1], &to, "y", b"2").remove(0);
    assert_eq!(held.state, MessageState::Queued);
    world.run(SECOND);
    assert_eq!(state(&mut world, sites[1], &held.id), MessageState::Held);
    // A policy that is taken back in time costs no message.
    forbid(&mut world, sites[0], &to, "y");
    assert_eq!(receive(&mut world, sites[2], 5000), []);
    forbid(&mut world, sites[0], &to, "x");
    let received = receive(&mut world, sites[2], 5000);
    assert_eq!(received.iter().map(|one| one.topic.as_str()).collect::<Vec<_>>(), ["y"]);
    taken(&mut world, sites[2], &received);
    // One that stays does.
    let refused = send(&mut world, sites[1], &to, "y", b"3").remove(0);
    world.run(SECOND);
    forbid(&mut world, sites[0], &to, "y");
    world.run(MINUTE + SECOND);
    assert_eq!(state(&mut world, sites[1], &refused.id), MessageState::Refused);
    assert_eq!(receive(&mut world, sites[2], 5000), []);
}

#[test]
fn what_a_program_gives_back_is_there_for_the_next_one_at_once() {
    let (mut world, sites) = network(903, 2);
    let to = world.id(sites[1]).unwrap().to_string();
    (0..3).for_each(|number| drop(send(&mut world, sites[0], &to, "a", &[number])));
    world.run(SECOND);
    let received = receive(&mut world, sites[1], 5000);
    assert_eq!((received.len(), receive(&mut world, sites[1], 1000)), (3, vec![]));
    let ids = received[1..].iter().map(|one| one.id.clone()).collect();
    let answer = world.ask(sites[1], Call::MessagesReturned(TakenRequest { ids }), SECOND);
    assert!(matches!(answer, Some(Ok(Answer::Taken(TakenAnswer { messages: 2 })))), "{answer:?}");
    taken(&mut world, sites[1], &received[..1]);
    assert_eq!(receive(&mut world, sites[1], 1000), received[1..]);
}

#[test]
fn calls_of_both_kinds_wait_in_the_same_places_and_who_only_looks_needs_none() {
    let (mut world, sites) = network(904, 2);
    let to = world.id(sites[1]).unwrap().to_string();
    world.power_off(sites[1]);
    let ids = vec![send(&mut world, sites[0], &to, "a", b"1").remove(0).id];
    let outcomes = |wait_ms| Call::MessageOutcomes(OutcomesRequest { ids: ids.clone(), wait_ms });
    let receives = |wait_ms| Call::ReceiveMessages(ReceiveRequest { topic: None, count: None, wait_ms });
    let waits = Some(30_000);
    for number in 0..32 {
        let call = if number % 2 == 0 { outcomes(waits) } else { receives(waits) };
        let id = world.call(sites[0], call);
        assert_eq!(world.answer(id), None, "{number} waits");
    }
    for call in [outcomes(waits), receives(waits)] {
        let answer = world.ask(sites[0], call, SECOND);
        assert!(matches!(&answer, Some(Err(error)) if error.code == ErrorCode::Busy), "{answer:?}");
    }
    for call in [outcomes(None), receives(None)] {
        assert!(matches!(world.ask(sites[0], call, SECOND), Some(Ok(_))));
    }
    // Their time is over.
    world.run(MINUTE / 2);
    assert!(matches!(world.ask(sites[0], receives(Some(10)), SECOND), Some(Ok(_))));
}

#[test]
fn a_link_is_made_for_a_message_and_let_go_of_when_it_has_served() {
    let (mut world, sites) = network(905, 28);
    // While the network was small everybody had a link to everybody.
    world.kill(sites[1]);
    world.run(3 * MINUTE);
    world.start(sites[1]);
    world.run(3 * MINUTE);
    let own = world.id(sites[1]).unwrap();
    let is_linked = |world: &World, from: Site| world.node(from).is_some_and(|node| node.has_link(own));
    let far: Vec<Site> = sites[2..].iter().copied().filter(|site| !is_linked(&world, *site)).collect();
    assert!(far.len() > 10, "{}", far.len());
    let to = own.to_string();
    let ids: Vec<String> = far.iter().map(|from| send(&mut world, *from, &to, "a", b"1").remove(0).id).collect();
    world.run(10 * SECOND);
    let received = receive(&mut world, sites[1], 1000);
    assert_eq!(received.len(), far.len());
    assert!(far.iter().all(|from| is_linked(&world, *from)));
    taken(&mut world, sites[1], &received);
    world.run(11 * MINUTE);
    for (from, id) in far.iter().zip(&ids) {
        assert_eq!((state(&mut world, *from, id), is_linked(&world, *from)), (MessageState::Delivered, false));
    }
    // The way back is found as well, though each of these links has been closed, by the other end.
    for site in far {
        let to = world.id(site).unwrap().to_string();
        send(&mut world, sites[1], &to, "a", b"2");
        assert_eq!(receive(&mut world, site, 10_000).len(), 1);
    }
}

#[test]
fn a_call_names_as_many_messages_as_are_read() {
    let (mut world, sites) = network(906, 2);
    let to = world.id(sites[1]).unwrap().to_string();
    let id = send(&mut world, sites[0], &to, "a", b"1").remove(0).id;
    world.run(SECOND);
    let received = receive(&mut world, sites[1], 1000).remove(0).id;
    let returned = |times| Call::MessagesReturned(TakenRequest { ids: vec![received.clone(); times] });
    let outcomes = |times| Call::MessageOutcomes(OutcomesRequest { ids: vec![id.clone(); times], wait_ms: None });
    for (site, most, over) in [(sites[1], returned(64), returned(65)), (sites[0], outcomes(1024), outcomes(1025))] {
        assert!(world.ask(site, most, SECOND).is_some_and(|answer| answer.is_ok()));
        let answer = world.ask(site, over, SECOND);
        assert!(matches!(&answer, Some(Err(error)) if error.code == ErrorCode::BadRequest), "{answer:?}");
    }
}
