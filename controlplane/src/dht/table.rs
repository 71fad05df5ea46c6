//! Whom we know: buckets by the number of leading bits that an id has in common with ours (Maymounkov, Mazières, §2.4).
//!
//! ```text
//!  bucket 0: half of the network   bucket 1: a quarter   …   the last ones: our neighbourhood, with room left
//! ```
//!
//! A place is for those only who answered what we asked; who talks to us, or is talked of, waits until we have asked it. So nobody fills a
//! table by knocking, and one identity has one place: its id says which.

use std::time::{Duration, Instant};

use super::bucket::{Bucket, Diversity, Entry};
use super::estimate::NEIGHBOURS_MIN;
use super::message::K;
use super::place::{Contact, KEY_BITS, Key, Peer, Prefix};
use crate::pki::id::NodeId;
use crate::random::Random;

/// Prefixes below which there is no telling a fleet from an attack.
const PREFIXES_MIN: usize = 4;

/// Whether so many of them differ; as a rule the first few do.
fn are_several<T: PartialEq>(all: impl Iterator<Item = T>) -> bool {
    let mut seen = Vec::with_capacity(PREFIXES_MIN);
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
            if seen.len() == PREFIXES_MIN {
                return true;
            }
        }
    }
    false
}

/// What becomes of somebody who asked us something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It has its place; for so long nothing had been heard of it.
    Stays(Duration),
    /// It waits for one: worth asking at once when there is room.
    Waits { has_room: bool },
}

/// The table of one node.
#[derive(Clone, Debug)]
pub struct Table {
    own: Key,
    /// By shared bits, as far as somebody is known.
    buckets: Vec<Bucket>,
    /// Worked out again after a change.
    diversity: Diversity,
    /// When somebody's turn to be asked comes at the earliest, with this interval between turns.
    turn: Option<(Instant, Duration)>,
}

impl Table {
    /// An empty one around this place.
    pub(super) fn new(own: Key) -> Self {
        Self { own, buckets: vec![], diversity: Diversity { sites: false, prefixes: false }, turn: None }
    }

    fn bucket_of(&mut self, node: NodeId) -> Option<&mut Bucket> {
        let bits = self.own.distance(node.into()).shared_bits();
        if bits == KEY_BITS {
            return None;
        }
        if self.buckets.len() <= bits {
            self.buckets.resize_with(bits + 1, Bucket::default);
        }
        self.buckets.get_mut(bits)
    }

    /// Somebody answered what we asked. Whether it has a place now.
    pub(super) fn answered(&mut self, peer: Peer, now: Instant) -> bool {
        let diversity = self.diversity;
        let Some(bucket) = self.bucket_of(peer.contact.node) else { return false };
        let before = bucket.entries().len();
        let has_place = bucket.admit(peer, now, diversity);
        if bucket.entries().len() != before {
            self.look_around();
        }
        has_place
    }

    /// Somebody asked us something.
    pub(super) fn met(&mut self, contact: Contact, now: Instant) -> Met {
        let Some(bucket) = self.bucket_of(contact.node) else { return Met::Waits { has_room: false } };
        if let Some(entry) = bucket.entry_mut(contact.node) {
            let silent = now.saturating_duration_since(entry.heard);
            entry.hear(now);
            return Met::Stays(silent);
        }
        bucket.wait(contact, true);
        Met::Waits { has_room: bucket.has_room() }
    }

    /// Somebody was named to us. Whether it is worth asking at once, since there is room.
    pub(super) fn named(&mut self, contact: Contact) -> bool {
        let Some(bucket) = self.bucket_of(contact.node) else { return false };
        if bucket.entry_mut(contact.node).is_some() {
            return false;
        }
        bucket.wait(contact, false);
        bucket.has_room()
    }

    /// Somebody did not answer at this address. How long nothing had been heard of it, when it loses its place for that.
    pub(super) fn failed(&mut self, contact: Contact, now: Instant) -> Option<Duration> {
        self.turn = None;
        let gone = self.bucket_of(contact.node)?.fail(contact, now)?;
        self.look_around();
        Some(now.saturating_duration_since(gone.heard))
    }

