//! Whom TLS believes: a snapshot of bundle and revocations, and the two verifiers that ask it.
//!
//! ```text
//!  node machine ──replace, set_now──▸ SharedTrust ◂──verify── DialVerifier    a dialled server must be the node that was dialled
//!                                         │       ◂──verify── AcceptVerifier  a client is a member, or shows no certificate (join)
//!                                         └─ Checks: one counter a cause
//! ```
//!
//! Both take TLS 1.3 with Ed25519 only, look at no server name, and name no authority that they would like: a handshake says nothing of the
//! network before it is encrypted. Validity is judged by the network's clock that the node machine sets here, never by the time that the TLS
//! library offers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::bundle::Bundle;
use super::id::{NetworkId, NodeId};
use super::revocation::RevocationSet;
use super::verifier::{Member, VerifyError, verify};
use crate::time::UnixSecs;

/// What holds at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The network.
    pub network: NetworkId,
    /// The bundle that holds.
    pub bundle: Arc<Bundle>,
    /// What was revoked.
    pub revoked: Arc<RevocationSet>,
}

/// How many chains were accepted, and how many refused for each cause.
#[derive(Debug, Default)]
pub struct Checks {
    accepted: AtomicU64,
    in_grace: AtomicU64,
    refused: [AtomicU64; VerifyError::NAMES.len()],
}

impl Checks {
    fn count(&self, result: &Result<Member, VerifyError>) {
        let counter = match result {
            Ok(member) if member.in_grace => &self.in_grace,
            Ok(_) => &self.accepted,
            Err(error) => &self.refused[error.index()],
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Chains that were accepted, without those in grace.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Chains that had ended and were accepted all the same.
    pub fn in_grace(&self) -> u64 {
        self.in_grace.load(Ordering::Relaxed)
    }

    /// Every cause of refusal by [`VerifyError::name`], and how often it was one.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        VerifyError::NAMES.into_iter().zip(self.refused.iter().map(|counter| counter.load(Ordering::Relaxed)))
    }
}

#[derive(Debug)]
struct Shared {
    trust: RwLock<Arc<Trust>>,
    now: AtomicU64,
    proved: AtomicU64,
    checks: Checks,
}

/// The trust that holds now, for the node machine that changes it and the handshakes that ask it.
#[derive(Clone, Debug)]
pub struct SharedTrust(Arc<Shared>);

impl SharedTrust {
    /// Begins with this trust at this moment of the network's clock.
    pub fn new(trust: Trust, now: UnixSecs) -> Self {
        let trust = RwLock::new(Arc::new(trust));
        Self(Arc::new(Shared {
            trust,
            now: AtomicU64::new(now.0),
            proved: AtomicU64::new(0),
            checks: Checks::default(),
        }))
    }

    /// What holds now.
    pub fn load(&self) -> Arc<Trust> {
        // A snapshot is replaced whole, so one that a panicking thread left is as good as any.
        Arc::clone(&self.0.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another trust in its place; handshakes that go on ask the new one.
    pub fn replace(&self, trust: Trust) {
        *self.0.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }

    /// The network's clock as it was set last.
    pub fn now(&self) -> UnixSecs {
        UnixSecs(self.0.now.load(Ordering::Relaxed))
    }

    /// The latest begin of a chain that was refused for nothing but that: no issuer certifies what is still to come, so it is at least that
    /// late.
    pub fn proved(&self) -> Option<UnixSecs> {
        Some(UnixSecs(self.0.proved.load(Ordering::Relaxed))).filter(|proved| proved.0 > 0)
    }

    /// Sets the network's clock.
    pub fn set_now(&self, now: UnixSecs) {
        self.0.now.store(now.0, Ordering::Relaxed);
    }

    /// What was accepted and refused so far.
    pub fn checks(&self) -> &Checks {
        &self.0.checks
    }

    /// Judges a chain, and counts the judgement. `expected` is the node that was dialled, if one was.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], expected: Option<NodeId>) -> Result<Member, VerifyError> {
        let trust = self.load();
        let result =
            verify(chain, &trust.bundle, trust.network, &trust.revoked, self.now()).and_then(|member| match expected {
                Some(expected) if expected != member.node => {
                    Err(VerifyError::OtherNode { expected, found: member.node })
                }
                Some(_) | None => Ok(member),
            });
        if let Err(VerifyError::NotYetValid(at)) = result
            && verify(chain, &trust.bundle, trust.network, &trust.revoked, at).is_ok()
        {
            self.0.proved.fetch_max(at.0, Ordering::Relaxed);
        }
        self.0.checks.count(&result);
        result
    }

    fn verify_tls(
        &self,
        end_entity: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        expected: Option<NodeId>,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(above).map(|der| CertificateDer::from(der.as_ref())).collect();
        self.verify(&chain, expected).map(drop).map_err(tls_error)
    }
}

/// For the TLS library's own uses of time; certificates are judged by [`SharedTrust::now`] in any case.
impl TimeProvider for SharedTrust {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now().0)))
    }
}

