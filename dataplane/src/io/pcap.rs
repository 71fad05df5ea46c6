//! Captures: wrappers that write what passes a port to a file, and a port that plays a file back.
//!
//! The file is classic pcap (draft-ietf-opsawg-pcap) of link type `RAW` (101): each record is an IP packet. On the WAN side a port sees
//! UDP payloads only, so the headers are made up from the addresses it knows; a train is written as the datagrams that it is. So
//! `tcpdump -r` and `tshark -r` read both sides.
//!
//! ```text
//!   file header 24 ‖ record header 16 ‖ IP packet ‖ record header 16 ‖ IP packet …
//!                                       WAN: IPv4 20 or IPv6 40 ‖ UDP 8 ‖ payload
//! ```

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use weir_abi::drop::DropReason;

use crate::engine::port::{BURST_LEN, RxBurst, RxMeta, RxPort, TxMeta, TxPort, TxSink};

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const LINKTYPE_RAW: u32 = 101;
const FILE_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
const UDP_HEADER_LEN: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// Longest record written or read, the `snaplen` that tcpdump uses.
const RECORD_LEN_MAX: usize = 262_144;

/// What the frames of a port are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// IP packets, written as they are.
    Local,
    /// UDP payloads, written with made-up headers; the address is our own.
    Underlay(SocketAddr),
}

struct Sink<W> {
    out: W,
    record: Vec<u8>,
    failure: Option<io::Error>,
}

/// A capture file. Clones write to the same file, so both halves of a port, or all ports of a worker, can share it.
pub struct Capture<W>(Rc<RefCell<Sink<W>>>);

impl<W> Clone for Capture<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: Write> Capture<W> {
    /// Begins a capture by writing the file's header.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(FILE_HEADER_LEN);
        header.extend(MAGIC_NANOS.to_le_bytes());
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend((RECORD_LEN_MAX as u32).to_le_bytes());
        header.extend(LINKTYPE_RAW.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self(Rc::new(RefCell::new(Sink { out, record: Vec::new(), failure: None }))))
    }

    /// Writes what is buffered and tells of the first failure. A capture never disturbs the port: after a failure it writes no more.
    ///
    /// # Errors
    /// The first failure since the beginning.
    pub fn finish(&self) -> io::Result<()> {
        let mut sink = self.0.borrow_mut();
        match sink.failure.take() {
            Some(failure) => Err(failure),
            None => sink.out.flush(),
        }
    }

    /// Writes one frame: `from` and `to` matter on the underlay only.
    fn write(&self, side: Side, frame: &[u8], segment: u16, peer: Option<SocketAddr>, outgoing: bool) {
        let mut sink = self.0.borrow_mut();
        match (side, peer) {
            (Side::Local, _) => sink.record(|out| out.extend_from_slice(frame)),
            (Side::Underlay(own), Some(peer)) => {
                let (from, to) = if outgoing { (own, peer) } else { (peer, own) };
                let step = if segment == 0 { frame.len().max(1) } else { segment.into() };
                let empty = frame.is_empty().then_some(frame);
                for payload in empty.into_iter().chain(frame.chunks(step)) {
                    sink.record(|out| udp_packet(out, from, to, payload));
                }
            }
            (Side::Underlay(_), None) => {}
        }
    }
}

