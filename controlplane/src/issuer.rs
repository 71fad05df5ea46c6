//! The issuer: who gets which name, which addresses and a certificate, and who has them no longer.
//!
//! ```text
//!  Asked ──▸ checks ──▸ batch: record + audit entry ──▸ store ──▸ memory ──▸ signature ──▸ Reply
//!                                                         └─ fails: nothing has changed, nothing is signed
//! ```
//!
//! What is allocated is on disk before anything is signed, so that a crash in between costs a retry and never a second allocation. The
//! issuer has no network: what it must know of the world it is told by [`Request::Learn`], and it believes only what is signed. It signs
//! with the certificate that the trust bundle holds for its key at the time; it allocates what the bundle gives it as its slice, and renews
//! what any issuer of the network gave.

mod allocation;
mod backup;
mod invite;
mod join;
mod leaves;
mod list;
mod message;
mod seat;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;

use self::allocation::Allocations;
pub use self::backup::{BACKUP_LEN_MAX, RestoreError, Restored, restore};
use self::invite::Invite;
pub use self::invite::{SUBNETS_MAX, TTL_SECS, USES_MAX};
pub use self::join::ENTRIES_RESERVED;
use self::leaves::Leaves;
pub use self::leaves::{CRL_ROWS_MAX, LEAVES_MAX};
pub use self::message::*;
pub use self::seat::Seat;
use crate::audit::{self, Act, AuditError};
use crate::codec;
use crate::pki::admission::{AdmissionDocument, SignedAdmission};
use crate::pki::bundle::{Bundle, BundleError, Chain, SignedBundle, Slice};
use crate::pki::certificate::{self, AuthorityFields, Serial, Validity};
use crate::pki::id::{InviteId, KeyId, NetworkId, NodeId, Nonce};
use crate::pki::key::{PrivateKey, PublicKey};
use crate::pki::revocation::{RevocationError, RevocationSet, Revoked, SignedRevocationList};
use crate::pki::signed::Signed;
use crate::random::Random;
use crate::store::{Batch, Store, StoreError, Table};
use crate::time::{Now, UnixSecs};

/// Invitations that are kept. Ours: a fleet's roll-out has one or a few, with many uses.
pub const INVITES_MAX: usize = 1024;
/// Members of one issuer. Ours: what a person still calls one network; a record has about 300 bytes.
pub const MEMBERS_MAX: usize = 65_536;
/// How long after its end a certificate may be renewed: a quarter, for sites that are switched off.
pub const RENEWAL_SECS_MAX: u64 = 90 * 86_400;
/// How often the revocation list is signed afresh.
pub const RESIGN_INTERVAL: Duration = Duration::from_secs(600);
/// How much earlier it is signed for who asks. Ours: longer than an answer takes.
const RESIGN_EARLY: Duration = Duration::from_secs(30);

/// Key of [`State`] in the issuer's table; invitations, members and their certificates have a letter and the id.
const STATE_KEY: &[u8] = b"s";
const INVITE_LETTER: u8 = b'i';
const MEMBER_LETTER: u8 = b'm';
const LEAVES_LETTER: u8 = b'l';
/// Longest record that is read back: an invitation with all its users.
const RECORD_LEN_MAX: usize = 256 * 1024;
/// Longest bundle or revocation list in the store.
const DOCUMENT_LEN_MAX: usize = 2 << 20;

/// What does not belong to one invitation or member.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    network: NetworkId,
    /// Rises with each allocation; a backup is measured by it.
    counter: u64,
    /// The highest version of the policy that was signed.
    policy_version: u64,
    /// The seed that holds.
    admission: SignedAdmission,
    /// Nothing is allocated until the network's members are known again.
    recovering: bool,
}

/// A member, as far as allocation goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    node: NodeId,
    identity: PublicKey,
    nonce: Nonce,
    name: String,
    /// The networks behind it, without its own address.
    prefixes: Vec<Prefix>,
    groups: Vec<String>,
    roles: Vec<String>,
    /// The last certificate signed here.
    issued: Option<Issued>,
}

/// What makes a certificate, so that a retry gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    leaf_public: PublicKey,
    /// Of the member's zone, if it has one.
    dns_key: Option<PublicKey>,
    serial: Serial,
    validity: Validity,
}

/// Why an issuer does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenIssuerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no issuer in this store.
    #[error("this store holds no issuer; run `weir init`, or restore a backup")]
    Nothing,
    /// There is one already.
    #[error("this store holds an issuer already; use another state directory")]
    Exists,
    /// A record does not decode.
    #[error("a record in the table {0} is damaged; restore the backup")]
    Record(&'static str),
    /// The chain of bundles does not hold.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The audit log cannot be continued.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The bundle does not name the key.
    #[error("the trust bundle names no issuer {0}; add it in a ceremony: weir ca add-issuer")]
    NotIssuer(KeyId),
}

