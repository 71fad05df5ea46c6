//! QUIC Initials: told apart by the tag in their connection id, each kind with a bucket of its own.

use weir_abi::admission::{CID_LEN, WINDOW_SLOTS, cid, slot_at, tag};
use weir_abi::drop::DropReason;
use weir_abi::gcra::TICK_NS;
use weir_abi::map::{Class, Config, TAGGED_INITIALS, UNTAGGED_INITIALS, Verdict};

use crate::cases::{burst_of, check};
use crate::frames::{OUR_V6, initial, v4, v6};
use crate::kernel::{Decision, Hook, KEYS, Kernel, NODE, OTHER_NODE, STRANGE_KEY, admission, config};

/// What the programs' clock says when a test begins: the middle of a slot, so that it stays in it.
const WALL_SECS: u64 = 1_790_000_000 / 32 * 32 + 16;

fn now() -> u32 {
    slot_at(WALL_SECS)
}

/// An id as a member makes it.
fn tagged(key: [u64; 2], slot: u32) -> [u8; CID_LEN] {
    cid([0xd1, 0xd2, 0xd3, 0xd4], 0x0102_0304, slot, tag(key, 0x0102_0304, slot, &NODE))
}

fn with_byte<const N: usize>(mut bytes: [u8; N], at: usize, value: u8) -> [u8; N] {
    bytes[at] = value;
    bytes
}

fn kernel(config: Config, keys: &[[u64; 2]]) -> Kernel {
    let mut kernel = Kernel::new(config);
    kernel.admit(&admission(keys), WALL_SECS);
    kernel
}

fn table() -> Vec<(&'static str, Vec<u8>, Decision)> {
    use Verdict as V;
    let good = tagged(KEYS[0], now());
    let packet = initial(&good);
    let first = |value: u8| [&[value], &packet[1..]].concat();
    let version = |value: u32| [&packet[..1], &value.to_be_bytes(), &packet[5..]].concat();
    let other_node = cid([1; 4], 7, now(), tag(KEYS[0], 7, now(), &OTHER_NODE));
    let moved = cid([1; 4], 7, now(), tag(KEYS[0], 7, now() - WINDOW_SLOTS - 1, &NODE));
    let mut v6_denied = OUR_V6;
    v6_denied[4..6].copy_from_slice(&[0x0b, 0xad]);
    let tagged_ok = Ok(V::WanAdmissionTagged);
    let untagged = Ok(V::WanAdmissionUntagged);
    let expired = Ok(V::WanAdmissionExpired);
    vec![
        // Tagged.
        ("tag of the newest key", v4().payload(&packet).bytes(), tagged_ok),
        ("tag, IPv6", v6().payload(&packet).bytes(), tagged_ok),
        ("tag, behind two VLAN tags", v4().tag(0x88a8, 5).tag(0x8100, 20).payload(&packet).bytes(), tagged_ok),
        ("tag, IPv6 with extensions", v6().extension(0, 1).extension(60, 2).payload(&packet).bytes(), tagged_ok),
        ("tag of the second key", v4().payload(&initial(&tagged(KEYS[1], now()))).bytes(), tagged_ok),
        ("tag of the third key", v4().payload(&initial(&tagged(KEYS[2], now()))).bytes(), tagged_ok),
        ("oldest slot", v4().payload(&initial(&tagged(KEYS[0], now() - WINDOW_SLOTS))).bytes(), tagged_ok),
        ("newest slot", v4().payload(&initial(&tagged(KEYS[0], now() + WINDOW_SLOTS))).bytes(), tagged_ok),
        ("other random bytes", v4().payload(&initial(&with_byte(good, 0, 9))).bytes(), tagged_ok),
        ("packet number of one byte", v4().payload(&first(0xc0)).bytes(), tagged_ok),
        ("fixed bit cleared", v4().payload(&first(0x83)).bytes(), tagged_ok),
        ("nothing behind the id", v4().payload(&packet[..26]).bytes(), tagged_ok),
        // Tagged at another time.
        ("slot too old", v4().payload(&initial(&tagged(KEYS[0], now() - WINDOW_SLOTS - 1))).bytes(), expired),
        ("slot too new", v4().payload(&initial(&tagged(KEYS[2], now() + WINDOW_SLOTS + 1))).bytes(), expired),
        ("slot of 1970", v4().payload(&initial(&tagged(KEYS[0], 0))).bytes(), expired),
        ("last slot", v6().payload(&initial(&tagged(KEYS[0], u32::MAX))).bytes(), expired),
        // Not tagged.
        ("a strange key", v4().payload(&initial(&tagged(STRANGE_KEY, now()))).bytes(), untagged),
        ("another node's tag", v4().payload(&initial(&other_node)).bytes(), untagged),
        ("an old tag with a new slot", v4().payload(&initial(&moved)).bytes(), untagged),
        ("another nonce", v4().payload(&initial(&with_byte(good, 4, 9))).bytes(), untagged),
        ("another slot", v4().payload(&initial(&with_byte(good, 11, good[11] ^ 1))).bytes(), untagged),
        ("first byte of the tag", v4().payload(&initial(&with_byte(good, 12, good[12] ^ 1))).bytes(), untagged),
        ("last byte of the tag", v4().payload(&initial(&with_byte(good, 19, good[19] ^ 0x80))).bytes(), untagged),
        ("zeros", v4().payload(&initial(&[0; 20])).bytes(), untagged),
        ("no id", v4().payload(&initial(&[])).bytes(), untagged),
        ("an id of 8 bytes", v4().payload(&initial(&good[..8])).bytes(), untagged),
        ("an id of 19 bytes", v4().payload(&initial(&good[..19])).bytes(), untagged),
        ("an id of 21 bytes", v4().payload(&initial(&[&good[..], &[0]].concat())).bytes(), untagged),
        ("the packet ends with the id's last byte but one", v4().payload(&packet[..25]).bytes(), untagged),
        ("UDP ends with the id's last byte but one", v4().payload(&packet).udp_len(8 + 25).bytes(), untagged),
        ("the frame ends there", v4().payload(&packet).bytes()[..42 + 25].to_vec(), untagged),
        ("the packet ends with the id's length", v4().payload(&packet[..6]).bytes(), untagged),
        // No Initials of a version that is known.
        ("the packet ends with the version", v4().payload(&packet[..5]).bytes(), Ok(V::WanControl)),
        ("0-RTT", v4().payload(&first(0xd3)).bytes(), Ok(V::WanControl)),
        ("Handshake", v4().payload(&first(0xe3)).bytes(), Ok(V::WanControl)),
        ("Retry", v4().payload(&first(0xf3)).bytes(), Ok(V::WanControl)),
        ("version negotiation", v4().payload(&version(0)).bytes(), Ok(V::WanControl)),
        ("QUIC version 2", v4().payload(&version(0x6b33_43cf)).bytes(), Ok(V::WanControl)),
        ("short header", v4().payload(&first(0x43)).bytes(), Ok(V::WanControl)),
        // What comes before the tag.
        (
            "tag from a denied source",
            v4().v4_source([198, 51, 100, 7]).payload(&packet).bytes(),
            Err(DropReason::WanDenied),
        ),
        (
            "tag from a denied IPv6 source",
            v6().v6_source(v6_denied).payload(&packet).bytes(),
            Err(DropReason::WanDenied),
        ),
        (
            "tag for a host behind us",
            v4().v4_destination([192, 0, 2, 77]).payload(&packet).bytes(),
            Ok(V::WanForwarded),
        ),
        ("tag to another port", v4().port(443).payload(&packet).bytes(), Ok(V::WanOtherPort)),
    ]
}

