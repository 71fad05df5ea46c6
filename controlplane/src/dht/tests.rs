//! The machine as a whole: a handful of nodes on virtual time, with sessions that are always there.

mod handover;
mod hearsay;
mod modes;
mod publishing;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::fixture::{Fixture, NOW, peer};
use super::message::{Answer, Message, Query, Refusal, Reply, Request};
use super::place::{Contact, Key};
use super::publish::PublishError;
use super::record::{Kind, SignedRecord};
use super::*;
use crate::random::SeededRandom;
use crate::time::UnixSecs;

struct World {
    fixture: Fixture,
    start: Instant,
    now: Duration,
    contacts: Vec<Contact>,
    members: Vec<u16>,
    nodes: Vec<Option<Dht<SeededRandom>>>,
    one_way: Duration,
    under_way: BTreeMap<(Duration, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    /// What was sent by whom, and how often the same came again.
    messages: BTreeSet<(usize, Vec<u8>)>,
    repeated: u64,
    told: Vec<(usize, Output)>,
}

const ONE_WAY: Duration = Duration::from_millis(20);

impl World {
    fn new() -> Self {
        Self {
            fixture: Fixture::new(),
            start: Instant::now(),
            now: Duration::ZERO,
            contacts: vec![],
            members: vec![],
            nodes: vec![],
            one_way: ONE_WAY,
            under_way: BTreeMap::new(),
            sent: 0,
            messages: BTreeSet::new(),
            repeated: 0,
            told: vec![],
        }
    }

    /// So many servers in one /24, each of which begins with the first; each says how it is reached.
    fn fleet(count: u16) -> Self {
        let mut world = Self::new();
        for number in 0..count {
            world.add(number, Mode::Server);
        }
        world.run(Duration::from_secs(60));
        world
    }

    /// A place for a node.
    fn settle(&mut self, number: u16) -> usize {
        let address = SocketAddr::from((Ipv4Addr::new(198, 51, 100, number as u8), 4646));
        self.contacts.push(Contact { node: self.fixture.node(number), address });
        self.members.push(number);
        self.nodes.push(None);
        self.nodes.len() - 1
    }

    fn add(&mut self, number: u16, mode: Mode) -> usize {
        let at = self.settle(number);
        self.start(at, mode, Saved::default(), &[self.contacts[0]]);
        self.publish(at, 1).unwrap();
        at
    }

    fn start(&mut self, at: usize, mode: Mode, saved: Saved, contacts: &[Contact]) {
        let now = self.moment();
        let mut dht = Dht::new(self.contacts[at].node, mode, saved, SeededRandom::new(at as u64), now);
        dht.join(contacts, now);
        self.nodes[at] = Some(dht);
        self.drain(at);
    }

    fn moment(&self) -> Now {
        Now { mono: self.start + self.now, wall: UnixSecs(NOW.0 + self.now.as_secs()) }
    }

    fn node(&mut self, at: usize) -> &mut Dht<SeededRandom> {
        self.nodes[at].as_mut().unwrap()
    }

    fn publish(&mut self, at: usize, sequence: u64) -> Result<(), PublishError> {
        self.replace(at, sequence, None)
    }

    fn replace(&mut self, at: usize, sequence: u64, replaces: Option<u64>) -> Result<(), PublishError> {
        let (now, record) = (self.moment(), self.fixture.record(self.members[at], Kind::Node, sequence, b"here"));
        let judge = self.fixture.judge_at(now.wall);
        let done = self.nodes[at].as_mut().unwrap().publish(record, replaces, judge, now);
        self.drain(at);
        done
    }

    /// What a node asks now, of whom, and by which transaction.
    fn asks(&mut self, at: usize) -> Vec<(Contact, u64)> {
        let mut asked = vec![];
        while let Some(output) = self.node(at).poll_output() {
            if let Output::Send { to, message } = output
                && let Ok(Message::Request(request)) = Message::decode(&message)
            {
                asked.push((to, request.transaction));
            }
        }
        asked
    }

    fn answer(&mut self, at: usize, (from, transaction): (Contact, u64), reply: Reply) {
        self.give(at, from, &Message::Answer(Answer { transaction, reply }));
    }

