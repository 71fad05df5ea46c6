//! All links of a node, and the way in and out of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{
    ConnectError, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, Incoming, Transmit as QuicTransmit,
    TransportConfig,
};
use zeroize::Zeroizing;

use super::cid::{AdmissionKey, Cids};
use super::config::{self, Clock, LeafIdentity, Providers};
use super::crypto::SERVER_NAME;
use super::frame::MESSAGE_LEN_MAX;
use super::limits::{Counters, Limits};
use super::link::{Link, LinkStats, Phase, Shared};
use super::verifier::Judge;
use super::{Alpn, CloseReason, Event, LinkId, Side, Transmit};
use crate::pki::id::NodeId;
use crate::pki::trust::SharedTrust;
use crate::random::Random;
use crate::time::Now;

/// Answers that belong to no link and wait to be sent, at most. More than a batch of received datagrams can cause.
const ANSWERS_MAX: usize = 256;
/// Names that are tried for a datagram that may be a stateless reset, at most.
const NAMES_TRIED_MAX: usize = 8;

/// What a driver is made with.
#[derive(Clone)]
pub struct Config {
    /// Our certificate and its key; without it nothing is accepted, and only [`Alpn::Join`] can be dialled.
    pub identity: Option<LeafIdentity>,
    /// Our id and what peers are judged by; without it the same.
    pub membership: Option<(NodeId, SharedTrust)>,
    /// Keys of resets and Retry tokens come from it. It is to outlive restarts and to be known to nobody else.
    pub key: Zeroizing<[u8; 32]>,
    /// Whether a dialling side may agree on X25519Kyber768Draft00. No effect without the feature `legacy-kyber`.
    pub accept_legacy_kyber: bool,
    /// How much there may be.
    pub limits: Limits,
}

/// How the one that answers a dial proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By a chain that the network's trust accepts.
    Chain,
    /// By the id alone, which a stranger can copy: for a joiner, who has no trust bundle yet. Whoever dials so judges the chain of
    /// [`Event::Connected`] once there is a bundle, and before then sends nothing that a stranger could use.
    IdOnly,
    /// By nothing yet: for a joiner that was told where a member is and not which. All that is said of [`Proof::IdOnly`] holds.
    Later,
}

/// Whom to dial, and how.
#[derive(Clone, Debug)]
pub struct DialTarget {
    /// The node that is to answer; none for whichever member does, which its chain alone proves.
    pub node: Option<NodeId>,
    /// How it proves itself.
    pub proof: Proof,
    /// The admission key to use instead of the network's: an invitation's.
    pub admission: Option<AdmissionKey>,
    /// Offer X25519Kyber768Draft00 and nothing else.
    pub legacy_kyber: bool,
}

impl DialTarget {
    /// A member, proved by its chain.
    pub const fn member(node: NodeId) -> Self {
        Self { node: Some(node), proof: Proof::Chain, admission: None, legacy_kyber: false }
    }

    /// Whichever member answers. Whom an admission tag would be for is not known, so there is none.
    pub const fn any_member() -> Self {
        Self { node: None, proof: Proof::Chain, admission: None, legacy_kyber: false }
    }
}

/// Why nobody was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Members are dialled by members.
    #[error("there is no certificate of our own yet: join the network first")]
    NoIdentity,
    /// No trust bundle, and a proof by chain wanted.
    #[error("there is no trust bundle yet to judge a chain by")]
    NoTrust,
    /// Links are used up.
    #[error("there are {0} links already, the most that may be")]
    TooMany(usize),
    /// The address is none to send to.
    #[error("{0} is no address to dial")]
    Address(SocketAddr),
    /// The feature is not built in.
    #[error("X25519Kyber768Draft00 is not built in: build with the feature legacy-kyber")]
    NoLegacyKyber,
    /// A proof by an id, and no id.
    #[error("no id is named that could be proved")]
    NoId,
    /// quinn-proto has another reason.
    #[error("the connection library cannot dial now")]
    Endpoint,
}

