//! Packets that the engine itself wants to send to peers: those of other peers, and ICMP errors of the gateway.
//!
//! They come up in the middle of a batch, while the burst's buffers and the sink are in use, and leave at its end. The outbox copies them
//! into memory of its own, which is allocated once; when it is full the packet is dropped and counted.

use weir_abi::drop::DropReason;

use super::class;
use super::port::BURST_LEN;
use super::snapshot::SessionSlot;

/// Bytes of the outbox: four of the longest packets, or a burst of ordinary ones.
pub(super) const OUTBOX_LEN: usize = 256 * 1024;
/// Packets of the outbox: a burst, and behind it one datagram full of the smallest that hosts send (40 bytes in 1500).
pub(super) const PACKETS_MAX: usize = 2 * BURST_LEN;

/// At most [`PACKETS_MAX`] packets and [`OUTBOX_LEN`] bytes.
///
/// The default one has no room at all: what stands in while the real one is lent out.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Box<[u8]>,
    used: usize,
    packets: Box<[Entry]>,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    to: SessionSlot,
    at: usize,
    len: usize,
    class: u8,
    is_transit: bool,
}

impl Entry {
    const EMPTY: Self = Self { to: SessionSlot(0), at: 0, len: 0, class: 0, is_transit: false };
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; OUTBOX_LEN].into_boxed_slice(),
            packets: vec![Entry::EMPTY; PACKETS_MAX].into_boxed_slice(),
            ..Self::default()
        }
    }

    /// Copies another peer's packet in.
    pub(super) fn push(&mut self, to: SessionSlot, packet: &[u8]) -> Result<(), DropReason> {
        self.push_with(to, packet.len(), true, |space| {
            space.copy_from_slice(packet);
            Some(packet.len())
        })
    }

    /// Lets `write` make an error of at most `len_max` bytes in place. `None` from it means that there is none after all.
    pub(super) fn push_error(
        &mut self,
        to: SessionSlot,
        len_max: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(), DropReason> {
        self.push_with(to, len_max, false, write)
    }

    fn push_with(
        &mut self,
        to: SessionSlot,
        len_max: usize,
        is_transit: bool,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(), DropReason> {
        let space = self.bytes.get_mut(self.used..self.used + len_max).ok_or(DropReason::TransitQueueFull)?;
        let entry = self.packets.get_mut(self.count).ok_or(DropReason::TransitQueueFull)?;
        if let Some(len) = write(space) {
            *entry = Entry { to, at: self.used, len, class: class::of_packet(&space[..len]), is_transit };
            self.count += 1;
            self.used += len;
        }
        Ok(())
    }

    /// Whether so much has come together that it should be sent before more comes.
    pub(super) fn is_half_full(&self) -> bool {
        self.count >= PACKETS_MAX / 2 || self.used >= OUTBOX_LEN / 2
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn to(&self, i: usize) -> SessionSlot {
        self.packets[i].to
    }

    /// The packet's traffic class.
    pub(super) fn class(&self, i: usize) -> u8 {
        self.packets[i].class
    }

    /// Whether the packet is another peer's, not an error of ours.
    pub(super) fn is_transit(&self, i: usize) -> bool {
        self.packets[i].is_transit
    }

    pub(super) fn packet(&self, i: usize) -> &[u8] {
        let Entry { at, len, .. } = self.packets[i];
        &self.bytes[at..at + len]
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_until_the_outbox_is_full() {
        let mut outbox = Outbox::new();
        for i in 0..PACKETS_MAX {
            assert_eq!(outbox.push(SessionSlot(i as u32), &[i as u8; 100]), Ok(()));
        }
        assert_eq!(outbox.push(SessionSlot(0), &[0]), Err(DropReason::TransitQueueFull));
        for i in 0..PACKETS_MAX {
            assert_eq!((outbox.to(i), outbox.packet(i)), (SessionSlot(i as u32), &[i as u8; 100][..]));
        }
        outbox.clear();
        assert_eq!(outbox.len(), 0);
        assert_eq!(outbox.push(SessionSlot(0), &[1]), Ok(()));
    }

    #[test]
    fn the_byte_limit_holds_at_the_limit() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.push(SessionSlot(0), &vec![7; OUTBOX_LEN - 1]), Ok(()));
        assert_eq!(outbox.push(SessionSlot(0), &[1]), Ok(()));
        assert_eq!(outbox.push(SessionSlot(0), &[2]), Err(DropReason::TransitQueueFull));
        assert_eq!(outbox.len(), 2);
    }

    #[test]
    fn a_packet_that_is_not_made_takes_no_place() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.push_error(SessionSlot(0), 1280, |_| None), Ok(()));
        assert_eq!(outbox.len(), 0);
    }
}
