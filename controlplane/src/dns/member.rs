//! The zone of a member: signed by it, taken apart into two records, and put together again by whoever believes it.
//!
//! ```text
//!  zone    serial │ DS, PTR by the issuer │ DNSKEY │ SOA │ NS │ count, (labels, NSEC) …        at most 4 KiB
//!  name    serial │ count, (labels, count, set …) …                                             at most 4 KiB
//!  labels  below the zone, each with its length before it; a set as docs/wire-format.md has it
//! ```
//!
//! Both records have the serial of one signing, and are good together only. RRSIGs begin an hour before that, for clocks that are behind.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use domain::base::name::Label;
use domain::base::{Rtype, ToName as _};
use domain::rdata::dnssec::RtypeBitmap;
use serde::{Deserialize, Serialize};

use super::message::is_canonical;
use crate::codec::{self, DecodeError};
use crate::dht::record::VALUE_LEN_MAX;
use crate::pki::dnssec::delegation::{self, Parent};
use crate::pki::dnssec::key::{Role, ZoneKey};
use crate::pki::dnssec::network::NetworkZones;
use crate::pki::dnssec::rrset::{Kept, RrSet, SetError, SignedSet, Window, labels_below, owner};
use crate::pki::dnssec::{LongName, Name, TTL_SECS, below};
use crate::pki::id::{NetworkId, NodeId};
use crate::pki::key::PrivateKey;
use crate::time::UnixSecs;

/// Owner names of a zone, its own included. Ours: as many as a record of 4 KiB holds NSECs of, with names of twenty characters.
pub const OWNERS_MAX: usize = 24;
/// Sets of a zone beyond those that prove something. Ours: two of each owner.
pub const SETS_MAX: usize = 2 * OWNERS_MAX;
/// How far back signatures begin.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Types that a member may publish; the others are made for it, or mean nothing here.
pub const TYPES: [Rtype; 6] = [Rtype::A, Rtype::AAAA, Rtype::TXT, Rtype::SRV, Rtype::CNAME, Rtype::PTR];

/// Why a zone is not signed, or not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A record does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A set of it is not believed.
    #[error("{owner} {rtype}: {error}")]
    Set {
        /// Whose.
        owner: Name,
        /// Of which type.
        rtype: Rtype,
        /// Why.
        error: SetError,
    },
    /// A name in it is none.
    #[error(transparent)]
    Name(#[from] SetError),
    /// The key is not the one that the issuer named.
    #[error("the zone's key is not the one that its issuer vouches for")]
    Key,
    /// The two records were not signed together.
    #[error("its two records have the serials {0} and {1}")]
    Serials(u64, u64),
    /// Signed later than now.
    #[error("its serial {0} is in the future")]
    Future(u64),
    /// A type that a member does not publish, or twice the same.
    #[error("{0} does not belong into a member's zone, or stands there twice")]
    Type(Rtype),
    /// A CNAME beside something else (RFC 1034 §3.6.2).
    #[error("{0} is a CNAME, so there is nothing else under that name")]
    Cname(Name),
    /// The NSEC chain is not that of the sets.
    #[error("the NSEC chain does not fit what is there")]
    Chain,
    /// More than is taken.
    #[error("{found} {what} in one zone, at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many may be.
        max: usize,
    },
    /// It does not fit into its records.
    #[error("the zone has {0} bytes in one record, at most {VALUE_LEN_MAX}: publish fewer or shorter names")]
    TooLong(usize),
}

impl ZoneError {
    /// The name of its counter.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Decode(_) | Self::Name(_) | Self::TooMany { .. } | Self::TooLong(_) => "dns_malformed",
            Self::Set { error: SetError::OutOfZone, .. } | Self::Type(_) | Self::Cname(_) => "dns_wrong_owner",
            Self::Set { error: SetError::Key(_), .. } | Self::Key => "dns_wrong_key",
            Self::Set { error: SetError::NotYet | SetError::Expired, .. } | Self::Future(_) => "dns_expired",
            Self::Set { error: SetError::Signature, .. } => "dns_forged",
            Self::Set { error: SetError::Form | SetError::Name(_), .. } => "dns_malformed",
            Self::Serials(..) => "dns_halves",
            Self::Chain => "dns_chain",
        }
    }
}

impl From<LongName> for ZoneError {
    fn from(error: LongName) -> Self {
        Self::Name(error.into())
    }
}

/// Whose zone it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The network.
    pub network: NetworkId,
    /// Its zones.
    pub zones: &'a NetworkZones,
    /// The member.
    pub node: NodeId,
    /// Its name.
    pub name: &'a str,
}

