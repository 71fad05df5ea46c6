//! What is left when a packet plane dies, and how the next one takes over.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::links::{FdLink, PinnedLink};
use weir_bench::control::StopOnDrop;
use weir_bench::external::ping;
use weir_bench::gateway::{PORT, TUN};
use weir_bench::pair::PairConfig;
use weir_bench::rig::{Family, Rig};
use weir_dataplane::config::Attach;

use crate::capture::{Capture, only_ours};
use crate::support::*;

/// Gives both gateways a way by which overlay traffic could leave in clear.
fn tempt(rig: &Rig) {
    for (gateway, other) in [(rig.g1(), rig.g2()), (rig.g2(), rig.g1())] {
        for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let via = other.wan.unwrap().address(family).to_string();
            output(gateway, "ip", &[flag, "route", "add", "default", "via", &via]);
        }
    }
}

/// Sends to h2 over both families until told to stop, as fast as it takes to be busy all the time.
fn keep_sending(rig: &Rig, stop: &AtomicBool) {
    let socket = |address: IpAddr| rig.h1().enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let sockets = [Family::V4, Family::V6].map(|family| {
        let socket = socket(rig.h1().lan.address(family));
        socket.connect((rig.h2().lan.address(family), 9)).unwrap();
        socket
    });
    while !stop.load(Ordering::Relaxed) {
        for socket in &sockets {
            for _ in 0..8 {
                // An ICMP error of the moment without a plane comes back here.
                let _ = socket.send(b"in the clear would be a pity");
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_plane_leaks_nothing_and_its_successor_repeats_no_counter() {
    let _alone = alone();
    let rig = rig();
    one_datagram_a_frame([rig.g1(), rig.g2()]);
    with_pair(&rig, PairConfig::default(), |pair| {
        tempt(&rig);
        let capture = Capture::start(rig.g1(), "wan");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| keep_sending(&rig, &stop));
            // Whatever happens below, the sender ends.
            let _stop = StopOnDrop(&stop);
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(500));
                pair.g1.kill9().unwrap();
                assert_eq!(ping(rig.h1(), rig.h2().lan.v4.into(), 10).unwrap().received, 0);
                assert_eq!(ping(rig.h2(), rig.h1().lan.v6.into(), 10).unwrap().received, 0);
                pair.g1.restart().unwrap();
                pair.connect().unwrap();
                for family in [Family::V4, Family::V6] {
                    answered(rig.h1(), rig.h2().lan.address(family), 10);
                }
            }
            // Both dead: nothing may leave on either side.
            pair.g1.kill9().unwrap();
            pair.g2.kill9().unwrap();
            assert_eq!(ping(rig.h1(), rig.h2().lan.v4.into(), 10).unwrap().received, 0);
            assert_eq!(ping(rig.h2(), rig.h1().lan.v6.into(), 10).unwrap().received, 0);
        });
        let headers = only_ours(&rig, &capture.stop());
        let g1 = rig.g1().wan.unwrap();
        let mut seen = HashSet::new();
        let mut of_g1 = 0;
        for (source, header) in headers {
            if [IpAddr::V4(g1.v4), IpAddr::V6(g1.v6)].contains(&source) {
                of_g1 += 1;
                let triple = (header.receiver, header.generation, header.counter);
                assert!(seen.insert(triple), "{header:?} was sent twice");
            }
        }
        assert!(of_g1 > 300, "{of_g1} datagrams of g1");
        pair.g1.restart().unwrap();
        pair.g2.restart().unwrap();
    });
}

#[test]
fn the_peer_of_a_killed_plane_needs_no_restart() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        let pid = pair.g2.pid();
        pair.g1.kill9().unwrap();
        pair.g1.restart().unwrap();
        // The old session is gone on one side only: its datagrams find no lane.
        assert_eq!(ping(rig.h2(), rig.h1().lan.v4.into(), 3).unwrap().received, 0);
        pair.connect().unwrap();
        answered(rig.h2(), rig.h1().lan.v4.into(), 10);
        assert_eq!(pair.g2.pid(), pid);
    });
}

/// The id that the kernel gave a pinned link.
fn link_id(pin: &Path) -> u32 {
    FdLink::from(PinnedLink::from_pin(pin).unwrap()).info().unwrap().id()
}

