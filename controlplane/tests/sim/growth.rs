//! How a network comes to be, and what it costs while nothing happens.

use weir_controlplane::sim::{Faults, World};

use super::*;

#[test]
fn fifty_nodes_join_by_one_token_at_once() {
    let mut world = World::new(seed(50), spread);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let begin = world.at();
    let sites = world.grow(founder, 50).expect("all join");
    let took = world.at() - begin;
    assert!(took < 10 * SECOND, "the last one was a member after {took:?}");
    let all: Vec<_> = world.sites().collect();
    let agreed = world.run_until(2 * MINUTE, SECOND, |world| agree(world, &all)).expect("all know all");
    assert!(agreed < MINUTE, "{agreed:?}");
    let ids: std::collections::BTreeSet<_> = all.iter().filter_map(|site| world.id(*site)).collect();
    assert_eq!((ids.len(), sites.len()), (51, 50));
}

#[test]
fn five_members_have_sessions_with_one_another() {
    let (world, sites) = network(5, 5);
    assert!(is_mesh(&world, &sites) && agree(&world, &sites));
}

#[test]
fn a_run_can_be_repeated_from_its_seed() {
    let run = || {
        let (mut world, sites) = network(77, 6);
        world.set_faults(Faults { loss: 0.05, repeat: 0.0 });
        world.kill(sites[2]);
        world.run(MINUTE);
        world.start(sites[2]);
        world.run(10 * MINUTE);
        sites.iter().map(|site| (world.costs(*site), world.documents(*site), world.stores(*site))).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// What an idle hour costs: lists every ten minutes, keys every two minutes, echoes. Nothing that grows.
#[test]
fn an_idle_network_stays_quiet_and_does_not_grow() {
    let (mut world, sites) = network(6, 6);
    world.run(HOUR);
    let mut before: Vec<_> = sites.iter().map(|site| world.costs(*site)).collect();
    let sizes: Vec<_> = sites.iter().map(|site| world.plane_sizes(*site)).collect();
    for hour in 0..3 {
        world.run(HOUR);
        for (site, before) in sites.iter().zip(&mut before) {
            let (costs, stores) = (world.costs(*site), world.stores(*site));
            let peers = sites.len() as u64 - 1;
            // A list of one issuer every ten minutes, passed on to everybody, and what is said every few minutes.
            let messages = costs.messages - before.messages;
            assert!(messages < peers * (200 + 30 * peers), "hour {hour}: {messages} messages of {site:?}");
            // A key exchange in two minutes with each.
            let handshakes = costs.handshakes - before.handshakes;
            assert!(handshakes <= peers * 32, "hour {hour}: {handshakes} handshakes of {site:?}");
            assert!(stores < 3000, "{stores}");
            *before = costs;
        }
    }
    for (site, before) in sites.iter().zip(sizes) {
        let now = world.plane_sizes(*site);
        assert!(now.0 <= before.0 + 4 && now.1 <= before.1 && now.2 <= before.2 + 32, "{site:?}: {before:?}, {now:?}");
        let links = world.links_open(*site);
        assert!(links <= 3 * sites.len(), "{links} links");
        assert_eq!(world.plane_requests(*site).1, 0, "refused by the packet plane of {site:?}");
    }
    assert!(is_mesh(&world, &sites));
}

/// A network that loses a fifth of all datagrams, by any seed.
#[test]
fn lost_messages_delay_and_harm_nothing() {
    for seed in (0..5).map(|more| seed(8) + more) {
        nothing_is_lost(seed, Faults { loss: 0.2, repeat: 0.0 });
    }
}

/// Members with a fault of their own besides, who say things twice: that ends a link, and whatever it was for is begun again. Where it was an exchange of
/// keys of which one side has installed its half, a packet may be lost by it; by this seed none is.
#[test]
fn lost_and_repeated_messages_delay_and_harm_nothing() {
    nothing_is_lost(seed(5), Faults { loss: 0.2, repeat: 0.05 });
}

fn nothing_is_lost(seed: u64, faults: Faults) {
    let mut world = World::new(seed, spread);
    let founder = world.found().unwrap();
    world.set_faults(faults);
    world.run(5 * SECOND);
    world.grow(founder, 5).expect("all join");
    let sites: Vec<_> = world.sites().collect();
    world.run_until(10 * MINUTE, SECOND, |world| agree(world, &sites) && is_mesh(world, &sites)).expect("all is well");
    let streams: Vec<_> = pairs(&sites).map(|(one, other)| world.stream(one, other, ms(200))).collect();
    world.run(HOUR);
    for stream in streams {
        let stats = world.stats(stream);
        assert_eq!(stats.lost(), 0, "{stats:?}");
    }
    assert!(agree(&world, &sites) && is_mesh(&world, &sites));
}
