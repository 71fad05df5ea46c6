//! Authenticated links without cryptography: what QUIC does for the node, in the time that it takes.
//!
//! ```text
//!  dialling side                                  accepting side
//!   0.0 RTT  dial ───────────────────────────────▶  0.5  Opening: what is sent now rides with the answer
//!   1.0      the certificate of the other is judged, Connected, then its messages
//!                 └────────────────────────────────▶  1.5  the same on this side
//! ```
//!
//! Certificates are judged by the real verifier, with the trust and the clock that each side has at that moment. A message takes half a
//! round trip, keeps its order, and is not lost while its sender keeps the link: one that meets a loss or a cut is late, and a link that hears
//! nothing for thirty seconds ends, as QUIC's does. Whoever closes a link takes back what was said on it in the same moment. Whoever sends to a
//! node that was started again is told so by a reset. Datagrams go to where a side believes the other to be, and what comes from elsewhere is
//! not taken: migration is off. All draws come from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::queue::{Due, Queue};
use super::{Costs, Faults, Site};
use crate::codec;
use crate::membership::Membership;
use crate::node::Links;
use crate::node::message::Message;
use crate::pki::admission::DayKey;
use crate::pki::certificate::read_leaf;
use crate::pki::id::{NodeId, sha256};
use crate::pki::trust::SharedTrust;
use crate::pki::verifier::{Member, VerifyError};
use crate::quic::{
    Alpn, CloseReason, DialError, DialTarget, Event, ExportError, GROUP_X25519KYBER768, GROUP_X25519MLKEM768, LinkId,
    MESSAGE_LEN_MAX, Proof, SendError, Side,
};
use crate::random::{Random, SeededRandom};

/// Bytes that each side sends for one handshake with chains of two certificates, headers and the end of a short link included; and on a link
/// that is kept, for finding out how long datagrams may be. `tests/sim/fidelity.rs` compares them with what QUIC sends.
const DIALLED_LEN: u64 = 7_400;
const ACCEPTED_LEN: u64 = 6_700;
const SEARCH_LEN: u64 = 4_700;
/// Processor time of one handshake, on each side: the design's figure, of which `docs/benchmarks.md` has measurements.
pub(super) const HANDSHAKE_CPU: Duration = Duration::from_micros(150);
/// A handshake is given up then, and a link on which nothing was heard: as in [`crate::quic`].
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How often something is said on a link that must stay up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// First wait before a datagram of a handshake is sent again; doubles (RFC 9002 §6.2).
const PROBE_MIN: Duration = Duration::from_millis(300);
/// How often a message that meets a cut tries again.
const STALLED: Duration = Duration::from_millis(250);
/// Bytes of messages that one end may have under way.
const QUEUED_MAX: usize = 4 << 20;
/// QUIC's and UDP's part of a datagram with one message (RFC 9000 §17.3, RFC 8200 §3).
const OVERHEAD: u64 = 80;
/// Cipher suite TLS_CHACHA20_POLY1305_SHA256, as TLS numbers them.
const SUITE: u16 = 0x1303;
/// First address of the sites, from the block for benchmarks (RFC 2544).
const FIRST_ADDRESS: u32 = 0xc612_0001;
const PORT: u16 = 6500;

/// Where a site is, until it moves.
pub(super) fn address_of(site: Site) -> SocketAddr {
    let number = FIRST_ADDRESS.wrapping_add(u32::try_from(site.0).unwrap_or(u32::MAX));
    SocketAddr::new(Ipv4Addr::from(number).into(), PORT)
}

/// Whether a message tells what members say of themselves, where they are, or revocation lists.
fn is_news(message: &[u8]) -> bool {
    let message = codec::decode::<Message>(message, MESSAGE_LEN_MAX);
    matches!(message, Ok(Message::Records(_) | Message::Revocations(_) | Message::Peers(_)))
}

/// The other end of a link has the same number but for the last bit.
fn other(link: LinkId) -> LinkId {
    LinkId(link.0 ^ 1)
}

