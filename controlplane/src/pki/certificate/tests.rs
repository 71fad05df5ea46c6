use proptest::prelude::*;

use super::*;
use crate::pki::fixture::{DAY, NETWORK, NOW, Network, around_now, identity_key, key, leaf_key, node, resources};
use crate::pki::resources::RANGES_MAX;

#[test]
fn a_leaf_says_what_it_was_made_of() {
    let network = Network::new();
    let spec = network.spec(5);
    let der = leaf_certificate(&network.issuer, &network.issuer_der, &spec).unwrap();
    let expected = LeafFields {
        leaf_public: leaf_key(5).public(),
        issuer: network.issuer.public().id(),
        network_name: "mynet".into(),
        network: NETWORK,
        node: node(5),
        identity: identity_key(5).public(),
        nonce: Nonce([5; 16]),
        name: "berlin".into(),
        prefixes: resources(&["10.1.5.0/24"]),
        groups: vec!["edge".into()],
        roles: vec!["relay".into()],
        validity: spec.validity,
        serial: spec.serial,
    };
    assert_eq!(read_leaf(&der), Ok(expected));
    assert_eq!(public_key(&der), Ok(leaf_key(5).public()));
    assert_eq!(validity(&der), Ok(spec.validity));
    assert!(der.len() < 900, "{}", der.len());
}

#[test]
fn roots_and_issuers_say_what_they_were_made_of() {
    let network = Network::new();
    let [root, _] = &network.roots;
    let fields = AuthorityFields {
        public: root.public(),
        signer: root.public().id(),
        network_name: "mynet".into(),
        name: "root A".into(),
        blocks: IpBlocks::Explicit(Resources::everything()),
        validity: around_now(30 * DAY, 3650 * DAY),
        serial: Serial::from_bytes([1; 16]),
    };
    assert_eq!(read_authority(&network.bundle.roots[0]), Ok(fields));
    let fields = AuthorityFields {
        public: network.issuer.public(),
        signer: root.public().id(),
        network_name: "mynet".into(),
        name: "issuer".into(),
        blocks: IpBlocks::Explicit(resources(&["10.0.0.0/8", "fd00::/8"])),
        validity: around_now(10 * DAY, 355 * DAY),
        serial: Serial::from_bytes([0x33; 16]),
    };
    assert_eq!(read_authority(&network.issuer_der), Ok(fields));
}

#[test]
fn a_member_without_addresses_gets_a_certificate() {
    let network = Network::new();
    let spec = LeafSpec { prefixes: Resources::default(), groups: &[], roles: &[], ..network.spec(1) };
    let der = leaf_certificate(&network.issuer, &network.issuer_der, &spec).unwrap();
    assert_eq!(read_leaf(&der).map(|leaf| (leaf.prefixes, leaf.groups)), Ok((Resources::default(), vec![])));
}

