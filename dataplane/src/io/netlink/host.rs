//! The routes and rules that send overlay traffic into the TUN, and nowhere else when the TUN is gone.
//!
//! ```text
//! rule  PRIORITY: not fwmark MARK lookup TABLE          our own datagrams skip the table, so no peer's address can loop
//! table TABLE:    throw       LOCAL   metric 1          networks behind us: on to the table `main`
//!                 OVERLAY     dev TUN metric METRIC     gone with the TUN …
//!                 unreachable OVERLAY metric 4294967295 … and then this one answers, instead of the default route
//! ```
//!
//! The device routes live as long as the TUN. Everything else stays when the plane stops, crashes or is upgraded, until [`HostRoutes::purge`].

use std::collections::BTreeSet;

use serde::Serialize;

use super::route::{Family, Route, RouteTarget, Rule};
use super::{Error, Netlink, PROTOCOL};
use crate::api::Prefix;

/// The worst metric there is.
const UNREACHABLE_METRIC: u32 = u32::MAX;
/// Better than any metric of an overlay route: a prefix that is both is local.
const LOCAL_METRIC: u32 = 1;

/// How this host routes for the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Routing {
    /// A routing table of our own.
    pub table: u32,
    /// Mark (SO_MARK) of our own datagrams, not zero.
    pub mark: u32,
    /// Priority of the rule that leads to the table; before that of the table `main`, 32766.
    pub rule_priority: u32,
    /// Metric of the routes into the TUN: more than 1, less than 4294967295.
    pub metric: u32,
    /// Prefixes of the overlay: they go into the TUN or nowhere.
    pub prefixes: Vec<Prefix>,
}

impl Routing {
    fn families(&self) -> BTreeSet<Family> {
        self.prefixes.iter().map(Family::of).collect()
    }

    fn rule(&self, family: Family) -> Rule {
        Rule { family, priority: self.rule_priority, mark: self.mark, table: self.table }
    }
}

/// The routes and rules of one plane.
#[derive(Clone, Debug)]
pub struct HostRoutes {
    tun: u32,
    routing: Routing,
    local: Vec<Prefix>,
}

impl HostRoutes {
    /// Plans the routes; nothing is changed yet.
    ///
    /// `tun` is the index of the TUN device. `local` are the networks behind us that lie inside overlay prefixes, as
    /// [`super::InterfaceAddress::network`] of the LAN interfaces' addresses: without them a packet for our own LAN would go back into the
    /// TUN.
    pub fn new(tun: u32, routing: Routing, local: Vec<Prefix>) -> Self {
        Self { tun, routing, local }
    }

    /// Installs whatever is not there, removes what an earlier configuration left. The TUN has to be up.
    ///
    /// # Errors
    /// [`Error::ForeignRoute`] and [`Error::ForeignRule`] when somebody else uses the table or the rule's place, before anything is
    /// changed or at the rule; [`Error::Refused`].
    pub fn install(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let wanted = self.wanted();
        let mut there = BTreeSet::new();
        for family in Family::ALL {
            there.extend(own_routes(netlink, self.routing.table, family)?);
        }
        // The order of `wanted` is the order of installing: what fails closed comes before what forwards, the rule last.
        for route in wanted.iter().filter(|route| !there.contains(route)) {
            netlink.replace_route(route)?;
        }
        for route in there.iter().filter(|route| !wanted.contains(route)) {
            netlink.remove_route(route)?;
        }
        let families = self.routing.families();
        for &family in &families {
            netlink.add_rule(&self.routing.rule(family))?;
        }
        for family in Family::ALL {
            for rule in netlink.rules(family)? {
                let ours = rule.table == self.routing.table;
                if ours && (!families.contains(&family) || rule != self.routing.rule(family)) {
                    netlink.remove_rule(&rule)?;
                }
            }
        }
        Ok(())
    }

