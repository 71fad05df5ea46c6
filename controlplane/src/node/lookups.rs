//! How far the look-ups of people are, for whoever watches.
//!
//! ```text
//!  watch, after change 7 ─┬ it is at 8 by now ───▶ answered
//!                         └ still at 7 ─▶ waits ─┬ somebody is asked, or answers ─▶ answered
//!                                                └ a second is over ──────────────▶ answered
//! ```
//!
//! Nothing is counted while nobody watches: what there is, is compared with what was told last.

use std::time::Duration;

use super::calls::error;
use super::discovery::{Discovery, switched_off};
use super::{CallId, Node, Timer};
use crate::api::call::Answer;
use crate::api::types::{ErrorCode, LookupProgress, Lookups};
use crate::dht::{LookupId, Progress};
use crate::random::Random;
use crate::time::Now;

/// Callers that wait for a change at a time.
pub(super) const WATCHERS_MAX: usize = 8;
/// Longest wait. Ours: a person is shown seconds.
const WATCH_MAX: Duration = Duration::from_secs(1);

/// Who watches, and what was told last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    change: u64,
    told: Vec<(LookupId, Progress)>,
    watchers: Vec<CallId>,
}

impl Watch {
    /// Nobody watches any more: those who did.
    pub(super) fn end(self) -> Vec<CallId> {
        self.watchers
    }
}

impl<R: Random> Discovery<R> {
    /// Looks how far everything is; `true` when that is news.
    fn has_changed(&mut self) -> bool {
        let is = self.wanted.keys().filter_map(|id| Some((*id, self.dht.progress(*id)?)));
        let is: Vec<(LookupId, Progress)> = is.collect();
        let has_changed = is != self.watch.told;
        if has_changed {
            (self.watch.told, self.watch.change) = (is, self.watch.change.wrapping_add(1));
        }
        has_changed
    }

    fn lookups(&self, now: Now) -> Lookups {
        let row = |(id, progress): &(LookupId, Progress)| {
            let wanted = self.wanted.get(id)?;
            // The steps before count as well.
            let answered = wanted.trace.iter().filter(|hop| hop.answered).count() as u32;
            let took = now.mono.saturating_duration_since(wanted.since);
            Some(LookupProgress {
                what: wanted.what.clone(),
                asked: wanted.trace.len() as u32 + u32::from(progress.asked),
                answered: answered + u32::from(progress.answered),
                paths: progress.paths.into(),
                hops: progress.hops.into(),
                took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            })
        };
        Lookups { change: self.watch.change, lookups: self.watch.told.iter().filter_map(row).collect() }
    }
}

impl<R: Random> Node<R> {
    /// Says how far look-ups are, as soon as that is something else than at change number `after`, or in a second.
    pub(super) fn lookups_call(&mut self, id: CallId, after: Option<u64>, now: Now) {
        // Whoever waits already hears of it before.
        self.look_at_lookups(now);
        let Some(discovery) = &mut self.discovery else { return self.answer(id, Err(switched_off())) };
        discovery.has_changed();
        if after != Some(discovery.watch.change) {
            return self.tell_lookups(id, now);
        }
        if discovery.watch.watchers.len() >= WATCHERS_MAX {
            let busy = format!("{WATCHERS_MAX} callers watch look-ups");
            return self.answer(id, Err(error(ErrorCode::Busy, busy, "try again")));
        }
        discovery.watch.watchers.push(id);
        self.timers.set(Timer::Watcher(id), now.mono + WATCH_MAX);
    }

    /// Tells those who wait when there is news.
    pub(super) fn look_at_lookups(&mut self, now: Now) {
        let Some(discovery) = self.discovery.as_mut().filter(|discovery| !discovery.watch.watchers.is_empty()) else {
            return;
        };
        if discovery.has_changed() {
            for id in std::mem::take(&mut discovery.watch.watchers) {
                self.timers.cancel(Timer::Watcher(id));
                self.tell_lookups(id, now);
            }
        }
    }

    /// It has waited long enough.
    pub(super) fn watcher_timed_out(&mut self, id: CallId, now: Now) {
        if let Some(discovery) = &mut self.discovery {
            discovery.watch.watchers.retain(|watcher| *watcher != id);
            self.tell_lookups(id, now);
        }
    }

    fn tell_lookups(&mut self, id: CallId, now: Now) {
        let answer = self.discovery.as_ref().map(|discovery| Answer::Lookups(discovery.lookups(now)));
        self.answer(id, answer.ok_or_else(switched_off));
    }
}
