//! Gateways, wires and packets for the facts beside this file.
//!
//! Gateway `n` owns 10.n.0.0/16 and fd00:n::/32, has the addresses 10.n.0.1 and fd00:n::1, is worker `n`, and knows peer `m` in slot `m`.

use std::sync::Arc;
use std::time::Duration;

use crate::api::Prefix;
use crate::api::message::{Incarnation, RateLimit, Secret, SessionId};
use crate::engine::aead::Algorithm;
use crate::engine::block::Reassembly;
use crate::engine::bundle::PayloadLen;
use crate::engine::class::Dscp;
use crate::engine::inner::testing::{ipv4, ipv6, udp};
use crate::engine::keys::{Context, Direction, LaneSecret, Side};
use crate::engine::lane::{Limits, OpenLane, SealLane};
use crate::engine::limit::Limiter;
use crate::engine::lpm::Lpm;
use crate::engine::offload::Segments;
use crate::engine::prefix_set::PrefixSet;
use crate::engine::*;

/// The time at which everything begins: not zero, so that what is early and what is unset differ.
pub(super) const START: Time = Time::from_nanos(1_000_000_000_000);
pub(super) const EXCHANGE: u8 = 1;

/// Frames that were committed, and how many more may be.
pub(super) struct Sink {
    pub(super) room: usize,
    /// Bytes of the longest frame that it takes.
    pub(super) slot_len: usize,
    pub(super) offloads: bool,
    pub(super) frames: Vec<(Vec<u8>, TxMeta)>,
    pub(super) slot: Vec<u8>,
}

impl Sink {
    pub(super) fn with_room(room: usize) -> Self {
        Self { room, slot_len: 69_000, offloads: false, frames: Vec::new(), slot: vec![0; 70_000] }
    }

    pub(super) fn new() -> Self {
        Self::with_room(usize::MAX)
    }

    /// One that takes superpackets.
    pub(super) fn joining() -> Self {
        Self { offloads: true, ..Self::new() }
    }

    /// Each packet, superpackets cut apart as they ask for.
    pub(super) fn packets(&self) -> Vec<Vec<u8>> {
        let cut = |(bytes, meta): &(Vec<u8>, TxMeta)| {
            let segments = Segments::new(bytes, &Inner::parse(bytes).unwrap(), meta.offload).unwrap();
            let lay = |k| {
                let mut packet = vec![0xaa; segments.len(k)];
                segments.lay(bytes, k, 0, &mut packet);
                packet
            };
            (0..segments.count()).map(lay).collect::<Vec<_>>()
        };
        self.frames.iter().flat_map(cut).collect()
    }

    /// The bytes of each frame.
    pub(super) fn bytes(&self) -> Vec<Vec<u8>> {
        self.frames.iter().map(|(bytes, _)| bytes.clone()).collect()
    }

    /// Each datagram, trains cut apart.
    pub(super) fn datagrams(&self) -> Vec<Vec<u8>> {
        let cut = |(bytes, meta): &(Vec<u8>, TxMeta)| {
            let segment = if meta.segment == 0 { bytes.len() } else { usize::from(meta.segment) };
            bytes.chunks(segment).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        self.frames.iter().flat_map(cut).collect()
    }
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.room == 0 || len > self.slot_len {
            return None;
        }
        // A slot may be longer than asked for, and holds what was there before.
        self.slot.fill(0xaa);
        Some(&mut self.slot[..len + 7])
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.room -= 1;
        self.frames.push((self.slot[..len].to_vec(), meta));
    }

    fn takes_offloads(&self) -> bool {
        self.offloads
    }
}

/// Frames to be received.
pub(super) struct Burst(pub(super) Vec<(Vec<u8>, RxMeta)>);

impl Burst {
    pub(super) fn of(frames: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(frames.into_iter().map(|bytes| (bytes, RxMeta::default())).collect())
    }

    /// What another gateway's sink took, trains still whole and of the same class.
    pub(super) fn trains(sink: Sink) -> Self {
        let received = |(bytes, meta): (Vec<u8>, TxMeta)| {
            (bytes, RxMeta { segment: meta.segment, class: meta.class, ..RxMeta::default() })
        };
        Self(sink.frames.into_iter().map(received).collect())
    }
}

impl RxBurst for Burst {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.0[i];
        (bytes, *meta)
    }
}

