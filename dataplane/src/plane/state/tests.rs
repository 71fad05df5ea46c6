mod model;
mod pair;
mod policy;
mod roam;
mod turn;

use std::collections::{HashMap, HashSet};

use weir_abi::map::SLOTS_PER_WORKER;
use weir_abi::wire::{HEADER_LEN, TAG_LEN};

use super::*;
use crate::api::codec::encode;
use crate::api::message::{DumpItem, RateLimit, Secret, SessionDump};
use crate::api::{RATE_BURST_MIN, RATE_MIN, SOURCES_MAX};
use crate::engine::bundle::DATAGRAM_LEN_MIN;
use crate::engine::class::Dscp;
use crate::engine::lane::{RETAIN_MIN, RETAIN_ROUND_TRIPS};
use crate::engine::wheel::TICK_NS;

const SECRET: [u8; 32] = [0xa5; 32];
const START: Time = Time::from_nanos(1);

/// SplitMix64: the same numbers for the same seed.
struct Seeded(u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A plane whose start has been carried out. `number` sets it apart from others; its overlay address is `fd00:NUMBER::1`.
fn plane(number: u64, workers: u8) -> State<Seeded> {
    let fixed = Fixed {
        incarnation: Incarnation(number),
        workers,
        port: 4646,
        gateway: vec![format!("fd00:{number}::1").parse().unwrap()],
        transit: false,
        dscp: Dscp::Clear,
        has_aes: true,
        lane_ports: 0,
    };
    let mut state = State::new(fixed, Seeded(number));
    assert_eq!(effects(&mut state).len(), usize::from(workers), "a snapshot for each worker");
    state
}

fn effects(state: &mut State<Seeded>) -> Vec<Effect> {
    std::iter::from_fn(|| state.poll_effect()).collect()
}

/// Effects in a line each, to compare whole sequences.
fn brief(effects: &[Effect]) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::Live(index, live) => format!("live {:x} {live}", index.0),
        Effect::Tell(notice) => format!("tell {notice:?}"),
        Effect::Worker(worker, command) => match command {
            Command::Install { slot, lanes, .. } => {
                let lanes: Vec<_> = lanes.iter().map(|end| format!("{:x}", end.receiver().0)).collect();
                format!("{worker}: install {} [{}]", slot.0, lanes.join(" "))
            }
            Command::Prepare { slot, lanes, .. } => {
                let lanes: Vec<_> = lanes.iter().map(|end| format!("{:x}", end.receiver().0)).collect();
                format!("{worker}: prepare {} [{}]", slot.0, lanes.join(" "))
            }
            Command::Activate { slot, keys } => format!("{worker}: activate {} {}", slot.0, keys.0),
            Command::Move { slot, keys, endpoint, .. } => format!("{worker}: move {} {} {endpoint}", slot.0, keys.0),
            Command::Challenge { slot, to, .. } => format!("{worker}: challenge {} {to}", slot.0),
            Command::CloseLane(index) => format!("{worker}: close {:x}", index.0),
            Command::Remove(slot) => format!("{worker}: remove {}", slot.0),
            Command::Routes(snapshot) => format!("{worker}: routes {}", snapshot.epoch),
            Command::Policy(policy) => format!("{worker}: policy {}", policy.is_some()),
            Command::Echo(slot) => format!("{worker}: echo {}", slot.0),
        },
    };
    effects.iter().map(line).collect()
}

fn ask(state: &mut State<Seeded>, request: Request, now: Time) -> Reply {
    let mut replies = state.handle_request(request, now);
    assert_eq!(replies.len(), 1);
    replies.remove(0)
}

fn done(state: &mut State<Seeded>, request: Request, now: Time) {
    assert_eq!(ask(state, request, now), Reply::Done);
}

fn refused(state: &mut State<Seeded>, request: Request, now: Time) -> Refusal {
    let before = fingerprint(state);
    let Reply::Refused(refusal) = ask(state, request, now) else { panic!("it was not refused") };
    assert_eq!(fingerprint(state), before, "{refusal}");
    refusal
}

