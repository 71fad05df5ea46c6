use std::net::SocketAddr;
use std::time::Duration;

use super::world::{LATENCY, World, address};
use crate::quic::{Alpn, CloseReason, Limits, LinkId};

/// The node is reached elsewhere from now on, and sends from there.
fn move_node(world: &mut World, node: usize, to: SocketAddr) {
    let old = world.nodes[node].address;
    world.homes.remove(&old);
    world.homes.insert(to, node);
    world.nodes[node].address = to;
}

#[test]
fn a_link_outlives_a_change_of_its_path_once_somebody_says_so() {
    let mut world = World::new(2);
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    let elsewhere = address(40);
    move_node(&mut world, 0, elsewhere);
    // What comes from elsewhere is heard, and what is answered still goes to where the peer was.
    world.send(0, ours, b"moved");
    world.run(4 * LATENCY);
    assert_eq!(world.messages(1, theirs), [b"moved"]);
    assert_eq!(world.nodes[1].driver.remote(theirs), Some(address(0)));
    let now = world.now;
    world.nodes[1].driver.path_changed(theirs, elsewhere, now);
    assert_eq!(world.nodes[1].driver.remote(theirs), Some(elsewhere));
    let before = world.log.len();
    world.send(1, theirs, b"found you");
    world.run(Duration::from_secs(1));
    assert_eq!(world.messages(0, ours), [b"found you"]);
    assert!(world.log[before..].iter().filter(|flight| flight.from == address(1)).all(|flight| flight.to == elsewhere));
}

#[test]
fn a_restarted_peer_resets_its_old_links_at_once() {
    let mut world = World::new(2);
    let (ours, _) = world.connect(0, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    world.nodes[1].driver = world.driver(1, world.nodes[1].trust.clone(), Limits::default());
    let begin = world.now.mono;
    world.send(0, ours, b"are you there?");
    world.run_until(Duration::from_secs(1), |world| world.closed(0, ours).is_some());
    assert!(matches!(world.closed(0, ours), Some(CloseReason::Reset)));
    assert_eq!(world.now.mono - begin, 2 * LATENCY);
    assert_eq!(world.nodes[0].driver.counters().resets_in, 1);
    // The new life takes new links.
    world.connect(0, 1, Alpn::Member);
}

#[test]
fn a_reset_finds_its_link_after_the_path_has_changed() {
    let mut world = World::new(3);
    let (ours, _) = world.connect(0, 1, Alpn::Member);
    let (other, _) = world.connect(0, 2, Alpn::Member);
    world.run(Duration::from_secs(1));
    let elsewhere = address(41);
    move_node(&mut world, 1, elsewhere);
    let now = world.now;
    world.nodes[0].driver.path_changed(ours, elsewhere, now);
    world.nodes[1].driver = world.driver(1, world.nodes[1].trust.clone(), Limits::default());
    world.send(0, ours, b"are you there?");
    world.run(Duration::from_secs(1));
    assert!(matches!(world.closed(0, ours), Some(CloseReason::Reset)));
    assert!(world.closed(0, other).is_none());
}

#[test]
fn a_reset_of_another_address_or_key_is_none() {
    let mut world = World::new(2);
    let (ours, _) = world.connect(0, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    // Somebody else answers at the peer's address: the token is another's.
    world.nodes[1].driver = world.driver(7, world.nodes[1].trust.clone(), Limits::default());
    world.send(0, ours, b"are you there?");
    world.run(Duration::from_secs(5));
    assert!(world.closed(0, ours).is_none());
    assert_eq!(world.nodes[0].driver.counters().resets_in, 0);
}

#[test]
fn under_load_an_address_proves_itself_first() {
    let limits = Limits { retry_from: 0, ..Limits::default() };
    let mut world = World::with(2, limits);
    let begin = world.now.mono;
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    assert_eq!(world.now.mono - begin, 5 * LATENCY, "one round trip more until the accepting side is connected");
    let counters = world.nodes[1].driver.counters();
    assert_eq!((counters.retries, counters.accepted), (2, 1), "each half of the ClientHello is answered");
    world.send(0, ours, b"proved");
    world.run(Duration::from_secs(1));
    assert_eq!((theirs, world.messages(1, theirs)), (LinkId(1), vec![&b"proved"[..]]));
    // What a Retry asks for is tagged for the one that asked.
    use weir_dataplane::api::admission::{Fields, Key, key_words};
    let key = Key::new(key_words(&[9; 16]), &super::world::id(1).0);
    let initials = world.log.iter().filter(|flight| flight.to == address(1) && flight.bytes[0] & 0xf0 == 0xc0);
    for flight in initials {
        assert!(Fields::parse(&flight.bytes[6..26]).unwrap().is_tagged_by(&key));
    }
}
