//! The ceiling of the approach: superpackets of a TUN carried in trains of a UDP socket, without encryption, sessions or routing.
//!
//! ```text
//!   TUN ── superpacket ──▶ segments ── one writev, UDP_SEGMENT ──▶ UDP ── one read, UDP_GRO ──▶ superpacket ──▶ TUN
//!
//!   segment:  0       4        8         12
//!             +-------+--------+---------+----------------------------+
//!             | id    | total  | offset  | up to 1440 bytes of packet |      little-endian; total and offset in bytes
//!             +-------+--------+---------+----------------------------+
//! ```
//!
//! A packet travels with its virtio header and is put together again as it was, so nothing is cut, checksummed or merged here. One thread
//! for each gateway. It is what a gateway could reach if everything between the two devices were free; it trusts what it receives only as
//! far as memory goes.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::rig::Host;
use crate::sys::{cpu, poll, tun, udp};
use crate::{Error, Result};

/// The TUN of each gateway.
pub const TUN: &str = "splice0";
const PORT: u16 = 4747;
const HEADER_LEN: usize = 12;
/// Payload of a segment: with the header it fills a WAN of 1500 bytes to 20 bytes less than IPv4 would allow, as for IPv6.
const CHUNK_LEN: usize = 1440;
const SEGMENT_LEN: usize = HEADER_LEN + CHUNK_LEN;
/// Segments of one train: what fits the longest UDP payload over IPv4, 65,507 bytes.
const TRAIN_SEGMENTS: usize = 65_507 / SEGMENT_LEN;
/// Longest packet with its virtio header.
const PACKET_LEN_MAX: usize = 65_535 + tun::VNET_HEADER_LEN;
/// Packets taken from one side before the other has its turn.
const TURN: usize = 64;
/// Socket buffers: some sixty trains.
const BUFFER_LEN: u32 = 4 << 20;

/// Two forwarders, until dropped.
pub struct Splice {
    forwarders: Vec<Forwarder>,
}

/// One thread, told to end by the other end of its socket being closed.
struct Forwarder {
    thread: Option<JoinHandle<io::Result<()>>>,
    stop: Option<UnixStream>,
    id: u32,
}

impl Splice {
    /// Starts a forwarder on each gateway. Its TUN has no addresses yet.
    ///
    /// # Errors
    /// [`Error::Io`] naming what the kernel refused.
    pub fn start(gateways: [&Host; 2]) -> Result<Self> {
        let mut forwarders = Vec::new();
        for (own, peer) in [(gateways[0], gateways[1]), (gateways[1], gateways[0])] {
            let failed = || Error::io(format!("cannot start the splice on {}", own.name()));
            let address = |host: &Host| host.wan.map(|wan| SocketAddr::new(wan.v4.into(), PORT));
            let (Some(own_address), Some(peer_address)) = (address(own), address(peer)) else {
                return Err(failed()(io::ErrorKind::AddrNotAvailable.into()));
            };
            let (device, socket) = own
                .enter(|| -> io::Result<_> {
                    let socket = UdpSocket::bind(own_address)?;
                    socket.connect(peer_address)?;
                    socket.set_nonblocking(true)?;
                    udp::set_segment(&socket, SEGMENT_LEN as u16)?;
                    udp::set_gro(&socket)?;
                    udp::set_buffers(&socket, BUFFER_LEN)?;
                    Ok((tun::open(TUN)?, File::from(OwnedFd::from(socket))))
                })?
                .map_err(failed())?;
            let (stop, stopped) = UnixStream::pair().map_err(failed())?;
            let (tell, told) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name("splice".to_owned())
                .spawn(move || {
                    // The receiver waits below; nobody else can have closed it.
                    let _ = tell.send(cpu::thread_id());
                    forward(device, socket, stopped)
                })
                .map_err(failed())?;
            let id = told.recv().unwrap_or_default();
            forwarders.push(Forwarder { thread: Some(thread), stop: Some(stop), id });
        }
        Ok(Self { forwarders })
    }

