//! The configuration of the `weir-dataplane` daemon: one TOML file.
//!
//! Reading ends in plain data that needs no more checks, or in one line that names the file, the line, the key and the remedy. This part
//! does not look at the machine: whether an interface exists is found out by those who use it.
//!
//! ```text
//! transit = false          forward between peers
//! calibration = …          file of measured costs
//! [api]      socket
//! [wan]      interface (required) · port · lane_ports · attach · io · rx · tx · dscp · busy_poll_us · source_rate_pps ·
//!            source_burst · class_rate_pps · deny
//! [lan]      interfaces · attach · rx · tx · gro_forwarding
//! [xsk]      mode · frames · busy_poll_us
//! [tun]      name · addresses · mtu · offload
//! [workers]  cores · latency
//! [routing]  table · mark · rule_priority · metric · prefixes
//! [bpf]      pin · object
//! [fault]    seed · direction · loss · duplication · reordering · truncation · flips: a bad network on purpose, for tests
//! ```

pub mod file;
mod read;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::api::Prefix;
use crate::engine::class::Dscp;
use crate::io::fault::FaultPlan;
use crate::io::netlink::{InterfaceAddress, Routing};

pub use file::section::Problem;
pub use file::value::{
    CORE_MAX, INTERFACE_NAME_LEN_MAX, LAN_INTERFACES_MAX, LANE_PORTS_MAX, MTU_MAX, MTU_MIN, PREFIXES_MAX,
    SOCKET_PATH_LEN_MAX, TUN_ADDRESSES_MAX,
};
pub use file::{ConfigError, FILE_LEN_MAX, Position};

/// Where measured costs are kept unless the configuration says otherwise.
pub const CALIBRATION_PATH: &str = "/var/lib/weir/calibration.json";
/// Most prefixes in the deny list: its look-up is measured up to here.
pub const DENY_MAX: usize = 10_000;
/// Longest busy polling in microseconds: past a millisecond it is a spinning core by another name.
pub const BUSY_POLL_MAX: u32 = 1_000;
/// Frames of an AF_XDP socket unless the configuration says otherwise: some milliseconds of one core's load each way.
pub const XSK_FRAMES: u32 = 4096;
/// Highest packet rate: one packet takes at least a nanosecond.
pub const RATE_MAX: u64 = 1_000_000_000;
/// Largest burst in packets.
pub const BURST_MAX: u64 = 1_000_000;

/// Everything that the daemon is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `[api]`.
    pub api: Api,
    /// `[wan]`.
    pub wan: Wan,
    /// `[lan]`.
    pub lan: Lan,
    /// `[xsk]`.
    pub xsk: Xsk,
    /// `[tun]`.
    pub tun: Tun,
    /// `[workers]`.
    pub workers: Workers,
    /// `[routing]`.
    pub routing: Routing,
    /// `[bpf]`.
    pub bpf: Bpf,
    /// Whether packets from one peer may go on to another one.
    pub transit: bool,
    /// Absolute path of the file with measured costs of the ports; without that file built-in figures serve.
    pub calibration: PathBuf,
    /// `[fault]`; absent in operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// Where the control plane finds us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Api {
    /// Absolute path of the SOCK_SEQPACKET socket, at most [`SOCKET_PATH_LEN_MAX`] bytes.
    pub socket: PathBuf,
}

/// The underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wan {
    /// Name of the interface that `wan` is attached to.
    pub interface: String,
    /// UDP port, not zero.
    pub port: u16,
    /// How many ports after `port` workers may have for themselves, at most [`LANE_PORTS_MAX`].
    pub lane_ports: u8,
    /// How `wan` is attached.
    pub attach: Attach,
    /// Which port moves datagrams.
    pub io: WanIo,
    /// What datagrams show of the DSCP of the packets in them.
    pub dscp: Dscp,
    /// Microseconds of `SO_BUSY_POLL` on the sockets, at most [`BUSY_POLL_MAX`]; zero leaves it to the system.
    pub busy_poll_us: u32,
    /// What datagrams are received by.
    pub rx: WanPort,
    /// What datagrams are sent by.
    pub tx: WanPort,
    /// Datagrams per second that one source may send besides live data; zero means no limit.
    pub source_rate_pps: u64,
    /// Datagrams that one source may send back to back, at least one.
    pub source_burst: u64,
    /// Datagrams per second of each class that all sources together may send; zero means no limit.
    pub class_rate_pps: u64,
    /// Sources that are refused. Empty when nothing is attached.
    pub deny: Vec<Prefix>,
}

