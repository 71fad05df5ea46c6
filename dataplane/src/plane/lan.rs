//! The networks behind us, which stay out of the TUN: whatever the LAN interfaces have addresses in, followed as it changes.

use std::collections::BTreeSet;
use std::fmt;

use crate::api::Prefix;
use crate::io::netlink::{self, HostRoutes, Netlink, Routing};

/// What the host's routes are made of, and the networks behind us as they were last seen.
pub(super) struct Lan {
    tun: u32,
    routing: Routing,
    interfaces: Vec<String>,
    networks: Vec<Prefix>,
}

impl Lan {
    /// Reads the networks of these interfaces.
    pub(super) fn read(
        tun: u32,
        routing: Routing,
        interfaces: &[String],
        netlink: &mut Netlink,
    ) -> Result<Self, netlink::Error> {
        let networks = networks(interfaces, netlink)?;
        Ok(Self { tun, routing, interfaces: interfaces.to_vec(), networks })
    }

    /// Reads the networks again. Returns the routes that follow from them, if they have changed.
    pub(super) fn refresh(&mut self, netlink: &mut Netlink) -> Result<Option<HostRoutes>, netlink::Error> {
        let networks = networks(&self.interfaces, netlink)?;
        if networks == self.networks {
            return Ok(None);
        }
        self.networks = networks;
        Ok(Some(self.routes()))
    }

    /// The routes for the networks as they were last seen.
    pub(super) fn routes(&self) -> HostRoutes {
        HostRoutes::new(self.tun, self.routing.clone(), self.networks.clone())
    }
}

impl fmt::Display for Lan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.networks.iter().map(Prefix::to_string).collect();
        f.write_str(if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }.as_str())
    }
}

/// The networks of the LAN interfaces, in order: they lie behind us although the overlay's prefixes may cover them. An interface that is
/// not there has none.
fn networks(interfaces: &[String], netlink: &mut Netlink) -> Result<Vec<Prefix>, netlink::Error> {
    let mut indices = vec![];
    for interface in interfaces {
        match netlink.link(interface) {
            Ok(link) => indices.push(link.index),
            Err(netlink::Error::NoInterface { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let addresses = netlink.addresses()?;
    let ours = addresses.iter().filter(|known| indices.contains(&known.link));
    Ok(BTreeSet::from_iter(ours.map(|known| known.address.network())).into_iter().collect())
}
