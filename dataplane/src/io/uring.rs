//! Ports over io_uring: the underlay's datagrams and the TUN's packets.
//!
//! All ports of a worker share its [`Ring`](super::ring::Ring). Receiving is one multishot operation per descriptor that takes buffers from
//! a ring of provided ones; sending is one chain per flush. See `rx`, `tx` and `tun` for the rules of each.

mod buffers;
mod rx;
mod tun;
mod tx;

pub(super) use buffers::BufferRing;
pub use rx::{UdpRx, UdpRxConfig};
pub use tun::{TunRx, TunRxConfig, TunTx};
pub use tx::UdpTx;

/// What happened to a receiving port besides frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounters {
    /// Times the multishot operation ended and was armed again, for whatever reason.
    pub rearmed: u64,
    /// Times it ended because every buffer was lent (`ENOBUFS`); the kernel keeps what arrives meanwhile, as far as its own queue goes.
    pub starved: u64,
    /// Times it ended with another error.
    pub errors: u64,
}

impl RxCounters {
    /// Counts the end of an operation; `Err` when arming it again is of no use.
    fn count_end(&mut self, result: i32) -> std::io::Result<()> {
        match -result {
            ..=0 => {}
            libc::ENOBUFS => self.starved += 1,
            // The descriptor is not what it was, or its device is gone.
            errno @ (libc::EBADF | libc::EBADFD | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV) => {
                return Err(std::io::Error::from_raw_os_error(errno));
            }
            _ => self.errors += 1,
        }
        Ok(())
    }
}