/// The networks behind us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lan {
    /// Names of their interfaces.
    pub interfaces: Vec<String>,
    /// How `lan` is attached.
    pub attach: Attach,
    /// What packets from the LANs are received by.
    pub rx: LanPort,
    /// What packets to the LANs are sent by.
    pub tx: LanPort,
    /// Whether the kernel merges small UDP packets on these interfaces while the plane runs (`rx-udp-gro-forwarding`).
    pub gro_forwarding: bool,
}

/// The AF_XDP sockets, where a port is `xsk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Xsk {
    /// Whether the kernel may copy frames.
    pub mode: XskMode,
    /// Frames of each socket, half to receive and half to send: a power of two between
    /// [`FRAMES_MIN`](crate::io::xsk::FRAMES_MIN) and [`FRAMES_MAX`](crate::io::xsk::FRAMES_MAX). One takes 4 KiB of locked memory.
    pub frames: u32,
    /// Microseconds of `SO_BUSY_POLL` on the sockets, at most [`BUSY_POLL_MAX`]; zero leaves the device to its interrupts.
    pub busy_poll_us: u32,
}

/// Whether the kernel copies between a device's buffers and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XskMode {
    /// Not where every device can do without.
    Auto,
    /// Never: devices that cannot do without are refused.
    Zerocopy,
    /// Always.
    Copy,
}

/// The TUN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tun {
    /// Name of the device.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Its MTU in bytes, [`MTU_MIN`]..=[`MTU_MAX`].
    pub mtu: u16,
    /// Whether the kernel may leave cutting and checksums to us.
    pub offload: TunOffload,
}

/// The worker threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workers {
    /// Where they run.
    pub cores: Cores,
    /// What they do when nothing waits.
    pub latency: Latency,
}

/// eBPF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bpf {
    /// Absolute path of the directory that maps and links are pinned in; nothing is pinned without one.
    pub pin: Option<PathBuf>,
    /// Absolute path of an eBPF object to load in place of the built-in one, for whoever develops the programs.
    pub object: Option<PathBuf>,
}

/// A bad network on purpose between the workers and the underlay, for tests; never in operation. Workers with it send and receive datagram
/// by datagram, and copy each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Which datagrams it strikes.
    pub direction: FaultDirection,
    /// How bad it is.
    #[serde(flatten)]
    pub plan: FaultPlan,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            FaultDirection::Rx => "what is received",
            FaultDirection::Tx => "what is sent",
            FaultDirection::Both => "what is sent and received",
        };
        write!(f, "A BAD NETWORK ON PURPOSE, for tests and never in operation: {direction}, {}", self.plan)
    }
}

/// Which datagrams of the underlay a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultDirection {
    /// Those that come in.
    Rx,
    /// Those that go out.
    Tx,
    /// All.
    Both,
}

/// How a program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// As fits driver and port.
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP in the network stack.
    Generic,
    /// At tc ingress.
    Tc,
    /// Not at all.
    None,
}

/// Whether superpackets and incomplete checksums pass the TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunOffload {
    /// As far as the kernel grants it.
    Auto,
    /// Never: every packet is as it would be on a wire.
    Off,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
            Self::None => "none",
        })
    }
}

/// Which port moves datagrams of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WanIo {
    /// io_uring where the kernel has what it needs, else mmsg.
    Auto,
    /// io_uring.
    Uring,
    /// recvmmsg, sendmmsg and epoll.
    Mmsg,
}

