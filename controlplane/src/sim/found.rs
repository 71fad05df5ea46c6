//! How a world gets its members: by the ceremony and tokens as in operation, or many at once.

use std::time::Duration;

use weir_dataplane::api::Prefix;

use super::links::address_of;
use super::{BEGIN, Process, Site, World};
use crate::api::call::{Answer, Call};
use crate::api::types::{BundleApplyRequest, InviteRequest, JoinRequest, Secret};
use crate::audit::ENTRIES_MAX_DEFAULT;
use crate::ceremony::{self, Ceremony, CeremonyError, Founding, FoundingKeys};
use crate::codec;
use crate::issuer::{Request, Seat};
use crate::membership::{self, Membership};
use crate::node::directory::{Directory, Judge, LIFETIME, Record, SignedRecord};
use crate::pki::bundle::{Chain, SignedBundle, text};
use crate::pki::certificate::{LEAF_BACKDATE_SECS, LeafSpec, Serial, Validity, leaf_certificate};
use crate::pki::dnssec::PARENT;
use crate::pki::id::{NetworkId, NodeId, Nonce, overlay_address};
use crate::pki::key::PrivateKey;
use crate::pki::resources::Resources;
use crate::pki::revocation::RevocationSet;
use crate::pki::signed::Signed;
use crate::pki::statement::MemberStatement;
use crate::random::{Random, SeededRandom};
use crate::store::{Batch, MemoryStore, Store, Table};
use crate::time::Now;

/// The keys that a ceremony has in its hands.
pub(super) struct Authority {
    pub(super) network: NetworkId,
    pub(super) keys: FoundingKeys,
    pub(super) bundles: Vec<SignedBundle>,
}

