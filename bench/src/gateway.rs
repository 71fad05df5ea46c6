//! A `weir-dataplane` process inside a gateway's namespace: configured, started, watched, killed, stopped.
//!
//! ```text
//!   start ─▶ running ─── stop (SIGTERM) ──▶ stopped     TUN, links, socket gone: the process removes them
//!               │  ▲
//!         kill9 ▼  │ restart
//!              killed                                   whatever a process leaves that had no time for anything
//! ```
//!
//! Its configuration, its log and its socket live in a directory of its own below the temporary one. A [`Gateway`] owns its process by id:
//! dropping it stops the process, and a process whose bench dies is told by the kernel. It knows nothing of sessions: see [`crate::pair`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use weir_dataplane::api::message::{Counters, DumpItem};
use weir_dataplane::api::{Client, Prefix};
use weir_dataplane::config::{Attach, WanIo};

use crate::rig::{Host, Namespace};
use crate::sys::{fd, signal};
use crate::{Error, Result};

/// The UDP port of every gateway.
pub const PORT: u16 = 4646;
/// The TUN of every gateway.
pub const TUN: &str = "weir0";
/// The routing table and rule priority of every gateway.
pub const TABLE: u32 = 7770;
/// How long a start may take: loading eBPF programs takes a second on a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a clean stop may take before the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a start or a stop is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How a gateway is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// How `wan` is attached.
    pub attach: Attach,
    /// What moves datagrams.
    pub io: WanIo,
    /// Cores of the workers; empty leaves the choice to the program.
    pub cores: Vec<u16>,
    /// Addresses of the TUN with their prefix lengths, as in `10.200.0.1/24`.
    pub tun_addresses: Vec<String>,
    /// Prefixes that belong to the overlay.
    pub prefixes: Vec<Prefix>,
    /// Directory for pins, inside a mounted bpf file system.
    pub pin: Option<PathBuf>,
    /// Let the process live on when the bench ends.
    pub outlive: bool,
    /// Further keys of the file with their values in TOML, as in `("wan.io", "\"uring\"")`. They win over what the fields above say.
    pub settings: Vec<(String, String)>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            attach: Attach::Auto,
            io: WanIo::Auto,
            cores: Vec::new(),
            tun_addresses: Vec::new(),
            prefixes: Vec::new(),
            pin: None,
            outlive: false,
            settings: Vec::new(),
        }
    }
}

impl GatewayConfig {
    /// The configuration file.
    pub fn toml<'a>(&'a self, socket: &Path) -> String {
        let quoted = |texts: Vec<String>| texts.iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>().join(", ");
        let attach = match self.attach {
            Attach::Auto => "auto",
            Attach::Native => "native",
            Attach::Generic => "generic",
            Attach::Tc => "tc",
            Attach::None => "none",
        };
        let io = match self.io {
            WanIo::Auto => "auto",
            WanIo::Uring => "uring",
            WanIo::Mmsg => "mmsg",
        };
        let mut sections = BTreeMap::<&str, BTreeMap<&str, String>>::new();
        let mut set = |key: &'a str, value: String| {
            let (section, name) = key.split_once('.').unwrap_or(("", key));
            sections.entry(section).or_default().insert(name, value);
        };
        set("api.socket", format!("\"{}\"", socket.display()));
        set("wan.interface", "\"wan\"".into());
        set("wan.port", PORT.to_string());
        set("wan.attach", format!("\"{attach}\""));
        set("wan.io", format!("\"{io}\""));
        set("lan.interfaces", "[\"lan\"]".into());
        set("tun.name", format!("\"{TUN}\""));
        set("tun.addresses", format!("[{}]", quoted(self.tun_addresses.clone())));
        set("routing.table", TABLE.to_string());
        set("routing.prefixes", format!("[{}]", quoted(self.prefixes.iter().map(ToString::to_string).collect())));
        if !self.cores.is_empty() {
            set("workers.cores", format!("{:?}", self.cores));
        }
        if let Some(pin) = &self.pin {
            set("bpf.pin", format!("\"{}\"", pin.display()));
        }
        for (key, value) in &self.settings {
            set(key, value.clone());
        }
        let mut text = String::new();
        for (section, keys) in sections {
            // Writing to a string does not fail. Keys without a section come first, since "" sorts before all others.
            let _ = if section.is_empty() { Ok(()) } else { writeln!(text, "\n[{section}]") };
            keys.iter().for_each(|(name, value)| text += &format!("{name} = {value}\n"));
        }
        text
    }
}

