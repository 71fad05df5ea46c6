//! What this machine can do for a packet plane, found out before anything is changed.
//!
//! ```text
//! NAME          STATE     FOUND
//! kernel        ok        6.18.44
//! io_uring      degraded  disabled by kernel.io_uring_disabled
//!                         remedy: sysctl kernel.io_uring_disabled=0; until then the mmsg port is used
//! ```
//!
//! `ok`: all there. `degraded`: something else does the work, slower. `missing`: the plane cannot start; [`Table::first_blocker`] says why
//! in one line. Probes open and close what they ask about, and leave nothing behind. What to choose from the answers is not decided here.
#![allow(unsafe_code, reason = "socket options and a TUN ioctl have no safe wrapper among our dependencies")]

mod table;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use aya::programs::{ProgramType, loaded_programs};
use aya::sys::is_program_supported;
use io_uring::{IoUring, Probe as Opcodes, opcode};

use super::netlink::{Error as NetlinkError, Link, Netlink, XdpState};
use super::privileges;

pub use table::{Row, State, Table};

/// The oldest kernel that has all that cannot be done without, major and minor version.
pub const KERNEL_MIN: (u32, u32) = (6, 1);
/// What later kernels add, and what is done without it.
const KERNEL_ADDITIONS: [((u32, u32), &str); 4] = [
    ((6, 2), "no UDP superpackets on TUN (6.2)"),
    ((6, 6), "no TCX links (6.6)"),
    ((6, 6), "no AF_XDP multi-buffer (6.6)"),
    ((6, 7), "no multishot reads (6.7)"),
];
/// Drivers with native XDP in kernels since [`KERNEL_MIN`], in alphabetical order.
const NATIVE_XDP_DRIVERS: [&str; 33] = [
    "atlantic",
    "bnxt_en",
    "bond",
    "dpaa_eth",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_core",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netvsc",
    "nfp",
    "nicvf",
    "qede",
    "sfc",
    "stmmaceth",
    "tsnep",
    "tun",
    "veth",
    "vif",
    "virtio_net",
    "vmxnet3",
];
/// Drivers on which a native program takes superpackets away from the socket path.
const NATIVE_XDP_COSTS_GSO: [&str; 2] = ["veth", "virtio_net"];
/// Name of our program on the WAN interface, as it stands in the object.
const WAN_PROGRAM: &str = "wan";
/// Locked memory in bytes that rings and packet buffers of one worker need where CAP_IPC_LOCK is not held.
const MEMLOCK_MIN: u64 = 64 << 20;

/// A ring with entries of the usual size.
type Ring = IoUring;

/// What is asked for; it decides what is missing and what is only degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes<'a> {
    /// The WAN interface.
    pub wan: &'a str,
    /// Whether the classifier is attached. `steer` and the maps are needed in any case.
    pub bpf: bool,
    /// Whether nothing but io_uring will do.
    pub uring_only: bool,
}

/// Asks about everything. It takes some milliseconds and needs no privilege; without one, some answers are that it is missing.
pub fn probe(wishes: &Wishes<'_>) -> Table {
    let mut rows = vec![
        kernel(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()),
        capabilities(privileges::missing()),
    ];
    rows.extend(bpf(wishes.bpf));
    rows.push(interface(wishes, Netlink::open().and_then(|mut netlink| netlink.link(wishes.wan)), program_name));
    rows.push(uring(wishes.uring_only));
    rows.push(udp_offloads());
    rows.push(tun());
    rows.push(aes());
    rows.push(memlock(&fs::read_to_string("/proc/self/limits").unwrap_or_default(), privileges::missing()));
    rows.push(cores(std::thread::available_parallelism().map_or(1, usize::from)));
    Table { rows }
}

fn kernel(release: &str) -> Row {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let found = format!("version {release:?} cannot be read");
        return Row::lacking(State::Degraded, "kernel", found, "mount /proc; the other rows tell what works");
    };
    let (min_major, min_minor) = KERNEL_MIN;
    if (major, minor) < KERNEL_MIN {
        let remedy = format!("boot Linux {min_major}.{min_minor} or newer");
        return Row::lacking(State::Missing, "kernel", release, remedy);
    }
    let lacks: Vec<_> =
        KERNEL_ADDITIONS.iter().filter(|(since, _)| (major, minor) < *since).map(|(_, what)| *what).collect();
    if lacks.is_empty() {
        return Row::ok("kernel", release);
    }
    let found = format!("{release}: {}", lacks.join(", "));
    Row::lacking(State::Degraded, "kernel", found, "boot Linux 6.7 or newer for full speed")
}

