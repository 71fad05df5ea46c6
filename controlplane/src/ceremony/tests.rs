use std::time::Instant;

use rustls_pki_types::CertificateDer;

use super::*;
use crate::pki::dnssec::PARENT;
use crate::pki::revocation::RevocationSet;
use crate::pki::verifier;
use crate::random::SeededRandom;
use crate::store::MemoryStore;

const FOUNDED: UnixSecs = UnixSecs(1_796_000_000);

fn now() -> Now {
    Now { mono: Instant::now(), wall: FOUNDED }
}

fn founding() -> Founding {
    Founding {
        dns_parent: PARENT.into(),
        network: "mynet".into(),
        name: "berlin".into(),
        default_allow: true,
        pool: vec!["10.0.0.0/8".parse().unwrap()],
        subnets: vec!["10.1.0.0/16".parse().unwrap()],
        groups: vec!["edge".into()],
    }
}

struct World {
    keys: FoundingKeys,
    node: MemoryStore,
    founded: Founded,
    random: SeededRandom,
}

fn world() -> World {
    let mut random = SeededRandom::new(1);
    let keys = FoundingKeys::generate(&mut random);
    let mut node = MemoryStore::default();
    let issuer = MemoryStore::default();
    let founded = found(&founding(), &keys, &mut node, issuer, now(), &mut random).unwrap();
    World { keys, node, founded, random }
}

/// Whether our own verifier takes the founder's chain under this bundle.
fn verified(world: &mut World, bundle: &Bundle) -> Option<verifier::Member> {
    let member = Membership::load(&mut world.node, &mut world.random).unwrap().unwrap();
    let chain: Vec<CertificateDer<'_>> = member.chain.iter().map(|der| der.as_slice().into()).collect();
    verifier::verify(&chain, bundle, world.founded.network, &RevocationSet::default(), FOUNDED).ok()
}

#[test]
fn a_founder_is_a_member_that_everybody_believes() {
    let mut world = world();
    let stored = membership::bundles(&world.node).unwrap();
    assert_eq!(stored, [world.founded.bundle.clone()]);
    assert!(membership::admission(&world.node).unwrap().is_some());
    let chain = Chain::walk(world.founded.network, &stored).unwrap();
    let bundle = chain.current().clone();
    let seen = verified(&mut world, &bundle).unwrap();
    assert_eq!((seen.name.as_str(), seen.node), ("berlin", world.founded.node));
    assert_eq!((seen.groups, seen.roles), (vec!["edge".to_owned()], vec![ISSUER_ROLE.to_owned()]));
    assert!(seen.prefixes.contains(&Resources::from_prefixes(["10.1.0.0/16".parse().unwrap()])));
    assert!(bundle.default_allow && bundle.slice(world.keys.issuer.public().id()).is_some());
}

#[test]
fn a_member_founds_no_second_network() {
    let mut world = world();
    let error = found(&founding(), &world.keys, &mut world.node, MemoryStore::default(), now(), &mut world.random);
    assert!(matches!(error, Err(CeremonyError::Member(name, _)) if name == "berlin"));
}

#[test]
fn an_identity_is_kept_for_the_next_try() {
    let (mut store, mut random) = (MemoryStore::default(), SeededRandom::new(3));
    let first = membership::identity(&mut store, &mut random).unwrap();
    assert_eq!(membership::identity(&mut store, &mut random).unwrap().public(), first.public());
    assert!(Membership::load(&mut store, &mut random).unwrap().is_none());
}

#[test]
fn issuers_are_added_renewed_and_given_the_right_to_allocate() {
    let mut world = world();
    let first = world.keys.issuer.public().id();
    let second = PrivateKey::from_seed(&[9; 32]).public();
    let mut ceremony = Ceremony::begin(&[world.founded.bundle.clone()], world.keys.root_b.clone(), FOUNDED).unwrap();
    let id = ceremony.add_issuer(second, &mut world.random).unwrap();
    assert_eq!(ceremony.bundle().issuer(id), Some(second));
    assert!(matches!(ceremony.add_issuer(second, &mut world.random), Err(CeremonyError::AlreadyIssuer(_))));

    let end = ceremony.renew_issuer(first, 12, &mut world.random).unwrap();
    assert_eq!(end, FOUNDED.plus(ISSUER_LIFE * 12));
    assert_eq!(ceremony.bundle().issuer_certificates(first).len(), 13);
    for ahead in [0, AHEAD_MAX + 1] {
        assert!(matches!(ceremony.renew_issuer(first, ahead, &mut world.random), Err(CeremonyError::Ahead(_))));
    }
    let nobody = KeyId([7; 20]);
    assert!(matches!(ceremony.renew_issuer(nobody, 1, &mut world.random), Err(CeremonyError::NoIssuer(_))));

    ceremony.move_allocator(first, id).unwrap();
    assert!(ceremony.bundle().slice(first).is_none() && ceremony.bundle().slice(id).is_some());
    assert!(matches!(ceremony.move_allocator(first, id), Err(CeremonyError::Bundle(_))));
    let walked = Chain::walk(world.founded.network, ceremony.versions()).unwrap();
    assert_eq!(walked.current().version, 4);
    for allowed in [true, false] {
        ceremony.allow_legacy_kyber(allowed).unwrap();
        assert_eq!(ceremony.bundle().parameters.legacy_kyber_allowed, allowed);
    }
    let bundle = ceremony.bundle().clone();
    assert!(verified(&mut world, &bundle).is_some());
}

