//! Which certificates were signed here and may still be good, by serial number: what a revocation list in X.509's format is made of.
//!
//! Inside the network a member is revoked by its id, and no serial number is looked at. Programs that are not weir know nothing but these.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Issued, Issuer, LEAVES_LETTER, MEMBERS_MAX, OpenIssuerError, RECORD_LEN_MAX, Refused, Reply, keyed, limit,
};
use crate::codec;
use crate::pki::certificate::Serial;
use crate::pki::crl::{CrlSpec, RevokedCertificate, export_crl};
use crate::pki::id::NodeId;
use crate::pki::revocation::Revoked;
use crate::store::{Batch, Store, Table};
use crate::time::{Now, UnixSecs};

/// Certificates of one member that are noted at a time. Ours: a member has two or three; one that asks for this many in a day means no good,
/// and forgetting some would keep them off the list.
pub const LEAVES_MAX: usize = 256;
/// Rows of one X.509 list. Ours: 36 bytes each, 720 kB in all.
pub const CRL_ROWS_MAX: usize = 20_000;
/// How long after its end a certificate is still listed: RFC 5280 §3.3 wants it on one list after that.
const LISTED_AFTER_END: Duration = Duration::from_secs(86_400);

/// A certificate that was signed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaf {
    serial: Serial,
    not_after: UnixSecs,
}

impl Leaf {
    fn is_listed(&self, now: UnixSecs) -> bool {
        now <= self.not_after.plus(LISTED_AFTER_END)
    }
}

/// Those of each member.
pub(super) type Leaves = BTreeMap<NodeId, Vec<Leaf>>;

/// Reads one member's row of the store.
pub(super) fn read(id: &[u8], value: &[u8]) -> Result<(NodeId, Vec<Leaf>), OpenIssuerError> {
    let damaged = || OpenIssuerError::Record("issuer");
    let node = NodeId(id.try_into().map_err(|_| damaged())?);
    Ok((node, codec::decode(value, RECORD_LEN_MAX).map_err(|_| damaged())?))
}

impl<S: Store> Issuer<S> {
    /// Notes a certificate that is about to be signed. What comes back belongs into memory, once the batch is on disk.
    pub(super) fn note_leaf(
        &self,
        batch: &mut Batch,
        node: NodeId,
        issued: &Issued,
        now: UnixSecs,
    ) -> Result<Vec<Leaf>, Refused> {
        let known = self.leaves.get(&node);
        limit("members with certificates", self.leaves.len() + usize::from(known.is_none()), 1, MEMBERS_MAX)?;
        let mut leaves: Vec<Leaf> = known.into_iter().flatten().filter(|leaf| leaf.is_listed(now)).copied().collect();
        limit("certificates of one member that are still good", leaves.len() + 1, 1, LEAVES_MAX)?;
        leaves.push(Leaf { serial: issued.serial, not_after: issued.validity.not_after });
        batch.put(Table::Issuer, keyed(LEAVES_LETTER, &node.0), codec::encode(&leaves));
        Ok(leaves)
    }

    /// Forgets members whose certificates have all ended long enough ago.
    pub(super) fn forget_leaves(&mut self, now: UnixSecs) {
        let is_over = |leaves: &[Leaf]| !leaves.iter().any(|leaf| leaf.is_listed(now));
        let over: Vec<NodeId> =
            self.leaves.iter().filter(|(_, leaves)| is_over(leaves)).map(|(node, _)| *node).collect();
        let mut batch = Batch::default();
        over.iter().for_each(|node| batch.delete(Table::Issuer, keyed(LEAVES_LETTER, &node.0)));
        // If the store fails, they are forgotten the next time.
        if !over.is_empty() && self.store.commit(batch).is_ok() {
            over.iter().for_each(|node| drop(self.leaves.remove(node)));
        }
    }

    /// The certificates that were signed here and are revoked by now, by whatever list, as RFC 5280 has it.
    pub(super) fn export_crl(&mut self, now: Now) -> Result<Reply, Refused> {
        let (issuer, _) = self.certificate(now.wall)?;
        let mut since = BTreeMap::<NodeId, UnixSecs>::new();
        for entry in self.revoked.entries() {
            if let Revoked::Node(node) = entry.what {
                // What another issuer says of the time is no reason to make no list.
                let at = entry.at.min(now.wall);
                since.entry(node).and_modify(|known| *known = at.min(*known)).or_insert(at);
            }
        }
        let rows = since.iter().flat_map(|(node, at)| {
            let leaves = self.leaves.get(node).into_iter().flatten().filter(|leaf| leaf.is_listed(now.wall));
            leaves.map(|leaf| RevokedCertificate { serial: leaf.serial, at: *at })
        });
        let revoked: Vec<RevokedCertificate> = rows.collect();
        limit("certificates on an X.509 list", revoked.len(), 0, CRL_ROWS_MAX)?;
        // The number is the time, as the version of our own list: no restart and no restore goes back behind it.
        let number = now.wall.0.max(self.crl_number + 1);
        let fresh = Duration::from_secs(self.bundle().parameters.revocation_fresh_secs.into());
        let spec = CrlSpec { number, this_update: now.wall, next_update: now.wall.plus(fresh), revoked: &revoked };
        let list = export_crl(&self.key, &issuer, &spec).map_err(|error| Refused::Certificate(error.to_string()))?;
        self.crl_number = number;
        Ok(Reply::Crl { issuer: self.id, list })
    }
}
