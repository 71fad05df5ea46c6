//! How many bytes of bodies may be under way on one link.
//!
//! What the control plane itself has to say goes by the same stream and waits behind them. So the window is as wide as the path needs and no
//! wider: it grows while credit comes back about as fast as it ever did, and shrinks when bytes have begun to wait on the way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::wire::{CREDIT_MIN, PIECE_LEN_MAX, WINDOW_MAX, WINDOW_MIN};

/// How much longer than ever before credit may take: what a revocation may have to wait for messages of applications on a slow link.
const DELAY_MAX: Duration = Duration::from_millis(100);

/// Bytes that have left together.
#[derive(Debug)]
struct Sent {
    len: usize,
    /// When, if credit for them comes as soon as they are read.
    at: Option<Instant>,
}

/// What is under way on a link.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    in_flight: usize,
    /// Of that, what counts against the limit of all links.
    counted: usize,
    sent: VecDeque<Sent>,
    /// The shortest time that credit ever took.
    least: Option<Duration>,
    shrunk_at: Option<Instant>,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: WINDOW_MIN, in_flight: 0, counted: 0, sent: VecDeque::new(), least: None, shrunk_at: None }
    }
}

impl Window {
    /// Whether so many more may leave.
    pub(super) const fn has_room(&self, len: usize) -> bool {
        self.in_flight + len <= self.size
    }

    /// What counts against the limit of all links.
    pub(super) const fn counted(&self) -> usize {
        self.counted
    }

    /// Whether credit is due.
    pub(super) const fn is_owed(&self) -> bool {
        self.in_flight >= CREDIT_MIN
    }

    /// These leave.
    pub(super) fn send(&mut self, len: usize, now: Instant) {
        if len == 0 {
            return;
        }
        (self.in_flight, self.counted) = (self.in_flight + len, self.counted + len);
        // Of fewer the peer tells when more have come, whenever that is.
        let at = (len >= CREDIT_MIN).then_some(now);
        match self.sent.back_mut() {
            Some(last) if last.at.is_none() && at.is_none() => last.len += len,
            Some(_) | None => self.sent.push_back(Sent { len, at }),
        }
    }

    /// The peer has read so many. Says how many of them counted for all links; `None` if it has not got as many.
    pub(super) fn credit(&mut self, bytes: usize, now: Instant) -> Option<usize> {
        let was_full = !self.has_room(PIECE_LEN_MAX);
        self.in_flight = self.in_flight.checked_sub(bytes)?;
        let mut left = bytes;
        while let Some(first) = self.sent.front_mut() {
            if first.len > left {
                first.len -= left;
                break;
            }
            left -= first.len;
            let Some(Sent { len, at }) = self.sent.pop_front() else { break };
            if let Some(at) = at {
                self.measure(len, at, was_full, now);
            }
        }
        let counted = bytes.min(self.counted);
        self.counted -= counted;
        Some(counted)
    }

    fn measure(&mut self, len: usize, at: Instant, was_full: bool, now: Instant) {
        let took = now.saturating_duration_since(at);
        let least = self.least.map_or(took, |least| least.min(took));
        self.least = Some(least);
        if took <= least + DELAY_MAX {
            if was_full {
                self.size = (self.size + len).min(WINDOW_MAX);
            }
        } else if self.shrunk_at.is_none_or(|shrunk| at >= shrunk) {
            // Once for all that had left before it showed.
            self.size = (self.size / 2).max(WINDOW_MIN);
            self.shrunk_at = Some(now);
        }
    }

    /// The peer gives no credit: what it owes counts against others no more. How much.
    pub(super) const fn write_off(&mut self) -> usize {
        std::mem::replace(&mut self.counted, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends whole pieces over a path that carries one each `per_piece` and takes `least` besides; the window at the end, and the longest delay.
    fn run(least: Duration, per_piece: Duration, pieces: usize) -> (usize, Duration) {
        let (mut window, mut now) = (Window::default(), Instant::now());
        let mut arrivals: VecDeque<(Instant, Instant)> = VecDeque::new();
        let (mut is_free_at, mut longest) = (now, Duration::ZERO);
        for _ in 0..pieces {
            while !window.has_room(PIECE_LEN_MAX) {
                let (sent, arrives) = arrivals.pop_front().unwrap();
                now = now.max(arrives);
                longest = longest.max(arrives - sent);
                assert!(window.credit(PIECE_LEN_MAX, now).is_some());
            }
            window.send(PIECE_LEN_MAX, now);
            is_free_at = is_free_at.max(now) + per_piece;
            arrivals.push_back((now, is_free_at + least));
        }
        (window.size, longest)
    }

    #[test]
    fn a_fast_path_gets_all_of_the_window_and_a_slow_one_what_it_carries() {
        let ms = Duration::from_millis;
        assert_eq!(run(ms(1), ms(1), 100).0, WINDOW_MAX);
        assert_eq!(run(ms(100), ms(5), 100).0, WINDOW_MAX);
        // Half a megabit: a second for each piece, and never more than three of them wait for each other.
        let (size, longest) = run(ms(20), ms(1000), 100);
        assert!(size < WINDOW_MIN + 2 * PIECE_LEN_MAX && longest <= ms(3020), "{size} {longest:?}");
    }

    #[test]
    fn credit_is_counted_to_the_byte_and_never_more_than_was_sent() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.send(10, now);
        window.send(20, now);
        window.send(0, now);
        window.send(CREDIT_MIN, now);
        assert_eq!((window.sent.len(), window.counted()), (2, 30 + CREDIT_MIN));
        assert_eq!((window.credit(25, now), window.counted()), (Some(25), 5 + CREDIT_MIN));
        assert_eq!(window.write_off(), 5 + CREDIT_MIN);
        assert_eq!(window.credit(6 + CREDIT_MIN, now), None);
        let mut window = Window::default();
        window.send(WINDOW_MIN, now);
        assert!(!window.has_room(1) && window.has_room(0) && window.is_owed());
        assert_eq!((window.write_off(), window.credit(WINDOW_MIN, now)), (WINDOW_MIN, Some(0)));
        assert!(window.has_room(1) && !window.is_owed());
    }
}
