//! From a document and who is a member now to the rules of one member's packet plane.
//!
//! A packet plane checks packets of which one end lies behind it: those that it lets in from a peer, and its own on their way out. So of
//! each rule it needs the part with its own addresses on one side:
//!
//! ```text
//!   from group:edge (ours, too)  to group:servers     ▸   our addresses ▸ servers     edge ▸ what of the servers is ours
//! ```
//!
//! That keeps a policy over groups of thousands as small as one over single members.

use std::collections::BTreeSet;

use serde::Serialize;
use weir_dataplane::api::policy::PolicyRule;
use weir_dataplane::api::{POLICY_RULE_PREFIXES_MAX, Prefix};

use super::{Action, Document, MemberView, Rule, Term};
use crate::pki::id::NodeId;

/// Rules for a packet plane, and which rules of the document they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// In order.
    pub rules: Vec<PolicyRule>,
    /// For each of them, the number of its rule in the document, from zero.
    pub origins: Vec<usize>,
    /// For what no rule fits.
    pub default_allow: bool,
}

/// How often a rule has decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleHits {
    /// Its name; `None` for the default.
    pub rule: Option<String>,
    /// Decisions.
    pub hits: u64,
}

impl Compiled {
    /// What a packet plane has counted, by the document's rules, the default last. Rules that do not concern the plane have none.
    pub fn hits(&self, document: &Document, hits: &[u64]) -> Vec<RuleHits> {
        let mut sums = vec![0u64; document.rules.len()];
        for (&origin, &hits) in self.origins.iter().zip(hits) {
            if let Some(sum) = sums.get_mut(origin) {
                *sum = sum.saturating_add(hits);
            }
        }
        let named =
            document.rules.iter().zip(sums).map(|(rule, hits)| RuleHits { rule: Some(rule.name.clone()), hits });
        let default = hits.get(self.rules.len()).copied().unwrap_or_default();
        named.chain([RuleHits { rule: None, hits: default }]).collect()
    }
}

/// Compiles the document for the member `own`; one that is not among `members` has no addresses.
pub fn compile(document: &Document, members: &[MemberView], own: NodeId) -> Compiled {
    Sides::new(document, members).compile(document, members, own)
}

/// The addresses of both sides of each rule: the same for all members.
pub(super) struct Sides(Vec<(Vec<Prefix>, Vec<Prefix>)>);

impl Sides {
    pub(super) fn new(document: &Document, members: &[MemberView]) -> Self {
        Self(document.rules.iter().map(|rule| (side(&rule.from, members), side(&rule.to, members))).collect())
    }

    /// See [`compile`]; with the document and the members that these are the sides of.
    pub(super) fn compile(&self, document: &Document, members: &[MemberView], own: NodeId) -> Compiled {
        let own = members.iter().filter(|member| member.node == own).flat_map(MemberView::all);
        let own = outermost(own.collect());
        let mut compiled =
            Compiled { rules: vec![], origins: vec![], default_allow: document.default == Action::Allow };
        for (origin, (rule, (from, to))) in document.rules.iter().zip(&self.0).enumerate() {
            let (own_from, own_to) = (shared(from, &own), shared(to, &own));
            // With everything of one side ours, the second half would say the same again.
            compiled.push(origin, rule, &own_from, to);
            if own_from != *from {
                compiled.push(origin, rule, from, &own_to);
            }
        }
        compiled
    }
}

impl Compiled {
    /// Adds the rule between these addresses, in as many pieces as its sides are too long for one.
    fn push(&mut self, origin: usize, rule: &Rule, from: &[Prefix], to: &[Prefix]) {
        for sources in from.chunks(POLICY_RULE_PREFIXES_MAX) {
            for destinations in to.chunks(POLICY_RULE_PREFIXES_MAX) {
                self.rules.push(PolicyRule {
                    sources: sources.to_vec(),
                    destinations: destinations.to_vec(),
                    protocol: rule.protocol,
                    ports: rule.ports.clone(),
                    allow: rule.action == Action::Allow,
                });
                self.origins.push(origin);
            }
        }
    }
}

/// The addresses of one side of a rule, without those that others cover.
fn side(terms: &[Term], members: &[MemberView]) -> Vec<Prefix> {
    let mut all = BTreeSet::new();
    for term in terms {
        match term {
            // Nothing is behind their lengths, so they are prefixes.
            Term::Any => all.extend(["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse::<Prefix>().ok())),
            Term::Prefix(prefix) => {
                all.insert(*prefix);
            }
            Term::Group(_) | Term::Node(_) => {
                all.extend(members.iter().filter(|member| term.names(member)).flat_map(MemberView::all));
            }
        }
    }
    outermost(all)
}

/// Prefixes without those inside others. In their order, a prefix comes before those inside it.
fn outermost(prefixes: BTreeSet<Prefix>) -> Vec<Prefix> {
    let mut kept: Vec<Prefix> = vec![];
    for prefix in prefixes {
        if !kept.last().is_some_and(|outer| covers(outer, &prefix)) {
            kept.push(prefix);
        }
    }
    kept
}

/// What two lists have in common; both are in order, and nothing in them is inside another.
fn shared(side: &[Prefix], own: &[Prefix]) -> Vec<Prefix> {
    let mut both = vec![];
    for prefix in own {
        let behind = side.partition_point(|other| other <= prefix);
        match side[..behind].last() {
            Some(outer) if covers(outer, prefix) => both.push(*prefix),
            _ => both.extend(side[behind..].iter().take_while(|inner| covers(prefix, inner))),
        }
    }
    both
}

/// Whether every address of `inner` is in `outer`.
fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.bit_len() <= inner.bit_len() && outer.contains(inner.address())
}
