//! The table of calls.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::describe::{Definitions, Described, text};
use super::messages::{
    Messages, OutcomesRequest, ReceiveRequest, Received, SendRequest, Sent, TakenAnswer, TakenRequest,
};
use super::types::{
    AuditEntry, Backup, BackupRequest, BundleApplyRequest, Bundles, Candidate, Certificate, Crl, DhtRecord,
    DhtRecordRequest, DhtStatus, DnsAnchors, DnsRefusal, DnsSetRequest, DnsStatus, DnsUnsetRequest, Done,
    ExplainRequest, Explanation, FindRequest, Found, Invite, InviteRequest, Invited, JoinRequest, Joined, LogRequest,
    LogVerified, LogVerifyRequest, Lookups, LookupsRequest, Member, Peer, Ping, PingRequest, Policy,
    PolicyApplyRequest, PolicyRollbackRequest, PolicyVersion, RekeyRequest, RevocationList, RevocationListRequest,
    RevocationsApplyRequest, RevokeIssuerRequest, RevokeRequest, Revoked, Role, Status, WithdrawRequest,
};

/// How a call's arguments travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// In the query; it changes nothing.
    Get,
    /// As JSON in the body.
    Post,
}

impl Method {
    /// As HTTP writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// Where the arguments of a call are read from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The method.
    pub method: Method,
    /// The address that was asked for.
    pub uri: &'a axum::http::Uri,
    /// The body.
    pub body: &'a [u8],
}

