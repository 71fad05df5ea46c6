//! A server that is new among our neighbours gets the records of its region that we keep: whoever looks for them asks it as well.
//!
//! ```text
//!   ──○──●──────○───key──○──■──○────▶      ○ keep the record, the two nearest to the key (of those that know ■) give it to ■, the new one
//! ```
//!
//! A record after the other, and not faster than anybody may ask; who is new judges each as it judges any.

use std::collections::VecDeque;
use std::time::Duration;

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
/// Between two records.
const GAP: Duration = Duration::from_millis(100);

/// Who gets something, and after which record.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover(VecDeque<(Contact, Option<(Key, Kind)>)>);

impl Handover {
    fn push(&mut self, contact: Contact) {
        self.remove(contact.node);
        if self.0.len() == WAITING_MAX {
            self.0.pop_front();
        }
        self.0.push_back((contact, None));
    }

    /// Somebody does not answer, or is no member any more.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.0.retain(|(contact, _)| contact.node != node);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn heap_len(&self) -> usize {
        self.0.capacity() * size_of::<(Contact, Option<(Key, Kind)>)>()
    }
}

impl<R: Random> Dht<R> {
    /// Somebody got a place in the table.
    pub(super) fn is_new_here(&mut self, contact: Contact, now: Now) {
        if self.mode == Mode::Server && !self.store.is_empty() {
            self.handover.push(contact);
            self.timers.set_at_latest(Timer::Handover, now.mono + GAP);
        }
    }

    /// Gives one record to whoever has waited longest.
    pub(super) fn hand_over(&mut self, now: Now) {
        while let Some((to, after)) = self.handover.0.pop_front() {
            let Some(at) = self.next_for(to, after, now) else { continue };
            if let Some((_, record)) = self.store.get(at.1, at.0, now.wall) {
                let query = Query::Put { record: record.clone(), replaces: None };
                self.ask(to, query, Purpose::Handover, now);
            }
            self.handover.0.push_back((to, Some(at)));
            self.timers.set(Timer::Handover, now.mono + GAP);
            return;
        }
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
        held.find(|((key, _), _)| is_its(*key) && is_ours(*key)).map(|(at, _)| at)
    }
}