fn capabilities(missing: Result<Vec<caps::Capability>, privileges::Error>) -> Row {
    match missing {
        Ok(missing) if missing.is_empty() => Row::ok("capabilities", privileges::names(&privileges::NEEDED)),
        Ok(missing) => {
            let found = format!("without {}", privileges::names(&missing));
            Row::lacking(State::Missing, "capabilities", found, privileges::REMEDY)
        }
        Err(error) => Row::lacking(State::Missing, "capabilities", error.to_string(), privileges::REMEDY),
    }
}

fn bpf(classifier: bool) -> Vec<Row> {
    let syscall = programs(classifier, |kind| is_program_supported(kind).map_err(|error| error_chain(&error)));
    let btf = if fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false) {
        Row::ok("btf", "/sys/kernel/btf/vmlinux")
    } else {
        let remedy = "use a kernel with CONFIG_DEBUG_INFO_BTF; until then programs are loaded without it";
        Row::lacking(State::Degraded, "btf", "the kernel does not describe its types", remedy)
    };
    vec![syscall, btf, jit(fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim))]
}

/// Which kinds of programs there are. Without a classifier on the WAN only `steer` is needed, and never less than that.
fn programs(classifier: bool, supported: impl Fn(ProgramType) -> Result<bool, String>) -> Row {
    let attached = if classifier { State::Missing } else { State::Degraded };
    let kinds = [
        (ProgramType::Xdp, "XDP", attached),
        (ProgramType::SchedClassifier, "tc", attached),
        (ProgramType::SkReuseport, "sk_reuseport", State::Missing),
    ];
    let (mut there, mut lacking, mut worst) = (Vec::new(), Vec::new(), State::Degraded);
    for (kind, name, without) in kinds {
        match supported(kind) {
            Ok(true) => there.push(name),
            Ok(false) => {
                lacking.push(name);
                if without == State::Missing {
                    worst = State::Missing;
                }
            }
            Err(error) => {
                let remedy = "grant CAP_BPF and CAP_NET_ADMIN, or see `dmesg` for a lockdown";
                return Row::lacking(State::Missing, "bpf", error, remedy);
            }
        }
    }
    if lacking.is_empty() {
        return Row::ok("bpf", there.join(", "));
    }
    let found = format!("no programs of type {}", lacking.join(", "));
    Row::lacking(worst, "bpf", found, "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_INET")
}

