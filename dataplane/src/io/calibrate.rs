//! Measures what packets cost on this machine, on a private veth pair and a TUN in network namespaces of our own.
//!
//! ```text
//!   namespace A              namespace B
//!   socket ─ va ═════ vb ─ socket ─┐
//!                     │      TUN ◂─┘ kernel's routes
//!                     └─ AF_XDP, last: native XDP takes superpackets away from the pair
//! ```
//!
//! One thread does everything, one train at a time, so softirqs run in the calls that cause them, and what is measured is the time of one
//! core. No device of the host is touched, and the namespaces go with the thread.
#![allow(unsafe_code, reason = "unshare(2) has no safe wrapper among our dependencies")]

mod xsk;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd as _};
use std::time::{Duration, Instant};

pub use self::xsk::XskMeasured;
use self::xsk::{End, over_xsk};
use super::bpf::BpfError;
use super::netlink::{Error as NetlinkError, InterfaceAddress, Netlink};
use super::socket::set_offloads;
use super::tun::{TunConfig, TunError, TunQueue};
use super::xsk::XskError;

/// Bytes of a datagram: the size that [`super::super::plane::choice::Costs`] speaks of.
const DATAGRAM_LEN: usize = 100;
/// Datagrams of a train: the most that the kernel takes (`UDP_MAX_SEGMENTS`).
const TRAIN_LEN: usize = 64;
/// Trains that are measured; half of them take longer than what is reported.
const TRAINS: usize = 2000;
/// For each so many trains that are measured, one before them warms caches and neighbours up.
const WARM_UP_SHARE: usize = 10;
/// How long the measurement of a pair of figures may take; what was measured by then is reported.
const BUDGET: Duration = Duration::from_secs(2);
/// How long a train may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a new device may take to carry its first train.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that may stand before a packet of a TUN: nothing, or `struct virtio_net_hdr` of either length.
const TUN_HEADERS: [usize; 3] = [0, 10, 12];
/// Bytes of the IPv4 and UDP headers.
const HEADERS_LEN: usize = 28;
const PORT: u16 = 4646;
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const TUN_NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TUN_FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);

/// What was measured, in nanoseconds of one core for each packet of 100 bytes in trains of 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Sending with UDP_SEGMENT, over the veth into the other end's queue.
    pub socket_tx_ns: u32,
    /// Receiving with UDP_GRO.
    pub socket_rx_ns: u32,
    /// Through the kernel's routes into the TUN, and reading there.
    pub tun_rx_ns: u32,
    /// Writing to the TUN, and through the kernel's routes to a socket.
    pub tun_tx_ns: u32,
    /// AF_XDP in copy mode, or why it could not be measured, in words.
    pub xsk: Result<XskMeasured, String>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// No namespaces, or the measurement itself.
    #[error("cannot {step}: {error}; it needs CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The pair.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The TUN.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The program that gives frames to AF_XDP.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The AF_XDP socket.
    #[error(transparent)]
    Xsk(#[from] XskError),
}

fn during(step: &'static str) -> impl FnOnce(io::Error) -> CalibrateError {
    move |error| CalibrateError::System { step, error }
}

/// Measures. It takes about a second, and half of one more for AF_XDP. A kernel without AF_XDP is no error.
///
/// # Errors
/// [`CalibrateError`]; nothing is left behind then either.
pub fn measure() -> Result<Measured, CalibrateError> {
    let thread = std::thread::Builder::new().name("calibrate".to_owned()).spawn(measure_here);
    let thread = thread.map_err(during("start a thread"))?;
    thread.join().unwrap_or_else(|_| Err(during("measure")(io::Error::other("the measuring thread panicked"))))
}

/// Measures on this thread, which is in a network namespace of its own afterwards.
fn measure_here() -> Result<Measured, CalibrateError> {
    new_namespace()?;
    let mut near_netlink = Netlink::open()?;
    near_netlink.add_veth("va", "vb")?;
    let near = socket()?;

    new_namespace()?;
    let mut far_netlink = Netlink::open()?;
    let here = File::open("/proc/thread-self/ns/net").map_err(during("open a namespace"))?;
    let index = near_netlink.link("vb")?.index;
    near_netlink.move_link(index, &here)?;
    for (netlink, name, address) in [(&mut near_netlink, "va", NEAR), (&mut far_netlink, "vb", FAR)] {
        set_up(netlink, name, address)?;
    }
    let far = socket()?;
    let (socket_tx_ns, socket_rx_ns) = over_veth(&near, &far).map_err(during("measure the socket"))?;

    let tun = TunQueue::open(&TunConfig { name: "weircal".to_owned(), multi_queue: false, offload: false })?;
    set_up(&mut far_netlink, "weircal", TUN_NEAR)?;
    let (tun_rx_ns, tun_tx_ns) = over_tun(&far, &tun).map_err(during("measure the TUN"))?;
    let near = End { netlink: &mut near_netlink, name: "va", socket: &near };
    let far = End { netlink: &mut far_netlink, name: "vb", socket: &far };
    let xsk = over_xsk(near, far).map_err(|error| error.to_string());
    Ok(Measured { socket_tx_ns, socket_rx_ns, tun_rx_ns, tun_tx_ns, xsk })
}

fn new_namespace() -> Result<(), CalibrateError> {
    // SAFETY: unshare changes only which namespace this thread uses; no memory is involved.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(during("make a network namespace")(io::Error::last_os_error())),
    }
}

fn set_up(netlink: &mut Netlink, name: &str, address: Ipv4Addr) -> Result<(), CalibrateError> {
    let index = netlink.link(name)?.index;
    if let Ok(address) = InterfaceAddress::new(address.into(), 24) {
        netlink.add_address(index, address)?;
    }
    Ok(netlink.set_link_up(index, true)?)
}

