//! Which frames are sent: addresses, flows and sizes, turned into templates that every sender completes in the same way.
//!
//! Sizes follow RFC 2544: a 64-byte frame includes its 4-byte FCS. A veth carries no FCS, so 60 bytes are sent; `layout` draws the frame.

use std::net::IpAddr;

use serde::Serialize;

use crate::layout::{
    FLOWS_MAX, HEAD_LEN, MAGIC, OFFSETS_V4, OFFSETS_V6, PORTS_PER_ADDRESS, STAMP_LEN, Schedule, Template, fold,
};

/// Bytes of the frame check sequence that sizes count and veths do not carry.
pub const FCS_LEN: u16 = 4;
/// Smallest frame: 64 bytes for IPv4 (RFC 2544 §9.1), 84 for IPv6, whose header leaves no room for the stamp in less.
pub const SIZE_MIN: u16 = 64;
/// Largest frame of an MTU of 1500 without a VLAN tag (RFC 2544 §9.1).
pub const SIZE_MAX: u16 = 1518;
/// The simple IMIX: seven small, four middle, one large, spread out so that no burst is of one size.
pub const IMIX: [u16; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];

const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

/// Link and network addresses of a stream, as seen by the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Link-layer address of the sending interface.
    pub source_mac: [u8; 6],
    /// Link-layer address of the first router, or of the destination when it is a neighbour.
    pub next_hop_mac: [u8; 6],
    /// Source address of the first 16,384 flows; the next ones use the addresses that follow it.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
}

/// Frame sizes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// All frames alike; bytes with FCS, [`SIZE_MIN`]`..=`[`SIZE_MAX`]. For IPv6 anything below 84 becomes 84.
    Fixed(u16),
    /// [`IMIX`]; for IPv6 the small ones have 84 bytes.
    Imix,
    /// [`IMIX`] with its large frames as large as an inner packet of 1420 bytes makes them, so that a tunnel loses none for its size.
    TunnelImix,
}

/// [`IMIX`] for tunnels: 1420 bytes of inner MTU, 14 of Ethernet, 4 of FCS.
const TUNNEL_IMIX: [u16; 12] = [64, 594, 64, 64, 594, 64, 1438, 64, 594, 64, 594, 64];

impl std::str::FromStr for Sizes {
    type Err = StreamError;

    /// Reads `imix`, `tunnel-imix` or a number of bytes.
    fn from_str(text: &str) -> Result<Self, StreamError> {
        if text.eq_ignore_ascii_case("tunnel-imix") {
            return Ok(Self::TunnelImix);
        }
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self::Imix);
        }
        let size = text.parse().map_err(|_| StreamError::Size(text.to_owned()))?;
        if (SIZE_MIN..=SIZE_MAX).contains(&size) {
            Ok(Self::Fixed(size))
        } else {
            Err(StreamError::Size(text.to_owned()))
        }
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("IMIX"),
            Self::TunnelImix => f.write_str("tunnel-IMIX"),
        }
    }
}

/// A stream of UDP datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stream {
    /// Addresses.
    pub path: Path,
    /// Number of flows, `1..=65536`; frames take them in turn.
    pub flows: u32,
    /// Frame sizes.
    pub sizes: Sizes,
    /// UDP source port of flow 0; the next flows use the ports that follow, up to 16,384 of them.
    pub source_port: u16,
    /// UDP destination port of all flows.
    pub destination_port: u16,
}

/// Why a stream cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Size out of range or unreadable.
    #[error("frame size {0:?} is neither imix nor a number of bytes between 64 and 1518 (FCS included)")]
    Size(String),
    /// Number of flows out of range.
    #[error("{0} flows: between 1 and 65536 are possible")]
    Flows(u32),
    /// Source and destination are of two families.
    #[error("source {from} and destination {to} are of two address families")]
    Family {
        /// Source address.
        from: IpAddr,
        /// Destination address.
        to: IpAddr,
    },
    /// The flows' ports do not fit above the first.
    #[error("source ports from {0} on do not fit under 65536")]
    Ports(u16),
    /// The flows' addresses do not fit above the first.
    #[error("source addresses from {0} on do not fit into its last 16 bits")]
    Addresses(IpAddr),
}

impl Stream {
    /// A stream of one flow of 64-byte frames, from port 20,000 to the discard port (RFC 863).
    pub const fn new(path: Path) -> Self {
        Self { path, flows: 1, sizes: Sizes::Fixed(SIZE_MIN), source_port: 20_000, destination_port: 9 }
    }

    /// Builds the templates.
    ///
    /// # Errors
    /// [`StreamError`] names the first field that does not fit.
    pub fn compile(&self) -> Result<Frames, StreamError> {
        if self.flows == 0 || self.flows > FLOWS_MAX {
            return Err(StreamError::Flows(self.flows));
        }
        if u32::from(self.source_port) + self.flows.min(PORTS_PER_ADDRESS) > 65_536 {
            return Err(StreamError::Ports(self.source_port));
        }
        let low = match self.path.source {
            IpAddr::V4(a) => u32::from(a) & 0xffff,
            IpAddr::V6(a) => u32::from(a.segments()[7]),
        };
        if low + (self.flows - 1) / PORTS_PER_ADDRESS > 0xffff {
            return Err(StreamError::Addresses(self.path.source));
        }
        let sizes = match &self.sizes {
            Sizes::Fixed(size) => std::slice::from_ref(size),
            Sizes::Imix => &IMIX[..],
            Sizes::TunnelImix => &TUNNEL_IMIX[..],
        };
        let templates = sizes.iter().map(|&size| self.template(size, low)).collect::<Result<Vec<_>, _>>()?;
        Ok(Frames { schedule: Schedule { flows: self.flows, slots: templates.len() as u32 }, templates })
    }

