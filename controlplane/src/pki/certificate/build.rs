//! Writing certificates. What the profile demands of a certificate is checked before it is signed, so that an issuer's mistake is found by the
//! issuer and not by every peer.

use ::time::OffsetDateTime;
use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};

use super::{
    AuthorityFields, CertificateError, GROUPS_MAX, IssuerSpec, LeafSpec, ROLES_MAX, RootSpec, Serial, Validity,
    read_authority,
};
use crate::pki::id::{KeyId, NodeId};
use crate::pki::key::{PrivateKey, PublicKey};
use crate::pki::name::check_label;
use crate::pki::resources::{IpBlocks, RANGES_MAX, Resources, ResourcesError};
use crate::time::UnixSecs;

/// X.520's attribute for a number that tells things of one name apart.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// One of our keys, as the library wants to sign with it.
pub(crate) struct Signer<'a> {
    key: &'a PrivateKey,
    public: PublicKey,
}

impl<'a> Signer<'a> {
    pub(crate) fn new(key: &'a PrivateKey) -> Self {
        Self { key, public: key.public() }
    }
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign_raw(message).0.to_vec())
    }
}

/// The key that a certificate is for.
pub(crate) struct Subject(pub(crate) PublicKey);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// Makes a root's certificate, signed by itself.
///
/// # Errors
/// [`CertificateError`].
pub fn root_certificate(key: &PrivateKey, spec: &RootSpec<'_>) -> Result<Vec<u8>, CertificateError> {
    // Like all names; it is shown in upper case.
    check_name(&spec.label.to_ascii_lowercase(), "root's label")?;
    check_name(spec.network_name, "network's name")?;
    let id = key.public().id();
    let name = distinguished_name(spec.network_name, &format!("root {}", spec.label.to_ascii_uppercase()), id)?;
    let everything = IpBlocks::Explicit(Resources::everything());
    let params = authority_params(name, id, 1, &everything, spec.validity, spec.serial)?;
    let certificate = params.self_signed(&Signer::new(key)).map_err(CertificateError::Write)?;
    Ok(certificate.der().to_vec())
}

/// Makes an issuer's certificate, signed by a root.
///
/// # Errors
/// [`CertificateError`].
pub fn issuer_certificate(root: &PrivateKey, root_der: &[u8], spec: &IssuerSpec) -> Result<Vec<u8>, CertificateError> {
    let (signer, fields) = authority(root, root_der)?;
    check_end(spec.validity, &fields)?;
    if let IpBlocks::Explicit(resources) = &spec.blocks {
        check_resources(resources, &fields.blocks)?;
    }
    let id = spec.public.id();
    let name = distinguished_name(&fields.network_name, "issuer", id)?;
    let params = authority_params(name, id, 0, &spec.blocks, spec.validity, spec.serial)?;
    sign(&params, spec.public, &signer)
}

/// Makes a member's certificate, signed by an issuer.
///
/// Grants what the spec says, when the issuer's own certificate grants that. One that inherits is asked of its root by every verifier.
///
/// # Errors
/// [`CertificateError`].
pub fn leaf_certificate(
    issuer: &PrivateKey,
    issuer_der: &[u8],
    spec: &LeafSpec<'_>,
) -> Result<Vec<u8>, CertificateError> {
    let (signer, fields) = authority(issuer, issuer_der)?;
    check_end(spec.validity, &fields)?;
    check_resources(&spec.prefixes, &fields.blocks)?;
    let params = leaf_params(&fields.network_name, spec)?;
    sign(&params, spec.leaf_public, &signer)
}

