//! A member with a mind of its own. It has a certificate; what else it says is its own invention.

use std::net::IpAddr;

use weir_controlplane::api::call::{Answer, Call};
use weir_controlplane::api::types::{ErrorCode, RekeyRequest};
use weir_controlplane::codec;
use weir_controlplane::membership::{self, Membership};
use weir_controlplane::node::directory::{Record, SignedRecord};
use weir_controlplane::node::link::Code;
use weir_controlplane::node::message::{Ask, Hello, Message, VERSION};
use weir_controlplane::pki::signed::Signed;
use weir_controlplane::pki::statement::MemberStatement;
use weir_controlplane::quic::{Alpn, CloseReason, DialTarget, Event, GROUP_X25519KYBER768, LinkId, Side};
use weir_controlplane::random::{Random, SeededRandom};
use weir_controlplane::store::{Store, Table};
use weir_controlplane::time::UnixSecs;

use super::messages::hello;
use super::*;

/// A network of five, the last of which is ours to misuse, with a link to one of the others.
pub(super) struct Misuse {
    pub(super) world: World,
    pub(super) sites: Vec<Site>,
    pub(super) victim: Site,
    pub(super) own: Membership,
    pub(super) link: LinkId,
    open: Vec<LinkId>,
}

impl Misuse {
    fn new(own_seed: u64) -> Self {
        Self::of(own_seed, 1)
    }

    pub(super) fn of(own_seed: u64, victim: usize) -> Self {
        let (world, sites) = network(own_seed, 5);
        Self::over(world, sites, victim)
    }

    /// The fifth of them is ours from now on.
    pub(super) fn over(mut world: World, sites: Vec<Site>, victim: usize) -> Self {
        let victim = sites[victim];
        let mut store = world.store(sites[4]).clone();
        let own = Membership::load(&mut store, &mut SeededRandom::new(0)).unwrap().unwrap();
        world.make_puppet(sites[4]);
        let mut misuse = Self { world, sites, victim, own, link: LinkId(0), open: vec![] };
        misuse.link = misuse.dial();
        misuse
    }

    /// Where the victim is.
    pub(super) fn remote(&self) -> std::net::SocketAddr {
        let node = self.world.id(self.victim).unwrap();
        self.world.node(self.victim).unwrap().directory().entry(node).unwrap().record.endpoints[0]
    }

    pub(super) fn dial(&mut self) -> LinkId {
        let (victim, puppet) = (self.victim, self.sites[4]);
        let target = DialTarget::member(self.world.id(victim).unwrap());
        let remote = self.remote();
        let link = self.world.links(puppet).dial(Alpn::Member, target, remote).unwrap();
        self.world.links(puppet).keep_alive(link);
        self.world.run(SECOND);
        // The other side may have dialled us meanwhile, and of two links one stays.
        for event in self.world.heard(puppet) {
            match event {
                Event::Connected { link, alpn: Alpn::Member, remote: from, .. } if from == remote => {
                    self.open.push(link)
                }
                Event::Closed { link, .. } => self.open.retain(|known| *known != link),
                Event::Opening { .. } | Event::Connected { .. } | Event::Message { .. } => {}
            }
        }
        self.open.last().copied().unwrap_or(link)
    }

    pub(super) fn say(&mut self, message: &Message) {
        let (link, bytes) = (self.link, codec::encode(message));
        let _ = self.world.links(self.sites[4]).send(link, &bytes);
        self.world.run(SECOND);
    }

    pub(super) fn counted(&self, name: &str) -> u64 {
        self.world.count(self.victim, name)
    }

    pub(super) fn is_unharmed(&mut self) {
        self.world.run(5 * MINUTE);
        let others = self.sites[..4].to_vec();
        assert!(is_mesh(&self.world, &others) && agree(&self.world, &others));
    }

    fn record(&self, sequence: u64) -> Record {
        let not_after = self.world.true_time().plus(DAY);
        Record { node: self.own.node, sequence, not_after, endpoints: vec![], workers: 1 }
    }
}

#[test]
fn prefixes_that_nobody_gave_are_not_believed() {
    let mut misuse = Misuse::new(400);
    let theirs: MemberStatement = misuse.own.statement.peek().unwrap();
    let more = MemberStatement { prefixes: vec!["10.0.0.0/8".parse().unwrap()], ..theirs };
    let record = misuse.record(misuse.world.true_time().0);
    let forged = Signed::sign(&more, &misuse.own.identity);
    misuse.say(&Message::Records(vec![SignedRecord::sign(&record, forged, &misuse.own.identity)]));
    // The issuer's name on it does not help.
    let mut renamed = Signed::sign(&more, &misuse.own.identity);
    renamed.signer = misuse.own.statement.signer;
    misuse.say(&Message::Records(vec![SignedRecord::sign(&record, renamed, &misuse.own.identity)]));
    assert_eq!(misuse.counted("record_statement"), 2);
    misuse.is_unharmed();
}

