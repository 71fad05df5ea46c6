//! A ring of AF_XDP: one producer, one consumer, in memory that both map (`Documentation/networking/af_xdp.rst`, “Rings”).
//!
//! ```text
//!   memory   │ producer u32 │ … │ consumer u32 │ … │ flags u32 │ … │ entry 0 │ entry 1 │ … │ entry n-1 │
//!
//!   Producer   push, push, … │ submit ──Release──▶ producer ──Acquire──▶ available │ pop, pop, …   Consumer
//!              free ◀──Acquire── consumer ◀──Release── release │
//! ```
//!
//! Indices run freely through all of `u32` and are masked when an entry is touched; `n` is a power of two. The other end may be the kernel,
//! so whatever it writes is read through atomics, and an index that cannot be makes a ring look full or bounded, never a read outside.
//! It knows nothing of frames.
#![allow(unsafe_code, reason = "the other end of a ring is the kernel, which knows no references")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a huge page on the machines that we run on.
const HUGE_PAGE_LEN: usize = 2 << 20;

/// Memory of whole pages, given back when dropped.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory of the process, not of a thread; it hands out raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above: sharing it gives nobody a reference into it.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroes, on huge pages where some are set aside (`vm.nr_hugepages`), else on pages that the kernel may join.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        if len >= HUGE_PAGE_LEN
            && let Ok(huge) = Self::map(len.next_multiple_of(HUGE_PAGE_LEN), flags | libc::MAP_HUGETLB, -1, 0)
        {
            return Ok(huge);
        }
        Self::map(len, flags, -1, 0)
    }

    /// A ring of an AF_XDP socket; `offset` says which.
    pub(super) fn of_socket(socket: BorrowedFd<'_>, offset: libc::off_t, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd(), offset)
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len.max(1), protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len: len.max(1) })
    }

    /// Bytes that are mapped.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where byte `offset` lives.
    ///
    /// # Panics
    /// When `offset + len` leaves the mapping.
    pub(super) fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the span lies in the mapping");
        // SAFETY: the offset lies within the mapping, as just checked.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and everything that points into it holds it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Where the parts of a ring stand in its memory, in bytes (`struct xdp_ring_offset` in `include/uapi/linux/if_xdp.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) flags: usize,
    pub(super) entries: usize,
}

/// Indices a cache line apart, as the kernel has them, in memory that no kernel knows.
pub(super) const LAYOUT: Layout = Layout { producer: 0, consumer: 64, flags: 128, entries: 192 };

/// Zeroed memory for a ring of so many entries in [`LAYOUT`].
fn plain<T>(entries: u32) -> io::Result<Arc<Mapping>> {
    Mapping::anonymous(LAYOUT.entries + entries as usize * size_of::<T>()).map(Arc::new)
}

/// Both ends of a ring in memory of the process: the ring without its kernel.
///
/// # Errors
/// When there is no memory.
///
/// # Panics
/// When `entries` is no power of two, or `T` is aligned to more than 64 bytes.
pub fn pair<T: Copy>(entries: u32) -> io::Result<(Producer<T>, Consumer<T>)> {
    let memory = plain::<T>(entries)?;
    Ok((Producer::new(Arc::clone(&memory), LAYOUT, entries), Consumer::new(memory, LAYOUT, entries)))
}

/// What both ends see. `T` is plain data: any bytes are a value.
struct Ring<T> {
    memory: Arc<Mapping>,
    producer: NonNull<u32>,
    consumer: NonNull<u32>,
    flags: NonNull<u32>,
    entries: NonNull<T>,
    len: u32,
}

// SAFETY: the pointers lie in memory that the ring holds and that is not a thread's; entries are plain data.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// # Panics
    /// When `len` is no power of two, or the layout leaves the memory or is not aligned.
    fn new(memory: Arc<Mapping>, layout: Layout, len: u32) -> Self {
        assert!(len.is_power_of_two(), "a ring has a power of two of entries");
        let index = |offset: usize| {
            let at = memory.at(offset, size_of::<u32>()).cast::<u32>();
            assert!(at.is_aligned(), "an index is aligned");
            at
        };
        let entries = memory.at(layout.entries, len as usize * size_of::<T>()).cast::<T>();
        assert!(entries.is_aligned(), "entries are aligned");
        let (producer, consumer, flags) = (index(layout.producer), index(layout.consumer), index(layout.flags));
        Self { memory, producer, consumer, flags, entries, len }
    }

    fn atomic(&self, index: NonNull<u32>) -> &AtomicU32 {
        debug_assert!(self.memory.len() > 0);
        // SAFETY: `new` checked place and alignment, the memory lives as long as `self`, and both ends use atomics only.
        unsafe { AtomicU32::from_ptr(index.as_ptr()) }
    }

    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: the masked index is below `len`, and `new` checked that so many entries are there.
        unsafe { self.entries.as_ptr().add((index & (self.len - 1)) as usize) }
    }
}

