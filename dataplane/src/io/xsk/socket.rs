//! AF_XDP sockets: opened on one queue of one device each, on one UMEM, and split into a receiving and a sending half.
//!
//! ```text
//!   socket ▸ first: XDP_UMEM_REG ▸ fill, completion, RX, TX rings ▸ bind(device, queue) ▸ next socket: bind(…, XDP_SHARED_UMEM, first)
//! ```
//!
//! Every socket has a fill and a completion ring of its own, made before it is bound: that is what sharing a UMEM between queues and devices
//! asks for. The mode (zero-copy or copy, wake-ups, multi-buffer) is the first socket's, and the others inherit it; so if one device refuses
//! it, all are opened again in the next mode. It knows nothing of what frames hold.
#![allow(unsafe_code, reason = "AF_XDP has no wrapper: sockets, options and rings are made by system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::{Consumer, Layout, Mapping, Producer};
use super::umem::{Frame, Purpose, Umem};
use super::{Mode, Queue, XskConfig, XskError};
use crate::engine::port::BURST_LEN;

/// Descriptors that the kernel sends by one system call in copy mode (`TX_BATCH_SIZE` in `net/xdp/xsk.c`).
const TX_BATCH_LEN: u32 = 32;
/// Option of Linux 6.17 that raises that number for one socket (`include/uapi/linux/if_xdp.h`).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Packets of one busy poll (`SO_BUSY_POLL_BUDGET`): a burst.
const BUSY_POLL_BUDGET: libc::c_int = 64;
/// How long a queue may still be held by a socket that was closed: the kernel takes it away in a work item of its own.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// How often it is tried again.
const RELEASE_POLL_MS: libc::c_int = 5;

/// The sockets of one worker, not yet on its thread.
pub struct Xsks {
    pub(super) umem: Umem,
    pub(super) sockets: Vec<Xsk>,
    mode: Mode,
    multi_buffer: bool,
}

