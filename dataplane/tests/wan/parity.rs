//! The program in the kernel and the same code in user space agree on a million generated frames.

use std::collections::HashSet;
use std::net::Ipv6Addr;

use weir_abi::address::Address;
use weir_abi::admission::{WINDOW_SLOTS, cid, slot_at, tag};
use weir_abi::classify::{self, Tables};
use weir_abi::gcra::Rate;
use weir_abi::map::{Admission, Class, Config, Counter, Verdict};
use weir_abi::wire::ReceiverIndex;
use weir_dataplane::api::Prefix;
use weir_dataplane::io::bpf::address_key;

use crate::frames::{OUR_V4, OUR_V6, PORT, data, initial, v4, v6};
use crate::kernel::{
    DENIED, Decision, Hook, KEYS, Kernel, LIVE, NODE, OTHER_NODE, STRANGE_KEY, admission, config, decisions,
    expected_action,
};

const FRAMES: usize = 1_000_000;
const CHUNK: usize = 20_000;
/// The time in user space, and in the kernel at the beginning of each chunk: the middle of a slot, so that it stays in it.
const WALL_SECS: u64 = 1_790_000_000 / 32 * 32 + 16;

/// The tests' tables, in user space.
struct Model {
    config: Config,
    admission: Admission,
}

impl Tables for Model {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn is_live(&self, index: ReceiverIndex) -> bool {
        index == LIVE
    }

    fn is_local(&self, address: &Address) -> bool {
        [address_key(OUR_V4.into()), address_key(OUR_V6.into())].contains(&address.octets())
    }

