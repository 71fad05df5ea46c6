//! Sessions: when a key exchange begins, which of two stays, and what the packet plane is told.
//!
//! ```text
//!   link up · Wanted · RekeyDue · Expired · a new packet plane ──▶ begin ──▶ Exchange ──▶ Install ──▶ session
//!                                                                   ▲                        │
//!                                                                   └── later, ever later ◀──┘ failed
//! ```
//!
//! Either side may begin. Where both do, the exchange of the lower id goes on once the other side's certificate has come by it, and so both see
//! it alike: the lower id refuses the other one's from then on, and the higher id gives up its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weir_dataplane::api::Prefix;
use weir_dataplane::api::message::{Event, Install, Offer, Request, ReservationId, Secret, SessionId};

use super::exchange::{Action, EXCHANGE_TIMEOUT, Exchange, Failure, Role, first_data_delay};
use super::link::{Code, FULL_MESH_MAX, Links};
use super::message::KeyMessage;
use super::peer::{Echoes, Session};
use super::plane::Purpose;
use super::{Node, Timer};
use crate::pki::clock::Skew;
use crate::pki::id::{NodeId, overlay_address, session_id};
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::time::{Now, UnixSecs};

/// Most exchanges at a time. Each holds a reservation of the packet plane, which has 4,096.
pub(super) const EXCHANGES_MAX: usize = 2048;
/// Most lanes of a session, as in the packet plane.
const LANES_MAX: u8 = 16;
/// When a new session is measured: after its first packets.
const FIRST_ECHO: Duration = Duration::from_millis(20);
/// Label of the exporter of a key exchange.
const EXPORT_LABEL: &[u8] = b"EXPORTER-weir-key-1";
/// Whoever has the higher id lets the other one begin, and begins itself only after this.
const COURTESY: Duration = Duration::from_secs(5);
/// After a new packet plane: the higher id begins too, a little later, should the other not have noticed.
const REVIVAL_COURTESY: Duration = Duration::from_millis(200);

/// Names an exchange for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId(pub(super) u64);

/// An exchange, its link, and with whom.
#[derive(Clone, Debug)]
pub(super) struct Held {
    machine: Exchange,
    link: LinkId,
    /// Known to a responder only once the peer has shown it.
    peer: Option<NodeId>,
    endpoint: SocketAddr,
    group: u16,
    /// When our packet plane was asked to install.
    asked_at: Option<Instant>,
    began: Instant,
}

impl<R: Random> Node<R> {
    /// Begins an exchange with this member, unless one is under way.
    pub(super) fn begin_exchange(&mut self, node: NodeId, links: &mut dyn Links, now: Now) {
        if self.plane.is_none() || self.revocations.is_node_revoked(node) || self.exchanges.len() >= EXCHANGES_MAX {
            return;
        }
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.exchange.is_some() {
            return;
        }
        if peer.skew() == Skew::TimeOnly {
            self.counters.count("exchange_clock");
            return self.exchange_later(node, &Failure::Clock.to_string(), now);
        }
        let is_first = peer.session.as_ref().is_none_or(|session| !session.is_active);
        let by_link = peer.link.and_then(|link| links.remote(link));
        let Some(remote) = by_link.or_else(|| self.endpoint_of(node)) else {
            return self.exchange_later(node, "no address of it is known", now);
        };
        let link = match self.dial(Alpn::Key, node, remote, links) {
            Ok(link) => link,
            Err(why) => return self.exchange_later(node, &why, now),
        };
        let (machine, actions) = Exchange::new(Role::Initiator, is_first, self.settings.inner_mtu);
        let id = self.hold(machine, link, Some(node), remote, now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.exchange = Some(id);
        }
        self.carry_out(id, actions, links, now);
    }

