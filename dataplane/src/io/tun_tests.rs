//! Superpackets and steering against the kernel: its TCP and UDP at both ends, our ports between two TUNs.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::{SocketFilter, TestRun, TestRunOptions};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use weir_abi::drop::DropReason;
use weir_abi::flow;

use super::bpf::OBJECT;
use super::epoll::Epoll;
use super::netlink::Netlink;
use super::ring::{Ring, RingConfig};
use super::testing::{bring_up, cut_into, elsewhere, in_namespace};
use super::tun::{TunConfig, TunQueue, TunTxConfig};
use super::{mmsg, uring};
use crate::engine::inner::Inner;
use crate::engine::inner::testing::{extensions, ipv4, ipv6, ipv6_fragment, udp};
use crate::engine::port::{BURST_LEN, Offload, RxBurst, RxMeta, RxPort, Segmentation, TxMeta, TxPort, TxSink};

const PATIENCE: Duration = Duration::from_secs(20);
const MTU: i32 = 1400;

fn open(name: &str, multi_queue: bool, offload: bool, host: u8) -> TunQueue {
    let queue = TunQueue::open(&TunConfig { name: name.into(), multi_queue, offload }).unwrap();
    bring_up(name, Some(MTU), Some(Ipv4Addr::new(10, 0, 0, host)));
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.link(name).unwrap().index;
    netlink.add_address(index, format!("fd00::{host}/64").parse().unwrap()).unwrap();
    // The kernel makes sure that an IPv6 address is nobody else's before it may be used; a sender would choose another one until then.
    let start = Instant::now();
    while let Err(error) = UdpSocket::bind(format!("[fd00::{host}]:0")) {
        assert!(start.elapsed() < PATIENCE, "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
    queue
}

/// The kernel's sockets behind the far TUN.
struct Far {
    listener: TcpListener,
    socket: UdpSocket,
}

/// A TUN in a namespace of its own, and what listens there.
fn far(v6: bool) -> (TunQueue, Far) {
    elsewhere(move || {
        let queue = open("weir0", false, true, 2);
        let address: IpAddr = if v6 { "fd00::2".parse().unwrap() } else { [10, 0, 0, 2].into() };
        let socket = UdpSocket::bind((address, 5000)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        (queue, Far { listener: TcpListener::bind((address, 5000)).unwrap(), socket })
    })
}

/// Carries everything that waits from one TUN to the other, and shows it.
fn carry(rx: &mut impl RxPort, tx: &mut impl TxPort, mut seen: impl FnMut(&[u8], RxMeta)) {
    for i in 0..rx.receive().unwrap() {
        let (packet, meta) = rx.frame(i);
        assert!(!meta.truncated);
        seen(packet, meta);
        tx.slot(packet.len()).unwrap()[..packet.len()].copy_from_slice(packet);
        tx.commit(packet.len(), TxMeta { offload: meta.offload, ..TxMeta::default() });
    }
    assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
}

/// The bytes of a stream, such that a lost, doubled or exchanged piece shows.
fn stream(len: usize) -> Vec<u8> {
    (0..len as u32 / 4).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect()
}

/// A kernel's TCP stream and UDP trains from here to the far side, with superpackets on the way.
fn superpackets<R: RxPort, T: TxPort>(far: Far, mut here: (R, T), mut there: (R, T)) {
    assert!(here.1.takes_offloads() && there.1.takes_offloads());
    let address = far.listener.local_addr().unwrap();
    let sent = stream(4 << 20);
    let (mut tcp, mut longest, mut checksums, mut trains) = (0, 0, 0, 0);
    let mut seen = |packet: &[u8], meta: RxMeta| match meta.offload {
        Offload { cut: Some((how, size)), checksum: Some((start, offset)) } => {
            longest = longest.max(packet.len());
            assert_eq!(start, if address.is_ipv4() { 20 } else { 40 });
            match how {
                Segmentation::Tcp { .. } => {
                    assert!(offset == 16 && usize::from(size) < MTU as usize && packet.len() > MTU as usize);
                    tcp += 1;
                }
                Segmentation::Udp => {
                    assert_eq!((offset, size, packet.len()), (6, 1200, usize::from(start) + 8 + 30_007));
                    trains += 1;
                }
            }
        }
        Offload { cut: None, checksum: Some(_) } => checksums += 1,
        Offload { cut: None, checksum: None } => {}
        Offload { cut: Some(_), checksum: None } => panic!("a superpacket without a checksum to complete"),
    };
    let client = std::thread::spawn({
        let sent = sent.clone();
        // The thread is a child of this one and so in the same namespace.
        move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            cut_into(&socket, 1200);
            socket.send_to(&sent[..30_007], address).unwrap();
        }
    });
    let server = std::thread::spawn(move || {
        let mut received = vec![];
        far.listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        let (mut datagrams, mut buffer) = (vec![], [0; 2048]);
        for _ in 0..26 {
            let (n, _) = far.socket.recv_from(&mut buffer).unwrap();
            assert!(n == 1200 || n == 7);
            datagrams.extend_from_slice(&buffer[..n]);
        }
        (received, datagrams)
    });
    let start = Instant::now();
    while !(client.is_finished() && server.is_finished()) {
        assert!(
            start.elapsed() < PATIENCE,
            "what was sent does not arrive: client ended {}, server ended {}",
            client.is_finished(),
            server.is_finished()
        );
        carry(&mut here.0, &mut there.1, &mut seen);
        carry(&mut there.0, &mut here.1, |_, _| {});
    }
    client.join().unwrap();
    let (received, datagrams) = server.join().unwrap();
    assert!(received == sent, "the stream was damaged");
    assert!(datagrams == sent[..30_007], "the datagrams were damaged or came out of order");
    assert!(tcp > 0 && checksums > 0 && trains == 1, "{tcp} {checksums} {trains}");
    assert!(longest > 60_000, "{longest}");
}

fn uring_pair(ring: &Ring, queue: TunQueue) -> (uring::TunRx, uring::TunTx) {
    let queue = Arc::new(queue);
    let tx = uring::TunTx::new(ring, Arc::clone(&queue), TunTxConfig::default()).unwrap();
    (uring::TunRx::new(ring, queue, uring::TunRxConfig::default()).unwrap(), tx)
}

fn mmsg_pair(epoll: &Epoll, queue: TunQueue) -> (mmsg::TunRx, mmsg::TunTx) {
    let queue = Arc::new(queue);
    let tx = mmsg::TunTx::new(Arc::clone(&queue), TunTxConfig::default()).unwrap();
    (mmsg::TunRx::new(epoll, queue, MTU as usize).unwrap(), tx)
}

#[test]
fn superpackets_pass_the_uring_ports_whole() {
    for v6 in [false, true] {
        in_namespace(move || {
            let ring = Ring::new(RingConfig::default()).unwrap();
            let (queue, far) = far(v6);
            let here = uring_pair(&ring, open("weir0", false, true, 1));
            superpackets(far, here, uring_pair(&ring, queue));
        });
    }
}

#[test]
fn superpackets_pass_the_plain_ports_whole() {
    for v6 in [false, true] {
        in_namespace(move || {
            let epoll = Epoll::new().unwrap();
            let (queue, far) = far(v6);
            let here = mmsg_pair(&epoll, open("weir0", false, true, 1));
            superpackets(far, here, mmsg_pair(&epoll, queue));
        });
    }
}

/// Offers a packet with each offload and says how many failed.
fn contradictions(tx: &mut impl TxPort, offloads: &[Offload]) -> u64 {
    let packet = ipv4("10.0.0.2", "10.0.0.1", 17, 0, &udp(1, 2, &[0; 100]));
    for &offload in offloads {
        tx.slot(packet.len()).unwrap()[..packet.len()].copy_from_slice(&packet);
        tx.commit(packet.len(), TxMeta { offload, ..TxMeta::default() });
    }
    assert_eq!(tx.flush().unwrap(), 0);
    tx.take_failed()
}

#[test]
fn offloads_that_contradict_their_packet_or_were_not_granted_fail_and_hold_nothing_up() {
    in_namespace(|| {
        let sound = Offload { cut: Some((Segmentation::Udp, 50)), checksum: Some((20, 6)) };
        let unsound = Offload { cut: Some((Segmentation::Udp, 50)), checksum: None };
        let outside = Offload { cut: None, checksum: Some((127, 0)) };
        let epoll = Epoll::new().unwrap();
        let ring = Ring::new(RingConfig::default()).unwrap();
        let all = [Offload::default(), unsound, sound, outside, sound];
        assert_eq!(contradictions(&mut mmsg_pair(&epoll, open("weir0", false, true, 1)).1, &all), 2);
        assert_eq!(contradictions(&mut uring_pair(&ring, open("weir1", false, true, 1)).1, &all), 2);
        let mut plain = mmsg_pair(&epoll, open("weir2", false, false, 1)).1;
        assert!(!plain.takes_offloads());
        assert_eq!(contradictions(&mut plain, &all), 4);
    });
}

/// The program `queue`, and the object that it belongs to.
fn program() -> Ebpf {
    let mut ebpf = Ebpf::load(OBJECT).expect("the object loads: run the tests as root");
    let program: &mut SocketFilter = ebpf.program_mut("queue").unwrap().try_into().unwrap();
    program.load().unwrap();
    ebpf
}

/// Reads one frame of a probe's flow from either queue and says which queue it was.
fn queue_of(ports: &mut [(mmsg::TunRx, mmsg::TunTx)], wanted: u16) -> (usize, Vec<u8>) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "what was sent does not arrive");
        for (i, (rx, _)) in ports.iter_mut().enumerate() {
            for frame in 0..rx.receive().unwrap() {
                let (packet, _) = rx.frame(frame);
                let ours = Inner::parse(packet).ok().and_then(|inner| inner.ports).is_some_and(|p| p[1] == wanted);
                if ours {
                    return (i, packet.to_vec());
                }
            }
        }
    }
}

