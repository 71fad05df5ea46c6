//! Finding members and their services for people, and meeting whom only the DHT has.
//!
//! ```text
//!  site-b ─▶ directory ─┬ known ──────────────────────────────────────────────────────▶ answered
//!                       └ unknown ─▶ name, overlay or service: whose ─▶ node: where ──┬▶ answered
//!  _http._tcp.site-b ────────────────▲                                                └▶ candidates: tried as any address that is hearsay
//! ```
//!
//! What a record says of addresses is true only as far as its signer is honest and up to date. So a member that the directory lacks is met the way of
//! all candidates: asked who it is, and its record comes by the link that follows.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};

use super::calls::{error, not_a_member};
use super::candidates::Source;
use super::discovery::switched_off;
use super::link::Links;
use super::{CallId, Node};
use crate::api::call::Answer;
use crate::api::types::{DhtHop, DhtRecord, Error, ErrorCode, Found, FoundService, Moment};
use crate::codec;
use crate::dht::place::{Key, is_public};
use crate::dht::record::{
    Envelope, Kind, NodeValue, RevocationsValue, ServiceValue, SignedRecord, name_key, overlay_key, revocations_key,
    service_key, zone_key,
};
use crate::dht::{LookupId, Outcome};
use crate::pki::id::{NodeId, overlay_address};
use crate::pki::statement::MemberStatement;
use crate::random::Random;
use crate::time::Now;

/// Addresses of one member that are tried. Ours: a few interfaces in two families, and whoever lists more has others dialled for itself.
pub(super) const TRIED_OF_ONE_MAX: usize = 8;

/// What a look-up is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Aim {
    /// Where a member is, or one of its services.
    Member(Option<FoundService>),
    /// A record as it lies there.
    Record(Kind),
}

/// Who waits for a look-up, and what it is a step of.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) call: CallId,
    pub(super) what: String,
    pub(super) since: Instant,
    /// What earlier look-ups asked.
    pub(super) trace: Vec<DhtHop>,
    took_ms: u64,
    aim: Aim,
    /// Whether the directory is passed over.
    is_dht_only: bool,
}

impl Wanted {
    fn new(call: CallId, what: &str, aim: Aim, is_dht_only: bool, now: Now) -> Self {
        Self { call, what: what.to_owned(), since: now.mono, trace: vec![], took_ms: 0, aim, is_dht_only }
    }
}

/// What is no service of a member.
fn no_service(what: &str) -> Error {
    let remedy = "write _http._tcp.site-b: service, protocol (_tcp or _udp) and member";
    error(ErrorCode::BadRequest, format!("{what} is no service of a member"), remedy)
}

/// A service as it is written, apart: its label, and whose it is. `None` for what is no service at all.
fn service_of(what: &str) -> Option<Result<(String, &str), Error>> {
    if !what.starts_with('_') {
        return None;
    }
    let lower = what.to_ascii_lowercase();
    let parted = ["._tcp.", "._udp."].iter().find_map(|protocol| {
        let end = lower.find(protocol)? + protocol.len();
        let label = lower[..end - 1].to_owned();
        let value = ServiceValue { label, port: 1, texts: vec![] };
        // Lower case has the same length: letters of ASCII only were changed.
        (value.check().is_ok() && end < what.len()).then(|| (value.label, &what[end..]))
    });
    Some(parted.ok_or_else(|| no_service(what)))
}

fn hops(outcome: &Outcome) -> impl Iterator<Item = DhtHop> {
    outcome.trace.iter().map(|hop| DhtHop {
        node: hop.contact.node.to_string(),
        address: hop.contact.address.to_string(),
        path: u32::from(hop.path) + 1,
        step: hop.step.into(),
        depth: hop.depth.into(),
        shared_bits: hop.shared_bits.into(),
        answered: hop.has_answered,
    })
}

