//! Everything that decodes bytes or texts of others, under random ones: what a fuzzer does for longer (`fuzz/targets`), in every run.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::path::Path;

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use weir_controlplane::api::call::{Input, ROUTES};
use weir_controlplane::codec::{DecodeError, decode, encode};
use weir_controlplane::config::{Config, Instance};
use weir_controlplane::contact::Contacts;
use weir_controlplane::dht::{message as dht, record};
use weir_controlplane::issuer::{Asked, Issuer, Refused, Reply, Request};
use weir_controlplane::node::beacon::Beacon;
use weir_controlplane::node::directory::{Directory, Judge, SignedRecord};
use weir_controlplane::node::message::{KeyMessage, MESSAGE_LEN_MAX, Message, Network};
use weir_controlplane::node::reach;
use weir_controlplane::pki::admission::{AdmissionKeys, SignedAdmission};
use weir_controlplane::pki::bundle::{Bundle, Chain, Parameters, SignedBundle, Slice};
use weir_controlplane::pki::ceremony;
use weir_controlplane::pki::certificate::{
    IssuerSpec, LeafSpec, RootSpec, Serial, Validity, issuer_certificate, leaf_certificate, read_authority, read_leaf,
    root_certificate,
};
use weir_controlplane::pki::id::{NodeId, Nonce};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::name::NamePattern;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::pki::revocation::{RevocationSet, SignedRevocationList};
use weir_controlplane::pki::verifier::verify;
use weir_controlplane::policy::{SignedPolicy, parse};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::shell::mdns::FromMdns;
use weir_controlplane::store::MemoryStore;
use weir_controlplane::time::{Now, UnixSecs};

const NOW: UnixSecs = UnixSecs(1_800_000_000);
const VALIDITY: Validity = Validity { not_before: UnixSecs(NOW.0 - 3600), not_after: UnixSecs(NOW.0 + 86_400) };

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

/// A network of one root and one issuer; and a member's chain.
fn network() -> (Chain, [Vec<u8>; 2]) {
    let serial = Serial::from_bytes([1; 16]);
    let root_spec = RootSpec { label: "A", network_name: "mynet", validity: VALIDITY, serial };
    let root = root_certificate(&key(1), &root_spec).unwrap();
    let spec = IssuerSpec { public: key(2).public(), blocks: IpBlocks::Inherit, validity: VALIDITY, serial };
    let issuer = issuer_certificate(&key(1), &root, &spec).unwrap();
    let slice = Slice {
        issuer: key(2).public().id(),
        names: vec![NamePattern::any()],
        prefixes: vec!["10.0.0.0/8".parse().unwrap()],
    };
    let bundle = Bundle {
        version: 1,
        previous: None,
        network_name: "mynet".into(),
        default_allow: true,
        roots: vec![root],
        issuers: vec![issuer.clone()],
        revoked_issuers: vec![],
        revokers: vec![],
        slices: vec![slice],
        dns_parent: "internal".into(),
        operators: vec![],
        parameters: Parameters::default(),
    };
    let chain = ceremony::found(&bundle, &[&key(1)]).unwrap();
    let leaf = LeafSpec {
        leaf_public: key(3).public(),
        network: chain.network(),
        identity: key(4).public(),
        nonce: Nonce([5; 16]),
        name: "berlin",
        prefixes: Resources::from_prefixes(["10.1.0.0/24".parse().unwrap()]),
        groups: &[],
        roles: &[],
        validity: VALIDITY,
        serial,
    };
    let leaf = leaf_certificate(&key(2), &issuer, &leaf).unwrap();
    (chain, [leaf, issuer])
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Small numbers are lengths and variants, so that some of it decodes.
    let byte = prop_oneof![3 => 0u8..6, 1 => any::<u8>()];
    prop::collection::vec(byte, 0..400)
}

