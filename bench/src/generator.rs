//! Sends a stream: flat out from inside the kernel, or paced from user space.
//!
//! - [`flood`]: `BPF_PROG_TEST_RUN` with live frames (`Documentation/bpf/bpf_prog_run.rst`). The program rewrites recycled pages and
//!   redirects them to the interface, whose peer must have XDP or GRO. Some millions a second on one core, no pacing. A call costs 15 to
//!   40 ms of set-up, so it makes a million frames or more, and only the time between its first and last frame is counted.
//! - [`pace`]: AF_XDP transmit in copy mode, bursts of at most [`BURST_MAX`] at absolute deadlines. About a million a second.
//!
//! Both send frame 0 first, so the sink is reset between runs. Neither knows what becomes of its frames.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use serde::Serialize;

use crate::layout::{GeneratorConfig, GeneratorState, Template, name};
use crate::object;
use crate::rig::Namespace;
use crate::stream::Stream;
use crate::sys::clock::{monotonic_ns, wait_until};
use crate::sys::xsk::Transmitter;
use crate::{Error, Result};

/// Most frames of one live-frames call: 2^22, under a second, so that a duration is kept to about that.
const CALL_FRAMES_MAX: u64 = 1 << 22;
/// Frames that the kernel redirects before it flushes; it allows up to 256, and 64 is its own default.
const LIVE_BATCH: u32 = 64;
/// Most frames that are sent at once when paced: what AF_XDP in copy mode takes per system call.
pub const BURST_MAX: u64 = 32;
/// Paced bursts are as long as this, as far as [`BURST_MAX`] allows: short against what is measured, long against a system call.
const BURST_NS: f64 = 20_000.0;
/// Lateness that [`pace_in_turn`] catches up with: far fewer frames at once than any queue holds.
const CAUGHT_UP_NS: u64 = 1_000_000;
/// A transmitter without progress for this long is stalled.
const STALL_NS: u64 = 1_000_000_000;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// After this many frames.
    Frames(u64),
    /// After this much time. A flood stops at the end of the call during which it passed.
    Duration(Duration),
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sent {
    /// Frames handed to the interface.
    pub frames: u64,
    /// Their bytes, without FCS.
    pub bytes: u64,
    /// Time spent sending, ns, without set-up.
    pub elapsed_ns: u64,
    /// How late the latest burst was, ns. Zero for a flood, which has no deadlines.
    pub late_max_ns: u64,
}

impl Sent {
    /// Frames per second.
    pub fn pps(&self) -> f64 {
        if self.elapsed_ns == 0 { 0.0 } else { self.frames as f64 * 1e9 / self.elapsed_ns as f64 }
    }
}

/// Sends as fast as one core can.
///
/// # Errors
/// [`Error::Stream`], [`Error::NoInterface`], or [`Error::Bpf`] when the kernel refuses the program or the run.
pub fn flood(namespace: &Namespace, interface: &str, stream: &Stream, amount: Amount) -> Result<Sent> {
    let frames = stream.compile()?;
    let ifindex = namespace.interface_index(interface)?;
    let mut bpf = object::load()?;
    let mut config = object::array::<GeneratorConfig>(&mut bpf, name::GENERATOR_CONFIG)?;
    let mut state = object::array::<GeneratorState>(&mut bpf, name::GENERATOR_STATE)?;
    let mut templates = object::array::<Template>(&mut bpf, name::TEMPLATES)?;
    let map = || Error::bpf("cannot write the generator's maps");
    let page = vec![0; frames.len_max()];
    let generator = GeneratorConfig { ifindex, frame_len_max: page.len() as u32, schedule: frames.schedule };
    config.set(0, generator, 0).map_err(map())?;
    for (slot, template) in (0..).zip(&frames.templates) {
        templates.set(slot, template, 0).map_err(map())?;
    }
    let program: &mut Xdp = object::program(&mut bpf, name::GENERATE)?;
    program.load().map_err(Error::bpf("the kernel refused the generator"))?;
    let mut sent = Sent::default();
    let start_ns = monotonic_ns();
    // Live frames arrive at the loopback of the caller's namespace, and are redirected within it.
    namespace.enter(|| {
        loop {
            let call = match amount {
                Amount::Frames(total) => total.saturating_sub(sent.frames).min(CALL_FRAMES_MAX),
                Amount::Duration(limit) if monotonic_ns() - start_ns < limit.as_nanos() as u64 => CALL_FRAMES_MAX / 4,
                Amount::Duration(_) => 0,
            };
            if call == 0 {
                return Ok(sent);
            }
            let options = TestRunOptions {
                data_in: Some(&page),
                repeat: call as u32,
                attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
                ..TestRunOptions::new()
            };
            match program.test_run(options) {
                Ok(_) => {}
                // A signal for this thread: what was sent counts, and the loop goes on.
                Err(ProgramError::SyscallError(error)) if error.io_error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::bpf("cannot run the generator")(error)),
            }
            let done = state.get(&0, 0).map_err(Error::bpf("cannot read the generator's state"))?;
            sent.frames = done.next;
            sent.bytes = done.bytes;
            sent.elapsed_ns += done.last_ns - done.first_ns;
            state.set(0, GeneratorState { first_ns: 0, last_ns: 0, ..done }, 0).map_err(map())?;
        }
    })?
}