#[test]
fn a_revoked_issuer_is_followed_by_its_heir() {
    let mut world = world();
    let first = world.keys.issuer.public().id();
    let second = PrivateKey::from_seed(&[9; 32]).public();
    let mut ceremony = Ceremony::begin(&[world.founded.bundle.clone()], world.keys.root_b.clone(), FOUNDED).unwrap();
    let heir = ceremony.add_issuer(second, &mut world.random).unwrap();
    let nobody = KeyId([7; 20]);
    for (issuer, heir) in [(nobody, Some(heir)), (first, Some(nobody))] {
        let refused = ceremony.revoke_issuer(issuer, heir);
        assert!(matches!(refused, Err(CeremonyError::NoIssuer(id)) if id == nobody), "{refused:?}");
    }
    assert!(matches!(ceremony.revoke_issuer(first, Some(first)), Err(CeremonyError::OwnHeir(_))));
    ceremony.revoke_issuer(first, Some(heir)).unwrap();
    let bundle = ceremony.bundle().clone();
    assert_eq!((bundle.version, bundle.is_revoked(first), bundle.slice(first)), (3, true, None));
    assert!(bundle.slice(heir).is_some());
    assert_eq!(bundle.operators, [second]);
    assert!(verified(&mut world, &bundle).is_none(), "what it had signed counts no more");
    let renewed = ceremony.renew_issuer(first, 1, &mut world.random);
    assert!(matches!(renewed, Err(CeremonyError::NoIssuer(_))));
}

#[test]
fn a_root_goes_and_what_it_had_signed_is_signed_by_the_other() {
    let mut world = world();
    let (a, b) = (world.keys.root_a.public().id(), world.keys.root_b.public().id());
    let new = PrivateKey::from_seed(&[8; 32]);
    let versions = [world.founded.bundle.clone()];
    let mut own = Ceremony::begin(&versions, world.keys.root_a.clone(), FOUNDED).unwrap();
    assert!(matches!(own.rotate_root(a, &new, &mut world.random), Err(CeremonyError::OwnEnd(_))));
    let mut ceremony = Ceremony::begin(&versions, world.keys.root_b.clone(), FOUNDED).unwrap();
    assert!(matches!(ceremony.rotate_root(KeyId([7; 20]), &new, &mut world.random), Err(CeremonyError::NoRoot(_))));
    ceremony.rotate_root(a, &new, &mut world.random).unwrap();
    let roots: Vec<KeyId> = ceremony.bundle().root_keys().unwrap().iter().map(PublicKey::id).collect();
    assert_eq!(roots, [new.public().id(), b]);
    let issuers = ceremony.bundle().issuers.iter().map(|der| certificate::read_authority(der).unwrap().signer);
    assert_eq!(issuers.collect::<Vec<_>>(), [b]);
    // The old root is nobody now.
    let error = Ceremony::begin(ceremony.versions(), world.keys.root_a.clone(), FOUNDED).unwrap_err();
    assert!(matches!(error, CeremonyError::NotRoot(id, 2) if id == a));
    assert!(Ceremony::begin(ceremony.versions(), new, FOUNDED).is_ok());
}

