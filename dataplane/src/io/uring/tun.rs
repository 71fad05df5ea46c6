//! TUN packets: one multishot read into provided buffers, and writes that complete where they are submitted.
//!
//! ```text
//!   one buffer, one slot:  ┌────────────────┬──────────────────────────────────────────┐
//!                          │ virtio_net_hdr │ IP packet or superpacket                 │
//!                          │ 10, or nothing │ up to the MTU, or 65,535 with the header │
//!                          └────────────────┴──────────────────────────────────────────┘
//! ```
//!
//! A buffer has one byte more than the longest frame, so that a packet which fills it is known to be cut. The engine sees the packet only;
//! what the header says is in its [`RxMeta`].
#![allow(unsafe_code, reason = "operations point to buffers and slots that the kernel reads and writes")]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::opcode::{ReadMulti, Write};
use io_uring::types::{Fd, Fixed};
use weir_abi::drop::DropReason;

use super::RxCounters;
use super::buffers::BufferRing;
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, SUPERPACKET_LEN_MAX, TxMeta, TxPort, TxSink};
use crate::io::packets::PacketQueue;
use crate::io::ring::{Completion, PortId, Ring, TOKEN_MASK};
use crate::io::tun::{TunQueue, TunTxConfig};
use crate::io::vnet;

/// The buffers of a [`TunRx`].
#[derive(Clone, Copy, Debug)]
pub struct TunRxConfig {
    /// Buffers, a power of two. While a burst is worked on the kernel fills the others.
    pub buffers: u16,
    /// The interface's MTU in bytes; longer packets arrive truncated, unless superpackets were asked for.
    pub mtu: usize,
}

impl Default for TunRxConfig {
    fn default() -> Self {
        // Two bursts: one being worked on, one being filled. What is not read yet waits in the interface's own queue. With superpackets
        // 8 MiB, of which only what traffic touches is real: one page of each buffer with small packets.
        Self { buffers: 2 * BURST_LEN as u16, mtu: 9000 }
    }
}

/// The receiving half of the TUN port, over io_uring: packets from the kernel.
pub struct TunRx {
    ring: Ring,
    port: PortId,
    buffers: BufferRing,
    armed: bool,
    counters: RxCounters,
    /// Frames with a header that means nothing we know, since they were last reported.
    refused: u64,
    queue: Arc<TunQueue>,
}

impl TunRx {
    /// Starts reading from a queue.
    ///
    /// # Errors
    /// When the kernel refuses the buffers or the file, or `config.buffers` is no power of two.
    pub fn new(ring: &Ring, queue: Arc<TunQueue>, config: TunRxConfig) -> io::Result<Self> {
        let header_len = queue.header_len();
        let packet_len = if header_len == 0 { config.mtu } else { SUPERPACKET_LEN_MAX };
        let buffers = BufferRing::new(ring, config.buffers, header_len + packet_len + 1)?;
        let mut port = Self {
            ring: ring.clone(),
            port: ring.attach(usize::from(config.buffers) + 4),
            buffers,
            armed: false,
            counters: RxCounters::default(),
            refused: 0,
            queue,
        };
        port.arm()?;
        Ok(port)
    }

    /// What happened besides frames.
    pub fn counters(&self) -> RxCounters {
        self.counters
    }

    fn arm(&mut self) -> io::Result<()> {
        if self.armed {
            return Ok(());
        }
        // Length zero: as much as the buffer holds. Offset -1: a TUN has no position. A plain descriptor, because io-uring 0.7.15 loses the
        // mark of a registered one for this opcode; one look-up per arming is nothing.
        let file = Fd(self.queue.as_raw_fd());
        let entry = ReadMulti::new(file, 0, self.buffers.group()).offset(u64::MAX).build();
        // SAFETY: the buffers stay until `drop` has cancelled the operation, or for ever.
        unsafe { self.ring.push(self.port, 0, entry)? };
        self.armed = true;
        self.ring.submit()
    }

    fn take(&mut self, completion: Completion) -> io::Result<()> {
        if !completion.more() {
            self.armed = false;
            self.counters.rearmed += 1;
        }
        match (completion.buffer(), usize::try_from(completion.result)) {
            (Some(buffer), Ok(len @ 1..)) => {
                let header_len = self.queue.header_len();
                let truncated = len >= self.buffers.buffer_len();
                match vnet::offload_of(self.buffers.filled(buffer, len), header_len) {
                    Ok(offload) => {
                        let meta = RxMeta { truncated, offload, ..RxMeta::default() };
                        self.buffers.lend(buffer, header_len, len - header_len, meta);
                    }
                    Err(vnet::Refused) => {
                        self.refused += 1;
                        self.buffers.reject(buffer);
                    }
                }
            }
            (buffer, _) => {
                if let Some(buffer) = buffer {
                    self.buffers.reject(buffer);
                }
                self.counters.count_end(completion.result)?;
            }
        }
        Ok(())
    }
}