fn texts(endpoints: &[SocketAddr]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

impl From<ServiceValue> for FoundService {
    fn from(value: ServiceValue) -> Self {
        let texts = value.texts.iter().map(|text| String::from_utf8_lossy(text).into_owned());
        Self { label: value.label, port: value.port, texts: texts.collect() }
    }
}

/// What a value says, line by line, where that is known.
fn said(envelope: &Envelope) -> Vec<String> {
    match envelope.kind {
        Kind::Node => NodeValue::decode(&envelope.value).map_or(vec![], |value| {
            let endpoints = value.endpoints.iter().map(|endpoint| format!("endpoint {endpoint}"));
            let anchors = value.anchors.iter().map(|anchor| format!("anchor {} at {}", anchor.node, anchor.address));
            endpoints.chain(anchors).collect()
        }),
        Kind::Service => ServiceValue::decode(&envelope.value).map_or(vec![], |value| {
            let head = match value.port {
                0 => format!("{} is not offered any more", value.label),
                port => format!("{} at port {port}", value.label),
            };
            let texts = value.texts.iter().map(|text| format!("text {}", String::from_utf8_lossy(text)));
            std::iter::once(head).chain(texts).collect()
        }),
        Kind::Revocations => RevocationsValue::decode(&envelope.value).map_or(vec![], |value| {
            let hash = HEXLOWER.encode(&value.hash);
            vec![format!(
                "lists of all signers: versions sum up to {}, {} bytes, digest {hash}",
                value.version, value.size
            )]
        }),
        Kind::Name | Kind::Zone | Kind::Overlay => vec![],
    }
}

impl<R: Random> Node<R> {
    /// Finds a member by name, id, or overlay address, or a service of it: by the directory, or else by the DHT.
    pub(super) fn find_call(&mut self, id: CallId, what: &str, is_dht_only: bool, links: &mut dyn Links, now: Now) {
        let Some(network) = self.network.as_ref().map(|network| network.id) else {
            return self.answer(id, Err(not_a_member()));
        };
        let wanted = Wanted::new(id, what, Aim::Member(None), is_dht_only, now);
        let (kind, key) = match service_of(what) {
            Some(Ok((label, name))) => (Kind::Service, service_key(network, &label, name)),
            Some(Err(wrong)) => return self.answer(id, Err(wrong)),
            None => {
                if !is_dht_only
                    && let Ok(node) = self.find(what)
                    && let Some(found) = self.known(node)
                {
                    return self.answer(id, Ok(Answer::Found(Box::new(found))));
                }
                match (what.parse::<NodeId>(), what.parse::<Ipv6Addr>()) {
                    (Ok(node), _) => (Kind::Node, node.into()),
                    (Err(_), Ok(address)) => (Kind::Overlay, overlay_key(network, address)),
                    (Err(_), Err(_)) => (Kind::Name, name_key(network, what)),
                }
            }
        };
        self.look_for(wanted, kind, key, links, now);
    }

    /// Shows a record as it lies in the DHT.
    pub(super) fn record_call(&mut self, id: CallId, kind: &str, what: &str, links: &mut dyn Links, now: Now) {
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            let all = Kind::ALL.map(Kind::name).join(", ");
            let remedy = format!("write one of {all}");
            return self.answer(id, Err(error(ErrorCode::BadRequest, format!("{kind} is no kind of record"), remedy)));
        };
        match self.key_of(kind, what) {
            Ok(key) => {
                let wanted = Wanted::new(id, what, Aim::Record(kind), true, now);
                self.look_for(wanted, kind, key, links, now);
            }
            Err(wrong) => self.answer(id, Err(wrong)),
        }
    }

    /// Where a record of this kind lies: of the member, address or service that is named, or the place itself in 64 hex digits.
    fn key_of(&self, kind: Kind, what: &str) -> Result<Key, Error> {
        let network = self.network.as_ref().map(|network| network.id).ok_or_else(not_a_member)?;
        let place = HEXLOWER_PERMISSIVE.decode(what.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        if let Some(place) = place {
            return Ok(Key(place));
        }
        // Whose id is written out need not be known here.
        let member = || what.parse::<NodeId>().or_else(|_| self.find(what));
        Ok(match kind {
            Kind::Node => member()?.into(),
            Kind::Revocations => revocations_key(network, member()?),
            Kind::Overlay => match what.parse::<Ipv6Addr>() {
                Ok(address) => overlay_key(network, address),
                Err(_) => overlay_key(network, overlay_address(network, member()?)),
            },
            Kind::Name | Kind::Zone => {
                let known = self.find(what).ok().and_then(|node| self.directory.entry(node));
                let name = known.map_or(what, |entry| entry.statement.name.as_str());
                if kind == Kind::Name { name_key(network, name) } else { zone_key(network, name) }
            }
            Kind::Service => {
                let (label, name) = service_of(what).unwrap_or_else(|| Err(no_service(what)))?;
                service_key(network, &label, name)
            }
        })
    }

    /// What the directory has of a member.
    fn known(&self, node: NodeId) -> Option<Found> {
        let (entry, network) = (self.directory.entry(node)?, self.network.as_ref()?.id);
        Some(Found {
            node: node.to_string(),
            name: entry.statement.name.clone(),
            address: overlay_address(network, node).to_string(),
            endpoints: texts(&entry.record.endpoints),
            anchors: vec![],
            service: None,
            source: "directory".to_owned(),
            dialled: false,
            sequence: entry.record.sequence,
            took_ms: 0,
            requests: 0,
            trace: vec![],
        })
    }

    fn look_for(&mut self, wanted: Wanted, kind: Kind, key: Key, links: &mut dyn Links, now: Now) {
        if self.look_up(wanted, kind, key, now) {
            self.discover(links, now);
        }
    }

    /// `false` when that came to nothing, and was answered.
    fn look_up(&mut self, wanted: Wanted, kind: Kind, key: Key, now: Now) -> bool {
        let call = wanted.call;
        let Some(discovery) = &mut self.discovery else {
            self.answer(call, Err(switched_off()));
            return false;
        };
        match discovery.dht.get(kind, key, now) {
            Ok(id) => {
                discovery.wanted.insert(id, wanted);
                true
            }
            Err(busy) => {
                self.answer(call, Err(error(ErrorCode::Busy, busy.to_string(), "try again")));
                false
            }
        }
    }

    /// A look-up is over.
    pub(super) fn discovered(&mut self, id: LookupId, outcome: Outcome, links: &mut dyn Links, now: Now) {
        let Some(discovery) = &mut self.discovery else { return };
        let Some(mut wanted) = discovery.wanted.remove(&id) else { return };
        wanted.took_ms += u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        wanted.trace.extend(hops(&outcome));
        let read = outcome.record.and_then(|record| {
            let member = record.statement.peek().ok()?;
            let envelope = record.read(member.network, now.wall).ok()?;
            Some((record, member, envelope))
        });
        let Some((record, member, envelope)) = read else { return self.not_found(&wanted) };
        match (&wanted.aim, envelope.kind) {
            (Aim::Record(_), _) => {
                let shown = shown(&record, member, &envelope, wanted.took_ms, wanted.trace);
                self.answer(wanted.call, Ok(Answer::DhtRecord(Box::new(shown))));
            }
            (Aim::Member(_), Kind::Node) => self.found_member(wanted, member, &envelope, links, now),
            (Aim::Member(_), Kind::Service) => match ServiceValue::decode(&envelope.value) {
                Ok(value) if value.port != 0 => {
                    wanted.aim = Aim::Member(Some(value.into()));
                    self.found_owner(wanted, &member, envelope.sequence, now);
                }
                // Taken back, or written by a version that says it otherwise.
                Ok(_) | Err(_) => self.not_found(&wanted),
            },
            (Aim::Member(_), Kind::Name | Kind::Zone | Kind::Overlay | Kind::Revocations) => {
                self.found_owner(wanted, &member, envelope.sequence, now);
            }
        }
    }

    fn not_found(&mut self, wanted: &Wanted) {
        let Wanted { call, what, trace, aim, .. } = wanted;
        let said = match aim {
            Aim::Member(None) | Aim::Member(Some(_)) => format!("{what} is not to be found"),
            Aim::Record(kind) => format!("no {} record of {what} is to be found", kind.name()),
        };
        let remedy = match what.starts_with('_') {
            true => "`weir dht status` on that member shows which services it has published",
            false => "`weir members` lists whom this node knows; a name is written as in the invitation",
        };
        let message = format!("{said}: {} members were asked", trace.len());
        self.answer(*call, Err(error(ErrorCode::NotFound, message, remedy)));
    }

    /// Whose it is, is known now. Where that member is, the directory says, or its own record.
    fn found_owner(&mut self, wanted: Wanted, member: &MemberStatement, sequence: u64, now: Now) {
        let known = if wanted.is_dht_only { None } else { self.known(member.node) };
        let Some(known) = known else {
            self.look_up(wanted, Kind::Node, member.node.into(), now);
            return;
        };
        let Wanted { call, trace, took_ms, aim, .. } = wanted;
        let service = if let Aim::Member(service) = aim { service } else { None };
        let (source, requests) = ("dht".to_owned(), trace.len() as u32);
        let found = Found { service, source, sequence, took_ms, requests, trace, ..known };
        self.answer(call, Ok(Answer::Found(Box::new(found))));
    }

    fn found_member(
        &mut self,
        wanted: Wanted,
        member: MemberStatement,
        envelope: &Envelope,
        links: &mut dyn Links,
        now: Now,
    ) {
        let value = NodeValue::decode(&envelope.value).unwrap_or_default();
        let dialled = self.meet_found(member.node, &value.endpoints, links, now);
        let Wanted { call, trace, took_ms, aim, .. } = wanted;
        let found = Found {
            node: member.node.to_string(),
            name: member.name,
            address: overlay_address(member.network, member.node).to_string(),
            endpoints: texts(&value.endpoints),
            anchors: value.anchors.iter().map(|anchor| anchor.node.to_string()).collect(),
            service: if let Aim::Member(service) = aim { service } else { None },
            source: "dht".to_owned(),
            dialled,
            sequence: envelope.sequence,
            took_ms,
            requests: trace.len() as u32,
            trace,
        };
        self.answer(call, Ok(Answer::Found(Box::new(found))));
    }

    /// Has a member that only the DHT has met: tried at its addresses. `false` when there is nothing to try, or no need.
    fn meet_found(&mut self, node: NodeId, endpoints: &[SocketAddr], links: &mut dyn Links, now: Now) -> bool {
        if Some(node) == self.id() || self.directory.entry(node).is_some() {
            return false;
        }
        // A private address means another host at another place, so it is of use only to one that may be at the same.
        let is_outside = self.own_endpoints().iter().any(|own| is_public(own.ip()));
        let fits = |endpoint: &&SocketAddr| is_public(endpoint.ip()) || !is_outside;
        let tried: Vec<SocketAddr> = endpoints.iter().filter(fits).take(TRIED_OF_ONE_MAX).copied().collect();
        self.try_at(Source::Dht, &tried, links, now);
        !tried.is_empty()
    }
}

fn shown(
    record: &SignedRecord,
    member: MemberStatement,
    envelope: &Envelope,
    took_ms: u64,
    trace: Vec<DhtHop>,
) -> DhtRecord {
    DhtRecord {
        kind: envelope.kind.name().to_owned(),
        key: HEXLOWER.encode(&envelope.key.0),
        sequence: envelope.sequence,
        not_after: Moment(envelope.not_after),
        node: envelope.node.to_string(),
        name: member.name,
        issuer: record.statement.signer.to_string(),
        value_len: u32::try_from(envelope.value.len()).unwrap_or(u32::MAX),
        value: HEXLOWER.encode(&envelope.value),
        says: said(envelope),
        record: BASE64.encode(&codec::encode(record)),
        took_ms,
        requests: trace.len() as u32,
        trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_written_with_its_protocol_and_its_member() {
        let parted = |what: &str| service_of(what).map(|parted| parted.map(|(label, name)| format!("{label} {name}")));
        assert_eq!(parted("site-b"), None);
        assert_eq!(parted("_http._tcp.site-b"), Some(Ok("_http._tcp site-b".into())));
        assert_eq!(parted("_HTTP._Tcp.site-b"), Some(Ok("_http._tcp site-b".into())));
        assert_eq!(parted("_dns._udp.a"), Some(Ok("_dns._udp a".into())));
        for wrong in
            ["_http", "_http._tcp", "_http._tcp.", "_http._sctp.a", "_._tcp.a", "_a b._tcp.c", "_\u{212a}._tcp.a"]
        {
            let refused = service_of(wrong).unwrap().unwrap_err();
            assert!(refused.message.contains(wrong) && refused.remedy.contains("_http._tcp.site-b"), "{refused:?}");
        }
    }

    #[test]
    fn what_a_record_says_is_written_out_and_what_it_says_wrongly_is_left_to_the_hex() {
        let of = |kind, value: Vec<u8>| {
            let (network, key) = (crate::pki::id::NetworkId([1; 32]), Key([2; 32]));
            let (not_after, node) = (crate::time::UnixSecs(4), NodeId([5; 32]));
            said(&Envelope { network, kind, key, sequence: 3, not_after, node, value })
        };
        let contact = crate::dht::place::Contact { node: NodeId([7; 32]), address: "192.0.2.2:9".parse().unwrap() };
        let node = NodeValue { endpoints: vec!["192.0.2.1:9".parse().unwrap()], anchors: vec![contact] };
        let anchor = format!("anchor {} at 192.0.2.2:9", NodeId([7; 32]));
        assert_eq!(of(Kind::Node, node.encode()), ["endpoint 192.0.2.1:9".to_owned(), anchor]);
        let service = |port| ServiceValue { label: "_a._tcp".into(), port, texts: vec![b"k=v".to_vec()] }.encode();
        assert_eq!(of(Kind::Service, service(80)), ["_a._tcp at port 80", "text k=v"]);
        assert_eq!(of(Kind::Service, service(0))[0], "_a._tcp is not offered any more");
        let list = RevocationsValue { version: 3, hash: [9; 32], size: 300 };
        let said = format!("lists of all signers: versions sum up to 3, 300 bytes, digest {}", "09".repeat(32));
        assert_eq!(of(Kind::Revocations, list.encode()), [said]);
        for kind in Kind::ALL {
            assert!(of(kind, vec![0xff; 3]).is_empty(), "{kind:?}");
        }
    }
}
