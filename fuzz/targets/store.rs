//! The file of a store, damaged: by a disk, a copy that was cut off, or a hand.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::store::redb::RedbStore;
use weir_controlplane::store::{Batch, Store as _, Table};

#[derive(Arbitrary, Debug)]
enum Damage {
    /// Not one of ours at all.
    Other(Vec<u8>),
    /// These bytes at these places, and then the end is missing.
    Bytes(Vec<(u32, u8)>, Option<u32>),
    /// Two pages hold each other's content.
    Swapped(u16, u16),
}

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    directory.join(format!("weir-fuzz-{}.redb", std::process::id()))
});

/// A store with something in it.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let _ = fs::remove_file(&*FILE);
    let mut store = RedbStore::open(&FILE).expect("a new store");
    let mut batch = Batch::default();
    for number in 0..64u8 {
        batch.put(Table::Issuer, [number], vec![number; 100]);
        batch.put(Table::Audit, [number], vec![number; 20]);
    }
    store.commit(batch).expect("room for it");
    drop(store);
    fs::read(&*FILE).expect("it was written")
});

const PAGE_LEN: usize = 4096;

fuzz_target!(|damage: Damage| {
    let mut bytes = GOOD.clone();
    match damage {
        Damage::Other(other) => bytes = other,
        Damage::Bytes(changes, cut) => {
            let len = bytes.len();
            changes.iter().for_each(|(at, byte)| bytes[*at as usize % len] = *byte);
            bytes.truncate(cut.map_or(len, |cut| cut as usize % len));
        }
        Damage::Swapped(one, other) => {
            let pages = bytes.len() / PAGE_LEN;
            let [one, other] = [one, other].map(|page| usize::from(page) % pages * PAGE_LEN);
            if one != other {
                let (first, second) = (one.min(other), one.max(other));
                let (low, high) = bytes.split_at_mut(second);
                low[first..first + PAGE_LEN].swap_with_slice(&mut high[..PAGE_LEN]);
            }
        }
    }
    fs::write(&*FILE, &bytes).expect("room for it");
    let Ok(mut store) = RedbStore::open(&FILE) else { return };
    for table in Table::ALL {
        // What is there passed the check of every page, so it can be read, and it is what was written.
        for (key, value) in store.entries(table).expect("a store that opened") {
            let written = match table {
                Table::Issuer => vec![key[0]; 100],
                _ => vec![key[0]; 20],
            };
            assert_eq!(value, written);
        }
    }
    let mut batch = Batch::default();
    batch.put(Table::Clock, "k", "v");
    store.commit(batch).expect("a store that opened");
});
