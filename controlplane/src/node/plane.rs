//! The packet plane as the node sees it: what it is asked, what it answers, what it is told about routes and policy.

use std::collections::BTreeMap;

use weir_dataplane::api::client::Welcome;
use weir_dataplane::api::message::{
    AdmissionKey, DumpItem, Event, LANE_PORT, Reply, Request, Route, SessionDump, SessionId, Target,
};
use weir_dataplane::api::{Prefix, ROUTES_PER_MESSAGE};

use super::link::Links;
use super::sessions::ExchangeId;
use super::{CallId, Node, Output, Ticket};
use crate::pki::id::{NodeId, overlay_address, session_id};
use crate::random::Random;
use crate::time::Now;

/// What comes from the packet plane.
#[derive(Debug)]
pub enum PlaneInput {
    /// There is a connection to it.
    Connected(Welcome),
    /// It answered.
    Reply(Ticket, Reply),
    /// Something happened in it.
    Event(Event),
    /// The connection is gone.
    Gone,
}

/// A packet plane that is there.
#[derive(Clone, Debug)]
pub(super) struct PlaneView {
    pub(super) welcome: Welcome,
    /// What it says of itself.
    pub(super) about: Vec<(String, String)>,
    /// Its sessions at the last dump, with the moment.
    pub(super) sessions: BTreeMap<SessionId, SessionDump>,
    /// A dump that is coming in.
    incoming: Vec<SessionDump>,
}

impl PlaneView {
    /// Ports that single workers have for themselves, each once.
    pub(super) fn lane_ports(&self) -> Vec<u16> {
        lane_ports(&self.about)
    }
}

