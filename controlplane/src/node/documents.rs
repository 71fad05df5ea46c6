//! What the whole network must know: the trust bundle, revocation lists, the policy, the admission document, the directory.
//!
//! Each is signed, so it may come from anybody. On a new link both sides say what they have, and who lacks something asks; what is news is
//! passed on to all other links at once. So a list reaches everybody in as many steps as the mesh is wide.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weir_dataplane::api::Prefix;
use weir_dataplane::api::admission::KEYS_MAX;
use weir_dataplane::api::message::AdmissionKey;

use super::directory::{self, ENDPOINTS_MAX, LIFETIME, Record, RecordError, SignedRecord};
use super::link::{Code, Links};
use super::message::{self, Ask, Hello, Message, RECORDS_PER_MESSAGE};
use super::{Network, Node, Timer};
use crate::codec;
use crate::membership::{self, MembershipError};
use crate::pki::admission::{AdmissionError, AdmissionKeys, SignedAdmission};
use crate::pki::bundle::{BundleError, Chain, Extended, SignedBundle};
use crate::pki::id::{NodeId, overlay_network};
use crate::pki::revocation::{RevocationError, Revoked, SignedRevocationList};
use crate::pki::statement::StatementError;
use crate::policy::SignedPolicy;
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::{Now, UnixSecs};

/// Longest stored document.
const DOCUMENT_LEN_MAX: usize = 1 << 20;
/// Key of the latest moment in [`Table::Clock`].
pub(super) const CLOCK_KEY: &[u8] = b"latest";
/// Members whose addresses are kept in mind beyond the end of their records: enough to find one that is still there.
const TOLD_MAX: usize = 24;
/// How old our record becomes before we sign a new one.
const RECORD_REFRESH: Duration = Duration::from_secs(6 * 86_400);

/// Why what is stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Who we are.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Bytes that are no document.
    #[error("a stored {what} cannot be read: {error}; restore the state directory, or join again with a fresh token")]
    Decode {
        /// Which kind.
        what: &'static str,
        /// Why.
        error: codec::DecodeError,
    },
    /// A chain of bundles that does not hold.
    #[error("the stored trust bundle is not good: {0}; restore the state directory, or join again with a fresh token")]
    Bundle(#[from] BundleError),
}

/// The latest moment that was kept.
///
/// # Errors
/// [`LoadError`].
pub(super) fn kept_clock(store: &impl Store) -> Result<UnixSecs, LoadError> {
    let kept = store.value(Table::Clock, CLOCK_KEY)?;
    kept.map_or(Ok(UnixSecs(0)), |bytes| stored("clock", &bytes))
}

fn stored<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, LoadError> {
    codec::decode(bytes, DOCUMENT_LEN_MAX).map_err(|error| LoadError::Decode { what, error })
}

/// What came of revocation lists.
#[derive(Debug, Default)]
pub(super) struct ListsHeard {
    /// Whether one of them was newer than what was known.
    pub(super) is_news: bool,
    /// Entries that no earlier list of the same signer had.
    pub(super) added: usize,
    /// Why the last one that was refused was.
    pub(super) refused: Option<RevocationError>,
}

