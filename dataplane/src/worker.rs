//! A worker: one pinned thread that drives one engine between its ports.
//!
//! ```text
//!            ┌────────────────────────── one pass ──────────────────────────┐
//!   commands ▶ WAN burst ▶ decapsulate ▶ LAN burst ▶ encapsulate ▶ deadlines ▶ flush both ▶ events
//!            └──────────────── something moved: again, else sleep ───────────┘
//! ```
//!
//! A side is read only while the other one has room for what a burst may become, so a full send queue slows the reader down and drops
//! nothing of its own. The worker decides nothing about packets (the engine does) and nothing about the kernel (the ports do).

mod handoff;
mod idle;
mod ports;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel;
use crossbeam::queue::ArrayQueue;
use weir_abi::drop::DropReason;

pub use self::handoff::Handoff;
use self::idle::{Idle, Next};
pub use self::ports::{Side, XskPorts};
use crate::config::{Fault, FaultDirection, Latency};
use crate::engine::counters::{CountersReader, Metric};
use crate::engine::port::{BURST_LEN, RxPort, TRAIN_SEGMENTS_MAX, TxMeta, TxPort, TxSink};
use crate::engine::time::Time;
use crate::engine::{Command, Engine, Event};
use crate::io::UdpTxConfig;
use crate::io::fault::{FaultPlan, FaultRx, FaultTx};
use crate::io::reactor::{Reactor, Waker};
use crate::io::socket::Sockets;
use crate::io::tun::TunQueue;

/// Most commands that wait for a worker. The control thread waits for room beyond that, which takes a batch.
pub const COMMANDS_MAX: usize = 1024;
/// Most events that wait for the control thread. Beyond that they stay in the engine, which counts what it loses.
pub const EVENTS_MAX: usize = 1024;
/// Free slots towards the LAN without which no WAN burst is read: a slot for each frame of a burst of single datagrams. A train becomes
/// one superpacket for each flow in it where the TUN takes those, and a slot for each packet where it does not; [`Eager`] empties the
/// queue on the way.
const LAN_ROOM_MIN: usize = BURST_LEN;
/// Free slots towards the WAN without which no LAN burst is read. A burst needs few as a rule: packets for one peer share trains, and a
/// superpacket of 64 KiB is one or two. At the worst it needs more than the queue has, when every frame goes to a peer of its own or all are
/// superpackets (64 of them are some 75 trains); then [`Eager`] empties the queue on the way.
const WAN_ROOM_MIN: usize = BURST_LEN / 2;

/// The clock that all workers and the control thread share, so that their times can be compared.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time. It never is [`Time::ZERO`].
    pub fn now(self) -> Time {
        Time::from_nanos(self.0.elapsed().as_nanos() as u64 + 1)
    }
}

/// Which ports a worker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// io_uring for both sides.
    Uring,
    /// recvmmsg, sendmmsg, read and write with epoll.
    Mmsg,
}

impl std::fmt::Display for PortKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uring => "udp+tun over io_uring",
            Self::Mmsg => "udp+tun over recvmmsg and epoll",
        })
    }
}

/// What a worker is made of.
pub struct WorkerConfig {
    /// Its number.
    pub number: u8,
    /// The core that it is pinned to; `None` leaves it to the scheduler.
    pub core: Option<core_affinity::CoreId>,
    /// Its ports.
    pub ports: PortKind,
    /// How it trades its core for time.
    pub latency: Latency,
    /// Workers take every core that there is, so polling would take time from whatever else runs.
    pub shared_cores: bool,
    /// Its sockets.
    pub sockets: Arc<Sockets>,
    /// Its queue of the TUN.
    pub tun: TunQueue,
    /// The TUN's MTU in bytes.
    pub mtu: u16,
    /// Its AF_XDP sockets, and which ports use them; without any all packets go by sockets and TUN.
    pub xsk: Option<XskPorts>,
    /// Its end of the hand-over between workers.
    pub handoff: Handoff,
    /// The shared clock.
    pub clock: Clock,
    /// Where to say that events wait.
    pub notify: Notify,
    /// A bad network between its ports and the underlay, for tests.
    pub fault: Option<Fault>,
}

