//! Members of a network that was never founded: real keys, statements and signatures, made when they are needed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weir_controlplane::dht::place::Contact;
use weir_controlplane::dht::record::{Envelope, Judge, Kind, SignedRecord};
use weir_controlplane::pki::bundle::{Bundle, Parameters};
use weir_controlplane::pki::certificate::{
    CertificateError, IssuerSpec, RootSpec, Serial, Validity, issuer_certificate, root_certificate,
};
use weir_controlplane::pki::id::{NetworkId, NodeId, Nonce};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::pki::seen::Seen;
use weir_controlplane::pki::signed::Signed;
use weir_controlplane::pki::statement::{MemberStatement, SignedStatement};
use weir_controlplane::random::Random;
use weir_controlplane::time::UnixSecs;

/// When every run begins.
pub(super) const BEGIN: UnixSecs = UnixSecs(1_800_000_000);
const DAY: u64 = 86_400;
/// Signatures that all nodes together remember as good: every statement and record of a run, so that each is computed once.
const SEEN_MAX: usize = 1 << 20;
/// Bytes of a node's record: two addresses in each family, three anchors, and what it can do.
const VALUE_LEN: usize = 160;

/// The network.
pub(super) struct Network {
    id: NetworkId,
    issuer: PrivateKey,
    bundle: Bundle,
    revoked: RevocationSet,
    seen: Seen,
}

/// A member.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) contact: Contact,
    identity: PrivateKey,
    statement: Arc<SignedStatement>,
}

impl Network {
    pub(super) fn new(random: &mut impl Random) -> Result<Self, CertificateError> {
        let validity = Validity { not_before: UnixSecs(BEGIN.0 - DAY), not_after: UnixSecs(BEGIN.0 + 300 * DAY) };
        let (root, issuer) = (PrivateKey::generate(random), PrivateKey::generate(random));
        let spec = RootSpec { label: "A", network_name: "sim", validity, serial: Serial::draw(random) };
        let root_der = root_certificate(&root, &spec)?;
        let blocks = IpBlocks::Explicit(Resources::everything());
        let spec = IssuerSpec { public: issuer.public(), blocks, validity, serial: Serial::draw(random) };
        let issuer_der = issuer_certificate(&root, &root_der, &spec)?;
        let bundle = Bundle {
            version: 1,
            previous: None,
            network_name: "sim".into(),
            default_allow: true,
            roots: vec![root_der],
            issuers: vec![issuer_der],
            revoked_issuers: vec![],
            revokers: vec![],
            slices: vec![],
            dns_parent: "internal".into(),
            operators: vec![],
            parameters: Parameters::default(),
        };
        let (revoked, seen) = (RevocationSet::default(), Seen::new(SEEN_MAX));
        Ok(Self { id: NetworkId(random.array()), issuer, bundle, revoked, seen })
    }

    pub(super) fn judge(&self, now: UnixSecs) -> Judge<'_> {
        Judge { network: self.id, bundle: &self.bundle, revoked: &self.revoked, seen: &self.seen, now }
    }

    /// A member with a public address in a /24 of its own, as sites have.
    pub(super) fn enrol(&self, number: u32, random: &mut impl Random) -> Member {
        let (identity, nonce) = (PrivateKey::generate(random), Nonce(random.array()));
        let node = NodeId::derive(self.id, &identity.public().0, nonce);
        let statement = MemberStatement {
            network: self.id,
            node,
            identity: identity.public(),
            nonce,
            name: format!("site-{number}"),
            prefixes: vec![],
            groups: vec![],
            ds_digest: None,
            not_before: UnixSecs(BEGIN.0 - DAY),
            not_after: UnixSecs(BEGIN.0 + 30 * DAY),
        };
        let statement = Arc::new(Signed::sign(&statement, &self.issuer));
        Member { contact: Contact { node, address: address(number) }, identity, statement }
    }

    /// What a member says of how it is reached.
    pub(super) fn record(&self, member: &Member, sequence: u64, now: UnixSecs) -> SignedRecord {
        let envelope = Envelope {
            network: self.id,
            kind: Kind::Node,
            key: member.contact.node.into(),
            sequence,
            not_after: UnixSecs(now.0 + DAY),
            node: member.contact.node,
            value: vec![sequence as u8; VALUE_LEN],
        };
        SignedRecord::sign(&envelope, SignedStatement::clone(&member.statement), &member.identity)
    }

    /// The same, as long as a record may be.
    pub(super) fn long_record(&self, member: &Member, sequence: u64, now: UnixSecs) -> SignedRecord {
        let node = member.contact.node;
        let (not_after, value) = (UnixSecs(now.0 + DAY), vec![0; weir_controlplane::dht::record::VALUE_LEN_MAX]);
        let envelope =
            Envelope { network: self.id, kind: Kind::Node, key: node.into(), sequence, not_after, node, value };
        SignedRecord::sign(&envelope, SignedStatement::clone(&member.statement), &member.identity)
    }
}

/// A /24 for each number, below 20.0.0.0/6 or so: public addresses that mean nothing here.
pub(super) fn address(number: u32) -> SocketAddr {
    let [_, high, middle, low] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(20 + high, middle, low, 1), 4646))
}
