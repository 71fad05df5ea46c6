//! What is tried with a network of nodes, one thing after the other, and what is seen.

use std::sync::Arc;
use std::time::Duration;

use weir_controlplane::dht::place::Key;
use weir_controlplane::pki::certificate::CertificateError;
use weir_controlplane::random::{Random, SeededRandom};

use super::hostile::{Adversary, Gang};
use super::latency::unit;
use super::members::Network;
use super::world::{Ended, World};
use super::{Plan, Samples, at_least, at_most};

/// Look-ups that are begun in a second.
const LOOKUPS_PER_SEC: u64 = 50;
/// After the last look-up was begun: as long as one may take.
const LAST: Duration = Duration::from_secs(31);
/// From the last arrival until everybody has found its place.
const SETTLE: Duration = Duration::from_secs(600);
/// Arrivals in a second while the network is built.
const ARRIVALS_PER_SEC: u64 = 50;
/// Newcomers whose start is measured.
const NEWCOMERS: usize = 100;
/// Time of churn before look-ups are measured, and while they are.
const CHURN: [Duration; 2] = [Duration::from_secs(180), Duration::from_secs(60)];
/// A node has to be there for so long before its record is looked for.
const GROWN: Duration = Duration::from_secs(20);
/// Ids next to one key.
const ECLIPSE: usize = 32;
/// Time for newcomers, and new records, to become known.
const SPREAD: Duration = Duration::from_secs(60);

/// Everything, and where figures go.
pub(super) struct Lab<'a> {
    plan: &'a Plan,
    world: World,
    samples: Samples,
    progress: &'a mut dyn FnMut(&str, f64),
}

/// Which look-ups are made.
#[derive(Clone, Copy)]
enum Way {
    /// As nodes are.
    AsFound,
    /// Who looks has no session with anybody.
    Cold,
    /// All have sessions with everybody.
    Warm,
}

impl<'a> Lab<'a> {
    pub(super) fn new(plan: &'a Plan, progress: &'a mut dyn FnMut(&str, f64)) -> Result<Self, CertificateError> {
        let mut random = SeededRandom::new(plan.seed);
        let network = Arc::new(Network::new(&mut random)?);
        let world = World::new(network, plan.loss, random);
        Ok(Self { plan, world, samples: Samples::default(), progress })
    }

    /// All of it.
    pub(super) fn run(mut self) -> Samples {
        self.build();
        self.idle();
        self.newcomers();
        self.calm();
        self.stale_entries();
        // What follows breaks the network, so each begins from the same one.
        let whole = self.world.clone();
        if self.plan.churn > 0.0 {
            self.churn();
            self.world = whole.clone();
        }
        for adversary in &self.plan.adversaries {
            self.attack(*adversary);
            self.world = whole.clone();
        }
        self.samples.add("events of the simulation".into(), "", None, self.world.costs.events as f64);
        self.samples
    }

    fn tell(&mut self, what: &str, share: f64) {
        (self.progress)(what, share);
    }

    fn is_server(&mut self) -> bool {
        unit(&mut self.world.random) * 100.0 < f64::from(self.plan.servers)
    }

    fn pick(&mut self, count: usize) -> u32 {
        (self.world.random.u64() % count as u64) as u32
    }

    /// A node that is there and honest; `is_wanted` may ask for more.
    fn somebody(&mut self, is_wanted: impl Fn(&World, u32) -> bool) -> u32 {
        loop {
            let number = self.pick(self.world.machines.len());
            let machine = &self.world.machines[number as usize];
            if machine.dht.is_some() && machine.adversary.is_none() && is_wanted(&self.world, number) {
                return number;
            }
        }
    }

    /// Nodes come, each with one other to begin from.
    fn build(&mut self) {
        // The first of all answers, or nobody would.
        self.world.add(true, None);
        for number in 1..self.plan.nodes as u64 {
            let due = Duration::from_micros(number * 1_000_000 / ARRIVALS_PER_SEC);
            self.world.run_until(due);
            let is_server = self.is_server();
            let bootstrap = self.somebody(|world, other| world.machines[other as usize].is_server);
            self.world.add(is_server, Some(bootstrap));
            if number % 100 == 0 {
                self.tell("arrivals", number as f64 / self.plan.nodes as f64);
            }
        }
        self.pass("settling", SETTLE);
    }

    /// Lets time pass, and says so.
    fn pass(&mut self, what: &str, time: Duration) {
        let (begin, steps) = (self.world.now, 50);
        for step in 0..steps {
            self.tell(what, f64::from(step) / f64::from(steps));
            self.world.run_until(begin + time * (step + 1) / steps);
        }
    }

