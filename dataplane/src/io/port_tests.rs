//! The kernel ports against each other, on loopback and TUN in namespaces of their own: the same facts for io_uring and for the plain
//! system calls.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::epoll::Epoll;
use super::reactor::{Reactor, Wake};
use super::ring::{Ring, RingConfig};
use super::socket::{SocketConfig, Sockets, Underlay};
use super::testing::{bring_up, in_namespace, shape, thread_names, without_checksums};
use super::tun::{TunConfig, TunQueue, TunTxConfig};
use super::{UdpTxConfig, mmsg, uring};
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, TxMeta, TxPort};

const PATIENCE: Duration = Duration::from_secs(20);

/// One worker's sockets. The control sockets are closed: they would get their share of what is sent here, for no program steers it.
fn open_with(port: u16, tx_buffer: usize) -> Arc<Sockets> {
    let config = SocketConfig { port, tx_buffer, rx_buffer: 32 << 20, ..SocketConfig::default() };
    Arc::new(Underlay::open(config, 1).unwrap().workers.remove(0))
}

fn open(port: u16) -> Arc<Sockets> {
    open_with(port, 4 << 20)
}

fn ring() -> Ring {
    Ring::new(RingConfig::default()).unwrap()
}

fn to(address: &str, segment: u16) -> TxMeta {
    TxMeta { destination: Some(address.parse().unwrap()), segment, ..TxMeta::default() }
}