/// Sends datagrams of many flows, answers each on the other queue, sends again, and says how many flows changed their queue. Checks the
/// queue against the hash when `steered`.
fn flows_that_move(steered: bool) -> usize {
    let epoll = Epoll::new().unwrap();
    let queues: Vec<_> = (0..2).map(|_| open("weir0", true, false, 1)).collect();
    let ebpf = program();
    if steered {
        let program: &SocketFilter = ebpf.program("queue").unwrap().try_into().unwrap();
        queues[0].steer(program.fd().unwrap().as_fd()).unwrap();
        // The interface keeps the program.
        drop(ebpf);
    }
    let mut ports: Vec<_> = queues.into_iter().map(|queue| mmsg_pair(&epoll, queue)).collect();
    let sender = UdpSocket::bind("10.0.0.1:4000").unwrap();
    let (mut moved, mut used) = (0, [0; 2]);
    for port in 6000..6032 {
        sender.send_to(b"there", ("10.0.0.2", port)).unwrap();
        let (first, packet) = queue_of(&mut ports, port);
        used[first] += 1;
        if steered {
            let expected = flow::worker_of(Inner::parse(&packet).unwrap().flow_hash(), 2);
            assert_eq!(first, usize::from(expected));
        }
        let back = ipv4("10.0.0.2", "10.0.0.1", 17, 0, &udp(port, 4000, b"back"));
        assert_eq!(flow::hash_of(&packet[..]), flow::hash_of(&back[..]));
        let tx = &mut ports[1 - first].1;
        // Several, because the driver looks at the clock before it learns anew.
        for _ in 0..3 {
            tx.slot(back.len()).unwrap()[..back.len()].copy_from_slice(&back);
            tx.commit(back.len(), TxMeta::default());
        }
        assert_eq!((tx.flush().unwrap(), tx.take_failed()), (0, 0));
        sender.send_to(b"there", ("10.0.0.2", port)).unwrap();
        moved += usize::from(queue_of(&mut ports, port).0 != first);
    }
    assert!(!steered || used.iter().all(|&n| n > 4), "{used:?}");
    moved
}

