//! Messages of applications: `weir send` beside one gateway and `weir recv` beside another, with whole nodes and real links between.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;
use weir_bench::member::{Member, Part};
use weir_bench::network::join;
use weir_bench::rig::mesh::Mesh;

use crate::support::{alone, eventually, refused, wait_for_version};

const MIB: usize = 1 << 20;
/// How long something on its way may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Three gateways; all but the first are in the group `edge`.
fn network(mesh: &Mesh) -> Vec<Member<'_>> {
    let mut members: Vec<_> = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect();
    let (founder, others) = members.split_first_mut().unwrap();
    founder.found("example").unwrap();
    founder.run().unwrap();
    founder.wait_for_plane().unwrap();
    for other in others {
        let (name, subnet) = (format!("site-{}", other.site().number), other.site().subnet());
        let invite = ["invite", "--name", &name, "--subnet", &subnet, "--group", "edge"];
        let token = founder.weir(&invite).unwrap()["token"].as_str().unwrap().to_owned();
        join(other, &token).unwrap();
    }
    members.iter().for_each(|member| member.wait_for_peers(2).unwrap());
    members
}

/// A body that says which it is, and is not the same everywhere.
fn body(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at / 251 + at) as u8).collect()
}

fn file(member: &Member<'_>, bytes: &[u8]) -> String {
    let path = member.directory().join("body");
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// Sends a body and tells what is said of each receiver, by its name: the message's state.
fn send(from: &Member<'_>, to: &str, bytes: &[u8], more: &[&str]) -> Vec<(String, String)> {
    let sent = from.output(&[&["send", to, &file(from, bytes)], more].concat()).unwrap();
    let rows: Value =
        serde_json::from_slice(&sent.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&sent.stderr)));
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let mut rows: Vec<_> = rows.as_array().unwrap().iter().map(|row| (text(row, "name"), text(row, "state"))).collect();
    rows.sort();
    rows
}

fn is_sent(from: &Member<'_>, to: &str, bytes: &[u8], more: &[&str], state: &str) {
    assert_eq!(send(from, to, bytes, more), [(to.to_owned(), state.to_owned())], "{}", from.log());
}

/// So many messages as `weir recv --json` prints them.
fn receive(at: &Member<'_>, topic: &str, count: usize) -> Vec<Value> {
    let count = count.to_string();
    let output = at.output(&["recv", "--topic", topic, "--count", &count, "--timeout", "20s"]).unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stderr), at.log());
    let lines = output.stdout.lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn body_of(message: &Value) -> Vec<u8> {
    BASE64.decode(message["body"].as_str().unwrap().as_bytes()).unwrap()
}

/// What a command prints that is no JSON.
fn printed(at: &Member<'_>, arguments: &[&str]) -> Output {
    at.spawn(arguments, Stdio::null(), Stdio::piped()).unwrap().wait_with_output().unwrap()
}

fn has_nothing(at: &Member<'_>, topic: &str) -> bool {
    let output = at.output(&["recv", "--topic", topic, "--timeout", "1s"]).unwrap();
    !output.status.success() && output.stdout.is_empty()
}

fn waiting(at: &Member<'_>, which: &str) -> Vec<Value> {
    at.weir(&["messages"]).unwrap()[which].as_array().unwrap().clone()
}

