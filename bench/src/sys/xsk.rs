//! An AF_XDP socket that only transmits, in copy mode (`Documentation/networking/af_xdp.rst`).
//!
//! ```text
//!  free chunks ──push──▶ TX ring ──kick (sendto)──▶ kernel copies into an skb ──▶ completion ring ──reclaim──▶ free chunks
//! ```
//!
//! A chunk is in exactly one of those places. It knows nothing of what the frames hold.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::check;

/// Bytes of a chunk, which is the longest frame.
pub const CHUNK_LEN: usize = 2048;
/// Chunks of the UMEM, and entries of its rings: no ring can overflow.
pub const CHUNKS: u32 = 2048;

/// A shared mapping, unmapped when dropped.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize, fd: Option<(&OwnedFd, libc::off_t)>) -> io::Result<Self> {
        let (fd, offset, flags) = match fd {
            Some((fd, offset)) => (fd.as_raw_fd(), offset, libc::MAP_SHARED),
            None => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags | libc::MAP_POPULATE, fd, offset) };
        match NonNull::new(start.cast()) {
            Some(start) if start.as_ptr() as isize != -1 => Ok(Self { start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

// SAFETY: the mapping is memory of the process, not of a thread, and has one owner.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and nothing borrows it any more. Unmapping a valid range cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One side of a single-producer, single-consumer ring shared with the kernel.
struct Ring {
    mapping: Mapping,
    producer: usize,
    consumer: usize,
    entries: usize,
}

impl Ring {
    fn map(fd: &OwnedFd, at: &libc::xdp_ring_offset, entry_len: usize, page: libc::off_t) -> io::Result<Self> {
        let mapping = Mapping::new(at.desc as usize + CHUNKS as usize * entry_len, Some((fd, page)))?;
        Ok(Self { mapping, producer: at.producer as usize, consumer: at.consumer as usize, entries: at.desc as usize })
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel gave this offset for a 32-bit index inside the mapping, aligned, and only atomics ever touch it.
        unsafe { &*self.mapping.start.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// Where entry `index` lies. Valid for entries of the length the ring was mapped with.
    fn entry<T>(&self, index: u32) -> *mut T {
        // SAFETY: the masked index is under `CHUNKS`, and the mapping holds that many entries behind `entries`.
        unsafe { self.mapping.start.as_ptr().add(self.entries).cast::<T>().add((index & (CHUNKS - 1)) as usize) }
    }
}

/// How long the kernel may take to give a queue back after its last socket was closed: it does so on a work queue.
const RELEASE_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether it has.
const RELEASE_STEP: Duration = Duration::from_millis(5);

/// A transmit-only AF_XDP socket, bound to one queue of one interface.
pub struct Transmitter {
    fd: OwnedFd,
    umem: Mapping,
    tx: Ring,
    completion: Ring,
    free: Vec<u64>,
}

impl Transmitter {
    /// Opens a socket on a queue of an interface, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The errno of the call that failed; `EBUSY` when the queue already has a socket, and still after [`RELEASE_MAX`]; `EPERM` without
    /// CAP_NET_RAW.
    pub fn open(ifindex: u32, queue: u32) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: just opened, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let umem = Mapping::new(CHUNKS as usize * CHUNK_LEN, None)?;
        let registration = libc::xdp_umem_reg {
            addr: umem.start.as_ptr() as u64,
            len: umem.len as u64,
            chunk_size: CHUNK_LEN as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(&fd, libc::XDP_UMEM_REG, &registration)?;
        // The kernel wants a fill ring even of a socket that never receives.
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
            set_option(&fd, ring, &CHUNKS)?;
        }
        let offsets = ring_offsets(&fd)?;
        let tx = Ring::map(&fd, &offsets.tx, size_of::<libc::xdp_desc>(), libc::XDP_PGOFF_TX_RING)?;
        let completion =
            Ring::map(&fd, &offsets.cr, size_of::<u64>(), libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t)?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let len = size_of_val(&address) as libc::socklen_t;
        let begun = Instant::now();
        loop {
            // SAFETY: the address is valid for `len` bytes.
            match check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < RELEASE_MAX => {
                    std::thread::sleep(RELEASE_STEP);
                }
                bound => {
                    bound?;
                    break;
                }
            }
        }
        let free = (0..u64::from(CHUNKS)).map(|i| i * CHUNK_LEN as u64).collect();
        Ok(Self { fd, umem, tx, completion, free })
    }

    /// Frames that could be pushed now.
    pub fn room(&mut self) -> usize {
        let completed = self.completion.index(self.completion.producer).load(Ordering::Acquire);
        let consumer = self.completion.index(self.completion.consumer);
        let mut next = consumer.load(Ordering::Relaxed);
        while next != completed {
            // SAFETY: the kernel published entries up to `completed` and does not touch them before the consumer index moves.
            let chunk = unsafe { self.completion.entry::<u64>(next).read_volatile() };
            self.free.push(chunk);
            next = next.wrapping_add(1);
        }
        self.completion.index(self.completion.consumer).store(next, Ordering::Release);
        self.free.len()
    }

    /// Frames that the kernel has not finished.
    pub fn outstanding(&mut self) -> usize {
        CHUNKS as usize - self.room()
    }

    /// Puts a frame on the ring: `write` fills the chunk and returns the length, at most [`CHUNK_LEN`].
    ///
    /// Returns whether there was a chunk left.
    pub fn push(&mut self, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(chunk) = self.free.pop() else { return false };
        let start = chunk as usize;
        assert!(start + CHUNK_LEN <= self.umem.len, "the kernel completed a chunk that is not ours");
        // SAFETY: the chunk lies inside the mapping, and being free neither the kernel nor another borrow uses it.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.umem.start.as_ptr().add(start), CHUNK_LEN) };
        let len = write(memory).min(CHUNK_LEN) as u32;
        let producer = self.tx.index(self.tx.producer);
        let next = producer.load(Ordering::Relaxed);
        // SAFETY: the ring has as many entries as there are chunks, and this chunk was in none, so the entry is ours to write.
        unsafe { self.tx.entry::<libc::xdp_desc>(next).write(libc::xdp_desc { addr: chunk, len, options: 0 }) };
        producer.store(next.wrapping_add(1), Ordering::Release);
        true
    }

    /// Makes the kernel send what is on the ring: up to 32 frames a call in copy mode, the rest stays.
    ///
    /// # Errors
    /// What `sendto` said, except that busy and full are not errors.
    pub fn kick(&mut self) -> io::Result<()> {
        // SAFETY: an empty message without address reads no memory.
        let sent =
            unsafe { libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS) => Ok(()),
            _ => Err(error),
        }
    }
}

fn set_option<T>(fd: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `len` bytes.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, (&raw const *value).cast(), len) })
        .map(|_| ())
}

fn ring_offsets(fd: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all-zero is a valid value of this struct of integers.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&offsets) as libc::socklen_t;
    // SAFETY: `offsets` is valid for writing `len` bytes.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, (&raw mut offsets).cast(), &mut len)
    })?;
    Ok(offsets)
}