impl<W: Write> Sink<W> {
    fn record(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.failure.is_some() {
            return;
        }
        self.record.clear();
        self.record.resize(RECORD_HEADER_LEN, 0);
        fill(&mut self.record);
        let len = self.record.len() - RECORD_HEADER_LEN;
        let kept = len.min(RECORD_LEN_MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fields = [now.as_secs() as u32, now.subsec_nanos(), kept as u32, len as u32];
        for (at, field) in self.record[..RECORD_HEADER_LEN].chunks_exact_mut(4).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        self.failure = self.out.write_all(&self.record[..RECORD_HEADER_LEN + kept]).err();
    }
}

/// An IP packet that carries `payload` by UDP. Addresses of unlike families become IPv6, the IPv4 one mapped (RFC 4291 §2.5.5.2).
fn udp_packet(out: &mut Vec<u8>, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let start = out.len();
    let udp_len = (UDP_HEADER_LEN + payload.len()).min(usize::from(u16::MAX)) as u16;
    let pseudo = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend([0x45, 0]);
            out.extend(udp_len.saturating_add(20).to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
            let checksum = !folded(sum(&out[start..]));
            out[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
            sum(&out[start + 12..start + 20])
        }
        (from, to) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend(udp_len.to_be_bytes());
            out.extend([PROTOCOL_UDP, 64]);
            for ip in [from, to] {
                out.extend(match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                });
            }
            sum(&out[start + 8..start + 40])
        }
    };
    let header = out.len();
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out.extend(udp_len.to_be_bytes());
    out.extend([0; 2]);
    out.extend(payload);
    let pseudo = pseudo + u64::from(PROTOCOL_UDP) + u64::from(udp_len);
    // A checksum that comes out as zero is sent as all ones (RFC 768).
    let checksum = match !folded(pseudo + sum(&out[header..])) {
        0 => u16::MAX,
        checksum => checksum,
    };
    out[header + 6..header + 8].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of the big-endian words, not folded.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A receiving half whose frames are captured before the engine sees them.
pub struct CaptureRx<P, W> {
    port: P,
    side: Side,
    capture: Capture<W>,
}

impl<P: RxPort, W: Write> CaptureRx<P, W> {
    /// Captures what `port` receives.
    pub fn new(port: P, side: Side, capture: Capture<W>) -> Self {
        Self { port, side, capture }
    }

    /// The port behind.
    pub fn inner(&mut self) -> &mut P {
        &mut self.port
    }
}

impl<P: RxPort, W: Write> RxBurst for CaptureRx<P, W> {
    fn len(&self) -> usize {
        self.port.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        self.port.frame(i)
    }
}

impl<P: RxPort, W: Write> RxPort for CaptureRx<P, W> {
    fn receive(&mut self) -> io::Result<usize> {
        let n = self.port.receive()?;
        for i in 0..n {
            let (frame, meta) = self.port.frame(i);
            self.capture.write(self.side, frame, meta.segment, meta.source, false);
        }
        Ok(n)
    }

    fn take_dropped(&mut self) -> Option<(DropReason, u64)> {
        self.port.take_dropped()
    }
}

/// A sending half whose frames are captured when they are committed.
pub struct CaptureTx<P, W> {
    port: P,
    side: Side,
    capture: Capture<W>,
    scratch: Vec<u8>,
}

impl<P: TxPort, W: Write> CaptureTx<P, W> {
    /// Captures what goes to `port`.
    pub fn new(port: P, side: Side, capture: Capture<W>) -> Self {
        Self { port, side, capture, scratch: Vec::new() }
    }

    /// The port behind.
    pub fn inner(&mut self) -> &mut P {
        &mut self.port
    }
}

impl<P: TxPort, W: Write> TxSink for CaptureTx<P, W> {
    // The port's own slot cannot be read again once it is lent, so the engine writes to one of ours.
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        let len = self.port.slot(len)?.len();
        self.scratch.resize(len, 0);
        Some(&mut self.scratch)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        let frame = &self.scratch[..len];
        // A slot that was lent is lent again as long as nothing was committed.
        let Some(slot) = self.port.slot(len) else { return };
        slot[..len].copy_from_slice(frame);
        self.capture.write(self.side, frame, meta.segment, meta.destination, true);
        self.port.commit(len, meta);
    }

    fn takes_offloads(&self) -> bool {
        self.port.takes_offloads()
    }
}

impl<P: TxPort, W: Write> TxPort for CaptureTx<P, W> {
    fn flush(&mut self) -> io::Result<usize> {
        self.port.flush()
    }

