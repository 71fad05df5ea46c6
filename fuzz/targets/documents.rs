//! Signed documents, as a thief of keys writes them: the signatures are good, and what they cover is anything.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::codec;
use weir_controlplane::node::directory::{Directory, ENDPOINTS_MAX, Judge, Record, SignedRecord};
use weir_controlplane::pki::admission::{AdmissionDocument, AdmissionKeys};
use weir_controlplane::pki::bundle::{Bundle, SignedBundle};
use weir_controlplane::pki::id::Nonce;
use weir_controlplane::pki::key::Domain;
use weir_controlplane::pki::revocation::{Entry, RevocationSet, Revoked, SignedRevocationList};
use weir_controlplane::pki::statement::{self, MemberStatement};
use weir_controlplane::policy::{History, SignedPolicy};
use weir_controlplane::time::UnixSecs;
use weir_fuzz::{Edit, NETWORK, NOW, edited, identity_key, key, root, signed};
use zeroize::Zeroizing;

/// What a document says: anything, or a good one with changes.
#[derive(Arbitrary, Debug)]
enum Body {
    Bytes(Vec<u8>),
    Edited(Vec<Edit>),
}

impl Body {
    fn of(&self, good: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Edited(edits) => edited(good, edits),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Bundle { body: Body, signers: [u8; 2], rotates: bool },
    Revocations { signer: u8, version: u8, nodes: Vec<u8>, from: u32, left_out: u8, head: Body },
    Admission { signer: u8, version: u8, body: Body },
    Record { signer: u8, member: u8, sequence: u8, statement: Body, body: Body },
    Policy { signer: u8, version: u8, text: String, body: Body },
}

/// Mostly somebody who may, now and then a stranger.
fn signer(number: u8) -> weir_controlplane::pki::key::PrivateKey {
    key(number % 8)
}

fuzz_target!(|steps: Vec<Step>| {
    let mut chain = NETWORK.chain.clone();
    let mut revoked = RevocationSet::default();
    let (mut directory, mut history) = (Directory::default(), History::default());
    let mut admission: Option<AdmissionKeys> = None;
    for step in steps.into_iter().take(16) {
        match step {
            Step::Bundle { body, signers, rotates } => {
                let mut next = chain.successor();
                if rotates {
                    next.roots[0] = root(7, "C");
                }
                let zones = SignedBundle::sign(&next, Some(chain.network()), &[&key(1), &key(2)]).zones;
                let body = body.of(codec::encode(&next));
                let sign = |number: u8| {
                    let root = key(number % 8);
                    (root.public().id(), root.sign(Domain::Bundle, &body))
                };
                let signatures = signers.map(sign).to_vec();
                let before = chain.current().version;
                let taken = chain.extend(SignedBundle { body, signatures, zones });
                // Versions come one by one, and what is refused changes nothing.
                let after = chain.current().version;
                assert!(after == before || taken.is_ok() && after == before + 1, "{taken:?}");
                chain.current().check().expect("what holds is well formed");
                revoked.retain(chain.current());
            }
            Step::Revocations { signer: number, version, nodes, from, left_out, head } => {
                let by = signer(number);
                let entry = |member: &u8| {
                    let what = Revoked::Node(NETWORK.node(*member));
                    Entry { what, reason: "stolen".into(), at: NOW }
                };
                let entries = nodes.iter().take(8).map(entry).collect();
                let whole = SignedRevocationList::sign(&by, version.into(), NOW, UnixSecs(NOW.0 + 3600), entries);
                let head = signed(&head.of(whole.head.body.clone()), &by);
                let entries = whole.entries.into_iter().skip(left_out.into()).collect();
                let before: Vec<Entry> = revoked.entries().cloned().collect();
                let applied = revoked.apply(SignedRevocationList { head, from, entries }, chain.current());
                // Nothing is ever taken back.
                assert!(before.iter().all(|entry| revoked.is_revoked(entry.what)));
                let added = applied.map_or(0, |applied| applied.added.len());
                assert_eq!(revoked.entries().count(), before.len() + added);
            }
            Step::Admission { signer: number, version, body } => {
                let document =
                    AdmissionDocument { version: version.into(), seed: Zeroizing::new([number; 32]), since: NOW };
                let document = signed(&body.of(codec::encode(&document)), &signer(number));
                match &mut admission {
                    Some(keys) => drop(keys.apply(document, chain.current(), &revoked)),
                    None => admission = AdmissionKeys::new(document, chain.current(), &revoked).ok(),
                }
                if let Some(keys) = &admission {
                    assert!(keys.accepted(NOW).contains(&keys.today(NOW)));
                }
            }
            Step::Record { signer: number, member, sequence, statement: said, body } => {
                let identity = identity_key(member);
                let node = NETWORK.node(member);
                let good = MemberStatement {
                    network: NETWORK.id(),
                    node,
                    identity: identity.public(),
                    nonce: Nonce([member; 16]),
                    name: format!("site-{member}"),
                    prefixes: vec![],
                    groups: vec![],
                    ds_digest: None,
                    not_before: NOW,
                    not_after: UnixSecs(NOW.0 + 86_400),
                };
                let statement = signed(&said.of(codec::encode(&good)), &signer(number));
                let sequence = NOW.0 + u64::from(sequence);
                let not_after = UnixSecs(NOW.0 + 86_400);
                let record = Record { node, sequence, not_after, endpoints: vec![], workers: 2 };
                let body = body.of(codec::encode(&record));
                let signature = identity.sign(Domain::Record, &body);
                let bundle: &Bundle = chain.current();
                let judge = Judge { network: NETWORK.id(), bundle, revoked: &revoked, now: NOW };
                let verified = statement::verify(&statement, judge.network, bundle, &revoked, NOW);
                let taken = directory.accept(SignedRecord { statement, body, signature }, judge);
                if let Ok(Some(node)) = taken {
                    let entry = directory.entry(node).expect("it was taken");
                    assert!(entry.record.node == node && entry.statement.node == node && verified.is_ok());
                    assert!(!revoked.is_node_revoked(node) && entry.record.endpoints.len() <= ENDPOINTS_MAX);
                }
            }
            Step::Policy { signer: number, version, text, body } => {
                let by = signer(number);
                let Ok(good) = SignedPolicy::body(NETWORK.id(), version.into(), NOW, "default = \"deny\"") else {
                    continue;
                };
                let body = if text.is_empty() { body.of(good) } else { with_text(version, &text) };
                let signature = by.sign(Domain::Policy, &body);
                let policy = SignedPolicy::assemble(body, by.public(), signature);
                let before = history.next_version();
                let taken = history.apply(policy, NETWORK.id(), &chain.current().operators(&revoked), NOW).is_ok();
                // A version below is refused; of two with one number the same is followed by all.
                assert!(history.next_version() == before || taken && history.next_version() > before);
            }
        }
    }
});

/// A policy's body around whatever text.
fn with_text(version: u8, text: &str) -> Vec<u8> {
    codec::encode(&(NETWORK.id(), u64::from(version), NOW, text))
}