/// Sends at a rate: `rate_pps` frames a second.
///
/// Deadlines are absolute, so a late burst is followed by others at once until the rate is met again; [`Sent::late_max_ns`] tells.
///
/// # Errors
/// [`Error::Stream`], [`Error::NoInterface`], [`Error::Stalled`], or [`Error::Io`] when the AF_XDP socket cannot be used.
pub fn pace(namespace: &Namespace, interface: &str, stream: &Stream, rate_pps: f64, amount: Amount) -> Result<Sent> {
    let frames = stream.compile()?;
    let never = AtomicBool::new(false);
    pace_with(namespace, interface, rate_pps, amount, &never, |n, chunk| frames.write(n, monotonic_ns(), chunk))
}

/// Sends several streams in turn until told to stop: `rate_pps` frames a second in all, the first frame of each before the second of any.
///
/// A burst that is more than a millisecond late is not caught up with: the others come later by as much, so that nobody is ever offered more
/// than the rate because the sender had to wait for a core.
///
/// # Errors
/// As [`pace`].
///
/// # Panics
/// When there are no streams.
pub fn pace_in_turn(
    namespace: &Namespace,
    interface: &str,
    streams: &[Stream],
    rate_pps: f64,
    amount: Amount,
    stop: &AtomicBool,
) -> Result<Sent> {
    assert!(!streams.is_empty(), "somebody has to take the first turn");
    let frames = streams.iter().map(Stream::compile).collect::<std::result::Result<Vec<_>, _>>()?;
    let turns = frames.len() as u64;
    send_paced(namespace, interface, rate_pps, amount, stop, CAUGHT_UP_NS, |n, chunk| {
        frames[(n % turns) as usize].write(n / turns, monotonic_ns(), chunk)
    })
}

/// The same with frames of the caller's own, until told to stop: `write` writes the frame of a number, and says how long it is.
///
/// # Errors
/// As [`pace`].
pub fn pace_with(
    namespace: &Namespace,
    interface: &str,
    rate_pps: f64,
    amount: Amount,
    stop: &AtomicBool,
    write: impl FnMut(u64, &mut [u8]) -> usize,
) -> Result<Sent> {
    send_paced(namespace, interface, rate_pps, amount, stop, u64::MAX, write)
}

/// When frames are due: at a rate, from a start that what is later than `caught_up_ns` moves.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Schedule {
    start_ns: u64,
    moved_ns: u64,
    rate_pps: f64,
    caught_up_ns: u64,
}

impl Schedule {
    /// When the frame of a number is due, as it looks now.
    fn due(&self, n: u64) -> u64 {
        self.start_ns + self.moved_ns + (n as f64 * 1e9 / self.rate_pps) as u64
    }

    /// A burst began with the frame of a number; how late, ns.
    fn began(&mut self, n: u64, now_ns: u64) -> u64 {
        let late_ns = now_ns.saturating_sub(self.due(n));
        if late_ns > self.caught_up_ns {
            self.moved_ns += late_ns;
        }
        late_ns
    }
}

