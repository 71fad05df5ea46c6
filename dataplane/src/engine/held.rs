//! Packets that wait for a session which is not there yet: the first ones of a conversation with a peer that nobody has spoken to.
//!
//! ```text
//!                 a packet: `Wanted` is told             lifetime over: hold_expired
//!   ( nothing ) ─────────────────────────▶ ┌─────────┐ ─────────────────────────────▶ ┌─────────┐
//!       ▲  ▲                               │ HOLDING │                                │ RESTING │ packets are refused:
//!       │  │     session is there: sent    └─────────┘ ◀── a packet ── ┌───────┐      └─────────┘ the caller answers
//!       │  └───────────────────────────────────┘                       │ READY │ ◀──────── │
//!       │                         nobody asks for as long              └───────┘   rest is │ over, and packets were refused
//!       └────────────────────────────────────────────────────────────────┴─────────────────┘ over, and none was
//! ```
//!
//! Each rest is twice as long as the one before. A packet is kept with what its port said of it, superpackets whole, and goes through the
//! same judgement as any other when its turn has come: routes may be others by then. What is beyond a limit is the oldest: the sender's next
//! try is worth more than its last one.
//!
//! This is the one place of the packet path that allocates, a box a packet, and only for peers without a session. Slots can be
//! given to another session when routes change, so a new snapshot makes everybody ask again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use weir_abi::drop::DropReason;

use super::counters::Counters;
use super::port::{BURST_LEN, RxBurst, RxMeta};
use super::snapshot::SessionSlot;
use super::time::Time;
use super::wheel::{TimerId, Wheel};
use super::{Deadline, Event, Events};

/// Most packets that wait for one session: one burst of a few hosts that all begin to speak.
pub const HELD_PACKETS_MAX: usize = 32;
/// Most bytes that wait for one session: one superpacket of any length.
pub const HELD_BYTES_MAX: usize = 64 * 1024;
/// Most bytes that wait in one worker: 64 sessions at their limit. Ring buffers of a worker are as large.
pub const HELD_TOTAL_MAX: usize = 4 * 1024 * 1024;
/// What a short packet counts for: its place in the books takes as much again as it does.
pub const HELD_CHARGE_MIN: usize = 256;
/// How long packets wait: a key exchange over a bad path, with a loss that is found out after a second. Whoever waits longer has tried again.
pub const HOLD_LIFETIME: Duration = Duration::from_secs(5);
/// The first rest, in which packets are refused. It doubles up to [`HOLD_REST_MAX`].
pub const HOLD_REST_MIN: Duration = Duration::from_secs(5);
/// The longest rest: a peer that comes back is found within this.
pub const HOLD_REST_MAX: Duration = Duration::from_secs(60);

// Held packets go out as a burst.
const _: () = assert!(HELD_PACKETS_MAX <= BURST_LEN);

/// A packet to be held.
pub(super) struct Offered<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) meta: RxMeta,
    /// How many packets it is when it is cut.
    pub(super) packets: usize,
    /// Whether it is another peer's.
    pub(super) is_transit: bool,
}

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Packet {
    number: u64,
    pub(super) bytes: Box<[u8]>,
    pub(super) meta: RxMeta,
    packets: usize,
    pub(super) is_transit: bool,
}

impl Packet {
    fn charge(&self) -> usize {
        charge(&self.bytes)
    }
}

fn charge(bytes: &[u8]) -> usize {
    bytes.len().max(HELD_CHARGE_MIN)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Holding,
    Resting { refused: bool },
    Ready,
}

/// What waits for one session.
#[derive(Debug)]
struct Wait {
    phase: Phase,
    /// The snapshot that named the slot.
    epoch: u64,
    /// Whether the control thread knows.
    told: bool,
    packets: VecDeque<Packet>,
    bytes: usize,
    rest: Duration,
    timer: Option<TimerId>,
}

impl Wait {
    fn new(epoch: u64) -> Self {
        let (phase, packets) = (Phase::Ready, VecDeque::new());
        Self { phase, epoch, told: false, packets, bytes: 0, rest: HOLD_REST_MIN, timer: None }
    }
}

