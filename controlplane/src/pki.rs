//! Who is who: identities, certificates, the trust bundle, revocation, and the clock that judges them.

pub mod admission;
pub mod bundle;
pub mod ceremony;
pub mod certificate;
pub mod clock;
pub mod crl;
pub mod dnssec;
#[cfg(test)]
pub(crate) mod fixture;
pub mod id;
pub mod key;
pub mod name;
pub mod resources;
pub mod revocation;
pub mod seen;
pub mod signed;
pub mod statement;
pub mod token;
pub mod trust;
pub mod verifier;
