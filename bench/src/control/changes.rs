//! Traffic at full load between two hosts, while the network changes under it.
//!
//! ```text
//!   h1 ── 64-byte frames of 16 flows, four fifths of the highest rate without loss ──▶ g1 ═══ g2 ──▶ h2 (sink)
//!         nothing · leaves · issuer · root · policy · fresh keys · a ratchet step, one after the other
//! ```
//!
//! Full load is found anew in each round: the search of RFC 2544 §26.1 by short trials, a fifth less of what it finds, and then a tenth less at
//! a time until nothing is lost for as long as a change is given. A change begins half a second into its traffic. What needs a root's key is
//! signed before the traffic, as it is on another host; the change is that members are told of it.
//!
//! What the gateways counted as dropped beside a change that lost something is told as progress: a full queue is a core that was taken away for too
//! long, any other reason is a mistake.
//!
//! Keys step on by themselves a minute after they were agreed on, so they are made anew where that would fall into another change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, slice};

use weir_controlplane::api::Call;
use weir_dataplane::api::message::{DumpItem, SessionDump};
use weir_dataplane::engine::lane::GENERATION_AGE;

use super::{Samples, StopOnDrop, at_most};
use crate::compare::measure::{PACED_MAX_PPS, trial};
use crate::compare::search::Search;
use crate::gateway::tun_queue_drops;
use crate::generator::{Amount, Sent, pace_in_turn};
use crate::member::Member;
use crate::network::found;
use crate::rig::Family;
use crate::rig::mesh::{Mesh, Site};
use crate::sink::{Sink, SinkConfig, Tally};
use crate::stream::{Sizes, Stream};
use crate::{Error, Result};

/// The smallest frames: the most packets for a queue to hold while a core does something else.
const SIZE: u16 = 64;
/// Enough for every lane to have some.
const FLOWS: u32 = 16;
/// Where the search for the load begins, and its trials.
const START_PPS: f64 = 100_000.0;
const TRIALS: usize = 12;
const TRIAL: Duration = Duration::from_millis(400);
const TOLERANCE: f64 = 0.03;
/// Of what the search finds: a short trial may be lucky.
const SHARE: f64 = 0.8;
/// What is left of a load that lost something when it was to be confirmed, and how often that is tried.
const LESS: f64 = 0.9;
const CONFIRMATIONS: u32 = 10;
/// Traffic before a change begins, and at least so much after it is done.
const LEAD: Duration = Duration::from_millis(500);
const TAIL: Duration = Duration::from_millis(500);
/// Before keys step on: for the traffic to be set up, and to have begun.
const RATCHET_LEAD: Duration = Duration::from_secs(1);
/// For a change to be done, as a node is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Silence after which all has arrived, and how long that is waited for.
const QUIET: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// For a change and all around it that is not its traffic.
const MARGIN: Duration = Duration::from_secs(5);

/// Measures a round; each change is given `window` of traffic. `ratchet` says whether a step of the keys is waited for: a minute.
pub(super) fn round(window: Duration, ratchet: bool, samples: &mut Samples, step: &mut impl FnMut(&str)) -> Result<()> {
    let mesh = Mesh::new(2)?;
    let members = found(&mesh)?;
    let (g1, g2) = (&members[0], &members[1]);
    let mut scene = Scene::new(&mesh, &members, window)?;
    step("searching the load");
    scene.young_keys()?;
    let highest = scene.search()?;
    samples.add(format!("highest rate without loss, {SIZE}-byte frames"), "1/s", None, highest);
    scene.confirm(highest * SHARE)?;
    samples.add("full load beside changes".into(), "1/s", None, scene.rate_pps);

    let mut beside = Beside { scene, samples, step };
    beside.change(NOTHING, || Ok(Took::Unsaid))?;
    for (what, member) in [("g1 renews its certificate", g1), ("g2 renews its certificate", g2)] {
        beside.change(what, || timed(|| member.weir(&["cert", "renew"]).map(drop)))?;
    }
    let issuer = g1.weir(&["cert", "show"])?["issuer"].as_str().unwrap_or_default().to_owned();
    let bundle = g1.ceremony("a", &["renew-issuer", "--issuer", &issuer])?;
    beside.change("the issuer gets its next certificate", || timed(|| publish(&members, &bundle)))?;
    let bundle = g1.ceremony_of_another_root("a", "b")?;
    beside.change("a root is replaced", || timed(|| publish(&members, &bundle)))?;
    let policy = g1.directory().join("policy.toml");
    fs::write(&policy, POLICY).map_err(Error::io("cannot write a policy"))?;
    beside.change("another policy", || timed(|| apply(&members, &policy.display().to_string())))?;
    for (what, member, peer) in
        [("fresh keys, asked for by g1", g1, "site-2"), ("fresh keys, asked for by g2", g2, "site-1")]
    {
        beside.change(what, || timed(|| member.weir(&["rekey", peer]).map(drop)))?;
    }
    if ratchet {
        beside.ratchet_step()?;
    }
    let Beside { scene, samples, .. } = beside;
    samples.add("latest of the sender's bursts beside changes".into(), "ms", None, scene.late_max_ns as f64 / 1e6);
    Ok(())
}

