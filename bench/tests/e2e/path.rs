//! The path MTU: found, lost and found again.

use std::time::Duration;

use weir_bench::external::tcp_transfer;
use weir_bench::pair::{INNER_MTU, Pair, PairConfig};
use weir_bench::rig::{Family, Rig, RigConfig};

use crate::support::*;

/// Waits until gateway `side` sends datagrams of `len` bytes and tells hosts so. Something must cross meanwhile: nobody probes an idle path.
#[track_caller]
fn finds(rig: &Rig, pair: &mut Pair<'_>, side: usize, len: u16) {
    let (h1, h2) = (rig.h1(), rig.h2());
    let expected = (len, (len - 32).clamp(1280, INNER_MTU));
    let mut found = (0, 0);
    let is_found = eventually(Duration::from_secs(30), || {
        tcp_transfer(h1, h2, h2.lan.address(Family::V4), Duration::from_secs(1)).unwrap();
        let session = session(pair, side);
        found = (session.datagram_len, session.inner_mtu);
        found == expected
    });
    assert!(is_found, "datagrams and inner MTU of gateway {side} are {found:?}, not {expected:?}");
}

#[test]
fn a_path_is_searched_up_to_jumbo_frames_and_down_to_tiny_ones() {
    let _alone = alone();
    for (mtu, len) in [(9000, 8972), (1500, 1472), (1280, 1252)] {
        let rig = Rig::new(RigConfig { wan_mtu: mtu, ..RigConfig::default() }).unwrap();
        // What is installed is the ceiling of the largest; what there is, the gateways find out.
        with_pair(&rig, PairConfig { wan_mtu: 9000, ..PairConfig::default() }, |pair| {
            for side in 0..2 {
                finds(&rig, pair, side, len);
            }
        });
    }
}

/// The other end of the WAN takes shorter frames from one moment to the next, and no ICMP says so: a veth drops what is too long.
#[test]
fn a_path_that_becomes_narrower_in_silence_goes_on_carrying_a_tcp_stream() {
    let _alone = alone();
    let rig = rig();
    one_datagram_a_frame([rig.g1(), rig.g2()]);
    with_pair(&rig, PairConfig::default(), |pair| {
        for side in 0..2 {
            finds(&rig, pair, side, 1472);
        }
        let (h1, h2) = (rig.h1(), rig.h2());
        std::thread::scope(|scope| {
            let stream =
                scope.spawn(|| tcp_transfer(h1, h2, h2.lan.address(Family::V4), Duration::from_secs(20)).unwrap());
            std::thread::sleep(Duration::from_secs(3));
            output(rig.g2(), "ip", &["link", "set", "wan", "mtu", "1400"]);
            let falls = eventually(Duration::from_secs(15), || session(pair, 0).datagram_len <= 1372);
            assert!(falls, "{:?}", session(pair, 0));
            let transfer = stream.join().unwrap();
            assert!(transfer.gbps > 0.01, "{transfer:?}");
        });
        finds(&rig, pair, 0, 1372);
        let after = tcp_transfer(h1, h2, h2.lan.address(Family::V6), Duration::from_secs(2)).unwrap();
        assert!(after.gbps > 0.05, "{after:?}");
    });
}
