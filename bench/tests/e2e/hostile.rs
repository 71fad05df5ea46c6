//! What is refused, each under its own reason.
//!
//! ```text
//!   h1 ─▶ g1 ═▶ interceptor (192.0.2.2:5555, in g2's namespace)     real datagrams of g1, each held in our hands
//!                    ┆ changed, or not
//!   attacker (192.0.2.1, any port, in g1's namespace) ─▶ g2 ─▶ h2
//! ```
//!
//! g1 believes that its peer is at the interceptor's port. So every datagram is real, was never delivered, and goes to g2 when, how and
//! how often a test likes; that g2 takes it from a port that is not g1's is itself a rule: data never moves a peer.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use weir_abi::wire::{DATA_LEN_MIN, DataHeader, HEADER_LEN, ReceiverIndex, TAG_LEN};
use weir_bench::external::ping;
use weir_bench::gateway::PORT;
use weir_bench::pair::{INNER_MTU, Pair, PairConfig, SESSION, lans};
use weir_bench::rig::Rig;
use weir_bench::sys::udp;
use weir_dataplane::api::message::{DumpItem, Incarnation, Install, Offer, Request, Route, Secret, SessionId, Target};
use weir_dataplane::api::{Client, Prefix};
use weir_dataplane::config::{Attach, WanIo};
use weir_dataplane::engine::aead::Algorithm;
use weir_dataplane::engine::bundle::DATAGRAM_LEN_MIN;
use weir_dataplane::engine::keys::{Context, Direction, LaneSecret, Side};
use weir_dataplane::engine::lane::{COUNTERS, Limits, SealLane};
use weir_dataplane::engine::time::Time;

use crate::support::*;

const INTERCEPTOR: u16 = 5555;
const DISCARD: u16 = 9;
const SERVICE: u16 = 7777;
const WAIT: Duration = Duration::from_secs(2);

/// The sockets of a test.
struct Scene<'a> {
    rig: &'a Rig,
    /// On h1: sends to the service.
    client: UdpSocket,
    /// On h2: what arrives here was delivered.
    service: UdpSocket,
    interceptor: UdpSocket,
    attacker: UdpSocket,
    sent: u8,
}

impl<'a> Scene<'a> {
    fn new(rig: &'a Rig) -> Self {
        let socket = |host: &weir_bench::rig::Host, address: std::net::IpAddr, port: u16| {
            let socket = host.enter(|| UdpSocket::bind((address, port))).unwrap().unwrap();
            socket.set_read_timeout(Some(WAIT)).unwrap();
            socket
        };
        let wan = |host: &weir_bench::rig::Host| host.wan.unwrap().v4.into();
        let client = socket(rig.h1(), rig.h1().lan.v4.into(), 0);
        client.connect((rig.h2().lan.v4, SERVICE)).unwrap();
        Self {
            rig,
            client,
            service: socket(rig.h2(), rig.h2().lan.v4.into(), SERVICE),
            interceptor: socket(rig.g2(), wan(rig.g2()), INTERCEPTOR),
            attacker: socket(rig.g1(), wan(rig.g1()), 0),
            sent: 0,
        }
    }

    fn g2(&self) -> SocketAddr {
        (self.rig.g2().wan.unwrap().v4, PORT).into()
    }

