//! From the keys before to the new ones: make before break.
//!
//! ```text
//!   keys 1   seal ════════════════════════════╗ open ─────────────── grace ── closed
//!   keys 2                    open ───────────╚════ seal, open ═══════════════════▶
//!                             ▲ Install,      ▲ Activate, or a datagram of the peer under keys 2
//!                               not activated
//! ```
//!
//! At no moment is there nothing to seal with, and no datagram arrives for a lane that is not open: each side seals under new keys only when
//! the other one has opened their lanes, which it has shown by saying so or by using them.

use weir_abi::wire::ReceiverIndex;

use super::{Deadline, Effect, Random, State};
use crate::api::message::{Event, Refusal, SessionId};
use crate::engine::Command;
use crate::engine::held::{HOLD_LIFETIME, HOLD_REST_MIN};
use crate::engine::lane::{RETAIN_MIN, RETAIN_ROUND_TRIPS};
use crate::engine::session::KeysId;
use crate::engine::snapshot::SessionSlot;
use crate::engine::time::Time;

impl<R: Random> State<R> {
    /// Carries [`Request::Activate`](crate::api::Request::Activate) out.
    pub(super) fn activate(&mut self, session: SessionId, now: Time) -> Result<(), Refusal> {
        let entry = self.sessions.get(&session).filter(|entry| entry.has_keys());
        entry.ok_or(Refusal::NoSession(session.0))?;
        if let Some((slot, keys)) = self.use_pending(session, now) {
            let command = |worker| Effect::Worker(worker, Command::Activate { slot, keys });
            self.effects.extend((0..self.fixed.workers).map(command));
        }
        Ok(())
    }

    /// The peer has sealed under these keys, as a worker tells. Only the first that tells it has anything new to say.
    pub(super) fn proved(&mut self, session: SessionId, keys: KeysId, now: Time) -> Option<Event> {
        let pending = self.sessions.get(&session)?.pending.as_ref();
        pending.filter(|pending| pending.keys == keys)?;
        self.activate(session, now).is_ok().then_some(Event::Activated(session))
    }

    /// Makes the keys that wait the ones in use, and lets the lanes of those before close in their time. Returns what workers have to know
    /// of it, or nothing when no keys wait.
    pub(super) fn use_pending(&mut self, session: SessionId, now: Time) -> Option<(SessionSlot, KeysId)> {
        let entry = self.sessions.get_mut(&session)?;
        let pending = entry.pending.take()?;
        let (slot, keys) = (entry.slot, pending.keys);
        entry.wanted_until = Time::ZERO;
        let before = entry.installed.replace(pending);
        self.watch_idle(session, before.is_none(), now);
        if let Some(before) = before {
            self.close_later(session, before.indices, now);
        }
        Some((slot, keys))
    }

    /// Closes lanes when nothing that was sealed for them can be on its way any more.
    pub(super) fn close_later(&mut self, session: SessionId, indices: Vec<ReceiverIndex>, now: Time) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let grace = RETAIN_MIN.max(entry.round_trip.saturating_mul(RETAIN_ROUND_TRIPS));
        let mut without_timer = vec![];
        for index in indices {
            match self.wheel.schedule(now.plus(grace), Deadline::Close(session, index)) {
                Ok(timer) => entry.closing.push((index, timer)),
                Err(_) => without_timer.push(index),
            }
        }
        without_timer.into_iter().for_each(|index| self.close(index));
    }

    /// Packets wait for the session in this slot. Each worker that has some tells; one notice serves for all.
    pub(super) fn wanted(&mut self, slot: SessionSlot, now: Time) -> Option<Event> {
        let session = *self.names.get(&slot)?;
        let entry = self.sessions.get_mut(&session)?;
        // It may have come up while the worker told.
        if entry.installed.is_some() || now < entry.wanted_until {
            return None;
        }
        // No worker asks again by itself before that.
        entry.wanted_until = now.plus(HOLD_LIFETIME + HOLD_REST_MIN);
        Some(Event::Wanted(session))
    }
}
