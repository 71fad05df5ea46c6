//! The way of packets outwards: which peer they go to, whether they may, and into which datagrams.
//!
//! ```text
//!   parse ─▶ scope ─▶ source is ours ─▶ next hop ─▶ policy ─▶ MTU ─▶ stream │ batch │ rate ─▶ plan ─▶ lay ─▶ seal ─▶ commit
//!            └───────────── an error to the sender, rate limited ────────────┘
//! ```

use weir_abi::drop::DropReason;
use weir_abi::flow;

use super::batch::{Batch, InBurst, InOutbox, Members, Nothing, Stream};
use super::bundle::{self, Packets, Plan};
use super::class::Priority;
use super::counters::{Counters, Metric};
use super::destinations::Destinations;
use super::held::{Held, Offered};
use super::icmp::{self, ErrorKind, ErrorLimiter};
use super::inner::{Inner, mss};
use super::offload::Segments;
use super::outbox::Outbox;
use super::policy::{Denial, Policy};
use super::port::{BURST_LEN, Offload, RxBurst, RxMeta, TxMeta, TxSink};
use super::roam::Asides;
use super::session::Session;
use super::snapshot::{NextHop, Recent, SessionSlot, Snapshot};
use super::time::Time;
use super::wheel::Wheel;
use super::{Deadline, Event, Events, Waiting, session, session_mut, too_big};

/// What packets meet on their way outwards.
pub(super) struct Departure<'a> {
    pub(super) now: Time,
    pub(super) sessions: &'a mut [Option<Box<Session>>],
    pub(super) snapshot: &'a Snapshot,
    /// What the other side will let in, if that was ever said.
    pub(super) policy: Option<&'a Policy>,
    pub(super) counters: &'a Counters,
    pub(super) limiter: &'a mut ErrorLimiter,
    pub(super) waiting: &'a mut Waiting,
    pub(super) held: &'a mut Held,
    pub(super) asides: &'a mut Asides,
    pub(super) events: &'a mut Events,
    pub(super) wheel: &'a mut Wheel<Deadline>,
    pub(super) worker: u8,
    /// Where the last packet's source is.
    pub(super) sources: Recent,
    pub(super) destinations: &'a mut Destinations,
}

