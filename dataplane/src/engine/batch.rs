//! The packets of a batch, grouped by what may share a train.
//!
//! ```text
//!   frames    [ 0 ][ 1: a superpacket ][ 2 ]            as the port lent them
//!   packets    0    1   2   3   4   5    6              one for each segment: frame number, segment number, length
//!   chains    A: 0 ─▶ 6        B: 1 ─▶ 2 ─▶ 3 ─▶ 4 ─▶ 5
//! ```
//!
//! Nothing is moved: a chain of packet numbers runs through the batch for each [`Stream`], in the order in which the packets came. What is
//! in a packet is looked up when it is laid out, segment by segment, straight into the slot that is sealed.
//!
//! One flow may have packets in several streams, when a router before us has marked some of them. Where it would be overtaken by itself,
//! a stream gets a second chain behind the other's.

use super::bundle::{BATCH_LEN_MAX, LayError, Packets};
use super::class::Priority;
use super::offload::Segments;
use super::outbox::Outbox;
use super::port::{BURST_LEN, RxBurst};
use super::snapshot::SessionSlot;

/// What packets must have in common to share a train: the lane, which the session gives, and what the underlay sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) slot: SessionSlot,
    /// Traffic class of the datagrams.
    pub(super) class: u8,
    /// Who goes first.
    pub(super) priority: Priority,
}

/// One packet: a frame, or a segment of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) frame: u8,
    segment: u16,
}

/// The segment number of a packet that is a frame as it came. No superpacket has so many: each takes a byte, and the headers some more.
const WHOLE: u16 = u16::MAX;
/// End of a chain.
const NONE: u8 = u8::MAX;

const _: () = assert!(BATCH_LEN_MAX < NONE as usize && BURST_LEN <= BATCH_LEN_MAX);

#[derive(Clone, Copy)]
struct Chain {
    stream: Stream,
    first: u8,
    last: u8,
    flows: Flows,
}

/// Which flows may have packets in a chain: those whose bit is set.
#[derive(Clone, Copy, Default)]
struct Flows([u64; 8]);

impl Flows {
    fn may_hold(&self, flow: u32) -> bool {
        self.0[flow as usize / 64 % 8] & 1 << (flow % 64) != 0
    }

    fn insert(&mut self, flow: u32) {
        self.0[flow as usize / 64 % 8] |= 1 << (flow % 64);
    }
}

/// The packets of one batch, chained by stream without moving them. It is made once: nothing of it is cleared but its two counts.
pub(super) struct Batch {
    lens: [u32; BATCH_LEN_MAX],
    pieces: [Piece; BATCH_LEN_MAX],
    /// The packet after `i` of the same stream.
    next: [u8; BATCH_LEN_MAX],
    count: usize,
    /// Chains with packets, in the order of their first one until they are sorted.
    chains: [Chain; BATCH_LEN_MAX],
    chain_count: usize,
    /// How each frame is cut that a packet is a segment of.
    segments: [Option<Segments>; BURST_LEN],
    /// Where [`Self::members`] puts the packets of a chain together.
    together: (Box<[Piece]>, Box<[u32]>),
}

impl Batch {
    pub(super) fn new() -> Self {
        let stream = Stream { slot: SessionSlot(u32::MAX), class: 0, priority: Priority::Standard };
        let no_piece = Piece { frame: 0, segment: WHOLE };
        Self {
            lens: [0; BATCH_LEN_MAX],
            pieces: [no_piece; BATCH_LEN_MAX],
            next: [NONE; BATCH_LEN_MAX],
            count: 0,
            chains: [Chain { stream, first: NONE, last: NONE, flows: Flows::default() }; BATCH_LEN_MAX],
            chain_count: 0,
            segments: [None; BURST_LEN],
            together: ([no_piece; BATCH_LEN_MAX].into(), [0; BATCH_LEN_MAX].into()),
        }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.chain_count = 0;
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == BATCH_LEN_MAX
    }

    /// Adds a frame that is one packet of the flow with this hash. The batch is not full.
    pub(super) fn push(&mut self, frame: usize, stream: Stream, flow: u32, len: usize) {
        self.push_piece(Piece { frame: frame as u8, segment: WHOLE }, stream, flow, len);
    }

    /// Says how a frame is cut, before [`Self::push_segment`].
    pub(super) fn cut(&mut self, frame: usize, segments: Segments) {
        self.segments[frame] = Some(segments);
    }

    /// Adds a segment of a frame. The batch is not full.
    pub(super) fn push_segment(&mut self, frame: usize, segment: usize, stream: Stream, flow: u32, len: usize) {
        self.push_piece(Piece { frame: frame as u8, segment: segment as u16 }, stream, flow, len);
    }