    fn room(&self) -> usize {
        self.port.room()
    }

    fn take_failed(&mut self) -> u64 {
        self.port.take_failed()
    }
}

/// Why a capture cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is no classic pcap.
    #[error(
        "this is no pcap file (its first bytes are {magic:#010x}); pcapng can be turned into one with `editcap -F pcap`"
    )]
    NotPcap {
        /// What stands where the magic number should.
        magic: u32,
    },
    /// Its records are not IP packets.
    #[error("the file's link type is {link_type}, but only 101 (raw IP) is played")]
    LinkType {
        /// The link type.
        link_type: u32,
    },
    /// A record is longer than any packet.
    #[error("record {record} claims {len} bytes, more than the {RECORD_LEN_MAX} allowed: the file is damaged")]
    Record {
        /// Which record, from zero.
        record: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// It cannot be read, or ends in the middle of a record.
    #[error("reading the capture: {0}")]
    Io(#[from] io::Error),
}

/// A receiving half that plays a capture, a burst per call, and then says that nothing waits.
pub struct Replay {
    frames: std::vec::IntoIter<(Vec<u8>, RxMeta)>,
    burst: Vec<(Vec<u8>, RxMeta)>,
}

impl Replay {
    /// Reads a whole capture. For [`Side::Local`] the frames are its packets; for [`Side::Underlay`] they are the payloads of its UDP
    /// packets to that address, with their senders, and the rest is left out.
    ///
    /// # Errors
    /// When it is no pcap of raw IP packets, is damaged, or cannot be read.
    pub fn new(mut file: impl Read, side: Side) -> Result<Self, ReplayError> {
        let mut header = [0; FILE_HEADER_LEN];
        file.read_exact(&mut header)?;
        let word = |bytes: &[u8], at: usize, swapped: bool| {
            let word = bytes[at..at + 4].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
            if swapped { word.swap_bytes() } else { word }
        };
        let magic = word(&header, 0, false);
        let swapped = match magic {
            MAGIC_MICROS | MAGIC_NANOS => false,
            magic if [MAGIC_MICROS, MAGIC_NANOS].contains(&magic.swap_bytes()) => true,
            magic => return Err(ReplayError::NotPcap { magic }),
        };
        // The upper bits may hold the length of a frame check sequence.
        let link_type = word(&header, 20, swapped) & 0xffff;
        if link_type != LINKTYPE_RAW {
            return Err(ReplayError::LinkType { link_type });
        }
        let mut frames = Vec::new();
        let mut record = [0; RECORD_HEADER_LEN];
        for number in 0.. {
            match file.read(&mut record[..1])? {
                0 => break,
                _ => file.read_exact(&mut record[1..])?,
            }
            let (len, original_len) = (word(&record, 8, swapped) as usize, word(&record, 12, swapped) as usize);
            if len > RECORD_LEN_MAX {
                return Err(ReplayError::Record { record: number, len });
            }
            let mut packet = vec![0; len];
            file.read_exact(&mut packet)?;
            let truncated = len < original_len;
            match side {
                Side::Local => frames.push((packet, RxMeta { truncated, ..RxMeta::default() })),
                Side::Underlay(own) => {
                    if let Some((from, to, payload)) = udp_payload(&packet).filter(|(_, to, _)| *to == own) {
                        debug_assert_eq!(to, own);
                        frames.push((payload.to_vec(), RxMeta { source: Some(from), truncated, ..RxMeta::default() }));
                    }
                }
            }
        }
        Ok(Self { frames: frames.into_iter(), burst: Vec::with_capacity(BURST_LEN) })
    }

    /// Frames not played yet.
    pub fn left(&self) -> usize {
        self.frames.len()
    }
}

/// Sender, receiver and payload of a UDP packet without IPv6 extension headers.
fn udp_payload(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let (from, to, udp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == PROTOCOL_UDP => {
            let ip = |at: usize| packet.get(at..)?.first_chunk::<4>().map(|ip| Ipv4Addr::from(*ip).into());
            (ip(12)?, ip(16)?, packet.get(usize::from(packet[0] & 0xf) * 4..)?)
        }
        6 if *packet.get(6)? == PROTOCOL_UDP => {
            let ip = |at: usize| packet.get(at..)?.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into());
            (ip(8)?, ip(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let word = |at: usize| udp.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word));
    let end = usize::from(word(4)?).min(udp.len());
    Some((SocketAddr::new(from, word(0)?), SocketAddr::new(to, word(2)?), udp.get(UDP_HEADER_LEN..end)?))
}

impl RxBurst for Replay {
    fn len(&self) -> usize {
        self.burst.len()
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (bytes, meta) = &mut self.burst[i];
        (bytes, *meta)
    }
}

impl RxPort for Replay {
    fn receive(&mut self) -> io::Result<usize> {
        self.burst.clear();
        self.burst.extend(self.frames.by_ref().take(BURST_LEN));
        Ok(self.burst.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::{MemoryConfig, MemoryPort, pair};

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What a port that sent and received this would have written.
    fn capture(side: Side, peer: SocketAddr, frames: &[(&[u8], u16)]) -> Vec<u8> {
        let (a, b) = pair(MemoryConfig::default(), Some(peer), None);
        let capture = Capture::new(Vec::new()).unwrap();
        let mut tx = CaptureTx::new(b.tx, side, capture.clone());
        let mut rx = CaptureRx::new(b.rx, side, capture.clone());
        let MemoryPort { tx: mut peer_tx, rx: mut peer_rx } = a;
        for (bytes, segment) in frames {
            for tx in [&mut peer_tx as &mut dyn TxPort, &mut tx] {
                tx.slot(bytes.len()).unwrap()[..bytes.len()].copy_from_slice(bytes);
                tx.commit(bytes.len(), TxMeta { destination: Some(peer), segment: *segment, ..TxMeta::default() });
                assert_eq!(tx.flush().unwrap(), 0);
            }
            assert_eq!((rx.receive().unwrap(), peer_rx.receive().unwrap()), (1, 1));
            assert_eq!((&*rx.frame(0).0, &*peer_rx.frame(0).0), (*bytes, *bytes), "the port's frames are untouched");
        }
        capture.finish().unwrap();
        capture.0.borrow().out.clone()
    }

    fn replay(file: &[u8], side: Side) -> Vec<(Vec<u8>, RxMeta)> {
        let mut port = Replay::new(file, side).unwrap();
        let mut frames = Vec::new();
        while port.receive().unwrap() > 0 {
            for i in 0..port.len() {
                let (bytes, meta) = port.frame(i);
                frames.push((bytes.to_vec(), meta));
            }
        }
        frames
    }

    #[test]
    fn local_packets_are_played_back_as_written() {
        let file = capture(Side::Local, address("192.0.2.1:1"), &[(&[0x45; 40], 0), (&[0x60; 1400], 0)]);
        let lens: Vec<_> = replay(&file, Side::Local).iter().map(|(bytes, meta)| (bytes.len(), *meta)).collect();
        assert_eq!(lens, [40, 40, 1400, 1400].map(|len| (len, RxMeta::default())));
    }

    #[test]
    fn underlay_datagrams_are_played_back_with_their_senders() {
        for (own, peer) in [("192.0.2.1:4646", "198.51.100.7:999"), ("[2001:db8::1]:4646", "[2001:db8::2]:999")] {
            let (own, peer) = (address(own), address(peer));
            let file = capture(Side::Underlay(own), peer, &[(b"aabbc", 2), (b"", 0)]);
            let received: Vec<_> = replay(&file, Side::Underlay(own));
            let meta = RxMeta { source: Some(peer), ..RxMeta::default() };
            assert_eq!(received, [b"aa".to_vec(), b"bb".to_vec(), b"c".to_vec(), vec![]].map(|bytes| (bytes, meta)));
            assert_eq!(replay(&file, Side::Underlay(peer)).len(), 4, "what we sent went to the peer");
        }
    }

    #[test]
    fn tcpdump_reads_what_is_written() {
        let mut file =
            capture(Side::Underlay(address("192.0.2.1:4646")), address("198.51.100.7:999"), &[(&[1; 2500], 1000)]);
        let six = capture(Side::Underlay(address("[2001:db8::1]:4646")), address("[2001:db8::2]:999"), &[(&[1; 7], 0)]);
        file.extend(&six[FILE_HEADER_LEN..]);
        let path = std::env::temp_dir().join(format!("weir-pcap-test-{}.pcap", std::process::id()));
        std::fs::write(&path, file).unwrap();
        let run = std::process::Command::new("tcpdump").args(["-nvv", "-r"]).arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let run = run.expect("tcpdump runs: `apt-get install tcpdump`");
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("192.0.2.1.4646 > 198.51.100.7.999: [udp sum ok] UDP, length 1000"), 2, "{text}");
        assert_eq!(count("198.51.100.7.999 > 192.0.2.1.4646: [udp sum ok] UDP, length 500"), 1, "{text}");
        assert_eq!(count("2001:db8::1.4646 > 2001:db8::2.999: [udp sum ok] UDP, length 7"), 1, "{text}");
        assert_eq!(count("bad cksum") + count("bad udp cksum"), 0, "{text}");
    }

    #[test]
    fn swapped_and_microsecond_files_are_read() {
        let file = capture(Side::Local, address("192.0.2.1:1"), &[(&[0x45; 40], 0)]);
        let mut swapped = file.clone();
        for at in [0, 16, 20, 24, 28, 32, 36].into_iter().chain([80, 84, 88, 92]) {
            swapped[at..at + 4].reverse();
        }
        assert_eq!(replay(&swapped, Side::Local), replay(&file, Side::Local));
        let mut micros = file.clone();
        micros[..4].copy_from_slice(&MAGIC_MICROS.to_le_bytes());
        assert_eq!(replay(&micros, Side::Local), replay(&file, Side::Local));
    }

    #[test]
    fn damaged_files_are_refused() {
        let file = capture(Side::Local, address("192.0.2.1:1"), &[(&[0x45; 40], 0)]);
        let read = |file: &[u8]| Replay::new(file, Side::Local).err();
        for len in [0, 23, 25, 39, 41, file.len() - 1] {
            assert!(matches!(read(&file[..len]), Some(ReplayError::Io(_))), "{len}");
        }
        let with = |at: usize, value: u32| {
            let mut file = file.clone();
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
            read(&file)
        };
        assert!(matches!(with(0, 0x0a0d_0d0a), Some(ReplayError::NotPcap { magic: 0x0a0d_0d0a })));
        assert!(matches!(with(20, 1), Some(ReplayError::LinkType { link_type: 1 })));
        assert!(matches!(with(32, RECORD_LEN_MAX as u32 + 1), Some(ReplayError::Record { record: 0, .. })));
        assert!(matches!(with(32, RECORD_LEN_MAX as u32), Some(ReplayError::Io(_))));
    }

    #[test]
    fn a_failing_file_does_not_disturb_the_port() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes.len() == FILE_HEADER_LEN { Ok(bytes.len()) } else { Err(io::ErrorKind::StorageFull.into()) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (a, mut b) = pair(MemoryConfig::default(), None, None);
        let capture = Capture::new(Full).unwrap();
        let mut tx = CaptureTx::new(a.tx, Side::Local, capture.clone());
        tx.slot(3).unwrap();
        tx.commit(3, TxMeta::default());
        assert_eq!((tx.flush().unwrap(), b.rx.receive().unwrap()), (0, 1));
        assert_eq!(capture.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
