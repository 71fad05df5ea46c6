//! Records of our own: what comes of each round, and what of the next.

use super::*;
use crate::dht::publish::AGAIN;
use crate::dht::record::ServiceValue;
use crate::dht::store::{PLACES_MAX, PutError};

/// What a round came to: by how many of how many it was kept, the higher sequence that one of them has seen, and how many had another than
/// the one to be replaced, and which.
type Round = (u16, u16, Option<u64>, u16, Option<u64>);

/// What a node told of its publications.
fn published(world: &World, at: usize) -> Vec<Round> {
    let of = |told: &(usize, Output)| match told {
        (teller, Output::Published { stored, asked, superseded, conflicts, instead, .. }) if *teller == at => {
            Some((*stored, *asked, *superseded, *conflicts, *instead))
        }
        (_, Output::Published { .. } | Output::Found { .. } | Output::Send { .. } | Output::Joined) => None,
    };
    world.told.iter().filter_map(of).collect()
}

fn old(sequence: u64, highest: u64) -> Result<(), PublishError> {
    Err(PublishError::Put(PutError::Old { sequence, highest }))
}

/// With every later round the servers that were new in the region refused it.
#[test]
fn what_a_record_replaces_is_said_until_somebody_has_it() {
    let mut world = World::fleet(6);
    world.told.clear();
    world.replace(4, 2, Some(1)).unwrap();
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(5, 5, None, 0, None)]);
    world.add(6, Mode::Server);
    world.run(Duration::from_secs(60));
    world.told.clear();
    let now = world.moment();
    let named = (Kind::Node, world.contacts[4].node.into());
    world.node(4).publish_again(named, now);
    world.drain(4);
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(6, 6, None, 0, None)]);
}

#[test]
fn a_record_that_replaces_another_than_is_there_is_refused_and_its_owner_hears_of_it_each_time() {
    let mut world = World::fleet(6);
    world.told.clear();
    // Our own copy is one of many: it has no veto.
    world.replace(4, 9, Some(7)).unwrap();
    world.run(AGAIN + Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(0, 5, None, 5, Some(1)); 2]);
    // It may say so, or replace what is there.
    world.replace(4, 10, Some(1)).unwrap();
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4).last(), Some(&(5, 5, None, 0, None)));
}

/// 32 ids next to a member made it take the network for so large that its record went to them alone: each time that it was put, its own
/// place was counted once more.
#[test]
fn our_own_place_says_the_size_once() {
    let mut world = World::fleet(12);
    let named = (Kind::Node, world.contacts[4].node.into());
    let before = world.node(4).size.samples();
    assert!(before < 10, "more are remembered: {before}");
    for _ in 0..4 {
        let now = world.moment();
        world.node(4).publish_again(named, now);
        world.node(4).begin(now);
        world.node(4).look_into(40, Why::Refresh, now);
        world.drain(4);
        world.run(Duration::from_millis(300));
    }
    // Each join looks into the other half of the network as well, and that counts.
    assert_eq!(world.node(4).size.samples(), before + 4);
    assert!(world.node(4).levels() <= 5);
    let now = world.moment();
    world.node(4).look_into(0, Why::Refresh, now);
    world.drain(4);
    world.run(Duration::from_millis(300));
    assert_eq!(world.node(4).size.samples(), before + 5);
}

/// Answers to an earlier offer were counted for the next one.
#[test]
fn answers_to_an_earlier_round_count_for_nothing() {
    let mut world = World::fleet(6);
    world.told.clear();
    world.publish(4, 2).unwrap();
    let is_open = |world: &mut World| {
        world.node(4).outstanding.values().any(|asked| matches!(asked.purpose, Purpose::Put { .. }))
    };
    while !is_open(&mut world) {
        world.run(Duration::from_millis(1));
    }
    world.publish(4, 3).unwrap();
    world.run(2 * ONE_WAY);
    assert!(published(&world, 4).is_empty());
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(5, 5, None, 0, None)]);
}

#[test]
fn a_round_that_finds_nobody_is_tried_again_soon() {
    let mut world = World::fleet(4);
    for other in [0, 1, 3] {
        world.nodes[other] = None;
    }
    world.told.clear();
    world.publish(2, 2).unwrap();
    world.run(LOOKUP_MAX + AGAIN + LOOKUP_MAX + Duration::from_secs(1));
    let rounds = published(&world, 2);
    assert!(rounds.len() >= 2 && rounds.iter().all(|round| *round == (0, 0, None, 0, None)), "{rounds:?}");
}

