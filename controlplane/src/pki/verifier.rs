//! Whether a chain of certificates makes its holder a member.
//!
//! ```text
//!  chain  = leaf ‖ issuer            what is above comes from the bundle, never from the peer
//!
//!  leaf is read ─▸ time, with grace ─▸ path to a root (webpki)        ─▸ network ─▸ node id ─▸ node revoked?
//!                                       └ each path: one issuer, not revoked, and addresses within those above (RFC 3779)
//! ```
//!
//! webpki judges signatures, times, names and uses, and knows nothing of addresses, of node ids and of our lists: those are judged here.
//! Roots have no end of their own (RFC 5280 §6.1.1 d): a root counts while the bundle names it. Within the grace period the path is judged
//! at the leaf's last second, so an issuer that was good then is good enough. Revocation is judged now, always.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::bundle::Bundle;
use super::certificate::{CertificateError, LeafFields, read_authority, read_leaf};
use super::id::{KeyId, NetworkId, NodeId, Nonce};
use super::key::PublicKey;
use super::resources::{IpBlocks, Resources, ResourcesError};
use super::revocation::RevocationSet;
use crate::time::UnixSecs;

/// Certificates that a peer may show: its own and its issuer's.
pub const CHAIN_LEN_MAX: usize = 2;

/// A member, as a verified certificate describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its identity key.
    pub identity: PublicKey,
    /// What the issuer added to the id.
    pub nonce: Nonce,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub prefixes: Resources,
    /// Its groups.
    pub groups: Vec<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// Who certified it.
    pub issuer: KeyId,
    /// The certificate's first second.
    pub not_before: UnixSecs,
    /// The certificate's last second, without grace.
    pub not_after: UnixSecs,
    /// The certificate has ended and is accepted for a while all the same.
    pub in_grace: bool,
}

impl Member {
    /// The member of a leaf. Says nothing about whether to believe it: for chains that [`verify`] has accepted, as those of an established
    /// connection.
    pub fn of_leaf(leaf: LeafFields, now: UnixSecs) -> Self {
        Self {
            node: leaf.node,
            identity: leaf.identity,
            nonce: leaf.nonce,
            name: leaf.name,
            prefixes: leaf.prefixes,
            groups: leaf.groups,
            roles: leaf.roles,
            issuer: leaf.issuer,
            not_before: leaf.validity.not_before,
            not_after: leaf.validity.not_after,
            in_grace: now > leaf.validity.not_after,
        }
    }
}

/// Which certificate of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member's.
    Leaf,
    /// Its issuer's.
    Issuer,
    /// The root's.
    Root,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf => "member",
            Self::Issuer => "issuer",
            Self::Root => "root",
        })
    }
}

/// Why a chain makes nobody a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// More certificates than a chain may have.
    #[error("{0} certificates; a chain has at most {CHAIN_LEN_MAX}, the member's and its issuer's")]
    ChainTooLong(usize),
    /// A certificate that cannot be read, or is not one of ours.
    #[error("the {0}'s certificate: {1}")]
    Certificate(Step, CertificateError),
    /// Keys or signatures that are not Ed25519.
    #[error("a key or signature in the chain is not Ed25519")]
    Algorithm,
    /// The certificate is not valid yet.
    #[error("the member's certificate is valid from {0} only; is the clock right?")]
    NotYetValid(UnixSecs),
    /// The certificate has ended, and so has its grace.
    #[error("the member's certificate ended at {0}, and its grace is over; the member must renew it")]
    Expired(UnixSecs),
    /// No root of the bundle is above it.
    #[error("no issuer that a root of this network certified")]
    UnknownIssuer,
    /// A signature does not fit.
    #[error("a signature in the chain does not fit")]
    BadSignature,
    /// The issuer's certificate is not valid yet.
    #[error("the issuer's certificate is not valid yet; is the clock right?")]
    IssuerNotYetValid,
    /// The issuer's certificate has ended.
    #[error("the issuer's certificate had ended; the issuer needs a new one: weir ca renew-issuer")]
    IssuerExpired,
    /// A certificate is used for what it is not for.
    #[error("a certificate in the chain is used for what it is not for")]
    Usage,
    /// Not exactly one issuer between member and root.
    #[error("between member and root stands exactly one issuer")]
    PathLength,
    /// A critical extension that nobody here knows.
    #[error("a certificate in the chain has a critical extension that is not known here")]
    CriticalExtension,
    /// Another objection to the path.
    #[error("the chain: {0}")]
    Path(webpki::Error),
    /// The issuer was revoked.
    #[error("the issuer {0} was revoked")]
    IssuerRevoked(KeyId),
    /// A certificate does not say which addresses it grants.
    #[error("the {0}'s certificate says nothing about addresses (RFC 3779)")]
    ResourcesMissing(Step),
    /// What it says about addresses cannot be read.
    #[error("the {0}'s certificate: {1}")]
    ResourcesMalformed(Step, ResourcesError),
    /// A certificate grants more than the one above it.
    #[error("the {0}'s certificate grants {1}, and the one above does not")]
    ResourcesExceeded(Step, Resources),
    /// The certificate is for another network.
    #[error("a member of the network {0}, not of this one")]
    OtherNetwork(NetworkId),
    /// The node id is not that of identity and nonce.
    #[error("the certificate claims the node id {claimed}, and identity and nonce make {computed}")]
    NodeIdMismatch {
        /// As it stands there.
        claimed: NodeId,
        /// As it is.
        computed: NodeId,
    },
    /// The member was revoked.
    #[error("the member {0} was revoked")]
    NodeRevoked(NodeId),
    /// A member, but not the one that was dialled.
    #[error("{found} answered where {expected} was dialled")]
    OtherNode {
        /// Who was dialled.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
}

