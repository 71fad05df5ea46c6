//! Our own next certificate, and what passes through us to an issuer for others.
//!
//! A renewal needs no valid certificate and no particular issuer: it goes to the issuer beside us, to a member with the role, or through any
//! member to one. It begins at two thirds of the certificate's life, spread over a twelfth. A way that does not answer within seconds may be
//! dead, which a link notices much later, so the next attempt goes another way. The first attempts follow each other in ever longer steps and
//! the later ones ever more often, so that many of them fall into what is left.

use std::time::Duration;

use super::calls::{WAITING_MAX, error, not_a_member};
use super::join::EXPORT_LABEL;
use super::link::{Code, Links};
use super::message::{IssuerCall, MemberRequest, Message};
use super::peer::Peer;
use super::{CallId, Node, Output, Ticket, Timer};
use crate::api::types::ErrorCode;
use crate::issuer::{self, Asked, Grant, Refused, RenewBody, RenewRequest, Reply, Request};
use crate::pki::admission::SignedAdmission;
use crate::pki::id::NodeId;
use crate::pki::key::PrivateKey;
use crate::pki::revocation::SignedRevocationList;
use crate::pki::verifier::{Member, VerifyError, verify};
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::store::Batch;
use crate::time::Now;

/// Members that a request may pass through.
pub(super) const HOPS_MAX: u8 = 1;
/// Requests that pass through us at a time.
pub(super) const RELAYED_MAX: usize = 256;
/// Requests of members and joiners that wait for the issuer beside us.
const ASKED_MAX: usize = 512;
/// Shortest time between two attempts, and what an issuer that is there and busy needs many times over.
const RETRY_MIN: Duration = Duration::from_secs(5);
/// Time between two attempts when the certificate has ended: nothing is to be gained by haste any more, and many may be in that state.
const RETRY_ENDED: Duration = Duration::from_secs(60);
/// The role of a member with an issuer beside it.
pub(super) const ROLE_ISSUER: &str = "issuer";

/// A renewal that is under way.
#[derive(Default)]
pub(super) struct Renewal {
    /// The next leaf key, and whom we asked by which link.
    asked: Option<(PrivateKey, LinkId, u32)>,
    /// The link by which the last attempt was not answered.
    silent: Option<LinkId>,
    /// Links by which this attempt was sent back: no issuer is there, or to be reached from there.
    sent_back: Vec<LinkId>,
    /// Attempts since the last certificate.
    attempts: u32,
    /// A link for nothing but this: our own certificate is past all grace, so members would not speak with us otherwise.
    by_join: Option<ByJoin>,
    next_ticket: u32,
    /// Who wants to hear of the end.
    pub(super) calls: Vec<CallId>,
    /// Why the last attempt failed.
    pub(super) trouble: Option<String>,
    /// When the next one is due.
    pub(super) due: Option<crate::time::UnixSecs>,
    /// When the next attempt is, by the network's clock: the monotonic one stands still while a machine sleeps.
    attempt: Option<crate::time::UnixSecs>,
}

/// Neighbours that are asked in one attempt. Ours: one of forty has no way to an issuer, so that all of eight have none is no matter of chance.
const WAYS_MAX: usize = 8;

/// A `weir-join/1` link for a renewal.
struct ByJoin {
    link: LinkId,
    is_greeted: bool,
}

/// Why the issuer was asked.
#[derive(Debug)]
pub(super) enum IssuerPurpose {
    /// For a member or a joiner, by this link and its ticket.
    Member(LinkId, u32),
    /// For us: our own renewal, with the next leaf key.
    Own(PrivateKey),
    /// For a person.
    Call(CallId, super::calls::IssuerCallKind),
    /// To have its newest list.
    Lists,
    /// To tell it what the network knows.
    Learn,
}

/// A request that passed through us: back by this link, under this ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relayed {
    from: LinkId,
    ticket: u32,
}

fn is_issuer(member: &Member) -> bool {
    member.roles.iter().any(|role| role == ROLE_ISSUER)
}

