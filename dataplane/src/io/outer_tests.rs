//! What the socket ports say of the outer header, and make it say: class, addresses, ports; the same facts for io_uring and for the plain
//! system calls.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::epoll::Epoll;
use super::reactor::Reactor;
use super::ring::{Ring, RingConfig};
use super::socket::{SocketConfig, SocketError, Sockets, Underlay};
use super::testing::{bring_up, in_namespace, with_icmp_errors};
use super::tun::{TunConfig, TunQueue};
use super::{UdpTxConfig, mmsg, uring};
use crate::engine::port::{RxMeta, RxPort, TxMeta, TxPort};

const PATIENCE: Duration = Duration::from_secs(20);

/// The last of so many workers' sockets; without the others', and the control plane's, which would get their share. What an io_uring port
/// held before is let go some time after it was dropped, so a port in use is waited for.
fn open(config: SocketConfig, workers: usize) -> Arc<Sockets> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match Underlay::open(config, workers) {
            Err(SocketError::PortInUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return Arc::new(opened.unwrap().workers.pop().unwrap()),
        }
    }
}

fn at(port: u16) -> SocketConfig {
    SocketConfig { port, ..SocketConfig::default() }
}

fn to(address: &str) -> TxMeta {
    TxMeta { destination: Some(address.parse().unwrap()), ..TxMeta::default() }
}

