//! Two members, a link that dies at any point, and processes that end at any point; `liars` has peers that do not keep to the rules,
//! `limits` what has an end.

mod liars;
mod limits;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::bodies::{PART_LEN, PARTS_AT_ONCE};
use super::wire::{
    BODY_LEN_MAX, Bytes, CREDIT_MIN, DATAGRAM_OVERHEAD, Head, OFFERS_MAX, OFFERS_TOPIC_MAX, PENDING_MAX, PIECE_LEN_MAX,
    Refusal, WINDOW_MAX, WINDOW_MIN,
};
use super::*;
use crate::random::{Random as _, SeededRandom};
use crate::store::MemoryStore;
use crate::store::Table;
use crate::time::UnixSecs;

const BEGIN: UnixSecs = UnixSecs(1_796_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

fn send_to(
    mail: &mut Mail,
    to: u8,
    about: &str,
    body: Vec<u8>,
    ttl: Duration,
    now: Now,
) -> Result<MessageId, SendError> {
    mail.send(&[node(to)], &topic(about), &body.into(), ttl, now).remove(0)
}

/// One member's side, with its disk.
struct Side {
    store: MemoryStore,
    mail: Mail,
    counted: BTreeMap<&'static str, u64>,
}

impl Side {
    fn new(now: Now) -> Self {
        let store = MemoryStore::default();
        let mail = Mail::load(&store, now).unwrap();
        Self { store, mail, counted: BTreeMap::new() }
    }

    /// Carries out at most so many outputs, and says what is to be said.
    fn outputs(&mut self, max: usize) -> Vec<(NodeId, Frame)> {
        let mut said = vec![];
        for _ in 0..max {
            match self.mail.poll_output() {
                None => break,
                Some(Output::Store(batch)) => self.store.commit(batch).unwrap(),
                Some(Output::Say(to, frame)) => said.push((to, frame)),
                Some(Output::Count(what)) => *self.counted.entry(what).or_default() += 1,
            }
        }
        said
    }

    fn restart(&mut self, now: Now) {
        self.mail = Mail::load(&self.store, now).unwrap();
    }

    /// Rows on disk: messages with what the outbox keeps of itself, parts of bodies, senders of whom something was taken.
    fn rows(&self) -> [usize; 3] {
        [Table::Outbox, Table::OutboxBodies, Table::Inbox].map(|table| self.store.entries(table).unwrap().len())
    }

    fn count(&self, what: &str) -> u64 {
        self.counted.get(what).copied().unwrap_or(0)
    }
}

/// Two members and a link.
struct Pair {
    now: Now,
    sides: [Side; 2],
    is_up: bool,
    /// What is on the way to each side.
    queues: [VecDeque<Frame>; 2],
    /// Most bytes that were on the way to one side.
    most: usize,
    denied: Option<Topic>,
}

impl Pair {
    fn new() -> Self {
        let now = Now { mono: Instant::now(), wall: BEGIN };
        let sides = [Side::new(now), Side::new(now)];
        Self { now, sides, is_up: false, queues: Default::default(), most: 0, denied: None }
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now.plus(by);
        self.sides.iter_mut().for_each(|side| side.mail.handle_timeout(self.now));
        self.settle();
    }

    fn settle(&mut self) {
        for at in 0..2 {
            for (_, frame) in self.sides[at].outputs(usize::MAX) {
                if self.is_up {
                    self.queues[1 - at].push_back(frame);
                }
            }
            let len = |frame: &Frame| match frame {
                Frame::Offer { start: bytes, .. } | Frame::Piece { bytes, .. } | Frame::Datagram { bytes, .. } => {
                    bytes.0.len()
                }
                _ => 0,
            };
            self.most = self.most.max(self.queues[at].iter().map(len).sum());
        }
    }

    fn connect(&mut self) {
        if !self.is_up {
            self.is_up = true;
            (0..2).for_each(|at| self.sides[at].mail.handle_link_up(node(1 - at as u8), self.now));
            self.settle();
        }
    }

    fn cut(&mut self) {
        self.is_up = false;
        self.queues = Default::default();
        (0..2).for_each(|at| self.sides[at].mail.handle_link_down(node(1 - at as u8), self.now));
        self.settle();
    }

    /// A process ends after so many of the outputs that it still has, and starts again.
    fn crash(&mut self, at: usize, outputs: usize) {
        self.sides[at].outputs(outputs);
        self.sides[at].restart(self.now);
        self.cut();
    }

    /// Hands over the next frame to one side, without carrying out what follows from it.
    fn hand(&mut self, to: usize) -> bool {
        let Some(frame) = self.queues[to].pop_front() else { return false };
        let denied = self.denied.clone();
        let allows = |topic: &Topic| Some(topic) != denied.as_ref();
        self.sides[to].mail.handle_frame(node(1 - to as u8), frame, allows, self.now).unwrap();
        true
    }

    /// Hands over everything until nothing more is said.
    fn run(&mut self) {
        self.settle();
        while self.hand(0) || self.hand(1) {
            self.settle();
        }
    }

    fn send_for(&mut self, about: &str, body: &[u8], ttl: Duration) -> MessageId {
        let sent = send_to(&mut self.sides[0].mail, 1, about, body.to_vec(), ttl, self.now);
        self.settle();
        sent.unwrap()
    }

    /// Until it is on disk.
    fn send(&mut self, about: &str, body: &[u8]) -> MessageId {
        let id = self.send_for(about, body, HOUR);
        while self.stage(id) == Some(Stage::Storing) {
            self.pass(Duration::from_millis(1));
        }
        id
    }

    fn stage(&self, id: MessageId) -> Option<Stage> {
        self.sides[0].mail.outbox().stage(id).map(|(_, stage)| stage)
    }

    fn outcome(&self, id: MessageId) -> Option<Outcome> {
        self.sides[0].mail.outbox().outcome(id).map(|(_, outcome)| outcome)
    }

    fn refused<T>(&self, of: &BTreeMap<MessageId, T>) -> Vec<MessageId> {
        let is_refused = |id: &MessageId| self.outcome(*id) == Some(Outcome::Refused(Refusal::Policy));
        of.keys().copied().filter(is_refused).collect()
    }

    /// The receiver's policy forbids this topic from now on.
    fn deny(&mut self, about: Option<&str>) {
        self.denied = about.map(topic);
        let denied = self.denied.clone();
        let now = self.now;
        self.sides[1].mail.rejudge(|_, topic| Some(topic) != denied.as_ref(), now);
        self.settle();
    }

    fn take(&mut self, about: &str) -> Vec<Delivery> {
        let deliveries = self.sides[1].mail.take(&about.parse().unwrap(), 99, 1 << 20, 1, self.now.mono);
        self.settle();
        deliveries
    }

    fn acknowledge(&mut self, deliveries: &[Delivery]) -> usize {
        let ids: Vec<_> = deliveries.iter().filter_map(|delivery| Some((delivery.from, delivery.id?))).collect();
        let taken = self.sides[1].mail.taken(&ids);
        self.settle();
        taken
    }
}

/// A body that says which it is, and is not the same everywhere.
fn body(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at / 251 + at) as u8).collect()
}