/// What happens on a link next.
#[derive(Debug)]
pub(super) enum Step {
    /// The first datagram arrives.
    Initial { dialled: LinkId, attempt: u32 },
    /// The answer arrives, with the certificate of the accepting side.
    Flight { dialled: LinkId, attempt: u32 },
    /// The dialling side's certificate arrives.
    Finished { accepted: LinkId, attempt: u32 },
    /// A message arrives at this end.
    Message { to: LinkId, bytes: Vec<u8>, repeats: bool, said: Duration },
    /// This end hears that the link is over.
    Close { to: LinkId, reason: CloseReason },
    /// The handshake has taken too long.
    GiveUp(LinkId),
    /// Looks whether the other end is still there.
    Alive(LinkId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Handshake,
    Opening,
    Connected,
}

/// One end of a link.
#[derive(Debug)]
struct End {
    site: Site,
    peer: Site,
    remote: SocketAddr,
    alpn: Alpn,
    side: Side,
    phase: Phase,
    target: Option<(Option<NodeId>, Proof)>,
    /// What the dialling side offers, and the other one takes.
    group: u16,
    /// What this side shows.
    chain: Vec<Vec<u8>>,
    began: Duration,
    heard: Duration,
    /// Nothing arrives here before that: messages keep their order.
    not_before: Duration,
    is_kept_alive: bool,
    under_way: usize,
}

/// What the links of a site know of it.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) is_up: bool,
    pub(super) is_asleep: bool,
    pub(super) group: u32,
    /// Where it is, once it has moved.
    pub(super) moved_to: Option<SocketAddr>,
    /// Where it believes to be, once it was told that it has moved.
    pub(super) told: Option<SocketAddr>,
    /// A private address of it, which it tells those that it has links with.
    pub(super) local: Option<SocketAddr>,
    /// It passes no records and no revocation lists on, whosever they are.
    pub(super) withholds_news: bool,
    /// Where it has sent to, when nothing else is let in.
    pub(super) firewall: Option<BTreeSet<SocketAddr>>,
    pub(super) identity: Option<Vec<Vec<u8>>>,
    pub(super) trust: Option<(NodeId, SharedTrust)>,
    pub(super) costs: Costs,
    /// Links that came to nothing or ended, by reason.
    pub(super) ended: BTreeMap<&'static str, u64>,
}

/// A round trip for each pair of sites.
pub(super) type Latency = Box<dyn Fn(Site, Site) -> Duration>;

/// All links of all sites.
pub(super) struct Net {
    pub(super) at: Duration,
    pub(super) queue: Queue,
    pub(super) places: Vec<Place>,
    pub(super) faults: Faults,
    pub(super) latency: Latency,
    /// Pairs between which nothing passes, the lower site first.
    pub(super) severed: BTreeSet<(Site, Site)>,
    /// Datagrams of packet planes that come from another address than they were sent from, by who sends them to whom.
    pub(super) diverted: BTreeMap<(Site, Site), SocketAddr>,
    random: SeededRandom,
    seed: u64,
    ends: BTreeMap<LinkId, End>,
    /// Ends that were closed, until the other one hears of it, with the moment.
    closed: BTreeMap<LinkId, Duration>,
    next: u64,
}

