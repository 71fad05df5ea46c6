//! How a worker's reactor wakes for AF_XDP sockets: polls on its io_uring, or its epoll.
//!
//! Arrivals are watched always, room for sending only while a port is blocked: a socket reports it after every frame that leaves. The
//! reactor's promise holds: what arrived since the last wait ends the next one.
#![allow(unsafe_code, reason = "polls are pushed on a ring whose other operations point to memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{opcode, types};

use super::super::epoll::Epoll;
use super::super::ring::{PortId, Ring};

/// Completions that may wait for one look: the polls of some dozens of sockets.
const INBOX_LEN: usize = 256;

/// A worker's reactor, as AF_XDP ports use it.
#[derive(Clone)]
pub enum Watch {
    /// Polls on the ring.
    Ring(Ring),
    /// The epoll.
    Epoll(Epoll),
}

/// The sockets of one port.
pub(super) struct Watched {
    how: Watch,
    port: Option<PortId>,
    fds: Vec<RawFd>,
    /// By socket: whether its poll is under way, and whether it is wanted.
    armed: Vec<(bool, bool)>,
    events: u32,
}

impl Watched {
    /// Watches sockets for arrivals.
    pub(super) fn arrivals<'a>(how: &Watch, sockets: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let mut this = Self::new(how, sockets, libc::POLLIN)?;
        for i in 0..this.fds.len() {
            this.armed[i].1 = true;
        }
        this.look()?;
        Ok(this)
    }

    /// Watches sockets for room to send, when asked.
    pub(super) fn room<'a>(how: &Watch, sockets: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        Self::new(how, sockets, libc::POLLOUT)
    }

    fn new<'a>(how: &Watch, sockets: impl Iterator<Item = BorrowedFd<'a>>, events: i16) -> io::Result<Self> {
        let fds: Vec<RawFd> = sockets.map(|fd| fd.as_raw_fd()).collect();
        let port = match how {
            Watch::Ring(ring) => Some(ring.attach(INBOX_LEN)),
            Watch::Epoll(epoll) => {
                fds.iter().try_for_each(|&fd| epoll.watch(fd))?;
                None
            }
        };
        let armed = vec![(false, false); fds.len()];
        Ok(Self { how: how.clone(), port, fds, armed, events: events as u32 })
    }

    /// Takes note of polls that ended and arms those that are wanted.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let (Watch::Ring(ring), Some(port)) = (&self.how, self.port) else { return Ok(()) };
        ring.reap()?;
        while let Some(completion) = ring.next(port) {
            if !completion.more()
                && let Some(armed) = self.armed.get_mut(completion.token as usize)
            {
                armed.0 = false;
            }
        }
        let arrivals = self.events == libc::POLLIN as u32;
        let mut pushed = false;
        for (i, (under_way, wanted)) in self.armed.iter_mut().enumerate() {
            if !*wanted || *under_way {
                continue;
            }
            let poll = opcode::PollAdd::new(types::Fd(self.fds[i]), self.events).multi(arrivals).build();
            // SAFETY: a poll points to no memory of ours, and `drop` ends it before the port lets go of the socket.
            unsafe { ring.push(port, i as u64, poll)? };
            *under_way = true;
            // Room is told once, and asked for again by whoever is still blocked.
            *wanted = arrivals;
            pushed = true;
        }
        if pushed { ring.submit() } else { Ok(()) }
    }

    /// Whether to wake for room on socket `i`.
    pub(super) fn want(&mut self, i: usize, wanted: bool) -> io::Result<()> {
        let (under_way, before) = self.armed[i];
        match &self.how {
            Watch::Ring(_) => {
                if wanted && !under_way {
                    self.armed[i].1 = true;
                    self.look()?;
                }
                Ok(())
            }
            Watch::Epoll(epoll) => {
                if wanted != before {
                    self.armed[i].1 = wanted;
                    epoll.want_room(self.fds[i], wanted)?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let (Watch::Ring(ring), Some(port)) = (&self.how, self.port) {
            let under_way: Vec<u64> = (0..).zip(&self.armed).filter(|(_, armed)| armed.0).map(|(i, _)| i).collect();
            // A poll holds its socket open, and so the queue. One that will not end goes with the ring.
            ring.cancel(port, &under_way);
            ring.detach(port);
        }
    }
}