#[test]
fn a_message_is_delivered_once_and_then_forgotten_everywhere() {
    let mut pair = Pair::new();
    pair.connect();
    let id = pair.send("a", b"hello");
    pair.run();
    assert_eq!(pair.sides[0].mail.outbox().stage(id), Some((node(1), Stage::Held)));
    let taken = pair.take("*");
    let expected = Delivery { from: node(0), id: Some(id), topic: topic("a"), sent: BEGIN, body: b"hello"[..].into() };
    assert_eq!(taken, [expected]);
    assert_eq!(pair.take("*"), [], "it is lent");
    assert_eq!(pair.acknowledge(&taken), 1);
    assert_eq!(pair.acknowledge(&taken), 0);
    pair.run();
    assert_eq!(
        (pair.sides[0].mail.outbox().outcome(id).map(|(_, outcome)| outcome), pair.sides[0].mail.outbox().stage(id)),
        (Some(Outcome::Taken), None)
    );
    pair.pass(Duration::from_secs(1));
    pair.run();
    // Of the whole of it the sender's life is left, and one row that the next message or link ends.
    assert_eq!(pair.sides[0].store.entries(Table::Outbox).unwrap().len(), 1);
    pair.cut();
    pair.connect();
    let other = pair.send("b", b"");
    pair.run();
    assert_eq!(pair.sides[1].store.entries(Table::Inbox).unwrap(), []);
    assert!(other > id);
    assert_eq!(pair.take("a*"), []);
    assert_eq!(pair.take("b").len(), 1);
}

