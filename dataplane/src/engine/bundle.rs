//! Bundling: the packets that wait for one lane become trains of datagrams.
//!
//! Everything that waits goes out now; nothing is kept back in the hope of company. What waits is first laid out on paper, by lengths alone,
//! in two ways, and the cheaper one is carried out:
//!
//! ```text
//!  whole   ┌────┬──┬───┐  ┌────────┐  ┌───┬──────┐      packets in order, as many as fit; datagrams of many sizes,
//!          │ a  │b │ c │  │   d    │  │ e │  f   │      so several sends (a UDP_SEGMENT train needs equal sizes,
//!          └────┴──┴───┘  └────────┘  └───┴──────┘      except that the last may be shorter)
//!
//!  cut     ┌────┬──┬────┬────┐  ┌─┬───────┬──┬───┐      each datagram is filled; what does not fit goes on at the front
//!          │ a  │b │ c  │ d… │  │2│ …d    │ e│ f…│ …    of the next; one size, one send for 64 datagrams or 65,000 bytes
//!          └────┴──┴────┴────┘  └─┴───────┴──┴───┘
//! ```
//!
//! `cut` is chosen when it needs fewer sends, or as many sends and over an eighth fewer datagrams: segments of one size, as TCP makes
//! them, stay whole, so that a lost datagram costs one packet and not two. A packet longer than a datagram is cut either way. When all
//! fits into one datagram, the two are the same and nothing is cut.
//!
//! **A plan is carried out to its end or given up there.** The opening side joins a rest to the beginning in the datagram with the counter
//! before; if a train in the middle were left out and the next one sealed, it would join two packets. [`transmit`] keeps to this.
//!
//! Costs: planning 64 packets takes 0.3 to 3 µs (measured with debug assertions on), against 13 µs for sealing as many datagrams of
//! 1400 bytes. Random IMIX goes out in one send, with 0.14 % more bytes than headers and tags alone would cost. Laying out copies each
//! byte once, into the buffer that is sealed in place and sent. Nothing is allocated. This part does not know sockets, sessions, or what
//! is in a packet.

mod transmit;

pub use transmit::{LayError, Packets, Sent, transmit};

use weir_abi::wire::DATA_LEN_MIN;
use weir_abi::wire::block::{CONTINUATION_HEADER_LEN, CONTINUATION_LEN_MAX};

use super::block::BEGINNING_LEN_MIN;
use super::port::{TRAIN_LEN_MAX, TRAIN_SEGMENTS_MAX};

// Our own choices.

/// Most packets in one plan: two full trains of datagrams that each hold one. A superpacket of 64 KiB has 46 segments of Ethernet's size.
pub const BATCH_LEN_MAX: usize = 2 * TRAIN_SEGMENTS_MAX;
/// Shortest UDP payload of a path that carries a session: what every IPv4 host must take (576, RFC 1122 §3.3.2), less IPv4 and UDP headers.
pub const DATAGRAM_LEN_MIN: u16 = 548;
/// Most bytes of control blocks in one plan: they are not cut, so they fit into every path's datagram.
pub const CONTROL_LEN_MAX: usize = DATAGRAM_LEN_MIN as usize - DATA_LEN_MIN;
/// Of the datagrams, cutting must save more than one in this many when it saves no send. Uniform segments of a path's MSS would save one
/// in twenty or so and are better left whole.
const CUT_SAVES_ONE_IN: usize = 8;

/// Plaintext bytes that one datagram of a path carries, within bounds that let every plan come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadLen(u16);

impl PayloadLen {
    /// For a path whose longest UDP payload is `datagram_len_max`; `None` when that is below [`DATAGRAM_LEN_MIN`]. Beyond
    /// [`TRAIN_LEN_MAX`] the rest is not used.
    pub fn new(datagram_len_max: u16) -> Option<Self> {
        let len = datagram_len_max.min(TRAIN_LEN_MAX as u16);
        (len >= DATAGRAM_LEN_MIN).then_some(Self(len - DATA_LEN_MIN as u16))
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
}

/// Which packets may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Those that fit no datagram.
    Oversized,
    /// Any that does not end with its datagram.
    Any,
}

/// What goes into a datagram next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// All control blocks.
    Control,
    /// `len` bytes of a packet, from byte `from`; in a continuation block unless `from` is zero.
    Packet { packet: usize, from: usize, len: usize },
    /// So many zeros.
    Padding(usize),
}

