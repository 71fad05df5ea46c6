//! The policy: heard, compiled for this node, shown, changed.

use std::net::IpAddr;

use data_encoding::BASE64;
use weir_dataplane::api::message::Request as PlaneRequest;
use weir_dataplane::api::policy::{Protocol, stage};

use super::calls::{IssuerCallKind, error};
use super::link::Links;
use super::message::Message;
use super::plane::Purpose;
use super::{CallId, Node};
use crate::api::call::Answer;
use crate::api::types::{
    Error, ErrorCode, ExplainRequest, Explanation, Moment, Policy, PolicyApplyRequest, PolicyRule, PolicyVersion,
};
use crate::codec;
use crate::issuer::Request;
use crate::pki::id::{KeyId, NodeId, overlay_address};
use crate::pki::key::Signature;
use crate::policy::{self, Action, Decider, Document, MemberView, RuleKind, SignedPolicy};
use crate::quic::LinkId;
use crate::random::Random;
use crate::store::{Batch, Table};
use crate::time::Now;

impl<R: Random> Node<R> {
    /// The version in force; 0 for none.
    pub fn policy_version(&self) -> u64 {
        self.policy.current().map_or(0, |version| version.version)
    }

    /// A policy, from wherever. One that is refused is counted.
    pub(super) fn heard_policy(&mut self, from: Option<LinkId>, signed: SignedPolicy, links: &mut dyn Links, now: Now) {
        match self.take_policy(from, signed, links, now) {
            // What everybody tells everybody is known most of the time.
            Err(policy::PolicyError::Version { version, known }) if version == known => {}
            Ok(()) => {}
            Err(old @ policy::PolicyError::Version { .. }) => self.counters.count(old.name()),
            Err(error) => {
                tracing::warn!(%error, "a policy is refused");
                self.counters.count(error.name());
            }
        }
    }

    /// Takes a policy that is newer than ours, and passes it on.
    fn take_policy(
        &mut self,
        from: Option<LinkId>,
        signed: SignedPolicy,
        links: &mut dyn Links,
        now: Now,
    ) -> Result<(), policy::PolicyError> {
        let Some(network) = &self.network else { return Ok(()) };
        let oldest = self.policy.versions().next().map(|version| version.version);
        let operators = network.bundle.operators(&self.revocations);
        let version = self.policy.apply(signed.clone(), network.id, &operators, now.wall)?.version;
        let mut batch = Batch::default();
        batch.put(Table::Policy, version.to_be_bytes(), codec::encode(&signed));
        if let Some(oldest) = oldest.filter(|oldest| self.policy.versions().all(|kept| kept.version != *oldest)) {
            batch.delete(Table::Policy, oldest.to_be_bytes());
        }
        tracing::info!(version, "policy");
        self.store(batch);
        self.is_policy_dirty = true;
        self.say_to_all(&Message::Policy(signed), from, links);
        Ok(())
    }

    /// What the network was founded with: that holds where there is no policy.
    pub(super) fn default_action(&self) -> Action {
        let allow = self.network.as_ref().is_none_or(|network| network.bundle.default_allow);
        if allow { Action::Allow } else { Action::Deny }
    }

    fn document(&self) -> Document {
        let default = self.default_action();
        self.policy.current().map_or_else(|| Document::empty(default), |version| version.document.clone())
    }

    fn member_views(&self) -> Vec<MemberView> {
        let Some(network) = &self.network else { return vec![] };
        let view = |node: NodeId| {
            let entry = self.directory.entry(node)?;
            Some(MemberView {
                node,
                name: entry.statement.name.clone(),
                groups: entry.statement.groups.clone(),
                prefixes: self.prefixes_of(node),
                addresses: vec![IpAddr::V6(overlay_address(network.id, node))],
            })
        };
        self.directory.entries().filter_map(|entry| view(entry.record.node)).collect()
    }

    /// Compiles the policy for this node and tells the packet plane.
    pub(super) fn send_policy(&mut self) {
        let Some(own) = self.id() else { return };
        let document = self.document();
        let compiled = policy::compile(&document, &self.member_views(), own);
        if self.plane.is_some() {
            self.ask_plane(Purpose::Order("DiscardPolicy"), PlaneRequest::DiscardPolicy);
            for request in stage(&compiled.rules) {
                self.ask_plane(Purpose::Order("StagePolicy"), request);
            }
            let default_allow = document.default == Action::Allow;
            let version = self.policy_version();
            self.ask_plane(Purpose::Order("CommitPolicy"), PlaneRequest::CommitPolicy { default_allow, version });
        }
        self.compiled = Some(compiled);
    }

