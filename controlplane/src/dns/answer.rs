//! What a member's zone says to a question, and the proof of what it does not have (RFC 4035 §3.1, RFC 4592).
//!
//! | there is | answer | authority |
//! |---|---|---|
//! | the set | the set | |
//! | another set of that name, or only names below it | | SOA, NSEC of the name, or of the last one before it |
//! | a wildcard that has the set | the set under that name | NSEC: the name itself is not there |
//! | nothing | | SOA, NSEC: neither the name nor a wildcard is there |

use std::borrow::Cow;

use domain::base::Rtype;

use super::member::MemberZone;
use crate::pki::dnssec::Name;
use crate::pki::dnssec::rrset::SignedSet;
use crate::time::Now;

/// How a question ends (RFC 1035 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// There is such a name.
    NoError,
    /// There is none.
    NxDomain,
}

/// Sections of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// How it ends.
    pub rcode: Rcode,
    /// What was asked for.
    pub answer: Vec<Cow<'a, SignedSet>>,
    /// What proves that there is no more.
    pub authority: Vec<&'a SignedSet>,
    /// Where a CNAME leads that is the last set of the answer.
    pub leads_to: Option<Name>,
}

impl<'a> Answer<'a> {
    /// These sets and no more.
    pub fn of(sets: impl IntoIterator<Item = &'a SignedSet>) -> Self {
        let answer = sets.into_iter().map(Cow::Borrowed).collect();
        Self { rcode: Rcode::NoError, answer, authority: vec![], leads_to: None }
    }

    /// What follows after its last alias.
    pub fn extend(&mut self, next: Self) {
        self.answer.extend(next.answer);
        self.authority.extend(next.authority);
        (self.rcode, self.leads_to) = (next.rcode, next.leads_to);
    }

    /// Seconds for which all of it may be kept.
    pub fn ttl(&self, now: Now) -> u32 {
        let all = self.answer.iter().map(Cow::as_ref).chain(self.authority.iter().copied());
        all.map(|set| set.set.ttl.min(set.rrsig.window.left(now.wall))).min().unwrap_or(0)
    }

    /// Whether it says that there is no such name.
    pub fn is_denial(&self) -> bool {
        self.rcode == Rcode::NxDomain
    }

    fn without(rcode: Rcode, proof: impl IntoIterator<Item = Option<&'a SignedSet>>) -> Self {
        let mut authority: Vec<&SignedSet> = vec![];
        for set in proof.into_iter().flatten() {
            if !authority.contains(&set) {
                authority.push(set);
            }
        }
        Self { rcode, answer: vec![], authority, leads_to: None }
    }
}

/// The name that a CNAME leads to.
fn target(cname: &SignedSet) -> Option<Name> {
    let rdata = cname.set.rdata().first()?;
    Name::from_octets(rdata.clone()).ok()
}

impl MemberZone {
    /// Answers a question for a name of this zone.
    pub fn answer(&self, name: &Name, rtype: Rtype) -> Answer<'_> {
        let soa = self.set(&self.apex, Rtype::SOA);
        if let Some(nsec) = self.nsec_of(name) {
            return match self.found(name, rtype) {
                Some(set) => self.with(Cow::Borrowed(set), rtype, vec![]),
                None => Answer::without(Rcode::NoError, [soa, Some(nsec)]),
            };
        }
        let before = self.nsec_before(name);
        if self.has(name) {
            return Answer::without(Rcode::NoError, [soa, before]);
        }
        let wild = self.source_of_synthesis(name);
        let Some(nsec) = self.nsec_of(&wild) else {
            return Answer::without(Rcode::NxDomain, [soa, before, self.nsec_before(&wild)]);
        };
        match self.found(&wild, rtype) {
            Some(set) => self.with(Cow::Owned(set.expanded(name.clone())), rtype, before.into_iter().collect()),
            None => Answer::without(Rcode::NoError, [soa, Some(nsec), before]),
        }
    }

    /// The set that answers for an owner: of any type when that is asked (RFC 8482 §4.1), or a CNAME.
    fn found(&self, owner: &Name, rtype: Rtype) -> Option<&SignedSet> {
        match rtype {
            Rtype::ANY | Rtype::RRSIG => self.sets_of(owner).next(),
            Rtype::NSEC => self.nsec_of(owner),
            _ => self.set(owner, rtype).or_else(|| self.set(owner, Rtype::CNAME)),
        }
    }

    fn with<'a>(&'a self, set: Cow<'a, SignedSet>, rtype: Rtype, authority: Vec<&'a SignedSet>) -> Answer<'a> {
        let is_alias = set.set.rtype == Rtype::CNAME && ![Rtype::CNAME, Rtype::ANY, Rtype::RRSIG].contains(&rtype);
        let leads_to = if is_alias { target(&set) } else { None };
        Answer { rcode: Rcode::NoError, answer: vec![set], authority, leads_to }
    }
}
