//! The DNS overlay in a node: its own zone, which it signs and publishes, and those of others, which it fetches and verifies for whoever answers
//! questions.
//!
//! ```text
//!  configured names, issuer's delegation ─▶ own zone ─▶ records `zone` and `name` ─▶ the DHT
//!  wanted: a member, an address ─▶ both records at once ─▶ verify ─▶ Update: here it is · there is none · it could not be had
//! ```
//!
//! The serial of each zone that was believed is on disk before the zone is given out, so that an older one loses after a restart, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use domain::base::Rtype;

use super::{Node, Output};
use crate::codec;
use crate::dht::record::{Kind, name_key, overlay_key, zone_key};
use crate::dht::{LookupId, Outcome};
use crate::dns::catalog::{self, Update, Wanted};
use crate::dns::member::{MemberZone, SETS_MAX, Whose, ZoneError};
use crate::dns::publish::{Entry, TEXT_LEN_MAX};
use crate::dns::server::PATIENCE;
use crate::pki::dnssec::network::{NetworkZones, Which};
use crate::pki::dnssec::rrset::RrSet;
use crate::pki::dnssec::{Name, TTL_SECS, delegation};
use crate::pki::id::{NodeId, overlay_address};
use crate::random::Random;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::{Now, UnixSecs};

/// What is wanted at a time: two look-ups each, of the sixteen that the DHT has.
const GATHERED_MAX: usize = 6;
/// What waits for that. Ours: what a server has waiting at most.
const WAITING_MAX: usize = 1024;
/// Refusals that are remembered for people.
const REFUSALS_MAX: usize = 256;
/// Members whose serials are remembered. Ours: as many as a catalog holds.
const SERIALS_MAX: usize = catalog::MEMBERS_MAX;
/// Before the name of a member whose serial lies in [`Table::Discovery`].
const SERIAL_OF: &[u8] = b"dns-serial ";
/// Where what was set lies there, and its longest form.
const SET: &[u8] = b"dns-records";
const SET_LEN_MAX: usize = SETS_MAX * (TEXT_LEN_MAX + 300);

/// Which look-up it is.
#[derive(Clone, Debug)]
enum Half {
    Zone(String),
    Name(String),
    Owner(std::net::Ipv6Addr),
}

/// A record of the DHT that was found good: by whom, and what it says.
type Said = (NodeId, String, Vec<u8>);

#[derive(Debug, Default)]
struct Gathering {
    zone: Option<Option<Said>>,
    name: Option<Option<Said>>,
    /// Halves for which somebody answered.
    answered: u8,
}

/// Something that was not believed.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) at: UnixSecs,
    pub(super) member: String,
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

/// All of it.
#[derive(Default)]
pub(super) struct Names {
    /// What the configuration has beside the address.
    pub(super) configured: Vec<Entry>,
    /// What was set.
    pub(super) set: Vec<Entry>,
    pub(super) own: Option<Arc<MemberZone>>,
    /// Why there is none.
    pub(super) own_error: Option<String>,
    lookups: BTreeMap<LookupId, Half>,
    gathering: BTreeMap<String, Gathering>,
    waiting: VecDeque<(Wanted, Instant)>,
    /// The highest serial of each name, and whose it was: whoever has the name after that member begins anew.
    serials: BTreeMap<String, (NodeId, u64)>,
    pub(super) refusals: VecDeque<Refusal>,
}

/// What an earlier life has left.
pub(super) struct Kept {
    set: Vec<Entry>,
    serials: BTreeMap<String, (NodeId, u64)>,
}

/// Reads it.
pub(super) fn kept(store: &impl Store) -> Result<Kept, StoreError> {
    let bytes = store.value(Table::Discovery, SET)?.unwrap_or_default();
    let texts: Vec<(String, String, String)> = codec::decode(&bytes, SET_LEN_MAX).unwrap_or_default();
    let set = texts.iter().filter_map(|(name, rtype, data)| Entry::new(name, rtype, data).ok()).collect();
    let mut serials = BTreeMap::new();
    for (key, value) in store.entries(Table::Discovery)? {
        let name = key.strip_prefix(SERIAL_OF).and_then(|name| String::from_utf8(name.to_vec()).ok());
        if let (Some(name), Ok(serial)) = (name, codec::decode(&value, 64)) {
            serials.insert(name, serial);
        }
    }
    Ok(Kept { set, serials })
}

impl Names {
    pub(super) fn new(configured: Vec<Entry>, Kept { set, serials }: Kept) -> Self {
        Self { configured, set, serials, ..Self::default() }
    }

    /// How many members' zones were believed, our own included.
    pub(super) fn verified(&self) -> u32 {
        self.serials.len() as u32
    }

