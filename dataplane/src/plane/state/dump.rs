//! Everything that the control thread knows, but for keys.

use super::{Entry, Random, State};
use crate::api::ROUTES_PER_MESSAGE;
use crate::api::message::{DumpItem, Reply, SessionDump, SessionId};
use crate::engine::time::Time;

impl<R: Random> State<R> {
    /// The sessions, the routes, and the word that this is all.
    pub(super) fn dump(&self, now: Time) -> Vec<Reply> {
        let sessions = self.sessions.iter().filter_map(|(&session, entry)| dump_of(session, entry, now));
        let mut replies: Vec<Reply> = sessions.map(|dump| Reply::Dump(DumpItem::Session(dump))).collect();
        replies.extend(
            self.routes.chunks(ROUTES_PER_MESSAGE).map(|routes| Reply::Dump(DumpItem::Routes(routes.to_vec()))),
        );
        replies.push(Reply::Done);
        replies
    }
}

/// What is in use, or else what waits for its activation; nothing when a session is only named.
fn dump_of(session: SessionId, entry: &Entry, now: Time) -> Option<SessionDump> {
    let shown = entry.installed.as_ref().or(entry.pending.as_ref())?;
    let (datagram_len, inner_mtu) = shown.path.in_force();
    let total = entry.traffic.total();
    let ago = |at: Time| (at > Time::ZERO).then(|| now.since(at).as_nanos() as u64);
    Some(SessionDump {
        session,
        endpoint: shown.endpoint,
        sources: shown.sources.clone(),
        indices: shown.indices.iter().map(|index| index.0).collect(),
        peer_indices: shown.peer_indices.clone(),
        age_ns: now.since(shown.since).as_nanos() as u64,
        rtt_ns: entry.round_trip.as_nanos() as u64,
        datagram_len,
        inner_mtu,
        lanes_by_port: shown.lane_ports.as_ref().map_or(0, |ports| ports.in_use()),
        activated: entry.installed.is_some(),
        has_pending_keys: entry.pending.is_some(),
        algorithm: shown.algorithm.name().to_owned(),
        generation: total.generation,
        tx_packets: total.tx_packets,
        tx_bytes: total.tx_bytes,
        rx_packets: total.rx_packets,
        rx_bytes: total.rx_bytes,
        tx_last_ns: ago(total.tx_at),
        rx_last_ns: ago(total.rx_at),
    })
}
