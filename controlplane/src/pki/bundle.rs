//! The trust bundle: whom a network believes, in numbered versions that vouch for one another.
//!
//! ```text
//!  network id = SHA-256("weir-network-1" ‖ body of version 1)
//!
//!  version 1 ◂──previous── version 2 ◂──previous── version 3          body ‖ signatures (root key id, signature)…
//!  signed by a root         by a root of 1          by a root of 2
//!  of its own               and one of its own      and one of its own
//! ```
//!
//! So a member that knows only the network id, or slept through ten versions, walks from what it knows to what holds now, and a thief of
//! one root cannot leave the line without both sides of the step agreeing (the scheme of The Update Framework, §5.3). Allocation is a
//! right of its own: a [`Slice`] names the one issuer that may give out these names and prefixes for the first time. What an issuer's
//! certificate covers is wider, since any issuer renews what another gave.

pub mod text;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use weir_dataplane::api::Prefix;

use super::certificate::{self, CertificateError};
use super::dnssec::LongName;
use super::dnssec::network::{NetworkZones, ZoneSignature};
use super::dnssec::rrset::SetError;
use super::id::{KeyId, NetworkId, sha256};
use super::key::{Domain, PrivateKey, PublicKey, Signature};
use super::name::{NameError, NamePattern, check_label};
use super::revocation::RevocationSet;
use crate::codec::{self, DecodeError};

/// Roots in one bundle: A and B, and their successors while one follows the other.
pub const ROOTS_MAX: usize = 4;
/// Issuer certificates in one bundle. Ours: 16 issuers with 12 successors each signed ahead, and the one that is running out.
pub const ISSUERS_MAX: usize = 208;
/// Issuers that the bundle names as revoked.
pub const REVOKED_ISSUERS_MAX: usize = 1024;
/// Keys outside the issuers that may sign revocations.
pub const REVOKERS_MAX: usize = 8;
/// Keys that may sign policy.
pub const OPERATORS_MAX: usize = 64;
/// Roots' signatures of the keys of the network's zones: every root, and both zones.
pub const ZONE_SIGNATURES_MAX: usize = 2 * ROOTS_MAX;
/// Longest name of the domain under which the network's zone stands. Ours: so that names of four labels have room below it.
pub const DNS_PARENT_LEN_MAX: usize = 64;
/// Slices of names and prefixes.
pub const SLICES_MAX: usize = 16;
/// Patterns of names in one slice.
pub const SLICE_NAMES_MAX: usize = 16;
/// Prefixes in one slice.
pub const SLICE_PREFIXES_MAX: usize = 64;
/// Longest certificate in a bundle.
pub const CERTIFICATE_LEN_MAX: usize = 2048;
/// Longest body that is read: all of the above at once.
pub const BODY_LEN_MAX: usize = 512 * 1024;
/// Signatures on one version: every root of two versions.
pub const SIGNATURES_MAX: usize = 2 * ROOTS_MAX;
/// Versions that a chain holds. Ours: a ceremony every week for twenty years.
pub const VERSIONS_MAX: usize = 1024;

/// Shortest and longest life of a leaf.
pub const LEAF_LIFETIME_SECS: std::ops::RangeInclusive<u32> = 3600..=7 * 86_400;
/// Longest grace.
pub const GRACE_SECS_MAX: u32 = 30 * 86_400;
/// Shortest and longest time for which a revocation list counts as fresh.
pub const REVOCATION_FRESH_SECS: std::ops::RangeInclusive<u32> = 1200..=7 * 86_400;

/// What holds for the whole network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// How long a leaf is valid.
    pub leaf_lifetime_secs: u32,
    /// How long after its end peers still accept one when no issuer can be reached; 0 is strict.
    pub grace_secs: u32,
    /// How long a revocation list counts as fresh.
    pub revocation_fresh_secs: u32,
    /// Whether sessions under the draft group are allowed at all.
    pub legacy_kyber_allowed: bool,
}

impl Default for Parameters {
    /// Leaves of a day, a week of grace, lists fresh for an hour.
    fn default() -> Self {
        Self {
            leaf_lifetime_secs: 86_400,
            grace_secs: 7 * 86_400,
            revocation_fresh_secs: 3600,
            legacy_kyber_allowed: false,
        }
    }
}

