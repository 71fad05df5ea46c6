//! The mirrored forwarding tables: where the kernel would send a packet, answered without asking the kernel.
//!
//! ```text
//!                    control thread                          │            workers
//!  links, addresses, ─┐                                      │
//!  tables, rules      ├─▸ Mirror ─▸ Arc<Fib>, immutable ──────┼▸ View ─▸ resolve(destination) ─▸ L2
//!  neighbours        ─┘     ▴                                │            │  stale and in use
//!                           └────────── poll_confirm ◂───────┼────────────┘
//! ```
//!
//! The tables that rules ask one after the other are flattened into one trie for each kind of traffic, so one look-up decides. The answer
//! `None` means that the packet is the kernel's: own and broadcast addresses, unreachable and tunnelled destinations, neighbours that are
//! not known. Of the next hops of a multipath route the first live one is used always; the kernel would spread flows over all of them.
//!
//! This part does no I/O and has no clock: what it knows is told to it, and what it wants confirmed is polled from it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::api::Prefix;
use crate::engine::lpm::Lpm;
use crate::engine::time::Time;
use crate::io::netlink::{
    HostAddress, HostRouteKind, Interface, L2, Mac, Neighbour, NeighbourState, NextHop, TABLE_DEFAULT, TABLE_LOCAL,
    TABLE_MAIN, Tables,
};
use crate::io::xsk::NextHops;
use crate::worker::Notify;

/// Most neighbours that are mirrored; those beyond are reached through the kernel. Its own tables hold 1024 by default.
pub const NEIGHBOURS_MAX: usize = 65_536;
/// How long a neighbour is not asked for again. The kernel itself waits five seconds between DELAY and PROBE.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// Whose packet it is; the kernel asks different tables for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Opened packets on their way to a LAN: our own table comes before `main`.
    Overlay,
    /// Our own datagrams, which carry the mark and so skip our table.
    Underlay,
}

/// The tables that packets of each kind go through, in the kernel's order.
fn order(traffic: Traffic, own_table: u32) -> Vec<u32> {
    match traffic {
        Traffic::Overlay => vec![TABLE_LOCAL, own_table, TABLE_MAIN, TABLE_DEFAULT],
        Traffic::Underlay => vec![TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT],
    }
}

/// What a worker needs of a link.
#[derive(Clone, Debug)]
struct Port {
    mac: Mac,
    mtu: u32,
    addresses: Vec<IpAddr>,
}

/// What a worker needs of a neighbour.
#[derive(Debug)]
struct Entry {
    mac: Mac,
    stale: bool,
    /// Set by the first worker that sends to it while it is stale.
    wanted: AtomicBool,
}

/// The routes of both kinds of traffic. They change far more rarely than neighbours, so snapshots share them.
#[derive(Debug)]
struct Routes {
    overlay: Lpm<Option<NextHop>>,
    underlay: Lpm<Option<NextHop>>,
}

/// An immutable snapshot of where packets go.
#[derive(Debug)]
pub struct Fib {
    /// Raised by one at each change.
    pub epoch: u64,
    routes: Arc<Routes>,
    ports: Arc<HashMap<u32, Port>>,
    neighbours: HashMap<(u32, IpAddr), Entry>,
    asked: Asked,
}

/// How a worker says that a neighbour should be confirmed.
#[derive(Clone)]
struct Asked {
    pending: Arc<AtomicBool>,
    notify: Notify,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asked").field(&self.pending).finish()
    }
}

