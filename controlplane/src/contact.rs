//! Contact sessions: what two members that have met once seal single datagrams to each other with, while no connection stays open.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |0 0 1| type 2  |  version 1    |             zero              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                index, drawn by the receiver                   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                      counter (64 bits)                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ~                 ciphertext, then 16 bytes of tag              ~
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! The form is that of the overlay's data ([wire format](../../../docs/wire-format.md)), and so are the rules: the first 16 bytes are
//! authenticated, a counter never repeats under one key, and what comes twice or too late is dropped. A link between the two exports a secret once
//! (RFC 8446 §7.5), each side draws an index, and each direction has a key of its own. A session ends after an hour, or with the other's
//! membership. An answer goes to where the session was agreed, never to where a datagram came from, so that nobody can point answers at others.
//!
//! What is sealed is not known here.

mod session;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use session::Session;
pub use session::{FIRST_BYTE, HEADER_LEN, PLAINTEXT_LEN_MAX, TAG_LEN};

use crate::pki::id::NodeId;
use crate::random::Random;

/// How long a session is used (ours): 330 contacts then cost a handshake every eleven seconds, and one that is stolen ends soon.
pub const LIFE: Duration = Duration::from_secs(3600);
/// Sessions that are kept; beyond, the one that was used longest ago goes, and costs a handshake when it is wanted again. Ours: 18 KiB; simulated with
/// ten thousand nodes (docs/discovery.md).
pub const SESSIONS_MAX: usize = 72;
/// Most bytes of one.
pub const SESSION_LEN: usize = 256;
/// Datagrams that are sealed to somebody from whom none comes, and for how long, before the session is taken for one that the other side has
/// forgotten. Ours: somebody who was asked twice and says nothing within a slow round trip has most likely begun anew.
const UNANSWERED_MAX: u32 = 2;
const UNANSWERED_FOR: Duration = Duration::from_secs(1);

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not of this form, or of another version.
    #[error("it is not a datagram of a contact session")]
    Malformed,
    /// No session has this index.
    #[error("no contact session has its index")]
    Unknown,
    /// Forged, or of another session.
    #[error("it does not authenticate")]
    Forged,
    /// It was here before, or is older than what can be told.
    #[error("it came before, or too late")]
    Replayed,
    /// Its session has ended.
    #[error("its session has ended")]
    Ended,
}

impl OpenError {
    /// The name of its counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "contact_malformed",
            Self::Unknown => "contact_unknown_index",
            Self::Forged => "contact_forged",
            Self::Replayed => "contact_replayed",
            Self::Ended => "contact_ended",
        }
    }
}

/// What somebody said.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Who.
    pub node: NodeId,
    /// Where its session was agreed: answers go there.
    pub remote: SocketAddr,
    /// What.
    pub plaintext: Vec<u8>,
}

/// One member's end of all its contact sessions.
#[derive(Debug, Default)]
pub struct Contacts {
    sessions: HashMap<u32, Session>,
    /// The newest session with each.
    by_node: BTreeMap<NodeId, u32>,
    /// Sessions by when they were used last, oldest first.
    by_use: BTreeSet<(Instant, u32)>,
}

impl Contacts {
    /// An index for a session that is about to be agreed: nobody else has it here.
    pub fn draw_index(&self, random: &mut impl Random) -> u32 {
        loop {
            let index = random.u64() as u32;
            // 4,096 of 2^32 are taken at most, so this ends.
            if index != 0 && !self.sessions.contains_key(&index) {
                return index;
            }
        }
    }

    /// A session with a member: the secret is what the two ends of a link export, `ours` and `theirs` are the indices that each drew. An
    /// earlier one with it is used for what still comes by it, and the one before that goes.
    pub fn agree(&mut self, own: NodeId, node: NodeId, agreed: &Agreed, now: Instant) {
        if let Some(former) = self.by_node.get(&node).copied() {
            let before: Vec<u32> = self.indices_of(node).filter(|index| *index != former).collect();
            before.into_iter().for_each(|index| self.remove(index));
        }
        self.remove(agreed.ours);
        while self.sessions.len() >= SESSIONS_MAX {
            let Some((_, oldest)) = self.by_use.first() else { break };
            self.remove(*oldest);
        }
        self.sessions.insert(agreed.ours, Session::new(own, node, agreed, now));
        self.by_use.insert((now, agreed.ours));
        self.by_node.insert(node, agreed.ours);
    }

