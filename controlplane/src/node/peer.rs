//! What we hold of one other member: a link for messages, a session for packets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weir_dataplane::api::message::Incarnation;

use super::sessions::ExchangeId;
use crate::pki::clock::Skew;
use crate::pki::verifier::Member;
use crate::quic::LinkId;

/// First wait after a failed dial; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
/// Longest wait between dials of a member that does not answer.
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// Addresses of a member by hearsay: who lies about them costs so many dials more.
const HEARSAY_MAX: usize = 4;
/// Incarnations of a member's packet plane that are kept in mind: as many copies of one state directory are told apart.
const LIVES_MAX: usize = 4;

/// Where a session with a peer stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Where its datagrams go.
    pub endpoint: SocketAddr,
    /// When its keys were installed.
    pub since: Instant,
    /// Key exchange group of the exchange (TLS code point); 0 when an earlier life of this process made it.
    pub group: u16,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
    /// The packet plane seals with it.
    pub is_active: bool,
    /// Bytes of UDP payload that the path carries, as far as it is known.
    pub datagram_len: Option<u16>,
    /// Echoes asked for and answered, of the last few.
    pub echoes: Echoes,
}

/// What became of the last echoes: a bit each, the newest lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echoes {
    answered: u32,
    asked: u32,
}

impl Echoes {
    /// One is asked for.
    pub fn ask(&mut self) {
        self.answered <<= 1;
        self.asked = (self.asked + 1).min(u32::BITS);
    }

    /// The last one is answered.
    pub fn answer(&mut self) {
        self.answered |= 1;
    }

    /// The share that was not answered, the one under way left out; `None` before the first.
    pub fn loss(&self) -> Option<f64> {
        let done = self.asked.checked_sub(1).filter(|done| *done > 0)?;
        let answered = (self.answered >> 1).count_ones().min(done);
        Some(f64::from(done - answered) / f64::from(done))
    }
}

/// Another member.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What its certificate said, when we last saw it.
    pub member: Option<Member>,
    /// The link that messages go by.
    pub link: Option<LinkId>,
    /// What the other end of that link can do, once it has said so.
    pub features: Option<u64>,
    /// The link on which it takes messages of applications.
    pub mail_link: Option<LinkId>,
    /// A link that is being dialled, and how many of the peer's endpoints were tried.
    pub dialling: Option<LinkId>,
    /// Where it is, as somebody told us who is no record: a token.
    pub told_endpoints: Vec<SocketAddr>,
    /// Where it may be as well, by the word of others or as a neighbour of ours: tried last.
    pub hearsay: Vec<SocketAddr>,
    /// When it was looked for in the DHT.
    pub sought: Option<Instant>,
    /// Which endpoint is tried next.
    pub next_endpoint: usize,
    /// The exchange that is under way.
    pub exchange: Option<ExchangeId>,
    /// The session.
    pub session: Option<Session>,
    /// The version of the messages that it said last, where that is not spoken here.
    pub unspoken: Option<u16>,
    /// Seconds by which its clock was ahead of ours when it last told it on the link that stands.
    pub clock_ahead_secs: Option<i64>,
    /// The last attempt met silence: nobody refused.
    pub is_silent: bool,
    /// When two packet planes of it were seen to run at once, last.
    pub seen_twice: Option<Instant>,
    /// Incarnations of its packet plane, the newest first, each with when it became that.
    lives: Vec<(Incarnation, Instant)>,
    /// Links that came to nothing, or did not last, and exchanges that failed, in a row each.
    link_failures: u32,
    failures: u32,
    /// Why the last attempt came to nothing.
    pub trouble: Option<String>,
}

impl Peer {
    /// A link is gone; `true` when it was the one for messages, or to become it.
    pub fn forget_link(&mut self, link: LinkId) -> bool {
        let (was_up, was_dialled) = (self.link == Some(link), self.dialling == Some(link));
        self.link = self.link.filter(|known| *known != link);
        self.features = self.features.filter(|_| !was_up);
        // Where no link is kept nothing would ever be said to the contrary.
        self.clock_ahead_secs = self.clock_ahead_secs.filter(|_| !was_up);
        self.dialling = self.dialling.filter(|known| *known != link);
        was_up || was_dialled
    }

    /// An exchange that began at `began` told this incarnation of its packet plane; `true` when that proves that there are two of it.
    ///
    /// A packet plane draws its incarnation when it starts, so after a restart the old one never comes back. When it does, in an exchange that
    /// began when the newer one was known already, both run: the same identity is in two places.
    pub fn saw(&mut self, incarnation: Incarnation, began: Instant, now: Instant) -> bool {
        let newest = self.lives.first().map(|(_, since)| *since);
        let known = self.lives.iter().position(|(known, _)| *known == incarnation);
        if known == Some(0) || known.is_some() && newest.is_some_and(|newest| began <= newest) {
            return false;
        }
        known.map(|at| self.lives.remove(at));
        self.lives.insert(0, (incarnation, now));
        self.lives.truncate(LIVES_MAX);
        self.seen_twice = known.map(|_| now).or(self.seen_twice);
        known.is_some()
    }