impl Net {
    pub(super) fn new(seed: u64, latency: Latency) -> Self {
        Self {
            at: Duration::ZERO,
            queue: Queue::default(),
            places: vec![],
            faults: Faults::default(),
            latency,
            severed: BTreeSet::new(),
            diverted: BTreeMap::new(),
            random: SeededRandom::new(seed ^ 0x006c_696e_6b73),
            seed,
            ends: BTreeMap::new(),
            closed: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn site_at(&self, address: SocketAddr) -> Option<Site> {
        if let Some(at) = self.places.iter().position(|place| place.local == Some(address)) {
            return Some(Site(at));
        }
        let SocketAddr::V4(v4) = address else { return None };
        let number = u32::from(*v4.ip()).checked_sub(FIRST_ADDRESS)?;
        let site = Site(usize::try_from(number).ok()?);
        (site.0 < self.places.len() && self.address(site) == address).then_some(site)
    }

    /// Where a site is now.
    pub(super) fn address(&self, site: Site) -> SocketAddr {
        self.places[site.0].moved_to.unwrap_or_else(|| address_of(site))
    }

    /// Whether datagrams pass between two sites now.
    pub(super) fn reaches(&self, one: Site, to: Site) -> bool {
        if self.severed.contains(&(one.min(to), one.max(to))) {
            return false;
        }
        let (one, to) = (&self.places[one.0], &self.places[to.0]);
        one.group == to.group && !one.is_asleep && !to.is_asleep
    }

    /// Whether datagrams pass on a link: between its sites, and from each end that there is to where the other one is.
    fn passes(&self, link: LinkId) -> bool {
        [link, other(link)]
            .iter()
            .filter_map(|end| self.ends.get(end))
            .all(|end| self.reaches(end.site, end.peer) && self.site_at(end.remote) == Some(end.peer))
    }

    pub(super) fn rtt(&self, one: Site, to: Site) -> Duration {
        (self.latency)(one, to).max(Duration::from_micros(50))
    }

    pub(super) fn draw(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.unit() <= share
    }

    /// Half a round trip, and a probe timeout more when a datagram is lost.
    fn arrival(&mut self, from: Site, to: Site) -> Duration {
        let rtt = self.rtt(from, to);
        let share = self.faults.loss;
        let late = if self.draw(share) { rtt + Duration::from_millis(25) } else { Duration::ZERO };
        self.at + rtt / 2 + late
    }

    fn schedule(&mut self, at: Duration, step: Step) {
        self.queue.push(at, Due::Link(step));
    }

    /// A site's process is gone, and what it knew of links with it.
    pub(super) fn forget(&mut self, site: Site) {
        self.ends.retain(|_, end| end.site != site);
    }

    /// How many ends of links a site has.
    pub(super) fn open(&self, site: Site) -> usize {
        self.ends.values().filter(|end| end.site == site).count()
    }

    /// Goes one step, and says what a site hears of it.
    pub(super) fn step(&mut self, step: Step) -> Option<(Site, Event)> {
        match step {
            Step::Initial { dialled, attempt } => self.initial(dialled, attempt),
            Step::Flight { dialled, attempt } => self.flight(dialled, attempt),
            Step::Finished { accepted, attempt } => self.finished(accepted, attempt),
            Step::Message { to, bytes, repeats, said } => self.message(to, bytes, repeats, said),
            Step::Close { to, reason } => {
                self.closed.remove(&other(to));
                // Said into a cut, it is not heard; silence ends the link then.
                if !self.passes(to) {
                    return None;
                }
                self.end(to, reason)
            }
            Step::GiveUp(link) => {
                let is_waiting = self.ends.get(&link)?.phase < Phase::Connected;
                if is_waiting { self.end(link, CloseReason::HandshakeTimedOut) } else { None }
            }
            Step::Alive(link) => self.alive(link),
        }
    }

    fn end(&mut self, link: LinkId, reason: CloseReason) -> Option<(Site, Event)> {
        let end = self.ends.remove(&link)?;
        *self.places[end.site.0].ended.entry(reason.name()).or_default() += 1;
        Some((end.site, Event::Closed { link, reason }))
    }

    fn again(&mut self, attempt: u32, step: impl FnOnce(u32) -> Step) {
        let wait = PROBE_MIN * 2u32.pow(attempt.min(5));
        self.schedule(self.at + wait, step(attempt + 1));
    }

    fn initial(&mut self, dialled: LinkId, attempt: u32) -> Option<(Site, Event)> {
        let end = self.ends.get(&dialled)?;
        let (client, server, alpn, group) = (end.site, end.peer, end.alpn, end.group);
        let share = self.faults.loss;
        if !self.passes(dialled) || !self.places[server.0].is_up || self.draw(share) {
            self.again(attempt, |attempt| Step::Initial { dialled, attempt });
            return None;
        }
        let place = &self.places[server.0];
        let (Some(chain), Some(_)) = (place.identity.clone(), &place.trust) else {
            let at = self.arrival(server, client);
            self.schedule(at, Step::Close { to: dialled, reason: CloseReason::PeerSaturated });
            return None;
        };
        let accepted = other(dialled);
        let remote = self.address(client);
        let flight = self.arrival(server, client);
        self.ends.insert(
            accepted,
            End {
                site: server,
                peer: client,
                remote,
                alpn,
                side: Side::Accepted,
                phase: Phase::Opening,
                target: None,
                group,
                chain,
                began: self.at,
                heard: self.at,
                not_before: self.at,
                is_kept_alive: false,
                under_way: 0,
            },
        );
        if let Some(end) = self.ends.get_mut(&dialled) {
            end.not_before = flight;
        }
        self.charge_handshake(server, Side::Accepted);
        self.schedule(flight, Step::Flight { dialled, attempt: 0 });
        self.schedule(self.at + HANDSHAKE_MAX, Step::GiveUp(accepted));
        Some((server, Event::Opening { link: accepted, alpn, remote }))
    }

    fn charge_handshake(&mut self, site: Site, side: Side) {
        let costs = &mut self.places[site.0].costs;
        costs.handshakes += 1;
        costs.bytes += if side == Side::Dialled { DIALLED_LEN } else { ACCEPTED_LEN };
        costs.cpu += HANDSHAKE_CPU;
    }

    fn flight(&mut self, dialled: LinkId, attempt: u32) -> Option<(Site, Event)> {
        let end = self.ends.get(&dialled)?;
        let (client, server, alpn, target) = (end.site, end.peer, end.alpn, end.target);
        if !self.passes(dialled) {
            self.again(attempt, |attempt| Step::Flight { dialled, attempt });
            return None;
        }
        let accepted = other(dialled);
        let chain = self.ends.get(&accepted)?.chain.clone();
        self.charge_handshake(client, Side::Dialled);
        let judged = match target {
            Some((Some(node), Proof::IdOnly)) => judge_id(&chain, node).map(|()| None),
            Some((node, Proof::Chain)) => self.judge(client, &chain, node).map(Some),
            Some((None, Proof::IdOnly) | (_, Proof::Later)) | None => Ok(None),
        };
        let at = self.arrival(client, server);
        let member = match judged {
            Ok(member) => member,
            Err(refused) => {
                self.schedule(at, Step::Close { to: accepted, reason: CloseReason::RefusedByPeer { alert: 42 } });
                return self.end(dialled, CloseReason::Refused(refused));
            }
        };
        self.ends.get_mut(&accepted)?.not_before = at;
        self.schedule(at, Step::Finished { accepted, attempt: 0 });
        Some((client, self.connect(dialled, alpn, member, chain)?))
    }

    fn finished(&mut self, accepted: LinkId, attempt: u32) -> Option<(Site, Event)> {
        let end = self.ends.get(&accepted)?;
        let (server, client, alpn) = (end.site, end.peer, end.alpn);
        if !self.passes(accepted) {
            self.again(attempt, |attempt| Step::Finished { accepted, attempt });
            return None;
        }
        let dialled = other(accepted);
        let Some(shown) = self.ends.get(&dialled) else {
            // The dialling side has closed it meanwhile, or is gone.
            return self.end(accepted, CloseReason::Reset);
        };
        let chain = shown.chain.clone();
        let judged = match alpn {
            Alpn::Join => Ok(None),
            Alpn::Member | Alpn::Key if chain.is_empty() => Err(CloseReason::NoCertificate),
            Alpn::Member | Alpn::Key => self.judge(server, &chain, None).map(Some).map_err(CloseReason::Refused),
        };
        match judged {
            Ok(member) => {
                // Others are over before the search is.
                let is_kept = alpn == Alpn::Member;
                let search = if is_kept { SEARCH_LEN } else { 0 };
                [server, client].into_iter().for_each(|site| self.places[site.0].costs.bytes += search);
                Some((server, self.connect(accepted, alpn, member, chain)?))
            }
            Err(reason) => {
                let at = self.arrival(server, client);
                self.schedule(at, Step::Close { to: dialled, reason: CloseReason::RefusedByPeer { alert: 42 } });
                self.end(accepted, reason)
            }
        }
    }

    fn judge(&self, site: Site, chain: &[Vec<u8>], node: Option<NodeId>) -> Result<Member, VerifyError> {
        let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| der.as_slice().into()).collect();
        match &self.places[site.0].trust {
            Some((_, trust)) => trust.verify(&chain, node),
            None => Err(VerifyError::UnknownIssuer),
        }
    }

    fn connect(&mut self, link: LinkId, alpn: Alpn, peer: Option<Member>, chain: Vec<Vec<u8>>) -> Option<Event> {
        let at = self.at;
        let end = self.ends.get_mut(&link)?;
        (end.phase, end.heard) = (Phase::Connected, at);
        let (side, remote, group, took) = (end.side, end.remote, end.group, at - end.began);
        self.schedule(at + KEEP_ALIVE, Step::Alive(link));
        let (peer, suite) = (peer.map(Box::new), SUITE);
        Some(Event::Connected { link, alpn, side, peer, chain, remote, group, suite, took })
    }

    fn message(&mut self, to: LinkId, bytes: Vec<u8>, repeats: bool, said: Duration) -> Option<(Site, Event)> {
        let from = other(to);
        if self.closed.get(&from) == Some(&said) {
            // It was still waiting to be sent.
            return None;
        }
        let Some(end) = self.ends.get(&to) else {
            // Nobody knows the link there any more.
            self.reset(from);
            return None;
        };
        let site = end.site;
        if !self.passes(to) || end.phase < Phase::Connected {
            // Closed while it was under way, it is lost.
            if self.ends.contains_key(&from) {
                self.schedule(self.at + STALLED, Step::Message { to, bytes, repeats, said });
            }
            return None;
        }
        let at = self.at;
        if let Some(end) = self.ends.get_mut(&from) {
            end.under_way = end.under_way.saturating_sub(bytes.len());
            end.heard = at;
        }
        if let Some(end) = self.ends.get_mut(&to) {
            end.heard = at;
        }
        if repeats {
            self.schedule(at, Step::Message { to, bytes: bytes.clone(), repeats: false, said });
        }
        Some((site, Event::Message { link: to, bytes }))
    }

    /// The end at the other side of nothing is told so.
    fn reset(&mut self, link: LinkId) {
        let Some(end) = self.ends.get(&link) else { return };
        let (site, peer) = (end.site, end.peer);
        if self.passes(link) && self.places[peer.0].is_up {
            let at = self.arrival(peer, site);
            self.schedule(at, Step::Close { to: link, reason: CloseReason::Reset });
        }
    }

    fn alive(&mut self, link: LinkId) -> Option<(Site, Event)> {
        let end = self.ends.get(&link)?;
        let (site, peer, heard) = (end.site, end.peer, end.heard);
        let across = self.ends.get(&other(link));
        let is_kept = end.is_kept_alive || across.is_some_and(|across| across.is_kept_alive);
        let is_there = across.is_some();
        if is_kept && self.passes(link) && self.places[peer.0].is_up {
            if is_there {
                let at = self.at;
                if let Some(end) = self.ends.get_mut(&link) {
                    end.heard = at;
                }
                // What it says itself, and the acknowledgement of what the other end says.
                self.places[site.0].costs.bytes += 2 * OVERHEAD;
            } else {
                self.reset(link);
            }
        } else if self.at.saturating_sub(heard) >= IDLE_MAX {
            return self.end(link, CloseReason::TimedOut);
        }
        self.schedule(self.at + KEEP_ALIVE, Step::Alive(link));
        None
    }
}

fn judge_id(chain: &[Vec<u8>], dialled: NodeId) -> Result<(), VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    let leaf = read_leaf(leaf).map_err(|_| VerifyError::UnknownIssuer)?;
    let found = NodeId::derive(leaf.network, &leaf.identity.0, leaf.nonce);
    if found == dialled { Ok(()) } else { Err(VerifyError::OtherNode { expected: dialled, found }) }
}

