//! AF_XDP beside sockets and TUN: every combination of the four halves carries both families, by both kinds of ordinary port.
//!
//! A veth has native XDP and no shared memory, so all of this is AF_XDP with copying.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use weir_bench::external::tcp_transfer;
use weir_bench::gateway::{Gateway, GatewayConfig};
use weir_bench::pair::{Pair, PairConfig};
use weir_bench::rig::{Family, Host, Rig, RigConfig};

use crate::support::*;

/// The keys of the four halves, in this order.
const HALVES: [(&str, &str); 4] = [("wan.rx", "socket"), ("wan.tx", "socket"), ("lan.rx", "tun"), ("lan.tx", "tun")];

/// Settings that force each half: AF_XDP where `xsk` says so.
fn forced(xsk: [bool; 4], io: &str) -> Vec<(String, String)> {
    let mut settings = vec![("wan.io".to_owned(), format!("\"{io}\""))];
    for ((key, plain), xsk) in HALVES.into_iter().zip(xsk) {
        settings.push((key.to_owned(), format!("\"{}\"", if xsk { "xsk" } else { plain })));
    }
    settings
}

fn fact(gateway: &mut Gateway<'_>, name: &str) -> String {
    let facts = gateway.facts().unwrap();
    facts.into_iter().find(|(known, _)| known == name).map(|(_, value)| value).unwrap_or_default()
}

/// Datagrams of a kernel's socket there and back, their checksums looked at by the kernel that receives them.
fn udp_crosses(from: &Host, to: &Host, family: Family, len: usize) {
    let bind = |host: &Host| host.enter(|| UdpSocket::bind((host.lan.address(family), 0)).unwrap()).unwrap();
    let (near, far) = (bind(from), bind(to));
    let to: SocketAddr = far.local_addr().unwrap();
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let mut buffer = vec![0; len + 1];
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    for i in 0..100 {
        near.send_to(&payload, to).unwrap();
        let (got, back) = far.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{family} datagram {i}: {error}"));
        assert_eq!(buffer[..got], payload);
        far.send_to(&buffer[..got], back).unwrap();
        let got = near.recv(&mut buffer).unwrap_or_else(|error| panic!("{family} answer {i}: {error}"));
        assert_eq!(buffer[..got], payload);
    }
}

/// Ping, TCP and UDP both ways in both families.
fn all_crosses(rig: &Rig, udp_len: usize) {
    for family in [Family::V4, Family::V6] {
        for (from, to) in [(rig.h1(), rig.h2()), (rig.h2(), rig.h1())] {
            answered(from, to.lan.address(family), 20);
            udp_crosses(from, to, family, udp_len);
            let transfer = tcp_transfer(from, to, to.lan.address(family), Duration::from_secs(1)).unwrap();
            eprintln!("{family} {} to {}: {transfer:?}", from.name(), to.name());
            assert!(transfer.gbps > 0.05, "{family}: {transfer:?}");
        }
    }
}

fn check(pair: &mut Pair<'_>, xsk: [bool; 4]) {
    for side in 0..2 {
        let gateway = pair.side(side);
        for ((name, plain), xsk) in HALVES.into_iter().zip(xsk) {
            let found = fact(gateway, &name.replace('.', " "));
            assert!(found.starts_with(if xsk { "xsk (as configured" } else { plain }), "{name}: {found}");
        }
        for (device, [rx, tx]) in [("wan", [xsk[0], xsk[1]]), ("lan", [xsk[2], xsk[3]])] {
            let sockets = fact(gateway, &format!("xsk on {device}"));
            assert_eq!(sockets.starts_with("copy mode"), rx || tx, "{device}: {sockets}");
            let attached = fact(gateway, &format!("{device} on {device}"));
            assert_eq!(attached.starts_with("xdp-native"), rx, "{device}: {attached}");
        }
        // Sockets get what is not redirected: a half that is forced and carries nothing would go unnoticed.
        let (delivered, steered) = (count(gateway, "wan_deliver"), count(gateway, "steer_worker"));
        assert!(delivered > 1000, "{delivered}");
        assert_eq!(steered < delivered / 10, xsk[0], "{steered} of {delivered} datagrams came by sockets");
        if xsk[2] {
            assert!(count(gateway, "lan_overlay") > 1000);
        }
        let mut drops = foreign_drops(&gateway.counters().unwrap());
        // With native XDP a veth holds 256 frames and loses the rest of a burst: some of those are halves of a packet.
        drops.retain(|name, _| !name.starts_with("continuation_"));
        assert!(drops.is_empty(), "gateway {side} dropped {drops:?}");
        assert_no_io_worker(gateway);
    }
}

fn crosses(xsk: [bool; 4], io: &str) {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig { settings: forced(xsk, io), ..PairConfig::default() }, |pair| {
        all_crosses(&rig, 1000);
        check(pair, xsk);
    });
}

