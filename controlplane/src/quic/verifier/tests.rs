//! Handshakes of TLS alone, in memory, with the verifiers that links have.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::pki::fixture::{DAY, NETWORK, NOW, Network, leaf_key, node};
use crate::pki::revocation::{Entry, RevocationSet, Revoked, SignedRevocationList};
use crate::pki::trust::Trust;
use crate::time::UnixSecs;

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn shared(network: &Network) -> SharedTrust {
    let bundle = Arc::new(network.bundle.clone());
    SharedTrust::new(Trust { network: NETWORK, bundle, revoked: Arc::default() }, NOW)
}

fn identity(network: &Network, member: u8) -> Identity {
    let key = PrivatePkcs8KeyDer::from(leaf_key(member).to_pkcs8().unwrap().to_vec());
    (network.chain(member), key.into())
}

fn verifier(trust: &SharedTrust, dialled: Option<NodeId>) -> PeerVerifier {
    PeerVerifier { judge: Judge::Chain { trust: trust.clone(), dialled }, verdict: Arc::default() }
}

/// A handshake in memory between a client with or without a certificate and member 1. Both sides' verdicts.
fn shake(trust: &SharedTrust, expected: NodeId, client: Option<Identity>) -> Result<ServerConnection, Error> {
    let network = Network::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls13 = &[&rustls::version::TLS13];
    let dial = Arc::new(verifier(trust, Some(expected)));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
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
    let accept = Arc::new(verifier(trust, None));
    let server = ServerConfig::builder_with_provider(provider);
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
    assert_eq!(error, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
    assert!(trust.checks().refused().any(|counted| counted == ("other_node", 1)));
}

/// A chain that its holder has no key for.
#[test]
fn anothers_certificate_is_worth_nothing_without_its_key() {
    let network = Network::new();
    let trust = shared(&network);
    let (_, key) = identity(&network, 3);
    let error = shake(&trust, node(1), Some((network.chain(2), key))).map(drop).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::BadSignature));
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
    assert_eq!(error, Err(Error::InvalidCertificate(CertificateError::Revoked)));
    trust.set_now(UnixSecs(NOW.0 + 30 * DAY));
    let error = shake(&trust, node(1), None).map(drop).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::Expired));
    assert_eq!(AlertDescription::from(CertificateError::Expired), AlertDescription::CertificateExpired);
}

#[test]
fn verifiers_offer_ed25519_only_and_hint_at_nobody() {
    let trust = shared(&Network::new());
    let (dial, accept) = (verifier(&trust, Some(node(1))), verifier(&trust, None));
    assert_eq!(ServerCertVerifier::supported_verify_schemes(&dial), [SignatureScheme::ED25519]);
    assert_eq!(ClientCertVerifier::supported_verify_schemes(&accept), [SignatureScheme::ED25519]);
    assert!(ClientCertVerifier::root_hint_subjects(&accept).is_empty());
    assert!(ServerCertVerifier::root_hint_subjects(&dial).is_none());
    assert!(accept.offer_client_auth() && !accept.client_auth_mandatory());
}
