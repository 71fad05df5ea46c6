//! What an issuer is asked and what it answers.
//!
//! One pair of enums, so that the issuer can sit in a process of its own: an [`Asked`] goes in, a `Result<Reply, Refused>` comes out, each
//! in postcard's format. What a member sends itself is signed by it and bound to its connection:
//!
//! ```text
//!  join, renew, leave:   body │ signature by the identity key over exporter (32) ‖ body
//!  join, renew:          and a signature by the new leaf key over the same, to show that it is held
//!  join:                 and HMAC-SHA-256(invite secret, exporter ‖ body)
//! ```

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;
use zeroize::Zeroizing;

use crate::audit;
use crate::codec;
use crate::pki::admission::SignedAdmission;
use crate::pki::bundle::SignedBundle;
use crate::pki::certificate::Validity;
use crate::pki::dnssec::delegation::Delegation;
use crate::pki::id::{InviteId, KeyId, NetworkId, NodeId, Nonce};
use crate::pki::key::{BadSignature, Domain, PrivateKey, PublicKey, Signature};
use crate::pki::name::{NameError, NamePattern};
use crate::pki::revocation::{Entry, Revoked, SignedRevocationList};
use crate::pki::signed::Signed;
use crate::pki::statement::SignedStatement;
use crate::pki::token::{self, InviteSecret};
use crate::time::UnixSecs;

/// Longest body of a member's request: a certificate and some keys.
pub const BODY_LEN_MAX: usize = 10 * 1024;
/// Longest policy that is signed.
pub const POLICY_LEN_MAX: usize = 1 << 20;
/// Bytes of bundles in one grant, and again of revocation lists; the rest comes over the first link.
pub const GRANT_PART_LEN_MAX: usize = 400 * 1024;

/// Bytes of documents in one request to learn, unless it is a single one that is longer: a quarter of what a message to the issuer takes.
const LEARN_PART_LEN_MAX: usize = 512 * 1024;
/// Entries of the audit log that are checked at one request. Ours: a fraction of a second, in which nobody else is answered.
pub const AUDIT_VERIFY_MAX: usize = 2048;

/// A text that is not printed and erased when dropped: a passphrase, a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretText(pub Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// What a joiner asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinBody {
    /// The network.
    pub network: NetworkId,
    /// The invitation.
    pub invite: InviteId,
    /// The joiner's identity key.
    pub identity: PublicKey,
    /// Its first leaf key.
    pub leaf_public: PublicKey,
    /// The name it wants, where the invitation leaves a choice.
    pub wanted_name: Option<String>,
    /// The key that signs its zone, if it is to have one.
    pub dns_key: Option<PublicKey>,
    /// The version of the trust bundle that it has walked to; 0 before the first.
    pub bundle_version: u64,
}

/// What a member asks for before its certificate ends, or after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewBody {
    /// The network.
    pub network: NetworkId,
    /// The last certificate, in DER.
    pub certificate: Vec<u8>,
    /// The new leaf key.
    pub leaf_public: PublicKey,
    /// The key that signs its zone, if it is to have one.
    pub dns_key: Option<PublicKey>,
    /// The version of the trust bundle that it has.
    pub bundle_version: u64,
}

/// What a member says that wants to be one no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveBody {
    /// The network.
    pub network: NetworkId,
    /// The last certificate, in DER.
    pub certificate: Vec<u8>,
}

/// A [`JoinBody`] with its proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The body's bytes.
    pub body: Vec<u8>,
    /// By the invitation's secret.
    pub proof: [u8; 32],
    /// By the leaf key.
    pub leaf_proof: Signature,
    /// By the identity key.
    pub signature: Signature,
}

/// A [`RenewBody`] with its proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The body's bytes.
    pub body: Vec<u8>,
    /// By the leaf key.
    pub leaf_proof: Signature,
    /// By the identity key.
    pub signature: Signature,
}

/// A [`LeaveBody`] with its proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// The body's bytes.
    pub body: Vec<u8>,
    /// By the identity key.
    pub signature: Signature,
}

fn bound(exporter: &[u8; 32], body: &[u8]) -> Vec<u8> {
    [&exporter[..], body].concat()
}

/// Whether `key` signed this body for the connection with this exporter.
///
/// # Errors
/// [`BadSignature`].
pub fn check_bound(
    key: &PublicKey,
    exporter: &[u8; 32],
    body: &[u8],
    signature: &Signature,
) -> Result<(), BadSignature> {
    key.verify(Domain::Request, &bound(exporter, body), signature)
}

