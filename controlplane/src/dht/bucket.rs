//! One bucket of the table: members of one range of distances, and those who wait for a place.
//!
//! ```text
//!  entries, at most 20: they answered us; who has been here longest stays as long as it answers
//!  spares,  at most  8: heard of or met, the latest last; one of them follows when an entry goes or there is room
//! ```

use std::time::{Duration, Instant};

use super::message::K;
use super::place::{Contact, Peer, Prefix, Site};
use crate::pki::id::NodeId;

/// Those who wait. Ours: enough that half of a bucket can go at once.
pub(super) const SPARES_MAX: usize = 8;
/// Requests in a row without an answer after which an entry goes: one may be lost twice.
pub(super) const FAILURES_MAX: u8 = 2;
/// Entries of one site, and of one prefix: nobody who owns either gets more than this share of a bucket. Ours: a fifth.
const SAME_MAX: usize = K / 5;

/// Somebody in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) contact: Contact,
    pub(super) site: Option<Site>,
    /// When it last answered, or asked us something.
    pub(super) heard: Instant,
    /// Milliseconds from then until we last asked it something: a table holds hundreds of these.
    tried_after_ms: u32,
    /// Requests since it was heard without an answer.
    pub(super) failures: u8,
}

impl Entry {
    fn new(peer: Peer, now: Instant) -> Self {
        Self { contact: peer.contact, site: peer.site, heard: now, tried_after_ms: 0, failures: 0 }
    }

    /// When we last asked it something, or heard from it.
    pub(super) fn tried(&self) -> Instant {
        self.heard + Duration::from_millis(self.tried_after_ms.into())
    }

    /// It is being asked now.
    pub(super) fn try_now(&mut self, now: Instant) {
        let after = now.saturating_duration_since(self.heard).as_millis();
        self.tried_after_ms = u32::try_from(after).unwrap_or(u32::MAX);
    }

    /// It asked us something. That says nothing of whether it answers.
    pub(super) fn hear(&mut self, now: Instant) {
        (self.heard, self.tried_after_ms) = (now, 0);
    }
}

/// How much of what is one owner's a bucket may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Diversity {
    /// Whether sites are counted: there are several.
    pub(super) sites: bool,
    /// Whether prefixes are counted: enough of them are known.
    pub(super) prefixes: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    entries: Vec<Entry>,
    spares: Vec<Contact>,
}

