//! Requests in any order, beside a model that knows only what was asked and answered.

use proptest::prelude::*;

use super::*;

/// What somebody may ask in any order. Numbers pick among what there is.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u8),
    Release(usize),
    Install { session: u64, pick: usize, wrong: u8 },
    Prepare { session: u64, pick: usize },
    Activate(u64),
    Proved(u64),
    Wanted(u32),
    Probe(u64),
    Move(u64, u16),
    Remove(u64),
    Stage(Vec<u64>),
    Commit,
    Discard,
    Echo(u64),
    RoundTrip(u64, u64),
    Dump,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 0u64..5;
    prop_oneof![
        6 => (0u8..=17).prop_map(Step::Reserve),
        1 => any::<usize>().prop_map(Step::Release),
        6 => (session(), any::<usize>(), 0u8..12).prop_map(|(session, pick, wrong)| Step::Install { session, pick, wrong }),
        4 => (session(), any::<usize>()).prop_map(|(session, pick)| Step::Prepare { session, pick }),
        2 => session().prop_map(Step::Activate),
        2 => session().prop_map(Step::Proved),
        1 => (0u32..8).prop_map(Step::Wanted),
        1 => session().prop_map(Step::Probe),
        1 => (session(), 1u16..4).prop_map(|(session, port)| Step::Move(session, port)),
        3 => session().prop_map(Step::Remove),
        2 => prop::collection::vec(0u64..8, 0..6).prop_map(Step::Stage),
        2 => Just(Step::Commit),
        1 => Just(Step::Discard),
        1 => session().prop_map(Step::Echo),
        1 => (session(), 0u64..4_000).prop_map(|(session, millis)| Step::RoundTrip(session, millis)),
        1 => Just(Step::Dump),
        3 => (0u64..20_000).prop_map(Step::Wait),
    ]
}

/// Every slot of every worker is free or held once; what is live is what may be opened; every place and every claim is accounted for.
fn check_invariants(state: &State<Seeded>, live: &HashSet<u32>) {
    let installed = || state.sessions.values().flat_map(|entry| entry.all());
    let closing = || state.sessions.values().flat_map(|entry| &entry.closing);
    let open: Vec<ReceiverIndex> = installed()
        .flat_map(|installed| &installed.indices)
        .chain(closing().map(|(index, _)| index))
        .copied()
        .collect();
    assert_eq!(open.iter().map(|index| index.0).collect::<HashSet<_>>(), *live);
    assert_eq!(open.len(), live.len());

    let slots = SLOTS_PER_WORKER as usize;
    let mut held = vec![false; usize::from(state.fixed.workers) * slots];
    let reserved = state.reservations.values().flat_map(|reservation| &reservation.indices);
    let taken = open.iter().chain(reserved).map(|index| (index.worker(), index.slot()));
    for (worker, slot) in taken.chain(state.indices.free()) {
        let held = &mut held[usize::from(worker) * slots + usize::from(slot)];
        assert!(!std::mem::replace(held, true), "slot {slot} of worker {worker} is held twice");
    }
    let lost = held.iter().filter(|held| !**held).count();
    assert_eq!(
        lost,
        usize::from(state.fixed.workers),
        "slot 0 of each worker is never given, and nothing else is lost"
    );

    let watched = |entry: &&Entry| entry.installed.as_ref().is_some_and(|installed| installed.idle_after.is_some());
    let watches = state.sessions.values().filter(watched).count();
    assert_eq!(state.wheel.len(), state.reservations.len() + closing().count() + watches);
    assert_eq!(state.free_slots.len() + state.sessions.len(), SESSIONS_MAX);
    assert_eq!(state.names.len(), state.sessions.len());
    for (session, entry) in &state.sessions {
        assert_eq!(state.names.get(&entry.slot), Some(session));
        assert_eq!(entry.routes, state.routes.iter().filter_map(session_of).filter(|named| named == session).count());
        assert!(entry.has_keys() || entry.routes > 0, "{session:?} holds a place for nothing");
        assert!(entry.has_keys() || entry.closing.is_empty(), "{session:?} is gone and opens lanes");
    }
}

/// What a request must be answered with, from nothing but what was asked and answered before.
struct Model {
    open: Vec<ReservationId>,
    since: HashMap<ReservationId, Time>,
    up: HashSet<u64>,
    /// Those with keys that wait.
    pending: HashSet<u64>,
}

