//! What only the allocator sees: that the packet path takes no memory once it is warm but for new keys, and that keys leave nothing in
//! theirs. Counted thread by thread.
//!
//! Keys of `aws-lc-rs` stand in memory of its C code, which is not seen here, and which it erases.
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement; this one counts and passes on")]
#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use weir_abi::wire::ReceiverIndex;
use weir_dataplane::api::message::{Incarnation, Secret, SessionId};
use weir_dataplane::api::{PolicyRule, PortRange, Prefix, Protocol};
use weir_dataplane::engine::aead::{AeadKey, Algorithm, KEY_LEN, Library};
use weir_dataplane::engine::block::Reassembly;
use weir_dataplane::engine::bundle::PayloadLen;
use weir_dataplane::engine::counters::{Counters, CountersReader, Metric};
use weir_dataplane::engine::icmp::checksum;
use weir_dataplane::engine::keys::{Context, Direction, LaneSecret, Side};
use weir_dataplane::engine::lane::{Limits, OpenLane, SealLane};
use weir_dataplane::engine::lpm::Lpm;
use weir_dataplane::engine::policy::Policy;
use weir_dataplane::engine::policy::flows::{FLOWS_MAX, Flows, HashKeys};
use weir_dataplane::engine::port::{
    BURST_LEN, Offload, RxBurst, RxMeta, SUPERPACKET_LEN_MAX, Segmentation, TxMeta, TxSink,
};
use weir_dataplane::engine::prefix_set::PrefixSet;
use weir_dataplane::engine::session::{KeysId, OpenEnd, Session};
use weir_dataplane::engine::snapshot::{NextHop, SessionSlot, Snapshot};
use weir_dataplane::engine::time::Time;
use weir_dataplane::engine::{Command, Engine};

thread_local! {
    /// Allocations of this thread. Without a destructor and initialised at compile time, it needs none itself.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// What blocks that this thread gives back are searched for, and how many held it.
    static SEARCHED: Cell<Option<[u8; 16]>> = const { Cell::new(None) };
    static FOUND: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator, which keeps the contract of `GlobalAlloc`; counting and searching touch only
// thread-local values that neither allocate nor unwind, and read only the block itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same. Zeros, so that there is always something to search.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(searched) = SEARCHED.get() {
            // SAFETY: the block has this size, was filled when it was made, and is nobody else's from here on.
            let block = unsafe { std::slice::from_raw_parts(pointer, layout.size()) };
            FOUND.set(FOUND.get() + u64::from(block.windows(searched.len()).any(|window| window == searched)));
        }
        // SAFETY: the block came from `System` with this layout, as `alloc` above has passed it on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A wire of fixed buffers: what was committed is what is received.
struct Wire {
    frames: Vec<(Vec<u8>, usize, u16, Offload)>,
    count: usize,
}

impl Wire {
    fn new() -> Self {
        Self { frames: vec![(vec![0; SUPERPACKET_LEN_MAX], 0, 0, Offload::default()); 2 * BURST_LEN], count: 0 }
    }
}

impl TxSink for Wire {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.frames.get_mut(self.count).map(|(buffer, ..)| &mut buffer[..len])
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        let frame = &mut self.frames[self.count];
        (frame.1, frame.2, frame.3) = (len, meta.segment, meta.offload);
        self.count += 1;
    }

    fn takes_offloads(&self) -> bool {
        true
    }
}

impl RxBurst for Wire {
    fn len(&self) -> usize {
        self.count
    }

    fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
        let (buffer, len, segment, offload) = &mut self.frames[i];
        (&mut buffer[..*len], RxMeta { segment: *segment, offload: *offload, ..RxMeta::default() })
    }
}

const SLOT: SessionSlot = SessionSlot(0);

fn prefix(n: u8) -> Prefix {
    format!("10.{n}.0.0/16").parse().unwrap()
}

