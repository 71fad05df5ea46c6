//! Packets of one flow as one superpacket: what `Segments` undoes, done for the local side.
//!
//! ```text
//!   push   A0  B0  A1  C   A2  B1                    packets, in order, each left where it lies
//!          └───────┴───────┘   │                     joined: A0 A1 A2 · B0 B1 · C
//!              └───────────────┘
//!   flush  A0+A1+A2   B0+B1   C                      copied to the sink, in the order of the first packets
//! ```
//!
//! A packet joins the open superpacket of its flow only if cutting the superpacket again gives back the same bytes. That is the rule of the
//! kernel's GRO (`tcp_gro_receive`, `inet_gro_receive` in `net/ipv4`), and it includes what one may not expect: the window must be the
//! same, and the checksum must be right, because the superpacket will carry none that could tell. The one exception is the identification
//! of IPv4 packets that may not be fragmented: all of a flow may have the same, and cutting counts it up. It means nothing in such a
//! packet (RFC 6864 §4.1).
//!
//! A packet that cannot join closes its flow's superpacket, so packets of one flow never overtake each other. Packets of different flows
//! may. Nothing waits for the next batch.

use weir_abi::drop::DropReason;

use super::super::inner::{IPV4_LEN, IPV6_LEN, Inner, PROTOCOL_TCP, PROTOCOL_UDP};
use super::super::port::{Offload, SUPERPACKET_LEN_MAX, Segmentation, TRAIN_SEGMENTS_MAX, TxMeta, TxSink};
use super::checksum::Sum;
use super::segment::{ACK, FIN, HEADER_LEN_MAX, PSH, TCP_CHECKSUM, UDP_CHECKSUM, UDP_LEN, pseudo_sum, tcp_len};

/// Most packets that are held until a flush: four of each frame of a burst.
pub const HELD_PACKETS_MAX: usize = 256;
/// Most flows with an open superpacket. One more closes another one.
pub const OPEN_FLOWS_MAX: usize = SETS * WAYS;

/// Open flows are found by some bits of their hash, which leaves them this many places.
const WAYS: usize = 2;
const SETS: usize = 64;
/// Headers of the longest packet that joins others: IPv6 without extension headers, TCP with all options.
const HEADERS_LEN_MAX: usize = IPV6_LEN + HEADER_LEN_MAX;
/// No packet, no superpacket.
const NONE: u16 = u16::MAX;

/// Where a packet lies. What a frame is only the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which frame.
    pub frame: u16,
    /// Where in it the packet begins, in bytes.
    pub start: u32,
    /// Bytes of the packet.
    pub len: u32,
}

/// Who still has the packets that were pushed.
pub trait Lent {
    /// The packet at `place`, as it was when it was pushed there: `place.len` bytes.
    fn bytes(&mut self, place: Place) -> &[u8];
}

/// What became of packets. Packets are counted as they were pushed, not as superpackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// They were committed to the sink.
    Written {
        /// How many.
        packets: usize,
        /// Their lengths added up, IP headers included.
        bytes: usize,
    },
    /// They were dropped.
    Dropped {
        /// How many.
        packets: usize,
        /// Why.
        reason: DropReason,
    },
}

/// A packet that waits for the flush.
#[derive(Clone, Copy)]
struct Held {
    place: Place,
    /// The next packet of the same superpacket.
    next: u16,
}

/// A superpacket to be written, or a packet that goes alone.
#[derive(Clone, Copy)]
struct Superpacket {
    first: u16,
    last: u16,
    packets: u16,
    headers: u16,
    /// Bytes of payload in each packet but the last.
    segment: u16,
    /// Bytes of payload of all packets.
    payload: u16,
    segmentation: Segmentation,
    is_v4: bool,
    /// TCP flags of all packets.
    flags: u8,
}

/// How the IPv4 identification goes on within a superpacket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// One packet says nothing.
    Unknown,
    Rising,
    Constant,
}

/// What the next packet of an open superpacket must be like.
#[derive(Clone, Copy)]
struct Flow {
    /// As [`Candidate::fixed`].
    fixed: [u8; HEADERS_LEN_MAX],
    sequence: u32,
    id: u16,
    ids: Ids,
}

/// Where to find an open flow.
#[derive(Clone, Copy)]
struct Way {
    hash: u32,
    superpacket: u16,
}

const CLOSED: Way = Way { hash: 0, superpacket: NONE };

