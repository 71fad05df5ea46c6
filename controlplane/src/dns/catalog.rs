//! All that this gateway can answer for: the network's zones, and those of members that it has verified.
//!
//! ```text
//!  question ─▶ Catalog ─▶ Reply      with what proves it
//!                      └▶ Missing    ask for that member's zone, and then again
//! ```
//!
//! Nothing gets in here that was not verified, and what has outlived its signatures is not given out.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::base::Rtype;

use super::answer::Answer;
use super::member::MemberZone;
use crate::pki::dnssec::rrset::SignedSet;
use crate::pki::dnssec::{Name, TTL_SECS, address_of};
use crate::pki::name::check_label;
use crate::time::Now;

/// Zones of members that are held. Ours: the largest network for which the DHT is simulated; the one that was wanted longest ago goes.
pub const MEMBERS_MAX: usize = 10_000;
/// CNAMEs that are followed for one question. Ours: as others.
const ALIASES_MAX: usize = 8;
/// For how long a zone is taken as it is. After that it is asked for anew when somebody wants it.
const FRESH: Duration = Duration::from_secs(TTL_SECS as u64);
/// Of that, after which a zone that is in use is asked for before it is stale.
const PREFETCH: Duration = Duration::from_secs(TTL_SECS as u64 * 4 / 5);

/// What has to be known before a question can be answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    /// The zone of the member with this name.
    Member(String),
    /// Who has this address.
    Address(Ipv6Addr),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The name is in none of our zones.
    NotOurs,
    /// There is no such name, and nothing here proves it.
    NoProof,
    /// We are no member, or know the network's zones no more.
    NoZone,
    /// What was asked for did not come.
    Unreachable,
}

/// What comes of a question.
#[derive(Debug)]
pub enum Found<'a> {
    /// This; and what should be asked for by the way.
    Reply(Answer<'a>, Option<Wanted>),
    /// Nothing before that is known.
    Missing(Wanted),
    /// There is no such name. Whoever asks for proofs gets none.
    Absent,
    /// Nothing.
    None(NoAnswer),
}

/// The zones that issuers sign.
#[derive(Clone, Debug)]
pub struct Network {
    /// The name of that of names.
    pub forward: Name,
    /// And of addresses.
    pub reverse: Name,
    /// Keys and apex of both.
    pub sets: Vec<SignedSet>,
}

#[derive(Debug)]
struct Held {
    /// None when there is no such member.
    zone: Option<Arc<MemberZone>>,
    since: Instant,
    used: Instant,
    /// It is being asked for.
    is_asked: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Catalog {
    network: Option<Arc<Network>>,
    members: HashMap<String, Held>,
    addresses: BTreeMap<Ipv6Addr, String>,
    /// Addresses that nobody has, as far as we know, and since when.
    nobodys: HashMap<Ipv6Addr, Instant>,
}

/// A change of it.
#[derive(Clone, Debug)]
pub enum Update {
    /// The network's zones, or that there are none.
    Network(Option<Network>),
    /// The zone of a member, verified, with its address.
    Member(String, Ipv6Addr, Arc<MemberZone>),
    /// There is no such thing.
    Absent(Wanted),
    /// It could not be asked for.
    Failed(Wanted),
    /// A member was cut off.
    Revoked(String),
}

impl Catalog {
    /// Takes a change; tells of what questions may wait for it.
    pub fn take(&mut self, update: Update, now: Instant) -> Vec<Wanted> {
        match update {
            Update::Network(network) => {
                if network.is_none() {
                    *self = Self::default();
                }
                self.network = network.map(Arc::new);
                vec![]
            }
            Update::Member(name, address, zone) => {
                // One that was put together later than what is here, of older halves, says nothing.
                let known = self.members.get(&name).and_then(|held| held.zone.as_ref());
                let zone = known.filter(|known| known.serial > zone.serial).cloned().unwrap_or(zone);
                self.nobodys.remove(&address);
                self.addresses.insert(address, name.clone());
                self.hold(name.clone(), Some(zone), now);
                vec![Wanted::Member(name), Wanted::Address(address)]
            }
            Update::Absent(Wanted::Member(name)) => {
                // A zone that is known says more than that its records were not found: it is good until its signatures end, or its member is revoked.
                match self.members.get_mut(&name).filter(|held| held.zone.is_some()) {
                    Some(held) => held.is_asked = false,
                    None => self.hold(name.clone(), None, now),
                }
                vec![Wanted::Member(name)]
            }
            Update::Absent(Wanted::Address(address)) => {
                self.nobodys.retain(|_, since| now.saturating_duration_since(*since) < FRESH);
                if self.nobodys.len() < MEMBERS_MAX {
                    self.nobodys.insert(address, now);
                }
                vec![Wanted::Address(address)]
            }
            Update::Failed(wanted) => {
                if let Wanted::Member(name) = &wanted
                    && let Some(held) = self.members.get_mut(name)
                {
                    held.is_asked = false;
                }
                vec![wanted]
            }
            Update::Revoked(name) => {
                self.members.remove(&name);
                self.addresses.retain(|_, of| *of != name);
                vec![]
            }
        }
    }

