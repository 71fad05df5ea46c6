//! Records: what a member says to whoever asks, kept by others, believed for its signature.
//!
//! ```text
//!  statement ─ who the signer is, by an issuer        envelope ─ network (32) │ kind │ key (32) │ sequence │ not after │ node (32) │ value
//!  signature ─ by the signer's identity key over "weir-dht-" ‖ kind ‖ "-1" ‖ 0x00 ‖ envelope
//! ```
//!
//! The key of each kind follows from the statement, so nobody publishes in another's place, and a member has one place of each kind; of services
//! it has one for each label, which stands in the value. What else a value means is not known here.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::place::Key;
pub use super::value::{NodeValue, RevocationsValue, ServiceValue, VALUE_LEN_MAX, ValueError};
use crate::codec::{self, DecodeError};
use crate::pki::bundle::Bundle;
use crate::pki::id::{NetworkId, NodeId, overlay_address, sha256};
use crate::pki::key::{Domain, PrivateKey, Signature};
use crate::pki::revocation::RevocationSet;
use crate::pki::seen::Seen;
use crate::pki::statement::{self, MemberStatement, SignedStatement, StatementError};
use crate::time::UnixSecs;

/// Longest envelope: the longest value, three ids, and numbers.
pub const ENVELOPE_LEN_MAX: usize = VALUE_LEN_MAX + 160;
/// How long a record may be good for, from now. Ours: as a leaf in grace, so that whoever is away for a week is still found.
pub const LIFETIME_MAX_SECS: u64 = 8 * 86_400;

/// What a record is about. Numbers are part of the format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// How a node is reached; lies at its id.
    Node,
    /// What a member says under its name.
    Name,
    /// The keys of a member's zone.
    Zone,
    /// Who has an overlay address.
    Overlay,
    /// Where a service of a member is; one record for each.
    Service,
    /// Which revocation lists an issuer's node holds.
    Revocations,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Node, Self::Name, Self::Zone, Self::Overlay, Self::Service, Self::Revocations];

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Name => "name",
            Self::Zone => "zone",
            Self::Overlay => "overlay",
            Self::Service => "service",
            Self::Revocations => "revocations",
        }
    }

    /// What such a record is signed for.
    pub const fn domain(self) -> Domain {
        match self {
            Self::Node => Domain::DhtNode,
            Self::Name => Domain::DhtName,
            Self::Zone => Domain::DhtZone,
            Self::Overlay => Domain::DhtOverlay,
            Self::Service => Domain::DhtService,
            Self::Revocations => Domain::DhtRevocations,
        }
    }

    /// Whether a member may have several records of this kind at once.
    pub(super) const fn has_many_places(self) -> bool {
        matches!(self, Self::Service)
    }

    /// Where a member's record of this kind lies; of a service, that with this value.
    ///
    /// # Errors
    /// [`ValueError`]: the value names no service.
    pub fn key_of(self, member: &MemberStatement, value: &[u8]) -> Result<Key, ValueError> {
        Ok(match self {
            Self::Node => member.node.into(),
            Self::Name => name_key(member.network, &member.name),
            Self::Zone => zone_key(member.network, &member.name),
            Self::Overlay => overlay_key(member.network, overlay_address(member.network, member.node)),
            Self::Service => service_key(member.network, &ServiceValue::decode(value)?.label, &member.name),
            Self::Revocations => revocations_key(member.network, member.node),
        })
    }
}

/// Where the record of a name lies.
pub fn name_key(network: NetworkId, name: &str) -> Key {
    Key(sha256("weir-dht-key-name-1", &[&network.0, name.as_bytes()]))
}

/// Where the record of the zone below a member's name lies.
pub fn zone_key(network: NetworkId, name: &str) -> Key {
    Key(sha256("weir-dht-key-zone-1", &[&network.0, name.as_bytes()]))
}

/// Where the record of an overlay address lies.
pub fn overlay_key(network: NetworkId, address: Ipv6Addr) -> Key {
    Key(sha256("weir-dht-key-overlay-1", &[&network.0, &address.octets()]))
}

