//! The memory that AF_XDP sockets share with the kernel, cut into frames, and who has each of them.
//!
//! ```text
//!              lend(Fill)                    descriptor on RX
//!          ┌───────────────▶ Fill ring, NIC ──────────────────┐
//!   Mine ──┤                                                  ├──▶ Mine
//!          └───────────────▶ TX ring, NIC ────────────────────┘
//!              lend(Tx)                      address on completion ring
//! ```
//!
//! A [`Frame`] is the only way to touch a frame's bytes; it cannot be copied, and lending it to the kernel takes it away. The kernel gives
//! addresses back, not tokens: an address makes a token only where the table says that the kernel had that frame, for that purpose. So an
//! address outside, twice, or from the wrong ring makes none. One worker has one UMEM, for all its sockets on all devices.
#![allow(unsafe_code, reason = "frames are memory that the kernel writes while it has them")]

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::XskError;
use super::ring::Mapping;

/// Bytes that the kernel leaves free before what it receives (`XDP_PACKET_HEADROOM` in `include/uapi/linux/bpf.h`).
pub(super) const XDP_PACKET_HEADROOM: usize = 256;

/// A frame that is ours: neither the kernel nor another part of the worker touches its bytes.
#[derive(Debug)]
pub(super) struct Frame(u32);

/// What the kernel has a frame for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To receive into.
    Fill,
    /// To send from.
    Tx,
}

/// The frames of a worker.
pub(super) struct Umem {
    memory: Mapping,
    frame_len: usize,
    lent: Box<[Cell<Option<Purpose>>]>,
    free: RefCell<Vec<Frame>>,
    /// Addresses from the kernel that made no token.
    strays: Cell<u64>,
}

impl Umem {
    /// `frames` frames of `frame_len` bytes.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new(frames: u32, frame_len: u32) -> Result<Self, XskError> {
        let bytes = frames as usize * frame_len as usize;
        let memory = Mapping::anonymous(bytes).map_err(|source| XskError::NoMemory { bytes, source })?;
        Ok(Self {
            memory,
            frame_len: frame_len as usize,
            lent: (0..frames).map(|_| Cell::new(None)).collect(),
            // The lowest frames first: a small load then touches few pages.
            free: RefCell::new((0..frames).rev().map(Frame).collect()),
            strays: Cell::new(0),
        })
    }

    /// As the kernel is told of it.
    pub(super) fn registration(&self) -> libc::xdp_umem_reg {
        libc::xdp_umem_reg {
            addr: self.memory.at(0, 0).as_ptr() as u64,
            len: (self.lent.len() * self.frame_len) as u64,
            chunk_size: self.frame_len as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        }
    }

    /// Bytes of a frame.
    pub(super) fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// Frames that nobody has.
    pub(super) fn free(&self) -> usize {
        self.free.borrow().len()
    }

    /// A free frame.
    pub(super) fn take(&self) -> Option<Frame> {
        self.free.borrow_mut().pop()
    }

    /// Makes a frame free.
    pub(super) fn give(&self, frame: Frame) {
        self.free.borrow_mut().push(frame);
    }

    /// The bytes of a frame from its first.
    pub(super) fn bytes<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let at = self.memory.at(frame.0 as usize * self.frame_len, self.frame_len);
        // SAFETY: the token is the only one of this frame and is borrowed for as long as the slice; while it exists the kernel has not got
        // the frame. The mapping is initialised and lives as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.frame_len) }
    }

    /// Hands a frame to the kernel: the address to put on a ring.
    pub(super) fn lend(&self, frame: Frame, purpose: Purpose) -> u64 {
        self.lent[frame.0 as usize].set(Some(purpose));
        u64::from(frame.0) * self.frame_len as u64
    }

    /// A frame that the kernel gives back, with the span of its bytes that a descriptor names; `None` for a descriptor that cannot be.
    pub(super) fn reclaim(&self, address: u64, len: u32, purpose: Purpose) -> Option<(Frame, Range<usize>)> {
        let reclaimed = self.find(address, len, purpose);
        if reclaimed.is_none() {
            self.strays.set(self.strays.get() + 1);
        }
        reclaimed
    }

    fn find(&self, address: u64, len: u32, purpose: Purpose) -> Option<(Frame, Range<usize>)> {
        let frame_len = self.frame_len as u64;
        let index = u32::try_from(address / frame_len).ok()?;
        let start = (address % frame_len) as usize;
        let place = self.lent.get(index as usize)?;
        if place.get() != Some(purpose) {
            return None;
        }
        place.set(None);
        let end = start + len as usize;
        if end > self.frame_len {
            // The frame is back all the same; what the kernel says of its bytes is not believed.
            self.give(Frame(index));
            return None;
        }
        Some((Frame(index), start..end))
    }

    /// Descriptors and completions since the last call that named no frame of ours, or bytes outside of one.
    pub(super) fn take_strays(&self) -> u64 {
        self.strays.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_comes_back_once_and_for_what_it_was_lent() {
        let umem = Umem::new(4, 2048).unwrap();
        let mut frame = umem.take().unwrap();
        umem.bytes(&mut frame)[300..305].copy_from_slice(b"hello");
        let address = umem.lend(frame, Purpose::Fill);
        assert_eq!(umem.free(), 3);
        assert!(umem.reclaim(address, 0, Purpose::Tx).is_none());
        let (mut frame, span) = umem.reclaim(address + 300, 5, Purpose::Fill).unwrap();
        assert_eq!(&umem.bytes(&mut frame)[span], b"hello");
        assert!(umem.reclaim(address, 0, Purpose::Fill).is_none(), "it is ours already");
        assert_eq!(umem.take_strays(), 2);
        assert_eq!(umem.take_strays(), 0);
    }

    #[test]
    fn a_span_ends_with_its_frame_at_the_latest() {
        let umem = Umem::new(2, 2048).unwrap();
        for (len, fits) in [(1792, true), (1793, false)] {
            let address = umem.lend(umem.take().unwrap(), Purpose::Fill);
            let reclaimed = umem.reclaim(address + 256, len, Purpose::Fill);
            assert_eq!(reclaimed.is_some(), fits, "{len}");
            reclaimed.into_iter().for_each(|(frame, _)| umem.give(frame));
            assert_eq!(umem.free(), 2, "no frame is lost");
        }
    }

    proptest! {
        #[test]
        fn no_address_makes_a_second_token(
            descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>(), any::<bool>()), 1..100),
        ) {
            let umem = Umem::new(8, 4096).unwrap();
            for _ in 0..4 {
                umem.lend(umem.take().unwrap(), Purpose::Fill);
            }
            let mut tokens = vec![];
            for (address, len, near, fill) in descriptors {
                let address = if near { address % (9 * 4096) } else { address };
                let purpose = if fill { Purpose::Fill } else { Purpose::Tx };
                if let Some((frame, span)) = umem.reclaim(address, len, purpose) {
                    prop_assert!(span.end <= 4096);
                    tokens.push(frame.0);
                }
            }
            tokens.extend(std::iter::from_fn(|| umem.take()).map(|frame| frame.0));
            let count = tokens.len();
            tokens.sort_unstable();
            tokens.dedup();
            prop_assert_eq!(tokens.len(), count);
        }
    }
}
