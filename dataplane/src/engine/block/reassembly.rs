//! The opening side of blocks: hands out what a datagram holds, and puts cut packets together.
//!
//! ```text
//!              beginning in counter n                        more in counter n+1, not all: now due n+2
//!   ┌──────┐ ──────────────────────────────▶ ┌─────────────┐ ─┐
//!   │ none │                                 │ due in  n+1 │ ◀┘
//!   └──────┘ ◀────────────────────────────── └─────────────┘
//!              the rest in counter n+1       ─▶ the packet
//!              n+1 without the rest          ─▶ ContinuationLost
//!              a counter above n+8           ─▶ ContinuationLost
//!              more than the packet has left ─▶ ContinuationOversize
//!              a newer beginning             ─▶ ContinuationLost, and the newer one is due
//! ```
//!
//! A lane holds one partial at a time. Of two, the one with the larger counter is kept: the datagram that could finish the other was
//! overtaken already. A rest that comes before its beginning is dropped: reordering costs the cut packets, never the whole ones.

use weir_abi::drop::DropReason;

use super::{Block, Control, block_at};

// Our own choices.

/// Longest packet that is put together: what an IPv4 packet may have, rounded up.
pub const PARTIAL_LEN_MAX: usize = 64 * 1024;
/// Newer counters that may arrive before a partial is given up. Paths that reorder do so by a few datagrams; trains arrive whole.
pub const CONTINUATION_HOLD: u64 = 8;
/// Size of a lane's first buffer for partials; it holds any packet of an Ethernet-sized MTU.
const BUFFER_LEN_SMALL: usize = 2 * 1024;

/// Where a packet was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It begins at this byte of the plaintext, which goes on to hold it.
    Plaintext(usize),
    /// It was put together, and lies where the next cut packet will lie.
    Rejoined {
        /// Whether any of the datagrams that brought it bore a congestion mark.
        marked: bool,
    },
}

/// Who gets what a plaintext holds.
pub trait Visitor {
    /// A whole packet, as long as its own header says. It may be changed in place.
    fn packet(&mut self, packet: &mut [u8], origin: Origin);
    /// A control block.
    fn control(&mut self, control: Control);
    /// Something was dropped: a packet's beginning or rest, a block, or everything after one that cannot be read.
    fn dropped(&mut self, reason: DropReason);
}

/// A packet whose rest is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    /// Counter of the newest piece; the rest is due one later.
    counter: u64,
    have: usize,
    packet_len: usize,
    marked: bool,
}

/// What the datagram at hand has brought for the packet that was to go on at its front.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// No packet goes on here.
    Unexpected,
    /// It is due and has not come yet.
    Due,
    /// Some of it, not all.
    More,
    /// All of it.
    Complete,
    /// Too much, or the drop was counted; further continuations are ignored.
    Dropped,
}

/// The receiving side of one lane's blocks.
///
/// It allocates when a partial first needs room: 2 KiB at the first cut packet, 64 KiB instead at the first one longer than that. Lanes
/// without cut packets cost nothing, and there is at most one allocation of each size in a lane's life.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: Option<Partial>,
    buffer: Box<[u8]>,
}

impl Reassembly {
    /// A lane's state before its first datagram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for cut packets of up to `len` bytes now, so that none is made on the packet path.
    pub fn reserve(&mut self, len: usize) {
        // A partial's bytes would be lost with the old buffer; what is already held keeps its room.
        if self.partial.is_none() && len.min(PARTIAL_LEN_MAX) > self.buffer.len() {
            let len = if len <= BUFFER_LEN_SMALL { BUFFER_LEN_SMALL } else { PARTIAL_LEN_MAX };
            self.buffer = vec![0; len].into_boxed_slice();
        }
    }

