//! A bad network in front of any port: loss, duplication, reordering, truncation and flipped bits, from a seed.
//!
//! ```text
//!   engine ─▶ FaultTx ─ train cut into datagrams ─ each: lose? flip? cut short? twice? late? ─▶ any TxPort
//!   any RxPort ─▶ FaultRx ─ the same ─▶ engine
//! ```
//!
//! Faults strike datagrams, as a network does, so trains do not survive these wrappers. It knows nothing of what the bytes mean. The same
//! seed and the same frames give the same faults.

use std::collections::VecDeque;
use std::{fmt, io};

use serde::Serialize;
use weir_abi::drop::DropReason;

use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, SUPERPACKET_LEN_MAX, TxMeta, TxPort, TxSink};

/// Most datagrams held back at once to come late. When so many are held, the next one is not.
const LATE_MAX: usize = 16;

/// Most datagrams that a late one lets pass.
const LATE_BY_MAX: u64 = 8;

/// What the rates of a [`FaultPlan`] are parts of.
pub const RATE_OF: u16 = 10_000;

/// How bad the network is. Every rate is datagrams in ten thousand, each fault drawn for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FaultPlan {
    /// Where the dice start. Print it when a test fails.
    pub seed: u64,
    /// Lost.
    pub loss: u16,
    /// Delivered twice.
    pub duplication: u16,
    /// Delivered one to eight datagrams late.
    pub reordering: u16,
    /// Cut short, by at least one byte.
    pub truncation: u16,
    /// Delivered with one bit flipped.
    pub flips: u16,
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, loss, duplication, reordering, truncation, flips } = self;
        write!(f, "seed {seed}; of {RATE_OF} datagrams {loss} lost, {duplication} twice, {reordering} late, ")?;
        write!(f, "{truncation} cut short, {flips} with a bit flipped")
    }
}

/// What a bad network did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Datagrams that came.
    pub seen: u64,
    /// Datagrams lost.
    pub lost: u64,
    /// Datagrams delivered twice.
    pub duplicated: u64,
    /// Datagrams delivered late.
    pub reordered: u64,
    /// Datagrams cut short.
    pub truncated: u64,
    /// Datagrams with a bit flipped.
    pub flipped: u64,
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, or zero when that is zero. The bias of the remainder is of no matter for ranges this small.
    fn below(&mut self, end: u64) -> u64 {
        self.roll().checked_rem(end).unwrap_or(0)
    }

    fn strikes(&mut self, rate: u16) -> bool {
        self.below(RATE_OF.into()) < u64::from(rate)
    }
}

/// The bad stretch of network itself: datagrams in, datagrams out.
struct Stretch<M> {
    plan: FaultPlan,
    dice: Dice,
    counters: FaultCounters,
    ready: VecDeque<(Vec<u8>, M)>,
    late: Vec<(u64, Vec<u8>, M)>,
}

impl<M: Copy> Stretch<M> {
    fn new(plan: FaultPlan) -> Self {
        let dice = Dice(plan.seed);
        Self { plan, dice, counters: FaultCounters::default(), ready: VecDeque::new(), late: Vec::new() }
    }

