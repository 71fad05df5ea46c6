//! Leaving: an issuer is told, and then everything of the network is forgotten.
//!
//! ```text
//!  weir leave ─▶ farewell, by a link that leads to an issuer ─▶ it answers: we are on its list ─▶ sessions, links, keys go
//!                        └── no such link ──────────────────────▶    or the link goes, or the time is over ──▲
//! ```
//!
//! A link that is closed takes along what was said on it a moment before, so the answer is waited for: whoever does not hear of it would go
//! on to believe in us for as long as our certificate holds.

use std::time::Duration;

use weir_dataplane::api::message::Request as PlaneRequest;

use super::calls::{WAITING_MAX, error};
use super::directory::Directory;
use super::join::EXPORT_LABEL;
use super::link::{Code, Links};
use super::message::{IssuerCall, MemberRequest, Message};
use super::plane::Purpose;
use super::renew::{HOPS_MAX, IssuerPurpose};
use super::{CallId, Node, Output, Timer};
use crate::api::call::Answer;
use crate::api::types::{Done, ErrorCode};
use crate::issuer::{Asked, LeaveBody, LeaveRequest, Refused, Reply, Request};
use crate::membership;
use crate::pki::key::PrivateKey;
use crate::pki::revocation::RevocationSet;
use crate::policy::History;
use crate::quic::LinkId;
use crate::random::Random;
use crate::store::{Batch, Table};
use crate::time::Now;

/// How long an issuer may take to answer. Ours: as long as a person waits without a word; it has to write to its disk.
const PATIENCE: Duration = Duration::from_secs(3);
/// The farewell's number on its link. Renewals count from one.
const TICKET: u32 = 0;

/// A farewell that is under way.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Who waits for the end of it.
    calls: Vec<CallId>,
    /// By which link the issuer is told.
    link: LinkId,
    /// Whether its other end has cut it because it knows.
    is_heard: bool,
}

/// What became of a farewell.
#[derive(Debug)]
enum Heard {
    /// An issuer has listed us.
    Yes,
    /// No issuer was there, or none that answered.
    Nobody,
    /// An issuer said no, and why.
    Refused(String),
}

impl<R: Random> Node<R> {
    /// Is to be a member no more.
    pub(super) fn leave(&mut self, id: CallId, links: &mut dyn Links, now: Now) {
        if let Some(leaving) = &mut self.leaving {
            if leaving.calls.len() < WAITING_MAX {
                return leaving.calls.push(id);
            }
            let what = format!("{WAITING_MAX} calls wait for the farewell already");
            return self.answer(id, Err(error(ErrorCode::Busy, what, "try again")));
        }
        match self.say_farewell(links) {
            Some(link) => {
                self.leaving = Some(Leaving { calls: vec![id], link, is_heard: false });
                self.timers.set(Timer::Leave, now.mono + PATIENCE);
            }
            None => self.left(vec![id], &Heard::Nobody, links, now),
        }
    }

    /// Tells an issuer that we leave, so that nobody takes us back, and says by which link. The one beside us lists us as well, but nobody hears
    /// of its list once our links are gone: another one must.
    fn say_farewell(&mut self, links: &mut dyn Links) -> Option<LinkId> {
        let membership = self.membership.as_ref()?;
        let certificate = membership.chain.first().cloned().unwrap_or_default();
        let body = LeaveBody { network: membership.network, certificate };
        if self.is_issuing {
            let exporter = [0; 32];
            let request = LeaveRequest::new(&body, &membership.identity, &exporter);
            let by = membership.node.to_string();
            self.ask_issuer(IssuerPurpose::Learn, Asked { by, request: Request::Leave { request, exporter } });
        }
        let membership = self.membership.as_ref()?;
        let link = if self.is_issuing { self.link_of_issuer(None) } else { self.way_to_issuer(None) }?;
        let exporter = *links.export(link, EXPORT_LABEL, b"").ok()?;
        let request = LeaveRequest::new(&body, &membership.identity, &exporter);
        let request = MemberRequest::Leave(request);
        self.say(link, &Message::Issuer(IssuerCall { ticket: TICKET, hops: HOPS_MAX, exporter, request }), links);
        self.links.contains_key(&link).then_some(link)
    }

    /// Whether an issuer's answer is the one to our farewell; then we are gone.
    pub(super) fn farewell_answered(
        &mut self,
        link: LinkId,
        ticket: u32,
        reply: &Result<Reply, Refused>,
        links: &mut dyn Links,
        now: Now,
    ) -> bool {
        let is_ours = |leaving: &Leaving| leaving.link == link && ticket == TICKET;
        if !self.leaving.as_ref().is_some_and(is_ours) {
            return false;
        }
        match reply {
            // The second is what who was listed before hears.
            Ok(_) | Err(Refused::MemberRevoked(_)) => self.end_farewell(&Heard::Yes, links, now),
            Err(refused) => self.end_farewell(&Heard::Refused(refused.to_string()), links, now),
        }
        true
    }