#[derive(Serialize, Deserialize)]
struct ZoneValue {
    serial: u64,
    parent: Parent,
    keys: Kept,
    soa: Kept,
    ns: Kept,
    chain: Vec<(Vec<u8>, Kept)>,
}

#[derive(Serialize, Deserialize)]
struct NameValue {
    serial: u64,
    owners: Vec<(Vec<u8>, Vec<Kept>)>,
}

/// The sets of each name, in canonical order, but for NSEC.
type Sets = BTreeMap<Name, BTreeMap<Rtype, SignedSet>>;

/// What stands under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    sets: BTreeMap<Rtype, SignedSet>,
    nsec: SignedSet,
}

/// A zone whose every signature was made, or seen to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberZone {
    /// When it was signed: a higher one replaces it.
    pub serial: u64,
    /// Until when all of it is signed.
    pub until: UnixSecs,
    /// Its name.
    pub apex: Name,
    /// The DS at the network's side.
    pub ds: SignedSet,
    /// Who has the member's address.
    pub ptr: SignedSet,
    parent: Parent,
    owners: BTreeMap<Name, Owner>,
}

fn bitmap<'a>(types: impl Iterator<Item = &'a Rtype>) -> Vec<u8> {
    let mut builder = RtypeBitmap::<Vec<u8>>::builder();
    for rtype in types.chain(&[Rtype::RRSIG, Rtype::NSEC]) {
        // A vector grows as it is asked to.
        let _ = builder.add(*rtype);
    }
    builder.finalize().as_octets().clone()
}

/// What the NSEC of each owner says: the next one, and which types there are (RFC 4034 §4).
fn links(sets: &Sets) -> Vec<Vec<u8>> {
    let next = sets.keys().skip(1).chain(sets.keys().take(1));
    sets.values().zip(next).map(|(sets, next)| [next.as_slice(), &bitmap(sets.keys())].concat()).collect()
}

/// Whether these sets may stand in one zone.
fn check(apex: &Name, all: &Sets) -> Result<(), ZoneError> {
    let count = all.values().map(BTreeMap::len).sum();
    for (what, found, max) in [("owners", all.len(), OWNERS_MAX), ("sets", count, SETS_MAX)] {
        if found > max {
            return Err(ZoneError::TooMany { what, found, max });
        }
    }
    for (owner, sets) in all {
        for (rtype, signed) in sets {
            let wrong = |error| ZoneError::Set { owner: owner.clone(), rtype: *rtype, error };
            if !owner.ends_with(apex) {
                return Err(wrong(SetError::OutOfZone));
            }
            let is_ours = [Rtype::SOA, Rtype::NS, Rtype::DNSKEY].contains(rtype) && owner == apex;
            if !is_ours && !TYPES.contains(rtype) {
                return Err(ZoneError::Type(*rtype));
            }
            if !signed.set.has_form() {
                return Err(wrong(SetError::Form));
            }
            let is_one = signed.set.rdata().len() == 1;
            if *rtype == Rtype::CNAME && (sets.len() > 1 || !is_one) {
                return Err(ZoneError::Cname(owner.clone()));
            }
            // One key, or whoever signs could have each signature tried by many (CVE-2023-50387).
            if [Rtype::SOA, Rtype::DNSKEY].contains(rtype) && !is_one {
                return Err(ZoneError::Type(*rtype));
            }
        }
    }
    Ok(())
}

/// Adds a set; none of a type stands twice under a name.
fn add(all: &mut Sets, set: SignedSet) -> Result<(), ZoneError> {
    let rtype = set.set.rtype;
    match all.entry(set.set.owner.clone()).or_default().insert(rtype, set) {
        Some(_) => Err(ZoneError::Type(rtype)),
        None => Ok(()),
    }
}

impl MemberZone {
    /// Signs a zone that has these sets, from now on until a moment. `before` is the serial of what it replaces.
    ///
    /// # Errors
    /// [`ZoneError`]: what is to be published makes no zone, or does not fit.
    pub fn sign(
        whose: Whose<'_>,
        parent: Parent,
        published: Vec<RrSet>,
        private: &PrivateKey,
        before: u64,
        (now, until): (UnixSecs, UnixSecs),
    ) -> Result<Self, ZoneError> {
        let serial = now.0.max(before.saturating_add(1));
        let apex = delegation::member_zone(whose.zones, whose.name)?;
        let server = delegation::server_name(whose.zones)?;
        let key = ZoneKey { public: private.public(), role: Role::EntryPoint };
        let window = Window::new(now.minus(BACKDATE), until);
        let own = [
            RrSet::new(apex.clone(), Rtype::DNSKEY, TTL_SECS, [key.rdata().to_vec()]),
            delegation::soa(&apex, &server, serial as u32)?,
            delegation::ns(&apex, &server),
        ];
        let mut sets = Sets::new();
        for set in own.into_iter().chain(published) {
            add(&mut sets, set.sign(&apex, &key, private, window))?;
        }
        check(&apex, &sets)?;
        let chain = links(&sets).into_iter().zip(sets.keys()).map(|(rdata, owner)| {
            let set = RrSet::new(owner.clone(), Rtype::NSEC, TTL_SECS, [rdata]);
            set.sign(&apex, &key, private, window)
        });
        let chain = chain.collect();
        let zone = Self::of(serial, apex, parent, whose, (sets, chain), now)?;
        let [one, other] = zone.values();
        match one.len().max(other.len()) {
            len if len > VALUE_LEN_MAX => Err(ZoneError::TooLong(len)),
            _ => Ok(zone),
        }
    }

