//! The host's own forwarding tables, read as a whole: whoever sends past the kernel's router has to come to the same next hop.
//!
//! Only what such a sender can follow is told apart; everything else is a route of a kind that leaves the packet to the kernel.

use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::route::Family;
use super::{Error, Netlink, Routing};
use crate::api::Prefix;

/// Number of the table `default` (`linux/rtnetlink.h`).
pub const TABLE_DEFAULT: u32 = 253;
/// Number of the table `main`.
pub const TABLE_MAIN: u32 = 254;
/// Number of the table `local`.
pub const TABLE_LOCAL: u32 = 255;

/// Most routes of one table that are mirrored: they are all read again at a change. A router with a full feed goes through the kernel.
pub const TABLE_ROUTES_MAX: usize = 16_384;

/// A route of any table, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// The table that it is in.
    pub table: u32,
    /// Destinations.
    pub prefix: Prefix,
    /// The lowest wins among routes of one prefix.
    pub metric: u32,
    /// What happens to packets.
    pub kind: HostRouteKind,
}

/// What a route does, as far as a sender past the kernel can do it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRouteKind {
    /// Sends it on. Of several next hops the first live one stands here: the kernel would spread flows over them.
    Forward(NextHop),
    /// Leaves the table: the next rule is asked.
    Throw,
    /// Only the kernel can tell: own and broadcast addresses, unreachable, prohibited and blackholed ones, tunnels, next-hop objects.
    Kernel,
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the link that it leaves by.
    pub link: u32,
    /// The router on that link; `None` when the destination itself stands there.
    pub gateway: Option<IpAddr>,
    /// The source address that the host's own packets get (RTA_PREFSRC).
    pub preferred_source: Option<IpAddr>,
}

/// The tables that decide about packets of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The routes of `local`, our own table, `main` and `default`.
    pub routes: Vec<HostRoute>,
    /// A policy rule that is none of the kernel's three and none of ours, in words; the tables alone do not decide then.
    pub foreign_rule: Option<String>,
    /// A table with more routes than are mirrored.
    pub too_long: Option<u32>,
}

impl Netlink {
    /// Reads the tables and rules that decide about packets of this host.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn tables(&mut self, routing: &Routing) -> Result<Tables, Error> {
        let mut tables = Tables::default();
        for family in Family::ALL {
            for table in [TABLE_LOCAL, routing.table, TABLE_MAIN, TABLE_DEFAULT] {
                let before = tables.routes.len();
                tables.routes.extend(self.host_routes(table, family)?);
                if tables.routes.len() - before > TABLE_ROUTES_MAX {
                    tables.routes.truncate(before);
                    tables.too_long = Some(table);
                }
            }
            if tables.foreign_rule.is_none() {
                tables.foreign_rule = self.foreign_rule(family, routing)?;
            }
        }
        Ok(tables)
    }

    /// The routes of one table, each as a sender past the kernel sees it.
    fn host_routes(&mut self, table: u32, family: Family) -> Result<Vec<HostRoute>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.address_family();
        message.attributes.push(RouteAttribute::Table(table));
        self.dump(RouteNetlinkMessage::GetRoute(message), |answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => {
                read_host_route(&message).filter(|route| Family::of(&route.prefix) == family && route.table == table)
            }
            _ => None,
        })
        .map_err(|failure| failure.during(format!("list the {} routes of table {table}", family.name())))
    }

    /// A rule that is neither the kernel's nor ours.
    fn foreign_rule(&mut self, family: Family, routing: &Routing) -> Result<Option<String>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = family.address_family();
        let rules = self.dump(RouteNetlinkMessage::GetRule(message), |answer| match answer {
            RouteNetlinkMessage::NewRule(message) if message.header.family == family.address_family() => {
                Some(foreign(&message, routing.table))
            }
            _ => None,
        });
        let rules = rules.map_err(|failure| failure.during(format!("list the {} rules", family.name())))?;
        Ok(rules.into_iter().flatten().next().map(|priority| format!("{} rule {priority}", family.name())))
    }
}

/// The priority of a rule that is neither one of the kernel's own three nor leads to our table.
fn foreign(message: &RuleMessage, own_table: u32) -> Option<u32> {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    // The kernel's own narrow nothing: no attribute but these, and those that say "none".
    let plain = message.header.action == RuleAction::ToTable
        && message.header.flags.is_empty()
        && (message.header.dst_len, message.header.src_len, message.header.tos) == (0, 0, 0)
        && !message.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Iifname(_)
                    | RuleAttribute::Oifname(_)
                    | RuleAttribute::FwMark(_)
                    | RuleAttribute::UidRange(_)
                    | RuleAttribute::IpProtocol(_)
                    | RuleAttribute::SourcePortRange(_)
                    | RuleAttribute::DestinationPortRange(_)
                    | RuleAttribute::TunId(_)
            )
        });
    let kernels = plain && matches!((priority, table), (0, TABLE_LOCAL) | (32766, TABLE_MAIN) | (32767, TABLE_DEFAULT));
    (!kernels && table != own_table).then_some(priority)
}

