//! Whom a handshake believes: a snapshot of bundle and revocations.
//!
//! ```text
//!  node machine ──replace, set_now──▸ SharedTrust ◂──verify── quic's verifier   a dialled server must be the node that was dialled,
//!                                         │                                     a client is a member, or shows no certificate (join)
//!                                         └─ Checks: one counter a cause
//! ```
//!
//! Validity is judged by the network's clock that the node machine sets here, never by the time that the TLS library offers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustls_pki_types::CertificateDer;

use super::bundle::Bundle;
use super::id::{NetworkId, NodeId};
use super::revocation::RevocationSet;
use super::seen::Seen;
use super::verifier::{Member, VerifyError, verify_by};
use crate::time::UnixSecs;

/// What holds at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The network.
    pub network: NetworkId,
    /// The bundle that holds.
    pub bundle: Arc<Bundle>,
    /// What was revoked.
    pub revoked: Arc<RevocationSet>,
}

/// How many chains were accepted, and how many refused for each cause.
#[derive(Debug, Default)]
pub struct Checks {
    accepted: AtomicU64,
    in_grace: AtomicU64,
    refused: [AtomicU64; VerifyError::NAMES.len()],
}

impl Checks {
    fn count(&self, result: &Result<Member, VerifyError>) {
        let counter = match result {
            Ok(member) if member.in_grace => &self.in_grace,
            Ok(_) => &self.accepted,
            Err(error) => &self.refused[error.index()],
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Chains that were accepted, without those in grace.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Chains that had ended and were accepted all the same.
    pub fn in_grace(&self) -> u64 {
        self.in_grace.load(Ordering::Relaxed)
    }

    /// Every cause of refusal by [`VerifyError::name`], and how often it was one.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        VerifyError::NAMES.into_iter().zip(self.refused.iter().map(|counter| counter.load(Ordering::Relaxed)))
    }
}

#[derive(Debug)]
struct Shared {
    trust: RwLock<Arc<Trust>>,
    now: AtomicU64,
    proved: AtomicU64,
    checks: Checks,
    seen: Seen,
}

/// The trust that holds now, for the node machine that changes it and the handshakes that ask it.
#[derive(Clone, Debug)]
pub struct SharedTrust(Arc<Shared>);

impl SharedTrust {
    /// Begins with this trust at this moment of the network's clock.
    pub fn new(trust: Trust, now: UnixSecs) -> Self {
        let trust = RwLock::new(Arc::new(trust));
        Self(Arc::new(Shared {
            trust,
            now: AtomicU64::new(now.0),
            proved: AtomicU64::new(0),
            checks: Checks::default(),
            seen: Seen::default(),
        }))
    }

    /// What holds now.
    pub fn load(&self) -> Arc<Trust> {
        // A snapshot is replaced whole, so one that a panicking thread left is as good as any.
        Arc::clone(&self.0.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another trust in its place; handshakes that go on ask the new one.
    pub fn replace(&self, trust: Trust) {
        *self.0.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }

    /// The network's clock as it was set last.
    pub fn now(&self) -> UnixSecs {
        UnixSecs(self.0.now.load(Ordering::Relaxed))
    }

    /// The latest begin of a chain that was refused for nothing but that: no issuer certifies what is still to come, so it is at least that
    /// late.
    pub fn proved(&self) -> Option<UnixSecs> {
        Some(UnixSecs(self.0.proved.load(Ordering::Relaxed))).filter(|proved| proved.0 > 0)
    }

    /// Sets the network's clock.
    pub fn set_now(&self, now: UnixSecs) {
        self.0.now.store(now.0, Ordering::Relaxed);
    }

    /// What was accepted and refused so far.
    pub fn checks(&self) -> &Checks {
        &self.0.checks
    }

    /// Judges a chain, and counts the judgement. `expected` is the node that was dialled, if one was.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], expected: Option<NodeId>) -> Result<Member, VerifyError> {
        let trust = self.load();
        let judged_at = |at| verify_by(&self.0.seen, chain, &trust.bundle, trust.network, &trust.revoked, at);
        let result = judged_at(self.now()).and_then(|member| match expected {
            Some(expected) if expected != member.node => Err(VerifyError::OtherNode { expected, found: member.node }),
            Some(_) | None => Ok(member),
        });
        if let Err(VerifyError::NotYetValid(at)) = result
            && judged_at(at).is_ok()
        {
            self.0.proved.fetch_max(at.0, Ordering::Relaxed);
        }
        self.0.checks.count(&result);
        result
    }
}
