//! One io_uring per worker, shared by the worker's ports.
//!
//! ```text
//!   UdpRx ─┐ submissions            ┌─▶ inbox of UdpRx
//!   UdpTx ─┤──────────▶ io_uring ───┼─▶ inbox of UdpTx        user_data =  port | token
//!   TunRx ─┘           completions  └─▶ inbox of TunRx                    16 bits 48 bits
//! ```
//!
//! The ring is built on its worker's thread and never leaves it (`SINGLE_ISSUER`). The kernel runs completions only when the worker asks
//! (`DEFER_TASKRUN`) and says by `SQ_TASKRUN` that there is something to ask for, so looking at an idle ring costs two loads and no system
//! call. It knows nothing of datagrams or TUN.
#![allow(unsafe_code, reason = "submissions point to memory that the kernel reads and writes")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::reactor::{Reactor, Wake, Waker};

/// What a ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Submission entries. At least twice the longest chain, so that a chain always fits whole.
    pub submissions: u32,
    /// Completion entries. Bursts of every port may wait here at once; past the end the kernel keeps them in memory of its own, slowly.
    pub completions: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { submissions: 256, completions: 4096 }
    }
}

/// Descriptors that the ports of one ring can register.
const FILES_MAX: u32 = 32;

/// How long a closing port waits for the kernel to let go of its memory.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks at the ring for the last completion of a cancelled operation; the first one sees it.
const CANCEL_LOOKS: usize = 100;

/// How long a chain of sends, none of which can block, may take before the worker goes on without its result.
const CHAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// The port number of the wake-up eventfd.
const WAKE_PORT: u16 = u16::MAX;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel has no io_uring, or an administrator or a container forbids it.
    #[error(
        "io_uring is not available ({source}): set the sysctl kernel.io_uring_disabled to 0 and allow it in the container's seccomp profile, or set wan.io = \"mmsg\""
    )]
    Unavailable {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel is older than Linux 6.1.
    #[error(
        "this kernel's io_uring lacks SINGLE_ISSUER or DEFER_TASKRUN: use Linux 6.1 or newer, or set wan.io = \"mmsg\""
    )]
    TooOld,
    /// Another step failed.
    #[error("io_uring: {step}: {source}")]
    Setup {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What this kernel's io_uring can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `IORING_SETUP_SINGLE_ISSUER`, Linux 6.0.
    pub single_issuer: bool,
    /// `IORING_SETUP_DEFER_TASKRUN`, Linux 6.1.
    pub defer_taskrun: bool,
    /// `IORING_SETUP_NO_SQARRAY`, Linux 6.6.
    pub no_sqarray: bool,
    /// `IORING_OP_READ_MULTISHOT`, Linux 6.7.
    pub read_multishot: bool,
    /// Multishot `IORING_OP_RECVMSG`, Linux 6.0.
    pub recvmsg_multishot: bool,
    /// `IORING_REGISTER_PBUF_RING`, Linux 5.19.
    pub buffer_rings: bool,
}

impl RingFeatures {
    /// Whether the io_uring ports for datagrams can run.
    pub const fn udp(self) -> bool {
        self.single_issuer && self.defer_taskrun && self.recvmsg_multishot && self.buffer_rings
    }

    /// Whether the io_uring ports for TUN can run.
    pub const fn tun(self) -> bool {
        self.single_issuer && self.defer_taskrun && self.read_multishot && self.buffer_rings
    }
}

/// Asks the kernel what its io_uring can do: set-up flags and buffer rings by trying, operations by the probe. Everything is false where
/// io_uring cannot be used at all.
pub fn features() -> RingFeatures {
    let mut features = RingFeatures {
        single_issuer: IoUring::<squeue::Entry>::builder().setup_single_issuer().build(4).is_ok(),
        no_sqarray: IoUring::<squeue::Entry>::builder().setup_no_sqarray().build(4).is_ok(),
        ..RingFeatures::default()
    };
    let Ok(uring) = builder(8).build(4) else { return features };
    features.defer_taskrun = true;
    let mut probe = Probe::new();
    if uring.submitter().register_probe(&mut probe).is_ok() {
        features.read_multishot = probe.is_supported(opcode::ReadMulti::CODE);
        // Multishot receive has no opcode of its own. SEND_ZC came with the same release (6.0), and the plain opcode is older than both.
        features.recvmsg_multishot =
            probe.is_supported(opcode::SendZc::CODE) && probe.is_supported(opcode::RecvMsgMulti::CODE);
    }
    features.buffer_rings = super::uring::BufferRing::supported(&uring);
    features
}

