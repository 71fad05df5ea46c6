//! Whether others reach this node: who keeps records for others must be reached by strangers, and only strangers can tell.
//!
//! ```text
//!  this node                                     a member with a contact session
//!     ══ Ask: a nonce, and where we believe to be ══▶
//!     ◀═════════ Probe: the nonce, from a port of its own, to that address ════  comes through: it is a witness
//! ```
//!
//! A firewall or NAT with a memory lets in what comes from where something was sent to (RFC 4787 §5: filtering that depends on address and port), so
//! the answer comes from a port that nothing was ever sent to. Three witnesses that are unrelated are wanted, or all there are in a network of
//! fewer, and each counts for two hours. Behind a NAT that filters by address alone a node may take itself for reachable by all: then others give
//! it up after two failures.
//!
//! Nobody is made to send to somebody else: a probe goes only to the address that the session was agreed with, at any port, or to one that the
//! member's own record names; it is not longer than the question, and comes once in four seconds for each member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Node, Output, Timer};
use crate::codec;
use crate::contact::Opened;
use crate::dht::Mode;
use crate::dht::place::Prefix;
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;

/// Witnesses that are wanted.
pub const WITNESSES: usize = 3;
/// How many are asked at a time. Ours: one of two may be unable to send that way.
const ASKED_MAX: usize = 2 * WITNESSES;
/// Prefixes below which there is no telling who is related.
const PREFIXES_MIN: usize = 4;
/// How long a witness counts. Ours: an address that is lost shows by failures of links long before.
const TRUSTED_FOR: Duration = Duration::from_secs(2 * 3600);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// First and longest wait before others are asked, after too few have answered.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(600)];
/// From a new session to the first question by it: the other end, which hears of it by a link, must know it by then.
const FIRST_ASK: Duration = Duration::from_millis(200);
/// Rounds without witnesses enough after which a server is one no more: a network that grows wants more of them before they were asked.
const FAILURES_MAX: u32 = 3;
/// Between two probes for one member, and members that are remembered for it.
const PROBE_GAP: Duration = Duration::from_secs(4);
const PROBED_MAX: usize = 256;
/// Longest text of this kind.
const TEXT_LEN_MAX: usize = 64;
/// The first byte of these texts; those of the DHT begin with 0 and 1.
pub const FIRST_BYTE: u8 = 2;

/// What is said by a contact session, after [`FIRST_BYTE`].
///
/// ```text
///  02 │ 00 │ nonce, 8 bytes │ address    Ask
///  02 │ 01 │ nonce, 8 bytes              Probe
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Send me this, from a port of your own.
    Ask {
        /// Drawn by the one who asks.
        nonce: [u8; 8],
        /// Where it believes to be.
        address: SocketAddr,
    },
    /// Here it is.
    Probe {
        /// As it was asked.
        nonce: [u8; 8],
    },
}

impl Message {
    /// As the text of a datagram.
    pub fn encode(&self) -> Vec<u8> {
        [&[FIRST_BYTE][..], &codec::encode(self)].concat()
    }

    /// Reads one from a text that begins with [`FIRST_BYTE`].
    ///
    /// # Errors
    /// [`codec::DecodeError`].
    pub fn decode(text: &[u8]) -> Result<Self, codec::DecodeError> {
        codec::decode(text.get(1..).unwrap_or_default(), TEXT_LEN_MAX)
    }
}

/// Whether a member that asks from `agreed` and says `record` of itself may have a datagram sent to this address: to no other host's.
fn is_its_own(address: SocketAddr, agreed: SocketAddr, record: &[SocketAddr]) -> bool {
    address.port() != 0 && (address.ip() == agreed.ip() || record.contains(&address))
}

/// Somebody who has reached us.
#[derive(Clone, Copy, Debug)]
struct Witness {
    at: SocketAddr,
    since: Instant,
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Reach {
    asked: BTreeMap<NodeId, ([u8; 8], Instant)>,
    witnesses: BTreeMap<NodeId, Witness>,
    /// How often in a row somebody who was asked has not answered.
    failures: u32,
    /// For whom we sent a probe, and when.
    probed: BTreeMap<NodeId, Instant>,
}

impl Reach {
    /// Witnesses that are not related: of one public prefix one counts, where there are enough of them to tell.
    fn unrelated(&self) -> usize {
        let prefixes = self.witnesses.values().filter_map(|witness| Prefix::of(witness.at.ip()));
        let prefixes: std::collections::BTreeSet<Prefix> = prefixes.collect();
        if prefixes.len() < PREFIXES_MIN {
            return self.witnesses.len();
        }
        let private = self.witnesses.values().filter(|witness| Prefix::of(witness.at.ip()).is_none());
        prefixes.len() + private.count()
    }

