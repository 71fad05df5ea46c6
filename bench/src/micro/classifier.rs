//! What `wan` costs for one frame, as BPF test run counts it, with 10,000 refused prefixes in its trie.
//!
//! The frame that is not data has to pass all that such frames pass: the refused prefixes, the source's bucket and that of its class. Both are
//! wide enough to refuse nothing. A source whose own network holds a refused host, and one of IPv6, cost a walk down a trie besides. The same
//! frame again without the prefixes, and without the buckets, says which of them costs what.

use std::cell::RefCell;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use aya::maps::{Array, HashMap};
use aya::programs::{Program, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use weir_abi::admission::{self, KEYS_MAX};
use weir_abi::gcra::Rate;
use weir_abi::map::{Admission, Class, Config, flag, live_len, live_position, name};
use weir_abi::wire::{DataHeader, ReceiverIndex};
use weir_dataplane::api::Prefix;
use weir_dataplane::io::bpf::{OBJECT, address_key, deny, deny_flags};

use super::{Figure, Subject, compare};
use crate::sys::clock::monotonic_ns;
use crate::{Error, Result};

const PORT: u16 = 4646;
const LIVE: ReceiverIndex = ReceiverIndex::new(0, 7, 5);
const DENIED: u32 = 10_000;
/// Sources in the middle of the refused prefixes, and a host in the network of one.
const SOURCE: [u8; 4] = [100, 39, 17, 9];
const SOURCE_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0x27, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const NEIGHBOUR: [u8; 4] = [100, 39, 17, 99];
const OURS: [u8; 4] = [192, 0, 2, 1];
const OURS_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// What is promised for whatever is not data.
const NOT_DATA_NS: f64 = 160.0;
/// More than a test run sends.
const RATE_PPS: u64 = 1_000_000_000;
const BURST: u64 = 1_000_000;
/// What a QUIC long header begins with, and no Initial of a known version.
const HANDSHAKE: [u8; 64] = [0xc0; 64];
const REPEAT: u32 = 500_000;
const KEYS: [[u64; 2]; KEYS_MAX] = [[1, 2], [3, 4], [5, 6]];
const NODE: [u8; 32] = [7; 32];

/// The figures of all variants, taking turns.
///
/// # Errors
/// When the object does not load; that needs root.
pub(super) fn figures() -> Result<Vec<Figure>> {
    // Each second network of 24 bits, and of 48, is refused; the source is in one between them.
    let v4 = || (0..DENIED).map(|i| (Ipv4Addr::from_bits(100 << 24 | i << 9).into(), 24));
    let v6 = || (0..DENIED).map(|i| (Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(i) << 81).into(), 48));
    let neighbour = (Ipv4Addr::from(NEIGHBOUR).into(), 32);
    let mut whole = Wan::load(v4(), RATE_PPS)?;
    let mut beside = Wan::load(v4().skip(1).chain([neighbour]), RATE_PPS)?;
    let mut over_v6 = Wan::load(v6(), RATE_PPS)?;
    let mut without_prefixes = Wan::load([], RATE_PPS)?;
    let mut without_rates = Wan::load(v4(), 0)?;
    let mut bare = Wan::load([], 0)?;
    let handshake = || frame_v4(&HANDSHAKE);
    let mut subjects = whole.subjects();
    let worse = "wan: a QUIC handshake from beside a refused host".to_owned();
    subjects.push(beside.subject(worse, handshake()).at_most(NOT_DATA_NS));
    let worse = "wan: a QUIC handshake over IPv6".to_owned();
    subjects.push(over_v6.subject(worse, frame_v6(&HANDSHAKE)).at_most(NOT_DATA_NS));
    subjects.push(without_prefixes.subject("wan: a QUIC handshake, nothing refused".to_owned(), handshake()));
    subjects.push(without_rates.subject("wan: a QUIC handshake, no rates".to_owned(), handshake()));
    subjects.push(bare.subject("wan: a QUIC handshake, no rates, nothing refused".to_owned(), handshake()));
    Ok(compare(subjects))
}

/// The loaded program.
struct Wan(Ebpf);

