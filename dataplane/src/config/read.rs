//! From a TOML document to a checked [`Config`]: which keys there are, what each may say, and which go together.

use std::collections::BTreeSet;
use std::net::IpAddr;

use toml::de::DeTable;

use super::file::section::{Located, Section};
use super::file::value::{
    CORE_MAX, KERNEL_TABLES, LAN_INTERFACES_MAX, LANE_PORTS_MAX, MTU_MAX, MTU_MIN, PREFIXES_MAX, RULE_PRIORITIES,
    TUN_ADDRESSES_MAX, WORKERS_MAX, absolute_path, interface_name, prefix, socket_path, tun_name,
};
use super::{
    Api, Attach, BURST_MAX, BUSY_POLL_MAX, Bpf, CALIBRATION_PATH, Config, Cores, DENY_MAX, Fault, FaultDirection, Lan,
    LanPort, Latency, RATE_MAX, Tun, TunOffload, Wan, WanIo, WanPort, Workers, XSK_FRAMES, Xsk, XskMode,
};
use crate::api::Prefix;
use crate::engine::class::Dscp;
use crate::io::fault::{FaultPlan, RATE_OF};
use crate::io::netlink::{InterfaceAddress, Routing};
use crate::io::xsk::{FRAMES_MAX, FRAMES_MIN};

/// Reads the whole document.
pub(super) fn config(document: &DeTable<'_>) -> Result<Config, Located> {
    let known = &["api", "wan", "lan", "xsk", "tun", "workers", "routing", "bpf", "fault", "transit", "calibration"];
    let top = Section::top(document, known)?;
    let api = top.section("api", &["socket"])?;
    let wan = top.section(
        "wan",
        &[
            "interface",
            "port",
            "lane_ports",
            "attach",
            "io",
            "rx",
            "tx",
            "dscp",
            "busy_poll_us",
            "source_rate_pps",
            "source_burst",
            "class_rate_pps",
            "deny",
        ],
    )?;
    let lan = top.section("lan", &["interfaces", "attach", "rx", "tx", "gro_forwarding"])?;
    let xsk = top.section("xsk", &["mode", "frames", "busy_poll_us"])?;
    let tun = top.section("tun", &["name", "addresses", "mtu", "offload"])?;
    let workers = top.section("workers", &["cores", "latency"])?;
    let routing = top.section("routing", &["table", "mark", "rule_priority", "metric", "prefixes"])?;
    let bpf = top.section("bpf", &["pin", "object"])?;
    let fault_keys = &["seed", "direction", "loss", "duplication", "reordering", "truncation", "flips"];
    let fault = top.section("fault", fault_keys)?;

    let config = Config {
        api: Api { socket: api.text("socket", socket_path)?.unwrap_or_else(|| "/run/weir/plane.sock".into()) },
        wan: wan_section(&wan)?,
        lan: Lan {
            interfaces: lan.texts("interfaces", LAN_INTERFACES_MAX, interface_name)?.unwrap_or_default(),
            attach: lan.text("attach", attach)?.unwrap_or(Attach::Auto),
            rx: lan.text("rx", lan_port)?.unwrap_or(LanPort::Auto),
            tx: lan.text("tx", lan_port)?.unwrap_or(LanPort::Auto),
            gro_forwarding: lan.flag("gro_forwarding")?.unwrap_or(true),
        },
        xsk: xsk_section(&xsk)?,
        tun: Tun {
            name: tun.text("name", tun_name)?.unwrap_or_else(|| "weir0".into()),
            addresses: tun.texts("addresses", TUN_ADDRESSES_MAX, tun_address)?.unwrap_or_default(),
            mtu: tun.number("mtu", MTU_MIN.into()..=MTU_MAX.into())?.unwrap_or(1420),
            offload: tun
                .text("offload", |word| match word {
                    "auto" => Ok(TunOffload::Auto),
                    "off" => Ok(TunOffload::Off),
                    _ => Err(format!("{word:?} is no choice of offloads: write \"auto\" or \"off\"")),
                })?
                .unwrap_or(TunOffload::Auto),
        },
        workers: Workers { cores: cores(&workers)?, latency: latency(&workers)? },
        routing: routing_section(&routing)?,
        bpf: Bpf { pin: bpf.text("pin", absolute_path)?, object: bpf.text("object", absolute_path)? },
        transit: top.flag("transit")?.unwrap_or(false),
        calibration: top.text("calibration", absolute_path)?.unwrap_or_else(|| CALIBRATION_PATH.into()),
        fault: if top.has("fault") { Some(fault_section(&fault)?) } else { None },
    };

    if config.wan.attach == Attach::None && !config.wan.deny.is_empty() {
        return Err(wan.refuse("deny", "nothing enforces it with wan.attach = \"none\": attach, or empty the list"));
    }
    if config.wan.rx == WanPort::Xsk && matches!(config.wan.attach, Attach::Tc | Attach::None) {
        return Err(wan.refuse("rx", "AF_XDP receives from XDP: set wan.attach to \"auto\", \"native\" or \"generic\""));
    }
    if config.lan.rx == LanPort::Xsk && config.lan.attach == Attach::None {
        return Err(lan.refuse("rx", "AF_XDP receives from XDP: set lan.attach to \"auto\", \"native\" or \"generic\""));
    }
    if config.lan.interfaces.is_empty() {
        for (key, port) in [("rx", config.lan.rx), ("tx", config.lan.tx)] {
            if port == LanPort::Xsk {
                return Err(lan.refuse(key, "there is no LAN interface to use it on: name one in lan.interfaces"));
            }
        }
    }
    if config.lan.interfaces.contains(&config.wan.interface) {
        let why = format!("{} is the WAN interface: one interface cannot be both", config.wan.interface);
        return Err(lan.refuse("interfaces", why));
    }
    if config.tun.name == config.wan.interface || config.lan.interfaces.contains(&config.tun.name) {
        let why = format!("{} is the name of a WAN or LAN interface: choose another name", config.tun.name);
        return Err(tun.refuse("name", why));
    }
    Ok(config)
}