    fn give(&mut self, at: usize, from: Contact, message: &Message) {
        let (now, bytes) = (self.moment(), message.encode());
        let judge = self.fixture.judge_at(now.wall);
        self.nodes[at].as_mut().unwrap().handle_message(peer(from), &bytes, judge, now);
    }

    /// What a node says when it is asked.
    fn ask(&mut self, at: usize, from: Contact, query: Query) -> Reply {
        self.give(at, from, &Message::Request(Request { transaction: 99, is_server: true, query }));
        let mut replies = vec![];
        while let Some(output) = self.node(at).poll_output() {
            if let Output::Send { to, message } = output
                && let Ok(Message::Answer(Answer { transaction: 99, reply })) = Message::decode(&message)
            {
                assert_eq!(to, from);
                replies.push(reply);
            }
        }
        assert_eq!(replies.len(), 1, "one answer to one request: {replies:?}");
        replies.remove(0)
    }

    fn drain(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].as_mut().and_then(Dht::poll_output) {
            match output {
                Output::Send { to, message } => {
                    let to = self.contacts.iter().position(|contact| *contact == to);
                    self.sent += 1;
                    self.repeated += u64::from(!self.messages.insert((at, message.clone())));
                    if let Some(to) = to {
                        self.under_way.insert((self.now + self.one_way, self.sent), (to, at, message));
                    }
                }
                told @ (Output::Joined | Output::Found { .. } | Output::Published { .. }) => self.told.push((at, told)),
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let message = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let timers = self.nodes.iter().flatten().filter_map(Dht::poll_timeout);
            let timer = timers.min().map(|at| at.saturating_duration_since(self.start));
            let Some(next) = message.into_iter().chain(timer).min().filter(|next| *next <= until) else { break };
            self.now = next.max(self.now);
            let now = self.moment();
            while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, from, bytes) = entry.remove();
                if let Some(dht) = &mut self.nodes[to] {
                    dht.handle_message(peer(self.contacts[from]), &bytes, self.fixture.judge_at(now.wall), now);
                    self.drain(to);
                }
            }
            for at in 0..self.nodes.len() {
                if let Some(dht) = &mut self.nodes[at] {
                    dht.handle_timeout(now);
                    self.drain(at);
                }
            }
        }
        self.now = until;
    }

    fn look_up(&mut self, from: usize, target: usize) -> Outcome {
        let (now, key) = (self.moment(), self.contacts[target].node.into());
        let asked = self.node(from).get(Kind::Node, key, now).unwrap();
        self.drain(from);
        self.run(LOOKUP_MAX + Duration::from_secs(1));
        let found = self.told.iter().find_map(|(at, told)| match told {
            Output::Found { id, outcome } if *at == from && *id == asked => Some(Outcome::clone(outcome)),
            Output::Found { .. } | Output::Send { .. } | Output::Joined | Output::Published { .. } => None,
        });
        found.expect("a look-up ends within its time")
    }
}

#[test]
fn a_fleet_in_one_24_finds_all_of_itself_from_one_bootstrap() {
    let mut world = World::fleet(30);
    for at in 0..30 {
        assert!(world.told.contains(&(at, Output::Joined)), "{at}");
        assert_eq!(world.node(at).table().len(), 29, "{at}");
    }
    for (from, target) in [(3, 17), (17, 3), (29, 0), (0, 29)] {
        let outcome = world.look_up(from, target);
        let record = outcome.record.as_ref().unwrap();
        let key = Key::from(world.contacts[target].node);
        let said = record.verify(world.fixture.judge_at(UnixSecs(NOW.0 + world.now.as_secs()))).unwrap();
        assert_eq!((said.key, said.sequence, said.value.as_slice()), (key, 1, &b"here"[..]));
        assert!(outcome.took < Duration::from_millis(200), "{outcome:?}");
    }
}

#[test]
fn a_newer_record_is_found_and_an_older_one_is_refused_by_its_own_node() {
    let mut world = World::fleet(12);
    world.publish(4, 7).unwrap();
    world.run(Duration::from_secs(10));
    assert_eq!(world.look_up(9, 4).sequence, 7);
    let old = world.publish(4, 6).unwrap_err();
    assert_eq!(old, PublishError::Put(super::store::PutError::Old { sequence: 6, highest: 7 }));
    let foreign = world.fixture.record(5, Kind::Node, 9, b"x");
    let (now, node) = (world.moment(), world.contacts[5].node);
    let refused = world.nodes[4].as_mut().unwrap().publish(foreign, None, world.fixture.judge_at(now.wall), now);
    assert_eq!(refused, Err(PublishError::Foreign(node)));
}

