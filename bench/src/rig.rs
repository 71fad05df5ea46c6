//! The rig: two hosts, two gateways and the links between them, each in a network namespace of its own.
//!
//! ```text
//!  h1 lan ─────────── lan g1 wan ─────────── wan g2 lan ─────────── lan h2
//!  10.1.0.2     10.1.0.1    192.0.2.1   192.0.2.2    10.2.0.1     10.2.0.2     /24
//!  fd01::2       fd01::1 2001:db8::1  2001:db8::2     fd02::1      fd02::2     /64
//! ```
//!
//! Hosts have a default route to their gateway. Gateways forward, but know no route to the other's LAN unless the rig is
//! [`RigConfig::plain`]: that is what the overlay is for. Names are `weir-<pid>-<n>-<host>`, so that rigs can stand side by side and
//! [`clean`] can tell whose process is gone. Nothing here knows of Weir's processes.

pub mod mesh;
mod namespace;
mod netlink;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

pub use namespace::{Namespace, remove_all};
use netlink::{Rtnetlink, VethEnd};

use crate::stream::Path;
use crate::sys::{netns, signal};
use crate::{Error, Result};

const PREFIX: &str = "weir-";
const IPV4_PREFIX_LEN: u8 = 24;
const IPV6_PREFIX_LEN: u8 = 64;

/// How a rig is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RigConfig {
    /// MTU of the links between hosts and gateways, bytes.
    pub lan_mtu: u32,
    /// MTU of the link between the gateways, bytes.
    pub wan_mtu: u32,
    /// Receive and transmit queues of each interface; 2 or more, since one queue serialises everything.
    pub queues: u32,
    /// Gateways route between the LANs themselves: the kernel-forwarding yardstick.
    pub plain: bool,
    /// GRO on the gateways' LAN interfaces, as a NIC has it. Without it or an XDP program there, live frames are lost.
    pub lan_gro: bool,
    /// `rx-udp-gro-forwarding` on the gateways' LAN interfaces.
    pub udp_gro_forwarding: bool,
}

impl Default for RigConfig {
    fn default() -> Self {
        Self { lan_mtu: 1500, wan_mtu: 1500, queues: 2, plain: false, lan_gro: true, udp_gro_forwarding: false }
    }
}

/// Address family of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// An interface of a host. Link-layer and network addresses are fixed, since every rig has its own namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `lan` or `wan`.
    pub name: &'static str,
    /// Interface index in its namespace.
    pub index: u32,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// IPv4 address, prefix length 24.
    pub v4: Ipv4Addr,
    /// IPv6 address, prefix length 64.
    pub v6: Ipv6Addr,
}

impl Interface {
    /// The address of a family.
    pub const fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// A host of the rig: a [`Namespace`] with its interfaces.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    /// The interface towards the LAN.
    pub lan: Interface,
    /// The interface towards the other gateway; hosts have none.
    pub wan: Option<Interface>,
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// The rig. Dropping it removes everything.
#[derive(Debug)]
pub struct Rig {
    name: String,
    hosts: [Host; 4],
}

/// What is fixed about one end of a link.
struct End {
    host: usize,
    interface: Interface,
}

const HOSTS: [&str; 4] = ["h1", "g1", "g2", "h2"];
const H1: usize = 0;
const G1: usize = 1;
const G2: usize = 2;
const H2: usize = 3;

const fn end(host: usize, name: &'static str, link: u8, v4: [u8; 4], v6: [u16; 2]) -> End {
    let [a, b, c, d] = v4;
    // The host part is the same in both families, and tells the ends of a link apart.
    let interface = Interface {
        name,
        index: 0,
        mac: [0x02, 0x57, 0x65, 0x00, link, d],
        v4: Ipv4Addr::new(a, b, c, d),
        v6: Ipv6Addr::new(v6[0], v6[1], 0, 0, 0, 0, 0, d as u16),
    };
    End { host, interface }
}

/// The three links, each with the end that makes it first.
const LINKS: [(End, End); 3] = [
    (end(G1, "lan", 1, [10, 1, 0, 1], [0xfd01, 0]), end(H1, "lan", 1, [10, 1, 0, 2], [0xfd01, 0])),
    (end(G1, "wan", 2, [192, 0, 2, 1], [0x2001, 0xdb8]), end(G2, "wan", 2, [192, 0, 2, 2], [0x2001, 0xdb8])),
    (end(G2, "lan", 3, [10, 2, 0, 1], [0xfd02, 0]), end(H2, "lan", 3, [10, 2, 0, 2], [0xfd02, 0])),
];

impl Rig {
    /// Builds a rig. When a step fails, what was made is removed again.
    ///
    /// # Errors
    /// [`Error::NotRoot`], or [`Error::Io`] naming the step.
    pub fn new(config: RigConfig) -> Result<Self> {
        let name = fresh_name();
        let mut namespaces = Vec::with_capacity(HOSTS.len());
        for host in HOSTS {
            let namespace = Namespace::create(&format!("{name}-{host}"))?;
            prepare(&namespace)?;
            namespaces.push(namespace);
        }
        let mut interfaces: [Vec<Interface>; 4] = Default::default();
        for (near, far) in &LINKS {
            let wan = near.interface.name == "wan";
            let mtu = if wan { config.wan_mtu } else { config.lan_mtu };
            link(&namespaces, near, far, mtu, config.queues)?;
            for end in [near, far] {
                let up = configure(&namespaces[end.host], &end.interface)?;
                interfaces[end.host].push(up);
            }
        }
        for (gateway, host, peer) in [(0, H1, None), (2, H2, None), (1, G1, Some(2)), (1, G2, Some(0))] {
            routes(&namespaces[host], gateway, peer.filter(|_| config.plain))?;
        }
        for gateway in [&namespaces[G1], &namespaces[G2]] {
            for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                gateway.sysctl(key, "1")?;
            }
            gateway.feature("lan", "rx-gro", config.lan_gro)?;
            gateway.feature("lan", "rx-udp-gro-forwarding", config.udp_gro_forwarding)?;
        }
        let mut hosts = namespaces.into_iter().zip(interfaces).map(|(namespace, interfaces)| {
            let find = |name| interfaces.iter().copied().find(|i| i.name == name);
            let lan = find("lan").expect("each host is an end of a link named lan in LINKS");
            Host { namespace, lan, wan: find("wan") }
        });
        let hosts = std::array::from_fn(|_| hosts.next().expect("there are as many namespaces as hosts"));
        let rig = Self { name, hosts };
        rig.meet_neighbours()?;
        Ok(rig)
    }