/// Why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No such link, or it ended.
    #[error("the link is closed")]
    Closed,
    /// Its handshake has not come that far.
    #[error("the link is not connected yet")]
    NotYet,
    /// Longer than [`MESSAGE_LEN_MAX`].
    #[error("a message of {0} bytes; {MESSAGE_LEN_MAX} are the most")]
    TooLong(usize),
    /// As much waits as may: the peer takes less than it is sent.
    #[error("{0} bytes wait to be sent already; try again when some are gone")]
    Full(usize),
}

/// Why there is no exported key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// No such link, or it ended.
    #[error("the link is closed")]
    Closed,
    /// The peer is not verified yet.
    #[error("the link is not connected yet")]
    NotYet,
    /// TLS refused.
    #[error("TLS exports no key")]
    Tls,
}

/// All links of a node.
pub struct Driver {
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    /// The same for key exchanges that begin here.
    brief: Arc<TransportConfig>,
    providers: Providers,
    clock: Clock,
    cids: Cids,
    key: Zeroizing<[u8; 32]>,
    identity: Option<LeafIdentity>,
    membership: Option<(NodeId, SharedTrust)>,
    links: HashMap<LinkId, Box<Link>>,
    handles: HashMap<ConnectionHandle, LinkId>,
    /// Links that are reached elsewhere than by their names.
    moved: BTreeMap<SocketAddr, BTreeSet<LinkId>>,
    next: u64,
    shared: Shared,
    deadlines: BTreeSet<(Instant, LinkId)>,
    /// Links to look at, and links that may have datagrams; each of them at most once.
    dirty: VecDeque<LinkId>,
    ready: VecDeque<LinkId>,
    answers: VecDeque<(Transmit, Vec<u8>)>,
    latest: Option<Instant>,
}

impl Driver {
    /// Nobody's links.
    pub fn new(config: Config, random: &mut impl Random) -> Self {
        let Config { identity, membership, key, accept_legacy_kyber, limits } = config;
        let cids = Cids::new(membership.as_ref().map(|(node, _)| *node), random);
        let endpoint = Endpoint::new(config::endpoint(&key, &cids, random.array()), None, true, None);
        let shared = Shared {
            events: VecDeque::new(),
            counters: Counters::default(),
            limits,
            unread: 0,
            partial: 0,
            queued: 0,
            unverified: 0,
            paused: VecDeque::new(),
        };
        let mut driver = Self {
            endpoint,
            transport: config::transport(false),
            brief: config::transport(true),
            providers: Providers::new(accept_legacy_kyber),
            clock: Clock::default(),
            cids,
            key,
            identity,
            membership,
            links: HashMap::new(),
            handles: HashMap::new(),
            moved: BTreeMap::new(),
            next: 1,
            shared,
            deadlines: BTreeSet::new(),
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            answers: VecDeque::new(),
            latest: None,
        };
        driver.renew_server();
        driver
    }

    /// A renewed certificate: new handshakes use it, links that stand are not touched.
    pub fn set_identity(&mut self, identity: LeafIdentity) {
        self.identity = Some(identity);
        self.renew_server();
    }

    /// We became a member: from now on links are accepted, when there is a certificate too.
    pub fn set_membership(&mut self, node: NodeId, trust: SharedTrust) {
        self.cids.set_node(node);
        self.membership = Some((node, trust));
        self.renew_server();
    }

    /// The admission key of the day, for ids that are made from now on.
    pub fn set_admission(&mut self, key: Option<AdmissionKey>) {
        self.cids.set_admission(key);
    }

    fn renew_server(&mut self) {
        let server = match (&self.identity, &self.membership) {
            (Some(identity), Some((_, trust))) => {
                Some(config::server(&self.key, &self.transport, &self.providers, &self.clock, trust, identity))
            }
            (None, _) | (_, None) => None,
        };
        self.endpoint.set_server_config(server);
    }

