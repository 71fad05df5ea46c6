//! What we hold of one other member: a link for messages, a session for packets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::sessions::ExchangeId;
use crate::pki::verifier::Member;
use crate::quic::LinkId;

/// First wait after a failed dial; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
/// Longest wait between dials of a member that does not answer.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

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
    /// A link that is being dialled, and how many of the peer's endpoints were tried.
    pub dialling: Option<LinkId>,
    /// Where it is, as somebody told us who is no record: a token.
    pub told_endpoints: Vec<SocketAddr>,
    /// Which endpoint is tried next.
    pub next_endpoint: usize,
    /// The exchange that is under way.
    pub exchange: Option<ExchangeId>,
    /// The session.
    pub session: Option<Session>,
    /// The version of the messages that it said last, where that is not spoken here.
    pub unspoken: Option<u16>,
    /// The last attempt met silence: nobody refused.
    pub is_silent: bool,
    failures: u32,
    /// Why the last attempt came to nothing.
    pub trouble: Option<String>,
}

impl Peer {
    /// A link is gone; `true` when it was the one for messages, or to become it.
    pub fn forget_link(&mut self, link: LinkId) -> bool {
        let (was_up, was_dialled) = (self.link == Some(link), self.dialling == Some(link));
        self.link = self.link.filter(|known| *known != link);
        self.dialling = self.dialling.filter(|known| *known != link);
        was_up || was_dialled
    }

    /// Something worked.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.is_silent = false;
        self.trouble = None;
    }

    /// Something did not; how long to wait before the next attempt. `share` in 0..256 spreads those who fail together.
    pub fn failed(&mut self, why: &str, share: u8) -> Duration {
        let doubled = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(10)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(why.to_owned());
        doubled / 2 + doubled * u32::from(share) / 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