#[test]
fn steered_flows_keep_their_queue_wherever_replies_are_written() {
    in_namespace(|| assert_eq!(flows_that_move(true), 0));
    // Without our program they do not, or this test proves nothing.
    in_namespace(|| assert!(flows_that_move(false) > 0));
}

/// Packets of all the kinds that the hash tells apart, sound ones.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let body = (any::<u16>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..64));
    let protocol = prop::sample::select(vec![1u8, 6, 17, 47, 50, 58, 132]);
    (0u8..7, any::<[u32; 2]>(), any::<[u128; 2]>(), protocol, body, 0usize..11).prop_map(
        |(kind, v4, v6, protocol, (source, destination, payload), words)| {
            let [from4, to4] = v4.map(|bits| Ipv4Addr::from_bits(bits).to_string());
            let [from6, to6] = v6.map(|bits| std::net::Ipv6Addr::from_bits(bits).to_string());
            let mut l4 = udp(source, destination, &payload);
            match kind {
                0 => ipv4(&from4, &to4, protocol, 0x4000, &l4),
                // Cut within the ports or behind them.
                1 => ipv4(&from4, &to4, protocol, 0, &l4[..words.min(l4.len())]),
                2 => {
                    l4.truncate(l4.len() / 8 * 8);
                    ipv4(&from4, &to4, protocol, if source % 2 == 0 { 0x2000 } else { 0x2001 + source % 100 }, &l4)
                }
                3 => {
                    let mut packet = ipv4(&from4, &to4, protocol, 0, &[&vec![1; words.min(10) * 4], &l4[..]].concat());
                    packet[0] += words.min(10) as u8;
                    crate::engine::inner::testing::fix_checksum(&mut packet);
                    packet
                }
                4 => ipv6(&from6, &to6, protocol, &l4),
                5 => {
                    let kinds = vec![60; 1 + words % 8];
                    ipv6(&from6, &to6, 60, &[extensions(&kinds, protocol), l4].concat())
                }
                _ => ipv6_fragment((source & 0x0ff8) | destination & 1, 17, &l4[..8]),
            }
        },
    )
}

