//! Signatures under certificates that were found good, so that they need not be computed for every handshake.
//!
//! ```text
//!   key, message, signature ──▶ SHA-256 ──▶ found good before? ──yes──▶ good
//!                                                │no
//!                                                └──▶ Ed25519 ──good──▶ remembered, good
//! ```
//!
//! That a signature fits a key and a message stays true whatever is revoked or ends, and nothing else is remembered: path, times, addresses
//! and revocations are judged every time. Certificates, and the statements and records of members, have a memory each; what a peer signs to
//! show that it has its key comes here never. A path is judged from its root, and a record after its statement, so nobody whom no root of
//! ours has certified, if only through an issuer, can fill a memory.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use webpki::aws_lc_rs::ED25519;

use super::id::sha256;
use super::key::{BadSignature, Domain, PublicKey, Signature};

/// Signatures of certificates that are remembered, two for each peer as a rule.
const SEEN_MAX: usize = 4096;

/// Bytes of a public key and of a signature (RFC 8032 §5.1).
const PUBLIC_KEY_LEN: usize = 32;
const SIGNATURE_LEN: usize = 64;

/// Ed25519 with a memory of what was good.
#[derive(Debug)]
pub struct Seen {
    /// Hashes that are remembered; all are forgotten when there would be one more.
    limit: usize,
    good: Mutex<HashSet<[u8; 32]>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self::new(SEEN_MAX)
    }
}

impl Seen {
    /// A memory of so many signatures.
    pub fn new(limit: usize) -> Self {
        Self { limit, good: Mutex::default() }
    }

    /// Whether a signature is good: key, signature and message are `parts`, and `compute` is asked when they are not remembered.
    fn judge<E>(&self, parts: [&[u8]; 3], compute: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let hash = sha256("weir-seen-1", &parts);
        // A set that a panicking thread left holds nothing but what was good.
        if self.good.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
            return Ok(());
        }
        compute()?;
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= self.limit {
            good.clear();
        }
        good.insert(hash);
        Ok(())
    }

    /// [`PublicKey::verify`] with this memory.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(
        &self,
        key: &PublicKey,
        domain: Domain,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        let message = domain.signed_bytes(message);
        self.judge([&key.0, &signature.0, &message], || key.verify_raw(&message, signature))
    }
}

impl SignatureVerificationAlgorithm for Seen {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        // Of other lengths it would not be clear where one ends and the next begins.
        if public_key.len() != PUBLIC_KEY_LEN || signature.len() != SIGNATURE_LEN {
            return ED25519.verify_signature(public_key, message, signature);
        }
        self.judge([public_key, signature, message], || ED25519.verify_signature(public_key, message, signature))
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        ED25519.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        ED25519.signature_alg_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::key::PrivateKey;
    use crate::random::SeededRandom;

    fn remembered(seen: &Seen) -> usize {
        seen.good.lock().unwrap().len()
    }

    #[test]
    fn only_what_was_good_is_remembered_and_a_changed_bit_is_never_good() {
        let key = PrivateKey::generate(&mut SeededRandom::new(1));
        let (public, message) = (key.public().0, b"a certificate".to_vec());
        let signature = key.sign_raw(&message).0;
        let seen = Seen::default();
        for known in [0, 1] {
            assert_eq!(remembered(&seen), known);
            for bit in 0..8 * message.len() {
                let mut other = message.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(seen.verify_signature(&public, &other, &signature).is_err(), "bit {bit} of the message");
            }
            for bit in 0..8 * SIGNATURE_LEN {
                let mut other = signature;
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(seen.verify_signature(&public, &message, &other).is_err(), "bit {bit} of the signature");
            }
            assert!(seen.verify_signature(&public, &message, &signature[..63]).is_err());
            assert!(seen.verify_signature(&public[..31], &message, &signature).is_err());
            assert_eq!(remembered(&seen), known);
            assert!(seen.verify_signature(&public, &message, &signature).is_ok());
        }
        assert_eq!(remembered(&seen), 1);
    }

    #[test]
    fn the_memory_ends_at_its_limit() {
        let key = PrivateKey::generate(&mut SeededRandom::new(2));
        let seen = Seen::default();
        for number in 0..=SEEN_MAX {
            assert_eq!(remembered(&seen), number);
            let message = number.to_be_bytes();
            seen.verify_signature(&key.public().0, &message, &key.sign_raw(&message).0).unwrap();
        }
        assert_eq!(remembered(&seen), 1, "one beyond the limit begins anew");
    }

    #[test]
    fn a_members_signature_is_remembered_for_its_domain_only() {
        let key = PrivateKey::generate(&mut SeededRandom::new(3));
        let (public, signature) = (key.public(), key.sign(Domain::Record, b"record"));
        let seen = Seen::new(1);
        for known in [0, 1] {
            assert_eq!(remembered(&seen), known);
            assert_eq!(seen.verify(&public, Domain::Policy, b"record", &signature), Err(BadSignature));
            assert_eq!(seen.verify(&public, Domain::Record, b"recorD", &signature), Err(BadSignature));
            assert_eq!(seen.verify(&public, Domain::Record, b"record", &signature), Ok(()));
        }
        assert_eq!(seen.verify(&public, Domain::Record, b"other", &key.sign(Domain::Record, b"other")), Ok(()));
        assert_eq!(remembered(&seen), 1, "one beyond the limit begins anew");
    }
}