#[test]
fn packets_from_anothers_address_are_dropped() {
    let (mut world, sites) = network(401, 3);
    let one: IpAddr = "10.9.9.9".parse().unwrap();
    let to = {
        let mut store = world.store(sites[1]).clone();
        Membership::load(&mut store, &mut SeededRandom::new(0)).unwrap().unwrap().address().into()
    };
    let stream = world.stream_between(sites[2], one, to, ms(100));
    world.run(MINUTE);
    let stats = world.stats(stream);
    assert_eq!((stats.delivered, stats.lost.keys().copied().collect::<Vec<_>>()), (0, vec!["source_of_another"]));
}

#[test]
fn records_of_others_can_be_neither_replayed_nor_remade() {
    let mut misuse = Misuse::new(402);
    let store = misuse.world.store(misuse.sites[4]);
    let records = store.entries(Table::Directory).unwrap();
    let old: Vec<SignedRecord> = records.iter().map(|(_, bytes)| codec::decode(bytes, 1 << 20).unwrap()).collect();
    let before = misuse.world.documents(misuse.sites[1]);
    misuse.say(&Message::Records(old.clone()));
    assert_eq!(misuse.world.documents(misuse.sites[1]), before, "what is known already changes nothing");
    // Another's statement with a body of ours, under our signature; our statement with another's body.
    let other = old.iter().find(|record| record.statement != misuse.own.statement).unwrap();
    let node = other.statement.peek().unwrap().node;
    let body = Record { node, ..misuse.record(misuse.world.true_time().0 + 60) };
    misuse.say(&Message::Records(vec![SignedRecord::sign(&body, other.statement.clone(), &misuse.own.identity)]));
    misuse.say(&Message::Records(vec![SignedRecord::sign(&body, misuse.own.statement.clone(), &misuse.own.identity)]));
    // A sequence that nobody could ever exceed.
    let far = misuse.record(u64::MAX);
    misuse.say(&Message::Records(vec![SignedRecord::sign(&far, misuse.own.statement.clone(), &misuse.own.identity)]));
    let counted = ["record_signature", "record_other_node", "record_too_long"].map(|name| misuse.counted(name));
    assert_eq!(counted, [1, 1, 1]);
    misuse.is_unharmed();
}

#[test]
fn noise_ends_the_link_and_nothing_else() {
    let mut misuse = Misuse::new(403);
    let mut random = SeededRandom::new(seed(403));
    for round in 0..200 {
        misuse.link = misuse.dial();
        let mut bytes = vec![0; 1 + random.u64() as usize % 300];
        random.fill(&mut bytes);
        if round % 2 == 0 {
            // Most of a message: the beginning of a good one.
            let good = codec::encode(&Message::Ask(Ask::Records { known: vec![(misuse.own.node, 7); 9] }));
            bytes = good[..good.len() - 1 - round % 9].to_vec();
        }
        let link = misuse.link;
        let _ = misuse.world.links(misuse.sites[4]).send(link, &bytes);
        misuse.world.run(ms(100));
    }
    assert!(misuse.counted("link_protocol") >= 150, "{}", misuse.counted("link_protocol"));
    misuse.is_unharmed();
}

