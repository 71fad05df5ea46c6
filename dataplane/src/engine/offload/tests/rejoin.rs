//! Packets become superpackets.

use proptest::prelude::*;
use weir_abi::drop::DropReason;

use super::super::super::inner::Inner;
use super::super::super::inner::testing::fix_checksum;
use super::super::super::port::{Offload, Segmentation, TxMeta, TxSink};
use super::super::coalesce::{Coalescer, Delivered, HELD_PACKETS_MAX, Lent, OPEN_FLOWS_MAX, Place};
use super::model::*;
use super::split::laid;

/// Packets where they lie: each in a frame of its own, behind as many bytes of something else as its number says.
struct Frames(Vec<Vec<u8>>);

impl Lent for Frames {
    fn bytes(&mut self, place: Place) -> &[u8] {
        &self.0[usize::from(place.frame)][place.start as usize..][..place.len as usize]
    }
}

/// A local side that keeps what it is given.
struct Sink {
    room: usize,
    takes_offloads: bool,
    slot: Vec<u8>,
    frames: Vec<(Vec<u8>, Offload)>,
}

impl TxSink for Sink {
    fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        // A slot may be longer than it was asked to be.
        self.slot = vec![0xaa; len + 9];
        (self.frames.len() < self.room).then_some(&mut self.slot[..])
    }

    fn commit(&mut self, len: usize, meta: TxMeta) {
        assert_eq!(meta, TxMeta { offload: meta.offload, ..TxMeta::default() });
        self.slot.truncate(len);
        self.frames.push((std::mem::take(&mut self.slot), meta.offload));
    }

    fn takes_offloads(&self) -> bool {
        self.takes_offloads
    }
}

fn sink() -> Sink {
    Sink { room: usize::MAX, takes_offloads: true, slot: vec![], frames: vec![] }
}

/// One batch, flushed in between when there is no room.
fn deliver(packets: &[Vec<u8>], sink: &mut Sink) -> Vec<Delivered> {
    let mut coalescer = Coalescer::new();
    let mut frames = Frames(vec![]);
    let mut reports = vec![];
    for packet in packets {
        let (frame, start) = (frames.0.len() as u16, frames.0.len() as u32 % 7);
        let mut bytes = vec![0x55; start as usize];
        bytes.extend(packet);
        bytes.push(0x55);
        frames.0.push(bytes);
        let place = Place { frame, start, len: packet.len() as u32 };
        let inner = Inner::parse(packet).unwrap();
        if !coalescer.push(&inner, packet, place) {
            coalescer.flush(&mut frames, sink, &mut |delivered| reports.push(delivered));
            assert!(coalescer.push(&inner, packet, place));
        }
    }
    assert_eq!(coalescer.is_empty(), packets.is_empty());
    coalescer.flush(&mut frames, sink, &mut |delivered| reports.push(delivered));
    assert!(coalescer.is_empty());
    reports
}

fn joined(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let mut sink = sink();
    let reports = deliver(packets, &mut sink);
    let (mut count, mut len) = (0, 0);
    for report in reports {
        let Delivered::Written { packets, bytes } = report else { panic!("{report:?}") };
        (count, len) = (count + packets, len + bytes);
    }
    assert_eq!((count, len), (packets.len(), packets.iter().map(Vec::len).sum()));
    sink.frames
}

/// How many packets each frame stands for; checks that they come back as they were, frame by frame.
fn sizes(packets: &[Packet]) -> Vec<usize> {
    let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let mut sizes = vec![];
    let mut back = vec![];
    for (frame, offload) in joined(&bytes) {
        let packets = laid(&frame, offload).unwrap();
        sizes.push(packets.len());
        back.extend(packets);
    }
    assert_eq!(without_atomic_ids(back), without_atomic_ids(bytes));
    sizes
}

/// The identification of an IPv4 packet that is never fragmented means nothing.
fn without_atomic_ids(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        if packet[0] >> 4 == 4 && packet[6] == 0x40 {
            packet[4..6].fill(0);
            fix_checksum(packet);
        }
    }
    packets
}

