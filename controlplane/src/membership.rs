//! Who we are, as it stands in the store.
//!
//! ```text
//!  table membership   "identity" → seed of the identity key, 32 bytes: drawn before the first request to join, replaced when the node leaves
//!                     "member"   → what the last grant made of us: network, id, name, leaf key, chain, statement
//!                     "admission"→ the network's admission seed
//!  table bundles      version, 8 bytes, big-endian → that version of the trust bundle
//! ```
//!
//! The identity is on disk before anybody hears of it, so that a node that lost its power in the middle of joining asks again with the same
//! key and gets the same certificate.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::codec::{self, DecodeError};
use crate::issuer::Grant;
use crate::pki::admission::SignedAdmission;
use crate::pki::bundle::SignedBundle;
use crate::pki::certificate::validity;
use crate::pki::dnssec::delegation::Delegation;
use crate::pki::id::{NetworkId, NodeId, Nonce, overlay_address};
use crate::pki::key::PrivateKey;
use crate::pki::statement::SignedStatement;
use crate::random::Random;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::UnixSecs;

const IDENTITY: &[u8] = b"identity";
const MEMBER: &[u8] = b"member";
const ADMISSION: &[u8] = b"admission";
/// Longest record of a member: a chain of two certificates with all prefixes that one can have, a statement, and names.
const MEMBER_LEN_MAX: usize = 64 * 1024;
/// Longest admission document.
const ADMISSION_LEN_MAX: usize = 1024;

/// Why the store does not say who we are.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is there cannot be read.
    #[error("the store's {what} cannot be read ({error}): restore a backup, or leave and join again")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// A member of a network: this node.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The network.
    pub network: NetworkId,
    /// Our id in it.
    pub node: NodeId,
    /// What the issuer added to our key to make the id.
    pub nonce: Nonce,
    /// Our name in it.
    pub name: String,
    /// The identity key.
    pub identity: PrivateKey,
    /// The key of the leaf certificate.
    pub leaf: PrivateKey,
    /// Leaf and issuer certificate.
    pub chain: Vec<Vec<u8>>,
    /// What the issuer states of us.
    pub statement: SignedStatement,
    /// Our place in the network's zones.
    pub delegation: Option<Delegation>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    network: NetworkId,
    node: NodeId,
    nonce: Nonce,
    name: String,
    leaf: Zeroizing<[u8; 32]>,
    chain: Vec<Vec<u8>>,
    statement: SignedStatement,
    delegation: Option<Delegation>,
}

fn damaged(what: &'static str) -> impl Fn(DecodeError) -> MembershipError {
    move |error| MembershipError::Damaged { what, error }
}

/// The identity key: the one that is there, or a fresh one that is kept from now on.
///
/// # Errors
/// [`MembershipError`].
pub fn identity(store: &mut impl Store, random: &mut impl Random) -> Result<PrivateKey, MembershipError> {
    if let Some(seed) = store.value(Table::Membership, IDENTITY)? {
        let seed = Zeroizing::new(seed);
        let seed = <&[u8; 32]>::try_from(seed.as_slice()).map_err(|_| damaged("identity")(DecodeError::Malformed))?;
        return Ok(PrivateKey::from_seed(seed));
    }
    let key = PrivateKey::generate(random);
    let mut batch = Batch::default();
    batch.put(Table::Membership, IDENTITY, key.seed().as_slice());
    store.commit(batch)?;
    Ok(key)
}

/// The key of the zone of whoever has this identity.
pub fn dns_key(identity: &PrivateKey) -> PrivateKey {
    identity.derive(&[b"dns zone"])
}

impl Membership {
    /// What a grant makes of a node with these keys.
    pub fn of_grant(network: NetworkId, grant: &Grant, identity: PrivateKey, leaf: PrivateKey) -> Self {
        Self {
            network,
            node: grant.node,
            nonce: grant.nonce,
            name: grant.name.clone(),
            identity,
            leaf,
            chain: grant.chain.clone(),
            statement: grant.statement.clone(),
            delegation: grant.delegation.clone(),
        }
    }

    /// Reads it; nothing when this node is a member of no network.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn load(store: &mut impl Store, random: &mut impl Random) -> Result<Option<Self>, MembershipError> {
        let Some(bytes) = store.value(Table::Membership, MEMBER)? else { return Ok(None) };
        let bytes = Zeroizing::new(bytes);
        let record: Record = codec::decode(&bytes, MEMBER_LEN_MAX).map_err(damaged("membership"))?;
        Ok(Some(Self {
            network: record.network,
            node: record.node,
            nonce: record.nonce,
            name: record.name,
            identity: identity(store, random)?,
            leaf: PrivateKey::from_seed(&record.leaf),
            chain: record.chain,
            statement: record.statement,
            delegation: record.delegation,
        }))
    }

    /// Adds it to a batch.
    pub fn put(&self, batch: &mut Batch) {
        let record = Record {
            network: self.network,
            node: self.node,
            nonce: self.nonce,
            name: self.name.clone(),
            leaf: self.leaf.seed(),
            chain: self.chain.clone(),
            statement: self.statement.clone(),
            delegation: self.delegation.clone(),
        };
        batch.put(Table::Membership, IDENTITY, self.identity.seed().as_slice());
        batch.put(Table::Membership, MEMBER, codec::encode(&record));
    }
}

impl Membership {
    /// The key of our zone.
    pub fn dns_key(&self) -> PrivateKey {
        dns_key(&self.identity)
    }

    /// Our own address in the overlay.
    pub fn address(&self) -> Ipv6Addr {
        overlay_address(self.network, self.node)
    }

    /// From when on our certificate is valid: it cannot be earlier than that.
    pub fn not_before(&self) -> Option<UnixSecs> {
        validity(self.chain.first()?).ok().map(|life| life.not_before)
    }
}

/// Forgets all of it. Whoever joins again is somebody else, so `next` takes the identity's place: it too is on disk before anybody hears of it.
pub fn forget(batch: &mut Batch, next: &PrivateKey) {
    for key in [MEMBER, ADMISSION] {
        batch.delete(Table::Membership, key);
    }
    batch.put(Table::Membership, IDENTITY, next.seed().as_slice());
}

/// Adds the admission seed to a batch.
pub fn put_admission(batch: &mut Batch, admission: &SignedAdmission) {
    batch.put(Table::Membership, ADMISSION, codec::encode(admission));
}

/// The admission seed, if there is one.
///
/// # Errors
/// [`MembershipError`].
pub fn admission(store: &impl Store) -> Result<Option<SignedAdmission>, MembershipError> {
    let Some(bytes) = store.value(Table::Membership, ADMISSION)? else { return Ok(None) };
    codec::decode(&bytes, ADMISSION_LEN_MAX).map(Some).map_err(damaged("admission seed"))
}

/// Adds versions of the bundle to a batch; the first of them is version `from`.
pub fn put_bundles(batch: &mut Batch, from: u64, versions: &[SignedBundle]) {
    for (version, bundle) in (from..).zip(versions) {
        batch.put(Table::Bundles, version.to_be_bytes(), codec::encode(bundle));
    }
}

/// All versions of the bundle, in order.
///
/// # Errors
/// [`MembershipError`].
pub fn bundles(store: &impl Store) -> Result<Vec<SignedBundle>, MembershipError> {
    let entries = store.entries(Table::Bundles)?.into_iter();
    entries.map(|(_, bytes)| codec::decode(&bytes, SignedBundle::LEN_MAX).map_err(damaged("trust bundle"))).collect()
}