/// Gateway `n` of two, connected with the other.
fn gateway(n: u8) -> (Engine, CountersReader, Arc<Policy>) {
    let other = 3 - n;
    let counters = Counters::new();
    let reader = counters.reader();
    let mut engine = Engine::new(n, 0, counters);
    let routes = [(prefix(n), NextHop::Local), (prefix(other), NextHop::Session(SLOT))];
    let snapshot = Snapshot { routes: Lpm::build(routes).unwrap(), ..Snapshot::empty() };
    engine.command(Command::Routes(Arc::new(snapshot)), Time::ZERO);
    assert!(engine.poll_event().is_some());
    let allowed = |protocol| PolicyRule {
        sources: vec![prefix(1)],
        destinations: vec![prefix(2)],
        protocol,
        ports: vec![PortRange { first: 0, last: u16::MAX }],
        allow: true,
    };
    let flows = Arc::new(Flows::new(
        FLOWS_MAX,
        HashKeys(std::array::from_fn(|i| (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))),
    ));
    let policy = Arc::new(Policy::new(&[Protocol::Tcp, Protocol::Udp].map(allowed), false, 1, flows, 1).unwrap());
    engine.command(Command::Policy(Some(Arc::clone(&policy))), Time::ZERO);
    let side = |n: u8| Side { incarnation: Incarnation(n.into()), salt: [n; 16] };
    let context = Context::new(SessionId(1), side(1), side(2), true, Algorithm::for_this_cpu());
    let secret = |from: u8| LaneSecret::derive(&Secret::new([1; 32]), &context, Direction::sealed_by(from == 1), 0);
    let index = |at: u8| ReceiverIndex::new(at, 9, 0);
    let session = Session::new(
        SessionId(1),
        ([192, 0, 2, other], 4646).into(),
        PrefixSet::new(&[prefix(other)]).unwrap(),
        PayloadLen::new(1472).unwrap(),
        1400,
        SealLane::new(&secret(n), 0, index(other), Time::ZERO, Limits::default()),
    );
    let lane = OpenLane::new(&secret(other), 0, index(n), Time::ZERO, Limits::default());
    let lanes = vec![Box::new(OpenEnd::new(SLOT, KeysId(0), lane, Reassembly::new()))];
    engine.command(Command::Install { slot: SLOT, session: Box::new(session), lanes }, Time::ZERO);
    (engine, reader, policy)
}

/// Keys that are made while it is counted: both engines seal, and open, with a second one when the first is a minute old.
const KEYS: u64 = 4;
/// Superpackets in every third burst.
const SUPERPACKETS: usize = 5;
/// Bytes of TCP payload in each superpacket, and in each of its segments.
const SUPERPACKET: (usize, u16) = (30_000, 1340);

/// Lays a superpacket of TCP behind the other packets: one of 40 bytes of headers and [`SUPERPACKET`].
fn lay_superpacket(burst: &mut Wire) {
    let (payload, segment) = SUPERPACKET;
    let len = 40 + payload;
    let packet = burst.slot(len).unwrap();
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9]);
    packet[20..40].copy_from_slice(&[0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let offload = Offload { cut: Some((Segmentation::Tcp { cwr: false }, segment)), checksum: Some((20, 16)) };
    burst.commit(len, TxMeta { offload, ..TxMeta::default() });
}

/// Lays a burst of IPv4 packets from network 1 to network 2, of sizes that differ from burst to burst, and now and then superpackets.
fn lay(burst: &mut Wire, round: usize) {
    burst.count = 0;
    for i in 0..BURST_LEN {
        let len = match (round + i) % 16 {
            // Longer than a datagram: cut, and with the last one a partial of the longer kind.
            0 => 2000,
            1 if round.is_multiple_of(7) => 9000,
            n if round.is_multiple_of(2) => 40 + 90 * n,
            n => 40 + n,
        };
        let packet = burst.slot(len).unwrap();
        packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        // Ports that differ from packet to packet and come again, so that flows are opened, known, and opened anew.
        let port = ((round * BURST_LEN + i) * 7 % 9973) as u16;
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&[0, 53]);
        burst.commit(len, TxMeta::default());
    }
    if round.is_multiple_of(3) {
        burst.count -= SUPERPACKETS;
        (0..SUPERPACKETS).for_each(|_| lay_superpacket(burst));
    }
}

