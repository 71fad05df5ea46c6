//! The second half of the demonstration: three whole nodes found a network, join it by token, and go through what a network goes through.
//!
//! ```text
//!   found ─▶ two invitations ─▶ two joins ─▶ full mesh ─▶ fresh keys · renewal · processes killed · a site revoked     each beside traffic
//! ```
//!
//! Traffic is 100 echo requests a second from h1 to h2, so a lost one is ten milliseconds in which nothing passed.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::external::{Ping, Transfer, ping, tcp_transfer};
use crate::member::{Member, Part};
use crate::rig::Family;
use crate::rig::mesh::{Mesh, Site};
use crate::{Error, Result, table};

/// Gateways of the network.
const SITES: u8 = 3;
/// Echo requests of each step: three seconds of them.
const ECHOES: u32 = 300;
/// When in a step the thing happens.
const LEAD: Duration = Duration::from_millis(500);

/// Something that happened, and what it did to the traffic beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What.
    pub what: String,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Echo requests from h1 to h2 meanwhile.
    pub sent: u32,
    /// Those of them without an answer.
    pub lost: u32,
}

/// Everything that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// From the first command to sessions between all sites, milliseconds.
    pub up_ms: u64,
    /// Each site's host to each other's, over IPv4: from, to, what came back.
    pub pings: Vec<(u8, u8, Ping)>,
    /// One TCP stream from h1 to h3.
    pub transfer: Transfer,
    /// What happened.
    pub steps: Vec<Step>,
    /// Echoes of the revoked site's host that were still answered.
    pub after_revocation: Ping,
    /// `weir status` on g1.
    pub status: String,
    /// `weir peers` on g1, before the revocation.
    pub peers: String,
    /// `weir log` on g1.
    pub log: String,
}

/// Founds a network on the first site of a mesh and has the others join it by token, until sessions stand between all of them.
///
/// # Errors
/// [`Error::Broken`] with what the node said that did not do it.
pub fn found(mesh: &Mesh) -> Result<Vec<Member<'_>>> {
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "")).collect::<Result<Vec<_>>>()?;
    bring_up(&mut members)?;
    Ok(members)
}