    /// Writes down what was set.
    pub(super) fn save_set(&self) -> Batch {
        let mut batch = Batch::default();
        let texts: Vec<_> = self.set.iter().map(|entry| (&entry.name, entry.rtype.to_string(), &entry.data)).collect();
        batch.put(Table::Discovery, SET, codec::encode(&texts));
        batch
    }

    fn refuse(&mut self, member: &str, reason: &'static str, detail: String, now: Now) {
        if self.refusals.len() == REFUSALS_MAX {
            self.refusals.pop_front();
        }
        self.refusals.push_back(Refusal { at: now.wall, member: member.to_owned(), reason, detail });
    }

    /// Notes what has been seen; nothing for what was seen already. At the limit the lowest, so the oldest, is forgotten.
    fn note(&mut self, member: &str, node: NodeId, serial: u64) -> Batch {
        let mut batch = Batch::default();
        let key = |member: &str| [SERIAL_OF, member.as_bytes()].concat();
        if self.serials.get(member).is_some_and(|(of, known)| *of == node && *known >= serial) {
            return batch;
        }
        if self.serials.len() >= SERIALS_MAX && !self.serials.contains_key(member) {
            let oldest = self.serials.iter().min_by_key(|(_, (_, serial))| *serial).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.serials.remove(&oldest);
                batch.delete(Table::Discovery, key(&oldest));
            }
        }
        self.serials.insert(member.to_owned(), (node, serial));
        batch.put(Table::Discovery, key(member), codec::encode(&(node, serial)));
        batch
    }
}

impl<R: Random> Node<R> {
    /// Tells whoever answers questions which zones the network has.
    pub(super) fn publish_network_zones(&mut self, now: Now) {
        let network = self.network_zones(now);
        self.outputs.push_back(Output::Names(Update::Network(network)));
    }

    fn network_zones(&self, now: Now) -> Option<catalog::Network> {
        let (network, membership) = (self.network.as_ref()?, self.membership.as_ref()?);
        let zones = network.zones.as_ref()?;
        let signatures = &network.chain.versions().last()?.zones;
        let mut sets: Vec<_> = Which::ALL.into_iter().filter_map(|which| zones.keys(which, signatures)).collect();
        // An apex that is past its time says nothing; the keys do all the same.
        let signers = zones.signers(&self.revocations);
        let apex = membership.delegation.clone().and_then(|delegation| delegation.apex(zones, &signers, now.wall).ok());
        sets.extend(apex.unwrap_or_default());
        let [forward, reverse] = Which::ALL.map(|which| zones.name(which).clone());
        Some(catalog::Network { forward, reverse, sets })
    }

    /// Signs our zone, until what is said now ends; its two values for the DHT.
    pub(super) fn sign_zone(&mut self, until: UnixSecs, now: Now) -> Option<[Vec<u8>; 2]> {
        let whole = self.signed_zone(true, until, now)?;
        let error = whole.as_ref().err().map(ToString::to_string);
        // What does not fit must not take the address along.
        let signed = match whole {
            Ok(zone) => Ok(zone),
            Err(_) => self.signed_zone(false, until, now)?,
        };
        let membership = self.membership.as_ref()?;
        let (name, node, address) = (membership.name.clone(), membership.node, membership.address());
        if let Some(error) = &error {
            tracing::warn!(%error, "our zone has our address only");
            self.counters.count("dns_own_zone_cut");
        }
        match signed {
            Ok(zone) => {
                let zone = Arc::new(zone);
                let batch = self.names.note(&name, node, zone.serial);
                (self.names.own, self.names.own_error) = (Some(Arc::clone(&zone)), error);
                self.store(batch);
                let values = zone.values();
                self.outputs.push_back(Output::Names(Update::Member(name, address, zone)));
                Some(values)
            }
            Err(error) => {
                tracing::warn!(%error, "our zone is not published");
                self.counters.count("dns_own_zone_failed");
                self.names.own_error = Some(error.to_string());
                None
            }
        }
    }

    /// Our zone, with all that is wanted or with the address alone; nothing before an issuer has delegated it.
    pub(super) fn signed_zone(
        &self,
        is_whole: bool,
        until: UnixSecs,
        now: Now,
    ) -> Option<Result<MemberZone, ZoneError>> {
        let (network, membership) = (self.network.as_ref()?, self.membership.as_ref()?);
        let (zones, delegation) = (network.zones.as_ref()?, membership.delegation.as_ref()?);
        let before = self.names.own.as_ref().map_or(0, |zone| zone.serial);
        let seen = self.names.serials.get(&membership.name).filter(|(of, _)| *of == membership.node);
        let before = before.max(seen.map_or(0, |(_, serial)| *serial));
        let whose = Whose { network: network.id, zones, node: membership.node, name: &membership.name };
        Some(self.sets(zones, is_whole).and_then(|sets| {
            MemberZone::sign(whose, delegation.parent(), sets, &membership.dns_key(), before, (now.wall, until))
        }))
    }