/// Packets that continue each other, of `len` bytes of payload each.
fn stream(first: &Packet, lens: &[usize]) -> Vec<Packet> {
    let mut next = first.clone();
    let mut packets = vec![];
    for &len in lens {
        next.payload = (0..len).map(|i| (i + packets.len()) as u8).collect();
        packets.push(next.clone());
        next.id = next.id.wrapping_add(1);
        next.sequence = next.sequence.wrapping_add(len as u32);
    }
    packets
}

const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

#[test]
fn a_run_becomes_what_a_kernel_would_hand_over() {
    for (v4, tcp) in KINDS {
        let first = Packet { id: u16::MAX, sequence: u32::MAX - 50, class: 0x2a, ..Packet::new(v4, tcp) };
        let mut packets = stream(&first, &[100, 100, 37]);
        let mut whole = Packet { payload: packets.iter().flat_map(|p| p.payload.clone()).collect(), ..first };
        if tcp {
            packets[2].flags |= PSH | FIN;
            whole.flags |= PSH | FIN;
        }
        let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        assert_eq!(joined(&bytes), [(whole.partial_bytes(), whole.offload(100, false))]);
        assert_eq!(sizes(&packets), [3]);
    }
}

#[test]
fn what_differs_from_the_first_packet_is_not_joined_and_closes() {
    type Change = fn(&mut Packet);
    let changes: [(&str, Change); 12] = [
        ("ttl", |p| p.ttl -= 1),
        ("class", |p| p.class ^= 1),
        ("df", |p| p.df = true),
        ("id", |p| p.id += 1),
        ("sequence", |p| p.sequence += 1),
        ("ack", |p| p.ack += 1),
        ("window", |p| p.window += 1),
        ("options", |p| p.options = vec![1; 4]),
        ("syn", |p| p.flags |= SYN),
        ("ece", |p| p.flags |= ECE),
        ("cwr", |p| p.flags |= CWR),
        ("longer", |p| p.payload.push(0)),
    ];
    for (v4, tcp) in KINDS {
        for (what, change) in changes {
            let lens = [50; 6];
            let mut packets = stream(&Packet::new(v4, tcp), &lens);
            let before = packets[2].bytes();
            change(&mut packets[2]);
            let first = if packets[2].bytes() == before { 6 } else { 2 };
            // What follows may continue the odd one, but never the first ones.
            assert_eq!(sizes(&packets)[0], first, "{what} {v4} {tcp}");
        }
    }
}

#[test]
fn flags_other_than_ack_psh_and_fin_go_alone_even_if_all_have_them() {
    for flags in [SYN, SYN | ACK, 0x04 | ACK, 0x20 | ACK, ECE | ACK, CWR | ACK, 0] {
        assert_eq!(sizes(&stream(&Packet { flags, ..Packet::new(true, true) }, &[9; 3])), [1; 3], "{flags:#x}");
    }
}

#[test]
fn push_and_fin_end_a_superpacket() {
    for flag in [PSH, FIN, PSH | FIN] {
        for at in 0..4 {
            let mut packets = stream(&Packet::new(false, true), &[50; 4]);
            packets[at].flags |= flag;
            let expected: &[usize] = [&[1, 3][..], &[2, 2], &[3, 1], &[4]][at];
            assert_eq!(sizes(&packets), expected);
        }
    }
}

#[test]
fn a_shorter_packet_ends_a_superpacket() {
    for (v4, tcp) in KINDS {
        assert_eq!(sizes(&stream(&Packet::new(v4, tcp), &[50, 50, 49, 50, 50, 51, 51])), [3, 2, 2]);
        assert_eq!(sizes(&stream(&Packet::new(v4, tcp), &[50, 49, 49, 49])), [2, 2]);
    }
}

#[test]
fn an_acknowledgment_goes_alone_and_is_not_overtaken() {
    for v4 in [true, false] {
        assert_eq!(sizes(&stream(&Packet::new(v4, true), &[50, 50, 0, 50, 50, 0, 0])), [2, 1, 2, 1, 1]);
    }
}