impl Departure<'_> {
    /// Takes a burst of the local side into the batch and sends it, in as many rounds as its superpackets need.
    pub(super) fn burst(
        &mut self,
        batch: &mut Batch,
        rx: &mut impl RxBurst,
        wan: &mut impl TxSink,
        lan: &mut impl TxSink,
    ) {
        batch.clear();
        self.destinations.begin(self.snapshot, rx);
        for frame in 0..rx.len().min(BURST_LEN) {
            let (packet, meta) = rx.frame(frame);
            let (len, flow) = (packet.len(), flow::hash_of(&*packet));
            match self.judge(packet, &meta, lan) {
                // Frames alone never fill a batch, but segments of frames before may have.
                Ok((stream, None)) => {
                    self.make_room(batch, rx, wan);
                    batch.push(frame, stream, flow, len);
                }
                Ok((stream, Some(segments))) => {
                    batch.cut(frame, segments);
                    for k in 0..segments.count() {
                        self.make_room(batch, rx, wan);
                        batch.push_segment(frame, k, stream, flow, segments.len(k));
                    }
                }
                Err(Kept::Dropped { reason, packets }) => self.counters.drop_n(reason, packets as u64),
                Err(Kept::Held) => {}
            }
        }
        self.send_batch(batch, rx, wan);
    }

    fn make_room(&mut self, batch: &mut Batch, rx: &mut impl RxBurst, wan: &mut impl TxSink) {
        if batch.is_full() {
            self.send_batch(batch, rx, wan);
        }
    }

    fn send_batch(&mut self, batch: &mut Batch, rx: &mut impl RxBurst, wan: &mut impl TxSink) {
        for c in 0..batch.sort() {
            let (stream, mut members) = batch.members(c);
            self.keep_to_rate(stream, &mut members);
            let sent = self.send(stream, members.lens(), &mut InBurst(rx, &members), wan);
            self.counters.add(Metric::LanToWanPackets, sent as u64);
            self.counters.add(Metric::LanToWanBytes, members.bytes(sent));
        }
        batch.clear();
    }

    /// Which stream a frame from the local side belongs to, and how it is cut if it has to be.
    fn judge(
        &mut self,
        packet: &mut [u8],
        meta: &RxMeta,
        lan: &mut impl TxSink,
    ) -> Result<(Stream, Option<Segments>), Kept> {
        if meta.truncated {
            return Err(DropReason::LanReadTruncated.into());
        }
        // Looked at where it was written: copied as a whole at once, it would have to wait until each of its fields has been stored.
        let parsed = Inner::parse(packet);
        let inner = match &parsed {
            Ok(inner) => inner,
            Err(DropReason::InnerMalformed | DropReason::InnerHeaderChain) => {
                return Err(DropReason::LocalMalformed.into());
            }
            Err(other) => return Err((*other).into()),
        };
        let segments = match meta.offload {
            Offload { cut: None, checksum: None } => None,
            offload => Some(Segments::new(packet, inner, offload)?),
        };
        // The first segment is as long as any.
        let (packets, len) = segments.map_or((1, packet.len()), |segments| (segments.count(), segments.len(0)));
        match self.route(packet, inner, len, (meta, packets), lan) {
            Ok(Some(stream)) => Ok((stream, segments)),
            Ok(None) => Err(Kept::Held),
            Err(reason) => Err(Kept::Dropped { reason, packets }),
        }
    }

    /// Where a packet goes that is cut into `packets` pieces of `len` bytes; nowhere yet when it waits for its peer's session.
    fn route(
        &mut self,
        packet: &mut [u8],
        inner: &Inner,
        len: usize,
        (meta, packets): (&RxMeta, usize),
        lan: &mut impl TxSink,
    ) -> Result<Option<Stream>, DropReason> {
        inner.scope()?;
        if self.sources.next_hop(self.snapshot, inner.source) != Some(NextHop::Local) {
            return Err(DropReason::LocalSource);
        }
        let (kind, reason) = match self.destinations.next_hop(self.snapshot, inner.destination) {
            Some(NextHop::Session(slot)) => match session(self.sessions, slot) {
                Some(session) => match self.denies(inner, packet) {
                    Some(Denial::FlowsFull) => return Err(Denial::FlowsFull.outbound()),
                    Some(denial) => (ErrorKind::AdminProhibited, denial.outbound()),
                    None if !too_big(inner, len, session) => {
                        mss::clamp(packet, inner, session.inner_mtu, meta.offload.checksum.is_some());
                        return Ok(Some(self.stream(slot, session, inner.traffic_class)));
                    }
                    None => (ErrorKind::PacketTooBig { mtu: session.inner_mtu }, DropReason::PacketTooBig),
                },
                // The policy judges what has waited when it is sent, and counts it then.
                None if !self.held.refuses(slot, self.snapshot.epoch) => {
                    let offered = Offered { bytes: packet, meta: *meta, packets, is_transit: false };
                    let around = (&mut *self.wheel, &mut *self.events, self.counters);
                    self.held.push(slot, &offered, self.snapshot.epoch, self.now, around);
                    return Ok(None);
                }
                None => (ErrorKind::HostUnreachable, DropReason::NoSession),
            },
            Some(NextHop::Local) | None => (ErrorKind::NoRoute, DropReason::NoRoute),
        };
        let from_v4 = self.snapshot.gateway_v4.or(Some(icmp::DUMMY_V4));
        if self.limiter.admit(self.now)
            && let Some(out) = lan.slot(icmp::ERROR_LEN_MAX)
            && let Some(len) = icmp::error(kind, from_v4, self.snapshot.gateway_v6, packet, out)
        {
            lan.commit(len, TxMeta::default());
            self.counters.add(Metric::IcmpErrorsSent, 1);
        }
        Err(reason)
    }

    /// Takes another peer's packet into the outbox, which has waited for a session. Its sender is told nothing any more.
    pub(super) fn held_transit(&mut self, packet: &mut [u8], outbox: &mut Outbox) -> Result<(), DropReason> {
        let inner = Inner::parse(packet)?;
        let Some(NextHop::Session(slot)) = self.snapshot.next_hop(inner.destination) else {
            return Err(DropReason::NoRoute);
        };
        let session = session(self.sessions, slot).ok_or(DropReason::NoSession)?;
        if too_big(&inner, packet.len(), session) {
            return Err(DropReason::PacketTooBig);
        }
        mss::clamp(packet, &inner, session.inner_mtu, false);
        outbox.push(slot, packet)
    }

    /// Why the policy has the packet dropped, if it has.
    #[inline]
    fn denies(&self, inner: &Inner, packet: &[u8]) -> Option<Denial> {
        self.policy.and_then(|policy| policy.admit(inner, packet, self.worker, self.now).err())
    }

    /// The stream towards a session of packets with this traffic class.
    fn stream(&self, slot: SessionSlot, session: &Session, class: u8) -> Stream {
        let outer = self.snapshot.dscp.outer(class);
        // Without a limit, packets that look alike outside may share a train whatever they are inside.
        let judged = if session.limiter.is_some() { class } else { outer };
        Stream { slot, class: outer, priority: Priority::of(judged) }
    }

    /// Sends what came up inside the engine: packets between peers, ICMP errors, and the control blocks that no packets took along.
    pub(super) fn own(&mut self, batch: &mut Batch, outbox: &mut Outbox, wan: &mut impl TxSink) {
        for from in (0..outbox.len()).step_by(BURST_LEN) {
            batch.clear();
            for i in from..outbox.len().min(from + BURST_LEN) {
                match session(self.sessions, outbox.to(i)) {
                    Some(session) => {
                        let stream = self.stream(outbox.to(i), session, outbox.class(i));
                        let packet = outbox.packet(i);
                        batch.push(i - from, stream, flow::hash_of(packet), packet.len());
                    }
                    None => self.counters.drop(DropReason::NoSession),
                }
            }
            for c in 0..batch.sort() {
                let (stream, mut members) = batch.members(c);
                self.keep_to_rate(stream, &mut members);
                let sent = self.send(stream, members.lens(), &mut InOutbox(outbox, &members, from), wan);
                for piece in &members.pieces()[..sent] {
                    let i = from + usize::from(piece.frame);
                    if outbox.is_transit(i) {
                        self.counters.add(Metric::TransitPackets, 1);
                        self.counters.add(Metric::TransitBytes, outbox.packet(i).len() as u64);
                    } else {
                        self.counters.add(Metric::IcmpErrorsSent, 1);
                    }
                }
            }
        }
        outbox.clear();
        self.send_asides(wan);
        for i in 0..std::mem::take(&mut self.waiting.count) {
            let slot = self.waiting.slots[i];
            if session(self.sessions, slot).is_some_and(Session::has_control) {
                self.control(slot, wan);
            }
            self.drive_path(slot, wan);
            self.drive_lane_ports(slot, wan);
        }
    }

    /// Sends a session's control blocks in a datagram of their own.
    pub(super) fn control(&mut self, slot: SessionSlot, wan: &mut impl TxSink) {
        let stream = Stream { slot, class: 0, priority: Priority::Control };
        self.send(stream, &[], &mut Nothing, wan);
    }

    /// Drops what is more than the peer may be sent.
    fn keep_to_rate(&self, stream: Stream, members: &mut Members<'_>) {
        if let Some(limiter) = session(self.sessions, stream.slot).and_then(|session| session.limiter.as_deref()) {
            let refused = members.retain(|len| limiter.admit(len, stream.priority, self.now));
            self.counters.drop_n(DropReason::PeerRate, refused as u64);
        }
    }

    /// Plans, lays and seals packets of these lengths for one peer, its waiting control blocks first. Returns how many went out.
    fn send(&mut self, stream: Stream, lens: &[u32], packets: &mut impl Packets, wan: &mut impl TxSink) -> usize {
        let Some(session) = session_mut(self.sessions, stream.slot) else {
            self.counters.drop_n(DropReason::NoSession, lens.len() as u64);
            return 0;
        };
        session.follow_path();
        let control = session.take_control();
        let control_bytes = control.as_ref().map_or(&[][..], |control| control.bytes());
        let plan = Plan::new(control_bytes.len(), lens, session.payload_len);
        let (destination, lane_port) = session.way();
        let meta = TxMeta {
            destination: Some(destination),
            source: session.source,
            lane_port,
            class: stream.class,
            ..TxMeta::default()
        };
        let sent = bundle::transmit(&plan, control_bytes, packets, &mut session.seal, wan, meta, self.now);
        if let Some(reason) = sent.stopped {
            self.counters.drop_n(reason, (lens.len() - sent.packets) as u64);
            match (reason, control) {
                (_, None) => {}
                (DropReason::WanQueueFull, Some(control)) if sent.trains == 0 => {
                    session.put_back_control(control);
                    // If too many wait already, the blocks go with the session's next packets.
                    let _ = self.waiting.push(stream.slot);
                }
                // With keys that are at their end, they would wait for ever.
                (_, Some(control)) if sent.trains == 0 => self.counters.drop_n(reason, control.len()),
                (_, Some(_)) => {}
            }
        }
        self.counters.add(Metric::TrainsSent, sent.trains as u64);
        self.counters.add(Metric::DatagramsSealed, sent.datagrams as u64);
        self.counters.add(Metric::SealedBytes, sent.bytes as u64);
        if !session.rekey_told && session.seal.rekey_due(self.now) {
            session.rekey_told = self.events.push(Event::RekeyDue(session.id));
        }
        if sent.packets > 0 {
            let bytes = lens[..sent.packets].iter().map(|&len| u64::from(len)).sum();
            let (worker, generation) = (session.seal.number(), session.seal.generation());
            session.traffic.sent(worker, sent.packets, bytes, generation, self.now);
            self.note_sent(stream.slot, sent.bytes);
            self.note_sent_by_lane(stream.slot);
        }
        sent.packets
    }
}

/// Why a frame from the local side is not sent now.
enum Kept {
    /// It goes nowhere, and so many packets with it.
    Dropped { reason: DropReason, packets: usize },
    /// It waits for its peer's session.
    Held,
}

impl From<DropReason> for Kept {
    fn from(reason: DropReason) -> Self {
        Self::Dropped { reason, packets: 1 }
    }
}
