//! A look-up: several paths towards one place that never ask the same node, so that one who lies leads one path astray.
//!
//! ```text
//!           ┌─▶ ○ ─▶ ○ ─▶ ● record          each path knows only what its own nodes told it (Baumgart, Mies: "S/Kademlia",
//!  target ◀─┼─▶ ○ ─▶ ○ ─▶ ○ ─▶ ●            ICPADS 2007, §4.4)
//!           ├─▶ ○ ─▶ ✗
//!           └─▶ ○ ─▶ ○ ─▶ ●                 missing or contradicting one another, there are as many paths again, once
//! ```
//!
//! Within the region of a key all servers are alike, and a path takes one at random: whoever crowds the very next places to a key gets no
//! more than its share of the questions. Every list and every number has a bound, nobody is asked twice at one address, so a look-up ends.
//!
//! Addresses are hearsay: who does not answer where one path was told may answer where another was. Whoever has said something is known by
//! its id, and says nothing to another path.

use std::collections::{BTreeMap, BTreeSet};

use super::message::K;
use super::place::{Contact, Distance, Key};
use super::record::{Envelope, Kind, SignedRecord};
use crate::pki::id::NodeId;
use crate::random::Random;

/// Paths at first. Ours: with 20 % of nodes lying and three hops, four reach the goal in 94 of 100 cases, and eight in all but three of 1,000.
pub const PATHS: usize = 4;
/// Requests of one path. Ours: three hops, and a region in which every second server is somebody's trap.
pub const PATH_REQUESTS_MAX: usize = 16;
/// Requests of one path that looks for all servers of a region. Ours: it may be left alone with all 20 of them, some of whom are gone.
const REGION_REQUESTS_MAX: usize = 2 * PATH_REQUESTS_MAX;
/// Nodes that one path knows of.
pub(super) const LIST_MAX: usize = 64;
/// Requests of a look-up in all: of twice as many paths, or of those that may ask twice as often.
pub const REQUESTS_MAX: usize = 2 * PATHS * PATH_REQUESTS_MAX;
/// Of the nearest to a key that one path knows, so many must have answered before it gives up.
const WIDTH: usize = 3;

/// Within so many of our regions of its key a record is where it should be, since a look-up takes half of that for a record; beyond, an older one may
/// lie that was put when the network was smaller, and that nobody replaces.
const HINT: f64 = 2.0;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The nearest, for the table: one path, until so many of the nearest have answered.
    Near { width: usize },
    /// All servers of the region, to keep a record.
    Region,
    /// A record.
    Value(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Asked,
    /// Asked, and late: somebody else may be asked as well.
    Slow,
    Answered,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    contact: Contact,
    distance: Distance,
    /// Of the answer that named it: none for whom we knew ourselves.
    depth: u8,
    /// Which of the path's requests it was, and after how many waits of the path, this one included.
    step: u8,
    round: u8,
    state: State,
}

/// A record that a path came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) envelope: Envelope,
    pub(super) record: SignedRecord,
    /// Nodes that led to it, one after the other, the one that had it included.
    pub(super) hops: u8,
    /// Waits of the path until then, one after the other, for those without an answer as well.
    pub(super) rounds: u8,
}

#[derive(Clone, Debug, Default)]
struct Path {
    /// Nearest first.
    list: Vec<Candidate>,
    steps: u8,
    /// The latest round of which something came: an answer, or that there is none yet.
    round: u8,
    found: Option<Found>,
    has_ended: bool,
}

/// One request of a look-up, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Who was asked, and where.
    pub contact: Contact,
    /// By which path, from 0.
    pub path: u8,
    /// Which of the path's requests, from 1.
    pub step: u8,
    /// How many named one another before: 0 for whom we knew ourselves.
    pub depth: u8,
    /// Bits that its place has in common with the one that was looked for.
    pub shared_bits: u16,
    /// Whether it answered.
    pub has_answered: bool,
}

