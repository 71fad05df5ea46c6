//! Probes, moves, and sessions that nobody uses.

use super::*;
use crate::api::{PROBE_LIFETIME_MS, PROBES_MAX};

const SESSION: SessionId = SessionId(7);

fn endpoint(port: u16) -> SocketAddr {
    ([198, 51, 100, 1], port).into()
}

fn probe(port: u16, token: u64) -> Request {
    Request::Probe { session: SESSION, endpoint: endpoint(port), token }
}

/// The token that goes over the wire.
fn challenge(effects: &[Effect]) -> u64 {
    match effects {
        [Effect::Worker(0, Command::Challenge { token, .. })] => *token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_probe_is_told_when_its_answer_comes_from_where_it_went() {
    let mut state = plane(1, 2);
    assert_eq!(refused(&mut state, probe(1, 5), START), Refusal::NoSession(7));
    up(&mut state, 7, START);
    done(&mut state, probe(1, 5), START);
    let effects = effects(&mut state);
    assert_eq!(brief(&effects), ["0: challenge 0 198.51.100.1:1"]);
    let token = challenge(&effects);
    assert!(state.sessions[&SESSION].probes.challenges.clone().answer(token), "a worker finds it awaited");
    let at = START.plus(Duration::from_millis(2));
    let response = |from, token| engine::Event::Response { session: SESSION, from, token, at };
    assert_eq!(state.handle_event(response(endpoint(2), token), at), None, "from elsewhere");
    assert_eq!(state.handle_event(response(endpoint(1), token ^ 1), at), None);
    let probed = Event::Probed { session: SESSION, endpoint: endpoint(1), token: 5, rtt_ns: 2_000_000 };
    assert_eq!(state.handle_event(response(endpoint(1), token), at), Some(probed));
}

#[test]
fn probes_are_limited_and_to_addresses_only() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    for bad in ["0.0.0.0:1", "224.0.0.1:1", "[::]:1", "192.0.2.1:0"] {
        let endpoint = bad.parse().unwrap();
        for request in
            [Request::Probe { session: SESSION, endpoint, token: 1 }, Request::Move { session: SESSION, endpoint }]
        {
            assert!(matches!(refused(&mut state, request, START), Refusal::Invalid(_)), "{bad}");
        }
    }
    let mut challenges = HashSet::new();
    for port in 1..=PROBES_MAX as u16 {
        done(&mut state, probe(port, 0), START);
        challenges.insert(challenge(&effects(&mut state)));
    }
    assert_eq!(challenges.len(), PROBES_MAX);
    assert!(is_limit(&refused(&mut state, probe(99, 0), START), PROBES_MAX));
    // An answer makes no place: it is the rate that is limited.
    let known = state.sessions[&SESSION].probes.challenges.clone();
    assert!(challenges.iter().all(|&token| known.answer(token)));
    let end = START.plus(Duration::from_millis(PROBE_LIFETIME_MS));
    assert!(is_limit(&refused(&mut state, probe(99, 0), Time::from_nanos(end.as_nanos() - 1)), PROBES_MAX));
    done(&mut state, probe(99, 0), end);
}

#[test]
fn an_answer_that_comes_too_late_is_not_awaited_any_more() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    done(&mut state, probe(1, 5), START);
    let token = challenge(&effects(&mut state));
    done(&mut state, probe(1, 6), START.plus(Duration::from_millis(PROBE_LIFETIME_MS)));
    assert!(!state.sessions[&SESSION].probes.challenges.answer(token));
}

#[test]
fn a_move_takes_all_keys_along_and_what_was_known_of_the_path_is_gone() {
    let mut state = plane(1, 2);
    let to = Request::Move { session: SESSION, endpoint: endpoint(9) };
    assert_eq!(refused(&mut state, to.clone(), START), Refusal::NoSession(7));
    up(&mut state, 7, START);
    let (reservation, _) = reserve(&mut state, 2, START);
    let pending = Install { activate: false, ..install(&state, 7, reservation) };
    done(&mut state, Request::Install(Box::new(pending)), START);
    effects(&mut state);
    let before = Arc::clone(&state.sessions[&SESSION].installed.as_ref().unwrap().path);
    done(&mut state, to.clone(), START);
    let moves = effects(&mut state);
    let lines: Vec<_> = [(0, 1), (1, 1), (0, 2), (1, 2)]
        .map(|(worker, keys)| format!("{worker}: move 0 {keys} 198.51.100.1:9"))
        .to_vec();
    assert_eq!(brief(&moves), lines);
    let paths = moves.iter().map(|effect| match effect {
        Effect::Worker(_, Command::Move { path, .. }) => path,
        other => panic!("{other:?}"),
    });
    let paths: Vec<_> = paths.collect();
    assert!(paths.iter().all(|path| Arc::ptr_eq(path, paths[0]) && !Arc::ptr_eq(path, &before)), "one new path");
    assert!(paths[0].is_for(endpoint(9), 1452, 1420), "with the limits of the one before");
    let Reply::Dump(DumpItem::Session(dump)) = &state.dump(START)[0] else { panic!("no session") };
    assert_eq!(dump.endpoint, endpoint(9));
    done(&mut state, to, START);
    assert!(effects(&mut state).is_empty(), "it is there already");
}

