//! The Internet checksum (RFC 1071), and copying while summing.
//!
//! ```text
//!   bytes ─▶ words of 4 bytes, native order ─▶ 64-bit sums ─▶ Sum (modulo 2^64 − 1) ─▶ fold ─▶ 16 bits, network order
//! ```
//!
//! One's complement addition is the same in words of any size, and in any byte order but for a swap at the end (RFC 1071 §2). So the loop
//! adds what the machine is good at. It is written once, as plain Rust that the compiler turns into vector instructions, and compiled for
//! the baseline of the target and for AVX2; which one runs is found out at run time. The loop has one sum only: given several, the
//! compiler gathers words from afar, and is slower with wide vectors than without.

#![allow(unsafe_code, reason = "a function compiled for instructions that the baseline lacks is called after a check")]

use std::ops::Add;

/// From this many bytes on it pays to look which instructions there are. Chosen so that no header gets that far.
const WIDE_LEN_MIN: usize = 256;

/// A one's complement sum that is not folded yet, of bytes that began at an even offset.
///
/// Sums are added in any order. It is in native byte order until it is folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of the bytes. A byte at an odd end counts as if a zero followed.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.len() < WIDE_LEN_MIN { plain_sum(bytes) } else { wide::sum(bytes) }
    }

    /// The sum of a 16-bit word.
    #[inline]
    pub const fn word(word: u16) -> Self {
        Self(word.to_be() as u64)
    }

    /// This sum, moved to where its bytes stand in the whole: those behind an odd number of others change places within their words.
    #[inline]
    #[must_use]
    pub const fn at(self, offset: usize) -> Self {
        // A rotation by eight bits is a multiplication by 2^8 modulo 2^64 − 1, and with it modulo 2^16 − 1: a swap of each word's bytes.
        if offset & 1 == 0 { self } else { Self(self.0.rotate_left(8)) }
    }

    /// The sum as 16 bits in network order, as a checksum field holds it that somebody else is to complete. Zero only if no bit was set.
    #[inline]
    pub const fn fold(self) -> u16 {
        let total = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let total = (total & 0xffff) + ((total >> 16) & 0xffff) + (total >> 32);
        let total = (total & 0xffff) + (total >> 16);
        let total = (total & 0xffff) + (total >> 16);
        u16::from_be(total as u16)
    }

    /// The checksum: what a field that was zero must hold, and zero over bytes whose field is right.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        let (total, carry) = self.0.overflowing_add(other.0);
        Self(total + u64::from(carry))
    }
}

/// Copies all of `from` to the beginning of `to` and sums it, in one pass.
///
/// # Panics
/// When `to` is shorter than `from`.
#[inline]
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> Sum {
    let to = &mut to[..from.len()];
    if from.len() < WIDE_LEN_MIN {
        to.copy_from_slice(from);
        return plain_sum(from);
    }
    wide::copy_and_sum(from, to)
}

