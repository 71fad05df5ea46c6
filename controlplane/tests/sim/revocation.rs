//! How long a revoked member's packets are still taken.

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{ErrorCode, RevocationListRequest, RevocationsApplyRequest, RevokeRequest};
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::revocation::{self, Entry, Revoked, SignedRevocationList};

use super::*;

pub(super) fn revoke(world: &mut World, issuer: Site, victim: Site) {
    let member = world.id(victim).expect("a member").to_string();
    let request = RevokeRequest { member, reason: "stolen".to_owned(), replace: false };
    let answer = world.ask(issuer, Call::Revoke(request), SECOND);
    assert!(matches!(answer, Some(Ok(Answer::Revoked(_)))), "{answer:?}");
}

#[test]
fn nobody_takes_a_packet_of_a_revoked_member() {
    let mut world = World::new(seed(90), spread);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let others = world.grow(founder, 7).expect("all join");
    world.run(MINUTE);
    let (victim, rest) = others.split_last().unwrap();
    let streams: Vec<_> = rest.iter().map(|site| world.stream(*victim, *site, ms(10))).collect();
    world.run(MINUTE);
    let begin = world.at();
    revoke(&mut world, founder, *victim);
    world.run(10 * MINUTE);
    for stream in streams {
        let last = world.stats(stream).last.expect("it was heard before");
        assert!(last <= begin + SECOND, "heard until {:?} after", last - begin);
        assert!(world.stats(stream).delivered > 5000);
    }
    // Nor does it find a way back in.
    for site in rest {
        assert!(!world.is_session(*site, *victim));
        assert_eq!(world.sessions(*site), rest.len());
    }
    let refused: u64 = rest.iter().filter_map(|site| world.ended(*site).get("node_revoked")).sum();
    assert!(refused < 400, "a revoked member knocks {refused} times in ten minutes");
}

/// The list crosses with the first echo that does.
#[test]
fn a_revocation_crosses_a_healed_cut_within_five_seconds() {
    for number in 0..2 {
        let (mut world, sites) = network(91 + number, 6);
        let (near, far) = sites.split_at(3);
        let victim = far[2];
        let streams = [far[0], far[1]].map(|site| world.stream(victim, site, ms(50)));
        world.run(MINUTE);
        world.cut(&[near, far]);
        world.run(10 * MINUTE);
        revoke(&mut world, near[0], victim);
        world.run(5 * MINUTE);
        assert!(world.is_session(far[0], victim), "the far half cannot know");
        let begin = world.at();
        world.heal();
        world.run(5 * MINUTE);
        for stream in streams {
            let last = world.stats(stream).last.expect("it was heard before");
            assert!(last <= begin + 5 * SECOND, "heard until {:?} after", last - begin);
        }
    }
}

