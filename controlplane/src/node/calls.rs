//! What people and their programs ask, and what the node answers.
//!
//! Most is answered from what is known. What the packet plane or the issuer must say first waits under the call's id; whoever waits is
//! answered in any case, if only that it came to nothing.

mod trust;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::{Request as PlaneRequest, SessionDump, SessionId};

use super::plane::Purpose;
use super::renew::IssuerPurpose;
use super::status::pem;
use super::{CallId, Links, Node, Output, Timer};
use crate::api::call::{Answer, Call};
use crate::api::types::{
    AuditEntry, Crl, Done, Error, ErrorCode, Invite, InviteRequest, Invited, LogVerified, Member, MemberState, Moment,
    Peer, PeerState, Ping, PingRequest, Revoked as RevokedAnswer, Secret,
};
use crate::issuer::{
    Asked, Contact, InviteSpec, Predecessor, Refused, Reply, Request, SecretText, Subnet, TTL_SECS_DEFAULT,
};
use crate::pki::id::{KeyId, NodeId, overlay_address, session_id};
use crate::pki::revocation::Revoked;
use crate::random::Random;
use crate::time::Now;

/// Most calls that wait at a time.
pub(super) const WAITING_MAX: usize = 256;
/// Echoes of a ping when nobody says how many, and at most.
const PINGS_DEFAULT: u16 = 4;
const PINGS_MAX: u16 = 20;
/// How long an echo is waited for; a session that must be made first takes a few round trips.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// Entries of the audit log when nobody says how many, and at most.
const LOG_DEFAULT: u32 = 100;
const LOG_MAX: u32 = 1000;
/// Bits of a subnet that an issuer chooses.
const SUBNET_BITS: u8 = 24;

/// What an issuer's answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IssuerCallKind {
    Invite,
    Invites,
    Withdraw,
    Revoke {
        node: NodeId,
        name: String,
        /// Who asks, when an invitation for the successor is wanted as well.
        replace_by: Option<String>,
    },
    /// The replacement of one that was revoked.
    Replacement {
        node: NodeId,
        name: String,
        list_version: u64,
    },
    RevokeIssuer,
    SignPolicy {
        version: u64,
        body: Vec<u8>,
    },
    ExportCrl,
    Recovered,
    /// Where the log ends, to show its last entries.
    AuditEnd {
        max: u32,
        by: String,
    },
    Audit,
    VerifyAudit,
    Backup,
}

/// A ping that is under way.
#[derive(Clone, Debug)]
pub(super) struct Pinging {
    node: NodeId,
    sent: u16,
    count: u16,
    rtts: Vec<Duration>,
}

/// Calls that wait, and what rates are worked out from.
#[derive(Default)]
pub(super) struct Waiting {
    /// For the packet plane's dump.
    dump: Vec<CallId>,
    pings: BTreeMap<CallId, Pinging>,
    /// For the end of a key exchange.
    rekeys: Vec<(CallId, NodeId)>,
    /// Bytes of each session at the dump before the last, with the moment.
    before: BTreeMap<SessionId, (Instant, u64, u64)>,
    rates: BTreeMap<SessionId, (f64, f64)>,
}

pub(super) fn error(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error { code, message: message.into(), remedy: remedy.into() }
}

pub(super) fn not_a_member() -> Error {
    error(ErrorCode::Conflict, "this node is not a member of a network", "join one with `weir join TOKEN`")
}

fn no_issuer() -> Error {
    error(
        ErrorCode::Conflict,
        "this node has no issuer",
        "ask on a node that issues; `weir members` shows who has the role",
    )
}

impl<R: Random> Node<R> {
    pub(super) fn answer(&mut self, call: CallId, answer: Result<Answer, Error>) {
        self.outputs.push_back(Output::Answer(call, answer));
    }

