//! Two workers whose lanes come interleaved in trains of one 5-tuple, against two workers that each get their own.
//!
//! ```text
//!   own:          worker 0 ◀─ 0000     worker 1 ◀─ 1111
//!   interleaved:  worker 0 ◀─ 0101 ─ copies the ones ─▶ worker 1          and the other way round
//! ```
//!
//! Both engines take turns on one core, so the ratio is that of the work, not of what two cores do to each other's caches.

use std::time::{Duration, Instant};

use weir_dataplane::engine::Engine;
use weir_dataplane::engine::port::{BURST_LEN, RxMeta};

use super::Subject;
use super::planes::{Frames, START, Sink, packet, pair};

const BURSTS: usize = 100;
/// Long enough for a datagram of its own each, short enough for a train.
const LEN: usize = 900;

/// Datagrams of one worker's lane.
fn datagrams(engine: &mut Engine) -> Vec<Vec<u8>> {
    let mut lan = Frames(vec![(packet(LEN), RxMeta::default()); BURST_LEN]);
    let (mut wan, mut errors) = (Sink::new(true), Sink::new(false));
    engine.encapsulate(START, &mut lan, &mut wan, &mut errors);
    let trains = wan.take().0;
    let cut = |(train, meta): &(Vec<u8>, RxMeta)| {
        let segment = if meta.segment == 0 { train.len() } else { meta.segment.into() };
        train.chunks(segment).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    trains.iter().flat_map(cut).collect()
}

/// Datagrams of one length as one train; shorter ones would end it, and are left out.
fn train<'a>(datagrams: impl Iterator<Item = &'a Vec<u8>>, len: usize) -> (Vec<u8>, RxMeta, usize) {
    let kept: Vec<_> = datagrams.filter(|datagram| datagram.len() == len).collect();
    let bytes: Vec<u8> = kept.iter().flat_map(|datagram| datagram.iter().copied()).collect();
    (bytes, RxMeta { segment: len as u16, ..RxMeta::default() }, kept.len())
}

/// Time to open everything, and packets that came out.
fn open(engines: &mut [Engine], bursts: [(Vec<u8>, RxMeta); 2], buffers: &mut [Vec<u8>]) -> (Duration, u64) {
    let mut sinks = [Sink::new(false), Sink::new(false)];
    let mut answers = Sink::new(false);
    let mut frames = bursts.map(|frame| Frames(vec![frame]));
    let start = Instant::now();
    for worker in 0..2 {
        engines[worker].decapsulate(START, &mut frames[worker], &mut sinks[worker], &mut answers);
        let mut handed = vec![];
        for run in engines[worker].foreign_runs() {
            let (bytes, meta) = &frames[worker].0[run.frame];
            // Buffers of a pool, as between workers.
            let Some(mut buffer) = buffers.get_mut(handed.len()).map(std::mem::take) else { break };
            buffer.clear();
            buffer.extend_from_slice(&bytes[run.range()]);
            handed.push((buffer, *meta));
        }
        engines[worker].clear_foreign_runs();
        let mut handed = Frames(handed);
        engines[1 - worker].decapsulate(START, &mut handed, &mut sinks[1 - worker], &mut answers);
        for (buffer, (used, _)) in buffers.iter_mut().zip(handed.0) {
            *buffer = used;
        }
    }
    (start.elapsed(), sinks.iter().map(|sink| sink.frames).sum())
}

/// Time with lanes of their own over time with interleaved ones: one when handing over costs nothing.
fn ratio() -> f64 {
    let Some([mut ones, mut twos]) = pair(2) else { return f64::NAN };
    let (mut own, mut mixed) = (Duration::ZERO, Duration::ZERO);
    let mut buffers: Vec<_> = (0..BURST_LEN).map(|_| Vec::with_capacity(65_536)).collect();
    for burst in 0..2 * BURSTS {
        let lanes = [datagrams(&mut ones[0]), datagrams(&mut ones[1])];
        let len = lanes[0][0].len();
        let half = lanes[0].len() / 2;
        let interleaved = |part: std::ops::Range<usize>| {
            let turns = lanes[0][part.clone()].iter().zip(&lanes[1][part]).flat_map(|(a, b)| [a, b]);
            train(turns, len)
        };
        let is_own = burst % 2 == 0;
        let trains = match is_own {
            true => [train(lanes[0].iter(), len), train(lanes[1].iter(), len)],
            false => [interleaved(0..half), interleaved(half..lanes[0].len())],
        };
        let sent: usize = trains.iter().map(|(_, _, count)| count).sum();
        let (took, delivered) = open(&mut twos, trains.map(|(bytes, meta, _)| (bytes, meta)), &mut buffers);
        if (delivered as usize) < sent {
            return f64::NAN;
        }
        *(if is_own { &mut own } else { &mut mixed }) += took;
    }
    own.as_secs_f64() / mixed.as_secs_f64()
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let what = "two workers: lanes of their own over interleaved lanes of one 5-tuple, time";
    vec![Subject::measured(what, ratio).unit("ratio").at_least(0.92)]
}