/// Whatever happens to link, processes and policy: each message at most once, whole, and in the order of its topic; and none is missing but those
/// whose time was over or that were refused.
/// Processes that end, links that go, applications that take nothing, or the first ones only.
#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_dies() {
    whatever_happens(false);
}

/// The same with a policy that comes and goes meanwhile: a refusal that crosses its change is said again, and counts.
#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_is_forbidden_meanwhile() {
    whatever_happens(true);
}

fn whatever_happens(is_forbidden_at_times: bool) {
    const SHORT: Duration = Duration::from_secs(150);
    for seed in 0..100 {
        let mut random = SeededRandom::new(seed);
        let mut draw = |below: u64| (random.u64() % below) as usize;
        let mut pair = Pair::new();
        let topics = ["a", "b", "c"];
        let mut sent: BTreeMap<MessageId, (&str, Vec<u8>)> = BTreeMap::new();
        // Nobody was told that these were accepted.
        let mut storing: BTreeSet<MessageId> = BTreeSet::new();
        let mut ends: BTreeMap<MessageId, UnixSecs> = BTreeMap::new();
        let mut refused: BTreeSet<MessageId> = BTreeSet::new();
        let mut got: Vec<(MessageId, String, Vec<u8>)> = vec![];
        let mut note = |taken: &[Delivery]| {
            got.extend(taken.iter().map(|one| (one.id.unwrap(), one.topic.to_string(), one.body.to_vec())));
        };
        let mut number = 0;
        for _ in 0..400 {
            match draw(17) {
                0 | 1 => {
                    let about = topics[draw(3)];
                    let len = [0, 5, 1000, 16 << 10, (16 << 10) + 1, 200_000][draw(6)]
                        + [0, 1_100_000][usize::from(draw(16) == 0)];
                    let ttl = [HOUR, HOUR, HOUR, SHORT][draw(4)];
                    number += 1;
                    let body = body(number, len);
                    let id = pair.send_for(about, &body, ttl);
                    sent.insert(id, (about, body));
                    ends.insert(id, pair.now.wall.plus(ttl));
                    storing.insert(id);
                }
                2 => pair.connect(),
                3 if draw(4) == 0 => pair.cut(),
                4 if draw(4) == 0 => {
                    // In the midst of what it was about to do.
                    let at = draw(2);
                    pair.hand(at);
                    let refusals = pair.refused(&sent);
                    pair.crash(at, draw(3));
                    // Nobody can ask a process that has ended, but what is on disk shows that it was.
                    refused.extend(refusals.into_iter().filter(|id| pair.stage(*id).is_none()));
                    if at == 0 {
                        let mail = &pair.sides[0].mail;
                        sent.retain(|id, _| !storing.contains(id) || mail.outbox().stage(*id).is_some());
                    }
                }
                5 | 6 => {
                    let taken = pair.take(["*", "a", "b"][draw(3)]);
                    match draw(5) {
                        // The application ends before it says anything, and is waited for.
                        0 => pair.pass(LEASE),
                        // Its call does.
                        1 => pair.sides[1].mail.give_back(1, pair.now.mono),
                        // It has the first ones only, and its call or it itself gives the others back.
                        2 | 3 => {
                            let (first, others) = taken.split_at(taken.len().min(1));
                            note(&first[..pair.acknowledge(first)]);
                            let others: Vec<_> = others.iter().map(|one| (one.from, one.id.unwrap())).collect();
                            assert_eq!(pair.sides[1].mail.returned(&others, pair.now.mono), others.len());
                        }
                        _ => {
                            assert_eq!(pair.acknowledge(&taken), taken.len());
                            note(&taken);
                        }
                    }
                }
                7 => pair.pass(Duration::from_millis(60)),
                8 if is_forbidden_at_times && draw(3) == 0 => pair.deny([None, Some("a"), Some("b")][draw(3)]),
                8 if draw(20) == 0 => pair.pass(DENIED_FOR),
                at => {
                    pair.hand(at % 2);
                    pair.settle();
                }
            }
            storing.retain(|id| pair.stage(*id) == Some(Stage::Storing));
            refused.extend(pair.refused(&sent));
            assert!(pair.most <= WINDOW_MAX, "seed {seed}: {} on the way", pair.most);
        }
        pair.connect();
        pair.deny(None);
        loop {
            pair.run();
            pair.pass(Duration::from_millis(1));
            let taken = pair.take("*");
            if taken.is_empty()
                && pair.queues.iter().all(VecDeque::is_empty)
                && pair.sides[0].mail.outbox().bytes() == 0
            {
                break;
            }
            pair.acknowledge(&taken);
            note(&taken);
            refused.extend(pair.refused(&sent));
        }
        let mut last: BTreeMap<&str, MessageId> = BTreeMap::new();
        for (id, about, body) in &got {
            let (expected, whole) = sent.get(id).unwrap_or_else(|| panic!("seed {seed}: {id} was never accepted"));
            assert!(
                (expected, whole) == (&about.as_str(), body),
                "seed {seed}: {id} of {} bytes is another",
                body.len()
            );
            let before = last.insert(expected, *id);
            assert!(before < Some(*id), "seed {seed}: {id} after {before:?}");
            assert!(!refused.contains(id), "seed {seed}: {id} was refused");
        }
        let got: BTreeSet<MessageId> = got.iter().map(|(id, ..)| *id).collect();
        for id in sent.keys().filter(|id| !got.contains(id) && !refused.contains(id)) {
            assert!(ends[id] <= pair.now.wall, "seed {seed}: {id} of {} is lost", sent[id].0);
        }
        pair.pass(Duration::from_secs(1));
        pair.run();
        assert_eq!(
            pair.sides.each_ref().map(|side| (side.mail.outbox().bytes(), side.mail.inbox().bytes())),
            [(0, 0); 2]
        );
        assert!(pair.sides[0].rows()[..2] == [number.min(1), 0], "seed {seed}: {:?}", pair.sides[0].rows());
    }
}

