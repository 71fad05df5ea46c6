//! What `wan`, `lan` and `steer` do with a frame: the whole decision, in its order.
//!
//! `wan`:
//!
//! ```text
//!   frame ─▶ UDP to our ports? ──no──▶ kernel
//!              │yes
//!              ├─ data ─▶ live index? ──yes──▶ deliver           no trie, no bucket, no clock on this way; past the kernel only if the
//!              │             │                                   address is ours
//!              │yes          │no
//!              ▼             ▼
//!         address ours? ──no──▶ kernel (forwarded traffic)
//!              │yes
//!              ├─ data ─▶ drop, or one miss in many to the control socket
//!              ├─ relay ─▶ (label table: not built yet) drop
//!              ├─ STUN, QUIC, RPC ─▶ deny trie ─▶ source's bucket ─▶ (admission tag: not built yet) ─▶ class bucket ─▶ control
//!              └─ anything else ─▶ drop
//! ```
//!
//! The tables are behind [`Tables`], so that the same lines run against kernel maps in eBPF and against a model in tests.

use crate::cursor::Bytes;
use crate::drop::DropReason;
use crate::frame::{self, Address, NotDatagram};
use crate::map::{Class, Config, SocketRole, Verdict, flag};
use crate::wire::{self, HeaderError, Kind, MARK, MARK_MASK, ReceiverIndex};

/// First byte of an IPv4 packet without options (RFC 791 §3.1).
const IPV4_PLAIN: u8 = 0x45;
/// Next-header number of hop-by-hop options (RFC 8200 §4.3).
const IPV6_HOP_BY_HOP: u8 = 0;

/// What the decision looks things up in.
pub trait Tables {
    /// The configuration; `None` before the loader has written it.
    fn config(&self) -> Option<&Config>;
    /// Whether the index names an open lane.
    fn is_live(&self, index: ReceiverIndex) -> bool;
    /// Whether the address is this host's.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether the source is refused.
    fn is_denied(&self, source: &Address) -> bool;
    /// Takes one packet from the source's bucket.
    fn admit_source(&self, source: &Address) -> bool;
    /// Takes one packet from the class's bucket.
    fn admit_class(&self, class: Class) -> bool;
    /// Whether the address lies in a prefix of the overlay, and not in one that is behind this gateway.
    fn is_overlay(&self, address: &Address) -> bool;
    /// A random number.
    fn random(&self) -> u32;
}

impl From<NotDatagram> for Verdict {
    #[inline(always)]
    fn from(reason: NotDatagram) -> Self {
        match reason {
            NotDatagram::NotIp => Self::WanNotIp,
            NotDatagram::NotUdp => Self::WanNotUdp,
            NotDatagram::Fragment => Self::WanFragment,
            NotDatagram::Odd => Self::WanOdd,
            NotDatagram::Extensions => Self::WanExtensions,
        }
    }
}

/// Who shares our port, by the first byte of a datagram (RFC 9443 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Data,
    Relay,
    Control(Class),
    Malformed,
    Unknown,
}

#[inline(always)]
fn protocol(first: u8) -> Protocol {
    if first & MARK_MASK == MARK {
        return match Kind::from_first_byte(first) {
            Some(Kind::Data) => Protocol::Data,
            Some(Kind::Relay) => Protocol::Relay,
            Some(Kind::Rpc) => Protocol::Control(Class::Rpc),
            None => Protocol::Malformed,
        };
    }
    if first >= 0x80 {
        return Protocol::Control(Class::QuicLong);
    }
    if first >= 0x40 {
        return Protocol::Control(Class::QuicShort);
    }
    if first <= 3 {
        return Protocol::Control(Class::Stun);
    }
    Protocol::Unknown
}

