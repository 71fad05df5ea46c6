//! What a look-up costs in a routing snapshot, for destinations in random order: one by one, and a burst of them together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use weir_dataplane::api::Prefix;
use weir_dataplane::engine::lpm::{BATCH_LEN, Lpm};

use super::Subject;

const ROUTES: u32 = 100_000;
/// Destinations in turn; more than the caches can learn.
const DESTINATIONS: usize = 1 << 18;
const TIMES: u32 = DESTINATIONS as u32;

/// Routes of one family, and destinations inside them.
pub(super) struct Routes {
    pub(super) prefixes: Vec<Prefix>,
    pub(super) destinations: Vec<IpAddr>,
}

/// Tables of both families, with destinations inside their routes.
pub(super) struct Tables {
    v4: (Lpm<u32>, Vec<IpAddr>),
    v6: (Lpm<u32>, Vec<IpAddr>),
}

/// A well-mixed number for each `n` (the finaliser of SplitMix64).
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn routes(route: impl Fn(u32) -> (IpAddr, u8), inside: impl Fn(IpAddr, u64) -> IpAddr) -> Routes {
    let routes: Vec<_> = (0..ROUTES).map(&route).collect();
    let destination = |i: usize| {
        let random = mixed(i as u64);
        inside(routes[(random % u64::from(ROUTES)) as usize].0, random >> 32)
    };
    Routes {
        prefixes: routes.iter().filter_map(|&(address, len)| Prefix::new(address, len).ok()).collect(),
        destinations: (0..DESTINATIONS).map(destination).collect(),
    }
}

/// 100,000 IPv4 networks of 24 bits at random.
pub(super) fn routes_v4() -> Routes {
    routes(
        |i| (Ipv4Addr::from_bits((mixed(i.into()) as u32) & 0xffff_ff00).into(), 24),
        |network, random| match network {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | (random as u32 & 0xff)).into(),
            v6 @ IpAddr::V6(_) => v6,
        },
    )
}

/// 100,000 IPv6 networks of 64 bits at random.
fn routes_v6() -> Routes {
    routes(
        |i| (Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(mixed(i.into()) & 0xffff_ffff_ffff) << 64).into(), 64),
        |network, random| match network {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | u128::from(random)).into(),
            v4 @ IpAddr::V4(_) => v4,
        },
    )
}

impl Tables {
    pub(super) fn build() -> Self {
        let table = |routes: Routes| {
            let lpm = Lpm::build(routes.prefixes.into_iter().zip(0..)).expect("100,000 routes are below the limit");
            (lpm, routes.destinations)
        };
        Self { v4: table(routes_v4()), v6: table(routes_v6()) }
    }

    pub(super) fn subjects(&self) -> Vec<Subject<'_>> {
        [("IPv4 /24", &self.v4), ("IPv6 /64", &self.v6)]
            .into_iter()
            .flat_map(|(family, (lpm, destinations))| {
                let what = format!("{ROUTES} routes {family} in {} KiB", lpm.memory_bytes() / 1024);
                let single = Subject::timed(format!("look-up, {what}"), TIMES, move |i| {
                    std::hint::black_box(lpm.lookup(destinations[i as usize]));
                });
                let together = Subject::measured(format!("look-up in a batch of {BATCH_LEN}, {what}"), move || {
                    let mut found = [None; BATCH_LEN];
                    let start = Instant::now();
                    for batch in destinations.chunks(BATCH_LEN) {
                        lpm.lookup_batch(batch, &mut found);
                        std::hint::black_box(&mut found);
                    }
                    start.elapsed().as_nanos() as f64 / destinations.len() as f64
                });
                [single, together.at_most(60.0)]
            })
            .collect()
    }
}
