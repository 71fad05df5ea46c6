//! Names, keys and values of the eBPF maps: what the loader writes and the programs read.
//!
//! Every type is `repr(C)` with fixed-size fields and no padding, so that both sides see the same bytes.

use crate::admission::{Fields, KEYS_MAX, Key};
use crate::drop::DropReason;
use crate::gcra::Rate;
use crate::wire::ReceiverIndex;

/// Names of the maps, as they stand in the object file.
pub mod name {
    /// `Array<Config>`, one element.
    pub const CONFIG: &str = "CONFIG";
    /// `Array<u32>`: the live receiver index at each [`super::live_position`]; zero where there is none.
    pub const LIVE: &str = "LIVE";
    /// `HashMap<Address, u32>`: addresses of this host.
    pub const LOCAL: &str = "LOCAL";
    /// `LpmTrie<u32, u32>` over big-endian addresses: IPv4 sources that are refused.
    pub const DENY_V4: &str = "DENY_V4";
    /// `LpmTrie<Address, u32>`: IPv6 sources that are refused.
    pub const DENY_V6: &str = "DENY_V6";
    /// `Array<u64>` of [`super::DENY_BLOCKS_LEN`]: which IPv4 networks of 24 bits a refused prefix meets. A source in any other is not
    /// looked for in [`DENY_V4`].
    pub const DENY_BLOCKS: &str = "DENY_BLOCKS";
    /// `Array<u64>` of [`super::DENY_SITES_LEN`], bits at hashed places: which IPv4 addresses and which IPv6 networks of 48 bits a refused
    /// prefix may meet, of the families that [`super::flag::DENY_SITES_V4`] and [`super::flag::DENY_SITES_V6`] name. A source of such a family
    /// whose bit is not set is looked for in neither trie.
    pub const DENY_SITES: &str = "DENY_SITES";
    /// `LruHashMap<u64, u64>`: one GCRA state per source, by [`crate::address::Address::source_key`].
    pub const SOURCES: &str = "SOURCES";
    /// `Array<u64>`: one GCRA state per [`super::Class`].
    pub const CLASSES: &str = "CLASSES";
    /// `PerCpuArray<Count>` indexed by [`super::Counter::index`].
    pub const COUNTERS: &str = "COUNTERS";
    /// `ReusePortSockArray` indexed by [`super::socket_key`].
    pub const SOCKETS: &str = "SOCKETS";
    /// `LpmTrie<Address, u32>`: [`super::OVERLAY_FAR`] or [`super::OVERLAY_BEHIND`] by prefix, for `lan`.
    pub const OVERLAY: &str = "OVERLAY";
    /// `XskMap` by receive queue of the WAN device, for `wan`.
    pub const WAN_XSKS: &str = "WAN_XSKS";
    /// `HashMap<LanQueue, LanXsk>`: which socket is on a queue of a LAN device.
    pub const LAN_QUEUES: &str = "LAN_QUEUES";
    /// `XskMap` by [`super::LanXsk::position`], for `lan`.
    pub const LAN_XSKS: &str = "LAN_XSKS";
    /// `Array<Admission>`, one element, for `wan`.
    pub const ADMISSION: &str = "ADMISSION";
    /// `Array<u64>`, one element: what to add to the kernel's monotonic clock for nanoseconds since 1970, modulo 2^64.
    pub const WALL_CLOCK: &str = "WALL_CLOCK";
}

/// Most workers of one packet plane. The receiver index has room for 64; lanes end at 16 (one per sending worker).
pub const WORKERS_MAX: u8 = 16;
/// Lanes that one worker may have open at a time: slots in [`name::LIVE`] per worker.
pub const SLOTS_PER_WORKER: u32 = 4096;

/// Where the live index of a lane stands in [`name::LIVE`], or `None` when its slot lies outside the map.
#[inline(always)]
pub const fn live_position(index: ReceiverIndex) -> Option<u32> {
    let slot = index.slot() as u32;
    if slot >= SLOTS_PER_WORKER { None } else { Some(index.worker() as u32 * SLOTS_PER_WORKER + slot) }
}

/// Entries of [`name::LIVE`] for a plane with this many workers.
pub const fn live_len(workers: u8) -> u32 {
    workers as u32 * SLOTS_PER_WORKER
}

/// What `wan` and `steer` are told by the loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// First UDP port that is ours.
    pub port_first: u16,
    /// Last UDP port that is ours.
    pub port_last: u16,
    /// Bits of [`flag`].
    pub flags: u32,
    /// One live-index miss in this many goes to the control socket, so that a stateless reset can tell a rebooted peer; zero: none.
    pub miss_sample: u32,
    /// Longest frame in bytes that `wan` redirects to an AF_XDP socket; zero: none. What is longer than the device's own frames is a merged
    /// train, whose segment size only the kernel's socket can tell.
    pub xsk_frame_len_max: u32,
    /// What one source may send besides live data.
    pub source: Rate,
    /// What all sources together may send, by [`Class`].
    pub class: [Rate; Class::COUNT],
}

