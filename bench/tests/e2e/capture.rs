//! What crosses a link, as tcpdump sees it.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use weir_abi::cursor::Bytes;
use weir_abi::wire::DataHeader;
use weir_bench::gateway::PORT;
use weir_bench::rig::{Namespace, Rig};
use weir_bench::sys::signal;

use crate::support::eventually;

const PCAP_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
const ETHERNET_LEN: usize = 14;

/// A running tcpdump on one interface.
pub(crate) struct Capture {
    child: Child,
    directory: PathBuf,
}

/// One frame as far as it was captured.
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
}

/// What a frame on a WAN may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Arp,
    /// Neighbour discovery (RFC 4861) and multicast listener reports (RFC 3810), which the kernel sends for its own addresses.
    LinkLocalIcmpv6,
    /// What the kernel answers to a datagram of ours while nobody listens. It quotes the datagram, sealed as it is, of this source.
    PortUnreachable(IpAddr),
    /// One of ours: UDP from and to our port, first payload byte 0x20..=0x3f. Source address, and the header where it is data.
    Overlay(IpAddr, Option<DataHeader>),
    /// QUIC from or to our port, since one who joins has none of that number yet: its fixed bit is set (RFC 9443, RFC 9000 §17). Source
    /// address.
    Quic(IpAddr),
}

impl Capture {
    /// Starts to capture; returns once tcpdump says that it listens. The head of a frame is enough for most.
    pub(crate) fn start(host: &Namespace, interface: &str) -> Self {
        Self::up_to(host, interface, 160)
    }

