//! This host: its addresses change, and it sleeps and wakes.
//!
//! What stands may be of no use then, and nothing says so: a link whose local address went is silent until its idle time is over. So each
//! link is asked for a sign of life, and who gives none soon is dialled anew; whoever could not be reached is tried at once. On a host whose
//! interfaces come and go all the time, as those of containers do, that is not done with each of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::link::Code;
use super::message::Message;
use super::{Links, Node, Timer};
use crate::pki::id::NodeId;
use crate::quic::LinkId;
use crate::random::Random;
use crate::time::Now;

/// How long a link may take to give a sign of life: some probe timeouts of the longest paths (RFC 9002 §6.2), and a fifteenth of its idle time.
const SIGN_PATIENCE: Duration = Duration::from_secs(2);
/// Rounds in which all that are missing are dialled, one after the other: an interface that comes up brings several changes.
const ROUNDS_MAX: u32 = 4;
/// Time between two rounds when there are more: a quarter of the longest wait between two dials of one that does not answer.
const ROUND_INTERVAL: Duration = Duration::from_secs(15);

/// When whoever is missing may be dialled out of turn (GCRA, ITU-T I.371).
#[derive(Debug, Default)]
pub(super) struct Rounds {
    arrival: Option<Instant>,
}

impl Rounds {
    /// Takes a round, or says when there is one.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let next = self.arrival.map_or(now, |arrival| arrival.max(now));
        let early = (next - now).saturating_sub(ROUND_INTERVAL * (ROUNDS_MAX - 1));
        if !early.is_zero() {
            return Err(now + early);
        }
        self.arrival = Some(next + ROUND_INTERVAL);
        Ok(())
    }
}

impl<R: Random> Node<R> {
    /// Addresses or interfaces of this host came or went. `endpoints` is where others may reach us now, `local` where those may who are near.
    pub fn handle_host_changed(
        &mut self,
        endpoints: Vec<SocketAddr>,
        local: Vec<SocketAddr>,
        links: &mut dyn Links,
        now: Now,
    ) {
        self.counters.count("host_changed");
        self.settings.local_endpoints = local;
        if self.settings.endpoints != endpoints {
            self.settings.endpoints = endpoints;
            self.peers.values_mut().for_each(super::Peer::begins_anew);
            self.renew_record(now);
            self.reach_anew(now);
        }
        self.ask_for_signs(links, now);
        self.reach_out(now);
        self.settle(links);
    }

    /// This host has slept: others have given us up meanwhile, and certificates may have ended.
    pub fn handle_resumed(&mut self, links: &mut dyn Links, now: Now) {
        self.counters.count("resumed");
        self.timers.set(Timer::Upkeep, now.mono);
        self.ask_for_signs(links, now);
        self.dial_missing_anew(now);
        self.settle(links);
    }

    /// Asks all that stands for a sign of life.
    fn ask_for_signs(&mut self, links: &mut dyn Links, now: Now) {
        let standing: Vec<LinkId> = self.peers.values().filter_map(|peer| peer.link).collect();
        for link in standing {
            // One that was asked before and is silent since is not given more time for that.
            self.timers.set_at_latest(Timer::Sign(link), now.mono + SIGN_PATIENCE);
            self.say(link, &Message::Ping(0), links);
        }
    }

    /// Dials whoever is missing, now or as soon as it may be.
    pub(super) fn reach_out(&mut self, now: Now) {
        match self.rounds.take(now.mono) {
            Ok(()) => self.dial_missing(now),
            Err(soonest) => self.timers.set_at_latest(Timer::ReachOut, soonest),
        }
    }

    /// Dials whoever is missing at once, with waits that begin anew: what failed before says nothing any more.
    pub(super) fn dial_missing_anew(&mut self, now: Now) {
        self.peers.values_mut().for_each(super::Peer::begins_anew);
        self.dial_missing(now);
    }

    fn dial_missing(&mut self, now: Now) {
        let missing = self.peers.iter().filter(|(_, peer)| peer.link.is_none() && peer.dialling.is_none());
        let missing: Vec<NodeId> = missing.map(|(node, _)| *node).collect();
        for node in missing {
            self.timers.set(Timer::Connect(node), now.mono);
        }
        self.candidates.hurry(now.mono);
        self.schedule_knocks();
    }

    /// A link has given a sign of life.
    pub(super) fn gave_sign(&mut self, link: LinkId) {
        self.timers.cancel(Timer::Sign(link));
    }

    /// It has given none: another one takes its place.
    pub(super) fn gave_no_sign(&mut self, link: LinkId, links: &mut dyn Links, now: Now) {
        if self.links.contains_key(&link) {
            self.counters.count("link_gave_no_sign");
            self.fell_silent(link);
            self.fail_link(link, Code::Failed, "no sign of life after this host changed or slept", links, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_rounds_come_at_once_and_then_one_in_so_much_time() {
        let (mut rounds, start) = (Rounds::default(), Instant::now());
        let first: Vec<_> = (0..ROUNDS_MAX).map(|_| rounds.take(start)).collect();
        assert!(first.iter().all(Result::is_ok), "{first:?}");
        let next = start + ROUND_INTERVAL;
        assert_eq!(rounds.take(start), Err(next));
        assert_eq!(rounds.take(next - Duration::from_millis(1)), Err(next));
        assert_eq!((rounds.take(next), rounds.take(next)), (Ok(()), Err(next + ROUND_INTERVAL)));
        let later = next + 100 * ROUND_INTERVAL;
        assert_eq!((0..2 * ROUNDS_MAX).filter(|_| rounds.take(later).is_ok()).count(), ROUNDS_MAX as usize);
    }
}