impl<R: Random> Node<R> {
    pub(super) fn ask_issuer(&mut self, purpose: IssuerPurpose, asked: Asked) -> Ticket {
        let ticket = self.ticket();
        // Of what is asked again and again the last one counts: while there is no issuer, none of them is ever answered.
        let kind = std::mem::discriminant(&purpose);
        if matches!(purpose, IssuerPurpose::Own(_) | IssuerPurpose::Lists | IssuerPurpose::Learn) {
            self.issuer_tickets.retain(|_, known| std::mem::discriminant(known) != kind);
        }
        self.issuer_tickets.insert(ticket, purpose);
        self.outputs.push_back(Output::Issuer(ticket, asked));
        ticket
    }

    /// Sets the time of the next renewal by the certificate that we have.
    pub(super) fn schedule_renewal(&mut self, now: Now) {
        let Some(fields) = self.leaf_fields() else { return };
        let life = fields.validity.not_after.since(fields.validity.not_before);
        let spread = life / 12 * u32::from(self.random.u64() as u8) / 256;
        let due = fields.validity.not_before.plus(life * 2 / 3 + spread);
        (self.renewal.due, self.renewal.attempt) = (Some(due), Some(due));
        self.timers.set(Timer::Renew, now.mono + due.since(now.wall));
    }

    /// The network's clock may have gone on without the monotonic one.
    pub(super) fn look_whether_renewal_is_due(&mut self, now: Now) {
        if let Some(attempt) = self.renewal.attempt {
            self.timers.set_at_latest(Timer::Renew, now.mono + attempt.since(now.wall));
        }
    }

    /// It is time for the next attempt. One that is still under way has had all the time until now.
    pub(super) fn renewal_due(&mut self, links: &mut dyn Links, now: Now) {
        let is_own = |purpose: &IssuerPurpose| matches!(purpose, IssuerPurpose::Own(_));
        if self.is_renewal_under_way() || self.issuer_tickets.values().any(is_own) {
            let silent = self.renewal.asked.take().map(|(_, link, _)| link);
            let before = std::mem::replace(&mut self.renewal.silent, silent);
            // Who waits hears of it only when the other way is silent as well.
            if silent.is_none() || before.is_some() || self.way_to_issuer(silent).is_none() {
                self.renewal_failed("no answer in time");
            }
        }
        self.end_by_join(Code::Failed, "no answer in time", links);
        self.renew(links, now);
    }

    /// Whether an answer may still come by a link.
    fn is_renewal_under_way(&self) -> bool {
        self.renewal.asked.is_some() || self.renewal.by_join.as_ref().is_some_and(|by| !by.is_greeted)
    }

    /// Closes the link that is for a renewal alone.
    fn end_by_join(&mut self, code: Code, why: &str, links: &mut dyn Links) {
        if let Some(by_join) = self.renewal.by_join.take() {
            self.drop_link(by_join.link, code, why, links);
        }
    }

    /// Somebody wants the next certificate now, and to hear of it.
    pub(super) fn renew_for(&mut self, call: CallId, links: &mut dyn Links, now: Now) {
        if self.renewal.calls.len() >= WAITING_MAX {
            let what = format!("{WAITING_MAX} calls wait for the next certificate already");
            return self.answer(call, Err(error(ErrorCode::Busy, what, "try again")));
        }
        self.renewal.calls.push(call);
        self.renew(links, now);
    }

