//! Peers that move.

use std::net::SocketAddr;
use std::time::Duration;

use super::rig::*;
use crate::engine::path::SharedPath;
use crate::engine::roam::ELSEWHERE_INTERVAL;
use crate::engine::session::KeysId;
use crate::engine::*;

fn candidate() -> SocketAddr {
    "[2001:db8::7]:999".parse().unwrap()
}

fn from(source: SocketAddr, sink: Sink) -> Burst {
    let mut burst = Burst::trains(sink);
    burst.0.iter_mut().for_each(|(_, meta)| meta.source = Some(source));
    burst
}

fn session(gateway: &mut Gateway, m: u8) -> &mut Session {
    gateway.engine.sessions[usize::from(m)].as_mut().unwrap()
}

fn waiting(gateway: &mut Gateway) -> Sink {
    let mut wan = Sink::new();
    gateway.engine.send_waiting(START, &mut wan);
    wan
}

fn challenge(gateway: &mut Gateway, token: u64) {
    gateway.engine.command(Command::Challenge { slot: slot(2), to: candidate(), token }, START);
}

#[test]
fn a_challenge_goes_to_the_candidate_and_its_response_to_where_it_came_from() {
    let (mut one, mut two) = pair(&Link::default());
    session(&mut one, 2).source = Some("192.0.2.1".parse().unwrap());
    assert!(session(&mut one, 2).challenges.expect(77));
    challenge(&mut one, 77);
    one.moved();
    let question = waiting(&mut one);
    let (bytes, meta) = &question.frames[0];
    assert_eq!((bytes.len(), meta.destination, meta.source), (42, Some(candidate()), None));
    assert_eq!(one.moved(), [("sealed_datagrams", 1), ("sealed_bytes", 42), ("sent_trains", 1)]);
    let behind_nat: SocketAddr = "198.51.100.3:1025".parse().unwrap();
    let (lan, answer) = two.decapsulate(START, from(behind_nat, question));
    assert_eq!((lan.frames.len(), answer.frames.len()), (0, 1));
    assert_eq!((answer.frames[0].0.len(), answer.frames[0].1.destination), (42, Some(behind_nat)), "no more than came");
    assert_eq!(session(&mut two, 1).endpoint, endpoint(1), "nothing has moved");
    let now = START.plus(Duration::from_millis(3));
    one.events();
    one.decapsulate(now, from(candidate(), answer));
    let told = one.events();
    assert!(told[0].starts_with("Elsewhere"), "{told:?}");
    let response = "Response { session: SessionId(258), from: [2001:db8::7]:999, token: 77, at: Time(1000003000000) }";
    assert_eq!(told[1..], [response]);
    assert_eq!(session(&mut one, 2).endpoint, endpoint(2));
}

#[test]
fn a_response_that_nobody_awaits_is_no_event() {
    let (mut one, mut two) = pair(&Link::default());
    let mut answer = |one: &mut Gateway, token, source: Option<SocketAddr>| {
        challenge(one, token);
        let answer = two.decapsulate(START, from(endpoint(1), waiting(one))).1;
        let mut burst = from(endpoint(2), answer);
        burst.0.iter_mut().for_each(|(_, meta)| meta.source = source);
        one.moved();
        one.decapsulate(START, burst);
        (one.events().len(), one.dropped())
    };
    assert_eq!(answer(&mut one, 77, Some(endpoint(2))), (0, 1));
    assert!(session(&mut one, 2).challenges.expect(77));
    assert_eq!(answer(&mut one, 78, Some(endpoint(2))), (0, 1));
    assert_eq!(answer(&mut one, 77, None), (0, 1), "nobody knows where it came from");
    assert_eq!(answer(&mut one, 77, Some(endpoint(2))), (1, 0));
    assert_eq!(answer(&mut one, 77, Some(endpoint(2))), (0, 1), "once");
}

#[test]
fn a_datagram_from_elsewhere_is_told_once_a_second_and_moves_nothing() {
    let (mut one, mut two) = pair(&Link::default());
    let mut arrive = |now, source| {
        let wan = one.encapsulate(now, Burst::of([v4(1, 2, 100, 0)])).0;
        assert_eq!(two.decapsulate(now, from(source, wan)).0.frames.len(), 1, "it is the peer's all the same");
        two.events().len()
    };
    let later = |nanos| START.plus(ELSEWHERE_INTERVAL - Duration::from_nanos(1) + Duration::from_nanos(nanos));
    assert_eq!(arrive(START, endpoint(1)), 0);
    assert_eq!(arrive(START, candidate()), 1);
    assert_eq!(arrive(later(0), candidate()), 0);
    assert_eq!(arrive(later(1), candidate()), 1);
    assert_eq!(session(&mut two, 1).endpoint, endpoint(1));
    let (wan, _) = two.encapsulate(START, Burst::of([v4(2, 1, 100, 0)]));
    assert_eq!(wan.frames[0].1.destination, Some(endpoint(1)));
}

/// A forged datagram from anywhere was never the peer's.
#[test]
fn a_forged_datagram_is_from_nowhere() {
    let (mut one, mut two) = pair(&Link::default());
    let mut burst = from(candidate(), one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)])).0);
    *burst.0[0].0.last_mut().unwrap() ^= 1;
    two.decapsulate(START, burst);
    assert_eq!((two.events(), two.dropped()), (vec![], 1));
}

#[test]
fn a_moved_session_sends_there_and_asks_the_path_anew() {
    let (mut one, _) = pair(&Link::default());
    one.prepare(2, &Link { exchange: EXCHANGE + 1, ..Link::default() });
    session(&mut one, 2).follow(Arc::new(SharedPath::new(endpoint(2), 1472, 1400)));
    session(&mut one, 2).source = Some("192.0.2.1".parse().unwrap());
    one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    let path = Arc::new(SharedPath::new(candidate(), 1300, 1280));
    let to = |keys| Command::Move {
        slot: slot(2),
        keys: KeysId(keys),
        endpoint: candidate(),
        path: Arc::clone(&path),
        lane_ports: None,
    };
    one.engine.command(to(9), START);
    assert_eq!(session(&mut one, 2).endpoint, endpoint(2), "other keys");
    one.engine.command(to(EXCHANGE.into()), START);
    assert_eq!(one.engine.wheel.len(), 1, "the probe of the path before is off");
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!((wan.frames[0].1.destination, wan.frames[0].1.source), (Some(candidate()), None));
    assert_eq!(session(&mut one, 2).inner_mtu, 1280);
    assert_eq!(one.engine.prepared[2].as_ref().unwrap().endpoint, endpoint(2));
    one.engine.command(to(u64::from(EXCHANGE) + 1), START);
    assert_eq!(one.engine.prepared[2].as_ref().unwrap().endpoint, candidate());
}