/// All packets that wait in one worker.
#[derive(Debug, Default)]
pub(super) struct Held {
    waits: HashMap<SessionSlot, Wait>,
    /// Whose each packet is, by number: the first is the oldest.
    order: BTreeMap<u64, SessionSlot>,
    bytes: usize,
    next: u64,
    /// Sessions that came up and have packets here.
    due: Vec<SessionSlot>,
}

impl Held {
    /// Whether packets for the session are to be refused now; says so to whoever asks next for the rest.
    pub(super) fn refuses(&mut self, slot: SessionSlot, epoch: u64) -> bool {
        match self.waits.get_mut(&slot) {
            Some(Wait { phase: Phase::Resting { refused }, epoch: then, .. }) if *then == epoch => {
                *refused = true;
                true
            }
            _ => false,
        }
    }

    /// Keeps a packet that is not refused.
    pub(super) fn push(
        &mut self,
        slot: SessionSlot,
        offered: &Offered<'_>,
        epoch: u64,
        now: Time,
        (wheel, events, counters): (&mut Wheel<Deadline>, &mut Events, &Counters),
    ) {
        let wait = self.waits.entry(slot).or_insert_with(|| Wait::new(epoch));
        if wait.epoch != epoch {
            (wait.epoch, wait.told, wait.rest) = (epoch, false, HOLD_REST_MIN);
        }
        if wait.phase != Phase::Holding {
            wait.phase = Phase::Holding;
            wait.told = false;
            if let Some(timer) = wait.timer.take() {
                wheel.cancel(timer);
            }
            wait.timer = wheel.schedule(now.plus(HOLD_LIFETIME), Deadline::Hold(slot)).ok();
        }
        if !wait.told {
            wait.told = events.push(Event::Wanted(slot));
        }
        let new = charge(offered.bytes);
        while let Some(wait) = self.waits.get(&slot)
            && !wait.packets.is_empty()
            && (wait.packets.len() >= HELD_PACKETS_MAX || wait.bytes + new > HELD_BYTES_MAX)
        {
            self.evict(slot, counters);
        }
        while self.bytes + new > HELD_TOTAL_MAX
            && let Some((_, &oldest)) = self.order.first_key_value()
        {
            self.evict(oldest, counters);
        }
        let Some(wait) = self.waits.get_mut(&slot) else { return };
        self.next += 1;
        self.order.insert(self.next, slot);
        self.bytes += new;
        wait.bytes += new;
        let Offered { bytes, meta, packets, is_transit } = *offered;
        wait.packets.push_back(Packet { number: self.next, bytes: bytes.into(), meta, packets, is_transit });
    }

    /// Drops the oldest packet of a session.
    fn evict(&mut self, slot: SessionSlot, counters: &Counters) {
        let Some(wait) = self.waits.get_mut(&slot) else { return };
        let Some(packet) = wait.packets.pop_front() else { return };
        wait.bytes -= packet.charge();
        self.forget(&packet);
        counters.drop_n(DropReason::HoldQueueFull, packet.packets as u64);
    }

    /// Takes a packet out of the books that are kept for all sessions.
    fn forget(&mut self, packet: &Packet) {
        self.bytes -= packet.charge();
        self.order.remove(&packet.number);
    }

    /// The session in this slot is there now: what waits for it can go.
    pub(super) fn is_up(&mut self, slot: SessionSlot, wheel: &mut Wheel<Deadline>) {
        match self.waits.get(&slot) {
            Some(wait) if !wait.packets.is_empty() => self.due.push(slot),
            Some(_) => drop(self.take(slot, wheel)),
            None => {}
        }
    }

    /// Whether anything can go.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The packets of the next session that can be sent, in order.
    pub(super) fn next_due(&mut self, wheel: &mut Wheel<Deadline>) -> Option<VecDeque<Packet>> {
        let slot = self.due.pop()?;
        Some(self.take(slot, wheel))
    }

    fn take(&mut self, slot: SessionSlot, wheel: &mut Wheel<Deadline>) -> VecDeque<Packet> {
        let Some(wait) = self.waits.remove(&slot) else { return VecDeque::new() };
        if let Some(timer) = wait.timer {
            wheel.cancel(timer);
        }
        wait.packets.iter().for_each(|packet| self.forget(packet));
        wait.packets
    }

