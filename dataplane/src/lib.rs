//! Weir's packet plane.
//!
//! Layers, each knowing only those before it:
//!
//! - [`api`]: the messages between control plane and packet plane, and the client that speaks them;
//! - [`engine`]: sessions, lanes, crypto, routing: packets in, packets out, no I/O and no clock;
//! - [`io`]: ports over io_uring, epoll, TUN and memory; eBPF; netlink;
//! - the daemon: [`config`], [`worker`] and [`plane`]; [`tune`] looks after the host that it runs on.

pub mod api;
pub mod config;
pub mod engine;
pub mod io;
pub mod plane;
pub mod tune;
pub mod worker;
