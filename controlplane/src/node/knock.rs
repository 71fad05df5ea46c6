//! Trying the addresses at which somebody says that a member is.
//!
//! ```text
//!  candidate due ─▶ dial as one that joins, whoever answers ─▶ its chain is judged ─▶ closed; the address is told to that peer ─▶ dialled by its id
//! ```
//!
//! The first dial asks who is there and no more. It could be a member's link at once, and is not: this way we show no certificate to whoever
//! claims the address before it has shown its own, a link to that member which stands already is not disturbed by a rival, the link that follows has
//! an admission tag, for its receiver is known by then, and a node whose own certificate has ended renews it by this very link. It costs one
//! handshake for each address, once.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidates::{Offered, Source, State};
use super::link::{Code, Link};
use super::peer::BACK_OFF_MAX;
use super::{Links, Node, Timer};
use crate::api::types::{Candidate as Row, CandidateState, Moment};
use crate::pki::id::NodeId;
use crate::pki::verifier::Member;
use crate::quic::{Alpn, DialTarget, LinkId, Side};
use crate::random::Random;
use crate::time::Now;

/// Most addresses of one member that others have told.
const TOLD_ENDPOINTS_MAX: usize = 8;

impl<R: Random> Node<R> {
    /// Somebody says that members are at these addresses. They are tried as soon as this node is a member.
    pub fn handle_found(&mut self, source: Source, addresses: &[SocketAddr], links: &mut dyn Links, now: Now) {
        self.try_at(source, addresses, links, now);
        self.settle(links);
    }

    pub(super) fn try_at(&mut self, source: Source, addresses: &[SocketAddr], links: &mut dyn Links, now: Now) {
        for address in addresses {
            match self.candidates.offer(source, *address, now) {
                Offered::New => self.settle_known(*address, links),
                Offered::Known => {}
                Offered::NoAddress => self.counters.count("candidate_no_address"),
                Offered::Full => self.counters.count("candidate_full"),
            }
        }
        self.schedule_knocks();
    }

    /// Who has a link to us from there need not be asked.
    fn settle_known(&mut self, address: SocketAddr, links: &mut dyn Links) {
        let is_there = |link: &LinkId| links.remote(*link) == Some(address);
        let known = self.peers.iter().find(|(_, peer)| peer.link.as_ref().is_some_and(is_there));
        if let Some(node) = known.map(|(node, _)| *node) {
            self.candidates.found(address, State::Member(node));
        }
    }

    pub(super) fn schedule_knocks(&mut self) {
        match self.candidates.next_due().filter(|_| self.membership.is_some()) {
            Some(due) => self.timers.set(Timer::Knock, due),
            None => self.timers.cancel(Timer::Knock),
        }
    }

    /// Asks at the addresses that are due who is there.
    pub(super) fn knock(&mut self, links: &mut dyn Links, now: Now) {
        while self.membership.is_some()
            && let Some(address) = self.candidates.begin(now.mono)
        {
            let dialled = match self.links.len() < super::link::LINKS_MAX {
                true => links.dial(Alpn::Join, DialTarget::any_member(), address).map_err(|error| error.to_string()),
                false => Err("too many links are open".to_owned()),
            };
            match dialled {
                Ok(link) => {
                    self.links.insert(link, Link::new(Alpn::Join, Side::Dialled, None));
                    self.timers.set(Timer::Dial(link), now.mono + super::link::DIAL_PATIENCE);
                    self.candidates.dialled(address, link);
                    self.counters.count("candidate_tried");
                }
                Err(why) => self.knock_failed(address, &why, now),
            }
        }
        self.schedule_knocks();
    }

    /// Whether a link was dialled to ask who is there.
    pub(super) fn is_knock(&self, link: LinkId) -> bool {
        self.candidates.tried_by(link).is_some()
    }