impl JoinRequest {
    /// Signs and proves a body, on the joiner's side.
    pub fn new(
        body: &JoinBody,
        identity: &PrivateKey,
        leaf: &PrivateKey,
        secret: &InviteSecret,
        exporter: &[u8; 32],
    ) -> Self {
        let body = codec::encode(body);
        let message = bound(exporter, &body);
        let [leaf_proof, signature] = [leaf, identity].map(|key| key.sign(Domain::Request, &message));
        Self { proof: token::proof(secret, exporter, &body), body, leaf_proof, signature }
    }
}

impl RenewRequest {
    /// Signs a body, on the member's side.
    pub fn new(body: &RenewBody, identity: &PrivateKey, leaf: &PrivateKey, exporter: &[u8; 32]) -> Self {
        let body = codec::encode(body);
        let message = bound(exporter, &body);
        let [leaf_proof, signature] = [leaf, identity].map(|key| key.sign(Domain::Request, &message));
        Self { body, leaf_proof, signature }
    }
}

impl LeaveRequest {
    /// Signs a body, on the member's side.
    pub fn new(body: &LeaveBody, identity: &PrivateKey, exporter: &[u8; 32]) -> Self {
        let body = codec::encode(body);
        let signature = identity.sign(Domain::Request, &bound(exporter, &body));
        Self { body, signature }
    }
}

/// Which networks behind it a new member gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subnet {
    /// None: it has its own address only.
    #[default]
    None,
    /// These.
    Given(Vec<Prefix>),
    /// A free one of IPv4 from the issuer's slice.
    Auto {
        /// Bits of its prefix.
        bit_len: u8,
    },
}

/// An invitation to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteSpec {
    /// The name, or what it may be. Under a pattern a joiner that wants none gets a number.
    pub name: NamePattern,
    /// The networks behind it.
    pub subnet: Subnet,
    /// Its groups.
    pub groups: Vec<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// How long it is good.
    pub ttl_secs: u32,
    /// How many may use it.
    pub uses: u32,
}

/// How long an invitation is good when nobody says otherwise.
pub const TTL_SECS_DEFAULT: u32 = 3600;

impl InviteSpec {
    /// One member of this name, for an hour, with nothing behind it.
    pub fn of(name: NamePattern) -> Self {
        let ttl_secs = TTL_SECS_DEFAULT;
        Self { name, subnet: Subnet::None, groups: vec![], roles: vec![], ttl_secs, uses: 1 }
    }
}

/// Where a joiner finds its issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node at whose side the issuer sits.
    pub node: NodeId,
    /// Its addresses, and those of members that relay.
    pub endpoints: Vec<SocketAddr>,
}

/// A request, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// For the audit log: a user of the machine, or a node.
    pub by: String,
    /// What is asked.
    pub request: Request,
}

/// What an issuer can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A joiner's request, as it came over the connection with this exporter.
    Join {
        /// The request.
        request: JoinRequest,
        /// Of the joiner's connection.
        exporter: [u8; 32],
    },
    /// A member's request for its next certificate.
    Renew {
        /// The request.
        request: RenewRequest,
        /// Of the member's connection.
        exporter: [u8; 32],
    },
    /// A member leaves.
    Leave {
        /// The request.
        request: LeaveRequest,
        /// Of the member's connection.
        exporter: [u8; 32],
    },
    /// Writes an invitation.
    Invite {
        /// What it grants.
        spec: InviteSpec,
        /// Where to join.
        contact: Contact,
    },
    /// Writes an invitation for the successor of a member, which gets its name, networks, groups and roles. The member is revoked when the
    /// successor joins.
    Replace {
        /// Whose successor.
        of: Predecessor,
        /// How long the invitation is good.
        ttl_secs: u32,
        /// Where to join.
        contact: Contact,
    },
    /// All invitations.
    Invites,
    /// Takes an invitation back.
    Withdraw(InviteId),
    /// All members that this issuer admitted or learned of.
    Members,
    /// Revokes.
    Revoke {
        /// Who or what.
        what: Revoked,
        /// Why.
        reason: String,
    },
    /// Takes over entries of a list that will no longer count, as it stands.
    Adopt(Vec<Entry>),
    /// This issuer's own list from an entry on.
    Revocations {
        /// How many entries the asker has.
        from: u32,
    },
    /// The certificates of this issuer that are revoked, as an X.509 list.
    ExportCrl,
    /// What the network knows and the issuer, having no network, may not.
    Learn {
        /// Versions of the trust bundle, in order.
        bundles: Vec<SignedBundle>,
        /// Lists of others, and its own after a restore.
        revocations: Vec<SignedRevocationList>,
        /// A newer admission seed.
        admission: Option<SignedAdmission>,
        /// Statements of members, so that what they have is not given out again after a restore.
        statements: Vec<SignedStatement>,
    },
    /// After a restore: the issuer has been told of all members that there are, and may allocate again.
    Recovered,
    /// Signs a version of the policy.
    SignPolicy {
        /// Its version, higher than any that was signed.
        version: u64,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// Draws a new admission seed.
    RotateAdmission,
    /// Entries of the audit log.
    Audit {
        /// From which on.
        from: u64,
        /// How many at most.
        max: u32,
    },
    /// Everything an issuer is, in one encrypted file.
    Backup {
        /// To open it with.
        passphrase: SecretText,
    },
    /// How it stands.
    Status,
    /// Checks a part of the audit log: signatures, sequence, chain.
    VerifyAudit {
        /// From which entry on.
        from: u64,
    },
}