    /// Somebody asks. `by` is who, for the audit log.
    pub fn handle_call(&mut self, id: CallId, call: Call, by: &str, links: &mut dyn Links, now: Now) {
        match call {
            Call::Join(request) => self.join(id, request, links, now),
            Call::Status => {
                let status = self.status(now);
                self.answer(id, Ok(Answer::Status(Box::new(status))));
            }
            call if self.membership.is_none() => {
                tracing::debug!(call = call.name(), "asked of no member");
                self.answer(id, Err(not_a_member()));
            }
            Call::Members => self.answer(id, Ok(Answer::Members(self.members(now)))),
            Call::Peers => self.peers_call(id),
            Call::Candidates => self.answer(id, Ok(Answer::Candidates(self.candidate_rows()))),
            Call::Ping(request) => self.ping(id, &request, links, now),
            Call::Rekey(request) => self.rekey(id, &request.peer, links, now),
            Call::CertShow => self.answer_certificate(id, now),
            Call::CertRenew => self.renew_for(id, links, now),
            Call::Leave => self.leave(id, links, now),
            Call::BundleShow => self.show_bundles(id),
            Call::BundleApply(request) => self.apply_bundles(id, &request.versions, links, now),
            Call::PolicyShow => self.policy_show(id),
            Call::PolicyHistory => self.policy_history(id),
            Call::PolicyExplain(request) => self.policy_explain(id, &request),
            Call::PolicyApply(request) => self.policy_apply(id, request, by, links, now),
            Call::PolicyRollback(request) => self.policy_rollback(id, request.version, by, now),
            Call::Invite(request) => self.invite(id, request, by),
            Call::Invites => self.ask_for(id, IssuerCallKind::Invites, by, Request::Invites),
            Call::WithdrawInvite(request) => match request.invite.parse() {
                Ok(invite) => self.ask_for(id, IssuerCallKind::Withdraw, by, Request::Withdraw(invite)),
                Err(wrong) => {
                    let remedy = "`weir invites` lists the invitations with their ids";
                    self.answer(id, Err(error(ErrorCode::BadRequest, wrong.to_string(), remedy)));
                }
            },
            Call::Revoke(request) => self.revoke(id, &request.member, request.reason, request.replace, by),
            Call::RevokeIssuer(request) => match request.issuer.parse::<KeyId>() {
                Ok(issuer) => {
                    let request = Request::Revoke { what: Revoked::Issuer(issuer), reason: request.reason };
                    self.ask_for(id, IssuerCallKind::RevokeIssuer, by, request);
                }
                Err(wrong) => {
                    let remedy = "`weir cert show` on a member that it certified names the issuer by its key id";
                    self.answer(id, Err(error(ErrorCode::BadRequest, wrong.to_string(), remedy)));
                }
            },
            Call::Recovered => self.ask_for(id, IssuerCallKind::Recovered, by, Request::Recovered),
            Call::AuditLog(request) => {
                let max = request.limit.unwrap_or(LOG_DEFAULT).min(LOG_MAX);
                match request.after {
                    // Numbers count from 1 for people, from 0 in the log.
                    Some(after) => self.ask_for(id, IssuerCallKind::Audit, by, Request::Audit { from: after, max }),
                    None => {
                        self.ask_for(id, IssuerCallKind::AuditEnd { max, by: by.to_owned() }, by, Request::Status);
                    }
                }
            }
            Call::AuditVerify(request) => {
                let from = request.after.unwrap_or(0);
                self.ask_for(id, IssuerCallKind::VerifyAudit, by, Request::VerifyAudit { from });
            }
            Call::DhtStatus => self.dht_status(id),
            Call::DhtLookups(request) => self.lookups_call(id, request.after, now),
            Call::DhtRecord(request) => self.record_call(id, &request.kind, &request.what, links, now),
            Call::Find(request) => self.find_call(id, &request.what, request.dht, links, now),
            Call::DhtPublish => self.publish_call(id, links, now),
            Call::DnsStatus => self.dns_status(id),
            Call::DnsSet(request) => self.dns_set(id, &request, links, now),
            Call::DnsUnset(request) => self.dns_unset(id, &request, links, now),
            Call::DnsAnchors => self.dns_anchors(id),
            Call::DnsLog => self.dns_log(id),
            Call::RevocationList(request) => self.revocation_list(id, &request.signer),
            Call::RevocationsApply(request) => self.apply_revocations(id, &request.list, links, now),
            Call::SendMessage(request) => self.send_message(id, request, links, now),
            Call::MessageOutcomes(request) => self.message_outcomes(id, &request, now),
            Call::ReceiveMessages(request) => self.receive_messages(id, request, now),
            Call::MessagesTaken(request) => self.messages_taken(id, &request, links),
            Call::MessagesReturned(request) => self.messages_returned(id, &request, now),
            Call::Messages => {
                let messages = self.messages();
                self.answer(id, Ok(Answer::Messages(messages)));
            }
            Call::ExportCrl => self.ask_for(id, IssuerCallKind::ExportCrl, by, Request::ExportCrl),
            Call::Backup(request) => {
                let passphrase = SecretText(request.passphrase.0);
                self.ask_for(id, IssuerCallKind::Backup, by, Request::Backup { passphrase });
            }
        }
        self.settle(links);
    }

