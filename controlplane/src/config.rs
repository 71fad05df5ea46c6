//! The configuration of `weir`: one TOML file in which everything has a default.
//!
//! ```text
//! [node]       instance · name · state_directory · runtime_directory · packet_plane
//! [wan]        interface · port · lane_ports · advertise
//! [lan]        interfaces
//! [tun]        name · mtu
//! [workers]    cores · latency
//! [routing]    table · mark · rule_priority · metric
//! [api]        socket · read · operate · admin
//! [issuer]     log_entries_max
//! [peers]      legacy_kyber
//! [discovery]  mode · bootstrap · mdns_interfaces · services
//! [dns]        listen · records
//! [dataplane]  keys of the packet plane's own configuration, written as there: [dataplane.xsk] and so on
//! ```
//!
//! Reading ends in plain data that needs no more checks, or in one line that names the file, the line, the key and the remedy. It looks at
//! neither the machine nor the network; what the machine has to say, as the interface of its default route, is filled in by
//! [`plane_toml`].

mod instance;
mod plane;
mod read;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use weir_dataplane::config::file;

use crate::audit::ENTRIES_MAX_DEFAULT;
use crate::dht::record::ServiceValue;
use crate::dns::publish::Entry;
use crate::node::Part;
use crate::pki::id::NodeId;

pub use instance::{INSTANCE_LEN_MAX, Instance};
pub use plane::{Overlay, PlaneError, default_route_interface, plane_toml};
pub use weir_dataplane::config::file::section::Problem;
pub use weir_dataplane::config::file::{ConfigError, Position};

/// Directory of the configuration files; an instance's file is named after it.
pub const DIRECTORY: &str = "/etc/weir";
/// Longest name of a node: one label of a domain name (RFC 1035 §2.3.4).
pub const NODE_NAME_LEN_MAX: usize = 63;
/// Most entries of a list that is the control plane's own. Nobody writes more by hand.
pub const LIST_MAX: usize = 64;

/// Everything that `weir` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[wan]`.
    pub wan: Wan,
    /// `[lan]`.
    pub lan: Lan,
    /// `[tun]`.
    pub tun: Tun,
    /// `[workers]`.
    pub workers: Workers,
    /// `[routing]`.
    pub routing: Routing,
    /// `[api]`.
    pub api: Api,
    /// `[issuer]`.
    pub issuer: Issuer,
    /// `[peers]`.
    pub peers: Peers,
    /// `[discovery]`.
    pub discovery: Discovery,
    /// `[dns]`.
    pub dns: Dns,
    /// `[dataplane]`: what is written into the packet plane's configuration over all that we derive.
    pub dataplane: toml::Table,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Tells the networks on one host apart.
    pub instance: Instance,
    /// The name to ask for when joining; none for what the token or the host says.
    pub name: Option<String>,
    /// What outlives a restart.
    pub state_directory: PathBuf,
    /// Sockets and what the packet plane is started with.
    pub runtime_directory: PathBuf,
    /// The packet plane's program; none for the one beside our own.
    pub packet_plane: Option<PathBuf>,
}

/// The network that carries the sealed datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wan {
    /// The interface; none for that of the default route.
    pub interface: Option<String>,
    /// UDP port.
    pub port: u16,
    /// Ports after it that workers may have for themselves.
    pub lane_ports: u8,
    /// Addresses under which others reach this node: it cannot find them out by itself.
    pub advertise: Vec<SocketAddr>,
    /// Whether the public addresses of the interface are among them, whatever they are at the moment.
    pub advertise_interface: bool,
}

/// The networks behind this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// Their interfaces.
    pub interfaces: Vec<String>,
}

/// The TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u16,
}

/// The packet plane's threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Their cores; none lets the packet plane choose.
    pub cores: Option<Vec<u16>>,
    /// `balanced` or `spin`.
    pub latency: Latency,
}

/// What a worker does when nothing waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Polls while that pays, then sleeps.
    Balanced,
    /// Never sleeps.
    Spin,
}

/// Numbers that the kernel knows us by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Routing table of our own.
    pub table: u32,
    /// Mark of our own datagrams.
    pub mark: u32,
    /// Priority of the rule that leads to the table.
    pub rule_priority: u32,
    /// Metric of the routes into the TUN.
    pub metric: u32,
}

/// The local API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// Who may look.
    pub read: Vec<Principal>,
    /// Who may invite and revoke besides.
    pub operate: Vec<Principal>,
    /// Who may do everything. The superuser and the user that weir runs as always may.
    pub admin: Vec<Principal>,
}

