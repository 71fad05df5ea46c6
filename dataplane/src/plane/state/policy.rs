//! The policy that is being built, and the one in force.

use std::sync::Arc;

use super::{Effect, Random, State, limit};
use crate::api::message::{Refusal, Reply};
use crate::api::policy::PolicyRule;
use crate::api::{POLICY_PREFIXES_MAX, POLICY_RULES_MAX};
use crate::engine::Command;
use crate::engine::policy::Policy;
use crate::engine::policy::flows::{FLOWS_MAX, Flows, HashKeys};
use crate::engine::policy::rules;

/// What the control thread keeps of policies.
#[derive(Debug, Default)]
pub(super) struct Policies {
    pub(super) stage: Vec<PolicyRule>,
    /// Prefixes of the staged rules.
    staged_prefixes: usize,
    /// The last word of the control plane on it.
    pub(super) version: u64,
    /// Counts commits, so that flows can be told by the policy that let them open.
    pub(super) epoch: u32,
    /// In force; none while everything passes.
    pub(super) current: Option<Arc<Policy>>,
    /// Made for the first policy. It outlives each of them, or a change would cut every connection.
    flows: Option<Arc<Flows>>,
}

impl<R: Random> State<R> {
    /// Adds rules to the stage, all or none of them.
    pub(super) fn stage_policy(&mut self, rules: Vec<PolicyRule>) -> Result<(), Refusal> {
        let policies = &mut self.policies;
        if policies.stage.len() + rules.len() > POLICY_RULES_MAX {
            return Err(limit("rules of a policy", POLICY_RULES_MAX));
        }
        let prefixes: usize = rules.iter().map(|rule| rule.sources.len() + rule.destinations.len()).sum();
        if policies.staged_prefixes + prefixes > POLICY_PREFIXES_MAX {
            return Err(limit("prefixes of a policy's rules", POLICY_PREFIXES_MAX));
        }
        for (number, rule) in (policies.stage.len()..).zip(&rules) {
            rules::check(number, rule).map_err(|error| Refusal::Invalid(error.to_string()))?;
        }
        policies.staged_prefixes += prefixes;
        policies.stage.extend(rules);
        Ok(())
    }

    /// Makes the staged rules the policy.
    pub(super) fn commit_policy(&mut self, default_allow: bool, version: u64) -> Result<(), Refusal> {
        let epoch = self.policies.epoch.wrapping_add(1);
        let checks_nothing = self.policies.stage.is_empty() && default_allow;
        let policy = match checks_nothing {
            true => None,
            false => {
                let flows = self.flows();
                let policy = Policy::new(&self.policies.stage, default_allow, epoch, flows, self.fixed.workers);
                Some(Arc::new(policy.map_err(|error| Refusal::Invalid(error.to_string()))?))
            }
        };
        self.discard_policy();
        (self.policies.version, self.policies.epoch) = (version, epoch);
        for worker in 0..self.fixed.workers {
            self.effects.push_back(Effect::Worker(worker, Command::Policy(policy.clone())));
        }
        self.policies.current = policy;
        Ok(())
    }

    /// Empties the stage.
    pub(super) fn discard_policy(&mut self) {
        (self.policies.stage, self.policies.staged_prefixes) = (vec![], 0);
    }

    pub(super) fn policy_hits(&self) -> Reply {
        let hits = self.policies.current.as_ref().map_or_else(Vec::new, |policy| policy.hits());
        Reply::PolicyHits { version: self.policies.version, hits }
    }

    /// The memory of flows.
    pub(super) fn flows(&mut self) -> Arc<Flows> {
        let random = &mut self.random;
        let flows = self.policies.flows.get_or_insert_with(|| {
            let mut key = || {
                let mut bytes = [0; 16];
                random.fill(&mut bytes);
                u128::from_le_bytes(bytes)
            };
            Arc::new(Flows::new(FLOWS_MAX, HashKeys(std::array::from_fn(|_| key()))))
        });
        Arc::clone(flows)
    }
}
