//! What a UDP socket can do that `std` does not offer.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Has the kernel cut everything that this socket sends into datagrams of `len` bytes (`UDP_SEGMENT`, `linux/udp.h`): they travel as one
/// train, and the receiver may see them as one.
///
/// # Errors
/// The errno of `setsockopt`.
pub fn set_segment(socket: &UdpSocket, len: u16) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, libc::c_int::from(len))
}

/// Has the kernel hand trains over whole (`UDP_GRO`, `linux/udp.h`).
///
/// # Errors
/// The errno of `setsockopt`.
pub fn set_gro(socket: &UdpSocket) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Sets both buffers, past the limits that unprivileged processes have.
///
/// # Errors
/// The errno of `setsockopt`; without `CAP_NET_ADMIN` it is `EPERM`.
pub fn set_buffers(socket: &UdpSocket, bytes: u32) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?;
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

fn set(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: each of these options takes an `int`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    super::check(result).map(|_| ())
}

/// A socket that sends ICMP echo requests and gets the replies to them, and nothing else: `icmp(7)` of Linux 3.0. The kernel fills in
/// identifier and checksum. `net.ipv4.ping_group_range` must include the process's group.
///
/// # Errors
/// The errno of `socket`.
pub fn echo_socket(family: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) =
        if family.is_ipv6() { (libc::AF_INET6, libc::IPPROTO_ICMPV6) } else { (libc::AF_INET, libc::IPPROTO_ICMP) };
    // SAFETY: creates a descriptor, and touches no memory.
    let fd = super::check(unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the descriptor is new and nobody else's. What `std` does with a UDP socket here, sending to an address, receiving and
    // setting a timeout, is the same for this one.
    Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