    /// Seals for a member. `None` when there is no session with it that is worth a try, or the text is too long for a datagram.
    pub fn seal(&mut self, node: NodeId, plaintext: &[u8], now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let index = *self.by_node.get(&node)?;
        let session = self.sessions.get_mut(&index)?;
        if plaintext.len() > PLAINTEXT_LEN_MAX {
            return None;
        }
        let sealed = if session.is_forgotten(now) { None } else { session.seal(plaintext, now) };
        let Some(sealed) = sealed else {
            self.remove(index);
            return None;
        };
        let remote = session.remote();
        self.used(index, now);
        Some((remote, sealed))
    }

    /// Opens what came.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, datagram: &[u8], now: Instant) -> Result<Opened, OpenError> {
        let header = session::Header::decode(datagram)?;
        let session = self.sessions.get_mut(&header.index).ok_or(OpenError::Unknown)?;
        let plaintext = session.open(&header, datagram, now)?;
        let (node, remote) = (session.node(), session.remote());
        self.used(header.index, now);
        Ok(Opened { node, remote, plaintext })
    }

    /// Whether something can be sealed to a member now.
    pub fn has(&self, node: NodeId, now: Instant) -> bool {
        let session = self.by_node.get(&node).and_then(|index| self.sessions.get(index));
        session.is_some_and(|session| session.is_good(now) && !session.is_forgotten(now))
    }

    /// With whom there is one that is good.
    pub fn members(&self, now: Instant) -> impl Iterator<Item = NodeId> {
        self.by_node.keys().copied().filter(move |node| self.has(*node, now))
    }

    /// Nothing is said to this member any more, nor heard of it.
    pub fn forget(&mut self, node: NodeId) {
        let all: Vec<u32> = self.indices_of(node).collect();
        all.into_iter().for_each(|index| self.remove(index));
    }

    /// Lets those go that have ended.
    pub fn expire(&mut self, now: Instant) {
        let ended: Vec<u32> =
            self.sessions.iter().filter(|(_, session)| !session.is_good(now)).map(|(index, _)| *index).collect();
        ended.into_iter().for_each(|index| self.remove(index));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn indices_of(&self, node: NodeId) -> impl Iterator<Item = u32> {
        self.sessions.iter().filter(move |(_, session)| session.node() == node).map(|(index, _)| *index)
    }

    fn used(&mut self, index: u32, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&index) {
            self.by_use.remove(&(session.use_at(now), index));
            self.by_use.insert((now, index));
        }
    }

    fn remove(&mut self, index: u32) {
        if let Some(session) = self.sessions.remove(&index) {
            self.by_use.remove(&(session.used(), index));
            if self.by_node.get(&session.node()) == Some(&index) {
                self.by_node.remove(&session.node());
            }
        }
    }
}

/// What two members came to over a link.
#[derive(Debug)]
pub struct Agreed {
    /// What the link exported.
    pub secret: zeroize::Zeroizing<[u8; 32]>,
    /// The index that we drew: datagrams to us have it.
    pub ours: u32,
    /// The index that the other side drew.
    pub theirs: u32,
    /// Where the other end of the link was.
    pub remote: SocketAddr,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::SeededRandom;

