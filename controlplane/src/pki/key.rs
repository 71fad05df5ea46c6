//! Ed25519 keys (RFC 8032) and what they sign.
//!
//! Every signature covers a domain and the message, so that what was signed for one purpose is worth nothing for another:
//!
//! ```text
//!  "weir-" ‖ domain ‖ "-1" ‖ 0x00 ‖ message
//! ```
//!
//! Verification is strict: neither weak keys nor signatures that a stranger can change into others of the same message.

use std::fmt;

use ed25519_dalek::pkcs8::KeypairBytes;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::KeyId;
use crate::random::Random;

/// What a signature is for. One string each; a new use gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// A request for a certificate: joining and renewal.
    Request,
    /// A member statement.
    Statement,
    /// A revocation list.
    Revocation,
    /// A version of the trust bundle.
    Bundle,
    /// A version of the policy.
    Policy,
    /// A record that a member publishes of itself.
    Record,
    /// The seed of the admission tags.
    Admission,
    /// An entry of the audit log.
    Audit,
}

impl Domain {
    const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Statement => "statement",
            Self::Revocation => "revocation",
            Self::Bundle => "bundle",
            Self::Policy => "policy",
            Self::Record => "record",
            Self::Admission => "admission",
            Self::Audit => "audit",
        }
    }

    fn signed_bytes(self, message: &[u8]) -> Vec<u8> {
        [b"weir-", self.name().as_bytes(), b"-1\0", message].concat()
    }
}

/// A signature does not fit key, domain and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not fit")]
pub struct BadSignature;

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (one, other) = self.0.split_at(32);
        (one, other).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (one, other): (Vec<u8>, Vec<u8>) = Deserialize::deserialize(deserializer)?;
        let bytes = [one, other].concat().try_into();
        bytes.map(Self).map_err(|_| serde::de::Error::custom("a signature has 64 bytes"))
    }
}

/// A public key: a member's identity, an issuer, a root, an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Its id.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    /// Checks a signature, strictly (RFC 8032 §5.1.7, and no key of small order).
    ///
    /// # Errors
    /// [`BadSignature`], also for bytes that are no key.
    pub fn verify(&self, domain: Domain, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        self.verify_raw(&domain.signed_bytes(message), signature)
    }

    /// The same without a domain, for formats that bring their own: X.509.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify_raw(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(message, &signature).map_err(|_| BadSignature)
    }
}

/// Why a key could not be read from its file, or written to one.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Not what we write, or the passphrase is another.
    #[error("the key file cannot be opened: {0}; is the passphrase right?")]
    Open(pkcs8::Error),
    /// The library refused to write.
    #[error("the key cannot be written: {0}")]
    Write(pkcs8::Error),
}

/// A private key. Erased when dropped, never printed.
#[derive(Clone)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A fresh one.
    pub fn generate(random: &mut impl Random) -> Self {
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(random.array());
        Self::from_seed(&seed)
    }

    /// The key of a seed (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Its seed, for a store that is as secret as the key.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs for one purpose.
    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        self.sign_raw(&domain.signed_bytes(message))
    }

    /// Signs without a domain, for formats that bring their own: X.509, TLS.
    pub fn sign_raw(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }

    /// PKCS#8 (RFC 5958) in DER, not encrypted: what TLS libraries read.
    ///
    /// # Errors
    /// [`KeyFileError::Write`].
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        let document = self.0.to_pkcs8_der().map_err(KeyFileError::Write)?;
        Ok(Zeroizing::new(document.as_bytes().to_vec()))
    }

    /// PKCS#8 in PEM, encrypted by PBES2 with scrypt and AES-256 (RFC 8018, RFC 7914): `openssl pkey -in FILE` reads it.
    ///
    /// # Errors
    /// [`KeyFileError::Write`].
    pub fn to_encrypted_pem(&self, passphrase: &str) -> Result<Zeroizing<String>, KeyFileError> {
        // Without the public key: OpenSSL 3.0 does not read the second version of PKCS#8, which has it.
        let pair = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        pair.to_pkcs8_encrypted_pem(passphrase, LineEnding::LF).map_err(KeyFileError::Write)
    }

    /// Reads what [`Self::to_encrypted_pem`] wrote.
    ///
    /// # Errors
    /// [`KeyFileError::Open`].
    pub fn from_encrypted_pem(pem: &str, passphrase: &str) -> Result<Self, KeyFileError> {
        SigningKey::from_pkcs8_encrypted_pem(pem, passphrase).map(Self).map_err(KeyFileError::Open)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(… of {})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    fn key() -> PrivateKey {
        PrivateKey::generate(&mut SeededRandom::new(1))
    }

    #[test]
    fn a_signature_is_good_for_its_key_domain_and_message_only() {
        let signature = key().sign(Domain::Record, b"message");
        let public = key().public();
        assert_eq!(public.verify(Domain::Record, b"message", &signature), Ok(()));
        assert_eq!(public.verify(Domain::Policy, b"message", &signature), Err(BadSignature));
        assert_eq!(public.verify(Domain::Record, b"messagf", &signature), Err(BadSignature));
        let other = PrivateKey::from_seed(&[9; 32]).public();
        assert_eq!(other.verify(Domain::Record, b"message", &signature), Err(BadSignature));
        for at in [0, 31, 32, 63] {
            let mut bent = signature;
            bent.0[at] ^= 1;
            assert_eq!(public.verify(Domain::Record, b"message", &bent), Err(BadSignature));
        }
    }

    /// With a key of small order some signature fits every message; RFC 8032's plain equation takes it.
    #[test]
    fn keys_of_small_order_verify_nothing() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        let verified = PublicKey(identity).verify(Domain::Record, b"anything", &Signature(signature));
        assert_eq!(verified, Err(BadSignature));
    }

    #[test]
    fn a_key_file_opens_with_its_passphrase_only() {
        let pem = key().to_encrypted_pem("correct horse").unwrap();
        assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        let read = PrivateKey::from_encrypted_pem(&pem, "correct horse").unwrap();
        assert_eq!(read.public(), key().public());
        assert!(matches!(PrivateKey::from_encrypted_pem(&pem, "wrong"), Err(KeyFileError::Open(_))));
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let shown = format!("{:?}", key());
        assert!(shown.starts_with("PrivateKey(… of "), "{shown}");
    }

    #[test]
    fn signatures_travel_whole() {
        let signature = key().sign(Domain::Bundle, b"x");
        let bytes = crate::codec::encode(&signature);
        assert_eq!(crate::codec::decode::<Signature>(&bytes, bytes.len()), Ok(signature));
    }
}