/// On the day when no issuer is left: a key that a ceremony named cuts a member off, and its word counts as theirs does.
#[test]
fn a_revocation_key_cuts_a_member_off_while_no_issuer_can() {
    let (mut world, sites) = network(95, 5);
    let [founder, by, stays, victim, second] = sites[..] else { panic!() };
    let key = PrivateKey::from_seed(&[77; 32]);
    let id = key.public().id();
    world.hold_ceremony(by, |ceremony, _| ceremony.add_revocation_key(key.public()).map(drop)).expect("a new bundle");
    world.run(SECOND);
    world.power_off(founder);
    world.run(MINUTE);

    let nodes = [victim, second].map(|site| world.id(site).unwrap());
    let list = |world: &World, version, nodes: &[NodeId]| {
        let entry = |node| Entry { what: Revoked::Node(node), reason: "stolen".to_owned(), at: world.true_time() };
        let (now, entries) = (world.true_time(), nodes.iter().map(|node| entry(*node)).collect());
        SignedRevocationList::sign(&key, version, now, now, entries)
    };
    let apply = |world: &mut World, list: &SignedRevocationList| {
        let list = revocation::text::write(list);
        match world.ask(by, Call::RevocationsApply(RevocationsApplyRequest { list }), SECOND).expect("an answer") {
            Ok(Answer::Done(done)) => Ok(done.message),
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err((refused.code, refused.message)),
        }
    };
    let first = list(&world, 1, &nodes[..1]);
    assert!(apply(&mut world, &first).unwrap().contains("1 more entries"));
    assert!(apply(&mut world, &first).unwrap().contains("in force already"));
    world.run(RTT);
    for site in [by, stays, second] {
        assert!(world.knows_revoked(site, nodes[0]) && !world.is_session(site, victim), "{site:?}");
    }
    assert!(world.is_session(stays, second));
    // Whoever lost the file goes on from what the network knows.
    let request = RevocationListRequest { signer: id.to_string() };
    let Some(Ok(Answer::RevocationList(known))) = world.ask(stays, Call::RevocationList(request), SECOND) else {
        panic!("no list");
    };
    assert_eq!((known.entries, revocation::text::read(&known.list)), (1, Ok(first.clone())));
    let other = list(&world, 2, &[nodes[1], nodes[0]]);
    let refused = apply(&mut world, &other).unwrap_err();
    assert!(refused.0 == ErrorCode::Conflict && refused.1.contains("took revocations back"), "{refused:?}");
    let entries = [&first.entries[..], &other.entries[..1]].concat();
    let next = SignedRevocationList::sign(&key, 2, world.true_time(), world.true_time(), entries);
    apply(&mut world, &next).unwrap();
    world.run(RTT);
    assert!(world.knows_revoked(stays, nodes[1]) && !world.is_session(stays, second));
    // A key that no bundle names says nothing, and neither does one that is named no more.
    let stranger =
        SignedRevocationList::sign(&PrivateKey::from_seed(&[78; 32]), 1, world.true_time(), world.true_time(), vec![]);
    assert!(matches!(apply(&mut world, &stranger), Err((ErrorCode::Conflict, why)) if why.contains("may not revoke")));
    let wrong = world.ask(by, Call::RevocationsApply(RevocationsApplyRequest { list: "no list".to_owned() }), SECOND);
    assert!(matches!(wrong, Some(Err(refused)) if refused.code == ErrorCode::BadRequest));

    // The issuer's node learns it when it is back, and its issuer renews nobody who is on the list.
    world.start(founder);
    world.run(MINUTE);
    assert!(world.knows_revoked(founder, nodes[0]) && world.knows_revoked(founder, nodes[1]));
    world.hold_ceremony(by, |ceremony, _| ceremony.remove_revocation_key(id)).expect("a new bundle");
    world.run(SECOND);
    assert!(!world.knows_revoked(stays, nodes[0]));
}

fn large(count: usize) {
    let mut world = World::new(seed(1000), spread);
    let founder = world.found().unwrap();
    world.run(5 * SECOND);
    let sites = world.enrol(count).expect("members are made");
    world.start_enrolled(&sites);
    world.run(MINUTE);
    let victim = sites[count / 2];
    let ways: Vec<_> = (1..=20).map(|at| sites[at * (count / 21)]).filter(|site| *site != victim).collect();
    let streams: Vec<_> = ways.iter().map(|site| world.stream(victim, *site, ms(50))).collect();
    world.run(20 * SECOND);
    let before: Vec<_> = sites.iter().map(|site| world.costs(*site)).collect();
    let heard: Vec<u64> = streams.iter().map(|stream| world.stats(*stream).delivered).collect();
    assert!(heard.iter().all(|heard| *heard > 200), "{heard:?}");
    let node = world.id(victim).expect("a member");
    let begin = world.at();
    let (mut known, mut waits) = (std::collections::BTreeSet::new(), vec![]);
    revoke(&mut world, founder, victim);
    for _ in 0..400 {
        for site in sites.iter().filter(|site| **site != victim) {
            if !known.contains(site) && world.knows_revoked(*site, node) {
                known.insert(*site);
                waits.push(world.at() - begin);
            }
        }
        world.run(ms(50));
    }
    assert_eq!(waits.len(), count - 1, "all hear of it");
    let p99 = waits[waits.len() * 99 / 100];
    let (half, last) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("{count} members: half of them know after {half:?}, 99 % after {p99:?}, the last after {last:?}");
    assert!(p99 <= 5 * SECOND, "p99 {p99:?}, the last {last:?}");
    for stream in streams {
        let last = world.stats(stream).last.expect("it was heard before");
        assert!(last <= begin + 5 * SECOND, "heard until {:?} after", last - begin);
    }
    let mut most = 0;
    for (site, before) in sites.iter().zip(before) {
        let messages = world.costs(*site).messages - before.messages;
        most = most.max(messages);
        assert!(messages < 400, "{messages} messages of {site:?} for one revocation");
    }
    println!("{most} messages at most of a member in the twenty seconds around it");
}

#[test]
fn a_revocation_reaches_sixty_members_over_neighbours() {
    large(60);
}

/// Five seconds at the 99th percentile, in a network where each keeps links to eight neighbours.
#[test]
#[ignore = "minutes"]
fn a_revocation_reaches_a_thousand_members_in_five_seconds() {
    large(1000);
}
