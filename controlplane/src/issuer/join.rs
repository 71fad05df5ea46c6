//! Joining, renewing and leaving: what members ask for themselves.

use std::time::Duration;

use weir_dataplane::api::Prefix;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::invite::REFUSED_MAX;
use super::{
    BODY_LEN_MAX, GRANT_PART_LEN_MAX, Grant, Issued, Issuer, JoinBody, JoinRequest, LeaveBody, LeaveRequest,
    MEMBERS_MAX, RENEWAL_SECS_MAX, Record, Refused, RenewBody, RenewRequest, Reply, Subnet, check_bound, limit,
    put_invite, put_record,
};
use crate::audit::Act;
use crate::codec;
use crate::pki::bundle::SignedBundle;
use crate::pki::certificate::{
    self, AuthorityFields, LEAF_BACKDATE_SECS, LeafFields, LeafSpec, Serial, Validity, leaf_certificate,
};
use crate::pki::dnssec::delegation::{self, Delegated, Delegation};
use crate::pki::dnssec::key::{Role, ZoneKey};
use crate::pki::dnssec::network::NetworkZones;
use crate::pki::id::{InviteId, NetworkId, NodeId, Nonce, overlay_address};
use crate::pki::key::{PublicKey, Signature};
use crate::pki::resources::{IpBlocks, Resources};
use crate::pki::revocation::{ENTRIES_MAX, Revoked};
use crate::pki::signed::Signed;
use crate::pki::statement::MemberStatement;
use crate::pki::token;
use crate::random::Random;
use crate::store::{Batch, Store};
use crate::time::{Now, UnixSecs};

/// Entries of the revocation list that members who leave do not use up. Ours: a quarter, for what operators revoke.
pub const ENTRIES_RESERVED: usize = 1024;

/// What a leaf will say, whoever first granted it.
struct Holder {
    node: NodeId,
    identity: PublicKey,
    nonce: Nonce,
    name: String,
    prefixes: Resources,
    groups: Vec<String>,
    roles: Vec<String>,
}

impl Holder {
    /// A member that was admitted here: its networks and its own address.
    fn of_record(record: &Record, network: NetworkId) -> Self {
        let own = Prefix::host(overlay_address(network, record.node).into());
        let prefixes = Resources::from_prefixes(record.prefixes.iter().copied().chain([own]));
        let Record { node, identity, nonce, name, groups, roles, .. } = record.clone();
        Self { node, identity, nonce, name, prefixes, groups, roles }
    }

    /// A member as its certificate has it, and nothing more.
    fn of_leaf(leaf: LeafFields) -> Self {
        let LeafFields { node, identity, nonce, name, prefixes, groups, roles, .. } = leaf;
        Self { node, identity, nonce, name, prefixes, groups, roles }
    }
}