fn reserve(state: &mut State<Seeded>, lanes: u8, now: Time) -> (ReservationId, Offer) {
    match ask(state, Request::Reserve { lanes }, now) {
        Reply::Reserved { reservation, offer } => (reservation, offer),
        other => panic!("{other:?}"),
    }
}

fn is_limit(refusal: &Refusal, expected: usize) -> bool {
    matches!(refusal, Refusal::Limit { limit, .. } if *limit == expected as u64)
}

/// An install that nothing is wrong with, for a plane of up to two workers.
fn install(state: &State<Seeded>, session: u64, reservation: ReservationId) -> Install {
    Install {
        session: SessionId(session),
        reservation,
        incarnation: state.fixed.incarnation,
        peer: Offer {
            incarnation: Incarnation(99),
            salt: [9; 16],
            indices: vec![0x40, 0x41],
            has_aes: true,
            lane_ports: 0,
        },
        secret: Secret::new(SECRET),
        initiator: true,
        endpoint: "192.0.2.1:4646".parse().unwrap(),
        sources: vec![prefix("fd00:99::/32")],
        datagram_len_max: 1452,
        inner_mtu: 1420,
        rate: None,
        activate: true,
        idle_after_s: 0,
    }
}

fn up(state: &mut State<Seeded>, session: u64, now: Time) -> Vec<Effect> {
    let (reservation, _) = reserve(state, 2, now);
    let install = install(state, session, reservation);
    done(state, Request::Install(Box::new(install)), now);
    effects(state)
}

/// All that a refused request must leave as it is, in an order of its own.
fn fingerprint(state: &State<Seeded>) -> String {
    let mut reservations: Vec<_> = state.reservations.iter().map(|entry| format!("{entry:?}")).collect();
    let mut sessions: Vec<_> = state.sessions.iter().map(|entry| format!("{entry:?}")).collect();
    let mut names: Vec<_> = state.names.iter().map(|entry| format!("{entry:?}")).collect();
    [&mut reservations, &mut sessions, &mut names].into_iter().for_each(|lines| lines.sort());
    let counts = (state.indices.free().count(), state.free_slots.len(), state.wheel.len(), state.effects.len());
    // Routes are many in some tests; their number and ends tell.
    let ends = |routes: &[Route]| (routes.len(), routes.first().copied(), routes.last().copied());
    let routes = (state.epoch, ends(&state.stage), ends(&state.routes));
    let policies = &state.policies;
    let policy = (policies.epoch, policies.version, policies.stage.len(), policies.current.is_some());
    format!("{reservations:?} {sessions:?} {names:?} {counts:?} {routes:?} {policy:?}")
}

fn to_session(text: &str, session: u64) -> Route {
    Route { prefix: prefix(text), target: Target::Session(SessionId(session)) }
}

fn local(text: &str) -> Route {
    Route { prefix: prefix(text), target: Target::Local }
}

#[test]
fn a_reservation_serves_one_install() {
    let mut state = plane(1, 2);
    let (reservation, offer) = reserve(&mut state, 2, START);
    assert_eq!((offer.incarnation, offer.indices.len(), offer.has_aes), (Incarnation(1), 2, true));
    let once = install(&state, 7, reservation);
    done(&mut state, Request::Install(Box::new(once.clone())), START);
    let [first, second] = [ReceiverIndex(offer.indices[0]), ReceiverIndex(offer.indices[1])];
    assert_ne!(first.worker(), second.worker(), "lanes go round the workers");
    let lane_of = |worker| if first.worker() == worker { first.0 } else { second.0 };
    assert_eq!(
        brief(&effects(&mut state)),
        [
            format!("0: install 0 [{:x}]", lane_of(0)),
            format!("1: install 0 [{:x}]", lane_of(1)),
            format!("live {:x} true", first.0),
            format!("live {:x} true", second.0),
        ]
    );
    for session in [7, 8] {
        let again = Install { session: SessionId(session), ..once.clone() };
        assert_eq!(refused(&mut state, Request::Install(Box::new(again)), START), Refusal::NoReservation);
    }
    assert_eq!(refused(&mut state, Request::Release(reservation), START), Refusal::NoReservation);
}

