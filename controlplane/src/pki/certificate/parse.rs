//! Reading certificates. Most of what is read here came from a peer and nobody has looked at its signature yet.

use x509_parser::asn1_rs::Tag;
use x509_parser::oid_registry::{
    OID_SIG_ED25519, OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_SERIALNUMBER,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509Name, X509Version};
use x509_parser::x509::AlgorithmIdentifier;

use super::{
    AuthorityFields, CERTIFICATE_LEN_MAX, CertificateError, GROUPS_MAX, LeafFields, ROLES_MAX, Serial, Validity,
};
use crate::pki::id::{KeyId, NetworkId, NodeId, Nonce};
use crate::pki::key::PublicKey;
use crate::pki::name::check_label;
use crate::pki::resources::{IpBlocks, Resources};
use crate::time::UnixSecs;

/// id-pe-ipAddrBlocks, [`IpBlocks::OID`], in DER.
const IP_BLOCKS: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 1, 7];

/// The key that a certificate is for.
///
/// # Errors
/// [`CertificateError`] when the bytes are no certificate, or not of an Ed25519 key.
pub fn public_key(der: &[u8]) -> Result<PublicKey, CertificateError> {
    subject_key(&parse(der)?)
}

/// From when to when a certificate is valid.
///
/// # Errors
/// [`CertificateError`].
pub fn validity(der: &[u8]) -> Result<Validity, CertificateError> {
    read_validity(&parse(der)?)
}

/// Reads a root's or an issuer's certificate.
///
/// # Errors
/// [`CertificateError`].
pub fn read_authority(der: &[u8]) -> Result<AuthorityFields, CertificateError> {
    let certificate = parse(der)?;
    let common = Common::read(&certificate)?;
    let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|found| found.value.ca);
    let may_sign = certificate.key_usage().ok().flatten().is_some_and(|found| found.value.key_cert_sign());
    if !is_ca || !may_sign {
        return Err(CertificateError::Profile("right to sign certificates"));
    }
    Ok(AuthorityFields {
        public: common.public,
        signer: common.signer,
        network_name: common.network_name,
        name: common.name,
        blocks: common.blocks,
        validity: common.validity,
        serial: common.serial,
    })
}

/// Reads a member's certificate. That the node id fits the identity, and that anybody signed it, is the verifier's to judge.
///
/// # Errors
/// [`CertificateError`].
pub fn read_leaf(der: &[u8]) -> Result<LeafFields, CertificateError> {
    let certificate = parse(der)?;
    let common = Common::read(&certificate)?;
    let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|found| found.value.ca);
    let signs = certificate.key_usage().ok().flatten().is_some_and(|found| found.value.digital_signature());
    let usage = certificate.extended_key_usage().ok().flatten();
    let both = usage.is_some_and(|found| found.value.client_auth && found.value.server_auth);
    if is_ca || !signs || !both {
        return Err(CertificateError::Profile("key usage: signatures, as client and as server"));
    }
    if check_label(&common.name).is_err() {
        return Err(CertificateError::Profile("member's name"));
    }
    let prefixes: Resources = match common.blocks {
        IpBlocks::Explicit(resources) => resources,
        IpBlocks::Inherit => return Err(CertificateError::Profile("addresses of its own")),
    };
    let names = Names::read(&certificate)?;
    Ok(LeafFields {
        leaf_public: common.public,
        issuer: common.signer,
        network_name: common.network_name,
        network: names.network.ok_or(CertificateError::Profile("network id"))?,
        node: names.node.ok_or(CertificateError::Profile("node id"))?,
        identity: names.identity.ok_or(CertificateError::Profile("identity key"))?,
        nonce: names.nonce.ok_or(CertificateError::Profile("nonce"))?,
        name: common.name,
        prefixes,
        groups: names.groups,
        roles: names.roles,
        validity: common.validity,
        serial: common.serial,
    })
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > CERTIFICATE_LEN_MAX {
        return Err(CertificateError::TooLong(der.len()));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        Ok(_) | Err(_) => Err(CertificateError::Malformed),
    }
}

fn is_ed25519(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    // RFC 8410 §3: the parameters are absent.
    algorithm.algorithm == OID_SIG_ED25519 && algorithm.parameters.is_none()
}

fn subject_key(certificate: &X509Certificate<'_>) -> Result<PublicKey, CertificateError> {
    let info = certificate.public_key();
    let bits = &info.subject_public_key;
    match <[u8; 32]>::try_from(bits.data.as_ref()) {
        Ok(key) if is_ed25519(&info.algorithm) && bits.unused_bits == 0 => Ok(PublicKey(key)),
        Ok(_) | Err(_) => Err(CertificateError::Algorithm),
    }
}

fn read_validity(certificate: &X509Certificate<'_>) -> Result<Validity, CertificateError> {
    let found = certificate.validity();
    let moment = |secs: i64| u64::try_from(secs).map(UnixSecs).map_err(|_| CertificateError::Profile("validity"));
    let (not_before, not_after) = (moment(found.not_before.timestamp())?, moment(found.not_after.timestamp())?);
    if not_after < not_before {
        return Err(CertificateError::Validity(not_before, not_after));
    }
    Ok(Validity { not_before, not_after })
}

