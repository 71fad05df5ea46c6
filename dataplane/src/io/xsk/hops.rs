//! Where a frame goes next: the table that AF_XDP ports send by, made by somebody else from what the kernel knows.
//!
//! ```text
//!   control thread: routes, neighbours, links ──publish──▶ Shared ──one load a flush──▶ Reader: a worker's port
//! ```
//!
//! The port knows no routes: an address that the table does not resolve is the kernel's to reach.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use crate::io::netlink::L2;

/// Finds the next hop of a destination.
pub trait NextHops {
    /// The next hop, or `None` when it is not known or not confirmed, or lies on no interface of this port.
    fn resolve(&self, destination: IpAddr) -> Option<L2>;
}

/// Next hops of single addresses.
#[derive(Clone, Debug, Default)]
pub struct HopTable(HashMap<IpAddr, L2>);

impl FromIterator<(IpAddr, L2)> for HopTable {
    fn from_iter<I: IntoIterator<Item = (IpAddr, L2)>>(hops: I) -> Self {
        Self(hops.into_iter().collect())
    }
}

impl NextHops for HopTable {
    fn resolve(&self, destination: IpAddr) -> Option<L2> {
        self.0.get(&destination).copied()
    }
}

/// A table as it is passed between threads.
type Table = Arc<dyn NextHops + Send + Sync>;

struct Slot {
    epoch: AtomicU64,
    table: Mutex<Table>,
}

/// The current table, replaced whole by one thread and read by workers. Clones share it.
#[derive(Clone)]
pub struct Shared(Arc<Slot>);

impl Default for Shared {
    fn default() -> Self {
        Self(Arc::new(Slot { epoch: AtomicU64::new(0), table: Mutex::new(Arc::new(HopTable::default())) }))
    }
}

impl Shared {
    /// Makes `table` the current one; each worker uses it from its next flush on.
    pub fn publish(&self, table: Arc<dyn NextHops + Send + Sync>) {
        // A panic while the table was swapped leaves one or the other, both whole.
        *self.0.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.0.epoch.fetch_add(1, Ordering::Release);
    }

    /// A worker's end.
    pub(super) fn reader(&self) -> Reader {
        let epoch = self.0.epoch.load(Ordering::Acquire);
        let table = Arc::clone(&self.0.table.lock().unwrap_or_else(PoisonError::into_inner));
        Reader { shared: self.clone(), epoch, table }
    }
}

/// A worker's copy of the current table.
pub(super) struct Reader {
    shared: Shared,
    epoch: u64,
    table: Table,
}

impl Reader {
    /// Takes the new table if there is one. Never waits: while one is being published the old one serves.
    pub(super) fn refresh(&mut self) {
        let epoch = self.shared.0.epoch.load(Ordering::Acquire);
        if epoch == self.epoch {
            return;
        }
        match self.shared.0.table.try_lock() {
            Ok(table) => (self.table, self.epoch) = (Arc::clone(&table), epoch),
            Err(TryLockError::Poisoned(table)) => (self.table, self.epoch) = (Arc::clone(&table.into_inner()), epoch),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// The next hop by the table as it was last taken.
    pub(super) fn resolve(&self, destination: IpAddr) -> Option<L2> {
        self.table.resolve(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_the_table_that_was_published_last() {
        let hop = |mtu| L2 { interface: 1, source_mac: [1; 6], destination_mac: [2; 6], source: None, mtu };
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let shared = Shared::default();
        let mut reader = shared.reader();
        assert_eq!(reader.resolve(address), None);
        for mtu in [1500, 9000] {
            shared.publish(Arc::new(HopTable::from_iter([(address, hop(mtu))])));
            reader.refresh();
            assert_eq!(reader.resolve(address), Some(hop(mtu)));
        }
    }
}
