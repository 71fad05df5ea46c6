//! What people ask about names, and what they publish under this member's own.

use std::collections::BTreeSet;

use data_encoding::{BASE64, HEXLOWER};
use domain::base::Rtype;

use super::calls::{error, not_a_member};
use super::{CallId, Links, Node};
use crate::api::call::Answer;
use crate::api::types::{
    Counter, DnsAnchor, DnsAnchors, DnsRecord, DnsRefusal, DnsSetRequest, DnsStatus, DnsUnsetRequest, Done, ErrorCode,
    Moment,
};
use crate::dns::member::{SETS_MAX, TYPES, ZoneError};
use crate::dns::message::shown;
use crate::dns::publish::Entry;
use crate::pki::dnssec::key::{ALGORITHM, DIGEST_TYPE, ZoneKey};
use crate::pki::dnssec::network::{NetworkZones, Which};
use crate::pki::dnssec::{Name, server_address};
use crate::pki::id::NetworkId;
use crate::random::Random;
use crate::time::{Now, UnixSecs};

fn anchor(zone: &Name, keys: &[ZoneKey]) -> DnsAnchor {
    let owner = zone.fmt_with_dot();
    let dnskey = |key: &ZoneKey| format!("{owner} IN DNSKEY 257 3 {ALGORITHM} {}", BASE64.encode(&key.public.0));
    let ds = |key: &ZoneKey| {
        let digest = HEXLOWER.encode(&key.digest(zone));
        format!("{owner} IN DS {} {ALGORITHM} {DIGEST_TYPE} {digest}", key.tag())
    };
    DnsAnchor { zone: owner.to_string(), dnskeys: keys.iter().map(dnskey).collect(), ds: keys.iter().map(ds).collect() }
}

impl<R: Random> Node<R> {
    fn network_and_zones(&self) -> Option<(NetworkId, &NetworkZones)> {
        let network = self.network.as_ref()?;
        Some((network.id, network.zones.as_ref()?))
    }

    /// How it stands with names.
    pub(super) fn dns_status(&mut self, id: CallId) {
        let zones = self.network_and_zones();
        let named = |which| zones.map(|(_, zones)| zones.name(which).fmt_with_dot().to_string());
        let own = self.names.own.as_ref();
        let refused = self.counters.0.iter().filter(|(name, _)| name.starts_with("dns_"));
        let status = DnsStatus {
            zone: named(Which::Forward),
            reverse: named(Which::Reverse),
            own: own.map(|zone| zone.apex.fmt_with_dot().to_string()),
            serial: own.map(|zone| zone.serial),
            until: own.map(|zone| Moment(zone.until)),
            problem: self.names.own_error.clone(),
            records: self.dns_records(),
            verified: self.names.verified(),
            refused: refused.map(|(name, count)| Counter { name: (*name).to_owned(), count: *count }).collect(),
        };
        self.answer(id, Ok(Answer::DnsStatus(Box::new(status))));
    }

    /// Records in the order of their names.
    fn dns_records(&self) -> Vec<DnsRecord> {
        let Some(zone) = &self.names.own else { return vec![] };
        let of = |entries: &[Entry]| -> BTreeSet<(Name, Rtype)> {
            entries.iter().filter_map(|entry| Some((entry.resolve(&zone.apex).ok()?.0, entry.rtype))).collect()
        };
        let (configured, set) = (of(&self.names.configured), of(&self.names.set));
        let mut all = vec![];
        for signed in zone.sets().filter(|signed| TYPES.contains(&signed.set.rtype)) {
            let at = (signed.set.owner.clone(), signed.set.rtype);
            let source = match (set.contains(&at), configured.contains(&at), at.0 == zone.apex) {
                (true, ..) => "set",
                (_, true, _) => "configuration",
                (.., true) => "address",
                (false, false, false) => "service",
            };
            all.extend(signed.set.rdata().iter().map(|rdata| DnsRecord {
                name: at.0.fmt_with_dot().to_string(),
                rtype: at.1.to_string(),
                data: shown(at.1, rdata),
                source: source.to_owned(),
            }));
        }
        all
    }

