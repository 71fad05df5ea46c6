//! Weir's test bench: a rig of network namespaces, a packet generator, a sink, and measurements made with them.
//!
//! ```text
//!   h1 ──lan── g1 ──wan── g2 ──lan── h2        each letter a network namespace, each line a veth pair
//!   ▲ generator                       ▲ sink (tc ingress)
//! ```
//!
//! - [`rig`]: the namespaces, made through rtnetlink and always torn down;
//! - [`stream`]: which frames are sent: flows, sizes, stamps, checksums;
//! - [`generator`]: sends a stream flat out (XDP live frames) or paced (AF_XDP);
//! - [`sink`]: counts what arrives: loss, order, latency;
//! - [`pcap`]: the same stream as a file;
//! - [`external`]: ping and iperf3, the judges that we did not write;
//! - [`plain`]: the yardstick: the same rig with the kernel's own forwarding;
//! - [`layout`]: what the eBPF programs and this crate share;
//! - [`sys`]: the only unsafe code.
//!
//! The bench knows nothing of the packet plane: it sees frames go in at h1 and come out at h2.

pub mod error;
pub mod external;
pub mod generator;
pub mod histogram;
#[path = "../../ebpf/src/bench/layout.rs"]
pub mod layout;
pub mod object;
pub mod pcap;
pub mod plain;
pub mod rig;
pub mod sink;
pub mod stream;
pub mod sys;

pub use error::{Error, Result};
