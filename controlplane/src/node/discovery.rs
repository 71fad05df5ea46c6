//! The DHT in a node: what it is fed with, and what comes of it.
//!
//! The machine itself is in [`crate::dht`]. Here it gets sessions to speak by, judges for records, our own records to publish, and a place in the
//! store; what people look for is in `finding.rs`. Without it (`discovery.mode = "off"`) a node knows others by the directory alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::calls::{error, not_a_member};
use super::finding::Wanted;
use super::link::Links;
use super::lookups::Watch;
use super::{CallId, Network, Node, Part, Timer, services};
use crate::api::call::Answer;
use crate::api::types::{Counter, DhtPublication, DhtStatus, Done, ErrorCode, Moment};
use crate::codec;
use crate::dht::place::{Contact, Key, Peer};
use crate::dht::record::{Envelope, Judge, Kind, LIFETIME_MAX_SECS, NodeValue, SignedRecord};
use crate::dht::store::Highest;
use crate::dht::{ANCHORS_MAX, Dht, LookupId, Mode, Outcome, Output, Saved};
use crate::pki::id::{NodeId, sha256};
use crate::pki::revocation::RevocationSet;
use crate::pki::seen::Seen;
use crate::random::{Random, draw};
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::{Now, UnixSecs};

/// Contacts of the directory that a table begins with.
const BEGIN_WITH: usize = ANCHORS_MAX;
/// Failed dials that are told to the machine in one turn; beyond, their requests time out.
const UNREACHABLE_MAX: usize = 256;
/// A sequence that somebody claims to have seen is believed up to so far ahead of the clock; ours come from it.
const SEQUENCE_AHEAD_MAX: u64 = 86_400;
/// Between two times that a sequence of ours is raised above what others claim to have seen. Ours: one round of offers takes less, and whoever claims
/// ever more has us sign once a minute.
const RAISE_GAP: Duration = Duration::from_secs(60);
/// How often what we say is said anew, though it is the same: the statement beside it may have no issuer to renew it, and it is good for twice as long.
const SAY_INTERVAL: Duration = Duration::from_secs(LIFETIME_MAX_SECS / 4);
/// How often anchors and sequences are written down. Ours: what comes in between is learned again, and a store may be some megabytes long.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
/// Where anchors and sequences lie in [`Table::Discovery`].
pub(super) const SAVED: &[u8] = b"dht";
/// Longest form of that: as many sequences as a store keeps, and anchors.
const SAVED_LEN_MAX: usize = 16 << 20;

/// A service of ours, by its label.
#[derive(Clone, Debug)]
struct Service {
    label: String,
    /// It is not offered any more.
    is_withdrawn: bool,
}

/// Something that we say in the DHT.
#[derive(Clone, Debug)]
struct Saying {
    kind: Kind,
    value: Vec<u8>,
    until: UnixSecs,
    service: Option<Service>,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
struct Published {
    saying: Option<Saying>,
    sequence: u64,
    stored: u16,
    asked: u16,
    at: Option<UnixSecs>,
    /// When its sequence was raised last.
    raised: Option<Instant>,
}

impl Published {
    fn service(&self) -> Option<&Service> {
        self.saying.as_ref()?.service.as_ref()
    }
}

/// The machine and what is around it.
pub(super) struct Discovery<R> {
    pub(super) dht: Dht<R>,
    /// Signatures that were good before.
    seen: Seen,
    unreachable: Vec<Contact>,
    pub(super) wanted: BTreeMap<LookupId, Wanted>,
    pub(super) watch: Watch,
    /// Members that do not answer where they are said to be, and are looked for.
    pub(super) sought: BTreeMap<LookupId, NodeId>,
    /// Issuers' nodes whose lists are looked for.
    pub(super) lists: BTreeMap<LookupId, NodeId>,
    published: BTreeMap<(Kind, Key), Published>,
    /// Digest of what is on disk, and when it is looked at again.
    saved: [u8; 32],
    save_at: Instant,
}

/// Anchors and sequences as they lie in the store.
pub(super) fn kept(store: &impl Store) -> Result<Saved, StoreError> {
    let bytes = store.value(Table::Discovery, SAVED)?.unwrap_or_default();
    // A table that cannot be read is made anew from the directory; sequences that are forgotten only let an old record be stored once more.
    let read = codec::decode::<(Vec<Contact>, Vec<Highest>)>(&bytes, SAVED_LEN_MAX);
    Ok(read.map(|(anchors, highest)| Saved { anchors, highest }).unwrap_or_default())
}

impl<R: Random> Node<R> {
    /// Begins, once we are a member.
    pub(super) fn begin_discovery(&mut self, now: Now) {
        let (Some(part), Some(own)) = (self.settings.discovery, self.id()) else { return };
        // Until others have said that they reach us.
        let mode = if part == Part::Server { Mode::Server } else { Mode::Client };
        let saved = std::mem::take(&mut self.kept_discovery);
        let dht = Dht::new(own, mode, saved, self.random.split(), now);
        self.discovery = Some(Discovery {
            dht,
            seen: Seen::default(),
            unreachable: vec![],
            wanted: BTreeMap::new(),
            sought: BTreeMap::new(),
            lists: BTreeMap::new(),
            watch: Watch::default(),
            published: BTreeMap::new(),
            saved: [0; 32],
            save_at: now.mono + SAVE_INTERVAL,
        });
        self.publish_own(now);
        let known = self.directory.entries().filter(|entry| entry.record.node != own);
        let contact = |node, address: Option<&std::net::SocketAddr>| Some(Contact { node, address: *address? });
        let mut contacts: Vec<Contact> =
            known.filter_map(|entry| contact(entry.record.node, entry.record.endpoints.first())).collect();
        // Not the first ones by id, who would be asked by everybody.
        draw(&mut contacts, BEGIN_WITH, &mut self.random);
        if let Some(discovery) = &mut self.discovery {
            discovery.dht.join(&contacts, now);
        }
        self.timers.set(Timer::Discover, now.mono);
    }

