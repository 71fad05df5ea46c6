//! The classifier on the real kernel, through BPF test run: packet in, verdict and packet out.
//!
//! Needs root. Attaches nothing and sends nothing.

mod cases;
mod frames;
mod kernel;
mod parity;
