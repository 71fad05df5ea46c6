//! The messages between a control plane and the packet plane, over a `SOCK_SEQPACKET` unix socket.
//!
//! One message a packet, so the kernel keeps the borders. Each begins with a fixed header, then the body in postcard's format:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |         version (LE)          |         request id (LE)       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |       request id (cont.)      |  body: Request | Reply        ~
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! A reply carries the id of its request; events carry id 0. The first request on a connection is [`Request::Hello`]; anything else
//! before it is refused. A message that does not decode, or leaves bytes over, is answered with an error and changes nothing.

pub mod client;
pub mod codec;
pub mod message;
pub mod prefix;

pub use client::{Client, ClientError};
pub use message::{Event, Reply, Request};
pub use prefix::Prefix;
pub use weir_abi::admission;

/// Version of the message set. Raised whenever a message changes its meaning or layout.
pub const VERSION: u16 = 2;
/// Longest message in bytes, header included.
pub const MESSAGE_LEN_MAX: usize = 60 * 1024;
/// Most routes in one [`message::Request::StageRoutes`].
pub const ROUTES_PER_MESSAGE: usize = 1024;
/// Most routes that one snapshot holds.
pub const ROUTES_MAX: usize = 1 << 20;
/// Most sessions at a time.
pub const SESSIONS_MAX: usize = 16 * 1024;
/// Most source prefixes of one peer.
pub const SOURCES_MAX: usize = 256;
/// Lowest rate limit of a peer in bytes per second: keep-alives and a key exchange's worth of anything get through.
pub const RATE_MIN: u64 = 1000;
/// Smallest burst of a rate limit in bytes: an eighth of it, which the lowest class may use more than, holds a packet of any Ethernet.
pub const RATE_BURST_MIN: u32 = 64 * 1024;