/// Whose place is to be taken. The network forgets who has left or was revoked; the issuer that admitted them does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Predecessor {
    /// A member by its id.
    Node(NodeId),
    /// Whoever has or had this name last.
    Name(String),
}

impl Request {
    /// What the network knows, in the order in which an issuer needs it and in as many requests as there are messages to fill.
    pub fn learn(
        bundles: Vec<SignedBundle>,
        revocations: Vec<SignedRevocationList>,
        admission: Option<SignedAdmission>,
        statements: Vec<SignedStatement>,
    ) -> Vec<Self> {
        let mut parts = LearnParts { whole: vec![], last: Learned::default(), len: 0 };
        for bundle in bundles {
            parts.part(bundle.wire_len()).bundles.push(bundle);
        }
        for list in revocations {
            parts.part(codec::encode(&list).len()).revocations.push(list);
        }
        if let Some(admission) = admission {
            let len = codec::encode(&admission).len();
            parts.part(len).admission = Some(admission);
        }
        for statement in statements {
            parts.part(codec::encode(&statement).len()).statements.push(statement);
        }
        parts.whole.push(parts.last);
        let request = |Learned { bundles, revocations, admission, statements }| Self::Learn {
            bundles,
            revocations,
            admission,
            statements,
        };
        parts.whole.into_iter().map(request).collect()
    }
}

#[derive(Default)]
struct Learned {
    bundles: Vec<SignedBundle>,
    revocations: Vec<SignedRevocationList>,
    admission: Option<SignedAdmission>,
    statements: Vec<SignedStatement>,
}

struct LearnParts {
    whole: Vec<Learned>,
    last: Learned,
    len: usize,
}

impl LearnParts {
    /// The part that takes something of this length.
    fn part(&mut self, len: usize) -> &mut Learned {
        if self.len > 0 && self.len + len > LEARN_PART_LEN_MAX {
            self.whole.push(std::mem::take(&mut self.last));
            self.len = 0;
        }
        self.len += len;
        &mut self.last
    }
}

/// What a joiner gets, and a member that renews.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The member's id.
    pub node: NodeId,
    /// What the issuer added to it.
    pub nonce: Nonce,
    /// Its name.
    pub name: String,
    /// Leaf and issuer certificate.
    pub chain: Vec<Vec<u8>>,
    /// What travels with records.
    pub statement: SignedStatement,
    /// Versions of the trust bundle after the one that the member has.
    pub bundles: Vec<SignedBundle>,
    /// Revocation lists, as many as fit.
    pub revocations: Vec<SignedRevocationList>,
    /// The admission seed.
    pub admission: SignedAdmission,
    /// The member's place in the network's zones, where it asked for one.
    pub delegation: Option<Delegation>,
}

/// An invitation as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteInfo {
    /// Its id.
    pub invite: InviteId,
    /// What it grants.
    pub spec: InviteSpec,
    /// Until when.
    pub not_after: UnixSecs,
    /// Who used it.
    pub used_by: Vec<NodeId>,
    /// How often a key with the right secret came too late: someone else has the token.
    pub refused: u32,
    /// Whether it was taken back.
    pub withdrawn: bool,
    /// Whom its user replaces.
    pub replaces: Option<NodeId>,
}