#[test]
fn the_longest_goes_on_from_where_it_was_cut_off() {
    let mut pair = Pair::new();
    pair.connect();
    let whole = body(1, BODY_LEN_MAX);
    let id = pair.send("big", &whole);
    let mut pieces = 0;
    for _ in 0..3 {
        for _ in 0..100 {
            pieces += pair.queues[1].iter().take(1).filter(|frame| matches!(frame, Frame::Piece { .. })).count();
            pair.hand(1);
            pair.settle();
            pair.hand(0);
            pair.settle();
        }
        pair.cut();
        pair.connect();
    }
    while !pair.queues[0].is_empty() || !pair.queues[1].is_empty() {
        pieces += pair.queues[1].iter().take(1).filter(|frame| matches!(frame, Frame::Piece { .. })).count();
        pair.hand(1);
        pair.settle();
        pair.hand(0);
        pair.settle();
    }
    assert_eq!(pieces, BODY_LEN_MAX / PIECE_LEN_MAX, "no byte is read twice");
    assert_eq!(pair.sides[0].mail.outbox().stage(id), Some((node(1), Stage::Held)));
    let taken = pair.take("*");
    assert!(taken.len() == 1 && taken[0].body[..] == whole[..]);
    let longer = send_to(&mut pair.sides[0].mail, 1, "a", vec![0; BODY_LEN_MAX + 1], HOUR, pair.now);
    assert_eq!(longer, Err(SendError::TooLong(BODY_LEN_MAX + 1)));
}

