//! Offload features of an interface by their ethtool names (`include/uapi/linux/ethtool.h`).

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::check;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`, in 32-bit words.
const STRING_WORDS: usize = 8;
/// `ETHTOOL_F_UNSUPPORTED`: some of the features asked for cannot be changed.
const UNSUPPORTED: libc::c_int = 1;

/// One ethtool request. Words, so that the buffer is aligned for every structure of the interface.
fn request(interface: &str, words: &mut [u32]) -> io::Result<libc::c_int> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes as much of the buffer as the command and counts in it say; each caller sizes it for those.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &mut ifreq) })
}

/// Switches one feature, by the name that `ethtool -k` shows in its long form (`rx-gro`, `rx-udp-gro-forwarding`), in the namespace of
/// the calling thread.
///
/// # Errors
/// `ENODEV` for an unknown interface, `Unsupported` for a feature that the kernel does not know or will not change.
pub fn set_feature(interface: &str, feature: &str, on: bool) -> io::Result<()> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), data[1].
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    request(interface, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: cmd, string_set, len, data.
    let mut strings = vec![0; 3 + count * STRING_WORDS];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    request(interface, &mut strings)?;
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, format!("{interface} has no feature {feature}"));
    let index = strings[3..]
        .chunks(STRING_WORDS)
        .position(|words| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).take_while(|&b| b != 0).collect();
            bytes == feature.as_bytes()
        })
        .ok_or_else(unsupported)?;
    // struct ethtool_sfeatures: cmd, size, { valid, requested } per 32 features.
    let blocks = count.div_ceil(32);
    let mut set = vec![0; 2 + blocks * 2];
    set[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
    let bit = 1 << (index % 32);
    set[2 + index / 32 * 2] = bit;
    set[3 + index / 32 * 2] = if on { bit } else { 0 };
    if request(interface, &mut set)? & UNSUPPORTED != 0 { Err(unsupported()) } else { Ok(()) }
}
