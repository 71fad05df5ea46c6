//! Sending frames by the AF_XDP sockets of a worker: copied into frames of the UMEM, queued, and kicked out by batches.

use std::io;
use std::rc::Rc;

use super::socket::TxHalf;
use super::umem::Umem;
use super::watch::{Watch, Watched};
use crate::engine::port::{SUPERPACKET_LEN_MAX, TRAIN_SEGMENTS_MAX};

/// The sending halves of one port.
pub(super) struct Transmit {
    watched: Watched,
    umem: Rc<Umem>,
    halves: Vec<TxHalf>,
    multi_buffer: bool,
    /// Buffers that a train or a burst takes at most.
    room_min: usize,
}

impl Transmit {
    pub(super) fn new(watch: &Watch, umem: Rc<Umem>, halves: Vec<TxHalf>, multi_buffer: bool) -> io::Result<Self> {
        let watched = Watched::room(watch, halves.iter().map(TxHalf::descriptor))?;
        let room_min = TRAIN_SEGMENTS_MAX + SUPERPACKET_LEN_MAX / umem.frame_len() + 1;
        Ok(Self { watched, umem, halves, multi_buffer, room_min })
    }

    /// Whether a whole train, or a burst of packets, can be queued on every socket. Takes back what is sent, and sends, before it says no.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.looks_free() {
            self.reclaim();
            // An error that makes the port useless comes up again at the flush that ends the pass.
            let _ = self.kick();
            self.reclaim();
        }
        self.looks_free()
    }

    /// The same, by what was known last.
    pub(super) fn looks_free(&self) -> bool {
        let mut open = self.halves.iter().filter(|half| half.is_open()).peekable();
        // Whoever sends by no socket needs no frames: those that went with a device never come back.
        open.peek().is_none()
            || (self.umem.free() >= self.room_min && open.all(|half| half.known_room() >= self.room_min))
    }

    fn reclaim(&mut self) {
        self.halves.iter_mut().for_each(|half| half.reclaim(&self.umem));
    }

    /// Whether a frame of this length can go by a socket on this interface.
    pub(super) fn takes(&self, interface: u32, len: usize) -> bool {
        let fits = self.multi_buffer || len <= self.umem.frame_len();
        fits && self.halves.iter().any(|half| half.queue().interface == interface && half.is_open())
    }

    /// Queues one frame on an interface. Returns whether it did: there was room, and a socket is there.
    pub(super) fn send(&mut self, interface: u32, header: &[u8], payload: &[u8]) -> bool {
        let Some(half) = self.halves.iter_mut().find(|half| half.queue().interface == interface) else { return false };
        let total = header.len() + payload.len();
        let buffers = total.div_ceil(self.umem.frame_len()).max(1);
        if self.umem.free() < buffers || (half.room(buffers as u32) as usize) < buffers {
            return false;
        }
        let mut rest = payload;
        for i in 0..buffers {
            let Some(mut frame) = self.umem.take() else { return false };
            let bytes = self.umem.bytes(&mut frame);
            // Headers are far shorter than a frame.
            let start = if i == 0 { header.len() } else { 0 };
            bytes[..start].copy_from_slice(&header[..start]);
            let len = rest.len().min(bytes.len() - start);
            let (now, later) = rest.split_at(len);
            bytes[start..start + len].copy_from_slice(now);
            rest = later;
            half.push(&self.umem, frame, start + len, i + 1 < buffers);
        }
        true
    }

    /// Hands what is queued to the kernel. Returns how many buffers it has not looked at yet; the worker is woken when it takes more.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        self.watched.look()?;
        self.reclaim();
        let pending = self.kick()?;
        self.reclaim();
        let full = !self.looks_free();
        for (i, half) in self.halves.iter_mut().enumerate() {
            self.watched.want(i, half.is_open() && (full || half.pending() > 0))?;
        }
        Ok(pending)
    }

    fn kick(&mut self) -> io::Result<usize> {
        self.halves.iter_mut().try_fold(0, |pending, half| Ok(pending + half.kick()? as usize))
    }
}
