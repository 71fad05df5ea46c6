//! What goes in and out: every request and every answer.
//!
//! Ids are texts as `weir` prints them, moments are RFC 3339 in UTC, rates are per second. Requests refuse fields that they do not know;
//! answers may get new ones, so whoever reads them should let unknown fields be.

mod discovery;
mod dns;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

pub use discovery::{
    DhtHop, DhtPublication, DhtRecord, DhtRecordRequest, DhtStatus, FindRequest, Found, FoundService, LookupProgress,
    Lookups, LookupsRequest,
};
pub use dns::{DnsAnchor, DnsAnchors, DnsRecord, DnsRefusal, DnsSetRequest, DnsStatus, DnsUnsetRequest};

use super::describe::{Definitions, Described, object, words};
use crate::time::UnixSecs;

/// A moment, as in `2026-11-29T12:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub UnixSecs);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        let secs = u64::try_from(moment.unix_timestamp()).map_err(serde::de::Error::custom)?;
        Ok(Self(UnixSecs(secs)))
    }
}

impl Described for Moment {
    fn describe(_: &mut Definitions) -> Value {
        json!({ "type": "string", "format": "date-time" })
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// A text that must not be seen: a token, a passphrase. Erased when dropped, never printed by accident.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Zeroizing<String>);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Described for Secret {
    fn describe(_: &mut Definitions) -> Value {
        json!({ "type": "string", "format": "password" })
    }
}

words! {
    /// What a caller may do. Each includes those before it.
    pub enum Role {
        /// Look.
        Read = "read",
        /// Invite, renew and revoke; send and receive messages.
        Operate = "operate",
        /// Everything.
        Admin = "admin",
    }

    /// What kind of failure it is.
    pub enum ErrorCode {
        /// The request is not one (400).
        BadRequest = "bad_request",
        /// The caller's role does not allow it (403).
        Forbidden = "forbidden",
        /// What it names is not there (404).
        NotFound = "not_found",
        /// The path is there for another method (405).
        Method = "method",
        /// The request was not sent within the time (408).
        TooSlow = "too_slow",
        /// It does not fit the state of things (409).
        Conflict = "conflict",
        /// The request is too long (413).
        TooLarge = "too_large",
        /// Something went wrong in weir (500).
        Internal = "internal",
        /// Too many calls wait, or the node is stopping (503).
        Busy = "busy",
        /// The answer did not come within the time (504).
        NoAnswer = "no_answer",
    }

    /// How urgent a warning is.
    pub enum Severity {
        /// It will become a problem.
        Warning = "warning",
        /// It is one.
        Critical = "critical",
    }

    /// How it stands with a peer.
    pub enum PeerState {
        /// A handshake is under way.
        Connecting = "connecting",
        /// Packets pass.
        Connected = "connected",
        /// Packets pass, and its control plane does not answer at the moment.
        ControlRestarting = "control_restarting",
        /// No session: nothing was sent for a while. The next packet opens one.
        Idle = "idle",
        /// It does not answer.
        Unreachable = "unreachable",
    }

    /// How it stands with an address at which a member was said to be.
    pub enum CandidateState {
        /// It was not tried yet.
        Waiting = "waiting",
        /// It is being tried.
        Trying = "trying",
        /// A member of the network answered there.
        Member = "member",
        /// This node answered itself.
        Own = "self",
        /// It was tried in vain.
        Failed = "failed",
    }

    /// How it stands with a member.
    pub enum MemberState {
        /// Its certificate is valid.
        Valid = "valid",
        /// Its certificate has ended and is accepted for a while yet.
        Grace = "grace",
        /// Its certificate has ended.
        Expired = "expired",
        /// It was cut off.
        Revoked = "revoked",
    }
}

object! {
    /// Why a call failed.
    pub struct Error {
        /// The kind.
        code: ErrorCode,
        /// What is wrong.
        message: String,
        /// What to do about it.
        remedy: String,
    }

    /// Something that a person should know.
    pub struct Warning {
        /// How urgent it is.
        severity: Severity,
        /// What is the matter.
        what: String,
        /// What to do about it.
        remedy: String,
    }

