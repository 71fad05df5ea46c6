use std::time::Duration;

use super::world::{LATENCY, World, address, id};
use crate::quic::{Alpn, CloseReason, DialError, DialTarget, Limits, LinkId, SendError};

#[test]
fn a_link_queues_up_to_its_limit() {
    let limits = Limits { queued_link_max: 1000, ..Limits::default() };
    let mut world = World::with(2, limits);
    let (ours, _) = world.connect(0, 1, Alpn::Member);
    let driver = &mut world.nodes[0].driver;
    // A message costs its length of four bytes as well.
    driver.send(ours, &[0; 496]).unwrap();
    assert_eq!(driver.send(ours, &[0; 501]), Err(SendError::Full(500)));
    driver.send(ours, &[0; 500]).unwrap();
    assert_eq!(driver.send(ours, &[]), Err(SendError::Full(1004)));
    assert_eq!(driver.counters().messages_refused, 2);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].driver.stats(ours).unwrap().queued, 0);
    world.send(0, ours, &[0; 996]);
}

#[test]
fn all_links_together_queue_up_to_a_limit() {
    let limits = Limits { queued_total_max: 1000, ..Limits::default() };
    let mut world = World::with(3, limits);
    let (one, _) = world.connect(0, 1, Alpn::Member);
    let (two, _) = world.connect(0, 2, Alpn::Member);
    world.send(0, one, &[0; 900]);
    assert_eq!(world.nodes[0].driver.send(two, &[0; 100]), Err(SendError::Full(0)));
    let now = world.now;
    world.nodes[0].driver.close(one, 0, "", now);
    world.send(0, two, &[0; 100]);
}

#[test]
fn whoever_does_not_read_makes_the_sender_wait() {
    let limits =
        Limits { unread_link_max: 50_000, read_once_max: 10_000, queued_link_max: 8 << 20, ..Limits::default() };
    let mut world = World::with(2, limits);
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    world.nodes[1].deaf = true;
    for _ in 0..1000 {
        world.send(0, ours, &[5; 5000]);
    }
    world.run(Duration::from_secs(20));
    // What the reader holds: the limit, what was read last, and the window below.
    let waiting = world.nodes[0].driver.stats(ours).unwrap().queued;
    assert!(waiting > 5_000_000 - 50_000 - 20_000 - 2 * (512 << 10), "{waiting}");
    let read = world.nodes[1].driver.counters().messages_in;
    assert!((10..=12).contains(&read), "{read}");
    world.nodes[1].deaf = false;
    world.run_until(Duration::from_secs(60), |world| world.messages(1, theirs).len() == 1000);
}

#[test]
fn when_all_wait_for_one_reader_everybody_gets_on_at_last() {
    let limits = Limits { unread_total_max: 30_000, read_once_max: 10_000, ..Limits::default() };
    let mut world = World::with(4, limits);
    let links = [1, 2, 3].map(|peer| world.connect(peer, 0, Alpn::Member));
    world.nodes[0].deaf = true;
    for (peer, (link, _)) in [1, 2, 3].into_iter().zip(links) {
        for _ in 0..20 {
            world.send(peer, link, &[5; 5000]);
        }
    }
    world.run(Duration::from_secs(10));
    assert!(world.nodes[0].driver.counters().messages_in <= 9);
    world.nodes[0].deaf = false;
    world.run_until(Duration::from_secs(60), |world| {
        links.iter().all(|(_, theirs)| world.messages(0, *theirs).len() == 20)
    });
}

#[test]
fn unfinished_messages_have_a_common_limit() {
    let limits = Limits { partial_total_max: 100_000, read_once_max: 10_000, ..Limits::default() };
    let mut world = World::with(2, limits);
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    world.send(0, ours, &[1; 90_000]);
    world.run(Duration::from_secs(2));
    assert_eq!(world.messages(1, theirs).len(), 1);
    world.send(0, ours, &[1; 120_000]);
    world.run(Duration::from_secs(2));
    assert!(matches!(world.closed(1, theirs), Some(CloseReason::Protocol(why)) if why.contains("unfinished")));
}

