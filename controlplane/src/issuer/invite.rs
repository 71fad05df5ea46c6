//! Invitations: what they grant, how long, to how many, and to whom they are bound.

use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;
use zeroize::Zeroizing;

use super::{
    Contact, INVITES_MAX, InviteInfo, InviteSpec, Issuer, Predecessor, Refused, Reply, SecretText, Subnet, keyed,
    limit, put_invite,
};
use crate::audit::Act;
use crate::pki::admission::day;
use crate::pki::bundle::{prefix_covers, prefixes_overlap};
use crate::pki::certificate::ROLES_MAX;
use crate::pki::id::{InviteId, NodeId, overlay_network};
use crate::pki::key::PublicKey;
use crate::pki::name::{NamePattern, check_label, check_member_name};
use crate::pki::statement::{GROUP_LEN_MAX, GROUPS_MAX};
use crate::pki::token::{ENDPOINTS_MAX, InviteSecret, Token};
use crate::random::Random;
use crate::store::{Batch, Store, Table};
use crate::time::{Now, UnixSecs};

/// Networks behind one member; with its own address they fit a member statement.
pub const SUBNETS_MAX: usize = 8;
/// Users of one invitation.
pub const USES_MAX: u32 = 1000;
/// Shortest and longest life of an invitation.
pub const TTL_SECS: std::ops::RangeInclusive<u32> = 60..=30 * 86_400;
/// How long an invitation is kept for the retries of those that used it, and for people to look at.
const KEPT_SECS: u64 = 7 * 86_400;
/// Refusals that are counted on disk; whoever goes on costs no more writes.
pub(super) const REFUSED_MAX: u32 = 1000;
/// Widest network that is taken automatically.
const AUTO_BITS: std::ops::RangeInclusive<u8> = 8..=32;

/// An invitation as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Invite {
    pub(super) spec: InviteSpec,
    pub(super) secret: SecretBytes,
    pub(super) not_after: UnixSecs,
    /// Each use is bound to the identity key that came first.
    pub(super) used_by: Vec<(PublicKey, NodeId)>,
    pub(super) refused: u32,
    pub(super) withdrawn: bool,
    pub(super) replaces: Option<NodeId>,
}

/// The secret, not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SecretBytes(pub(super) InviteSecret);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes(…)")
    }
}

impl Invite {
    /// Whether someone can still use it for the first time.
    pub(super) fn is_open(&self, now: UnixSecs) -> bool {
        !self.withdrawn && now < self.not_after && self.used_by.len() < self.spec.uses as usize
    }

    /// Whether a user of it may still ask again, because the answer was lost.
    pub(super) fn answers_again(&self, now: UnixSecs) -> bool {
        now.0 < self.not_after.0.saturating_add(86_400)
    }
}

impl<S: Store> Issuer<S> {
    /// Writes an invitation; with `replaces`, for the successor of a member.
    pub(super) fn invite(
        &mut self,
        mut spec: InviteSpec,
        replaces: Option<NodeId>,
        contact: &Contact,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        self.check_spec(&spec, replaces, now.wall)?;
        limit("endpoints in a token", contact.endpoints.len(), 0, ENDPOINTS_MAX)?;
        for names in [&mut spec.groups, &mut spec.roles] {
            names.sort();
            names.dedup();
        }
        let mut batch = Batch::default();
        let old = self.old_invites(now.wall);
        limit("invitations", self.invites.len() - old.len() + 1, 1, INVITES_MAX)?;
        old.iter().for_each(|id| batch.delete(Table::Issuer, keyed(super::INVITE_LETTER, &id.0)));
        let id = InviteId(random.array());
        let secret: InviteSecret = Zeroizing::new(random.array());
        let not_after = UnixSecs(now.wall.0.saturating_add(spec.ttl_secs.into()));
        let act = Act::Invited { invite: id, name: spec.name.to_string(), uses: spec.uses };
        let (used_by, refused, withdrawn) = (vec![], 0, false);
        let invite =
            Invite { spec, secret: SecretBytes(secret.clone()), not_after, used_by, refused, withdrawn, replaces };
        put_invite(&mut batch, id, &invite);
        self.commit(batch, vec![act], by, now.wall)?;
        old.iter().for_each(|id| drop(self.invites.remove(id)));
        self.invites.insert(id, invite);
        let seed = self.state.admission.peek().map_err(|_| Refused::Malformed)?;
        let token = Token {
            network: self.state.network,
            issuer: contact.node,
            invite: id,
            secret,
            not_after,
            endpoints: contact.endpoints.clone(),
            admission: Some(seed.day_key(day(now.wall))),
        };
        Ok(Reply::Invited { invite: id, token: SecretText(token.to_text()), not_after })
    }

