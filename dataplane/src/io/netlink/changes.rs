//! Notifications: what changed in links, addresses, neighbours, routes, rules and packet hooks of this host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use super::link::read_address;
use super::neighbour::read_neighbour;
use super::route::{Family, read_route};
use super::{DATAGRAM_LEN_MAX, Error, HostAddress, Neighbour, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, messages};
use crate::api::Prefix;

/// Multicast groups (`RTNLGRP_*` of `linux/rtnetlink.h`): links; IPv4 addresses, routes, rules; the same of IPv6.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// The same without routes and rules.
const ADDRESS_GROUPS: [u32; 3] = [1, 5, 9];
/// The same: neighbours, tc.
const FORWARDING_GROUPS: [u32; 2] = [3, 4];
/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;
/// Receive buffer in bytes where neighbours are listened to as well: some thousand notifications of a table that ages at once.
const FORWARDING_BUFFER_LEN: usize = 1 << 20;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface appeared, disappeared or changed.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// Whether it is administratively up.
        up: bool,
        /// Whether it is gone.
        removed: bool,
    },
    /// An address came or went.
    Address {
        /// The address and its interface.
        address: HostAddress,
        /// Whether it is gone.
        removed: bool,
    },
    /// A route of the table that is watched came or went.
    Route {
        /// Its destination.
        prefix: Prefix,
        /// Whether it is gone.
        removed: bool,
    },
    /// A neighbour came, went, or is known better or worse than before. Only after [`Changes::watch_forwarding`].
    Neighbour {
        /// The neighbour.
        neighbour: Neighbour,
        /// Whether it is gone.
        removed: bool,
    },
    /// A route of the kernel's own tables came or went. Only after [`Changes::watch_forwarding`].
    KernelRoute,
    /// Something that handles packets on their way came or went: tc filters. Only after [`Changes::watch_forwarding`].
    Hook,
    /// Some rule came or went.
    Rule {
        /// Of which family.
        family: Family,
        /// Whether it is gone.
        removed: bool,
    },
    /// Notifications were lost or unreadable: look at everything again.
    Lost,
}

/// A socket that hears of changes in the network namespace of the thread that opened it. It never blocks; its descriptor is readable when
/// there is something to poll (level-triggered).
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
    table: u32,
    forwarding: bool,
    buffer: Vec<u8>,
    /// Read and not yet returned; the oldest at the end.
    pending: Vec<Change>,
}

impl Changes {
    /// Subscribes to changes of links, addresses, rules, and the routes of one table.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn subscribe(table: u32) -> Result<Self, Error> {
        Self::of(&GROUPS, table)
    }

    /// Subscribes to changes of links and addresses only. Needs no privilege.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn subscribe_to_addresses() -> Result<Self, Error> {
        Self::of(&ADDRESS_GROUPS, TABLE_MAIN)
    }

    fn of(groups: &[u32], table: u32) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in groups.iter().copied() {
                match socket.add_membership(group) {
                    // A kernel without IPv6 has fewer groups.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    other => other?,
                }
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(Error::Socket)?;
        Ok(Self { socket, table, forwarding: false, buffer: vec![0; DATAGRAM_LEN_MAX], pending: Vec::new() })
    }

    /// Listens to neighbours, tc and the routes of the kernel's own tables too.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn watch_forwarding(&mut self) -> Result<(), Error> {
        // Without the larger buffer more is lost, which is told and made good.
        let _ = self.socket.set_rx_buf_sz(FORWARDING_BUFFER_LEN);
        for group in FORWARDING_GROUPS {
            self.socket.add_membership(group).map_err(transport)?;
        }
        self.forwarding = true;
        Ok(())
    }

    /// The next change, or `None` when there is none at the moment.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn poll_event(&mut self) -> Result<Option<Change>, Error> {
        loop {
            if let Some(change) = self.pending.pop() {
                return Ok(Some(change));
            }
            match self.socket.recv_from(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((len, _)) => match self.buffer.get(..len) {
                    Some(datagram) => self.pending = read(datagram, self.table, self.forwarding),
                    None => return Ok(Some(Change::Lost)),
                },
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => return Ok(Some(Change::Lost)),
                    _ => return Err(transport(error)),
                },
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn transport(source: io::Error) -> Error {
    Error::Transport { action: "listen for changes of the network".into(), source }
}

/// The changes of one datagram, the last one first.
fn read(datagram: &[u8], table: u32, forwarding: bool) -> Vec<Change> {
    let mut changes: Vec<_> = messages(datagram)
        .filter_map(|bytes| match bytes.and_then(|bytes| NetlinkMessage::deserialize(bytes).ok()) {
            Some(message) => match message.payload {
                NetlinkPayload::InnerMessage(inner) => change(&inner, table, forwarding),
                NetlinkPayload::Overrun(_) => Some(Change::Lost),
                _ => None,
            },
            None => Some(Change::Lost),
        })
        .collect();
    changes.reverse();
    changes
}

fn change(message: &RouteNetlinkMessage, table: u32, forwarding: bool) -> Option<Change> {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelNeighbour, DelQueueDiscipline, DelRoute, DelRule, DelTrafficFilter, NewAddress,
        NewLink, NewNeighbour, NewQueueDiscipline, NewRoute, NewRule, NewTrafficFilter,
    };
    let removed = matches!(message, DelAddress(_) | DelLink(_) | DelNeighbour(_) | DelRoute(_) | DelRule(_));
    match message {
        // Bridge ports have messages of their own with the bridge's family; they say nothing about the link itself.
        NewLink(link) | DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            let up = link.header.flags.contains(LinkFlags::Up);
            Some(Change::Link { index: link.header.index, name: link_name(link), up, removed })
        }
        NewAddress(address) | DelAddress(address) => {
            read_address(address).map(|address| Change::Address { address, removed })
        }
        NewRoute(route) | DelRoute(route) => read_route(route).and_then(|(in_table, entry)| match in_table {
            _ if in_table == table => Some(Change::Route { prefix: entry.prefix, removed }),
            TABLE_LOCAL | TABLE_MAIN | TABLE_DEFAULT if forwarding => Some(Change::KernelRoute),
            _ => None,
        }),
        NewNeighbour(neighbour) | DelNeighbour(neighbour) => {
            read_neighbour(neighbour).map(|neighbour| Change::Neighbour { neighbour, removed })
        }
        NewTrafficFilter(_) | DelTrafficFilter(_) | NewQueueDiscipline(_) | DelQueueDiscipline(_) => Some(Change::Hook),
        NewRule(rule) | DelRule(rule) => match rule.header.family {
            AddressFamily::Inet => Some(Change::Rule { family: Family::V4, removed }),
            AddressFamily::Inet6 => Some(Change::Rule { family: Family::V6, removed }),
            _ => None,
        },
        _ => None,
    }
}