/// How far a plan has got: what the next datagram begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    control_done: bool,
    packet: usize,
    offset: usize,
}

/// How a batch becomes datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    lens: &'a [u32],
    control_len: usize,
    payload: usize,
    cut: Cut,
    /// Packets in every datagram but the last, when lengths alone say so: segments of one size, as most bursts are. Zero when the packets
    /// have to be looked at one by one.
    each: usize,
}

impl<'a> Plan<'a> {
    /// Plans the packets of these lengths, at most [`BATCH_LEN_MAX`], after `control_len` bytes of control blocks, at most
    /// [`CONTROL_LEN_MAX`].
    pub fn new(control_len: usize, lens: &'a [u32], payload: PayloadLen) -> Self {
        debug_assert!(lens.len() <= BATCH_LEN_MAX && control_len <= CONTROL_LEN_MAX);
        let payload = payload.bytes();
        let each = if control_len == 0 { equal_packets(lens, payload) } else { 0 };
        let whole = Self { lens, control_len, payload, cut: Cut::Oversized, each };
        let bytes = lens.iter().fold(control_len, |sum, len| sum + *len as usize);
        if bytes <= whole.payload {
            return whole;
        }
        let cut = Self { cut: Cut::Any, each: 0, ..whole };
        let count = |plan: Self| {
            plan.trains().fold((0, 0), |(sends, datagrams), train| (sends + 1, datagrams + train.datagrams))
        };
        let (whole_sends, whole_datagrams) = count(whole);
        let is_better = |(sends, datagrams): (usize, usize)| {
            let saved = whole_datagrams.saturating_sub(datagrams);
            sends < whole_sends || (sends == whole_sends && saved * CUT_SAVES_ONE_IN > whole_datagrams)
        };
        // What cutting could come to if it were free; for TCP's uniform segments this alone settles it.
        let datagrams = bytes.div_ceil(whole.payload);
        let sends = (bytes + datagrams * DATA_LEN_MIN).div_ceil(TRAIN_LEN_MAX);
        if whole_datagrams > 1 && is_better((sends, datagrams)) && is_better(count(cut)) { cut } else { whole }
    }

    /// The trains, in the order in which they must be sealed and sent.
    pub fn trains(&self) -> Trains<'a> {
        Trains { plan: *self, place: Place::default() }
    }

    /// Fills one datagram from `place` on and moves `place` behind it. Returns the plaintext's length; `None` when nothing is left.
    fn datagram(&self, place: &mut Place, mut lay: impl FnMut(Piece)) -> Option<usize> {
        let mut used = 0;
        if !place.control_done {
            place.control_done = true;
            if self.control_len > 0 {
                lay(Piece::Control);
                used = self.control_len;
            }
        }
        while let Some(&len) = self.lens.get(place.packet) {
            let len = len as usize;
            let room = self.payload.saturating_sub(used);
            let (header, most) = match place.offset {
                // Nearly every packet.
                0 if len <= room => {
                    lay(Piece::Packet { packet: place.packet, from: 0, len });
                    used += len;
                    place.packet += 1;
                    continue;
                }
                0 if self.cut == Cut::Oversized && len <= self.payload => break,
                0 if room < BEGINNING_LEN_MIN => (0, 0),
                0 => (0, room),
                _ => (CONTINUATION_HEADER_LEN, room.saturating_sub(CONTINUATION_HEADER_LEN).min(CONTINUATION_LEN_MAX)),
            };
            let bytes = most.min(len - place.offset);
            if bytes == 0 && len > 0 {
                // A train's datagrams have one size, so the few bytes that no block can use are padded.
                if room > 0 {
                    lay(Piece::Padding(room));
                    used += room;
                }
                break;
            }
            lay(Piece::Packet { packet: place.packet, from: place.offset, len: bytes });
            used += header + bytes;
            place.offset += bytes;
            if place.offset == len {
                *place = Place { packet: place.packet + 1, offset: 0, ..*place };
            }
        }
        (used > 0).then_some(used)
    }
}

/// How many packets go into one datagram when all have one length, but for the last, which may be shorter unless it would slip into the rest
/// of a full datagram. Zero when they are not like that.
fn equal_packets(lens: &[u32], payload: usize) -> usize {
    let Some((&last, [first, others @ ..])) = lens.split_last() else { return 0 };
    let (last, len) = (last as usize, *first as usize);
    if len == 0 || len > payload || last > len || others.iter().any(|other| other != first) {
        return 0;
    }
    if last == len || last > payload % len { payload / len } else { 0 }
}