fn wan_section(wan: &Section<'_>) -> Result<Wan, Located> {
    let Some(interface) = wan.text("interface", interface_name)? else {
        return Err(wan.missing("interface", "interface = \"eth0\" below [wan], with the name that `ip link` shows"));
    };
    let attach = wan.text("attach", attach)?.unwrap_or(Attach::Auto);
    let port: u16 = wan.number("port", 1..=u16::MAX.into())?.unwrap_or(4646);
    let lane_ports: u8 = wan.number("lane_ports", 0..=LANE_PORTS_MAX.into())?.unwrap_or(0);
    let after = u16::MAX - port;
    if u16::from(lane_ports) > after {
        let why = format!("there are only {after} ports after {port}: choose fewer, or a lower wan.port");
        return Err(wan.refuse("lane_ports", why));
    }
    Ok(Wan {
        interface,
        port,
        lane_ports,
        attach,
        io: wan
            .text("io", |word| match word {
                "auto" => Ok(WanIo::Auto),
                "uring" => Ok(WanIo::Uring),
                "mmsg" => Ok(WanIo::Mmsg),
                _ => Err(format!("{word:?} is no port: write \"auto\", \"uring\" or \"mmsg\"")),
            })?
            .unwrap_or(WanIo::Auto),
        dscp: wan
            .text("dscp", |word| match word {
                "copy" => Ok(Dscp::Copy),
                "clear" => Ok(Dscp::Clear),
                _ => Err(format!("{word:?} is no DSCP policy: write \"copy\" or \"clear\"")),
            })?
            .unwrap_or_default(),
        busy_poll_us: wan.number("busy_poll_us", 0..=BUSY_POLL_MAX.into())?.unwrap_or(0),
        rx: wan.text("rx", wan_port)?.unwrap_or(WanPort::Auto),
        tx: wan.text("tx", wan_port)?.unwrap_or(WanPort::Auto),
        // A handshake takes some ten datagrams and a DHT look-up a few dozen: a site behind one address stays far below, a flood does not.
        source_rate_pps: wan.number("source_rate_pps", 0..=RATE_MAX)?.unwrap_or(1_000),
        source_burst: wan.number("source_burst", 1..=BURST_MAX)?.unwrap_or(256),
        // What one core of a control plane can look at without falling behind.
        class_rate_pps: wan.number("class_rate_pps", 0..=RATE_MAX)?.unwrap_or(20_000),
        deny: wan.texts("deny", DENY_MAX, source_prefix)?.unwrap_or_default(),
    })
}

fn xsk_section(xsk: &Section<'_>) -> Result<Xsk, Located> {
    let mode = |word: &str| match word {
        "auto" => Ok(XskMode::Auto),
        "zerocopy" => Ok(XskMode::Zerocopy),
        "copy" => Ok(XskMode::Copy),
        _ => Err(format!("{word:?} is no mode of AF_XDP: write \"auto\", \"zerocopy\" or \"copy\"")),
    };
    let frames: u32 = xsk.number("frames", FRAMES_MIN.into()..=FRAMES_MAX.into())?.unwrap_or(XSK_FRAMES);
    if !frames.is_power_of_two() {
        let why = format!(
            "{frames} is no power of two: write {} or {}",
            frames.next_power_of_two() / 2,
            frames.next_power_of_two()
        );
        return Err(xsk.refuse("frames", why));
    }
    Ok(Xsk {
        mode: xsk.text("mode", mode)?.unwrap_or(XskMode::Auto),
        frames,
        busy_poll_us: xsk.number("busy_poll_us", 0..=BUSY_POLL_MAX.into())?.unwrap_or(0),
    })
}

fn fault_section(fault: &Section<'_>) -> Result<Fault, Located> {
    let rate = |key| fault.number(key, 0..=RATE_OF.into()).map(Option::unwrap_or_default);
    let direction = |word: &str| match word {
        "rx" => Ok(FaultDirection::Rx),
        "tx" => Ok(FaultDirection::Tx),
        "both" => Ok(FaultDirection::Both),
        _ => Err(format!("{word:?} is no direction: write \"rx\", \"tx\" or \"both\"")),
    };
    Ok(Fault {
        direction: fault.text("direction", direction)?.unwrap_or(FaultDirection::Both),
        plan: FaultPlan {
            seed: fault.number("seed", 0..=i64::MAX as u64)?.unwrap_or_default(),
            loss: rate("loss")?,
            duplication: rate("duplication")?,
            reordering: rate("reordering")?,
            truncation: rate("truncation")?,
            flips: rate("flips")?,
        },
    })
}

