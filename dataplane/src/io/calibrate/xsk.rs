//! What AF_XDP costs in copy mode, on the end of a veth pair that is in the namespace of this thread.
//!
//! ```text
//!   receive   socket ─ near ═════ far ─ `wan` ─ not live: drop                       the difference is what copying into
//!                                          └─── live: redirect ─▸ RX ring ─▸ WanRx   the UMEM and reading there take
//!   send      socket ◂ near ═════ far ◂ TX ring ◂ WanTx
//! ```
//!
//! A socket copies when it is read, AF_XDP when the frame is redirected. So the cost of receiving is the reading and, of the train's way over
//! the pair, what it takes longer than one that the same program drops. A card in zero-copy cannot be made out of a veth pair.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_abi::frame::ETHERNET_LEN;
use weir_abi::gcra::Rate;
use weir_abi::map::{Class, Config};
use weir_abi::wire::{DataHeader, ReceiverIndex};

use super::{CalibrateError, DATAGRAM_LEN, FAR, NEAR, PATIENCE, PORT, TRAIN_LEN, during, medians};
use crate::engine::port::{RxPort, TxMeta, TxPort, TxSink as _};
use crate::io::bpf::{AttachMode, OBJECT, Programs};
use crate::io::epoll::Epoll;
use crate::io::memory::{MemoryConfig, pair};
use crate::io::netlink::{L2, Netlink};
use crate::io::xsk::{Halves, HopTable, Mode, Queue, Shared, WanRx, WanTx, Watch, XskConfig, Xsks};

/// Trains that are measured in each direction.
const TRAINS: usize = 500;
/// How long each direction may take; what was measured by then is reported.
const BUDGET: Duration = Duration::from_millis(400);
/// Frames of the socket: several trains in each direction.
const FRAMES: u32 = 1024;
/// Bytes of the device's longest packet.
const MTU: u32 = 1500;
/// The lane that the frames are for.
const LANE: ReceiverIndex = ReceiverIndex::new(0, 1, 1);

/// What was measured, in nanoseconds of one core for each frame, as in [`Measured`](super::Measured).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XskMeasured {
    /// Copying a redirected frame, and reading it from the ring.
    pub rx_ns: u32,
    /// Writing a frame, and sending it over the veth into the other end's queue.
    pub tx_ns: u32,
}

/// An end of the pair, and the socket of the measurement behind it.
pub(super) struct End<'a> {
    pub(super) netlink: &'a mut Netlink,
    pub(super) name: &'a str,
    pub(super) socket: &'a UdpSocket,
}

impl End<'_> {
    /// Index and Ethernet address.
    fn device(&mut self) -> Result<(u32, [u8; 6]), CalibrateError> {
        let interfaces = self.netlink.interfaces()?;
        let found = interfaces.into_iter().find(|interface| interface.name == self.name);
        let device = found.and_then(|interface| Some((interface.index, interface.mac?)));
        device.ok_or_else(|| during("find the pair")(io::ErrorKind::NotFound.into()))
    }
}

