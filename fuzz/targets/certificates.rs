//! Certificates and address blocks: as they come from a stranger, and as an issuer signs them that means harm.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use weir_controlplane::pki::certificate::{public_key, read_authority, read_leaf, validity};
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::pki::verifier::verify;
use weir_fuzz::{Edit, NETWORK, NOW, certificate, content, edited, key};

#[derive(Arbitrary, Debug)]
enum Input {
    /// Anything.
    Bytes(Vec<u8>),
    /// A chain of anything.
    Chain(Vec<Vec<u8>>),
    /// A member's certificate with changes, which an issuer has signed.
    Leaf { member: u8, edits: Vec<Edit>, signer: u8 },
    /// An issuer's certificate with changes, which a root has signed, above a member's own.
    Issuer { member: u8, edits: Vec<Edit>, signer: u8 },
}

fn read(der: &[u8]) {
    let _ = (public_key(der), validity(der));
    if let Ok(fields) = read_leaf(der) {
        assert_eq!(read_leaf(der), Ok(fields));
    }
    let _ = read_authority(der);
    if let Ok(blocks) = IpBlocks::from_der(der) {
        // What is written is as narrow as what is read: one value has one encoding (X.690 §10).
        assert_eq!(blocks.to_der(), der);
        if let IpBlocks::Explicit(resources) = &blocks {
            assert_eq!(&Resources::from_prefixes(resources.prefixes()), resources);
        }
    }
}

fn judge(chain: &[Vec<u8>]) {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let revoked = RevocationSet::default();
    if let Ok(member) = verify(&chain, NETWORK.chain.current(), NETWORK.id(), &revoked, NOW) {
        let derived = NodeId::derive(NETWORK.id(), &member.identity.0, member.nonce);
        assert_eq!(member.node, derived);
        let by_the_first = member.issuer == key(3).public().id();
        let granted = Resources::from_prefixes(["10.0.0.0/8", "fd00::/8"].map(|prefix| prefix.parse().unwrap()));
        assert!(!by_the_first || granted.contains(&member.prefixes), "{member:?}");
    }
}

fuzz_target!(|input: Input| match input {
    Input::Bytes(bytes) => read(&bytes),
    Input::Chain(chain) => judge(&chain),
    Input::Leaf { member, edits, signer } => {
        let leaf = certificate(&edited(content(&NETWORK.leaf(member)).to_vec(), &edits), &key(3 + signer % 2));
        read(&leaf);
        judge(&[leaf, NETWORK.issuer_der.clone()]);
    }
    Input::Issuer { member, edits, signer } => {
        let issuer = certificate(&edited(content(&NETWORK.issuer_der).to_vec(), &edits), &key(1 + signer % 4));
        read(&issuer);
        judge(&[NETWORK.leaf(member), issuer]);
    }
});