/// What a refusal says, and what leads to it.
type Spoiled<'a> = (&'a str, &'a dyn Fn(&mut Install));

#[test]
fn a_refused_install_changes_nothing_and_leaves_the_reservation_open() {
    let mut state = plane(1, 2);
    let (reservation, _) = reserve(&mut state, 2, START);
    let good = install(&state, 7, reservation);
    let many = |count: u32| (0..count).map(|i| Prefix::host(std::net::Ipv4Addr::from_bits(i << 8).into())).collect();
    let refusals: [Spoiled<'_>; 16] = [
        ("incarnation 0x2", &|i| i.incarnation.0 = 2),
        ("reservation", &|i| i.reservation.0 ^= 1),
        ("1 lanes", &|i| i.peer.indices.truncate(1)),
        ("17 lanes", &|i| i.peer.indices = vec![1; 17]),
        ("own", &|i| i.peer.incarnation = Incarnation(1)),
        ("no address", &|i| i.endpoint.set_port(0)),
        ("no address", &|i| i.endpoint.set_ip("0.0.0.0".parse().unwrap())),
        ("no address", &|i| i.endpoint.set_ip("::".parse().unwrap())),
        ("no address", &|i| i.endpoint.set_ip("224.0.0.1".parse().unwrap())),
        ("no address", &|i| i.endpoint.set_ip("ff02::1".parse().unwrap())),
        ("1279", &|i| i.inner_mtu = INNER_MTU_MIN - 1),
        ("547", &|i| i.datagram_len_max = DATAGRAM_LEN_MIN - 1),
        ("a rate of 999", &|i| i.rate = Some(RateLimit { bytes_per_s: RATE_MIN - 1, burst: RATE_BURST_MIN })),
        ("burst of 65535", &|i| i.rate = Some(RateLimit { bytes_per_s: RATE_MIN, burst: RATE_BURST_MIN - 1 })),
        ("send nothing", &|i| i.sources = vec![]),
        ("256", &|i| i.sources = many(SOURCES_MAX as u32 + 1)),
    ];
    for (says, spoil) in refusals {
        let mut bad = good.clone();
        spoil(&mut bad);
        let refusal = refused(&mut state, Request::Install(Box::new(bad)), START).to_string();
        assert!(refusal.contains(says), "{says}: {refusal}");
    }
    let mut good = good;
    (good.inner_mtu, good.datagram_len_max) = (INNER_MTU_MIN, DATAGRAM_LEN_MIN);
    good.peer.indices = vec![1; usize::from(WORKERS_MAX)];
    good.sources = many(SOURCES_MAX as u32);
    good.rate = Some(RateLimit { bytes_per_s: RATE_MIN, burst: RATE_BURST_MIN });
    done(&mut state, Request::Install(Box::new(good)), START);
}

/// What a worker's new session seals first, without the header.
fn sealed_first(effects: &mut [Effect], worker: u8) -> Vec<u8> {
    let session = effects.iter_mut().find_map(|effect| match effect {
        Effect::Worker(w, Command::Install { session, .. }) if *w == worker => Some(session),
        _ => None,
    });
    let mut datagram = [0; HEADER_LEN + 32 + TAG_LEN];
    session.unwrap().seal.seal(&mut datagram, START).unwrap();
    datagram[HEADER_LEN..].to_vec()
}

#[test]
fn the_same_secret_never_gives_the_same_key_again() {
    let mut state = plane(1, 2);
    let mut seen = HashSet::new();
    for session in [7, 7, 8, 7] {
        let mut effects = up(&mut state, session, START);
        for worker in 0..2 {
            assert!(seen.insert(sealed_first(&mut effects, worker)), "session {session}, worker {worker}");
        }
    }
    // The same inputs do give the same key: it is the salt that made the difference.
    let first = sealed_first(&mut up(&mut plane(1, 2), 7, START), 0);
    assert!(seen.contains(&first));
}

