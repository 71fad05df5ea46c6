//! Planes, engines and frames without I/O: what the measurements of the engine share.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;

use weir_dataplane::api::message::{Incarnation, Install, Reply, Request, Route, Secret, SessionId, Target};
use weir_dataplane::engine::Engine;
use weir_dataplane::engine::aead::Algorithm;
use weir_dataplane::engine::class::Dscp;
use weir_dataplane::engine::counters::Counters;
use weir_dataplane::engine::port::{RxBurst, RxMeta, SUPERPACKET_LEN_MAX, TxMeta, TxSink};
use weir_dataplane::engine::time::Time;
use weir_dataplane::plane::state::{Effect, Fixed, Random, State};

pub(super) const SESSION: SessionId = SessionId(1);
/// The time of everything: nothing here waits.
pub(super) const START: Time = Time::from_nanos(1);
/// Most that a sink keeps at once, bytes: a burst of full packets several times over.
const KEPT_LEN_MAX: usize = 1 << 20;
/// Longest UDP payload of a path of 1500 bytes over IPv4.
pub(super) const DATAGRAM_LEN_MAX: u16 = 1472;

/// Fixed frames, lent as a burst; datagrams are copied back before each use, since opening is in place.
pub(super) struct Frames(pub(super) Vec<(Vec<u8>, RxMeta)>);

impl RxBurst for Frames {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.0[i];
        (bytes, *meta)
    }
}

/// Takes everything, counts it and, when it is to keep it, leaves it where it was written: nothing is copied while the engine is timed.
pub(super) struct Sink {
    memory: Vec<u8>,
    used: usize,
    keeps: bool,
    kept: Vec<(Range<usize>, RxMeta)>,
    /// Frames committed: packets on the local side, trains on the other.
    pub(super) frames: u64,
    /// Datagrams, when the frames are trains.
    pub(super) datagrams: u64,
    /// Bytes of all frames.
    pub(super) bytes: u64,
}

impl Sink {
    pub(super) fn new(keeps: bool) -> Self {
        let memory = vec![0; if keeps { KEPT_LEN_MAX } else { SUPERPACKET_LEN_MAX + 1 }];
        Self { memory, used: 0, keeps, kept: vec![], frames: 0, datagrams: 0, bytes: 0 }
    }

    /// What was kept since the last call, as a burst of its own.
    pub(super) fn take(&mut self) -> Frames {
        self.used = 0;
        Frames(self.kept.drain(..).map(|(range, meta)| (self.memory[range].to_vec(), meta)).collect())
    }
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.memory[self.used..].get_mut(..len)
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.frames += 1;
        self.bytes += len as u64;
        self.datagrams += if meta.segment == 0 { 1 } else { len.div_ceil(meta.segment.into()) as u64 };
        if self.keeps {
            let meta = RxMeta { segment: meta.segment, offload: meta.offload, ..RxMeta::default() };
            self.kept.push((self.used..self.used + len, meta));
            self.used += len;
        }
    }
}

/// Numbers that are the same in every run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.0 >> 33
    }
}

impl Random for Numbers {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = (self.next() >> 16) as u8;
        }
    }
}

pub(super) fn plane(number: u8, workers: u8) -> State<Numbers> {
    let fixed = Fixed {
        incarnation: Incarnation(u64::from(number)),
        workers,
        port: 4646,
        gateway: vec![],
        transit: false,
        dscp: Dscp::Clear,
        has_aes: Algorithm::for_this_cpu() == Algorithm::Aes256Gcm,
        lane_ports: 0,
    };
    State::new(fixed, Numbers(u64::from(number)))
}

/// The engines of two planes with a session between them, as the planes would bring it up.
pub(super) fn pair(workers: u8) -> Option<[Vec<Engine>; 2]> {
    let mut planes = [plane(1, workers), plane(2, workers)];
    let mut reserved = vec![];
    for plane in &mut planes {
        match plane.handle_request(Request::Reserve { lanes: workers }, START).pop() {
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
            datagram_len_max: DATAGRAM_LEN_MAX,
            inner_mtu: 1420,
            rate: None,
            activate: true,
            idle_after_s: 0,
        };
        let routes = vec![
            Route { prefix: network(own)?, target: Target::Local },
            Route { prefix: network(peer)?, target: Target::Session(SESSION) },
        ];
        for request in [Request::Install(Box::new(install)), Request::StageRoutes(routes), Request::CommitRoutes] {
            plane.handle_request(request, START);
        }
    }
    let engines = planes.map(|mut plane| {
        let mut engines: Vec<_> = (0..workers).map(|worker| Engine::new(worker, workers, Counters::new())).collect();
        obey(&mut plane, &mut engines);
        engines
    });
    Some(know_the_path(engines))
}

/// Lets the first side find out that the memory between the two carries whole datagrams, so that the figures are of those.
fn know_the_path([mut ones, mut twos]: [Vec<Engine>; 2]) -> [Vec<Engine>; 2] {
    let mut now = START;
    let [mut wan, mut answers] = [true; 2].map(Sink::new);
    let mut out = Sink::new(false);
    for _ in 0..10 {
        now = now.plus(Duration::from_millis(2));
        let mut lan = Frames(vec![(packet(64), RxMeta::default())]);
        ones[0].encapsulate(now, &mut lan, &mut wan, &mut out);
        ones[0].expire(now);
        ones[0].send_waiting(now, &mut wan);
        hand_out(&mut twos, now, &wan.take(), &mut out, &mut answers);
        hand_out(&mut ones, now, &answers.take(), &mut out, &mut wan);
    }
    [ones, twos]
}

/// Gives each engine a copy of the datagrams; the one that they belong to opens them.
fn hand_out(engines: &mut [Engine], now: Time, datagrams: &Frames, out: &mut Sink, answers: &mut Sink) {
    for engine in engines {
        engine.decapsulate(now, &mut Frames(datagrams.0.clone()), out, answers);
        engine.clear_foreign_runs();
    }
}

/// Has the engines do what their plane orders.
pub(super) fn obey(plane: &mut State<Numbers>, engines: &mut [Engine]) {
    while let Some(effect) = plane.poll_effect() {
        if let Effect::Worker(worker, command) = effect {
            engines[usize::from(worker)].command(command, START);
        }
    }
    for engine in engines {
        while engine.poll_event().is_some() {}
    }
}

/// A UDP-less IPv4 packet (protocol 253, RFC 3692) of `len` bytes from network 1 to network 2, with a right header checksum.
pub(super) fn packet(len: usize) -> Vec<u8> {
    written(Ipv4Addr::new(10, 2, 0, 5), len)
}

/// The same to another IPv4 address; none to another family.
pub(super) fn packet_to(destination: IpAddr, len: usize) -> Option<Vec<u8>> {
    match destination {
        IpAddr::V4(v4) => Some(written(v4, len)),
        IpAddr::V6(_) => None,
    }
}

fn written(destination: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 253]);
    packet[12..16].copy_from_slice(&Ipv4Addr::new(10, 1, 0, 5).octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let checksum = weir_dataplane::engine::icmp::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}