/// The machine.
#[derive(Debug)]
pub struct Issuer<S> {
    store: S,
    key: PrivateKey,
    id: KeyId,
    chain: Chain,
    revoked: RevocationSet,
    state: State,
    invites: BTreeMap<InviteId, Invite>,
    members: BTreeMap<NodeId, Record>,
    identities: HashMap<PublicKey, NodeId>,
    allocations: Allocations,
    leaves: Leaves,
    /// Of the last X.509 list.
    crl_number: u64,
    audit: audit::Position,
    audit_start: audit::Start,
    /// Entries of the log that are kept.
    audit_max: u64,
    resign_at: Option<Instant>,
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

fn keyed(letter: u8, id: &[u8]) -> Vec<u8> {
    [&[letter][..], id].concat()
}

/// Adds one version of the bundle to a batch.
fn put_bundle(batch: &mut Batch, version: u64, bundle: &SignedBundle) {
    batch.put(Table::Bundles, version.to_be_bytes(), codec::encode(bundle));
}

impl<S: Store> Issuer<S> {
    /// Makes a new issuer in an empty store, which keeps so many entries of its audit log: [`audit::ENTRIES_MAX_DEFAULT`] if nobody says.
    ///
    /// # Errors
    /// [`OpenIssuerError`].
    pub fn create(
        mut store: S,
        key: PrivateKey,
        network: NetworkId,
        bundles: &[SignedBundle],
        audit_max: u64,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Self, OpenIssuerError> {
        if store.value(Table::Issuer, STATE_KEY)?.is_some() {
            return Err(OpenIssuerError::Exists);
        }
        let id = key.public().id();
        if Chain::walk(network, bundles)?.current().issuer(id).is_none() {
            return Err(OpenIssuerError::NotIssuer(id));
        }
        let version = 1;
        let document = AdmissionDocument { version, seed: zeroize::Zeroizing::new(random.array()), since: now.wall };
        let admission = Signed::sign(&document, &key);
        let state = State { network, counter: 0, policy_version: 0, admission, recovering: false };
        let mut batch = Batch::default();
        for (version, bundle) in (1..).zip(bundles) {
            put_bundle(&mut batch, version, bundle);
        }
        batch.put(Table::Issuer, STATE_KEY, codec::encode(&state));
        let end = audit::Position::open(&store)?;
        let _end = end.append(&mut batch, &key, now.wall, "init", Act::Admission { version });
        store.commit(batch)?;
        Self::open(store, key, audit_max)
    }

    /// Continues from a store, and keeps so many entries of the audit log. One that is no issuer any more signs nothing, and shows its log all
    /// the same.
    ///
    /// # Errors
    /// [`OpenIssuerError`].
    pub fn open(store: S, key: PrivateKey, audit_max: u64) -> Result<Self, OpenIssuerError> {
        let state = store.value(Table::Issuer, STATE_KEY)?.ok_or(OpenIssuerError::Nothing)?;
        let state: State = codec::decode(&state, RECORD_LEN_MAX).map_err(|_| OpenIssuerError::Record("issuer"))?;
        let mut bundles = Vec::new();
        for (_, bytes) in store.entries(Table::Bundles)? {
            let bundle = codec::decode(&bytes, DOCUMENT_LEN_MAX);
            bundles.push(bundle.map_err(|_| OpenIssuerError::Record("bundles"))?);
        }
        let chain = Chain::walk(state.network, &bundles)?;
        let id = key.public().id();
        let mut revoked = RevocationSet::default();
        for (_, bytes) in store.entries(Table::Revocations)? {
            let damaged = || OpenIssuerError::Record("revocations");
            let list: SignedRevocationList = codec::decode(&bytes, DOCUMENT_LEN_MAX).map_err(|_| damaged())?;
            match revoked.apply(list, chain.current()) {
                // The bundle dropped its signer after the list was stored.
                Ok(_) | Err(RevocationError::Stranger(_)) => {}
                Err(_) => return Err(damaged()),
            }
        }
        let (audit, audit_start) = (audit::Position::open(&store)?, audit::Start::open(&store)?);
        let (invites, members, identities) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
        let mut issuer = Self {
            store,
            key,
            id,
            chain,
            revoked,
            state,
            invites,
            members,
            identities,
            allocations: Allocations::default(),
            leaves: Leaves::new(),
            crl_number: 0,
            audit,
            audit_start,
            audit_max,
            resign_at: None,
        };
        issuer.load()?;
        Ok(issuer)
    }

    fn load(&mut self) -> Result<(), OpenIssuerError> {
        let damaged = |_| OpenIssuerError::Record("issuer");
        let mut order = Vec::new();
        for (key, value) in self.store.entries(Table::Issuer)? {
            match key.split_first() {
                Some((&INVITE_LETTER, id)) => {
                    let id = InviteId(id.try_into().map_err(|_| OpenIssuerError::Record("issuer"))?);
                    self.invites.insert(id, codec::decode(&value, RECORD_LEN_MAX).map_err(damaged)?);
                }
                Some((&MEMBER_LETTER, _)) => {
                    order.push(codec::decode::<Record>(&value, RECORD_LEN_MAX).map_err(damaged)?);
                }
                Some((&LEAVES_LETTER, id)) => {
                    let (node, leaves) = leaves::read(id, &value)?;
                    self.leaves.insert(node, leaves);
                }
                _ => {}
            }
        }
        // A revoked member gives way to the one that replaced it.
        order.sort_by_key(|record| !self.revoked.is_node_revoked(record.node));
        order.into_iter().for_each(|record| self.remember(record));
        Ok(())
    }

    /// Takes a record into memory, once it is on disk.
    fn remember(&mut self, record: Record) {
        self.allocations.give(record.node, &record.name, &record.prefixes);
        self.identities.insert(record.identity, record.node);
        self.members.insert(record.node, record);
    }

    /// Does what is asked, or says why not.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn handle(&mut self, asked: Asked, now: Now, random: &mut impl Random) -> Result<Reply, Refused> {
        let by = asked.by.as_str();
        match asked.request {
            Request::Join { request, exporter } => self.join(&request, &exporter, by, now, random),
            Request::Renew { request, exporter } => self.renew(&request, &exporter, by, now, random),
            Request::Leave { request, exporter } => self.leave(&request, &exporter, by, now, random),
            Request::Invite { spec, contact } => self.invite(spec, None, &contact, by, now, random),
            Request::Replace { of, ttl_secs, contact } => self.replace(&of, ttl_secs, &contact, by, now, random),
            Request::Invites => Ok(Reply::Invites(self.invites())),
            Request::Withdraw(invite) => self.withdraw(invite),
            Request::Members => Ok(Reply::Members(self.members())),
            Request::Revoke { what, reason } => self.revoke(what, reason, by, now, random),
            Request::Adopt(entries) => self.adopt(entries, by, now),
            Request::Revocations { from } => self.list_from(from, now).map(Reply::Revocations),
            Request::Learn { bundles, revocations, admission, statements } => {
                let learned = self.learn(bundles, revocations, admission, &statements, now.wall);
                match self.replace_lost_seed(by, now, random)? {
                    Some(reply) => Ok(reply),
                    None if !self.is_issuer() => Err(Refused::NotIssuer),
                    None => learned.map(|()| Reply::Done),
                }
            }
            Request::ExportCrl => self.export_crl(now),
            Request::Recovered => self.recovered(),
            Request::SignPolicy { version, body } => self.sign_policy(version, &body, by, now),
            Request::RotateAdmission => self.rotate_admission(by, now, random),
            Request::Audit { from, max } => self.audit_entries(from, max),
            Request::Backup { passphrase } => self.backup(&passphrase, by, now, random),
            Request::Status => Ok(Reply::Status(Box::new(self.status(now.wall)))),
            Request::VerifyAudit { from } => self.verify_audit(from),
        }
    }