    /// Writes an invitation for the successor of a member.
    pub(super) fn replace(
        &mut self,
        of: &Predecessor,
        ttl_secs: u32,
        contact: &Contact,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        let node = match of {
            Predecessor::Node(node) => *node,
            Predecessor::Name(name) => {
                let holder = self.allocations.holder(name);
                holder.ok_or_else(|| Refused::UnknownName(name.clone()))?
            }
        };
        let record = self.members.get(&node).ok_or(Refused::UnknownMember(node))?;
        if self.allocations.holder(&record.name) != Some(node) {
            return Err(Refused::NameTaken(record.name.clone()));
        }
        let spec = InviteSpec {
            name: record.name.parse().map_err(Refused::Name)?,
            subnet: Subnet::Given(record.prefixes.clone()),
            groups: record.groups.clone(),
            roles: record.roles.clone(),
            ttl_secs,
            uses: 1,
        };
        self.invite(spec, Some(node), contact, by, now, random)
    }

    fn check_spec(&self, spec: &InviteSpec, replaces: Option<NodeId>, now: UnixSecs) -> Result<(), Refused> {
        let slice = self.slice()?;
        limit(
            "seconds of an invitation",
            spec.ttl_secs as usize,
            *TTL_SECS.start() as usize,
            *TTL_SECS.end() as usize,
        )?;
        limit("uses of an invitation", spec.uses as usize, 1, USES_MAX as usize)?;
        limit("groups", spec.groups.len(), 0, GROUPS_MAX)?;
        limit("roles", spec.roles.len(), 0, ROLES_MAX)?;
        for group in spec.groups.iter().chain(&spec.roles) {
            check_label(group).map_err(|error| Refused::Group(group.clone(), error))?;
            limit("letters of a group or role", group.len(), 1, GROUP_LEN_MAX)?;
        }
        if !slice.names.iter().any(|names| names.covers(&spec.name)) {
            return Err(Refused::NameNotAllowed(spec.name.to_string(), "this issuer's slice".to_owned()));
        }
        if let Some(name) = spec.name.exact() {
            limit("uses of an invitation with one name", spec.uses as usize, 1, 1)?;
            let promised = self.promised_names(replaces, now).any(|promised| promised == name);
            if replaces.is_none() && (promised || self.allocations.holder(name).is_some()) {
                return Err(Refused::NameTaken(name.to_owned()));
            }
        }
        match &spec.subnet {
            Subnet::None => Ok(()),
            Subnet::Auto { bit_len } => {
                limit("bits of a prefix", (*bit_len).into(), (*AUTO_BITS.start()).into(), (*AUTO_BITS.end()).into())
            }
            Subnet::Given(prefixes) => {
                limit("networks behind a member", prefixes.len(), 0, SUBNETS_MAX)?;
                if !prefixes.is_empty() {
                    limit("uses of an invitation with given networks", spec.uses as usize, 1, 1)?;
                }
                self.check_given(prefixes, replaces, now)
            }
        }
    }