    fn is_denied(&self, source: &Address, _: &Config) -> bool {
        let ip = Ipv6Addr::from(source.octets()).to_canonical();
        DENIED.iter().any(|prefix| prefix.parse::<Prefix>().unwrap().contains(ip))
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn admit_source(&self, _: &Address, _: Rate, _: u64) -> bool {
        true
    }

    fn admit_class(&self, _: Class, _: Rate, _: u64) -> bool {
        true
    }

    fn admission(&self) -> Option<&Admission> {
        Some(&self.admission)
    }

    fn wall_secs(&self, _: u64) -> u64 {
        WALL_SECS
    }

    fn is_overlay(&self, _: &Address) -> bool {
        false
    }

    fn random(&self) -> u32 {
        1
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A QUIC Initial: tagged, and then perhaps for another node, under another key, at another time, with another slot than the tag was made for,
/// or with an id of another length.
fn generate_initial(random: &mut Random) -> Vec<u8> {
    let key = if random.one_in(4) { STRANGE_KEY } else { KEYS[random.below(KEYS.len())] };
    let node = if random.one_in(4) { OTHER_NODE } else { NODE };
    let away = random.below(2 * WINDOW_SLOTS as usize + 5) as u32;
    let slot = slot_at(WALL_SECS) - WINDOW_SLOTS - 2 + away;
    let nonce = random.next() as u32;
    let made_in = if random.one_in(6) { slot.wrapping_sub(random.below(40) as u32) } else { slot };
    let id = cid((random.next() as u32).to_be_bytes(), nonce, slot, tag(key, nonce, made_in, &node));
    let len = if random.one_in(6) { random.below(id.len() + 1) } else { id.len() };
    let mut packet = initial(&id[..len]);
    if random.one_in(6) {
        packet[0] = random.next() as u8;
    }
    if random.one_in(6) {
        packet[1 + random.below(5)] = random.next() as u8;
    }
    packet
}

/// A frame that is nearly right: every layer drawn from its valid forms, then perhaps damaged.
fn generate(random: &mut Random) -> Vec<u8> {
    let mut frame = if random.one_in(2) { v4() } else { v6() };
    for _ in 0..random.below(4).saturating_sub(1) {
        frame = frame.tag(if random.one_in(2) { 0x8100 } else { 0x88a8 }, random.next() as u16);
    }
    frame = frame.options(if random.one_in(3) { random.below(11) } else { 0 });
    if random.one_in(3) {
        for _ in 0..random.below(5) {
            let kinds = if random.one_in(4) { 5 } else { 3 };
            let number = [0, 43, 60, 44, 51][random.below(kinds)];
            let units = if random.one_in(8) { 1 + random.below(40) } else { 1 + random.below(3) };
            frame = frame.extension(number, units);
        }
    }
    if random.one_in(4) {
        frame = frame.port(PORT.wrapping_add(random.below(8) as u16).wrapping_sub(2));
    }
    if random.one_in(6) {
        frame = frame.v4_source([198, 51, 99 + random.below(4) as u8, random.next() as u8]);
    }
    if random.one_in(6) {
        frame = frame.v4_destination([192, 0, 2, random.below(3) as u8]);
    }
    if random.one_in(12) {
        frame = frame.fragment(random.next() as u16);
    }
    let index = match random.below(4) {
        0 | 1 => LIVE.0,
        2 => LIVE.0 ^ (1 << random.below(32)),
        _ => random.next() as u32,
    };
    let mut payload = if random.one_in(3) { generate_initial(random) } else { data(index) };
    if random.one_in(3) {
        payload[0] = random.next() as u8;
    }
    payload.truncate(if random.one_in(6) { random.below(payload.len() + 1) } else { payload.len() });
    frame = frame.payload(&payload);
    if random.one_in(10) {
        frame = frame.udp_len(random.below(80) as u16);
    }
    if random.one_in(10) {
        frame = frame.ip_len(random.below(120) as u16);
    }
    let mut bytes = frame.bytes();
    if random.one_in(3) {
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
    }
    if random.one_in(8) {
        // The kernel refuses to test-run less than an Ethernet header.
        bytes.truncate(14 + random.below(bytes.len() - 13));
    }
    bytes
}

#[test]
fn the_kernel_and_user_space_agree_on_a_million_frames() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed);
    println!("seed {seed} (set WEIR_SEED to change it)");
    let mut random = Random(seed);
    let model = Model { config: config(), admission: admission(&KEYS) };
    let mut kernel = Kernel::new(config());
    let mut seen: HashSet<Decision> = HashSet::new();
    for chunk in 0..FRAMES / CHUNK {
        let frames: Vec<Vec<u8>> = (0..CHUNK).map(|_| generate(&mut random)).collect();
        let expected: Vec<Decision> = frames.iter().map(|frame| classify::wan(frame.as_slice(), &model)).collect();
        kernel.admit(&model.admission, WALL_SECS);
        let before = kernel.counters();
        for (frame, expected) in frames.iter().zip(&expected) {
            let action = kernel.action(frame);
            assert_eq!(action, expected_action(Hook::Xdp, *expected), "chunk {chunk}: {expected:?} for {frame:02x?}");
        }
        let after = kernel.counters();
        for (i, decision) in decisions() {
            let predicted = expected.iter().filter(|d| **d == decision).count() as u64;
            if after[i] - before[i] != predicted {
                point_out(&mut kernel, &frames, &expected);
                panic!(
                    "chunk {chunk}: {decision:?} {} times in the kernel, {predicted} in user space",
                    after[i] - before[i]
                );
            }
            if predicted > 0 {
                seen.insert(decision);
            }
        }
    }
    // The generator reaches every decision that needs neither a clock nor chance.
    let counters_reached = seen.len();
    assert!(counters_reached >= 18, "only {counters_reached} decisions were reached: {seen:?}");
    for verdict in [Verdict::WanAdmissionTagged, Verdict::WanAdmissionUntagged, Verdict::WanAdmissionExpired] {
        assert!(seen.contains(&Ok(verdict)), "{verdict:?} was not reached: {seen:?}");
    }
}

/// Finds the first frame on which the two differ, and says so.
fn point_out(kernel: &mut Kernel, frames: &[Vec<u8>], expected: &[Decision]) {
    for (frame, expected) in frames.iter().zip(expected) {
        let index = match expected {
            Ok(verdict) => Counter::Passed(*verdict),
            Err(reason) => Counter::Dropped(*reason),
        }
        .index() as usize;
        let before = kernel.counters()[index];
        kernel.action(frame);
        if kernel.counters()[index] != before + 1 {
            eprintln!("user space says {expected:?} for {frame:02x?}");
            return;
        }
    }
}