/// Records stayed at the edge of a region that had been larger, and look-ups took them for the newest.
#[test]
fn whoever_may_have_an_older_record_is_offered_the_new_one_and_only_that_time() {
    let mut world = World::fleet(30);
    for number in 30..150 {
        let (at, first) = (world.settle(number), world.contacts[0]);
        world.start(at, Mode::Server, Saved::default(), &[first]);
    }
    world.run(Duration::from_secs(900));
    let key = Key::from(world.contacts[7].node);
    let region = crate::dht::estimate::region(world.node(7).servers());
    assert!(region < 0.3, "{region}");
    // Who keeps which sequence, between the edge of the region and twice as far.
    let outside = |world: &mut World| -> Vec<u64> {
        let wall = world.moment().wall;
        let is_outside = |at: &usize| {
            let share = key.distance(world.contacts[*at].node.into()).share();
            share > region && share < 2.0 * region
        };
        let all: Vec<usize> = (0..150).filter(is_outside).collect();
        all.into_iter().filter_map(|at| Some(world.node(at).store().get(Kind::Node, key, wall)?.0)).collect()
    };
    let before = outside(&mut world);
    assert!(!before.is_empty() && before.iter().all(|sequence| *sequence == 1), "{before:?}");
    world.publish(7, 2).unwrap();
    world.run(Duration::from_secs(30));
    let after = outside(&mut world);
    // A look-up may miss one of a whole region.
    let old = after.iter().filter(|sequence| **sequence == 1).count();
    assert!(after.len() >= before.len() && old <= 1, "{after:?}");
    // They have the newest now, so it is put again in the region alone.
    let (servers, publication) =
        (world.node(7).servers(), &world.nodes[7].as_ref().unwrap().publications[&(Kind::Node, key)]);
    assert_eq!(publication.distance(servers), crate::dht::estimate::region(servers));
}

/// A client put sequence 6 in the place of its own 7, and heard nothing of it.
#[test]
fn a_client_never_goes_back_behind_its_own_record_not_even_after_a_restart() {
    let mut world = World::fleet(6);
    let client = world.add(20, Mode::Client);
    world.publish(client, 7).unwrap();
    assert_eq!(world.publish(client, 6), old(6, 7));
    world.publish(client, 7).unwrap();
    let saved = world.node(client).save();
    world.start(client, Mode::Client, saved, &[]);
    assert_eq!(world.publish(client, 6), old(6, 7));
    world.publish(client, 7).unwrap();
}

/// Of 8,192 places nearer than the record's own there was no room for it here, so it was not published at all.
#[test]
fn a_record_for_which_there_is_no_room_here_is_published_elsewhere() {
    let mut world = World::fleet(6);
    let (own, now) = (world.contacts[4].node, world.moment());
    let near = |number: usize| {
        let mut key = Key::from(own);
        key.0[30..].copy_from_slice(&(number as u16).to_be_bytes());
        Highest { kind: Kind::Zone, key, sequence: 1, digest: 0, node: NodeId([7; 32]), until: UnixSecs(u64::MAX) }
    };
    let saved = Saved { anchors: vec![world.contacts[0]], highest: (0..PLACES_MAX).map(near).collect() };
    world.start(4, Mode::Server, saved, &[]);
    world.run(Duration::from_secs(10));
    world.told.clear();
    let record = world.fixture.record(4, Kind::Name, 1, b"x");
    let judge = world.fixture.judge_at(now.wall);
    let mut full = world.nodes[4].as_ref().unwrap().store().clone();
    assert_eq!(full.put(record.clone(), None, judge), Err(PutError::Full));
    let now = world.moment();
    world.nodes[4].as_mut().unwrap().publish(record, None, judge, now).unwrap();
    world.drain(4);
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(5, 5, None, 0, None)]);
    assert!(world.node(4).save().highest.iter().any(|known| known.kind == Kind::Name), "nor is its sequence forgotten");
}

/// Puts a record of a node there.
fn say(world: &mut World, at: usize, record: SignedRecord) -> Result<(), PublishError> {
    let now = world.moment();
    let judge = world.fixture.judge_at(now.wall);
    let done = world.nodes[at].as_mut().unwrap().publish(record, None, judge, now);
    world.drain(at);
    done
}

fn service(world: &World, member: u16, label: &str, sequence: u64) -> SignedRecord {
    world.fixture.record_of(member, Kind::Service, sequence, Fixture::service(label, b"path=/"))
}