/// A member as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The networks behind it.
    pub prefixes: Vec<Prefix>,
    /// Its groups.
    pub groups: Vec<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// The certificate last signed here.
    pub validity: Option<Validity>,
    /// Whether a list names it.
    pub revoked: bool,
}

/// How an issuer stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its key's id.
    pub issuer: KeyId,
    /// The network.
    pub network: NetworkId,
    /// The version of the trust bundle that it goes by.
    pub bundle_version: u64,
    /// Validity of the certificate that it signs under, if it has one now.
    pub certificate: Option<Validity>,
    /// Until when it can sign, with successors that were signed ahead.
    pub last_until: Option<UnixSecs>,
    /// Whether a slice is its own.
    pub allocates: bool,
    /// Whether it waits to be told of the members after a restore.
    pub recovering: bool,
    /// Allocations made.
    pub counter: u64,
    /// The end of the audit log.
    pub audit: audit::Position,
    /// Entries in its revocation list, of [`crate::pki::revocation::ENTRIES_MAX`].
    pub revocations: u32,
}

/// What an issuer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To a join or a renewal.
    Granted(Box<Grant>),
    /// To an invitation.
    Invited {
        /// Its id.
        invite: InviteId,
        /// To hand over, secretly.
        token: SecretText,
        /// Until when it is good.
        not_after: UnixSecs,
    },
    /// All invitations.
    Invites(Vec<InviteInfo>),
    /// It is done, and there is nothing to hand on.
    Done,
    /// All members.
    Members(Vec<MemberInfo>),
    /// The issuer's list, to spread, and the seed that holds now.
    Revoked {
        /// The list.
        list: SignedRevocationList,
        /// The seed.
        admission: SignedAdmission,
    },
    /// The issuer's list.
    Revocations(SignedRevocationList),
    /// An X.509 list.
    Crl {
        /// By this issuer, about its certificates.
        issuer: KeyId,
        /// In DER.
        list: Vec<u8>,
    },
    /// A policy's signature.
    Policy {
        /// By this issuer.
        signer: KeyId,
        /// Over the bytes that were given.
        signature: Signature,
    },
    /// The new seed.
    Admission(SignedAdmission),
    /// Entries of the audit log.
    Audit(Vec<Signed<audit::Entry>>),
    /// The file.
    Backup(Vec<u8>),
    /// How it stands.
    Status(Box<Status>),
    /// A part of the audit log is good.
    AuditVerified {
        /// Up to here.
        verified: audit::Position,
        /// How many entries the log has had so far.
        entries: u64,
        /// The first that is kept.
        first: u64,
    },
}

