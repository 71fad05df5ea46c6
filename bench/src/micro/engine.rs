//! What the engine costs without I/O: from inner packets to sealed trains and back, over plain memory.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use weir_dataplane::api::message::{Incarnation, Install, Reply, Request, Route, Secret, SessionId, Target};
use weir_dataplane::engine::Engine;
use weir_dataplane::engine::aead::Algorithm;
use weir_dataplane::engine::class::Dscp;
use weir_dataplane::engine::counters::Counters;
use weir_dataplane::engine::port::{BURST_LEN, RxBurst, RxMeta, TxMeta, TxSink};
use weir_dataplane::engine::time::Time;
use weir_dataplane::plane::state::{Effect, Fixed, Random, State};

use super::Subject;

const SESSION: SessionId = SessionId(1);
const BURSTS: usize = 200;
const START: Time = Time::from_nanos(1);

/// Fixed frames, lent as a burst; datagrams are copied back before each use, since opening is in place.
struct Frames(Vec<(Vec<u8>, RxMeta)>);

impl RxBurst for Frames {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.0[i];
        (bytes, *meta)
    }
}

/// Takes everything; keeps what it is asked to keep.
struct Sink {
    slot: Vec<u8>,
    kept: Option<Vec<(Vec<u8>, RxMeta)>>,
    packets: u64,
}

impl Sink {
    fn new(keep: bool) -> Self {
        Self { slot: vec![0; 65_536], kept: keep.then(Vec::new), packets: 0 }
    }
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.slot.get_mut(..len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.packets += 1;
        if let Some(kept) = &mut self.kept {
            kept.push((self.slot[..len].to_vec(), RxMeta { segment: meta.segment, ..RxMeta::default() }));
        }
    }
}

struct Numbers(u64);

impl Random for Numbers {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            *byte = (self.0 >> 56) as u8;
        }
    }
}

fn plane(number: u8) -> State<Numbers> {
    let fixed = Fixed {
        incarnation: Incarnation(u64::from(number)),
        workers: 1,
        port: 4646,
        gateway: vec![],
        transit: false,
        dscp: Dscp::Clear,
        has_aes: Algorithm::for_this_cpu() == Algorithm::Aes256Gcm,
    };
    State::new(fixed, Numbers(u64::from(number)))
}

/// Two engines with a session, as two planes would bring it up.
fn pair() -> Option<[Engine; 2]> {
    let mut planes = [plane(1), plane(2)];
    let mut reserved = vec![];
    for plane in &mut planes {
        match plane.handle_request(Request::Reserve { lanes: 1 }, START).pop() {
            Some(Reply::Reserved { reservation, offer }) => reserved.push((reservation, offer)),
            _ => return None,
        }
    }
    let network = |number: usize| format!("10.{}.0.0/16", number + 1).parse().ok();
    for (own, plane) in planes.iter_mut().enumerate() {
        let peer = 1 - own;
        let install = Install {
            session: SESSION,
            reservation: reserved[own].0,
            incarnation: reserved[own].1.incarnation,
            peer: reserved[peer].1.clone(),
            secret: Secret::new([9; 32]),
            initiator: own == 0,
            endpoint: ([192, 0, 2, 1], 4646).into(),
            sources: vec![network(peer)?],
            datagram_len_max: 1472,
            inner_mtu: 1420,
            rate: None,
        };
        let routes = vec![
            Route { prefix: network(own)?, target: Target::Local },
            Route { prefix: network(peer)?, target: Target::Session(SESSION) },
        ];
        for request in [Request::Install(Box::new(install)), Request::StageRoutes(routes), Request::CommitRoutes] {
            plane.handle_request(request, START);
        }
    }
    Some(planes.map(|mut plane| {
        let mut engine = Engine::new(0, 1, Counters::new());
        while let Some(effect) = plane.poll_effect() {
            if let Effect::Worker(_, command) = effect {
                engine.command(command, START);
            }
        }
        while engine.poll_event().is_some() {}
        engine
    }))
    .map(know_the_path)
}

/// Lets the first engine find out that the memory between the two carries whole datagrams, so that the figures are of those.
fn know_the_path([mut one, mut two]: [Engine; 2]) -> [Engine; 2] {
    let mut now = START;
    for _ in 0..10 {
        now = now.plus(Duration::from_millis(2));
        let (mut wan, mut out, mut answers) = (Sink::new(true), Sink::new(false), Sink::new(true));
        one.encapsulate(now, &mut Frames(vec![(packet(64), RxMeta::default())]), &mut wan, &mut out);
        one.expire(now);
        one.send_waiting(now, &mut wan);
        two.decapsulate(now, &mut Frames(wan.kept.take().unwrap_or_default()), &mut out, &mut answers);
        one.decapsulate(now, &mut Frames(answers.kept.take().unwrap_or_default()), &mut out, &mut Sink::new(false));
    }
    [one, two]
}

/// A UDP-less IPv4 packet (protocol 253, RFC 3692) of `len` bytes from network 1 to network 2, with a right header checksum.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 253]);
    packet[12..16].copy_from_slice(&Ipv4Addr::new(10, 1, 0, 5).octets());
    packet[16..20].copy_from_slice(&Ipv4Addr::new(10, 2, 0, 5).octets());
    let checksum = weir_dataplane::engine::icmp::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Both directions of a burst of `burst` packets of `len` bytes; the time of sealing and of opening one packet, in nanoseconds.
fn round(burst: usize, len: usize) -> (f64, f64) {
    let Some([mut one, mut two]) = pair() else { return (f64::NAN, f64::NAN) };
    let mut lan = Frames(vec![(packet(len), RxMeta::default()); burst]);
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    let mut delivered = 0;
    for _ in 0..BURSTS {
        let (mut wan, mut errors) = (Sink::new(true), Sink::new(false));
        let start = Instant::now();
        one.encapsulate(START, &mut lan, &mut wan, &mut errors);
        sealing += start.elapsed();
        let mut datagrams = Frames(wan.kept.take().unwrap_or_default());
        let (mut out, mut answers) = (Sink::new(false), Sink::new(false));
        let start = Instant::now();
        two.decapsulate(START, &mut datagrams, &mut out, &mut answers);
        opening += start.elapsed();
        delivered += out.packets;
    }
    // A figure for packets that did not arrive would be no figure.
    if delivered != (BURSTS * burst) as u64 {
        return (f64::NAN, f64::NAN);
    }
    let packets = (BURSTS * burst) as f64;
    (sealing.as_nanos() as f64 / packets, opening.as_nanos() as f64 / packets)
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    for (burst, len) in [(1, 64), (BURST_LEN, 64), (BURST_LEN, 1400)] {
        let what = format!("a packet of {len} B in a burst of {burst}");
        subjects.push(Subject::measured(format!("encapsulate {what}"), move || round(burst, len).0));
        subjects.push(Subject::measured(format!("decapsulate {what}"), move || round(burst, len).1));
    }
    subjects
}