/// What two gateways have agreed on.
#[derive(Clone, Copy)]
pub(super) struct Link<'a> {
    pub(super) exchange: u8,
    pub(super) datagram_len_max: u16,
    pub(super) inner_mtu: u16,
    pub(super) limits: Limits,
    pub(super) now: Time,
    /// Networks whose packets the peer may send, besides its own.
    pub(super) behind: &'a [u8],
    pub(super) rate: Option<RateLimit>,
}

impl Default for Link<'_> {
    fn default() -> Self {
        Self {
            exchange: EXCHANGE,
            datagram_len_max: 1472,
            inner_mtu: 1400,
            limits: Limits::default(),
            now: START,
            behind: &[],
            rate: None,
        }
    }
}

impl Link<'_> {
    /// The lane from one gateway to another: the same on both.
    fn secret(&self, from: u8, to: u8) -> LaneSecret {
        let side = |n: u8| Side { incarnation: Incarnation(n.into()), salt: [n; 16] };
        let (algorithm, ours) = (Algorithm::for_this_cpu(), from < to);
        let context = Context::new(session_id(from, to), side(from), side(to), ours, algorithm);
        LaneSecret::derive(&Secret::new([self.exchange; 32]), &context, Direction::sealed_by(ours), 0)
    }

    pub(super) fn seal_lane(&self, from: u8, to: u8) -> SealLane {
        SealLane::new(&self.secret(from, to), 0, index(to, from, self.exchange), self.now, self.limits)
    }

    pub(super) fn open_lane(&self, from: u8, to: u8) -> OpenLane {
        OpenLane::new(&self.secret(from, to), 0, index(to, from, self.exchange), self.now, self.limits)
    }
}

pub(super) fn session_id(n: u8, m: u8) -> SessionId {
    SessionId(u64::from(n.min(m)) << 8 | u64::from(n.max(m)))
}

/// The index that gateway `at` gave out for the lane from `from`.
pub(super) fn index(at: u8, from: u8, exchange: u8) -> ReceiverIndex {
    ReceiverIndex::new(at, u16::from(from) + 64 * u16::from(exchange % 32), u16::from(exchange))
}

pub(super) fn slot(m: u8) -> SessionSlot {
    SessionSlot(m.into())
}

pub(super) fn endpoint(m: u8) -> std::net::SocketAddr {
    ([192, 0, 2, m], 4646).into()
}

/// Both prefixes of network `n`.
pub(super) fn prefixes(n: u8) -> [Prefix; 2] {
    [format!("10.{n}.0.0/16"), format!("fd00:{n}::/32")].map(|text| text.parse().unwrap())
}

pub(super) struct Gateway {
    pub(super) n: u8,
    pub(super) engine: Engine,
    /// For the snapshots to come.
    pub(super) dscp: Dscp,
    reader: counters::CountersReader,
    seen: counters::Snapshot,
}

impl Gateway {
    /// A gateway that routes its own prefixes to the local side and those of `peers` to them.
    pub(super) fn new(n: u8, peers: &[u8]) -> Self {
        let counters = Counters::new();
        let reader = counters.reader();
        let engine = Engine::new(n, 0, counters);
        let mut gateway = Self { n, engine, dscp: Dscp::Clear, reader, seen: counters::Snapshot::default() };
        let hops: Vec<_> = peers.iter().map(|&m| (m, NextHop::Session(slot(m)))).collect();
        gateway.route(&hops, false);
        assert!(matches!(gateway.engine.poll_event(), Some(Event::Retired(_))));
        gateway
    }

    pub(super) fn route(&mut self, hops: &[(u8, NextHop)], transit: bool) {
        let snapshot = self.snapshot(hops, transit);
        self.engine.command(Command::Routes(Arc::new(snapshot)), START);
    }

    pub(super) fn snapshot(&self, hops: &[(u8, NextHop)], transit: bool) -> Snapshot {
        let all = hops.iter().copied().chain([(self.n, NextHop::Local)]);
        let routes = Lpm::build(all.flat_map(|(m, hop)| prefixes(m).map(|prefix| (prefix, hop)))).unwrap();
        let (gateway_v4, gateway_v6) = (format!("10.{}.0.1", self.n), format!("fd00:{}::1", self.n));
        Snapshot {
            epoch: 1,
            routes,
            gateway_v4: Some(gateway_v4.parse().unwrap()),
            gateway_v6: Some(gateway_v6.parse().unwrap()),
            transit,
            dscp: self.dscp,
        }
    }

