//! Two networks on the same hosts: everything that must not be shared follows from the instance's name, and nothing of one reaches the other.

use weir_bench::external::ping;
use weir_bench::member::{Member, Part};
use weir_bench::network::join;
use weir_bench::rig::Family;
use weir_bench::rig::mesh::{Mesh, Site};
use weir_controlplane::config::Instance;

use crate::support::{alone, answered, beside_traffic, output};

/// What the second network gives out, and every host of it has besides its own address.
const LAB_POOL: &str = "172.20.0.0/16";

fn lab_subnet(site: &Site) -> String {
    format!("172.20.{}.0/24", site.number)
}

fn lab_host(site: &Site) -> std::net::IpAddr {
    format!("172.20.{}.2", site.number).parse().unwrap()
}

/// Gives the network behind a gateway addresses of the second network as well.
fn with_lab_addresses(site: &Site) {
    let [gateway, host] = [1, 2].map(|host| format!("172.20.{}.{host}", site.number));
    output(&site.gateway, "ip", &["address", "add", &format!("{gateway}/24"), "dev", "lan"]);
    output(&site.host, "ip", &["address", "add", &format!("{host}/24"), "dev", "lan"]);
    output(&site.host, "ip", &["route", "add", LAB_POOL, "via", &gateway, "src", &host]);
}

/// Founds a network on the first of these and has the others join.
fn up(members: &mut [Member<'_>], network: &str, pool: &str, subnet: impl Fn(&Site) -> String) {
    let (founder, others) = members.split_first_mut().unwrap();
    let (roots, passphrase) = (founder.directory().join("roots"), founder.passphrase_file().unwrap());
    let (roots, of_founder) = (roots.display().to_string(), subnet(founder.site()));
    let mut init = vec!["init", network, "--name", "one", "--roots", &roots, "--pool", pool, "--subnet", &of_founder];
    init.extend(["--passphrase-file-a", &passphrase, "--passphrase-file-b", &passphrase]);
    founder.weir(&init).unwrap();
    founder.run().unwrap();
    founder.wait_for_plane().unwrap();
    for member in others {
        let invited = founder.weir(&["invite", "--name", "other", "--subnet", &subnet(member.site())]).unwrap();
        join(member, invited["token"].as_str().unwrap()).unwrap();
        member.wait_for_peers(1).unwrap();
    }
    founder.wait_for_peers(1).unwrap();
}

#[test]
fn two_networks_on_the_same_hosts_carry_packets_side_by_side_and_mix_nothing() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    mesh.sites().iter().for_each(with_lab_addresses);
    let lab: Instance = "lab".parse().unwrap();
    let mut of_weir: Vec<_> = mesh.sites().iter().map(|site| Member::new(site, "").unwrap()).collect();
    let mut of_lab: Vec<_> = mesh.sites().iter().map(|site| Member::of_instance(site, &lab, "").unwrap()).collect();
    up(&mut of_weir, "weir", "10.0.0.0/8", Site::subnet);
    up(&mut of_lab, "lab", LAB_POOL, lab_subnet);
    let (one, two) = (mesh.site_of(1), mesh.site_of(2));
    let weir_host = |site: &Site| site.host.lan.address(Family::V4);
    for (from, to) in [(one, two), (two, one)] {
        answered(&from.host, weir_host(to), 5);
        answered(&from.host, lab_host(to), 5);
    }

    // Each knows its own two members, under the same names, and has what the other one has under numbers of its own.
    let told =
        |member: &Member<'_>, pointer: &str| member.weir(&["status"]).unwrap().pointer(pointer).cloned().unwrap();
    for pointer in ["/network/network", "/identity/node", "/identity/addresses", "/plane/port", "/plane/incarnation"] {
        assert_ne!(told(&of_weir[0], pointer), told(&of_lab[0], pointer), "{pointer}");
    }
    for member in of_weir.iter().chain(&of_lab) {
        assert_eq!((told(member, "/network/members"), told(member, "/plane/sessions")), (2.into(), 1.into()));
        assert_eq!(member.weir(&["ping", if member.site().number == 1 { "other" } else { "one" }]).unwrap()["sent"], 4);
    }
    // An address of one is no source in the other.
    let from_lab =
        ["-n", "-q", "-i", "0.01", "-c", "3", "-W", "1", "-I", &lab_host(one).to_string(), &weir_host(two).to_string()];
    let mixed = one.host.command("ping").args(from_lab).output().unwrap();
    let said = String::from_utf8_lossy(&mixed.stdout);
    assert!(said.contains(" 0 received"), "{said}");

    // Whatever happens to one of them is nothing to the other.
    let ((), seen) = beside_traffic(one, two, || {
        of_lab[1].kill9(Part::Plane).unwrap();
        of_lab[0].stop().unwrap();
    });
    assert!(seen.sent >= 200 && seen.received == seen.sent, "{seen:?} {}", of_weir[0].log());
    assert_eq!(ping(&one.host, lab_host(two), 3).unwrap().received, 0);
    of_lab[0].run().unwrap();
    of_lab.iter().try_for_each(|member| member.wait_for_peers(1)).unwrap();
    answered(&one.host, lab_host(two), 5);
}
