//! Links, addresses, neighbours, routes, rules and packet hooks of this host, over blocking netlink sockets (RFC 3549, `linux/rtnetlink.h`).
//!
//! ```text
//! Netlink ── request, sequence number ──▸ kernel
//!         ◂─ messages of that sequence ── then an acknowledgement, an error, or the end of a dump
//! Changes ◂─ notifications of the multicast groups, read without blocking
//! ```
//!
//! [`HostRoutes`] is what keeps overlay traffic from leaving in clear. Every operation may be repeated: adding what is there and removing
//! what is not there succeed. Routes and rules carry [`PROTOCOL`], and only those are ever removed. This part refuses to know what the
//! prefixes mean, and never runs on the packet path.

mod changes;
pub mod features;
mod fib;
mod generic;
mod hook;
mod host;
mod interface;
mod link;
mod neighbour;
mod raw;
mod route;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator, Parseable,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde::Serialize;

use crate::api::Prefix;
use crate::api::prefix::PrefixError;

pub use changes::{Change, Changes, RulesetChanges};
pub use fib::{HostRoute, HostRouteKind, NextHop, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, TABLE_ROUTES_MAX, Tables};
pub use generic::{Generic, XdpFeatures};
pub use hook::{Hook, Hooks};
pub use host::{HostRoutes, Routing};
pub use interface::{Interface, L2, Mac};
pub use link::{HostAddress, Link, XdpMode, XdpState};
pub use neighbour::{Neighbour, NeighbourState};
pub use route::{Family, Route, RouteTarget, Rule};

// From `linux/netlink.h`.

/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Messages of one datagram begin at multiples of this many bytes.
const ALIGNMENT: usize = 4;
/// Attribute of an acknowledgement: the kernel's own words about the error.
const NLMSGERR_ATTR_MSG: u16 = 1;

// Ours.

/// `rtm_protocol` and `FRA_PROTOCOL` of what we install. The kernel and iproute2's `rt_protos` give 119 to nobody.
pub const PROTOCOL: u8 = 119;
/// Longest datagram that is read. The kernel makes those of a dump at most 32 KiB long (`netlink_dump`).
const DATAGRAM_LEN_MAX: usize = 64 * 1024;
/// How often a dump is begun again because the kernel's tables changed under it.
const DUMP_ATTEMPTS: usize = 8;

/// An address of an interface and the length of its network's prefix, as in `10.200.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct InterfaceAddress {
    address: IpAddr,
    prefix_len: u8,
}

impl InterfaceAddress {
    /// Joins address and length.
    ///
    /// # Errors
    /// [`PrefixError::Length`] when the length is longer than the address.
    pub fn new(address: IpAddr, prefix_len: u8) -> Result<Self, PrefixError> {
        if prefix_len > Prefix::host(address).bit_len() {
            return Err(PrefixError::Length(prefix_len));
        }
        Ok(Self { address, prefix_len })
    }

    /// The address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the network's prefix.
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The network that the address lies in.
    pub fn network(&self) -> Prefix {
        let masked = match self.address {
            IpAddr::V4(v4) => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0)).into())
            }
        };
        // No bits are left behind a length that `new` checked; were it otherwise, the address alone is a network too.
        Prefix::new(masked, self.prefix_len).unwrap_or(Prefix::host(self.address))
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl From<InterfaceAddress> for String {
    fn from(address: InterfaceAddress) -> Self {
        address.to_string()
    }
}

/// Why something is not an interface address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceAddressError {
    /// Not ADDRESS/LENGTH.
    #[error("not an interface address; write it with its prefix length, as 10.200.0.1/24 or fd00::1/64")]
    Syntax,
    /// More bits than the address has.
    #[error("a prefix length of {0} is longer than the address: use at most 32 for IPv4 and 128 for IPv6")]
    Length(u8),
}

impl FromStr for InterfaceAddress {
    type Err = InterfaceAddressError;

    fn from_str(text: &str) -> Result<Self, InterfaceAddressError> {
        let (address, len) = text.split_once('/').ok_or(InterfaceAddressError::Syntax)?;
        let address = address.parse().map_err(|_| InterfaceAddressError::Syntax)?;
        let len = len.parse().map_err(|_| InterfaceAddressError::Syntax)?;
        Self::new(address, len).map_err(|_| InterfaceAddressError::Length(len))
    }
}

