//! The keys of a network's zones, as its trust bundle has them: DNSKEY RRsets that roots sign with each version.
//!
//! ```text
//!  mynet.internal          DNSKEY  root A (257) · root B (257) · issuer (256) …      RRSIG by a root, beside the bundle
//!  …​.d.f.ip6.arpa           DNSKEY  the same                                          RRSIG by a root, beside the bundle
//! ```
//!
//! Keys, and how long they are signed for, follow from the bundle, so what travels is signatures.

use domain::base::Rtype;
use serde::{Deserialize, Serialize};

use super::key::{Role, ZoneKey};
use super::rrset::{RrSet, Rrsig, SetError, SignedSet, Window};
use super::{Name, TTL_SECS, reverse_zone, zone};
use crate::pki::bundle::{Bundle, BundleError};
use crate::pki::certificate;
use crate::pki::id::{KeyId, NetworkId};
use crate::pki::key::{PrivateKey, PublicKey, Signature};
use crate::pki::revocation::RevocationSet;
use crate::time::UnixSecs;

/// One of the zones that roots and issuers sign. Numbers are part of the format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// Names of members.
    Forward,
    /// Their addresses in the overlay.
    Reverse,
}

impl Which {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forward, Self::Reverse];
}

/// A root's signature of the keys of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSignature {
    /// Which zone.
    pub zone: Which,
    /// Which root.
    pub root: KeyId,
    /// The signature.
    pub signature: Signature,
}

/// The zones of a network by one version of its bundle.
#[derive(Clone, Debug)]
pub struct NetworkZones {
    forward: Name,
    reverse: Name,
    roots: Vec<PublicKey>,
    issuers: Vec<PublicKey>,
    window: Window,
}

impl NetworkZones {
    /// What a bundle says; nothing of one that names no issuer, since there is nobody who could sign a zone.
    ///
    /// # Errors
    /// [`BundleError`]: a certificate in it is none, or its name is too long.
    pub fn of(bundle: &Bundle, network: NetworkId) -> Result<Option<Self>, BundleError> {
        let forward = zone(&bundle.network_name, &bundle.dns_parent)?;
        let mut issuers = vec![];
        let mut window: Option<(UnixSecs, UnixSecs)> = None;
        for der in &bundle.issuers {
            let (public, life) = (certificate::public_key(der)?, certificate::validity(der)?);
            if bundle.is_revoked(public.id()) {
                continue;
            }
            if !issuers.contains(&public) {
                issuers.push(public);
            }
            let (from, until) = window.unwrap_or((life.not_before, life.not_after));
            window = Some((from.min(life.not_before), until.max(life.not_after)));
        }
        // As long as any issuer may sign, and as long as members are still believed after that.
        let grace = std::time::Duration::from_secs(bundle.parameters.grace_secs.into());
        let Some((from, until)) = window else { return Ok(None) };
        let (roots, window) = (bundle.root_keys()?, Window::new(from, until.plus(grace)));
        Ok(Some(Self { forward, reverse: reverse_zone(network), roots, issuers, window }))
    }

    /// The name of a zone.
    pub fn name(&self, which: Which) -> &Name {
        match which {
            Which::Forward => &self.forward,
            Which::Reverse => &self.reverse,
        }
    }

    /// The keys that others know the zones by: anchors.
    pub fn anchors(&self) -> Vec<ZoneKey> {
        self.roots.iter().map(|public| ZoneKey { public: *public, role: Role::EntryPoint }).collect()
    }

    /// The keys whose signatures of anything but keys count: those of issuers, without those that a list has revoked.
    pub fn signers(&self, revoked: &RevocationSet) -> Vec<ZoneKey> {
        let good = self.issuers.iter().filter(|public| !revoked.is_issuer_revoked(public.id()));
        good.map(|public| ZoneKey { public: *public, role: Role::Zone }).collect()
    }

