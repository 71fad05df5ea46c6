//! Flows that the policy has let open, for all workers of a plane: a table of fixed size that nobody waits for.
//!
//! ```text
//!   flow ─▶ keyed hash ─▶ bucket │ tag, state │ tag, state │ … 8 places, two cache lines
//!
//!    63                            32 31                         8 7    6    5 4  3   2   1    0
//!   +--------------------------------+----------------------------+------+----+-----+-----+-----+
//!   | seconds (of 2^30 ns) last seen | of which policy            | kind |    |reset| fin | fin |  see [`State`]
//!   +--------------------------------+----------------------------+------+----+-----+-----+-----+
//! ```
//!
//! **The two directions of a flow may be different workers'.** What the local side sends goes by the flow's hash, what a peer sends by the
//! lane of the peer's worker. So there is one table, of atomic words and without a lock. A place is taken by exchanging its tag for
//! [`BUSY`], and has its new tag only after its new state; who reads looks at the tag before and after the state. Two workers that open one
//! flow in the same instant may take two places for it: the one is found, the other dies of age.
//!
//! **A flow is known by 64 bits**, of a hash under keys that nobody else has. The hash is strongly universal (Lemire and Kaser, "Strongly
//! universal string hashing is fast", 2014): whatever packets somebody chooses, one that belongs to no flow meets the tag of one of `n`
//! flows with a probability of `n` in 2^64. With a full table that is one packet let in in 2^46, and it costs a quarter of the memory that
//! the addresses would take.
//!
//! **At the limit** a new flow takes the place of the one that has been silent longest among those that nobody has answered; where all
//! eight were answered, it is refused. So whoever opens flows to hosts that do not answer displaces only such flows.
//!
//! Nothing is swept: a place whose time is over counts as free. A packet that changes nothing writes nothing, and the second of the last
//! packet is written once a second.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::engine::time::Time;

/// Flows of a plane: 4 MiB. A gateway of 10,000 hosts has some ten flows of each.
pub const FLOWS_MAX: usize = 1 << 18;
/// Places of a bucket.
pub(super) const WAYS: usize = 8;
/// The tag of a free place.
const FREE: u64 = 0;
/// The tag of a place that is being taken.
const BUSY: u64 = 1;
/// How often a new flow looks for a place again because another worker was faster.
const ATTEMPTS: usize = 4;
/// A second as it is counted here: 2^30 nanoseconds.
const TICK_SHIFT: u32 = 30;

// How long a flow may be silent. RFC 5382 REQ-5: at least 2 h 4 min for TCP connections, 4 min while they open or close; RFC 4787 REQ-5: at least
// 2 min for UDP, 5 recommended; RFC 5508 REQ-2: at least 60 s for ICMP queries. The others are ours: after a reset only what was on its
// way follows; fragments come together or not at all (Linux waits 30 s for them, `ipfrag_time`); all else as Linux tracks it.
const TCP_OPEN: u32 = ticks(Duration::from_secs(7440));
const TCP_TRANSITORY: u32 = ticks(Duration::from_secs(240));
const TCP_RESET: u32 = ticks(Duration::from_secs(10));
const UDP_ANSWERED: u32 = ticks(Duration::from_secs(300));
const UDP_UNANSWERED: u32 = ticks(Duration::from_secs(120));
const QUERY: u32 = ticks(Duration::from_secs(60));
const FRAGMENTS: u32 = ticks(Duration::from_secs(30));
const OTHER: u32 = ticks(Duration::from_secs(600));

/// A time in ticks, not less than it is.
const fn ticks(time: Duration) -> u32 {
    (time.as_nanos() >> TICK_SHIFT) as u32 + 2
}

/// What a flow is of, which says how it ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Tcp = 0,
    Udp = 1,
    /// ICMP echo, or the fragments of one packet: both short.
    Brief = 2,
    Other = 3,
}

impl Kind {
    /// Whether what tells such flows apart are ports that rules may name.
    pub(super) const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

/// What is known of a flow, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    /// A FIN of the side that opened.
    const FIN_OPENER: u64 = 1 << 0;
    /// A FIN of the other side.
    const FIN_ANSWERER: u64 = 1 << 1;
    const RESET: u64 = 1 << 2;
    const ANSWERED: u64 = 1 << 3;
    /// The side that opened is the higher end.
    const FROM_HIGH: u64 = 1 << 4;
    /// It stands for the fragments of a packet.
    const FRAGMENTS: u64 = 1 << 5;
    const KIND_SHIFT: u32 = 6;
    const EPOCH_SHIFT: u32 = 8;
    const EPOCH_MASK: u64 = 0xff_ffff;
    const SEEN_SHIFT: u32 = 32;

