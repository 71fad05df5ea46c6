//! Other programs that do what Weir does, set up between the same gateways: three user-space WireGuards, Nebula and OpenVPN.
//!
//! Each gets what an operator would give it for two sites: one tunnel, an MTU of 1420, AES-256-GCM where it has a choice, both LANs routed
//! into it. Nothing else is tuned. Nebula 1.6 carries IPv4 only.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{Directory, Process};
use super::system::Workers;
use super::uapi::{Interface, KeyPair};
use crate::pair::{INNER_MTU, lans, tun_addresses};
use crate::rig::{Family, Host, Rig};
use crate::{Error, Result};

/// How long a program may take to make its interface or socket.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// UDP port of both ends.
const PORT: u16 = 51820;
/// Transmit queue of the TUN, packets: some milliseconds of small packets, where most programs leave 500.
pub(super) const QUEUE_LEN: u32 = 4096;
/// Where a user-space WireGuard puts its sockets, by convention of them all.
const SOCKETS: &str = "/var/run/wireguard";

/// A program that can be put in the gateways' place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Mullvad's WireGuard in Rust.
    Gotatun,
    /// Cloudflare's WireGuard in Rust.
    Boringtun,
    /// WireGuard in Go.
    WireGuardGo,
    /// Slack's overlay, on the Noise framework.
    Nebula,
    /// OpenVPN without its kernel module.
    OpenVpn,
}

/// Where a program comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The crate registry: name and version.
    Crate(&'static str, &'static str),
    /// Debian's package.
    Package(&'static str),
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Gotatun, Self::Boringtun, Self::WireGuardGo, Self::Nebula, Self::OpenVpn];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::WireGuardGo => "wireguard-go",
            Self::Nebula => "nebula",
            Self::OpenVpn => "openvpn",
        }
    }

    /// The program's file name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Boringtun => "boringtun-cli",
            _ => self.name(),
        }
    }

    /// Where to get it.
    pub const fn source(self) -> Source {
        match self {
            Self::Gotatun => Source::Crate("gotatun-cli", "0.10.2"),
            Self::Boringtun => Source::Crate("boringtun-cli", "0.7.1"),
            Self::WireGuardGo => Source::Package("wireguard-go"),
            Self::Nebula => Source::Package("nebula"),
            Self::OpenVpn => Source::Package("openvpn"),
        }
    }

    /// Whether it carries a family.
    pub const fn carries(self, family: Family) -> bool {
        !matches!((self, family), (Self::Nebula, Family::V6))
    }

    /// The version that the program says it is, in its own words.
    pub fn version(self, program: &Path) -> String {
        let flag = if self == Self::Nebula { "-version" } else { "--version" };
        // OpenVPN says its version and fails.
        let said = Command::new(program).arg(flag).output().map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        let text = String::from_utf8_lossy(&said);
        let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit())).unwrap_or("unknown version");
        line.split(" [").next().unwrap_or(line).trim().to_owned()
    }
}

/// A peer on both gateways, until dropped.
pub(super) struct Tunnel {
    // In this order: the programs end before their files go.
    processes: Vec<Process>,
    sockets: Vec<PathBuf>,
    _directory: Directory,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.processes.clear();
        for socket in &self.sockets {
            // Most remove it themselves.
            let _ = fs::remove_file(socket);
        }
    }
}

impl Tunnel {
    /// Starts `program` on both gateways and routes the LANs into it.
    pub(super) fn start(peer: Peer, program: &Path, rig: &Rig) -> Result<Self> {
        let directory = Directory::new(&format!("{}-{}", rig.name(), peer.name()))?;
        let mut tunnel = Self { processes: vec![], sockets: vec![], _directory: directory };
        match peer {
            Peer::Gotatun | Peer::Boringtun | Peer::WireGuardGo => tunnel.wireguard(peer, program, rig)?,
            Peer::Nebula => tunnel.nebula(program, rig)?,
            Peer::OpenVpn => tunnel.openvpn(program, rig)?,
        }
        Ok(tunnel)
    }

    pub(super) fn workers(&self) -> Workers {
        Workers { processes: self.processes.iter().map(Process::id).collect(), threads: vec![] }
    }

    /// What the programs said last.
    pub(super) fn said(&self) -> String {
        self.processes.iter().map(Process::said).collect::<Vec<_>>().join("\n")
    }

    fn launch(&mut self, host: &Host, program: &Path, arguments: &[&str]) -> Result<usize> {
        let mut command = host.command(&program.to_string_lossy());
        command.args(arguments).current_dir(self._directory.path());
        let log = self._directory.file(&format!("{}.log", host.name()));
        self.processes.push(Process::start(host.name(), command, log)?);
        Ok(self.processes.len() - 1)
    }

    /// Waits for the interface of a process, and configures it.
    fn configure(&mut self, process: usize, interface: &str, gateways: [&Host; 2], side: usize) -> Result<()> {
        let host = gateways[side];
        self.processes[process].until(START_TIMEOUT, || host.interface_index(interface).ok())?;
        host.tunnel(interface, INNER_MTU.into(), QUEUE_LEN, &tun_addresses(side), &networks(gateways[1 - side]))
    }

