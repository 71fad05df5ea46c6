//! The longest datagram of a path, found by asking with probes: RFC 8899 (DPLPMTUD) as a state machine.
//!
//! ```text
//!                        base answered                       nothing left to try
//!      ┌──────┐ ───────────────────────▶ ┌────────┐ ───────────────────────────▶ ┌─────────────────┐
//!  ──▶ │ BASE │                          │ SEARCH │                              │ SEARCH_COMPLETE │
//!      └──────┘                     ┌──▶ └────────┘ ◀─────────────────────────── └─────────────────┘
//!       ▲    │ base lost            │                      raise timer               │
//!       │    ▼                      │                                                │
//!       │  ┌───────┐ minimum answered                                                │
//!       │  │ ERROR │ ───────────────┘                                                │
//!       │  └───────┘                                                                 │
//!       └──── black hole: the size in force is lost, at rest or during a search ─────┘
//!
//!  "lost": MAX_PROBES probes of the size in a row were not answered
//!
//!        low: answered                    candidate                    high: lost
//!  ───────┼───────────────────────────────────┼───────────────────────────┼───▶ bytes       SEARCH
//!         └ in force                          └ answered: the new low; lost: the new high
//! ```
//!
//! A lost probe means nothing but that: no data was in it, so nothing is sent again and nothing slows down. Probes go out only while the
//! session carries traffic; a path that nobody uses is not asked.
//!
//! It knows no socket, no keys and no clock: the time and what has happened come in, probes to be sent come out. All lengths are bytes of
//! UDP payload.

use std::time::Duration;

use super::bundle::DATAGRAM_LEN_MIN;
use super::time::Time;

// From RFC 8899.

/// Probes of one size that must be lost before the size counts as lost (§5.1.2, MAX_PROBES).
pub const MAX_PROBES: usize = 3;
/// UDP payload that nearly every path carries (§5.1.2, BASE_PLPMTU: 1200 bytes, as QUIC counts on it).
pub const BASE_LEN: u16 = 1200;
/// Longest time between two searches for more (§5.1.1, PMTU_RAISE_TIMER).
pub const RAISE_INTERVAL_MAX: Duration = Duration::from_secs(600);

// Our own choices.

/// How long the answer to a probe is awaited while no round trip is known. §5.1.1 asks for a second at least where there is no estimate.
pub const PROBE_TIMER_UNKNOWN: Duration = Duration::from_secs(1);
/// Shortest wait for an answer once the round trip is known: what a busy peer or a full queue may add to a short path.
pub const PROBE_TIMER_MIN: Duration = Duration::from_millis(200);
/// Longest wait for one answer. It bounds how long a black hole lasts behind a full queue; the answer to an earlier probe counts as well.
pub const PROBE_TIMER_MAX: Duration = Duration::from_secs(4);
/// Round trips that an answer is awaited. Each further probe of a size waits twice as long as the one before.
pub const PROBE_TIMER_ROUND_TRIPS: u32 = 2;
/// Time to the first search for more. It doubles with every search in vain, up to [`RAISE_INTERVAL_MAX`]: three probes may be lost by
/// chance, and a search that was spoilt so should not cost ten minutes.
pub const RAISE_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// How often it is considered whether the size in force needs to be confirmed, and the pause between two confirmations.
pub const CONFIRMATION_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time for which long datagrams are sent without a confirmation, while packets of the peer still arrive (§5.1.1,
/// CONFIRMATION_TIMER). A black hole is found within this and the wait for twice [`MAX_PROBES`] answers.
pub const CONFIRMATION_INTERVAL_MAX: Duration = Duration::from_secs(8);
/// How long a session counts as used after its last packet.
pub const ACTIVE_FOR: Duration = Duration::from_secs(2);
/// Pause between rounds of probes of a path that does not even answer the shortest ones.
pub const ERROR_INTERVAL: Duration = Duration::from_secs(4);
/// A search ends when no likely size is left and what can still be gained is at most one in this many of the bytes.
const WORTH_ONE_IN: u16 = 64;
/// IP packets that paths are likely to carry whole: the IPv6 minimum, tunnels, clouds, PPPoE, Ethernet, jumbo frames. Ascending.
const LIKELY_MTU: [u16; 14] =
    [1280, 1400, 1420, 1440, 1450, 1460, 1472, 1480, 1492, ETHERNET_MTU, 4470, 8900, 9000, 9001];
/// The likeliest of them: it is tried as soon as the ceiling has failed.
const ETHERNET_MTU: u16 = 1500;

/// Where the machine is; see the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Finds out whether the path carries the base.
    Base,
    /// Looks for more.
    Search,
    /// Knows what the path carries, confirms it while it is used, and looks for more now and then.
    SearchComplete,
    /// The base is lost: either the path is narrower still, or there is no path at the moment.
    Error,
}

/// What has happened on the path since the last [`PathMtu::poll`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets were sent.
    pub sent: bool,
    /// Some of them in datagrams that a narrower path would lose.
    pub sent_long: bool,
    /// The peer's packets arrived.
    pub heard: bool,
}