/// Collects the packets of a batch. About 30 KiB, allocated once.
pub struct Coalescer {
    held: Vec<Held>,
    superpackets: Vec<Superpacket>,
    ways: Box<[[Way; WAYS]; SETS]>,
    flows: Box<[[Flow; WAYS]; SETS]>,
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

impl Coalescer {
    /// An empty one.
    pub fn new() -> Self {
        let flow = Flow { fixed: [0; HEADERS_LEN_MAX], sequence: 0, id: 0, ids: Ids::Unknown };
        Self {
            held: Vec::with_capacity(HELD_PACKETS_MAX),
            superpackets: Vec::with_capacity(HELD_PACKETS_MAX),
            ways: Box::new([[CLOSED; WAYS]; SETS]),
            flows: Box::new([[flow; WAYS]; SETS]),
        }
    }

    /// Whether no packet waits.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Files a packet that lies at `place` and stays there unchanged until the flush. `inner` was parsed from `packet`, which is all of it.
    ///
    /// Returns whether there was room; if not, nothing happened, and a flush makes room.
    #[must_use]
    pub fn push(&mut self, inner: &Inner, packet: &[u8], place: Place) -> bool {
        if self.held.len() == HELD_PACKETS_MAX {
            return false;
        }
        if inner.ports.is_none() {
            // A fragment is of a flow that cannot be told, so it closes all of them.
            if inner.fragment.is_some() {
                self.ways.fill([CLOSED; WAYS]);
            }
            self.start(place, None);
            return true;
        }
        let hash = inner.tuple_hash();
        let set = hash as usize % SETS;
        let candidate = Candidate::new(inner, packet);
        let way = self.ways[set].iter().position(|way| way.superpacket != NONE && way.hash == hash);
        if let (Some(way), Some(candidate)) = (way, &candidate)
            && self.join(set, way, candidate, place)
        {
            return true;
        }
        if let Some(way) = way {
            self.ways[set][way] = CLOSED;
        }
        let superpacket = self.start(place, candidate.as_ref());
        if let Some(candidate) = candidate
            && !candidate.ends
        {
            self.open(set, way, Way { hash, superpacket }, &candidate);
        }
        true
    }

    /// Writes all packets to the sink, superpackets where it takes them, and says of each what became of it.
    ///
    /// # Panics
    /// When `lent` gives a packet another length than its place has.
    pub fn flush(&mut self, lent: &mut impl Lent, sink: &mut impl TxSink, report: &mut impl FnMut(Delivered)) {
        if sink.takes_offloads() {
            for superpacket in &self.superpackets {
                if superpacket.packets == 1 {
                    write_alone(self.held[usize::from(superpacket.first)].place, lent, sink, report);
                } else {
                    superpacket.write(&self.held, lent, sink, report);
                }
            }
        } else {
            for held in &self.held {
                write_alone(held.place, lent, sink, report);
            }
        }
        self.held.clear();
        self.superpackets.clear();
        self.ways.fill([CLOSED; WAYS]);
    }

    /// Begins a superpacket; without a candidate, one that nothing joins.
    fn start(&mut self, place: Place, candidate: Option<&Candidate>) -> u16 {
        let first = self.hold(place);
        let superpacket = self.superpackets.len() as u16;
        self.superpackets.push(Superpacket {
            first,
            last: first,
            packets: 1,
            headers: candidate.map_or(0, |candidate| candidate.headers),
            segment: candidate.map_or(0, |candidate| candidate.payload),
            payload: candidate.map_or(0, |candidate| candidate.payload),
            segmentation: candidate.map_or(Segmentation::Udp, |candidate| candidate.segmentation),
            is_v4: candidate.is_some_and(|candidate| candidate.is_v4),
            flags: candidate.map_or(0, |candidate| candidate.flags),
        });
        superpacket
    }

    fn hold(&mut self, place: Place) -> u16 {
        let index = self.held.len() as u16;
        self.held.push(Held { place, next: NONE });
        index
    }

    /// Lets the flow be found, in the place of the one that it continues, in a free one, or in that of the older one.
    fn open(&mut self, set: usize, way: Option<usize>, found: Way, candidate: &Candidate) {
        let ways = &mut self.ways[set];
        let older = || usize::from(ways[0].superpacket > ways[1].superpacket);
        let way = way.or_else(|| ways.iter().position(|way| way.superpacket == NONE)).unwrap_or_else(older);
        ways[way] = found;
        self.flows[set][way] = Flow {
            fixed: candidate.fixed,
            sequence: candidate.sequence.wrapping_add(u32::from(candidate.payload)),
            id: candidate.id,
            ids: Ids::Unknown,
        };
    }