    /// When to call [`Self::handle_timeout`]; at once after a start.
    pub fn next_deadline(&self, now: Now) -> Instant {
        self.resign_at.unwrap_or(now.mono)
    }

    /// The network.
    pub const fn network(&self) -> NetworkId {
        self.state.network
    }

    /// The store, when the issuer ends.
    pub fn into_store(self) -> S {
        self.store
    }

    fn bundle(&self) -> &Bundle {
        self.chain.current()
    }

    /// Whether this key is an issuer's that neither the bundle nor a list has revoked.
    fn is_issuer(&self) -> bool {
        self.bundle().issuer(self.id).is_some() && !self.revoked.is_issuer_revoked(self.id)
    }

    /// The certificate to sign under: of those valid now, the one that ends last.
    fn certificate(&self, now: UnixSecs) -> Result<(Vec<u8>, AuthorityFields), Refused> {
        if !self.is_issuer() {
            return Err(Refused::NotIssuer);
        }
        let certificates = self.bundle().issuer_certificates(self.id).into_iter();
        let read = certificates.filter_map(|der| Some((der.to_vec(), certificate::read_authority(der).ok()?)));
        let valid = read.filter(|(_, fields)| (fields.validity.not_before..=fields.validity.not_after).contains(&now));
        valid.max_by_key(|(_, fields)| fields.validity.not_after).ok_or(Refused::NoCertificate)
    }