    fn put(&mut self, datagram: &[u8], meta: M) {
        self.counters.seen += 1;
        // Every die is rolled for every datagram, so that changing one rate does not change what the others strike.
        let plan = self.plan;
        let [loss, flip, cut, twice, late] =
            [plan.loss, plan.flips, plan.truncation, plan.duplication, plan.reordering]
                .map(|rate| self.dice.strikes(rate));
        let [bit, len, by] = [self.dice.roll(), self.dice.roll(), self.dice.roll()];
        self.pass();
        if loss {
            self.counters.lost += 1;
            return;
        }
        let mut bytes = datagram.to_vec();
        if flip && !bytes.is_empty() {
            let bit = bit % (bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            self.counters.flipped += 1;
        }
        if cut && !bytes.is_empty() {
            bytes.truncate((len % bytes.len() as u64) as usize);
            self.counters.truncated += 1;
        }
        if twice {
            self.ready.push_back((bytes.clone(), meta));
            self.counters.duplicated += 1;
        }
        if late && self.late.len() < LATE_MAX {
            self.late.push((1 + by % LATE_BY_MAX, bytes, meta));
            self.counters.reordered += 1;
        } else {
            self.ready.push_back((bytes, meta));
            self.release();
        }
    }

    /// Another datagram passes those held back.
    fn pass(&mut self) {
        for (by, ..) in &mut self.late {
            *by = by.saturating_sub(1);
        }
    }

    /// Lets go of what has waited long enough.
    fn release(&mut self) {
        for (_, bytes, meta) in self.late.extract_if(.., |(by, ..)| *by == 0) {
            self.ready.push_back((bytes, meta));
        }
    }

    /// Nothing came: time passes all the same.
    fn idle(&mut self) {
        self.pass();
        self.release();
    }

    fn len(&self) -> usize {
        self.ready.len() + self.late.len()
    }
}

fn datagrams(frame: &[u8], segment: u16) -> impl Iterator<Item = &[u8]> {
    let step = if segment == 0 { frame.len() } else { segment.into() };
    let empty = frame.is_empty().then_some(frame);
    empty.into_iter().chain(frame.chunks(step.max(1)))
}

/// A bad network behind a sending half.
pub struct FaultTx<P> {
    port: P,
    stretch: Stretch<TxMeta>,
    scratch: Vec<u8>,
    slots: usize,
    struck: bool,
    failed: u64,
}

impl<P: TxPort> FaultTx<P> {
    /// Puts a bad network behind `port`. It holds `slots` frames of at most `frame_len` bytes.
    pub fn new(port: P, plan: FaultPlan, slots: usize, frame_len: usize) -> Self {
        Self { port, stretch: Stretch::new(plan), scratch: vec![0; frame_len], slots, struck: false, failed: 0 }
    }

    /// What it did so far.
    pub fn counters(&self) -> FaultCounters {
        self.stretch.counters
    }

    /// The port behind.
    pub fn inner(&mut self) -> &mut P {
        &mut self.port
    }
}

impl<P: TxPort> TxSink for FaultTx<P> {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        (self.room() > 0 && len <= self.scratch.len()).then_some(&mut self.scratch[..])
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        for datagram in datagrams(&self.scratch[..len], meta.segment) {
            self.stretch.put(datagram, TxMeta { segment: 0, ..meta });
        }
        self.struck = true;
    }

    fn takes_offloads(&self) -> bool {
        self.port.takes_offloads() && self.scratch.len() >= SUPERPACKET_LEN_MAX
    }
}

impl<P: TxPort> TxPort for FaultTx<P> {
    fn flush(&mut self) -> io::Result<usize> {
        if !std::mem::take(&mut self.struck) {
            self.stretch.idle();
        }
        loop {
            while let Some((bytes, meta)) = self.stretch.ready.front() {
                if let Some(slot) = self.port.slot(bytes.len()) {
                    slot[..bytes.len()].copy_from_slice(bytes);
                    self.port.commit(bytes.len(), *meta);
                } else if self.port.room() == 0 {
                    break;
                } else {
                    // Longer than any slot of the port behind.
                    self.failed += 1;
                }
                self.stretch.ready.pop_front();
            }
            let held = self.port.flush()?;
            if self.stretch.ready.is_empty() || self.port.room() == 0 {
                return Ok(held + self.stretch.len());
            }
        }
    }

    fn room(&self) -> usize {
        self.slots.saturating_sub(self.stretch.len())
    }

    fn take_failed(&mut self) -> u64 {
        self.port.take_failed() + std::mem::take(&mut self.failed)
    }
}

/// A bad network in front of a receiving half.
pub struct FaultRx<P> {
    port: P,
    stretch: Stretch<RxMeta>,
    burst: Vec<(Vec<u8>, RxMeta)>,
}

impl<P: RxPort> FaultRx<P> {
    /// Puts a bad network in front of `port`.
    pub fn new(port: P, plan: FaultPlan) -> Self {
        Self { port, stretch: Stretch::new(plan), burst: Vec::with_capacity(BURST_LEN) }
    }

    /// What it did so far.
    pub fn counters(&self) -> FaultCounters {
        self.stretch.counters
    }

    /// The port in front.
    pub fn inner(&mut self) -> &mut P {
        &mut self.port
    }
}

impl<P: RxPort> RxBurst for FaultRx<P> {
    fn len(&self) -> usize {
        self.burst.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.burst[i];
        (bytes, *meta)
    }
}

