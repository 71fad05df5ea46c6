//! Two members, a link that dies at any point, processes that end at any point, and peers that lie.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::wire::{
    BODY_LEN_MAX, Bytes, Head, OFFERS_MAX, OFFERS_TOPIC_MAX, PENDING_MAX, PIECE_LEN_MAX, Refusal, WINDOW,
};
use super::*;
use crate::random::SeededRandom;
use crate::store::MemoryStore;
use crate::time::UnixSecs;

const BEGIN: UnixSecs = UnixSecs(1_796_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
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
        let mail = Mail::load(&store, &mut SeededRandom::new(1), now).unwrap();
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
        let seed = now.wall.0;
        self.mail = Mail::load(&self.store, &mut SeededRandom::new(seed), now).unwrap();
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

    fn send(&mut self, about: &str, body: &[u8]) -> MessageId {
        let sent = self.sides[0].mail.send(node(1), topic(about), body.into(), HOUR, self.now);
        self.settle();
        sent.unwrap()
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
    assert_eq!(pair.sides[0].store.entries(crate::store::Table::Outbox).unwrap().len(), 1);
    pair.cut();
    pair.connect();
    let other = pair.send("b", b"");
    pair.run();
    assert_eq!(pair.sides[1].store.entries(crate::store::Table::Inbox).unwrap(), []);
    assert!(other > id);
    assert_eq!(pair.take("a*"), []);
    assert_eq!(pair.take("b").len(), 1);
}

/// Whatever happens to link and processes: each message once, whole, and in the order of its topic.
#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_dies() {
    for seed in 0..300 {
        let mut random = SeededRandom::new(seed);
        let mut draw = |below: u64| (random.u64() % below) as usize;
        let mut pair = Pair::new();
        let topics = ["a", "b", "c"];
        let mut sent: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
        let mut got: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let mut note = |taken: &[Delivery]| {
            taken.iter().for_each(|one| got.entry(one.topic.to_string()).or_default().push(one.body.to_vec()));
        };
        let mut number = 0;
        for _ in 0..400 {
            match draw(16) {
                0 | 1 => {
                    let about = topics[draw(3)];
                    let len = [0, 5, 1000, 16 << 10, (16 << 10) + 1, 200_000][draw(6)];
                    number += 1;
                    let body = body(number, len);
                    pair.send(about, &body);
                    sent.entry(about).or_default().push(body);
                }
                2 => pair.connect(),
                3 if draw(4) == 0 => pair.cut(),
                4 if draw(4) == 0 => {
                    // In the midst of what it was about to do.
                    let at = draw(2);
                    pair.hand(at);
                    pair.crash(at, draw(3));
                }
                5 | 6 => {
                    let taken = pair.take(["*", "a", "b"][draw(3)]);
                    match draw(4) {
                        // The application ends before it says anything, and is waited for.
                        0 => pair.pass(LEASE),
                        // Its call does.
                        1 => pair.sides[1].mail.give_back(1),
                        // It has the first ones only.
                        2 => {
                            let first = &taken[..taken.len().min(1)];
                            note(&first[..pair.acknowledge(first)]);
                            pair.sides[1].mail.give_back(1);
                        }
                        _ => {
                            assert_eq!(pair.acknowledge(&taken), taken.len());
                            note(&taken);
                        }
                    }
                }
                7 => pair.pass(Duration::from_millis(60)),
                at => {
                    pair.hand(at % 2);
                    pair.settle();
                }
            }
            assert!(pair.most <= WINDOW, "seed {seed}: {} on the way", pair.most);
        }
        pair.connect();
        loop {
            pair.run();
            let taken = pair.take("*");
            if taken.is_empty() {
                break;
            }
            pair.acknowledge(&taken);
            note(&taken);
        }
        let sent: BTreeMap<String, Vec<Vec<u8>>> =
            sent.into_iter().map(|(about, all)| (about.to_owned(), all)).collect();
        assert!(sent == got, "seed {seed}: {:?} and {:?}", lens(&sent), lens(&got));
        pair.pass(Duration::from_secs(1));
        pair.run();
        assert_eq!(
            pair.sides.each_ref().map(|side| (side.mail.outbox().bytes(), side.mail.inbox().bytes())),
            [(0, 0); 2]
        );
        assert_eq!(pair.sides[0].store.entries(crate::store::Table::Outbox).unwrap().len().min(1), 1.min(number));
    }
}