/// What a completed operation said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// The token that the port gave.
    pub(super) token: u64,
    /// The result: not negative, or the negated errno.
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// The provided buffer that was used.
    pub(super) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// Whether the operation goes on; if not, a multishot operation has to be armed again.
    pub(super) fn more(self) -> bool {
        cqueue::more(self.flags)
    }
}

/// A port on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortId(u16);

struct Core {
    uring: IoUring,
    inboxes: Vec<Option<VecDeque<Completion>>>,
    free_files: Vec<u32>,
    buffer_groups: u16,
    /// Something was put into an inbox since the last wait.
    arrived: bool,
    wake_armed: bool,
    waker: Waker,
    enters: u64,
}

/// A worker's ring. Clones share it; none can leave the thread.
#[derive(Clone)]
pub struct Ring(Rc<RefCell<Core>>);

fn builder(completions: u32) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(completions)
        .dontfork();
    builder
}

impl Ring {
    /// Builds the calling thread's ring.
    ///
    /// # Errors
    /// When io_uring cannot be used here; the error says why and what to do.
    pub fn new(config: RingConfig) -> Result<Self, RingError> {
        let mut setup = builder(config.completions);
        let uring = setup.setup_no_sqarray().build(config.submissions).or_else(|error| {
            // NO_SQARRAY came with Linux 6.6; it saves one indirection per submission and nothing depends on it.
            if error.raw_os_error() == Some(libc::EINVAL) {
                builder(config.completions).build(config.submissions)
            } else {
                Err(error)
            }
        });
        let uring = uring.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => RingError::Unavailable { source },
            Some(libc::EINVAL) => RingError::TooOld,
            _ => RingError::Setup { step: "io_uring_setup", source },
        })?;
        uring
            .submitter()
            .register_files_sparse(FILES_MAX)
            .map_err(|source| RingError::Setup { step: "registering files", source })?;
        let waker = Waker::new().map_err(|source| RingError::Setup { step: "eventfd", source })?;
        let mut core = Core {
            uring,
            inboxes: Vec::new(),
            free_files: (0..FILES_MAX).rev().collect(),
            buffer_groups: 0,
            arrived: false,
            wake_armed: false,
            waker,
            enters: 0,
        };
        core.arm_wake().map_err(|source| RingError::Setup { step: "polling the eventfd", source })?;
        Ok(Self(Rc::new(RefCell::new(core))))
    }

    /// System calls made for this ring since it was built.
    pub fn enters(&self) -> u64 {
        self.0.borrow().enters
    }

    /// A new port whose inbox holds `inbox_len` completions without growing.
    pub(super) fn attach(&self, inbox_len: usize) -> PortId {
        let mut core = self.0.borrow_mut();
        // Ports are made when a worker starts, a handful of them; their numbers are never used again.
        let id = core.inboxes.len().min(usize::from(WAKE_PORT - 1));
        core.inboxes.push(Some(VecDeque::with_capacity(inbox_len)));
        PortId(id as u16)
    }

    /// Completions for `port` are dropped from now on.
    pub(super) fn detach(&self, port: PortId) {
        self.0.borrow_mut().inboxes[usize::from(port.0)] = None;
    }

    /// Registers a descriptor, which saves the kernel a look-up per operation. The ring holds the file open until it is given back.
    pub(super) fn register_file(&self, fd: RawFd) -> io::Result<Fixed> {
        let mut core = self.0.borrow_mut();
        let index = core.free_files.pop().ok_or(io::ErrorKind::QuotaExceeded)?;
        if let Err(error) = core.uring.submitter().register_files_update(index, &[fd]) {
            core.free_files.push(index);
            return Err(error);
        }
        Ok(Fixed(index))
    }

    /// Gives a registered descriptor back.
    pub(super) fn unregister_file(&self, file: Fixed) {
        let mut core = self.0.borrow_mut();
        if core.uring.submitter().register_files_update(file.0, &[-1]).is_ok() {
            core.free_files.push(file.0);
        }
    }

    /// Runs `f` with the bare ring and a number for a new group of provided buffers.
    pub(super) fn with_buffer_group<T>(&self, f: impl FnOnce(&IoUring, u16) -> io::Result<T>) -> io::Result<T> {
        let mut core = self.0.borrow_mut();
        let group = core.buffer_groups;
        let made = f(&core.uring, group)?;
        core.buffer_groups += 1;
        Ok(made)
    }

    /// Drops a group of provided buffers; the kernel takes none of them afterwards.
    pub(super) fn unregister_buffers(&self, group: u16) -> io::Result<()> {
        self.0.borrow().uring.submitter().unregister_buf_ring(group)
    }

    /// Queues one operation; it starts at the next submit, enter or wait.
    ///
    /// # Safety
    /// All memory that `entry` points to stays valid, and is not touched against the operation's nature, until its last completion.
    pub(super) unsafe fn push(&self, port: PortId, token: u64, entry: squeue::Entry) -> io::Result<()> {
        let mut core = self.0.borrow_mut();
        core.reserve(1)?;
        // SAFETY: the caller's promise.
        unsafe { core.push(port.0, token, entry) }
    }

    /// Queues operations that run one after the other, the token of each being its place, and runs them to their end: each starts when the
    /// one before succeeded, and after a failure the rest are cancelled. None of them may be able to block.
    ///
    /// # Safety
    /// As for [`Self::push`], for every entry.
    pub(super) unsafe fn run_chain(
        &self,
        port: PortId,
        chain: impl ExactSizeIterator<Item = squeue::Entry>,
    ) -> io::Result<()> {
        let mut core = self.0.borrow_mut();
        let len = chain.len();
        // What is in the ring already must not count for what is waited for below.
        core.collect();
        // A chain ends where a submission ends, so it must not be cut in two.
        core.reserve(len)?;
        for (i, entry) in chain.enumerate() {
            let link = if i + 1 < len { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
            // SAFETY: the caller's promise.
            unsafe { core.push(port.0, i as u64, entry.flags(link))? };
        }
        // The kernel starts a link from deferred work, and runs as much of that in one call as it is asked to wait for.
        core.enter(len, Some(CHAIN_TIMEOUT))?;
        core.collect();
        Ok(())
    }

    /// Hands queued operations to the kernel.
    pub(super) fn submit(&self) -> io::Result<()> {
        self.0.borrow_mut().submit()
    }

    /// Sorts what has completed into the inboxes. Enters the kernel only if that has something to do for the ring.
    pub(super) fn reap(&self) -> io::Result<()> {
        self.0.borrow_mut().reap()
    }

    /// The oldest completion in a port's inbox.
    pub(super) fn next(&self, port: PortId) -> Option<Completion> {
        self.0.borrow_mut().inboxes[usize::from(port.0)].as_mut()?.pop_front()
    }

    /// Completions in a port's inbox.
    pub(super) fn waiting(&self, port: PortId) -> usize {
        self.0.borrow().inboxes[usize::from(port.0)].as_ref().map_or(0, VecDeque::len)
    }

    /// Cancels the operations with these tokens, all under way, and waits for the last completion of each, after which the kernel has let
    /// go of their memory and files; `false` when one does not come. What else is in the port's inbox is lost.
    pub(super) fn cancel(&self, port: PortId, tokens: &[u64]) -> bool {
        let mut core = self.0.borrow_mut();
        // What is not submitted cannot be cancelled.
        if core.submit().is_err() {
            return false;
        }
        for &token in tokens {
            let target = CancelBuilder::user_data(user_data(port.0, token)).all();
            // Not found is as good: it has ended already. So the answer does not matter, the last completion does.
            let _ = core.uring.submitter().register_sync_cancel(Some(timespec(CANCEL_TIMEOUT)), target);
        }
        let mut ended = 0;
        for _ in 0..CANCEL_LOOKS {
            if ended == tokens.len() || core.reap().is_err() {
                break;
            }
            let Some(Some(inbox)) = core.inboxes.get_mut(usize::from(port.0)) else { break };
            ended += inbox.drain(..).filter(|c| !c.more() && tokens.contains(&c.token)).count();
        }
        ended == tokens.len()
    }
}

