//! Control blocks and events.

use std::time::Duration;

use super::rig::*;
use crate::engine::block::Control;
use crate::engine::session::CONTROL_BLOCKS_MAX;
use crate::engine::*;

fn encoded(control: Control) -> Vec<u8> {
    let mut bytes = [0; Control::LEN_MAX];
    let len = control.encode(&mut bytes);
    bytes[..len].to_vec()
}

fn after(millis: u64) -> Time {
    START.plus(Duration::from_millis(millis))
}

fn waiting(gateway: &mut Gateway, now: Time) -> Sink {
    let mut wan = Sink::new();
    gateway.engine.send_waiting(now, &mut wan);
    wan
}

#[test]
fn an_echo_comes_back_with_the_round_trip() {
    let (mut one, mut two) = pair(&Link::default());
    one.engine.command(Command::Echo(slot(2)), START);
    let request = waiting(&mut one, START);
    assert_eq!(request.bytes().iter().map(Vec::len).collect::<Vec<_>>(), [32 + 10], "alone, when there is no data");
    let (lan, reply) = two.decapsulate(after(7), Burst::trains(request));
    assert_eq!(lan.frames, []);
    assert_eq!(reply.frames[0].1.destination, Some(endpoint(1)));
    assert_eq!(
        two.moved(),
        [("sealed_datagrams", 1), ("sealed_bytes", 42), ("opened_datagrams", 1), ("sent_trains", 1), ("wan_bursts", 1)]
    );
    let (lan, wan) = one.decapsulate(after(12), Burst::trains(reply));
    assert_eq!((lan.frames, wan.frames), (vec![], vec![]));
    assert_eq!(one.events(), ["Echo { session: SessionId(258), round_trip: 12ms }"]);
    assert_eq!(two.events(), Vec::<String>::new());
    assert_eq!(waiting(&mut one, START).frames, []);
}

#[test]
fn control_blocks_travel_with_data() {
    let (mut one, mut two) = pair(&Link::default());
    one.engine.command(Command::Echo(slot(2)), START);
    let packet = v4(1, 2, 100, 0);
    let (wan, _) = one.encapsulate(START, Burst::of([packet.clone()]));
    assert_eq!(wan.bytes().iter().map(Vec::len).collect::<Vec<_>>(), [32 + 10 + 100]);
    assert_eq!(waiting(&mut one, START).frames, [], "it is on its way");
    let (lan, reply) = two.decapsulate(START, Burst::trains(wan));
    assert_eq!(lan.bytes(), [packet]);
    one.decapsulate(START, Burst::trains(reply));
    assert_eq!(one.events(), ["Echo { session: SessionId(258), round_trip: 0ns }"]);
}

#[test]
fn as_many_echoes_are_answered_at_once_as_the_queue_holds() {
    for (count, dropped) in [(CONTROL_BLOCKS_MAX, 0), (CONTROL_BLOCKS_MAX + 1, 1), (140, 140 - CONTROL_BLOCKS_MAX)] {
        let mut two = Gateway::new(2, &[1]);
        let mut peer = Attacker::against(&mut two, 1, &Link::default());
        let requests: Vec<_> = (0..count).map(|i| encoded(Control::EchoRequest([i as u8; 8]))).collect();
        let datagram = peer.sealed(&requests.concat(), START);
        let (_, wan) = two.decapsulate(START, Burst::of([datagram]));
        let expected: Vec<_> = (0..CONTROL_BLOCKS_MAX).map(|i| encoded(Control::EchoReply([i as u8; 8]))).collect();
        assert_eq!(wan.bytes().len(), 1);
        assert_eq!(peer.opened(wan.bytes().remove(0), START), expected.concat());
        assert_eq!(two.dropped(), dropped as u64);
    }
}

#[test]
fn control_blocks_that_the_send_queue_refused_go_out_when_it_has_room() {
    let (mut one, mut two) = pair(&Link::default());
    one.engine.command(Command::Echo(slot(2)), START);
    let (mut full, mut lan) = (Sink::with_room(0), Sink::new());
    one.engine.send_waiting(START, &mut full);
    one.engine.encapsulate(START, &mut Burst::of([v4(1, 2, 40, 0)]), &mut full, &mut lan);
    assert_eq!(one.moved(), [("lan_bursts", 1), ("wan_queue_full", 1)]);
    // Nothing new has happened, yet the block still knows that it waits.
    let (_, reply) = two.decapsulate(START, Burst::trains(waiting(&mut one, START)));
    one.decapsulate(START, Burst::trains(reply));
    assert_eq!(one.events().len(), 1);
}

#[test]
fn a_reply_to_no_request_is_no_event() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let reply = encoded(Control::EchoReply(session::echo_token(START)));
    let datagram = peer.sealed(&reply.repeat(140), START);
    let (lan, wan) = two.decapsulate(after(1), Burst::of([datagram]));
    assert_eq!((lan.frames, wan.frames, two.events()), (vec![], vec![], vec![]));
    assert_eq!(two.moved(), [("opened_datagrams", 1), ("wan_bursts", 1), ("control_malformed", 140)]);
    // After one request, one reply is one; a token that cannot be true is none and uses nothing up.
    two.engine.command(Command::Echo(slot(1)), START);
    waiting(&mut two, START);
    let false_token = encoded(Control::EchoReply(session::echo_token(after(9))));
    let datagram = peer.sealed(&[false_token, reply.repeat(3)].concat(), START);
    two.moved();
    two.decapsulate(after(1), Burst::of([datagram]));
    assert_eq!(two.events(), ["Echo { session: SessionId(258), round_trip: 1ms }"]);
    assert_eq!(two.moved(), [("opened_datagrams", 1), ("wan_bursts", 1), ("control_malformed", 3)]);
}

