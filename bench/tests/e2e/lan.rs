//! Members find one another on the network that they share, and notice at once what changes on their hosts.

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_bench::external::ping;
use weir_bench::member::{Member, Part};
use weir_bench::network::bring_up;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_bench::rig::{Family, Namespace};

use crate::support::{alone, both_ways, eventually, output};

/// Speaks on the switch.
const ON_THE_WAN: &str = "[discovery]\nmdns_interfaces = [\"wan\"]\n";

/// Nodes that advertise what their interface has, and speak mDNS on it.
fn network(mesh: &Mesh) -> Vec<Member<'_>> {
    let mut members: Vec<_> = mesh.sites().iter().map(|site| Member::new(site, ON_THE_WAN).unwrap()).collect();
    for member in &members {
        let file = member.directory().join("weir.toml");
        let text = fs::read_to_string(&file).unwrap();
        let fixed = format!("\"{}:4646\"", member.site().wan());
        assert!(text.contains(&fixed), "{text}");
        fs::write(&file, text.replace(&fixed, "\"interface\"")).unwrap();
    }
    bring_up(&mut members).expect("a network of all sites");
    members
}

/// Gives a gateway another address on its WAN in place of all that it has.
fn readdress(site: &Site, host: u8) -> String {
    let to = format!("192.0.2.{host}");
    output(&site.gateway, "ip", &["address", "flush", "dev", "wan", "scope", "global"]);
    output(&site.gateway, "ip", &["address", "add", &format!("{to}/24"), "dev", "wan"]);
    output(&site.gateway, "ip", &["route", "replace", "default", "via", "192.0.2.254"]);
    to
}

fn candidates(member: &Member<'_>) -> Vec<Value> {
    member.weir(&["peers", "--discovered"]).unwrap().as_array().unwrap().clone()
}

fn counted(member: &Member<'_>, name: &str) -> u64 {
    let status = member.weir(&["status"]).unwrap();
    let row = status["counters"].as_array().unwrap().iter().find(|row| row["name"] == name);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

#[test]
fn three_gateways_whose_addresses_all_changed_while_they_were_off_find_each_other_by_mdns_alone() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let mut members = network(&mesh);
    members.iter_mut().for_each(|member| member.stop().unwrap());
    for site in mesh.sites() {
        readdress(site, 100 + site.number);
    }
    let began = Instant::now();
    for member in &mut members {
        member.run().unwrap();
        member.wait_for_plane().unwrap();
    }
    members.iter().for_each(|member| member.wait_for_peers(2).unwrap());
    println!("found after {:?}", began.elapsed());
    for (one, other) in [(1, 2), (1, 3), (2, 3)] {
        both_ways(mesh.site_of(one), mesh.site_of(other));
    }
    for member in &members {
        let found = |member: &Member<'_>| {
            let rows = candidates(member);
            rows.iter().filter(|row| row["state"] == "member" && row["sources"][0] == "mdns").count() == 2
        };
        member.wait_for("two candidates that are members", found).unwrap();
        assert!(counted(member, "mdns_heard") >= 2 && counted(member, "mdns_malformed") == 0);
        // No capability, no file, a root of its own.
        let status = fs::read_to_string(format!("/proc/{}/status", member.pid(Part::Mdns).unwrap())).unwrap();
        let of = |field: &str| status.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
        assert!(of("CapEff").ends_with("0000000000000000") && of("NoNewPrivs").ends_with('1'), "{status}");
        let shown = member.text(&["peers", "--discovered"]).unwrap();
        assert!(shown.contains("mdns") && shown.contains("site-"), "{shown}");
    }
    // A process that is killed is started again, and is heard again.
    let before = counted(&members[0], "mdns_heard");
    members[1].kill9(Part::Mdns).unwrap();
    members[0].wait_for("the voice of the next process", |member| counted(member, "mdns_heard") > before).unwrap();
}