    /// A link was cut by its other end because a list names us. What was said on it just before, as the answer to our farewell, is lost.
    pub(super) fn cut_as_revoked(&mut self, link: LinkId) {
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.link == link) {
            leaving.is_heard = true;
        }
    }

    /// A link is gone. If the answer to our farewell was to come by it, it will not.
    pub(super) fn farewell_link_gone(&mut self, link: LinkId) {
        if self.leaving.as_ref().is_some_and(|leaving| leaving.link == link) {
            self.timers.set(Timer::Leave, self.clock.looked_at());
        }
    }

    /// No answer came: we go without one. Whoever cut us off for it, or sent the list that we are on, has heard of it all the same.
    pub(super) fn farewell_over(&mut self, links: &mut dyn Links, now: Now) {
        let is_listed = self.id().is_some_and(|own| self.revocations.is_node_revoked(own));
        let is_heard = self.leaving.as_ref().is_some_and(|leaving| leaving.is_heard);
        let heard = if is_listed || is_heard { Heard::Yes } else { Heard::Nobody };
        self.end_farewell(&heard, links, now);
    }

    fn end_farewell(&mut self, heard: &Heard, links: &mut dyn Links, now: Now) {
        self.timers.cancel(Timer::Leave);
        if let Some(Leaving { calls, .. }) = self.leaving.take() {
            self.left(calls, heard, links, now);
        }
    }

    /// Is a member no more: sessions go, keys go.
    fn left(&mut self, calls: Vec<CallId>, heard: &Heard, links: &mut dyn Links, now: Now) {
        self.forget_renewal();
        let nodes: Vec<_> = self.peers.keys().copied().collect();
        for node in nodes {
            self.end_session(node, links, now);
        }
        let open: Vec<_> = self.links.keys().copied().collect();
        for link in open {
            // An address that was being tried is tried again as a member of the next network.
            self.knock_closed(link, "this node left its network", now);
            self.drop_link(link, Code::Done, "leaving", links);
        }
        self.forget_contacts();
        self.forget_issuers();
        self.end_waiting();
        self.end_discovery();
        self.end_names();
        self.end_mail();
        self.identity = PrivateKey::generate(&mut self.random);
        let mut batch = Batch::default();
        batch.delete(Table::Discovery, super::discovery::SAVED);
        batch.delete(Table::Discovery, super::issuers::KEPT);
        batch.delete(Table::Discovery, super::services::TOLD);
        membership::forget(&mut batch, &self.identity);
        for entry in self.directory.entries() {
            batch.delete(Table::Directory, entry.record.node.0);
        }
        if let Some(network) = &self.network {
            for version in 1..=network.bundle.version {
                batch.delete(Table::Bundles, version.to_be_bytes());
            }
        }
        for (signer, _) in self.revocations.versions() {
            batch.delete(Table::Revocations, signer.0);
        }
        for policy in self.policy.versions() {
            batch.delete(Table::Policy, policy.version.to_be_bytes());
        }
        self.store(batch);
        self.ask_plane(Purpose::Order("DiscardRoutes"), PlaneRequest::DiscardRoutes);
        self.ask_plane(Purpose::Order("CommitRoutes"), PlaneRequest::CommitRoutes);
        let name = self.membership.as_ref().map(|membership| membership.name.clone()).unwrap_or_default();
        self.forget_membership();
        for timer in [Timer::Renew, Timer::Record, Timer::Lists] {
            self.timers.cancel(timer);
        }
        self.outputs.push_back(Output::Unconfigure);
        let unheard = match heard {
            Heard::Yes => String::new(),
            Heard::Nobody => format!("; no issuer has heard of it: `weir revoke {name}` on one tells the others"),
            Heard::Refused(why) => {
                format!("; the issuer did not list it ({why}): `weir revoke {name}` on one tells the others")
            }
        };
        let message = format!("this node has left the network and forgotten its keys{unheard}");
        for id in calls {
            self.answer(id, Ok(Answer::Done(Done { message: message.clone() })));
        }
    }

    /// Forgets everything of the network.
    fn forget_membership(&mut self) {
        self.membership = None;
        self.network = None;
        self.revocations = RevocationSet::default();
        self.policy = History::default();
        self.compiled = None;
        self.admission = None;
        self.directory = Directory::default();
        self.peers.clear();
        self.by_session.clear();
        self.exchanges.clear();
        self.trust = None;
    }
}