    /// The call was carried out.
    pub struct Done {
        /// What was done.
        message: String,
    }

    /// Who this node is.
    pub struct Identity {
        /// Its name.
        name: String,
        /// Its id.
        node: String,
        /// Its addresses in the overlay.
        addresses: Vec<String>,
        /// Prefixes that it may announce.
        prefixes: Vec<String>,
        /// Its groups.
        groups: Vec<String>,
        /// Its roles, as `issuer`.
        roles: Vec<String>,
    }

    /// The network that this node is a member of.
    pub struct Network {
        /// Its name.
        name: String,
        /// Its id.
        network: String,
        /// Its IPv6 prefix.
        prefix: String,
        /// Members that this node knows.
        members: u64,
        /// Issuers that may sign certificates.
        issuers: u64,
    }

    /// Versions of the documents that this node goes by.
    pub struct Versions {
        /// Of the trust bundle.
        bundle: u64,
        /// Of the policy; 0 when there is none.
        policy: u64,
        /// Of the revocation lists.
        revocations: Vec<RevocationVersion>,
    }

    /// One signer's revocation list.
    pub struct RevocationVersion {
        /// The key that signs it.
        signer: String,
        /// Its version.
        version: u64,
        /// How many entries it has.
        entries: u64,
        /// Until when it counts as fresh.
        fresh_until: Moment,
    }

    /// The packet plane.
    pub struct Plane {
        /// Whether it answers.
        running: bool,
        /// One life of it.
        incarnation: String,
        /// The UDP port in use.
        port: u16,
        /// Ports of single workers.
        lane_ports: Vec<u16>,
        /// Worker threads.
        workers: u64,
        /// Sessions that are installed.
        sessions: u64,
        /// Routes that are installed.
        routes: u64,
    }

    /// How it stands with this node.
    pub struct Status {
        /// Version of the program.
        version: String,
        /// When it was started.
        started_at: Moment,
        /// Who this node is; nothing before it joined.
        identity: Option<Identity>,
        /// Its network; nothing before it joined.
        network: Option<Network>,
        /// Its certificate; nothing before it joined.
        certificate: Option<Certificate>,
        /// Versions of the documents that it goes by.
        versions: Versions,
        /// The packet plane.
        plane: Plane,
        /// Peers with which packets pass.
        peers_connected: u64,
        /// What happened so often since the start; what never did is left out.
        counters: Vec<Counter>,
        /// What a person should know.
        warnings: Vec<Warning>,
    }

    /// How often something happened.
    pub struct Counter {
        /// What: of certificates that peers showed, `chain_accepted`, `chain_in_grace`, or `chain_` and why it was refused; of links,
        /// `quic_` and what happened to them or to their datagrams; `control_sealed`, datagrams of packet planes that no worker took.
        name: String,
        /// How often.
        count: u64,
    }

    /// A member that this node has something to do with.
    pub struct Peer {
        /// Its name.
        name: String,
        /// Its id.
        node: String,
        /// How it stands.
        state: PeerState,
        /// Where its datagrams go.
        endpoint: Option<String>,
        /// Our UDP port towards it.
        port: Option<u16>,
        /// How many lanes to it go between ports of single workers; the others go by `port`.
        lanes_by_port: Option<u32>,
        /// `direct`, or `relay` and the member that forwards.
        path: String,
        /// Round-trip time in milliseconds.
        rtt_ms: Option<f64>,
        /// Part of the datagrams that are lost, 0 to 1.
        loss: Option<f64>,
        /// Bytes sent per second.
        tx_bytes_per_s: f64,
        /// Bytes received per second.
        rx_bytes_per_s: f64,
        /// Seconds since the key exchange.
        key_age_s: Option<u64>,
        /// Ratchet steps since the key exchange.
        key_generation: Option<u32>,
        /// The group of the key exchange, as `X25519MLKEM768`.
        group: Option<String>,
        /// The AEAD, as `AES-256-GCM`.
        algorithm: Option<String>,
    }