/// The end that fills a ring: of the fill and the TX ring it is ours.
pub struct Producer<T> {
    ring: Ring<T>,
    /// The entry that is written next; entries up to it are published by `submit`.
    next: u32,
    /// The consumer's index when it was last looked at.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// The producing end of a ring that nobody has produced into.
    pub(super) fn new(memory: Arc<Mapping>, layout: Layout, len: u32) -> Self {
        let ring = Ring::new(memory, layout, len);
        let next = ring.atomic(ring.producer).load(Ordering::Relaxed);
        let consumed = ring.atomic(ring.consumer).load(Ordering::Acquire);
        Self { ring, next, consumed }
    }

    /// Entries of the ring.
    pub(super) fn len(&self) -> u32 {
        self.ring.len
    }

    /// Entries that can be pushed now; looks at the consumer's index only when fewer than `wanted` are known to be free.
    pub fn free(&mut self, wanted: u32) -> u32 {
        if self.known_free() < wanted {
            self.consumed = self.ring.atomic(self.ring.consumer).load(Ordering::Acquire);
        }
        self.known_free()
    }

    /// Entries that were free when the consumer's index was last looked at.
    pub(super) fn known_free(&self) -> u32 {
        // A consumer that claims to be ahead of us frees nothing.
        self.ring.len.saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Entries that were submitted and not consumed yet.
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.atomic(self.ring.consumer).load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed).min(self.ring.len)
    }

    /// Writes one entry, which the other end sees after [`Self::submit`]. Returns whether there was room.
    pub fn push(&mut self, value: T) -> bool {
        if self.free(1) == 0 {
            return false;
        }
        // SAFETY: the entry lies between our index and the consumer's, so the other end does not read it before `submit`.
        unsafe { self.ring.entry(self.next).write_volatile(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Publishes what was pushed.
    pub fn submit(&mut self) {
        self.ring.atomic(self.ring.producer).store(self.next, Ordering::Release);
    }

    /// Whether the kernel sleeps and must be told of new entries (`XDP_RING_NEED_WAKEUP`).
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.atomic(self.ring.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The end that empties a ring: of the RX and the completion ring it is ours.
pub struct Consumer<T> {
    ring: Ring<T>,
    /// The entry that is read next; entries before it are given back by `release`.
    next: u32,
    /// The producer's index when it was last looked at.
    produced: u32,
    /// The entry up to which entries were given back.
    released: u32,
}

impl<T: Copy> Consumer<T> {
    /// The consuming end of a ring.
    pub(super) fn new(memory: Arc<Mapping>, layout: Layout, len: u32) -> Self {
        let ring = Ring::new(memory, layout, len);
        let next = ring.atomic(ring.consumer).load(Ordering::Relaxed);
        Self { ring, next, produced: next, released: next }
    }

    /// The next entry, if the producer has published one.
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            let produced = self.ring.atomic(self.ring.producer).load(Ordering::Acquire);
            // A producer that claims more than the ring holds is believed up to that, and one that goes back is not.
            let held = self.next.wrapping_sub(self.released);
            let claimed = produced.wrapping_sub(self.released).min(self.ring.len).max(held);
            self.produced = self.released.wrapping_add(claimed);
        }
        if self.next == self.produced {
            return None;
        }
        // SAFETY: the producer published the entry and does not touch it before `release`; any bytes are a value.
        let value = unsafe { self.ring.entry(self.next).read_volatile() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the entries that were popped back to the producer.
    pub fn release(&mut self) {
        self.released = self.next;
        self.ring.atomic(self.ring.consumer).store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Memory of a ring whose indices both begin at `start`.
    pub(in super::super) fn memory<T>(entries: u32, start: u32) -> Arc<Mapping> {
        let memory = plain::<T>(entries).unwrap();
        set(&memory, LAYOUT.producer, start);
        set(&memory, LAYOUT.consumer, start);
        memory
    }

    /// Writes an index or the flags, as a kernel would, or one gone mad.
    pub(in super::super) fn set(memory: &Mapping, offset: usize, value: u32) {
        // SAFETY: the offsets of `LAYOUT` are aligned and inside, and everybody uses atomics.
        unsafe { AtomicU32::from_ptr(memory.at(offset, 4).cast().as_ptr()) }.store(value, Ordering::Release);
    }

    /// Both ends of one ring whose indices begin at `start`.
    pub(in super::super) fn pair_at<T: Copy>(entries: u32, start: u32) -> (Producer<T>, Consumer<T>) {
        let memory = memory::<T>(entries, start);
        (Producer::new(Arc::clone(&memory), LAYOUT, entries), Consumer::new(memory, LAYOUT, entries))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::testing::{memory, pair_at, set};
    use super::*;

    #[test]
    fn a_ring_holds_its_entries_and_not_one_more() {
        let (mut producer, mut consumer) = pair_at::<u64>(4, u32::MAX - 1);
        for value in 0..4 {
            assert!(producer.push(value));
        }
        assert!(!producer.push(4));
        assert_eq!(consumer.pop(), None, "nothing is seen before it is submitted");
        producer.submit();
        assert_eq!((0..5).map(|_| consumer.pop()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2), Some(3), None]);
        assert!(!producer.push(4), "nothing is free before it is released");
        consumer.release();
        assert_eq!(producer.free(4), 4);
    }

    #[test]
    fn a_ring_without_a_kernel_carries_batches_round_its_end() {
        let (mut producer, mut consumer) = pair::<[u64; 2]>(128).unwrap();
        for batch in 0..5 {
            assert_eq!(producer.free(128), 128);
            (0..64).for_each(|i| assert!(producer.push([batch, i])));
            producer.submit();
            (0..64).for_each(|i| assert_eq!(consumer.pop(), Some([batch, i])));
            assert_eq!(consumer.pop(), None);
            consumer.release();
        }
    }

    #[test]
    fn wakeups_are_wanted_when_the_flag_says_so() {
        let memory = memory::<u64>(2, 0);
        let producer = Producer::<u64>::new(Arc::clone(&memory), LAYOUT, 2);
        assert!(!producer.needs_wakeup());
        set(&memory, LAYOUT.flags, libc::XDP_RING_NEED_WAKEUP);
        assert!(producer.needs_wakeup());
        set(&memory, LAYOUT.flags, !libc::XDP_RING_NEED_WAKEUP);
        assert!(!producer.needs_wakeup());
    }

    proptest! {
        #[test]
        fn a_ring_is_a_bounded_queue_through_the_end_of_u32(
            before_end in 0u32..40,
            bits in 0u32..5,
            steps in prop::collection::vec((0u8..4, 1u32..9), 1..200),
        ) {
            let len = 1 << bits;
            let (mut producer, mut consumer) = pair_at::<u64>(len, 0u32.wrapping_sub(before_end));
            let (mut written, mut published, mut read) = (VecDeque::new(), VecDeque::new(), 0u32);
            let mut value = 0;
            for (step, count) in steps {
                match step {
                    0 => for _ in 0..count {
                        let room = written.len() + published.len() + (read as usize) < len as usize;
                        prop_assert_eq!(producer.push(value), room);
                        if room { written.push_back(value) }
                        value += 1;
                    },
                    1 => { producer.submit(); published.append(&mut written) }
                    2 => for _ in 0..count {
                        let expected = published.pop_front();
                        read += u32::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    },
                    _ => { consumer.release(); read = 0 }
                }
            }
        }

        #[test]
        fn indices_of_a_mad_kernel_bound_what_is_done(theirs in any::<u32>(), start in any::<u32>()) {
            let memory = memory::<u64>(8, start);
            let mut consumer = Consumer::<u64>::new(Arc::clone(&memory), LAYOUT, 8);
            set(&memory, LAYOUT.producer, theirs);
            prop_assert!(std::iter::from_fn(|| consumer.pop()).take(9).count() <= 8);
            set(&memory, LAYOUT.producer, start);
            let mut producer = Producer::<u64>::new(Arc::clone(&memory), LAYOUT, 8);
            set(&memory, LAYOUT.consumer, theirs);
            prop_assert!(producer.free(8) <= 8);
            prop_assert!((0..9).take_while(|&i| producer.push(i)).count() <= 8);
            prop_assert!(producer.pending() <= 8);
        }
    }

    #[test]
    fn two_threads_pass_ten_thousand_entries_in_order() {
        const COUNT: u64 = 10_000;
        let (mut producer, mut consumer) = pair_at::<[u64; 2]>(64, u32::MAX - 5_000);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < COUNT {
                while next < COUNT && producer.push([next, !next]) {
                    next += 1;
                }
                producer.submit();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            while let Some(entry) = consumer.pop() {
                assert_eq!(entry, [expected, !expected]);
                expected += 1;
            }
            consumer.release();
            std::thread::yield_now();
        }
        sender.join().unwrap();
        assert_eq!(consumer.pop(), None);
    }
}