    /// Puts together what was signed or verified; `chain` has the NSEC of each owner.
    fn of(
        serial: u64,
        apex: Name,
        parent: Parent,
        whose: Whose<'_>,
        (sets, chain): (Sets, Vec<SignedSet>),
        now: UnixSecs,
    ) -> Result<Self, ZoneError> {
        let [ds, ptr] = parent.clone().sets(whose.zones, whose.name, whose.node, whose.network)?;
        let all = sets.values().flat_map(BTreeMap::values).chain(&chain).chain([&ds, &ptr]);
        let left = all.map(|set| set.rrsig.window.left(now)).min().unwrap_or(0);
        let owners = sets.into_iter().zip(chain).map(|((owner, sets), nsec)| (owner, Owner { sets, nsec }));
        let until = UnixSecs(now.0.saturating_add(left.into()));
        Ok(Self { serial, until, apex, ds, ptr, parent, owners: owners.collect() })
    }

    /// As two values of the DHT: of kind `zone`, and of kind `name`.
    pub fn values(&self) -> [Vec<u8>; 2] {
        let labels = |name: &Name| labels_below(name, &self.apex).to_vec();
        let apex = |rtype| self.owners[&self.apex].sets[&rtype].keep();
        let chain = self.owners.iter().map(|(name, owner)| (labels(name), owner.nsec.keep())).collect();
        let zone = ZoneValue {
            serial: self.serial,
            parent: self.parent.clone(),
            keys: apex(Rtype::DNSKEY),
            soa: apex(Rtype::SOA),
            ns: apex(Rtype::NS),
            chain,
        };
        let published = |owner: &Owner| -> Vec<Kept> {
            let sets = owner.sets.iter().filter(|(rtype, _)| TYPES.contains(rtype));
            sets.map(|(_, set)| set.keep()).collect()
        };
        let owners = self.owners.iter().map(|(name, owner)| (labels(name), published(owner))).collect();
        [codec::encode(&zone), codec::encode(&NameValue { serial: self.serial, owners })]
    }