impl<S: Store> Issuer<S> {
    /// Redeems an invitation.
    pub(super) fn join(
        &mut self,
        request: &JoinRequest,
        exporter: &[u8; 32],
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        let body: JoinBody = codec::decode(&request.body, BODY_LEN_MAX).map_err(|_| Refused::Malformed)?;
        self.check_network(body.network)?;
        let invite = self.invites.get(&body.invite).ok_or(Refused::UnknownInvite(body.invite))?;
        if !token::proof_fits(&invite.secret.0, exporter, &request.body, &request.proof) {
            return Err(Refused::BadProof);
        }
        let signatures = [(&body.identity, &request.signature), (&body.leaf_public, &request.leaf_proof)];
        check_keys(exporter, &request.body, signatures)?;
        let (der, authority) = self.certificate(now.wall)?;
        let bound = invite.used_by.iter().find(|(identity, _)| *identity == body.identity).map(|(_, node)| *node);
        if let Some(node) = bound {
            let answers = invite.answers_again(now.wall);
            return if answers { self.join_again(node, &body, by, now, random) } else { self.too_late(body.invite) };
        }
        if invite.withdrawn {
            return Err(Refused::Withdrawn);
        }
        if now.wall >= invite.not_after {
            return self.too_late(body.invite);
        }
        if invite.used_by.len() >= invite.spec.uses as usize {
            return self.refuse_replay(body.invite);
        }
        if let Some(node) = self.identities.get(&body.identity) {
            return Err(Refused::AlreadyMember(*node));
        }
        limit("members", self.members.len() + 1, 1, MEMBERS_MAX)?;
        let (mut invite, record) = (invite.clone(), self.allocate(&body, now.wall, random)?);
        let issued = Issued {
            leaf_public: body.leaf_public,
            dns_key: body.dns_key,
            serial: Serial::draw(random),
            validity: self.validity(now.wall, &authority),
        };
        let record = Record { issued: Some(issued), ..record };
        // Whatever a signature could fail for is found before the allocation is made.
        let holder = Holder::of_record(&record, self.state.network);
        check_within(&holder.prefixes, &authority.blocks)?;
        check_leaf_key(&holder, &issued)?;

        invite.used_by.push((body.identity, record.node));
        let mut batch = Batch::default();
        put_invite(&mut batch, body.invite, &invite);
        put_record(&mut batch, &record);
        let leaves = self.note_leaf(&mut batch, record.node, &issued, now.wall)?;
        let state = self.put_state(&mut batch, |state| state.counter += 1);
        let (name, prefixes) = (record.name.clone(), holder.prefixes.prefixes());
        let mut acts = vec![Act::Joined { node: record.node, name, prefixes, invite: body.invite }];
        let successor_of = invite.replaces.filter(|old| !self.is_gone(*old));
        let list = match successor_of {
            Some(old) => {
                let reason = format!("replaced by {}", record.node);
                acts.push(Act::Revoked { what: Revoked::Node(old), reason: reason.clone() });
                Some(self.list_with(&mut batch, &[(Revoked::Node(old), reason)], now.wall)?)
            }
            None => None,
        };
        self.commit(batch, acts, by, now.wall)?;
        self.state = state;
        if let Some(list) = list {
            self.take_own(list, now)?;
        }
        self.invites.insert(body.invite, invite);
        self.leaves.insert(record.node, leaves);
        self.remember(record);
        self.grant(&holder, &issued, &der, body.bundle_version).map(|grant| Reply::Granted(Box::new(grant)))
    }

    /// The answer was lost, or its receiver crashed: the same key gets the same grant, and for the same leaf key the same certificate.
    fn join_again(
        &mut self,
        node: NodeId,
        body: &JoinBody,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        if self.is_gone(node) {
            return Err(Refused::MemberRevoked(node));
        }
        let (der, authority) = self.certificate(now.wall)?;
        let record = self.members.get(&node).ok_or(Refused::UnknownMember(node))?.clone();
        let holder = Holder::of_record(&record, self.state.network);
        let half = |validity: Validity| validity.not_after.since(validity.not_before) / 2;
        let fits = |issued: &Issued| {
            let Issued { leaf_public, dns_key, serial: _, validity } = issued;
            let young = now.wall < validity.not_before.plus(half(*validity));
            *leaf_public == body.leaf_public && *dns_key == body.dns_key && young
        };
        if let Some(issued) = record.issued.filter(fits) {
            let grant = self.grant(&holder, &issued, &der, body.bundle_version)?;
            return Ok(Reply::Granted(Box::new(grant)));
        }
        let issued = Issued {
            leaf_public: body.leaf_public,
            dns_key: body.dns_key,
            serial: Serial::draw(random),
            validity: self.validity(now.wall, &authority),
        };
        self.issue(&holder, issued, (der.as_slice(), &authority), body.bundle_version, by, now)
    }

    fn too_late(&self, invite: InviteId) -> Result<Reply, Refused> {
        let ended = self.invites.get(&invite).map(|invite| Refused::InviteExpired(invite.not_after));
        Err(ended.unwrap_or(Refused::UnknownInvite(invite)))
    }

