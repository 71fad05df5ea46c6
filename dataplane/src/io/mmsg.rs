//! The plain ports: `recvmmsg`, `sendmmsg`, `read` and `write`.
//!
//! The fallback where io_uring cannot be used, and the baseline that it is measured against. Same traits, same order on the wire:
//! `sendmmsg` stops at the first message that does not go.
#![allow(unsafe_code, reason = "batches of messages are passed by pointer")]

mod tun;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

pub use self::tun::{TunRx, TunTx};
use super::datagram::{DatagramQueue, PLAN_LEN_MAX, Settled, UdpTxConfig};
use super::epoll::Epoll;
use super::message::{ADDRESS_LEN, Control, RX_CONTROL_LEN, decode_address, decode_control};
use super::queue::Region;
use super::socket::Sockets;
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};

/// The receiving half of the underlay port, over `recvmmsg`.
pub struct UdpRx {
    sockets: Arc<Sockets>,
    memory: Region,
    payload_len: usize,
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    names: Box<[[u8; ADDRESS_LEN]]>,
    controls: Box<[[u64; RX_CONTROL_LEN / 8]]>,
    metas: Vec<(usize, RxMeta)>,
    /// How many sockets to pass over before the first is asked: they take turns, so that none starves.
    first: usize,
}

impl UdpRx {
    /// A port that receives from a worker's sockets into [`BURST_LEN`] buffers of `payload_len` bytes; what is longer arrives truncated. A
    /// train may have 65,507 bytes.
    ///
    /// # Errors
    /// When there is no memory for the buffers, or the sockets cannot be watched.
    pub fn new(epoll: &Epoll, sockets: Arc<Sockets>, payload_len: usize) -> io::Result<Self> {
        for socket in sockets.each() {
            epoll.watch(socket.as_raw_fd())?;
        }
        let payload_len = payload_len.max(1).next_multiple_of(64);
        let total = payload_len.checked_mul(BURST_LEN).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            sockets,
            memory: Region::new(total)?,
            payload_len,
            // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and lengths of zero.
            headers: (0..BURST_LEN).map(|_| unsafe { std::mem::zeroed() }).collect(),
            parts: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BURST_LEN].into(),
            names: vec![[0; ADDRESS_LEN]; BURST_LEN].into(),
            controls: vec![[0; RX_CONTROL_LEN / 8]; BURST_LEN].into(),
            metas: Vec::with_capacity(BURST_LEN),
            first: 0,
        })
    }

    /// Fills the rest of the burst from one socket.
    fn fill(&mut self, fd: RawFd, lane_port: bool) -> io::Result<()> {
        let start = self.metas.len();
        for i in start..BURST_LEN {
            self.parts[i].iov_base = self.memory.at(i * self.payload_len, self.payload_len).cast();
            self.parts[i].iov_len = self.payload_len;
            let header = &mut self.headers[i].msg_hdr;
            header.msg_iov = &raw mut self.parts[i];
            header.msg_iovlen = 1;
            header.msg_name = self.names[i].as_mut_ptr().cast();
            header.msg_namelen = ADDRESS_LEN as u32;
            header.msg_control = self.controls[i].as_mut_ptr().cast();
            header.msg_controllen = RX_CONTROL_LEN as _;
        }
        let room = (BURST_LEN - start) as libc::c_uint;
        // SAFETY: the headers from `start` on point to a name, a control area and a buffer each, all ours and of the lengths given.
        let n = unsafe {
            let headers = self.headers.as_mut_ptr().add(start);
            libc::recvmmsg(fd, headers, room, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let Ok(n) = usize::try_from(n) else { return passing(io::Error::last_os_error()) };
        for i in start..start + n {
            let libc::mmsghdr { msg_hdr: header, msg_len } = &self.headers[i];
            let len = (*msg_len as usize).min(self.payload_len);
            let name_len = (header.msg_namelen as usize).min(ADDRESS_LEN);
            // A size_t with glibc, a u32 with musl.
            #[allow(clippy::unnecessary_cast)]
            let control_len = (header.msg_controllen as usize).min(RX_CONTROL_LEN);
            let mut control = [0; RX_CONTROL_LEN];
            for (to, word) in control.chunks_exact_mut(8).zip(&self.controls[i]) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            let Control { segment, class, local } = decode_control(&control[..control_len]);
            let meta = RxMeta {
                source: decode_address(&self.names[i][..name_len]),
                local,
                lane_port,
                class,
                // A train of one datagram is a datagram.
                segment: if usize::from(segment) < len { segment } else { 0 },
                truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
                ..RxMeta::default()
            };
            self.metas.push((len, meta));
        }
        Ok(())
    }
}

impl RxBurst for UdpRx {
    fn len(&self) -> usize {
        self.metas.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (len, meta) = self.metas[i];
        // SAFETY: the kernel writes to the buffers during `recvmmsg` only, and `&mut self` makes this the only view.
        (unsafe { self.memory.bytes_mut(i * self.payload_len, len) }, meta)
    }
}

impl RxPort for UdpRx {
    fn receive(&mut self) -> io::Result<usize> {
        self.metas.clear();
        let sockets = self.sockets.clone();
        let (first, count) = (self.first, sockets.each().count());
        self.first = if first + 1 < count { first + 1 } else { 0 };
        for (exit, socket) in sockets.each_exit().chain(sockets.each_exit()).skip(first).take(count) {
            if self.metas.len() < BURST_LEN {
                self.fill(socket.as_raw_fd(), exit.lane)?;
            }
        }
        Ok(self.metas.len())
    }
}

/// The sending half of the underlay port, over `sendmmsg`.
pub struct UdpTx {
    epoll: Epoll,
    sockets: Arc<Sockets>,
    queue: DatagramQueue,
    batch: Vec<libc::mmsghdr>,
    /// The socket that is full.
    blocked: Option<RawFd>,
}

impl UdpTx {
    /// A sending port by a worker's sockets.
    ///
    /// # Errors
    /// When there is no memory for the slots, or the sockets cannot be watched.
    pub fn new(epoll: &Epoll, sockets: Arc<Sockets>, config: UdpTxConfig) -> io::Result<Self> {
        for socket in sockets.each() {
            epoll.watch(socket.as_raw_fd())?;
        }
        let exits = sockets.exits();
        Ok(Self {
            epoll: epoll.clone(),
            sockets,
            queue: DatagramQueue::new(config, exits)?,
            batch: Vec::with_capacity(PLAN_LEN_MAX),
            blocked: None,
        })
    }

    /// Destinations whose trains are sent datagram by datagram, because their path refused a train. At most 64 are remembered.
    pub fn single_paths(&self) -> &[SocketAddr] {
        self.queue.single_paths()
    }

    /// Tries trains again on every path.
    pub fn forget_single_paths(&mut self) {
        self.queue.forget_single_paths();
    }

    fn fd(&self, i: usize) -> RawFd {
        // The queue takes no frame without a socket to leave by; such a one would be refused by the kernel (EBADF) and counted.
        self.sockets.by(self.queue.exit(i)).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Sends messages `from..planned` of the plan as far as they go by one socket and says how the last one tried ended.
    fn send(&mut self, from: usize, planned: usize) -> (usize, Settled) {
        let fd = self.fd(from);
        self.batch.clear();
        for i in from..planned {
            if self.fd(i) != fd {
                break;
            }
            // SAFETY: the header is the queue's, initialised by `plan`, and copied.
            let msg_hdr = unsafe { self.queue.header(i).read() };
            self.batch.push(libc::mmsghdr { msg_hdr, msg_len: 0 });
        }
        let len = self.batch.len() as libc::c_uint;
        // SAFETY: the headers point to addresses, control data and slots that the queue keeps until the next `plan`.
        let n = unsafe { libc::sendmmsg(fd, self.batch.as_mut_ptr(), len, libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(n) => {
                for i in from..from + n {
                    self.queue.settle(i, 0);
                }
                (from + n, Settled::Sent)
            }
            Err(_) => {
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                (from, self.queue.settle(from, -errno))
            }
        }
    }
}

impl TxSink for UdpTx {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.queue.slot(len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.queue.commit(len, meta);
    }
}

impl TxPort for UdpTx {
    fn flush(&mut self) -> io::Result<usize> {
        'plans: loop {
            let planned = self.queue.plan();
            let mut next = 0;
            while next < planned {
                let (sent, how) = self.send(next, planned);
                match how {
                    Settled::Sent => next = sent,
                    Settled::Stopped => continue 'plans,
                    Settled::Blocked => {
                        let fd = self.fd(next);
                        if self.blocked != Some(fd) {
                            self.unblock()?;
                            self.epoll.want_room(fd, true)?;
                            self.blocked = Some(fd);
                        }
                        return Ok(self.queue.len());
                    }
                }
            }
            if self.queue.len() == 0 {
                self.unblock()?;
                return Ok(0);
            }
        }
    }

    fn room(&self) -> usize {
        self.queue.room()
    }

    fn take_failed(&mut self) -> u64 {
        self.queue.take_failed()
    }
}

impl UdpTx {
    fn unblock(&mut self) -> io::Result<()> {
        self.blocked.take().map_or(Ok(()), |fd| self.epoll.want_room(fd, false))
    }
}

/// Nothing there, a signal, or a passing error of the network is no error of the port.
fn passing(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EBADF | libc::EBADFD | libc::ENOTSOCK | libc::EINVAL | libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}
