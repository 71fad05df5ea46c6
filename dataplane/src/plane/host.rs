//! Follows the host while the plane runs: what goes past the kernel's router must stop the moment that the router would do more than route.
//!
//! ```text
//!   links, addresses, routes, rules ─┐                      ┌─▸ Mirror ─▸ snapshots for the ports
//!   neighbours                       ├─▸ handle_change ─────┤
//!   nftables, tc; a slow timer       ┘                      └─▸ facts ─▸ choose ─▸ LAN open or closed
//! ```
//!
//! Ports are made once, at the start. What a start chose is only taken back while its reasons do not hold, and given again.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, LanPort};
use crate::engine::time::Time;
use crate::io::netlink::{Change, Changes, Error, Netlink, RulesetChanges, Tables};
use crate::plane::choice::{Choice, Costs, choose};
use crate::plane::facts::{Sources, wanted};
use crate::plane::fib::{Fib, Mirror};
use crate::worker::Notify;

/// How often facts are asked for that tell nobody when they change: programs at tc (TCX) and the older iptables.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What has to be read again.
#[derive(Clone, Copy, Debug, Default)]
struct Unread {
    links: bool,
    tables: bool,
    neighbours: bool,
    facts: bool,
}

/// The host as it was last seen, and what follows from that.
#[derive(Debug)]
pub(super) struct Host {
    config: Config,
    costs: Option<Costs>,
    sources: Sources,
    ruleset: Option<RulesetChanges>,
    tables: Tables,
    mirror: Mirror,
    /// What the start chose, with the reasons of now.
    choice: Choice,
    /// What the LAN ports were made for at the start.
    lan_at_start: (LanPort, LanPort),
    open: bool,
    unread: Unread,
    next_look: Option<Time>,
}

impl Host {
    /// Looks at the host and chooses. On the devices `inherited` a predecessor's programs are taken over. Where a choice needs it, changes are followed from now on.
    pub(super) fn start(
        config: &Config,
        costs: Option<Costs>,
        netlink: &mut Netlink,
        changes: &mut Changes,
        inherited: Vec<String>,
        notify: Notify,
    ) -> Result<Self, Error> {
        let mut sources = Sources::open()?;
        sources.know(vec![], inherited);
        // A router with a full feed takes a second to list, so whoever stays in the kernel does without.
        let mut tables = Tables::default();
        let mut choice = choose(&wanted(config), &sources.gather(config, netlink, &tables, costs)?);
        let mut ruleset = None;
        if choice.needs_fib() || choice.passes_router() {
            // Before the first look, so that nothing changes in between unheard.
            changes.watch_forwarding()?;
            ruleset = RulesetChanges::subscribe().ok();
            tables = netlink.tables(&config.routing)?;
            choice = choose(&wanted(config), &sources.gather(config, netlink, &tables, costs)?);
        }
        let follows = choice.needs_fib() || choice.passes_router();
        let mut mirror = Mirror::new(config.routing.table, notify);
        if follows {
            mirror.handle_tables(&tables);
            mirror.handle_links(&netlink.interfaces()?, &netlink.addresses()?);
            mirror.handle_neighbours(netlink.neighbours()?);
        }
        Ok(Self {
            config: config.clone(),
            costs,
            sources,
            ruleset,
            tables,
            mirror,
            lan_at_start: (choice.lan_rx.port, choice.lan_tx.port),
            choice,
            open: true,
            unread: Unread::default(),
            next_look: follows.then_some(Time::ZERO),
        })
    }

    /// Names our own programs, after they were attached.
    pub(super) fn know_programs(&mut self, own: Vec<u32>) {
        self.sources.know(own, vec![]);
    }

    /// Chooses again, without AF_XDP: the kernel gave no sockets.
    pub(super) fn refuse_xsk(&mut self, why: String, netlink: &mut Netlink) -> Result<(), Error> {
        self.sources.refuse(why);
        self.choice =
            choose(&wanted(&self.config), &self.sources.gather(&self.config, netlink, &self.tables, self.costs)?);
        self.lan_at_start = (self.choice.lan_rx.port, self.choice.lan_tx.port);
        self.next_look = (self.choice.needs_fib() || self.choice.passes_router()).then_some(Time::ZERO);
        Ok(())
    }