    /// Nobody wants anything.
    fn idle(&mut self) {
        let before: u64 = self.world.machines.iter().map(|machine| machine.bytes).sum();
        let of_servers = |world: &World| {
            let servers = world.machines.iter().filter(|machine| machine.is_server);
            servers.fold((0, 0), |(count, bytes), machine| (count + 1, bytes + machine.bytes))
        };
        let (servers, servers_before) = of_servers(&self.world);
        let handshakes = self.world.costs.handshakes;
        self.pass("idle", self.plan.idle);
        let (secs, nodes) = (self.plan.idle.as_secs_f64(), self.world.machines.len() as f64);
        let bytes: u64 = self.world.machines.iter().map(|machine| machine.bytes).sum::<u64>() - before;
        let rate = bytes as f64 / secs / nodes;
        self.samples.add("idle: bytes a second of a node, sent and received".into(), "B/s", at_most(1000.0), rate);
        let rate = (of_servers(&self.world).1 - servers_before) as f64 / secs / f64::from(servers);
        self.samples.add("idle: the same of a server".into(), "B/s", None, rate);
        let rate = (self.world.costs.handshakes - handshakes) as f64 / secs / nodes * 3600.0;
        self.samples.add("idle: handshakes of a node".into(), "1/h", None, rate);
        self.memory();
    }

    fn memory(&mut self) {
        let all = 0..self.world.machines.len() as u32;
        let seen: Vec<_> = all.filter_map(|number| self.world.memory(number)).collect();
        let (count, kib) = (seen.len().max(1) as f64, 1024.0);
        let mean = seen.iter().map(|(own, _)| *own as f64).sum::<f64>() / count / kib;
        let most = seen.iter().map(|(own, _)| *own as f64 / kib).fold(0.0, f64::max);
        let kept = seen.iter().map(|(_, kept)| *kept as f64).sum::<f64>() / count / kib;
        self.samples.add("memory of a node: table, sessions, books".into(), "KiB", at_most(64.0), mean);
        self.samples.add("memory of a node: the most".into(), "KiB", None, most);
        self.samples.add("memory of a node: records of others".into(), "KiB", None, kept);
        let tables = self.world.machines.iter().filter_map(|machine| machine.dht.as_ref());
        let contacts = tables.map(|dht| dht.table().len() as f64).sum::<f64>() / count;
        self.samples.add("contacts in a table".into(), "", None, contacts);
        let estimates = self.world.machines.iter().filter_map(|machine| Some(machine.dht.as_ref()?.servers()));
        let mut estimates: Vec<f64> = estimates.collect();
        estimates.sort_by(f64::total_cmp);
        let servers = self.world.machines.iter().filter(|machine| machine.is_server && machine.dht.is_some()).count();
        if let Some(median) = estimates.get(estimates.len() / 2) {
            self.samples.add(
                "servers as estimated, over those there are".into(),
                "ratio",
                None,
                median / servers as f64,
            );
        }
    }

    /// The middle one of many round trips.
    fn median_round_trip(&mut self) -> f64 {
        let count = self.world.machines.len();
        let trip = |lab: &mut Self| {
            let (one, other) = (lab.pick(count), lab.pick(count));
            lab.world.round_trip(one, other).as_secs_f64()
        };
        let mut trips: Vec<f64> = (0..10_001).map(|_| trip(self)).collect();
        trips.sort_by(f64::total_cmp);
        trips[trips.len() / 2]
    }

    /// Nodes that come when the network has long been there.
    fn newcomers(&mut self) {
        let count = NEWCOMERS.min(self.plan.nodes / 4);
        let median = self.median_round_trip();
        let mut new = vec![];
        self.world.ended.clear();
        for _ in 0..count {
            self.world.run_until(self.world.now + Duration::from_millis(100));
            let is_server = self.is_server();
            let bootstrap = self.somebody(|world, other| world.machines[other as usize].is_server);
            let (number, target) = (self.world.add(is_server, Some(bootstrap)), self.any_two().0);
            self.world.machines[number as usize].first = Some(target);
            new.push(number);
        }
        self.pass("newcomers", SPREAD);
        let first = std::mem::take(&mut self.world.ended);
        let right = first.iter().filter(|ended| ended.is_right).count() as f64 / count as f64;
        self.samples.add(
            "cold start: first look-up, at once: found the newest record".into(),
            "share",
            at_least(0.999),
            right,
        );
        let ready = |number: &u32| {
            let machine = &self.world.machines[*number as usize];
            Some((machine.joined? - machine.met?).as_secs_f64() / median)
        };
        let mut rounds: Vec<f64> = new.iter().filter_map(ready).collect();
        rounds.sort_by(f64::total_cmp);
        let joined = rounds.len() as f64 / count as f64;
        self.samples.add("cold start: newcomers that joined".into(), "share", at_least(1.0), joined);
        if let Some(median) = rounds.get(rounds.len() / 2) {
            let what = "cold start: from the first handshake to usable, median round trips";
            self.samples.add(what.into(), "", at_most(5.0), *median);
        }
        let own = |number: &u32| {
            let machine = &self.world.machines[*number as usize];
            Some((machine.published? - machine.met?).as_secs_f64() / median)
        };
        let mut published: Vec<f64> = new.iter().filter_map(own).collect();
        published.sort_by(f64::total_cmp);
        if let Some(median) = published.get(published.len() / 2) {
            let what = "cold start: from the first handshake to the first copy of its record, median round trips";
            self.samples.add(what.into(), "", None, *median);
        }
    }

