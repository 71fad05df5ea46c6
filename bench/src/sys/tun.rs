//! A TUN device with virtio headers and every offload: what a packet is read with, superpackets included. And a TAP without any.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::check;

/// Bytes of the header before each packet: `struct virtio_net_hdr` (`linux/virtio_net.h`), the length that TUN starts with.
pub const VNET_HEADER_LEN: usize = 10;

// linux/if_tun.h
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const OFFLOADS: libc::c_ulong = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Makes a TUN in the namespace of the calling thread. It goes when the file is closed; reads do not block. Kernels before 6.2 do without
/// USO.
///
/// # Errors
/// The errno of `open` or `ioctl`.
pub fn open(name: &str) -> io::Result<File> {
    let file = device(name, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    let set = |offloads: libc::c_ulong| {
        // SAFETY: the argument is a number, not a pointer.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, offloads) })
    };
    set(OFFLOADS | TUN_F_USO4 | TUN_F_USO6).or_else(|_| set(OFFLOADS))?;
    Ok(file)
}

/// Makes a TAP in the namespace of the calling thread, without offloads: whole Ethernet frames, each as it would be on a wire. It goes when
/// the file is closed; reads do not block.
///
/// # Errors
/// The errno of `open` or `ioctl`.
pub fn open_tap(name: &str) -> io::Result<File> {
    device(name, libc::IFF_TAP | libc::IFF_NO_PI)
}

fn device(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request reads and writes an `ifreq`, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut ifreq) })?;
    Ok(file)
}
