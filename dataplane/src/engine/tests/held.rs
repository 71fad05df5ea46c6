//! Packets that wait for a session.

use std::time::Duration;

use super::rig::*;
use crate::engine::held::{HELD_BYTES_MAX, HELD_PACKETS_MAX, HOLD_LIFETIME, HOLD_REST_MIN};
use crate::engine::wheel::TICK_NS;
use crate::engine::*;

fn packets(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|id| v4(1, 2, len, id)).collect()
}

/// What arrives at gateway 2 once the session is there.
fn arrives(mut one: Gateway) -> Vec<Vec<u8>> {
    let mut two = Gateway::new(2, &[1]);
    one.install(2, &Link::default());
    two.install(1, &Link::default());
    let (mut wan, mut lan) = (Sink::new(), Sink::new());
    one.engine.send_held(START, &mut wan, &mut lan);
    assert_eq!((lan.frames, one.engine.wheel.len()), (vec![], 1), "only the end of the keys is still to come");
    two.decapsulate(START, Burst::trains(wan)).0.bytes()
}

fn offer(one: &mut Gateway, packets: &[Vec<u8>]) {
    for burst in packets.chunks(BURST_LEN) {
        let (wan, lan) = one.encapsulate(START, Burst::of(burst.to_vec()));
        assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
    }
}

#[test]
fn the_first_packets_wait_and_the_session_is_wanted_once() {
    let mut one = Gateway::new(1, &[2]);
    let packets = packets(5, 100);
    packets.iter().for_each(|packet| offer(&mut one, std::slice::from_ref(packet)));
    assert_eq!(one.events(), ["Wanted(SessionSlot(2))"]);
    assert_eq!(one.moved(), [("lan_bursts", 5)]);
    assert_eq!(arrives(one), packets);
}

#[test]
fn what_has_waited_goes_before_what_comes_later() {
    let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1]));
    let packets = packets(3, 100);
    offer(&mut one, &packets[..2]);
    one.install(2, &Link::default());
    two.install(1, &Link::default());
    let (wan, _) = one.encapsulate(START, Burst::of([packets[2].clone()]));
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), packets);
}

#[test]
fn the_oldest_goes_when_one_packet_more_waits_than_may() {
    for more in [0, 1] {
        let mut one = Gateway::new(1, &[2]);
        let packets = packets(HELD_PACKETS_MAX + more, 100);
        offer(&mut one, &packets);
        assert_eq!(one.dropped(), more as u64);
        assert_eq!(arrives(one), packets[more..]);
    }
}

#[test]
fn the_oldest_goes_when_one_byte_more_waits_than_may() {
    for more in [0, 1] {
        let mut one = Gateway::new(1, &[2]);
        let mut packets = packets(8, HELD_BYTES_MAX / 8);
        packets[7] = v4(1, 2, HELD_BYTES_MAX / 8 + more, 7);
        offer(&mut one, &packets);
        one.events();
        assert_eq!(one.moved().get(1).copied(), (more > 0).then_some(("hold_queue_full", 1)));
        assert_eq!(arrives(one), packets[more..]);
    }
}

#[test]
fn after_its_lifetime_a_packet_is_dropped_and_the_next_ones_are_answered() {
    let mut one = Gateway::new(1, &[2]);
    let tick = Duration::from_nanos(TICK_NS);
    let packet = || Burst::of([v4(1, 2, 100, 0)]);
    let mut now = START;
    for (nth, rest) in [HOLD_REST_MIN, HOLD_REST_MIN * 2, HOLD_REST_MIN * 4].into_iter().enumerate() {
        one.encapsulate(now, packet());
        assert_eq!(one.events(), ["Wanted(SessionSlot(2))"], "{nth}");
        one.moved();
        one.engine.expire(now.plus(HOLD_LIFETIME - tick));
        assert_eq!(one.moved(), []);
        now = now.plus(HOLD_LIFETIME + tick);
        one.engine.expire(now);
        assert_eq!(one.moved(), [("hold_expired", 1)]);
        let (wan, lan) = one.encapsulate(now, packet());
        assert_eq!((wan.frames.len(), lan.frames.len(), one.events().len()), (0, 1, 0));
        assert_eq!(one.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), ("no_session", 1)]);
        one.engine.expire(now.plus(rest - tick));
        one.encapsulate(now.plus(rest - tick), packet());
        assert_eq!((one.events(), one.dropped()), (vec![], 1));
        now = now.plus(rest + tick);
        one.engine.expire(now);
    }
    // When nobody asks any more, nothing is remembered.
    one.engine.expire(now.plus(Duration::from_secs(3600)));
    assert_eq!(one.engine.wheel.len(), 0);
}

