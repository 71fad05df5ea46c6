//! Contact sessions of one node: two keys, counters and a window each, and so many of them at most.

use std::time::Duration;

/// Bytes of one (docs/discovery.md).
pub(super) const SESSION_LEN: usize = 256;
/// How long one lives.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How many a node keeps; the one that was not used for longest goes. Ours: 24 KiB.
pub(super) const SESSIONS_MAX: usize = 96;

#[derive(Clone, Copy, Debug)]
struct Session {
    with: u32,
    since: Duration,
    used: Duration,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Vec<Session>);

impl Sessions {
    /// Whether there is one with this node, which is used now.
    pub(super) fn take(&mut self, with: u32, now: Duration) -> bool {
        let Some(at) = self.0.iter().position(|session| session.with == with) else { return false };
        if self.0[at].since + LIFETIME <= now {
            self.0.swap_remove(at);
            return false;
        }
        self.0[at].used = now;
        true
    }

    pub(super) fn add(&mut self, with: u32, now: Duration) {
        self.0.retain(|session| session.with != with);
        if self.0.len() == SESSIONS_MAX {
            let oldest = (0..self.0.len()).min_by_key(|at| self.0[*at].used);
            oldest.map(|at| self.0.swap_remove(at));
        }
        self.0.push(Session { with, since: now, used: now });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_not_used_for_longest_goes_and_each_ends_after_its_time() {
        let at = Duration::from_secs;
        let mut sessions = Sessions::default();
        (0..SESSIONS_MAX as u32).for_each(|with| sessions.add(with, at(with.into())));
        assert!(sessions.take(0, at(200)));
        sessions.add(1000, at(201));
        assert_eq!((sessions.len(), sessions.take(1, at(201)), sessions.take(0, at(201))), (SESSIONS_MAX, false, true));
        assert!(sessions.take(1000, at(201 + 3599)) && !sessions.take(1000, at(201 + 3600)));
    }
}
