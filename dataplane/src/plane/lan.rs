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

    /// The networks as they were last seen.
    pub(super) fn networks(&self) -> &[Prefix] {
        &self.networks
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::testing::{Namespace, ip};

    fn device(address: &str) -> String {
        ip(&format!("route get {address}"))[0]["dev"].as_str().unwrap_or("none").to_owned()
    }

    #[test]
    fn routes_follow_the_networks_of_the_lan() {
        let _namespace = Namespace::with_veth();
        for command in [
            "tuntap add tun0 mode tun",
            "link set tun0 up",
            "link set va up",
            "link set vb up",
            "addr add 10.1.0.1/16 dev vb",
            "addr add 10.1.0.2/16 dev vb",
            "addr add 10.9.0.1/16 dev va",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let tun = netlink.link("tun0").unwrap().index;
        let prefixes = vec!["10.0.0.0/8".parse().unwrap()];
        let routing = Routing { table: 7770, mark: 0x7765, rule_priority: 7770, metric: 1024, prefixes };
        let interfaces = ["vb".to_owned(), "later".to_owned()];
        let mut lan = Lan::read(tun, routing, &interfaces, &mut netlink).unwrap();
        let shows =
            |lan: &Lan| lan.to_string().split(", ").filter(|text| text.contains('.')).collect::<Vec<_>>().join(" ");
        assert_eq!(shows(&lan), "10.1.0.0/16", "once, and not what is on another interface");
        lan.routes().install(&mut netlink).unwrap();
        assert_eq!((device("10.1.0.7"), device("10.2.0.7")), ("vb".to_owned(), "tun0".to_owned()));
        ip("addr add 10.2.0.1/16 dev vb");
        ip("addr del 10.1.0.1/16 dev vb");
        ip("addr flush dev vb to 10.1.0.0/16");
        let routes = lan.refresh(&mut netlink).unwrap().expect("the networks changed");
        routes.install(&mut netlink).unwrap();
        assert_eq!(shows(&lan), "10.2.0.0/16");
        assert_eq!((device("10.1.0.7"), device("10.2.0.7")), ("tun0".to_owned(), "vb".to_owned()));
        assert!(lan.refresh(&mut netlink).unwrap().is_none(), "nothing changed");
        // An interface that goes takes its networks with it, one that comes brings them.
        ip("link set vb name later");
        assert!(lan.refresh(&mut netlink).unwrap().is_none(), "the same networks under another name");
        ip("link del later");
        lan.refresh(&mut netlink).unwrap().expect("the networks are gone").install(&mut netlink).unwrap();
        assert_eq!(lan.to_string(), "none");
        assert_eq!(device("10.2.0.7"), "tun0");
    }
}