    /// Finds a member by name, id, the beginning of an id, or overlay address.
    pub(super) fn find(&self, text: &str) -> Result<NodeId, Error> {
        let network = self.network.as_ref().map(|network| network.id).ok_or_else(not_a_member)?;
        if let Some(entry) = self.directory.named(text) {
            return Ok(entry.record.node);
        }
        let address: Option<IpAddr> = text.parse().ok();
        let fits = |node: NodeId| {
            node.to_string().starts_with(&text.to_ascii_lowercase())
                || address == Some(IpAddr::V6(overlay_address(network, node)))
        };
        let mut found = self.directory.entries().map(|entry| entry.record.node).filter(|node| fits(*node));
        match (found.next(), found.next()) {
            (Some(node), None) if text.len() >= 4 => Ok(node),
            (Some(_), Some(_)) => {
                Err(error(ErrorCode::BadRequest, format!("{text} begins the id of several members"), "give more of it"))
            }
            _ => {
                Err(error(ErrorCode::NotFound, format!("no member {text}"), "`weir members` lists all that are known"))
            }
        }
    }

    pub(super) fn ask_for(&mut self, id: CallId, kind: IssuerCallKind, by: &str, request: Request) {
        if !self.settings.has_issuer {
            return self.answer(id, Err(no_issuer()));
        }
        let calls = self.issuer_tickets.values().filter(|purpose| matches!(purpose, IssuerPurpose::Call(..)));
        if calls.count() >= WAITING_MAX {
            let busy = error(ErrorCode::Busy, format!("{WAITING_MAX} requests wait for the issuer"), "try again");
            return self.answer(id, Err(busy));
        }
        self.ask_issuer(IssuerPurpose::Call(id, kind), Asked { by: by.to_owned(), request });
    }

    fn contact(&self) -> Contact {
        let node = self.id().unwrap_or_default();
        Contact { node, endpoints: self.own_endpoints() }
    }

    fn invite(&mut self, id: CallId, request: InviteRequest, by: &str) {
        let ttl_secs = request.ttl_secs.map_or(TTL_SECS_DEFAULT, |secs| u32::try_from(secs).unwrap_or(u32::MAX));
        let contact = self.contact();
        if contact.endpoints.is_empty() {
            let message = "nobody could find this node: no address of it is known";
            let remedy = "set wan.advertise in the configuration to an address and port under which others reach it";
            return self.answer(id, Err(error(ErrorCode::Conflict, message, remedy)));
        }
        if let Some(replaced) = &request.replace {
            let of = match self.find(replaced) {
                Ok(node) => Predecessor::Node(node),
                // One that has left, or was revoked without a successor.
                Err(wrong) if wrong.code == ErrorCode::NotFound => {
                    let by_id = replaced.parse().map(Predecessor::Node);
                    by_id.unwrap_or_else(|_| Predecessor::Name(replaced.clone()))
                }
                Err(wrong) => return self.answer(id, Err(wrong)),
            };
            return self.ask_for(id, IssuerCallKind::Invite, by, Request::Replace { of, ttl_secs, contact });
        }
        let wrong = |what: String| Err(error(ErrorCode::BadRequest, what, "see `weir invite --help`"));
        let name = match request.name.parse() {
            Ok(name) => name,
            Err(why) => return self.answer(id, wrong(format!("{}: {why}", request.name))),
        };
        let subnet = match request.subnet.as_deref() {
            None => Subnet::None,
            Some("auto") => Subnet::Auto { bit_len: SUBNET_BITS },
            Some(text) => match text.split(',').map(|part| part.trim().parse::<Prefix>()).collect() {
                Ok(prefixes) => Subnet::Given(prefixes),
                Err(why) => return self.answer(id, wrong(format!("{text}: {why}"))),
            },
        };
        let uses = request.uses.unwrap_or(1);
        let spec = InviteSpec { name, subnet, groups: request.groups, roles: request.roles, ttl_secs, uses };
        self.ask_for(id, IssuerCallKind::Invite, by, Request::Invite { spec, contact });
    }