#[test]
fn an_outbox_ends_at_its_limits_and_says_which() {
    let mut pair = Pair::new();
    let now = pair.now;
    let mail = &mut pair.sides[0].mail;
    let mut send = |to: u8, len: usize| send_to(mail, to, "a", vec![0; len], HOUR, now);
    // Of one peer by number, and by bytes.
    assert!((0..PENDING_MAX).all(|_| send(1, 0).is_ok()));
    let bytes = PENDING_MAX * MESSAGE_OVERHEAD;
    assert_eq!(send(1, 0), Err(SendError::PeerFull { messages: PENDING_MAX, bytes }));
    assert!(send(2, BODY_LEN_MAX).is_ok());
    let left = OUTBOX_PEER_BYTES_MAX - BODY_LEN_MAX - 2 * MESSAGE_OVERHEAD;
    let bytes = BODY_LEN_MAX + MESSAGE_OVERHEAD;
    assert_eq!(send(2, left + 1), Err(SendError::PeerFull { messages: 1, bytes }));
    assert!(send(2, left).is_ok());
    // Of all.
    assert!(send(3, BODY_LEN_MAX).is_ok());
    let messages = PENDING_MAX + 3;
    let bytes = OUTBOX_PEER_BYTES_MAX + BODY_LEN_MAX + MESSAGE_OVERHEAD + PENDING_MAX * MESSAGE_OVERHEAD;
    assert_eq!(send(4, BODY_LEN_MAX), Err(SendError::Full { messages, bytes }));
    assert!(send(4, OUTBOX_BYTES_MAX - bytes - MESSAGE_OVERHEAD).is_ok());
    assert_eq!(mail.outbox().bytes(), OUTBOX_BYTES_MAX);
    // A restart keeps to them too.
    pair.settle();
    (0..200).for_each(|_| pair.pass(Duration::from_millis(1)));
    pair.sides[0].restart(now);
    assert_eq!(pair.sides[0].mail.outbox().bytes(), OUTBOX_BYTES_MAX);
    assert_eq!(pair.sides[0].mail.outbox().waiting().count(), PENDING_MAX + 4);
}

#[test]
fn many_short_ones_end_at_the_number_for_all() {
    let mut pair = Pair::new();
    let now = pair.now;
    let mail = &mut pair.sides[0].mail;
    for to in 0..u8::try_from(OUTBOX_MESSAGES_MAX / PENDING_MAX).unwrap() {
        assert!((0..PENDING_MAX).all(|_| send_to(mail, to, "a", vec![], HOUR, now).is_ok()));
    }
    let (messages, bytes) = (OUTBOX_MESSAGES_MAX, OUTBOX_MESSAGES_MAX * MESSAGE_OVERHEAD);
    let one_more = send_to(mail, 99, "a", vec![], HOUR, now);
    assert_eq!(one_more, Err(SendError::Full { messages, bytes }));
}

#[test]
fn what_nobody_takes_in_time_expires_at_both_ends_and_is_told() {
    let mut pair = Pair::new();
    pair.connect();
    let short = Duration::from_secs(60);
    let first = pair.send_for("a", b"1", short);
    let second = pair.send("a", b"2");
    let away = send_to(&mut pair.sides[0].mail, 7, "a", b"3".to_vec(), short, pair.now).unwrap();
    pair.run();
    pair.pass(short - Duration::from_secs(1));
    assert_eq!(pair.sides[0].mail.outbox().outcome(first).map(|(_, outcome)| outcome), None);
    pair.pass(Duration::from_secs(1));
    pair.run();
    for id in [first, away] {
        assert_eq!(pair.sides[0].mail.outbox().outcome(id).map(|(_, outcome)| outcome), Some(Outcome::Expired));
    }
    assert_eq!(pair.sides[0].count("message_expired"), 2);
    let taken = pair.take("a");
    assert_eq!(taken.iter().map(|one| one.id).collect::<Vec<_>>(), [Some(second)]);
    // Time goes on while a process does not run.
    let late = pair.send("a", b"4");
    pair.now = pair.now.plus(2 * HOUR);
    pair.sides[0].restart(pair.now);
    pair.pass(Duration::ZERO);
    assert_eq!(pair.sides[0].mail.outbox().outcome(late).map(|(_, outcome)| outcome), Some(Outcome::Expired));
}