/// Called by workers when there is something for the control thread to read. Must not block.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// The control thread's end of a worker.
pub struct Worker {
    number: u8,
    commands: Arc<ArrayQueue<Command>>,
    events: Arc<ArrayQueue<Event>>,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    waker: Waker,
    counters: CountersReader,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread could not be started.
    #[error("cannot start the thread of worker {number}: {error}")]
    Thread {
        /// Which worker.
        number: u8,
        /// What the system said.
        error: io::Error,
    },
    /// Its ports could not be made.
    #[error("worker {number} cannot set up its ports: {error}; try wan.io = \"mmsg\"")]
    Ports {
        /// Which worker.
        number: u8,
        /// What the kernel said.
        error: io::Error,
    },
    /// It could not be pinned.
    #[error(
        "worker {number} cannot be pinned to core {core}: check workers.cores against the cores that this process may use"
    )]
    Pin {
        /// Which worker.
        number: u8,
        /// Which core.
        core: usize,
    },
    /// The thread ended before it was told to.
    #[error("worker {number} stopped: {reason}")]
    Died {
        /// Which worker.
        number: u8,
        /// What it said.
        reason: String,
    },
}

/// What the thread tells once it is set up.
type Started = Result<(Waker, CountersReader), WorkerError>;

impl Worker {
    /// Starts the thread and waits until its ports stand.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let number = config.number;
        let commands = Arc::new(ArrayQueue::new(COMMANDS_MAX));
        let events = Arc::new(ArrayQueue::new(EVENTS_MAX));
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let (started, when_started) = channel::bounded::<Started>(1);
        let queues = Queues {
            commands: Arc::clone(&commands),
            events: Arc::clone(&events),
            stop: Arc::clone(&stop),
            notify: Arc::clone(&config.notify),
        };
        let end = TellEnd { ended: Arc::clone(&ended), notify: Arc::clone(&config.notify) };
        let thread = std::thread::Builder::new()
            .name(format!("weir-worker-{number}"))
            .spawn(move || {
                let _end = end;
                run(config, queues, &started)
            })
            .map_err(|error| WorkerError::Thread { number, error })?;
        match when_started.recv() {
            Ok(Ok((waker, counters))) => {
                Ok(Self { number, commands, events, stop, ended, waker, counters, thread: Some(thread) })
            }
            Ok(Err(error)) => Err(error),
            Err(channel::RecvError) => Err(died(number, thread)),
        }
    }

    /// Gives the worker an order. Waits while its queue is full, which a running worker empties once a batch.
    ///
    /// # Errors
    /// [`WorkerError::Died`] when nobody will ever take it.
    pub fn command(&mut self, command: Command) -> Result<(), WorkerError> {
        let mut command = command;
        while let Err(back) = self.commands.push(command) {
            if self.is_dead() {
                return Err(self.join().err().unwrap_or(WorkerError::Died {
                    number: self.number,
                    reason: "it ended with orders waiting".to_owned(),
                }));
            }
            command = back;
            self.waker.wake();
            std::thread::yield_now();
        }
        self.waker.wake();
        Ok(())
    }

    /// The next event, if there is one.
    pub fn poll_event(&self) -> Option<Event> {
        let event = self.events.pop();
        // A worker that found no room has kept its other events and may be asleep by now.
        if event.is_some() && self.events.len() + 1 >= EVENTS_MAX {
            self.waker.wake();
        }
        event
    }

    /// The worker's counters.
    pub fn counters(&self) -> &CountersReader {
        &self.counters
    }

    /// Whether the thread has ended, or is about to and will do no more work.
    pub fn is_dead(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Tells the worker to end after its current batch, and waits for it.
    ///
    /// # Errors
    /// [`WorkerError::Died`] when it had ended by itself.
    pub fn join(&mut self) -> Result<(), WorkerError> {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        match self.thread.take() {
            Some(thread) => match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(WorkerError::Died { number: self.number, reason: error.to_string() }),
                Err(panic) => Err(WorkerError::Died { number: self.number, reason: panic_text(&*panic) }),
            },
            None => Ok(()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The outcome was for whoever asked; a thread that still holds sockets and the TUN must not outlive its handle.
        let _ = self.join();
    }
}

fn died(number: u8, thread: JoinHandle<io::Result<()>>) -> WorkerError {
    let reason = match thread.join() {
        Ok(Ok(())) => "it ended during set-up".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic),
    };
    WorkerError::Died { number, reason }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("no message"))
}

/// The thread's ends of the queues.
struct Queues {
    commands: Arc<ArrayQueue<Command>>,
    events: Arc<ArrayQueue<Event>>,
    stop: Arc<AtomicBool>,
    notify: Notify,
}

/// Dropped when the thread ends, however it does: told to, by an error, or by a panic. The flag is set before the control thread is woken,
/// because the thread itself is not over yet when that one looks.
struct TellEnd {
    ended: Arc<AtomicBool>,
    notify: Notify,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        (self.notify)();
    }
}

