//! What decides whether a packet may leave or enter an interface past the kernel's router: kind, link address, who stands above it.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
};

use super::{Error, Netlink};

/// An Ethernet address in the order in which it stands in a frame.
pub type Mac = [u8; 6];

/// How a frame to some destination begins, and where it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2 {
    /// Index of the interface that it leaves by.
    pub interface: u32,
    /// Our address on that interface.
    pub source_mac: Mac,
    /// The address of the next hop, or of the destination itself.
    pub destination_mac: Mac,
    /// The address that packets of this host leave with; `None` when the interface has none of the destination's family.
    pub source: Option<IpAddr>,
    /// Largest packet in bytes that the interface takes; longer ones are for the kernel, which fragments or refuses them.
    pub mtu: u32,
}

/// An interface as the forwarding plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up, has a carrier, and nothing holds it back (IFF_UP, IFF_LOWER_UP, no operstate of DORMANT or TESTING).
    pub running: bool,
    /// Whether its frames are plain Ethernet ones (ARPHRD_ETHER).
    pub ethernet: bool,
    /// Its Ethernet address; `None` on links of another type.
    pub mac: Option<Mac>,
    /// Largest packet in bytes, without the link's own header.
    pub mtu: u32,
    /// Its kind where it is a virtual one: `veth`, `vlan`, `bridge`, …
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Index of the link below it, as of a VLAN. A veth names its peer here, which may be in another namespace.
    pub lower: Option<u32>,
}

impl Interface {
    /// Whether this is a VLAN or another link that takes frames out of the one below it.
    pub fn takes_from(&self, lower: u32) -> bool {
        let shares =
            matches!(self.kind.as_deref(), Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "macsec"));
        shares && self.lower == Some(lower)
    }
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(RouteNetlinkMessage::GetLink(message), |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(read_interface(link)),
            _ => None,
        })
        .map_err(|failure| failure.during("list the interfaces of this host"))
    }
}

impl Netlink {
    /// Makes a pair of virtual Ethernet devices.
    ///
    /// # Errors
    /// [`Error::Refused`], with EEXIST when there is a device of one of the names.
    pub(in crate::io) fn add_veth(&mut self, name: &str, peer: &str) -> Result<(), Error> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.into()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, |_| {})
            .map_err(|failure| failure.during(format!("make the veth pair {name} and {peer}")))
    }

    /// Moves a device into another network namespace.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub(in crate::io) fn move_link(&mut self, index: u32, namespace: &File) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        self.request(RouteNetlinkMessage::SetLink(message), 0, |_| {})
            .map_err(|failure| failure.during(format!("move interface #{index} to another namespace")))
    }
}

fn read_interface(message: LinkMessage) -> Interface {
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        running: up,
        ethernet,
        mac: None,
        mtu: 0,
        kind: None,
        master: None,
        lower: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Address(bytes) if ethernet => interface.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Controller(index) => interface.master = Some(index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => interface.lower = Some(index).filter(|index| *index != 0),
            LinkAttribute::OperState(State::Dormant | State::Testing) => interface.running = false,
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    interface
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Namespace, ip};
    use super::*;

    #[test]
    fn interfaces_tell_their_address_state_master_and_what_stands_above() {
        let _namespace = Namespace::with_veth();
        for command in [
            "link set va address 02:00:00:00:00:0a",
            "link set va up",
            "link add br0 type bridge",
            "link set vb master br0",
            "link add mv0 link va type macvlan",
            "tuntap add tun0 mode tun",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let interfaces = netlink.interfaces().unwrap();
        let named = |name: &str| interfaces.iter().find(|interface| interface.name == name).unwrap();
        let (va, vb, bridge, macvlan, tun) = (named("va"), named("vb"), named("br0"), named("mv0"), named("tun0"));
        assert_eq!((va.mac, va.ethernet, va.master), (Some([2, 0, 0, 0, 0, 10]), true, None));
        assert!(!va.running, "its peer is down");
        assert_eq!((va.kind.as_deref(), bridge.kind.as_deref()), (Some("veth"), Some("bridge")));
        assert_eq!(vb.master, Some(bridge.index));
        assert!(macvlan.takes_from(va.index) && !macvlan.takes_from(vb.index) && !vb.takes_from(va.index));
        assert_eq!((tun.ethernet, tun.mac), (false, None));
        ip("link set vb up");
        let interfaces = netlink.interfaces().unwrap();
        assert!(interfaces.iter().any(|interface| interface.name == "va" && interface.running));
    }
}
