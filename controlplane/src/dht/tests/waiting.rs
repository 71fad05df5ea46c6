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

/// Refreshes went on at the rate of a network that is minutes old, and each paid for handshakes.
#[test]
fn a_quiet_network_is_left_quiet_and_one_that_grows_is_looked_at() {
    // Nobody says anything: records of an hour are put again and again.
    let mut world = World::new();
    let add = |world: &mut World, number| {
        let at = world.settle(number);
        let first = world.contacts[0];
        world.start(at, Mode::Server, Saved::default(), &[first]);
    };
    (0..30).for_each(|number| add(&mut world, number));
    world.run(Duration::from_secs(3600));
    let before = world.sent;
    world.run(Duration::from_secs(3600));
    let each = (world.sent - before) / 30;
    assert!(each < 80, "{each} messages of each in an hour");
    // Five times as many come: whoever was there soon knows, though its turn to look is far away.
    (30..150).for_each(|number| add(&mut world, number));
    world.run(Duration::from_secs(900));
    let servers: Vec<f64> = (0..30).map(|at| world.node(at).servers()).collect();
    assert!(servers.iter().all(|servers| (75.0..300.0).contains(servers)), "{servers:?}");
    // Nor is that only the least that there are, which a table says.
    let mut seen: Vec<f64> = (0..30).filter_map(|at| world.node(at).size.servers()).collect();
    seen.sort_by(f64::total_cmp);
    assert!(seen.len() == 30 && seen[0] > 50.0 && (100.0..225.0).contains(&seen[15]), "{seen:?}");
}

/// A network that had been quiet for long was taken for quiet when half of it was gone: contacts had their turn hours later.
#[test]
fn when_one_is_gone_others_are_looked_after() {
    let mut world = World::fleet(30);
    world.run(Duration::from_secs(1800));
    let quiet = world.node(1).half_life();
    for at in 15..30 {
        world.nodes[at] = None;
    }
    let now = world.moment();
    let gone = world.contacts[20];
    // One look-up comes upon one of them.
    world.node(1).ask(gone, Query::Ping, Purpose::Check, now);
    world.drain(1);
    world.run(Duration::from_secs(120));
    let left =
        world.contacts[15..].iter().filter(|gone| world.nodes[1].as_ref().unwrap().table().has(gone.node)).count();
    assert!(left <= 3 && world.node(1).half_life() < quiet / 8, "{left}, {:?}", world.node(1).half_life());
}

/// A node that was restarted asked somebody in vain whose old link it could not know of; there was a session a moment later, and the member was passed over
/// for an hour.
#[test]
fn who_was_asked_in_vain_before_there_was_a_session_is_asked_again() {
    let mut world = World::fleet(6);
    let (other, now) = (world.contacts[4], world.moment());
    let node = world.node(0);
    node.table.remove(other.node);
    node.shun.unreachable(other, now.mono);
    node.handle_session(Peer { contact: other, site: None }, now);
    world.drain(0);
    world.run(Duration::from_secs(2));
    assert!(world.node(0).table.entry(other.node).is_some());
}
