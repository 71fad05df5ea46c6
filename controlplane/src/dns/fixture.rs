//! A network with an issuer, and members that sign zones.

use domain::base::Rtype;

use super::member::{MemberZone, Whose, ZoneError};
use crate::pki::bundle::Chain;
use crate::pki::bundle::tests::{FOUNDED, chain, key};
use crate::pki::dnssec::delegation::{Delegated, Delegation, Parent};
use crate::pki::dnssec::key::ZoneKey;
use crate::pki::dnssec::network::NetworkZones;
use crate::pki::dnssec::rrset::RrSet;
use crate::pki::dnssec::{Name, TTL_SECS};
use crate::pki::id::NodeId;
use crate::pki::key::PrivateKey;
use crate::pki::revocation::RevocationSet;
use crate::time::UnixSecs;

pub(super) const NOW: UnixSecs = UnixSecs(FOUNDED + 3600);
pub(super) const UNTIL: UnixSecs = UnixSecs(FOUNDED + 86_400);
/// The issuer of the network.
pub(super) const ISSUER: u8 = 11;

pub(super) struct Fixture {
    pub(super) chain: Chain,
    pub(super) zones: NetworkZones,
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn address(last: u8) -> Vec<u8> {
    vec![192, 0, 2, last]
}

pub(super) fn set(owner: &str, rtype: Rtype, rdata: impl IntoIterator<Item = Vec<u8>>) -> RrSet {
    RrSet::new(name(owner), rtype, TTL_SECS, rdata)
}

impl Fixture {
    pub(super) fn new() -> Self {
        let chain = chain();
        let zones = NetworkZones::of(chain.current(), chain.network()).unwrap().unwrap();
        Self { chain, zones }
    }

    pub(super) fn whose<'a>(&'a self, name: &'a str) -> Whose<'a> {
        Whose { network: self.chain.network(), zones: &self.zones, node: node(name), name }
    }

    pub(super) fn signers(&self) -> Vec<ZoneKey> {
        self.zones.signers(&RevocationSet::default())
    }

    pub(super) fn delegation(&self, name: &str, member: &PrivateKey, issuer: u8) -> Delegation {
        let of = Delegated { network: self.chain.network(), node: node(name), name, key: member.public() };
        Delegation::sign(&self.zones, of, &key(issuer), (UnixSecs(FOUNDED), UNTIL)).unwrap()
    }

    pub(super) fn parent(&self, name: &str) -> Parent {
        self.delegation(name, &member_key(name), ISSUER).parent()
    }

    pub(super) fn sign(&self, name: &str, published: Vec<RrSet>) -> Result<MemberZone, ZoneError> {
        let (key, parent) = (member_key(name), self.parent(name));
        MemberZone::sign(self.whose(name), parent, published, &key, 0, (NOW, UNTIL))
    }

    pub(super) fn verify(&self, name: &str, values: &[Vec<u8>; 2], now: UnixSecs) -> Result<MemberZone, ZoneError> {
        let [zone, names] = values;
        MemberZone::verify(self.whose(name), [zone, names], &self.signers(), now)
    }

    /// A zone with a bit of everything.
    pub(super) fn zone(&self, member: &str) -> MemberZone {
        let below = |label: &str| format!("{label}.{member}.mynet.internal");
        let apex = format!("{member}.mynet.internal");
        let service = [&[0, 0, 0, 0, 0, 80][..], name(&apex).as_slice()].concat();
        let published = vec![
            set(&apex, Rtype::AAAA, [vec![0xfd; 16]]),
            set(&apex, Rtype::A, [address(1)]),
            set(&below("www"), Rtype::CNAME, [name(&apex).as_slice().to_vec()]),
            set(&below("_http._tcp"), Rtype::SRV, [service]),
            set(&below("_http._tcp"), Rtype::TXT, [b"\x03k=v".to_vec()]),
            set(&below("*.pool"), Rtype::A, [address(7)]),
        ];
        self.sign(member, published).unwrap()
    }
}

pub(super) fn member_key(name: &str) -> PrivateKey {
    PrivateKey::from_seed(&node(name).0)
}

pub(super) fn node(name: &str) -> NodeId {
    let mut id = [0x5a; 32];
    id.iter_mut().zip(name.bytes()).for_each(|(byte, of)| *byte = of);
    NodeId(id)
}
