//! One superpacket as the packets that it stands for.
//!
//! ```text
//!             │◀─ headers ─▶│◀──────────────────── payload ────────────────────▶│
//!  superpacket│ IP … │ L4 … │ segment      │ segment      │ … │ the rest         │
//!  packet 0   │ IP … │ L4 … │ segment      │
//!  packet 1   │ IP … │ L4 … │──────────────▶ segment      │
//!  packet k   │ IP + k │ L4, sequence + k × segment │ segment k │
//! ```
//!
//! What changes in the headers is what Linux changes (`tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment` in `net/ipv4`): the IP
//! length, the IPv4 identification and header checksum, the TCP sequence number, FIN and PSH only on the last packet, the UDP length, and
//! the transport checksum, which is computed in full. All else is kept, IPv4 options and IPv6 extension headers too.
//!
//! A packet that is no superpacket, but whose transport checksum must be completed, is the same thing with one segment. A description is
//! small; packets come to be only where they are laid, whole or in pieces.

use std::ops::Add;

use weir_abi::drop::DropReason;

use super::super::inner::{IPV4_LEN, IPV6_LEN, Inner, PROTOCOL_TCP, PROTOCOL_UDP};
use super::super::port::{Offload, SUPERPACKET_LEN_MAX, Segmentation};
use super::checksum::{Sum, copy_and_sum};

/// Bytes of a TCP header without options (RFC 9293 §3.1).
pub(super) const TCP_LEN: usize = 20;
/// Bytes of the longest TCP header, which is also what an IPv4 header may have.
pub(super) const HEADER_LEN_MAX: usize = 60;
/// Bytes of a UDP header (RFC 768).
pub(super) const UDP_LEN: usize = 8;
/// TCP flags (RFC 9293 §3.1, RFC 3168 §6.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;
/// Where the checksum stands in a TCP and in a UDP header.
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;

const MALFORMED: DropReason = DropReason::LocalOffload;

/// What is to be done with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Nothing.
    Copy,
    /// The checksum field at `headers` gets the sum from `l4_offset` to the end.
    Complete,
    /// The packet is cut.
    Cut(Segmentation),
}

/// What one frame from the local side becomes: a description, without the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    work: Work,
    is_v4: bool,
    /// Where the transport header, or whatever else is summed, begins.
    l4_offset: u16,
    /// Bytes before the payload of a cut packet; where the checksum stands in one that is completed.
    headers: u16,
    /// Bytes behind the headers.
    payload: u16,
    /// Bytes of payload in each packet but the last.
    segment: u16,
    count: u16,
    /// Sums of what the headers of all packets have in common, so that no header is read again once it is laid: of IPv4's, and of the
    /// transport's with the pseudo-header. Without lengths, identification, sequence number, flags and the checksums themselves.
    ip_sum: u16,
    l4_sum: u16,
}

impl Segments {
    /// Describes what becomes of `packet`, a whole IP packet with `inner` parsed from it.
    ///
    /// # Errors
    /// [`DropReason::LocalOffload`] when the offload does not fit the packet: a fragment, another protocol, no payload, a segment of
    /// no bytes, or a header or checksum that is not within the packet.
    pub fn new(packet: &[u8], inner: &Inner, offload: Offload) -> Result<Self, DropReason> {
        if packet.len() > SUPERPACKET_LEN_MAX {
            return Err(MALFORMED);
        }
        let whole = Self {
            work: Work::Copy,
            is_v4: inner.source.is_ipv4(),
            l4_offset: 0,
            headers: 0,
            payload: packet.len() as u16,
            segment: packet.len() as u16,
            count: 1,
            ip_sum: 0,
            l4_sum: 0,
        };
        if offload == Offload::default() {
            return Ok(whole);
        }
        // The checksum of a packet in fragments covers all of them, and nobody here has them all.
        let (Some(l4_offset), None) = (inner.l4_offset, inner.fragment) else { return Err(MALFORMED) };
        match (offload.cut, offload.checksum) {
            (Some((segmentation, segment)), checksum) => {
                // Another place for the checksum means that another header is to be cut, one inside a tunnel.
                if segment == 0 || checksum.is_some_and(|(start, _)| start != l4_offset) {
                    return Err(MALFORMED);
                }
                let l4_len = transport_len(packet, inner.protocol, l4_offset, segmentation).ok_or(MALFORMED)?;
                let headers = usize::from(l4_offset) + l4_len;
                let payload = packet.len().checked_sub(headers).filter(|&len| len > 0).ok_or(MALFORMED)? as u16;
                let count = payload.div_ceil(segment);
                let work = Work::Cut(segmentation);
                let (ip, l4) = packet[..headers].split_at(usize::from(l4_offset));
                let ip_sum = if whole.is_v4 { sum_without(ip, &[2, 4, 10]).fold() } else { 0 };
                let l4_sum = match segmentation {
                    Segmentation::Tcp { .. } => sum_without(l4, &[4, 6, 12, TCP_CHECKSUM]),
                    Segmentation::Udp => sum_without(l4, &[4, UDP_CHECKSUM]),
                };
                let l4_sum = (l4_sum + pseudo_sum(ip, whole.is_v4, segmentation, 0)).fold();
                Ok(Self { work, l4_offset, headers: headers as u16, payload, segment, count, ip_sum, l4_sum, ..whole })
            }
            (None, Some((start, offset))) => {
                let field = start.checked_add(offset).ok_or(MALFORMED)?;
                if start < l4_offset || usize::from(field) + 2 > packet.len() {
                    return Err(MALFORMED);
                }
                Ok(Self { work: Work::Complete, l4_offset: start, headers: field, ..whole })
            }
            (None, None) => Ok(whole),
        }
    }

