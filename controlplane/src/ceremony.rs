//! What is done with a root's key in hand: founding a network, and each change of its trust bundle.
//!
//! ```text
//!  found:  roots A, B ─▸ certificates ─▸ issuer's certificate ─▸ bundle 1, signed by A and B ─▸ network id
//!          issuer ─ invitation ─▸ founder's request ─▸ leaf, statement        (the way that every member takes)
//!
//!  later:  bundle n ─ change ─▸ bundle n + 1, signed by one root that is in both
//! ```
//!
//! Nothing here reads or writes files: keys come in, keys and bundles go out. A founder is a member like any other: it redeems an
//! invitation of its own issuer, so what it has is in the same records and the same log as what others have.

use std::time::Duration;

use weir_dataplane::api::Prefix;

use crate::audit::ENTRIES_MAX_DEFAULT;
use crate::issuer::{
    Asked, Contact, InviteSpec, Issuer, JoinBody, JoinRequest, OpenIssuerError, Refused, Reply, Request, Subnet,
};
use crate::membership::{self, Membership, MembershipError};
use crate::pki::bundle::{self, Bundle, BundleError, Chain, Parameters, SignedBundle, Slice, prefix_covers};
use crate::pki::ceremony;
use crate::pki::certificate::{
    self, AuthorityFields, CertificateError, IssuerSpec, RootSpec, Serial, Validity, issuer_certificate,
    root_certificate,
};
use crate::pki::id::{KeyId, NetworkId, NodeId};
use crate::pki::key::{PrivateKey, PublicKey};
use crate::pki::name::NamePattern;
use crate::pki::resources::{IpBlocks, Resources};
use crate::pki::token::{Token, TokenError};
use crate::random::Random;
use crate::store::{Batch, Store, StoreError};
use crate::time::{Now, UnixSecs};

/// Life of a root: longer than that of any device that trusts it, and a rotation is possible at any time.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * DAY_SECS);
/// Life of an issuer's certificate.
const ISSUER_LIFE: Duration = Duration::from_secs(365 * DAY_SECS);
/// How far back a certificate begins, for clocks that go slow.
const BACKDATE: Duration = Duration::from_secs(3600);
const DAY_SECS: u64 = 86_400;
/// Most certificates that are signed ahead at a time.
pub const AHEAD_MAX: u8 = ceremony::SUCCESSORS_MAX as u8;
/// Role of the members at whose side an issuer sits.
pub const ISSUER_ROLE: &str = "issuer";