/// A socket of the namespace that the thread is in.
fn socket() -> Result<UdpSocket, CalibrateError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).map_err(during("open a socket"))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(during("set a timeout"))?;
    set_offloads(&socket, DATAGRAM_LEN as i32).map_err(during("set UDP_SEGMENT and UDP_GRO"))?;
    Ok(socket)
}

/// Sends trains from one socket to the other: cost of sending and of receiving.
fn over_veth(near: &UdpSocket, far: &UdpSocket) -> io::Result<(u32, u32)> {
    let train = [0x20; DATAGRAM_LEN * TRAIN_LEN];
    let mut buffer = vec![0; 1 << 16];
    let mut pass = || {
        let start = Instant::now();
        near.send_to(&train, SocketAddr::from((FAR, PORT)))?;
        let sent = Instant::now();
        let mut left = train.len();
        // A train that GRO did not keep together comes in parts.
        while left > 0 {
            left = left.saturating_sub(far.recv(&mut buffer)?);
        }
        Ok((sent - start, sent.elapsed()))
    };
    median(&mut pass)
}

/// Sends trains through the kernel's routes into the TUN and back again: cost of either way.
fn over_tun(socket: &UdpSocket, tun: &TunQueue) -> io::Result<(u32, u32)> {
    // SAFETY: the descriptor is open as long as `tun` is, and is not closed here.
    let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(tun.as_raw_fd()) });
    let train = [0x20; DATAGRAM_LEN * TRAIN_LEN];
    let mut packet = vec![0; 1 << 17];
    let mut buffer = vec![0; 1 << 16];
    let mut pass = || {
        let start = Instant::now();
        socket.send_to(&train, SocketAddr::from((TUN_FAR, PORT)))?;
        let (mut out, mut back) = (Duration::ZERO, Duration::ZERO);
        let (mut there, mut begun) = (0, start);
        while there < train.len() {
            let (at, len) = read_udp(&mut file, &mut packet)?;
            out += begun.elapsed();
            there += len - at - HEADERS_LEN;
            // Back to where it came from: swapped addresses keep every checksum.
            packet[at + 12..at + 20].rotate_left(4);
            begun = Instant::now();
            let _ = file.write(&packet[..len])?;
            back += begun.elapsed();
            begun = Instant::now();
        }
        let mut left = train.len();
        while left > 0 {
            left = left.saturating_sub(socket.recv(&mut buffer)?);
        }
        Ok((out, back + begun.elapsed()))
    };
    median(&mut pass)
}

/// Reads until an IPv4 packet with UDP comes: the kernel has things of its own to say on a new device. Returns where the packet begins and
/// the length of all that was read.
fn read_udp(file: &mut File, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.read(buffer) {
            Ok(len) => {
                let read = &buffer[..len];
                if let Some(at) = TUN_HEADERS.into_iter().find(|at| is_udp(read.get(*at..).unwrap_or_default())) {
                    return Ok((at, len));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::hint::spin_loop();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether these bytes are one IPv4 packet without options that holds UDP.
fn is_udp(bytes: &[u8]) -> bool {
    let len = u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
    bytes.len() > HEADERS_LEN && bytes[0] == 0x45 && bytes[2..4] == len && bytes[9] == 17
}

/// The medians over a new device: it drops what it is given until the kernel has noticed its carrier, which takes up to a second.
fn median(pass: &mut dyn FnMut() -> io::Result<(Duration, Duration)>) -> io::Result<(u32, u32)> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    loop {
        match pass() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            done => break done.map(|_| ())?,
        }
    }
    medians(TRAINS, BUDGET, pass)
}

/// The medians of both parts of a pass, for each packet, over so many trains or those that the budget allows.
fn medians(
    trains: usize,
    budget: Duration,
    pass: &mut dyn FnMut() -> io::Result<(Duration, Duration)>,
) -> io::Result<(u32, u32)> {
    let deadline = Instant::now() + budget;
    for _ in 0..trains / WARM_UP_SHARE {
        pass()?;
    }
    let (mut first, mut second) = (vec![], vec![]);
    while first.is_empty() || (first.len() < trains && Instant::now() < deadline) {
        let (a, b) = pass()?;
        first.push(a);
        second.push(b);
    }
    let middle = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (times[times.len() / 2].as_nanos() as u32 / TRAIN_LEN as u32).max(1)
    };
    Ok((middle(first), middle(second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_trains_and_nothing_is_left() {
        let before = std::fs::read_link("/proc/self/ns/net").unwrap();
        let measured = measure().unwrap();
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        for ns in [measured.socket_tx_ns, measured.socket_rx_ns, measured.tun_rx_ns, measured.tun_tx_ns] {
            // A datagram sent alone takes four microseconds on the machine class that this was written on.
            assert!((1..4000).contains(&ns), "{measured:?}");
        }
        let xsk = measured.xsk.as_ref().expect("a veth takes AF_XDP in copy mode");
        for ns in [xsk.rx_ns, xsk.tx_ns] {
            assert!((1..20_000).contains(&ns), "{measured:?}");
        }
        // Each frame is an skb of its own: sending it cannot take as little as its share of a train.
        assert!(xsk.tx_ns > measured.socket_tx_ns, "{measured:?}");
    }

    #[test]
    fn a_budget_ends_a_measurement_with_what_there_is() {
        let mut passes = 0;
        let mut pass = || {
            passes += 1;
            Ok((Duration::from_nanos(64), Duration::from_nanos(128)))
        };
        assert_eq!(medians(20, Duration::ZERO, &mut pass).unwrap(), (1, 2));
        assert_eq!(medians(20, Duration::from_secs(60), &mut pass).unwrap(), (1, 2));
        assert_eq!(passes, (2 + 1) + (2 + 20));
    }
}
