//! Who becomes a server, and who is one no longer.

use super::*;

#[test]
fn who_becomes_a_client_keeps_nothing_and_leaves_the_tables_of_others() {
    let mut world = World::fleet(12);
    let (node, now) = (world.contacts[3].node, world.moment());
    let asker = world.contacts[5];
    assert!(world.node(3).store().len() > 1);
    world.node(3).set_mode(Mode::Client, now);
    let highest = world.node(3).store().highest().count();
    assert_eq!((world.node(3).mode(), world.node(3).store().len(), highest), (Mode::Client, 0, 12));
    for query in [Query::Ping, Query::Get { kind: Kind::Node, key: node.into(), alike: 0 }] {
        assert_eq!(world.ask(3, asker, query), Reply::Refused(Refusal::NotServer));
    }
    // Whoever is asked something by it knows; and whoever asks it.
    let target = world.contacts[7].node.into();
    world.node(3).get(Kind::Node, target, now).unwrap();
    world.drain(3);
    for at in (0..12).filter(|at| *at != 3) {
        let now = world.moment();
        let to = world.contacts[3];
        world.node(at).ask(to, Query::Ping, Purpose::Check, now);
        world.drain(at);
    }
    world.run(Duration::from_secs(5));
    assert!((0..12).all(|at| world.nodes[at].as_ref().unwrap().table().entry(node).is_none()));
    // It still finds, and is found.
    assert_eq!((world.look_up(3, 7).sequence, world.look_up(7, 3).sequence), (1, 1));
}

#[test]
fn who_becomes_a_server_keeps_its_own_record_and_is_known_to_others_soon() {
    let mut world = World::fleet(12);
    let at = world.add(20, Mode::Client);
    world.run(Duration::from_secs(30));
    let (node, now) = (world.contacts[at].node, world.moment());
    assert!((0..12).all(|other| world.nodes[other].as_ref().unwrap().table().entry(node).is_none()));
    world.node(at).set_mode(Mode::Server, now);
    world.drain(at);
    assert!(world.node(at).store().get(Kind::Node, node.into(), now.wall).is_some());
    world.run(Duration::from_secs(10));
    let knows = |other: &usize| world.nodes[*other].as_ref().unwrap().table().entry(node).is_some();
    assert_eq!((0..12).filter(knows).count(), 12);
    let record = world.fixture.record(5, Kind::Node, 9, b"x");
    let asker = world.contacts[5];
    assert_eq!(world.ask(at, asker, Query::Put { record, replaces: None }), Reply::Stored);
}
