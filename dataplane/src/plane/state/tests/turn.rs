//! New keys before the old ones go, and sessions that are wanted.

use super::*;
use crate::engine::held::{HOLD_LIFETIME, HOLD_REST_MIN};

/// Installs without activating.
fn prepared(state: &mut State<Seeded>, session: u64, now: Time) -> Vec<Effect> {
    let (reservation, _) = reserve(state, 2, now);
    let install = Install { activate: false, ..install(state, session, reservation) };
    done(state, Request::Install(Box::new(install)), now);
    effects(state)
}

fn pending_of(state: &State<Seeded>, session: u64) -> Vec<ReceiverIndex> {
    state.sessions[&SessionId(session)].pending.as_ref().unwrap().indices.clone()
}

fn live(indices: &[ReceiverIndex]) -> Vec<String> {
    indices.iter().map(|index| format!("live {:x} true", index.0)).collect()
}

fn activation(keys: u64) -> Vec<String> {
    (0..2).map(|worker| format!("{worker}: activate 0 {keys}")).collect()
}

const TICK: Duration = Duration::from_nanos(TICK_NS);

#[test]
fn the_grace_of_the_lanes_before_begins_with_the_activation() {
    for by_peer in [false, true] {
        let mut state = plane(1, 2);
        up(&mut state, 7, START);
        let before = indices_of(&state, 7);
        let effects_of_install = brief(&prepared(&mut state, 7, START));
        let new = pending_of(&state, 7);
        assert!(effects_of_install[0].starts_with("0: prepare 0") && effects_of_install[1].starts_with("1: prepare 0"));
        assert_eq!(effects_of_install[2..], live(&new), "both lanes are open");
        let later = START.plus(Duration::from_secs(50));
        state.handle_timeout(later);
        assert!(effects(&mut state).is_empty(), "nothing closes for as long as it is sealed for");
        if by_peer {
            let event = || engine::Event::Activated { session: SessionId(7), keys: KeysId(2) };
            assert_eq!(state.handle_event(event(), later), Some(Event::Activated(SessionId(7))));
            assert_eq!(state.handle_event(event(), later), None, "the other worker tells nothing new");
        } else {
            done(&mut state, Request::Activate(SessionId(7)), later);
        }
        assert_eq!(brief(&effects(&mut state)), activation(2));
        assert_eq!(indices_of(&state, 7), new);
        state.handle_timeout(Time::from_nanos(later.plus(RETAIN_MIN).as_nanos() - 1));
        assert!(effects(&mut state).is_empty());
        state.handle_timeout(later.plus(RETAIN_MIN + TICK));
        assert_eq!(brief(&effects(&mut state)), closed(&before));
    }
}

#[test]
fn activating_is_idempotent_and_needs_a_session() {
    let mut state = plane(1, 2);
    assert_eq!(refused(&mut state, Request::Activate(SessionId(7)), START), Refusal::NoSession(7));
    done(&mut state, Request::StageRoutes(vec![to_session("fd02::/32", 7)]), START);
    done(&mut state, Request::CommitRoutes, START);
    effects(&mut state);
    assert_eq!(refused(&mut state, Request::Activate(SessionId(7)), START), Refusal::NoSession(7), "only named");
    prepared(&mut state, 7, START);
    assert_eq!(refused(&mut state, Request::Echo(SessionId(7)), START), Refusal::NoSession(7), "nothing to seal with");
    done(&mut state, Request::Activate(SessionId(7)), START);
    assert_eq!(brief(&effects(&mut state)), activation(1));
    done(&mut state, Request::Activate(SessionId(7)), START);
    assert!(effects(&mut state).is_empty());
    assert_eq!(state.next_deadline(), None, "there were no lanes before");
}

#[test]
fn a_second_install_replaces_the_keys_that_wait() {
    for activate in [false, true] {
        let mut state = plane(1, 2);
        prepared(&mut state, 7, START);
        let first = pending_of(&state, 7);
        if activate {
            up(&mut state, 7, START);
            assert!(state.sessions[&SessionId(7)].pending.is_none());
        } else {
            prepared(&mut state, 7, START);
            assert!(state.sessions[&SessionId(7)].installed.is_none());
        }
        let event = engine::Event::Activated { session: SessionId(7), keys: KeysId(1) };
        assert_eq!(state.handle_event(event, START), None, "the peer used keys that were replaced meanwhile");
        assert!(effects(&mut state).is_empty());
        state.handle_timeout(START.plus(RETAIN_MIN + TICK));
        assert_eq!(brief(&effects(&mut state)), closed(&first), "what the peer may have sent is let in for a while");
    }
}

#[test]
fn a_removed_session_takes_the_keys_that_wait_with_it() {
    for is_up in [false, true] {
        let mut state = plane(1, 2);
        let all = state.indices.free().count();
        let mut indices = vec![];
        if is_up {
            up(&mut state, 7, START);
            indices = indices_of(&state, 7);
        }
        prepared(&mut state, 7, START);
        indices.extend(pending_of(&state, 7));
        done(&mut state, Request::Remove(SessionId(7)), START);
        assert_eq!(brief(&effects(&mut state))[2..], closed(&indices));
        assert_eq!((state.indices.free().count(), state.sessions.len()), (all, 0));
        assert_eq!(refused(&mut state, Request::Activate(SessionId(7)), START), Refusal::NoSession(7));
    }
}

#[test]
fn new_keys_that_wait_share_what_is_known_of_the_path() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    prepared(&mut state, 7, START);
    let entry = &state.sessions[&SessionId(7)];
    let (installed, pending) = (entry.installed.as_ref().unwrap(), entry.pending.as_ref().unwrap());
    assert!(Arc::ptr_eq(&installed.path, &pending.path));
}

#[test]
fn a_session_is_wanted_once_whichever_worker_asks() {
    let mut state = plane(1, 2);
    done(&mut state, Request::StageRoutes(vec![to_session("fd02::/32", 7)]), START);
    done(&mut state, Request::CommitRoutes, START);
    let slot = state.sessions[&SessionId(7)].slot;
    let wanted = |state: &mut State<Seeded>, now| state.handle_event(engine::Event::Wanted(slot), now);
    let told = Some(Event::Wanted(SessionId(7)));
    assert_eq!(wanted(&mut state, START), told);
    let again = START.plus(HOLD_LIFETIME + HOLD_REST_MIN);
    assert_eq!(wanted(&mut state, Time::from_nanos(again.as_nanos() - 1)), None);
    assert_eq!(wanted(&mut state, again), told);
    // Keys that wait do not help a packet.
    prepared(&mut state, 7, again);
    assert_eq!(wanted(&mut state, again.plus(HOLD_LIFETIME + HOLD_REST_MIN)), told);
    done(&mut state, Request::Activate(SessionId(7)), again);
    assert_eq!(wanted(&mut state, START.plus(Duration::from_secs(100))), None, "it has come up meanwhile");
    done(&mut state, Request::Remove(SessionId(7)), again);
    assert_eq!(wanted(&mut state, again), told, "and is gone again");
    assert_eq!(state.handle_event(engine::Event::Wanted(SessionSlot(99)), START), None);
}
