//! Drivers on a network in memory, on virtual time.

mod handshake;
mod hostile;
mod legacy;
mod limits;
mod openssl;
mod paths;
mod raw;
mod traffic;
mod world;