    fn hold(&mut self, name: String, zone: Option<Arc<MemberZone>>, now: Instant) {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&name) {
            let oldest = self.members.iter().min_by_key(|(_, held)| held.used).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.members.remove(&oldest);
                self.addresses.retain(|_, of| *of != oldest);
            }
        }
        self.members.insert(name, Held { zone, since: now, used: now, is_asked: false });
    }

    /// Zones of members that are here.
    pub fn len(&self) -> usize {
        self.members.values().filter(|held| held.zone.is_some()).count()
    }

    /// The serial of a member's zone.
    pub fn serial(&self, member: &str) -> Option<u64> {
        Some(self.members.get(member)?.zone.as_ref()?.serial)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers a question; of what is stale only if `is_late`: asking for it has failed, or takes too long.
    pub fn find(&mut self, name: &Name, rtype: Rtype, is_late: bool, now: Now) -> Found<'_> {
        let Some(network) = self.network.clone() else { return Found::None(NoAnswer::NoZone) };
        if name.ends_with(&network.reverse) {
            return self.find_address(name, rtype, &network.reverse, is_late, now);
        }
        if !name.ends_with(&network.forward) {
            return Found::None(NoAnswer::NotOurs);
        }
        if *name == network.forward || network.sets.iter().any(|set| set.set.owner == *name) {
            return self.of_network(name, rtype, now);
        }
        self.follow(name, rtype, &network.forward, is_late, now)
    }

    /// A member's name, and what its aliases lead to, as far as that is a member's.
    fn follow(&mut self, name: &Name, rtype: Rtype, forward: &Name, is_late: bool, now: Now) -> Found<'_> {
        let (mut names, mut prefetched) = (vec![name.clone()], None);
        // First whatever is missing, so that what is given is borrowed once.
        while let Some(at) = names.last().filter(|_| names.len() <= ALIASES_MAX) {
            let Some(member) = member_of(at, forward) else { break };
            if let Some(wanted) = self.is_missing(member, is_late, now) {
                return Found::Missing(wanted);
            }
            prefetched = prefetched.or_else(|| self.prefetch(member, is_late, now));
            let next = self.of_member(member, at, rtype, forward, now).ok().and_then(|answer| answer.leads_to);
            match next.filter(|next| !names.contains(next)) {
                Some(next) => names.push(next),
                None => break,
            }
        }
        let mut whole: Option<Answer<'_>> = None;
        for at in &names {
            let Some(member) = member_of(at, forward) else { break };
            let part = match self.of_member(member, at, rtype, forward, now) {
                Ok(part) => part,
                Err(none) if whole.is_none() => return none,
                Err(_) => break,
            };
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => whole.extend(part),
            }
        }
        whole.map_or(Found::Absent, |answer| Found::Reply(answer, prefetched))
    }

    /// What a member's zone says of one name; of its DS the parent's side of the cut (RFC 4035 §3.1.4.1).
    fn of_member(
        &self,
        member: &str,
        name: &Name,
        rtype: Rtype,
        forward: &Name,
        now: Now,
    ) -> Result<Answer<'_>, Found<'static>> {
        let zone = self.zone_of(member, now)?;
        let is_apex = name.label_count() == forward.label_count() + 1;
        Ok(if rtype == Rtype::DS && is_apex { Answer::of([&zone.ds]) } else { zone.answer(name, rtype) })
    }

    fn of_network(&self, name: &Name, rtype: Rtype, now: Now) -> Found<'_> {
        let Some(network) = &self.network else { return Found::None(NoAnswer::NoZone) };
        let of_name = network.sets.iter().filter(|set| set.set.owner == *name);
        let mut fit = of_name.filter(|set| set.set.rtype == rtype || [Rtype::ANY, Rtype::RRSIG].contains(&rtype));
        match fit.next() {
            Some(set) if set.is_current(now.wall).is_err() => Found::None(NoAnswer::NoZone),
            Some(set) => Found::Reply(Answer::of([set]), None),
            None => Found::None(NoAnswer::NoProof),
        }
    }

    fn find_address(&mut self, name: &Name, rtype: Rtype, reverse: &Name, is_late: bool, now: Now) -> Found<'_> {
        if name == reverse {
            return self.of_network(name, rtype, now);
        }
        let Some(address) = address_of(name) else { return Found::None(NoAnswer::NoProof) };
        let Some(member) = self.addresses.get(&address).cloned() else {
            let known = self.nobodys.get(&address);
            return match known {
                Some(since) if now.mono.saturating_duration_since(*since) < FRESH => Found::Absent,
                _ if is_late => Found::None(NoAnswer::Unreachable),
                _ => Found::Missing(Wanted::Address(address)),
            };
        };
        if let Some(wanted) = self.is_missing(&member, is_late, now) {
            return Found::Missing(wanted);
        }
        let wanted = self.prefetch(&member, is_late, now);
        match self.zone_of(&member, now) {
            Ok(zone) if [Rtype::PTR, Rtype::ANY, Rtype::RRSIG].contains(&rtype) => {
                Found::Reply(Answer::of([&zone.ptr]), wanted)
            }
            Ok(_) => Found::None(NoAnswer::NoProof),
            Err(none) => none,
        }
    }

    /// Whether a zone has to be asked for before anything is said of it.
    fn is_missing(&self, member: &str, is_late: bool, now: Now) -> Option<Wanted> {
        let is_fresh = |held: &Held| now.mono.saturating_duration_since(held.since) < FRESH;
        let is_here = self.members.get(member).is_some_and(|held| is_fresh(held) || is_late);
        (!is_here && !is_late).then(|| Wanted::Member(member.to_owned()))
    }

    /// Notes that a zone is in use, and says once whether it is time to ask for it again; not when that has just failed.
    fn prefetch(&mut self, member: &str, is_late: bool, now: Now) -> Option<Wanted> {
        let held = self.members.get_mut(member)?;
        held.used = now.mono;
        if is_late || held.is_asked || now.mono.saturating_duration_since(held.since) < PREFETCH {
            return None;
        }
        held.is_asked = true;
        Some(Wanted::Member(member.to_owned()))
    }

    fn zone_of(&self, member: &str, now: Now) -> Result<&MemberZone, Found<'static>> {
        let held = self.members.get(member).ok_or(Found::None(NoAnswer::Unreachable))?;
        let is_fresh = now.mono.saturating_duration_since(held.since) < FRESH;
        let none = if is_fresh { Found::Absent } else { Found::None(NoAnswer::Unreachable) };
        let zone = held.zone.as_deref().ok_or(none)?;
        // Serve-stale is about TTLs: what is past its signatures would be refused by whoever verifies.
        if zone.until < now.wall { Err(Found::None(NoAnswer::Unreachable)) } else { Ok(zone) }
    }
}

/// The label next to a zone, for a name below it that may be a member's.
fn member_of<'a>(name: &'a Name, zone: &Name) -> Option<&'a str> {
    if !name.ends_with(zone) {
        return None;
    }
    let below = name.label_count().checked_sub(zone.label_count())?.checked_sub(1)?;
    let label = name.iter().nth(below)?.as_slice();
    std::str::from_utf8(label).ok().filter(|label| check_label(label).is_ok())
}
