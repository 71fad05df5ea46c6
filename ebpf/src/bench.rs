//! The eBPF programs of the bench: a generator of live frames, a pass program that makes a veth receive them, and a sink at tc ingress.
//!
//! They carry no part of Weir's packet path, so that what is measured is never what measures. The layout of frames and maps is
//! `bench/layout.rs` beside this file; the user half includes the same file, so the two cannot disagree.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "packet memory, map values and helpers are raw pointers in eBPF")
)]

#[cfg(target_arch = "bpf")]
mod license;

#[cfg(target_arch = "bpf")]
#[path = "bench/layout.rs"]
#[allow(dead_code, unreachable_pub, reason = "the user half uses the rest of it, and there it is public")]
mod layout;

/// The crate is empty on a host, where cargo still wants a binary.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[allow(unreachable_pub, reason = "the loader finds programs by their symbols")]
mod programs {
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_tail};
    use aya_ebpf::macros::{classifier, map, xdp};
    use aya_ebpf::maps::{Array, PerCpuArray};
    use aya_ebpf::programs::{TcContext, XdpContext};

    use crate::layout::{
        BUCKETS, FLOWS_MAX, FlowState, GeneratorConfig, GeneratorState, HEAD_LEN, MAGIC, OFFSETS_V4, OFFSETS_V6,
        Offsets, Place, SEGMENTS_MAX, SLOTS_MAX, STAMP_LEN, SinkConfig, SinkCount, Template, bucket,
    };

    #[map]
    static GENERATOR_CONFIG: Array<GeneratorConfig> = Array::with_max_entries(1, 0);
    #[map]
    static GENERATOR_STATE: Array<GeneratorState> = Array::with_max_entries(1, 0);
    #[map]
    static TEMPLATES: Array<Template> = Array::with_max_entries(SLOTS_MAX, 0);
    #[map]
    static SINK_CONFIG: Array<SinkConfig> = Array::with_max_entries(1, 0);
    #[map]
    static SINK_COUNT: PerCpuArray<SinkCount> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static FLOWS: Array<FlowState> = Array::with_max_entries(FLOWS_MAX, 0);
    #[map]
    static LATENCY: PerCpuArray<u64> = PerCpuArray::with_max_entries(BUCKETS, 0);

    /// Passes every frame. Jumbo frames too: without `frags` a veth with a large MTU refuses the program.
    #[xdp(frags)]
    pub fn pass(_: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Makes the next frame of the stream out of whatever a recycled page holds, and redirects it.
    #[xdp]
    pub fn generate(ctx: XdpContext) -> u32 {
        try_generate(&ctx).unwrap_or(XDP_ABORTED)
    }

    #[inline(always)]
    fn try_generate(ctx: &XdpContext) -> Option<u32> {
        let config = GENERATOR_CONFIG.get(0)?;
        // SAFETY: a live-frames run executes on one CPU and user space writes between runs only, so nobody else holds this element.
        let state = unsafe { &mut *GENERATOR_STATE.get_ptr_mut(0)? };
        let place = config.schedule.place(state.next);
        let template = TEMPLATES.get(place.slot)?;
        // Not from the packet pointers: their difference gets rearranged into arithmetic that the verifier forbids.
        let surplus = config.frame_len_max as i32 - template.frame_len as i32;
        // SAFETY: the context is the one the kernel gave us.
        if surplus != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) } != 0 {
            return None;
        }
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        if template.ipv6 == 0 {
            write::<{ OFFSETS_V4.stamp + STAMP_LEN }>(ctx, template, OFFSETS_V4, place, now)?;
        } else {
            write::<HEAD_LEN>(ctx, template, OFFSETS_V6, place, now)?;
        }
        state.next += 1;
        state.bytes += u64::from(template.frame_len);
        if state.first_ns == 0 {
            state.first_ns = now;
        }
        state.last_ns = now;
        // SAFETY: plain numbers.
        Some(unsafe { bpf_redirect(config.ifindex, 0) } as u32)
    }

    /// Writes the first `LEN` bytes of a frame: the template, then the words that change.
    #[inline(always)]
    fn write<const LEN: usize>(
        ctx: &XdpContext,
        template: &Template,
        at: Offsets,
        place: Place,
        now: u64,
    ) -> Option<()> {
        let data = ctx.data();
        if data + LEN > ctx.data_end() {
            return None;
        }
        for i in 0..LEN / 8 {
            // SAFETY: `i * 8 + 8 <= LEN`, and `LEN` bytes are inside the frame by the comparison above.
            unsafe { *((data + i * 8) as *mut u64) = template.head[i] };
        }
        if LEN % 8 != 0 {
            // SAFETY: the same; `LEN` is a multiple of four, so its last four bytes are what the loop left.
            unsafe { *((data + LEN / 8 * 8) as *mut u32) = template.head[LEN / 8] as u32 };
        }
        template.fill(at, place, now, |offset, word| {
            // SAFETY: every offset of `at` and of the stamp lies under `LEN`.
            unsafe { *((data + offset) as *mut u16) = word.to_be() };
        });
        Some(())
    }

    /// Counts stamped datagrams and, unless told otherwise, drops them.
    #[classifier]
    pub fn sink(ctx: TcContext) -> i32 {
        try_sink(&ctx).unwrap_or(TC_ACT_UNSPEC)
    }

    #[inline(always)]
    fn try_sink(ctx: &TcContext) -> Option<i32> {
        let config = SINK_CONFIG.get(0)?;
        // SAFETY: a per-CPU element, and tc ingress does not nest on a CPU.
        let count = unsafe { &mut *SINK_COUNT.get_ptr_mut(0)? };
        let Some((at, first)) = first_stamp(ctx) else {
            count.others += 1;
            return None;
        };
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        let headers = at as u64;
        let len = u64::from(ctx.len());
        // SAFETY: the kernel rewrites these reads of its context.
        let (gso_segs, gso_size) = unsafe { ((*ctx.skb.skb).gso_segs, (*ctx.skb.skb).gso_size) };
        // A TUN leaves the count of segments to be worked out from their size.
        let segments = match (gso_size, gso_segs) {
            (0, _) => 1,
            (size, 0) => (len - headers).div_ceil(u64::from(size)),
            (_, segments) => u64::from(segments),
        };
        count.skbs += 1;
        count.datagrams += segments;
        count.bytes += len + (segments - 1) * headers;
        if count.first_ns == 0 {
            count.first_ns = now;
        }
        count.last_ns = now;
        if config.every_segment == 0 || segments == 1 {
            account(count, first, segments, now);
        } else {
            for i in 0..SEGMENTS_MAX {
                if u64::from(i) == segments {
                    break;
                }
                match ctx.load::<[u8; STAMP_LEN]>(at + (i * gso_size) as usize).ok().and_then(parse) {
                    Some(stamp) => account(count, stamp, 1, now),
                    None => break,
                }
            }
        }
        if config.pass == 0 { Some(TC_ACT_SHOT) } else { None }
    }

    #[derive(Clone, Copy)]
    struct Stamp {
        flow: u16,
        sequence: u32,
        time_ns: u64,
    }

    /// Notes `segments` datagrams in a row that begin with this stamp.
    #[inline(always)]
    fn account(count: &mut SinkCount, stamp: Stamp, segments: u64, now: u64) {
        count.stamps += 1;
        if let Some(flow) = FLOWS.get_ptr_mut(u32::from(stamp.flow)) {
            // SAFETY: a live map element; a race with another CPU can only blur this flow's order, never memory.
            let flow = unsafe { &mut *flow };
            let sequence = u64::from(stamp.sequence);
            flow.received += segments;
            if sequence < flow.next {
                count.reordered += segments;
            } else {
                flow.next = sequence + segments;
            }
        }
        if let Some(bucket) = LATENCY.get_ptr_mut(bucket(now.saturating_sub(stamp.time_ns))) {
            // SAFETY: a per-CPU element, as above.
            unsafe { *bucket += 1 };
        }
    }

    /// Finds the first stamp and where it stands. One copy covers a whole IPv4 head; IPv6 needs a second.
    #[inline(always)]
    fn first_stamp(ctx: &TcContext) -> Option<(usize, Stamp)> {
        let head: [u8; OFFSETS_V4.stamp + STAMP_LEN] = ctx.load(0).ok()?;
        match (head[12], head[13]) {
            (0x08, 0x00) if head[14] == 0x45 && head[23] == 17 => {
                let mut stamp = [0; STAMP_LEN];
                stamp.copy_from_slice(&head[OFFSETS_V4.stamp..]);
                Some((OFFSETS_V4.stamp, parse(stamp)?))
            }
            (0x86, 0xdd) if head[20] == 17 => Some((OFFSETS_V6.stamp, parse(ctx.load(OFFSETS_V6.stamp).ok()?)?)),
            _ => None,
        }
    }

    #[inline(always)]
    fn parse(b: [u8; STAMP_LEN]) -> Option<Stamp> {
        if u32::from_be_bytes([b[0], b[1], b[2], b[3]]) != MAGIC {
            return None;
        }
        Some(Stamp {
            flow: u16::from_be_bytes([b[4], b[5]]),
            sequence: u32::from_be_bytes([b[6], b[7], b[8], b[9]]),
            time_ns: u64::from_be_bytes([b[10], b[11], b[12], b[13], b[14], b[15], b[16], b[17]]),
        })
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