/// A member of another version: no enemy, but not understood either.
#[test]
fn versions_that_are_not_next_to_ours_are_refused_and_said_so() {
    let mut misuse = Misuse::new(409);
    let hello = |version| Hello { features: u64::MAX, program: "another".to_owned(), ..hello(version, UnixSecs(0)) };
    let warnings = |misuse: &mut Misuse| -> Vec<(String, String)> {
        let Some(Ok(Answer::Status(status))) = misuse.world.ask(misuse.sites[1], Call::Status, SECOND) else {
            panic!("no status")
        };
        let about = status.warnings.into_iter().filter(|warning| warning.what.contains("of the messages"));
        about.map(|warning| (warning.what, warning.remedy)).collect()
    };
    // What the link ended by, once this was said on a fresh one.
    let ended = |misuse: &mut Misuse, bytes: &[u8]| -> Option<u32> {
        misuse.link = misuse.dial();
        let (link, puppet) = (misuse.link, misuse.sites[4]);
        misuse.world.heard(puppet);
        misuse.world.links(puppet).send(link, bytes).unwrap();
        misuse.world.run(ms(100));
        misuse.world.heard(puppet).into_iter().find_map(|event| match event {
            Event::Closed { link: of, reason: CloseReason::Peer { code, .. } } if of == link => Some(code),
            _ => None,
        })
    };
    let said = |version| codec::encode(&Message::Hello(hello(version)));
    assert_eq!(ended(&mut misuse, &said(VERSION)), None);
    assert_eq!(ended(&mut misuse, &said(VERSION + 1)), None, "it speaks the older one with us");
    assert_eq!((misuse.counted("link_version"), warnings(&mut misuse)), (0, vec![]));

    let refused = Some(Code::Version as u32);
    assert_eq!(ended(&mut misuse, &said(VERSION + 2)), refused);
    let name = misuse.own.name.clone();
    let warning = |theirs: u16, older: &str| {
        let what = format!(
            "{name} speaks version {theirs} of the messages between members, this node version {VERSION}: they have no link"
        );
        vec![(what, format!("upgrade weir on {older}: versions next to each other go together"))]
    };
    assert_eq!(warnings(&mut misuse), warning(VERSION + 2, "this node"));
    // There was no version before the first.
    assert_eq!(ended(&mut misuse, &said(VERSION - 1)), refused);
    assert_eq!(warnings(&mut misuse), warning(VERSION - 1, &name));
    // A much later one says more than can be read here.
    let longer = [said(VERSION + 7), b"and what was thought of since".to_vec()].concat();
    assert_eq!(ended(&mut misuse, &longer), refused);
    assert_eq!((misuse.counted("link_version"), misuse.counted("link_protocol")), (3, 0));
    // The same of our version is none of it.
    let broken = [said(VERSION), b"more".to_vec()].concat();
    assert_eq!(ended(&mut misuse, &broken), Some(Code::Protocol as u32));
    assert_eq!((misuse.counted("link_version"), misuse.counted("link_protocol")), (3, 1));
    // Packets go on meanwhile, by keys that another protocol makes.
    assert_eq!(misuse.world.sessions(misuse.sites[1]), 4);

    // Upgraded, it is one of all again.
    assert_eq!(ended(&mut misuse, &said(VERSION)), None);
    assert_eq!(warnings(&mut misuse), vec![]);
    misuse.is_unharmed();
}

#[test]
fn a_flood_of_questions_fills_no_queue_beyond_its_limit() {
    let mut misuse = Misuse::new(404);
    let ask = codec::encode(&Message::Ask(Ask::Records { known: vec![] }));
    let before = misuse.world.costs(misuse.sites[1]).bytes;
    misuse.world.heard(misuse.sites[4]);
    // What waits on a link when it ends is lost, so the first are to be answered before that.
    for burst in [200, 19_800] {
        for _ in 0..burst {
            let link = misuse.link;
            misuse.world.links(misuse.sites[4]).send(link, &ask).unwrap();
        }
        misuse.world.run(MINUTE);
    }
    let spent = misuse.world.costs(misuse.sites[1]).bytes - before;
    assert!(spent < 8 << 20, "{spent} bytes in answer to a flood");
    // It was heard and answered, until the answers had no room any more: that is counted, and ends the link.
    let link = misuse.link;
    let heard = misuse.world.heard(misuse.sites[4]);
    let is_answer = |event: &&Event| matches!(event, Event::Message { link: from, .. } if *from == link);
    let answers = heard.iter().filter(is_answer).count();
    assert!((100..20_000).contains(&answers), "{answers} answers");
    assert_eq!(misuse.counted("link_send_failed"), 1);
    assert!(heard.iter().any(|event| matches!(event, Event::Closed { link: from, .. } if *from == link)));
    misuse.is_unharmed();
}

/// A member without an address can be known, and not be dialled.
#[test]
fn a_rekey_that_cannot_begin_is_answered() {
    let mut misuse = Misuse::new(407);
    let silent = misuse.world.enrol(1).unwrap()[0];
    let mut store = misuse.world.store(silent).clone();
    let other = Membership::load(&mut store, &mut SeededRandom::new(0)).unwrap().unwrap();
    let record = Record { node: other.node, ..misuse.record(misuse.world.true_time().0) };
    misuse.say(&Message::Records(vec![SignedRecord::sign(&record, other.statement.clone(), &other.identity)]));
    let request = RekeyRequest { peer: other.name };
    let answer = misuse.world.ask(misuse.sites[1], Call::Rekey(request), SECOND).expect("an answer");
    let error = answer.expect_err("no keys");
    assert!(error.code == ErrorCode::NoAnswer && error.message.contains("no address of it is known"), "{error:?}");
}

