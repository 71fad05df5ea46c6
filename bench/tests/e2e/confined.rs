//! What the processes of a running node may still do, as the kernel tells it, and that this is enough for them.

use std::fs;

use weir_bench::external::ping;
use weir_bench::member::{Member, Part};
use weir_bench::network::found;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::Mesh;

use crate::support::alone;

/// NET_ADMIN, NET_RAW, IPC_LOCK, PERFMON and BPF (`linux/capability.h`).
const OF_THE_PLANE: &str = "000000c000007000";
const NONE: &str = "0000000000000000";

/// One of the lines of `/proc/PID/status` or `/proc/PID/limits`, without its name.
fn line(member: &Member<'_>, part: Part, file: &str, name: &str) -> String {
    let path = format!("/proc/{}/{file}", member.pid(part).unwrap_or_else(|| panic!("{part:?} runs")));
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn each_process_of_a_node_keeps_only_what_it_needs_and_everything_works() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = found(&mesh).expect("a network of all sites");
    let issuer = [(Part::Control, NONE), (Part::Plane, OF_THE_PLANE), (Part::Issuer, NONE)];
    for (member, parts) in members.iter().zip([&issuer[..], &issuer[..2]]) {
        for (part, capabilities) in parts {
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(line(member, *part, "status", set), *capabilities, "{part:?} {set}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(line(member, *part, "status", set), NONE, "{part:?} {set}");
            }
            assert_eq!(line(member, *part, "status", "NoNewPrivs"), "1", "{part:?}");
            let root = fs::read_link(format!("/proc/{}/root", member.pid(*part).unwrap())).unwrap();
            let runtime = member.directory().join("run");
            assert_eq!(root, if *part == Part::Plane { "/".into() } else { runtime }, "{part:?}");
            assert_eq!(line(member, *part, "limits", "Max core file size"), "0 0 bytes", "{part:?}");
        }
        let log = member.log();
        let closed = "confined: no file but those that are open";
        assert_eq!(log.matches(closed).count() + log.matches("Landlock").count(), parts.len() - 1, "{log}");
    }
    // The issuer writes its store and signs, control planes write theirs, and the second one had its packet plane started.
    let spare = members[0].weir(&["invite", "--name", "spare"]).expect("an invitation");
    assert!(spare["token"].is_string(), "{spare}");
    members[1].weir(&["cert", "renew"]).expect("a new certificate");
    members[0].weir(&["rekey", "site-2"]).expect("fresh keys");
    let (from, to) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    assert_eq!(ping(from, to.lan.address(Family::V4), 20).unwrap().received, 20, "{}", members[0].log());
}
