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
        /// `node`, `name`, `overlay`, `service`, or `revocations`.
        kind: String,
        /// Which service; nothing for the others.
        service: Option<String>,
        /// Whether it says that the service is not offered any more.
        withdrawn: bool,
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
        /// A name, an id, or an overlay address; or a service, as `_http._tcp.site-b`.
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
        /// Its service, where one was looked for.
        service: Option<FoundService>,
        /// `directory`, which this node keeps of all members, or `dht`.
        source: String,
        /// Whether this node, which did not know it, tries to reach it now.
        dialled: bool,
        /// Sequence of the record that says so.
        sequence: u64,
        /// Milliseconds that it took.
        took_ms: u64,
        /// How many members were asked.
        requests: u32,
        /// Who was asked.
        trace: Vec<DhtHop>,
    }

    /// A service of a member.
    pub struct FoundService {
        /// Which, as `_http._tcp`.
        label: String,
        /// Where it listens, at the member's overlay address.
        port: u16,
        /// What else is to be known of it.
        texts: Vec<String>,
    }

    /// Which record to show.
    #[serde(deny_unknown_fields)]
    pub struct DhtRecordRequest {
        /// `node`, `name`, `overlay`, `zone`, `service`, or `revocations`.
        kind: String,
        /// The name, id, overlay address or service whose record it is, or 64 hex digits: where it lies.
        what: String,
    }

    /// A record of the DHT, as it lies there. Its signatures were checked.
    pub struct DhtRecord {
        /// What it is about.
        kind: String,
        /// Where it lies, in hex.
        key: String,
        /// Its sequence: higher for each newer one.
        sequence: u64,
        /// When it stops to be worth anything.
        not_after: Moment,
        /// Id of the member that signed it.
        node: String,
        /// That member's name.
        name: String,
        /// Key id of the issuer that says so.
        issuer: String,
        /// Bytes of the value.
        value_len: u32,
        /// The value, in hex.
        value: String,
        /// What the value says, line by line, where this node can read it.
        says: Vec<String>,
        /// The whole record with both signatures, as it travels, in base64.
        record: String,
        /// Milliseconds that it took.
        took_ms: u64,
        /// How many members were asked.
        requests: u32,
        /// Who was asked.
        trace: Vec<DhtHop>,
    }

    /// Since when to tell.
    #[serde(deny_unknown_fields)]
    pub struct LookupsRequest {
        /// The change that the caller knows: it is answered when there is another, or in a second. At once if nothing is said.
        #[serde(default)]
        after: Option<u64>,
    }

    /// Look-ups that people wait for.
    pub struct Lookups {
        /// Counts what happened to them since this node began.
        change: u64,
        /// Those that are under way.
        lookups: Vec<LookupProgress>,
    }

    /// How far a look-up is.
    pub struct LookupProgress {
        /// What is looked for, as it was asked.
        what: String,
        /// Members that were asked so far.
        asked: u32,
        /// Those that have answered.
        answered: u32,
        /// Disjoint paths.
        paths: u32,
        /// The most members that led one to the next.
        hops: u32,
        /// Milliseconds since it began.
        took_ms: u64,
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