#[test]
fn a_released_reservation_gives_its_indices_back() {
    let mut state = plane(1, 2);
    let all = state.indices.free().count();
    let (reservation, _) = reserve(&mut state, 16, START);
    assert_eq!(state.indices.free().count(), all - 16);
    done(&mut state, Request::Release(reservation), START);
    assert_eq!((state.indices.free().count(), state.wheel.len()), (all, 0));
    assert_eq!(refused(&mut state, Request::Release(reservation), START), Refusal::NoReservation);
    assert!(effects(&mut state).is_empty());
}

#[test]
fn a_reservation_ends_after_its_lifetime_and_not_before() {
    let mut state = plane(1, 2);
    let all = state.indices.free().count();
    let (reservation, _) = reserve(&mut state, 2, START);
    let end = START.plus(RESERVATION_LIFETIME);
    state.handle_timeout(Time::from_nanos(end.as_nanos() - 1));
    assert_eq!(state.indices.free().count(), all - 2);
    assert!(state.next_deadline().unwrap() <= end.plus(Duration::from_nanos(TICK_NS)));
    state.handle_timeout(end.plus(Duration::from_nanos(TICK_NS)));
    assert_eq!((state.indices.free().count(), state.next_deadline()), (all, None));
    let late = install(&state, 7, reservation);
    assert_eq!(refused(&mut state, Request::Install(Box::new(late)), end), Refusal::NoReservation);
    // One that was used does not end what it was used for.
    up(&mut state, 7, end);
    state.handle_timeout(end.plus(2 * RESERVATION_LIFETIME));
    assert!(effects(&mut state).is_empty());
}

fn indices_of(state: &State<Seeded>, session: u64) -> Vec<ReceiverIndex> {
    state.sessions[&SessionId(session)].installed.as_ref().unwrap().indices.clone()
}

fn closed(indices: &[ReceiverIndex]) -> Vec<String> {
    let lines = |index: &ReceiverIndex| {
        [format!("live {:x} false", index.0), format!("{}: close {:x}", index.worker(), index.0)]
    };
    indices.iter().flat_map(lines).collect()
}

#[test]
fn a_rekey_closes_the_lanes_before_only_after_the_grace() {
    let tick = Duration::from_nanos(TICK_NS);
    for (round_trip, grace) in
        [(None, RETAIN_MIN), (Some(RETAIN_MIN / 4), RETAIN_MIN), (Some(RETAIN_MIN), RETAIN_MIN * RETAIN_ROUND_TRIPS)]
    {
        let mut state = plane(1, 2);
        up(&mut state, 7, START);
        if let Some(round_trip) = round_trip {
            let session = SessionId(7);
            let told = state.handle_event(engine::Event::Echo { session, round_trip }, START);
            assert_eq!(told, Some(Event::Echo { session, rtt_ns: round_trip.as_nanos() as u64 }));
        }
        let before = indices_of(&state, 7);
        let installed = up(&mut state, 7, START);
        assert!(brief(&installed).iter().all(|line| !line.contains("close") && !line.contains("false")));
        state.handle_timeout(Time::from_nanos(START.plus(grace).as_nanos() - 1));
        assert!(effects(&mut state).is_empty(), "{round_trip:?}");
        state.handle_timeout(START.plus(grace + tick));
        assert_eq!(brief(&effects(&mut state)), closed(&before), "{round_trip:?}");
        assert!(state.sessions[&SessionId(7)].closing.is_empty());
    }
}

#[test]
fn a_removed_session_is_taken_down_in_order_and_its_indices_return() {
    let mut state = plane(1, 2);
    let all = state.indices.free().count();
    up(&mut state, 7, START);
    let indices = indices_of(&state, 7);
    done(&mut state, Request::Remove(SessionId(7)), START);
    let removed: Vec<_> =
        ["0: remove 0".to_owned(), "1: remove 0".to_owned()].into_iter().chain(closed(&indices)).collect();
    assert_eq!(brief(&effects(&mut state)), removed);
    assert_eq!((state.indices.free().count(), state.sessions.len(), state.names.len()), (all, 0, 0));
    for request in [Request::Remove(SessionId(7)), Request::Echo(SessionId(7))] {
        assert_eq!(refused(&mut state, request, START), Refusal::NoSession(7));
    }
    let mut again = HashMap::new();
    for _ in 0..all / 2 {
        let (reservation, offer) = reserve(&mut state, 2, START);
        again.extend(offer.indices.iter().map(|&i| ((ReceiverIndex(i).worker(), ReceiverIndex(i).slot()), i)));
        // The limit on reservations is not what is looked at here.
        let next = install(&state, again.len() as u64, reservation);
        done(&mut state, Request::Install(Box::new(next)), START);
    }
    for index in indices {
        assert_ne!(again[&(index.worker(), index.slot())], index.0, "the slot came back with its tag");
    }
}