/// Where the record of a member's service lies: `label` as in `_http._tcp`, `name` that of the member.
pub fn service_key(network: NetworkId, label: &str, name: &str) -> Key {
    // No label has a dot at its end, and no name one at its beginning, so one hash is one of both.
    Key(sha256("weir-dht-key-service-1", &[&network.0, label.as_bytes(), b".", name.as_bytes()]))
}

/// Where the record of the revocation lists that a node holds lies.
pub fn revocations_key(network: NetworkId, node: NodeId) -> Key {
    Key(sha256("weir-dht-key-revocations-1", &[&network.0, &node.0]))
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The network.
    pub network: NetworkId,
    /// What it is about.
    pub kind: Kind,
    /// Where it lies.
    pub key: Key,
    /// Higher for each newer one.
    pub sequence: u64,
    /// When it stops to be worth anything.
    pub not_after: UnixSecs,
    /// Who says it.
    pub node: NodeId,
    /// What is said.
    pub value: Vec<u8>,
}

/// A record as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// Who the signer is, by an issuer.
    pub statement: SignedStatement,
    /// [`Envelope`], encoded.
    pub body: Vec<u8>,
    /// Over the body.
    pub signature: Signature,
}

/// By what a record is judged.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// The network that this is.
    pub network: NetworkId,
    /// Its bundle in force.
    pub bundle: &'a Bundle,
    /// Who was revoked.
    pub revoked: &'a RevocationSet,
    /// Statements and records that were found good before.
    pub seen: &'a Seen,
    /// The moment.
    pub now: UnixSecs,
}

