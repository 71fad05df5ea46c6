//! The generic cell rate algorithm (ITU-T I.371 annex A): a token bucket whose whole state is one time.
//!
//! One `u64` per bucket means that XDP on several cores can share it with one compare-and-exchange instead of a spin lock.

/// A rate and how far a sender may run ahead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Nanoseconds that one packet costs. Zero means no limit.
    pub interval_ns: u64,
    /// Nanoseconds of credit: `(burst - 1) × interval_ns` lets `burst` packets through at once.
    pub burst_ns: u64,
}

/// The longest tick that Linux is built with (`CONFIG_HZ=100`), in nanoseconds: for so long its coarse clock may stand still.
pub const TICK_NS: u64 = 10_000_000;

impl Rate {
    /// At most `per_second` packets, `burst` of them back to back.
    pub const fn per_second(per_second: u64, burst: u64) -> Self {
        let interval_ns = match 1_000_000_000u64.checked_div(per_second) {
            Some(interval) => interval,
            None => 0,
        };
        Self { interval_ns, burst_ns: interval_ns.saturating_mul(burst.saturating_sub(1)) }
    }

    /// The same rate by a clock that stands still for up to `tick_ns` at a time: as much more may come at once, and in the long run no more.
    pub const fn by_ticks(self, tick_ns: u64) -> Self {
        Self { burst_ns: self.burst_ns.saturating_add(tick_ns), ..self }
    }

    /// Whether every packet conforms, whatever its bucket says.
    #[inline(always)]
    pub const fn is_unlimited(&self) -> bool {
        self.interval_ns == 0
    }

    /// Judges one packet at time `now_ns` against the bucket's state `tat` (its theoretical arrival time; zero at first).
    ///
    /// Returns the state to store when the packet conforms, `None` when it is over the rate.
    #[inline(always)]
    pub const fn admit(&self, tat: u64, now_ns: u64) -> Option<u64> {
        let due = if tat > now_ns { tat } else { now_ns };
        if due - now_ns > self.burst_ns {
            return None;
        }
        Some(due + self.interval_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(rate: Rate, arrivals: impl Iterator<Item = u64>) -> usize {
        let mut tat = 0;
        arrivals.filter(|&now| rate.admit(tat, now).map(|next| tat = next).is_some()).count()
    }

    #[test]
    fn a_burst_is_let_through_and_the_next_packet_is_not() {
        let rate = Rate::per_second(1000, 8);
        for sent in 1..20 {
            assert_eq!(admitted(rate, core::iter::repeat_n(5_000_000_000, sent)), sent.min(8));
        }
    }

    #[test]
    fn the_long_run_rate_is_the_configured_one() {
        let rate = Rate::per_second(1000, 10);
        // 10 seconds of packets, one every 100 µs: ten times too many.
        let passed = admitted(rate, (0..100_000u64).map(|i| i * 100_000));
        assert!((10_000..=10_010).contains(&passed), "{passed}");
    }

    #[test]
    fn a_sender_below_the_rate_is_never_refused() {
        assert_eq!(admitted(Rate::per_second(1000, 1), (1..500u64).map(|i| i * 1_000_000)), 499);
    }

    #[test]
    fn a_clock_that_ticks_refuses_nobody_below_the_rate_and_gives_nobody_more() {
        let ticking = |every_us: u64| (0..1_000_000 / every_us).map(move |i| i * every_us * 1000 / TICK_NS * TICK_NS);
        let rate = Rate::per_second(1000, 1);
        assert_eq!(admitted(rate, ticking(1001)), 100, "without the tolerance");
        assert_eq!(admitted(rate.by_ticks(TICK_NS), ticking(1001)), 999);
        let passed = admitted(rate.by_ticks(TICK_NS), ticking(100));
        assert!((990..=1011).contains(&passed), "{passed}");
    }

    #[test]
    fn zero_means_no_limit() {
        assert_eq!(admitted(Rate::per_second(0, 1), core::iter::repeat_n(1, 1000)), 1000);
    }
}
