//! Receiving frames by the AF_XDP sockets of a worker: one burst at a time, lent until the next.
//!
//! A frame longer than a buffer arrives in several (`XDP_PKT_CONTD`); those are joined in memory of the port's own, because the engine
//! wants a packet in one piece. Every other frame stays where the kernel put it.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use weir_abi::drop::DropReason;
use weir_abi::frame::ETHERNET_LEN;

use super::Halves;
use super::socket::RxHalf;
use super::umem::{Frame, Purpose, Umem, XDP_PACKET_HEADROOM};
use super::watch::{Watch, Watched};
use crate::engine::port::{BURST_LEN, RxMeta, SUPERPACKET_LEN_MAX};

/// Longest frame that is put together, in bytes.
const FRAME_LEN_MAX: usize = ETHERNET_LEN + SUPERPACKET_LEN_MAX;
/// Most buffers of one frame: the longest frame in the shortest buffers, of 2048 bytes less the kernel's headroom.
const CHAIN_LEN_MAX: usize = FRAME_LEN_MAX / (2048 - XDP_PACKET_HEADROOM) + 1;
/// Bytes of joined frames in one burst: at least one of the longest, or some dozens of 9,000 bytes.
const JOINED_LEN: usize = 8 * FRAME_LEN_MAX;
/// Bursts between two looks at what the kernel dropped, each of which is a system call.
const STATISTICS_BURSTS: u32 = 4096;
/// Why this part drops a frame.
const REASONS: [DropReason; 7] = [
    DropReason::XskMalformed,
    DropReason::XskChecksum,
    DropReason::XskOversized,
    DropReason::XskDescriptor,
    DropReason::XskOverrun,
    DropReason::TtlExpired,
    DropReason::InnerMalformed,
];

/// Where the bytes of a received frame are.
enum Place {
    Frame(Frame),
    Joined,
}

struct Received {
    place: Place,
    span: Range<usize>,
    meta: RxMeta,
}

/// A frame of several buffers that has not come to its end.
struct Chain {
    /// Its buffers so far.
    buffers: Vec<(Frame, Range<usize>)>,
    /// Their bytes.
    len: usize,
    /// It is too long, or one of its buffers was not ours: the rest is thrown away.
    spoilt: bool,
}

impl Chain {
    fn new() -> Self {
        Self { buffers: Vec::with_capacity(CHAIN_LEN_MAX), len: 0, spoilt: false }
    }

    fn is_open(&self) -> bool {
        !self.buffers.is_empty() || self.spoilt
    }

    /// Adds what a descriptor named. Past the longest frame nothing is kept.
    fn add(&mut self, reclaimed: Option<(Frame, Range<usize>)>, umem: &Umem) {
        match reclaimed {
            Some((frame, span)) => {
                self.len += span.len();
                self.spoilt |= self.len > FRAME_LEN_MAX || self.buffers.len() == CHAIN_LEN_MAX;
                if self.spoilt { umem.give(frame) } else { self.buffers.push((frame, span)) }
            }
            None => self.spoilt = true,
        }
    }

    /// Copies the whole frame to the front of `joined` and frees its buffers. Returns its length; `None` for a spoilt one.
    fn join(&mut self, umem: &Umem, joined: &mut [u8]) -> Option<usize> {
        let spoilt = std::mem::take(&mut self.spoilt);
        let mut at = 0;
        for (mut frame, span) in self.buffers.drain(..) {
            if !spoilt {
                joined[at..at + span.len()].copy_from_slice(&umem.bytes(&mut frame)[span.clone()]);
                at += span.len();
            }
            umem.give(frame);
        }
        self.len = 0;
        (!spoilt).then_some(at)
    }
}

/// The receiving halves of one port.
pub(super) struct Receive {
    watched: Watched,
    umem: Rc<Umem>,
    halves: Vec<(RxHalf, Chain)>,
    /// Which half is asked first: they take turns.
    turn: usize,
    burst: Vec<Received>,
    joined: Box<[u8]>,
    joined_len: usize,
    bursts: u32,
    dropped: [u64; REASONS.len()],
}

impl Receive {
    /// Takes the halves on these interfaces and gives the kernel frames to receive into.
    pub(super) fn new(watch: &Watch, halves: &mut Halves, interfaces: &[u32]) -> io::Result<Self> {
        let taken = halves.take_rx(interfaces);
        let watched = Watched::arrivals(watch, taken.iter().map(RxHalf::descriptor))?;
        let mut this = Self::with(watched, Rc::clone(&halves.umem), taken);
        this.halves.iter_mut().for_each(|(half, _)| half.refill(&this.umem));
        Ok(this)
    }