    /// We are a member no more.
    pub(super) fn end_discovery(&mut self) {
        self.timers.cancel(Timer::Discover);
        self.timers.cancel(Timer::Reach);
        self.timers.cancel(Timer::Say);
        // Who reached us, and which lists were looked for, was a matter of that network.
        (self.reach, self.lists_due) = Default::default();
        self.told_services.clear();
        let Some(discovery) = self.discovery.take() else { return };
        for call in discovery.wanted.into_values().map(|wanted| wanted.call).chain(discovery.watch.end()) {
            self.timers.cancel(Timer::Watcher(call));
            self.answer(call, Err(not_a_member()));
        }
    }

    /// Has another part from now on; `false` when it is the one that we have.
    pub(super) fn take_part(&mut self, mode: Mode, now: Now) -> bool {
        let Some(discovery) = self.discovery.as_mut().filter(|discovery| discovery.dht.mode() != mode) else {
            return false;
        };
        discovery.dht.set_mode(mode, now);
        self.timers.set_at_latest(Timer::Discover, now.mono);
        true
    }

    /// A session with a member is there.
    pub(super) fn discovery_met(&mut self, contact: Contact, now: Now) {
        let Some(discovery) = &mut self.discovery else { return };
        discovery.dht.handle_session(Peer { contact, site: None }, now);
        discovery.dht.meet(contact, now);
        self.timers.set_at_latest(Timer::Discover, now.mono);
    }

    /// No session with a member comes about.
    pub(super) fn discovery_unreachable(&mut self, contact: Contact) {
        let Some(discovery) = &mut self.discovery else { return };
        if discovery.unreachable.len() < UNREACHABLE_MAX {
            discovery.unreachable.push(contact);
        }
        self.timers.set_at_latest(Timer::Discover, self.clock.looked_at());
    }

    /// A member was cut off.
    pub(super) fn discovery_revoked(&mut self, node: NodeId, now: Now) {
        self.names_revoked(node);
        if let Some(discovery) = &mut self.discovery {
            discovery.dht.handle_revoked(node, now);
            self.timers.set_at_latest(Timer::Discover, now.mono);
        }
    }

    /// A member said something.
    pub(super) fn discovery_said(&mut self, contact: Contact, message: &[u8], links: &mut dyn Links, now: Now) {
        let (Some(discovery), Some(network)) = (&mut self.discovery, &self.network) else {
            return self.counters.count("contact_unwanted");
        };
        if self.revocations.is_node_revoked(contact.node) {
            return self.counters.count("contact_revoked");
        }
        let judge = judge(network, &self.revocations, &discovery.seen, now);
        discovery.dht.handle_message(Peer { contact, site: None }, message, judge, now);
        self.discover(links, now);
    }