impl Xsks {
    /// Opens a socket on each of these queues, in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`XskError`] of the last mode that was tried.
    pub fn open(queues: &[Queue], config: &XskConfig) -> Result<Self, XskError> {
        let mut refused = XskError::NoQueue;
        for &(mode, multi_buffer) in config.attempts() {
            let deadline = Instant::now() + RELEASE_WAIT;
            loop {
                match Self::open_in(queues, config, mode, multi_buffer) {
                    Ok(opened) => return Ok(opened),
                    Err(error) if error.is_busy() && Instant::now() < deadline => {
                        // SAFETY: no descriptors are passed. Nothing tells when a queue is free, so a timer does.
                        unsafe { libc::poll(std::ptr::null_mut(), 0, RELEASE_POLL_MS) };
                    }
                    Err(error @ (XskError::NoMemory { .. } | XskError::Locked { .. })) => return Err(error),
                    Err(error) => {
                        refused = error;
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    fn open_in(queues: &[Queue], config: &XskConfig, mode: Mode, multi_buffer: bool) -> Result<Self, XskError> {
        // A burst that the engine looks at is neither in a ring nor free.
        let umem = Umem::new((config.frames + BURST_LEN as u32) * queues.len() as u32, config.frame_len)?;
        let mut sockets: Vec<Xsk> = Vec::with_capacity(queues.len());
        for &queue in queues {
            let socket = Xsk::open(queue, config, &umem, sockets.first())?;
            socket.bind(mode, multi_buffer, sockets.first())?;
            sockets.push(socket);
        }
        let first = sockets.first().ok_or(XskError::NoQueue)?;
        let mode = first.obtained()?;
        Ok(Self { umem, sockets, mode, multi_buffer })
    }

    /// The mode that the kernel granted.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether frames longer than one buffer are received and sent (Linux 6.6).
    pub fn multi_buffer(&self) -> bool {
        self.multi_buffer
    }

    /// Which queue each socket is on, for the maps that programs redirect by.
    pub fn each(&self) -> impl Iterator<Item = (Queue, BorrowedFd<'_>)> {
        self.sockets.iter().map(|socket| (socket.queue, socket.fd.as_fd()))
    }
}

/// One socket, bound or about to be.
pub(super) struct Xsk {
    fd: Arc<OwnedFd>,
    queue: Queue,
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    tx: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
}

impl Xsk {
    fn open(queue: Queue, config: &XskConfig, umem: &Umem, first: Option<&Self>) -> Result<Self, XskError> {
        let step = |step: &'static str| move |source| XskError::Step { step, queue, source };
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(step("socket(AF_XDP)")(io::Error::last_os_error()));
        }
        // SAFETY: just opened, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if first.is_none() {
            let registration = umem.registration();
            set_option(&fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::ENOBUFS | libc::EPERM) => XskError::Locked { bytes: registration.len, source },
                    _ => step("XDP_UMEM_REG")(source),
                }
            })?;
        }
        // Half of a socket's frames receive and half send, so no ring can overflow.
        let len = config.frames / 2;
        for (option, name) in [
            (libc::XDP_UMEM_FILL_RING, "XDP_UMEM_FILL_RING"),
            (libc::XDP_UMEM_COMPLETION_RING, "XDP_UMEM_COMPLETION_RING"),
            (libc::XDP_RX_RING, "XDP_RX_RING"),
            (libc::XDP_TX_RING, "XDP_TX_RING"),
        ] {
            set_option(&fd, libc::SOL_XDP, option, &len).map_err(step(name))?;
        }
        // Both only save system calls, so a kernel that does not know them is as good.
        let _ = set_option(&fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &len.min(8 * TX_BATCH_LEN));
        if config.busy_poll_us > 0 {
            let busy = libc::c_int::try_from(config.busy_poll_us).unwrap_or(libc::c_int::MAX);
            for (option, value, name) in [
                (libc::SO_PREFER_BUSY_POLL, 1, "SO_PREFER_BUSY_POLL"),
                (libc::SO_BUSY_POLL, busy, "SO_BUSY_POLL"),
                (libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET, "SO_BUSY_POLL_BUDGET"),
            ] {
                set_option(&fd, libc::SOL_SOCKET, option, &value).map_err(step(name))?;
            }
        }
        // SAFETY: all-zero is a valid value of this struct of integers.
        let zero: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let offsets = option(&fd, libc::XDP_MMAP_OFFSETS, zero).map_err(step("XDP_MMAP_OFFSETS"))?;
        let map = |at: libc::xdp_ring_offset, page: u64, entry_len: usize| {
            let layout = Layout {
                producer: at.producer as usize,
                consumer: at.consumer as usize,
                flags: at.flags as usize,
                entries: at.desc as usize,
            };
            let bytes = layout.entries + len as usize * entry_len;
            let mapping = Mapping::of_socket(fd.as_fd(), page as libc::off_t, bytes).map_err(step("mapping a ring"))?;
            Ok::<_, XskError>((Arc::new(mapping), layout))
        };
        let descriptor = size_of::<libc::xdp_desc>();
        let (memory, layout) = map(offsets.rx, libc::XDP_PGOFF_RX_RING as u64, descriptor)?;
        let rx = Consumer::new(memory, layout, len);
        let (memory, layout) = map(offsets.tx, libc::XDP_PGOFF_TX_RING as u64, descriptor)?;
        let tx = Producer::new(memory, layout, len);
        let (memory, layout) = map(offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING, size_of::<u64>())?;
        let fill = Producer::new(memory, layout, len);
        let (memory, layout) = map(offsets.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING, size_of::<u64>())?;
        let completion = Consumer::new(memory, layout, len);
        Ok(Self { fd: Arc::new(fd), queue, rx, fill, tx, completion })
    }

