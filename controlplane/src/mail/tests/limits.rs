//! What has an end: times, rooms and places.

use super::super::sender::{Row, TAKEN_FOR};
use super::*;

#[test]
fn what_comes_back_past_its_time_is_not_given_out_again() {
    const TTL: Duration = Duration::from_secs(10);
    let mut pair = Pair::new();
    pair.connect();
    let ids = ["a", "b"].map(|about| pair.send_for(about, b"1", TTL));
    pair.run();
    assert_eq!(pair.take("a").len() + pair.take("b").len(), 2);
    // The word that they have expired does not get through.
    pair.pass(TTL + Duration::from_secs(1));
    let now = pair.now.mono;
    assert_eq!(pair.sides[1].mail.returned(&[(node(0), ids[0])], now), 1);
    assert_eq!(pair.take("*"), []);
    pair.sides[1].mail.give_back(1, now);
    assert_eq!(pair.take("*"), []);
    assert_eq!((pair.sides[1].count("message_stale"), pair.sides[1].mail.inbox().bytes()), (2, 0));
}

#[test]
fn what_was_taken_is_forgotten_when_nobody_offers_it_any_more() {
    let mut pair = Pair::new();
    pair.connect();
    pair.send_for("a", b"1", TTL_MAX);
    pair.run();
    let taken = pair.take("a");
    assert_eq!(pair.acknowledge(&taken), 1);
    // Its sender never says that it has deleted it.
    pair.cut();
    let rows = |pair: &mut Pair| {
        pair.sides[1].restart(pair.now);
        pair.settle();
        pair.sides[1].rows()[2]
    };
    pair.pass(TAKEN_FOR);
    assert_eq!(rows(&mut pair), 1);
    pair.pass(Duration::from_secs(1));
    assert_eq!(rows(&mut pair), 0);
}

#[test]
fn a_sender_of_long_ago_makes_place_for_another() {
    let mut store = MemoryStore::default();
    let mut now = Now { mono: Instant::now(), wall: BEGIN };
    let id = MessageId::first_of(BEGIN);
    let row = Row { life: 1, taken: [id].into() };
    let mut batch = Batch::default();
    for number in 0..SENDERS_MAX as u64 {
        let node: Vec<u8> = [number.to_be_bytes(); 4].concat();
        batch.put(Table::Inbox, node, codec::encode(&row));
    }
    store.commit(batch).unwrap();
    let begin = Frame::Begin { life: 1, pending: vec![] };
    let mail = Mail::load(&store, now).unwrap();
    let mut side = Side { store, mail, counted: BTreeMap::new() };
    for (past, full, rows) in [(TAKEN_FOR, 1, SENDERS_MAX), (Duration::from_secs(1), 1, 0)] {
        now = now.plus(past);
        side.mail.handle_link_up(node(1), now);
        side.mail.handle_frame(node(1), begin.clone(), |_| true, now).unwrap();
        side.outputs(usize::MAX);
        assert_eq!((side.count("message_senders_full"), side.rows()[2]), (full, rows));
    }
}

#[test]
fn a_peer_has_its_time_to_say_that_it_reads_from_when_there_is_enough_to_read() {
    let mut pair = Pair::new();
    pair.connect();
    pair.send("a", b"little");
    pair.pass(Duration::from_secs(29));
    pair.send("b", &[1; CREDIT_MIN / 2]);
    pair.send("c", &[1; CREDIT_MIN / 2]);
    pair.pass(Duration::from_secs(29));
    assert_eq!(pair.sides[0].count("message_stalled"), 0);
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.sides[0].count("message_stalled"), 1);
}