    /// Bursts have few streams, so the newest chains are looked at first.
    fn push_piece(&mut self, piece: Piece, stream: Stream, flow: u32, len: usize) {
        let i = self.count;
        self.count += 1;
        self.lens[i] = len as u32;
        self.pieces[i] = piece;
        self.next[i] = NONE;
        // What goes first by its priority is meant to overtake; everything else of a flow is sent chain by chain, the oldest first.
        let concerns = |chain: &Chain| {
            let is_behind = chain.stream.slot == stream.slot && chain.stream.priority == stream.priority;
            chain.stream == stream || is_behind && chain.flows.may_hold(flow)
        };
        let newest = self.chains[..self.chain_count].iter_mut().rev().find(|chain| concerns(chain));
        let chain = match newest.filter(|chain| chain.stream == stream) {
            Some(chain) => {
                self.next[usize::from(chain.last)] = i as u8;
                chain.last = i as u8;
                chain
            }
            None => {
                let chain = &mut self.chains[self.chain_count];
                *chain = Chain { stream, first: i as u8, last: i as u8, flows: Flows::default() };
                self.chain_count += 1;
                chain
            }
        };
        chain.flows.insert(flow);
    }

    /// Puts the chains into the order in which they are to be sent, and says how many they are.
    pub(super) fn sort(&mut self) -> usize {
        let chains = &mut self.chains[..self.chain_count];
        if chains.len() > 1 {
            chains.sort_unstable_by_key(|chain| (std::cmp::Reverse(chain.stream.priority), chain.first));
        }
        self.chain_count
    }

    /// The packets of chain `c`.
    pub(super) fn members(&mut self, c: usize) -> (Stream, Members<'_>) {
        let Chain { stream, first, .. } = self.chains[c];
        let segments = &self.segments;
        if self.chain_count == 1 {
            let (pieces, lens) = (&mut self.pieces[..self.count], &mut self.lens[..self.count]);
            return (stream, Members { pieces, lens, count: self.count, segments });
        }
        let (pieces, lens) = &mut self.together;
        let (mut at, mut count) = (first, 0);
        while at != NONE {
            pieces[count] = self.pieces[usize::from(at)];
            lens[count] = self.lens[usize::from(at)];
            count += 1;
            at = self.next[usize::from(at)];
        }
        (stream, Members { pieces, lens, count, segments })
    }
}

/// The packets of one stream.
pub(super) struct Members<'a> {
    pieces: &'a mut [Piece],
    lens: &'a mut [u32],
    count: usize,
    segments: &'a [Option<Segments>; BURST_LEN],
}

impl Members<'_> {
    /// Their lengths, in order.
    pub(super) fn lens(&self) -> &[u32] {
        &self.lens[..self.count]
    }

    /// Which packets they are, in order.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }

    /// Bytes of the first `count` of them.
    pub(super) fn bytes(&self, count: usize) -> u64 {
        self.lens[..count].iter().map(|&len| u64::from(len)).sum()
    }

    /// Keeps those that may go, by their lengths, in order; says how many may not.
    pub(super) fn retain(&mut self, mut may_go: impl FnMut(usize) -> bool) -> usize {
        let before = self.count;
        self.count = 0;
        for i in 0..before {
            if may_go(self.lens[i] as usize) {
                self.lens[self.count] = self.lens[i];
                self.pieces[self.count] = self.pieces[i];
                self.count += 1;
            }
        }
        before - self.count
    }
}

/// The members' bytes, in a port's burst.
pub(super) struct InBurst<'a, R>(pub(super) &'a mut R, pub(super) &'a Members<'a>);

impl<R: RxBurst> Packets for InBurst<'_, R> {
    fn lay(&mut self, i: usize, from: usize, out: &mut [u8]) -> Result<(), LayError> {
        let Piece { frame, segment } = self.1.pieces[i];
        let (packet, _) = self.0.frame(usize::from(frame));
        match self.1.segments[usize::from(frame)] {
            Some(segments) if segment != WHOLE => segments.lay(packet, usize::from(segment), from, out),
            _ => out.copy_from_slice(packet.get(from..from + out.len()).ok_or(LayError)?),
        }
        Ok(())
    }
}

/// The members' bytes, in the outbox, where the batch begins at the packet with this number.
pub(super) struct InOutbox<'a>(pub(super) &'a Outbox, pub(super) &'a Members<'a>, pub(super) usize);

impl Packets for InOutbox<'_> {
    fn lay(&mut self, i: usize, from: usize, out: &mut [u8]) -> Result<(), LayError> {
        let packet = self.0.packet(self.2 + usize::from(self.1.pieces[i].frame));
        out.copy_from_slice(packet.get(from..from + out.len()).ok_or(LayError)?);
        Ok(())
    }
}

/// No packets at all: a datagram of control blocks.
pub(super) struct Nothing;

impl Packets for Nothing {
    fn lay(&mut self, _: usize, _: usize, _: &mut [u8]) -> Result<(), LayError> {
        Err(LayError)
    }
}
