//! Waiting: one place where a worker sleeps, and a handle by which other threads wake it.
//!
//! ```text
//!              arm                     wake (first)
//!   awake ───────────▶ asleep ───────────────────────▶ notified ── eventfd written
//!     ▲ ▲                │ disarm                          │
//!     │ └────────────────┘                                 │ arm refused: do not sleep
//!     └────────────────────────────────────────────────────┘
//!   awake ── wake ──▶ notified: no system call, the worker has not slept yet
//! ```
//!
//! So a wake costs a system call only when somebody sleeps, and one that comes between the last look at a queue and falling asleep is
//! not lost. It does not know what the worker waits for.
#![allow(unsafe_code, reason = "an eventfd is made and written by system calls")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something arrived, or somebody called [`Waker::wake`]: look at every port and queue.
    Ready,
    /// The time is up and nothing arrived.
    Timeout,
}

/// Where a worker sleeps.
///
/// Call [`Self::wait`] only after a pass in which every port that the worker is willing to read said that nothing waits. What arrived
/// since the last wait, whichever port it is for, makes the next wait return at once, so nothing is slept over; what arrived before and
/// was left unread on purpose (the other side had no room) does not keep the worker awake.
pub trait Reactor {
    /// A handle for other threads, to end a wait or to keep the next one from sleeping.
    fn waker(&self) -> Waker;

    /// Blocks until something arrives, somebody wakes the worker, or `timeout` has passed; `None` waits for ever. A timeout of zero only
    /// looks.
    ///
    /// # Errors
    /// Only when the reactor is of no more use.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Wake>;
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

#[derive(Debug)]
struct Shared {
    event: OwnedFd,
    state: AtomicU8,
}

/// Wakes one worker from any thread. Put the work where the worker will look first, then call [`Self::wake`].
#[derive(Clone, Debug)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// A waker with an eventfd of its own.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(Arc::new(Shared { event, state: AtomicU8::new(AWAKE) })))
    }

    /// Ends the worker's wait, or keeps its next one from sleeping. Costs a system call only when the worker sleeps.
    pub fn wake(&self) {
        if self.0.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the buffer is eight bytes long and outlives the call. The only error is a full counter, which wakes as well.
            unsafe { libc::write(self.0.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// The descriptor that becomes readable on a wake.
    pub(super) fn event(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    /// Says that the worker is about to sleep; `false` when it must not because it was woken already.
    pub(super) fn arm(&self) -> bool {
        let armed = self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !armed {
            self.0.state.store(AWAKE, Ordering::SeqCst);
        }
        armed
    }

    /// Says that the worker is awake; `true` when somebody woke it meanwhile.
    pub(super) fn disarm(&self) -> bool {
        self.0.state.swap(AWAKE, Ordering::SeqCst) == NOTIFIED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(waker: &Waker) -> u64 {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is eight bytes long and outlives the call.
        let n = unsafe { libc::read(waker.event(), count.as_mut_ptr().cast(), 8) };
        if n == 8 { u64::from_ne_bytes(count) } else { 0 }
    }

    #[test]
    fn wake_of_an_awake_worker_writes_nothing_and_forbids_one_sleep() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        assert_eq!(written(&waker), 0);
        assert!(!waker.arm());
        assert!(waker.arm());
    }

    #[test]
    fn only_the_first_wake_of_a_sleeper_writes() {
        let waker = Waker::new().unwrap();
        assert!(waker.arm());
        waker.wake();
        waker.wake();
        assert_eq!(written(&waker), 1);
        assert!(waker.disarm());
        assert!(waker.arm());
        assert!(!waker.disarm());
    }
}