    /// The session with gateway `m` and its open lane. Its keys have the number of their exchange.
    #[allow(clippy::vec_box, reason = "see Command::Install")]
    fn made(&self, m: u8, link: &Link<'_>) -> (Box<Session>, Vec<Box<OpenEnd>>) {
        let sources: Vec<_> = [m].iter().chain(link.behind).flat_map(|&n| prefixes(n)).collect();
        let mut session = Session::new(
            session_id(self.n, m),
            endpoint(m),
            PrefixSet::new(&sources).unwrap(),
            PayloadLen::new(link.datagram_len_max).unwrap(),
            link.inner_mtu,
            link.seal_lane(self.n, m),
        );
        session.keys = KeysId(link.exchange.into());
        session.limiter = link.rate.map(|rate| Arc::new(Limiter::new(rate)));
        let end = OpenEnd::new(slot(m), session.keys, link.open_lane(m, self.n), Reassembly::new());
        (Box::new(session), vec![Box::new(end)])
    }

    /// Brings the session with gateway `m` up.
    pub(super) fn install(&mut self, m: u8, link: &Link<'_>) {
        let (session, lanes) = self.made(m, link);
        self.engine.command(Command::Install { slot: slot(m), session, lanes }, link.now);
    }

    /// Gives the session with gateway `m` keys that wait for their activation.
    pub(super) fn prepare(&mut self, m: u8, link: &Link<'_>) {
        let (session, lanes) = self.made(m, link);
        self.engine.command(Command::Prepare { slot: slot(m), session, lanes }, link.now);
    }

    /// Has a packet wait in vain for the session with gateway `m`, so that the next ones are refused.
    pub(super) fn give_up(&mut self, m: u8) {
        self.encapsulate(START, Burst::of([v4(self.n, m, 60, 0)]));
        self.engine.expire(START.plus(held::HOLD_LIFETIME + Duration::from_nanos(wheel::TICK_NS)));
        assert!(self.moved().contains(&("hold_expired", 1)));
        self.events();
    }

    /// What a burst from the local side leads to: frames for WAN and for the local side.
    pub(super) fn encapsulate(&mut self, now: Time, mut burst: Burst) -> (Sink, Sink) {
        let (mut wan, mut lan) = (Sink::new(), Sink::new());
        self.engine.encapsulate(now, &mut burst, &mut wan, &mut lan);
        (wan, lan)
    }

    /// What a burst of datagrams leads to: frames for the local side and for WAN.
    pub(super) fn decapsulate(&mut self, now: Time, mut burst: Burst) -> (Sink, Sink) {
        let (mut wan, mut lan) = (Sink::new(), Sink::new());
        self.engine.decapsulate(now, &mut burst, &mut lan, &mut wan);
        (lan, wan)
    }

    /// As [`Self::decapsulate`], with a local side that takes superpackets.
    pub(super) fn join(&mut self, now: Time, mut burst: Burst) -> Sink {
        let (mut wan, mut lan) = (Sink::new(), Sink::joining());
        self.engine.decapsulate(now, &mut burst, &mut lan, &mut wan);
        assert_eq!(wan.frames, []);
        lan
    }

    pub(super) fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.engine.poll_event()).map(|event| format!("{event:?}")).collect()
    }

    /// Every counter that has moved since the last call, and by how much.
    pub(super) fn moved(&mut self) -> Vec<(&'static str, u64)> {
        let before = std::mem::replace(&mut self.seen, self.reader.snapshot());
        let metrics = Metric::ALL.iter().map(|&m| (m.name(), self.seen.metric(m) - before.metric(m)));
        let drops = DropReason::ALL.iter().map(|&r| (r.name(), self.seen.dropped(r) - before.dropped(r)));
        metrics.chain(drops).filter(|(_, n)| *n != 0).collect()
    }

    /// Drops of all reasons since the last call.
    pub(super) fn dropped(&mut self) -> u64 {
        let names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        self.moved().into_iter().filter(|(name, _)| names.contains(name)).map(|(_, n)| n).sum()
    }
}

/// Gateways 1 and 2, connected.
pub(super) fn pair(link: &Link<'_>) -> (Gateway, Gateway) {
    let (mut one, mut two) = (Gateway::new(1, &[2]), Gateway::new(2, &[1]));
    one.install(2, link);
    two.install(1, link);
    (one, two)
}

