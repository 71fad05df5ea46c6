//! What the programs of the bench and its user half agree on: the stamp in each datagram, the maps, and the arithmetic of a stream.
//!
//! The crate `weir-bench` includes this very file, so the flat-out generator in the kernel, the paced one in user space and the pcap writer
//! produce the same frames from the same code. It knows nothing of maps, sockets or files, and allocates nothing.
//!
//! ```text
//!  Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | stamp 18 | zeros up to the frame length
//!
//!  stamp:  0        4      6          10                  18
//!          +--------+------+----------+-------------------+
//!          | magic  | flow | sequence | time, ns          |     big-endian; IPv4 with a stamp is exactly a 64-byte frame
//!          +--------+------+----------+-------------------+     (60 bytes and the 4 bytes of FCS, which veth does not carry)
//! ```

/// First four bytes of the payload of each generated datagram.
pub const MAGIC: u32 = 0x5765_4972;
/// Bytes of the stamp at the start of the UDP payload.
pub const STAMP_LEN: usize = 18;
/// Bytes from the start of an IPv6 frame to the end of its stamp: the longest run of bytes that differs from zero.
pub const HEAD_LEN: usize = 80;
/// Most entries of a size pattern. IMIX needs 12: seven small, four middle, one large.
pub const SLOTS_MAX: u32 = 12;
/// Most flows of a stream: the stamp has 16 bits for the flow.
pub const FLOWS_MAX: u32 = 65_536;
/// Flows that share a source address; the next address takes over after them.
pub const PORTS_PER_ADDRESS: u32 = 16_384;
/// Most datagrams that the sink looks at inside one merged packet: `UDP_MAX_SEGMENTS` of the kernel (`include/linux/udp.h`).
pub const SEGMENTS_MAX: u32 = 128;

/// Names of programs and maps, as they stand in the object file.
pub mod name {
    /// XDP program that rewrites and redirects live frames.
    pub const GENERATE: &str = "generate";
    /// XDP program that passes everything: its presence lets a veth receive frames of [`GENERATE`].
    pub const PASS: &str = "pass";
    /// tc ingress program that counts stamped datagrams.
    pub const SINK: &str = "sink";
    /// `Array<GeneratorConfig>`, one element.
    pub const GENERATOR_CONFIG: &str = "GENERATOR_CONFIG";
    /// `Array<GeneratorState>`, one element.
    pub const GENERATOR_STATE: &str = "GENERATOR_STATE";
    /// `Array<Template>`, one per slot of the size pattern.
    pub const TEMPLATES: &str = "TEMPLATES";
    /// `Array<SinkConfig>`, one element.
    pub const SINK_CONFIG: &str = "SINK_CONFIG";
    /// `PerCpuArray<SinkCount>`, one element.
    pub const SINK_COUNT: &str = "SINK_COUNT";
    /// `Array<FlowState>` by flow.
    pub const FLOWS: &str = "FLOWS";
    /// `PerCpuArray<u64>` by [`super::bucket`].
    pub const LATENCY: &str = "LATENCY";
}

/// What [`name::GENERATE`] is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GeneratorConfig {
    /// Interface index that frames are redirected to.
    pub ifindex: u32,
    /// Bytes of the frame that the run is started with, without FCS: the longest of the stream, since the program only shortens.
    pub frame_len_max: u32,
    /// Flows and sizes of the stream.
    pub schedule: Schedule,
}

/// Where [`name::GENERATE`] stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GeneratorState {
    /// Frames made so far, which is also the number of the next one.
    pub next: u64,
    /// Bytes of those frames, without FCS.
    pub bytes: u64,
    /// Time of the first frame of this call, ns of the monotonic clock; zero before it.
    pub first_ns: u64,
    /// Time of the last frame, ns.
    pub last_ns: u64,
}

/// What [`name::SINK`] is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SinkConfig {
    /// Non-zero: a counted datagram goes on to the stack instead of being dropped.
    pub pass: u32,
    /// Non-zero: read the stamp of each datagram inside a merged packet, not of the first alone.
    pub every_segment: u32,
}

/// What one CPU counted in [`name::SINK`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SinkCount {
    /// Packets of the stack, merged or not.
    pub skbs: u64,
    /// Datagrams inside them.
    pub datagrams: u64,
    /// Bytes of the frames that carried those datagrams before they were merged, without FCS.
    pub bytes: u64,
    /// Datagrams whose sequence was below one already seen in their flow (RFC 4737 §3).
    pub reordered: u64,
    /// Stamps read, which is the number of latency samples.
    pub stamps: u64,
    /// Packets without a stamp, or with a flow out of range.
    pub others: u64,
    /// Time of the first datagram, ns; zero before it.
    pub first_ns: u64,
    /// Time of the last datagram, ns.
    pub last_ns: u64,
}

/// What [`name::SINK`] knows of one flow. Two CPUs may race on it only while the flow moves between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowState {
    /// Datagrams received.
    pub received: u64,
    /// One more than the highest sequence seen.
    pub next: u64,
}

/// How a stream is spread over flows and sizes. Frame `n` belongs to flow `n mod flows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    /// Number of flows, `1..=FLOWS_MAX`.
    pub flows: u32,
    /// Length of the size pattern, `1..=SLOTS_MAX`.
    pub slots: u32,
}

