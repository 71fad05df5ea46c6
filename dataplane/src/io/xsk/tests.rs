//! The ports in a network namespace, against the kernel's own sockets over veth, and on rings of a kernel gone mad.

use std::cell::RefCell;
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use weir_abi::gcra::Rate;
use weir_abi::map::{self, Class, LanQueue};
use weir_abi::wire::{DataHeader, ReceiverIndex};

use super::receive::Receive;
use super::ring::testing::memory;
use super::ring::{Consumer, LAYOUT, Producer};
use super::socket::RxHalf;
use super::umem::Umem;
use super::watch::Watched;
use super::*;
use crate::engine::inner::Inner;
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};
use crate::io::bpf::{AttachMode, OBJECT, Programs};
use crate::io::epoll::Epoll;
use crate::io::memory::{self, MemoryConfig, MemoryPort};
use crate::io::netlink::testing::{Namespace, ip};
use crate::io::netlink::{L2, Netlink};
use crate::io::reactor::Reactor;
use crate::io::ring::{Ring, RingConfig};

const TIMEOUT: Duration = Duration::from_secs(2);
/// What the kernel's socket on `va` has, and what only our port on `vb` answers to.
const KERNEL: &str = "10.0.0.1";
const OURS: &str = "10.0.0.2";

fn mac(name: &str) -> [u8; 6] {
    let text = ip(&format!("link show {name}"))[0]["address"].as_str().unwrap().to_owned();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn index(name: &str) -> u32 {
    Netlink::open().unwrap().link(name).unwrap().index
}

/// `va` with an address of the kernel, `vb` without any.
fn veth(mtu: u32) -> Namespace {
    let namespace = Namespace::with_veth();
    for name in ["va", "vb"] {
        ip(&format!("link set {name} mtu {mtu} up"));
    }
    ip(&format!("addr add {KERNEL}/24 dev va"));
    let text = mac("vb").map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!("neigh add {OURS} lladdr {text} dev va nud permanent"));
    namespace
}

enum Wait {
    Ring(Ring),
    Epoll(Epoll),
}

impl Wait {
    fn new(ring: bool) -> Self {
        if ring { Self::Ring(Ring::new(RingConfig::default()).unwrap()) } else { Self::Epoll(Epoll::new().unwrap()) }
    }

    fn watch(&self) -> Watch {
        match self {
            Self::Ring(ring) => Watch::Ring(ring.clone()),
            Self::Epoll(epoll) => Watch::Epoll(epoll.clone()),
        }
    }

    fn wait(&mut self) {
        match self {
            Self::Ring(ring) => ring.wait(Some(TIMEOUT)),
            Self::Epoll(epoll) => epoll.wait(Some(TIMEOUT)),
        }
        .unwrap();
    }
}

/// The next frame of a port, woken by its reactor.
fn next(port: &mut impl RxPort, wait: &mut Wait) -> Option<(Vec<u8>, RxMeta)> {
    for _ in 0..4 {
        if port.receive().unwrap() > 0 {
            let (bytes, meta) = port.frame(0);
            return Some((bytes.to_vec(), meta));
        }
        wait.wait();
    }
    None
}

/// A port of the ordinary kind that nothing comes from, and what was given to it.
fn ordinary() -> (MemoryPort, MemoryPort) {
    memory::pair(MemoryConfig::default(), None, None)
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b))).sum()
}

fn folded(mut sum: u32) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Whether an IPv4 packet without options has a right UDP checksum, by the plain rule.
fn udp_checksum_holds(packet: &[u8]) -> bool {
    let pseudo = words(&packet[12..20]) + 17 + (packet.len() - 20) as u32;
    packet[26..28] != [0, 0] && folded(pseudo + words(&packet[20..])) == 0xffff
}

/// A UDP datagram from us to the kernel's socket.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let hop = L2 { interface: 0, source_mac: [0; 6], destination_mac: [0; 6], source: None, mtu: 0 };
    let mut headers = [0; packet::WAN_HEADERS_LEN_MAX];
    let ends = (format!("{OURS}:9").parse().unwrap(), format!("{KERNEL}:{port}").parse().unwrap());
    let len = packet::write_wan_headers(&mut headers, &hop, ends, 0, payload).unwrap();
    [&headers[14..len], payload].concat()
}

