use super::*;
use crate::pki::certificate::{IssuerSpec, RootSpec, Serial, Validity, issuer_certificate, root_certificate};
use crate::pki::resources::IpBlocks;
use crate::time::UnixSecs;

/// When the networks of these tests were founded.
pub(crate) const FOUNDED: u64 = 1_796_000_000;
const YEAR: u64 = 365 * 86_400;

pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn validity(years: u64) -> Validity {
    Validity { not_before: UnixSecs(FOUNDED - 3600), not_after: UnixSecs(FOUNDED + years * YEAR) }
}

pub(crate) fn root(seed: u8, label: &str) -> Vec<u8> {
    let spec =
        RootSpec { label, network_name: "mynet", validity: validity(20), serial: Serial::from_bytes([seed; 16]) };
    root_certificate(&key(seed), &spec).unwrap()
}

pub(crate) fn issuer(seed: u8, root_seed: u8, root_der: &[u8]) -> Vec<u8> {
    let serial = Serial::from_bytes([seed; 16]);
    let spec = IssuerSpec { public: key(seed).public(), blocks: IpBlocks::Inherit, validity: validity(1), serial };
    issuer_certificate(&key(root_seed), root_der, &spec).unwrap()
}

/// Roots 1 and 2, issuers 11 (which allocates everything in 10.0.0.0/8) and 12 (which only renews).
pub(crate) fn first() -> Bundle {
    let roots = vec![root(1, "A"), root(2, "B")];
    let issuers = vec![issuer(11, 1, &roots[0]), issuer(12, 2, &roots[1])];
    let names = vec![NamePattern::any()];
    let prefixes = vec!["10.0.0.0/8".parse().unwrap()];
    Bundle {
        version: 1,
        previous: None,
        network_name: "mynet".into(),
        default_allow: true,
        roots,
        issuers,
        revoked_issuers: vec![],
        revokers: vec![key(21).public()],
        slices: vec![Slice { issuer: key(11).public().id(), names, prefixes }],
        dns_parent: "internal".into(),
        operators: vec![key(11).public()],
        parameters: Parameters::default(),
    }
}

pub(crate) fn network() -> (NetworkId, SignedBundle) {
    let signed = SignedBundle::sign(&first(), None, &[&key(1)]);
    (network_id(&signed), signed)
}

pub(crate) fn chain() -> Chain {
    let (network, first) = network();
    Chain::start(network, first).unwrap()
}

/// The next version, with a change, signed by these roots.
pub(crate) fn next(chain: &Chain, change: impl FnOnce(&mut Bundle), roots: &[&PrivateKey]) -> SignedBundle {
    let mut bundle = chain.successor();
    change(&mut bundle);
    SignedBundle::sign(&bundle, Some(chain.network()), roots)
}

#[test]
fn a_late_member_walks_from_the_network_id_through_a_rotation_of_both_roots() {
    let mut chain = chain();
    let third = root(3, "C");
    let bundle = next(&chain, |bundle| bundle.roots[0] = third.clone(), &[&key(2)]);
    assert_eq!(chain.extend(bundle), Ok(Extended::New));
    let fourth = root(4, "D");
    let bundle = next(&chain, |bundle| bundle.roots = vec![third, fourth], &[&key(2), &key(3)]);
    assert_eq!(chain.extend(bundle.clone()), Ok(Extended::New));
    assert_eq!(chain.extend(bundle), Ok(Extended::Known));
    let late = Chain::walk(chain.network(), chain.versions()).unwrap();
    assert_eq!((late.current(), late.digest()), (chain.current(), chain.digest()));
    assert_eq!((chain.after(0).len(), chain.after(2).len(), chain.after(9).len()), (3, 1, 0));
    let skipped = Chain::walk(chain.network(), &[chain.versions()[0].clone(), chain.versions()[2].clone()]);
    assert_eq!(skipped.unwrap_err(), BundleError::Gap { have: 1, found: 3 });
}

