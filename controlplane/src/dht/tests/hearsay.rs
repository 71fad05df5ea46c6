//! What others say, of addresses and of records, and what it costs those of whom it is said.

use super::*;
use crate::dht::record::Envelope;
use crate::pki::statement::MemberStatement;

fn elsewhere(contact: Contact) -> Contact {
    Contact { address: "192.0.2.9:9".parse().unwrap(), ..contact }
}

/// A liar named honest members where nobody is: they were asked there, and lost their places here for not answering.
#[test]
fn naming_members_where_they_are_not_takes_no_place_from_them() {
    let mut world = World::fleet(12);
    let now = world.moment();
    world.node(1).get(Kind::Zone, Key([0x11; 32]), now).unwrap();
    let false_named: Vec<Contact> = world.contacts.iter().map(|contact| elsewhere(*contact)).collect();
    let mut waiting = world.asks(1);
    let mut asked = vec![];
    while let Some(one) = waiting.pop() {
        asked.push(one.0);
        world.answer(1, one, Reply::Contacts(false_named.clone()));
        waiting.extend(world.asks(1));
    }
    assert!(asked.len() > PATHS && asked.iter().all(|contact| world.contacts.contains(contact)), "{asked:?}");
    for contact in false_named {
        world.node(1).handle_unreachable(contact, now);
    }
    assert_eq!((world.node(1).table().len(), world.node(1).counters().timeouts), (11, 0));
    let entries: Vec<_> = world.node(1).table().entries().map(|entry| (entry.contact, entry.failures)).collect();
    assert!(
        entries.iter().all(|(contact, failures)| world.contacts.contains(contact) && *failures == 0),
        "{entries:?}"
    );
}

/// Of somebody whom we do not know yet, an address at which nobody is was all that was ever tried.
#[test]
fn who_is_not_where_one_says_is_asked_where_another_says() {
    let mut world = World::fleet(12);
    let now = world.moment();
    let stranger = Contact { node: world.fixture.node(77), address: "198.51.100.77:4646".parse().unwrap() };
    world.node(1).get(Kind::Zone, Key([0x11; 32]), now).unwrap();
    let first = world.asks(1);
    // One path goes on until it comes to this contact.
    let follow = |world: &mut World, from, named: Contact| {
        let mut next = from;
        let mut reply = Reply::Contacts(vec![named]);
        for _ in 0..PATH_REQUESTS_MAX {
            world.answer(1, next, reply);
            let [asked] = world.asks(1)[..] else { panic!("one at a time") };
            if asked.0 == named {
                return asked;
            }
            (next, reply) = (asked, Reply::Contacts(vec![]));
        }
        panic!("it was never asked");
    };
    follow(&mut world, first[0], elsewhere(stranger));
    world.node(1).handle_unreachable(elsewhere(stranger), now);
    world.asks(1);
    let there = follow(&mut world, first[1], stranger);
    world.answer(1, there, Reply::Contacts(vec![]));
    assert_eq!(world.node(1).table().entry(stranger.node).map(|entry| entry.contact), Some(stranger));
}

/// A member that is asked where it is not, and answers by a session that was there, is known by where that is.
#[test]
fn a_place_is_for_the_address_of_the_session() {
    let mut world = World::fleet(12);
    let now = world.moment();
    let stranger = Contact { node: world.fixture.node(77), address: "198.51.100.77:4646".parse().unwrap() };
    world.node(1).ask(elsewhere(stranger), Query::Ping, Purpose::Check, now);
    let [(_, transaction)] = world.asks(1)[..] else { panic!("one request") };
    world.answer(1, (stranger, transaction), Reply::Pong);
    assert_eq!(world.node(1).table().entry(stranger.node).map(|entry| entry.contact), Some(stranger));
}

/// Holders whose clock was behind, or who had not heard of a revocation, were taken for liars.
#[test]
fn a_record_that_is_past_its_end_by_our_clock_marks_nobody() {
    let mut world = World::fleet(6);
    let (now, key) = (world.moment(), world.contacts[5].node.into());
    world.node(1).get(Kind::Node, key, now).unwrap();
    let asked = world.asks(1);
    let good = world.fixture.record(5, Kind::Node, 9, b"x").read(world.fixture.network(), NOW).unwrap();
    let ends = |not_after| Envelope { not_after, ..good.clone() };
    let ended = world.fixture.signed(5, &ends(UnixSecs(now.wall.0 - 1)));
    let too_long = world.fixture.signed(5, &ends(UnixSecs(now.wall.0 + crate::dht::record::LIFETIME_MAX_SECS + 1)));
    let said = world.fixture.statement(5);
    let not_yet = MemberStatement { not_before: UnixSecs(now.wall.0 + 1), ..said };
    let not_yet = world.fixture.signed_as(&not_yet, 5, &good);
    for (asked, record) in asked.into_iter().zip([ended, too_long, not_yet]) {
        let before = world.node(1).counters().bad_records;
        world.answer(1, asked, Reply::Record(record));
        assert_eq!(world.node(1).counters().bad_records, before + 1);
        assert!(world.node(1).table().entry(asked.0.node).is_some());
        assert!(world.asks(1).iter().all(|(to, _)| to.node != asked.0.node), "and it is not asked again");
    }
}