    /// Asks for the next certificate.
    fn renew(&mut self, links: &mut dyn Links, now: Now) {
        let Some(membership) = &self.membership else { return };
        let by = membership.node.to_string();
        // Should no answer come, or a bad one.
        let left = self.leaf_fields().map_or(Duration::ZERO, |fields| fields.validity.not_after.since(now.wall));
        let patience = RETRY_MIN * 2u32.saturating_pow(self.renewal.attempts);
        let wait = if left.is_zero() { RETRY_ENDED } else { (left / 16).clamp(RETRY_MIN, patience) };
        self.renewal.attempts = (self.renewal.attempts + 1).min(16);
        self.renewal.attempt = Some(now.wall.plus(wait));
        self.timers.set(Timer::Renew, now.mono + wait);
        if self.is_issuing {
            // Bound to nothing but ourselves: the issuer is beside us.
            let exporter = [0; 32];
            let Some((leaf, request)) = self.renewal_request(&exporter) else { return };
            self.ask_issuer(IssuerPurpose::Own(leaf), Asked { by, request: Request::Renew { request, exporter } });
            return;
        }
        self.renewal.sent_back.clear();
        match self.next_way().or_else(|| self.way_to_issuer(None)) {
            Some(link) => self.ask_for_renewal(link, links),
            None => self.renew_by_join(links),
        }
    }

    /// A fresh leaf key, and the request to certify it, bound to one connection.
    fn renewal_request(&mut self, exporter: &[u8; 32]) -> Option<(PrivateKey, RenewRequest)> {
        let (membership, network) = (self.membership.as_ref()?, self.network.as_ref()?);
        let leaf = PrivateKey::generate(&mut self.random);
        let body = RenewBody {
            network: network.id,
            certificate: membership.chain.first().cloned().unwrap_or_default(),
            leaf_public: leaf.public(),
            dns_key: Some(membership.dns_key().public()),
            bundle_version: network.bundle.version,
        };
        let request = RenewRequest::new(&body, &membership.identity, &leaf, exporter);
        Some((leaf, request))
    }

    fn ask_for_renewal(&mut self, link: LinkId, links: &mut dyn Links) {
        let exporter = match links.export(link, EXPORT_LABEL, b"") {
            Ok(exporter) => *exporter,
            Err(error) => return self.renewal_failed(&error.to_string()),
        };
        let Some((leaf, request)) = self.renewal_request(&exporter) else { return };
        self.renewal.next_ticket = self.renewal.next_ticket.wrapping_add(1);
        let ticket = self.renewal.next_ticket;
        self.renewal.asked = Some((leaf, link, ticket));
        let call = IssuerCall { ticket, hops: HOPS_MAX, exporter, request: MemberRequest::Renew(request) };
        self.say(link, &Message::Issuer(call), links);
    }

    /// Dials some member for a renewal alone, which needs no certificate that is still good.
    fn renew_by_join(&mut self, links: &mut dyn Links) {
        if self.is_renewal_under_way() {
            return;
        }
        self.end_by_join(Code::Done, "it came to nothing", links);
        let own = self.id();
        // Whose record has ended may still be where it was.
        let told = self.peers.iter().filter(|(_, peer)| !peer.told_endpoints.is_empty()).map(|(node, _)| *node);
        let recorded = self.directory.entries().map(|entry| entry.record.node);
        let known: Vec<NodeId> = recorded.chain(told).filter(|node| Some(*node) != own).collect();
        if known.is_empty() {
            return self.renewal_failed("no other member is known");
        }
        let node = known[self.random.u64() as usize % known.len()];
        let Some(remote) = self.endpoint_of(node) else { return self.renewal_failed("no member has an address") };
        match self.dial(Alpn::Join, node, remote, links) {
            Ok(link) => self.renewal.by_join = Some(ByJoin { link, is_greeted: false }),
            Err(why) => self.renewal_failed(&why),
        }
    }

    /// Takes a link to join by, on which nothing was said yet, for a renewal; `false` when one is under way that may still be answered, or the
    /// issuer is beside us.
    pub(super) fn renews_by(&mut self, link: LinkId, links: &mut dyn Links) -> bool {
        if self.is_issuing || self.renewal.asked.is_some() {
            return false;
        }
        self.end_by_join(Code::Done, "another way is there", links);
        self.renewal.by_join = Some(ByJoin { link, is_greeted: false });
        true
    }

    /// The first message on a link for a renewal alone is the network's; we know it.
    pub(super) fn renewal_greeted(&mut self, link: LinkId, links: &mut dyn Links) -> bool {
        let Some(by_join) = self.renewal.by_join.as_mut().filter(|by| by.link == link && !by.is_greeted) else {
            return false;
        };
        by_join.is_greeted = true;
        self.ask_for_renewal(link, links);
        true
    }

