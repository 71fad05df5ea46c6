//! What `wan`, `lan` and `steer` do with a frame: the whole decision, in its order.
//!
//! `wan`:
//!
//! ```text
//!   frame ─▶ UDP to our ports? ──no──▶ kernel
//!              │yes
//!              ├─ data ─▶ live index? ──yes──▶ deliver           no trie, no bucket, no clock on this way
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
            return Ok(Verdict::WanDeliver);
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

/// Judges a frame from the LAN: is it unicast to this machine and bound for an overlay prefix, and not for this machine itself? What says no
/// here the kernel's router sees.
#[inline(always)]
pub fn lan<B: Bytes + ?Sized, T: Tables>(frame: &B, tables: &T) -> Verdict {
    match lan_destination(frame) {
        Some(destination) if tables.is_overlay(&destination) && !tables.is_local(&destination) => Verdict::LanOverlay,
        _ => Verdict::LanPass,
    }
}

/// The destination of an untagged unicast IP frame that may go one hop further. VLAN children of a LAN port are the kernel's, and so is what
/// its router has to tell its sender: that a hop limit has come to its end.
#[inline(always)]
fn lan_destination<B: Bytes + ?Sized>(frame: &B) -> Option<Address> {
    // The group bit of the destination address (IEEE 802-2014 §8.2.2). Two bytes at a time: the verifier learns nothing from the bound
    // check of a single byte at the very front.
    if frame.u16(0)? & 0x0100 != 0 {
        return None;
    }
    let at = frame::ETHERNET_LEN;
    match frame.u16(at - 2)? {
        frame::ETHERTYPE_IPV4 if frame.u8(at)? >> 4 == 4 && frame.u8(at + 8)? > 1 => {
            frame.u32(at + 16).map(frame::mapped)
        }
        frame::ETHERTYPE_IPV6 if frame.u8(at)? >> 4 == 6 && frame.u8(at + 7)? > 1 => frame.array(at + 24),
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