impl Wan {
    fn load(refused: impl IntoIterator<Item = (IpAddr, u8)>, rate_pps: u64) -> Result<Self> {
        let mut bpf = EbpfLoader::new()
            .map_max_entries(name::LIVE, live_len(1))
            .load(OBJECT)
            .map_err(Error::bpf("cannot load the packet plane's eBPF object"))?;
        let refused: Vec<Prefix> = refused
            .into_iter()
            .map(Prefix::try_from)
            .collect::<std::result::Result<_, _>>()
            .map_err(Error::bpf("a refused prefix"))?;
        deny(&mut bpf, &refused).map_err(Error::bpf("the refused prefixes"))?;
        // The configuration as words: ports and flags, no sampling, and a rate for sources and for each class.
        let mut config = [0u64; size_of::<Config>() / 8];
        config[0] = u64::from(PORT) | u64::from(PORT) << 16 | u64::from(flag::LOCAL_KNOWN | deny_flags(&refused)) << 32;
        let rate = Rate::per_second(rate_pps, BURST);
        let rates = &mut config[offset_of!(Config, source) / 8..];
        rates.as_chunks_mut::<2>().0.iter_mut().for_each(|words| *words = [rate.interval_ns, rate.burst_ns]);
        const _: () =
            assert!(offset_of!(Config, source) + size_of::<Rate>() * (1 + Class::COUNT) == size_of::<Config>());
        array::<[u64; size_of::<Config>() / 8]>(&mut bpf, name::CONFIG)?
            .set(0, config, 0)
            .map_err(Error::bpf("CONFIG"))?;
        if let Some(position) = live_position(LIVE) {
            array::<u32>(&mut bpf, name::LIVE)?.set(position, LIVE.0, 0).map_err(Error::bpf("LIVE"))?;
        }
        let local = bpf.map_mut(name::LOCAL).ok_or_else(missing)?;
        let mut local: HashMap<_, [u8; 16], u32> = local.try_into().map_err(Error::bpf("LOCAL"))?;
        for ours in [IpAddr::from(OURS), IpAddr::from(OURS_V6)] {
            local.insert(address_key(ours), 1, 0).map_err(Error::bpf("LOCAL"))?;
        }
        set_admission(&mut bpf)?;
        let program: &mut Xdp = bpf.program_mut("wan").ok_or_else(missing)?.try_into().map_err(Error::bpf("wan"))?;
        program.load().map_err(Error::bpf("cannot load wan"))?;
        Ok(Self(bpf))
    }

    fn subjects(&mut self) -> Vec<Subject<'_>> {
        let header = DataHeader { generation: 0, receiver: LIVE, counter: 1 };
        let data = [&header.encode()[..], &[0; 48]].concat();
        let program = Rc::new(RefCell::new(self.0.program_mut("wan")));
        [
            ("live data", data, 60.0),
            ("a QUIC handshake", HANDSHAKE.to_vec(), NOT_DATA_NS),
            ("a QUIC Initial with a member's tag", initial(KEYS[0]), NOT_DATA_NS),
            ("a QUIC Initial with a forged tag", initial([0; 2]), NOT_DATA_NS),
        ]
        .map(|(what, payload, target)| {
            let what = format!("wan: {what}");
            test_run(what, Rc::clone(&program), frame_v4(&payload)).at_most(target)
        })
        .into()
    }

    fn subject(&mut self, what: String, frame: Vec<u8>) -> Subject<'_> {
        test_run(what, Rc::new(RefCell::new(self.0.program_mut("wan"))), frame)
    }
}

fn test_run<'a>(what: String, program: Rc<RefCell<Option<&'a mut Program>>>, frame: Vec<u8>) -> Subject<'a> {
    Subject::measured(what, move || {
        let mut program = program.borrow_mut();
        let Some(xdp) = program.as_mut().and_then(|p| <&mut Xdp>::try_from(&mut **p).ok()) else {
            return f64::NAN;
        };
        let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::new() };
        xdp.test_run(options).map_or(f64::NAN, |result| result.duration.as_nanos() as f64)
    })
}

fn array<'a, V: aya::Pod>(bpf: &'a mut Ebpf, map: &'static str) -> Result<Array<&'a mut aya::maps::MapData, V>> {
    bpf.map_mut(map).ok_or_else(missing)?.try_into().map_err(Error::bpf(map))
}

fn missing() -> Error {
    Error::Io {
        what: "the packet plane's eBPF object is not the expected one".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// Gives `wan` as many keys as it takes. Its clock stands in 1970, as the tags of [`initial`] do.
fn set_admission(bpf: &mut Ebpf) -> Result<()> {
    let mut words = [0u64; size_of::<Admission>() / 8];
    let [places @ .., keys_len] = &mut words;
    for (place, key) in places.chunks_exact_mut(4).zip(KEYS) {
        place.copy_from_slice(&admission::Key::new(key, &NODE).words());
        *keys_len += 1;
    }
    let middle_of_slot = admission::SLOT_SECS / 2 * 1_000_000_000;
    let offset_ns = middle_of_slot.wrapping_sub(monotonic_ns());
    array::<u64>(bpf, name::WALL_CLOCK)?.set(0, offset_ns, 0).map_err(Error::bpf("WALL_CLOCK"))?;
    array::<[u64; size_of::<Admission>() / 8]>(bpf, name::ADMISSION)?.set(0, words, 0).map_err(Error::bpf("ADMISSION"))
}

/// The beginning of a QUIC Initial whose connection id was tagged with this key.
fn initial(key: [u64; 2]) -> Vec<u8> {
    let id = admission::cid([1; 4], 7, 0, admission::tag(key, 7, 0, &NODE));
    [&[0xc3, 0, 0, 0, 1, id.len() as u8], &id[..], &[0; 40]].concat()
}

/// An IPv4 frame to our port.
fn frame_v4(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(SOURCE);
    frame.extend(OURS);
    frame.extend(udp(payload));
    frame
}

/// An IPv6 frame to our port.
fn frame_v6(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([17, 64]);
    frame.extend(SOURCE_V6);
    frame.extend(OURS_V6);
    frame.extend(udp(payload));
    frame
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    [&4000u16.to_be_bytes()[..], &PORT.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}
