//! From a TOML document to a checked [`Config`]: which keys there are, what each may say, and which go together.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use toml::de::DeTable;
use weir_dataplane::config::file::section::{Located, Problem, Section};
use weir_dataplane::config::file::value::{
    CORE_MAX, KERNEL_TABLES, LAN_INTERFACES_MAX, LANE_PORTS_MAX, MTU_MAX, MTU_MIN, RULE_PRIORITIES,
    SOCKET_PATH_LEN_MAX, WORKERS_MAX, absolute_path, interface_name, socket_path, tun_name,
};

use super::{Config, DiscoveryMode, Instance, LIST_MAX, Latency, NODE_NAME_LEN_MAX, Peers, Principal};
use crate::audit::ENTRIES_MAX_RANGE;
use crate::dht::record::ServiceValue;
use crate::dns::member::SETS_MAX;
use crate::dns::publish::Entry;
use crate::node::services::{SERVICES_MAX, TEXTS_LEN_MAX};
use crate::pki::id::NodeId;

/// Every section with its keys.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    ("node", &["instance", "name", "state_directory", "runtime_directory", "packet_plane"]),
    ("wan", &["interface", "port", "lane_ports", "advertise"]),
    ("lan", &["interfaces"]),
    ("tun", &["name", "mtu"]),
    ("workers", &["cores", "latency"]),
    ("routing", &["table", "mark", "rule_priority", "metric"]),
    ("api", &["socket", "read", "operate", "admin"]),
    ("issuer", &["log_entries_max"]),
    ("peers", &["legacy_kyber"]),
    ("discovery", &["mode", "bootstrap", "mdns_interfaces", "services"]),
    ("dns", &["listen", "records"]),
    ("dataplane", &[]),
];

/// Addresses to answer questions at.
const LISTEN_MAX: usize = 8;

/// Keys of each `[[discovery.services]]`.
const SERVICE_KEYS: &[&str] = &["name", "port", "text"];

