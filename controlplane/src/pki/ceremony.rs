//! Ceremonies: what roots sign, off line, with the keys at hand and nothing else.
//!
//! Each takes the chain as it stands, changes one thing, and returns the next version, signed by every root key that was given. It is
//! checked as every member will check it before it leaves the room.
//!
//! ```text
//!  roots A and B ──▸ found ──▸ version 1 ──▸ certify_issuer · revoke_issuer · move_slice · amend ──▸ version n + 1
//! ```

use super::bundle::{Bundle, BundleError, Chain, SignedBundle, Slice, network_id};
use super::certificate::{IssuerSpec, issuer_certificate, public_key, read_authority};
use super::id::KeyId;
use super::key::PrivateKey;
use crate::time::UnixSecs;

/// Certificates of one issuer that may be signed ahead: a year of months, or a dozen years.
pub const SUCCESSORS_MAX: usize = 12;

/// Founds a network.
///
/// # Errors
/// [`BundleError`].
pub fn found(first: &Bundle, roots: &[&PrivateKey]) -> Result<Chain, BundleError> {
    let signed = SignedBundle::sign(first, None, roots);
    Chain::start(network_id(&signed), signed)
}

/// The next version with a change: what all ceremonies are.
///
/// # Errors
/// [`BundleError`], also when the roots that are here do not suffice.
pub fn amend(
    chain: &Chain,
    roots: &[&PrivateKey],
    change: impl FnOnce(&mut Bundle) -> Result<(), BundleError>,
) -> Result<SignedBundle, BundleError> {
    let mut bundle = chain.successor();
    change(&mut bundle)?;
    let signed = SignedBundle::sign(&bundle, Some(chain.network()), roots);
    chain.clone().extend(signed.clone())?;
    Ok(signed)
}

/// The certificate of the root with this key.
pub fn root_of(bundle: &Bundle, root: KeyId) -> Option<&Vec<u8>> {
    bundle.roots.iter().find(|der| public_key(der).is_ok_and(|key| key.id() == root))
}

/// Admits an issuer, or gives one its successors: one certificate for each spec, all signed by the first of the roots. What has ended of the
/// same issuer is dropped.
///
/// # Errors
/// [`BundleError`].
pub fn certify_issuer(
    chain: &Chain,
    roots: &[&PrivateKey],
    specs: &[IssuerSpec],
    slice: Option<Slice>,
    now: UnixSecs,
) -> Result<SignedBundle, BundleError> {
    let signer = *roots.first().ok_or(BundleError::NoRootKey(chain.current().version))?;
    if specs.is_empty() || specs.len() > SUCCESSORS_MAX + 1 {
        let (found, min, max) = (specs.len(), 1, SUCCESSORS_MAX + 1);
        return Err(BundleError::Count { what: "certificates of one issuer", found, min, max });
    }
    amend(chain, roots, |bundle| {
        let root = root_of(bundle, signer.public().id()).ok_or(BundleError::NoRootKey(bundle.version))?.clone();
        for spec in specs {
            let id = spec.public.id();
            if bundle.is_revoked(id) {
                return Err(BundleError::Unknown(format!("issuer {id} that is not revoked; give it a new key")));
            }
            let ended = |der: &Vec<u8>| {
                read_authority(der).is_ok_and(|old| old.public == spec.public && old.validity.not_after < now)
            };
            bundle.issuers.retain(|der| !ended(der));
            bundle.issuers.push(issuer_certificate(signer, &root, spec)?);
        }
        bundle.slices.extend(slice);
        Ok(())
    })
}

/// Revokes an issuer: nothing that it signed counts any more, lists included. Its slice and its right to sign policy go to another, or to
/// nobody.
///
/// # Errors
/// [`BundleError`].
pub fn revoke_issuer(
    chain: &Chain,
    roots: &[&PrivateKey],
    issuer: KeyId,
    heir: Option<KeyId>,
) -> Result<SignedBundle, BundleError> {
    amend(chain, roots, |bundle| {
        if bundle.issuer(issuer).is_none() {
            return Err(BundleError::Unknown(format!("issuer {issuer}")));
        }
        give_slice(bundle, issuer, heir)?;
        bundle.issuers.retain(|der| public_key(der).is_ok_and(|key| key.id() != issuer));
        if let Some(at) = bundle.operators.iter().position(|key| key.id() == issuer) {
            bundle.operators.remove(at);
            let heir = heir.and_then(|heir| bundle.issuer(heir)).filter(|key| !bundle.operators.contains(key));
            bundle.operators.extend(heir);
        }
        bundle.revoked_issuers.push(issuer);
        Ok(())
    })
}

/// Moves the right to allocate from one issuer to another. The one that had it must have heard of it first, or both allocate for a while:
/// have it take the new version before the other does.
///
/// # Errors
/// [`BundleError`].
pub fn move_slice(chain: &Chain, roots: &[&PrivateKey], from: KeyId, to: KeyId) -> Result<SignedBundle, BundleError> {
    amend(chain, roots, |bundle| {
        if bundle.slice(from).is_none() {
            return Err(BundleError::Unknown(format!("slice of {from}")));
        }
        give_slice(bundle, from, Some(to))
    })
}

