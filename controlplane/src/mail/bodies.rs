//! Bodies of messages that wait: each once in memory and on disk, however many members it is for.
//!
//! ```text
//!  body ──▶ │ part 0 │ part 1 │ … │ part 65 │      a few parts a turn, and the messages' own rows after the last of them
//! ```
//!
//! A commit of 16 MiB takes a tenth of a second, in which nothing else of the control plane goes on; one of [`PARTS_AT_ONCE`] parts takes as
//! long as one of a few bytes, most of which is waiting for the disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::LoadError;
use super::wire::{BODY_LEN_MAX, MessageId};
use crate::store::{Batch, Store, Table};

/// Bytes of one part: with what the store adds just below a power of two, since it gives a long value pages of a power of two.
pub(super) const PART_LEN: usize = 252 << 10;
/// Parts that are written in one turn.
pub(super) const PARTS_AT_ONCE: usize = 4;

/// One body, named by the first message that has it.
#[derive(Debug)]
struct Body {
    bytes: Arc<[u8]>,
    /// Messages that have it.
    messages: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    by_id: HashMap<MessageId, Body>,
    bytes: usize,
}

/// Parts of a body of this length.
pub(super) const fn parts(len: usize) -> usize {
    len.div_ceil(PART_LEN)
}

fn key(body: MessageId, part: usize) -> Vec<u8> {
    // A body has 66 parts at most.
    [&body.0.to_be_bytes()[..], &(part as u16).to_be_bytes()].concat()
}

/// Writes parts of a body, up to this one.
pub(super) fn put(batch: &mut Batch, body: MessageId, bytes: &[u8], from: usize, to: usize) {
    for (part, bytes) in bytes.chunks(PART_LEN).enumerate().take(to).skip(from) {
        batch.put(Table::OutboxBodies, key(body, part), bytes);
    }
}

/// Deletes the first parts of a body.
pub(super) fn delete(batch: &mut Batch, body: MessageId, parts: usize) {
    (0..parts).for_each(|part| batch.delete(Table::OutboxBodies, key(body, part)));
}

/// What was kept, by body: its parts put together again, and how many they are.
pub(super) fn load(store: &impl Store) -> Result<BTreeMap<MessageId, (Vec<u8>, usize)>, LoadError> {
    let mut all: BTreeMap<MessageId, (Vec<u8>, usize)> = BTreeMap::new();
    for (key, bytes) in store.entries(Table::OutboxBodies)? {
        let Some((body, part)) = key.split_first_chunk::<8>() else { return Err(LoadError::Key) };
        let part = u16::from_be_bytes(part.try_into().map_err(|_| LoadError::Key)?);
        let (whole, parts) = all.entry(MessageId(u64::from_be_bytes(*body))).or_default();
        if usize::from(part) != *parts || whole.len() + bytes.len() > BODY_LEN_MAX {
            return Err(LoadError::Key);
        }
        whole.extend_from_slice(&bytes);
        *parts += 1;
    }
    Ok(all)
}

impl Bodies {
    /// A body that so many messages have.
    pub(super) fn insert(&mut self, id: MessageId, bytes: Arc<[u8]>, messages: usize) {
        self.bytes += bytes.len();
        self.by_id.insert(id, Body { bytes, messages });
    }

    /// One of them.
    pub(super) fn bytes_of(&self, id: MessageId) -> Option<&Arc<[u8]>> {
        self.by_id.get(&id).map(|body| &body.bytes)
    }

    /// One message has it no more. Says whether it was the last one, and with it the body has gone: its length.
    pub(super) fn release(&mut self, id: MessageId) -> Option<usize> {
        let body = self.by_id.get_mut(&id)?;
        body.messages = body.messages.saturating_sub(1);
        if body.messages > 0 {
            return None;
        }
        let len = body.bytes.len();
        self.by_id.remove(&id);
        self.bytes -= len;
        Some(len)
    }

    /// Bytes of all of them.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}
