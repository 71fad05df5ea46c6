//! QUIC without I/O: mutual TLS 1.3 links that carry messages.
//!
//! The [`Driver`] is quinn-proto with its edges taken off. Datagrams and time go in, datagrams and [`Event`]s come out; it knows no
//! socket, no clock and no thread. What a link is for, and what its messages mean, it refuses to know.
//!
//! ```text
//!              dial, send, close                    Event: Opening, Connected, Message, Closed
//!                     │                                               ▲
//!  ┌──────────────────▼───────────────────────────────────────────────┴──────────────────┐
//!  │ driver   which link a datagram is for · limits · Retry · deadlines                  │
//!  │ link     one connection: its two control streams, its queues, its phase             │
//!  │ crypto   rustls under quinn-proto's traits, with group, suite and verdict in view   │
//!  │ config   one group, TLS 1.3, Ed25519, no tickets, no early data, no names           │
//!  │ verifier asks the pki about the peer's chain and keeps the answer with the link     │
//!  └──────────────────▲───────────────────────────────────────────────┬──────────────────┘
//!                     │ handle_datagram, handle_timeout               ▼ poll_transmit, next_deadline
//! ```
//!
//! A link has a *name* and a *path*. The name is the address under which quinn-proto came to know the peer; it never changes. The path is
//! where datagrams are sent now; [`Driver::path_changed`] moves it. So QUIC sees one unmoving peer, whatever carries its datagrams.
//!
//! The handshake over time, for a link of the ALPN `weir-key/1`:
//!
//! ```text
//!  dialling side                                      accepting side
//!   0.0  ClientHello (two Initials) ─────────────────▶  0.5  Opening: send() now rides with this flight
//!   1.0  Connected, then Message  ◀─ flight ‖ message ─
//!        Finished, certificate ‖ message ────────────▶  1.5  Connected, then Message
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::pki::verifier::Member;

mod cid;
mod close;
mod config;
mod crypto;
mod driver;
mod frame;
#[cfg(feature = "legacy-kyber")]
mod legacy_kyber;
mod limits;
mod link;
mod verifier;

#[cfg(test)]
mod tests;

pub use cid::AdmissionKey;
pub use close::{CloseReason, code};
pub use config::{IdentityError, LeafIdentity};
pub use driver::{Config, DialError, DialTarget, Driver, ExportError, Proof, SendError};
pub use frame::MESSAGE_LEN_MAX;
pub use limits::{Counters, Limits};
pub use link::LinkStats;

/// The TLS group X25519MLKEM768 (RFC 10024): what members agree on.
pub const GROUP_X25519MLKEM768: u16 = 0x11ec;
/// The draft group X25519Kyber768Draft00 (draft-tls-westerbaan-xyber768d00), only with the feature `legacy-kyber`.
pub const GROUP_X25519KYBER768: u16 = 0x6399;

/// What a link is for (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// All that members say to one another.
    Member,
    /// One fresh key exchange for the packet plane; short-lived.
    Key,
    /// Joining, and renewing a certificate; the dialling side shows none.
    Join,
}

impl Alpn {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Member, Self::Key, Self::Join];

    /// As it is written in the handshake.
    pub const fn wire(self) -> &'static [u8] {
        match self {
            Self::Member => b"weir/1",
            Self::Key => b"weir-key/1",
            Self::Join => b"weir-join/1",
        }
    }

    fn from_wire(wire: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.wire() == wire)
    }
}

/// One connection, from the dial or the first datagram to its end. Never used again within a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.0)
    }
}

/// Who began a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
}

/// What happened on a link.
#[derive(Debug)]
pub enum Event {
    /// An accepted link can carry what we say; who listens is not known yet. What is sent now rides with the handshake's first answer and
    /// must be worth nothing to a stranger.
    Opening {
        /// The link.
        link: LinkId,
        /// What it is for.
        alpn: Alpn,
        /// Where it comes from.
        remote: SocketAddr,
    },
    /// The handshake is complete, and the peer is who it claims to be.
    Connected {
        /// The link.
        link: LinkId,
        /// What it is for.
        alpn: Alpn,
        /// Who began it.
        side: Side,
        /// The verified member. `None` for one who joins, and for a peer that was dialled by its id or address alone
        /// ([`Proof::IdOnly`], [`Proof::Later`]).
        peer: Option<Box<Member>>,
        /// The peer's certificates as they came, its own first.
        chain: Vec<Vec<u8>>,
        /// Where datagrams go.
        remote: SocketAddr,
        /// The negotiated group.
        group: u16,
        /// The negotiated cipher suite.
        suite: u16,
        /// Since the dial, or since the peer's first datagram.
        took: Duration,
    },
    /// A whole message of the peer's control stream.
    Message {
        /// The link.
        link: LinkId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The end of a link, told once; also of a dial that never connected.
    Closed {
        /// The link.
        link: LinkId,
        /// Why.
        reason: CloseReason,
    },
}

/// Datagrams to send: the bytes lie at the beginning of the buffer that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Whereto.
    pub to: SocketAddr,
    /// The address of ours to send from, when it matters.
    pub from_ip: Option<IpAddr>,
    /// The two bits of explicit congestion notification (RFC 3168).
    pub ecn: Option<u8>,
    /// Bytes of all datagrams.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter; `None` when there is only one (UDP_SEGMENT).
    pub segment_len: Option<usize>,
}