#[test]
fn what_the_receivers_policy_forbids_waits_for_another_policy_before_it_is_refused() {
    let mut pair = Pair::new();
    pair.deny(Some("secret"));
    pair.connect();
    let (first, second, other) = (pair.send("secret", b"1"), pair.send("secret", b""), pair.send("a", b"2"));
    let long = pair.send("secret", &body(3, 100_000));
    let now = pair.now;
    assert!(pair.sides[0].mail.send_datagram(node(1), topic("secret"), b"4".to_vec(), now).is_ok());
    pair.run();
    assert_eq!(pair.sides[1].count("message_denied"), 4);
    let ids = |taken: &[Delivery]| taken.iter().map(|one| one.id.unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(&pair.take("*")), [other]);
    pair.pass(DENIED_FOR - Duration::from_secs(1));
    pair.run();
    assert_eq!([first, second, long].map(|id| pair.outcome(id)), [None; 3]);
    // In time: all of them come, in their order.
    pair.deny(None);
    pair.run();
    let taken = pair.take("secret");
    assert_eq!(ids(&taken), [first, second, long]);
    assert!(taken[2].body[..] == body(3, 100_000)[..]);
    // What an application has in its hands is its own, and what waits is judged anew: a whole message and one that is half there.
    assert_eq!(pair.acknowledge(&taken[..1]), 1);
    pair.sides[1].mail.returned(&[(node(0), second)], pair.now.mono);
    let half = pair.send("secret", &body(5, 200_000));
    pair.hand(1);
    pair.settle();
    pair.deny(Some("secret"));
    pair.run();
    assert_eq!(pair.acknowledge(&taken[1..]), 1, "the long one is lent, the empty one is forbidden");
    pair.run();
    assert_eq!(pair.outcome(long), Some(Outcome::Taken));
    pair.pass(DENIED_FOR);
    pair.run();
    assert_eq!([second, half].map(|id| pair.outcome(id)), [Some(Outcome::Refused(Refusal::Policy)); 2]);
    assert_eq!(
        (pair.sides[1].mail.inbox().bytes(), pair.sides[0].count("message_refused")),
        (2 + MESSAGE_OVERHEAD - 1, 2)
    );
    // A link that is lost meanwhile changes nothing.
    let late = pair.send("secret", b"6");
    pair.run();
    pair.cut();
    pair.pass(DENIED_FOR);
    pair.connect();
    pair.run();
    assert_eq!(pair.outcome(late), None);
    pair.cut();
    pair.deny(None);
    pair.connect();
    pair.run();
    assert_eq!(ids(&pair.take("secret")), [late]);
}

/// A receiver knew of a message by the link before, and refused it while its offer on this one was on its way: it came back and was taken.
#[test]
fn what_is_refused_stays_so_when_its_offer_comes_later() {
    let mut pair = Pair::new();
    pair.deny(Some("a"));
    pair.connect();
    let id = pair.send("a", b"1");
    pair.run();
    pair.cut();
    pair.connect();
    // It has begun, and the offer is on its way.
    assert!(pair.hand(0) || pair.hand(1));
    pair.settle();
    pair.pass(DENIED_FOR);
    pair.deny(None);
    pair.run();
    assert_eq!((pair.outcome(id), pair.take("*")), (Some(Outcome::Refused(Refusal::Policy)), vec![]));
    let next = pair.send("a", b"2");
    pair.run();
    assert_eq!(pair.take("*").iter().map(|one| one.id).collect::<Vec<_>>(), [Some(next)]);
}

#[test]
fn a_topic_that_nobody_reads_holds_up_itself_alone() {
    let mut pair = Pair::new();
    pair.connect();
    for number in 0..25 {
        pair.send("unread", &body(number, 1 << 20));
    }
    pair.run();
    let held = pair.sides[1].mail.inbox().bytes();
    assert!(held > 12 << 20 && held <= INBOX_TOPIC_BYTES_MAX, "{held}");
    for number in 0..40 {
        pair.send("read", &body(number, 100_000));
    }
    let mut numbers = vec![];
    loop {
        pair.run();
        let taken = pair.take("read");
        if taken.is_empty() {
            break;
        }
        numbers.extend(taken.iter().map(|one| one.body[0]));
        pair.acknowledge(&taken);
    }
    assert_eq!(numbers, (0..40).map(|number| body(number, 1)[0]).collect::<Vec<_>>());
    // Once it is read the rest comes.
    let mut unread = 0;
    loop {
        pair.run();
        let taken = pair.take("*");
        if taken.is_empty() {
            break;
        }
        unread += pair.acknowledge(&taken);
    }
    assert_eq!(unread, 25);
}