fn jit(setting: Result<&str, &io::Error>) -> Row {
    match setting {
        Ok("1" | "2") => Row::ok("bpf jit", "on"),
        Ok(_) => Row::lacking(
            State::Degraded,
            "bpf jit",
            "off: programs are interpreted",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Err(error) => Row::lacking(
            State::Degraded,
            "bpf jit",
            format!("unknown ({error})"),
            "run as root to see it, or use a kernel with CONFIG_BPF_JIT",
        ),
    }
}

fn interface(
    wishes: &Wishes<'_>,
    link: Result<Link, NetlinkError>,
    program_name: impl Fn(u32) -> Option<String>,
) -> Row {
    let name = format!("wan {}", wishes.wan);
    let link = match link {
        Ok(link) => link,
        Err(error @ NetlinkError::NoInterface { .. }) => {
            return Row::lacking(State::Missing, name, error.to_string(), "correct wan.interface, or create it first");
        }
        Err(error) => return Row::lacking(State::Missing, name, error.to_string(), "allow netlink sockets"),
    };
    let driver = link.driver.as_deref().unwrap_or("unknown");
    let native = match driver {
        driver if NATIVE_XDP_COSTS_GSO.contains(&driver) => "native XDP (costs GSO), generic, tc",
        driver if NATIVE_XDP_DRIVERS.contains(&driver) => "native XDP, generic, tc",
        _ => "generic XDP, tc",
    };
    let found = format!("driver {driver}, {} rx queues: {native}", link.rx_queues);
    if let Some(XdpState { mode, program }) = link.xdp.filter(|_| wishes.bpf) {
        let id = program.map_or("several".into(), |id| id.to_string());
        let holder = program.and_then(program_name);
        let found =
            format!("{found}; XDP program {} (id {id}) is attached, {}", holder.as_deref().unwrap_or("?"), mode.name());
        if holder.as_deref() != Some(WAN_PROGRAM) {
            let remedy = format!("`ip link set dev {} xdp off` if nobody needs it; until then tc is used", link.name);
            return Row::lacking(State::Degraded, name, found, remedy);
        }
        return Row::ok(name, found);
    }
    if !link.up {
        let remedy = format!("`ip link set dev {} up`", link.name);
        return Row::lacking(State::Degraded, name, format!("{found}; it is down"), remedy);
    }
    Row::ok(name, found)
}

/// The name of a loaded program, when we may ask.
fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

fn uring(required: bool) -> Row {
    let worst = if required { State::Missing } else { State::Degraded };
    let lacking = |found: String, remedy: &str| {
        let until = if required { "; or set wan.io = \"auto\"" } else { "; until then the mmsg port is used" };
        Row::lacking(worst, "io_uring", found, format!("{remedy}{until}"))
    };
    let built = Ring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(8);
    let ring = match built {
        Ok(ring) => ring,
        Err(error) => {
            let remedy = match error.raw_os_error() {
                Some(libc::ENOSYS) => "use a kernel with CONFIG_IO_URING",
                Some(libc::EPERM) => "sysctl kernel.io_uring_disabled=0, and allow io_uring in the seccomp filter",
                Some(libc::EINVAL) => "boot Linux 6.1 or newer",
                Some(libc::ENOMEM) => "grant CAP_IPC_LOCK, or raise RLIMIT_MEMLOCK",
                _ => "see `dmesg`",
            };
            return lacking(error.to_string(), remedy);
        }
    };
    let mut opcodes = Opcodes::new();
    if let Err(error) = ring.submitter().register_probe(&mut opcodes) {
        return lacking(format!("its operations cannot be listed ({error})"), "boot Linux 6.1 or newer");
    }
    let needed = [(opcode::SendMsg::CODE, "sendmsg"), (opcode::RecvMsg::CODE, "recvmsg"), (opcode::Read::CODE, "read")];
    let lacks: Vec<_> = needed.iter().filter(|(code, _)| !opcodes.is_supported(*code)).map(|(_, name)| *name).collect();
    if !lacks.is_empty() {
        return lacking(format!("without {}", lacks.join(", ")), "boot Linux 6.1 or newer");
    }
    let reads = if opcodes.is_supported(opcode::ReadMulti::CODE) { "multishot reads" } else { "single reads" };
    let array = Ring::builder().setup_no_sqarray().build(8).map_or("with SQ array", |_| "no SQ array");
    Row::ok("io_uring", format!("single issuer, deferred task work, {array}, {reads}"))
}

fn udp_offloads() -> Row {
    let socket = match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(socket) => socket,
        Err(error) => {
            let found = format!("cannot open a UDP socket ({error})");
            return Row::lacking(State::Missing, "udp offloads", found, "allow AF_INET sockets, and bring lo up");
        }
    };
    let takes = |option: libc::c_int, value: libc::c_int| {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is a live c_int and `len` its size; the descriptor is open.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, (&raw const value).cast(), len) == 0 }
    };
    match (takes(libc::UDP_SEGMENT, 1200), takes(libc::UDP_GRO, 1)) {
        (true, true) => Row::ok("udp offloads", "UDP_SEGMENT, UDP_GRO"),
        (gso, gro) => {
            let found = format!("UDP_SEGMENT {}, UDP_GRO {}", yes_no(gso), yes_no(gro));
            Row::lacking(
                State::Degraded,
                "udp offloads",
                found,
                "boot Linux 6.1 or newer; until then one datagram per call",
            )
        }
    }
}

fn yes_no(there: bool) -> &'static str {
    if there { "yes" } else { "no" }
}

