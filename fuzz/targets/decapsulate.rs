//! An engine and a peer that has the keys and none of the manners.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use weir_abi::wire::{HEADER_LEN, ReceiverIndex, TAG_LEN};
use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::{Incarnation, Secret, SessionId};
use weir_dataplane::api::policy::{PolicyRule, PortRange, Protocol};
use weir_dataplane::engine::aead::Algorithm;
use weir_dataplane::engine::block::Reassembly;
use weir_dataplane::engine::bundle::PayloadLen;
use weir_dataplane::engine::class::Dscp;
use weir_dataplane::engine::counters::Counters;
use weir_dataplane::engine::icmp::checksum;
use weir_dataplane::engine::inner::Inner;
use weir_dataplane::engine::keys::{Context, Direction, LaneSecret, Side};
use weir_dataplane::engine::lane::{DATAGRAM_CHARGE_MIN, GENERATION_LAST, Limits, OpenLane, SealLane};
use weir_dataplane::engine::lpm::Lpm;
use weir_dataplane::engine::policy::Policy;
use weir_dataplane::engine::policy::flows::{Flows, HashKeys};
use weir_dataplane::engine::port::{RxBurst, RxMeta, TxMeta, TxSink};
use weir_dataplane::engine::prefix_set::PrefixSet;
use weir_dataplane::engine::session::{KeysId, OpenEnd, Session};
use weir_dataplane::engine::snapshot::{NextHop, SessionSlot, Snapshot};
use weir_dataplane::engine::time::Time;
use weir_dataplane::engine::{Command, Engine};

const PEER: SessionSlot = SessionSlot(1);
const OTHER: SessionSlot = SessionSlot(3);
const LANE: ReceiverIndex = ReceiverIndex::new(0, 1, 7);

struct Sink {
    room: usize,
    bytes: usize,
    slot: Box<[u8]>,
    is_lan: bool,
}

impl Sink {
    fn new(room: usize, is_lan: bool) -> Self {
        Self { room, bytes: 0, slot: vec![0; 1 << 16].into(), is_lan }
    }
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        (self.room > 0).then(|| &mut self.slot[..len])
    }

    fn commit(&mut self, len: usize, _: TxMeta) {
        self.room -= 1;
        self.bytes += len;
        if self.is_lan {
            let inner = Inner::parse(&self.slot[..len]).expect("only packets are delivered");
            assert!(prefixes(1).iter().any(|prefix| prefix.contains(inner.source)));
            assert!(prefixes(2).iter().any(|prefix| prefix.contains(inner.destination)));
        }
    }
}

struct Frame(Vec<u8>, RxMeta);

impl RxBurst for Frame {
    fn len(&self) -> usize {
        1
    }

    fn frame(&mut self, _: usize) -> (&mut [u8], RxMeta) {
        (&mut self.0, self.1)
    }
}

fn prefixes(n: u8) -> [Prefix; 2] {
    [format!("10.{n}.0.0/16"), format!("fd00:{n}::/32")].map(|text| text.parse().expect("a prefix"))
}

fn secret(from_peer: bool) -> LaneSecret {
    let side = |n| Side { incarnation: Incarnation(n), salt: [0; 16] };
    let context = Context::new(SessionId(1), side(1), side(2), true, Algorithm::for_this_cpu());
    LaneSecret::derive(&Secret::new([1; 32]), &context, Direction::sealed_by(from_peer), 0)
}

fn session(slot: SessionSlot) -> Box<Session> {
    let sources = PrefixSet::new(&prefixes(slot.0 as u8)).expect("two prefixes");
    let payload = PayloadLen::new(1472).expect("an ordinary path");
    let seal = SealLane::new(&secret(false), 0, LANE, Time::ZERO, Limits::default());
    Box::new(Session::new(SessionId(slot.0.into()), ([192, 0, 2, 1], 1).into(), sources, payload, 1400, seal))
}

fn engine() -> Engine {
    let mut engine = Engine::new(0, 0, Counters::new());
    let hops = [
        (1, NextHop::Session(PEER)),
        (2, NextHop::Local),
        (3, NextHop::Session(OTHER)),
        (4, NextHop::Session(SessionSlot(77))),
    ];
    let routes = hops.iter().flat_map(|&(n, hop)| prefixes(n).map(|prefix| (prefix, hop)));
    let snapshot = Snapshot {
        epoch: 1,
        routes: Lpm::build(routes).expect("eight routes"),
        gateway_v4: "10.2.0.1".parse().ok(),
        gateway_v6: "fd00:2::1".parse().ok(),
        transit: true,
        dscp: Dscp::Copy,
    };
    engine.command(Command::Routes(Arc::new(snapshot)), Time::ZERO);
    engine.command(Command::Install { slot: OTHER, session: session(OTHER), lanes: vec![] }, Time::ZERO);
    engine
}