#[test]
fn a_look_up_of_nothing_ends_without_a_record() {
    let mut world = World::fleet(12);
    let now = world.moment();
    let id = world.node(2).get(Kind::Zone, Key([0x77; 32]), now).unwrap();
    world.drain(2);
    world.run(Duration::from_secs(10));
    let is_it = |told: &&(usize, Output)| matches!(told, (2, Output::Found { id: found, .. }) if *found == id);
    let Some((_, Output::Found { outcome, .. })) = world.told.iter().find(is_it) else { panic!("it has not ended") };
    assert_eq!((outcome.record.clone(), outcome.sequence, outcome.hops), (None, 0, 0));
    assert!(usize::from(outcome.requests) == 11 && usize::from(outcome.paths) == 2 * PATHS, "{outcome:?}");
}

#[test]
fn the_bootstrap_may_go_and_a_restarted_node_begins_from_its_anchors() {
    let mut world = World::fleet(12);
    let saved = world.node(5).save();
    assert!(saved.anchors.len() == 11 && !saved.highest.is_empty());
    world.nodes[0] = None;
    world.nodes[5] = None;
    world.run(Duration::from_secs(30));
    world.told.clear();
    world.start(5, Mode::Server, saved.clone(), &[]);
    world.run(Duration::from_secs(30));
    assert!(world.told.contains(&(5, Output::Joined)));
    assert_eq!(world.node(5).table().len(), 10);
    assert_eq!(world.look_up(5, 7).sequence, 1);
    // What it kept is gone, and what it saw is not.
    assert!(saved.highest.iter().all(|known| world.node(5).save().highest.contains(known)));
}

#[test]
fn a_client_finds_and_is_found_and_is_in_nobodys_table() {
    let mut world = World::fleet(12);
    let client = world.add(20, Mode::Client);
    world.run(Duration::from_secs(30));
    assert!(world.told.iter().any(|told| matches!(told, (at, Output::Published { stored: 12, .. }) if *at == client)));
    assert_eq!((world.look_up(client, 3).sequence, world.look_up(3, client).sequence), (1, 1));
    let node = world.contacts[client].node;
    assert!((0..12).all(|at| world.nodes[at].as_ref().unwrap().table().entry(node).is_none()));
    let asker = world.contacts[0];
    let find = Query::Find { target: Key([0; 32]), alike: 0 };
    assert_eq!(world.ask(client, asker, find), Reply::Refused(Refusal::NotServer));
    assert_eq!(world.ask(client, asker, Query::Ping), Reply::Refused(Refusal::NotServer));
}

#[test]
fn an_answer_counts_once_and_from_whom_was_asked_only() {
    let mut world = World::fleet(4);
    let (now, target) = (world.moment(), Key([0x11; 32]));
    world.node(1).get(Kind::Zone, target, now).unwrap();
    let (to, transaction) = world.asks(1)[0];
    let (own, others) = (world.contacts[1], world.contacts.iter());
    let other = *others.clone().find(|contact| **contact != to && **contact != own).unwrap();
    let trap = Contact { node: NodeId([9; 32]), address: other.address };
    let answer = |transaction| Message::Answer(Answer { transaction, reply: Reply::Contacts(vec![trap]) });
    world.give(1, other, &answer(transaction));
    world.give(1, to, &answer(transaction ^ 1));
    assert_eq!(world.node(1).counters().unmatched, 2);
    world.give(1, to, &answer(transaction));
    world.give(1, to, &answer(transaction));
    assert_eq!(world.node(1).counters().unmatched, 3);
    world.nodes[1].as_mut().unwrap().handle_message(peer(to), &[7; 40], world.fixture.judge(), now);
    assert_eq!(world.node(1).counters().malformed, 1);
}

