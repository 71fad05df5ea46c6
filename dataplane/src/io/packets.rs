//! What both sending TUN ports share: a queue of packets, each behind the [header](super::vnet) that the interface wants, if it wants one.
//!
//! It knows nothing of how packets reach the kernel.

use std::io;

use super::queue::{FrameQueue, LINE, Limits, Queued};
use super::tun::{Offloads, TunQueue, TunTxConfig};
use super::vnet;
use crate::engine::port::{Offload, SUPERPACKET_LEN_MAX, TxMeta};

/// A queue of frames towards the TUN.
pub(super) struct PacketQueue {
    frames: FrameQueue,
    /// Bytes before the packet: those of a header, or none.
    header_len: usize,
    takes_offloads: bool,
    failed: u64,
}

impl PacketQueue {
    pub(super) fn new(tun: &TunQueue, config: TunTxConfig) -> io::Result<Self> {
        let Offloads { tcp, udp } = tun.offloads();
        // The engine asks for both or none.
        let takes_offloads = tcp && udp;
        let header_len = tun.header_len();
        let packet_len = if takes_offloads { SUPERPACKET_LEN_MAX } else { config.packet_len };
        let frame_len = header_len.checked_add(packet_len).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = frame_len.next_multiple_of(LINE).checked_mul(config.longest).ok_or(io::ErrorKind::InvalidInput)?;
        let limits = Limits { frames: config.slots, frame_len, bytes };
        Ok(Self { frames: FrameQueue::new(limits)?, header_len, takes_offloads, failed: 0 })
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn room(&self) -> usize {
        self.frames.room()
    }

    pub(super) fn takes_offloads(&self) -> bool {
        self.takes_offloads
    }

    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        let header_len = self.header_len;
        self.frames.slot(len.checked_add(header_len)?)?.get_mut(header_len..)
    }

    /// Queues the packet in the slot lent last. One whose offload contradicts it, or that the interface cannot be told of, fails at once.
    pub(super) fn commit(&mut self, len: usize, meta: TxMeta) {
        if self.write_header(len, &meta.offload).is_err() {
            self.failed += 1;
            return;
        }
        self.frames.commit(self.header_len + len, meta);
    }

    fn write_header(&mut self, len: usize, offload: &Offload) -> Result<(), vnet::Refused> {
        if self.header_len == 0 {
            return if *offload == Offload::default() { Ok(()) } else { Err(vnet::Refused) };
        }
        let (header, packet) = self.frames.lent().split_first_chunk_mut().ok_or(vnet::Refused)?;
        *header = vnet::encode(offload, packet.get(..len).ok_or(vnet::Refused)?)?;
        Ok(())
    }

    /// The `i`-th oldest frame, its header included.
    pub(super) fn frame(&self, i: usize) -> Queued {
        self.frames.frame(i)
    }

    pub(super) fn pop(&mut self) {
        self.frames.pop();
    }

    /// Counts a frame that the kernel refused.
    pub(super) fn fail(&mut self) {
        self.failed += 1;
    }

    pub(super) fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed)
    }
}
