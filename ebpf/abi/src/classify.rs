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
//!              ├─ STUN, QUIC, RPC ─▶ refused? ─▶ source's bucket ─▶ class bucket ─▶ control
//!              │                          └─ QUIC Initial, and there are admission keys ─▶ tag ─▶ bucket of the tagged, or of the rest ─▶ control
//!              └─ anything else ─▶ drop
//! ```
//!
//! An Initial is charged to no source: the sources of a flood are spoofed, so a bucket for each of them holds none of it back and only
//! costs entries of the table; and one that is a member's must not run dry because somebody else used the member's address.
//!
//! The tables are behind [`Tables`], so that the same lines run against kernel maps in eBPF and against a model in tests.

use crate::address::Address;
use crate::admission::{self, CID_LEN, Fields};
use crate::cursor::{Bytes, Contiguous};
use crate::drop::DropReason;
use crate::frame::{self, Datagram, NotDatagram};
use crate::gcra::Rate;
use crate::map::{Admission, Class, Config, SocketRole, Verdict, flag};
use crate::wire::{self, HeaderError, Kind, MARK, MARK_MASK, ReceiverIndex};

/// First byte of an IPv4 packet without options (RFC 791 §3.1).
const IPV4_PLAIN: u8 = 0x45;
/// Next-header number of hop-by-hop options (RFC 8200 §4.3).
const IPV6_HOP_BY_HOP: u8 = 0;
/// Header form and packet type of a QUIC long header, and what they are in an Initial (RFC 9000 §17.2.2). The fixed bit between them is
/// not asked for: peers may clear it (RFC 9287).
const QUIC_TYPE_MASK: u8 = 0b1011_0000;
const QUIC_INITIAL: u8 = 0b1000_0000;
/// The version whose Initials are known (RFC 9000 §15).
const QUIC_VERSION_1: u32 = 1;
/// Where the destination connection id of a long header begins: after the first byte, four of version, one of length (RFC 9000 §17.2).
const QUIC_DCID_AT: usize = 6;