/// What `[dataplane]` may set: keys of the packet plane's configuration, by section; the first section is the top of that file.
pub(super) const PLANE_KEYS: &[(&str, &[&str])] = &[
    ("", &["transit", "calibration"]),
    (
        "wan",
        &[
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
    ),
    ("lan", &["attach", "rx", "tx", "gro_forwarding"]),
    ("xsk", &["mode", "frames", "busy_poll_us"]),
    ("tun", &["offload"]),
    ("bpf", &["pin", "object"]),
    ("fault", &["seed", "direction", "loss", "duplication", "reordering", "truncation", "flips"]),
];

/// What the packet plane's configuration has from us, and which key of ours sets it.
pub(super) const DERIVED: &[(&str, &str, &str)] = &[
    ("api", "socket", "node.runtime_directory"),
    ("wan", "interface", "wan.interface"),
    ("wan", "port", "wan.port"),
    ("wan", "lane_ports", "wan.lane_ports"),
    ("lan", "interfaces", "lan.interfaces"),
    ("tun", "name", "tun.name"),
    ("tun", "addresses", "nothing: the certificate says it"),
    ("tun", "mtu", "tun.mtu"),
    ("workers", "cores", "workers.cores"),
    ("workers", "latency", "workers.latency"),
    ("routing", "table", "routing.table"),
    ("routing", "mark", "routing.mark"),
    ("routing", "rule_priority", "routing.rule_priority"),
    ("routing", "metric", "routing.metric"),
    ("routing", "prefixes", "nothing: the members say it"),
];

/// In `wan.advertise`: what the WAN interface has at the moment.
const OF_THE_INTERFACE: &str = "interface";

fn keys_of(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// Reads the whole document; `text` is what it was parsed from.
pub(super) fn config(document: &DeTable<'_>, text: &str, instance: &Instance) -> Result<Config, Located> {
    let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    let top = Section::top(document, &names)?;
    let section = |name| top.section(name, keys_of(name));

    let node = section("node")?;
    let instance = node
        .text("instance", |text| text.parse::<Instance>().map_err(|error| error.to_string()))?
        .unwrap_or_else(|| instance.clone());
    let mut config = Config::of_instance(&instance);
    config.node.name = node.text("name", |text| or_auto(text, node_name))?.flatten();
    set(&mut config.node.state_directory, node.text("state_directory", absolute_path)?);
    if let Some(directory) = node.text("runtime_directory", absolute_path)? {
        config.api.socket = directory.join("api.sock");
        config.node.runtime_directory = directory;
    }
    config.node.packet_plane = node.text("packet_plane", |text| or_auto(text, absolute_path))?.flatten();

    wan(&mut config, &section("wan")?)?;
    let lan = section("lan")?;
    set(&mut config.lan.interfaces, lan.texts("interfaces", LAN_INTERFACES_MAX, interface_name)?);
    let tun = section("tun")?;
    set(&mut config.tun.name, tun.text("name", tun_name)?);
    set(&mut config.tun.mtu, tun.number("mtu", MTU_MIN.into()..=MTU_MAX.into())?);
    workers(&mut config, &section("workers")?)?;
    routing(&mut config, &section("routing")?)?;

    let api = section("api")?;
    set(&mut config.api.socket, api.text("socket", socket_path)?);
    if config.api.socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        let why = format!(
            "{} is too long for a unix socket: set api.socket to a path of at most {SOCKET_PATH_LEN_MAX} bytes",
            config.api.socket.display()
        );
        return Err(node.refuse("runtime_directory", why));
    }
    set(&mut config.api.read, api.texts("read", LIST_MAX, principal)?);
    set(&mut config.api.operate, api.texts("operate", LIST_MAX, principal)?);
    set(&mut config.api.admin, api.texts("admin", LIST_MAX, principal)?);
    if let Some(key) = [("operate", &config.api.operate), ("admin", &config.api.admin)]
        .iter()
        .find_map(|(key, who)| who.contains(&Principal::Everybody).then_some(*key))
    {
        return Err(api.refuse(key, "\"*\" would let everybody on this host change the network: name users or groups"));
    }
    let issuer = section("issuer")?;
    set(&mut config.issuer.log_entries_max, issuer.number("log_entries_max", ENTRIES_MAX_RANGE)?);
    let peers = section("peers")?;
    config.peers = Peers { legacy_kyber: peers.texts("legacy_kyber", LIST_MAX, node_id)?.unwrap_or_default() };
    if !cfg!(feature = "legacy-kyber") && !config.peers.legacy_kyber.is_empty() {
        let why = "this program was built without the feature legacy-kyber: remove the entries, or build it with it";
        return Err(peers.refuse("legacy_kyber", why));
    }
    discovery(&mut config, &section("discovery")?)?;
    dns(&mut config, &section("dns")?)?;
    config.dataplane = dataplane(&top, text)?;

    one_duty_each(&config, &lan, &tun)?;
    Ok(config)
}

/// Puts a value that stands in the file in place of the default.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn wan(config: &mut Config, wan: &Section<'_>) -> Result<(), Located> {
    config.wan.interface = wan.text("interface", |text| or_auto(text, interface_name))?.flatten();
    set(&mut config.wan.port, wan.number("port", 1..=u16::MAX.into())?);
    set(&mut config.wan.lane_ports, wan.number("lane_ports", 0..=LANE_PORTS_MAX.into())?);
    let after = u16::MAX - config.wan.port;
    if u16::from(config.wan.lane_ports) > after {
        let why = format!("there are only {after} ports after {}: choose fewer, or a lower wan.port", config.wan.port);
        return Err(wan.refuse("lane_ports", why));
    }
    let named = |text: &str| if text == OF_THE_INTERFACE { Ok(None) } else { endpoint(text).map(Some) };
    let advertise = wan.texts("advertise", LIST_MAX, named)?.unwrap_or_default();
    config.wan.advertise_interface = advertise.contains(&None);
    config.wan.advertise = advertise.into_iter().flatten().collect();
    if config.wan.advertise_interface && config.wan.interface.is_none() {
        let why = "\"interface\" follows the addresses of wan.interface: name that one as well";
        return Err(wan.refuse("advertise", why));
    }
    Ok(())
}

fn discovery(config: &mut Config, discovery: &Section<'_>) -> Result<(), Located> {
    let bootstrap = discovery.texts("bootstrap", LIST_MAX, endpoint)?.unwrap_or_default();
    let mdns_interfaces = discovery.texts("mdns_interfaces", LAN_INTERFACES_MAX, interface_name)?.unwrap_or_default();
    if mdns_interfaces.contains(&config.tun.name) {
        let why = format!("{} is the TUN: what goes in there has found its way already", config.tun.name);
        return Err(discovery.refuse("mdns_interfaces", why));
    }
    set(&mut config.discovery.mode, discovery.text("mode", discovery_mode)?);
    (config.discovery.bootstrap, config.discovery.mdns_interfaces) = (bootstrap, mdns_interfaces);
    config.discovery.services = services(discovery)?;
    Ok(())
}

fn dns(config: &mut Config, dns: &Section<'_>) -> Result<(), Located> {
    config.dns.listen = dns.texts("listen", LISTEN_MAX, listener)?.unwrap_or_default();
    config.dns.records = dns.texts("records", SETS_MAX, record)?.unwrap_or_default();
    Ok(())
}