    /// The policy in force, with the hits that the packet plane counted, if it runs.
    pub(super) fn policy_show(&mut self, id: CallId) {
        if self.plane.is_none() {
            return self.answer_hits(id, 0, &[]);
        }
        self.ask_plane(Purpose::PolicyHits(id), PlaneRequest::PolicyHits);
    }

    /// The packet plane has counted.
    pub(super) fn answer_hits(&mut self, id: CallId, version: u64, hits: &[u64]) {
        let document = self.document();
        let counted = match &self.compiled {
            Some(compiled) if version == self.policy_version() => compiled.hits(&document, hits),
            _ => vec![],
        };
        let of_rule =
            |name: &str| counted.iter().find(|row| row.rule.as_deref() == Some(name)).map_or(0, |row| row.hits);
        let words = |terms: &[policy::Term]| terms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let rules = (1..)
            .zip(&document.rules)
            .map(|(number, rule)| PolicyRule {
                number,
                action: rule.action.to_string(),
                from: words(&rule.from),
                to: words(&rule.to),
                protocol: rule.protocol_text(),
                ports: rule.ports_text(),
                hits: of_rule(&rule.name),
            })
            .collect();
        let current = self.policy.current();
        let policy = Policy {
            version: self.policy_version(),
            signer: current.map(|version| version.operator.id().to_string()),
            signed_at: current.map(|version| Moment(version.issued_at)),
            otherwise: document.default.to_string(),
            rules,
            text: current.map(|version| version.text.clone()).unwrap_or_default(),
        };
        self.answer(id, Ok(Answer::Policy(policy)));
    }

    pub(super) fn policy_history(&mut self, id: CallId) {
        let in_force = self.policy_version();
        let versions = self
            .policy
            .versions()
            .map(|version| PolicyVersion {
                version: version.version,
                signer: version.operator.id().to_string(),
                signed_at: Moment(version.issued_at),
                rules: version.document.rules.len() as u64,
                in_force: version.version == in_force,
            })
            .collect();
        self.answer(id, Ok(Answer::PolicyHistory(versions)));
    }

