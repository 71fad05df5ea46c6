//! A small network for tests: two roots, an issuer with two slices, and members as many as a test asks for.

use rustls_pki_types::CertificateDer;
use weir_dataplane::api::Prefix;

use super::bundle::{Bundle, Parameters};
use super::certificate::{
    IssuerSpec, LeafSpec, RootSpec, Serial, Validity, issuer_certificate, leaf_certificate, root_certificate,
};
use super::id::{NetworkId, NodeId, Nonce};
use super::key::PrivateKey;
use super::resources::{IpBlocks, Resources};
use crate::time::UnixSecs;

/// When all tests begin.
pub(crate) const NOW: UnixSecs = UnixSecs(1_800_000_000);
/// A day in seconds.
pub(crate) const DAY: u64 = 86_400;
/// The network.
pub(crate) const NETWORK: NetworkId = NetworkId([7; 32]);

/// A key that is the same in every run.
pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

/// The addresses of these prefixes.
pub(crate) fn resources(prefixes: &[&str]) -> Resources {
    Resources::from_prefixes(prefixes.iter().map(|prefix| prefix.parse::<Prefix>().unwrap()))
}

/// From so many seconds before [`NOW`] to so many after it.
pub(crate) fn around_now(before: u64, after: u64) -> Validity {
    Validity { not_before: UnixSecs(NOW.0 - before), not_after: UnixSecs(NOW.0 + after) }
}

/// The network's keys, certificates and bundle.
pub(crate) struct Network {
    /// Roots A and B.
    pub(crate) roots: [PrivateKey; 2],
    /// The issuer.
    pub(crate) issuer: PrivateKey,
    /// Its certificate.
    pub(crate) issuer_der: Vec<u8>,
    /// What holds.
    pub(crate) bundle: Bundle,
    groups: Vec<String>,
    roles: Vec<String>,
}

impl Network {
    /// The same in every run. Its issuer may grant 10.0.0.0/8 and fd00::/8.
    pub(crate) fn new() -> Self {
        let roots = [key(1), key(2)];
        let issuer = key(3);
        let root_ders: Vec<Vec<u8>> = ["A", "B"]
            .iter()
            .zip(&roots)
            .zip(1..)
            .map(|((label, root), serial)| {
                let serial = Serial::from_bytes([serial; 16]);
                let validity = around_now(30 * DAY, 3650 * DAY);
                root_certificate(root, &RootSpec { label, network_name: "mynet", validity, serial }).unwrap()
            })
            .collect();
        let granted = IpBlocks::Explicit(resources(&["10.0.0.0/8", "fd00::/8"]));
        let issuer_der = issue(&roots[0], &root_ders[0], &issuer, granted, around_now(10 * DAY, 355 * DAY));
        let bundle = Bundle {
            version: 1,
            previous: None,
            network_name: "mynet".into(),
            default_allow: true,
            roots: root_ders,
            issuers: vec![issuer_der.clone()],
            revoked_issuers: vec![],
            revokers: vec![],
            slices: vec![],
            dns_parent: "internal".into(),
            operators: vec![],
            parameters: Parameters::default(),
        };
        Self { roots, issuer, issuer_der, bundle, groups: vec!["edge".into()], roles: vec!["relay".into()] }
    }

    /// What the certificate of a member says; members differ by their number.
    pub(crate) fn spec(&self, member: u8) -> LeafSpec<'_> {
        LeafSpec {
            leaf_public: leaf_key(member).public(),
            network: NETWORK,
            identity: identity_key(member).public(),
            nonce: Nonce([member; 16]),
            name: "berlin",
            prefixes: Resources::from_prefixes([Prefix::new([10, 1, member, 0].into(), 24).unwrap()]),
            groups: &self.groups,
            roles: &self.roles,
            validity: around_now(3600, DAY),
            serial: Serial::from_bytes([member; 16]),
        }
    }

    /// A member's chain as it shows it.
    pub(crate) fn chain(&self, member: u8) -> Vec<CertificateDer<'static>> {
        self.chain_of(&self.spec(member))
    }

    /// The chain of a certificate that says this.
    pub(crate) fn chain_of(&self, spec: &LeafSpec<'_>) -> Vec<CertificateDer<'static>> {
        let leaf = leaf_certificate(&self.issuer, &self.issuer_der, spec).unwrap();
        vec![leaf.into(), self.issuer_der.clone().into()]
    }
}

/// An issuer's certificate.
pub(crate) fn issue(
    root: &PrivateKey,
    root_der: &[u8],
    issuer: &PrivateKey,
    blocks: IpBlocks,
    validity: Validity,
) -> Vec<u8> {
    let serial = Serial::from_bytes([0x33; 16]);
    issuer_certificate(root, root_der, &IssuerSpec { public: issuer.public(), blocks, validity, serial }).unwrap()
}

/// A member's key for TLS.
pub(crate) fn leaf_key(member: u8) -> PrivateKey {
    PrivateKey::from_seed(&[[100, member]; 16].concat().try_into().unwrap())
}

/// A member's identity key.
pub(crate) fn identity_key(member: u8) -> PrivateKey {
    PrivateKey::from_seed(&[[200, member]; 16].concat().try_into().unwrap())
}

/// A member's id.
pub(crate) fn node(member: u8) -> NodeId {
    NodeId::derive(NETWORK, &identity_key(member).public().0, Nonce([member; 16]))
}