/// What one issuer alone may give out for the first time. No two slices overlap, so a partition cannot assign anything twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The allocating issuer.
    pub issuer: KeyId,
    /// Names.
    pub names: Vec<NamePattern>,
    /// Prefixes for the networks behind members.
    pub prefixes: Vec<Prefix>,
}

/// One version of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Counts from 1.
    pub version: u64,
    /// Hash of the body of the version before.
    pub previous: Option<[u8; 32]>,
    /// The network's name, which is also that of its DNS zone below [`Self::dns_parent`].
    pub network_name: String,
    /// What policy does with what it does not mention.
    pub default_allow: bool,
    /// Root certificates in DER.
    pub roots: Vec<Vec<u8>>,
    /// Issuer certificates in DER, several of one issuer when successors are signed ahead.
    pub issuers: Vec<Vec<u8>>,
    /// Issuers whose signatures count no longer, whatever they signed.
    pub revoked_issuers: Vec<KeyId>,
    /// Keys outside the issuers that may sign revocations.
    pub revokers: Vec<PublicKey>,
    /// Who allocates what.
    pub slices: Vec<Slice>,
    /// Under which its DNS zone stands: `internal`, or a domain of its owner.
    pub dns_parent: String,
    /// Keys that may sign policy.
    pub operators: Vec<PublicKey>,
    /// What holds for all.
    pub parameters: Parameters,
}

/// A version as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    /// The bundle's bytes.
    pub body: Vec<u8>,
    /// By roots.
    pub signatures: Vec<(KeyId, Signature)>,
    /// By roots that are in it, of the keys of the network's zones. Beside the body, since the name of one of them is made of the network's id, and that
    /// of the first body.
    pub zones: Vec<ZoneSignature>,
}

/// Why a bundle, or a step to one, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not a bundle.
    #[error("the trust bundle does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A certificate in it is none.
    #[error("a certificate in the trust bundle: {0}")]
    Certificate(#[from] CertificateError),
    /// The first version names another network.
    #[error("this trust bundle begins network {found}, not {expected}")]
    OtherNetwork {
        /// The network that was asked for.
        expected: NetworkId,
        /// The network of this bundle.
        found: NetworkId,
    },
    /// A version is missing in between.
    #[error("version {found} of the trust bundle does not follow version {have}; ask for the ones between")]
    Gap {
        /// The latest that is known.
        have: u64,
        /// The one that came.
        found: u64,
    },
    /// Two bundles of one version, both signed.
    #[error(
        "two different trust bundles claim version {0}; a root key is in two hands: run a ceremony with the other root"
    )]
    Fork(u64),
    /// No root of the version before signed.
    #[error("no root of version {0} signed its successor")]
    NotByPredecessor(u64),
    /// No root of its own signed.
    #[error("no root of version {0} signed it")]
    NotByItself(u64),
    /// More signatures than roots can be.
    #[error("{0} signatures on a trust bundle, at most {SIGNATURES_MAX} are read")]
    Signatures(usize),
    /// More versions than a chain holds.
    #[error("a chain holds {VERSIONS_MAX} versions of the trust bundle; found the network anew")]
    Versions,
    /// There is no version to begin with.
    #[error("no version of the trust bundle")]
    Empty,
    /// A list is too long or empty.
    #[error("{found} {what} in the trust bundle, {min} to {max} are possible")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// At least.
        min: usize,
        /// At most.
        max: usize,
    },
    /// The network's name.
    #[error("the network's name: {0}")]
    Name(#[from] NameError),
    /// A parameter is out of its range.
    #[error("{what} of {secs} s is out of range")]
    Parameter {
        /// Which one.
        what: &'static str,
        /// Its value.
        secs: u32,
    },
    /// Version and predecessor do not fit together.
    #[error("version 1 of a trust bundle has no predecessor, every other has one")]
    Previous,
    /// A key or slice stands there twice.
    #[error("{0} stands twice in the trust bundle")]
    Twice(String),
    /// Two slices share something.
    #[error("the slices of {0} and {1} overlap; give each name and prefix to one issuer")]
    SlicesOverlap(KeyId, KeyId),
    /// A slice of an issuer that is not there.
    #[error("a slice belongs to {0}, which is no issuer of the bundle")]
    SliceOfStranger(KeyId),
    /// A change names something that is not there.
    #[error("the trust bundle has no {0}")]
    Unknown(String),
    /// The keys of the network's zones are not signed by a root of this version.
    #[error("no root of version {version} signed the keys of its zones: {error}")]
    Zones {
        /// Of which version.
        version: u64,
        /// What is wrong.
        error: SetError,
    },
    /// The network's name and its domain make no name.
    #[error(transparent)]
    LongName(#[from] LongName),
    /// The domain of the zone.
    #[error("{0:?} is no domain: write labels with dots between, at most {DNS_PARENT_LEN_MAX} characters")]
    Parent(String),
    /// Nobody who signs is a root.
    #[error("none of the given keys is a root of version {0}")]
    NoRootKey(u64),
}

impl BundleError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OtherNetwork { .. } => "bundle_other_network",
            Self::Gap { .. } => "bundle_gap",
            Self::Fork(_) => "bundle_fork",
            Self::NotByPredecessor(_) => "bundle_predecessor",
            Self::NotByItself(_) | Self::Zones { .. } => "bundle_own_root",
            Self::Signatures(_) | Self::Versions => "bundle_too_many",
            Self::Decode(_)
            | Self::Certificate(_)
            | Self::Empty
            | Self::Count { .. }
            | Self::Name(_)
            | Self::Parent(_)
            | Self::LongName(_)
            | Self::Parameter { .. }
            | Self::Previous
            | Self::Twice(_)
            | Self::SlicesOverlap(..)
            | Self::SliceOfStranger(_)
            | Self::Unknown(_)
            | Self::NoRootKey(_) => "bundle_malformed",
        }
    }
}

