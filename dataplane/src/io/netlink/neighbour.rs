//! Neighbours: the link addresses of those who stand on our links, and how sure the kernel is of them (RFC 4861 §7.3.2).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as KernelState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Mac, Netlink};

/// A neighbour as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link that it stands on.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link address; `None` while it is not known, or where the link has none of six bytes.
    pub mac: Option<Mac>,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

/// `NUD_*` of `linux/neighbour.h`, as far as a sender has to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// It was heard of lately, or is being asked and still counts (REACHABLE, DELAY, PROBE).
    Confirmed,
    /// Set by hand, or the link resolves nothing: there is nothing to confirm (PERMANENT, NOARP).
    Fixed,
    /// It was known once. Whoever sends to it has to have it confirmed (STALE).
    Stale,
    /// It does not answer, or has not yet (INCOMPLETE, FAILED, NONE).
    Unknown,
}

impl Netlink {
    /// All neighbours on all links, both families.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, Error> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.dump(message, |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => read_neighbour(&neighbour),
            _ => None,
        })
        .map_err(|failure| failure.during("list the neighbours of this host"))
    }

    /// Makes the kernel use a neighbour as if it had sent to it: what is stale is asked again, what is unknown is looked for. The answer
    /// comes as a change of the neighbour.
    ///
    /// # Errors
    /// [`Error::Refused`], with ENODEV when the link is gone.
    pub fn use_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = link;
        message.header.state = KernelState::None;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, |_| {})
            .map_err(|failure| failure.during(format!("have neighbour {address} on interface #{link} confirmed")))
    }
}

/// A neighbour of a dump or notification; `None` for those of bridges and other families.
pub(super) fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let is_ip = matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6);
    // Entries that the host answers for in place of others (proxy) lead nowhere.
    if !is_ip || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let state = match message.header.state {
        KernelState::Reachable | KernelState::Delay | KernelState::Probe => NeighbourState::Confirmed,
        KernelState::Permanent | KernelState::Noarp => NeighbourState::Fixed,
        KernelState::Stale => NeighbourState::Stale,
        _ => NeighbourState::Unknown,
    };
    Some(Neighbour { link: message.header.ifindex, address: address?, mac, state })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Namespace, ip};
    use super::*;

    fn find(netlink: &mut Netlink, address: &str) -> Option<Neighbour> {
        let address: IpAddr = address.parse().unwrap();
        netlink.neighbours().unwrap().into_iter().find(|neighbour| neighbour.address == address)
    }

    #[test]
    fn neighbours_of_each_state_are_listed() {
        let _namespace = Namespace::with_veth();
        for command in ["link set va up", "link set vb up", "addr add 10.9.0.1/24 dev va"] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("va").unwrap().index;
        for (address, state, expected) in [
            ("10.9.0.2", "permanent", NeighbourState::Fixed),
            ("10.9.0.3", "stale", NeighbourState::Stale),
            ("10.9.0.4", "reachable", NeighbourState::Confirmed),
            ("fd00::2", "stale", NeighbourState::Stale),
        ] {
            ip(&format!("neigh add {address} lladdr 02:00:00:00:00:07 nud {state} dev va"));
            let found = find(&mut netlink, address).unwrap();
            assert_eq!((found.link, found.mac, found.state), (link, Some([2, 0, 0, 0, 0, 7]), expected), "{address}");
        }
        ip("neigh del 10.9.0.3 dev va");
        assert!(find(&mut netlink, "10.9.0.3").is_none_or(|n| n.state == NeighbourState::Unknown));
    }

    #[test]
    fn a_stale_neighbour_that_is_used_is_asked_again() {
        let _namespace = Namespace::with_veth();
        for command in ["link set va up", "link set vb up", "addr add 10.9.0.1/24 dev va"] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("va").unwrap().index;
        ip("neigh add 10.9.0.3 lladdr 02:00:00:00:00:07 nud stale dev va");
        netlink.use_neighbour(link, "10.9.0.3".parse().unwrap()).unwrap();
        // DELAY: the kernel waits a while for news before it asks.
        assert_eq!(find(&mut netlink, "10.9.0.3").unwrap().state, NeighbourState::Confirmed);
        netlink.use_neighbour(link, "10.9.0.9".parse().unwrap()).unwrap();
        let looked_for = find(&mut netlink, "10.9.0.9").expect("it is being looked for");
        assert_eq!((looked_for.mac, looked_for.state), (None, NeighbourState::Unknown));
        assert_eq!(netlink.use_neighbour(9999, "10.9.0.3".parse().unwrap()).unwrap_err().errno(), Some(libc::ENODEV));
    }
}
