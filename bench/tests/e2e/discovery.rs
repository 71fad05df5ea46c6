//! Members find one another by the DHT: real processes, sealed datagrams over real sockets, and somebody who sends rubbish throughout.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use weir_bench::gateway::PORT;
use weir_bench::member::{Member, Part};
use weir_bench::network::found;
use weir_bench::rig::mesh::{Mesh, Site};

use crate::support::{alone, eventually};

/// Datagrams of each kind of rubbish.
const RUBBISH: usize = 200;

fn at(site: &Site) -> SocketAddr {
    (site.wan(), PORT).into()
}

fn has_joined(member: &Member<'_>, contacts: u64) -> bool {
    let status = member.weir(&["dht", "status"]);
    status.is_ok_and(|status| status["is_joined"] == true && status["contacts"].as_u64() >= Some(contacts))
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value}"))
}

/// By any of its names, from every other.
fn all_find_all(members: &[&Member<'_>]) {
    for of in members {
        let own = of.weir(&["status"]).unwrap();
        let addresses = own["identity"]["addresses"].as_array().unwrap().iter().filter_map(Value::as_str);
        let address = addresses.into_iter().find(|address| address.contains(':')).expect("an overlay address");
        for by in members.iter().filter(|by| by.site().number != of.site().number) {
            for what in [text(&own, "/identity/name"), text(&own, "/identity/node"), address] {
                let found = by.weir(&["find", what, "--dht"]).expect("it is found");
                assert_eq!((text(&found, "/source"), text(&found, "/node")), ("dht", text(&own, "/identity/node")));
                assert_eq!(text(&found, "/endpoints/0"), at(of.site()).to_string());
            }
        }
    }
}

#[test]
fn members_find_each_other_while_somebody_sends_rubbish_and_after_the_first_is_gone() {
    let _alone = alone();
    let mesh = Mesh::new(4).unwrap();
    let mut members = found(&mesh).expect("a network of all sites");
    for member in &members {
        member.wait_for("three contacts in the DHT", |member| has_joined(member, 3)).unwrap();
    }
    let to: Vec<SocketAddr> = mesh.sites().iter().map(at).collect();
    // Of the form of a contact session's, and not: nobody's index, another version, too short, all of them from a stranger's port.
    let rubbish: Vec<Vec<u8>> =
        [&[0x22u8, 1, 0, 0, 0, 0, 0, 1][..], &[0x22, 9, 0, 0], &[0x22], &[0x22, 1, 0, 0, 1, 2, 3, 4]]
            .into_iter()
            .map(|begin| [begin, &[7; 40]].concat())
            .collect();
    let socket = mesh.site_of(4).gateway.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let send = || {
        for (datagram, to) in rubbish.iter().flat_map(|datagram| to[..3].iter().map(move |to| (datagram, to))) {
            (0..RUBBISH / rubbish.len()).for_each(|_| drop(socket.send_to(datagram, to)));
        }
    };
    send();
    all_find_all(&members.iter().collect::<Vec<_>>());
    send();
    for member in &members[..3] {
        let is_counted = || {
            let counters = member.weir(&["status"]).unwrap()["counters"].to_string();
            counters.contains("contact_malformed") && counters.contains("contact_unknown_index")
        };
        assert!(eventually(Duration::from_secs(10), is_counted), "{}", member.log());
    }

    // The one that all began with is gone, and one that was restarted has lost its sessions.
    let founder = members.remove(0);
    founder.destroy().unwrap();
    members[0].kill9(Part::Control).unwrap();
    members[0].wait_for("contacts after a restart", |member| has_joined(member, 2)).unwrap();
    all_find_all(&members.iter().collect::<Vec<_>>());
    let shown = members[1].text(&["dht", "lookup", "site-2"]).unwrap();
    assert!(shown.contains("by the DHT") && shown.contains("bits in common"), "{shown}");
    let unknown = members[1].weir(&["find", "nobody"]).unwrap_err().to_string();
    assert!(unknown.contains("nobody is not to be found"), "{unknown}");
}
