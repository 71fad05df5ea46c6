//! What a worker does when a pass found nothing: look again at once, let others run and look again, or sleep.
//!
//! ```text
//!   packets ─▶ a few empty passes ─▶ worth it? ─ yes ─▶ poll, at most 50 µs ─▶ sleep
//!                                        └────── no ───────────────────────────▶ sleep
//! ```
//!
//! A sleep costs whoever sends the next packet a wake (about 45 µs until the sleeper runs, measured across two cores), so polling on is
//! worth it when the next packet tends to come sooner than that. Whether it does is learnt from the gaps that were: the share of short
//! ones among the last few, which a quiet time brings to nothing, so that an idle worker sleeps.
//!
//! Who polls on a core that others need is worse off than who sleeps: the scheduler runs a sleeper at once when its packet comes, and lets
//! a thread that used up its share wait for milliseconds. Two gateways, the hosts behind them and the generator on two cores had a median
//! delay of 16–40 µs with workers that slept, and of 30–1,800 µs with workers that polled, at 20,000 packets a second. So a worker does
//! not poll at all where workers take every core there is; and elsewhere it lets others run first, and for a while polls no more when
//! one did.
//!
//! It is told the time and knows nothing of ports.

use std::time::Duration;

use crate::config::Latency;
use crate::engine::time::Time;

/// Empty passes that cost nothing to speak of and that every idle time begins with.
const FREE_PASSES: u32 = 2;
/// Longest time that a worker polls without finding anything: what a wake costs, or polling would cost more than it saves.
const POLL_MAX: Duration = Duration::from_micros(50);
/// How late a sleeper finds a packet, which a gap that ended in a wake does not hold against the packet.
const WAKE_COST: Duration = Duration::from_micros(45);
/// Longest time between two empty passes of a worker that has its core to itself: one takes a fraction of a microsecond over io_uring and
/// a few over plain system calls.
const ALONE_MAX: Duration = Duration::from_micros(20);
/// After so many passes others are let run.
const YIELD_EVERY: u32 = 16;
/// How long a worker that met others on its core does not poll: at first, and at most. It doubles each time.
const BAR_MIN: Duration = Duration::from_millis(100);
const BAR_MAX: Duration = Duration::from_secs(10);
/// All recent gaps were short.
const SHARE_ALL: i32 = 256;
/// The share of short gaps from which on polling is worth it.
const SHARE_MIN: i32 = SHARE_ALL / 2;
/// A gap moves the share by this part of the way.
const SHARE_WEIGHT: i32 = 8;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next pass.
    Pass,
    /// The next pass, after others that wait for this core.
    Yield,
    /// Sleep until something comes.
    Sleep,
}

/// The state of a worker with nothing to do.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    latency: Latency,
    /// Workers take every core, so that whatever else runs needs theirs.
    shared: bool,
    /// When polling is allowed again, and for how long it will be forbidden next.
    barred_until: Time,
    bar: Duration,
    /// Of recent gaps, the share that were short.
    share: i32,
    /// When the last pass was that found something.
    since: Time,
    last_pass: Time,
    empty_passes: u32,
    slept: bool,
}

impl Idle {
    pub(super) fn new(latency: Latency, shared: bool) -> Self {
        Self {
            latency,
            shared,
            barred_until: Time::ZERO,
            bar: BAR_MIN,
            share: 0,
            since: Time::ZERO,
            last_pass: Time::ZERO,
            empty_passes: 0,
            slept: false,
        }
    }