/// What the decision looks things up in.
pub trait Tables {
    /// The configuration; `None` before the loader has written it.
    fn config(&self) -> Option<&Config>;
    /// Whether the index names an open lane.
    fn is_live(&self, index: ReceiverIndex) -> bool;
    /// Whether the address is this host's.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether the source is refused.
    fn is_denied(&self, source: &Address, config: &Config) -> bool;
    /// Nanoseconds of a clock that does not jump, and may stand still for [`TICK_NS`](crate::gcra::TICK_NS).
    fn now_ns(&self) -> u64;
    /// Takes one packet from the source's bucket, which lets so many through.
    fn admit_source(&self, source: &Address, rate: Rate, now_ns: u64) -> bool;
    /// Takes one packet from the class's bucket, which lets so many through.
    fn admit_class(&self, class: Class, rate: Rate, now_ns: u64) -> bool;
    /// The admission keys; `None` before the loader has written any.
    fn admission(&self) -> Option<&Admission>;
    /// Seconds since 1970, as the network's clock has it when the other says `now_ns`.
    fn wall_secs(&self, now_ns: u64) -> u64;
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
pub fn wan<B: Contiguous + ?Sized, T: Tables>(frame: &B, tables: &T) -> Result<Verdict, DropReason> {
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
    if tables.is_denied(&datagram.source, config) {
        return Err(DropReason::WanDenied);
    }
    if let Class::QuicLong = class
        && let Some(admission) = tables.admission()
        && admission.keys_len != 0
        && let Some(dcid_len) = initial_dcid_len(frame, &datagram)
    {
        return admit_initial(frame, &datagram, dcid_len, admission, config, tables);
    }
    let now_ns = tables.now_ns();
    let rate = config.source;
    if !rate.is_unlimited() && !tables.admit_source(&datagram.source, rate, now_ns) {
        return Err(DropReason::WanSourceRate);
    }
    if !admit_class(class, now_ns, config, tables) {
        return Err(DropReason::WanClassRate);
    }
    Ok(Verdict::WanControl)
}

#[inline(always)]
fn admit_class<T: Tables>(class: Class, now_ns: u64, config: &Config, tables: &T) -> bool {
    let rate = config.rate(class);
    rate.is_unlimited() || tables.admit_class(class, rate, now_ns)
}

/// Bytes of the destination connection id if a datagram begins with an Initial of version 1.
#[inline(always)]
fn initial_dcid_len<B: Bytes + ?Sized>(frame: &B, datagram: &Datagram) -> Option<usize> {
    if datagram.payload_len < QUIC_DCID_AT {
        return None;
    }
    // First byte and version, then the length, in wholes: the verifier learns nothing from the bound check of a single byte.
    let at = datagram.payload_offset();
    let (head, tail) = (frame.u32(at)?, frame.u16(at + 4)?);
    let version = head << 8 | u32::from(tail >> 8);
    let is_initial = (head >> 24) as u8 & QUIC_TYPE_MASK == QUIC_INITIAL && version == QUIC_VERSION_1;
    is_initial.then_some(usize::from(tail & 0xff))
}

/// Judges an Initial by the tag in its destination connection id. One whose tag is true and whose time is wrong is a member's with a
/// wrong clock, or a copy: it is let through as a stranger's would be, so that the clock can be put right, and counted by its own name.
#[inline(always)]
fn admit_initial<B: Bytes + ?Sized, T: Tables>(
    frame: &B,
    datagram: &Datagram,
    dcid_len: usize,
    admission: &Admission,
    config: &Config,
    tables: &T,
) -> Result<Verdict, DropReason> {
    let now_ns = tables.now_ns();
    let tagged = tagged_slot(frame, datagram, dcid_len, admission);
    let fresh = match tagged {
        Some(slot) => admission::in_window(slot, admission::slot_at(tables.wall_secs(now_ns))),
        None => false,
    };
    if fresh {
        return match admit_class(Class::QuicInitialTagged, now_ns, config, tables) {
            true => Ok(Verdict::WanAdmissionTagged),
            false => Err(DropReason::WanAdmissionTaggedRate),
        };
    }
    if !admit_class(Class::QuicInitialUntagged, now_ns, config, tables) {
        return Err(DropReason::WanAdmissionUntaggedRate);
    }
    Ok(if tagged.is_some() { Verdict::WanAdmissionExpired } else { Verdict::WanAdmissionUntagged })
}

/// The slot of a tag that is true; `None` when there is none.
#[inline(always)]
fn tagged_slot<B: Bytes + ?Sized>(
    frame: &B,
    datagram: &Datagram,
    dcid_len: usize,
    admission: &Admission,
) -> Option<u32> {
    if dcid_len != CID_LEN || datagram.payload_len < QUIC_DCID_AT + CID_LEN {
        return None;
    }
    let fields = Fields::read(frame, datagram.payload_offset() + QUIC_DCID_AT)?;
    if admission.is_tagged(&fields) { Some(fields.slot) } else { None }
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
        frame::ETHERTYPE_IPV4 if frame.u8(at)? >> 4 == 4 => frame.u32(at + 16).map(Address::v4),
        frame::ETHERTYPE_IPV6 if frame.u8(at)? >> 4 == 6 => Address::read(frame, at + 24),
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
    use crate::admission::{KEYS_MAX, Key, WINDOW_SLOTS, cid, slot_at, tag};

    const KEY: [u64; 2] = [1, 2];
    const NODE: [u8; 32] = [9; 32];
    const NOW: u64 = 1_790_000_000;

    /// 10.0.0.0/8 and fd00::/8 are the overlay, 10.0.0.1 is this host. Initials are judged if there is a key.
    struct Model(Config, Option<Admission>);

    impl Tables for Model {
        fn config(&self) -> Option<&Config> {
            Some(&self.0)
        }

        fn is_live(&self, index: ReceiverIndex) -> bool {
            index.0 == 7
        }

        fn is_local(&self, address: &Address) -> bool {
            *address == Address::v4(0x0a00_0001)
        }

        fn is_denied(&self, _: &Address, _: &Config) -> bool {
            false
        }

        fn now_ns(&self) -> u64 {
            NOW * 1_000_000_000
        }

        fn admit_source(&self, _: &Address, _: Rate, _: u64) -> bool {
            true
        }

        fn admit_class(&self, _: Class, _: Rate, _: u64) -> bool {
            true
        }

        fn admission(&self) -> Option<&Admission> {
            self.1.as_ref()
        }

        fn wall_secs(&self, _: u64) -> u64 {
            NOW
        }

        fn is_overlay(&self, address: &Address) -> bool {
            address.octets()[0] == 0xfd || address.to_v4().is_some_and(|v4| v4 >> 24 == 10)
        }

        fn random(&self) -> u32 {
            0
        }
    }

    fn model(flags: u32, xsk_frame_len_max: u32) -> Model {
        let rate = Rate { interval_ns: 0, burst_ns: 0 };
        let class = [rate; Class::COUNT];
        let config =
            Config { port_first: 4646, port_last: 4646, flags, miss_sample: 0, xsk_frame_len_max, source: rate, class };
        Model(config, None)
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

    /// A datagram to this address.
    fn datagram(destination: [u8; 4], payload: &[u8]) -> ([u8; 128], usize) {
        let (mut frame, at) = v4(0x45, 64, destination);
        let len = 8 + payload.len();
        frame[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        frame[at + 2..at + 4].copy_from_slice(&4646u16.to_be_bytes());
        frame[at + 4..at + 6].copy_from_slice(&(len as u16).to_be_bytes());
        frame[at + 8..at + len].copy_from_slice(payload);
        (frame, at + len)
    }

    /// Live data to this address.
    fn data(destination: [u8; 4]) -> ([u8; 128], usize) {
        let mut payload = [0; 32];
        let header = wire::DataHeader { generation: 0, receiver: ReceiverIndex(7), counter: 1 }.encode();
        payload[..header.len()].copy_from_slice(&header);
        datagram(destination, &payload)
    }

    /// An Initial whose connection id was made in this slot.
    fn initial(slot: u32) -> [u8; 40] {
        let mut payload = [0x5a; 40];
        payload[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 20]);
        payload[6..26].copy_from_slice(&cid([1; 4], 7, slot, tag(KEY, 7, slot, &NODE)));
        payload
    }

    fn judge_quic(payload: &[u8]) -> Verdict {
        let none = Key::from_words([0; 4]);
        let mut keys = [none; KEYS_MAX];
        keys[0] = Key::new(KEY, &NODE);
        let (frame, len) = datagram([10, 0, 0, 1], payload);
        let tables = Model(model(0, 0).0, Some(Admission { keys, keys_len: 1 }));
        // What stands behind the datagram, as Ethernet's padding does, is not looked at.
        let padded = wan(&frame[..], &tables);
        assert_eq!(wan(&frame[..len], &tables), padded);
        padded.unwrap()
    }

    #[test]
    fn a_tag_counts_only_in_an_initial_and_only_whole() {
        let good = initial(slot_at(NOW));
        assert_eq!(judge_quic(&good), Verdict::WanAdmissionTagged);
        for len in 1..good.len() {
            let expected = match len {
                ..6 => Verdict::WanControl,
                6..26 => Verdict::WanAdmissionUntagged,
                _ => Verdict::WanAdmissionTagged,
            };
            assert_eq!(judge_quic(&good[..len]), expected, "{len} bytes");
        }
        let with = |at: usize, value: u8| {
            let mut payload = good;
            payload[at] = value;
            judge_quic(&payload)
        };
        for (first, expected) in [
            (0xc0, Verdict::WanAdmissionTagged),
            (0x80, Verdict::WanAdmissionTagged),
            (0xcf, Verdict::WanAdmissionTagged),
            (0xd0, Verdict::WanControl),
            (0xe0, Verdict::WanControl),
            (0xf0, Verdict::WanControl),
            (0x40, Verdict::WanControl),
        ] {
            assert_eq!(with(0, first), expected, "{first:#x}");
        }
        for at in 1..5 {
            assert_eq!(with(at, 2), Verdict::WanControl, "the version's byte {at}");
        }
        for len in [0, 8, 19, 21, 255] {
            assert_eq!(with(5, len), Verdict::WanAdmissionUntagged, "an id of {len} bytes");
        }
        for at in 6..26 {
            let expected = if at < 10 { Verdict::WanAdmissionTagged } else { Verdict::WanAdmissionUntagged };
            assert_eq!(with(at, 0xee), expected, "byte {at}");
        }
    }

    #[test]
    fn a_tag_from_another_time_is_told_from_none() {
        let now = slot_at(NOW);
        for (slot, expected) in [
            (now - WINDOW_SLOTS - 1, Verdict::WanAdmissionExpired),
            (now - WINDOW_SLOTS, Verdict::WanAdmissionTagged),
            (now + WINDOW_SLOTS, Verdict::WanAdmissionTagged),
            (now + WINDOW_SLOTS + 1, Verdict::WanAdmissionExpired),
            (0, Verdict::WanAdmissionExpired),
            (u32::MAX, Verdict::WanAdmissionExpired),
        ] {
            assert_eq!(judge_quic(&initial(slot)), expected, "{slot}");
        }
    }

    #[test]
    fn without_keys_an_initial_is_a_long_header_like_any_other() {
        let (frame, len) = datagram([10, 0, 0, 1], &initial(slot_at(NOW)));
        assert_eq!(wan(&frame[..len], &model(0, 0)), Ok(Verdict::WanControl));
        let none = Admission { keys: [Key::new(KEY, &NODE); KEYS_MAX], keys_len: 0 };
        assert_eq!(wan(&frame[..len], &Model(model(0, 0).0, Some(none))), Ok(Verdict::WanControl));
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
