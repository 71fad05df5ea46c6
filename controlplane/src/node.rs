//! The control plane as one machine: links, the packet plane, an issuer, people and the clock go in; what is to be done comes out.
//!
//! ```text
//!   links (QUIC, or a model of it) ──handle_link──▶ ┌──────────────────────────────┐ ──▶ dial · send · close      through `Links`
//!   packet plane ──────────────────handle_plane───▶ │ documents  bundle, lists, …  │ ──▶ Output::Store            first, always
//!   issuer process ────────────────handle_issuer──▶ │ directory  who there is      │ ──▶ Output::Plane
//!   a person ──────────────────────handle_call────▶ │ peers      link and session  │ ──▶ Output::Issuer
//!   deadlines ─────────────────────handle_timeout─▶ │ calls      what is asked     │ ──▶ Output::Answer
//!                                                   └──────────────────────────────┘
//! ```
//!
//! It knows no socket, no file and no thread, so a simulator runs thousands of them. After each `handle_…`, take [`Node::poll_output`] until
//! there is nothing more, in that order: what must be on disk before it is acted upon comes before it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::{Request, SessionId};

use crate::api::call::Answer;
use crate::api::types::Error as ApiError;
use crate::contact::Contacts;
use crate::dht::Saved;
use crate::dht::record::ServiceValue;
use crate::dns::catalog::Update;
use crate::dns::publish::Entry as Published;
use crate::issuer::Asked;
use crate::mail::{self as messages, Mail};
use crate::membership::{self, Membership, MembershipError};
use crate::pki::admission::AdmissionKeys;
use crate::pki::bundle::{Bundle, Chain};
use crate::pki::clock::NetworkClock;
use crate::pki::dnssec::network::NetworkZones;
use crate::pki::id::{NetworkId, NodeId};
use crate::pki::key::PrivateKey;
use crate::pki::revocation::RevocationSet;
use crate::pki::trust::{SharedTrust, Trust};
use crate::policy::{Compiled, History};
use crate::quic::{CloseReason, Event, LinkId};
use crate::random::Random;
use crate::store::{Batch, Store};
use crate::time::{Now, UnixSecs};
use crate::timer::Timers;

pub mod beacon;
pub mod candidates;
pub mod directory;
pub mod driver_links;
pub mod exchange;
pub mod link;
pub mod message;
pub mod peer;
pub mod plane;
pub mod reach;
pub mod services;

mod calls;
mod clocks;
mod contact;
mod discovery;
mod documents;
mod finding;
mod hearsay;
mod host;
mod issuers;
mod join;
mod knock;
mod leave;
mod lists;
mod lookups;
mod mail;
mod name_calls;
mod names;
mod policies;
mod renew;
mod seek;
mod sessions;
mod status;

use candidates::Candidates;
use directory::Directory;
use documents::LoadError;
use issuers::Issuers;
use join::Joining;
use leave::Leaving;
pub use link::Links;
use peer::Peer;
use plane::PlaneView;
use renew::Renewal;
use sessions::{ExchangeId, Held};

/// Names a call of the local API until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Names a request to the packet plane or to the issuer until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u32);

