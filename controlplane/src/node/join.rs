//! Joining: from a token to a membership.
//!
//! ```text
//!  token ─▶ dial the issuer's node by its id ─▶ it says which network it is of ─▶ bundles walked from the network id, its chain judged
//!        ─▶ request, bound to this connection ─▶ grant ─▶ on disk ─▶ a member
//! ```
//!
//! Until the chain is judged nothing is said that a stranger could use. The identity key is on disk before anybody hears of it: an issuer
//! that signed and whose answer was lost gives the same key the same grant.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;

use super::link::{Code, Connected, Links};
use super::message::{IssuerCall, MemberRequest, Message, Network as NetworkMessage};
use super::{CallId, Network, Node, Timer};
use crate::api::call::Answer;
use crate::api::types::{Error, ErrorCode, JoinRequest as ApiRequest};
use crate::issuer::{Grant, JoinBody, JoinRequest, Refused, Reply};
use crate::membership::{self, Membership};
use crate::pki::bundle::{Bundle, Chain};
use crate::pki::id::{NetworkId, NodeId};
use crate::pki::key::PrivateKey;
use crate::pki::revocation::RevocationSet;
use crate::pki::token::Token;
use crate::pki::verifier::{Member, VerifyError, verify};
use crate::quic::{AdmissionKey, Alpn, DialTarget, LinkId, Proof};
use crate::random::Random;
use crate::store::Batch;
use crate::time::{Now, UnixSecs};

/// How long one address may take to answer, and the issuer behind it.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long all of them may take: whoever asks by the local API is answered within a minute.
const PATIENCE_ALL: Duration = Duration::from_secs(50);
/// Most addresses of members to join by that are not the token's.
const VIA_MAX: usize = 8;
/// Label of the exporter that requests to an issuer are bound to.
pub(super) const EXPORT_LABEL: &[u8] = b"EXPORTER-weir-issuer-1";

/// A join that is under way.
pub(super) struct Joining {
    call: CallId,
    token: Token,
    name: Option<String>,
    identity: PrivateKey,
    leaf: PrivateKey,
    link: Option<LinkId>,
    /// Where it is tried, in this order, and whether it is the token that says so: at other addresses any member will do.
    doors: Vec<(SocketAddr, bool)>,
    /// How many of them were tried.
    tried: usize,
    /// When there is no more time for any.
    until: Instant,
    /// Who let us in at the last one, once its chain was judged.
    by: Option<NodeId>,
    /// The certificates that the server showed.
    shown: Vec<Vec<u8>>,
    /// The network, once the server's chain was judged by it.
    chain: Option<Chain>,
}

fn failed(code: ErrorCode, message: String, remedy: &str) -> Error {
    Error { code, message, remedy: remedy.to_owned() }
}

/// Judges a chain of the token's network, and says when it is good. A box that was never set has no better clock than the certificates that
/// it is shown: what is good but for its beginning is good at its beginning, and it is that late at least.
fn verify_in_time(
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    network: NetworkId,
    now: UnixSecs,
) -> Result<(Member, UnixSecs), VerifyError> {
    let revoked = RevocationSet::default();
    match verify(chain, bundle, network, &revoked, now) {
        Err(VerifyError::NotYetValid(at)) => verify(chain, bundle, network, &revoked, at).map(|member| (member, at)),
        judged => judged.map(|member| (member, now)),
    }
}

impl<R: Random> Node<R> {
    /// Begins to join.
    pub(super) fn join(&mut self, call: CallId, request: ApiRequest, links: &mut dyn Links, now: Now) {
        let ApiRequest { token, name, via } = request;
        if let Some(membership) = &self.membership {
            let message = format!("this node is {} of network {} already", membership.node, membership.network);
            let error =
                failed(ErrorCode::Conflict, message, "leave first with `weir leave`, or use another --instance");
            return self.answer(call, Err(error));
        }
        if self.joining.is_some() {
            let message = "a join is under way already".to_owned();
            return self.answer(call, Err(failed(ErrorCode::Conflict, message, "wait for it to end")));
        }
        if via.len() > VIA_MAX {
            let message = format!("{} addresses to join by; {VIA_MAX} are the most", via.len());
            return self.answer(call, Err(failed(ErrorCode::BadRequest, message, "name a few of them")));
        }
        let via: Vec<SocketAddr> = match via.iter().map(|text| text.parse()).collect() {
            Ok(via) => via,
            Err(error) => {
                let message = format!("{}: {error}", via.join(", "));
                let remedy = "an address has a port, as 198.51.100.7:4646 or [2001:db8::7]:4646";
                return self.answer(call, Err(failed(ErrorCode::BadRequest, message, remedy)));
            }
        };
        let token = match token.0.parse::<Token>().and_then(|token| token.check(now.wall).map(|()| token)) {
            Ok(token) => token,
            Err(error) => {
                let remedy = "copy the token again, or ask for a new one";
                return self.answer(call, Err(failed(ErrorCode::BadRequest, error.to_string(), remedy)));
            }
        };
        let identity = self.identity.clone();
        let leaf = PrivateKey::generate(&mut self.random);
        let (link, tried, by, shown, chain) = (None, 0, None, vec![], None);
        let until = now.mono + PATIENCE_ALL;
        let told = token.endpoints.iter().map(|address| (*address, true));
        let doors = via.into_iter().map(|address| (address, false)).chain(told).collect();
        self.joining = Some(Joining { call, token, name, identity, leaf, link, doors, tried, until, by, shown, chain });
        self.join_next("no address in the token", links, now);
    }