    /// What the difference between its clock and ours means. None is known before it has told the time.
    pub fn skew(&self) -> Skew {
        Skew::of(self.clock_ahead_secs.map_or(0, i64::unsigned_abs))
    }

    /// Somebody says where it is. `true` when that is news.
    pub fn heard_of(&mut self, endpoint: SocketAddr) -> bool {
        let is_known = self.told_endpoints.contains(&endpoint) || self.hearsay.contains(&endpoint);
        if !is_known {
            self.hearsay.insert(0, endpoint);
            self.hearsay.truncate(HEARSAY_MAX);
        }
        !is_known
    }

    /// Whether so many attempts in a row led to no link that lasted.
    pub const fn has_failed(&self, times: u32) -> bool {
        self.link_failures >= times
    }

    /// It is there.
    pub fn answered(&mut self) {
        self.is_silent = false;
        self.trouble = None;
    }

    /// An exchange with it worked.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.answered();
    }

    /// What came to nothing says nothing any more: it told where it is now, or this host is somewhere else.
    pub fn begins_anew(&mut self) {
        (self.link_failures, self.failures) = (0, 0);
    }

    /// An exchange did not; how long to wait before the next. `share` in 0..256 spreads those who fail together.
    pub fn failed(&mut self, why: &str, share: u8) -> Duration {
        self.trouble = Some(why.to_owned());
        wait_after(&mut self.failures, share)
    }

    /// The same of a link.
    pub fn link_failed(&mut self, why: &str, share: u8) -> Duration {
        self.trouble = Some(why.to_owned());
        wait_after(&mut self.link_failures, share)
    }
}

/// How long to wait after one more failure.
fn wait_after(failures: &mut u32, share: u8) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(1 << (*failures).min(10)).min(BACK_OFF_MAX);
    *failures = failures.saturating_add(1);
    doubled / 2 + doubled * u32::from(share) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_that_comes_back_after_another_is_a_second_place() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let told = |peer: &mut Peer, life: u64, began: u64| peer.saw(Incarnation(life), at(began), at(began + 1));
        // Restarts, and new keys with each life.
        let mut peer = Peer::default();
        let lives = [(1, 0), (1, 10), (2, 20), (2, 30), (3, 40), (4, 50), (5, 60)];
        assert!(lives.into_iter().all(|(life, began)| !told(&mut peer, life, began)));
        assert_eq!(peer.seen_twice, None);
        // An exchange from before the restart that ends after it proves nothing; one that begins when the other is known does.
        let mut peer = Peer::default();
        assert!(!told(&mut peer, 1, 0) && !told(&mut peer, 2, 10));
        assert!(!peer.saw(Incarnation(1), at(11), at(12)), "as old as the other");
        assert!(!peer.saw(Incarnation(2), at(9), at(13)));
        assert!(told(&mut peer, 1, 14));
        assert_eq!(peer.seen_twice, Some(at(15)));
        // Of so many places each is told apart, and no list grows.
        let mut peer = Peer::default();
        let round = |peer: &mut Peer, from: u64| (0..4).filter(|life| told(peer, *life, from + 10 * life)).count();
        assert_eq!((round(&mut peer, 0), round(&mut peer, 100)), (0, 4));
        assert!((0..100).all(|life| !told(&mut peer, 1000 + life, 1000 + life)));
        assert_eq!(peer.lives.len(), LIVES_MAX);
    }

    #[test]
    fn loss_is_the_share_of_echoes_that_nobody_answered() {
        let mut echoes = Echoes::default();
        assert_eq!(echoes.loss(), None);
        for answered in [true, false, true, true] {
            echoes.ask();
            if answered {
                echoes.answer();
            }
        }
        echoes.ask();
        assert_eq!(echoes.loss(), Some(0.25));
        (0..100).for_each(|_| echoes.ask());
        assert_eq!(echoes.loss(), Some(1.0));
    }

    #[test]
    fn waits_grow_to_their_end_and_begin_anew_after_a_success() {
        let mut peer = Peer::default();
        assert_eq!(peer.failed("no answer", 0), BACK_OFF_MIN / 2);
        assert!(peer.failed("no answer", 255) < 2 * BACK_OFF_MIN);
        let longest = (0..40).map(|_| peer.failed("no answer", 255)).max();
        assert!(longest.is_some_and(|wait| wait <= BACK_OFF_MAX && wait > BACK_OFF_MAX * 9 / 10));
        peer.succeeded();
        assert_eq!((peer.failed("again", 0), peer.trouble.as_deref()), (BACK_OFF_MIN / 2, Some("again")));
    }
}