impl Config {
    /// What all sources together may send of this class.
    #[inline(always)]
    pub const fn rate(&self, class: Class) -> Rate {
        // One by one: the verifier follows a constant offset into a map's value and not an index.
        let [stun, long, short, rpc, tagged, untagged] = &self.class;
        match class {
            Class::Stun => *stun,
            Class::QuicLong => *long,
            Class::QuicShort => *short,
            Class::Rpc => *rpc,
            Class::QuicInitialTagged => *tagged,
            Class::QuicInitialUntagged => *untagged,
        }
    }
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// [`super::name::LOCAL`] holds all addresses of this host: a datagram to another address is forwarded traffic.
    pub const LOCAL_KNOWN: u32 = 1;
    /// `wan` is attached, so that `steer` sees only what it let through.
    pub const WAN_ATTACHED: u32 = 2;
    /// [`super::name::DENY_V6`] is not empty.
    pub const DENY_V6: u32 = 4;
    /// [`super::name::DENY_SITES`] holds all refused IPv4 addresses, so that one without a bit there is not refused.
    pub const DENY_SITES_V4: u32 = 8;
    /// The same of IPv6 networks of 48 bits.
    pub const DENY_SITES_V6: u32 = 16;
}

/// Queues of one side that can have an AF_XDP socket: elements of [`name::WAN_XSKS`], [`name::LAN_QUEUES`] and [`name::LAN_XSKS`].
pub const XSKS_MAX: u32 = 256;

/// Value in [`name::OVERLAY`] of a prefix that lies behind other gateways.
pub const OVERLAY_FAR: u32 = 1;
/// Value of a prefix of the overlay that lies behind this one: the kernel routes it.
pub const OVERLAY_BEHIND: u32 = 2;

/// A receive queue of a LAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LanQueue {
    /// Index of the interface.
    pub interface: u32,
    /// Number of the queue.
    pub queue: u32,
}

/// The AF_XDP socket of a [`LanQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LanXsk {
    /// Where it stands in [`name::LAN_XSKS`].
    pub position: u32,
    /// Longest frame in bytes that is redirected to it: what is longer than the device's own frames is a superpacket, which the kernel can
    /// tell how to cut.
    pub frame_len_max: u32,
}

/// The keys under which the tag of an Initial may stand, prepared for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Admission {
    /// The newest first, for most tags are made under it. What stands behind the first `keys_len` is none.
    pub keys: [Key; KEYS_MAX],
    /// How many keys there are; with none, no Initial is told from other long headers.
    pub keys_len: u64,
}

impl Admission {
    /// Whether the tag was made under one of the keys.
    #[inline(always)]
    pub const fn is_tagged(&self, fields: &Fields) -> bool {
        // Written out: the verifier need not follow a loop.
        let [a, b, c] = &self.keys;
        (self.keys_len > 0 && fields.is_tagged_by(a))
            || (self.keys_len > 1 && fields.is_tagged_by(b))
            || (self.keys_len > 2 && fields.is_tagged_by(c))
    }
}

/// Our choice for [`Config::miss_sample`]: rare enough that a flood of misses wakes nobody, often enough for one reset in the first second
/// of a peer that lost its session at 1,000 datagrams per second.
pub const MISS_SAMPLE: u32 = 1000;

/// Kinds of datagram that are not live data, each with its own bucket. Told apart by the first byte (RFC 9443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// STUN (first byte 0–3).
    Stun = 0,
    /// QUIC long header (0x80–0xff): handshakes. Without the Initials, once there are admission keys.
    QuicLong = 1,
    /// QUIC short header (0x40–0x7f).
    QuicShort = 2,
    /// Ours, sealed, for the control plane.
    Rpc = 3,
    /// A QUIC Initial whose connection id bears a tag of a member's.
    QuicInitialTagged = 4,
    /// Any other QUIC Initial, once there are admission keys.
    QuicInitialUntagged = 5,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 6;
    /// All classes, in order.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Stun, Self::QuicLong, Self::QuicShort, Self::Rpc, Self::QuicInitialTagged, Self::QuicInitialUntagged];
}

/// Our choice for [`Class::QuicInitialTagged`]: 2,500 handshakes a second, as many as one core is to answer, with eight Initials to each: two
/// of a ClientHello with ML-KEM, two more after a Retry, one that acknowledges, and three that are sent again or answer a dial of ours. A
/// tenth of a second of them may come at once, as when a fleet comes back after an outage.
pub const TAGGED_INITIALS: Rate = Rate::per_second(20_000, 2_000);

