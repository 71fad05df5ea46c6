//! One link: a connection of quinn-proto, its two control streams and its queues.
//!
//! ```text
//!  dialled:   Handshake ───────────────▶ Connected ──▶ Closed ──▶ (drained, forgotten)
//!  accepted:  Handshake ──▶ Opening ───▶ Connected ──▶ Closed
//!                           may speak    may also listen
//! ```
//!
//! Nothing of an accepted link's peer is read before its certificate is verified. What waits to be read by the user of the driver stops the
//! reading, and then flow control stops the peer; what waits to be sent is refused at a limit.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn_proto::{
    Connection, ConnectionHandle, Dir, Event as QuicEvent, ReadError, StreamEvent, StreamId, VarInt, WriteError,
};

use super::crypto::{self, Negotiated};
use super::frame::{self, MESSAGE_LEN_MAX, Reader, STRANGER_MESSAGE_LEN_MAX, STREAM_TYPE_CONTROL};
use super::limits::{Counters, Limits};
use super::{Alpn, CloseReason, Event, LinkId, Side, code};

/// What an event costs besides its bytes, in the account of what waits to be read.
const EVENT_COST: usize = 64;

/// How far a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing can be said yet.
    Handshake,
    /// Accepted, and the peer not verified: we may speak.
    Opening,
    /// Both may.
    Connected,
    /// Neither; quinn-proto still answers latecomers.
    Closed,
}

/// Figures of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The smoothed round trip.
    pub rtt: Duration,
    /// Datagrams sent and received.
    pub datagrams: (u64, u64),
    /// Bytes sent and received.
    pub bytes: (u64, u64),
    /// Packets that were lost.
    pub lost: u64,
    /// Bytes of the largest datagram that the path is known to carry.
    pub mtu: u16,
    /// Bytes that may be under way unacknowledged.
    pub congestion_window: u64,
    /// Bytes of messages that wait to be sent.
    pub queued: usize,
}

/// What all links share: where they tell, and what they may take.
pub(super) struct Shared {
    pub(super) events: VecDeque<Event>,
    pub(super) counters: Counters,
    pub(super) limits: Limits,
    /// Bytes of messages that the user has not taken yet.
    pub(super) unread: usize,
    /// Bytes of messages that are not complete yet.
    pub(super) partial: usize,
    /// Bytes of messages that quinn-proto has not taken yet.
    pub(super) queued: usize,
    /// Accepted links whose peers are not verified yet.
    pub(super) unverified: usize,
    /// Links that wait until somebody has read.
    pub(super) paused: VecDeque<LinkId>,
}

pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) handle: ConnectionHandle,
    pub(super) conn: Connection,
    pub(super) side: Side,
    pub(super) phase: Phase,
    /// What quinn-proto calls the peer.
    pub(super) name: SocketAddr,
    /// Where datagrams go.
    pub(super) path: SocketAddr,
    pub(super) deadline: Option<Instant>,
    pub(super) in_ready: bool,
    pub(super) in_dirty: bool,
    alpn: Option<Alpn>,
    began: Instant,
    handshake_until: Instant,
    keep_alive: Option<(Duration, Instant)>,
    out: Option<StreamId>,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first of `queue` that are gone already.
    queue_offset: usize,
    queued: usize,
    /// Streams of the peer whose type was not read yet.
    untyped: Vec<StreamId>,
    control: Option<StreamId>,
    reader: Reader,
    unread: usize,
    paused: bool,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        (handle, conn): (ConnectionHandle, Connection),
        side: Side,
        remote: SocketAddr,
        now: Instant,
        shared: &mut Shared,
    ) -> Self {
        shared.unverified += usize::from(side == Side::Accepted);
        Self {
            id,
            handle,
            conn,
            side,
            phase: Phase::Handshake,
            name: remote,
            path: remote,
            deadline: None,
            in_ready: false,
            in_dirty: false,
            alpn: None,
            began: now,
            handshake_until: now + shared.limits.handshake_max,
            keep_alive: None,
            out: None,
            queue: VecDeque::new(),
            queue_offset: 0,
            queued: 0,
            untyped: Vec::new(),
            control: None,
            reader: Reader::new(MESSAGE_LEN_MAX),
            unread: 0,
            paused: false,
        }
    }

    /// Whether the user still knows the link.
    pub(super) fn is_open(&self) -> bool {
        self.phase != Phase::Closed
    }

    /// Whether messages may be sent.
    pub(super) fn may_speak(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Connected)
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Queues a message whose size the driver has checked.
    pub(super) fn enqueue(&mut self, message: &[u8], shared: &mut Shared) {
        let framed = [&frame::header(message.len()), message].concat();
        self.queued += framed.len();
        shared.queued += framed.len();
        shared.counters.messages_out += 1;
        self.queue.push_back(framed);
    }

    /// What a message of `len` bytes costs in the account of what waits to be read.
    pub(super) const fn cost(len: usize) -> usize {
        len + EVENT_COST
    }

    /// The user has taken a message.
    pub(super) fn taken(&mut self, len: usize) {
        self.unread = self.unread.saturating_sub(Self::cost(len));
    }

    /// Nothing waits for the user any more: reading may go on.
    pub(super) fn unpause(&mut self) {
        self.paused = false;
    }

    pub(super) fn set_keep_alive(&mut self, every: Option<Duration>, now: Instant) {
        self.keep_alive = every.map(|every| (every, now + every));
    }

    pub(super) fn stats(&self) -> LinkStats {
        let stats = self.conn.stats();
        LinkStats {
            rtt: stats.path.rtt,
            datagrams: (stats.udp_tx.datagrams, stats.udp_rx.datagrams),
            bytes: (stats.udp_tx.bytes, stats.udp_rx.bytes),
            lost: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
            congestion_window: stats.path.cwnd,
            queued: self.queued,
        }
    }

    /// The next moment at which something is due.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        let own = match self.phase {
            Phase::Handshake | Phase::Opening => Some(self.handshake_until),
            Phase::Connected => self.keep_alive.map(|(_, at)| at),
            Phase::Closed => None,
        };
        [self.conn.poll_timeout(), own].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        if self.conn.poll_timeout().is_some_and(|at| at <= now) {
            self.conn.handle_timeout(now);
        }
        match self.phase {
            Phase::Handshake | Phase::Opening if self.handshake_until <= now => {
                self.close(now, code::HANDSHAKE_TIMEOUT, b"", CloseReason::HandshakeTimedOut, shared);
            }
            Phase::Connected => {
                if let Some((every, at)) = &mut self.keep_alive
                    && *at <= now
                {
                    *at = now + *every;
                    self.conn.ping();
                }
            }
            Phase::Handshake | Phase::Opening | Phase::Closed => {}
        }
    }

    /// Ends the link from this side.
    pub(super) fn close(&mut self, now: Instant, code: u32, words: &[u8], reason: CloseReason, shared: &mut Shared) {
        self.conn.close(now, VarInt::from_u32(code), words.to_vec().into());
        self.closed(reason, shared);
    }

    /// The link is over: tell it, and keep nothing that waits.
    fn closed(&mut self, reason: CloseReason, shared: &mut Shared) {
        if self.phase == Phase::Closed {
            return;
        }
        if self.side == Side::Accepted && self.phase != Phase::Connected {
            shared.unverified -= 1;
        }
        self.phase = Phase::Closed;
        shared.queued -= self.queued;
        shared.partial -= self.reader.held();
        (self.queue, self.queue_offset, self.queued) = (VecDeque::new(), 0, 0);
        (self.reader, self.untyped) = (Reader::new(0), Vec::new());
        shared.counters.count_closed(&reason);
        shared.events.push_back(Event::Closed { link: self.id, reason });
    }

    /// Takes what quinn-proto has to tell, reads what came, writes what waits.
    pub(super) fn pump(&mut self, now: Instant, shared: &mut Shared) {
        while let Some(event) = self.conn.poll() {
            match event {
                QuicEvent::HandshakeDataReady => self.opening(shared),
                QuicEvent::Connected => self.connected(now, shared),
                QuicEvent::ConnectionLost { reason } => {
                    let negotiated = crypto::negotiated(self.conn.crypto_session());
                    self.closed(CloseReason::of(reason, &negotiated), shared);
                }
                QuicEvent::Stream(event) => self.stream_event(&event, now, shared),
                QuicEvent::DatagramReceived | QuicEvent::DatagramsUnblocked => {}
            }
        }
        self.read(now, shared);
        self.write(now, shared);
    }

    /// The first flight of an accepted link is negotiated.
    fn opening(&mut self, shared: &mut Shared) {
        if self.side == Side::Dialled || self.phase != Phase::Handshake {
            return;
        }
        let negotiated = crypto::negotiated(self.conn.crypto_session());
        // TLS refuses a client that has none of our protocols in common, so there is one.
        let Some(alpn) = negotiated.alpn.as_deref().and_then(Alpn::from_wire) else { return };
        self.alpn = Some(alpn);
        self.phase = Phase::Opening;
        shared.events.push_back(Event::Opening { link: self.id, alpn, remote: self.path });
    }

    /// The handshake is complete on our side: the peer has proved its key, or shown none.
    fn connected(&mut self, now: Instant, shared: &mut Shared) {
        if self.phase == Phase::Closed {
            return;
        }
        let Negotiated { alpn, group, suite, chain, member, .. } = crypto::negotiated(self.conn.crypto_session());
        let (Some(alpn), Some(group), Some(suite)) = (alpn.as_deref().and_then(Alpn::from_wire), group, suite) else {
            let why = CloseReason::Protocol("no protocol was agreed on".to_owned());
            return self.close(now, code::NO_CERTIFICATE, b"", why, shared);
        };
        let stranger = member.is_none();
        if self.side == Side::Accepted && stranger && alpn != Alpn::Join {
            return self.close(
                now,
                code::NO_CERTIFICATE,
                b"a certificate is needed",
                CloseReason::NoCertificate,
                shared,
            );
        }
        if self.side == Side::Accepted {
            shared.unverified -= 1;
            if stranger {
                self.reader = Reader::new(STRANGER_MESSAGE_LEN_MAX);
            }
        }
        self.alpn = Some(alpn);
        self.phase = Phase::Connected;
        shared.counters.connected += 1;
        shared.events.push_back(Event::Connected {
            link: self.id,
            alpn,
            side: self.side,
            peer: member,
            chain,
            remote: self.path,
            group,
            suite,
            took: now.saturating_duration_since(self.began),
        });
    }

    fn stream_event(&mut self, event: &StreamEvent, now: Instant, shared: &mut Shared) {
        match *event {
            StreamEvent::Opened { dir: Dir::Uni } => {
                // At most as many as the transport lets a peer have open.
                while let Some(id) = self.conn.streams().accept(Dir::Uni) {
                    self.untyped.push(id);
                }
            }
            StreamEvent::Stopped { id, .. } if self.out == Some(id) => {
                let why = CloseReason::Protocol("the peer does not listen to the control stream".to_owned());
                self.close(now, code::CONTROL_STREAM, b"", why, shared);
            }
            // What can be read or written is tried after every turn, and other streams are not opened.
            StreamEvent::Opened { dir: Dir::Bi }
            | StreamEvent::Readable { .. }
            | StreamEvent::Writable { .. }
            | StreamEvent::Finished { .. }
            | StreamEvent::Stopped { .. }
            | StreamEvent::Available { .. } => {}
        }
    }

    fn read(&mut self, now: Instant, shared: &mut Shared) {
        if self.phase != Phase::Connected {
            return;
        }
        for id in std::mem::take(&mut self.untyped) {
            self.read_type(id, now, shared);
        }
        if let Some(id) = self.control {
            self.read_control(id, now, shared);
        }
    }

    /// Reads a stream's first byte, which says what it is.
    fn read_type(&mut self, id: StreamId, now: Instant, shared: &mut Shared) {
        if self.phase != Phase::Connected {
            return;
        }
        let mut stream = self.conn.recv_stream(id);
        let first = match stream.read(true) {
            Ok(mut chunks) => {
                let first = chunks.next(1);
                // What it changes is sent with whatever else there is: every turn ends with polling for datagrams.
                let _ = chunks.finalize();
                first
            }
            Err(_) => return,
        };
        match first {
            Ok(Some(chunk)) if chunk.bytes[..] == [STREAM_TYPE_CONTROL] && self.control.is_none() => {
                self.control = Some(id);
            }
            Ok(Some(chunk)) if chunk.bytes[..] == [STREAM_TYPE_CONTROL] => {
                let why = CloseReason::Protocol("a second control stream".to_owned());
                self.close(now, code::CONTROL_STREAM, b"a second control stream", why, shared);
            }
            Ok(Some(_)) => {
                shared.counters.streams_refused += 1;
                // It fails only for a stream that is over already.
                let _ = self.conn.recv_stream(id).stop(VarInt::from_u32(code::STREAM_TYPE_UNKNOWN));
            }
            Err(ReadError::Blocked) => self.untyped.push(id),
            // Over before it said what it was.
            Ok(None) | Err(ReadError::Reset(_)) => {}
        }
    }

    fn read_control(&mut self, id: StreamId, now: Instant, shared: &mut Shared) {
        let mut stream = self.conn.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        let mut wrong = None;
        while wrong.is_none() {
            if self.unread >= shared.limits.unread_link_max || shared.unread >= shared.limits.unread_total_max {
                if !self.paused {
                    self.paused = true;
                    shared.paused.push_back(self.id);
                }
                break;
            }
            let chunk = match chunks.next(shared.limits.read_once_max) {
                Ok(Some(chunk)) => chunk,
                Err(ReadError::Blocked) => break,
                Ok(None) | Err(ReadError::Reset(_)) => {
                    wrong = Some((code::CONTROL_STREAM, "the end of the control stream"));
                    break;
                }
            };
            let (before, mut piece) = (self.reader.held(), &chunk.bytes[..]);
            loop {
                match self.reader.take(&mut piece) {
                    Ok(Some(bytes)) => {
                        self.unread += Self::cost(bytes.len());
                        shared.unread += Self::cost(bytes.len());
                        shared.counters.messages_in += 1;
                        shared.events.push_back(Event::Message { link: self.id, bytes });
                    }
                    Ok(None) => break,
                    Err(frame::TooLong) => {
                        wrong = Some((code::MESSAGE_TOO_LONG, "a message longer than the limit"));
                        break;
                    }
                }
            }
            shared.partial = shared.partial - before + self.reader.held();
            if shared.partial > shared.limits.partial_total_max {
                wrong = Some((code::NO_ROOM, "too many unfinished messages"));
            }
        }
        let _ = chunks.finalize();
        if let Some((code, why)) = wrong {
            self.close(now, code, why.as_bytes(), CloseReason::Protocol(why.to_owned()), shared);
        }
    }

    fn write(&mut self, now: Instant, shared: &mut Shared) {
        if !self.may_speak() || self.queue.is_empty() {
            return;
        }
        let out = match self.out {
            Some(out) => out,
            None => {
                // A peer that gives no credit for a stream gets nothing until it does.
                let Some(out) = self.conn.streams().open(Dir::Uni) else { return };
                self.out = Some(out);
                // The type travels with the first message.
                if let Some(first) = self.queue.front_mut() {
                    first.insert(0, STREAM_TYPE_CONTROL);
                    self.queued += 1;
                    shared.queued += 1;
                }
                out
            }
        };
        while let Some(first) = self.queue.front() {
            match self.conn.send_stream(out).write(&first[self.queue_offset..]) {
                Ok(written) => {
                    self.queue_offset += written;
                    self.queued -= written;
                    shared.queued -= written;
                    if self.queue_offset == first.len() {
                        self.queue.pop_front();
                        self.queue_offset = 0;
                    }
                }
                Err(WriteError::Blocked) => return,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    let why = CloseReason::Protocol("the peer does not listen to the control stream".to_owned());
                    return self.close(now, code::CONTROL_STREAM, b"", why, shared);
                }
            }
        }
    }
}
