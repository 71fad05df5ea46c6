//! Peers that move: what the control plane asks about addresses, and the move when it has decided.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::check::check_endpoint;
use super::{Effect, Random, State, limit};
use crate::api::message::{Event, Refusal, SessionId};
use crate::api::{PROBE_LIFETIME_MS, PROBES_MAX};
use crate::engine::Command;
use crate::engine::session::{CHALLENGES_MAX, Challenges};
use crate::engine::time::Time;

const PROBE_LIFETIME: Duration = Duration::from_millis(PROBE_LIFETIME_MS);

// Every probe finds a place among the challenges.
const _: () = assert!(PROBES_MAX <= CHALLENGES_MAX);

/// The probes of one session within their lifetime, answered ones as well: they are what limits the rate.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// What workers know of them.
    pub(super) challenges: Challenges,
    sent: Vec<Sent>,
}

#[derive(Debug)]
struct Sent {
    endpoint: SocketAddr,
    token: u64,
    /// The token on the wire: no peer can know it but by getting it.
    challenge: u64,
    at: Time,
}

impl Probes {
    /// Notes one more.
    fn add(&mut self, endpoint: SocketAddr, token: u64, challenge: u64, now: Time) -> Result<(), Refusal> {
        let (challenges, is_over) = (&self.challenges, |sent: &Sent| now.since(sent.at) >= PROBE_LIFETIME);
        for over in self.sent.extract_if(.., |sent| is_over(sent)) {
            challenges.answer(over.challenge);
        }
        if self.sent.len() >= PROBES_MAX || !self.challenges.expect(challenge) {
            return Err(limit("probes of one session within four seconds", PROBES_MAX));
        }
        self.sent.push(Sent { endpoint, token, challenge, at: now });
        Ok(())
    }

    /// The notice of an answer, if it came from where the question went.
    pub(super) fn answered(&self, session: SessionId, from: SocketAddr, challenge: u64, at: Time) -> Option<Event> {
        let sent = self.sent.iter().find(|sent| sent.challenge == challenge && sent.endpoint == from)?;
        let (endpoint, token, rtt_ns) = (sent.endpoint, sent.token, at.since(sent.at).as_nanos() as u64);
        Some(Event::Probed { session, endpoint, token, rtt_ns })
    }
}

impl<R: Random> State<R> {
    /// Carries [`Request::Probe`](crate::api::Request::Probe) out.
    pub(super) fn probe(
        &mut self,
        session: SessionId,
        endpoint: SocketAddr,
        token: u64,
        now: Time,
    ) -> Result<(), Refusal> {
        check_endpoint(endpoint)?;
        let challenge = self.random.u64().max(1);
        let entry = self.sessions.get_mut(&session).filter(|entry| entry.installed.is_some());
        let entry = entry.ok_or(Refusal::NoSession(session.0))?;
        entry.probes.add(endpoint, token, challenge, now)?;
        let command = Command::Challenge { slot: entry.slot, to: endpoint, token: challenge };
        self.effects.push_back(Effect::Worker(0, command));
        Ok(())
    }

    /// Carries [`Request::Move`](crate::api::Request::Move) out.
    pub(super) fn relocate(&mut self, session: SessionId, endpoint: SocketAddr) -> Result<(), Refusal> {
        check_endpoint(endpoint)?;
        let entry = self.sessions.get_mut(&session).filter(|entry| entry.has_keys());
        let entry = entry.ok_or(Refusal::NoSession(session.0))?;
        let slot = entry.slot;
        // Keys that share a path go on sharing it.
        let mut paths = vec![];
        let mut ports = vec![];
        for installed in entry.installed.iter_mut().chain(&mut entry.pending) {
            if installed.endpoint == endpoint {
                continue;
            }
            installed.endpoint = endpoint;
            installed.path = again(&mut paths, &installed.path, |path| path.to(endpoint));
            let lane_ports = installed.lane_ports.as_ref();
            installed.lane_ports = lane_ports.map(|known| again(&mut ports, known, |known| known.to(endpoint)));
            for worker in 0..self.fixed.workers {
                let (keys, path) = (installed.keys, Arc::clone(&installed.path));
                let lane_ports = installed.lane_ports.clone();
                let command = Command::Move { slot, keys, endpoint, path, lane_ports };
                self.effects.push_back(Effect::Worker(worker, command));
            }
        }
        Ok(())
    }
}

/// What takes the place of `before`: the same for all who shared it.
fn again<T>(made: &mut Vec<(Arc<T>, Arc<T>)>, before: &Arc<T>, make: impl FnOnce(&T) -> T) -> Arc<T> {
    if let Some((_, new)) = made.iter().find(|(known, _)| Arc::ptr_eq(known, before)) {
        return Arc::clone(new);
    }
    let new = Arc::new(make(before));
    made.push((Arc::clone(before), Arc::clone(&new)));
    new
}