impl VerifyError {
    /// The names of all causes, in the order of the counters.
    pub const NAMES: [&str; 22] = [
        "no_certificate",
        "chain_too_long",
        "certificate",
        "algorithm",
        "not_yet_valid",
        "expired",
        "unknown_issuer",
        "bad_signature",
        "issuer_not_yet_valid",
        "issuer_expired",
        "usage",
        "path_length",
        "critical_extension",
        "path",
        "issuer_revoked",
        "resources_missing",
        "resources_malformed",
        "resources_exceeded",
        "other_network",
        "node_id_mismatch",
        "node_revoked",
        "other_node",
    ];

    /// The cause's name, for a counter.
    pub const fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// The cause's place among [`Self::NAMES`].
    pub(crate) const fn index(&self) -> usize {
        match self {
            Self::NoCertificate => 0,
            Self::ChainTooLong(_) => 1,
            Self::Certificate(..) => 2,
            Self::Algorithm => 3,
            Self::NotYetValid(_) => 4,
            Self::Expired(_) => 5,
            Self::UnknownIssuer => 6,
            Self::BadSignature => 7,
            Self::IssuerNotYetValid => 8,
            Self::IssuerExpired => 9,
            Self::Usage => 10,
            Self::PathLength => 11,
            Self::CriticalExtension => 12,
            Self::Path(_) => 13,
            Self::IssuerRevoked(_) => 14,
            Self::ResourcesMissing(_) => 15,
            Self::ResourcesMalformed(..) => 16,
            Self::ResourcesExceeded(..) => 17,
            Self::OtherNetwork(_) => 18,
            Self::NodeIdMismatch { .. } => 19,
            Self::NodeRevoked(_) => 20,
            Self::OtherNode { .. } => 21,
        }
    }

    fn of_certificate(step: Step, error: CertificateError) -> Self {
        match error {
            CertificateError::NoResources => Self::ResourcesMissing(step),
            CertificateError::Resources(error) => Self::ResourcesMalformed(step, error),
            CertificateError::Algorithm => Self::Algorithm,
            other => Self::Certificate(step, other),
        }
    }

    /// What webpki objects to. The leaf's own times were judged before, so they are the issuer's here.
    fn of_path(error: webpki::Error) -> Self {
        match error {
            webpki::Error::UnknownIssuer => Self::UnknownIssuer,
            webpki::Error::InvalidSignatureForPublicKey => Self::BadSignature,
            webpki::Error::CertNotValidYet { .. } => Self::IssuerNotYetValid,
            webpki::Error::CertExpired { .. } => Self::IssuerExpired,
            webpki::Error::CaUsedAsEndEntity
            | webpki::Error::EndEntityUsedAsCa
            | webpki::Error::RequiredEkuNotFoundContext(_)
            | webpki::Error::EmptyEkuExtension => Self::Usage,
            webpki::Error::PathLenConstraintViolated | webpki::Error::MaximumPathDepthExceeded => Self::PathLength,
            webpki::Error::UnsupportedCriticalExtension => Self::CriticalExtension,
            webpki::Error::SignatureAlgorithmMismatch
            | webpki::Error::UnsupportedSignatureAlgorithmContext(_)
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::Algorithm,
            // The library's list is open.
            other => Self::Path(other),
        }
    }
}

/// Judges a chain: the member's certificate first, its issuer's after it.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    network: NetworkId,
    revoked: &RevocationSet,
    now: UnixSecs,
) -> Result<Member, VerifyError> {
    verify_by(webpki::aws_lc_rs::ED25519, chain, bundle, network, revoked, now)
}