    /// Takes the plaintext of the datagram with this counter, which the replay window has accepted, and hands out what it holds, in order.
    /// `marked` tells whether the datagram bore a congestion mark, for the packets that more than one brings.
    ///
    /// A block that cannot be read ends the datagram; what came before it counts.
    pub fn feed(&mut self, counter: u64, marked: bool, plaintext: &mut [u8], visitor: &mut impl Visitor) {
        if self.partial.is_some_and(|partial| counter > partial.counter.saturating_add(CONTINUATION_HOLD)) {
            self.lose(visitor);
        }
        let due = self.partial.is_some_and(|partial| partial.counter.checked_add(1) == Some(counter));
        let mut rest = if due { Rest::Due } else { Rest::Unexpected };
        let mut at_front = true;
        let mut at = 0;
        while at < plaintext.len() {
            let (block, next) = match block_at(plaintext, at) {
                Ok(read) => read,
                Err(reason) => {
                    visitor.dropped(reason);
                    // A packet that goes on has a hole where the bad block is.
                    rest = if rest == Rest::More { Rest::Due } else { rest };
                    break;
                }
            };
            at = next;
            match block {
                Block::Continuation(piece) if at_front => {
                    rest = self.go_on(rest, marked, &plaintext[piece], visitor);
                    continue;
                }
                Block::Continuation(_) => {
                    visitor.dropped(DropReason::BlockMalformed);
                    break;
                }
                // Where a whole block had no room, a packet that goes on may leave a byte or two to padding.
                Block::Padding => break,
                Block::Packet(_) | Block::Beginning { .. } | Block::Control { .. } => {}
            }
            if at_front && matches!(rest, Rest::Due | Rest::More) {
                self.lose(visitor);
                rest = Rest::Dropped;
            }
            at_front = false;
            match block {
                Block::Packet(packet) => {
                    let origin = Origin::Plaintext(packet.start);
                    visitor.packet(&mut plaintext[packet], origin);
                }
                Block::Beginning { piece, packet_len } => {
                    let partial = Partial { counter, have: piece.len(), packet_len, marked };
                    self.begin(partial, &plaintext[piece], visitor);
                }
                Block::Control { kind, body } => match Control::parse(kind, &plaintext[body]) {
                    Ok(control) => visitor.control(control),
                    Err(reason) => visitor.dropped(reason),
                },
                Block::Continuation(_) | Block::Padding => {}
            }
        }
        match (rest, &mut self.partial) {
            (Rest::Due, _) => self.lose(visitor),
            (Rest::More, Some(partial)) => partial.counter = counter,
            _ => {}
        }
    }

    /// Whether a packet's rest is still to come.
    pub fn is_waiting(&self) -> bool {
        self.partial.is_some()
    }

    fn lose(&mut self, visitor: &mut impl Visitor) {
        if self.partial.take().is_some() {
            visitor.dropped(DropReason::ContinuationLost);
        }
    }

    fn begin(&mut self, begun: Partial, piece: &[u8], visitor: &mut impl Visitor) {
        if begun.packet_len > PARTIAL_LEN_MAX {
            visitor.dropped(DropReason::ContinuationOversize);
            return;
        }
        if self.partial.is_some_and(|partial| partial.counter > begun.counter) {
            visitor.dropped(DropReason::ContinuationLost);
            return;
        }
        self.lose(visitor);
        self.reserve(begun.packet_len);
        self.buffer[..piece.len()].copy_from_slice(piece);
        self.partial = Some(begun);
    }