    /// Tries the next address; when there is none, says why the last one failed.
    fn join_next(&mut self, why: &str, links: &mut dyn Links, now: Now) {
        let Some(joining) = &mut self.joining else { return };
        let next = joining.doors.get(joining.tried).filter(|_| now.mono < joining.until);
        let Some((remote, is_told)) = next.copied() else {
            let message = format!("the network does not answer: {why}");
            let remedy = "check that its gateway runs and that UDP to it passes, then try the same token again";
            return self.join_ended(Err(failed(ErrorCode::NoAnswer, message, remedy)), links);
        };
        joining.tried += 1;
        (joining.chain, joining.by) = (None, None);
        let target = match is_told {
            true => DialTarget {
                node: Some(joining.token.issuer),
                proof: Proof::IdOnly,
                admission: joining.token.admission.as_ref().map(|day| AdmissionKey::new(&day.key)),
                legacy_kyber: false,
            },
            // Whose tag it would have to be is not known either.
            false => DialTarget { proof: Proof::Later, ..DialTarget::any_member() },
        };
        match links.dial(Alpn::Join, target, remote) {
            Ok(link) => {
                joining.link = Some(link);
                self.links.insert(link, super::link::Link::new(Alpn::Join, crate::quic::Side::Dialled, None));
                let each = PATIENCE.min(PATIENCE_ALL / joining.doors.len() as u32);
                self.timers.set(Timer::Join, joining.until.min(now.mono + each));
            }
            Err(error) => self.join_next(&format!("{remote}: {error}"), links, now),
        }
    }

    pub(super) fn join_timed_out(&mut self, links: &mut dyn Links, now: Now) {
        let Some(link) = self.joining.as_mut().and_then(|joining| joining.link.take()) else { return };
        self.drop_link(link, Code::Failed, "no answer in time", links);
        self.join_next("no answer in time", links, now);
    }

    pub(super) fn join_connected(&mut self, connected: Connected) {
        if let Some(joining) = &mut self.joining
            && joining.link == Some(connected.link)
        {
            joining.shown = connected.chain;
        }
    }

    pub(super) fn joining_waits_for_network(&self, link: LinkId) -> bool {
        self.joining.as_ref().is_some_and(|joining| joining.link == Some(link) && joining.chain.is_none())
    }

    /// The server says which network it is of. If that is the token's and the server a member of it, we ask.
    pub(super) fn join_network(&mut self, link: LinkId, message: NetworkMessage, links: &mut dyn Links, now: Now) {
        let Some(joining) = &mut self.joining else { return };
        let network = joining.token.network;
        let judged = Chain::walk(network, &message.bundles).map_err(|error| error.to_string()).and_then(|chain| {
            let shown: Vec<_> = joining.shown.iter().map(|der| der.as_slice().into()).collect();
            let member = verify_in_time(&shown, chain.current(), network, now.wall);
            member.map(|(member, at)| (chain, member.node, at)).map_err(|error| error.to_string())
        });
        let chain = match judged {
            Ok((chain, by, at)) => {
                self.clock.at_least(at);
                joining.by = Some(by);
                chain
            }
            Err(why) => {
                self.counters.count("join_server_refused");
                self.drop_link(link, Code::NotMember, "not the network of the token", links);
                return self.join_next(&format!("what answered is not the token's network: {why}"), links, now);
            }
        };
        let exporter = match links.export(link, EXPORT_LABEL, b"") {
            Ok(exporter) => *exporter,
            Err(error) => {
                self.drop_link(link, Code::Failed, "it has no secret", links);
                return self.join_next(&error.to_string(), links, now);
            }
        };
        let body = JoinBody {
            network,
            invite: joining.token.invite,
            identity: joining.identity.public(),
            leaf_public: joining.leaf.public(),
            wanted_name: joining.name.clone(),
            dns_key: Some(membership::dns_key(&joining.identity).public()),
            bundle_version: chain.current().version,
        };
        let request = JoinRequest::new(&body, &joining.identity, &joining.leaf, &joining.token.secret, &exporter);
        joining.chain = Some(chain);
        let call =
            IssuerCall { ticket: 0, hops: super::renew::HOPS_MAX, exporter, request: MemberRequest::Join(request) };
        self.timers.set(Timer::Join, joining.until.min(now.mono + PATIENCE));
        self.say(link, &Message::Issuer(call), links);
    }

