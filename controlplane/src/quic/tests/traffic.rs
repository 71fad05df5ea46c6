use std::time::Duration;

use super::world::{LATENCY, Weather, World};
use crate::quic::{Alpn, CloseReason, LinkId, MESSAGE_LEN_MAX, SendError};

#[test]
fn messages_arrive_whole_once_and_in_order_through_bad_weather() {
    for seed in 1..=5 {
        let mut world = World::new(2);
        world.weather = Weather { lost: 100, doubled: 50, late: 100 };
        world.random = crate::random::SeededRandom::new(seed);
        let (ours, theirs) = world.connect(0, 1, Alpn::Member);
        let messages: Vec<Vec<u8>> = (0..60u8).map(|n| vec![n; usize::from(n) * 50]).collect();
        for message in &messages {
            world.send(0, ours, message);
            world.send(1, theirs, message);
        }
        world.run_until(Duration::from_secs(60), |world| {
            world.messages(0, ours).len() == 60 && world.messages(1, theirs).len() == 60
        });
        assert_eq!(world.messages(0, ours), messages, "seed {seed}");
        assert_eq!(world.messages(1, theirs), messages, "seed {seed}");
    }
}

#[test]
fn the_longest_message_travels_in_trains_and_one_byte_more_is_refused() {
    let mut world = World::new(2);
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    let longest: Vec<u8> = (0..MESSAGE_LEN_MAX).map(|n| u8::try_from(n % 251).unwrap()).collect();
    world.send(0, ours, &longest);
    let over = vec![0; MESSAGE_LEN_MAX + 1];
    assert_eq!(world.nodes[0].driver.send(ours, &over), Err(SendError::TooLong(MESSAGE_LEN_MAX + 1)));
    // The first poll already has more than one datagram.
    let (now, mut buf) = (world.now, Vec::new());
    let transmit = world.nodes[0].driver.poll_transmit(now, &mut buf).unwrap();
    let segment = transmit.segment_len.expect("a train");
    assert!(transmit.len > segment && buf.len() == transmit.len, "{transmit:?}");
    assert_eq!(transmit.ecn, Some(0b10), "ECN-capable transport");
    let from = world.nodes[0].address;
    world.launch(from, &transmit, &buf);
    world.run_until(Duration::from_secs(60), |world| !world.messages(1, theirs).is_empty());
    assert_eq!(world.messages(1, theirs), [&longest[..]]);
    assert_eq!(world.nodes[0].driver.stats(ours).unwrap().queued, 0);
}

#[test]
fn congestion_marks_are_heard() {
    let run = |mark: bool| {
        let mut world = World::new(2);
        let (ours, _) = world.connect(0, 1, Alpn::Member);
        let before = world.nodes[0].driver.stats(ours).unwrap().congestion_window;
        world.send(0, ours, &[7; 40_000]);
        world.flush();
        // A router on the way marks what it would otherwise drop soon.
        world.mark_all(mark);
        world.run(10 * LATENCY);
        (before, world.nodes[0].driver.stats(ours).unwrap().congestion_window)
    };
    let ((before, plain), (_, marked)) = (run(false), run(true));
    assert!(plain > before && marked < plain / 2, "{before} {plain} {marked}");
}

#[test]
fn a_silent_link_ends_unless_it_is_kept_alive() {
    let mut world = World::new(2);
    let (first, _) = world.connect(0, 1, Alpn::Member);
    let (kept, theirs) = world.connect(0, 1, Alpn::Member);
    let now = world.now;
    world.nodes[0].driver.set_keep_alive(kept, Some(Duration::from_secs(10)), now);
    world.run(Duration::from_secs(29));
    assert!(world.closed(0, first).is_none());
    world.run(Duration::from_secs(90));
    assert!(matches!(world.closed(0, first), Some(CloseReason::TimedOut)));
    assert!(world.closed(0, kept).is_none() && world.closed(1, theirs).is_none());
    let now = world.now;
    world.nodes[0].driver.set_keep_alive(kept, None, now);
    world.run(Duration::from_secs(60));
    assert!(matches!(world.closed(1, theirs), Some(CloseReason::TimedOut)));
    assert_eq!((world.nodes[0].driver.links(), world.nodes[1].driver.links()), (0, 0));
    assert_eq!(world.nodes[0].driver.next_deadline(), None, "nothing is left behind");
}

#[test]
fn the_peer_is_told_why_a_link_is_closed() {
    let mut world = World::new(2);
    let (ours, theirs) = world.connect(0, 1, Alpn::Key);
    let now = world.now;
    world.nodes[0].driver.close(ours, 0x107, "superseded", now);
    world.nodes[0].driver.close(ours, 0x108, "again", now);
    world.run(Duration::from_secs(3));
    match (world.only_end(0), world.closed(1, theirs)) {
        (CloseReason::Local { code: 0x107 }, Some(CloseReason::Peer { code: 0x107, words })) => {
            assert_eq!(words, "superseded");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((world.nodes[0].driver.links(), world.nodes[1].driver.links()), (0, 0), "drained and forgotten");
    assert_eq!(theirs, LinkId(1));
    // Ids are not used again.
    let (next, _) = world.connect(0, 1, Alpn::Key);
    assert!(next > ours);
}
