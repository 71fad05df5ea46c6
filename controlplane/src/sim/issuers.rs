//! The processes of issuers beside their nodes, and how a network gets another one.

use std::time::Duration;

use super::{Due, ISSUER_TIME, LOCAL, RECONNECT, Site, World};
use crate::audit::ENTRIES_MAX_DEFAULT;
use crate::ceremony::ISSUER_ROLE;
use crate::issuer::{Asked, Refused, Seat};
use crate::node::Ticket;
use crate::pki::id::KeyId;
use crate::pki::key::PrivateKey;
use crate::random::{Random, SeededRandom};
use crate::store::MemoryStore;
use crate::time::Now;

/// How the process of an issuer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Process {
    /// There is none.
    #[default]
    Gone,
    /// It is there and says nothing.
    Hangs,
    /// It answers.
    Runs,
}

impl World {
    /// Has the issuer beside a node hang, or starts it again. What it was asked meanwhile is lost.
    pub fn set_issuer(&mut self, site: Site, is_up: bool) {
        let machine = &mut self.machines[site.0];
        machine.issuer_process = if is_up { Process::Runs } else { Process::Hangs };
        let life = machine.life;
        if is_up {
            self.net.queue.push(self.net.at + RECONNECT, Due::IssuerConnected(site, life));
        }
    }

    /// Ends the process of the issuer beside a node, which is told so. Until it is started again, what is asked of it is refused.
    pub fn end_issuer(&mut self, site: Site) {
        self.machines[site.0].issuer_process = Process::Gone;
        self.with_node(site, |node, links, _| node.handle_issuer_gone(links));
    }

    /// A new member with an issuer beside it, which a ceremony admits to the network; and the id of its key.
    pub fn add_issuer(&mut self, first: Site) -> Option<(Site, KeyId)> {
        let token = self.invite_as(first, 1, None, &[ISSUER_ROLE])?;
        let key = PrivateKey::generate(&mut self.random);
        let public = key.public();
        let site = self.add_machine();
        let machine = &mut self.machines[site.0];
        machine.issuer = Some(Seat::open(MemoryStore::default(), key, ENTRIES_MAX_DEFAULT).ok()?);
        (machine.has_issuer, machine.issuer_process) = (true, Process::Runs);
        self.start(site);
        self.join(site, &token);
        let is_member = |world: &mut Self| world.id(site).is_some();
        self.run_until(Duration::from_secs(30), Duration::from_millis(50), is_member)?;
        let mut random = SeededRandom::new(self.random.u64());
        self.hold_ceremony(first, |ceremony, _| ceremony.add_issuer(public, &mut random).map(drop))?;
        Some((site, public.id()))
    }

    pub(super) fn ask_process(&mut self, site: Site, ticket: Ticket, asked: Asked) {
        let (at, (mono, wall)) = (self.net.at, self.clocks(site));
        let machine = &mut self.machines[site.0];
        let (took, reply) = match (machine.issuer_process, &mut machine.issuer) {
            (Process::Hangs, _) => return,
            (Process::Runs, Some(issuer)) => match issuer.handle(asked, Now { mono, wall }, &mut self.random) {
                Ok(reply) => (ISSUER_TIME, reply),
                Err(error) => return tracing::error!(%error, site = site.0, "an issuer cannot be made"),
            },
            (Process::Runs | Process::Gone, _) => (LOCAL, Err(Refused::Absent)),
        };
        self.net.queue.push(at + took, Due::Issuer(site, machine.life, ticket, Box::new(reply)));
    }
}
