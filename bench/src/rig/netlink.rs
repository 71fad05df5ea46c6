//! The few rtnetlink requests that a rig needs (`rtnetlink(7)`), one at a time, blocking.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// One end of a veth pair to be made.
pub(super) struct VethEnd<'a> {
    pub(super) name: &'a str,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) queues: u32,
}

impl VethEnd<'_> {
    fn attributes(&self) -> Vec<LinkAttribute> {
        vec![
            LinkAttribute::IfName(self.name.to_owned()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NumTxQueues(self.queues),
            LinkAttribute::NumRxQueues(self.queues),
        ]
    }
}

/// A request socket in the namespace of the thread that opened it.
pub(super) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and collects what answers it, up to the acknowledgement or the end of the dump.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                // Messages are aligned to four bytes (netlink(7)).
                let len = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len().max(4));
                rest = rest.get(len..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(|_| ())
    }

    /// Makes a veth pair: `near` in this namespace, `far` in the one that `far_namespace` refers to.
    pub(super) fn veth(&mut self, near: &VethEnd<'_>, far: &VethEnd<'_>, far_namespace: RawFd) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = far.attributes();
        peer.attributes.push(LinkAttribute::NetNsFd(far_namespace));
        let mut link = LinkMessage::default();
        link.attributes = near.attributes();
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create(RouteNetlinkMessage::NewLink(link))
    }

    /// Brings a link up.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(|_| ())
    }

    /// Takes a link down: whoever is at its other end loses the carrier.
    pub(super) fn down(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(|_| ())
    }

    /// Makes a bridge in this namespace.
    pub(super) fn bridge(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.create(RouteNetlinkMessage::NewLink(link))
    }

    /// Makes a link a port of a bridge.
    pub(super) fn enslave(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Controller(bridge)];
        self.request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(|_| ())
    }

    /// Sets MTU and transmit queue of a link and brings it up.
    pub(super) fn shape(&mut self, index: u32, mtu: u32, queue_len: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(queue_len)];
        self.request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(|_| ())
    }

    /// Adds an address, usable at once: no duplicate address detection.
    pub(super) fn address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.create(RouteNetlinkMessage::NewAddress(message))
    }

    /// Adds a unicast route by a gateway in the main table.
    pub(super) fn route(&mut self, destination: IpAddr, prefix_len: u8, gateway: IpAddr) -> io::Result<()> {
        self.add_route(destination, prefix_len, RouteAttribute::Gateway(RouteAddress::from(gateway)))
    }

    /// Adds a unicast route by an interface in the main table.
    pub(super) fn route_by(&mut self, destination: IpAddr, prefix_len: u8, interface: u32) -> io::Result<()> {
        self.add_route(destination, prefix_len, RouteAttribute::Oif(interface))
    }

    fn add_route(&mut self, destination: IpAddr, prefix_len: u8, by: RouteAttribute) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = prefix_len;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        if prefix_len > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
        }
        message.attributes.push(by);
        self.create(RouteNetlinkMessage::NewRoute(message))
    }

    /// The link-layer address of an interface.
    pub(super) fn mac(&mut self, index: u32) -> io::Result<Option<[u8; 6]>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answers = self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => link.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::Address(mac) => mac.try_into().ok(),
                _ => None,
            }),
            _ => None,
        }))
    }

    /// How the kernel would route to `destination`: the interface, the gateway if there is one, and the source address.
    pub(super) fn lookup(&mut self, destination: IpAddr) -> io::Result<Option<Lookup>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv6() { 128 } else { 32 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
        let answers = match self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK) {
            Ok(answers) => answers,
            Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(RouteNetlinkMessage::NewRoute(route)) = answers.into_iter().next() else { return Ok(None) };
        let mut found = Lookup { interface: 0, gateway: None, source: None };
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = index,
                RouteAttribute::Gateway(address) => found.gateway = ip(address),
                RouteAttribute::PrefSource(address) => found.source = ip(address),
                _ => {}
            }
        }
        Ok(Some(found))
    }

    /// The link-layer address of a resolved neighbour.
    pub(super) fn neighbour(&mut self, interface: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        let answers = self.request(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(entry)
                if entry.header.ifindex == interface
                    && !matches!(entry.header.state, NeighbourState::Incomplete | NeighbourState::Failed)
                    && entry.attributes.iter().any(|a| match a {
                        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == address,
                        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == address,
                        _ => false,
                    }) =>
            {
                entry.attributes.into_iter().find_map(|a| match a {
                    NeighbourAttribute::LinkLayerAddress(mac) => mac.try_into().ok(),
                    _ => None,
                })
            }
            _ => None,
        }))
    }
}

/// An answer of the routing table.
pub(super) struct Lookup {
    pub(super) interface: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(v6)),
        _ => None,
    }
}