    /// Somebody dialled for an exchange. Who, is not known yet.
    pub(super) fn accept_exchange(&mut self, link: LinkId, remote: SocketAddr, links: &mut dyn Links, now: Now) {
        if self.plane.is_none() || self.exchanges.len() >= EXCHANGES_MAX {
            self.counters.count("exchange_full");
            return self.drop_link(link, Code::Full, "no packet plane, or too many exchanges", links);
        }
        let (mut machine, mut actions) = Exchange::new(Role::Responder, true, self.settings.inner_mtu);
        actions.extend(machine.opening());
        let id = self.hold(machine, link, None, remote, now);
        self.carry_out(id, actions, links, now);
    }

    fn hold(
        &mut self,
        machine: Exchange,
        link: LinkId,
        peer: Option<NodeId>,
        endpoint: SocketAddr,
        now: Now,
    ) -> ExchangeId {
        self.next_exchange += 1;
        let id = ExchangeId(self.next_exchange);
        let (group, began) = (0, now.mono);
        self.exchanges.insert(id, Held { machine, link, peer, endpoint, group, asked_at: None, began });
        self.timers.set(Timer::Exchange(id), now.mono + EXCHANGE_TIMEOUT);
        id
    }

    fn exchange_of(&self, link: LinkId) -> Option<ExchangeId> {
        self.exchanges.iter().find(|(_, held)| held.link == link).map(|(id, _)| *id)
    }

    /// The link of an exchange stands, and the peer has shown who it is.
    pub(super) fn exchange_connected(
        &mut self,
        link: LinkId,
        node: NodeId,
        remote: SocketAddr,
        group: u16,
        links: &mut dyn Links,
        now: Now,
    ) {
        let Some(id) = self.exchange_of(link) else {
            return self.drop_link(link, Code::Failed, "the exchange is over", links);
        };
        let Some(own) = self.id() else { return };
        if self.peers.get(&node).is_some_and(|peer| peer.skew() == Skew::TimeOnly) {
            self.counters.count("exchange_clock");
            return self.end_exchange(id, Some((Code::Clock, Failure::Clock)), links, now);
        }
        let rival = self.peers.get(&node).and_then(|peer| peer.exchange).filter(|rival| *rival != id);
        if let Some(rival) = rival {
            let held = self.exchanges.get(&rival);
            let is_ours = held.is_some_and(|held| held.machine.role() == Role::Initiator);
            let is_connected = held.is_some_and(|held| held.machine.is_connected());
            // We began the rival, the peer this one. Of two that the peer began it has lost the first: it was started again.
            if is_ours && own < node && is_connected {
                self.counters.count("exchange_busy");
                let failure = Failure::Link("our own exchange goes on instead".to_owned());
                return self.end_exchange(id, Some((Code::Busy, failure)), links, now);
            }
            let failure = Failure::Link("the peer's exchange goes on instead".to_owned());
            self.end_exchange(rival, Some((Code::Busy, failure)), links, now);
        }
        let peer = self.peer(node);
        peer.exchange = Some(id);
        let is_first = peer.session.as_ref().is_none_or(|session| !session.is_active);
        let Some(held) = self.exchanges.get_mut(&id) else { return };
        (held.peer, held.endpoint, held.group) = (Some(node), remote, group);
        let actions = held.machine.connected(is_first);
        self.carry_out(id, actions, links, now);
    }

    pub(super) fn exchange_said(&mut self, link: LinkId, message: KeyMessage, links: &mut dyn Links, now: Now) {
        self.advance_link(link, links, now, |machine| machine.message(message));
    }

    pub(super) fn exchange_reserved(
        &mut self,
        id: ExchangeId,
        reservation: ReservationId,
        offer: Offer,
        links: &mut dyn Links,
        now: Now,
    ) {
        match self.exchanges.get_mut(&id) {
            Some(held) => {
                let actions = held.machine.reserved(reservation, offer);
                self.carry_out(id, actions, links, now);
            }
            None => self.ask_plane(Purpose::Order("Release"), Request::Release(reservation)),
        }
    }

