//! Members find one another by the DHT: real processes, sealed datagrams over real sockets, and somebody who sends rubbish throughout.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use weir_bench::gateway::PORT;
use weir_bench::member::{Member, Part};
use weir_bench::network::bring_up;
use weir_bench::rig::mesh::{Mesh, Site};

use crate::support::{alone, eventually};

/// Datagrams of each kind of rubbish.
const RUBBISH: usize = 200;
/// What site 2 offers.
const SERVICE: &str = "[[discovery.services]]\nname = \"_http._tcp\"\nport = 8080\ntext = [\"path=/\"]\n";

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

/// The record of one member as another one gets it, and nothing beside it where there is no terminal.
fn what_lies_there_is_shown(by: &Member<'_>, of: &Member<'_>) {
    let own = of.weir(&["status"]).unwrap();
    let (name, node) = (text(&own, "/identity/name"), text(&own, "/identity/node"));
    let record = by.weir(&["dht", "get", "node", name]).unwrap();
    assert_eq!((text(&record, "/kind"), text(&record, "/node"), text(&record, "/name")), ("node", node, name));
    assert_eq!(text(&record, "/says/0"), format!("endpoint {}", at(of.site())));
    assert!(text(&record, "/record").len() > 2 * text(&record, "/value").len() / 3, "{record}");
    let same = by.weir(&["dht", "get", "node", text(&record, "/key")]).unwrap();
    assert_eq!(text(&same, "/record"), text(&record, "/record"));
    for arguments in [&["dht", "get", "node", name][..], &["find", name, "--dht"], &["dht", "lookup", node]] {
        let output = by.plain(arguments).unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && shown.contains(name) && shown.contains("bits in common"), "{shown}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
    let lists = by.weir(&["dht", "get", "revocations", name]).unwrap_err().to_string();
    assert!(lists.contains(&format!("no revocations record of {name} is to be found")), "{lists}");
}

fn a_service_is_found_and_taken_back(members: &mut [Member<'_>]) {
    let own = members[1].weir(&["status"]).unwrap();
    let service = format!("_http._tcp.{}", text(&own, "/identity/name"));
    for by in &*members {
        let found = by.weir(&["find", &service]).unwrap();
        assert_eq!((text(&found, "/node"), text(&found, "/source")), (text(&own, "/identity/node"), "dht"));
        assert_eq!(found["service"], serde_json::json!({ "label": "_http._tcp", "port": 8080, "texts": ["path=/"] }));
        assert!(own["identity"]["addresses"].to_string().contains(text(&found, "/address")), "{found}");
    }
    let shown = members[1].text(&["dht", "status"]).unwrap();
    assert!(shown.contains("_http._tcp"), "{shown}");

    let file = members[1].directory().join("weir.toml");
    let configured = fs::read_to_string(&file).unwrap();
    members[1].stop().unwrap();
    fs::write(&file, configured.replace(SERVICE, "")).unwrap();
    members[1].run().unwrap();
    members[1].wait_for_plane().unwrap();
    members[1].wait_for("three contacts in the DHT", |member| has_joined(member, 3)).unwrap();
    let is_gone = || {
        let refused = members[3].weir(&["find", &service]).map_err(|error| error.to_string());
        refused.is_err_and(|error| error.contains("is not to be found"))
    };
    assert!(eventually(Duration::from_secs(20), is_gone), "{}", members[1].log());
    let shown = members[1].text(&["dht", "status"]).unwrap();
    assert!(shown.contains("_http._tcp (no more)"), "{shown}");
}

#[test]
fn members_find_each_other_while_somebody_sends_rubbish_and_after_the_first_is_gone() {
    let _alone = alone();
    let mesh = Mesh::new(4).unwrap();
    let settings = |site: &Site| if site.number == 2 { SERVICE } else { "" };
    let mut members: Vec<_> = mesh.sites().iter().map(|site| Member::new(site, settings(site)).unwrap()).collect();
    bring_up(&mut members).expect("a network of all sites");
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

    what_lies_there_is_shown(&members[3], &members[2]);
    a_service_is_found_and_taken_back(&mut members);

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
