//! The ring of bytes that a sending port lends frames from, first in, first out.
//!
//! ```text
//!   bytes   [ 5 5 5 6 | . . . . . . | 3 | 4 4 4 | ~ ~ ]     3 the oldest, 6 the newest, the next one begins behind it
//!             └─ newer ──┘ free       └─ oldest ─┘  └ too short for 5, unused until 4 has left
//! ```
//!
//! A frame takes the bytes that it has, in whole cache lines, and always in one piece: one that does not fit before the end begins at the
//! start. So small packets lie densely and a superpacket still fits. A frame's bytes stay where they are until [`FrameQueue::pop`]: the
//! kernel may read them meanwhile. An empty queue begins at the start again, where memory is warm. It does not know what a frame means nor
//! who sends it.
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

/// Frames begin at multiples of this, so that two never share a cache line.
pub(super) const LINE: usize = 64;

/// What a [`FrameQueue`] holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Frames.
    pub(super) frames: usize,
    /// Bytes of one frame.
    pub(super) frame_len: usize,
    /// Bytes in all; at least one frame of the longest fits whatever this says.
    pub(super) bytes: usize,
}

#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    len: usize,
    meta: TxMeta,
}

/// A bounded first-in-first-out queue of frames of any length.
pub(super) struct FrameQueue {
    region: Region,
    bytes: usize,
    frame_len: usize,
    places: Box<[Place]>,
    oldest: usize,
    len: usize,
    /// Where the next frame begins if it fits there. Behind the newest frame, so it equals the oldest's offset only when there is no room.
    next: usize,
    /// What [`Self::slot`] lent last: offset and bytes.
    lent: (usize, usize),
}

impl FrameQueue {
    /// A queue within these limits.
    pub(super) fn new(limits: Limits) -> io::Result<Self> {
        let Limits { frames, frame_len, bytes } = limits;
        if frames == 0 || frame_len == 0 || frame_len > u32::MAX as usize || bytes > isize::MAX as usize / 2 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = bytes.max(frame_len).next_multiple_of(LINE);
        Ok(Self {
            region: Region::new(bytes)?,
            bytes,
            frame_len,
            places: vec![Place { offset: 0, len: 0, meta: TxMeta::default() }; frames].into(),
            oldest: 0,
            len: 0,
            next: 0,
            lent: (0, 0),
        })
    }

    /// Committed frames.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Frames of the longest kind that fit now for certain; of shorter ones there may be room for more.
    pub(super) fn room(&self) -> usize {
        let (first, second) = self.gaps();
        let longest = self.frame_len.next_multiple_of(LINE);
        (self.places.len() - self.len).min(first / longest + second / longest)
    }