    /// The same, with so many bytes of each frame.
    pub(crate) fn up_to(host: &Namespace, interface: &str, len: u32) -> Self {
        let directory = std::env::temp_dir().join(format!("{}-capture-{interface}", host.name()));
        fs::create_dir_all(&directory).unwrap();
        let said = File::create(directory.join("said")).unwrap();
        let child = host
            .command("tcpdump")
            // A large ring loses none, and immediate mode leaves none in a block that is not full.
            .args([
                "-i",
                interface,
                "-n",
                "-p",
                "-U",
                "--immediate-mode",
                "-B",
                "65536",
                "-s",
                &len.to_string(),
                "-Z",
                "root",
                "-w",
            ])
            .arg(directory.join("pcap"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let capture = Self { child, directory };
        let listening = || capture.said().contains("listening on");
        assert!(eventually(Duration::from_secs(5), listening), "{}", capture.said());
        capture
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.join("said")).unwrap()
    }

    /// Ends the capture and returns its frames. All of them: a capture that lost some proves nothing and panics.
    pub(crate) fn stop(mut self) -> Vec<Frame> {
        // What was sent a moment ago may not be in tcpdump's hands yet.
        std::thread::sleep(Duration::from_millis(200));
        signal::terminate(self.child.id()).unwrap();
        self.child.wait().unwrap();
        let said = self.said();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        parse(&fs::read(self.directory.join("pcap")).unwrap())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn parse(pcap: &[u8]) -> Vec<Frame> {
    let mut rest = &pcap[PCAP_HEADER_LEN..];
    let mut frames = Vec::new();
    while rest.len() >= RECORD_HEADER_LEN {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let end = RECORD_HEADER_LEN + word(8) as usize;
        frames.push(Frame { bytes: rest[RECORD_HEADER_LEN..end].to_vec() });
        rest = &rest[end..];
    }
    frames
}

impl Frame {
    /// What it is, or `None` for anything that must not cross a WAN.
    pub(crate) fn seen(&self) -> Option<Seen> {
        let bytes = self.bytes.as_slice();
        match bytes.u16(12)? {
            0x0806 => Some(Seen::Arp),
            0x0800 | 0x86dd => packet_seen(&bytes[ETHERNET_LEN..]),
            _ => None,
        }
    }

    /// Source port, destination port and data header of a datagram over IPv4 to any port.
    pub(crate) fn datagram(&self) -> Option<(u16, u16, DataHeader)> {
        let bytes = self.bytes.as_slice();
        let packet = bytes.get(ETHERNET_LEN..).filter(|_| bytes.u16(12) == Some(0x0800))?;
        let udp = packet.get(usize::from(packet.u8(0)? & 0xf) * 4..).filter(|_| packet.u8(9) == Some(17))?;
        Some((udp.u16(0)?, udp.u16(2)?, DataHeader::parse(udp.get(8..)?).ok()?))
    }

    /// Addresses and payload of a datagram over IPv4 from or to our port, as far as it was captured.
    pub(crate) fn payload(&self) -> Option<(IpAddr, IpAddr, &[u8])> {
        let bytes = self.bytes.as_slice();
        let packet = bytes.get(ETHERNET_LEN..).filter(|_| bytes.u16(12) == Some(0x0800))?;
        let udp = packet.get(usize::from(packet.u8(0)? & 0xf) * 4..).filter(|_| packet.u8(9) == Some(17))?;
        let [from, to] = [packet.array::<4>(12)?, packet.array::<4>(16)?].map(IpAddr::from);
        let ours = udp.u16(0)? == PORT || udp.u16(2)? == PORT;
        // The UDP length, since short frames are padded.
        udp.get(8..usize::from(udp.u16(4)?)).filter(|_| ours).map(|payload| (from, to, payload))
    }

    /// Whether these bytes stand anywhere in the frame.
    pub(crate) fn contains(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len()).any(|window| window == needle)
    }
}

fn packet_seen(packet: &[u8]) -> Option<Seen> {
    let (next, at, source) = match packet.u8(0)? >> 4 {
        4 => (packet.u8(9)?, usize::from(packet.u8(0)? & 0xf) * 4, IpAddr::from(packet.array::<4>(12)?)),
        6 => (packet.u8(6)?, 40, IpAddr::from(packet.array::<16>(8)?)),
        _ => return None,
    };
    match (next, packet.u8(at)?) {
        (1, 3) | (58, 1) => match packet_seen(packet.get(at + 8..)?)? {
            Seen::Overlay(source, _) | Seen::Quic(source) => Some(Seen::PortUnreachable(source)),
            _ => None,
        },
        // Neighbour and router discovery; listener reports come behind a hop-by-hop header with their router alert.
        (58, 133..=137) => Some(Seen::LinkLocalIcmpv6),
        (0, 58) if packet.u8(at + 8)? == 143 => Some(Seen::LinkLocalIcmpv6),
        (17, _) => {
            let ours = [packet.u16(at)?, packet.u16(at + 2)?].map(|port| port == PORT);
            let payload = packet.get(at + 8..)?;
            match (payload.u8(0)?, ours) {
                // A control plane's own, which has none of that number either while it joins.
                (0x22, [true, _] | [_, true]) => Some(Seen::Overlay(source, None)),
                (0x20..=0x3f, [true, true]) => Some(Seen::Overlay(source, DataHeader::parse(payload).ok())),
                (0x40..=0x7f | 0xc0..=0xff, [true, _] | [_, true]) => Some(Seen::Quic(source)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Asserts that nothing but ours and the link's own business was captured, and returns the data headers with their senders.
pub(crate) fn only_ours(rig: &Rig, frames: &[Frame]) -> Vec<(IpAddr, DataHeader)> {
    let wans: Vec<_> =
        [rig.g1(), rig.g2()].into_iter().filter_map(|g| g.wan).flat_map(|w| [w.v4.into(), w.v6.into()]).collect();
    let mut headers = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        match frame.seen() {
            Some(Seen::Overlay(source, header)) => {
                assert!(wans.contains(&source), "frame {number} comes from {source}");
                headers.extend(header.map(|header| (source, header)));
            }
            Some(Seen::PortUnreachable(quoted)) => assert!(wans.contains(&quoted), "frame {number} quotes {quoted}"),
            Some(Seen::Arp | Seen::LinkLocalIcmpv6) => {}
            // No control plane runs beside these.
            Some(Seen::Quic(_)) | None => panic!("frame {number} has no business on a WAN: {:02x?}", frame.bytes),
        }
    }
    headers
}

/// How the addresses of a mesh's switch's own ports begin. It has a kernel of its own, which looks for others that listen to multicast.
const SWITCH_MAC: [u8; 4] = [0x02, 0x57, 0x65, 0x02];

/// Asserts that nothing but sealed datagrams, QUIC and the link's own business was captured at a port of a mesh's switch, and that nowhere
/// `inner` stands in clear. Returns the data headers with their senders, and how many frames were QUIC.
pub(crate) fn only_sealed(frames: &[Frame], inner: &[u8]) -> (Vec<(IpAddr, DataHeader)>, usize) {
    let (mut headers, mut quic) = (Vec::new(), 0);
    for (number, frame) in frames.iter().enumerate().filter(|(_, frame)| !frame.bytes[6..].starts_with(&SWITCH_MAC)) {
        match frame.seen() {
            Some(Seen::Overlay(source, header)) => headers.extend(header.map(|header| (source, header))),
            Some(Seen::Quic(_)) => quic += 1,
            Some(Seen::Arp | Seen::LinkLocalIcmpv6 | Seen::PortUnreachable(_)) => {}
            None => panic!("frame {number} has no business on a WAN: {:02x?}", frame.bytes),
        }
        assert!(!frame.contains(inner), "frame {number}: a packet crossed the WAN in clear");
    }
    (headers, quic)
}
