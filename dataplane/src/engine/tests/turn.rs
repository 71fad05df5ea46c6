//! New keys before the old ones go: prepared, proved, activated.

use super::rig::*;
use crate::engine::session::KeysId;
use crate::engine::*;

const FRESH: Link<'static> = Link {
    exchange: EXCHANGE + 1,
    datagram_len_max: 1472,
    inner_mtu: 1400,
    limits: lane::Limits {
        generation_bytes: lane::GENERATION_BYTES,
        generation_age: lane::GENERATION_AGE,
        generation_last: lane::GENERATION_LAST,
        counters: lane::COUNTERS,
        lifetime: lane::KEY_LIFETIME,
        open_grace: lane::OPEN_GRACE,
    },
    now: START,
    behind: &[],
    rate: None,
};

/// Which exchange the next packet from one gateway to the other is sealed under; none when it is not sealed.
fn sealed_under(gateway: &mut Gateway) -> Option<u8> {
    let (from, to) = (gateway.n, 3 - gateway.n);
    let wan = gateway.encapsulate(START, Burst::of([v4(from, to, 100, 0)])).0;
    let index_of = |exchange| index(to, from, exchange).0.to_be_bytes();
    let datagram = &wan.frames.first()?.0;
    (EXCHANGE..EXCHANGE + 5).find(|&exchange| datagram[4..8] == index_of(exchange))
}

fn activate(gateway: &mut Gateway, keys: u8) {
    let slot = slot(3 - gateway.n);
    gateway.engine.command(Command::Activate { slot, keys: KeysId(keys.into()) }, START);
}

#[test]
fn prepared_keys_seal_from_their_activation_on() {
    let (mut one, _) = pair(&Link::default());
    one.prepare(2, &FRESH);
    assert_eq!(sealed_under(&mut one), Some(EXCHANGE));
    for other in [EXCHANGE, EXCHANGE + 2] {
        activate(&mut one, other);
        assert_eq!(sealed_under(&mut one), Some(EXCHANGE), "these are not the prepared ones");
    }
    for _ in 0..2 {
        activate(&mut one, FRESH.exchange);
        assert_eq!(sealed_under(&mut one), Some(FRESH.exchange));
    }
    assert_eq!(one.events(), [""; 0]);
}

#[test]
fn the_peers_first_datagram_under_new_keys_activates_them() {
    let (mut one, mut two) = pair(&Link::default());
    two.prepare(1, &FRESH);
    let late = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)])).0;
    one.install(2, &FRESH);
    let [first, second] = [1, 2].map(|id| one.encapsulate(START, Burst::of([v4(1, 2, 100, id)])).0.bytes().remove(0));
    let mut forged = first.clone();
    *forged.last_mut().unwrap() ^= 1;
    two.decapsulate(START, Burst::of([forged]));
    assert_eq!((two.events(), sealed_under(&mut two)), (vec![], Some(EXCHANGE)), "a forgery proves nothing");
    assert_eq!(two.decapsulate(START, Burst::of([first])).0.bytes(), [v4(1, 2, 100, 1)]);
    assert_eq!(two.events(), ["Activated { session: SessionId(258), keys: KeysId(2) }"]);
    assert_eq!(sealed_under(&mut two), Some(FRESH.exchange));
    assert_eq!(two.decapsulate(START, Burst::of([second])).0.frames.len(), 1);
    assert_eq!(two.decapsulate(START, Burst::trains(late)).0.frames.len(), 1, "the lane before is still open");
    assert_eq!(two.events(), [""; 0], "once");
}

#[test]
fn a_second_preparation_replaces_the_first() {
    let (mut one, mut two) = pair(&Link::default());
    let third = Link { exchange: EXCHANGE + 2, ..FRESH };
    two.prepare(1, &FRESH);
    two.prepare(1, &third);
    one.install(2, &FRESH);
    let wan = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)])).0;
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.frames.len(), 1, "its lane is open until it is closed");
    assert_eq!((two.events(), sealed_under(&mut two)), (vec![], Some(EXCHANGE)));
    activate(&mut two, FRESH.exchange);
    assert_eq!(sealed_under(&mut two), Some(EXCHANGE));
    one.install(2, &third);
    let wan = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)])).0;
    two.decapsulate(START, Burst::trains(wan));
    assert_eq!((two.events().len(), sealed_under(&mut two)), (1, Some(third.exchange)));
}

#[test]
fn what_was_prepared_goes_with_the_session() {
    let (mut one, mut two) = pair(&Link::default());
    two.prepare(1, &FRESH);
    two.engine.command(Command::Remove(slot(1)), START);
    activate(&mut two, FRESH.exchange);
    assert_eq!(sealed_under(&mut two), None);
    one.install(2, &FRESH);
    let wan = one.encapsulate(START, Burst::of([v4(1, 2, 100, 0)])).0;
    two.moved();
    assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.frames, []);
    assert_eq!(two.moved(), [("wan_bursts", 1), ("unknown_index", 1)]);
}

#[test]
fn what_was_prepared_does_not_pass_to_the_next_session_of_its_slot() {
    let mut one = Gateway::new(1, &[2]);
    one.prepare(2, &FRESH);
    // Gateway 3 takes the place of gateway 2.
    let mut other = Gateway::new(1, &[3]);
    other.prepare(3, &FRESH);
    let session = other.engine.prepared[3].take().unwrap();
    one.engine.command(Command::Prepare { slot: slot(2), session, lanes: vec![] }, START);
    assert!(one.engine.open.iter().all(Option::is_none), "lanes of the one before are closed");
    activate(&mut one, FRESH.exchange);
    assert_eq!(one.engine.sessions[2].as_ref().unwrap().id, session_id(1, 3));
}

#[test]
fn without_a_session_packets_wait_for_the_activation() {
    for by_datagram in [false, true] {
        let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1]));
        one.prepare(2, &FRESH);
        two.install(1, &FRESH);
        let packets: Vec<_> = (0..3).map(|id| v4(1, 2, 100 + id, id)).collect();
        let (wan, lan) = one.encapsulate(START, Burst::of(packets.clone()));
        assert_eq!((wan.frames, lan.frames), (vec![], vec![]));
        assert_eq!(one.events(), ["Wanted(SessionSlot(2))"]);
        let (mut wan, mut lan) = (Sink::new(), Sink::new());
        if by_datagram {
            let hello = two.encapsulate(START, Burst::of([v4(2, 1, 100, 0)])).0;
            wan = one.decapsulate(START, Burst::trains(hello)).1;
        } else {
            activate(&mut one, FRESH.exchange);
            one.engine.send_held(START, &mut wan, &mut lan);
        }
        assert_eq!(two.decapsulate(START, Burst::trains(wan)).0.bytes(), packets);
        one.engine.send_held(START, &mut lan, &mut Sink::new());
        assert_eq!(lan.frames, [], "once");
    }
}