    /// Begins a link.
    ///
    /// # Errors
    /// [`DialError`]; what fails later is told by [`Event::Closed`].
    pub fn dial(&mut self, alpn: Alpn, target: &DialTarget, remote: SocketAddr, now: Now) -> Result<LinkId, DialError> {
        self.tick(now);
        let identity = match alpn {
            Alpn::Member | Alpn::Key => Some(self.identity.clone().ok_or(DialError::NoIdentity)?),
            // A request to join or to renew proves itself.
            Alpn::Join => None,
        };
        let judge = match (target.proof, &self.membership) {
            (Proof::Chain, Some((_, trust))) => Judge::Chain { trust: SharedTrust::clone(trust), dialled: target.node },
            (Proof::Chain, None) => return Err(DialError::NoTrust),
            (Proof::IdOnly, _) => Judge::IdOnly { dialled: target.node.ok_or(DialError::NoId)? },
            (Proof::Later, _) => Judge::Later,
        };
        if self.links.len() >= self.shared.limits.links_max {
            return Err(DialError::TooMany(self.links.len()));
        }
        let legacy = target.legacy_kyber;
        let transport = if alpn == Alpn::Key { &self.brief } else { &self.transport };
        let client = config::client(transport, &self.providers, &self.clock, judge, identity, alpn, legacy);
        let mut client = client.ok_or(DialError::NoLegacyKyber)?;
        let cid = self.cids.for_peer(target.node, target.admission.as_ref());
        client.initial_dst_cid_provider(Arc::new(move || cid));
        let id = LinkId(self.next);
        self.cids.set_owner(Some(id));
        let connected = self.endpoint.connect(now.mono, client, remote, SERVER_NAME);
        self.cids.set_owner(None);
        let made = connected.map_err(|error| match error {
            ConnectError::InvalidRemoteAddress(address) => DialError::Address(address),
            ConnectError::EndpointStopping
            | ConnectError::CidsExhausted
            | ConnectError::InvalidServerName(_)
            | ConnectError::NoDefaultClientConfig
            | ConnectError::UnsupportedVersion => DialError::Endpoint,
        })?;
        self.shared.counters.dialled += 1;
        self.insert(id, made, Side::Dialled, remote, now.mono);
        Ok(id)
    }

    fn insert(
        &mut self,
        id: LinkId,
        made: (ConnectionHandle, quinn_proto::Connection),
        side: Side,
        remote: SocketAddr,
        now: Instant,
    ) {
        self.next = id.0 + 1;
        self.handles.insert(made.0, id);
        self.links.insert(id, Box::new(Link::new(id, made, side, remote, now, &mut self.shared)));
        self.touch(id);
    }

    /// Queues a message: on an accepted link from [`Event::Opening`] on, on a dialled one from [`Event::Connected`] on.
    ///
    /// # Errors
    /// [`SendError`]; the message is not queued then.
    pub fn send(&mut self, link: LinkId, message: &[u8]) -> Result<(), SendError> {
        let found = self.links.get_mut(&link).filter(|link| link.is_open()).ok_or(SendError::Closed)?;
        if !found.may_speak() {
            return Err(SendError::NotYet);
        }
        if message.len() > MESSAGE_LEN_MAX {
            return Err(SendError::TooLong(message.len()));
        }
        let (limits, all) = (&self.shared.limits, self.shared.queued);
        let over = |queued: usize, max: usize| queued + message.len() > max;
        if over(found.queued(), limits.queued_link_max) || over(all, limits.queued_total_max) {
            self.shared.counters.messages_refused += 1;
            return Err(SendError::Full(found.queued()));
        }
        found.enqueue(message, &mut self.shared);
        self.touch(link);
        Ok(())
    }