    /// Someone has a token that is used up: counted on disk, up to a limit, and shown with the invitation.
    fn refuse_replay(&mut self, id: InviteId) -> Result<Reply, Refused> {
        let invite = self.invites.get_mut(&id).ok_or(Refused::UnknownInvite(id))?;
        if invite.refused < REFUSED_MAX {
            invite.refused += 1;
            let mut batch = Batch::default();
            put_invite(&mut batch, id, invite);
            self.store.commit(batch)?;
        }
        Err(Refused::Spent)
    }

    /// What a new member gets; nothing is taken yet.
    fn allocate(&self, body: &JoinBody, now: UnixSecs, random: &mut impl Random) -> Result<Record, Refused> {
        let invite = self.invites.get(&body.invite).ok_or(Refused::UnknownInvite(body.invite))?;
        let slice = self.slice()?;
        let name = self.name_for(invite, body.wanted_name.as_deref(), now)?;
        // Statements learned after a restore may have taken what was promised.
        if self.allocations.holder(&name).is_some_and(|holder| Some(holder) != invite.replaces) {
            return Err(Refused::NameTaken(name));
        }
        let prefixes = match &invite.spec.subnet {
            Subnet::None => vec![],
            Subnet::Given(prefixes) => {
                let taken = prefixes.iter().find_map(|one| Some((*one, self.allocations.overlap(one)?)));
                if let Some((prefix, taken)) = taken.filter(|_| invite.replaces.is_none()) {
                    return Err(Refused::PrefixTaken(prefix, taken));
                }
                prefixes.clone()
            }
            Subnet::Auto { bit_len } => {
                let promised = self.promised_prefixes(None, now);
                let free = self.allocations.free(&slice.prefixes, *bit_len, &promised);
                vec![free.ok_or(Refused::PrefixesExhausted(*bit_len))?]
            }
        };
        let nonce = Nonce(random.array());
        let node = NodeId::derive(self.state.network, &body.identity.0, nonce);
        let (groups, roles) = (invite.spec.groups.clone(), invite.spec.roles.clone());
        Ok(Record { node, identity: body.identity, nonce, name, prefixes, groups, roles, issued: None })
    }

    /// Renews what a certificate of this network grants, whoever signed it.
    pub(super) fn renew(
        &mut self,
        request: &RenewRequest,
        exporter: &[u8; 32],
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        let body: RenewBody = codec::decode(&request.body, BODY_LEN_MAX).map_err(|_| Refused::Malformed)?;
        self.check_network(body.network)?;
        let leaf = self.certified(&body.certificate)?;
        let signatures = [(&leaf.identity, &request.signature), (&body.leaf_public, &request.leaf_proof)];
        check_keys(exporter, &request.body, signatures)?;
        let ended = leaf.validity.not_after;
        if now.wall > ended.plus(Duration::from_secs(RENEWAL_SECS_MAX)) {
            return Err(Refused::TooOld(ended));
        }
        let (der, authority) = self.certificate(now.wall)?;
        let holder = Holder::of_leaf(leaf);
        let issued = Issued {
            leaf_public: body.leaf_public,
            dns_key: body.dns_key,
            serial: Serial::draw(random),
            validity: self.validity(now.wall, &authority),
        };
        self.issue(&holder, issued, (der.as_slice(), &authority), body.bundle_version, by, now)
    }

    /// A member revokes itself.
    pub(super) fn leave(
        &mut self,
        request: &LeaveRequest,
        exporter: &[u8; 32],
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        let body: LeaveBody = codec::decode(&request.body, BODY_LEN_MAX).map_err(|_| Refused::Malformed)?;
        self.check_network(body.network)?;
        let leaf = self.certified(&body.certificate)?;
        check_keys(exporter, &request.body, [(&leaf.identity, &request.signature)])?;
        // Who comes and goes must not leave operators without a way to cut somebody off.
        let entries = self.revoked.have(self.id).1 as usize;
        limit("members that have left", entries + 1, 1, ENTRIES_MAX - ENTRIES_RESERVED)?;
        self.revoke(Revoked::Node(leaf.node), "left".to_owned(), by, now, random)
    }

