//! What the engine costs without I/O: from inner packets to sealed trains and back, over plain memory.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use weir_dataplane::api::message::{Incarnation, Install, Reply, Request, Route, Secret, SessionId, Target};
use weir_dataplane::engine::Engine;
use weir_dataplane::engine::aead::Algorithm;
use weir_dataplane::engine::class::Dscp;
use weir_dataplane::engine::counters::Counters;
use weir_dataplane::engine::port::{BURST_LEN, Offload, RxBurst, RxMeta, Segmentation, TxMeta, TxSink};
use weir_dataplane::engine::time::Time;
use weir_dataplane::plane::state::{Effect, Fixed, Random, State};

use super::Subject;

const SESSION: SessionId = SessionId(1);
const BURSTS: usize = 200;
const START: Time = Time::from_nanos(1);

/// Fixed frames, lent as a burst.
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

/// A port of fixed slots that takes everything, superpackets only if it is told to. What was committed last can be received from it, as
/// much as it has slots.
struct Wire {
    slots: Vec<Vec<u8>>,
    frames: Vec<(usize, u16)>,
    takes_offloads: bool,
    bytes: u64,
}

impl Wire {
    fn new(slots: usize) -> Self {
        let slots = vec![vec![0; 65_536]; slots];
        Self { slots, frames: Vec::with_capacity(4096), takes_offloads: false, bytes: 0 }
    }
}

impl TxSink for Wire {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        let next = self.frames.len() % self.slots.len();
        self.slots[next].get_mut(..len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.frames.push((len, meta.segment));
        self.bytes += len as u64;
    }

    fn takes_offloads(&self) -> bool {
        self.takes_offloads
    }
}

impl RxBurst for Wire {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (len, segment) = self.frames[i];
        (&mut self.slots[i][..len], RxMeta { segment, ..RxMeta::default() })
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
    let [mut wan, mut out, mut answers] = std::array::from_fn(|_| Wire::new(8));
    for _ in 0..10 {
        now = now.plus(Duration::from_millis(2));
        for wire in [&mut wan, &mut out, &mut answers] {
            wire.frames.clear();
        }
        one.encapsulate(now, &mut Frames(vec![(packet(64), RxMeta::default())]), &mut wan, &mut out);
        one.expire(now);
        one.send_waiting(now, &mut wan);
        two.decapsulate(now, &mut wan, &mut out, &mut answers);
        one.decapsulate(now, &mut answers, &mut out, &mut wan);
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

/// What the local side hands over in one burst, and what comes out at the other end.
#[derive(Clone, Copy)]
enum Load {
    /// So many packets of so many bytes.
    Packets { burst: usize, len: usize },
    /// One TCP superpacket of so many segments of 1400 bytes, headers included; joined again at the other end.
    Superpacket { segments: usize },
}

/// Bytes of IPv4 and TCP headers.
const TCP_HEADERS: usize = 40;

/// A TCP superpacket from network 1 to network 2, as the kernel hands it over.
fn superpacket(segments: usize) -> (Vec<u8>, RxMeta) {
    let segment = 1400 - TCP_HEADERS;
    let mut packet = packet(TCP_HEADERS + segments * segment);
    packet[9] = 6;
    (packet[32], packet[33]) = (0x50, 0x10);
    packet[10..12].fill(0);
    let checksum = weir_dataplane::engine::icmp::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let cut = Some((Segmentation::Tcp { cwr: false }, segment as u16));
    (packet, RxMeta { offload: Offload { cut, checksum: Some((20, 16)) }, ..RxMeta::default() })
}

/// Both directions of a burst; the time of sealing and of opening one packet, in nanoseconds.
fn round(load: Load) -> (f64, f64) {
    let Some([mut one, mut two]) = pair() else { return (f64::NAN, f64::NAN) };
    let (frames, burst, joins) = match load {
        Load::Packets { burst, len } => (vec![(packet(len), RxMeta::default()); burst], burst, false),
        Load::Superpacket { segments } => (vec![superpacket(segments)], segments, true),
    };
    let expected: usize = frames.iter().map(|(bytes, _)| bytes.len()).sum();
    let mut lan = Frames(frames);
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    let [mut wan, mut out, mut other] = [BURST_LEN, 1, 1].map(Wire::new);
    out.takes_offloads = joins;
    for _ in 0..BURSTS {
        wan.frames.clear();
        let start = Instant::now();
        one.encapsulate(START, &mut lan, &mut wan, &mut other);
        sealing += start.elapsed();
        out.frames.clear();
        let start = Instant::now();
        two.decapsulate(START, &mut wan, &mut out, &mut other);
        opening += start.elapsed();
    }
    // A figure for packets that did not arrive would be no figure, nor one for superpackets that came in parts.
    if out.bytes != (BURSTS * expected) as u64 {
        return (f64::NAN, f64::NAN);
    }
    let packets = (BURSTS * burst) as f64;
    (sealing.as_nanos() as f64 / packets, opening.as_nanos() as f64 / packets)
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    let packets = [(1, 64), (BURST_LEN, 64), (BURST_LEN, 1400)]
        .map(|(burst, len)| (format!("a packet of {len} B in a burst of {burst}"), Load::Packets { burst, len }));
    let segments = 46;
    let superpacket = (format!("a packet of 1400 B in a superpacket of {segments}"), Load::Superpacket { segments });
    for (what, load) in packets.into_iter().chain([superpacket]) {
        subjects.push(Subject::measured(format!("encapsulate {what}"), move || round(load).0));
        subjects.push(Subject::measured(format!("decapsulate {what}"), move || round(load).1));
    }
    subjects
}