/// Measures between the socket of `near` and AF_XDP on `far`, which is in the namespace of this thread.
pub(super) fn over_xsk(mut near: End<'_>, mut far: End<'_>) -> Result<XskMeasured, CalibrateError> {
    let (_, near_mac) = near.device()?;
    let (interface, far_mac) = far.device()?;
    let train: Vec<u8> = (0..TRAIN_LEN as u64).flat_map(datagram).collect();

    let mut programs = Programs::load(OBJECT, 1, None)?;
    let unlimited = Rate { interval_ns: 0, burst_ns: 0 };
    programs.configure(Config {
        port_first: PORT,
        port_last: PORT,
        flags: 0,
        miss_sample: 0,
        xsk_frame_len_max: MTU + ETHERNET_LEN as u32,
        source: unlimited,
        class: [unlimited; Class::COUNT],
    })?;
    let queue = Queue { interface, queue: 0 };
    let sockets = Xsks::open(&[queue], &XskConfig { mode: Some(Mode::Copy), frames: FRAMES, ..XskConfig::default() })?;
    for (queue, socket) in sockets.each() {
        programs.set_wan_xsk(queue.queue, socket)?;
    }
    programs.attach_wan(far.name, AttachMode::Native)?;

    let watch = Watch::Epoll(Epoll::new().map_err(during("open an epoll"))?);
    let mut halves = Halves::new(sockets);
    // Beside AF_XDP stands a port by which nothing comes and nothing is to go.
    let (beside, _) = pair(MemoryConfig::default(), None, None);
    let mut rx = WanRx::new(&watch, &mut halves, interface, PORT, beside.rx).map_err(during("watch AF_XDP"))?;
    let hops = Shared::default();
    let source = Some(FAR.into());
    let hop = L2 { interface, source_mac: far_mac, destination_mac: near_mac, source, mtu: MTU };
    hops.publish(Arc::new(HopTable::from_iter([(NEAR.into(), hop)])));
    let mut tx = WanTx::new(&watch, &mut halves, interface, PORT, &hops, beside.tx).map_err(during("watch AF_XDP"))?;

    let mut pass = || {
        programs.set_live(LANE, false).map_err(io::Error::other)?;
        // A train of the pass before that came late is not this one's.
        while rx.receive()? > 0 {}
        let start = Instant::now();
        send(near.socket, FAR, &train)?;
        let dropped = start.elapsed();
        programs.set_live(LANE, true).map_err(io::Error::other)?;
        let start = Instant::now();
        send(near.socket, FAR, &train)?;
        receive(&mut rx)?;
        Ok((dropped, start.elapsed()))
    };
    let (dropped_ns, received_ns) = medians(TRAINS, BUDGET, &mut pass).map_err(during("receive by AF_XDP"))?;

    let mut buffer = vec![0; 1 << 16];
    let meta =
        TxMeta { destination: Some(SocketAddr::from((NEAR, PORT))), segment: DATAGRAM_LEN as u16, ..TxMeta::default() };
    let mut pass = || {
        let start = Instant::now();
        let slot = tx.slot(train.len()).ok_or(io::ErrorKind::WouldBlock)?;
        slot[..train.len()].copy_from_slice(&train);
        tx.commit(train.len(), meta);
        while tx.flush()? > 0 {
            within(start)?;
        }
        let sent = start.elapsed();
        let mut left = train.len();
        while left > 0 {
            left = left.saturating_sub(near.socket.recv(&mut buffer)?);
        }
        Ok((sent, sent))
    };
    let (tx_ns, _) = medians(TRAINS, BUDGET, &mut pass).map_err(during("send by AF_XDP"))?;
    Ok(XskMeasured { rx_ns: received_ns.saturating_sub(dropped_ns).max(1), tx_ns })
}

/// A data datagram of the measured length.
fn datagram(counter: u64) -> Vec<u8> {
    let mut bytes = DataHeader { generation: 0, receiver: LANE, counter }.encode().to_vec();
    bytes.resize(DATAGRAM_LEN, 0x20);
    bytes
}

fn send(socket: &UdpSocket, to: Ipv4Addr, train: &[u8]) -> io::Result<()> {
    socket.send_to(train, SocketAddr::from((to, PORT))).map(|_| ())
}

/// Takes a whole train.
fn receive(rx: &mut impl RxPort) -> io::Result<()> {
    let start = Instant::now();
    let mut left = TRAIN_LEN;
    while left > 0 {
        let received = rx.receive()?;
        left = left.saturating_sub(received);
        if received == 0 {
            within(start)?;
        }
    }
    Ok(())
}

/// Lets others run, softirqs above all, for as long as patience lasts.
fn within(start: Instant) -> io::Result<()> {
    if start.elapsed() > PATIENCE {
        return Err(io::ErrorKind::TimedOut.into());
    }
    std::thread::yield_now();
    Ok(())
}
