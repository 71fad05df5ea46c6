//! Starts that cannot work, and stops that leave nothing.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use weir_bench::external::tcp_transfer;
use weir_bench::gateway::{Gateway, GatewayConfig, PORT, TABLE, TUN, dataplane};
use weir_bench::pair::{OVERLAY, PairConfig};
use weir_bench::rig::{Host, Rig};

use crate::support::*;

/// A directory that goes when the test does.
struct Directory(PathBuf);

impl Directory {
    fn new(rig: &Rig) -> Self {
        let path = std::env::temp_dir().join(format!("{}-start", rig.name()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn socket(&self) -> PathBuf {
        self.0.join("plane.sock")
    }

    fn config(&self) -> String {
        config().toml(&self.socket())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config() -> GatewayConfig {
    GatewayConfig {
        tun_addresses: vec!["10.200.0.1/24".to_owned()],
        prefixes: OVERLAY.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        ..GatewayConfig::default()
    }
}

/// Runs a start that must fail at once, with one line that names the remedy, and leave all as it was.
#[track_caller]
fn refused(host: &Host, socket: &Path, mut command: Command, expected: &[&str]) {
    let before = network_state(host);
    let had_socket = socket.exists();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut status = None;
    if !eventually(Duration::from_secs(15), || {
        status = child.try_wait().unwrap();
        status.is_some()
    }) {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it started, and should not have");
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].starts_with("weir-dataplane: error: "), "{said}");
    for word in expected {
        assert!(errors[0].contains(word), "{word} is not in: {said}");
    }
    assert!(output.stdout.is_empty());
    assert_eq!(network_state(host), before, "{said}");
    assert_eq!(socket.exists(), had_socket, "{said}");
}

fn run(host: &Host, config: &Path) -> Command {
    let mut command = dataplane(host).unwrap();
    command.arg("run").arg("--config").arg(config);
    command
}

#[test]
fn a_start_that_cannot_work_says_why_in_one_line_and_leaves_nothing() {
    let _alone = alone();
    let rig = rig();
    let directory = Directory::new(&rig);
    let good = directory.config();
    let (host, socket) = (rig.g1(), directory.socket());
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        directory.write("weir.toml", good.replacen(from, to, 1))
    };

    let missing = directory.0.join("missing.toml");
    refused(host, &socket, run(host, &missing), &["missing.toml", "check the path"]);
    refused(host, &socket, run(host, &directory.0), &["cannot be read"]);
    let garbage = directory.write("garbage.toml", b"[wan\n\xff\xfe");
    refused(host, &socket, run(host, &garbage), &["garbage.toml", "UTF-8"]);
    let file = directory.write("half.toml", "[wan\n");
    refused(host, &socket, run(host, &file), &["half.toml:1", "TOML"]);
    refused(host, &socket, run(host, &with("port =", "prot =")), &["weir.toml:", "did you mean `wan.port`?"]);
    refused(host, &socket, run(host, &with("interface = \"wan\"", "interface = \"nope\"")), &["nope", "wan.interface"]);
    refused(host, &socket, run(host, &with("[\"lan\"]", "[\"nope\"]")), &["nope", "ip link"]);
    refused(host, &socket, run(host, &with("name = \"weir0\"", "name = \"lo\"")), &["lo"]);
    refused(
        host,
        &socket,
        run(host, &directory.write("core.toml", good.clone() + "\n[workers]\ncores = [1000]\n")),
        &["1000", "workers.cores"],
    );

    let object = directory.write("garbage.o", "this is not an ELF object");
    let text = format!("{good}\n[bpf]\nobject = \"{}\"\n", object.display());
    refused(host, &socket, run(host, &directory.write("object.toml", text)), &["object"]);
    let text = format!("{good}\n[bpf]\npin = \"{}\"\n", directory.0.join("pins").display());
    refused(host, &socket, run(host, &directory.write("pin.toml", text)), &["pins", "bpf file system"]);
    assert!(!directory.0.join("pins").exists());

    let file = directory.write("weir.toml", &good);
    let blocker = host.enter(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    refused(host, &socket, run(host, &file), &["4646", "wan.port"]);
    // What was pinned before that goes again.
    let bpffs = BpfFs::mount(rig.name());
    let pinned = bpffs.0.join("weir");
    let text = format!("{good}\n[bpf]\npin = \"{}\"\n", pinned.display());
    refused(host, &socket, run(host, &directory.write("pin.toml", text)), &["4646", "wan.port"]);
    assert!(!pinned.exists(), "{:?}", pins(&pinned));
    drop(blocker);

    fs::write(&socket, "a file of somebody").unwrap();
    refused(host, &socket, run(host, &file), &["plane.sock"]);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a file of somebody");
    fs::remove_file(&socket).unwrap();
}

#[test]
fn purge_does_not_touch_a_directory_that_holds_no_pins() {
    let _alone = alone();
    let rig = rig();
    let directory = Directory::new(&rig);
    let precious = directory.write("precious", "a file of somebody");
    let text = format!("{}\n[bpf]\npin = \"{}\"\n", directory.config(), directory.0.display());
    let mut command = dataplane(rig.g1()).unwrap();
    let output = command.arg("purge").arg("--config").arg(directory.write("weir.toml", text)).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("bpf.pin"), "{output:?}");
    assert!(precious.exists());
}

#[test]
fn a_missing_capability_is_named() {
    let _alone = alone();
    let rig = rig();
    let directory = Directory::new(&rig);
    let file = directory.write("weir.toml", directory.config());
    for (lacking, name) in [
        ("net_admin", "NET_ADMIN"),
        ("bpf", "BPF"),
        ("perfmon", "PERFMON"),
        ("ipc_lock", "IPC_LOCK"),
        ("net_raw", "NET_RAW"),
    ] {
        // SYS_ADMIN stands for BPF and PERFMON.
        let without = format!("-{lacking},-sys_admin");
        let program = run(rig.g1(), &file);
        let mut command = rig.g1().command("setpriv");
        command.args([format!("--bounding-set={without}"), format!("--inh-caps={without}")]);
        command.arg(program.get_program()).args(program.get_args());
        refused(rig.g1(), &directory.socket(), command, &[name]);
    }
}

#[test]
fn a_second_plane_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        let directory = Directory::new(&rig);
        let socket = pair.g1.socket();
        // The same configuration; and one that shares nothing but the socket.
        refused(rig.g1(), &socket, run(rig.g1(), &pair.g1.config_file()), &["plane.sock"]);
        let other = config().toml(&socket).replace("4646", "4647").replace(TUN, "weir1").replace("7770", "7771");
        refused(rig.g1(), &socket, run(rig.g1(), &directory.write("weir.toml", other)), &["plane.sock"]);
        answered(rig.h1(), rig.h2().lan.v4.into(), 10);
        assert!(pair.g1.counters().is_ok());
    });
}

