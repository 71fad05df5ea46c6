//! The restart matrix: whichever process of a node ends, however, and whatever build comes after it, packets go on or come back under fresh
//! keys, and nothing goes where it does not belong.
//!
//! ```text
//!   h1 ── g1 ══ switch ══ g2 ── h2      100 echoes a second each way, before, while and after a process of g2 ends
//!               │ p2  ╚══ g3            a capture of all that g2 sends and receives
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use weir_bench::external::{Ping, ping};
use weir_bench::member::{Ending, Member, NO_KEYS, Part, has_ended};
use weir_bench::network::{bring_up, found};
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_dataplane::api::message::{DumpItem, Refusal, Reply, Request, SessionDump};
use weir_dataplane::api::{MESSAGE_LEN_MAX, VERSION, codec};

use crate::capture::{Capture, only_sealed};
use crate::support::{alone, answered, one_datagram_a_frame, output};

/// Echoes of a cell, each way: three seconds of them.
const ECHOES: u32 = 300;
/// When in them a process ends.
const LEAD: Duration = Duration::from_millis(500);
/// Echoes that a packet plane may cost: a second of them.
const ECHOES_LOST_MAX: u32 = 100;
/// With what passes between two ends, longer than a process must have run for its supervisor not to let the next one wait longer: what is
/// looked at is how long a packet plane takes, not how patient its supervisor is.
const SETTLE: Duration = Duration::from_secs(8);
/// A part of what ping fills its requests with when it is told nothing else.
const FILL: [u8; 16] = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f];
/// Datagrams under dead keys that may reach a control socket: one in a thousand does, and a cell has some fifty.
const SAMPLED_MAX: u64 = 5;

/// What happens to g2.
struct Cell {
    what: &'static str,
    /// Which of its processes end.
    parts: &'static [Part],
    /// Which of them are another build when they come again.
    upgraded: &'static [Part],
}

const CELLS: [Cell; 5] = [
    Cell { what: "packet plane", parts: &[Part::Plane], upgraded: &[] },
    Cell { what: "control plane", parts: &[Part::Control], upgraded: &[] },
    Cell { what: "both", parts: &[Part::Control, Part::Plane], upgraded: &[] },
    Cell { what: "upgrade of the packet plane", parts: &[Part::Plane], upgraded: &[Part::Plane] },
    Cell { what: "upgrade of the control plane", parts: &[Part::Control], upgraded: &[Part::Control] },
];

/// Sessions of a node's packet plane.
pub(crate) fn sessions(member: &Member<'_>) -> Vec<SessionDump> {
    let items = member.plane().and_then(|mut plane| plane.dump().map_err(Into::into)).unwrap();
    items
        .into_iter()
        .filter_map(|item| if let DumpItem::Session(session) = item { Some(session) } else { None })
        .collect()
}

/// Receiver indices of all lanes, as which a session's keys are known on the wire.
pub(crate) fn indices(sessions: &[SessionDump]) -> BTreeSet<u32> {
    sessions.iter().flat_map(|session| session.indices.iter().chain(&session.peer_indices)).copied().collect()
}

/// What a node says of itself.
fn told(member: &Member<'_>, pointer: &str) -> String {
    let status = member.weir(&["status"]).unwrap();
    status
        .pointer(pointer)
        .and_then(|value| value.as_str())
        .unwrap_or_else(|| panic!("{pointer} of {status}"))
        .to_owned()
}