#[test]
fn packets_with_ip_options_or_extension_headers_go_alone_in_order() {
    for (v4, tcp) in KINDS {
        let protocol = if tcp { 6 } else { 17 };
        let between = if v4 { vec![1; 8] } else { vec![protocol, 0, 1, 4, 0, 0, 0, 0] };
        assert_eq!(sizes(&stream(&Packet { between: between.clone(), ..Packet::new(v4, tcp) }, &[50; 3])), [1; 3]);
        let mut packets = stream(&Packet::new(v4, tcp), &[50; 5]);
        packets[2].between = between;
        assert_eq!(sizes(&packets), [2, 1, 2]);
    }
}

#[test]
fn identifications_rise_or_stay_but_not_both() {
    let ids = |df, ids: &[u16]| {
        let mut packets = stream(&Packet { df, ..Packet::new(true, true) }, &vec![50; ids.len()]);
        for (packet, id) in packets.iter_mut().zip(ids) {
            packet.id = *id;
        }
        sizes(&packets)
    };
    assert_eq!(ids(true, &[7, 7, 7, 7]), [4]);
    assert_eq!(ids(false, &[7, 7, 7]), [1, 1, 1]);
    assert_eq!(ids(true, &[7, 8, 9, 10]), [4]);
    assert_eq!(ids(true, &[7, 8, 7, 7]), [2, 2]);
    assert_eq!(ids(true, &[7, 7, 9, 10]), [2, 2]);
    assert_eq!(ids(true, &[7, 6, 5]), [1, 1, 1]);
    assert_eq!(ids(false, &[u16::MAX, 0, 1]), [3]);
}

#[test]
fn rising_identifications_come_back_as_they_were() {
    for df in [true, false] {
        let packets = stream(&Packet { df, ..Packet::new(true, false) }, &[50; 4]);
        let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        let frames = joined(&bytes);
        assert_eq!(laid(&frames[0].0, frames[0].1), Ok(bytes));
    }
}

#[test]
fn a_wrong_checksum_is_neither_joined_nor_mended() {
    for (v4, tcp) in KINDS {
        let packets = stream(&Packet::new(v4, tcp), &[50; 6]);
        for at in [packets[0].l4_offset() + packets[0].checksum_offset(), packets[0].bytes().len() - 1] {
            let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
            bytes[2][at] ^= 1;
            let frames = joined(&bytes);
            assert_eq!(frames.len(), 3);
            assert_eq!(frames[1], (bytes[2].clone(), Offload::default()));
        }
    }
}

#[test]
fn all_ones_where_a_sender_would_write_zero_is_kept() {
    // The second payload makes the checksum of the second packet zero.
    let mut packets = stream(&Packet::new(true, true), &[2; 3]);
    packets[1].payload = vec![0; 2];
    packets[1].payload = packets[1].bytes()[36..38].to_vec();
    assert_eq!(packets[1].bytes()[36..38], [0; 2]);
    assert_eq!(sizes(&packets), [3]);
    let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    bytes[1][36..38].fill(0xff);
    assert_eq!(joined(&bytes)[1], (bytes[1].clone(), Offload::default()));
}

#[test]
fn all_ones_in_the_checksum_of_an_ipv4_header_are_kept_too() {
    // What the checksum lacks to zero is put into the identification of the second packet.
    let lacks = |id| {
        let bytes = Packet { id, payload: vec![0; 50], ..Packet::new(true, false) }.bytes();
        u16::from_be_bytes([bytes[10], bytes[11]])
    };
    let packets = stream(&Packet { id: lacks(0) - 1, ..Packet::new(true, false) }, &[50; 3]);
    assert_eq!(lacks(packets[1].id), 0);
    assert_eq!(sizes(&packets), [3]);
    let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    bytes[1][10..12].fill(0xff);
    assert_eq!(joined(&bytes)[1], (bytes[1].clone(), Offload::default()));
}

#[test]
fn udp_without_checksum_or_with_another_length_goes_alone() {
    for v4 in [true, false] {
        let packets = stream(&Packet::new(v4, false), &[50; 5]);
        let l4_offset = packets[0].l4_offset();
        for change in [[0, 58, 0, 0], [0, 57, 1, 1], [0, 0, 1, 1]] {
            let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
            bytes[2][l4_offset + 4..l4_offset + 8].copy_from_slice(&change);
            let frames = joined(&bytes);
            assert_eq!(frames.len(), 3);
            assert_eq!(frames[1], (bytes[2].clone(), Offload::default()));
        }
    }
}

