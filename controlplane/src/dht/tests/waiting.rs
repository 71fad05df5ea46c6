//! How long is waited for whom, and what is done when nobody comes.

use super::*;

/// Where every answer took longer than the first guess no round trip was ever learned, and all was asked twice for ever.
#[test]
fn members_that_are_far_from_everybody_ask_once() {
    let mut world = World::new();
    world.one_way = Duration::from_millis(400);
    for number in 0..6 {
        world.add(number, Mode::Server);
    }
    world.run(Duration::from_secs(60));
    let before = world.repeated;
    assert_eq!(world.look_up(3, 5).sequence, 1);
    assert_eq!((world.look_up(4, 1).sequence, world.repeated), (1, before));
}

/// Whoever made one session after the other was waited for as long as it liked.
#[test]
fn a_session_gives_more_time_once() {
    let mut world = World::fleet(4);
    let now = world.moment();
    world.node(1).get(Kind::Zone, Key([0x11; 32]), now).unwrap();
    let (to, _) = world.asks(1)[0];
    let (hard, mut first) = (world.node(1).pace.hard(), None);
    for _ in 0..100 {
        world.now += Duration::from_millis(50);
        let now = world.moment();
        world.node(1).handle_session(peer(to), now);
        world.node(1).handle_timeout(now);
        let is_open = world.node(1).outstanding.values().any(|asked| asked.to == to && asked.purpose != Purpose::Check);
        first = first.or((!is_open).then_some(world.now));
    }
    let waited = first.expect("it is given up") - (world.now - Duration::from_secs(5));
    assert!(waited >= hard && waited <= hard + Duration::from_millis(200), "{waited:?} of {hard:?}");
}

/// At the very moment that somebody in doubt was to be asked it was not yet long enough ago, and the next moment was an hour later.
#[test]
fn who_is_in_doubt_is_asked_again_in_time() {
    let mut world = World::fleet(4);
    let (start, doubted) = (world.moment(), world.contacts[2]);
    assert_eq!(world.node(1).table.failed(doubted, start.mono), None);
    // Somebody else is looked after in between.
    let [between, due] = [DOUBT / 2, DOUBT].map(|after| Now { mono: start.mono + after, ..start });
    world.node(1).timers.set(Timer::Check, between.mono);
    world.node(1).handle_timeout(between);
    assert!(world.asks(1).iter().all(|(to, _)| *to != doubted));
    world.node(1).handle_timeout(due);
    assert!(world.asks(1).iter().any(|(to, _)| *to == doubted));
}

#[test]
fn who_asks_us_is_seen_to_have_stayed() {
    let mut world = World::fleet(4);
    let (before, other) = (world.node(1).half_life(), world.contacts[2]);
    world.now += Duration::from_secs(600);
    let query = Query::Ping;
    world.give(1, other, &Message::Request(Request { transaction: 1, is_server: true, query }));
    assert!(world.node(1).half_life() > before);
}

/// What was left of a node after an outage knew nobody.
#[test]
fn an_outage_takes_no_anchors_away() {
    let mut world = World::fleet(12);
    let saved = world.node(5).save();
    let others = (0..12).filter(|at| *at != 5);
    let gone: Vec<_> = others.map(|at| (at, world.nodes[at].take())).collect();
    world.start(5, Mode::Server, saved.clone(), &[]);
    world.run(Duration::from_secs(120));
    assert_eq!(world.node(5).table().len(), 0);
    let left = world.node(5).save();
    let sorted = |mut anchors: Vec<Contact>| {
        anchors.sort_unstable();
        anchors
    };
    assert_eq!(sorted(left.anchors.clone()), sorted(saved.anchors));
    gone.into_iter().for_each(|(at, node)| world.nodes[at] = node);
    world.start(5, Mode::Server, left, &[]);
    world.run(Duration::from_secs(10));
    assert_eq!(world.node(5).table().len(), 11);
}

/// Twenty anchors that were all gone left no room for whom an operator had set, and sixteen of them were asked again and again.
#[test]
fn anchors_that_are_gone_keep_nobody_out() {
    let dead = |number: u16| Contact {
        node: NodeId([number as u8; 32]),
        address: SocketAddr::from((Ipv4Addr::new(192, 0, 2, number as u8), 4646)),
    };
    let joins = |anchors: Vec<Contact>, given: &[Contact], within: Duration| {
        // Who begins is known to nobody, so nobody asks it anything.
        let mut world = World::fleet(3);
        let address = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 200), 4646));
        world.contacts.push(Contact { node: world.fixture.node(200), address });
        world.members.push(200);
        world.nodes.push(None);
        world.start(3, Mode::Server, Saved { anchors, highest: vec![] }, given);
        world.told.clear();
        world.run(within);
        world.told.contains(&(3, Output::Joined))
    };
    let alive = World::fleet(1).contacts[0];
    let all_dead: Vec<Contact> = (0..ANCHORS_MAX as u16).map(dead).collect();
    assert!(!joins(all_dead.clone(), &[], Duration::from_secs(120)));
    assert!(joins(all_dead.clone(), &[alive], Duration::from_secs(10)));
    let last = [&all_dead[1..], &[alive]].concat();
    assert!(joins(last, &[], Duration::from_secs(30)));
}