/// What is told of changes beside traffic.
struct Beside<'a, 's, F> {
    scene: Scene<'a>,
    samples: &'s mut Samples,
    step: &'s mut F,
}

impl<F: FnMut(&str)> Beside<'_, '_, F> {
    /// Beside keys that do not step on by themselves.
    fn change(&mut self, what: &str, change: impl FnOnce() -> Result<Took>) -> Result<()> {
        (self.step)(what);
        self.scene.young_keys()?;
        let seen = self.scene.traffic(change)?;
        self.tell(what, &seen)
    }

    fn tell(&mut self, what: &str, seen: &Seen) -> Result<()> {
        if seen.lost() > 0 {
            (self.step)(&format!("{what}: {} packets lost, dropped as {:?}", seen.lost(), seen.dropped));
        }
        seen.add(what, self.samples);
        if seen.goes_on() {
            return Ok(());
        }
        let (what, last) = (format!("traffic beside \"{what}\""), seen.lost_at_the_end());
        let detail = format!("the last {last} of {} packets did not arrive: it has stopped", seen.sent.frames);
        Err(Error::Broken { what, detail })
    }

    /// A step that the keys make by themselves, once they are old enough and something is sealed.
    fn ratchet_step(&mut self) -> Result<()> {
        let (what, sealing) = ("a ratchet step", &self.scene.members[0]);
        (self.step)(what);
        self.scene.young_keys()?;
        let (age, before) = keys(sealing)?;
        std::thread::sleep(GENERATION_AGE.saturating_sub(age + RATCHET_LEAD));
        let seen = self.scene.traffic(|| {
            sealing.wait_for(what, |sealing| keys(sealing).is_ok_and(|(_, steps)| steps > before))?;
            Ok(Took::Unsaid)
        })?;
        self.tell(what, &seen)
    }
}

/// What stands first: the same traffic without a change.
const NOTHING: &str = "nothing changes";

/// Lets pass what is sent, and refuses by default: packets have to be judged anew, by a rule.
const POLICY: &str = r#"default = "deny"
[[rule]]
name = "load"
from = ["node:site-1"]
to = ["node:site-2"]
proto = "udp"
ports = [9]
"#;

/// How long a change took, where somebody has asked for it and waited.
enum Took {
    For(Duration),
    Unsaid,
}

fn timed(change: impl FnOnce() -> Result<()>) -> Result<Took> {
    let began = Instant::now();
    change().map(|()| Took::For(began.elapsed()))
}