    fn check_given(&self, prefixes: &[Prefix], replaces: Option<NodeId>, now: UnixSecs) -> Result<(), Refused> {
        let slice = self.slice()?;
        let overlay = overlay_network(self.state.network);
        let promised = self.promised_prefixes(replaces, now);
        for (at, prefix) in prefixes.iter().enumerate() {
            if !slice.prefixes.iter().any(|whole| prefix_covers(whole, prefix)) {
                return Err(Refused::PrefixNotAllowed(*prefix));
            }
            let others = prefixes[..at].iter().chain(&promised).chain(std::iter::once(&overlay));
            let taken = others.copied().find(|other| prefixes_overlap(prefix, other));
            let given = || self.allocations.overlap(prefix).filter(|_| replaces.is_none());
            if let Some(taken) = taken.or_else(given) {
                return Err(Refused::PrefixTaken(*prefix, taken));
            }
        }
        Ok(())
    }

    /// Names that open invitations promise, but for the one that replaces the same member: the later of two takes over.
    pub(super) fn promised_names(&self, replaces: Option<NodeId>, now: UnixSecs) -> impl Iterator<Item = &str> {
        let open = self.open_invites(replaces, now);
        open.filter_map(|(_, invite)| invite.spec.name.exact())
    }

    /// Prefixes that open invitations promise.
    pub(super) fn promised_prefixes(&self, replaces: Option<NodeId>, now: UnixSecs) -> Vec<Prefix> {
        let given = |(_, invite): (&InviteId, &Invite)| match &invite.spec.subnet {
            Subnet::Given(prefixes) => prefixes.clone(),
            Subnet::None | Subnet::Auto { .. } => vec![],
        };
        self.open_invites(replaces, now).flat_map(given).collect()
    }

    fn open_invites(&self, replaces: Option<NodeId>, now: UnixSecs) -> impl Iterator<Item = (&InviteId, &Invite)> {
        let other = move |invite: &Invite| replaces.is_none() || invite.replaces != replaces;
        self.invites.iter().filter(move |(_, invite)| invite.is_open(now) && other(invite))
    }

    fn old_invites(&self, now: UnixSecs) -> Vec<InviteId> {
        let old = |invite: &Invite| invite.not_after.0.saturating_add(KEPT_SECS) < now.0;
        self.invites.iter().filter(|(_, invite)| old(invite)).map(|(id, _)| *id).collect()
    }

    /// The name for a user of an invitation.
    pub(super) fn name_for(&self, invite: &Invite, wanted: Option<&str>, now: UnixSecs) -> Result<String, Refused> {
        let pattern: &NamePattern = &invite.spec.name;
        let promised = |name: &str| self.promised_names(None, now).any(|promised| promised == name);
        let name = match (pattern.exact(), wanted) {
            (Some(name), None) => return Ok(name.to_owned()),
            (Some(name), Some(wanted)) if name == wanted => return Ok(wanted.to_owned()),
            (_, Some(wanted)) if !pattern.fits(wanted) => {
                return Err(Refused::NameNotAllowed(wanted.to_owned(), pattern.to_string()));
            }
            (_, Some(wanted)) => wanted.to_owned(),
            (None, None) => {
                let name = self.allocations.numbered(pattern, promised);
                return name.ok_or_else(|| Refused::NameTaken(pattern.to_string()));
            }
        };
        check_member_name(&name).map_err(Refused::Name)?;
        if self.allocations.holder(&name).is_some() || promised(&name) {
            return Err(Refused::NameTaken(name));
        }
        Ok(name)
    }

    pub(super) fn invites(&self) -> Vec<InviteInfo> {
        let info = |(id, invite): (&InviteId, &Invite)| InviteInfo {
            invite: *id,
            spec: invite.spec.clone(),
            not_after: invite.not_after,
            used_by: invite.used_by.iter().map(|(_, node)| *node).collect(),
            refused: invite.refused,
            withdrawn: invite.withdrawn,
            replaces: invite.replaces,
        };
        self.invites.iter().map(info).collect()
    }

    pub(super) fn withdraw(&mut self, id: InviteId) -> Result<Reply, Refused> {
        let invite = self.invites.get(&id).ok_or(Refused::UnknownInvite(id))?;
        let invite = Invite { withdrawn: true, ..invite.clone() };
        let mut batch = Batch::default();
        put_invite(&mut batch, id, &invite);
        self.store.commit(batch)?;
        self.invites.insert(id, invite);
        Ok(Reply::Done)
    }
}