impl Input<'_> {
    fn arguments<T: DeserializeOwned>(&self) -> Result<T, String> {
        match self.method {
            Method::Get => {
                let query = axum::extract::Query::<T>::try_from_uri(self.uri);
                query.map(|query| query.0).map_err(|error| error.body_text())
            }
            // What takes arguments that may all be left out may come without a body.
            Method::Post if self.body.is_empty() => serde_json::from_str("{}").map_err(|error| error.to_string()),
            Method::Post => serde_json::from_slice(self.body).map_err(|error| error.to_string()),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub struct Route {
    /// Name of the call.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static [&'static str],
    /// HTTP method.
    pub method: Method,
    /// HTTP path.
    pub path: &'static str,
    /// The least role that may make it.
    pub role: Role,
    /// Reads the call from a request; the error says what does not fit.
    pub read: fn(Input<'_>) -> Result<Call, String>,
    /// Schema of the arguments, if it takes any.
    pub arguments: Option<fn(&mut Definitions) -> serde_json::Value>,
    /// Schema of the answer.
    pub answer: fn(&mut Definitions) -> serde_json::Value,
}

impl Route {
    /// What it does, in one text.
    pub fn description(&self) -> String {
        text(self.doc)
    }
}

macro_rules! calls {
    (@arguments) => { None };
    (@arguments $arguments:ty) => { Some(<$arguments as Described>::describe) };
    ($($(#[doc = $doc:literal])+ $name:ident $(($arguments:ty))? $method:ident $path:literal $role:ident -> $answer:ty;)*) => {
        /// Something that the node is asked for.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Call {
            $($(#[doc = $doc])+ $name $(($arguments))?,)*
        }

        /// All calls.
        pub static ROUTES: &[Route] = &[$(Route {
            name: stringify!($name),
            doc: &[$($doc),+],
            method: Method::$method,
            path: $path,
            role: Role::$role,
            read: |_input| Ok(Call::$name $((_input.arguments::<$arguments>()?))?),
            arguments: calls!(@arguments $($arguments)?),
            answer: <$answer as Described>::describe,
        },)*];

        impl Call {
            /// Its name in the table.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name { .. } => stringify!($name),)* }
            }
        }
    };
}

calls! {
    /// Who this node is and how it stands with it.
    Status Get "/v1/status" Read -> Status;
    /// Members that this node has something to do with: path, round-trip time, loss, rates, keys.
    Peers Get "/v1/peers" Read -> Vec<Peer>;
    /// Addresses at which a member was said to be, by the configuration or on the local network, and what came of trying them.
    Candidates Get "/v1/peers/candidates" Read -> Vec<Candidate>;
    /// All members that this node knows.
    Members Get "/v1/members" Read -> Vec<Member>;
    /// Measures a peer by echoes that its packet plane answers.
    Ping(PingRequest) Post "/v1/ping" Read -> Ping;
    /// Makes a fresh key exchange with a peer now; packets go on meanwhile.
    Rekey(RekeyRequest) Post "/v1/peers/rekey" Operate -> Done;
    /// Invitations that this node gave out. Issuers only.
    Invites Get "/v1/invites" Operate -> Vec<Invite>;
    /// Invites somebody: the answer has the token. Issuers only.
    Invite(InviteRequest) Post "/v1/invites" Operate -> Invited;
    /// Takes an invitation back. Who joined by it stays. Issuers only.
    WithdrawInvite(WithdrawRequest) Post "/v1/invites/withdraw" Operate -> Done;
    /// Joins a network.
    Join(JoinRequest) Post "/v1/join" Admin -> Joined;
    /// Leaves the network: tells the others, stops, and forgets keys and certificates.
    Leave Post "/v1/leave" Admin -> Done;
    /// This node's certificate.
    CertShow Get "/v1/certificate" Read -> Certificate;
    /// Renews this node's certificate now.
    CertRenew Post "/v1/certificate/renew" Operate -> Certificate;
    /// Cuts a member off. Issuers only.
    Revoke(RevokeRequest) Post "/v1/revocations" Operate -> Revoked;
    /// Cuts an issuer off, and with it all certificates that it signed. Issuers only.
    RevokeIssuer(RevokeIssuerRequest) Post "/v1/revocations/issuer" Admin -> Done;
    /// Revocations as X.509 lists, for programs that are not weir. Issuers only.
    ExportCrl Get "/v1/revocations/crl" Read -> Vec<Crl>;
    /// The revocation list of one signer: an issuer, or a revocation key.
    RevocationList(RevocationListRequest) Get "/v1/revocations/list" Read -> RevocationList;
    /// Takes a list over that a revocation key has signed, and spreads it.
    RevocationsApply(RevocationsApplyRequest) Post "/v1/revocations/list" Admin -> Done;
    /// The policy in force, with the hits of each rule.
    PolicyShow Get "/v1/policy" Read -> Policy;
    /// Puts a policy in force. One that is not signed is signed by this node, which must have an operator's key.
    PolicyApply(PolicyApplyRequest) Post "/v1/policy" Admin -> Policy;
    /// Versions of the policy that this node knows.
    PolicyHistory Get "/v1/policy/history" Read -> Vec<PolicyVersion>;
    /// Makes the rules of an earlier version those of a new one.
    PolicyRollback(PolicyRollbackRequest) Post "/v1/policy/rollback" Admin -> Policy;
    /// Says what the policy does with a packet, and why.
    PolicyExplain(ExplainRequest) Get "/v1/policy/explain" Read -> Explanation;
    /// Sends a message to a member, or to each of a group. It is kept here until it is taken, refused or past its time.
    SendMessage(SendRequest) Post "/v1/messages" Operate -> Vec<Sent>;
    /// What became of messages that were sent here; waits for their end if that is wanted.
    MessageOutcomes(OutcomesRequest) Post "/v1/messages/outcomes" Operate -> Vec<Sent>;
    /// Gives out messages that others have sent, and waits for them if that is wanted. Say which you have by `MessagesTaken`.
    ReceiveMessages(ReceiveRequest) Post "/v1/messages/receive" Operate -> Vec<Received>;
    /// These messages are yours: they are not given out again, and their senders hear of it.
    MessagesTaken(TakenRequest) Post "/v1/messages/taken" Operate -> TakenAnswer;
    /// You do not want these messages after all: they are given out again, in their old places.
    MessagesReturned(TakenRequest) Post "/v1/messages/returned" Operate -> TakenAnswer;
    /// What waits for others, and what waits here.
    Messages Get "/v1/messages" Read -> Messages;
    /// The audit log.
    AuditLog(LogRequest) Get "/v1/log" Read -> Vec<AuditEntry>;
    /// Checks a part of the audit log: that every entry is the issuer's and continues the one before. Issuers only.
    AuditVerify(LogVerifyRequest) Get "/v1/log/verify" Operate -> LogVerified;
    /// The trust bundle with all its versions.
    BundleShow Get "/v1/bundle" Read -> Bundles;
    /// Takes new versions of the trust bundle over, and spreads them.
    BundleApply(BundleApplyRequest) Post "/v1/bundle" Admin -> Done;
    /// How it stands with the DHT.
    DhtStatus Get "/v1/dht" Read -> DhtStatus;
    /// How far the look-ups are that people wait for. It is answered when something has happened since, or in a second.
    DhtLookups(LookupsRequest) Get "/v1/dht/lookups" Read -> Lookups;
    /// A record as it lies in the DHT.
    DhtRecord(DhtRecordRequest) Get "/v1/dht/record" Read -> DhtRecord;
    /// Finds a member by name, id or overlay address, or a service of it: by the directory, or else by the DHT.
    Find(FindRequest) Get "/v1/find" Read -> Found;
    /// Offers our own records to the DHT once more, now.
    DhtPublish Post "/v1/dht/publish" Operate -> Done;
    /// How it stands with names: zones, what this member publishes, what was not believed.
    DnsStatus Get "/v1/dns" Read -> DnsStatus;
    /// Publishes a record under this member's name. It is kept over a restart.
    DnsSet(DnsSetRequest) Post "/v1/dns/set" Operate -> Done;
    /// Publishes records no more that were set.
    DnsUnset(DnsUnsetRequest) Post "/v1/dns/unset" Operate -> Done;
    /// The keys by which others verify the network's names.
    DnsAnchors Get "/v1/dns/anchors" Read -> DnsAnchors;
    /// Records of others that were not believed, the latest last, at most 256.
    DnsLog Get "/v1/dns/log" Read -> Vec<DnsRefusal>;
    /// Ends the waiting of an issuer that was restored: it knows all members again and may allocate.
    Recovered Post "/v1/issuer/recovered" Admin -> Done;
    /// Everything that this node's issuer keeps, sealed: key, allocations, invitations, lists, log. Issuers only.
    Backup(BackupRequest) Post "/v1/backup" Admin -> Backup;
}

impl Call {
    /// Its line in the table.
    pub fn route(&self) -> &'static Route {
        ROUTES.iter().find(|route| route.name == self.name()).expect("one macro writes both")
    }

    /// Its arguments as JSON; null without any.
    pub fn arguments(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("structs of texts, numbers and lists are JSON")
    }
}

/// What the node answers. Which one belongs to which call, the table says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of `Status`.
    Status(Box<Status>),
    /// Of `Peers`.
    Peers(Vec<Peer>),
    /// Of `Candidates`.
    Candidates(Vec<Candidate>),
    /// Of `Members`.
    Members(Vec<Member>),
    /// Of `Ping`.
    Ping(Ping),
    /// Of `Invites`.
    Invites(Vec<Invite>),
    /// Of `Invite`.
    Invited(Invited),
    /// Of `Join`.
    Joined(Box<Joined>),
    /// Of `CertShow` and `CertRenew`.
    Certificate(Box<Certificate>),
    /// Of `RevocationList`.
    RevocationList(RevocationList),
    /// Of `DhtStatus`.
    DhtStatus(Box<DhtStatus>),
    /// Of `DhtLookups`.
    Lookups(Lookups),
    /// Of `DhtRecord`.
    DhtRecord(Box<DhtRecord>),
    /// Of `Find`.
    Found(Box<Found>),
    /// Of `DnsStatus`.
    DnsStatus(Box<DnsStatus>),
    /// Of `DnsAnchors`.
    DnsAnchors(DnsAnchors),
    /// Of `DnsLog`.
    DnsLog(Vec<DnsRefusal>),
    /// Of `Revoke`.
    Revoked(Revoked),
    /// Of `ExportCrl`.
    Crls(Vec<Crl>),
    /// Of `PolicyShow`, `PolicyApply` and `PolicyRollback`.
    Policy(Policy),
    /// Of `PolicyHistory`.
    PolicyHistory(Vec<PolicyVersion>),
    /// Of `PolicyExplain`.
    Explanation(Explanation),
    /// Of `SendMessage` and `MessageOutcomes`.
    Sent(Vec<Sent>),
    /// Of `ReceiveMessages`.
    Received(Vec<Received>),
    /// Of `MessagesTaken` and `MessagesReturned`.
    Taken(TakenAnswer),
    /// Of `Messages`.
    Messages(Messages),
    /// Of `AuditLog`.
    Log(Vec<AuditEntry>),
    /// Of `AuditVerify`.
    LogVerified(LogVerified),
    /// Of `BundleShow`.
    Bundles(Bundles),
    /// Of `Backup`.
    Backup(Backup),
    /// Of the rest.
    Done(Done),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_calls_share_method_and_path() {
        let all: BTreeSet<_> = ROUTES.iter().map(|route| (route.method.name(), route.path)).collect();
        assert_eq!(all.len(), ROUTES.len());
    }

    /// Requests are read back from what the client sends; so is what changes nothing, and only that.
    #[test]
    fn calls_say_their_route_and_arguments() {
        let call = Call::WithdrawInvite(WithdrawRequest { invite: "ab".into() });
        assert_eq!(call.route().path, "/v1/invites/withdraw");
        assert_eq!(call.arguments(), serde_json::json!({ "invite": "ab" }));
        assert_eq!(Call::Status.arguments(), serde_json::Value::Null);
        for route in ROUTES.iter().filter(|route| route.method == Method::Get) {
            assert!(route.role < Role::Admin, "{} changes nothing", route.name);
        }
    }

    #[test]
    fn arguments_come_from_the_query_or_the_body() {
        let input = |method, uri: &'static str, body: &'static [u8]| {
            let uri = Box::leak(Box::new(axum::http::Uri::from_static(uri)));
            let route = ROUTES.iter().find(|route| route.method == method && route.path == uri.path()).unwrap();
            (route.read)(Input { method, uri, body })
        };
        let explain =
            ExplainRequest { src: "a".into(), dst: "fd00::1".into(), proto: None, port: Some(443), topic: None };
        let read = input(Method::Get, "/v1/policy/explain?src=a&dst=fd00::1&port=443", b"");
        assert_eq!(read, Ok(Call::PolicyExplain(explain)));
        assert!(input(Method::Get, "/v1/policy/explain?src=a", b"").unwrap_err().contains("dst"));
        assert!(input(Method::Get, "/v1/log?limt=3", b"").unwrap_err().contains("limt"));
        let read = input(Method::Post, "/v1/ping", br#"{"peer":"b"}"#);
        assert_eq!(read, Ok(Call::Ping(PingRequest { peer: "b".into(), count: None })));
        assert!(input(Method::Post, "/v1/ping", b"").unwrap_err().contains("peer"));
        assert!(input(Method::Post, "/v1/ping", b"{").is_err());
        assert_eq!(input(Method::Post, "/v1/leave", b""), Ok(Call::Leave));
    }
}