    /// Adds a continuation's bytes to the partial, if there is one that they belong to.
    fn go_on(&mut self, rest: Rest, marked: bool, piece: &[u8], visitor: &mut impl Visitor) -> Rest {
        match (rest, &mut self.partial) {
            (Rest::Due | Rest::More, Some(partial)) => {
                let have = partial.have + piece.len();
                if have > partial.packet_len {
                    self.partial = None;
                    visitor.dropped(DropReason::ContinuationOversize);
                    return Rest::Dropped;
                }
                self.buffer[partial.have..have].copy_from_slice(piece);
                partial.have = have;
                partial.marked |= marked;
                if have < partial.packet_len {
                    return Rest::More;
                }
                let origin = Origin::Rejoined { marked: partial.marked };
                self.partial = None;
                visitor.packet(&mut self.buffer[..have], origin);
                Rest::Complete
            }
            (Rest::Complete, _) => {
                visitor.dropped(DropReason::ContinuationOversize);
                Rest::Dropped
            }
            (Rest::Dropped, _) => Rest::Dropped,
            (Rest::Unexpected | Rest::Due | Rest::More, _) => {
                visitor.dropped(DropReason::ContinuationOrphan);
                Rest::Dropped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hostile, rest, v4, v6};
    use super::super::{BEGINNING_LEN_MIN, packet_len};
    use super::*;
    use proptest::prelude::*;

    /// Everything that a visitor is told, in order.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Packet(Vec<u8>),
        Control(Control),
        Dropped(DropReason),
    }
    use Seen::Dropped;

    #[derive(Default)]
    struct Log(Vec<Seen>);

    impl Visitor for Log {
        fn packet(&mut self, packet: &mut [u8], _: Origin) {
            self.0.push(Seen::Packet(packet.to_vec()));
        }

        fn control(&mut self, control: Control) {
            self.0.push(Seen::Control(control));
        }

        fn dropped(&mut self, reason: DropReason) {
            self.0.push(Seen::Dropped(reason));
        }
    }

    fn feed(reassembly: &mut Reassembly, counter: u64, plaintext: &[u8]) -> Vec<Seen> {
        let mut log = Log::default();
        reassembly.feed(counter, false, &mut plaintext.to_vec(), &mut log);
        log.0
    }

    fn feed_new(plaintext: &[u8]) -> Vec<Seen> {
        feed(&mut Reassembly::new(), 0, plaintext)
    }

    fn packet(packet: &[u8]) -> Seen {
        Seen::Packet(packet.to_vec())
    }

    #[test]
    fn packets_and_controls_come_out_in_order_and_padding_ends_the_datagram() {
        let request = Control::EchoRequest(*b"12345678");
        let mut out = [0; Control::LEN_MAX];
        let len = request.encode(&mut out);
        let (a, b) = (v4(20), v6(40));
        let plaintext = [&out[..len], &a, &b, &a, &[0x00, 0x45, 0x99]].concat();
        assert_eq!(feed_new(&plaintext), [Seen::Control(request), packet(&a), packet(&b), packet(&a)]);
        assert_eq!(feed_new(&[]), []);
    }

    #[test]
    fn controls_survive_the_round_trip_and_odd_ones_are_dropped_alone() {
        for control in [Control::EchoRequest([7; 8]), Control::EchoReply([8; 8]), Control::Close] {
            let mut out = [0; Control::LEN_MAX];
            let len = control.encode(&mut out);
            assert_eq!(feed_new(&out[..len]), [Seen::Control(control)]);
        }
        for odd in
            [&[0x10, 0][..], &[0x14, 0], &[0x1f, 1, 0], &[0x13, 1, 0], &[0x11, 7, 0, 0, 0, 0, 0, 0, 0], &[0x12, 0]]
        {
            let plaintext = [odd, &v4(20)].concat();
            assert_eq!(feed_new(&plaintext), [Dropped(DropReason::ControlMalformed), packet(&v4(20))], "{odd:x?}");
        }
        let nine = [&[0x11, 9][..], &[0; 9]].concat();
        assert_eq!(feed_new(&nine), [Dropped(DropReason::ControlMalformed)]);
    }

    #[test]
    fn a_block_that_cannot_be_read_ends_the_datagram() {
        let whole = v4(20);
        let mut short_v4 = v4(24);
        short_v4[3] = 19;
        let cases: &[(&str, &[u8])] = &[
            ("nibble 3", &[0x30; 40]),
            ("nibble 5", &[0x50; 40]),
            ("nibble 7", &[0x70; 40]),
            ("nibble 15", &[0xf0; 40]),
            ("IPv4 total length 19", &short_v4),
            ("IPv4 without its length", &[0x45, 0, 0]),
            ("IPv4 beginning of 5 bytes", &v4(40)[..5]),
            ("IPv6 without its length", &v6(48)[..5]),
            ("control without length", &[0x11]),
            ("control body cut", &[0x11, 8, 0, 0, 0, 0, 0, 0, 0]),
            ("continuation not at the front", &rest(b"late")),
        ];
        for (name, bad) in cases {
            let plaintext = [&whole, *bad].concat();
            let mut reassembly = Reassembly::new();
            assert_eq!(
                feed(&mut reassembly, 0, &plaintext),
                [packet(&whole), Dropped(DropReason::BlockMalformed)],
                "{name}"
            );
            assert!(!reassembly.is_waiting(), "{name}");
        }
        for (name, bad) in [("half a header", &[0x20][..]), ("no bytes", &[0x20, 0]), ("cut", &[0x20, 2, 1])] {
            assert_eq!(feed_new(bad), [Dropped(DropReason::BlockMalformed)], "continuation: {name}");
        }
    }

    #[test]
    fn a_cut_packet_is_whole_again_wherever_it_was_cut() {
        for whole in [v4(100), v6(100)] {
            for cut in BEGINNING_LEN_MIN..whole.len() {
                let mut reassembly = Reassembly::new();
                let first = [&v4(20), &whole[..cut]].concat();
                assert_eq!(feed(&mut reassembly, 7, &first), [packet(&v4(20))]);
                assert!(reassembly.is_waiting());
                let second = [rest(&whole[cut..]), v4(21)].concat();
                assert_eq!(feed(&mut reassembly, 8, &second), [packet(&whole), packet(&v4(21))]);
                assert!(!reassembly.is_waiting());
            }
        }
    }

    #[test]
    fn a_long_packet_goes_on_over_blocks_and_datagrams() {
        let whole = v4(20_000);
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, 0, &whole[..5000]), []);
        let middle = [rest(&whole[5000..9095]), rest(&whole[9095..13_000]), vec![0; 2]].concat();
        assert_eq!(feed(&mut reassembly, 1, &middle), []);
        assert_eq!(feed(&mut reassembly, 2, &rest(&whole[13_000..15_000])), []);
        let last = [rest(&whole[15_000..19_000]), rest(&whole[19_000..])].concat();
        assert_eq!(feed(&mut reassembly, 3, &last), [packet(&whole)]);
    }

    #[test]
    fn a_packet_of_64_kib_is_put_together_and_none_longer() {
        let longest = v6(PARTIAL_LEN_MAX);
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, 0, &longest[..60_000]), []);
        let end = [rest(&longest[60_000..64_000]), rest(&longest[64_000..])].concat();
        assert_eq!(feed(&mut reassembly, 1, &end), [packet(&longest)]);
        let too_long = v6(PARTIAL_LEN_MAX + 1);
        assert_eq!(feed(&mut reassembly, 2, &too_long[..1000]), [Dropped(DropReason::ContinuationOversize)]);
        assert_eq!(feed(&mut reassembly, 3, &rest(&too_long[1000..2000])), [Dropped(DropReason::ContinuationOrphan)]);
    }

    #[test]
    fn a_partial_is_held_for_eight_counters() {
        let whole = v4(100);
        for (newer, expected) in [(8, vec![]), (9, vec![Dropped(DropReason::ContinuationLost)])] {
            let mut reassembly = Reassembly::new();
            assert_eq!(feed(&mut reassembly, 100, &whole[..50]), []);
            assert_eq!(feed(&mut reassembly, 100 + newer, &[]), expected);
            let late = feed(&mut reassembly, 101, &rest(&whole[50..]));
            match newer {
                8 => assert_eq!(late, [packet(&whole)]),
                _ => assert_eq!(late, [Dropped(DropReason::ContinuationOrphan)]),
            }
        }
    }

    #[test]
    fn a_rest_without_its_beginning_is_an_orphan_and_counts_once() {
        let plaintext = [rest(b"abc"), rest(b"def"), v4(20)].concat();
        let expected = [Dropped(DropReason::ContinuationOrphan), packet(&v4(20))];
        assert_eq!(feed_new(&plaintext), expected);
        // A partial that another datagram is to finish stays as it is.
        let whole = v4(100);
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, 5, &whole[..50]), []);
        assert_eq!(feed(&mut reassembly, 7, &plaintext), expected);
        assert_eq!(feed(&mut reassembly, 4, &plaintext), expected);
        assert_eq!(feed(&mut reassembly, 6, &rest(&whole[50..])), [packet(&whole)]);
    }

    #[test]
    fn a_rest_that_does_not_come_is_lost_at_once() {
        let whole = v4(100);
        for instead in [vec![], v4(20), vec![0; 9]] {
            let mut reassembly = Reassembly::new();
            assert_eq!(feed(&mut reassembly, 5, &whole[..50]), []);
            let seen = feed(&mut reassembly, 6, &instead);
            assert_eq!(seen[0], Dropped(DropReason::ContinuationLost), "lost before what follows it");
            assert!(!reassembly.is_waiting());
            assert_eq!(feed(&mut reassembly, 7, &rest(&whole[50..])), [Dropped(DropReason::ContinuationOrphan)]);
        }
        // Some of the rest, then another block: the packet has a hole.
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, 5, &whole[..50]), []);
        let hole = [rest(&whole[50..60]), v4(20)].concat();
        assert_eq!(feed(&mut reassembly, 6, &hole), [Dropped(DropReason::ContinuationLost), packet(&v4(20))]);
        assert!(!reassembly.is_waiting());
        assert_eq!(feed(&mut reassembly, 15, &whole[..50]), []);
        let hole = [rest(&whole[50..60]), vec![0x30]].concat();
        let both = [Dropped(DropReason::BlockMalformed), Dropped(DropReason::ContinuationLost)];
        assert_eq!(feed(&mut reassembly, 16, &hole), both);
        assert!(!reassembly.is_waiting());
    }

    #[test]
    fn more_than_the_packet_has_left_is_oversize() {
        let whole = v4(100);
        let exact = rest(&whole[50..]);
        let mut long = whole[50..].to_vec();
        long.push(0);
        let two = [exact.clone(), rest(b"x"), rest(b"y")].concat();
        for (bytes, expected) in [
            (exact, vec![packet(&whole)]),
            (rest(&long), vec![Dropped(DropReason::ContinuationOversize)]),
            (two, vec![packet(&whole), Dropped(DropReason::ContinuationOversize)]),
        ] {
            let mut reassembly = Reassembly::new();
            assert_eq!(feed(&mut reassembly, 5, &whole[..50]), []);
            assert_eq!(feed(&mut reassembly, 6, &bytes), expected);
            assert!(!reassembly.is_waiting());
        }
    }

    #[test]
    fn of_two_partials_the_newer_is_kept() {
        let (a, b) = (v4(100), v6(101));
        let lost = [Dropped(DropReason::ContinuationLost)];
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, 5, &a[..50]), []);
        assert_eq!(feed(&mut reassembly, 8, &b[..50]), lost, "the older gives way");
        assert_eq!(feed(&mut reassembly, 7, &a[..50]), lost, "an older one does not push it out");
        assert_eq!(feed(&mut reassembly, 9, &rest(&b[50..])), [packet(&b)]);
    }

    #[test]
    fn nothing_waits_for_a_counter_that_does_not_exist() {
        let whole = v4(100);
        let mut reassembly = Reassembly::new();
        assert_eq!(feed(&mut reassembly, u64::MAX, &whole[..50]), []);
        assert_eq!(feed(&mut reassembly, 0, &rest(&whole[50..])), [Dropped(DropReason::ContinuationOrphan)]);
    }

    #[test]
    fn room_is_made_once_for_each_size_and_only_when_a_packet_is_cut() {
        let mut reassembly = Reassembly::new();
        let mut counter = 0;
        for (len, room) in [(1500, 2048), (2048, 2048), (20, 2048), (2049, 65_536), (1500, 65_536), (60_000, 65_536)] {
            assert_eq!(feed(&mut reassembly, counter, &v4(len)[..15]), []);
            assert_eq!(reassembly.buffer.len(), room);
            feed(&mut reassembly, counter + 1, &[]);
            counter += 2;
        }
        let mut reassembly = Reassembly::new();
        feed(&mut reassembly, 0, &v4(1500));
        assert_eq!(reassembly.buffer.len(), 0);
        reassembly.reserve(9000);
        assert_eq!(reassembly.buffer.len(), 65_536);
        assert!(size_of::<Reassembly>() <= 64, "a lane without cut packets stays small");
    }

    proptest! {
        #[test]
        fn hostile_plaintexts_neither_panic_nor_yield_anything_but_packets(
            plaintexts in prop::collection::vec((0..30u64, hostile()), 1..30),
        ) {
            let mut reassembly = Reassembly::new();
            for (counter, plaintext) in plaintexts {
                for seen in feed(&mut reassembly, counter, &plaintext) {
                    if let Seen::Packet(bytes) = seen {
                        prop_assert_eq!(packet_len(&bytes), Some(bytes.len()));
                    }
                }
            }
        }
    }
}