    /// An address at which a member was said to be.
    pub struct Candidate {
        /// The address and the port.
        address: String,
        /// Who said so: `bootstrap`, the configuration; `mdns`, somebody on the local network.
        sources: Vec<String>,
        /// When it was said last.
        seen_at: Moment,
        /// How it stands.
        state: CandidateState,
        /// The name of the member that answered there.
        name: Option<String>,
        /// Its id.
        node: Option<String>,
        /// Failures in a row.
        failures: u64,
        /// Why the last attempt failed.
        trouble: Option<String>,
    }

    /// A member of the network, as far as this node knows.
    pub struct Member {
        /// Its name.
        name: String,
        /// Its id.
        node: String,
        /// How it stands.
        state: MemberState,
        /// Its IPv6 address in the overlay.
        address: String,
        /// Where it says that it is reached.
        endpoints: Vec<String>,
        /// Prefixes that it may announce.
        prefixes: Vec<String>,
        /// Its groups.
        groups: Vec<String>,
        /// Its roles.
        roles: Vec<String>,
        /// End of its certificate, the last that was seen.
        not_after: Moment,
    }

    /// An invitation that this node gave out.
    pub struct Invite {
        /// Its id.
        invite: String,
        /// The name that it gives, or a pattern that ends in `*`.
        name: String,
        /// Prefixes that it gives.
        prefixes: Vec<String>,
        /// Groups that it gives.
        groups: Vec<String>,
        /// Its end.
        not_after: Moment,
        /// How often it may be used in all.
        uses: u32,
        /// Members that used it.
        used_by: Vec<String>,
        /// How often somebody with the right token came too late: it is in strange hands.
        refused: u32,
        /// Whether it was withdrawn.
        withdrawn: bool,
    }

    /// An invitation to make.
    #[serde(deny_unknown_fields)]
    pub struct InviteRequest {
        /// The member's name, or a pattern that ends in `*`.
        name: String,
        /// The prefix that it may announce; `auto` for the next free one of this issuer.
        #[serde(default)]
        subnet: Option<String>,
        /// Its groups.
        #[serde(default)]
        groups: Vec<String>,
        /// Its roles, as `relay`.
        #[serde(default)]
        roles: Vec<String>,
        /// How long the token is good, in seconds; an hour if nothing is said.
        #[serde(default)]
        ttl_secs: Option<u64>,
        /// How many members may join by it; one if nothing is said.
        #[serde(default)]
        uses: Option<u32>,
        /// The member that the newcomer takes the place of: it is revoked, and its name and prefixes are given again.
        #[serde(default)]
        replace: Option<String>,
    }

    /// A new invitation.
    pub struct Invited {
        /// Its id.
        invite: String,
        /// The token: whoever has it can join. It is shown this once.
        token: Secret,
        /// Its end.
        not_after: Moment,
    }

    /// An invitation to take back.
    #[serde(deny_unknown_fields)]
    pub struct WithdrawRequest {
        /// Its id.
        invite: String,
    }

    /// A network to join.
    #[serde(deny_unknown_fields)]
    pub struct JoinRequest {
        /// The token.
        token: Secret,
        /// The name to ask for, if the token leaves a choice.
        #[serde(default)]
        name: Option<String>,
        /// Addresses of members, at most 8, that are tried before those in the token: any member passes the request on to the issuer.
        #[serde(default)]
        via: Vec<String>,
    }

    /// Membership of a network.
    pub struct Joined {
        /// Who this node is now.
        identity: Identity,
        /// The network.
        network: Network,
    }

    /// A certificate.
    pub struct Certificate {
        /// The member's name.
        name: String,
        /// The member's id.
        node: String,
        /// The issuer's key id.
        issuer: String,
        /// Its beginning.
        not_before: Moment,
        /// Its end.
        not_after: Moment,
        /// When it will be renewed.
        renew_at: Moment,
        /// Whether it has ended and lives on in grace.
        in_grace: bool,
        /// Prefixes in it.
        prefixes: Vec<String>,
        /// Groups in it.
        groups: Vec<String>,
        /// Roles in it.
        roles: Vec<String>,
        /// It and its issuer's, in PEM.
        chain: Vec<String>,
    }

    /// A member to cut off.
    #[serde(deny_unknown_fields)]
    pub struct RevokeRequest {
        /// Its name or id.
        member: String,
        /// Why, for the list and the log.
        #[serde(default)]
        reason: String,
        /// Whether to invite a successor with the same name and prefixes.
        #[serde(default)]
        replace: bool,
    }

