//! Packets for the local side that wait, within one burst, to be joined to superpackets.
//!
//! ```text
//!   burst   │ frame 0: P P P │ frame 1: P P │ …        a packet that came whole stays where it was opened
//!   arena   │ P │ P │                                  a packet that was put together is copied here: its buffer is the next one's
//!              └──┴──▶ Coalescer ──▶ local side        at the burst's end, or when enough has come together
//! ```
//!
//! Nothing waits longer than its burst, and packets of one flow leave in the order in which they came. A local side that takes no
//! superpackets is served directly, without all this.

use weir_abi::drop::DropReason;

use super::block::PARTIAL_LEN_MAX;
use super::counters::{Counters, Metric};
use super::inner::{IPV4_LEN, Inner};
use super::offload::{Coalescer, Delivered, Lent, Place};
use super::port::{RxBurst, SUPERPACKET_LEN_MAX, TRAIN_LEN_MAX, TxSink};

/// Bytes that may wait before they are written: they shall still be in the second-level cache then.
const WAITING_BYTES_MAX: usize = 128 * 1024;
/// Bytes of the arena: a few of the longest packets, more than one datagram can bring while there is room for another.
const ARENA_LEN: usize = 256 * 1024;
/// Packets that wait while the coalescer is full: as many as the longest datagram holds, and one that it ends.
const LATE_MAX: usize = TRAIN_LEN_MAX / IPV4_LEN + 1;
/// The number of the frame that is the arena.
const ARENA: u16 = u16::MAX;

/// What waits.
pub(super) struct Delivery {
    coalescer: Coalescer,
    arena: Box<[u8]>,
    arena_used: usize,
    /// Packets behind those in the coalescer, in order. The datagram that they are in must be done with before it can be emptied.
    late: Vec<Place>,
    bytes: usize,
}

impl Delivery {
    pub(super) fn new() -> Self {
        Self {
            coalescer: Coalescer::new(),
            arena: vec![0; ARENA_LEN].into_boxed_slice(),
            arena_used: 0,
            late: Vec::with_capacity(LATE_MAX),
            bytes: 0,
        }
    }

    /// Takes a packet that `inner` was parsed from. `place` tells the frame and the byte where it begins, unless it will not stay there.
    pub(super) fn push(
        &mut self,
        inner: &Inner,
        packet: &[u8],
        place: Option<(usize, usize)>,
    ) -> Result<(), DropReason> {
        if packet.len() > SUPERPACKET_LEN_MAX {
            return Err(DropReason::LanOversized);
        }
        let len = packet.len() as u32;
        let place = match place {
            Some((frame, start)) => Place { frame: frame as u16, start: start as u32, len },
            None => {
                let start = self.arena_used;
                let room = self.arena.get_mut(start..start + packet.len()).ok_or(DropReason::LanQueueFull)?;
                room.copy_from_slice(packet);
                self.arena_used += packet.len();
                Place { frame: ARENA, start: start as u32, len }
            }
        };
        // Once full, it stays so until the flush: what is late stays behind.
        if !self.coalescer.push(inner, packet, place) {
            if self.late.len() == LATE_MAX {
                return Err(DropReason::LanQueueFull);
            }
            self.late.push(place);
        }
        self.bytes += packet.len();
        Ok(())
    }

    /// Whether it is time to write what waits, although the burst goes on. To be asked after each datagram.
    pub(super) fn is_due(&self) -> bool {
        self.bytes > WAITING_BYTES_MAX || !self.late.is_empty() || self.arena_used > ARENA_LEN - PARTIAL_LEN_MAX
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self, rx: &mut impl RxBurst, lan: &mut impl TxSink, counters: &Counters) {
        if self.coalescer.is_empty() {
            return;
        }
        let mut report = |delivered| match delivered {
            Delivered::Written { packets, bytes } => {
                counters.add(Metric::WanToLanPackets, packets as u64);
                counters.add(Metric::WanToLanBytes, bytes as u64);
            }
            Delivered::Dropped { packets, reason } => counters.drop_n(reason, packets as u64),
        };
        let mut lent = Waiting { rx, arena: &self.arena };
        let mut late = self.late.iter().peekable();
        while !self.coalescer.is_empty() {
            self.coalescer.flush(&mut lent, lan, &mut report);
            while let Some(&&place) = late.peek() {
                let packet = lent.bytes(place);
                match Inner::parse(packet) {
                    Ok(inner) if !self.coalescer.push(&inner, packet, place) => break,
                    Ok(_) => {}
                    Err(reason) => counters.drop(reason),
                }
                late.next();
            }
        }
        self.late.clear();
        self.arena_used = 0;
        self.bytes = 0;
    }
}

/// The bytes of what waits.
struct Waiting<'a, R> {
    rx: &'a mut R,
    arena: &'a [u8],
}

impl<R: RxBurst> Lent for Waiting<'_, R> {
    fn bytes(&mut self, Place { frame, start, len }: Place) -> &[u8] {
        let bytes = if frame == ARENA { self.arena } else { self.rx.frame(usize::from(frame)).0 };
        &bytes[start as usize..][..len as usize]
    }
}
