//! What the tests share.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use weir_abi::drop::{DropReason, Fault};
use weir_bench::control::StopOnDrop;
use weir_bench::external::{Ping, ping};
use weir_bench::gateway::Gateway;
use weir_bench::member::Member;
use weir_bench::pair::{Pair, PairConfig};
use weir_bench::rig::mesh::Site;
use weir_bench::rig::{self, Family, Host, Namespace, Rig, RigConfig};
use weir_dataplane::api::message::{Counters, DumpItem, NamedCount, SessionDump};
use weir_dataplane::io::netlink::Netlink;

/// No test takes a third of this.
const TEST_TIMEOUT: Duration = Duration::from_secs(180);

/// One test at a time, and none for ever.
pub(crate) struct Alone {
    _lock: MutexGuard<'static, ()>,
    _done: Sender<()>,
}

/// Waits for the tests before, and starts the clock of this one.
pub(crate) fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    let lock = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (done, ended) = channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(TEST_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("a test took more than {TEST_TIMEOUT:?}: giving up");
            rig::remove_all();
            // The processes of the gateways are told by the kernel.
            std::process::exit(101);
        }
    });
    Alone { _lock: lock, _done: done }
}

pub(crate) fn rig() -> Rig {
    Rig::new(RigConfig::default()).unwrap()
}

/// Has every datagram cross the WAN by itself, so that a capture sees each of them.
pub(crate) fn one_datagram_a_frame<'a>(gateways: impl IntoIterator<Item = &'a Host>) {
    for gateway in gateways {
        gateway.feature("wan", "tx-udp-segmentation", false).unwrap();
        gateway.feature("wan", "rx-gro", false).unwrap();
    }
}

/// Brings a pair up, and tells what both gateways have counted should `body` panic.
pub(crate) fn with_pair<T>(rig: &Rig, config: PairConfig, body: impl FnOnce(&mut Pair<'_>) -> T) -> T {
    let pair = Pair::up(rig, config).unwrap_or_else(|error| panic!("{error}"));
    telling(pair, body)
}

pub(crate) fn telling<'a, T>(mut pair: Pair<'a>, body: impl FnOnce(&mut Pair<'a>) -> T) -> T {
    match catch_unwind(AssertUnwindSafe(|| body(&mut pair))) {
        Ok(value) => value,
        Err(panic) => {
            eprintln!("{}", pair.report());
            resume_unwind(panic)
        }
    }
}

/// Looks again until `done` holds or the time is over; tells which.
pub(crate) fn eventually(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asserts that a ping of `count` requests is answered. One more is sent: ping waits for the last answer only for twice the slowest before,
/// which on a busy machine it may miss.
#[track_caller]
pub(crate) fn answered(from: &Namespace, to: IpAddr, count: u32) {
    let ping = ping(from, to, count + 1).unwrap();
    assert!(ping.received >= count, "{} to {to}: {ping:?}", from.name());
}

/// The same between the hosts of two sites, asked from either.
#[track_caller]
pub(crate) fn both_ways(one: &Site, other: &Site) {
    answered(&one.host, other.host.lan.address(Family::V4), 5);
    answered(&other.host, one.host.lan.address(Family::V4), 5);
}

/// Echoes of one run beside something: a second of them. And how many runs there are at least.
const RUN_ECHOES: u32 = 100;
const RUN: Duration = Duration::from_secs(1);
const RUNS_MIN: usize = 2;

/// Echo requests from one host to another for as long as something else is done, and for two seconds at least, 100 a second; what was lost of
/// them. A run that has no answer waits for it, so the next one does not wait for the run.
pub(crate) fn beside_traffic<T>(from: &Site, to: &Site, act: impl FnOnce() -> T) -> (T, Ping) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut runs = vec![];
            while runs.len() < RUNS_MIN || !done.load(Ordering::Relaxed) {
                runs.push(scope.spawn(|| ping(&from.host, to.host.lan.address(Family::V4), RUN_ECHOES)));
                std::thread::sleep(RUN);
            }
            runs
        });
        let stop = StopOnDrop(&done);
        let acted = act();
        drop(stop);
        let mut all = Ping { sent: 0, received: 0, mean_us: None };
        for run in traffic.join().unwrap() {
            let seen = run.join().unwrap().expect("ping runs");
            (all.sent, all.received) = (all.sent + seen.sent, all.received + seen.received);
        }
        (acted, all)
    })
}

/// What a command said that is refused.
#[track_caller]
pub(crate) fn refused(member: &Member<'_>, arguments: &[&str]) -> String {
    match member.weir(arguments) {
        Ok(done) => panic!("weir {}: {done}", arguments.join(" ")),
        Err(error) => error.to_string(),
    }
}

