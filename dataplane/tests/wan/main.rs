//! The classifier on the real kernel, through BPF test run: packet in, verdict and packet out.
//!
//! Needs root. Attaches nothing and sends nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a panic is how they fail")]

mod admission;
mod cases;
mod frames;
mod kernel;
mod parity;