/// Workers that are more than there are ports share them; what cannot be read is left out.
fn lane_ports(about: &[(String, String)]) -> Vec<u16> {
    let of_workers = about.iter().filter(|(name, _)| name.starts_with("worker "));
    let mut ports: Vec<u16> = of_workers
        .filter_map(|(_, place)| {
            let (_, port) = place.split_once(LANE_PORT)?;
            port.split(',').next()?.trim().parse().ok()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Why the packet plane was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Reserve(ExchangeId),
    Install(ExchangeId),
    /// The first dump after a connection: what is there is compared with what should be.
    Reconcile,
    /// A dump for whoever asks for the status.
    Dump,
    PolicyHits(CallId),
    /// An order of which only a refusal is worth a word.
    Order(&'static str),
}

impl<R: Random> Node<R> {
    /// Something came from the packet plane.
    pub fn handle_plane(&mut self, input: PlaneInput, links: &mut dyn Links, now: Now) {
        match input {
            PlaneInput::Connected(welcome) => self.plane_connected(welcome, links, now),
            PlaneInput::Reply(ticket, reply) => self.plane_replied(ticket, reply, links, now),
            PlaneInput::Event(event) => self.plane_event(event, links, now),
            PlaneInput::Gone => self.plane_gone(links, now),
        }
        self.settle(links);
    }

    pub(super) fn ask_plane(&mut self, purpose: Purpose, request: Request) {
        if self.plane.is_none() {
            return;
        }
        let ticket = self.ticket();
        self.tickets.insert(ticket, purpose);
        self.outputs.push_back(Output::Plane(ticket, request));
    }

    fn plane_connected(&mut self, welcome: Welcome, links: &mut dyn Links, now: Now) {
        tracing::info!(incarnation = welcome.incarnation.0, workers = welcome.workers, "packet plane");
        if self.plane.is_some() {
            self.plane_gone(links, now);
        }
        let (about, sessions, incoming) = (vec![], BTreeMap::new(), vec![]);
        self.plane = Some(PlaneView { welcome, about, sessions, incoming });
        self.ask_plane(Purpose::Order("Subscribe"), Request::Subscribe);
        self.ask_plane(Purpose::Reconcile, Request::Dump);
        self.publish_admission(links, now);
        // Our record says how many workers there are.
        self.renew_record(now);
        (self.are_routes_dirty, self.is_policy_dirty) = (true, true);
    }

    fn plane_gone(&mut self, links: &mut dyn Links, now: Now) {
        tracing::warn!("the packet plane is gone");
        self.plane = None;
        for purpose in std::mem::take(&mut self.tickets).into_values() {
            self.answer_without_plane(purpose, now);
        }
        let under_way: Vec<ExchangeId> = self.exchanges.keys().copied().collect();
        for id in under_way {
            let failure = super::exchange::Failure::Plane("it is gone".to_owned());
            self.exchange_failed(id, failure, links, now);
        }
    }

    fn plane_replied(&mut self, ticket: Ticket, reply: Reply, links: &mut dyn Links, now: Now) {
        // A dump has many answers; the last one is `Done`.
        if let Reply::Dump(item) = reply {
            return self.dumped(item);
        }
        let Some(purpose) = self.tickets.remove(&ticket) else { return };
        match (purpose, reply) {
            (Purpose::Reserve(id), Reply::Reserved { reservation, offer }) => {
                self.exchange_reserved(id, reservation, offer, links, now);
            }
            (Purpose::Install(id), Reply::Done) => self.exchange_installed(id, links, now),
            (Purpose::Reserve(id) | Purpose::Install(id), other) => {
                let failure = super::exchange::Failure::Plane(describe(&other));
                self.exchange_failed(id, failure, links, now);
            }
            (Purpose::Reconcile, Reply::Done) => {
                self.dump_is_whole();
                self.reconcile(now);
            }
            (Purpose::Dump, Reply::Done) => {
                self.dump_is_whole();
                self.answer_waiting(now);
            }
            (Purpose::PolicyHits(call), Reply::PolicyHits { version, hits }) => self.answer_hits(call, version, &hits),
            (Purpose::Order(_), Reply::Done) => {}
            (purpose, other) => {
                tracing::warn!(?purpose, answer = describe(&other), "the packet plane refused");
                self.counters.count("plane_refused");
                self.answer_without_plane(purpose, now);
            }
        }
    }

    /// The packet plane will not answer this: whoever waits for it hears what is known without.
    fn answer_without_plane(&mut self, purpose: Purpose, now: Now) {
        match purpose {
            Purpose::Dump => self.answer_waiting(now),
            Purpose::PolicyHits(call) => self.answer_hits(call, 0, &[]),
            // Exchanges are failed by themselves.
            Purpose::Reserve(_) | Purpose::Install(_) | Purpose::Reconcile | Purpose::Order(_) => {}
        }
    }

    fn dumped(&mut self, item: DumpItem) {
        let Some(plane) = &mut self.plane else { return };
        match item {
            DumpItem::Plane(about) => plane.about = about,
            DumpItem::Session(session) => plane.incoming.push(session),
            DumpItem::Routes(_) => {}
        }
    }

    fn dump_is_whole(&mut self) {
        if let Some(plane) = &mut self.plane {
            let sessions = std::mem::take(&mut plane.incoming);
            plane.sessions = sessions.into_iter().map(|dump| (dump.session, dump)).collect();
        }
    }

    /// Tells the packet plane where everything goes.
    pub(super) fn send_routes(&mut self) {
        if self.plane.is_none() {
            return;
        }
        let routes = self.routes();
        self.ask_plane(Purpose::Order("DiscardRoutes"), Request::DiscardRoutes);
        for chunk in routes.chunks(ROUTES_PER_MESSAGE) {
            self.ask_plane(Purpose::Order("StageRoutes"), Request::StageRoutes(chunk.to_vec()));
        }
        self.ask_plane(Purpose::Order("CommitRoutes"), Request::CommitRoutes);
    }

    /// Each member's address and prefixes to its session; our own to the local side. Of two members that announce one prefix the one that
    /// has it longer by its certificate, which is the lower id, keeps it.
    pub(super) fn routes(&self) -> Vec<Route> {
        let (Some(membership), Some(network)) = (&self.membership, &self.network) else { return vec![] };
        let mut by_prefix: BTreeMap<Prefix, Target> = BTreeMap::new();
        let own = membership.node;
        for entry in self.directory.entries() {
            let node = entry.record.node;
            let target = if node == own { Target::Local } else { Target::Session(SessionId(session_id(own, node))) };
            let address = Prefix::host(overlay_address(network.id, node).into());
            for prefix in std::iter::once(address).chain(self.prefixes_of(node)) {
                by_prefix.entry(prefix).or_insert(target);
            }
        }
        by_prefix.into_iter().map(|(prefix, target)| Route { prefix, target }).collect()
    }

    /// What a member may announce: by its certificate if we saw it, else by its statement.
    pub(super) fn prefixes_of(&self, node: NodeId) -> Vec<Prefix> {
        let seen = self.peers.get(&node).and_then(|peer| peer.member.as_ref());
        match (seen, self.directory.entry(node)) {
            (Some(member), _) => member.prefixes.prefixes(),
            (None, Some(entry)) => entry.statement.prefixes.clone(),
            (None, None) => vec![],
        }
    }

    pub(super) fn send_admission(&mut self, keys: Vec<AdmissionKey>, skew_secs: i64) {
        let Some(node) = self.id() else { return };
        self.ask_plane(Purpose::Order("SetAdmission"), Request::SetAdmission { keys, node: node.0, skew_secs });
    }
}

/// What the plane said, for a person. Never a secret: replies hold none.
fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Refused(refusal) => refusal.to_string(),
        other => format!("an answer to something else: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_ports_are_read_from_what_a_plane_says_of_its_workers() {
        let about = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
            rows.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        let two = about(&[
            ("ports", "io_uring (the kernel has it), lane port 9"),
            ("worker 0", "core 2"),
            ("worker 1", "core 3, lane port 4647"),
            ("worker 2", "core 4, lane port 4648"),
            ("worker 4", "core 6, lane port 4647"),
        ]);
        assert_eq!(lane_ports(&two), [4647, 4648]);
        assert_eq!(lane_ports(&about(&[("worker 0", "core 2"), ("worker 1", "core 3")])), [0; 0]);
        let broken = about(&[("worker 1", "lane port "), ("worker 2", "lane port 65536"), ("worker 3", "lane port x")]);
        assert_eq!(lane_ports(&broken), [0; 0]);
    }
}