/// Waits until nodes go by this version of a document.
#[track_caller]
pub(crate) fn wait_for_version<'a>(members: impl IntoIterator<Item = &'a Member<'a>>, document: &str, version: u64) {
    let has = |member: &Member<'_>| member.weir(&["status"]).unwrap()["versions"][document] == version;
    for member in members {
        member.wait_for(&format!("version {version} of the {document}"), has).unwrap();
    }
}

fn find(counts: &[NamedCount], name: &str) -> u64 {
    counts.iter().find(|c| c.name == name).map_or(0, |c| c.count)
}

/// A counter of the engine or of the eBPF programs.
pub(crate) fn count(gateway: &mut Gateway<'_>, name: &str) -> u64 {
    let counters = gateway.counters().unwrap();
    find(&counters.engine, name) + find(&counters.bpf, name)
}

/// What gateway `side` says of the session.
pub(crate) fn session(pair: &mut Pair<'_>, side: usize) -> SessionDump {
    let items = pair.side(side).client().unwrap().dump().unwrap();
    let session = |item| if let DumpItem::Session(session) = item { Some(session) } else { None };
    items.into_iter().find_map(session).unwrap()
}

/// Drops that somebody on the network or a peer is to blame for, of engine and programs together. The kernel's own chatter on a fresh TUN
/// and full queues are left out: they come when they like.
pub(crate) fn foreign_drops(counters: &Counters) -> BTreeMap<String, u64> {
    let mut drops = BTreeMap::new();
    for NamedCount { name, count } in counters.engine_drops.iter().chain(&counters.bpf_drops) {
        // What has no reason's name was dropped by the kernel at our own sockets.
        let Some(reason) = DropReason::ALL.iter().find(|reason| reason.name() == name) else { continue };
        if matches!(reason.fault(), Fault::Network | Fault::Peer) {
            *drops.entry(name.clone()).or_default() += count;
        }
    }
    drops
}

/// What a program prints, inside a namespace. It must succeed.
pub(crate) fn output(namespace: &Namespace, program: &str, args: &[&str]) -> String {
    let output = namespace.command(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a packet plane could leave in a namespace: devices, addresses, rules, routes, programs.
pub(crate) fn network_state(host: &Host) -> String {
    let mut text = String::new();
    for args in [
        "-o link show",
        "-o address show",
        "-4 rule show",
        "-6 rule show",
        "-4 route show table all",
        "-6 route show table all",
    ] {
        text += &format!("# ip {args}\n{}", output(host, "ip", &args.split(' ').collect::<Vec<_>>()));
    }
    text + "# programs\n" + &attached(host)
}

/// The eBPF programs on the devices of a namespace, one line each. The kernel is asked, not the plane.
pub(crate) fn attached(host: &Host) -> String {
    let links = output(host, "ip", &["-o", "link", "show"]);
    let names: Vec<_> =
        links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next()).map(str::to_owned).collect();
    assert!(names.iter().any(|name| name == "wan"), "{links}");
    let mut text = String::new();
    for name in names {
        let (xdp, tcx) = host
            .enter(|| {
                let xdp = Netlink::open().unwrap().link(&name).unwrap().xdp;
                (xdp, SchedClassifier::query_tcx(&name, TcAttachType::Ingress))
            })
            .unwrap();
        if let Some(xdp) = xdp {
            text += &format!("{name}: XDP {xdp:?}\n");
        }
        // An error here is a kernel before 6.6, where a classifier is a filter.
        let at_tc = tcx.map(|(_, programs)| programs).unwrap_or_default();
        text.extend(at_tc.iter().map(|program| format!("{name}: tcx {:?}\n", program.name_as_str())));
        text += &output(host, "tc", &["filter", "show", "dev", &name, "ingress"]);
    }
    text
}

/// The thread that io_uring makes for what it cannot do without blocking: none may appear.
pub(crate) fn assert_no_io_worker(gateway: &Gateway<'_>) {
    let threads = gateway.threads().unwrap();
    assert!(!threads.iter().any(|name| name.starts_with("iou-wrk")), "{threads:?}");
    assert!(threads.len() >= 2, "a control thread and a worker: {threads:?}");
}

/// A bpf file system of our own, unmounted on drop.
pub(crate) struct BpfFs(pub(crate) PathBuf);

impl BpfFs {
    pub(crate) fn mount(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("{name}-bpf"));
        fs::create_dir_all(&directory).unwrap();
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&directory).status().unwrap();
        assert!(status.success(), "cannot mount a bpf file system at {}", directory.display());
        Self(directory)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// Names of what is pinned in a directory.
pub(crate) fn pins(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