    const ONE: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 4646))
    }

    fn agreed(secret: u8, ours: u32, theirs: u32, remote: u8) -> Agreed {
        Agreed { secret: zeroize::Zeroizing::new([secret; 32]), ours, theirs, remote: at(remote) }
    }

    /// Two members that have met.
    fn met(now: Instant) -> (Contacts, Contacts) {
        let (mut one, mut other) = (Contacts::default(), Contacts::default());
        one.agree(ONE, OTHER, &agreed(7, 11, 22, 2), now);
        other.agree(OTHER, ONE, &agreed(7, 22, 11, 1), now);
        (one, other)
    }

    #[test]
    fn what_one_seals_the_other_opens_once() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        let (to, bytes) = one.seal(OTHER, b"hello", now).unwrap();
        assert_eq!((to, bytes.len(), bytes[0]), (at(2), HEADER_LEN + 5 + TAG_LEN, 0x22));
        let opened = Opened { node: ONE, remote: at(1), plaintext: b"hello".to_vec() };
        assert_eq!(other.open(&bytes, now), Ok(opened));
        assert_eq!(other.open(&bytes, now), Err(OpenError::Replayed));
        // What one side seals it does not open itself: each direction has a key and an index of its own.
        assert_eq!(one.open(&bytes, now), Err(OpenError::Unknown));
        let mut turned = bytes.clone();
        turned[4..8].copy_from_slice(&11u32.to_be_bytes());
        assert_eq!(one.open(&turned, now), Err(OpenError::Forged));
    }

    #[test]
    fn nothing_of_a_datagram_can_be_changed() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        let (_, bytes) = one.seal(OTHER, b"hello", now).unwrap();
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            let expected = match at {
                0..4 => OpenError::Malformed,
                4..8 => OpenError::Unknown,
                _ => OpenError::Forged,
            };
            assert_eq!(other.open(&bent, now), Err(expected), "byte {at}");
        }
        let mut last = bytes.clone();
        last[8..HEADER_LEN].fill(0xff);
        assert_eq!(other.open(&last, now), Err(OpenError::Malformed), "nobody seals with the last counter");
        for len in 0..HEADER_LEN + TAG_LEN {
            assert_eq!(other.open(&bytes[..len], now), Err(OpenError::Malformed), "{len} bytes");
        }
        assert!(other.open(&bytes, now).is_ok());
    }

    #[test]
    fn late_datagrams_are_taken_within_the_window_and_not_beyond() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        // Answers keep the session in use.
        let mut sealed = vec![];
        for _ in 0..session::WINDOW + 2 {
            sealed.push(one.seal(OTHER, b"", now).unwrap().1);
            let (_, answer) = other.seal(ONE, b"", now).unwrap();
            one.open(&answer, now).unwrap();
        }
        let newest = sealed.pop().unwrap();
        assert!(other.open(&newest, now).is_ok());
        let results: Vec<bool> = sealed.iter().map(|bytes| other.open(bytes, now).is_ok()).collect();
        let refused = results.iter().filter(|is_taken| !**is_taken).count();
        assert_eq!((refused, results[0], results[1], results[2]), (2, false, false, true));
    }

    #[test]
    fn who_does_not_answer_is_met_anew() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        // However many are asked at once.
        for _ in 0..9 {
            assert!(one.has(OTHER, now));
            one.seal(OTHER, b"?", now).unwrap();
        }
        let late = now + UNANSWERED_FOR;
        assert!(one.has(OTHER, late - Duration::from_nanos(1)) && !one.has(OTHER, late));
        assert!(one.seal(OTHER, b"?", late).is_none() && one.is_empty());
        // The last question has its time as well, however long ago the first was asked.
        one.agree(ONE, OTHER, &agreed(7, 11, 22, 2), now);
        one.seal(OTHER, b"?", now).unwrap();
        one.seal(OTHER, b"?", late).unwrap();
        assert!(one.has(OTHER, late) && !one.has(OTHER, late + UNANSWERED_FOR));
        // One question may be on its way for long.
        one.agree(ONE, OTHER, &agreed(7, 11, 22, 2), now);
        one.seal(OTHER, b"?", now).unwrap();
        assert!(one.has(OTHER, late));
        // An answer makes up for it.
        one.agree(ONE, OTHER, &agreed(7, 11, 22, 2), now);
        one.seal(OTHER, b"?", now).unwrap();
        let (_, answer) = other.seal(ONE, b"!", now).unwrap();
        one.open(&answer, now).unwrap();
        for _ in 0..UNANSWERED_MAX {
            assert!(one.seal(OTHER, b"?", late).is_some());
        }
    }

    #[test]
    fn a_session_ends_after_an_hour_and_with_the_membership() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        let (_, late) = one.seal(OTHER, b"", now).unwrap();
        let (last, end) = (now + LIFE - Duration::from_nanos(1), now + LIFE);
        assert!(one.has(OTHER, last) && !one.has(OTHER, end));
        assert_eq!(other.open(&late, end), Err(OpenError::Ended));
        other.expire(last);
        assert_eq!(other.len(), 1);
        other.expire(end);
        assert!(other.is_empty() && other.by_use.is_empty() && other.by_node.is_empty());
        one.forget(OTHER);
        assert!(one.is_empty() && one.by_use.is_empty() && one.by_node.is_empty());
    }

    #[test]
    fn a_newer_session_is_sealed_with_and_what_is_under_way_by_the_last_one_still_arrives() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        let (_, under_way) = one.seal(OTHER, b"old", now).unwrap();
        one.agree(ONE, OTHER, &agreed(8, 33, 44, 2), now);
        other.agree(OTHER, ONE, &agreed(8, 44, 33, 9), now);
        let (_, bytes) = one.seal(OTHER, b"new", now).unwrap();
        assert_eq!(
            other.open(&bytes, now).map(|opened| (opened.remote, opened.plaintext)),
            Ok((at(9), b"new".to_vec()))
        );
        assert!(other.open(&under_way, now).is_ok());
        // The third takes the place of the first.
        other.agree(OTHER, ONE, &agreed(9, 55, 66, 9), now);
        assert_eq!(other.len(), 2);
        assert_eq!(other.open(&under_way, now), Err(OpenError::Unknown));
    }

    #[test]
    fn at_the_limit_the_one_that_was_used_longest_ago_goes() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        let node = |number: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(number as u64).to_be_bytes());
            NodeId(id)
        };
        for number in 0..SESSIONS_MAX {
            contacts.agree(
                ONE,
                node(number),
                &agreed(1, number as u32 + 1, 1, 1),
                now + Duration::from_micros(number as u64),
            );
        }
        let later = now + Duration::from_secs(1);
        contacts.seal(node(0), b"", later).unwrap();
        contacts.agree(ONE, node(SESSIONS_MAX), &agreed(1, u32::MAX, 1, 1), later);
        assert_eq!(contacts.len(), SESSIONS_MAX);
        assert!(contacts.has(node(0), later) && !contacts.has(node(1), later) && contacts.has(node(2), later));
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_left_to_a_link() {
        let now = Instant::now();
        let (mut one, mut other) = met(now);
        let (_, bytes) = one.seal(OTHER, &[7; PLAINTEXT_LEN_MAX], now).unwrap();
        assert_eq!(other.open(&bytes, now).unwrap().plaintext, [7; PLAINTEXT_LEN_MAX]);
        assert!(one.seal(OTHER, &[7; PLAINTEXT_LEN_MAX + 1], now).is_none() && one.has(OTHER, now));
    }

    #[test]
    fn an_index_is_drawn_that_nobody_has() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        let first = contacts.draw_index(&mut SeededRandom::new(3));
        contacts.agree(ONE, OTHER, &agreed(1, first, 1, 1), now);
        let second = contacts.draw_index(&mut SeededRandom::new(3));
        assert!(first != second && first != 0 && second != 0);
    }

    proptest! {
        /// Whatever the network does to the order: each is opened at most once, as it was sealed, and those within the window are.
        #[test]
        fn each_datagram_is_opened_once_in_any_order(order in proptest::collection::vec(0usize..100, 1..300)) {
            let now = Instant::now();
            let (mut one, mut other) = met(now);
            let sealed: Vec<Vec<u8>> = (0..100u8)
                .map(|number| {
                    let (_, answer) = other.seal(ONE, b"", now).unwrap();
                    one.open(&answer, now).unwrap();
                    one.seal(OTHER, &[number], now).unwrap().1
                })
                .collect();
            let mut seen = std::collections::BTreeSet::new();
            for number in order {
                let opened = other.open(&sealed[number], now);
                if seen.insert(number) {
                    prop_assert_eq!(opened.map(|opened| opened.plaintext), Ok(vec![number as u8]));
                } else {
                    prop_assert_eq!(opened, Err(OpenError::Replayed));
                }
            }
        }

        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let now = Instant::now();
            let (mut one, _) = met(now);
            prop_assert!(one.open(&bytes, now).is_err());
        }
    }
}