    /// Exports a key from the handshake (RFC 8446 §7.5), once the peer is verified. The exporter covers neither the client's certificate
    /// nor key updates: it is the verification before it that makes it the peer's.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, link: LinkId, label: &[u8], context: &[u8]) -> Result<Zeroizing<[u8; 32]>, ExportError> {
        let link = self.links.get(&link).ok_or(ExportError::Closed)?;
        match link.phase {
            Phase::Closed => return Err(ExportError::Closed),
            Phase::Handshake | Phase::Opening => return Err(ExportError::NotYet),
            Phase::Connected => {}
        }
        let mut key = Zeroizing::new([0; 32]);
        let exported = link.conn.crypto_session().export_keying_material(&mut key[..], label, context);
        exported.map(|()| key).map_err(|_| ExportError::Tls)
    }

    /// Ends a link; what waits to be sent is lost. The peer is told `code` and `words`.
    pub fn close(&mut self, link: LinkId, code: u32, words: &str, now: Now) {
        self.tick(now);
        if let Some(found) = self.links.get_mut(&link) {
            found.close(now.mono, code, words.as_bytes(), CloseReason::Local { code }, &mut self.shared);
            self.touch(link);
        }
    }

    /// Where a link's datagrams go; `None` when it ended.
    pub fn remote(&self, link: LinkId) -> Option<SocketAddr> {
        self.open(link).map(|link| link.path)
    }

    /// The peer is reached elsewhere now, which somebody has proved: its datagrams go there, and what was measured is measured anew.
    pub fn path_changed(&mut self, link: LinkId, remote: SocketAddr, now: Now) {
        self.tick(now);
        let Some(found) = self.links.get_mut(&link).filter(|link| link.is_open() && link.path != remote) else {
            return;
        };
        found.conn.path_changed(now.mono);
        let (name, old) = (found.name, std::mem::replace(&mut found.path, remote));
        self.forget_path(link, old);
        if remote != name {
            self.moved.entry(remote).or_default().insert(link);
        }
        self.touch(link);
    }

    fn forget_path(&mut self, link: LinkId, path: SocketAddr) {
        if let Some(links) = self.moved.get_mut(&path) {
            links.remove(&link);
            if links.is_empty() {
                self.moved.remove(&path);
            }
        }
    }

    /// Has a connected link say something every so often, so that neither side nor a translator on the way forgets it.
    pub fn set_keep_alive(&mut self, link: LinkId, every: Option<Duration>, now: Now) {
        self.tick(now);
        if let Some(found) = self.links.get_mut(&link) {
            found.set_keep_alive(every, now.mono);
            self.touch(link);
        }
    }

    /// Figures of a link.
    pub fn stats(&self, link: LinkId) -> Option<LinkStats> {
        self.open(link).map(Link::stats)
    }

    fn open(&self, link: LinkId) -> Option<&Link> {
        self.links.get(&link).map(|link| &**link).filter(|link| link.is_open())
    }

    /// Links, those that are closing included.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// A datagram came in: from where, to which address of ours, with which congestion bits.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<u8>,
        data: &[u8],
    ) {
        self.tick(now);
        self.shared.counters.datagrams_in += 1;
        let ecn = ecn.and_then(EcnCodepoint::from_bits);
        let mut answer = None;
        for name in self.names(from, data) {
            let mut bytes = Vec::new();
            match self.endpoint.handle(now.mono, name, local_ip, ecn, data.into(), &mut bytes) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    let link = self.handles.get(&handle).copied();
                    if let Some((id, link)) = link.and_then(|id| Some((id, self.links.get_mut(&id)?))) {
                        link.conn.handle_event(event);
                        self.touch(id);
                    }
                    return;
                }
                Some(DatagramEvent::NewConnection(incoming)) => return self.incoming(now, incoming),
                Some(DatagramEvent::Response(transmit)) => answer = Some((transmit, bytes)),
                None => {}
            }
        }
        self.shared.counters.datagrams_ignored += 1;
        if let Some((transmit, bytes)) = answer {
            self.answer(QuicTransmit { destination: from, ..transmit }, bytes);
        }
    }

    /// By which names the sender of a datagram may be known: its link's; or its address, or, when it may be a stateless reset, which names
    /// no link, those of the links that are reached there.
    fn names(&self, from: SocketAddr, data: &[u8]) -> Vec<SocketAddr> {
        let (cid, is_short) = match destination(data) {
            Some(found) => found,
            None => return vec![from],
        };
        if let Some(name) = self.cids.owner_of(cid).and_then(|low| self.link_of(low)).map(|link| link.name) {
            return vec![name];
        }
        let mut names = Vec::new();
        if is_short {
            let moved = self.moved.get(&from).into_iter().flatten().filter_map(|id| self.links.get(id));
            for link in moved {
                if names.len() < NAMES_TRIED_MAX && !names.contains(&link.name) {
                    names.push(link.name);
                }
            }
        }
        names.push(from);
        names
    }

    /// The youngest link with these low bits.
    fn link_of(&self, low: u32) -> Option<&Link> {
        let newest = self.next.saturating_sub(1);
        let same_era = newest & !u64::from(u32::MAX) | u64::from(low);
        let id = if same_era <= newest { same_era } else { same_era.checked_sub(1 << 32)? };
        self.links.get(&LinkId(id)).map(|link| &**link)
    }

    fn incoming(&mut self, now: Now, incoming: Incoming) {
        let (limits, unverified) = (self.shared.limits, self.shared.unverified);
        let pressed = unverified >= limits.retry_from;
        let mut bytes = Vec::new();
        if unverified >= limits.unverified_max || self.shared.events.len() >= limits.events_max {
            self.shared.counters.saturated += 1;
            return self.endpoint.ignore(incoming);
        }
        if pressed && !incoming.remote_address_validated() {
            return match self.endpoint.retry(incoming, &mut bytes) {
                Ok(transmit) => {
                    self.shared.counters.retries += 1;
                    self.answer(transmit, bytes);
                }
                // Only an address that proved itself already may not be told to.
                Err(error) => self.endpoint.ignore(error.into_incoming()),
            };
        }
        if self.links.len() >= limits.links_max {
            self.shared.counters.saturated += 1;
            let transmit = self.endpoint.refuse(incoming, &mut bytes);
            return self.answer(transmit, bytes);
        }
        let (id, remote) = (LinkId(self.next), incoming.remote_address());
        self.cids.set_owner(Some(id));
        let accepted = self.endpoint.accept(incoming, now.mono, &mut bytes, None);
        self.cids.set_owner(None);
        match accepted {
            Ok(made) => {
                self.shared.counters.accepted += 1;
                self.insert(id, made, Side::Accepted, remote, now.mono);
            }
            Err(error) => {
                self.shared.counters.accept_failed += 1;
                if let Some(transmit) = error.response {
                    self.answer(transmit, bytes);
                }
            }
        }
    }

    fn answer(&mut self, transmit: QuicTransmit, bytes: Vec<u8>) {
        if self.answers.len() >= ANSWERS_MAX {
            self.shared.counters.answers_dropped += 1;
            return;
        }
        let to = transmit.destination;
        self.answers.push_back((translated(&transmit, to), bytes));
    }

    /// Does what is due by now.
    pub fn handle_timeout(&mut self, now: Now) {
        self.tick(now);
        // What becomes due while these are done is left for the next call.
        let later = self.deadlines.split_off(&(now.mono + Duration::from_nanos(1), LinkId(0)));
        for (_, id) in std::mem::replace(&mut self.deadlines, later) {
            if let Some(link) = self.links.get_mut(&id) {
                link.deadline = None;
                link.handle_timeout(now.mono, &mut self.shared);
                self.touch(id);
            }
        }
    }

    /// When something is due. Ask after events and datagrams were polled until there were none.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.pump_all();
        let event = self.shared.events.pop_front()?;
        if let Event::Message { link, bytes } = &event {
            self.shared.unread = self.shared.unread.saturating_sub(Link::cost(bytes.len()));
            if let Some(link) = self.links.get_mut(link) {
                link.taken(bytes.len());
            }
            // One at a time, in turn: whoever may still not read on stands in line again. All, when nothing else would wake them.
            while let Some(waiting) = self.shared.paused.pop_front() {
                if let Some(link) = self.links.get_mut(&waiting) {
                    link.unpause();
                }
                self.touch(waiting);
                if self.shared.unread > 0 {
                    break;
                }
            }
        }
        Some(event)
    }

    /// The next datagrams to send, in `buf`.
    pub fn poll_transmit(&mut self, now: Now, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.tick(now);
        buf.clear();
        if let Some((transmit, bytes)) = self.answers.pop_front() {
            buf.extend_from_slice(&bytes);
            self.shared.counters.answers_out += 1;
            self.shared.counters.datagrams_out += 1;
            return Some(transmit);
        }
        self.pump_all();
        while let Some(id) = self.ready.pop_front() {
            let Some(link) = self.links.get_mut(&id) else { continue };
            match link.conn.poll_transmit(now.mono, self.shared.limits.segments_max, buf) {
                Some(transmit) => {
                    // Whoever sent stands at the end of the line.
                    self.ready.push_back(id);
                    let transmit = translated(&transmit, link.path);
                    let segment = transmit.segment_len.unwrap_or(transmit.len).max(1);
                    self.shared.counters.datagrams_out += u64::try_from(transmit.len.div_ceil(segment)).unwrap_or(0);
                    return Some(transmit);
                }
                None => {
                    link.in_ready = false;
                    self.rearm(id);
                }
            }
        }
        None
    }

    fn tick(&mut self, now: Now) {
        self.clock.set(now.wall);
        self.cids.set_time(now.wall);
        self.latest = Some(now.mono);
    }

    /// Something about the link has changed: look at it before the next output.
    fn touch(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id)
            && !std::mem::replace(&mut link.in_dirty, true)
        {
            self.dirty.push_back(id);
        }
    }

    fn pump_all(&mut self) {
        while let Some(id) = self.dirty.pop_front() {
            self.pump(id);
        }
    }

    fn pump(&mut self, id: LinkId) {
        let (Some(link), Some(now)) = (self.links.get_mut(&id), self.latest) else { return };
        link.in_dirty = false;
        let mut drained = false;
        loop {
            link.pump(now, &mut self.shared);
            let Some(event) = link.conn.poll_endpoint_events() else { break };
            drained |= event.is_drained();
            self.cids.set_owner(Some(id));
            if let Some(event) = self.endpoint.handle_event(link.handle, event) {
                link.conn.handle_event(event);
            }
            self.cids.set_owner(None);
        }
        if drained {
            return self.remove(id);
        }
        if !std::mem::replace(&mut link.in_ready, true) {
            self.ready.push_back(id);
        }
        self.rearm(id);
    }

    fn rearm(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let next = link.next_deadline();
        if next == link.deadline {
            return;
        }
        if let Some(old) = link.deadline {
            self.deadlines.remove(&(old, id));
        }
        link.deadline = next;
        if let Some(next) = next {
            self.deadlines.insert((next, id));
        }
    }

    fn remove(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.handles.remove(&link.handle);
        if let Some(deadline) = link.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.forget_path(id, link.path);
    }
}

/// The destination connection id of a datagram's first packet, and whether that packet has a short header (RFC 8999 §5).
fn destination(data: &[u8]) -> Option<(&[u8], bool)> {
    let (&first, rest) = data.split_first()?;
    if first & 0x80 == 0 {
        return Some((rest.get(..weir_dataplane::api::admission::CID_LEN)?, true));
    }
    let (&len, rest) = rest.get(4..)?.split_first()?;
    Some((rest.get(..usize::from(len))?, false))
}

fn translated(transmit: &QuicTransmit, to: SocketAddr) -> Transmit {
    Transmit {
        to,
        from_ip: transmit.src_ip,
        ecn: transmit.ecn.map(|ecn| ecn as u8),
        len: transmit.size,
        segment_len: transmit.segment_size,
    }
}
