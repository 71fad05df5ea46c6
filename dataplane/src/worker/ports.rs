//! The ports of a worker: each of the four halves is the ordinary one, or AF_XDP with the ordinary one beside it.
//!
//! ```text
//!                    io_uring               recvmmsg, epoll
//!   WAN rx, tx       UdpRx, UdpTx           UdpRx, UdpTx        ┐ alone, or inside
//!   LAN rx, tx       TunRx, TunTx           TunRx, TunTx        ┘ xsk::WanRx, WanTx, LanRx, LanTx
//! ```
//!
//! A half is one of two kinds for life, which a branch tells: sixteen combinations would else be sixteen engines. It does not choose: see
//! `plane::choice`.

use std::io;
use std::sync::Arc;

use weir_abi::drop::DropReason;

use super::{Queues, Running, WorkerConfig};
use crate::engine::Engine;
use crate::engine::counters::Counters;
use crate::engine::port::{RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};
use crate::io::epoll::Epoll;
use crate::io::ring::{Ring, RingConfig};
use crate::io::tun::TunTxConfig;
use crate::io::xsk::{self, Halves, Shared, Watch, Xsks};
use crate::io::{UdpTxConfig, mmsg, uring};
use crate::worker::idle::Idle;

/// What AF_XDP does on one side of a worker.
pub struct Side {
    /// Indices of the interfaces.
    pub interfaces: Vec<u32>,
    /// Whether packets are received by it.
    pub rx: bool,
    /// Whether packets are sent by it.
    pub tx: bool,
    /// Where packets go next.
    pub hops: Shared,
}

/// The AF_XDP sockets of a worker, and which of its ports use them.
pub struct XskPorts {
    /// The sockets.
    pub sockets: Xsks,
    /// The underlay.
    pub wan: Side,
    /// The local side.
    pub lan: Side,
    /// The UDP port that datagrams are sent from.
    pub port: u16,
    /// Whether the hardware of all LAN interfaces has checked what arrives.
    pub wire_checksums: bool,
}

/// A half: the ordinary port `S`, or the AF_XDP port `X` around it.
pub(super) enum Half<S, X> {
    Plain(S),
    Xsk(X),
}

macro_rules! either {
    ($half:expr, $port:ident => $call:expr) => {
        match $half {
            Half::Plain($port) => $call,
            Half::Xsk($port) => $call,
        }
    };
}

impl<S: RxBurst, X: RxBurst> RxBurst for Half<S, X> {
    fn len(&self) -> usize {
        either!(self, port => port.len())
    }

    #[inline]
    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        either!(self, port => port.frame(i))
    }
}

impl<S: RxPort, X: RxPort> RxPort for Half<S, X> {
    fn receive(&mut self) -> io::Result<usize> {
        either!(self, port => port.receive())
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        either!(self, port => port.take_dropped())
    }
}

impl<S: TxSink, X: TxSink> TxSink for Half<S, X> {
    #[inline]
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        either!(self, port => port.slot(len))
    }

    #[inline]
    fn commit(&mut self, len: usize, meta: TxMeta) {
        either!(self, port => port.commit(len, meta));
    }

    fn takes_offloads(&self) -> bool {
        either!(self, port => port.takes_offloads())
    }
}

impl<S: TxPort, X: TxPort> TxPort for Half<S, X> {
    fn flush(&mut self) -> io::Result<usize> {
        either!(self, port => port.flush())
    }

    fn room(&self) -> usize {
        either!(self, port => port.room())
    }

    fn take_failed(&mut self) -> u64 {
        either!(self, port => port.take_failed())
    }
}

/// The four halves of one kind of ordinary port.
type Wan<Rx, Tx> = (Half<Rx, xsk::WanRx<Rx>>, Half<Tx, xsk::WanTx<Tx>>);
type Lan<Rx, Tx> = (Half<Rx, xsk::LanRx<Rx>>, Half<Tx, xsk::LanTx<Tx>>);

