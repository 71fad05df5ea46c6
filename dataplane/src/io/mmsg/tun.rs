//! TUN packets by `read` and `write`, one call each.
//!
//! What a frame looks like to the kernel is the same as for [`uring`](crate::io::uring).
#![allow(unsafe_code, reason = "committed frames lie in raw memory")]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use weir_abi::drop::DropReason;

use super::passing;
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, SUPERPACKET_LEN_MAX, TxMeta, TxPort, TxSink};
use crate::io::epoll::Epoll;
use crate::io::packets::PacketQueue;
use crate::io::tun::{TunQueue, TunTxConfig};
use crate::io::vnet;

/// The receiving half of the TUN port, by `read`.
pub struct TunRx {
    queue: Arc<TunQueue>,
    memory: Box<[u8]>,
    buffer_len: usize,
    packets: Vec<Packet>,
    /// Frames with a header that means nothing we know, since they were last reported.
    refused: u64,
}

/// A packet of the burst, in the buffer of the same number.
struct Packet {
    len: usize,
    meta: RxMeta,
}

impl TunRx {
    /// A port that reads from a queue of an interface with this MTU in bytes; longer packets arrive truncated.
    ///
    /// # Errors
    /// When the queue cannot be watched.
    pub fn new(epoll: &Epoll, queue: Arc<TunQueue>, mtu: usize) -> io::Result<Self> {
        epoll.watch(queue.as_raw_fd())?;
        let header_len = queue.header_len();
        let packet_len = if header_len == 0 { mtu } else { SUPERPACKET_LEN_MAX };
        // One byte more: a packet that fills it is cut.
        let buffer_len = header_len + packet_len + 1;
        // Zeroed by the kernel when touched, as far as it is touched.
        let memory = vec![0; buffer_len * BURST_LEN].into();
        Ok(Self { queue, memory, buffer_len, packets: Vec::with_capacity(BURST_LEN), refused: 0 })
    }
}

impl RxBurst for TunRx {
    fn len(&self) -> usize {
        self.packets.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let &Packet { len, meta } = &self.packets[i];
        (&mut self.memory[i * self.buffer_len + self.queue.header_len()..][..len], meta)
    }
}

impl RxPort for TunRx {
    fn receive(&mut self) -> io::Result<usize> {
        self.packets.clear();
        // A frame that is thrown away takes no place: a burst that is empty must mean that nothing waits.
        while self.packets.len() < BURST_LEN {
            let memory = &mut self.memory[self.packets.len() * self.buffer_len..][..self.buffer_len];
            let len = match self.queue.file().read(memory) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) => {
                    passing(error)?;
                    break;
                }
            };
            let header_len = self.queue.header_len();
            match vnet::offload_of(&memory[..len], header_len) {
                Ok(offload) => {
                    let meta = RxMeta { truncated: len == self.buffer_len, offload, ..RxMeta::default() };
                    self.packets.push(Packet { len: len - header_len, meta });
                }
                Err(vnet::Refused) => self.refused += 1,
            }
        }
        Ok(self.packets.len())
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        let refused = std::mem::take(&mut self.refused);
        (refused > 0).then_some((DropReason::LocalOffload, refused))
    }
}

/// The sending half of the TUN port, by `write`.
pub struct TunTx {
    queue: Arc<TunQueue>,
    frames: PacketQueue,
}

impl TunTx {
    /// A sending port on a queue.
    ///
    /// # Errors
    /// When there is no memory for the slots.
    pub fn new(queue: Arc<TunQueue>, config: TunTxConfig) -> io::Result<Self> {
        let frames = PacketQueue::new(&queue, config)?;
        Ok(Self { queue, frames })
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
        while self.frames.len() > 0 {
            let frame = self.frames.frame(0);
            // SAFETY: the frame is committed and not popped, so its slot is initialised and nobody writes to it.
            let bytes = unsafe { std::slice::from_raw_parts(frame.bytes, frame.len) };
            let written = self.queue.file().write(bytes);
            self.frames.pop();
            if let Err(error) = written {
                self.frames.fail();
                if error.raw_os_error() == Some(libc::EBADFD) {
                    return Err(error);
                }
            }
        }
        Ok(0)
    }

    fn room(&self) -> usize {
        self.frames.room()
    }

    fn take_failed(&mut self) -> u64 {
        self.frames.take_failed()
    }
}
