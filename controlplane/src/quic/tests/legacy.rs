use std::time::Duration;

use super::world::{World, address, id};
use crate::quic::{Alpn, DialError, DialTarget, LinkId};

/// Dials node 1 with the draft group alone.
fn dial(world: &mut World) -> Result<LinkId, DialError> {
    let now = world.now;
    let target = DialTarget { legacy_kyber: true, ..DialTarget::member(id(1)) };
    let dialled = world.nodes[0].driver.dial(Alpn::Member, &target, address(1), now);
    world.run(Duration::from_secs(1));
    dialled
}

#[cfg(feature = "legacy-kyber")]
#[test]
fn the_draft_group_is_agreed_on_where_both_sides_want_it() {
    use crate::quic::{CloseReason, Event, GROUP_X25519KYBER768, GROUP_X25519MLKEM768, Limits};

    let mut world = World::new(2);
    // The accepting side does not want it.
    let link = dial(&mut world).unwrap();
    assert!(matches!(world.closed(0, link), Some(CloseReason::RefusedByPeer { alert: 40 })));
    world.legacy = true;
    world.nodes[1].driver = world.driver(1, world.nodes[1].trust.clone(), Limits::default());
    let link = dial(&mut world).unwrap();
    for (node, link) in [(0, link), (1, LinkId(1))] {
        let connected = world.connected(node, link);
        assert!(matches!(connected, Some(Event::Connected { group: GROUP_X25519KYBER768, .. })), "{connected:?}");
    }
    // Whoever offers the standard's gets it from the same node.
    let (link, _) = world.connect(0, 1, Alpn::Member);
    assert!(matches!(world.connected(0, link), Some(Event::Connected { group: GROUP_X25519MLKEM768, .. })));
}

#[cfg(not(feature = "legacy-kyber"))]
#[test]
fn the_draft_group_cannot_be_had_by_setting_alone() {
    let mut world = World::new(2);
    world.legacy = true;
    assert_eq!(dial(&mut world), Err(DialError::NoLegacyKyber));
}

/// A browser's TLS of spring 2024, which spoke the draft and not yet the standard. It wants TCP and knows no Ed25519, so what is judged here
/// is the group alone: shares, secret and their order.
#[cfg(feature = "legacy-kyber")]
#[test]
#[ignore = "needs a Python with curl_cffi, named by LEGACY_JUDGE_PYTHON"]
fn another_implementation_agrees_on_the_draft_group() {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use crate::quic::legacy_kyber::X25519KYBER768;

    struct Key(EcdsaKeyPair);
    impl rcgen::PublicKeyData for Key {
        fn der_bytes(&self) -> &[u8] {
            self.0.public_key().as_ref()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_ECDSA_P256_SHA256
        }
    }
    impl rcgen::SigningKey for Key {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            let signed = self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RemoteKeyError)?;
            Ok(signed.as_ref().to_vec())
        }
    }

    let Some(python) = std::env::var_os("LEGACY_JUDGE_PYTHON") else {
        eprintln!("SKIPPED: no LEGACY_JUDGE_PYTHON with curl_cffi; `cargo xtask test --full` makes one");
        return;
    };
    // Whoever sets the variable says that it is there; a judge that does not start would never call.
    let has_judge = Command::new(&python).args(["-c", "from curl_cffi import requests"]).status().unwrap();
    assert!(has_judge.success(), "{} cannot use its curl_cffi: install it anew", python.display());
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let pkcs8 = PrivatePkcs8KeyDer::from(pair.to_pkcs8v1().unwrap().as_ref().to_vec());
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.serial_number = Some(vec![1].into());
    let certificate = params.self_signed(&Key(pair)).unwrap().der().clone();
    let mut provider = default_provider();
    provider.kx_groups = vec![X25519KYBER768];
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], pkcs8.into())
        .unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let script = "import sys; from curl_cffi import requests; \
                  print(requests.get(sys.argv[1], impersonate='chrome124', verify=False).text)";
    let judge = Command::new(python).args(["-c", script, &url]).stdout(Stdio::piped()).spawn().unwrap();
    let tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, listener.accept().unwrap().0);
    let mut request = [0; 4096];
    assert!(stream.read(&mut request).unwrap() > 0);
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nagreed").unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let group = stream.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(u16::from(group), crate::quic::GROUP_X25519KYBER768);
    let output = judge.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "agreed");
}
