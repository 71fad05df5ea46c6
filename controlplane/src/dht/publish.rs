//! Records of our own: offered to all servers of their region, and again before too few of those are left.

use std::time::{Duration, Instant};

use super::estimate::region;
use super::lookup::{Goal, LIST_MAX, Lookup};
use super::message::{Query, Refusal, Reply};
use super::place::Key;
use super::record::{Envelope, Judge, Kind, RecordError, SignedRecord};
use super::store::{Highest, PutError, digest};
use super::{Dht, K, LOOKUPS_MAX, Mode, Output, Purpose, Timer, Why};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::{Now, UnixSecs};

/// Servers that are asked to keep a record though they are not in the region as we estimate it.
const COPIES_MIN: usize = 8;
/// Regions around a key in which an older record is replaced. Ours: who reads takes a record from one region of its own, and estimates differ by less.
const OLD_REGIONS: f64 = 2.0;
/// Change of the number of servers at which a region is another. Ours: the estimate itself wanders by less as a rule.
const RESIZE: f64 = 1.4;
/// Records of our own at a time. Ours: one of each kind, and two dozen services.
pub const PUBLICATIONS_MAX: usize = 32;
/// Look-ups at a time for records of our own. Ours: half of all, the others are for people and for upkeep.
const PUBLISHING_MAX: usize = LOOKUPS_MAX / 2;
/// Before a record has its turn again for which there was no such look-up: as long as most of them take.
const TURN: Duration = Duration::from_secs(1);
/// Before something is tried again that could not even begin, or that nobody took.
pub(super) const AGAIN: Duration = Duration::from_secs(30);

/// Why a record of ours is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It would be refused by everybody.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Somebody else's.
    #[error("a record of {0}, which is not this node")]
    Foreign(NodeId),
    /// Ours, and older than what is here.
    #[error(transparent)]
    Put(#[from] PutError),
    /// As many as there may be.
    #[error("{PUBLICATIONS_MAX} records are published")]
    TooMany,
}

/// Names a publication.
pub(super) type Named = (Kind, Key);

/// A record of ours that is offered to others.
#[derive(Clone, Debug)]
pub(super) struct Publication {
    sequence: u64,
    record: SignedRecord,
    /// The sequence that it replaces, where its owner wants to know whether that is so; until somebody has it.
    replaces: Option<u64>,
    /// Until when it is believed.
    until: UnixSecs,
    /// Servers that there seemed to be when it was offered to its region.
    servers: Option<f64>,
    /// How far from its key it was offered, or what it replaced, when that was farther.
    reach: f64,
    round: Round,
}

impl Publication {
    pub(super) fn record(&self) -> &SignedRecord {
        &self.record
    }

    pub(super) fn until(&self) -> UnixSecs {
        self.until
    }

    /// How far from its key it is offered: in its region, and the first time to those around it who may have an older one.
    pub(super) fn distance(&self, servers: f64) -> f64 {
        if self.servers.is_none() { reach(self.reach, servers) } else { region(servers) }
    }
}

/// How far one may lie that was offered as far as `before`, when the network was smaller, say: as far as anybody would take it from there.
fn reach(before: f64, servers: f64) -> f64 {
    let region = region(servers);
    before.clamp(region, (OLD_REGIONS * region).min(1.0))
}

/// One time that a record is offered to its region.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Of all rounds of this node; 0 before the first.
    number: u64,
    /// Answers that are awaited, and what came of the others.
    open: u16,
    asked: u16,
    stored: u16,
    superseded: Option<u64>,
    conflicts: u16,
    instead: Option<u64>,
}

