//! The local API: HTTP/1.1 and JSON on a unix socket, for the command line and for programs on this host.
//!
//! ```text
//!  program ── GET /v1/peers ──▸ server ── Request { call, caller, answer } ──▸ bounded queue ──▸ node
//!          ◂── 200 [ … ] ─────         ◂── Ok(Answer) or Err(Error) ─────────────────────────────┘
//! ```
//!
//! Every call stands once, in the table of [`call`]: its path, who may make it, what goes in and out. Server, client, `docs/api.md` and
//! `docs/openapi.json` are made from that table. Who calls is what the kernel says of the other end of the socket; nothing in the
//! request is believed about that.

pub mod access;
pub mod call;
pub mod client;
pub mod describe;
pub mod docs;
pub mod messages;
pub mod server;
pub mod types;

pub use access::{Access, Caller};
pub use call::{Answer, Call};
pub use types::{Error, ErrorCode, Role};
