//! What bundling costs on the wire, and what loss does to bundled packets.
//!
//! Extra bytes are those above a packing without any gap: every datagram filled to the last byte with packets.
//! Amplification is the share of inner packets that are lost, over the share of datagrams that are.

use weir_abi::wire::{HEADER_LEN, TAG_LEN};
use weir_dataplane::engine::Engine;
use weir_dataplane::engine::port::{BURST_LEN, RxMeta};

use super::Subject;
use super::planes::{DATAGRAM_LEN_MAX, Frames, Numbers, START, Sink, packet, pair};

const BURSTS: usize = 400;
/// One datagram in so many is lost.
const LOSS_ONE_IN: u64 = 100;

/// A mix of packet lengths.
#[derive(Clone, Copy)]
enum Mix {
    /// Seven small, four middle, one large, in random order: the simple IMIX without Ethernet, as large as the tunnel takes.
    Imix,
    /// Acknowledgements and full segments in turn.
    Tcp,
}

impl Mix {
    const ALL: [(Self, &'static str); 2] = [(Self::Imix, "IMIX"), (Self::Tcp, "ACK + MSS")];

    fn burst(self, numbers: &mut Numbers) -> Vec<Vec<u8>> {
        let len = |i: usize, random: u64| match (self, random % 12) {
            (Self::Imix, 0..7) => 46,
            (Self::Imix, 7..11) => 576,
            (Self::Imix, _) => 1420,
            (Self::Tcp, _) if i.is_multiple_of(2) => 52,
            (Self::Tcp, _) => 1420,
        };
        (0..BURST_LEN).map(|i| packet(len(i, numbers.next()))).collect()
    }
}

/// What a run of bursts gave.
#[derive(Default)]
struct Seen {
    packets: u64,
    delivered: u64,
    datagrams: u64,
    lost: u64,
    sends: u64,
    bytes: u64,
    /// Bytes without a gap.
    least: f64,
}

fn run(mix: Mix, loss: bool) -> Option<Seen> {
    let [mut ones, mut twos] = pair(1)?;
    let (one, two): (&mut Engine, &mut Engine) = (&mut ones[0], &mut twos[0]);
    let mut numbers = Numbers(7);
    let mut seen = Seen::default();
    let room = usize::from(DATAGRAM_LEN_MAX) - HEADER_LEN - TAG_LEN;
    for _ in 0..BURSTS {
        let packets = mix.burst(&mut numbers);
        let inner: usize = packets.iter().map(Vec::len).sum();
        seen.least += inner as f64 * f64::from(DATAGRAM_LEN_MAX) / room as f64;
        seen.packets += packets.len() as u64;
        let mut lan = Frames(packets.into_iter().map(|packet| (packet, RxMeta::default())).collect());
        let (mut wan, mut errors) = (Sink::new(true), Sink::new(false));
        one.encapsulate(START, &mut lan, &mut wan, &mut errors);
        seen.sends += wan.frames;
        seen.datagrams += wan.datagrams;
        seen.bytes += wan.bytes;
        let mut arriving = vec![];
        for (train, meta) in wan.take().0 {
            let segment = if meta.segment == 0 { train.len() } else { meta.segment.into() };
            for datagram in train.chunks(segment) {
                if loss && numbers.next().is_multiple_of(LOSS_ONE_IN) {
                    seen.lost += 1;
                } else {
                    arriving.push((datagram.to_vec(), RxMeta::default()));
                }
            }
        }
        let mut arriving = arriving.into_iter().peekable();
        while arriving.peek().is_some() {
            let mut burst = Frames(arriving.by_ref().take(BURST_LEN).collect());
            let (mut out, mut answers) = (Sink::new(false), Sink::new(false));
            two.decapsulate(START, &mut burst, &mut out, &mut answers);
            seen.delivered += out.frames;
        }
    }
    // Without loss, a figure for packets that did not arrive would be no figure.
    (loss || seen.delivered == seen.packets).then_some(seen)
}

fn of(mix: Mix, loss: bool, figure: fn(Seen) -> f64) -> impl FnMut() -> f64 {
    move || run(mix, loss).map_or(f64::NAN, figure)
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    for (mix, name) in Mix::ALL {
        let extra = of(mix, false, |seen| (seen.bytes as f64 / seen.least - 1.0) * 100.0);
        subjects.push(Subject::measured(format!("bundling {name}: extra bytes"), extra).unit("%").at_most(1.0));
        let sends = of(mix, false, |seen| seen.sends as f64 * BURST_LEN as f64 / seen.packets as f64);
        subjects.push(
            Subject::measured(format!("bundling {name}: sends for 64 packets"), sends).unit("sends").at_most(2.0),
        );
        let amplified = of(mix, true, |seen| {
            let inner = 1.0 - seen.delivered as f64 / seen.packets as f64;
            inner / (seen.lost as f64 / seen.datagrams as f64)
        });
        let what = format!("bundling {name}: inner loss at 1 % outer loss");
        subjects.push(Subject::measured(what, amplified).unit("×").at_most(2.0));
    }
    subjects
}