fn send(tx: &mut impl TxPort, bytes: &[u8], meta: TxMeta) {
    tx.slot(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(bytes);
    tx.commit(bytes.len(), meta);
}

/// Receives until `enough`, sleeping in the reactor whenever nothing waits.
fn receive_until(reactor: &mut impl Reactor, rx: &mut impl RxPort, mut enough: impl FnMut(&[u8], RxMeta) -> bool) {
    let start = Instant::now();
    loop {
        let n = rx.receive().unwrap();
        for i in 0..n {
            let (bytes, meta) = rx.frame(i);
            if enough(bytes, meta) {
                return;
            }
        }
        if n == 0 {
            assert!(start.elapsed() < PATIENCE, "what was sent does not arrive");
            reactor.wait(Some(Duration::from_millis(200))).unwrap();
        }
    }
}

/// Datagrams as they were before trains: each with its sender.
fn receive_datagrams(reactor: &mut impl Reactor, rx: &mut impl RxPort, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut datagrams = Vec::new();
    receive_until(reactor, rx, |bytes, meta| {
        assert!(!meta.truncated);
        let segment = if meta.segment == 0 { bytes.len() } else { meta.segment.into() };
        datagrams.extend(bytes.chunks(segment).map(|bytes| (bytes.to_vec(), meta.source.unwrap())));
        datagrams.len() >= count
    });
    datagrams
}

/// Singles and trains over both families arrive whole, in order, from the right address.
fn round_trip(reactor: &mut impl Reactor, tx: &mut impl TxPort, rx: &mut impl RxPort) {
    for (destination, source) in [("127.0.0.1:2000", "127.0.0.1:1000"), ("[::1]:2000", "[::1]:1000")] {
        let train: Vec<u8> = (0..46 * 1400 + 7).map(|i| (i / 1400) as u8).collect();
        let mut expected: Vec<Vec<u8>> = vec![vec![0xa0; 1]];
        expected.extend(train.chunks(1400).map(<[u8]>::to_vec));
        expected.push(vec![0xb0; 1472]);
        send(tx, &[0xa0; 1], to(destination, 0));
        send(tx, &train, to(destination, 1400));
        send(tx, &[0xb0; 1472], to(destination, 0));
        assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
        let got = receive_datagrams(reactor, rx, expected.len());
        let source: SocketAddr = source.parse().unwrap();
        assert!(got.iter().all(|(_, from)| *from == source));
        assert!(got.into_iter().map(|(bytes, _)| bytes).eq(expected));
    }
}

#[test]
fn uring_to_uring_carries_singles_and_trains() {
    in_namespace(|| {
        let mut ring = ring();
        let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        for _ in 0..20 {
            round_trip(&mut ring, &mut tx, &mut rx);
        }
        assert_eq!(rx.counters(), uring::RxCounters::default());
    });
}

#[test]
fn uring_to_mmsg_carries_singles_and_trains() {
    in_namespace(|| {
        let ring = ring();
        let mut epoll = Epoll::new().unwrap();
        let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        let mut rx = mmsg::UdpRx::new(&epoll, open(2000), 65_536).unwrap();
        round_trip(&mut epoll, &mut tx, &mut rx);
    });
}

#[test]
fn mmsg_to_uring_carries_singles_and_trains() {
    in_namespace(|| {
        let mut ring = ring();
        let epoll = Epoll::new().unwrap();
        let mut tx = mmsg::UdpTx::new(&epoll, open(1000), UdpTxConfig::default()).unwrap();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        round_trip(&mut ring, &mut tx, &mut rx);
    });
}

#[test]
fn a_train_arrives_as_a_train() {
    in_namespace(|| {
        let mut ring = ring();
        let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        send(&mut tx, &[7; 64 * 1000], to("127.0.0.1:2000", 1000));
        tx.flush().unwrap();
        receive_until(&mut ring, &mut rx, |bytes, meta| {
            assert_eq!((bytes.len(), meta.segment, meta.truncated), (64_000, 1000, false));
            true
        });
    });
}

/// Trains through a link of 200 Mbit/s, with a send buffer that holds few of them: nothing is lost, nothing overtakes.
///
/// On one core: the bucket is emptied by whichever core has the time, and loopback queues to the core that it is called on. A thread that is
/// moved to another one would see the kernel's own reordering, a whole train at a time.
fn order_under_back_pressure<R: Reactor, T: TxPort>(
    make_reactor: impl FnOnce() -> R,
    tx: impl FnOnce(&R, Arc<Sockets>) -> T,
    blocked: impl Fn(&T) -> bool,
) {
    const TRAINS: u32 = 2000;
    let core = core_affinity::get_core_ids().unwrap()[0];
    assert!(core_affinity::set_for_current(core));
    // A bucket of three trains: after a pause of the sender it fills the buffer again at once, however long the pause was.
    shape("lo", 25_000_000, 8 << 10, 64 << 20);
    let mut reactor = make_reactor();
    let mut tx = tx(&reactor, open_with(1000, 8192));
    let epoll = Epoll::new().unwrap();
    let mut rx = mmsg::UdpRx::new(&epoll, open(2000), 65_536).unwrap();
    let (mut queued, mut got, mut was_blocked) = (0, Vec::new(), false);
    let start = Instant::now();
    while got.len() < 3 * TRAINS as usize {
        if start.elapsed() > PATIENCE {
            let lost = (0..3 * queued).find(|number| !got.contains(number));
            panic!("{queued} trains queued, {} datagrams received, not number {lost:?}", got.len());
        }
        while queued < TRAINS && tx.room() > 0 {
            let slot = tx.slot(2500).unwrap();
            for i in 0..3 {
                slot[1000 * i..][..4].copy_from_slice(&(3 * queued + i as u32).to_be_bytes());
            }
            tx.commit(2500, to("127.0.0.1:2000", 1000));
            queued += 1;
        }
        let left = tx.flush().unwrap();
        was_blocked |= left > 0;
        for i in 0..rx.receive().unwrap() {
            let (bytes, meta) = rx.frame(i);
            let segment = if meta.segment == 0 { bytes.len() } else { meta.segment.into() };
            got.extend(bytes.chunks(segment).map(|datagram| u32::from_be_bytes(datagram[..4].try_into().unwrap())));
        }
        if left > 0 {
            assert_eq!(reactor.wait(Some(Duration::from_secs(2))).unwrap(), Wake::Ready, "no word of room");
        }
    }
    assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
    let overtaken = got.windows(2).position(|pair| pair[0] + 1 != pair[1]);
    assert_eq!(overtaken.map(|at| &got[at..got.len().min(at + 20)]), None, "out of order, none lost");
    assert!(was_blocked && blocked(&tx), "the buffer never filled: the test proves nothing");
}

#[test]
fn uring_keeps_order_under_back_pressure() {
    in_namespace(|| {
        let tx = |ring: &Ring, sockets| uring::UdpTx::new(ring, sockets, UdpTxConfig::default()).unwrap();
        order_under_back_pressure(ring, tx, |tx| tx.blocks() > 100);
    });
}

#[test]
fn mmsg_keeps_order_under_back_pressure() {
    in_namespace(|| {
        let tx = |epoll: &Epoll, sockets| mmsg::UdpTx::new(epoll, sockets, UdpTxConfig::default()).unwrap();
        order_under_back_pressure(|| Epoll::new().unwrap(), tx, |_| true);
    });
}

#[test]
fn a_starved_receiver_recovers_and_loses_nothing() {
    in_namespace(|| {
        let mut ring = ring();
        let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        let config = uring::UdpRxConfig { buffers: 4, payload_len: 2048 };
        let mut rx = uring::UdpRx::new(&ring, open(2000), config).unwrap();
        for round in 0..3u8 {
            for i in 0..50 {
                send(&mut tx, &[round, i], to("127.0.0.1:2000", 0));
            }
            assert_eq!(tx.flush().unwrap(), 0);
            let got = receive_datagrams(&mut ring, &mut rx, 50);
            assert!(got.into_iter().map(|(bytes, _)| bytes).eq((0..50).map(|i| vec![round, i])));
        }
        let counters = rx.counters();
        assert!(counters.starved >= 3 && counters.rearmed >= counters.starved, "{counters:?}");
        assert_eq!(counters.errors, 0);
    });
}

/// What is longer than a buffer is marked, what fits exactly is not.
fn truncation(reactor: &mut impl Reactor, rx: &mut impl RxPort, limit: usize) {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (len, truncated) in [(limit, false), (limit + 1, true), (1, false)] {
        sender.send_to(&vec![1; len], "127.0.0.1:2000").unwrap();
        receive_until(reactor, rx, |bytes, meta| {
            assert_eq!((bytes.len(), meta.truncated), (len.min(limit), truncated), "{len}");
            true
        });
    }
}

#[test]
fn datagrams_longer_than_a_buffer_are_marked_truncated() {
    in_namespace(|| {
        let mut ring = ring();
        // With the 176 bytes before the payload a multiple of 64, so nothing is rounded up.
        let config = uring::UdpRxConfig { buffers: 4, payload_len: 1040 };
        let mut rx = uring::UdpRx::new(&ring, open(2000), config).unwrap();
        truncation(&mut ring, &mut rx, 1040);
    });
    in_namespace(|| {
        let mut epoll = Epoll::new().unwrap();
        let mut rx = mmsg::UdpRx::new(&epoll, open(2000), 1024).unwrap();
        truncation(&mut epoll, &mut rx, 1024);
    });
}

/// Slots run out at the limit and come back by a flush; what cannot be sent is counted and holds nothing up.
fn slots_and_failures(tx: &mut impl TxPort) {
    assert_eq!(tx.room(), 4);
    for _ in 0..4 {
        send(tx, &[1], to("127.0.0.1:2000", 0));
    }
    assert!(tx.slot(1).is_none());
    assert_eq!((tx.room(), tx.flush().unwrap(), tx.room()), (0, 0, 4));
    assert!(tx.slot(65_536).is_some());
    assert!(tx.slot(65_537).is_none());
    // No route; then a datagram longer than any; then one that goes.
    send(tx, &[1], to("192.0.2.1:9", 0));
    send(tx, &[1; 65_508], to("127.0.0.1:2000", 0));
    send(tx, &[2], to("127.0.0.1:2000", 0));
    assert_eq!((tx.flush().unwrap(), tx.take_failed(), tx.take_failed()), (0, 2, 0));
}

#[test]
fn slots_run_out_at_the_limit_and_hard_errors_hold_nothing_up() {
    let config = UdpTxConfig { slots: 4, slot_len: 65_536 };
    in_namespace(move || {
        let receiver = UdpSocket::bind("127.0.0.1:2000").unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let ring = ring();
        slots_and_failures(&mut uring::UdpTx::new(&ring, open(1000), config).unwrap());
        let epoll = Epoll::new().unwrap();
        slots_and_failures(&mut mmsg::UdpTx::new(&epoll, open(3000), config).unwrap());
        let mut last = [0; 4];
        for _ in 0..2 {
            (0..4).for_each(|_| assert_eq!(receiver.recv(&mut last).unwrap(), 1));
            assert_eq!((receiver.recv(&mut last).unwrap(), last[0]), (1, 2));
        }
    });
}

/// Sends two trains where the kernel takes none: a socket without UDP checksums may not have them cut.
fn refused_trains(reactor: &mut impl Reactor, tx: &mut impl TxPort, rx: &mut impl RxPort) {
    let trains: Vec<u8> = (0..5000).map(|i| (i / 1000) as u8).collect();
    send(tx, &trains[..3000], to("127.0.0.1:2000", 1000));
    send(tx, &trains[3000..], to("127.0.0.1:2000", 1000));
    assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
    let got = receive_datagrams(reactor, rx, 5);
    assert!(got.into_iter().map(|(bytes, _)| bytes).eq(trains.chunks(1000)));
}

#[test]
fn a_train_that_the_path_refuses_goes_out_singly() {
    in_namespace(|| {
        let mut ring = ring();
        let mut epoll = Epoll::new().unwrap();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        let path: SocketAddr = "127.0.0.1:2000".parse().unwrap();

        let sockets = open(1000);
        without_checksums(sockets.v4.as_ref().unwrap());
        let mut tx = uring::UdpTx::new(&ring, sockets, UdpTxConfig::default()).unwrap();
        refused_trains(&mut ring, &mut tx, &mut rx);
        assert_eq!(tx.single_paths(), [path]);
        drop(tx);
        drop(rx);

        let mut rx = mmsg::UdpRx::new(&epoll, open(2000), 65_536).unwrap();
        let sockets = open(1000);
        without_checksums(sockets.v4.as_ref().unwrap());
        let mut tx = mmsg::UdpTx::new(&epoll, sockets, UdpTxConfig::default()).unwrap();
        refused_trains(&mut epoll, &mut tx, &mut rx);
        assert_eq!(tx.single_paths(), [path]);
    });
}

#[test]
fn a_path_that_takes_trains_is_not_condemned_for_a_train_too_wide() {
    in_namespace(|| {
        let _queue = tun(false);
        let ring = ring();
        let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        send(&mut tx, &[1; 3000], to("10.0.0.2:9", 1500));
        assert_eq!((tx.flush().unwrap(), tx.take_failed(), tx.single_paths().len()), (0, 1, 0));
        send(&mut tx, &[2; 2000], to("10.0.0.2:9", 1000));
        assert_eq!((tx.flush().unwrap(), tx.take_failed(), tx.single_paths().len()), (0, 0, 0));
    });
}

/// An ICMP echo request from `10.0.0.2`, behind the TUN, to the kernel at `10.0.0.1`.
fn echo_request(sequence: u16, payload_len: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1, 8, 0, 0, 0, 0x12, 0x34];
    packet.extend(sequence.to_be_bytes());
    packet.resize(28 + payload_len, 0x5a);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    for (range, at) in [(0..20, 10), (20..packet.len(), 22)] {
        let sum: u32 =
            packet[range].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        let folded = !((sum % 0xffff) as u16);
        packet[at..at + 2].copy_from_slice(&folded.to_be_bytes());
    }
    packet
}

