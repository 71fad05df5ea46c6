//! How much a peer may be sent: one token bucket a peer, shared by all workers, without queues.
//!
//! ```text
//!            burst ┌───────────┐
//!                  │  anybody  │ the fuller the bucket is, the more classes may take from it:
//!              3/4 ├───────────┤
//!                  │           │ not lower effort
//!              1/2 ├───────────┤
//!                  │           │ nor standard            a class that is refused here has a sixteenth of the rate for itself:
//!              1/4 ├───────────┤                         what it takes of it is owed to the bucket, so the sum keeps to the rate
//!              1/8 ├───────────┤ nor assured
//!                  │           │ only control
//!                0 └───────────┘
//! ```
//!
//! So as long as a higher class takes all that there is, a lower one gets its sixteenth and no more, and never nothing. Packets are let
//! through or dropped at once; whoever sends more than the rate sees loss, which is what its congestion control is made for.
//!
//! Each bucket is one time: when it will be full again (the generic cell rate algorithm, ITU-T I.371 annex A), counted in bytes. Workers
//! share it by compare-and-exchange and never wait for each other. This part knows no session, packet or clock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::class::Priority;
use super::time::Time;
use crate::api::message::RateLimit;

/// Parts of a nanosecond in which buckets count: a byte at 10 GB/s is a tenth of one. The count ends after 36 years.
const TICKS_PER_NS: u64 = 16;
/// Binary places of [`Limiter::ticks_per_byte`].
const FRACTION_BITS: u32 = 24;
/// Each class has the rate divided by this for itself, all classes together less than a third, and no burst to speak of.
const GUARANTEED_ONE_IN: u64 = 16;
/// How full the bucket must stay for each class, in eighths of the burst, by [`Priority`].
const THRESHOLDS: [u64; Priority::COUNT] = [6, 4, 2, 1, 0];

/// The buckets of one peer.
#[derive(Debug)]
pub struct Limiter {
    rate: RateLimit,
    /// What a byte costs, with [`FRACTION_BITS`] binary places.
    ticks_per_byte: u64,
    /// What an empty bucket owes.
    burst: u64,
    /// When the shared bucket will be full, in ticks.
    shared: AtomicU64,
    /// The same for what each class has for itself.
    guaranteed: [AtomicU64; Priority::COUNT],
}

impl Limiter {
    /// Full buckets.
    pub fn new(rate: RateLimit) -> Self {
        let ticks_per_second = 1_000_000_000 * TICKS_PER_NS;
        let per_byte = (u128::from(ticks_per_second) << FRACTION_BITS) / u128::from(rate.bytes_per_s.max(1));
        let ticks_per_byte = u64::try_from(per_byte).unwrap_or(u64::MAX);
        let mut limiter = Self {
            rate,
            ticks_per_byte,
            burst: 0,
            shared: AtomicU64::new(0),
            guaranteed: [const { AtomicU64::new(0) }; Priority::COUNT],
        };
        limiter.burst = limiter.cost(rate.burst as usize);
        limiter
    }

    /// What the buckets were made for.
    pub const fn rate(&self) -> RateLimit {
        self.rate
    }

