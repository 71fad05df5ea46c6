//! Loss of power at every write, by a disk that remembers in which order it was written to.
//!
//! Between two flushes a disk may carry out any of the writes that it was given, in any order, and half of one. So the state after a loss
//! of power is: everything up to the last flush, and a subset of what came after, the last of it perhaps torn.

use std::sync::{Arc, Mutex};

use super::*;
use crate::random::{Random as _, SeededRandom};

#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    Len(u64),
    Flush,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Operation>,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

impl State {
    fn carry_out(&mut self, operation: &Operation) {
        match operation {
            Operation::Write(at, data) => {
                let end = *at as usize + data.len();
                // A write may reach the disk before the length that makes room for it.
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[*at as usize..end].copy_from_slice(data);
            }
            Operation::Len(len) => self.bytes.resize(*len as usize, 0),
            Operation::Flush => {}
        }
    }
}

impl Disk {
    fn log_len(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }

    fn record(&self, operation: Operation) {
        let mut state = self.0.lock().unwrap();
        state.carry_out(&operation);
        state.log.push(operation);
    }

    /// The disk as the power came back, if it failed after so many operations.
    fn after_power_loss(&self, operations: usize, random: &mut SeededRandom) -> Self {
        let log = self.0.lock().unwrap().log[..operations].to_vec();
        let flushed = log.iter().rposition(|operation| matches!(operation, Operation::Flush)).unwrap_or(0);
        let mut state = State::default();
        log[..flushed].iter().for_each(|operation| state.carry_out(operation));
        let mode = random.u64() % 4;
        for operation in &log[flushed..] {
            match (mode, operation) {
                // Nothing of it, all of it, any of it, any of it torn.
                (0, _) => {}
                (1, operation) => state.carry_out(operation),
                (2, operation) if random.u64().is_multiple_of(2) => state.carry_out(operation),
                (3, Operation::Write(at, data)) if random.u64().is_multiple_of(2) => {
                    // Sectors of 512 bytes are written whole or not.
                    let sectors = data.len().div_ceil(512) as u64;
                    let whole = (random.u64() % (sectors + 1)) as usize * 512;
                    state.carry_out(&Operation::Write(*at, data[..whole.min(data.len())].to_vec()));
                }
                (_, _) => {}
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let source = state.bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Operation::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.record(Operation::Flush);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Operation::Write(offset, data.to_vec()));
        Ok(())
    }
}

fn open(disk: &Disk) -> Result<RedbStore, StoreError> {
    RedbStore::with_backend(disk.clone(), "the disk".into(), STEPS)
}

fn everything(store: &RedbStore) -> Vec<Entries> {
    Table::ALL.iter().map(|table| store.entries(*table).unwrap()).collect()
}

/// Commits some batches and notes after each how much the disk had been asked by then and what the store held.
fn history(disk: &Disk) -> Vec<(usize, Vec<Entries>)> {
    let mut store = open(disk).unwrap();
    let mut random = SeededRandom::new(7);
    let mut states = vec![(disk.log_len(), everything(&store))];
    for number in 0..12u8 {
        let mut batch = Batch::default();
        batch.put(Table::Clock, *b"number", [number]);
        for _ in 0..random.u64() % 6 {
            let (key, len) = ((random.u64() % 16) as u8, (random.u64() % 9_000) as usize);
            batch.put(Table::Directory, [key], vec![number; len]);
            batch.delete(Table::Directory, [key ^ 1]);
            batch.put(Table::Audit, [number, key], vec![key; 40]);
        }
        store.commit(batch).unwrap();
        states.push((disk.log_len(), everything(&store)));
    }
    // The machine stops here, without an orderly end.
    std::mem::forget(store);
    states
}

#[test]
fn power_lost_at_any_write_leaves_all_of_a_batch_or_nothing_of_it() {
    let disk = Disk::default();
    let states = history(&disk);
    let mut random = SeededRandom::new(11);
    let mut torn = 0;
    for operations in states[0].0..=states[states.len() - 1].0 {
        // The last state that somebody was told is safe, and the one that may be there instead.
        let safe = states.iter().rposition(|(end, _)| *end <= operations).unwrap();
        for _ in 0..6 {
            let survivor = disk.after_power_loss(operations, &mut random);
            let found = everything(&open(&survivor).unwrap());
            let next = states.get(safe + 1).map(|(_, state)| state);
            assert!(found == states[safe].1 || Some(&found) == next, "after {operations} operations");
            torn += usize::from(found == states[safe].1);
        }
    }
    assert!(torn > 50, "the power never failed within a batch");
}

/// The file has another name until then; what matters is that nothing in it is taken for content, and that nothing panics.
#[test]
fn power_lost_while_a_store_is_made_leaves_an_empty_one_or_an_error() {
    let disk = Disk::default();
    let made = history(&disk)[0].0;
    let mut random = SeededRandom::new(13);
    for operations in 0..=made {
        let survivor = disk.after_power_loss(operations, &mut random);
        if let Ok(store) = open(&survivor) {
            assert!(everything(&store).iter().all(Vec::is_empty));
        }
    }
}

#[test]
fn a_file_cut_short_anywhere_is_an_error_or_whole() {
    let disk = Disk::default();
    let (_, last) = history(&disk).pop().unwrap();
    let bytes = disk.0.lock().unwrap().bytes.clone();
    let mut refused = 0;
    for len in (0..bytes.len()).step_by(bytes.len() / 300).skip(1) {
        let cut = Disk::default();
        cut.0.lock().unwrap().bytes = bytes[..len].to_vec();
        match open(&cut) {
            Ok(store) => assert_eq!(everything(&store), last),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
}

/// What an issuer drops of its log is named in the batch that drops it.
#[test]
fn a_log_that_is_pruned_while_the_power_fails_is_the_one_before_or_the_one_after() {
    use crate::audit::{Act, Position, Start, verify_part};
    use crate::pki::key::PrivateKey;
    use crate::time::UnixSecs;

    let key = PrivateKey::from_seed(&[1; 32]);
    let verified = |store: &RedbStore| {
        let found = verify_part(store, 0, usize::MAX, |id| Some(key.public()).filter(|key| key.id() == id));
        (Start::open(store).unwrap(), found.unwrap())
    };
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    let mut states = vec![(disk.log_len(), verified(&store))];
    for version in 0..40 {
        let (start, end) = states[states.len() - 1].1;
        let mut batch = Batch::default();
        let end = end.append(&mut batch, &key, UnixSecs(version), "uid 0", Act::Admission { version });
        let after: (Start, Position) = start.prune(&store, &mut batch, end, 16, &key, UnixSecs(version)).unwrap();
        store.commit(batch).unwrap();
        states.push((disk.log_len(), after));
    }
    std::mem::forget(store);
    let mut random = SeededRandom::new(17);
    let (mut pruned, mut torn) = (0, 0);
    for operations in states[0].0..=states[states.len() - 1].0 {
        let safe = states.iter().rposition(|(end, _)| *end <= operations).unwrap();
        let survivor = disk.after_power_loss(operations, &mut random);
        let found = verified(&open(&survivor).unwrap());
        let next = states.get(safe + 1).map(|(_, state)| *state);
        assert!(found == states[safe].1 || Some(found) == next, "after {operations} operations");
        if next.is_some_and(|(start, _)| start != states[safe].1.0) {
            pruned += 1;
            torn += usize::from(found == states[safe].1);
        }
    }
    assert!(pruned > 50 && torn > 10, "{torn} of {pruned} losses within a batch that drops entries");
}
