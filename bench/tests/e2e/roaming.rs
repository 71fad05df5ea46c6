//! Sessions over time: they follow a gateway that gets another address, and come back with the first packets when there are none.

use std::net::SocketAddr;

use weir_bench::external::ping;
use weir_bench::gateway::PORT;
use weir_bench::member::Member;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_dataplane::api::message::Request;

use crate::mesh::network;
use crate::restarts::{indices, sessions};
use crate::support::{alone, answered, output};

/// Where the second gateway will be.
const ELSEWHERE: [u8; 4] = [192, 0, 2, 102];

/// Gives a gateway another address on its WAN in place of the one that it has, as a provider does.
fn readdress(site: &Site) {
    let elsewhere = std::net::Ipv4Addr::from(ELSEWHERE).to_string();
    output(&site.gateway, "ip", &["-4", "address", "flush", "dev", "wan"]);
    output(&site.gateway, "ip", &["address", "add", &format!("{elsewhere}/24"), "dev", "wan"]);
    output(&site.gateway, "ip", &["route", "replace", "default", "via", "192.0.2.254"]);
}

fn endpoint(member: &Member<'_>, of: &str) -> Option<String> {
    let peers = member.weir(&["peers"]).unwrap();
    let peer = peers.as_array().unwrap().iter().find(|peer| peer["name"] == of)?;
    peer["endpoint"].as_str().map(str::to_owned)
}

#[test]
fn a_gateway_that_gets_another_address_keeps_its_keys_and_its_peers_follow() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    let [h1, h2, h3] = [1, 2, 3].map(|number| &mesh.site_of(number).host);
    answered(h2, h1.lan.address(Family::V4), 5);
    answered(h2, h3.lan.address(Family::V4), 5);
    let keys: Vec<_> = members.iter().map(|member| indices(&sessions(member))).collect();

    readdress(mesh.site_of(2));
    // Its packets come from elsewhere now; whoever hears them asks there, and believes the sealed answer.
    let there = SocketAddr::new(ELSEWHERE.into(), PORT).to_string();
    for (host, member) in [(h1, &members[0]), (h3, &members[2])] {
        let follows = |member: &Member<'_>| {
            let _ = ping(h2, host.lan.address(Family::V4), 2).unwrap();
            endpoint(member, "site-2").as_ref() == Some(&there)
        };
        member.wait_for("site 2 at its new address", follows).unwrap();
        answered(h2, host.lan.address(Family::V4), 10);
        answered(host, h2.lan.address(Family::V4), 10);
    }
    answered(h1, h3.lan.address(Family::V4), 10);
    for (member, keys) in members.iter().zip(keys) {
        assert_eq!(indices(&sessions(member)), keys, "g{} made new keys: {}", member.site().number, member.log());
    }
    // The control planes speak with each other there as well.
    for member in [&members[0], &members[2]] {
        member.weir(&["rekey", "site-2"]).unwrap_or_else(|error| panic!("{error}: {}", member.log()));
    }
    let applied = members[0].weir(&["revoke", "site-3"]).expect("revoked");
    let told = |member: &Member<'_>| member.weir(&["status"]).unwrap()["peers_connected"] == 1;
    members[1].wait_for(&format!("what was said after the move: {applied}"), told).unwrap();
}

#[test]
fn a_session_that_is_not_there_is_made_for_the_first_packets_and_they_wait_for_it() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    // What a control plane does with a session that is idle, five minutes before it would. The peer is told by the session itself.
    let session = sessions(&members[0])[0].session;
    members[0].plane().unwrap().order(&Request::Remove(session)).unwrap();
    members[1].wait_for("the end of the session", |member| sessions(member).is_empty()).unwrap();
    assert!(sessions(&members[0]).is_empty());
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    let seen = ping(h1, h2.lan.address(Family::V4), 20).unwrap();
    assert_eq!(seen.received, seen.sent, "{seen:?} {}", members[0].log());
    members.iter().for_each(|member| assert_eq!(sessions(member).len(), 1));
}
