//! Many gateways on one segment, each of real processes, that have lost each other and know one address.

use std::time::Duration;

use weir_bench::fleet::Fleet;
use weir_bench::member::Member;
use weir_bench::rig::mesh::Mesh;

use crate::support::{alone, both_ways, eventually};

/// How long a network that began at one moment may take until every look-up finds: who is a server is found out meanwhile, and records are handed to
/// those that became one. How fast all know each other is measured by `weir-bench control --parts fleet`, and told here.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

fn find_each_other(gateways: u8) {
    let mesh = Mesh::new(gateways + 1).unwrap();
    let (mut fleet, enrolled) = Fleet::enrol(&mesh, gateways, "").unwrap();
    println!("{gateways} joined and knew each other after {enrolled:?}");
    println!("all packet planes ran again after {:?}", fleet.lose().unwrap());
    let found = fleet.find().unwrap();
    println!("{found:?}");
    let [tried, hit] = fleet.look_up_all();
    println!("{hit} of {tried} look-ups found their member at once");
    assert!(hit == tried || eventually(SETTLED_WITHIN, || fleet.look_up_all() == [tried; 2]), "{hit} of {tried}");
    both_ways(mesh.site_of(1), mesh.site_of(gateways));
    both_ways(mesh.site_of(3), mesh.site_of(gateways / 2));

    fleet.lose_bootstrap().unwrap();
    let joined = fleet.join_one().unwrap();
    println!("{joined:?}");
    let late = fleet.members().last().unwrap();
    for of in ["site-1", "site-3"] {
        let has_other =
            |late: &Member<'_>| late.weir(&["find", of, "--dht"]).is_ok_and(|found| found["source"] == "dht");
        late.wait_for("a member by the DHT", has_other).unwrap();
        let own = format!("site-{}", late.site().number);
        let member = fleet.members().iter().find(|member| format!("site-{}", member.site().number) == of).unwrap();
        // It is known by all at once, and in the DHT as soon as servers have taken its record.
        let has =
            |member: &Member<'_>| member.weir(&["find", &own, "--dht"]).is_ok_and(|found| found["source"] == "dht");
        member.wait_for("the newcomer in the DHT", has).unwrap();
    }
    both_ways(late.site(), mesh.site_of(3));
}

#[test]
fn twelve_gateways_find_each_other_from_one_address_and_one_more_joins_through_another_when_that_is_gone() {
    let _alone = alone();
    find_each_other(12);
}

/// Ninety processes start twice, on as many cores as there are.
#[test]
#[ignore = "a minute or two: with the long tests"]
fn thirty_gateways_find_each_other_from_one_address_and_one_more_joins_through_another_when_that_is_gone() {
    let _alone = alone();
    find_each_other(30);
}