#[test]
fn a_stale_socket_is_no_obstacle() {
    let _alone = alone();
    let rig = rig();
    let mut gateway = Gateway::start(rig.g1(), config()).unwrap();
    gateway.kill9().unwrap();
    assert!(gateway.socket().exists(), "a killed plane leaves its socket: that is what this is about");
    gateway.restart().unwrap();
    assert!(gateway.counters().is_ok());
}

#[test]
fn a_clean_stop_leaves_only_the_unreachable_routes_and_purge_takes_those() {
    let _alone = alone();
    let rig = rig();
    let before = network_state(rig.g1());
    with_pair(&rig, PairConfig::default(), |pair| {
        let (h1, h2) = (rig.h1(), rig.h2());
        answered(h1, h2.lan.v6.into(), 10);
        tcp_transfer(h1, h2, h2.lan.v4.into(), Duration::from_secs(1)).unwrap();
        for side in 0..2 {
            assert_no_io_worker(pair.side(side));
        }
        assert!(attached(rig.g1()).contains("wan: "), "what is to go is there now");
        assert!(pair.g1.stop().unwrap().success());
        assert!(!pair.g1.socket().exists());
        assert!(rig.g1().interface_index(TUN).is_err());
        assert!(!attached(rig.g1()).contains("wan: "));
        let table = TABLE.to_string();
        for (flag, prefix) in [("-4", OVERLAY[0]), ("-6", OVERLAY[1])] {
            let routes = output(rig.g1(), "ip", &[flag, "route", "show", "table", &table]);
            assert!(routes.contains(&format!("unreachable {prefix}")), "{routes}");
            assert!(!routes.contains(TUN), "{routes}");
        }
        // h1 is told at once instead of waiting for nothing.
        let text = rig.h1().command("ping").args(["-n", "-c", "1", "-W", "1", "10.2.0.2"]).output().unwrap();
        assert!(String::from_utf8_lossy(&text.stdout).contains("Unreachable"), "{text:?}");
        pair.g1.purge().unwrap();
        assert_eq!(network_state(rig.g1()), before);
        pair.g1.purge().unwrap();
    });
}