    /// A link is gone. If our renewal went by it, or was to, that came to nothing.
    pub(super) fn renewal_link_gone(&mut self, link: LinkId, why: &str) {
        self.renewal.silent.take_if(|silent| *silent == link);
        let by_join = self.renewal.by_join.take_if(|by| by.link == link);
        let asked = self.renewal.asked.take_if(|(_, by, _)| *by == link);
        if asked.is_some() || by_join.is_some_and(|by| !by.is_greeted) {
            self.renewal_failed(why);
        }
    }

    /// A way that this attempt has not gone yet: to an issuer, or else to anybody who may have one.
    fn next_way(&self) -> Option<LinkId> {
        let is_open = |link: LinkId| !self.renewal.sent_back.contains(&link);
        let except = self.renewal.silent;
        let issuer = self.link_of_issuer(except).filter(|link| is_open(*link));
        issuer.or_else(|| self.linked(except).map(|(link, _)| link).find(|link| is_open(*link)))
    }

    /// Whoever was asked has no way to an issuer. It may have none for days, and another may; where it is an issuer's node itself, all others ask there.
    fn renewal_sent_back(&mut self, link: LinkId, links: &mut dyn Links) {
        self.renewal.sent_back.push(link);
        let is_over = self.is_issuers(link) || self.renewal.sent_back.len() >= WAYS_MAX;
        match self.next_way().filter(|_| !is_over) {
            Some(way) => self.ask_for_renewal(way, links),
            None => self.renewal_failed(&Refused::NotIssuer.to_string()),
        }
    }

    /// A link by which an issuer can be reached: to one, or else to anybody but `except`.
    pub(super) fn way_to_issuer(&self, except: Option<LinkId>) -> Option<LinkId> {
        self.link_of_issuer(except).or_else(|| self.linked(except).next().map(|(link, _)| link))
    }

    /// A link to a member that is an issuer.
    pub(super) fn link_of_issuer(&self, except: Option<LinkId>) -> Option<LinkId> {
        self.linked(except).find(|(_, member)| is_issuer(member)).map(|(link, _)| link)
    }

    /// Whether a link is to one.
    fn is_issuers(&self, link: LinkId) -> bool {
        self.linked(None).any(|(known, member)| known == link && is_issuer(member))
    }

    fn linked(&self, except: Option<LinkId>) -> impl Iterator<Item = (LinkId, &Member)> {
        self.peers
            .values()
            .filter_map(|peer| Some((peer.link?, peer.member.as_ref()?)))
            .filter(move |(link, _)| Some(*link) != except)
    }

    /// There is nothing to renew any more: who waits for it hears so, and an answer that still comes is none of ours.
    pub(super) fn forget_renewal(&mut self) {
        let Renewal { calls, next_ticket, .. } = std::mem::take(&mut self.renewal);
        self.renewal.next_ticket = next_ticket;
        self.issuer_tickets.retain(|_, purpose| !matches!(purpose, IssuerPurpose::Own(_)));
        for call in calls {
            self.answer(call, Err(not_a_member()));
        }
    }

    fn renewal_failed(&mut self, why: &str) {
        tracing::warn!(why, "our certificate was not renewed");
        self.counters.count("renewal_failed");
        self.renewal.trouble = Some(why.to_owned());
        self.renewal.asked = None;
        for call in std::mem::take(&mut self.renewal.calls) {
            self.answer_renewal_failed(call, why);
        }
    }