    pub(super) fn policy_explain(&mut self, id: CallId, request: &ExplainRequest) {
        let answer = self.explain(request);
        self.answer(id, answer.map(Answer::Explanation));
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, Error> {
        let members = self.member_views();
        if let Some(topic) = &request.topic {
            return self.explain_message(request, topic, &members);
        }
        let Some((source, destination)) = policy::ask(&members, &request.src, &request.dst) else {
            let message = format!("{} or {} is neither an address nor a member's name", request.src, request.dst);
            return Err(error(ErrorCode::BadRequest, message, "`weir members` lists names and addresses"));
        };
        let protocol = match request.proto.as_deref() {
            None => Protocol::Any,
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some("icmp") => Protocol::Icmp,
            Some(number) => match number.parse() {
                Ok(number) => Protocol::Number(number),
                Err(_) => {
                    let message = format!("{number} is no protocol");
                    return Err(error(ErrorCode::BadRequest, message, "write tcp, udp, icmp or a number below 256"));
                }
            },
        };
        let document = self.document();
        let explained = policy::explain(&document, &members, source, destination, protocol, request.port);
        Ok(told(RuleKind::Packet, explained))
    }

    fn explain_message(
        &self,
        request: &ExplainRequest,
        topic: &str,
        members: &[MemberView],
    ) -> Result<Explanation, Error> {
        let topic = topic.parse().map_err(|wrong: crate::mail::wire::TopicError| {
            error(ErrorCode::BadRequest, wrong.to_string(), "name a topic as in `report/daily`")
        })?;
        let member = |word: &str| {
            let node = self.find(word)?;
            let unknown = || error(ErrorCode::NotFound, format!("no member {word}"), "`weir members` lists all");
            members.iter().find(|member| member.node == node).ok_or_else(unknown)
        };
        let (from, to) = (member(&request.src)?, member(&request.dst)?);
        Ok(told(RuleKind::Message, policy::explain_message(&self.document(), from, to, &topic)))
    }

    /// Puts a policy in force: one that an operator has signed, or one that the issuer beside us signs.
    pub(super) fn policy_apply(
        &mut self,
        id: CallId,
        request: PolicyApplyRequest,
        by: &str,
        links: &mut dyn Links,
        now: Now,
    ) {
        match (request.text, request.signed) {
            (Some(text), None) => self.sign_policy(id, &text, by, now),
            (None, Some(signed)) => {
                let decoded = BASE64.decode(signed.trim().as_bytes()).ok();
                let Some(signed) = decoded.and_then(|bytes| SignedPolicy::from_bytes(&bytes).ok()) else {
                    let message = "the signed policy does not decode";
                    let remedy = "give the file that the operator signed, in base64, unchanged";
                    return self.answer(id, Err(error(ErrorCode::BadRequest, message, remedy)));
                };
                self.put_in_force(id, signed, links, now);
            }
            _ => {
                let message = "either a text or a signed policy is wanted";
                self.answer(id, Err(error(ErrorCode::BadRequest, message, "give one of the two")));
            }
        }
    }

    pub(super) fn policy_rollback(&mut self, id: CallId, version: u64, by: &str, now: Now) {
        match self.policy.text_of(version).map(str::to_owned) {
            Ok(text) => self.sign_policy(id, &text, by, now),
            Err(unknown) => {
                let remedy = "`weir policy history` lists the versions that this node has";
                self.answer(id, Err(error(ErrorCode::NotFound, unknown.to_string(), remedy)));
            }
        }
    }

    fn sign_policy(&mut self, id: CallId, text: &str, by: &str, now: Now) {
        let Some(network) = &self.network else { return };
        let version = self.policy.next_version();
        match SignedPolicy::body(network.id, version, now.wall, text) {
            Ok(body) => {
                let request = Request::SignPolicy { version, body: body.clone() };
                self.ask_for(id, IssuerCallKind::SignPolicy { version, body }, by, request);
            }
            Err(wrong) => {
                let remedy = "`weir policy check FILE` shows all that is wrong with it";
                self.answer(id, Err(error(ErrorCode::BadRequest, wrong.to_string(), remedy)));
            }
        }
    }

    /// The issuer beside us has signed.
    #[allow(clippy::too_many_arguments, reason = "the parts of one signature")]
    pub(super) fn policy_signed(
        &mut self,
        id: CallId,
        version: u64,
        body: Vec<u8>,
        signer: KeyId,
        signature: Signature,
        links: &mut dyn Links,
        now: Now,
    ) {
        let operators = self.network.as_ref().map(|network| network.bundle.operators(&self.revocations));
        let operator = operators.into_iter().flatten().find(|operator| operator.id() == signer);
        let Some(operator) = operator else {
            let message = format!("{signer} signed version {version}, and is no operator of this network");
            let remedy = "have an operator sign the policy, or name this issuer's key as one in a ceremony";
            return self.answer(id, Err(error(ErrorCode::Conflict, message, remedy)));
        };
        self.put_in_force(id, SignedPolicy::assemble(body, operator, signature), links, now);
    }

    fn put_in_force(&mut self, id: CallId, signed: SignedPolicy, links: &mut dyn Links, now: Now) {
        if self.network.is_none() {
            return self.answer(id, Err(super::calls::not_a_member()));
        }
        match self.take_policy(None, signed, links, now) {
            Ok(()) => self.policy_show(id),
            Err(policy::PolicyError::Version { known, .. }) => {
                let message = format!("version {known} is in force, and the one given is not above it");
                self.answer(id, Err(error(ErrorCode::Conflict, message, "sign it under a higher version")));
            }
            Err(refused) => {
                let remedy = "sign it with a key that the trust bundle names as an operator's, under the next version";
                self.answer(id, Err(error(ErrorCode::Conflict, refused.to_string(), remedy)));
            }
        }
    }
}

/// An explanation as the API tells it.
fn told(kind: RuleKind, explained: policy::Explanation) -> Explanation {
    let considered = explained.considered.iter().map(|row| format!("{kind} {} does not fit: {}", row.rule, row.why));
    Explanation {
        allowed: explained.action == Action::Allow,
        rule: match &explained.decided_by {
            Decider::Rule { number, .. } => Some(*number as u64),
            Decider::Default => None,
        },
        reasons: considered.chain([explained.why.clone()]).collect(),
    }
}