/// A node's part in the DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A client, and a server as soon as others have shown that they reach it.
    Auto,
    /// It keeps records for others, by its operator's word.
    Server,
    /// It asks and publishes only.
    Client,
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where others may reach us, besides what they observe.
    pub endpoints: Vec<SocketAddr>,
    /// Private addresses of this host: nobody is told but who has a link with us.
    pub local_endpoints: Vec<SocketAddr>,
    /// Longest UDP payload that may be tried on a path.
    pub datagram_len_max: u16,
    /// Largest inner packet that our TUN takes.
    pub inner_mtu: u16,
    /// Seconds without data after which a session is closed; 0 for never.
    pub idle_after_s: u32,
    /// Members with which the draft group X25519Kyber768Draft00 is used, and nothing else, where the bundle allows it.
    pub legacy_kyber: Vec<NodeId>,
    /// Whether an issuer runs beside this node.
    pub has_issuer: bool,
    /// The part in the DHT; none for a node that takes none.
    pub discovery: Option<Part>,
    /// Services that are offered at our overlay address, at most [`services::SERVICES_MAX`].
    pub services: Vec<ServiceValue>,
    /// What our zone has beside our address and services.
    pub names: Vec<Published>,
    /// What this process could still do, and the remedy, where the kernel does not let it give that up.
    pub unconfined: Option<(&'static str, &'static str)>,
    /// When this program was built: it cannot be earlier than that.
    pub build: UnixSecs,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Keep this, before anything that comes after.
    Store(Batch),
    /// Ask the packet plane.
    Plane(Ticket, Request),
    /// Ask the issuer.
    Issuer(Ticket, Asked),
    /// Send a sealed datagram.
    Datagram(SocketAddr, Vec<u8>),
    /// Send one from a port that nothing else is sent from.
    Probe(SocketAddr, Vec<u8>),
    /// Answer a call.
    Answer(CallId, Result<Answer, ApiError>),
    /// We are a member now: from here on links are accepted, judged by this.
    Membership(NodeId, SharedTrust),
    /// The packet plane must be configured anew: these are our addresses, and these the prefixes of the overlay.
    Configure {
        /// Of the TUN.
        addresses: Vec<Prefix>,
        /// What belongs to the overlay and never leaves in clear.
        prefixes: Vec<Prefix>,
    },
    /// Tell whoever answers questions about names.
    Names(Update),
    /// No packet plane is wanted: we are no member any more.
    Unconfigure,
}

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Timer {
    /// Look whether a link to this member is wanted and missing.
    Connect(NodeId),
    /// Make a fresh key exchange with this member.
    Rekey(NodeId),
    /// An exchange has taken too long.
    Exchange(ExchangeId),
    /// The first exchange with a peer may seal.
    FirstData(ExchangeId),
    /// Renew our own certificate.
    Renew,
    /// Sign our own record again.
    Record,
    /// Ask our issuer for the newest list.
    Lists,
    /// Keep the clock, forget who has ended.
    Upkeep,
    /// The certificate of a member that we have to do with is past all grace.
    Ended,
    /// Joining has taken too long.
    Join,
    /// An issuer has taken too long to let us go.
    Leave,
    /// Whoever waits for a link to an issuer has waited enough, or that link has served.
    Issuer,
    /// A dialled address did not answer: try the next.
    Dial(LinkId),
    /// Ask at the next address at which somebody is said to be.
    Knock,
    /// Dial whoever is missing, after this host has changed more often than that is done at once.
    ReachOut,
    /// A link that was asked for a sign of life has given none.
    Sign(LinkId),
    /// Who has shown no certificate has had its time.
    Stranger(LinkId),
    /// Measure the round trip to this member.
    Echo(NodeId),
    /// An echo of a ping is late.
    Ping(CallId),
    /// A link for a contact session has come to nothing, or has served.
    Contact(NodeId),
    /// The DHT has something to do.
    Discover,
    /// What we say in the DHT is to be said anew.
    Say,
    /// Others are to be asked whether they reach us.
    Reach,
    /// Something is due of the messages of applications.
    Mail,
    /// A link that was made for messages may have served.
    MailLink(NodeId),
    /// A call has waited for messages for long enough.
    MailCall(CallId),
    /// Whoever watches look-ups has waited long enough for a change.
    Watcher(CallId),
}

/// What happened so often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<&'static str, u64>);

