//! Two ports joined back to back in memory, for tests: what one end sends the other receives.
//!
//! ```text
//!   a.tx ── slots ── flush ──▶ wire (bounded) ──▶ b.rx
//!   a.rx ◀────────── wire (bounded) ◀── flush ── slots ── b.tx
//! ```
//!
//! The wire is bounded as a socket's buffer is, so back-pressure happens here too: what does not fit stays queued with the sender, in
//! order. The ends may be on different threads.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};

/// What the wire does with a train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trains {
    /// It arrives as it was sent, as with `UDP_GRO`.
    #[default]
    Kept,
    /// Its datagrams arrive one by one.
    Cut,
}

/// A wire and its ends.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Frames that one direction of the wire holds.
    pub wire_len: usize,
    /// Frames that a sender holds.
    pub slots: usize,
    /// Bytes of the longest frame.
    pub frame_len: usize,
    /// What happens to trains.
    pub trains: Trains,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { wire_len: 256, slots: 64, frame_len: 65_536, trains: Trains::Kept }
    }
}

type Frame = (Vec<u8>, RxMeta);

#[derive(Clone)]
struct Wire(Arc<Mutex<VecDeque<Frame>>>);

impl Wire {
    fn frames(&self) -> MutexGuard<'_, VecDeque<Frame>> {
        // A test that panicked in the middle of a push leaves a usable queue.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of the wire.
pub struct MemoryPort {
    /// Its receiving half.
    pub rx: MemoryRx,
    /// Its sending half.
    pub tx: MemoryTx,
}

/// Joins two ends. The addresses are the ends' own: each sees the other's as the source of what it receives; `None` makes a local side.
pub fn pair(config: MemoryConfig, a: Option<SocketAddr>, b: Option<SocketAddr>) -> (MemoryPort, MemoryPort) {
    let wire = || Wire(Arc::new(Mutex::new(VecDeque::with_capacity(config.wire_len))));
    let (to_a, to_b) = (wire(), wire());
    let end = |rx: &Wire, tx: &Wire, address| MemoryPort {
        rx: MemoryRx { wire: rx.clone(), burst: Vec::with_capacity(BURST_LEN) },
        tx: MemoryTx {
            config,
            address,
            wire: tx.clone(),
            scratch: vec![0; config.frame_len],
            queued: VecDeque::with_capacity(config.slots),
        },
    };
    (end(&to_a, &to_b, a), end(&to_b, &to_a, b))
}

/// The receiving half of a [`MemoryPort`].
pub struct MemoryRx {
    wire: Wire,
    burst: Vec<Frame>,
}

impl RxBurst for MemoryRx {
    fn len(&self) -> usize {
        self.burst.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.burst[i];
        (bytes, *meta)
    }
}

impl RxPort for MemoryRx {
    fn receive(&mut self) -> io::Result<usize> {
        self.burst.clear();
        let mut wire = self.wire.frames();
        let n = wire.len().min(BURST_LEN);
        self.burst.extend(wire.drain(..n));
        Ok(n)
    }
}

/// The sending half of a [`MemoryPort`].
pub struct MemoryTx {
    config: MemoryConfig,
    address: Option<SocketAddr>,
    wire: Wire,
    scratch: Vec<u8>,
    queued: VecDeque<(Vec<u8>, TxMeta)>,
}

impl TxSink for MemoryTx {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        (self.room() > 0 && len <= self.config.frame_len).then_some(&mut self.scratch[..])
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.queued.push_back((self.scratch[..len].to_vec(), meta));
    }
}

impl TxPort for MemoryTx {
    fn flush(&mut self) -> io::Result<usize> {
        let mut wire = self.wire.frames();
        while let Some((bytes, meta)) = self.queued.front() {
            let segment = usize::from(meta.segment);
            let is_train = segment > 0 && segment < bytes.len();
            let frame = |bytes: &[u8], segment| {
                let offload = meta.offload;
                (
                    bytes.to_vec(),
                    RxMeta { source: self.address, segment, class: meta.class, offload, ..RxMeta::default() },
                )
            };
            let cut = is_train && self.config.trains == Trains::Cut;
            let frames = if cut { bytes.len().div_ceil(segment) } else { 1 };
            // A train longer than the wire still passes an empty one.
            if wire.len() + frames > self.config.wire_len.max(1) && !wire.is_empty() {
                break;
            }
            if cut {
                wire.extend(bytes.chunks(segment).map(|datagram| frame(datagram, 0)));
            } else {
                wire.push_back(frame(bytes, if is_train { meta.segment } else { 0 }));
            }
            self.queued.pop_front();
        }
        Ok(self.queued.len())
    }

