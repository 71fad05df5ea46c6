//! What goes in and out about finding members.

use super::{Counter, Moment};
use crate::api::describe::object;

object! {
    /// How it stands with the DHT.
    pub struct DhtStatus {
        /// `server`, which answers others and keeps records, or `client`.
        mode: String,
        /// Unrelated members that have reached this node by an address to which it had sent nothing, within the last two hours.
        witnesses: u32,
        /// How many of them make it a server; 0 where the configuration says what it is.
        witnesses_wanted: u32,
        /// Whether look-ups work.
        is_joined: bool,
        /// Servers in the table.
        contacts: u32,
        /// Contact sessions that stand.
        sessions: u32,
        /// How many servers there seem to be.
        servers: u64,
        /// Seconds after which half of those who are there now are gone, as far as was seen.
        half_life_secs: u64,
        /// Records that are kept for others.
        records: u32,
        /// Their bytes.
        bytes: u64,
        /// Records of our own.
        published: Vec<DhtPublication>,
        /// What happened so often.
        counters: Vec<Counter>,
    }

    /// A record of our own.
    pub struct DhtPublication {
        /// `node`, `name`, or `overlay`.
        kind: String,
        /// Its sequence.
        sequence: u64,
        /// Servers that have it, of those that were asked last.
        stored: u32,
        /// Servers that were asked last.
        asked: u32,
        /// When that was.
        at: Option<Moment>,
    }

    /// Whom to find.
    #[serde(deny_unknown_fields)]
    pub struct FindRequest {
        /// A name, an id, or an overlay address.
        what: String,
        /// Whether the DHT is asked though the directory knows.
        #[serde(default)]
        dht: bool,
    }

    /// A member that was found.
    pub struct Found {
        /// Its id.
        node: String,
        /// Its name.
        name: String,
        /// Its overlay address.
        address: String,
        /// Where it is dialled.
        endpoints: Vec<String>,
        /// Ids of the servers that it keeps contact with, if it is not dialled.
        anchors: Vec<String>,
        /// `directory`, which this node keeps of all members, or `dht`.
        source: String,
        /// Sequence of the record that says so.
        sequence: u64,
        /// Milliseconds that it took.
        took_ms: u64,
        /// How many members were asked.
        requests: u32,
        /// Who was asked.
        trace: Vec<DhtHop>,
    }

    /// One request of a look-up.
    pub struct DhtHop {
        /// Id of who was asked.
        node: String,
        /// Where.
        address: String,
        /// By which of the disjoint paths, from 1.
        path: u32,
        /// Which of the path's requests, from 1.
        step: u32,
        /// How many named one another before: 0 for whom this node knew itself.
        depth: u32,
        /// Leading bits that its place has in common with the one that was looked for.
        shared_bits: u32,
        /// Whether it answered.
        answered: bool,
    }
}
