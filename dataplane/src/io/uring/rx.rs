//! Receiving datagrams: one multishot `recvmsg` per socket, IPv4 and IPv6 into the same buffers.
//!
//! ```text
//!   one buffer:  ┌─────────────────────┬─────────┬────────────┬──────────────────────────────────
//!                │ io_uring_recvmsg_out│ address │ control    │ payload: a datagram or a whole train
//!                │ 16                  │ 32      │ 128        │ up to `payload_len`
//!                └─────────────────────┴─────────┴────────────┴──────────────────────────────────
//! ```
//!
//! A multishot operation may end at any completion, with or without an error; it is armed again always, or the socket would go deaf. It is
//! armed again when there is a buffer to fill, so that a starved port does not spin.
#![allow(unsafe_code, reason = "the operation points to a message header that the kernel reads")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::opcode::RecvMsgMulti;
use io_uring::types::{Fixed, RecvMsgOut};

use super::RxCounters;
use super::buffers::BufferRing;
use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort};
use crate::io::message::{Control, RX_CONTROL_LEN, decode_address, decode_control};
use crate::io::ring::{Completion, PortId, Ring};
use crate::io::socket::Sockets;

/// Bytes of `struct io_uring_recvmsg_out` (`include/uapi/linux/io_uring.h`).
const HEADER_LEN: usize = 16;

/// Room for the sender's address; four more than it needs, so that the payload starts at a multiple of sixteen.
const NAME_LEN: usize = 32;

/// Where the payload starts in a buffer.
const PAYLOAD_OFFSET: usize = HEADER_LEN + NAME_LEN + RX_CONTROL_LEN;

/// The buffers of a [`UdpRx`].
#[derive(Clone, Copy, Debug)]
pub struct UdpRxConfig {
    /// Buffers, a power of two. While a burst is worked on the kernel fills the others.
    pub buffers: u16,
    /// Payload bytes of one buffer at least; what is longer arrives truncated. A train may have 65,507 bytes.
    pub payload_len: usize,
}

impl Default for UdpRxConfig {
    fn default() -> Self {
        // Two bursts: one being worked on, one being filled. 8 MiB, of which only what traffic touches is real.
        Self { buffers: 2 * BURST_LEN as u16, payload_len: 65_536 }
    }
}

struct Source {
    file: Fixed,
    lane_port: bool,
    armed: bool,
}

/// The receiving half of the underlay port, over io_uring.
pub struct UdpRx {
    ring: Ring,
    port: PortId,
    buffers: BufferRing,
    /// Only its two lengths matter to the kernel; leaked with the buffers should an operation not end.
    header: ManuallyDrop<Box<libc::msghdr>>,
    sources: Vec<Source>,
    counters: RxCounters,
    /// The files are registered; this keeps the descriptors for whoever else uses them.
    _sockets: Arc<Sockets>,
}

impl UdpRx {
    /// Starts receiving from a worker's sockets.
    ///
    /// # Errors
    /// When the kernel refuses the buffers or the sockets, or `config.buffers` is no power of two.
    pub fn new(ring: &Ring, sockets: Arc<Sockets>, config: UdpRxConfig) -> io::Result<Self> {
        let buffers = BufferRing::new(ring, config.buffers, PAYLOAD_OFFSET + config.payload_len)?;
        // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and lengths of zero.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_namelen = NAME_LEN as u32;
        header.msg_controllen = RX_CONTROL_LEN as _;
        let mut port = Self {
            ring: ring.clone(),
            // Each buffer fills one completion, and each source may end twice before it is looked at.
            port: ring.attach(usize::from(config.buffers) + 8),
            buffers,
            header: ManuallyDrop::new(Box::new(header)),
            sources: Vec::with_capacity(4),
            counters: RxCounters::default(),
            _sockets: sockets.clone(),
        };
        for (exit, socket) in sockets.each_exit() {
            let file = ring.register_file(socket.as_raw_fd())?;
            port.sources.push(Source { file, lane_port: exit.lane, armed: false });
        }
        port.arm()?;
        Ok(port)
    }

    /// What happened besides frames.
    pub fn counters(&self) -> RxCounters {
        self.counters
    }

    fn arm(&mut self) -> io::Result<()> {
        let mut pushed = false;
        for (token, source) in self.sources.iter_mut().enumerate().filter(|(_, source)| !source.armed) {
            let header: *const libc::msghdr = &**self.header;
            let entry = RecvMsgMulti::new(source.file, header, self.buffers.group()).build();
            // SAFETY: header and buffers stay until `drop` has cancelled the operation, or for ever.
            unsafe { self.ring.push(self.port, token as u64, entry)? };
            source.armed = true;
            pushed = true;
        }
        if pushed { self.ring.submit() } else { Ok(()) }
    }

    fn take(&mut self, completion: Completion) -> io::Result<()> {
        let mut source = usize::try_from(completion.token).ok().and_then(|token| self.sources.get_mut(token));
        let lane_port = source.as_ref().is_some_and(|source| source.lane_port);
        if let Some(source) = source.as_mut().filter(|_| !completion.more()) {
            source.armed = false;
            self.counters.rearmed += 1;
        }
        let Some(buffer) = completion.buffer() else { return self.counters.count_end(completion.result) };
        let Ok(len) = usize::try_from(completion.result) else {
            self.buffers.reject(buffer);
            return self.counters.count_end(completion.result);
        };
        let filled = self.buffers.filled(buffer, len);
        match RecvMsgOut::parse(filled, &self.header) {
            Ok(message) => {
                let len = message.payload_data().len();
                let Control { segment, class, local } = decode_control(message.control_data());
                let meta = RxMeta {
                    source: decode_address(message.name_data()),
                    local,
                    lane_port,
                    class,
                    // A train of one datagram is a datagram.
                    segment: if usize::from(segment) < len { segment } else { 0 },
                    // Without its control data a train could be taken for one long datagram.
                    truncated: message.is_payload_truncated() || message.is_control_data_truncated(),
                    ..RxMeta::default()
                };
                self.buffers.lend(buffer, PAYLOAD_OFFSET, len, meta);
            }
            Err(()) => {
                self.counters.errors += 1;
                self.buffers.reject(buffer);
            }
        }
        Ok(())
    }
}

impl RxBurst for UdpRx {
    fn len(&self) -> usize {
        self.buffers.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        self.buffers.frame(i)
    }
}

impl RxPort for UdpRx {
    fn receive(&mut self) -> io::Result<usize> {
        self.buffers.give_back();
        self.ring.reap()?;
        while self.buffers.len() < BURST_LEN {
            let Some(completion) = self.ring.next(self.port) else { break };
            self.take(completion)?;
        }
        if self.buffers.len() + self.ring.waiting(self.port) < self.buffers.count() {
            self.arm()?;
        }
        Ok(self.buffers.len())
    }
}

impl Drop for UdpRx {
    fn drop(&mut self) {
        let armed: Vec<u64> =
            (0..).zip(&self.sources).filter(|(_, source)| source.armed).map(|(token, _)| token).collect();
        let quiet = self.ring.cancel(self.port, &armed);
        for source in &self.sources {
            self.ring.unregister_file(source.file);
        }
        self.ring.detach(self.port);
        self.buffers.close(quiet);
        if quiet {
            // SAFETY: every operation that names the header has ended, and it is dropped only here.
            unsafe { ManuallyDrop::drop(&mut self.header) };
        }
    }
}
