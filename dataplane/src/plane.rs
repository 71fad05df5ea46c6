//! To come.
mod indices;
pub mod state;
