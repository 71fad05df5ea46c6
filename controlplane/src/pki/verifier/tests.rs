use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{CertificateParams, CustomExtension, IsCa};

use super::*;
use crate::pki::certificate::{Serial, authority, build};
use crate::pki::fixture::{
    DAY, NETWORK, NOW, Network, around_now, identity_key, issue, key, leaf_key, node, resources,
};
use crate::pki::key::PrivateKey;
use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};
use crate::pki::trust::{SharedTrust, Trust};

type Chain = Vec<CertificateDer<'static>>;

/// A network, and what is asked of it.
struct Question {
    network: Network,
    chain: Chain,
    revoked: RevocationSet,
    now: UnixSecs,
    dialled: Option<NodeId>,
}

impl Question {
    /// A question that is answered with a member.
    fn new() -> Self {
        let network = Network::new();
        let chain = network.chain(1);
        Self { network, chain, revoked: RevocationSet::default(), now: NOW, dialled: Some(node(1)) }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut question = Self::new();
        change(&mut question);
        question
    }

    /// Puts another certificate in the issuer's place, where the peer shows it; the bundle has none.
    fn set_issuer(&mut self, der: Vec<u8>) {
        self.network.bundle.issuers.clear();
        self.chain[1] = der.into();
    }

    fn root_der(&self) -> Vec<u8> {
        self.network.bundle.roots[0].clone()
    }

    /// The same leaf with something else in it, signed by the issuer.
    fn bend_leaf(&mut self, bend: impl FnOnce(&mut CertificateParams)) {
        let mut params = build::leaf_params("mynet", &self.network.spec(1)).unwrap();
        bend(&mut params);
        let (signer, _) = authority(&self.network.issuer, &self.network.issuer_der).unwrap();
        self.chain[0] = sign(&params, &leaf_key(1), &signer);
    }

    /// The same issuer with something else in it, signed by the root.
    fn bend_issuer(&mut self, bend: impl FnOnce(&mut CertificateParams)) {
        let mut params = issuer_params(&self.network.issuer);
        bend(&mut params);
        let root_der = self.root_der();
        let (signer, _) = authority(&self.network.roots[0], &root_der).unwrap();
        let der = sign(&params, &self.network.issuer, &signer);
        self.set_issuer(der.to_vec());
    }

    fn revoke(&mut self, what: Revoked) {
        let entries = vec![Entry { what, reason: "stolen".into(), at: NOW }];
        let list =
            SignedRevocationList::sign(&self.network.issuer, 1, NOW, NOW.plus(Duration::from_secs(DAY)), entries);
        self.revoked.apply(list, &self.network.bundle).unwrap();
    }

    /// The answer, and a look at the counters.
    fn ask(&self) -> Result<Member, VerifyError> {
        let bundle = Arc::new(self.network.bundle.clone());
        let trust = Trust { network: NETWORK, bundle, revoked: Arc::new(self.revoked.clone()) };
        let shared = SharedTrust::new(trust, self.now);
        let answer = shared.verify(&self.chain, self.dialled);
        let refused: Vec<&str> =
            shared.checks().refused().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect();
        let counted = (shared.checks().accepted(), shared.checks().in_grace(), refused);
        let expected = match &answer {
            Ok(member) => (u64::from(!member.in_grace), u64::from(member.in_grace), vec![]),
            Err(error) => (0, 0, vec![error.name()]),
        };
        assert_eq!(counted, expected);
        answer
    }
}

fn sign(
    params: &CertificateParams,
    subject: &PrivateKey,
    signer: &rcgen::Issuer<'_, impl rcgen::SigningKey>,
) -> CertificateDer<'static> {
    params.signed_by(&build::Subject(subject.public()), signer).unwrap().into()
}

fn issuer_params(issuer: &PrivateKey) -> CertificateParams {
    let id = issuer.public().id();
    let name = build::distinguished_name("mynet", "issuer", id).unwrap();
    let serial = Serial::from_bytes([9; 16]);
    build::authority_params(name, id, 0, &IpBlocks::Inherit, around_now(DAY, DAY), serial).unwrap()
}

fn ip_blocks(der: Vec<u8>) -> Vec<CustomExtension> {
    vec![CustomExtension::from_oid_content(&IpBlocks::OID, der)]
}

