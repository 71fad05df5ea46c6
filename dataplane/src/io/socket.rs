//! The sockets of the overlay's port: one reuseport group per address family.
//!
//! ```text
//!   port 4646/udp   IPv4 group:  worker 0 · worker 1 · … · control
//!                   IPv6 group:  worker 0 · worker 1 · … · control      (V6ONLY)
//!   lane ports      4647: worker 1    4648: worker 2    …               (both families; as many as `lane_ports` says)
//! ```
//!
//! One tunnel on one port is one flow to everything on its way: one queue of a network card, one cap of a cloud. So workers may have a
//! port of their own besides, which no program steers, for there is nothing to choose. Workers beyond the last lane port begin again with
//! the common one; those that share a lane port are told apart by the kernel's hash, and hand over what is not theirs.
//!
//! No member is ever connected: a connected one takes its peer away from the steering program. Every member has `UDP_GRO` from the start,
//! because the kernel picks one by hash when it decides whether to merge. It does not know which member gets what: that is the steering
//! program's business.
#![allow(unsafe_code, reason = "socket options and binds that std does not offer")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::message::{ADDRESS_LEN, UDP_GRO, UDP_SEGMENT, decode_address, encode_address};

/// `SO_MEMINFO` of `include/uapi/asm-generic/socket.h`.
const SO_MEMINFO: libc::c_int = 55;

/// Words of the answer to it (`SK_MEMINFO_VARS` of `include/uapi/linux/sock_diag.h`), and the place of the drops among them.
const MEMINFO_LEN: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, without mapped IPv4.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why the sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The port is taken.
    #[error("port {port} is in use by another program: stop it or set wan.port")]
    PortInUse {
        /// The UDP port.
        port: u16,
    },
    /// The kernel has no such family.
    #[error("this kernel has no {family}: leave it out of the configuration, or enable it")]
    NoFamily {
        /// The family.
        family: Family,
    },
    /// An option needs a capability.
    #[error("setting {option} on the {family} socket of port {port}: {source}; run with CAP_NET_ADMIN")]
    Permission {
        /// The option.
        option: &'static str,
        /// The family.
        family: Family,
        /// The UDP port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The control socket that was handed over does not belong to this port.
    #[error("the control socket that was handed over is not bound to {family} port {port}: restart the control plane")]
    NotOurs {
        /// The family.
        family: Family,
        /// The UDP port.
        port: u16,
    },
    /// A descriptor that was named as a control socket is none.
    #[error(
        "descriptor {descriptor} is no UDP socket: pass the control sockets that a packet plane handed out, or none"
    )]
    NotInherited {
        /// Its number.
        descriptor: RawFd,
    },
    /// There are not as many ports after the common one.
    #[error("there are too few ports after {port} for the lane ports: choose a lower wan.port or fewer wan.lane_ports")]
    NoLanePort {
        /// The common port.
        port: u16,
    },
    /// Another step failed.
    #[error("{step} on the {family} socket of port {port}: {source}")]
    Other {
        /// What was being done.
        step: &'static str,
        /// The family.
        family: Family,
        /// The UDP port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What sockets to make.
#[derive(Clone, Copy, Debug)]
pub struct SocketConfig {
    /// The UDP port. Zero takes a free one, the same for both families.
    pub port: u16,
    /// Whether to make IPv4 sockets.
    pub v4: bool,
    /// Whether to make IPv6 sockets.
    pub v6: bool,
    /// Lane ports: so many after `port`. Worker `w` has the one at `port + w mod (lane_ports + 1)`, unless that is `port` itself.
    pub lane_ports: u8,
    /// Microseconds that a system call spins on the network card's queue before it says that nothing is there (`SO_BUSY_POLL`); zero for
    /// the system's own setting.
    pub busy_poll: u32,
    /// `SO_MARK` of every packet sent; zero for none.
    pub mark: u32,
    /// Bytes of receive buffer to ask for.
    pub rx_buffer: usize,
    /// Bytes of send buffer to ask for.
    pub tx_buffer: usize,
}

impl Default for SocketConfig {
    fn default() -> Self {
        // 8 MiB is 5 ms at 13 Gbit/s; the kernel's own 208 KiB cost up to ten times the throughput in a probe.
        let (rx_buffer, tx_buffer) = (8 << 20, 8 << 20);
        Self { port: 4646, v4: true, v6: true, lane_ports: 0, busy_poll: 0, mark: 0, rx_buffer, tx_buffer }
    }
}

/// One socket and what the kernel granted it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    rx_buffer: usize,
    tx_buffer: usize,
    busy_poll: u32,
}

