use std::sync::Arc;

use domain::base::iana::{Opcode, OptRcode, Rcode};
use domain::base::opt::cookie::ClientCookie;
use domain::base::{Message, MessageBuilder, Rtype};

use super::super::catalog::Network;
use super::super::fixture::{Fixture, NOW, node, set};
use super::*;
use crate::pki::dnssec::network::Which;
use crate::pki::dnssec::{Name, reverse};
use crate::pki::id::overlay_address;
use crate::random::SeededRandom;
use crate::time::UnixSecs;

struct Rig {
    server: Server,
    fixture: Fixture,
    start: Instant,
    asked: u64,
}

fn query(of: &str, rtype: Rtype, dnssec: bool, cookie: Option<&Cookie>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((of.parse::<Name>().unwrap(), rtype)).unwrap();
    let mut additional = question.additional();
    let add = |opt: &mut domain::base::message_builder::OptBuilder<'_, Vec<u8>>| {
        opt.set_udp_payload_size(4096);
        opt.set_dnssec_ok(dnssec);
        cookie.map_or(Ok(()), |cookie| opt.push(cookie))
    };
    additional.opt(add).unwrap();
    additional.finish()
}

impl Rig {
    fn new() -> Self {
        let (fixture, start) = (Fixture::new(), Instant::now());
        let mut server = Server::new(&mut SeededRandom::new(3), start);
        let signatures = &fixture.chain.versions()[0].zones;
        let [forward, reverse] = Which::ALL.map(|which| fixture.zones.name(which).clone());
        let sets = Which::ALL.iter().filter_map(|which| fixture.zones.keys(*which, signatures)).collect();
        let network = Network { forward, reverse, sets };
        let mut rig = Self { server: Server::new(&mut SeededRandom::new(3), start), fixture, start, asked: 0 };
        server.handle_update(Update::Network(Some(network)), rig.at(0));
        rig.server = server;
        rig
    }

    fn at(&self, secs: u64) -> Now {
        Now { mono: self.start + Duration::from_secs(secs), wall: UnixSecs(NOW.0 + secs) }
    }

    fn ask(&mut self, bytes: &[u8], from: &str, transport: Transport, secs: u64) -> Vec<Output> {
        self.asked += 1;
        let asker = Asker { address: from.parse().unwrap(), transport, port: self.asked };
        self.server.handle_query(bytes, asker, self.at(secs));
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.server.poll_output()).collect()
    }

    /// The zone of a member arrives.
    fn learn(&mut self, member: &str, secs: u64) -> Vec<Output> {
        let (zone, address) = (self.fixture.zone(member), overlay_address(self.fixture.chain.network(), node(member)));
        self.server.handle_update(Update::Member(member.into(), address, Arc::new(zone)), self.at(secs));
        self.outputs()
    }
}

fn reply(outputs: &[Output]) -> Message<Vec<u8>> {
    match outputs {
        [Output::Reply(_, bytes)] => Message::from_octets(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

const HERE: &str = "127.0.0.1:5000";
const THERE: &str = "192.0.2.1:5000";

#[test]
fn who_asks_waits_for_what_is_fetched_once() {
    let mut rig = Rig::new();
    let wanted = Output::Want(Wanted::Member("b".into()));
    let asked = query("www.b.mynet.internal", Rtype::A, false, None);
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 0), [wanted]);
    assert_eq!(rig.ask(&asked, HERE, Transport::Tcp, 0), []);
    let answers = rig.learn("b", 1);
    assert_eq!(answers.len(), 2);
    let message = reply(&answers[..1]);
    assert_eq!((message.header().id(), message.header_counts().ancount()), (0x1234, 2));
    assert!(message.header().aa() && message.header().rd() && !message.header().tc());
    // Answered at once from then on; asked for ahead when it is nearly stale, once; and again when it is.
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 20).len(), 1);
    let ahead = rig.ask(&asked, HERE, Transport::Udp, 26);
    assert!(matches!(&ahead[..], [Output::Reply(..), Output::Want(_)]), "{ahead:?}");
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 27).len(), 1);
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 40), [], "it is under way already");
    // It cannot be had: what is known is served.
    rig.server.handle_update(Update::Failed(Wanted::Member("b".into())), rig.at(41));
    assert_eq!(reply(&rig.outputs()).header_counts().ancount(), 2);
    let reversed = reverse(overlay_address(rig.fixture.chain.network(), node("b"))).to_string();
    assert_eq!(rig.ask(&query(&reversed, Rtype::PTR, false, None), HERE, Transport::Udp, 1).len(), 1);
}

