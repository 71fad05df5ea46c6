//! The engine as a whole: gateways with real keys, connected back to back over memory.
//!
//! Each fact states what reached the sinks and every counter that moved; what is not listed did not happen.

mod classes;
mod control;
mod foreign;
mod forwarding;
mod held;
mod hostile;
mod lane_ports;
mod lifecycle;
mod path;
mod policy;
mod random;
mod rig;
mod roam;
mod router;
mod superpackets;
mod turn;
