//! Superpackets: what a kernel leaves undone when it hands over 64 KiB at once, and what it is spared when it is handed as much.
//!
//! ```text
//!   from the local side            Segments                 a lane
//!  | IP | TCP | payload … 64 KiB | ────────▶ | IP | TCP | mss | IP | TCP | mss | … | IP | TCP | rest |
//!
//!   a lane                         Coalescer                to the local side
//!  | IP | TCP | mss | … | IP | TCP | rest | ────────▶ | IP | TCP | payload … 64 KiB |
//! ```
//!
//! Per superpacket the local side costs one call and one walk through a network stack; that, and not bytes, is what packets cost there.
//! Both ways each byte is copied once, and summed in the same pass where a checksum is due.
//!
//! This part knows headers and lengths. It knows no route, no session and no port: where packets come from and go to, others decide.

pub mod checksum;
pub mod coalesce;
pub mod segment;

pub use coalesce::{Coalescer, Delivered, Lent, Place};
pub use segment::Segments;

#[cfg(test)]
mod tests;