#[test]
fn a_udp_superpacket_has_64_datagrams_at_most() {
    for (count, expected) in [(63, &[63][..]), (64, &[64]), (65, &[64, 1]), (130, &[64, 64, 2])] {
        assert_eq!(sizes(&stream(&Packet::new(true, false), &vec![10; count])), expected);
    }
    assert_eq!(sizes(&stream(&Packet::new(true, true), &[10; 130])), [130]);
}

#[test]
fn a_superpacket_is_as_long_as_an_ip_length_says_at_most() {
    for (v4, last, expected) in
        [(true, 494, &[66][..]), (true, 495, &[66]), (true, 496, &[65, 1]), (false, 475, &[66]), (false, 476, &[65, 1])]
    {
        let mut lens = vec![1000; 65];
        lens.push(last);
        assert_eq!(sizes(&stream(&Packet::new(v4, true), &lens)), expected, "{v4} {last}");
    }
}

#[test]
fn flows_are_joined_each_by_itself_in_the_order_of_their_first_packets() {
    let flows: Vec<Vec<Packet>> =
        (0..4).map(|flow| stream(&Packet { flow, ..Packet::new(flow % 2 == 0, flow < 2) }, &[30; 5])).collect();
    let mut packets = vec![];
    for i in 0..5 {
        packets.extend(flows.iter().map(|flow| flow[i].bytes()));
    }
    let frames = joined(&packets);
    assert_eq!(frames.len(), 4);
    for (flow, (frame, offload)) in flows.iter().zip(frames) {
        assert_eq!(laid(&frame, offload).unwrap(), flow.iter().map(Packet::bytes).collect::<Vec<_>>());
    }
}

#[test]
fn a_fragment_closes_all_flows_and_other_protocols_close_none() {
    let packets = stream(&Packet::new(true, false), &[50; 4]);
    let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let mut fragment = bytes[0].clone();
    fragment[6] = 0x20;
    fragment.truncate(52);
    fragment[3] = 52;
    fix_checksum(&mut fragment);
    let mut icmp = bytes[0].clone();
    icmp[9] = 1;
    fix_checksum(&mut icmp);
    for (between, count) in [(fragment, 3), (icmp, 2)] {
        let mut batch = bytes.clone();
        batch.insert(2, between.clone());
        let frames = joined(&batch);
        assert_eq!(frames.len(), count);
        assert_eq!(frames[1], (between, Offload::default()));
    }
}

#[test]
fn a_full_coalescer_takes_nothing_until_it_is_flushed() {
    let packets = stream(&Packet::new(true, true), &vec![10; HELD_PACKETS_MAX + 1]);
    let mut coalescer = Coalescer::new();
    let mut frames = Frames(packets.iter().map(Packet::bytes).collect());
    let push = |coalescer: &mut Coalescer, i: usize| {
        let bytes = packets[i].bytes();
        coalescer.push(
            &Inner::parse(&bytes).unwrap(),
            &bytes,
            Place { frame: i as u16, start: 0, len: bytes.len() as u32 },
        )
    };
    assert!((0..HELD_PACKETS_MAX).all(|i| push(&mut coalescer, i)));
    assert!(!push(&mut coalescer, HELD_PACKETS_MAX));
    let mut sink = sink();
    coalescer.flush(&mut frames, &mut sink, &mut |_| {});
    assert!(push(&mut coalescer, HELD_PACKETS_MAX));
    coalescer.flush(&mut frames, &mut sink, &mut |_| {});
    // A flush closes, too.
    assert_eq!(sink.frames.len(), 2);
    assert_eq!(sink.frames[1], (packets[HELD_PACKETS_MAX].bytes(), Offload::default()));
}