#[test]
fn who_has_waited_long_enough_gets_an_error_that_says_why() {
    let mut rig = Rig::new();
    let asked = query("b.mynet.internal", Rtype::A, true, None);
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 0).len(), 1);
    assert_eq!(rig.server.next_deadline(), Some(rig.start + PATIENCE));
    rig.server.handle_timeout(rig.at(1));
    assert_eq!(rig.outputs(), []);
    rig.server.handle_timeout(rig.at(2));
    let message = reply(&rig.outputs());
    assert_eq!(message.opt_rcode(), OptRcode::SERVFAIL);
    let opt = message.opt().unwrap();
    assert!(opt.opt().extended_error().is_some());
    assert_eq!(rig.server.next_deadline(), None);
    // It is asked for anew by the next one.
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 3).len(), 1);
}

#[test]
fn as_many_wait_as_there_is_room_for_and_one_beyond_is_counted() {
    let mut rig = Rig::new();
    let asked = query("b.mynet.internal", Rtype::A, false, None);
    (0..WAITING_MAX).for_each(|_| drop(rig.ask(&asked, HERE, Transport::Udp, 0)));
    assert_eq!((rig.server.counters().waited, rig.server.counters().overflows), (WAITING_MAX as u64, 0));
    assert_eq!(reply(&rig.ask(&asked, HERE, Transport::Udp, 0)).opt_rcode(), OptRcode::SERVFAIL);
    assert_eq!(rig.server.counters().overflows, 1);
    assert_eq!(rig.learn("b", 1).len(), WAITING_MAX);
    assert_eq!(rig.ask(&asked, HERE, Transport::Udp, 1).len(), 1);
}

#[test]
fn what_is_no_question_gets_an_error_or_nothing() {
    let mut rig = Rig::new();
    rig.learn("b", 0);
    let good = query("b.mynet.internal", Rtype::A, false, None);
    let rcode = |outputs: &[Output]| reply(outputs).header().rcode();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bent = good.clone();
        change(&mut bent);
        bent
    };
    let mut ask = |bytes: &[u8]| rig.ask(bytes, HERE, Transport::Udp, 0);
    assert_eq!(ask(&good[..11]), []);
    assert_eq!(ask(&with(&|bytes| bytes[2] |= 0x80)), [], "an answer is not answered");
    assert_eq!(rcode(&ask(&good[..20])), Rcode::FORMERR);
    assert_eq!(rcode(&ask(&with(&|bytes| bytes[5] = 0))), Rcode::FORMERR);
    assert_eq!(rcode(&ask(&with(&|bytes| bytes[2] = Opcode::NOTIFY.to_int() << 3))), Rcode::NOTIMP);
    assert_eq!(rcode(&ask(&[&good[..], &[0; 1024]].concat())), Rcode::FORMERR);
    // Two OPT records, and a version that there is not.
    let twice = with(&|bytes| {
        let opt = bytes[bytes.len() - 11..].to_vec();
        bytes.extend(opt);
        bytes[11] = 2;
    });
    assert_eq!(rcode(&ask(&twice)), Rcode::FORMERR);
    let version = with(&|bytes| {
        let at = bytes.len() - 5;
        bytes[at] = 1;
    });
    assert_eq!(reply(&ask(&version)).opt_rcode(), OptRcode::BADVERS);
    assert_eq!(rig.server.counters().malformed, 7);
}

#[test]
fn a_network_is_limited_until_it_shows_a_cookie_of_ours() {
    let mut rig = Rig::new();
    rig.learn("b", 0);
    let mine = Cookie::new(ClientCookie::from([7; 8]), None);
    let first = rig.ask(&query("b.mynet.internal", Rtype::A, false, Some(&mine)), THERE, Transport::Udp, 0);
    let cookie = reply(&first).opt().unwrap().opt().cookie().unwrap();
    assert!(cookie.server().is_some() && cookie.client() == mine.client());
    let plain = query("b.mynet.internal", Rtype::A, false, None);
    let answered: usize = (0..3000).map(|_| rig.ask(&plain, THERE, Transport::Udp, 0).len()).sum();
    assert!((1900..2100).contains(&answered), "a thousand, and half of the rest by TCP: {answered}");
    assert!(rig.server.counters().truncated >= 900 && rig.server.counters().limited >= 1900);
    let with_cookie = query("b.mynet.internal", Rtype::A, false, Some(&cookie));
    assert!(!reply(&rig.ask(&with_cookie, THERE, Transport::Udp, 0)).header().tc());
    assert!(!reply(&rig.ask(&plain, THERE, Transport::Tcp, 0)).header().tc());
    // From another address, and after an hour, it is worth nothing.
    let elsewhere = (0..2000).filter(|_| !rig.ask(&with_cookie, "192.0.2.9:5000", Transport::Udp, 0).is_empty());
    assert!(elsewhere.count() < 1100);
}