#[test]
fn a_session_that_comes_while_packets_are_refused_takes_the_next_ones() {
    let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1]));
    offer(&mut one, &packets(1, 100));
    let now = START.plus(HOLD_LIFETIME * 2);
    one.engine.expire(now);
    one.install(2, &Link::default());
    two.install(1, &Link::default());
    let (wan, _) = one.encapsulate(now, Burst::of(packets(1, 100)));
    assert_eq!(two.decapsulate(now, Burst::trains(wan)).0.bytes(), packets(1, 100));
    assert_eq!(one.engine.wheel.len(), 1);
}

/// A slot may be another session's under new routes, and that one was never asked for.
#[test]
fn new_routes_ask_again() {
    let mut one = Gateway::new(1, &[2]);
    offer(&mut one, &packets(1, 100));
    let mut snapshot = one.snapshot(&[(2, NextHop::Session(slot(2)))], false);
    snapshot.epoch = 2;
    one.engine.command(Command::Routes(Arc::new(snapshot)), START);
    one.events();
    offer(&mut one, &packets(1, 100));
    assert_eq!(one.events(), ["Wanted(SessionSlot(2))"]);
    // The same while packets are refused.
    one.engine.expire(START.plus(HOLD_LIFETIME * 2));
    let mut snapshot = one.snapshot(&[(2, NextHop::Session(slot(2)))], false);
    snapshot.epoch = 3;
    one.engine.command(Command::Routes(Arc::new(snapshot)), START);
    one.events();
    offer(&mut one, &packets(1, 100));
    assert_eq!(one.events(), ["Wanted(SessionSlot(2))"]);
}

#[test]
fn a_packet_that_has_waited_goes_where_the_routes_say_now() {
    let (mut one, mut three) = (Gateway::new(1, &[2, 3]), Gateway::new(3, &[1]));
    offer(&mut one, &packets(1, 100));
    one.route(&[(2, NextHop::Session(slot(3)))], false);
    three.route(&[(1, NextHop::Session(slot(1))), (2, NextHop::Local)], false);
    one.install(3, &Link::default());
    three.install(1, &Link::default());
    one.install(2, &Link::default());
    let mut wan = Sink::new();
    one.engine.send_held(START, &mut wan, &mut Sink::new());
    assert_eq!(three.decapsulate(START, Burst::trains(wan)).0.bytes(), packets(1, 100));
}

#[test]
fn packets_between_peers_wait_as_well() {
    let (mut one, mut two, mut three) = (Gateway::new(1, &[3]), Gateway::new(2, &[1, 3]), Gateway::new(3, &[1]));
    one.route(&[(3, NextHop::Session(slot(2)))], false);
    two.route(&[(1, NextHop::Session(slot(1))), (3, NextHop::Session(slot(3)))], true);
    three.route(&[(1, NextHop::Session(slot(2)))], false);
    let link = Link { behind: &[1, 3], ..Link::default() };
    one.install(2, &link);
    two.install(1, &link);
    three.install(2, &link);
    two.events();
    two.moved();
    let sent = one.encapsulate(START, Burst::of([v4(1, 3, 100, 0), with_ttl(v4(1, 3, 100, 1), 1)])).0;
    let (lan, wan) = two.decapsulate(START, Burst::trains(sent));
    assert_eq!((lan.frames.len(), wan.frames.len()), (0, 1), "the one whose time is over is answered");
    assert_eq!(two.events(), ["Wanted(SessionSlot(3))"]);
    two.install(3, &Link::default());
    let mut wan = Sink::new();
    two.moved();
    two.engine.send_held(START, &mut wan, &mut Sink::new());
    assert!(two.moved().contains(&("transit_packets", 1)));
    assert_eq!(three.decapsulate(START, Burst::trains(wan)).0.bytes(), [with_ttl(v4(1, 3, 100, 0), 63)]);
}
