//! The rate that loses nothing, and the one that loses little: a binary search over trials (RFC 2544 §26.1, throughput).
//!
//! ```text
//!   start ── trial ──▶ loss > allowed? ── yes ─▶ upper end ─┐
//!     ▲                              └── no ──▶ lower end ─┴─▶ next trial in the middle, until the ends are close or trials are spent
//! ```
//!
//! As long as nothing is lost, the next trial is half as fast again, up to a limit.
//!
//! Decides only: it is asked for a rate and told the loss. Both searches use all trials, so the second starts where the first ended. RFC 2544
//! §24 asks for trials of 60 s; ours are shorter, and the report says how long.

/// Share of frames that may be lost at the partial drop rate (PDR).
pub const PDR_LOSS: f64 = 0.005;

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Frames per second that were sent.
    pub rate_pps: f64,
    /// Share of them that was lost, 0 to 1.
    pub loss: f64,
}

/// Trials of one subject with one kind of traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    start_pps: f64,
    limit_pps: f64,
    tolerance: f64,
    trials: Vec<Trial>,
}

/// How much more is tried after a trial that nothing above is known to fail.
const GROWTH: f64 = 1.5;

impl Search {
    /// A search that begins at `start_pps` and goes up to `limit_pps`. It ends when the ends are closer than `tolerance`, a share of the
    /// upper one.
    pub fn new(start_pps: f64, limit_pps: f64, tolerance: f64) -> Self {
        Self { start_pps: start_pps.min(limit_pps), limit_pps, tolerance, trials: Vec::new() }
    }

    /// The rate to try next, in frames per second; `None` when the rate for `allowed` is known well enough.
    pub fn next(&self, allowed: f64) -> Option<f64> {
        if self.trials.is_empty() {
            return Some(self.start_pps);
        }
        let (low, high) = self.ends(allowed);
        let low = low.unwrap_or(0.0);
        let Some(high) = high else {
            // A sender that is a little late has reached the limit all the same.
            return (low < self.limit_pps * (1.0 - self.tolerance)).then_some((low * GROWTH).min(self.limit_pps));
        };
        ((high - low) > self.tolerance * high).then_some(f64::midpoint(low, high))
    }

    /// Notes a trial that was asked to send at `asked_pps`. When less was sent, and all of it arrived, the sender is at its limit, and so is
    /// the search.
    pub fn record(&mut self, asked_pps: f64, trial: Trial) {
        if trial.loss == 0.0 && trial.rate_pps < asked_pps * (1.0 - self.tolerance) {
            self.limit_pps = self.limit_pps.min(trial.rate_pps);
        }
        self.trials.push(trial);
    }

    /// The highest rate known to lose no more than `allowed`; `None` when every trial lost more.
    pub fn found(&self, allowed: f64) -> Option<f64> {
        self.ends(allowed).0
    }

    /// Trials so far.
    pub fn len(&self) -> usize {
        self.trials.len()
    }

    /// Whether nothing was tried.
    pub fn is_empty(&self) -> bool {
        self.trials.is_empty()
    }

    /// The highest good rate below the lowest bad one, and that one. A good trial above a bad one was luck and does not count.
    fn ends(&self, allowed: f64) -> (Option<f64>, Option<f64>) {
        let (good, bad): (Vec<Trial>, Vec<Trial>) = self.trials.iter().partition(|trial| trial.loss <= allowed);
        let high = bad.iter().map(|trial| trial.rate_pps).min_by(f64::total_cmp);
        let below = |trial: &&Trial| high.is_none_or(|high| trial.rate_pps < high);
        (good.iter().filter(below).map(|trial| trial.rate_pps).max_by(f64::total_cmp), high)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Searches a link that loses everything above its capacity, and returns the search.
    fn search(limit: f64, capacity: f64, tolerance: f64, allowed: &[f64]) -> Search {
        let mut search = Search::new(limit / 3.0, limit, tolerance);
        for &allowed in allowed {
            while let Some(rate_pps) = search.next(allowed) {
                let loss = if rate_pps > capacity { 1.0 - capacity / rate_pps } else { 0.0 };
                search.record(rate_pps, Trial { rate_pps, loss });
                assert!(search.len() < 60, "{search:?}");
            }
        }
        search
    }

    proptest! {
        #[test]
        fn the_capacity_is_found_within_the_tolerance(capacity in 1e3f64..1e6, tolerance in 0.01f64..0.2) {
            let search = search(1e6, capacity, tolerance, &[0.0, PDR_LOSS]);
            let found = search.found(0.0).unwrap();
            prop_assert!(found <= capacity && found >= capacity * (1.0 - tolerance) - 1.0, "{} {}", found, capacity);
            let partial = search.found(PDR_LOSS).unwrap();
            prop_assert!(partial >= found && partial <= capacity / (1.0 - PDR_LOSS));
        }
    }

    #[test]
    fn a_link_that_takes_the_limit_is_tried_up_to_it() {
        let search = search(1e6, 2e6, 0.02, &[0.0, PDR_LOSS]);
        // A third, half, three quarters, all.
        assert_eq!((search.len(), search.found(0.0)), (4, Some(1e6)));
    }

    #[test]
    fn the_second_search_uses_the_trials_of_the_first() {
        let one = search(1e6, 3e5, 0.02, &[0.0]);
        let both = search(1e6, 3e5, 0.02, &[0.0, PDR_LOSS]);
        assert!(both.len() <= one.len() + 3, "{} {}", one.len(), both.len());
    }

    #[test]
    fn loss_at_the_limit_is_good_and_above_it_bad() {
        let mut search = Search::new(100.0, 100.0, 0.02);
        assert_eq!((search.found(0.0), search.is_empty(), search.next(0.0)), (None, true, Some(100.0)));
        search.record(100.0, Trial { rate_pps: 100.0, loss: 0.0051 });
        assert_eq!((search.found(PDR_LOSS), search.next(PDR_LOSS)), (None, Some(50.0)));
        search.record(50.0, Trial { rate_pps: 50.0, loss: 0.005 });
        assert_eq!((search.found(PDR_LOSS), search.found(0.0)), (Some(50.0), None));
    }

    #[test]
    fn a_sender_at_its_limit_ends_the_search() {
        let mut search = Search::new(100.0, 1000.0, 0.02);
        search.record(100.0, Trial { rate_pps: 99.0, loss: 0.0 });
        assert_eq!(search.next(0.0), Some(148.5), "a little late is not at the limit");
        search.record(148.5, Trial { rate_pps: 120.0, loss: 0.0 });
        assert_eq!((search.next(0.0), search.next(PDR_LOSS), search.found(0.0)), (None, None, Some(120.0)));
    }

    #[test]
    fn a_good_trial_above_a_bad_one_does_not_count() {
        let mut search = Search::new(100.0, 100.0, 0.02);
        for (rate_pps, loss) in [(100.0, 0.0), (60.0, 0.1), (40.0, 0.0)] {
            search.record(rate_pps, Trial { rate_pps, loss });
        }
        assert_eq!(search.found(0.0), Some(40.0));
    }
}