/// The id of the network that this first version founds.
pub fn network_id(first: &SignedBundle) -> NetworkId {
    NetworkId(sha256("weir-network-1", &[&first.body]))
}

/// Whether two prefixes share an address.
pub fn prefixes_overlap(one: &Prefix, other: &Prefix) -> bool {
    one.contains(other.address()) || other.contains(one.address())
}

/// Whether every address of `inner` is in `outer`.
pub fn prefix_covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.bit_len() <= inner.bit_len() && outer.contains(inner.address())
}

impl SignedBundle {
    /// Most bytes of an encoded one.
    pub const LEN_MAX: usize = BODY_LEN_MAX + 2048;

    /// Signs a version with every given key; of no `network`, the first of one. Whether they suffice, [`Chain`] judges.
    pub fn sign(bundle: &Bundle, network: Option<NetworkId>, roots: &[&PrivateKey]) -> Self {
        let body = codec::encode(bundle);
        let sign = |root: &&PrivateKey| (root.public().id(), root.sign(Domain::Bundle, &body));
        let signatures = roots.iter().map(sign).collect();
        let mut signed = Self { body, signatures, zones: vec![] };
        // Of what is no bundle no zone is signed either: whoever judges it says why.
        let zones = NetworkZones::of(bundle, network.unwrap_or_else(|| network_id(&signed)));
        signed.zones = zones.ok().flatten().map(|zones| zones.sign(roots)).unwrap_or_default();
        signed
    }

    /// How many bytes it has, about.
    pub fn wire_len(&self) -> usize {
        self.body.len() + 96 * (self.signatures.len() + self.zones.len())
    }

    fn check_zones(&self, bundle: &Bundle, network: NetworkId) -> Result<(), BundleError> {
        let wrong = |error| BundleError::Zones { version: bundle.version, error };
        if self.zones.len() > ZONE_SIGNATURES_MAX {
            return Err(BundleError::Signatures(self.zones.len()));
        }
        match NetworkZones::of(bundle, network)? {
            Some(zones) => zones.check(&self.zones).map_err(wrong),
            None if self.zones.is_empty() => Ok(()),
            None => Err(wrong(SetError::Key(0))),
        }
    }

    /// Hash of the body: what the next version calls its previous.
    pub fn digest(&self) -> [u8; 32] {
        sha256("weir-bundle-1", &[&self.body])
    }

    /// The bundle, well formed, but signed by whomever.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn peek(&self) -> Result<Bundle, BundleError> {
        let bundle: Bundle = codec::decode(&self.body, BODY_LEN_MAX)?;
        bundle.check()?;
        Ok(bundle)
    }

    fn signed_by_one_of(&self, roots: &[PublicKey]) -> bool {
        self.signatures.iter().any(|(id, signature)| {
            let root = roots.iter().find(|root| root.id() == *id);
            root.is_some_and(|root| root.verify(Domain::Bundle, &self.body, signature).is_ok())
        })
    }
}