impl World {
    /// Founds a network on a new machine, with an issuer beside it that gives out 10.0.0.0/8, and starts it.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn found(&mut self) -> Result<Site, CeremonyError> {
        let site = self.add_machine();
        let now = Now { mono: self.epoch, wall: self.true_time() };
        let keys = FoundingKeys::generate(&mut self.random);
        let pool: Vec<Prefix> = "10.0.0.0/8".parse().into_iter().collect();
        let founding = Founding {
            dns_parent: PARENT.into(),
            network: "world".to_owned(),
            name: "founder".to_owned(),
            default_allow: true,
            pool,
            subnets: vec![],
            groups: vec![],
        };
        let (mut node, mut issuer) = (MemoryStore::default(), MemoryStore::default());
        let founded = ceremony::found(&founding, &keys, &mut node, &mut issuer, now, &mut self.random)?;
        let machine = &mut self.machines[site.0];
        machine.store = node;
        machine.issuer = Some(Seat::open(issuer, keys.issuer.clone(), ENTRIES_MAX_DEFAULT)?);
        (machine.has_issuer, machine.issuer_process) = (true, Process::Runs);
        self.authority = Some(Authority { network: founded.network, keys, bundles: vec![founded.bundle] });
        self.start(site);
        Ok(site)
    }

    /// The network's keys, for a ceremony of a test's own.
    pub fn founding_keys(&self) -> Option<&FoundingKeys> {
        self.authority.as_ref().map(|authority| &authority.keys)
    }

    /// An invitation for so many members, from the machine with the issuer.
    pub fn invite(&mut self, issuer: Site, uses: u32, subnet: Option<&str>) -> Option<String> {
        self.invite_as(issuer, uses, subnet, &[])
    }

    pub(super) fn invite_as(
        &mut self,
        issuer: Site,
        uses: u32,
        subnet: Option<&str>,
        roles: &[&str],
    ) -> Option<String> {
        let request = InviteRequest {
            name: "site-*".to_owned(),
            subnet: subnet.map(str::to_owned),
            groups: vec![],
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            ttl_secs: None,
            uses: Some(uses),
            replace: None,
        };
        match self.ask(issuer, Call::Invite(request), Duration::from_secs(5))? {
            Ok(Answer::Invited(invited)) => Some(invited.token.0.to_string()),
            Ok(_) | Err(_) => None,
        }
    }

    /// Asks on a machine to join by a token.
    pub fn join(&mut self, site: Site, token: &str) -> crate::node::CallId {
        let request = JoinRequest { token: Secret::from(token), name: None, via: vec![] };
        self.call(site, Call::Join(request))
    }

    /// The same through another member, of which the address is all that is known.
    pub fn join_through(&mut self, site: Site, token: &str, member: Site) -> crate::node::CallId {
        let via = vec![self.net.address(member).to_string()];
        self.call(site, Call::Join(JoinRequest { token: Secret::from(token), name: None, via }))
    }

    /// New machines that join by one token, and the time that it took. They run afterwards.
    pub fn grow(&mut self, issuer: Site, count: u32) -> Option<Vec<Site>> {
        let token = self.invite(issuer, count, None)?;
        let sites: Vec<Site> = (0..count).map(|_| self.add_machine()).collect();
        for site in &sites {
            self.start(*site);
            self.join(*site, &token);
        }
        let all = |world: &mut Self| sites.iter().all(|site| world.id(*site).is_some());
        self.run_until(Duration::from_secs(120), Duration::from_millis(50), all)?;
        Some(sites)
    }

    /// New members whose certificates are made without being asked for, that know one another: for networks whose joining would take
    /// longer than what is to be seen. They start when they are told to.
    pub fn enrol(&mut self, count: usize) -> Option<Vec<Site>> {
        let sites: Vec<Site> = (0..count).map(|_| self.add_machine()).collect();
        let wall = self.true_time();
        let authority = self.authority.as_ref()?;
        let (network, bundles) = (authority.network, authority.bundles.clone());
        let chain = Chain::walk(network, &bundles).ok()?;
        let issuer = authority.keys.issuer.clone();
        let der = chain.current().issuers.first()?.clone();
        let admission =
            self.machines.iter().find_map(|machine| membership::admission(&machine.store).ok().flatten())?;
        let mut directory = Directory::default();
        let judge = Judge { network, bundle: chain.current(), revoked: &RevocationSet::default(), now: wall };
        for site in &sites {
            let random = &mut self.random;
            let (identity, leaf) = (PrivateKey::generate(random), PrivateKey::generate(random));
            let nonce = Nonce(random.array());
            let node = NodeId::derive(network, &identity.public().0, nonce);
            let life = Duration::from_secs(chain.current().parameters.leaf_lifetime_secs.into());
            let back = Duration::from_secs(LEAF_BACKDATE_SECS);
            let validity = Validity { not_before: wall.minus(back), not_after: wall.plus(life) };
            let name = format!("member-{}", site.0);
            let own = Prefix::host(overlay_address(network, node).into());
            let prefixes = Resources::from_prefixes([own]);
            let spec = LeafSpec {
                leaf_public: leaf.public(),
                network,
                identity: identity.public(),
                nonce,
                name: &name,
                prefixes: prefixes.clone(),
                groups: &[],
                roles: &[],
                validity,
                serial: Serial::draw(random),
            };
            let certificate = leaf_certificate(&issuer, &der, &spec).ok()?;
            let statement = MemberStatement {
                network,
                node,
                identity: identity.public(),
                nonce,
                name: name.clone(),
                prefixes: prefixes.prefixes(),
                groups: vec![],
                ds_digest: None,
                not_before: validity.not_before,
                not_after: validity.not_after,
            };
            let statement = Signed::sign(&statement, &issuer);
            let record = Record {
                node,
                sequence: wall.0,
                not_after: wall.plus(LIFETIME),
                endpoints: vec![address_of(*site)],
                workers: super::WORKERS,
            };
            let record = SignedRecord::sign(&record, statement.clone(), &identity);
            directory.accept(record.clone(), judge).ok()?;
            let chain = vec![certificate, der.clone()];
            let member = Membership { network, node, nonce, name, identity, leaf, chain, statement, delegation: None };
            let mut batch = Batch::default();
            member.put(&mut batch);
            membership::put_bundles(&mut batch, 1, &bundles);
            membership::put_admission(&mut batch, &admission);
            batch.put(Table::Directory, node.0, codec::encode(&record));
            self.machines[site.0].store.commit(batch).ok()?;
        }
        self.known.replace(directory);
        Some(sites)
    }

    /// Starts machines that were enrolled: they know one another from the first moment.
    pub fn start_enrolled(&mut self, sites: &[Site]) {
        let mut directory = self.known.clone().unwrap_or_default();
        self.machines.iter().filter_map(|machine| machine.node.as_ref()).for_each(|node| {
            directory.adopt(node.directory().clone());
        });
        for site in sites {
            self.start(*site);
            let directory = directory.clone();
            self.with_node(*site, |node, links, now| node.adopt(directory, links, now));
        }
    }

    /// Rotates root A in a ceremony with root B, and gives the new bundle to a machine's node. Says its version.
    pub fn rotate_root(&mut self, site: Site) -> Option<u64> {
        let mut comes = PrivateKey::generate(&mut self.random);
        let mut random = SeededRandom::new(self.random.u64());
        self.hold_ceremony(site, |ceremony, keys| {
            ceremony.rotate_root(keys.root_a.public().id(), &comes, &mut random)?;
            std::mem::swap(&mut keys.root_a, &mut comes);
            Ok(())
        })
    }

    /// Holds a ceremony with root B, and gives the new bundle to a machine's node. Says its version.
    pub fn hold_ceremony(
        &mut self,
        site: Site,
        change: impl FnOnce(&mut Ceremony, &mut FoundingKeys) -> Result<(), CeremonyError>,
    ) -> Option<u64> {
        let wall = self.true_time();
        let authority = self.authority.as_mut()?;
        let mut ceremony = Ceremony::begin(&authority.bundles, authority.keys.root_b.clone(), wall).ok()?;
        change(&mut ceremony, &mut authority.keys).ok()?;
        authority.bundles = ceremony.versions().to_vec();
        let versions = authority.bundles.iter().map(text::version).collect();
        let version = ceremony.bundle().version;
        let applied = self.ask(site, Call::BundleApply(BundleApplyRequest { versions }), Duration::from_secs(1))?;
        applied.is_ok().then_some(version)
    }

    /// Has a machine's issuer do something without being asked through its node.
    pub fn ask_issuer(&mut self, site: Site, request: Request) -> Option<crate::issuer::Reply> {
        let (mono, wall) = self.clocks(site);
        let asked = crate::issuer::Asked { by: "a test".to_owned(), request };
        let issuer = self.machines[site.0].issuer.as_mut()?;
        issuer.handle(asked, Now { mono, wall }, &mut self.random).ok()?.ok()
    }
}

/// The time that a world begins at is one at which its certificates can be made.
const _: () = assert!(BEGIN.0 > LEAF_BACKDATE_SECS);