/// Whom no configuration names, and whom the bundle does not allow it.
#[test]
fn the_draft_group_is_for_whom_it_is_allowed() {
    let (mut world, sites) = network(408, 3);
    let (puppet, naming, other) = (sites[2], sites[1], sites[0]);
    let node = world.id(puppet).unwrap();
    world.kill(naming);
    world.set_legacy_kyber(vec![node]);
    world.start(naming);
    world.run(MINUTE);
    world.make_puppet(puppet);
    let dial = |world: &mut World, to: Site| {
        let target = DialTarget { legacy_kyber: true, ..DialTarget::member(world.id(to).unwrap()) };
        let remote = world.node(to).unwrap().directory().entry(target.node.unwrap()).unwrap().record.endpoints[0];
        world.heard(puppet);
        let link = world.links(puppet).dial(Alpn::Member, target, remote).unwrap();
        world.run(ms(100));
        // Of two links to one member one goes anyway, by another code.
        let is_refusal = |event: &Event| match event {
            Event::Closed { link: of, reason: CloseReason::Peer { code, .. } } => {
                *of == link && *code == Code::Group as u32
            }
            _ => false,
        };
        let is_refused = world.heard(puppet).iter().any(is_refusal);
        (is_refused, world.count(to, "link_draft_group"))
    };
    assert_eq!(dial(&mut world, naming), (true, 1), "the bundle does not allow it");
    world.hold_ceremony(other, |ceremony, _| ceremony.allow_legacy_kyber(true)).expect("a new bundle");
    world.run(SECOND);
    assert_eq!(dial(&mut world, other), (true, 1), "its configuration does not name it");
    assert_eq!(dial(&mut world, naming), (false, 1));
    // Nor is it dialled with another.
    world.kill(naming);
    world.start(naming);
    world.run(10 * SECOND);
    let groups: Vec<u16> = world
        .heard(puppet)
        .into_iter()
        .filter_map(|event| match event {
            Event::Connected { side: Side::Accepted, peer: Some(peer), group, .. } => Some((peer.node, group)),
            _ => None,
        })
        .filter(|(from, _)| Some(*from) == world.id(naming))
        .map(|(_, group)| group)
        .collect();
    assert!(!groups.is_empty() && groups.iter().all(|group| *group == GROUP_X25519KYBER768), "{groups:?}");
}

#[test]
fn a_token_that_was_used_is_refused_and_counted() {
    let (mut world, sites) = network(405, 3);
    let token = world.invite(sites[0], 1, None).unwrap();
    let mut answers = vec![];
    for _ in 0..3 {
        let new = world.add_machine();
        world.start(new);
        let call = world.join(new, &token);
        world.run(20 * SECOND);
        answers.push(world.answer(call).expect("an answer"));
    }
    assert!(answers[0].is_ok(), "{:?}", answers[0]);
    for answer in &answers[1..] {
        assert!(answer.as_ref().is_err_and(|error| error.code == ErrorCode::Conflict), "{answer:?}");
    }
    assert_eq!(world.count(sites[0], "spent"), 2);
}

/// Links of strangers are few and short: members keep theirs.
#[test]
fn strangers_that_hold_links_keep_nobody_out() {
    let (mut world, sites) = network(406, 4);
    let stranger = world.add_machine();
    world.make_puppet(stranger);
    let target =
        DialTarget { proof: weir_controlplane::quic::Proof::IdOnly, ..DialTarget::member(world.id(sites[0]).unwrap()) };
    let remote = world.node(sites[0]).unwrap().directory().entry(target.node.unwrap()).unwrap().record.endpoints[0];
    for _ in 0..5000 {
        let mut links = world.links(stranger);
        let link = links.dial(Alpn::Join, target.clone(), remote).unwrap();
        links.keep_alive(link);
        drop(links);
        world.run(ms(1));
    }
    assert!(world.count(sites[0], "stranger_full") > 3000);
    world.kill(sites[1]);
    world.start(sites[1]);
    world.run(10 * SECOND);
    assert!(is_mesh(&world, &sites), "members come in all the same");
    world.run(MINUTE);
    assert!(world.count(sites[0], "stranger_timeout") > 900);
    assert!(world.links_open(sites[0]) < 40, "{}", world.links_open(sites[0]));
    let closed = world.heard(stranger).iter().filter(|event| matches!(event, Event::Closed { .. })).count();
    assert_eq!(closed, 5000);
    let token = world.invite(sites[0], 1, None).unwrap();
    let new = world.add_machine();
    world.start(new);
    let call = world.join(new, &token);
    world.run(5 * SECOND);
    assert!(matches!(world.answer(call), Some(Ok(_))));
    assert!(membership::admission(world.store(new)).unwrap().is_some());
}
