//! Members with an issuer beside them, and a way to one for others' requests where no link to one is kept.
//!
//! ```text
//!  a joiner, or a member ── request ─▶ we: a link to an issuer? ── yes ─▶ passed on
//!                                        └─ no, and the network is a large one ─▶ an issuer that we know of is dialled; the request waits
//! ```
//!
//! In a small network everybody has a link to everybody, so a missing one says that there is no way. In a larger one links go to
//! neighbours, and an issuer is rarely among them: whoever passes a request on dials it then, and lets the link go when it has served. Who issues
//! stands in certificates, and at first in the token that we joined by; it is kept, for after a restart there is no link to learn it by.

use std::time::Duration;

use super::link::{Code, FULL_MESH_MAX, Links};
use super::message::{IssuerCall, Message};
use super::renew::{RELAYED_MAX, ROLE_ISSUER};
use super::{Node, Timer};
use crate::codec;
use crate::issuer::Refused;
use crate::pki::id::NodeId;
use crate::pki::verifier::Member;
use crate::quic::{Alpn, LinkId};
use crate::random::Random;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::Now;

/// Most issuers that are kept in mind; a network has a few.
const KNOWN_MAX: usize = 8;
/// How long an issuer may take to be there: less than a joiner waits for the whole.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long the link stays after that, for the answer and whoever comes next.
const LINGER: Duration = Duration::from_secs(30);
/// Where they lie in [`Table::Discovery`].
pub(super) const KEPT: &[u8] = b"issuers";
/// Longest form of that.
const KEPT_LEN_MAX: usize = 1024;

/// Who issues, as far as we know, and what waits for one of them.
#[derive(Debug, Default)]
pub(super) struct Issuers {
    /// Whoever was seen last comes first.
    known: Vec<NodeId>,
    /// By which links requests came that wait for a link to an issuer.
    waiting: Vec<(LinkId, IssuerCall)>,
    /// Whom we dialled for that.
    dialled: Option<NodeId>,
}

/// Those that an earlier life knew.
pub(super) fn kept(store: &impl Store) -> Result<Issuers, StoreError> {
    let bytes = store.value(Table::Discovery, KEPT)?.unwrap_or_default();
    // What cannot be read is learned again.
    let mut known = codec::decode::<Vec<NodeId>>(&bytes, KEPT_LEN_MAX).unwrap_or_default();
    known.truncate(KNOWN_MAX);
    Ok(Issuers { known, ..Issuers::default() })
}

impl Issuers {
    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Who came by this link is gone.
    pub(super) fn forget_link(&mut self, link: LinkId) {
        self.waiting.retain(|(from, _)| *from != link);
    }
}

impl<R: Random> Node<R> {
    /// A certificate says whether this member has an issuer beside it.
    pub(super) fn learn_issuer(&mut self, member: &Member) {
        let (node, is_one) = (member.node, member.roles.iter().any(|role| role == ROLE_ISSUER));
        if is_one {
            self.remember_issuer(node);
        } else if self.issuers.known.contains(&node) {
            self.issuers.known.retain(|known| *known != node);
            self.keep_issuers();
        }
    }

    /// This member has an issuer beside it, or is said to by who sent our token.
    pub(super) fn remember_issuer(&mut self, node: NodeId) {
        if self.issuers.known.first() == Some(&node) {
            return;
        }
        let before = self.issuers.known.len();
        self.issuers.known.retain(|known| *known != node);
        let is_new = self.issuers.known.len() == before;
        self.issuers.known.insert(0, node);
        self.issuers.known.truncate(KNOWN_MAX);
        // Who was seen last is worth no write to the disk.
        if is_new {
            self.keep_issuers();
        }
    }

    fn keep_issuers(&mut self) {
        let mut batch = Batch::default();
        batch.put(Table::Discovery, KEPT, codec::encode(&self.issuers.known));
        self.store(batch);
    }

    /// Lets a request wait for a link to an issuer, which is dialled; the request comes back where none is to be had that way.
    pub(super) fn wait_for_issuer(
        &mut self,
        from: LinkId,
        call: IssuerCall,
        links: &mut dyn Links,
        now: Now,
    ) -> Option<IssuerCall> {
        if self.directory.len() <= FULL_MESH_MAX || self.issuers.waiting.len() >= RELAYED_MAX {
            return Some(call);
        }
        if self.issuers.waiting.is_empty() && !self.dial_issuer(links, now) {
            return Some(call);
        }
        self.issuers.waiting.push((from, call));
        None
    }

    /// Members with an issuer beside them, whoever was seen last first.
    pub(super) fn other_issuers(&self) -> Vec<NodeId> {
        let own = self.id();
        let may_be = |node: &NodeId| Some(*node) != own && !self.revocations.is_node_revoked(*node);
        self.issuers.known.iter().copied().filter(may_be).collect()
    }

    /// Dials one that there is no link with, unless one is dialled already; `false` when there is none such.
    pub(super) fn dial_issuer(&mut self, links: &mut dyn Links, now: Now) -> bool {
        if self.issuers.dialled.is_some() {
            return true;
        }
        for node in self.other_issuers() {
            if self.peer(node).link.is_some() {
                continue;
            }
            let is_dialled = self.peers.get(&node).is_some_and(|peer| peer.dialling.is_some());
            if !is_dialled {
                let Some(remote) = self.endpoint_of(node) else { continue };
                let Ok(link) = self.dial(Alpn::Member, node, remote, links) else { continue };
                self.timers.set(Timer::Dial(link), now.mono + super::link::DIAL_PATIENCE);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.dialling = Some(link);
                }
            }
            self.issuers.dialled = Some(node);
            self.counters.count("issuer_dialled");
            self.timers.set(Timer::Issuer, now.mono + PATIENCE);
            return true;
        }
        false
    }

    /// A link to a member stands. If it is an issuer's, what waits goes by it.
    pub(super) fn issuer_connected(&mut self, node: NodeId, links: &mut dyn Links, now: Now) {
        if self.issuers.waiting.is_empty() || !self.issuers.known.contains(&node) {
            return;
        }
        self.timers.set(Timer::Issuer, now.mono + LINGER);
        for (from, call) in std::mem::take(&mut self.issuers.waiting) {
            self.pass_to_issuer(from, call, links, now);
        }
    }

    /// No issuer has come about for those who wait, or the link to one has had its time.
    pub(super) fn issuer_over(&mut self, links: &mut dyn Links, now: Now) {
        for (from, IssuerCall { ticket, .. }) in std::mem::take(&mut self.issuers.waiting) {
            self.counters.count("issuer_unreachable");
            self.say(from, &Message::IssuerSaid { ticket, reply: Box::new(Err(Refused::NotIssuer)) }, links);
        }
        let Some(node) = self.issuers.dialled else { return };
        let Some(link) = self.peers.get(&node).and_then(|peer| peer.link) else {
            // Another one has its turn before it.
            self.issuers.known.sort_by_key(|known| *known == node);
            return self.issuers.dialled = None;
        };
        if self.is_relayed_by(link) {
            return self.timers.set(Timer::Issuer, now.mono + LINGER);
        }
        self.issuers.dialled = None;
        if !self.keeps_link(node) && !self.is_only_link(link) {
            self.drop_link(link, Code::Done, "no request is left for it", links);
        }
    }

    /// We are a member no more.
    pub(super) fn forget_issuers(&mut self) {
        self.timers.cancel(Timer::Issuer);
        self.issuers = Issuers::default();
    }
}
