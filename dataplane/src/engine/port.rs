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
use std::net::SocketAddr;

/// Most frames in one burst. 64 fills a UDP_SEGMENT train and keeps a burst of headers within the first-level cache.
pub const BURST_LEN: usize = 64;

/// Longest run of datagrams that the kernel takes or gives as one train, in bytes (`UDP_MAX_SEGMENTS` and the IPv4 total length bound it).
pub const TRAIN_LEN_MAX: usize = 65_000;

/// Most datagrams in one train (`UDP_MAX_SEGMENTS` in `include/linux/udp.h` is 128 now, 64 before Linux 6.9).
pub const TRAIN_SEGMENTS_MAX: usize = 64;

/// What a port knows of a received frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxMeta {
    /// Who sent it; `None` on the local side.
    pub source: Option<SocketAddr>,
    /// When not zero, the frame is a train: datagrams of this many bytes each, the last one perhaps shorter (`UDP_GRO`).
    pub segment: u16,
    /// The kernel cut the frame to fit the buffer; its bytes must not be used.
    pub truncated: bool,
}

/// What a port must know of a frame to send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxMeta {
    /// Where to; `None` on the local side.
    pub destination: Option<SocketAddr>,
    /// When not zero, cut the frame into datagrams of this many bytes (`UDP_SEGMENT`).
    pub segment: u16,
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
}

/// The receiving half of a port.
pub trait RxPort: RxBurst {
    /// Gives the burst before back and takes the next one; never blocks. Returns its length, zero when nothing waits.
    ///
    /// # Errors
    /// Only when the port is of no more use (its device is gone); everything passing is handled inside and counted.
    fn receive(&mut self) -> io::Result<usize>;
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