    /// Judges a certificate that was made for us, and says what time it is by now. To a clock that was never set all that is new is from the
    /// future: a certificate that is good but for that says how late it is at least.
    fn judge_grant(&mut self, grant: &Grant, now: Now) -> Result<Now, String> {
        let (Some(network), Some(membership)) = (&self.network, &self.membership) else {
            return Err("this node is no member".to_owned());
        };
        let shown: Vec<_> = grant.chain.iter().map(|der| der.as_slice().into()).collect();
        let judged_at = |at| verify(&shown, &network.bundle, network.id, &self.revocations, at);
        let (judged, wall) = match judged_at(now.wall) {
            Err(VerifyError::NotYetValid(begin)) => (judged_at(begin), begin),
            judged => (judged, now.wall),
        };
        let own = membership.identity.public();
        match judged {
            Ok(member) if member.identity != own => Err("the certificate that came is for another key".to_owned()),
            Ok(_) if wall == now.wall || self.is_at_least(wall, now) => Ok(Now { wall, ..now }),
            Ok(_) => Err(format!("the certificate that came is not good: {}", VerifyError::NotYetValid(wall))),
            Err(error) => Err(format!("the certificate that came is not good: {error}")),
        }
    }

    /// The next certificate is here.
    fn renewed(&mut self, leaf: PrivateKey, grant: Grant, links: &mut dyn Links, now: Now) {
        let now = match self.judge_grant(&grant, now) {
            Ok(now) => now,
            Err(why) => return self.renewal_failed(&why),
        };
        let was_ended = self.leaf_fields().is_some_and(|fields| now.wall > fields.validity.not_after);
        let Some(membership) = &mut self.membership else { return };
        (membership.leaf, membership.chain, membership.statement) = (leaf, grant.chain, grant.statement);
        membership.delegation = grant.delegation;
        let mut batch = Batch::default();
        membership.put(&mut batch);
        links.set_identity(membership);
        self.store(batch);
        (self.renewal.asked, self.renewal.silent, self.renewal.trouble) = (None, None, None);
        self.renewal.attempts = 0;
        self.end_by_join(Code::Done, "renewed", links);
        self.counters.count("renewed");
        tracing::info!("our certificate is renewed");
        self.schedule_renewal(now);
        // The apex that came along is signed for longer.
        self.publish_network_zones(now);
        self.heard_bundles(None, grant.bundles, links, now);
        self.heard_lists(None, grant.revocations, links, now);
        self.heard_admission(None, grant.admission, links, now);
        self.sign_record(now);
        if was_ended {
            // Others had reason to refuse us, which is gone: what failed before says nothing of what follows.
            self.peers.values_mut().filter(|peer| peer.link.is_none()).for_each(Peer::succeeded);
            self.dial_missing_anew(now);
        }
        for call in std::mem::take(&mut self.renewal.calls) {
            self.answer_certificate(call, now);
        }
    }

    /// A member, or one that joins, wants an issuer.
    pub(super) fn pass_to_issuer(&mut self, link: LinkId, call: IssuerCall, links: &mut dyn Links, now: Now) {
        let Some(held) = self.links.get(&link) else { return };
        let (alpn, peer) = (held.alpn, held.peer);
        // Who speaks for itself is bound to this link; who passes another's request on is believed about the other's, for it could only
        // lie about a connection of its own.
        let is_own = alpn == Alpn::Join || call.hops == HOPS_MAX;
        let exporter = match links.export(link, EXPORT_LABEL, b"") {
            Ok(ours) if is_own => *ours,
            Ok(_) => call.exporter,
            Err(_) => return self.misspoke(link, links, now),
        };
        let can_pass = call.hops > 0 && self.relayed.len() + self.issuers.waiting() < RELAYED_MAX;
        let call = match can_pass && !self.is_issuing && self.link_of_issuer(Some(link)).is_none() {
            true => match self.wait_for_issuer(link, call, links, now) {
                Some(call) => call,
                None => return,
            },
            false => call,
        };
        let IssuerCall { ticket, hops, request, .. } = call;
        if self.is_issuing && self.issuer_tickets.len() >= ASKED_MAX {
            self.counters.count("issuer_busy");
            let reply = Box::new(Err(Refused::Store("the issuer is behind; ask again".to_owned())));
            return self.say(link, &Message::IssuerSaid { ticket, reply }, links);
        }
        if self.is_issuing {
            let by = peer.map_or_else(|| "a joiner".to_owned(), |node| node.to_string());
            let request = match request {
                MemberRequest::Join(request) => Request::Join { request, exporter },
                MemberRequest::Renew(request) => Request::Renew { request, exporter },
                MemberRequest::Leave(request) => Request::Leave { request, exporter },
            };
            self.ask_issuer(IssuerPurpose::Member(link, ticket), Asked { by, request });
            return;
        }
        let way = if can_pass { self.way_to_issuer(Some(link)) } else { None };
        let Some(way) = way else {
            self.counters.count("issuer_unreachable");
            let reply = Box::new(Err(Refused::NotIssuer));
            return self.say(link, &Message::IssuerSaid { ticket, reply }, links);
        };
        let through = self.ticket();
        self.relayed.insert((way, through.0), Relayed { from: link, ticket });
        // Or a number that somebody made up would have it go round among us for as long.
        let call = IssuerCall { ticket: through.0, hops: hops.min(HOPS_MAX) - 1, exporter, request };
        self.say(way, &Message::Issuer(call), links);
    }

