//! Fresh keys, a control plane's restart and echoes of members, while a flood of spoofed Initials arrives at one of them.
//!
//! ```text
//!   flood: g1's port of the switch ──▶ g1        fresh keys: g2, g3 ──▶ g1        echoes: h2 ──▶ h1, 100 a second
//! ```
//!
//! The same without the flood comes first, in the same network: what a busy machine fails at by itself stands beside what the flood does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_controlplane::pki::id::NodeId;

use super::initials::{Spoofed, Victim};
use super::{Samples, StopOnDrop, at_least, at_most, party};
use crate::compare::system::transmitted;
use crate::external::ping;
use crate::gateway::PORT;
use crate::generator::{Amount, pace_with};
use crate::member::{Member, Part};
use crate::network::found;
use crate::rig::Family;
use crate::rig::mesh::{Mesh, Site};
use crate::{Error, Result};

/// Initials that are made beforehand: more than are let in within the ten seconds for which a node waits for the rest of a handshake.
const INITIALS: usize = 4096;
/// The port of the switch that g1 is at.
pub(super) const PORT_OF_G1: &str = "p1";

/// Measures a round.
pub(super) fn round(
    spoofed: f64,
    duration: Duration,
    samples: &mut Samples,
    step: &mut impl FnMut(&str),
) -> Result<()> {
    let mesh = Mesh::new(3)?;
    let members = found(&mesh)?;
    step("without");
    let calm = Honest::beside(&mesh, &members, duration, || Ok(()))?;
    calm.add("without a flood", samples);
    step("making Initials");
    let stranger = party::network(1)?;
    let mut frames = Spoofed::new(&stranger[0], victim(&members[0])?, INITIALS)?;
    step("with");
    let mut arrived = 0.0;
    let seen = Honest::beside(&mesh, &members, duration, || {
        let amount = Amount::Duration(duration);
        let never = AtomicBool::new(false);
        let before = transmitted(mesh.switch(), PORT_OF_G1)?.packets;
        let began = Instant::now();
        pace_with(mesh.switch(), PORT_OF_G1, spoofed, amount, &never, |n, frame| frames.write(n, frame))?;
        let packets = transmitted(mesh.switch(), PORT_OF_G1)?.packets.saturating_sub(before);
        arrived = packets as f64 / began.elapsed().as_secs_f64();
        Ok(())
    })?;
    seen.add("beside a flood", samples);
    samples.add("spoofed Initials that arrived".into(), "1/s", None, arrived);
    Ok(())
}

/// What a flood must know of its victim.
pub(super) fn victim(member: &Member<'_>) -> Result<Victim> {
    let status = member.weir(&["status"])?;
    let what = || format!("asking g{} who it is", member.site().number);
    let node = status["identity"]["node"].as_str().and_then(|text| text.parse::<NodeId>().ok());
    let node = node.ok_or_else(|| Error::Broken { what: what(), detail: status["identity"].to_string() })?;
    let wan = member.site().gateway.wan.map(|wan| wan.mac);
    let mac = wan.ok_or_else(|| Error::Broken { what: what(), detail: "it has no WAN".into() })?;
    Ok(Victim { node, mac, address: member.site().wan(), port: PORT })
}

/// What members did meanwhile.
#[derive(Debug, Default)]
struct Honest {
    attempts: u32,
    failed: u32,
    slowest: Duration,
    back: Option<Duration>,
    echoes: u32,
    lost: u32,
    sessions_gone: u64,
}

impl Honest {
    /// Does what members do, for as long as `beside` runs, and at least so long.
    fn beside(
        mesh: &Mesh,
        members: &[Member<'_>],
        duration: Duration,
        beside: impl FnOnce() -> Result<()> + Send,
    ) -> Result<Self> {
        let (to, from) = (mesh.site_of(1), mesh.site_of(2));
        let done = AtomicBool::new(false);
        let mut seen = std::thread::scope(|scope| -> Result<Self> {
            let other = scope.spawn(|| {
                let _done = StopOnDrop(&done);
                let began = Instant::now();
                let result = beside();
                std::thread::sleep(duration.saturating_sub(began.elapsed()));
                result
            });
            let echoes = scope.spawn(|| echo(from, to, duration));
            let seen = Self::exchange(members, &done);
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let echoes = echoes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let seen = seen?;
            Ok(Self { echoes: echoes.0, lost: echoes.1, ..seen })
        })?;
        for member in members {
            let connected = member.weir(&["status"])?["peers_connected"].as_u64().unwrap_or(0);
            seen.sessions_gone += (members.len() as u64 - 1).saturating_sub(connected);
        }
        Ok(seen)
    }

    /// Fresh keys with g1 one after the other; in between g3's control plane is killed and comes back.
    fn exchange(members: &[Member<'_>], done: &AtomicBool) -> Result<Self> {
        let mut seen = Self::default();
        let last = &members[members.len() - 1];
        while !done.load(Ordering::Relaxed) || seen.attempts < 2 {
            if seen.attempts == 10 {
                let began = Instant::now();
                last.kill9(Part::Control)?;
                last.wait_for("its own control plane", |member| {
                    let knows = |status: &Value| status["peers_connected"].as_u64() == Some(members.len() as u64 - 1);
                    member.weir(&["status"]).is_ok_and(|status| knows(&status))
                })?;
                seen.back = Some(began.elapsed());
            }
            let asking = &members[1 + seen.attempts as usize % (members.len() - 1)];
            let began = Instant::now();
            let fresh = asking.output(&["rekey", "site-1"])?;
            seen.attempts += 1;
            seen.failed += u32::from(!fresh.status.success());
            seen.slowest = seen.slowest.max(began.elapsed());
        }
        Ok(seen)
    }

    fn add(&self, when: &str, samples: &mut Samples) {
        let Self { attempts, failed, slowest, back, echoes, lost, sessions_gone } = *self;
        // A promise about floods only.
        let promised = |target| if when.starts_with("without") { None } else { target };
        let success = f64::from(attempts - failed) / f64::from(attempts.max(1));
        let what = |what: &str| format!("{when}: {what}");
        samples.add(what("key exchanges that succeeded"), "share", promised(at_least(0.99)), success);
        samples.add(what("key exchanges tried"), "", None, attempts.into());
        samples.add(what("slowest of them, as a person waits for it"), "ms", None, slowest.as_secs_f64() * 1e3);
        if let Some(back) = back {
            samples.add(what("killed control plane is back"), "ms", None, back.as_secs_f64() * 1e3);
        }
        samples.add(what("echoes lost"), "share", promised(at_most(0.0)), f64::from(lost) / f64::from(echoes.max(1)));
        samples.add(what("sessions gone"), "", promised(at_most(0.0)), sessions_gone as f64);
    }
}

/// Echo requests for so long, and those without an answer.
fn echo(from: &Site, to: &Site, duration: Duration) -> Result<(u32, u32)> {
    let seen = ping(&from.host, to.host.lan.address(Family::V4), (duration.as_millis() / 10).max(1) as u32)?;
    Ok((seen.sent, seen.sent.saturating_sub(seen.received)))
}