fn pins_outlive_a_kill_and_are_taken_over(attach: Attach, link: &str) {
    let _alone = alone();
    let rig = rig();
    let bpffs = BpfFs::mount(rig.name());
    let directory = bpffs.0.join("weir");
    with_pair(&rig, PairConfig { attach, pin: Some(directory.clone()), ..PairConfig::default() }, |pair| {
        let reach = || answered(rig.h1(), rig.h2().lan.v4.into(), 10);
        reach();
        let pinned = pins(&directory);
        assert!(pinned.iter().any(|name| name == link), "{pinned:?}");
        for map in ["COUNTERS", "LIVE", "CONFIG"] {
            assert!(pinned.iter().any(|name| name == map), "map {map} is not pinned: {pinned:?}");
        }
        let id = link_id(&directory.join(link));

        pair.g1.kill9().unwrap();
        assert_eq!(pins(&directory), pinned, "a killed plane's pins stay");
        assert_eq!(link_id(&directory.join(link)), id);

        pair.g1.restart().unwrap();
        pair.connect().unwrap();
        reach();
        assert!(count(&mut pair.g1, "wan_deliver") >= 10);
        assert_eq!(pins(&directory), pinned);
        assert_eq!(link_id(&directory.join(link)), id, "the link is the same: there was no gap");

        assert!(pair.g1.stop().unwrap().success());
        assert_eq!(pins(&directory), [] as [&str; 0], "a clean stop takes its pins away");
        assert!(rig.g1().interface_index(TUN).is_err());
    });
}

#[test]
fn pins_at_tc_ingress_outlive_a_kill_and_are_taken_over() {
    pins_outlive_a_kill_and_are_taken_over(Attach::Tc, "wan_tc-wan");
}

#[test]
fn pins_in_the_driver_outlive_a_kill_and_are_taken_over() {
    pins_outlive_a_kill_and_are_taken_over(Attach::Native, "wan-wan");
}

#[test]
fn control_sockets_that_were_kept_let_the_next_plane_in() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig::default(), |pair| {
        let sockets: Vec<UdpSocket> =
            pair.g1.take_control_sockets().unwrap().iter().map(|fd| fd.try_clone().unwrap().into()).collect();
        assert_eq!(sockets.len(), 2, "one for each family");
        // A QUIC-like datagram, from a source of its own each time.
        let arrives = || {
            let hello = [0xc0; 64];
            let to = (rig.g1().wan.unwrap().v4, PORT);
            rig.g2().enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&hello, to).unwrap()).unwrap();
            let mut buffer = [0; 128];
            let deadline = std::time::Instant::now() + Duration::from_secs(2);
            while std::time::Instant::now() < deadline {
                match sockets[0].recv_from(&mut buffer) {
                    Ok((len, _)) => return buffer[..len] == hello,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            false
        };
        assert!(arrives(), "steer brings what is not data to the control socket");
        pair.g1.kill9().unwrap();
        // The port is still held, and not by a stranger.
        pair.g1.restart().unwrap();
        pair.connect().unwrap();
        answered(rig.h1(), rig.h2().lan.v4.into(), 10);
        assert!(arrives(), "the kept socket is the next plane's control socket");
    });
}

/// A plane is killed in generic mode and started again where `place` says; only there a program may be afterwards.
fn a_killed_plane_is_followed_elsewhere(place: &str, pin: &str, seen: &str) {
    let _alone = alone();
    let rig = rig();
    let bpffs = BpfFs::mount(rig.name());
    let directory = bpffs.0.join("weir");
    with_pair(
        &rig,
        PairConfig { attach: Attach::Generic, pin: Some(directory.clone()), ..PairConfig::default() },
        |pair| {
            pair.g1.kill9().unwrap();
            assert!(pins(&directory).contains(&"wan-wan".to_owned()));
            let file = pair.g1.config_file();
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains("\"generic\""), "{text}");
            fs::write(&file, text.replace("\"generic\"", &format!("\"{place}\""))).unwrap();
            pair.g1.restart().unwrap();
            let now = pins(&directory);
            assert_eq!(
                now.iter().filter(|name| name.starts_with("wan") && name.contains('-')).collect::<Vec<_>>(),
                [pin]
            );
            let on_wan = attached(rig.g1());
            assert!(on_wan.contains(seen) && !on_wan.contains("wan: XDP XdpState { mode: Generic"), "{on_wan}");
            pair.connect().unwrap();
            answered(rig.h1(), rig.h2().lan.v4.into(), 10);
        },
    );
}

#[test]
fn a_killed_planes_program_in_another_place_does_not_stay() {
    a_killed_plane_is_followed_elsewhere("tc", "wan_tc-wan", "wan: tcx");
}

#[test]
fn a_killed_planes_link_in_another_mode_is_not_taken_over() {
    a_killed_plane_is_followed_elsewhere("native", "wan-wan", "mode: Native");
}
