//! What each connected peer costs a control plane: resident memory of `weir control` on the node that founded the network, while others
//! join it one after the other.
//!
//! Everything that a peer brings is in it: its link, its session, its records and certificates, and what the allocator leaves unused. The
//! first peer also brings what every further one shares, so both figures stand side by side: all of it by the number of peers, and what one
//! more costs (least squares over the joins after the first). Pages of the program that nobody had run before are told apart: a first
//! handshake touches a megabyte of them, and no further one touches more.

use std::time::Duration;

use super::{Samples, at_most};
use crate::compare::system::Resident;
use crate::member::{Member, Part};
use crate::rig::mesh::Mesh;
use crate::{Error, Result};

/// Most peers: with one more, members keep links to their neighbours only.
pub(super) const PEERS_MAX: u8 = 23;
/// Target in KiB.
const KIB_MAX: f64 = 64.0;
/// For links and records to settle after a join.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures a round.
pub(super) fn round(peers: u8, samples: &mut Samples, step: &mut impl FnMut(&str)) -> Result<()> {
    let mesh = Mesh::new(peers.clamp(2, PEERS_MAX) + 1)?;
    let mut members = mesh.sites().iter().map(|site| Member::new(site, "")).collect::<Result<Vec<_>>>()?;
    let Some((first, others)) = members.split_first_mut() else { return Ok(()) };
    first.found("example")?;
    first.run()?;
    first.wait_for_plane()?;
    let mut resident = vec![settled(first)?];
    for (connected, member) in (1..).zip(others) {
        step(&format!("peer {connected} joins"));
        member.run()?;
        let token = first.invite(member.site())?;
        member.weir(&["join", &token])?;
        member.wait_for_plane()?;
        first.wait_for_peers(connected)?;
        resident.push(settled(first)?);
    }
    let (Some(none), Some(all)) = (resident.first(), resident.last()) else { return Ok(()) };
    let count = (resident.len() - 1) as f64;
    let anonymous: Vec<_> = resident.iter().map(|resident| resident.anonymous as f64).collect();
    let brought = all.anonymous.saturating_sub(none.anonymous) as f64;
    let touched = all.file.saturating_sub(none.file) as f64;
    samples.add("memory of a control plane without peers".into(), "KiB", None, (none.anonymous + none.file) as f64);
    let what = format!("memory by connected peer, {count} peers: all that they brought");
    samples.add(what, "KiB", at_most(KIB_MAX), brought / count);
    let what = format!("memory by connected peer, {count} peers: one more");
    samples.add(what, "KiB", at_most(KIB_MAX), slope(&anonymous[1..]));
    let what = format!("pages of the program that {count} joins touched first, together");
    samples.add(what, "KiB", None, touched);
    Ok(())
}

/// What is resident once nothing more is to be done.
fn settled(member: &Member<'_>) -> Result<Resident> {
    std::thread::sleep(SETTLE);
    let resident = member.pid(Part::Control).and_then(Resident::of);
    let what = || format!("reading the memory of g{}'s control plane", member.site().number);
    resident.ok_or_else(|| Error::Broken { what: what(), detail: "it does not run".into() })
}

/// By how much values that are one step apart grow in a step (least squares).
fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let (x, y) = ((count - 1.0) / 2.0, values.iter().sum::<f64>() / count);
    let deviations = values.iter().enumerate().map(|(at, value)| (at as f64 - x, value - y));
    let (over, under) = deviations.fold((0.0, 0.0), |(over, under), (dx, dy)| (over + dx * dy, under + dx * dx));
    if under == 0.0 { 0.0 } else { over / under }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_that_of_the_line_through_the_values() {
        assert_eq!(slope(&[10.0, 12.0, 14.0]), 2.0);
        assert_eq!((slope(&[5.0]), slope(&[3.0, 3.0])), (0.0, 0.0));
        // Two that are off by as much to both sides.
        assert_eq!(slope(&[0.0, 4.0, 2.0, 6.0]), 1.6);
    }
}
