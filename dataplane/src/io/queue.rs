//! The slab that a sending port lends slots from, first in, first out.
//!
//! ```text
//!   slots   [ . . | 3 4 5 6 | . . . ]      oldest = 3, len = 4, the next lent is the one after 6
//!                   └ committed ┘
//! ```
//!
//! Slots are used round and round, so order of commit is order of leaving. A slot's bytes stay where they are until [`FrameQueue::pop`]:
//! the kernel may read them meanwhile. It does not know what a frame means nor who sends it.
#![allow(unsafe_code, reason = "the kernel reads the slots while we hold the queue, so they live in raw memory")]

use std::io;
use std::ptr::NonNull;

use crate::engine::port::TxMeta;

/// Anonymous memory on its own pages, zeroed, given back when dropped. Pages that were never touched cost nothing.
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
}

impl Region {
    /// `len` bytes, rounded up to whole pages by the kernel.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Where byte `offset` lives.
    ///
    /// # Panics
    /// When `offset + len` leaves the region.
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the span lies in the region");
        // SAFETY: `offset` is within the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// The bytes of a span that the kernel does not write at the moment.
    ///
    /// # Safety
    /// Until the slice is gone nobody else, the kernel included, writes to the span, nor reads it if the caller writes.
    ///
    /// # Panics
    /// When `offset + len` leaves the region.
    pub(super) unsafe fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: `at` checked the bounds, the mapping is initialised (zeroed), and the caller vouches for exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length and is unmapped only here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the region is plain memory with one owner; the pointer is not tied to a thread.
unsafe impl Send for Region {}

/// A committed frame: where its bytes are and what a port must know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    /// First byte, valid until the frame is popped.
    pub(super) bytes: *const u8,
    /// Length in bytes.
    pub(super) len: usize,
    /// What the engine said of it.
    pub(super) meta: TxMeta,
}

/// A bounded first-in-first-out queue of frames in fixed slots.
pub(super) struct FrameQueue {
    region: Region,
    slot_len: usize,
    frames: Box<[(usize, TxMeta)]>,
    oldest: usize,
    len: usize,
}

impl FrameQueue {
    /// A queue of `slots` slots, each of `slot_len` bytes.
    pub(super) fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        // Whole cache lines, so that two slots never share one.
        let slot_len = slot_len.next_multiple_of(64);
        let bytes = slots.checked_mul(slot_len).filter(|_| slots > 0).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            region: Region::new(bytes)?,
            slot_len,
            frames: vec![(0, TxMeta::default()); slots].into(),
            oldest: 0,
            len: 0,
        })
    }

    /// Committed frames.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Free slots.
    pub(super) fn room(&self) -> usize {
        self.frames.len() - self.len
    }

    /// The free slot after the last committed one, if there is one and it holds `len` bytes.
    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.room() == 0 || len > self.slot_len {
            return None;
        }
        let offset = self.index(self.len) * self.slot_len;
        // SAFETY: the slot is free, and the kernel is only ever told of committed ones.
        Some(unsafe { self.region.bytes_mut(offset, self.slot_len) })
    }

    /// Queues the first `len` bytes of the slot that [`Self::slot`] lends now. A commit that cannot belong to a slot queues nothing.
    pub(super) fn commit(&mut self, len: usize, meta: TxMeta) {
        let fits = self.room() > 0 && len <= self.slot_len;
        debug_assert!(fits, "commit follows a slot of that length");
        if fits {
            let index = self.index(self.len);
            self.frames[index] = (len, meta);
            self.len += 1;
        }
    }

    /// The `i`-th oldest committed frame.
    ///
    /// # Panics
    /// When `i` is not below [`Self::len`].
    pub(super) fn frame(&self, i: usize) -> Queued {
        assert!(i < self.len, "the frame is committed");
        let index = self.index(i);
        let (len, meta) = self.frames[index];
        Queued { bytes: self.region.at(index * self.slot_len, len), len, meta }
    }

    /// Frees the slot of the oldest frame. The kernel must be done with it.
    pub(super) fn pop(&mut self) {
        debug_assert!(self.len > 0, "there is a frame to pop");
        if self.len > 0 {
            self.oldest = self.index(1);
            self.len -= 1;
        }
    }

    fn index(&self, i: usize) -> usize {
        (self.oldest + i) % self.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut FrameQueue, byte: u8) -> bool {
        match queue.slot(1) {
            Some(slot) => {
                slot[0] = byte;
                queue.commit(1, TxMeta::default());
                true
            }
            None => false,
        }
    }

    #[test]
    fn slots_run_out_at_the_limit_and_not_before() {
        let mut queue = FrameQueue::new(3, 100).unwrap();
        assert!(push(&mut queue, 0) && push(&mut queue, 1));
        assert_eq!((queue.room(), queue.len()), (1, 2));
        assert!(push(&mut queue, 2));
        assert!(!push(&mut queue, 3));
        queue.pop();
        assert!(push(&mut queue, 4));
        assert!(!push(&mut queue, 5));
    }

    #[test]
    fn frames_leave_in_the_order_of_their_commits_round_the_slab() {
        let mut queue = FrameQueue::new(3, 1).unwrap();
        let mut expected = 0;
        for byte in 0..50 {
            assert!(push(&mut queue, byte));
            if queue.room() == 0 || byte % 2 == 0 {
                let frame = queue.frame(0);
                // SAFETY: the frame is committed and not popped.
                assert_eq!(unsafe { *frame.bytes }, expected);
                queue.pop();
                expected += 1;
            }
        }
        assert!(expected > 40);
    }

    #[test]
    fn a_frame_longer_than_a_slot_gets_none() {
        let mut queue = FrameQueue::new(2, 64).unwrap();
        assert_eq!(queue.slot(64).map(|slot| slot.len()), Some(64));
        assert!(queue.slot(65).is_none());
    }

    #[test]
    fn a_slot_not_committed_costs_nothing() {
        let mut queue = FrameQueue::new(1, 64).unwrap();
        for _ in 0..5 {
            assert!(queue.slot(1).is_some());
        }
        assert_eq!(queue.room(), 1);
    }
}