    /// A flow that opens now, under this policy.
    pub(super) const fn opened(kind: Kind, from_high: bool, epoch: u32, now: Tick) -> Self {
        let from_high = if from_high { Self::FROM_HIGH } else { 0 };
        Self(from_high | (kind as u64) << Self::KIND_SHIFT).with_epoch(epoch).with_seen(now)
    }

    /// The fragments of a packet whose first one has passed.
    pub(super) const fn fragments(epoch: u32, now: Tick) -> Self {
        Self(Self::opened(Kind::Brief, false, epoch, now).0 | Self::FRAGMENTS)
    }

    pub(super) const fn kind(self) -> Kind {
        match self.0 >> Self::KIND_SHIFT & 3 {
            0 => Kind::Tcp,
            1 => Kind::Udp,
            2 => Kind::Brief,
            _ => Kind::Other,
        }
    }

    const fn seen(self) -> u32 {
        (self.0 >> Self::SEEN_SHIFT) as u32
    }

    const fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether this packet, from the higher end or the lower, goes the way of the one that opened.
    pub(super) const fn is_opener(self, from_high: bool) -> bool {
        self.is(Self::FROM_HIGH) == from_high
    }

    /// Whether it was let open, or let go on, by the policy with this number.
    pub(super) const fn is_of(self, epoch: u32) -> bool {
        self.0 >> Self::EPOCH_SHIFT & Self::EPOCH_MASK == epoch as u64 & Self::EPOCH_MASK
    }

    pub(super) const fn with_epoch(self, epoch: u32) -> Self {
        let others = self.0 & !(Self::EPOCH_MASK << Self::EPOCH_SHIFT);
        Self(others | (epoch as u64 & Self::EPOCH_MASK) << Self::EPOCH_SHIFT)
    }

    const fn with_seen(self, now: Tick) -> Self {
        Self(self.0 & !(u64::MAX << Self::SEEN_SHIFT) | (now.0 as u64) << Self::SEEN_SHIFT)
    }

    /// After a packet of the flow.
    pub(super) fn after(self, from_high: bool, fin: bool, reset: bool, now: Tick) -> Self {
        let is_opener = self.is_opener(from_high);
        let mut flags = if is_opener { 0 } else { Self::ANSWERED };
        if fin {
            flags |= if is_opener { Self::FIN_OPENER } else { Self::FIN_ANSWERER };
        }
        if reset {
            flags |= Self::RESET;
        }
        // Another worker may have a later look at the clock.
        let seen = Tick(self.seen().max(now.0));
        Self(self.0 | flags).with_seen(seen)
    }

    /// Whether a reset or both sides' FINs were seen.
    pub(super) const fn is_closing(self) -> bool {
        self.is(Self::RESET) || self.is(Self::FIN_OPENER) && self.is(Self::FIN_ANSWERER)
    }

    /// Ticks that it may be silent.
    const fn patience(self) -> u32 {
        match self.kind() {
            Kind::Tcp if self.is(Self::RESET) => TCP_RESET,
            Kind::Tcp if self.is_closing() => TCP_TRANSITORY,
            Kind::Tcp if self.is(Self::ANSWERED) => TCP_OPEN,
            Kind::Tcp => TCP_TRANSITORY,
            Kind::Udp if self.is(Self::ANSWERED) => UDP_ANSWERED,
            Kind::Udp => UDP_UNANSWERED,
            Kind::Brief if self.is(Self::FRAGMENTS) => FRAGMENTS,
            Kind::Brief => QUERY,
            Kind::Other => OTHER,
        }
    }

    const fn silent_for(self, now: Tick) -> u32 {
        now.0.saturating_sub(self.seen())
    }

    pub(super) const fn is_live(self, now: Tick) -> bool {
        self.silent_for(now) < self.patience()
    }
}

/// A moment, as fine as flows are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

impl From<Time> for Tick {
    fn from(time: Time) -> Self {
        Self((time.as_nanos() >> TICK_SHIFT) as u32)
    }
}

/// What tells flows apart, the same for both directions, and which direction this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) tag: u64,
    /// The packet comes from the higher end.
    pub(super) from_high: bool,
}

/// Keys of the hash. Never printed: who knows them can make packets that pass for replies.
#[derive(Clone)]
pub struct HashKeys(pub [u128; 6]);

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys(…)")
    }
}

#[derive(Debug, Default)]
struct Place {
    tag: AtomicU64,
    state: AtomicU64,
}