fn lens(all: &BTreeMap<String, Vec<Vec<u8>>>) -> Vec<Vec<usize>> {
    all.values().map(|bodies| bodies.iter().map(Vec::len).collect()).collect()
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
    let longer = pair.sides[0].mail.send(node(1), topic("a"), vec![0; BODY_LEN_MAX + 1].into(), HOUR, pair.now);
    assert_eq!(longer, Err(SendError::TooLong(BODY_LEN_MAX + 1)));
}

#[test]
fn an_outbox_ends_at_its_limits_and_says_which() {
    let mut pair = Pair::new();
    let now = pair.now;
    let mail = &mut pair.sides[0].mail;
    let mut send = |to: u8, len: usize| mail.send(node(to), topic("a"), vec![0; len].into(), HOUR, now);
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
        assert!((0..PENDING_MAX).all(|_| mail.send(node(to), topic("a"), vec![].into(), HOUR, now).is_ok()));
    }
    let (messages, bytes) = (OUTBOX_MESSAGES_MAX, OUTBOX_MESSAGES_MAX * MESSAGE_OVERHEAD);
    let one_more = mail.send(node(99), topic("a"), vec![].into(), HOUR, now);
    assert_eq!(one_more, Err(SendError::Full { messages, bytes }));
}

#[test]
fn what_nobody_takes_in_time_expires_at_both_ends_and_is_told() {
    let mut pair = Pair::new();
    pair.connect();
    let short = Duration::from_secs(60);
    let first = pair.sides[0].mail.send(node(1), topic("a"), b"1"[..].into(), short, pair.now).unwrap();
    let second = pair.send("a", b"2");
    let away = pair.sides[0].mail.send(node(7), topic("a"), b"3"[..].into(), short, pair.now).unwrap();
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
fn the_receivers_policy_refuses_for_good() {
    let mut pair = Pair::new();
    pair.denied = Some(topic("secret"));
    pair.connect();
    let (denied, other) = (pair.send("secret", b"1"), pair.send("a", b"2"));
    pair.run();
    assert_eq!(
        pair.sides[0].mail.outbox().outcome(denied).map(|(_, outcome)| outcome),
        Some(Outcome::Refused(Refusal::Policy))
    );
    assert!(pair.sides[0].mail.send_datagram(node(1), topic("secret"), b"3".to_vec()).is_ok());
    pair.run();
    assert_eq!(pair.sides[1].count("message_denied"), 2);
    assert_eq!(pair.take("*").iter().map(|one| one.id).collect::<Vec<_>>(), [Some(other)]);
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
    let datagram = |pair: &mut Pair| pair.sides[0].mail.send_datagram(node(1), topic("d"), vec![1; 10_000]);
    assert_eq!(datagram(&mut pair), Err(SendError::NoLink));
    pair.connect();
    // As many as the window takes before the other side has read one.
    assert!((0..WINDOW / 10_000).all(|_| datagram(&mut pair).is_ok()));
    assert_eq!(datagram(&mut pair), Err(SendError::NoLink));
    pair.run();
    assert!(datagram(&mut pair).is_ok());
    pair.run();
    let taken = pair.take("d");
    assert_eq!((taken.len(), taken[0].id), (WINDOW / 10_000 + 1, None));
    assert_eq!((pair.take("d"), pair.sides[1].mail.inbox().bytes()), (vec![], 0));
    // As many as are kept, and for as long.
    for _ in 0..DATAGRAMS_MAX + 1 {
        assert!(pair.sides[0].mail.send_datagram(node(1), topic("d"), vec![]).is_ok());
    }
    pair.run();
    assert_eq!(pair.sides[1].count("message_datagram_dropped"), 1);
    pair.pass(DATAGRAM_FOR);
    assert_eq!(pair.take("d"), []);
    assert_eq!(pair.sides[1].count("message_datagram_dropped"), 1 + DATAGRAMS_MAX as u64);
}

/// A member whose frames a test makes up.
struct Liar {
    victim: Side,
    now: Now,
}

impl Liar {
    fn new() -> Self {
        let now = Now { mono: Instant::now(), wall: BEGIN };
        Self { victim: Side::new(now), now }
    }

    fn says(&mut self, liar: u8, frame: Frame) -> Result<Vec<Frame>, Violation> {
        self.victim.mail.handle_frame(node(liar), frame, |_| true, self.now)?;
        Ok(self.victim.outputs(usize::MAX).into_iter().map(|(_, frame)| frame).collect())
    }

    fn begin(&mut self, liar: u8) {
        self.victim.mail.handle_link_up(node(liar), self.now);
        assert_eq!(self.says(liar, Frame::Begin { life: 1, pending: vec![] }), Ok(vec![]));
    }
}

fn offer(id: u64, len: usize, start: usize) -> Frame {
    offer_in("a", id, len, start)
}

fn offer_in(about: &str, id: u64, len: usize, start: usize) -> Frame {
    let head = Head { id: MessageId(id), topic: topic(about), len: len as u32, sent: BEGIN, expires_in_secs: 3600 };
    Frame::Offer { head, start: Bytes(vec![0; start]) }
}

fn piece(id: u64, at: u32, len: usize) -> Frame {
    Frame::Piece { id: MessageId(id), at, bytes: Bytes(vec![0; len]) }
}

#[test]
fn sizes_that_lie_end_the_link() {
    let wrong = [
        (offer(1, BODY_LEN_MAX + 1, 0), Violation::Offer),
        (offer(1, 10, 9), Violation::Offer),
        (offer(1, 9, 10), Violation::Offer),
        (offer(1, 20_000, 20_000), Violation::Offer),
        (piece(9, 10, 91), Violation::Piece),
        (piece(9, 10, 0), Violation::Piece),
        (piece(9, 10, PIECE_LEN_MAX + 1), Violation::Piece),
        (offer(9, 101, 0), Violation::Offer),
        (offer_in("b", 9, 100, 0), Violation::Offer),
        (Frame::Begin { life: 1, pending: vec![MessageId(2), MessageId(2)] }, Violation::Pending),
        (Frame::Begin { life: 1, pending: (0..=PENDING_MAX as u64).map(MessageId).collect() }, Violation::Pending),
        (Frame::Credit(1), Violation::Credit),
        (Frame::Datagram { topic: topic("a"), bytes: Bytes(vec![0; DATAGRAM_LEN_MAX + 1]) }, Violation::Datagram),
    ];
    for (frame, violation) in wrong {
        let mut liar = Liar::new();
        liar.begin(5);
        let want = Frame::Want { id: MessageId(9), from: 0 };
        assert_eq!(liar.says(5, offer(9, 100, 0)), Ok(vec![want]));
        assert_eq!(liar.says(5, piece(9, 0, 10)), Ok(vec![]));
        assert_eq!(liar.says(5, frame.clone()), Err(violation), "{frame:?}");
    }
    // At the limit all of it is well.
    let mut liar = Liar::new();
    liar.begin(5);
    for frame in [offer(1, BODY_LEN_MAX, 0), offer(2, 16 << 10, 16 << 10), piece(1, 0, PIECE_LEN_MAX)] {
        assert!(liar.says(5, frame).is_ok());
    }
    let mut unbegun = Liar::new();
    unbegun.victim.mail.handle_link_up(node(5), unbegun.now);
    assert!(unbegun.says(5, piece(1, 0, 1)).is_ok(), "nothing is known of it");
    unbegun.begin(5);
    unbegun.victim.mail.handle_link_up(node(5), unbegun.now);
    assert!(unbegun.says(5, offer(1, 0, 0)).is_ok());
}

#[test]
fn pieces_out_of_their_order_are_dropped_and_too_many_end_the_link() {
    let mut liar = Liar::new();
    liar.begin(5);
    assert!(liar.says(5, offer(1, 100, 0)).is_ok());
    for frame in [piece(1, 1, 10), piece(7, 0, 10), piece(1, 0, 10), piece(1, 0, 10), piece(1, 20, 10)] {
        assert!(liar.says(5, frame).is_ok());
    }
    assert_eq!(liar.victim.count("message_misplaced"), 4);
    assert_eq!(liar.says(5, piece(1, 10, 90)), Ok(vec![Frame::Held { id: MessageId(1) }]));
    let refused = (0..5000).find_map(|_| liar.says(5, piece(1, 0, 1)).err());
    assert_eq!(refused, Some(Violation::Piece));
    // A lower id in the same topic than one that is known is not waited for.
    assert_eq!(liar.says(5, offer(0, 0, 0)), Ok(vec![]));
    assert_eq!(liar.victim.count("message_misordered"), 1);
}

#[test]
fn a_flood_of_offers_meets_a_bound_and_so_do_the_bytes_of_all() {
    let mut liar = Liar::new();
    liar.begin(5);
    let refused = (0..5000).find_map(|id| liar.says(5, offer(id, BODY_LEN_MAX, 0)).err().map(|error| (id, error)));
    assert_eq!(refused, Some((2 * OFFERS_MAX as u64, Violation::Offers)));
    assert!(liar.victim.mail.inbox().bytes() <= INBOX_SENDER_BYTES_MAX);
    // In as many topics as it likes.
    let mut liar = Liar::new();
    for number in 0..10 {
        liar.begin(number);
        for id in 0..40 {
            assert!(liar.says(number, offer_in(&format!("t{id}"), id, 4 << 20, 0)).is_ok());
        }
    }
    let bytes = liar.victim.mail.inbox().bytes();
    assert!(bytes <= INBOX_BYTES_MAX && bytes > INBOX_BYTES_MAX / 2, "{bytes}");
    // Whoever comes late gets some of what the others took.
    liar.begin(99);
    assert!(liar.says(99, offer(1, 1000, 0)).unwrap().contains(&Frame::Want { id: MessageId(1), from: 0 }));
    assert!(liar.victim.count("message_put_back") > 0);
    assert!(liar.victim.mail.inbox().bytes() <= INBOX_BYTES_MAX);
}

#[test]
fn what_is_never_forgotten_by_the_sender_is_not_kept_in_mind_without_end() {
    let mut liar = Liar::new();
    liar.begin(5);
    let mut taken = 0;
    for id in 0..5000 {
        if liar.says(5, offer(id, 0, 0)).is_err() {
            break;
        }
        let ids: Vec<_> = liar.victim.mail.take(&TopicPattern::any(), 9, 9, 1, liar.now.mono);
        taken += liar.victim.mail.taken(&ids.iter().map(|one| (one.from, one.id.unwrap())).collect::<Vec<_>>());
    }
    assert_eq!(taken, 2 * PENDING_MAX);
}

#[test]
fn a_receiver_that_lies_harms_nobody_but_itself() {
    let mut pair = Pair::new();
    pair.connect();
    let id = pair.send("a", &body(1, 100_000));
    let now = pair.now;
    let mail = &mut pair.sides[0].mail;
    let mut says = |frame| mail.handle_frame(node(1), frame, |_| true, now);
    let unknown = MessageId(7);
    for frame in [Frame::Held { id: unknown }, Frame::Taken { id: unknown }, Frame::Gone { id: unknown }] {
        assert_eq!(says(frame), Ok(()));
    }
    assert_eq!(says(Frame::Want { id: unknown, from: 9 }), Ok(()));
    assert_eq!(says(Frame::Want { id, from: 100_001 }), Err(Violation::Want));
    assert_eq!(says(Frame::Credit(1)), Err(Violation::Credit));
    // It may ask for all of it as often as it likes, and gets a window of it each time that it has read one.
    (0..1000).for_each(|_| assert_eq!(says(Frame::Want { id, from: 0 }), Ok(())));
    pair.settle();
    assert!(pair.most <= WINDOW, "{}", pair.most);
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
    pair.sides[0].mail.clear();
    pair.settle();
    assert_eq!(pair.sides[0].store.entries(crate::store::Table::Outbox).unwrap(), []);
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
    let after = pair.sides[0].mail.send(node(1), topic("a"), b"2"[..].into(), HOUR, pair.now).unwrap();
    assert!(ids.iter().all(|id| *id < after));
}
