//! The policy of a running network: who signs it, how it spreads, what packets do under it, and that a dead packet plane forgets none of it.
//!
//! ```text
//!   h1 ── g1 ══ switch ══ g2 ── h2      the rules are about these two
//!                  ╚══ g3 ── h3         no rule lets anything come from here
//! ```

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weir_bench::external::ping;
use weir_bench::member::{Member, Part};
use weir_bench::rig::mesh::{Mesh, Site};
use weir_bench::rig::{Family, Host};

use crate::mesh::network;
use crate::support::{alone, answered, beside_traffic, refused, wait_for_version};

/// How long what is to pass may take; what is refused is told at once.
const PATIENCE: Duration = Duration::from_secs(3);
/// A port that rules are about, and one that none is about.
const WEB: u16 = 8080;
const ELSE: u16 = 8081;
const DNS: u16 = 5353;

/// Site 1 may ask site 2 for some things, and nobody else may ask anybody for anything.
const FIRST: &str = r#"default = "deny"

[[rule]]
name = "ping"
from = ["node:site-1"]
to = ["prefix:10.2.0.0/24"]
proto = "icmp"

[[rule]]
name = "not-here"
from = ["any"]
to = ["prefix:10.2.0.0/24"]
proto = "tcp"
ports = [8081]
action = "deny"

[[rule]]
name = "tcp"
from = ["node:site-1"]
to = ["node:site-2"]
proto = "tcp"
ports = ["8080-8081"]

[[rule]]
name = "dns"
from = ["node:site-1"]
to = ["node:site-2"]
proto = "udp"
ports = [5353]

[[rule]]
name = "unused"
from = ["node:site-3"]
to = ["node:site-2"]
proto = 132
"#;

/// The same without pings, and with the two ports the other way round.
const SECOND: &str = r#"default = "deny"

[[rule]]
name = "tcp"
from = ["node:site-1"]
to = ["node:site-2"]
proto = "tcp"
ports = [8081]

[[rule]]
name = "dns"
from = ["node:site-1"]
to = ["node:site-2"]
proto = "udp"
ports = [5353]
"#;

/// Something that one host asks another for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    Ping,
    Tcp(u16),
    Udp(u16),
}

/// Who asks whom for what, and whether [`FIRST`] and [`SECOND`] let it pass.
const FLOWS: [(u8, u8, Flow, bool, bool); 9] = [
    (1, 2, Flow::Ping, true, false),
    (2, 1, Flow::Ping, false, false),
    (1, 3, Flow::Ping, false, false),
    (1, 2, Flow::Tcp(WEB), true, false),
    (1, 2, Flow::Tcp(ELSE), false, true),
    (2, 1, Flow::Tcp(WEB), false, false),
    (1, 2, Flow::Udp(DNS), true, true),
    (2, 1, Flow::Udp(DNS), false, false),
    (3, 2, Flow::Udp(DNS), false, false),
];

fn place(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.lan.address(Family::V4), port)
}

/// Whether a connection is made and a word comes back by it. Somebody listens in any case.
fn tcp_passes(from: &Host, to: &Host, port: u16) -> bool {
    let listener = to.enter(|| TcpListener::bind(place(to, port))).unwrap().unwrap();
    let Ok(mut asking) = from.enter(|| TcpStream::connect_timeout(&place(to, port), PATIENCE)).unwrap() else {
        return false;
    };
    let (mut answering, _) = listener.accept().unwrap();
    answering.write_all(b"word").unwrap();
    asking.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = [0; 4];
    asking.read_exact(&mut word).is_ok_and(|()| word == *b"word")
}

