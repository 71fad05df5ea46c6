//! How long to wait, and how many to ask at once: from the round trips and losses that are seen.
//!
//! ```text
//!  asked ──── soft: asked again, and somebody else as well ──── hard: given up
//! ```
//!
//! RFC 6298 for the smoothed round trip and its variation, over all peers: a look-up asks strangers, of whom nothing better is known. An
//! answer to what was asked twice says nothing of the round trip (§3); so that there are others, the wait for those doubles (§5.5) each time
//! that somebody is late, until one comes.

use std::time::Duration;

/// Before anything was measured (RFC 6298 §2.1 says a second; most members are nearer, and being asked twice does no harm).
const FIRST: Duration = Duration::from_millis(300);
/// Least and most of the hard deadline. Ours: two losses of a handshake's first flight are outlived by none.
const HARD: std::ops::RangeInclusive<Duration> = Duration::from_millis(1000)..=Duration::from_millis(4000);
/// Weight of a new outcome in the share of requests that are lost.
const LOSS_WEIGHT: f32 = 1.0 / 32.0;
/// Shares of lost requests from which a path asks two, and three, at once. Ours: below the first, a second costs more than it gains.
const LOSS_STEPS: [f32; 2] = [0.04, 0.15];

/// How often a wait is doubled at most.
const DOUBLINGS_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    smoothed: Option<(Duration, Duration)>,
    /// How often the wait was doubled since there was a round trip to learn from.
    doublings: u32,
    loss: f32,
}

impl Pace {
    /// An answer came after this long to what was asked once.
    pub(super) fn answered(&mut self, after: Duration) {
        self.answered_late();
        self.doublings = 0;
        self.smoothed = Some(match self.smoothed {
            None => (after, after / 2),
            Some((smoothed, variation)) => {
                (smoothed * 7 / 8 + after / 8, variation * 3 / 4 + smoothed.abs_diff(after) / 4)
            }
        });
    }

    /// An answer came to what was asked twice.
    pub(super) fn answered_late(&mut self) {
        self.loss -= self.loss * LOSS_WEIGHT;
    }

    /// No answer came yet: it is asked again.
    pub(super) fn late(&mut self) {
        self.doublings = (self.doublings + 1).min(DOUBLINGS_MAX);
    }

    /// No answer came.
    pub(super) fn lost(&mut self) {
        self.loss += (1.0 - self.loss) * LOSS_WEIGHT;
    }

    /// When to ask again, and somebody else. However often it is doubled, as long again is left before the end.
    pub(super) fn soft(&self) -> Duration {
        let soft = self.smoothed.map_or(FIRST, |(smoothed, variation)| smoothed + 2 * variation);
        (soft * (1 << self.doublings)).min(soft.max(self.hard() / 2))
    }

    /// When to give up.
    pub(super) fn hard(&self) -> Duration {
        let (smoothed, variation) = self.smoothed.unwrap_or((FIRST, FIRST / 2));
        (3 * (smoothed + 4 * variation)).clamp(*HARD.start(), *HARD.end())
    }

    /// How many each path of a look-up asks at once.
    pub(super) fn alpha(&self) -> u8 {
        1 + LOSS_STEPS.iter().filter(|step| self.loss >= **step).count() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_follow_round_trips_and_more_are_asked_the_more_is_lost() {
        let mut pace = Pace::default();
        assert_eq!((pace.soft(), pace.alpha()), (FIRST, 1));
        for _ in 0..100 {
            pace.answered(Duration::from_millis(80));
        }
        let soft = pace.soft().as_millis();
        assert!((80..90).contains(&soft) && pace.hard() == *HARD.start(), "{soft}");
        let mut alphas = vec![];
        for _ in 0..10 {
            pace.lost();
            alphas.push(pace.alpha());
        }
        assert_eq!(alphas, [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]);
        (0..100).for_each(|_| pace.answered(Duration::from_secs(9)));
        assert_eq!((pace.alpha(), pace.hard()), (1, *HARD.end()));
    }

    #[test]
    fn who_is_late_is_waited_for_twice_as_long_until_there_is_a_round_trip_to_learn_from() {
        let mut pace = Pace::default();
        let hard = pace.hard();
        let softs: Vec<Duration> = std::iter::repeat_with(|| {
            pace.late();
            pace.soft()
        })
        .take(8)
        .collect();
        assert_eq!(softs[..2], [2 * FIRST, 4 * FIRST]);
        assert!(softs[2..].iter().all(|soft| *soft == hard / 2) && pace.hard() == hard, "{softs:?}");
        // Being late is no loss, and an answer to what was asked twice no round trip.
        pace.answered_late();
        assert_eq!((pace.soft(), pace.alpha()), (hard / 2, 1));
        pace.answered(Duration::from_millis(500));
        assert_eq!(pace.soft(), Duration::from_secs(1));
        (0..20).for_each(|_| pace.lost());
        let lossy = pace.alpha();
        (0..100).for_each(|_| pace.answered_late());
        assert_eq!((lossy, pace.alpha()), (3, 1));
    }
}
