//! Time as the cores see it: one clock for deadlines, another for validity.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970-01-01 00:00:00 UTC, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixSecs(pub u64);

impl UnixSecs {
    /// This much later; the end of time at most.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_secs()))
    }

    /// This much earlier; 1970 at least.
    #[must_use]
    pub const fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by.as_secs()))
    }

    /// How long after `earlier` this is; zero when it is before.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339 in UTC, as in `2026-11-29T12:00:00Z`; the bare number beyond the year 9999.
impl fmt::Display for UnixSecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formatted = i64::try_from(self.0).ok().and_then(|secs| {
            OffsetDateTime::from_unix_timestamp(secs).ok().and_then(|moment| moment.format(&Rfc3339).ok())
        });
        match formatted {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// One look at both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Never goes back: deadlines and intervals.
    pub mono: Instant,
    /// The network's clock: what certificates, lists and records are judged by.
    pub wall: UnixSecs,
}

impl Now {
    /// Both clocks this much later.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self { mono: self.mono + by, wall: self.wall.plus(by) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_as_rfc_3339_says() {
        assert_eq!(UnixSecs(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(UnixSecs(1_796_000_000).to_string(), "2026-11-30T00:53:20Z");
        assert_eq!(UnixSecs(u64::MAX).to_string(), "18446744073709551615 s after 1970");
    }

    #[test]
    fn arithmetic_ends_at_both_ends_of_time() {
        let day = Duration::from_secs(86_400);
        assert_eq!(UnixSecs(u64::MAX).plus(day), UnixSecs(u64::MAX));
        assert_eq!(UnixSecs(1).minus(day), UnixSecs(0));
        assert_eq!(
            (UnixSecs(9).since(UnixSecs(4)), UnixSecs(4).since(UnixSecs(9))),
            (Duration::from_secs(5), Duration::ZERO)
        );
    }
}