    fn check_network(&self, network: NetworkId) -> Result<(), Refused> {
        if network == self.state.network { Ok(()) } else { Err(Refused::OtherNetwork(network)) }
    }

    /// What a certificate says, if an issuer of this network signed it and was allowed to, at whatever time. Its issuer may have been
    /// dropped from the bundle since, as long as it was not revoked.
    fn certified(&self, der: &[u8]) -> Result<LeafFields, Refused> {
        let no = |why: &str| Refused::Certificate(why.to_owned());
        let leaf = certificate::read_leaf(der).map_err(|error| Refused::Certificate(error.to_string()))?;
        self.check_network(leaf.network)?;
        let issuer = self.chain.issuer_ever(leaf.issuer).filter(|_| !self.revoked.is_issuer_revoked(leaf.issuer));
        let issuer = issuer.ok_or_else(|| no("its issuer is revoked or never was one of this network"))?;
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| no("it does not parse"))?;
        let signature = <[u8; 64]>::try_from(&parsed.signature_value.data[..]).map(Signature);
        let verified = signature.map(|signature| issuer.public.verify_raw(parsed.tbs_certificate.as_ref(), &signature));
        if !matches!(verified, Ok(Ok(()))) {
            return Err(no("its signature does not fit"));
        }
        // Or an issuer that grants what it may not would have it made good here.
        let covers = |der: &Vec<u8>| {
            let fields = certificate::read_authority(der);
            fields.is_ok_and(|fields| check_within(&leaf.prefixes, &fields.blocks).is_ok())
        };
        if !issuer.certificates.iter().any(covers) {
            return Err(no("it has addresses that its issuer may not grant"));
        }
        if leaf.node != NodeId::derive(self.state.network, &leaf.identity.0, leaf.nonce) {
            return Err(no("its node id is not made of its key"));
        }
        if self.is_gone(leaf.node) {
            return Err(Refused::MemberRevoked(leaf.node));
        }
        Ok(leaf)
    }

    /// Notes a certificate for a member that is known, here or by its old one, and signs it.
    fn issue(
        &mut self,
        holder: &Holder,
        issued: Issued,
        (der, authority): (&[u8], &AuthorityFields),
        have_bundle: u64,
        by: &str,
        now: Now,
    ) -> Result<Reply, Refused> {
        check_within(&holder.prefixes, &authority.blocks)?;
        check_leaf_key(holder, &issued)?;
        let mut batch = Batch::default();
        let record = self.members.get(&holder.node).map(|record| Record { issued: Some(issued), ..record.clone() });
        record.iter().for_each(|record| put_record(&mut batch, record));
        let leaves = self.note_leaf(&mut batch, holder.node, &issued, now.wall)?;
        let act = Act::Renewed { node: holder.node, not_after: issued.validity.not_after };
        self.commit(batch, vec![act], by, now.wall)?;
        self.leaves.insert(holder.node, leaves);
        if let Some(record) = record {
            self.members.insert(record.node, record);
        }
        self.grant(holder, &issued, der, have_bundle).map(|grant| Reply::Granted(Box::new(grant)))
    }

    /// From an hour ago, for clocks that are behind, and for as long as the bundle says or our own certificate lasts.
    fn validity(&self, now: UnixSecs, authority: &AuthorityFields) -> Validity {
        let lifetime = Duration::from_secs(self.bundle().parameters.leaf_lifetime_secs.into());
        let not_before = now.minus(Duration::from_secs(LEAF_BACKDATE_SECS)).max(authority.validity.not_before);
        Validity { not_before, not_after: now.plus(lifetime).min(authority.validity.not_after) }
    }

    /// Signs. Everything that it says is on disk.
    fn grant(&self, holder: &Holder, issued: &Issued, der: &[u8], have_bundle: u64) -> Result<Grant, Refused> {
        let network = self.state.network;
        let spec = LeafSpec {
            leaf_public: issued.leaf_public,
            network,
            identity: holder.identity,
            nonce: holder.nonce,
            name: &holder.name,
            prefixes: holder.prefixes.clone(),
            groups: &holder.groups,
            roles: &holder.roles,
            validity: issued.validity,
            serial: issued.serial,
        };
        let leaf = leaf_certificate(&self.key, der, &spec).map_err(|error| Refused::Certificate(error.to_string()))?;
        let zone = self.zone_of(holder, issued)?;
        let statement = MemberStatement {
            network,
            node: holder.node,
            identity: holder.identity,
            nonce: holder.nonce,
            name: holder.name.clone(),
            prefixes: holder.prefixes.prefixes(),
            groups: holder.groups.clone(),
            ds_digest: zone.as_ref().map(|(digest, _)| *digest),
            not_before: issued.validity.not_before,
            not_after: issued.validity.not_after,
        };
        Ok(Grant {
            node: holder.node,
            nonce: holder.nonce,
            name: holder.name.clone(),
            chain: vec![leaf, der.to_vec()],
            statement: Signed::sign(&statement, &self.key),
            bundles: fitting(self.chain.after(have_bundle), SignedBundle::wire_len),
            revocations: fitting(&self.revoked.lists(), |list| codec::encode(list).len()),
            admission: self.state.admission.clone(),
            delegation: zone.map(|(_, delegation)| delegation),
        })
    }

    /// The digest of the key of a member's zone, and its place in the network's: for as long as peers believe the certificate.
    fn zone_of(&self, holder: &Holder, issued: &Issued) -> Result<Option<([u8; 32], Delegation)>, Refused> {
        let network = self.state.network;
        let no = |error: &dyn std::fmt::Display| Refused::Certificate(format!("its zone: {error}"));
        let zones = NetworkZones::of(self.bundle(), network).map_err(|error| no(&error))?;
        let (Some(zones), Some(key)) = (zones, issued.dns_key) else { return Ok(None) };
        let of = Delegated { network, node: holder.node, name: &holder.name, key };
        let grace = Duration::from_secs(self.bundle().parameters.grace_secs.into());
        let window = (issued.validity.not_before, issued.validity.not_after.plus(grace));
        let delegation = Delegation::sign(&zones, of, &self.key, window).map_err(|error| no(&error))?;
        let zone = delegation::member_zone(&zones, &holder.name).map_err(|error| no(&error))?;
        Ok(Some((ZoneKey { public: key, role: Role::EntryPoint }.digest(&zone), delegation)))
    }
}