    pub(super) fn exchange_installed(&mut self, id: ExchangeId, links: &mut dyn Links, now: Now) {
        let Some(held) = self.exchanges.get(&id) else { return };
        let (endpoint, group, role) = (held.endpoint, held.group, held.machine.role());
        let Some(node) = held.peer else { return };
        if let Some(peer) = self.peers.get_mut(&node) {
            let before = peer.session.take();
            peer.session = Some(Session {
                endpoint,
                since: now.mono,
                group,
                rtt: before.as_ref().and_then(|session| session.rtt),
                is_active: role == Role::Responder || before.as_ref().is_some_and(|session| session.is_active),
                echoes: before.as_ref().map(|session| session.echoes).unwrap_or_default(),
                datagram_len: before.filter(|session| session.endpoint == endpoint).and_then(|s| s.datagram_len),
            });
            // Who began has not been judged yet.
            if role == Role::Responder {
                peer.succeeded();
            }
        }
        self.counters.count("exchange_installed");
        self.timers.cancel(Timer::Rekey(node));
        self.timers.set(Timer::Echo(node), now.mono + FIRST_ECHO);
        self.advance(id, links, now, Exchange::installed);
        if role == Role::Responder {
            self.ping_ready(node, now);
        }
    }

    pub(super) fn exchange_first_data(&mut self, id: ExchangeId, links: &mut dyn Links, now: Now) {
        self.advance(id, links, now, Exchange::first_data);
    }

    pub(super) fn exchange_failed(&mut self, id: ExchangeId, failure: Failure, links: &mut dyn Links, now: Now) {
        self.advance(id, links, now, |machine| machine.fail(failure));
    }

    pub(super) fn exchange_link_closed(&mut self, link: LinkId, why: &str, links: &mut dyn Links, now: Now) {
        let failure = Failure::Link(why.to_owned());
        self.advance_link(link, links, now, |machine| machine.fail(failure));
    }

    fn advance_link(
        &mut self,
        link: LinkId,
        links: &mut dyn Links,
        now: Now,
        step: impl FnOnce(&mut Exchange) -> Vec<Action>,
    ) {
        if let Some(id) = self.exchange_of(link) {
            self.advance(id, links, now, step);
        }
    }

    fn advance(
        &mut self,
        id: ExchangeId,
        links: &mut dyn Links,
        now: Now,
        step: impl FnOnce(&mut Exchange) -> Vec<Action>,
    ) {
        if let Some(held) = self.exchanges.get_mut(&id) {
            let actions = step(&mut held.machine);
            self.carry_out(id, actions, links, now);
        }
    }

    fn carry_out(&mut self, id: ExchangeId, actions: Vec<Action>, links: &mut dyn Links, now: Now) {
        for action in actions {
            let Some(held) = self.exchanges.get(&id) else { return };
            let (link, peer) = (held.link, held.peer);
            match action {
                Action::Reserve => {
                    let lanes = self.plane.as_ref().map_or(1, |plane| plane.welcome.workers);
                    // The peer may have more workers than we have: it seals one lane for each of its own.
                    let lanes = lanes.max(self.directory.workers_max()).min(LANES_MAX);
                    self.ask_plane(Purpose::Reserve(id), Request::Reserve { lanes });
                }
                Action::Send(message) => self.say_bytes(link, &crate::codec::encode(&message), links),
                Action::Install { reservation, ours, theirs, inner_mtu, activate } => {
                    let install = Terms { reservation, ours, theirs, inner_mtu, activate };
                    self.install(id, install, links, now);
                }
                Action::Activate => {
                    let Some(session) = peer.and_then(|node| self.session_with(node)) else { continue };
                    self.ask_plane(Purpose::Order("Activate"), Request::Activate(session));
                    let session =
                        peer.and_then(|node| self.peers.get_mut(&node)).and_then(|peer| peer.session.as_mut());
                    if let Some(session) = session {
                        session.is_active = true;
                    }
                    if let Some(node) = peer {
                        self.ping_ready(node, now);
                    }
                }
                // Its own goes on, and ours is refused; if not, the peer says that it has installed.
                Action::WaitForFirstData if self.is_rivalled(id) => {}
                Action::WaitForFirstData => {
                    let took = held.asked_at.map(|at| now.mono.saturating_duration_since(at)).unwrap_or_default();
                    self.timers.set(Timer::FirstData(id), now.mono + first_data_delay(took));
                }
                Action::Release(reservation) => {
                    self.ask_plane(Purpose::Order("Release"), Request::Release(reservation));
                }
                Action::Finish => self.end_exchange(id, None, links, now),
                Action::Fail(failure) => self.end_exchange(id, Some((Code::Failed, failure)), links, now),
            }
        }
    }