/// Its sender knows where it stands, and sends no more of what would be dropped.
#[test]
fn what_loses_its_room_is_held_no_more_and_not_sent_until_it_is_wanted() {
    let mut pair = Pair::new();
    pair.connect();
    let (whole, half) = (pair.send("a", b"1"), pair.send("b", &body(1, 500_000)));
    assert!(pair.hand(1) && pair.hand(1) && pair.hand(1));
    pair.settle();
    while pair.hand(0) {}
    assert_eq!(pair.stage(whole), Some(Stage::Held));
    assert!(matches!(pair.stage(half), Some(Stage::Sending(sent)) if sent > 0));
    pair.deny(Some("b"));
    pair.run();
    assert_eq!((pair.stage(whole), pair.stage(half)), (Some(Stage::Held), Some(Stage::Offered)));
    let misplaced = pair.sides[1].count("message_misplaced");
    assert!(misplaced * (PIECE_LEN_MAX as u64) <= WINDOW_MIN as u64, "{misplaced} pieces were on the way");
    pair.deny(Some("a"));
    pair.run();
    assert_eq!((pair.stage(whole), pair.stage(half)), (Some(Stage::Offered), Some(Stage::Held)));
    assert_eq!(pair.take("b").remove(0).body[..], body(1, 500_000));
}

#[test]
fn datagrams_of_one_sender_end_at_a_number_and_are_not_shown_when_nobody_came() {
    let mut pair = Pair::new();
    pair.connect();
    for _ in 0..=DATAGRAMS_MAX {
        let now = pair.now;
        pair.sides[0].mail.send_datagram(node(1), topic("a"), vec![1], now).unwrap();
        pair.run();
    }
    let waiting = |pair: &Pair| pair.sides[1].mail.inbox().waiting(pair.now.mono);
    assert_eq!(waiting(&pair).iter().map(|row| row.messages).collect::<Vec<_>>(), [DATAGRAMS_MAX as u64]);
    assert_eq!(pair.sides[1].count("message_datagram_dropped"), 1);
    pair.pass(DATAGRAM_FOR - Duration::from_secs(1));
    assert_eq!(waiting(&pair).len(), 1);
    pair.pass(Duration::from_secs(1));
    assert_eq!((waiting(&pair), pair.take("*")), (vec![], vec![]));
}

#[test]
fn no_message_is_kept_for_longer_than_any_may() {
    let mut pair = Pair::new();
    pair.connect();
    let id = pair.send_for("a", b"1", 2 * TTL_MAX);
    pair.run();
    pair.pass(TTL_MAX - Duration::from_secs(1));
    assert_eq!((pair.stage(id), pair.take("a").len()), (Some(Stage::Held), 1));
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.outcome(id), Some(Outcome::Expired));
    // Whatever a sender says.
    let head = Head { id, topic: topic("b"), len: 0, sent: BEGIN, expires_in_secs: u32::MAX };
    let mut side = Side::new(pair.now);
    side.mail.handle_link_up(node(1), pair.now);
    for frame in [Frame::Begin { life: 1, pending: vec![id] }, Frame::Offer { head, start: Bytes(vec![]) }] {
        side.mail.handle_frame(node(1), frame, |_| true, pair.now).unwrap();
    }
    side.outputs(usize::MAX);
    for (past, messages) in [(TTL_MAX - Duration::from_secs(1), 1), (Duration::from_secs(1), 0)] {
        pair.now = pair.now.plus(past);
        side.mail.handle_timeout(pair.now);
        assert_eq!(side.mail.inbox().waiting(pair.now.mono).len(), messages);
    }
}

#[test]
fn the_end_of_so_many_messages_is_remembered_and_of_no_more() {
    let mut pair = Pair::new();
    pair.connect();
    let first = pair.send("a", b"");
    let mut second = None;
    for number in 0..OUTCOMES_MAX {
        let id = if number == 0 { first } else { pair.send("a", b"") };
        second = second.or(Some(id).filter(|_| number == 1));
        pair.run();
        let taken = pair.take("a");
        assert_eq!(pair.acknowledge(&taken), 1);
        pair.run();
    }
    assert_eq!(pair.outcome(first), Some(Outcome::Taken));
    let last = pair.send_for("a", b"", Duration::ZERO);
    pair.pass(Duration::ZERO);
    assert_eq!(
        [Some(first), second, Some(last)].map(|id| pair.outcome(id.unwrap())),
        [None, Some(Outcome::Taken), Some(Outcome::Expired)]
    );
}