    /// Publishes a record.
    pub(super) fn dns_set(&mut self, id: CallId, request: &DnsSetRequest, links: &mut dyn Links, now: Now) {
        let entry = match Entry::new(&request.name, &request.rtype, &request.data) {
            Ok(entry) => entry,
            Err(wrong) => {
                let remedy = "write it as in a zone file: weir dns set www A 10.1.0.7";
                return self.answer(id, Err(error(ErrorCode::BadRequest, wrong.to_string(), remedy)));
            }
        };
        if self.names.set.contains(&entry) {
            return self.answer(id, Ok(Answer::Done(Done { message: "it is published already".into() })));
        }
        if self.names.set.len() >= SETS_MAX {
            let message = format!("{SETS_MAX} records are set, and no more can be");
            return self.answer(id, Err(error(ErrorCode::Conflict, message, "`weir dns unset` takes one away")));
        }
        let before = self.names.set.clone();
        self.names.set.push(entry);
        // What makes no zone changes nothing.
        if let Err(wrong) = self.judge_names(now) {
            self.names.set = before;
            let remedy = "`weir dns list` shows what is published";
            return self.answer(id, Err(error(ErrorCode::Conflict, wrong.to_string(), remedy)));
        }
        self.dns_changed(id, links, now);
    }

    /// Takes records back.
    pub(super) fn dns_unset(&mut self, id: CallId, request: &DnsUnsetRequest, links: &mut dyn Links, now: Now) {
        let fits = |entry: &Entry| {
            entry.name.eq_ignore_ascii_case(&request.name)
                && request.rtype.as_ref().is_none_or(|rtype| entry.rtype.to_string().eq_ignore_ascii_case(rtype))
                && request.data.as_ref().is_none_or(|data| entry.data == *data)
        };
        let before = self.names.set.clone();
        self.names.set.retain(|entry| !fits(entry));
        if self.names.set == before {
            let message = format!("nothing is set under {:?} that fits", request.name);
            let remedy = "`weir dns list` shows what is; what the configuration has goes from there";
            return self.answer(id, Err(error(ErrorCode::NotFound, message, remedy)));
        }
        self.dns_changed(id, links, now);
    }

    /// Signs anew with what is set now.
    fn dns_changed(&mut self, id: CallId, links: &mut dyn Links, now: Now) {
        let batch = self.names.save_set();
        self.store(batch);
        self.publish_own(now);
        self.discover(links, now);
        let message = match (&self.names.own, &self.discovery) {
            (Some(zone), Some(_)) => format!("{} is signed anew and offered to the others", zone.apex.fmt_with_dot()),
            (_, None) => "it is kept; others learn of it when this node takes part in the DHT".to_owned(),
            (None, Some(_)) => {
                "it is kept, and published as soon as an issuer has delegated this member's zone".to_owned()
            }
        };
        self.answer(id, Ok(Answer::Done(Done { message })));
    }

    /// Whether all that is configured and set makes one zone, as far as that can be said before there is one.
    fn judge_names(&self, now: Now) -> Result<(), ZoneError> {
        match self.signed_zone(true, UnixSecs(now.wall.0 + 1), now) {
            Some(signed) => signed.map(drop),
            None => Ok(()),
        }
    }

    /// The keys by which others verify names.
    pub(super) fn dns_anchors(&mut self, id: CallId) {
        let Some((network, zones)) = self.network_and_zones() else {
            return self.answer(id, Err(not_a_member()));
        };
        let keys = zones.anchors();
        let all = Which::ALL.map(|which| anchor(zones.name(which), &keys));
        let server = server_address(network).to_string();
        self.answer(id, Ok(Answer::DnsAnchors(DnsAnchors { server, zones: all.into() })));
    }

    /// What was not believed.
    pub(super) fn dns_log(&mut self, id: CallId) {
        let all = self.names.refusals.iter().map(|refusal| DnsRefusal {
            at: Moment(refusal.at),
            member: refusal.member.clone(),
            reason: refusal.reason.to_owned(),
            detail: refusal.detail.clone(),
        });
        let all = all.collect();
        self.answer(id, Ok(Answer::DnsLog(all)));
    }
}