    /// A real datagram of g1 that carries one packet for the service, not delivered yet.
    fn datagram(&mut self) -> Vec<u8> {
        self.sent += 1;
        self.client.send(&[self.sent; 100]).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = self.interceptor.recv_from(&mut buffer).unwrap();
            assert_eq!(from.port(), PORT);
            // What is longer than our packet asks how long datagrams may be.
            if len < usize::from(DATAGRAM_LEN_MIN) {
                return buffer[..len].to_vec();
            }
        }
    }

    fn attack(&self, datagram: &[u8]) {
        assert_eq!(self.attacker.send_to(datagram, self.g2()).unwrap(), datagram.len());
    }

    /// What the service gets within `WAIT`.
    fn delivered(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let len = self.service.recv(&mut buffer).expect("nothing was delivered");
        buffer[..len].to_vec()
    }

    /// Whether nothing waits for the service.
    fn nothing_delivered(&self) -> bool {
        self.service.set_nonblocking(true).unwrap();
        let got = self.service.recv(&mut [0; 2048]);
        self.service.set_nonblocking(false).unwrap();
        got.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// IPv4 packets that h2 has received so far, of whatever kind.
    fn received_by_h2(&self) -> u64 {
        let text = self.rig.h2().enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Ip: ")).map(|line| line.split(' '));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let (_, value) = names.zip(values).find(|(name, _)| *name == "InReceives").unwrap();
        value.parse().unwrap()
    }

    /// Does something to g2 that must end in exactly these drops and reach nobody.
    #[track_caller]
    fn refused(&self, pair: &mut Pair<'_>, what: &str, expected: &[(&str, u64)], act: impl FnOnce(&Self)) {
        let moved = self.drops_of(pair, expected.iter().map(|(_, n)| n).sum(), act);
        let expected: BTreeMap<_, _> = expected.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        assert_eq!(moved, expected, "{what}");
    }

    /// What g2 dropped through `act`, once that is `count` packets or more, or nothing more comes. h2 must see nothing.
    #[track_caller]
    fn drops_of(&self, pair: &mut Pair<'_>, count: u64, act: impl FnOnce(&Self)) -> BTreeMap<String, u64> {
        let before = foreign_drops(&pair.g2.counters().unwrap());
        let received = self.received_by_h2();
        act(self);
        let mut moved = BTreeMap::new();
        let mut look = || {
            moved = foreign_drops(&pair.g2.counters().unwrap());
            moved.retain(|name, count| {
                *count -= before.get(name).unwrap_or(&0);
                *count > 0
            });
            moved.values().sum::<u64>() >= count
        };
        eventually(WAIT, &mut look);
        // What should not be there gets its time as well.
        std::thread::sleep(Duration::from_millis(20));
        look();
        assert_eq!(self.received_by_h2(), received, "something reached h2");
        moved
    }

    /// Changes a copy of `datagram` and has it refused.
    #[track_caller]
    fn changed(
        &self,
        pair: &mut Pair<'_>,
        reason: &str,
        datagram: &[u8],
        what: &str,
        change: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut copy = datagram.to_vec();
        change(&mut copy);
        self.refused(pair, what, &[(reason, 1)], |scene| scene.attack(&copy));
    }
}

fn with_scene(config: PairConfig, test: impl FnOnce(&mut Scene<'_>, &mut Pair<'_>)) {
    let _alone = alone();
    let rig = rig();
    let pair = Pair::start(&rig, config).unwrap_or_else(|error| panic!("{error}"));
    telling(pair, |pair| {
        let mut scene = Scene::new(&rig);
        let [mut there, back] = pair.endpoints();
        there.set_port(INTERCEPTOR);
        pair.connect_by([there, back]).unwrap();
        test(&mut scene, pair);
        // Nothing of that has hurt: once g1 knows where g2 really is, real traffic flows, and g2 still knows where g1 is.
        assert_eq!(endpoint_of(pair.g2.client().unwrap(), SESSION), back);
        pair.connect().unwrap();
        answered(rig.h1(), rig.h2().lan.v4.into(), 20);
        answered(rig.h2(), rig.h1().lan.v6.into(), 20);
    });
}

fn endpoint_of(client: &mut Client, session: SessionId) -> SocketAddr {
    let items = client.dump().unwrap();
    let found = items.iter().find_map(|item| match item {
        DumpItem::Session(dump) if dump.session == session => Some(dump.endpoint),
        _ => None,
    });
    found.unwrap()
}