impl Socket {
    /// Bytes of receive buffer granted, in the terms of [`SocketConfig::rx_buffer`] (the kernel counts twice that, for its bookkeeping).
    pub fn rx_buffer(&self) -> usize {
        self.rx_buffer
    }

    /// Bytes of send buffer granted, in the terms of [`SocketConfig::tx_buffer`].
    pub fn tx_buffer(&self) -> usize {
        self.tx_buffer
    }

    /// Microseconds of `SO_BUSY_POLL` granted.
    pub fn busy_poll(&self) -> u32 {
        self.busy_poll
    }

    /// Datagrams that the kernel dropped since the socket was made because its receive buffer was full, or their checksum wrong
    /// (`SK_MEMINFO_DROPS` of `include/uapi/linux/sock_diag.h`). The count begins again after 2^32.
    ///
    /// # Errors
    /// When the kernel has no `SO_MEMINFO` (before Linux 4.12).
    pub fn drops(&self) -> io::Result<u32> {
        let mut words = [0u32; MEMINFO_LEN];
        let mut len = size_of_val(&words) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, which the array has.
        let done = unsafe {
            let out = words.as_mut_ptr().cast();
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, out, &raw mut len)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(words[MEMINFO_DROPS]) }
    }

    /// A second descriptor of the same socket, to hand over.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One of a worker's ways out, and in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) v6: bool,
    pub(super) lane: bool,
}

/// Which ways there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exits([[bool; 2]; 2]);

impl Exits {
    pub(super) fn of(exits: impl IntoIterator<Item = Exit>) -> Self {
        let mut there = [[false; 2]; 2];
        for Exit { v6, lane } in exits {
            there[usize::from(v6)][usize::from(lane)] = true;
        }
        Self(there)
    }

    /// The way out for a family, by the lane port if that is asked for and there.
    pub(super) fn choose(self, v6: bool, lane: bool) -> Option<Exit> {
        let [common, own] = self.0[usize::from(v6)];
        let lane = lane && own;
        (common || lane).then_some(Exit { v6, lane })
    }
}

/// Datagrams that are thrown away at one socket. Ours: more than came in the milliseconds before there was anybody to read them.
const DISCARDED_MAX: usize = 1 << 16;

/// Takes one datagram from a socket's queue, if there is one, and forgets it.
fn takes_one(fd: RawFd) -> bool {
    // SAFETY: nothing is written anywhere, for there is no room; the rest of a datagram that does not fit is dropped (recv(2)).
    let got = unsafe { libc::recv(fd, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT | libc::MSG_TRUNC) };
    got >= 0
}

/// The sockets of one worker, or of the control plane: at most one per family, and as many again for a worker with a lane port.
#[derive(Debug, Default)]
pub struct Sockets {
    /// The IPv4 socket of the common port.
    pub v4: Option<Socket>,
    /// The IPv6 socket of the common port.
    pub v6: Option<Socket>,
    /// The IPv4 socket of the lane port.
    pub lane_v4: Option<Socket>,
    /// The IPv6 socket of the lane port.
    pub lane_v6: Option<Socket>,
}

impl Sockets {
    /// Those that there are: the common port before the lane port, IPv4 before IPv6.
    pub fn each(&self) -> impl Iterator<Item = &Socket> {
        self.each_exit().map(|(_, socket)| socket)
    }

    /// Throws away what waits at the common port: of what came before `steer` stood there nobody knows whose it is. Says how many there were.
    pub fn discard_waiting(&self) -> usize {
        let common = [&self.v4, &self.v6].into_iter().flatten();
        common.map(|socket| (0..DISCARDED_MAX).take_while(|_| takes_one(socket.as_raw_fd())).count()).sum()
    }

    /// Those that there are, each with its place.
    pub(super) fn each_exit(&self) -> impl Iterator<Item = (Exit, &Socket)> {
        [(false, false), (true, false), (false, true), (true, true)].into_iter().filter_map(|(v6, lane)| {
            let exit = Exit { v6, lane };
            self.by(exit).map(|socket| (exit, socket))
        })
    }