/// A peer that has the keys and none of the manners.
pub(super) struct Attacker {
    seal: SealLane,
    open: OpenLane,
}

impl Attacker {
    /// Peer `m` of the gateway.
    pub(super) fn against(gateway: &mut Gateway, m: u8, link: &Link<'_>) -> Self {
        gateway.install(m, link);
        Self { seal: link.seal_lane(m, gateway.n), open: link.open_lane(gateway.n, m) }
    }

    pub(super) fn sealed(&mut self, plaintext: &[u8], now: Time) -> Vec<u8> {
        let mut datagram = vec![0; HEADER_LEN];
        datagram.extend(plaintext);
        datagram.extend([0; TAG_LEN]);
        self.seal.seal(&mut datagram, now).unwrap();
        datagram
    }

    /// The plaintext of what the gateway sent.
    pub(super) fn opened(&mut self, mut datagram: Vec<u8>, now: Time) -> Vec<u8> {
        let header = DataHeader::parse(&datagram).unwrap();
        self.open.open(&header, &mut datagram, now).unwrap().to_vec()
    }
}

pub(super) use crate::engine::inner::Inner;
pub(super) use crate::engine::port::{RxMeta, TxMeta};
pub(super) use crate::engine::snapshot::NextHop;
pub(super) use weir_abi::wire::{HEADER_LEN, TAG_LEN};

/// UDP over IPv4 from host 5 of one network to host 9 of another, `len` bytes in all, not to be confused with one of another `id`.
pub(super) fn v4(from: u8, to: u8, len: usize, id: usize) -> Vec<u8> {
    ipv4(&format!("10.{from}.0.5"), &format!("10.{to}.0.9"), 17, 0, &filler(len - 20, id))
}

/// As [`v4`], over IPv6.
pub(super) fn v6(from: u8, to: u8, len: usize, id: usize) -> Vec<u8> {
    ipv6(&format!("fd00:{from}::5"), &format!("fd00:{to}::9"), 17, &filler(len - 40, id))
}

fn filler(len: usize, id: usize) -> Vec<u8> {
    let mut bytes = udp(4000, 53, &[]);
    bytes.extend((0..len).map(|i| (i.wrapping_mul(131) ^ id.wrapping_mul(0x9e37) >> (i % 9)) as u8));
    bytes.extend(id.to_be_bytes());
    bytes.rotate_right(8);
    bytes.truncate(len);
    bytes
}

/// A packet with the "don't fragment" flag.
pub(super) fn dont_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x40;
    inner::testing::fix_checksum(&mut packet);
    packet
}

/// A packet with another TTL or hop limit.
pub(super) fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[8] = ttl;
        inner::testing::fix_checksum(&mut packet);
    } else {
        packet[7] = ttl;
    }
    packet
}

/// Type, code and the 32 bits behind the checksum of an ICMP error from gateway `n` to host 5 of network `to`; checks everything else:
/// addresses, both checksums, and that it quotes the front of `offending`.
pub(super) fn icmp_error(n: u8, to: u8, packet: &[u8], offending: &[u8]) -> (u8, u8, u32) {
    let inner = Inner::parse(packet).unwrap();
    let (source, destination, at) = if packet[0] >> 4 == 4 {
        (format!("10.{n}.0.1"), format!("10.{to}.0.5"), 20)
    } else {
        (format!("fd00:{n}::1"), format!("fd00:{to}::5"), 40)
    };
    assert_eq!((inner.source.to_string(), inner.destination.to_string()), (source, destination));
    let message = &packet[at..];
    let pseudo = if at == 20 { vec![] } else { [&packet[8..40], &packet[4..6], &[0, 58]].concat() };
    assert_eq!(icmp::checksum(&[&pseudo, message].concat()), 0);
    let quote = &message[8..];
    assert_eq!(quote, &offending[..quote.len()]);
    assert_eq!(packet.len(), (at + 8 + offending.len()).min(if at == 20 { 576 } else { 1280 }));
    (message[0], message[1], u32::from_be_bytes(message[4..8].try_into().unwrap()))
}

/// A packet with another traffic class.
pub(super) fn with_class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
        inner::testing::fix_checksum(&mut packet);
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = packet[1] & 0x0f | class << 4;
    }
    packet
}