/// The same, with this Ed25519 for the signatures under certificates.
///
/// # Errors
/// [`VerifyError`].
pub(super) fn verify_by(
    ed25519: &dyn SignatureVerificationAlgorithm,
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    network: NetworkId,
    revoked: &RevocationSet,
    now: UnixSecs,
) -> Result<Member, VerifyError> {
    let (leaf_der, above) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > CHAIN_LEN_MAX {
        return Err(VerifyError::ChainTooLong(chain.len()));
    }
    let leaf = read_leaf(leaf_der).map_err(|error| VerifyError::of_certificate(Step::Leaf, error))?;
    let validity = leaf.validity;
    if now < validity.not_before {
        return Err(VerifyError::NotYetValid(validity.not_before));
    }
    let grace = Duration::from_secs(u64::from(bundle.parameters.grace_secs));
    if now > validity.not_after.plus(grace) {
        return Err(VerifyError::Expired(validity.not_after));
    }
    let judged_at = now.min(validity.not_after);
    verify_path(ed25519, (leaf_der, above), &leaf, bundle, revoked, judged_at)?;

    if leaf.network != network {
        return Err(VerifyError::OtherNetwork(leaf.network));
    }
    let computed = NodeId::derive(network, &leaf.identity.0, leaf.nonce);
    if computed != leaf.node {
        return Err(VerifyError::NodeIdMismatch { claimed: leaf.node, computed });
    }
    if revoked.is_node_revoked(leaf.node) {
        return Err(VerifyError::NodeRevoked(leaf.node));
    }
    Ok(Member::of_leaf(leaf, now))
}

/// Looks for a path from the leaf to a root of the bundle that we have nothing against. Issuers come from the peer, who may have a newer one
/// than our bundle, and from the bundle, which may have one that a newer root certified than the peer's.
fn verify_path(
    ed25519: &dyn SignatureVerificationAlgorithm,
    (leaf_der, above): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    leaf: &LeafFields,
    bundle: &Bundle,
    revoked: &RevocationSet,
    at: UnixSecs,
) -> Result<(), VerifyError> {
    let leaf_der = CertificateDer::from(leaf_der.as_ref());
    let end_entity = EndEntityCert::try_from(&leaf_der).map_err(VerifyError::of_path)?;
    let issuers: Vec<CertificateDer<'_>> = above
        .iter()
        .map(AsRef::as_ref)
        .chain(bundle.issuers.iter().map(Vec::as_slice))
        .map(CertificateDer::from)
        .collect();
    let roots: Vec<CertificateDer<'_>> = bundle.roots.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let mut anchors: Vec<TrustAnchor<'_>> = Vec::with_capacity(roots.len());
    for root in &roots {
        anchors.push(webpki::anchor_from_trusted_cert(root).map_err(VerifyError::of_path)?);
    }

    let objection = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let root = anchors.iter().zip(&roots).find(|(anchor, _)| *anchor == path.anchor()).map(|(_, root)| root);
        judge_path(path, root, leaf, bundle, revoked).map_err(|error| {
            // The first is kept: an issuer that the peer shows comes before those of the bundle.
            objection.borrow_mut().get_or_insert(error);
            webpki::Error::UnknownIssuer
        })
    };
    let found = end_entity.verify_for_usage(
        &[ed25519],
        &anchors,
        &issuers,
        UnixTime::since_unix_epoch(Duration::from_secs(at.0)),
        KeyUsage::client_auth(),
        None,
        Some(&judge),
    );
    match found {
        Ok(_) => Ok(()),
        Err(error) => Err(objection.take().unwrap_or_else(|| VerifyError::of_path(error))),
    }
}

/// What webpki cannot judge of a path that it has nothing against.
fn judge_path(
    path: &VerifiedPath<'_>,
    root: Option<&CertificateDer<'_>>,
    leaf: &LeafFields,
    bundle: &Bundle,
    revoked: &RevocationSet,
) -> Result<(), VerifyError> {
    let mut between = path.intermediate_certificates();
    let (Some(issuer), None) = (between.next(), between.next()) else { return Err(VerifyError::PathLength) };
    let issuer = read_authority(&issuer.der()).map_err(|error| VerifyError::of_certificate(Step::Issuer, error))?;
    let id = issuer.public.id();
    if bundle.is_revoked(id) || revoked.is_issuer_revoked(id) {
        return Err(VerifyError::IssuerRevoked(id));
    }
    let root = root.ok_or(VerifyError::UnknownIssuer)?;
    let root = read_authority(root).map_err(|error| VerifyError::of_certificate(Step::Root, error))?;
    // There is nothing above a root to inherit from.
    let IpBlocks::Explicit(all) = root.blocks else { return Err(VerifyError::ResourcesMissing(Step::Root)) };
    let granted = match issuer.blocks {
        IpBlocks::Inherit => all,
        IpBlocks::Explicit(granted) if all.contains(&granted) => granted,
        IpBlocks::Explicit(beyond) => return Err(VerifyError::ResourcesExceeded(Step::Issuer, beyond)),
    };
    if granted.contains(&leaf.prefixes) {
        Ok(())
    } else {
        Err(VerifyError::ResourcesExceeded(Step::Leaf, leaf.prefixes.clone()))
    }
}

#[cfg(test)]
mod tests;