    fn template(&self, size: u16, source_low: u32) -> Result<Template, StreamError> {
        if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
            return Err(StreamError::Size(size.to_string()));
        }
        let ipv6 = self.path.destination.is_ipv6();
        let at = if ipv6 { OFFSETS_V6 } else { OFFSETS_V4 };
        let frame_len = usize::from(size - FCS_LEN).max(at.stamp + STAMP_LEN);
        let udp_len = (frame_len - (at.stamp - UDP_LEN)) as u16;
        let mut head = [0u8; HEAD_LEN];
        head[..6].copy_from_slice(&self.path.next_hop_mac);
        head[6..12].copy_from_slice(&self.path.source_mac);
        let (mut udp_sum, mut ip_sum) = (0, 0);
        match (self.path.source, self.path.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                head[12..14].copy_from_slice(&[0x08, 0x00]);
                head[14] = 0x45;
                head[16..18].copy_from_slice(&((frame_len - ETHERNET_LEN) as u16).to_be_bytes());
                head[20] = 0x40; // don't fragment (RFC 791 §3.1)
                head[22] = TTL;
                head[23] = PROTOCOL_UDP;
                head[26..28].copy_from_slice(&source.octets()[..2]);
                head[30..34].copy_from_slice(&destination.octets());
                ip_sum = words(&head[14..34]);
                udp_sum += words(&head[26..34]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                head[12..14].copy_from_slice(&[0x86, 0xdd]);
                head[14] = 0x60;
                head[18..20].copy_from_slice(&udp_len.to_be_bytes());
                head[20] = PROTOCOL_UDP;
                head[21] = TTL;
                head[22..36].copy_from_slice(&source.octets()[..14]);
                head[38..54].copy_from_slice(&destination.octets());
                udp_sum += words(&head[22..54]);
            }
            (from, to) => return Err(StreamError::Family { from, to }),
        }
        let udp = at.stamp - UDP_LEN;
        head[udp + 2..udp + 4].copy_from_slice(&self.destination_port.to_be_bytes());
        head[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        head[at.stamp..at.stamp + 4].copy_from_slice(&MAGIC.to_be_bytes());
        // Pseudo-header: length and protocol, beside the addresses above (RFC 768, RFC 8200 §8.1). The rest of the payload is zero.
        udp_sum += u32::from(udp_len) + u32::from(PROTOCOL_UDP) + words(&head[udp..at.stamp + 4]);
        Ok(Template {
            head: std::array::from_fn(|i| u64::from_ne_bytes(std::array::from_fn(|j| head[i * 8 + j]))),
            frame_len: frame_len as u32,
            ipv6: u32::from(ipv6),
            udp_sum,
            ip_sum,
            source_low,
            source_port: u32::from(self.source_port),
        })
    }
}

/// Sum of big-endian 16-bit words. At most 40 of them here, so 32 bits hold it.
fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
}

/// A stream ready to be sent.
#[derive(Clone, Debug)]
pub struct Frames {
    pub(crate) schedule: Schedule,
    pub(crate) templates: Vec<Template>,
}

impl Frames {
    /// Longest frame in bytes, without FCS.
    pub fn len_max(&self) -> usize {
        self.templates.iter().map(|t| t.frame_len as usize).max().unwrap_or(0)
    }

    /// Writes frame `n` with a time stamp into `buffer` and returns its length, without FCS.
    ///
    /// # Panics
    /// When `buffer` is shorter than [`Self::len_max`].
    pub fn write(&self, n: u64, time_ns: u64, buffer: &mut [u8]) -> usize {
        let place = self.schedule.place(n);
        let template = &self.templates[place.slot as usize];
        let len = template.frame_len as usize;
        let frame = &mut buffer[..len];
        let at = if template.ipv6 == 0 { OFFSETS_V4 } else { OFFSETS_V6 };
        let head_len = at.stamp + STAMP_LEN;
        for (to, from) in frame[..head_len].iter_mut().zip(template.head.iter().flat_map(|w| w.to_ne_bytes())) {
            *to = from;
        }
        frame[head_len..].fill(0);
        template
            .fill(at, place, time_ns, |offset, word| frame[offset..offset + 2].copy_from_slice(&word.to_be_bytes()));
        len
    }

    /// Frame `n` with a time stamp, without FCS.
    pub fn frame(&self, n: u64, time_ns: u64) -> Vec<u8> {
        let mut buffer = vec![0; self.len_max()];
        let len = self.write(n, time_ns, &mut buffer);
        buffer.truncate(len);
        buffer
    }
}