    /// What is chosen, and why.
    pub(super) const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Whether LAN packets may go past the kernel's router at the moment, if the start chose so.
    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    /// Readable when the ruleset has changed.
    pub(super) fn ruleset(&self) -> Option<BorrowedFd<'_>> {
        self.ruleset.as_ref().map(|ruleset| ruleset.as_fd())
    }

    /// When to call [`Self::settle`] at the latest; `None` where nothing goes past the kernel.
    pub(super) const fn next_deadline(&self) -> Option<Time> {
        self.next_look
    }

    /// Takes a change.
    pub(super) fn handle_change(&mut self, change: &Change) {
        match change {
            Change::Neighbour { neighbour, removed } => self.mirror.handle_neighbour(*neighbour, *removed),
            Change::Link { .. } => (self.unread.links, self.unread.tables, self.unread.facts) = (true, true, true),
            Change::Address { .. } => self.unread.links = true,
            Change::KernelRoute | Change::Route { .. } => self.unread.tables = true,
            Change::Rule { .. } => (self.unread.tables, self.unread.facts) = (true, true),
            Change::Hook => self.unread.facts = true,
            Change::Lost => self.unread = Unread { links: true, tables: true, neighbours: true, facts: true },
        }
    }

    /// Reads again what has changed, and has neighbours confirmed. Returns the choice when it, or a reason in it, is another one now.
    ///
    /// When the host cannot be read, the LAN is closed until it can.
    pub(super) fn settle(&mut self, netlink: &mut Netlink, now: Time) -> Result<Option<&Choice>, Error> {
        let Some(next_look) = self.next_look else { return Ok(None) };
        let mut unread = std::mem::take(&mut self.unread);
        unread.facts |= now >= next_look;
        match self.read(unread, netlink, now) {
            Ok(changed) => Ok(changed.then_some(&self.choice)),
            Err(error) => {
                self.unread = Unread { links: true, tables: true, neighbours: true, facts: true };
                self.next_look = Some(now.plus(LOOK_INTERVAL));
                self.open = !self.passes_router();
                self.mirror.handle_permission(self.open);
                Err(error)
            }
        }
    }

    fn read(&mut self, mut unread: Unread, netlink: &mut Netlink, now: Time) -> Result<bool, Error> {
        if let Some(ruleset) = &mut self.ruleset {
            unread.facts |= ruleset.poll_changed()?;
        }
        if unread.links {
            self.mirror.handle_links(&netlink.interfaces()?, &netlink.addresses()?);
        }
        if unread.tables {
            self.tables = netlink.tables(&self.config.routing)?;
            self.mirror.handle_tables(&self.tables);
            unread.facts = true;
        }
        if unread.neighbours {
            self.mirror.handle_neighbours(netlink.neighbours()?);
        }
        let changed = unread.facts && self.decide(netlink, now)?;
        for (link, address) in self.mirror.poll_confirm(now) {
            confirm(netlink, link, address);
        }
        Ok(changed)
    }

    /// Whether the start made ports that go past the kernel's router.
    fn passes_router(&self) -> bool {
        let (rx, tx) = self.lan_at_start;
        rx == LanPort::Xsk || tx == LanPort::Xsk
    }

    /// The next snapshot of the mirrored tables, if there is a new one.
    pub(super) fn poll_fib(&mut self) -> Option<Arc<Fib>> {
        self.mirror.poll_fib()
    }

    fn decide(&mut self, netlink: &mut Netlink, now: Time) -> Result<bool, Error> {
        self.next_look = Some(now.plus(LOOK_INTERVAL));
        let choice = match self.sources.gather(&self.config, netlink, &self.tables, self.costs) {
            Ok(facts) => choose(&wanted(&self.config), &facts),
            // The WAN interface is gone for the moment, and its ports with it; nothing about the LAN is known to have changed.
            Err(Error::NoInterface { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let (rx, tx) = self.lan_at_start;
        let takes_back = |at_start, now| at_start == LanPort::Xsk && now != LanPort::Xsk;
        self.open = !takes_back(rx, choice.lan_rx.port) && !takes_back(tx, choice.lan_tx.port);
        self.mirror.handle_permission(self.open);
        let changed = choice != self.choice;
        self.choice = choice;
        Ok(changed)
    }
}

fn confirm(netlink: &mut Netlink, link: u32, address: IpAddr) {
    // A link that went meanwhile takes its neighbours along; whatever else fails is tried again by the next packet.
    if let Err(error) = netlink.use_neighbour(link, address) {
        tracing::debug!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::io::netlink::testing::{Namespace, ip};
    use crate::plane::fib::Traffic;

    /// `va` as the WAN, `lan0` as a LAN that goes past the router although it is a veth: costs say that the TUN takes for ever.
    fn host(lan_rx: &str) -> (Namespace, Netlink, Changes, Host) {
        let namespace = Namespace::with_veth();
        for command in [
            "link add lan0 type veth peer name h0",
            "link set va up",
            "link set vb up",
            "link set lan0 up",
            "link set h0 up",
            "addr add 10.1.0.1/16 dev lan0",
            "neigh add 10.1.0.7 lladdr 02:00:00:00:00:07 nud stale dev lan0",
        ] {
            ip(command);
        }
        let text = format!("[wan]\ninterface = \"va\"\n[lan]\ninterfaces = [\"lan0\"]\nrx = \"{lan_rx}\"");
        let config = Config::parse(Path::new("test"), &text).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let mut changes = Changes::subscribe(config.routing.table).unwrap();
        let host = Host::start(&config, None, &mut netlink, &mut changes, vec![], Arc::new(|| {})).unwrap();
        (namespace, netlink, changes, host)
    }

    fn drain(host: &mut Host, changes: &mut Changes) {
        while let Some(change) = changes.poll_event().unwrap() {
            host.handle_change(&change);
        }
    }

    #[test]
    fn where_everything_stays_in_the_kernel_nothing_is_followed() {
        let (_namespace, mut netlink, mut changes, mut host) = host("auto");
        assert_eq!(host.choice().lan_rx.port, LanPort::Tun);
        assert_eq!((host.next_deadline(), host.ruleset().is_some()), (None, false));
        ip("neigh add 10.1.0.8 lladdr 02:00:00:00:00:08 nud stale dev lan0");
        drain(&mut host, &mut changes);
        assert!(host.settle(&mut netlink, Time::from_nanos(1)).unwrap().is_none());
        assert!(host.poll_fib().is_none());
    }

    #[test]
    fn what_is_followed_is_resolved_and_confirmed() {
        let (_namespace, mut netlink, mut changes, mut host) = host("xsk");
        let destination: IpAddr = "10.1.0.7".parse().unwrap();
        let fib = host.poll_fib().expect("the first snapshot");
        let l2 = fib.resolve(Traffic::Overlay, destination).expect("a stale neighbour carries traffic");
        assert_eq!(l2.destination_mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(l2.interface, netlink.link("lan0").unwrap().index);
        host.settle(&mut netlink, Time::from_nanos(1)).unwrap();
        let confirmed = netlink.neighbours().unwrap().into_iter().find(|n| n.address == destination).unwrap();
        assert_eq!(confirmed.state, crate::io::netlink::NeighbourState::Confirmed, "it is being asked");

        ip("route add 10.7.0.0/16 via 10.1.0.7");
        drain(&mut host, &mut changes);
        host.settle(&mut netlink, Time::from_nanos(2)).unwrap();
        let fib = host.poll_fib().expect("a route came");
        assert_eq!(fib.resolve(Traffic::Overlay, "10.7.0.1".parse().unwrap()), Some(l2));
        ip("neigh del 10.1.0.7 dev lan0");
        drain(&mut host, &mut changes);
        host.settle(&mut netlink, Time::from_nanos(3)).unwrap();
        assert_eq!(host.poll_fib().unwrap().resolve(Traffic::Overlay, destination), None);
        assert_eq!(host.poll_fib().map(|fib| fib.epoch), None);
    }

    #[test]
    fn a_lan_that_was_opened_is_closed_while_a_hook_stands_there() {
        let (_namespace, mut netlink, _changes, mut host) = host("xsk");
        // As if `auto` had chosen it: on a veth it never does.
        host.config.lan.rx = LanPort::Auto;
        let veth = host.settle(&mut netlink, Time::from_nanos(1)).unwrap().expect("the reasons are others");
        assert_eq!(veth.lan_rx.port, LanPort::Tun);
        assert!(!host.is_open());
        assert_eq!(host.poll_fib().unwrap().resolve(Traffic::Overlay, "10.1.0.7".parse().unwrap()), None);
        host.config.lan.rx = LanPort::Xsk;
        assert!(host.settle(&mut netlink, Time::from_nanos(2)).unwrap().is_none(), "nobody said that anything changed");
        let look = host.next_deadline().unwrap();
        assert!(host.settle(&mut netlink, look).unwrap().is_some());
        assert!(host.is_open());
        let nft = |arguments: &str| assert!(Command::new("nft").args(arguments.split(' ')).status().unwrap().success());
        nft("add table inet t");
        nft("add chain inet t f { type filter hook forward priority 0 ; }");
        let told = host.settle(&mut netlink, look).unwrap().expect("the ruleset changed");
        assert!(
            told.lan_rx.reason.contains("although forwarded packets go through nftables chain t/f"),
            "{}",
            told.lan_rx
        );
        assert!(host.is_open(), "as configured");
    }
}