    fn bind(&self, mode: Mode, multi_buffer: bool, first: Option<&Self>) -> Result<(), XskError> {
        let flags = match (first, mode) {
            // What the first socket got is inherited; saying it again is refused.
            (Some(_), _) => libc::XDP_SHARED_UMEM,
            (None, Mode::ZeroCopy) => libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP,
            (None, Mode::Copy) => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: if first.is_none() && multi_buffer { flags | libc::XDP_USE_SG } else { flags },
            sxdp_ifindex: self.queue.interface,
            sxdp_queue_id: self.queue.queue,
            sxdp_shared_umem_fd: first.map_or(0, |first| first.fd.as_raw_fd() as u32),
        };
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid for `len` bytes.
        if unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), len) } == 0 {
            return Ok(());
        }
        Err(XskError::Step { step: "bind", queue: self.queue, source: io::Error::last_os_error() })
    }

    fn obtained(&self) -> Result<Mode, XskError> {
        let options = option(&self.fd, libc::XDP_OPTIONS, libc::xdp_options { flags: 0 })
            .map_err(|source| XskError::Step { step: "XDP_OPTIONS", queue: self.queue, source })?;
        Ok(if options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0 { Mode::ZeroCopy } else { Mode::Copy })
    }

    /// The two halves, which hold the socket together.
    pub(super) fn split(self, mode: Mode) -> (RxHalf, TxHalf) {
        let Self { fd, queue, rx, fill, tx, completion } = self;
        let rx = RxHalf { fd: Arc::clone(&fd), rx, fill, lent: 0, counted: 0 };
        (rx, TxHalf { fd, queue, tx, completion, mode, pushed: false, gone: false, down: false })
    }
}

/// The receiving half of a socket.
pub(super) struct RxHalf {
    fd: Arc<OwnedFd>,
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    /// Frames that the kernel has to receive into.
    lent: u32,
    /// Frames that the kernel had lost when it was last asked.
    counted: u64,
}

impl RxHalf {
    #[cfg(test)]
    pub(super) fn fake(fd: OwnedFd, rx: Consumer<libc::xdp_desc>, fill: Producer<u64>) -> Self {
        Self { fd: Arc::new(fd), rx, fill, lent: 0, counted: 0 }
    }

    /// Gives the kernel frames to receive into, as many as the fill ring holds, and wakes it if it waits for them.
    pub(super) fn refill(&mut self, umem: &Umem) {
        let mut wanted = self.fill.len().saturating_sub(self.lent);
        if wanted > 0 {
            wanted = wanted.min(self.fill.free(wanted));
            for _ in 0..wanted {
                let Some(frame) = umem.take() else { break };
                // There is room, as just seen.
                self.fill.push(umem.lend(frame, Purpose::Fill));
                self.lent += 1;
            }
            self.fill.submit();
        }
        if self.fill.needs_wakeup() {
            // SAFETY: an empty buffer without address takes no memory. What it says does not matter: it only wakes the driver.
            unsafe {
                let (null, flags) = (std::ptr::null_mut(), libc::MSG_DONTWAIT);
                libc::recvfrom(self.fd.as_raw_fd(), null, 0, flags, std::ptr::null_mut(), std::ptr::null_mut());
            }
        }
    }

    /// The next descriptor; [`Self::release`] when done with some.
    pub(super) fn pop(&mut self) -> Option<libc::xdp_desc> {
        let descriptor = self.rx.pop()?;
        self.lent = self.lent.saturating_sub(1);
        Some(descriptor)
    }

    /// Gives the entries of the popped descriptors back.
    pub(super) fn release(&mut self) {
        self.rx.release();
    }

    /// Frames that the kernel dropped before this socket since the last call: longer than a buffer, or no buffer free. A system call.
    pub(super) fn take_lost(&mut self) -> u64 {
        // SAFETY: all-zero is a valid value of this struct of integers.
        let zero: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        let Ok(now) = option(&self.fd, libc::XDP_STATISTICS, zero) else { return 0 };
        let total = now.rx_dropped.saturating_add(now.rx_ring_full).saturating_add(now.rx_fill_ring_empty_descs);
        let lost = total.saturating_sub(self.counted);
        self.counted = total;
        lost
    }

