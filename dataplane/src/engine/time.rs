//! Time as the engine knows it: an argument.

use std::time::Duration;

/// Nanoseconds on a monotonic clock with an arbitrary origin. The engine never asks for the time; its caller brings it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Self = Self(0);

    /// This many nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time `later` after this one; it stops at the end of the clock (584 years).
    pub const fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later.as_nanos() as u64))
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