    /// Carries out what the machine wants, and what is due.
    pub(super) fn discover(&mut self, links: &mut dyn Links, now: Now) {
        let Some(discovery) = &mut self.discovery else { return };
        for contact in std::mem::take(&mut discovery.unreachable) {
            discovery.dht.handle_unreachable(contact, now);
        }
        discovery.dht.handle_timeout(now);
        while let Some(output) = self.discovery.as_mut().and_then(|discovery| discovery.dht.poll_output()) {
            match output {
                Output::Send { to, message } => self.send_rpc(to, message, links, now),
                Output::Joined => tracing::info!("the DHT can be asked"),
                Output::Found { id, outcome } => self.looked_up(id, *outcome, links, now),
                Output::Published { kind, key, stored, asked, superseded, .. } => {
                    self.was_published((kind, key), stored, asked, superseded, now);
                }
            }
        }
        self.look_at_lookups(now);
        let Some(discovery) = &self.discovery else { return };
        let next = if discovery.unreachable.is_empty() { discovery.dht.poll_timeout() } else { Some(now.mono) };
        match next {
            Some(next) => self.timers.set(Timer::Discover, next),
            None => self.timers.cancel(Timer::Discover),
        }
    }

    /// A look-up is over, for whatever it was.
    fn looked_up(&mut self, id: LookupId, outcome: Outcome, links: &mut dyn Links, now: Now) {
        let Some(outcome) = self.names_looked_up(id, outcome, now) else { return };
        let Some(discovery) = &mut self.discovery else { return };
        if let Some(node) = discovery.sought.remove(&id) {
            self.was_sought(node, &outcome, now);
        } else if let Some(node) = discovery.lists.remove(&id) {
            self.lists_told(node, &outcome, links, now);
        } else {
            self.discovered(id, outcome, links, now);
        }
    }

    /// Signs what we say in the DHT, in the place of what we said.
    pub(super) fn publish_own(&mut self, now: Now) {
        let Some(discovery) = &self.discovery else { return };
        if self.clock.is_doubted() {
            return self.timers.set(Timer::Say, now.mono + super::UPKEEP_INTERVAL);
        }
        self.timers.set(Timer::Say, now.mono + SAY_INTERVAL);
        let endpoints = self.own_endpoints();
        let anchors = if endpoints.is_empty() { discovery.dht.anchors() } else { vec![] };
        let anchors = anchors.into_iter().take(NodeValue::ANCHORS_MAX).collect();
        let until = said_until(now);
        let of = |kind, value| Saying { kind, value, until, service: None };
        // Of a name and an address, whose it is stands in the statement: a name without a zone is one all the same.
        let node = NodeValue { endpoints, anchors }.encode();
        let (name, zone) = match self.sign_zone(until, now) {
            Some([zone, name]) => (name, Some(zone)),
            None => (vec![], None),
        };
        let mut all = vec![of(Kind::Node, node), of(Kind::Name, name), of(Kind::Overlay, vec![])];
        all.extend(zone.map(|zone| of(Kind::Zone, zone)));
        all.extend(self.is_issuing.then(|| of(Kind::Revocations, self.lists_held().encode())));
        let before = self.told_services.clone();
        let services = services::to_say(&self.settings.services, &mut self.told_services, until, now.wall);
        all.extend(services.into_iter().map(|(service, until)| {
            let (value, is_withdrawn) = (service.encode(), service.port == 0);
            let service = Some(Service { label: service.label, is_withdrawn });
            Saying { kind: Kind::Service, value, until, service }
        }));
        let said: Vec<(Kind, Key)> = all.into_iter().filter_map(|saying| self.publish(saying, now)).collect();
        if let Some(discovery) = &mut self.discovery {
            for (kind, key) in discovery.published.keys().filter(|named| !said.contains(named)) {
                discovery.dht.withdraw(*kind, *key);
            }
            discovery.published.retain(|named, _| said.contains(named));
        }
        if self.told_services != before {
            self.store(services::save(&self.told_services));
        }
    }

    /// Says which revocation lists this node holds, where an issuer is beside it.
    pub(super) fn publish_lists(&mut self, now: Now) {
        if self.is_issuing && !self.clock.is_doubted() {
            let value = self.lists_held().encode();
            self.publish(Saying { kind: Kind::Revocations, value, until: said_until(now), service: None }, now);
        }
    }

    /// Signs one thing, and says where it lies.
    fn publish(&mut self, saying: Saying, now: Now) -> Option<(Kind, Key)> {
        let (discovery, network) = (self.discovery.as_mut()?, self.network.as_ref()?);
        let membership = self.membership.as_ref()?;
        let member = membership.statement.peek().ok()?;
        let Saying { kind, ref value, until, .. } = saying;
        let key = kind.key_of(&member, value).ok()?;
        let published = discovery.published.entry((kind, key)).or_default();
        published.sequence = now.wall.0.max(published.sequence + 1);
        let (network_id, node, sequence, value) = (network.id, membership.node, published.sequence, value.clone());
        let envelope = Envelope { network: network_id, kind, key, sequence, not_after: until, node, value };
        let record = SignedRecord::sign(&envelope, membership.statement.clone(), &membership.identity);
        let judge = judge(network, &self.revocations, &discovery.seen, now);
        if let Err(error) = discovery.dht.publish(record, None, judge, now) {
            let service = saying.service.as_ref().map(|service| service.label.as_str());
            tracing::warn!(?kind, service, %error, "our record is not published");
            self.counters.count("dht_publish_failed");
        }
        published.saying = Some(saying);
        self.timers.set_at_latest(Timer::Discover, now.mono);
        Some((kind, key))
    }