/// Why something about the host's network could not be done. One line, with the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("cannot open a netlink socket ({0}): allow AF_NETLINK sockets")]
    Socket(#[source] io::Error),
    /// The socket failed.
    #[error("cannot {action}: the netlink socket failed: {source}")]
    Transport {
        /// What was tried.
        action: String,
        /// How it failed.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {action}: {}{}{}", io::Error::from_raw_os_error(*errno), Said(said), remedy(*errno))]
    Refused {
        /// What was tried.
        action: String,
        /// The kernel's error number, positive.
        errno: i32,
        /// The kernel's own words (extended acknowledgement).
        said: Option<String>,
    },
    /// The kernel sent something that this build cannot read.
    #[error("cannot {action}: the kernel's answer is unreadable ({what})")]
    Unreadable {
        /// What was tried.
        action: String,
        /// What is odd.
        what: String,
    },
    /// The kernel's tables would not stay still long enough to be read.
    #[error("cannot {action}: the table changed during each of {DUMP_ATTEMPTS} readings: try again")]
    Unsteady {
        /// What was tried.
        action: String,
    },
    /// No such interface.
    #[error("there is no network interface {interface} here: `ip link` lists those there are")]
    NoInterface {
        /// Its name, or its index after `#`.
        interface: String,
    },
    /// Somebody else uses our routing table.
    #[error(
        "table {table} already holds a route to {prefix} that is not ours (protocol {protocol}): \
         choose another routing.table, or remove it"
    )]
    ForeignRoute {
        /// The table.
        table: u32,
        /// The route's destination.
        prefix: Prefix,
        /// Its `rtm_protocol`.
        protocol: u8,
    },
    /// Another rule stands in our place.
    #[error("another rule of priority {priority} stands in the way of ours: choose another routing.rule_priority")]
    ForeignRule {
        /// The priority.
        priority: u32,
    },
}

impl Error {
    /// The kernel's error number, when the kernel refused.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

struct Said<'a>(&'a Option<String>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(words) => write!(f, ", {words}"),
            None => Ok(()),
        }
    }
}

fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => ": run with CAP_NET_ADMIN",
        libc::ENODEV => ": the interface is gone",
        libc::ENETDOWN => ": the interface is down; bring it up first",
        libc::EAFNOSUPPORT | libc::EOPNOTSUPP => {
            ": enable that address family in the kernel, or configure nothing of it"
        }
        libc::ENOBUFS | libc::ENOMEM => ": free some memory",
        _ => "",
    }
}

/// What is said over one of these sockets: requests and answers are of one type.
trait Message: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug {}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug> Message for M {}

/// What one request came to, before anybody says what it was for.
enum Failure {
    Transport(io::Error),
    Refused { errno: i32, said: Option<String> },
    Unreadable(String),
    Unsteady,
}

impl Failure {
    fn is(&self, errnos: &[i32]) -> bool {
        matches!(self, Self::Refused { errno, .. } if errnos.contains(errno))
    }

    fn during(self, action: impl Into<String>) -> Error {
        let action = action.into();
        match self {
            Self::Transport(source) => Error::Transport { action, source },
            Self::Refused { errno, said } => Error::Refused { action, errno, said },
            Self::Unreadable(what) => Error::Unreadable { action, what },
            Self::Unsteady => Error::Unsteady { action },
        }
    }
}

/// A socket for requests. It speaks to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens the socket. Asking needs no privilege; changing needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Self::open_protocol(NETLINK_ROUTE)
    }

    /// The same for another part of the kernel (`NETLINK_*` of `linux/netlink.h`).
    fn open_protocol(protocol: isize) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel's own words about an error, without an echo of the request before them.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Makes the kernel filter dumps by table: a host with a full feed has a million routes elsewhere.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(Error::Socket)?, sequence: 0, buffer: vec![0; DATAGRAM_LEN_MAX] })
    }

    /// Sends a request and waits for its acknowledgement; `each` sees the messages before it.
    fn request<M: Message>(&mut self, message: M, flags: u16, mut each: impl FnMut(M)) -> Result<(), Failure> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(&mut each).map(|_| ())
    }

    /// Collects what `pick` makes of each entry of a table. A table that does not exist is empty.
    fn dump<M: Message, T>(&mut self, message: M, pick: impl Fn(M) -> Option<T>) -> Result<Vec<T>, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            match self.receive(&mut |message: M| all.extend(pick(message))) {
                Ok(true) => return Ok(all),
                Ok(false) => {}
                Err(failure) if failure.is(&[libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP]) => {
                    return Ok(Vec::new());
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Unsteady)
    }

    fn send<M: Message>(&mut self, message: M, flags: u16) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0).map_err(Failure::Transport)?;
        if sent == bytes.len() { Ok(()) } else { Err(Failure::Transport(io::ErrorKind::WriteZero.into())) }
    }

    /// Reads until the answer to the last request is complete; `false` when a dump is not of one piece.
    fn receive<M: Message>(&mut self, each: &mut dyn FnMut(M)) -> Result<bool, Failure> {
        let mut steady = true;
        loop {
            let (len, from) = match self.socket.recv_from(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Transport(error)),
            };
            if from.port_number() != 0 {
                // Not the kernel: any process may send to a netlink socket.
                continue;
            }
            let datagram = self.buffer.get(..len).ok_or_else(|| {
                Failure::Unreadable(format!("a datagram of {len} bytes, at most {DATAGRAM_LEN_MAX} are read"))
            })?;
            for bytes in messages(datagram) {
                let bytes = bytes.ok_or_else(|| Failure::Unreadable("a message that ends too early".into()))?;
                let message =
                    NetlinkMessage::<M>::deserialize(bytes).map_err(|error| Failure::Unreadable(error.to_string()))?;
                if message.header.sequence_number != self.sequence {
                    // Left over from a request that was given up.
                    continue;
                }
                steady &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(done) => {
                        return acknowledged(done.code, &done.extended_ack).map(|()| steady);
                    }
                    NetlinkPayload::Error(error) => {
                        // The header of the request, then attributes.
                        let attributes = error.header.get(HEADER_LEN..).unwrap_or_default();
                        return acknowledged(error.raw_code(), attributes).map(|()| steady);
                    }
                    NetlinkPayload::Overrun(_) => return Err(Failure::Unreadable("data lost".into())),
                    _ => {}
                }
            }
        }
    }
}

