//! Where a worker without io_uring sleeps: one epoll, edge-triggered.
//!
//! Edges, so that what a worker leaves unread on purpose does not wake it again and again; [`Reactor`]'s contract is the same as the
//! ring's. Room for sending is asked for only while a port is blocked, because a socket reports it after every packet that leaves.
#![allow(unsafe_code, reason = "epoll is a system call")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::reactor::{Reactor, Wake, Waker};

/// Events taken by one wait. What is beyond makes the next wait return.
const EVENTS_LEN: usize = 32;

/// Marks the waker's event.
const WAKE: u64 = u64::MAX;

struct Shared {
    epoll: OwnedFd,
    waker: Waker,
}

/// A worker's epoll. Clones share it; none can leave the thread.
#[derive(Clone)]
pub struct Epoll(Rc<Shared>);

impl Epoll {
    /// A new epoll with its waker.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no memory of ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Self(Rc::new(Shared { epoll, waker: Waker::new()? }));
        this.control(libc::EPOLL_CTL_ADD, this.0.waker.event(), libc::EPOLLIN, WAKE)?;
        Ok(this)
    }

    /// Wakes for what arrives at `fd` from now on. A descriptor that is watched already stays so.
    pub(super) fn watch(&self, fd: RawFd) -> io::Result<()> {
        match self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, fd as u64) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            done => done,
        }
    }

    /// Whether to wake for room to send on `fd`, which is watched.
    pub(super) fn want_room(&self, fd: RawFd, wanted: bool) -> io::Result<()> {
        let events = if wanted { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, fd, events, fd as u64)
    }

    fn control(&self, what: libc::c_int, fd: RawFd, events: libc::c_int, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: (events | libc::EPOLLET) as u32, u64: data };
        // SAFETY: the event is read during the call only.
        let done = unsafe { libc::epoll_ctl(self.0.epoll.as_raw_fd(), what, fd, &raw mut event) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Events that came, at most [`EVENTS_LEN`]; waits for the first as long as `timeout` says.
    fn look(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_LEN];
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // Milliseconds are too coarse for a worker's deadlines, hence epoll_pwait2 (Linux 5.11).
        // SAFETY: the array holds as many events as it is said to, and the timeout, if any, outlives the call.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS_LEN as libc::c_int,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match usize::try_from(n) {
            Ok(n) => Ok(n),
            Err(_) => match io::Error::last_os_error() {
                // A signal is a reason to look.
                error if error.kind() == io::ErrorKind::Interrupted => Ok(1),
                error => Err(error),
            },
        }
    }
}

impl Reactor for Epoll {
    fn waker(&self) -> Waker {
        self.0.waker.clone()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Wake> {
        let waker = &self.0.waker;
        if !waker.arm() {
            return Ok(Wake::Ready);
        }
        let came = self.look(timeout);
        let woken = waker.disarm();
        Ok(if came? > 0 || woken { Wake::Ready } else { Wake::Timeout })
    }
}