    fn revoke(&mut self, id: CallId, member: &str, reason: String, then_replace: bool, by: &str) {
        match self.find(member) {
            Ok(node) => {
                let name = self.name_of(node);
                let replace_by = then_replace.then(|| by.to_owned());
                let kind = IssuerCallKind::Revoke { node, name, replace_by };
                let request = Request::Revoke { what: Revoked::Node(node), reason };
                self.ask_for(id, kind, by, request);
            }
            Err(wrong) if then_replace && wrong.code == ErrorCode::NotFound => {
                let remedy = format!(
                    "who has left, or was revoked already, gets a successor by `weir invite --name {member} --replace {member}`"
                );
                self.answer(id, Err(Error { remedy, ..wrong }));
            }
            Err(wrong) => self.answer(id, Err(wrong)),
        }
    }

    pub(super) fn issuer_answered_call(
        &mut self,
        id: CallId,
        kind: IssuerCallKind,
        reply: Result<Reply, Refused>,
        links: &mut dyn Links,
        now: Now,
    ) {
        let reply = match reply {
            Ok(reply) => reply,
            Err(refused) => {
                let code = match refused {
                    Refused::UnknownMember(_) | Refused::UnknownName(_) | Refused::UnknownInvite(_) => {
                        ErrorCode::NotFound
                    }
                    Refused::Store(_) | Refused::Backup(_) | Refused::Audit(_) => ErrorCode::Internal,
                    Refused::Absent => ErrorCode::Busy,
                    _ => ErrorCode::Conflict,
                };
                return self
                    .answer(id, Err(error(code, refused.to_string(), "`weir log` shows what the issuer did before")));
            }
        };
        let answer = match (kind, reply) {
            (IssuerCallKind::Invite, Reply::Invited { invite, token, not_after }) => Answer::Invited(Invited {
                invite: invite.to_string(),
                token: Secret(token.0),
                not_after: Moment(not_after),
            }),
            (IssuerCallKind::Invites, Reply::Invites(invites)) => Answer::Invites(
                invites
                    .into_iter()
                    .map(|info| Invite {
                        invite: info.invite.to_string(),
                        name: info.spec.name.to_string(),
                        prefixes: match info.spec.subnet {
                            Subnet::None => vec![],
                            Subnet::Given(prefixes) => prefixes.iter().map(Prefix::to_string).collect(),
                            Subnet::Auto { bit_len } => vec![format!("auto/{bit_len}")],
                        },
                        groups: info.spec.groups,
                        not_after: Moment(info.not_after),
                        uses: info.spec.uses,
                        used_by: info.used_by.iter().map(NodeId::to_string).collect(),
                        refused: info.refused,
                        withdrawn: info.withdrawn,
                    })
                    .collect(),
            ),
            (IssuerCallKind::Withdraw, Reply::Revoked { list, admission }) => {
                self.spread(list, admission, links, now);
                Answer::Done(Done { message: "the invitation is withdrawn".to_owned() })
            }
            (IssuerCallKind::Withdraw, Reply::Done) => {
                Answer::Done(Done { message: "the invitation is withdrawn".to_owned() })
            }
            (IssuerCallKind::Revoke { node, name, replace_by }, Reply::Revoked { list, admission }) => {
                let list_version = list.head.peek().map_or(0, |head| head.version);
                self.spread(list, admission, links, now);
                if let Some(by) = replace_by {
                    let kind = IssuerCallKind::Replacement { node, name, list_version };
                    let of = Predecessor::Node(node);
                    let request = Request::Replace { of, ttl_secs: TTL_SECS_DEFAULT, contact: self.contact() };
                    return self.ask_for(id, kind, &by, request);
                }
                let node = node.to_string();
                Answer::Revoked(RevokedAnswer { name, node, list_version, replacement: None })
            }
            // Revoked, and then the successor's invitation.
            (IssuerCallKind::Replacement { node, name, list_version }, Reply::Invited { invite, token, not_after }) => {
                let replacement =
                    Invited { invite: invite.to_string(), token: Secret(token.0), not_after: Moment(not_after) };
                let node = node.to_string();
                Answer::Revoked(RevokedAnswer { name, node, list_version, replacement: Some(replacement) })
            }
            (IssuerCallKind::RevokeIssuer, Reply::Revoked { list, admission }) => {
                self.spread(list, admission, links, now);
                Answer::Done(Done { message: "the issuer and all its certificates are revoked".to_owned() })
            }
            (IssuerCallKind::ExportCrl, Reply::Crl { issuer, list }) => {
                Answer::Crls(vec![Crl { issuer: issuer.to_string(), pem: pem("X509 CRL", &list) }])
            }
            (IssuerCallKind::Recovered, Reply::Done) => {
                Answer::Done(Done { message: "the issuer may admit members again".to_owned() })
            }
            (IssuerCallKind::SignPolicy { version, body }, Reply::Policy { signer, signature }) => {
                return self.policy_signed(id, version, body, signer, signature, links, now);
            }
            (IssuerCallKind::AuditEnd { max, by }, Reply::Status(status)) => {
                let from = status.audit.next.saturating_sub(max.into());
                return self.ask_for(id, IssuerCallKind::Audit, &by, Request::Audit { from, max });
            }
            (IssuerCallKind::Audit, Reply::Audit(entries)) => {
                Answer::Log(entries.iter().filter_map(audit_entry).collect())
            }
            (IssuerCallKind::VerifyAudit, Reply::AuditVerified { verified, entries, first }) => {
                let hash = data_encoding::HEXLOWER.encode(&verified.last);
                // Numbers count from 1 for people, from 0 in the log.
                Answer::LogVerified(LogVerified {
                    verified: verified.next,
                    entries,
                    first: first.saturating_add(1),
                    hash,
                })
            }
            (IssuerCallKind::Backup, Reply::Backup(file)) => {
                Answer::Backup(crate::api::types::Backup { file: BASE64.encode(&file) })
            }
            (kind, reply) => {
                tracing::error!(?kind, "the issuer answered something else");
                drop(reply);
                return self.answer(
                    id,
                    Err(error(
                        ErrorCode::Internal,
                        "the issuer answered something else",
                        "run the same version of weir for both",
                    )),
                );
            }
        };
        self.answer(id, Ok(answer));
    }

