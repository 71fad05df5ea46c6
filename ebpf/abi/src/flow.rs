//! Which worker a packet of the local side belongs to.
//!
//! ```text
//!   IP packet ─▶ (source, port) (destination, port) ─▶ each mixed ─▶ summed ─▶ mixed ─▶ hash ─▶ low 16 bits mod workers
//!                 ports unless a fragment                            a sum has no order: both directions agree
//! ```
//!
//! One function for the three places that choose: the TUN's steering program, AF_XDP ingress and the engine. A flow that two of them saw
//! differently would have two workers, and its packets would overtake each other. It is not keyed: whoever chooses the addresses can
//! choose the worker, as with any receive-side scaling.
//!
//! Ports count where they stand without a search: behind an IPv4 header of any length, and right behind the fixed IPv6 header. All else
//! (fragments, IPv6 extension headers, other protocols) is spread by addresses alone.

use crate::cursor::Bytes;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Bytes of an IPv4 header without options (RFC 791 §3.1).
const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200 §3).
const IPV6_LEN: usize = 40;

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The upper 64 bits of an IPv6 address; zero with IPv4.
    pub upper: u64,
    /// The lower 64 bits of an IPv6 address, or the 32 of an IPv4 one.
    pub lower: u64,
    /// The port, or zero where ports do not count.
    pub port: u16,
}

/// The hash of the packet that begins at offset zero; zero for what is no IP packet. The same for both directions of a flow and for all
/// fragments of a packet.
#[inline(always)]
pub fn hash_of<B: Bytes + ?Sized>(packet: &B) -> u32 {
    let Some(h) = packet.array::<IPV4_LEN>(0) else { return 0 };
    match h[0] >> 4 {
        4 => {
            let at = (h[0] & 0x0f) as usize * 4;
            // More fragments, or an offset: neither the first nor a later fragment may count its ports.
            let whole = (h[6] & 0x3f) | h[7] == 0;
            let [source, destination] = if whole { ports(packet, h[9], at) } else { [0, 0] };
            hash(
                End { upper: 0, lower: u32(h[12], h[13], h[14], h[15]), port: source },
                End { upper: 0, lower: u32(h[16], h[17], h[18], h[19]), port: destination },
            )
        }
        6 => {
            let (Some(ends), [source, destination]) = (packet.array::<32>(8), ports(packet, h[6], IPV6_LEN)) else {
                return 0;
            };
            let word = |at: usize| {
                u32(ends[at], ends[at + 1], ends[at + 2], ends[at + 3]) << 32
                    | u32(ends[at + 4], ends[at + 5], ends[at + 6], ends[at + 7])
            };
            hash(
                End { upper: word(0), lower: word(8), port: source },
                End { upper: word(16), lower: word(24), port: destination },
            )
        }
        _ => 0,
    }
}

/// The hash of a flow between two ends, in either order.
#[inline(always)]
pub const fn hash(one: End, other: End) -> u32 {
    // A sum does not know the order of its terms. Each end is mixed by itself first, so that neighbours do not cancel out.
    (mix(mix_end(one).wrapping_add(mix_end(other))) >> 32) as u32
}

/// The worker, of `workers`, that flows with this hash belong to; worker 0 where there is none.
///
/// The TUN driver does the same with what the steering program returns: it keeps 16 bits and divides by its number of queues
/// (`tun_ebpf_select_queue` in `drivers/net/tun.c`).
#[inline(always)]
pub const fn worker_of(hash: u32, workers: u8) -> u8 {
    if workers == 0 { 0 } else { ((hash as u16) % workers as u16) as u8 }
}

#[inline(always)]
fn ports<B: Bytes + ?Sized>(packet: &B, protocol: u8, at: usize) -> [u16; 2] {
    if protocol != TCP && protocol != UDP {
        return [0, 0];
    }
    // Not by a match: the compiler would shift bytes that a failed read left unset, and the verifier does not accept that.
    let both = packet.u32(at).unwrap_or(0);
    [(both >> 16) as u16, both as u16]
}

#[inline(always)]
const fn u32(a: u8, b: u8, c: u8, d: u8) -> u64 {
    (a as u64) << 24 | (b as u64) << 16 | (c as u64) << 8 | d as u64
}

/// One end of a flow as a well-spread number.
#[inline(always)]
const fn mix_end(end: End) -> u64 {
    // The upper half is spread before it meets the lower one, or networks and interface numbers would cancel out.
    let address = mix(end.upper) ^ end.lower;
    mix(address ^ ((end.port as u64) << 48))
}

/// A bijection that spreads every bit over the upper half (a multiply by an odd constant between two folds).
#[inline(always)]
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 28] =
        [0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9, 0x0f, 0xa0, 0, 53, 0, 8, 0, 0];

    fn back(there: &[u8; 28]) -> [u8; 28] {
        let mut back = *there;
        back[12..16].copy_from_slice(&there[16..20]);
        back[16..20].copy_from_slice(&there[12..16]);
        back[20..22].copy_from_slice(&there[22..24]);
        back[22..24].copy_from_slice(&there[20..22]);
        back
    }

    #[test]
    fn both_directions_agree_and_another_port_does_not() {
        let hash = |packet: &[u8]| hash_of(packet);
        assert_eq!(hash(&V4), hash(&back(&V4)));
        let mut other = V4;
        other[21] ^= 1;
        assert_ne!(hash(&V4), hash(&other));
        let mut crossed = V4;
        crossed[20..22].copy_from_slice(&V4[22..24]);
        crossed[22..24].copy_from_slice(&V4[20..22]);
        assert_ne!(hash(&V4), hash(&crossed));
    }

    #[test]
    fn every_fragment_of_a_packet_agrees_with_the_others() {
        let by_addresses = |flags: [u8; 2], first_byte: u8| {
            let mut packet = V4;
            packet[6..8].copy_from_slice(&flags);
            packet[20] = first_byte;
            hash_of(&packet[..])
        };
        let first = by_addresses([0x20, 0], 1);
        assert_eq!(first, by_addresses([0x20, 1], 2));
        assert_eq!(first, by_addresses([0x00, 1], 3));
        assert_eq!(first, by_addresses([0x1f, 0], 3));
        // DF alone makes no fragment.
        assert_ne!(by_addresses([0x40, 0], 1), by_addresses([0x40, 0], 2));
    }

    #[test]
    fn short_and_foreign_bytes_have_the_hash_zero_and_cut_ports_count_as_none() {
        assert_eq!(hash_of(&V4[..19]), 0);
        assert_eq!(hash_of(&[0x55; 40][..]), 0);
        assert_eq!(hash_of(&[0x65; 39][..]), 0);
        let mut icmp = V4;
        icmp[9] = 1;
        assert_eq!(hash_of(&V4[..23]), hash_of(&icmp[..]));
        assert_ne!(hash_of(&V4[..24]), hash_of(&icmp[..]));
    }

    #[test]
    fn workers_are_taken_from_sixteen_bits_as_the_driver_does() {
        assert_eq!(worker_of(0xffff_0007, 4), 3);
        assert_eq!(worker_of(0x0001_0000, 3), 0);
        assert_eq!(worker_of(0xffff_ffff, 0), 0);
    }
}