#[test]
fn a_datagram_needs_a_link_and_is_handed_out_once() {
    let mut pair = Pair::new();
    let datagram = |pair: &mut Pair, len| {
        let now = pair.now;
        pair.sides[0].mail.send_datagram(node(1), topic("d"), vec![1; len], now)
    };
    assert_eq!(datagram(&mut pair, 0), Err(SendError::NoLink));
    pair.connect();
    // As many as the window takes before the other side has read one.
    let fitting = WINDOW_MIN / (10_000 + DATAGRAM_OVERHEAD);
    assert!((0..fitting).all(|_| datagram(&mut pair, 10_000).is_ok()));
    assert_eq!(datagram(&mut pair, 10_000), Err(SendError::NoLink));
    pair.run();
    assert!(datagram(&mut pair, 10_000).is_ok());
    pair.run();
    let taken = pair.take("d");
    assert_eq!((taken.len(), taken[0].id), (fitting + 1, None));
    assert_eq!((pair.take("d"), pair.sides[1].mail.inbox().bytes()), (vec![], 0));
    // As many as are kept, and for as long.
    for _ in 0..DATAGRAMS_MAX + 1 {
        assert!(datagram(&mut pair, 0).is_ok());
    }
    pair.run();
    assert_eq!(pair.sides[1].count("message_datagram_dropped"), 1);
    pair.pass(DATAGRAM_FOR);
    assert_eq!(pair.take("d"), []);
    assert_eq!(pair.sides[1].count("message_datagram_dropped"), 1 + DATAGRAMS_MAX as u64);
    // Empty ones have a limit too.
    assert_eq!((0..100_000).find(|_| datagram(&mut pair, 0).is_err()).map(|sent| sent < 5000), Some(true));
}

#[test]
fn a_long_message_is_written_in_parts_and_lost_as_a_whole_if_the_process_ends_before() {
    let mut pair = Pair::new();
    pair.connect();
    let whole = body(1, BODY_LEN_MAX);
    let long = send_to(&mut pair.sides[0].mail, 1, "a", whole.clone(), HOUR, pair.now).unwrap();
    let (behind, beside) = (pair.send("a", b"2"), pair.send("b", b"3"));
    pair.run();
    // Each turn writes a few parts; what is behind it in its topic waits.
    let mut turns = 0;
    while pair.stage(long) == Some(Stage::Storing) {
        assert_eq!(pair.sides[0].mail.take_stored(), []);
        assert_eq!([behind, beside].map(|id| pair.stage(id)), [Some(Stage::Queued), Some(Stage::Held)]);
        let before = pair.sides[0].rows()[1];
        pair.pass(Duration::from_millis(1));
        let written = pair.sides[0].rows()[1] - before;
        assert!(written > 0 && written <= PARTS_AT_ONCE, "{written}");
        turns += 1;
    }
    assert_eq!(turns, BODY_LEN_MAX.div_ceil(PART_LEN).div_ceil(PARTS_AT_ONCE));
    assert_eq!(pair.sides[0].mail.take_stored(), [long]);
    let parts = BODY_LEN_MAX.div_ceil(PART_LEN) + 2;
    assert_eq!(pair.sides[0].rows()[..2], [4, parts]);
    pair.cut();
    pair.sides[0].restart(pair.now);
    pair.connect();
    pair.run();
    let taken = pair.take("a");
    assert!(taken[0].body[..] == whole[..] && taken.len() == 1, "one long message a call");
    // Of one that is cut off in the middle nothing is left, and nobody was told of it.
    let lost = send_to(&mut pair.sides[0].mail, 1, "c", body(5, 8 << 20), HOUR, pair.now).unwrap();
    pair.pass(Duration::from_millis(1));
    pair.sides[0].restart(pair.now);
    pair.settle();
    assert_eq!((pair.stage(lost), pair.sides[0].rows()[1]), (None, parts));
    // Nor of one whose time is over before it is written.
    let brief = send_to(&mut pair.sides[0].mail, 1, "c", body(4, 2 << 20), Duration::from_secs(1), pair.now).unwrap();
    pair.pass(Duration::from_millis(1));
    pair.pass(Duration::from_secs(1));
    pair.pass(Duration::from_secs(1));
    assert_eq!((pair.outcome(brief), pair.sides[0].mail.take_stored()), (Some(Outcome::Expired), vec![brief]));
    assert_eq!(pair.sides[0].rows()[1], parts);
}