/// The same with nodes that are there and do not run yet; the first one founds.
///
/// # Errors
/// As [`found`].
pub fn bring_up(members: &mut [Member<'_>]) -> Result<()> {
    members[0].found("example")?;
    members[0].run()?;
    members[0].wait_for_plane()?;
    for at in 1..members.len() {
        let token = members[0].invite(members[at].site())?;
        join(&mut members[at], &token)?;
    }
    let others = members.len() as u64 - 1;
    members.iter().try_for_each(|member| member.wait_for_peers(others))
}

/// Has a node that does not run yet join by a token, and waits for its packet plane.
///
/// # Errors
/// [`Error::Broken`] with what the node said.
pub fn join(member: &mut Member<'_>, token: &str) -> Result<()> {
    member.run()?;
    member.weir(&["join", token])?;
    member.wait_for_plane()
}

/// Runs it. `progress` is told what is being done.
///
/// # Errors
/// [`Error::Broken`] when something that must work does not.
pub fn run(duration: Duration, progress: &mut impl FnMut(&str)) -> Result<Network> {
    progress("three gateways: founding a network on g1, inviting g2 and g3, joining by token");
    let mesh = Mesh::new(SITES)?;
    let began = Instant::now();
    let mut members = found(&mesh)?;
    let up_ms = began.elapsed().as_millis() as u64;
    progress("pings between all sites, a transfer from h1 to h3");
    let mut pings = vec![];
    for from in mesh.sites() {
        for to in mesh.sites().iter().filter(|to| to.number != from.number) {
            let seen = ping(&from.host, to.host.lan.address(Family::V4), 10)?;
            if seen.received == 0 {
                let what = format!("ping from h{} to h{}", from.number, to.number);
                return Err(Error::Broken { what, detail: members[0].log() });
            }
            pings.push((from.number, to.number, seen));
        }
    }
    let far = &mesh.site_of(SITES).host;
    let transfer = tcp_transfer(&mesh.site_of(1).host, far, far.lan.address(Family::V4), duration)?;
    let (one, two) = (mesh.site_of(1), mesh.site_of(2));
    let mut steps = vec![];
    let mut step = |what: &str, act: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        progress(&format!("beside traffic from h1 to h2: {what}"));
        steps.push(beside_traffic(what, one, two, act)?);
        Ok(())
    };
    step("g1 and g2 make fresh keys", &mut || members[0].weir(&["rekey", "site-2"]).map(drop))?;
    step("g2 renews its certificate", &mut || members[1].weir(&["cert", "renew"]).map(drop))?;
    step("control planes of g1 and g2 killed", &mut || {
        members[0].kill9(Part::Control)?;
        members[1].kill9(Part::Control)?;
        members[..2].iter().try_for_each(|member| member.wait_for_peers(2))
    })?;
    step("packet plane of g2 killed", &mut || {
        members[1].kill9(Part::Plane)?;
        members[1].wait_for_plane()?;
        members[1].wait_for_peers(2)
    })?;
    let peers = members[0].text(&["peers"])?;
    step("g3 revoked on g1", &mut || members[0].weir(&["revoke", "site-3", "--reason", "demonstration"]).map(drop))?;
    let after_revocation = ping(far, one.host.lan.address(Family::V4), 20)?;
    let (status, log) = (members[0].text(&["status"])?, members[0].text(&["log"])?);
    progress("tearing down");
    members.iter_mut().rev().try_for_each(Member::stop)?;
    Ok(Network { up_ms, pings, transfer, steps, after_revocation, status, peers, log })
}

/// Does something half a second into three seconds of echo requests.
fn beside_traffic(what: &str, from: &Site, to: &Site, act: &mut dyn FnMut() -> Result<()>) -> Result<Step> {
    let (took_ms, seen) = std::thread::scope(|scope| -> Result<(u64, Ping)> {
        let traffic = scope.spawn(|| ping(&from.host, to.host.lan.address(Family::V4), ECHOES));
        std::thread::sleep(LEAD);
        let began = Instant::now();
        let done = act();
        let took_ms = began.elapsed().as_millis() as u64;
        let seen = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done.map(|()| (took_ms, seen))
    })?;
    Ok(Step { what: what.to_owned(), took_ms, sent: seen.sent, lost: seen.sent.saturating_sub(seen.received) })
}

impl Network {
    /// The tables that a person reads.
    pub fn tables(&self) -> String {
        let answered: u32 = self.pings.iter().map(|(_, _, seen)| seen.received).sum();
        let sent: u32 = self.pings.iter().map(|(_, _, seen)| seen.sent).sum();
        let after = self.after_revocation;
        let rows = [
            ["from the first command to a full mesh".to_owned(), format!("{:.1} s", self.up_ms as f64 / 1e3)],
            ["pings between all sites".to_owned(), format!("{answered} of {sent} answered")],
            ["TCP h1 to h3, one stream".to_owned(), format!("{:.2} Gbit/s", self.transfer.gbps)],
            ["pings of the revoked site's host".to_owned(), format!("{} of {} answered", after.received, after.sent)],
        ];
        let steps: Vec<[String; 4]> = self
            .steps
            .iter()
            .map(|step| {
                [step.what.clone(), format!("{} ms", step.took_ms), step.sent.to_string(), step.lost.to_string()]
            })
            .collect();
        table::render(&["three whole nodes", "result"], &rows)
            + "\n"
            + &table::render(&["beside 100 echoes a second from h1 to h2", "took", "echoes", "lost"], &steps)
            + &format!("\n$ weir peers\n{}\n$ weir status\n{}\n$ weir log\n{}", self.peers, self.status, self.log)
    }
}