    /// Look-ups between nodes that a choice gives.
    fn look(&mut self, what: &str, way: Way, mut choose: impl FnMut(&mut Self) -> (u32, u32)) -> Vec<Ended> {
        self.world.ended.clear();
        let begin = self.world.now;
        for number in 0..self.plan.lookups {
            self.world.run_until(begin + Duration::from_micros(number as u64 * 1_000_000 / LOOKUPS_PER_SEC));
            let (from, target) = choose(self);
            if matches!(way, Way::Cold) {
                self.world.cool(from);
            }
            self.world.look_up(from, target);
            if number % 100 == 0 {
                self.tell(what, number as f64 / self.plan.lookups as f64);
            }
        }
        let until = self.world.now + LAST;
        while self.world.looking() > 0 && self.world.now < until {
            self.world.run_until(self.world.now + Duration::from_secs(1));
        }
        std::mem::take(&mut self.world.ended)
    }

    fn any_two(&mut self) -> (u32, u32) {
        let is_grown = |world: &World, number: u32| {
            let machine = &world.machines[number as usize];
            machine.joined.is_some() && world.now.saturating_sub(machine.born) >= GROWN
        };
        (self.somebody(is_grown), self.somebody(is_grown))
    }

    fn note_success(&mut self, what: &str, ended: &[Ended], target: Option<f64>) {
        let right = ended.iter().filter(|ended| ended.is_right).count() as f64;
        let share = right / self.plan.lookups as f64;
        self.samples.add(format!("{what}: found the newest record"), "share", target.and_then(at_least), share);
    }

    fn note_time(&mut self, what: &str, ended: &[Ended], target: Option<f64>) {
        let median = self.median_round_trip();
        let mut took: Vec<f64> = ended.iter().map(|ended| ended.outcome.took.as_secs_f64() / median).collect();
        took.sort_by(f64::total_cmp);
        if let Some(middle) = took.get(took.len() / 2) {
            self.samples.add(format!("{what}: time over the median round trip"), "", target.and_then(at_most), *middle);
        }
        if let Some(late) = took.get(took.len() * 99 / 100) {
            self.samples.add(format!("{what}: the same, p99"), "", None, *late);
        }
    }

    fn note_way(&mut self, what: &str, ended: &[Ended], targets: Option<[f64; 2]>) {
        let found: Vec<_> = ended.iter().filter(|ended| ended.outcome.record.is_some()).collect();
        let count = found.len().max(1) as f64;
        let hops = found.iter().map(|ended| f64::from(ended.outcome.hops)).sum::<f64>() / count;
        self.samples.add(format!("{what}: hops, mean"), "", targets.and_then(|[hops, _]| at_most(hops)), hops);
        let mut rounds: Vec<u8> = found.iter().map(|ended| ended.outcome.rounds).collect();
        rounds.sort_unstable();
        let late = rounds.get(rounds.len() * 99 / 100).copied().unwrap_or(0);
        let target = targets.and_then(|[_, rounds]| at_most(rounds));
        self.samples.add(format!("{what}: rounds, p99"), "", target, late.into());
        let requests =
            ended.iter().map(|ended| f64::from(ended.outcome.requests)).sum::<f64>() / ended.len().max(1) as f64;
        self.samples.add(format!("{what}: requests, mean"), "", None, requests);
    }

    fn calm(&mut self) {
        let ended = self.look("calm", Way::AsFound, Self::any_two);
        self.note_success("calm", &ended, Some(0.999));
        self.note_time("calm, sessions as they are", &ended, None);
        self.note_way("calm", &ended, None);
        let ended = self.look("calm, cold", Way::Cold, Self::any_two);
        self.note_time("calm, no session yet", &ended, Some(6.0));
        self.world.is_warm = true;
        let ended = self.look("calm, warm", Way::Warm, Self::any_two);
        self.world.is_warm = false;
        self.note_time("calm, warm contacts", &ended, Some(3.0));
    }