/// What a worker does when nothing waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Latency {
    /// Polls on for as long as that tends to find something before a wake would have cost more, then sleeps.
    Balanced,
    /// Never sleeps: its core is busy always.
    Spin,
}

/// By what datagrams of the underlay go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WanPort {
    /// As fits device and costs.
    Auto,
    /// UDP sockets, with GSO and GRO.
    Socket,
    /// AF_XDP sockets.
    Xsk,
}

impl fmt::Display for WanPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Socket => "socket",
            Self::Xsk => "xsk",
        })
    }
}

/// By what packets of the LANs go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LanPort {
    /// As fits devices, costs and what the kernel's router does besides routing.
    Auto,
    /// The TUN: the kernel routes.
    Tun,
    /// AF_XDP sockets: past the kernel's router.
    Xsk,
}

impl fmt::Display for LanPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tun => "tun",
            Self::Xsk => "xsk",
        })
    }
}

/// Which cores the workers are pinned to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cores {
    /// One worker on each physical core of those that fit, at most [`WORKERS_MAX`](weir_abi::map::WORKERS_MAX).
    Auto,
    /// One worker on each of these: different ones, 1..=[`WORKERS_MAX`](weir_abi::map::WORKERS_MAX) of them.
    List(Vec<u16>),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or says something that cannot be.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        file::load(file, |document, _| read::config(document))
    }

    /// Checks the text of a file; the path is for errors only.
    ///
    /// # Errors
    /// [`ConfigError`] when the text says something that cannot be.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        file::parse(file, text, |document, _| read::config(document))
    }
}