impl Bucket {
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < K
    }

    pub(super) fn entry_mut(&mut self, node: NodeId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.contact.node == node)
    }

    /// Somebody has proven that it answers; `false` when it has to wait.
    pub(super) fn admit(&mut self, peer: Peer, now: Instant, diversity: Diversity) -> bool {
        if let Some(entry) = self.entry_mut(peer.contact.node) {
            *entry = Entry::new(peer, now);
            return true;
        }
        if !self.has_room() {
            self.wait(peer.contact, true);
            return false;
        }
        self.spares.retain(|spare| spare.node != peer.contact.node);
        if !self.is_diverse_with(peer, diversity) {
            return false;
        }
        // In steps, not by doubling: most buckets fill to twenty and stay there.
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(4);
        }
        self.entries.push(Entry::new(peer, now));
        true
    }

    fn is_diverse_with(&self, peer: Peer, diversity: Diversity) -> bool {
        let prefix = Prefix::of(peer.contact.address.ip()).filter(|_| diversity.prefixes);
        let site = peer.site.filter(|_| diversity.sites);
        let same_site = self.entries.iter().filter(|entry| site.is_some() && entry.site == site);
        // A site that its issuer vouches for says more than a prefix, so prefixes count for those without one only.
        let of_prefix =
            |entry: &&Entry| site.is_none() && prefix.is_some() && Prefix::of(entry.contact.address.ip()) == prefix;
        same_site.count() < SAME_MAX && self.entries.iter().filter(of_prefix).count() < SAME_MAX
    }

    /// Somebody was heard of, at an address where it `is_met`, or that another named. What is named takes no address away from one who waits:
    /// it has its turn when that one has failed.
    pub(super) fn wait(&mut self, contact: Contact, is_met: bool) {
        if self.entries.iter().any(|entry| entry.contact.node == contact.node) {
            return;
        }
        let before = self.spares.iter().position(|spare| spare.node == contact.node).map(|at| self.spares.remove(at));
        if self.spares.len() == SPARES_MAX {
            self.spares.remove(0);
        }
        self.spares.push(before.filter(|_| !is_met).unwrap_or(contact));
    }

    /// The latest of those who wait, once there is room; it is asked, and comes back when it answers.
    pub(super) fn next_spare(&mut self) -> Option<Contact> {
        if self.has_room() { self.spares.pop() } else { None }
    }

    /// Somebody did not answer at this address; that it may have another says nothing of. Gives the entry that goes because of it.
    pub(super) fn fail(&mut self, contact: Contact, now: Instant) -> Option<Entry> {
        self.spares.retain(|spare| *spare != contact);
        let at = self.entries.iter().position(|entry| entry.contact == contact)?;
        let entry = &mut self.entries[at];
        entry.failures += 1;
        entry.try_now(now);
        (entry.failures >= FAILURES_MAX).then(|| self.entries.remove(at))
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.entries.retain(|entry| entry.contact.node != node);
        self.spares.retain(|spare| spare.node != node);
    }

    /// Bytes on the heap.
    pub(super) fn heap_len(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.spares.capacity() * size_of::<Contact>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{contact, peer};
    use super::*;

    const ALL: Diversity = Diversity { sites: true, prefixes: true };

    fn numbered(number: u16) -> Peer {
        let [high, low] = number.to_be_bytes();
        peer(contact(NodeId([[high, low]; 16].concat().try_into().unwrap()), number))
    }

    #[test]
    fn who_answers_stays_and_who_waits_follows_when_one_goes() {
        let (start, mut bucket) = (Instant::now(), Bucket::default());
        for number in 0..K as u16 {
            assert!(bucket.admit(numbered(number), start, ALL));
        }
        for number in 100..100 + SPARES_MAX as u16 + 1 {
            assert!(!bucket.admit(numbered(number), start, ALL));
        }
        assert_eq!((bucket.entries.len(), bucket.spares.len(), bucket.next_spare()), (K, SPARES_MAX, None));
        let later = start + Duration::from_secs(1);
        let gone = numbered(3).contact;
        assert!(bucket.fail(gone, later).is_none() && bucket.entry_mut(gone.node).unwrap().failures == 1);
        // An answer makes up for it.
        assert!(bucket.admit(numbered(3), later, ALL) && bucket.fail(gone, later).is_none());
        assert_eq!(bucket.fail(gone, later).map(|entry| entry.contact), Some(gone));
        // The latest of those who wait is next.
        assert_eq!(bucket.next_spare(), Some(numbered(108).contact));
        assert!(bucket.admit(numbered(108), later, ALL) && bucket.entries.len() == K);
    }

    /// Honest ids were named at addresses where nobody is: they lost their places, and those who waited their addresses.
    #[test]
    fn an_address_that_somebody_named_costs_nobody_its_place() {
        let (now, mut bucket) = (Instant::now(), Bucket::default());
        let elsewhere = |contact: Contact| Contact { address: "192.0.2.1:9".parse().unwrap(), ..contact };
        let (here, waits, other) = (numbered(1).contact, numbered(2).contact, numbered(3).contact);
        assert!(bucket.admit(peer(here), now, ALL));
        for _ in 0..2 * FAILURES_MAX {
            assert!(bucket.fail(elsewhere(here), now).is_none());
        }
        assert_eq!((bucket.entries().len(), bucket.entries()[0].failures), (1, 0));
        bucket.wait(waits, true);
        bucket.wait(elsewhere(waits), false);
        assert!(bucket.fail(elsewhere(waits), now).is_none());
        assert_eq!(bucket.spares, [waits]);
        // The first that was named is tried first, and makes room for another once it has failed; where it is met it is.
        bucket.wait(elsewhere(other), false);
        bucket.wait(other, false);
        assert_eq!(bucket.spares, [waits, elsewhere(other)]);
        bucket.fail(elsewhere(other), now);
        bucket.wait(other, false);
        assert_eq!(bucket.spares, [waits, other]);
        bucket.wait(elsewhere(other), true);
        assert_eq!((bucket.next_spare(), bucket.next_spare()), (Some(elsewhere(other)), Some(waits)));
    }

    #[test]
    fn one_site_gets_a_fifth_of_a_bucket_where_sites_differ() {
        let start = Instant::now();
        let of_site = |number, site| Peer { site: Some(Site(site)), ..numbered(number) };
        let mut bucket = Bucket::default();
        for number in 0..SAME_MAX as u16 {
            assert!(bucket.admit(of_site(number, 1), start, ALL));
        }
        assert!(!bucket.admit(of_site(50, 1), start, ALL));
        assert!(bucket.admit(of_site(51, 2), start, ALL));
        assert!(bucket.admit(of_site(50, 1), start, Diversity { sites: false, ..ALL }));
    }

    #[test]
    fn one_public_prefix_gets_a_fifth_of_a_bucket_and_private_ones_are_not_counted() {
        let start = Instant::now();
        let at = |number: u16, prefix: &str| {
            let mut peer = numbered(number);
            peer.contact.address = format!("{prefix}.{}:4646", number + 1).parse().unwrap();
            peer
        };
        let mut bucket = Bucket::default();
        for number in 0..SAME_MAX as u16 {
            assert!(bucket.admit(at(number, "198.51.100"), start, ALL));
        }
        assert!(!bucket.admit(at(50, "198.51.100"), start, ALL));
        assert!(bucket.admit(at(51, "198.51.101"), start, ALL));
        // A fleet in one /24.
        assert!(bucket.admit(at(50, "198.51.100"), start, Diversity { prefixes: false, ..ALL }));
        for number in 60..60 + 2 * SAME_MAX as u16 {
            assert!(bucket.admit(at(number, "192.168.1"), start, ALL));
        }
    }
}
