//! Routes and rules of our own table.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Netlink, PROTOCOL};
use crate::api::Prefix;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a prefix.
    pub const fn of(prefix: &Prefix) -> Self {
        if prefix.address().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) const fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table that it is in.
    pub table: u32,
    /// Destinations.
    pub prefix: Prefix,
    /// The lowest wins among routes of one prefix.
    pub metric: u32,
    /// What happens to packets.
    pub target: RouteTarget,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Sends it out of the interface with this index.
    Device(u32),
    /// Drops it and tells the sender.
    Unreachable,
    /// Leaves the table: the next rule is asked.
    Throw,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.target {
            RouteTarget::Device(index) => write!(f, "route {} by interface #{index}", self.prefix)?,
            RouteTarget::Unreachable => write!(f, "unreachable route {}", self.prefix)?,
            RouteTarget::Throw => write!(f, "throw route {}", self.prefix)?,
        }
        write!(f, " with metric {} in table {}", self.metric, self.table)
    }
}

/// "Packets that do not carry `mark` look into `table`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For which packets.
    pub family: Family,
    /// Rules are asked in ascending order.
    pub priority: u32,
    /// The mark of our own datagrams.
    pub mark: u32,
    /// Where the others look.
    pub table: u32,
}

/// A route of a table, whoever made it. `route` is `None` when it is none that we could have made.
pub(super) struct Entry {
    pub(super) prefix: Prefix,
    pub(super) protocol: u8,
    pub(super) route: Option<Route>,
}

impl Netlink {
    /// Adds a route, in place of one with the same table, prefix and metric.
    ///
    /// # Errors
    /// [`Error::Refused`], with ENODEV or ENETDOWN when the interface is gone or down.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, |_| {})
            .map_err(|failure| failure.during(format!("add {route}")))
    }

    /// Removes a route of ours. It is not an error when it is not there.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn remove_route(&mut self, route: &Route) -> Result<(), Error> {
        match self.request(RouteNetlinkMessage::DelRoute(route_message(route)), 0, |_| {}) {
            Err(failure) if failure.is(&[libc::ESRCH, libc::ENOENT, libc::ENODEV]) => Ok(()),
            other => other.map_err(|failure| failure.during(format!("remove {route}"))),
        }
    }

    /// The routes of ours in a table.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn routes(&mut self, table: u32, family: Family) -> Result<Vec<Route>, Error> {
        let entries = self.entries(table, family)?;
        Ok(entries.into_iter().filter(|entry| entry.protocol == PROTOCOL).filter_map(|entry| entry.route).collect())
    }

    /// All routes in a table.
    pub(super) fn entries(&mut self, table: u32, family: Family) -> Result<Vec<Entry>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.address_family();
        message.attributes.push(RouteAttribute::Table(table));
        self.dump(RouteNetlinkMessage::GetRoute(message), |answer| match answer {
            // Without IPv6 in the kernel the answer is about IPv4.
            RouteNetlinkMessage::NewRoute(message) => {
                read_route(&message).map(|(_, entry)| entry).filter(|entry| Family::of(&entry.prefix) == family)
            }
            _ => None,
        })
        .map_err(|failure| failure.during(format!("list the {} routes of table {table}", family.name())))
    }

    /// Adds a rule. One that is there already stays.
    ///
    /// # Errors
    /// [`Error::ForeignRule`] when a rule stands there that differs only in what the kernel does not compare;
    /// [`Error::Refused`].
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        if self.rules(rule.family)?.contains(rule) {
            return Ok(());
        }
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL, |_| {}) {
            Err(failure) if failure.is(&[libc::EEXIST]) => Err(Error::ForeignRule { priority: rule.priority }),
            other => other.map_err(|failure| failure.during(format!("add {rule}"))),
        }
    }

    /// Removes a rule of ours. It is not an error when it is not there.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        if !self.rules(rule.family)?.contains(rule) {
            return Ok(());
        }
        match self.request(RouteNetlinkMessage::DelRule(rule_message(rule)), 0, |_| {}) {
            Err(failure) if failure.is(&[libc::ENOENT]) => Ok(()),
            other => other.map_err(|failure| failure.during(format!("remove {rule}"))),
        }
    }

    /// The rules of ours.
    ///
    /// # Errors
    /// [`Error::Unsteady`] and what the socket may say.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = family.address_family();
        self.dump(RouteNetlinkMessage::GetRule(message), |answer| match answer {
            RouteNetlinkMessage::NewRule(message) => read_rule(&message).filter(|rule| rule.family == family),
            _ => None,
        })
        .map_err(|failure| failure.during(format!("list the {} rules", family.name())))
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (family, priority, mark, table) = (self.family.name(), self.priority, self.mark, self.table);
        write!(f, "{family} rule {priority}: not fwmark {mark:#x} lookup {table}")
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: Family::of(&route.prefix).address_family(),
        destination_prefix_length: route.prefix.bit_len(),
        protocol: RouteProtocol::Other(PROTOCOL),
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(RouteAddress::from(route.prefix.address())));
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    message.header.kind = match route.target {
        RouteTarget::Device(index) => {
            attributes.push(RouteAttribute::Oif(index));
            // The destination is on the link itself, not behind a router.
            message.header.scope = RouteScope::Link;
            RouteType::Unicast
        }
        RouteTarget::Unreachable => RouteType::Unreachable,
        RouteTarget::Throw => RouteType::Throw,
    };
    message
}