#[test]
fn messages_reach_a_member_or_a_group_whole_and_in_their_order_as_fast_as_they_are_read() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    let [one, two, three] = &members[..] else { unreachable!("three sites") };

    // To one, by the standard input and as it is; who waits for it hears that it was taken.
    let mut sending =
        one.spawn(&["send", "site-2", "--wait", "--timeout", "20s"], Stdio::piped(), Stdio::piped()).unwrap();
    sending.stdin.take().unwrap().write_all(b"\x00hello\xff").unwrap();
    assert_eq!(printed(two, &["recv"]).stdout, b"\x00hello\xff");
    let sent = sending.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&sent.stdout);
    assert!(sent.status.success() && said.starts_with("site-2: delivered "), "{said}");

    // To all others of a group.
    let states = send(one, "@edge", b"to all", &["--topic", "news/today"]);
    assert_eq!(states, [("site-2".into(), "queued".into()), ("site-3".into(), "queued".into())]);
    for member in [two, three] {
        let received = receive(member, "news/*", 1).remove(0);
        assert_eq!((&received["name"], &received["topic"]), (&"site-1".into(), &"news/today".into()));
        assert_eq!(body_of(&received), b"to all");
    }
    assert_eq!(send(two, "@edge", b"", &[]), [("site-3".into(), "queued".into())]);
    assert!(refused(one, &["send", "@nobody", &file(one, b"")]).contains("nobody else is in the group nobody"));

    // The longest there is, and one byte more.
    let longest = body(1, 16 * MIB);
    is_sent(one, "site-2", &longest, &["--topic", "long"], "queued");
    assert!(printed(two, &["recv", "--topic", "long"]).stdout == longest);
    assert!(refused(one, &["send", "site-2", &file(one, &body(1, 16 * MIB + 1))]).contains("16777216"));

    // In the order of each topic, whatever their lengths.
    for number in 0..12 {
        is_sent(one, "site-3", &body(number, number % 3 * 300_000), &["--topic", "ordered"], "queued");
    }
    let received = receive(three, "ordered", 12);
    assert!(received.iter().enumerate().all(|(number, one)| body_of(one) == body(number, number % 3 * 300_000)));

    // A datagram: kept for nobody, and never acknowledged.
    is_sent(one, "site-2", b"now", &["--topic", "dgram", "--datagram"], "sent");
    let received = receive(two, "dgram", 1).remove(0);
    assert_eq!((body_of(&received), &received["id"]), (b"now".to_vec(), &"".into()));
    assert!(refused(one, &["send", "site-2", &file(one, &[0; 20_000]), "--datagram"]).contains("16384"));

    // A program that nobody listens to any more gives back what it could not print, at once.
    is_sent(one, "site-2", b"kept", &["--topic", "broken"], "queued");
    let mut deaf = two.spawn(&["recv", "--topic", "broken", "--json"], Stdio::null(), Stdio::piped()).unwrap();
    drop(deaf.stdout.take());
    assert!(!deaf.wait_with_output().unwrap().status.success());
    assert_eq!(body_of(&receive(two, "broken", 1)[0]), b"kept");

    back_pressure(one, two);
    for member in &members {
        assert!(eventually(PATIENCE, || waiting(member, "outbox").iter().all(|row| row["name"] == "site-3")));
    }
}

/// Who does not read fills an inbox, then the sender's outbox, and then `weir send` refuses; once it is read all of it comes, and more is taken.
fn back_pressure(one: &Member<'_>, two: &Member<'_>) {
    let bodies: Vec<Vec<u8>> = (0..7).map(|number| body(number, 4 * MIB)).collect();
    for body in &bodies {
        is_sent(one, "site-2", body, &["--topic", "flow"], "queued");
    }
    is_sent(one, "site-2", &bodies[0], &["--topic", "flow"], "refused");
    let inbox = || waiting(two, "inbox").iter().map(|row| row["bytes"].as_u64().unwrap()).sum::<u64>();
    assert!(eventually(PATIENCE, || inbox() >= 12 * MIB as u64));
    // Somebody who reads a line, and then nothing for a while.
    let mut child =
        two.spawn(&["recv", "--topic", "flow", "--count", "7", "--json"], Stdio::null(), Stdio::piped()).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        body_of(&serde_json::from_str(&line).unwrap())
    };
    assert!(next() == bodies[0]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(inbox() <= 16 * MIB as u64);
    let held = waiting(one, "outbox").iter().find(|row| row["name"] == "site-2").map(|row| row["messages"].clone());
    assert!(held.as_ref().and_then(Value::as_u64) >= Some(6), "{held:?}");
    assert!(bodies[1..].iter().all(|body| next() == *body));
    assert!(ended_well(child));
    is_sent(one, "site-2", &bodies[0], &["--topic", "flow"], "queued");
    assert!(body_of(&receive(two, "flow", 1)[0]) == bodies[0]);
}