fn read_host_route(message: &RouteMessage) -> Option<HostRoute> {
    let mut table = u32::from(message.header.table);
    let (mut address, mut metric) = (None, 0);
    let mut hop = NextHop { link: 0, gateway: None, preferred_source: None };
    // Only what says everything about a packet's way in the attributes above can be followed.
    let mut plain = message.header.source_prefix_length == 0 && message.header.tos == 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => hop.link = *index,
            RouteAttribute::Destination(to) => address = Some(ip(to)?),
            RouteAttribute::Gateway(gateway) => hop.gateway = Some(ip(gateway)?),
            RouteAttribute::PrefSource(source) => hop.preferred_source = Some(ip(source)?),
            RouteAttribute::Via(via) => hop.gateway = Some(via_address(via)?),
            RouteAttribute::MultiPath(hops) => match hops.iter().find_map(first_live) {
                Some((link, gateway)) => (hop.link, hop.gateway) = (link, gateway),
                None => plain = false,
            },
            RouteAttribute::Encap(_) | RouteAttribute::NhId(_) | RouteAttribute::Source(_) => plain = false,
            // An MTU of its own: the kernel refuses what is longer, although the link would take it.
            RouteAttribute::Metrics(metrics) if metrics.iter().any(|metric| matches!(metric, RouteMetric::Mtu(_))) => {
                plain = false;
            }
            _ => {}
        }
    }
    if message.header.tos != 0 {
        // Packets of its TOS take it whatever the metric of the others of its prefix, so it stands before them all.
        metric = 0;
    }
    let address = match (address, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::from([0; 4]),
        (None, AddressFamily::Inet6) => IpAddr::from([0; 16]),
        _ => return None,
    };
    let flags = message.header.flags;
    let kind = match message.header.kind {
        RouteType::Throw => HostRouteKind::Throw,
        // The kernel passes over dead next hops, and so over the whole route when it has no other. A link without carrier alone kills no
        // route, unless the kernel is told so (`ignore_routes_with_linkdown`), and then it says "dead" too.
        RouteType::Unicast if flags.contains(RouteFlags::Dead) => return None,
        RouteType::Unicast if plain && hop.link != 0 && !flags.contains(RouteFlags::Linkdown) => {
            HostRouteKind::Forward(hop)
        }
        _ => HostRouteKind::Kernel,
    };
    Some(HostRoute {
        table,
        prefix: Prefix::new(address, message.header.destination_prefix_length).ok()?,
        metric,
        kind,
    })
}

