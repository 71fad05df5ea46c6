//! Sessions, lanes and snapshots: how they come, age and go.

use std::time::Duration;

use super::rig::*;
use crate::engine::lane::{DATAGRAM_CHARGE_MIN, KEY_LIFETIME, Limits, REKEY_AFTER};
use crate::engine::wheel::TICK_NS;
use crate::engine::*;

fn one_packet(one: &mut Gateway, now: Time) -> Sink {
    one.encapsulate(now, Burst::of([v4(1, 2, 100, 0)])).0
}

fn opens(two: &mut Gateway, now: Time, sink: Sink) -> bool {
    two.decapsulate(now, Burst::trains(sink)).0.frames.len() == 1
}

#[test]
fn lanes_of_the_former_keys_stay_open_until_they_are_closed() {
    let (mut one, mut two) = pair(&Link::default());
    let (late, later) = (one_packet(&mut one, START), one_packet(&mut one, START));
    let fresh = Link { exchange: EXCHANGE + 1, ..Link::default() };
    one.install(2, &fresh);
    two.install(1, &fresh);
    let new = one_packet(&mut one, START);
    assert_eq!(new.frames[0].0[4..8], index(2, 1, EXCHANGE + 1).0.to_be_bytes());
    assert!(opens(&mut two, START, new));
    assert!(opens(&mut two, START, late));
    two.engine.command(Command::CloseLane(index(2, 1, EXCHANGE)), START);
    two.moved();
    assert!(!opens(&mut two, START, later));
    assert_eq!(two.moved(), [("wan_bursts", 1), ("unknown_index", 1)]);
    assert!(opens(&mut two, START, one_packet(&mut one, START)), "the new lane is not touched");
}

#[test]
fn only_the_very_lane_is_closed() {
    let (mut one, mut two) = pair(&Link::default());
    let lane = index(2, 1, EXCHANGE);
    for other in [ReceiverIndex::new(2, lane.slot(), lane.tag() + 1), ReceiverIndex(u32::MAX)] {
        two.engine.command(Command::CloseLane(other), START);
    }
    assert!(opens(&mut two, START, one_packet(&mut one, START)));
}

#[test]
fn a_removed_session_neither_seals_nor_opens() {
    let (mut one, mut two) = pair(&Link::default());
    let late = one_packet(&mut one, START);
    one.moved();
    for gateway in [&mut one, &mut two] {
        gateway.engine.command(Command::Remove(slot(3 - gateway.n)), START);
        gateway.engine.command(Command::Remove(SessionSlot(u32::MAX)), START);
    }
    let (wan, lan) = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!((wan.frames.len(), lan.frames.len()), (0, 0), "the packet waits for another session");
    assert_eq!(one.moved(), [("lan_bursts", 1)]);
    assert!(!opens(&mut two, START, late));
    assert_eq!(two.moved(), [("wan_bursts", 1), ("unknown_index", 1)]);
    assert_eq!(one.engine.wheel.len(), 1, "nothing is left to expire but the wait");
    one.engine.expire(START.plus(2 * held::HOLD_LIFETIME));
    assert_eq!(one.moved(), [("hold_expired", 1)]);
    let (_, lan) = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)]));
    assert_eq!(lan.frames.len(), 1, "its sender is told");
    assert_eq!(one.moved(), [("lan_bursts", 1), ("sent_icmp_errors", 1), ("no_session", 1)]);
}

/// A lane knows its session by the slot. One that outlived its session spoke for the next peer in the slot.
#[test]
fn a_lane_does_not_pass_to_the_next_session_of_its_slot() {
    let mut two = Gateway::new(2, &[1, 3]);
    let mut former = Attacker::against(&mut two, 1, &Link::default());
    let install = |two: &mut Gateway| {
        let link = Link::default();
        let session = Session::new(
            session_id(2, 3),
            endpoint(3),
            prefix_set::PrefixSet::new(&prefixes(3)).unwrap(),
            bundle::PayloadLen::new(1472).unwrap(),
            1400,
            link.seal_lane(2, 3),
        );
        two.engine.command(Command::Install { slot: slot(1), session: Box::new(session), lanes: vec![] }, START);
    };
    install(&mut two);
    let datagram = former.sealed(&v4(3, 2, 60, 0), START);
    assert_eq!(two.decapsulate(START, Burst::of([datagram])).0.frames, []);
    assert_eq!(two.moved(), [("wan_bursts", 1), ("unknown_index", 1)]);
}

#[test]
fn a_rekey_that_is_due_is_told_once() {
    let (mut one, _) = pair(&Link::default());
    one_packet(&mut one, START);
    one_packet(&mut one, START.plus(REKEY_AFTER - Duration::from_nanos(1)));
    assert_eq!(one.events(), Vec::<String>::new());
    for _ in 0..3 {
        one_packet(&mut one, START.plus(REKEY_AFTER));
    }
    assert_eq!(one.events(), ["RekeyDue(SessionId(258))"]);
    let now = START.plus(REKEY_AFTER);
    one.install(2, &Link { exchange: EXCHANGE + 1, now, ..Link::default() });
    one_packet(&mut one, now);
    one_packet(&mut one, now.plus(REKEY_AFTER));
    assert_eq!(one.events(), ["RekeyDue(SessionId(258))"], "the next keys are due in their turn");
}