impl Fib {
    /// Routes of overlay packets and of our own datagrams, and neighbours that can be sent to.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.routes.overlay.len(), self.routes.underlay.len(), self.neighbours.len())
    }

    /// How a frame to `destination` begins and where it leaves; `None` when the kernel has to send it. A neighbour that is stale carries
    /// traffic, and the control thread is told once for each snapshot that it is in use.
    pub fn resolve(&self, traffic: Traffic, destination: IpAddr) -> Option<L2> {
        let is_broadcast = destination == IpAddr::V4(Ipv4Addr::BROADCAST);
        if is_broadcast || destination.is_multicast() || destination.is_loopback() || destination.is_unspecified() {
            return None;
        }
        // Every link has those, and a router forwards to none.
        if is_link_local(&destination) {
            return None;
        }
        let routes = match traffic {
            Traffic::Overlay => &self.routes.overlay,
            Traffic::Underlay => &self.routes.underlay,
        };
        let hop = routes.lookup(destination).flatten()?;
        let next = hop.gateway.unwrap_or(destination);
        let port = self.ports.get(&hop.link)?;
        let neighbour = self.neighbours.get(&(hop.link, next))?;
        // The kernel takes an IPv4 address out of the gateway's network, and an IPv6 address that is like the destination.
        let near = if destination.is_ipv4() && next.is_ipv4() { next } else { destination };
        let source = hop.preferred_source.or_else(|| nearest(&port.addresses, near));
        if neighbour.stale
            && !neighbour.wanted.swap(true, Ordering::Relaxed)
            && !self.asked.pending.swap(true, Ordering::AcqRel)
        {
            (self.asked.notify)();
        }
        Some(L2 { interface: hop.link, source_mac: port.mac, destination_mac: neighbour.mac, source, mtu: port.mtu })
    }

    /// The snapshot as one kind of traffic sees it.
    pub fn view(self: &Arc<Self>, traffic: Traffic) -> View {
        View { fib: Arc::clone(self), traffic }
    }
}

/// A snapshot as one kind of traffic sees it: what a port sends by.
#[derive(Clone, Debug)]
pub struct View {
    fib: Arc<Fib>,
    traffic: Traffic,
}

impl NextHops for View {
    fn resolve(&self, destination: IpAddr) -> Option<L2> {
        self.fib.resolve(self.traffic, destination)
    }
}