#[cfg(test)]
mod tests {
    use weir_abi::map::WORKERS_MAX;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("weir.toml"), text).map_err(|error| error.to_string())
    }

    /// Parses what follows the one required line.
    fn with(text: &str) -> Result<Config, String> {
        parse(&format!("[wan]\ninterface = \"eth0\"\n{text}"))
    }

    #[track_caller]
    fn refused(text: &str, message: &str) {
        let error = with(text).expect_err(text);
        assert_eq!(error, message);
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn one_line_is_enough() {
        let config = with("").unwrap();
        assert_eq!(config.api.socket, Path::new("/run/weir/plane.sock"));
        assert_eq!(config.wan.interface, "eth0");
        assert_eq!((config.wan.port, config.wan.attach, config.wan.io), (4646, Attach::Auto, WanIo::Auto));
        assert_eq!((config.tun.name.as_str(), config.tun.mtu, config.tun.offload), ("weir0", 1420, TunOffload::Auto));
        assert_eq!((config.wan.lane_ports, config.wan.busy_poll_us), (0, 0));
        assert_eq!((config.workers.cores, config.workers.latency), (Cores::Auto, Latency::Balanced));
        assert_eq!((config.routing.table, config.routing.mark, config.routing.rule_priority), (7770, 0x7765, 7770));
        assert_eq!((config.bpf.pin, config.transit, config.fault), (None, false, None));
        assert_eq!(config.xsk, Xsk { mode: XskMode::Auto, frames: 4096, busy_poll_us: 0 });
    }

    #[test]
    fn the_example_says_every_key_and_is_read_as_it_is_written() {
        let text = include_str!("../../docs/examples/weir-dataplane.toml");
        let config = Config::parse(Path::new("example"), text).unwrap();
        assert_eq!(config.wan.deny, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(config.tun.addresses.len(), 2);
        assert_eq!(config.tun.addresses[0].to_string(), "10.200.0.1/24");
        let shown = serde_json::to_value(&config).unwrap();
        for (section, keys) in shown.as_object().unwrap() {
            for key in keys.as_object().map(|keys| keys.keys().collect::<Vec<_>>()).unwrap_or(vec![section]) {
                assert!(text.contains(&format!("{key} = ")), "{section}.{key} is not in the example");
            }
        }
    }

    #[test]
    fn the_example_shows_faults_behind_comment_signs_only() {
        let text = include_str!("../../docs/examples/weir-dataplane.toml");
        assert_eq!(Config::parse(Path::new("example"), text).unwrap().fault, None);
        let (before, section) = text.split_once("# [fault]").unwrap();
        let bare: Vec<_> = section.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
        let text = format!("{before}[fault]{}", bare.join("\n"));
        let plan = FaultPlan { seed: 1, loss: 100, duplication: 50, reordering: 200, truncation: 10, flips: 10 };
        let fault = Config::parse(Path::new("example"), &text).unwrap().fault;
        assert_eq!(fault, Some(Fault { direction: FaultDirection::Both, plan }));
        let shown = serde_json::to_value(fault).unwrap();
        for key in shown.as_object().unwrap().keys() {
            assert!(section.contains(&format!("# {key} = ")), "fault.{key} is not in the example");
        }
    }

    #[test]
    fn faults_are_as_many_as_there_are_datagrams_at_most() {
        let quiet = Fault { direction: FaultDirection::Both, plan: FaultPlan::default() };
        assert_eq!(with("[fault]").unwrap().fault, Some(quiet));
        let told = with("[fault]\ndirection = \"rx\"\nloss = 10000").unwrap().fault.unwrap();
        assert_eq!((told.direction, told.plan.loss), (FaultDirection::Rx, 10_000));
        assert!(told.to_string().contains("never in operation") && told.to_string().contains("10000 lost"), "{told}");
        for key in ["loss", "duplication", "reordering", "truncation", "flips"] {
            assert!(with(&format!("[fault]\n{key} = 10001")).unwrap_err().contains("between 0 and 10000"), "{key}");
        }
        refused(
            "[fault]\ndirection = \"in\"",
            "weir.toml:4:13: `fault.direction`: \"in\" is no direction: write \"rx\", \"tx\" or \"both\"",
        );
    }

    #[test]
    fn the_required_key_is_asked_for() {
        let message = "weir.toml: `wan.interface` is missing: \
                       add interface = \"eth0\" below [wan], with the name that `ip link` shows";
        assert_eq!(parse("").unwrap_err(), message);
        assert_eq!(parse("[wan]\nport = 1").unwrap_err(), message);
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_known_one() {
        refused("prot = 4646", "weir.toml:3:1: unknown key `wan.prot`: did you mean `wan.port`?");
        refused(
            "[lan]\n  interface = []",
            "weir.toml:4:3: unknown key `lan.interface`: did you mean `lan.interfaces`?",
        );
        refused("[rooting]", "weir.toml:3:2: unknown key `rooting`: did you mean `routing`?");
        refused("\"po\\nrt\" = 1", "weir.toml:3:1: unknown key `wan.po\\nrt`: did you mean `wan.port`?");
        refused("[api]\nxylophone = 1", "weir.toml:4:1: unknown key `api.xylophone`: remove it");
    }

    #[test]
    fn wrong_types_are_named() {
        refused("port = \"4646\"", "weir.toml:3:8: `wan.port` is a string: write a whole number");
        refused("attach = 1", "weir.toml:3:10: `wan.attach` is a whole number: write a string in quotes");
        refused("deny = [1]", "weir.toml:3:9: `wan.deny` is a whole number: write a string in quotes");
        refused(
            "[workers]\ncores = 1.5",
            "weir.toml:4:9: `workers.cores` is a number with a fraction: write a list of whole numbers, as in [1, 2]",
        );
        assert_eq!(
            parse("wan = 3").unwrap_err(),
            "weir.toml:1:7: `wan` is a whole number: write a [section] of its own"
        );
        assert_eq!(
            parse("transit = 0\nwan.interface = \"e\"").unwrap_err(),
            "weir.toml:1:11: `transit` is a whole number: write true or false"
        );
    }

    #[test]
    fn words_that_are_no_choice_are_answered_with_the_choices() {
        for (text, choices) in [
            ("attach = \"xdp\\n\"", "\"native\", \"generic\", \"tc\" or \"none\""),
            ("io = \"epoll\"", "\"auto\", \"uring\" or \"mmsg\""),
            ("[tun]\noffload = \"on\"", "\"auto\" or \"off\""),
            ("[workers]\nlatency = \"low\"", "\"balanced\" or \"spin\""),
            ("rx = \"tun\"", "\"auto\", \"socket\" or \"xsk\""),
            ("[xsk]\nmode = \"zero-copy\"", "\"auto\", \"zerocopy\" or \"copy\""),
            ("[lan]\ntx = \"socket\"", "\"auto\", \"tun\" or \"xsk\""),
            ("[lan]\nattach = \"\"", "\"native\", \"generic\", \"tc\" or \"none\""),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.ends_with(choices) && error.lines().count() == 1, "{error}");
        }
        for (word, attach) in [("native", Attach::Native), ("generic", Attach::Generic), ("tc", Attach::Tc)] {
            assert_eq!(with(&format!("attach = \"{word}\"")).unwrap().wan.attach, attach);
        }
        assert_eq!(with("io = \"mmsg\"").unwrap().wan.io, WanIo::Mmsg);
        assert_eq!(with("io = \"uring\"").unwrap().wan.io, WanIo::Uring);
        let config =
            with("rx = \"xsk\"\ntx = \"socket\"\n[lan]\ninterfaces = [\"eth1\"]\nrx = \"tun\"\ntx = \"xsk\"").unwrap();
        assert_eq!((config.wan.rx, config.wan.tx), (WanPort::Xsk, WanPort::Socket));
        assert_eq!((config.lan.rx, config.lan.tx), (LanPort::Tun, LanPort::Xsk));
        assert!(config.lan.gro_forwarding && !with("[lan]\ngro_forwarding = false").unwrap().lan.gro_forwarding);
        assert_eq!(with("[tun]\noffload = \"off\"").unwrap().tun.offload, TunOffload::Off);
        assert_eq!(with("[tun]\noffload = \"auto\"").unwrap().tun.offload, TunOffload::Auto);
        assert_eq!(with("[workers]\nlatency = \"spin\"").unwrap().workers.latency, Latency::Spin);
        assert_eq!(with("[workers]\nlatency = \"balanced\"").unwrap().workers.latency, Latency::Balanced);
        assert_eq!(with("").unwrap().wan.dscp, Dscp::Clear);
        assert_eq!(with("dscp = \"copy\"").unwrap().wan.dscp, Dscp::Copy);
        assert_eq!(with("dscp = \"clear\"").unwrap().wan.dscp, Dscp::Clear);
        let answer = "weir.toml:3:8: `wan.dscp`: \"keep\" is no DSCP policy: write \"copy\" or \"clear\"";
        refused("dscp = \"keep\"", answer);
    }

    #[test]
    fn lane_ports_end_where_ports_do() {
        assert_eq!(with("port = 65520\nlane_ports = 15").unwrap().wan.lane_ports, 15);
        refused(
            "port = 65521\nlane_ports = 15",
            "weir.toml:4:14: `wan.lane_ports`: there are only 14 ports after 65521: choose fewer, or a lower wan.port",
        );
    }

    #[test]
    fn broken_toml_names_line_and_column() {
        for text in ["port = ", "port = 1\nport = 2", "[wan", "x = \"\u{7}\"", "= 1", "[[wan]]"] {
            let error = with(text).unwrap_err();
            assert!(error.starts_with("weir.toml:3:") || error.starts_with("weir.toml:4:"), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error:?}");
        }
    }

    #[test]
    fn numbers_are_taken_at_their_limits_and_refused_beyond() {
        let cases: &[(&str, u64, u64)] = &[
            ("port", 1, 65535),
            ("lane_ports", 0, 15),
            ("busy_poll_us", 0, 1000),
            ("source_rate_pps", 0, RATE_MAX),
            ("source_burst", 1, BURST_MAX),
            ("class_rate_pps", 0, RATE_MAX),
            ("[tun]\nmtu", 1280, 65455),
            ("[routing]\ntable", 1, u32::MAX.into()),
            ("[routing]\nmark", 1, u32::MAX.into()),
            ("[routing]\nrule_priority", 1, 32765),
            ("[routing]\nmetric", 2, u64::from(u32::MAX) - 1),
        ];
        for &(key, min, max) in cases {
            for good in [min, min + 1, max - 1, max] {
                assert!(with(&format!("{key} = {good}")).is_ok(), "{key} = {good}");
            }
            for bad in [min as i128 - 1, max as i128 + 1, i128::from(i64::MAX), -1] {
                let error = with(&format!("{key} = {bad}")).unwrap_err();
                assert!(error.contains(&format!("it must be between {min} and {max}")), "{key} = {bad}: {error}");
            }
        }
        assert_eq!(with("[routing]\nmark = 0x7766").unwrap().routing.mark, 0x7766);
    }

    #[test]
    fn tables_of_the_kernel_are_refused() {
        for (table, fits) in [(252, true), (253, false), (254, false), (255, false), (256, true)] {
            assert_eq!(with(&format!("[routing]\ntable = {table}")).is_ok(), fits, "{table}");
        }
    }

    #[test]
    fn names_and_paths_are_taken_at_their_limits_and_refused_beyond() {
        let name = |len: usize| format!("[tun]\nname = \"{}\"", "n".repeat(len));
        assert!(with(&name(15)).is_ok());
        for text in [name(16), name(0)]
            .into_iter()
            .chain(["..", ".", "a/b", "a b", "a:b", "weir%d", "ü"].map(|odd| format!("[tun]\nname = \"{odd}\"")))
        {
            assert!(with(&text).is_err(), "{text}");
        }
        let socket = |len: usize| format!("[api]\nsocket = \"/{}\"", "s".repeat(len - 1));
        assert!(with(&socket(107)).is_ok());
        assert!(with(&socket(108)).is_err());
        refused("[bpf]\npin = \"weir\"", "weir.toml:4:7: `bpf.pin`: \"weir\" is not an absolute path: begin it with /");
    }

    #[test]
    fn lists_are_taken_at_their_limits_and_refused_beyond() {
        let cores = |count: u8| format!("[workers]\ncores = {:?}", (0..count).collect::<Vec<_>>());
        assert!(with(&cores(1)).is_ok());
        assert!(with(&cores(WORKERS_MAX)).is_ok());
        assert!(with(&cores(0)).is_err());
        assert!(with(&cores(WORKERS_MAX + 1)).is_err());
        assert!(with("[workers]\ncores = [1023]").is_ok());
        assert!(with("[workers]\ncores = [1024]").is_err());
        assert!(with("[workers]\ncores = [1, 2, 1]").unwrap_err().contains("twice"));
        assert!(with("[workers]\ncores = \"all\"").unwrap_err().contains("\"auto\""));

        let prefixes = |count: usize| {
            let list: Vec<_> = (0..count).map(|i| format!("10.{}.{}.0/24", i >> 8, i & 255)).collect();
            format!("[routing]\nprefixes = {list:?}")
        };
        assert_eq!(with(&prefixes(PREFIXES_MAX)).unwrap().routing.prefixes.len(), PREFIXES_MAX);
        assert!(with(&prefixes(PREFIXES_MAX + 1)).unwrap_err().contains("at most 1024"));
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        refused(
            "deny = [\"198.51.100.0/24\",\n \"10.0.0.1/8\"]",
            "weir.toml:4:2: `wan.deny`: \"10.0.0.1/8\": 10.0.0.1 has bits set behind its prefix length of 8",
        );
        for (key, value) in [
            ("addresses", "10.0.0.1/33"),
            ("addresses", "10.0.0.1"),
            ("addresses", "127.0.0.1/8"),
            ("addresses", "::/64"),
            ("addresses", "224.0.0.1/4"),
        ] {
            assert!(with(&format!("[tun]\n{key} = [\"{value}\"]")).is_err(), "{value}");
        }
        for value in ["127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16", "fe80::/10", "ff00::/8", "10.0.0.1/8", "x"] {
            assert!(with(&format!("[routing]\nprefixes = [\"{value}\"]")).is_err(), "{value}");
        }
        for value in ["0.0.0.0/0", "::/0", "169.0.0.0/8", "fd00::/8", "192.0.2.1/32"] {
            assert!(with(&format!("[routing]\nprefixes = [\"{value}\"]")).is_ok(), "{value}");
        }
        assert!(with("[routing]\nprefixes = [\"10.0.0.0/8\", \"10.0.0.0/8\"]").unwrap_err().contains("twice"));
    }

    #[test]
    fn interfaces_keep_to_one_duty() {
        assert!(with("[lan]\ninterfaces = [\"eth1\", \"eth2\"]").is_ok());
        refused(
            "[lan]\ninterfaces = [\"eth1\", \"eth0\"]",
            "weir.toml:4:14: `lan.interfaces`: eth0 is the WAN interface: one interface cannot be both",
        );
        assert!(with("[tun]\nname = \"eth0\"").is_err());
        assert!(with("[lan]\ninterfaces = [\"weir0\"]").unwrap_err().contains("tun.name"));
    }

    #[test]
    fn af_xdp_is_refused_where_it_cannot_be() {
        for (text, message) in [
            ("attach = \"tc\"\nrx = \"xsk\"", "4:6: `wan.rx`: AF_XDP receives from XDP"),
            (
                "[lan]\ninterfaces = [\"eth1\"]\nattach = \"none\"\nrx = \"xsk\"",
                "6:6: `lan.rx`: AF_XDP receives from XDP",
            ),
            ("[lan]\ntx = \"xsk\"", "4:6: `lan.tx`: there is no LAN interface"),
            ("[xsk]\nframes = 255", "4:10: `xsk.frames` is 255: it must be between 256 and 65536"),
            ("[xsk]\nframes = 65537", "4:10: `xsk.frames` is 65537: it must be between 256 and 65536"),
            ("[xsk]\nframes = 300", "4:10: `xsk.frames`: 300 is no power of two: write 256 or 512"),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.starts_with(&format!("weir.toml:{message}")) && error.lines().count() == 1, "{error}");
        }
        assert_eq!(with("[xsk]\nframes = 65536\nmode = \"copy\"").unwrap().xsk.frames, 65536);
    }

    #[test]
    fn a_deny_list_that_nothing_enforces_is_refused() {
        assert!(with("attach = \"tc\"\ndeny = [\"192.0.2.0/24\"]").is_ok());
        assert!(with("attach = \"none\"\ndeny = []").is_ok());
        assert!(with("attach = \"tc\"\ndeny = [\"::/0\", \"0.0.0.0/0\"]").is_ok());
        let mapped = with("attach = \"tc\"\ndeny = [\"::ffff:10.0.0.0/104\"]").unwrap_err();
        assert!(mapped.contains("write them as 10.0.0.0/8"), "{mapped}");
        assert!(with("attach = \"none\"\ndeny = [\"192.0.2.0/24\"]").unwrap_err().contains("wan.attach"));
    }

    #[test]
    fn files_that_are_no_configuration_are_refused() {
        let file = std::env::temp_dir().join(format!("weir-config-{}.toml", std::process::id()));
        let load = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let result = Config::load(&file).map_err(|error| error.to_string());
            std::fs::remove_file(&file).unwrap();
            result
        };
        let mut text = b"wan.interface = \"eth0\"\n".to_vec();
        text.resize(FILE_LEN_MAX as usize, b'\n');
        assert!(load(&text).is_ok());
        text.push(b'\n');
        assert!(load(&text).unwrap_err().contains("is longer than 1048576 bytes"));
        assert!(load(b"a = 1\nb = \"\xff\"").unwrap_err().contains(":2:6: not valid TOML"));
        let missing = Config::load(&file).unwrap_err();
        assert!(missing.to_string().contains("cannot be read"), "{missing}");
        assert!(Config::load(Path::new("/")).is_err());
    }
}
