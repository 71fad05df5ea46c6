//! What is set on this host's devices and what would serve the packet plane better, as a table; and the part of it that may be set.
//!
//! ```text
//! WHERE  WHAT                   NOW   BETTER  WHY
//! lan0   rx-udp-gro-forwarding  off   on      small UDP packets reach the TUN as superpackets
//!                               undo: ethtool -K lan0 rx-udp-gro-forwarding off
//! ```
//!
//! Only device features are ever set: they take effect without the link going down, and go back as easily. The rest is for the operator,
//! with the command to type. What the daemon sets by itself while it runs is not its business here.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{CALIBRATION_PATH, Config};
use crate::io::calibrate::{CalibrateError, Measured, measure};
use crate::io::netlink::features::{self, Features, Rings, Size};
use crate::io::netlink::{Error, Generic};
use crate::plane::calibration;
use crate::plane::choice::Costs;

/// Descriptors of a ring that hold a burst of 1 ms at 1 Mpps.
const RING_LEN_MIN: u32 = 1024;
/// Packets that wait for a device: 2 ms at 1 Mpps.
const TX_QUEUE_LEN_MIN: u32 = 1000;
/// Packets that wait for a core between device and stack.
const BACKLOG_MIN: u32 = 4096;

/// Sending and receiving a packet of a train together, measured as [`measure`] does it on the machine class of [`Costs::BUILT_IN`].
const SOCKET_PAIR_NS: u32 = 20;

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It faces the other gateways.
    Wan,
    /// A network behind us.
    Lan,
}

/// A device as it is set up now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its features; `None` when the kernel does not say.
    pub features: Option<Features>,
    /// Its rings, if it has any.
    pub rings: Option<Rings>,
    /// Its combined channels, if it has any.
    pub channels: Option<Size>,
    /// Packets that may wait for it.
    pub tx_queue_len: Option<u32>,
    /// Whether the kernel spreads its packets over cores by software (RPS).
    pub rps: bool,
}

/// The host as it is set up now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Cores that may run workers.
    pub cores: u32,
    /// Scaling governor of the first core, where there is one.
    pub governor: Option<String>,
    /// `net.core.netdev_max_backlog`.
    pub backlog: Option<u32>,
    /// `net.core.rmem_max` in bytes.
    pub rmem_max: Option<u32>,
    /// `net.core.wmem_max` in bytes.
    pub wmem_max: Option<u32>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The device, or `host`.
    pub place: String,
    /// The setting.
    pub what: String,
    /// Its value.
    pub now: String,
    /// The value that Weir would give it; `None` when it is good as it is.
    pub better: Option<String>,
    /// Why.
    pub why: &'static str,
    /// What to type to have it so; `None` when there is nothing to do.
    pub command: Option<String>,
    /// What to type to have it back.
    pub undo: Option<String>,
    /// Whether [`apply`] sets it.
    pub safe: bool,
}

impl Row {
    fn good(place: &str, what: &str, now: impl fmt::Display, why: &'static str) -> Self {
        let (place, what, now) = (place.to_owned(), what.to_owned(), now.to_string());
        Self { place, what, now, better: None, why, command: None, undo: None, safe: false }
    }

    /// With something better, which takes a command of this form.
    fn better(mut self, value: impl fmt::Display, command: impl Fn(&str) -> String) -> Self {
        let value = value.to_string();
        self.command = Some(command(&value));
        self.undo = Some(command(&self.now));
        self.better = Some(value);
        self
    }
}

