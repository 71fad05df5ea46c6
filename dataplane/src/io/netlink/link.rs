//! Network interfaces and their addresses.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Failure, InterfaceAddress, Netlink};

/// Longest name that fits IFLA_IFNAME, in bytes; longer ones are alternative names.
const IFLA_IFNAME_LEN_MAX: usize = 15;
/// Attribute of a request for an interface by its alternative name (`linux/if_link.h`).
const IFLA_ALT_IFNAME: u16 = 53;
/// Settings of IPv4 in `IFLA_AF_SPEC` (`linux/if_link.h`), and the number of the one called `accept_local` (`linux/ip.h`).
const IFLA_INET_CONF: u8 = 1;
const IPV4_DEVCONF_ACCEPT_LOCAL: u8 = 23;

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index (`ifi_index`).
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest packet in bytes, without the link's own header.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Name of the driver: `veth`, `tun`, `virtio_net`, …; `None` when the kernel does not say.
    pub driver: Option<String>,
    /// The XDP program that is attached.
    pub xdp: Option<XdpState>,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Receive queues.
    pub rx_queues: u32,
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    /// Where it sits.
    pub mode: XdpMode,
    /// Its program id; `None` with [`XdpMode::Multiple`].
    pub program: Option<u32>,
}

/// Where an XDP program sits (`XDP_ATTACHED_*` of `linux/if_link.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// On the device.
    Hardware,
    /// In more than one place.
    Multiple,
}

impl XdpMode {
    /// One lower-case word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
            Self::Multiple => "several modes",
        }
    }
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// Index of the interface that has it.
    pub link: u32,
    /// Address and prefix length.
    pub address: InterfaceAddress,
}

impl Netlink {
    /// The interface with this name or alternative name.
    ///
    /// # Errors
    /// [`Error::NoInterface`] when there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(if name.len() <= IFLA_IFNAME_LEN_MAX {
            LinkAttribute::IfName(name.into())
        } else {
            // The kernel takes it bare; the crate knows it only inside IFLA_PROP_LIST, as it is reported.
            LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), b"\0"].concat()))
        });
        self.find_link(message, name.into())
    }

    /// The interface with this index.
    ///
    /// # Errors
    /// [`Error::NoInterface`] when there is none.
    pub fn link_at(&mut self, index: u32) -> Result<Link, Error> {
        if index == 0 {
            // Zero asks the kernel for nothing at all, which it refuses with another error.
            return Err(Error::NoInterface { interface: "#0".into() });
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(message, format!("#{index}"))
    }

    fn find_link(&mut self, mut message: LinkMessage, interface: String) -> Result<Link, Error> {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut found = None;
        let asked = self.request(RouteNetlinkMessage::GetLink(message), 0, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                found = Some(read_link(link));
            }
        });
        match asked {
            // A name that cannot be one is refused as out of range.
            Err(failure) if failure.is(&[libc::ENODEV, libc::ERANGE]) => Err(Error::NoInterface { interface }),
            Err(failure) => Err(failure.during(format!("look up interface {interface}"))),
            Ok(()) => found.ok_or(Error::NoInterface { interface }),
        }
    }

    /// Brings an interface up, or takes it down.
    ///
    /// # Errors
    /// [`Error::Refused`], with ENODEV when the interface is gone.
    pub fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        self.set_link(message).map_err(|failure| {
            let action = if up { "bring up" } else { "take down" };
            failure.during(format!("{action} {}", self.name_of(index)))
        })
    }

    /// Sets the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// [`Error::Refused`], with EINVAL when the driver does not take that MTU.
    pub fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set_link(message)
            .map_err(|failure| failure.during(format!("set the MTU of {} to {mtu}", self.name_of(index))))
    }

    /// Sets how many packets wait in an interface's transmit queue.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn set_link_queue_len(&mut self, index: u32, packets: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::TxQueueLen(packets));
        self.set_link(message)
            .map_err(|failure| failure.during(format!("set the queue length of {} to {packets}", self.name_of(index))))
    }

    /// Has the kernel take IPv4 packets from an interface whose source is an address of this host (`accept_local` in
    /// `Documentation/networking/ip-sysctl.rst`). It drops them otherwise, and with them every ICMP error that a gateway writes to its own
    /// TUN. IPv6 has no such rule.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn accept_local_sources(&mut self, index: u32) -> Result<(), Error> {
        // Nested three times: the family, its settings by number, and one of these.
        let mut family =
            vec![16, 0, libc::AF_INET as u8, 0, 12, 0, IFLA_INET_CONF, 0, 8, 0, IPV4_DEVCONF_ACCEPT_LOCAL, 0];
        if cfg!(target_endian = "big") {
            family.chunks_exact_mut(2).for_each(|number| number.swap(0, 1));
        }
        family.extend(1u32.to_ne_bytes());
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Other(DefaultNla::new(libc::IFLA_AF_SPEC, family)));
        self.set_link(message).map_err(|failure| {
            failure.during(format!("have {} accept packets from our own addresses", self.name_of(index)))
        })
    }

    fn set_link(&mut self, message: LinkMessage) -> Result<(), Failure> {
        self.request(RouteNetlinkMessage::SetLink(message), 0, |_| {})
    }

    /// The name of an interface for an error message.
    fn name_of(&mut self, index: u32) -> String {
        self.link_at(index).map_or_else(|_| format!("interface #{index}"), |link| link.name)
    }

    /// Gives an interface an address. One that it has already stays.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn add_address(&mut self, index: u32, address: InterfaceAddress) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, |_| {})
            .map_err(|failure| failure.during(format!("add address {address} to {}", self.name_of(index))))
    }

    /// Takes an address from an interface. It is not an error when the address is not there.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn remove_address(&mut self, index: u32, address: InterfaceAddress) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        match self.request(message, 0, |_| {}) {
            Err(failure) if failure.is(&[libc::EADDRNOTAVAIL, libc::ENODEV]) => Ok(()),
            other => other
                .map_err(|failure| failure.during(format!("remove address {address} from {}", self.name_of(index)))),
        }
    }

    /// All addresses of this host, on all interfaces.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn addresses(&mut self) -> Result<Vec<HostAddress>, Error> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(message, |answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => read_address(&address),
            _ => None,
        })
        .map_err(|failure| failure.during("list the addresses of this host"))
    }
}