    fn was_published(&mut self, named: (Kind, Key), stored: u16, asked: u16, superseded: Option<u64>, now: Now) {
        let Some(discovery) = &mut self.discovery else { return };
        let Some(published) = discovery.published.get_mut(&named) else { return };
        (published.stored, published.asked, published.at) = (stored, asked, Some(now.wall));
        // An earlier life of ours may have had a clock that was ahead. Who claims more is not believed.
        let limit = now.wall.0.saturating_add(SEQUENCE_AHEAD_MAX);
        let is_early = published.raised.is_some_and(|raised| now.mono < raised + RAISE_GAP);
        let Some(above) = superseded.filter(|above| !is_early && *above >= published.sequence && *above < limit) else {
            return;
        };
        (published.raised, published.sequence) = (Some(now.mono), above);
        if let Some(saying) = published.saying.clone() {
            self.publish(saying, now);
        }
    }

    /// Writes down whom to begin with, and what must not go back.
    pub(super) fn save_discovery(&mut self, now: Now) {
        let Some(discovery) = self.discovery.as_mut().filter(|discovery| discovery.save_at <= now.mono) else { return };
        discovery.save_at = now.mono + SAVE_INTERVAL;
        let Saved { anchors, highest } = discovery.dht.save();
        let bytes = codec::encode(&(anchors, highest));
        let digest = sha256("weir-discovery-saved-1", &[&bytes]);
        if digest == discovery.saved {
            return;
        }
        discovery.saved = digest;
        let mut batch = Batch::default();
        batch.put(Table::Discovery, SAVED, bytes);
        self.store(batch);
    }

    /// How it stands with the DHT.
    pub(super) fn dht_status(&mut self, id: CallId) {
        let sessions = self.contacts.len() as u32;
        let Some(discovery) = &self.discovery else { return self.answer(id, Err(switched_off())) };
        let (dht, counters) = (&discovery.dht, discovery.dht.counters());
        let is_witnessed = self.settings.discovery == Some(Part::Auto);
        let published = discovery.published.iter().map(|((kind, _), published)| DhtPublication {
            kind: kind.name().to_owned(),
            service: published.service().map(|service| service.label.clone()),
            withdrawn: published.service().is_some_and(|service| service.is_withdrawn),
            sequence: published.sequence,
            stored: published.stored.into(),
            asked: published.asked.into(),
            at: published.at.map(Moment),
        });
        let status = DhtStatus {
            mode: if dht.mode() == Mode::Server { "server" } else { "client" }.to_owned(),
            witnesses: self.witnesses() as u32,
            witnesses_wanted: if is_witnessed { self.witnesses_wanted() as u32 } else { 0 },
            is_joined: dht.is_joined(),
            contacts: dht.table().len() as u32,
            sessions,
            servers: dht.servers().round() as u64,
            half_life_secs: dht.half_life().as_secs(),
            records: dht.store().len() as u32,
            bytes: dht.store().bytes() as u64,
            published: published.collect(),
            counters: counters
                .named()
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| Counter { name: name.to_owned(), count })
                .collect(),
        };
        self.answer(id, Ok(Answer::DhtStatus(Box::new(status))));
    }

    /// Our own records are to be offered once more.
    pub(super) fn publish_call(&mut self, id: CallId, links: &mut dyn Links, now: Now) {
        if self.discovery.is_none() {
            return self.answer(id, Err(switched_off()));
        }
        self.publish_own(now);
        self.discover(links, now);
        let message = "our records are signed anew and offered; `weir dht status` shows who has them".to_owned();
        self.answer(id, Ok(Answer::Done(Done { message })));
    }
}

/// When what is said now ends, unless it is said again.
fn said_until(now: Now) -> UnixSecs {
    UnixSecs(now.wall.0.saturating_add(LIFETIME_MAX_SECS / 2))
}

/// By what records are judged now.
fn judge<'a>(network: &'a Network, revoked: &'a RevocationSet, seen: &'a Seen, now: Now) -> Judge<'a> {
    Judge { network: network.id, bundle: &network.bundle, revoked, seen, now: now.wall }
}

pub(super) fn switched_off() -> crate::api::types::Error {
    error(ErrorCode::Conflict, "this node takes no part in the DHT", "set discovery.mode to \"auto\" in weir.toml")
}