fn acknowledged(code: i32, attributes: &[u8]) -> Result<(), Failure> {
    if code == 0 {
        return Ok(());
    }
    let said = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| DefaultNla::parse(&attribute).ok())
        .map(|attribute| {
            let mut text = vec![0; attribute.value_len()];
            attribute.emit_value(&mut text);
            let text = String::from_utf8_lossy(&text);
            text.trim_end_matches(['\0', '.']).chars().filter(|c| !c.is_control()).collect()
        });
    Err(Failure::Refused { errno: code.wrapping_abs(), said })
}

/// The messages of one datagram; `None` in place of one that is longer than the rest, and nothing after it.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut datagram);
        let message = rest.first_chunk().and_then(|len| {
            let len = u32::from_ne_bytes(*len) as usize;
            if len < HEADER_LEN { None } else { rest.get(..len) }
        });
        if let Some(message) = message {
            datagram = rest.get(message.len().next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_addresses_keep_their_host_bits() {
        for (text, network) in [
            ("10.200.0.1/24", "10.200.0.0/24"),
            ("10.200.0.1/32", "10.200.0.1/32"),
            ("10.200.0.1/0", "0.0.0.0/0"),
            ("fd00::1/64", "fd00::/64"),
            ("fd00::1/128", "fd00::1/128"),
            ("fd00::1/0", "::/0"),
        ] {
            let address: InterfaceAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.network().to_string(), network);
        }
        for text in ["", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "fd00::1/129", "10.0.0.1/-1", "x/8", "10.0.0.1/8/8"] {
            assert!(text.parse::<InterfaceAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_datagram_is_cut_into_messages_and_never_read_past_its_end() {
        let mut datagram = vec![0u8; 36 + 16];
        datagram[..4].copy_from_slice(&33u32.to_ne_bytes());
        datagram[36..40].copy_from_slice(&16u32.to_ne_bytes());
        let lens = |datagram: &[u8]| messages(datagram).map(|m| m.map(<[u8]>::len)).collect::<Vec<_>>();
        assert_eq!(lens(&datagram), [Some(33), Some(16)]);
        assert_eq!(lens(&datagram[..51]), [Some(33), None]);
        assert_eq!(lens(&datagram[..39]), [Some(33), None]);
        assert_eq!(lens(&datagram[..33]), [Some(33)]);
        assert_eq!(lens(&datagram[..32]), [None]);
        assert_eq!(lens(&[]), []);
        for len in [0u32, 15, u32::MAX] {
            datagram[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(lens(&datagram), [None], "{len}");
        }
    }

    #[test]
    fn the_kernels_own_words_are_kept() {
        let mut attributes = vec![15, 0, 1, 0];
        attributes.extend(b"No such.\n\0\0\0");
        let Err(Failure::Refused { errno, said }) = acknowledged(-libc::ENOENT, &attributes) else { panic!("refused") };
        assert_eq!((errno, said.as_deref()), (libc::ENOENT, Some("No such.")));
        assert!(acknowledged(0, &attributes).is_ok());
        assert!(acknowledged(-1, &[1, 0]).is_err());
    }

    #[test]
    fn errors_are_one_line_with_the_remedy() {
        let failure = Failure::Refused { errno: libc::EPERM, said: None };
        let error = failure.during("add 10.0.0.1/8 to eth0");
        let text = error.to_string();
        assert_eq!(text, "cannot add 10.0.0.1/8 to eth0: Operation not permitted (os error 1): run with CAP_NET_ADMIN");
        assert_eq!(error.errno(), Some(libc::EPERM));
    }
}
