//! The underlay over AF_XDP: data comes from and goes to the device's queues, all else through the socket port beside.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use weir_abi::drop::DropReason;

use super::hops::Reader;
use super::packet::{WAN_HEADERS_LEN_MAX, parse_wan, write_wan_headers};
use super::receive::Receive;
use super::transmit::Transmit;
use super::{Halves, Shared, Watch};
use crate::engine::port::{RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};

/// The receiving half: the queues of the WAN device that belong to this worker, and the socket port `S`. A burst is from one of both; they
/// take turns.
pub struct WanRx<S> {
    receive: Receive,
    /// The UDP port that all workers share; what came to another came to a lane port.
    port: u16,
    socket: S,
    /// Whether the current burst is the socket's, and so the next one the queues' first.
    from_socket: bool,
}

impl<S: RxPort> WanRx<S> {
    /// A port on the sockets of `halves` that are on the interface; `port` is the UDP port that all workers share.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn new(watch: &Watch, halves: &mut Halves, interface: u32, port: u16, socket: S) -> io::Result<Self> {
        Ok(Self { receive: Receive::new(watch, halves, &[interface])?, port, socket, from_socket: true })
    }
}

impl<S: RxPort> RxBurst for WanRx<S> {
    fn len(&self) -> usize {
        if self.from_socket { self.socket.len() } else { self.receive.len() }
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        if self.from_socket { self.socket.frame(i) } else { self.receive.frame(i) }
    }
}

impl<S: RxPort> RxPort for WanRx<S> {
    fn receive(&mut self) -> io::Result<usize> {
        let mut received = 0;
        // Both are asked before none is said to wait, and the one that was served last comes last.
        for _ in 0..2 {
            self.from_socket = !self.from_socket;
            received = match self.from_socket {
                true => self.socket.receive()?,
                false => self.receive.burst(|bytes| parse_wan(bytes, self.port))?,
            };
            if received > 0 {
                break;
            }
        }
        Ok(received)
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        self.receive.take_dropped().or_else(|| self.socket.take_dropped())
    }
}

/// The sending half. Trains are written into slots of the socket port `S` and leave by the device where the next hop is known, else by the
/// socket. Headers and a valid UDP checksum are written for each datagram.
pub struct WanTx<S> {
    transmit: Transmit,
    hops: Reader,
    port: u16,
    socket: S,
    /// How long the slot that was lent last was to be. Asked for the same again, the socket port lends the same one; for less, perhaps another.
    asked: usize,
    /// Datagrams that could not be queued since the last look.
    failed: u64,
}

impl<S: TxPort> WanTx<S> {
    /// A port on the sockets of `halves` that are on the interface, sending from UDP port `port`.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn new(
        watch: &Watch,
        halves: &mut Halves,
        interface: u32,
        port: u16,
        hops: &Shared,
        socket: S,
    ) -> io::Result<Self> {
        let taken = halves.take_tx(&[interface]);
        let transmit = Transmit::new(watch, Rc::clone(&halves.umem), taken, halves.multi_buffer)?;
        Ok(Self { transmit, hops: hops.reader(), port, socket, asked: 0, failed: 0 })
    }

    /// Sends the train in the socket's slot by the device. Returns whether it went.
    fn send(&mut self, len: usize, meta: &TxMeta) -> bool {
        let Some(to) = meta.destination else { return false };
        let Some(hop) = self.hops.resolve(to.ip().to_canonical()) else { return false };
        let Some(source) = meta.source.or(hop.source) else { return false };
        let from = SocketAddr::new(source.to_canonical(), self.port);
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let segment = if meta.segment == 0 { len } else { usize::from(meta.segment) };
        let headers_len = if to.is_ipv4() { 28 } else { 48 };
        let Some(train) = self.socket.slot(self.asked).and_then(|slot| slot.get(..len)) else { return false };
        let longest = segment.min(len) + headers_len;
        if len == 0 || from.is_ipv4() != to.is_ipv4() || longest > hop.mtu as usize {
            return false;
        }
        if !self.transmit.takes(hop.interface, longest + 14) {
            return false;
        }
        let mut headers = [0; WAN_HEADERS_LEN_MAX];
        for datagram in train.chunks(segment) {
            let written = write_wan_headers(&mut headers, &hop, (from, to), meta.class, datagram);
            let sent = written.is_some_and(|n| self.transmit.send(hop.interface, &headers[..n], datagram));
            // The slot was lent only with room for a train, so this is a datagram too long for its own length field.
            self.failed += u64::from(!sent);
        }
        true
    }
}

impl<S: TxPort> TxSink for WanTx<S> {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        // Here and not at a flush: the table of a port that was idle may be old.
        self.hops.refresh();
        self.asked = len;
        if self.transmit.has_room() { self.socket.slot(len) } else { None }
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        // A lane port is a socket's.
        if meta.lane_port || !self.send(len, &meta) {
            self.socket.commit(len, meta);
        }
    }
}

impl<S: TxPort> TxPort for WanTx<S> {
    fn flush(&mut self) -> io::Result<usize> {
        let waiting = self.transmit.flush()?;
        Ok(waiting + self.socket.flush()?)
    }

    fn room(&self) -> usize {
        if self.transmit.looks_free() { self.socket.room() } else { 0 }
    }

    fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed) + self.socket.take_failed()
    }
}
