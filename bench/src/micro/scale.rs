//! Many sessions and many routes: memory, and how long a change of routes holds a batch up.
//!
//! Measured once: what memory an allocator gives back and takes again says little. A plane with one worker opens at most 4095 lanes, so the
//! sessions are those of three planes in one process; the routes are the first one's.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use weir_dataplane::api::message::{Install, Offer, Reply, Request, Route, Secret, SessionId, Target};
use weir_dataplane::api::{Prefix, ROUTES_PER_MESSAGE};
use weir_dataplane::engine::Engine;
use weir_dataplane::engine::counters::Counters;
use weir_dataplane::engine::port::{BURST_LEN, RxMeta};
use weir_dataplane::plane::state::{Effect, State};

use super::planes::{DATAGRAM_LEN_MAX, Frames, Numbers, START, Sink, obey, packet, plane};
use super::{Figure, Target as Limit};
use crate::compare::system::resident_bytes;

const SESSIONS: [u64; 3] = [4_000, 4_000, 2_000];
const ROUTES: u32 = 100_000;
const SWAPS: usize = 20;
/// Where the packets of the batch come from, and where what lies behind the peers begins: theirs go to its first network.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0));
const BEHIND_PEERS: u32 = 0x0a02_0000;

fn reserve(plane: &mut State<Numbers>) -> Option<(weir_dataplane::api::message::ReservationId, Offer)> {
    match plane.handle_request(Request::Reserve { lanes: 1 }, START).pop() {
        Some(Reply::Reserved { reservation, offer }) => Some((reservation, offer)),
        _ => None,
    }
}

/// Brings sessions up, all with a peer that made the same offer. `None` when one is refused.
fn install(plane: &mut State<Numbers>, engines: &mut [Engine], sessions: u64, peer: &Offer) -> Option<()> {
    for n in 0..sessions {
        let (reservation, offer) = reserve(plane)?;
        let source = Prefix::new(Ipv4Addr::from_bits(10 << 24 | (n as u32) << 8).into(), 24).ok()?;
        let install = Install {
            session: SessionId(n),
            reservation,
            incarnation: offer.incarnation,
            peer: peer.clone(),
            secret: Secret::new([9; 32]),
            initiator: true,
            endpoint: ([192, 0, 2, 1], 4646).into(),
            sources: vec![source],
            datagram_len_max: DATAGRAM_LEN_MAX,
            inner_mtu: 1420,
            rate: None,
            activate: true,
            idle_after_s: 0,
        };
        let done = plane.handle_request(Request::Install(Box::new(install)), START);
        if !matches!(done[..], [Reply::Done]) {
            return None;
        }
        obey(plane, engines);
    }
    Some(())
}

/// Sets routes to the sessions in turn; `shift` makes one set differ from another. The change itself is left to be polled.
fn set_routes(plane: &mut State<Numbers>, shift: u32) -> Option<()> {
    let route = |i: u32| {
        let network = Ipv4Addr::from_bits(BEHIND_PEERS + (i << 6));
        let session = SessionId(u64::from(i + shift) % SESSIONS[0]);
        Some(Route { prefix: Prefix::new(network.into(), 26).ok()?, target: Target::Session(session) })
    };
    let mut routes: Vec<_> = (0..ROUTES - 1).map(route).collect::<Option<_>>()?;
    routes.push(Route { prefix: Prefix::new(LOCAL, 16).ok()?, target: Target::Local });
    for part in routes.chunks(ROUTES_PER_MESSAGE) {
        plane.handle_request(Request::StageRoutes(part.to_vec()), START);
    }
    let done = plane.handle_request(Request::CommitRoutes, START);
    matches!(done[..], [Reply::Done]).then_some(())
}

/// Megabytes and the longest stall in microseconds.
fn measure() -> Option<(f64, f64)> {
    let peer = reserve(&mut plane(200, 1))?.1;
    let before = resident_bytes();
    let mut planes = vec![];
    for (number, sessions) in (1..).zip(SESSIONS) {
        let (mut plane, mut engines) = (plane(number, 1), [Engine::new(0, 1, Counters::new())]);
        install(&mut plane, &mut engines, sessions, &peer)?;
        planes.push((plane, engines));
    }
    let (plane, engines) = planes.first_mut()?;
    set_routes(plane, 0)?;
    obey(plane, engines);
    let megabytes = resident_bytes().saturating_sub(before) as f64 / 1e6;

    let engine = &mut engines[0];
    let mut lan = Frames(vec![(packet(64), RxMeta::default()); BURST_LEN]);
    let mut longest = Duration::ZERO;
    for swap in 0..SWAPS {
        set_routes(plane, swap as u32 + 1)?;
        while let Some(effect) = plane.poll_effect() {
            let Effect::Worker(_, command) = effect else { continue };
            let (mut wan, mut errors) = (Sink::new(false), Sink::new(false));
            let start = Instant::now();
            engine.command(command, START);
            engine.encapsulate(START, &mut lan, &mut wan, &mut errors);
            longest = longest.max(start.elapsed());
            if wan.frames == 0 {
                return None;
            }
        }
    }
    Some((megabytes, longest.as_secs_f64() * 1e6))
}

/// Both figures; not numbers when something was refused.
pub(super) fn figures() -> Vec<Figure> {
    let (megabytes, stall) = measure().unwrap_or((f64::NAN, f64::NAN));
    let figure = |what: &str, unit, value, limit| Figure {
        what: what.to_owned(),
        unit,
        median: value,
        least: value,
        most: value,
        target: Some(Limit { value: limit, at_least: false }),
    };
    vec![
        figure("10,000 sessions with one lane each way, 100,000 routes", "MB", megabytes, 100.0),
        figure("a batch of 64 with a swap of 100,000 routes before it, longest of 20", "µs", stall, 1000.0),
    ]
}