    /// What this issuer may allocate.
    fn slice(&self) -> Result<&Slice, Refused> {
        if self.state.recovering {
            return Err(Refused::Recovering);
        }
        self.bundle().slice(self.id).ok_or(Refused::NotAllocator)
    }

    /// Commits a batch with its entry in the audit log, and with what that pushes out; the log moves only if the store took all of it. Where
    /// what is kept of it is damaged nothing is pushed out: that would be no reason to revoke nobody any more.
    fn commit(&mut self, mut batch: Batch, acts: Vec<Act>, by: &str, now: UnixSecs) -> Result<(), Refused> {
        let end = acts.into_iter().fold(self.audit, |end, act| end.append(&mut batch, &self.key, now, by, act));
        let pruned = self.audit_start.prune(&self.store, &mut batch, end, self.audit_max, &self.key, now);
        let (start, end) = match pruned {
            Ok(pruned) => pruned,
            Err(AuditError::Store(error)) => return Err(error.into()),
            Err(damaged) => {
                tracing::error!(%damaged, "the audit log is longer than it should be: `weir log --verify` says more");
                (self.audit_start, end)
            }
        };
        self.store.commit(batch)?;
        (self.audit_start, self.audit) = (start, end);
        Ok(())
    }

    fn members(&self) -> Vec<MemberInfo> {
        let info = |record: &Record| MemberInfo {
            node: record.node,
            name: record.name.clone(),
            prefixes: record.prefixes.clone(),
            groups: record.groups.clone(),
            roles: record.roles.clone(),
            validity: record.issued.map(|issued| issued.validity),
            revoked: self.revoked.is_node_revoked(record.node),
        };
        self.members.values().map(info).collect()
    }

    fn status(&self, now: UnixSecs) -> Status {
        let certificates = self.bundle().issuer_certificates(self.id).into_iter();
        let ends = certificates.filter_map(|der| certificate::validity(der).ok()).map(|validity| validity.not_after);
        Status {
            issuer: self.id,
            network: self.state.network,
            bundle_version: self.bundle().version,
            certificate: self.certificate(now).ok().map(|(_, fields)| fields.validity),
            last_until: ends.max(),
            allocates: self.bundle().slice(self.id).is_some(),
            recovering: self.state.recovering,
            counter: self.state.counter,
            audit: self.audit,
            revocations: self.revoked.have(self.id).1,
        }
    }

    fn audit_entries(&self, from: u64, max: u32) -> Result<Reply, Refused> {
        // An entry has at most 2 KiB, so an answer fits a message.
        let max = max.min(400) as usize;
        let entries = audit::read(&self.store, from, max).map_err(|error| Refused::Store(error.to_string()))?;
        Ok(Reply::Audit(entries))
    }

    fn verify_audit(&self, from: u64) -> Result<Reply, Refused> {
        let own = |id: KeyId| Some(self.key.public()).filter(|_| id == self.id);
        let verified = audit::verify_part(&self.store, from, AUDIT_VERIFY_MAX, own);
        let verified = verified.map_err(|error| Refused::Audit(error.to_string()))?;
        Ok(Reply::AuditVerified { verified, entries: self.audit.next, first: self.audit_start.at.next })
    }

    /// What the store should hold of the state, with one thing changed.
    fn put_state(&self, batch: &mut Batch, change: impl FnOnce(&mut State)) -> State {
        let mut state = self.state.clone();
        change(&mut state);
        batch.put(Table::Issuer, STATE_KEY, codec::encode(&state));
        state
    }

    fn is_gone(&self, node: NodeId) -> bool {
        self.revoked.is_revoked(Revoked::Node(node))
    }
}

fn put_record(batch: &mut Batch, record: &Record) {
    batch.put(Table::Issuer, keyed(MEMBER_LETTER, &record.node.0), codec::encode(record));
}

fn put_invite(batch: &mut Batch, id: InviteId, invite: &Invite) {
    batch.put(Table::Issuer, keyed(INVITE_LETTER, &id.0), codec::encode(invite));
}

fn limit(what: &str, found: usize, min: usize, max: usize) -> Result<(), Refused> {
    let [found, min, max] = [found, min, max].map(|number| number as u64);
    if (min..=max).contains(&found) { Ok(()) } else { Err(Refused::Limit { what: what.to_owned(), found, min, max }) }
}