    /// An issuer's answer came by a link: to us, or through us.
    pub(super) fn issuer_said(
        &mut self,
        link: LinkId,
        ticket: u32,
        reply: Result<Reply, Refused>,
        links: &mut dyn Links,
        now: Now,
    ) {
        if let Some(Relayed { from, ticket }) = self.relayed.remove(&(link, ticket)) {
            return self.say(from, &Message::IssuerSaid { ticket, reply: Box::new(reply) }, links);
        }
        if self.farewell_answered(link, ticket, &reply, links, now) {
            return;
        }
        let Some((leaf, ..)) = self.renewal.asked.take_if(|(_, by, known)| *by == link && *known == ticket) else {
            return self.counters.count("issuer_said_unasked");
        };
        match reply {
            Ok(Reply::Granted(grant)) => self.renewed(leaf, *grant, links, now),
            Ok(_) => self.renewal_failed("the issuer said something else"),
            Err(Refused::NotIssuer) => self.renewal_sent_back(link, links),
            Err(refused) => self.renewal_failed(&refused.to_string()),
        }
    }

    /// Answers that would go back by this link, or come by it, will not any more.
    pub(super) fn forget_relayed(&mut self, link: LinkId) {
        self.relayed.retain(|(way, _), relayed| *way != link && relayed.from != link);
        self.issuers.forget_link(link);
    }

    /// Whether answers to others are still to come by this link.
    pub(super) fn is_relayed_by(&self, link: LinkId) -> bool {
        self.relayed.keys().any(|(way, _)| *way == link)
    }

    /// The issuer beside us answered.
    pub fn handle_issuer(&mut self, ticket: Ticket, reply: Result<Reply, Refused>, links: &mut dyn Links, now: Now) {
        let Some(purpose) = self.issuer_tickets.remove(&ticket) else {
            // Of all that it was told the last ticket is kept. A seed counts whichever of them brought it.
            if let Ok(Reply::Admission(signed)) = reply {
                self.heard_admission(None, signed, links, now);
                self.settle(links);
            }
            return;
        };
        match purpose {
            IssuerPurpose::Member(link, ticket) => {
                if let Err(refused) = &reply {
                    self.counters.count(refused.name());
                }
                // List and seed are for those who stay. Who leaves hears that it is done.
                let (reply, news) = match reply {
                    Ok(Reply::Revoked { list, admission }) => (Ok(Reply::Done), Some((list, admission))),
                    reply => (reply, None),
                };
                // A seed or a list may have changed with a replacement.
                if matches!(reply, Ok(Reply::Granted(_))) {
                    self.timers.set(Timer::Lists, now.mono);
                }
                let message = Message::IssuerSaid { ticket, reply: Box::new(reply) };
                self.say(link, &message, links);
                if let Some((list, admission)) = news {
                    self.heard_lists(None, vec![list], links, now);
                    self.heard_admission(None, admission, links, now);
                }
            }
            IssuerPurpose::Own(leaf) => match reply {
                Ok(Reply::Granted(grant)) => self.renewed(leaf, *grant, links, now),
                Ok(_) => self.renewal_failed("the issuer said something else"),
                Err(refused) => self.renewal_failed(&refused.to_string()),
            },
            IssuerPurpose::Call(call, kind) => self.issuer_answered_call(call, kind, reply, links, now),
            IssuerPurpose::Lists => match reply {
                Ok(Reply::Revocations(list)) => {
                    self.heard_lists(None, vec![list], links, now);
                }
                Ok(_) => {}
                Err(refused) => tracing::warn!(%refused, "the issuer gives no list"),
            },
            IssuerPurpose::Learn => {
                // Renewals, ours and others', go elsewhere until it is one.
                self.is_issuing = !matches!(reply, Err(Refused::NotIssuer | Refused::Absent));
                match reply {
                    // The seed that held was of an issuer that is none any more.
                    Ok(Reply::Admission(signed)) => self.heard_admission(None, signed, links, now),
                    Ok(_) => {}
                    Err(refused) => tracing::warn!(%refused, "the issuer does not believe what it was told"),
                }
            }
        }
        self.settle(links);
    }