/// A policy that lets network 1 reach some ports of network 2, with places for few flows, so that they run out.
fn policy() -> Arc<Policy> {
    let rule = |protocol, last| PolicyRule {
        sources: prefixes(1).into(),
        destinations: prefixes(2).into(),
        protocol,
        ports: vec![PortRange { first: 0, last }],
        allow: true,
    };
    let keys =
        HashKeys(std::array::from_fn(|i| (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)));
    let flows = Arc::new(Flows::new(16, keys));
    let rules = [rule(Protocol::Tcp, 1023), rule(Protocol::Udp, u16::MAX)];
    Arc::new(Policy::new(&rules, false, 1, flows, 1).expect("two rules"))
}

/// Makes a packet of the bytes, if they begin like one, that the peer may send: what is left to chance is where to, and all the rest.
fn mend(packet: &mut [u8]) {
    let len = packet.len() as u16;
    match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 20 => {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[12..14].copy_from_slice(&[10, 1]);
            (packet[16], packet[17]) = (10, packet[17] % 6);
            packet[10..12].fill(0);
            let header_len = (usize::from(packet[0] & 0x0f) * 4).clamp(20, packet.len());
            let sum = checksum(&packet[..header_len]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if len >= 40 => {
            packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            packet[8..12].copy_from_slice(&[0xfd, 0, 0, 1]);
            let network = packet[27] % 6;
            packet[24..28].copy_from_slice(&[0xfd, 0, 0, network]);
        }
        _ => {}
    }
}

thread_local! {
    // An engine takes a megabyte; each input gets fresh sessions in the same one.
    static ENGINE: RefCell<Engine> = RefCell::new(engine());
}

// The input is a row of datagrams: flags, a length, bytes.
fuzz_target!(|data: &[u8]| {
    ENGINE.with_borrow_mut(|engine| {
        let limits = Limits {
            generation_bytes: if data.len() % 2 == 0 { DATAGRAM_CHARGE_MIN * 2 } else { u64::MAX },
            generation_last: GENERATION_LAST,
            ..Limits::default()
        };
        engine.command(Command::Remove(PEER), Time::ZERO);
        let policy = (data.len() % 4 < 2).then(policy);
        engine.command(Command::Policy(policy.clone()), Time::ZERO);
        let mut now = Time::from_nanos(1_000_000_000);
        let mut peer = SealLane::new(&secret(true), 0, LANE, now, limits);
        let lane = OpenLane::new(&secret(true), 0, LANE, now, limits);
        let end = OpenEnd::new(PEER, KeysId(0), lane, Reassembly::new());
        let install = Command::Install { slot: PEER, session: session(PEER), lanes: vec![Box::new(end)] };
        engine.command(install, now);
        let mut rest = data;
        while let [flags, high, low, bytes @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low]) % 4096).min(bytes.len());
            let (plaintext, after) = bytes.split_at(len);
            rest = after;
            let mut plaintext = plaintext.to_vec();
            if flags & 64 != 0 {
                mend(&mut plaintext);
            }
            let mut datagram = vec![0; HEADER_LEN];
            datagram.extend(&plaintext);
            datagram.extend([0; TAG_LEN]);
            if flags & 1 != 0 || peer.seal(&mut datagram, now).is_err() {
                datagram = plaintext;
            }
            if flags & 2 != 0 {
                now = now.plus(Duration::from_millis(300));
                engine.expire(now);
            }
            if flags & 4 != 0 {
                // Lost on the way.
                continue;
            }
            if flags & 8 != 0 {
                engine.command(Command::Echo(PEER), now);
            }
            let room = if flags & 16 != 0 { 0 } else { usize::MAX };
            let (mut lan, mut wan) = (Sink::new(room, true), Sink::new(room, false));
            let sent = datagram.len();
            let segment = if flags & 32 != 0 { 100 } else { 0 };
            let mut frame = Frame(datagram, RxMeta { segment, ..RxMeta::default() });
            engine.decapsulate(now, &mut frame, &mut lan, &mut wan);
            // The last one is the default, which refuses.
            let allowed = policy.as_ref().map_or(1, |policy| policy.hits().iter().rev().skip(1).sum::<u64>());
            assert!(lan.bytes == 0 || allowed > 0, "delivered, and nothing allowed it");
            assert!(lan.bytes + wan.bytes <= 4 * sent + 4096 + 200, "{sent} bytes made {}", lan.bytes + wan.bytes);
            while engine.poll_event().is_some() {}
        }
    });
});
