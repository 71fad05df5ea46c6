//! What becomes of the packets and control blocks in an opened datagram.

use std::net::SocketAddr;
use std::time::Duration;

use weir_abi::drop::DropReason;

use super::block::{Control, Origin, Visitor};
use super::class::Ecn;
use super::counters::{Counters, Metric};
use super::delivery::Delivery;
use super::held::{Held, Offered};
use super::icmp::{self, ErrorKind};
use super::inner::{self, Inner, mss};
use super::outbox::Outbox;
use super::policy::{Denial, Policy};
use super::port::{RxMeta, TxMeta, TxSink};
use super::roam::Asides;
use super::session::Session;
use super::snapshot::{NextHop, Recent, SessionSlot, Snapshot};
use super::time::Time;
use super::wheel::Wheel;
use super::{Deadline, Event, Events, Waiting, session, session_mut, too_big};

/// What one opened datagram meets on its way inwards.
pub(super) struct Arrival<'a, L> {
    pub(super) now: Time,
    pub(super) from: SessionSlot,
    /// The number of its lane, which is that of the peer's worker.
    pub(super) lane: u8,
    /// Whether it came to our lane port.
    pub(super) by_lane_port: bool,
    /// Where it came from, where the port can tell.
    pub(super) source: Option<SocketAddr>,
    pub(super) sessions: &'a mut [Option<Box<Session>>],
    pub(super) snapshot: &'a Snapshot,
    /// What may come in, if that was ever said.
    pub(super) policy: Option<&'a Policy>,
    pub(super) worker: u8,
    /// Where the last packet of the burst went.
    pub(super) recent: &'a mut Recent,
    pub(super) counters: &'a Counters,
    pub(super) outbox: &'a mut Outbox,
    pub(super) waiting: &'a mut Waiting,
    pub(super) events: &'a mut Events,
    pub(super) held: &'a mut Held,
    pub(super) asides: &'a mut Asides,
    pub(super) wheel: &'a mut Wheel<Deadline>,
    pub(super) round_trip: Option<Duration>,
    /// Packets of it that were let in, and their bytes.
    pub(super) carried: (u64, u64),
    /// The congestion mark of the datagram.
    pub(super) ecn: Ecn,
    /// Where the plaintext begins: the frame in the burst, and the byte in the frame.
    pub(super) at: (usize, usize),
    pub(super) lan: &'a mut L,
    /// Set when the local side takes superpackets.
    pub(super) delivery: Option<&'a mut Delivery>,
}

impl<L: TxSink> Arrival<'_, L> {
    fn judge(&mut self, packet: &mut [u8], origin: Origin) -> Result<(), DropReason> {
        let session = session(self.sessions, self.from).ok_or(DropReason::NoSession)?;
        // Looked at where it was written, as in `Departure::judge`.
        let mut parsed = Inner::parse(packet);
        let inner = parsed.as_mut().map_err(|reason| *reason)?;
        inner.scope()?;
        if !session.sources.contains(inner.source) {
            return Err(DropReason::InnerSpoofedSource);
        }
        inner.forged_error(packet, |address| session.sources.contains(address))?;
        if let Some(path) = &session.path {
            path.heard();
        }
        let mtu = session.inner_mtu;
        self.pass_marks_on(inner, packet, origin)?;
        match self.recent.next_hop(self.snapshot, inner.destination) {
            Some(NextHop::Local) => {
                if let Some(policy) = self.policy {
                    policy.admit(inner, packet, self.worker, self.now).map_err(Denial::inbound)?;
                }
                mss::clamp(packet, inner, mtu, false);
                self.deliver(inner, packet, origin)
            }
            Some(NextHop::Session(slot)) if slot == self.from => Err(DropReason::Hairpin),
            Some(NextHop::Session(slot)) => self.pass_on(slot, inner, packet),
            None => Err(self.answer(ErrorKind::NoRoute, DropReason::NoRoute, packet)),
        }
    }

    /// Gives the packet the congestion marks that its datagrams have collected.
    fn pass_marks_on(&self, inner: &mut Inner, packet: &mut [u8], origin: Origin) -> Result<(), DropReason> {
        let outer = match origin {
            Origin::Rejoined { marked: true } => Ecn::Ce,
            Origin::Rejoined { marked: false } | Origin::Plaintext(_) => self.ecn,
        };
        let before = Ecn::of(inner.traffic_class);
        let after = before.decapsulated(outer)?;
        if after != before {
            after.mark(packet);
            inner.traffic_class = inner.traffic_class & !(Ecn::Ce as u8) | after as u8;
        }
        Ok(())
    }

    fn deliver(&mut self, inner: &Inner, packet: &[u8], origin: Origin) -> Result<(), DropReason> {
        if let Some(delivery) = &mut self.delivery {
            let place = match origin {
                Origin::Plaintext(start) => Some((self.at.0, self.at.1 + start)),
                Origin::Rejoined { .. } => None,
            };
            return delivery.push(inner, packet, place);
        }
        let Some(slot) = self.lan.slot(packet.len()) else {
            // Where an empty packet finds room, it is this one's length that does not.
            let has_room = self.lan.slot(0).is_some();
            return Err(if has_room { DropReason::LanOversized } else { DropReason::LanQueueFull });
        };
        slot[..packet.len()].copy_from_slice(packet);
        self.lan.commit(packet.len(), TxMeta::default());
        self.counters.add(Metric::WanToLanPackets, 1);
        self.counters.add(Metric::WanToLanBytes, packet.len() as u64);
        Ok(())
    }

    /// Forwards a packet to another peer, as a router: the checks in the order of RFC 1812 §5.2.1.
    fn pass_on(&mut self, to: SessionSlot, inner: &Inner, packet: &mut [u8]) -> Result<(), DropReason> {
        if !self.snapshot.transit {
            return Err(self.answer(ErrorKind::AdminProhibited, DropReason::TransitRefused, packet));
        }
        let Some(next) = session(self.sessions, to) else {
            if self.held.refuses(to, self.snapshot.epoch) {
                return Err(self.answer(ErrorKind::HostUnreachable, DropReason::NoSession, packet));
            }
            if let Err(reason) = inner::decrement_ttl(packet) {
                return Err(self.answer(ErrorKind::TimeExceeded, reason, packet));
            }
            let offered = Offered { bytes: packet, meta: RxMeta::default(), packets: 1, is_transit: true };
            let around = (&mut *self.wheel, &mut *self.events, self.counters);
            self.held.push(to, &offered, self.snapshot.epoch, self.now, around);
            return Ok(());
        };
        let (mtu, too_big) = (next.inner_mtu, too_big(inner, packet.len(), next));
        if let Err(reason) = inner::decrement_ttl(packet) {
            return Err(self.answer(ErrorKind::TimeExceeded, reason, packet));
        }
        if too_big {
            return Err(self.answer(ErrorKind::PacketTooBig { mtu }, DropReason::PacketTooBig, packet));
        }
        mss::clamp(packet, inner, mtu, false);
        self.outbox.push(to, packet)
    }

    /// Tells the packet's sender why it was dropped, as far as the rate allows; gives the reason back.
    fn answer(&mut self, kind: ErrorKind, reason: DropReason, packet: &[u8]) -> DropReason {
        let admitted = session_mut(self.sessions, self.from).is_some_and(|session| session.errors.admit(self.now));
        if admitted {
            let (v4, v6) = (self.snapshot.gateway_v4, self.snapshot.gateway_v6);
            let write = |out: &mut [u8]| icmp::error(kind, v4, v6, packet, out);
            if let Err(full) = self.outbox.push_error(self.from, icmp::ERROR_LEN_MAX, write) {
                self.counters.drop(full);
            }
        }
        reason
    }
}