    /// Our issuer has a new list and perhaps a new seed: everybody hears of it at once.
    fn spread(
        &mut self,
        list: crate::pki::revocation::SignedRevocationList,
        admission: crate::pki::admission::SignedAdmission,
        links: &mut dyn Links,
        now: Now,
    ) {
        self.heard_lists(None, vec![list], links, now);
        self.heard_admission(None, admission, links, now);
    }

    pub(super) fn answer_issuer_lost(&mut self, id: CallId) {
        let message = "the issuer ended before it answered; whether it did what was asked, its log says";
        self.answer(id, Err(error(ErrorCode::Internal, message, "look at `weir log`, then ask again")));
    }

    pub(super) fn answer_renewal_failed(&mut self, id: CallId, why: &str) {
        let remedy = "it is tried again by itself; `weir peers` shows whether an issuer is reached";
        self.answer(id, Err(error(ErrorCode::NoAnswer, format!("the certificate was not renewed: {why}"), remedy)));
    }

    /// Measures a peer by echoes that its packet plane answers.
    fn ping(&mut self, id: CallId, request: &PingRequest, links: &mut dyn Links, now: Now) {
        let node = match self.find(&request.peer) {
            Ok(node) => node,
            Err(wrong) => return self.answer(id, Err(wrong)),
        };
        if Some(node) == self.id() {
            let remedy = "ping another member";
            return self.answer(id, Err(error(ErrorCode::BadRequest, "that is this node itself", remedy)));
        }
        if self.waiting.pings.len() >= WAITING_MAX {
            return self.answer(id, Err(error(ErrorCode::Busy, "too many pings are under way", "try again")));
        }
        let count = request.count.unwrap_or(PINGS_DEFAULT).clamp(1, PINGS_MAX);
        self.waiting.pings.insert(id, Pinging { node, sent: 0, count, rtts: vec![] });
        match self.peers.get(&node).and_then(|peer| peer.session.as_ref()).is_some_and(|session| session.is_active) {
            true => self.ping_again(id, now),
            false => {
                self.begin_exchange(node, links, now);
                self.timers.set(Timer::Ping(id), now.mono + PING_PATIENCE);
            }
        }
    }