/// What the peer is told by an alert: enough for an honest one to know what to do.
fn tls_error(error: VerifyError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        VerifyError::Expired(_) | VerifyError::IssuerExpired => CertificateError::Expired,
        VerifyError::NotYetValid(_) | VerifyError::IssuerNotYetValid => CertificateError::NotValidYet,
        VerifyError::NodeRevoked(_) | VerifyError::IssuerRevoked(_) => CertificateError::Revoked,
        VerifyError::UnknownIssuer => CertificateError::UnknownIssuer,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

static ED25519_ONLY: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::aws_lc_rs::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::aws_lc_rs::ED25519])],
};

fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

/// Verifies the server that was dialled: it must be this node.
pub struct DialVerifier {
    trust: SharedTrust,
    expected: NodeId,
}

impl DialVerifier {
    /// For one dialled node.
    pub const fn new(trust: SharedTrust, expected: NodeId) -> Self {
        Self { trust, expected }
    }
}

impl fmt::Debug for DialVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DialVerifier({})", self.expected)
    }
}

impl ServerCertVerifier for DialVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.verify_tls(end_entity, intermediates, Some(self.expected))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &ED25519_ONLY)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ED25519_ONLY.supported_schemes()
    }
}

/// Verifies clients: members, if they show a certificate. Whoever shows none may join and nothing else, which the connection's owner sees to.
pub struct AcceptVerifier {
    trust: SharedTrust,
}

impl AcceptVerifier {
    /// For all who dial us.
    pub const fn new(trust: SharedTrust) -> Self {
        Self { trust }
    }
}

impl fmt::Debug for AcceptVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AcceptVerifier")
    }
}