/// Our choice for [`Class::QuicInitialUntagged`]: 100 attempts a second of two Initials each, some 4 % of a core, however many spoofed ones
/// compete for them. Members have tags, and so has who comes with an invitation; what is left are those whose clock is wrong or whose keys
/// are old, and strangers. Twenty attempts may come at once.
pub const UNTAGGED_INITIALS: Rate = Rate::per_second(200, 40);

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Frames, or merged trains where the attach point sees those.
    pub packets: u64,
    /// Bytes of those frames.
    pub bytes: u64,
}

macro_rules! verdicts {
    ($($number:literal $variant:ident $name:literal $sentence:literal;)*) => {
        /// What a program did with a frame that it did not drop.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Verdict {
            $(#[doc = $sentence] $variant = $number,)*
        }

        impl Verdict {
            /// All verdicts, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in metrics and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

verdicts! {
    0 WanNotIp "wan_not_ip" "`wan` passed a frame that is neither IPv4 nor IPv6.";
    1 WanNotUdp "wan_not_udp" "`wan` passed an IP packet that is not UDP.";
    2 WanFragment "wan_fragment" "`wan` passed a fragment for the kernel to reassemble.";
    3 WanOdd "wan_odd" "`wan` passed a frame with headers that it does not understand.";
    4 WanExtensions "wan_extensions" "`wan` passed an IPv6 packet with more extension headers than it follows.";
    5 WanOtherPort "wan_other_port" "`wan` passed a UDP datagram to a port that is not ours.";
    6 WanForwarded "wan_forwarded" "`wan` passed a datagram to our port at an address that is not this host's.";
    7 WanDeliver "wan_deliver" "`wan` delivered a data datagram with a live receiver index.";
    8 WanControl "wan_control" "`wan` let a datagram through to the control socket.";
    9 WanMissSampled "wan_miss_sampled" "`wan` let one of many live-index misses through to the control socket.";
    10 SteerWorker "steer_worker" "`steer` chose a worker's socket.";
    11 SteerControl "steer_control" "`steer` chose the control socket.";
    12 LanPass "lan_pass" "`lan` passed a frame that is not bound for the overlay.";
    13 LanOverlay "lan_overlay" "`lan` saw a packet bound for the overlay.";
    14 LanRouter "lan_router" "`lan` left a packet bound for the overlay to the kernel's router: its TTL ends here, or it has options.";
    15 WanAdmissionTagged "wan_admission_tagged" "`wan` let a QUIC Initial with a member's tag through to the control socket.";
    16 WanAdmissionUntagged "wan_admission_untagged" "`wan` let a QUIC Initial without a member's tag through to the control socket.";
    17 WanAdmissionExpired "wan_admission_expired" "`wan` let a QUIC Initial through, as one without a tag: its tag is a member's, and from another time.";
}

/// An element of [`name::COUNTERS`]: a verdict or a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The frame went on.
    Passed(Verdict),
    /// The frame ended here.
    Dropped(DropReason),
}

impl Counter {
    /// Elements of [`name::COUNTERS`].
    pub const TABLE_LEN: u32 = Self::DROPS_AT + DropReason::TABLE_LEN as u32;
    const DROPS_AT: u32 = 64;

    /// Where the counter stands in the map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Passed(verdict) => verdict as u32,
            Self::Dropped(reason) => Self::DROPS_AT + reason as u32,
        }
    }
}

const _: () = assert!(Verdict::ALL.len() as u32 <= Counter::DROPS_AT);

/// Key of a socket in [`name::SOCKETS`]: workers first, the control socket last, IPv6 after IPv4.
#[inline(always)]
pub const fn socket_key(ipv6: bool, role: SocketRole) -> u32 {
    let role = match role {
        SocketRole::Worker(worker) => worker as u32,
        SocketRole::Control => 64,
    };
    if ipv6 { 65 + role } else { role }
}

/// Elements of [`name::SOCKETS`].
pub const SOCKETS_LEN: u32 = 130;

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// A worker's, by number `0..64`.
    Worker(u8),
    /// The control plane's.
    Control,
}

/// Elements of [`name::DENY_BLOCKS`]: a bit for each of the 2^24 networks.
pub const DENY_BLOCKS_LEN: u32 = 1 << (24 - 6);

/// Where the network of 24 bits of an IPv4 address stands in [`name::DENY_BLOCKS`]: the element, and the bit in it.
#[inline(always)]
pub const fn deny_block(v4: u32) -> (u32, u64) {
    (v4 >> 14, 1 << ((v4 >> 8) & 63))
}

/// Elements of [`name::DENY_SITES`]: 2^24 bits.
pub const DENY_SITES_LEN: u32 = 1 << (24 - 6);

