//! From a program's context to the bytes that it may read: the one place that turns kernel addresses into spans.
#![allow(unsafe_code, reason = "the kernel hands a program two addresses, not a slice")]

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{SkBuffContext, SkReuseportContext, TcContext, XdpContext};
use weir_abi::cursor::{Bytes, Span};
use weir_abi::map::LanQueue;

/// Bytes that the classifier may want to see: Ethernet, two tags, IPv6 with its longest usual chain, UDP and the overlay header.
const HEADERS_LEN: u32 = 192;

/// Bytes that `steer` looks at: the UDP header and the first half of ours.
const STEER_LEN: usize = 16;

/// The linear part of a frame at XDP, and the length of the whole frame.
#[inline(always)]
pub(crate) fn of_xdp(ctx: &XdpContext) -> (Span, u64) {
    // SAFETY: `data..data_end` is the linear part of the frame; it stays readable until the program ends, since nothing here moves it.
    let span = unsafe { Span::new(ctx.data(), ctx.data_end()) };
    // SAFETY: the helper reads only the context that the kernel gave us.
    let len = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    (span, len)
}

/// The receive queue that a frame at XDP came by.
#[inline(always)]
pub(crate) fn queue_of(ctx: &XdpContext) -> LanQueue {
    // Volatile, so that two neighbouring fields are not read as one: the verifier allows a context to be read only as its fields are.
    // SAFETY: the context is the kernel's, and its fields are aligned.
    let [interface, queue] = unsafe {
        [
            (&raw const (*ctx.ctx).ingress_ifindex).read_volatile(),
            (&raw const (*ctx.ctx).rx_queue_index).read_volatile(),
        ]
    };
    LanQueue { interface, queue }
}

/// The linear part of a frame at tc, and the length of the whole frame. A merged train may keep even its headers in fragments; they are
/// pulled into the linear part first.
#[inline(always)]
pub(crate) fn of_tc(ctx: &TcContext) -> (Span, u64) {
    let len = ctx.len();
    let wanted = if len < HEADERS_LEN { len } else { HEADERS_LEN };
    if ctx.data() + wanted as usize > ctx.data_end() {
        // On failure the linear part stays as it is and the parser sees a short frame, which it leaves to the kernel.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the addresses are read after the last helper that may move the data.
    (unsafe { Span::new(ctx.data(), ctx.data_end()) }, u64::from(len))
}

/// A datagram as `steer` sees it, from the UDP header on, and its length.
#[inline(always)]
pub(crate) fn of_reuseport(ctx: &SkReuseportContext) -> (Span, u64) {
    // SAFETY: `data..data_end` is the linear part from the transport header on; nothing here moves it.
    let span = unsafe { Span::new(ctx.data(), ctx.data_end()) };
    (span, ctx.len() as u64)
}

/// The first bytes of a datagram whose linear part does not hold them: a local sender's train, or a driver that splits headers off, keeps
/// the whole payload in fragments. `None` when they are in the linear part, or when there are not so many.
#[inline(always)]
pub(crate) fn head_in_fragments(ctx: &SkReuseportContext, linear: &Span) -> Option<[u8; STEER_LEN]> {
    if linear.len() >= STEER_LEN {
        return None;
    }
    let mut head = [0; STEER_LEN];
    // SAFETY: the context is the kernel's, and the helper writes `STEER_LEN` bytes to `head`, which has as many, or fails.
    let result = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), 0, head.as_mut_ptr().cast(), STEER_LEN as u32) };
    (result == 0).then_some(head)
}

/// A packet that a socket filter may only copy from: the verifier gives such programs no packet pointers.
pub(crate) struct Copied<'a>(pub(crate) &'a SkBuffContext);

impl Bytes for Copied<'_> {
    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.array(offset).map(|[byte]| byte)
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_be_bytes)
    }

    #[inline(always)]
    fn u64(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_be_bytes)
    }

    #[inline(always)]
    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the context is the kernel's, and the helper writes `N` bytes to `bytes`, which has as many, or fails.
        let result = unsafe { bpf_skb_load_bytes(self.0.as_ptr(), offset as u32, bytes.as_mut_ptr().cast(), N as u32) };
        (result == 0).then_some(bytes)
    }
}
