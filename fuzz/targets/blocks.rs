//! What a peer may put into datagrams: the grammar of blocks, and packets that go on in the next datagram.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_abi::drop::DropReason;
use weir_dataplane::engine::block::{Block, Control, Origin, Reassembly, Visitor, block_at, packet_len};

/// Checks what it is given.
#[derive(Default)]
struct Checks {
    bytes: usize,
    drops: usize,
}

impl Visitor for Checks {
    fn packet(&mut self, packet: &mut [u8], origin: Origin) {
        assert!(matches!(origin, Origin::Plaintext(_) | Origin::Rejoined { marked: false }));
        assert_eq!(packet_len(packet), Some(packet.len()));
        self.bytes += packet.len();
    }

    fn control(&mut self, control: Control) {
        let mut bytes = [0; Control::LEN_MAX];
        let len = control.encode(&mut bytes);
        let Ok((Block::Control { kind, body }, next)) = block_at(&bytes[..len], 0) else { panic!("a control block") };
        assert_eq!((Control::parse(kind, &bytes[body]), next), (Ok(control), len));
        self.bytes += len;
    }

    fn dropped(&mut self, _: DropReason) {
        self.drops += 1;
    }
}

// The input is a row of datagrams: how far the counter goes on, the length, the plaintext.
fuzz_target!(|data: &[u8]| {
    let mut reassembly = Reassembly::new();
    let mut counter = 0u64;
    let (mut checks, mut fed) = (Checks::default(), 0);
    let mut rest = data;
    while let [step, high, low, bytes @ ..] = rest {
        counter = counter.wrapping_add(u64::from(*step).max(1));
        let len = usize::from(u16::from_be_bytes([*high, *low]) % 2048).min(bytes.len());
        let (plaintext, after) = bytes.split_at(len);
        let mut plaintext = plaintext.to_vec();
        let drops = checks.drops;
        reassembly.feed(counter, false, &mut plaintext, &mut checks);
        // A block of two bytes is the shortest that can be dropped; a partial may be lost twice.
        assert!(checks.drops - drops <= len / 2 + 3);
        fed += len;
        // Nothing comes out that was not put in.
        assert!(checks.bytes <= fed);
        rest = after;
    }
});