/// What a member's certificate will say, before it is signed.
pub(crate) fn leaf_params(network_name: &str, spec: &LeafSpec<'_>) -> Result<CertificateParams, CertificateError> {
    if spec.leaf_public == spec.identity {
        return Err(CertificateError::IdentityInTls);
    }
    check_name(spec.name, "member's name")?;
    for (names, what, many, max) in
        [(spec.groups, "group", "groups", GROUPS_MAX), (spec.roles, "role", "roles", ROLES_MAX)]
    {
        if names.len() > max {
            return Err(CertificateError::TooMany(many, max));
        }
        names.iter().try_for_each(|name| check_name(name, what))?;
    }
    let id = spec.leaf_public.id();
    let node = NodeId::derive(spec.network, &spec.identity.0, spec.nonce);
    let uri = |text: String| Ia5String::try_from(text).map(SanType::URI);
    let names: Result<Vec<SanType>, rcgen::Error> = [
        Ia5String::try_from(node.to_string()).map(SanType::DnsName),
        uri(format!("weir:network/{}", spec.network)),
        uri(format!("weir:identity/{}", data_encoding::BASE32_NOPAD.encode(&spec.identity.0).to_ascii_lowercase())),
        uri(format!("weir:nonce/{}", spec.nonce)),
    ]
    .into_iter()
    .chain(spec.groups.iter().map(|group| uri(format!("weir:group/{group}"))))
    .chain(spec.roles.iter().map(|role| uri(format!("weir:role/{role}"))))
    .collect();

    let blocks = IpBlocks::Explicit(spec.prefixes.clone());
    let name = distinguished_name(network_name, spec.name, id)?;
    let mut params = params(name, id, &blocks, spec.validity, spec.serial)?;
    params.subject_alt_names = names.map_err(CertificateError::Write)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn check_name(name: &str, what: &'static str) -> Result<(), CertificateError> {
    check_label(name).map_err(|error| CertificateError::Name(name.to_owned(), what, error))
}

/// What root and issuer have in common.
pub(crate) fn authority_params(
    name: DistinguishedName,
    id: KeyId,
    path_len: u8,
    blocks: &IpBlocks,
    validity: Validity,
    serial: Serial,
) -> Result<CertificateParams, CertificateError> {
    let mut params = params(name, id, blocks, validity, serial)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What all certificates have in common.
fn params(
    name: DistinguishedName,
    id: KeyId,
    blocks: &IpBlocks,
    validity: Validity,
    serial: Serial,
) -> Result<CertificateParams, CertificateError> {
    if let IpBlocks::Explicit(resources) = blocks
        && resources.range_count() > RANGES_MAX
    {
        return Err(ResourcesError::TooMany.into());
    }
    if validity.not_after < validity.not_before {
        return Err(CertificateError::Validity(validity.not_before, validity.not_after));
    }
    let wrong = || CertificateError::Validity(validity.not_before, validity.not_after);
    let mut params = CertificateParams::default();
    params.not_before = moment(validity.not_before).ok_or_else(wrong)?;
    params.not_after = moment(validity.not_after).ok_or_else(wrong)?;
    params.serial_number = Some(SerialNumber::from_slice(serial.bytes()));
    params.distinguished_name = name;
    params.key_identifier_method = KeyIdMethod::PreSpecified(id.0.to_vec());
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![CustomExtension::from_oid_content(&IpBlocks::OID, blocks.to_der())];
    Ok(params)
}

/// A moment as the library takes it; none beyond the year 9999, which X.509 cannot write.
pub(crate) fn moment(at: UnixSecs) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at.0).ok()?).ok()
}

/// A subject of ours: two certificates of different keys never have the same.
pub(crate) fn distinguished_name(
    network_name: &str,
    common_name: &str,
    id: KeyId,
) -> Result<DistinguishedName, CertificateError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, network_name);
    name.push(DnType::CommonName, common_name);
    let id = PrintableString::try_from(id.to_string()).map_err(CertificateError::Write)?;
    name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), DnValue::PrintableString(id));
    Ok(name)
}

/// The signing side, from its key and its certificate.
pub(crate) fn authority<'a>(
    key: &'a PrivateKey,
    der: &[u8],
) -> Result<(rcgen::Issuer<'static, Signer<'a>>, AuthorityFields), CertificateError> {
    let fields = read_authority(der)?;
    let id = key.public().id();
    if fields.public != key.public() {
        return Err(CertificateError::OtherKey(id, fields.public.id()));
    }
    // Reading is as narrow as writing, so this is the subject to the byte.
    let name = distinguished_name(&fields.network_name, &fields.name, id)?;
    let params = authority_params(name, id, 0, &fields.blocks, fields.validity, fields.serial)?;
    Ok((rcgen::Issuer::new(params, Signer::new(key)), fields))
}

fn check_end(validity: Validity, signer: &AuthorityFields) -> Result<(), CertificateError> {
    let end = signer.validity.not_after;
    if validity.not_after > end { Err(CertificateError::Outlives(validity.not_after, end)) } else { Ok(()) }
}

fn check_resources(wanted: &Resources, granted: &IpBlocks) -> Result<(), CertificateError> {
    match granted {
        IpBlocks::Explicit(granted) if !granted.contains(wanted) => Err(CertificateError::NotGranted(wanted.clone())),
        IpBlocks::Explicit(_) | IpBlocks::Inherit => Ok(()),
    }
}

fn sign(
    params: &CertificateParams,
    subject: PublicKey,
    signer: &rcgen::Issuer<'_, Signer<'_>>,
) -> Result<Vec<u8>, CertificateError> {
    let certificate = params.signed_by(&Subject(subject), signer).map_err(CertificateError::Write)?;
    Ok(certificate.der().to_vec())
}
