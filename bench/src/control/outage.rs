//! Traffic while both control planes are dead, and how soon they know everything again.
//!
//! ```text
//!   h1 ── 5,000 frames a second ──▶ g1 ═══ g2 ──▶ h2 (sink)
//!         supervisors held, control planes killed ─── outage ─── supervisors go on ──▶ status ──▶ fresh keys
//! ```
//!
//! A held supervisor starts nothing, so a control plane stays dead for as long as is asked for. Time is taken from when supervisors go on;
//! the wait before they start what ended is in it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Samples, at_most};
use crate::generator::{Amount, pace};
use crate::member::{Member, Part};
use crate::network::found;
use crate::rig::Family;
use crate::rig::mesh::Mesh;
use crate::sink::{Sink, SinkConfig};
use crate::stream::{Sizes, Stream};
use crate::{Error, Result};

/// Frames a second: a modest rate, which the gateways carry without loss on any machine.
const RATE_PPS: f64 = 5_000.0;
const SIZE: u16 = 512;
/// Traffic before the control planes die.
const LEAD: Duration = Duration::from_secs(1);
/// Traffic after they may come back.
const TAIL: Duration = Duration::from_secs(5);

/// Lets supervisors go on, whatever happened.
struct Held<'a, 'b>(&'a [Member<'b>]);

impl Drop for Held<'_, '_> {
    fn drop(&mut self) {
        for member in self.0 {
            // One that runs is not disturbed.
            let _ = member.release();
        }
    }
}

/// Measures a round.
pub(super) fn round(outage: Duration, samples: &mut Samples) -> Result<()> {
    let mesh = Mesh::new(2)?;
    let members = found(&mesh)?;
    let (near, far) = (mesh.site_of(1), mesh.site_of(2));
    let stream = Stream { sizes: Sizes::Fixed(SIZE), ..Stream::new(near.path_to(far, Family::V4)) };
    let sink = Sink::attach(&far.host, "lan", SinkConfig::default())?;
    let whole = LEAD + outage + TAIL;
    let (sent, back) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| pace(&near.host, "lan", &stream, RATE_PPS, Amount::Duration(whole)));
        std::thread::sleep(LEAD);
        let back = die_and_come_back(&members, outage);
        let sent = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        back.map(|back| (sent, back))
    })?;
    let tally = sink.settle(Duration::from_millis(200), Duration::from_secs(2))?;
    let what = |what: &str| format!("both control planes dead for {} s: {what}", outage.as_secs_f64());
    let lost = sent.frames.saturating_sub(tally.datagrams);
    samples.add(what("packets lost"), "packets", at_most(0.0), lost as f64);
    samples.add(what("packets sent"), "packets", None, sent.frames as f64);
    samples.add(what("until all is known again"), "ms", at_most(1000.0), back.known.as_secs_f64() * 1e3);
    samples.add(what("until fresh keys were made"), "ms", None, back.fresh.as_secs_f64() * 1e3);
    Ok(())
}

/// Since the supervisors went on.
struct Back {
    /// Both control planes answer, have found their packet plane, and know of the session in it.
    known: Duration,
    /// A key exchange between them succeeded.
    fresh: Duration,
}

fn die_and_come_back(members: &[Member<'_>], outage: Duration) -> Result<Back> {
    let dead = Held(members);
    for member in members {
        member.hold()?;
        member.kill9(Part::Control)?;
    }
    std::thread::sleep(outage);
    drop(dead);
    let began = Instant::now();
    for member in members {
        let knows = |status: &Value| {
            let plane = &status["plane"];
            let sessions = plane["sessions"].as_u64();
            plane["running"] == Value::Bool(true) && sessions == Some(1) && status["peers_connected"] == 1
        };
        member.wait_for("a control plane that knows everything", |member| {
            member.weir(&["status"]).is_ok_and(|status| knows(&status))
        })?;
    }
    let known = began.elapsed();
    let [member, ..] = members else { return Err(Error::Broken { what: "a network".into(), detail: "empty".into() }) };
    member.wait_for("fresh keys", |member| member.weir(&["rekey", "site-2"]).is_ok())?;
    Ok(Back { known, fresh: began.elapsed() })
}