    /// What our zone has: our address, and if all of it is wanted, what is configured, and services.
    fn sets(&self, zones: &NetworkZones, is_whole: bool) -> Result<Vec<RrSet>, ZoneError> {
        let Some(membership) = &self.membership else { return Ok(vec![]) };
        let apex = delegation::member_zone(zones, &membership.name)?;
        let mut all: BTreeMap<(Name, Rtype), BTreeSet<Vec<u8>>> = BTreeMap::new();
        let own = (apex.clone(), Rtype::AAAA);
        all.entry(own).or_default().insert(membership.address().octets().to_vec());
        for entry in self.names.configured.iter().chain(&self.names.set).filter(|_| is_whole) {
            let (owner, rdata) = entry.resolve(&apex)?;
            all.entry((owner, entry.rtype)).or_default().insert(rdata);
        }
        for service in self.settings.services.iter().filter(|_| is_whole) {
            for (owner, rtype, rdata) in crate::dns::publish::service(service, &apex)? {
                all.entry((owner, rtype)).or_default().insert(rdata);
            }
        }
        Ok(all.into_iter().map(|((owner, rtype), rdata)| RrSet::new(owner, rtype, TTL_SECS, rdata)).collect())
    }

    /// Something is to be fetched for whoever answers questions.
    pub fn handle_wanted(&mut self, wanted: Wanted, links: &mut dyn super::Links, now: Now) {
        if self.names.waiting.len() >= WAITING_MAX {
            self.outputs.push_back(Output::Names(Update::Failed(wanted)));
        } else if self.names.waiting.iter().all(|(waiting, _)| *waiting != wanted) {
            self.names.waiting.push_back((wanted, now.mono));
        }
        self.gather(now);
        self.discover(links, now);
        self.settle(links);
    }

    fn gather(&mut self, now: Now) {
        while self.names.lookups.len() + 2 <= 2 * GATHERED_MAX {
            let Some((wanted, since)) = self.names.waiting.pop_front() else { return };
            // Whoever asked for it was answered without.
            if now.mono.saturating_duration_since(since) > PATIENCE {
                self.outputs.push_back(Output::Names(Update::Failed(wanted)));
                continue;
            }
            match wanted {
                Wanted::Member(name) => self.gather_member(name, now),
                Wanted::Address(address) => {
                    let network = self.network.as_ref().map(|network| network.id);
                    let of = |entry: &super::directory::Entry| {
                        network.is_some_and(|network| overlay_address(network, entry.record.node) == address)
                    };
                    let known = self.directory.entries().find(|entry| of(entry));
                    match (known.map(|entry| entry.statement.name.clone()), network) {
                        (Some(name), _) => self.gather_member(name, now),
                        (None, Some(network)) => {
                            let key = overlay_key(network, address);
                            if !self.look_up_half(Kind::Overlay, key, Half::Owner(address), now) {
                                self.outputs.push_back(Output::Names(Update::Failed(Wanted::Address(address))));
                            }
                        }
                        (None, None) => {
                            self.outputs.push_back(Output::Names(Update::Failed(Wanted::Address(address))));
                        }
                    }
                }
            }
        }
    }

    fn gather_member(&mut self, name: String, now: Now) {
        let own = self.membership.as_ref().filter(|membership| membership.name == name);
        if let (Some(own), Some(zone)) = (own, self.names.own.clone()) {
            let update = Update::Member(name, own.address(), zone);
            return self.outputs.push_back(Output::Names(update));
        }
        let Some(network) = self.network.as_ref().map(|network| network.id) else {
            return self.outputs.push_back(Output::Names(Update::Failed(Wanted::Member(name))));
        };
        if self.names.gathering.contains_key(&name) {
            return;
        }
        let is_begun = self.look_up_half(Kind::Zone, zone_key(network, &name), Half::Zone(name.clone()), now)
            && self.look_up_half(Kind::Name, name_key(network, &name), Half::Name(name.clone()), now);
        if is_begun {
            self.names.gathering.insert(name, Gathering::default());
        } else {
            self.outputs.push_back(Output::Names(Update::Failed(Wanted::Member(name))));
        }
    }

    fn look_up_half(&mut self, kind: Kind, key: crate::dht::place::Key, half: Half, now: Now) -> bool {
        let Some(discovery) = &mut self.discovery else { return false };
        match discovery.dht.get(kind, key, now) {
            Ok(id) => {
                self.names.lookups.insert(id, half);
                true
            }
            Err(_busy) => false,
        }
    }