/// The address of a link that shares most leading bits with another one (the last rule of RFC 6724 §5).
fn nearest(addresses: &[IpAddr], near: IpAddr) -> Option<IpAddr> {
    let shared = |address: &IpAddr| match (*address, near) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        (IpAddr::V6(a), IpAddr::V6(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        _ => None,
    };
    // Of equals the first is the primary one, so later ones have to be better.
    let mut best = None;
    for address in addresses {
        if let Some(bits) = shared(address)
            && best.is_none_or(|(most, _)| bits > most)
        {
            best = Some((bits, *address));
        }
    }
    best.map(|(_, address)| address)
}

/// What is known of the host, and the snapshot made of it.
#[derive(Debug)]
pub struct Mirror {
    own_table: u32,
    ports: Arc<HashMap<u32, Port>>,
    routes: Arc<Routes>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
    fib: Arc<Fib>,
    changed: bool,
    /// Whether overlay packets may go past the kernel's router.
    open: bool,
    /// When each neighbour was last asked for.
    asked: BTreeMap<(u32, IpAddr), Time>,
}

impl Mirror {
    /// A mirror that has seen nothing, and a snapshot that leaves everything to the kernel. `own_table` is the table of the overlay's
    /// routes; `notify` is called by workers that use a stale neighbour.
    pub fn new(own_table: u32, notify: Notify) -> Self {
        let routes = Arc::new(Routes { overlay: Lpm::empty(), underlay: Lpm::empty() });
        let ports = Arc::default();
        let fib = Fib {
            epoch: 0,
            routes: Arc::clone(&routes),
            ports: Arc::clone(&ports),
            neighbours: HashMap::new(),
            asked: Asked { pending: Arc::default(), notify },
        };
        Self {
            own_table,
            ports,
            routes,
            neighbours: HashMap::new(),
            fib: Arc::new(fib),
            changed: false,
            open: true,
            asked: BTreeMap::new(),
        }
    }

    /// Takes all links and addresses, in place of those before. Only links that frames can be written to directly count.
    pub fn handle_links(&mut self, interfaces: &[Interface], addresses: &[HostAddress]) {
        let ports = interfaces.iter().filter(|interface| interface.running && interface.master.is_none());
        let ports = ports.filter_map(|interface| {
            let own = addresses.iter().filter(|known| known.link == interface.index);
            let addresses = own.map(|known| known.address.address()).filter(|ip| !is_link_local(ip)).collect();
            Some((interface.index, Port { mac: interface.mac?, mtu: interface.mtu, addresses }))
        });
        self.ports = Arc::new(ports.collect());
        self.changed = true;
    }

    /// Takes all tables, in place of those before. With rules that are not ours, or a table that is too long to mirror, nothing is
    /// resolved: the tables alone do not tell what the kernel would do.
    pub fn handle_tables(&mut self, tables: &Tables) {
        let usable = tables.foreign_rule.is_none() && tables.too_long.is_none();
        let flat = |traffic| match usable {
            true => flatten(tables, &order(traffic, self.own_table)),
            false => Lpm::empty(),
        };
        self.routes = Arc::new(Routes { overlay: flat(Traffic::Overlay), underlay: flat(Traffic::Underlay) });
        self.changed = true;
    }

    /// Whether overlay packets may go past the kernel's router; if not, all of them are the kernel's.
    pub fn handle_permission(&mut self, open: bool) {
        self.changed |= open != self.open;
        self.open = open;
    }

    /// Takes all neighbours, in place of those before.
    pub fn handle_neighbours(&mut self, neighbours: impl IntoIterator<Item = Neighbour>) {
        self.neighbours.clear();
        neighbours.into_iter().for_each(|neighbour| self.handle_neighbour(neighbour, false));
        self.changed = true;
    }

    /// Takes one neighbour that came, changed or went.
    pub fn handle_neighbour(&mut self, neighbour: Neighbour, removed: bool) {
        let key = (neighbour.link, neighbour.address);
        let before = match removed {
            true => self.neighbours.remove(&key),
            false if self.neighbours.len() < NEIGHBOURS_MAX || self.neighbours.contains_key(&key) => {
                self.neighbours.insert(key, neighbour)
            }
            false => return,
        };
        // The kernel tells of every probe; only what a sender would do differently makes a new snapshot.
        self.changed |= (!removed).then_some(neighbour) != before;
    }

    /// The next snapshot, if there is a new one.
    pub fn poll_fib(&mut self) -> Option<Arc<Fib>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let neighbours = self.neighbours.values().filter(|neighbour| neighbour.state != NeighbourState::Unknown);
        let neighbours = neighbours.filter_map(|neighbour| {
            let stale = neighbour.state == NeighbourState::Stale;
            let entry = Entry { mac: neighbour.mac?, stale, wanted: AtomicBool::new(false) };
            Some(((neighbour.link, neighbour.address), entry))
        });
        let routes = match self.open {
            true => Arc::clone(&self.routes),
            false => Arc::new(Routes { overlay: Lpm::empty(), underlay: self.routes.underlay.clone() }),
        };
        self.fib = Arc::new(Fib {
            epoch: self.fib.epoch + 1,
            routes,
            ports: Arc::clone(&self.ports),
            neighbours: neighbours.collect(),
            asked: self.fib.asked.clone(),
        });
        Some(Arc::clone(&self.fib))
    }

    /// The stale neighbours that workers send to: link and address of those that the kernel should confirm now. None is named twice
    /// within a second.
    pub fn poll_confirm(&mut self, now: Time) -> Vec<(u32, IpAddr)> {
        if !self.fib.asked.pending.swap(false, Ordering::AcqRel) {
            return vec![];
        }
        self.asked.retain(|_, at| now.since(*at) < CONFIRM_INTERVAL);
        let wanted = self.fib.neighbours.iter().filter(|(_, entry)| entry.wanted.swap(false, Ordering::Relaxed));
        let mut confirm: Vec<_> = wanted.map(|(key, _)| *key).filter(|key| !self.asked.contains_key(key)).collect();
        confirm.sort_unstable();
        self.asked.extend(confirm.iter().map(|key| (*key, now)));
        confirm
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// By rank of the table, the metric and kind of its best route.
type Found<'a> = Vec<Option<(u32, &'a HostRouteKind)>>;

/// One trie that answers as the tables do when they are asked in this order.
///
/// For an address whose longest prefix over all tables is `p`, each table's own longest match is a prefix that covers `p`. So what the
/// tables say is the same for all addresses of which `p` is the longest, and one entry for `p` holds it.
fn flatten(tables: &Tables, order: &[u32]) -> Lpm<Option<NextHop>> {
    // By prefix, what each table has for exactly that prefix; the order of `Prefix` puts those that cover others before them.
    let mut exact: BTreeMap<Prefix, Found<'_>> = BTreeMap::new();
    for route in &tables.routes {
        let Some(rank) = order.iter().position(|table| *table == route.table) else { continue };
        let at = &mut exact.entry(route.prefix).or_insert_with(|| vec![None; order.len()])[rank];
        match at {
            Some((metric, _)) if *metric < route.metric => {}
            // Among equal IPv6 routes, of several routers that announced themselves, the kernel looks who answers (RFC 4191 §3.2).
            Some((metric, kind)) if *metric == route.metric => {
                if route.prefix.address().is_ipv6() && **kind != route.kind {
                    *kind = &HostRouteKind::Kernel;
                }
            }
            _ => *at = Some((route.metric, &route.kind)),
        }
    }
    let mut covering: Vec<(Prefix, Found<'_>)> = vec![];
    let mut flat = vec![];
    for (prefix, mut found) in exact {
        while covering.last().is_some_and(|(above, _)| !covers(above, &prefix)) {
            covering.pop();
        }
        if let Some((_, above)) = covering.last() {
            found.iter_mut().zip(above).for_each(|(here, above)| *here = here.or(*above));
        }
        let decided = found.iter().flatten().map(|(_, kind)| *kind).find(|kind| **kind != HostRouteKind::Throw);
        flat.push((
            prefix,
            match decided {
                Some(HostRouteKind::Forward(hop)) => Some(*hop),
                _ => None,
            },
        ));
        covering.push((prefix, found));
    }
    // More than a trie holds are left to the kernel, all of them: a part would be wrong.
    Lpm::build(flat).unwrap_or_else(|_| Lpm::empty())
}

fn covers(above: &Prefix, below: &Prefix) -> bool {
    above.bit_len() <= below.bit_len() && above.contains(below.address())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::io::netlink::HostRoute;

    const OWN: u32 = 7770;
    const LAN: u32 = 2;
    const WAN: u32 = 3;
    const TUN: u32 = 4;
    const MAC: Mac = [2, 0, 0, 0, 0, 2];
    const HOST: Mac = [2, 0, 0, 0, 0, 99];

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(index: u32) -> Interface {
        Interface {
            index,
            name: format!("eth{index}"),
            running: true,
            ethernet: true,
            mac: (index != TUN).then_some(MAC),
            mtu: 1500,
            kind: None,
            master: None,
            lower: None,
        }
    }

    fn route(table: u32, prefix: &str, metric: u32, kind: HostRouteKind) -> HostRoute {
        HostRoute { table, prefix: prefix.parse().unwrap(), metric, kind }
    }

    fn by(link: u32, gateway: Option<&str>) -> HostRouteKind {
        HostRouteKind::Forward(NextHop { link, gateway: gateway.map(address), preferred_source: None })
    }

    fn neighbour(link: u32, ip: &str, state: NeighbourState) -> Neighbour {
        Neighbour { link, address: address(ip), mac: Some(HOST), state }
    }

    fn tables(routes: Vec<HostRoute>) -> Tables {
        Tables { routes, ..Tables::default() }
    }

    /// A router between a LAN inside the overlay's prefix and the world.
    fn host() -> Mirror {
        let mut mirror = Mirror::new(OWN, Arc::new(|| {}));
        let own = [(LAN, "10.1.0.1/16"), (WAN, "192.0.2.1/24"), (WAN, "198.51.100.1/24"), (LAN, "fd01::1/64")];
        let own = own.map(|(link, text)| HostAddress { link, address: text.parse().unwrap() });
        mirror.handle_links(&[interface(LAN), interface(WAN), interface(TUN)], &own);
        mirror.handle_tables(&tables(vec![
            route(TABLE_LOCAL, "10.1.0.1/32", 0, HostRouteKind::Kernel),
            route(TABLE_LOCAL, "10.1.255.255/32", 0, HostRouteKind::Kernel),
            route(OWN, "10.1.0.0/16", 1, HostRouteKind::Throw),
            route(OWN, "10.0.0.0/8", u32::MAX, HostRouteKind::Kernel),
            route(OWN, "10.0.0.0/8", 1024, by(TUN, None)),
            route(TABLE_MAIN, "10.1.0.0/16", 0, by(LAN, None)),
            route(TABLE_MAIN, "10.5.0.0/16", 0, by(LAN, Some("10.1.0.9"))),
            route(TABLE_MAIN, "0.0.0.0/0", 0, by(WAN, Some("192.0.2.2"))),
            route(TABLE_MAIN, "203.0.113.0/24", 0, HostRouteKind::Kernel),
            route(TABLE_MAIN, "fd01::/64", 0, by(LAN, None)),
            route(TABLE_MAIN, "fe80::/64", 256, by(LAN, None)),
            route(TABLE_MAIN, "fd03::/16", 1024, by(LAN, Some("fd01::7"))),
            route(TABLE_MAIN, "fd03::/16", 1024, by(LAN, Some("fd01::8"))),
            route(TABLE_MAIN, "fd04::/16", 1024, by(LAN, Some("fd01::8"))),
            route(TABLE_MAIN, "fd04::/16", 100, by(LAN, Some("fd01::7"))),
        ]));
        mirror.handle_neighbours([
            neighbour(LAN, "10.1.0.7", NeighbourState::Confirmed),
            neighbour(LAN, "10.1.0.8", NeighbourState::Unknown),
            neighbour(LAN, "10.1.0.9", NeighbourState::Fixed),
            neighbour(LAN, "fd01::7", NeighbourState::Stale),
            neighbour(LAN, "fe80::7", NeighbourState::Confirmed),
            neighbour(WAN, "192.0.2.2", NeighbourState::Confirmed),
        ]);
        mirror
    }

    fn link(fib: &Fib, traffic: Traffic, destination: &str) -> Option<u32> {
        fib.resolve(traffic, address(destination)).map(|l2| l2.interface)
    }

    #[test]
    fn packets_go_where_the_kernel_would_send_them() {
        let fib = host().poll_fib().unwrap();
        for (destination, overlay, underlay) in [
            ("10.1.0.7", Some(LAN), Some(LAN)),
            ("10.1.0.1", None, None),
            ("10.1.255.255", None, None),
            ("10.1.0.8", None, None),
            ("10.1.0.77", None, None),
            // Overlay packets for other overlay prefixes go into the TUN, our own datagrams do not.
            ("10.5.0.1", None, Some(LAN)),
            ("10.9.9.9", None, Some(WAN)),
            ("198.18.0.1", Some(WAN), Some(WAN)),
            ("203.0.113.1", None, None),
            ("fd01::7", Some(LAN), Some(LAN)),
            ("fd02::7", None, None),
            ("fd03::1", None, None),
            ("fd04::1", Some(LAN), Some(LAN)),
            ("fe80::7", None, None),
            ("224.0.0.1", None, None),
            ("255.255.255.255", None, None),
            ("ff02::1", None, None),
        ] {
            assert_eq!(link(&fib, Traffic::Overlay, destination), overlay, "{destination} from the overlay");
            assert_eq!(link(&fib, Traffic::Underlay, destination), underlay, "{destination} from ourselves");
        }
        let l2 = fib.view(Traffic::Underlay).resolve(address("198.18.0.1")).unwrap();
        let source = Some(address("192.0.2.1"));
        assert_eq!(l2, L2 { interface: WAN, source_mac: MAC, destination_mac: HOST, source, mtu: 1500 });
    }

    #[test]
    fn the_source_is_the_preferred_one_or_the_nearest_of_the_link() {
        let own: Vec<_> = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "192.0.2.3"].map(address).into();
        assert_eq!(nearest(&own, address("192.0.2.9")), Some(address("192.0.2.1")), "the first of equals");
        assert_eq!(nearest(&own, address("198.51.100.9")), Some(address("198.51.100.1")));
        assert_eq!(nearest(&own, address("2001:db8::9")), Some(address("2001:db8::1")));
        assert_eq!(nearest(&own[..2], address("2001:db8::9")), None);
        let mut mirror = host();
        let preferred_source = Some(address("203.0.113.77"));
        let hop = NextHop { link: WAN, gateway: Some(address("192.0.2.2")), preferred_source };
        mirror.handle_tables(&tables(vec![route(TABLE_MAIN, "0.0.0.0/0", 0, HostRouteKind::Forward(hop))]));
        let l2 = mirror.poll_fib().unwrap().resolve(Traffic::Underlay, address("198.18.0.1")).unwrap();
        assert_eq!(l2.source, preferred_source);
    }

    /// The tables asked one by one, as the kernel does it.
    fn oracle(tables: &Tables, order: &[u32], destination: IpAddr) -> Option<NextHop> {
        for table in order {
            let covering = tables.routes.iter().filter(|r| r.table == *table && r.prefix.contains(destination));
            let longest = covering.max_by_key(|r| (r.prefix.bit_len(), std::cmp::Reverse(r.metric)));
            match longest.map(|route| &route.kind) {
                None | Some(HostRouteKind::Throw) => {}
                Some(HostRouteKind::Forward(hop)) => return Some(*hop),
                Some(HostRouteKind::Kernel) => return None,
            }
        }
        None
    }

    proptest::proptest! {
        #[test]
        fn one_trie_answers_as_the_tables_in_order(
            routes in proptest::collection::vec((0usize..4, 0u32..64, 26u8..=32, 0u32..3, 0u8..4), 0..40),
        ) {
            let order = order(Traffic::Overlay, OWN);
            let routes = routes.into_iter().enumerate().map(|(i, (table, host, len, metric, kind))| {
                let host = host & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                let kind = match kind {
                    0 => HostRouteKind::Throw,
                    1 => HostRouteKind::Kernel,
                    // A link of its own for each, so that answers can be told apart.
                    _ => by(i as u32 + 1, None),
                };
                let prefix = Prefix::new(IpAddr::V4((0x0a00_0000 | host).into()), len).unwrap();
                // The kernel has at most one route of a prefix and metric in a table.
                HostRoute { table: order[table], prefix, metric: metric * 100 + i as u32, kind }
            });
            let tables = tables(routes.collect());
            let flat = flatten(&tables, &order);
            for host in 0..64u32 {
                let destination = IpAddr::V4((0x0a00_0000 | host).into());
                let expected = oracle(&tables, &order, destination);
                proptest::prop_assert_eq!(flat.lookup(destination).flatten(), expected, "{}", destination);
            }
        }
    }

    #[test]
    fn nothing_is_resolved_where_the_tables_do_not_decide() {
        for (foreign_rule, too_long) in [(Some("IPv4 rule 99".to_owned()), None), (None, Some(TABLE_MAIN))] {
            let mut mirror = host();
            let routes = vec![route(TABLE_MAIN, "0.0.0.0/0", 0, by(WAN, Some("192.0.2.2")))];
            mirror.handle_tables(&Tables { routes, foreign_rule, too_long });
            assert_eq!(link(&mirror.poll_fib().unwrap(), Traffic::Overlay, "198.18.0.1"), None);
        }
    }

    #[test]
    fn a_lan_that_is_closed_is_left_to_the_kernel_and_the_wan_is_not() {
        let mut mirror = host();
        mirror.handle_permission(false);
        let fib = mirror.poll_fib().unwrap();
        assert_eq!(link(&fib, Traffic::Overlay, "10.1.0.7"), None);
        assert_eq!(link(&fib, Traffic::Underlay, "198.18.0.1"), Some(WAN));
        mirror.handle_permission(false);
        assert!(mirror.poll_fib().is_none());
        mirror.handle_permission(true);
        assert_eq!(link(&mirror.poll_fib().unwrap(), Traffic::Overlay, "10.1.0.7"), Some(LAN));
    }

    #[test]
    fn links_that_cannot_carry_frames_are_left_to_the_kernel() {
        type Break = fn(&mut Interface);
        let breaks: [Break; 3] = [|i| i.running = false, |i| i.master = Some(9), |i| i.mac = None];
        for broken in breaks {
            let mut mirror = host();
            let mut lan = interface(LAN);
            broken(&mut lan);
            mirror.handle_links(&[lan, interface(WAN)], &[]);
            let fib = mirror.poll_fib().unwrap();
            assert_eq!(link(&fib, Traffic::Overlay, "10.1.0.7"), None);
            assert_eq!(link(&fib, Traffic::Overlay, "198.18.0.1"), Some(WAN));
        }
    }

    #[test]
    fn neighbours_come_change_and_go() {
        let mut mirror = host();
        assert_eq!(mirror.poll_fib().unwrap().epoch, 1);
        assert!(mirror.poll_fib().is_none());
        let known = neighbour(LAN, "10.1.0.8", NeighbourState::Confirmed);
        mirror.handle_neighbour(known, false);
        assert_eq!(link(&mirror.poll_fib().unwrap(), Traffic::Overlay, "10.1.0.8"), Some(LAN));
        mirror.handle_neighbour(known, false);
        assert!(mirror.poll_fib().is_none(), "nothing new");
        mirror.handle_neighbour(known, true);
        assert_eq!(link(&mirror.poll_fib().unwrap(), Traffic::Overlay, "10.1.0.8"), None);
        mirror.handle_neighbour(known, true);
        assert!(mirror.poll_fib().is_none(), "it was gone before");
    }

    #[test]
    fn neighbours_beyond_the_limit_are_left_to_the_kernel() {
        let mut mirror = Mirror::new(OWN, Arc::new(|| {}));
        let nth = |n: usize| Neighbour {
            link: LAN,
            address: IpAddr::V4((0x0a00_0000 + n as u32).into()),
            mac: Some(HOST),
            state: NeighbourState::Confirmed,
        };
        mirror.handle_neighbours((0..NEIGHBOURS_MAX).map(nth));
        assert_eq!(mirror.poll_fib().unwrap().neighbours.len(), NEIGHBOURS_MAX);
        mirror.handle_neighbour(nth(NEIGHBOURS_MAX), false);
        assert!(mirror.poll_fib().is_none());
        mirror.handle_neighbour(Neighbour { state: NeighbourState::Stale, ..nth(0) }, false);
        assert!(
            mirror.poll_fib().unwrap().neighbours[&(LAN, nth(0).address)].stale,
            "those that are known still change"
        );
    }

    #[test]
    fn stale_neighbours_in_use_are_confirmed_once_a_second() {
        let calls = Arc::new(AtomicU32::new(0));
        let notify: Notify = Arc::new({
            let calls = Arc::clone(&calls);
            move || _ = calls.fetch_add(1, Ordering::Relaxed)
        });
        let mut mirror = Mirror { fib: Mirror::new(OWN, notify).fib, ..host() };
        let fib = mirror.poll_fib().unwrap();
        let stale = address("fd01::7");
        let start = Time::from_nanos(1);
        assert!(fib.resolve(Traffic::Overlay, address("10.1.0.7")).is_some());
        assert!(mirror.poll_confirm(start).is_empty(), "that one is confirmed");
        for _ in 0..3 {
            assert!(fib.resolve(Traffic::Overlay, stale).is_some(), "stale ones carry traffic");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(mirror.poll_confirm(start), [(LAN, stale)]);
        assert!(mirror.poll_confirm(start).is_empty());
        let later = |nanos: u64| Time::from_nanos(1 + nanos);
        let interval = CONFIRM_INTERVAL.as_nanos() as u64;
        fib.resolve(Traffic::Overlay, stale);
        assert!(mirror.poll_confirm(later(interval - 1)).is_empty());
        fib.resolve(Traffic::Overlay, stale);
        assert_eq!(mirror.poll_confirm(later(interval)), [(LAN, stale)]);
    }
}
