//! Looking after the table: who is asked whether it is there, and which bucket is looked into.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::lookup::Goal;
use super::place::{Contact, Key};
use super::{CHECK_GAP, DOUBT, Dht, Job, K, Purpose, Query, Timer, Why, upkeep};
use crate::random::Random;
use crate::time::Now;

/// Buckets beyond those that are full as a rule which are looked into: each has half as many as the one before.
const NEAR_LEVELS: usize = 4;
/// Nodes next to a place that a refresh asks.
const REFRESH_WIDTH: usize = 4;
/// Contacts that are asked out of their turn when one does not answer. Ours: where a fifth is gone, each leads to the next until all is known.
const SUSPECTS: usize = 3;
/// A table is refreshed after this part of the time since we joined, at first; after this part of the time since the network is seen to be
/// another than we took it for; and not more often than that.
const YOUNG: u32 = 2;
const RESTLESS: u32 = 6;
const REFRESH_MIN: Duration = Duration::from_secs(4);
/// How far what we took the network for may be from what is around us. Ours: some twenty neighbours are seen, so it is hardly chance.
const AS_BEFORE: Range<f64> = 0.5..2.0;
/// How far once it is looked at: a network that has grown is not left half known.
const SETTLED: Range<f64> = 0.7..1.4;

/// A part of the time since then: what we have known for a minute only may be another in the next.
fn part_since(since: Option<Instant>, part: u32, now: Now) -> Duration {
    let known = since.map_or(Duration::ZERO, |since| now.mono.saturating_duration_since(since));
    (known / part).max(REFRESH_MIN)
}

impl<R: Random> Dht<R> {
    pub(super) fn look_into(&mut self, bucket: usize, why: Why, now: Now) {
        let target = Key::from(self.own).random_beyond(bucket, &mut self.random);
        let seeds = self.seeds(target, K);
        // With every place for look-ups taken the bucket's turn comes again.
        let _ = self.look_up(target, Goal::Near { width: REFRESH_WIDTH }, 0.0, &seeds, why, now);
    }

    /// Whether the neighbours of the place that was looked for say something of the size. Our own place counts once, before there is
    /// anything better: whoever crowds it, or the place of a record of ours, would be counted again and again.
    pub(super) fn says_the_size(&self, job: &Job) -> bool {
        match job.why {
            Why::Join => !self.size.is_seen(),
            Why::Fill | Why::Refresh => {
                Key::from(self.own).distance(job.lookup.target()).shared_bits()
                    < self.levels().saturating_sub(NEAR_LEVELS - 1)
            }
            Why::Get | Why::Publish(..) => false,
        }
    }

    /// Buckets that are places of their own: those beyond are one and the same, next to us.
    pub(super) fn levels(&self) -> usize {
        let full = (self.servers() / K as f64).log2().ceil().max(0.0);
        full as usize + NEAR_LEVELS
    }

    /// Asks who is doubted, who was not heard for long, and who waits for a place.
    pub(super) fn check(&mut self, now: Now) {
        let interval = if self.suspects > 0 { upkeep::CHECK[0] } else { self.upkeep.check_after() };
        let turn = self.table.next_check(DOUBT, interval, now.mono);
        let due = turn.filter(|(at, _)| *at <= now.mono).and_then(|(_, contact)| contact);
        self.suspects = self.suspects.saturating_sub(usize::from(due.is_some()));
        let due = due.or_else(|| self.table.next_spare());
        if let Some(contact) = due {
            self.ask(contact, Query::Ping, Purpose::Check, now);
        }
        // Once it is, each refresh says when the next one is.
        if self.restless.is_none() || !self.is_restless() {
            self.refresh_if_restless(now);
        }
        if self.table.is_empty() && self.joined.is_some() {
            self.timers.set_at_latest(Timer::Join, now.mono);
        }
        let next = if due.is_some() { Some(now.mono + CHECK_GAP) } else { turn.map(|(at, _)| at) };
        if let Some(next) = next {
            self.timers.set_at_latest(Timer::Check, next.max(now.mono + CHECK_GAP));
        }
    }

    pub(super) fn schedule_refresh(&mut self, now: Now) {
        let depth = self.table.depth().clamp(1, self.levels()) as u32;
        let interval = (self.upkeep.refresh_after() / depth).min(part_since(self.joined, YOUNG, now));
        let after = self.spread(interval);
        self.timers.set(Timer::Refresh, now.mono + after);
        self.refresh_if_restless(now);
    }

    /// Spread out, so that those who came together do not ask together.
    fn spread(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(0.5 + self.random.unit())
    }

    /// Whether the network is another than we took it for: it grows, or falls apart.
    pub(super) fn is_restless(&self) -> bool {
        let Some(around) = self.table.servers_around(self.levels()) else { return false };
        // Where no bucket is full the table itself says how many there are, at least.
        let all = self.table.len() as f64;
        let more = around / self.size.servers().unwrap_or(all);
        let calm = if self.restless.is_some() { SETTLED } else { AS_BEFORE };
        around / self.servers() < calm.start || around > all && more >= calm.end
    }

    fn refresh_if_restless(&mut self, now: Now) {
        if self.joined.is_none() || !self.is_restless() {
            self.restless = None;
            return;
        }
        self.restless.get_or_insert(now.mono);
        let after = self.spread(part_since(self.restless, RESTLESS, now));
        self.timers.set_at_latest(Timer::Refresh, now.mono + after);
    }

    pub(super) fn refresh(&mut self, now: Now) {
        self.store.expire(now.wall);
        let depth = self.table.depth().min(self.levels());
        if depth > 0 {
            self.refresh = (self.refresh + 1) % depth;
            self.look_into(self.refresh, Why::Refresh, now);
        }
        self.schedule_refresh(now);
    }

    /// Somebody did not answer: if it was one of ours, others may be gone as well.
    pub(super) fn suspect_others(&mut self, silent: Contact, now: Now) {
        if self.table.entry(silent.node).is_some_and(|entry| entry.contact == silent) {
            self.suspects = (self.suspects + SUSPECTS).min(K);
            self.timers.set_at_latest(Timer::Check, now.mono + CHECK_GAP);
        }
    }
}
