//! What a UDP socket can do that `std` does not offer.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Has the kernel cut everything that this socket sends into datagrams of `len` bytes (`UDP_SEGMENT`, `linux/udp.h`): they travel as one
/// train, and the receiver may see them as one.
///
/// # Errors
/// The errno of `setsockopt`.
pub fn set_segment(socket: &UdpSocket, len: u16) -> io::Result<()> {
    let len = libc::c_int::from(len);
    // SAFETY: the option takes an `int`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const len).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    super::check(result).map(|_| ())
}
