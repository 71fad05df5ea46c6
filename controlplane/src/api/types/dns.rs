//! What goes in and out about names.

use super::{Counter, Moment};
use crate::api::describe::object;

object! {
    /// How it stands with names.
    pub struct DnsStatus {
        /// The network's zone; nothing before there is one.
        zone: Option<String>,
        /// The zone of the addresses that members have in the overlay.
        reverse: Option<String>,
        /// This member's own zone.
        own: Option<String>,
        /// When that was signed last: a higher one replaces it everywhere.
        serial: Option<u64>,
        /// Until when its signatures are valid.
        until: Option<Moment>,
        /// What of it could not be published, and why.
        problem: Option<String>,
        /// Records that are published.
        records: Vec<DnsRecord>,
        /// Members whose zones were believed, in earlier lives too, this one among them.
        verified: u32,
        /// Zones and records that were not believed, by reason, since this process began.
        refused: Vec<Counter>,
    }

    /// A record that a member publishes.
    pub struct DnsRecord {
        /// Whose it is, in full.
        name: String,
        /// `A`, `AAAA`, `TXT`, `SRV`, `CNAME` or `PTR`.
        rtype: String,
        /// What it says, as in a zone file.
        data: String,
        /// Where it comes from: `address`, `configuration`, `service`, or `set`, for what `weir dns set` said.
        source: String,
    }

    /// A record to publish.
    #[serde(deny_unknown_fields)]
    pub struct DnsSetRequest {
        /// Labels below this member's name; `@` for that itself, and a `*` before them for all names there.
        name: String,
        /// `A`, `AAAA`, `TXT`, `SRV`, `CNAME` or `PTR`.
        rtype: String,
        /// What it says, as in a zone file.
        data: String,
    }

    /// Records that are not to be published any more.
    #[serde(deny_unknown_fields)]
    pub struct DnsUnsetRequest {
        /// As it was set.
        name: String,
        /// Of which type; of all if there is none.
        #[serde(default)]
        rtype: Option<String>,
        /// Which of them; all if there is none.
        #[serde(default)]
        data: Option<String>,
    }

    /// What verifies the network's names.
    pub struct DnsAnchors {
        /// The address at which a member answers, for programs that are told by hand.
        server: String,
        /// One for each zone.
        zones: Vec<DnsAnchor>,
    }

    /// The keys by which a zone is known.
    pub struct DnsAnchor {
        /// Its name.
        zone: String,
        /// DNSKEY records, as in a zone file.
        dnskeys: Vec<String>,
        /// DS records, as in a zone file.
        ds: Vec<String>,
    }

    /// Something that was not believed.
    pub struct DnsRefusal {
        /// When.
        at: Moment,
        /// Of whose zone.
        member: String,
        /// In one word, as it is counted.
        reason: String,
        /// In a sentence.
        detail: String,
    }
}
