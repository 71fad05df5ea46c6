//! What an issuer signs of its own accord or for operators: revocation lists, the admission seed, policy. And what it learns.

use std::collections::BTreeMap;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{
    DOCUMENT_LEN_MAX, Issuer, POLICY_LEN_MAX, RESIGN_EARLY, RESIGN_INTERVAL, Record, Refused, Reply, State, limit,
    put_bundle, put_invite, put_record,
};
use crate::audit::Act;
use crate::codec;
use crate::pki::admission::{self, AdmissionDocument, SignedAdmission};
use crate::pki::bundle::{BundleError, SignedBundle};
use crate::pki::id::{NodeId, overlay_network};
use crate::pki::key::Domain;
use crate::pki::revocation::{ENTRIES_MAX, Entry, REASON_LEN_MAX, RevocationError, Revoked, SignedRevocationList};
use crate::pki::signed::Signed;
use crate::pki::statement::SignedStatement;
use crate::random::Random;
use crate::store::{Batch, Store, Table};
use crate::time::{Now, UnixSecs};

/// How far ahead of our clock another issuer's version may be: versions are moments, and clocks that are a month apart are broken.
const VERSION_AHEAD_MAX: Duration = Duration::from_secs(30 * 86_400);

impl<S: Store> Issuer<S> {
    /// Signs the list afresh when it is time, and returns it to be spread; forgets what has ended.
    pub fn handle_timeout(&mut self, now: Now) -> Option<SignedRevocationList> {
        if self.next_deadline(now) > now.mono {
            return None;
        }
        self.resign_at = Some(now.mono + RESIGN_INTERVAL);
        self.forget_leaves(now.wall);
        // Refused when the bundle does not name us any more: then there is nothing to spread.
        self.resign(now).ok()
    }

    /// The own list under a new version and freshness. Not written to disk: after a restart it is signed again.
    fn resign(&mut self, now: Now) -> Result<SignedRevocationList, Refused> {
        let list = self.signed_list(self.own_entries(), now.wall)?;
        self.take_own(list.clone(), now)?;
        Ok(list)
    }

    fn own_entries(&self) -> Vec<Entry> {
        self.revoked.list(self.id, 0).map(|list| list.entries).unwrap_or_default()
    }

    fn signed_list(&self, entries: Vec<Entry>, now: UnixSecs) -> Result<SignedRevocationList, Refused> {
        if self.bundle().issuer(self.id).is_none() {
            return Err(Refused::NotIssuer);
        }
        // The version is the time, so that an issuer restored from a backup does not fall behind what it signed before.
        let version = self.revoked.have(self.id).0.saturating_add(1).max(now.0);
        let fresh_secs = self.bundle().parameters.revocation_fresh_secs.into();
        let fresh_until = now.plus(Duration::from_secs(fresh_secs));
        Ok(SignedRevocationList::sign(&self.key, version, now, fresh_until, entries))
    }

    /// Takes the own list into memory, once it is on disk if it has to be.
    pub(super) fn take_own(&mut self, list: SignedRevocationList, now: Now) -> Result<(), Refused> {
        self.revoked.apply(list, self.chain.current()).map_err(|error| Refused::NotBelieved(error.to_string()))?;
        self.resign_at = Some(now.mono + RESIGN_INTERVAL);
        Ok(())
    }

    /// The own list with more entries, signed and put into a batch.
    pub(super) fn list_with(
        &self,
        batch: &mut Batch,
        more: &[(Revoked, String)],
        now: UnixSecs,
    ) -> Result<SignedRevocationList, Refused> {
        let entries = more.iter().map(|(what, reason)| Entry { what: *what, reason: reason.clone(), at: now });
        self.list_of(batch, entries.collect(), now)
    }

    fn list_of(&self, batch: &mut Batch, more: Vec<Entry>, now: UnixSecs) -> Result<SignedRevocationList, Refused> {
        let mut entries = self.own_entries();
        for entry in more {
            limit("letters of a reason", entry.reason.len(), 0, REASON_LEN_MAX)?;
            if !entries.iter().any(|known| known.what == entry.what) {
                entries.push(entry);
            }
        }
        limit("revocations of one issuer", entries.len(), 0, ENTRIES_MAX)?;
        let list = self.signed_list(entries, now)?;
        batch.put(Table::Revocations, self.id.0, codec::encode(&list));
        Ok(list)
    }

