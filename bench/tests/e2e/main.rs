//! Two running `weir-dataplane` between real hosts: what works, what is refused, and what is left when one dies.
//!
//! Needs root, `ping`, `iperf3`, `tcpdump`, `tc`, `ip`, `nft`, `setpriv`, and the program: `cargo build -p weir-dataplane` first.
//! Every test has a rig of its own and takes it down on the way out, panics included; a test that hangs is ended with its namespaces.
//! Counters and logs of both gateways are printed when one fails.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod admission;
mod capture;
mod confined;
mod crash;
mod demo;
mod discovery;
mod fault;
mod fleet;
mod hostile;
mod initials;
mod instances;
mod issuers;
mod judges;
mod lan;
mod lanes;
mod lifecycle;
mod mesh;
mod messages;
mod names;
mod path;
mod policy;
mod ports;
mod recovery;
mod restarts;
mod revocation;
mod roaming;
mod secrets;
mod sizes;
mod start;
mod support;
mod traffic;
mod transfer;
