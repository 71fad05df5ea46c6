//! Certificates (RFC 5280): what roots, issuers and members carry, written and read in one profile.
//!
//! ```text
//!  root     O = network, CN = root A, serialNumber = key id    CA, path length 1    every address
//!    └─ issuer   O = network, CN = issuer, serialNumber = key id    CA, path length 0    what it may grant, or inherit
//!         └─ leaf   O = network, CN = member's name, serialNumber = key id    client and server    exactly its addresses
//!              DNS  node id in base32, one label
//!              URI  weir:network/… (base32)  weir:identity/… (base32)  weir:nonce/… (hex)  weir:group/NAME  weir:role/NAME
//! ```
//!
//! All keys are Ed25519 (RFC 8410). Addresses stand in the extension of RFC 3779, which is not critical, because webpki and GnuTLS refuse it
//! when it is; our own verifier demands it. What a leaf says of its member are names, not an extension of ours, so every tool shows it and no
//! object identifier had to be registered. Reading is as narrow as writing: what the profile does not have is refused.
//!
//! Nothing here judges whether a certificate is to be believed; that is [`super::verifier`]'s.

pub(crate) mod build;
mod parse;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(super) use self::build::{authority, moment};
pub use self::build::{issuer_certificate, leaf_certificate, root_certificate};
pub use self::parse::{public_key, read_authority, read_leaf, validity};

use super::id::{KeyId, NetworkId, NodeId, Nonce};
use super::key::PublicKey;
use super::name::NameError;
use super::resources::{IpBlocks, Resources, ResourcesError};
use crate::random::Random;
use crate::time::UnixSecs;

/// Longest certificate that is read. Ours to choose: the largest leaf that our own limits allow has less than 5 KiB.
pub const CERTIFICATE_LEN_MAX: usize = 8 * 1024;
/// Most groups of a member: as many as its statement has room for.
pub const GROUPS_MAX: usize = super::statement::GROUPS_MAX;
/// Most roles of a member. Ours to choose: there are four.
pub const ROLES_MAX: usize = 8;
/// How far a leaf's begin lies before its making, so that a member whose clock is behind accepts it.
pub const LEAF_BACKDATE_SECS: u64 = 3_600;

/// Why a certificate cannot be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// More bytes than a certificate may have.
    #[error("a certificate of {0} bytes; at most {CERTIFICATE_LEN_MAX} are read")]
    TooLong(usize),
    /// Not a certificate.
    #[error("the bytes are no certificate")]
    Malformed,
    /// A certificate, but its key or signature is not Ed25519.
    #[error("only Ed25519 is used here, for keys and for signatures")]
    Algorithm,
    /// A certificate that does not have what the profile demands, or has it twice.
    #[error("the certificate has no proper {0}")]
    Profile(&'static str),
    /// No address blocks (RFC 3779).
    #[error("the certificate says nothing about addresses (RFC 3779)")]
    NoResources,
    /// Address blocks that cannot be read.
    #[error("the certificate's address blocks: {0}")]
    Resources(#[from] ResourcesError),
    /// A name that is no label.
    #[error("{0:?} cannot be a {1}: {2}")]
    Name(String, &'static str, NameError),
    /// More groups or roles than a member may have.
    #[error("more than {1} {0}")]
    TooMany(&'static str, usize),
    /// A moment that a certificate cannot express, or an end before the begin.
    #[error("a certificate cannot be valid from {0} to {1}")]
    Validity(UnixSecs, UnixSecs),
    /// It would be valid longer than the certificate that signs it.
    #[error("valid to {0}, which is after the signing certificate's end, {1}: renew that one first")]
    Outlives(UnixSecs, UnixSecs),
    /// The signing key is another than the signing certificate's.
    #[error("the key has the id {0} and the signing certificate is for {1}")]
    OtherKey(KeyId, KeyId),
    /// It would grant what the signing certificate does not.
    #[error("the signing certificate does not grant {0}")]
    NotGranted(Resources),
    /// The identity key may not be a leaf key as well.
    #[error("the identity key was given as leaf key; a leaf key is fresh and for TLS only")]
    IdentityInTls,
    /// The library refused to write it.
    #[error("the certificate cannot be written: {0}")]
    Write(rcgen::Error),
}

/// From when to when, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Validity {
    /// The first second.
    pub not_before: UnixSecs,
    /// The last second.
    pub not_after: UnixSecs,
}

/// A serial number: random, positive, of one length (RFC 5280 §4.1.2.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A fresh one.
    pub fn draw(random: &mut impl Random) -> Self {
        Self::from_bytes(random.array())
    }

    /// The number of these bytes, after the two bits that make it positive and keep its length.
    pub const fn from_bytes(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Self(bytes)
    }

    /// Big-endian, as in the certificate.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// One that was read.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = <[u8; 16]>::try_from(bytes).ok()?;
        (bytes[0] & 0xc0 == 0x40).then_some(Self(bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a root's certificate is to say.
#[derive(Clone, Debug)]
pub struct RootSpec<'a> {
    /// Which of the roots: "A" or "B", or what follows them in a rotation.
    pub label: &'a str,
    /// The network's name.
    pub network_name: &'a str,
    /// From when to when.
    pub validity: Validity,
    /// Its number.
    pub serial: Serial,
}

/// What an issuer's certificate is to say.
#[derive(Clone, Debug)]
pub struct IssuerSpec {
    /// The issuer's key.
    pub public: PublicKey,
    /// What it may grant.
    pub blocks: IpBlocks,
    /// From when to when.
    pub validity: Validity,
    /// Its number.
    pub serial: Serial,
}

/// What a member's certificate is to say.
#[derive(Clone, Debug)]
pub struct LeafSpec<'a> {
    /// The key for TLS, fresh at each renewal.
    pub leaf_public: PublicKey,
    /// The network.
    pub network: NetworkId,
    /// The member's identity key.
    pub identity: PublicKey,
    /// What the issuer added to the node id.
    pub nonce: Nonce,
    /// The member's name, one label.
    pub name: &'a str,
    /// The member's addresses, exactly.
    pub prefixes: Resources,
    /// Its groups.
    pub groups: &'a [String],
    /// Its roles.
    pub roles: &'a [String],
    /// From when to when; see [`LEAF_BACKDATE_SECS`].
    pub validity: Validity,
    /// Its number.
    pub serial: Serial,
}

/// What a root's or an issuer's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFields {
    /// Its key.
    pub public: PublicKey,
    /// The id of the key that signed it; a root's is its own.
    pub signer: KeyId,
    /// The network's name.
    pub network_name: String,
    /// What it is: "root A", "issuer".
    pub name: String,
    /// What it grants.
    pub blocks: IpBlocks,
    /// From when to when.
    pub validity: Validity,
    /// Its number.
    pub serial: Serial,
}

/// What a member's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFields {
    /// The key for TLS.
    pub leaf_public: PublicKey,
    /// The id of the key that signed it.
    pub issuer: KeyId,
    /// The network's name.
    pub network_name: String,
    /// The network.
    pub network: NetworkId,
    /// The member's id, as the certificate claims it.
    pub node: NodeId,
    /// Its identity key.
    pub identity: PublicKey,
    /// What the issuer added to the node id.
    pub nonce: Nonce,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub prefixes: Resources,
    /// Its groups.
    pub groups: Vec<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// From when to when.
    pub validity: Validity,
    /// Its number.
    pub serial: Serial,
}

#[cfg(test)]
mod tests;