    /// When the oldest of the newest `wanted` witnesses was one: those before it may go.
    fn oldest_of(&self, wanted: usize) -> Option<Instant> {
        let mut since: Vec<Instant> = self.witnesses.values().map(|witness| witness.since).collect();
        since.sort_unstable_by_key(|since| std::cmp::Reverse(*since));
        since.get(wanted.checked_sub(1)?).copied()
    }

    /// A member was cut off.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.remove(&node);
        self.witnesses.remove(&node);
        self.probed.remove(&node);
    }

    /// Whether a probe is to be sent for a member now.
    fn may_probe(&mut self, node: NodeId, now: Instant) -> bool {
        self.probed.retain(|_, at| now.saturating_duration_since(*at) < PROBE_GAP);
        let may = self.probed.len() < PROBED_MAX && !self.probed.contains_key(&node);
        if may {
            self.probed.insert(node, now);
        }
        may
    }
}

impl<R: Random> Node<R> {
    /// Whether it is for others to say what part we have in the DHT.
    fn is_to_be_witnessed(&self) -> bool {
        self.settings.discovery == Some(super::Part::Auto) && self.discovery.is_some()
    }

    /// How many witnesses are wanted: as many as there are others, in a small network.
    pub(super) fn witnesses_wanted(&self) -> usize {
        WITNESSES.min(self.directory.len().saturating_sub(1)).max(1)
    }

    /// How many there are.
    pub(super) fn witnesses(&self) -> usize {
        self.reach.unrelated()
    }

    /// A contact session is there: its other end can be asked.
    pub(super) fn reach_met(&mut self, now: Now) {
        if self.is_to_be_witnessed() && self.reach.asked.len() < ASKED_MAX && self.witnesses() < self.witnesses_wanted()
        {
            self.timers.set_at_latest(Timer::Reach, now.mono + FIRST_ASK);
        }
    }

    /// Our addresses are others now: what was seen says nothing any more.
    pub(super) fn reach_anew(&mut self, now: Now) {
        (self.reach.asked, self.reach.witnesses, self.reach.failures) = (BTreeMap::new(), BTreeMap::new(), 0);
        if self.is_to_be_witnessed() {
            self.judge_reach(now);
            self.timers.set(Timer::Reach, now.mono);
        }
    }

    /// Witnesses grow old, and who was asked may have been unable to answer.
    pub(super) fn reach_due(&mut self, now: Now) {
        if !self.is_to_be_witnessed() {
            return;
        }
        let asked = self.reach.asked.len();
        self.reach.asked.retain(|_, (_, at)| now.mono.saturating_duration_since(*at) < PATIENCE);
        self.reach.failures += u32::from(self.reach.asked.len() < asked);
        self.reach.witnesses.retain(|_, witness| now.mono.saturating_duration_since(witness.since) < TRUSTED_FOR);
        self.judge_reach(now);
        let is_enough = self.witnesses() >= self.witnesses_wanted();
        let oldest = self.reach.oldest_of(self.witnesses_wanted());
        let wait = match (is_enough, oldest) {
            // Others are asked in time before the first of these counts no more.
            (true, Some(oldest)) => (oldest + TRUSTED_FOR / 2).saturating_duration_since(now.mono),
            (true | false, _) => ASK_AGAIN[0].saturating_mul(1 << self.reach.failures.min(10)).min(ASK_AGAIN[1]),
        };
        if wait.is_zero() || !is_enough {
            self.ask_witnesses(now);
        }
        self.timers.set(Timer::Reach, now.mono + wait.max(PATIENCE));
    }

    fn ask_witnesses(&mut self, now: Now) {
        let own = self.own_endpoints();
        if own.is_empty() {
            return;
        }
        let old = |witness: &Witness| now.mono.saturating_duration_since(witness.since) >= TRUSTED_FOR / 2;
        let is_fresh = |node: &NodeId| self.reach.witnesses.get(node).is_some_and(|witness| !old(witness));
        let able =
            self.contacts.members(now.mono).filter(|node| !self.reach.asked.contains_key(node) && !is_fresh(node));
        let mut able: Vec<NodeId> = able.collect();
        let count = ASKED_MAX.saturating_sub(self.reach.asked.len()).min(able.len());
        crate::random::draw(&mut able, count, &mut self.random);
        for node in able {
            let nonce = self.random.array();
            // One of them may be of a family that others lack, or lead nowhere.
            let address = own[(self.random.u64() % own.len() as u64) as usize];
            let text = Message::Ask { nonce, address }.encode();
            if let Some((remote, datagram)) = self.contacts.seal(node, &text, now.mono) {
                self.reach.asked.insert(node, (nonce, now.mono));
                self.outputs.push_back(Output::Datagram(remote, datagram));
            }
        }
    }