impl<P: RxPort> RxPort for FaultRx<P> {
    fn receive(&mut self) -> io::Result<usize> {
        self.burst.clear();
        // One burst of trains is many bursts of datagrams: no more is taken while some wait.
        if self.stretch.ready.len() < BURST_LEN {
            let n = self.port.receive()?;
            for i in 0..n {
                let (frame, meta) = self.port.frame(i);
                for datagram in datagrams(frame, meta.segment) {
                    self.stretch.put(datagram, RxMeta { segment: 0, ..meta });
                }
            }
            if n == 0 {
                self.stretch.idle();
            }
        }
        let n = self.stretch.ready.len().min(BURST_LEN);
        self.burst.extend(self.stretch.ready.drain(..n));
        Ok(n)
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        self.port.take_dropped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::{MemoryConfig, MemoryPort, pair};

    const SEED: u64 = 0x5eed;

    /// Sends numbered datagrams of eight bytes in trains of ten through `plan` and says what arrived.
    fn through_tx(plan: FaultPlan, count: u32) -> (Vec<Vec<u8>>, FaultCounters) {
        println!("seed {:#x}", plan.seed);
        let (MemoryPort { tx, .. }, MemoryPort { mut rx, .. }) = pair(MemoryConfig::default(), None, None);
        let mut tx = FaultTx::new(tx, plan, 1000, 2048);
        let mut got = Vec::new();
        for train in 0..count / 10 {
            let slot = tx.slot(80).unwrap();
            for i in 0..10 {
                slot[8 * i..8 * i + 8].copy_from_slice(&u64::from(10 * train + i as u32).to_be_bytes());
            }
            tx.commit(80, TxMeta { segment: 8, ..TxMeta::default() });
            tx.flush().unwrap();
            collect(&mut rx, &mut got);
        }
        for _ in 0..100 {
            let left = tx.flush().unwrap();
            collect(&mut rx, &mut got);
            if left == 0 {
                return (got, tx.counters());
            }
        }
        panic!("what is held back is never let go");
    }

    fn collect(rx: &mut impl RxPort, got: &mut Vec<Vec<u8>>) {
        while rx.receive().unwrap() > 0 {
            got.extend((0..rx.len()).map(|i| rx.frame(i).0.to_vec()).collect::<Vec<_>>());
        }
    }

    fn numbered(count: u64) -> Vec<Vec<u8>> {
        (0..count).map(|i| i.to_be_bytes().to_vec()).collect()
    }

    #[test]
    fn a_good_network_changes_nothing() {
        let (got, counters) = through_tx(FaultPlan { seed: SEED, ..FaultPlan::default() }, 1000);
        assert_eq!(got, numbered(1000));
        assert_eq!(counters, FaultCounters { seen: 1000, ..FaultCounters::default() });
    }

    #[test]
    fn rates_are_kept_and_the_seed_repeats_them() {
        let plan =
            FaultPlan { seed: SEED, loss: 1000, duplication: 500, reordering: 1000, truncation: 200, flips: 300 };
        let (got, counters) = through_tx(plan, 10_000);
        let near = |count: u64, rate: u64| count > rate * 8 / 10 && count < rate * 12 / 10;
        assert!(near(counters.lost, 1000) && near(counters.duplicated, 450), "{counters:?}");
        assert!(near(counters.reordered, 900) && near(counters.truncated, 180) && near(counters.flipped, 270));
        assert_eq!(got.len() as u64, 10_000 - counters.lost + counters.duplicated);
        assert_eq!(through_tx(plan, 10_000), (got.clone(), counters));
        assert_ne!(through_tx(FaultPlan { seed: SEED + 1, ..plan }, 10_000).0, got);
    }

    #[test]
    fn reordering_loses_nothing_and_is_bounded() {
        let (got, counters) = through_tx(FaultPlan { seed: SEED, reordering: 3000, ..FaultPlan::default() }, 2000);
        assert!(counters.reordered > 400);
        assert_ne!(got, numbered(2000));
        for (place, bytes) in got.iter().enumerate() {
            let number = u64::from_be_bytes(bytes[..].try_into().unwrap());
            assert!(place as u64 <= number + LATE_BY_MAX + LATE_MAX as u64, "{number} at {place}");
        }
        let mut sorted = got;
        sorted.sort();
        assert_eq!(sorted, numbered(2000));
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let (lost, _) = through_tx(FaultPlan { seed: SEED, loss: 10_000, ..FaultPlan::default() }, 100);
        assert!(lost.is_empty());
        let (twice, _) = through_tx(FaultPlan { seed: SEED, duplication: 10_000, ..FaultPlan::default() }, 100);
        assert_eq!(twice, numbered(100).into_iter().flat_map(|bytes| [bytes.clone(), bytes]).collect::<Vec<_>>());
        let (cut, _) = through_tx(FaultPlan { seed: SEED, truncation: 10_000, ..FaultPlan::default() }, 100);
        assert!(cut.len() == 100 && cut.iter().all(|bytes| bytes.len() < 8));
        let (flipped, _) = through_tx(FaultPlan { seed: SEED, flips: 10_000, ..FaultPlan::default() }, 100);
        for (bytes, original) in flipped.iter().zip(numbered(100)) {
            let bits: u32 = bytes.iter().zip(original).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(bits, 1);
        }
    }

    #[test]
    fn receiving_side_strikes_as_well_and_lets_go_when_idle() {
        let (MemoryPort { mut tx, .. }, MemoryPort { rx, .. }) = pair(MemoryConfig::default(), None, None);
        let mut rx = FaultRx::new(rx, FaultPlan { seed: SEED, reordering: 10_000, ..FaultPlan::default() });
        tx.slot(16).unwrap()[..16].copy_from_slice(&[1; 16]);
        tx.commit(16, TxMeta { segment: 8, ..TxMeta::default() });
        tx.flush().unwrap();
        let received: usize = (0..20).map(|_| rx.receive().unwrap()).sum();
        assert_eq!((received, rx.counters().reordered), (2, 2));
    }

    /// A port that takes superpackets and has dropped three frames.
    struct Peculiar<P>(P, u64);

    impl<P: TxPort> TxSink for Peculiar<P> {
        fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
            self.0.slot(len)
        }

        fn commit(&mut self, len: usize, meta: TxMeta) {
            self.0.commit(len, meta);
        }

        fn takes_offloads(&self) -> bool {
            true
        }
    }