/// The trains of a [`Plan`].
#[derive(Clone, Debug)]
pub struct Trains<'a> {
    plan: Plan<'a>,
    place: Place,
}

impl<'a> Trains<'a> {
    /// Packets of the batch that are wholly in the trains so far.
    pub const fn packets_done(&self) -> usize {
        self.place.packet
    }

    /// The next train of equal packets: what the walk would find, without it.
    fn next_of_equals(&mut self) -> Option<Train<'a>> {
        let (plan, from) = (self.plan, self.place);
        let (&[len, ..], &[.., last]) = (plan.lens.get(from.packet..)?, plan.lens) else { return None };
        let (len, last) = (len as usize, last as usize);
        let left = plan.lens.len() - from.packet;
        let datagrams = left.div_ceil(plan.each);
        let full = DATA_LEN_MIN + plan.each * len;
        let end = DATA_LEN_MIN + (left - (datagrams - 1) * plan.each - 1) * len + last;
        let all = Train {
            plan,
            from,
            size: if datagrams > 1 { full } else { end },
            datagrams,
            len: (datagrams - 1) * full + end,
        };
        if datagrams <= TRAIN_SEGMENTS_MAX && all.len <= TRAIN_LEN_MAX {
            self.place.packet = plan.lens.len();
            return Some(all);
        }
        let datagrams = TRAIN_SEGMENTS_MAX.min(TRAIN_LEN_MAX / full);
        self.place.packet += datagrams * plan.each;
        Some(Train { datagrams, len: datagrams * full, ..all })
    }
}

impl<'a> Iterator for Trains<'a> {
    type Item = Train<'a>;

    fn next(&mut self) -> Option<Train<'a>> {
        if self.plan.each > 0 {
            return self.next_of_equals();
        }
        let from = self.place;
        let size = DATA_LEN_MIN + self.plan.datagram(&mut self.place, |_| {})?;
        let mut train = Train { plan: self.plan, from, size, datagrams: 1, len: size };
        while train.datagrams < TRAIN_SEGMENTS_MAX {
            let mut place = self.place;
            let Some(plaintext) = self.plan.datagram(&mut place, |_| {}) else { break };
            let len = DATA_LEN_MIN + plaintext;
            if len > size || train.len + len > TRAIN_LEN_MAX {
                break;
            }
            self.place = place;
            train.datagrams += 1;
            train.len += len;
            if len < size {
                break;
            }
        }
        Some(train)
    }
}

/// Datagrams that go out with one send: all of one size, the last one perhaps shorter.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    plan: Plan<'a>,
    from: Place,
    size: usize,
    datagrams: usize,
    len: usize,
}