    pub(super) fn with(watched: Watched, umem: Rc<Umem>, halves: Vec<RxHalf>) -> Self {
        Self {
            watched,
            umem,
            halves: halves.into_iter().map(|half| (half, Chain::new())).collect(),
            turn: 0,
            burst: Vec::with_capacity(BURST_LEN),
            joined: vec![0; JOINED_LEN].into(),
            joined_len: 0,
            bursts: 0,
            dropped: [0; REASONS.len()],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.burst.len()
    }

    pub(super) fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let Received { place, span, meta } = &mut self.burst[i];
        let bytes = match place {
            Place::Frame(frame) => self.umem.bytes(frame),
            Place::Joined => &mut self.joined[..],
        };
        (&mut bytes[span.clone()], *meta)
    }

    /// Gives the burst before back and takes the next one. `parse` finds what the engine wants in a frame.
    pub(super) fn burst(
        &mut self,
        mut parse: impl FnMut(&mut [u8]) -> Result<(Range<usize>, RxMeta), DropReason>,
    ) -> io::Result<usize> {
        self.clear();
        self.watched.look()?;
        for i in 0..self.halves.len() {
            let at = (self.turn + i) % self.halves.len();
            self.fill(at, &mut parse);
        }
        self.turn = (self.turn + 1) % self.halves.len().max(1);
        self.count();
        Ok(self.burst.len())
    }

    /// Gives the burst before back.
    fn clear(&mut self) {
        for received in self.burst.drain(..) {
            if let Place::Frame(frame) = received.place {
                self.umem.give(frame);
            }
        }
        self.joined_len = 0;
    }

    fn fill(&mut self, at: usize, parse: &mut impl FnMut(&mut [u8]) -> Result<(Range<usize>, RxMeta), DropReason>) {
        let (half, chain) = &mut self.halves[at];
        half.refill(&self.umem);
        let mut any = false;
        while self.burst.len() < BURST_LEN
            && self.joined.len() - self.joined_len >= FRAME_LEN_MAX
            && let Some(descriptor) = half.pop()
        {
            any = true;
            let ends = descriptor.options & libc::XDP_PKT_CONTD == 0;
            let reclaimed = self.umem.reclaim(descriptor.addr, descriptor.len, Purpose::Fill);
            if !ends || chain.is_open() {
                chain.add(reclaimed, &self.umem);
                if !ends {
                    continue;
                }
                let start = self.joined_len;
                let Some(end) = chain.join(&self.umem, &mut self.joined[start..]).map(|len| start + len) else {
                    note(&mut self.dropped, DropReason::XskOversized, 1);
                    continue;
                };
                match parse(&mut self.joined[start..end]) {
                    Ok((inside, meta)) => {
                        self.joined_len = end;
                        let span = start + inside.start..start + inside.end;
                        self.burst.push(Received { place: Place::Joined, span, meta });
                    }
                    Err(reason) => note(&mut self.dropped, reason, 1),
                }
                continue;
            }
            let Some((mut frame, span)) = reclaimed else { continue };
            match parse(&mut self.umem.bytes(&mut frame)[span.clone()]) {
                Ok((inside, meta)) => {
                    let span = span.start + inside.start..span.start + inside.end;
                    self.burst.push(Received { place: Place::Frame(frame), span, meta });
                }
                Err(reason) => {
                    self.umem.give(frame);
                    note(&mut self.dropped, reason, 1);
                }
            }
        }
        if any {
            half.release();
        }
    }

    /// Takes down what else was dropped: descriptors that cannot be, and, now and then, what the kernel dropped before us.
    fn count(&mut self) {
        note(&mut self.dropped, DropReason::XskDescriptor, self.umem.take_strays());
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts.is_multiple_of(STATISTICS_BURSTS) {
            let lost = self.halves.iter_mut().map(|(half, _)| half.take_lost()).sum();
            note(&mut self.dropped, DropReason::XskOverrun, lost);
        }
    }

    /// What was dropped here since the last call, one reason at a time.
    pub(super) fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        let i = self.dropped.iter().position(|&count| count > 0)?;
        Some((REASONS[i], std::mem::take(&mut self.dropped[i])))
    }
}

fn note(dropped: &mut [u64; REASONS.len()], reason: DropReason, count: u64) {
    if let Some(i) = REASONS.iter().position(|&known| known == reason) {
        dropped[i] += count;
    }
}
