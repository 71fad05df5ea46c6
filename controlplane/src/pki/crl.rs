//! X.509 revocation lists (RFC 5280 §5), for readers that are not ours.
//!
//! Inside the network nobody reads them: [`super::revocation`] goes by node id and key id, and this goes by serial number, which is all that
//! X.509 knows. A list covers the certificates of one issuer.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::certificate::{CertificateError, Serial, authority, moment};
use super::key::PrivateKey;
use crate::time::UnixSecs;

/// A certificate that is no longer good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Its number.
    pub serial: Serial,
    /// When it was revoked.
    pub at: UnixSecs,
}

/// What a list is to say.
#[derive(Clone, Debug)]
pub struct CrlSpec<'a> {
    /// Its number; a later list has a higher one.
    pub number: u64,
    /// When it is made.
    pub this_update: UnixSecs,
    /// When the next one comes at the latest.
    pub next_update: UnixSecs,
    /// The certificates of this issuer that were revoked.
    pub revoked: &'a [RevokedCertificate],
}

/// Makes a list in DER, signed by an issuer.
///
/// # Errors
/// [`CertificateError`].
pub fn export_crl(issuer: &PrivateKey, issuer_der: &[u8], spec: &CrlSpec<'_>) -> Result<Vec<u8>, CertificateError> {
    let (signer, fields) = authority(issuer, issuer_der)?;
    let wrong = || CertificateError::Validity(spec.this_update, spec.next_update);
    if spec.next_update <= spec.this_update {
        return Err(wrong());
    }
    let revoked = spec.revoked.iter().map(|revoked| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(revoked.serial.bytes()),
            revocation_time: moment(revoked.at).ok_or(CertificateError::Validity(revoked.at, revoked.at))?,
            reason_code: None,
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: moment(spec.this_update).ok_or_else(wrong)?,
        next_update: moment(spec.next_update).ok_or_else(wrong)?,
        crl_number: SerialNumber::from(spec.number),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect::<Result<_, CertificateError>>()?,
        key_identifier_method: KeyIdMethod::PreSpecified(fields.public.id().0.to_vec()),
    };
    let crl = params.signed_by(&signer).map_err(CertificateError::Write)?;
    Ok(crl.der().to_vec())
}