/// What to say about a device.
pub fn device_rows(device: &DeviceState, workers: u32) -> Vec<Row> {
    let name = device.name.as_str();
    let mut rows = vec![];
    if let Some(found) = &device.features {
        let forwarding = (features::RX_UDP_GRO_FORWARDING, true, "small UDP packets reach the TUN as superpackets");
        let mut wanted = vec![
            (features::RX_GRO, true, "TCP reaches the TUN, and trains the sockets, as superpackets"),
            (features::RX_GRO_LIST, false, "a TUN takes chained packets apart again"),
            (features::TX_GSO, true, "superpackets leave in one piece up to the driver"),
            (features::TX_TSO, true, "the device cuts TCP superpackets"),
        ];
        match device.role {
            Role::Lan => wanted.insert(0, forwarding),
            Role::Wan => wanted.push((features::TX_USO, true, "the device cuts trains of datagrams")),
        }
        for (feature, on, why) in wanted {
            let word = |on| if on { "on" } else { "off" };
            let active = found.active.contains(feature);
            let row = Row::good(name, feature, word(active), why);
            rows.push(if active == on || !found.changeable.contains(feature) {
                row
            } else {
                let row = row.better(word(on), |value| format!("ethtool -K {name} {feature} {value}"));
                Row { safe: true, ..row }
            });
        }
    }
    if let Some(Rings { rx, tx }) = device.rings {
        for (what, letter, size) in [("rx ring", "rx", rx), ("tx ring", "tx", tx)] {
            let row = Row::good(name, what, size.now, "a burst of 1 ms has to fit");
            let wanted = RING_LEN_MIN.min(size.max);
            rows.push(if size.now >= wanted {
                row
            } else {
                row.better(wanted, |value| format!("ethtool -G {name} {letter} {value}"))
            });
        }
    }
    if let Some(channels) = device.channels {
        let row = Row::good(name, "combined channels", channels.now, "each worker gets a queue of its own");
        let wanted = workers.min(channels.max);
        rows.push(if channels.now >= wanted {
            row
        } else {
            row.better(wanted, |value| format!("ethtool -L {name} combined {value}"))
        });
    }
    if let Some(len) = device.tx_queue_len {
        let row = Row::good(name, "txqueuelen", len, "trains come at once; 0 means that nothing waits");
        rows.push(if len == 0 || len >= TX_QUEUE_LEN_MIN {
            row
        } else {
            row.better(TX_QUEUE_LEN_MIN, |value| format!("ip link set {name} txqueuelen {value}"))
        });
    }
    if device.rps {
        rows.push(Row::good(
            name,
            "RPS",
            "on",
            "workers spread flows themselves; it costs a core change for each packet",
        ));
    }
    rows
}

/// What to say about the host.
pub fn host_rows(host: &HostState) -> Vec<Row> {
    let mut rows = vec![];
    if let Some(governor) = &host.governor {
        let row = Row::good("host", "scaling governor", governor, "workers that sleep wake on a slow core otherwise");
        let command = |value: &str| format!("cpupower frequency-set -g {value}");
        rows.push(if governor == "performance" { row } else { row.better("performance", command) });
    }
    if let Some(backlog) = host.backlog {
        let row =
            Row::good("host", "net.core.netdev_max_backlog", backlog, "packets between veth or TUN and the stack");
        let command = |value: &str| format!("sysctl net.core.netdev_max_backlog={value}");
        rows.push(if backlog >= BACKLOG_MIN { row } else { row.better(BACKLOG_MIN, command) });
    }
    for (what, now) in [("net.core.rmem_max", host.rmem_max), ("net.core.wmem_max", host.wmem_max)] {
        rows.extend(now.map(|now| Row::good("host", what, now, "no limit to the daemon, which has CAP_NET_ADMIN")));
    }
    rows
}

/// Everything that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The table.
    pub rows: Vec<Row>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Row) -> &str, head: &str| {
            self.rows.iter().map(|row| text(row).len()).chain([head.len()]).max().unwrap_or(0)
        };
        let (place, what, now) = (width(|r| &r.place, "WHERE"), width(|r| &r.what, "WHAT"), width(|r| &r.now, "NOW"));
        let better = width(|row| row.better.as_deref().unwrap_or("-"), "BETTER");
        writeln!(f, "{:place$}  {:what$}  {:now$}  {:better$}  WHY", "WHERE", "WHAT", "NOW", "BETTER")?;
        for row in &self.rows {
            let value = row.better.as_deref().unwrap_or("-");
            writeln!(f, "{:place$}  {:what$}  {:now$}  {value:better$}  {}", row.place, row.what, row.now, row.why)?;
            if let Some(command) = &row.command {
                let note = if row.safe { " (or --apply)" } else { "" };
                writeln!(f, "{:place$}  {:what$}  to set: {command}{note}", "", "")?;
            }
        }
        Ok(())
    }
}

