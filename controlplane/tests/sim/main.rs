//! Networks of real nodes on virtual time, through what happens to networks.
//!
//! Each test has a seed and can be repeated; one that fails prints it. `WEIR_SIM_SEED` gives another to all of them. What takes minutes is
//! ignored by default and runs with `cargo xtask test --full`.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

mod calls;
mod clocks;
mod copies;
mod discovery;
mod fidelity;
mod growth;
mod hostile;
mod issuers;
mod lan;
mod mail;
mod messages;
mod names;
mod outages;
mod policies;
mod relays;
mod replays;
mod revocation;
mod roaming;
mod sessions;

use std::time::Duration;

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::Status;
use weir_controlplane::sim::{Site, World};

/// Round trip of most tests: between cities of a country.
const RTT: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The seed of a test, or the one that the environment names.
fn seed(own: u64) -> u64 {
    std::env::var("WEIR_SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(own)
}

/// Between 5 and 105 ms, the same for each pair in each run.
fn spread(one: Site, other: Site) -> Duration {
    let (low, high) = (one.0.min(other.0) as u64, one.0.max(other.0) as u64);
    ms(5 + (low.wrapping_mul(0x9e37_79b9) ^ high.wrapping_mul(0x85eb_ca6b)) % 100)
}

/// A network of so many members, all of which joined by one token, a minute later.
fn network(own_seed: u64, members: u32) -> (World, Vec<Site>) {
    let mut world = World::new(seed(own_seed), |_, _| RTT);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let mut sites = vec![founder];
    if members > 1 {
        sites.extend(world.grow(founder, members - 1).expect("all join"));
    }
    world.run(MINUTE);
    (world, sites)
}

/// What `weir status` shows there now.
fn status(world: &mut World, site: Site) -> Status {
    let call = world.call(site, Call::Status);
    match world.answer(call) {
        Some(Ok(Answer::Status(status))) => *status,
        other => panic!("{other:?}"),
    }
}

/// Its warnings that have these words in them, each with its remedy.
fn warnings(world: &mut World, site: Site, words: &str) -> Vec<(String, String)> {
    let all = status(world, site).warnings.into_iter().filter(|warning| warning.what.contains(words));
    all.map(|warning| (warning.what, warning.remedy)).collect()
}

fn is_mesh(world: &World, sites: &[Site]) -> bool {
    pairs(sites).all(|(one, other)| world.is_session(one, other))
}

fn pairs(sites: &[Site]) -> impl Iterator<Item = (Site, Site)> {
    sites.iter().enumerate().flat_map(|(at, one)| sites[at + 1..].iter().map(move |other| (*one, *other)))
}

/// All know the same bundle, lists and members.
fn agree(world: &World, sites: &[Site]) -> bool {
    let first = world.documents(sites[0]);
    first.is_some() && sites.iter().all(|site| world.documents(*site) == first)
}
