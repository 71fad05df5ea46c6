//! How it stands: what `weir status` shows, and the warnings with their remedies.

use std::time::Duration;

use data_encoding::BASE64;
use weir_dataplane::api::Prefix;

use super::calls::error;
use super::message::VERSION;
use super::{CallId, Node};
use crate::api::call::Answer;
use crate::api::types::{
    Certificate, Counter, Error, ErrorCode, Identity, Joined, Moment, Network, Plane, RevocationVersion, Severity,
    Status, Versions, Warning,
};
use crate::pki::certificate::{LeafFields, read_leaf, validity};
use crate::pki::clock::Skew;
use crate::pki::id::overlay_network;
use crate::random::Random;
use crate::time::{Now, UnixSecs};

/// An issuer's certificate should be renewed when less than this is left of it.
const ISSUER_SOON: Duration = Duration::from_secs(45 * 86_400);
/// How long a member that was seen in two places is warned of: while both run, it is seen again every few minutes.
const TWICE_SHOWN: Duration = Duration::from_secs(3600);
/// Most warnings at a time.
const WARNINGS_MAX: usize = 64;

impl<R: Random> Node<R> {
    pub(super) fn leaf_fields(&self) -> Option<LeafFields> {
        let membership = self.membership.as_ref()?;
        read_leaf(membership.chain.first()?).ok()
    }

    fn identity(&self) -> Option<Identity> {
        let (membership, fields) = (self.membership.as_ref()?, self.leaf_fields()?);
        Some(Identity {
            name: fields.name,
            node: membership.node.to_string(),
            addresses: vec![membership.address().to_string()],
            prefixes: fields.prefixes.prefixes().iter().map(Prefix::to_string).collect(),
            groups: fields.groups,
            roles: fields.roles,
        })
    }

    fn network_row(&self) -> Option<Network> {
        let network = self.network.as_ref()?;
        Some(Network {
            name: network.bundle.network_name.clone(),
            network: network.id.to_string(),
            prefix: overlay_network(network.id).to_string(),
            members: self.directory.len() as u64,
            issuers: network.bundle.issuers.len() as u64,
        })
    }

    fn certificate(&self, now: UnixSecs) -> Option<Certificate> {
        let (membership, fields) = (self.membership.as_ref()?, self.leaf_fields()?);
        let not_after = fields.validity.not_after;
        Some(Certificate {
            name: fields.name,
            node: membership.node.to_string(),
            issuer: fields.issuer.to_string(),
            not_before: Moment(fields.validity.not_before),
            not_after: Moment(not_after),
            renew_at: Moment(self.renewal.due.unwrap_or(not_after)),
            in_grace: now > not_after,
            prefixes: fields.prefixes.prefixes().iter().map(Prefix::to_string).collect(),
            groups: fields.groups,
            roles: fields.roles,
            chain: membership.chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
        })
    }

    pub(super) fn answer_certificate(&mut self, id: CallId, now: Now) {
        let answer = self.certificate(now.wall).map(|certificate| Answer::Certificate(Box::new(certificate)));
        let broken =
            || error(ErrorCode::Internal, "our own certificate cannot be read", "join again with a fresh token");
        self.answer(id, answer.ok_or_else(broken));
    }

    pub(super) fn joined_answer(&self) -> Result<Joined, Error> {
        let rows = self.identity().zip(self.network_row());
        let broken =
            || error(ErrorCode::Internal, "our own certificate cannot be read", "join again with a fresh token");
        rows.map(|(identity, network)| Joined { identity, network }).ok_or_else(broken)
    }

