//! `weir ca sign-revocations`: what a revocation key cuts off, in a file that any member takes.

use std::str::FromStr;

use super::arguments::{Arguments, SignRevocations};
use super::files::{self, named};
use super::{Failure, Outcome, failed, remote};
use crate::pki::bundle::{Bundle, Chain, network_id};
use crate::pki::id::{KeyId, ParseIdError};
use crate::pki::revocation::{ENTRIES_MAX, Entry, REASON_LEN_MAX, RevocationSet, Revoked, SignedRevocationList, text};

/// Adds to the list of the key that is in a file. It vouches for nothing: whether a newer list is missing issuers say.
pub(super) fn sign(arguments: &Arguments, sign: &SignRevocations) -> Outcome {
    let SignRevocations { list: file, key, passphrase_file, bundle, reason, .. } = sign;
    let what = what(sign)?;
    if reason.len() > REASON_LEN_MAX {
        return Err(failed(format!("a reason of {} bytes: at most {REASON_LEN_MAX}", reason.len())));
    }
    let versions = files::bundle(bundle)?;
    let network = versions.first().map(network_id).unwrap_or_default();
    let chain = Chain::walk(network, &versions).map_err(|error| named(bundle, error))?;
    let key_file = key;
    let key = files::private_key(key, "the revocation key", passphrase_file.as_deref())?;
    let id = key.public().id();
    if chain.current().revokers.iter().all(|known| known.id() != id) {
        let version = chain.current().version;
        let why =
            format!("{id} is no revocation key of version {version} of the trust bundle: weir ca add-revocation-key");
        return Err(named(key_file, why));
    }
    let known = known(sign, id, chain.current())?;
    let mut entries = known.list(id, 0).map(|list| list.entries).unwrap_or_default();
    let now = remote::now();
    for what in what {
        if entries.iter().any(|entry| entry.what == what) {
            return Err(named(file, format!("{what} is on the list already")));
        }
        entries.push(Entry { what, reason: reason.clone(), at: now });
    }
    if entries.len() > ENTRIES_MAX {
        let why = format!("{} entries, a list has {ENTRIES_MAX}: go on with a new revocation key", entries.len());
        return Err(named(file, why));
    }
    let (version, count) = (known.have(id).0.saturating_add(1), entries.len());
    let list = SignedRevocationList::sign(&key, version, now, now, entries);
    files::write(file, text::write(&list).as_bytes())?;
    let file = file.display();
    let message = format!(
        "{file}: version {version} of the list of {id}, {count} entries.\nIt takes hold when a member has it: weir ca \
         publish-revocations {file}"
    );
    remote::report(arguments, &message)
}

fn what(sign: &SignRevocations) -> Result<Vec<Revoked>, Failure> {
    fn ids<I: FromStr<Err = ParseIdError>>(
        texts: &[String],
        revoked: fn(I) -> Revoked,
    ) -> impl Iterator<Item = Result<Revoked, ParseIdError>> {
        texts.iter().map(move |text| text.parse().map(revoked))
    }
    let all = ids(&sign.node, Revoked::Node).chain(ids(&sign.issuer, Revoked::Issuer));
    all.chain(ids(&sign.invite, Revoked::Invite)).collect::<Result<_, _>>().map_err(failed)
}

/// What the list has by now.
fn known(sign: &SignRevocations, key: KeyId, bundle: &Bundle) -> Result<RevocationSet, Failure> {
    let mut known = RevocationSet::default();
    if sign.list.exists() {
        let list = text::read(&files::text(&sign.list)?).map_err(|error| named(&sign.list, error))?;
        if list.head.signer != key {
            return Err(named(&sign.list, format!("the list is of {}, the key is {key}", list.head.signer)));
        }
        known.apply(list, bundle).map_err(|error| named(&sign.list, error))?;
    }
    Ok(known)
}