#[test]
fn a_step_needs_a_root_of_each_side() {
    let base = chain();
    let third = root(3, "C");
    let replaced = |bundle: &mut Bundle| bundle.roots = vec![third.clone()];
    let refused = |roots: &[&PrivateKey]| base.clone().extend(next(&base, replaced, roots)).unwrap_err();
    assert_eq!(refused(&[&key(3)]), BundleError::NotByPredecessor(1));
    assert_eq!(refused(&[&key(1)]), BundleError::NotByItself(2));
    assert_eq!(refused(&[&key(11)]), BundleError::NotByPredecessor(1));
    assert_eq!(base.clone().extend(next(&base, replaced, &[&key(1), &key(3)])), Ok(Extended::New));
}

#[test]
fn another_first_version_is_another_network() {
    let (network, _) = network();
    let mut other = first();
    other.default_allow = false;
    let other = SignedBundle::sign(&other, None, &[&key(1)]);
    let found = network_id(&other);
    assert_eq!(Chain::start(network, other).unwrap_err(), BundleError::OtherNetwork { expected: network, found });
    let unsigned = SignedBundle::sign(&first(), None, &[&key(3)]);
    assert_eq!(Chain::start(network, unsigned).unwrap_err(), BundleError::NotByItself(1));
    assert_eq!(Chain::walk(network, &[]).unwrap_err(), BundleError::Empty);
}

#[test]
fn two_versions_of_one_number_are_a_fork_when_both_are_signed() {
    let mut chain = chain();
    let one = next(&chain, |bundle| bundle.default_allow = false, &[&key(1)]);
    let other = next(&chain, |bundle| bundle.parameters.grace_secs = 0, &[&key(2)]);
    let forged = next(&chain, |bundle| bundle.parameters.grace_secs = 0, &[&key(3)]);
    chain.extend(one).unwrap();
    assert_eq!(chain.extend(other), Err(BundleError::Fork(2)));
    assert_eq!(chain.extend(forged), Err(BundleError::NotByPredecessor(1)));
    let elsewhere = next(&chain, |bundle| bundle.previous = Some([0; 32]), &[&key(1)]);
    assert_eq!(chain.extend(elsewhere), Err(BundleError::Fork(2)));
    assert_eq!(chain.current().version, 2);
}

#[test]
fn what_does_not_fit_together_is_no_bundle() {
    let checked = |change: &dyn Fn(&mut Bundle)| {
        let mut bundle = first();
        change(&mut bundle);
        bundle.check()
    };
    let count = |what, found, min, max| Err(BundleError::Count { what, found, min, max });
    assert_eq!(checked(&|_| ()), Ok(()));
    assert_eq!(checked(&|bundle| bundle.version = 0), Err(BundleError::Previous));
    assert_eq!(checked(&|bundle| bundle.previous = Some([0; 32])), Err(BundleError::Previous));
    assert_eq!(checked(&|bundle| bundle.network_name = "my.net".into()), Err(NameError::Label.into()));
    assert_eq!(checked(&|bundle| bundle.roots.clear()), count("roots", 0, 1, ROOTS_MAX));
    let five = || (1..=5).map(|seed| root(seed, "A")).collect();
    assert_eq!(checked(&|bundle| bundle.roots = five()), count("roots", 5, 1, ROOTS_MAX));
    assert_eq!(checked(&|bundle| bundle.roots = five()[..4].to_vec()), Ok(()));
    let twice = checked(&|bundle| bundle.roots[1] = bundle.roots[0].clone());
    assert!(matches!(twice, Err(BundleError::Twice(_))));
    let strict = checked(&|bundle| bundle.parameters.grace_secs = 0);
    assert_eq!(strict, Ok(()));
    let short = checked(&|bundle| bundle.parameters.leaf_lifetime_secs = 3599);
    assert_eq!(short, Err(BundleError::Parameter { what: "a leaf's life", secs: 3599 }));
    assert!(matches!(checked(&|bundle| bundle.issuers[0] = vec![1]), Err(BundleError::Certificate(_))));
}