    /// Makes fresh keys with a peer.
    fn rekey(&mut self, id: CallId, peer: &str, links: &mut dyn Links, now: Now) {
        let node = match self.find(peer) {
            Ok(node) => node,
            Err(wrong) => return self.answer(id, Err(wrong)),
        };
        if self.plane.is_none() || !self.peers.contains_key(&node) || self.waiting.rekeys.len() >= WAITING_MAX {
            let message =
                format!("no keys can be made with {}: the packet plane or the peer is missing", self.name_of(node));
            return self
                .answer(id, Err(error(ErrorCode::Conflict, message, "`weir status` and `weir peers` say more")));
        }
        self.waiting.rekeys.push((id, node));
        self.begin_exchange(node, links, now);
        // Whoever waits is answered by the end of an exchange, so there has to be one.
        let Some(peer) = self.peers.get(&node).filter(|peer| peer.exchange.is_none()) else { return };
        let trouble = peer.trouble.clone().unwrap_or_else(|| "too many exchanges are under way".to_owned());
        self.rekeyed(node, Err(&trouble));
    }

    /// A key exchange with this member has ended, one way or the other.
    pub(super) fn rekeyed(&mut self, node: NodeId, outcome: Result<(), &str>) {
        let (ours, others) = std::mem::take(&mut self.waiting.rekeys).into_iter().partition(|(_, with)| *with == node);
        self.waiting.rekeys = others;
        let ours: Vec<(CallId, NodeId)> = ours;
        for (id, _) in ours {
            let name = self.name_of(node);
            let answer = match outcome {
                Ok(()) => Ok(Answer::Done(Done { message: format!("{name} and this node have fresh keys") })),
                Err(why) => {
                    let remedy = "it is tried again by itself; the keys before stay in use";
                    Err(error(ErrorCode::NoAnswer, format!("no fresh keys with {name}: {why}"), remedy))
                }
            };
            self.answer(id, answer);
        }
    }

    fn ping_again(&mut self, id: CallId, now: Now) {
        let Some(own) = self.id() else { return };
        let Some(pinging) = self.waiting.pings.get_mut(&id) else { return };
        if pinging.sent >= pinging.count {
            return self.ping_ended(id);
        }
        pinging.sent += 1;
        let session = SessionId(session_id(own, pinging.node));
        self.timers.set(Timer::Ping(id), now.mono + PING_PATIENCE);
        self.ask_plane(Purpose::Order("Echo"), PlaneRequest::Echo(session));
    }

    /// An echo is back.
    pub(super) fn echoed(&mut self, node: NodeId, rtt: Duration, now: Now) {
        let ours: Vec<CallId> = self.waiting.pings.iter().filter(|(_, p)| p.node == node).map(|(id, _)| *id).collect();
        for id in ours {
            if let Some(pinging) = self.waiting.pings.get_mut(&id)
                && pinging.sent > 0
            {
                pinging.rtts.push(rtt);
                self.ping_again(id, now);
            }
        }
    }

    /// A session stands: pings that waited for it begin.
    pub(super) fn ping_ready(&mut self, node: NodeId, now: Now) {
        let ours: Vec<CallId> =
            self.waiting.pings.iter().filter(|(_, p)| p.node == node && p.sent == 0).map(|(id, _)| *id).collect();
        for id in ours {
            self.ping_again(id, now);
        }
    }

    /// An echo did not come back in time.
    pub(super) fn ping_timed_out(&mut self, id: CallId, now: Now) {
        match self.waiting.pings.get(&id) {
            Some(pinging) if pinging.sent == 0 => self.ping_ended(id),
            Some(_) => self.ping_again(id, now),
            None => {}
        }
    }

