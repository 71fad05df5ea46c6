//! A server that is new among our neighbours gets the records of its region that we keep: whoever looks for them asks it as well. So does one that
//! looks for its own neighbourhood: what it had may be gone with an earlier life of it, of which tables know nothing.
//!
//! ```text
//!   ──○──●──────○───key──○──■──○────▶      ○ keep the record, the two nearest to the key (of those that know ■) give it to ■, the new one
//! ```
//!
//! A record after the other, and not faster than anybody may ask; who is new judges each as it judges any. Two ids that work together and stand
//! nearest to a key can keep its records to themselves; so an owner gives its own whoever is nearer, and puts them again in any case.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::estimate::region;
use super::message::Query;
use super::place::{Contact, Key};
use super::record::Kind;
use super::{Dht, Mode, Purpose, Timer};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;

/// Those who keep a record and give it away, as far as they know. Ours: one may be lost, or lie.
const GIVERS: usize = 2;
/// Servers that wait for what we have. Ours: a region of newcomers; the oldest is forgotten, and gets what is published again.
const WAITING_MAX: usize = 16;
/// Servers that are remembered to have got it. Ours: as many newcomers in a minute as four regions have.
const LATELY_MAX: usize = 64;
/// Between two times that one server gets what we have. Ours: whoever says all the time that it begins has us say little more than it does.
const ONCE_IN: Duration = Duration::from_secs(60);
/// Between two records.
const GAP: Duration = Duration::from_millis(100);

/// Who gets something, and after which record; and who got it lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover {
    waiting: VecDeque<(Contact, Option<(Key, Kind)>)>,
    lately: VecDeque<(NodeId, Instant)>,
}

impl Handover {
    fn push(&mut self, contact: Contact, now: Instant) {
        self.lately.retain(|(_, since)| now.saturating_duration_since(*since) < ONCE_IN);
        if self.lately.iter().any(|(node, _)| *node == contact.node) {
            return;
        }
        if self.lately.len() == LATELY_MAX {
            self.lately.pop_front();
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((contact, None));
        self.lately.push_back((contact.node, now));
    }

    /// Somebody does not answer, or is no member any more.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.waiting.retain(|(contact, _)| contact.node != node);
    }

    /// Nobody waits: no room is taken for it.
    fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
        self.lately.shrink_to_fit();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn heap_len(&self) -> usize {
        self.waiting.capacity() * size_of::<(Contact, Option<(Key, Kind)>)>()
            + self.lately.capacity() * size_of::<(NodeId, Instant)>()
    }
}

impl<R: Random> Dht<R> {
    /// Somebody got a place in the table, or begins again.
    pub(super) fn is_new_here(&mut self, contact: Contact, now: Now) {
        if self.mode == Mode::Server && !self.store.is_empty() {
            self.handover.push(contact, now.mono);
            self.timers.set_at_latest(Timer::Handover, now.mono + GAP);
        }
    }

    /// Gives one record to whoever has waited longest.
    pub(super) fn hand_over(&mut self, now: Now) {
        while let Some((to, after)) = self.handover.waiting.pop_front() {
            let Some(at) = self.next_for(to, after, now) else { continue };
            let record = self.store.get(at.1, at.0, now.wall).map(|(_, record)| record.clone());
            let is_asked =
                record.is_none_or(|record| self.ask(to, Query::Put { record, replaces: None }, Purpose::Handover, now));
            // Without room for the answer its turn comes again.
            self.handover.waiting.push_back((to, if is_asked { Some(at) } else { after }));
            self.timers.set(Timer::Handover, now.mono + GAP);
            return;
        }
        self.handover.shrink();
    }

    /// The next of our records that are in the region of somebody, and that we are to give away.
    fn next_for(&self, to: Contact, after: Option<(Key, Kind)>, now: Now) -> Option<(Key, Kind)> {
        let region = region(self.servers());
        let is_its = |key: Key| key.distance(to.node.into()).share() <= region;
        let is_ours = |key: Key| {
            let own = key.distance(self.own.into());
            let nearest = self.table.closest(key, GIVERS + 1);
            let others = nearest.iter().filter(|other| other.node != to.node);
            others.filter(|other| key.distance(other.node.into()) < own).count() < GIVERS
        };
        // Its own it has.
        let mut held = self.store.held_after(after, now.wall).filter(|(_, signer)| *signer != to.node);
        // What we say ourselves is ours to give, whoever is nearer.
        held.find(|((key, _), signer)| is_its(*key) && (*signer == self.own || is_ours(*key))).map(|(at, _)| at)
    }
}
