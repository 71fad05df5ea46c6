//! Records of our own: what comes of each round, and what of the next.

use super::*;
use crate::dht::publish::AGAIN;
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
    world.node(4).publish_again(Kind::Node, now);
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