    /// A look-up is over that was for this; the outcome comes back when it was not.
    pub(super) fn names_looked_up(&mut self, id: LookupId, outcome: Outcome, now: Now) -> Option<Outcome> {
        let Some(half) = self.names.lookups.remove(&id) else { return Some(outcome) };
        // Who is alone has asked nobody, and knows all there is.
        let is_answered = outcome.trace.is_empty() || outcome.trace.iter().any(|hop| hop.has_answered);
        let said = outcome.record.and_then(|record| {
            let member = record.statement.peek().ok()?;
            let envelope = record.read(member.network, now.wall).ok()?;
            Some((member.node, member.name, envelope.value))
        });
        let (name, is_zone) = match half {
            Half::Owner(address) => {
                let update = match said {
                    Some((_, name, _)) => {
                        self.gather_member(name, now);
                        None
                    }
                    None if is_answered => Some(Update::Absent(Wanted::Address(address))),
                    None => Some(Update::Failed(Wanted::Address(address))),
                };
                self.outputs.extend(update.map(Output::Names));
                self.gather(now);
                return None;
            }
            Half::Zone(name) => (name, true),
            Half::Name(name) => (name, false),
        };
        if let Some(gathering) = self.names.gathering.get_mut(&name) {
            gathering.answered += u8::from(is_answered);
            *(if is_zone { &mut gathering.zone } else { &mut gathering.name }) = Some(said);
            if gathering.zone.is_some() && gathering.name.is_some() {
                let gathered = self.names.gathering.remove(&name).unwrap_or_default();
                let update = self.gathered(name, gathered, now);
                self.outputs.push_back(Output::Names(update));
            }
        }
        self.gather(now);
        None
    }

    /// Both records are here, or are not to be had.
    fn gathered(&mut self, name: String, gathering: Gathering, now: Now) -> Update {
        let (zone, names) = (gathering.zone.flatten(), gathering.name.flatten());
        // One that is there without the other is lost, or withheld.
        let is_absent = zone.is_none() && names.is_none() && gathering.answered == 2;
        let (Some((node, _, zone)), Some((other, _, names))) = (zone, names) else {
            return if is_absent { Update::Absent(Wanted::Member(name)) } else { Update::Failed(Wanted::Member(name)) };
        };
        match self.believe(&name, [node, other], [&zone, &names], now) {
            Ok(zone) => {
                let batch = self.names.note(&name, node, zone.serial);
                self.store(batch);
                let address = self.network.as_ref().map(|network| overlay_address(network.id, node));
                match address {
                    Some(address) => Update::Member(name, address, Arc::new(zone)),
                    None => Update::Failed(Wanted::Member(name)),
                }
            }
            Err((reason, detail)) => {
                self.counters.count(reason);
                self.names.refuse(&name, reason, detail, now);
                Update::Failed(Wanted::Member(name))
            }
        }
    }

    fn believe(
        &self,
        name: &str,
        [node, other]: [NodeId; 2],
        values: [&[u8]; 2],
        now: Now,
    ) -> Result<MemberZone, (&'static str, String)> {
        let gone = ("dns_wrong_owner", "we are no member any more".to_owned());
        let (Some(network), true) = (&self.network, node == other) else {
            return Err(if self.network.is_none() {
                gone
            } else {
                ("dns_halves", "its two records are of two members".into())
            });
        };
        if self.revocations.is_node_revoked(node) {
            return Err(("dns_revoked", format!("{node} is revoked")));
        }
        let zones = network.zones.as_ref().ok_or(("dns_wrong_key", "the network has no zone".to_owned()))?;
        let whose = Whose { network: network.id, zones, node, name };
        let zone = MemberZone::verify(whose, values, &zones.signers(&self.revocations), now.wall)
            .map_err(|error| (error.name(), error.to_string()))?;
        match self.names.serials.get(name) {
            Some((of, seen)) if *of == node && *seen > zone.serial => {
                Err(("dns_replayed", format!("serial {}, and {seen} was seen", zone.serial)))
            }
            _ => Ok(zone),
        }
    }

    /// A member was cut off: its names are gone.
    pub(super) fn names_revoked(&mut self, node: NodeId) {
        let known = self.directory.entry(node).map(|entry| entry.statement.name.clone());
        let held = self.names.serials.iter().filter(|(_, (of, _))| *of == node).map(|(name, _)| name.clone());
        let names: BTreeSet<String> = held.chain(known).collect();
        self.outputs.extend(names.into_iter().map(|name| Output::Names(Update::Revoked(name))));
    }

    /// We are a member no more.
    pub(super) fn end_names(&mut self) {
        let Names { configured, set, refusals, serials, .. } = std::mem::take(&mut self.names);
        let mut batch = Batch::default();
        for name in serials.keys() {
            batch.delete(Table::Discovery, [SERIAL_OF, name.as_bytes()].concat());
        }
        self.names = Names { configured, set, refusals, ..Names::default() };
        self.store(batch);
        self.outputs.push_back(Output::Names(Update::Network(None)));
    }
}
