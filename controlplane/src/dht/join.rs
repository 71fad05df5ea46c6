//! How a node begins, and begins again: from whom it was given, from whom it was left with, and then from whom they name.

use super::lookup::{Goal, Lookup, PATH_REQUESTS_MAX};
use super::place::Contact;
use super::{ANCHORS_MAX, CHECK_GAP, Dht, FILLS_MAX, JOIN_WIDTH, K, Output, REJOIN, Timer, Why};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;

/// Whom to begin with, the next first: one node may stand at several addresses. And whom we came across last while nobody else answered.
#[derive(Clone, Debug)]
pub(super) struct Bootstrap(Vec<Contact>, Option<Contact>);

impl Bootstrap {
    /// From those who were kept.
    pub(super) fn new(mut anchors: Vec<Contact>) -> Self {
        anchors.truncate(ANCHORS_MAX);
        Self(anchors, None)
    }

    /// Whom an operator names comes first.
    fn put_first(&mut self, contacts: impl Iterator<Item = Contact>) {
        let kept = std::mem::take(&mut self.0);
        for contact in contacts.chain(kept) {
            if self.0.len() < ANCHORS_MAX && !self.0.contains(&contact) {
                self.0.push(contact);
            }
        }
    }

    /// Whom we came across; `true` when that is new. It has a place of its own: a list full of those who have moved, or are gone, left it out, and
    /// whoever comes to us must not put all others out.
    fn meet(&mut self, contact: Contact) -> bool {
        let is_new = self.1 != Some(contact) && !self.0.contains(&contact);
        if self.0.len() < ANCHORS_MAX && is_new {
            self.0.push(contact);
        }
        self.1 = Some(contact);
        is_new
    }

    pub(super) fn all(&self) -> &[Contact] {
        &self.0
    }

    /// As many as one look-up can ask, each node once.
    fn next(&self) -> Vec<Contact> {
        each_node_once(self.1.iter().chain(&self.0).copied()).take(PATH_REQUESTS_MAX).collect()
    }

    /// None of those who were asked answered: others have their turn.
    fn put_last(&mut self, were_asked: impl Fn(Contact) -> bool) {
        self.0.sort_by_key(|contact| were_asked(*contact));
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.0.retain(|contact| contact.node != node);
        self.1 = self.1.filter(|contact| contact.node != node);
    }

    pub(super) fn heap_len(&self) -> usize {
        self.0.capacity() * size_of::<Contact>()
    }
}

fn each_node_once(contacts: impl Iterator<Item = Contact>) -> impl Iterator<Item = Contact> {
    let mut seen = Vec::with_capacity(ANCHORS_MAX);
    contacts.filter(move |contact| {
        let is_new = !seen.contains(&contact.node);
        if is_new {
            seen.push(contact.node);
        }
        is_new
    })
}

impl<R: Random> Dht<R> {
    /// Begins, from these contacts and then from those that were kept.
    pub fn join(&mut self, contacts: &[Contact], now: Now) {
        let own = self.own;
        self.bootstrap.put_first(contacts.iter().copied().filter(|contact| contact.node != own));
        self.timers.set(Timer::Join, now.mono);
        self.handle_timeout(now);
    }

    /// Somebody is there whom one may begin with, if nobody else was.
    pub fn meet(&mut self, contact: Contact, now: Now) {
        let is_nobody_there = self.joined.is_none() || self.table.is_empty();
        if contact.node != self.own && is_nobody_there && self.bootstrap.meet(contact) && !self.is_joining() {
            self.timers.set_at_latest(Timer::Join, now.mono);
        }
    }

    fn is_joining(&self) -> bool {
        self.lookups.values().any(|job| job.why == Why::Join)
    }

    /// Somebody who serves has answered: with as many as a look-up needs it is done, and with fewer worth looking for our neighbourhood again.
    pub(super) fn somebody_serves(&mut self, now: Now) {
        if self.joined.is_none() {
            if self.table.len() >= JOIN_WIDTH {
                self.become_usable(now);
            } else if !self.is_joining() {
                self.timers.set_at_latest(Timer::Join, now.mono);
            }
        }
    }

    /// Looks for our own neighbourhood.
    pub(super) fn begin(&mut self, now: Now) {
        let target = self.own.into();
        let mut seeds = self.table.closest(target, K);
        seeds.extend(self.bootstrap.next().iter().filter(|contact| self.table.entry(contact.node).is_none()));
        if self.look_up(target, Goal::Near { width: JOIN_WIDTH }, 0.0, &seeds, Why::Join, now).is_err() {
            self.timers.set(Timer::Join, now.mono + self.rejoin_after);
        }
    }