#[test]
fn ten_thousand_bursts_through_two_engines_allocate_nothing_but_keys() {
    let ((mut one, sealed, one_judges), (mut two, opened, two_judges)) = (gateway(1), gateway(2));
    let [mut burst, mut wan, mut lan, mut answers] = std::array::from_fn(|_| Wire::new());
    let mut run = |rounds: std::ops::Range<usize>| {
        let before = ALLOCATIONS.get();
        for round in rounds {
            // 101 seconds in all, so the lanes go on to their next generation on the way.
            let now = Time::ZERO.plus(Duration::from_millis(10 * round as u64));
            lay(&mut burst, round);
            if round.is_multiple_of(100) {
                one.command(Command::Echo(SLOT), now);
            }
            (wan.count, lan.count, answers.count) = (0, 0, 0);
            one.encapsulate(now, &mut burst, &mut wan, &mut answers);
            assert_eq!(answers.count, 0);
            two.decapsulate(now, &mut wan, &mut lan, &mut answers);
            // No superpacket goes on where the one before ended, but one may be in two parts: not all of a burst waits to be joined.
            assert!((BURST_LEN..BURST_LEN + SUPERPACKETS).contains(&lan.count), "{} frames", lan.count);
            // What the other engine has to say, which is the answer to an echo.
            (wan.count, lan.count) = (0, 0);
            one.decapsulate(now, &mut answers, &mut lan, &mut wan);
            one.expire(now);
            two.expire(now);
            while one.poll_event().is_some() {}
        }
        ALLOCATIONS.get() - before
    };
    assert!(run(0..100) > 0, "cut packets take a buffer once, which shows that the counter counts");
    let allocated = match Library::for_this_cpu(Algorithm::for_this_cpu()).0 {
        Library::Ring => KEYS,
        Library::AwsLc => 0,
    };
    assert_eq!(run(100..10_100), allocated);
    let segments = SUPERPACKET.0.div_ceil(usize::from(SUPERPACKET.1));
    let packets = (10_100 * BURST_LEN + 10_100usize.div_ceil(3) * SUPERPACKETS * (segments - 1)) as u64;
    assert_eq!(sealed.snapshot().metric(Metric::LanToWanPackets), packets);
    assert_eq!(opened.snapshot().metric(Metric::WanToLanPackets), packets);
    assert_eq!(sealed.snapshot().metric(Metric::DatagramsOpened), 101, "echoes were answered");
    for policy in [one_judges, two_judges] {
        // Each flow is decided once, and TCP has one flow.
        assert_eq!(policy.hits(), [1, 9973, 0]);
    }
    assert_eq!((sealed.snapshot().engine_drops(), opened.snapshot().engine_drops()), (vec![], vec![]));
}

/// How many blocks that were given back with `thing` held the beginning of the key.
fn found_in(key: &[u8; KEY_LEN], thing: impl Sized) -> u64 {
    FOUND.set(0);
    SEARCHED.set(key.first_chunk().copied());
    drop(thing);
    SEARCHED.set(None);
    FOUND.get()
}

#[test]
fn a_dropped_key_leaves_nothing_in_its_memory() {
    use ring::aead::{AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
    let key: [u8; KEY_LEN] = std::array::from_fn(|i| 0xa5 ^ (7 * i) as u8);
    for (algorithm, of_ring) in
        [(Algorithm::Aes256Gcm, &AES_256_GCM), (Algorithm::ChaCha20Poly1305, &CHACHA20_POLY1305)]
    {
        // Without AES instructions the expanded key does not begin with the key.
        if algorithm == Algorithm::ChaCha20Poly1305 || Algorithm::for_this_cpu() == algorithm {
            let left_alone = Box::new(LessSafeKey::new(UnboundKey::new(of_ring, &key).unwrap()));
            assert_eq!(found_in(&key, left_alone), 1, "{algorithm:?}: the search finds what is there");
        }
        for library in Library::ALL {
            assert_eq!(found_in(&key, AeadKey::with(library, algorithm, &key)), 0, "{algorithm:?} of {library}");
        }
    }
}