    /// Appends the packet to the open superpacket if it continues it.
    fn join(&mut self, set: usize, way: usize, candidate: &Candidate, place: Place) -> bool {
        let flow = &mut self.flows[set][way];
        let found = &mut self.ways[set][way];
        let superpacket = &mut self.superpackets[usize::from(found.superpacket)];
        let headers = usize::from(candidate.headers);
        let len = headers + usize::from(superpacket.payload) + usize::from(candidate.payload);
        let is_tcp = candidate.segmentation != Segmentation::Udp;
        let Some(ids) = flow.continues(candidate, superpacket.packets) else { return false };
        if candidate.headers != superpacket.headers
            || candidate.fixed[..headers] != flow.fixed[..headers]
            || candidate.payload > superpacket.segment
            || len > SUPERPACKET_LEN_MAX
            || (is_tcp && candidate.sequence != flow.sequence)
            || (!is_tcp && usize::from(superpacket.packets) == TRAIN_SEGMENTS_MAX)
        {
            return false;
        }
        flow.ids = ids;
        flow.sequence = flow.sequence.wrapping_add(u32::from(candidate.payload));
        let index = self.held.len() as u16;
        self.held[usize::from(superpacket.last)].next = index;
        self.held.push(Held { place, next: NONE });
        superpacket.last = index;
        superpacket.packets += 1;
        superpacket.payload += candidate.payload;
        superpacket.flags |= candidate.flags;
        if candidate.ends || candidate.payload < superpacket.segment {
            *found = CLOSED;
        }
        true
    }
}

impl Flow {
    /// How identifications go on with this packet, if they do.
    fn continues(&self, candidate: &Candidate, packets: u16) -> Option<Ids> {
        if !candidate.is_v4 {
            return Some(Ids::Unknown);
        }
        let rising = candidate.id == self.id.wrapping_add(packets);
        let constant = candidate.id == self.id && candidate.dont_fragment;
        match self.ids {
            Ids::Unknown | Ids::Rising if rising => Some(Ids::Rising),
            Ids::Unknown | Ids::Constant if constant => Some(Ids::Constant),
            _ => None,
        }
    }
}

impl Superpacket {
    /// Puts the packets together in a slot.
    fn write(&self, held: &[Held], lent: &mut impl Lent, sink: &mut impl TxSink, report: &mut impl FnMut(Delivered)) {
        let (packets, headers) = (usize::from(self.packets), usize::from(self.headers));
        let len = headers + usize::from(self.payload);
        let Some(out) = sink.slot(len).and_then(|slot| slot.get_mut(..len)) else {
            return report(Delivered::Dropped { packets, reason: DropReason::LanQueueFull });
        };
        let (mut next, mut at, mut skip) = (self.first, 0, 0);
        while let Some(held) = held.get(usize::from(next)) {
            let part = &lent.bytes(held.place)[skip..];
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
            (next, skip) = (held.next, headers);
        }
        let offload = self.patch(out);
        sink.commit(len, TxMeta { offload, ..TxMeta::default() });
        report(Delivered::Written { packets, bytes: len + (packets - 1) * headers });
    }