    /// One in twenty is gone, and nobody knows.
    fn stale_entries(&mut self) {
        let whole = self.world.clone();
        let servers: Vec<u32> = (0..self.world.machines.len() as u32).collect();
        for number in servers {
            if unit(&mut self.world.random) < 0.05 {
                self.world.kill(number);
            }
        }
        let ended = self.look("one in twenty gone", Way::AsFound, Self::any_two);
        self.note_success("one in twenty gone", &ended, None);
        self.note_way("one in twenty gone", &ended, Some([2.8, 4.0]));
        self.world = whole;
    }

    /// Nodes go and others come.
    fn churn(&mut self) {
        let per_sec = self.plan.churn * self.plan.nodes as f64 / 60.0;
        let begin = self.world.now;
        let mut gone = 0.0;
        while self.world.now < begin + CHURN[0] {
            self.replace(&mut gone, per_sec, begin);
            self.tell("churn", (self.world.now - begin).as_secs_f64() / CHURN[0].as_secs_f64());
        }
        let (lookups, step) = (self.plan.lookups, CHURN[1] / self.plan.lookups.max(1) as u32);
        self.world.ended.clear();
        let from = self.world.now;
        for number in 0..lookups {
            while self.world.now < from + step * number as u32 {
                self.replace(&mut gone, per_sec, begin);
            }
            let (one, other) = self.any_two();
            self.world.look_up(one, other);
        }
        let until = self.world.now + LAST;
        while self.world.looking() > 0 && self.world.now < until {
            self.replace(&mut gone, per_sec, begin);
        }
        let ended = std::mem::take(&mut self.world.ended);
        let what = format!("{:.0} % replaced a minute", self.plan.churn * 100.0);
        // A node that went while it looked has no answer: it counts for nothing.
        let lost = self.plan.lookups - ended.len();
        let right = ended.iter().filter(|ended| ended.is_right).count() as f64;
        let share = right / (self.plan.lookups - lost).max(1) as f64;
        self.samples.add(format!("{what}: found the newest record"), "share", at_least(0.99), share);
        self.note_way(&what, &ended, None);
        let halves = self.world.machines.iter().filter_map(|machine| machine.dht.as_ref());
        let mut halves: Vec<f64> = halves.map(|dht| dht.half_life().as_secs_f64()).collect();
        halves.sort_by(f64::total_cmp);
        if let Some(median) = halves.get(halves.len() / 2) {
            self.samples.add(format!("{what}: half-life as nodes see it"), "s", None, *median);
        }
    }

    /// A tenth of a second of churn.
    fn replace(&mut self, gone: &mut f64, per_sec: f64, begin: Duration) {
        self.world.run_until(self.world.now + Duration::from_millis(100));
        let due = (self.world.now - begin).as_secs_f64() * per_sec;
        while *gone < due {
            *gone += 1.0;
            let one = self.somebody(|_, _| true);
            let other = self.somebody(|_, _| true);
            // Heavy tails: the younger of two goes, so that few stay very long.
            let born = |number: u32| self.world.machines[number as usize].born;
            let goes = if self.plan.heavy_tailed && born(other) > born(one) { other } else { one };
            self.world.kill(goes);
            let is_server = self.is_server();
            let bootstrap = self.somebody(|world, number| world.machines[number as usize].is_server);
            self.world.add(is_server, Some(bootstrap));
        }
    }

    /// A share of all nodes turns hostile at once, after having behaved.
    fn attack(&mut self, adversary: Adversary) {
        let what = format!("{} adversaries", adversary.name());
        let ended = match adversary {
            Adversary::Eclipse => self.eclipse(&what),
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
        let mut old = std::collections::BTreeMap::new();
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

    /// 32 ids next to one key, which behave until everybody knows them.
    fn eclipse(&mut self, what: &str) -> Vec<Ended> {
        let victim = self.any_two().0;
        let key: Key = self.world.machines[victim as usize].member.contact.node.into();
        let mut members = vec![];
        for _ in 0..ECLIPSE {
            let bootstrap = self.somebody(|world, number| world.machines[number as usize].is_server);
            members.push(self.world.add_beside(key, bootstrap));
        }
        self.pass(what, SPREAD);
        // The victim says something new once they are there, so that they are offered it and may drop it.
        self.world.update(victim);
        self.pass(what, SPREAD);
        for number in &members {
            self.world.turn(*number, Adversary::Eclipse);
        }
        let members = members.iter().map(|number| self.world.machines[*number as usize].member.contact).collect();
        self.world.gang = Arc::new(Gang { members, ..Gang::default() });
        self.look(what, Way::AsFound, |lab| {
            let from = lab.any_two().0;
            (from, victim)
        })
    }
}