fn check_parent(parent: &str) -> Result<(), BundleError> {
    let is_domain = parent.len() <= DNS_PARENT_LEN_MAX && parent.split('.').all(|label| check_label(label).is_ok());
    if is_domain { Ok(()) } else { Err(BundleError::Parent(parent.to_owned())) }
}

fn count(what: &'static str, found: usize, min: usize, max: usize) -> Result<(), BundleError> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(BundleError::Count { what, found, min, max }) }
}

fn no_twins<T: Ord>(of: &[T], show: impl Fn(&T) -> String) -> Result<(), BundleError> {
    let mut sorted: Vec<&T> = of.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(BundleError::Twice(show(pair[0]))),
        None => Ok(()),
    }
}

impl Bundle {
    /// Checks everything that needs no other version.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn check(&self) -> Result<(), BundleError> {
        if (self.version == 1) != self.previous.is_none() || self.version == 0 {
            return Err(BundleError::Previous);
        }
        check_label(&self.network_name)?;
        count("roots", self.roots.len(), 1, ROOTS_MAX)?;
        count("issuers", self.issuers.len(), 0, ISSUERS_MAX)?;
        count("revoked issuers", self.revoked_issuers.len(), 0, REVOKED_ISSUERS_MAX)?;
        count("revocation keys", self.revokers.len(), 0, REVOKERS_MAX)?;
        count("slices", self.slices.len(), 0, SLICES_MAX)?;
        check_parent(&self.dns_parent)?;
        count("operators", self.operators.len(), 0, OPERATORS_MAX)?;
        for certificate in self.roots.iter().chain(&self.issuers) {
            count("bytes of a certificate", certificate.len(), 1, CERTIFICATE_LEN_MAX)?;
        }
        no_twins(&self.root_keys()?, |key| format!("root {}", key.id()))?;
        no_twins(&self.issuers, |_| "an issuer certificate".to_owned())?;
        no_twins(&self.revoked_issuers, |id| format!("revoked issuer {id}"))?;
        no_twins(&self.revokers, |key| format!("revocation key {}", key.id()))?;
        no_twins(&self.operators, |key| format!("operator {}", key.id()))?;
        self.check_slices()?;
        self.check_parameters()
    }

    fn check_slices(&self) -> Result<(), BundleError> {
        let issuers = self.issuer_keys()?;
        for (at, slice) in self.slices.iter().enumerate() {
            count("names of a slice", slice.names.len(), 0, SLICE_NAMES_MAX)?;
            count("prefixes of a slice", slice.prefixes.len(), 0, SLICE_PREFIXES_MAX)?;
            if !issuers.iter().any(|key| key.id() == slice.issuer) {
                return Err(BundleError::SliceOfStranger(slice.issuer));
            }
            for other in &self.slices[..at] {
                if other.issuer == slice.issuer {
                    return Err(BundleError::Twice(format!("the slice of {}", slice.issuer)));
                }
                let names = slice.names.iter().any(|one| other.names.iter().any(|two| one.overlaps(two)));
                let overlap = |one: &Prefix| other.prefixes.iter().any(|two| prefixes_overlap(one, two));
                if names || slice.prefixes.iter().any(overlap) {
                    return Err(BundleError::SlicesOverlap(other.issuer, slice.issuer));
                }
            }
        }
        Ok(())
    }

    fn check_parameters(&self) -> Result<(), BundleError> {
        let Parameters { leaf_lifetime_secs, grace_secs, revocation_fresh_secs, legacy_kyber_allowed: _ } =
            self.parameters;
        let ranges = [
            ("a leaf's life", leaf_lifetime_secs, LEAF_LIFETIME_SECS),
            ("grace", grace_secs, 0..=GRACE_SECS_MAX),
            ("a revocation list's freshness", revocation_fresh_secs, REVOCATION_FRESH_SECS),
        ];
        let wrong = ranges.into_iter().find(|(_, secs, range)| !range.contains(secs));
        wrong.map_or(Ok(()), |(what, secs, _)| Err(BundleError::Parameter { what, secs }))
    }

    /// The roots' keys.
    ///
    /// # Errors
    /// [`BundleError::Certificate`], never for a checked bundle.
    pub fn root_keys(&self) -> Result<Vec<PublicKey>, BundleError> {
        self.roots.iter().map(|der| Ok(certificate::public_key(der)?)).collect()
    }

    /// The keys of all issuer certificates, revoked ones too, as often as they have certificates.
    fn issuer_keys(&self) -> Result<Vec<PublicKey>, BundleError> {
        self.issuers.iter().map(|der| Ok(certificate::public_key(der)?)).collect()
    }

    /// Whether the bundle takes back what this issuer signed.
    pub fn is_revoked(&self, issuer: KeyId) -> bool {
        self.revoked_issuers.contains(&issuer)
    }

    /// The key of an issuer that the bundle names and has not revoked.
    pub fn issuer(&self, id: KeyId) -> Option<PublicKey> {
        if self.is_revoked(id) {
            return None;
        }
        let mut keys = self.issuers.iter().filter_map(|der| certificate::public_key(der).ok());
        keys.find(|key| key.id() == id)
    }

    /// The certificates of one issuer in the order of the bundle; none when it is revoked.
    pub fn issuer_certificates(&self, id: KeyId) -> Vec<&[u8]> {
        let of_it = |der: &&Vec<u8>| certificate::public_key(der).is_ok_and(|key| key.id() == id);
        if self.is_revoked(id) {
            return vec![];
        }
        self.issuers.iter().filter(of_it).map(Vec::as_slice).collect()
    }

    /// The key of someone who may sign revocation lists: an issuer or a revocation key. Not judged by the clock: what an issuer cut stays
    /// cut when its certificate has ended, and the union is the same for everyone who has the same bundle.
    pub fn revoker(&self, id: KeyId) -> Option<PublicKey> {
        let outside = self.revokers.iter().find(|key| key.id() == id).copied();
        outside.or_else(|| self.issuer(id))
    }

    /// The key of someone who may sign policy.
    pub fn operator(&self, id: KeyId) -> Option<PublicKey> {
        self.operators.iter().find(|key| key.id() == id).copied()
    }

    /// The keys that may sign policy, without those of issuers that a list has revoked.
    pub fn operators(&self, revoked: &RevocationSet) -> Vec<PublicKey> {
        self.operators.iter().filter(|key| !revoked.is_issuer_revoked(key.id())).copied().collect()
    }

    /// What this issuer may allocate.
    pub fn slice(&self, issuer: KeyId) -> Option<&Slice> {
        if self.is_revoked(issuer) { None } else { self.slices.iter().find(|slice| slice.issuer == issuer) }
    }
}