/// Judges one frame that begins with an Ethernet header.
///
/// # Errors
/// The reason for which the frame is to be dropped.
#[inline(always)]
pub fn wan<B: Bytes + ?Sized, T: Tables>(frame: &B, tables: &T) -> Result<Verdict, DropReason> {
    let datagram = match frame::parse_ethernet(frame) {
        Ok(datagram) => datagram,
        Err(reason) => return Ok(reason.into()),
    };
    let Some(config) = tables.config() else {
        return Ok(Verdict::WanOtherPort);
    };
    if datagram.destination_port < config.port_first || datagram.destination_port > config.port_last {
        return Ok(Verdict::WanOtherPort);
    }
    let payload = datagram.payload_offset();
    let first = if datagram.payload_len == 0 { None } else { frame.u8(payload) };
    let protocol = match first {
        Some(first) => protocol(first),
        None => Protocol::Unknown,
    };
    let mut receiver = Err(HeaderError::Type);
    if let Protocol::Data = protocol {
        receiver = wire::receiver_of(frame, payload, datagram.payload_len);
        if let Ok(index) = receiver
            && tables.is_live(index)
        {
            // The kernel gives our socket only what is sent to this host. An AF_XDP socket would also get what is on its way to another
            // gateway, whose index may be the same.
            let is_foreign = config.xsk_frame_len_max != 0
                && config.flags & flag::LOCAL_KNOWN != 0
                && !tables.is_local(&datagram.destination);
            return Ok(if is_foreign { Verdict::WanForwarded } else { Verdict::WanDeliver });
        }
    }
    if config.flags & flag::LOCAL_KNOWN != 0 && !tables.is_local(&datagram.destination) {
        return Ok(Verdict::WanForwarded);
    }
    if datagram.length_mismatch || first.is_none() {
        return Err(DropReason::WanTruncated);
    }
    let class = match protocol {
        Protocol::Data => {
            return match receiver {
                Ok(_) if config.miss_sample != 0 && tables.random().is_multiple_of(config.miss_sample) => {
                    Ok(Verdict::WanMissSampled)
                }
                Ok(_) => Err(DropReason::WanUnknownIndex),
                Err(HeaderError::Truncated) => Err(DropReason::WanTruncated),
                Err(_) => Err(DropReason::WanMalformed),
            };
        }
        Protocol::Relay => return Err(DropReason::WanRelayLabel),
        Protocol::Malformed => return Err(DropReason::WanMalformed),
        Protocol::Unknown => return Err(DropReason::WanOddFirstByte),
        Protocol::Control(class) => class,
    };
    if tables.is_denied(&datagram.source) {
        return Err(DropReason::WanDenied);
    }
    if !tables.admit_source(&datagram.source) {
        return Err(DropReason::WanSourceRate);
    }
    if !tables.admit_class(class) {
        return Err(DropReason::WanClassRate);
    }
    Ok(Verdict::WanControl)
}

/// Whether a frame bears no tag and an IP packet: what an AF_XDP socket takes. What comes by a VLAN is the kernel's.
#[inline(always)]
pub fn is_untagged<B: Bytes + ?Sized>(frame: &B) -> bool {
    matches!(frame.u16(frame::ETHERNET_LEN - 2), Some(frame::ETHERTYPE_IPV4 | frame::ETHERTYPE_IPV6))
}

/// Judges a frame from the LAN: is it unicast to this machine and bound for an overlay prefix, and not for this machine itself? What asks
/// for more than to be sent on is the kernel's router's all the same: it answers when a TTL ends, and it minds options.
#[inline(always)]
pub fn lan<B: Bytes + ?Sized, T: Tables>(frame: &B, tables: &T) -> Verdict {
    match lan_destination(frame) {
        Some(destination) if tables.is_overlay(&destination) && !tables.is_local(&destination) => {
            if is_plain(frame) {
                Verdict::LanOverlay
            } else {
                Verdict::LanRouter
            }
        }
        _ => Verdict::LanPass,
    }
}

/// Whether the IP packet in an untagged frame has a hop left and no options for routers: of IPv4 none at all, of IPv6 no hop-by-hop header.
#[inline(always)]
fn is_plain<B: Bytes + ?Sized>(frame: &B) -> bool {
    let at = frame::ETHERNET_LEN;
    match frame.u8(at) {
        Some(IPV4_PLAIN) => matches!(frame.u8(at + 8), Some(ttl) if ttl > 1),
        Some(first) if first >> 4 == 6 => match (frame.u8(at + 6), frame.u8(at + 7)) {
            (Some(next), Some(hop_limit)) => next != IPV6_HOP_BY_HOP && hop_limit > 1,
            _ => false,
        },
        _ => false,
    }
}

