//! Peers that move: control blocks to and from addresses that are not the session's endpoint, and the move itself.
//!
//! ```text
//!   we                                                                  the peer, at an address that somebody suggested
//!   Command::Challenge ──── path challenge, token, alone ─────────────▶ wherever it came from …
//!   Event::Response  ◀───── path response, the same token ───────────── … there the response goes, and nowhere else
//!   Command::Move: the endpoint is another, path MTU and lane ports are asked for anew
//! ```
//!
//! Nothing that arrives moves a peer. A challenge's token is drawn at random and sealed, so whoever answers has the keys and got the
//! datagram at that address; the answer has the size of the question, so nobody is made to send more than they were sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weir_abi::drop::DropReason;
use weir_abi::wire::{HEADER_LEN, TAG_LEN};

use super::block::Control;
use super::counters::{Counters, Metric};
use super::departure::Departure;
use super::lane_port::SharedLanePorts;
use super::path::SharedPath;
use super::port::{TxMeta, TxSink};
use super::session::{KeysId, Session};
use super::snapshot::SessionSlot;
use super::time::Time;
use super::{Engine, session_mut};

/// Most control blocks to other addresses in one batch. They come at the rate of human events.
pub const ASIDES_MAX: usize = 64;
/// How often one worker tells that a peer's datagrams come from elsewhere.
pub const ELSEWHERE_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a datagram that holds one challenge or response.
const DATAGRAM_LEN: usize = HEADER_LEN + Control::LEN_MAX + TAG_LEN;

/// A control block on its way to an address of its own.
#[derive(Clone, Copy, Debug)]
struct Aside {
    slot: SessionSlot,
    to: SocketAddr,
    control: Control,
}

/// Those of one batch, bounded.
#[derive(Debug)]
pub(super) struct Asides(Vec<Aside>);

impl Asides {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(ASIDES_MAX))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Queues a control block, or counts it as dropped.
    pub(super) fn push(&mut self, slot: SessionSlot, to: SocketAddr, control: Control, counters: &Counters) {
        if self.0.len() < ASIDES_MAX {
            self.0.push(Aside { slot, to, control });
        } else {
            counters.drop(DropReason::ControlBlockQueueFull);
        }
    }

    /// Queues the response to a challenge; of several challenges in one batch the newest is answered, so one peer cannot fill the queue.
    pub(super) fn respond(&mut self, slot: SessionSlot, to: SocketAddr, token: [u8; 8], counters: &Counters) {
        let is_response = |aside: &&mut Aside| aside.slot == slot && matches!(aside.control, Control::PathResponse(_));
        match self.0.iter_mut().find(is_response) {
            Some(aside) => (aside.to, aside.control) = (to, Control::PathResponse(token)),
            None => self.push(slot, to, Control::PathResponse(token), counters),
        }
    }
}

impl Departure<'_> {
    /// Sends what goes to addresses of its own, each in a datagram of its own.
    pub(super) fn send_asides(&mut self, wan: &mut impl TxSink) {
        for i in 0..self.asides.0.len() {
            let Aside { slot, to, control } = self.asides.0[i];
            let Some(session) = session_mut(self.sessions, slot) else { continue };
            match seal_aside(session, to, control, self.now, wan) {
                Ok(()) => {
                    self.counters.add(Metric::TrainsSent, 1);
                    self.counters.add(Metric::DatagramsSealed, 1);
                    self.counters.add(Metric::SealedBytes, DATAGRAM_LEN as u64);
                }
                Err(reason) => self.counters.drop(reason),
            }
        }
        self.asides.0.clear();
    }
}

fn seal_aside(
    session: &mut Session,
    to: SocketAddr,
    control: Control,
    now: Time,
    wan: &mut impl TxSink,
) -> Result<(), DropReason> {
    let slot = wan.slot(DATAGRAM_LEN).ok_or(DropReason::WanQueueFull)?;
    let slot = slot.get_mut(..DATAGRAM_LEN).ok_or(DropReason::WanQueueFull)?;
    let block = slot.get_mut(HEADER_LEN..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::WanQueueFull)?;
    control.encode(block);
    session.seal.seal(slot, now)?;
    // Which of our addresses leads there is for the routing table to say, except where the peer is known to be.
    let source = session.source.filter(|_| to == session.endpoint);
    wan.commit(DATAGRAM_LEN, TxMeta { destination: Some(to), source, ..TxMeta::default() });
    Ok(())
}

impl Engine {
    /// Carries [`Command::Move`](super::Command::Move) out.
    pub(super) fn relocate(
        &mut self,
        slot: SessionSlot,
        keys: KeysId,
        endpoint: SocketAddr,
        path: Arc<SharedPath>,
        lane_ports: Option<Arc<SharedLanePorts>>,
        now: Time,
    ) {
        let has_keys = |session: &&mut Session| session.keys == keys;
        let current = session_mut(&mut self.sessions, slot).filter(has_keys);
        let Some(session) = current.or_else(|| session_mut(&mut self.prepared, slot).filter(has_keys)) else { return };
        let probing = session.path.as_mut().and_then(|path| path.release());
        let asking = session.lane_ports.as_mut().and_then(|ports| ports.release());
        for timer in [probing, asking].into_iter().flatten() {
            self.wheel.cancel(timer);
        }
        session.endpoint = endpoint;
        session.source = None;
        // What the peer has sent from where it was is still on its way.
        session.elsewhere_from = now.plus(ELSEWHERE_INTERVAL);
        session.follow(path);
        session.lane_ports = None;
        if let Some(ports) = lane_ports {
            session.use_lane_ports(ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asides_are_limited_and_a_peer_has_one_response_in_a_batch() {
        let counters = Counters::new();
        let to = |n: u16| SocketAddr::from(([192, 0, 2, 1], n));
        let mut asides = Asides::new();
        for token in 0..9 {
            asides.respond(SessionSlot(1), to(token), [token as u8; 8], &counters);
        }
        assert_eq!(asides.0.len(), 1);
        assert_eq!((asides.0[0].to, asides.0[0].control), (to(8), Control::PathResponse([8; 8])));
        for n in 1..ASIDES_MAX as u16 {
            asides.push(SessionSlot(1), to(n), Control::PathChallenge([0; 8]), &counters);
        }
        assert_eq!(counters.reader().snapshot().dropped(DropReason::ControlBlockQueueFull), 0);
        asides.respond(SessionSlot(2), to(1), [0; 8], &counters);
        asides.push(SessionSlot(1), to(1), Control::PathChallenge([0; 8]), &counters);
        assert_eq!(
            (asides.0.len(), counters.reader().snapshot().dropped(DropReason::ControlBlockQueueFull)),
            (ASIDES_MAX, 2)
        );
    }
}