/// Eight bytes a step, or as many steps at once as vectors hold.
#[inline(always)]
fn plain_sum(bytes: &[u8]) -> Sum {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut total = 0u64;
    for word in words {
        total += halves(*word);
    }
    // What is left is taken in fixed sizes: a copy of a length known only at run time costs a header more than its sum.
    let (word, rest) = rest.as_chunks::<4>();
    if let [word] = word {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let (pair, rest) = rest.as_chunks::<2>();
    if let [pair] = pair {
        total += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [byte] = rest {
        total += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    Sum(total)
}

/// Both words of eight bytes added up. A `u64` has room for 2^31 such sums: 16 GiB.
#[inline(always)]
fn halves(bytes: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(bytes);
    (word & 0xffff_ffff) + (word >> 32)
}

/// Copies and sums; both slices have one length.
#[inline(always)]
fn plain_copy_and_sum(from: &[u8], to: &mut [u8]) -> Sum {
    let (words, rest) = from.as_chunks::<8>();
    let (copies, rest_copy) = to.as_chunks_mut::<8>();
    let mut total = 0u64;
    for (word, copy) in words.iter().zip(copies) {
        *copy = *word;
        total += halves(*word);
    }
    rest_copy.copy_from_slice(rest);
    Sum(total) + plain_sum(rest)
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Sum, plain_copy_and_sum, plain_sum};

    pub(super) fn sum(bytes: &[u8]) -> Sum {
        // The macro looks into a table that was filled on its first use.
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2, as was found out one line above.
            unsafe { sum_avx2(bytes) }
        } else {
            plain_sum(bytes)
        }
    }

    pub(super) fn copy_and_sum(from: &[u8], to: &mut [u8]) -> Sum {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2, as was found out one line above.
            unsafe { copy_and_sum_avx2(from, to) }
        } else {
            plain_copy_and_sum(from, to)
        }
    }

    #[target_feature(enable = "avx2")]
    fn sum_avx2(bytes: &[u8]) -> Sum {
        plain_sum(bytes)
    }

    #[target_feature(enable = "avx2")]
    fn copy_and_sum_avx2(from: &[u8], to: &mut [u8]) -> Sum {
        plain_copy_and_sum(from, to)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    pub(super) use super::{plain_copy_and_sum as copy_and_sum, plain_sum as sum};
}

#[cfg(test)]
pub(super) mod testing {
    /// The checksum as RFC 1071 §4.1 describes it: one 16-bit word after the other.
    pub(crate) fn plain_checksum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::plain_checksum;
    use super::*;

    /// Bytes without a pattern that a sum could miss.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 21) as u8).collect()
    }

    /// Every way to sum, whatever this machine would choose.
    fn sums(bytes: &[u8]) -> Vec<u16> {
        let mut copy = vec![0xaa; bytes.len() + 3];
        let mut sums = vec![Sum::of(bytes).checksum(), plain_sum(bytes).checksum(), wide::sum(bytes).checksum()];
        for (i, copy_and_sum) in [copy_and_sum, plain_copy_and_sum, wide::copy_and_sum].into_iter().enumerate() {
            // Destinations are not aligned either, and what is around them stays.
            sums.push(copy_and_sum(bytes, &mut copy[i..i + bytes.len()]).checksum());
            assert_eq!(copy[i..i + bytes.len()], *bytes);
            copy[i..i + bytes.len()].fill(0xaa);
            assert!(copy.iter().all(|&byte| byte == 0xaa));
        }
        sums
    }

    #[test]
    fn the_checksum_of_known_bytes_is_right() {
        // The example of RFC 1071 §3: the words sum to 0xddf2.
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
        assert_eq!(Sum::of(&[]).checksum(), 0xffff);
        assert_eq!(Sum::word(0x1234).fold(), 0x1234);
        for byte in [0, 1, 0xff] {
            let bytes = vec![byte; 65_535];
            assert_eq!(sums(&bytes), vec![plain_checksum(&bytes); 6]);
        }
    }

    #[test]
    fn every_length_at_every_alignment_is_summed_and_copied() {
        let bytes = bytes(1200);
        let around = |limit: usize| limit - 2..limit + 3;
        let lens = (0..200).chain(around(WIDE_LEN_MIN)).chain(around(384)).chain(around(1024));
        for len in lens {
            for start in 0..9 {
                let bytes = &bytes[start..start + len];
                assert_eq!(sums(bytes), vec![plain_checksum(bytes); 6], "{len} bytes from {start}");
            }
        }
    }

    #[test]
    fn a_sum_never_overflows() {
        // All ones are zero, too.
        let most = Sum(u64::MAX);
        assert_eq!((most + most).fold(), 0xffff);
        assert_eq!((most + Sum::word(1)).fold(), 1);
        assert_eq!((Sum(u64::MAX - 1) + Sum(1)).fold(), 0xffff);
    }

    #[test]
    #[should_panic(expected = "range end index")]
    fn a_copy_that_does_not_fit_is_a_bug_of_the_caller() {
        copy_and_sum(&[0; 300], &mut [0; 299]);
    }

    proptest! {
        #[test]
        fn parts_may_be_summed_apart(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut total, mut at) = (Sum::default(), 0);
            for cut in cuts {
                total = Sum::of(&bytes[at..cut]).at(at) + total;
                at = cut;
            }
            prop_assert_eq!(total.checksum(), plain_checksum(&bytes));
        }
    }
}