    /// Packets that this becomes; one for an ordinary packet.
    #[inline]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes of packet `k`, IP header included; zero when there is no such packet.
    #[inline]
    pub fn len(&self, k: usize) -> usize {
        if k >= self.count() {
            return 0;
        }
        let payload = self.payload_range(k).len();
        if matches!(self.work, Work::Cut(_)) { usize::from(self.headers) + payload } else { payload }
    }

    /// Writes bytes `from..from + out.len()` of packet `k` to `out`; `packet` is what [`Self::new`] was given.
    ///
    /// What lies beyond the packet's end is left as it was. The payload is summed once, by the call that writes the checksum, and while
    /// it is copied as far as the same call does so. Whole packets are therefore the fast case.
    pub fn lay(&self, packet: &[u8], k: usize, from: usize, out: &mut [u8]) {
        let Some(room) = self.len(k).checked_sub(from) else { return };
        let room = room.min(out.len());
        let mut window = Window { from, out: &mut out[..room] };
        match self.work {
            Work::Copy => window.put(0, packet),
            Work::Complete => self.complete(packet, &mut window),
            Work::Cut(segmentation) => self.lay_segment(segmentation, packet, k, &mut window),
        }
    }

    /// Where the payload of packet `k` stands in the payload of all.
    #[inline]
    fn payload_range(&self, k: usize) -> std::ops::Range<usize> {
        let start = k * usize::from(self.segment);
        start..usize::from(self.payload).min(start + usize::from(self.segment))
    }

    /// An ordinary packet with its checksum completed, as `skb_checksum_help` does it.
    fn complete(&self, packet: &[u8], window: &mut Window<'_>) {
        let Some((head, summed)) = packet.split_at_checked(usize::from(self.l4_offset)) else { return };
        window.put(0, head);
        let field = usize::from(self.headers);
        if window.touches(field..field + 2) {
            let sum = window.put_and_sum(head.len(), summed);
            window.put(field, &never_zero(sum.checksum()).to_be_bytes());
        } else {
            window.put(head.len(), summed);
        }
    }

    fn lay_segment(&self, segmentation: Segmentation, packet: &[u8], k: usize, window: &mut Window<'_>) {
        let (headers_len, l4_offset) = (usize::from(self.headers), usize::from(self.l4_offset));
        let Some((headers, payload)) = packet.split_at_checked(headers_len) else { return };
        let (Some((ip, l4)), Some(payload)) = (headers.split_at_checked(l4_offset), payload.get(self.payload_range(k)))
        else {
            return;
        };
        if !window.touches(0..headers_len) {
            return window.put(headers_len, payload);
        }
        window.put(0, headers);
        let l4_len = l4.len() + payload.len();
        self.put_ip(ip, k, l4_len, window);
        // Otherwise the window ends before the transport header, and the payload does not matter.
        if window.touches(l4_offset..headers_len) {
            let sum = window.put_and_sum(headers_len, payload);
            self.put_l4(segmentation, l4, k, sum, l4_len, window);
        }
    }

    /// What is of packet `k` alone in the IP header, which has `l4_len` bytes behind it.
    fn put_ip(&self, ip: &[u8], k: usize, l4_len: usize, window: &mut Window<'_>) {
        if !self.is_v4 {
            return window.put_field(4, ((ip.len() - IPV6_LEN + l4_len) as u16).to_be_bytes());
        }
        let len = (ip.len() + l4_len) as u16;
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(k as u16);
        let sum = Sum::word(self.ip_sum) + Sum::word(len) + Sum::word(id);
        window.put_field(2, len.to_be_bytes());
        window.put_field(4, id.to_be_bytes());
        window.put_field(10, sum.checksum().to_be_bytes());
    }

