//! Deadlines by name: setting one again moves it, and whoever waits asks for the earliest.
//!
//! An ordered set instead of a wheel of slots: a control plane has thousands of deadlines, not millions, and the earliest is asked for
//! after each turn.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// Deadlines, at most one for each key.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: HashMap<K, Instant>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), by_key: HashMap::new() }
    }
}

impl<K: Copy + Ord + Hash> Timers<K> {
    /// Sets the deadline of `key`, in place of an earlier one.
    pub fn set(&mut self, key: K, at: Instant) {
        self.cancel(key);
        self.by_key.insert(key, at);
        self.by_time.insert((at, key));
    }

    /// Sets it unless it is set to be earlier.
    pub fn set_at_latest(&mut self, key: K, at: Instant) {
        if self.by_key.get(&key).is_none_or(|known| at < *known) {
            self.set(key, at);
        }
    }

    /// Takes the deadline of `key` away.
    pub fn cancel(&mut self, key: K) {
        if let Some(at) = self.by_key.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// Whether `key` has a deadline.
    pub fn is_set(&self, key: K) -> bool {
        self.by_key.contains_key(&key)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.cancel(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deadlines_come_in_their_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set('a', at(30));
        timers.set('b', at(10));
        timers.set('a', at(20));
        timers.set_at_latest('b', at(15));
        assert!(timers.is_set('b') && !timers.is_set('z'));
        assert_eq!((timers.next(), timers.pop(at(9))), (Some(at(10)), None));
        assert_eq!((timers.pop(at(30)), timers.pop(at(30)), timers.pop(at(30))), (Some('b'), Some('a'), None));
        timers.set('c', at(40));
        timers.cancel('c');
        assert_eq!((timers.next(), timers.pop(at(50))), (None, None));
    }
}
