//! What is measured, and in which unit: the rows of a report.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::rig::Family;
use crate::stream::Sizes;

/// A group of metrics that are measured together, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// TCP, and the processor time it takes.
    Tcp,
    /// Small and large datagrams, flat out.
    Udp,
    /// Rates without loss and with little.
    Ndr,
    /// Round trips, idle and loaded.
    Rtt,
    /// Processor and memory of an idle gateway.
    Idle,
    /// Bytes and packets between the gateways.
    Wire,
    /// Single pieces: see [`crate::micro`].
    Micro,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Tcp, Self::Udp, Self::Ndr, Self::Rtt, Self::Idle, Self::Wire, Self::Micro];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ndr => "ndr",
            Self::Rtt => "rtt",
            Self::Idle => "idle",
            Self::Wire => "wire",
            Self::Micro => "micro",
        }
    }
}

impl std::str::FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|measure| measure.name() == text)
            .ok_or_else(|| format!("no measure {text}: there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Which part of all round trips was not slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantile {
    /// Half.
    P50,
    /// 99 %.
    P99,
    /// 99.9 %.
    P999,
}

impl Quantile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::P50, Self::P99, Self::P999];

    /// As a share, 0 to 1.
    pub const fn share(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P99 => 0.99,
            Self::P999 => 0.999,
        }
    }
}

/// One figure of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// TCP payload from h1 to h2, Gbit/s.
    Tcp {
        /// Family of the inner packets.
        family: Family,
        /// Streams at once.
        streams: u32,
    },
    /// Time that all cores together worked for a TCP stream over IPv4, softirq included and the idle machine's work taken off, in seconds
    /// for each 10⁹ bytes of payload.
    CpuPerGb,
    /// Frames that arrive when the generator sends flat out, millions a second.
    Saturated {
        /// Sizes of the frames.
        sizes: Sizes,
        /// Flows.
        flows: u32,
    },
    /// The highest rate that loses nothing (RFC 2544 §26.1), millions a second.
    Ndr {
        /// Sizes of the frames.
        sizes: Sizes,
        /// Flows.
        flows: u32,
    },
    /// The highest rate that loses at most 0.5 %, millions a second.
    Pdr {
        /// Sizes of the frames.
        sizes: Sizes,
        /// Flows.
        flows: u32,
    },
    /// Round trip of an echo request every few milliseconds on an idle subject, µs.
    RttIdle(Quantile),
    /// The same beside a load of half of the subject's own loss-free rate, µs.
    RttLoaded(Quantile),
    /// Time that the busier gateway's program runs while nothing is carried, % of a core.
    IdleCpu,
    /// Resident memory of the larger gateway's program, MB.
    Memory,
    /// Bytes of IP packets between the gateways for each byte of the IP packets that they carry.
    WireBytes(Sizes),
    /// Packets that the first gateway hands to its WAN interface, trains counted once, for each 64 that it carries.
    Sends(Sizes),
}

impl Metric {
    /// The unit of the values.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Tcp { .. } => "Gbit/s",
            Self::CpuPerGb => "s/GB",
            Self::Saturated { .. } | Self::Ndr { .. } | Self::Pdr { .. } => "Mpps",
            Self::RttIdle(_) | Self::RttLoaded(_) => "µs",
            Self::IdleCpu => "%",
            Self::Memory => "MB",
            Self::WireBytes(_) => "bytes/byte",
            Self::Sends(_) => "sends/64",
        }
    }

    /// Whether more is better.
    pub const fn higher_is_better(self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Saturated { .. } | Self::Ndr { .. } | Self::Pdr { .. })
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |sizes: &Sizes| match sizes {
            Sizes::Fixed(size) => format!("{size} B"),
            mixed => mixed.to_string(),
        };
        let plural = |n: &u32, what: &str| format!("{n} {what}{}", if *n == 1 { "" } else { "s" });
        match self {
            Self::Tcp { family, streams } => write!(f, "TCP {family}, {}", plural(streams, "stream")),
            Self::CpuPerGb => f.write_str("CPU per GB of TCP"),
            Self::Saturated { sizes, flows } => write!(f, "flat out {}, {}", size(sizes), plural(flows, "flow")),
            Self::Ndr { sizes, flows } => write!(f, "NDR {}, {}", size(sizes), plural(flows, "flow")),
            Self::Pdr { sizes, flows } => write!(f, "PDR {}, {}", size(sizes), plural(flows, "flow")),
            Self::RttIdle(quantile) => write!(f, "RTT idle {quantile}"),
            Self::RttLoaded(quantile) => write!(f, "RTT at half NDR {quantile}"),
            Self::IdleCpu => f.write_str("idle CPU of a gateway"),
            Self::Memory => f.write_str("memory of a gateway"),
            Self::WireBytes(sizes) => write!(f, "outer bytes per inner, {}", size(sizes)),
            Self::Sends(sizes) => write!(f, "WAN sends per 64 packets, {}", size(sizes)),
        }
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