/// The thread: makes the ports where they will be used, then drives them until told to stop.
fn run(config: WorkerConfig, queues: Queues, started: &channel::Sender<Started>) -> io::Result<()> {
    let (number, fault) = (config.number, config.fault);
    if let Some(core) = config.core
        && !core_affinity::set_for_current(core)
    {
        let _ = started.send(Err(WorkerError::Pin { number, core: core.id }));
        return Ok(());
    }
    match config.ports {
        PortKind::Uring => match ports::over_uring(config, queues) {
            Ok(running) => running.begin(fault, started),
            Err(error) => fail(number, error, started),
        },
        PortKind::Mmsg => match ports::over_mmsg(config, queues) {
            Ok(running) => running.begin(fault, started),
            Err(error) => fail(number, error, started),
        },
    }
}

fn fail(number: u8, error: io::Error, started: &channel::Sender<Started>) -> io::Result<()> {
    let _ = started.send(Err(WorkerError::Ports { number, error }));
    Ok(())
}

/// An engine with its ports, on its thread.
struct Running<R, WR, WT, LR, LT> {
    // Ports end before the reactor that they share.
    wan_rx: WR,
    wan_tx: WT,
    lan_rx: LR,
    lan_tx: LT,
    number: u8,
    reactor: R,
    engine: Engine,
    handoff: Handoff,
    queues: Queues,
    clock: Clock,
    idle: Idle,
}

impl<R, WR, WT, LR, LT> Running<R, WR, WT, LR, LT>
where
    R: Reactor,
    WR: RxPort + 'static,
    WT: TxPort + 'static,
    LR: RxPort + 'static,
    LT: TxPort + 'static,
{
    /// Works until told to stop, with a bad network between the WAN ports and the underlay if a test wants one. That need not be fast, so
    /// all ports are boxed then, and the engine is not compiled once more for each kind of them.
    fn begin(mut self, fault: Option<Fault>, started: &channel::Sender<Started>) -> io::Result<()> {
        let Some(fault) = fault else { return self.announce_and_run(started) };
        tracing::warn!("worker {}: {fault}", self.number);
        let Fault { direction, plan } = fault;
        // What comes in and what goes out at each worker has dice of its own.
        let worker = 2 * u64::from(self.number);
        let of = |side, only| match direction == only || direction == FaultDirection::Both {
            true => FaultPlan { seed: plan.seed.wrapping_add(worker + side), ..plan },
            false => FaultPlan::default(),
        };
        let UdpTxConfig { slots, slot_len } = UdpTxConfig::default();
        let wan_rx: Box<dyn RxPort> = Box::new(self.wan_rx);
        let wan_tx: Box<dyn TxPort> = Box::new(self.wan_tx);
        let lan_rx: Box<dyn RxPort> = Box::new(self.lan_rx);
        let lan_tx: Box<dyn TxPort> = Box::new(self.lan_tx);
        Running {
            wan_rx: FaultRx::new(wan_rx, of(0, FaultDirection::Rx)),
            wan_tx: FaultTx::new(wan_tx, of(1, FaultDirection::Tx), slots * TRAIN_SEGMENTS_MAX, slot_len),
            lan_rx,
            lan_tx,
            number: self.number,
            reactor: self.reactor,
            engine: self.engine,
            handoff: self.handoff,
            queues: self.queues,
            clock: self.clock,
            idle: self.idle,
        }
        .announce_and_run(started)
    }
}

impl<R: Reactor, WR: RxPort, WT: TxPort, LR: RxPort, LT: TxPort> Running<R, WR, WT, LR, LT> {
    fn announce_and_run(&mut self, started: &channel::Sender<Started>) -> io::Result<()> {
        self.handoff.set_waker(self.reactor.waker());
        // Nobody waits only when the control thread has given up; then the stop flag is set as well.
        let _ = started.send(Ok((self.reactor.waker(), self.engine.counters().reader())));
        while !self.queues.stop.load(Ordering::Acquire) {
            // Asked for once a pass: a pass is shorter than anything that is timed.
            let now = self.clock.now();
            let moved = self.pass(now)?;
            match self.idle.next(now, moved) {
                Next::Pass if moved => {}
                Next::Pass => std::hint::spin_loop(),
                Next::Yield => std::thread::yield_now(),
                Next::Sleep => {
                    let timeout = self.engine.next_deadline().map(|deadline| deadline.since(now));
                    self.reactor.wait(timeout.map(|timeout| timeout.max(Duration::from_micros(1))))?;
                }
            }
        }
        Ok(())
    }