    /// Somebody of our network is there.
    pub(super) fn knock_answered(&mut self, link: LinkId, member: Option<Member>, links: &mut dyn Links, now: Now) {
        let Some(address) = self.candidates.tried_by(link) else { return };
        let Some(member) = member else {
            // The handshake sees to it that there is one; if not, this is no address of a member, and is not tried for ever.
            return self.fail_link(link, Code::NotMember, "no certificate", links, now);
        };
        let node = member.node;
        if Some(node) == self.id() {
            self.counters.count("candidate_self");
            self.candidates.found(address, State::Own);
        } else {
            self.counters.count("candidate_member");
            tracing::debug!(peer = %node.short(), %address, "found");
            let is_other = self.candidates.found(address, State::Member(node));
            self.told_of(node, address);
            let peer = self.peer(node);
            // Where nobody has answered, an answer is news as well.
            let is_news = std::mem::take(&mut peer.is_silent) || is_other;
            peer.member.get_or_insert(member);
            self.await_end(node, now);
            self.give_up_elsewhere(node, &[address], links);
            if self.peers.get(&node).is_some_and(|peer| peer.link.is_none()) {
                // Whoever answers here and closes each link would be asked and dialled again without end: each end of a last link has all asked.
                let wait = if is_news { Duration::ZERO } else { BACK_OFF_MAX };
                self.timers.set_at_latest(Timer::Connect(node), now.mono + wait);
            }
        }
        self.schedule_knocks();
        // It is a link to join by, which is what a renewal without a good certificate goes by.
        let is_ended = self.leaf_fields().is_some_and(|fields| now.wall > fields.validity.not_after);
        if !(is_ended && Some(node) != self.id() && self.renews_by(link, links)) {
            self.drop_link(link, Code::Done, "that was all", links);
        }
    }

    /// A member is at this address, by its own word: it is tried first. `true` when that is news.
    pub(super) fn told_of(&mut self, node: NodeId, address: SocketAddr) -> bool {
        let peer = self.peer(node);
        let before = peer.told_endpoints.len();
        peer.told_endpoints.retain(|known| *known != address);
        let is_news = peer.told_endpoints.len() == before;
        peer.told_endpoints.insert(0, address);
        peer.told_endpoints.truncate(TOLD_ENDPOINTS_MAX);
        peer.next_endpoint = 0;
        is_news
    }

    /// A link by which an address was tried is gone; `false` when it was another one.
    pub(super) fn knock_closed(&mut self, link: LinkId, why: &str, now: Now) -> bool {
        let Some(address) = self.candidates.tried_by(link) else { return false };
        self.knock_failed(address, why, now);
        self.schedule_knocks();
        true
    }

    fn knock_failed(&mut self, address: SocketAddr, why: &str, now: Now) {
        self.counters.count("candidate_failed");
        let share = self.random.u64() as u8;
        if self.candidates.failed(address, why, share, now.mono) {
            self.counters.count("candidate_forgotten");
        }
    }

    /// Whether somebody who is no record has told where this member is. Who has nobody takes anybody of these: news comes by any member.
    pub(super) fn is_found(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| !peer.told_endpoints.is_empty())
    }

    /// Whether no member has a link with us.
    pub(super) fn is_alone(&self) -> bool {
        self.peers.values().all(|peer| peer.link.is_none())
    }

    /// Whether we would be alone without this link.
    pub(super) fn is_only_link(&self, link: LinkId) -> bool {
        self.peers.values().filter_map(|peer| peer.link).all(|known| known == link)
    }

    /// The last link to a member may have gone: then everybody who was ever named is worth asking.
    pub(super) fn search_when_alone(&mut self, now: Now) {
        if self.is_alone() {
            self.candidates.search(now.mono);
            self.schedule_knocks();
        }
    }

    pub(super) fn candidate_rows(&self) -> Vec<Row> {
        let row = |(address, known): (&SocketAddr, &super::candidates::Candidate)| {
            let (state, node, trouble) = match &known.state {
                State::Waiting => (CandidateState::Waiting, None, None),
                State::Trying => (CandidateState::Trying, None, None),
                State::Member(node) => (CandidateState::Member, Some(*node), None),
                State::Own => (CandidateState::Own, None, None),
                State::Failed(why) => (CandidateState::Failed, None, Some(why.clone())),
            };
            Row {
                address: address.to_string(),
                sources: known.sources.iter().map(|source| source.name().to_owned()).collect(),
                seen_at: Moment(known.seen),
                state,
                name: node.map(|node| self.name_of(node)),
                node: node.map(|node| node.to_string()),
                failures: known.failures.into(),
                trouble,
            }
        };
        self.candidates.all().map(row).collect()
    }
}