    /// A member said something of this kind; its datagram came from `from`.
    pub(super) fn reach_said(&mut self, opened: &Opened, from: SocketAddr, now: Now) {
        match Message::decode(&opened.plaintext) {
            Ok(Message::Ask { nonce, address }) => self.probe(opened, nonce, address, now),
            Ok(Message::Probe { nonce }) => self.was_probed(opened, nonce, from, now),
            Err(_) => self.counters.count("reach_malformed"),
        }
    }

    fn probe(&mut self, opened: &Opened, nonce: [u8; 8], address: SocketAddr, now: Now) {
        let node = opened.node;
        let record = self.directory.entry(node).map(|entry| entry.record.endpoints.as_slice()).unwrap_or_default();
        if !is_its_own(address, opened.remote, record) {
            return self.counters.count("reach_elsewhere");
        }
        if self.revocations.is_node_revoked(node) || !self.reach.may_probe(node, now.mono) {
            return self.counters.count("reach_limited");
        }
        if let Some((_, datagram)) = self.contacts.seal(node, &Message::Probe { nonce }.encode(), now.mono) {
            self.counters.count("reach_probed");
            self.outputs.push_back(Output::Probe(address, datagram));
        }
    }

    fn was_probed(&mut self, opened: &Opened, nonce: [u8; 8], from: SocketAddr, now: Now) {
        let node = opened.node;
        if self.reach.asked.get(&node).is_none_or(|(asked, _)| *asked != nonce) {
            return self.counters.count("reach_unasked");
        }
        self.reach.asked.remove(&node);
        if from == opened.remote {
            // From where everything else of it comes, which shows nothing.
            return self.counters.count("reach_same_port");
        }
        self.reach.witnesses.insert(node, Witness { at: opened.remote, since: now.mono });
        self.judge_reach(now);
    }

    /// Has the part in the DHT that is due to us.
    fn judge_reach(&mut self, now: Now) {
        let witnesses = self.witnesses();
        if witnesses >= self.witnesses_wanted() {
            self.reach.failures = 0;
            if self.take_part(Mode::Server, now) {
                tracing::info!(witnesses, "others reach this node, so it keeps records for them");
            }
        } else if (witnesses == 0 || self.reach.failures >= FAILURES_MAX) && self.take_part(Mode::Client, now) {
            tracing::info!(witnesses, "too few others reach this node: it keeps no records");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn texts_have_these_bytes_and_a_probe_is_no_longer_than_its_question() {
        let ask = Message::Ask { nonce: [7; 8], address: "192.0.2.1:4646".parse().unwrap() };
        let probe = Message::Probe { nonce: [7; 8] };
        assert_eq!(probe.encode(), [&[2, 1][..], &[7; 8]].concat());
        assert!(ask.encode().starts_with(&[2, 0, 7]) && ask.encode().len() > probe.encode().len());
        for message in [ask, probe] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        assert!(Message::decode(&[2]).is_err() && Message::decode(&[2; 99]).is_err());
    }

    #[test]
    fn nobody_has_a_probe_sent_to_another_host() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (agreed, record) = (at("192.0.2.1:4646"), [at("198.51.100.1:4646")]);
        let of = |text: &str| is_its_own(at(text), agreed, &record);
        assert!(of("192.0.2.1:4646") && of("192.0.2.1:9") && of("198.51.100.1:4646"));
        assert!(!(of("192.0.2.1:0") || of("198.51.100.1:53") || of("203.0.113.1:4646")));
    }

    #[test]
    fn of_one_prefix_one_counts_where_there_are_enough_to_tell() {
        let mut reach = Reach::default();
        let add = |reach: &mut Reach, number: u8, at: String| {
            let witness = Witness { at: at.parse().unwrap(), since: Instant::now() };
            reach.witnesses.insert(node(number), witness);
        };
        (0..3).for_each(|number| add(&mut reach, number, format!("198.51.100.{number}:1")));
        assert_eq!(reach.unrelated(), 3, "a fleet in one /24");
        (3..6).for_each(|number| add(&mut reach, number, format!("203.0.{number}.1:1")));
        assert_eq!(reach.unrelated(), 4);
        add(&mut reach, 9, "10.0.0.1:1".to_owned());
        assert_eq!(reach.unrelated(), 5);
    }

    #[test]
    fn one_member_has_a_probe_in_four_seconds_and_so_many_have_one() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert!(reach.may_probe(node(1), now) && !reach.may_probe(node(1), now));
        assert!(
            !reach.may_probe(node(1), now + PROBE_GAP - Duration::from_nanos(1))
                && reach.may_probe(node(1), now + PROBE_GAP)
        );
        let mut many = Reach::default();
        let number = |at: usize| NodeId([at.to_be_bytes(); 4].concat().try_into().unwrap());
        assert_eq!((0..2 * PROBED_MAX).filter(|at| many.may_probe(number(*at), now)).count(), PROBED_MAX);
    }
}
