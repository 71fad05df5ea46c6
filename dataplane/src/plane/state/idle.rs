//! Whether a session is used: told once when it is not any more.
//!
//! Workers only note when the last packet passed. A timer looks at that, never before it can matter: at the last packet plus the time that is
//! asked for. After it has told, it looks once in that time whether there were packets again, which loses none of the next one's exactness.

use std::time::Duration;

use super::{Deadline, Effect, Random, State};
use crate::api::message::{Event, SessionId};
use crate::engine::time::Time;
use crate::engine::wheel::TimerId;

/// What is known of a session's use.
#[derive(Debug, Default)]
pub(super) struct Watch {
    timer: Option<TimerId>,
    /// When the session came up.
    since: Time,
    /// The last packet that it was told of that it was the last.
    told: Option<Time>,
}

impl Watch {
    /// Ends the watch. Returns the timer that is no longer needed.
    pub(super) fn stop(&mut self) -> Option<TimerId> {
        std::mem::take(self).timer
    }
}

impl<R: Random> State<R> {
    /// Begins to watch under what is installed now. `is_first` says that the session was not there before.
    pub(super) fn watch_idle(&mut self, session: SessionId, is_first: bool, now: Time) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if let Some(timer) = entry.idle.timer.take() {
            self.wheel.cancel(timer);
        }
        if is_first {
            entry.idle.since = now;
        }
        self.look_whether_idle(session, now);
    }

    /// Tells that the session is idle if it is and nobody was told, and looks again when it may be.
    pub(super) fn look_whether_idle(&mut self, session: SessionId, now: Time) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        entry.idle.timer = None;
        let Some(after) = entry.installed.as_ref().and_then(|installed| installed.idle_after) else { return };
        let total = entry.traffic.total();
        let last = total.tx_at.max(total.rx_at).max(entry.idle.since);
        let due = last.plus(after);
        if now >= due && entry.idle.told != Some(last) {
            entry.idle.told = Some(last);
            self.effects.push_back(Effect::Tell(Event::Idle(session)));
        }
        let next = if due > now { due } else { now.plus(after.max(Duration::from_secs(1))) };
        // There is a place for each session.
        entry.idle.timer = self.wheel.schedule(next, Deadline::Idle(session)).ok();
    }
}
