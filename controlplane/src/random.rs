//! Randomness as an argument, so that a run can be repeated from its seed.

use aws_lc_rs::rand;

/// A source of random bytes.
pub trait Random {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);

    /// A random number.
    fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Another source, for a part that draws by itself.
    fn split(&mut self) -> Self
    where
        Self: Sized;

    /// A random number from 0 to below 1: as many bits as an `f64` keeps.
    fn unit(&mut self) -> f64 {
        (self.u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Random bytes of a fixed number.
    fn array<const N: usize>(&mut self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

/// Leaves so many of them, each as likely as any other, in any order (Fisher, Yates; stopped when there are enough).
pub fn draw<T>(all: &mut Vec<T>, count: usize, random: &mut impl Random) {
    let count = count.min(all.len());
    for at in 0..count {
        let other = at + (random.u64() % (all.len() - at) as u64) as usize;
        all.swap(at, other);
    }
    all.truncate(count);
}

/// The system's generator: the only source for keys in operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn split(&mut self) -> Self {
        *self
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        // The library draws from a generator in this process that the kernel seeded; it fails only when the kernel has none.
        rand::fill(bytes).expect("the kernel gives random numbers");
    }
}

/// Repeatable from a seed, for tests and simulations: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// OOPSLA 2014). Worthless for keys.
#[derive(Clone, Debug)]
pub struct SeededRandom(u64);

impl SeededRandom {
    /// The same seed gives the same bytes.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Random for SeededRandom {
    fn split(&mut self) -> Self {
        Self::new(self.next())
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        // The first outputs for seed 0 in the authors' own reference code.
        let mut random = SeededRandom::new(0);
        assert_eq!((random.u64(), random.u64()), (0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4));
    }

    #[test]
    fn a_share_is_never_below_zero_nor_one() {
        /// Always the same bytes.
        struct Fixed(u8);
        impl Random for Fixed {
            fn split(&mut self) -> Self {
                Self(self.0)
            }

            fn fill(&mut self, bytes: &mut [u8]) {
                bytes.fill(self.0);
            }
        }
        assert_eq!((Fixed(0).unit(), Fixed(255).unit()), (0.0, 1.0 - f64::EPSILON / 2.0));
        let mut random = SeededRandom::new(1);
        let below_half = (0..1000).filter(|_| random.unit() < 0.5).count();
        assert!((450..550).contains(&below_half), "{below_half}");
    }

    #[test]
    fn the_systems_bytes_are_not_all_alike() {
        let (one, other): ([u8; 32], [u8; 32]) = (SystemRandom.array(), SystemRandom.array());
        assert_ne!(one, other);
    }
}
