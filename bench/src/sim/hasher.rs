//! Ids are hashes already: eight bytes of one are as good as any hash of it.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps by id.
pub(super) type IdHasher = BuildHasherDefault<LastBytes>;

/// The last eight bytes that were written: of an id, and not its length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastBytes(u64);

impl Hasher for LastBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*last);
        }
    }

    // Of an array, its length comes first.
    fn write_usize(&mut self, _: usize) {}
}