    /// The slot's timer has run out.
    pub(super) fn expire(&mut self, slot: SessionSlot, now: Time, wheel: &mut Wheel<Deadline>, counters: &Counters) {
        let Some(wait) = self.waits.get_mut(&slot) else { return };
        wait.timer = None;
        match wait.phase {
            Phase::Holding => {
                wait.phase = Phase::Resting { refused: false };
                wait.bytes = 0;
                wait.timer = wheel.schedule(now.plus(wait.rest), Deadline::Hold(slot)).ok();
                for packet in std::mem::take(&mut wait.packets) {
                    self.forget(&packet);
                    counters.drop_n(DropReason::HoldExpired, packet.packets as u64);
                }
            }
            Phase::Resting { refused: true } => {
                wait.phase = Phase::Ready;
                wait.rest = (wait.rest * 2).min(HOLD_REST_MAX);
                wait.timer = wheel.schedule(now.plus(wait.rest), Deadline::Hold(slot)).ok();
            }
            Phase::Resting { refused: false } | Phase::Ready => {
                self.waits.remove(&slot);
            }
        }
    }

    /// Packets and bytes that wait, as they are charged.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.order.len(), self.bytes)
    }
}

/// Held packets of the local side, as the burst that they once were part of.
pub(super) struct Burst(pub(super) VecDeque<Packet>);

impl RxBurst for Burst {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let packet = &mut self.0[i];
        (&mut packet.bytes, packet.meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_all_goes_when_a_worker_holds_as_much_as_it_may() {
        let counters = Counters::new();
        let (mut wheel, mut events, mut held) = (Wheel::new(100), Events::default(), Held::default());
        let bytes = vec![7; HELD_BYTES_MAX];
        let mut push = |held: &mut Held, slot, len: usize| {
            let offered = Offered { bytes: &bytes[..len], meta: RxMeta::default(), packets: 1, is_transit: false };
            held.push(SessionSlot(slot), &offered, 1, Time::ZERO, (&mut wheel, &mut events, &counters));
        };
        let sessions = (HELD_TOTAL_MAX / HELD_BYTES_MAX) as u32;
        (0..sessions).for_each(|slot| push(&mut held, slot, HELD_BYTES_MAX));
        assert_eq!(held.waiting(), (sessions as usize, HELD_TOTAL_MAX));
        assert_eq!(counters.reader().snapshot().dropped(DropReason::HoldQueueFull), 0);
        push(&mut held, sessions, 1);
        let left = HELD_TOTAL_MAX - HELD_BYTES_MAX + HELD_CHARGE_MIN;
        assert_eq!(held.waiting(), (sessions as usize, left), "a short packet counts for its place as well");
        assert_eq!(counters.reader().snapshot().dropped(DropReason::HoldQueueFull), 1);
        assert!(held.waits[&SessionSlot(0)].packets.is_empty());
        assert_eq!(held.waits[&SessionSlot(1)].packets.len(), 1);
        // The books are empty when all have gone.
        for slot in 0..=sessions {
            held.is_up(SessionSlot(slot), &mut wheel);
        }
        while held.next_due(&mut wheel).is_some() {}
        assert_eq!((held.waiting(), held.waits.len(), wheel.len()), ((0, 0), 0, 0));
    }

    #[test]
    fn a_notice_that_found_no_room_is_given_with_the_next_packet() {
        let counters = Counters::new();
        let (mut wheel, mut events, mut held) = (Wheel::new(100), Events::default(), Held::default());
        while events.push(Event::Closed(crate::api::message::SessionId(1))) {}
        let offered = Offered { bytes: &[1], meta: RxMeta::default(), packets: 1, is_transit: false };
        held.push(SessionSlot(1), &offered, 1, Time::ZERO, (&mut wheel, &mut events, &counters));
        while events.pop().is_some() {}
        held.push(SessionSlot(1), &offered, 1, Time::ZERO, (&mut wheel, &mut events, &counters));
        assert!(matches!(events.pop(), Some(Event::Wanted(SessionSlot(1)))));
    }
}