    /// That has ended.
    pub(super) fn joined(&mut self, lookup: &Lookup, now: Now) {
        if lookup.answered_nodes().is_empty() {
            self.bootstrap.put_last(|contact| lookup.is_asked(contact));
            self.timers.set(Timer::Join, now.mono + self.rejoin_after);
            self.rejoin_after = (2 * self.rejoin_after).min(REJOIN[1]);
            return;
        }
        self.rejoin_after = REJOIN[0];
        if self.joined.is_none() {
            self.become_usable(now);
        }
        self.fill = 0;
        self.timers.set_at_latest(Timer::Check, now.mono + CHECK_GAP);
        (0..FILLS_MAX).for_each(|_| self.fill(now));
        self.schedule_refresh(now);
        self.publish_all(now);
    }

    pub(super) fn become_usable(&mut self, now: Now) {
        self.joined = Some(now.mono);
        self.outputs.push_back(Output::Joined);
    }

    /// Looks into the next bucket that has room.
    pub(super) fn fill(&mut self, now: Now) {
        let depth = self.table.depth().min(self.levels());
        while self.fill < depth {
            self.fill += 1;
            if self.table.has_room(self.fill - 1) {
                return self.look_into(self.fill - 1, Why::Fill, now);
            }
        }
    }

    /// Whom to begin with after a restart: those who have been here longest, and while there are few, whom we began with ourselves.
    pub fn anchors(&self) -> Vec<Contact> {
        let here = self.table.anchors(ANCHORS_MAX).into_iter();
        each_node_once(here.chain(self.bootstrap.all().iter().copied())).take(ANCHORS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::contact;
    use super::*;

    fn numbered(numbers: std::ops::Range<u16>) -> Vec<Contact> {
        numbers.map(|number| contact(NodeId([number as u8; 32]), number)).collect()
    }

    /// Twenty anchors that were all gone left no room for the one contact that an operator had set.
    #[test]
    fn who_is_given_comes_first_and_who_was_kept_fills_what_is_left() {
        let mut bootstrap = Bootstrap::new(numbered(0..ANCHORS_MAX as u16 + 1));
        assert_eq!(bootstrap.all(), numbered(0..ANCHORS_MAX as u16));
        bootstrap.put_first(numbered(100..102).into_iter().chain(numbered(3..4)));
        let expected =
            [numbered(100..102), numbered(3..4), numbered(0..3), numbered(4..ANCHORS_MAX as u16 - 2)].concat();
        assert_eq!((bootstrap.all(), expected.len()), (&expected[..], ANCHORS_MAX));
    }

    /// One look-up asks sixteen; the other four never had a turn.
    #[test]
    fn who_did_not_answer_lets_others_have_their_turn() {
        let mut bootstrap = Bootstrap::new(numbered(0..ANCHORS_MAX as u16));
        let first = bootstrap.next();
        assert_eq!(first, numbered(0..PATH_REQUESTS_MAX as u16));
        bootstrap.put_last(|contact| first.contains(&contact));
        assert_eq!(bootstrap.next()[..4], numbered(PATH_REQUESTS_MAX as u16..ANCHORS_MAX as u16));
        // Of one node at two addresses one is tried at a time.
        let one = numbered(1..2)[0];
        let moved = Contact { address: "192.0.2.1:9".parse().unwrap(), ..one };
        let mut bootstrap = Bootstrap::new(vec![one, moved]);
        assert_eq!(bootstrap.next(), [one]);
        bootstrap.put_last(|contact| contact == one);
        assert_eq!(bootstrap.next(), [moved]);
    }

    /// All of a network had moved: the one that was found was no anchor, and there were twenty of those.
    #[test]
    fn who_is_met_comes_first_though_all_places_are_taken_by_others() {
        let mut bootstrap = Bootstrap::new(numbered(0..ANCHORS_MAX as u16));
        let [one, other] = [100, 101].map(|number| numbered(number..number + 1)[0]);
        bootstrap.meet(one);
        assert_eq!(bootstrap.next()[..2], [one, numbered(0..1)[0]]);
        bootstrap.meet(other);
        assert_eq!(bootstrap.next()[..2], [other, numbered(0..1)[0]], "one place, whoever comes");
        bootstrap.remove(other.node);
        assert_eq!(bootstrap.next(), numbered(0..PATH_REQUESTS_MAX as u16));
    }
}