/// Where an IPv4 address stands in [`name::DENY_SITES`], or an IPv6 network of 48 bits, as numbers: the element, and the bit in it.
///
/// Multiplicative hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4): the product's upper bits. Who finds addresses
/// that share a bit with a refused one gains that they are looked for.
#[inline(always)]
pub const fn deny_site(key: u64) -> (u32, u64) {
    let place = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    ((place >> 6) as u32, 1 << (place & 63))
}

const _: () = {
    assert!(size_of::<Count>() == 16);
    assert!(size_of::<Rate>() == 16);
    assert!(size_of::<LanQueue>() == 8 && size_of::<LanXsk>() == 8);
    assert!(size_of::<Admission>() == 32 * KEYS_MAX + 8);
    assert!(size_of::<Config>() == 16 + 16 * (1 + Class::COUNT));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_do_not_share_an_element() {
        let verdicts = Verdict::ALL.iter().map(|&v| Counter::Passed(v).index());
        let drops = DropReason::ALL.iter().map(|&r| Counter::Dropped(r).index());
        let mut last = None;
        for index in verdicts.chain(drops) {
            assert!(last < Some(index), "{index} follows {last:?}");
            assert!(index < Counter::TABLE_LEN);
            last = Some(index);
        }
    }

    #[test]
    fn a_tag_counts_under_each_of_the_keys_that_there_are_and_no_other() {
        const NODE: [u8; 32] = [3; 32];
        let keys: [Key; KEYS_MAX] = core::array::from_fn(|i| Key::new([i as u64, 9], &NODE));
        for keys_len in 0..=KEYS_MAX {
            let admission = Admission { keys, keys_len: keys_len as u64 };
            for (i, key) in keys.iter().enumerate() {
                let fields = Fields { nonce: 1, slot: 2, tag: key.tag(1, 2) };
                assert_eq!(admission.is_tagged(&fields), i < keys_len, "key {i} of {keys_len}");
            }
        }
        // Before anything is written a map is zeros, and what those hash to anybody can work out.
        let zeros = Key::from_words([0; 4]);
        let fields = Fields { nonce: 1, slot: 2, tag: zeros.tag(1, 2) };
        assert!(!Admission { keys: [zeros; KEYS_MAX], keys_len: 0 }.is_tagged(&fields));
        let one = Admission { keys: [keys[0], zeros, zeros], keys_len: 1 };
        assert!(!one.is_tagged(&fields));
    }

    #[test]
    fn the_buckets_of_initials_hold_what_they_were_made_for() {
        let admitted = |rate: Rate, per_second: u64| {
            let mut tat = 0;
            let arrivals = (0..per_second).map(|i| 1_000_000_000 + i * (1_000_000_000 / per_second));
            arrivals.filter(|now| rate.admit(tat, *now).map(|next| tat = next).is_some()).count()
        };
        // 2,500 handshakes of eight Initials.
        assert_eq!(admitted(TAGGED_INITIALS, 20_000), 20_000);
        // 200,000 spoofed ones.
        let passed = admitted(UNTAGGED_INITIALS, 200_000);
        assert!((200..=240).contains(&passed), "{passed}");
    }

    #[test]
    fn each_socket_has_its_own_key() {
        let keys = [false, true].into_iter().flat_map(|v6| {
            (0..64).map(SocketRole::Worker).chain([SocketRole::Control]).map(move |role| socket_key(v6, role))
        });
        assert!(keys.eq(0..SOCKETS_LEN));
    }

    #[test]
    fn live_positions_are_dense_per_worker_and_bounded() {
        assert_eq!(live_position(ReceiverIndex::new(0, 0, 5)), Some(0));
        assert_eq!(live_position(ReceiverIndex::new(1, 0, 5)), Some(SLOTS_PER_WORKER));
        assert_eq!(live_position(ReceiverIndex::new(0, SLOTS_PER_WORKER as u16 - 1, 5)), Some(SLOTS_PER_WORKER - 1));
        assert_eq!(live_position(ReceiverIndex::new(0, SLOTS_PER_WORKER as u16, 5)), None);
    }

    #[test]
    fn each_network_of_24_bits_has_a_bit_of_its_own() {
        let at = |v4| deny_block(v4);
        assert_eq!((at(0), at(0xff), at(0x100)), ((0, 1), (0, 1), (0, 2)));
        assert_eq!((at(0x3fff), at(0x4000)), ((0, 1 << 63), (1, 1)));
        assert_eq!(at(u32::MAX), (DENY_BLOCKS_LEN - 1, 1 << 63));
    }

    #[test]
    fn neighbours_have_sites_of_their_own_within_the_map() {
        for first in [0xc000_0200u64, 0x2001_0db8_0000] {
            for key in first..first + 256 {
                let (element, bit) = deny_site(key);
                assert!(element < DENY_SITES_LEN && bit.is_power_of_two());
                assert!((first..key).all(|other| deny_site(other) != (element, bit)), "{key:x}");
            }
        }
    }
}
