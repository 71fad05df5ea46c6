//! The loaded object, driven through BPF test run.

use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use weir_abi::admission::{self, KEYS_MAX};
use weir_abi::drop::DropReason;
use weir_abi::gcra::Rate;
use weir_abi::map::{Admission, Class, Config, Counter, Verdict, flag, live_len, live_position, name};
use weir_abi::wire::ReceiverIndex;
use weir_dataplane::api::Prefix;
use weir_dataplane::io::bpf::{OBJECT, address_key, deny, deny_flags};

use crate::frames::{OUR_V4, OUR_V6, PORT};

/// What a program decided, as its counters tell it.
pub(crate) type Decision = Result<Verdict, DropReason>;

/// Which form of the classifier runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// The one open lane of the tests.
pub(crate) const LIVE: ReceiverIndex = ReceiverIndex::new(1, 7, 5);

pub(crate) const UNLIMITED: Rate = Rate { interval_ns: 0, burst_ns: 0 };

pub(crate) fn config() -> Config {
    Config {
        port_first: PORT,
        port_last: PORT + 3,
        flags: flag::LOCAL_KNOWN | flag::WAN_ATTACHED | deny_flags(&denied()),
        miss_sample: 0,
        xsk_frame_len_max: 0,
        source: UNLIMITED,
        class: [UNLIMITED; Class::COUNT],
    }
}

/// Admission keys, the newest first, and one that is none of them.
pub(crate) const KEYS: [[u64; 2]; KEYS_MAX] = [[0x1111, 0x2222], [0x3333, 0x4444], [0x5555, 0x6666]];
pub(crate) const STRANGE_KEY: [u64; 2] = [0x7777, 0x8888];
/// Who we are to those that make tags, and somebody else.
pub(crate) const NODE: [u8; 32] = [0x4e; 32];
pub(crate) const OTHER_NODE: [u8; 32] = [0x4f; 32];

/// Sources that are refused. One prefix is shorter than the blocks that are looked at first, one is a block, one a part of one.
pub(crate) const DENIED: [&str; 4] = ["198.18.0.0/15", "198.51.100.0/24", "198.51.102.64/26", "2001:db8:bad::/48"];

fn denied() -> Vec<Prefix> {
    DENIED.map(|prefix| prefix.parse().unwrap()).into()
}

/// What the kernel is told of tags: these keys for [`NODE`].
pub(crate) fn admission(keys: &[[u64; 2]]) -> Admission {
    let none = admission::Key::from_words([0; 4]);
    let mut admission = Admission { keys: [none; KEYS_MAX], keys_len: keys.len() as u64 };
    for (place, key) in admission.keys.iter_mut().zip(keys) {
        *place = admission::Key::new(*key, &NODE);
    }
    admission
}