#[test]
fn there_are_as_many_links_as_may_be() {
    let limits = Limits { links_max: 2, ..Limits::default() };
    let mut world = World::with(2, limits);
    let now = world.now;
    world.dial(0, 1, Alpn::Member);
    world.dial(0, 1, Alpn::Member);
    let third = world.nodes[0].driver.dial(Alpn::Member, &DialTarget::member(id(1)), address(1), now);
    assert_eq!(third, Err(DialError::TooMany(2)));
    world.run(Duration::from_secs(1));
    // The accepting side is full as well, and says so.
    world.add(2, true, Limits::default());
    let link = world.dial(2, 1, Alpn::Member);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.closed(2, link), Some(CloseReason::PeerSaturated)), "{:?}", world.closed(2, link));
    // Twice: the ClientHello comes in two datagrams.
    assert_eq!(world.nodes[1].driver.counters().saturated, 2);
}

#[test]
fn unverified_links_are_limited_and_given_up_in_time() {
    let limits = Limits { unverified_max: 3, ..Limits::default() };
    let mut world = World::with(2, limits);
    for _ in 0..5 {
        world.dial(0, 1, Alpn::Member);
    }
    // The dialling side falls silent.
    world.flush();
    world.homes.remove(&address(0));
    world.run(5 * LATENCY);
    let counters = world.nodes[1].driver.counters();
    assert_eq!((counters.accepted, counters.saturated), (3, 4), "two more, two datagrams each");
    world.nodes[0].driver = world.driver(0, world.nodes[0].trust.clone(), Limits::default());
    world.run(Duration::from_secs(12));
    assert!(matches!(world.closed(1, LinkId(1)), Some(CloseReason::HandshakeTimedOut)));
    assert_eq!(world.nodes[1].driver.counters().timeouts, 3);
    world.homes.insert(address(0), 0);
    world.connect(0, 1, Alpn::Member);
}

#[test]
fn nobody_new_is_let_in_while_too_many_events_wait() {
    let limits = Limits { events_max: 2, ..Limits::default() };
    let mut world = World::with(2, limits);
    world.nodes[1].deaf = true;
    world.dial(0, 1, Alpn::Member);
    // Opening and Connected.
    world.run(5 * LATENCY);
    assert_eq!(world.nodes[1].driver.counters().connected, 1);
    world.dial(0, 1, Alpn::Member);
    world.run(5 * LATENCY);
    let counters = world.nodes[1].driver.counters();
    assert_eq!((counters.accepted, counters.saturated), (1, 2));
    world.nodes[1].deaf = false;
    world.connect(0, 1, Alpn::Member);
}

#[test]
fn addresses_that_cannot_be_dialled_are_refused() {
    let mut world = World::new(1);
    let now = world.now;
    for wrong in ["0.0.0.0:1", "192.0.2.1:0", "[::]:7"] {
        let wrong = wrong.parse().unwrap();
        let dialled = world.nodes[0].driver.dial(Alpn::Member, &DialTarget::member(id(1)), wrong, now);
        assert_eq!(dialled, Err(DialError::Address(wrong)));
    }
    assert_eq!(world.nodes[0].driver.links(), 0);
}

/// Resident memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A figure to look at: other tests run in the same process, so run it alone.
#[test]
#[ignore = "measures the memory of the whole process: run it alone"]
fn an_idle_link_takes_less_than_64_kib() {
    let mut world = World::new(2);
    for _ in 0..20 {
        world.connect(0, 1, Alpn::Member);
    }
    let (before, links) = (resident(), 500);
    for _ in 0..links {
        world.connect(0, 1, Alpn::Member);
        world.log.clear();
        world.nodes.iter_mut().for_each(|node| node.events.clear());
    }
    let per_link = resident().saturating_sub(before) / (2 * links);
    println!("{per_link} bytes per side of an idle link");
    assert!(per_link < 64 << 10, "{per_link}");
}