    /// What is of packet `k` alone in the transport header; `sum` is that of the payload, and `l4_len` counts both.
    fn put_l4(
        &self,
        segmentation: Segmentation,
        l4: &[u8],
        k: usize,
        sum: Sum,
        l4_len: usize,
        window: &mut Window<'_>,
    ) {
        let at = usize::from(self.l4_offset);
        let len = l4_len as u16;
        let sum = Sum::word(self.l4_sum) + sum + Sum::word(len);
        match segmentation {
            Segmentation::Tcp { cwr } => {
                let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                let sequence = sequence.wrapping_add(k as u32 * u32::from(self.segment));
                let mut flags = l4[13];
                if k + 1 < self.count() {
                    flags &= !(FIN | PSH);
                }
                if k > 0 && cwr {
                    flags &= !CWR;
                }
                let sum = sum + Sum::word((sequence >> 16) as u16) + Sum::word(sequence as u16);
                let sum = sum + Sum::word(u16::from_be_bytes([l4[12], flags]));
                window.put_field(at + 4, sequence.to_be_bytes());
                window.put_field(at + 13, [flags]);
                window.put_field(at + TCP_CHECKSUM, sum.checksum().to_be_bytes());
            }
            Segmentation::Udp => {
                // The length stands in the header, too.
                let sum = sum + Sum::word(len);
                window.put_field(at + 4, len.to_be_bytes());
                window.put_field(at + UDP_CHECKSUM, never_zero(sum.checksum()).to_be_bytes());
            }
        }
    }
}

/// Bytes of the transport header, if it is the one to be cut and lies within the packet.
fn transport_len(packet: &[u8], protocol: u8, l4_offset: u16, segmentation: Segmentation) -> Option<usize> {
    let l4 = packet.get(usize::from(l4_offset)..)?;
    match (segmentation, protocol) {
        (Segmentation::Tcp { .. }, PROTOCOL_TCP) => tcp_len(l4),
        (Segmentation::Udp, PROTOCOL_UDP) if l4.len() >= UDP_LEN => Some(UDP_LEN),
        _ => None,
    }
}

/// Bytes of the TCP header that the slice begins with, if it holds all of it.
#[inline]
pub(super) fn tcp_len(l4: &[u8]) -> Option<usize> {
    let header: &[u8; TCP_LEN] = l4.first_chunk()?;
    let len = usize::from(header[12] >> 4) * 4;
    (TCP_LEN..=l4.len()).contains(&len).then_some(len)
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1) of a packet with `l4_len` bytes of transport header and payload.
///
/// The destination is that of the IP header. Behind a routing header with segments left it would be the final one (RFC 8200 §8.1): a
/// superpacket of that kind is cut into packets that their receiver drops.
#[inline]
pub(super) fn pseudo_sum(ip: &[u8], is_v4: bool, segmentation: Segmentation, l4_len: usize) -> Sum {
    let protocol = if segmentation == Segmentation::Udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
    let addresses = if is_v4 { ip.get(12..IPV4_LEN) } else { ip.get(8..IPV6_LEN) };
    Sum::of(addresses.unwrap_or_default()) + Sum::word(u16::from(protocol)) + Sum::word(l4_len as u16)
}

/// The sum of a header as if the words at these places were zero: what is subtracted in one's complement is added with all bits turned.
fn sum_without(header: &[u8], words: &[usize]) -> Sum {
    let word = |&at: &usize| Sum::word(!u16::from_be_bytes([header[at], header[at + 1]]));
    words.iter().map(word).fold(Sum::of(header), Sum::add)
}

/// A checksum of zero means that there is none (RFC 768); its other form is all ones.
const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The part of a packet that is laid now: where it begins, and where its bytes go.
struct Window<'a> {
    from: usize,
    out: &'a mut [u8],
}

impl Window<'_> {
    /// Whether any of these bytes of the packet are laid now.
    #[inline]
    fn touches(&self, range: std::ops::Range<usize>) -> bool {
        range.start < self.from + self.out.len() && self.from < range.end
    }

    /// Which of `len` bytes that stand at `at` in the packet are laid now.
    #[inline]
    fn overlap(&self, at: usize, len: usize) -> std::ops::Range<usize> {
        let start = self.from.saturating_sub(at).min(len);
        let end = (self.from + self.out.len()).saturating_sub(at).min(len);
        start..end.max(start)
    }

    /// Copies as much of `bytes`, which stand at `at` in the packet, as is laid now.
    #[inline]
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let part = self.overlap(at, bytes.len());
        if !part.is_empty() {
            let to = at + part.start - self.from;
            self.out[to..to + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// The same for a few bytes, which mostly are laid all at once.
    #[inline]
    fn put_field<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        let whole = at.checked_sub(self.from).and_then(|to| self.out.get_mut(to..)?.first_chunk_mut());
        match whole {
            Some(field) => *field = bytes,
            None => self.put(at, &bytes),
        }
    }

    /// The same, and sums all of `bytes`, which begin at an even place of what is summed.
    #[inline]
    fn put_and_sum(&mut self, at: usize, bytes: &[u8]) -> Sum {
        let part = self.overlap(at, bytes.len());
        if part.is_empty() {
            return Sum::of(bytes);
        }
        let (before, behind) = (&bytes[..part.start], &bytes[part.end..]);
        let to = at + part.start - self.from;
        let copied = copy_and_sum(&bytes[part.clone()], &mut self.out[to..]);
        Sum::of(before) + copied.at(part.start) + Sum::of(behind).at(part.end)
    }
}