/// A plane with a session that is told to be idle after three seconds, and what its worker counts.
fn watched() -> (State<Seeded>, Traffic) {
    let mut state = plane(1, 2);
    let (reservation, _) = reserve(&mut state, 2, START);
    let install = Install { idle_after_s: 3, ..install(&state, 7, reservation) };
    done(&mut state, Request::Install(Box::new(install)), START);
    effects(&mut state);
    let traffic = state.sessions[&SESSION].traffic.clone();
    (state, traffic)
}

fn at(millis: u64) -> Time {
    START.plus(Duration::from_millis(millis))
}

/// Milliseconds at which the session is told to be idle, looking every ten of them.
fn told(state: &mut State<Seeded>, range: std::ops::Range<u64>, mut during: impl FnMut(u64)) -> Vec<u64> {
    let mut told = vec![];
    for millis in range.step_by(10) {
        during(millis);
        state.handle_timeout(at(millis));
        told.extend(brief(&effects(state)).into_iter().map(|line| {
            assert_eq!(line, "tell Idle(SessionId(7))");
            millis
        }));
    }
    told
}

#[test]
fn an_idle_session_is_told_once_until_it_is_used_again() {
    let (mut state, traffic) = watched();
    let used = |millis| match millis {
        1000 | 9120 => traffic.sent(0, 1, 100, 0, at(millis)),
        2500 => traffic.received(1, 1, 100, at(millis)),
        _ => {}
    };
    assert_eq!(told(&mut state, 0..60_000, used), [5510, 12_130]);
}

#[test]
fn a_session_that_never_carried_anything_is_idle_too() {
    let (mut state, _) = watched();
    assert_eq!(told(&mut state, 0..60_000, |_| {}), [3010]);
    // New keys are no traffic.
    let (reservation, _) = reserve(&mut state, 2, at(60_000));
    let again = Install { idle_after_s: 3, ..install(&state, 7, reservation) };
    done(&mut state, Request::Install(Box::new(again)), at(60_000));
    effects(&mut state);
    state.handle_timeout(at(65_000));
    assert!(!brief(&effects(&mut state)).iter().any(|line| line.starts_with("tell")));
    // A new session is another matter.
    done(&mut state, Request::Remove(SESSION), at(65_000));
    assert_eq!(state.next_deadline(), None);
}

#[test]
fn a_session_without_the_wish_is_never_told_to_be_idle() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    assert_eq!(state.next_deadline(), None);
}

#[test]
fn a_dump_tells_what_a_session_carries_and_whether_its_keys_are_used() {
    let mut state = plane(1, 2);
    let (reservation, _) = reserve(&mut state, 2, START);
    let install = Install { activate: false, ..install(&state, 7, reservation) };
    done(&mut state, Request::Install(Box::new(install)), START);
    let shown = |state: &State<Seeded>, now| match state.dump(now).swap_remove(0) {
        Reply::Dump(DumpItem::Session(dump)) => dump,
        other => panic!("{other:?}"),
    };
    let dump = shown(&state, at(0));
    assert_eq!((dump.activated, dump.has_pending_keys), (false, true));
    done(&mut state, Request::Activate(SESSION), at(10));
    let traffic = state.sessions[&SESSION].traffic.clone();
    traffic.sent(0, 2, 200, 1, at(20));
    traffic.sent(1, 3, 300, 4, at(30));
    traffic.received(1, 1, 50, at(35));
    let dump = shown(&state, at(40));
    assert_eq!((dump.activated, dump.has_pending_keys, dump.generation), (true, false, 4));
    assert_eq!((dump.tx_packets, dump.tx_bytes, dump.rx_packets, dump.rx_bytes), (5, 500, 1, 50));
    assert_eq!((dump.tx_last_ns, dump.rx_last_ns, dump.age_ns), (Some(10_000_000), Some(5_000_000), 40_000_000));
}
