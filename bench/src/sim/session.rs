//! Contact sessions of one node: two keys, counters and a window each, and so many of them at most.

use std::time::Duration;

use weir_controlplane::contact::{LIFE, SESSIONS_MAX};

#[derive(Clone, Copy, Debug)]
struct Times {
    since: Duration,
    used: Duration,
}

/// With whom, and next to that since when: all are looked through for each message.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    with: Vec<u32>,
    times: Vec<Times>,
}

impl Sessions {
    fn remove(&mut self, at: usize) {
        self.with.swap_remove(at);
        self.times.swap_remove(at);
    }

    fn position(&self, with: u32) -> Option<usize> {
        self.with.iter().position(|other| *other == with)
    }

    /// Whether there is one with this node, which is used now.
    pub(super) fn take(&mut self, with: u32, now: Duration) -> bool {
        let Some(at) = self.position(with) else { return false };
        if self.times[at].since + LIFE <= now {
            self.remove(at);
            return false;
        }
        self.times[at].used = now;
        true
    }

    pub(super) fn add(&mut self, with: u32, now: Duration) {
        if let Some(at) = self.position(with) {
            self.remove(at);
        }
        if self.with.len() == SESSIONS_MAX {
            let oldest = (0..self.with.len()).min_by_key(|at| self.times[*at].used);
            oldest.into_iter().for_each(|at| self.remove(at));
        }
        self.with.push(with);
        self.times.push(Times { since: now, used: now });
    }

    pub(super) fn clear(&mut self) {
        self.with.clear();
        self.times.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.with.len()
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