/// Looks at the host and at these devices.
///
/// # Errors
/// [`Error::Socket`], and [`Error::Refused`] for a device that is not there.
pub fn look(config: Option<&Config>, devices: &[String]) -> Result<Report, Error> {
    let mut generic = Generic::open()?;
    let mut named: Vec<(String, Role)> = vec![];
    if let Some(config) = config {
        named.push((config.wan.interface.clone(), Role::Wan));
        named.extend(config.lan.interfaces.iter().map(|name| (name.clone(), Role::Lan)));
    }
    // A device that is named by hand has whatever duty the configuration gives it, else it is looked at as a LAN.
    for name in devices {
        if !named.iter().any(|(known, _)| known == name) {
            named.push((name.clone(), Role::Lan));
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let mut rows = vec![];
    for (name, role) in named {
        let state = DeviceState {
            features: generic.features(&name)?,
            rings: generic.rings(&name)?,
            channels: generic.channels(&name)?,
            tx_queue_len: number(&format!("/sys/class/net/{name}/tx_queue_len")),
            rps: has_rps(Path::new("/sys/class/net").join(&name).join("queues").as_path()),
            name,
            role,
        };
        rows.extend(device_rows(&state, cores));
    }
    rows.extend(host_rows(&HostState {
        cores,
        governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        backlog: number("/proc/sys/net/core/netdev_max_backlog"),
        rmem_max: number("/proc/sys/net/core/rmem_max"),
        wmem_max: number("/proc/sys/net/core/wmem_max"),
    }));
    Ok(Report { rows })
}

/// Sets what is safe to set, and returns for each row that was set what takes it back, or why it could not be set.
///
/// # Errors
/// [`Error::Socket`].
pub fn apply(report: &Report) -> Result<Vec<Result<String, String>>, Error> {
    let mut generic = Generic::open()?;
    let set = |row: &Row| {
        let on = row.better.as_deref() == Some("on");
        match generic.set_feature(&row.place, &row.what, on) {
            Ok(()) => Ok(row.undo.clone().unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        }
    };
    Ok(report.rows.iter().filter(|row| row.safe && row.better.is_some()).map(set).collect())
}

/// What was measured, and where it was written.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The costs that `run` reckons with from now on.
    pub costs: Costs,
    /// Why AF_XDP with copying was not measured, in words; `None` when it was. Without copying it never is.
    pub xsk_not_measured: Option<String>,
    /// The file.
    pub file: PathBuf,
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Costs { socket_rx_ns, socket_tx_ns, tun_rx_ns, tun_tx_ns, .. } = self.costs;
        let Costs { xsk_copy_rx_ns, xsk_copy_tx_ns, xsk_zero_copy_rx_ns, xsk_zero_copy_tx_ns, .. } = self.costs;
        writeln!(f, "a packet takes, measured here:")?;
        writeln!(f, "  socket {socket_rx_ns} ns received, {socket_tx_ns} ns sent")?;
        writeln!(f, "  TUN {tun_rx_ns} ns read, {tun_tx_ns} ns written")?;
        let copy = format!("  AF_XDP with copying {xsk_copy_rx_ns} ns received, {xsk_copy_tx_ns} ns sent");
        let scaled = "built-in figures, scaled by how the socket compares:";
        match &self.xsk_not_measured {
            None => writeln!(f, "{copy}\n{scaled}")?,
            Some(why) => writeln!(f, "{scaled}\n{copy} (not measured: {why})")?,
        }
        writeln!(
            f,
            "  AF_XDP in zero-copy {xsk_zero_copy_rx_ns} ns received, {xsk_zero_copy_tx_ns} ns sent (not measured: a veth pair has none)"
        )?;
        writeln!(f, "written to {}; `run` reads it at its start", self.file.display())
    }
}

/// Why nothing was calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The measurement.
    #[error(transparent)]
    Measure(#[from] CalibrateError),
    /// The file.
    #[error("cannot write {path}: {error}; choose another file with the key `calibration`")]
    Write {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Measures what packets cost in sockets, TUN and AF_XDP with copying on a private veth pair, and writes it where `run` looks for it.
///
/// # Errors
/// [`CalibrationError`].
pub fn calibrate(config: Option<&Config>) -> Result<Calibration, CalibrationError> {
    let measured = measure()?;
    let costs = costs(&measured);
    let xsk_not_measured = measured.xsk.err();
    let file = config.map_or_else(|| PathBuf::from(CALIBRATION_PATH), |config| config.calibration.clone());
    match calibration::save(&file, &costs) {
        Ok(()) => Ok(Calibration { costs, xsk_not_measured, file }),
        Err(error) => Err(CalibrationError::Write { path: file, error }),
    }
}

/// The measured costs, and with them those that were not measured: zero-copy, which a veth pair has not, and copying where the kernel gives
/// no AF_XDP. Their built-in figures are scaled by how this machine's sockets compare with those that they were measured beside.
fn costs(measured: &Measured) -> Costs {
    let built_in = Costs::BUILT_IN;
    let (here, there) =
        (u64::from(measured.socket_tx_ns) + u64::from(measured.socket_rx_ns), u64::from(SOCKET_PAIR_NS));
    let scale = |ns: u32| u32::try_from(u64::from(ns) * here / there).unwrap_or(u32::MAX).max(1);
    let xsk = measured.xsk.as_ref().ok();
    Costs {
        socket_rx_ns: measured.socket_rx_ns,
        socket_tx_ns: measured.socket_tx_ns,
        tun_rx_ns: measured.tun_rx_ns,
        tun_tx_ns: measured.tun_tx_ns,
        xsk_copy_rx_ns: xsk.map_or_else(|| scale(built_in.xsk_copy_rx_ns), |xsk| xsk.rx_ns),
        xsk_copy_tx_ns: xsk.map_or_else(|| scale(built_in.xsk_copy_tx_ns), |xsk| xsk.tx_ns),
        xsk_zero_copy_rx_ns: scale(built_in.xsk_zero_copy_rx_ns),
        xsk_zero_copy_tx_ns: scale(built_in.xsk_zero_copy_tx_ns),
    }
}

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u32> {
    text(path)?.parse().ok()
}

/// Whether any receive queue has cores in its `rps_cpus`.
fn has_rps(queues: &Path) -> bool {
    let Ok(entries) = fs::read_dir(queues) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let mask = fs::read_to_string(entry.path().join("rps_cpus")).unwrap_or_default();
        mask.contains(|c: char| c.is_ascii_hexdigit() && c != '0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::calibrate::XskMeasured;
    use crate::io::netlink::testing::{Namespace, ip};

    fn device(role: Role) -> DeviceState {
        let name = "eth0".to_owned();
        let features = Some(Features::default());
        DeviceState { name, role, features, rings: None, channels: None, tx_queue_len: None, rps: false }
    }

    fn row<'a>(rows: &'a [Row], what: &str) -> &'a Row {
        rows.iter().find(|row| row.what == what).unwrap()
    }

    #[test]
    fn lans_merge_udp_for_forwarding_and_the_wan_does_not() {
        let mut lan = device(Role::Lan);
        if let Some(features) = &mut lan.features {
            features.changeable = [features::RX_UDP_GRO_FORWARDING, features::RX_GRO_LIST].map(str::to_owned).into();
            features.active = [features::RX_GRO_LIST.to_owned()].into();
        }
        let rows = device_rows(&lan, 2);
        let forwarding = row(&rows, features::RX_UDP_GRO_FORWARDING);
        assert!(forwarding.safe && forwarding.better.as_deref() == Some("on"));
        assert_eq!(forwarding.command.as_deref(), Some("ethtool -K eth0 rx-udp-gro-forwarding on"));
        assert_eq!(forwarding.undo.as_deref(), Some("ethtool -K eth0 rx-udp-gro-forwarding off"));
        assert_eq!(row(&rows, features::RX_GRO_LIST).better.as_deref(), Some("off"));
        assert_eq!(row(&rows, features::TX_TSO).better, None, "the device cannot");
        let wan = device_rows(&DeviceState { role: Role::Wan, ..lan }, 2);
        assert!(!wan.iter().any(|row| row.what == features::RX_UDP_GRO_FORWARDING));
    }

    #[test]
    fn sizes_are_raised_to_what_is_needed_or_to_what_there_is() {
        for (now, max, better) in
            [(1023, 4096, Some("1024")), (1024, 4096, None), (256, 512, Some("512")), (512, 512, None)]
        {
            let size = Size { now, max };
            let rings = Some(Rings { rx: size, tx: Size { now: 1024, max: 1024 } });
            let rows = device_rows(&DeviceState { rings, ..device(Role::Wan) }, 2);
            assert_eq!(row(&rows, "rx ring").better.as_deref(), better, "{now} of {max}");
            assert_eq!((row(&rows, "tx ring").better.as_deref(), row(&rows, "rx ring").safe), (None, false));
        }
        for (now, max, better) in [(1, 8, Some("4")), (4, 8, None), (1, 2, Some("2"))] {
            let channels = Some(Size { now, max });
            let rows = device_rows(&DeviceState { channels, ..device(Role::Wan) }, 4);
            assert_eq!(row(&rows, "combined channels").better.as_deref(), better, "{now} of {max}");
        }
        for (len, better) in [(0, None), (1, Some("1000")), (999, Some("1000")), (1000, None)] {
            let rows = device_rows(&DeviceState { tx_queue_len: Some(len), ..device(Role::Wan) }, 4);
            assert_eq!(row(&rows, "txqueuelen").better.as_deref(), better, "{len}");
        }
        let host =
            HostState { backlog: Some(BACKLOG_MIN - 1), governor: Some("powersave".into()), ..HostState::default() };
        let rows = host_rows(&host);
        assert!(rows.iter().all(|row| row.better.is_some() && !row.safe), "{rows:?}");
        let host = HostState { backlog: Some(BACKLOG_MIN), governor: Some("performance".into()), ..host };
        assert!(host_rows(&host).iter().all(|row| row.better.is_none()));
    }

    #[test]
    fn costs_that_are_not_measured_follow_those_that_are() {
        let xsk = Err("no AF_XDP here".to_owned());
        let measured = Measured { socket_tx_ns: 30, socket_rx_ns: 10, tun_rx_ns: 7, tun_tx_ns: 8, xsk };
        let scaled = costs(&measured);
        assert_eq!((scaled.socket_tx_ns, scaled.socket_rx_ns, scaled.tun_rx_ns, scaled.tun_tx_ns), (30, 10, 7, 8));
        // Twice as slow as the machine of the built-in figures.
        assert_eq!(scaled.xsk_copy_rx_ns, 2 * Costs::BUILT_IN.xsk_copy_rx_ns);
        assert_eq!(scaled.xsk_copy_tx_ns, 2 * Costs::BUILT_IN.xsk_copy_tx_ns);
        assert_eq!(scaled.xsk_zero_copy_tx_ns, 2 * Costs::BUILT_IN.xsk_zero_copy_tx_ns);
        let with = costs(&Measured { xsk: Ok(XskMeasured { rx_ns: 11, tx_ns: 12 }), ..measured });
        assert_eq!(with, Costs { xsk_copy_rx_ns: 11, xsk_copy_tx_ns: 12, ..scaled });
    }

    #[test]
    fn a_calibration_says_what_was_measured_and_what_was_not() {
        let file = std::env::temp_dir().join("calibration.json");
        let mut calibration = Calibration { costs: Costs::BUILT_IN, xsk_not_measured: None, file };
        let measured = |text: &str| text.split_once("built-in").unwrap().0.contains("AF_XDP with copying 370 ns");
        assert!(measured(&calibration.to_string()), "{calibration}");
        calibration.xsk_not_measured = Some("no AF_XDP here".to_owned());
        let text = calibration.to_string();
        assert!(!measured(&text) && text.contains("910 ns sent (not measured: no AF_XDP here)"), "{text}");
    }

    #[test]
    fn calibrating_saves_figures_for_all() {
        let directory = std::env::temp_dir().join(format!("weir-tune-{}", std::process::id()));
        let file = directory.join("calibration.json");
        let example = include_str!("../../docs/examples/weir-dataplane.toml");
        let mut config = Config::parse(Path::new("weir-dataplane.toml"), example).unwrap();
        config.calibration.clone_from(&file);
        let calibration = calibrate(Some(&config)).unwrap();
        let saved = calibration::load(&file).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        assert_eq!((saved, calibration.xsk_not_measured), (Some(calibration.costs), None));
        let figures = serde_json::to_value(calibration.costs).unwrap();
        assert!(figures.as_object().unwrap().values().all(|ns| ns.as_u64().unwrap() > 0), "{figures}");
    }

    #[test]
    fn what_is_applied_can_be_taken_back() {
        let _namespace = Namespace::with_veth();
        ip("link set va up");
        let devices = ["va".to_owned()];
        let report = look(None, &devices).unwrap();
        assert!(row(&report.rows, features::RX_UDP_GRO_FORWARDING).better.is_some());
        assert!(report.to_string().contains("to set: ethtool -K va rx-udp-gro-forwarding on (or --apply)"), "{report}");
        let undo = apply(&report).unwrap();
        assert!(undo.contains(&Ok("ethtool -K va rx-udp-gro-forwarding off".to_owned())), "{undo:?}");
        let report = look(None, &devices).unwrap();
        assert!(report.rows.iter().all(|row| !row.safe), "nothing is left to set: {report}");
        assert!(look(None, &["eth77".to_owned()]).is_err());
    }
}