impl<R: Random> Node<R> {
    /// Reads everything that was kept. What is past its end is left out quietly; what is broken is an error.
    pub(super) fn load(&mut self, store: &impl Store, now: Now) -> Result<(), LoadError> {
        let Some(membership) = &self.membership else { return Ok(()) };
        let id = membership.network;
        let bundles = membership::bundles(store)?;
        let chain = Chain::walk(id, &bundles)?;
        let bundle = Arc::new(chain.current().clone());
        for (_, bytes) in store.entries(Table::Revocations)? {
            let list: SignedRevocationList = stored("revocation list", &bytes)?;
            if let Err(error) = self.revocations.apply(list, &bundle) {
                tracing::warn!(%error, "a stored revocation list is left out");
            }
        }
        for (_, bytes) in store.entries(Table::Policy)? {
            let policy: SignedPolicy = stored("policy", &bytes)?;
            if let Err(error) = self.policy.keep(policy, id) {
                tracing::warn!(%error, "a stored policy is left out");
            }
        }
        if let Some(signed) = membership::admission(store)? {
            match AdmissionKeys::kept(signed, &bundle, &self.revocations) {
                Ok(keys) => self.admission = Some(keys),
                Err(error) => tracing::warn!(%error, "the stored admission document is left out"),
            }
        }
        self.network = Some(Network::new(chain));
        let mut ended = vec![];
        for (_, bytes) in store.entries(Table::Directory)? {
            let record: SignedRecord = stored("record", &bytes)?;
            let Some(network) = &self.network else { break };
            let judge =
                directory::Judge { network: id, bundle: &network.bundle, revoked: &self.revocations, now: now.wall };
            match self.directory.accept(record, judge) {
                Ok(_) => {}
                Err(RecordError::Expired { .. } | RecordError::Statement(StatementError::Expired(_))) => {
                    ended.push(bytes)
                }
                Err(error) => tracing::debug!(%error, "a stored record is left out"),
            }
        }
        // Whoever was away for weeks knows nobody's record that still holds; where the others were is all it has.
        for bytes in ended {
            let record: SignedRecord = stored("record", &bytes)?;
            let record: Record = codec::decode(&record.body, directory::BODY_LEN_MAX)
                .map_err(|error| LoadError::Decode { what: "record", error })?;
            self.remember_address(record.node, record.endpoints, now);
        }
        let own = self.membership.as_ref().and_then(|membership| self.directory.entry(membership.node));
        self.own_sequence = own.map_or(0, |entry| entry.record.sequence);
        Ok(())
    }

    /// A member said something.
    pub(super) fn member_said(&mut self, link: LinkId, alpn: Alpn, message: Message, links: &mut dyn Links, now: Now) {
        // Who joins, or has only an expired certificate, may speak with an issuer and no more.
        if alpn == Alpn::Join && !matches!(message, Message::Issuer(_)) {
            return self.misspoke(link, links, now);
        }
        if self.is_time_only(link) && super::clocks::needs_time(&message) {
            return self.counters.count("clock_refused");
        }
        match message {
            Message::Hello(hello) => self.heard_hello(link, hello, links, now),
            Message::Ask(ask) => self.asked(link, ask, links),
            Message::Bundles(bundles) => self.heard_bundles(Some(link), bundles, links, now),
            Message::Revocations(lists) => {
                self.heard_lists(Some(link), lists, links, now);
            }
            Message::Policy(policy) => self.heard_policy(Some(link), policy, links, now),
            Message::Admission(signed) => self.heard_admission(Some(link), signed, links, now),
            Message::Records(records) => self.heard_records(link, records, links, now),
            Message::Issuer(call) => self.pass_to_issuer(link, call, links, now),
            Message::IssuerSaid { ticket, reply } => self.issuer_said(link, ticket, *reply, links, now),
            Message::Ping(token) => self.say(link, &Message::Pong(token), links),
            Message::Pong(_) => {
                self.counters.count("pong");
                self.gave_sign(link);
            }
            Message::Contact { index } => self.heard_contact(link, index, links, now),
            Message::Rpc(message) => self.heard_rpc(link, &message, links, now),
            Message::Mail(frame) => self.heard_mail(link, *frame, links, now),
            Message::Peers(peers) => self.heard_peers(link, peers, links, now),
        }
    }

