//! The maps, and the decision's view of them.
#![allow(unsafe_code, reason = "map values are shared with other cores and with user space")]

use core::intrinsics::AtomicOrdering;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ReusePortSockArray, XskMap};
use aya_ebpf::programs::SkReuseportContext;
use weir_abi::classify::Tables;
use weir_abi::drop::DropReason;
use weir_abi::frame::Address;
use weir_abi::gcra::Rate;
use weir_abi::map::{
    Admission, Class, Config, Count, Counter, LanQueue, LanXsk, OVERLAY_FAR, SLOTS_PER_WORKER, SOCKETS_LEN, SocketRole,
    Verdict, XSKS_MAX, live_position, socket_key, source_key,
};
use weir_abi::wire::ReceiverIndex;

/// EtherType of IPv6 in network byte order, as `sk_reuseport_md` has it.
const ETHERTYPE_IPV6_BE: u32 = (weir_abi::frame::ETHERTYPE_IPV6 as u32).swap_bytes() >> 16;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// The loader makes it as large as the plane has workers.
#[map]
static LIVE: Array<u32> = Array::with_max_entries(SLOTS_PER_WORKER, 0);
#[map]
static LOCAL: HashMap<Address, u32> = HashMap::with_max_entries(1024, 0);
#[map]
static DENY: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1 << 17, 0);
#[map]
static SOURCES: LruHashMap<Address, u64> = LruHashMap::with_max_entries(1 << 16, 0);
#[map]
static CLASSES: Array<u64> = Array::with_max_entries(Class::COUNT as u32, 0);
#[map]
static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Counter::TABLE_LEN, 0);
#[map]
static SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(SOCKETS_LEN, 0);
#[map]
static OVERLAY: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1 << 14, 0);
#[map]
static WAN_XSKS: XskMap = XskMap::with_max_entries(XSKS_MAX, 0);
#[map]
static LAN_QUEUES: HashMap<LanQueue, LanXsk> = HashMap::with_max_entries(XSKS_MAX, 0);
#[map]
static LAN_XSKS: XskMap = XskMap::with_max_entries(XSKS_MAX, 0);
#[map]
static ADMISSION: Array<Admission> = Array::with_max_entries(1, 0);
#[map]
static WALL_CLOCK: Array<u64> = Array::with_max_entries(1, 0);

/// Tries of one compare-and-exchange. A bucket that four other cores change meanwhile is a bucket under attack: the packet counts as over.
const EXCHANGE_TRIES: u32 = 4;

const NS_PER_SEC: u64 = 1_000_000_000;

