//! What rustls asks about the peer's certificate, passed on to the pki; the answer stays with the connection.
//!
//! One verifier serves one connection. A client shows its chain or nothing; whether nothing is enough, the link decides.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};

use crate::pki::certificate::read_leaf;
use crate::pki::id::NodeId;
use crate::pki::trust::SharedTrust;
use crate::pki::verifier::{Member, Step, VerifyError};

/// Ed25519 (RFC 8032) and nothing else.
pub(super) static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::aws_lc_rs::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::aws_lc_rs::ED25519])],
};

/// What came of a peer's chain.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A member.
    Member(Box<Member>),
    /// The id that was dialled, or any; who vouches for it was not asked.
    Unjudged,
    /// No.
    Refused(VerifyError),
}

/// What a chain is judged by.
#[derive(Clone)]
pub(super) enum Judge {
    /// The network's trust; and the id that was dialled, if we did.
    Chain { trust: SharedTrust, dialled: Option<NodeId> },
    /// The id that was dialled, alone.
    IdOnly { dialled: NodeId },
    /// Nothing but that it is a certificate of ours in its form.
    Later,
}

impl Judge {
    fn judge(&self, leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>]) -> Verdict {
        match self {
            Self::Chain { trust, dialled } => {
                let chain: Vec<CertificateDer<'_>> =
                    std::iter::once(leaf).chain(above).map(|der| CertificateDer::from(der.as_ref())).collect();
                match trust.verify(&chain, *dialled) {
                    Ok(member) => Verdict::Member(Box::new(member)),
                    Err(error) => Verdict::Refused(error),
                }
            }
            Self::IdOnly { dialled } => match read_leaf(leaf) {
                Ok(fields) => {
                    let found = NodeId::derive(fields.network, &fields.identity.0, fields.nonce);
                    if found == *dialled {
                        Verdict::Unjudged
                    } else {
                        Verdict::Refused(VerifyError::OtherNode { expected: *dialled, found })
                    }
                }
                Err(error) => Verdict::Refused(VerifyError::Certificate(Step::Leaf, error)),
            },
            Self::Later => match read_leaf(leaf) {
                Ok(_) => Verdict::Unjudged,
                Err(error) => Verdict::Refused(VerifyError::Certificate(Step::Leaf, error)),
            },
        }
    }
}

/// Asks the judge once, and keeps the verdict.
pub(super) struct PeerVerifier {
    pub(super) judge: Judge,
    pub(super) verdict: Arc<OnceLock<Verdict>>,
}

impl std::fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerVerifier")
    }
}

impl PeerVerifier {
    fn ask(&self, leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>]) -> Result<(), Error> {
        match self.verdict.get_or_init(|| self.judge.judge(leaf, above)) {
            Verdict::Member(_) | Verdict::Unjudged => Ok(()),
            Verdict::Refused(error) => Err(Error::InvalidCertificate(tls_error(error))),
        }
    }
}

/// rustls makes the alert from its own error, so that one is chosen whose alert tells an honest peer what to do.
fn tls_error(error: &VerifyError) -> CertificateError {
    match error {
        VerifyError::Expired(_) | VerifyError::IssuerExpired => CertificateError::Expired,
        VerifyError::NotYetValid(_) | VerifyError::IssuerNotYetValid => CertificateError::NotValidYet,
        VerifyError::NodeRevoked(_) | VerifyError::IssuerRevoked(_) => CertificateError::Revoked,
        VerifyError::UnknownIssuer | VerifyError::OtherNetwork(_) => CertificateError::UnknownIssuer,
        VerifyError::OtherNode { .. } => CertificateError::ApplicationVerificationFailure,
        VerifyError::NoCertificate
        | VerifyError::ChainTooLong(_)
        | VerifyError::Certificate(..)
        | VerifyError::Algorithm
        | VerifyError::BadSignature
        | VerifyError::Usage
        | VerifyError::PathLength
        | VerifyError::CriticalExtension
        | VerifyError::Path(_)
        | VerifyError::ResourcesMissing(_)
        | VerifyError::ResourcesMalformed(..)
        | VerifyError::ResourcesExceeded(..)
        | VerifyError::NodeIdMismatch { .. } => CertificateError::BadEncoding,
    }
}

fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.ask(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.ask(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