#[test]
fn a_message_for_many_is_kept_once() {
    let mut pair = Pair::new();
    pair.connect();
    let body: Arc<[u8]> = body(1, 1 << 20).into();
    let to: Vec<NodeId> = (1..=100).map(node).collect();
    let ids: Vec<MessageId> =
        pair.sides[0].mail.send(&to, &topic("a"), &body, HOUR, pair.now).into_iter().map(Result::unwrap).collect();
    (0..9).for_each(|_| pair.pass(Duration::from_millis(1)));
    let parts = (1usize << 20).div_ceil(PART_LEN);
    assert_eq!(pair.sides[0].rows()[..2], [101, parts]);
    assert_eq!(pair.sides[0].mail.outbox().bytes(), (1 << 20) + 100 * MESSAGE_OVERHEAD);
    pair.run();
    let taken = pair.take("*");
    assert_eq!(pair.acknowledge(&taken), 1);
    pair.run();
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.sides[0].rows()[..2], [100, parts]);
    pair.sides[0].restart(pair.now);
    assert_eq!(pair.sides[0].mail.outbox().bytes(), (1 << 20) + 99 * MESSAGE_OVERHEAD);
    let now = pair.now;
    to[1..99].iter().for_each(|node| pair.sides[0].mail.forget(*node, now));
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.sides[0].rows()[..2], [2, parts]);
    assert_eq!(pair.sides[0].mail.outbox().stage(ids[99]), Some((node(100), Stage::Queued)));
    pair.pass(HOUR);
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.sides[0].rows()[..2], [1, 0]);
    // Who has no room gets none, and the others do.
    let full = |pair: &mut Pair, to: &[u8], len| {
        let to: Vec<NodeId> = to.iter().map(|number| node(*number)).collect();
        pair.sides[0].mail.send(&to, &topic("a"), &vec![0; len].into(), HOUR, now)
    };
    assert!((0..PENDING_MAX).all(|_| full(&mut pair, &[3], 0)[0].is_ok()));
    let answers = full(&mut pair, &[2, 3, 4], 9);
    assert!(answers[0].is_ok() && answers[1].is_err() && answers[2].is_ok());
    assert_eq!(full(&mut pair, &[3], 9).len(), 1);
}

#[test]
fn an_empty_message_that_had_to_wait_for_room_comes_to_its_end() {
    let mut pair = Pair::new();
    pair.connect();
    let long = pair.send("a", &body(1, BODY_LEN_MAX));
    let empty = pair.send("a", b"");
    pair.run();
    assert_eq!([long, empty].map(|id| pair.stage(id)), [Some(Stage::Held), Some(Stage::Sent)]);
    let taken = pair.take("a");
    pair.acknowledge(&taken);
    pair.run();
    assert_eq!((pair.outcome(long), pair.stage(empty)), (Some(Outcome::Taken), Some(Stage::Held)));
}

#[test]
fn offers_of_one_topic_leave_room_for_those_of_others() {
    let mut pair = Pair::new();
    for number in 0..PENDING_MAX {
        pair.send(["a", "b"][usize::from(number >= 900)], b"");
    }
    pair.connect();
    let offers = |about: &str| {
        let is_it = |frame: &&Frame| matches!(frame, Frame::Offer { head, .. } if head.topic.as_str() == about);
        pair.queues[1].iter().filter(is_it).count()
    };
    assert_eq!((offers("a"), offers("b")), (OFFERS_TOPIC_MAX, OFFERS_TOPIC_MAX));
}

#[test]
fn a_member_that_is_one_no_more_gets_and_leaves_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    let id = pair.send("a", b"1");
    pair.run();
    let now = pair.now;
    pair.sides[0].mail.forget(node(1), now);
    pair.sides[1].mail.forget(node(0), now);
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.sides[0].mail.outbox().outcome(id).map(|(_, outcome)| outcome), Some(Outcome::Parted));
    assert_eq!((pair.take("*"), pair.sides[1].mail.inbox().bytes()), (vec![], 0));
    // A network that is left takes everything along.
    pair.send("a", b"2");
    send_to(&mut pair.sides[0].mail, 1, "a", body(1, 1 << 20), HOUR, now).unwrap();
    pair.sides[0].mail.clear(now);
    pair.sides[1].mail.clear(now);
    pair.settle();
    assert_eq!(pair.sides.each_ref().map(Side::rows), [[0; 3]; 2]);
}

#[test]
fn an_older_state_directory_gives_no_id_twice() {
    let mut pair = Pair::new();
    pair.connect();
    let early = pair.sides[0].store.clone();
    let ids: Vec<MessageId> = (0..5).map(|_| pair.send("a", b"1")).collect();
    pair.now = pair.now.plus(Duration::from_secs(1));
    pair.sides[0].store = early;
    pair.sides[0].restart(pair.now);
    let after = pair.send("a", b"2");
    assert!(ids.iter().all(|id| *id < after));
}