    fn wireguard(&mut self, peer: Peer, program: &Path, rig: &Rig) -> Result<()> {
        let failed = |what: &str| Error::io(format!("cannot configure {}: {what}", peer.name()));
        let keys = [KeyPair::random().map_err(failed("keys"))?, KeyPair::random().map_err(failed("keys"))?];
        let gateways = [rig.g1(), rig.g2()];
        for side in 0..2 {
            // Sockets are named after interfaces, and all namespaces share their directory.
            let interface = format!("wb{}x{side}", std::process::id());
            let arguments: &[&str] = match peer {
                Peer::WireGuardGo => &["-f", &interface],
                _ => &["-f", "--disable-drop-privileges", &interface],
            };
            let process = self.launch(gateways[side], program, arguments)?;
            let socket = Path::new(SOCKETS).join(format!("{interface}.sock"));
            self.sockets.push(socket.clone());
            self.configure(process, &interface, gateways, side)?;
            self.processes[process].until(START_TIMEOUT, || socket.exists().then_some(()))?;
            let mut allowed = networks(gateways[1 - side]);
            allowed.extend(
                tun_addresses(1 - side).map(|(address, _)| (address, if address.is_ipv6() { 128 } else { 32 })),
            );
            let request = Interface {
                private: &keys[side].private,
                listen_port: PORT,
                peer: &keys[1 - side].public,
                endpoint: SocketAddr::new(wan(gateways[1 - side]), PORT),
                allowed: &allowed,
            };
            request.apply(&socket).map_err(failed("its socket"))?;
        }
        Ok(())
    }

    fn nebula(&mut self, program: &Path, rig: &Rig) -> Result<()> {
        let gateways = [rig.g1(), rig.g2()];
        let v4 = |host: &Host| {
            networks(host).into_iter().find(|(address, _)| address.is_ipv4()).map_or_else(String::new, text)
        };
        let cert = program.with_file_name("nebula-cert");
        let sign = |arguments: &[&str]| run(Command::new(&cert).current_dir(self._directory.path()).args(arguments));
        sign(&["ca", "-name", "bench", "-out-crt", "ca.crt", "-out-key", "ca.key"])?;
        for (side, gateway) in gateways.into_iter().enumerate() {
            let (name, address) = (format!("g{}", side + 1), text(tun_addresses(side)[0]));
            let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
            let lan = v4(gateway);
            sign(&[
                "sign", "-ca-crt", "ca.crt", "-ca-key", "ca.key", "-name", &name, "-ip", &address, "-subnets", &lan,
                "-out-crt", &crt, "-out-key", &key,
            ])?;
        }
        for side in 0..2 {
            let (name, other) = (format!("g{}", side + 1), tun_addresses(1 - side)[0].0);
            let config = format!(
                "pki:\n  ca: ca.crt\n  cert: {name}.crt\n  key: {name}.key\n\
                 static_host_map:\n  \"{other}\": [\"{}:{PORT}\"]\n\
                 lighthouse:\n  am_lighthouse: false\n\
                 listen:\n  host: 0.0.0.0\n  port: {PORT}\n\
                 cipher: aes\n\
                 tun:\n  dev: nebula0\n  mtu: {INNER_MTU}\n  tx_queue: {QUEUE_LEN}\n  unsafe_routes:\n    - route: {}\n      via: {other}\n\
                 firewall:\n  outbound:\n    - {{port: any, proto: any, host: any}}\n  inbound:\n    - {{port: any, proto: any, host: any}}\n",
                wan(gateways[1 - side]),
                v4(gateways[1 - side]),
            );
            let file = self._directory.write(&format!("{name}.yml"), &config)?;
            let process = self.launch(gateways[side], program, &["-config", &file.to_string_lossy()])?;
            let host = gateways[side];
            self.processes[process].until(START_TIMEOUT, || host.interface_index("nebula0").ok())?;
        }
        Ok(())
    }

    fn openvpn(&mut self, program: &Path, rig: &Rig) -> Result<()> {
        let gateways = [rig.g1(), rig.g2()];
        let mut fingerprints = Vec::new();
        for name in ["g1", "g2"] {
            let openssl = |arguments: &str| {
                let words = arguments.split(' ').map(|word| word.replace("NAME", name));
                run(Command::new("openssl").current_dir(self._directory.path()).args(words))
            };
            openssl(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout NAME.key -out NAME.crt -subj /CN=NAME -days 2",
            )?;
            let said = openssl("x509 -fingerprint -sha256 -noout -in NAME.crt")?;
            fingerprints.push(said.split('=').nth(1).unwrap_or_default().trim().to_owned());
        }
        for side in 0..2 {
            let name = format!("g{}", side + 1);
            // A script would have to configure the interface; we do, as for the others.
            let options = format!(
                "--dev ovpn0 --dev-type tun --proto udp --port {PORT} --remote {} {PORT} --tun-mtu {INNER_MTU} --mssfix 0 \
                 --txqueuelen {QUEUE_LEN} --cert {name}.crt --key {name}.key --peer-fingerprint {} --data-ciphers AES-256-GCM \
                 --cipher AES-256-GCM --disable-dco --verb 3 {}",
                wan(gateways[1 - side]),
                fingerprints[1 - side],
                if side == 0 { "--tls-server --dh none" } else { "--tls-client" },
            );
            let words: Vec<_> = options.split_whitespace().collect();
            let process = self.launch(gateways[side], program, &words)?;
            self.configure(process, "ovpn0", gateways, side)?;
        }
        Ok(())
    }
}

/// The LANs behind a gateway as addresses with lengths.
pub(super) fn networks(gateway: &Host) -> Vec<(IpAddr, u8)> {
    lans(gateway).iter().map(|prefix| (prefix.address(), prefix.bit_len())).collect()
}

fn wan(gateway: &Host) -> IpAddr {
    gateway.wan.map_or(IpAddr::from([0, 0, 0, 0]), |wan| wan.address(Family::V4))
}

fn text((address, len): (IpAddr, u8)) -> String {
    format!("{address}/{len}")
}

/// Runs a helper to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(Error::io(format!("cannot run {what}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Broken { what, detail: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
