//! Links: who is at the other end, what both know, and which of two links to one member stays.

use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weir_dataplane::api::message::SessionId;
use zeroize::Zeroizing;

use super::message::{self, Hello, KeyMessage, MESSAGE_LEN_MAX, Message, Network};
use super::peer::Peer;
use super::{Node, Timer};
use crate::codec;
use crate::membership::Membership;
use crate::pki::admission::DayKey;
use crate::pki::id::{NodeId, session_id};
use crate::pki::verifier::Member;
use crate::quic::{Alpn, DialError, DialTarget, ExportError, GROUP_X25519KYBER768, LinkId, SendError, Side};
use crate::random::Random;
use crate::time::Now;

/// Most links at a time.
pub const LINKS_MAX: usize = 4096;
/// With up to so many members everybody keeps a link to everybody; with more, to neighbours in the order of ids. Packets go to whom they
/// will all the same: a key exchange dials for itself.
pub const FULL_MESH_MAX: usize = 24;
/// Neighbours on each side that a link is kept to in a larger network: lists and records reach everybody in a few steps, and some of the
/// neighbours may lie.
pub const NEIGHBOURS: usize = 4;
/// Whoever has the higher id lets the other one dial, and dials itself only after this.
const COURTESY: Duration = Duration::from_secs(2);
/// How long a link has to have stood, for its end to be no failure. Ours: whoever closes each link sooner is dialled ever more rarely.
const STOOD: Duration = Duration::from_secs(10);
/// How long an address may take to answer before the next one is tried as well.
pub(super) const DIAL_PATIENCE: Duration = Duration::from_millis(1500);

/// Links of those who have shown no certificate, and how long each may take: they cannot use up the links of members.
pub const STRANGERS_MAX: usize = 1024;
const STRANGER_MAX: Duration = Duration::from_secs(30);

/// The code by which a link is closed, for the other end to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// It has served its purpose.
    Done = 0,
    /// Another link to the same member stays.
    Duplicate = 1,
    /// What was said is not understood.
    Protocol = 2,
    /// The other side's own exchange goes on instead.
    Busy = 3,
    /// The member was revoked.
    Revoked = 4,
    /// There is no room.
    Full = 5,
    /// Not a member, or not yet.
    NotMember = 6,
    /// It took too long, or our packet plane said no.
    Failed = 7,
    /// The draft group was agreed on, with a member that it is not for.
    Group = 8,
    /// Its version of the messages is not spoken here.
    Version = 9,
    /// Its certificate has ended, and so has its grace.
    Ended = 10,
    /// Its clock and ours are more than an hour apart: no keys until that is settled.
    Clock = 11,
}

/// Links as the node sees them: QUIC in operation, a model of it in simulations.
pub trait Links {
    /// Dials a member.
    ///
    /// # Errors
    /// [`DialError`].
    fn dial(&mut self, alpn: Alpn, target: DialTarget, remote: SocketAddr) -> Result<LinkId, DialError>;

    /// Sends one message.
    ///
    /// # Errors
    /// [`SendError`].
    fn send(&mut self, link: LinkId, message: &[u8]) -> Result<(), SendError>;

    /// A secret that only the two ends of the link know (RFC 8446 §7.5).
    ///
    /// # Errors
    /// [`ExportError`], in particular before both have shown who they are.
    fn export(&mut self, link: LinkId, label: &[u8], context: &[u8]) -> Result<Zeroizing<[u8; 32]>, ExportError>;

    /// Closes a link; no event follows.
    fn close(&mut self, link: LinkId, code: u32, reason: &str);

    /// Where the other end is.
    fn remote(&self, link: LinkId) -> Option<SocketAddr>;

    /// The other end of a link is at `to` from now on: the packet plane has proved it.
    fn moved(&mut self, link: LinkId, to: SocketAddr);

    /// Who we are, from the next handshake on.
    fn set_identity(&mut self, membership: &Membership);

    /// The key of admission tags, from the next dial on.
    fn set_admission(&mut self, key: &DayKey);

    /// Keeps a link up while nothing is said on it.
    fn keep_alive(&mut self, link: LinkId);
}

