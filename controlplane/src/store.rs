//! What outlives the process: small tables of bytes, changed all or nothing.
//!
//! Cores decide what to keep and hand over a [`Batch`]; they read only when they start. What is in a table, its owner knows.

pub mod redb;

use std::collections::BTreeMap;

/// A table. Names are part of the format on disk: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Who we are: identity, certificate, network.
    Membership,
    /// Versions of the trust bundle.
    Bundles,
    /// Revocation lists by signer.
    Revocations,
    /// What members say of themselves.
    Directory,
    /// Versions of the policy.
    Policy,
    /// An issuer's allocations and invitations.
    Issuer,
    /// The audit log.
    Audit,
    /// The latest moment seen, and what else must not go back.
    Clock,
    /// Whom the DHT begins with, and the highest sequences that it has seen; serials of zones, and records that were set.
    Discovery,
    /// Messages of applications that others have not taken yet.
    Outbox,
    /// Their bodies, in parts.
    OutboxBodies,
    /// Which messages of others were taken.
    Inbox,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Membership,
        Self::Bundles,
        Self::Revocations,
        Self::Directory,
        Self::Policy,
        Self::Issuer,
        Self::Audit,
        Self::Clock,
        Self::Discovery,
        Self::Outbox,
        Self::OutboxBodies,
        Self::Inbox,
    ];

    /// Its name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Membership => "membership",
            Self::Bundles => "bundles",
            Self::Revocations => "revocations",
            Self::Directory => "directory",
            Self::Policy => "policy",
            Self::Issuer => "issuer",
            Self::Audit => "audit",
            Self::Clock => "clock",
            Self::Discovery => "discovery",
            Self::Outbox => "outbox",
            Self::OutboxBodies => "outbox_bodies",
            Self::Inbox => "inbox",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value in place of whatever was there.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Takes a value away; that none was there is no error.
    Delete(Table, Vec<u8>),
}

/// Changes that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Write>);

impl Batch {
    /// Adds a value.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push(Write::Put(table, key.into(), value.into()));
    }

    /// Takes one away.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.0.push(Write::Delete(table, key.into()));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why the store did not do it. What was there before still is.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct StoreError {
    /// What was being done, with the file's name.
    pub doing: String,
    /// What went wrong.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Keys with their values, in the order of the keys.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Tables of bytes.
pub trait Store {
    /// One value.
    ///
    /// # Errors
    /// [`StoreError`].
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// A whole table.
    ///
    /// # Errors
    /// [`StoreError`].
    fn entries(&self, table: Table) -> Result<Entries, StoreError>;

    /// Makes all changes, or none; when this returns they survive a loss of power.
    ///
    /// # Errors
    /// [`StoreError`].
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError>;
}

/// A store that is lent.
impl<S: Store + ?Sized> Store for &mut S {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (**self).value(table, key)
    }

    fn entries(&self, table: Table) -> Result<Entries, StoreError> {
        (**self).entries(table)
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        (**self).commit(batch)
    }
}

/// A store that forgets, for tests and simulations.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Store for MemoryStore {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn entries(&self, table: Table) -> Result<Entries, StoreError> {
        let of_table = self.0.iter().filter(|((known, _), _)| *known == table);
        Ok(of_table.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        for write in batch.0 {
            match write {
                Write::Put(table, key, value) => self.0.insert((table, key), value),
                Write::Delete(table, key) => self.0.remove(&(table, key)),
            };
        }
        Ok(())
    }
}
