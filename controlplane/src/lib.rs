//! Weir's control plane: who is a member, which keys two gateways share, and what the packet plane is told.
//!
//! Everything that decides is a plain state machine: inputs by `handle_…(…, now)`, outputs by `poll_…()`, with time and randomness as
//! arguments. The shell around it is small and knows no rule.

pub mod api;
pub mod audit;
pub mod ceremony;
pub mod cli;
pub mod codec;
pub mod config;
pub mod contact;
pub mod dht;
pub mod dns;
pub mod gcra;
pub mod issuer;
pub mod mail;
pub mod membership;
pub mod node;
pub mod pki;
pub mod policy;
pub mod quic;
pub mod random;
pub mod shell;
pub mod sim;
pub mod state_directory;
pub mod store;
pub mod supervisor;
pub mod time;
pub mod timer;