    /// The issuer's answer.
    pub(super) fn join_said(&mut self, link: LinkId, message: Message, links: &mut dyn Links, now: Now) {
        let Message::IssuerSaid { ticket, reply } = message else { return self.misspoke(link, links, now) };
        if self.joining.as_ref().is_none_or(|joining| joining.link != Some(link)) {
            return self.issuer_said(link, ticket, *reply, links, now);
        }
        match *reply {
            Ok(Reply::Granted(grant)) => self.join_granted(*grant, links, now),
            Ok(_) => self.misspoke(link, links, now),
            Err(refused) => {
                let code = match refused {
                    Refused::NameTaken(_) | Refused::Spent | Refused::AlreadyMember(_) => ErrorCode::Conflict,
                    Refused::UnknownInvite(_) | Refused::InviteExpired(_) | Refused::Withdrawn => ErrorCode::NotFound,
                    Refused::Store(_)
                    | Refused::Recovering
                    | Refused::NotIssuer
                    | Refused::NoCertificate
                    | Refused::Absent => ErrorCode::Busy,
                    _ => ErrorCode::BadRequest,
                };
                let message = format!("the issuer refuses: {refused}");
                let remedy = "ask whoever sent the token; `weir log` at the issuer says more";
                self.join_ended(Err(failed(code, message, remedy)), links);
            }
        }
    }

    fn join_granted(&mut self, grant: Grant, links: &mut dyn Links, now: Now) {
        let Some(joining) = &mut self.joining else { return };
        let Some(mut chain) = joining.chain.take() else { return };
        let id = joining.token.network;
        for newer in &grant.bundles {
            if let Err(error) = chain.extend(newer.clone()) {
                tracing::warn!(%error, "a trust bundle that came with the grant is left out");
            }
        }
        let bundle = chain.current().clone();
        let shown: Vec<_> = grant.chain.iter().map(|der| der.as_slice().into()).collect();
        let own = verify_in_time(&shown, &bundle, id, now.wall);
        let is_ours = own.as_ref().is_ok_and(|(member, _)| member.identity == joining.identity.public());
        let now = match &own {
            Ok((_, at)) if self.clock.at_least(*at) => Now { wall: *at, ..now },
            Ok(_) | Err(_) => now,
        };
        if !is_ours {
            let why = own.err().map_or_else(|| "it is for another key".to_owned(), |error| error.to_string());
            let message = format!("the certificate that came is not good: {why}");
            let error =
                failed(ErrorCode::Internal, message, "try the same token again; if that fails, ask for a new one");
            return self.join_ended(Err(error), links);
        }
        let (issuer, endpoints) = (joining.token.issuer, joining.token.endpoints.clone());
        let door = joining.doors.get(joining.tried.saturating_sub(1)).map(|(address, _)| *address);
        let by = joining.by.filter(|by| *by != issuer).zip(door);
        let membership = Membership::of_grant(id, &grant, joining.identity.clone(), joining.leaf.clone());
        let mut batch = Batch::default();
        membership.put(&mut batch);
        membership::put_bundles(&mut batch, 1, chain.versions());
        self.store(batch);
        self.membership = Some(membership);
        self.network = Some(Network::new(chain));
        // Whoever vouched for us knows the others.
        self.heard_lists(None, grant.revocations, links, now);
        self.heard_admission(None, grant.admission, links, now);
        self.enter(links, now);
        self.teach_issuer();
        self.remember_issuer(issuer);
        self.introduce(issuer, endpoints, now);
        if let Some((by, address)) = by {
            self.introduce(by, vec![address], now);
        }
        let joined = self.joined_answer();
        self.join_ended(joined.map(|joined| Answer::Joined(Box::new(joined))), links);
    }

    /// A member that we know by its address only: enough to dial it, and the rest it says itself.
    fn introduce(&mut self, node: NodeId, endpoints: Vec<SocketAddr>, now: Now) {
        self.peer(node).told_endpoints = endpoints;
        self.timers.set(Timer::Connect(node), now.mono);
    }

    fn join_ended(&mut self, result: Result<Answer, Error>, links: &mut dyn Links) {
        self.timers.cancel(Timer::Join);
        let Some(joining) = self.joining.take() else { return };
        if let Some(link) = joining.link {
            self.drop_link(link, Code::Done, "done", links);
        }
        self.answer(joining.call, result);
    }

    pub(super) fn join_closed(&mut self, link: LinkId, why: &str, links: &mut dyn Links, now: Now) {
        if let Some(joining) = &mut self.joining
            && joining.link == Some(link)
        {
            joining.link = None;
            self.join_next(why, links, now);
        }
    }

    /// Says to one that joins which network this is: what the network id stands for, and nothing else.
    pub(super) fn greet_joiner(&mut self, link: LinkId, links: &mut dyn Links) {
        let Some(network) = &self.network else { return };
        let message = NetworkMessage { bundles: network.chain.versions().to_vec() };
        self.say_bytes(link, &crate::codec::encode(&message), links);
    }
}