/// A root that went took ended certificates along, and with them what their issuers had revoked; a wider pool left them.
#[test]
fn what_has_ended_is_never_certified_again_and_stays_for_what_its_issuer_revoked() {
    let mut world = world();
    let (a, b) = (world.keys.root_a.public().id(), world.keys.root_b.public().id());
    let issuer = world.keys.issuer.public();
    let end = FOUNDED.plus(ISSUER_LIFE);
    let old = world.founded.bundle.peek().unwrap().issuers;
    for (now, is_over) in [(end, false), (end.plus(Duration::from_secs(1)), true)] {
        let begin = || Ceremony::begin(&[world.founded.bundle.clone()], world.keys.root_b.clone(), now).unwrap();
        let mut rotated = begin();
        rotated.rotate_root(a, &PrivateKey::from_seed(&[8; 32]), &mut world.random).unwrap();
        let mut widened = begin();
        widened.widen_pool(&["172.16.0.0/12".parse().unwrap()], None, &mut world.random).unwrap();
        for bundle in [rotated.bundle(), widened.bundle()] {
            assert_eq!((bundle.issuers.len(), bundle.issuers == old), (1, is_over), "{now}");
            let fields = certificate::read_authority(&bundle.issuers[0]).unwrap();
            assert_eq!((fields.signer, fields.validity.not_after), (if is_over { a } else { b }, end));
            assert_eq!(bundle.revoker(issuer.id()), Some(issuer));
        }
        // It is an issuer again once it is renewed, and what had ended goes.
        rotated.renew_issuer(issuer.id(), 1, &mut world.random).unwrap();
        let signers = rotated.bundle().issuers.iter().map(|der| certificate::read_authority(der).unwrap().signer);
        assert_eq!(signers.collect::<Vec<_>>(), if is_over { vec![b] } else { vec![b, b] });
    }
}

#[test]
fn a_wider_pool_is_granted_by_all_issuers_and_takes_nothing_from_members() {
    let mut world = world();
    let first = world.keys.issuer.public().id();
    let prefix = |text: &str| -> Prefix { text.parse().unwrap() };
    let mut ceremony = Ceremony::begin(&[world.founded.bundle.clone()], world.keys.root_b.clone(), FOUNDED).unwrap();
    let second = ceremony.add_issuer(PrivateKey::from_seed(&[9; 32]).public(), &mut world.random).unwrap();
    let granted = |bundle: &Bundle| -> Vec<(KeyId, Validity, Resources)> {
        let fields = bundle.issuers.iter().map(|der| certificate::read_authority(der).unwrap());
        fields
            .map(|fields| match fields.blocks {
                IpBlocks::Explicit(granted) => (fields.public.id(), fields.validity, granted),
                IpBlocks::Inherit => panic!("of {}", fields.name),
            })
            .collect()
    };
    let before = granted(ceremony.bundle());

    let more = [prefix("172.16.0.0/12"), prefix("8.0.0.0/6")];
    assert_eq!(ceremony.widen_pool(&more, None, &mut world.random).unwrap(), first);
    let bundle = ceremony.bundle().clone();
    // 8.0.0.0/6 has 10.0.0.0/8 in it, which need not be named any more.
    assert_eq!(bundle.slice(first).unwrap().prefixes, more);
    let after = granted(&bundle);
    for ((id, validity, narrow), (same_id, same_validity, wide)) in before.into_iter().zip(after) {
        assert_eq!((id, validity), (same_id, same_validity));
        assert!(wide.contains(&narrow) && wide.contains(&Resources::from_prefixes(more)), "{id}");
    }
    // The founder shows the certificate of before, under an issuer's certificate of before.
    assert!(verified(&mut world, &bundle).is_some());

    for (prefixes, whose, expected) in [
        (["172.20.0.0/16"], None, "gives out 172.20.0.0/16 already"),
        (["192.168.0.0/16"], Some(second), "gives out nothing"),
    ] {
        let refused = ceremony.widen_pool(&prefixes.map(prefix), whose, &mut world.random).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
        assert_eq!(ceremony.bundle(), &bundle, "nothing has changed");
    }
    ceremony.revoke_issuer(first, None).unwrap();
    let refused = ceremony.widen_pool(&[prefix("192.168.0.0/16")], None, &mut world.random);
    assert!(matches!(refused, Err(CeremonyError::WhichAllocator)), "{refused:?}");
}

#[test]
fn operators_come_and_go() {
    let world = world();
    let first = world.keys.issuer.public();
    let second = PrivateKey::from_seed(&[9; 32]).public();
    let versions = std::slice::from_ref(&world.founded.bundle);
    let mut ceremony = Ceremony::begin(versions, world.keys.root_a.clone(), FOUNDED).unwrap();
    assert_eq!(ceremony.add_operator(second).unwrap(), second.id());
    assert_eq!(ceremony.bundle().operators, [first, second]);
    assert!(matches!(ceremony.add_operator(second), Err(CeremonyError::AlreadyOperator(id)) if id == second.id()));
    ceremony.remove_operator(first.id()).unwrap();
    assert_eq!((ceremony.bundle().version, &ceremony.bundle().operators[..]), (3, &[second][..]));
    assert!(matches!(ceremony.remove_operator(first.id()), Err(CeremonyError::NoOperator(id)) if id == first.id()));
}