/// The first of these that fit into their part of a message.
fn fitting<T: Clone>(all: &[T], len: impl Fn(&T) -> usize) -> Vec<T> {
    let mut left = GRANT_PART_LEN_MAX;
    let fits = |one: &&T| {
        let rest = left.checked_sub(len(one));
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    all.iter().take_while(fits).cloned().collect()
}

fn check_keys<const N: usize>(
    exporter: &[u8; 32],
    body: &[u8],
    signatures: [(&PublicKey, &Signature); N],
) -> Result<(), Refused> {
    let fit = signatures.iter().all(|(key, signature)| check_bound(key, exporter, body, signature).is_ok());
    if fit { Ok(()) } else { Err(Refused::BadSignature) }
}

fn check_within(prefixes: &Resources, blocks: &IpBlocks) -> Result<(), Refused> {
    match blocks {
        IpBlocks::Inherit => Ok(()),
        IpBlocks::Explicit(resources) if resources.contains(prefixes) => Ok(()),
        IpBlocks::Explicit(_) => {
            Err(Refused::Certificate(format!("the issuer's certificate does not cover all of {prefixes}")))
        }
    }
}

fn check_leaf_key(holder: &Holder, issued: &Issued) -> Result<(), Refused> {
    let same = issued.leaf_public == holder.identity;
    let error = || Refused::Certificate("the leaf key is the identity key; a leaf key is fresh".to_owned());
    if same { Err(error()) } else { Ok(()) }
}