/// A key that says it were of another kind.
struct Pretender(PrivateKey, Vec<u8>);

impl Pretender {
    fn new(key: PrivateKey) -> Self {
        let public = key.public().0.to_vec();
        Self(key, public)
    }
}

impl rcgen::PublicKeyData for Pretender {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Pretender {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign_raw(message).0.to_vec())
    }
}

#[test]
fn a_members_chain_tells_everything_about_it() {
    let question = Question::new();
    let member = Member {
        node: node(1),
        identity: identity_key(1).public(),
        nonce: Nonce([1; 16]),
        name: "berlin".into(),
        prefixes: resources(&["10.1.1.0/24"]),
        groups: vec!["edge".into()],
        roles: vec!["relay".into()],
        issuer: question.network.issuer.public().id(),
        not_before: UnixSecs(NOW.0 - 3600),
        not_after: UnixSecs(NOW.0 + DAY),
        in_grace: false,
    };
    assert_eq!(question.ask(), Ok(member));
    assert!(Question::with(|question| question.dialled = None).ask().is_ok());
}

#[test]
fn a_leaf_is_good_from_its_first_second_to_the_end_of_its_grace() {
    let at = |secs: u64, grace_secs: u32| {
        let question = Question::with(|question| {
            question.now = UnixSecs(secs);
            question.network.bundle.parameters.grace_secs = grace_secs;
        });
        question.ask().map(|member| member.in_grace)
    };
    let (begin, end) = (NOW.0 - 3600, NOW.0 + DAY);
    assert_eq!(at(begin - 1, 100), Err(VerifyError::NotYetValid(UnixSecs(begin))));
    assert_eq!((at(begin, 100), at(end, 100)), (Ok(false), Ok(false)));
    assert_eq!((at(end + 1, 100), at(end + 100, 100)), (Ok(true), Ok(true)));
    assert_eq!(at(end + 101, 100), Err(VerifyError::Expired(UnixSecs(end))));
    assert_eq!((at(end, 0), at(end + 1, 0)), (Ok(false), Err(VerifyError::Expired(UnixSecs(end)))));
}

/// The issuer ends with the leaf; within the leaf's grace its end is no objection, but its revocation is.
#[test]
fn grace_outlives_the_issuers_end_but_not_a_revocation() {
    let graced = || {
        Question::with(|question| {
            question.bend_issuer(|_| {});
            question.now = UnixSecs(NOW.0 + 3 * DAY);
        })
    };
    assert_eq!(graced().ask().map(|member| member.in_grace), Ok(true));
    let mut question = graced();
    question.network.bundle.issuers = vec![question.network.issuer_der.clone()];
    question.revoke(Revoked::Node(node(1)));
    assert_eq!(question.ask(), Err(VerifyError::NodeRevoked(node(1))));
}

/// The peer shows its issuer as the old root certified it; the bundle has dropped that root and has the issuer from the new one.
#[test]
fn an_issuer_that_another_root_certified_is_found_in_the_bundle() {
    let question = Question::with(|question| {
        let bundle = &mut question.network.bundle;
        let blocks = IpBlocks::Inherit;
        let (root, root_der) = (&question.network.roots[1], &bundle.roots[1]);
        bundle.issuers = vec![issue(root, root_der, &question.network.issuer, blocks, around_now(DAY, 30 * DAY))];
        bundle.roots.remove(0);
    });
    assert!(question.ask().is_ok());
    let alone = Question::with(|question| {
        question.network.bundle.roots.remove(0);
    });
    assert_eq!(alone.ask(), Err(VerifyError::UnknownIssuer));
}

/// An issuer whose certificate of last year granted less: the one in the bundle grants enough.
#[test]
fn what_one_certificate_of_an_issuer_lacks_another_may_have() {
    let question = Question::with(|question| {
        let blocks = IpBlocks::Explicit(resources(&["10.2.0.0/16"]));
        let root_der = question.root_der();
        let old = issue(&question.network.roots[0], &root_der, &question.network.issuer, blocks, around_now(DAY, DAY));
        question.chain[1] = old.into();
    });
    assert!(question.ask().is_ok());
}