/// The lanes in their grace once outlived the session, and its place went to the next one, whose sources they then could use.
#[test]
fn a_removed_session_leaves_no_lane_open() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    let oldest = indices_of(&state, 7);
    up(&mut state, 7, START);
    let old = indices_of(&state, 7);
    up(&mut state, 7, START);
    let current = indices_of(&state, 7);
    done(&mut state, Request::Remove(SessionId(7)), START);
    assert_eq!(brief(&effects(&mut state))[2..], closed(&[current, oldest, old].concat()));
    assert_eq!(state.next_deadline(), None);
    // The next session has the same place, and nothing happens to it later.
    assert_eq!(brief(&up(&mut state, 8, START))[0][..12], *"0: install 0");
    state.handle_timeout(START.plus(Duration::from_secs(3600)));
    assert!(effects(&mut state).is_empty());
}

#[test]
fn reservations_are_limited() {
    let mut state = plane(1, 4);
    let last = (0..RESERVATIONS_MAX).map(|_| reserve(&mut state, 1, START).0).last().unwrap();
    assert!(is_limit(&refused(&mut state, Request::Reserve { lanes: 1 }, START), RESERVATIONS_MAX));
    done(&mut state, Request::Release(last), START);
    reserve(&mut state, 1, START);
    for lanes in [0, WORKERS_MAX + 1] {
        assert!(matches!(refused(&mut plane(1, 4), Request::Reserve { lanes }, START), Refusal::Invalid(_)));
    }
}

#[test]
fn lanes_of_a_worker_are_limited_and_a_refusal_takes_none() {
    let mut state = plane(1, 1);
    let lanes = SLOTS_PER_WORKER as usize - 1;
    let reservations: Vec<_> = (0..lanes / 16).map(|_| reserve(&mut state, 16, START).0).collect();
    let rest = (lanes % 16) as u8;
    assert!(is_limit(&refused(&mut state, Request::Reserve { lanes: rest + 1 }, START), lanes));
    reserve(&mut state, rest, START);
    assert!(is_limit(&refused(&mut state, Request::Reserve { lanes: 1 }, START), lanes));
    done(&mut state, Request::Release(reservations[0]), START);
    reserve(&mut state, 16, START);
}

/// Stages routes to sessions with these numbers, a /128 for each.
fn stage_sessions(state: &mut State<Seeded>, sessions: impl Iterator<Item = u64>) {
    let routes: Vec<_> = sessions.map(|session| to_session(&format!("fd01::{session:x}/128"), session)).collect();
    for chunk in routes.chunks(ROUTES_PER_MESSAGE) {
        done(state, Request::StageRoutes(chunk.to_vec()), START);
    }
}

#[test]
fn sessions_are_limited_and_a_commit_of_too_many_leaves_no_trace() {
    let mut state = plane(1, 2);
    let max = SESSIONS_MAX as u64;
    stage_sessions(&mut state, 0..max + 1);
    // The last one finds no place after all the others have found theirs.
    assert!(is_limit(&refused(&mut state, Request::CommitRoutes, START), SESSIONS_MAX));
    assert!(state.sessions.is_empty() && state.free_slots.len() == SESSIONS_MAX);
    done(&mut state, Request::DiscardRoutes, START);
    stage_sessions(&mut state, 0..max);
    done(&mut state, Request::CommitRoutes, START);
    effects(&mut state);
    assert_eq!(state.sessions.len(), SESSIONS_MAX);

    let (reservation, _) = reserve(&mut state, 2, START);
    let one_more = install(&state, max, reservation);
    assert!(is_limit(&refused(&mut state, Request::Install(Box::new(one_more)), START), SESSIONS_MAX));
    let known = install(&state, max - 1, reservation);
    done(&mut state, Request::Install(Box::new(known)), START);

    stage_sessions(&mut state, 0..max - 2);
    done(&mut state, Request::CommitRoutes, START);
    assert_eq!(state.sessions.len(), SESSIONS_MAX - 1, "one is no longer named, one is still installed");
    effects(&mut state);
    up(&mut state, max, START);
    assert_eq!(state.sessions.len(), SESSIONS_MAX);
}