#[test]
fn what_does_not_fit_is_asked_for_by_tcp() {
    let mut rig = Rig::new();
    let texts = (0..9u8).map(|number| [&[200][..], &[number; 200]].concat());
    let long = set("b.mynet.internal", Rtype::TXT, texts);
    let zone = rig.fixture.sign("b", vec![long]).unwrap();
    let address = overlay_address(rig.fixture.chain.network(), node("b"));
    rig.server.handle_update(Update::Member("b".into(), address, Arc::new(zone)), rig.at(0));
    let asked = query("b.mynet.internal", Rtype::TXT, true, None);
    let short = reply(&rig.ask(&asked, HERE, Transport::Udp, 0));
    assert!(short.header().tc() && short.header_counts().ancount() == 0 && short.as_slice().len() < 100);
    let whole = reply(&rig.ask(&asked, HERE, Transport::Tcp, 0));
    assert!(!whole.header().tc() && whole.header_counts().ancount() == 10);
}

#[test]
fn who_is_cut_off_is_gone_at_once_and_without_a_network_nothing_is_left() {
    let mut rig = Rig::new();
    rig.learn("b", 0);
    let asked = query("b.mynet.internal", Rtype::A, false, None);
    rig.server.handle_update(Update::Revoked("b".into()), rig.at(1));
    assert!(matches!(&rig.ask(&asked, HERE, Transport::Udp, 1)[..], [Output::Want(_)]));
    rig.learn("b", 2);
    rig.server.handle_update(Update::Network(None), rig.at(3));
    assert_eq!(reply(&rig.ask(&asked, HERE, Transport::Udp, 3)).opt_rcode(), OptRcode::SERVFAIL);
    assert!(rig.server.catalog().is_empty());
}

/// A record that was not found in one look-up took a zone away that was good for days.
#[test]
fn what_is_not_found_takes_no_zone_away_and_an_old_denial_counts_no_more() {
    let mut rig = Rig::new();
    rig.learn("b", 0);
    let asked = |of: &str| query(&format!("{of}.mynet.internal"), Rtype::A, false, None);
    let absent = |of: &str| Update::Absent(Wanted::Member(of.into()));
    assert!(matches!(&rig.ask(&asked("b"), HERE, Transport::Udp, 40)[..], [Output::Want(_)]));
    rig.server.handle_update(absent("b"), rig.at(41));
    assert_eq!(reply(&rig.outputs()).header_counts().ancount(), 1);
    assert!(matches!(&rig.ask(&asked("c"), HERE, Transport::Udp, 41)[..], [Output::Want(_)]));
    rig.server.handle_update(absent("c"), rig.at(42));
    assert_eq!(reply(&rig.outputs()).opt_rcode(), OptRcode::NXDOMAIN);
    assert_eq!(reply(&rig.ask(&asked("c"), HERE, Transport::Udp, 60)).opt_rcode(), OptRcode::NXDOMAIN);
    assert!(matches!(&rig.ask(&asked("c"), HERE, Transport::Udp, 80)[..], [Output::Want(_)]));
    rig.server.handle_update(Update::Failed(Wanted::Member("c".into())), rig.at(81));
    assert_eq!(reply(&rig.outputs()).opt_rcode(), OptRcode::SERVFAIL);
}

/// A zone from two older halves, put together late, does not replace a newer one.
#[test]
fn an_older_zone_does_not_replace_a_newer_one() {
    let mut rig = Rig::new();
    let old = rig.fixture.zone("b");
    rig.learn("b", 0);
    let mut newer = old.clone();
    newer.serial += 5;
    let address = overlay_address(rig.fixture.chain.network(), node("b"));
    rig.server.handle_update(Update::Member("b".into(), address, Arc::new(newer)), rig.at(1));
    rig.learn("b", 2);
    assert_eq!(rig.server.catalog().serial("b"), Some(old.serial + 5));
}