/// The kernel maps, as [`Tables`].
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn is_live(&self, index: ReceiverIndex) -> bool {
        match live_position(index).and_then(|position| LIVE.get(position)) {
            Some(live) => *live == index.0 && index.0 != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_denied(&self, source: &Address) -> bool {
        DENY.get(Key::new(128, *source)).is_some()
    }

    #[inline(always)]
    fn admit_source(&self, source: &Address) -> bool {
        let Some(config) = self.config() else { return false };
        if config.source.interval_ns == 0 {
            return true;
        }
        let key = source_key(*source);
        match SOURCES.get_ptr_mut(key) {
            Some(tat) => admit(config.source, tat),
            None => {
                // SAFETY: the helper has no argument and no effect.
                let now = unsafe { bpf_ktime_get_ns() };
                match config.source.admit(0, now) {
                    // A full LRU map evicts; any other failure leaves the source without a bucket for one packet more.
                    Some(tat) => {
                        let _ = SOURCES.insert(key, tat, 0);
                        true
                    }
                    None => false,
                }
            }
        }
    }

    #[inline(always)]
    fn admit_class(&self, class: Class) -> bool {
        let Some(config) = self.config() else { return false };
        let rate = match class {
            Class::Stun => config.class[0],
            Class::QuicLong => config.class[1],
            Class::QuicShort => config.class[2],
            Class::Rpc => config.class[3],
            Class::QuicInitialTagged => config.class[4],
            Class::QuicInitialUntagged => config.class[5],
        };
        if rate.interval_ns == 0 {
            return true;
        }
        match CLASSES.get_ptr_mut(class as u32) {
            Some(tat) => admit(rate, tat),
            None => false,
        }
    }

    #[inline(always)]
    fn admission(&self) -> Option<&Admission> {
        ADMISSION.get(0)
    }

    #[inline(always)]
    fn wall_secs(&self) -> u64 {
        let Some(offset) = WALL_CLOCK.get(0) else { return 0 };
        // The coarse clock is some milliseconds behind and costs a tenth of the exact one.
        // SAFETY: the helper has no argument and no effect.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        now.wrapping_add(*offset) / NS_PER_SEC
    }

    #[inline(always)]
    fn is_overlay(&self, address: &Address) -> bool {
        OVERLAY.get(Key::new(128, *address)) == Some(&OVERLAY_FAR)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no argument and no effect besides the generator's state.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// Takes one packet from a bucket that other cores use too.
#[inline(always)]
fn admit(rate: Rate, tat: *mut u64) -> bool {
    // SAFETY: the helper has no argument and no effect.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: map values are 8-byte aligned and live as long as the program runs; an aligned load of 8 bytes is one BPF instruction. (The
    // LLVM backend cannot select its atomic form.)
    let mut seen = unsafe { tat.read_volatile() };
    for _ in 0..EXCHANGE_TRIES {
        let Some(next) = rate.admit(seen, now) else { return false };
        match compare_exchange(tat, seen, next) {
            Ok(()) => return true,
            Err(other) => seen = other,
        }
    }
    false
}

/// `BPF_ATOMIC | BPF_CMPXCHG` (Linux 5.12). The target description says that BPF has no compare-and-exchange, which was true of its first
/// instruction set, so `core` offers only the intrinsic.
#[inline(always)]
fn compare_exchange(at: *mut u64, old: u64, new: u64) -> Result<(), u64> {
    // SAFETY: as in `admit`: an aligned map value that lives as long as the program.
    let (seen, exchanged) = unsafe {
        core::intrinsics::atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new)
    };
    if exchanged { Ok(()) } else { Err(seen) }
}

/// Counts a decision and gives it back as the counter that moved.
#[inline(always)]
pub(crate) fn count(decision: Result<Verdict, DropReason>, bytes: u64) -> Counter {
    let counter = match decision {
        Ok(verdict) => Counter::Passed(verdict),
        Err(reason) => Counter::Dropped(reason),
    };
    if let Some(count) = COUNTERS.get_ptr_mut(counter.index()) {
        // SAFETY: the element belongs to this core, and programs of one core do not interrupt each other at these hooks.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
    counter
}

/// Makes the socket with this role the datagram's.
#[inline(always)]
pub(crate) fn select(ctx: &SkReuseportContext, role: SocketRole) -> Result<Verdict, DropReason> {
    let key = socket_key(ctx.eth_protocol() == ETHERTYPE_IPV6_BE, role);
    match (SOCKETS.select_reuseport(ctx, key), role) {
        (Ok(()), SocketRole::Worker(_)) => Ok(Verdict::SteerWorker),
        (Ok(()), SocketRole::Control) => Ok(Verdict::SteerControl),
        (Err(_), _) => Err(DropReason::SteerNoWorker),
    }
}

/// Redirects a data frame from the underlay to the AF_XDP socket of its queue; without one the kernel's socket gets it.
#[inline(always)]
pub(crate) fn redirect_wan(queue: u32, len: u64) -> u32 {
    match CONFIG.get(0) {
        Some(config) if len <= u64::from(config.xsk_frame_len_max) => {
            WAN_XSKS.redirect(queue, u64::from(xdp_action::XDP_PASS)).unwrap_or(xdp_action::XDP_PASS)
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// Redirects a LAN frame to the AF_XDP socket of its queue; without one the kernel's router gets it.
#[inline(always)]
pub(crate) fn redirect_lan(queue: LanQueue, len: u64) -> u32 {
    match LAN_QUEUES.get_ptr(queue) {
        Some(xsk) => {
            // SAFETY: map values live as long as the program runs, and user space replaces them whole.
            let LanXsk { position, frame_len_max } = unsafe { *xsk };
            if len > u64::from(frame_len_max) {
                return xdp_action::XDP_PASS;
            }
            LAN_XSKS.redirect(position, u64::from(xdp_action::XDP_PASS)).unwrap_or(xdp_action::XDP_PASS)
        }
        None => xdp_action::XDP_PASS,
    }
}