    /// Whether a packet of `len` bytes may go at `now`; if so, it is paid for.
    #[inline]
    pub fn admit(&self, len: usize, priority: Priority, now: Time) -> bool {
        let (cost, now) = (self.cost(len), now.as_nanos().saturating_mul(TICKS_PER_NS));
        let most = self.burst - self.burst / 8 * THRESHOLDS[priority as usize];
        let pay = |full_at: u64, cost: u64| full_at.max(now).saturating_add(cost);
        let shared = |full_at| Some(pay(full_at, cost)).filter(|after| after - now <= most);
        if self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shared).is_ok() {
            return true;
        }
        // Judged by what is owed before the packet: a share may be smaller than one packet, and must let it through in its time.
        let share = self.burst / GUARANTEED_ONE_IN;
        let guaranteed = |full_at: u64| {
            let cost = cost.saturating_mul(GUARANTEED_ONE_IN);
            (full_at.saturating_sub(now) <= share).then(|| pay(full_at, cost))
        };
        let own = &self.guaranteed[priority as usize];
        if own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, guaranteed).is_err() {
            return false;
        }
        let owed = |full_at| Some(pay(full_at, cost));
        // The closure always has an answer, so this cannot fail.
        let _ = self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owed);
        true
    }

    /// What so many bytes cost, in ticks.
    #[inline]
    fn cost(&self, len: usize) -> u64 {
        let ticks = (len as u128 * u128::from(self.ticks_per_byte)) >> FRACTION_BITS;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Time = Time::from_nanos(1_000_000_000_000);
    const RATE: RateLimit = RateLimit { bytes_per_s: 1_000_000, burst: 80_000 };

    /// Bytes of `priority` that pass when `len` bytes are offered every `every` for `seconds`, per second.
    fn passed(limiter: &Limiter, offers: &[(Priority, usize)], every: Duration, seconds: u32) -> Vec<u64> {
        let mut passed = vec![0; offers.len()];
        let mut now = START;
        while now < START.plus(Duration::from_secs(1) * seconds) {
            for (i, (priority, len)) in offers.iter().enumerate() {
                passed[i] += if limiter.admit(*len, *priority, now) { *len as u64 } else { 0 };
            }
            now = now.plus(every);
        }
        passed.into_iter().map(|bytes| bytes / u64::from(seconds)).collect()
    }

    #[test]
    fn a_full_bucket_lets_each_class_take_down_to_its_threshold_and_one_packet_beyond() {
        for (priority, bytes) in [
            (Priority::Control, 80_000),
            (Priority::Expedited, 70_000),
            (Priority::Assured, 60_000),
            (Priority::Standard, 40_000),
            (Priority::LowerEffort, 20_000),
        ] {
            let limiter = Limiter::new(RATE);
            let exact = (0..80_000 / 1000).take_while(|_| limiter.admit(1000, priority, START)).count() * 1000;
            // The class's own share adds the one packet that goes beyond.
            assert_eq!(exact, (bytes + 1000).min(80_000), "{priority:?}");
        }
    }

    #[test]
    fn the_burst_is_let_through_to_the_byte() {
        let limiter = Limiter::new(RATE);
        assert!(limiter.admit(79_999, Priority::Control, START));
        assert!(limiter.admit(1, Priority::Control, START));
        // Only the class's own share is left: one packet, then nothing.
        assert!(limiter.admit(1000, Priority::Control, START));
        assert!(!limiter.admit(1, Priority::Control, START));
    }

    #[test]
    fn the_long_run_rate_is_the_configured_one_for_every_class_alone() {
        for priority in
            [Priority::LowerEffort, Priority::Standard, Priority::Assured, Priority::Expedited, Priority::Control]
        {
            for len in [64, 1400] {
                let every = Duration::from_nanos(len as u64 * 500);
                let rate = passed(&Limiter::new(RATE), &[(priority, len)], every, 20)[0];
                assert!((1_000_000..1_010_000).contains(&rate), "{priority:?} {len}: {rate}");
            }
        }
    }

    #[test]
    fn a_sender_below_the_rate_is_never_refused() {
        let rate = passed(&Limiter::new(RATE), &[(Priority::LowerEffort, 1000)], Duration::from_millis(1), 10)[0];
        assert_eq!(rate, 1_000_000);
    }

    #[test]
    fn a_higher_class_gets_what_it_wants_and_a_lower_one_at_least_its_share() {
        let every = Duration::from_micros(500);
        let offers = [(Priority::Expedited, 1000), (Priority::Standard, 1000), (Priority::LowerEffort, 1000)];
        let rates = passed(&Limiter::new(RATE), &offers, every, 20);
        // Each offers twice the rate.
        assert!(rates[0] >= 850_000, "{rates:?}");
        for starved in &rates[1..] {
            assert!((1_000_000 / 16..1_000_000 / 12).contains(starved), "{rates:?}");
        }
        assert!(rates.iter().sum::<u64>() < 1_010_000, "{rates:?}");
    }

    #[test]
    fn a_higher_class_below_the_rate_loses_nothing_to_a_lower_one_that_floods() {
        let offers = [(Priority::Control, 100), (Priority::Standard, 4000)];
        let rates = passed(&Limiter::new(RATE), &offers, Duration::from_millis(1), 10);
        assert_eq!(rates[0], 100_000);
        assert!((895_000..910_000).contains(&rates[1]), "{rates:?}");
    }

    #[test]
    fn the_fastest_and_the_slowest_rate_do_not_overflow() {
        for bytes_per_s in [0, 1, u64::MAX] {
            for burst in [0, 1, u32::MAX] {
                let limiter = Limiter::new(RateLimit { bytes_per_s, burst });
                for priority in [Priority::LowerEffort, Priority::Control] {
                    for now in [Time::ZERO, START, Time::from_nanos(u64::MAX)] {
                        limiter.admit(65_535, priority, now);
                    }
                }
            }
        }
        // Ten gigabytes a second: 64 bytes cost 6.4 ns, and what is lost by counting in whole ticks is below one percent.
        let fast = Limiter::new(RateLimit { bytes_per_s: 10_000_000_000, burst: 64 * 10 });
        let passed = (0..100_000u64).filter(|ns| fast.admit(64, Priority::Control, Time::from_nanos(1 + ns))).count();
        assert!((15_600..16_000).contains(&passed), "{passed}");
    }

    #[test]
    fn workers_share_one_bucket() {
        let limiter = Limiter::new(RATE);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter(|_| limiter.admit(1000, Priority::Standard, START)).count()))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 41);
    }
}