    fn heard_hello(&mut self, link: LinkId, hello: Hello, links: &mut dyn Links, now: Now) {
        if message::spoken(message::VERSION, hello.version).is_none() {
            return self.refuse_version(link, hello.version, links, now);
        }
        if let Some(node) = self.links.get(&link).and_then(|held| held.peer) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.answered();
                peer.unspoken = None;
                peer.features = Some(hello.features);
            }
            self.hello_to_mail(link, node, &hello, now);
            self.heard_time(node, hello.wall, now);
            if self.judge_clock(node, hello.wall, now) {
                self.withdraw_offer(link);
                // What each refused of the other meanwhile shows by what both say to have.
                let hello = self.hello(now);
                self.say(link, &Message::Hello(hello), links);
            }
            self.offer_contact(link, node, links, now);
            self.tell_peers(link, node, links);
        }
        let is_time_only = self.is_time_only(link);
        let Some(network) = &self.network else { return };
        let have_policy = self.policy_version();
        let have_admission = self.admission.as_ref().map_or(0, AdmissionKeys::version);
        let mut asks = vec![];
        if hello.bundle > network.bundle.version {
            asks.push(Ask::Bundles { after: network.bundle.version });
        }
        if hello.revocations != self.revocations.digest() {
            asks.push(Ask::Revocations);
        }
        let is_rival = hello.policy == have_policy && hello.policy_digest != self.policy.digest();
        if !is_time_only && (hello.policy > have_policy || is_rival) {
            // Of two with one number each side sees for itself which is followed.
            asks.push(Ask::Policy { have: have_policy.saturating_sub(u64::from(is_rival)) });
        }
        if !is_time_only && hello.admission > have_admission {
            asks.push(Ask::Admission { have: have_admission });
        }
        if !is_time_only && hello.directory != self.directory.digest() {
            asks.push(Ask::Records { known: self.directory.known() });
        }
        for ask in asks {
            self.say(link, &Message::Ask(ask), links);
        }
    }

    fn asked(&mut self, link: LinkId, ask: Ask, links: &mut dyn Links) {
        let answers: Vec<Message> = match ask {
            Ask::Bundles { after } => {
                let newer =
                    self.network.as_ref().map(|network| network.chain.after(after).to_vec()).unwrap_or_default();
                vec![Message::Bundles(newer)]
            }
            Ask::Revocations => vec![Message::Revocations(self.revocations.lists())],
            Ask::Policy { have } => {
                let newer = self.policy.current_signed().filter(|_| self.policy_version() > have);
                newer.cloned().map(Message::Policy).into_iter().collect()
            }
            Ask::Admission { have } => {
                let newer = self.admission.as_ref().filter(|keys| keys.version() > have);
                newer.map(|keys| Message::Admission(keys.signed().clone())).into_iter().collect()
            }
            Ask::Records { known } => {
                let newer: Vec<SignedRecord> = self.directory.newer_than(&known).cloned().collect();
                newer.chunks(RECORDS_PER_MESSAGE).map(|chunk| Message::Records(chunk.to_vec())).collect()
            }
        };
        for answer in answers {
            self.say(link, &answer, links);
        }
    }

    /// Versions of the bundle, from wherever. One that is refused is counted.
    pub(super) fn heard_bundles(
        &mut self,
        from: Option<LinkId>,
        bundles: Vec<SignedBundle>,
        links: &mut dyn Links,
        now: Now,
    ) {
        if let Err(error) = self.take_bundles(from, bundles, links, now) {
            tracing::warn!(%error, "a version of the trust bundle is refused");
            self.counters.count(error.name());
        }
    }

    /// Takes newer versions of the bundle, each signed by a root of the one before and by its own, up to the first that is not good.
    pub(super) fn take_bundles(
        &mut self,
        from: Option<LinkId>,
        bundles: Vec<SignedBundle>,
        links: &mut dyn Links,
        now: Now,
    ) -> Result<(), BundleError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        let (before, mut batch, mut taken) = (network.bundle.version, Batch::default(), Ok(()));
        let (newest, mut was_old) = (network.chain.versions().last().map(|signed| signed.body.clone()), false);
        for signed in bundles {
            match network.chain.extend(signed.clone()) {
                Ok(Extended::New) => {
                    let version = network.chain.current().version;
                    batch.put(Table::Bundles, version.to_be_bytes(), codec::encode(&signed));
                }
                // The last one tells: whoever was asked for several that another has sent meanwhile ends with the newest.
                Ok(Extended::Known) => was_old = Some(&signed.body) != newest.as_ref(),
                Err(error) => {
                    taken = Err(error);
                    break;
                }
            }
        }
        if network.chain.current().version == before {
            if was_old && taken.is_ok() {
                self.counters.count("bundle_old");
            }
            return taken;
        }
        network.take_newest();
        let news = network.chain.after(before).to_vec();
        for signer in self.revocations.retain(&network.bundle) {
            batch.delete(Table::Revocations, signer.0);
        }
        tracing::info!(version = network.bundle.version, "trust bundle");
        self.store(batch);
        self.judge_admission();
        self.publish_trust(now);
        self.leave_distrusted(links, now);
        // The grace may be another one now.
        self.cut_ended(links, now);
        self.configure();
        self.teach_issuer();
        self.say_to_all(&Message::Bundles(news), from, links);
        taken
    }

    /// Revocation lists, from wherever. Those that are refused are counted.
    pub(super) fn heard_lists(
        &mut self,
        from: Option<LinkId>,
        lists: Vec<SignedRevocationList>,
        links: &mut dyn Links,
        now: Now,
    ) -> ListsHeard {
        let mut heard = ListsHeard::default();
        let Some(network) = &self.network else { return heard };
        let (mut batch, mut news, mut cut) = (Batch::default(), vec![], vec![]);
        for signed in lists {
            match self.revocations.apply(signed.clone(), &network.bundle) {
                Ok(applied) => {
                    heard.added += applied.added.len();
                    cut.extend(applied.added.into_iter().filter_map(|entry| match entry.what {
                        Revoked::Node(node) => Some(node),
                        Revoked::Issuer(_) | Revoked::Invite(_) => None,
                    }));
                    let signer = signed.head.signer;
                    if let Some(whole) = self.revocations.list(signer, 0) {
                        batch.put(Table::Revocations, signer.0, codec::encode(&whole));
                    }
                    news.push(signed);
                }
                // What everybody tells everybody is known most of the time.
                Err(RevocationError::Old { have, found }) if have == found => {}
                Err(error) => {
                    if !matches!(error, RevocationError::Old { .. }) {
                        tracing::warn!(%error, "a revocation list is refused");
                    }
                    self.counters.count(error.name());
                    heard.refused = Some(error);
                }
            }
        }
        heard.is_news = !news.is_empty();
        if !heard.is_news {
            return heard;
        }
        self.store(batch);
        self.judge_admission();
        self.publish_trust(now);
        if from.is_some() {
            // Our issuer would renew whom another one has revoked.
            self.tell_issuer(news.clone(), None);
        }
        // Before links are cut. Who is revoked does not hear it: a link that ends takes along what was said on it last.
        self.say_to_all(&Message::Revocations(news), from, links);
        self.leave_distrusted(links, now);
        // Also those of whom nothing is held but a place in the DHT, or messages from when there was more.
        for node in cut {
            self.part_contact(node);
            self.discovery_revoked(node, now);
            self.forget_mail(node, now);
        }
        self.publish_lists(now);
        heard
    }

    /// Parts from everyone whom the documents do not carry any more.
    fn leave_distrusted(&mut self, links: &mut dyn Links, now: Now) {
        let revoked: Vec<NodeId> = self
            .peers
            .keys()
            .copied()
            .chain(self.directory.entries().map(|entry| entry.record.node))
            .filter(|node| self.revocations.is_node_revoked(*node))
            .collect();
        for node in revoked {
            if self.peers.contains_key(&node) || self.directory.entry(node).is_some() {
                self.counters.count("member_revoked");
                self.part(node, Code::Revoked, "revoked", links, now);
            }
        }
        let Some(network) = &self.network else { return };
        let by_issuer: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.member.as_ref().is_some_and(|member| {
                    self.revocations.is_issuer_revoked(member.issuer)
                        || network.bundle.revoked_issuers.contains(&member.issuer)
                })
            })
            .map(|(node, _)| *node)
            .collect();
        for node in by_issuer {
            self.counters.count("member_of_revoked_issuer");
            self.part(node, Code::NotMember, "its issuer is revoked", links, now);
        }
    }

    /// The seed that holds may be of an issuer that is one no more.
    fn judge_admission(&mut self) {
        if let (Some(keys), Some(network)) = (&mut self.admission, &self.network) {
            keys.judge(&network.bundle, &self.revocations);
        }
    }

    /// An admission document, from wherever.
    pub(super) fn heard_admission(
        &mut self,
        from: Option<LinkId>,
        signed: SignedAdmission,
        links: &mut dyn Links,
        now: Now,
    ) {
        let Some(network) = &self.network else { return };
        let taken = match &mut self.admission {
            Some(keys) => keys.apply(signed.clone(), &network.bundle, &self.revocations),
            None => AdmissionKeys::new(signed.clone(), &network.bundle, &self.revocations).map(|keys| {
                self.admission = Some(keys);
                true
            }),
        };
        match taken {
            Ok(true) => {}
            Ok(false) => return,
            Err(old @ AdmissionError::Old { .. }) => return self.counters.count(old.name()),
            Err(error) => {
                tracing::warn!(%error, "an admission document is refused");
                return self.counters.count(error.name());
            }
        }
        let mut batch = Batch::default();
        membership::put_admission(&mut batch, &signed);
        self.store(batch);
        self.publish_admission(links, now);
        if from.is_some() {
            self.tell_issuer(vec![], Some(signed.clone()));
        }
        self.say_to_all(&Message::Admission(signed), from, links);
    }

    fn heard_records(&mut self, link: LinkId, records: Vec<SignedRecord>, links: &mut dyn Links, now: Now) {
        if records.len() > RECORDS_PER_MESSAGE {
            return self.misspoke(link, links, now);
        }
        let news: Vec<SignedRecord> =
            records.into_iter().filter(|record| self.heard_record(record.clone(), now)).collect();
        for record in &news {
            let node = record.statement.peek().map(|statement| statement.node);
            let entry = node.ok().and_then(|node| self.directory.entry(node));
            if let Some((node, endpoints)) = entry.map(|entry| (entry.record.node, entry.record.endpoints.clone())) {
                self.give_up_elsewhere(node, &endpoints, links);
            }
        }
        if !news.is_empty() {
            self.say_to_all(&Message::Records(news), Some(link), links);
        }
    }

    /// Whether routes and policy know the member of a record by just what its statement says.
    fn is_as_before(&self, record: &SignedRecord) -> bool {
        let Ok(statement) = record.statement.peek() else { return false };
        self.directory.entry(statement.node).is_some_and(|known| {
            let known = &known.statement;
            known.name == statement.name && known.prefixes == statement.prefixes && known.groups == statement.groups
        })
    }

    /// Takes a record; `true` when it is news.
    pub(super) fn heard_record(&mut self, record: SignedRecord, now: Now) -> bool {
        let Some(network) = &self.network else { return false };
        let judge = directory::Judge {
            network: network.id,
            bundle: &network.bundle,
            revoked: &self.revocations,
            now: now.wall,
        };
        let bytes = codec::encode(&record);
        let is_as_before = self.is_as_before(&record);
        let node = match self.directory.accept(record, judge) {
            Ok(Some(node)) => node,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(%error, "a record is refused");
                self.counters.count(error.name());
                return false;
            }
        };
        let mut batch = Batch::default();
        batch.put(Table::Directory, node.0, bytes);
        self.store(batch);
        // Where somebody is and how long its certificate lasts is nothing to routes and rules. A network that moves says both of everybody at once.
        self.are_routes_dirty |= !is_as_before;
        self.is_policy_dirty |= !is_as_before;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.next_endpoint = 0;
            peer.begins_anew();
            // What others told of it is older than what it says itself.
            peer.told_endpoints.clear();
        }
        self.meet(node, now);
        true
    }

    /// A member whose record has ended is forgotten, but where it was.
    pub(super) fn keep_address(&mut self, ended: &directory::Entry, now: Now) {
        let node = ended.record.node;
        if self.remember_address(node, ended.record.endpoints.clone(), now) {
            let mut batch = Batch::default();
            batch.put(Table::Directory, node.0, codec::encode(&ended.signed));
            self.store(batch);
        }
    }

    /// Keeps in mind where some members were whose records do not hold any more.
    fn remember_address(&mut self, node: NodeId, endpoints: Vec<SocketAddr>, now: Now) -> bool {
        let is_told = |(node, peer): &(&NodeId, &super::Peer)| {
            !peer.told_endpoints.is_empty() && self.directory.entry(**node).is_none()
        };
        let told = self.peers.iter().filter(is_told).count();
        if told >= TOLD_MAX || Some(node) == self.id() || self.revocations.is_node_revoked(node) {
            return false;
        }
        self.peer(node).told_endpoints = endpoints;
        self.meet(node, now);
        true
    }

    /// Says anew of ourselves what is true now, unless that is known: a network hears of every record, so one is not signed for nothing.
    pub(super) fn renew_record(&mut self, now: Now) {
        let endpoints = self.own_endpoints();
        let Some(membership) = &self.membership else { return };
        let known = self.directory.entry(membership.node);
        let holds = known.and_then(|known| {
            let workers = self.plane.as_ref().map_or(known.record.workers, |plane| plane.welcome.workers);
            let is_same = known.record.endpoints == endpoints
                && known.record.workers == workers
                && known.signed.statement == membership.statement;
            let left = known.record.not_after.since(now.wall);
            left.checked_sub(LIFETIME - RECORD_REFRESH).filter(|_| is_same)
        });
        match holds {
            Some(holds) => self.timers.set(Timer::Record, now.mono + holds),
            None => self.sign_record(now),
        }
    }

    /// Says anew of ourselves what is true now.
    pub(super) fn sign_record(&mut self, now: Now) {
        // A number from days ahead is one that others refuse, and so are all that come after it.
        if self.clock.is_doubted() {
            return self.timers.set(Timer::Record, now.mono + super::UPKEEP_INTERVAL);
        }
        let endpoints = self.own_endpoints();
        let workers = self.plane.as_ref().map_or(0, |plane| plane.welcome.workers);
        let Some(membership) = &self.membership else { return };
        self.own_sequence = now.wall.0.max(self.own_sequence + 1);
        let record = Record {
            node: membership.node,
            sequence: self.own_sequence,
            not_after: now.wall.plus(LIFETIME),
            endpoints,
            workers,
        };
        let signed = SignedRecord::sign(&record, membership.statement.clone(), &membership.identity);
        self.timers.set(Timer::Record, now.mono + RECORD_REFRESH);
        if self.heard_record(signed.clone(), now) {
            self.own_record = Some(signed);
        }
        self.publish_own(now);
    }

    /// Passes our own record on when it is new. Apart from signing, which has no links at hand.
    pub(super) fn tell_record(&mut self, links: &mut dyn Links) {
        if let Some(record) = self.own_record.take() {
            self.say_to_all(&Message::Records(vec![record]), None, links);
        }
    }

    pub(super) fn own_endpoints(&self) -> Vec<SocketAddr> {
        let mut endpoints = self.settings.endpoints.clone();
        endpoints.truncate(ENDPOINTS_MAX);
        endpoints
    }

    /// Gives the keys of admission tags to those who make and check them.
    pub(super) fn publish_admission(&mut self, links: &mut dyn Links, now: Now) {
        let Some(keys) = &self.admission else { return };
        links.set_admission(&keys.today(now.wall));
        // Newest first, and no more than the packet plane takes: those of the seed before go first.
        let accepted =
            keys.accepted(now.wall).into_iter().take(KEYS_MAX).map(|day| AdmissionKey::new(*day.key)).collect();
        let skew = self.clock.ahead_secs();
        self.send_admission(accepted, skew);
    }

    /// The addresses and prefixes that the packet plane must be configured with.
    pub(super) fn configure(&mut self) {
        let (Some(membership), Some(network)) = (&self.membership, &self.network) else { return };
        let own = Prefix::host(membership.address().into());
        // What issuers give out, not what was given: the packet plane need not be told anew with every member.
        let given = network.bundle.slices.iter().flat_map(|slice| slice.prefixes.iter().copied());
        let mut prefixes: Vec<Prefix> = std::iter::once(overlay_network(network.id)).chain(given).collect();
        prefixes.sort();
        prefixes.dedup();
        self.outputs.push_back(super::Output::Configure { addresses: vec![own], prefixes });
    }
}