#[test]
fn initials_are_told_apart_by_their_tag_at_both_hooks() {
    let mut kernel = kernel(config(), &KEYS);
    let mut wrong = vec![];
    for hook in [Hook::Xdp, Hook::Tc] {
        for (name, frame, expected) in &table() {
            if let Err(what) = check(&mut kernel, hook, frame, *expected) {
                wrong.push(format!("{hook:?}: {name}: expected {expected:?}, {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn keys_count_as_long_as_they_are_known_and_without_any_initials_are_as_other_long_headers() {
    let mut kernel = Kernel::new(config());
    let frames = KEYS.map(|key| v4().payload(&initial(&tagged(key, now()))).bytes());
    let strange = v4().payload(&initial(&tagged(STRANGE_KEY, now()))).bytes();
    // Nothing was written yet, then more and more keys, then none again.
    for known in [None, Some(1), Some(2), Some(3), Some(0)] {
        if let Some(count) = known {
            kernel.admit(&admission(&KEYS[..count]), WALL_SECS);
        }
        let count = known.unwrap_or(0);
        for (i, frame) in frames.iter().chain([&strange]).enumerate() {
            let expected = match (count, i < count) {
                (0, _) => Verdict::WanControl,
                (_, true) => Verdict::WanAdmissionTagged,
                (_, false) => Verdict::WanAdmissionUntagged,
            };
            assert_eq!(check(&mut kernel, Hook::Xdp, frame, Ok(expected)), Ok(()), "key {i}, {known:?} known");
        }
    }
}

#[test]
fn a_clock_that_is_put_right_brings_tags_into_their_time() {
    let mut kernel = kernel(config(), &KEYS);
    let frame = v4().payload(&initial(&tagged(KEYS[0], now()))).bytes();
    for (wall_secs, expected) in [
        (WALL_SECS, Verdict::WanAdmissionTagged),
        (0, Verdict::WanAdmissionExpired),
        (WALL_SECS - 320, Verdict::WanAdmissionTagged),
        (WALL_SECS - 352, Verdict::WanAdmissionExpired),
        (WALL_SECS + 320, Verdict::WanAdmissionTagged),
        (WALL_SECS + 352, Verdict::WanAdmissionExpired),
    ] {
        kernel.admit(&admission(&KEYS), wall_secs);
        assert_eq!(check(&mut kernel, Hook::Xdp, &frame, Ok(expected)), Ok(()), "{wall_secs}");
    }
}

#[test]
fn a_flood_of_untagged_initials_leaves_the_tagged_and_all_else_alone() {
    let mut class = config().class;
    class[Class::QuicInitialTagged as usize] = burst_of(3);
    class[Class::QuicInitialUntagged as usize] = burst_of(2);
    class[Class::QuicLong as usize] = burst_of(1);
    let mut kernel = kernel(Config { class, ..config() }, &KEYS);
    // Each from a source of its own, as spoofed ones are.
    let from = |host: u8, payload: &[u8]| v4().v4_source([203, 0, 113, host]).payload(payload).bytes();
    let late = initial(&tagged(KEYS[0], 0));
    for host in 0..20 {
        let payload = if host % 2 == 0 { initial(&[host; 20]) } else { late.clone() };
        let expected = match host {
            0 => Ok(Verdict::WanAdmissionUntagged),
            1 => Ok(Verdict::WanAdmissionExpired),
            _ => Err(DropReason::WanAdmissionUntaggedRate),
        };
        assert_eq!(check(&mut kernel, Hook::Xdp, &from(host, &payload), expected), Ok(()), "{host}");
    }
    let good = initial(&tagged(KEYS[0], now()));
    for round in 0..5 {
        let expected = match round {
            ..3 => Ok(Verdict::WanAdmissionTagged),
            _ => Err(DropReason::WanAdmissionTaggedRate),
        };
        assert_eq!(check(&mut kernel, Hook::Xdp, &from(9, &good), expected), Ok(()), "round {round}");
    }
    let handshake = [&[0xe3], &good[1..]].concat();
    assert_eq!(check(&mut kernel, Hook::Xdp, &from(9, &handshake), Ok(Verdict::WanControl)), Ok(()));
    assert_eq!(check(&mut kernel, Hook::Xdp, &from(9, &handshake), Err(DropReason::WanClassRate)), Ok(()));
}

#[test]
fn no_source_is_charged_for_an_initial() {
    let mut kernel = kernel(Config { source: burst_of(1), ..config() }, &KEYS);
    let frame = |payload: &[u8]| v4().payload(payload).bytes();
    let good = initial(&tagged(KEYS[0], now()));
    for round in 0..5 {
        let tagged = check(&mut kernel, Hook::Xdp, &frame(&good), Ok(Verdict::WanAdmissionTagged));
        let untagged = check(&mut kernel, Hook::Xdp, &frame(&initial(&[1; 20])), Ok(Verdict::WanAdmissionUntagged));
        assert_eq!((tagged, untagged), (Ok(()), Ok(())), "round {round}");
    }
    // What others of that address sent does not count either, nor do Initials for those.
    let short = frame(&[0x40; 64]);
    assert_eq!(check(&mut kernel, Hook::Xdp, &short, Ok(Verdict::WanControl)), Ok(()));
    assert_eq!(check(&mut kernel, Hook::Xdp, &short, Err(DropReason::WanSourceRate)), Ok(()));
    assert_eq!(check(&mut kernel, Hook::Xdp, &frame(&good), Ok(Verdict::WanAdmissionTagged)), Ok(()));
}

#[test]
fn members_get_in_through_a_flood_with_the_rates_of_the_plane() {
    let mut class = config().class;
    class[Class::QuicInitialTagged as usize] = TAGGED_INITIALS.by_ticks(TICK_NS);
    class[Class::QuicInitialUntagged as usize] = UNTAGGED_INITIALS.by_ticks(TICK_NS);
    let mut kernel = kernel(Config { class, ..config() }, &KEYS);
    let spoofed = v4().payload(&initial(&[7; 20])).bytes();
    let member = v4().payload(&initial(&tagged(KEYS[2], now()))).bytes();
    let begun = std::time::Instant::now();
    let mut let_through = 0;
    for round in 0..20_000 {
        let_through += usize::from(kernel.action(&spoofed) == 2);
        // As many of ten as 20,000 a second of 200,000.
        if round % 10 == 0 {
            assert_eq!(kernel.action(&member), 2, "member {round}");
        }
    }
    let most = 42 + begun.elapsed().as_secs() as usize * 200 + 200;
    assert!((40..=most).contains(&let_through), "{let_through} of at most {most}");
}