/// A route of a dump or notification, and the table that it is in.
pub(super) fn read_route(message: &RouteMessage) -> Option<(u32, Entry)> {
    let mut table = u32::from(message.header.table);
    let (mut address, mut metric, mut device, mut plain) = (None, 0, None, true);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Source(_) => plain = false,
            _ => {}
        }
    }
    let address = match (address, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::from([0; 4]),
        (None, AddressFamily::Inet6) => IpAddr::from([0; 16]),
        _ => return None,
    };
    let prefix = Prefix::new(address, message.header.destination_prefix_length).ok()?;
    let target = match (message.header.kind, device) {
        (RouteType::Unicast, Some(index)) => Some(RouteTarget::Device(index)),
        (RouteType::Unreachable, _) => Some(RouteTarget::Unreachable),
        (RouteType::Throw, _) => Some(RouteTarget::Throw),
        _ => None,
    };
    let route = target.filter(|_| plain).map(|target| Route { table, prefix, metric, target });
    Some((table, Entry { prefix, protocol: message.header.protocol.into(), route }))
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.address_family();
    message.header.action = RuleAction::ToTable;
    message.header.flags = RuleFlags::Invert;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

/// A rule of the kind and protocol that we make; no other attribute may narrow it.
fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let inverted_only = message.header.flags.contains(RuleFlags::Invert)
        && message.header.action == RuleAction::ToTable
        && (message.header.dst_len, message.header.src_len, message.header.tos) == (0, 0, 0);
    let (mut priority, mut mark, mut mask, mut table, mut protocol) = (0, 0, 0, u32::from(message.header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(number) => mark = *number,
            RuleAttribute::FwMask(number) => mask = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(number) => protocol = u8::from(*number),
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => return None,
            _ => {}
        }
    }
    (inverted_only && mask == u32::MAX && protocol == PROTOCOL).then_some(Rule { family, priority, mark, table })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Namespace, ip};
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn routes_of_each_kind_are_added_once_listed_and_removed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        netlink.set_link_up(index, true).unwrap();
        for (family, text, default) in [(Family::V4, "10.8.0.0/16", "0.0.0.0/0"), (Family::V6, "fd08::/16", "::/0")] {
            let route = |text, metric, target| Route { table: 7770, prefix: prefix(text), metric, target };
            let mut routes = [
                route(text, 1, RouteTarget::Throw),
                route(text, 1024, RouteTarget::Device(index)),
                route(text, u32::MAX, RouteTarget::Unreachable),
                route(default, 1024, RouteTarget::Device(index)),
            ];
            for route in routes.iter().chain(&routes) {
                netlink.replace_route(route).unwrap();
            }
            let mut listed = netlink.routes(7770, family).unwrap();
            listed.sort();
            routes.sort();
            assert_eq!(listed, routes);

            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let shown = ip(&format!("{flag} route show table 7770"));
            let shown = shown.as_array().unwrap();
            assert_eq!(shown.len(), routes.len(), "{shown:?}");
            assert!(shown.iter().all(|route| route["protocol"] == "119"), "{shown:?}");
            assert!(shown.iter().any(|r| r["type"] == "unreachable" && r["metric"] == u32::MAX), "{shown:?}");
            assert!(shown.iter().any(|r| r["dev"] == "va" && r["dst"] == "default"), "{shown:?}");

            let moved = route(text, 1024, RouteTarget::Unreachable);
            netlink.replace_route(&moved).unwrap();
            assert!(netlink.routes(7770, family).unwrap().contains(&moved));
            for route in routes.iter().chain([&moved]).chain(&routes) {
                netlink.remove_route(route).unwrap();
            }
            assert_eq!(netlink.routes(7770, family).unwrap(), []);
        }
    }

    #[test]
    fn routes_of_others_are_not_listed_and_not_removed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        ip("route add unreachable 10.8.0.0/16 metric 7 table 7770");
        assert_eq!(netlink.routes(7770, Family::V4).unwrap(), []);
        let theirs = Route { table: 7770, prefix: prefix("10.8.0.0/16"), metric: 7, target: RouteTarget::Unreachable };
        netlink.remove_route(&theirs).unwrap();
        assert_eq!(ip("route show table 7770").as_array().unwrap().len(), 1);
        assert_eq!(netlink.entries(7770, Family::V4).unwrap().len(), 1);
    }

    #[test]
    fn a_table_that_does_not_exist_is_empty() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        for family in Family::ALL {
            assert_eq!(netlink.routes(1_000_000, family).unwrap(), []);
        }
    }

    #[test]
    fn a_route_by_an_interface_that_is_down_or_gone_names_both() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        let mut route =
            Route { table: 7770, prefix: prefix("10.8.0.0/16"), metric: 1, target: RouteTarget::Device(index) };
        let down = netlink.replace_route(&route).unwrap_err().to_string();
        assert!(down.contains("10.8.0.0/16") && down.contains("is down"), "{down}");
        route.target = RouteTarget::Device(9999);
        let gone = netlink.replace_route(&route).unwrap_err().to_string();
        assert!(gone.contains("#9999") && gone.contains("is gone"), "{gone}");
    }

    #[test]
    fn rules_are_added_once_listed_and_removed() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        for family in Family::ALL {
            let rule = Rule { family, priority: 7770, mark: 0x7765, table: 7770 };
            for _ in 0..2 {
                netlink.add_rule(&rule).unwrap();
            }
            assert_eq!(netlink.rules(family).unwrap(), [rule]);
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let shown = ip(&format!("{flag} rule show priority 7770"));
            assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
            assert_eq!((&shown[0]["fwmark"], &shown[0]["table"]), (&"0x7765".into(), &"7770".into()), "{shown}");
            assert!(shown[0].get("not").is_some(), "{shown}");
            for _ in 0..2 {
                netlink.remove_rule(&rule).unwrap();
            }
            assert_eq!(netlink.rules(family).unwrap(), []);
            assert_eq!(ip(&format!("{flag} rule show priority 7770")).as_array().map_or(0, Vec::len), 0);
        }
    }

    #[test]
    fn a_rule_that_is_not_quite_ours_is_a_conflict_and_survives() {
        let _namespace = Namespace::with_veth();
        let mut netlink = Netlink::open().unwrap();
        let rule = Rule { family: Family::V4, priority: 7770, mark: 0x7765, table: 7770 };
        ip("rule add fwmark 0x7765 priority 7770 table 7770 protocol 119");
        assert!(matches!(netlink.add_rule(&rule), Err(Error::ForeignRule { priority: 7770 })));
        netlink.remove_rule(&rule).unwrap();
        assert_eq!(ip("rule show priority 7770").as_array().unwrap().len(), 1);
    }
}