impl Model {
    fn pick(&self, pick: usize) -> ReservationId {
        if self.open.is_empty() { ReservationId(0) } else { self.open[pick % self.open.len()] }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_order_of_requests_breaks_the_books(steps in prop::collection::vec(step(), 1..120), seed in 100u64..) {
        let mut state = plane(1, 2);
        state.random = Seeded(seed);
        let mut model = Model { open: vec![], since: HashMap::new(), up: HashSet::new(), pending: HashSet::new() };
        let mut live = HashSet::new();
        let mut now = START;
        for step in steps {
            let before = fingerprint(&state);
            let (request, expected) = match step {
                Step::Reserve(lanes) => (Request::Reserve { lanes }, (1..=16).contains(&lanes)),
                Step::Release(pick) => {
                    let id = model.pick(pick);
                    let known = model.open.contains(&id);
                    model.open.retain(|open| *open != id);
                    (Request::Release(id), known)
                }
                Step::Install { session, pick, wrong } => {
                    let id = model.pick(pick);
                    let mut install = install(&state, session, id);
                    install.idle_after_s = (session % 3) as u32;
                    match wrong {
                        0 => install.incarnation.0 += 1,
                        1 => install.peer.indices.truncate(1),
                        2 => install.sources.clear(),
                        3 => install.reservation.0 ^= 1,
                        _ => {}
                    }
                    let good = wrong > 3 && model.open.contains(&id);
                    if good {
                        model.open.retain(|open| *open != id);
                        model.up.insert(session);
                        model.pending.remove(&session);
                    }
                    (Request::Install(Box::new(install)), good)
                }
                Step::Prepare { session, pick } => {
                    let id = model.pick(pick);
                    let install = Install { activate: false, ..install(&state, session, id) };
                    let good = model.open.contains(&id);
                    if good {
                        model.open.retain(|open| *open != id);
                        model.pending.insert(session);
                    }
                    (Request::Install(Box::new(install)), good)
                }
                Step::Activate(session) => {
                    let was_pending = model.pending.remove(&session);
                    if was_pending {
                        model.up.insert(session);
                    }
                    (Request::Activate(SessionId(session)), model.up.contains(&session))
                }
                Step::Proved(session) => {
                    let keys = state.sessions.get(&SessionId(session)).and_then(|entry| entry.pending.as_ref());
                    let keys = keys.map_or(KeysId(0), |pending| pending.keys);
                    let told = state.handle_event(engine::Event::Activated { session: SessionId(session), keys }, now);
                    let was_pending = model.pending.remove(&session);
                    prop_assert_eq!(told, was_pending.then_some(Event::Activated(SessionId(session))));
                    if was_pending {
                        model.up.insert(session);
                    }
                    (Request::DiscardRoutes, true)
                }
                Step::Wanted(slot) => {
                    let told = state.handle_event(engine::Event::Wanted(SessionSlot(slot)), now);
                    let is_up = |id: SessionId| model.up.contains(&id.0);
                    prop_assert!(!matches!(told, Some(Event::Wanted(id)) if is_up(id)));
                    continue;
                }
                Step::Probe(session) => {
                    let endpoint = "192.0.2.7:1".parse().unwrap();
                    let replies = state.handle_request(Request::Probe { session: SessionId(session), endpoint, token: 1 }, now);
                    let is_limit = matches!(replies[..], [Reply::Refused(Refusal::Limit { .. })]);
                    prop_assert!(is_limit || (replies == [Reply::Done]) == model.up.contains(&session), "{:?}", replies);
                    (Request::DiscardRoutes, true)
                }
                Step::Move(session, port) => {
                    let endpoint = ([192, 0, 2, 1], port).into();
                    let known = model.up.contains(&session) || model.pending.contains(&session);
                    (Request::Move { session: SessionId(session), endpoint }, known)
                }
                Step::Remove(session) => {
                    let (up, pending) = (model.up.remove(&session), model.pending.remove(&session));
                    (Request::Remove(SessionId(session)), up || pending)
                }
                Step::Stage(sessions) => {
                    let routes = sessions.iter().map(|n| to_session(&format!("fd0{n}::/32"), *n)).collect();
                    (Request::StageRoutes(routes), true)
                }
                Step::Commit => (Request::CommitRoutes, true),
                Step::Discard => (Request::DiscardRoutes, true),
                Step::Echo(session) => (Request::Echo(SessionId(session)), model.up.contains(&session)),
                Step::RoundTrip(session, millis) => {
                    let round_trip = Duration::from_millis(millis);
                    state.handle_event(engine::Event::Echo { session: SessionId(session), round_trip }, now);
                    continue;
                }
                Step::Dump => (Request::Dump, true),
                Step::Wait(millis) => {
                    now = now.plus(Duration::from_millis(millis));
                    // A tick late is what the wheel allows; whole milliseconds keep clear of it.
                    state.handle_timeout(now);
                    let ended = |id: &ReservationId| now.since(model.since[id]) > RESERVATION_LIFETIME + Duration::from_millis(2);
                    prop_assert!(!state.reservations.keys().any(ended));
                    model.open.retain(|id| state.reservations.contains_key(id) || now.since(model.since[id]) < RESERVATION_LIFETIME);
                    (Request::DiscardRoutes, true)
                }
            };
            let replies = state.handle_request(request, now);
            let refused = replies.iter().any(|reply| matches!(reply, Reply::Refused(_)));
            prop_assert_eq!(refused, !expected, "{:?}", replies);
            if refused {
                prop_assert_eq!(fingerprint(&state), before);
            }
            if let [Reply::Reserved { reservation, .. }] = replies[..] {
                model.open.push(reservation);
                model.since.insert(reservation, now);
            }
            for reply in &replies {
                let bytes = encode(1, reply).unwrap();
                prop_assert!(bytes.windows(8).all(|window| window != &SECRET[..8]));
            }
            for effect in effects(&mut state) {
                if let Effect::Live(index, on) = effect {
                    prop_assert!(if on { live.insert(index.0) } else { live.remove(&index.0) }, "{:?} {}", index, on);
                }
            }
            prop_assert_eq!(state.reservations.len(), model.open.len());
            check_invariants(&state, &live);
        }
    }
}