/// A link that stands.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Which.
    pub link: LinkId,
    /// What for.
    pub alpn: Alpn,
    /// Who dialled.
    pub side: Side,
    /// Who is at the other end; `None` for one that joins.
    pub peer: Option<Member>,
    /// The certificates that it showed.
    pub chain: Vec<Vec<u8>>,
    /// Where it is.
    pub remote: SocketAddr,
    /// The negotiated group, as TLS numbers them.
    pub group: u16,
}

/// What we hold of a link.
#[derive(Clone, Debug)]
pub struct Link {
    /// What for.
    pub alpn: Alpn,
    /// Who dialled.
    pub side: Side,
    /// Who is, or should be, at the other end.
    pub peer: Option<NodeId>,
    /// Since when it stands.
    pub since: Option<Instant>,
    /// When its other end told addresses last.
    pub heard_peers: Option<Instant>,
}

impl<R: Random> Node<R> {
    /// A link to this member is wanted from now on, as far as links are kept at all.
    pub(super) fn meet(&mut self, node: NodeId, now: Now) {
        if Some(node) == self.id() {
            return;
        }
        self.peer(node);
        let wait = match self.id() {
            Some(own) if own > node => COURTESY,
            _ => Duration::ZERO,
        };
        self.timers.set_at_latest(Timer::Connect(node), now.mono + wait);
    }