/// A gateway's process and its files.
pub struct Gateway<'a> {
    host: &'a Host,
    config: GatewayConfig,
    directory: PathBuf,
    child: Option<Child>,
    client: Option<Client>,
    control_sockets: Vec<OwnedFd>,
}

impl<'a> Gateway<'a> {
    /// Starts a process on a host of the rig and waits until its socket accepts.
    ///
    /// # Errors
    /// [`Error::NoDataplane`] without the program, [`Error::GatewayStart`] with what the process said, [`Error::Io`].
    pub fn start(host: &'a Host, config: GatewayConfig) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", host.name(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).map_err(Error::io(format!("cannot make {}", directory.display())))?;
        let mut gateway = Self { host, config, directory, child: None, client: None, control_sockets: vec![] };
        gateway.write_config()?;
        gateway.restart()?;
        Ok(gateway)
    }

    fn write_config(&self) -> Result<()> {
        let file = self.config_file();
        fs::write(&file, self.config.toml(&self.socket()))
            .map_err(Error::io(format!("cannot write {}", file.display())))
    }

    /// Starts the process once more, with the same configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    ///
    /// # Panics
    /// When the process is still running.
    pub fn restart(&mut self) -> Result<()> {
        assert!(self.child.is_none(), "the process is still running");
        let log = File::create(self.log_file()).map_err(Error::io("cannot make the log of weir-dataplane"))?;
        let mut command = dataplane(self.host)?;
        command.arg("run").arg("--config").arg(self.config_file());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if !self.control_sockets.is_empty() {
            let numbers: Vec<_> = self.control_sockets.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
            command.arg("--control-sockets").arg(numbers.join(","));
            fd::pass_on(&mut command, &self.control_sockets);
        }
        if !self.config.outlive {
            signal::end_with_parent(&mut command);
        }
        self.child = Some(command.spawn().map_err(Error::io("cannot start weir-dataplane"))?);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(client) = Client::connect(&self.socket(), "weir-bench") {
                self.client = Some(client);
                return Ok(());
            }
            let ended = match &mut self.child {
                Some(child) => child.try_wait().map_err(Error::io("cannot wait for weir-dataplane"))?,
                None => None,
            };
            if let Some(status) = ended {
                self.child = None;
                return Err(self.not_started(&format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.not_started("is not ready after 20 s"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn not_started(&self, how: &str) -> Error {
        let said = self.log();
        Error::GatewayStart { gateway: self.host.name().to_owned(), how: how.to_owned(), said: said.trim().to_owned() }
    }

    /// The host that it runs on.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// The API connection.
    ///
    /// # Errors
    /// [`Error::GatewayGone`] when the process is not running.
    pub fn client(&mut self) -> Result<&mut Client> {
        let gateway = self.host.name();
        self.client.as_mut().ok_or_else(|| Error::GatewayGone { gateway: gateway.to_owned() })
    }

    /// A second API connection.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn connect(&self) -> Result<Client> {
        Client::connect(&self.socket(), "weir-bench").map_err(Error::from)
    }

    /// Takes the plane's control sockets over, as a control plane does, and keeps them: the next start hands them back.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`].
    pub fn take_control_sockets(&mut self) -> Result<&[OwnedFd]> {
        self.control_sockets = self.client()?.take_control_sockets()?;
        Ok(&self.control_sockets)
    }

    /// All counters.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`].
    pub fn counters(&mut self) -> Result<Counters> {
        Ok(self.client()?.counters()?)
    }

    /// What the plane says of itself: ports and attach modes in use, by name.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::GatewayGone`].
    pub fn facts(&mut self) -> Result<Vec<(String, String)>> {
        let items = self.client()?.dump()?;
        Ok(items
            .into_iter()
            .filter_map(|item| if let DumpItem::Plane(facts) = item { Some(facts) } else { None })
            .flatten()
            .collect())
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Names of the process's threads.
    ///
    /// # Errors
    /// [`Error::GatewayGone`], [`Error::Io`].
    pub fn threads(&self) -> Result<Vec<String>> {
        let pid = self.pid().ok_or_else(|| Error::GatewayGone { gateway: self.host.name().to_owned() })?;
        let failed = || Error::io(format!("cannot read the threads of process {pid}"));
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(failed())?;
        let mut names = Vec::new();
        for task in tasks {
            let name = fs::read_to_string(task.map_err(failed())?.path().join("comm")).map_err(failed())?;
            names.push(name.trim_end().to_owned());
        }
        Ok(names)
    }

    /// Packets that the kernel could not queue to the TUN.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tun_queue_drops(&self) -> Result<u64> {
        tun_queue_drops(self.host)
    }

    /// Datagrams, or trains of them, that found a UDP socket's buffer full, for either family. The namespace has no other UDP sockets.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn udp_buffer_drops(&self) -> Result<u64> {
        let read = |file: &'static str| {
            self.host
                .enter(move || fs::read_to_string(format!("/proc/thread-self/net/{file}")))?
                .map_err(Error::io(format!("cannot read /proc/net/{file}")))
        };
        Ok(udp_buffer_errors(&read("snmp")?, &read("snmp6")?))
    }

    /// What the process wrote since it was started last.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("plane.sock")
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("weir-dataplane.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Kills the process without a chance to clean up.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kill9(&mut self) -> Result<()> {
        self.client = None;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map(drop).map_err(Error::io("cannot kill weir-dataplane"))
    }

    /// Ends the process by SIGTERM, and by SIGKILL when it takes too long; tells how it ended.
    ///
    /// # Errors
    /// [`Error::GatewayGone`] when it does not run, [`Error::GatewayStop`] when it had to be killed, [`Error::Io`].
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.client = None;
        let gateway = || self.host.name().to_owned();
        let Some(mut child) = self.child.take() else { return Err(Error::GatewayGone { gateway: gateway() }) };
        let failed = || Error::io("cannot stop weir-dataplane");
        signal::terminate(child.id()).map_err(failed())?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().map_err(failed())? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        child.kill().and_then(|()| child.wait()).map_err(failed())?;
        Err(Error::GatewayStop { gateway: gateway(), said: self.log().trim().to_owned() })
    }

    /// Runs `weir-dataplane purge`, which removes what stays by design after a clean stop.
    ///
    /// # Errors
    /// [`Error::ProgramFailed`], [`Error::NoDataplane`], [`Error::Io`].
    pub fn purge(&self) -> Result<()> {
        let mut command = dataplane(self.host)?;
        let output = command
            .arg("purge")
            .arg("--config")
            .arg(self.config_file())
            .output()
            .map_err(Error::io("cannot run weir-dataplane purge"))?;
        if output.status.success() {
            return Ok(());
        }
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::ProgramFailed { program: "weir-dataplane purge", detail })
    }