    fn key_set(&self, which: Which) -> RrSet {
        let issuers = self.issuers.iter().map(|public| ZoneKey { public: *public, role: Role::Zone });
        let all = self.anchors().into_iter().chain(issuers);
        RrSet::new(self.name(which).clone(), Rtype::DNSKEY, TTL_SECS, all.map(|key| key.rdata().to_vec()))
    }

    fn signed_keys(&self, signature: &ZoneSignature) -> Option<SignedSet> {
        let root = self.anchors().into_iter().find(|key| key.public.id() == signature.root)?;
        let rrsig = Rrsig { window: self.window, key_tag: root.tag(), signature: signature.signature };
        Some(self.key_set(signature.zone).with(self.name(signature.zone), rrsig))
    }

    /// Signs the keys of both zones.
    pub fn sign(&self, roots: &[&PrivateKey]) -> Vec<ZoneSignature> {
        let one = |which: Which, root: &PrivateKey| {
            let key = ZoneKey { public: root.public(), role: Role::EntryPoint };
            let signed = self.key_set(which).sign(self.name(which), &key, root, self.window);
            ZoneSignature { zone: which, root: root.public().id(), signature: signed.rrsig.signature }
        };
        // A root that goes signs the step, and no zone.
        let stays = roots.iter().filter(|root| self.roots.contains(&root.public()));
        stays.flat_map(|root| Which::ALL.map(|which| one(which, root))).collect()
    }

    /// Whether each zone's keys are signed by a root, and all that claims to be such a signature is one. Not judged by the clock.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn check(&self, signatures: &[ZoneSignature]) -> Result<(), SetError> {
        for signature in signatures {
            let signed = self.signed_keys(signature).ok_or(SetError::Key(0))?;
            signed.verify(&self.anchors(), UnixSecs(self.window.inception.into()))?;
        }
        let has = |which: Which| signatures.iter().any(|signature| signature.zone == which);
        if Which::ALL.into_iter().all(has) { Ok(()) } else { Err(SetError::Signature) }
    }

    /// The DNSKEY RRset of a zone with the first signature of it; they were [checked](Self::check).
    pub fn keys(&self, which: Which, signatures: &[ZoneSignature]) -> Option<SignedSet> {
        let signature = signatures.iter().find(|signature| signature.zone == which)?;
        self.signed_keys(signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::{FOUNDED, chain, key};

    #[test]
    fn the_keys_of_a_bundle_are_signed_by_its_roots_for_both_zones() {
        let chain = chain();
        let zones = NetworkZones::of(chain.current(), chain.network()).unwrap().unwrap();
        let signatures = zones.sign(&[&key(1), &key(9)]);
        // 9 is no root of it.
        assert_eq!(signatures.len(), 2);
        assert_eq!(zones.check(&signatures), Ok(()));
        let keys = zones.keys(Which::Forward, &signatures).unwrap();
        assert_eq!(keys.set.rdata().len(), zones.anchors().len() + zones.issuers.len());
        assert_eq!(keys.verify(&zones.anchors(), UnixSecs(FOUNDED + 1)), Ok(()));
        assert_eq!(zones.check(&signatures[..1]), Err(SetError::Signature));
        let swapped = signatures.iter().map(|signature| ZoneSignature {
            zone: if signature.zone == Which::Forward { Which::Reverse } else { Which::Forward },
            ..*signature
        });
        assert_eq!(zones.check(&swapped.collect::<Vec<_>>()), Err(SetError::Signature));
        let stranger = ZoneSignature { root: key(9).public().id(), ..signatures[0] };
        assert!(zones.check(&[signatures[0], signatures[1], stranger]).is_err());
    }

    #[test]
    fn a_revoked_issuer_signs_nothing_and_without_issuers_there_is_no_zone() {
        let chain = chain();
        let zones = NetworkZones::of(chain.current(), chain.network()).unwrap().unwrap();
        assert_eq!(zones.signers(&RevocationSet::default()).len(), 2);
        let mut bundle = chain.successor();
        bundle.revoked_issuers = zones.issuers.iter().map(PublicKey::id).collect();
        assert!(NetworkZones::of(&bundle, chain.network()).unwrap().is_none());
    }
}