/// Everything that may be changed on the way from gateway to gateway.
fn changed_datagrams_are_refused(config: PairConfig) {
    with_scene(config, |scene, pair| {
        let first = scene.datagram();
        scene.attack(&first);
        assert_eq!(scene.delivered(), [1; 100], "a real datagram is delivered, whatever port it comes from");
        scene.refused(pair, "three replays", &[("replayed", 3)], |scene| (0..3).for_each(|_| scene.attack(&first)));

        let held = scene.datagram();
        let len = held.len();
        for cut in [0, 1, HEADER_LEN, DATA_LEN_MIN - 1] {
            scene.changed(pair, "wan_truncated", &held, &format!("cut to {cut}"), |d| d.truncate(cut));
        }
        for cut in [DATA_LEN_MIN, DATA_LEN_MIN + 1, len - TAG_LEN, len - 1] {
            scene.changed(pair, "auth_failed", &held, &format!("cut to {cut}"), |d| d.truncate(cut));
        }
        scene.changed(pair, "auth_failed", &held, "one byte more", |d| d.push(0));
        for (at, what) in [(15, "counter"), (HEADER_LEN, "first of the body"), (len / 2, "body"), (len - 1, "tag")] {
            // High enough to make no counter one of those that were delivered, among which a probe may have been.
            for bit in [0x40, 0x80] {
                let what = format!("bit {bit:#x} of the {what}");
                scene.changed(pair, "auth_failed", &held, &what, |d| d[at] ^= bit);
            }
        }
        for generation in [1, 8] {
            scene.changed(pair, "auth_failed", &held, "a generation within reach", |d| d[2] = generation);
        }
        for generation in [9, 255] {
            scene.changed(pair, "wrong_generation", &held, "a generation out of reach", |d| d[2] = generation);
        }
        scene.changed(pair, "counter_limit", &held, "a counter beyond all", |d| {
            d[8..16].copy_from_slice(&COUNTERS.to_be_bytes());
        });
        scene.changed(pair, "auth_failed", &held, "the last counter", |d| {
            d[8..16].copy_from_slice(&(COUNTERS - 1).to_be_bytes());
        });
        for version in [0, 2, 255] {
            scene.changed(pair, "wan_malformed", &held, "version", |d| d[1] = version);
        }
        scene.changed(pair, "wan_malformed", &held, "reserved byte", |d| d[3] = 1);
        scene.changed(pair, "wan_malformed", &held, "a type without a name", |d| d[0] = 0x3f);
        scene.changed(pair, "wan_odd_first_byte", &held, "a first byte of nobody", |d| d[0] = 0x10);
        scene.changed(pair, "outer_oversized", &held, "longer than any datagram of ours", |d| d.resize(65_507, 0));

        scene.attack(&held);
        assert_eq!(scene.delivered(), [2; 100], "none of that has used its counter up");
        assert!(scene.nothing_delivered());
    });
}

#[test]
fn changed_datagrams_are_refused_at_tc_ingress() {
    changed_datagrams_are_refused(PairConfig { attach: Attach::Tc, ..PairConfig::default() });
}

#[test]
fn changed_datagrams_are_refused_in_the_driver() {
    changed_datagrams_are_refused(PairConfig { attach: Attach::Native, io: WanIo::Mmsg, ..PairConfig::default() });
}

/// `wan` judges a miss unless it is the one in a thousand that goes to the control socket.
fn wrong_indices_are_refused(attach: Attach) {
    with_scene(PairConfig { attach, ..PairConfig::default() }, |scene, pair| {
        let held = scene.datagram();
        let index = DataHeader::parse(&held).unwrap().receiver;
        let wrong = [
            ReceiverIndex::new(index.worker(), index.slot(), index.tag() ^ 1),
            ReceiverIndex::new(index.worker(), index.slot() ^ 1, index.tag()),
            ReceiverIndex::new(index.worker(), u16::MAX, index.tag()),
            ReceiverIndex::new(63, index.slot(), index.tag()),
            ReceiverIndex(0),
            ReceiverIndex(u32::MAX),
        ];
        let moved = scene.drops_of(pair, wrong.len() as u64, |scene| {
            for index in wrong {
                let mut copy = held.clone();
                copy[4..8].copy_from_slice(&index.0.to_be_bytes());
                scene.attack(&copy);
            }
        });
        let missed = moved.get("wan_unknown_index").copied().unwrap_or(0);
        let sampled = count(&mut pair.g2, "wan_miss_sampled") + count(&mut pair.g2, "steer_control");
        assert!(moved.len() == 1 && missed <= 6 && missed + sampled >= 6, "{moved:?}, {sampled} sampled");
        scene.attack(&held);
        assert_eq!(scene.delivered(), [1; 100]);
    });
}

#[test]
fn wrong_indices_are_refused_by_wan() {
    wrong_indices_are_refused(Attach::Tc);
}

#[test]
fn wrong_indices_are_refused_by_steer() {
    wrong_indices_are_refused(Attach::None);
}

/// A merged train is judged by its first datagram before it reaches a worker; the engine judges each of the others.
#[test]
fn every_datagram_of_a_train_is_judged_by_itself() {
    with_scene(PairConfig { attach: Attach::Tc, ..PairConfig::default() }, |scene, pair| {
        let held = scene.datagram();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut copy = held.clone();
            change(&mut copy);
            copy
        };
        let train = [
            with(&|d| d[HEADER_LEN] ^= 1),
            with(&|d| d[4] ^= 0x80),
            with(&|d| d[1] = 2),
            with(&|d| d[3] = 1),
            with(&|d| d[0] = 0x21),
            with(&|d| d.truncate(DATA_LEN_MIN - 1)),
        ]
        .concat();
        let expected =
            ["auth_failed", "unknown_index", "outer_version", "outer_reserved", "outer_type", "outer_truncated"];
        udp::set_segment(&scene.attacker, held.len() as u16).unwrap();
        scene.refused(pair, "a train", &expected.map(|reason| (reason, 1)), |scene| scene.attack(&train));

        // A good datagram behind a bad one is delivered.
        let train = [with(&|d| d[HEADER_LEN] ^= 1), held.clone()].concat();
        scene.attack(&train);
        assert_eq!(scene.delivered(), [1; 100]);
    });
}

