//! How soon many gateways on one segment find each other when each knows one address that holds, and how one more gets in when the node at that
//! address is gone. What is done, and what counts as found, is in [`crate::fleet`].

use super::{Samples, at_least, at_most};
use crate::Result;
use crate::fleet::Fleet;
use crate::rig::mesh::Mesh;

/// Target in s, for both ways of finding.
const FOUND_WITHIN_S: f64 = 5.0;

/// Measures a round.
pub(super) fn round(gateways: u8, samples: &mut Samples, step: &mut impl FnMut(&str)) -> Result<()> {
    let mesh = Mesh::new(gateways + 1)?;
    let of = |what: &str| format!("{gateways} gateways on one segment: {what}");
    step("they join");
    let (mut fleet, enrolled) = Fleet::enrol(&mesh, gateways, "")?;
    step("all stop, move and start at a switch that is off");
    let started = fleet.lose()?;
    step("the switch goes on");
    let found = fleet.find()?;
    let within = at_most(FOUND_WITHIN_S);
    samples.add(of("each can say where all others are"), "s", within, found.listed.as_secs_f64());
    samples.add(of("each has found the next by the DHT"), "s", within, found.looked_up.as_secs_f64());
    samples.add(of("processor time of all until then"), "s", None, found.cpu_s);
    samples.add(of("least contacts in a DHT table then"), "", None, found.contacts[0] as f64);
    samples.add(of("median of contacts in a DHT table then"), "", None, found.contacts[1] as f64);
    step("all look for all");
    let [tried, hit] = fleet.look_up_all();
    samples.add(
        of("look-ups of all by all in the DHT that found"),
        "%",
        at_least(100.0),
        100.0 * hit as f64 / tried as f64,
    );
    let memory = fleet.memory()?;
    samples.add(of("memory of a control plane, median"), "KiB", None, memory.control as f64);
    samples.add(of("memory of a packet plane, median"), "KiB", None, memory.plane as f64);
    step("the bootstrap is gone, one more joins through another member");
    fleet.lose_bootstrap()?;
    let joined = fleet.join_one()?;
    samples.add(of("one more has joined, the bootstrap dead"), "s", None, joined.answered.as_secs_f64());
    samples.add(of("all who are left and it know each other"), "s", within, joined.known.as_secs_f64());
    samples.add(of("from the first join to all knowing all"), "s", None, enrolled.as_secs_f64());
    samples.add(of("from the first start to the last packet plane"), "s", None, started.as_secs_f64());
    Ok(())
}