    /// Somebody is no member any more.
    pub(super) fn remove(&mut self, node: NodeId) {
        if let Some(bucket) = self.bucket_of(node) {
            bucket.remove(node);
            self.look_around();
        }
    }

    fn look_around(&mut self) {
        let sites = are_several(self.entries().filter_map(|entry| entry.site));
        let prefixes = are_several(self.entries().filter_map(|entry| Prefix::of(entry.contact.address.ip())));
        self.diversity = Diversity { sites, prefixes };
    }

    /// Whether a member has a place.
    pub fn has(&self, node: NodeId) -> bool {
        self.entry(node).is_some()
    }

    /// The entry of a member.
    pub(super) fn entry(&self, node: NodeId) -> Option<&Entry> {
        let bucket = self.buckets.get(self.own.distance(node.into()).shared_bits())?;
        bucket.entries().iter().find(|entry| entry.contact.node == node)
    }

    /// It is being asked now.
    pub(super) fn tried(&mut self, contact: Contact, now: Instant) {
        let entry = self.bucket_of(contact.node).and_then(|bucket| bucket.entry_mut(contact.node));
        if let Some(entry) = entry.filter(|entry| entry.contact == contact) {
            entry.try_now(now);
        }
    }

    /// Everybody who has a place.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.iter().flat_map(Bucket::entries)
    }

    /// How many have a place.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.entries().len()).sum()
    }

    /// Whether nobody has a place.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nearest to a place of those who are not known to be silent, nearest first.
    pub(super) fn closest(&self, to: Key, count: usize) -> Vec<Contact> {
        let mut found = Vec::with_capacity(2 * count);
        // Whoever is in the bucket of the place is nearer to it than the rest; then come those that are nearer to us, then the others outwards.
        let bits = self.own.distance(to).shared_bits();
        let inner = self.buckets.get(bits..).unwrap_or_default();
        let outer = self.buckets.get(..bits.min(self.buckets.len())).unwrap_or_default();
        let (first, deeper) = inner.split_at(inner.len().min(1));
        let groups = [first, deeper].into_iter().chain(outer.chunks(1).rev());
        for group in groups {
            if found.len() >= count {
                break;
            }
            let before = found.len();
            let heard = group.iter().flat_map(Bucket::entries).filter(|entry| entry.failures == 0);
            found.extend(heard.map(|entry| (to.distance(entry.contact.node.into()), entry.contact)));
            found[before..].sort_unstable_by_key(|(distance, _)| *distance);
        }
        found.truncate(count);
        found.into_iter().map(|(_, contact)| contact).collect()
    }

    /// The same, but of those that have so many bits in common with the place any, since they are alike to the one who asks: so it hears of
    /// others as well when somebody crowds the very next places.
    pub(super) fn some_near(&self, to: Key, count: usize, alike: usize, random: &mut impl Random) -> Vec<Contact> {
        let heard = self.entries().filter(|entry| entry.failures == 0);
        let is_alike = |entry: &&Entry| to.distance(entry.contact.node.into()).shared_bits() >= alike;
        let mut near: Vec<Contact> = heard.filter(is_alike).map(|entry| entry.contact).collect();
        if near.len() <= count {
            return self.closest(to, count);
        }
        for at in 0..count {
            let other = at + (random.u64() % (near.len() - at) as u64) as usize;
            near.swap(at, other);
        }
        near.truncate(count);
        near
    }

    /// Whose turn it is next to be asked whether it is there, and when: `doubt` after it failed, `interval` after it was last tried. Nobody's
    /// name while it cannot be time yet: answers put a turn off, and only who does not answer has it come sooner.
    pub(super) fn next_check(
        &mut self,
        doubt: Duration,
        interval: Duration,
        now: Instant,
    ) -> Option<(Instant, Option<Contact>)> {
        if let Some((at, _)) = self.turn.filter(|(at, with)| *at > now && *with <= interval) {
            return Some((at, None));
        }
        let due = |entry: &Entry| entry.tried() + if entry.failures > 0 { doubt } else { interval };
        let turn = self.entries().map(|entry| (due(entry), entry.contact)).min();
        self.turn = turn.map(|(at, _)| (at, interval));
        turn.map(|(at, contact)| (at, Some(contact)))
    }

    /// Somebody who waits for a place that is free.
    pub(super) fn next_spare(&mut self) -> Option<Contact> {
        self.buckets.iter_mut().rev().find_map(Bucket::next_spare)
    }

    /// Whether a bucket has room.
    pub(super) fn has_room(&self, bucket: usize) -> bool {
        self.buckets.get(bucket).is_none_or(Bucket::has_room)
    }

    /// Those who have been here longest, from all buckets in turn.
    pub(super) fn anchors(&self, count: usize) -> Vec<Contact> {
        let turn = |at: usize| self.buckets.iter().filter_map(move |bucket| bucket.entries().get(at));
        (0..K).flat_map(turn).take(count).map(|entry| entry.contact).collect()
    }

    /// Buckets up to the last in which somebody is.
    pub(super) fn depth(&self) -> usize {
        self.buckets.iter().rposition(|bucket| !bucket.entries().is_empty()).map_or(0, |last| last + 1)
    }

    /// How many servers there seem to be, from those who are in the buckets next to us that have room: all that are so near, as far as we
    /// know. One place in the network only, and so worth less than many; but it is looked after all the time. Nearer than in bucket `levels` there is
    /// hardly anybody in an honest network, so whoever crowds our place does not count.
    pub(super) fn servers_around(&self, levels: usize) -> Option<f64> {
        let honest = self.buckets.iter().take(levels);
        let first = honest.clone().rposition(|bucket| !bucket.has_room()).map_or(0, |full| full + 1);
        let around: usize = honest.skip(first).map(|bucket| bucket.entries().len()).sum();
        (around >= NEIGHBOURS_MIN).then(|| around as f64 * 2f64.powi(first as i32))
    }

    /// Bytes on the heap.
    pub(super) fn heap_len(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>() + self.buckets.iter().map(Bucket::heap_len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::{contact, peer};
    use super::*;
    use crate::random::SeededRandom;

    fn node(seed: u64) -> NodeId {
        NodeId(SeededRandom::new(seed).array())
    }

    #[test]
    fn whoever_knocks_waits_until_it_has_answered() {
        let (mut table, now) = (Table::new(Key([0; 32])), Instant::now());
        let one = contact(node(1), 1);
        assert!(table.met(one, now) == Met::Waits { has_room: true } && table.is_empty());
        assert_eq!((table.next_spare(), table.next_spare()), (Some(one), None));
        assert!(table.answered(peer(one), now) && table.len() == 1);
        assert!(!table.named(one), "it has its place");
        // Ourselves there is no place for.
        let own = contact(NodeId([0; 32]), 2);
        assert!(!table.answered(peer(own), now) && !table.named(own) && table.len() == 1);
        assert_eq!(table.met(own, now), Met::Waits { has_room: false });
    }

    /// Whoever asks often was never seen to have stayed, so a busy network took itself for one that nobody stays in.
    #[test]
    fn whoever_asks_us_was_there_all_the_time() {
        let (mut table, now) = (Table::new(Key([0; 32])), Instant::now());
        let (one, secs) = (contact(node(1), 1), Duration::from_secs);
        table.answered(peer(one), now);
        assert_eq!(table.met(one, now + secs(7)), Met::Stays(secs(7)));
        assert_eq!(table.met(one, now + secs(9)), Met::Stays(secs(2)));
    }

    #[test]
    fn the_silent_are_not_named_to_others_and_go_after_two_failures() {
        let (mut table, now) = (Table::new(Key([0; 32])), Instant::now());
        let (one, other) = (contact(node(1), 1), contact(node(2), 2));
        table.answered(peer(one), now);
        table.answered(peer(other), now);
        let later = now + Duration::from_secs(9);
        assert_eq!(table.failed(one, later), None);
        assert_eq!((table.closest(Key([0; 32]), 9), table.len()), (vec![other], 2));
        // It is asked again before its turn, and the other in its turn.
        let [doubt, interval] = [10, 3600].map(Duration::from_secs);
        assert_eq!(table.next_check(doubt, interval, later), Some((later + doubt, Some(one))));
        // Not looked for once more, until it is time, somebody fails, or turns come sooner.
        assert_eq!(table.next_check(doubt, interval, later), Some((later + doubt, None)));
        assert_eq!(table.next_check(doubt, interval, later + doubt), Some((later + doubt, Some(one))));
        let sooner = interval / 2;
        assert_eq!(table.next_check(doubt, sooner, later), Some((later + doubt, Some(one))));
        assert_eq!((table.failed(one, later), table.len()), (Some(Duration::from_secs(9)), 1));
        assert_eq!(table.next_check(doubt, interval, later), Some((now + interval, Some(other))));
    }

    #[test]
    fn whoever_crowds_a_place_does_not_hide_those_that_are_alike() {
        // Traps next to the place, as many as one answer names, and ten others that share eight bits with it; we are a neighbour of it.
        let node = |bits: usize, at: u8| {
            let mut node = [0; 32];
            (node[bits / 8], node[31]) = (0x80 >> (bits % 8), at);
            NodeId(node)
        };
        let (mut table, now, target) = (Table::new(node(230, 0).into()), Instant::now(), Key([0; 32]));
        let nodes = (0..20).map(|at| node(200, at)).chain((0..10).map(|at| node(9, at)));
        for (number, node) in (0..).zip(nodes) {
            assert!(table.answered(peer(contact(node, number)), now));
        }
        assert!(table.closest(target, K).iter().all(|contact| contact.node.0[1] == 0));
        let some = table.some_near(target, K, 8, &mut SeededRandom::new(1));
        assert!(some.len() == K && some.iter().filter(|contact| contact.node.0[1] != 0).count() >= 3, "{some:?}");
        assert_eq!(table.some_near(target, K, 255, &mut SeededRandom::new(1)), table.closest(target, K));
    }

    #[test]
    fn the_neighbourhood_says_how_many_there_are() {
        let now = Instant::now();
        for count in [3u64, 10, 400, 3000] {
            let mut table = Table::new(Key([0x5a; 32]));
            (0..count).for_each(|seed| {
                table.answered(peer(contact(node(seed), seed as u16)), now);
            });
            let levels = (count as f64 / K as f64).log2().ceil().max(0.0) as usize + 4;
            let is_near =
                |around: Option<f64>| around.is_some_and(|around| (0.5..2.0).contains(&(around / count as f64)));
            let around = table.servers_around(levels);
            assert!(if count < 4 { around.is_none() } else { is_near(around) }, "{around:?} of {count}");
            // Nor do 32 ids next to us say that there are more.
            for number in 0..32u8 {
                let mut node = [0x5a; 32];
                (node[6], node[31]) = (0xa5, number);
                table.answered(peer(contact(NodeId(node), 60_000 + u16::from(number))), now);
            }
            assert_eq!(table.servers_around(levels), around, "{count}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against a plain list: nobody twice, no bucket too full, and the nearest are the nearest.
        #[test]
        fn a_table_never_holds_two_of_one_identity(
            steps in proptest::collection::vec((0u64..200, 0u16..3, 0u8..5), 1..400), target in any::<[u8; 32]>(),
        ) {
            let (own, now) = (Key([0; 32]), Instant::now());
            let mut table = Table::new(own);
            for (seed, place, what) in steps {
                // One identity at several addresses.
                let contact = contact(node(seed), seed as u16 * 3 + place);
                match what {
                    0 => { table.met(contact, now); }
                    1 => { table.failed(contact, now); }
                    2 => { table.named(contact); }
                    _ => { table.answered(peer(contact), now); }
                }
                let mut nodes: Vec<NodeId> = table.entries().map(|entry| entry.contact.node).collect();
                let count = nodes.len();
                nodes.sort_unstable();
                nodes.dedup();
                prop_assert_eq!((nodes.len(), table.len()), (count, count));
                prop_assert!(table.buckets.iter().all(|bucket| bucket.entries().len() <= K));
                let known = |bits: usize| move |entry: &Entry| own.distance(entry.contact.node.into()).shared_bits() == bits;
                prop_assert!(table.buckets.iter().enumerate().all(|(bits, bucket)| bucket.entries().iter().all(known(bits))));
            }
            let target = Key(target);
            let mut all: Vec<Contact> = table.entries().filter(|entry| entry.failures == 0).map(|entry| entry.contact).collect();
            all.sort_by_key(|contact| target.distance(contact.node.into()));
            all.truncate(K);
            prop_assert_eq!(table.closest(target, K), all);
        }
    }
}