/// A datagram to be sent for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What the answer must bring back; never used before.
    pub token: u64,
    /// Its UDP payload, exactly.
    pub len: u16,
}

/// The state machine of one path.
///
/// Call [`Self::poll`] at [`Self::next_deadline`] and after each [`Self::on_answer`], and send what it returns.
#[derive(Clone, Debug)]
pub struct PathMtu {
    state: State,
    base: u16,
    ceiling: u16,
    /// Bytes of IP and UDP headers before the payload.
    overhead: u16,
    /// The size in force. In a search it is `low` as well.
    len: u16,
    /// What the last complete search has found.
    settled: Option<u16>,
    /// The shortest size known to be lost; above the ceiling when there is none.
    high: u16,
    /// The size that is asked for.
    candidate: u16,
    /// Tokens of the probes of the candidate, the first `tries` of them.
    tokens: [u64; MAX_PROBES],
    tries: usize,
    /// When there is something to do.
    deadline: Time,
    /// Nothing is to be done until there is traffic.
    dormant: bool,
    round_trip: Option<Duration>,
    used_at: Time,
    confirmed_at: Time,
    raise_at: Time,
    raise_interval: Duration,
    sent_long: bool,
    heard: bool,
}

impl PathMtu {
    /// A machine for a path that nothing is known of. `ceiling` is the longest payload that may be tried, taken as at least
    /// [`DATAGRAM_LEN_MIN`]; `overhead` is what IP and UDP add to a payload.
    pub fn new(ceiling: u16, overhead: u16) -> Self {
        // One below the largest number, so that there is a size above the ceiling.
        let ceiling = ceiling.clamp(DATAGRAM_LEN_MIN, u16::MAX - 1);
        let base = BASE_LEN.min(ceiling);
        Self {
            state: State::Base,
            base,
            ceiling,
            overhead,
            len: base,
            settled: None,
            high: ceiling + 1,
            candidate: base,
            tokens: [0; MAX_PROBES],
            tries: 0,
            deadline: Time::ZERO,
            dormant: true,
            round_trip: None,
            used_at: Time::ZERO,
            confirmed_at: Time::ZERO,
            raise_at: Time::ZERO,
            raise_interval: RAISE_INTERVAL_MIN,
            sent_long: false,
            heard: false,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The longest datagram that may be sent now.
    pub fn datagram_len(&self) -> u16 {
        self.len
    }

    /// What the last complete search has found; `None` before the first one. Unlike [`Self::datagram_len`] it does not fall while a search
    /// is under way.
    pub fn settled(&self) -> Option<u16> {
        self.settled
    }

    /// When [`Self::poll`] has something to do; `None` until [`Self::resume`].
    pub fn next_deadline(&self) -> Option<Time> {
        (!self.dormant).then_some(self.deadline)
    }

    /// There is traffic again after the machine had nothing to do, or for the first time. `len` is the size in force by now: another
    /// machine may have looked after the path meanwhile.
    pub fn resume(&mut self, len: u16, now: Time) {
        self.dormant = false;
        self.used_at = now;
        if len != self.len {
            self.len = len.clamp(DATAGRAM_LEN_MIN, self.ceiling);
            // What this one had found is older than what is in force.
            self.settled = None;
            self.search(now);
        }
        let pause = if self.is_at_rest() { CONFIRMATION_INTERVAL_MIN } else { Duration::ZERO };
        self.deadline = self.deadline.max(now.plus(pause));
    }

    /// Whether nothing is asked for at the moment.
    fn is_at_rest(&self) -> bool {
        self.state == State::SearchComplete && self.tries == 0
    }

    /// An authenticated answer came. `false` when it answers no probe that is waited for: it was late, or never asked for.
    pub fn on_answer(&mut self, token: u64, now: Time) -> bool {
        if !self.tokens[..self.tries].contains(&token) {
            return false;
        }
        let sample = now.since(Time::from_nanos(token));
        // Up at once, down slowly: a wait that is too short costs a size, one that is too long costs a moment.
        self.round_trip = Some(self.round_trip.map_or(sample, |known| sample.max((known * 7 + sample) / 8)));
        self.tries = 0;
        self.deadline = now;
        self.confirmed_at = now;
        match self.state {
            State::SearchComplete => {
                self.sent_long = false;
                self.deadline = now.plus(CONFIRMATION_INTERVAL_MIN);
            }
            State::Base | State::Error => {
                self.len = self.candidate;
                self.search(now);
            }
            State::Search => {
                // Or the size in force was confirmed in between, and is the same.
                self.len = self.candidate;
                self.next_candidate(now);
            }
        }
        true
    }

    /// The probe that [`Self::poll`] returned last found no room in a queue of ours, which says nothing of the path: it does not count, and
    /// the size is asked for again soon.
    pub fn on_unsent(&mut self, now: Time) {
        self.tries = self.tries.saturating_sub(1);
        self.deadline = now.plus(PROBE_TIMER_MIN);
    }

    /// Does what is due at `now`. Returns the probe to be sent, alone and unfragmented; one that the kernel refuses is as good as lost.
    pub fn poll(&mut self, now: Time, traffic: Traffic) -> Option<Probe> {
        if traffic.sent {
            self.used_at = now;
        }
        self.sent_long |= traffic.sent_long;
        self.heard |= traffic.heard;
        if self.dormant || now < self.deadline {
            return None;
        }
        if self.tries == MAX_PROBES {
            self.on_lost(now);
            if now < self.deadline {
                return None;
            }
        }
        if now.since(self.used_at) >= ACTIVE_FOR {
            self.dormant = true;
            return None;
        }
        if self.is_at_rest() && !self.leave_rest(now) {
            return None;
        }
        Some(self.probe(now))
    }

    /// Decides at rest whether the size in force must be confirmed, or more be looked for.
    fn leave_rest(&mut self, now: Time) -> bool {
        let silent = !std::mem::take(&mut self.heard);
        if self.len < self.ceiling && now >= self.raise_at {
            self.search(now);
            return !self.is_at_rest();
        }
        // A peer that is silent while it is sent long datagrams may not get them.
        if self.sent_long && (silent || now.since(self.confirmed_at) >= CONFIRMATION_INTERVAL_MAX) {
            self.candidate = self.len;
            return true;
        }
        self.deadline = now.plus(CONFIRMATION_INTERVAL_MIN);
        false
    }

    fn probe(&mut self, now: Time) -> Probe {
        let last = self.tokens.iter().copied().max().unwrap_or(0);
        let token = now.as_nanos().max(last + 1);
        let wait = self
            .round_trip
            .map_or(PROBE_TIMER_UNKNOWN, |known| known.saturating_mul(PROBE_TIMER_ROUND_TRIPS).max(PROBE_TIMER_MIN));
        self.deadline = now.plus(wait.saturating_mul(1 << self.tries).min(PROBE_TIMER_MAX));
        self.tokens[self.tries] = token;
        self.tries += 1;
        Probe { token, len: self.candidate }
    }

    /// The candidate is lost.
    fn on_lost(&mut self, now: Time) {
        self.tries = 0;
        match self.state {
            State::Search if self.candidate > self.len => {
                self.high = self.candidate;
                // A search in vain takes long, and the size in force may be lost meanwhile.
                if now.since(self.confirmed_at) >= CONFIRMATION_INTERVAL_MAX {
                    self.candidate = self.len;
                } else {
                    self.next_candidate(now);
                }
            }
            State::Search | State::SearchComplete => {
                self.state = State::Base;
                self.len = self.len.min(self.base);
                self.candidate = self.base;
                self.raise_interval = RAISE_INTERVAL_MIN;
            }
            State::Base => {
                self.state = State::Error;
                self.len = DATAGRAM_LEN_MIN;
                self.candidate = DATAGRAM_LEN_MIN;
            }
            State::Error => self.deadline = now.plus(ERROR_INTERVAL),
        }
    }

    /// Begins a search above the size in force.
    fn search(&mut self, now: Time) {
        self.state = State::Search;
        self.tries = 0;
        self.high = self.ceiling + 1;
        self.deadline = now;
        self.next_candidate(now);
    }

    /// Goes on to the next size, or ends the search.
    fn next_candidate(&mut self, now: Time) {
        if let Some(candidate) = self.between() {
            self.candidate = candidate;
            return;
        }
        self.state = State::SearchComplete;
        let grown = self.settled.is_none_or(|before| before != self.len);
        self.raise_interval =
            if grown { RAISE_INTERVAL_MIN } else { (self.raise_interval * 2).min(RAISE_INTERVAL_MAX) };
        self.settled = Some(self.len);
        self.confirmed_at = now;
        self.raise_at = now.plus(self.raise_interval);
        self.deadline = now.plus(CONFIRMATION_INTERVAL_MIN);
    }

    /// The size to ask for next, above the one in force and below what is lost.
    fn between(&self) -> Option<u16> {
        let (low, high) = (self.len, self.high);
        if low < self.base && self.base < high {
            return Some(self.base);
        }
        if high > self.ceiling {
            // What was installed is mostly right, and then one answer ends the search.
            return (low < self.ceiling).then_some(self.ceiling);
        }
        let likely = LIKELY_MTU.map(|mtu| mtu - self.overhead);
        let from = likely.partition_point(|&len| len <= low);
        let to = likely.partition_point(|&len| len < high);
        let ethernet = ETHERNET_MTU - self.overhead;
        match &likely[from..to.max(from)] {
            [] => (high - low > low / WORTH_ONE_IN).then_some(low + (high - low) / 2),
            inside if inside.contains(&ethernet) => Some(ethernet),
            inside => Some(inside[inside.len() / 2]),
        }
    }
}

#[cfg(test)]
mod tests;