/// Hands the outcome of a ceremony to the first member, and waits until all go by it.
fn publish(members: &[Member<'_>], bundle: &str) -> Result<()> {
    let before = version(&members[0], "bundle")?;
    members[0].weir(&["ca", "publish", bundle])?;
    all_go_by(members, "bundle", before + 1)
}

/// Puts a policy in force, and waits until all go by it.
fn apply(members: &[Member<'_>], file: &str) -> Result<()> {
    let applied = members[0].weir(&["policy", "apply", file])?;
    all_go_by(members, "policy", applied["version"].as_u64().unwrap_or(u64::MAX))
}

fn all_go_by(members: &[Member<'_>], document: &str, wanted: u64) -> Result<()> {
    let goes_by = |member: &Member<'_>| version(member, document).is_ok_and(|version| version >= wanted);
    members.iter().try_for_each(|member| member.wait_for(&format!("version {wanted} of the {document}"), goes_by))
}

/// The version of a document that a member goes by.
fn version(member: &Member<'_>, document: &str) -> Result<u64> {
    Ok(member.ask(&Call::Status)?["versions"][document].as_u64().unwrap_or(0))
}

/// How old the keys are that a member of two seals under, and how many steps on.
fn keys(member: &Member<'_>) -> Result<(Duration, u8)> {
    let items = member.plane()?.dump()?;
    let session = items.into_iter().find_map(|item| match item {
        DumpItem::Session(session) => Some(session),
        DumpItem::Plane(_) | DumpItem::Routes(_) => None,
    });
    let Some(SessionDump { age_ns, generation, .. }) = session else {
        return Err(Error::Broken { what: "looking at keys".into(), detail: member.log() });
    };
    Ok((Duration::from_nanos(age_ns), generation))
}

/// What members dropped so far, by gateway and reason.
fn drops(members: &[Member<'_>]) -> Result<BTreeMap<String, u64>> {
    let mut drops = BTreeMap::new();
    for member in members {
        let gateway = format!("g{}", member.site().number);
        drops.extend(member.dropped()?.into_iter().map(|(reason, count)| (format!("{gateway} {reason}"), count)));
        drops.insert(format!("{gateway} TUN queue full"), tun_queue_drops(&member.site().gateway)?);
    }
    Ok(drops)
}

/// The traffic, and both its ends.
struct Scene<'a> {
    near: &'a Site,
    /// Both members; traffic begins behind the first, so that is the one that seals.
    members: &'a [Member<'a>],
    stream: Stream,
    sink: Sink,
    rate_pps: f64,
    window: Duration,
    late_max_ns: u64,
}

impl<'a> Scene<'a> {
    fn new(mesh: &'a Mesh, members: &'a [Member<'a>], window: Duration) -> Result<Self> {
        let (near, far) = (mesh.site_of(1), mesh.site_of(2));
        Ok(Self {
            near,
            members,
            stream: Stream { flows: FLOWS, sizes: Sizes::Fixed(SIZE), ..Stream::new(near.path_to(far, Family::V4)) },
            sink: Sink::attach(&far.host, far.host.lan.name, SinkConfig::default())?,
            rate_pps: START_PPS,
            window,
            late_max_ns: 0,
        })
    }

    /// The highest rate of short trials that lost nothing.
    fn search(&self) -> Result<f64> {
        let mut search = Search::new(START_PPS, PACED_MAX_PPS, TOLERANCE);
        while let Some(rate) = search.next(0.0).filter(|_| search.len() < TRIALS) {
            let host = &self.near.host;
            search.record(rate, trial(host, host.lan.name, &self.stream, &self.sink, rate, TRIAL)?);
        }
        let none = || Error::Broken { what: "finding a load".into(), detail: "every rate lost packets".into() };
        search.found(0.0).ok_or_else(none)
    }

    /// Takes a load down until nothing is lost for as long as a change is given. Where that does not come about, the line of the change that
    /// is none says so.
    fn confirm(&mut self, rate_pps: f64) -> Result<()> {
        self.rate_pps = rate_pps;
        for _ in 0..CONFIRMATIONS {
            self.young_keys()?;
            if self.traffic(|| Ok(Took::Unsaid))?.lost() == 0 {
                break;
            }
            self.rate_pps *= LESS;
        }
        Ok(())
    }

    /// Sees to it that keys do not step on by themselves before what comes next is over.
    fn young_keys(&self) -> Result<()> {
        let (age, _) = keys(&self.members[0])?;
        if age + self.window + MARGIN < GENERATION_AGE {
            return Ok(());
        }
        self.members[0].weir(&["rekey", "site-2"]).map(drop)
    }

    /// Sends at the load while a change comes about.
    fn traffic(&mut self, change: impl FnOnce() -> Result<Took>) -> Result<Seen> {
        self.sink.reset()?;
        let before = drops(self.members)?;
        let (stop, amount) = (AtomicBool::new(false), Amount::Duration(LEAD + self.window + TAIL + PATIENCE));
        let host = &self.near.host;
        let (sent, took) = std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let stream = slice::from_ref(&self.stream);
            let traffic = scope.spawn(|| pace_in_turn(host, host.lan.name, stream, self.rate_pps, amount, &stop));
            std::thread::sleep(LEAD);
            let began = Instant::now();
            let took = change();
            std::thread::sleep(self.window.saturating_sub(LEAD + began.elapsed()).max(TAIL));
            stop.store(true, Ordering::Relaxed);
            let sent = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            took.map(|took| (sent, took))
        })?;
        self.late_max_ns = self.late_max_ns.max(sent.late_max_ns);
        let tally = self.sink.settle(QUIET.0, QUIET.1)?;
        let mut dropped = drops(self.members)?;
        for (reason, count) in &mut dropped {
            *count = count.saturating_sub(before.get(reason).copied().unwrap_or(0));
        }
        dropped.retain(|_, count| *count > 0);
        Ok(Seen { sent, tally, dropped, took })
    }
}

/// What became of the traffic beside a change.
struct Seen {
    sent: Sent,
    tally: Tally,
    /// What the gateways dropped meanwhile, by gateway and reason.
    dropped: BTreeMap<String, u64>,
    took: Took,
}

impl Seen {
    fn lost(&self) -> u64 {
        self.sent.frames.saturating_sub(self.tally.datagrams)
    }

    /// Of those, what came after the last of its flow that arrived.
    fn lost_at_the_end(&self) -> u64 {
        self.lost().saturating_sub(self.tally.gaps)
    }

    /// Whether packets still pass when the traffic ends. What has stopped for good beside a change loses all of [`TAIL`] at the end, and half of
    /// that is told from what a queue loses.
    fn goes_on(&self) -> bool {
        (self.lost_at_the_end() as f64) < self.sent.pps() * TAIL.as_secs_f64() / 2.0
    }

    fn add(&self, change: &str, samples: &mut Samples) {
        // A machine that loses packets while nothing changes keeps no promise by that, and breaks none.
        let target = if change == NOTHING { None } else { at_most(0.0) };
        let what = |what: &str| format!("{change}: {what}");
        samples.add(what("packets lost"), "packets", target, self.lost() as f64);
        samples.add(what("packets sent"), "packets", None, self.sent.frames as f64);
        samples.add(what("packets reordered"), "packets", None, self.tally.reordered as f64);
        if let Took::For(took) = self.took {
            samples.add(what("until it was done"), "ms", None, took.as_secs_f64() * 1e3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand packets a second for a second and a half: half a second of them is 500.
    fn seen(datagrams: u64, gaps: u64) -> Seen {
        let sent = Sent { frames: 1_500, elapsed_ns: 1_500_000_000, ..Sent::default() };
        let tally = Tally { datagrams, gaps, ..Tally::default() };
        Seen { sent, tally, dropped: BTreeMap::new(), took: Took::Unsaid }
    }

    #[test]
    fn a_stop_for_good_is_told_from_packets_that_were_lost_on_the_way() {
        for (datagrams, gaps, lost_at_the_end, goes_on) in [
            (1_500, 0, 0, true),
            // However many: the last ones arrived.
            (1, 1_499, 0, true),
            (1_251, 0, 249, true),
            (1_250, 0, 250, false),
            (750, 500, 250, false),
            // The change itself, and everything after it.
            (500, 0, 1_000, false),
            (0, 0, 1_500, false),
        ] {
            let seen = seen(datagrams, gaps);
            assert_eq!((seen.lost_at_the_end(), seen.goes_on()), (lost_at_the_end, goes_on), "{datagrams}, {gaps}");
        }
        let nothing = Seen { sent: Sent::default(), ..seen(0, 0) };
        assert!(!nothing.goes_on(), "nothing was sent");
    }
}