    /// Makes the first packet's headers those of all, and says what is left to do.
    fn patch(&self, out: &mut [u8]) -> Offload {
        let l4_offset = if self.is_v4 { IPV4_LEN } else { IPV6_LEN };
        let l4_len = out.len() - l4_offset;
        let (ip, l4) = out.split_at_mut(l4_offset);
        if self.is_v4 {
            ip[2..4].copy_from_slice(&((l4_offset + l4_len) as u16).to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::of(ip).checksum();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        }
        let checksum_at = if self.segmentation == Segmentation::Udp {
            l4[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            UDP_CHECKSUM
        } else {
            l4[13] = self.flags;
            TCP_CHECKSUM
        };
        // Not complemented: whoever completes it sums this field too.
        let pseudo = pseudo_sum(ip, self.is_v4, self.segmentation, l4_len).fold();
        l4[checksum_at..checksum_at + 2].copy_from_slice(&pseudo.to_be_bytes());
        Offload { cut: Some((self.segmentation, self.segment)), checksum: Some((l4_offset as u16, checksum_at as u16)) }
    }
}

fn write_alone(place: Place, lent: &mut impl Lent, sink: &mut impl TxSink, report: &mut impl FnMut(Delivered)) {
    let bytes = place.len as usize;
    let Some(out) = sink.slot(bytes).and_then(|slot| slot.get_mut(..bytes)) else {
        return report(Delivered::Dropped { packets: 1, reason: DropReason::LanQueueFull });
    };
    out.copy_from_slice(lent.bytes(place));
    sink.commit(bytes, TxMeta::default());
    report(Delivered::Written { packets: 1, bytes });
}

/// A packet that others may join, and that may join others.
struct Candidate {
    /// The headers, with zeros where packets of one superpacket may differ.
    fixed: [u8; HEADERS_LEN_MAX],
    headers: u16,
    payload: u16,
    segmentation: Segmentation,
    is_v4: bool,
    dont_fragment: bool,
    id: u16,
    sequence: u32,
    /// TCP flags.
    flags: u8,
    /// Whether nothing may come behind it in its superpacket.
    ends: bool,
}

impl Candidate {
    /// Judges a packet by itself. `None` when cutting a superpacket could not give it back, and when there is no use in joining it.
    fn new(inner: &Inner, packet: &[u8]) -> Option<Self> {
        let is_v4 = inner.source.is_ipv4();
        let l4_offset = if is_v4 { IPV4_LEN } else { IPV6_LEN };
        // Options and extension headers need not be the same in all packets of a flow.
        if inner.l4_offset != Some(l4_offset as u16) || inner.fragment.is_some() {
            return None;
        }
        let (ip, l4) = packet.split_at_checked(l4_offset)?;
        let (segmentation, l4_headers) = match inner.protocol {
            PROTOCOL_TCP => (Segmentation::Tcp { cwr: false }, plain_tcp(l4)?),
            PROTOCOL_UDP => (Segmentation::Udp, plain_udp(l4)?),
            _ => return None,
        };
        let headers = l4_offset + l4_headers;
        let payload = packet.len() - headers;
        // All ones is right wherever zero is, but nobody who computes the checksum of an IPv4 header writes it.
        let odd = is_v4 && ip[10..12] == [0xff; 2];
        if payload == 0 || odd || (pseudo_sum(ip, is_v4, segmentation, l4.len()) + Sum::of(l4)).checksum() != 0 {
            return None;
        }
        let mut candidate = Self {
            fixed: [0; HEADERS_LEN_MAX],
            headers: headers as u16,
            payload: payload as u16,
            segmentation,
            is_v4,
            dont_fragment: inner.dont_fragment,
            id: 0,
            sequence: 0,
            flags: 0,
            ends: false,
        };
        let fixed = candidate.fixed.get_mut(..headers)?;
        fixed.copy_from_slice(&packet[..headers]);
        let (ip, l4) = fixed.split_at_mut(l4_offset);
        if is_v4 {
            candidate.id = u16::from_be_bytes([ip[4], ip[5]]);
            ip[2..6].fill(0);
            ip[10..12].fill(0);
        } else {
            ip[4..6].fill(0);
        }
        if segmentation == Segmentation::Udp {
            l4[4..8].fill(0);
        } else {
            candidate.sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            candidate.flags = l4[13];
            candidate.ends = l4[13] & (PSH | FIN) != 0;
            l4[4..8].fill(0);
            l4[13] &= !(PSH | FIN);
            l4[16..18].fill(0);
        }
        Some(candidate)
    }
}

/// Bytes of the TCP header, if it has no flags but ACK, PSH and FIN, and a checksum as a sender computes it.
fn plain_tcp(l4: &[u8]) -> Option<usize> {
    let len = tcp_len(l4)?;
    let plain = l4[12] & 0x0f == 0 && l4[13] & ACK != 0 && l4[13] & !(ACK | PSH | FIN) == 0;
    // As with IPv4, a sum computed is never all ones.
    (plain && l4[TCP_CHECKSUM..TCP_CHECKSUM + 2] != [0xff; 2]).then_some(len)
}

/// Bytes of the UDP header, if it has a checksum and the length of the packet.
fn plain_udp(l4: &[u8]) -> Option<usize> {
    let header: &[u8; UDP_LEN] = l4.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (len == l4.len() && header[UDP_CHECKSUM..] != [0; 2]).then_some(UDP_LEN)
}