/// A peer of g2 that proves who it is and then does what it may not: the test itself, with a session and keys of its own.
struct Forger {
    /// One for each worker of g2.
    lanes: Vec<SealLane>,
}

const FORGER: SessionId = SessionId(2);

impl Forger {
    /// Installs the session on g2, for sources in 10.3.0.0/24.
    fn new(pair: &mut Pair<'_>) -> Self {
        let own: Prefix = "10.3.0.0/24".parse().unwrap();
        let (secret, mine) = ([7; 32], Side { incarnation: Incarnation(0xf0), salt: [3; 16] });
        let gateway = pair.g2.host();
        let [_, first] = pair.endpoints();
        let far = pair.g1.host();
        let datagram_len_max = pair.datagram_len_max();
        let client = pair.g2.client().unwrap();
        let workers = client.welcome().workers;
        let (reservation, offer) = client.reserve(workers).unwrap();
        let has_aes = Algorithm::for_this_cpu() == Algorithm::Aes256Gcm;
        // One for each worker of g2; nothing is ever sent to them.
        let lanes = (1..=u32::from(workers)).collect();
        let install = Install {
            session: FORGER,
            reservation,
            incarnation: offer.incarnation,
            peer: Offer { incarnation: mine.incarnation, salt: mine.salt, indices: lanes, has_aes, lane_ports: 0 },
            secret: Secret::new(secret),
            initiator: false,
            endpoint: (first.ip(), DISCARD).into(),
            sources: vec![own],
            datagram_len_max,
            inner_mtu: INNER_MTU,
            rate: None,
            activate: true,
            idle_after_s: 0,
        };
        client.order(&Request::Install(Box::new(install))).unwrap();
        let mut routes: Vec<_> =
            lans(gateway).into_iter().map(|prefix| Route { prefix, target: Target::Local }).collect();
        routes.extend(lans(far).into_iter().map(|prefix| Route { prefix, target: Target::Session(SESSION) }));
        routes.push(Route { prefix: own, target: Target::Session(FORGER) });
        client.set_routes(&routes).unwrap();
        let theirs = Side { incarnation: offer.incarnation, salt: offer.salt };
        let context = Context::new(FORGER, mine, theirs, true, Algorithm::for_this_cpu());
        let lane = |number: u8| {
            let secret = LaneSecret::derive(&Secret::new(secret), &context, Direction::FromInitiator, number);
            let receiver = ReceiverIndex(offer.indices[usize::from(number)]);
            SealLane::new(&secret, number, receiver, Time::ZERO, Limits::default())
        };
        Self { lanes: (0..workers).map(lane).collect() }
    }

    fn seal(&mut self, blocks: &[u8]) -> Vec<u8> {
        self.seal_in(0, blocks)
    }

    fn seal_in(&mut self, lane: usize, blocks: &[u8]) -> Vec<u8> {
        let mut datagram = [&[0; HEADER_LEN], blocks, &[0; TAG_LEN]].concat();
        self.lanes[lane].seal(&mut datagram, Time::ZERO).unwrap();
        datagram
    }
}

/// An IPv4 packet with a UDP datagram for the service.
fn packet(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&destination);
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    // A UDP checksum of zero: none was made (RFC 768).
    let [service, len] = [SERVICE.to_be_bytes(), udp_len.to_be_bytes()];
    [&ip[..], &[0x12, 0x34], &service, &len, &[0, 0], payload].concat()
}