    pub(super) fn by(&self, exit: Exit) -> Option<&Socket> {
        match exit {
            Exit { v6: false, lane: false } => self.v4.as_ref(),
            Exit { v6: true, lane: false } => self.v6.as_ref(),
            Exit { v6: false, lane: true } => self.lane_v4.as_ref(),
            Exit { v6: true, lane: true } => self.lane_v6.as_ref(),
        }
    }

    pub(super) fn exits(&self) -> Exits {
        Exits::of(self.each_exit().map(|(exit, _)| exit))
    }
}

/// Control sockets that outlived the packet plane before: whoever took them over kept them, and with them the port.
#[derive(Debug, Default)]
pub struct Inherited {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Inherited {
    /// Duplicates descriptors that this process was started with, at most one per family.
    ///
    /// # Errors
    /// [`SocketError::NotInherited`].
    pub fn take(descriptors: &[RawFd]) -> Result<Self, SocketError> {
        let mut inherited = Self::default();
        for &descriptor in descriptors {
            let not_inherited = || SocketError::NotInherited { descriptor };
            // SAFETY: the call takes no memory of ours; a number that is no descriptor is an error.
            let duplicate = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
            if duplicate < 0 {
                return Err(not_inherited());
            }
            // SAFETY: the descriptor is new and nobody else owns it.
            let duplicate = unsafe { OwnedFd::from_raw_fd(duplicate) };
            let place = match option(duplicate.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN) {
                Ok(libc::AF_INET) => &mut inherited.v4,
                Ok(libc::AF_INET6) => &mut inherited.v6,
                _ => return Err(not_inherited()),
            };
            if place.replace(duplicate).is_some() {
                return Err(not_inherited());
            }
        }
        Ok(inherited)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// All sockets of the port.
#[derive(Debug)]
pub struct Underlay {
    /// The port, also when zero was asked for.
    pub port: u16,
    /// One set per worker, in the order of the workers.
    pub workers: Vec<Sockets>,
    /// The control plane's set, the last of the group.
    pub control: Sockets,
}

impl Underlay {
    /// Makes the groups for `workers` workers and the control plane, after making sure that nobody else has the port.
    ///
    /// # Errors
    /// See [`SocketError`]; each names the remedy.
    pub fn open(config: SocketConfig, workers: usize) -> Result<Self, SocketError> {
        let mut port = config.port;
        for family in families(config) {
            // A reuseport group lets any program of the same user in, and it would get a share of the traffic. A socket that does not
            // share is refused as long as anybody has the port.
            port = probe_port(family, port)?;
        }
        Ok(Self { port, workers: make_workers(config, port, workers)?, control: make_set(config, port)? })
    }

    /// Makes new worker sockets in the groups of a control set that outlived the packet plane before.
    ///
    /// # Errors
    /// As [`Self::open`], and when a socket is missing or not bound to the port.
    pub fn adopt(config: SocketConfig, workers: usize, inherited: &Inherited) -> Result<Self, SocketError> {
        let adopted = |family: Family, fd: &Option<OwnedFd>, wanted: bool| {
            let fd = match (fd, wanted) {
                (Some(fd), true) => fd.try_clone().map_err(|source| {
                    let (step, port) = ("duplicating", config.port);
                    SocketError::Other { step, family, port, source }
                })?,
                (None, false) => return Ok(None),
                _ => return Err(SocketError::NotOurs { family, port: config.port }),
            };
            let raw = fd.as_raw_fd();
            let domain = option(raw, libc::SOL_SOCKET, libc::SO_DOMAIN);
            let kind = option(raw, libc::SOL_SOCKET, libc::SO_TYPE);
            let ours = domain.is_ok_and(|domain| domain == domain_of(family))
                && kind.is_ok_and(|kind| kind == libc::SOCK_DGRAM)
                && bound_port(raw, family, config.port)? == config.port;
            if !ours {
                return Err(SocketError::NotOurs { family, port: config.port });
            }
            configure(fd, family, config, config.port).map(Some)
        };
        let v4 = adopted(Family::V4, &inherited.v4, config.v4)?;
        let v6 = adopted(Family::V6, &inherited.v6, config.v6)?;
        let control = Sockets { v4, v6, ..Sockets::default() };
        Ok(Self { port: config.port, workers: make_workers(config, config.port, workers)?, control })
    }
}

/// Whether the kernel cuts trains (`UDP_SEGMENT`, Linux 4.18) and merges them (`UDP_GRO`, Linux 5.0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOffloads {
    /// `UDP_SEGMENT`.
    pub gso: bool,
    /// `UDP_GRO`.
    pub gro: bool,
}

/// Asks the kernel for [`UdpOffloads`], on a socket of its own.
pub fn gso_gro() -> UdpOffloads {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else { return UdpOffloads::default() };
    UdpOffloads {
        gso: set_option(socket.as_raw_fd(), libc::SOL_UDP, UDP_SEGMENT, 1400).is_ok(),
        gro: set_option(socket.as_raw_fd(), libc::SOL_UDP, UDP_GRO, 1).is_ok(),
    }
}

/// Makes a socket send trains of datagrams of this many bytes each, and receive merged ones.
pub(super) fn set_offloads(socket: &UdpSocket, segment_len: libc::c_int) -> io::Result<()> {
    set_option(socket.as_raw_fd(), libc::SOL_UDP, UDP_SEGMENT, segment_len)?;
    set_option(socket.as_raw_fd(), libc::SOL_UDP, UDP_GRO, 1)
}

fn families(config: SocketConfig) -> impl Iterator<Item = Family> {
    [(config.v4, Family::V4), (config.v6, Family::V6)]
        .into_iter()
        .filter_map(|(wanted, family)| wanted.then_some(family))
}

/// Binds a port without sharing and lets go of it again. Returns which one, for zero takes any.
fn probe_port(family: Family, port: u16) -> Result<u16, SocketError> {
    let probe = new_socket(family, port)?;
    bind(probe.as_raw_fd(), family, port)?;
    bound_port(probe.as_raw_fd(), family, port)
}

/// Makes the sockets of all workers, with their lane ports, each of which nobody else may have.
fn make_workers(config: SocketConfig, port: u16, workers: usize) -> Result<Vec<Sockets>, SocketError> {
    let lanes = usize::from(config.lane_ports) + 1;
    for lane in 1..lanes.min(workers) {
        for family in families(config) {
            probe_port(family, lane_port(port, lane)?)?;
        }
    }
    let make = |worker: usize| {
        let common = make_set(config, port)?;
        let own = match worker % lanes {
            0 => Sockets::default(),
            lane => make_set(config, lane_port(port, lane)?)?,
        };
        Ok(Sockets { lane_v4: own.v4, lane_v6: own.v6, ..common })
    };
    (0..workers).map(make).collect()
}

fn lane_port(port: u16, lane: usize) -> Result<u16, SocketError> {
    u16::try_from(usize::from(port) + lane).map_err(|_| SocketError::NoLanePort { port })
}

fn make_set(config: SocketConfig, port: u16) -> Result<Sockets, SocketError> {
    let mut set = Sockets::default();
    for family in families(config) {
        let fd = new_socket(family, port)?;
        let socket = configure(fd, family, config, port)?;
        bind(socket.as_raw_fd(), family, port)?;
        match family {
            Family::V4 => set.v4 = Some(socket),
            Family::V6 => set.v6 = Some(socket),
        }
    }
    Ok(set)
}

fn new_socket(family: Family, port: u16) -> Result<OwnedFd, SocketError> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no memory of ours.
    let fd = unsafe { libc::socket(domain_of(family), kind, 0) };
    if fd < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => SocketError::NoFamily { family },
            _ => SocketError::Other { step: "socket", family, port, source },
        });
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if family == Family::V6 {
        set_option(fd.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).map_err(|source| SocketError::Other {
            step: "setting IPV6_V6ONLY",
            family,
            port,
            source,
        })?;
    }
    Ok(fd)
}