impl<L: TxSink> Visitor for Arrival<'_, L> {
    fn packet(&mut self, packet: &mut [u8], origin: Origin) {
        match self.judge(packet, origin) {
            Ok(()) => {
                self.carried.0 += 1;
                self.carried.1 += packet.len() as u64;
            }
            Err(reason) => self.counters.drop(reason),
        }
    }

    fn control(&mut self, control: Control) {
        let Some(session) = session_mut(self.sessions, self.from) else { return };
        match control {
            Control::EchoRequest(token) | Control::ProbeRequest(token) => {
                let is_echo = matches!(control, Control::EchoRequest(_));
                let reply = if is_echo { Control::EchoReply(token) } else { Control::ProbeReply(token) };
                if let Err(reason) = self.waiting.push(self.from).and_then(|()| session.queue_control(reply)) {
                    self.counters.drop(reason);
                }
            }
            Control::EchoReply(token) => match session.take_echo(token, self.now) {
                Some(round_trip) => {
                    self.round_trip = Some(round_trip);
                    self.events.push(Event::Echo { session: session.id, round_trip });
                }
                None => self.counters.drop(DropReason::ControlMalformed),
            },
            Control::Close if !session.close_told => {
                session.close_told = self.events.push(Event::Closed(session.id));
            }
            Control::Close => {}
            Control::ProbeReply(token) => match &session.path {
                Some(path) if path.answered(u64::from_be_bytes(token), self.now) => {
                    // If too many wait already, the prober finds the answer when its timer is due.
                    let _ = self.waiting.push(self.from);
                }
                Some(_) => {}
                None => self.counters.drop(DropReason::ControlMalformed),
            },
            Control::PathChallenge(token) => match self.source {
                Some(source) => self.asides.respond(self.from, source, token, self.counters),
                None => self.counters.drop(DropReason::ControlMalformed),
            },
            Control::PathResponse(token) => {
                let token = u64::from_be_bytes(token);
                match self.source {
                    Some(from) if session.challenges.answer(token) => {
                        self.events.push(Event::Response { session: session.id, from, token, at: self.now });
                    }
                    _ => self.counters.drop(DropReason::ControlMalformed),
                }
            }
            Control::LaneRequest(token) | Control::LaneReply(token) => {
                let is_request = matches!(control, Control::LaneRequest(_));
                let token = u64::from_be_bytes(token);
                match &mut session.lane_ports {
                    // One that came to the common port shows nothing.
                    Some(ports) if is_request && self.by_lane_port => match self.waiting.push(self.from) {
                        Ok(()) => ports.asked(self.lane, token),
                        Err(reason) => self.counters.drop(reason),
                    },
                    Some(_) if is_request => {}
                    Some(ports) => {
                        if ports.answered(token) {
                            // If too many wait already, the answer is found when the timer is due.
                            let _ = self.waiting.push(self.from);
                        }
                    }
                    None => self.counters.drop(DropReason::ControlMalformed),
                }
            }
        }
    }

    fn dropped(&mut self, reason: DropReason) {
        self.counters.drop(reason);
    }
}
