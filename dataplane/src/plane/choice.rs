//! Which port moves packets on each of the four ways through a worker, decided from facts alone.
//!
//! ```text
//!            WAN rx ─▸ socket │ xsk          LAN rx ─▸ tun │ xsk
//!            WAN tx ─▸ socket │ xsk          LAN tx ─▸ tun │ xsk
//! ```
//!
//! Each is decided by itself: what the configuration forces, then what forbids AF_XDP there, then which one costs less. Every answer comes
//! with its reason as a sentence. This part asks nobody: the facts are gathered by [`super::facts`], the costs were measured before the
//! plane started, or are those of [`Costs::BUILT_IN`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{Attach, LanPort, WanPort};

/// Largest MTU in bytes of which every driver receives a frame in one buffer: a page less head room and the kernel's own trailer.
const SINGLE_BUFFER_MTU_MAX: u32 = 3500;
/// AF_XDP has to cost less than this share of the other port, in percent: it takes memory and a queue of its own, and costs are measured
/// on one machine class.
const CHEAPER_PERCENT: u32 = 80;

/// What a packet costs in each port, in nanoseconds of one core. Frames of 64 to 100 bytes, many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Received by a UDP socket in merged trains.
    pub socket_rx_ns: u32,
    /// Sent by a UDP socket in trains.
    pub socket_tx_ns: u32,
    /// Received from AF_XDP with copying.
    pub xsk_copy_rx_ns: u32,
    /// Sent by AF_XDP with copying: the kernel makes an skb of each frame.
    pub xsk_copy_tx_ns: u32,
    /// Received from AF_XDP in shared memory.
    pub xsk_zero_copy_rx_ns: u32,
    /// Sent by AF_XDP from shared memory.
    pub xsk_zero_copy_tx_ns: u32,
    /// Routed into the TUN by the kernel and read there.
    pub tun_rx_ns: u32,
    /// Written to the TUN and routed to a LAN by the kernel.
    pub tun_tx_ns: u32,
}

impl Costs {
    /// What was measured on the machine class of our own tests (docs/benchmarks.md). Zero-copy is what drivers' authors publish, rounded up:
    /// no such device was at hand.
    pub const BUILT_IN: Self = Self {
        socket_rx_ns: 74,
        socket_tx_ns: 74,
        xsk_copy_rx_ns: 370,
        xsk_copy_tx_ns: 910,
        xsk_zero_copy_rx_ns: 50,
        xsk_zero_copy_tx_ns: 50,
        tun_rx_ns: 400,
        tun_tx_ns: 400,
    };
}

/// What is known of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether the driver runs XDP programs itself.
    pub native_xdp: bool,
    /// Whether AF_XDP sockets may share memory with it.
    pub zero_copy: bool,
    /// Whether XDP programs see frames of more than one buffer.
    pub multi_buffer: bool,
    /// Whether native XDP takes superpackets away from this driver (veth, virtio_net).
    pub loses_offloads: bool,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether frames are plain Ethernet.
    pub ethernet: bool,
    /// Whether it belongs to a bridge, a bond or the like.
    pub is_port: bool,
    /// Names of links that take frames out of this one, as VLANs.
    pub children: Vec<String>,
    /// Whether somebody else's XDP program is on it.
    pub foreign_xdp: bool,
    /// What stands at its tc, in words; an error in words when that could not be asked.
    pub filters: Result<Vec<String>, String>,
}

/// Everything that a choice is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The WAN interface.
    pub wan: Device,
    /// The LAN interfaces.
    pub lan: Vec<Device>,
    /// LAN interfaces that are configured and not there.
    pub lan_missing: Vec<String>,
    /// Chains and tables that forwarded packets go through; an error in words when that could not be asked.
    pub hooks: Result<Vec<String>, String>,
    /// A policy rule that is neither the kernel's nor ours.
    pub foreign_rule: Option<String>,
    /// A routing table that is too long to mirror.
    pub long_table: Option<u32>,
    /// What packets cost.
    pub costs: Costs,
    /// Whether `costs` were measured on this machine.
    pub calibrated: bool,
    /// Why the start got no AF_XDP sockets, in words, if it tried.
    pub refused: Option<String>,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `wan.rx`.
    pub wan_rx: WanPort,
    /// `wan.tx`.
    pub wan_tx: WanPort,
    /// `lan.rx`.
    pub lan_rx: LanPort,
    /// `lan.tx`.
    pub lan_tx: LanPort,
    /// `wan.attach`.
    pub attach: Attach,
    /// `lan.attach`.
    pub lan_attach: Attach,
}