    /// Puts a zone together from both of its records, and verifies all of it: the DS by an issuer's key, the key by the DS, and every set by the key.
    ///
    /// # Errors
    /// [`ZoneError`].
    pub fn verify(
        whose: Whose<'_>,
        [zone, name]: [&[u8]; 2],
        signers: &[ZoneKey],
        now: UnixSecs,
    ) -> Result<Self, ZoneError> {
        let zone: ZoneValue = codec::decode(zone, VALUE_LEN_MAX)?;
        let name: NameValue = codec::decode(name, VALUE_LEN_MAX)?;
        if zone.serial != name.serial {
            return Err(ZoneError::Serials(zone.serial, name.serial));
        }
        for (what, found) in [("owners", zone.chain.len()), ("owners", name.owners.len())] {
            if found > OWNERS_MAX {
                return Err(ZoneError::TooMany { what, found, max: OWNERS_MAX });
            }
        }
        let found = name.owners.iter().map(|(_, sets)| sets.len()).sum();
        if found > SETS_MAX {
            return Err(ZoneError::TooMany { what: "sets", found, max: SETS_MAX });
        }
        // A serial says when it was signed: one from the future would keep all that follow it out.
        if zone.serial > now.plus(BACKDATE).0 {
            return Err(ZoneError::Future(zone.serial));
        }
        let apex = delegation::member_zone(whose.zones, whose.name)?;
        let [ds, ptr] = zone.parent.clone().sets(whose.zones, whose.name, whose.node, whose.network)?;
        let believe = |set: &SignedSet, keys: &[ZoneKey]| {
            let (owner, rtype) = (set.set.owner.clone(), set.set.rtype);
            set.verify(keys, now).map_err(|error| ZoneError::Set { owner, rtype, error })
        };
        let is =
            |set: &SignedSet, rtype| if set.set.rtype == rtype { Ok(()) } else { Err(ZoneError::Type(set.set.rtype)) };
        for (set, rtype) in [(&ds, Rtype::DS), (&ptr, Rtype::PTR)] {
            is(set, rtype)?;
            believe(set, signers)?;
        }
        let keys = zone.keys.of(apex.clone(), &apex);
        is(&keys, Rtype::DNSKEY)?;
        let trusted: Vec<ZoneKey> = keys.set.rdata().iter().filter_map(|rdata| ZoneKey::of_rdata(rdata)).collect();
        let entry: Vec<ZoneKey> =
            trusted.iter().filter(|key| ds.set.rdata().contains(&key.ds(&apex))).copied().collect();
        if entry.is_empty() || trusted.len() != 1 || keys.set.rdata().len() != 1 {
            return Err(ZoneError::Key);
        }
        believe(&keys, &entry)?;

        let mut sets = Sets::new();
        add(&mut sets, keys)?;
        let mut take = |set: SignedSet| {
            believe(&set, &trusted)?;
            let rtype = set.set.rtype;
            // Who signs nonsense would have others pass it on.
            if !set.set.rdata().iter().all(|rdata| is_canonical(rtype, rdata)) {
                return Err(ZoneError::Set { owner: set.set.owner, rtype, error: SetError::Form });
            }
            add(&mut sets, set)
        };
        for (kept, rtype) in [(zone.soa, Rtype::SOA), (zone.ns, Rtype::NS)] {
            let set = kept.of(apex.clone(), &apex);
            is(&set, rtype)?;
            take(set)?;
        }
        for (labels, kept) in name.owners {
            let owner = owner(&labels, &apex)?;
            for set in kept {
                let set = set.of(owner.clone(), &apex);
                if !TYPES.contains(&set.set.rtype) {
                    return Err(ZoneError::Type(set.set.rtype));
                }
                take(set)?;
            }
        }
        check(&apex, &sets)?;
        let mut chain = vec![];
        for (labels, kept) in zone.chain {
            let set = kept.of(owner(&labels, &apex)?, &apex);
            is(&set, Rtype::NSEC)?;
            believe(&set, &trusted)?;
            chain.push(set);
        }
        let said = chain.iter().map(|nsec| (&nsec.set.owner, nsec.set.rdata()));
        let expected = links(&sets);
        if !said.eq(sets.keys().zip(expected.iter().map(std::slice::from_ref))) {
            return Err(ZoneError::Chain);
        }
        Self::of(zone.serial, apex, zone.parent, whose, (sets, chain), now)
    }

    /// A set of it.
    pub fn set(&self, owner: &Name, rtype: Rtype) -> Option<&SignedSet> {
        self.owners.get(owner)?.sets.get(&rtype)
    }

    /// All sets of a name.
    pub fn sets_of(&self, owner: &Name) -> impl Iterator<Item = &SignedSet> {
        self.owners.get(owner).into_iter().flat_map(|owner| owner.sets.values())
    }

    /// Everything that was published, the keys and the apex included.
    pub fn sets(&self) -> impl Iterator<Item = &SignedSet> {
        self.owners.values().flat_map(|owner| owner.sets.values())
    }

    /// Whether anything stands under a name, or under one below it: those follow it in canonical order.
    pub fn has(&self, name: &Name) -> bool {
        let mut from = self.owners.range::<Name, _>((Bound::Included(name), Bound::Unbounded));
        from.next().is_some_and(|(owner, _)| owner.ends_with(name))
    }

    /// The NSEC of a name.
    pub fn nsec_of(&self, owner: &Name) -> Option<&SignedSet> {
        self.owners.get(owner).map(|owner| &owner.nsec)
    }

    /// The NSEC that proves that a name of the zone is not there: that of the last owner before it. The apex is before all of them.
    pub fn nsec_before(&self, name: &Name) -> Option<&SignedSet> {
        let until = self.owners.range::<Name, _>((Bound::Unbounded, Bound::Included(name)));
        until.map(|(_, owner)| &owner.nsec).next_back()
    }

    /// The wildcard that a name would fall under (RFC 4592 §3.3.1).
    pub fn source_of_synthesis(&self, name: &Name) -> Name {
        let encloser = name.iter_suffixes().map(|suffix| suffix.to_vec()).find(|suffix| self.has(suffix));
        let encloser = encloser.unwrap_or_else(|| self.apex.clone());
        let labels = [Label::wildcard().as_slice()];
        // A star makes no name longer than the one that it stands for.
        below(labels, &encloser).unwrap_or(encloser)
    }
}

#[cfg(test)]
mod tests;
