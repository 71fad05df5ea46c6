//! Traffic: numbered packets from one machine to another, and what became of each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::plane::{Body, Datagram, Packet};
use super::queue::Due;
use super::{Site, World};

/// A stream, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub usize);

/// What became of a stream's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Given to the packet plane.
    pub sent: u64,
    /// Taken out at the other end.
    pub delivered: u64,
    /// Lost, by reason; `network` for a cut or a machine that is off.
    pub lost: BTreeMap<&'static str, u64>,
    /// When the last one was delivered.
    pub last: Option<Duration>,
    /// The longest time between two that were delivered.
    pub gap: Duration,
}

impl StreamStats {
    /// All that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.values().sum()
    }
}

pub(super) struct Stream {
    from: Site,
    to: Destination,
    source: Option<IpAddr>,
    every: Duration,
    is_on: bool,
    stats: StreamStats,
}

#[derive(Clone, Copy)]
enum Destination {
    Site(Site),
    Address(IpAddr),
}

impl World {
    /// Sends a packet every so often from one machine's overlay address to another's.
    pub fn stream(&mut self, from: Site, to: Site, every: Duration) -> StreamId {
        self.begin(from, Destination::Site(to), None, every)
    }

    /// The same between addresses of networks behind the machines.
    pub fn stream_between(&mut self, from: Site, source: IpAddr, to: IpAddr, every: Duration) -> StreamId {
        self.begin(from, Destination::Address(to), Some(source), every)
    }

    fn begin(&mut self, from: Site, to: Destination, source: Option<IpAddr>, every: Duration) -> StreamId {
        let number = self.streams.len();
        self.streams.push(Stream { from, to, source, every, is_on: true, stats: StreamStats::default() });
        self.net.queue.push(self.net.at, Due::Stream(number));
        StreamId(number)
    }

    /// Ends a stream; what is under way still arrives.
    pub fn stop(&mut self, stream: StreamId) {
        self.streams[stream.0].is_on = false;
    }

    /// How a stream does.
    pub fn stats(&self, stream: StreamId) -> &StreamStats {
        &self.streams[stream.0].stats
    }

    pub(super) fn stream_due(&mut self, number: usize) {
        let at = self.net.at;
        let Stream { from, to, source, every, is_on, .. } = self.streams[number];
        if !is_on {
            return;
        }
        self.net.queue.push(at + every, Due::Stream(number));
        let to = match to {
            Destination::Site(site) => self.overlay(site),
            Destination::Address(address) => Some(address),
        };
        let (Some(source), Some(destination)) = (source.or_else(|| self.overlay(from)), to) else { return };
        let stats = &mut self.streams[number].stats;
        stats.sent += 1;
        let packet = Packet { stream: number, sequence: stats.sent, source, destination };
        match &mut self.machines[from.0].plane {
            Some(plane) if !self.net.places[from.0].is_asleep => plane.transmit(packet, at),
            Some(_) | None => self.dropped(packet, "no_packet_plane"),
        }
        self.plane_effects(from);
    }

    pub(super) fn delivered(&mut self, packet: Packet) {
        let at = self.net.at;
        let stats = &mut self.streams[packet.stream].stats;
        stats.delivered += 1;
        stats.gap = stats.gap.max(at - stats.last.unwrap_or(at));
        stats.last = Some(at);
    }

    pub(super) fn dropped(&mut self, packet: Packet, why: &'static str) {
        *self.streams[packet.stream].stats.lost.entry(why).or_default() += 1;
    }

    /// A datagram that the network does not carry.
    pub(super) fn lost(&mut self, datagram: &Datagram) {
        if let Some(packet) = datagram.packet() {
            self.dropped(packet, "network");
        }
    }
}

impl Datagram {
    fn packet(&self) -> Option<Packet> {
        match self.body {
            Body::Packet(packet) => Some(packet),
            Body::EchoRequest(_) | Body::EchoReply(_) | Body::ProbeRequest(..) | Body::ProbeReply(..) | Body::Close => {
                None
            }
        }
    }
}
