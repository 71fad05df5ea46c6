//! The maps, and the decision's view of them.
#![allow(unsafe_code, reason = "map values are shared with other cores and with user space")]

use core::intrinsics::AtomicOrdering;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ReusePortSockArray, XskMap};
use aya_ebpf::programs::SkReuseportContext;
use weir_abi::address::Address;
use weir_abi::classify::Tables;
use weir_abi::drop::DropReason;
use weir_abi::gcra::Rate;
use weir_abi::map::{
    Admission, Class, Config, Count, Counter, DENY_BLOCKS_LEN, DENY_SITES_LEN, LanQueue, LanXsk, OVERLAY_FAR,
    SLOTS_PER_WORKER, SOCKETS_LEN, SocketRole, Verdict, XSKS_MAX, deny_block, deny_site, flag, live_position,
    socket_key,
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
static DENY_V4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(1 << 17, 0);
#[map]
static DENY_V6: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1 << 17, 0);
#[map]
static DENY_BLOCKS: Array<u64> = Array::with_max_entries(DENY_BLOCKS_LEN, 0);
#[map]
static DENY_SITES: Array<u64> = Array::with_max_entries(DENY_SITES_LEN, 0);
#[map]
static SOURCES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1 << 16, 0);
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

#[inline(always)]
fn is_set(bits: &Array<u64>, (element, bit): (u32, u64)) -> bool {
    bits.get(element).is_some_and(|bits| bits & bit != 0)
}

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
    fn is_denied(&self, source: &Address, config: &Config) -> bool {
        let has_sites = |of: u32| config.flags & of != 0;
        match source.to_v4() {
            Some(v4) => {
                is_set(&DENY_BLOCKS, deny_block(v4))
                    && (!has_sites(flag::DENY_SITES_V4) || is_set(&DENY_SITES, deny_site(v4.into())))
                    && DENY_V4.get(Key::new(32, v4.to_be())).is_some()
            }
            None => {
                config.flags & flag::DENY_V6 != 0
                    && (!has_sites(flag::DENY_SITES_V6) || is_set(&DENY_SITES, deny_site(source.network_48())))
                    && DENY_V6.get(Key::new(128, *source)).is_some()
            }
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // The coarse clock costs a tenth of the exact one, which is as much as a bucket.
        // SAFETY: the helper has no argument and no effect.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn admit_source(&self, source: &Address, rate: Rate, now_ns: u64) -> bool {
        let key = source.source_key();
        match SOURCES.get_ptr_mut(key) {
            Some(tat) => admit(rate, tat, now_ns),
            None => match rate.admit(0, now_ns) {
                // A full LRU map evicts; any other failure leaves the source without a bucket for one packet more.
                Some(tat) => {
                    let _ = SOURCES.insert(key, tat, 0);
                    true
                }
                None => false,
            },
        }
    }

    #[inline(always)]
    fn admit_class(&self, class: Class, rate: Rate, now_ns: u64) -> bool {
        match CLASSES.get_ptr_mut(class as u32) {
            Some(tat) => admit(rate, tat, now_ns),
            None => false,
        }
    }

    #[inline(always)]
    fn admission(&self) -> Option<&Admission> {
        ADMISSION.get(0)
    }

    #[inline(always)]
    fn wall_secs(&self, now_ns: u64) -> u64 {
        match WALL_CLOCK.get(0) {
            Some(offset) => now_ns.wrapping_add(*offset) / NS_PER_SEC,
            None => 0,
        }
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
fn admit(rate: Rate, tat: *mut u64, now_ns: u64) -> bool {
    // SAFETY: map values are 8-byte aligned and live as long as the program runs; an aligned load of 8 bytes is one BPF instruction. (The
    // LLVM backend cannot select its atomic form.)
    let mut seen = unsafe { tat.read_volatile() };
    for _ in 0..EXCHANGE_TRIES {
        let Some(next) = rate.admit(seen, now_ns) else { return false };
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