/// The kernel answers pings that come out of the TUN, each with its payload, in order.
fn tun_round_trip(reactor: &mut impl Reactor, tx: &mut impl TxPort, rx: &mut impl RxPort) {
    for burst in 0..20u16 {
        for i in 0..BURST_LEN as u16 {
            send(tx, &echo_request(burst * BURST_LEN as u16 + i, 56 + 10 * usize::from(i)), TxMeta::default());
        }
        assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
        let mut expected = burst * BURST_LEN as u16;
        receive_until(reactor, rx, |packet, meta| {
            assert_eq!(meta, RxMeta::default());
            // The interface speaks for itself at first (IPv6 router solicitations and the like).
            if packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0 {
                let sequence = u16::from_be_bytes([packet[26], packet[27]]);
                assert_eq!(sequence, expected);
                assert_eq!(packet.len(), 28 + 56 + 10 * usize::from(sequence % BURST_LEN as u16));
                assert!(packet[28..].iter().all(|&byte| byte == 0x5a));
                expected += 1;
            }
            expected == (burst + 1) * BURST_LEN as u16
        });
    }
}

fn tun(multi_queue: bool) -> Arc<TunQueue> {
    let queue = TunQueue::open(&TunConfig { name: "weir0".into(), multi_queue, offload: false }).unwrap();
    bring_up("weir0", Some(1400), Some(Ipv4Addr::new(10, 0, 0, 1)));
    Arc::new(queue)
}