#[test]
fn more_flows_than_can_be_open_cost_joins_but_no_packet() {
    let flows = OPEN_FLOWS_MAX + 120;
    let mut packets = vec![];
    for i in 0..2 {
        for flow in 0..flows {
            let first = Packet { flow: flow as u8, ..Packet::new(flow < 256, flow % 2 == 0) };
            packets.push(stream(&first, &[30; 2])[i].bytes());
        }
    }
    let mut back = vec![];
    for (frame, offload) in joined(&packets) {
        back.extend(laid(&frame, offload).unwrap());
    }
    back.sort();
    packets.sort();
    assert_eq!(back, packets);
}

#[test]
fn a_sink_without_offloads_gets_every_packet_in_the_order_of_arrival() {
    let flows = [true, false].map(|tcp| stream(&Packet::new(true, tcp), &[50; 3]));
    let packets: Vec<Vec<u8>> = (0..3).flat_map(|i| [flows[0][i].bytes(), flows[1][i].bytes()]).collect();
    let mut sink = Sink { takes_offloads: false, ..sink() };
    let alone = |packet: &Vec<u8>| Delivered::Written { packets: 1, bytes: packet.len() };
    assert_eq!(deliver(&packets, &mut sink), packets.iter().map(alone).collect::<Vec<_>>());
    assert_eq!(sink.frames, packets.into_iter().map(|packet| (packet, Offload::default())).collect::<Vec<_>>());
}

#[test]
fn packets_without_a_slot_are_counted_one_by_one() {
    let mut packets = stream(&Packet::new(true, true), &[50; 3]);
    packets.extend(stream(&Packet::new(true, false), &[20; 4]));
    packets.extend(stream(&Packet { flow: 7, ..Packet::new(true, true) }, &[0]));
    let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let dropped = |packets| Delivered::Dropped { packets, reason: DropReason::LanQueueFull };
    let mut full = Sink { room: 1, ..sink() };
    assert_eq!(deliver(&bytes, &mut full), [Delivered::Written { packets: 3, bytes: 3 * 90 }, dropped(4), dropped(1)]);
    assert_eq!(full.frames.len(), 1);
}

/// A packet of a random batch: one that continues its flow, but perhaps for one thing.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    len: usize,
    oddity: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![6 => Just(40usize), 1 => 0usize..40, 1 => 41usize..60, 1 => 1400usize..1401];
    let step = (0usize..6, len, prop_oneof![8 => Just(0u8), 3 => 1u8..14]);
    prop::collection::vec(step.prop_map(|(flow, len, oddity)| Step { flow, len, oddity }), 0..600)
}

/// The batch, and for each packet whether its checksum was spoilt.
fn batch(steps: &[Step]) -> Vec<(usize, Packet, bool)> {
    let mut flows: Vec<Packet> =
        (0..6).map(|flow| Packet { flow, df: flow % 3 == 0, ..Packet::new(flow % 2 == 0, flow < 4) }).collect();
    let mut packets = vec![];
    for step in steps {
        let next = &mut flows[step.flow];
        let mut packet = Packet { payload: vec![packets.len() as u8; step.len], ..next.clone() };
        // What only TCP has is left alone in the other flows, or the model would see differences that are in no packet.
        match if next.tcp || matches!(step.oddity, 7 | 8 | 10 | 12) { step.oddity } else { 0 } {
            1 => packet.flags |= PSH,
            2 => packet.flags |= FIN,
            3 => packet.flags |= CWR,
            4 => packet.flags |= SYN,
            5 => next.ack += 1,
            6 => next.window += 1,
            7 => packet.ttl = 3,
            8 => packet.class = 3,
            9 => next.sequence += 1,
            10 => next.id = next.id.wrapping_sub(1),
            11 => packet.options = vec![1; 4],
            _ => {}
        }
        next.sequence = next.sequence.wrapping_add(step.len as u32);
        next.id = next.id.wrapping_add(1);
        packets.push((step.flow, packet, step.oddity == 12));
    }
    packets
}