fn ended_well(mut child: Child) -> bool {
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success(), "{said}");
    true
}

#[test]
fn messages_outlive_processes_and_the_policy_and_the_issuer_have_their_say() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let mut members = network(&mesh);

    // The receiver is away, and the sender is killed and started again meanwhile.
    members[2].stop().unwrap();
    let bodies: Vec<Vec<u8>> =
        [5, 3 * MIB, 0, 16 << 10].into_iter().enumerate().map(|(at, len)| body(at, len)).collect();
    for body in &bodies {
        is_sent(&members[0], "site-3", body, &["--topic", "later"], "queued");
    }
    let before = members[0].pid(Part::Control);
    members[0].kill9(Part::Control).unwrap();
    members[0]
        .wait_for("another control plane", |member| {
            member.pid(Part::Control) != before && member.weir(&["status"]).is_ok()
        })
        .unwrap();
    assert_eq!(waiting(&members[0], "outbox")[0]["messages"], bodies.len());
    members[2].run().unwrap();
    let first = body_of(&receive(&members[2], "later", 1)[0]);
    // The receiver is killed after it has taken one: what it has not comes again, and nothing twice.
    let before = members[2].pid(Part::Control);
    members[2].kill9(Part::Control).unwrap();
    members[2]
        .wait_for("another control plane", |member| {
            member.pid(Part::Control) != before && member.weir(&["status"]).is_ok()
        })
        .unwrap();
    let rest = receive(&members[2], "later", 3);
    assert!([first].into_iter().chain(rest.iter().map(body_of)).eq(bodies));
    assert!(eventually(PATIENCE, || waiting(&members[0], "outbox").is_empty()));
    assert!(has_nothing(&members[2], "*"));

    // Who may send what: the first rule that fits, else as for packets.
    let policy = "default = \"allow\"\n[[message]]\nname = \"no-secrets\"\nfrom = [\"node:site-2\"]\n\
                  to = [\"node:site-1\"]\ntopic = \"secret/*\"\naction = \"deny\"\n";
    let path = file(&members[0], policy.as_bytes());
    members[0].weir(&["policy", "apply", &path]).unwrap();
    wait_for_version(&members, "policy", 1);
    is_sent(&members[1], "site-1", b"x", &["--topic", "secret/x"], "refused");
    is_sent(&members[1], "site-1", b"y", &["--topic", "secret"], "queued");
    is_sent(&members[1], "site-3", b"z", &["--topic", "secret/x"], "queued");
    let received = receive(&members[0], "*", 1);
    assert_eq!(received.iter().map(body_of).collect::<Vec<_>>(), [b"y"]);
    assert_eq!(body_of(&receive(&members[2], "*", 1)[0]), b"z");
    let explained = members[1].weir(&["policy", "explain", "site-2", "site-1", "--topic", "secret/x"]).unwrap();
    assert_eq!((&explained["allowed"], &explained["rule"]), (&false.into(), &1.into()), "{explained}");
    let counters = members[1].weir(&["status"]).unwrap()["counters"].to_string();
    assert!(counters.contains("message_denied_here"), "{counters}");

    // To whom is cut off nothing is kept.
    members[2].stop().unwrap();
    let sending =
        members[1].spawn(&["send", "site-3", "--wait", "--timeout", "20s"], Stdio::null(), Stdio::piped()).unwrap();
    assert!(eventually(PATIENCE, || !waiting(&members[1], "outbox").is_empty()));
    members[0].weir(&["revoke", "site-3", "--reason", "test"]).unwrap();
    let sent = sending.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&sent.stdout);
    assert!(!sent.status.success() && said.contains("no member any more"), "{said}");
    assert_eq!(waiting(&members[1], "outbox"), [] as [Value; 0]);
}