fn send(tx: &mut impl TxPort, bytes: &[u8], meta: TxMeta) {
    tx.slot(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(bytes);
    tx.commit(bytes.len(), meta);
}

/// Lengths and metas of frames until so many bytes have come.
fn received(reactor: &mut impl Reactor, rx: &mut impl RxPort, bytes: usize) -> Vec<(usize, RxMeta)> {
    let (start, mut frames) = (Instant::now(), Vec::new());
    while frames.iter().map(|(len, _)| len).sum::<usize>() < bytes {
        let n = rx.receive().unwrap();
        for i in 0..n {
            let (frame, meta) = rx.frame(i);
            frames.push((frame.len(), meta));
        }
        if n == 0 {
            assert!(start.elapsed() < PATIENCE, "what was sent does not arrive: {frames:?}");
            reactor.wait(Some(Duration::from_millis(200))).unwrap();
        }
    }
    frames
}

/// Runs a test in a namespace with the io_uring ports, and in another with the plain ones.
macro_rules! with_both_ports {
    ($test:ident) => {
        in_namespace(|| {
            let mut ring = Ring::new(RingConfig::default()).unwrap();
            let tx = |ring: &Ring, sockets| uring::UdpTx::new(ring, sockets, UdpTxConfig::default()).unwrap();
            let rx = |ring: &Ring, sockets| uring::UdpRx::new(ring, sockets, uring::UdpRxConfig::default()).unwrap();
            $test(&mut ring, tx, rx);
        });
        in_namespace(|| {
            let mut epoll = Epoll::new().unwrap();
            let tx = |epoll: &Epoll, sockets| mmsg::UdpTx::new(epoll, sockets, UdpTxConfig::default()).unwrap();
            let rx = |epoll: &Epoll, sockets| mmsg::UdpRx::new(epoll, sockets, 65_536).unwrap();
            $test(&mut epoll, tx, rx);
        });
    };
}

fn classes<R: Reactor, T: TxPort, X: RxPort>(
    reactor: &mut R,
    tx: impl Fn(&R, Arc<Sockets>) -> T,
    rx: impl Fn(&R, Arc<Sockets>) -> X,
) {
    let mut tx = tx(reactor, open(at(1000), 1));
    let mut rx = rx(reactor, open(at(2000), 1));
    // Expedited forwarding with ECT(0), CE alone, nothing; trains of different classes one behind the other, which must not be merged.
    let classes = [0xba, 0x03, 0x00, 0xff, 0x01];
    for destination in ["127.0.0.1:2000", "[::1]:2000"] {
        for class in classes {
            send(&mut tx, &[1; 4000], TxMeta { class, segment: 1000, ..to(destination) });
            send(&mut tx, &[1; 10], TxMeta { class, ..to(destination) });
        }
        assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
        let frames = received(reactor, &mut rx, classes.len() * 4010);
        let told: Vec<_> = frames.iter().map(|(len, meta)| (*len, meta.segment, meta.class)).collect();
        let sent: Vec<_> = classes.iter().flat_map(|&class| [(4000, 1000, class), (10, 0, class)]).collect();
        assert_eq!(told, sent, "{destination}");
    }
}

#[test]
fn class_of_singles_and_trains_crosses_in_both_families() {
    with_both_ports!(classes);
}

fn addresses<R: Reactor, T: TxPort, X: RxPort>(
    reactor: &mut R,
    tx: impl Fn(&R, Arc<Sockets>) -> T,
    rx: impl Fn(&R, Arc<Sockets>) -> X,
) {
    let sockets = open(at(1000), 1);
    let mut tx = tx(reactor, Arc::clone(&sockets));
    let mut rx = rx(reactor, open(at(2000), 1));
    for (destination, source) in [("127.0.0.7:2000", "127.0.0.9"), ("[::1]:2000", "::1")] {
        let destination: SocketAddr = destination.parse().unwrap();
        let source = source.parse().unwrap();
        send(
            &mut tx,
            &[1; 3000],
            TxMeta { source: Some(source), segment: 1000, class: 3, ..to(&destination.to_string()) },
        );
        tx.flush().unwrap();
        let (_, meta) = received(reactor, &mut rx, 3000)[0];
        assert_eq!((meta.local, meta.segment, meta.class), (Some(destination.ip()), 1000, 3));
        assert_eq!(meta.source, Some((source, 1000).into()));
    }
    // An address that is not ours (any more) does not silence us.
    send(&mut tx, &[1; 3000], TxMeta { source: Some([192, 0, 2, 1].into()), segment: 1000, ..to("127.0.0.7:2000") });
    send(&mut tx, &[1], TxMeta { source: Some("2001:db8::1".parse().unwrap()), ..to("[::1]:2000") });
    assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
    let sources: Vec<_> = received(reactor, &mut rx, 3001).iter().map(|(_, meta)| meta.source.unwrap().ip()).collect();
    assert!(sources.contains(&Ipv4Addr::LOCALHOST.into()) && sources.contains(&"::1".parse().unwrap()), "{sources:?}");
}

#[test]
fn replies_leave_from_the_address_that_was_hit_and_both_ends_know_it() {
    with_both_ports!(addresses);
}

fn lanes<R: Reactor, T: TxPort, X: RxPort>(
    reactor: &mut R,
    tx: impl Fn(&R, Arc<Sockets>) -> T,
    rx: impl Fn(&R, Arc<Sockets>) -> X,
) {
    let mut tx = tx(reactor, open(SocketConfig { lane_ports: 3, ..at(1000) }, 3));
    let mut rx = rx(reactor, open(SocketConfig { lane_ports: 1, ..at(2000) }, 2));
    for host in ["127.0.0.1", "[::1]"] {
        for (from_lane, to_port) in [(true, 2001), (false, 2001), (true, 2000), (false, 2000)] {
            send(&mut tx, &[1; 300], TxMeta { lane_port: from_lane, segment: 100, ..to(&format!("{host}:{to_port}")) });
            tx.flush().unwrap();
            let (_, meta) = received(reactor, &mut rx, 300)[0];
            assert_eq!(meta.source.unwrap().port(), if from_lane { 1002 } else { 1000 }, "{host}");
            assert_eq!((meta.lane_port, meta.segment), (to_port == 2001, 100));
        }
    }
}

#[test]
fn datagrams_go_and_come_by_the_lane_port() {
    with_both_ports!(lanes);
}

/// Leaves an error (an ICMP answer to what was sent) on the socket, and shows that it hears what comes afterwards.
fn errors<R: Reactor, T: TxPort, X: RxPort>(
    reactor: &mut R,
    tx: impl Fn(&R, Arc<Sockets>) -> T,
    rx: impl Fn(&R, Arc<Sockets>) -> X,
) {
    let sockets = open(at(1000), 1);
    with_icmp_errors(sockets.v4.as_ref().unwrap(), false);
    with_icmp_errors(sockets.v6.as_ref().unwrap(), true);
    let mut rx = rx(reactor, Arc::clone(&sockets));
    let mut tx = tx(reactor, sockets);
    for (closed, open, ours) in [("127.0.0.1:9", "127.0.0.1:0", "127.0.0.1:1000"), ("[::1]:9", "[::1]:0", "[::1]:1000")]
    {
        let sender = UdpSocket::bind(open).unwrap();
        for round in 0..5 {
            // Nobody listens there; the answer ends a multishot receive with ECONNREFUSED.
            send(&mut tx, &[1], to(closed));
            tx.flush().unwrap();
            rx.receive().unwrap();
            sender.send_to(&[2; 20], ours).unwrap();
            assert_eq!(received(reactor, &mut rx, 20).len(), 1, "deaf after error {round}");
            // The error queue keeps one entry each time; a daemon does not ask for it, so it is only emptied here by being dropped.
            send(&mut tx, &[3; 20], to(ours));
            while tx.flush().unwrap() > 0 {}
            tx.take_failed();
            while rx.receive().unwrap() > 0 {}
        }
    }
}

#[test]
fn a_socket_hears_after_every_error() {
    with_both_ports!(errors);
}

fn link_local<R: Reactor, T: TxPort, X: RxPort>(
    reactor: &mut R,
    tx: impl Fn(&R, Arc<Sockets>) -> T,
    rx: impl Fn(&R, Arc<Sockets>) -> X,
) {
    let _tun = TunQueue::open(&TunConfig { name: "weir0".into(), multi_queue: false, offload: false }).unwrap();
    bring_up("weir0", None, None);
    let start = Instant::now();
    // The kernel gives an interface that came up a link-local address of its own; it is of use when it is no longer tentative (0x40).
    let (address, index) = loop {
        let known = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        if let Some(line) = known.lines().find(|line| line.starts_with("fe80") && line.ends_with("weir0")) {
            let number = |field| u32::from_str_radix(line.split_whitespace().nth(field).unwrap(), 16).unwrap();
            if number(4) & 0x40 == 0 {
                let groups: Vec<&str> = (0..8).map(|i| &line[4 * i..4 * i + 4]).collect();
                break (groups.join(":"), number(1));
            }
        }
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut tx = tx(reactor, open(at(1000), 1));
    let mut rx = rx(reactor, open(at(2000), 1));
    let ip: std::net::IpAddr = address.parse().unwrap();
    send(&mut tx, &[1; 100], TxMeta { source: Some(ip), ..to(&format!("[{address}%{index}]:2000")) });
    assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
    let (_, meta) = received(reactor, &mut rx, 100)[0];
    assert_eq!(meta.local, Some(ip));
    let Some(SocketAddr::V6(source)) = meta.source else { panic!("{meta:?}") };
    assert_eq!((source.ip().to_string(), source.scope_id()), (ip.to_string(), index));
}

#[test]
fn link_local_addresses_keep_their_link() {
    with_both_ports!(link_local);
}