impl Reactor for Ring {
    fn waker(&self) -> Waker {
        self.0.borrow().waker.clone()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Wake> {
        self.0.borrow_mut().wait(timeout)
    }
}

impl Core {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Wake> {
        // Whoever saw the poll's end, here or between two waits: without it a wake would find us deaf.
        if !self.wake_armed {
            self.arm_wake()?;
        }
        if !self.waker.arm() {
            self.arrived = false;
            return Ok(Wake::Ready);
        }
        // Armed: whoever comes from now on writes the eventfd. So look once more, then sleep.
        let mut looked = self.reap();
        if looked.is_ok() && !self.arrived && timeout != Some(Duration::ZERO) {
            looked = self.enter(1, timeout);
            self.collect();
        }
        let woken = self.waker.disarm();
        looked?;
        let ready = woken || self.arrived;
        self.arrived = false;
        Ok(if ready { Wake::Ready } else { Wake::Timeout })
    }

    fn reap(&mut self) -> io::Result<()> {
        self.collect();
        let queue = self.uring.submission();
        let has_work = queue.taskrun() || queue.cq_overflow() || !queue.is_empty();
        drop(queue);
        if has_work {
            self.submit()?;
            self.collect();
        }
        Ok(())
    }

    /// Moves completions into their inboxes.
    fn collect(&mut self) {
        for entry in self.uring.completion() {
            self.arrived = true;
            let (port, token) = ((entry.user_data() >> 48) as u16, entry.user_data() & TOKEN_MASK);
            let completion = Completion { token, result: entry.result(), flags: entry.flags() };
            if port == WAKE_PORT {
                // The eventfd's counter is never read: the poll reports each write, and 2^64 of them do not happen.
                self.wake_armed &= completion.more();
            } else if let Some(Some(inbox)) = self.inboxes.get_mut(usize::from(port)) {
                inbox.push_back(completion);
            }
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.enters += 1;
        // The crate adds GETEVENTS when the kernel has deferred work or an overflown queue.
        passing(self.uring.submitter().submit())
    }

    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.enters += 1;
        passing(match timeout {
            None => self.uring.submitter().submit_and_wait(want),
            Some(timeout) => {
                let timeout = timespec(timeout);
                self.uring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout))
            }
        })
    }

    /// Makes room for `len` submissions.
    fn reserve(&mut self, len: usize) -> io::Result<()> {
        let queue = self.uring.submission();
        let room = queue.capacity() - queue.len();
        drop(queue);
        if room < len {
            self.submit()?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Ring::push`].
    unsafe fn push(&mut self, port: u16, token: u64, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(user_data(port, token));
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(self.waker.event()), libc::POLLIN as u32).multi(true).build();
        self.reserve(1)?;
        // SAFETY: a poll points to no memory of ours; the eventfd lives as long as the ring's waker.
        unsafe { self.push(WAKE_PORT, 0, poll)? };
        self.wake_armed = true;
        self.submit()
    }
}

/// The bits of a token that come back with its completion.
pub(super) const TOKEN_MASK: u64 = (1 << 48) - 1;

fn user_data(port: u16, token: u64) -> u64 {
    u64::from(port) << 48 | (token & TOKEN_MASK)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::new().sec(duration.as_secs()).nsec(duration.subsec_nanos())
}

/// What passes by itself is no error: the time is up, a signal came, or completions must be taken before more is submitted.
fn passing(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