    pub(super) fn status(&self, now: Now) -> Status {
        let network = self.network.as_ref();
        let revocations = self
            .revocations
            .lists()
            .iter()
            .filter_map(|list| list.head.peek().ok())
            .map(|head| RevocationVersion {
                signer: head.signer.to_string(),
                version: head.version,
                entries: head.count.into(),
                fresh_until: Moment(head.fresh_until),
            })
            .collect();
        let plane = match &self.plane {
            Some(plane) => Plane {
                running: true,
                incarnation: format!("{:016x}", plane.welcome.incarnation.0),
                port: plane.welcome.port,
                lane_ports: plane.lane_ports(),
                workers: plane.welcome.workers.into(),
                sessions: self.peers.values().filter(|peer| peer.session.is_some()).count() as u64,
                routes: self.routes().len() as u64,
            },
            None => Plane {
                running: false,
                incarnation: String::new(),
                port: 0,
                lane_ports: vec![],
                workers: 0,
                sessions: 0,
                routes: 0,
            },
        };
        let connected = |peer: &&super::Peer| peer.session.as_ref().is_some_and(|session| session.is_active);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Moment(self.started),
            identity: self.identity(),
            network: self.network_row(),
            certificate: self.certificate(now.wall),
            versions: Versions {
                bundle: network.map_or(0, |network| network.bundle.version),
                policy: self.policy_version(),
                revocations,
            },
            plane,
            peers_connected: self.peers.values().filter(connected).count() as u64,
            counters: self.counted(),
            warnings: self.warnings(now),
        }
    }

    /// What happened so often, and what became of the certificates that peers showed.
    fn counted(&self) -> Vec<Counter> {
        let own = self.counters.0.iter().map(|(name, count)| ((*name).to_owned(), *count));
        let chains = self.trust.iter().flat_map(|trust| {
            let checks = trust.checks();
            let accepted = [("accepted", checks.accepted()), ("in_grace", checks.in_grace())];
            accepted.into_iter().chain(checks.refused()).map(|(what, count)| (format!("chain_{what}"), count))
        });
        let outside = self.counted_outside.iter().cloned();
        let happened = own.chain(chains).chain(outside).filter(|(_, count)| *count > 0);
        happened.map(|(name, count)| Counter { name, count }).collect()
    }

    /// What a person should know, the urgent first.
    fn warnings(&self, now: Now) -> Vec<Warning> {
        let mut warnings = vec![];
        let mut warn = |severity, what: String, remedy: &str| {
            warnings.push(Warning { severity, what, remedy: remedy.to_owned() });
        };
        let Some(network) = &self.network else {
            warn(
                Severity::Warning,
                "this node is not a member of a network".to_owned(),
                "make one with `weir init`, or join one with `weir join TOKEN`",
            );
            return warnings;
        };
        if self.plane.is_none() {
            let remedy = "it is started again by itself; if it does not come back, the log of `weir run` says why";
            warn(Severity::Critical, "the packet plane does not run: nothing is forwarded".to_owned(), remedy);
        }
        if let Some(node) = self.id().filter(|node| self.revocations.is_node_revoked(*node)) {
            let remedy = "ask whoever runs the network; then `weir leave` and join with a new token";
            warn(Severity::Critical, format!("this node, {}, is revoked", node.short()), remedy);
        }
        if let Some(fields) = self.leaf_fields() {
            let not_after = fields.validity.not_after;
            let trouble = self.renewal.trouble.as_deref().unwrap_or("no attempt has failed yet");
            let remedy = "see that an issuer is reachable: `weir peers`; `weir cert renew` tries at once";
            if now.wall > not_after {
                warn(Severity::Critical, format!("our certificate ended at {not_after}: {trouble}"), remedy);
            } else if self.renewal.trouble.is_some() {
                warn(
                    Severity::Warning,
                    format!("our certificate ends at {not_after} and was not renewed: {trouble}"),
                    remedy,
                );
            }
        }
        let certificates = || network.bundle.issuers.iter().filter_map(|der| Some((der, validity(der).ok()?)));
        let issuers: std::collections::BTreeSet<_> = certificates()
            .filter(|(_, life)| life.not_after > now.wall)
            .filter_map(|(der, _)| crate::pki::certificate::public_key(der).ok())
            .map(|key| key.id())
            .collect();
        match issuers.len() {
            0 => warn(
                Severity::Critical,
                "no issuer has a valid certificate: nobody can renew".to_owned(),
                "renew one in a ceremony: `weir ca renew-issuer`",
            ),
            1 => warn(
                Severity::Warning,
                "there is one issuer only: when it is lost, nobody can join or renew".to_owned(),
                "add another in a ceremony: `weir ca add-issuer`",
            ),
            _ => {}
        }
        for issuer in &issuers {
            let last = certificates()
                .filter(|(der, _)| crate::pki::certificate::public_key(der).is_ok_and(|key| key.id() == *issuer))
                .map(|(_, life)| life.not_after)
                .max();
            if let Some(last) = last.filter(|last| last.since(now.wall) < ISSUER_SOON) {
                let what = format!("the last certificate of issuer {issuer} ends at {last}");
                warn(Severity::Warning, what, "renew it in a ceremony: `weir ca renew-issuer`");
            }
        }
        if !self.revocations.is_fresh(now.wall) {
            let remedy = "see that an issuer is reachable: `weir peers`; links stay up meanwhile";
            warn(Severity::Warning, "there is no fresh revocation list".to_owned(), remedy);
        }
        if let Some((what, remedy)) = self.settings.unconfined {
            warn(Severity::Warning, what.to_owned(), remedy);
        }
        let (skew, meaning) = self.clock.system_skew();
        if meaning != Skew::Silent {
            let what = format!("the clock of this machine is {} s off the network's", skew.unsigned_abs());
            warn(Severity::Warning, what, "set it, and let NTP keep it");
        }
        let told = || self.peers.iter().filter(|(_, peer)| peer.clock_ahead_secs.is_some());
        let off = || told().filter(|(_, peer)| peer.skew() != Skew::Silent);
        // One of two is wrong, and nobody knows which; of many it is the one that most contradict.
        let is_ours = off().count() >= 2 && off().count() * 2 > told().count();
        if is_ours {
            let what = format!("{} of {} members say another time than this node", off().count(), told().count());
            warn(Severity::Warning, what, "set the clock of this machine, and let NTP keep it");
        }
        for (node, peer) in off().filter(|(_, peer)| !is_ours || peer.skew() == Skew::TimeOnly) {
            let (name, secs) = (self.name_of(*node), peer.clock_ahead_secs.unwrap_or_default());
            let way = if secs > 0 { "ahead of" } else { "behind" };
            let so = if peer.skew() == Skew::TimeOnly {
                ": no keys are agreed on with it until that is settled"
            } else {
                ""
            };
            let what = format!("the clock of {name} is {} s {way} this node's{so}", secs.unsigned_abs());
            warn(Severity::Warning, what, "set whichever of the two is wrong, and let NTP keep it");
        }
        for (node, peer) in &self.peers {
            let name = self.name_of(*node);
            if let Some(theirs) = peer.unspoken {
                let speaks = format!("{name} speaks version {theirs} of the messages between members");
                let older = if theirs < VERSION { name.as_str() } else { "this node" };
                let remedy = format!("upgrade weir on {older}: versions next to each other go together");
                warn(Severity::Warning, format!("{speaks}, this node version {VERSION}: they have no link"), &remedy);
            }
            if peer.seen_twice.is_some_and(|at| now.mono.saturating_duration_since(at) < TWICE_SHOWN) {
                let what = format!("{name} is in two places at once: two gateways run with the same identity");
                let remedy = format!(
                    "stop the copy, which was made of its state directory; where nobody made one, `weir revoke {name} --replace`"
                );
                warn(Severity::Critical, what, &remedy);
            }
            let ended = self.ends(*node).filter(|(not_after, _)| now.wall > *not_after);
            let Some((not_after, end)) = ended else { continue };
            if now.wall > end {
                let what =
                    format!("the certificate of {name} ended at {not_after}, and so has its grace: it is cut off");
                warn(Severity::Warning, what, "see that it reaches an issuer: with a new certificate it is back");
            } else {
                let what = format!("the certificate of {name} ended at {not_after} and is accepted in grace");
                warn(Severity::Warning, what, "see that it reaches an issuer");
            }
        }
        warnings.sort_by_key(|warning| warning.severity == Severity::Warning);
        warnings.truncate(WARNINGS_MAX);
        warnings
    }
}

/// The textual encoding of RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
