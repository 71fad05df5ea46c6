//! Whole nodes: a network is founded, sites join by token, and real packets pass between them.

use std::time::{Duration, Instant};

use weir_bench::external::{Ping, ping, tcp_transfer};
use weir_bench::member::{Member, Part};
use weir_bench::network::found;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};

use crate::support::alone;

pub(crate) fn network(mesh: &Mesh) -> Vec<Member<'_>> {
    found(mesh).expect("a network of all sites")
}

#[test]
fn three_sites_join_by_token_and_carry_packets_between_all_of_them() {
    let _alone = alone();
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

/// Echo requests that go on while something is done: 100 a second for some seconds.
fn pinging<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    from: &'s Site,
    to: &'s Site,
    seconds: u32,
) -> std::thread::ScopedJoinHandle<'s, Ping> {
    scope.spawn(move || ping(&from.host, to.host.lan.address(Family::V4), seconds * 100).expect("ping runs"))
}

/// What was lost of what was sent, %.
fn lost(seen: &Ping) -> u32 {
    seen.sent - seen.received
}

#[test]
fn fresh_keys_a_renewal_and_a_dead_control_plane_lose_no_packet() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    let (one, two) = (mesh.site_of(1), mesh.site_of(2));
    std::thread::scope(|scope| {
        let traffic = pinging(scope, one, two, 6);
        for member in [0, 1, 0] {
            let peer = if member == 0 { "site-2" } else { "site-1" };
            members[member].weir(&["rekey", peer]).expect("fresh keys");
        }
        let before = members[1].weir(&["cert", "show"]).unwrap();
        let after = members[1].weir(&["cert", "renew"]).expect("a new certificate");
        assert_ne!(before["chain"], after["chain"]);
        members[0].kill9(Part::Control).unwrap();
        members[1].kill9(Part::Control).unwrap();
        let seen = traffic.join().unwrap();
        assert_eq!(lost(&seen), 0, "{seen:?} {}", members[0].log());
    });
    for member in &members {
        member.wait_for_peers(1).expect("the control planes are back, and know of their sessions");
    }
    let fresh = members[0].weir(&["rekey", "site-2"]);
    assert!(fresh.is_ok(), "{fresh:?}");
}

/// What counts as at once for news that takes one message to each member.
const AT_ONCE: Duration = Duration::from_millis(500);

#[test]
fn a_revoked_site_is_cut_off_by_all_others_at_once() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    members[0].weir(&["revoke", "site-3", "--reason", "lost"]).expect("revoked");
    let revoked = Instant::now();
    for member in &members[..2] {
        let cut_off = |member: &Member| {
            let asked = revoked.elapsed();
            let peers = member.weir(&["status"]).unwrap()["peers_connected"].as_u64();
            assert!(peers == Some(1) || asked < AT_ONCE, "{peers:?} peers {asked:?} after: {}", member.log());
            peers == Some(1)
        };
        member.wait_for("the end of the session with site-3", cut_off).unwrap();
    }
    for number in [1, 2] {
        let seen = ping(&mesh.site_of(3).host, mesh.site_of(number).host.lan.address(Family::V4), 20).unwrap();
        assert_eq!(seen.received, 0, "g{number}: {}", members[usize::from(number) - 1].log());
    }
    let seen = ping(&mesh.site_of(1).host, mesh.site_of(2).host.lan.address(Family::V4), 20).unwrap();
    assert_eq!(lost(&seen), 0, "the others go on");
    let token = members[0].invite(mesh.site_of(3));
    assert!(token.is_err(), "its name is not given to the next one by itself");
}
