//! The DNS overlay: names of members, signed by their owners, verified on receipt, and again by whoever asks.
//!
//! ```text
//!   what this member publishes ─▶ MemberZone::sign ─▶ two records of the DHT: zone, name
//!   two records of another's   ─▶ MemberZone::verify ─▶ Catalog ─▶ answers, with every signature that proves them
//! ```
//!
//! A member's zone is whole in two records: `zone` has what the issuer says of it, its keys, and the NSEC chain, `name` has all other sets. So what is not
//! there is proven without asking further, and no gateway signs for another's zone (docs/dns.md, docs/decisions/0017).

pub mod answer;
pub mod catalog;
#[cfg(test)]
mod fixture;
pub mod limit;
pub mod member;
pub mod message;
pub mod publish;
pub mod server;