/// A note that did not fit the queue of events was taken for told.
#[test]
fn a_rekey_that_could_not_be_told_is_told_later() {
    let (mut one, _) = pair(&Link::default());
    one_packet(&mut one, START);
    for _ in 0..EVENTS_MAX {
        one.engine.command(Command::Routes(Arc::clone(&one.engine.snapshot)), START);
    }
    one_packet(&mut one, START.plus(REKEY_AFTER));
    assert_eq!(one.events().last().unwrap(), "Lost(2)");
    one_packet(&mut one, START.plus(REKEY_AFTER));
    assert_eq!(one.events(), ["RekeyDue(SessionId(258))"]);
}

#[test]
fn keys_expire_at_their_lifetime_and_not_before() {
    let (mut one, _) = pair(&Link::default());
    let end = START.plus(KEY_LIFETIME);
    let before = START.plus(KEY_LIFETIME - Duration::from_nanos(1));
    one.engine.expire(before);
    assert_eq!(one.events(), Vec::<String>::new());
    assert_eq!(one_packet(&mut one, before).frames.len(), 1);
    one.events();
    one.moved();
    let tick = Duration::from_nanos(TICK_NS);
    assert!(one.engine.next_deadline().unwrap() <= end.plus(tick));
    one.engine.expire(end.plus(tick));
    assert_eq!(one.events(), ["Expired(SessionId(258))"]);
    assert_eq!(one_packet(&mut one, end).frames, []);
    assert_eq!(one.moved(), [("lan_bursts", 1), ("key_expired", 1)]);
    one.engine.expire(end.plus(KEY_LIFETIME));
    assert_eq!(one.events(), Vec::<String>::new(), "once");
}

#[test]
fn new_keys_put_the_expiry_off_and_removal_cancels_it() {
    let (mut one, _) = pair(&Link::default());
    let now = START.plus(KEY_LIFETIME / 2);
    one.install(2, &Link { exchange: EXCHANGE + 1, now, ..Link::default() });
    one.engine.expire(START.plus(KEY_LIFETIME + Duration::from_secs(1)));
    assert_eq!(one.events(), Vec::<String>::new());
    one.engine.expire(now.plus(KEY_LIFETIME + Duration::from_secs(1)));
    assert_eq!(one.events(), ["Expired(SessionId(258))"]);
    one.install(2, &Link { exchange: EXCHANGE + 2, now, ..Link::default() });
    one.engine.command(Command::Remove(slot(2)), now);
    assert_eq!(one.engine.next_deadline(), None);
}

#[test]
fn a_retired_snapshot_is_given_back() {
    let mut one = Gateway::new(1, &[2]);
    let first = Arc::new(one.snapshot(&[], true));
    one.engine.command(Command::Routes(Arc::clone(&first)), START);
    assert_eq!(one.events().len(), 1);
    one.engine.command(Command::Routes(Arc::new(one.snapshot(&[], false))), START);
    let Some(Event::Retired(retired)) = one.engine.poll_event() else { panic!("the snapshot is an event") };
    assert!(Arc::ptr_eq(&retired, &first));
    drop(retired);
    assert_eq!(Arc::strong_count(&first), 1, "the engine keeps none");
}

#[test]
fn the_old_key_of_a_lane_is_erased_in_its_time() {
    let limits = Limits { generation_bytes: DATAGRAM_CHARGE_MIN, ..Limits::default() };
    let (mut one, mut two) = pair(&Link { limits, ..Link::default() });
    two.engine.expire(START);
    let expiry = two.engine.next_deadline().unwrap();
    let [first, second, third] = [(); 3].map(|()| one_packet(&mut one, START));
    assert!(opens(&mut two, START, first));
    assert_eq!(two.engine.next_deadline(), Some(expiry), "generation 0 is the first");
    assert!(opens(&mut two, START, third));
    let due = two.engine.next_deadline().unwrap();
    assert!(due < expiry && due <= START.plus(lane::RETAIN_MIN + Duration::from_nanos(TICK_NS)));
    two.engine.expire(START.plus(lane::RETAIN_MIN + Duration::from_nanos(TICK_NS)));
    let lane = &two.engine.open[usize::from(index(2, 1, EXCHANGE).slot())].as_ref().unwrap().lane;
    assert_eq!((lane.generation(), lane.next_deadline()), (2, None));
    assert!(!opens(&mut two, START.plus(lane::RETAIN_MIN), second));
}

/// Each generation that a peer went through took a timer, and timers of lanes that were closed stayed: one peer could use up the wheel.
#[test]
fn lanes_take_one_timer_at_most_whatever_the_peer_does() {
    let mut two = Gateway::new(2, &[1]);
    let limits = Limits { generation_bytes: DATAGRAM_CHARGE_MIN, ..Limits::default() };
    for exchange in 1..30 {
        let mut peer = Attacker::against(&mut two, 1, &Link { limits, exchange, ..Link::default() });
        let datagrams: Vec<_> = (0..=255).map(|_| peer.sealed(&v4(1, 2, 40, 0), START)).collect();
        for burst in datagrams.chunks(BURST_LEN) {
            assert_eq!(two.decapsulate(START, Burst::of(burst.to_vec())).0.frames.len(), burst.len());
        }
        assert_eq!(two.engine.wheel.len(), 2, "the session's end and the lane's old key");
        two.engine.command(Command::CloseLane(index(2, 1, exchange)), START);
        assert_eq!(two.engine.wheel.len(), 1);
    }
}