#[test]
fn uring_tun_round_trip_through_the_kernel() {
    in_namespace(|| {
        let mut ring = ring();
        let queue = tun(true);
        let mut tx = uring::TunTx::new(&ring, queue.clone(), TunTxConfig::default()).unwrap();
        let config = uring::TunRxConfig { mtu: 1400, ..uring::TunRxConfig::default() };
        let mut rx = uring::TunRx::new(&ring, queue, config).unwrap();
        tun_round_trip(&mut ring, &mut tx, &mut rx);
        assert_eq!((rx.counters().starved, rx.counters().errors), (0, 0));
    });
}

#[test]
fn plain_tun_round_trip_through_the_kernel() {
    in_namespace(|| {
        let mut epoll = Epoll::new().unwrap();
        let queue = tun(false);
        let mut tx = mmsg::TunTx::new(queue.clone(), TunTxConfig::default()).unwrap();
        let mut rx = mmsg::TunRx::new(&epoll, queue, 1400).unwrap();
        tun_round_trip(&mut epoll, &mut tx, &mut rx);
    });
}

#[test]
fn tun_slots_run_out_at_the_limit_and_refused_packets_are_counted() {
    in_namespace(|| {
        let queue = tun(false);
        let ring = ring();
        let config = TunTxConfig { slots: 3, packet_len: 2048, longest: 3 };
        let mut uring = uring::TunTx::new(&ring, queue.clone(), config).unwrap();
        let mut plain = mmsg::TunTx::new(queue, config).unwrap();
        fn check(tx: &mut impl TxPort) {
            send(tx, &echo_request(1, 56), TxMeta::default());
            // No IP version: the driver refuses it (EINVAL).
            send(tx, &[0xf0; 40], TxMeta::default());
            send(tx, &echo_request(2, 56), TxMeta::default());
            assert!(tx.slot(1).is_none());
            assert_eq!((tx.flush().unwrap(), tx.take_failed(), tx.take_failed(), tx.room()), (0, 1, 0, 3));
        }
        check(&mut uring);
        check(&mut plain);
    });
}