/// The destination of an untagged unicast IP frame. VLAN children of a LAN port are the kernel's.
#[inline(always)]
fn lan_destination<B: Bytes + ?Sized>(frame: &B) -> Option<Address> {
    // The group bit of the destination address (IEEE 802-2014 §8.2.2). Two bytes at a time: the verifier learns nothing from the bound
    // check of a single byte at the very front.
    if frame.u16(0)? & 0x0100 != 0 {
        return None;
    }
    let at = frame::ETHERNET_LEN;
    match frame.u16(at - 2)? {
        frame::ETHERTYPE_IPV4 if frame.u8(at)? >> 4 == 4 => frame.u32(at + 16).map(frame::mapped),
        frame::ETHERTYPE_IPV6 if frame.u8(at)? >> 4 == 6 => frame.array(at + 24),
        _ => None,
    }
}

/// Chooses the socket for a datagram, given from its UDP header on; `len` counts from there too.
///
/// Data for a lane that is not open goes to the control socket only as the sample that `wan` lets through; without `wan` it is sampled here.
///
/// # Errors
/// The reason for which the datagram is to be dropped.
#[inline(always)]
pub fn steer<B: Bytes + ?Sized, T: Tables>(udp: &B, len: usize, tables: &T) -> Result<SocketRole, DropReason> {
    let payload_len = len.saturating_sub(frame::UDP_LEN);
    let Some(first) = udp.u8(frame::UDP_LEN) else {
        return Err(DropReason::WanTruncated);
    };
    if Kind::from_first_byte(first) != Some(Kind::Data) {
        return Ok(SocketRole::Control);
    }
    let index = match wire::receiver_of(udp, frame::UDP_LEN, payload_len) {
        Ok(index) => index,
        Err(HeaderError::Truncated) => return Err(DropReason::WanTruncated),
        Err(_) => return Err(DropReason::WanMalformed),
    };
    if tables.is_live(index) {
        return Ok(SocketRole::Worker(index.worker()));
    }
    let Some(config) = tables.config() else {
        return Err(DropReason::WanUnknownIndex);
    };
    let sampled = config.flags & flag::WAN_ATTACHED != 0
        || (config.miss_sample != 0 && tables.random().is_multiple_of(config.miss_sample));
    if sampled { Ok(SocketRole::Control) } else { Err(DropReason::WanUnknownIndex) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcra::Rate;

    /// 10.0.0.0/8 and fd00::/8 are the overlay, 10.0.0.1 is this host.
    struct Model(Config);

    impl Tables for Model {
        fn config(&self) -> Option<&Config> {
            Some(&self.0)
        }

        fn is_live(&self, index: ReceiverIndex) -> bool {
            index.0 == 7
        }

        fn is_local(&self, address: &Address) -> bool {
            *address == frame::mapped(0x0a00_0001)
        }

        fn is_denied(&self, _: &Address) -> bool {
            false
        }

        fn admit_source(&self, _: &Address) -> bool {
            true
        }

        fn admit_class(&self, _: Class) -> bool {
            true
        }

        fn is_overlay(&self, address: &Address) -> bool {
            address[0] == 0xfd || address[..13] == frame::mapped(0x0a00_0000)[..13]
        }

        fn random(&self) -> u32 {
            0
        }
    }

    fn model(flags: u32, xsk_frame_len_max: u32) -> Model {
        let rate = Rate { interval_ns: 0, burst_ns: 0 };
        let class = [rate; Class::COUNT];
        Model(Config {
            port_first: 4646,
            port_last: 4646,
            flags,
            miss_sample: 0,
            xsk_frame_len_max,
            source: rate,
            class,
        })
    }

    fn frame_of<const N: usize>(ethertype: u16, packet: [u8; N]) -> ([u8; 128], usize) {
        let mut frame = [0; 128];
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        frame[14..14 + N].copy_from_slice(&packet);
        (frame, 14 + N)
    }

    fn v4(first: u8, ttl: u8, destination: [u8; 4]) -> ([u8; 128], usize) {
        let [a, b, c, d] = destination;
        frame_of(frame::ETHERTYPE_IPV4, [first, 0, 0, 20, 0, 0, 0, 0, ttl, 17, 0, 0, 10, 9, 0, 1, a, b, c, d])
    }

    fn v6(next: u8, hop_limit: u8) -> ([u8; 128], usize) {
        let mut packet = [0; 40];
        (packet[0], packet[6], packet[7], packet[24]) = (0x60, next, hop_limit, 0xfd);
        frame_of(frame::ETHERTYPE_IPV6, packet)
    }

    fn judge((frame, len): ([u8; 128], usize)) -> Verdict {
        lan(&frame[..len], &model(0, 0))
    }

    #[test]
    fn what_asks_for_more_than_to_be_sent_on_is_the_routers() {
        const FAR: [u8; 4] = [10, 2, 0, 1];
        for (ttl, expected) in [(0, Verdict::LanRouter), (1, Verdict::LanRouter), (2, Verdict::LanOverlay)] {
            assert_eq!((judge(v4(0x45, ttl, FAR)), judge(v6(17, ttl))), (expected, expected), "{ttl}");
        }
        assert_eq!(judge(v4(0x46, 64, FAR)), Verdict::LanRouter, "options");
        assert_eq!((judge(v6(0, 64)), judge(v6(60, 64))), (Verdict::LanRouter, Verdict::LanOverlay));
    }

    #[test]
    fn what_is_for_the_host_the_link_or_elsewhere_is_passed() {
        assert_eq!(judge(v4(0x45, 64, [10, 0, 0, 1])), Verdict::LanPass, "our own address");
        assert_eq!(judge(v4(0x45, 64, [192, 0, 2, 1])), Verdict::LanPass);
        let (mut group, len) = v4(0x45, 64, [10, 2, 0, 1]);
        group[0] = 1;
        assert_eq!(judge((group, len)), Verdict::LanPass, "broadcast and multicast of the link");
        let (whole, len) = v4(0x45, 64, [10, 2, 0, 1]);
        for cut in 0..len {
            assert_eq!(lan(&whole[..cut], &model(0, 0)), Verdict::LanPass, "{cut}");
        }
        let (mut tagged, len) = v4(0x45, 64, [10, 2, 0, 1]);
        tagged[12..14].copy_from_slice(&[0x81, 0]);
        assert_eq!(judge((tagged, len)), Verdict::LanPass);
        assert!(!is_untagged(&tagged[..]) && is_untagged(&whole[..]) && !is_untagged(&whole[..13]));
    }

    /// Live data to this address.
    fn data(destination: [u8; 4]) -> ([u8; 128], usize) {
        let (mut frame, at) = v4(0x45, 64, destination);
        frame[16..18].copy_from_slice(&60u16.to_be_bytes());
        frame[at + 2..at + 4].copy_from_slice(&4646u16.to_be_bytes());
        frame[at + 4..at + 6].copy_from_slice(&40u16.to_be_bytes());
        let header = wire::DataHeader { generation: 0, receiver: ReceiverIndex(7), counter: 1 }.encode();
        frame[at + 8..at + 8 + header.len()].copy_from_slice(&header);
        (frame, at + 40)
    }

    #[test]
    fn data_on_its_way_to_another_gateway_never_goes_to_an_af_xdp_socket() {
        let ours = data([10, 0, 0, 1]);
        let theirs = data([192, 0, 2, 9]);
        let judge = |(frame, len): ([u8; 128], usize), flags, longest| wan(&frame[..len], &model(flags, longest));
        for (flags, longest, expected) in [
            (flag::LOCAL_KNOWN, 1514, Verdict::WanForwarded),
            // The kernel asks itself whose it is.
            (flag::LOCAL_KNOWN, 0, Verdict::WanDeliver),
            (0, 1514, Verdict::WanDeliver),
        ] {
            assert_eq!(judge(theirs, flags, longest), Ok(expected), "{flags} {longest}");
            assert_eq!(judge(ours, flags, longest), Ok(Verdict::WanDeliver));
        }
    }
}