    /// At least `len` contiguous free bytes behind the newest frame, as many as one frame may have where there are so many. `None` when
    /// there is no room now, or never will be because the frame is longer than any may be. What was lent before is free again.
    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.lent = (0, 0);
        let len = len.max(1);
        if self.len == self.places.len() || len > self.frame_len {
            return None;
        }
        let (first, second) = self.gaps();
        let (offset, gap) = if len <= first { (self.next, first) } else { (0, second) };
        if len > gap {
            return None;
        }
        self.lent = (offset, gap.min(self.frame_len));
        // SAFETY: the gap holds no committed frame, and the kernel is only ever told of committed ones.
        Some(unsafe { self.region.bytes_mut(offset, self.lent.1) })
    }

    /// What [`Self::slot`] lent last and nobody committed; empty when there is none.
    pub(super) fn lent(&mut self) -> &mut [u8] {
        let (offset, len) = self.lent;
        // SAFETY: as in `slot`; nothing was committed there since.
        unsafe { self.region.bytes_mut(offset, len) }
    }

    /// Queues the first `len` bytes of what [`Self::slot`] lent last. A commit that cannot belong to it queues nothing.
    pub(super) fn commit(&mut self, len: usize, meta: TxMeta) {
        let (offset, lent) = std::mem::take(&mut self.lent);
        let fits = lent > 0 && len <= lent;
        debug_assert!(fits, "commit follows a slot of that length");
        if fits {
            let index = self.index(self.len);
            self.places[index] = Place { offset, len, meta };
            self.len += 1;
            // An empty frame takes a line too: two frames never begin at the same place.
            self.next = offset + len.max(1).next_multiple_of(LINE);
        }
    }

    /// The `i`-th oldest committed frame.
    ///
    /// # Panics
    /// When `i` is not below [`Self::len`].
    pub(super) fn frame(&self, i: usize) -> Queued {
        assert!(i < self.len, "the frame is committed");
        let Place { offset, len, meta } = self.places[self.index(i)];
        Queued { bytes: self.region.at(offset, len), len, meta }
    }

    /// Frees the oldest frame's bytes. The kernel must be done with them.
    pub(super) fn pop(&mut self) {
        debug_assert!(self.len > 0, "there is a frame to pop");
        if self.len > 0 {
            self.oldest = self.index(1);
            self.len -= 1;
        }
        if self.len == 0 {
            self.next = 0;
        }
    }

    /// Free bytes from `next` on, and free bytes from the start on for a frame that does not fit there.
    fn gaps(&self) -> (usize, usize) {
        let oldest = self.places[self.oldest].offset;
        match self.len {
            0 => (self.bytes, 0),
            _ if self.next > oldest => (self.bytes - self.next, oldest),
            _ => (oldest - self.next, 0),
        }
    }

    fn index(&self, i: usize) -> usize {
        (self.oldest + i) % self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn queue(frames: usize, frame_len: usize, bytes: usize) -> FrameQueue {
        FrameQueue::new(Limits { frames, frame_len, bytes }).unwrap()
    }

    fn push(queue: &mut FrameQueue, byte: u8, len: usize) -> bool {
        match queue.slot(len) {
            Some(slot) => {
                slot[..len].fill(byte);
                queue.commit(len, TxMeta { class: byte, ..TxMeta::default() });
                true
            }
            None => false,
        }
    }

    fn bytes(queue: &FrameQueue, i: usize) -> &[u8] {
        let frame = queue.frame(i);
        // SAFETY: the frame is committed and not popped while the queue is borrowed.
        unsafe { std::slice::from_raw_parts(frame.bytes, frame.len) }
    }

    #[test]
    fn frames_run_out_at_the_limit_and_not_before() {
        let mut queue = queue(3, 100, 4096);
        assert!(push(&mut queue, 0, 1) && push(&mut queue, 1, 1));
        assert_eq!((queue.room(), queue.len()), (1, 2));
        assert!(push(&mut queue, 2, 1));
        assert!(!push(&mut queue, 3, 1));
        queue.pop();
        assert!(push(&mut queue, 4, 1));
        assert!(!push(&mut queue, 5, 1));
    }

    #[test]
    fn bytes_run_out_at_the_limit_and_not_before() {
        let mut queue = queue(100, 640, 640);
        (0..10).for_each(|byte| assert!(push(&mut queue, byte, 64)));
        assert!(!push(&mut queue, 10, 1));
        queue.pop();
        assert!(!push(&mut queue, 10, 65), "a line is free");
        assert!(push(&mut queue, 10, 64));
        assert_eq!(queue.room(), 0);
    }

    #[test]
    fn a_frame_that_does_not_fit_before_the_end_begins_at_the_start() {
        let mut queue = queue(8, 256, 512);
        assert!(push(&mut queue, 1, 192) && push(&mut queue, 2, 192));
        let (first, region) = (queue.frame(0).bytes, queue.region.at(0, 1).cast_const());
        assert_eq!(first, region);
        queue.pop();
        // 128 bytes at the end, 192 at the start.
        assert!(!push(&mut queue, 3, 193));
        assert!(push(&mut queue, 3, 129));
        assert_eq!(queue.frame(1).bytes, region);
        assert!(!push(&mut queue, 4, 1), "what was left at the end is not used out of order");
        queue.pop();
        assert!(push(&mut queue, 4, 256), "the other side of the oldest frame is free");
        assert_eq!((bytes(&queue, 0), bytes(&queue, 1)), (&[3; 129][..], &[4; 256][..]));
    }

    #[test]
    fn a_frame_longer_than_the_longest_never_fits() {
        let mut queue = queue(2, 100, 4096);
        assert_eq!(queue.slot(100).map(|slot| slot.len()), Some(100));
        assert!(queue.slot(101).is_none());
        let limits = |frames, frame_len| FrameQueue::new(Limits { frames, frame_len, bytes: 0 }).is_ok();
        assert!(!limits(0, 1) && !limits(1, 0));
        assert!(limits(1, 65_545), "one frame of the longest fits whatever the bytes in all");
    }

    #[test]
    fn a_slot_not_committed_costs_nothing() {
        let mut queue = queue(1, 64, 64);
        for _ in 0..5 {
            assert!(queue.slot(1).is_some());
        }
        assert_eq!(queue.room(), 1);
        assert_eq!(queue.lent().len(), 64);
        queue.commit(1, TxMeta::default());
        assert_eq!((queue.len(), queue.lent().len()), (1, 0));
    }

    #[test]
    fn an_empty_queue_begins_at_the_start_again() {
        let mut queue = queue(4, 64, 256);
        for byte in 0..10 {
            assert!(push(&mut queue, byte, 64));
            assert_eq!(queue.frame(0).bytes, queue.region.at(0, 1).cast_const());
            queue.pop();
        }
    }

    proptest! {
        /// Frames leave whole, in order, from where they were committed; what is refused did not fit by the model's reckoning either.
        #[test]
        fn the_ring_is_a_queue(
            frames in 1usize..12,
            lines in 1usize..24,
            steps in prop::collection::vec((any::<bool>(), 0usize..700), 1..300),
        ) {
            let frame_len = 10 * LINE;
            let mut queue = queue(frames, frame_len, lines * LINE);
            let mut model: VecDeque<(u8, usize, *const u8)> = VecDeque::new();
            for (i, (pop, len)) in steps.into_iter().enumerate() {
                let byte = i as u8;
                if pop {
                    if let Some((byte, len, at)) = model.pop_front() {
                        let frame = queue.frame(0);
                        prop_assert_eq!((frame.bytes, frame.len, frame.meta.class), (at, len, byte));
                        prop_assert!(bytes(&queue, 0).iter().all(|&b| b == byte), "somebody wrote to a committed frame");
                        queue.pop();
                    }
                } else {
                    let certain = queue.room() > 0 && len <= frame_len;
                    let pushed = push(&mut queue, byte, len);
                    prop_assert!(pushed || !certain, "room was promised");
                    if pushed {
                        prop_assert!(len <= frame_len && model.len() < frames);
                        model.push_back((byte, len, queue.frame(queue.len() - 1).bytes));
                    } else {
                        prop_assert!(len > frame_len || !model.is_empty(), "an empty queue takes what can fit at all");
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                // No two frames share a line, and each lies within the ring.
                let start = queue.region.at(0, 1) as usize;
                let mut spans: Vec<_> = model
                    .iter()
                    .map(|&(_, len, at)| (at as usize - start, at as usize - start + len.max(1)))
                    .collect();
                spans.sort_unstable();
                prop_assert!(spans.iter().all(|&(from, to)| from % LINE == 0 && to <= queue.bytes));
                prop_assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            }
        }
    }
}