/// What all certificates of the profile have.
struct Common {
    public: PublicKey,
    signer: KeyId,
    network_name: String,
    name: String,
    blocks: IpBlocks,
    validity: Validity,
    serial: Serial,
}

impl Common {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let public = subject_key(certificate)?;
        if !is_ed25519(&certificate.signature_algorithm) || !is_ed25519(&certificate.tbs_certificate.signature) {
            return Err(CertificateError::Algorithm);
        }
        let extensions =
            certificate.extensions_map().map_err(|_| CertificateError::Profile("extensions: one occurs twice"))?;
        let blocks = extensions.into_iter().find(|(oid, _)| oid.as_bytes() == IP_BLOCKS);
        let (_, blocks) = blocks.ok_or(CertificateError::NoResources)?;
        let subject = Subject::read(certificate.subject()).ok_or(CertificateError::Profile("subject"))?;
        let issuer = Subject::read(certificate.issuer()).ok_or(CertificateError::Profile("issuer"))?;
        // A path is built by comparing names; because each name has the id of its key, it names the key as well.
        if subject.id != public.id() {
            return Err(CertificateError::Profile("key id in its subject"));
        }
        if subject.network_name != issuer.network_name {
            return Err(CertificateError::Profile("network's name"));
        }
        Ok(Self {
            public,
            signer: issuer.id,
            network_name: subject.network_name,
            name: subject.name,
            blocks: IpBlocks::from_der(blocks.value)?,
            validity: read_validity(certificate)?,
            serial: Serial::read(certificate.raw_serial()).ok_or(CertificateError::Profile("serial number"))?,
        })
    }
}

/// A subject or an issuer: network, name, key id, in this order, each of the string type that is written.
struct Subject {
    network_name: String,
    name: String,
    id: KeyId,
}

impl Subject {
    fn read(name: &X509Name<'_>) -> Option<Self> {
        let expected = [
            (OID_X509_ORGANIZATION_NAME, Tag::Utf8String),
            (OID_X509_COMMON_NAME, Tag::Utf8String),
            (OID_X509_SERIALNUMBER, Tag::PrintableString),
        ];
        if name.iter().count() != expected.len() {
            return None;
        }
        let mut texts = [""; 3];
        for ((relative, (oid, tag)), text) in name.iter().zip(expected).zip(&mut texts) {
            let mut attributes = relative.iter();
            let (attribute, None) = (attributes.next()?, attributes.next()) else { return None };
            if *attribute.attr_type() != oid || attribute.attr_value().tag() != tag {
                return None;
            }
            *text = attribute.as_str().ok()?;
        }
        let [network_name, name, id] = texts;
        let key: KeyId = id.parse().ok()?;
        // One id has one text, so that equal names are equal bytes.
        let proper = check_label(network_name).is_ok() && !name.is_empty() && key.to_string() == id;
        proper.then(|| Self { network_name: network_name.to_owned(), name: name.to_owned(), id: key })
    }
}

/// What the subject alternative names say.
#[derive(Default)]
struct Names {
    node: Option<NodeId>,
    network: Option<NetworkId>,
    identity: Option<PublicKey>,
    nonce: Option<Nonce>,
    groups: Vec<String>,
    roles: Vec<String>,
}

impl Names {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let found = certificate.subject_alternative_name().ok().flatten();
        let found = found.ok_or(CertificateError::Profile("alternative names"))?;
        let mut names = Self::default();
        for name in &found.value.general_names {
            match name {
                GeneralName::DNSName(label) => once(&mut names.node, label.parse().ok(), "node id")?,
                GeneralName::URI(uri) => names.read_uri(uri)?,
                // Other kinds of names say nothing about a member.
                _ => {}
            }
        }
        Ok(names)
    }

    fn read_uri(&mut self, uri: &str) -> Result<(), CertificateError> {
        let Some((kind, value)) = uri.strip_prefix("weir:").and_then(|rest| rest.split_once('/')) else {
            return Ok(());
        };
        match kind {
            "network" => once(&mut self.network, value.parse().ok(), "network id"),
            "identity" => {
                // An identity key is written as ids are.
                let key = value.parse::<NodeId>().ok().map(|id| PublicKey(id.0));
                once(&mut self.identity, key, "identity key")
            }
            "nonce" => once(&mut self.nonce, value.parse().ok(), "nonce"),
            "group" => push(&mut self.groups, value, ("group", "groups", GROUPS_MAX)),
            "role" => push(&mut self.roles, value, ("role", "roles", ROLES_MAX)),
            // What a later version adds is not critical, or it would have to be an extension that is.
            _ => Ok(()),
        }
    }
}

/// Keeps a value that must be readable and may stand there once.
fn once<T>(place: &mut Option<T>, value: Option<T>, what: &'static str) -> Result<(), CertificateError> {
    match (value, place.is_none()) {
        (Some(value), true) => {
            *place = Some(value);
            Ok(())
        }
        (Some(_) | None, _) => Err(CertificateError::Profile(what)),
    }
}

fn push(
    list: &mut Vec<String>,
    name: &str,
    (what, many, max): (&'static str, &'static str, usize),
) -> Result<(), CertificateError> {
    if check_label(name).is_err() {
        return Err(CertificateError::Profile(what));
    }
    if list.len() == max {
        return Err(CertificateError::TooMany(many, max));
    }
    list.push(name.to_owned());
    Ok(())
}