impl Counters {
    fn count(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// How often.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// The network as we know it. Present once we are a member.
#[derive(Debug)]
struct Network {
    id: NetworkId,
    chain: Chain,
    bundle: Arc<Bundle>,
    /// Those that the bundle's keys sign; none while it names no issuer.
    zones: Option<NetworkZones>,
}

impl Network {
    fn new(chain: Chain) -> Self {
        let (bundle, zones) = newest(&chain);
        Self { id: chain.network(), chain, bundle, zones }
    }

    /// The chain has another version than before.
    fn take_newest(&mut self) {
        (self.bundle, self.zones) = newest(&self.chain);
    }
}

fn newest(chain: &Chain) -> (Arc<Bundle>, Option<NetworkZones>) {
    // A chain takes no bundle of which the zones could not be read.
    let zones = NetworkZones::of(chain.current(), chain.network()).ok().flatten();
    (Arc::new(chain.current().clone()), zones)
}

/// The machine.
pub struct Node<R> {
    settings: Settings,
    /// Whether the issuer beside us is one already: its key may wait for a ceremony.
    is_issuing: bool,
    random: R,
    clock: NetworkClock,
    started: UnixSecs,
    membership: Option<Membership>,
    network: Option<Network>,
    revocations: RevocationSet,
    policy: History,
    compiled: Option<Compiled>,
    admission: Option<AdmissionKeys>,
    directory: Directory,
    own_sequence: u64,
    /// When we say again what we know.
    greet_at: Option<Instant>,
    /// Our own record, signed anew and not passed on yet.
    own_record: Option<directory::SignedRecord>,
    trust: Option<SharedTrust>,
    peers: BTreeMap<NodeId, Peer>,
    /// The peer of each session that there is, or may come to be: the packet plane names sessions.
    by_session: HashMap<SessionId, NodeId>,
    links: BTreeMap<LinkId, link::Link>,
    /// Where somebody says that members are.
    candidates: Candidates,
    /// When those that are missing may be dialled because this host has changed.
    rounds: host::Rounds,
    exchanges: BTreeMap<ExchangeId, Held>,
    next_exchange: u64,
    plane: Option<PlaneView>,
    tickets: BTreeMap<Ticket, plane::Purpose>,
    issuer_tickets: BTreeMap<Ticket, renew::IssuerPurpose>,
    relayed: BTreeMap<(LinkId, u32), renew::Relayed>,
    issuers: Issuers,
    next_ticket: u32,
    joining: Option<Joining>,
    leaving: Option<Leaving>,
    /// Ours before we are a member: an issuer that has granted it already grants it again.
    identity: PrivateKey,
    waiting: calls::Waiting,
    mail: Mail,
    waiting_mail: mail::Waiting,
    renewal: Renewal,
    contacts: Contacts,
    meetings: contact::Meetings,
    reach: reach::Reach,
    lists_due: lists::Due,
    discovery: Option<discovery::Discovery<R>>,
    /// What an earlier life left for it.
    kept_discovery: Saved,
    /// Services of which others may have records.
    told_services: Vec<services::Told>,
    names: names::Names,
    timers: Timers<Timer>,
    outputs: VecDeque<Output>,
    counters: Counters,
    /// What was counted around us, as it was handed in last.
    counted_outside: Vec<(String, u64)>,
    are_routes_dirty: bool,
    is_policy_dirty: bool,
}

/// How often the clock is kept and the directory looked through: rarely beside what it costs, often beside what it guards.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often members tell one another what they know and what time it is, for what was lost on the way and for clocks that jumped. A third
/// of the time that a clock's word counts.
const GREET_INTERVAL: Duration = Duration::from_secs(300);

impl<R: Random> Node<R> {
    /// A node with what its store holds.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn new(
        settings: Settings,
        mut random: R,
        store: &mut impl Store,
        links: &mut dyn Links,
        Now { mono, wall: system }: Now,
    ) -> Result<Self, NodeError> {
        let membership = Membership::load(store, &mut random)?;
        let identity = membership::identity(store, &mut random)?;
        let kept = documents::kept_clock(store)?;
        let own = membership.as_ref().and_then(Membership::not_before).unwrap_or_default();
        let mut clock = NetworkClock::new(mono, system, kept, settings.build, own);
        let now = clock.tick(mono, system);
        let mail = Mail::load(store, now)?;
        let published = settings.names.clone();
        let mut node = Self {
            is_issuing: settings.has_issuer,
            settings,
            random,
            clock,
            started: now.wall,
            membership,
            network: None,
            revocations: RevocationSet::default(),
            policy: History::default(),
            compiled: None,
            admission: None,
            directory: Directory::default(),
            own_sequence: 0,
            greet_at: None,
            own_record: None,
            trust: None,
            peers: BTreeMap::new(),
            by_session: HashMap::new(),
            links: BTreeMap::new(),
            candidates: Candidates::default(),
            rounds: host::Rounds::default(),
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            plane: None,
            tickets: BTreeMap::new(),
            issuer_tickets: BTreeMap::new(),
            relayed: BTreeMap::new(),
            issuers: issuers::kept(store).map_err(LoadError::from)?,
            next_ticket: 0,
            joining: None,
            leaving: None,
            identity,
            waiting: calls::Waiting::default(),
            mail,
            waiting_mail: mail::Waiting::default(),
            renewal: Renewal::default(),
            contacts: Contacts::default(),
            meetings: contact::Meetings::default(),
            reach: reach::Reach::default(),
            lists_due: lists::Due::default(),
            discovery: None,
            kept_discovery: discovery::kept(store).map_err(LoadError::from)?,
            told_services: services::kept(store).map_err(LoadError::from)?,
            names: names::Names::new(published, names::kept(store).map_err(LoadError::from)?),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            counted_outside: vec![],
            are_routes_dirty: false,
            is_policy_dirty: false,
        };
        node.load(store, now)?;
        node.timers.set(Timer::Upkeep, now.mono + UPKEEP_INTERVAL);
        if node.membership.is_some() {
            node.enter(links, now);
        }
        Ok(node)
    }

    /// Begins to be a member: with what the store holds, or after a join.
    fn enter(&mut self, links: &mut dyn Links, now: Now) {
        let Some(membership) = &self.membership else { return };
        links.set_identity(membership);
        self.publish_trust(now);
        if let (Some(node), Some(trust)) = (self.id(), &self.trust) {
            self.outputs.push_back(Output::Membership(node, trust.clone()));
        }
        self.publish_admission(links, now);
        self.configure();
        self.renew_record(now);
        self.schedule_renewal(now);
        if self.settings.has_issuer {
            self.timers.set(Timer::Lists, now.mono);
        }
        let members: Vec<NodeId> = self.directory.entries().map(|entry| entry.record.node).collect();
        for node in members {
            self.meet(node, now);
        }
        self.begin_discovery(now);
        self.search_when_alone(now);
        self.timers.set_at_latest(Timer::Upkeep, now.mono + UPKEEP_INTERVAL);
        (self.are_routes_dirty, self.is_policy_dirty) = (true, true);
        self.settle(links);
    }

    /// Looks at both clocks of the machine.
    pub fn now(&mut self, mono: Instant, system: UnixSecs) -> Now {
        self.clock.tick(mono, system)
    }

    /// Something happened on a link.
    pub fn handle_link(&mut self, event: Event, links: &mut dyn Links, now: Now) {
        match event {
            Event::Opening { link, alpn, remote } => self.link_opening(link, alpn, remote, links, now),
            Event::Connected { link, alpn, side, peer, chain, remote, group, .. } => {
                let peer = peer.map(|member| *member);
                let connected = link::Connected { link, alpn, side, peer, chain, remote, group };
                self.link_connected(connected, links, now);
            }
            Event::Message { link, bytes } => self.link_said(link, &bytes, links, now),
            Event::Closed { link, reason } => {
                if matches!(reason, CloseReason::TimedOut | CloseReason::HandshakeTimedOut) {
                    self.fell_silent(link);
                }
                if matches!(reason, CloseReason::Peer { code, .. } if code == link::Code::Revoked as u32) {
                    self.cut_as_revoked(link);
                }
                self.link_closed(link, &reason.to_string(), links, now);
            }
        }
        self.settle(links);
    }

    /// Datagrams will leave from another port from now on: to QUIC, whose migration is off, every link ends. The other ends are told by the
    /// old one, and dialled anew by the new one.
    pub fn handle_port_change(&mut self, links: &mut dyn Links, now: Now) {
        let open: Vec<LinkId> = self.links.keys().copied().collect();
        for link in open {
            self.fail_link(link, link::Code::Done, "moving to another port", links, now);
        }
        // Answers would go to the old one.
        self.contacts = Contacts::default();
        self.reach_anew(now);
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|node| self.timers.set(Timer::Connect(node), now.mono));
        self.settle(links);
    }

