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
//! - [`gateway`]: a `weir-dataplane` process in a gateway's namespace;
//! - [`pair`]: two of them with a session between;
//! - [`member`]: a whole node, `weir run`, on a gateway of a [`rig::mesh`];
//! - [`network`]: three of them, from the founding to a revocation;
//! - [`fleet`]: thirty of them, which find each other from one address;
//! - [`demo`]: the whole house in half a minute, with real programs as judges;
//! - [`compare`]: Weir, the kernel and other programs on the same rig;
//! - [`control`]: what the control plane promised;
//! - [`sim`]: discovery among ten thousand nodes, on virtual time;
//! - [`profile`]: where the time goes, by `perf`;
//! - [`table`], [`plot`]: columns and drawings for people;
//! - [`micro`]: one number for one piece: AEAD, look-up, engine, `wan`;
//! - [`layout`]: what the eBPF programs and this crate share;
//! - [`sys`]: the only unsafe code.
//!
//! Only [`gateway`], [`pair`], [`demo`], [`compare`] and [`micro`] know of the packet plane, and only by its API: everything else sees frames go in at h1 and come
//! out at h2.

pub mod compare;
pub mod control;
pub mod demo;
pub mod error;
pub mod external;
pub mod fleet;
pub mod gateway;
pub mod generator;
pub mod histogram;
#[path = "../../ebpf/src/bench/layout.rs"]
pub mod layout;
pub mod member;
pub mod micro;
pub mod network;
pub mod object;
pub mod pair;
pub mod pcap;
pub mod plain;
pub mod plot;
pub mod profile;
pub mod rig;
pub mod sim;
pub mod sink;
pub mod stream;
pub mod sys;
pub mod table;

pub use error::{Error, Result};