/// Why a ceremony did not come to its end. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// A certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The new bundle would not hold.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The issuer does not start.
    #[error(transparent)]
    Issuer(#[from] OpenIssuerError),
    /// The issuer refuses the founder.
    #[error("the issuer refuses this node: {0}")]
    Refused(#[from] Refused),
    /// The issuer's own token is none.
    #[error("the issuer's token: {0}")]
    Token(#[from] TokenError),
    /// The issuer answered something else than was asked.
    #[error("the issuer gave another answer than was asked for: report this as a bug")]
    Answer,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's membership cannot be read.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The store has a member in it.
    #[error("this node is {0} of network {1} already: leave first, or use another instance")]
    Member(String, NetworkId),
    /// Somebody has this key's right already.
    #[error("{0} is an issuer already: renew it instead")]
    AlreadyIssuer(KeyId),
    /// There is no such issuer.
    #[error("the trust bundle names no issuer {0}: `weir ca bundle` writes the newest one")]
    NoIssuer(KeyId),
    /// Who is revoked inherits nothing.
    #[error("{0} cannot be its own heir: name another issuer")]
    OwnHeir(KeyId),
    /// There is no such root.
    #[error("the trust bundle names no root {0}")]
    NoRoot(KeyId),
    /// The key given is none of the bundle's roots.
    #[error("{0} is no root of version {1} of the trust bundle: use the other root, or the newest bundle")]
    NotRoot(KeyId, u64),
    /// Somebody signs policy already.
    #[error("{0} is an operator already")]
    AlreadyOperator(KeyId),
    /// Somebody does not sign policy.
    #[error("the trust bundle names no operator {0}")]
    NoOperator(KeyId),
    /// Somebody's revocations count already.
    #[error("{0} revokes already")]
    AlreadyRevoker(KeyId),
    /// There is no such revocation key.
    #[error("the trust bundle names no revocation key {0}")]
    NoRevoker(KeyId),
    /// Not exactly one issuer gives out something.
    #[error("none or several issuers give out prefixes: name the one that gets more by its key id")]
    WhichAllocator,
    /// The issuer gives out nothing.
    #[error("{0} gives out nothing: `weir ca move-allocator` lets it")]
    NoAllocator(KeyId),
    /// A prefix is given out already.
    #[error("{0} gives out {1} already")]
    InPool(KeyId, Prefix),
    /// The root that signs would be gone afterwards.
    #[error("root {0} cannot sign its own end: sign with the root that stays")]
    OwnEnd(KeyId),
    /// More than can be signed ahead.
    #[error("{0} certificates ahead: 1 to {AHEAD_MAX} are possible")]
    Ahead(u8),
}

/// A network to found.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Its name.
    pub network: String,
    /// Under which its DNS zone stands.
    pub dns_parent: String,
    /// The first member's name.
    pub name: String,
    /// Whether packets pass that no rule of the policy is about.
    pub default_allow: bool,
    /// Prefixes that it gives out.
    pub pool: Vec<Prefix>,
    /// Prefixes behind the first member.
    pub subnets: Vec<Prefix>,
    /// Groups of the first member.
    pub groups: Vec<String>,
}

/// The keys of a new network.
#[derive(Debug)]
pub struct FoundingKeys {
    /// Root A.
    pub root_a: PrivateKey,
    /// Root B.
    pub root_b: PrivateKey,
    /// The first issuer.
    pub issuer: PrivateKey,
}

impl FoundingKeys {
    /// Fresh ones.
    pub fn generate(random: &mut impl Random) -> Self {
        let mut key = || PrivateKey::generate(random);
        Self { root_a: key(), root_b: key(), issuer: key() }
    }
}

/// A network that was founded.
#[derive(Debug)]
pub struct Founded {
    /// Its id.
    pub network: NetworkId,
    /// The first member's id.
    pub node: NodeId,
    /// Version 1 of the trust bundle.
    pub bundle: SignedBundle,
}

/// Founds a network: fills the issuer's store, then the node's.
///
/// # Errors
/// [`CeremonyError`].
pub fn found(
    founding: &Founding,
    keys: &FoundingKeys,
    node_store: &mut impl Store,
    issuer_store: impl Store,
    now: Now,
    random: &mut impl Random,
) -> Result<Founded, CeremonyError> {
    if let Some(member) = Membership::load(node_store, random)? {
        return Err(CeremonyError::Member(member.name, member.network));
    }
    let bundle = first_bundle(founding, keys, now.wall, random)?;
    let network = bundle::network_id(&bundle);
    let versions = [bundle.clone()];
    let (key, audit_max) = (keys.issuer.clone(), ENTRIES_MAX_DEFAULT);
    let mut issuer = Issuer::create(issuer_store, key, network, &versions, audit_max, now, random)?;

    let spec = InviteSpec {
        name: founding.name.parse::<NamePattern>().map_err(Refused::Name)?,
        subnet: if founding.subnets.is_empty() { Subnet::None } else { Subnet::Given(founding.subnets.clone()) },
        groups: founding.groups.clone(),
        roles: vec![ISSUER_ROLE.into()],
        ..InviteSpec::of(NamePattern::any())
    };
    // Nobody dials: the token is redeemed on the spot.
    let contact = Contact { node: NodeId::default(), endpoints: Vec::new() };
    let mut ask = |request, random: &mut _| issuer.handle(Asked { by: "init".into(), request }, now, random);
    let Reply::Invited { token, .. } = ask(Request::Invite { spec, contact }, random)? else {
        return Err(CeremonyError::Answer);
    };
    let token: Token = token.0.parse()?;
    let identity = membership::identity(node_store, random)?;
    let leaf = PrivateKey::generate(random);
    let body = JoinBody {
        network,
        invite: token.invite,
        identity: identity.public(),
        leaf_public: leaf.public(),
        wanted_name: None,
        dns_key: Some(membership::dns_key(&identity).public()),
        bundle_version: 0,
    };
    // There is no connection that the request could be bound to.
    let exporter = [0; 32];
    let request = JoinRequest::new(&body, &identity, &leaf, &token.secret, &exporter);
    let Reply::Granted(grant) = ask(Request::Join { request, exporter }, random)? else {
        return Err(CeremonyError::Answer);
    };

    let mut batch = Batch::default();
    membership::put_bundles(&mut batch, 1, &versions);
    membership::put_admission(&mut batch, &grant.admission);
    Membership::of_grant(network, &grant, identity, leaf).put(&mut batch);
    node_store.commit(batch)?;
    Ok(Founded { network, node: grant.node, bundle })
}

fn life(begin: UnixSecs, life: Duration) -> Validity {
    Validity { not_before: begin.minus(BACKDATE), not_after: begin.plus(life) }
}

fn first_bundle(
    founding: &Founding,
    keys: &FoundingKeys,
    now: UnixSecs,
    random: &mut impl Random,
) -> Result<SignedBundle, CeremonyError> {
    let mut roots = Vec::new();
    for (label, key) in [("a", &keys.root_a), ("b", &keys.root_b)] {
        let validity = life(now, ROOT_LIFE);
        let spec = RootSpec { label, network_name: &founding.network, validity, serial: Serial::draw(random) };
        roots.push(root_certificate(key, &spec)?);
    }
    let spec = IssuerSpec {
        public: keys.issuer.public(),
        blocks: IpBlocks::Explicit(grantable(&founding.pool)),
        validity: life(now, ISSUER_LIFE),
        serial: Serial::draw(random),
    };
    let issuer = issuer_certificate(&keys.root_a, &roots[0], &spec)?;
    let slice =
        Slice { issuer: keys.issuer.public().id(), names: vec![NamePattern::any()], prefixes: founding.pool.clone() };
    let first = Bundle {
        version: 1,
        previous: None,
        network_name: founding.network.clone(),
        default_allow: founding.default_allow,
        roots,
        issuers: vec![issuer],
        revoked_issuers: Vec::new(),
        revokers: Vec::new(),
        slices: vec![slice],
        dns_parent: founding.dns_parent.clone(),
        operators: vec![keys.issuer.public()],
        parameters: Parameters::default(),
    };
    let chain = ceremony::found(&first, &[&keys.root_a, &keys.root_b])?;
    Ok(chain.versions()[0].clone())
}

/// What an issuer's certificate has to cover: the pool, and all unique local addresses, because the network's own /48 among them is derived
/// from the bundle that the certificate stands in.
fn grantable(pool: &[Prefix]) -> Resources {
    let local: Prefix = "fd00::/8".parse().expect("a prefix");
    Resources::from_prefixes(pool.iter().copied().chain([local]))
}

/// A ceremony on a network that is there: the newest bundle, and a root that is in it.
#[derive(Debug)]
pub struct Ceremony {
    chain: Chain,
    root: PrivateKey,
    root_der: Vec<u8>,
    now: UnixSecs,
}

impl Ceremony {
    /// Begins one.
    ///
    /// # Errors
    /// [`CeremonyError`] when the versions do not hold, or the key is none of their roots.
    pub fn begin(versions: &[SignedBundle], root: PrivateKey, now: UnixSecs) -> Result<Self, CeremonyError> {
        let first = versions.first().ok_or(BundleError::Empty)?;
        let chain = Chain::walk(bundle::network_id(first), versions)?;
        let bundle = chain.current();
        let id = root.public().id();
        let root_der = ceremony::root_of(bundle, id).ok_or(CeremonyError::NotRoot(id, bundle.version))?.clone();
        Ok(Self { chain, root, root_der, now })
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.chain.network()
    }

    /// What holds so far.
    pub fn bundle(&self) -> &Bundle {
        self.chain.current()
    }

    /// All versions with the new one, for the file and for publication.
    pub fn versions(&self) -> &[SignedBundle] {
        self.chain.versions()
    }

    fn take(&mut self, next: SignedBundle) -> Result<(), CeremonyError> {
        self.chain.extend(next)?;
        Ok(())
    }

    fn spec(&self, public: PublicKey, validity: Validity, random: &mut impl Random) -> IssuerSpec {
        IssuerSpec { public, blocks: self.blocks(), validity, serial: Serial::draw(random) }
    }

    /// What an issuer may grant: all that any slice holds, because each renews what another gave.
    fn blocks(&self) -> IpBlocks {
        let pool: Vec<Prefix> = self.bundle().slices.iter().flat_map(|slice| slice.prefixes.clone()).collect();
        IpBlocks::Explicit(grantable(&pool))
    }

    /// Makes a key an issuer's. It renews; what it may give out for the first time, [`Self::move_allocator`] says.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn add_issuer(&mut self, public: PublicKey, random: &mut impl Random) -> Result<KeyId, CeremonyError> {
        let id = public.id();
        if self.bundle().issuer(id).is_some() {
            return Err(CeremonyError::AlreadyIssuer(id));
        }
        let specs = [self.spec(public, life(self.now, ISSUER_LIFE), random)];
        self.take(ceremony::certify_issuer(&self.chain, &[&self.root], &specs, None, self.now)?)?;
        Ok(id)
    }

    /// Gives an issuer so many certificates of a year that follow one another, the first of them from now on. Those of its
    /// certificates that have ended are dropped.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn renew_issuer(
        &mut self,
        issuer: KeyId,
        ahead: u8,
        random: &mut impl Random,
    ) -> Result<UnixSecs, CeremonyError> {
        if !(1..=AHEAD_MAX).contains(&ahead) {
            return Err(CeremonyError::Ahead(ahead));
        }
        let public = self.bundle().issuer(issuer).ok_or(CeremonyError::NoIssuer(issuer))?;
        let year = |year: u8| life(self.now.plus(ISSUER_LIFE * u32::from(year)), ISSUER_LIFE);
        let specs: Vec<IssuerSpec> = (0..ahead).map(|number| self.spec(public, year(number), random)).collect();
        let end = year(ahead - 1).not_after;
        self.take(ceremony::certify_issuer(&self.chain, &[&self.root], &specs, None, self.now)?)?;
        Ok(end)
    }

    /// Puts a new root in the place of one that goes. Certificates that the one that goes had signed are signed by the one that stays, for
    /// the time that they had left; one that has ended stays as it is.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn rotate_root(
        &mut self,
        goes: KeyId,
        comes: &PrivateKey,
        random: &mut impl Random,
    ) -> Result<KeyId, CeremonyError> {
        if goes == self.root.public().id() {
            return Err(CeremonyError::OwnEnd(goes));
        }
        let old = ceremony::root_of(self.bundle(), goes).ok_or(CeremonyError::NoRoot(goes))?.clone();
        // Of `root A` the newcomer takes the label over.
        let fields = certificate::read_authority(&old)?;
        let label = fields.name.split_whitespace().last().unwrap_or_default().to_ascii_lowercase();
        let spec = RootSpec {
            label: &label,
            network_name: &self.bundle().network_name,
            validity: life(self.now, ROOT_LIFE),
            serial: Serial::draw(random),
        };
        let new = root_certificate(comes, &spec)?;
        let same = |fields: &AuthorityFields| (fields.signer == goes).then(|| fields.blocks.clone());
        let issuers = self.certified_anew(same, random)?;
        let next = ceremony::amend(&self.chain, &[&self.root], |next| {
            next.roots.iter_mut().filter(|root| **root == old).for_each(|root| root.clone_from(&new));
            next.issuers = issuers;
            Ok(())
        })?;
        self.take(next)?;
        Ok(comes.public().id())
    }

    /// Revokes an issuer: nothing that it signed counts any more, lists included. What it gave out, `heir` gives out from now on,
    /// and signs policy if it did.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn revoke_issuer(&mut self, issuer: KeyId, heir: Option<KeyId>) -> Result<(), CeremonyError> {
        let known = |id: &KeyId| self.bundle().issuer(*id).is_some();
        if let Some(stranger) = [Some(issuer), heir].into_iter().flatten().find(|id| !known(id)) {
            return Err(CeremonyError::NoIssuer(stranger));
        }
        if heir == Some(issuer) {
            return Err(CeremonyError::OwnHeir(issuer));
        }
        self.take(ceremony::revoke_issuer(&self.chain, &[&self.root], issuer, heir)?)
    }

    /// Lets one issuer give out what another gave out so far. It must be told of all members first, or it gives things out twice.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn move_allocator(&mut self, from: KeyId, to: KeyId) -> Result<(), CeremonyError> {
        self.take(ceremony::move_slice(&self.chain, &[&self.root], from, to)?)
    }

    /// Has an issuer, the one that allocates if none is named, give out more prefixes. All issuers are certified anew for the time that they had
    /// left, since each renews what another gave. Certificates of members are good as they are.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn widen_pool(
        &mut self,
        more: &[Prefix],
        issuer: Option<KeyId>,
        random: &mut impl Random,
    ) -> Result<KeyId, CeremonyError> {
        let issuer = match (issuer, &self.bundle().slices[..]) {
            (Some(issuer), _) => issuer,
            (None, [only]) => only.issuer,
            (None, _) => return Err(CeremonyError::WhichAllocator),
        };
        let slice = self.bundle().slice(issuer).ok_or(CeremonyError::NoAllocator(issuer))?;
        let mut prefixes = slice.prefixes.clone();
        for prefix in more {
            if prefixes.iter().any(|known| prefix_covers(known, prefix)) {
                return Err(CeremonyError::InPool(issuer, *prefix));
            }
            prefixes.retain(|known| !prefix_covers(prefix, known));
            prefixes.push(*prefix);
        }
        let wider = |fields: &AuthorityFields| match &fields.blocks {
            IpBlocks::Explicit(granted) => {
                let prefixes = granted.prefixes().into_iter().chain(more.iter().copied());
                Some(IpBlocks::Explicit(Resources::from_prefixes(prefixes)))
            }
            IpBlocks::Inherit => None,
        };
        let issuers = self.certified_anew(wider, random)?;
        let next = ceremony::amend(&self.chain, &[&self.root], |next| {
            next.slices
                .iter_mut()
                .filter(|slice| slice.issuer == issuer)
                .for_each(|slice| slice.prefixes.clone_from(&prefixes));
            next.issuers = issuers;
            Ok(())
        })?;
        self.take(next)?;
        Ok(issuer)
    }

    /// The issuers' certificates, each for which there are `blocks` signed by this root, with those and for the time that it had left. One that
    /// has ended, or whose issuer is revoked, is not certified again. It stays as it is: the bundle names its issuer by it, and what that
    /// issuer revoked counts for as long.
    fn certified_anew(
        &self,
        blocks: impl Fn(&AuthorityFields) -> Option<IpBlocks>,
        random: &mut impl Random,
    ) -> Result<Vec<Vec<u8>>, CeremonyError> {
        let certify = |der: &Vec<u8>| -> Result<Vec<u8>, CeremonyError> {
            let fields = certificate::read_authority(der)?;
            let is_over = fields.validity.not_after < self.now || self.bundle().is_revoked(fields.public.id());
            let Some(blocks) = blocks(&fields).filter(|_| !is_over) else { return Ok(der.clone()) };
            let AuthorityFields { public, validity, .. } = fields;
            let spec = IssuerSpec { public, blocks, validity, serial: Serial::draw(random) };
            Ok(issuer_certificate(&self.root, &self.root_der, &spec)?)
        };
        self.bundle().issuers.iter().map(certify).collect()
    }

    /// Lets a key sign policy.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn add_operator(&mut self, public: PublicKey) -> Result<KeyId, CeremonyError> {
        let id = public.id();
        if self.bundle().operator(id).is_some() {
            return Err(CeremonyError::AlreadyOperator(id));
        }
        self.take(ceremony::amend(&self.chain, &[&self.root], |bundle| {
            bundle.operators.push(public);
            Ok(())
        })?)?;
        Ok(id)
    }

    /// Lets a key sign policy no more. What it signed last stays in force until another version comes.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn remove_operator(&mut self, operator: KeyId) -> Result<(), CeremonyError> {
        if self.bundle().operator(operator).is_none() {
            return Err(CeremonyError::NoOperator(operator));
        }
        self.take(ceremony::amend(&self.chain, &[&self.root], |bundle| {
            bundle.operators.retain(|key| key.id() != operator);
            Ok(())
        })?)
    }

    /// Lets a key that is no issuer's revoke.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn add_revocation_key(&mut self, public: PublicKey) -> Result<KeyId, CeremonyError> {
        let id = public.id();
        if self.bundle().revoker(id).is_some() {
            return Err(CeremonyError::AlreadyRevoker(id));
        }
        self.take(ceremony::amend(&self.chain, &[&self.root], |bundle| {
            bundle.revokers.push(public);
            Ok(())
        })?)?;
        Ok(id)
    }

    /// Lets a key that is no issuer's revoke no more. What only it revoked is a member again.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn remove_revocation_key(&mut self, revoker: KeyId) -> Result<(), CeremonyError> {
        if self.bundle().revokers.iter().all(|key| key.id() != revoker) {
            return Err(CeremonyError::NoRevoker(revoker));
        }
        self.take(ceremony::amend(&self.chain, &[&self.root], |bundle| {
            bundle.revokers.retain(|key| key.id() != revoker);
            Ok(())
        })?)
    }

    /// Allows the draft group between members whose configurations ask for it, or forbids it.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn allow_legacy_kyber(&mut self, is_allowed: bool) -> Result<(), CeremonyError> {
        self.take(ceremony::amend(&self.chain, &[&self.root], |bundle| {
            bundle.parameters.legacy_kyber_allowed = is_allowed;
            Ok(())
        })?)
    }
}

#[cfg(test)]
mod tests;