#[test]
fn program_and_engine_choose_alike() {
    let ebpf = program();
    let program: &SocketFilter = ebpf.program("queue").unwrap().try_into().unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut ports_counted = 0;
    for _ in 0..2000 {
        let packet = packets().new_tree(&mut runner).unwrap().current();
        let inner = Inner::parse(&packet).expect("only sound packets are made");
        // A test run takes Ethernet's header off before a socket filter sees the packet; the TUN has none.
        let ethertype = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&[2; 12][..], &ethertype, &packet].concat();
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        let chosen = program.test_run(options).unwrap().return_value;
        assert_eq!(chosen, inner.flow_hash() & 0xffff, "{packet:02x?}");
        assert_eq!(inner.flow_hash(), flow::hash_of(&packet[..]), "{packet:02x?}");
        ports_counted += usize::from(inner.ports.is_some());
    }
    assert!(ports_counted > 200, "{ports_counted}");
}

/// Frames with a header that means nothing, as no kernel writes it, then one that is sound.
fn mad_frames(kernel: &UdpSocket) {
    let packet = ipv4("10.0.0.1", "10.0.0.2", 17, 0, &udp(1, 2, b"sound"));
    let frame = |gso_type: u8| [&[0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0], &packet[..]].concat();
    for _ in 0..=BURST_LEN {
        kernel.send(&frame(3)).unwrap();
    }
    kernel.send(&[0; 9]).unwrap();
    kernel.send(&frame(0)).unwrap();
}

/// Both ends of what a port takes for a TUN.
fn mad_tun() -> (UdpSocket, TunQueue) {
    let [kernel, port] = [(), ()].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    kernel.connect(port.local_addr().unwrap()).unwrap();
    port.set_nonblocking(true).unwrap();
    (kernel, TunQueue::of(OwnedFd::from(port).into()))
}

#[test]
fn frames_with_a_senseless_header_are_dropped_and_counted_and_hide_nothing() {
    fn check(rx: &mut impl RxPort) {
        // Once only: a worker that found nothing sleeps until something new comes.
        assert_eq!(rx.receive().unwrap(), 1);
        assert!(rx.frame(0).0.ends_with(b"sound"));
        assert_eq!(rx.take_dropped(), Some((DropReason::LocalOffload, BURST_LEN as u64 + 2)));
        assert_eq!(rx.take_dropped(), None);
        assert_eq!(rx.receive().unwrap(), 0);
    }
    let (kernel, queue) = mad_tun();
    mad_frames(&kernel);
    check(&mut mmsg::TunRx::new(&Epoll::new().unwrap(), Arc::new(queue), 1400).unwrap());
    let (kernel, queue) = mad_tun();
    mad_frames(&kernel);
    let ring = Ring::new(RingConfig::default()).unwrap();
    check(&mut uring::TunRx::new(&ring, Arc::new(queue), uring::TunRxConfig::default()).unwrap());
}