    /// What we hold of another member, from now on at least.
    pub(super) fn peer(&mut self, node: NodeId) -> &mut Peer {
        let own = self.id();
        match self.peers.entry(node) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                if let Some(own) = own {
                    self.by_session.insert(SessionId(session_id(own, node)), node);
                }
                unknown.insert(Peer::default())
            }
        }
    }

    /// Whether links with this member may be under the draft group: the configuration names it, and the bundle does not forbid the group.
    fn may_use_draft(&self, node: NodeId) -> bool {
        let allowed = self.network.as_ref().is_some_and(|network| network.bundle.parameters.legacy_kyber_allowed);
        allowed && self.settings.legacy_kyber.contains(&node)
    }

    /// Whether messages go to this member by a link now.
    pub fn has_link(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.link.is_some())
    }

    /// Whether a link to this member is kept even when nothing is to be said.
    pub(super) fn keeps_link(&self, node: NodeId) -> bool {
        let Some(own) = self.id() else { return false };
        // Whom we know by its address only has something to tell us.
        if self.directory.entry(node).is_none() || self.directory.len() <= FULL_MESH_MAX {
            return true;
        }
        if self.mail_wants_link(node) {
            return true;
        }
        self.directory.is_neighbour(own, node, NEIGHBOURS)
    }

    /// Dials a member unless there is a link, or none is wanted.
    pub(super) fn connect(&mut self, node: NodeId, links: &mut dyn Links, now: Now) {
        let is_wanted = self.keeps_link(node) || self.is_found(node) && self.is_alone();
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.link.is_some() || peer.dialling.is_some() || !is_wanted || self.revocations.is_node_revoked(node) {
            return;
        }
        let Some(remote) = self.endpoint_of(node) else {
            return self.connect_later(node, "no address of it is known", now);
        };
        match self.dial(Alpn::Member, node, remote, links) {
            Ok(link) => {
                self.timers.set(Timer::Dial(link), now.mono + DIAL_PATIENCE);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.dialling = Some(link);
                }
            }
            Err(why) => self.connect_later(node, &why, now),
        }
    }

    /// A member says where it is: an attempt at another address would only be in the way until it is given up.
    pub(super) fn give_up_elsewhere(&mut self, node: NodeId, is_there: &[SocketAddr], links: &mut dyn Links) {
        let dialling = self.peers.get(&node).and_then(|peer| peer.dialling);
        let is_elsewhere = |link: &LinkId| links.remote(*link).is_some_and(|remote| !is_there.contains(&remote));
        if let Some(link) = dialling.filter(is_elsewhere) {
            self.drop_link(link, Code::Done, "it is somewhere else", links);
        }
    }

    pub(super) fn dial(
        &mut self,
        alpn: Alpn,
        node: NodeId,
        remote: SocketAddr,
        links: &mut dyn Links,
    ) -> Result<LinkId, String> {
        if self.links.len() >= LINKS_MAX {
            return Err(format!("{LINKS_MAX} links are open"));
        }
        let target =
            DialTarget { legacy_kyber: alpn != Alpn::Join && self.may_use_draft(node), ..DialTarget::member(node) };
        let link = links.dial(alpn, target, remote).map_err(|error| error.to_string())?;
        self.links.insert(link, Link::new(alpn, Side::Dialled, Some(node)));
        Ok(link)
    }

    /// Nothing is heard on a link to this member.
    pub(super) fn fell_silent(&mut self, link: LinkId) {
        let node = self.links.get(&link).and_then(|held| held.peer);
        if let Some(peer) = node.and_then(|node| self.peers.get_mut(&node)) {
            peer.is_silent = true;
        }
    }

    /// Who joins or renews on a link of its own has had its time.
    pub(super) fn stranger_timed_out(&mut self, link: LinkId, links: &mut dyn Links) {
        if self.links.contains_key(&link) {
            self.counters.count("stranger_timeout");
            self.drop_link(link, Code::Failed, "it took too long", links);
        }
    }

    fn connect_later(&mut self, node: NodeId, why: &str, now: Now) {
        let share = self.random.u64() as u8;
        if let Some(peer) = self.peers.get_mut(&node) {
            let wait = peer.link_failed(why, share);
            self.timers.set(Timer::Connect(node), now.mono + wait);
        }
        self.seek(node, now);
    }

    /// Where to dial a member next: where its session is, else what its record says, one address after the other.
    pub(super) fn endpoint_of(&mut self, node: NodeId) -> Option<SocketAddr> {
        let endpoints = self.directory.entry(node).map(|entry| entry.record.endpoints.as_slice()).unwrap_or_default();
        let peer = self.peers.get_mut(&node)?;
        let known = peer.session.as_ref().map(|session| session.endpoint);
        let told = peer.told_endpoints.iter().chain(endpoints).chain(&peer.hearsay).copied();
        let mut candidates: Vec<SocketAddr> = vec![];
        for endpoint in known.into_iter().chain(told) {
            if !candidates.contains(&endpoint) {
                candidates.push(endpoint);
            }
        }
        if candidates.is_empty() {
            return None;
        }
        let at = peer.next_endpoint % candidates.len();
        peer.next_endpoint = peer.next_endpoint.wrapping_add(1);
        Some(candidates[at])
    }

    /// A dialled address does not answer.
    pub(super) fn dial_timed_out(&mut self, link: LinkId, links: &mut dyn Links, now: Now) {
        let Some(held) = self.links.get(&link) else { return };
        if held.since.is_some() {
            return;
        }
        self.fell_silent(link);
        self.fail_link(link, Code::Failed, "no answer in time", links, now);
    }

    pub(super) fn link_opening(
        &mut self,
        link: LinkId,
        alpn: Alpn,
        remote: SocketAddr,
        links: &mut dyn Links,
        now: Now,
    ) {
        if self.links.len() >= LINKS_MAX {
            self.counters.count("link_full");
            return links.close(link, Code::Full as u32, "too many links");
        }
        if self.membership.is_none() {
            return links.close(link, Code::NotMember as u32, "this node is not a member yet");
        }
        if alpn == Alpn::Join {
            let strangers = self.links.values().filter(|held| held.alpn == Alpn::Join && held.side == Side::Accepted);
            if strangers.count() >= STRANGERS_MAX {
                self.counters.count("stranger_full");
                return links.close(link, Code::Full as u32, "too many join at a time");
            }
            self.timers.set(Timer::Stranger(link), now.mono + STRANGER_MAX);
        }
        self.links.insert(link, Link::new(alpn, Side::Accepted, None));
        match alpn {
            Alpn::Key => self.accept_exchange(link, remote, links, now),
            Alpn::Join => self.greet_joiner(link, links),
            Alpn::Member => {}
        }
    }

    pub(super) fn link_connected(&mut self, connected: Connected, links: &mut dyn Links, now: Now) {
        let Connected { link, alpn, side, ref peer, remote, group, .. } = connected;
        self.timers.cancel(Timer::Dial(link));
        let node = peer.as_ref().map(|member| member.node);
        let held = self.links.entry(link).or_insert_with(|| Link::new(alpn, side, node));
        held.since = Some(now.mono);
        held.peer = node.or(held.peer);
        if group == GROUP_X25519KYBER768 && !node.is_some_and(|node| self.may_use_draft(node)) {
            self.counters.count("link_draft_group");
            return self.fail_link(link, Code::Group, "the draft group is not for this member", links, now);
        }
        if self.is_knock(link) {
            return self.knock_answered(link, connected.peer, links, now);
        }
        if side == Side::Dialled && alpn == Alpn::Join {
            return self.join_connected(connected);
        }
        let Some(member) = peer.clone() else {
            // One that joins has nothing to show yet. On other links the handshake saw to it.
            if alpn != Alpn::Join {
                self.drop_link(link, Code::NotMember, "no certificate", links);
            }
            return;
        };
        let node = member.node;
        if Some(node) == self.id() {
            self.counters.count("link_to_self");
            return self.drop_link(link, Code::NotMember, "that is ourselves", links);
        }
        let in_grace = member.in_grace;
        self.learn_issuer(&member);
        let entry = self.peer(node);
        let changed = entry.member.as_ref().is_none_or(|known| known.prefixes != member.prefixes);
        entry.member = Some(member);
        self.are_routes_dirty |= changed;
        if in_grace {
            self.counters.count("peer_in_grace");
        }
        self.await_end(node, now);
        match alpn {
            Alpn::Member => self.member_connected(link, node, side, remote, links, now),
            Alpn::Key => self.exchange_connected(link, node, remote, group, links, now),
            Alpn::Join => {}
        }
    }

    /// Of two links to one member the one that the lower id dialled stays: both sides see it alike. Between two that the same side
    /// dialled the newer one does, since whoever dials again has lost the older one.
    fn member_connected(
        &mut self,
        link: LinkId,
        node: NodeId,
        side: Side,
        remote: SocketAddr,
        links: &mut dyn Links,
        now: Now,
    ) {
        let Some(own) = self.id() else { return };
        let by_lower = |side: Side| (side == Side::Dialled) == (own < node);
        let rival = self.peers.get(&node).and_then(|peer| peer.link).filter(|known| *known != link);
        if let Some(rival) = rival {
            let rival_side = self.links.get(&rival).map(|held| held.side);
            let rival_stays = rival_side.is_some_and(|rival| by_lower(rival) && !by_lower(side));
            if rival_stays {
                // It may lead to a process that is no more, which only shows when something is said.
                self.say(rival, &Message::Ping(0), links);
                return self.drop_link(link, Code::Duplicate, "there is a link already", links);
            }
            self.drop_link(rival, Code::Duplicate, "a newer link replaces it", links);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            if peer.dialling == Some(link) {
                peer.dialling = None;
            }
            peer.link = Some(link);
            peer.next_endpoint = 0;
        }
        self.timers.cancel(Timer::Connect(node));
        links.keep_alive(link);
        let hello = self.hello(now);
        self.say(link, &Message::Hello(hello), links);
        tracing::debug!(peer = %node.short(), %remote, "link up");
        self.issuer_connected(node, links, now);
        self.begin_soon(node, now);
    }

    /// Makes keys with a member that there are none with, where everybody has a session with everybody. The side with the lower id begins;
    /// the other one only when nothing came of that.
    pub(super) fn begin_soon(&mut self, node: NodeId, now: Now) {
        let session = self.peers.get(&node).and_then(|peer| peer.session.as_ref());
        if session.is_none() && self.directory.len() <= FULL_MESH_MAX {
            let wait = if self.id() < Some(node) { Duration::ZERO } else { COURTESY };
            self.timers.set_at_latest(Timer::Rekey(node), now.mono + wait);
        }
    }

    /// Sends a message; a link that does not take it is closed, for what follows would make no sense without it.
    pub(super) fn say(&mut self, link: LinkId, message: &Message, links: &mut dyn Links) {
        self.say_bytes(link, &codec::encode(message), links);
    }

    pub(super) fn say_bytes(&mut self, link: LinkId, bytes: &[u8], links: &mut dyn Links) {
        if let Err(error) = links.send(link, bytes) {
            self.counters.count("link_send_failed");
            tracing::debug!(%error, "a message cannot be sent");
            // The other side may not notice, so it is for us to dial again.
            if let Some(held) = self.links.get(&link).filter(|held| held.alpn == Alpn::Member)
                && let Some(node) = held.peer
            {
                self.timers.set_at_latest(Timer::Connect(node), self.clock.looked_at() + COURTESY);
            }
            self.drop_link(link, Code::Failed, "a message cannot be sent", links);
        }
    }

    /// Tells all members that we have a link to, but the one that told us.
    pub(super) fn say_to_all(&mut self, message: &Message, except: Option<LinkId>, links: &mut dyn Links) {
        let to: Vec<LinkId> =
            self.peers.values().filter_map(|peer| peer.link).filter(|link| Some(*link) != except).collect();
        if to.is_empty() {
            return;
        }
        let bytes = codec::encode(message);
        for link in to {
            self.say_bytes(link, &bytes, links);
        }
    }

    pub(super) fn link_said(&mut self, link: LinkId, bytes: &[u8], links: &mut dyn Links, now: Now) {
        let Some(held) = self.links.get(&link) else { return };
        let (alpn, side, is_connected) = (held.alpn, held.side, held.since.is_some());
        match alpn {
            Alpn::Key => match codec::decode::<KeyMessage>(bytes, MESSAGE_LEN_MAX) {
                Ok(message) => self.exchange_said(link, message, links, now),
                Err(_) => self.misspoke(link, links, now),
            },
            Alpn::Join if side == Side::Dialled && self.joining_waits_for_network(link) => {
                match codec::decode::<Network>(bytes, MESSAGE_LEN_MAX) {
                    Ok(network) => self.join_network(link, network, links, now),
                    Err(_) => self.misspoke(link, links, now),
                }
            }
            Alpn::Join if side == Side::Dialled => {
                if self.renewal_greeted(link, links) {
                    return;
                }
                match codec::decode::<Message>(bytes, MESSAGE_LEN_MAX) {
                    Ok(message) => self.join_said(link, message, links, now),
                    Err(_) => self.misspoke(link, links, now),
                }
            }
            Alpn::Member | Alpn::Join => match codec::decode::<Message>(bytes, MESSAGE_LEN_MAX) {
                Ok(message) if is_connected => self.member_said(link, alpn, message, links, now),
                Ok(_) => self.misspoke(link, links, now),
                // What another version says after the beginning need not be readable here.
                Err(_) => match message::version_of_hello(bytes).filter(|_| is_connected && alpn == Alpn::Member) {
                    Some(theirs) if message::spoken(message::VERSION, theirs).is_none() => {
                        self.refuse_version(link, theirs, links, now);
                    }
                    Some(_) | None => self.misspoke(link, links, now),
                },
            },
        }
    }

    pub(super) fn misspoke(&mut self, link: LinkId, links: &mut dyn Links, now: Now) {
        self.counters.count("link_protocol");
        self.fail_link(link, Code::Protocol, "what was said is not understood", links, now);
    }

    /// A member speaks a version of the messages that we do not. Keys are another protocol, so packets go on; dials come ever later.
    pub(super) fn refuse_version(&mut self, link: LinkId, theirs: u16, links: &mut dyn Links, now: Now) {
        self.counters.count("link_version");
        let node = self.links.get(&link).and_then(|held| held.peer);
        if let Some(peer) = node.and_then(|node| self.peers.get_mut(&node)) {
            peer.unspoken = Some(theirs);
        }
        let why = format!("version {theirs} of the messages is not spoken here, which is at {}", message::VERSION);
        self.fail_link(link, Code::Version, &why, links, now);
    }

    /// Closes a link of our own will: nothing is done in its place.
    pub(super) fn drop_link(&mut self, link: LinkId, code: Code, reason: &str, links: &mut dyn Links) {
        links.close(link, code as u32, reason);
        self.forget_link(link, reason);
    }

    /// Closes a link that does not serve, and goes on as if the other end had closed it.
    pub(super) fn fail_link(&mut self, link: LinkId, code: Code, why: &str, links: &mut dyn Links, now: Now) {
        links.close(link, code as u32, why);
        self.link_closed(link, why, links, now);
    }

    /// A link is gone, whoever closed it.
    pub(super) fn link_closed(&mut self, link: LinkId, why: &str, links: &mut dyn Links, now: Now) {
        let Some((held, was_of_peer)) = self.forget_link(link, why) else { return };
        if held.since.is_none() {
            self.learn_proved_time(now);
        }
        if self.knock_closed(link, why, now) {
            return;
        }
        match held.alpn {
            Alpn::Key => self.exchange_link_closed(link, why, links, now),
            Alpn::Join => self.join_closed(link, why, links, now),
            Alpn::Member => {
                let Some(node) = held.peer.filter(|_| was_of_peer) else { return };
                if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.link.is_none()) {
                    // A link stands for its dialling side before the other one has judged it, and even a greeting costs nothing.
                    if held.since.is_some_and(|since| now.mono >= since + STOOD) {
                        peer.begins_anew();
                    }
                    self.connect_later(node, why, now);
                    if held.since.is_some() {
                        self.search_when_alone(now);
                    }
                }
            }
        }
    }

    /// Lets go of what hangs on a link, and says what it was and whether a peer's messages went by it, or were to.
    fn forget_link(&mut self, link: LinkId, why: &str) -> Option<(Link, bool)> {
        self.timers.cancel(Timer::Dial(link));
        self.timers.cancel(Timer::Stranger(link));
        self.timers.cancel(Timer::Sign(link));
        self.forget_relayed(link);
        self.renewal_link_gone(link, why);
        self.farewell_link_gone(link);
        self.contact_link_gone(link);
        let held = self.links.remove(&link)?;
        if let Some(node) = held.peer {
            self.mail_link_gone(link, node);
        }
        let peer = held.peer.and_then(|node| self.peers.get_mut(&node));
        let was_of_peer = peer.is_some_and(|peer| peer.forget_link(link));
        Some((held, was_of_peer))
    }

    /// Has nothing to do with this member any more.
    pub(super) fn part(&mut self, node: NodeId, code: Code, why: &str, links: &mut dyn Links, now: Now) {
        tracing::info!(peer = %node.short(), why, "parted");
        let of_peer: Vec<LinkId> =
            self.links.iter().filter(|(_, held)| held.peer == Some(node)).map(|(link, _)| *link).collect();
        for link in of_peer {
            self.drop_link(link, code, why, links);
        }
        if code == Code::Revoked {
            self.forget_mail(node, now);
        }
        self.end_session(node, links, now);
        self.part_contact(node);
        if matches!(code, Code::Revoked | Code::NotMember) {
            self.discovery_revoked(node, now);
        }
        self.directory.remove(node);
        self.peers.remove(&node);
        if let Some(own) = self.id() {
            self.by_session.remove(&SessionId(session_id(own, node)));
        }
        for timer in [Timer::Connect(node), Timer::Rekey(node), Timer::Echo(node)] {
            self.timers.cancel(timer);
        }
        let mut batch = crate::store::Batch::default();
        batch.delete(crate::store::Table::Directory, node.0);
        self.store(batch);
        (self.are_routes_dirty, self.is_policy_dirty) = (true, true);
    }

    pub(super) fn hello(&self, now: Now) -> Hello {
        Hello {
            version: message::VERSION,
            features: message::FEATURE_MESSAGES
                | message::FEATURE_PEERS
                | if self.discovery.is_some() { message::FEATURE_CONTACT } else { 0 },
            program: env!("CARGO_PKG_VERSION").to_owned(),
            bundle: self.network.as_ref().map_or(0, |network| network.bundle.version),
            revocations: self.revocations.digest(),
            policy: self.policy_version(),
            policy_digest: self.policy.digest(),
            admission: self.admission.as_ref().map_or(0, crate::pki::admission::AdmissionKeys::version),
            directory: self.directory.digest(),
            wall: now.wall,
        }
    }
}

impl Link {
    /// One that does not stand yet.
    pub(super) fn new(alpn: Alpn, side: Side, peer: Option<NodeId>) -> Self {
        Self { alpn, side, peer, since: None, heard_peers: None }
    }
}