    /// Revokes; with a member or an issuer goes the admission seed that it knew.
    pub(super) fn revoke(
        &mut self,
        what: Revoked,
        reason: String,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Reply, Refused> {
        if self.revoked.is_revoked(what) {
            let list = self.list_from(0, now)?;
            return Ok(Reply::Revoked { list, admission: self.state.admission.clone() });
        }
        let mut batch = Batch::default();
        let list = self.list_with(&mut batch, &[(what, reason.clone())], now.wall)?;
        let mut acts = vec![Act::Revoked { what, reason }];
        let mut withdrawn = None;
        let state = match what {
            // A seed of an issuer that is revoked is nobody's any more; whoever revokes itself leaves it to the others to draw one.
            Revoked::Issuer(issuer) if issuer == self.id => self.state.clone(),
            Revoked::Node(_) | Revoked::Issuer(_) => {
                let (state, act) = self.new_seed(&mut batch, now.wall, random)?;
                acts.push(act);
                state
            }
            Revoked::Invite(id) => {
                withdrawn = self.invites.get(&id).map(|invite| (id, invite.clone()));
                if let Some((id, invite)) = &mut withdrawn {
                    invite.withdrawn = true;
                    put_invite(&mut batch, *id, invite);
                }
                self.state.clone()
            }
        };
        self.commit(batch, acts, by, now.wall)?;
        self.state = state;
        self.invites.extend(withdrawn);
        self.take_own(list.clone(), now)?;
        Ok(Reply::Revoked { list, admission: self.state.admission.clone() })
    }

    /// Takes entries of another list into the own one, because the bundle is about to drop its signer.
    pub(super) fn adopt(&mut self, entries: Vec<Entry>, by: &str, now: Now) -> Result<Reply, Refused> {
        limit("revocations", entries.len(), 0, ENTRIES_MAX)?;
        let mut batch = Batch::default();
        let own = self.own_entries();
        let new = |entry: &&Entry| !own.iter().any(|known| known.what == entry.what);
        let act = |entry: &Entry| Act::Revoked { what: entry.what, reason: entry.reason.clone() };
        let acts = entries.iter().filter(new).map(act).collect();
        let list = self.list_of(&mut batch, entries, now.wall)?;
        self.commit(batch, acts, by, now.wall)?;
        self.take_own(list.clone(), now)?;
        Ok(Reply::Revoked { list, admission: self.state.admission.clone() })
    }

    /// The own list from an entry on; signed now if it is time. Whoever asks at the same interval must not come a moment too early each time.
    pub(super) fn list_from(&mut self, from: u32, now: Now) -> Result<SignedRevocationList, Refused> {
        if self.next_deadline(now) <= now.mono + RESIGN_EARLY {
            self.forget_leaves(now.wall);
            self.resign(now)?;
        }
        self.revoked.list(self.id, from).ok_or(Refused::NotIssuer)
    }

    fn new_seed(&self, batch: &mut Batch, now: UnixSecs, random: &mut impl Random) -> Result<(State, Act), Refused> {
        if !self.is_issuer() {
            return Err(Refused::NotIssuer);
        }
        let last = self.state.admission.peek().map_or(0, |seed| seed.version);
        let version = last.saturating_add(1).max(now.0);
        let document = AdmissionDocument { version, seed: Zeroizing::new(random.array()), since: now };
        let admission = Signed::sign(&document, &self.key);
        let state = self.put_state(batch, |state| state.admission = admission);
        Ok((state, Act::Admission { version }))
    }

    pub(super) fn rotate_admission(&mut self, by: &str, now: Now, random: &mut impl Random) -> Result<Reply, Refused> {
        let mut batch = Batch::default();
        let (state, act) = self.new_seed(&mut batch, now.wall, random)?;
        self.commit(batch, vec![act], by, now.wall)?;
        self.state = state;
        Ok(Reply::Admission(self.state.admission.clone()))
    }

    /// Signs a policy, if the bundle lets this key do so and the version was never signed before.
    pub(super) fn sign_policy(&mut self, version: u64, body: &[u8], by: &str, now: Now) -> Result<Reply, Refused> {
        limit("bytes of a policy", body.len(), 1, POLICY_LEN_MAX)?;
        if self.bundle().operator(self.id).is_none() || self.revoked.is_issuer_revoked(self.id) {
            return Err(Refused::NotOperator);
        }
        let last = self.state.policy_version;
        if version <= last {
            return Err(Refused::PolicyVersion { last, found: version });
        }
        let mut batch = Batch::default();
        let state = self.put_state(&mut batch, |state| state.policy_version = version);
        let digest = crate::pki::id::sha256("", &[body]);
        self.commit(batch, vec![Act::Policy { version, digest }], by, now.wall)?;
        self.state = state;
        Ok(Reply::Policy { signer: self.id, signature: self.key.sign(Domain::Policy, body) })
    }

    /// A new seed in place of one whose signer is no issuer any more: members take no seed of his, and one who comes has none to begin with.
    pub(super) fn replace_lost_seed(
        &mut self,
        by: &str,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Option<Reply>, Refused> {
        let signer = self.state.admission.signer;
        let is_lost = self.bundle().issuer(signer).is_none() || self.revoked.is_issuer_revoked(signer);
        if is_lost && self.is_issuer() { self.rotate_admission(by, now, random).map(Some) } else { Ok(None) }
    }

    /// Takes what the network knows. Stops at the first thing that is not believed; what came before it stays learned.
    pub(super) fn learn(
        &mut self,
        bundles: Vec<SignedBundle>,
        revocations: Vec<SignedRevocationList>,
        admission: Option<SignedAdmission>,
        statements: &[SignedStatement],
        now: UnixSecs,
    ) -> Result<(), Refused> {
        bundles.into_iter().try_for_each(|bundle| self.learn_bundle(bundle))?;
        revocations.into_iter().try_for_each(|list| self.learn_list(list))?;
        if let Some(admission) = admission {
            self.learn_admission(admission, now)?;
        }
        self.learn_statements(statements)
    }

    fn learn_bundle(&mut self, bundle: SignedBundle) -> Result<(), Refused> {
        let not_believed = |error: BundleError| Refused::NotBelieved(error.to_string());
        let Some(next) = self.chain.judge(&bundle).map_err(not_believed)? else { return Ok(()) };
        let mut batch = Batch::default();
        put_bundle(&mut batch, next.version, &bundle);
        self.store.commit(batch)?;
        self.chain.extend(bundle).map_err(not_believed)?;
        self.revoked.retain(self.chain.current());
        Ok(())
    }

    /// A list of another issuer, or the own one as the network has it: after a restore that one may be longer than ours.
    fn learn_list(&mut self, list: SignedRevocationList) -> Result<(), Refused> {
        let signer = list.head.signer;
        let next = match self.revoked.judge(list, self.chain.current()) {
            Ok(next) => next,
            Err(RevocationError::Old { .. }) => return Ok(()),
            Err(error) => return Err(Refused::NotBelieved(error.to_string())),
        };
        let bytes = codec::encode(&self.revoked.whole(&next));
        if bytes.len() > DOCUMENT_LEN_MAX {
            return Err(Refused::Malformed);
        }
        let mut batch = Batch::default();
        batch.put(Table::Revocations, signer.0, bytes);
        self.store.commit(batch)?;
        self.revoked.take(next);
        Ok(())
    }

    fn learn_admission(&mut self, admission: SignedAdmission, now: UnixSecs) -> Result<(), Refused> {
        let opened = admission::open(&admission, self.chain.current(), &self.revoked);
        let seed = opened.map_err(|error| Refused::NotBelieved(error.to_string()))?;
        // Versions are moments. One that is far ahead would leave none for the seeds to come.
        if seed.version > now.plus(VERSION_AHEAD_MAX).0 {
            let (version, signer) = (seed.version, admission.signer);
            return Err(Refused::NotBelieved(format!(
                "version {version} of the admission seed, by {signer}, is to come"
            )));
        }
        let known = self.state.admission.peek().map_or(0, |known| known.version);
        if (seed.version, admission.signer) > (known, self.state.admission.signer) {
            let mut batch = Batch::default();
            let state = self.put_state(&mut batch, |state| state.admission = admission);
            self.store.commit(batch)?;
            self.state = state;
        }
        Ok(())
    }

    /// Members that some issuer admitted, in one batch.
    fn learn_statements(&mut self, statements: &[SignedStatement]) -> Result<(), Refused> {
        let mut batch = Batch::default();
        let mut records: BTreeMap<NodeId, Record> = BTreeMap::new();
        let mut outcome = Ok(());
        for statement in statements {
            match self.stated(statement, records.len()) {
                Ok(None) => {}
                Ok(Some(record)) => _ = records.insert(record.node, record),
                Err(refused) => {
                    outcome = Err(refused);
                    break;
                }
            }
        }
        if records.is_empty() {
            return outcome;
        }
        records.values().for_each(|record| put_record(&mut batch, record));
        self.store.commit(batch)?;
        records.into_values().for_each(|record| self.remember(record));
        outcome
    }

    /// The record of a member that is not known here. Its name and prefixes are not given out again, even when its statement has ended.
    fn stated(&self, statement: &SignedStatement, more: usize) -> Result<Option<Record>, Refused> {
        let not_believed = |error: &dyn ToString| Refused::NotBelieved(error.to_string());
        // The node tells all that it knows at each start; most of it is known, and needs no signature to be left out.
        let stated = statement.peek().map_err(|error| not_believed(&error))?;
        if stated.network != self.state.network || self.members.contains_key(&stated.node) {
            return Ok(None);
        }
        let issuer = self.chain.issuer_ever(statement.signer);
        let issuer = issuer.ok_or_else(|| not_believed(&"a member statement by no issuer of this network"))?;
        let member = statement.open(&issuer.public).map_err(|error| not_believed(&error))?;
        limit("members", self.members.len() + more + 1, 1, super::MEMBERS_MAX)?;
        let overlay = overlay_network(self.state.network);
        let prefixes = member.prefixes.into_iter().filter(|prefix| !overlay.contains(prefix.address())).collect();
        Ok(Some(Record {
            node: member.node,
            identity: member.identity,
            nonce: member.nonce,
            name: member.name,
            prefixes,
            groups: member.groups,
            roles: vec![],
            issued: None,
        }))
    }

    /// Allocation goes on after a restore.
    pub(super) fn recovered(&mut self) -> Result<Reply, Refused> {
        let mut batch = Batch::default();
        let state = self.put_state(&mut batch, |state| state.recovering = false);
        self.store.commit(batch)?;
        self.state = state;
        Ok(Reply::Done)
    }
}