#[test]
fn a_starved_tun_receiver_recovers() {
    in_namespace(|| {
        let mut ring = ring();
        let queue = tun(false);
        let mut tx = mmsg::TunTx::new(queue.clone(), TunTxConfig::default()).unwrap();
        let mut rx = uring::TunRx::new(&ring, queue, uring::TunRxConfig { buffers: 4, mtu: 2000 }).unwrap();
        tun_round_trip(&mut ring, &mut tx, &mut rx);
        assert!(rx.counters().starved > 0, "{:?}", rx.counters());
        assert_eq!(rx.counters().errors, 0);
    });
}

#[test]
fn a_tun_packet_that_fills_its_buffer_is_marked_truncated() {
    in_namespace(|| {
        let mut ring = ring();
        let queue = tun(false);
        let mut tx = mmsg::TunTx::new(queue.clone(), TunTxConfig::default()).unwrap();
        let config = uring::TunRxConfig { buffers: 64, mtu: 255 };
        let mut rx = uring::TunRx::new(&ring, queue, config).unwrap();
        for (len, truncated) in [(255, false), (256, true), (257, true)] {
            send(&mut tx, &echo_request(1, len - 28), TxMeta::default());
            tx.flush().unwrap();
            receive_until(&mut ring, &mut rx, |packet, meta| {
                let is_reply = packet[0] == 0x45;
                assert!(!is_reply || (packet.len(), meta.truncated) == (len.min(256), truncated), "{len}");
                is_reply
            });
        }
    });
}

#[test]
fn a_tun_that_is_gone_ends_the_ports() {
    in_namespace(|| {
        let mut ring = ring();
        let queue = tun(false);
        let mut rx = uring::TunRx::new(&ring, queue.clone(), uring::TunRxConfig::default()).unwrap();
        let mut tx = uring::TunTx::new(&ring, queue.clone(), TunTxConfig::default()).unwrap();
        super::testing::delete_link("weir0");
        let start = Instant::now();
        while rx.receive().is_ok() {
            assert!(start.elapsed() < PATIENCE);
            ring.wait(Some(Duration::from_millis(50))).unwrap();
        }
        send(&mut tx, &echo_request(1, 56), TxMeta::default());
        assert!(tx.flush().is_err());
    });
}