/// Sets what every member of a group has.
fn configure(fd: OwnedFd, family: Family, config: SocketConfig, port: u16) -> Result<Socket, SocketError> {
    let raw = fd.as_raw_fd();
    let set = |option: &'static str, level, number, value| {
        set_option(raw, level, number, value).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => SocketError::Permission { option, family, port, source },
            _ => SocketError::Other { step: option, family, port, source },
        })
    };
    set("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    set("UDP_GRO", libc::SOL_UDP, UDP_GRO, 1)?;
    // PROBE: never fragment, never believe an ICMP. WANT would fragment silently, DO would obey a forged Packet Too Big.
    match family {
        Family::V4 => {
            set("IP_MTU_DISCOVER", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            set("IP_RECVTOS", libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            set("IP_PKTINFO", libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        Family::V6 => {
            set("IPV6_MTU_DISCOVER", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            set("IPV6_RECVTCLASS", libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            set("IPV6_RECVPKTINFO", libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
    }
    if config.mark != 0 {
        set("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK, config.mark as libc::c_int)?;
    }
    if config.busy_poll != 0 {
        let asked = libc::c_int::try_from(config.busy_poll).unwrap_or(libc::c_int::MAX);
        set("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL, asked)?;
    }
    // A kernel without busy polling has no such option, and does none.
    let busy_poll = option(raw, libc::SOL_SOCKET, libc::SO_BUSY_POLL).unwrap_or(0).max(0) as u32;
    let buffer = |force, plain, asked: usize| {
        let asked = libc::c_int::try_from(asked).unwrap_or(libc::c_int::MAX);
        // Without CAP_NET_ADMIN the kernel caps the size at net.core.[rw]mem_max; what it granted is reported.
        set_option(raw, libc::SOL_SOCKET, force, asked)
            .or_else(|_| set_option(raw, libc::SOL_SOCKET, plain, asked))
            .and_then(|()| option(raw, libc::SOL_SOCKET, plain))
            .map(|granted| granted as usize / 2)
            .map_err(|source| SocketError::Other { step: "sizing buffers", family, port, source })
    };
    let rx_buffer = buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, config.rx_buffer)?;
    let tx_buffer = buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, config.tx_buffer)?;
    Ok(Socket { fd, rx_buffer, tx_buffer, busy_poll })
}

fn bind(fd: RawFd, family: Family, port: u16) -> Result<(), SocketError> {
    let address: SocketAddr = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    let mut bytes = [0; ADDRESS_LEN];
    let len = encode_address(address, &mut bytes);
    // SAFETY: the first `len` bytes are an address of its family and outlive the call.
    if unsafe { libc::bind(fd, bytes.as_ptr().cast(), len) } == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(match source.raw_os_error() {
        Some(libc::EADDRINUSE) => SocketError::PortInUse { port },
        Some(libc::EADDRNOTAVAIL) => SocketError::NoFamily { family },
        _ => SocketError::Other { step: "bind", family, port, source },
    })
}

fn bound_port(fd: RawFd, family: Family, port: u16) -> Result<u16, SocketError> {
    let mut bytes = [0; ADDRESS_LEN];
    let mut len = ADDRESS_LEN as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which the array has.
    if unsafe { libc::getsockname(fd, bytes.as_mut_ptr().cast(), &raw mut len) } < 0 {
        let source = io::Error::last_os_error();
        return Err(SocketError::Other { step: "getsockname", family, port, source });
    }
    Ok(decode_address(&bytes).map_or(0, |address| address.port()))
}

const fn domain_of(family: Family) -> libc::c_int {
    match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    }
}

fn set_option(fd: RawFd, level: libc::c_int, number: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is the one int whose size is given.
    let done = unsafe {
        libc::setsockopt(fd, level, number, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn option(fd: RawFd, level: libc::c_int, number: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the one int.
    let done = unsafe { libc::getsockopt(fd, level, number, (&raw mut value).cast(), &raw mut len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::in_namespace;

    fn config() -> SocketConfig {
        SocketConfig { port: 4646, mark: 0x77, rx_buffer: 1 << 20, tx_buffer: 1 << 19, ..SocketConfig::default() }
    }

    #[test]
    fn every_member_is_configured_alike() {
        in_namespace(|| {
            let underlay = Underlay::open(config(), 2).unwrap();
            assert_eq!((underlay.port, underlay.workers.len()), (4646, 2));
            for set in underlay.workers.iter().chain([&underlay.control]) {
                for socket in set.each() {
                    let fd = socket.as_raw_fd();
                    assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT).unwrap(), 1);
                    assert_eq!(option(fd, libc::SOL_UDP, UDP_GRO).unwrap(), 1);
                    assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_MARK).unwrap(), 0x77);
                    assert_eq!((socket.rx_buffer(), socket.tx_buffer()), (1 << 20, 1 << 19));
                }
                let v4 = set.v4.as_ref().unwrap().as_raw_fd();
                let v6 = set.v6.as_ref().unwrap().as_raw_fd();
                assert_eq!(option(v4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap(), libc::IP_PMTUDISC_PROBE);
                assert_eq!(option(v6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER).unwrap(), libc::IPV6_PMTUDISC_PROBE);
                assert_eq!(option(v6, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).unwrap(), 1);
                for told in [libc::IP_RECVTOS, libc::IP_PKTINFO] {
                    assert_eq!(option(v4, libc::IPPROTO_IP, told).unwrap(), 1);
                }
                for told in [libc::IPV6_RECVTCLASS, libc::IPV6_RECVPKTINFO] {
                    assert_eq!(option(v6, libc::IPPROTO_IPV6, told).unwrap(), 1);
                }
            }
        });
    }

    #[test]
    fn a_port_in_use_is_named_even_when_its_owner_would_share() {
        in_namespace(|| {
            let first = Underlay::open(config(), 1).unwrap();
            let error = Underlay::open(config(), 1).unwrap_err();
            assert_eq!(error.to_string(), "port 4646 is in use by another program: stop it or set wan.port");
            drop(first);
            let _v6_only = UdpSocket::bind("[::]:4646").unwrap();
            assert!(matches!(Underlay::open(config(), 1), Err(SocketError::PortInUse { port: 4646 })));
        });
    }

    /// After a restart a datagram for the control plane lay at a worker, who has no use for it.
    #[test]
    fn what_waits_before_anybody_steers_is_thrown_away() {
        in_namespace(|| {
            let underlay = Underlay::open(config(), 1).unwrap();
            // The group spreads them by their sources, over the worker and the control plane.
            let sources: Vec<_> = (0..32).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            for source in &sources {
                source.send_to(&[0xc0; 1200], "127.0.0.1:4646").unwrap();
            }
            let at_worker = underlay.workers[0].discard_waiting();
            let at_control = underlay.control.discard_waiting();
            assert!(at_worker > 0 && at_worker + at_control == 32, "{at_worker} and {at_control}");
            assert_eq!(underlay.workers[0].discard_waiting() + underlay.control.discard_waiting(), 0);
        });
    }

    #[test]
    fn inherited_descriptors_are_sockets_of_different_families() {
        let (v4, v6) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        let taken = |descriptors: &[RawFd]| Inherited::take(descriptors).map(|i| (i.v4.is_some(), i.v6.is_some()));
        let refused = |descriptors: &[RawFd]| matches!(taken(descriptors), Err(SocketError::NotInherited { .. }));
        assert!(Inherited::take(&[]).unwrap().is_empty());
        assert_eq!(taken(&[v6.as_raw_fd(), v4.as_raw_fd()]).unwrap(), (true, true));
        assert_eq!(taken(&[v6.as_raw_fd()]).unwrap(), (false, true));
        assert!(refused(&[v4.as_raw_fd(), v4.as_raw_fd()]));
        assert!(refused(&[-1]) && refused(&[RawFd::MAX]));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(refused(&[file.as_raw_fd()]));
    }

    #[test]
    fn a_control_set_that_stayed_is_joined() {
        in_namespace(|| {
            let first = Underlay::open(config(), 1).unwrap();
            let dup = |socket: &Option<Socket>| socket.as_ref().map(|socket| socket.duplicate().unwrap());
            let (v4, v6) = (dup(&first.control.v4), dup(&first.control.v6));
            drop(first);
            let second = Underlay::adopt(config(), 2, &Inherited { v4, v6 }).unwrap();
            assert_eq!((second.port, second.workers.len()), (4646, 2));
            let swapped =
                Underlay::adopt(config(), 1, &Inherited { v4: dup(&second.control.v6), v6: dup(&second.control.v4) });
            assert!(matches!(swapped, Err(SocketError::NotOurs { family: Family::V4, .. })));
            let missing = Underlay::adopt(config(), 1, &Inherited { v4: dup(&second.control.v4), v6: None });
            assert!(matches!(missing, Err(SocketError::NotOurs { family: Family::V6, .. })));
        });
    }

    #[test]
    fn port_zero_takes_one_port_for_both_families() {
        in_namespace(|| {
            let underlay = Underlay::open(SocketConfig { port: 0, ..config() }, 1).unwrap();
            let bound = |socket: &Option<Socket>, family| bound_port(socket.as_ref().unwrap().as_raw_fd(), family, 0);
            assert_ne!(underlay.port, 0);
            assert_eq!(bound(&underlay.workers[0].v4, Family::V4).unwrap(), underlay.port);
            assert_eq!(bound(&underlay.control.v6, Family::V6).unwrap(), underlay.port);
        });
    }

    #[test]
    fn lane_ports_belong_to_workers_round_and_round() {
        in_namespace(|| {
            let ports = |lane_ports, workers| -> Vec<Vec<u16>> {
                let underlay = Underlay::open(SocketConfig { lane_ports, ..config() }, workers).unwrap();
                assert_eq!(underlay.control.each().count(), 2);
                let bound = |(exit, socket): (Exit, &Socket)| {
                    let family = if exit.v6 { Family::V6 } else { Family::V4 };
                    assert_eq!(option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK).unwrap(), 0x77);
                    bound_port(socket.as_raw_fd(), family, 0).unwrap()
                };
                underlay.workers.iter().map(|set| set.each_exit().map(bound).collect()).collect()
            };
            let (common, first) = (vec![4646; 2], vec![4646, 4646, 4647, 4647]);
            assert_eq!(ports(0, 2), [common.clone(), common.clone()]);
            assert_eq!(ports(1, 4), [common.clone(), first.clone(), common.clone(), first.clone()]);
            assert_eq!(ports(15, 2), [common, first]);
        });
    }

    #[test]
    fn lane_ports_that_are_taken_or_do_not_exist_are_named() {
        in_namespace(|| {
            let config = SocketConfig { lane_ports: 2, ..config() };
            let other = UdpSocket::bind("[::]:4648").unwrap();
            assert!(matches!(Underlay::open(config, 3), Err(SocketError::PortInUse { port: 4648 })));
            assert!(Underlay::open(config, 2).is_ok(), "two workers need one lane port");
            drop(other);
            let high = |port, workers| Underlay::open(SocketConfig { port, ..config }, workers).map(|_| ());
            assert!(high(65_533, 3).is_ok() && high(65_534, 2).is_ok());
            assert!(matches!(high(65_534, 3), Err(SocketError::NoLanePort { port: 65_534 })));
        });
    }

    #[test]
    fn a_full_receive_buffer_counts_what_it_drops() {
        in_namespace(|| {
            let underlay = Underlay::open(SocketConfig { rx_buffer: 4096, v6: false, ..config() }, 1).unwrap();
            let Underlay { workers, control, .. } = underlay;
            drop(control);
            let socket = workers[0].v4.as_ref().unwrap();
            assert_eq!(socket.drops().unwrap(), 0);
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..100 {
                sender.send_to(&[0; 1000], "127.0.0.1:4646").unwrap();
            }
            let mut received = 0;
            let mut buffer = [0u8; 2000];
            // SAFETY: the buffer has the length given and outlives the call.
            while unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), 2000, libc::MSG_DONTWAIT) } > 0 {
                received += 1;
            }
            assert!((1..100).contains(&received));
            assert_eq!(socket.drops().unwrap(), 100 - received);
        });
    }

    #[test]
    fn busy_polling_is_granted_as_asked() {
        in_namespace(|| {
            let granted = |busy_poll| {
                let underlay = Underlay::open(SocketConfig { busy_poll, ..config() }, 1).unwrap();
                underlay.workers[0].each().map(Socket::busy_poll).collect::<Vec<_>>()
            };
            assert_eq!(granted(50), [50, 50]);
            assert_eq!(granted(0), [0, 0]);
        });
    }

    #[test]
    fn kernel_has_both_offloads() {
        assert_eq!(gso_gro(), UdpOffloads { gso: true, gro: true });
    }
}
