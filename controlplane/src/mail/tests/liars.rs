//! Members that say what no member says, and those that say nothing.

use super::*;

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
        (Frame::Begin { life: 1, pending: vec![] }, Violation::Begun),
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
    // Of one from whom something is there it is known that it has not begun.
    let mut unbegun = Liar::new();
    unbegun.begin(5);
    assert!(unbegun.says(5, offer(1, 0, 0)).is_ok());
    unbegun.victim.mail.handle_link_up(node(5), unbegun.now);
    for frame in [offer(1, 0, 0), offer(2, 0, 0), piece(1, 0, 1)] {
        assert_eq!(unbegun.says(5, frame), Err(Violation::Unbegun));
    }
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
    // As many as may be misplaced, of which four were, and one more.
    assert!((4..4096).all(|_| liar.says(5, piece(1, 0, 1)).is_ok()));
    assert_eq!(liar.says(5, piece(1, 0, 1)), Err(Violation::Piece));
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
    let nothing = [Frame::Held { id: unknown }, Frame::Taken { id: unknown }, Frame::PutBack { id: unknown }];
    for frame in nothing.into_iter().chain([Frame::Gone { id: unknown }]) {
        assert_eq!(says(frame), Ok(()));
    }
    assert_eq!(says(Frame::Want { id: unknown, from: 9 }), Ok(()));
    assert_eq!(says(Frame::Want { id, from: 100_001 }), Err(Violation::Want));
    assert_eq!(says(Frame::Credit(1)), Err(Violation::Credit));
    // It may ask for all of it as often as it likes, and gets a window of it each time that it has read one.
    (0..1000).for_each(|_| assert_eq!(says(Frame::Want { id, from: 0 }), Ok(())));
    pair.settle();
    assert!(pair.most <= WINDOW_MIN, "{}", pair.most);
}

#[test]
fn peers_that_do_not_read_hold_up_others_for_half_a_minute_at_most() {
    let mut pair = Pair::new();
    let (now, mail) = (pair.now, &mut pair.sides[0].mail);
    // More than may be under way on all links: each asks for it, and gives no credit.
    let body: Arc<[u8]> = body(1, 250_000).into();
    for number in 0..IN_FLIGHT_MAX.div_ceil(WINDOW_MIN) + 1 {
        let to = NodeId([number as u8; 32]);
        mail.handle_link_up(to, now);
        let id = mail.send(&[to], &topic("a"), &body, HOUR, now).remove(0).unwrap();
        mail.handle_frame(to, Frame::Want { id, from: 0 }, |_| true, now).unwrap();
    }
    let last = NodeId([IN_FLIGHT_MAX.div_ceil(WINDOW_MIN) as u8; 32]);
    let pieces = |side: &mut Side| {
        let is_piece = |(to, frame): &(NodeId, Frame)| *to == last && matches!(frame, Frame::Piece { .. });
        side.outputs(usize::MAX).iter().filter(|said| is_piece(said)).count()
    };
    assert_eq!(pieces(&mut pair.sides[0]), 0);
    pair.now = pair.now.plus(Duration::from_secs(30));
    pair.sides[0].mail.handle_timeout(pair.now);
    assert_eq!(pieces(&mut pair.sides[0]), WINDOW_MIN / PIECE_LEN_MAX);
    assert!(pair.sides[0].count("message_stalled") > 0);
}

#[test]
fn datagrams_that_nobody_reads_take_no_room_from_messages_and_little_from_each_other() {
    let mut liar = Liar::new();
    let datagram = || Frame::Datagram { topic: topic("a"), bytes: Bytes(vec![0; DATAGRAM_LEN_MAX]) };
    for number in 0..40 {
        liar.begin(number);
        (0..DATAGRAMS_MAX).for_each(|_| drop(liar.says(number, datagram())));
    }
    let inbox = liar.victim.mail.inbox();
    let bytes = inbox.datagram_bytes();
    assert!(bytes <= DATAGRAM_BYTES_MAX && bytes > DATAGRAM_BYTES_MAX - DATAGRAM_LEN_MAX - MESSAGE_OVERHEAD, "{bytes}");
    assert_eq!(inbox.bytes(), 0);
    // Whoever comes late finds room.
    liar.begin(99);
    assert_eq!(liar.says(99, datagram()), Ok(vec![]));
    assert!(liar.victim.mail.inbox().waiting(liar.now.mono).iter().any(|row| row.from == node(99)));
    assert!(liar.victim.mail.inbox().datagram_bytes() <= DATAGRAM_BYTES_MAX);
    assert!(liar.victim.count("message_datagram_dropped") > 0);
}
