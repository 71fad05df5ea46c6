//! Contact sessions of one node: two keys, counters and a window each, and so many of them at most.

use std::time::Duration;

use weir_controlplane::contact::{LIFE, SESSIONS_MAX};

#[derive(Clone, Copy, Debug)]
struct Times {
    since: Millis,
    used: Millis,
}

/// Since the run began. There are a million of these in a network of ten thousand, and three such networks at a time.
type Millis = u32;

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
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
        if self.times[at].since.saturating_add(millis(LIFE)) <= millis(now) {
            self.remove(at);
            return false;
        }
        self.times[at].used = millis(now);
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
        if self.with.len() == self.with.capacity() {
            let more = (SESSIONS_MAX - self.with.len()).min(SESSIONS_MAX / 4);
            self.with.reserve_exact(more);
            self.times.reserve_exact(more);
        }
        self.with.push(with);
        self.times.push(Times { since: millis(now), used: millis(now) });
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
