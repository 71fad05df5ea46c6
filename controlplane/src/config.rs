//! The configuration of `weir`: one TOML file in which everything has a default.
//!
//! ```text
//! [node]       instance · name · state_directory · runtime_directory · packet_plane
//! [wan]        interface · port · lane_ports · bootstrap · advertise
//! [lan]        interfaces · announce
//! [tun]        name · mtu
//! [workers]    cores · latency
//! [routing]    table · mark · rule_priority · metric
//! [api]        socket · read · operate · admin
//! [peers]      legacy_kyber
//! [dataplane]  keys of the packet plane's own configuration, written as there: [dataplane.xsk] and so on
//! ```
//!
//! Reading ends in plain data that needs no more checks, or in one line that names the file, the line, the key and the remedy. It looks at
//! neither the machine nor the network; what the machine has to say, as the interface of its default route, is filled in by
//! [`plane_toml`].

mod instance;
mod plane;
mod read;
mod section;

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use weir_dataplane::api::Prefix;

use crate::pki::id::NodeId;

pub use instance::{INSTANCE_LEN_MAX, Instance};
pub use plane::{Overlay, PlaneError, default_route_interface, plane_toml};
pub use section::Problem;

/// Directory of the configuration files; an instance's file is named after it.
pub const DIRECTORY: &str = "/etc/weir";
/// Longest file in bytes: a thousand times what anybody writes.
pub const FILE_LEN_MAX: u64 = 1 << 20;
/// Longest interface name in bytes: `IFNAMSIZ` less its terminator (`linux/if.h`).
pub const INTERFACE_NAME_LEN_MAX: usize = 15;
/// Longest path of a unix socket in bytes: `sun_path` less its terminator (`linux/un.h`).
pub const SOCKET_PATH_LEN_MAX: usize = 107;
/// Longest name of a node: one label of a domain name (RFC 1035 §2.3.4).
pub const NODE_NAME_LEN_MAX: usize = 63;
/// Most entries of each list. Nobody writes more by hand, and the packet plane has the same limit for its interfaces.
pub const LIST_MAX: usize = 64;
/// Most lane ports, as in the packet plane.
pub const LANE_PORTS_MAX: u8 = 15;
/// Smallest MTU: IPv6 stops working below it (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Largest MTU that the packet plane takes.
pub const MTU_MAX: u16 = 65_455;
/// Highest core number: `CPU_SETSIZE` less one (`sched.h`).
pub const CORE_MAX: u16 = 1023;
/// Most workers, as in the packet plane.
pub const WORKERS_MAX: usize = 16;

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
    /// `[peers]`.
    pub peers: Peers,
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
    /// Members to ask first, besides those that the node remembers.
    pub bootstrap: Vec<SocketAddr>,
    /// Addresses under which this node is reached, where it cannot find out: behind a port forwarding.
    pub advertise: Vec<SocketAddr>,
}

/// The networks behind this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// Their interfaces.
    pub interfaces: Vec<String>,
    /// What to tell the other members of; none for everything that the certificate allows.
    pub announce: Option<Vec<Prefix>>,
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

/// Exceptions for single peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Members that are dialled with the draft group X25519Kyber768Draft00 and nothing else.
    pub legacy_kyber: Vec<NodeId>,
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
                bootstrap: Vec::new(),
                advertise: Vec::new(),
            },
            lan: Lan { interfaces: Vec::new(), announce: None },
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
            peers: Peers { legacy_kyber: Vec::new() },
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
        let whole = |problem| ConfigError { file: file.into(), position: None, problem };
        let mut bytes = Vec::new();
        std::fs::File::open(file)
            .and_then(|open| open.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes))
            .map_err(|error| whole(Problem::Unreadable(error)))?;
        if bytes.len() as u64 > FILE_LEN_MAX {
            return Err(whole(Problem::TooLong { limit: FILE_LEN_MAX }));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(file, text, instance),
            Err(error) => {
                let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let position = Some(position(&valid, valid.len()));
                let problem = Problem::Syntax("a byte that is not UTF-8: save the file as UTF-8".into());
                Err(ConfigError { file: file.into(), position, problem })
            }
        }
    }

    /// Reads and checks a text; `file` is named in errors.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(file: &Path, text: &str, instance: &Instance) -> Result<Self, ConfigError> {
        let at = |span: Option<std::ops::Range<usize>>, problem| ConfigError {
            file: file.into(),
            position: span.map(|span| position(text, span.start)),
            problem,
        };
        let document = DeTable::parse(text).map_err(|error| {
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            at(error.span(), Problem::Syntax(message))
        })?;
        read::config(document.get_ref(), text, instance).map_err(|located| at(located.span, located.problem))
    }
}

/// A line and a column of the file, both counted from one; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

fn position(text: &str, at: usize) -> Position {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

/// Why there is no configuration: one line, `FILE:LINE:COLUMN: what: remedy`.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, when it is about a place.
    pub position: Option<Position>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.problem)
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

#[cfg(test)]
mod tests;
