//! The yardstick: what the kernel's own forwarding does on the same rig, measured with the same tools.
//!
//! It runs entirely in softirq on the sender's core, so it is what a gateway of processes is compared with, not a rival on equal terms.

use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::external::{Ping, Transfer, ping, tcp_transfer};
use crate::generator::{Amount, flood, pace};
use crate::rig::{Family, Rig, RigConfig};
use crate::sink::{Report, Sink, SinkConfig};
use crate::stream::{Sizes, Stream};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainConfig {
    /// Length of the TCP transfer and of each generator run.
    pub duration: Duration,
    /// Frame sizes.
    pub sizes: Sizes,
    /// Flows.
    pub flows: u32,
    /// Switch on `rx-udp-gro-forwarding`.
    pub udp_gro_forwarding: bool,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plain {
    /// Ping over IPv4.
    pub ping_v4: Ping,
    /// Ping over IPv6.
    pub ping_v6: Ping,
    /// One TCP stream over IPv4.
    pub tcp: Transfer,
    /// Generator flat out, IPv4.
    pub flood: Report,
    /// Rate of the paced run, millions of frames a second: half of what came through flat out.
    pub paced_at_mpps: f64,
    /// Generator at that rate, IPv4. `sent_mpps` below it says that the sender was the limit.
    pub paced: Report,
}

/// Builds a rig with plain forwarding, measures, and tears it down.
///
/// # Errors
/// [`crate::Error`] of whichever step failed; a missing iperf3 is told before anything is measured.
pub fn measure(config: &PlainConfig) -> Result<Plain> {
    let udp_gro_forwarding = config.udp_gro_forwarding;
    let rig = Rig::new(RigConfig { plain: true, udp_gro_forwarding, ..RigConfig::default() })?;
    let (h1, h2) = (rig.h1(), rig.h2());
    let tcp = tcp_transfer(h1, h2, h2.lan.v4.into(), config.duration)?;
    let ping_v4 = ping(h1, h2.lan.v4.into(), 50)?;
    let ping_v6 = ping(h1, h2.lan.v6.into(), 50)?;
    let mut sink = Sink::attach(h2, h2.lan.name, SinkConfig::default())?;
    let stream = Stream { sizes: config.sizes, flows: config.flows, ..Stream::new(rig.forward(Family::V4)) };
    let settle = |sink: &Sink| sink.settle(Duration::from_millis(50), Duration::from_secs(2));
    let sent = flood(h1, h1.lan.name, &stream, Amount::Duration(config.duration))?;
    let flood = Report::new(&sent, &settle(&sink)?);
    sink.reset()?;
    let paced_at_mpps = flood.received_mpps / 2.0;
    let sent = pace(h1, h1.lan.name, &stream, paced_at_mpps * 1e6, Amount::Duration(config.duration))?;
    let paced = Report::new(&sent, &settle(&sink)?);
    Ok(Plain { ping_v4, ping_v6, tcp, flood, paced_at_mpps, paced })
}