fn send_paced(
    namespace: &Namespace,
    interface: &str,
    rate_pps: f64,
    amount: Amount,
    stop: &AtomicBool,
    caught_up_ns: u64,
    mut write: impl FnMut(u64, &mut [u8]) -> usize,
) -> Result<Sent> {
    let ifindex = namespace.interface_index(interface)?;
    let failed = || Error::io(format!("cannot transmit by AF_XDP on {interface}"));
    let mut transmitter = namespace.enter(|| Transmitter::open(ifindex, 0))?.map_err(failed())?;
    let rate_pps = rate_pps.max(1.0);
    let total = match amount {
        Amount::Frames(total) => total,
        Amount::Duration(duration) => (duration.as_secs_f64() * rate_pps) as u64,
    };
    let burst = ((rate_pps * BURST_NS / 1e9) as u64).clamp(1, BURST_MAX);
    let start_ns = monotonic_ns();
    let mut schedule = Schedule { start_ns, moved_ns: 0, rate_pps, caught_up_ns };
    let mut sent = Sent::default();
    while sent.frames < total && !stop.load(Ordering::Relaxed) {
        wait_until(schedule.due(sent.frames));
        let end = total.min(sent.frames + burst);
        sent.late_max_ns = sent.late_max_ns.max(schedule.began(sent.frames, monotonic_ns()));
        drain(&mut transmitter, interface, |t| t.room() >= BURST_MAX as usize)?;
        while sent.frames < end {
            let mut len = 0;
            let pushed = transmitter.push(|chunk| {
                len = write(sent.frames, chunk);
                len
            });
            if !pushed {
                break;
            }
            sent.frames += 1;
            sent.bytes += len as u64;
        }
        transmitter.kick().map_err(failed())?;
    }
    drain(&mut transmitter, interface, |t| t.outstanding() == 0)?;
    // The last frame stands for an interval too.
    sent.elapsed_ns = monotonic_ns().max(schedule.due(sent.frames)) - start_ns;
    Ok(sent)
}

/// Kicks until `enough` holds.
fn drain(
    transmitter: &mut Transmitter,
    interface: &str,
    mut enough: impl FnMut(&mut Transmitter) -> bool,
) -> Result<()> {
    let start_ns = monotonic_ns();
    while !enough(transmitter) {
        transmitter.kick().map_err(Error::io(format!("cannot transmit by AF_XDP on {interface}")))?;
        if monotonic_ns() - start_ns > STALL_NS {
            return Err(Error::Stalled { interface: interface.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_NS: u64 = 7_000_000_000;

    fn schedule(caught_up_ns: u64) -> Schedule {
        Schedule { start_ns: START_NS, moved_ns: 0, rate_pps: 1_000.0, caught_up_ns }
    }

    #[test]
    fn lateness_up_to_the_bound_is_caught_up_with_and_what_is_beyond_moves_all_that_comes() {
        for (late_ns, moved_ns) in [(0, 0), (1, 0), (CAUGHT_UP_NS, 0), (CAUGHT_UP_NS + 1, CAUGHT_UP_NS + 1)] {
            let mut schedule = schedule(CAUGHT_UP_NS);
            let due_ns = schedule.due(5);
            assert_eq!(due_ns, START_NS + 5_000_000);
            assert_eq!(schedule.began(5, due_ns + late_ns), late_ns);
            assert_eq!(schedule, Schedule { moved_ns, ..self::schedule(CAUGHT_UP_NS) }, "{late_ns} ns late");
            assert_eq!(schedule.due(6), START_NS + 6_000_000 + moved_ns, "{late_ns} ns late");
        }
        // Moved once, the next one is in time; late again, it moves by what it is late now.
        let mut twice = schedule(CAUGHT_UP_NS);
        twice.began(5, START_NS + 25_000_000);
        assert_eq!((twice.began(6, START_NS + 26_000_000), twice.moved_ns), (0, 20_000_000));
        assert_eq!((twice.began(7, START_NS + 29_000_000), twice.moved_ns), (2_000_000, 22_000_000));
    }

    #[test]
    fn without_a_bound_every_deadline_stays_where_it_was() {
        let mut schedule = schedule(u64::MAX);
        for now_ns in [START_NS + CAUGHT_UP_NS + 1, START_NS + (1 << 40), u64::MAX] {
            assert_eq!(schedule.began(0, now_ns), now_ns - START_NS);
            assert_eq!(schedule, self::schedule(u64::MAX));
        }
    }

    #[test]
    fn a_burst_before_its_time_is_not_late() {
        let mut schedule = schedule(CAUGHT_UP_NS);
        assert_eq!((schedule.began(5, START_NS), schedule.moved_ns), (0, 0));
    }
}