    /// One round over everything. Returns whether anything moved.
    fn pass(&mut self, now: Time) -> io::Result<bool> {
        let mut moved = false;
        while let Some(command) = self.queues.commands.pop() {
            if let Command::Remove(slot) = command {
                self.engine.send_close(slot, now, &mut Eager(&mut self.wan_tx));
            }
            self.engine.command(command, now);
            moved = true;
        }
        // A session that has come up may have packets waiting for it.
        self.engine.send_held(now, &mut Eager(&mut self.wan_tx), &mut Eager(&mut self.lan_tx));
        let had_room = self.has_room();
        if had_room {
            let handed = self.handoff.receive();
            if handed > 0 {
                self.engine.counters().add(Metric::HandoffsReceived, handed as u64);
                self.engine.decapsulate(
                    now,
                    &mut self.handoff,
                    &mut Eager(&mut self.lan_tx),
                    &mut Eager(&mut self.wan_tx),
                );
                // A run is handed over once: it was cut by the very field that the engine looks at.
                self.engine.clear_foreign_runs();
                self.handoff.give_back();
                moved = true;
            }
            if self.wan_rx.receive()? > 0 {
                self.engine.decapsulate(
                    now,
                    &mut self.wan_rx,
                    &mut Eager(&mut self.lan_tx),
                    &mut Eager(&mut self.wan_tx),
                );
                moved = true;
            }
            self.hand_over();
            if self.lan_rx.receive()? > 0 {
                self.engine.encapsulate(
                    now,
                    &mut self.lan_rx,
                    &mut Eager(&mut self.wan_tx),
                    &mut Eager(&mut self.lan_tx),
                );
                moved = true;
            }
        }
        self.engine.expire(now);
        self.engine.send_waiting(now, &mut Eager(&mut self.wan_tx));
        self.lan_tx.flush()?;
        self.wan_tx.flush()?;
        // Whatever was left unread for want of room has announced itself already and will not do so again.
        moved |= !had_room && self.has_room();
        let counters = self.engine.counters();
        counters.drop_n(DropReason::WanSendFailed, self.wan_tx.take_failed());
        counters.drop_n(DropReason::LanWriteFailed, self.lan_tx.take_failed());
        while let Some((reason, count)) = self.wan_rx.take_dropped().or_else(|| self.lan_rx.take_dropped()) {
            counters.drop_n(reason, count);
        }
        self.report();
        Ok(moved)
    }

    /// Whether there is room for what a burst may become, towards either side.
    fn has_room(&self) -> bool {
        self.wan_tx.room() >= WAN_ROOM_MIN && self.lan_tx.room() >= LAN_ROOM_MIN
    }

    /// Gives the runs of the current WAN burst that belong to other workers to them.
    fn hand_over(&mut self) {
        for run in self.engine.foreign_runs() {
            let (frame, meta) = self.wan_rx.frame(run.frame);
            let datagrams = &frame[run.range()];
            if self.handoff.give(run.worker, datagrams, meta) {
                self.engine.counters().add(Metric::HandoffsSent, 1);
                continue;
            }
            let datagrams = if meta.segment == 0 { 1 } else { datagrams.len().div_ceil(usize::from(meta.segment)) };
            self.engine.counters().drop_n(DropReason::HandoffFull, datagrams as u64);
        }
        self.engine.clear_foreign_runs();
    }

    /// Passes events on as far as there is room.
    fn report(&mut self) {
        let mut reported = false;
        while !self.queues.events.is_full()
            && let Some(event) = self.engine.poll_event()
        {
            // There is room, and this thread is the only one that fills it.
            let _ = self.queues.events.push(event);
            reported = true;
        }
        if reported {
            (self.queues.notify)();
        }
    }
}

/// A sink that hands its queue to the kernel before it says that it is full: one train can become more packets than the queue has
/// room for.
struct Eager<'a, T>(&'a mut T);

impl<T: TxPort> TxSink for Eager<'_, T> {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.0.room() == 0 {
            // An error that makes the port useless comes up again at the flush that ends the pass.
            let _ = self.0.flush();
        }
        self.0.slot(len)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.0.commit(len, meta);
    }

    fn takes_offloads(&self) -> bool {
        self.0.takes_offloads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_wakes_the_control_thread_after_the_flag_is_set() {
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, told) = channel::bounded(2);
        let notify: Notify = Arc::new({
            let ended = Arc::clone(&ended);
            move || seen.send(ended.load(Ordering::Acquire)).unwrap()
        });
        let end = TellEnd { ended, notify };
        let thread = std::thread::spawn(move || {
            let _end = end;
            panic!("a worker that cannot go on");
        });
        assert!(thread.join().is_err());
        assert_eq!(told.try_iter().collect::<Vec<bool>>(), [true]);
    }
}
