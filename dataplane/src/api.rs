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
pub mod connection;
pub mod message;
pub mod policy;
pub mod prefix;

pub use client::{Client, ClientError};
pub use connection::Connection;
pub use message::{Event, Reply, Request};
pub use policy::{PolicyRule, PortRange, Protocol};
pub use prefix::Prefix;
pub use weir_abi::admission;

/// Version of the message set. Raised whenever a message changes its meaning or layout.
pub const VERSION: u16 = 3;
/// Longest message in bytes, header included.
pub const MESSAGE_LEN_MAX: usize = 60 * 1024;
/// Most routes in one [`message::Request::StageRoutes`].
pub const ROUTES_PER_MESSAGE: usize = 1024;
/// Most routes that one snapshot holds.
pub const ROUTES_MAX: usize = 1 << 20;
/// Most sessions at a time.
pub const SESSIONS_MAX: usize = 16 * 1024;
/// Most [`message::Request::Probe`]s of one session within [`PROBE_LIFETIME_MS`].
pub const PROBES_MAX: usize = 8;
/// How long the answer to a probe is awaited, in milliseconds, and a probe counts towards [`PROBES_MAX`].
pub const PROBE_LIFETIME_MS: u64 = 4000;
/// Most source prefixes of one peer.
pub const SOURCES_MAX: usize = 256;
/// Lowest rate limit of a peer in bytes per second: keep-alives and a key exchange's worth of anything get through.
pub const RATE_MIN: u64 = 1000;
/// Smallest burst of a rate limit in bytes: an eighth of it, which the lowest class may use more than, holds a packet of any Ethernet.
pub const RATE_BURST_MIN: u32 = 64 * 1024;
/// Most rules of a policy: the packet plane keeps a bit for each of them with every range of addresses that they tell apart.
pub const POLICY_RULES_MAX: usize = 1024;
/// Most prefixes of all rules of a policy together, sources and destinations. Ranges of addresses are at most twice as many, so bits for
/// [`POLICY_RULES_MAX`] rules take 16 MiB of them.
pub const POLICY_PREFIXES_MAX: usize = 1 << 16;
/// Most sources, and most destinations, of one rule: it fits one message.
pub const POLICY_RULE_PREFIXES_MAX: usize = 1024;
/// Most port ranges of one rule.
pub const POLICY_RULE_PORTS_MAX: usize = 64;
/// Bytes of rules in one [`message::Request::StagePolicy`], as [`policy::stage`] puts them together.
pub const POLICY_MESSAGE_LEN_MAX: usize = MESSAGE_LEN_MAX - 1024;