/// Where one frame stands in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Flow number.
    pub flow: u16,
    /// Number within the flow, modulo 2^32.
    pub sequence: u32,
    /// Entry of the size pattern.
    pub slot: u32,
}

impl Schedule {
    /// Where frame `n` stands. Every flow walks through the whole pattern, each from another entry.
    #[inline(always)]
    pub const fn place(&self, n: u64) -> Place {
        let flows = if self.flows == 0 { 1 } else { self.flows as u64 };
        let slots = if self.slots == 0 { 1 } else { self.slots as u64 };
        let (flow, round) = (n % flows, n / flows);
        Place { flow: flow as u16, sequence: round as u32, slot: ((flow + round) % slots) as u32 }
    }
}

/// Where the fields that change from frame to frame stand in it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// IPv4 header checksum; `None` for IPv6, which has none.
    pub ip_checksum: Option<usize>,
    /// Low 16 bits of the source address.
    pub source_low: usize,
    /// UDP source port.
    pub source_port: usize,
    /// UDP checksum.
    pub udp_checksum: usize,
    /// The stamp.
    pub stamp: usize,
}

/// Offsets in an IPv4 frame without options.
pub const OFFSETS_V4: Offsets =
    Offsets { ip_checksum: Some(24), source_low: 28, source_port: 34, udp_checksum: 40, stamp: 42 };
/// Offsets in an IPv6 frame without extension headers.
pub const OFFSETS_V6: Offsets =
    Offsets { ip_checksum: None, source_low: 36, source_port: 54, udp_checksum: 60, stamp: 62 };

/// The constant part of all frames of one size, with the sums that complete their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Template {
    /// First [`HEAD_LEN`] bytes of the frame as they lie in memory, changing fields zero.
    pub head: [u64; HEAD_LEN / 8],
    /// Bytes of the frame without FCS.
    pub frame_len: u32,
    /// Non-zero: the frame is IPv6.
    pub ipv6: u32,
    /// One's complement sum of the constant words under the UDP checksum, pseudo-header included, not folded.
    pub udp_sum: u32,
    /// The same for the IPv4 header checksum.
    pub ip_sum: u32,
    /// Low 16 bits of the source address of flow 0.
    pub source_low: u32,
    /// Source port of flow 0.
    pub source_port: u32,
}

/// Folds a sum of 16-bit words into one's complement 16 bits (RFC 1071 §1).
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

impl Template {
    /// Gives each changing 16-bit word of a frame to `put`, with its offset; `put` stores it big-endian.
    ///
    /// `at` must be the offsets of the template's family; passed by the caller so that they are constants in the program.
    #[inline(always)]
    pub fn fill(&self, at: Offsets, place: Place, time_ns: u64, mut put: impl FnMut(usize, u16)) {
        let flow = place.flow as u32;
        let source_low = (self.source_low + flow / PORTS_PER_ADDRESS) as u16;
        let source_port = (self.source_port + flow % PORTS_PER_ADDRESS) as u16;
        let words = [
            place.flow,
            (place.sequence >> 16) as u16,
            place.sequence as u16,
            (time_ns >> 48) as u16,
            (time_ns >> 32) as u16,
            (time_ns >> 16) as u16,
            time_ns as u16,
        ];
        let mut sum = self.udp_sum as u64 + source_low as u64 + source_port as u64;
        let mut offset = at.stamp + 4;
        for word in words {
            sum += word as u64;
            put(offset, word);
            offset += 2;
        }
        let checksum = !fold(sum);
        // Zero would say "no checksum" (RFC 768), which GRO and IPv6 both refuse.
        put(at.udp_checksum, if checksum == 0 { 0xffff } else { checksum });
        put(at.source_low, source_low);
        put(at.source_port, source_port);
        if let Some(ip_checksum) = at.ip_checksum {
            put(ip_checksum, !fold(self.ip_sum as u64 + source_low as u64));
        }
    }
}

/// Buckets per power of two: a bucket is at most 1/16 of its value wide.
pub const BUCKETS_PER_OCTAVE: u32 = 16;
/// Buckets of [`name::LATENCY`]: enough for any 64-bit value.
pub const BUCKETS: u32 = 61 * BUCKETS_PER_OCTAVE;

/// The bucket of a latency in ns: exact below 16, then 16 linear steps in each power of two.
#[inline(always)]
pub const fn bucket(ns: u64) -> u32 {
    if ns < BUCKETS_PER_OCTAVE as u64 {
        return ns as u32;
    }
    let octave = 63 - ns.leading_zeros();
    let step = (ns >> (octave - 4)) as u32 & (BUCKETS_PER_OCTAVE - 1);
    (octave - 3) * BUCKETS_PER_OCTAVE + step
}

const _: () = {
    assert!(size_of::<Template>() == HEAD_LEN + 24);
    assert!(OFFSETS_V6.stamp + STAMP_LEN == HEAD_LEN);
    assert!(OFFSETS_V4.stamp + STAMP_LEN == 60);
    assert!(bucket(u64::MAX) == BUCKETS - 1);
};