/// Whether the checksums of a generated frame hold: the slow and obvious way, for tests and for whoever doubts the fast one.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let ipv6 = frame[12..14] == [0x86, 0xdd];
    let (network, udp) = if ipv6 { (22..54, 54) } else { (26..34, 34) };
    let udp_len = (frame.len() - udp) as u64;
    let sum = u64::from(words(&frame[network])) + u64::from(words(&frame[udp..])) + udp_len + u64::from(PROTOCOL_UDP);
    let stored = &frame[udp + 6..udp + 8];
    fold(sum) == 0xffff && stored != [0, 0] && (ipv6 || fold(u64::from(words(&frame[14..34]))) == 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_abi::address::Address;
    use weir_abi::frame::parse_ethernet;

    use super::*;

    fn path(v6: bool) -> Path {
        let (source, destination) = if v6 { ("fd01::2", "fd02::2") } else { ("10.1.0.2", "10.2.0.2") };
        Path {
            source_mac: [2, 0, 0, 0, 0, 1],
            next_hop_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn a_64_byte_frame_has_60_bytes_on_a_veth_and_ends_with_the_stamp() {
        let frame = Stream::new(path(false)).compile().unwrap().frame(7, 0x0102_0304_0506_0708);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[42..], [0x57, 0x65, 0x49, 0x72, 0, 0, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn flows_take_ports_first_and_then_addresses() {
        let stream = Stream { flows: PORTS_PER_ADDRESS + 1, ..Stream::new(path(false)) };
        let frames = stream.compile().unwrap();
        let parse = |n| parse_ethernet(&frames.frame(n, 0)[..]).unwrap();
        assert_eq!((parse(0).source, parse(0).source_port), (Address::v4(0x0a01_0002), 20_000));
        let last = parse(u64::from(PORTS_PER_ADDRESS) - 1);
        assert_eq!((last.source, last.source_port), (Address::v4(0x0a01_0002), 20_000 + 16_383));
        let next = parse(u64::from(PORTS_PER_ADDRESS));
        assert_eq!((next.source, next.source_port), (Address::v4(0x0a01_0003), 20_000));
    }

    #[test]
    fn imix_is_seven_four_one_in_every_twelve_frames_of_a_flow() {
        for flows in [1, 5, 12] {
            let frames = Stream { flows, sizes: Sizes::Imix, ..Stream::new(path(false)) }.compile().unwrap();
            for flow in 0..u64::from(flows) {
                let count =
                    |len| (0..144).filter(|i| frames.frame(flow + i * u64::from(flows), 0).len() == len).count();
                assert_eq!((count(60), count(590), count(1514)), (84, 48, 12), "flow {flow} of {flows}");
            }
        }
    }

    #[test]
    fn limits_are_kept_at_the_limit_and_one_beyond() {
        let base = Stream::new(path(false));
        assert!(Stream { flows: FLOWS_MAX, ..base }.compile().is_ok());
        assert_eq!(Stream { flows: FLOWS_MAX + 1, ..base }.compile().err(), Some(StreamError::Flows(FLOWS_MAX + 1)));
        assert_eq!(Stream { flows: 0, ..base }.compile().err(), Some(StreamError::Flows(0)));
        assert!(Stream { source_port: 65_535, ..base }.compile().is_ok());
        assert_eq!(Stream { source_port: 65_535, flows: 2, ..base }.compile().err(), Some(StreamError::Ports(65_535)));
        let high = Path { source: "10.1.255.255".parse().unwrap(), ..path(false) };
        assert!(Stream { flows: PORTS_PER_ADDRESS, path: high, ..base }.compile().is_ok());
        assert!(Stream { flows: PORTS_PER_ADDRESS + 1, path: high, ..base }.compile().is_err());
        for (text, ok) in [("63", false), ("64", true), ("1518", true), ("1519", false), ("imix", true), ("x", false)] {
            assert_eq!(text.parse::<Sizes>().is_ok(), ok, "{text}");
        }
        let mixed = Path { destination: "fd02::2".parse().unwrap(), ..path(false) };
        assert!(matches!(Stream::new(mixed).compile(), Err(StreamError::Family { .. })));
    }

    proptest! {
        #[test]
        fn every_frame_parses_and_its_checksums_hold(
            v6: bool, size in SIZE_MIN..=SIZE_MAX, flows in 1..=FLOWS_MAX, n in 0..u64::MAX / 2, time: u64,
        ) {
            let stream = Stream { flows, sizes: Sizes::Fixed(size), ..Stream::new(path(v6)) };
            let frame = stream.compile().unwrap().frame(n, time);
            let found = parse_ethernet(&frame[..]).unwrap();
            prop_assert!(checksums_hold(&frame));
            prop_assert!(!found.length_mismatch);
            prop_assert_eq!(found.payload_offset() + found.payload_len, frame.len());
            prop_assert_eq!(frame.len(), usize::from(size - FCS_LEN).max(if v6 { 80 } else { 60 }));
            let mut broken = frame;
            broken[found.payload_offset() + 9] ^= 1;
            prop_assert!(!checksums_hold(&broken));
        }
    }
}
