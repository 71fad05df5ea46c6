//! How long to wait, and how many to ask at once: from the round trips and losses that are seen.
//!
//! ```text
//!  asked ──── soft: asked again, and somebody else as well ──── hard: given up
//! ```
//!
//! RFC 6298 for the smoothed round trip and its variation, over all peers: a look-up asks strangers, of whom nothing better is known.

use std::time::Duration;

/// Before anything was measured (RFC 6298 §2.1 says a second; most members are nearer, and being asked twice does no harm).
const FIRST: Duration = Duration::from_millis(300);
/// Least and most of the hard deadline. Ours: two losses of a handshake's first flight are outlived by none.
const HARD: std::ops::RangeInclusive<Duration> = Duration::from_millis(1000)..=Duration::from_millis(4000);
/// Weight of a new outcome in the share of requests that are lost.
const LOSS_WEIGHT: f32 = 1.0 / 32.0;
/// Shares of lost requests from which a path asks two, and three, at once. Ours: below the first, a second costs more than it gains.
const LOSS_STEPS: [f32; 2] = [0.04, 0.15];

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    smoothed: Option<(Duration, Duration)>,
    loss: f32,
}

impl Pace {
    /// An answer came after this long.
    pub(super) fn answered(&mut self, after: Duration) {
        self.loss -= self.loss * LOSS_WEIGHT;
        self.smoothed = Some(match self.smoothed {
            None => (after, after / 2),
            Some((smoothed, variation)) => {
                (smoothed * 7 / 8 + after / 8, variation * 3 / 4 + smoothed.abs_diff(after) / 4)
            }
        });
    }

    /// No answer came.
    pub(super) fn lost(&mut self) {
        self.loss += (1.0 - self.loss) * LOSS_WEIGHT;
    }

    /// When to ask again, and somebody else.
    pub(super) fn soft(&self) -> Duration {
        self.smoothed.map_or(FIRST, |(smoothed, variation)| smoothed + 2 * variation)
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
}