#[test]
fn an_answer_that_contradicts_its_signature_marks_the_peer() {
    let mut world = World::fleet(6);
    let (now, key) = (world.moment(), world.contacts[5].node.into());
    world.node(1).get(Kind::Node, key, now).unwrap();
    let asked = world.asks(1);
    let mut bent = world.fixture.record(5, Kind::Node, 99, b"elsewhere");
    *bent.body.last_mut().unwrap() ^= 1;
    let of_another_place = world.fixture.record(4, Kind::Node, 99, b"mine");
    let answers: [SignedRecord; 2] = [bent, of_another_place];
    for (asked, record) in asked.into_iter().zip(answers) {
        let before = world.node(1).counters().bad_records;
        world.answer(1, asked, Reply::Record(record));
        assert_eq!(world.node(1).counters().bad_records, before + 1);
        assert!(world.node(1).table().entry(asked.0.node).is_none());
    }
}

#[test]
fn a_flood_is_answered_as_busy_and_a_revoked_member_is_forgotten() {
    let mut world = World::fleet(4);
    let (flooder, other) = (world.contacts[1], world.contacts[2]);
    let replies: Vec<Reply> = (0..1000).map(|_| world.ask(0, flooder, Query::Ping)).collect();
    let served = replies.iter().filter(|reply| **reply == Reply::Pong).count();
    assert!((100..200).contains(&served), "{served}");
    assert_eq!(replies.last(), Some(&Reply::Refused(Refusal::Busy)));
    assert_eq!(
        (world.ask(0, other, Query::Ping), world.node(0).counters().limited),
        (Reply::Pong, 1000 - served as u64)
    );

    let now = world.moment();
    let (node, key) = (flooder.node, flooder.node.into());
    assert!(
        world.node(0).table().entry(node).is_some() && world.node(0).store().get(Kind::Node, key, now.wall).is_some()
    );
    world.node(0).handle_revoked(node, now);
    assert!(
        world.node(0).table().entry(node).is_none() && world.node(0).store().get(Kind::Node, key, now.wall).is_none()
    );
}

#[test]
fn private_addresses_are_told_to_those_only_who_have_one_themselves() {
    let mut world = World::fleet(3);
    let hidden = Contact { node: NodeId([0x42; 32]), address: "10.0.0.7:4646".parse().unwrap() };
    let now = world.moment().mono;
    world.node(0).table.answered(peer(hidden), now);
    let named = |world: &mut World, asker| {
        let find = Query::Find { target: hidden.node.into(), alike: 255 };
        let Reply::Contacts(contacts) = world.ask(0, asker, find) else { panic!("contacts") };
        contacts.contains(&hidden)
    };
    let outside = world.contacts[1];
    let inside = Contact { address: "10.0.0.9:4646".parse().unwrap(), ..outside };
    assert!(!named(&mut world, outside) && named(&mut world, inside));
}

#[test]
fn look_ups_end_at_their_limit_and_one_beyond_is_refused() {
    let mut world = World::fleet(4);
    let now = world.moment();
    let at = |number: usize| Key([number as u8; 32]);
    // Nobody is asked twice at once for the same; each is a look-up of its own.
    let under_way = world.node(1).lookups.len();
    for number in under_way..LOOKUPS_MAX {
        world.node(1).get(Kind::Zone, at(number), now).unwrap();
    }
    assert_eq!(world.node(1).get(Kind::Zone, at(99), now), Err(Busy));
    world.drain(1);
    world.run(Duration::from_secs(40));
    // Upkeep has look-ups of its own; of these none is left.
    assert!(world.node(1).lookups.values().all(|job| job.why != Why::Get));
    let ended = world.told.iter().filter(|told| matches!(told, (1, Output::Found { .. }))).count();
    assert_eq!(ended, LOOKUPS_MAX - under_way);
}

/// A fuzzer found that it was answered, and so sent to itself.
#[test]
fn who_comes_under_our_own_id_is_not_answered() {
    let mut world = World::fleet(2);
    let (own, before) = (world.contacts[0], world.node(0).counters().malformed);
    let request = Request { transaction: 5, is_server: true, query: Query::Ping };
    world.give(0, own, &Message::Request(request));
    assert_eq!(world.node(0).poll_output(), None);
    assert_eq!(world.node(0).counters().malformed, before + 1);
}
