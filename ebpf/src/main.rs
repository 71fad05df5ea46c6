//! The programs of the packet plane, as verdict tables. Everything that decides lives in `weir-abi`; everything that touches kernel
//! memory lives in `packet` and `maps`.
//!
//! On a host this is an empty program, so that the workspace builds without an eBPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    allow(internal_features, reason = "compare-and-exchange: see maps.rs")
)]

#[cfg(target_arch = "bpf")]
mod license;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action, xdp_action};
    use aya_ebpf::macros::{classifier, sk_reuseport, socket_filter, xdp};
    use aya_ebpf::programs::{SkBuffContext, SkReuseportContext, TcContext, XdpContext};
    use weir_abi::map::{Counter, Verdict};
    use weir_abi::{classify, flow};

    use crate::maps::{Maps, count, redirect_lan, redirect_wan, select};
    use crate::packet;

    /// The classifier of the underlay, attached natively or generically. What it lets through goes to the sockets, data to the AF_XDP socket
    /// of its queue when there is one.
    #[xdp(frags)]
    fn wan(ctx: XdpContext) -> u32 {
        let (frame, len) = packet::of_xdp(&ctx);
        match count(classify::wan(&frame, &Maps), len) {
            Counter::Passed(Verdict::WanDeliver) if classify::is_untagged(&frame) => {
                redirect_wan(ctx.rx_queue_index(), len)
            }
            Counter::Passed(_) => xdp_action::XDP_PASS,
            Counter::Dropped(_) => xdp_action::XDP_DROP,
        }
    }

    /// The same classifier at tc ingress, for devices whose offloads native XDP would turn off. It judges the first datagram of a merged
    /// train; the worker judges each.
    #[classifier]
    fn wan_tc(ctx: TcContext) -> i32 {
        let (frame, len) = packet::of_tc(&ctx);
        match count(classify::wan(&frame, &Maps), len) {
            Counter::Passed(_) => TC_ACT_UNSPEC,
            Counter::Dropped(_) => TC_ACT_SHOT as i32,
        }
    }

    /// The LAN side: counts what is bound for the overlay and hands it to the worker's AF_XDP socket when there is one.
    #[xdp(frags)]
    fn lan(ctx: XdpContext) -> u32 {
        let (frame, len) = packet::of_xdp(&ctx);
        match count(Ok(classify::lan(&frame, &Maps)), len) {
            Counter::Passed(Verdict::LanOverlay) => redirect_lan(packet::queue_of(&ctx), len),
            _ => xdp_action::XDP_PASS,
        }
    }

    /// Chooses the socket of the reuseport group: data goes to the worker that its receiver index names, all else to the control plane.
    #[sk_reuseport]
    fn steer(ctx: SkReuseportContext) -> u32 {
        let (datagram, len) = packet::of_reuseport(&ctx);
        let role = match packet::head_in_fragments(&ctx, &datagram) {
            Some(head) => classify::steer(head.as_slice(), len as usize, &Maps),
            None => classify::steer(&datagram, len as usize, &Maps),
        };
        let selected = role.and_then(|role| select(&ctx, role));
        match count(selected, len) {
            Counter::Passed(_) => sk_action::SK_PASS,
            Counter::Dropped(_) => sk_action::SK_DROP,
        }
    }

    /// Chooses the queue of the TUN that a local packet is read from. The driver divides what this says by the number of queues
    /// ([`flow::worker_of`]).
    #[socket_filter]
    fn queue(ctx: SkBuffContext) -> i64 {
        i64::from(flow::hash_of(&packet::Copied(&ctx)) as u16)
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // No program can reach this: the verifier accepts neither a panic nor a loop without end.
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