    impl<P: TxPort> TxPort for Peculiar<P> {
        fn flush(&mut self) -> io::Result<usize> {
            self.0.flush()
        }

        fn room(&self) -> usize {
            self.0.room()
        }

        fn take_failed(&mut self) -> u64 {
            self.0.take_failed()
        }
    }

    impl<P: RxPort> RxBurst for Peculiar<P> {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
            self.0.frame(i)
        }
    }

    impl<P: RxPort> RxPort for Peculiar<P> {
        fn receive(&mut self) -> io::Result<usize> {
            self.0.receive()
        }

        fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
            let count = std::mem::take(&mut self.1);
            (count > 0).then_some((DropReason::OuterTruncated, count))
        }
    }

    #[test]
    fn what_the_port_is_like_shows_through_the_wrapper_and_through_a_box() {
        let (MemoryPort { tx, rx }, _b) = pair(MemoryConfig::default(), None, None);
        let boxed: Box<dyn TxPort> = Box::new(Peculiar(tx, 0));
        assert!(boxed.takes_offloads());
        let tx = FaultTx::new(boxed, FaultPlan::default(), 1, SUPERPACKET_LEN_MAX);
        assert!(tx.takes_offloads());
        assert!(
            !FaultTx::new(tx, FaultPlan::default(), 1, SUPERPACKET_LEN_MAX - 1).takes_offloads(),
            "no slot for one"
        );
        let boxed: Box<dyn RxPort> = Box::new(Peculiar(rx, 3));
        let mut rx = FaultRx::new(boxed, FaultPlan::default());
        assert_eq!((rx.take_dropped(), rx.take_dropped()), (Some((DropReason::OuterTruncated, 3)), None));
    }

    #[test]
    fn slots_run_out_at_the_limit() {
        let (MemoryPort { tx, .. }, _b) = pair(MemoryConfig::default(), None, None);
        let mut tx = FaultTx::new(tx, FaultPlan::default(), 3, 100);
        for _ in 0..3 {
            tx.slot(100).unwrap();
            tx.commit(1, TxMeta::default());
        }
        assert!(tx.slot(1).is_none());
        assert_eq!((tx.flush().unwrap(), tx.room()), (0, 3));
        assert!(tx.slot(101).is_none());
    }
}