impl<R: Random> Dht<R> {
    /// Publishes a record of ours from now on until it ends, in the place of an earlier one of its kind; services have a place each. With
    /// `replaces`, servers that hold another sequence refuse it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(
        &mut self,
        record: SignedRecord,
        replaces: Option<u64>,
        judge: Judge<'_>,
        now: Now,
    ) -> Result<(), PublishError> {
        let envelope = record.read(judge.network, judge.now)?;
        let until = record.verify_signer(&envelope, judge)?;
        if envelope.node != self.own {
            return Err(PublishError::Foreign(envelope.node));
        }
        self.check_newer(&envelope, &record)?;
        let named = (envelope.kind, envelope.key);
        let is_in_its_place = |other: &Named| *other == named || other.0 == named.0 && !named.0.has_many_places();
        if self.publications.len() >= PUBLICATIONS_MAX && !self.publications.keys().any(is_in_its_place) {
            return Err(PublishError::TooMany);
        }
        if self.mode == Mode::Server {
            match self.store.put(record.clone(), None, judge) {
                // Whether it is kept here as well is one of many answers, and what it is to replace the others know better.
                Ok(_) | Err(PutError::Full | PutError::Conflict { .. }) => {}
                Err(error @ (PutError::Record(_) | PutError::Old { .. } | PutError::Quota(_))) => {
                    return Err(error.into());
                }
            }
        }
        let publication = Publication {
            sequence: envelope.sequence,
            record,
            replaces,
            until,
            servers: None,
            reach: self.publications.get(&named).map_or(0.0, |before| before.reach),
            round: Round::default(),
        };
        // Of another name, say, that we had before.
        let moved: Vec<Named> =
            self.publications.keys().copied().filter(|other| is_in_its_place(other) && *other != named).collect();
        moved.into_iter().for_each(|other| self.withdraw(other.0, other.1));
        self.publications.insert(named, publication);
        if self.joined.is_some() {
            self.publish_again(named, now);
        }
        Ok(())
    }

    /// Publishes a record of ours no longer. Others keep it until it ends, unless a later one is published in its place.
    pub fn withdraw(&mut self, kind: Kind, key: Key) {
        self.publications.remove(&(kind, key));
        self.timers.cancel(Timer::Publish(kind, key));
    }

    /// Whether a record is above all that we have seen in its place: servers would say so one by one.
    fn check_newer(&self, envelope: &Envelope, record: &SignedRecord) -> Result<(), PutError> {
        let Envelope { kind, key, sequence, .. } = *envelope;
        if let Some(before) = self.publications.get(&(kind, key))
            && sequence <= before.sequence
            && *record != before.record
        {
            return Err(PutError::Old { sequence, highest: before.sequence });
        }
        self.store.check_sequence(envelope, record)
    }

    pub(super) fn publish_all(&mut self, now: Now) {
        let all: Vec<Named> = self.publications.keys().copied().collect();
        all.into_iter().for_each(|named| self.publish_again(named, now));
    }

    /// Records whose region has become another are offered to that one: the network has grown or shrunk, or is better known.
    pub(super) fn follow_size(&mut self, now: Now) {
        let servers = self.servers();
        let is_other = |before: f64| !(1.0 / RESIZE..RESIZE).contains(&(servers / before));
        let moved = |(named, publication): (&Named, &Publication)| {
            publication.servers.filter(|before| is_other(*before)).map(|_| *named)
        };
        let moved: Vec<Named> = self.publications.iter().filter_map(moved).collect();
        moved.into_iter().for_each(|named| self.publish_again(named, now));
    }

    /// Looks for the servers of the region.
    pub(super) fn publish_again(&mut self, named: Named, now: Now) {
        let Some(publication) = self.publications.get(&named) else { return };
        let (kind, key) = named;
        if publication.until < now.wall {
            return self.withdraw(kind, key);
        }
        let (region, why) = (publication.distance(self.servers()), Why::Publish(kind, key));
        let is_looking = self.lookups.values().any(|job| job.why == why);
        let others = self.lookups.values().filter(|job| matches!(job.why, Why::Publish(..))).count();
        if others >= PUBLISHING_MAX && !is_looking {
            return self.timers.set(Timer::Publish(kind, key), now.mono + TURN);
        }
        let seeds = self.seeds(key, 2 * K);
        if is_looking || self.look_up(key, Goal::Region, region, &seeds, why, now).is_err() {
            self.timers.set(Timer::Publish(kind, key), now.mono + AGAIN);
        }
    }

    /// Offers the record to the region, of which a look-up has found these: a round begins, and what is open of the one before counts no more.
    pub(super) fn put_everywhere(&mut self, named: Named, lookup: &Lookup, now: Now) {
        let (servers, nearest) = (self.servers(), lookup.answered_nodes());
        let Some(publication) = self.publications.get_mut(&named) else { return };
        let limit = publication.distance(servers);
        let inside = nearest.iter().filter(|(distance, _)| distance.share() <= limit).count();
        let count = inside.max(COPIES_MIN).min(nearest.len()).min(LIST_MAX);
        publication.reach = region(servers).max(publication.reach);
        self.last_round += 1;
        let number = self.last_round;
        (publication.round, publication.servers) = (Round { number, ..Round::default() }, Some(servers));
        let query = Query::Put { record: publication.record.clone(), replaces: publication.replaces };
        let (kind, key) = named;
        let purpose = Purpose::Put { kind, key, round: number };
        let mut asked = 0;
        for (_, contact) in &nearest[..count] {
            let to = self.as_known(*contact);
            asked += u16::from(self.ask(to, query.clone(), purpose, now));
        }
        if let Some(publication) = self.publications.get_mut(&named) {
            (publication.round.open, publication.round.asked) = (asked, asked);
        }
        self.schedule_publish(named, now);
        if asked == 0 {
            self.round_ended(named, now);
        }
    }

    fn round(&mut self, named: Named, number: u64) -> Option<&mut Round> {
        let round = &mut self.publications.get_mut(&named)?.round;
        (round.number == number).then_some(round)
    }

    pub(super) fn put_answered(&mut self, named: Named, number: u64, reply: &Reply, now: Now) {
        let Some(round) = self.round(named, number) else { return };
        match reply {
            Reply::Stored => round.stored += 1,
            Reply::Refused(Refusal::Old(highest)) => round.superseded = round.superseded.max(Some(*highest)),
            Reply::Refused(Refusal::Conflict(have)) => {
                round.conflicts += 1;
                round.instead = round.instead.max(*have);
            }
            Reply::Refused(
                Refusal::NotServer
                | Refusal::Busy
                | Refusal::Record
                | Refusal::NotMember
                | Refusal::Expired
                | Refusal::Quota
                | Refusal::Full,
            )
            | Reply::Pong
            | Reply::Contacts(_)
            | Reply::Record(_) => {}
        }
        self.put_ended(named, number, now);
    }

    /// One answer less is awaited.
    pub(super) fn put_ended(&mut self, named: Named, number: u64, now: Now) {
        let Some(round) = self.round(named, number) else { return };
        round.open = round.open.saturating_sub(1);
        if round.open == 0 {
            self.round_ended(named, now);
        }
    }

    /// Says what came of a round, and what was not kept by anybody is offered again soon.
    fn round_ended(&mut self, named: Named, now: Now) {
        let (kind, key) = named;
        let Some(publication) = self.publications.get_mut(&named) else { return };
        let Round { number: _, open: _, asked, stored, superseded, conflicts, instead } = publication.round;
        if stored > 0 {
            // It has replaced what it was to replace. Whoever has something else by now, or nothing, has missed that.
            publication.replaces = None;
        } else {
            self.timers.set_at_latest(Timer::Publish(kind, key), now.mono + AGAIN);
        }
        self.outputs.push_back(Output::Published { kind, key, stored, asked, superseded, conflicts, instead });
    }

    /// The sequences of what is published, which outlive the process whether they are kept here or not.
    pub(super) fn published_highest(&self) -> impl Iterator<Item = Highest> {
        self.publications.iter().map(|((kind, key), publication)| Highest {
            kind: *kind,
            key: *key,
            sequence: publication.sequence,
            digest: digest(&publication.record),
            node: self.own,
            until: publication.until,
        })
    }

    fn schedule_publish(&mut self, named: Named, now: Now) {
        let Some(publication) = self.publications.get(&named) else { return };
        let after = self.upkeep.republish_after(publication.until.since(now.wall));
        // Spread out, so that records that were published together are not published together for ever.
        let share = 0.75 + 0.5 * self.random.unit();
        let at: Instant = now.mono + after.mul_f64(share);
        self.timers.set(Timer::Publish(named.0, named.1), at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_record_lies_within_two_regions_as_far_as_anybody_takes_it_from_there() {
        let region = region(1000.0);
        assert_eq!(
            [reach(0.0, 1000.0), reach(1.5 * region, 1000.0), reach(1.0, 1000.0)],
            [region, 1.5 * region, 2.0 * region]
        );
        assert_eq!([reach(1.0, 15.0), reach(0.0, 15.0)], [1.0; 2], "a network of one region");
    }
}