    /// Carries out what is due.
    pub fn handle_timeout(&mut self, links: &mut dyn Links, now: Now) {
        while let Some(timer) = self.timers.pop(now.mono) {
            match timer {
                Timer::Connect(node) => self.connect(node, links, now),
                Timer::Rekey(node) => self.begin_exchange(node, links, now),
                Timer::Exchange(id) => self.exchange_failed(id, exchange::Failure::Timeout, links, now),
                Timer::FirstData(id) => self.exchange_first_data(id, links, now),
                Timer::Renew => self.renewal_due(links, now),
                Timer::Record => self.sign_record(now),
                Timer::Lists => self.ask_own_lists(now),
                Timer::Upkeep => self.upkeep(links, now),
                Timer::Ended => self.cut_ended(links, now),
                Timer::Join => self.join_timed_out(links, now),
                Timer::Leave => self.farewell_over(links, now),
                Timer::Issuer => self.issuer_over(links, now),
                Timer::Dial(link) => self.dial_timed_out(link, links, now),
                Timer::Knock => self.knock(links, now),
                Timer::ReachOut => self.reach_out(now),
                Timer::Sign(link) => self.gave_no_sign(link, links, now),
                Timer::Stranger(link) => self.stranger_timed_out(link, links),
                Timer::Echo(node) => self.measure(node, now),
                Timer::Ping(id) => self.ping_timed_out(id, now),
                Timer::Contact(node) => self.contact_timed_out(node, links),
                Timer::Discover => self.discover(links, now),
                Timer::Say => self.publish_own(now),
                Timer::Reach => self.reach_due(now),
                Timer::Mail => self.mail.handle_timeout(now),
                Timer::MailLink(node) => self.mail_link_over(node, links, now),
                Timer::MailCall(id) => self.mail_call_over(id),
                Timer::Watcher(id) => self.watcher_timed_out(id, now),
            }
        }
        self.settle(links);
    }