fn listener(text: &str) -> Result<SocketAddr, String> {
    let why =
        || format!("{text:?} is no address to listen at: write one with its port, as \"127.0.0.1:53\" or \"[::1]:53\"");
    text.parse().map_err(|_| why())
}

/// Name, type and data, as in a zone file.
fn record(text: &str) -> Result<Entry, String> {
    let mut parts = text.trim().splitn(3, char::is_whitespace).map(str::trim);
    let (Some(name), Some(rtype), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{text:?} is no record: write its name, type and data, as \"www A 10.1.0.7\""));
    };
    Entry::new(name, rtype, data).map_err(|error| error.to_string())
}

fn services(discovery: &Section<'_>) -> Result<Vec<ServiceValue>, Located> {
    let mut all: Vec<ServiceValue> = vec![];
    for service in discovery.tables("services", SERVICES_MAX, SERVICE_KEYS)? {
        let label = service.text("name", service_label)?;
        let label =
            label.ok_or_else(|| service.missing("name", "what the service is called, as name = \"_http._tcp\""))?;
        let port = service.number("port", 1..=u16::MAX.into())?;
        let port = port.ok_or_else(|| service.missing("port", "where the service listens, as port = 80"))?;
        if all.iter().any(|other| other.label == label) {
            return Err(service.refuse("name", format!("{label} stands here twice: a member has one of each name")));
        }
        let texts = service.texts("text", ServiceValue::TEXTS_MAX, service_text)?.unwrap_or_default();
        all.push(ServiceValue { label, port, texts });
    }
    let len: usize = all.iter().flat_map(|service| &service.texts).map(Vec::len).sum();
    if len > TEXTS_LEN_MAX {
        let why = format!(
            "texts of {len} bytes, at most {TEXTS_LEN_MAX} for all services together: others keep no more of a member, so shorten them"
        );
        return Err(discovery.refuse("services", why));
    }
    Ok(all)
}

fn service_label(text: &str) -> Result<String, String> {
    let value = ServiceValue { label: text.into(), port: 1, texts: vec![] };
    match value.check() {
        Ok(()) => Ok(value.label),
        Err(_) => Err(format!(
            "{text:?} names no service: write _, its registered name (at most {} of a-z, 0-9 and -, a letter among them), and ._tcp or ._udp, as _http._tcp",
            ServiceValue::NAME_LEN_MAX
        )),
    }
}

fn service_text(text: &str) -> Result<Vec<u8>, String> {
    let (len, max) = (text.len(), ServiceValue::TEXT_LEN_MAX);
    if len == 0 || len > max {
        return Err(format!("a text of {len} bytes: write between 1 and {max}, as \"path=/\""));
    }
    Ok(text.as_bytes().to_vec())
}

fn discovery_mode(word: &str) -> Result<DiscoveryMode, String> {
    match word {
        "auto" => Ok(DiscoveryMode::Auto),
        "server" => Ok(DiscoveryMode::Server),
        "client" => Ok(DiscoveryMode::Client),
        "off" => Ok(DiscoveryMode::Off),
        _ => Err(format!("{word:?} is no part in the DHT: write \"auto\", \"server\", \"client\" or \"off\"")),
    }
}

fn workers(config: &mut Config, workers: &Section<'_>) -> Result<(), Located> {
    let latency = |word: &str| match word {
        "balanced" => Ok(Latency::Balanced),
        "spin" => Ok(Latency::Spin),
        _ => Err(format!("{word:?} is no way to wait: write \"balanced\" or \"spin\"")),
    };
    set(&mut config.workers.latency, workers.text("latency", latency)?);
    if workers.is_text("cores") {
        let auto = |word: &str| match word {
            "auto" => Ok(()),
            _ => Err(format!("{word:?} names no cores: write \"auto\" or a list, as in [1, 2]")),
        };
        workers.text("cores", auto)?;
        return Ok(());
    }
    let Some(cores) = workers.numbers::<u16>("cores", 0..=CORE_MAX)? else { return Ok(()) };
    if cores.is_empty() || cores.len() > WORKERS_MAX {
        let why = format!("{} cores: list between 1 and {WORKERS_MAX}, or write \"auto\"", cores.len());
        return Err(workers.refuse("cores", why));
    }
    if BTreeSet::from_iter(&cores).len() != cores.len() {
        return Err(workers.refuse("cores", "the same core stands here twice: give each worker its own"));
    }
    config.workers.cores = Some(cores);
    Ok(())
}