/// Why an issuer does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// A request does not decode.
    #[error("the request does not decode")]
    Malformed,
    /// It names another network.
    #[error("the request is for network {0}")]
    OtherNetwork(NetworkId),
    /// No such invitation.
    #[error("no invitation {0} here; it was withdrawn long ago, or the token names another issuer")]
    UnknownInvite(InviteId),
    /// The proof of the secret does not fit.
    #[error("the token's secret does not fit")]
    BadProof,
    /// A signature does not fit.
    #[error("the request's signatures do not fit")]
    BadSignature,
    /// The invitation's time is over.
    #[error("the invitation was good until {0}; write a new one")]
    InviteExpired(UnixSecs),
    /// It was taken back.
    #[error("the invitation was withdrawn; ask for a new one")]
    Withdrawn,
    /// Others have used it up.
    #[error(
        "the token was used by another key; if that was not you, someone else has it: ask for a new one and have the other revoked"
    )]
    Spent,
    /// The identity key is a member's.
    #[error("the identity key belongs to {0} already; leave first, or join with a new state directory")]
    AlreadyMember(NodeId),
    /// The member is revoked.
    #[error("{0} is revoked; join anew with a new invitation")]
    MemberRevoked(NodeId),
    /// A name is none, or reserved.
    #[error("the name: {0}")]
    Name(NameError),
    /// The name is a member's or promised to one.
    #[error("the name {0} is taken; choose another, or replace its holder")]
    NameTaken(String),
    /// The invitation or the slice does not cover the name.
    #[error("the name {0} is not covered by {1}")]
    NameNotAllowed(String, String),
    /// A prefix is not this issuer's to give.
    #[error("{0} is not in this issuer's slice; ask the issuer that has it, or move it in a ceremony")]
    PrefixNotAllowed(Prefix),
    /// A prefix is given out or promised.
    #[error("{0} overlaps {1}, which is taken")]
    PrefixTaken(Prefix, Prefix),
    /// No free prefix of that size is left.
    #[error(
        "no free /{0} is left in this issuer's slice; replace members that are gone, or widen the slice in a ceremony"
    )]
    PrefixesExhausted(u8),
    /// This issuer allocates nothing.
    #[error("this issuer has no slice and admits nobody; ask one that has, or move the slice here in a ceremony")]
    NotAllocator,
    /// It was restored and does not know all members yet.
    #[error("this issuer was restored and waits to be told of the members admitted since; then `weir ca recovered`")]
    Recovering,
    /// The bundle does not name this issuer's key, or it is revoked.
    #[error("the trust bundle does not name this issuer, or has revoked it")]
    NotIssuer,
    /// It has no certificate for this moment.
    #[error("this issuer has no certificate that is valid now; renew it in a ceremony")]
    NoCertificate,
    /// The certificate that was shown is no good.
    #[error("the certificate shown: {0}")]
    Certificate(String),
    /// The certificate that was shown ended too long ago.
    #[error("the certificate ended at {0}, too long ago to be renewed; join anew with a new invitation")]
    TooOld(UnixSecs),
    /// The member is not known here.
    #[error("{0} was not admitted here; ask the issuer that did")]
    UnknownMember(NodeId),
    /// More of something than is possible.
    #[error("{what}: {found}, possible are {min} to {max}")]
    Limit {
        /// Of what.
        what: String,
        /// How many.
        found: u64,
        /// At least.
        min: u64,
        /// At most.
        max: u64,
    },
    /// A group or role that is no label.
    #[error("the group or role {0:?}: {1}")]
    Group(String, NameError),
    /// A policy that is not newer.
    #[error("version {found} of the policy is not after version {last}, which is signed")]
    PolicyVersion {
        /// The highest that was signed.
        last: u64,
        /// The one given.
        found: u64,
    },
    /// This key does not sign policy.
    #[error("the trust bundle does not name this issuer's key as an operator's")]
    NotOperator,
    /// Something learned was not believed.
    #[error("not believed: {0}")]
    NotBelieved(String),
    /// The store failed; nothing was signed.
    #[error("nothing was signed, because the store failed: {0}")]
    Store(String),
    /// The backup could not be written.
    #[error("the backup: {0}")]
    Backup(String),
    /// The audit log is not good, or cannot be read.
    #[error("{0}")]
    Audit(String),
    /// The issuer's process does not run, and has not heard of it.
    #[error("the issuer does not run just now; ask once more, and see its log if it stays away")]
    Absent,
    /// Nobody has or had the name.
    #[error("nobody has or had the name {0} here; ask the issuer that admitted it")]
    UnknownName(String),
}

impl Refused {
    /// For a counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::OtherNetwork(_) => "other_network",
            Self::UnknownInvite(_) => "unknown_invite",
            Self::BadProof => "bad_proof",
            Self::BadSignature => "bad_signature",
            Self::InviteExpired(_) => "invite_expired",
            Self::Withdrawn => "withdrawn",
            Self::Spent => "spent",
            Self::AlreadyMember(_) => "already_member",
            Self::MemberRevoked(_) => "member_revoked",
            Self::Name(_) => "name",
            Self::NameTaken(_) => "name_taken",
            Self::NameNotAllowed(..) => "name_not_allowed",
            Self::PrefixNotAllowed(_) => "prefix_not_allowed",
            Self::PrefixTaken(..) => "prefix_taken",
            Self::PrefixesExhausted(_) => "prefixes_exhausted",
            Self::NotAllocator => "not_allocator",
            Self::Recovering => "recovering",
            Self::NotIssuer => "not_issuer",
            Self::NoCertificate => "no_certificate",
            Self::Certificate(_) => "certificate",
            Self::TooOld(_) => "too_old",
            Self::UnknownMember(_) => "unknown_member",
            Self::Limit { .. } => "limit",
            Self::Group(..) => "group",
            Self::PolicyVersion { .. } => "policy_version",
            Self::NotOperator => "not_operator",
            Self::NotBelieved(_) => "not_believed",
            Self::Store(_) => "store",
            Self::Backup(_) => "backup",
            Self::Audit(_) => "audit",
            Self::Absent => "absent",
            Self::UnknownName(_) => "unknown_name",
        }
    }
}
