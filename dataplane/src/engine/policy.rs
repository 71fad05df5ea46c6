//! Who may talk to whom: rules for what opens a flow, and a memory of flows for what answers.
//!
//! ```text
//!                       of a known flow, and not beginning another?
//!   packet ─▶ what is it ──────┬──────── yes ─▶ passes; the flow is renewed
//!                              │ no
//!                              ▼
//!                        rules, in order ─── deny ─▶ dropped, counted
//!                              │ allow
//!                              ▼
//!                     a flow is remembered ─▶ passes; so does what comes back
//! ```
//!
//! **Where.** A packet from a peer is checked before it goes to the local side: that is what enforces the policy. A packet of the local side
//! is checked before it goes to a peer, as a courtesy: its sender is told at once, instead of waiting for what the peer has dropped. Packets
//! from one peer to another are not checked: the last of them does it.
//!
//! **Which direction opened** a flow is remembered. What begins a flow of its own (a SYN, an echo request) passes as part of one only in
//! that direction; the other way, the rules decide. A TCP flow may be picked up in its middle, as after a restart of this plane, by a packet
//! in a direction that the rules allow.
//!
//! **A new policy** does not forget flows. The next packet of each, in either direction, asks the new rules about the direction that opened
//! it; a flow that they would not let open is forgotten, and the packet is judged by itself.
//!
//! **ICMP errors** pass when they go to the sender of a packet of a known flow. Others, and all other ICMP but echo, stand for themselves:
//! the rules about ICMP decide.
//!
//! **Fragments.** The first one has the ports, and is judged like a whole packet; once it has passed, the others of the same packet pass for
//! half a minute. A fragment that comes before the first, or TCP's at the eighth byte (RFC 3128), is judged without ports: it passes when
//! every rule that might decide says so, and is dropped and counted as `policy_undecided` when it depends.
//!
//! Per packet of a known flow: a hash of five words, a bucket of two cache lines, no write within the same second. Without a policy: one
//! branch. Nothing is allocated after the policy was made, nothing waits; see [`flows`] for how workers share the memory.

pub mod flows;
pub mod rules;
mod subject;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_abi::drop::DropReason;

use self::flows::{Flows, Key, State, Tick};
use self::rules::{Question, Rules, RulesError};
use self::subject::{Part, Subject, question, question_back, quoted_flow};
use super::inner::{Inner, Quote};
use super::time::Time;
use crate::api::policy::PolicyRule;

/// Why a packet does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// A rule or the default says so.
    Denied,
    /// It depends on what the packet does not tell.
    Undecided,
    /// The flow cannot be remembered.
    FlowsFull,
}

impl Denial {
    /// What it is counted as for a packet from a peer.
    pub(super) const fn inbound(self) -> DropReason {
        match self {
            Self::Denied => DropReason::PolicyDenied,
            Self::Undecided => DropReason::PolicyUndecided,
            Self::FlowsFull => DropReason::PolicyFlowsFull,
        }
    }

    /// What it is counted as for a packet of the local side.
    pub(super) const fn outbound(self) -> DropReason {
        match self {
            Self::Denied => DropReason::LocalPolicyDenied,
            Self::Undecided | Self::FlowsFull => self.inbound(),
        }
    }
}

/// A policy in force: the same for all workers, never changed but for what it counts and remembers.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    /// Tells flows of this policy from those of the ones before.
    epoch: u32,
    flows: Arc<Flows>,
    /// For each worker, decisions of each rule and of the default.
    hits: Box<[Box<[AtomicU64]>]>,
}

