//! How far members are from one another: eight parts of the world, and each member's own line.
//!
//! ```text
//!  round trip = between the parts of the world + line of the one + line of the other        each datagram up to a tenth more
//! ```

use std::time::Duration;

use weir_controlplane::random::Random;

/// Parts of the world.
pub(super) const PARTS: usize = 8;
/// Round trips between them in ms. Ours: rounded from what public clouds tell of their regions: America east, west, south; Europe west,
/// centre; India, Singapore, Japan.
const ROUND_TRIP_MS: [[u16; PARTS]; PARTS] = [
    [4, 62, 115, 75, 90, 190, 215, 150],
    [62, 4, 175, 130, 145, 220, 170, 105],
    [115, 175, 4, 180, 200, 300, 320, 255],
    [75, 130, 180, 4, 25, 120, 175, 210],
    [90, 145, 200, 25, 4, 110, 160, 225],
    [190, 220, 300, 120, 110, 4, 60, 120],
    [215, 170, 320, 175, 160, 60, 4, 70],
    [150, 105, 255, 210, 225, 120, 70, 4],
];
/// Mean of a member's own line, µs, there and back: exponential.
const LINE_US: f64 = 8_000.0;

/// Where a member is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    part: u8,
    line_us: u32,
}

/// A random number from 0 to below 1.
pub(super) fn unit(random: &mut impl Random) -> f64 {
    (random.u64() >> 11) as f64 / (1u64 << 53) as f64
}

impl Location {
    pub(super) fn draw(random: &mut impl Random) -> Self {
        let part = (random.u64() % PARTS as u64) as u8;
        Self { part, line_us: (-LINE_US * (1.0 - unit(random)).ln()) as u32 }
    }

    /// There and back, without jitter.
    pub(super) fn round_trip(self, to: Self) -> Duration {
        let between = ROUND_TRIP_MS[usize::from(self.part)][usize::from(to.part)];
        Duration::from_micros(u64::from(between) * 1000 + u64::from(self.line_us) + u64::from(to.line_us))
    }

    /// One way, with jitter.
    pub(super) fn one_way(self, to: Self, random: &mut impl Random) -> Duration {
        (self.round_trip(to) / 2).mul_f64(1.0 + 0.1 * unit(random))
    }
}

#[cfg(test)]
mod tests {
    use weir_controlplane::random::SeededRandom;

    use super::*;

    #[test]
    fn the_way_back_is_as_long_as_the_way_there() {
        for (one, row) in ROUND_TRIP_MS.iter().enumerate() {
            assert!(row.iter().enumerate().all(|(other, &ms)| ms == ROUND_TRIP_MS[other][one]));
        }
        let mut random = SeededRandom::new(1);
        let (one, other) = (Location::draw(&mut random), Location::draw(&mut random));
        assert_eq!(one.round_trip(other), other.round_trip(one));
        let way = one.one_way(other, &mut random);
        assert!((one.round_trip(other) / 2..one.round_trip(other)).contains(&way));
    }
}