/// Puts AF_XDP around the ordinary ports where it was chosen.
fn around<UR: RxPort, UT: TxPort, TR: RxPort, TT: TxPort>(
    chosen: Option<XskPorts>,
    watch: &Watch,
    (udp_rx, udp_tx): (UR, UT),
    (tun_rx, tun_tx): (TR, TT),
) -> io::Result<(Wan<UR, UT>, Lan<TR, TT>)> {
    let Some(XskPorts { sockets, wan, lan, port, wire_checksums }) = chosen else {
        return Ok(((Half::Plain(udp_rx), Half::Plain(udp_tx)), (Half::Plain(tun_rx), Half::Plain(tun_tx))));
    };
    // Halves that nobody takes go at the end of this function: nothing is received by them, and nothing sent.
    let halves = &mut Halves::new(sockets);
    let uplink = wan.interfaces.first().copied();
    let wan_rx = match uplink.filter(|_| wan.rx) {
        Some(uplink) => Half::Xsk(xsk::WanRx::new(watch, halves, uplink, port, udp_rx)?),
        None => Half::Plain(udp_rx),
    };
    let wan_tx = match uplink.filter(|_| wan.tx) {
        Some(uplink) => Half::Xsk(xsk::WanTx::new(watch, halves, uplink, port, &wan.hops, udp_tx)?),
        None => Half::Plain(udp_tx),
    };
    let lan_rx = match lan.rx {
        true => Half::Xsk(xsk::LanRx::new(watch, halves, &lan.interfaces, wire_checksums, tun_rx)?),
        false => Half::Plain(tun_rx),
    };
    let lan_tx = match lan.tx {
        true => Half::Xsk(xsk::LanTx::new(watch, halves, &lan.interfaces, &lan.hops, tun_tx)?),
        false => Half::Plain(tun_tx),
    };
    Ok(((wan_rx, wan_tx), (lan_rx, lan_tx)))
}

type OverUring = Running<
    Ring,
    Half<uring::UdpRx, xsk::WanRx<uring::UdpRx>>,
    Half<uring::UdpTx, xsk::WanTx<uring::UdpTx>>,
    Half<uring::TunRx, xsk::LanRx<uring::TunRx>>,
    Half<uring::TunTx, xsk::LanTx<uring::TunTx>>,
>;

/// A worker on io_uring.
pub(super) fn over_uring(config: WorkerConfig, queues: Queues) -> io::Result<OverUring> {
    let ring = Ring::new(RingConfig::default()).map_err(io::Error::other)?;
    let sockets = config.sockets;
    let tun = Arc::new(config.tun);
    let mtu = usize::from(config.mtu);
    let rx = uring::TunRxConfig { mtu, ..uring::TunRxConfig::default() };
    let udp = (
        uring::UdpRx::new(&ring, Arc::clone(&sockets), uring::UdpRxConfig::default())?,
        uring::UdpTx::new(&ring, sockets, UdpTxConfig::default())?,
    );
    let tun = (uring::TunRx::new(&ring, Arc::clone(&tun), rx)?, uring::TunTx::new(&ring, tun, tun_slots(mtu))?);
    let ((wan_rx, wan_tx), (lan_rx, lan_tx)) = around(config.xsk, &Watch::Ring(ring.clone()), udp, tun)?;
    Ok(Running {
        wan_rx,
        wan_tx,
        lan_rx,
        lan_tx,
        number: config.number,
        reactor: ring,
        engine: Engine::new(config.number, config.handoff.workers(), Counters::new()),
        handoff: config.handoff,
        queues,
        clock: config.clock,
        idle: Idle::new(config.latency, config.shared_cores),
    })
}

/// Slots that hold what the default holds, or a packet of the TUN's own MTU where that is more.
fn tun_slots(mtu: usize) -> TunTxConfig {
    let slots = TunTxConfig::default();
    TunTxConfig { packet_len: slots.packet_len.max(mtu), ..slots }
}

type OverMmsg = Running<
    Epoll,
    Half<mmsg::UdpRx, xsk::WanRx<mmsg::UdpRx>>,
    Half<mmsg::UdpTx, xsk::WanTx<mmsg::UdpTx>>,
    Half<mmsg::TunRx, xsk::LanRx<mmsg::TunRx>>,
    Half<mmsg::TunTx, xsk::LanTx<mmsg::TunTx>>,
>;

/// A worker on plain system calls.
pub(super) fn over_mmsg(config: WorkerConfig, queues: Queues) -> io::Result<OverMmsg> {
    let epoll = Epoll::new()?;
    let sockets = config.sockets;
    let tun = Arc::new(config.tun);
    let mtu = usize::from(config.mtu);
    let udp = (
        // A train that the kernel merged may be longer than those that are sent: as long as a UDP payload can be.
        mmsg::UdpRx::new(&epoll, Arc::clone(&sockets), uring::UdpRxConfig::default().payload_len)?,
        mmsg::UdpTx::new(&epoll, sockets, UdpTxConfig::default())?,
    );
    let tun = (mmsg::TunRx::new(&epoll, Arc::clone(&tun), mtu)?, mmsg::TunTx::new(tun, tun_slots(mtu))?);
    let ((wan_rx, wan_tx), (lan_rx, lan_tx)) = around(config.xsk, &Watch::Epoll(epoll.clone()), udp, tun)?;
    Ok(Running {
        wan_rx,
        wan_tx,
        lan_rx,
        lan_tx,
        number: config.number,
        reactor: epoll,
        engine: Engine::new(config.number, config.handoff.workers(), Counters::new()),
        handoff: config.handoff,
        queues,
        clock: config.clock,
        idle: Idle::new(config.latency, config.shared_cores),
    })
}
