//! How soon nothing of a revoked member is accepted any more, by four gateways that it has sessions with.
//!
//! ```text
//!   h5 ── 500 frames a second to each of h1 … h4 ──▶ g5 ═══ g1 … g4 ──▶ h1 … h4 (sinks)        the same the other way round
//!         g5's control plane held · weir revoke on g1 ── 2 s ──▶ when did each sink have its last frame?
//! ```
//!
//! Time runs from the moment at which a person calls `weir revoke`, so the command's own start is in it. The revoked member's control plane
//! stands still: it hears nothing of it, and its packet plane goes on sealing with the keys that it has, as that of a member with bad
//! intentions would. That its datagrams went on arriving, and were refused, is checked at each gateway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Samples, StopOnDrop, at_most};
use crate::generator::{Amount, pace_in_turn};
use crate::member::{Member, Part};
use crate::network::found;
use crate::rig::Family;
use crate::rig::mesh::{Mesh, Site};
use crate::sink::{Sink, SinkConfig};
use crate::stream::Stream;
use crate::sys::clock::monotonic_ns;
use crate::{Error, Result};

/// Gateways; the last one is revoked, by the first.
const GATEWAYS: u8 = 5;
/// Frames a second between the revoked member and each other one, each way: a time is known to two milliseconds.
const RATE_PPS: f64 = 500.0;
/// Target in ms.
const STOPPED_WITHIN_MS: f64 = 500.0;
/// Traffic that has to arrive everywhere before the revocation, in frames.
const BEFORE: u64 = 200;
/// For that to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Traffic after the command has returned.
const AFTER: Duration = Duration::from_secs(2);
/// Its end, in which every gateway must have had something to refuse.
const REFUSED_FOR: Duration = Duration::from_millis(500);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Measures a round.
pub(super) fn round(samples: &mut Samples, step: &mut impl FnMut(&str)) -> Result<()> {
    step("five gateways join");
    let mesh = Mesh::new(GATEWAYS)?;
    let members = found(&mesh)?;
    let (revoked, others) = members.split_last().expect("a mesh of five has a last one");
    let sink = |member: &Member<'_>| Sink::attach(&member.site().host, "lan", SinkConfig::default());
    let (away, back) = (others.iter().map(sink).collect::<Result<Vec<_>>>()?, sink(revoked)?);
    step("traffic");
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let leaving =
            others.iter().map(|other| Stream::new(revoked.site().path_to(other.site(), Family::V4))).collect();
        let mut traffic = vec![scope.spawn(|| send(revoked.site(), leaving, &stop))];
        for other in others {
            let towards = vec![Stream::new(other.site().path_to(revoked.site(), Family::V4))];
            let stop = &stop;
            traffic.push(scope.spawn(move || send(other.site(), towards, stop)));
        }
        let seen = revoke(revoked, others, &away, &back);
        stop.store(true, Ordering::Relaxed);
        for sender in traffic {
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        seen
    })?;
    for (number, last_ns) in (1..).zip(&seen.last_ns) {
        let what = format!("revoked: last packet that g{number} accepted of it");
        samples.add(what, "ms", at_most(STOPPED_WITHIN_MS), ms(*last_ns));
    }
    samples.add("revoked: last packet that reached it".into(), "ms", None, ms(seen.back_ns));
    samples.add("revoked: weir revoke has returned".into(), "ms", None, ms(seen.returned_ns));
    samples.add("revoked: packets of it accepted before".into(), "packets", None, seen.before as f64);
    samples.add("revoked: datagrams of it refused in half a second afterwards".into(), "", None, seen.refused as f64);
    Ok(())
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What was seen; times since the call of the command.
struct Seen {
    /// When it returned, ns.
    returned_ns: u64,
    /// When the host behind each of the others had its last frame, ns.
    last_ns: Vec<u64>,
    /// When the host behind the revoked member had its last frame, ns.
    back_ns: u64,
    /// Frames of it that had arrived until then.
    before: u64,
    /// Datagrams that the others refused at the end.
    refused: u64,
}

fn revoke(revoked: &Member<'_>, others: &[Member<'_>], away: &[Sink], back: &Sink) -> Result<Seen> {
    let deadline = Instant::now() + PATIENCE;
    for sink in away.iter().chain([back]) {
        while sink.datagrams()? < BEFORE {
            if Instant::now() > deadline {
                let (what, detail) = ("traffic between all and the last".into(), revoked.log());
                return Err(Error::Broken { what, detail });
            }
            std::thread::sleep(POLL);
        }
    }
    let _held = revoked.hold_part(Part::Control)?;
    let before = away.iter().map(Sink::datagrams).sum::<Result<u64>>()?;
    let name = format!("site-{}", revoked.site().number);
    let called_ns = monotonic_ns();
    others[0].weir(&["revoke", &name, "--reason", "measured"])?;
    let returned_ns = monotonic_ns() - called_ns;
    std::thread::sleep(AFTER.saturating_sub(REFUSED_FOR));
    let seen_before = others.iter().zip(away).map(seen_of_it).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(REFUSED_FOR);
    let mut refused = 0;
    for ((other, sink), before) in others.iter().zip(away).zip(seen_before) {
        let after = seen_of_it((other, sink))?;
        if after == before {
            let what = format!("the revoked member's going on towards g{}", other.site().number);
            return Err(Error::Broken { what, detail: "nothing of it came, so there was nothing to refuse".into() });
        }
        refused += after.0.saturating_sub(before.0);
    }
    let since = |sink: &Sink| Ok(sink.read()?.last_ns.saturating_sub(called_ns));
    let last_ns = away.iter().map(since).collect::<Result<Vec<_>>>()?;
    Ok(Seen { returned_ns, last_ns, back_ns: since(back)?, before, refused })
}

/// What a gateway refused because its keys are not there, and what the host behind it had of the revoked member.
fn seen_of_it((member, sink): (&Member<'_>, &Sink)) -> Result<(u64, u64)> {
    Ok((member.counted_without_keys()?, sink.datagrams()?))
}

/// Sends streams of a host until told to stop.
fn send(from: &Site, streams: Vec<Stream>, stop: &AtomicBool) -> Result<()> {
    let rate_pps = RATE_PPS * streams.len() as f64;
    let amount = Amount::Duration(PATIENCE * 4);
    pace_in_turn(&from.host, from.host.lan.name, &streams, rate_pps, amount, stop).map(drop)
}
