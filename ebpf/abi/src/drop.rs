//! The registry of drop reasons.
//!
//! One list serves the eBPF programs, the engine, the metrics and `docs/drop-reasons.md`. Numbers are append-only: a number that was ever
//! released keeps its meaning, and one that is retired is never given again.

/// Whose doing a drop is: it tells an operator where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody on the network: an attacker, a broken peer, or a late packet.
    Network,
    /// A peer that proved who it is and then sent what it may not.
    Peer,
    /// A host or router on our own side.
    Local,
    /// This machine: a queue is full or a system call failed.
    Machine,
}

impl Fault {
    /// One lower-case word, as metrics and tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Peer => "peer",
            Self::Local => "local",
            Self::Machine => "machine",
        }
    }
}

macro_rules! drop_reasons {
    ($($number:literal $variant:ident $name:literal $fault:ident $sentence:literal;)*) => {
        /// Why a packet or datagram was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $sentence] $variant = $number,)*
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in metrics and tables: lower case, words joined by `_`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            /// Where to look.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault,)* }
            }
        }
    };
}

drop_reasons! {
    // 1..=15: `wan` and `steer`, before any thread wakes.
    1 WanDenied "wan_denied" Network "The source address is in the deny list.";
    2 WanSourceRate "wan_source_rate" Network "The source sent more than its share of datagrams that are not live data.";
    3 WanClassRate "wan_class_rate" Network "All sources together sent more datagrams of one class than the class may have.";
    4 WanUnknownIndex "wan_unknown_index" Network "A data datagram whose receiver index is not live here.";
    5 WanTruncated "wan_truncated" Network "A datagram to our port that is shorter than its own headers say or than its type needs.";
    6 WanOddFirstByte "wan_odd_first_byte" Network "The first byte names no protocol that shares our port (RFC 9443).";
    7 WanMalformed "wan_malformed" Network "One of our first bytes, but with an unknown type or version or a reserved field in use.";
    8 WanRelayLabel "wan_relay_label" Network "A relay datagram whose label was not granted here.";
    9 SteerNoWorker "steer_no_worker" Machine "A data datagram for a worker that has no socket.";
    10 WanAdmissionTaggedRate "wan_admission_tagged_rate" Network "All sources together sent more QUIC Initials with a member's tag than those may be.";
    11 WanAdmissionUntaggedRate "wan_admission_untagged_rate" Network "All sources together sent more QUIC Initials without a member's tag than those may be.";

    // 16..=31: the engine, outside the AEAD.
    16 OuterTruncated "outer_truncated" Network "Shorter than a header and a tag.";
    17 OuterOversized "outer_oversized" Network "Longer than any datagram of ours, or than the receive buffer.";
    18 OuterType "outer_type" Network "The first byte or its type is not one that a worker handles.";
    19 OuterVersion "outer_version" Network "A version of the datagram that this build does not speak.";
    20 OuterReserved "outer_reserved" Network "The reserved byte of the header is not zero.";
    21 UnknownIndex "unknown_index" Network "The receiver index names no lane of this worker.";
    22 WrongGeneration "wrong_generation" Network "The key generation is neither current nor within reach of a ratchet.";
    23 AuthFailed "auth_failed" Network "The AEAD tag does not fit: forged, damaged, or sealed under another key.";
    24 Replayed "replayed" Network "The counter was seen before.";
    25 ReplayTooOld "replay_too_old" Network "The counter lies before the replay window.";
    26 CounterLimit "counter_limit" Peer "The counter is beyond what one lane may use.";
    27 RxKeyExpired "rx_key_expired" Peer "The lane's keys are past their hard limit in time.";
    28 HandoffFull "handoff_full" Machine "The queue to the worker that owns the lane is full.";

    // 32..=47: blocks, inside the AEAD.
    32 BlockMalformed "block_malformed" Peer "A block that is none of packet, continuation, control or padding, or too short for its own header.";
    33 ContinuationOrphan "continuation_orphan" Network "The rest of a packet whose beginning is not here.";
    34 ContinuationLost "continuation_lost" Network "The beginning of a packet whose rest did not come.";
    35 ContinuationOversize "continuation_oversize" Peer "More bytes than the packet that they continue has left, or than a packet may have.";
    36 ControlMalformed "control_malformed" Peer "A control block of unknown kind or with a body of the wrong size.";

    // 48..=63: inner packets.
    48 InnerMalformed "inner_malformed" Peer "An inner packet whose version, header length or total length is wrong.";
    49 InnerHeaderChain "inner_header_chain" Peer "An inner IPv6 packet with more extension headers than are followed, or with a broken chain.";
    50 InnerJumbogram "inner_jumbogram" Peer "An inner IPv6 jumbogram (RFC 2675).";
    51 InnerSpoofedSource "inner_spoofed_source" Peer "The inner source address does not belong to the peer that sent it.";
    52 InnerForgedError "inner_forged_error" Peer "An ICMP error about a packet that was never sent to that peer.";
    53 InnerMulticast "inner_multicast" Local "A multicast or broadcast packet; the overlay carries none.";
    54 InnerLinkScope "inner_link_scope" Local "A link-local or unspecified address: the kernel's own chatter on the TUN.";
    55 LocalMalformed "local_malformed" Local "A packet from the local side whose version, lengths or header chain are wrong.";
    56 LocalOffload "local_offload" Local "A packet from the local side that does not fit what the kernel asks to be done with it: cut, or summed.";
    57 CongestionUnmarkable "congestion_unmarkable" Network "The path was congested, and the sender of the inner packet understands no mark but loss (RFC 6040).";

    // 64..=79: a router's duties.
    64 NoRoute "no_route" Local "No overlay prefix covers the destination.";
    65 NoSession "no_session" Machine "The route's peer has no session at the moment.";
    66 TtlExpired "ttl_expired" Local "The TTL or hop limit reached zero at this gateway.";
    67 PacketTooBig "packet_too_big" Local "Larger than the inner MTU of the path, and not to be fragmented.";
    68 Hairpin "hairpin" Peer "The destination lies behind the very peer that sent the packet.";
    69 TransitRefused "transit_refused" Peer "A packet between two peers, and this gateway is not configured to forward those.";
    70 LocalSource "local_source" Local "A packet from the local side whose source no peer would accept from us.";
    71 PeerRate "peer_rate" Local "More for a peer than its rate limit allows.";

    // 80..=95: sealing.
    80 KeyExhausted "key_exhausted" Machine "The lane has used up its counters or its ratchet; only a fresh key exchange helps.";
    81 KeyExpired "key_expired" Machine "The lane's keys are past their hard limit in time; only a fresh key exchange helps.";

    // 96..=111: queues and system calls.
    96 TransitQueueFull "transit_queue_full" Machine "Too many packets between peers or answers of our own in one batch.";
    97 WanQueueFull "wan_queue_full" Machine "The send queue of the underlay port is full.";
    98 LanQueueFull "lan_queue_full" Machine "The write queue towards the local side is full.";
    99 WanSendFailed "wan_send_failed" Machine "The kernel refused to send a datagram.";
    100 LanWriteFailed "lan_write_failed" Machine "The kernel refused a packet on the TUN.";
    101 LanReadTruncated "lan_read_truncated" Machine "A packet from the local side that is longer than the receive buffer.";
    102 ControlBlockQueueFull "control_block_queue_full" Machine "Too many echo replies and other control blocks wait to be sent.";
    103 XskMalformed "xsk_malformed" Network "A frame on an AF_XDP socket that is none of those given to it, or whose lengths contradict each other.";
    104 XskChecksum "xsk_checksum" Local "A frame from a device without wire checksums whose transport checksum is wrong.";
    105 XskOversized "xsk_oversized" Local "A frame of several AF_XDP buffers that is longer than any packet, or misses one.";
    106 XskDescriptor "xsk_descriptor" Machine "An AF_XDP descriptor that names no buffer of ours.";
    107 XskOverrun "xsk_overrun" Machine "Frames that the kernel could not put on an AF_XDP socket: no buffer free, or longer than one.";
    108 LanOversized "lan_oversized" Machine "A packet from a peer that is longer than any slot towards the local side.";
}

impl DropReason {
    /// One more than the largest number: the size of a table indexed by reason.
    pub const TABLE_LEN: usize = 128;

    /// The reason with this number, if it was ever given.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| *reason as u8 == number)
    }
}

const _: () = {
    let mut i = 1;
    while i < DropReason::ALL.len() {
        assert!((DropReason::ALL[i - 1] as u8) < DropReason::ALL[i] as u8, "reasons are listed by number");
        i += 1;
    }
    assert!((DropReason::ALL[i - 1] as usize) < DropReason::TABLE_LEN);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_metrics() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", reason.name());
            assert!(reason.sentence().ends_with('.'));
            assert!(DropReason::ALL[..i].iter().all(|other| other.name() != reason.name()), "{}", reason.name());
            assert_eq!(DropReason::from_number(*reason as u8), Some(*reason));
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