pub(crate) struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads the object with the tests' tables: one live lane, our two addresses, the prefixes of [`DENIED`].
    pub(crate) fn new(config: Config) -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::LIVE, live_len(2))
            .load(OBJECT)
            .expect("the object loads: run the tests as root");
        let mut live: Array<_, u32> = ebpf.map_mut(name::LIVE).unwrap().try_into().unwrap();
        live.set(live_position(LIVE).unwrap(), LIVE.0, 0).unwrap();
        let mut local: HashMap<_, [u8; 16], u32> = ebpf.map_mut(name::LOCAL).unwrap().try_into().unwrap();
        local.insert(address_key(OUR_V4.into()), 1, 0).unwrap();
        local.insert(address_key(OUR_V6.into()), 1, 0).unwrap();
        deny(&mut ebpf, &denied()).unwrap();
        let xdp: &mut Xdp = ebpf.program_mut("wan").unwrap().try_into().unwrap();
        xdp.load().unwrap();
        let tc: &mut SchedClassifier = ebpf.program_mut("wan_tc").unwrap().try_into().unwrap();
        tc.load().unwrap();
        let mut kernel = Self { ebpf };
        kernel.configure(config);
        kernel
    }

    pub(crate) fn configure(&mut self, config: Config) {
        // As bytes: the loader's own marker type is private, and so is the orphan rule's remedy.
        let map: &mut aya::maps::Map = self.ebpf.map_mut(name::CONFIG).unwrap();
        let mut array: Array<_, [u64; size_of::<Config>() / 8]> = map.try_into().unwrap();
        array.set(0, words(&config), 0).unwrap();
    }

    /// Gives the programs admission keys, and a clock that says `wall_secs` since 1970 now.
    pub(crate) fn admit(&mut self, admission: &Admission, wall_secs: u64) {
        let mut words = [0u64; size_of::<Admission>() / 8];
        for (place, key) in words.chunks_mut(4).zip(&admission.keys) {
            place.copy_from_slice(&key.words());
        }
        *words.last_mut().unwrap() = admission.keys_len;
        let map: &mut aya::maps::Map = self.ebpf.map_mut(name::ADMISSION).unwrap();
        let mut array: Array<_, [u64; size_of::<Admission>() / 8]> = map.try_into().unwrap();
        array.set(0, words, 0).unwrap();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let mut clock: Array<_, u64> = self.ebpf.map_mut(name::WALL_CLOCK).unwrap().try_into().unwrap();
        clock.set(0, (wall_secs * 1_000_000_000).wrapping_sub(now), 0).unwrap();
    }

    /// Runs one frame; gives the action and the frame that came out.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = match hook {
            Hook::Xdp => self.xdp().test_run(options),
            Hook::Tc => {
                let tc: &mut SchedClassifier = self.ebpf.program_mut("wan_tc").unwrap().try_into().unwrap();
                tc.test_run(options)
            }
        }
        .expect("test run");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Runs one frame at XDP for its action alone.
    pub(crate) fn action(&mut self, frame: &[u8]) -> u32 {
        self.xdp()
            .test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() })
            .expect("test run")
            .return_value
    }

    fn xdp(&mut self) -> &mut Xdp {
        self.ebpf.program_mut("wan").unwrap().try_into().unwrap()
    }

    /// All counters, by element.
    pub(crate) fn counters(&mut self) -> Vec<u64> {
        let counters: PerCpuArray<_, [u64; 2]> = self.ebpf.map_mut(name::COUNTERS).unwrap().try_into().unwrap();
        (0..Counter::TABLE_LEN).map(|i| counters.get(&i, 0).unwrap().iter().map(|c| c[0]).sum()).collect()
    }
}

/// Every decision there is, with its element among the counters.
pub(crate) fn decisions() -> impl Iterator<Item = (usize, Decision)> {
    let verdicts = Verdict::ALL.iter().map(|&v| (Counter::Passed(v).index() as usize, Ok(v)));
    verdicts.chain(DropReason::ALL.iter().map(|&r| (Counter::Dropped(r).index() as usize, Err(r))))
}

/// The action that a decision must come out as.
pub(crate) fn expected_action(hook: Hook, decision: Decision) -> u32 {
    match (hook, decision) {
        (Hook::Xdp, Ok(_)) => 2,       // XDP_PASS
        (Hook::Xdp, Err(_)) => 1,      // XDP_DROP
        (Hook::Tc, Ok(_)) => u32::MAX, // TC_ACT_UNSPEC
        (Hook::Tc, Err(_)) => 2,       // TC_ACT_SHOT
    }
}

fn words(config: &Config) -> [u64; size_of::<Config>() / 8] {
    let mut words = [0; size_of::<Config>() / 8];
    words[0] = u64::from(config.port_first) | u64::from(config.port_last) << 16 | u64::from(config.flags) << 32;
    words[1] = u64::from(config.miss_sample) | u64::from(config.xsk_frame_len_max) << 32;
    for (i, rate) in std::iter::once(&config.source).chain(&config.class).enumerate() {
        words[2 + 2 * i] = rate.interval_ns;
        words[3 + 2 * i] = rate.burst_ns;
    }
    words
}
