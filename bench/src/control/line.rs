//! A line between two gateways that takes its time: frames are carried from one TAP to the other, each after the same delay.
//!
//! The kernel's `netem` is not everywhere. A thread for each direction looks every 50 µs, so a frame may be a tenth of a millisecond late.
//! On the way it sees what a person with a capture would: Initials and Retries, which are marked as such in clear (RFC 9000 §17.2).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::gateway::PORT;

/// How often a direction looks.
const LOOK: Duration = Duration::from_micros(50);
/// Frames under way in a direction; more are lost, as on any line.
const FRAMES_MAX: usize = 20_000;
const FRAME_LEN_MAX: usize = 2048;

/// From which end a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// From the switch.
    Near,
    /// From the gateway at the far end.
    Far,
}

/// What passed since [`Line::watch`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// The first Initial: when it came to the line, and from where.
    pub(super) initial: Option<(Instant, End)>,
    /// Whether it is to be lost, or was.
    lose_first: bool,
    /// Retries.
    pub(super) retries: u32,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    delay_ns: AtomicU64,
    seen: Mutex<Seen>,
}

/// The line. Frames pass until it is dropped.
pub(super) struct Line {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Line {
    /// Carries frames between the two ends, at once for now.
    pub(super) fn new([near, far]: [File; 2]) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let ends = [(near.try_clone()?, far.try_clone()?, End::Near), (far, near, End::Far)];
        let threads = ends.map(|(from, to, end)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || carry(from, to, end, &shared))
        });
        Ok(Self { shared, threads: threads.into() })
    }

    /// The time there and back, for frames that come from now on.
    pub(super) fn set_round_trip(&self, round_trip: Duration) {
        self.shared.delay_ns.store((round_trip / 2).as_nanos() as u64, Ordering::Relaxed);
    }

    /// Forgets what was seen; the next first Initial is lost if `lose_first`.
    pub(super) fn watch(&self, lose_first: bool) {
        *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { lose_first, ..Seen::default() };
    }

    /// What passed since.
    pub(super) fn seen(&self) -> Seen {
        *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn carry(mut from: File, mut to: File, end: End, shared: &Shared) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = [0; FRAME_LEN_MAX];
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Ok(len) = from.read(&mut frame) {
            let passes = note(&frame[..len], now, end, shared);
            if passes && under_way.len() < FRAMES_MAX {
                let delay = Duration::from_nanos(shared.delay_ns.load(Ordering::Relaxed));
                under_way.push_back((now + delay, frame[..len].to_vec()));
            }
        }
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = under_way.pop_front() {
                // An end that takes nothing loses it, as a port without a cable does.
                let _ = to.write(&frame);
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Looks at a frame; whether it is carried.
fn note(frame: &[u8], now: Instant, end: End, shared: &Shared) -> bool {
    let Some(kind) = long_header_type(frame) else { return true };
    let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
    match kind {
        INITIAL if seen.initial.is_none() => {
            seen.initial = Some((now, end));
            !seen.lose_first
        }
        RETRY => {
            seen.retries += 1;
            true
        }
        _ => true,
    }
}

const INITIAL: u8 = 0;
const RETRY: u8 = 3;

/// The type of a QUIC packet with a long header, version 1, in a UDP datagram over IPv4 from or to our port.
fn long_header_type(frame: &[u8]) -> Option<u8> {
    let ip = frame.get(14..)?;
    if frame[12..14] != [0x08, 0x00] || ip.get(9) != Some(&17) {
        return None;
    }
    let udp = ip.get(usize::from(ip[0] & 0x0f) * 4..)?;
    let ports = [udp.get(..2)?, udp.get(2..4)?];
    let quic = udp.get(8..13)?;
    let is_ours = ports.contains(&&PORT.to_be_bytes()[..]) && quic[0] & 0xc0 == 0xc0 && quic[1..] == [0, 0, 0, 1];
    is_ours.then_some(quic[0] >> 4 & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initials_and_retries_are_told_from_everything_else() {
        let frame = |first: u8, port: u16| {
            let mut frame = [0; 80];
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            (frame[14], frame[23]) = (0x45, 17);
            frame[36..38].copy_from_slice(&port.to_be_bytes());
            (frame[42], frame[46]) = (first, 1);
            frame
        };
        assert_eq!(long_header_type(&frame(0xc3, PORT)), Some(INITIAL));
        assert_eq!(long_header_type(&frame(0xf0, PORT)), Some(RETRY));
        assert_eq!(long_header_type(&frame(0xe0, PORT)), Some(2));
        // Another port, sealed data, a short header, and frames that end early.
        assert_eq!(long_header_type(&frame(0xc3, 53)), None);
        assert_eq!(long_header_type(&frame(0x20, PORT)), None);
        assert_eq!(long_header_type(&frame(0x40, PORT)), None);
        for len in 0..47 {
            assert_eq!(long_header_type(&frame(0xc3, PORT)[..len]), None);
        }
    }

    #[test]
    fn only_the_first_initial_is_lost_and_only_when_it_is_to_be() {
        let shared = Shared::default();
        let mut frame = [0; 80];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        (frame[14], frame[23], frame[42], frame[46]) = (0x45, 17, 0xc0, 1);
        frame[36..38].copy_from_slice(&PORT.to_be_bytes());
        shared.seen.lock().unwrap().lose_first = true;
        let now = Instant::now();
        assert!(!note(&frame, now, End::Far, &shared));
        assert!(note(&frame, now, End::Near, &shared));
        assert_eq!(shared.seen.lock().unwrap().initial, Some((now, End::Far)));
        *shared.seen.lock().unwrap() = Seen::default();
        assert!(note(&frame, now, End::Near, &shared) && note(&[0; 60], now, End::Near, &shared));
    }
}