    fn room(&self) -> usize {
        self.config.slots - self.queued.len()
    }

    fn take_failed(&mut self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(tx: &mut MemoryTx, bytes: &[u8], segment: u16) {
        tx.slot(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(bytes);
        tx.commit(bytes.len(), TxMeta { segment, ..TxMeta::default() });
    }

    fn receive(rx: &mut MemoryRx) -> Vec<(Vec<u8>, u16)> {
        let n = rx.receive().unwrap();
        (0..n).map(|i| (rx.frame(i).0.to_vec(), rx.frame(i).1.segment)).collect()
    }

    #[test]
    fn what_one_end_sends_the_other_receives_with_its_address() {
        let address = Some(SocketAddr::from(([192, 0, 2, 1], 4646)));
        let (mut a, mut b) = pair(MemoryConfig::default(), address, None);
        push(&mut a.tx, b"one", 0);
        assert_eq!(b.rx.receive().unwrap(), 0, "not before a flush");
        assert_eq!(a.tx.flush().unwrap(), 0);
        assert_eq!(b.rx.receive().unwrap(), 1);
        assert_eq!(b.rx.frame(0), (&mut b"one".to_owned()[..], RxMeta { source: address, ..RxMeta::default() }));
        assert_eq!((b.rx.receive().unwrap(), a.rx.receive().unwrap()), (0, 0));
    }

    #[test]
    fn trains_are_kept_or_cut_as_chosen() {
        for (trains, expected) in [
            (Trains::Kept, vec![(b"aabbc".to_vec(), 2), (b"dd".to_vec(), 0)]),
            (Trains::Cut, vec![(b"aa".to_vec(), 0), (b"bb".to_vec(), 0), (b"c".to_vec(), 0), (b"dd".to_vec(), 0)]),
        ] {
            let (mut a, mut b) = pair(MemoryConfig { trains, ..MemoryConfig::default() }, None, None);
            push(&mut a.tx, b"aabbc", 2);
            push(&mut a.tx, b"dd", 2);
            a.tx.flush().unwrap();
            assert_eq!(receive(&mut b.rx), expected);
        }
    }

    #[test]
    fn a_full_wire_holds_the_sender_in_order() {
        let config = MemoryConfig { wire_len: 3, slots: 5, ..MemoryConfig::default() };
        let (mut a, mut b) = pair(config, None, None);
        (0..5).for_each(|byte| push(&mut a.tx, &[byte], 0));
        assert!(a.tx.slot(1).is_none());
        assert_eq!((a.tx.flush().unwrap(), a.tx.room()), (2, 3));
        assert_eq!(receive(&mut b.rx), [(vec![0], 0), (vec![1], 0), (vec![2], 0)]);
        assert_eq!(a.tx.flush().unwrap(), 0);
        assert_eq!(receive(&mut b.rx), [(vec![3], 0), (vec![4], 0)]);
    }

    #[test]
    fn slots_have_a_length() {
        let (mut a, _b) = pair(MemoryConfig { frame_len: 100, ..MemoryConfig::default() }, None, None);
        assert!(a.tx.slot(100).is_some() && a.tx.slot(101).is_none());
    }

    #[test]
    fn a_burst_ends_at_its_limit() {
        let (mut a, mut b) = pair(MemoryConfig { slots: 65, ..MemoryConfig::default() }, None, None);
        (0..65).for_each(|byte| push(&mut a.tx, &[byte], 0));
        a.tx.flush().unwrap();
        assert_eq!((b.rx.receive().unwrap(), b.rx.receive().unwrap()), (BURST_LEN, 1));
    }
}
