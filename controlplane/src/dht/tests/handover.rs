//! Records that go to whoever is new in their region.

use super::*;

/// Nobody had a record but those who were there when it was put, so look-ups asked many servers of a region that had not got it.
#[test]
fn a_new_server_gets_the_records_of_its_region() {
    let mut world = World::fleet(8);
    let given =
        |world: &World| -> u64 { (0..8).map(|at| world.nodes[at].as_ref().unwrap().counters().handed_over).sum() };
    let before = given(&world);
    let records: Vec<Key> = world.contacts.iter().map(|contact| contact.node.into()).collect();
    let new = world.add(20, Mode::Server);
    world.run(Duration::from_secs(10));
    let wall = world.moment().wall;
    let store = world.node(new).store();
    assert!(records.iter().all(|key| store.get(Kind::Node, *key, wall).is_some()));
    // By two of those who have it, each: not by all of them.
    let given = given(&world) - before;
    assert!((8..=16).contains(&given), "{given}");
    // A client gets nothing, and gives nothing.
    let client = world.add(21, Mode::Client);
    world.run(Duration::from_secs(10));
    assert!(world.node(client).store().is_empty());
}

/// The others have it in their tables still, so nobody saw that it was new: after a restart of all, one after the other, a record was with its owner alone.
#[test]
fn a_server_that_was_restarted_gets_them_back_and_not_as_often_as_it_says_so() {
    let mut world = World::fleet(8);
    world.run(Duration::from_secs(120));
    let records: Vec<Key> = world.contacts.iter().map(|contact| contact.node.into()).collect();
    let saved = world.node(3).save();
    world.start(3, Mode::Server, saved, &[]);
    // Its own record it says anew, as a node does that starts.
    world.publish(3, 2).unwrap();
    world.run(Duration::from_secs(10));
    let wall = world.moment().wall;
    let has = |world: &mut World, key| world.node(3).store().get(Kind::Node, key, wall).is_some();
    let lacking: Vec<&Key> = records.iter().filter(|key| !has(&mut world, **key)).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
    let given =
        |world: &World| -> u64 { (0..8).map(|at| world.nodes[at].as_ref().unwrap().counters().handed_over).sum() };
    let before = given(&world);
    for _ in 0..5 {
        let now = world.moment();
        world.node(3).begin(now);
        world.drain(3);
        world.run(Duration::from_secs(2));
    }
    assert_eq!(given(&world), before);
}

#[test]
fn what_is_handed_over_is_judged_as_any_record() {
    let mut world = World::fleet(4);
    let new = world.add(20, Mode::Server);
    // It has seen a later one.
    let later = world.fixture.record(2, Kind::Node, 9, b"later");
    let asker = world.contacts[1];
    let put = |record: &SignedRecord| Query::Put { record: record.clone(), replaces: None };
    assert_eq!(world.ask(new, asker, put(&later)), Reply::Stored);
    world.run(Duration::from_secs(10));
    let (wall, key) = (world.moment().wall, world.contacts[2].node.into());
    assert_eq!(world.node(new).store().get(Kind::Node, key, wall).map(|(sequence, _)| sequence), Some(9));
}
