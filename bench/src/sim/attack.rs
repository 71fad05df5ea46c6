//! What is tried with those who mean harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_controlplane::dht::place::Key;

use super::experiment::{Lab, SPREAD, Way};
use super::hostile::{Adversary, Gang};
use super::latency::unit;
use super::world::Ended;

/// Ids next to one key.
const ECLIPSE: usize = 32;
/// Keys that have such, at most, and nodes for each: how well one is hidden depends on who its neighbours are.
const VICTIMS_MAX: usize = 5;
const NODES_EACH: usize = 1000;
/// How far their keys are from each other, as a share of the id space: in one region there are the ids of one.
const APART: f64 = 0.1;
/// Between two enrolments of one owner.
const REENROL: Duration = Duration::from_millis(200);

impl Lab<'_> {
    /// A share of all nodes turns hostile at once, after having behaved.
    pub(super) fn attack(&mut self, adversary: Adversary) {
        let what = format!("{} adversaries", adversary.name());
        let ended = match adversary {
            Adversary::Eclipse => self.eclipse(&what),
            Adversary::Reenrol => self.reenrol(&what),
            Adversary::Stale => self.stale(&what),
            Adversary::Silent | Adversary::Lying | Adversary::Sybil | Adversary::Flood | Adversary::Slow => {
                self.turn(adversary);
                self.look(&what, Way::AsFound, Self::any_two)
            }
        };
        self.note_success(&what, &ended, Some(0.95));
        self.note_time(&what, &ended, None);
        let requests =
            ended.iter().map(|ended| f64::from(ended.outcome.requests)).sum::<f64>() / ended.len().max(1) as f64;
        self.samples.add(format!("{what}: requests, mean"), "", None, requests);
        if adversary == Adversary::Flood {
            let dhts = self.world.machines.iter().filter_map(|machine| machine.dht.as_ref());
            let (most, limited) = dhts
                .fold((0, 0), |(most, limited), dht| (most.max(dht.store().bytes()), limited + dht.counters().limited));
            self.samples.add(format!("{what}: bytes of the fullest store"), "KiB", None, most as f64 / 1024.0);
            self.samples.add(format!("{what}: requests refused as too many"), "", None, limited as f64);
        }
    }

    fn turn(&mut self, adversary: Adversary) {
        let all = 0..self.world.machines.len() as u32;
        let there: Vec<u32> = all.filter(|number| self.world.machines[*number as usize].dht.is_some()).collect();
        let mut gang = Gang::default();
        for number in there {
            if unit(&mut self.world.random) < self.plan.adversary_share {
                self.world.turn(number, adversary);
                let machine = &self.world.machines[number as usize];
                if machine.is_server {
                    gang.members.push(machine.member.contact);
                }
            }
        }
        self.world.gang = Arc::new(gang);
    }

    /// Some nodes say something new, and others give what they said before.
    fn stale(&mut self, what: &str) -> Vec<Ended> {
        let count = (self.plan.lookups / 4).clamp(1, self.plan.nodes / 4);
        let targets: Vec<u32> = (0..count).map(|_| self.any_two().0).collect();
        let mut old = BTreeMap::new();
        for target in &targets {
            let record = self.world.update(*target);
            old.insert(self.world.machines[*target as usize].member.contact.node.into(), record);
        }
        self.pass(what, SPREAD);
        self.turn(Adversary::Stale);
        let members = self.world.gang.members.clone();
        self.world.gang = Arc::new(Gang { members, old });
        let honest: Vec<u32> =
            targets.into_iter().filter(|target| self.world.machines[*target as usize].adversary.is_none()).collect();
        self.look(what, Way::AsFound, |lab| {
            let from = lab.any_two().0;
            let at = lab.pick(honest.len()) as usize;
            (from, honest[at])
        })
    }

    /// 32 ids next to one key, and next to a few others, which behave until everybody knows them.
    fn eclipse(&mut self, what: &str) -> Vec<Ended> {
        let count = (self.plan.nodes / NODES_EACH).clamp(1, VICTIMS_MAX);
        let key_of = |lab: &Self, number: u32| Key::from(lab.world.machines[number as usize].member.contact.node);
        let mut victims: Vec<(u32, Key)> = vec![];
        while victims.len() < count {
            let one = self.any_two().0;
            let key = key_of(self, one);
            if victims.iter().all(|(_, other)| key.distance(*other).share() > APART) {
                victims.push((one, key));
            }
        }
        let mut members = vec![];
        for (_, key) in &victims {
            for _ in 0..ECLIPSE {
                let bootstrap = self.somebody(|world, number| world.machines[number as usize].is_server);
                members.push(self.world.add_beside(*key, bootstrap));
            }
        }
        self.pass(what, SPREAD);
        // The victim says something new once they are there, so that they are offered it and may drop it.
        victims.iter().for_each(|(victim, _)| drop(self.world.update(*victim)));
        self.pass(what, SPREAD);
        for number in &members {
            self.world.turn(*number, Adversary::Eclipse);
        }
        let members = members.iter().map(|number| self.world.machines[*number as usize].member.contact).collect();
        self.world.gang = Arc::new(Gang { members, ..Gang::default() });
        let mut next = victims.iter().cycle();
        self.look(what, Way::AsFound, |lab| {
            let from = lab.any_two().0;
            (from, next.next().map_or(from, |(victim, _)| *victim))
        })
    }

    /// One owner with one line enrols again and again, as many ids as are a share of all servers; each behaves until it is known.
    fn reenrol(&mut self, what: &str) -> Vec<Ended> {
        let servers = self.world.machines.iter().filter(|machine| machine.is_server && machine.dht.is_some()).count();
        let count = (servers as f64 * self.plan.adversary_share) as u16;
        let owner = self.world.machines.len() as u32;
        let mut members = vec![];
        for port in 0..count.max(1) {
            self.world.run_until(self.world.now + REENROL);
            let bootstrap = self.somebody(|world, other| world.machines[other as usize].is_server);
            members.push(self.world.add_at(owner, port, bootstrap));
        }
        self.pass(what, SPREAD);
        members.iter().for_each(|number| self.world.turn(*number, Adversary::Reenrol));
        let contacts = members.iter().map(|number| self.world.machines[*number as usize].member.contact).collect();
        self.world.gang = Arc::new(Gang { members: contacts, ..Gang::default() });
        let honest = self.world.machines.iter().filter(|machine| machine.adversary.is_none());
        let (all, taken) = honest.filter_map(|machine| machine.dht.as_ref()).fold((0, 0), |(all, taken), dht| {
            let its = members
                .iter()
                .filter(|number| dht.table().has(self.world.machines[**number as usize].member.contact.node));
            (all + dht.table().len(), taken + its.count())
        });
        let share = taken as f64 / all.max(1) as f64;
        self.samples.add(format!("{what}: share of all places in tables that one owner has"), "share", None, share);
        self.look(what, Way::AsFound, Self::any_two)
    }
}