    fn ping_ended(&mut self, id: CallId) {
        self.timers.cancel(Timer::Ping(id));
        let Some(Pinging { node, sent, rtts, .. }) = self.waiting.pings.remove(&id) else { return };
        let name = self.name_of(node);
        let answer = if sent == 0 {
            let trouble = self.peers.get(&node).and_then(|peer| peer.trouble.clone());
            let why = trouble.unwrap_or_else(|| "no session came about in time".to_owned());
            Err(error(
                ErrorCode::NoAnswer,
                format!("{name} cannot be reached: {why}"),
                "`weir peers` shows how it stands",
            ))
        } else {
            let rtts_ms = rtts.iter().map(|rtt| rtt.as_secs_f64() * 1e3).collect();
            Ok(Answer::Ping(Ping { name, node: node.to_string(), path: "direct".to_owned(), sent, rtts_ms }))
        };
        self.answer(id, answer);
    }

    /// This node is a member no more: pings end with what they have, rekeys with nothing.
    pub(super) fn end_waiting(&mut self) {
        let pings: Vec<CallId> = self.waiting.pings.keys().copied().collect();
        pings.into_iter().for_each(|id| self.ping_ended(id));
        for (id, _) in std::mem::take(&mut self.waiting.rekeys) {
            self.answer(id, Err(not_a_member()));
        }
    }

    pub(super) fn name_of(&self, node: NodeId) -> String {
        let by_record = self.directory.entry(node).map(|entry| entry.statement.name.clone());
        let by_certificate = || self.peers.get(&node)?.member.as_ref().map(|member| member.name.clone());
        by_record.or_else(by_certificate).unwrap_or_else(|| node.short())
    }

    fn members(&self, now: Now) -> Vec<Member> {
        let Some(network) = &self.network else { return vec![] };
        let grace = Duration::from_secs(network.bundle.parameters.grace_secs.into());
        self.directory
            .entries()
            .map(|entry| {
                let node = entry.record.node;
                let seen = self.peers.get(&node).and_then(|peer| peer.member.as_ref());
                let not_after =
                    seen.map_or(entry.statement.not_after, |seen| seen.not_after.max(entry.statement.not_after));
                let state = match () {
                    () if self.revocations.is_node_revoked(node) => MemberState::Revoked,
                    () if now.wall <= not_after => MemberState::Valid,
                    () if now.wall <= not_after.plus(grace) => MemberState::Grace,
                    () => MemberState::Expired,
                };
                Member {
                    name: entry.statement.name.clone(),
                    node: node.to_string(),
                    state,
                    address: overlay_address(network.id, node).to_string(),
                    endpoints: entry.record.endpoints.iter().map(ToString::to_string).collect(),
                    prefixes: entry.statement.prefixes.iter().map(Prefix::to_string).collect(),
                    groups: entry.statement.groups.clone(),
                    roles: seen.map(|seen| seen.roles.clone()).unwrap_or_default(),
                    not_after: Moment(not_after),
                }
            })
            .collect()
    }

    fn peers_call(&mut self, id: CallId) {
        if self.plane.is_none() {
            let peers = self.peer_rows();
            return self.answer(id, Ok(Answer::Peers(peers)));
        }
        if self.waiting.dump.len() >= WAITING_MAX {
            return self
                .answer(id, Err(error(ErrorCode::Busy, "too many calls wait for the packet plane", "try again")));
        }
        self.waiting.dump.push(id);
        if self.waiting.dump.len() == 1 {
            self.ask_plane(Purpose::Dump, PlaneRequest::Dump);
        }
    }

    /// The packet plane's dump is whole, or will not come: whoever waits for it is answered.
    pub(super) fn answer_waiting(&mut self, now: Now) {
        let dumps = self.plane.iter().flat_map(|plane| plane.sessions.values());
        // Of sessions that are no more nothing is kept.
        let (before, rates) = (std::mem::take(&mut self.waiting.before), std::mem::take(&mut self.waiting.rates));
        for dump in dumps {
            let (session, tx, rx) = (dump.session, dump.tx_bytes, dump.rx_bytes);
            self.waiting.before.insert(session, (now.mono, tx, rx));
            let fresh = before.get(&session).and_then(|(at, tx_before, rx_before)| {
                let secs = now.mono.saturating_duration_since(*at).as_secs_f64();
                let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / secs;
                (secs > 0.0).then(|| (rate(tx, *tx_before), rate(rx, *rx_before)))
            });
            let rate = fresh.or_else(|| rates.get(&session).copied());
            self.waiting.rates.extend(rate.map(|rate| (session, rate)));
        }
        let peers = self.peer_rows();
        for id in std::mem::take(&mut self.waiting.dump) {
            self.answer(id, Ok(Answer::Peers(peers.clone())));
        }
    }