/// How far a look-up is, for people who wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests so far.
    pub asked: u16,
    /// Those that were answered.
    pub answered: u16,
    /// Paths.
    pub paths: u8,
    /// The most nodes that led one to the next, those that answered.
    pub hops: u8,
}

/// One look-up.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    own: NodeId,
    target: Key,
    goal: Goal,
    /// Within this distance, as a share of the id space, all servers are alike.
    region: f64,
    /// How many each path asks at once.
    alpha: usize,
    paths: Vec<Path>,
    /// Who was asked where, and by which path.
    asked: BTreeMap<Contact, usize>,
    /// Who has said something.
    spoke: BTreeSet<NodeId>,
    has_doubled: bool,
    /// What somebody had who is not near its place.
    hint: Option<Found>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask this node.
    Ask(Contact),
    /// Paths miss or contradict: [`Lookup::double`].
    Double,
    /// Wait for an answer.
    Wait,
    /// It is over.
    Done,
}

impl Lookup {
    pub(super) fn new(own: NodeId, target: Key, goal: Goal, region: f64, alpha: u8, seeds: &[Contact]) -> Self {
        let (paths, alpha) = match goal {
            // Nobody's goal is in doubt here, only time: as many at once as are wanted.
            Goal::Near { width } => (1, width.min(u8::MAX.into()) as u8),
            Goal::Region | Goal::Value(_) => (PATHS, alpha),
        };
        let mut lookup = Self {
            own,
            target,
            goal,
            region,
            alpha: alpha.into(),
            paths: vec![],
            asked: BTreeMap::new(),
            spoke: BTreeSet::new(),
            has_doubled: false,
            hint: None,
        };
        lookup.add_paths(paths, seeds);
        lookup
    }

    pub(super) fn target(&self) -> Key {
        self.target
    }

    pub(super) fn goal(&self) -> Goal {
        self.goal
    }

