//! Carrying a plan out: plaintexts are laid into the slots of a port, sealed there and queued.

use weir_abi::drop::DropReason;
use weir_abi::wire::block::{CONTINUATION, CONTINUATION_HEADER_LEN, CONTINUATION_LEN_MAX};
use weir_abi::wire::{HEADER_LEN, TAG_LEN};

use super::{Piece, Place, Plan, Train};
use crate::engine::lane::SealLane;
use crate::engine::port::{TxMeta, TxSink};
use crate::engine::time::Time;

/// The packets of a batch, wherever they lie and whether or not they are there as one.
pub trait Packets {
    /// Writes bytes of packet `i`, from byte `from` of it, until `out` is full. Within one packet, `from` only grows.
    ///
    /// # Errors
    /// When the packet has no such bytes: it is not the one that the plan was made for.
    fn lay(&mut self, i: usize, from: usize, out: &mut [u8]) -> Result<(), LayError>;
}

impl<T: AsRef<[u8]>> Packets for [T] {
    fn lay(&mut self, i: usize, from: usize, out: &mut [u8]) -> Result<(), LayError> {
        let packet = self[i].as_ref();
        out.copy_from_slice(packet.get(from..from + out.len()).ok_or(LayError)?);
        Ok(())
    }
}

impl Train<'_> {
    /// Lays the plaintexts into `slot`, which has [`Self::len`] bytes, each with room for its header before it and its tag behind, and
    /// hands each datagram to `seal` while it is still in the nearest cache.
    ///
    /// # Errors
    /// [`DropReason::LocalMalformed`] when a packet, the control blocks or the slot do not have the length that the plan was told: a fault
    /// of the caller's. What `seal` says. The slot must not be sent then, and the rest of the plan neither.
    pub fn fill<P: Packets + ?Sized>(
        &self,
        control: &[u8],
        packets: &mut P,
        slot: &mut [u8],
        mut seal: impl FnMut(&mut [u8]) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        let mut place = self.from;
        let mut rest = slot.get_mut(..self.len).ok_or(LayError)?;
        for _ in 0..self.datagrams {
            let (datagram, behind) = rest.split_at_mut(self.size.min(rest.len()));
            self.lay(&mut place, control, packets, datagram)?;
            seal(datagram)?;
            rest = behind;
        }
        Ok(())
    }

    /// Lays the plaintext of the datagram that begins at `place`, and moves `place` behind it.
    fn lay<P: Packets + ?Sized>(
        &self,
        place: &mut Place,
        control: &[u8],
        packets: &mut P,
        datagram: &mut [u8],
    ) -> Result<(), LayError> {
        let mut at = HEADER_LEN;
        let mut laid = Ok(());
        self.plan.datagram(place, |piece| {
            let (header, len) = match piece {
                Piece::Control => (0, self.plan.control_len),
                Piece::Padding(len) | Piece::Packet { from: 0, len, .. } => (0, len),
                Piece::Packet { len, .. } => (CONTINUATION_HEADER_LEN, len),
            };
            let Some((before, out)) = datagram.get_mut(at..at + header + len).map(|room| room.split_at_mut(header))
            else {
                laid = Err(LayError);
                return;
            };
            at += header + len;
            let written = match piece {
                Piece::Control if control.len() == len => {
                    out.copy_from_slice(control);
                    Ok(())
                }
                Piece::Control => Err(LayError),
                Piece::Padding(_) => {
                    out.fill(0);
                    Ok(())
                }
                Piece::Packet { packet, from, .. } => {
                    before.copy_from_slice(&continuation_header(from, len)[..header]);
                    packets.lay(packet, from, out)
                }
            };
            laid = laid.and(written);
        });
        debug_assert!(laid.is_err() || at + TAG_LEN == datagram.len());
        laid
    }
}

/// A packet, the control blocks or the slot did not have the length that the plan was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayError;

impl From<LayError> for DropReason {
    fn from(LayError: LayError) -> Self {
        Self::LocalMalformed
    }
}

/// The two bytes before a continuation's piece.
fn continuation_header(from: usize, len: usize) -> [u8; CONTINUATION_HEADER_LEN] {
    debug_assert!(from == 0 || len <= CONTINUATION_LEN_MAX);
    (u16::from(CONTINUATION) << 12 | (len & CONTINUATION_LEN_MAX) as u16).to_be_bytes()
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets that went out, from the front of the batch. All others were dropped.
    pub packets: usize,
    /// Sends that were queued.
    pub trains: usize,
    /// Datagrams in them.
    pub datagrams: usize,
    /// Bytes of them, headers and tags included.
    pub bytes: usize,
    /// Why the rest of the batch was dropped, when not all of it went out.
    pub stopped: Option<DropReason>,
}

