//! The time of day for `wan`, which has only the kernel's monotonic clock: what to add to it.
//!
//! Adjustments of the machine's clock change both alike. A step changes only one, and so does a suspend; the kernel wakes us for either
//! ([`TFD_TIMER_CANCEL_ON_SET`][set]). Whether the machine's clock is right is not known here: the control plane says how far off it is.
//!
//! [set]: https://man7.org/linux/man-pages/man2/timerfd_create.2.html

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use crate::engine::time::Time;

/// How often the clocks are compared although nothing was said: where a sandbox keeps the kernel's word from us, tags are refused for no
/// longer than this after a step.
const REFRESH: Duration = Duration::from_secs(120);

/// Follows the machine's clock.
pub(super) struct WallClock {
    steps: OwnedFd,
    skew_secs: i64,
    due: Time,
}

impl WallClock {
    /// Begins to follow; the first offset is due at once.
    pub(super) fn start(now: Time) -> io::Result<Self> {
        let steps = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // A timer that nobody will live to see: it is there for being cancelled.
        let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
        let timer = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        timerfd_settime(&steps, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &timer)?;
        Ok(Self { steps, skew_secs: 0, due: now })
    }

    /// Readable when the machine's clock was set.
    pub(super) fn steps(&self) -> BorrowedFd<'_> {
        self.steps.as_fd()
    }

    /// From now on the machine's clock counts as so many seconds behind.
    pub(super) fn set_skew(&mut self, skew_secs: i64, now: Time) {
        self.skew_secs = skew_secs;
        self.due = now;
    }

    /// When the clocks are to be compared again.
    pub(super) fn next_deadline(&self) -> Time {
        self.due
    }

    /// What to add to the monotonic clock for nanoseconds since 1970, if that may have changed.
    pub(super) fn poll_offset(&mut self, now: Time) -> Option<u64> {
        // First the question whether there was a step: one that comes after it is told the next time.
        if !self.was_set() && now < self.due {
            return None;
        }
        self.due = now.plus(REFRESH);
        Some(offset_ns(clock_gettime(ClockId::Realtime), clock_gettime(ClockId::Monotonic), self.skew_secs))
    }

    fn was_set(&self) -> bool {
        // Anything but a word that there is nothing to read: looking at the clocks once too often is the lesser harm.
        rustix::io::read(&self.steps, &mut [0; 8]) != Err(Errno::AGAIN)
    }
}

/// The difference between two looks at the clocks, with the skew, modulo 2^64.
fn offset_ns(real: Timespec, monotonic: Timespec, skew_secs: i64) -> u64 {
    let ns = |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    (ns(real) - ns(monotonic) + i128::from(skew_secs) * 1_000_000_000) as u64
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn at(secs: u64) -> Time {
        Time::ZERO.plus(Duration::from_secs(secs))
    }

    /// Seconds since 1970 as a program would reckon them with this offset.
    fn reckoned(offset: u64) -> i64 {
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        (now.wrapping_add(offset) / 1_000_000_000) as i64
    }

    fn is_now(offset: Option<u64>, skew_secs: i64) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        offset.is_some_and(|offset| (reckoned(offset) - skew_secs - now).abs() <= 2)
    }

    #[test]
    fn the_offset_is_due_at_first_then_regularly_and_when_the_skew_changes() {
        let mut clock = WallClock::start(at(10)).unwrap();
        assert_eq!(clock.next_deadline(), at(10));
        assert!(is_now(clock.poll_offset(at(10)), 0));
        assert_eq!((clock.poll_offset(at(10)), clock.poll_offset(at(129))), (None, None));
        assert_eq!(clock.next_deadline(), at(130));
        assert!(is_now(clock.poll_offset(at(130)), 0));
        clock.set_skew(-1_000_000, at(131));
        assert_eq!(clock.next_deadline(), at(131));
        assert!(is_now(clock.poll_offset(at(131)), -1_000_000));
        assert_eq!(clock.poll_offset(at(132)), None);
    }

    #[test]
    fn any_pair_of_clocks_has_an_offset() {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        assert_eq!(offset_ns(time(100, 5), time(40, 7), 0), 59_999_999_998);
        assert_eq!(offset_ns(time(100, 0), time(40, 0), -10), 50_000_000_000);
        // The monotonic clock of a box that boots in 1970 is ahead of its system clock.
        assert_eq!(offset_ns(time(0, 0), time(3, 0), 0).wrapping_add(3_000_000_000), 0);
        for skew_secs in [i64::MIN, i64::MAX] {
            let _ = offset_ns(time(i64::MAX, 0), time(0, 0), skew_secs);
        }
    }
}