    /// Whether the member that we dialled for an exchange, and whose id is lower, has most likely dialled us for one as well: somebody there has.
    fn is_rivalled(&self, id: ExchangeId) -> bool {
        let Some(held) = self.exchanges.get(&id) else { return false };
        let is_rival = |other: &Held| {
            other.machine.role() == Role::Responder && other.peer.is_none() && other.endpoint == held.endpoint
        };
        held.peer < self.id() && self.exchanges.values().any(is_rival)
    }

    /// Lets go of an exchange. A failed one is tried again, ever later, by the side that needs it.
    fn end_exchange(&mut self, id: ExchangeId, failure: Option<(Code, Failure)>, links: &mut dyn Links, now: Now) {
        let Some(mut held) = self.exchanges.remove(&id) else { return };
        self.timers.cancel(Timer::Exchange(id));
        self.timers.cancel(Timer::FirstData(id));
        if let Some((_, failure)) = &failure {
            for action in held.machine.fail(failure.clone()) {
                if let Action::Release(reservation) = action {
                    self.ask_plane(Purpose::Order("Release"), Request::Release(reservation));
                }
            }
        }
        let (code, reason) = match &failure {
            None => (Code::Done, "done"),
            Some((code, _)) => (*code, "the exchange came to nothing"),
        };
        // The responder's last word is still on its way: who began closes.
        let role = held.machine.role();
        if failure.is_some() || role == Role::Initiator {
            self.drop_link(held.link, code, reason, links);
        }
        let Some(node) = held.peer else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.exchange == Some(id) {
            peer.exchange = None;
        }
        match &failure {
            None => {
                peer.succeeded();
                self.rekeyed(node, Ok(()));
            }
            // The peer's own goes on, and that ends as well.
            Some((Code::Busy, _)) => {}
            Some((_, failure)) => self.rekeyed(node, Err(&failure.to_string())),
        }
        if let Some((code, failure)) = failure {
            self.counters.count("exchange_failed");
            tracing::debug!(peer = %node.short(), %failure, "key exchange");
            if role == Role::Initiator && code != Code::Busy {
                self.exchange_later(node, &failure.to_string(), now);
            }
        }
    }

    fn exchange_later(&mut self, node: NodeId, why: &str, now: Now) {
        let share = self.random.u64() as u8;
        if let Some(peer) = self.peers.get_mut(&node) {
            let wait = peer.failed(why, share);
            self.timers.set_at_latest(Timer::Rekey(node), now.mono + wait);
        }
    }

    fn install(&mut self, id: ExchangeId, terms: Terms, links: &mut dyn Links, now: Now) {
        let Some(held) = self.exchanges.get_mut(&id) else { return };
        held.asked_at = Some(now.mono);
        let (link, peer, endpoint, role) = (held.link, held.peer, held.endpoint, held.machine.role());
        let (began, theirs) = (held.began, terms.theirs.incarnation);
        if let Some(node) = peer
            && self.peers.get_mut(&node).is_some_and(|known| known.saw(theirs, began, now.mono))
        {
            tracing::warn!(peer = %node.short(), "the same member is in two places");
            self.counters.count("peer_twice");
        }
        let (Some(node), Some(membership)) = (peer, &self.membership) else { return };
        let (own, network) = (membership.node, membership.network);
        let session = session_id(own, node);
        let context = export_context(own, node, &terms, session);
        let secret = match links.export(link, EXPORT_LABEL, &context) {
            Ok(secret) => Secret::new(*secret),
            Err(error) => {
                return self.exchange_failed(id, Failure::Link(error.to_string()), links, now);
            }
        };
        let address = Prefix::host(overlay_address(network, node).into());
        let sources: Vec<Prefix> = std::iter::once(address).chain(self.prefixes_of(node)).collect();
        let install = Install {
            session: SessionId(session),
            reservation: terms.reservation,
            incarnation: terms.ours.incarnation,
            peer: terms.theirs,
            secret,
            initiator: role == Role::Initiator,
            endpoint,
            sources,
            datagram_len_max: self.settings.datagram_len_max,
            inner_mtu: self.settings.inner_mtu.min(terms.inner_mtu),
            rate: None,
            activate: terms.activate,
            idle_after_s: self.settings.idle_after_s,
        };
        self.ask_plane(Purpose::Install(id), Request::Install(Box::new(install)));
    }