#[test]
fn an_address_that_changes_is_told_to_everybody_and_said_anew_at_once() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    let heard = counted(&members[0], "mdns_heard");
    // What the interface has is what is advertised, so others may ask it.
    for member in &members {
        let is_server =
            |member: &Member<'_>| member.weir(&["dht", "status"]).is_ok_and(|status| status["mode"] == "server");
        member.wait_for("a server that others reach", is_server).unwrap();
    }
    // Interfaces of containers come and go.
    let (gateway, changed) = (&mesh.site_of(2).gateway, counted(&members[1], "host_changed"));
    for _ in 0..5 {
        output(gateway, "ip", &["link", "add", "name", "container", "type", "veth", "peer", "name", "inside"]);
        output(gateway, "ip", &["link", "set", "container", "up"]);
        output(gateway, "ip", &["link", "set", "inside", "up"]);
        // With an address of its own, as soon as nobody else is seen to have it.
        let has_address = || {
            let shown = output(gateway, "ip", &["-6", "address", "show", "dev", "container"]);
            shown.contains("fe80") && !shown.contains("tentative")
        };
        assert!(eventually(Duration::from_secs(5), has_address));
        output(gateway, "ip", &["link", "delete", "container"]);
    }
    let is_news = |member: &Member<'_>| counted(member, "host_changed") > changed;
    assert!(!eventually(Duration::from_secs(1), || is_news(&members[1])), "{}", members[1].log());
    let to = readdress(mesh.site_of(2), 102);
    let began = Instant::now();
    let at = |member: &Member<'_>| {
        candidates(member).iter().any(|row| row["address"] == format!("{to}:4646") && row["state"] == "member")
    };
    members[0].wait_for("site 2 at its new address", at).unwrap();
    println!("said anew after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(counted(&members[0], "mdns_heard") > heard && is_news(&members[1]));
    // Links are whole long before an idle time is over: what is said passes.
    members[0].weir(&["rekey", "site-2"]).unwrap_or_else(|error| panic!("{error}: {}", members[0].log()));
    members[1].weir(&["cert", "renew"]).unwrap_or_else(|error| panic!("{error}: {}", members[1].log()));
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    assert!(eventually(Duration::from_secs(10), || ping(h2, h1.lan.address(Family::V4), 2).unwrap().received == 2));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    both_ways(mesh.site_of(1), mesh.site_of(2));
}

/// A name of DNS (RFC 1035 §3.1).
fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()));
    labels.chain([0]).collect()
}

/// A resource record that is good for an hour and a quarter (RFC 1035 §4.1.3).
fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = name(owner);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0x11, 0x94]);
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// An answer that nobody asked for: a service of our type, with all that belongs to one.
fn invented(number: usize) -> Vec<u8> {
    let (instance, host) = (format!("i{number}._weir._udp.local"), format!("h{number}.local"));
    let srv = [&[0, 0, 0, 0, 0x12, 0x26], &name(&host)[..]].concat();
    let records = [
        record("_weir._udp.local", 12, &name(&instance)),
        record(&instance, 33, &srv),
        record(&instance, 16, b"\x03v=1\x15s=not hexadecimal ...\x02h="),
        record(&host, 1, &[192, 0, 2, 250]),
    ];
    [&[0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0][..], &records.concat()].concat()
}

