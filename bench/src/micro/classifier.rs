//! What `wan` costs for one frame, as BPF test run counts it, with 10,000 refused prefixes in its trie.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use weir_abi::admission::{self, KEYS_MAX};
use weir_abi::map::{Admission, Config, live_len, live_position, name};
use weir_abi::wire::{DataHeader, ReceiverIndex};
use weir_dataplane::io::bpf::OBJECT;

use super::Subject;
use crate::sys::clock::monotonic_ns;
use crate::{Error, Result};

const PORT: u16 = 4646;
const LIVE: ReceiverIndex = ReceiverIndex::new(0, 7, 5);
const DENIED: u32 = 10_000;
const REPEAT: u32 = 500_000;
const KEYS: [[u64; 2]; KEYS_MAX] = [[1, 2], [3, 4], [5, 6]];
const NODE: [u8; 32] = [7; 32];

/// The loaded program.
pub(super) struct Wan(Ebpf);

impl Wan {
    /// # Errors
    /// When the object does not load; that needs root.
    pub(super) fn load() -> Result<Self> {
        let mut bpf = EbpfLoader::new()
            .map_max_entries(name::LIVE, live_len(1))
            .load(OBJECT)
            .map_err(Error::bpf("cannot load the packet plane's eBPF object"))?;
        // The configuration as words: ports, no flags and no sampling, no rates.
        let mut config = [0u64; size_of::<Config>() / 8];
        config[0] = u64::from(PORT) | u64::from(PORT) << 16;
        array::<[u64; size_of::<Config>() / 8]>(&mut bpf, name::CONFIG)?
            .set(0, config, 0)
            .map_err(Error::bpf("CONFIG"))?;
        if let Some(position) = live_position(LIVE) {
            array::<u32>(&mut bpf, name::LIVE)?.set(position, LIVE.0, 0).map_err(Error::bpf("LIVE"))?;
        }
        set_admission(&mut bpf)?;
        let deny = bpf.map_mut(name::DENY).ok_or_else(missing)?;
        let mut deny: LpmTrie<_, [u8; 16], u32> = deny.try_into().map_err(Error::bpf("DENY"))?;
        for i in 0..DENIED {
            let network = (100 << 24 | i << 8).to_be_bytes();
            let mut mapped = [0; 16];
            mapped[10..12].fill(0xff);
            mapped[12..].copy_from_slice(&network);
            deny.insert(&Key::new(96 + 24, mapped), 1, 0).map_err(Error::bpf("DENY"))?;
        }
        let program: &mut Xdp = bpf.program_mut("wan").ok_or_else(missing)?.try_into().map_err(Error::bpf("wan"))?;
        program.load().map_err(Error::bpf("cannot load wan"))?;
        Ok(Self(bpf))
    }

    pub(super) fn subjects(&mut self) -> Vec<Subject<'_>> {
        let program = std::cell::RefCell::new(self.0.program_mut("wan"));
        let program = std::rc::Rc::new(program);
        let header = DataHeader { generation: 0, receiver: LIVE, counter: 1 };
        let data = [&header.encode()[..], &[0; 48]].concat();
        [
            ("live data", data, 60.0),
            ("a QUIC handshake past the trie", vec![0xc0; 64], 160.0),
            ("a QUIC Initial with a member's tag", initial(KEYS[0]), 160.0),
            ("a QUIC Initial with a forged tag", initial([0; 2]), 160.0),
        ]
        .map(|(what, payload, target)| {
            let frame = frame(&payload);
            let program = std::rc::Rc::clone(&program);
            Subject::measured(format!("wan: {what}, {DENIED} prefixes refused"), move || {
                let mut program = program.borrow_mut();
                let Some(xdp) = program.as_mut().and_then(|p| <&mut Xdp>::try_from(&mut **p).ok()) else {
                    return f64::NAN;
                };
                let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::new() };
                xdp.test_run(options).map_or(f64::NAN, |result| result.duration.as_nanos() as f64)
            })
            .at_most(target)
        })
        .into()
    }
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
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1]);
    frame.extend(4000u16.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}