/// Carries a plan out: lays, seals and queues train after train, and stops for good at the first that cannot be queued.
///
/// `meta` says everything of the datagrams but how they are cut. The control blocks went out when [`Sent::trains`] is not zero.
pub fn transmit<P: Packets + ?Sized>(
    plan: &Plan<'_>,
    control: &[u8],
    packets: &mut P,
    lane: &mut SealLane,
    sink: &mut impl TxSink,
    meta: TxMeta,
    now: Time,
) -> Sent {
    let mut sent = Sent::default();
    let mut trains = plan.trains();
    while let Some(train) = trains.next() {
        let Some(slot) = sink.slot(train.len()) else {
            sent.stopped = Some(DropReason::WanQueueFull);
            break;
        };
        if let Err(reason) = train.fill(control, packets, slot, |datagram| lane.seal(datagram, now).map(|_| ())) {
            debug_assert_ne!(reason, LayError.into(), "the plan was made for other lengths");
            sent.stopped = Some(reason);
            break;
        }
        sink.commit(train.len(), TxMeta { segment: train.segment(), ..meta });
        sent.packets = trains.packets_done();
        sent.trains += 1;
        sent.datagrams += train.datagrams();
        sent.bytes += train.len();
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::super::PayloadLen;
    use super::super::tests::{ETHERNET, lens, path, payload};
    use super::*;
    use crate::api::message::{Incarnation, Secret, SessionId};
    use crate::engine::aead::Algorithm;
    use crate::engine::block::{Block, Control, Origin, Reassembly, Visitor, block_at};
    use crate::engine::keys::{Context, Direction, LaneSecret, Side};
    use crate::engine::lane::{Limits, OpenLane};
    use crate::engine::port::TRAIN_LEN_MAX;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use weir_abi::wire::{DataHeader, ReceiverIndex};

    const RECEIVER: ReceiverIndex = ReceiverIndex(0xabcd);

    fn lanes() -> (SealLane, OpenLane) {
        let side = Side { incarnation: Incarnation(1), salt: [1; 16] };
        let context = Context::new(SessionId(1), side, side, true, Algorithm::for_this_cpu());
        let secret = LaneSecret::derive(&Secret::new([9; 32]), &context, Direction::FromInitiator, 0);
        let limits = Limits::default();
        (
            SealLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
            OpenLane::new(&secret, 0, RECEIVER, Time::ZERO, limits),
        )
    }

    /// A valid-looking packet that no other `id` yields.
    fn packet(id: u32, len: usize) -> Vec<u8> {
        let mut packet: Vec<u8> =
            (0..len as u32).map(|i| (id.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(97)).to_le_bytes()[1]).collect();
        if id % 2 == 1 && len >= 44 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            packet[40..44].copy_from_slice(&id.to_be_bytes());
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[16..20].copy_from_slice(&id.to_be_bytes());
        }
        packet
    }

    fn packets(first: u32, lens: &[u32]) -> Vec<Vec<u8>> {
        lens.iter().zip(first..).map(|(len, id)| packet(id, *len as usize)).collect()
    }

    /// A port that keeps the datagrams, and refuses one slot on the way.
    struct Sink {
        slot: Vec<u8>,
        until_refusal: usize,
        datagrams: Vec<Vec<u8>>,
    }

    impl Sink {
        fn new() -> Self {
            Self::that_refuses_after(usize::MAX)
        }

        fn that_refuses_after(slots: usize) -> Self {
            Self { slot: vec![0xaa; TRAIN_LEN_MAX], until_refusal: slots, datagrams: Vec::new() }
        }
    }

    impl TxSink for Sink {
        fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
            let left = self.until_refusal.checked_sub(1);
            self.until_refusal = left.unwrap_or(usize::MAX);
            left.map(|_| &mut self.slot[..len])
        }

        fn commit(&mut self, len: usize, meta: TxMeta) {
            let segment = if meta.segment == 0 { len } else { usize::from(meta.segment) };
            self.datagrams.extend(self.slot[..len].chunks(segment).map(<[u8]>::to_vec));
            self.slot.fill(0xaa);
        }
    }

    #[derive(Default)]
    struct Log {
        packets: Vec<Vec<u8>>,
        controls: Vec<Control>,
        drops: Vec<DropReason>,
    }

    impl Visitor for Log {
        fn packet(&mut self, packet: &mut [u8], _: Origin) {
            self.packets.push(packet.to_vec());
        }

        fn control(&mut self, control: Control) {
            self.controls.push(control);
        }

        fn dropped(&mut self, reason: DropReason) {
            self.drops.push(reason);
        }
    }

    struct Receiver {
        lane: OpenLane,
        reassembly: Reassembly,
        log: Log,
    }

    impl Receiver {
        fn new(lane: OpenLane) -> Self {
            Self { lane, reassembly: Reassembly::new(), log: Log::default() }
        }

        fn take(&mut self, datagram: &[u8]) {
            let mut datagram = datagram.to_vec();
            let header = DataHeader::parse(&datagram).unwrap();
            match self.lane.open(&header, &mut datagram, Time::ZERO) {
                Ok(plaintext) => self.reassembly.feed(header.counter, false, plaintext, &mut self.log),
                Err(reason) => self.log.drops.push(reason),
            }
        }
    }

    fn send(sink: &mut Sink, lane: &mut SealLane, control: &[u8], packets: &[Vec<u8>], payload: PayloadLen) -> Sent {
        let lens: Vec<u32> = packets.iter().map(|packet| packet.len() as u32).collect();
        let plan = Plan::new(control.len(), &lens, payload);
        let mut packets = packets.to_vec();
        transmit(&plan, control, &mut packets[..], lane, sink, TxMeta::default(), Time::ZERO)
    }

    #[test]
    fn control_blocks_go_first_and_once() {
        let (mut seal, open) = lanes();
        let mut receiver = Receiver::new(open);
        let mut sink = Sink::new();
        let mut control = [0; Control::LEN_MAX];
        let echo = Control::EchoRequest(*b"a token!");
        let len = echo.encode(&mut control);
        let packets = packets(0, &[1400; 5]);
        let sent = send(&mut sink, &mut seal, &control[..len], &packets, payload(ETHERNET));
        assert_eq!((sent.packets, sent.stopped), (5, None));
        sink.datagrams.iter().for_each(|datagram| receiver.take(datagram));
        assert_eq!(receiver.log.controls, [echo]);
        assert_eq!(receiver.log.packets, packets);
        assert_eq!(receiver.log.drops, []);
    }

    #[test]
    fn lengths_that_are_not_those_of_the_plan_are_an_error() {
        let lens = [100, 1400];
        let plan = Plan::new(0, &lens, payload(ETHERNET));
        let train = plan.trains().next().unwrap();
        let mut slot = vec![0; train.len()];
        let fill = |packets: &mut [Vec<u8>], slot: &mut [u8]| train.fill(&[], packets, slot, |_| Ok(()));
        let error = Err(DropReason::LocalMalformed);
        assert_eq!(fill(&mut packets(0, &lens), &mut slot), Ok(()));
        assert_eq!(fill(&mut packets(0, &[100, 1399]), &mut slot), error);
        assert_eq!(fill(&mut packets(0, &[99, 1400]), &mut slot), error);
        let short = slot.len() - 1;
        assert_eq!(fill(&mut packets(0, &lens), &mut slot[..short]), error);
        let with = |train: &Train<'_>, control: &[u8], slot: &mut [u8]| {
            train.fill(control, &mut packets(0, &lens)[..], slot, |_| Ok(()))
        };
        assert_eq!(with(&train, &[0; 10], &mut slot), Ok(()), "no control was planned");
        let plan = Plan::new(10, &lens, payload(ETHERNET));
        let train = plan.trains().next().unwrap();
        assert_eq!(with(&train, &[0; 9], &mut vec![0; train.len()]), error);
        assert_eq!(with(&train, &[0; 10], &mut vec![0; train.len()]), Ok(()));
    }

    #[test]
    fn a_plan_that_was_given_up_joins_no_two_packets() {
        // Three sends, each beginning with the rest of the packet before.
        let lens = [1999; 64];
        for room in 0..3 {
            let (mut seal, open) = lanes();
            let mut receiver = Receiver::new(open);
            let (first, second) = (packets(0, &lens), packets(100, &lens));
            let mut sink = Sink::that_refuses_after(room);
            let sent = send(&mut sink, &mut seal, &[], &first, payload(ETHERNET));
            assert_eq!((sent.trains, sent.stopped), (room, Some(DropReason::WanQueueFull)));
            assert_eq!(send(&mut sink, &mut seal, &[], &second, payload(ETHERNET)).packets, 64);
            sink.datagrams.iter().for_each(|datagram| receiver.take(datagram));
            assert_eq!(receiver.log.packets, [&first[..sent.packets], &second[..]].concat());
            let lost = if room == 0 { vec![] } else { vec![DropReason::ContinuationLost] };
            assert_eq!(receiver.log.drops, lost);
        }
    }

    proptest! {
        #[test]
        fn all_packets_arrive_in_order(batches in prop::collection::vec(lens(), 1..4), path in path()) {
            let (mut seal, open) = lanes();
            let mut receiver = Receiver::new(open);
            let mut all = Vec::new();
            for lens in batches {
                let batch = packets(all.len() as u32, &lens);
                let mut sink = Sink::new();
                let sent = send(&mut sink, &mut seal, &[], &batch, path);
                prop_assert_eq!((sent.packets, sent.stopped), (lens.len(), None));
                prop_assert_eq!(sent.datagrams, sink.datagrams.len());
                prop_assert_eq!(sent.bytes, sink.datagrams.iter().map(Vec::len).sum::<usize>());
                sink.datagrams.iter().for_each(|datagram| receiver.take(datagram));
                all.extend(batch);
            }
            prop_assert_eq!(receiver.log.drops, []);
            prop_assert!(receiver.log.packets == all);
        }

        #[test]
        fn loss_reordering_and_duplication_cost_packets_but_never_change_one(
            batches in prop::collection::vec((lens(), 0..6usize), 1..5),
            path in path(),
            fates in prop::collection::vec((0..10u8, 0..40u32, 0..60u32), 64),
        ) {
            let (mut seal, open) = lanes();
            // A second pair with the same keys tells what stands in a datagram.
            let (_, mut oracle) = lanes();
            let mut receiver = Receiver::new(open);
            let mut sent_packets = BTreeMap::new();
            let mut datagrams = Vec::new();
            for (lens, room) in batches {
                let batch = packets(sent_packets.len() as u32, &lens);
                // Some batches are given up on the way.
                let mut sink = Sink::that_refuses_after(room);
                send(&mut sink, &mut seal, &[], &batch, path);
                datagrams.extend(sink.datagrams);
                for packet in batch {
                    sent_packets.insert(packet, 0);
                }
            }
            // When each copy of each datagram arrives, in units of tenths of a datagram.
            let mut arrivals = Vec::new();
            for i in 0..datagrams.len() {
                let (fate, late, again) = fates[i % fates.len()];
                let at = i as u32 * 10;
                match fate {
                    0 => {}
                    1 => arrivals.extend([(at + late, i), (at + again, i)]),
                    2..=4 => arrivals.push((at + late, i)),
                    _ => arrivals.push((at, i)),
                }
            }
            arrivals.sort();
            let mut must_arrive = BTreeSet::new();
            let mut duplicates = 0;
            let mut taken = BTreeSet::new();
            for (_, i) in arrivals {
                receiver.take(&datagrams[i]);
                if !taken.insert(i) {
                    duplicates += 1;
                    continue;
                }
                let mut datagram = datagrams[i].clone();
                let header = DataHeader::parse(&datagram).unwrap();
                let plaintext = oracle.open(&header, &mut datagram, Time::ZERO).unwrap();
                let mut at = 0;
                while at < plaintext.len() {
                    let (block, next) = block_at(plaintext, at).unwrap();
                    if let Block::Packet(range) = block {
                        must_arrive.insert(plaintext[range].to_vec());
                    }
                    at = next;
                }
            }
            for packet in receiver.log.packets {
                must_arrive.remove(&packet);
                let count = sent_packets.get_mut(&packet);
                prop_assert!(count.is_some(), "a packet of {} bytes that was never sent", packet.len());
                *count.unwrap() += 1;
            }
            prop_assert!(sent_packets.values().all(|count| *count <= 1), "delivered twice");
            prop_assert!(must_arrive.is_empty(), "{} whole packets did not arrive", must_arrive.len());
            let replayed = receiver.log.drops.iter().filter(|reason| **reason == DropReason::Replayed).count();
            prop_assert_eq!(replayed, duplicates);
            prop_assert!(receiver.log.drops.iter().all(|reason| matches!(
                reason,
                DropReason::Replayed | DropReason::ContinuationLost | DropReason::ContinuationOrphan
            )));
        }
    }
}
