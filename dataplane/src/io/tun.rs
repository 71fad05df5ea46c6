//! Opening a TUN interface's queues.
//!
//! The interface belongs to the process: it is not persistent and disappears with the last queue. Addresses, routes and the MTU are not
//! this module's business, nor is what is read and written. `gso_max_size` stays what the kernel made it: superpackets that are shorter
//! than they could be cost more than cutting them again.
#![allow(unsafe_code, reason = "a TUN is configured by ioctl")]

use std::ffi::CStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::vnet;
use crate::engine::port::BURST_LEN;

/// Longest name of an interface in bytes (`IFNAMSIZ` less its zero).
pub const NAME_LEN_MAX: usize = libc::IFNAMSIZ - 1;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why a TUN queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver.
    #[error("{CLONE_DEVICE} is missing ({source}): load the driver with `modprobe tun`")]
    NoDriver {
        /// What the kernel said.
        source: io::Error,
    },
    /// A capability is missing.
    #[error(
        "no permission to open the TUN interface {name} ({source}): run with CAP_NET_ADMIN and access to {CLONE_DEVICE}"
    )]
    Permission {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process holds the interface.
    #[error("the interface {name} is in use by another process: stop it, or set tun.name to another name")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The name cannot be an interface's.
    #[error(
        "{name:?} cannot name an interface: 1 to {NAME_LEN_MAX} bytes without '/', ':' or white space, and not \".\" or \"..\""
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is an interface of this name and another kind.
    #[error(
        "there is an interface {name} already, and it is no TUN with the same number of queues: remove it, or set tun.name to another name"
    )]
    Exists {
        /// The interface.
        name: String,
    },
    /// Something else.
    #[error("TUN interface {name}: {step}: {source}")]
    Other {
        /// The interface.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// The interface's name; `%d` in it is replaced by the first free number.
    pub name: String,
    /// Whether the interface has several queues, one per worker. Every queue is opened with the same choice.
    pub multi_queue: bool,
    /// Whether superpackets and incomplete checksums are asked for ([`TunQueue::offloads`] says what was granted).
    pub offload: bool,
}

/// What of the stack's work the kernel leaves to us, and takes from us, on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP superpackets, with ECN, and incomplete checksums of any packet.
    pub tcp: bool,
    /// UDP superpackets too (Linux 6.2).
    pub udp: bool,
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self { tcp: false, .. } => "no offloads",
            Self { tcp: true, udp: false } => "tso4 tso6",
            Self { tcp: true, udp: true } => "tso4 tso6 uso4 uso6",
        })
    }
}

/// Slots of a sending TUN port.
#[derive(Clone, Copy, Debug)]
pub struct TunTxConfig {
    /// Packets that can wait.
    pub slots: usize,
    /// Bytes of the longest packet, where no superpackets are taken.
    pub packet_len: usize,
    /// Packets of the longest kind that can wait. Shorter ones share the bytes.
    pub longest: usize,
}

impl Default for TunTxConfig {
    fn default() -> Self {
        // A full train opened into small packets is several bursts; 9,216 B hold a jumbo packet. 1.2 MiB, with superpackets 8.4 MiB, of
        // which only what waits at once is touched.
        Self { slots: 512, packet_len: 9216, longest: 2 * BURST_LEN }
    }
}

/// One queue of a TUN interface, non-blocking.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
    name: String,
    /// Whether packets have a header in front.
    header: bool,
    offloads: Offloads,
}

impl TunQueue {
    /// Opens a queue; the first one makes the interface, the next ones (with `multi_queue`) join it.
    ///
    /// # Errors
    /// See [`TunError`]; each names the remedy.
    pub fn open(config: &TunConfig) -> Result<Self, TunError> {
        let name = || config.name.clone();
        let mut request = request(&config.name).ok_or_else(|| TunError::Name { name: name() })?;
        let file = open_clone_device().map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => TunError::Permission { name: name(), source },
            _ => TunError::NoDriver { source },
        })?;
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        if config.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if config.offload {
            flags |= libc::IFF_VNET_HDR;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done < 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::EPERM) => TunError::Permission { name: name(), source },
                Some(libc::EBUSY) => TunError::Busy { name: name() },
                Some(libc::EINVAL | libc::EEXIST) => TunError::Exists { name: name() },
                _ => TunError::Other { name: name(), step: "TUNSETIFF", source },
            });
        }
        // SAFETY: the kernel wrote a name that ends in a zero within the array.
        let given = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
        let offloads = if config.offload { set_offloads(&file) } else { Offloads::default() };
        Ok(Self { file, name: given.to_string_lossy().into_owned(), header: config.offload, offloads })
    }

    /// What the kernel granted; nothing when nothing was asked for. It holds for the interface, not for this queue alone.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Bytes that stand before each packet, in both directions.
    pub(super) fn header_len(&self) -> usize {
        if self.header { vnet::HEADER_LEN } else { 0 }
    }

    /// Makes `program`, a socket filter, choose the queue of each packet that is read from the interface: what it returns, modulo the
    /// number of queues, counted in the order of opening. It holds for the interface, and as long as that is there.
    ///
    /// Without one the driver learns a flow's queue from where its replies are written, so that flows move.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn steer(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let program: libc::c_int = program.as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one int, a descriptor, which `program` is.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) } {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The interface's name, with the number that `%d` became.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A queue whose kernel is whoever holds the other end of `file`.
    #[cfg(test)]
    pub(super) fn of(file: File) -> Self {
        Self { file, name: "mad0".to_owned(), header: true, offloads: Offloads { tcp: true, udp: true } }
    }

    /// The file, for plain reads and writes.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// What the kernel's TUN driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunFeatures {
    /// Several queues per interface (`IFF_MULTI_QUEUE`).
    pub multi_queue: bool,
    /// Packets with a `virtio_net_hdr`, the condition for offloads (`IFF_VNET_HDR`).
    pub vnet_hdr: bool,
    /// Packets handed to the stack by NAPI (`IFF_NAPI`).
    pub napi: bool,
}