/// What [`Chain::extend`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// The version is new and holds now.
    New,
    /// It was there already.
    Known,
}

/// All versions from the first to the one that holds.
#[derive(Clone, Debug)]
pub struct Chain {
    network: NetworkId,
    versions: Vec<SignedBundle>,
    current: Bundle,
    /// Every issuer by the last version that named it. Strangers ask for them, so no version is decoded again for an answer.
    issuers: HashMap<KeyId, IssuerKeys>,
}

/// The key of an issuer and its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKeys {
    /// The key.
    pub public: PublicKey,
    /// The certificates, in DER.
    pub certificates: Vec<Vec<u8>>,
}

impl Chain {
    /// Begins with the version that founds the network.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn start(network: NetworkId, first: SignedBundle) -> Result<Self, BundleError> {
        let found = network_id(&first);
        if found != network {
            return Err(BundleError::OtherNetwork { expected: network, found });
        }
        if first.signatures.len() > SIGNATURES_MAX {
            return Err(BundleError::Signatures(first.signatures.len()));
        }
        let current = first.peek()?;
        if current.version != 1 {
            return Err(BundleError::Gap { have: 0, found: current.version });
        }
        if !first.signed_by_one_of(&current.root_keys()?) {
            return Err(BundleError::NotByItself(1));
        }
        first.check_zones(&current, network)?;
        let mut issuers = HashMap::new();
        note_issuers(&mut issuers, &current);
        Ok(Self { network, versions: vec![first], current, issuers })
    }

    /// Walks versions in order, from the first.
    ///
    /// # Errors
    /// [`BundleError`] at the first step that does not hold.
    pub fn walk(network: NetworkId, versions: &[SignedBundle]) -> Result<Self, BundleError> {
        let (first, later) = versions.split_first().ok_or(BundleError::Empty)?;
        let mut chain = Self::start(network, first.clone())?;
        for version in later {
            chain.extend(version.clone())?;
        }
        Ok(chain)
    }

    /// Takes one more version. Nothing changes when it is refused.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn extend(&mut self, next: SignedBundle) -> Result<Extended, BundleError> {
        let Some(bundle) = self.judge(&next)? else { return Ok(Extended::Known) };
        note_issuers(&mut self.issuers, &bundle);
        self.versions.push(next);
        self.current = bundle;
        Ok(Extended::New)
    }

    /// What a version says that [`Self::extend`] would take as new; nothing for one that is known.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn judge(&self, next: &SignedBundle) -> Result<Option<Bundle>, BundleError> {
        if next.signatures.len() > SIGNATURES_MAX {
            return Err(BundleError::Signatures(next.signatures.len()));
        }
        let bundle = next.peek()?;
        let have = self.current.version;
        if bundle.version <= have {
            self.compare(next, bundle.version)?;
            return Ok(None);
        }
        let last = self.last();
        if bundle.version != have + 1 {
            return Err(BundleError::Gap { have, found: bundle.version });
        }
        if !next.signed_by_one_of(&self.current.root_keys()?) {
            return Err(BundleError::NotByPredecessor(have));
        }
        if !next.signed_by_one_of(&bundle.root_keys()?) {
            return Err(BundleError::NotByItself(bundle.version));
        }
        next.check_zones(&bundle, self.network)?;
        // Signed by a root of ours, so it is no stranger's noise but another line of versions.
        if bundle.previous != Some(last.digest()) {
            return Err(BundleError::Fork(have));
        }
        if self.versions.len() >= VERSIONS_MAX {
            return Err(BundleError::Versions);
        }
        Ok(Some(bundle))
    }

    /// A version that we have: the same, a forgery, or a fork.
    fn compare(&self, other: &SignedBundle, version: u64) -> Result<(), BundleError> {
        // Versions count from 1 and `peek` refuses 0.
        let at = usize::try_from(version - 1).map_err(|_| BundleError::Versions)?;
        if self.versions[at].body == other.body {
            return Ok(());
        }
        let judge = if at == 0 { &self.versions[0] } else { &self.versions[at - 1] };
        if at > 0 && other.signed_by_one_of(&judge.peek()?.root_keys()?) {
            return Err(BundleError::Fork(version));
        }
        Err(BundleError::NotByPredecessor(version.saturating_sub(1)))
    }

    fn last(&self) -> &SignedBundle {
        self.versions.last().expect("a chain starts with a version and never loses one")
    }

    /// The network.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// What holds now.
    pub const fn current(&self) -> &Bundle {
        &self.current
    }

    /// Hash of what holds now.
    pub fn digest(&self) -> [u8; 32] {
        self.last().digest()
    }

    /// All versions in order.
    pub fn versions(&self) -> &[SignedBundle] {
        &self.versions
    }

    /// The next version, with nothing changed yet.
    pub fn successor(&self) -> Bundle {
        let previous = Some(self.digest());
        Bundle { version: self.current.version + 1, previous, ..self.current.clone() }
    }

    /// The versions after `version`, for someone who has that one.
    pub fn after(&self, version: u64) -> &[SignedBundle] {
        let from = usize::try_from(version).unwrap_or(usize::MAX).min(self.versions.len());
        &self.versions[from..]
    }

    /// The key and the certificates of an issuer that any version named and the current one has not revoked: its certificate may have ended
    /// and been dropped while a member that it certified was away.
    pub fn issuer_ever(&self, id: KeyId) -> Option<&IssuerKeys> {
        if self.current.is_revoked(id) { None } else { self.issuers.get(&id) }
    }
}

/// What this version says of issuers, in place of what the ones before said.
fn note_issuers(issuers: &mut HashMap<KeyId, IssuerKeys>, bundle: &Bundle) {
    let mut named: HashMap<KeyId, IssuerKeys> = HashMap::new();
    for der in &bundle.issuers {
        // A checked bundle has certificates only.
        let Ok(public) = certificate::public_key(der) else { continue };
        if !bundle.is_revoked(public.id()) {
            let keys = named.entry(public.id()).or_insert(IssuerKeys { public, certificates: vec![] });
            keys.certificates.push(der.clone());
        }
    }
    issuers.extend(named);
}

#[cfg(test)]
pub(crate) mod tests;