    fn peer_rows(&self) -> Vec<Peer> {
        let Some(own) = self.id() else { return vec![] };
        let dumped = |node: NodeId| -> Option<&SessionDump> {
            self.plane.as_ref()?.sessions.get(&SessionId(session_id(own, node)))
        };
        self.peers
            .iter()
            .map(|(node, peer)| {
                let session = peer.session.as_ref();
                let dump = dumped(*node).filter(|_| session.is_some());
                let state = match (session.is_some_and(|session| session.is_active), peer.link.is_some()) {
                    (true, true) => PeerState::Connected,
                    (true, false) => PeerState::ControlRestarting,
                    (false, _) if peer.exchange.is_some() || peer.dialling.is_some() => PeerState::Connecting,
                    (false, true) => PeerState::Idle,
                    (false, false) => PeerState::Unreachable,
                };
                let rates = self.waiting.rates.get(&SessionId(session_id(own, *node))).copied().unwrap_or((0.0, 0.0));
                let endpoint = session.map(|session| session.endpoint);
                Peer {
                    name: self.name_of(*node),
                    node: node.to_string(),
                    state,
                    endpoint: endpoint.map(|endpoint| endpoint.to_string()),
                    port: endpoint.and_then(|_| self.plane.as_ref().map(|plane| plane.welcome.port)),
                    lanes_by_port: dump.map(|dump| dump.lanes_by_port.into()),
                    path: "direct".to_owned(),
                    rtt_ms: session.and_then(|session| session.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
                    loss: session.and_then(|session| session.echoes.loss()),
                    tx_bytes_per_s: rates.0,
                    rx_bytes_per_s: rates.1,
                    key_age_s: dump.map(|dump| dump.age_ns / 1_000_000_000),
                    key_generation: dump.map(|dump| dump.generation.into()),
                    group: session.and_then(|session| group_name(session.group)),
                    algorithm: dump.map(|dump| dump.algorithm.clone()),
                }
            })
            .collect()
    }
}

/// As TLS names groups.
fn group_name(group: u16) -> Option<String> {
    match group {
        0 => None,
        crate::quic::GROUP_X25519MLKEM768 => Some("X25519MLKEM768".to_owned()),
        crate::quic::GROUP_X25519KYBER768 => Some("X25519Kyber768Draft00".to_owned()),
        other => Some(format!("0x{other:04x}")),
    }
}

fn audit_entry(signed: &crate::pki::signed::Signed<crate::audit::Entry>) -> Option<AuditEntry> {
    let entry = signed.peek().ok()?;
    let hash = data_encoding::HEXLOWER.encode(&crate::audit::hash(signed));
    Some(AuditEntry {
        number: entry.sequence.saturating_add(1),
        at: Moment(entry.at),
        actor: entry.by,
        act: entry.what.name().to_owned(),
        subject: entry.what.subject(),
        detail: entry.what.to_string(),
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{self, Act, Position};
    use crate::pki::key::PrivateKey;
    use crate::store::{Batch, MemoryStore, Store as _};
    use crate::time::UnixSecs;

    /// People who followed the chain by what they were shown found that it did not hold: another hash was shown.
    #[test]
    fn the_hash_that_is_shown_is_the_one_that_the_next_entry_names() {
        let (mut store, mut batch) = (MemoryStore::default(), Batch::default());
        let key = PrivateKey::from_seed(&[1; 32]);
        let append = |end: Position, batch: &mut Batch| {
            end.append(batch, &key, UnixSecs(1), "uid 0", Act::Admission { version: 1 })
        };
        let end = append(append(Position::default(), &mut batch), &mut batch);
        store.commit(batch).unwrap();
        let entries = audit::read(&store, 0, 9).unwrap();
        let shown: Vec<String> = entries.iter().filter_map(audit_entry).map(|entry| entry.hash).collect();
        let named = [entries[1].peek().unwrap().previous, end.last];
        assert_eq!(shown, named.map(|hash| data_encoding::HEXLOWER.encode(&hash)));
    }
}
