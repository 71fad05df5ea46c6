//! Buffers that the kernel takes by itself and the port gives back when a burst ends.
//!
//! ```text
//!   ring (shared with the kernel)        memory
//!   ┌──────────────────────┐             ┌─────────┬─────────┬───
//!   │ addr len bid │ … tail│ ──────────▶ │ buffer 0│ buffer 1│ …
//!   └──────────────────────┘             └─────────┴─────────┴───
//!   offered ──(kernel takes)──▶ in a completion ──(port lends)──▶ in a burst ──(give_back)──▶ offered
//! ```
//!
//! A buffer is in one of the three places, never in two, and only `offered` ones belong to the kernel.
#![allow(unsafe_code, reason = "the buffer ring and the buffers are shared with the kernel")]

use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::engine::port::{BURST_LEN, RxMeta};
use crate::io::queue::Region;
use crate::io::ring::Ring;

/// Most entries of a buffer ring (`io_register_pbuf_ring` in `io_uring/kbuf.c`).
const ENTRIES_MAX: u16 = 1 << 15;

struct Lent {
    buffer: u16,
    offset: usize,
    len: usize,
    meta: RxMeta,
}

/// A ring of provided buffers and the burst that is lent from it.
pub(in crate::io) struct BufferRing {
    ring: Ring,
    group: u16,
    entries: ManuallyDrop<Region>,
    memory: ManuallyDrop<Region>,
    buffer_len: usize,
    count: u16,
    tail: u16,
    burst: Vec<Lent>,
}

impl BufferRing {
    /// `count` buffers of `buffer_len` bytes, all offered to the kernel. `count` is a power of two.
    pub(super) fn new(ring: &Ring, count: u16, buffer_len: usize) -> io::Result<Self> {
        if !count.is_power_of_two() || count > ENTRIES_MAX || buffer_len == 0 || buffer_len > u32::MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Whole cache lines, so that two buffers never share one.
        let buffer_len = buffer_len.next_multiple_of(64);
        let entries = Region::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Region::new(usize::from(count) * buffer_len)?;
        let group = ring.with_buffer_group(|uring, group| {
            let address = entries.at(0, size_of::<BufRingEntry>()) as u64;
            // SAFETY: the region holds `count` entries and outlives the registration: `drop` ends that first, or leaks the region.
            unsafe { uring.submitter().register_buf_ring_with_flags(address, count, group, 0)? };
            Ok(group)
        })?;
        let mut buffers = Self {
            ring: ring.clone(),
            group,
            entries: ManuallyDrop::new(entries),
            memory: ManuallyDrop::new(memory),
            buffer_len,
            count,
            tail: 0,
            burst: Vec::with_capacity(BURST_LEN),
        };
        for buffer in 0..count {
            buffers.offer(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Whether the kernel accepts a buffer ring.
    pub(in crate::io) fn supported(uring: &IoUring) -> bool {
        let Ok(entries) = Region::new(size_of::<BufRingEntry>()) else { return false };
        let address = entries.at(0, size_of::<BufRingEntry>()) as u64;
        // SAFETY: the region holds the one entry and outlives the registration, which ends below.
        let registered = unsafe { uring.submitter().register_buf_ring_with_flags(address, 1, 0, 0) }.is_ok();
        if registered && uring.submitter().unregister_buf_ring(0).is_err() {
            std::mem::forget(entries);
        }
        registered
    }

    /// The group's number, for submissions.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Bytes of one buffer.
    pub(super) fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// Buffers in all.
    pub(super) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Frames of the burst.
    pub(super) fn len(&self) -> usize {
        self.burst.len()
    }

    /// Ends the burst: its buffers are the kernel's again.
    pub(super) fn give_back(&mut self) {
        if self.burst.is_empty() {
            return;
        }
        for i in 0..self.burst.len() {
            self.offer(self.burst[i].buffer);
        }
        self.burst.clear();
        self.publish();
    }

    /// Returns one buffer that holds nothing of use.
    pub(super) fn reject(&mut self, buffer: u16) {
        self.offer(buffer);
        self.publish();
    }

    /// The first `len` bytes of a buffer that a completion brought.
    pub(super) fn filled(&mut self, buffer: u16, len: usize) -> &mut [u8] {
        let len = len.min(self.buffer_len);
        // SAFETY: a buffer that a completion named is ours until it is offered again, and `&mut self` makes this the only view of it.
        unsafe { self.memory.bytes_mut(usize::from(buffer) * self.buffer_len, len) }
    }

    /// Adds `len` bytes at `offset` of a buffer to the burst.
    pub(super) fn lend(&mut self, buffer: u16, offset: usize, len: usize, meta: RxMeta) {
        debug_assert!(offset + len <= self.buffer_len);
        self.burst.push(Lent { buffer, offset, len, meta });
    }

    /// Frame `i` of the burst.
    pub(super) fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let &Lent { buffer, offset, len, meta } = &self.burst[i];
        (&mut self.filled(buffer, offset + len)[offset..], meta)
    }

    fn offer(&mut self, buffer: u16) {
        let slot = usize::from(self.tail & (self.count - 1));
        let address = self.memory.at(usize::from(buffer) * self.buffer_len, self.buffer_len) as u64;
        let entry = self.entries.at(slot * size_of::<BufRingEntry>(), size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: the entry lies in the region, is aligned (16 bytes from a page's start) and zeroed at first; the kernel does not read it
        // before the tail moves past it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.buffer_len as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        let base = self.entries.at(0, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: `base` is the first entry of the registered ring, and its reserved field is where the kernel reads the tail, atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Drops the memory once no operation uses it any more; call it after those were cancelled. `quiet` says that they were.
    pub(super) fn close(&mut self, quiet: bool) {
        if self.ring.unregister_buffers(self.group).is_ok() && quiet {
            // SAFETY: no operation names the group, so the kernel writes to neither region; `close` is called once, by the port's drop.
            unsafe {
                ManuallyDrop::drop(&mut self.entries);
                ManuallyDrop::drop(&mut self.memory);
            }
        }
    }
}