macro_rules! read_again {
    ($bytes:expr, $($message:ty),*) => {
        $(if let Ok(message) = decode::<$message>($bytes, MESSAGE_LEN_MAX) {
            prop_assert_eq!(decode::<$message>(&encode(&message), usize::MAX), Ok(message));
        })*
    };
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange_for_a_decoder(bytes in bytes()) {
        read_again!(&bytes, Message, KeyMessage, Network, SignedRecord, SignedBundle, SignedRevocationList, SignedAdmission);
        read_again!(&bytes, FromMdns, Asked, Result<Reply, Refused>, SignedPolicy, record::SignedRecord, record::Envelope);
        if let Ok(message) = dht::Message::decode(&bytes) {
            prop_assert_eq!(dht::Message::decode(&message.encode()), Ok(message));
        }
        prop_assert!(Contacts::default().open(&bytes, std::time::Instant::now()).is_err());
        if let Ok(message) = reach::Message::decode(&bytes) {
            prop_assert_eq!(reach::Message::decode(&message.encode()), Ok(message));
        }
        if let Ok(value) = record::NodeValue::decode(&bytes) {
            prop_assert_eq!(record::NodeValue::decode(&value.encode()), Ok(value));
        }
        if let Ok(value) = record::ServiceValue::decode(&bytes) {
            prop_assert_eq!(record::ServiceValue::decode(&value.encode()), Ok(value));
        }
        if let Ok(value) = record::RevocationsValue::decode(&bytes) {
            prop_assert_eq!(record::RevocationsValue::decode(&value.encode()), Ok(value));
        }
        let _ = (read_leaf(&bytes), read_authority(&bytes), SignedPolicy::from_bytes(&bytes));
        if let Ok(blocks) = IpBlocks::from_der(&bytes) {
            prop_assert_eq!(blocks.to_der(), bytes);
        }
    }

    #[test]
    fn no_text_is_too_strange_for_a_parser(text in "[\\PC\n\"=\\[\\]]{0,200}", route in 0..ROUTES.len()) {
        let _ = parse(&text);
        let error = Config::parse(Path::new("weir.toml"), &text, &Instance::default()).err();
        prop_assert!(error.is_none_or(|error| !error.to_string().contains('\n')));
        let route = &ROUTES[route];
        let uri = route.path.parse().unwrap();
        let _ = (route.read)(Input { method: route.method, uri: &uri, body: text.as_bytes() });
    }

    #[test]
    fn a_beacon_of_anybody_is_none_or_one_that_says_itself_again(
        version in prop_oneof![Just(b"1".to_vec()), bytes()],
        salt in prop_oneof!["[0-9a-f]{16}".prop_map(String::into_bytes), bytes()],
        hash in prop_oneof!["[0-9a-f]{32}".prop_map(String::into_bytes), bytes()],
    ) {
        let said = [("v", version), ("s", salt), ("h", hash)];
        let read = |said: &[(&str, Vec<u8>)]| {
            Beacon::from_txt(|key| said.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_slice()))
        };
        if let Some(beacon) = read(&said) {
            let again = beacon.to_txt().map(|(key, value)| (key, value.into_bytes()));
            prop_assert_eq!(&again[..], &said[..]);
        }
    }

    #[test]
    fn unsigned_documents_change_nothing(bytes in bytes()) {
        let (mut chain, _) = network();
        let mut revoked = RevocationSet::default();
        if let Ok(next) = decode::<SignedBundle>(&bytes, MESSAGE_LEN_MAX) {
            prop_assert!(chain.extend(next).is_err());
        }
        if let Ok(list) = decode::<SignedRevocationList>(&bytes, MESSAGE_LEN_MAX) {
            prop_assert!(revoked.apply(list, chain.current()).is_err());
        }
        if let Ok(seed) = decode::<SignedAdmission>(&bytes, MESSAGE_LEN_MAX) {
            prop_assert!(AdmissionKeys::new(seed, chain.current(), &revoked).is_err());
        }
        if let Ok(record) = decode::<SignedRecord>(&bytes, MESSAGE_LEN_MAX) {
            let (network, bundle) = (chain.network(), chain.current());
            let judge = Judge { network, bundle, revoked: &revoked, now: NOW };
            prop_assert!(Directory::default().accept(record, judge).is_err());
        }
    }

    #[test]
    fn a_changed_chain_makes_nobody_a_member(at in any::<prop::sample::Index>(), by in 1u8.., which in 0usize..2) {
        let (network, mut ders) = network();
        let at = at.index(ders[which].len());
        ders[which][at] ^= by;
        let chain = ders.each_ref().map(|der| CertificateDer::from(&der[..]));
        let judged = verify(&chain, network.current(), network.network(), &RevocationSet::default(), NOW);
        // Whether the issuer's own certificate came whole does not matter where the bundle's is good.
        let node = NodeId::derive(network.network(), &key(4).public().0, Nonce([5; 16]));
        prop_assert!(judged.is_err() || which == 1 && judged.unwrap().node == node);
    }

    #[test]
    fn an_issuer_answers_whatever_it_is_asked(asked in prop::collection::vec(bytes(), 1..8)) {
        let (chain, _) = network();
        let mut random = SeededRandom::new(1);
        let now = Now { mono: std::time::Instant::now(), wall: NOW };
        let store = MemoryStore::default();
        let (network, versions) = (chain.network(), chain.versions());
        let mut issuer = Issuer::create(store, key(2), network, versions, 1000, now, &mut random).unwrap();
        for bytes in asked {
            // A backup is slow on purpose.
            let asked = decode::<Asked>(&bytes, MESSAGE_LEN_MAX);
            if let Ok(asked) = asked && !matches!(asked.request, Request::Backup { .. }) {
                let _ = issuer.handle(asked, now, &mut random);
            }
        }
        prop_assert!(Issuer::open(issuer.into_store(), key(2), 1000).is_ok());
    }
}

#[test]
fn a_message_of_the_limit_is_read_and_one_byte_more_is_not() {
    // The body makes it as long as a message may be.
    let message = |len: usize| {
        encode(&Message::Policy(SignedPolicy::assemble(vec![7; len], key(1).public(), key(1).sign_raw(b""))))
    };
    let fixed = message(MESSAGE_LEN_MAX).len() - MESSAGE_LEN_MAX;
    let [limit, over] = [0, 1].map(|more| message(MESSAGE_LEN_MAX - fixed + more));
    assert_eq!(limit.len(), MESSAGE_LEN_MAX);
    assert!(decode::<Message>(&limit, MESSAGE_LEN_MAX).is_ok());
    let (len, max) = (MESSAGE_LEN_MAX + 1, MESSAGE_LEN_MAX);
    assert_eq!(decode::<Message>(&over, max), Err(DecodeError::TooLong { len, max }));
}