    /// Whether everything is as [`Self::install`] left it, and nobody else has put a route into the table.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn verify(&self, netlink: &mut Netlink) -> Result<bool, Error> {
        let mut there = BTreeSet::new();
        for family in Family::ALL {
            match own_routes(netlink, self.routing.table, family) {
                Ok(routes) => there.extend(routes),
                Err(Error::ForeignRoute { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if there != self.wanted().into_iter().collect() {
            return Ok(false);
        }
        for family in self.routing.families() {
            if !netlink.rules(family)?.contains(&self.routing.rule(family)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts back what somebody removed. Returns whether there was anything to put back.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn restore(&self, netlink: &mut Netlink) -> Result<bool, Error> {
        if self.verify(netlink)? {
            return Ok(false);
        }
        self.install(netlink).map(|()| true)
    }

    /// Removes the routes into the TUN. Overlay prefixes stay unreachable: nothing leaves in clear while the plane is down.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn uninstall(&self, netlink: &mut Netlink) -> Result<(), Error> {
        for family in Family::ALL {
            for route in netlink.routes(self.routing.table, family)? {
                if matches!(route.target, RouteTarget::Device(_)) {
                    netlink.remove_route(&route)?;
                }
            }
        }
        Ok(())
    }

    /// Removes all that any plane with this table has installed: from now on overlay prefixes follow the default route again.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn purge(routing: &Routing, netlink: &mut Netlink) -> Result<(), Error> {
        for family in Family::ALL {
            for rule in netlink.rules(family)? {
                if rule.table == routing.table {
                    netlink.remove_rule(&rule)?;
                }
            }
            for route in netlink.routes(routing.table, family)? {
                netlink.remove_route(&route)?;
            }
        }
        Ok(())
    }

    fn wanted(&self) -> Vec<Route> {
        let Routing { table, metric, ref prefixes, .. } = self.routing;
        let families = self.routing.families();
        let route = |prefix: &Prefix, metric, target| Route { table, prefix: *prefix, metric, target };
        let local = self.local.iter().filter(|prefix| families.contains(&Family::of(prefix)));
        let local = local.map(|prefix| route(prefix, LOCAL_METRIC, RouteTarget::Throw));
        let closed = prefixes.iter().map(|prefix| route(prefix, UNREACHABLE_METRIC, RouteTarget::Unreachable));
        let open = prefixes.iter().map(|prefix| route(prefix, metric, RouteTarget::Device(self.tun)));
        local.chain(closed).chain(open).collect()
    }
}

/// The routes of a table that should hold only ours.
fn own_routes(netlink: &mut Netlink, table: u32, family: Family) -> Result<Vec<Route>, Error> {
    let mut routes = Vec::new();
    for entry in netlink.entries(table, family)? {
        if entry.protocol != PROTOCOL {
            return Err(Error::ForeignRoute { table, prefix: entry.prefix, protocol: entry.protocol });
        }
        routes.extend(entry.route);
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Namespace, ip, ip_fails, ip_text};
    use super::*;

    fn routing() -> Routing {
        Routing {
            table: 7770,
            mark: 0x7765,
            rule_priority: 7770,
            metric: 1024,
            prefixes: ["10.0.0.0/8", "fd00::/16"].map(|text| text.parse().unwrap()).into(),
        }
    }

    /// EHOSTUNREACH, which an unreachable route gives; without any route it would be ENETUNREACH.
    const CLOSED: &str = "No route to host";

    /// `tun0` as the TUN, `va` with a default route as the way out in clear, `vb` as the LAN.
    fn host() -> (Namespace, Netlink, HostRoutes) {
        let namespace = Namespace::with_veth();
        ip("tuntap add tun0 mode tun");
        for command in [
            "link set lo up",
            "link set va up",
            "link set vb up",
            "link set tun0 up",
            "addr add 192.0.2.1/24 dev va",
            "addr add 2001:db8::1/64 dev va nodad",
            "addr add 10.1.0.1/16 dev vb",
            "route add default via 192.0.2.2",
            "-6 route add default via 2001:db8::2",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let tun = netlink.link("tun0").unwrap().index;
        let routes = HostRoutes::new(tun, routing(), vec!["10.1.0.0/16".parse().unwrap()]);
        (namespace, netlink, routes)
    }

    /// The interface that a packet to `address` would leave by.
    fn device(query: &str) -> String {
        ip(&format!("route get {query}"))[0]["dev"].as_str().unwrap_or("none").to_owned()
    }

    #[test]
    fn overlay_traffic_goes_into_the_tun_and_ours_does_not() {
        let (_namespace, mut netlink, routes) = host();
        assert_eq!(device("10.2.0.1"), "va");
        assert!(!routes.verify(&mut netlink).unwrap());
        for _ in 0..2 {
            routes.install(&mut netlink).unwrap();
            assert!(routes.verify(&mut netlink).unwrap());
        }
        assert_eq!(device("10.2.0.1"), "tun0");
        assert_eq!(device("fd00:1::1"), "tun0");
        assert_eq!(device("10.2.0.1 mark 0x7765"), "va");
        assert_eq!(device("fd00:1::1 mark 0x7765"), "va");
        assert_eq!(device("198.51.100.1"), "va");
        assert_eq!(device("10.1.0.7"), "vb", "our own LAN lies inside an overlay prefix");
    }

    #[test]
    fn nothing_leaves_in_clear_when_the_tun_disappears() {
        let (_namespace, mut netlink, routes) = host();
        routes.install(&mut netlink).unwrap();
        ip("link del tun0");
        for address in ["10.2.0.1", "fd00:1::1"] {
            let error = ip_fails(&format!("route get {address}"));
            assert!(error.contains(CLOSED), "{address}: {error}");
        }
        assert_eq!(device("10.1.0.7"), "vb");
        assert_eq!(device("198.51.100.1"), "va");
        assert!(!routes.verify(&mut netlink).unwrap());
        assert_eq!(routes.install(&mut netlink).unwrap_err().errno(), Some(libc::ENODEV));
    }

    #[test]
    fn uninstalled_routes_fail_closed_until_they_are_purged() {
        let (_namespace, mut netlink, routes) = host();
        let before = (ip_text("rule show"), ip_text("-6 rule show"));
        routes.install(&mut netlink).unwrap();
        for _ in 0..2 {
            routes.uninstall(&mut netlink).unwrap();
            assert!(ip_fails("route get 10.2.0.1").contains(CLOSED));
            assert!(ip_fails("route get fd00:1::1").contains(CLOSED));
            assert_eq!(device("10.1.0.7"), "vb");
        }
        for _ in 0..2 {
            HostRoutes::purge(&routing(), &mut netlink).unwrap();
            assert_eq!(device("10.2.0.1"), "va");
            assert_eq!((ip_text("rule show"), ip_text("-6 rule show")), before);
            for family in Family::ALL {
                assert_eq!(netlink.entries(7770, family).unwrap().len(), 0);
            }
        }
    }

    #[test]
    fn what_somebody_removes_is_put_back() {
        let (_namespace, mut netlink, routes) = host();
        routes.install(&mut netlink).unwrap();
        assert!(!routes.restore(&mut netlink).unwrap());
        for command in [
            "rule del priority 7770",
            "-6 rule del priority 7770",
            "route flush table 7770",
            "-6 route flush table 7770",
            "route del unreachable 10.0.0.0/8 table 7770",
            "route del throw 10.1.0.0/16 table 7770",
            "-6 route del fd00::/16 dev tun0 table 7770",
            "link set tun0 down",
        ] {
            ip(command);
            assert!(!routes.verify(&mut netlink).unwrap(), "{command}");
            ip("link set tun0 up");
            assert!(routes.restore(&mut netlink).unwrap(), "{command}");
            assert!(routes.verify(&mut netlink).unwrap(), "{command}");
        }
    }

    #[test]
    fn prefixes_that_are_no_longer_configured_are_removed() {
        let (_namespace, mut netlink, routes) = host();
        routes.install(&mut netlink).unwrap();
        let fewer = Routing { prefixes: vec!["10.0.0.0/9".parse().unwrap()], mark: 0x7766, ..routing() };
        let fewer = HostRoutes::new(routes.tun, fewer, Vec::new());
        fewer.install(&mut netlink).unwrap();
        assert!(fewer.verify(&mut netlink).unwrap());
        assert_eq!(netlink.routes(7770, Family::V4).unwrap().len(), 2);
        assert_eq!(netlink.routes(7770, Family::V6).unwrap(), []);
        assert_eq!(netlink.rules(Family::V6).unwrap(), []);
        assert_eq!(netlink.rules(Family::V4).unwrap().len(), 1);
        assert_eq!(device("10.200.0.1"), "va");
    }

    #[test]
    fn a_table_that_somebody_else_uses_is_left_alone() {
        let (_namespace, mut netlink, routes) = host();
        ip("route add 10.3.0.0/16 dev va table 7770");
        let error = routes.install(&mut netlink).unwrap_err();
        assert!(matches!(error, Error::ForeignRoute { table: 7770, .. }), "{error}");
        assert!(error.to_string().contains("10.3.0.0/16") && error.to_string().contains("routing.table"), "{error}");
        HostRoutes::purge(&routing(), &mut netlink).unwrap();
        assert_eq!(ip("route show table 7770").as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_foreign_route_that_would_leak_is_noticed() {
        let (_namespace, mut netlink, routes) = host();
        routes.install(&mut netlink).unwrap();
        ip("route add 10.0.0.0/8 dev va metric 2 table 7770");
        assert!(!routes.verify(&mut netlink).unwrap());
    }
}