/// Asserts that no worker of any node had a datagram that is not data.
#[track_caller]
fn workers_had_only_data(what: &str, members: &[Member<'_>]) {
    for member in members {
        let counted = member.counted().unwrap();
        assert_eq!(counted.get("outer_type"), None, "{what}: g{}: {counted:?}", member.site().number);
    }
}

/// Has what leaves a gateway in clear arrive somewhere: at the next gateway.
fn tempt(mesh: &Mesh) {
    for (at, site) in mesh.sites().iter().enumerate() {
        let other = mesh.sites()[(at + 1) % mesh.sites().len()].wan().to_string();
        output(&site.gateway, "ip", &["route", "replace", "default", "via", &other]);
    }
}

fn lost(seen: &Ping) -> u32 {
    seen.sent - seen.received
}

/// Ends processes of g2 beside echoes both ways, waits until it is whole again, and looks at everything that must hold then.
fn run(cell: &Cell, ending: Ending, members: &[Member<'_>], [one, two]: [&Site; 2]) {
    let g2 = &members[1];
    let what = format!("{}, {ending:?}", cell.what);
    let (node, incarnation) = (told(g2, "/identity/node"), told(g2, "/plane/incarnation"));
    let keys = indices(&sessions(g2));
    let counted = || members.iter().map(|member| member.counted().unwrap()).collect::<Vec<_>>();
    let mut before = counted();
    workers_had_only_data(&what, members);
    for part in cell.upgraded {
        g2.upgrade(*part).unwrap();
    }
    let loses_keys = cell.parts.contains(&Part::Plane);
    if loses_keys {
        // The next one counts from zero.
        before[1].clear();
    }
    let (took, there, back) = std::thread::scope(|scope| {
        let there = scope.spawn(|| ping(&one.host, two.host.lan.address(Family::V4), ECHOES).unwrap());
        let back = scope.spawn(|| ping(&two.host, one.host.lan.address(Family::V4), ECHOES).unwrap());
        std::thread::sleep(LEAD);
        let ended = Instant::now();
        let pids: Vec<_> = cell.parts.iter().map(|part| (*part, g2.end(*part, ending).unwrap())).collect();
        let is_new = |(part, old): &(Part, u32)| g2.pid(*part).is_some_and(|pid| pid != *old);
        g2.wait_for("processes that are new", |_| pids.iter().all(is_new)).unwrap();
        g2.wait_for_plane().unwrap();
        let is_fresh = |session: &SessionDump| {
            session.activated && !session.has_pending_keys && u128::from(session.age_ns) < ended.elapsed().as_nanos()
        };
        g2.wait_for("fresh keys with both peers", |g2| {
            g2.plane().is_ok() && {
                let sessions = sessions(g2);
                sessions.len() == 2 && sessions.iter().all(is_fresh)
            }
        })
        .unwrap();
        members.iter().try_for_each(|member| member.wait_for_peers(2)).unwrap();
        let took = ended.elapsed();
        (took, there.join().unwrap(), back.join().unwrap())
    });
    let lost = lost(&there).max(lost(&back));
    for number in [1, 3] {
        answered(&two.host, members[number - 1].site().host.lan.address(Family::V4), 10);
        answered(&members[number - 1].site().host, two.host.lan.address(Family::V4), 10);
    }
    let after = counted();
    let sum = |all: &[BTreeMap<String, u64>], name: &str| all.iter().filter_map(|one| one.get(name)).sum::<u64>();
    let grown = |name: &str| sum(&after, name) - sum(&before, name);
    eprintln!(
        "{what}: whole again after {} ms, {lost} of {ECHOES} echoes lost, {} datagrams under dead keys, {} of them to a control socket",
        took.as_millis(),
        grown("wan_unknown_index"),
        grown("wan_miss_sampled"),
    );

    assert_eq!(told(g2, "/identity/node"), node, "{what}");
    assert_eq!(told(g2, "/plane/incarnation") != incarnation, loses_keys, "{what}");
    for part in [Part::Control, Part::Plane] {
        assert!(g2.is_current(part), "{what}: {part:?} is an old build");
    }
    let fresh = sessions(g2);
    assert_eq!(indices(&fresh).intersection(&keys).count(), 0, "{what}: lanes of before are in use");
    workers_had_only_data(&what, members);
    if loses_keys {
        assert!(lost <= ECHOES_LOST_MAX, "{what}: {there:?} {back:?} {}", g2.log());
        assert!(grown("wan_miss_sampled") <= SAMPLED_MAX, "{what}: {after:?}");
    } else {
        assert_eq!(lost, 0, "{what}: {there:?} {back:?} {}", g2.log());
        for name in NO_KEYS {
            assert_eq!(grown(name), 0, "{what}: {name}: {after:?}");
        }
    }
}

#[test]
fn whatever_ends_comes_back_under_fresh_keys_and_nothing_goes_astray() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    one_datagram_a_frame(mesh.sites().iter().map(|site| &site.gateway));
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect::<Vec<_>>();
    members[1].install().unwrap();
    bring_up(&mut members).expect("a network of all sites");
    tempt(&mesh);
    let capture = Capture::start(mesh.switch(), "p2");
    for cell in &CELLS {
        if cell.parts.contains(&Part::Plane) {
            std::thread::sleep(SETTLE);
        }
        for ending in [Ending::Kill, Ending::Stop] {
            run(cell, ending, &members, [mesh.site_of(1), mesh.site_of(2)]);
        }
    }
    let (headers, quic) = only_sealed(&capture.stop(), &FILL);
    let mut seen = HashSet::new();
    for (source, header) in &headers {
        let triple = (source, header.receiver, header.generation, header.counter);
        assert!(seen.insert(triple), "{header:?} was sent twice by {source}");
    }
    let echoes = 2 * CELLS.len() * ECHOES as usize;
    assert!(headers.len() > 2 * echoes && quic > 100, "{} sealed datagrams, {quic} of QUIC", headers.len());
}

/// A supervisor that was killed left its processes behind, with the port, the TUN and the store: the next one started in vain until somebody
/// ended them by hand.
#[test]
fn nothing_outlives_a_killed_supervisor_and_the_next_one_carries_on() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    one_datagram_a_frame(mesh.sites().iter().map(|site| &site.gateway));
    let mut members = found(&mesh).expect("a network of all sites");
    tempt(&mesh);
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    let [to_h1, to_h2] = [h1, h2].map(|host| host.lan.address(Family::V4));
    answered(h1, to_h2, 10);
    let capture = Capture::start(mesh.switch(), "p1");
    // The founder, which has an issuer besides.
    let g1 = &mut members[0];
    let node = told(g1, "/identity/node");
    let processes = g1.kill_supervisor().unwrap();
    assert_eq!(processes.len(), 3, "control plane, packet plane, issuer");
    g1.wait_for("the end of its processes", |_| processes.iter().all(|pid| has_ended(*pid))).unwrap();
    assert_eq!(ping(h1, to_h2, 5).unwrap().received, 0);
    assert_eq!(ping(h2, to_h1, 5).unwrap().received, 0);

    g1.run().unwrap();
    g1.wait_for_plane().unwrap();
    members.iter().try_for_each(|member| member.wait_for_peers(1)).unwrap();
    answered(h1, to_h2, 10);
    answered(h2, to_h1, 10);
    assert_eq!(told(&members[0], "/identity/node"), node);
    members[0].weir(&["log", "--verify"]).expect("its issuer answers");
    let (headers, _) = only_sealed(&capture.stop(), &FILL);
    assert!(headers.len() > 20, "{} sealed datagrams", headers.len());
}

