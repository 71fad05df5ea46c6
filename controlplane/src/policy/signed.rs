//! Versions of the policy: signed by an operator, numbered, kept.
//!
//! ```text
//!   SignedPolicy   +--------------------------------------------------------------+-------------+------------+
//!     (postcard)   | body: len, bytes                                             | operator 32 | signature  |
//!                  +--------------------------------------------------------------+-------------+------------+
//!   body           | network 32 | version | issued at, seconds | document: len, UTF-8, as written, comments too |
//! ```
//!
//! The signature covers the body's bytes as they travel. A version that is below the one in force is refused, so nobody can bring an old
//! policy back; an operator who wants one again signs it under a new number. Where two operators sign one number at once, the higher digest
//! is followed, so that all members come to follow the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DOCUMENT_LEN_MAX, Document, ParseError, parse};
use crate::codec::{self, DecodeError};
use crate::pki::id::{NetworkId, sha256};
use crate::pki::key::{Domain, PrivateKey, PublicKey, Signature};
use crate::time::UnixSecs;

/// Most versions that are kept: a year of changes each working day.
pub const HISTORY_MAX: usize = 256;
/// Longest body in bytes: the document and some numbers.
const BODY_LEN_MAX: usize = DOCUMENT_LEN_MAX + 64;

#[derive(Serialize, Deserialize)]
struct Body {
    network: NetworkId,
    version: u64,
    issued_at: UnixSecs,
    document: String,
}

/// A version of the policy as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    body: Vec<u8>,
    operator: PublicKey,
    signature: Signature,
}

/// A version whose signature has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// When it was signed, by the operator's clock.
    pub issued_at: UnixSecs,
    /// Who signed it.
    pub operator: PublicKey,
    /// The document as it was written.
    pub text: String,
    /// What it says.
    pub document: Document,
}

/// How far the number of a version may be ahead of our clock, in seconds since 1970. Honest ones count from 1; whoever steals an operator's key
/// could use up all of them, and nobody could sign another policy after that.
const VERSION_AHEAD_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Why bytes are no policy, or not one to follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not the encoding of one.
    #[error("the policy does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// Signed by a key that may not.
    #[error("the policy is signed by {0:?}, which is no operator of this network")]
    Operator(PublicKey),
    /// Not signed by whom it names.
    #[error("the policy's signature does not fit")]
    Signature,
    /// For another network.
    #[error("the policy is for network {0}")]
    Network(NetworkId),
    /// Not above the version that is known, nor the one of two that is followed.
    #[error("policy version {version} is not above {known}, which is known: sign it under a higher number")]
    Version {
        /// The policy's.
        version: u64,
        /// The highest so far.
        known: u64,
    },
    /// With a number behind which there might be no other.
    #[error("policy version {0} is a higher number than the seconds since 1970 a month from now: count from 1")]
    Ahead(u64),
    /// The document is none.
    #[error("the policy's document: {0}")]
    Document(#[from] ParseError),
}

impl PolicyError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Decode(_) | Self::Document(_) => "policy_malformed",
            Self::Operator(_) => "policy_operator",
            Self::Signature => "policy_signature",
            Self::Network(_) => "policy_other_network",
            Self::Version { .. } => "policy_old",
            Self::Ahead(_) => "policy_ahead",
        }
    }
}

impl SignedPolicy {
    /// Most bytes of an encoded one.
    pub const LEN_MAX: usize = BODY_LEN_MAX + 128;

    /// Signs a document that parses.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn sign(
        network: NetworkId,
        version: u64,
        issued_at: UnixSecs,
        document: &str,
        operator: &PrivateKey,
    ) -> Result<Self, ParseError> {
        let body = Self::body(network, version, issued_at, document)?;
        let signature = operator.sign(Domain::Policy, &body);
        Ok(Self::assemble(body, operator.public(), signature))
    }

    /// The bytes that an operator signs ([`Domain::Policy`]) to make a version of a document that parses, where the key is elsewhere.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn body(network: NetworkId, version: u64, issued_at: UnixSecs, document: &str) -> Result<Vec<u8>, ParseError> {
        parse(document)?;
        Ok(codec::encode(&Body { network, version, issued_at, document: document.to_owned() }))
    }

    /// A body and what an operator made of it. Whether they fit, [`Self::verify`] says.
    pub const fn assemble(body: Vec<u8>, operator: PublicKey, signature: Signature) -> Self {
        Self { body, operator, signature }
    }

    /// Reads one from bytes; nothing of it is checked yet.
    ///
    /// # Errors
    /// [`PolicyError::Decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PolicyError> {
        Ok(codec::decode(bytes, Self::LEN_MAX)?)
    }

    /// The bytes of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Names one of several that were signed under one number.
    pub fn digest(&self) -> [u8; 32] {
        sha256("weir-policy-1", &[&self.to_bytes()])
    }

    /// What it says, if one of these operators of this network has said it.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn verify(&self, network: NetworkId, operators: &[PublicKey]) -> Result<Version, PolicyError> {
        if !operators.contains(&self.operator) {
            return Err(PolicyError::Operator(self.operator));
        }
        let fits = self.operator.verify(Domain::Policy, &self.body, &self.signature);
        fits.map_err(|_| PolicyError::Signature)?;
        let body: Body = codec::decode(&self.body, BODY_LEN_MAX)?;
        if body.network != network {
            return Err(PolicyError::Network(body.network));
        }
        let document = parse(&body.document)?;
        let Body { version, issued_at, document: text, .. } = body;
        Ok(Version { version, issued_at, operator: self.operator, text, document })
    }
}