fn first_live(hop: &RouteNextHop) -> Option<(u32, Option<IpAddr>)> {
    if hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown) {
        return None;
    }
    let mut gateway = None;
    for attribute in &hop.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Via(via) => gateway = Some(via_address(via)?),
            RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some((hop.interface_index, gateway))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn via_address(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteVia::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::HostRoutes;
    use super::super::testing::{Namespace, ip, ip_text};
    use super::*;

    fn routing() -> Routing {
        let prefixes = vec!["10.0.0.0/8".parse().unwrap()];
        Routing { table: 7770, mark: 0x7765, rule_priority: 7770, metric: 1024, prefixes }
    }

    #[test]
    fn routes_of_every_kind_are_told_apart() {
        let _namespace = Namespace::with_veth();
        for command in [
            "link set va up",
            "link set vb up",
            "addr add 10.9.0.1/24 dev va",
            "addr add fd09::1/64 dev va nodad",
            "route add default via 10.9.0.2 src 10.9.0.1",
            "route add 10.20.0.0/16 nexthop via 10.9.0.3 dev va nexthop via 10.9.0.4 dev va",
            "route add blackhole 10.30.0.0/16",
            "route add 10.31.0.0/16 via inet6 fd09::2 dev va",
            "route add throw 10.32.0.0/16 table 7770",
            "-6 route add fd40::/16 via fd09::2 dev va",
            "route add 10.50.0.0/16 dev va table 4000",
            "route add 10.60.0.0/16 via 10.9.0.2 metric 50",
            "route add 10.60.0.0/16 tos 0x10 via 10.9.0.3 metric 100",
            "route add 10.61.0.0/16 via 10.9.0.2 mtu 1280",
            "-6 route add fd61::/16 via fd09::2 dev va mtu 1280",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("va").unwrap().index;
        let tables = netlink.tables(&routing()).unwrap();
        let kind = |prefix: &str| {
            let prefix: Prefix = prefix.parse().unwrap();
            tables.routes.iter().find(|route| route.prefix == prefix).map(|route| route.kind.clone())
        };
        let forward = |gateway: Option<&str>, source: Option<&str>| {
            let address = |text: &str| text.parse().unwrap();
            let (gateway, preferred_source) = (gateway.map(address), source.map(address));
            Some(HostRouteKind::Forward(NextHop { link, gateway, preferred_source }))
        };
        assert_eq!(kind("0.0.0.0/0"), forward(Some("10.9.0.2"), Some("10.9.0.1")));
        assert_eq!(kind("10.9.0.0/24"), forward(None, Some("10.9.0.1")));
        assert_eq!(kind("10.20.0.0/16"), forward(Some("10.9.0.3"), None), "the first of several");
        assert_eq!(kind("10.30.0.0/16"), Some(HostRouteKind::Kernel));
        assert_eq!(kind("10.31.0.0/16"), forward(Some("fd09::2"), None));
        assert_eq!(kind("10.32.0.0/16"), Some(HostRouteKind::Throw));
        assert_eq!(kind("10.9.0.1/32"), Some(HostRouteKind::Kernel), "our own address");
        assert_eq!(kind("fd40::/16"), forward(Some("fd09::2"), None));
        assert_eq!(kind("10.50.0.0/16"), None, "another table");
        let best = tables.routes.iter().filter(|route| route.prefix == "10.60.0.0/16".parse().unwrap());
        let best = best.min_by_key(|route| route.metric).map(|route| route.kind.clone());
        assert_eq!(best, Some(HostRouteKind::Kernel), "a TOS comes before metrics");
        for prefix in ["10.61.0.0/16", "fd61::/16"] {
            assert_eq!(kind(prefix), Some(HostRouteKind::Kernel), "an MTU of its own");
        }
        assert_eq!((tables.foreign_rule, tables.too_long), (None, None));
    }

    #[test]
    fn a_link_without_carrier_keeps_its_routes_unless_the_kernel_ignores_them() {
        let _namespace = Namespace::with_veth();
        for command in ["link set va up", "link set vb up", "addr add 10.9.0.1/24 dev va", "link set vb down"] {
            ip(command);
        }
        // The kernel notices a lost carrier in a work queue of its own.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ip_text("route show 10.9.0.0/24").contains("linkdown") {
            assert!(Instant::now() < deadline, "{}", ip_text("route show 10.9.0.0/24"));
        }
        let mut netlink = Netlink::open().unwrap();
        let mut kind = || {
            let network: Prefix = "10.9.0.0/24".parse().unwrap();
            let routes = netlink.tables(&routing()).unwrap().routes;
            routes.into_iter().find(|route| route.prefix == network).map(|route| route.kind)
        };
        assert_eq!(kind(), Some(HostRouteKind::Kernel), "no shorter prefix takes its packets");
        // Of the namespace of the thread that opens it.
        std::fs::write("/proc/sys/net/ipv4/conf/all/ignore_routes_with_linkdown", "1").unwrap();
        assert_eq!(kind(), None);
    }

    #[test]
    fn only_rules_of_others_are_foreign() {
        let _namespace = Namespace::with_veth();
        ip("tuntap add tun0 mode tun");
        ip("link set tun0 up");
        let mut netlink = Netlink::open().unwrap();
        let tun = netlink.link("tun0").unwrap().index;
        HostRoutes::new(tun, routing(), vec![]).install(&mut netlink).unwrap();
        assert_eq!(netlink.tables(&routing()).unwrap().foreign_rule, None);
        for (add, remove) in [
            ("rule add priority 99 table 4000", "rule del priority 99"),
            ("rule add priority 32766 iif va table main", "rule del priority 32766 iif va"),
            ("-6 rule add priority 99 from fd00::/8 table main", "-6 rule del priority 99"),
        ] {
            ip(add);
            assert!(netlink.tables(&routing()).unwrap().foreign_rule.is_some(), "{add}");
            ip(remove);
            assert_eq!(netlink.tables(&routing()).unwrap().foreign_rule, None, "{remove}");
        }
    }

    #[test]
    fn a_table_that_is_too_long_is_named_and_not_kept() {
        let _namespace = Namespace::with_veth();
        let file = std::env::temp_dir().join(format!("weir-routes-{}", std::process::id()));
        let route = |i: usize| format!("route add unreachable 10.{}.{}.0/24\n", i >> 8, i & 255);
        std::fs::write(&file, (0..TABLE_ROUTES_MAX).map(route).collect::<String>()).unwrap();
        ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let tables = netlink.tables(&routing()).unwrap();
        assert_eq!(tables.too_long, None);
        assert!(tables.routes.len() >= TABLE_ROUTES_MAX);
        ip("route add unreachable 11.0.0.0/24");
        let tables = netlink.tables(&routing()).unwrap();
        assert_eq!(tables.too_long, Some(TABLE_MAIN));
        assert!(tables.routes.iter().all(|route| route.table != TABLE_MAIN || !route.prefix.address().is_ipv4()));
    }
}
