//! Whom look-ups pass over for a while, though others name them still: who did not answer, at that address; and who was caught lying, at
//! any.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::place::Contact;
use crate::pki::id::NodeId;

/// How long.
const SHUN: Duration = Duration::from_secs(60);
/// How many; the oldest goes.
const SHUNNED_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Shunned {
    node: NodeId,
    /// Where; everywhere if there is none.
    address: Option<SocketAddr>,
    since: Instant,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Shun(VecDeque<Shunned>);

impl Shun {
    /// Somebody did not answer at this address.
    pub(super) fn unreachable(&mut self, contact: Contact, now: Instant) {
        self.push(Shunned { node: contact.node, address: Some(contact.address), since: now });
    }

    /// Somebody contradicts itself.
    pub(super) fn liar(&mut self, node: NodeId, now: Instant) {
        self.push(Shunned { node, address: None, since: now });
    }

    fn push(&mut self, shunned: Shunned) {
        // Who is shunned again has one place, and pushes out nobody else.
        self.0.retain(|known| (known.node, known.address) != (shunned.node, shunned.address));
        if self.0.len() == SHUNNED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(shunned);
    }

    /// Somebody answered at this address; `true` when it had not before.
    pub(super) fn answered(&mut self, contact: Contact) -> bool {
        let before = self.0.len();
        self.0.retain(|shunned| (shunned.node, shunned.address) != (contact.node, Some(contact.address)));
        self.0.len() != before
    }

    /// Whether somebody is to be passed over.
    pub(super) fn has(&self, contact: Contact, now: Instant) -> bool {
        let is_it = |shunned: &Shunned| {
            shunned.node == contact.node && shunned.address.is_none_or(|address| address == contact.address)
        };
        self.0.iter().any(|shunned| is_it(shunned) && now.saturating_duration_since(shunned.since) < SHUN)
    }

    pub(super) fn heap_len(&self) -> usize {
        self.0.capacity() * size_of::<Shunned>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::contact;
    use super::*;

    #[test]
    fn who_is_silent_is_shunned_in_one_place_and_who_lies_everywhere() {
        let (mut shun, now) = (Shun::default(), Instant::now());
        let (one, other) = (contact(NodeId([1; 32]), 1), contact(NodeId([2; 32]), 2));
        let elsewhere = |contact: Contact| Contact { address: "192.0.2.1:9".parse().unwrap(), ..contact };
        shun.unreachable(one, now);
        shun.liar(other.node, now);
        let shunned = |shun: &Shun, now| [one, elsewhere(one), other, elsewhere(other)].map(|who| shun.has(who, now));
        assert_eq!(shunned(&shun, now), [true, false, true, true]);
        // An answer makes up for silence, and for a lie not.
        shun.answered(one);
        shun.answered(other);
        assert_eq!(shunned(&shun, now + SHUN - Duration::from_nanos(1)), [false, false, true, true]);
        assert_eq!(shunned(&shun, now + SHUN), [false; 4]);
    }

    #[test]
    fn at_the_limit_the_oldest_is_forgiven() {
        let (mut shun, now) = (Shun::default(), Instant::now());
        let numbered = |number: usize| contact(NodeId([number as u8; 32]), 1);
        (0..SHUNNED_MAX).for_each(|number| shun.unreachable(numbered(number), now));
        assert!((0..SHUNNED_MAX).all(|number| shun.has(numbered(number), now)));
        shun.unreachable(numbered(SHUNNED_MAX), now);
        assert!(!shun.has(numbered(0), now) && (1..=SHUNNED_MAX).all(|number| shun.has(numbered(number), now)));
    }
}