    /// When [`Self::handle_timeout`] is wanted next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Our id, once we are a member.
    pub fn id(&self) -> Option<NodeId> {
        self.membership.as_ref().map(|membership| membership.node)
    }

    /// What happened so often.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the loop around this machine has counted since it began, by name: of sockets and links, of which this knows nothing. A status
    /// shows what was handed in last.
    pub fn handle_counted(&mut self, counted: Vec<(String, u64)>) {
        self.counted_outside = counted;
    }

    /// What is known of all members.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Takes over what another node of this process knows of the members, and has verified: so that a simulation need not have each of a
    /// thousand nodes verify the records of all others.
    pub fn adopt(&mut self, directory: Directory, links: &mut dyn Links, now: Now) {
        self.directory.adopt(directory);
        let members: Vec<NodeId> = self.directory.entries().map(|entry| entry.record.node).collect();
        for node in members {
            self.meet(node, now);
        }
        (self.are_routes_dirty, self.is_policy_dirty) = (true, true);
        self.settle(links);
    }

    /// Sends what several changes of one turn add up to.
    fn settle(&mut self, links: &mut dyn Links) {
        self.tell_record(links);
        if std::mem::take(&mut self.are_routes_dirty) {
            self.send_routes();
        }
        if std::mem::take(&mut self.is_policy_dirty) {
            self.send_policy();
            self.rejudge_mail();
        }
        self.settle_mail(links);
    }

    fn store(&mut self, batch: Batch) {
        if !batch.is_empty() {
            self.outputs.push_back(Output::Store(batch));
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        Ticket(self.next_ticket)
    }

    /// Shows the TLS verifiers what is in force now.
    fn publish_trust(&mut self, now: Now) {
        let Some(network) = &self.network else { return };
        let trust = Trust {
            network: network.id,
            bundle: Arc::clone(&network.bundle),
            revoked: Arc::new(self.revocations.clone()),
        };
        match &self.trust {
            Some(shared) => {
                shared.replace(trust);
                shared.set_now(now.wall);
            }
            None => self.trust = Some(SharedTrust::new(trust, now.wall)),
        }
        self.publish_network_zones(now);
    }

    fn upkeep(&mut self, links: &mut dyn Links, now: Now) {
        if let Some(trust) = &self.trust {
            trust.set_now(now.wall);
        }
        self.publish_admission(links, now);
        self.keep_clock();
        self.contacts.expire(now.mono);
        self.save_discovery(now);
        self.look_after_lists(now);
        self.look_whether_renewal_is_due(now);
        self.cut_ended(links, now);
        // A clock that jumped ahead ends everything at once, and those that could set it right with it.
        let ended = if self.clock.is_doubted() { vec![] } else { self.directory.expire(now.wall) };
        for ended in ended {
            let node = ended.record.node;
            self.part(node, link::Code::Ended, "its record ended", links, now);
            self.keep_address(&ended, now);
        }
        if self.greet_at.is_none_or(|at| at <= now.mono) {
            self.greet_at = Some(now.mono + GREET_INTERVAL);
            let hello = self.hello(now);
            self.say_to_all(&message::Message::Hello(hello), None, links);
        }
        self.timers.set(Timer::Upkeep, now.mono + UPKEEP_INTERVAL);
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Who we are.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// What we know.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Messages of applications.
    #[error(transparent)]
    Mail(#[from] messages::LoadError),
}