fn latency(workers: &Section<'_>) -> Result<Latency, Located> {
    let choice = |word: &str| match word {
        "balanced" => Ok(Latency::Balanced),
        "spin" => Ok(Latency::Spin),
        _ => Err(format!("{word:?} is no way to wait: write \"balanced\" or \"spin\"")),
    };
    Ok(workers.text("latency", choice)?.unwrap_or(Latency::Balanced))
}

fn cores(workers: &Section<'_>) -> Result<Cores, Located> {
    if !workers.has("cores") || workers.is_text("cores") {
        let auto = |word: &str| match word {
            "auto" => Ok(Cores::Auto),
            _ => Err(format!("{word:?} names no cores: write \"auto\" or a list, as in [1, 2]")),
        };
        return Ok(workers.text("cores", auto)?.unwrap_or(Cores::Auto));
    }
    let cores = workers.numbers("cores", 0..=CORE_MAX)?.unwrap_or_default();
    if cores.is_empty() || cores.len() > WORKERS_MAX {
        let why = format!("{} cores: list between 1 and {WORKERS_MAX}, or write \"auto\"", cores.len());
        return Err(workers.refuse("cores", why));
    }
    if BTreeSet::from_iter(&cores).len() != cores.len() {
        return Err(workers.refuse("cores", "the same core stands here twice: give each worker its own"));
    }
    Ok(Cores::List(cores))
}

fn routing_section(routing: &Section<'_>) -> Result<Routing, Located> {
    let table = routing.number("table", 1..=u32::MAX.into())?.unwrap_or(7770);
    if KERNEL_TABLES.contains(&table) {
        let why = format!("table {table} is the kernel's own: choose one that nobody uses, as 7770");
        return Err(routing.refuse("table", why));
    }
    Ok(Routing {
        table,
        mark: routing.number("mark", 1..=u32::MAX.into())?.unwrap_or(0x7765),
        rule_priority: routing.number("rule_priority", RULE_PRIORITIES)?.unwrap_or(7770),
        metric: routing.number("metric", 2..=u64::from(u32::MAX) - 1)?.unwrap_or(1024),
        prefixes: routing.texts("prefixes", PREFIXES_MAX, overlay_prefix)?.unwrap_or_default(),
    })
}

fn attach(word: &str) -> Result<Attach, String> {
    match word {
        "auto" => Ok(Attach::Auto),
        "native" => Ok(Attach::Native),
        "generic" => Ok(Attach::Generic),
        "tc" => Ok(Attach::Tc),
        "none" => Ok(Attach::None),
        _ => Err(format!("{word:?} is no attach mode: write \"auto\", \"native\", \"generic\", \"tc\" or \"none\"")),
    }
}

fn wan_port(word: &str) -> Result<WanPort, String> {
    match word {
        "auto" => Ok(WanPort::Auto),
        "socket" => Ok(WanPort::Socket),
        "xsk" => Ok(WanPort::Xsk),
        _ => Err(format!("{word:?} moves no datagrams: write \"auto\", \"socket\" or \"xsk\"")),
    }
}

fn lan_port(word: &str) -> Result<LanPort, String> {
    match word {
        "auto" => Ok(LanPort::Auto),
        "tun" => Ok(LanPort::Tun),
        "xsk" => Ok(LanPort::Xsk),
        _ => Err(format!("{word:?} moves no packets of a LAN: write \"auto\", \"tun\" or \"xsk\"")),
    }
}

fn tun_address(text: &str) -> Result<InterfaceAddress, String> {
    let address: InterfaceAddress = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    let ip = address.address();
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{ip} cannot be the address of a TUN: use a unicast address of the overlay"));
    }
    Ok(address)
}

/// A prefix of sources. IPv4 sources are looked for as such only.
fn source_prefix(text: &str) -> Result<Prefix, String> {
    let parsed = prefix(text)?;
    if let IpAddr::V6(v6) = parsed.address()
        && parsed.bit_len() >= 96
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("{parsed} means IPv4 sources: write them as {v4}/{}", parsed.bit_len() - 96));
    }
    Ok(parsed)
}

fn overlay_prefix(text: &str) -> Result<Prefix, String> {
    let parsed = prefix(text)?;
    let address = parsed.address();
    let link_scope = match address {
        IpAddr::V4(v4) => v4.is_link_local() && parsed.bit_len() >= 16,
        IpAddr::V6(v6) => v6.is_unicast_link_local() && parsed.bit_len() >= 10,
    };
    if link_scope || address.is_loopback() || address.is_multicast() {
        return Err(format!("{parsed} never leaves a host or link: list prefixes that are routed, as 10.0.0.0/8"));
    }
    Ok(parsed)
}
