//! The packet engine: a batch in, a batch out, every drop named.

pub mod aead;
pub mod block;
pub mod bundle;
pub mod counters;
pub mod icmp;
pub mod inner;
pub mod keys;
pub mod lane;
pub mod lpm;
pub mod port;
pub mod prefix_set;
pub mod replay;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod wheel;