#[test]
fn slices_are_disjoint_and_belong_to_issuers() {
    let with = |name: &str, prefix: &str, owner: u8| {
        let mut bundle = first();
        bundle.slices[0].names = vec!["edge-*".parse().unwrap()];
        let (names, prefixes) = (vec![name.parse().unwrap()], vec![prefix.parse().unwrap()]);
        bundle.slices.push(Slice { issuer: key(owner).public().id(), names, prefixes });
        bundle.check()
    };
    let (first, second) = (key(11).public().id(), key(12).public().id());
    assert_eq!(with("core-*", "172.16.0.0/12", 12), Ok(()));
    assert_eq!(with("edge-9", "172.16.0.0/12", 12), Err(BundleError::SlicesOverlap(first, second)));
    assert_eq!(with("core-*", "10.1.0.0/16", 12), Err(BundleError::SlicesOverlap(first, second)));
    assert_eq!(with("core-*", "0.0.0.0/0", 12), Err(BundleError::SlicesOverlap(first, second)));
    assert!(matches!(with("core-*", "172.16.0.0/12", 11), Err(BundleError::Twice(_))));
    let stranger = key(13).public().id();
    assert_eq!(with("core-*", "172.16.0.0/12", 13), Err(BundleError::SliceOfStranger(stranger)));
}

#[test]
fn a_revoked_issuer_is_none_and_one_that_was_dropped_still_was_one() {
    let mut chain = chain();
    let (first, second) = (key(11).public().id(), key(12).public().id());
    let drop_second = next(&chain, |bundle| drop(bundle.issuers.pop()), &[&key(1)]);
    chain.extend(drop_second).unwrap();
    assert_eq!(chain.current().issuer(second), None);
    assert_eq!(chain.issuer_ever(second).map(|issuer| issuer.public), Some(key(12).public()));
    let revoke_both = next(&chain, |bundle| bundle.revoked_issuers = vec![first, second], &[&key(1)]);
    chain.extend(revoke_both).unwrap();
    let bundle = chain.current();
    assert_eq!((bundle.issuer(first), bundle.slice(first), bundle.revoker(first)), (None, None, None));
    assert_eq!((chain.issuer_ever(first), chain.issuer_ever(second)), (None, None));
    assert_eq!(bundle.revoker(key(21).public().id()), Some(key(21).public()));
}

/// Whoever shows a certificate may ask for its issuer: what each version said of one is looked up, and is the same as a walk back.
#[test]
fn an_issuer_is_known_as_the_last_version_that_named_it_has_it() {
    let mut chain = chain();
    let (second, der) = (key(12).public().id(), issuer(12, 1, &root(1, "A")));
    let old = chain.current().issuers[1].clone();
    let known = |chain: &Chain| chain.issuer_ever(second).map(|issuer| issuer.certificates.clone());
    assert_eq!(known(&chain), Some(vec![old.clone()]));
    let ahead = next(&chain, |bundle| bundle.issuers.push(der.clone()), &[&key(1)]);
    chain.extend(ahead).unwrap();
    assert_eq!(known(&chain), Some(vec![old.clone(), der.clone()]));
    let renewed = next(&chain, |bundle| drop(bundle.issuers.remove(1)), &[&key(1)]);
    chain.extend(renewed).unwrap();
    assert_eq!(known(&chain), Some(vec![der.clone()]));
    let dropped = next(&chain, |bundle| drop(bundle.issuers.pop()), &[&key(1)]);
    let refused = next(&chain, |bundle| bundle.issuers.clear(), &[&key(3)]);
    assert!(chain.extend(refused).is_err());
    chain.extend(dropped).unwrap();
    assert_eq!(known(&chain), Some(vec![der.clone()]));
    let revoked = next(&chain, |bundle| bundle.revoked_issuers = vec![second], &[&key(1)]);
    chain.extend(revoked).unwrap();
    assert_eq!(known(&chain), None);
    let walked = Chain::walk(chain.network(), chain.versions()).unwrap();
    assert_eq!(walked.issuers, chain.issuers);
}

#[test]
fn more_signatures_than_roots_can_be_are_not_looked_at() {
    let mut chain = chain();
    let mut bundle = next(&chain, |_| (), &[&key(1)]);
    let one = bundle.signatures[0];
    bundle.signatures = vec![one; SIGNATURES_MAX + 1];
    assert_eq!(chain.extend(bundle.clone()), Err(BundleError::Signatures(SIGNATURES_MAX + 1)));
    bundle.signatures = vec![one; SIGNATURES_MAX];
    assert_eq!(chain.extend(bundle), Ok(Extended::New));
}