    fn session_with(&self, node: NodeId) -> Option<SessionId> {
        self.id().map(|own| SessionId(session_id(own, node)))
    }

    fn member_of(&self, session: SessionId) -> Option<NodeId> {
        self.by_session.get(&session).copied()
    }

    /// Takes a session down, and whatever is under way for it.
    pub(super) fn end_session(&mut self, node: NodeId, links: &mut dyn Links, now: Now) {
        if let Some(id) = self.peers.get(&node).and_then(|peer| peer.exchange) {
            let failure = Failure::Link("the session ends".to_owned());
            self.end_exchange(id, Some((Code::Revoked, failure)), links, now);
        }
        let Some(session) = self.session_with(node) else { return };
        if self.peers.get_mut(&node).and_then(|peer| peer.session.take()).is_some() {
            self.ask_plane(Purpose::Order("Remove"), Request::Remove(session));
        }
        self.timers.cancel(Timer::Echo(node));
    }

    /// When the newest certificate that is known of a member ends, and when its grace does. A link outlives the certificate that it was
    /// made with, so what the member's record says counts as well.
    pub(super) fn ends(&self, node: NodeId) -> Option<(UnixSecs, UnixSecs)> {
        let grace = Duration::from_secs(self.network.as_ref()?.bundle.parameters.grace_secs.into());
        let seen = self.peers.get(&node).and_then(|peer| peer.member.as_ref()).map(|member| member.not_after);
        let stated = self.directory.entry(node).map(|entry| entry.statement.not_after);
        seen.max(stated).map(|not_after| (not_after, not_after.plus(grace)))
    }

    /// Sees to it that a member is cut off at the second after its end. What is farther away, the upkeep finds.
    pub(super) fn await_end(&mut self, node: NodeId, now: Now) {
        let Some((_, end)) = self.ends(node) else { return };
        let left = end.since(now.wall) + Duration::from_secs(1);
        if left <= super::UPKEEP_INTERVAL {
            self.timers.set_at_latest(Timer::Ended, now.mono + left);
        }
    }

