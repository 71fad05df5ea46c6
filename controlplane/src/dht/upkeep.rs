//! How often to look after things: from how long sessions last, and nothing fixed.
//!
//! ```text
//!  half-life H = ln 2 · time that contacts were watched / contacts that went
//!
//!  a contact is asked again after  H · 0.145    one in twenty is gone by then, on the average of all
//!  a bucket is refreshed after     H / 2
//!  a record is put again after     H / 2        seven in ten of those that kept it are still there; or a third of what is left of its life
//! ```

use std::time::Duration;

/// Half-life before anything is known, as if a quarter of a departure had been seen: a quiet network is left quiet, a restless one is
/// believed within minutes.
const PRIOR: Duration = Duration::from_secs(6 * 3600);
const PRIOR_DEPARTURES: f64 = 0.25;
/// After so many departures the older half is forgotten, so that the estimate follows.
const DEPARTURES_MAX: f64 = 16.0;
/// Half-life beyond which it does not matter: a long quiet time is not held against a restless one that comes after it.
const HALF_LIFE_MAX: Duration = Duration::from_secs(48 * 3600);
/// Share of a half-life after which one in twenty has gone, on the average over contacts of all ages since the last answer: 2 · 0.05 / ln 2.
const CHECK_SHARE: f64 = 0.145;

pub(super) const CHECK: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(6 * 3600)];
const REFRESH: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(6 * 3600)];
const REPUBLISH: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(6 * 3600)];

#[derive(Clone, Copy, Debug)]
pub(super) struct Upkeep {
    watched_secs: f64,
    departures: f64,
}

impl Default for Upkeep {
    fn default() -> Self {
        let watched_secs = PRIOR.as_secs_f64() * PRIOR_DEPARTURES / std::f64::consts::LN_2;
        Self { watched_secs, departures: PRIOR_DEPARTURES }
    }
}

impl Upkeep {
    /// A contact was there for this long since it was last heard.
    pub(super) fn stayed(&mut self, time: Duration) {
        self.watched_secs += time.as_secs_f64();
        self.watched_secs =
            self.watched_secs.min(HALF_LIFE_MAX.as_secs_f64() / std::f64::consts::LN_2 * self.departures);
    }

    /// A contact went, at some moment of this time.
    pub(super) fn departed(&mut self, within: Duration) {
        self.watched_secs += within.as_secs_f64() / 2.0;
        self.departures += 1.0;
        if self.departures > DEPARTURES_MAX {
            self.watched_secs /= 2.0;
            self.departures /= 2.0;
        }
    }

    /// Time after which half of those who are here now have gone.
    pub(super) fn half_life(&self) -> Duration {
        Duration::from_secs_f64(std::f64::consts::LN_2 * self.watched_secs / self.departures)
    }

    fn share(&self, share: f64, [least, most]: [Duration; 2]) -> Duration {
        self.half_life().mul_f64(share).clamp(least, most)
    }

    pub(super) fn check_after(&self) -> Duration {
        self.share(CHECK_SHARE, CHECK)
    }

    pub(super) fn refresh_after(&self) -> Duration {
        self.share(0.5, REFRESH)
    }

    /// `life` is what is left of the record's.
    pub(super) fn republish_after(&self, life: Duration) -> Duration {
        self.share(0.5, REPUBLISH).min(life / 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands of quiet hours were held against the first minutes in which a tenth went each.
    #[test]
    fn a_long_quiet_time_is_soon_outweighed() {
        let mut upkeep = Upkeep::default();
        (0..1000).for_each(|_| upkeep.stayed(Duration::from_secs(86_400)));
        assert_eq!(upkeep.half_life().as_secs(), HALF_LIFE_MAX.as_secs());
        for turn in 0..320 {
            match turn % 10 {
                0 => upkeep.departed(Duration::from_secs(60)),
                _ => upkeep.stayed(Duration::from_secs(60)),
            }
        }
        let minutes = upkeep.half_life().as_secs_f64() / 60.0;
        assert!((6.0..30.0).contains(&minutes), "{minutes}");
        // And a few that go are no restless network for long.
        (0..160).for_each(|_| upkeep.stayed(Duration::from_secs(3600)));
        assert!(upkeep.half_life().as_secs() > 5 * 3600);
    }

    #[test]
    fn intervals_follow_departures_and_stay_within_their_bounds() {
        let mut upkeep = Upkeep::default();
        let quiet = Upkeep::default();
        assert_eq!(upkeep.half_life().as_secs(), PRIOR.as_secs());
        // A tenth goes each minute: half of them within 6.6 minutes. Each contact was heard a minute before.
        for turn in 0..400 {
            match turn % 10 {
                0 => upkeep.departed(Duration::from_secs(60)),
                _ => upkeep.stayed(Duration::from_secs(60)),
            }
        }
        let half_life = upkeep.half_life().as_secs_f64() / 60.0;
        assert!((6.0..9.0).contains(&half_life), "{half_life}");
        assert!(upkeep.check_after() < quiet.check_after() && upkeep.refresh_after() < quiet.refresh_after());
        let day = Duration::from_secs(86_400);
        assert!(upkeep.republish_after(day) < quiet.republish_after(day));
        assert_eq!(quiet.republish_after(Duration::from_secs(30)), Duration::from_secs(10));
        (0..1000).for_each(|_| upkeep.departed(Duration::from_millis(1)));
        assert_eq!([upkeep.check_after(), upkeep.refresh_after()], [CHECK[0], REFRESH[0]]);
        (0..1000).for_each(|_| upkeep.stayed(day));
        assert_eq!([upkeep.check_after(), upkeep.refresh_after()], [CHECK[1], REFRESH[1]]);
    }
}
