//! Networks of all widths: jumbo frames on both sides, and a WAN that is narrower than the packets that it carries.

use std::time::Duration;

use weir_bench::pair::PairConfig;
use weir_bench::rig::{Family, Rig, RigConfig};

use crate::support::*;
use crate::transfer::{Arrived, tcp_file, udp_numbers};

const IPV4_UDP: usize = 28;
const IPV6_UDP: usize = 48;

/// A file by TCP and full, short and odd datagrams by UDP, both families: all of it arrives. Nothing is dropped that somebody on the
/// network or a peer is to blame for.
fn all_sizes_cross(rig: &Rig, config: PairConfig, datagram_len: u16, inner_mtu: u16) {
    with_pair(rig, config, |pair| {
        // The path is searched while something crosses it.
        let is_found = eventually(Duration::from_secs(20), || {
            tcp_file(rig, Family::V4, 100_000);
            tcp_file(rig, Family::V6, 100_000);
            let found = |session: weir_dataplane::api::message::SessionDump| (session.datagram_len, session.inner_mtu);
            (0..2).all(|side| found(session(pair, side)) == (datagram_len, inner_mtu))
        });
        assert!(is_found, "{:?}", session(pair, 0));
        for (family, headers) in [(Family::V4, IPV4_UDP), (Family::V6, IPV6_UDP)] {
            tcp_file(rig, family, 4 << 20);
            let full = usize::from(inner_mtu) - headers;
            let Arrived { sent, arrived, again } = udp_numbers(rig, family, &[full, full - 1, 9, full / 2, 700], 2000);
            assert_eq!((arrived, again), (sent, 0), "{family}");
        }
        for side in 0..2 {
            let drops = foreign_drops(&pair.side(side).counters().unwrap());
            assert!(drops.is_empty(), "gateway {side} dropped {drops:?}");
        }
    });
}

fn jumbo(settings: &[(&str, &str)], underlay: Family) {
    let _alone = alone();
    let rig = Rig::new(RigConfig { wan_mtu: 9000, lan_mtu: 9000, ..RigConfig::default() }).unwrap();
    let settings = [("tun.mtu", "8900")].iter().chain(settings);
    let settings = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let config = PairConfig { wan_mtu: 9000, inner_mtu: 8900, underlay, settings, ..PairConfig::default() };
    let datagram_len = if underlay == Family::V4 { 8972 } else { 8952 };
    all_sizes_cross(&rig, config, datagram_len, 8900);
}

#[test]
fn jumbo_frames_cross() {
    jumbo(&[], Family::V4);
}

#[test]
fn jumbo_frames_cross_ipv6_without_superpackets() {
    jumbo(&[("tun.offload", "\"off\"")], Family::V6);
}

#[test]
fn jumbo_frames_cross_by_plain_system_calls() {
    jumbo(&[("wan.io", "\"mmsg\"")], Family::V4);
}

/// Packets of 1280 bytes, which IPv6 promises everybody, are longer than what the WAN carries: they cross in pieces.
fn narrow(wan_mtu: u16, settings: &[(&str, &str)], underlay: Family) {
    let _alone = alone();
    let rig = Rig::new(RigConfig { wan_mtu: 1280, ..RigConfig::default() }).unwrap();
    for gateway in [rig.g1(), rig.g2()] {
        // An interface of less has no IPv6.
        output(gateway, "ip", &["link", "set", "wan", "mtu", &wan_mtu.to_string()]);
    }
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let datagram_len = wan_mtu - if underlay == Family::V4 { 28 } else { 48 };
    all_sizes_cross(&rig, PairConfig { wan_mtu, underlay, settings, ..PairConfig::default() }, datagram_len, 1280);
}

#[test]
fn packets_of_1280_bytes_cross_a_wan_of_1280() {
    narrow(1280, &[], Family::V4);
}

#[test]
fn packets_of_1280_bytes_cross_an_ipv6_wan_of_1280_without_superpackets() {
    narrow(1280, &[("tun.offload", "\"off\"")], Family::V6);
}

#[test]
fn packets_of_1280_bytes_cross_a_wan_of_600() {
    narrow(600, &[], Family::V4);
}

#[test]
fn packets_of_1280_bytes_cross_a_wan_of_600_by_plain_system_calls_without_superpackets() {
    narrow(600, &[("wan.io", "\"mmsg\""), ("tun.offload", "\"off\"")], Family::V4);
}
