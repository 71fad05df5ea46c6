//! A small network for the tests of this module: an issuer, and members as many as a test asks for.

use std::net::{Ipv4Addr, SocketAddr};

use super::place::{Contact, Peer};
use super::record::{Envelope, Judge, Kind, ServiceValue, SignedRecord};
use crate::pki::fixture::Network;
pub(super) use crate::pki::fixture::{NOW, key};
use crate::pki::id::{NetworkId, NodeId, Nonce};
use crate::pki::key::PrivateKey;
use crate::pki::revocation::RevocationSet;
use crate::pki::seen::Seen;
use crate::pki::signed::Signed;
use crate::pki::statement::MemberStatement;
use crate::time::UnixSecs;

pub(super) struct Fixture {
    network: Network,
    revoked: RevocationSet,
    seen: Seen,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self { network: Network::new(), revoked: RevocationSet::default(), seen: Seen::new(1 << 16) }
    }

    pub(super) fn network(&self) -> NetworkId {
        crate::pki::fixture::NETWORK
    }

    pub(super) fn judge(&self) -> Judge<'_> {
        self.judge_at(NOW)
    }

    pub(super) fn judge_at(&self, now: UnixSecs) -> Judge<'_> {
        let Self { network, revoked, seen } = self;
        Judge { network: self.network(), bundle: &network.bundle, revoked, seen, now }
    }

    fn identity(&self, member: u16) -> PrivateKey {
        let [high, low] = member.to_be_bytes();
        PrivateKey::from_seed(&[[150, high, low, 1]; 8].concat().try_into().unwrap())
    }

    pub(super) fn node(&self, member: u16) -> NodeId {
        NodeId::derive(self.network(), &self.identity(member).public().0, Nonce([1; 16]))
    }

    pub(super) fn statement(&self, member: u16) -> MemberStatement {
        MemberStatement {
            network: self.network(),
            node: self.node(member),
            identity: self.identity(member).public(),
            nonce: Nonce([1; 16]),
            name: format!("site-{member}"),
            prefixes: vec![],
            groups: vec![],
            ds_digest: None,
            not_before: UnixSecs(NOW.0 - 3600),
            not_after: UnixSecs(NOW.0 + 30 * 86_400),
        }
    }

    pub(super) fn signed(&self, member: u16, envelope: &Envelope) -> SignedRecord {
        self.signed_as(&self.statement(member), member, envelope)
    }

    /// The same beside another statement of the member's.
    pub(super) fn signed_as(&self, statement: &MemberStatement, member: u16, envelope: &Envelope) -> SignedRecord {
        let statement = Signed::sign(statement, &self.network.issuer);
        SignedRecord::sign(envelope, statement, &self.identity(member))
    }

    /// The value of a service that says this.
    pub(super) fn service(label: &str, says: &[u8]) -> Vec<u8> {
        ServiceValue { label: label.into(), port: 80, texts: says.chunks(255).map(<[u8]>::to_vec).collect() }.encode()
    }

    /// Good for an hour; of services, that with the label `_test._tcp`.
    pub(super) fn record(&self, member: u16, kind: Kind, sequence: u64, value: &[u8]) -> SignedRecord {
        let value = if kind == Kind::Service { Self::service("_test._tcp", value) } else { value.to_vec() };
        self.record_of(member, kind, sequence, value)
    }

    pub(super) fn record_of(&self, member: u16, kind: Kind, sequence: u64, value: Vec<u8>) -> SignedRecord {
        let statement = self.statement(member);
        let envelope = Envelope {
            network: self.network(),
            kind,
            key: kind.key_of(&statement, &value).unwrap(),
            sequence,
            not_after: UnixSecs(NOW.0 + 3600),
            node: statement.node,
            value,
        };
        self.signed(member, &envelope)
    }
}

/// A contact with a public address in a /24 of its own.
pub(super) fn contact(node: NodeId, number: u16) -> Contact {
    let [high, low] = number.to_be_bytes();
    Contact { node, address: SocketAddr::from((Ipv4Addr::new(20, high, low, 1), 4646)) }
}

pub(super) fn peer(contact: Contact) -> Peer {
    Peer { contact, site: None }
}
