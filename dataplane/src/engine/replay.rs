//! The replay window of a lane: which counters were seen, by the method of RFC 6479.
//!
//! A ring of 256 words of 64 bits. A counter's bit is `counter % 64` of word `counter / 64 % 256`. When a counter in a new word comes, the
//! words between it and the newest so far are cleared; nothing is ever shifted. The oldest word is always partly overwritten by the next,
//! so one word less than the ring is the window:
//!
//! ```text
//!            TooOld          │           judged by its bit             │   new
//!  ──────────────────────────┼─────────────────────────────────────────┼──────────▶ counter
//!                    newest - 16320                                  newest
//! ```
//!
//! [`ReplayWindow::check`] changes nothing, so that a forged datagram cannot move the window; [`ReplayWindow::accept`] is for after the
//! tag was verified. It knows no keys and no time.

use weir_abi::drop::DropReason;

/// Words in the ring.
const WORDS: usize = 256;
/// Counters that the window spans, the newest among them. More than 8192, the burst that a multi-queue path may reorder by.
pub const WINDOW_LEN: u64 = (WORDS as u64 - 1) * 64;

/// Why a counter is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// It was accepted before.
    Replayed,
    /// It lies before the window: nobody knows any more.
    TooOld,
}

impl From<ReplayError> for DropReason {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Replayed => Self::Replayed,
            ReplayError::TooOld => Self::ReplayTooOld,
        }
    }
}

/// The counters that one lane has accepted: 2 KiB.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The largest counter accepted; zero before the first.
    newest: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayWindow {
    /// A window that has seen nothing.
    pub const fn new() -> Self {
        Self { newest: 0, words: [0; WORDS] }
    }

    /// Whether a datagram with this counter may still be accepted.
    ///
    /// # Errors
    /// [`ReplayError`] says why not.
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        if counter > self.newest {
            return Ok(());
        }
        if self.newest - counter >= WINDOW_LEN {
            return Err(ReplayError::TooOld);
        }
        if self.words[word(counter)] & bit(counter) != 0 {
            return Err(ReplayError::Replayed);
        }
        Ok(())
    }

    /// Marks a counter as seen. For counters that [`Self::check`] let pass and whose tag was verified.
    #[inline]
    pub fn accept(&mut self, counter: u64) {
        debug_assert_eq!(self.check(counter), Ok(()));
        if counter > self.newest {
            let from = self.newest / 64;
            let steps = (counter / 64 - from).min(WORDS as u64);
            for step in 1..=steps {
                self.words[(from.wrapping_add(step) % WORDS as u64) as usize] = 0;
            }
            self.newest = counter;
        }
        self.words[word(counter)] |= bit(counter);
    }
}

#[inline]
fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

#[inline]
fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn window(accepted: &[u64]) -> ReplayWindow {
        let mut window = ReplayWindow::new();
        for &counter in accepted {
            window.accept(counter);
        }
        window
    }

    #[test]
    fn a_counter_is_accepted_once_and_check_changes_nothing() {
        for counter in [0, 1, 63, 64, WINDOW_LEN, u64::MAX] {
            let mut window = ReplayWindow::new();
            assert_eq!(window.check(counter), Ok(()));
            assert_eq!(window.check(counter), Ok(()));
            window.accept(counter);
            assert_eq!(window.check(counter), Err(ReplayError::Replayed));
        }
    }

    #[test]
    fn the_window_ends_exactly_at_its_length() {
        for newest in [WINDOW_LEN, WINDOW_LEN + 1, 16 * WINDOW_LEN + 63, 1 << 40, u64::MAX - 64, u64::MAX] {
            let window = window(&[newest]);
            assert_eq!(window.check(newest - WINDOW_LEN + 1), Ok(()), "limit - 1, newest {newest}");
            assert_eq!(window.check(newest - WINDOW_LEN), Err(ReplayError::TooOld), "limit, newest {newest}");
            if let Some(counter) = newest.checked_sub(WINDOW_LEN + 1) {
                assert_eq!(window.check(counter), Err(ReplayError::TooOld), "limit + 1, newest {newest}");
            }
        }
    }

    #[test]
    fn a_whole_window_is_remembered_at_every_alignment() {
        for newest in [WINDOW_LEN + 5, 20_000, 20_031, 20_032, u64::MAX - 1, u64::MAX] {
            let mut window = window(&[newest]);
            for counter in newest - WINDOW_LEN + 1..newest {
                assert_eq!(window.check(counter), Ok(()));
                window.accept(counter);
            }
            for counter in newest - WINDOW_LEN + 1..=newest {
                assert_eq!(window.check(counter), Err(ReplayError::Replayed));
            }
        }
    }

    #[test]
    fn a_jump_forgets_what_shares_its_words() {
        let ring = WORDS as u64 * 64;
        for jump in [1, 63, 64, WINDOW_LEN - 1, WINDOW_LEN, ring - 1, ring, ring + 1, 3 * ring, 1 << 50] {
            let window = window(&[0, 1, 2, 3, 3 + jump]);
            let newest = 3 + jump;
            for counter in newest.saturating_sub(WINDOW_LEN - 1)..=newest {
                let seen = counter <= 3 || counter == newest;
                assert_eq!(window.check(counter).is_err(), seen, "{counter} after a jump of {jump}");
            }
        }
    }

    /// The plain version: every counter ever accepted.
    #[derive(Default)]
    struct Model(BTreeSet<u64>);

    impl Model {
        fn check(&self, counter: u64) -> Result<(), ReplayError> {
            let newest = self.0.last().copied().unwrap_or(0);
            if newest.saturating_sub(counter) >= WINDOW_LEN {
                Err(ReplayError::TooOld)
            } else if self.0.contains(&counter) {
                Err(ReplayError::Replayed)
            } else {
                Ok(())
            }
        }
    }

    /// A move from the newest counter so far: near, about a window away, about a ring away, or anywhere.
    fn step() -> impl Strategy<Value = i128> {
        let around = |centre: i128| centre - 70..centre + 70;
        prop_oneof![
            4 => around(0),
            2 => around(-(WINDOW_LEN as i128)),
            1 => around(WINDOW_LEN as i128),
            1 => around(WORDS as i128 * 64),
            1 => -20_000..20_000i128,
            1 => any::<i64>().prop_map(i128::from),
        ]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all_counters(
            start in prop_oneof![Just(0), Just(u64::MAX - 20_000), any::<u64>()],
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let (mut window, mut model) = (ReplayWindow::new(), Model::default());
            let mut newest = start;
            for step in steps {
                let counter = (newest as i128 + step).clamp(0, u64::MAX as i128) as u64;
                prop_assert_eq!(window.check(counter), model.check(counter), "counter {}", counter);
                if window.check(counter).is_ok() {
                    window.accept(counter);
                    model.0.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