    /// Cuts off every member whose certificate is past all grace: neither a session nor a link outlives what it was made by. The member stays
    /// known, and with a new certificate it is back; on a link to join by, it can ask for one.
    pub(super) fn cut_ended(&mut self, links: &mut dyn Links, now: Now) {
        if self.clock.is_doubted() {
            return;
        }
        let stands = |peer: &super::Peer| peer.link.is_some() || peer.session.is_some();
        let has = |peer: &super::Peer| stands(peer) || peer.exchange.is_some();
        let held: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| has(peer)).map(|(node, _)| *node).collect();
        let is_over = |node: &NodeId| self.ends(*node).is_some_and(|(_, end)| now.wall > end);
        let (over, others): (Vec<NodeId>, Vec<NodeId>) = held.into_iter().partition(is_over);
        others.into_iter().for_each(|node| self.await_end(node, now));
        if over.is_empty() {
            return;
        }
        // Whoever is cut off dials at once: the next handshake is to be judged by the same moment.
        if let Some(trust) = &self.trust {
            trust.set_now(now.wall);
        }
        for node in over {
            if self.peers.get(&node).is_some_and(stands) {
                self.counters.count("peer_ended");
                tracing::info!(peer = %node.short(), "its certificate is past all grace");
            }
            self.end_session(node, links, now);
            let of_peer = self.links.iter().filter(|(_, held)| held.peer == Some(node) && held.alpn != Alpn::Join);
            let of_peer: Vec<LinkId> = of_peer.map(|(link, _)| *link).collect();
            for link in of_peer {
                self.fail_link(link, Code::Ended, "the certificate is past all grace", links, now);
            }
        }
    }

    /// Something happened in the packet plane.
    pub(super) fn plane_event(&mut self, event: Event, links: &mut dyn Links, now: Now) {
        match event {
            Event::Echo { session, rtt_ns } => {
                let rtt = Duration::from_nanos(rtt_ns);
                self.update_session(session, |known| {
                    known.rtt = Some(rtt);
                    known.echoes.answer();
                });
                if let Some(node) = self.member_of(session) {
                    self.echoed(node, rtt, now);
                    let is_back = |peer: &super::Peer| peer.is_silent && peer.link.is_none() && peer.dialling.is_none();
                    if self.peers.get(&node).is_some_and(is_back) {
                        self.timers.set(Timer::Connect(node), now.mono);
                    }
                }
            }
            Event::PathMtu { session, datagram_len, .. } => {
                self.update_session(session, |known| known.datagram_len = Some(datagram_len));
            }
            Event::RekeyDue(session) | Event::Expired(session) => {
                let Some(node) = self.member_of(session) else { return };
                let wait = if self.id() < Some(node) { Duration::ZERO } else { COURTESY };
                self.timers.set_at_latest(Timer::Rekey(node), now.mono + wait);
            }
            Event::Activated(session) => self.update_session(session, |known| known.is_active = true),
            Event::Wanted(session) => {
                let Some(node) = self.member_of(session) else { return };
                self.begin_exchange(node, links, now);
            }
            Event::Closed(session) => {
                let Some(node) = self.member_of(session) else { return };
                self.end_session(node, links, now);
            }
            Event::Idle(session) => {
                let Some(node) = self.member_of(session) else { return };
                tracing::debug!(peer = %node.short(), "session idle");
                self.end_session(node, links, now);
            }
            Event::Elsewhere { session, from } => {
                if self.member_of(session).is_some() {
                    let token = self.random.u64();
                    let probe = Request::Probe { session, endpoint: from, token };
                    self.ask_plane(Purpose::Order("Probe"), probe);
                }
            }
            Event::Probed { session, endpoint, rtt_ns, .. } => self.moved(session, endpoint, rtt_ns, links),
            Event::Lost(count) => {
                tracing::warn!(count, "events of the packet plane were lost; asking for everything");
                self.ask_plane(Purpose::Reconcile, Request::Dump);
            }
        }
    }

    fn update_session(&mut self, session: SessionId, change: impl FnOnce(&mut Session)) {
        let node = self.member_of(session);
        if let Some(known) = node.and_then(|node| self.peers.get_mut(&node)).and_then(|peer| peer.session.as_mut()) {
            change(known);
        }
    }

    /// A peer has proved that it is at another address.
    fn moved(&mut self, session: SessionId, endpoint: SocketAddr, rtt_ns: u64, links: &mut dyn Links) {
        let Some(node) = self.member_of(session) else { return };
        let Some(known) = self.peers.get_mut(&node).and_then(|peer| peer.session.as_mut()) else { return };
        let before = std::mem::replace(&mut known.endpoint, endpoint);
        known.rtt = Some(Duration::from_nanos(rtt_ns));
        if before == endpoint {
            return;
        }
        tracing::info!(peer = %node.short(), from = %before, to = %endpoint, "moved");
        self.ask_plane(Purpose::Order("Move"), Request::Move { session, endpoint });
        // Keys that are being agreed on lead there as well, or they would take the session back.
        let under_way = self.exchanges.values_mut().filter(|held| held.peer == Some(node));
        under_way.for_each(|held| held.endpoint = endpoint);
        let of_peer: Vec<LinkId> =
            self.links.iter().filter(|(_, held)| held.peer == Some(node)).map(|(link, _)| *link).collect();
        of_peer.into_iter().for_each(|link| links.moved(link, endpoint));
    }

    /// After a connection to a packet plane: what it carries that we want stays until fresh keys are there; what nobody wants goes; what
    /// is missing comes.
    pub(super) fn reconcile(&mut self, now: Now) {
        let Some(plane) = &self.plane else { return };
        let dumps: Vec<_> = plane.sessions.values().cloned().collect();
        let own = self.id();
        let mut kept = vec![];
        for dump in dumps {
            match self.member_of(dump.session) {
                Some(node) if !self.revocations.is_node_revoked(node) => {
                    kept.push(node);
                    if let Some(peer) = self.peers.get_mut(&node)
                        && peer.session.is_none()
                    {
                        peer.session = Some(Session {
                            endpoint: dump.endpoint,
                            since: now.mono,
                            group: 0,
                            rtt: Some(dump.rtt_ns).filter(|ns| *ns > 0).map(Duration::from_nanos),
                            is_active: dump.activated,
                            datagram_len: Some(dump.datagram_len),
                            echoes: Echoes::default(),
                        });
                    }
                }
                _ => self.ask_plane(Purpose::Order("Remove"), Request::Remove(dump.session)),
            }
        }
        // Members may have come to their ends since those sessions were made.
        self.timers.set_at_latest(Timer::Ended, now.mono);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        let is_mesh = self.directory.len() <= FULL_MESH_MAX;
        for node in nodes {
            let had = self.peers.get_mut(&node).is_some_and(|peer| {
                // Links that came up while there was no packet plane left their sessions for later.
                let had = peer.session.is_some() || (is_mesh && peer.link.is_some());
                if !kept.contains(&node) {
                    peer.session = None;
                }
                had
            });
            if had {
                let wait = if own < Some(node) { Duration::ZERO } else { REVIVAL_COURTESY };
                self.timers.set_at_latest(Timer::Rekey(node), now.mono + wait);
            }
        }
    }

    /// Asks the packet plane for the round trip to a member, again and again while there is a session: a tenth of a percent of a busy
    /// session's datagrams at most, and enough to notice a dead path in two of them.
    pub(super) fn measure(&mut self, node: NodeId, now: Now) {
        let Some(session) = self.session_with(node) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let is_silent = peer.is_silent && peer.link.is_none();
        let Some(known) = peer.session.as_mut() else { return };
        let interval = match known.rtt {
            _ if is_silent => ECHO_INTERVAL_SILENT,
            Some(rtt) => (rtt * 100).clamp(ECHO_INTERVAL_MIN, ECHO_INTERVAL_MAX),
            None => ECHO_INTERVAL_MIN,
        };
        if known.is_active {
            known.echoes.ask();
            self.ask_plane(Purpose::Order("Echo"), Request::Echo(session));
        }
        self.timers.set(Timer::Echo(node), now.mono + interval);
    }
}

/// Shortest and longest time between two echoes of one session.
const ECHO_INTERVAL_MIN: Duration = Duration::from_secs(5);
const ECHO_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// The same while a member that has a session does not answer on any link: the first echo that comes back says that the network is whole
/// again, at less cost than dialling would have.
const ECHO_INTERVAL_SILENT: Duration = Duration::from_secs(2);

/// What is installed.
struct Terms {
    reservation: ReservationId,
    ours: Offer,
    theirs: Offer,
    inner_mtu: u16,
    activate: bool,
}

/// What the exported secret is bound to: both ids, lower first, their packet planes' incarnations in the same order, and the session.
fn export_context(own: NodeId, peer: NodeId, terms: &Terms, session: u64) -> Vec<u8> {
    let (ours, theirs) = ((own, terms.ours.incarnation), (peer, terms.theirs.incarnation));
    let (lower, higher) = if own < peer { (ours, theirs) } else { (theirs, ours) };
    [
        &lower.0.0[..],
        &higher.0.0[..],
        &lower.1.0.to_be_bytes()[..],
        &higher.1.0.to_be_bytes()[..],
        &session.to_be_bytes()[..],
    ]
    .concat()
}