/// One decision and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<P> {
    /// The port; never `Auto`.
    pub port: P,
    /// Why, in words.
    pub reason: String,
}

impl<P: fmt::Display> fmt::Display for Decision<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.port, self.reason)
    }
}

/// The four decisions, and where `wan` goes with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Receives from the WAN.
    pub wan_rx: Decision<WanPort>,
    /// Sends to the WAN.
    pub wan_tx: Decision<WanPort>,
    /// Receives from the LANs.
    pub lan_rx: Decision<LanPort>,
    /// Sends to the LANs.
    pub lan_tx: Decision<LanPort>,
    /// Where `wan` is best attached; `Auto` never stands here.
    pub attach: Decision<Attach>,
}

impl Choice {
    /// Name and text of each decision, for tables.
    pub fn rows(&self) -> [(&'static str, String); 5] {
        [
            ("wan rx", self.wan_rx.to_string()),
            ("wan tx", self.wan_tx.to_string()),
            ("lan rx", self.lan_rx.to_string()),
            ("lan tx", self.lan_tx.to_string()),
            ("wan attach", self.attach.to_string()),
        ]
    }

    /// Whether any packet is sent by looking into the mirrored tables.
    pub fn needs_fib(&self) -> bool {
        self.wan_tx.port == WanPort::Xsk || self.lan_tx.port == LanPort::Xsk
    }

    /// Whether packets go past the kernel's router, so that what it would do has to be watched.
    pub fn passes_router(&self) -> bool {
        self.lan_rx.port == LanPort::Xsk || self.lan_tx.port == LanPort::Xsk
    }
}

/// Decides.
pub fn choose(wanted: &Wanted, facts: &Facts) -> Choice {
    let rx_obstacle =
        attach_obstacle("wan.attach", wanted.attach, &[Attach::Tc, Attach::None]).or_else(|| wan_obstacle(facts));
    let wan_rx = wan(wanted.wan_rx, rx_obstacle, || wan_rx_cost(facts));
    let wan_tx = wan(wanted.wan_tx, wan_obstacle(facts), || wan_tx_cost(facts));
    let obstacle = lan_obstacle(facts);
    let rx_obstacle = attach_obstacle("lan.attach", wanted.lan_attach, &[Attach::None]).or_else(|| obstacle.clone());
    let lan_rx = lan(wanted.lan_rx, rx_obstacle, || lan_cost(facts, Way::Rx));
    let lan_tx = lan(wanted.lan_tx, obstacle, || lan_cost(facts, Way::Tx));
    let attach = attach(wanted.attach, wan_rx.port, &facts.wan);
    Choice { wan_rx, wan_tx, lan_rx, lan_tx, attach }
}

#[derive(Clone, Copy)]
enum Way {
    Rx,
    Tx,
}

fn wan(wanted: WanPort, obstacle: Option<String>, cost: impl FnOnce() -> Result<String, String>) -> Decision<WanPort> {
    let (port, reason) = decide(wanted != WanPort::Auto, wanted == WanPort::Xsk, obstacle, cost);
    Decision { port: if port { WanPort::Xsk } else { WanPort::Socket }, reason }
}

fn lan(wanted: LanPort, obstacle: Option<String>, cost: impl FnOnce() -> Result<String, String>) -> Decision<LanPort> {
    let (port, reason) = decide(wanted != LanPort::Auto, wanted == LanPort::Xsk, obstacle, cost);
    Decision { port: if port { LanPort::Xsk } else { LanPort::Tun }, reason }
}

/// Whether to use AF_XDP, and why. `cost` says `Ok` when it pays.
fn decide(
    forced: bool,
    forced_xsk: bool,
    obstacle: Option<String>,
    cost: impl FnOnce() -> Result<String, String>,
) -> (bool, String) {
    match (forced, obstacle) {
        (true, Some(obstacle)) if forced_xsk => (true, format!("as configured, although {obstacle}")),
        (true, _) => (forced_xsk, "as configured".to_owned()),
        (false, Some(obstacle)) => (false, obstacle),
        (false, None) => match cost() {
            Ok(reason) => (true, reason),
            Err(reason) => (false, reason),
        },
    }
}

/// What forbids receiving by AF_XDP where a program may not be attached at XDP, in words.
fn attach_obstacle(key: &str, attach: Attach, without_xdp: &[Attach]) -> Option<String> {
    without_xdp.contains(&attach).then(|| format!("{key} is \"{attach}\", and AF_XDP needs XDP"))
}

/// What forbids AF_XDP on any device, in words.
fn device_obstacle(device: &Device) -> Option<String> {
    let name = &device.name;
    if device.foreign_xdp {
        return Some(format!("another XDP program is on {name}"));
    }
    if !device.ethernet {
        return Some(format!("{name} does not carry plain Ethernet frames"));
    }
    if device.is_port {
        return Some(format!("{name} is a port of a bridge or bond"));
    }
    if device.mtu > SINGLE_BUFFER_MTU_MAX && !device.multi_buffer {
        return Some(format!("{name} has an MTU of {}, and its driver gives XDP one buffer a frame", device.mtu));
    }
    None
}

fn wan_obstacle(facts: &Facts) -> Option<String> {
    let refused = facts.refused.clone();
    refused
        .or_else(|| device_obstacle(&facts.wan))
        .or_else(|| facts.wan.children.first().map(|child| format!("{child} takes frames out of {}", facts.wan.name)))
}

/// What forbids going past the kernel's router, in words.
fn lan_obstacle(facts: &Facts) -> Option<String> {
    if let Some(refused) = &facts.refused {
        return Some(refused.clone());
    }
    if facts.lan.is_empty() && facts.lan_missing.is_empty() {
        return Some("no LAN interface is configured".to_owned());
    }
    if let Some(name) = facts.lan_missing.first() {
        return Some(format!("{name} is not there"));
    }
    match &facts.hooks {
        Err(error) => return Some(format!("it is not known what filters forwarded packets: {error}")),
        Ok(hooks) => {
            if let Some(hook) = hooks.first() {
                return Some(format!("forwarded packets go through {hook}"));
            }
        }
    }
    if let Some(rule) = &facts.foreign_rule {
        return Some(format!("{rule} decides about routes and is not ours"));
    }
    if let Some(table) = facts.long_table {
        return Some(format!("routing table {table} is too long to be mirrored"));
    }
    facts.lan.iter().find_map(|device| {
        device_obstacle(device).or_else(|| {
            if let Some(child) = device.children.first() {
                return Some(format!("{child} takes frames out of {}", device.name));
            }
            match &device.filters {
                Err(error) => Some(format!("it is not known what stands at tc of {}: {error}", device.name)),
                Ok(filters) => filters.first().map(|filter| format!("packets go through {filter}")),
            }
        })
    })
}

/// The cost of the port in use against that of AF_XDP; `Ok` when AF_XDP pays.
fn compare(facts: &Facts, with: &str, other: (&str, u32), xsk_ns: u32) -> Result<String, String> {
    let (other, other_ns) = other;
    let source = if facts.calibrated { "measured" } else { "built-in" };
    let text = format!("xsk {with} takes {xsk_ns} ns a packet, {other} {other_ns} ns, {source} figures");
    if u64::from(xsk_ns) * 100 < u64::from(other_ns) * u64::from(CHEAPER_PERCENT) { Ok(text) } else { Err(text) }
}

fn wan_rx_cost(facts: &Facts) -> Result<String, String> {
    let Costs { socket_rx_ns, xsk_copy_rx_ns, xsk_zero_copy_rx_ns, .. } = facts.costs;
    offloads_kept(&facts.wan, socket_rx_ns)?;
    let (with, xsk_ns) =
        if facts.wan.zero_copy { ("in zero-copy", xsk_zero_copy_rx_ns) } else { ("with copying", xsk_copy_rx_ns) };
    compare(facts, with, ("the socket with GRO", socket_rx_ns), xsk_ns)
}

fn wan_tx_cost(facts: &Facts) -> Result<String, String> {
    let Costs { socket_tx_ns, xsk_zero_copy_tx_ns, .. } = facts.costs;
    offloads_kept(&facts.wan, socket_tx_ns)?;
    if !facts.wan.zero_copy {
        return Err(format!(
            "without zero-copy on {} every frame costs an skb; the socket sends trains",
            facts.wan.name
        ));
    }
    compare(facts, "in zero-copy", ("the socket with GSO", socket_tx_ns), xsk_zero_copy_tx_ns)
}

fn lan_cost(facts: &Facts, way: Way) -> Result<String, String> {
    let costs = &facts.costs;
    let tun_ns = match way {
        Way::Rx => costs.tun_rx_ns,
        Way::Tx => costs.tun_tx_ns,
    };
    for device in &facts.lan {
        offloads_kept(device, tun_ns)?;
        if matches!(way, Way::Tx) && !device.zero_copy {
            return Err(format!(
                "without zero-copy on {} every frame costs an skb; the TUN takes superpackets",
                device.name
            ));
        }
    }
    let zero_copy = facts.lan.iter().all(|device| device.zero_copy);
    let with = if zero_copy { "in zero-copy" } else { "with copying" };
    let xsk_ns = match (way, zero_copy) {
        (Way::Rx, true) => costs.xsk_zero_copy_rx_ns,
        (Way::Rx, false) => costs.xsk_copy_rx_ns,
        (Way::Tx, _) => costs.xsk_zero_copy_tx_ns,
    };
    compare(facts, with, ("the TUN", tun_ns), xsk_ns)
}

/// AF_XDP wants native XDP; where that ends superpackets, or there is none, the other port stays.
fn offloads_kept(device: &Device, other_ns: u32) -> Result<(), String> {
    let driver = device.driver.as_deref().unwrap_or("unknown");
    if device.loses_offloads {
        return Err(format!(
            "native XDP would cost {} (driver {driver}) its superpackets, which now take {other_ns} ns a packet",
            device.name
        ));
    }
    if !device.native_xdp {
        return Err(format!("the driver {driver} of {} has no native XDP", device.name));
    }
    Ok(())
}

fn attach(wanted: Attach, rx: WanPort, wan: &Device) -> Decision<Attach> {
    let native = if wan.native_xdp { Attach::Native } else { Attach::Generic };
    let (port, reason) = match wanted {
        forced if forced != Attach::Auto => (forced, "as configured"),
        _ if wan.foreign_xdp => (Attach::Tc, "another XDP program is on the device"),
        _ if rx == WanPort::Xsk => (native, "AF_XDP needs XDP"),
        _ if wan.loses_offloads => (Attach::Tc, "native XDP would cost this driver its offloads"),
        _ if wan.native_xdp => (Attach::Native, "the driver keeps its offloads with native XDP"),
        _ => (Attach::Tc, "the driver has no native XDP"),
    };
    Decision { port, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Wanted = Wanted {
        wan_rx: WanPort::Auto,
        wan_tx: WanPort::Auto,
        lan_rx: LanPort::Auto,
        lan_tx: LanPort::Auto,
        attach: Attach::Auto,
        lan_attach: Attach::Auto,
    };

    fn device(name: &str, driver: &str, zero_copy: bool) -> Device {
        Device {
            name: name.to_owned(),
            driver: Some(driver.to_owned()),
            native_xdp: true,
            zero_copy,
            multi_buffer: false,
            loses_offloads: matches!(driver, "veth" | "virtio_net"),
            mtu: 1500,
            ethernet: true,
            is_port: false,
            children: vec![],
            foreign_xdp: false,
            filters: Ok(vec![]),
        }
    }

    fn facts(driver: &str, zero_copy: bool) -> Facts {
        Facts {
            wan: device("wan0", driver, zero_copy),
            lan: vec![device("lan0", driver, zero_copy), device("lan1", driver, zero_copy)],
            lan_missing: vec![],
            hooks: Ok(vec![]),
            foreign_rule: None,
            long_table: None,
            costs: Costs::BUILT_IN,
            calibrated: false,
            refused: None,
        }
    }

    fn ports(choice: &Choice) -> (WanPort, WanPort, LanPort, LanPort, Attach) {
        (choice.wan_rx.port, choice.wan_tx.port, choice.lan_rx.port, choice.lan_tx.port, choice.attach.port)
    }

    #[test]
    fn auto_follows_the_driver() {
        let veth = choose(&AUTO, &facts("veth", false));
        assert_eq!(ports(&veth), (WanPort::Socket, WanPort::Socket, LanPort::Tun, LanPort::Tun, Attach::Tc));
        assert!(!veth.needs_fib() && !veth.passes_router());
        assert!(veth.lan_rx.reason.contains("lan0 (driver veth) its superpackets"), "{}", veth.lan_rx);
        let zero_copy = choose(&AUTO, &facts("ice", true));
        assert_eq!(ports(&zero_copy), (WanPort::Xsk, WanPort::Xsk, LanPort::Xsk, LanPort::Xsk, Attach::Native));
        assert!(zero_copy.needs_fib() && zero_copy.passes_router());
        let copy = choose(&AUTO, &facts("tg3", false));
        assert_eq!(ports(&copy), (WanPort::Socket, WanPort::Socket, LanPort::Tun, LanPort::Tun, Attach::Native));
        let mut none = facts("tg3", true);
        none.wan.native_xdp = false;
        let none = choose(&AUTO, &none);
        assert_eq!((none.wan_rx.port, none.attach.port), (WanPort::Socket, Attach::Tc));
    }

    #[test]
    fn the_wan_sends_by_socket_whatever_it_costs_unless_in_zero_copy() {
        let mut facts = facts("tg3", false);
        facts.costs.xsk_copy_tx_ns = 1;
        facts.costs.xsk_copy_rx_ns = 1;
        let choice = choose(&AUTO, &facts);
        assert_eq!(ports(&choice), (WanPort::Xsk, WanPort::Socket, LanPort::Xsk, LanPort::Tun, Attach::Native));
    }

    #[test]
    fn measured_costs_decide_at_their_margin() {
        for (xsk_ns, port) in [(79, WanPort::Xsk), (80, WanPort::Socket)] {
            let mut facts = facts("ice", true);
            facts.calibrated = true;
            (facts.costs.socket_rx_ns, facts.costs.xsk_zero_copy_rx_ns) = (100, xsk_ns);
            let choice = choose(&AUTO, &facts);
            assert_eq!(choice.wan_rx.port, port, "{xsk_ns}");
            let expected =
                format!("xsk in zero-copy takes {xsk_ns} ns a packet, the socket with GRO 100 ns, measured figures");
            assert_eq!(choice.wan_rx.reason, expected);
        }
    }

    #[test]
    fn whatever_the_router_would_do_to_packets_keeps_the_lan_in_the_kernel() {
        type Break = fn(&mut Facts);
        let breaks: [(Break, &str); 14] = [
            (|f| f.hooks = Ok(vec!["nftables chain t/forward".into()]), "go through nftables chain t/forward"),
            (|f| f.hooks = Err("not allowed".into()), "not known what filters forwarded packets: not allowed"),
            (|f| f.foreign_rule = Some("IPv4 rule 99".into()), "IPv4 rule 99"),
            (|f| f.long_table = Some(254), "table 254"),
            (|f| f.lan_missing = vec!["lan9".into()], "lan9 is not there"),
            (|f| f.lan.clear(), "no LAN interface"),
            (|f| f.lan[1].filters = Ok(vec!["tc filters on lan1".into()]), "tc filters on lan1"),
            (|f| f.lan[1].filters = Err("not allowed".into()), "tc of lan1: not allowed"),
            (|f| f.lan[1].children = vec!["lan1.20".into()], "lan1.20 takes frames out of lan1"),
            (|f| f.lan[1].is_port = true, "lan1 is a port"),
            (|f| f.lan[1].ethernet = false, "plain Ethernet"),
            (|f| f.lan[1].foreign_xdp = true, "another XDP program is on lan1"),
            (|f| f.lan[1].mtu = 3501, "MTU of 3501"),
            (|f| f.lan[1].native_xdp = false, "no native XDP"),
        ];
        for (broken, words) in breaks {
            let mut facts = facts("ice", true);
            broken(&mut facts);
            let choice = choose(&AUTO, &facts);
            assert_eq!((choice.lan_rx.port, choice.lan_tx.port), (LanPort::Tun, LanPort::Tun), "{words}");
            assert!(choice.lan_rx.reason.contains(words), "{words}: {}", choice.lan_rx);
            assert_eq!(choice.wan_rx.port, WanPort::Xsk, "{words}: the WAN is decided by itself");
        }
        let mut jumbo = facts("ice", true);
        (jumbo.lan[1].mtu, jumbo.lan[0].mtu, jumbo.lan[1].multi_buffer) = (9000, 3500, true);
        assert_eq!(choose(&AUTO, &jumbo).lan_rx.port, LanPort::Xsk);
    }

    #[test]
    fn what_stands_in_the_way_on_the_wan_is_said() {
        type Break = fn(&mut Device);
        let breaks: [(Break, &str); 4] = [
            (|d| d.foreign_xdp = true, "another XDP program"),
            (|d| d.children = vec!["wan0.7".into()], "wan0.7"),
            (|d| d.is_port = true, "bridge or bond"),
            (|d| d.mtu = 9000, "one buffer a frame"),
        ];
        for (broken, words) in breaks {
            let mut facts = facts("ice", true);
            broken(&mut facts.wan);
            let choice = choose(&AUTO, &facts);
            assert_eq!((choice.wan_rx.port, choice.wan_tx.port), (WanPort::Socket, WanPort::Socket), "{words}");
            assert!(choice.wan_tx.reason.contains(words), "{words}: {}", choice.wan_tx);
            assert_eq!(choice.lan_rx.port, LanPort::Xsk);
        }
    }

    #[test]
    fn where_no_xdp_may_be_nothing_is_received_by_af_xdp() {
        let wanted = Wanted { attach: Attach::Tc, lan_attach: Attach::None, ..AUTO };
        let choice = choose(&wanted, &facts("ice", true));
        assert_eq!(ports(&choice), (WanPort::Socket, WanPort::Xsk, LanPort::Tun, LanPort::Xsk, Attach::Tc));
        assert_eq!(choice.wan_rx.reason, "wan.attach is \"tc\", and AF_XDP needs XDP");
        assert_eq!(choice.lan_rx.reason, "lan.attach is \"none\", and AF_XDP needs XDP");
    }

    #[test]
    fn sockets_that_the_kernel_refused_are_not_chosen_again() {
        let mut facts = facts("ice", true);
        facts.refused = Some("AF_XDP on queue 0 of interface 7".to_owned());
        let choice = choose(&AUTO, &facts);
        assert_eq!(ports(&choice), (WanPort::Socket, WanPort::Socket, LanPort::Tun, LanPort::Tun, Attach::Native));
        for (_, text) in &choice.rows()[..4] {
            assert!(text.contains("(AF_XDP on queue 0"), "{text}");
        }
    }

    #[test]
    fn what_is_configured_is_done_and_doubts_are_said() {
        let forced = Wanted {
            wan_rx: WanPort::Xsk,
            wan_tx: WanPort::Socket,
            lan_rx: LanPort::Xsk,
            lan_tx: LanPort::Tun,
            attach: Attach::Auto,
            lan_attach: Attach::Auto,
        };
        let mut facts = facts("veth", false);
        facts.hooks = Ok(vec!["nftables chain t/forward".into()]);
        let choice = choose(&forced, &facts);
        assert_eq!(ports(&choice), (WanPort::Xsk, WanPort::Socket, LanPort::Xsk, LanPort::Tun, Attach::Native));
        assert_eq!(choice.wan_rx.reason, "as configured");
        assert!(choice.lan_rx.reason.starts_with("as configured, although forwarded packets go through nftables"));
        assert_eq!(choice.lan_tx.reason, "as configured");
        let native = choose(&Wanted { attach: Attach::Native, ..forced }, &facts);
        assert_eq!(native.attach.to_string(), "native (as configured)");
        let opposite = Wanted { wan_rx: WanPort::Socket, wan_tx: WanPort::Xsk, lan_rx: LanPort::Tun, ..forced };
        let opposite = choose(&Wanted { lan_tx: LanPort::Xsk, ..opposite }, &facts);
        assert_eq!(ports(&opposite), (WanPort::Socket, WanPort::Xsk, LanPort::Tun, LanPort::Xsk, Attach::Tc));
    }
}