/// A peer filled the queue of events with one datagram, and what other sessions had to tell was lost.
#[test]
fn a_closed_session_is_told_once() {
    let mut two = Gateway::new(2, &[1]);
    let mut peer = Attacker::against(&mut two, 1, &Link::default());
    let datagrams = [(); 3].map(|()| peer.sealed(&encoded(Control::Close).repeat(700), START));
    let (lan, wan) = two.decapsulate(START, Burst::of(datagrams));
    assert_eq!((lan.frames, wan.frames), (vec![], vec![]));
    assert_eq!(two.events(), ["Closed(SessionId(258))"]);
    assert_eq!(two.moved(), [("opened_datagrams", 3), ("wan_bursts", 1)]);
}

#[test]
fn a_reply_may_come_by_a_worker_that_did_not_ask() {
    let (mut one, mut two) = pair(&Link::default());
    // Another worker of gateway 1: the same session, the same lane opened, and nobody told it of the echo.
    let mut other = Gateway::new(1, &[2]);
    other.install(2, &Link::default());
    let asked = one.engine.sessions[2].as_ref().map(|session| session.echoes.clone());
    other.engine.sessions[2].as_mut().unwrap().echoes = asked.unwrap();
    one.engine.command(Command::Echo(slot(2)), START);
    let reply = two.decapsulate(START, Burst::trains(waiting(&mut one, START))).1;
    let frames: Vec<_> = reply.frames.iter().map(|(bytes, _)| bytes.clone()).collect();
    other.decapsulate(START.plus(Duration::from_millis(3)), Burst::of(frames.clone()));
    assert_eq!(other.events(), ["Echo { session: SessionId(258), round_trip: 3ms }"]);
    one.decapsulate(START.plus(Duration::from_millis(4)), Burst::of(frames));
    assert_eq!(one.events(), [""; 0], "one request has one reply");
}

#[test]
fn a_removed_session_is_closed_at_the_peer_by_one_worker() {
    let (mut one, mut two) = pair(&Link::default());
    let mut wan = Sink::new();
    one.engine.send_close(slot(2), START, &mut wan);
    assert_eq!(wan.frames, [], "worker {} leaves it to worker 0", one.n);
    one.engine.worker = 0;
    one.engine.send_close(slot(2), START, &mut wan);
    one.engine.send_close(slot(9), START, &mut wan);
    assert_eq!(wan.frames.len(), 1);
    two.decapsulate(START, Burst::trains(wan));
    assert_eq!(two.events(), ["Closed(SessionId(258))"]);
}

#[test]
fn an_echo_to_a_session_that_is_not_there_is_nothing() {
    let mut one = Gateway::new(1, &[]);
    for slot in [slot(2), SessionSlot(u32::MAX)] {
        one.engine.command(Command::Echo(slot), START);
    }
    assert_eq!(waiting(&mut one, START).frames, []);
    assert_eq!((one.moved(), one.events()), (vec![], vec![]));
}

#[test]
fn control_blocks_for_more_sessions_than_can_wait_are_dropped_and_counted() {
    let peers: Vec<u8> = (2..=1 + BURST_LEN as u8 + 1).collect();
    let mut one = Gateway::new(1, &peers);
    for &m in &peers {
        one.install(m, &Link::default());
        one.engine.command(Command::Echo(slot(m)), START);
    }
    assert_eq!(one.moved(), [("control_block_queue_full", 1)]);
    assert_eq!(waiting(&mut one, START).frames.len(), BURST_LEN);
    // What was counted as dropped does not go out after all.
    let (wan, _) = one.encapsulate(START, Burst::of([v4(1, peers[BURST_LEN], 100, 0)]));
    assert_eq!(wan.frames[0].0.len(), 132);
}

#[test]
fn a_session_waits_once_however_many_blocks_it_has() {
    let peers: Vec<u8> = (2..=1 + BURST_LEN as u8).collect();
    let mut one = Gateway::new(1, &peers);
    for &m in &peers {
        one.install(m, &Link::default());
        one.engine.command(Command::Echo(slot(m)), START);
        one.engine.command(Command::Echo(slot(m)), START);
    }
    let sizes: Vec<_> = waiting(&mut one, START).bytes().iter().map(Vec::len).collect();
    assert_eq!((sizes, one.dropped()), (vec![32 + 2 * 10; BURST_LEN], 0));
}

#[test]
fn events_beyond_the_limit_are_counted_and_the_control_thread_is_told() {
    let mut one = Gateway::new(1, &[]);
    let swap = |one: &mut Gateway, n: usize| {
        for _ in 0..n {
            one.engine.command(Command::Routes(Arc::new(Snapshot::empty())), START);
        }
    };
    swap(&mut one, EVENTS_MAX - 1);
    assert!(one.events().iter().all(|event| event.starts_with("Retired")));
    swap(&mut one, EVENTS_MAX);
    let events = one.events();
    assert_eq!(events.len(), EVENTS_MAX);
    assert_eq!(events[EVENTS_MAX - 1], "Lost(1)");
    swap(&mut one, EVENTS_MAX + 10);
    assert_eq!(one.events().last().unwrap(), "Lost(11)");
    assert_eq!(one.events(), Vec::<String>::new());
}