    /// The part of the names that all hosts share.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host behind the first gateway.
    pub fn h1(&self) -> &Host {
        &self.hosts[H1]
    }

    /// The first gateway.
    pub fn g1(&self) -> &Host {
        &self.hosts[G1]
    }

    /// The second gateway.
    pub fn g2(&self) -> &Host {
        &self.hosts[G2]
    }

    /// The host behind the second gateway.
    pub fn h2(&self) -> &Host {
        &self.hosts[H2]
    }

    /// All hosts, in the order of the picture.
    pub fn hosts(&self) -> &[Host; 4] {
        &self.hosts
    }

    /// Addresses of a stream from h1 to h2.
    pub fn forward(&self, family: Family) -> Path {
        path(self.h1(), self.g1(), self.h2(), family)
    }

    /// Addresses of a stream from h2 to h1.
    pub fn backward(&self, family: Family) -> Path {
        path(self.h2(), self.g2(), self.h1(), family)
    }

    /// Leaves the namespaces in place. `rig clean` removes them once this process has ended.
    pub fn keep(mut self) {
        for host in &mut self.hosts {
            host.namespace.keep();
        }
    }

    /// Has both ends of each link resolve the other, so that no measured packet waits for it.
    fn meet_neighbours(&self) -> Result<()> {
        for (near, far) in &LINKS {
            for (from, to) in [(near, far), (far, near)] {
                for family in [Family::V4, Family::V6] {
                    self.hosts[from.host].resolve(from.interface.name, to.interface.address(family))?;
                }
            }
        }
        Ok(())
    }
}

/// A name that no other rig of any process has.
fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn path(from: &Host, gateway: &Host, to: &Host, family: Family) -> Path {
    Path {
        source_mac: from.lan.mac,
        next_hop_mac: gateway.lan.mac,
        source: from.lan.address(family),
        destination: to.lan.address(family),
    }
}

/// Sets what interfaces inherit when they appear, so it comes before them.
fn prepare(namespace: &Namespace) -> Result<()> {
    for (key, value) in [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
    ] {
        namespace.sysctl(key, value)?;
    }
    let loopback = namespace.interface_index("lo")?;
    namespace.enter(|| Rtnetlink::open()?.up(loopback))?.map_err(Error::io("cannot bring loopback up"))
}

fn link(namespaces: &[Namespace], near: &End, far: &End, mtu: u32, queues: u32) -> Result<()> {
    let [near_end, far_end] =
        [near, far].map(|end| VethEnd { name: end.interface.name, mac: end.interface.mac, mtu, queues });
    let far_namespace = namespaces[far.host].file().as_raw_fd();
    namespaces[near.host]
        .enter(|| Rtnetlink::open()?.veth(&near_end, &far_end, far_namespace))?
        .map_err(Error::io(format!("cannot make the veth pair {}–{}", HOSTS[near.host], HOSTS[far.host])))
}