macro_rules! combinations {
    ($($name:ident $xsk:expr, $io:literal;)*) => { $(#[test] fn $name() { crosses($xsk, $io); })* };
}

combinations! {
    all_four_halves_by_af_xdp_over_io_uring [true, true, true, true], "uring";
    all_four_halves_by_af_xdp_over_plain_system_calls [true, true, true, true], "mmsg";
    the_wan_receives_by_af_xdp [true, false, false, false], "uring";
    the_wan_sends_by_af_xdp [false, true, false, false], "mmsg";
    the_lan_receives_by_af_xdp [false, false, true, false], "mmsg";
    the_lan_sends_by_af_xdp [false, false, false, true], "uring";
    both_sides_receive_by_af_xdp [true, false, true, false], "mmsg";
    both_sides_send_by_af_xdp [false, true, false, true], "uring";
    the_wan_goes_by_af_xdp [true, true, false, false], "mmsg";
    the_lan_goes_by_af_xdp [false, false, true, true], "uring";
    from_wan_to_lan_goes_by_af_xdp [true, false, false, true], "uring";
    from_lan_to_wan_goes_by_af_xdp [false, true, true, false], "mmsg";
    all_but_sending_to_the_lan_goes_by_af_xdp [true, true, true, false], "uring";
    all_but_receiving_from_the_lan_goes_by_af_xdp [true, true, false, true], "mmsg";
    all_but_sending_to_the_wan_goes_by_af_xdp [true, false, true, true], "uring";
    all_but_receiving_from_the_wan_goes_by_af_xdp [false, true, true, true], "mmsg";
}

#[test]
fn frames_of_every_size_cross() {
    let _alone = alone();
    for (mtu, udp_len) in [(9000, 1300), (1280, 1000)] {
        let rig = Rig::new(RigConfig { wan_mtu: mtu, ..RigConfig::default() }).unwrap();
        let config = PairConfig { wan_mtu: mtu as u16, settings: forced([true; 4], "uring"), ..PairConfig::default() };
        with_pair(&rig, config, |pair| {
            all_crosses(&rig, udp_len);
            check(pair, [true; 4]);
        });
    }
}

#[test]
fn two_workers_and_two_queues_carry_as_one() {
    let _alone = alone();
    let rig = Rig::new(RigConfig { queues: 2, ..RigConfig::default() }).unwrap();
    let settings = forced([true; 4], "uring");
    with_pair(&rig, PairConfig { cores: [vec![0, 1], vec![0]], settings, ..PairConfig::default() }, |pair| {
        all_crosses(&rig, 1000);
        check(pair, [true; 4]);
    });
}

#[test]
fn what_is_forced_and_cannot_be_had_ends_the_start_with_the_reason() {
    let _alone = alone();
    let rig = rig();
    for settings in
        [[("xsk.mode", "\"zerocopy\""), ("wan.rx", "\"xsk\"")], [("xsk.mode", "\"zerocopy\""), ("lan.tx", "\"xsk\"")]]
    {
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let error = Gateway::start(rig.g1(), GatewayConfig { settings, ..GatewayConfig::default() }).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("AF_XDP on queue 0") && text.contains("do without"), "{text}");
    }
}

#[test]
fn hops_are_counted_and_told_as_by_a_router() {
    let _alone = alone();
    let rig = rig();
    with_pair(&rig, PairConfig { settings: forced([true; 4], "uring"), ..PairConfig::default() }, |_| {
        let to = rig.h2().lan;
        for (family, to) in [("-4", to.v4.to_string()), ("-6", to.v6.to_string())] {
            answered(rig.h1(), to.parse().unwrap(), 5);
            for (hops, answer) in [("1", "exceeded"), ("2", "exceeded"), ("3", " 0% packet loss")] {
                let args = [family, "-n", "-c", "1", "-W", "2", "-t", hops, &to];
                let output = rig.h1().command("ping").args(args).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains(answer), "{hops} hops: {text}");
            }
        }
    });
}

/// Makes the WAN anew, as a driver does that is loaded again: the same name and addresses, another device.
fn replace_wan(rig: &Rig) {
    let (g1, g2) = (rig.g1(), rig.g2());
    let ip = |host: &Host, line: &str| drop(output(host, "ip", &line.split(' ').collect::<Vec<_>>()));
    let mac = |host: &Host| host.wan.unwrap().mac.map(|byte| format!("{byte:02x}")).join(":");
    ip(g1, "link del wan");
    let peer = format!("peer name wan address {} netns {}", mac(g2), g2.name());
    ip(g1, &format!("link add wan address {} type veth {peer}", mac(g1)));
    for host in [g1, g2] {
        let wan = host.wan.unwrap();
        ip(host, "link set wan up");
        ip(host, &format!("addr add {}/24 dev wan", wan.v4));
        ip(host, &format!("addr add {}/64 dev wan", wan.v6));
    }
}

/// Seconds of processor time that a gateway has used.
fn processor_time(gateway: &Gateway<'_>) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid().unwrap())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // The 14th and 15th field of the line, in hundredths of a second (proc_pid_stat(5)).
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[test]
fn a_wan_device_that_goes_takes_its_ports_along_and_sockets_carry_on() {
    let _alone = alone();
    for io in ["uring", "mmsg"] {
        let rig = rig();
        with_pair(&rig, PairConfig { settings: forced([true; 4], io), ..PairConfig::default() }, |pair| {
            answered(rig.h1(), rig.h2().lan.v4.into(), 20);
            replace_wan(&rig);
            // Packets that are sent into the void first must not end a worker.
            assert!(eventually(Duration::from_secs(10), || {
                weir_bench::external::ping(rig.h1(), rig.h2().lan.v4.into(), 5).unwrap().received == 5
            }));
            let steered = count(pair.side(0), "steer_worker");
            answered(rig.h1(), rig.h2().lan.v4.into(), 20);
            udp_crosses(rig.h1(), rig.h2(), Family::V4, 1000);
            assert!(count(pair.side(0), "steer_worker") >= steered + 100, "datagrams come by the socket");
            for side in 0..2 {
                let gateway = pair.side(side);
                let before = processor_time(gateway);
                std::thread::sleep(Duration::from_secs(1));
                let used = processor_time(gateway) - before;
                assert!(used < 0.3, "an idle gateway used {used} s in a second");
            }
        });
    }
}
