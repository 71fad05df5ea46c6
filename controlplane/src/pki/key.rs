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

use aws_lc_rs::hkdf;
use ed25519_dalek::pkcs8::KeypairBytes;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use pkcs8::der::pem::PemLabel as _;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncryptedPrivateKeyInfoRef, LineEnding, SecretDocument};
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
    /// A record in the DHT: how a node is reached.
    DhtNode,
    /// A record in the DHT: what a member says under its name.
    DhtName,
    /// A record in the DHT: the keys of a member's zone.
    DhtZone,
    /// A record in the DHT: who has an overlay address.
    DhtOverlay,
    /// A record in the DHT: where a service is.
    DhtService,
    /// A record in the DHT: which revocation list a node holds.
    DhtRevocations,
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
            Self::DhtNode => "dht-node",
            Self::DhtName => "dht-name",
            Self::DhtZone => "dht-zone",
            Self::DhtOverlay => "dht-overlay",
            Self::DhtService => "dht-service",
            Self::DhtRevocations => "dht-revocations",
        }
    }

    pub(super) fn signed_bytes(self, message: &[u8]) -> Vec<u8> {
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
    /// It says that opening it takes more than anybody should spend, or names a way that we do not go.
    #[error(
        "the key file asks for another way to open it, or for more memory or time, than files of weir and OpenSSL do: it is damaged, or none of ours"
    )]
    Cost,
    /// The library refused to write.
    #[error("the key cannot be written: {0}")]
    Write(pkcs8::Error),
}

/// Memory, in bytes, and lanes that scrypt may take to open a key file. Ours have 16 MiB and one, as OpenSSL's; a damaged file could ask for all
/// the memory that there is.
const SCRYPT_BYTES_MAX: u64 = 256 << 20;
const SCRYPT_LANES_MAX: u16 = 16;
/// Rounds of PBKDF2, by which others may have written a file: ten times what is recommended today.
const PBKDF2_ROUNDS_MAX: u32 = 10_000_000;

/// Whether a file that asks to be opened like that is worth it.
fn is_affordable(scheme: &EncryptionScheme) -> bool {
    match scheme.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Scrypt(scrypt)) => {
            let bytes = scrypt.cost_parameter.saturating_mul(128 * u64::from(scrypt.block_size));
            // The library takes the logarithm of the cost as it is: that of 0 is a panic.
            (1..=SCRYPT_BYTES_MAX).contains(&bytes) && scrypt.parallelization <= SCRYPT_LANES_MAX
        }
        Some(Kdf::Pbkdf2(pbkdf2)) => pbkdf2.iteration_count <= PBKDF2_ROUNDS_MAX,
        // The library's list is open; and the first version of the scheme is DES and MD5.
        Some(_) | None => false,
    }
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

    /// Another key that follows from this one and from what it is for, and says nothing of it (RFC 5869).
    ///
    /// # Panics
    /// Never: one hash of output is within HKDF's limit.
    #[must_use]
    pub fn derive(&self, purpose: &[&[u8]]) -> Self {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weir key 1").extract(&*self.seed());
        let mut seed = Zeroizing::new([0; 32]);
        let expanded = secret.expand(purpose, hkdf::HKDF_SHA256).and_then(|output| output.fill(&mut *seed));
        expanded.expect("32 bytes are within HKDF's limit");
        Self::from_seed(&seed)
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

    /// Reads what [`Self::to_encrypted_pem`] wrote. A file says itself what opening it takes, so that is looked at before.
    ///
    /// # Errors
    /// [`KeyFileError::Open`], [`KeyFileError::Cost`].
    pub fn from_encrypted_pem(pem: &str, passphrase: &str) -> Result<Self, KeyFileError> {
        let document = || -> pkcs8::Result<SecretDocument> {
            let (label, document) = SecretDocument::from_pem(pem)?;
            EncryptedPrivateKeyInfoRef::validate_pem_label(label)?;
            Ok(document)
        };
        let document = document().map_err(KeyFileError::Open)?;
        let sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes());
        let sealed = sealed.map_err(KeyFileError::Open)?;
        if !is_affordable(&sealed.encryption_algorithm) {
            return Err(KeyFileError::Cost);
        }
        let opened = sealed.decrypt(passphrase).and_then(|opened| SigningKey::from_pkcs8_der(opened.as_bytes()));
        opened.map(Self).map_err(KeyFileError::Open)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(… of {})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use pkcs8::der::Encode as _;

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

    /// A cost of 0 was a panic in the library, and one of 2^60 took all memory: a bit that had turned over in a backup was enough.
    #[test]
    fn a_key_file_that_asks_for_too_much_is_refused_before_it_gets_it() {
        let pem = key().to_encrypted_pem("correct horse").unwrap();
        let (_, document) = SecretDocument::from_pem(&pem).unwrap();
        let changed = |cost, block_size, lanes| {
            let mut sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).unwrap();
            let EncryptionScheme::Pbes2(parameters) = &mut sealed.encryption_algorithm else { panic!() };
            let Kdf::Scrypt(scrypt) = &mut parameters.kdf else { panic!() };
            (scrypt.cost_parameter, scrypt.block_size, scrypt.parallelization) = (cost, block_size, lanes);
            let is_affordable = is_affordable(&sealed.encryption_algorithm);
            let document = SecretDocument::try_from(&sealed.to_der().unwrap()[..]).unwrap();
            (is_affordable, document.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).unwrap())
        };
        assert_eq!(changed(1 << 14, 8, 1), (true, pem.clone()), "what weir writes");
        for (cost, block_size, lanes, expected) in [
            (1 << 18, 8, 16, true),
            (1 << 18, 8, 17, false),
            (1 << 18, 9, 1, false),
            (1 << 19, 8, 1, false),
            (1 << 14, 0, 1, false),
            (u64::MAX, u16::MAX, u16::MAX, false),
        ] {
            assert_eq!(changed(cost, block_size, lanes).0, expected, "{cost} {block_size} {lanes}");
        }
        for cost in [0, 1 << 60] {
            let refused = PrivateKey::from_encrypted_pem(&changed(cost, 8, 1).1, "correct horse");
            assert!(matches!(refused, Err(KeyFileError::Cost)), "{cost}");
        }
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
