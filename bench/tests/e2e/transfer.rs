//! Bytes that tell by themselves whether they arrived as they were sent: a file by TCP, numbered datagrams by UDP.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, digest};
use weir_bench::rig::{Family, Host, Rig};
use weir_bench::sys::udp;

/// How long a receiver waits for the next byte or datagram. A TCP whose retransmissions are lost one after the other is silent for as long as
/// all its waits before (RFC 6298 §5.5), on a bad network and a busy machine for more than five seconds.
const WAIT: Duration = Duration::from_secs(20);
/// How long a receiver waits for datagrams behind the last one that came.
const QUIET: Duration = Duration::from_secs(1);

/// Bytes that follow from a number and repeat nowhere: any other byte, or one in another place, is seen. (SplitMix64.)
fn bytes_of(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0xd134_2543_de82_ef95);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Sends a file of `len` bytes from h1 to h2 by TCP and asserts that the bytes are the same.
#[track_caller]
pub(crate) fn tcp_file(rig: &Rig, family: Family, len: usize) {
    let file = bytes_of(len as u64, len);
    let listener = rig.h2().enter(|| TcpListener::bind((rig.h2().lan.address(family), 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let (received, hash) = std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            let (mut hash, mut received, mut buffer) = (Context::new(&SHA256), 0, vec![0; 1 << 16]);
            loop {
                match stream.read(&mut buffer).unwrap() {
                    0 => return (received, hash.finish()),
                    n => hash.update(&buffer[..n]),
                }
                received += 1;
            }
        });
        // Connected with a limit, so that the receiver is not waited for when nothing reaches it.
        let mut stream = rig.h1().enter(|| TcpStream::connect_timeout(&to, WAIT)).unwrap().unwrap_or_else(|error| {
            // Lets the accepting thread go.
            let _ = rig.h2().enter(|| TcpStream::connect_timeout(&to, WAIT));
            panic!("{family}: {error}")
        });
        stream.set_write_timeout(Some(WAIT)).unwrap();
        stream.write_all(&file).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        receiver.join().unwrap()
    });
    assert_eq!(hash.as_ref(), digest(&SHA256, &file).as_ref(), "{family}: {received} reads, other bytes than sent");
}

/// What came of numbered datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Sent.
    pub(crate) sent: u64,
    /// Arrived whole, each once.
    pub(crate) arrived: u64,
    /// Arrived once more.
    pub(crate) again: u64,
}

/// Sends `count` datagrams with payloads of these lengths in turn from h1 to h2 by UDP, a few at a time, and asserts that what arrives is
/// whole: the right bytes in the right length.
#[track_caller]
pub(crate) fn udp_numbers(rig: &Rig, family: Family, lens: &[usize], count: u64) -> Arrived {
    let len_of = |number: u64| lens[(number % lens.len() as u64) as usize];
    let socket = |host: &Host| {
        let socket = host.enter(|| UdpSocket::bind((host.lan.address(family), 0))).unwrap().unwrap();
        udp::set_buffers(&socket, 16 << 20).unwrap();
        socket
    };
    let (sender, receiver) = (socket(rig.h1()), socket(rig.h2()));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    let (mut seen, mut again, mut buffer) = (BTreeSet::new(), 0, vec![0; 1 << 16]);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for number in 0..count {
                let payload = [&number.to_be_bytes()[..], &bytes_of(number, len_of(number) - 8)].concat();
                sender.send(&payload).unwrap_or_else(|error| panic!("{family}, {} bytes: {error}", payload.len()));
                // Some are sent back to back, so that they share datagrams of the tunnel and are cut across them.
                if number % 32 == 31 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        loop {
            match receiver.recv(&mut buffer) {
                Ok(len) => {
                    let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                    assert!(number < count, "{family}: number {number} was never sent");
                    assert_eq!(len, len_of(number), "{family}: number {number}");
                    assert!(buffer[8..len] == bytes_of(number, len - 8), "{family}: number {number} is corrupt");
                    again += u64::from(!seen.insert(number));
                }
                Err(_) if !sending.is_finished() => {}
                Err(_) => break,
            }
        }
        sending.join().unwrap();
    });
    assert_eq!(udp_checksum_errors(rig.h2()), 0, "{family}: corrupt datagrams were delivered, and refused by the host");
    Arrived { sent: count, arrived: seen.len() as u64, again }
}

/// Datagrams that a host's kernel refused for their checksum, over both families.
fn udp_checksum_errors(host: &Host) -> u64 {
    let read =
        |file: &str| host.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap().unwrap();
    let (v4, v6) = (read("snmp"), read("snmp6"));
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let names = lines.next().unwrap().split(' ').position(|name| name == "InCsumErrors").unwrap();
    let of_v4: u64 = lines.next().unwrap().split(' ').nth(names).unwrap().parse().unwrap();
    let of_v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors")).unwrap().trim();
    of_v4 + of_v6.parse::<u64>().unwrap()
}
