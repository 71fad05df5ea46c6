//! Messages of applications, through what happens to links and processes.

use data_encoding::BASE64;
use weir_controlplane::api::messages::{
    MessageState, OutcomesRequest, ReceiveRequest, Received, SendRequest, Sent, TakenRequest,
};
use weir_controlplane::api::types::PolicyApplyRequest;

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

#[test]
fn the_policy_says_who_may_send() {
    let (mut world, sites) = network(902, 3);
    let to = world.id(sites[2]).unwrap().to_string();
    let text = format!(
        "default = \"allow\"\n[[message]]\nname = \"no\"\nfrom = [\"any\"]\nto = [\"node:{to}\"]\ntopic = \"x*\"\naction = \"deny\"\n"
    );
    let call = Call::PolicyApply(PolicyApplyRequest { text: Some(text), signed: None });
    assert!(world.ask(sites[0], call, SECOND).is_some_and(|answer| answer.is_ok()));
    world.run(SECOND);
    assert_eq!(send(&mut world, sites[1], &to, "xy", b"1")[0].state, MessageState::Refused);
    assert_eq!(send(&mut world, sites[1], &to, "y", b"2")[0].state, MessageState::Queued);
    assert_eq!(receive(&mut world, sites[2], 5000).len(), 1);
}
