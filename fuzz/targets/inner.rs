//! Inner packets as hosts may send them, and the ICMP errors about them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_dataplane::engine::icmp::{self, ERROR_LEN_MAX, ErrorKind, checksum};
use weir_dataplane::engine::inner::{Inner, decrement_ttl};

fuzz_target!(|data: &[u8]| {
    let Some((&mode, bytes)) = data.split_first() else { return };
    let mut packet = bytes.to_vec();
    // Lengths and the checksum are hard to guess, so most inputs get them right.
    match packet.first().map(|first| first >> 4) {
        Some(4) if mode & 1 == 0 && packet.len() >= 20 => {
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[10..12].fill(0);
            let header_len = (usize::from(packet[0] & 0x0f) * 4).clamp(20, packet.len());
            let sum = checksum(&packet[..header_len]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if mode & 1 == 0 && packet.len() >= 40 => {
            let len = packet.len() as u16 - 40;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        _ => {}
    }
    let parsed = Inner::parse(&packet);
    if let Ok(inner) = parsed {
        assert!(inner.l4_offset.is_none_or(|offset| usize::from(offset) <= packet.len()));
        assert_eq!(inner.flow_hash(), weir_abi::flow::hash_of(&packet[..]));
        let _ = inner.scope();
        let _ = inner.forged_error(&packet, |_| mode & 2 == 0);
    }
    let mut out = [0; ERROR_LEN_MAX];
    for kind in [
        ErrorKind::TimeExceeded,
        ErrorKind::NoRoute,
        ErrorKind::HostUnreachable,
        ErrorKind::AdminProhibited,
        ErrorKind::PacketTooBig { mtu: 1280 },
    ] {
        let (v4, v6) = ("10.0.0.1".parse().ok(), "fd00::1".parse().ok());
        let room = if mode & 4 == 0 { ERROR_LEN_MAX } else { usize::from(mode) * 5 };
        let Some(len) = icmp::error(kind, v4, v6, &packet, &mut out[..room]) else { continue };
        let error = Inner::parse(&out[..len]).expect("an error is a packet");
        assert_eq!(Ok(error.destination), parsed.map(|inner| inner.source));
        assert!(len <= packet.len() + 48);
        // Nobody answers it.
        assert_eq!(icmp::error(kind, v4, v6, &out[..len], &mut [0; ERROR_LEN_MAX]), None);
    }
    let before = packet.clone();
    match (decrement_ttl(&mut packet), parsed) {
        (Ok(()), Ok(inner)) => assert_eq!(Inner::parse(&packet), Ok(Inner { ttl: inner.ttl - 1, ..inner })),
        (Ok(()), Err(_)) => {}
        (Err(_), _) => assert_eq!(packet, before),
    }
});