fn address_message(index: u32, address: InterfaceAddress) -> AddressMessage {
    let ip = address.address();
    let mut message = AddressMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL ours; IPv6 has only IFA_ADDRESS otherwise.
pub(super) fn read_address(message: &AddressMessage) -> Option<HostAddress> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address: IpAddr = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })?;
    let address = InterfaceAddress::new(address, message.header.prefix_len).ok()?;
    Some(HostAddress { link: message.header.index, address })
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        driver: None,
        xdp: None,
        tx_queues: 1,
        rx_queues: 1,
    };
    let (mut parent, mut bus) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::NumTxQueues(queues) => link.tx_queues = queues,
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = queues,
            LinkAttribute::Xdp(xdp) => link.xdp = read_xdp(&xdp),
            LinkAttribute::ParentDevName(name) => parent = Some(name),
            LinkAttribute::ParentDevBusName(name) => bus = Some(name),
            LinkAttribute::LinkInfo(infos) => {
                link.driver = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if let (None, Some(parent), Some(bus)) = (&link.driver, parent, bus) {
        link.driver = bus_driver(&bus, &parent);
    }
    if link.driver.is_none() && message.header.flags.contains(LinkFlags::Loopback) {
        link.driver = Some("loopback".into());
    }
    link
}

/// The driver bound to a device, from sysfs. Its `bus` tree, unlike `class/net`, shows all devices in every network namespace.
fn bus_driver(bus: &str, device: &str) -> Option<String> {
    if [bus, device].iter().any(|part| part.contains('/') || part.starts_with('.')) {
        return None;
    }
    let driver = std::fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

fn read_xdp(attributes: &[LinkXdp]) -> Option<XdpState> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Hardware),
        LinkXdp::Attached(XdpAttached::Multiple) => Some(XdpMode::Multiple),
        _ => None,
    })?;
    let program = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(XdpState { mode, program })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

    use super::super::testing::{Namespace, ip};
    use super::*;

    #[test]
    fn links_are_found_by_name_and_by_index_and_changed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("va").unwrap();
        assert_eq!((link.name.as_str(), link.driver.as_deref(), link.up), ("va", Some("veth"), false));
        assert_eq!((link.xdp, link.rx_queues), (None, 2));
        assert_eq!(netlink.link_at(link.index).unwrap(), link);
        assert_eq!(netlink.link("lo").unwrap().driver.as_deref(), Some("loopback"));

        for _ in 0..2 {
            netlink.set_link_up(link.index, true).unwrap();
            netlink.set_link_mtu(link.index, 1280).unwrap();
        }
        let shown = &ip("link show va")[0];
        assert_eq!(shown["mtu"], 1280);
        let accepts = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/accept_local")).unwrap();
        assert_eq!(accepts("va"), "0\n");
        netlink.accept_local_sources(link.index).unwrap();
        assert_eq!((accepts("va"), accepts("vb")), ("1\n".to_owned(), "0\n".to_owned()));
        assert!(shown["flags"].as_array().unwrap().contains(&"UP".into()));
        netlink.set_link_up(link.index, false).unwrap();
        assert!(!netlink.link("va").unwrap().up);
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        for name in ["eth77", "a-name-that-is-too-long-for-the-kernel", "", "bad/name"] {
            let error = netlink.link(name).unwrap_err();
            assert!(matches!(&error, Error::NoInterface { interface } if interface == name), "{name:?}: {error}");
        }
        assert!(matches!(netlink.link_at(0), Err(Error::NoInterface { .. })));
        assert!(matches!(netlink.link_at(9999), Err(Error::NoInterface { .. })));
        let error = netlink.set_link_up(9999, true).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().contains("interface #9999"), "{error}");
        let index = netlink.link("va").unwrap().index;
        let error = netlink.set_link_mtu(index, 1).unwrap_err();
        assert!(error.to_string().contains("MTU of va to 1"), "{error}");
        assert!(error.to_string().ends_with(", mtu less than device minimum"), "the kernel's own words: {error}");
    }

    #[test]
    fn the_answer_to_a_request_that_was_given_up_is_not_taken_for_the_next_one() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let mut given_up = LinkMessage::default();
        given_up.attributes.push(LinkAttribute::IfName("lo".into()));
        netlink.send(RouteNetlinkMessage::GetLink(given_up), NLM_F_REQUEST | NLM_F_ACK).map_err(|_| ()).unwrap();
        assert_eq!(netlink.link("va").unwrap().name, "va");
    }

    #[test]
    fn alternative_names_are_found() {
        let _namespace = Namespace::with_veth();
        let long = "an-alternative-name-of-forty-characters1";
        ip(&format!("link property add dev va altname {long}"));
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.link(long).unwrap().name, "va");
    }

    #[test]
    fn addresses_are_added_once_listed_and_removed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        let addresses: Vec<InterfaceAddress> = ["10.9.0.1/24", "fd09::1/64"].map(|text| text.parse().unwrap()).into();
        for address in addresses.iter().chain(&addresses) {
            netlink.add_address(index, *address).unwrap();
        }
        let listed: Vec<_> =
            netlink.addresses().unwrap().iter().filter(|a| a.link == index).map(|a| a.address).collect();
        assert_eq!(listed, addresses);
        let shown = &ip("addr show va")[0]["addr_info"];
        for address in &addresses {
            let has = |info: &serde_json::Value| {
                info["local"] == address.address().to_string() && info["prefixlen"] == address.prefix_len()
            };
            assert_eq!(shown.as_array().unwrap().iter().filter(|info| has(info)).count(), 1, "{address}: {shown}");
        }
        for address in addresses.iter().chain(&addresses) {
            netlink.remove_address(index, *address).unwrap();
        }
        assert!(netlink.addresses().unwrap().iter().all(|a| a.link != index));
        assert!(netlink.add_address(9999, addresses[0]).is_err());
    }

    #[test]
    fn our_end_of_a_point_to_point_address_is_the_one_listed() {
        let _namespace = Namespace::with_veth();
        ip("addr add 10.9.0.1 peer 10.9.0.2/32 dev va");
        let listed = Netlink::open().unwrap().addresses().unwrap();
        assert!(listed.iter().any(|a| a.address.to_string() == "10.9.0.1/32"), "{listed:?}");
    }

    #[test]
    fn more_addresses_than_one_datagram_holds_are_all_listed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        let count = 2000u32;
        for i in 0..count {
            let address = InterfaceAddress::new(IpAddr::from((0x0a09_0000 + i).to_be_bytes()), 32).unwrap();
            netlink.add_address(index, address).unwrap();
        }
        let mut listed = netlink.addresses().unwrap();
        listed.dedup();
        assert_eq!(listed.iter().filter(|a| a.link == index).count(), count as usize);
    }
}