#[test]
fn routes_are_limited() {
    let mut state = plane(1, 1);
    let max = ROUTES_MAX - state.fixed.gateway.len();
    let full = vec![local("fd02::/32"); ROUTES_PER_MESSAGE];
    let over = vec![local("fd02::/32"); ROUTES_PER_MESSAGE + 1];
    assert!(is_limit(&refused(&mut state, Request::StageRoutes(over), START), ROUTES_PER_MESSAGE));
    (0..max / ROUTES_PER_MESSAGE).for_each(|_| done(&mut state, Request::StageRoutes(full.clone()), START));
    let rest = full[..max % ROUTES_PER_MESSAGE].to_vec();
    let over = full[..rest.len() + 1].to_vec();
    assert!(is_limit(&refused(&mut state, Request::StageRoutes(over), START), max));
    done(&mut state, Request::StageRoutes(rest), START);
    assert!(is_limit(&refused(&mut state, Request::StageRoutes(vec![local("fd03::/32")]), START), max));
    done(&mut state, Request::CommitRoutes, START);
    assert_eq!(state.routes.len(), max);
    let items = state.dump(START).len();
    assert_eq!(items, ROUTES_MAX / ROUTES_PER_MESSAGE + 1, "routes in pieces, and the end");
}

/// The snapshot that the workers were told last.
fn snapshot(effects: &[Effect]) -> &Snapshot {
    let last = effects.iter().rev().find_map(|effect| match effect {
        Effect::Worker(_, Command::Routes(snapshot)) => Some(snapshot),
        _ => None,
    });
    last.unwrap()
}

#[test]
fn staged_routes_take_effect_together() {
    let mut state = plane(1, 2);
    done(&mut state, Request::StageRoutes(vec![to_session("fd02::/32", 7)]), START);
    done(&mut state, Request::StageRoutes(vec![local("fd03::/32")]), START);
    assert!(effects(&mut state).is_empty() && state.sessions.is_empty());
    done(&mut state, Request::CommitRoutes, START);
    let first = effects(&mut state);
    assert_eq!(brief(&first), ["0: routes 2", "1: routes 2"]);
    let slot = state.sessions[&SessionId(7)].slot;
    assert_eq!(snapshot(&first).next_hop("fd02::1".parse().unwrap()), Some(NextHop::Session(slot)));
    assert_eq!(snapshot(&first).next_hop("fd03::1".parse().unwrap()), Some(NextHop::Local));
    // A stage that was thrown away does not come back, and an empty one routes nothing but the gateway.
    done(&mut state, Request::StageRoutes(vec![local("fd04::/32")]), START);
    done(&mut state, Request::DiscardRoutes, START);
    done(&mut state, Request::CommitRoutes, START);
    let second = effects(&mut state);
    for address in ["fd02::1", "fd03::1", "fd04::1"] {
        assert_eq!(snapshot(&second).next_hop(address.parse().unwrap()), None, "{address}");
    }
    assert_eq!(snapshot(&second).epoch, 3);
    assert!(state.sessions.is_empty(), "nothing names the session any more");
}

#[test]
fn the_gateways_own_addresses_cannot_be_routed_away() {
    let mut state = plane(1, 1);
    let own = "fd00:1::1".parse().unwrap();
    done(&mut state, Request::StageRoutes(vec![to_session("fd00:1::1/128", 7), to_session("::/0", 7)]), START);
    done(&mut state, Request::CommitRoutes, START);
    let effects = effects(&mut state);
    assert_eq!(snapshot(&effects).next_hop(own), Some(NextHop::Local));
    assert_eq!(snapshot(&effects).next_hop("fd00:1::2".parse().unwrap()), Some(NextHop::Session(SessionSlot(0))));
}