/// Why a version is not in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It never was, or it is forgotten.
    #[error("version {0} of the policy is not kept here: `weir policy history` shows those that are")]
    Unknown(u64),
}

/// A version of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    version: Version,
    signed: SignedPolicy,
    digest: [u8; 32],
}

/// The versions that were in force, the newest last. It holds only what was verified when it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    versions: Vec<Kept>,
}

impl History {
    /// The version in force.
    pub fn current(&self) -> Option<&Version> {
        self.versions.last().map(|kept| &kept.version)
    }

    /// The version in force, to pass on.
    pub fn current_signed(&self) -> Option<&SignedPolicy> {
        self.versions.last().map(|kept| &kept.signed)
    }

    /// Names what is in force: two members with one digest follow the same. Zeros for none.
    pub fn digest(&self) -> [u8; 32] {
        self.versions.last().map_or([0; 32], |kept| kept.digest)
    }

    /// All that are kept, the oldest first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = &Version> {
        self.versions.iter().map(|kept| &kept.version)
    }

    /// The number that the next version must have at least.
    pub fn next_version(&self) -> u64 {
        self.current().map_or(1, |current| current.version.saturating_add(1))
    }

    /// Takes a version that is newer than all others in. Of two with one number the one with the higher digest is followed, but for one whose
    /// operator is an operator no more. The oldest goes when there are [`HISTORY_MAX`].
    ///
    /// # Errors
    /// [`PolicyError`]; then the version before stays in force.
    pub fn apply(
        &mut self,
        signed: SignedPolicy,
        network: NetworkId,
        operators: &[PublicKey],
        now: UnixSecs,
    ) -> Result<&Version, PolicyError> {
        let version = signed.verify(network, operators)?;
        if version.version > now.plus(VERSION_AHEAD_MAX).0 {
            return Err(PolicyError::Ahead(version.version));
        }
        // Others do not take what is in force from us any more, so it must not stand in the way of what they do take.
        let is_displaced = self.current().is_some_and(|current| !operators.contains(&current.operator));
        self.take(version, signed, is_displaced)
    }

    /// `is_displaced`: any other of its number goes before the one in force.
    fn take(&mut self, version: Version, signed: SignedPolicy, is_displaced: bool) -> Result<&Version, PolicyError> {
        // Versions count from 1: 0 is what a member says that has none.
        let known = self.current().map_or(0, |current| current.version);
        let digest = signed.digest();
        let is_followed = version.version == known && known > 0 && (is_displaced || digest > self.digest());
        if version.version <= known && !is_followed {
            return Err(PolicyError::Version { version: version.version, known });
        }
        if is_followed {
            self.versions.pop();
        }
        if self.versions.len() == HISTORY_MAX {
            self.versions.remove(0);
        }
        self.versions.push(Kept { version, signed, digest });
        // It was pushed just now.
        Ok(&self.versions[self.versions.len() - 1].version)
    }

    /// Takes our own copy of a version back, which was verified when it came. Who signs policy may have changed since; what is in force stays
    /// so until an operator signs the next one, whether this node was started again or not.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn keep(&mut self, signed: SignedPolicy, network: NetworkId) -> Result<&Version, PolicyError> {
        let version = signed.verify(network, &[signed.operator])?;
        self.take(version, signed, false)
    }

    /// The document of an earlier version, to be signed again under a new number.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn text_of(&self, version: u64) -> Result<&str, HistoryError> {
        let found = self.versions().find(|kept| kept.version == version);
        found.map(|kept| kept.text.as_str()).ok_or(HistoryError::Unknown(version))
    }
}