    /// After a pass that began at `now`: what comes next.
    pub(super) fn next(&mut self, now: Time, moved: bool) -> Next {
        let since_last = now.since(std::mem::replace(&mut self.last_pass, now));
        if moved {
            if self.empty_passes > 0 {
                let due = if self.slept { POLL_MAX + WAKE_COST } else { POLL_MAX };
                let short = if now.since(self.since) <= due { SHARE_ALL } else { 0 };
                self.share += (short - self.share) / SHARE_WEIGHT;
            }
            (self.since, self.empty_passes, self.slept) = (now, 0, false);
            return Next::Pass;
        }
        self.empty_passes = self.empty_passes.saturating_add(1);
        if self.latency == Latency::Spin || self.empty_passes <= FREE_PASSES {
            return Next::Pass;
        }
        let polls = self.empty_passes - FREE_PASSES - 1;
        if polls > 0 && !self.slept && since_last > ALONE_MAX {
            let long_ago = now.since(self.barred_until) > BAR_MAX;
            let bar = if long_ago { BAR_MIN } else { self.bar };
            self.barred_until = now.plus(bar);
            self.bar = (2 * bar).min(BAR_MAX);
        }
        let may_poll = !self.slept && !self.shared && now >= self.barred_until;
        if !may_poll || self.share < SHARE_MIN || now.since(self.since) >= POLL_MAX {
            self.slept = true;
            Next::Sleep
        } else if polls.is_multiple_of(YIELD_EVERY) {
            Next::Yield
        } else {
            Next::Pass
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker and its clock; a pass takes a microsecond.
    struct Worker {
        idle: Idle,
        now: u64,
    }

    impl Worker {
        fn new(latency: Latency) -> Self {
            Self { idle: Idle::new(latency, false), now: 1_000_000 }
        }

        fn pass(&mut self, moved: bool) -> Next {
            self.now += 1_000;
            self.idle.next(Time::from_nanos(self.now), moved)
        }

        /// Microseconds until the worker sleeps after a packet, at most `limit`.
        fn polls_for(&mut self, limit: u64) -> u64 {
            let start = self.now;
            while self.now < start + 1_000 * limit && self.pass(false) != Next::Sleep {}
            (self.now - start) / 1_000
        }

        /// Packets so many microseconds apart; those that find the worker asleep wait for the wake besides.
        fn packets(&mut self, count: u32, gap: u64) {
            for _ in 0..count {
                if self.polls_for(gap) < gap || self.idle.slept {
                    self.now = self.idle.since.as_nanos() + 1_000 * gap + WAKE_COST.as_nanos() as u64;
                }
                self.pass(true);
            }
        }
    }

    #[test]
    fn a_worker_without_traffic_sleeps_at_once() {
        let mut worker = Worker::new(Latency::Balanced);
        assert_eq!([worker.pass(false), worker.pass(false), worker.pass(false)], [Next::Pass, Next::Pass, Next::Sleep]);
        // Woken for nothing (a timer), it goes back to sleep at once.
        assert_eq!(worker.pass(false), Next::Sleep);
    }

    #[test]
    fn short_gaps_make_it_poll_and_long_ones_make_it_stop() {
        let mut worker = Worker::new(Latency::Balanced);
        worker.packets(20, 30);
        assert!((49..=51).contains(&worker.polls_for(1000)), "polls as long as a wake costs, and no longer");
        worker.packets(20, 500);
        assert_eq!(worker.polls_for(1000), 3);
        worker.packets(20, 48);
        assert!(worker.polls_for(1000) > 40, "gaps are judged without the wake that the sleep before cost");
        worker.packets(20, 60);
        assert_eq!(worker.polls_for(1000), 3, "and polling that never finds anything ends");
    }

    #[test]
    fn others_that_run_meanwhile_send_it_to_sleep() {
        let mut worker = Worker::new(Latency::Balanced);
        worker.packets(40, 30);
        assert_eq!([worker.pass(false), worker.pass(false), worker.pass(false)], [Next::Pass, Next::Pass, Next::Yield]);
        worker.now += 19_000;
        assert_eq!(worker.pass(false), Next::Pass, "twenty microseconds may be an interrupt");
        let mut barred = BAR_MIN;
        for _ in 0..9 {
            worker.now += 20_000;
            assert_eq!(worker.pass(false), Next::Sleep);
            let end = worker.now + barred.as_nanos() as u64;
            worker.packets(40, 30);
            assert_eq!(worker.polls_for(1000), 3, "for a while it does not try");
            worker.now = end - 10_000;
            worker.pass(true);
            assert_eq!(worker.polls_for(1000), 3);
            worker.now = end;
            worker.pass(true);
            (0..3).for_each(|_| assert_ne!(worker.pass(false), Next::Sleep));
            barred = (2 * barred).min(BAR_MAX);
        }
    }

    #[test]
    fn a_worker_never_polls_where_workers_take_every_core() {
        let mut worker = Worker { idle: Idle::new(Latency::Balanced, true), now: 1_000_000 };
        worker.packets(40, 30);
        assert_eq!(worker.polls_for(1000), 3);
    }

    #[test]
    fn a_long_burst_is_not_mistaken_for_company() {
        let mut worker = Worker::new(Latency::Balanced);
        worker.packets(40, 30);
        worker.now += 300_000;
        worker.pass(true);
        assert!(worker.polls_for(1000) > 40);
    }

    #[test]
    fn spinning_never_sleeps() {
        let mut worker = Worker::new(Latency::Spin);
        assert_eq!(worker.polls_for(100_000), 100_000);
        assert!((0..100).all(|_| worker.pass(false) == Next::Pass));
    }
}