    /// A member was cut off.
    pub struct Revoked {
        /// Its name.
        name: String,
        /// Its id.
        node: String,
        /// Version of the list that says so.
        list_version: u64,
        /// The successor's invitation, if one was asked for.
        replacement: Option<Invited>,
    }

    /// An issuer to cut off.
    #[serde(deny_unknown_fields)]
    pub struct RevokeIssuerRequest {
        /// Its key id.
        issuer: String,
        /// Why, for the list and the log.
        #[serde(default)]
        reason: String,
    }

    /// One rule of the policy.
    pub struct PolicyRule {
        /// Its number, from 1.
        number: u64,
        /// `allow` or `deny`.
        action: String,
        /// Who it is about.
        from: String,
        /// Where to.
        to: String,
        /// The protocol, `any` for all.
        protocol: String,
        /// The ports, `any` for all.
        ports: String,
        /// Packets that it decided about on this node.
        hits: u64,
    }

    /// A version of the policy.
    pub struct Policy {
        /// Its version; 0 when there is none.
        version: u64,
        /// The key that signed it.
        signer: Option<String>,
        /// When.
        signed_at: Option<Moment>,
        /// What becomes of packets that no rule is about: `allow` or `deny`.
        otherwise: String,
        /// Its rules.
        rules: Vec<PolicyRule>,
        /// As it was written.
        text: String,
    }

    /// A policy to apply: one of the two.
    #[serde(deny_unknown_fields)]
    pub struct PolicyApplyRequest {
        /// As it was written, for a node that may sign.
        #[serde(default)]
        text: Option<String>,
        /// Signed elsewhere, in base64.
        #[serde(default)]
        signed: Option<String>,
    }

    /// One version in the policy's history.
    pub struct PolicyVersion {
        /// The version.
        version: u64,
        /// The key that signed it.
        signer: String,
        /// When.
        signed_at: Moment,
        /// How many rules it has.
        rules: u64,
        /// Whether it is in force.
        in_force: bool,
    }

    /// A version to go back to.
    #[serde(deny_unknown_fields)]
    pub struct PolicyRollbackRequest {
        /// The version; its rules become those of a new one.
        version: u64,
    }

    /// A packet to ask the policy about.
    #[serde(deny_unknown_fields)]
    pub struct ExplainRequest {
        /// Its source: an address or a member's name.
        src: String,
        /// Its destination: an address or a member's name.
        dst: String,
        /// Its protocol: `tcp`, `udp`, `icmp` or a number.
        #[serde(default)]
        proto: Option<String>,
        /// Its destination port.
        #[serde(default)]
        port: Option<u16>,
        /// A topic: the question is about a message, and source and destination are members.
        #[serde(default)]
        topic: Option<String>,
    }

    /// What the policy does with a packet.
    pub struct Explanation {
        /// Whether it passes.
        allowed: bool,
        /// The rule that decides; none for what no rule is about.
        rule: Option<u64>,
        /// How that came about, in sentences.
        reasons: Vec<String>,
    }

    /// Which part of the audit log.
    #[serde(deny_unknown_fields)]
    pub struct LogRequest {
        /// Entries after this number; the last ones if nothing is said.
        #[serde(default)]
        after: Option<u64>,
        /// How many at most; a hundred if nothing is said, at most a thousand.
        #[serde(default)]
        limit: Option<u32>,
    }

    /// An entry of the audit log.
    pub struct AuditEntry {
        /// Its number, from 1.
        number: u64,
        /// When.
        at: Moment,
        /// Who did it.
        actor: String,
        /// What was done, as `revoke`.
        act: String,
        /// To whom or what.
        subject: String,
        /// More about it.
        detail: String,
        /// Hash over this entry and the hash of the one before.
        hash: String,
    }

    /// From where on to check the audit log.
    #[serde(deny_unknown_fields)]
    pub struct LogVerifyRequest {
        /// Entries after this number, the last that was checked; all if nothing is said.
        #[serde(default)]
        after: Option<u64>,
    }

