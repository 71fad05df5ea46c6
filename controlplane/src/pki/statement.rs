//! The member statement: what a certificate says, small enough to travel with every record.
//!
//! ```text
//!  body: network (32) │ node (32) │ identity (32) │ nonce (16) │ name │ prefixes │ groups │ DS digest? │ validity
//!  signer: issuer's key id (20) │ signature (64)
//! ```
//!
//! A store verifies with it a signer that it never met, without X.509.

use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;

use super::bundle::Bundle;
use super::id::{KeyId, NetworkId, NodeId, Nonce};
use super::key::{Domain, PublicKey};
use super::name::{NameError, check_member_name};
use super::revocation::RevocationSet;
use super::signed::{Document, OpenError, Signed};
use crate::time::UnixSecs;

/// Longest body: a record of 4 KiB has room for it.
pub const BODY_LEN_MAX: usize = 1024;
/// Prefixes of one member, its own address included.
pub const PREFIXES_MAX: usize = 16;
/// Groups of one member.
pub const GROUPS_MAX: usize = 8;
/// Longest name of a group or role.
pub const GROUP_LEN_MAX: usize = 32;

/// What an issuer says of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatement {
    /// The network.
    pub network: NetworkId,
    /// The member.
    pub node: NodeId,
    /// Its identity key.
    pub identity: PublicKey,
    /// What makes the one of the other.
    pub nonce: Nonce,
    /// Its name.
    pub name: String,
    /// What it may announce and send from.
    pub prefixes: Vec<Prefix>,
    /// Its groups.
    pub groups: Vec<String>,
    /// SHA-256 of its zone's key-signing key, once it has one (RFC 4509).
    pub ds_digest: Option<[u8; 32]>,
    /// Valid from.
    pub not_before: UnixSecs,
    /// Valid until.
    pub not_after: UnixSecs,
}

impl Document for MemberStatement {
    const DOMAIN: Domain = Domain::Statement;
    const BODY_LEN_MAX: usize = BODY_LEN_MAX;
}

/// A statement as it travels.
pub type SignedStatement = Signed<MemberStatement>;

/// Why a statement is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// No issuer of the bundle signed it.
    #[error("{0} issues nothing in this network")]
    Stranger(KeyId),
    /// Its issuer is revoked by a list.
    #[error("the issuer {0} is revoked")]
    IssuerRevoked(KeyId),
    /// It is not what its issuer signed.
    #[error("a member statement: {0}")]
    Open(#[from] OpenError),
    /// It belongs to another network.
    #[error("a member statement of network {0}")]
    OtherNetwork(NetworkId),
    /// The node id is not the one of key and nonce.
    #[error("a member statement's node id is not made of its key")]
    NodeId,
    /// The name is none.
    #[error("a member statement: {0}")]
    Name(#[from] NameError),
    /// The member is revoked.
    #[error("{0} is revoked")]
    Revoked(NodeId),
    /// Not valid yet.
    #[error("a member statement that begins at {0}")]
    NotYet(UnixSecs),
    /// Not valid any more, grace included.
    #[error("a member statement that ended at {0}")]
    Expired(UnixSecs),
}

/// Verifies a statement. A store accepts it until the end of the grace that the bundle grants, as peers do with certificates.
///
/// # Errors
/// [`StatementError`].
pub fn verify(
    statement: &SignedStatement,
    network: NetworkId,
    bundle: &Bundle,
    revoked: &RevocationSet,
    now: UnixSecs,
) -> Result<MemberStatement, StatementError> {
    let issuer = statement.signer;
    let key = bundle.issuer(issuer).ok_or(StatementError::Stranger(issuer))?;
    if revoked.is_issuer_revoked(issuer) {
        return Err(StatementError::IssuerRevoked(issuer));
    }
    let member = statement.open(&key)?;
    if member.network != network {
        return Err(StatementError::OtherNetwork(member.network));
    }
    if member.node != NodeId::derive(network, &member.identity.0, member.nonce) {
        return Err(StatementError::NodeId);
    }
    check_member_name(&member.name)?;
    if revoked.is_node_revoked(member.node) {
        return Err(StatementError::Revoked(member.node));
    }
    if now < member.not_before {
        return Err(StatementError::NotYet(member.not_before));
    }
    if now.0 >= member.not_after.0.saturating_add(bundle.parameters.grace_secs.into()) {
        return Err(StatementError::Expired(member.not_after));
    }
    Ok(member)
}