/// Somebody on this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// `*`: everybody.
    Everybody,
    /// `name`: a user.
    User(String),
    /// `1000`: a user by number.
    Uid(u32),
    /// `@name`: members of a group.
    Group(String),
    /// `@1000`: members of a group by number.
    Gid(u32),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("*"),
            Self::User(name) => f.write_str(name),
            Self::Uid(number) => write!(f, "{number}"),
            Self::Group(name) => write!(f, "@{name}"),
            Self::Gid(number) => write!(f, "@{number}"),
        }
    }
}

/// The issuer beside this node, where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Entries of the audit log that are kept.
    pub log_entries_max: u64,
}

/// Exceptions for single peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Members that may use the draft group X25519Kyber768Draft00, and are dialled with nothing else, where the trust bundle allows it.
    pub legacy_kyber: Vec<NodeId>,
}

/// How members are found that are not where they said to be, or of which the directory says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// This node's part in the DHT.
    pub mode: DiscoveryMode,
    /// Addresses at which there is a member, whichever.
    pub bootstrap: Vec<SocketAddr>,
    /// Interfaces on which members are looked for by multicast DNS, and this one says that it is there.
    pub mdns_interfaces: Vec<String>,
    /// What this node, or a host behind it, offers at the node's overlay address.
    pub services: Vec<ServiceValue>,
}

/// Names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Where questions are answered, by UDP and TCP; nowhere if there is none.
    pub listen: Vec<SocketAddr>,
    /// What this node publishes under its name, beside its address and its services.
    pub records: Vec<Entry>,
}

/// A node's part in the DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryMode {
    /// A client, and a server once others have shown that they reach it.
    Auto,
    /// It answers others and keeps records.
    Server,
    /// It asks, and is in nobody's table.
    Client,
    /// None.
    Off,
}

impl DiscoveryMode {
    /// What that is to a node; none for one that takes no part.
    pub const fn part(self) -> Option<Part> {
        match self {
            Self::Auto => Some(Part::Auto),
            Self::Server => Some(Part::Server),
            Self::Client => Some(Part::Client),
            Self::Off => None,
        }
    }
}

impl Config {
    /// What an instance has without a file.
    pub fn of_instance(instance: &Instance) -> Self {
        Self {
            node: Node {
                instance: instance.clone(),
                name: None,
                state_directory: instance.state_directory(),
                runtime_directory: instance.runtime_directory(),
                packet_plane: None,
            },
            wan: Wan {
                interface: None,
                port: instance.port(),
                lane_ports: 0,
                advertise: Vec::new(),
                advertise_interface: false,
            },
            lan: Lan { interfaces: Vec::new() },
            tun: Tun { name: instance.tun(), mtu: 1420 },
            workers: Workers { cores: None, latency: Latency::Balanced },
            routing: Routing {
                table: instance.table(),
                mark: instance.mark(),
                rule_priority: instance.table(),
                metric: 1024,
            },
            api: Api {
                socket: instance.runtime_directory().join("api.sock"),
                read: vec![Principal::Group("weir".into())],
                operate: Vec::new(),
                admin: Vec::new(),
            },
            issuer: Issuer { log_entries_max: ENTRIES_MAX_DEFAULT },
            peers: Peers { legacy_kyber: Vec::new() },
            discovery: Discovery {
                mode: DiscoveryMode::Auto,
                bootstrap: Vec::new(),
                mdns_interfaces: Vec::new(),
                services: Vec::new(),
            },
            dns: Dns::default(),
            dataplane: toml::Table::new(),
        }
    }

    /// The file of an instance.
    pub fn file_of(instance: &Instance) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{instance}.toml"))
    }

    /// Reads the given file, or that of the instance, which need not exist.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn find(file: Option<&Path>, instance: &Instance) -> Result<Self, ConfigError> {
        match file {
            Some(file) => Self::load(file, instance),
            None => match Self::load(&Self::file_of(instance), instance) {
                Err(ConfigError { problem: Problem::Unreadable(error), .. })
                    if error.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(Self::of_instance(instance))
                }
                other => other,
            },
        }
    }

    /// Reads and checks a file. What it leaves out is as `instance` has it, unless it names another one.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or says something that cannot be.
    pub fn load(file: &Path, instance: &Instance) -> Result<Self, ConfigError> {
        file::load(file, |document, text| read::config(document, text, instance))
    }

    /// Reads and checks a text; `file` is named in errors.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(file: &Path, text: &str, instance: &Instance) -> Result<Self, ConfigError> {
        file::parse(file, text, |document, text| read::config(document, text, instance))
    }
}

#[cfg(test)]
mod tests;