impl Place {
    /// The state of the flow with this tag, if it is here.
    fn read(&self, tag: u64) -> Option<State> {
        if self.tag.load(Ordering::Acquire) != tag {
            return None;
        }
        let state = State(self.state.load(Ordering::Relaxed));
        // If the state is already another flow's, the tag is seen to have changed.
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == tag).then_some(state)
    }

    /// Puts a flow here in place of `before`; fails when another worker has done something with it.
    fn take(&self, before: u64, tag: u64, state: State) -> bool {
        if self.tag.compare_exchange(before, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        fence(Ordering::Release);
        self.state.store(state.0, Ordering::Relaxed);
        self.tag.store(tag, Ordering::Release);
        true
    }
}

/// Places that flows with the same low bits of the hash share.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Bucket([Place; WAYS]);

/// A flow that was found.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    place: &'a Place,
    pub(super) state: State,
}

impl Found<'_> {
    /// Writes what has changed. Another worker that wrote since had a packet of the same flow, and its word is as good.
    pub(super) fn update(&self, state: State) {
        if state != self.state {
            let _ = self.place.state.compare_exchange(self.state.0, state.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Flows {
    buckets: Box<[Bucket]>,
    keys: HashKeys,
}

impl Flows {
    /// A table for `flows_max` flows, rounded up to a power of two and to a bucket.
    pub fn new(flows_max: usize, keys: HashKeys) -> Self {
        let buckets = flows_max.div_ceil(WAYS).next_power_of_two();
        Self { buckets: std::iter::repeat_with(Bucket::default).take(buckets).collect(), keys }
    }

    /// The key of packets between two ends, each an address and a port or what stands for it.
    pub(super) fn key(&self, source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> Key {
        let from_high = source > destination;
        let (low, high) = if from_high { (destination, source) } else { (source, destination) };
        let rest = u64::from(low.1) << 48 | u64::from(high.1) << 32 | u64::from(protocol) << 8;
        Key { tag: self.hash(low.0, high.0, rest), from_high }
    }

    /// The key of all fragments of a packet, and of nothing else.
    pub(super) fn fragments_key(&self, source: IpAddr, destination: IpAddr, protocol: u8, id: u32) -> Key {
        Key {
            tag: self.hash(source, destination, u64::from(id) << 32 | u64::from(protocol) << 8 | 2),
            from_high: false,
        }
    }

    fn hash(&self, one: IpAddr, other: IpAddr, rest: u64) -> u64 {
        let [k0, k1, k2, k3, k4, k5] = self.keys.0;
        let term = |key: u128, word: u64| key.wrapping_mul(u128::from(word));
        let sum = match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                term(k1, u64::from(one.to_bits()) << 32 | u64::from(other.to_bits())).wrapping_add(term(k5, rest))
            }
            (one, other) => {
                let halves = |address: IpAddr| {
                    let bits = match address {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                        IpAddr::V6(v6) => v6.to_bits(),
                    };
                    ((bits >> 64) as u64, bits as u64)
                };
                let ((upper, lower), (other_upper, other_lower)) = (halves(one), halves(other));
                term(k1, upper)
                    .wrapping_add(term(k2, lower))
                    .wrapping_add(term(k3, other_upper))
                    .wrapping_add(term(k4, other_lower))
                    // The last bit tells the families apart.
                    .wrapping_add(term(k5, rest | 1))
            }
        };
        let tag = (sum.wrapping_add(k0) >> 64) as u64;
        // Two tags stand for something else.
        tag.max(BUSY + 1)
    }

    fn bucket(&self, tag: u64) -> &[Place; WAYS] {
        // A power of two.
        &self.buckets[tag as usize & (self.buckets.len() - 1)].0
    }

    /// The flow, unless its time is over.
    pub(super) fn find(&self, tag: u64, now: Tick) -> Option<Found<'_>> {
        let mut known = self.bucket(tag).iter().filter_map(|place| Some(Found { place, state: place.read(tag)? }));
        known.find(|found| found.state.is_live(now))
    }

    /// Remembers a flow, in place of what is known of it. `false` when there is no place.
    pub(super) fn open(&self, tag: u64, state: State, now: Tick) -> bool {
        for _ in 0..ATTEMPTS {
            let Some((place, before)) = self.place(tag, now) else { return false };
            if place.take(before, tag, state) {
                return true;
            }
        }
        // So many places were taken from under it that the bucket is as good as full.
        false
    }

    /// The place for a new flow, and the tag that is there now: its own, one that is free, or the least worth keeping.
    fn place(&self, tag: u64, now: Tick) -> Option<(&Place, u64)> {
        let mut best: Option<(&Place, u64)> = None;
        let mut best_silent_for = 0;
        for place in self.bucket(tag) {
            let before = place.tag.load(Ordering::Acquire);
            if before == tag {
                return Some((place, before));
            }
            if before == BUSY {
                continue;
            }
            let state = State(place.state.load(Ordering::Relaxed));
            // One beyond all patience for a place that is free.
            let silent_for = match before == FREE || !state.is_live(now) {
                true => u32::MAX,
                false if state.is(State::ANSWERED) && !state.is_closing() => continue,
                false => state.silent_for(now),
            };
            if best.is_none() || silent_for > best_silent_for {
                (best, best_silent_for) = (Some((place, before)), silent_for);
            }
        }
        best
    }

    /// Forgets a flow, wherever it is.
    pub(super) fn close(&self, tag: u64) {
        for place in self.bucket(tag) {
            let _ = place.tag.compare_exchange(tag, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const KEYS: HashKeys = HashKeys([
        0x0123_4567_89ab_cdef_1111_2222_3333_4445,
        0x9e37_79b9_7f4a_7c15_bf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb_ff51_afd7_ed55_8ccd,
        0xc4ce_b9fe_1a85_ec53_2545_f491_4f6c_dd1d,
        0xda94_2042_e4dd_58b5_a076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db_8ebc_6af0_9c88_c6e3,
    ]);
    const NOW: Tick = Tick(1000);

    fn end(text: &str, port: u16) -> (IpAddr, u16) {
        (text.parse().unwrap(), port)
    }

    fn later(ticks: u32) -> Tick {
        Tick(NOW.0 + ticks)
    }

    fn open(kind: Kind) -> State {
        State::opened(kind, false, 1, NOW)
    }

    #[test]
    fn both_directions_have_one_tag_and_every_part_changes_it() {
        let flows = Flows::new(WAYS, KEYS);
        let mut tags = HashSet::new();
        for (a, b) in [
            ("10.1.0.5", "10.2.0.9"),
            ("10.2.0.9", "10.2.0.9"),
            ("fd00:1::5", "fd00:2::9"),
            ("::10.1.0.5", "::10.2.0.9"),
        ] {
            for (port, other) in [(4000, 53), (53, 4000), (4001, 53), (0, 0)] {
                for protocol in [6, 17, 47] {
                    let there = flows.key(end(a, port), end(b, other), protocol);
                    let back = flows.key(end(b, other), end(a, port), protocol);
                    assert_eq!(there.tag, back.tag);
                    assert!(there.from_high != back.from_high || end(a, port) == end(b, other));
                    tags.insert(there.tag);
                }
            }
        }
        // Of the pair with one address, two ports each way are the same flow.
        assert_eq!(tags.len(), 4 * 4 * 3 - 3);
        let mut ids: HashSet<u64> =
            (0..100).map(|id| flows.fragments_key(end("10.1.0.5", 0).0, end("10.2.0.9", 0).0, 17, id).tag).collect();
        ids.insert(flows.fragments_key(end("10.2.0.9", 0).0, end("10.1.0.5", 0).0, 17, 0).tag);
        assert_eq!((ids.len(), ids.is_disjoint(&tags)), (101, true));
    }

    #[test]
    fn a_flow_lives_as_long_as_its_protocol_and_its_flags_say() {
        let answered = |state: State| state.after(true, false, false, NOW);
        let closed = answered(open(Kind::Tcp)).after(false, true, false, NOW).after(true, true, false, NOW);
        for (state, seconds) in [
            (open(Kind::Tcp), 240),
            (answered(open(Kind::Tcp)), 7440),
            (answered(open(Kind::Tcp)).after(false, true, false, NOW), 7440),
            (closed, 240),
            (closed.after(true, false, true, NOW), 10),
            (open(Kind::Udp), 120),
            (answered(open(Kind::Udp)), 300),
            (open(Kind::Brief), 60),
            (State::fragments(1, NOW), 30),
            (open(Kind::Other), 600),
        ] {
            // Never less than promised, and a few ticks more at most.
            let promised = (f64::from(seconds) / 1.073_741_824).ceil() as u32;
            assert!(state.is_live(later(promised)), "{state:?}");
            assert!(!state.is_live(later(promised + 2)), "{state:?}");
            let flows = Flows::new(WAYS, KEYS);
            assert!(flows.open(77, state, NOW));
            assert_eq!(flows.find(77, later(promised)).map(|found| found.state), Some(state));
            assert!(flows.find(77, later(promised + 2)).is_none());
        }
    }

    #[test]
    fn a_packet_renews_its_flow_and_time_never_goes_back() {
        let flows = Flows::new(WAYS, KEYS);
        assert!(flows.open(77, open(Kind::Udp), NOW));
        let found = flows.find(77, later(100)).unwrap();
        found.update(found.state.after(false, false, false, later(100)));
        let found = flows.find(77, later(200)).unwrap();
        assert_eq!(found.state, State::opened(Kind::Udp, false, 1, later(100)));
        assert_eq!(found.state.after(false, false, false, later(50)), found.state);
        assert_eq!(found.state.silent_for(NOW), 0);
    }

    #[test]
    fn the_table_holds_flows_to_its_limit_and_then_displaces_what_nobody_answered() {
        let flows = Flows::new(WAYS, KEYS);
        let answered = open(Kind::Tcp).after(true, false, false, NOW);
        let tags = 2..2 + WAYS as u64;
        for tag in tags.clone() {
            assert!(flows.open(tag, answered, NOW));
        }
        assert!(!flows.open(100, open(Kind::Tcp), NOW), "one beyond the limit");
        assert!(tags.clone().all(|tag| flows.find(tag, NOW).is_some()) && flows.find(100, NOW).is_none());
        // One of its own is replaced.
        assert!(flows.open(5, open(Kind::Udp), NOW));
        // Two that nobody has answered: the longer silent one goes.
        assert!(flows.open(6, State::opened(Kind::Udp, false, 1, later(1)), later(1)));
        assert!(flows.open(100, open(Kind::Tcp), later(2)));
        assert!(flows.find(5, later(2)).is_none() && flows.find(6, later(2)).is_some());
        // So does a connection that both sides have ended, though somebody answered.
        let ended = answered.after(false, true, false, later(2)).after(true, true, false, later(2));
        assert!(flows.open(100, ended, later(2)) && flows.open(102, answered, later(2)));
        assert!(
            flows.find(100, later(2)).is_some() && flows.find(6, later(2)).is_none(),
            "the longer silent one first"
        );
        assert!(flows.open(103, open(Kind::Tcp), later(3)) && flows.find(100, later(3)).is_none());
        flows.close(103);
        assert!(flows.open(6, answered, later(3)) && !flows.open(104, answered, later(3)));
        // What is closed, or past its time, makes room.
        flows.close(7);
        assert!(flows.open(101, answered, later(2)) && flows.find(7, later(2)).is_none());
        assert!((200..200 + WAYS as u64).all(|tag| flows.open(tag, open(Kind::Tcp), later(20_000))));
    }

    #[test]
    fn a_policys_number_is_kept_in_24_bits() {
        let state = State::opened(Kind::Other, true, 0x0123_4567, NOW);
        assert!(state.is_of(0x0123_4567) && state.is_of(0x0023_4567) && !state.is_of(0x0123_4568));
        let renewed = state.with_epoch(9);
        assert!(renewed.is_of(9) && renewed.is_opener(true) && !renewed.is_opener(false));
        assert_eq!((renewed.kind(), renewed.seen()), (Kind::Other, NOW.0));
    }

    /// A place that changes hands must never show one flow with another's state.
    #[test]
    fn workers_that_share_a_bucket_never_see_a_flow_with_anothers_state() {
        let flows = Flows::new(WAYS, KEYS);
        let epoch_of = |tag: u64| (tag as u32).wrapping_mul(0x9e37) & 0xff_ffff;
        std::thread::scope(|scope| {
            for worker in 0..4u64 {
                let flows = &flows;
                scope.spawn(move || {
                    let mut number = worker + 1;
                    for _ in 0..200_000 {
                        number ^= number << 13;
                        number ^= number >> 7;
                        number ^= number << 17;
                        let tag = 2 + number % 64;
                        match number >> 32 & 7 {
                            0..4 => {
                                flows.open(tag, State::opened(Kind::Udp, false, epoch_of(tag), NOW), NOW);
                            }
                            4 => flows.close(tag),
                            _ => {
                                if let Some(found) = flows.find(tag, NOW) {
                                    assert!(found.state.is_of(epoch_of(tag)), "{tag}: {:?}", found.state);
                                    found.update(found.state.after(true, false, false, NOW));
                                }
                            }
                        }
                    }
                });
            }
        });
        let busy = flows.bucket(2).iter().filter(|place| place.tag.load(Ordering::Relaxed) == BUSY).count();
        assert_eq!(busy, 0);
    }
}
