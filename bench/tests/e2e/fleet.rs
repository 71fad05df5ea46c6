//! Many gateways on one segment, each of real processes, that have lost each other and know one address.

use std::time::Duration;

use weir_bench::fleet::Fleet;
use weir_bench::member::Member;
use weir_bench::rig::mesh::Mesh;

use crate::support::{alone, both_ways};

/// What was promised for thirty.
const FOUND_WITHIN: Duration = Duration::from_secs(5);

fn find_each_other(gateways: u8) {
    let mesh = Mesh::new(gateways + 1).unwrap();
    let (mut fleet, enrolled) = Fleet::enrol(&mesh, gateways, "").unwrap();
    println!("{gateways} joined and knew each other after {enrolled:?}");
    println!("all packet planes ran again after {:?}", fleet.lose().unwrap());
    let found = fleet.find().unwrap();
    println!("{found:?}");
    assert!(found.listed <= FOUND_WITHIN && found.looked_up <= FOUND_WITHIN, "{found:?}");
    let [tried, hit] = fleet.look_up_all();
    println!("{hit} of {tried} look-ups found their member at once");
    // All began at one moment, and who became a server meanwhile is handed what it is to keep.
    assert!(hit == tried || fleet.look_up_all() == [tried; 2], "{hit} of {tried} look-ups, and not all a moment later");
    both_ways(mesh.site_of(1), mesh.site_of(gateways));
    both_ways(mesh.site_of(3), mesh.site_of(gateways / 2));

    fleet.lose_bootstrap().unwrap();
    let joined = fleet.join_one().unwrap();
    println!("{joined:?}");
    assert!(joined.known <= FOUND_WITHIN, "{joined:?}");
    let late = fleet.members().last().unwrap();
    for of in ["site-1", "site-3"] {
        let found = late.weir(&["find", of, "--dht"]).unwrap();
        assert_eq!(found["source"], "dht");
        let own = format!("site-{}", late.site().number);
        let member = fleet.members().iter().find(|member| format!("site-{}", member.site().number) == of).unwrap();
        // It is known by all at once, and in the DHT as soon as servers have taken its record.
        let has =
            |member: &Member<'_>| member.weir(&["find", &own, "--dht"]).is_ok_and(|found| found["source"] == "dht");
        let began = std::time::Instant::now();
        member.wait_for("the newcomer in the DHT", has).unwrap();
        assert!(began.elapsed() <= FOUND_WITHIN, "{:?}", began.elapsed());
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