#[test]
fn no_io_worker_thread_appears() {
    in_namespace(|| {
        let mut ring = ring();
        let queue = tun(true);
        let mut tun_tx = uring::TunTx::new(&ring, queue.clone(), TunTxConfig::default()).unwrap();
        let mut tun_rx = uring::TunRx::new(&ring, queue, uring::TunRxConfig::default()).unwrap();
        let mut udp_tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
        let mut udp_rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        round_trip(&mut ring, &mut udp_tx, &mut udp_rx);
        tun_round_trip(&mut ring, &mut tun_tx, &mut tun_rx);
        let workers: Vec<_> = thread_names().into_iter().filter(|name| name.starts_with("iou-")).collect();
        assert_eq!(workers, Vec::<String>::new());
    });
}

/// A wait ends by arrival, by waking and by time, and says which.
fn waits(reactor: &mut impl Reactor, rx: &mut impl RxPort) {
    while rx.receive().unwrap() > 0 {}
    while reactor.wait(Some(Duration::ZERO)).unwrap() == Wake::Ready {}
    let start = Instant::now();
    assert_eq!(reactor.wait(Some(Duration::from_millis(30))).unwrap(), Wake::Timeout);
    assert!(start.elapsed() >= Duration::from_millis(30) && start.elapsed() < PATIENCE);

    for _ in 0..3 {
        let waker = reactor.waker();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        let start = Instant::now();
        assert_eq!(reactor.wait(Some(PATIENCE)).unwrap(), Wake::Ready);
        assert!(start.elapsed() < PATIENCE / 2, "the wake was noticed when the time was up");
        thread.join().unwrap();
    }
    reactor.waker().wake();
    assert_eq!(reactor.wait(None).unwrap(), Wake::Ready, "a wake before the wait is not lost");

    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(&[1], "127.0.0.1:2000").unwrap();
    assert_eq!(reactor.wait(None).unwrap(), Wake::Ready);
    // Left unread on purpose, it does not wake a second time.
    assert_eq!(reactor.wait(Some(Duration::from_millis(10))).unwrap(), Wake::Timeout);
    assert_eq!(rx.receive().unwrap(), 1);
}

#[test]
fn waits_end_by_arrival_waking_and_time() {
    in_namespace(|| {
        let mut ring = ring();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        waits(&mut ring, &mut rx);
    });
    in_namespace(|| {
        let mut epoll = Epoll::new().unwrap();
        let mut rx = mmsg::UdpRx::new(&epoll, open(2000), 2048).unwrap();
        waits(&mut epoll, &mut rx);
    });
}

#[test]
fn what_another_port_reaped_is_not_slept_over() {
    in_namespace(|| {
        let mut ring = ring();
        let mut first = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        let mut second = uring::UdpRx::new(&ring, open(3000), uring::UdpRxConfig::default()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(first.receive().unwrap(), 0);
        sender.send_to(&[1], "127.0.0.1:2000").unwrap();
        assert_eq!(second.receive().unwrap(), 0, "this look takes the first port's datagram out of the ring");
        assert_eq!(ring.wait(Some(PATIENCE)).unwrap(), Wake::Ready);
        assert_eq!(first.receive().unwrap(), 1);
    });
}

#[test]
fn an_idle_ring_is_looked_at_without_system_calls() {
    in_namespace(|| {
        let ring = ring();
        let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
        rx.receive().unwrap();
        let before = ring.enters();
        for _ in 0..1000 {
            assert_eq!(rx.receive().unwrap(), 0);
        }
        assert_eq!(ring.enters(), before);
        // And a spinning worker sees what arrives without ever waiting.
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[1], "127.0.0.1:2000").unwrap();
        let start = Instant::now();
        while rx.receive().unwrap() == 0 {
            assert!(start.elapsed() < PATIENCE);
        }
    });
}

#[test]
fn ports_close_under_traffic_and_the_ring_serves_new_ones() {
    in_namespace(|| {
        let mut ring = ring();
        for _ in 0..40 {
            let mut rx = uring::UdpRx::new(&ring, open(2000), uring::UdpRxConfig::default()).unwrap();
            let mut tx = uring::UdpTx::new(&ring, open(1000), UdpTxConfig::default()).unwrap();
            round_trip(&mut ring, &mut tx, &mut rx);
            send(&mut tx, &[1; 64_000], to("127.0.0.1:2000", 1000));
            tx.flush().unwrap();
        }
    });
}

#[test]
fn this_kernel_has_what_the_ports_use() {
    let features = super::ring::features();
    assert!(features.udp() && features.tun() && features.no_sqarray, "{features:?}");
}