impl Policy {
    /// Compiles a policy. `epoch` differs from that of any policy before with the same flows.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn new(
        rules: &[PolicyRule],
        default_allow: bool,
        epoch: u32,
        flows: Arc<Flows>,
        workers: u8,
    ) -> Result<Self, RulesError> {
        let rules = Rules::new(rules, default_allow)?;
        let row = || std::iter::repeat_with(AtomicU64::default).take(rules.len() + 1).collect();
        let hits = std::iter::repeat_with(row).take(usize::from(workers.max(1))).collect();
        Ok(Self { rules, epoch, flows, hits })
    }

    /// How often each rule has decided, and last the default.
    pub fn hits(&self) -> Vec<u64> {
        let sum = |rule: usize| self.hits.iter().map(|row| row[rule].load(Ordering::Relaxed)).sum();
        (0..=self.rules.len()).map(sum).collect()
    }

    /// Whether the packet that `inner` was parsed from passes.
    pub(super) fn admit(&self, inner: &Inner, packet: &[u8], worker: u8, now: Time) -> Result<(), Denial> {
        let now = Tick::from(now);
        match Subject::read(inner, packet) {
            Subject::Part(part) => {
                self.admit_part(inner, &part, worker, now)?;
                if let Some(fragment) = inner.fragment.filter(|fragment| fragment.more) {
                    let key = self.flows.fragments_key(inner.source, inner.destination, inner.protocol, fragment.id);
                    // Without a place, the fragments to come are judged without ports, and counted.
                    self.flows.open(key.tag, State::fragments(self.epoch, now), now);
                }
                Ok(())
            }
            Subject::Later { id, overlays: false } if self.is_fragment_of_known(inner, id, now) => Ok(()),
            Subject::Error(quote) if self.is_about_known(inner, &quote, worker, now) => Ok(()),
            Subject::Later { .. } | Subject::Error(_) | Subject::Alone | Subject::Cut => {
                if self.judge(&question(inner, None), worker)? { Ok(()) } else { Err(Denial::Denied) }
            }
        }
    }

    fn admit_part(&self, inner: &Inner, part: &Part, worker: u8, now: Tick) -> Result<(), Denial> {
        let [source, destination] = part.ports;
        let key = self.flows.key((inner.source, source), (inner.destination, destination), inner.protocol);
        if self.continues(key, inner, part, worker, now) {
            return Ok(());
        }
        if !self.judge(&question(inner, Some(part)), worker)? {
            return Err(Denial::Denied);
        }
        let state = State::opened(part.kind, key.from_high, self.epoch, now);
        let state = state.after(key.from_high, part.fin, part.reset, now);
        if part.opens && !self.flows.open(key.tag, state, now) {
            return Err(Denial::FlowsFull);
        }
        Ok(())
    }

    /// Whether the packet passes as part of a known flow, which is renewed then.
    fn continues(&self, key: Key, inner: &Inner, part: &Part, worker: u8, now: Tick) -> bool {
        let Some(found) = self.flows.find(key.tag, now) else { return false };
        let is_opener = found.state.is_opener(key.from_high);
        if part.begins && (!is_opener || found.state.is_closing()) || part.answers && is_opener {
            return false;
        }
        let mut state = found.state;
        if !state.is_of(self.epoch) {
            let opener = if is_opener { question(inner, Some(part)) } else { question_back(inner, part) };
            if self.judge(&opener, worker) != Ok(true) {
                self.flows.close(key.tag);
                return false;
            }
            state = state.with_epoch(self.epoch);
        }
        found.update(state.after(key.from_high, part.fin, part.reset, now));
        true
    }

    /// Whether the first fragment of the packet has passed.
    fn is_fragment_of_known(&self, inner: &Inner, id: u32, now: Tick) -> bool {
        let key = self.flows.fragments_key(inner.source, inner.destination, inner.protocol, id);
        self.flows.find(key.tag, now).is_some_and(|found| found.state.is_of(self.epoch))
    }

    /// Whether an ICMP error goes to who sent a packet of a known flow. It does not renew the flow.
    fn is_about_known(&self, inner: &Inner, quote: &Quote<'_>, worker: u8, now: Tick) -> bool {
        let Some((source, destination)) = quoted_flow(quote).filter(|_| quote.source == inner.destination) else {
            return false;
        };
        let key = self.flows.key(source, destination, quote.protocol);
        let Some(found) = self.flows.find(key.tag, now) else { return false };
        if found.state.is_of(self.epoch) {
            return true;
        }
        let (opener, other) =
            if found.state.is_opener(key.from_high) { (source, destination) } else { (destination, source) };
        let port = found.state.kind().has_ports().then_some(other.1);
        let question = Question { source: opener.0, destination: other.0, protocol: quote.protocol, port };
        self.judge(&question, worker) == Ok(true)
    }

    /// What the rules say; counted for the one that decides.
    fn judge(&self, question: &Question, worker: u8) -> Result<bool, Denial> {
        let decision = self.rules.decide(question).ok_or(Denial::Undecided)?;
        // There is at least one row.
        self.hits[usize::from(worker) % self.hits.len()][decision.rule].fetch_add(1, Ordering::Relaxed);
        Ok(decision.allow)
    }
}

#[cfg(test)]
mod tests;
