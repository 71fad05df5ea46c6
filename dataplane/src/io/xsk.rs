//! The AF_XDP ports: frames between a worker and its queues of a device, past the kernel's stack.
//!
//! ```text
//!   device queue ─▶ `wan` / `lan` ──redirect──▶ RX ring ─▶ WanRx, LanRx ─▶ engine ─▶ WanTx, LanTx ─▶ TX ring ─▶ device queue
//!                        │ all else                 one UMEM per worker, for all its sockets
//!                        ▼
//!                     kernel ───────────────▶ UDP socket, TUN ─▶ (the same ports read them too)
//! ```
//!
//! A frame on queue `q` of a device can only go to a socket on that queue of that device. Each queue has one socket, which belongs to worker
//! `q mod workers`; what the engine finds there for another worker's lanes it hands over. Each port holds the ordinary port beside it:
//! whatever the programs leave to the kernel comes in there, and whatever has no known neighbour goes out there.
//!
//! Cost per frame: one descriptor in and one out of a ring each, no copy on receive, one copy of the payload on send.

mod hops;
mod lan;
mod packet;
mod receive;
pub mod ring;
mod socket;
#[cfg(test)]
mod tests;
mod transmit;
mod umem;
mod wan;
mod watch;

use std::io;
use std::rc::Rc;

pub use self::hops::{HopTable, NextHops, Shared};
pub use self::lan::{LanRx, LanTx};
pub use self::socket::Xsks;
use self::socket::{RxHalf, TxHalf};
use self::umem::Umem;
pub use self::wan::{WanRx, WanTx};
pub use self::watch::Watch;

/// Fewest frames of one socket: a burst received, a train sent, and as much again under way.
pub const FRAMES_MIN: u32 = 256;
/// Most frames of one socket.
pub const FRAMES_MAX: u32 = 1 << 16;

/// A receive queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Index of the interface.
    pub interface: u32,
    /// Number of the queue, from zero.
    pub queue: u32,
}

/// Whether the kernel copies between the device's buffers and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device reads and writes the UMEM.
    ZeroCopy,
    /// The kernel copies each frame.
    Copy,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        })
    }
}

/// What the sockets of a worker are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XskConfig {
    /// The mode to insist on; `None` takes zero-copy where every device can, else copy.
    pub mode: Option<Mode>,
    /// Frames of each socket, half to receive into and half to send from: a power of two, [`FRAMES_MIN`]..=[`FRAMES_MAX`].
    pub frames: u32,
    /// Bytes of a frame: 2048 or 4096. The kernel takes the first 256 of those that it receives into.
    pub frame_len: u32,
    /// How long, in microseconds, a look at a socket may poll the device itself (`SO_BUSY_POLL`); zero leaves that to interrupts.
    pub busy_poll_us: u32,
}

impl Default for XskConfig {
    fn default() -> Self {
        Self { mode: None, frames: 4096, frame_len: 4096, busy_poll_us: 0 }
    }
}

impl XskConfig {
    /// Modes to try in order, each with multi-buffer and, for kernels and drivers without that, without.
    fn attempts(&self) -> &'static [(Mode, bool)] {
        const ALL: [(Mode, bool); 4] =
            [(Mode::ZeroCopy, true), (Mode::ZeroCopy, false), (Mode::Copy, true), (Mode::Copy, false)];
        match self.mode {
            None => &ALL,
            Some(Mode::ZeroCopy) => &ALL[..2],
            Some(Mode::Copy) => &ALL[2..],
        }
    }
}

/// Why there are no AF_XDP sockets.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// No queue was asked for.
    #[error(
        "no device queue for an AF_XDP socket: check wan.interface and lan.interfaces, or set the port to \"socket\" or \"tun\""
    )]
    NoQueue,
    /// No memory for the frames.
    #[error("no memory for {bytes} bytes of AF_XDP frames ({source}): lower xsk.frames")]
    NoMemory {
        /// How much was wanted.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The frames cannot be locked.
    #[error(
        "{bytes} bytes of AF_XDP frames cannot be locked in memory ({source}): grant CAP_IPC_LOCK, raise RLIMIT_MEMLOCK (LimitMEMLOCK= of systemd), or lower xsk.frames"
    )]
    Locked {
        /// How much was wanted.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step failed.
    #[error("AF_XDP on queue {} of interface {}: {step}: {source}; the ports \"socket\" and \"tun\" do without", queue.queue, queue.interface)]
    Step {
        /// What was being done.
        step: &'static str,
        /// Where.
        queue: Queue,
        /// What the kernel said.
        source: io::Error,
    },
}

impl XskError {
    /// Whether another socket has the queue, perhaps one that is just being taken away.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Step { step: "bind", source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// The sockets of a worker on its thread: what its ports are made from.
pub struct Halves {
    umem: Rc<Umem>,
    rx: Vec<(Queue, RxHalf)>,
    tx: Vec<TxHalf>,
    multi_buffer: bool,
}

impl Halves {
    /// Takes the sockets apart; call it on the worker's thread.
    pub fn new(xsks: Xsks) -> Self {
        let (mode, multi_buffer) = (xsks.mode(), xsks.multi_buffer());
        let queues: Vec<Queue> = xsks.each().map(|(queue, _)| queue).collect();
        let Xsks { umem, sockets, .. } = xsks;
        let (rx, tx): (Vec<_>, Vec<_>) = sockets.into_iter().map(|socket| socket.split(mode)).unzip();
        Self { umem: Rc::new(umem), rx: queues.into_iter().zip(rx).collect(), tx, multi_buffer }
    }

    /// The receiving halves on one of these interfaces. They are given once.
    fn take_rx(&mut self, interfaces: &[u32]) -> Vec<RxHalf> {
        let (taken, kept) = self.rx.drain(..).partition(|(queue, _)| interfaces.contains(&queue.interface));
        self.rx = kept;
        Vec::into_iter(taken).map(|(_, half)| half).collect()
    }

    /// The sending halves on one of these interfaces. They are given once.
    fn take_tx(&mut self, interfaces: &[u32]) -> Vec<TxHalf> {
        let (taken, kept) = self.tx.drain(..).partition(|half| interfaces.contains(&half.queue().interface));
        self.tx = kept;
        taken
    }
}