/// Says something to a packet plane as a control plane of another version would.
fn said_in_another_version(member: &Member<'_>, version: u16, request: &Request) -> Reply {
    let plane = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&plane, &SocketAddrUnix::new(member.plane_socket()).unwrap()).unwrap();
    let mut bytes = codec::encode(7, request).unwrap();
    bytes[..2].copy_from_slice(&version.to_le_bytes());
    send(&plane, &bytes, SendFlags::NOSIGNAL).unwrap();
    let mut answer = vec![0; MESSAGE_LEN_MAX];
    let (len, _) = recv(&plane, &mut answer[..], RecvFlags::empty()).unwrap();
    let (id, reply) = codec::decode(&answer[..len]).unwrap();
    assert_eq!(id, 7);
    reply
}

#[test]
fn a_control_plane_of_another_message_set_changes_nothing_in_a_running_packet_plane() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = found(&mesh).expect("a network of all sites");
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    let before = sessions(&members[1]);
    for theirs in [VERSION - 1, VERSION + 1] {
        for request in [
            Request::Hello { name: "another version".to_owned() },
            Request::TakeControlSockets,
            Request::CommitRoutes,
            Request::Remove(before[0].session),
        ] {
            let refused = Reply::Refused(Refusal::Version { ours: VERSION, theirs });
            assert_eq!(said_in_another_version(&members[1], theirs, &request), refused, "{request:?}");
        }
    }
    assert_eq!(indices(&sessions(&members[1])), indices(&before));
    answered(h1, h2.lan.address(Family::V4), 10);
    members[1].weir(&["rekey", "site-1"]).expect("its own control plane goes on");
}