/// Asks the driver what it can do, without making an interface (`TUNGETFEATURES`).
///
/// # Errors
/// When there is no driver or no permission to ask it.
pub fn features() -> io::Result<TunFeatures> {
    let file = open_clone_device()?;
    let mut flags: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which `flags` is.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let has = |flag: libc::c_int| flags & flag as libc::c_uint != 0;
    Ok(TunFeatures {
        multi_queue: has(libc::IFF_MULTI_QUEUE),
        vnet_hdr: has(libc::IFF_VNET_HDR),
        napi: has(libc::IFF_NAPI),
    })
}

/// Asks for as much as the kernel grants.
fn set_offloads(file: &File) -> Offloads {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let granted = |mask: libc::c_uint| unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, mask) } == 0;
    match () {
        () if granted(TCP | UDP) => Offloads { tcp: true, udp: true },
        // A bit that the kernel does not know makes it refuse all.
        () if granted(TCP) => Offloads { tcp: true, udp: false },
        () => Offloads::default(),
    }
}

fn open_clone_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(CLONE_DEVICE)
}

/// A request about `name`, or `None` when that cannot name an interface (`dev_valid_name` in `net/core/dev.c`).
fn request(name: &str) -> Option<libc::ifreq> {
    let bytes = name.as_bytes();
    let bad = |&byte: &u8| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0x0b;
    if bytes.is_empty() || bytes.len() > NAME_LEN_MAX || name == "." || name == ".." || bytes.iter().any(bad) {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `ifreq`, a name and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::in_namespace;

    fn open(name: &str, multi_queue: bool) -> Result<TunQueue, TunError> {
        TunQueue::open(&TunConfig { name: name.into(), multi_queue, offload: false })
    }

    #[test]
    fn names_are_checked_at_the_limit() {
        assert!(request("exactly-15-char").is_some());
        for name in ["exactly-16-chars", "", ".", "..", "a/b", "a b", "a:b", "a\0b"] {
            assert!(matches!(open(name, false), Err(TunError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn an_interface_in_use_is_refused_and_gone_when_closed() {
        in_namespace(|| {
            let first = open("weir%d", false).unwrap();
            assert_eq!(first.name(), "weir0");
            assert!(matches!(open("weir0", false), Err(TunError::Busy { .. })));
            assert!(matches!(open("weir0", true), Err(TunError::Exists { .. })));
            assert!(matches!(open("lo", false), Err(TunError::Exists { .. })));
            drop(first);
            assert_eq!(open("weir0", false).unwrap().name(), "weir0");
        });
    }

    #[test]
    fn queues_join_a_multi_queue_interface() {
        in_namespace(|| {
            let queues: Vec<_> = (0..4).map(|_| open("weir0", true).unwrap()).collect();
            assert!(queues.iter().all(|queue| queue.name() == "weir0"));
        });
    }

    #[test]
    fn offloads_are_granted_to_whoever_asks() {
        in_namespace(|| {
            let plain = open("weir0", false).unwrap();
            assert_eq!((plain.offloads(), plain.header_len()), (Offloads::default(), 0));
            assert_eq!(plain.offloads().to_string(), "no offloads");
            for _ in 0..2 {
                let queue =
                    TunQueue::open(&TunConfig { name: "weir1".into(), multi_queue: true, offload: true }).unwrap();
                assert_eq!((queue.offloads(), queue.header_len()), (Offloads { tcp: true, udp: true }, 10));
                assert_eq!(queue.offloads().to_string(), "tso4 tso6 uso4 uso6");
            }
        });
    }

    #[test]
    fn what_is_no_program_steers_nothing() {
        in_namespace(|| {
            use std::os::fd::AsFd;
            let queue = open("weir0", true).unwrap();
            assert!(queue.steer(queue.file.as_fd()).is_err());
        });
    }

    #[test]
    fn driver_tells_its_features() {
        assert!(features().unwrap().multi_queue);
    }

    #[test]
    fn errors_name_the_remedy() {
        let source = || io::Error::from_raw_os_error(libc::EPERM);
        assert!(TunError::NoDriver { source: source() }.to_string().contains("modprobe tun"));
        assert!(TunError::Permission { name: "weir0".into(), source: source() }.to_string().contains("CAP_NET_ADMIN"));
    }
}
