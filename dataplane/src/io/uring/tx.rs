//! Sending datagrams: each flush is one chain of linked `sendmsg`, so nothing overtakes.
//!
//! ```text
//!   chain   1 ─▶ 2 ─▶ 3 ─▶ 4        sent, sent, EAGAIN, ECANCELED
//!   queue   3 4 …                   a POLLOUT is armed; when it fires the next chain starts at 3
//! ```
//!
//! Sends that do not depend on each other are tried again by the kernel in whatever order room appears (1,777 of 2,000 trains came out of
//! order in a probe). A linked send starts when the one before has succeeded, and with `MSG_DONTWAIT` none waits inside the kernel.
//! At most one chain is under way.
#![allow(unsafe_code, reason = "operations point to message headers and slots that the kernel reads")]

use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::opcode::{PollAdd, SendMsg};
use io_uring::types::Fixed;

use crate::engine::port::{TxMeta, TxPort, TxSink};
use crate::io::datagram::{DatagramQueue, PLAN_LEN_MAX, Settled, UdpTxConfig};
use crate::io::ring::{PortId, Ring};
use crate::io::socket::{Exit, Sockets};

/// The token of the poll for room; those of sends are their places in the chain.
const POLL_TOKEN: u64 = PLAN_LEN_MAX as u64;

/// The sending half of the underlay port, over io_uring.
pub struct UdpTx {
    ring: Ring,
    port: PortId,
    /// Leaked should a chain not end.
    queue: ManuallyDrop<DatagramQueue>,
    files: Vec<(Exit, Fixed)>,
    answers: [i32; PLAN_LEN_MAX],
    /// Messages of the chain under way, and how many answers have come.
    chain: usize,
    answered: usize,
    /// A socket is full and a poll for room is armed.
    blocked: bool,
    blocks: u64,
    _sockets: Arc<Sockets>,
}

impl UdpTx {
    /// A sending port by a worker's sockets.
    ///
    /// # Errors
    /// When there is no memory for the slots, or the ring takes no more files.
    pub fn new(ring: &Ring, sockets: Arc<Sockets>, config: UdpTxConfig) -> io::Result<Self> {
        let mut port = Self {
            ring: ring.clone(),
            port: ring.attach(PLAN_LEN_MAX + 1),
            queue: ManuallyDrop::new(DatagramQueue::new(config, sockets.exits())?),
            files: Vec::with_capacity(4),
            answers: [0; PLAN_LEN_MAX],
            chain: 0,
            answered: 0,
            blocked: false,
            blocks: 0,
            _sockets: sockets.clone(),
        };
        for (exit, socket) in sockets.each_exit() {
            port.files.push((exit, ring.register_file(socket.as_raw_fd())?));
        }
        Ok(port)
    }

    /// Destinations whose trains are sent datagram by datagram, because their path refused a train. At most 64 are remembered.
    pub fn single_paths(&self) -> &[SocketAddr] {
        self.queue.single_paths()
    }

    /// Tries trains again on every path.
    pub fn forget_single_paths(&mut self) {
        self.queue.forget_single_paths();
    }

    /// Times a socket's buffer was full.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    fn file(&self, i: usize) -> Fixed {
        let exit = self.queue.exit(i);
        // The queue takes no frame without a socket to leave by; such a one would be refused by the kernel (EBADF) and counted.
        self.files.iter().find(|(of, _)| *of == exit).map_or(Fixed(u32::MAX >> 1), |&(_, file)| file)
    }

    /// Takes what the kernel has answered; when the whole chain is answered, settles it.
    fn collect(&mut self) -> io::Result<()> {
        while let Some(completion) = self.ring.next(self.port) {
            if completion.token == POLL_TOKEN {
                self.blocked = false;
            } else if let Some(answer) = self.answers.get_mut(completion.token as usize) {
                *answer = completion.result;
                self.answered += 1;
            }
        }
        if self.chain == 0 || self.answered < self.chain {
            return Ok(());
        }
        let chain = std::mem::take(&mut self.chain);
        self.answered = 0;
        for i in 0..chain {
            match self.queue.settle(i, self.answers[i]) {
                Settled::Sent => {}
                Settled::Stopped => break,
                Settled::Blocked => {
                    self.blocked = true;
                    self.blocks += 1;
                    let poll = PollAdd::new(self.file(i), libc::POLLOUT as u32).build();
                    // SAFETY: a poll points to no memory of ours.
                    unsafe { self.ring.push(self.port, POLL_TOKEN, poll)? };
                    self.ring.submit()?;
                    break;
                }
            }
        }
        Ok(())
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
        if self.blocked || self.chain > 0 {
            self.ring.reap()?;
            self.collect()?;
        }
        // Every round sends, drops or puts on trial at least one frame, or blocks.
        while !self.blocked && self.chain == 0 {
            let planned = self.queue.plan();
            if planned == 0 {
                break;
            }
            self.chain = planned;
            let flags = libc::MSG_DONTWAIT as u32;
            let chain = (0..planned).map(|i| SendMsg::new(self.file(i), self.queue.header(i)).flags(flags).build());
            // SAFETY: headers and slots stay as they are until the chain is answered: `plan` is not called before, slots are freed by
            // `settle`, and `drop` waits or leaks.
            unsafe { self.ring.run_chain(self.port, chain)? };
            self.collect()?;
        }
        Ok(self.queue.len())
    }

    fn room(&self) -> usize {
        self.queue.room()
    }

    fn take_failed(&mut self) -> u64 {
        self.queue.take_failed()
    }
}

impl Drop for UdpTx {
    fn drop(&mut self) {
        // No link of a chain can block, so a few looks at the ring see its end.
        for _ in 0..PLAN_LEN_MAX {
            if self.chain == self.answered {
                break;
            }
            if self.ring.reap().is_err() {
                break;
            }
            while let Some(completion) = self.ring.next(self.port) {
                self.answered += usize::from(completion.token != POLL_TOKEN);
            }
        }
        if self.blocked {
            self.ring.cancel(self.port, &[POLL_TOKEN]);
        }
        self.ring.detach(self.port);
        for (_, file) in self.files.drain(..) {
            self.ring.unregister_file(file);
        }
        if self.chain == self.answered {
            // SAFETY: the kernel has answered everything that pointed into the queue, and it is dropped only here.
            unsafe { ManuallyDrop::drop(&mut self.queue) };
        }
    }
}
