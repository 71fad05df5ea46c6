//! A document with its signature, checked over the bytes that travelled.
//!
//! ```text
//!  +------------------+--------------------------+-------------------+
//!  | body: len, bytes | signer: key id (20)      | signature (64)    |
//!  +------------------+--------------------------+-------------------+
//!                       signature over "weir-" ‖ domain ‖ "-1" ‖ 0x00 ‖ body
//! ```
//!
//! The body is kept as it came: it is never encoded again, so a document that a newer version wrote keeps its signature on its way through us.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::id::{KeyId, sha256};
use super::key::{BadSignature, Domain, PrivateKey, PublicKey, Signature};
use super::seen::Seen;
use crate::codec::{self, DecodeError};

/// Something that is signed as a whole.
pub trait Document: Serialize + DeserializeOwned {
    /// What its signatures are for.
    const DOMAIN: Domain;
    /// Longest body that is read.
    const BODY_LEN_MAX: usize;
}

/// Why a signed document was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key is not the one that the document names.
    #[error("signed by {signer}, not by {expected}")]
    OtherSigner {
        /// Whom the document names.
        signer: KeyId,
        /// Whose key was given.
        expected: KeyId,
    },
    /// The signature does not fit.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// The signer wrote something that we cannot read.
    #[error(transparent)]
    Body(#[from] DecodeError),
}

/// A document as it travels.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    /// The document's bytes.
    pub body: Vec<u8>,
    /// Who signed.
    pub signer: KeyId,
    /// Over the body.
    pub signature: Signature,
    #[serde(skip)]
    document: PhantomData<fn() -> T>,
}

impl<T: Document> Signed<T> {
    /// Signs a document.
    pub fn sign(document: &T, key: &PrivateKey) -> Self {
        let body = codec::encode(document);
        let signature = key.sign(T::DOMAIN, &body);
        Self { body, signer: key.public().id(), signature, document: PhantomData }
    }

    /// The document, if `key` signed it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, key: &PublicKey) -> Result<T, OpenError> {
        self.open_by(key, || key.verify(T::DOMAIN, &self.body, &self.signature))
    }

    /// [`Self::open`] with a memory of signatures that were good.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_seen(&self, key: &PublicKey, seen: &Seen) -> Result<T, OpenError> {
        self.open_by(key, || seen.verify(key, T::DOMAIN, &self.body, &self.signature))
    }

    fn open_by(&self, key: &PublicKey, verify: impl FnOnce() -> Result<(), BadSignature>) -> Result<T, OpenError> {
        let expected = key.id();
        if expected != self.signer {
            return Err(OpenError::OtherSigner { signer: self.signer, expected });
        }
        verify()?;
        Ok(codec::decode(&self.body, T::BODY_LEN_MAX)?)
    }

    /// The document without a look at its signature: for our own, and to learn which key to ask for.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn peek(&self) -> Result<T, DecodeError> {
        codec::decode(&self.body, T::BODY_LEN_MAX)
    }

    /// Names this very document.
    pub fn digest(&self) -> [u8; 32] {
        sha256("weir-document-1", &[&self.body])
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self { body: self.body.clone(), signer: self.signer, signature: self.signature, document: PhantomData }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body && self.signer == other.signer && self.signature == other.signature
    }
}

impl<T> Eq for Signed<T> {}

impl<T> fmt::Debug for Signed<T> {
    /// The body stays out: some documents are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed({} bytes by {})", self.body.len(), self.signer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(String);

    impl Document for Note {
        const DOMAIN: Domain = Domain::Record;
        const BODY_LEN_MAX: usize = 8;
    }

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32])
    }

    #[test]
    fn only_the_signers_key_opens_the_very_bytes() {
        let signed = Signed::sign(&Note("seven 7".into()), &key(1));
        assert_eq!(signed.open(&key(1).public()), Ok(Note("seven 7".into())));
        let (signer, expected) = (key(1).public().id(), key(2).public().id());
        assert_eq!(signed.open(&key(2).public()), Err(OpenError::OtherSigner { signer, expected }));
        let mut bent = signed.clone();
        bent.body[1] ^= 1;
        assert_eq!(bent.open(&key(1).public()), Err(OpenError::Signature(BadSignature)));
        let long = Signed::sign(&Note("eight 88".into()), &key(1));
        assert_eq!(long.open(&key(1).public()), Err(OpenError::Body(DecodeError::TooLong { len: 9, max: 8 })));
    }

    #[test]
    fn a_signed_document_travels_whole() {
        let signed = Signed::sign(&Note("x".into()), &key(1));
        let bytes = codec::encode(&signed);
        assert_eq!(codec::decode(&bytes, bytes.len()), Ok(signed));
    }
}