    /// Bits in common with the target from which on nodes are alike to us: those of the region, where it is one.
    pub(super) fn alike(&self) -> u8 {
        match self.goal {
            Goal::Near { .. } => u8::MAX,
            Goal::Region | Goal::Value(_) => (-self.region.log2()).round().clamp(0.0, 255.0) as u8,
        }
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> usize {
        self.asked.len()
    }

    /// Paths so far.
    pub(super) fn paths(&self) -> usize {
        self.paths.len()
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        let all = self.paths.iter().flat_map(|path| &path.list);
        let answered = all.filter(|candidate| candidate.state == State::Answered);
        let (count, hops) = answered.fold((0, 0), |(count, hops): (u16, u8), candidate| {
            (count.saturating_add(1), hops.max(candidate.depth.saturating_add(1)))
        });
        Progress {
            asked: u16::try_from(self.requests()).unwrap_or(u16::MAX),
            answered: count,
            paths: u8::try_from(self.paths()).unwrap_or(u8::MAX),
            hops,
        }
    }

    fn add_paths(&mut self, count: usize, seeds: &[Contact]) {
        let first = self.paths.len();
        self.paths.resize_with(first + count, Path::default);
        let fresh: Vec<Contact> = seeds.iter().filter(|seed| !self.is_asked(**seed)).copied().collect();
        for (at, seed) in fresh.into_iter().enumerate() {
            self.add(first + at % count, seed, 0);
        }
    }

    /// Whether there is nothing more to be had of a node at this address.
    pub(super) fn is_asked(&self, contact: Contact) -> bool {
        self.asked.contains_key(&contact) || self.spoke.contains(&contact.node)
    }

    fn add(&mut self, path: usize, contact: Contact, depth: u8) {
        let distance = self.target.distance(contact.node.into());
        let fresh = Candidate { contact, distance, depth, step: 0, round: 0, state: State::Fresh };
        let is_asked = self.is_asked(contact);
        let list = &mut self.paths[path].list;
        let at = match list.binary_search_by_key(&distance, |known| known.distance) {
            // It was not to be had where somebody else said.
            Ok(at) if list[at].state == State::Failed && !is_asked => {
                list[at] = fresh;
                return;
            }
            Ok(_) => return,
            Err(at) => at,
        };
        if contact.node == self.own || at >= LIST_MAX {
            return;
        }
        list.insert(at, fresh);
        if list.len() > LIST_MAX {
            // The farthest that is not being asked; those whose answer is awaited stay, and are few.
            if let Some(last) = list.iter().rposition(|candidate| candidate.state == State::Fresh) {
                list.remove(last);
            }
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self, random: &mut impl Random) -> Next {
        if self.is_settled() {
            return Next::Done;
        }
        for path in 0..self.paths.len() {
            if let Some(at) = self.choose(path, random) {
                let Path { list, steps, round, .. } = &mut self.paths[path];
                *steps += 1;
                let candidate = &mut list[at];
                (candidate.state, candidate.step, candidate.round) = (State::Asked, *steps, *round + 1);
                let contact = candidate.contact;
                self.asked.insert(contact, path);
                return Next::Ask(contact);
            }
        }
        if self.paths.iter().any(|path| path.found.is_none() && !path.has_ended) {
            return Next::Wait;
        }
        let misses = self.paths.iter().any(|path| path.found.is_none()) || !self.agrees();
        match self.goal {
            Goal::Value(_) if misses && !self.has_doubled => Next::Double,
            Goal::Value(_) | Goal::Near { .. } | Goal::Region => Next::Done,
        }
    }

    /// Whether more paths than not came to one and the same record, and none missed it, or all that could be done about that is done.
    fn is_settled(&self) -> bool {
        let found = self.paths.iter().filter(|path| path.found.is_some()).count();
        let missed = self.paths.iter().any(|path| path.has_ended && path.found.is_none());
        2 * found > self.paths.len() && self.agrees() && (!missed || self.has_doubled)
    }

    fn agrees(&self) -> bool {
        let mut found = self.found();
        let first = found.next();
        found.all(|other| Some(&other.record) == first.map(|first| &first.record))
    }

    /// What the paths found.
    fn found(&self) -> impl Iterator<Item = &Found> {
        self.paths.iter().filter_map(|path| path.found.as_ref())
    }

    /// The record of the highest sequence, and how many hops and rounds it took until there was anything to decide with.
    pub(super) fn best(&self) -> Option<&Found> {
        // Of two with one sequence both sides of a quarrel take the same.
        self.found().chain(&self.hint).max_by(|one, other| {
            let rank = |found: &Found| (found.envelope.sequence, found.record.signature.0);
            rank(one).cmp(&rank(other)).then(other.rounds.cmp(&one.rounds))
        })
    }

    /// As many paths again, from others that we know.
    pub(super) fn double(&mut self, seeds: &[Contact]) {
        self.has_doubled = true;
        self.add_paths(self.paths.len(), seeds);
    }

    /// Whom a path asks next; it ends when there is nobody, and no answer is awaited.
    fn choose(&mut self, at: usize, random: &mut impl Random) -> Option<usize> {
        let path = &self.paths[at];
        if path.found.is_some() || path.has_ended {
            return None;
        }
        let in_flight = path.list.iter().filter(|candidate| candidate.state == State::Asked).count();
        let late = path.list.iter().filter(|candidate| candidate.state == State::Slow).count();
        if in_flight >= self.alpha {
            return None;
        }
        let most = match self.goal {
            Goal::Near { .. } | Goal::Value(_) => PATH_REQUESTS_MAX,
            Goal::Region => REGION_REQUESTS_MAX,
        };
        let chosen = if usize::from(path.steps) >= most { None } else { self.candidate(at, random) };
        if chosen.is_none() && in_flight + late == 0 {
            self.paths[at].has_ended = true;
        }
        chosen
    }

    fn candidate(&self, at: usize, random: &mut impl Random) -> Option<usize> {
        let (width, is_alike) = match self.goal {
            Goal::Near { width } => (width, false),
            Goal::Region => (WIDTH, false),
            Goal::Value(_) => (WIDTH, true),
        };
        let (mut answered, mut inside) = (0, vec![]);
        for (index, candidate) in self.paths[at].list.iter().enumerate() {
            match candidate.state {
                State::Answered => answered += 1,
                State::Fresh if !self.is_asked(candidate.contact) => {
                    let is_inside =
                        !matches!(self.goal, Goal::Near { .. }) && candidate.distance.share() <= self.region;
                    if is_inside && is_alike {
                        inside.push(index);
                    } else if inside.is_empty() && (is_inside || answered < width) {
                        return Some(index);
                    } else {
                        break;
                    }
                }
                // Somebody else's, or nothing more to be had of it.
                State::Fresh | State::Asked | State::Slow | State::Failed => {}
            }
        }
        if inside.is_empty() { None } else { Some(inside[(random.u64() % inside.len() as u64) as usize]) }
    }

    /// The path that asked somebody, and its place there.
    fn asked(&mut self, contact: Contact) -> Option<(usize, &mut Candidate)> {
        let path = *self.asked.get(&contact)?;
        let Path { list, round, .. } = &mut self.paths[path];
        let found = list.iter_mut().find(|candidate| candidate.contact == contact)?;
        // Whatever is known now, this wait is over.
        *round = found.round.max(*round);
        Some((path, found))
    }

    /// The same for one who answers. Whoever has spoken to one path already is passed over: it was named at another address as well.
    fn heard(&mut self, contact: Contact) -> Option<(usize, &mut Candidate)> {
        let has_spoken = !self.spoke.insert(contact.node);
        let (path, candidate) = self.asked(contact)?;
        candidate.state = if has_spoken { State::Failed } else { State::Answered };
        (!has_spoken).then_some((path, candidate))
    }

    /// Somebody named others.
    pub(super) fn answered(&mut self, from: Contact, contacts: &[Contact]) {
        let Some((path, candidate)) = self.heard(from) else { return };
        let depth = candidate.depth.saturating_add(1);
        for contact in contacts {
            self.add(path, *contact, depth);
        }
    }

    /// Somebody had the record, and it is to be believed. Far from its place it is a hint only, by which no path is settled: those who replay
    /// old records have them everywhere, and honest nodes near their places.
    pub(super) fn answered_with(&mut self, from: Contact, envelope: Envelope, record: SignedRecord) {
        let Some((path, candidate)) = self.heard(from) else { return };
        let (hops, rounds) = (candidate.depth.saturating_add(1), candidate.round);
        let is_inside = candidate.distance.share() <= HINT * self.region;
        let found = Found { envelope, record, hops, rounds };
        if is_inside {
            self.paths[path].found.get_or_insert(found);
        } else if self.hint.as_ref().is_none_or(|hint| hint.envelope.sequence < found.envelope.sequence) {
            self.hint = Some(found);
        }
    }

    /// Somebody is late.
    pub(super) fn slow(&mut self, contact: Contact) {
        if let Some((_, candidate)) = self.asked(contact)
            && candidate.state == State::Asked
        {
            candidate.state = State::Slow;
        }
    }

    /// Somebody is not to be had at this address.
    pub(super) fn failed(&mut self, contact: Contact) {
        if let Some((_, candidate)) = self.asked(contact) {
            candidate.state = State::Failed;
        }
    }

    /// Somebody said nothing of use: no path asks it again, wherever it may be.
    pub(super) fn said_nothing(&mut self, from: Contact) {
        self.spoke.insert(from.node);
        self.failed(from);
    }

    pub(super) fn heap_len(&self) -> usize {
        let lists = self.paths.iter().map(|path| path.list.capacity() * size_of::<Candidate>()).sum::<usize>();
        let books = self.asked.len() * size_of::<(Contact, usize)>() + self.spoke.len() * size_of::<NodeId>();
        lists + self.paths.capacity() * size_of::<Path>() + 2 * books
    }

    /// All requests, path by path.
    pub(super) fn trace(&self) -> Vec<Hop> {
        let of_path = |(number, path): (usize, &Path)| {
            let asked = path.list.iter().filter(|candidate| candidate.step > 0);
            let hop = move |candidate: &Candidate| Hop {
                contact: candidate.contact,
                path: number as u8,
                step: candidate.step,
                depth: candidate.depth,
                shared_bits: candidate.distance.shared_bits() as u16,
                has_answered: candidate.state == State::Answered,
            };
            asked.map(hop).collect::<Vec<_>>()
        };
        let mut hops: Vec<Hop> = self.paths.iter().enumerate().flat_map(of_path).collect();
        hops.sort_unstable_by_key(|hop| (hop.path, hop.step));
        hops
    }

    /// Those who answered, nearest first.
    pub(super) fn answered_nodes(&self) -> Vec<(Distance, Contact)> {
        let all = self.paths.iter().flat_map(|path| &path.list);
        let answered = all.filter(|candidate| candidate.state == State::Answered);
        let mut answered: Vec<_> = answered.map(|candidate| (candidate.distance, candidate.contact)).collect();
        answered.sort_unstable_by_key(|(distance, _)| *distance);
        answered
    }

    /// How far those who were named are, whether they answered or not, nearest first.
    pub(super) fn named_distances(&self) -> Vec<Distance> {
        self.paths.iter().flat_map(|path| &path.list).map(|candidate| candidate.distance).take(K).collect()
    }

    /// How far those who answered are, nearest first, up to the first whom nobody has asked: as far as the place is known.
    pub(super) fn known_distances(&self) -> Vec<Distance> {
        let all = self.paths.iter().flat_map(|path| &path.list);
        let unasked = all.filter(|candidate| !self.is_asked(candidate.contact));
        let limit = unasked.map(|candidate| candidate.distance).min();
        let answered = self.answered_nodes().into_iter().map(|(distance, _)| distance);
        answered.take_while(|distance| limit.is_none_or(|limit| *distance < limit)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;

    use super::super::fixture::{Fixture, contact};
    use super::*;
    use crate::random::SeededRandom;

    fn contacts(count: u16, seed: u64) -> Vec<Contact> {
        let mut random = SeededRandom::new(seed);
        (0..count).map(|number| contact(NodeId(random.array()), number)).collect()
    }

    fn value(seeds: &[Contact], region: f64) -> Lookup {
        Lookup::new(NodeId([1; 32]), Key([0; 32]), Goal::Value(Kind::Node), region, 1, seeds)
    }

    fn found(lookup: &mut Lookup, from: Contact, fixture: &Fixture, sequence: u64) {
        let record = fixture.record(1, Kind::Node, sequence, b"x");
        let envelope = record.verify(fixture.judge()).unwrap();
        lookup.answered_with(from, envelope, record);
    }

    fn asks(lookup: &mut Lookup) -> Vec<Contact> {
        let mut random = SeededRandom::new(1);
        let mut asked = vec![];
        while let Next::Ask(contact) = lookup.next(&mut random) {
            asked.push(contact);
        }
        asked
    }

    #[test]
    fn three_of_four_paths_that_agree_settle_it() {
        let (fixture, seeds) = (Fixture::new(), contacts(20, 1));
        let mut lookup = value(&seeds, 1.0);
        let first = asks(&mut lookup);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), PATHS);
        found(&mut lookup, first[0], &fixture, 1);
        found(&mut lookup, first[2], &fixture, 1);
        assert_eq!(lookup.next(&mut SeededRandom::new(1)), Next::Wait);
        found(&mut lookup, first[3], &fixture, 1);
        assert_eq!(lookup.next(&mut SeededRandom::new(1)), Next::Done);
        let best = lookup.best().unwrap();
        assert_eq!((best.envelope.sequence, best.hops, best.rounds, lookup.requests()), (1, 1, 1, 4));
    }

    #[test]
    fn progress_counts_who_was_asked_who_answered_and_how_far_they_led() {
        let (seeds, others) = (contacts(4, 4), contacts(2, 5));
        let mut lookup = value(&seeds, 1.0);
        let at = |lookup: &Lookup| {
            let Progress { asked, answered, paths, hops } = lookup.progress();
            (asked, answered, usize::from(paths), hops)
        };
        assert_eq!(at(&lookup), (0, 0, PATHS, 0));
        let first = asks(&mut lookup);
        assert_eq!(at(&lookup), (4, 0, PATHS, 0));
        lookup.answered(first[0], &others);
        lookup.failed(first[1]);
        lookup.said_nothing(first[2]);
        assert_eq!(at(&lookup), (4, 1, PATHS, 1));
        let next = asks(&mut lookup);
        assert!(next.len() == 1 && others.contains(&next[0]), "{next:?}");
        lookup.answered(next[0], &[]);
        assert_eq!(at(&lookup), (5, 2, PATHS, 2));
        lookup.double(&contacts(20, 6));
        assert_eq!(lookup.progress().paths, 2 * PATHS as u8);
    }

    #[test]
    fn paths_that_contradict_are_doubled_and_the_highest_sequence_wins() {
        let (fixture, seeds) = (Fixture::new(), contacts(40, 2));
        let mut lookup = value(&seeds[..20], 1.0);
        let first = asks(&mut lookup);
        for (at, node) in first.iter().enumerate() {
            found(&mut lookup, *node, &fixture, if at == 1 { 7 } else { 3 });
        }
        assert_eq!(lookup.next(&mut SeededRandom::new(1)), Next::Double);
        lookup.double(&seeds);
        let more = asks(&mut lookup);
        assert!(more.len() == PATHS && more.iter().all(|node| !first.contains(node)));
        more.iter().for_each(|node| found(&mut lookup, *node, &fixture, 3));
        assert_eq!(lookup.next(&mut SeededRandom::new(1)), Next::Done);
        assert_eq!((lookup.best().unwrap().envelope.sequence, lookup.paths()), (7, 2 * PATHS));
    }

    #[test]
    fn a_late_node_lets_another_be_asked_and_may_still_answer() {
        let (fixture, seeds) = (Fixture::new(), contacts(20, 3));
        let mut lookup = value(&seeds, 1.0);
        let first = asks(&mut lookup);
        lookup.slow(first[0]);
        let more = asks(&mut lookup);
        assert_eq!(more.len(), 1);
        lookup.failed(more[0]);
        found(&mut lookup, first[0], &fixture, 1);
        found(&mut lookup, first[1], &fixture, 1);
        found(&mut lookup, first[2], &fixture, 1);
        assert_eq!(lookup.next(&mut SeededRandom::new(1)), Next::Done);
    }

    /// A node that did not answer one path was still waiting in the list of another, and hid all that lie behind it.
    #[test]
    fn who_failed_for_one_path_hides_nobody_from_another() {
        let seeds = contacts(6, 9);
        let mut lookup = value(&seeds, 1.0);
        let first = asks(&mut lookup);
        lookup.failed(first[0]);
        lookup.answered(first[1], &seeds);
        lookup.answered(first[2], &[]);
        let answered = lookup.answered_nodes();
        assert_eq!(answered.len(), 2);
        let unasked = seeds.iter().filter(|seed| !first.contains(seed));
        let limit = unasked.map(|seed| Key([0; 32]).distance(seed.node.into())).min().unwrap();
        let known = answered.iter().filter(|(distance, _)| *distance < limit).count();
        assert_eq!(lookup.known_distances().len(), known);
    }

    fn elsewhere(contact: Contact) -> Contact {
        Contact { address: "192.0.2.1:9".parse().unwrap(), ..contact }
    }

    /// A liar named honest ids where nobody is, and no other path could reach them for the rest of the look-up.
    #[test]
    fn who_was_asked_in_the_wrong_place_is_open_to_other_paths_and_to_the_same_once_it_failed() {
        let (seeds, named) = (contacts(4, 9), contacts(1, 10)[0]);
        let mut lookup = value(&seeds, 1.0);
        let [liar, honest, ..] = asks(&mut lookup)[..] else { panic!("four paths") };
        lookup.answered(liar, &[elsewhere(named)]);
        assert_eq!(asks(&mut lookup), [elsewhere(named)]);
        lookup.answered(honest, &[named]);
        assert_eq!(asks(&mut lookup), [named]);

        let (own, near) = (NodeId([1; 32]), Goal::Near { width: 3 });
        let mut lookup = Lookup::new(own, Key([0; 32]), near, 0.0, 1, &seeds[..1]);
        assert_eq!(asks(&mut lookup), seeds[..1]);
        lookup.answered(seeds[0], &[elsewhere(named), seeds[1]]);
        assert_eq!(asks(&mut lookup).len(), 2);
        lookup.failed(elsewhere(named));
        lookup.answered(seeds[1], &[elsewhere(named), named]);
        assert_eq!(asks(&mut lookup), [named]);
    }

    /// One identity at several addresses leads one path, as before.
    #[test]
    fn who_answers_at_two_addresses_is_heard_once() {
        let (fixture, seeds, named) = (Fixture::new(), contacts(4, 9), contacts(1, 10)[0]);
        let mut lookup = value(&seeds, 1.0);
        let [one, other, third, _] = asks(&mut lookup)[..] else { panic!("four paths") };
        lookup.answered(one, &[elsewhere(named)]);
        lookup.answered(other, &[named]);
        assert_eq!(asks(&mut lookup), [elsewhere(named), named]);
        found(&mut lookup, named, &fixture, 7);
        found(&mut lookup, elsewhere(named), &fixture, 7);
        assert_eq!(lookup.found().count(), 1);
        // Nor is it asked at a third once it has spoken, or said nothing of use.
        lookup.said_nothing(third);
        let trap = Contact { address: "192.0.2.2:9".parse().unwrap(), ..named };
        assert_eq!((lookup.is_asked(trap), lookup.is_asked(elsewhere(third))), (true, true));
        assert_eq!(lookup.answered_nodes().len(), 3);
    }

    #[test]
    fn a_record_far_from_its_place_settles_nothing_and_is_better_than_none() {
        let (fixture, seeds) = (Fixture::new(), contacts(20, 1));
        let mut lookup = value(&seeds, 1e-9);
        let first = asks(&mut lookup);
        first.iter().for_each(|node| found(&mut lookup, *node, &fixture, 4));
        let more = asks(&mut lookup);
        assert_eq!(more.len(), PATHS, "each path goes on");
        assert_eq!(lookup.best().map(|found| found.envelope.sequence), Some(4));
    }

    #[test]
    fn within_the_region_the_very_nearest_are_not_asked_more_than_others() {
        let target = Key([0; 32]);
        let mut seeds = contacts(16, 4);
        // 16 traps next to the key, and 16 others within the region.
        for (at, seed) in (1u8..).zip(&mut seeds) {
            seed.node = NodeId([&[0; 31][..], &[at]].concat().try_into().unwrap());
        }
        let others = contacts(16, 5).into_iter().map(|other| Contact {
            node: NodeId([&[0; 2][..], &other.node.0[2..]].concat().try_into().unwrap()),
            ..other
        });
        seeds.extend(others);
        seeds.sort_by_key(|seed| target.distance(seed.node.into()));
        let mut honest = 0;
        for seed in 0..100 {
            let mut lookup = value(&seeds, 1.0 / 65536.0);
            let mut random = SeededRandom::new(seed);
            while let Next::Ask(contact) = lookup.next(&mut random) {
                honest += usize::from(contact.node.0[..30] != [0; 30]);
            }
        }
        assert!((150..250).contains(&honest), "{honest} of 400");
    }

    #[test]
    fn a_region_is_asked_to_its_end() {
        let network = contacts(300, 6);
        let (target, region) = (Key([0x55; 32]), 20.0 / 300.0);
        let nearest = |to: Key, count: usize| {
            let mut all = network.clone();
            all.sort_by_key(|contact| to.distance(contact.node.into()));
            all.truncate(count);
            all
        };
        let own = NodeId([1; 32]);
        let mut lookup = Lookup::new(own, target, Goal::Region, region, 1, &network[..K]);
        let mut random = SeededRandom::new(1);
        while let Next::Ask(contact) = lookup.next(&mut random) {
            lookup.answered(contact, &nearest(target, K));
        }
        assert_eq!(lookup.next(&mut random), Next::Done);
        let inside = network.iter().filter(|contact| target.distance(contact.node.into()).share() <= region).count();
        let answered = lookup.answered_nodes();
        let reached = answered.iter().filter(|(distance, _)| distance.share() <= region).count();
        assert!(reached >= inside.min(K) && inside > 10, "{reached} of {inside}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever nodes answer, name, withhold or delay: nobody is asked twice, nobody beyond the bounds, and the end comes.
        #[test]
        fn a_look_up_never_loops_and_never_exceeds_its_bounds(
            seed in any::<u64>(), alpha in 1u8..4, region in 0.0f64..1.0, goal in 0u8..3, kinds in proptest::collection::vec(0u8..6, 64),
        ) {
            let network = contacts(400, seed);
            let goal = [Goal::Near { width: 4 }, Goal::Region, Goal::Value(Kind::Node)][usize::from(goal)];
            let own = NodeId([1; 32]);
            let mut lookup = Lookup::new(own, Key([0x33; 32]), goal, region, alpha, &network[..K]);
            let (fixture, mut random) = (Fixture::new(), SeededRandom::new(seed ^ 1));
            let (mut asked, mut spoke, mut waiting, mut turns) = (BTreeSet::new(), BTreeSet::new(), VecDeque::new(), 0);
            loop {
                turns += 1;
                prop_assert!(turns < 4 * REQUESTS_MAX, "it goes on and on");
                match lookup.next(&mut random) {
                    Next::Ask(contact) => {
                        prop_assert!(asked.insert(contact) && contact.node != own, "asked twice");
                        prop_assert!(!spoke.contains(&contact.node), "asked again after it has spoken");
                        waiting.push_back(contact);
                    }
                    Next::Double => lookup.double(&network[K..4 * K]),
                    Next::Done => break,
                    Next::Wait => {
                        let asked = waiting.pop_front().expect("an answer is awaited");
                        let from = (random.u64() % 380) as usize;
                        // Some are named where they are not.
                        let mut named = [&network[from..from + K], &[contact(own, 0)]].concat();
                        named.iter_mut().step_by(3).for_each(|named| named.address.set_port((random.u64() % 3) as u16));
                        let kind = kinds[turns % kinds.len()];
                        if kind > 1 {
                            spoke.insert(asked.node);
                        }
                        match kind {
                            0 => lookup.failed(asked),
                            1 => { lookup.slow(asked); waiting.push_back(asked); lookup.failed(asked); }
                            2 if matches!(goal, Goal::Value(_)) => found(&mut lookup, asked, &fixture, turns as u64 % 3),
                            3 => lookup.said_nothing(asked),
                            _ => lookup.answered(asked, &named),
                        }
                    }
                }
                prop_assert!(asked.len() <= REQUESTS_MAX && lookup.requests() == asked.len());
                prop_assert!(lookup.paths.iter().all(|path| path.list.len() <= LIST_MAX + 1));
            }
        }
    }
}