impl RxBurst for TunRx {
    fn len(&self) -> usize {
        self.buffers.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        self.buffers.frame(i)
    }
}

impl RxPort for TunRx {
    fn receive(&mut self) -> io::Result<usize> {
        self.buffers.give_back();
        self.ring.reap()?;
        while self.buffers.len() < BURST_LEN {
            let Some(completion) = self.ring.next(self.port) else { break };
            self.take(completion)?;
        }
        if self.buffers.len() + self.ring.waiting(self.port) < self.buffers.count() {
            self.arm()?;
        }
        Ok(self.buffers.len())
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        let refused = std::mem::take(&mut self.refused);
        (refused > 0).then_some((DropReason::LocalOffload, refused))
    }
}

impl Drop for TunRx {
    fn drop(&mut self) {
        let quiet = !self.armed || self.ring.cancel(self.port, &[0]);
        self.ring.detach(self.port);
        self.buffers.close(quiet);
    }
}

/// The sending half of the TUN port, over io_uring: packets to the kernel.
///
/// A write to a TUN runs the network stack's receive path before it returns, so each completes while it is submitted and order is kept
/// without links.
pub struct TunTx {
    ring: Ring,
    port: PortId,
    /// Leaked should a write not end.
    frames: ManuallyDrop<PacketQueue>,
    file: Fixed,
    /// For each frame handed over, the oldest first, whether its write has ended.
    writing: VecDeque<bool>,
    /// The token of the oldest write.
    oldest: u64,
    _queue: Arc<TunQueue>,
}

impl TunTx {
    /// A sending port on a queue.
    ///
    /// # Errors
    /// When there is no memory for the slots, or the ring takes no more files.
    pub fn new(ring: &Ring, queue: Arc<TunQueue>, config: TunTxConfig) -> io::Result<Self> {
        let frames = PacketQueue::new(&queue, config)?;
        let file = ring.register_file(queue.as_raw_fd())?;
        Ok(Self {
            ring: ring.clone(),
            port: ring.attach(config.slots),
            frames: ManuallyDrop::new(frames),
            file,
            writing: VecDeque::with_capacity(config.slots),
            oldest: 0,
            _queue: queue,
        })
    }

    /// Takes what the kernel has answered and frees the slots from the oldest on.
    fn collect(&mut self) -> io::Result<()> {
        let mut gone = None;
        while let Some(completion) = self.ring.next(self.port) {
            let place = (completion.token.wrapping_sub(self.oldest) & TOKEN_MASK) as usize;
            if let Some(ended) = self.writing.get_mut(place) {
                *ended = true;
            }
            if completion.result < 0 {
                self.frames.fail();
                if completion.result == -libc::EBADFD {
                    gone = Some(io::Error::from_raw_os_error(libc::EBADFD));
                }
            }
        }
        while self.writing.front() == Some(&true) {
            self.writing.pop_front();
            self.frames.pop();
            self.oldest += 1;
        }
        gone.map_or(Ok(()), Err)
    }
}

impl TxSink for TunTx {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.frames.slot(len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.frames.commit(len, meta);
    }

    fn takes_offloads(&self) -> bool {
        self.frames.takes_offloads()
    }
}

impl TxPort for TunTx {
    fn flush(&mut self) -> io::Result<usize> {
        let fresh = self.writing.len()..self.frames.len();
        if self.frames.len() == 0 {
            return Ok(0);
        }
        for i in fresh {
            let frame = self.frames.frame(i);
            // NOWAIT: what the device cannot take at once is refused, not tried again behind later packets.
            let entry = Write::new(self.file, frame.bytes, frame.len as u32).rw_flags(libc::RWF_NOWAIT).build();
            // SAFETY: the slot is not reused before the write has ended, and `drop` waits or leaks.
            unsafe { self.ring.push(self.port, self.oldest + i as u64, entry)? };
            self.writing.push_back(false);
        }
        self.ring.submit()?;
        self.ring.reap()?;
        self.collect()?;
        Ok(self.frames.len())
    }

    fn room(&self) -> usize {
        self.frames.room()
    }

    fn take_failed(&mut self) -> u64 {
        self.frames.take_failed()
    }
}

impl Drop for TunTx {
    fn drop(&mut self) {
        for _ in 0..8 {
            if self.writing.is_empty() || self.ring.reap().is_err() {
                break;
            }
            // A device that is gone answers as well; nobody is left to hear of it.
            let _ = self.collect();
        }
        self.ring.detach(self.port);
        self.ring.unregister_file(self.file);
        if self.writing.is_empty() {
            // SAFETY: every write has ended, and the queue is dropped only here.
            unsafe { ManuallyDrop::drop(&mut self.frames) };
        }
    }
}
