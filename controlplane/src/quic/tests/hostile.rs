use std::time::Duration;

use super::world::{Flight, LATENCY, World, address};
use crate::quic::{Alpn, Driver};
use crate::random::{Random, SeededRandom};
use crate::time::Now;

fn feed(driver: &mut Driver, now: Now, flight: &Flight) {
    driver.handle_datagram(now, flight.from, None, flight.ecn, &flight.bytes);
    let mut buf = Vec::new();
    while driver.poll_transmit(now, &mut buf).is_some() {}
    while driver.poll_event().is_some() {}
}

#[test]
fn no_datagram_is_too_strange() {
    let mut world = World::new(2);
    let (ours, theirs) = world.connect(0, 1, Alpn::Member);
    world.send(0, ours, &[3; 5000]);
    world.run(Duration::from_secs(1));
    let log: Vec<Flight> = world.log.iter().filter(|flight| flight.to == address(1)).cloned().collect();
    let (now, driver) = (world.now, &mut world.nodes[1].driver);
    let before = driver.counters();
    let mut random = SeededRandom::new(7);
    let mut fed = 0;
    let mut try_one = |driver: &mut Driver, bytes: Vec<u8>| {
        fed += 1;
        feed(
            driver,
            now,
            &Flight { from: address(30), to: address(1), ecn: Some(u8::try_from(fed % 5).unwrap()), bytes },
        );
    };
    for flight in log.iter().take(12) {
        for len in (0..flight.bytes.len()).step_by(7) {
            try_one(driver, flight.bytes[..len].to_vec());
        }
        for _ in 0..60 {
            let mut bent = flight.bytes.clone();
            for _ in 0..=random.u64() % 4 {
                let at = usize::try_from(random.u64()).unwrap() % bent.len();
                bent[at] ^= u8::try_from(random.u64() % 255).unwrap() + 1;
            }
            try_one(driver, bent);
        }
        // The headers are where the parsing is.
        for at in 0..60.min(flight.bytes.len()) {
            let mut bent = flight.bytes.clone();
            bent[at] = random.array::<1>()[0];
            try_one(driver, bent);
        }
    }
    for _ in 0..3000 {
        let mut noise = vec![0; usize::try_from(random.u64() % 1500).unwrap()];
        random.fill(&mut noise);
        if let Some(first) = noise.first_mut()
            && random.u64().is_multiple_of(2)
        {
            *first |= 0xc0;
        }
        try_one(driver, noise);
    }
    let after = driver.counters();
    assert_eq!(after.datagrams_in - before.datagrams_in, fed);
    assert!(after.datagrams_ignored > before.datagrams_ignored + 3000, "{after:?}");
    assert_eq!(after.connected, before.connected);
    // The link in the midst of it all has heard nothing of it.
    world.send(0, ours, b"still here");
    world.run(Duration::from_secs(1));
    assert_eq!(world.messages(1, theirs).last(), Some(&&b"still here"[..]));
}

#[test]
fn a_replayed_handshake_makes_nobody_a_peer() {
    let mut world = World::new(2);
    world.connect(0, 1, Alpn::Member);
    let log: Vec<Flight> = world.log.iter().filter(|flight| flight.to == address(1)).cloned().collect();
    // The same node after a restart, and everything that it was sent before.
    world.nodes[1].driver = world.driver(1, world.nodes[1].trust.clone(), crate::quic::Limits::default());
    let (now, driver) = (world.now, &mut world.nodes[1].driver);
    for flight in &log {
        feed(driver, now, &Flight { from: address(31), ..flight.clone() });
    }
    let counters = driver.counters();
    assert_eq!((counters.accepted, counters.connected), (1, 0));
}

#[test]
fn answers_to_strangers_are_shorter_than_three_times_what_they_sent() {
    let mut world = World::new(2);
    world.dial(0, 1, Alpn::Member);
    world.flush();
    let hello: Vec<Flight> = world.log.iter().filter(|flight| flight.to == address(1)).cloned().collect();
    assert_eq!(hello.len(), 2);
    // A source that is a lie: what comes back comes to somebody who never answers.
    world.homes.remove(&address(0));
    let sent: usize = hello.iter().map(|flight| flight.bytes.len()).sum();
    world.run(Duration::from_secs(15) + LATENCY);
    let back: usize = world.log.iter().filter(|flight| flight.to == address(0)).map(|flight| flight.bytes.len()).sum();
    let all: usize = world.log.iter().filter(|flight| flight.to == address(1)).map(|flight| flight.bytes.len()).sum();
    assert!(back > 0 && back <= 3 * all && sent <= all, "{back} bytes for {all}");
}