/// A socket that hears when somebody changes nftables. Like [`Changes`] it never blocks.
#[derive(Debug)]
pub struct RulesetChanges {
    socket: Socket,
    buffer: Vec<u8>,
}

impl RulesetChanges {
    /// Subscribes. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// [`Error::Socket`], also where the kernel has no netfilter.
    pub fn subscribe() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(NFTABLES_GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(Error::Socket)?, buffer: vec![0; DATAGRAM_LEN_MAX] })
    }

    /// Whether anything changed since the last call. What it was has to be asked for: rulesets change a hundred rules at a time.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn poll_changed(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        loop {
            match self.socket.recv_from(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Ok((_, from)) => changed |= from.port_number() == 0,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(changed),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => changed = true,
                    _ => return Err(transport(error)),
                },
            }
        }
    }
}

impl AsFd for RulesetChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn link_name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::rule::RuleMessage;

    use super::super::Netlink;
    use super::super::testing::{Namespace, ip};
    use super::*;

    /// The notifications of a finished `ip` command are queued before it ends.
    fn drain(changes: &mut Changes) -> Vec<Change> {
        std::iter::from_fn(|| changes.poll_event().unwrap()).collect()
    }

    #[test]
    fn each_kind_of_change_is_heard() {
        let _namespace = Namespace::with_veth();
        let index = Netlink::open().unwrap().link("va").unwrap().index;
        let mut changes = Changes::subscribe(7770).unwrap();
        assert_eq!(drain(&mut changes), []);
        ip("link set va up");
        let heard = drain(&mut changes);
        assert!(heard.contains(&Change::Link { index, name: "va".into(), up: true, removed: false }), "{heard:?}");

        let address = HostAddress { link: index, address: "10.9.0.1/24".parse().unwrap() };
        let prefix = "10.8.0.0/16".parse().unwrap();
        for (command, expected) in [
            ("addr add 10.9.0.1/24 dev va", Change::Address { address, removed: false }),
            ("addr del 10.9.0.1/24 dev va", Change::Address { address, removed: true }),
            ("route add unreachable 10.8.0.0/16 table 7770", Change::Route { prefix, removed: false }),
            ("route del unreachable 10.8.0.0/16 table 7770", Change::Route { prefix, removed: true }),
            ("rule add priority 99 table 7770", Change::Rule { family: Family::V4, removed: false }),
            ("-6 rule add priority 99 table 7770", Change::Rule { family: Family::V6, removed: false }),
            ("rule del priority 99", Change::Rule { family: Family::V4, removed: true }),
            ("link del va", Change::Link { index, name: "va".into(), up: false, removed: true }),
        ] {
            ip(command);
            let heard = drain(&mut changes);
            assert!(heard.contains(&expected), "{command}: {heard:?}");
        }
    }

    #[test]
    fn who_asks_for_addresses_hears_of_no_routes() {
        let _namespace = Namespace::with_veth();
        let index = Netlink::open().unwrap().link("va").unwrap().index;
        let mut changes = Changes::subscribe_to_addresses().unwrap();
        ip("route add unreachable 10.8.0.0/16");
        ip("rule add priority 99 table 7770");
        assert_eq!(drain(&mut changes), []);
        ip("link set va up");
        ip("addr add 10.9.0.1/24 dev va");
        let heard = drain(&mut changes);
        let address = HostAddress { link: index, address: "10.9.0.1/24".parse().unwrap() };
        assert!(heard.contains(&Change::Link { index, name: "va".into(), up: true, removed: false }), "{heard:?}");
        assert!(heard.contains(&Change::Address { address, removed: false }), "{heard:?}");
    }

    #[test]
    fn routes_of_other_tables_are_not_heard() {
        let _namespace = Namespace::with_veth();
        let mut changes = Changes::subscribe(7770).unwrap();
        ip("route add unreachable 10.8.0.0/16 table 7771");
        assert_eq!(drain(&mut changes), []);
    }

    #[test]
    fn forwarding_is_heard_of_only_when_asked_for() {
        let _namespace = Namespace::with_veth();
        let index = Netlink::open().unwrap().link("va").unwrap().index;
        ip("link set va up");
        ip("link set vb up");
        let mut changes = Changes::subscribe(7770).unwrap();
        let commands = [
            "neigh add 10.9.0.7 lladdr 02:00:00:00:00:07 nud stale dev va",
            "route add unreachable 10.8.0.0/16",
            "neigh del 10.9.0.7 dev va",
            "route del unreachable 10.8.0.0/16",
        ];
        commands.into_iter().for_each(|command| drop(ip(command)));
        let ours = |change: &Change| matches!(change, Change::Neighbour { .. } | Change::KernelRoute | Change::Hook);
        assert!(!drain(&mut changes).iter().any(ours));
        changes.watch_forwarding().unwrap();
        let (mac, state) = (Some([2, 0, 0, 0, 0, 7]), crate::io::netlink::NeighbourState::Stale);
        let stale = Neighbour { link: index, address: "10.9.0.7".parse().unwrap(), mac, state };
        ip(commands[0]);
        assert!(drain(&mut changes).contains(&Change::Neighbour { neighbour: stale, removed: false }));
        ip(commands[1]);
        // The carrier of a new device is told whenever the kernel gets to it, with routes of its own.
        assert!(drain(&mut changes).contains(&Change::KernelRoute));
        ip(commands[2]);
        let heard = drain(&mut changes);
        let gone = |change: &Change| {
            matches!(change, Change::Neighbour { neighbour, removed }
                if neighbour.address == stale.address && (*removed || neighbour.state != stale.state))
        };
        assert!(heard.iter().any(gone), "{heard:?}");
        assert!(
            std::process::Command::new("tc").args("qdisc add dev va clsact".split(' ')).status().unwrap().success()
        );
        assert!(drain(&mut changes).contains(&Change::Hook));
    }

    #[test]
    fn changes_of_the_ruleset_are_heard() {
        let _namespace = Namespace::with_veth();
        let mut changes = RulesetChanges::subscribe().unwrap();
        assert!(!changes.poll_changed().unwrap());
        assert!(std::process::Command::new("nft").args(["add", "table", "inet", "t"]).status().unwrap().success());
        assert!(changes.poll_changed().unwrap());
        assert!(!changes.poll_changed().unwrap());
    }

    #[test]
    fn an_overrun_is_told_and_the_socket_goes_on() {
        let _namespace = Namespace::with_veth();
        let mut changes = Changes::subscribe(7770).unwrap();
        changes.socket.set_rx_buf_sz(4096).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        for _ in 0..64 {
            netlink.set_link_up(index, true).unwrap();
            netlink.set_link_up(index, false).unwrap();
        }
        assert!(drain(&mut changes).contains(&Change::Lost));
        netlink.set_link_up(index, true).unwrap();
        assert!(!drain(&mut changes).is_empty());
    }

    #[test]
    fn changes_are_told_in_the_order_in_which_they_happened() {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        let mut datagram = Vec::new();
        for message in [RouteNetlinkMessage::NewRule(rule.clone()), RouteNetlinkMessage::DelRule(rule)] {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            datagram.extend(bytes);
        }
        let mut changes = Changes::subscribe(7770).unwrap();
        changes.pending = read(&datagram, 7770, false);
        for removed in [false, true] {
            assert_eq!(changes.poll_event().unwrap(), Some(Change::Rule { family: Family::V4, removed }));
        }
    }

    #[test]
    fn what_another_process_sends_is_not_believed() {
        let _namespace = Namespace::with_veth();
        let mut changes = Changes::subscribe(7770).unwrap();
        let mut address = SocketAddr::new(0, 0);
        changes.socket.get_address(&mut address).unwrap();
        let mut other = Socket::new(NETLINK_ROUTE).unwrap();
        other.bind_auto().unwrap();
        other.send_to(&[0; 20], &address, 0).unwrap();
        assert_eq!(drain(&mut changes), []);
    }

    #[test]
    fn unreadable_notifications_count_as_lost() {
        assert_eq!(read(&[1, 2, 3], 7770, false), [Change::Lost]);
        let mut garbage = vec![0u8; 20];
        garbage[..4].copy_from_slice(&20u32.to_ne_bytes());
        garbage[4..6].copy_from_slice(&16u16.to_ne_bytes());
        assert_eq!(read(&garbage, 7770, false), [Change::Lost]);
    }
}