/// The links of one site.
pub(super) struct ModelLinks<'a> {
    pub(super) net: &'a mut Net,
    pub(super) site: Site,
}

impl Links for ModelLinks<'_> {
    fn dial(&mut self, alpn: Alpn, target: DialTarget, remote: SocketAddr) -> Result<LinkId, DialError> {
        let Self { net, site } = self;
        let place = &net.places[site.0];
        let chain = match alpn {
            Alpn::Member | Alpn::Key => place.identity.clone().ok_or(DialError::NoIdentity)?,
            Alpn::Join => vec![],
        };
        if target.proof == Proof::Chain && place.trust.is_none() {
            return Err(DialError::NoTrust);
        }
        if target.proof == Proof::IdOnly && target.node.is_none() {
            return Err(DialError::NoId);
        }
        let link = LinkId(net.next);
        net.next += 2;
        let at = net.at;
        // An address that is nobody's takes datagrams and says nothing.
        let found = net.site_at(remote);
        let end = End {
            site: *site,
            peer: found.unwrap_or(*site),
            remote,
            alpn,
            side: Side::Dialled,
            phase: Phase::Handshake,
            target: Some((target.node, target.proof)),
            group: if target.legacy_kyber { GROUP_X25519KYBER768 } else { GROUP_X25519MLKEM768 },
            chain,
            began: at,
            heard: at,
            not_before: at,
            is_kept_alive: false,
            under_way: 0,
        };
        net.ends.insert(link, end);
        if let Some(peer) = found {
            let arrives = at + net.rtt(*site, peer) / 2;
            net.schedule(arrives, Step::Initial { dialled: link, attempt: 0 });
        }
        net.schedule(at + HANDSHAKE_MAX, Step::GiveUp(link));
        Ok(link)
    }

    fn send(&mut self, link: LinkId, message: &[u8]) -> Result<(), SendError> {
        let net = &mut *self.net;
        let end = net.ends.get(&link).filter(|end| end.site == self.site).ok_or(SendError::Closed)?;
        let (site, peer) = (end.site, end.peer);
        match end.phase {
            Phase::Handshake => return Err(SendError::NotYet),
            Phase::Opening | Phase::Connected => {}
        }
        if message.len() > MESSAGE_LEN_MAX {
            return Err(SendError::TooLong(message.len()));
        }
        if end.under_way + message.len() > QUEUED_MAX {
            return Err(SendError::Full(end.under_way));
        }
        // A neighbour that keeps to itself what others say of themselves.
        if net.places[site.0].withholds_news && is_news(message) {
            return Ok(());
        }
        let to = other(link);
        let arrives = net.arrival(site, peer);
        let not_before = net.ends.get(&to).map_or(arrives, |end| end.not_before.max(arrives));
        if let Some(end) = net.ends.get_mut(&to) {
            end.not_before = not_before;
        }
        if let Some(end) = net.ends.get_mut(&link) {
            end.under_way += message.len();
        }
        let costs = &mut net.places[site.0].costs;
        costs.messages += 1;
        costs.bytes += message.len() as u64 + OVERHEAD;
        let share = net.faults.repeat;
        let repeats = net.draw(share);
        net.schedule(not_before, Step::Message { to, bytes: message.to_vec(), repeats, said: net.at });
        Ok(())
    }

    fn export(&mut self, link: LinkId, label: &[u8], context: &[u8]) -> Result<Zeroizing<[u8; 32]>, ExportError> {
        let end = self.net.ends.get(&link).filter(|end| end.site == self.site).ok_or(ExportError::Closed)?;
        if end.phase < Phase::Connected {
            return Err(ExportError::NotYet);
        }
        let (seed, both) = (self.net.seed.to_be_bytes(), (link.0 >> 1).to_be_bytes());
        let len = (label.len() as u64).to_be_bytes();
        Ok(Zeroizing::new(sha256("weir-sim-exporter", &[&seed, &both, &len, label, context])))
    }

    fn close(&mut self, link: LinkId, code: u32, reason: &str) {
        let net = &mut *self.net;
        let Some(end) = net.ends.get(&link).filter(|end| end.site == self.site) else { return };
        let (site, peer) = (end.site, end.peer);
        *net.places[site.0].ended.entry("closed").or_default() += 1;
        net.ends.remove(&link);
        net.closed.insert(link, net.at);
        let to = other(link);
        let arrives = net.arrival(site, peer);
        let at = net.ends.get(&to).map_or(arrives, |end| end.not_before.max(arrives));
        net.schedule(at, Step::Close { to, reason: CloseReason::Peer { code, words: reason.to_owned() } });
    }

    fn remote(&self, link: LinkId) -> Option<SocketAddr> {
        self.net.ends.get(&link).map(|end| end.remote)
    }

    fn moved(&mut self, link: LinkId, to: SocketAddr) {
        if let Some(end) = self.net.ends.get_mut(&link) {
            end.remote = to;
        }
    }

    fn set_identity(&mut self, membership: &Membership) {
        self.net.places[self.site.0].identity = Some(membership.chain.clone());
    }

    fn set_admission(&mut self, _: &DayKey) {}

    fn keep_alive(&mut self, link: LinkId) {
        if let Some(end) = self.net.ends.get_mut(&link) {
            end.is_kept_alive = true;
        }
    }
}