    /// A part of the audit log whose signatures, numbers and hashes are good.
    pub struct LogVerified {
        /// The last entry that was checked. Ask for those after it, until it is the last of all.
        verified: u64,
        /// The last entry of all.
        entries: u64,
        /// The first entry that is kept: a log that is full drops its oldest entries, and one of its entries tells of that.
        first: u64,
        /// Hash of the last entry that was checked. Note it elsewhere: that nothing was cut off shows against an older note only.
        hash: String,
    }

    /// A peer to measure.
    #[serde(deny_unknown_fields)]
    pub struct PingRequest {
        /// Its name, id or overlay address.
        peer: String,
        /// How many echoes; four if nothing is said, at most 20.
        #[serde(default)]
        count: Option<u16>,
    }

    /// A peer to make fresh keys with.
    #[serde(deny_unknown_fields)]
    pub struct RekeyRequest {
        /// Its name, id or overlay address.
        peer: String,
    }

    /// How it went.
    pub struct Ping {
        /// The peer's name.
        name: String,
        /// Its id.
        node: String,
        /// `direct`, or `relay` and the member that forwards.
        path: String,
        /// Echoes sent.
        sent: u16,
        /// Round-trip times of those that came back, in milliseconds.
        rtts_ms: Vec<f64>,
    }

    /// Revocations as X.509 lists, for programs that are not weir.
    pub struct Crl {
        /// The issuer's key id.
        issuer: String,
        /// The list in PEM.
        pem: String,
    }

    /// Whose revocation list is wanted.
    #[serde(deny_unknown_fields)]
    pub struct RevocationListRequest {
        /// Key id of the issuer or the revocation key.
        signer: String,
    }

    /// A revocation list.
    pub struct RevocationList {
        /// Key id of who signed it.
        signer: String,
        /// How many it revokes.
        entries: u32,
        /// The list as a text, as `weir ca sign-revocations` reads it.
        list: String,
    }

    /// A revocation list, signed with a revocation key.
    #[serde(deny_unknown_fields)]
    pub struct RevocationsApplyRequest {
        /// The list as a text, as `weir ca sign-revocations` wrote it.
        list: String,
    }

    /// What to seal a backup with.
    #[serde(deny_unknown_fields)]
    pub struct BackupRequest {
        /// The passphrase that opens it again.
        passphrase: Secret,
    }

    /// A sealed backup.
    pub struct Backup {
        /// The file's bytes in base64.
        file: String,
    }

    /// The trust bundle.
    pub struct Bundles {
        /// All its signed versions in base64, the first one first.
        versions: Vec<String>,
        /// The roots' certificates that hold now, in PEM, for programs that are not weir.
        #[serde(default)]
        roots: Vec<String>,
    }

    /// A new version of the trust bundle, signed in a ceremony.
    #[serde(deny_unknown_fields)]
    pub struct BundleApplyRequest {
        /// The signed versions in base64, those that are known may be among them.
        versions: Vec<String>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339_both_ways() {
        let moment = Moment(UnixSecs(1_796_000_000));
        let text = serde_json::to_string(&moment).unwrap();
        assert_eq!(text, "\"2026-11-30T00:53:20Z\"");
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), moment);
        assert_eq!(serde_json::from_str::<Moment>("\"2026-11-30T01:53:20+01:00\"").unwrap(), moment);
        assert!(serde_json::from_str::<Moment>("\"1969-01-01T00:00:00Z\"").is_err());
    }

    #[test]
    fn requests_refuse_what_they_do_not_know_and_answers_let_it_be() {
        assert!(serde_json::from_str::<InviteRequest>(r#"{"name":"a","grops":[]}"#).is_err());
        let invite: InviteRequest = serde_json::from_str(r#"{"name":"a"}"#).unwrap();
        assert_eq!((invite.groups, invite.uses), (Vec::new(), None));
        let text = r#"{"token":"weir1-abc"}"#;
        let join: JoinRequest = serde_json::from_str(text).unwrap();
        assert!(!format!("{join:?}").contains("abc"), "{join:?}");
        assert!(serde_json::from_str::<Done>(r#"{"message":"a","new":1}"#).is_ok());
    }
}