    /// The issuer's process has ended: what was asked and not answered is lost.
    pub fn handle_issuer_gone(&mut self, links: &mut dyn Links) {
        // Until another is there and knows what the network knows, another issuer does its work.
        self.is_issuing = false;
        let lost: Vec<IssuerPurpose> = std::mem::take(&mut self.issuer_tickets).into_values().collect();
        for purpose in lost {
            match purpose {
                IssuerPurpose::Call(call, _) => self.answer_issuer_lost(call),
                IssuerPurpose::Member(link, ticket) => {
                    let refused = Refused::Store("the issuer ended before it answered; ask once more".to_owned());
                    self.say(link, &Message::IssuerSaid { ticket, reply: Box::new(Err(refused)) }, links);
                }
                IssuerPurpose::Own(_) => self.renewal_failed("the issuer ended before it answered"),
                IssuerPurpose::Lists | IssuerPurpose::Learn => {}
            }
        }
        self.settle(links);
    }

    /// The issuer's process is there again; it may have missed something.
    pub fn handle_issuer_connected(&mut self, links: &mut dyn Links, now: Now) {
        self.teach_issuer();
        self.timers.set(Timer::Lists, now.mono);
        self.settle(links);
    }

    /// Tells the issuer, which has no network, what the network knows.
    pub(super) fn teach_issuer(&mut self) {
        let (true, Some(network)) = (self.settings.has_issuer, &self.network) else { return };
        let bundles = network.chain.versions().to_vec();
        // A seed of somebody who is no issuer any more is not believed there either.
        let admission = self.admission.as_ref().filter(|keys| keys.version() > 0).map(|keys| keys.signed().clone());
        let statements = self.directory.entries().map(|entry| entry.signed.statement.clone()).collect();
        self.tell(Request::learn(bundles, self.revocations.lists(), admission, statements));
    }

    /// Tells the issuer of what has just come.
    pub(super) fn tell_issuer(&mut self, revocations: Vec<SignedRevocationList>, admission: Option<SignedAdmission>) {
        if self.settings.has_issuer {
            self.tell(Request::learn(vec![], revocations, admission, vec![]));
        }
    }

    fn tell(&mut self, requests: Vec<Request>) {
        for request in requests {
            self.ask_issuer(IssuerPurpose::Learn, Asked { by: "the node".to_owned(), request });
        }
    }

    /// Asks for the list of the issuer beside us, which signs it anew every ten minutes.
    pub(super) fn ask_own_lists(&mut self, now: Now) {
        let asked = Asked { by: "the node".to_owned(), request: Request::Revocations { from: 0 } };
        self.ask_issuer(IssuerPurpose::Lists, asked);
        self.timers.set(Timer::Lists, now.mono + issuer::RESIGN_INTERVAL);
    }
}
