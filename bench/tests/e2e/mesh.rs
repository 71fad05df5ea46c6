//! Whole nodes: a network is founded, sites join by token, and real packets pass between them.

use std::time::Duration;

use weir_bench::external::{ping, tcp_transfer};
use weir_bench::member::Member;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::Mesh;

/// Founds a network on the first site and has the others join it by token.
pub(crate) fn network(mesh: &Mesh) -> Vec<Member<'_>> {
    let mut members: Vec<Member<'_>> =
        mesh.sites().iter().map(|site| Member::new(site, "").expect("a directory and a configuration")).collect();
    members[0].found("example").expect("a network");
    for at in 0..members.len() {
        members[at].run().expect("weir runs");
        if at > 0 {
            let token = members[0].invite(mesh.site_of(at as u8 + 1)).expect("a token");
            members[at].weir(&["join", &token]).expect("joined");
        }
        members[at].wait_for_plane().expect("the packet plane runs");
    }
    let others = members.len() as u64 - 1;
    for member in &members {
        member.wait_for_peers(others).expect("sessions with all others");
    }
    members
}

#[test]
fn three_sites_join_by_token_and_carry_packets_between_all_of_them() {
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    for from in mesh.sites() {
        for to in mesh.sites().iter().filter(|to| to.number != from.number) {
            let seen = ping(&from.host, to.host.lan.address(Family::V4), 5).unwrap();
            assert_eq!(seen.received, seen.sent, "h{} to h{}: {}", from.number, to.number, members[0].log());
        }
    }
    let (h1, h3) = (&mesh.site_of(1).host, &mesh.site_of(3).host);
    let transfer = tcp_transfer(h1, h3, h3.lan.address(Family::V4), Duration::from_secs(1)).unwrap();
    assert!(transfer.bytes > 0, "{transfer:?}");
}
