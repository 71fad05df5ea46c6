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
use super::seen::Seen;
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
    judge(statement, network, bundle, revoked, now, |key| statement.open(key))
}

/// [`verify`] with a memory of signatures that were good.
///
/// # Errors
/// [`StatementError`].
pub fn verify_seen(
    statement: &SignedStatement,
    network: NetworkId,
    bundle: &Bundle,
    revoked: &RevocationSet,
    seen: &Seen,
    now: UnixSecs,
) -> Result<MemberStatement, StatementError> {
    judge(statement, network, bundle, revoked, now, |key| statement.open_seen(key, seen))
}

fn judge(
    statement: &SignedStatement,
    network: NetworkId,
    bundle: &Bundle,
    revoked: &RevocationSet,
    now: UnixSecs,
    open: impl FnOnce(&PublicKey) -> Result<MemberStatement, OpenError>,
) -> Result<MemberStatement, StatementError> {
    let issuer = statement.signer;
    let key = bundle.issuer(issuer).ok_or(StatementError::Stranger(issuer))?;
    if revoked.is_issuer_revoked(issuer) {
        return Err(StatementError::IssuerRevoked(issuer));
    }
    let member = open(&key)?;
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
    if now.0 > member.not_after.0.saturating_add(bundle.parameters.grace_secs.into()) {
        return Err(StatementError::Expired(member.not_after));
    }
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::{chain, key};
    use crate::pki::key::BadSignature;
    use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};

    fn statement() -> MemberStatement {
        let network = chain().network();
        let (identity, nonce) = (key(31).public(), Nonce([1; 16]));
        MemberStatement {
            network,
            node: NodeId::derive(network, &identity.0, nonce),
            identity,
            nonce,
            name: "berlin".into(),
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
            groups: vec!["edge".into()],
            ds_digest: Some([7; 32]),
            not_before: UnixSecs(1_000_000),
            not_after: UnixSecs(1_086_400),
        }
    }

    fn judged(statement: &MemberStatement, signer: u8, now: u64) -> Result<MemberStatement, StatementError> {
        let chain = chain();
        let signed = Signed::sign(statement, &key(signer));
        verify(&signed, chain.network(), chain.current(), &RevocationSet::default(), UnixSecs(now))
    }

    #[test]
    fn a_statement_is_believed_from_its_begin_to_the_end_of_grace() {
        let grace = 7 * 86_400;
        assert_eq!(judged(&statement(), 11, 999_999), Err(StatementError::NotYet(UnixSecs(1_000_000))));
        assert_eq!(judged(&statement(), 12, 1_000_000), Ok(statement()));
        assert_eq!(judged(&statement(), 11, 1_086_400 + grace), Ok(statement()));
        let ended = Err(StatementError::Expired(UnixSecs(1_086_400)));
        assert_eq!(judged(&statement(), 11, 1_086_401 + grace), ended);
    }

    #[test]
    fn a_statement_must_be_an_issuers_and_fit_itself() {
        let now = 1_000_000;
        assert_eq!(judged(&statement(), 13, now), Err(StatementError::Stranger(key(13).public().id())));
        let elsewhere = MemberStatement { network: NetworkId([1; 32]), ..statement() };
        assert_eq!(judged(&elsewhere, 11, now), Err(StatementError::OtherNetwork(NetworkId([1; 32]))));
        let stolen = MemberStatement { identity: key(32).public(), ..statement() };
        assert_eq!(judged(&stolen, 11, now), Err(StatementError::NodeId));
        let named = MemberStatement { name: "a.b".into(), ..statement() };
        assert_eq!(judged(&named, 11, now), Err(StatementError::Name(NameError::Label)));
        let mut bent = Signed::sign(&statement(), &key(11));
        bent.body[100] ^= 1;
        let chain = chain();
        let refused = verify(&bent, chain.network(), chain.current(), &RevocationSet::default(), UnixSecs(now));
        assert_eq!(refused, Err(StatementError::Open(OpenError::Signature(BadSignature))));
    }

    #[test]
    fn revocation_of_the_member_or_its_issuer_ends_belief() {
        let chain = chain();
        let judged = |what| {
            let entries = vec![Entry { what, reason: String::new(), at: UnixSecs(1) }];
            let mut revoked = RevocationSet::default();
            let list = SignedRevocationList::sign(&key(21), 1, UnixSecs(1), UnixSecs(2), entries);
            revoked.apply(list, chain.current()).unwrap();
            let signed = Signed::sign(&statement(), &key(11));
            verify(&signed, chain.network(), chain.current(), &revoked, UnixSecs(1_000_000)).unwrap_err()
        };
        let (node, issuer) = (statement().node, key(11).public().id());
        assert_eq!(judged(Revoked::Node(node)), StatementError::Revoked(node));
        assert_eq!(judged(Revoked::Issuer(issuer)), StatementError::IssuerRevoked(issuer));
    }

    #[test]
    fn the_fullest_statement_fits_its_limit() {
        let prefixes = (0..PREFIXES_MAX).map(|at| format!("fd00:{at:x}::/120").parse().unwrap()).collect();
        let groups = vec!["g".repeat(GROUP_LEN_MAX); GROUPS_MAX];
        let full = MemberStatement { name: "n".repeat(63), prefixes, groups, ..statement() };
        assert_eq!(judged(&full, 11, 1_000_000), Ok(full));
    }
}