fn routing(config: &mut Config, routing: &Section<'_>) -> Result<(), Located> {
    set(&mut config.routing.table, routing.number("table", 1..=u32::MAX.into())?);
    let table = config.routing.table;
    if KERNEL_TABLES.contains(&table) {
        let why = format!("table {table} is the kernel's own: choose one that nobody uses, as 7770");
        return Err(routing.refuse("table", why));
    }
    set(&mut config.routing.mark, routing.number("mark", 1..=u32::MAX.into())?);
    set(&mut config.routing.rule_priority, routing.number("rule_priority", RULE_PRIORITIES)?);
    set(&mut config.routing.metric, routing.number("metric", 2..=u64::from(u32::MAX) - 1)?);
    Ok(())
}

/// Names are checked here, values by the packet plane, which knows what they mean.
fn dataplane(top: &Section<'_>, text: &str) -> Result<toml::Table, Located> {
    let tables: Vec<&str> = PLANE_KEYS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let at_top = PLANE_KEYS.iter().find(|(name, _)| name.is_empty()).map_or(&[][..], |(_, keys)| keys);
    let derived: BTreeSet<&str> = DERIVED.iter().map(|(section, _, _)| *section).collect();
    let known: Vec<&str> = tables.iter().chain(at_top).copied().chain(derived).collect();
    let section = top.section("dataplane", &known)?;
    for name in section.keys().filter(|name| !at_top.contains(name)) {
        let own = PLANE_KEYS.iter().find(|(table, _)| *table == name).map_or(&[][..], |(_, keys)| keys);
        let ours = DERIVED.iter().filter(|(table, _, _)| *table == name);
        let known: Vec<&str> = own.iter().copied().chain(ours.clone().map(|(_, key, _)| *key)).collect();
        let table = section.section(name, &known)?;
        for key in table.keys() {
            if let Some((_, _, remedy)) = ours.clone().find(|(_, derived, _)| *derived == key) {
                return Err(table.refuse(key, format!("weir sets it: remove it here; what sets it is {remedy}")));
            }
        }
    }
    let values: toml::Table = toml::from_str(text).map_err(|error| {
        let problem = Problem::Syntax(error.message().lines().collect::<Vec<_>>().join(" "));
        Located { span: error.span(), problem }
    })?;
    match values.get("dataplane") {
        Some(toml::Value::Table(table)) => Ok(table.clone()),
        Some(_) | None => Ok(toml::Table::new()),
    }
}

fn one_duty_each(config: &Config, lan: &Section<'_>, tun: &Section<'_>) -> Result<(), Located> {
    if let Some(wan) = &config.wan.interface
        && config.lan.interfaces.contains(wan)
    {
        return Err(lan.refuse("interfaces", format!("{wan} is the WAN interface: one interface cannot be both")));
    }
    let taken = config.lan.interfaces.iter().chain(&config.wan.interface).any(|name| *name == config.tun.name);
    if taken {
        let why = format!("{} is the name of a WAN or LAN interface: choose another name", config.tun.name);
        return Err(tun.refuse("name", why));
    }
    Ok(())
}

/// `auto` stands for the default, as it is found out.
fn or_auto<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "auto" { Ok(None) } else { parse(text).map(Some) }
}

/// A label as hosts have it (RFC 1123 §2.1).
fn node_name(text: &str) -> Result<String, String> {
    let fits = (1..=NODE_NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        return Ok(text.into());
    }
    Err(format!("{text:?} cannot name a node: use 1 to {NODE_NAME_LEN_MAX} of a-z, 0-9 and -, no - at the ends"))
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let endpoint = text.parse::<SocketAddr>().ok().filter(|it| it.port() != 0 && !it.ip().is_unspecified());
    endpoint.ok_or_else(|| format!("{text:?} is no endpoint: write 192.0.2.1:4646 or [2001:db8::1]:4646"))
}

fn node_id(text: &str) -> Result<NodeId, String> {
    text.parse().map_err(|error| format!("{error}: write the 52 characters that `weir members` shows"))
}

fn principal(text: &str) -> Result<Principal, String> {
    let remedy = "write a user's name or number, @ and a group's, or \"*\" for everybody";
    let named = |name: &str| {
        // What shadow's `useradd` takes by default.
        (1..=32).contains(&name.len())
            && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.$".contains(&b))
    };
    match text.strip_prefix('@') {
        _ if text == "*" => Ok(Principal::Everybody),
        None if named(text) => Ok(Principal::User(text.into())),
        Some(group) if named(group) => Ok(Principal::Group(group.into())),
        None => text.parse().map(Principal::Uid).map_err(|_| format!("{text:?} is nobody: {remedy}")),
        Some(group) => group.parse().map(Principal::Gid).map_err(|_| format!("{text:?} is no group: {remedy}")),
    }
}
