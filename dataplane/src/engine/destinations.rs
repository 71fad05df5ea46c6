//! Next hops of the packets of a burst.
//!
//! ```text
//!   few flows:     packet ─▶ like the one before? ─▶ its answer                    │ else a look-up
//!   many flows:    all packets ─▶ one batch of look-ups ─▶ answers, in order       │ packet ─▶ the next answer
//! ```
//!
//! The packets of most bursts are of few flows, and then the last answer serves for the next packet. In a burst for many destinations
//! nearly each packet needs a look-up, and single ones wait for memory one after the other. Whether a burst is like that cannot be known
//! before it is read, but bursts are like the ones before them: so the last one decides. An answer is used for the address that was asked
//! and no other, so nothing but time depends on the guess.

use std::net::{IpAddr, Ipv4Addr};

use super::inner::destination;
use super::lpm::BATCH_LEN;
use super::port::{BURST_LEN, RxBurst};
use super::snapshot::{NextHop, Recent, Snapshot};

const _: () = assert!(BURST_LEN <= BATCH_LEN);

/// Look-ups in a burst from which on those of the next one are made together. With fewer, reading the packets twice costs more than it
/// gains.
const TOGETHER_MIN: usize = 16;

/// The next hops of one burst at a time.
#[derive(Debug)]
pub(super) struct Destinations {
    recent: Recent,
    /// Looked up together, in the order of the packets; consecutive ones differ.
    asked: [IpAddr; BURST_LEN],
    found: [Option<NextHop>; BURST_LEN],
    len: usize,
    /// The answers before this one have been used, or passed over.
    next: usize,
    /// Packets of this burst whose answer was not that of the packet before.
    changes: usize,
}

impl Destinations {
    pub(super) fn new() -> Self {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            recent: Recent::default(),
            asked: [nowhere; BURST_LEN],
            found: [None; BURST_LEN],
            len: 0,
            next: 0,
            changes: 0,
        }
    }

    /// Forgets the burst before and, if that one went to many places, looks up where this one goes.
    pub(super) fn begin(&mut self, snapshot: &Snapshot, rx: &mut impl RxBurst) {
        let many = std::mem::take(&mut self.changes) >= TOGETHER_MIN;
        (self.recent, self.len, self.next) = (Recent::default(), 0, 0);
        if !many {
            return;
        }
        for frame in 0..rx.len().min(BURST_LEN) {
            let Some(destination) = destination(rx.frame(frame).0) else { continue };
            if self.len == 0 || self.asked[self.len - 1] != destination {
                self.asked[self.len] = destination;
                self.len += 1;
            }
        }
        snapshot.routes.lookup_batch(&self.asked[..self.len], &mut self.found);
    }

    /// [`Snapshot::next_hop`] for a packet of the burst that was begun with; `snapshot` is the same.
    #[inline]
    pub(super) fn next_hop(&mut self, snapshot: &Snapshot, destination: IpAddr) -> Option<NextHop> {
        if let Some(hop) = self.recent.answer(destination) {
            return hop;
        }
        self.changes += 1;
        // Mostly the very next one; further on when packets between were dropped before they were routed.
        let ahead = self.asked[self.next..self.len].iter().position(|asked| *asked == destination);
        let hop = match ahead {
            Some(by) => {
                self.next += by + 1;
                self.found[self.next - 1]
            }
            None => snapshot.next_hop(destination),
        };
        self.recent.remember(destination, hop);
        hop
    }
}

#[cfg(test)]
mod tests {
    use super::super::lpm::Lpm;
    use super::super::port::RxMeta;
    use super::super::snapshot::SessionSlot;
    use super::*;

    struct Burst(Vec<Vec<u8>>);

    impl RxBurst for Burst {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn frame(&mut self, i: usize) -> (&mut [u8], RxMeta) {
            (&mut self.0[i], RxMeta::default())
        }
    }

    fn packet(destination: IpAddr) -> Vec<u8> {
        let mut packet = vec![0; 40];
        match destination {
            IpAddr::V4(v4) => {
                packet[0] = 0x45;
                packet[16..20].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                packet[0] = 0x60;
                packet[24..40].copy_from_slice(&v6.octets());
            }
        }
        packet
    }

    fn snapshot() -> Snapshot {
        let routes = (0..100u32).flat_map(|i| {
            let v4 = format!("10.{i}.0.0/16").parse().unwrap();
            let v6 = format!("fd00:{i:x}::/32").parse().unwrap();
            [(v4, NextHop::Session(SessionSlot(i))), (v6, NextHop::Session(SessionSlot(1000 + i)))]
        });
        Snapshot { routes: Lpm::build(routes).unwrap(), ..Snapshot::empty() }
    }

    /// A burst for as many networks of both families as it has packets; every fifth goes nowhere.
    fn scattered(from: u32) -> Vec<IpAddr> {
        let address = |i: u32| match i % 5 {
            0 => format!("192.0.2.{i}").parse().unwrap(),
            1 | 2 => format!("10.{i}.0.1").parse().unwrap(),
            _ => format!("fd00:{i:x}::1").parse().unwrap(),
        };
        (from..from + BURST_LEN as u32).map(address).collect()
    }

    #[test]
    fn answers_are_those_of_single_look_ups_whether_they_were_made_together_or_not() {
        let (mut destinations, snapshot) = (Destinations::new(), snapshot());
        for (round, addresses) in [scattered(0), scattered(30), scattered(0)].into_iter().enumerate() {
            let mut frames: Vec<_> = addresses.iter().map(|address| packet(*address)).collect();
            // Neither of these has a destination.
            frames[7] = vec![0x45; 19];
            frames[8] = vec![];
            destinations.begin(&snapshot, &mut Burst(frames));
            assert_eq!(
                destinations.len,
                if round == 0 { 0 } else { BURST_LEN - 2 },
                "the first one could not be known"
            );
            for (i, address) in addresses.iter().enumerate() {
                // Some are dropped before they are routed, and one is asked that was not in the burst as it was looked up.
                if i % 11 != 10 {
                    assert_eq!(destinations.next_hop(&snapshot, *address), snapshot.next_hop(*address), "{address}");
                }
            }
        }
    }

    #[test]
    fn a_burst_of_few_flows_is_not_read_ahead_and_the_limit_is_where_it_is_said_to_be() {
        let (mut destinations, snapshot) = (Destinations::new(), snapshot());
        let addresses = scattered(0);
        let frames = || Burst(addresses.iter().map(|address| packet(*address)).collect());
        for (asked, ahead) in [(1, 0), (TOGETHER_MIN - 1, 0), (TOGETHER_MIN, BURST_LEN), (0, 0)] {
            for address in &addresses[..asked] {
                destinations.next_hop(&snapshot, *address);
            }
            destinations.begin(&snapshot, &mut frames());
            assert_eq!(destinations.len, ahead, "after {asked} look-ups");
        }
    }

    #[test]
    fn answers_of_one_snapshot_are_not_those_of_the_next() {
        let (mut destinations, before, after) = (Destinations::new(), snapshot(), Snapshot::empty());
        let addresses = scattered(0);
        let mut burst = Burst(addresses.iter().map(|address| packet(*address)).collect());
        for snapshot in [&before, &before, &after] {
            destinations.begin(snapshot, &mut burst);
            for address in &addresses {
                assert_eq!(destinations.next_hop(snapshot, *address), snapshot.next_hop(*address));
            }
        }
    }
}
