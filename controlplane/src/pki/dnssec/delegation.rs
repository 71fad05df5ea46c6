//! What an issuer signs of the network's zones, with each certificate: who has a zone below them, and the apex.
//!
//! ```text
//!  mynet.internal           SOA · NS ns.mynet.internal      ns.mynet.internal  AAAA  the address at which every gateway answers
//!  site-b.mynet.internal    DS of the member's key                                   good as long as peers believe the certificate
//!  …​.d.f.ip6.arpa            SOA · NS                        PTR of the member's address
//! ```

use domain::base::Rtype;
use serde::{Deserialize, Serialize};

use super::key::{Role, ZoneKey};
use super::network::{NetworkZones, Which};
use super::rrset::{Kept, RrSet, SetError, SignedSet, Window};
use super::{LongName, Name, SERVER_LABEL, TTL_SECS, below, reverse, server_address};
use crate::pki::id::{NetworkId, NodeId, overlay_address};
use crate::pki::key::{PrivateKey, PublicKey};
use crate::time::UnixSecs;

/// How often a copy of a zone would be asked for, if there were any (RFC 1035 §3.3.13).
const COPY_SECS: [u32; 3] = [3600, 600, 86_400];

/// The apex of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apex {
    soa: Kept,
    ns: Kept,
}

/// All of it, for one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    ds: Kept,
    ptr: Kept,
    forward: Apex,
    reverse: Apex,
    server: Kept,
}

/// Of whom an issuer speaks.
#[derive(Clone, Copy, Debug)]
pub struct Delegated<'a> {
    /// The network.
    pub network: NetworkId,
    /// The member.
    pub node: NodeId,
    /// Its name.
    pub name: &'a str,
    /// The key of its zone.
    pub key: PublicKey,
}

/// The SOA of a zone (RFC 1035 §3.3.13).
pub fn soa(zone: &Name, server: &Name, serial: u32) -> Result<RrSet, LongName> {
    let master = below([&b"hostmaster"[..]], zone)?;
    let mut rdata = [server.as_slice(), master.as_slice()].concat();
    let [refresh, retry, expire] = COPY_SECS;
    for number in [serial, refresh, retry, expire, TTL_SECS] {
        rdata.extend(number.to_be_bytes());
    }
    Ok(RrSet::new(zone.clone(), Rtype::SOA, TTL_SECS, [rdata]))
}

/// The NS of a zone: the one name of all servers.
pub fn ns(zone: &Name, server: &Name) -> RrSet {
    RrSet::new(zone.clone(), Rtype::NS, TTL_SECS, [server.as_slice().to_vec()])
}

/// The name of all servers of a network.
///
/// # Errors
/// [`LongName`].
pub fn server_name(zones: &NetworkZones) -> Result<Name, LongName> {
    below([SERVER_LABEL.as_bytes()], zones.name(Which::Forward))
}

/// The zone of a member.
///
/// # Errors
/// [`LongName`].
pub fn member_zone(zones: &NetworkZones, name: &str) -> Result<Name, LongName> {
    below([name.as_bytes()], zones.name(Which::Forward))
}

/// The DS of a member's zone and the PTR of its address, as it travels with what the member signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    ds: Kept,
    ptr: Kept,
}

impl Parent {
    /// With owners and zones; believed only after [`SignedSet::verify`].
    ///
    /// # Errors
    /// [`LongName`].
    pub fn sets(
        self,
        zones: &NetworkZones,
        name: &str,
        node: NodeId,
        network: NetworkId,
    ) -> Result<[SignedSet; 2], LongName> {
        let address = reverse(overlay_address(network, node));
        let ds = self.ds.of(member_zone(zones, name)?, zones.name(Which::Forward));
        Ok([ds, self.ptr.of(address, zones.name(Which::Reverse))])
    }
}

