//! The local side over AF_XDP: packets for the overlay come from the LAN devices' queues, and packets for known neighbours leave there; all
//! else through the TUN port beside.
//!
//! A packet that goes past the kernel's router has its TTL counted down here, in both directions: the engine leaves that to whoever stands
//! on the local side. Whose TTL ends goes by the router, which answers (docs/decisions/0005).

use std::io;
use std::rc::Rc;

use weir_abi::drop::DropReason;
use weir_abi::frame::ETHERNET_LEN;

use super::hops::Reader;
use super::packet::{LAN_HEADERS_LEN_MAX, parse_lan, write_lan_headers};
use super::receive::Receive;
use super::transmit::Transmit;
use super::{Halves, Shared, Watch};
use crate::engine::inner::{decrement_ttl, destination};
use crate::engine::port::{RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};

/// The receiving half: the queues of the LAN devices that belong to this worker, and the TUN port `S`. A burst is from one of both; they take
/// turns.
pub struct LanRx<S> {
    receive: Receive,
    wire_checksums: bool,
    tun: S,
    /// Whether the current burst is the TUN's, and so the next one the queues' first.
    from_tun: bool,
}

impl<S: RxPort> LanRx<S> {
    /// A port on the sockets of `halves` that are on these interfaces. With `wire_checksums` their hardware has checked what arrives;
    /// without (veth, virtio_net) transport checksums are checked, and completed, here.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn new(
        watch: &Watch,
        halves: &mut Halves,
        interfaces: &[u32],
        wire_checksums: bool,
        tun: S,
    ) -> io::Result<Self> {
        Ok(Self { receive: Receive::new(watch, halves, interfaces)?, wire_checksums, tun, from_tun: true })
    }
}

impl<S: RxPort> RxBurst for LanRx<S> {
    fn len(&self) -> usize {
        if self.from_tun { self.tun.len() } else { self.receive.len() }
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        if self.from_tun { self.tun.frame(i) } else { self.receive.frame(i) }
    }
}

impl<S: RxPort> RxPort for LanRx<S> {
    fn receive(&mut self) -> io::Result<usize> {
        let mut received = 0;
        // Both are asked before none is said to wait, and the one that was served last comes last.
        for _ in 0..2 {
            self.from_tun = !self.from_tun;
            received = match self.from_tun {
                true => self.tun.receive()?,
                false => self.receive.burst(|bytes| {
                    let span = parse_lan(bytes, self.wire_checksums)?;
                    // A router's duty, which the kernel would have done. What comes to its end here is the kernel's to answer: `lan` leaves
                    // it there.
                    decrement_ttl(&mut bytes[span.clone()])?;
                    Ok((span, RxMeta::default()))
                })?,
            };
            if received > 0 {
                break;
            }
        }
        Ok(received)
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        self.receive.take_dropped().or_else(|| self.tun.take_dropped())
    }
}

/// The sending half. Packets are written into slots of the TUN port `S` and leave by a device where the neighbour is known, else by the TUN:
/// what is for this host, for unknown neighbours, too long for the device, at the end of its TTL or with options is the kernel's. It takes
/// no offloads.
pub struct LanTx<S> {
    transmit: Transmit,
    hops: Reader,
    tun: S,
    /// How long the slot that was lent last was to be. Asked for the same again, the TUN port lends the same one; for less, perhaps another.
    asked: usize,
}

impl<S: TxPort> LanTx<S> {
    /// A port on the sockets of `halves` that are on these interfaces.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn new(watch: &Watch, halves: &mut Halves, interfaces: &[u32], hops: &Shared, tun: S) -> io::Result<Self> {
        let taken = halves.take_tx(interfaces);
        let transmit = Transmit::new(watch, Rc::clone(&halves.umem), taken, halves.multi_buffer)?;
        Ok(Self { transmit, hops: hops.reader(), tun, asked: 0 })
    }

    /// Sends the packet in the TUN's slot by a device. Returns whether it went.
    fn send(&mut self, len: usize) -> bool {
        let Some(packet) = self.tun.slot(self.asked).and_then(|slot| slot.get(..len)) else { return false };
        let Some(hop) = destination(packet).and_then(|to| self.hops.resolve(to)) else { return false };
        // Written beside the packet: what does not go here is the kernel's as it came.
        let mut headers = [0; LAN_HEADERS_LEN_MAX];
        let Some(headers_len) = write_lan_headers(&mut headers, &hop, packet) else { return false };
        len <= hop.mtu as usize
            && self.transmit.takes(hop.interface, ETHERNET_LEN + len)
            && self.transmit.send(hop.interface, &headers[..headers_len], &packet[headers_len - ETHERNET_LEN..])
    }
}

impl<S: TxPort> TxSink for LanTx<S> {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        // Here and not at a flush: the table of a port that was idle may be old.
        self.hops.refresh();
        self.asked = len;
        if self.transmit.has_room() { self.tun.slot(len) } else { None }
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        if !self.send(len) {
            self.tun.commit(len, meta);
        }
    }
}

impl<S: TxPort> TxPort for LanTx<S> {
    fn flush(&mut self) -> io::Result<usize> {
        let waiting = self.transmit.flush()?;
        Ok(waiting + self.tun.flush()?)
    }

    fn room(&self) -> usize {
        if self.transmit.looks_free() { self.tun.room() } else { 0 }
    }

    fn take_failed(&mut self) -> u64 {
        self.tun.take_failed()
    }
}