/// Whoever says too much is not listened to for a while, and neither packets nor the control plane suffer.
#[test]
fn a_flood_of_services_is_cut_off_and_costs_the_gateway_nothing() {
    const SERVICES: usize = 6000;
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    output(mesh.switch(), "ip", &["address", "add", "192.0.2.200/24", "dev", "br"]);
    let before = members[0].pid(Part::Control);
    let flood = || {
        let socket = UdpSocket::bind("192.0.2.200:5353").unwrap();
        for number in 0..SERVICES {
            socket.send_to(&invented(number), "224.0.0.251:5353").unwrap();
            if number % 50 == 0 {
                // As fast as it is taken, or the receiver's socket drops most of it.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    };
    let flooded = |member: &Member<'_>| {
        mesh.switch().enter(flood).unwrap();
        counted(member, "mdns_flooded") > 0
    };
    members[0].wait_for("the end of listening", flooded).unwrap();
    let over = counted(&members[0], "mdns_over");
    assert!(over == 1 && counted(&members[0], "mdns_malformed") <= 128, "{over}");
    let pid = members[0].pid(Part::Mdns).expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
    println!("the process has {rss}");
    let kib: u64 = rss.split(' ').next().unwrap().parse().unwrap();
    assert!(kib < 96 * 1024, "{rss}");
    assert_eq!(members[0].pid(Part::Control), before, "{}", members[0].log());
    assert!(candidates(&members[0]).iter().all(|row| row["address"] != "192.0.2.250:4646"));
    both_ways(mesh.site_of(1), mesh.site_of(2));
}

/// A daemon in the switch's namespace and the bus that it speaks by.
struct Avahi {
    directory: PathBuf,
    processes: Vec<Child>,
}

impl Avahi {
    /// `None` where it is not installed.
    fn start(namespace: &Namespace, member: &Member<'_>) -> Option<Self> {
        let is_there = |name: &str| Command::new("which").arg(name).stdout(Stdio::null()).status().unwrap().success();
        if !["dbus-daemon", "avahi-daemon", "avahi-browse"].into_iter().all(is_there) {
            return None;
        }
        let directory = member.directory().join("avahi");
        fs::create_dir_all(&directory).unwrap();
        let mut avahi = Self { directory, processes: vec![] };
        let bus = format!("--address=unix:path={}", avahi.bus().display());
        let mut command = namespace.command("dbus-daemon");
        avahi.spawn(command.args(["--session", "--nofork", &bus]));
        assert!(eventually(Duration::from_secs(5), || avahi.bus().exists()), "no bus");
        let config = avahi.directory.join("avahi-daemon.conf");
        let text = "[server]\nhost-name=judge\nallow-interfaces=br\nuse-ipv6=no\n[publish]\ndisable-publishing=yes\n";
        fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
        let mut command = namespace.command("avahi-daemon");
        command.args(["--no-drop-root", "--no-chroot", "--no-rlimits", "-f"]).arg(&config);
        let address = avahi.address();
        avahi.spawn(command.env("DBUS_SYSTEM_BUS_ADDRESS", address));
        Some(avahi)
    }

    fn bus(&self) -> PathBuf {
        self.directory.join("bus")
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.bus().display())
    }

    fn spawn(&mut self, command: &mut Command) {
        let log = fs::File::create(self.directory.join(format!("log-{}", self.processes.len()))).unwrap();
        self.processes.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn browse(&self, namespace: &Namespace) -> String {
        let mut command = namespace.command("avahi-browse");
        command.args(["--resolve", "--parsable", "--terminate", "_weir._udp"]);
        let output = command.env("DBUS_SYSTEM_BUS_ADDRESS", self.address()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        let logs = (0..self.processes.len()).map(|at| self.directory.join(format!("log-{at}")));
        logs.filter_map(|path| fs::read_to_string(path).ok()).collect()
    }
}

impl Drop for Avahi {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Another program's mDNS sees each gateway, with its address and port, and neither who it is nor of which network.
#[test]
fn avahi_sees_that_gateways_are_there_and_not_who_they_are() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    output(mesh.switch(), "ip", &["address", "add", "192.0.2.200/24", "dev", "br"]);
    let Some(avahi) = Avahi::start(mesh.switch(), &members[0]) else {
        eprintln!(
            "SKIPPED: no avahi-daemon, avahi-browse and dbus-daemon: apt-get install avahi-utils avahi-daemon dbus"
        );
        return;
    };
    let mut seen = String::new();
    let resolved = |text: &str| text.lines().filter(|line| line.starts_with('=')).count();
    let all = eventually(Duration::from_secs(20), || {
        seen = avahi.browse(mesh.switch());
        resolved(&seen) >= 2
    });
    assert!(all, "{seen} {}", avahi.log());
    let mut addresses = vec![];
    for line in seen.lines().filter(|line| line.starts_with('=')) {
        // =;interface;protocol;name;type;domain;host;address;port;text
        let fields: Vec<&str> = line.split(';').collect();
        let (name, host, text) = (fields[3], fields[6], fields[9]);
        let is_hex = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(is_hex(name) && is_hex(host.strip_suffix(".local").unwrap()), "{line}");
        assert_eq!((fields[1], fields[4], fields[8]), ("br", "_weir._udp", "4646"), "{line}");
        let keys: Vec<&str> = text.split(' ').filter_map(|pair| pair.trim_matches('"').split('=').next()).collect();
        assert!(keys.iter().all(|key| ["v", "s", "h"].contains(key)) && keys.len() == 3, "{line}");
        addresses.push(fields[7].to_owned());
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
    for member in &members {
        let status = member.weir(&["status"]).unwrap();
        let (name, node, id) =
            (&status["identity"]["name"], &status["identity"]["node"], &status["network"]["network"]);
        for secret in [name, node, id, &status["network"]["name"]] {
            assert!(!seen.contains(secret.as_str().unwrap()), "{secret} in {seen}");
        }
    }
}
