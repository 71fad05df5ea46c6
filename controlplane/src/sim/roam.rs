//! Machines that move to other addresses, and what somebody on the path makes of their datagrams.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Roaming, Site, World};
use crate::node::candidates::Source;

impl World {
    /// Gives a machine another address, as a NAT before it does that was started again, and says which. Nobody is told: not the machine,
    /// and not those that send to the old address, which is nobody's from now on.
    pub fn rebind(&mut self, site: Site) -> SocketAddr {
        let before = self.net.address(site);
        let after = SocketAddr::new(before.ip(), before.port().wrapping_add(1));
        self.net.places[site.0].moved_to = Some(after);
        if let Some(plane) = &mut self.machines[site.0].plane {
            plane.rebind(after);
        }
        after
    }

    /// Gives a machine another address, as its owner or DHCP does, and says which. It knows, whether it runs or is started later; nobody else
    /// does.
    pub fn readdress(&mut self, site: Site) -> SocketAddr {
        let after = self.rebind(site);
        self.net.places[site.0].told = Some(after);
        self.with_node(site, |node, links, now| node.handle_host_changed(vec![after], vec![], links, now));
        after
    }

    /// Gives a machine a private address beside its own, by which all others reach it as well; it knows from its next start on.
    pub fn give_private(&mut self, site: Site) {
        let address = self.net.address(site);
        let IpAddr::V4(v4) = address.ip() else { return };
        let [_, b, c, d] = v4.octets();
        self.net.places[site.0].local = Some((Ipv4Addr::new(10, b, c, d), address.port()).into());
    }

    /// Something changes on a machine that is none of ours: an interface of a container comes or goes.
    pub fn flap(&mut self, site: Site) {
        let same = self.net.places[site.0].told.unwrap_or_else(|| super::links::address_of(site));
        self.with_node(site, |node, links, now| node.handle_host_changed(vec![same], vec![], links, now));
    }

    /// A machine hears that members are where these machines are.
    pub fn hear_of(&mut self, site: Site, source: Source, of: &[Site]) {
        let addresses: Vec<SocketAddr> = of.iter().map(|other| self.net.address(*other)).collect();
        self.with_node(site, |node, links, now| node.handle_found(source, &addresses, links, now));
    }

    /// Lets nothing pass between two machines; [`Self::heal`] ends it.
    pub fn sever(&mut self, one: Site, other: Site) {
        self.net.severed.insert((one.min(other), one.max(other)));
    }

    /// Somebody on the path takes what one packet plane sends to another and sends it on from an address of its own, or ceases to.
    pub fn divert(&mut self, from: Site, to: Site, via: Option<SocketAddr>) {
        match via {
            Some(via) => self.net.diverted.insert((from, to), via),
            None => self.net.diverted.remove(&(from, to)),
        };
    }

    /// What a machine's packet plane did about peers that seemed to be elsewhere, in this life of it.
    pub fn roaming(&self, site: Site) -> Roaming {
        self.machines[site.0].plane.as_ref().map_or_else(Roaming::default, |plane| plane.roaming)
    }
}