#[test]
fn a_place_is_kept_while_the_session_is_installed_or_routed() {
    let mut state = plane(1, 2);
    done(&mut state, Request::StageRoutes(vec![to_session("fd02::/32", 7), to_session("fd03::/32", 7)]), START);
    done(&mut state, Request::CommitRoutes, START);
    let slot = state.sessions[&SessionId(7)].slot;
    up(&mut state, 7, START);
    done(&mut state, Request::Remove(SessionId(7)), START);
    assert_eq!(state.sessions[&SessionId(7)].slot, slot, "still routed");
    up(&mut state, 7, START);
    done(&mut state, Request::CommitRoutes, START);
    assert_eq!(state.sessions[&SessionId(7)].slot, slot, "still installed");
    done(&mut state, Request::Remove(SessionId(7)), START);
    assert!(state.sessions.is_empty() && state.names.is_empty() && state.free_slots.len() == SESSIONS_MAX);
}

#[test]
fn a_dump_tells_everything_but_secrets() {
    let mut state = plane(1, 2);
    up(&mut state, 7, START);
    done(&mut state, Request::StageRoutes(vec![to_session("fd02::/32", 7)]), START);
    done(&mut state, Request::CommitRoutes, START);
    let session = SessionId(7);
    state.handle_event(engine::Event::Echo { session, round_trip: Duration::from_micros(5) }, START);
    let indices = indices_of(&state, 7).iter().map(|index| index.0).collect();
    let dump = state.handle_request(Request::Dump, START.plus(Duration::from_secs(1)));
    let expected = SessionDump {
        session,
        endpoint: "192.0.2.1:4646".parse().unwrap(),
        sources: vec![prefix("fd00:99::/32")],
        indices,
        peer_indices: vec![0x40, 0x41],
        age_ns: 1_000_000_000,
        rtt_ns: 5000,
        datagram_len: 1200,
        inner_mtu: 1420,
        lanes_by_port: 0,
        activated: true,
        has_pending_keys: false,
        algorithm: "AEAD_AES_256_GCM".to_owned(),
        generation: 0,
        tx_packets: 0,
        tx_bytes: 0,
        rx_packets: 0,
        rx_bytes: 0,
        tx_last_ns: None,
        rx_last_ns: None,
    };
    let routes = DumpItem::Routes(vec![to_session("fd02::/32", 7)]);
    assert_eq!(dump, [Reply::Dump(DumpItem::Session(expected)), Reply::Dump(routes), Reply::Done]);
    let bytes: Vec<u8> = dump.iter().flat_map(|reply| encode(1, reply).unwrap()).collect();
    assert!(bytes.windows(8).all(|window| window != &SECRET[..8]));
}

#[test]
fn events_reach_subscribers_but_for_freed_snapshots() {
    let mut state = plane(1, 1);
    let session = SessionId(7);
    for (event, notice) in [
        (engine::Event::RekeyDue(session), Some(Event::RekeyDue(session))),
        (engine::Event::Expired(session), Some(Event::Expired(session))),
        (engine::Event::Closed(session), Some(Event::Closed(session))),
        (engine::Event::Lost(3), Some(Event::Lost(3))),
        (
            engine::Event::PathMtu { session, datagram_len: 1472, inner_mtu: 1420 },
            Some(Event::PathMtu { session, datagram_len: 1472, inner_mtu: 1420 }),
        ),
        (
            engine::Event::Elsewhere { session, from: "192.0.2.9:1".parse().unwrap() },
            Some(Event::Elsewhere { session, from: "192.0.2.9:1".parse().unwrap() }),
        ),
        (engine::Event::Retired(Arc::new(Snapshot::empty())), None),
    ] {
        assert_eq!(state.handle_event(event, START), notice);
    }
    for request in [Request::Counters, Request::Subscribe, Request::TakeControlSockets] {
        assert!(matches!(refused(&mut state, request, START), Refusal::Invalid(_)));
    }
}