    /// Leaves process and files in place.
    pub fn keep(mut self) {
        self.child = None;
        self.directory = PathBuf::new();
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if self.directory.as_os_str().is_empty() {
            return;
        }
        if self.child.is_some() {
            match self.stop() {
                Ok(status) if status.success() => {}
                Ok(status) if status.signal().is_some() => {
                    eprintln!("weir-bench: {} was ended by {status}", self.host.name())
                }
                Ok(status) => eprintln!("weir-bench: {} ended with {status}: {}", self.host.name(), self.log().trim()),
                Err(error) => eprintln!("weir-bench: {error}"),
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("weir-bench: cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// A command for `weir-dataplane` inside a namespace.
///
/// # Errors
/// [`Error::NoDataplane`] when the program is not found.
pub fn dataplane(namespace: &Namespace) -> Result<Command> {
    let program = find_dataplane()?;
    Ok(namespace.command(&program.to_string_lossy()))
}

/// The program: `WEIR_DATAPLANE`, or what stands beside this executable or, for one of cargo's tests, above it.
fn find_dataplane() -> Result<PathBuf> {
    const NAME: &str = "weir-dataplane";
    if let Some(path) = std::env::var_os("WEIR_DATAPLANE") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().map_err(Error::io("cannot tell where this program is"))?;
    let candidates = this.ancestors().skip(1).take(2).map(|directory| directory.join(NAME));
    candidates.into_iter().find(|path| path.is_file()).ok_or(Error::NoDataplane)
}

/// Packets that the kernel of a gateway could not queue to the TUN.
///
/// # Errors
/// [`Error::Io`].
pub fn tun_queue_drops(gateway: &Namespace) -> Result<u64> {
    let text = gateway.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let text = text.map_err(Error::io("cannot read /proc/net/dev"))?;
    // Eight columns of what was received come before what was sent: bytes, packets, errors, drops.
    let columns = text.lines().find_map(|line| line.trim_start().strip_prefix(TUN)?.strip_prefix(':'));
    Ok(columns.and_then(|c| c.split_whitespace().nth(11)?.parse().ok()).unwrap_or(0))
}

/// `RcvbufErrors` of both families: in `snmp` a line of names and one of numbers, in `snmp6` a name and a number a line.
fn udp_buffer_errors(snmp: &str, snmp6: &str) -> u64 {
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp:")).map(str::split_whitespace);
    let v4 = udp.next().zip(udp.next()).and_then(|(mut names, mut numbers)| {
        let column = names.position(|name| name == "RcvbufErrors")?;
        numbers.nth(column)?.parse::<u64>().ok()
    });
    let v6 = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")?.trim().parse::<u64>().ok());
    v4.unwrap_or(0) + v6.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use weir_dataplane::config::Config;

    use super::*;

    #[test]
    fn buffer_errors_of_both_families_are_summed() {
        let snmp = "Tcp: RtoAlgorithm\nTcp: 1\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 10 2 30 4\nUdpLite: RcvbufErrors\nUdpLite: 9\n";
        let snmp6 = "Udp6InDatagrams                 7\nUdp6RcvbufErrors                12\n";
        assert_eq!(udp_buffer_errors(snmp, snmp6), 42);
        assert_eq!(udp_buffer_errors("", ""), 0);
    }

    #[test]
    fn every_configuration_is_one_that_the_daemon_reads() {
        let socket = Path::new("/tmp/x/plane.sock");
        for attach in [Attach::Auto, Attach::Native, Attach::Generic, Attach::Tc, Attach::None] {
            for io in [WanIo::Auto, WanIo::Uring, WanIo::Mmsg] {
                for cores in [vec![], vec![0], vec![0, 1]] {
                    let config = GatewayConfig {
                        attach,
                        io,
                        cores,
                        tun_addresses: vec!["10.200.0.1/24".to_owned()],
                        prefixes: vec!["10.0.0.0/8".parse().unwrap()],
                        pin: Some("/sys/fs/bpf/weir".into()),
                        outlive: false,
                        settings: vec![("tun.mtu".into(), "1300".into()), ("transit".into(), "true".into())],
                    };
                    let read = Config::parse(Path::new("test"), &config.toml(socket)).unwrap();
                    assert_eq!((read.wan.attach, read.wan.io, read.wan.port), (attach, io, PORT));
                    assert_eq!((read.api.socket.as_path(), read.tun.name.as_str()), (socket, TUN));
                    assert_eq!((read.routing.table, read.bpf.pin), (TABLE, config.pin));
                    assert_eq!((read.tun.mtu, read.transit), (1300, true));
                }
            }
        }
    }
}