impl Delegation {
    /// Signs it.
    ///
    /// # Errors
    /// [`LongName`]: the member's name makes none in this network.
    pub fn sign(
        zones: &NetworkZones,
        of: Delegated<'_>,
        issuer: &PrivateKey,
        (from, until): (UnixSecs, UnixSecs),
    ) -> Result<Self, LongName> {
        let window = Window::new(from, until);
        let signer = ZoneKey { public: issuer.public(), role: Role::Zone };
        let sign = |set: RrSet, which| set.sign(zones.name(which), &signer, issuer, window).keep();
        let (server, zone) = (server_name(zones)?, member_zone(zones, of.name)?);
        let apex = |which| -> Result<Apex, LongName> {
            let name = zones.name(which);
            let soa = soa(name, &server, window.inception)?;
            Ok(Apex { soa: sign(soa, which), ns: sign(ns(name, &server), which) })
        };
        let key = ZoneKey { public: of.key, role: Role::EntryPoint };
        let ds = RrSet::new(zone.clone(), Rtype::DS, TTL_SECS, [key.ds(&zone)]);
        let address = reverse(overlay_address(of.network, of.node));
        let ptr = RrSet::new(address, Rtype::PTR, TTL_SECS, [zone.as_slice().to_vec()]);
        let at = server_address(of.network).octets().to_vec();
        let server = RrSet::new(server.clone(), Rtype::AAAA, TTL_SECS, [at]);
        Ok(Self {
            ds: sign(ds, Which::Forward),
            ptr: sign(ptr, Which::Reverse),
            forward: apex(Which::Forward)?,
            reverse: apex(Which::Reverse)?,
            server: sign(server, Which::Forward),
        })
    }

    /// What travels with the member's own sets.
    pub fn parent(&self) -> Parent {
        Parent { ds: self.ds.clone(), ptr: self.ptr.clone() }
    }

    /// What it says of the network's zones themselves, verified: as good as when an issuer signed it.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn apex(self, zones: &NetworkZones, signers: &[ZoneKey], now: UnixSecs) -> Result<Vec<SignedSet>, SetError> {
        let of = |kept: Kept, owner: &Name, which| kept.of(owner.clone(), zones.name(which));
        let (forward, reverse) = (zones.name(Which::Forward), zones.name(Which::Reverse));
        let server = server_name(zones)?;
        let all = vec![
            of(self.forward.soa, forward, Which::Forward),
            of(self.forward.ns, forward, Which::Forward),
            of(self.reverse.soa, reverse, Which::Reverse),
            of(self.reverse.ns, reverse, Which::Reverse),
            of(self.server, &server, Which::Forward),
        ];
        all.iter().try_for_each(|set| set.verify(signers, now))?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::{FOUNDED, chain, key};
    use crate::pki::revocation::RevocationSet;

    #[test]
    fn an_issuer_delegates_and_everybody_with_the_bundle_believes_it() {
        let chain = chain();
        let (network, node) = (chain.network(), NodeId([7; 32]));
        let zones = NetworkZones::of(chain.current(), network).unwrap().unwrap();
        let of = Delegated { network, node, name: "site-b", key: key(40).public() };
        let window = (UnixSecs(FOUNDED), UnixSecs(FOUNDED + 86_400));
        let signed = |seed| Delegation::sign(&zones, of, &key(seed), window).unwrap();
        let (signers, now) = (zones.signers(&RevocationSet::default()), UnixSecs(FOUNDED + 5));
        let [ds, ptr] = signed(11).parent().sets(&zones, "site-b", node, network).unwrap();
        assert_eq!((ds.verify(&signers, now), ptr.verify(&signers, now)), (Ok(()), Ok(())));
        assert_eq!(ds.set.owner.to_string(), "site-b.mynet.internal");
        assert_eq!(signed(11).apex(&zones, &signers, now).unwrap().len(), 5);
        // Somebody else's key, another member's name, another time.
        assert!(matches!(signed(40).apex(&zones, &signers, now), Err(SetError::Key(_))));
        let [ds, ptr] = signed(11).parent().sets(&zones, "site-c", NodeId([8; 32]), network).unwrap();
        assert_eq!([ds, ptr].map(|set| set.verify(&signers, now)), [Err(SetError::Signature); 2]);
        let late = UnixSecs(FOUNDED + 86_401);
        assert_eq!(signed(11).apex(&zones, &signers, late), Err(SetError::Expired));
    }
}
