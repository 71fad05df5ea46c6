//! The batch port: how frames reach the engine and leave it.
//!
//! A port owns its buffers. A receive burst lends its frames for as long as the burst is current; a send slot is lent until it is
//! committed. The engine works on both in place, so it needs no buffer pool of its own and cannot keep a frame too long.
//!
//! ```text
//!   RxPort::receive ─▶ frame(0) frame(1) … frame(n-1) ─▶ receive (the burst before is given back) ─▶ …
//!   TxSink::slot ─▶ write ─▶ commit ─▶ slot ─▶ write ─▶ commit ─▶ TxPort::flush
//! ```
//!
//! WAN and LAN, receive and send are four independent choices; a port may offer any of the two halves.

use std::io;
use std::net::{IpAddr, SocketAddr};

use weir_abi::drop::DropReason;

/// Most frames in one burst. 64 fills a UDP_SEGMENT train and keeps a burst of headers within the first-level cache.
pub const BURST_LEN: usize = 64;

/// Longest run of datagrams that the kernel takes or gives as one train, in bytes (`UDP_MAX_SEGMENTS` and the IPv4 total length bound it).
pub const TRAIN_LEN_MAX: usize = 65_000;

/// Most datagrams in one train (`UDP_MAX_SEGMENTS` in `include/linux/udp.h` is 128 now, 64 before Linux 6.9).
pub const TRAIN_SEGMENTS_MAX: usize = 64;

/// Longest superpacket that the local side takes or gives, in bytes: what an IP length field can say.
pub const SUPERPACKET_LEN_MAX: usize = 65_535;

/// How a superpacket is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// Into TCP segments (RFC 9293) that continue each other's sequence numbers. With `cwr`, only the first one carries that flag
    /// (RFC 3168 §6.1.2).
    Tcp {
        /// Whether the superpacket's CWR flag is one event and not every segment's.
        cwr: bool,
    },
    /// Into UDP datagrams (RFC 768).
    Udp,
}

/// Work that whoever handed over a local packet leaves to whoever sends it on, as `struct virtio_net_hdr` names it
/// (`include/uapi/linux/virtio_net.h`). The default is none at all: the packet is as it would be on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Set when the frame is a superpacket: how it is cut, and bytes of payload behind the headers of each piece, the last one perhaps
    /// fewer. Never zero bytes.
    pub cut: Option<(Segmentation, u16)>,
    /// Set when the transport checksum holds only the pseudo-header's sum and must be completed: where the summed bytes begin, and where
    /// from there the checksum stands, in bytes. Always set with `cut`.
    pub checksum: Option<(u16, u16)>,
}

/// What a port knows of a received frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxMeta {
    /// Who sent it; `None` on the local side.
    pub source: Option<SocketAddr>,
    /// Which of our addresses it was sent to, where the port can tell.
    pub local: Option<IpAddr>,
    /// It came to the worker's own lane port, not to the one that all workers share.
    pub lane_port: bool,
    /// The outer traffic class: DSCP in the upper six bits, ECN in the lower two (RFC 2474, RFC 3168). Zero where the port cannot tell.
    pub class: u8,
    /// When not zero, the frame is a train: datagrams of this many bytes each, the last one perhaps shorter (`UDP_GRO`).
    pub segment: u16,
    /// The kernel cut the frame to fit the buffer; its bytes must not be used.
    pub truncated: bool,
    /// What is left to do, on the local side.
    pub offload: Offload,
}

/// What a port must know of a frame to send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxMeta {
    /// Where to; `None` on the local side.
    pub destination: Option<SocketAddr>,
    /// Which of our addresses to send from; `None` leaves it to the routing table.
    pub source: Option<IpAddr>,
    /// Send from the worker's own lane port; a worker that has none sends from the port that all share.
    pub lane_port: bool,
    /// The outer traffic class: DSCP in the upper six bits, ECN in the lower two.
    pub class: u8,
    /// When not zero, cut the frame into datagrams of this many bytes (`UDP_SEGMENT`).
    pub segment: u16,
    /// What is left to do, on the local side. A port that says that it takes no offloads is given none.
    pub offload: Offload,
}

/// The frames of one burst, lent by a port.
pub trait RxBurst {
    /// Frames in the burst, at most [`BURST_LEN`].
    fn len(&self) -> usize;

    /// Whether the burst holds no frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of frame `i` and what is known of it.
    ///
    /// # Panics
    /// When `i` is not below [`Self::len`].
    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta);
}

/// Where the engine writes frames to be sent.
pub trait TxSink {
    /// A free slot of at least `len` bytes, or `None` when the queue is full. A slot that is never committed costs nothing.
    fn slot(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Queues the first `len` bytes of the slot lent last. Order of commits is order on the wire.
    fn commit(&mut self, len: usize, meta: TxMeta);

    /// Whether frames with an [`Offload`] may be committed. Then there are slots of [`SUPERPACKET_LEN_MAX`] bytes.
    fn takes_offloads(&self) -> bool {
        false
    }
}

/// The receiving half of a port.
pub trait RxPort: RxBurst {
    /// Gives the burst before back and takes the next one; never blocks. Returns its length, zero when nothing waits.
    ///
    /// # Errors
    /// Only when the port is of no more use (its device is gone); everything passing is handled inside and counted.
    fn receive(&mut self) -> io::Result<usize>;

    /// Frames that the port itself dropped since the last call, one reason at a time until there is none. Most ports drop nothing.
    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        None
    }
}

/// The sending half of a port.
pub trait TxPort: TxSink {
    /// Hands committed frames to the kernel as far as it takes them, in order; never blocks. What the kernel does not take now stays
    /// queued. Returns how many frames are still queued.
    ///
    /// # Errors
    /// Only when the port is of no more use.
    fn flush(&mut self) -> io::Result<usize>;

    /// Free slots. A worker does not read from one side while the other has less room than a burst may need.
    fn room(&self) -> usize;

    /// Frames that the kernel refused for good since the last call (unreachable, message too long, interface down).
    fn take_failed(&mut self) -> u64;
}

impl<P: RxBurst + ?Sized> RxBurst for Box<P> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        (**self).frame(i)
    }
}

impl<P: RxPort + ?Sized> RxPort for Box<P> {
    fn receive(&mut self) -> io::Result<usize> {
        (**self).receive()
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        (**self).take_dropped()
    }
}

impl<P: TxSink + ?Sized> TxSink for Box<P> {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        (**self).slot(len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        (**self).commit(len, meta);
    }

    fn takes_offloads(&self) -> bool {
        (**self).takes_offloads()
    }
}

impl<P: TxPort + ?Sized> TxPort for Box<P> {
    fn flush(&mut self) -> io::Result<usize> {
        (**self).flush()
    }

    fn room(&self) -> usize {
        (**self).room()
    }

    fn take_failed(&mut self) -> u64 {
        (**self).take_failed()
    }
}
