//! What the kernel half and the user half of Weir agree on.
//!
//! This crate knows nothing of sockets, maps or allocation: it is `no_std`, has no dependency, and the same code runs inside XDP, at tc
//! ingress and in user space. Read it in this order:
//!
//! - [`wire`]: the overlay datagram, the one format that leaves the machine;
//! - [`address`]: a source or destination, as the maps key it;
//! - [`frame`]: from an Ethernet frame to the UDP datagram inside it;
//! - [`classify`]: what `wan` does with that datagram, as one readable function;
//! - [`drop`]: the registry of drop reasons, shared by programs, engine, metrics and docs;
//! - [`flow`]: which worker a packet of the local side belongs to;
//! - [`map`]: keys, values and names of the eBPF maps;
//! - [`gcra`]: the rate limiter of `wan`;
//! - [`admission`]: the tag in a QUIC connection id that tells members from strangers, over [`siphash`];
//! - [`cursor`]: bounded reads, from a slice or from a raw span (the only unsafe code here).
#![no_std]

pub mod address;
pub mod admission;
pub mod classify;
pub mod cursor;
pub mod drop;
pub mod flow;
pub mod frame;
pub mod gcra;
pub mod map;
pub mod siphash;
pub mod wire;