#[test]
fn an_issuer_does_not_sign_what_peers_would_refuse() {
    let network = Network::new();
    let long = "x".repeat(64);
    let label = NameError::Label;
    let groups = |count: usize| vec!["g".to_owned(); count];
    let (enough, too_many) = (groups(GROUPS_MAX), groups(GROUPS_MAX + 1));
    let odd = vec!["Edge".to_owned()];
    let make = |spec: &LeafSpec<'_>| leaf_certificate(&network.issuer, &network.issuer_der, spec).map(drop);
    let spec = || network.spec(1);

    assert_eq!(make(&LeafSpec { groups: &enough, ..spec() }), Ok(()));
    let error = CertificateError::TooMany("groups", GROUPS_MAX);
    assert_eq!(make(&LeafSpec { groups: &too_many, ..spec() }), Err(error));
    let roles = (groups(ROLES_MAX), groups(ROLES_MAX + 1));
    assert_eq!(make(&LeafSpec { roles: &roles.0, ..spec() }), Ok(()));
    let error = CertificateError::TooMany("roles", ROLES_MAX);
    assert_eq!(make(&LeafSpec { roles: &roles.1, ..spec() }), Err(error));
    let error = CertificateError::Name("Edge".into(), "group", label);
    assert_eq!(make(&LeafSpec { groups: &odd, ..spec() }), Err(error));
    assert_eq!(make(&LeafSpec { name: &long[1..], ..spec() }), Ok(()));
    let error = CertificateError::Name(long.clone(), "member's name", label);
    assert_eq!(make(&LeafSpec { name: &long, ..spec() }), Err(error));

    let beyond = resources(&["10.0.0.0/8", "192.168.0.0/24"]);
    let error = CertificateError::NotGranted(beyond.clone());
    assert_eq!(make(&LeafSpec { prefixes: beyond, ..spec() }), Err(error));
    let scattered = |count: usize| {
        let texts: Vec<String> = (0..count).map(|at| format!("10.{at}.0.0/24")).collect();
        resources(&texts.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(make(&LeafSpec { prefixes: scattered(RANGES_MAX), ..spec() }), Ok(()));
    let error = CertificateError::Resources(ResourcesError::TooMany);
    assert_eq!(make(&LeafSpec { prefixes: scattered(RANGES_MAX + 1), ..spec() }), Err(error));

    let end = 355 * DAY;
    assert_eq!(make(&LeafSpec { validity: around_now(0, end), ..spec() }), Ok(()));
    let error = CertificateError::Outlives(UnixSecs(NOW.0 + end + 1), UnixSecs(NOW.0 + end));
    assert_eq!(make(&LeafSpec { validity: around_now(0, end + 1), ..spec() }), Err(error));
    let backwards = Validity { not_before: NOW, not_after: UnixSecs(NOW.0 - 1) };
    let error = CertificateError::Validity(NOW, UnixSecs(NOW.0 - 1));
    assert_eq!(make(&LeafSpec { validity: backwards, ..spec() }), Err(error));
    assert_eq!(make(&LeafSpec { leaf_public: spec().identity, ..spec() }), Err(CertificateError::IdentityInTls));

    let stranger = key(9);
    let error = CertificateError::OtherKey(stranger.public().id(), network.issuer.public().id());
    assert_eq!(leaf_certificate(&stranger, &network.issuer_der, &spec()).map(drop), Err(error));
    let member = leaf_certificate(&network.issuer, &network.issuer_der, &spec()).unwrap();
    let error = CertificateError::Profile("right to sign certificates");
    assert_eq!(leaf_certificate(&leaf_key(1), &member, &spec()).map(drop), Err(error));
}

#[test]
fn years_that_a_certificate_cannot_write_are_refused() {
    let at = |not_after: u64| {
        let validity = Validity { not_before: NOW, not_after: UnixSecs(not_after) };
        let spec = RootSpec { label: "A", network_name: "mynet", validity, serial: Serial::from_bytes([1; 16]) };
        root_certificate(&key(1), &spec)
    };
    let end = 253_402_300_799;
    assert_eq!(at(end).and_then(|der| validity(&der)).map(|found| found.not_after), Ok(UnixSecs(end)));
    assert_eq!(at(end + 1), Err(CertificateError::Validity(NOW, UnixSecs(end + 1))));
    assert_eq!(at(u64::MAX), Err(CertificateError::Validity(NOW, UnixSecs(u64::MAX))));
}

#[test]
fn the_largest_leaf_is_read_and_longer_bytes_are_not() {
    let network = Network::new();
    let (label, end) = ("x".repeat(63), "y".repeat(63));
    let (groups, roles) = (vec![label.clone(); GROUPS_MAX], vec![label.clone(); ROLES_MAX]);
    let texts: Vec<String> = (0..RANGES_MAX).map(|at| format!("fd00:{at:x}::1:0:0:1/128")).collect();
    let prefixes = resources(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let spec = LeafSpec { name: &end, groups: &groups, roles: &roles, prefixes, ..network.spec(1) };
    let der = leaf_certificate(&network.issuer, &network.issuer_der, &spec).unwrap();
    assert!(read_leaf(&der).is_ok() && der.len() < 5 * 1024, "{}", der.len());
    let long = CERTIFICATE_LEN_MAX + 1;
    assert_eq!(read_leaf(&vec![0; long]), Err(CertificateError::TooLong(long)));
    assert_eq!(read_leaf(&vec![0; CERTIFICATE_LEN_MAX]), Err(CertificateError::Malformed));
    let trailing = [der.as_slice(), &[0]].concat();
    assert_eq!(read_leaf(&trailing), Err(CertificateError::Malformed));
}

/// What a member's certificate has to say, each left out or said twice.
#[test]
fn names_that_are_missing_or_doubled_are_refused() {
    let network = Network::new();
    let bent = |bend: &dyn Fn(&mut Vec<rcgen::SanType>)| {
        let mut params = build::leaf_params("mynet", &network.spec(1)).unwrap();
        bend(&mut params.subject_alt_names);
        let (signer, _) = authority(&network.issuer, &network.issuer_der).unwrap();
        let der = params.signed_by(&build::Subject(leaf_key(1).public()), &signer).unwrap();
        read_leaf(der.der())
    };
    for (at, what) in ["node id", "network id", "identity key", "nonce"].into_iter().enumerate() {
        assert_eq!(bent(&|names| drop(names.remove(at))), Err(CertificateError::Profile(what)));
        assert_eq!(bent(&|names| names.push(names[at].clone())), Err(CertificateError::Profile(what)));
    }
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().unwrap());
    for (text, error) in [
        ("weir:identity/aaaa", CertificateError::Profile("identity key")),
        ("weir:group/", CertificateError::Profile("group")),
        ("weir:role/A", CertificateError::Profile("role")),
    ] {
        assert_eq!(bent(&|names| names[2] = uri(text)), Err(error), "{text}");
    }
    // What is for others, or for a later version, is none of our business.
    for text in ["https://example.net/", "weir:later/anything", "weir:", "weir:group"] {
        assert!(bent(&|names| names.push(uri(text))).is_ok(), "{text}");
    }
    let group = uri("weir:group/again");
    let error = CertificateError::TooMany("groups", GROUPS_MAX);
    let fill = |names: &mut Vec<rcgen::SanType>, count| names.extend(vec![group.clone(); count]);
    assert_eq!(bent(&|names| fill(names, GROUPS_MAX - 1)).map(|leaf| leaf.groups.len()), Ok(GROUPS_MAX));
    assert_eq!(bent(&|names| fill(names, GROUPS_MAX)), Err(error));
}

#[test]
fn serial_numbers_are_positive_and_of_one_length() {
    for bytes in [[0; 16], [0xff; 16]] {
        let serial = Serial::from_bytes(bytes);
        assert!((0x40..0x80).contains(&serial.bytes()[0]));
        assert_eq!(Serial::read(serial.bytes()), Some(serial));
        assert_eq!(Serial::read(&serial.bytes()[1..]), None);
    }
    assert_eq!((Serial::read(&[0; 16]), Serial::read(&[0x80; 16])), (None, None));
    let drawn = Serial::draw(&mut crate::random::SeededRandom::new(1));
    assert_ne!(drawn, Serial::draw(&mut crate::random::SeededRandom::new(2)));
}

proptest! {
    /// Reading has no signature to go by, so any bytes must be an answer.
    #[test]
    fn hostile_certificates_never_panic(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<proptest::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let network = Network::new();
        let leaf = network.chain(1).remove(0).to_vec();
        for mut der in [leaf, network.issuer_der.clone()] {
            for (at, byte) in &edits {
                let at = at.index(der.len());
                der[at] = *byte;
            }
            if !whole {
                der.truncate(cut.index(der.len()));
            }
            let _ = (read_leaf(&der), read_authority(&der), public_key(&der), validity(&der));
        }
    }
}