/// The plain way to join: for each packet all superpackets so far are looked at, and each packet of the one that is still open.
fn plainly_joined(packets: &[(usize, Packet, bool)]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![];
    for (i, (flow, packet, spoilt)) in packets.iter().enumerate() {
        // Every flush closes all.
        let floor = i - i % HELD_PACKETS_MAX;
        let last = groups.iter().rposition(|group| group[0] >= floor && packets[group[0]].0 == *flow);
        let good = |packet: &Packet, spoilt: bool| {
            !spoilt && !packet.payload.is_empty() && (!packet.tcp || packet.flags & !(PSH | FIN) == ACK)
        };
        let fits = |group: &Vec<usize>| {
            let (first, before) = (&packets[group[0]].1, &packets[group[group.len() - 1]].1);
            let sum: usize = group.iter().map(|&j| packets[j].1.payload.len()).sum();
            let ids: Vec<u16> = group.iter().map(|&j| packets[j].1.id).chain([packet.id]).collect();
            let rising = ids.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
            let constant = first.df && ids.iter().all(|&id| id == ids[0]);
            let same_headers = Packet { payload: vec![], id: 0, sequence: 0, flags: 0, ..first.clone() }
                == Packet { payload: vec![], id: 0, sequence: 0, flags: 0, ..packet.clone() };
            good(first, packets[group[0]].2)
                && before.payload.len() == first.payload.len()
                && (!first.tcp || before.flags & (PSH | FIN) == 0)
                && packet.payload.len() <= first.payload.len()
                && (!first.tcp || packet.sequence == before.sequence.wrapping_add(before.payload.len() as u32))
                && (first.tcp || group.len() < 64)
                && (!first.v4 || rising || constant)
                && first.l4_offset() + first.l4_len() + sum + packet.payload.len() <= 65_535
                && same_headers
        };
        match last.filter(|&last| good(packet, *spoilt) && fits(&groups[last])) {
            Some(last) => groups[last].push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

fn bytes_of(packets: &[(usize, Packet, bool)]) -> Vec<Vec<u8>> {
    packets
        .iter()
        .map(|(_, packet, spoilt)| {
            let mut bytes = packet.bytes();
            let last = bytes.len() - 1;
            bytes[last] ^= u8::from(*spoilt);
            bytes
        })
        .collect()
}

proptest! {
    #[test]
    fn packets_are_joined_as_the_plain_model_does_and_come_back_as_they_were(steps in steps()) {
        let packets = batch(&steps);
        let bytes = bytes_of(&packets);
        let frames = joined(&bytes);
        let groups = plainly_joined(&packets);
        let (mut found, mut expected) = (vec![], vec![]);
        for (frame, offload) in &frames {
            found.push(without_atomic_ids(laid(frame, *offload).unwrap()));
        }
        for group in &groups {
            expected.push(without_atomic_ids(group.iter().map(|&i| bytes[i].clone()).collect()));
        }
        prop_assert_eq!(found, expected);
        // Only what was joined has anything left to do.
        for (group, (frame, offload)) in groups.iter().zip(&frames) {
            prop_assert!(Inner::parse(frame).is_ok());
            prop_assert_eq!(group.len() > 1, *offload != Offload::default());
            if let Some((segmentation, _)) = offload.cut {
                prop_assert_ne!(segmentation, Segmentation::Tcp { cwr: true });
            }
        }
    }

    #[test]
    fn no_packet_makes_joining_panic(
        packets in prop::collection::vec((any_packet(0..60), 0usize..100, any::<u8>(), any::<bool>()), 0..100)
    ) {
        let packets: Vec<Vec<u8>> = packets
            .into_iter()
            .map(|(packet, at, flip, narrow)| {
                let packet = if narrow { Packet { between: vec![], flow: 1, flags: ACK, ..packet } } else { packet };
                let mut bytes = packet.bytes();
                let at = at % bytes.len();
                bytes[at] ^= flip;
                if bytes[0] >> 4 == 4 && (bytes[0] & 0xf) >= 5 && bytes.len() >= usize::from(bytes[0] & 0xf) * 4 {
                    fix_checksum(&mut bytes);
                }
                bytes
            })
            .filter(|bytes| Inner::parse(bytes).is_ok())
            .collect();
        let mut back = vec![];
        for (frame, offload) in joined(&packets) {
            back.extend(laid(&frame, offload).unwrap());
        }
        let (mut back, mut packets) = (without_atomic_ids(back), without_atomic_ids(packets));
        back.sort();
        packets.sort();
        prop_assert_eq!(back, packets);
    }
}