#[test]
fn a_leaf_alone_is_enough_when_the_bundle_has_its_issuer() {
    assert!(Question::with(|question| question.chain.truncate(1)).ask().is_ok());
}

#[test]
fn issuers_that_inherit_grant_what_the_root_has() {
    assert!(Question::with(|question| question.bend_issuer(|_| {})).ask().is_ok());
}

/// One case, or more, for each cause; the last line finds a cause that has none.
#[test]
fn every_cause_of_refusal_is_told_apart() {
    use CertificateError as Cert;
    use VerifyError as E;
    let network = Network::new();
    let issuer_id = network.issuer.public().id();
    let ends = UnixSecs(NOW.0 + DAY);
    let stranger = identity_key(2).public();
    let other_node = NodeId::derive(NETWORK, &stranger.0, Nonce([1; 16]));
    let wide = resources(&["10.1.1.0/24", "11.0.0.0/8"]);
    let mut reached = std::collections::BTreeSet::new();
    let mut refused = |what: &str, expected: VerifyError, change: &dyn Fn(&mut Question)| {
        let answer = Question::with(change).ask();
        assert_eq!(answer, Err(expected.clone()), "{what}");
        reached.insert(expected.name());
    };

    refused("nothing", E::NoCertificate, &|q| q.chain.clear());
    refused("three certificates", E::ChainTooLong(3), &|q| q.chain.push(q.chain[1].clone()));
    refused("bytes", E::Certificate(Step::Leaf, Cert::Malformed), &|q| q.chain[0] = vec![0x30, 0x00].into());
    refused("too many bytes", E::Certificate(Step::Leaf, Cert::TooLong(8193)), &|q| q.chain[0] = vec![0; 8193].into());
    let usage = Cert::Profile("key usage: signatures, as client and as server");
    refused("the issuer itself", E::Certificate(Step::Leaf, usage), &|q| drop(q.chain.remove(0)));
    let inherited = Cert::Profile("addresses of its own");
    refused("an inheriting leaf", E::Certificate(Step::Leaf, inherited), &|q| {
        q.bend_leaf(|leaf| leaf.custom_extensions = ip_blocks(IpBlocks::Inherit.to_der()));
    });
    refused("addresses twice", E::Certificate(Step::Leaf, Cert::Profile("extensions: one occurs twice")), &|q| {
        q.bend_leaf(|leaf| leaf.custom_extensions.push(leaf.custom_extensions[0].clone()));
    });
    let no_id = Cert::Profile("key id in its subject");
    refused("a leaf under another's subject", E::Certificate(Step::Leaf, no_id), &|q| {
        let name = build::distinguished_name("mynet", "berlin", key(9).public().id()).unwrap();
        q.bend_leaf(|leaf| leaf.distinguished_name = name);
    });
    refused(
        "an issuer without keyCertSign",
        E::Certificate(Step::Issuer, Cert::Profile("right to sign certificates")),
        &|q| {
            q.bend_issuer(|issuer| issuer.key_usages.clear());
        },
    );

    refused("a leaf by another algorithm", E::Algorithm, &|q| {
        let params = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        let signer = rcgen::Issuer::new(issuer_params(&q.network.issuer), Pretender::new(q.network.issuer.clone()));
        q.chain[0] = sign(&params, &leaf_key(1), &signer);
    });
    refused("a leaf key of another kind", E::Algorithm, &|q| {
        let params = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        let (signer, _) = authority(&q.network.issuer, &q.network.issuer_der).unwrap();
        q.chain[0] = params.signed_by(&Pretender::new(leaf_key(1)), &signer).unwrap().into();
    });
    refused("an issuer by another algorithm", E::Algorithm, &|q| {
        let root_der = q.root_der();
        let root = read_authority(&root_der).unwrap();
        let name = build::distinguished_name("mynet", &root.name, root.public.id()).unwrap();
        let mut params = issuer_params(&q.network.roots[0]);
        params.distinguished_name = name;
        let signer = rcgen::Issuer::new(params, Pretender::new(q.network.roots[0].clone()));
        let der = sign(&issuer_params(&q.network.issuer), &q.network.issuer, &signer);
        q.set_issuer(der.to_vec());
    });

    refused("too early", E::NotYetValid(UnixSecs(NOW.0 - 3600)), &|q| q.now = UnixSecs(NOW.0 - 3601));
    refused("too late", E::Expired(ends), &|q| q.now = UnixSecs(NOW.0 + 9 * DAY));
    refused("no issuer", E::UnknownIssuer, &|q| {
        q.network.bundle.issuers.clear();
        q.chain.truncate(1);
    });
    refused("a bent signature", E::BadSignature, &|q| {
        let mut der = q.chain[0].to_vec();
        *der.last_mut().unwrap() ^= 1;
        q.chain[0] = der.into();
    });
    refused("another issuer of the same name", E::BadSignature, &|q| {
        let params = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        let signer = rcgen::Issuer::new(issuer_params(&q.network.issuer), build::Signer::new(&q.network.roots[1]));
        q.chain[0] = sign(&params, &leaf_key(1), &signer);
    });
    refused("an issuer to come", E::IssuerNotYetValid, &|q| {
        q.bend_issuer(|issuer| issuer.not_before = issuer.not_after);
    });
    refused("an issuer that was", E::IssuerExpired, &|q| {
        q.bend_issuer(|issuer| issuer.not_after = issuer.not_before);
    });
    refused("a member that certifies another", E::Usage, &|q| {
        let member = build::leaf_params("mynet", &q.network.spec(2)).unwrap();
        let other = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        let above = q.network.chain(2).remove(0);
        let member_key = leaf_key(2);
        let signer = rcgen::Issuer::new(member, build::Signer::new(&member_key));
        q.chain = vec![sign(&other, &leaf_key(1), &signer), above];
    });
    refused("an issuer below an issuer", E::PathLength, &|q| {
        let (above, _) = authority(&q.network.issuer, &q.network.issuer_der).unwrap();
        let below = key(9);
        let params = issuer_params(&below);
        let sub = sign(&params, &below, &above);
        let leaf = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        let signer = rcgen::Issuer::new(params, build::Signer::new(&below));
        q.chain = vec![sign(&leaf, &leaf_key(1), &signer), sub];
    });
    refused("a leaf below a root", E::PathLength, &|q| {
        let root_der = q.root_der();
        let (root, _) = authority(&q.network.roots[0], &root_der).unwrap();
        let leaf = build::leaf_params("mynet", &q.network.spec(1)).unwrap();
        q.chain[0] = sign(&leaf, &leaf_key(1), &root);
    });
    for critical in [[2, 5, 29, 54].as_slice(), &IpBlocks::OID] {
        refused("something critical", E::CriticalExtension, &|q| {
            q.bend_leaf(|leaf| {
                let content = leaf.custom_extensions[0].content().to_vec();
                let mut extension = CustomExtension::from_oid_content(critical, content);
                extension.set_criticality(true);
                leaf.custom_extensions.retain(|other| !other.oid_components().eq(critical.iter().copied()));
                leaf.custom_extensions.push(extension);
            });
        });
    }
    let garbled = E::Path(webpki::Error::TrailingData(webpki::DerTypeId::SignedData));
    refused("an issuer of bytes", garbled, &|q| q.set_issuer(vec![0x30, 0x01]));

    refused("an issuer on a list", E::IssuerRevoked(issuer_id), &|q| q.revoke(Revoked::Issuer(issuer_id)));
    refused("an issuer in the bundle", E::IssuerRevoked(issuer_id), &|q| {
        q.network.bundle.revoked_issuers.push(issuer_id);
    });
    refused("a leaf without addresses", E::ResourcesMissing(Step::Leaf), &|q| {
        q.bend_leaf(|leaf| leaf.custom_extensions.clear());
    });
    refused("an issuer without addresses", E::ResourcesMissing(Step::Issuer), &|q| {
        q.bend_issuer(|issuer| issuer.custom_extensions.clear());
    });
    refused("a root that inherits", E::ResourcesMissing(Step::Root), &|q| {
        let root = read_authority(&q.root_der()).unwrap();
        let mut params = issuer_params(&q.network.roots[0]);
        params.distinguished_name = build::distinguished_name("mynet", &root.name, root.public.id()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
        let der = params.self_signed(&build::Signer::new(&q.network.roots[0])).unwrap();
        q.network.bundle.roots[0] = der.der().to_vec();
    });
    refused("addresses of bytes", E::ResourcesMalformed(Step::Leaf, ResourcesError::Malformed), &|q| {
        q.bend_leaf(|leaf| leaf.custom_extensions = ip_blocks(vec![0x30, 0x02, 0x05, 0x00]));
    });
    refused("an issuer's addresses of bytes", E::ResourcesMalformed(Step::Issuer, ResourcesError::Unsupported), &|q| {
        let v4_inherits = vec![0x30, 0x08, 0x30, 0x06, 0x04, 0x02, 0x00, 0x01, 0x05, 0x00];
        q.bend_issuer(|issuer| issuer.custom_extensions = ip_blocks(v4_inherits));
    });
    refused("a leaf's prefix that is not the issuer's", E::ResourcesExceeded(Step::Leaf, wide.clone()), &|q| {
        let blocks = IpBlocks::Explicit(wide.clone());
        q.bend_leaf(|leaf| leaf.custom_extensions = ip_blocks(blocks.to_der()));
    });
    refused(
        "an issuer's prefix that is not the root's",
        E::ResourcesExceeded(Step::Issuer, resources(&["::/0"])),
        &|q| {
            let root = read_authority(&q.root_der()).unwrap();
            let mut params = issuer_params(&q.network.roots[0]);
            params.distinguished_name = build::distinguished_name("mynet", &root.name, root.public.id()).unwrap();
            params.custom_extensions = ip_blocks(IpBlocks::Explicit(resources(&["0.0.0.0/0"])).to_der());
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
            let der = params.self_signed(&build::Signer::new(&q.network.roots[0])).unwrap();
            q.network.bundle.roots[0] = der.der().to_vec();
            let beyond = IpBlocks::Explicit(resources(&["::/0"]));
            q.bend_issuer(|issuer| issuer.custom_extensions = ip_blocks(beyond.to_der()));
        },
    );

    let elsewhere = NetworkId([8; 32]);
    refused("a member of another network", E::OtherNetwork(elsewhere), &|q| {
        let chain = q.network.chain_of(&crate::pki::certificate::LeafSpec { network: elsewhere, ..q.network.spec(1) });
        q.chain = chain;
    });
    refused("another's identity", E::NodeIdMismatch { claimed: node(1), computed: other_node }, &|q| {
        let other = crate::pki::certificate::LeafSpec { identity: stranger, ..q.network.spec(1) };
        let theirs = build::leaf_params("mynet", &other).unwrap();
        q.bend_leaf(|leaf| leaf.subject_alt_names[1..].clone_from_slice(&theirs.subject_alt_names[1..]));
    });
    refused("a revoked member", E::NodeRevoked(node(1)), &|q| q.revoke(Revoked::Node(node(1))));
    let wrong = E::OtherNode { expected: node(2), found: node(1) };
    refused("not who was dialled", wrong, &|q| q.dialled = Some(node(2)));

    let all: std::collections::BTreeSet<&str> = E::NAMES.into_iter().collect();
    assert_eq!((reached, all.len()), (all, E::NAMES.len()));
}

proptest! {
    /// No byte of a chain can be changed without a refusal, and nothing panics.
    #[test]
    fn a_bent_chain_is_never_believed(
        which in 0usize..2, at in any::<proptest::sample::Index>(), flip in 1u8..=255
    ) {
        let mut question = Question::new();
        question.network.bundle.issuers.clear();
        let mut der = question.chain[which].to_vec();
        let at = at.index(der.len());
        der[at] ^= flip;
        question.chain[which] = der.into();
        prop_assert!(question.ask().is_err());
    }

    /// Whatever stands there instead, signed by the issuer, is an answer and no panic; and nobody gets what the issuer does not have.
    #[test]
    fn hostile_address_blocks_are_an_answer(content in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut question = Question::new();
        let der = [&[0x30, content.len() as u8], &content[..]].concat();
        question.bend_leaf(|leaf| leaf.custom_extensions = ip_blocks(der));
        if let Ok(member) = question.ask() {
            prop_assert!(resources(&["10.0.0.0/8", "fd00::/8"]).contains(&member.prefixes));
        }
    }
}