/// Why a record is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The envelope is none.
    #[error("the envelope of a record: {0}")]
    Body(#[from] DecodeError),
    /// It belongs to another network.
    #[error("a record of network {0}")]
    OtherNetwork(NetworkId),
    /// The value is too long.
    #[error("a value of {0} bytes, at most {VALUE_LEN_MAX}")]
    ValueLen(usize),
    /// It is past its end.
    #[error("a record that ended at {0}")]
    Expired(UnixSecs),
    /// It claims a life beyond what any may have.
    #[error("a record that claims to be good until {0}")]
    TooLong(UnixSecs),
    /// The signer is no member.
    #[error("the signer of a record: {0}")]
    Statement(#[from] StatementError),
    /// Envelope and statement speak of different members.
    #[error("a record of {envelope} beside the statement of {statement}")]
    OtherNode {
        /// In the envelope.
        envelope: NodeId,
        /// In the statement.
        statement: NodeId,
    },
    /// The value is none of its kind.
    #[error("the value of a record: {0}")]
    Value(#[from] ValueError),
    /// The place is not the signer's.
    #[error("a {kind:?} record of {node} in a place that is not its own")]
    Place {
        /// What it is about.
        kind: Kind,
        /// Whose.
        node: NodeId,
    },
    /// Not signed by the member that it speaks of.
    #[error("the record of {0} is not signed by its identity key")]
    Signature(NodeId),
}

impl RecordError {
    /// Whether an honest holder may see it otherwise, today: its clock differs, or what it knows of issuers and of who was revoked. All else
    /// it could have seen when it was given the record.
    pub(super) fn is_of_the_moment(&self) -> bool {
        match self {
            Self::Expired(_) | Self::TooLong(_) => true,
            Self::Statement(error) => match error {
                StatementError::Stranger(_)
                | StatementError::IssuerRevoked(_)
                | StatementError::Revoked(_)
                | StatementError::NotYet(_)
                | StatementError::Expired(_) => true,
                StatementError::Open(_)
                | StatementError::OtherNetwork(_)
                | StatementError::NodeId
                | StatementError::Name(_) => false,
            },
            Self::Body(_)
            | Self::OtherNetwork(_)
            | Self::ValueLen(_)
            | Self::Value(_)
            | Self::OtherNode { .. }
            | Self::Place { .. }
            | Self::Signature(_) => false,
        }
    }
}

impl SignedRecord {
    /// Signs what we say.
    pub fn sign(envelope: &Envelope, statement: SignedStatement, identity: &PrivateKey) -> Self {
        let body = codec::encode(envelope);
        let signature = identity.sign(envelope.kind.domain(), &body);
        Self { statement, body, signature }
    }

    /// Bytes that it takes in memory and on the wire, within a few.
    pub fn byte_len(&self) -> usize {
        self.statement.body.len() + self.body.len() + size_of::<Signature>() * 2 + size_of::<[u8; 20]>()
    }

    /// What it says, judged by everything but signatures: cheap before dear.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(&self, network: NetworkId, now: UnixSecs) -> Result<Envelope, RecordError> {
        let envelope: Envelope = codec::decode(&self.body, ENVELOPE_LEN_MAX)?;
        if envelope.network != network {
            return Err(RecordError::OtherNetwork(envelope.network));
        }
        if envelope.value.len() > VALUE_LEN_MAX {
            return Err(RecordError::ValueLen(envelope.value.len()));
        }
        if envelope.not_after < now {
            return Err(RecordError::Expired(envelope.not_after));
        }
        if envelope.not_after.0 - now.0 > LIFETIME_MAX_SECS {
            return Err(RecordError::TooLong(envelope.not_after));
        }
        Ok(envelope)
    }

    /// What it says, if all of it is to be believed.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn verify(&self, judge: Judge<'_>) -> Result<Envelope, RecordError> {
        let envelope = self.read(judge.network, judge.now)?;
        self.verify_signer(&envelope, judge)?;
        Ok(envelope)
    }

    /// Whether who [`Self::read`] says signed it did, is a member, and may publish there. Gives the end of that: the record's own, or that of
    /// its signer's statement with the grace that the bundle grants.
    pub(super) fn verify_signer(&self, envelope: &Envelope, judge: Judge<'_>) -> Result<UnixSecs, RecordError> {
        let Judge { network, bundle, revoked, seen, now } = judge;
        let member = statement::verify_seen(&self.statement, network, bundle, revoked, seen, now)?;
        if member.node != envelope.node {
            return Err(RecordError::OtherNode { envelope: envelope.node, statement: member.node });
        }
        if envelope.kind.key_of(&member, &envelope.value)? != envelope.key {
            return Err(RecordError::Place { kind: envelope.kind, node: member.node });
        }
        let good = seen.verify(&member.identity, envelope.kind.domain(), &self.body, &self.signature);
        good.map_err(|_| RecordError::Signature(member.node))?;
        let grace = bundle.parameters.grace_secs.into();
        Ok(envelope.not_after.min(UnixSecs(member.not_after.0.saturating_add(grace))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture, NOW};
    use super::*;
    use crate::pki::id::NetworkId;
    use crate::pki::signed::Signed;

    #[test]
    fn a_record_of_each_kind_is_believed_in_its_own_place_only() {
        let fixture = Fixture::new();
        for kind in Kind::ALL {
            let record = fixture.record(1, kind, 1, b"value");
            let envelope = record.verify(fixture.judge()).unwrap();
            let value = match kind {
                Kind::Service => Fixture::service("_test._tcp", b"value"),
                Kind::Node | Kind::Name | Kind::Zone | Kind::Overlay | Kind::Revocations => b"value".to_vec(),
            };
            assert_eq!((envelope.kind, &envelope.value), (kind, &value));
            for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
                let service = Fixture::service("_test._tcp", b"value");
                let elsewhere = other.key_of(&fixture.statement(1), &service).unwrap();
                let moved = Envelope { key: elsewhere, ..envelope.clone() };
                let node = fixture.node(1);
                assert_eq!(fixture.signed(1, &moved).verify(fixture.judge()), Err(RecordError::Place { kind, node }));
                // The same bytes as another kind: the signature has another domain.
                let turned = Envelope { kind: other, key: elsewhere, value: service, ..envelope.clone() };
                let body = codec::encode(&turned);
                let bent = SignedRecord { body, ..record.clone() };
                assert_eq!(bent.verify(fixture.judge()), Err(RecordError::Signature(node)));
            }
        }
    }

    #[test]
    fn each_service_of_a_member_has_a_place_and_what_is_no_service_has_none() {
        let fixture = Fixture::new();
        let of = |label: &str| fixture.record_of(1, Kind::Service, 1, Fixture::service(label, b"path=/"));
        let [http, ssh] = ["_http._tcp", "_ssh._tcp"].map(|label| of(label).verify(fixture.judge()).unwrap());
        assert_eq!(http.key, service_key(fixture.network(), "_http._tcp", "site-1"));
        assert_ne!(http.key, ssh.key);
        // One service in the place of another, and in the place of another member's.
        let (kind, node) = (Kind::Service, fixture.node(1));
        let others = service_key(fixture.network(), "_http._tcp", "site-2");
        for key in [ssh.key, others] {
            let moved = Envelope { key, ..http.clone() };
            assert_eq!(fixture.signed(1, &moved).verify(fixture.judge()), Err(RecordError::Place { kind, node }));
        }
        let none = Envelope { value: Fixture::service("http", b""), ..http };
        assert_eq!(fixture.signed(1, &none).verify(fixture.judge()), Err(RecordError::Value(ValueError::Label)));
        let list = fixture.record(1, Kind::Revocations, 1, b"").verify(fixture.judge()).unwrap();
        assert_eq!(list.key, revocations_key(fixture.network(), node));
    }

    #[test]
    fn what_is_wrong_with_a_record_is_told_apart() {
        let fixture = Fixture::new();
        let good = fixture.record(1, Kind::Node, 1, b"x").read(fixture.network(), NOW).unwrap();
        let judged = |envelope: Envelope| fixture.signed(1, &envelope).verify(fixture.judge()).unwrap_err();
        let elsewhere = NetworkId([9; 32]);
        assert_eq!(judged(Envelope { network: elsewhere, ..good.clone() }), RecordError::OtherNetwork(elsewhere));
        let value = vec![0; VALUE_LEN_MAX + 1];
        assert_eq!(judged(Envelope { value, ..good.clone() }), RecordError::ValueLen(VALUE_LEN_MAX + 1));
        let ended = UnixSecs(NOW.0 - 1);
        assert_eq!(judged(Envelope { not_after: ended, ..good.clone() }), RecordError::Expired(ended));
        let late = UnixSecs(NOW.0 + LIFETIME_MAX_SECS + 1);
        assert_eq!(judged(Envelope { not_after: late, ..good.clone() }), RecordError::TooLong(late));
        let (envelope, statement) = (fixture.node(2), fixture.node(1));
        assert_eq!(judged(Envelope { node: envelope, ..good.clone() }), RecordError::OtherNode { envelope, statement });
        let mut stranger = fixture.signed(1, &good);
        stranger.statement = Signed::sign(&fixture.statement(1), &fixture::key(99));
        assert!(matches!(stranger.verify(fixture.judge()), Err(RecordError::Statement(StatementError::Stranger(_)))));
        let mut bent = fixture.signed(1, &good);
        bent.signature.0[3] ^= 1;
        assert_eq!(bent.verify(fixture.judge()), Err(RecordError::Signature(fixture.node(1))));
    }

    #[test]
    fn the_longest_record_at_the_end_of_its_life_is_believed() {
        let fixture = Fixture::new();
        let good = fixture.record(1, Kind::Node, u64::MAX, b"").read(fixture.network(), NOW).unwrap();
        for not_after in [NOW, UnixSecs(NOW.0 + LIFETIME_MAX_SECS)] {
            let envelope = Envelope { value: vec![7; VALUE_LEN_MAX], not_after, ..good.clone() };
            assert_eq!(fixture.signed(1, &envelope).verify(fixture.judge()), Ok(envelope));
        }
    }
}
