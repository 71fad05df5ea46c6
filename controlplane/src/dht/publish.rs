//! Records of our own: offered to all servers of their region, and again before too few of those are left.

use std::time::{Duration, Instant};

use super::estimate::region;
use super::lookup::{Goal, LIST_MAX};
use super::message::{Query, Refusal, Reply};
use super::place::{Contact, Distance, Key};
use super::record::{Judge, Kind, RecordError, SignedRecord};
use super::store::PutError;
use super::{Dht, K, Mode, Output, Purpose, Timer, Why};
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::{Now, UnixSecs};

/// Servers that are asked to keep a record though they are not in the region as we estimate it.
const COPIES_MIN: usize = 8;
/// Change of the number of servers at which a region is another. Ours: the estimate itself wanders by less as a rule.
const RESIZE: f64 = 1.4;
/// Before something is tried again that could not even begin, or that nobody took.
const AGAIN: Duration = Duration::from_secs(30);

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
}

#[derive(Clone, Debug)]
pub(super) struct Publication {
    key: Key,
    record: SignedRecord,
    /// The sequence that it replaces, where its owner wants to know whether that is so.
    replaces: Option<u64>,
    not_after: UnixSecs,
    /// Servers that there seemed to be when it was offered to its region.
    servers: Option<f64>,
    /// Answers that are awaited, and what came of the others.
    open: u16,
    asked: u16,
    stored: u16,
    superseded: Option<u64>,
}

impl<R: Random> Dht<R> {
    /// Publishes a record of ours from now on until it ends, in the place of an earlier one of its kind. With `replaces`, servers that hold
    /// another sequence refuse it.
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
        let envelope = record.verify(judge)?;
        if envelope.node != self.own {
            return Err(PublishError::Foreign(envelope.node));
        }
        if self.mode == Mode::Server {
            self.store.put(record.clone(), replaces, judge)?;
        }
        let publication = Publication {
            key: envelope.key,
            record,
            replaces,
            not_after: envelope.not_after,
            servers: None,
            open: 0,
            asked: 0,
            stored: 0,
            superseded: None,
        };
        self.publications.insert(envelope.kind, publication);
        if self.joined.is_some() {
            self.publish_again(envelope.kind, now);
        }
        Ok(())
    }

    pub(super) fn publish_all(&mut self, now: Now) {
        let kinds: Vec<Kind> = self.publications.keys().copied().collect();
        kinds.into_iter().for_each(|kind| self.publish_again(kind, now));
    }

    /// Records whose region has become another are offered to that one: the network has grown or shrunk, or is better known.
    pub(super) fn follow_size(&mut self, now: Now) {
        let servers = self.servers();
        let is_other = |before: f64| !(1.0 / RESIZE..RESIZE).contains(&(servers / before));
        let moved = |(kind, publication): (&Kind, &Publication)| {
            publication.servers.filter(|before| is_other(*before)).map(|_| *kind)
        };
        let moved: Vec<Kind> = self.publications.iter().filter_map(moved).collect();
        moved.into_iter().for_each(|kind| self.publish_again(kind, now));
    }

    /// Looks for the servers of the region.
    pub(super) fn publish_again(&mut self, kind: Kind, now: Now) {
        let Some(publication) = self.publications.get(&kind) else { return };
        if publication.not_after < now.wall {
            self.publications.remove(&kind);
            return;
        }
        let (key, region) = (publication.key, region(self.servers()));
        let is_looking = self.lookups.values().any(|job| job.why == Why::Publish(kind));
        let seeds = self.seeds(key, 2 * K, now.mono);
        if is_looking || self.look_up(key, Goal::Region, region, &seeds, Why::Publish(kind), now).is_err() {
            self.timers.set(Timer::Publish(kind), now.mono + AGAIN);
        }
    }

    /// Offers the record to the region: `nearest` are those who answered.
    pub(super) fn put_everywhere(&mut self, kind: Kind, nearest: &[(Distance, Contact)], now: Now) {
        let servers = self.servers();
        let region = region(servers);
        let inside = nearest.iter().filter(|(distance, _)| distance.share() <= region).count();
        let count = inside.max(COPIES_MIN).min(nearest.len()).min(LIST_MAX);
        let Some(publication) = self.publications.get_mut(&kind) else { return };
        (publication.open, publication.asked, publication.stored, publication.superseded) = (0, 0, 0, None);
        let query = Query::Put { record: publication.record.clone(), replaces: publication.replaces };
        let mut open = 0;
        for (_, contact) in &nearest[..count] {
            open += u16::from(self.ask(*contact, query.clone(), Purpose::Put(kind), now));
        }
        if let Some(publication) = self.publications.get_mut(&kind) {
            (publication.open, publication.asked, publication.servers) = (open, open, Some(servers));
        }
        self.schedule_publish(kind, now);
        if open == 0 {
            self.published(kind);
        }
    }

    pub(super) fn put_answered(&mut self, kind: Kind, reply: &Reply, now: Now) {
        if let Some(publication) = self.publications.get_mut(&kind) {
            match reply {
                Reply::Stored => publication.stored += 1,
                Reply::Refused(Refusal::Old(highest)) => {
                    publication.superseded = publication.superseded.max(Some(*highest));
                }
                Reply::Refused(_) | Reply::Pong | Reply::Contacts(_) | Reply::Record(_) => {}
            }
        }
        self.put_ended(kind, now);
    }

    /// One answer less is awaited.
    pub(super) fn put_ended(&mut self, kind: Kind, now: Now) {
        let Some(publication) = self.publications.get_mut(&kind) else { return };
        publication.open = publication.open.saturating_sub(1);
        if publication.open == 0 {
            self.published(kind);
            if self.publications.get(&kind).is_some_and(|publication| publication.stored == 0) {
                self.timers.set(Timer::Publish(kind), now.mono + AGAIN);
            }
        }
    }

    fn published(&mut self, kind: Kind) {
        let Some(publication) = self.publications.get(&kind) else { return };
        let Publication { stored, asked, superseded, .. } = *publication;
        self.outputs.push_back(Output::Published { kind, stored, asked, superseded });
    }

    fn schedule_publish(&mut self, kind: Kind, now: Now) {
        let Some(publication) = self.publications.get(&kind) else { return };
        let after = self.upkeep.republish_after(publication.not_after.since(now.wall));
        // Spread out, so that records that were published together are not published together for ever.
        let share = 0.75 + 0.5 * self.random.u64() as f64 / u64::MAX as f64;
        let at: Instant = now.mono + after.mul_f64(share);
        self.timers.set(Timer::Publish(kind), at);
    }
}