    /// Numbers of the two threads.
    pub fn threads(&self) -> Vec<u32> {
        self.forwarders.iter().map(|forwarder| forwarder.id).collect()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("weir-bench: the splice stopped early: {error}"),
            Some(Err(_)) => eprintln!("weir-bench: the splice panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn forward(mut device: File, mut socket: File, stopped: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; PACKET_LEN_MAX + 1];
    let mut assembly = Assembly::default();
    let mut id = 0u32;
    loop {
        let [stop, from_device, from_socket] = poll::readable([stopped.as_fd(), device.as_fd(), socket.as_fd()])?;
        if stop {
            return Ok(());
        }
        if from_device {
            for _ in 0..TURN {
                let Some(len) = took(device.read(&mut buffer))? else { break };
                id = id.wrapping_add(1);
                send(&mut socket, id, &buffer[..len])?;
            }
        }
        if from_socket {
            for _ in 0..TURN {
                let Some(len) = took(socket.read(&mut buffer))? else { break };
                assembly.take(&buffer[..len], |parts| took(device.write_vectored(parts)).map(drop))?;
            }
        }
    }
}

/// The outcome of a call on a device or socket that does not block: `None` when there was nothing, no room, or nobody at the other end.
/// What is lost here is lost as on any link.
fn took(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ECONNREFUSED | libc::EIO | libc::EINVAL | libc::EMSGSIZE) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// Sends a packet as one train, or two when it is longer than a train.
fn send(socket: &mut File, id: u32, packet: &[u8]) -> io::Result<()> {
    for (train, bytes) in packet.chunks(TRAIN_SEGMENTS * CHUNK_LEN).enumerate() {
        let headers: Vec<_> = (0..bytes.len().div_ceil(CHUNK_LEN))
            .map(|n| header(id, packet.len(), (train * TRAIN_SEGMENTS + n) * CHUNK_LEN))
            .collect();
        let mut parts = [IoSlice::new(&[]); 2 * TRAIN_SEGMENTS];
        for ((slots, header), chunk) in parts.chunks_mut(2).zip(&headers).zip(bytes.chunks(CHUNK_LEN)) {
            slots.copy_from_slice(&[IoSlice::new(header), IoSlice::new(chunk)]);
        }
        took(socket.write_vectored(&parts[..2 * headers.len()]))?;
    }
    Ok(())
}

fn header(id: u32, total: usize, offset: usize) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&id.to_le_bytes());
    header[4..8].copy_from_slice(&(total as u32).to_le_bytes());
    header[8..].copy_from_slice(&(offset as u32).to_le_bytes());
    header
}

/// A packet of which not all has come.
#[derive(Default)]
struct Assembly {
    id: u32,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Takes a train and writes the packets that are whole with it. A train that holds its packet whole is not copied.
    fn take(&mut self, train: &[u8], mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); TRAIN_SEGMENTS];
        let (mut count, mut held) = (0, 0);
        for segment in train.chunks(SEGMENT_LEN) {
            let Some((header, chunk)) = segment.split_at_checked(HEADER_LEN) else { continue };
            let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (id, total, offset) = (word(0), word(4) as usize, word(8) as usize);
            if offset == 0 {
                (count, held) = (0, 0);
                self.bytes.clear();
                self.id = id;
            }
            if id != self.id || offset != self.bytes.len() + held || offset + chunk.len() > total.min(PACKET_LEN_MAX) {
                continue;
            }
            match parts.get_mut(count) {
                Some(slot) if self.bytes.is_empty() => {
                    *slot = IoSlice::new(chunk);
                    (count, held) = (count + 1, held + chunk.len());
                }
                _ => self.bytes.extend_from_slice(chunk),
            }
            if self.bytes.len() + held == total {
                if self.bytes.is_empty() {
                    write(&parts[..count])?
                } else {
                    write(&[IoSlice::new(&self.bytes)])?
                }
                self.bytes.clear();
                (count, held) = (0, 0);
            }
        }
        // What is not whole has to outlive the buffer that it stands in.
        parts[..count].iter().for_each(|part| self.bytes.extend_from_slice(part));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The segments of a packet, as they leave.
    fn segments(id: u32, packet: &[u8]) -> Vec<Vec<u8>> {
        let chunks = packet.chunks(CHUNK_LEN).enumerate();
        chunks.map(|(n, chunk)| [&header(id, packet.len(), n * CHUNK_LEN)[..], chunk].concat()).collect()
    }

    fn taken(trains: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut assembly = Assembly::default();
        let mut packets = vec![];
        for train in trains {
            assembly
                .take(train, |parts| {
                    packets.push(parts.iter().flat_map(|part| part.to_vec()).collect());
                    Ok(())
                })
                .unwrap();
        }
        packets
    }

    proptest! {
        #[test]
        fn a_packet_comes_out_whole_however_its_segments_travel(
            len in 1usize..=PACKET_LEN_MAX, train in 1usize..=TRAIN_SEGMENTS,
        ) {
            let packet: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let trains: Vec<_> = segments(7, &packet).chunks(train).map(<[_]>::concat).collect();
            prop_assert_eq!(taken(&trains), vec![packet]);
        }

        #[test]
        fn anything_can_be_received(trains in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4000), 0..5)) {
            taken(&trains);
        }
    }

    #[test]
    fn a_packet_whose_segments_changed_places_is_lost_and_not_garbled() {
        let mut sent = segments(1, &(0..4000).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        sent.push(sent[1].clone());
        sent.remove(1);
        assert_eq!(taken(&sent), Vec::<Vec<u8>>::new());
        assert_eq!(taken(&[sent.concat()]), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_lost_segment_costs_its_packet_and_no_other() {
        let packets = [vec![1; 4000], vec![2; 4000], vec![3; 100]];
        let mut sent: Vec<_> = (0..).zip(&packets).flat_map(|(id, packet)| segments(id, packet)).collect();
        sent.remove(1);
        assert_eq!(taken(&sent), packets[1..]);
    }
}