/// A socket on a host that asks a port of another one.
fn asking(from: &Host, to: SocketAddr) -> UdpSocket {
    let socket = from.enter(|| UdpSocket::bind(place(from, 0))).unwrap().unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Whether a datagram arrives and its answer comes back, though no rule is about answers. Who is refused is told so.
fn udp_passes(from: &Host, to: &Host, port: u16) -> bool {
    let answering = to.enter(|| UdpSocket::bind(place(to, port))).unwrap().unwrap();
    let asking = asking(from, place(to, port));
    asking.send(b"ask").unwrap();
    // A refusal is there as soon as an answer would be.
    let mut bytes = [0; 16];
    answering.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    for _ in 0..PATIENCE.as_millis() / 20 {
        match answering.recv_from(&mut bytes) {
            Ok((len, from)) => {
                assert_eq!(&bytes[..len], b"ask");
                answering.send_to(b"answer", from).unwrap();
                return asking.recv(&mut bytes).is_ok_and(|len| &bytes[..len] == b"answer");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        if let Some(error) = asking.take_error().unwrap() {
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
            return false;
        }
    }
    panic!("neither an answer nor a refusal of udp from {} to {} port {port}", from.name(), to.name());
}

fn passes(mesh: &Mesh, from: u8, to: u8, flow: Flow) -> bool {
    let (from, to) = (&mesh.site_of(from).host, &mesh.site_of(to).host);
    match flow {
        Flow::Ping => ping(from, to.lan.address(Family::V4), 2).unwrap().received > 0,
        Flow::Tcp(port) => tcp_passes(from, to, port),
        Flow::Udp(port) => udp_passes(from, to, port),
    }
}

/// What a node says that the policy does with a flow.
fn explained(member: &Member<'_>, from: &Site, to: &Site, flow: Flow) -> Value {
    let [from, to] = [from, to].map(|site| site.host.lan.address(Family::V4).to_string());
    let (protocol, port) = match flow {
        Flow::Ping => ("icmp", None),
        Flow::Tcp(port) => ("tcp", Some(port.to_string())),
        Flow::Udp(port) => ("udp", Some(port.to_string())),
    };
    let mut arguments = vec!["policy", "explain", &from, &to, "--proto", protocol];
    arguments.extend(port.iter().flat_map(|port| ["--port", port]));
    member.weir(&arguments).unwrap()
}

/// Asserts that packets do what the policy says, and that every gateway says the same of them.
fn packets_do_what_is_said(mesh: &Mesh, members: &[Member<'_>], under: &str, is_allowed: impl Fn(usize) -> bool) {
    for (at, (from, to, flow, ..)) in FLOWS.into_iter().enumerate() {
        let what = format!("{under}: {flow:?} from h{from} to h{to}");
        assert_eq!(passes(mesh, from, to, flow), is_allowed(at), "{what}: {}", members[0].log());
        for member in members {
            let explained = explained(member, mesh.site_of(from), mesh.site_of(to), flow);
            assert_eq!(explained["allowed"], is_allowed(at), "{what}: g{} says {explained}", member.site().number);
            assert!(explained["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{what}: {explained}");
        }
    }
}

/// Writes a policy beside a node's configuration.
fn written(member: &Member<'_>, name: &str, text: &str) -> String {
    let path: PathBuf = member.directory().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// How often each rule decided at a node, by its number in the document.
fn hits(member: &Member<'_>) -> Vec<u64> {
    let policy = member.weir(&["policy", "show"]).unwrap();
    policy["rules"].as_array().unwrap().iter().map(|rule| rule["hits"].as_u64().unwrap()).collect()
}

fn drops(member: &Member<'_>, reason: &str) -> u64 {
    member.dropped().unwrap().get(reason).copied().unwrap_or(0)
}

fn bad_documents_are_refused(members: &[Member<'_>]) {
    let bad = [
        ("syntax.toml", "default = \"deny\"\n[[rule]]\nname = web\n", &["line 3"][..]),
        ("key.toml", &FIRST.replace("from = [\"any\"]", "form = [\"any\"]"), &["rule 2", "not-here", "form", "from"]),
        ("port.toml", &FIRST.replace("[5353]", "[65536]"), &["rule 4", "dns", "65536"]),
        ("default.toml", &FIRST.replacen("\"deny\"", "\"denny\"", 1), &["denny", "deny"]),
    ];
    for (name, text, words) in bad {
        let file = written(&members[0], name, text);
        for command in ["check", "diff", "apply"] {
            let said = refused(&members[0], &["policy", command, &file]);
            assert!(words.iter().all(|word| said.contains(word)), "policy {command}: {said}");
            assert!(command == "apply" || said.contains(name), "policy {command}: {said}");
        }
    }
    let nobody = written(&members[0], "nobody.toml", &FIRST.replace("node:site-3", "node:site-33"));
    let found = members[0].weir(&["policy", "check", &nobody, "--members"]).unwrap();
    assert!(found["findings"].to_string().contains("site-33"), "{found}");
    let good = written(&members[1], "good.toml", FIRST);
    assert_eq!(members[1].weir(&["policy", "check", &good, "--members"]).unwrap()["findings"], Value::Array(vec![]));
    // It is no operator's node.
    let said = refused(&members[1], &["policy", "apply", &good]);
    assert!(said.contains("no issuer"), "{said}");
}

/// A gateway that knows no rules yet: it is the one that receives who enforces them.
fn the_receiver_enforces(mesh: &Mesh, members: &[Member<'_>], file: &str) {
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    answered(h2, h1.lan.address(Family::V4), 3);
    let held = members[1].hold_part(Part::Control).unwrap();
    let applied = members[0].weir(&["policy", "apply", file]).expect("in force");
    assert_eq!((&applied["version"], &applied["otherwise"]), (&Value::from(1), &Value::from("deny")));
    wait_for_version(&members[..1], "policy", 1);
    let seen = ping(h2, h1.lan.address(Family::V4), 5).unwrap();
    assert_eq!(seen.received, 0, "{seen:?}");
    assert!(drops(&members[0], "policy_denied") >= 5, "{:?}", members[0].dropped());
    assert_eq!(drops(&members[1], "local_policy_denied"), 0);
    drop(held);
    wait_for_version(members, "policy", 1);
    // From now on its own gateway tells the host.
    let seen = ping(h2, h1.lan.address(Family::V4), 5).unwrap();
    assert_eq!(seen.received, 0, "{seen:?}");
    assert!(drops(&members[1], "local_policy_denied") >= 5, "{:?}", members[1].dropped());
}

fn an_error_about_a_flow_comes_back(mesh: &Mesh) {
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    let asking = asking(h1, place(h2, DNS));
    asking.send(b"nobody listens").unwrap();
    let error = asking.recv(&mut [0; 16]).expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

fn a_dead_packet_plane_opens_nothing(mesh: &Mesh, members: &[Member<'_>]) {
    let [one, two, three] = [1, 2, 3].map(|number| mesh.site_of(number));
    let restart = || {
        let old = members[0].pid(Part::Plane);
        members[0].kill9(Part::Plane).unwrap();
        members[0].wait_for("another packet plane", |member| member.pid(Part::Plane) != old).unwrap();
        members[0].wait_for_plane().unwrap();
        members[0].wait_for_peers(2).unwrap();
    };
    let (((), denied), back) = beside_traffic(two, one, || beside_traffic(one, three, restart));
    assert!(denied.sent >= 200 && back.sent >= 200, "{denied:?}, {back:?}");
    assert_eq!((denied.received, back.received), (0, 0));
    answered(&one.host, two.host.lan.address(Family::V4), 10);
}

#[test]
fn a_policy_spreads_decides_counts_and_explains_and_can_be_taken_back() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    bad_documents_are_refused(&members);
    let [first, second] =
        [("first.toml", FIRST), ("second.toml", SECOND)].map(|(name, text)| written(&members[0], name, text));
    the_receiver_enforces(&mesh, &members, &first);
    packets_do_what_is_said(&mesh, &members, "the first version", |at| FLOWS[at].3);
    an_error_about_a_flow_comes_back(&mesh);
    for (number, unused) in [(1, [false, false, false, false, true]), (2, [false, true, false, false, true])] {
        // What the sending gateway refuses never reaches the other one.
        let hits = hits(&members[number - 1]);
        assert_eq!(hits.iter().map(|hits| *hits == 0).collect::<Vec<_>>(), unused, "g{number}: {hits:?}");
    }
    a_dead_packet_plane_opens_nothing(&mesh, &members);
    packets_do_what_is_said(&mesh, &members, "another packet plane", |at| FLOWS[at].3);

    // What would change, seen from any gateway.
    let changes = members[2].weir(&["policy", "diff", &second]).unwrap();
    let told =
        |change: &Value| [&change["kind"], &change["rule"]].map(|word| word.as_str().unwrap().to_owned()).join(" ");
    let told: Vec<_> = changes.as_array().unwrap().iter().map(told).collect();
    assert_eq!(told, ["removed ping", "removed not-here", "removed unused", "changed tcp"], "{changes}");
    members[0].weir(&["policy", "apply", &second]).expect("in force");
    wait_for_version(&members, "policy", 2);
    packets_do_what_is_said(&mesh, &members, "the second version", |at| FLOWS[at].4);
    assert_eq!(members[1].weir(&["policy", "diff", &second]).unwrap(), Value::Array(vec![]));

    members[0].weir(&["policy", "rollback", "1"]).expect("in force");
    wait_for_version(&members, "policy", 3);
    packets_do_what_is_said(&mesh, &members, "the first version again", |at| FLOWS[at].3);
    for member in &members {
        let history = member.weir(&["policy", "history"]).unwrap();
        let rows = history.as_array().unwrap().iter();
        let rows: Vec<_> =
            rows.map(|row| [row["version"].as_u64(), row["rules"].as_u64()].map(Option::unwrap)).collect();
        assert_eq!(rows, [[1, 5], [2, 2], [3, 5]], "g{}: {history}", member.site().number);
        let in_force = history.as_array().unwrap().iter().filter(|row| row["in_force"] == true);
        assert_eq!(in_force.map(|row| &row["version"]).collect::<Vec<_>>(), [3], "{history}");
        assert_eq!(member.weir(&["policy", "show"]).unwrap()["text"], FIRST);
    }
    let said = refused(&members[0], &["policy", "rollback", "4"]);
    assert!(said.contains("history"), "{said}");
}