#[test]
fn a_peer_may_not_send_what_is_not_its_own() {
    with_scene(PairConfig::default(), |scene, pair| {
        let mut forger = Forger::new(pair);
        const H2: [u8; 4] = [10, 2, 0, 2];
        const OWN: [u8; 4] = [10, 3, 0, 2];

        let good = packet(OWN, H2, b"my own");
        let datagram = forger.seal(&good);
        scene.attack(&datagram);
        assert_eq!(scene.delivered(), b"my own", "keys, lane and packet of the forger are right");

        let mut cases: Vec<(&str, &str, Vec<u8>)> = vec![
            ("inner_spoofed_source", "h1's address", packet([10, 1, 0, 2], H2, b"x")),
            ("inner_spoofed_source", "the gateway's own address", packet([10, 200, 0, 2], H2, b"x")),
            ("inner_spoofed_source", "an address of nobody", packet([8, 8, 8, 8], H2, b"x")),
            ("inner_spoofed_source", "just past the prefix", packet([10, 3, 1, 0], H2, b"x")),
            ("hairpin", "back to itself", packet(OWN, [10, 3, 0, 9], b"x")),
            ("transit_refused", "on to g1's LAN", packet(OWN, [10, 1, 0, 2], b"x")),
            ("block_malformed", "a block of no kind", vec![0x70, 0, 0, 0]),
            ("control_malformed", "a control block of no kind", vec![0x1f, 0, 0, 0]),
            ("continuation_orphan", "the rest of nothing", vec![0x20, 4, 1, 2, 3, 4]),
        ];
        let mut short_header = packet(OWN, H2, b"x");
        short_header[0] = 0x44;
        cases.push(("inner_malformed", "a header of sixteen bytes", short_header));
        for (reason, what, blocks) in cases {
            let datagram = forger.seal(&blocks);
            scene.refused(pair, what, &[(reason, 1)], |scene| scene.attack(&datagram));
        }

        // The window: everything up to its end counts as seen or too old.
        let late = forger.seal(&good);
        let latest = (0..20_000).map(|_| forger.seal(&good)).last().unwrap();
        scene.attack(&latest);
        assert_eq!(scene.delivered(), b"my own");
        scene.refused(pair, "before the window", &[("replay_too_old", 1)], |scene| scene.attack(&late));
        scene.refused(pair, "again", &[("replayed", 1)], |scene| scene.attack(&latest));
        assert!(scene.nothing_delivered());
    });
}

/// What the kernel makes of two lanes on one pair of ports: `steer` sees the first header only, so half of it lands on the wrong worker.
#[test]
fn a_train_of_alternating_lanes_is_handed_over_and_nothing_is_lost() {
    const DATAGRAMS: u8 = 16;
    with_scene(PairConfig { cores: [vec![0, 1], vec![0, 1]], ..PairConfig::default() }, |scene, pair| {
        let mut forger = Forger::new(pair);
        let datagrams: Vec<_> = (0..DATAGRAMS)
            .map(|i| forger.seal_in(usize::from(i % 2), &packet([10, 3, 0, 2], [10, 2, 0, 2], &[i])))
            .collect();
        udp::set_segment(&scene.attacker, datagrams[0].len() as u16).unwrap();
        scene.attack(&datagrams.concat());
        let mut delivered: Vec<_> = (0..DATAGRAMS).map(|_| scene.delivered()[0]).collect();
        // Each lane in itself keeps its order.
        for lane in 0..2 {
            let of_lane: Vec<_> = delivered.iter().copied().filter(|i| i % 2 == lane).collect();
            assert!(of_lane.is_sorted(), "{of_lane:?}");
        }
        delivered.sort_unstable();
        assert_eq!(delivered, (0..DATAGRAMS).collect::<Vec<_>>());
        let handed_over = ["sent_handoffs", "received_handoffs"].map(|name| count(&mut pair.g2, name));
        assert_eq!(handed_over, [u64::from(DATAGRAMS / 2); 2], "a run for each datagram of the other worker");
    });
}

#[test]
fn noise_on_the_port_neither_stops_nor_slows_a_session() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        let attacker = rig.g1().enter(|| UdpSocket::bind((rig.g1().wan.unwrap().v4, 0))).unwrap().unwrap();
        let to = (rig.g2().wan.unwrap().v4, PORT);
        // A fixed generator: a failure comes again.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let pinging = std::thread::scope(|scope| {
            let pinging = scope.spawn(|| ping(rig.h1(), rig.h2().lan.v4.into(), 100).unwrap());
            for _ in 0..50_000 {
                let mut noise: Vec<u8> = (0..1 + random() as usize % 200).map(|_| random() as u8).collect();
                // Half of it looks like ours.
                if random() & 1 == 0 {
                    noise[0] = 0x20 | (noise[0] & 0x1f);
                }
                let _ = attacker.send_to(&noise, to);
            }
            pinging.join().unwrap()
        });
        assert!(pinging.received >= 98, "{pinging:?}");
        let drops = foreign_drops(&pair.g2.counters().unwrap());
        for reason in ["wan_truncated", "wan_malformed", "wan_odd_first_byte", "wan_relay_label", "wan_source_rate"] {
            assert!(drops.contains_key(reason), "{reason}: {drops:?}");
        }
        assert!(!drops.contains_key("auth_failed"), "{drops:?}");
    });
}