    /// What becomes readable when something waits.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The sending half of a socket.
pub(super) struct TxHalf {
    fd: Arc<OwnedFd>,
    queue: Queue,
    tx: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    mode: Mode,
    /// Something was pushed since the last kick.
    pushed: bool,
    /// Its device is gone, and what was queued with it.
    gone: bool,
    /// Its device was down at the last kick, and frames wait for it.
    down: bool,
}

impl TxHalf {
    /// Which queue it sends by.
    pub(super) fn queue(&self) -> Queue {
        self.queue
    }

    /// Whether frames leave by it. They do not when its device is gone, and what it holds never comes back then; nor while the device is
    /// down and holds what was queued before.
    pub(super) fn is_open(&self) -> bool {
        !self.gone && !self.down
    }

    /// Takes back frames that are sent.
    pub(super) fn reclaim(&mut self, umem: &Umem) {
        let mut any = false;
        while let Some(address) = self.completion.pop() {
            any = true;
            if let Some((frame, _)) = umem.reclaim(address, 0, Purpose::Tx) {
                umem.give(frame);
            }
        }
        if any {
            self.completion.release();
        }
    }

    /// Descriptors that can be pushed; looks at the kernel's index when fewer than `wanted` are known.
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        self.tx.free(wanted)
    }

    /// Descriptors that could be pushed when the kernel's index was last looked at.
    pub(super) fn known_room(&self) -> usize {
        self.tx.known_free() as usize
    }

    /// Descriptors that the kernel has not looked at.
    pub(super) fn pending(&mut self) -> u32 {
        self.tx.pending()
    }

    /// Queues the first `len` bytes of a frame; with `more` the packet goes on in the next one. There must be room.
    pub(super) fn push(&mut self, umem: &Umem, frame: Frame, len: usize, more: bool) {
        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
        let addr = umem.lend(frame, Purpose::Tx);
        let pushed = self.tx.push(libc::xdp_desc { addr, len: len as u32, options });
        debug_assert!(pushed, "the caller saw room for every descriptor");
        if !pushed && let Some((frame, _)) = umem.reclaim(addr, 0, Purpose::Tx) {
            umem.give(frame);
        }
        self.pushed = true;
    }

    /// Makes the kernel send what is queued, as far as it takes it now. Returns how many descriptors it has not looked at yet.
    ///
    /// # Errors
    /// When the socket is of no more use, and not because its device is gone.
    pub(super) fn kick(&mut self) -> io::Result<u32> {
        if self.gone {
            return Ok(0);
        }
        if std::mem::take(&mut self.pushed) {
            self.tx.submit();
        }
        let mut pending = self.tx.pending();
        self.down &= pending > 0;
        while pending > 0 && self.tx.needs_wakeup() {
            // SAFETY: an empty message without address reads no memory.
            let sent = unsafe {
                libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
            };
            let error = (sent < 0).then(io::Error::last_os_error);
            match error.as_ref().and_then(io::Error::raw_os_error) {
                // In copy mode a call takes a batch and says EAGAIN when more is left. EBUSY: the device dropped one.
                None | Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => self.down = false,
                // The device is down: frames wait until it is up.
                Some(libc::ENETDOWN) => {
                    self.down = true;
                    return Ok(pending);
                }
                // The kernel has taken the socket off its device, which is gone.
                Some(libc::ENXIO) => {
                    self.gone = true;
                    return Ok(0);
                }
                Some(_) => return error.map_or(Ok(pending), Err),
            }
            let left = self.tx.pending();
            if left == pending || self.mode == Mode::ZeroCopy {
                return Ok(left);
            }
            pending = left;
        }
        Ok(pending)
    }

    /// What becomes writable when the kernel takes more.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `len` bytes.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option of AF_XDP into `value`, a struct of integers; what an older kernel does not fill stays as it was.
fn option<T: Copy>(fd: &OwnedFd, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for writing `len` bytes, and any bytes are a value of the integers it is made of.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, name, (&raw mut value).cast(), &raw mut len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
