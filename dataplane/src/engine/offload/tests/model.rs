//! Packets built field by field, and the plain way to cut them.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::super::port::{Offload, Segmentation};
use super::super::checksum::testing::plain_checksum;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// A TCP segment or UDP datagram with all that its headers say but lengths and checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) v4: bool,
    pub(super) tcp: bool,
    /// Which of a few hosts and ports.
    pub(super) flow: u8,
    pub(super) class: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    pub(super) df: bool,
    /// IPv4 options or IPv6 extension headers; a multiple of eight bytes.
    pub(super) between: Vec<u8>,
    pub(super) sequence: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// TCP options; a multiple of four bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn new(v4: bool, tcp: bool) -> Self {
        Self {
            v4,
            tcp,
            flow: 0,
            class: 0,
            ttl: 64,
            id: 1000,
            df: false,
            between: vec![],
            sequence: 1_000_000,
            ack: 5,
            flags: ACK,
            window: 500,
            options: vec![],
            payload: vec![],
        }
    }

    pub(super) fn l4_offset(&self) -> usize {
        self.between.len() + if self.v4 { 20 } else { 40 }
    }

    pub(super) fn l4_len(&self) -> usize {
        if self.tcp { 20 + self.options.len() } else { 8 }
    }

    pub(super) fn checksum_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn addresses(&self) -> Vec<u8> {
        if self.v4 {
            [Ipv4Addr::new(10, 1, 0, self.flow), Ipv4Addr::new(10, 2, 0, 9)].map(|a| a.octets()).concat()
        } else {
            let source = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, u16::from(self.flow));
            [source, Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 9)].map(|a| a.octets()).concat()
        }
    }

    fn pseudo(&self) -> Vec<u8> {
        let len = (self.l4_len() + self.payload.len()) as u32;
        [&self.addresses()[..], &[0, 0, 0, self.protocol()], &len.to_be_bytes()].concat()
    }

    /// Header and payload with this in the checksum field.
    fn transport(&self, checksum: u16) -> Vec<u8> {
        let mut l4 = [[0x1f, self.flow], [0, 80]].concat();
        if self.tcp {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend(self.ack.to_be_bytes());
            l4.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend(checksum.to_be_bytes());
            l4.extend([0, 0]);
            l4.extend(&self.options);
        } else {
            l4.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            l4.extend(checksum.to_be_bytes());
        }
        l4.extend(&self.payload);
        l4
    }

    fn with_transport(&self, l4: &[u8]) -> Vec<u8> {
        let mut packet = vec![];
        let behind = self.between.len() + l4.len();
        if self.v4 {
            packet.extend([0x45 + self.between.len() as u8 / 4, self.class]);
            packet.extend((20 + behind as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, self.protocol(), 0, 0]);
            packet.extend(self.addresses());
            packet.extend(&self.between);
            let checksum = plain_checksum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet.extend([0x60 | self.class >> 4, self.class << 4, 0, 7]);
            packet.extend((behind as u16).to_be_bytes());
            // Destination options, as many as there are; each is told the next one by the test that wants them.
            packet.extend([if self.between.is_empty() { self.protocol() } else { 60 }, self.ttl]);
            packet.extend(self.addresses());
            packet.extend(&self.between);
        }
        packet.extend(l4);
        packet
    }

    /// The packet as it is on a wire.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let checksum = plain_checksum(&[self.pseudo(), self.transport(0)].concat());
        let checksum = if checksum == 0 && !self.tcp { 0xffff } else { checksum };
        self.with_transport(&self.transport(checksum))
    }

    /// The packet as a kernel hands it over: with the sum of the pseudo-header only.
    pub(super) fn partial_bytes(&self) -> Vec<u8> {
        self.with_transport(&self.transport(!plain_checksum(&self.pseudo())))
    }

    /// The packets that it stands for.
    pub(super) fn cut(&self, segment: usize, cwr: bool) -> Vec<Self> {
        let parts: Vec<&[u8]> = self.payload.chunks(segment).collect();
        let mut sequence = self.sequence;
        let mut packets = vec![];
        for (k, part) in parts.iter().enumerate() {
            let mut packet =
                Self { payload: part.to_vec(), id: self.id.wrapping_add(k as u16), sequence, ..self.clone() };
            if k != parts.len() - 1 {
                packet.flags &= !(FIN | PSH);
            }
            if k != 0 && cwr {
                packet.flags &= !CWR;
            }
            sequence = sequence.wrapping_add(part.len() as u32);
            packets.push(packet);
        }
        packets
    }

    pub(super) fn offload(&self, segment: u16, cwr: bool) -> Offload {
        let segmentation = if self.tcp { Segmentation::Tcp { cwr } } else { Segmentation::Udp };
        Offload { cut: Some((segmentation, segment)), checksum: Some(self.checksum_only()) }
    }

    pub(super) fn checksum_only(&self) -> (u16, u16) {
        (self.l4_offset() as u16, self.checksum_offset() as u16)
    }
}

/// IPv4 options or IPv6 destination options before the protocol, of a few lengths.
fn between(v4: bool, protocol: u8, units: usize) -> Vec<u8> {
    let mut bytes = vec![1; units * 8];
    if !v4 && units > 0 {
        (bytes[0], bytes[1]) = (protocol, units as u8 - 1);
    }
    bytes
}

/// Any packet with as many bytes of payload.
pub(super) fn any_packet(payload: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    let ip = (any::<bool>(), any::<bool>(), any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>(), 0usize..5);
    let tcp = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), 0usize..11);
    (ip, tcp, prop::collection::vec(any::<u8>(), payload)).prop_map(|(ip, tcp, payload)| {
        let (v4, is_tcp, class, ttl, id, df, units) = ip;
        let (sequence, ack, flags, window, words) = tcp;
        Packet {
            v4,
            tcp: is_tcp,
            flow: class,
            class,
            ttl,
            id,
            df,
            between: between(v4, if is_tcp { 6 } else { 17 }, units),
            sequence,
            ack,
            flags,
            window,
            options: vec![1; words * 4],
            payload,
        }
    })
}
