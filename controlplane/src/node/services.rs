//! The services that this node offers: what the configuration names is published, and what it names no longer is taken back.
//!
//! ```text
//!  configured ──▶ record, port 80 ──▶ again with each record of ours
//!  once told, and configured no more ──▶ record, port 0 ──▶ until the last one that said otherwise has ended
//! ```
//!
//! Others keep a record until its end, four days as a rule, and ask nobody in between: so that a service is gone when its owner says so, that is said in
//! a later record, and what was told outlives the process.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::dht::record::ServiceValue;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::UnixSecs;

/// Most services of a node. Ours: with the records of the node itself they are what a store keeps of one member.
pub const SERVICES_MAX: usize = 16;
/// Bytes of the texts of all services together, for the same reason.
pub const TEXTS_LEN_MAX: usize = 2048;
/// Services that are offered or taken back at a time; beyond, those of the latter that end first are left to their end. Ours: a few less than a node may
/// publish.
const SAID_MAX: usize = 24;
/// Where what was told lies in [`Table::Discovery`].
pub(super) const TOLD: &[u8] = b"services";
/// Longest form of that.
const TOLD_LEN_MAX: usize = 4096;

/// A service that others may have a record of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    label: String,
    /// When the last record ends that says where it is.
    until: UnixSecs,
}

/// What others were told, as it lies in the store.
pub(super) fn kept(store: &impl Store) -> Result<Vec<Told>, StoreError> {
    let bytes = store.value(Table::Discovery, TOLD)?.unwrap_or_default();
    // Without it services that are configured no more are found until their records end.
    Ok(codec::decode(&bytes, TOLD_LEN_MAX).unwrap_or_default())
}

/// What is to be said now of services that are offered, and of those that no longer are; each with the end of its record. `until` is that of what is said
/// anew.
pub(super) fn to_say(
    offered: &[ServiceValue],
    told: &mut Vec<Told>,
    until: UnixSecs,
    now: UnixSecs,
) -> Vec<(ServiceValue, UnixSecs)> {
    told.retain(|told| told.until >= now && offered.iter().all(|service| service.label != told.label));
    told.sort_unstable_by_key(|told| std::cmp::Reverse(told.until));
    let offered = &offered[..offered.len().min(SERVICES_MAX)];
    told.truncate(SAID_MAX - offered.len());
    let gone = told.iter().map(|told| {
        let Told { label, until } = told.clone();
        (ServiceValue { label, port: 0, texts: vec![] }, until)
    });
    let said = offered.iter().map(|service| (service.clone(), until)).chain(gone).collect();
    told.extend(offered.iter().map(|service| Told { label: service.label.clone(), until }));
    said
}

/// Writes down what others are told.
pub(super) fn save(told: &Vec<Told>) -> Batch {
    let mut batch = Batch::default();
    batch.put(Table::Discovery, TOLD, codec::encode(told));
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn service(label: &str) -> ServiceValue {
        ServiceValue { label: label.into(), port: 80, texts: vec![b"path=/".to_vec()] }
    }

    #[test]
    fn what_is_configured_no_more_is_taken_back_until_its_record_ends_and_that_outlives_the_process() {
        let (http, ssh) = (service("_http._tcp"), service("_ssh._tcp"));
        let gone = ServiceValue { port: 0, texts: vec![], ..ssh.clone() };
        let (begin, day) = (UnixSecs(1_790_000_000), 86_400);
        let at = |days: u64| UnixSecs(begin.0 + days * day);
        let mut store = MemoryStore::default();
        let say = |store: &mut MemoryStore, offered: &[ServiceValue], now: UnixSecs| {
            let mut told = kept(store).unwrap();
            let said = to_say(offered, &mut told, UnixSecs(now.0 + 4 * day), now);
            store.commit(save(&told)).unwrap();
            said
        };
        assert_eq!(say(&mut store, &[], at(0)), []);
        let both = [http.clone(), ssh.clone()];
        assert_eq!(say(&mut store, &both, at(0)), [(http.clone(), at(4)), (ssh.clone(), at(4))]);
        assert_eq!(say(&mut store, &both, at(1)), [(http.clone(), at(5)), (ssh.clone(), at(5))]);
        let one = std::slice::from_ref(&http);
        for days in 2..=5 {
            assert_eq!(say(&mut store, one, at(days)), [(http.clone(), at(days + 4)), (gone.clone(), at(5))]);
        }
        assert_eq!(say(&mut store, one, at(6)), [(http.clone(), at(10))], "nobody has it any more");
        // It comes back.
        assert_eq!(say(&mut store, &both, at(7)).len(), 2);
        assert_eq!(say(&mut store, &both, at(8)), [(http, at(12)), (ssh, at(12))]);
    }

    #[test]
    fn as_many_are_said_and_taken_back_as_there_is_room_for() {
        let labels = |from: usize| (from..from + SERVICES_MAX + 1).map(|n| service(&format!("_s{n}._tcp")));
        let (first, then): (Vec<_>, Vec<_>) = (labels(0).collect(), labels(100).collect());
        let (mut told, now) = (vec![], UnixSecs(1_790_000_000));
        let until = UnixSecs(now.0 + 9);
        assert_eq!(to_say(&first, &mut told, until, now).len(), SERVICES_MAX);
        assert_eq!(to_say(&[], &mut told.clone(), until, now).len(), SERVICES_MAX);
        let said = to_say(&then, &mut told, until, now);
        assert_eq!((said.len(), told.len()), (SAID_MAX, SAID_MAX));
        assert!(codec::encode(&told).len() <= TOLD_LEN_MAX);
    }
}