/// One of a kind was all that a member could publish.
#[test]
fn a_member_publishes_several_services_and_withdraws_one() {
    let mut world = World::fleet(6);
    let labels = ["_http._tcp", "_ssh._tcp", "_dns._udp"];
    let key = |world: &World, label: &str| super::super::record::service_key(world.fixture.network(), label, "site-4");
    for label in labels {
        let record = service(&world, 4, label, 1);
        say(&mut world, 4, record).unwrap();
    }
    world.run(Duration::from_secs(5));
    let found = |world: &mut World, label: &str| {
        let (now, key) = (world.moment(), key(world, label));
        let id = world.node(1).get(Kind::Service, key, now).unwrap();
        world.drain(1);
        world.run(Duration::from_secs(2));
        let is_it = |told: &(usize, Output)| matches!(told, (1, Output::Found { id: ended, .. }) if *ended == id);
        match world.told.iter().find(|told| is_it(told)) {
            Some((_, Output::Found { outcome, .. })) => outcome.sequence,
            _ => panic!("it has not ended"),
        }
    };
    assert_eq!(labels.map(|label| found(&mut world, label)), [1, 1, 1]);
    // One that is withdrawn is offered no more, and the others are.
    let withdrawn = key(&world, labels[1]);
    world.node(4).withdraw(Kind::Service, withdrawn);
    world.told.clear();
    let now = world.moment();
    world.node(4).publish_all(now);
    world.drain(4);
    world.run(Duration::from_secs(5));
    let offered = |told: &(usize, Output)| match told {
        (4, Output::Published { kind: Kind::Service, key, .. }) => Some(*key),
        _ => None,
    };
    let mut offered: Vec<Key> = world.told.iter().filter_map(offered).collect();
    offered.sort_unstable();
    let mut left = [labels[0], labels[2]].map(|label| key(&world, label));
    left.sort_unstable();
    assert_eq!(offered, left);
    // A later one in its place says that it is not offered.
    let last = ServiceValue { label: labels[1].into(), port: 0, texts: vec![] };
    let last = world.fixture.record_of(4, Kind::Service, 2, last.encode());
    say(&mut world, 4, last).unwrap();
    world.run(Duration::from_secs(5));
    assert_eq!(found(&mut world, labels[1]), 2);
}

/// Sixteen services beside the records of a node took all look-ups that there may be, and people were told to try again.
#[test]
fn many_records_leave_look_ups_for_people_and_each_has_its_turn() {
    let mut world = World::fleet(6);
    world.told.clear();
    for number in 1..=LOOKUPS_MAX {
        let record = service(&world, 4, &format!("_a{number}._tcp"), 1);
        say(&mut world, 4, record).unwrap();
    }
    let now = world.moment();
    for number in 0..LOOKUPS_MAX / 2 {
        assert!(world.node(4).get(Kind::Name, Key([number as u8; 32]), now).is_ok(), "{number}");
    }
    world.drain(4);
    world.run(Duration::from_secs(5));
    assert_eq!(published(&world, 4), [(5, 5, None, 0, None); LOOKUPS_MAX]);
}

#[test]
fn publications_end_at_their_limit_and_of_other_kinds_there_is_one() {
    let mut world = World::fleet(3);
    // Beside the one that says how it is reached.
    for number in 1..PUBLICATIONS_MAX {
        let record = service(&world, 2, &format!("_a{number}._tcp"), 1);
        // What is over the quota here is published elsewhere no more than here.
        match say(&mut world, 2, record) {
            Ok(()) | Err(PublishError::Put(PutError::Quota(_))) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let mut client = World::fleet(3);
    let at = client.add(20, Mode::Client);
    for number in 1..PUBLICATIONS_MAX {
        let record = service(&client, 20, &format!("_a{number}._tcp"), 1);
        say(&mut client, at, record).unwrap();
    }
    let one_more = service(&client, 20, "_b._tcp", 1);
    assert_eq!(say(&mut client, at, one_more), Err(PublishError::TooMany));
    client.publish(at, 2).unwrap();
    let first = service(&client, 20, "_a1._tcp", 2);
    say(&mut client, at, first).unwrap();
    // Under another name, as after a renewal.
    let moved = |name: &str, sequence| {
        let said = crate::pki::statement::MemberStatement { name: name.into(), ..client.fixture.statement(20) };
        let envelope = crate::dht::record::Envelope {
            network: client.fixture.network(),
            kind: Kind::Name,
            key: Kind::Name.key_of(&said, &[]).unwrap(),
            sequence,
            not_after: UnixSecs(NOW.0 + 3600),
            node: said.node,
            value: vec![],
        };
        (envelope.key, client.fixture.signed_as(&said, 20, &envelope))
    };
    let [(old, one), (new, other)] = [moved("one", 1), moved("other", 2)];
    let spare = super::super::record::service_key(client.fixture.network(), "_a1._tcp", "site-20");
    client.node(at).withdraw(Kind::Service, spare);
    say(&mut client, at, one).unwrap();
    say(&mut client, at, other).unwrap();
    let kept: Vec<Key> =
        client.node(at).publications.keys().filter(|(kind, _)| *kind == Kind::Name).map(|at| at.1).collect();
    assert!(kept == [new] && kept != [old]);
}
