//! Who is who: identities, certificates, the trust bundle, revocation, and the clock that judges them.

pub mod bundle;
pub mod certificate;
pub mod crl;
#[cfg(test)]
pub(crate) mod fixture;
pub mod id;
pub mod key;
pub mod name;
pub mod resources;
pub mod revocation;
pub mod signed;
pub mod statement;
pub mod trust;
pub mod verifier;