impl Train<'_> {
    /// Bytes of the whole train on the wire, headers and tags included; at most [`TRAIN_LEN_MAX`].
    #[allow(clippy::len_without_is_empty, reason = "a train holds at least one datagram")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Datagrams in it, at least one and at most [`TRAIN_SEGMENTS_MAX`].
    pub const fn datagrams(&self) -> usize {
        self.datagrams
    }

    /// What [`TxMeta::segment`](super::port::TxMeta::segment) must say: the size of each datagram but the last, or zero when there is
    /// only one.
    pub const fn segment(&self) -> u16 {
        // `TRAIN_LEN_MAX` is below 2^16.
        if self.datagrams > 1 { self.size as u16 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// UDP over IPv4 in 1500 bytes.
    pub(super) const ETHERNET: u16 = 1472;

    pub(super) fn payload(datagram_len_max: u16) -> PayloadLen {
        PayloadLen::new(datagram_len_max).unwrap()
    }

    /// Sizes of the datagrams of each train.
    fn sizes(plan: &Plan<'_>) -> Vec<Vec<usize>> {
        plan.trains()
            .map(|train| {
                let mut sizes = vec![train.size; train.datagrams];
                *sizes.last_mut().unwrap() = train.len - train.size * (train.datagrams - 1);
                sizes
            })
            .collect()
    }

    #[test]
    fn what_fits_one_datagram_is_one_datagram() {
        let lens = [1000, 400, 30];
        assert_eq!(sizes(&Plan::new(10, &lens, payload(ETHERNET))), [[1472]]);
        assert_eq!(sizes(&Plan::new(0, &[1440], payload(ETHERNET))), [[1472]]);
        assert_eq!(sizes(&Plan::new(12, &[], payload(ETHERNET))), [[44]]);
        assert!(sizes(&Plan::new(0, &[], payload(ETHERNET))).is_empty());
        // One byte more is two datagrams.
        let sizes = sizes(&Plan::new(11, &lens, payload(ETHERNET)));
        assert_eq!(sizes.concat().len(), 2);
    }

    #[test]
    fn uniform_segments_stay_whole_and_go_out_as_one_size() {
        for (len, per_datagram) in [(1400, 1), (1440, 1), (1300, 1), (700, 2), (470, 3), (64, 22)] {
            for count in [2, 10, 44, 63, 64] {
                let lens = vec![len; count];
                let plan = Plan::new(0, &lens, payload(ETHERNET));
                if count > per_datagram {
                    assert_eq!(plan.cut, Cut::Oversized, "{count} of {len}");
                }
                let sizes = sizes(&plan);
                let datagrams = sizes.concat();
                assert_eq!(datagrams.len(), count.div_ceil(per_datagram), "{count} of {len}");
                let whole = DATA_LEN_MIN + per_datagram * len as usize;
                assert!(datagrams[..datagrams.len() - 1].iter().all(|size| *size == whole), "{count} of {len}");
                let most = (TRAIN_LEN_MAX / whole).min(TRAIN_SEGMENTS_MAX);
                assert_eq!(sizes.len(), datagrams.len().div_ceil(most), "{count} of {len}");
            }
        }
    }

    #[test]
    fn cutting_needs_a_send_or_more_than_an_eighth_of_the_datagrams() {
        let chosen = |lens: &[u32]| Plan::new(0, lens, payload(ETHERNET)).cut;
        // Two sends whole, one cut.
        assert_eq!(chosen(&[100, 1400]), Cut::Any);
        // One send either way: 16 datagrams whole, 14 cut (an eighth), 13 cut.
        let cut_of = |len: u32| {
            let lens = [len; 16];
            let plan = Plan { lens: &lens, control_len: 0, payload: 1440, cut: Cut::Any, each: 0 };
            (sizes(&plan).concat().len(), chosen(&lens))
        };
        assert_eq!(cut_of(1250), (14, Cut::Oversized));
        assert_eq!(cut_of(1160), (13, Cut::Any));
    }

    #[test]
    fn a_packet_longer_than_a_datagram_is_always_cut() {
        for (len, datagrams) in [(1440, 1), (1441, 2), (1440 + 1438, 2), (1440 + 1439, 3), (65_535, 46)] {
            let lens = [len];
            let sizes = sizes(&Plan::new(0, &lens, payload(ETHERNET))).concat();
            assert_eq!(sizes.len(), datagrams, "{len} bytes");
            assert!(sizes[..datagrams - 1].iter().all(|size| *size == usize::from(ETHERNET)));
        }
    }

    #[test]
    fn paths_that_are_too_small_carry_nothing() {
        assert_eq!(PayloadLen::new(DATAGRAM_LEN_MIN - 1), None);
        assert_eq!(payload(DATAGRAM_LEN_MIN).bytes(), 516);
        assert_eq!(payload(DATAGRAM_LEN_MIN).bytes(), CONTROL_LEN_MAX);
        assert_eq!(payload(u16::MAX).bytes(), TRAIN_LEN_MAX - DATA_LEN_MIN);
    }

    /// A little generator, so that the mixes below are the same in every run.
    fn mix(seed: &mut u64, choices: &[u32]) -> u32 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        choices[(*seed >> 33) as usize % choices.len()]
    }

    /// Runs batches of 64 packets of a mix. Returns most sends of a batch, and bytes in millionths of what one packet run without any
    /// border would need.
    fn cost(choices: &[u32], force: Option<Cut>) -> (usize, u64) {
        let (mut most, mut bytes, mut ideal, mut seed) = (0, 0, 0, 7);
        for _ in 0..500 {
            let lens: Vec<u32> = (0..64).map(|_| mix(&mut seed, choices)).collect();
            let mut plan = Plan::new(0, &lens, payload(ETHERNET));
            plan = force.map_or(plan, |cut| Plan { cut, each: 0, ..plan });
            let sizes = sizes(&plan);
            most = most.max(sizes.len());
            bytes += sizes.concat().iter().sum::<usize>() as u64;
            let plain = lens.iter().sum::<u32>() as u64;
            ideal += plain + plain.div_ceil(1440) * DATA_LEN_MIN as u64;
        }
        (most, bytes * 1_000_000 / ideal)
    }

    /// Seven of 40 bytes, four of 576, one as long as the inner MTU.
    const IMIX: [u32; 12] = [40, 40, 40, 40, 40, 40, 40, 576, 576, 576, 576, 1400];
    /// A download and its acknowledgements.
    const ACK_AND_MSS: [u32; 2] = [52, 1400];

    #[test]
    fn a_mix_goes_out_in_two_sends_with_one_percent_more_bytes_at_most() {
        for choices in [&IMIX[..], &ACK_AND_MSS] {
            let (sends, millionths) = cost(choices, None);
            assert!(sends <= 2, "{sends} sends");
            assert!(millionths <= 1_010_000, "{millionths} millionths of the bytes");
            let (sends, _) = cost(choices, Some(Cut::Oversized));
            assert!(sends >= 8, "{sends} sends are what cutting saves");
        }
    }

    /// Lengths as traffic has them: small, around a datagram's, beyond it, and now and then very long.
    pub(super) fn lens() -> impl Strategy<Value = Vec<u32>> {
        let len = prop_oneof![
            4 => 20..200u32,
            2 => prop::sample::select(&[40u32, 52, 576, 1280, 1400, 1440][..]),
            2 => 20..1600u32,
            1 => 500..560u32,
            1 => 1400..3000u32,
        ];
        prop_oneof![
            4 => prop::collection::vec(len.clone(), 0..=BATCH_LEN_MAX),
            1 => (len, 1..=BATCH_LEN_MAX).prop_map(|(len, count)| vec![len; count]),
            1 => prop::collection::vec(20..65_535u32, 1..4),
        ]
    }

    pub(super) fn path() -> impl Strategy<Value = PayloadLen> {
        prop_oneof![Just(ETHERNET), DATAGRAM_LEN_MIN..700, 1200..1500u16, 8000..9000u16, Just(u16::MAX)]
            .prop_map(payload)
    }

    proptest! {
        #[test]
        fn trains_of_equal_packets_are_those_that_a_walk_finds(
            len in prop_oneof![1..70u32, 400..1500u32, 8000..9000u32, 20..65_535u32],
            last in prop_oneof![0..100u32, 0..65_535u32],
            count in 1..=BATCH_LEN_MAX,
            last_is_alone: bool,
            path in path(),
        ) {
            let payload = path.bytes();
            // A last packet that begins a datagram, or might slip into the one before, is rare by chance.
            let each = (payload / len as usize).max(1);
            let count = if last_is_alone { (count - 1) / each * each + 1 } else { count };
            let mut lens = vec![len; count];
            lens[count - 1] = 1 + last % len;
            let walked = Plan { lens: &lens, control_len: 0, payload, cut: Cut::Oversized, each: 0 };
            let plan = Plan { each: equal_packets(&lens, payload), ..walked };
            prop_assert_eq!(sizes(&plan), sizes(&walked));
            let (mut trains, mut walk) = (plan.trains(), walked.trains());
            while walk.next().is_some() {
                prop_assert!(trains.next().is_some());
                prop_assert_eq!(trains.packets_done(), walk.packets_done());
            }
        }

        #[test]
        fn trains_keep_to_their_limits_and_whole_plans_do_not_cut(lens in lens(), control in 0..=64usize, path in path()) {
            let plan = Plan::new(control, &lens, path);
            let mut trains = plan.trains();
            let (mut pieces, mut place) = (Vec::new(), Place::default());
            for train in trains.by_ref() {
                prop_assert!(train.len() <= TRAIN_LEN_MAX && train.datagrams() <= TRAIN_SEGMENTS_MAX);
                prop_assert!(train.size <= path.bytes() + DATA_LEN_MIN);
                let sizes: Vec<_> = (0..train.datagrams())
                    .map(|_| DATA_LEN_MIN + plan.datagram(&mut place, |piece| pieces.push(piece)).unwrap())
                    .collect();
                let (last, others) = sizes.split_last().unwrap();
                prop_assert!(others.iter().all(|size| *size == train.size) && *last <= train.size);
                prop_assert_eq!(sizes.iter().sum::<usize>(), train.len());
            }
            prop_assert_eq!(trains.packets_done(), lens.len());
            for piece in pieces {
                if let Piece::Packet { packet, len, .. } = piece && plan.cut == Cut::Oversized {
                    let whole = lens[packet] as usize;
                    prop_assert!(len == whole || whole > path.bytes());
                }
            }
        }
    }
}