fn give_slice(bundle: &mut Bundle, from: KeyId, to: Option<KeyId>) -> Result<(), BundleError> {
    let Some(at) = bundle.slices.iter().position(|slice| slice.issuer == from) else { return Ok(()) };
    let slice = bundle.slices.remove(at);
    let Some(to) = to else { return Ok(()) };
    if bundle.issuer(to).is_none() {
        return Err(BundleError::Unknown(format!("issuer {to}")));
    }
    match bundle.slices.iter_mut().find(|other| other.issuer == to) {
        Some(other) => {
            other.names.extend(slice.names);
            other.prefixes.extend(slice.prefixes);
        }
        None => bundle.slices.push(Slice { issuer: to, ..slice }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::{FOUNDED, chain, first, key};
    use crate::pki::bundle::{BundleError, Extended};
    use crate::pki::certificate::{Serial, Validity};
    use crate::pki::resources::IpBlocks;

    const YEAR: u64 = 365 * 86_400;

    fn id(seed: u8) -> KeyId {
        key(seed).public().id()
    }

    fn spec(seed: u8, year: u64) -> IssuerSpec {
        let validity =
            Validity { not_before: UnixSecs(FOUNDED + year * YEAR), not_after: UnixSecs(FOUNDED + (year + 1) * YEAR) };
        let serial = Serial::from_bytes([year as u8; 16]);
        IssuerSpec { public: key(seed).public(), blocks: IpBlocks::Inherit, validity, serial }
    }

    fn taken(chain: &Chain, bundle: Result<SignedBundle, BundleError>) -> Chain {
        let mut chain = chain.clone();
        assert_eq!(chain.extend(bundle.unwrap()), Ok(Extended::New));
        chain
    }

    #[test]
    fn a_founded_network_admits_an_issuer_and_its_successors_ahead() {
        let base = found(&first(), &[&key(1)]).unwrap();
        let specs: Vec<IssuerSpec> = (0..=SUCCESSORS_MAX as u64).map(|year| spec(13, year)).collect();
        let chain = taken(&base, certify_issuer(&base, &[&key(1)], &specs, None, UnixSecs(FOUNDED)));
        assert_eq!(chain.current().issuer_certificates(id(13)).len(), 13);
        let more: Vec<IssuerSpec> = (0..14).map(|year| spec(13, year)).collect();
        let refused = certify_issuer(&base, &[&key(1)], &more, None, UnixSecs(FOUNDED)).unwrap_err();
        assert!(matches!(refused, BundleError::Count { found: 14, .. }));
        // Renewing later drops what has ended.
        let late = UnixSecs(FOUNDED + 3 * YEAR + 1);
        let renewed = taken(&chain, certify_issuer(&chain, &[&key(2)], &[spec(13, 13)], None, late));
        assert_eq!(renewed.current().issuer_certificates(id(13)).len(), 11);
        let stranger = certify_issuer(&base, &[&key(3)], &specs[..1], None, UnixSecs(FOUNDED)).unwrap_err();
        assert_eq!(stranger, BundleError::NoRootKey(2));
    }

    #[test]
    fn a_revoked_issuer_leaves_its_slice_to_its_heir() {
        let base = chain();
        let slice = base.current().slice(id(11)).unwrap().clone();
        let heir = taken(&base, revoke_issuer(&base, &[&key(1)], id(11), Some(id(12))));
        let expected = Slice { issuer: id(12), ..slice };
        assert_eq!(heir.current().slice(id(12)), Some(&expected));
        assert_eq!((heir.current().issuer(id(11)), &heir.current().operators), (None, &vec![key(12).public()]));
        let none = taken(&base, revoke_issuer(&base, &[&key(1)], id(11), None));
        assert!(none.current().slices.is_empty() && none.current().operators.is_empty());
        assert!(matches!(revoke_issuer(&heir, &[&key(1)], id(11), None), Err(BundleError::Unknown(_))));
        let again = certify_issuer(&heir, &[&key(1)], &[spec(11, 0)], None, UnixSecs(FOUNDED));
        assert!(matches!(again, Err(BundleError::Unknown(_))));
    }

    #[test]
    fn a_slice_moves_and_comes_back() {
        let base = chain();
        let moved = taken(&base, move_slice(&base, &[&key(2)], id(11), id(12)));
        assert_eq!((moved.current().slice(id(11)), moved.current().slices.len()), (None, 1));
        let back = taken(&moved, move_slice(&moved, &[&key(1)], id(12), id(11)));
        assert_eq!(back.current().slices, base.current().slices);
        assert!(matches!(move_slice(&base, &[&key(1)], id(12), id(11)), Err(BundleError::Unknown(_))));
        assert!(matches!(move_slice(&base, &[&key(1)], id(11), id(19)), Err(BundleError::Unknown(_))));
    }
}
