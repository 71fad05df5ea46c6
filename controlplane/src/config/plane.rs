//! The packet plane's configuration, written from ours and from what the membership grants.

use std::net::IpAddr;

use toml::{Table, Value};
use weir_dataplane::api::Prefix;
use weir_dataplane::config::file::value::{PREFIXES_MAX, TUN_ADDRESSES_MAX};

use super::{Config, Latency};

/// What the overlay gives this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Our addresses in it, each with the length of its prefix on the TUN.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Prefixes that belong to the overlay and never leave this host in clear.
    pub prefixes: Vec<Prefix>,
}

/// Why the packet plane's configuration cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// No interface is named and there is no default route.
    #[error("no default route tells which interface faces the network: set wan.interface in the configuration")]
    NoWan,
    /// More than the packet plane takes.
    #[error("{0} prefixes; the packet plane takes {PREFIXES_MAX}: let the network use fewer, wider ones")]
    Prefixes(usize),
    /// More than its TUN takes.
    #[error("{0} addresses; the TUN takes {TUN_ADDRESSES_MAX}: renew the certificate with fewer")]
    Addresses(usize),
}

/// Writes it. `default_route` is the interface of the host's default route, for a configuration that names none.
///
/// # Errors
/// [`PlaneError`].
pub fn plane_toml(config: &Config, overlay: &Overlay, default_route: Option<&str>) -> Result<String, PlaneError> {
    let wan = config.wan.interface.as_deref().or(default_route).ok_or(PlaneError::NoWan)?;
    if overlay.prefixes.len() > PREFIXES_MAX {
        return Err(PlaneError::Prefixes(overlay.prefixes.len()));
    }
    if overlay.addresses.len() > TUN_ADDRESSES_MAX {
        return Err(PlaneError::Addresses(overlay.addresses.len()));
    }
    let path = |path: &std::path::Path| Value::from(path.display().to_string());
    let texts = |texts: Vec<String>| Value::from(texts);
    let number = |number: u32| Value::from(i64::from(number));
    let addresses = overlay.addresses.iter().map(|(address, len)| format!("{address}/{len}")).collect();
    let prefixes = overlay.prefixes.iter().map(Prefix::to_string).collect();
    let cores = match &config.workers.cores {
        None => Value::from("auto"),
        Some(cores) => Value::from(cores.iter().map(|core| i64::from(*core)).collect::<Vec<_>>()),
    };
    let latency = match config.workers.latency {
        Latency::Balanced => "balanced",
        Latency::Spin => "spin",
    };
    let sections = [
        ("api", vec![("socket", path(&config.node.runtime_directory.join("plane.sock")))]),
        (
            "wan",
            vec![
                ("interface", Value::from(wan)),
                ("port", number(config.wan.port.into())),
                ("lane_ports", number(config.wan.lane_ports.into())),
            ],
        ),
        ("lan", vec![("interfaces", texts(config.lan.interfaces.clone()))]),
        (
            "tun",
            vec![
                ("name", Value::from(config.tun.name.as_str())),
                ("addresses", texts(addresses)),
                ("mtu", number(config.tun.mtu.into())),
            ],
        ),
        ("workers", vec![("cores", cores), ("latency", Value::from(latency))]),
        (
            "routing",
            vec![
                ("table", number(config.routing.table)),
                ("mark", number(config.routing.mark)),
                ("rule_priority", number(config.routing.rule_priority)),
                ("metric", number(config.routing.metric)),
                ("prefixes", texts(prefixes)),
            ],
        ),
    ];
    let mut document = Table::new();
    document.insert("calibration".into(), path(&config.node.state_directory.join("calibration.json")));
    for (section, keys) in sections {
        let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Table>();
        document.insert(section.into(), Value::Table(keys));
    }
    overlay_with(&mut document, &config.dataplane);
    Ok(format!(
        "# Written by weir; what you write here is lost. Set [dataplane] in its own configuration instead.\n\n{document}"
    ))
}

/// Puts the operator's values over ours, table by table.
fn overlay_with(document: &mut Table, above: &Table) {
    for (key, value) in above {
        match (document.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay_with(below, above),
            (_, value) => {
                document.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The interface of the default route with the lowest metric, from the text of `/proc/net/route` (IPv4) or, where that has none, of
/// `/proc/net/ipv6_route`.
///
/// ```text
///  /proc/net/route       Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT       (one header line; hexadecimal
///  /proc/net/ipv6_route  destination length source length next-hop metric refcnt use flags Iface       but for the decimal metric of IPv4)
/// ```
pub fn default_route_interface(ipv4: &str, ipv6: &str) -> Option<String> {
    /// `RTF_REJECT` (`linux/route.h`): a route that says no.
    const REJECT: u32 = 0x0200;
    let v4 = ipv4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, "00000000", _, flags, _, _, metric, "00000000", ..] = fields[..] else { return None };
        (u32::from_str_radix(flags, 16).ok()? & REJECT == 0).then_some((metric.parse::<u32>().ok()?, name))
    });
    let v6 = ipv6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, "00", _, "00", _, metric, _, _, flags, name] = fields[..] else { return None };
        let fits = destination.bytes().all(|b| b == b'0') && name != "lo";
        (fits && u32::from_str_radix(flags, 16).ok()? & REJECT == 0)
            .then_some((u32::from_str_radix(metric, 16).ok()?, name))
    });
    let lowest = v4.min_by_key(|(metric, _)| *metric).or_else(|| v6.min_by_key(|(metric, _)| *metric));
    lowest.map(|(_, name)| name.to_owned())
}
