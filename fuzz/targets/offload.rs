//! Superpackets of the local side with whatever is asked to be done with them, and packets of peers that may be joined.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_dataplane::engine::icmp::checksum;
use weir_dataplane::engine::inner::Inner;
use weir_dataplane::engine::offload::coalesce::{Coalescer, Delivered, Lent, Place};
use weir_dataplane::engine::offload::segment::Segments;
use weir_dataplane::engine::port::{Offload, Segmentation, TxMeta, TxSink};

/// Packets where they lie.
struct Frames(Vec<Vec<u8>>);

impl Lent for Frames {
    fn bytes(&mut self, place: Place) -> &[u8] {
        &self.0[usize::from(place.frame)]
    }
}

/// A local side that takes everything.
#[derive(Default)]
struct Sink {
    slot: Vec<u8>,
    frames: Vec<(Vec<u8>, Offload)>,
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.slot = vec![0; len];
        Some(&mut self.slot)
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        self.frames.push((self.slot[..len].to_vec(), meta.offload));
    }

    fn takes_offloads(&self) -> bool {
        true
    }
}

/// Makes the IP lengths and the IPv4 checksum right, which are hard to guess.
fn mend(packet: &mut [u8]) {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[10..12].fill(0);
            let header_len = (usize::from(packet[0] & 0x0f) * 4).clamp(20, packet.len());
            let sum = checksum(&packet[..header_len]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if packet.len() >= 40 => {
            let len = packet.len() as u16 - 40;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        _ => {}
    }
}

/// All packets that `packet` becomes, each laid in two pieces and once more as a whole.
fn cut(packet: &[u8], offload: Offload, piece: usize) -> Vec<Vec<u8>> {
    let Ok(inner) = Inner::parse(packet) else { return vec![] };
    let Ok(segments) = Segments::new(packet, &inner, offload) else { return vec![] };
    let mut packets = vec![];
    for k in 0..segments.count() {
        let mut whole = vec![0; segments.len(k)];
        segments.lay(packet, k, 0, &mut whole);
        let mut pieces = vec![0; whole.len()];
        let (head, tail) = pieces.split_at_mut(piece.min(whole.len()));
        segments.lay(packet, k, head.len(), tail);
        segments.lay(packet, k, 0, head);
        assert_eq!(pieces, whole);
        if offload.cut.is_some() {
            let found = Inner::parse(&whole).expect("a segment is a packet");
            assert_eq!((found.source, found.destination, found.ports), (inner.source, inner.destination, inner.ports));
        }
        packets.push(whole);
    }
    packets
}

/// The identification of an IPv4 packet that is never fragmented means nothing, and is not kept.
fn without_atomic_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fuzz_target!(|data: &[u8]| {
    let Some((&[mode, a, b, c], bytes)) = data.split_first_chunk() else { return };

    let mut packet = bytes.to_vec();
    mend(&mut packet);
    let segmentation = if mode & 1 == 0 { Segmentation::Udp } else { Segmentation::Tcp { cwr: mode & 2 == 0 } };
    let offload = Offload {
        cut: (mode & 4 == 0).then_some((segmentation, u16::from(a))),
        checksum: (mode & 8 == 0).then_some((u16::from(b), u16::from(c))),
    };
    cut(&packet, offload, usize::from(c));
    // A superpacket as a kernel describes it, cut and joined again, and packets that it never was.
    let l4_offset = Inner::parse(&packet).ok().and_then(|inner| inner.l4_offset).unwrap_or_default();
    let field = if mode & 1 == 0 { 6 } else { 16 };
    let offload = Offload { cut: Some((segmentation, u16::from(a) + 1)), checksum: Some((l4_offset, field)) };
    let mut packets = cut(&packet, offload, usize::from(b));
    packets.truncate(128);
    for part in bytes.chunks(usize::from(b).max(20)).take(64) {
        let mut part = part.to_vec();
        mend(&mut part);
        let at = usize::from(c) % (packets.len() + 1);
        packets.insert(at, part);
    }
    packets.retain(|packet| Inner::parse(packet).is_ok());

    let mut coalescer = Coalescer::new();
    let mut frames = Frames(packets);
    for (i, packet) in frames.0.iter().enumerate() {
        let inner = Inner::parse(packet).expect("others were left out");
        let place = Place { frame: i as u16, start: 0, len: packet.len() as u32 };
        assert!(coalescer.push(&inner, packet, place), "there are fewer than it holds");
    }
    let (mut sink, mut delivered) = (Sink::default(), 0);
    coalescer.flush(&mut frames, &mut sink, &mut |report| match report {
        Delivered::Written { packets, .. } => delivered += packets,
        Delivered::Dropped { .. } => panic!("the sink takes everything"),
    });
    assert_eq!(delivered, frames.0.len());
    let back = sink.frames.iter().flat_map(|(frame, offload)| cut(frame, *offload, usize::from(a)));
    let mut back: Vec<_> = back.map(without_atomic_id).collect();
    let mut before: Vec<_> = frames.0.into_iter().map(without_atomic_id).collect();
    back.sort();
    before.sort();
    assert_eq!(back, before);
});
