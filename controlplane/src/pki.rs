//! Who is who: identities, certificates, the trust bundle, revocation, and the clock that judges them.

pub mod id;
pub mod key;