impl ClientCertVerifier for AcceptVerifier {
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
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.verify_tls(end_entity, intermediates, None)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &ED25519_ONLY)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ED25519_ONLY.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{AlertDescription, ClientConfig, ClientConnection, ServerConfig, ServerConnection};

    use super::*;
    use crate::pki::fixture::{DAY, NETWORK, NOW, Network, leaf_key, node};
    use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};

    type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

    fn shared(network: &Network) -> SharedTrust {
        let bundle = Arc::new(network.bundle.clone());
        SharedTrust::new(Trust { network: NETWORK, bundle, revoked: Arc::default() }, NOW)
    }

    fn identity(network: &Network, member: u8) -> Identity {
        let key = PrivatePkcs8KeyDer::from(leaf_key(member).to_pkcs8().unwrap().to_vec());
        (network.chain(member), key.into())
    }

    /// A handshake in memory between a client with or without a certificate and member 1. Both sides' verdicts.
    fn shake(
        trust: &SharedTrust,
        expected: NodeId,
        client: Option<Identity>,
    ) -> Result<ServerConnection, rustls::Error> {
        let network = Network::new();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls13 = &[&rustls::version::TLS13];
        let dial = Arc::new(DialVerifier::new(trust.clone(), expected));
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(trust.clone()));
        let builder = builder.with_protocol_versions(tls13).unwrap().dangerous().with_custom_certificate_verifier(dial);
        let config = match client {
            Some((chain, key)) => {
                // Without the library's own look at whether key and certificate fit.
                let key = provider.key_provider.load_private_key(key).unwrap();
                let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
                builder.with_client_cert_resolver(Arc::new(certified))
            }
            None => builder.with_no_client_auth(),
        };
        let (chain, key) = identity(&network, 1);
        let server = ServerConfig::builder_with_details(provider, Arc::new(trust.clone()));
        let accept = Arc::new(AcceptVerifier::new(trust.clone()));
        let server = server.with_protocol_versions(tls13).unwrap().with_client_cert_verifier(accept);
        let server = server.with_single_cert(chain, key).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), "ignored".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server)
    }

    #[test]
    fn members_shake_hands_and_both_are_counted() {
        let network = Network::new();
        let trust = shared(&network);
        let server = shake(&trust, node(1), Some(identity(&network, 2))).unwrap();
        assert_eq!(server.peer_certificates().map(<[_]>::len), Some(2));
        assert_eq!((trust.checks().accepted(), trust.checks().in_grace()), (2, 0));
    }

    #[test]
    fn a_client_without_certificate_may_come_in() {
        let trust = shared(&Network::new());
        let server = shake(&trust, node(1), None).unwrap();
        assert_eq!(server.peer_certificates().map(<[_]>::len), None);
        assert_eq!(trust.checks().accepted(), 1);
    }

    #[test]
    fn another_node_than_the_one_dialled_is_refused() {
        let trust = shared(&Network::new());
        let error = shake(&trust, node(2), None).map(drop).unwrap_err();
        let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else {
            panic!("{error}");
        };
        let cause = cause.downcast_ref::<VerifyError>();
        assert_eq!(cause, Some(&VerifyError::OtherNode { expected: node(2), found: node(1) }));
        assert!(trust.checks().refused().any(|counted| counted == ("other_node", 1)));
    }

    /// A chain that its holder has no key for.
    #[test]
    fn anothers_certificate_is_worth_nothing_without_its_key() {
        let network = Network::new();
        let trust = shared(&network);
        let (_, key) = identity(&network, 3);
        let error = shake(&trust, node(1), Some((network.chain(2), key))).map(drop).unwrap_err();
        assert_eq!(error, rustls::Error::InvalidCertificate(CertificateError::BadSignature));
    }

    #[test]
    fn what_is_replaced_holds_for_the_next_handshake() {
        let network = Network::new();
        let trust = shared(&network);
        assert!(shake(&trust, node(1), Some(identity(&network, 2))).is_ok());
        let mut revoked = RevocationSet::default();
        let entries = vec![Entry { what: Revoked::Node(node(2)), reason: "lost".into(), at: NOW }];
        let list = SignedRevocationList::sign(&network.issuer, 1, NOW, UnixSecs(NOW.0 + DAY), entries);
        revoked.apply(list, &network.bundle).unwrap();
        trust.replace(Trust { revoked: Arc::new(revoked), ..(*trust.load()).clone() });
        let error = shake(&trust, node(1), Some(identity(&network, 2))).map(drop);
        assert_eq!(error, Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)));
        trust.set_now(UnixSecs(NOW.0 + 30 * DAY));
        let error = shake(&trust, node(1), None).map(drop).unwrap_err();
        assert_eq!(error, rustls::Error::InvalidCertificate(CertificateError::Expired));
        assert_eq!(AlertDescription::from(CertificateError::Expired), AlertDescription::CertificateExpired);
    }

    #[test]
    fn verifiers_offer_ed25519_only_and_hint_at_nobody() {
        let trust = shared(&Network::new());
        let (dial, accept) = (DialVerifier::new(trust.clone(), node(1)), AcceptVerifier::new(trust));
        assert_eq!(dial.supported_verify_schemes(), [SignatureScheme::ED25519]);
        assert_eq!(accept.supported_verify_schemes(), [SignatureScheme::ED25519]);
        assert!(accept.root_hint_subjects().is_empty() && ServerCertVerifier::root_hint_subjects(&dial).is_none());
        assert!(accept.offer_client_auth() && !accept.client_auth_mandatory());
    }
}