fn tun() -> Row {
    let device = match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(device) => device,
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "allow this user, or the container, to open /dev/net/tun",
                _ => "`modprobe tun`, or use a kernel with CONFIG_TUN; in a container pass the device in",
            };
            return Row::lacking(State::Missing, "tun", format!("/dev/net/tun: {error}"), remedy);
        }
    };
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the live one that it is given; the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) } != 0 {
        let found = format!("/dev/net/tun is no TUN device ({})", io::Error::last_os_error());
        return Row::lacking(State::Missing, "tun", found, "create it again: mknod /dev/net/tun c 10 200");
    }
    let has = |flag: libc::c_int| features & flag as libc::c_uint != 0;
    match (has(libc::IFF_MULTI_QUEUE), has(libc::IFF_VNET_HDR)) {
        (true, true) => Row::ok("tun", "multi-queue, vnet_hdr"),
        (queues, header) => {
            let found = format!("multi-queue {}, vnet_hdr {}", yes_no(queues), yes_no(header));
            Row::lacking(State::Missing, "tun", found, "boot Linux 6.1 or newer")
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn aes() -> Row {
    let features = [
        ("AES-NI", std::is_x86_feature_detected!("aes")),
        ("PCLMULQDQ", std::is_x86_feature_detected!("pclmulqdq")),
        ("VAES", std::is_x86_feature_detected!("vaes")),
        ("VPCLMULQDQ", std::is_x86_feature_detected!("vpclmulqdq")),
    ];
    aes_row(&features, 2)
}

#[cfg(target_arch = "aarch64")]
fn aes() -> Row {
    let features = [
        ("AES", std::arch::is_aarch64_feature_detected!("aes")),
        ("PMULL", std::arch::is_aarch64_feature_detected!("pmull")),
    ];
    aes_row(&features, 2)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn aes() -> Row {
    aes_row(&[("AES", false)], 1)
}

/// The first `needed` features make AES-GCM the better choice.
fn aes_row(features: &[(&str, bool)], needed: usize) -> Row {
    let there: Vec<_> = features.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if features.iter().take(needed).all(|(_, there)| *there) {
        return Row::ok("aes", there.join(", "));
    }
    let remedy = "pass the host's CPU features through to this machine; until then ChaCha20-Poly1305 is used";
    Row::lacking(State::Degraded, "aes", "no AES and carry-less multiplication in this CPU", remedy)
}

/// `limits` is the text of `/proc/self/limits`.
fn memlock(limits: &str, missing: Result<Vec<caps::Capability>, privileges::Error>) -> Row {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next());
    let found = match soft {
        Some("unlimited") => return Row::ok("memlock", "unlimited"),
        Some(bytes) => format!("{bytes} bytes"),
        None => "unknown".into(),
    };
    if missing.is_ok_and(|missing| !missing.contains(&caps::Capability::CAP_IPC_LOCK)) {
        return Row::ok("memlock", format!("{found}, lifted by CAP_IPC_LOCK"));
    }
    match soft.and_then(|bytes| bytes.parse::<u64>().ok()) {
        Some(bytes) if bytes >= MEMLOCK_MIN => Row::ok("memlock", found),
        _ => {
            let remedy = format!("grant CAP_IPC_LOCK, or set LimitMEMLOCK= to at least {MEMLOCK_MIN} bytes per worker");
            Row::lacking(State::Degraded, "memlock", found, remedy)
        }
    }
}

fn cores(usable: usize) -> Row {
    match usable {
        0 | 1 => {
            let remedy = "allow this process more cores; until then one worker shares its core with the kernel";
            Row::lacking(State::Degraded, "cores", "1", remedy)
        }
        more => Row::ok("cores", more.to_string()),
    }
}

/// An error and its causes in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::super::netlink::XdpMode;
    use super::*;

    const WISHES: Wishes<'_> = Wishes { wan: "lo", bpf: true, uring_only: false };

    #[test]
    fn kernels_are_judged_at_each_threshold() {
        for (release, state) in [
            ("5.15.0-91-generic", State::Missing),
            ("6.0.19", State::Missing),
            ("6.1.0-18-amd64", State::Degraded),
            ("6.6.8", State::Degraded),
            ("6.7.0", State::Ok),
            ("6.18.44", State::Ok),
            ("7.0-rc1", State::Ok),
            ("10.0", State::Ok),
            ("", State::Degraded),
            ("six", State::Degraded),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
        assert!(kernel("6.1.0").found.contains("6.2") && !kernel("6.2.0").found.contains("(6.2)"));
    }

    #[test]
    fn missing_capabilities_stop_a_start_and_are_named() {
        let row = capabilities(Ok(vec![caps::Capability::CAP_BPF]));
        assert_eq!((row.state, row.found.as_str()), (State::Missing, "without CAP_BPF"));
        assert!(row.remedy.unwrap().contains("setcap"));
        assert_eq!(capabilities(Ok(Vec::new())).state, State::Ok);
    }

    #[test]
    fn steer_is_needed_even_without_a_classifier() {
        let state =
            |classifier, lacking: &[ProgramType]| programs(classifier, |kind| Ok(!lacking.contains(&kind))).state;
        assert_eq!(state(false, &[]), State::Ok);
        assert_eq!(state(false, &[ProgramType::Xdp, ProgramType::SchedClassifier]), State::Degraded);
        assert_eq!(state(true, &[ProgramType::Xdp]), State::Missing);
        for classifier in [false, true] {
            assert_eq!(state(classifier, &[ProgramType::SkReuseport]), State::Missing);
            assert_eq!(programs(classifier, |_| Err("no bpf()".to_owned())).state, State::Missing);
        }
    }

    fn link(driver: &str, xdp: Option<XdpState>) -> Link {
        let (name, driver) = ("eth0".into(), Some(driver.into()));
        Link { index: 2, name, mtu: 1500, up: true, driver, xdp, tx_queues: 4, rx_queues: 4 }
    }

    #[test]
    fn interfaces_are_judged_by_driver_and_by_who_is_attached() {
        let wishes = Wishes { wan: "eth0", ..WISHES };
        let judge = |link, holder: Option<&str>| interface(&wishes, link, |_| holder.map(str::to_owned));
        assert!(judge(Ok(link("ice", None)), None).found.ends_with(": native XDP, generic, tc"));
        assert!(judge(Ok(link("veth", None)), None).found.contains("costs GSO"));
        assert!(judge(Ok(link("e1000", None)), None).found.ends_with(": generic XDP, tc"));

        let xdp = Some(XdpState { mode: XdpMode::Native, program: Some(7) });
        let foreign = judge(Ok(link("ice", xdp)), Some("firewall"));
        assert_eq!(foreign.state, State::Degraded);
        assert!(foreign.found.contains("XDP program firewall (id 7) is attached, native"), "{}", foreign.found);
        assert_eq!(judge(Ok(link("ice", xdp)), None).state, State::Degraded);
        assert_eq!(judge(Ok(link("ice", xdp)), Some("wan")).state, State::Ok);
        let unattached = Wishes { bpf: false, ..wishes };
        assert_eq!(interface(&unattached, Ok(link("ice", xdp)), |_| None).state, State::Ok);

        let down = Link { up: false, ..link("ice", None) };
        assert_eq!(judge(Ok(down), None).state, State::Degraded);
        let gone = judge(Err(NetlinkError::NoInterface { interface: "eth0".into() }), None);
        assert_eq!(gone.state, State::Missing);
    }

    #[test]
    fn locked_memory_is_judged_at_its_limit() {
        let line =
            |soft: &str| format!("Max cpu time 1 2\nMax locked memory         {soft}              unlimited  bytes\n");
        let without = || Ok(vec![caps::Capability::CAP_IPC_LOCK]);
        assert_eq!(memlock(&line(&MEMLOCK_MIN.to_string()), without()).state, State::Ok);
        assert_eq!(memlock(&line(&(MEMLOCK_MIN - 1).to_string()), without()).state, State::Degraded);
        assert_eq!(memlock(&line("unlimited"), without()).state, State::Ok);
        assert_eq!(memlock(&line("0"), Ok(Vec::new())).state, State::Ok);
        assert_eq!(memlock("", without()).state, State::Degraded);
    }

    #[test]
    fn a_missing_jit_or_aes_or_second_core_is_only_slower() {
        assert_eq!(jit(Ok("1")).state, State::Ok);
        assert_eq!(jit(Ok("0")).state, State::Degraded);
        assert_eq!(jit(Err(&io::ErrorKind::NotFound.into())).state, State::Degraded);
        assert_eq!(aes_row(&[("a", true), ("b", true), ("c", false)], 2).found, "a, b");
        assert_eq!(aes_row(&[("a", true), ("b", false), ("c", true)], 2).state, State::Degraded);
        assert_eq!((cores(1).state, cores(2).state), (State::Degraded, State::Ok));
    }

    #[test]
    fn this_machine_can_run_a_plane() {
        let table = probe(&WISHES);
        assert_eq!(table.first_blocker(), None, "{table}");
        let names: Vec<_> = table.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "kernel",
                "capabilities",
                "bpf",
                "btf",
                "bpf jit",
                "wan lo",
                "io_uring",
                "udp offloads",
                "tun",
                "aes",
                "memlock",
                "cores"
            ]
        );
        let absent = probe(&Wishes { wan: "no-such-if", ..WISHES }).first_blocker().unwrap();
        assert_eq!(
            absent,
            "wan no-such-if: there is no network interface no-such-if here: `ip link` lists those there are: \
             correct wan.interface, or create it first"
        );
    }
}