/// Both ways between a kernel's UDP socket on `va` and LAN ports on both queues of `vb`, with payloads of `len` bytes.
fn lan_carries(mode: AttachMode, ring: bool, mtu: u32, len: usize) {
    let _namespace = veth(mtu);
    let mut programs = Programs::load(OBJECT, 1, None).unwrap();
    programs.set_overlay(&["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
    let interface = index("vb");
    let queues = [0, 1].map(|queue| Queue { interface, queue });
    let xsks = Xsks::open(&queues, &XskConfig { mode: Some(Mode::Copy), ..XskConfig::default() }).unwrap();
    assert_eq!((xsks.mode(), xsks.multi_buffer()), (Mode::Copy, true));
    for ((queue, socket), position) in xsks.each().zip(0..) {
        let key = LanQueue { interface, queue: queue.queue };
        programs.set_lan_xsk(key, position, mtu + 14, socket).unwrap();
    }
    programs.attach_lan("vb", mode).unwrap();
    let mut wait = Wait::new(ring);
    let mut halves = Halves::new(xsks);
    let (tun, mut kernel) = ordinary();
    let mut rx = LanRx::new(&wait.watch(), &mut halves, &[interface], false, tun.rx).unwrap();
    let hops = Shared::default();
    let mut tx = LanTx::new(&wait.watch(), &mut halves, &[interface], &hops, tun.tx).unwrap();

    let socket = UdpSocket::bind((KERNEL, 0)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    for _ in 0..3 * BURST_LEN {
        socket.send_to(&payload, (OURS, 9)).unwrap();
        let (packet, meta) = next(&mut rx, &mut wait).expect("a frame");
        assert_eq!((packet.len(), &packet[28..]), (28 + len, &payload[..]));
        assert!(udp_checksum_holds(&packet), "{:02x?}", &packet[..28]);
        assert_eq!(Inner::parse(&packet).unwrap().ttl, 63, "it has passed a router");
        assert_eq!(meta, RxMeta::default());
    }

    let answer = datagram(socket.local_addr().unwrap().port(), &payload);
    let send = |tx: &mut LanTx<memory::MemoryTx>| {
        tx.slot(answer.len()).unwrap()[..answer.len()].copy_from_slice(&answer);
        tx.commit(answer.len(), TxMeta::default());
        tx.flush().unwrap();
    };
    send(&mut tx);
    assert_eq!(kernel.rx.receive().unwrap(), 1, "without a neighbour it is the kernel's");
    assert_eq!(kernel.rx.frame(0).0, answer);
    let address: IpAddr = KERNEL.parse().unwrap();
    let hop = |mtu| L2 { interface, source_mac: mac("vb"), destination_mac: mac("va"), source: None, mtu };
    hops.publish(Arc::new(HopTable::from_iter([(address, hop(answer.len() as u32 - 1))])));
    tx.flush().unwrap();
    send(&mut tx);
    assert_eq!(kernel.rx.receive().unwrap(), 1, "too long for the device");
    hops.publish(Arc::new(HopTable::from_iter([(address, hop(answer.len() as u32))])));
    tx.flush().unwrap();
    let mut last = answer.clone();
    last[8] = 1;
    tx.slot(last.len()).unwrap()[..last.len()].copy_from_slice(&last);
    tx.commit(last.len(), TxMeta::default());
    tx.flush().unwrap();
    assert_eq!(kernel.rx.receive().unwrap(), 1, "the router answers when a TTL ends");
    assert_eq!(kernel.rx.frame(0).0, last);
    let mut received = vec![0; len + 1];
    for _ in 0..5000 {
        send(&mut tx);
        assert_eq!(socket.recv(&mut received).unwrap(), len);
        assert_eq!(received[..len], payload);
    }
    assert_eq!(kernel.rx.receive().unwrap(), 0);
    assert_eq!((rx.take_dropped(), tx.take_failed()), (None, 0));
}

#[test]
fn lan_frames_of_a_kernel_socket_arrive_whole_with_native_xdp() {
    lan_carries(AttachMode::Native, true, 1500, 1000);
}

#[test]
fn lan_frames_of_a_kernel_socket_arrive_whole_with_generic_xdp() {
    lan_carries(AttachMode::Generic, false, 1500, 1001);
}

#[test]
fn jumbo_frames_pass_in_several_buffers() {
    lan_carries(AttachMode::Native, false, 9000, 8000);
}

/// A data datagram for the lane that the tests open.
fn data(index: ReceiverIndex, counter: u64) -> Vec<u8> {
    let mut bytes = DataHeader { generation: 0, receiver: index, counter }.encode().to_vec();
    bytes.resize(100, 7);
    bytes
}

/// From a WAN port on `va` to one on `vb`, on one UMEM, and to the kernel's socket once the port on `vb` is gone.
fn wan_carries(mode: AttachMode, ring: bool) {
    let _namespace = Namespace::with_veth();
    for name in ["va", "vb"] {
        ip(&format!("link set {name} up"));
    }
    ip("addr add 10.0.0.2/24 dev vb");
    let index = ReceiverIndex::new(0, 3, 5);
    let mut programs = Programs::load(OBJECT, 1, None).unwrap();
    let config = map::Config {
        port_first: 4646,
        port_last: 4646,
        flags: 0,
        miss_sample: 0,
        xsk_frame_len_max: 1514,
        source: Rate { interval_ns: 0, burst_ns: 0 },
        class: [Rate { interval_ns: 0, burst_ns: 0 }; Class::COUNT],
    };
    programs.configure(config).unwrap();
    programs.set_live(index, true).unwrap();
    let (va, vb) = (super::tests::index("va"), super::tests::index("vb"));
    let open = |interface: &[u32]| {
        let queues: Vec<Queue> =
            interface.iter().flat_map(|&interface| [0, 1].map(|queue| Queue { interface, queue })).collect();
        Xsks::open(&queues, &XskConfig { frames: FRAMES_MIN, frame_len: 2048, ..XskConfig::default() }).unwrap()
    };
    let xsks = open(&[va, vb]);
    for (queue, socket) in xsks.each().filter(|(queue, _)| queue.interface == vb) {
        programs.set_wan_xsk(queue.queue, socket).unwrap();
    }
    programs.attach_wan("vb", mode).unwrap();
    let kernel = UdpSocket::bind((OURS, 4646)).unwrap();
    kernel.set_read_timeout(Some(TIMEOUT)).unwrap();

    let mut wait = Wait::new(ring);
    let mut halves = Halves::new(xsks);
    let (socket, mut beside) = ordinary();
    let mut rx = WanRx::new(&wait.watch(), &mut halves, vb, 4646, socket.rx).unwrap();
    let hops = Shared::default();
    let source: IpAddr = "10.0.0.9".parse().unwrap();
    let hop = L2 { interface: va, source_mac: mac("va"), destination_mac: mac("vb"), source: Some(source), mtu: 1500 };
    hops.publish(Arc::new(HopTable::from_iter([(OURS.parse().unwrap(), hop)])));
    let mut tx = WanTx::new(&wait.watch(), &mut halves, va, 4646, &hops, socket.tx).unwrap();
    drop(halves);
    let train: Vec<u8> = (0..40).flat_map(|counter| data(index, counter)).collect();
    let meta = TxMeta {
        destination: Some(format!("{OURS}:4646").parse().unwrap()),
        class: 0xb9,
        segment: 100,
        ..TxMeta::default()
    };
    let send = |tx: &mut WanTx<memory::MemoryTx>| {
        tx.slot(train.len()).unwrap()[..train.len()].copy_from_slice(&train);
        tx.commit(train.len(), meta);
        tx.flush().unwrap();
    };
    for _ in 0..100 {
        send(&mut tx);
        let mut received = vec![];
        while received.len() < train.len() {
            if rx.receive().unwrap() == 0 {
                wait.wait();
            }
            for i in 0..rx.len() {
                let (bytes, meta) = rx.frame(i);
                received.extend_from_slice(bytes);
                let expected = RxMeta {
                    source: Some((source, 4646).into()),
                    local: OURS.parse().ok(),
                    class: 0xb9,
                    ..RxMeta::default()
                };
                assert_eq!(meta, expected);
            }
        }
        assert_eq!(received, train);
    }
    assert_eq!(beside.rx.receive().unwrap(), 0);
    assert_eq!(rx.take_dropped(), None);

    // The receiving sockets go, and leave the map by themselves; the sending ones of the same UMEM stay.
    drop(rx);
    send(&mut tx);
    let mut received = [0; 200];
    for counter in 0..40 {
        assert_eq!(kernel.recv(&mut received).unwrap(), 100);
        assert_eq!(received[..100], data(index, counter));
    }
    assert_eq!(tx.take_failed(), 0);
}

#[test]
fn wan_data_falls_back_to_the_socket_when_the_port_goes_with_native_xdp() {
    wan_carries(AttachMode::Native, false);
}

#[test]
fn wan_data_falls_back_to_the_socket_when_the_port_goes_with_generic_xdp() {
    wan_carries(AttachMode::Generic, true);
}

#[test]
fn a_queue_that_is_taken_is_told_by_name() {
    let _namespace = veth(1500);
    let queue = Queue { interface: index("vb"), queue: 0 };
    let config = XskConfig { mode: Some(Mode::Copy), ..XskConfig::default() };
    let held = Xsks::open(&[queue], &config).unwrap();
    let error = Xsks::open(&[queue], &config).err().expect("the queue is taken").to_string();
    assert!(error.contains("queue 0 of interface") && error.contains("bind"), "{error}");
    drop(held);
    Xsks::open(&[queue], &config).unwrap();
    let zero_copy = XskConfig { mode: Some(Mode::ZeroCopy), ..XskConfig::default() };
    assert!(Xsks::open(&[Queue { queue: 1, ..queue }], &zero_copy).is_err(), "a veth copies");
    assert!(matches!(Xsks::open(&[], &config), Err(XskError::NoQueue)));
}

proptest! {
    #[test]
    fn descriptors_of_a_mad_kernel_never_panic_and_lose_no_frame(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u32>(), 0u8..4), 1..300),
    ) {
        const FRAMES: u32 = 256;
        let umem = Rc::new(Umem::new(FRAMES, 2048).unwrap());
        let (rx, fill) = (memory::<libc::xdp_desc>(128, 0), memory::<u64>(128, 0));
        let mut kernel = Producer::<libc::xdp_desc>::new(Arc::clone(&rx), LAYOUT, 128);
        let mut filled = Consumer::<u64>::new(Arc::clone(&fill), LAYOUT, 128);
        let fd = OwnedFd::from(File::open("/dev/null").unwrap());
        let half = RxHalf::fake(fd, Consumer::new(rx, LAYOUT, 128), Producer::new(fill, LAYOUT, 128));
        let watch = Watch::Epoll(Epoll::new().unwrap());
        let mut receive = Receive::with(Watched::arrivals(&watch, [].into_iter()).unwrap(), Rc::clone(&umem), vec![half]);
        for (address, len, options, kind) in descriptors {
            // Nonsense; a frame of ours with a likely length; the same in pieces; an end.
            let lent = filled.pop().unwrap_or(address);
            filled.release();
            let (addr, len, options) = match kind {
                0 => (address, len, options),
                1 => (lent + 256, len % 2000, 0),
                2 => (lent + 256, len % 2000, libc::XDP_PKT_CONTD),
                _ => (lent, 60, 0),
            };
            kernel.push(libc::xdp_desc { addr, len, options });
            kernel.submit();
            receive.burst(|bytes| Ok((0..bytes.len(), RxMeta::default()))).unwrap();
            for i in 0..receive.len() {
                receive.frame(i).0.fill(1);
            }
        }
        while receive.take_dropped().is_some() {}
        drop(receive);
        let mut seen = vec![false; FRAMES as usize];
        while let Some(frame) = umem.take() {
            let at = umem.lend(frame, super::umem::Purpose::Tx) / 2048;
            prop_assert!(!std::mem::replace(&mut seen[at as usize], true));
        }
    }
}

#[test]
fn a_socket_is_in_the_maps_by_its_queue() {
    let _namespace = veth(1500);
    let interface = index("vb");
    let xsks = Xsks::open(&[Queue { interface, queue: 1 }], &XskConfig::default()).unwrap();
    let all: Vec<_> = xsks.each().map(|(queue, fd)| (queue, fd.as_fd().try_clone_to_owned().is_ok())).collect();
    assert_eq!(all, [(Queue { interface, queue: 1 }, true)]);
}

/// An ordinary port that lends long slots and short ones from different places, and what was committed.
#[derive(Default)]
struct TwoPlaces {
    places: [Vec<u8>; 2],
    lent: usize,
    committed: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl TxSink for TwoPlaces {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.lent = usize::from(len > 100);
        self.places[self.lent].resize(2000, 0xee);
        Some(&mut self.places[self.lent])
    }

    fn commit(&mut self, len: usize, _: TxMeta) {
        self.committed.borrow_mut().push(self.places[self.lent][..len].to_vec());
    }
}

impl TxPort for TwoPlaces {
    fn flush(&mut self) -> io::Result<usize> {
        Ok(0)
    }

    fn room(&self) -> usize {
        1
    }

    fn take_failed(&mut self) -> u64 {
        0
    }
}

#[test]
fn what_leaves_is_what_was_written_however_long_the_slot_was_to_be() {
    fn check(tx: &mut impl TxPort, committed: &RefCell<Vec<Vec<u8>>>) {
        tx.slot(1280).unwrap()[..60].fill(7);
        let destination = Some(([10, 0, 0, 1], 4646).into());
        tx.commit(60, TxMeta { destination, ..TxMeta::default() });
        assert_eq!(*committed.borrow(), [[7; 60]]);
    }
    let watch = Watch::Epoll(Epoll::new().unwrap());
    let umem = Rc::new(Umem::new(128, 4096).unwrap());
    let mut halves = Halves { umem, rx: vec![], tx: vec![], multi_buffer: false };
    let hops = Shared::default();
    let local = TwoPlaces::default();
    let committed = Rc::clone(&local.committed);
    check(&mut LanTx::new(&watch, &mut halves, &[1], &hops, local).unwrap(), &committed);
    let underlay = TwoPlaces::default();
    let committed = Rc::clone(&underlay.committed);
    check(&mut WanTx::new(&watch, &mut halves, 1, 4646, &hops, underlay).unwrap(), &committed);
}