fn configure(namespace: &Namespace, interface: &Interface) -> Result<Interface> {
    let index = namespace.interface_index(interface.name)?;
    namespace
        .enter(|| {
            let mut rtnetlink = Rtnetlink::open()?;
            rtnetlink.up(index)?;
            rtnetlink.address(index, interface.v4.into(), IPV4_PREFIX_LEN)?;
            rtnetlink.address(index, interface.v6.into(), IPV6_PREFIX_LEN)
        })?
        .map_err(Error::io(format!("cannot configure {} of {}", interface.name, namespace.name())))?;
    Ok(Interface { index, ..*interface })
}

/// A host's default route by the near end of its link, or in a plain rig a gateway's route to the LAN behind its peer.
fn routes(namespace: &Namespace, link: usize, peer_lan: Option<usize>) -> Result<()> {
    let (near, far) = &LINKS[link];
    let routes = if link != 1 {
        let gateway = &near.interface;
        vec![(Ipv4Addr::UNSPECIFIED.into(), 0, gateway.v4.into()), (Ipv6Addr::UNSPECIFIED.into(), 0, gateway.v6.into())]
    } else if let Some(lan) = peer_lan {
        // The LAN of link 2 lies behind g2, the far end of the WAN; that of link 0 behind g1, the near end.
        let gateway = if lan == 2 { &far.interface } else { &near.interface };
        let (v4, v6) = (LINKS[lan].0.interface.v4, LINKS[lan].0.interface.v6);
        let [a, b, c, _] = v4.octets();
        let [first, ..] = v6.segments();
        vec![
            (Ipv4Addr::new(a, b, c, 0).into(), IPV4_PREFIX_LEN, gateway.v4.into()),
            (Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(), IPV6_PREFIX_LEN, gateway.v6.into()),
        ]
    } else {
        return Ok(());
    };
    namespace
        .enter(|| {
            let mut rtnetlink = Rtnetlink::open()?;
            routes
                .into_iter()
                .try_for_each(|(to, len, gateway): (IpAddr, u8, IpAddr)| rtnetlink.route(to, len, gateway))
        })?
        .map_err(Error::io(format!("cannot add the routes of {}", namespace.name())))
}

/// Removes the namespaces of rigs whose process is gone and returns their names.
///
/// # Errors
/// [`Error::NotRoot`], or [`Error::Io`] naming what could not be read or removed.
pub fn clean() -> Result<Vec<String>> {
    if !crate::sys::is_root() {
        return Err(Error::NotRoot);
    }
    let directory = std::path::Path::new(netns::DIRECTORY);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("cannot read /run/netns")(error)),
    };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !signal::process_exists(pid)) {
            netns::remove(&directory.join(&name)).map_err(Error::io(format!("cannot remove {name}")))?;
            removed.push(name);
        }
    }
    removed.sort();
    Ok(removed)
}

/// The process in a name of the form `weir-<pid>-<n>-<host>`.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    let host = parts.next()?;
    (is_host(host) && parts.next().is_none()).then_some(pid)
}

/// A host of a rig or of a mesh.
fn is_host(name: &str) -> bool {
    let number = name.strip_prefix(['g', 'h']).and_then(|number| number.parse::<u8>().ok());
    name == "switch" || number.is_some_and(|number| (1..=mesh::GATEWAYS_MAX).contains(&number))
}

/// Makes SIGINT, SIGTERM and aborting panics remove this process's rigs before it ends. Call it first thing in `main`: threads started
/// before it do not take part.
///
/// # Errors
/// [`Error::Io`] when signals cannot be blocked or the thread cannot be started.
pub fn guard_process() -> Result<()> {
    signal::block_stop_signals().map_err(Error::io("cannot block signals"))?;
    std::thread::Builder::new()
        .name("stop".to_owned())
        .spawn(|| {
            let number = signal::wait_for_stop();
            signal::release_all();
            namespace::remove_all();
            std::process::exit(128 + number);
        })
        .map_err(Error::io("cannot start a thread"))?;
    // A release build aborts on panic: destructors do not run, hooks do.
    if cfg!(panic = "abort") {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            signal::release_all();
            namespace::remove_all();
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_rigs_have_an_owner() {
        for ours in ["weir-17-0-g1", "weir-17-0-h64", "weir-17-0-switch"] {
            assert_eq!(owner(ours), Some(17), "{ours}");
        }
        for other in [
            "weir-17-0-g65",
            "weir-17-0-g0",
            "weir-17-0",
            "weir-x-0-g1",
            "weir-17-x-g1",
            "weir-17-0-g1-x",
            "other",
            "weir-",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
