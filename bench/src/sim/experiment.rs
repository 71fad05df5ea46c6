//! What is tried with a network of nodes, one thing after the other, and what is seen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use weir_controlplane::pki::certificate::CertificateError;
use weir_controlplane::random::{Random, SeededRandom};

use super::hostile::Adversary;
use super::latency::unit;
use super::members::Network;
use super::traffic::{PURPOSES, Purpose};
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
/// Time for newcomers, and new records, to become known.
pub(super) const SPREAD: Duration = Duration::from_secs(60);
/// Trials at a time: each has a network of its own, and three of ten thousand nodes fit the memory that a run may take.
const THREADS: usize = 2;
/// Between two looks whether a trial is over.
const TELL: Duration = Duration::from_millis(100);

/// Everything, and where figures go.
pub(super) struct Lab<'a> {
    pub(super) plan: &'a Plan,
    pub(super) world: World,
    pub(super) samples: Samples,
    progress: &'a mut dyn FnMut(&str, f64),
}

/// What breaks the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trial {
    Churn,
    Attack(Adversary),
}

/// Which look-ups are made.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// As nodes are.
    AsFound,
    /// Who looks has no session with anybody.
    Cold,
    /// All have sessions with everybody.
    Warm,
}

/// What became of a trial; its events with those from before.
struct Tried {
    trial: Trial,
    samples: Samples,
    events: u64,
}

fn tried(trial: Trial, plan: &Plan, world: World) -> Tried {
    let mut silent = |_: &str, _: f64| {};
    let mut lab = Lab { plan, world, samples: Samples::default(), progress: &mut silent };
    match trial {
        Trial::Churn => lab.churn(),
        Trial::Attack(adversary) => lab.attack(adversary),
    }
    Tried { trial, samples: lab.samples, events: lab.world.costs.events }
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
        self.break_it()
    }

    /// What breaks the network: each thing begins from the same one, so two are tried at a time, and their order changes nothing. A flood comes last
    /// and has the machine to itself, since it fills all stores.
    fn break_it(mut self) -> Samples {
        let all = std::iter::once(Trial::Churn)
            .filter(|_| self.plan.churn > 0.0)
            .chain(self.plan.adversaries.iter().map(|adversary| Trial::Attack(*adversary)));
        let (last, trials): (Vec<Trial>, Vec<Trial>) =
            all.partition(|trial| matches!(trial, Trial::Attack(Adversary::Flood)));
        let count = trials.len() + last.len();
        let next = AtomicUsize::new(0);
        let (whole, plan) = (&self.world, self.plan);
        let mut events = whole.costs.events;
        let before = events;
        let (tell, told) = mpsc::channel();
        let work = || {
            let tell = tell.clone();
            while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Nobody listens any more when the run is given up.
                let _ = tell.send(tried(*trial, plan, whole.clone()));
            }
        };
        let mut done = vec![];
        thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS.min(trials.len())).map(|_| scope.spawn(work)).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                done.extend(told.recv_timeout(TELL));
                (self.progress)("churn and attacks", done.len() as f64 / count as f64);
            }
        });
        // The network itself, not another copy of it: there is one flood at most. In a thread, which has the memory that others have left.
        if let Some(trial) = last.first() {
            let world = self.world;
            thread::scope(|scope| {
                scope.spawn(|| tell.send(tried(*trial, plan, world)));
            });
        }
        done.extend(told.try_iter());
        (self.progress)("churn and attacks", 1.0);
        done.sort_by_key(|tried| tried.trial);
        for tried in done {
            self.samples.0.extend(tried.samples.0);
            events += tried.events - before;
        }
        self.samples.add("events of the simulation".into(), "", None, events as f64);
        self.samples
    }

    fn tell(&mut self, what: &str, share: f64) {
        (self.progress)(what, share);
    }

    fn is_server(&mut self) -> bool {
        unit(&mut self.world.random) * 100.0 < f64::from(self.plan.servers)
    }

    pub(super) fn pick(&mut self, count: usize) -> u32 {
        (self.world.random.u64() % count as u64) as u32
    }

    /// A node that is there and honest; `is_wanted` may ask for more.
    pub(super) fn somebody(&mut self, is_wanted: impl Fn(&World, u32) -> bool) -> u32 {
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
        self.note_arrival();
    }

    /// What it costs a node to come and to settle.
    fn note_arrival(&mut self) {
        let (nodes, tally) = (self.world.machines.len() as f64, self.world.costs.tally);
        let bytes: u64 = self.world.machines.iter().map(|machine| machine.bytes).sum();
        self.samples.add(
            "arrival: bytes of a node until it has settled".into(),
            "kB",
            None,
            bytes as f64 / nodes / 1000.0,
        );
        for (purpose, name) in PURPOSES {
            let handshakes = tally.handshakes[purpose as usize] as f64 / nodes;
            if purpose != Purpose::Answer {
                self.samples.add(format!("arrival: handshakes for {name}"), "", None, handshakes);
            }
            let kb = 2.0 * tally.bytes[purpose as usize] as f64 / nodes / 1000.0;
            self.samples.add(format!("arrival: {name}, handshakes apart"), "kB", None, kb);
        }
    }

    /// Lets time pass, and says so.
    pub(super) fn pass(&mut self, what: &str, time: Duration) {
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
        let (handshakes, tally) = (self.world.costs.handshakes, self.world.costs.tally);
        self.pass("idle", self.plan.idle);
        let (secs, nodes) = (self.plan.idle.as_secs_f64(), self.world.machines.len() as f64);
        let bytes: u64 = self.world.machines.iter().map(|machine| machine.bytes).sum::<u64>() - before;
        let rate = bytes as f64 / secs / nodes;
        self.samples.add("idle: bytes a second of a node, sent and received".into(), "B/s", at_most(1000.0), rate);
        let rate = (of_servers(&self.world).1 - servers_before) as f64 / secs / f64::from(servers);
        self.samples.add("idle: the same of a server".into(), "B/s", None, rate);
        let rate = (self.world.costs.handshakes - handshakes) as f64 / secs / nodes * 3600.0;
        self.samples.add("idle: handshakes of a node".into(), "1/h", None, rate);
        let spent = self.world.costs.tally.since(&tally);
        for (purpose, name) in PURPOSES {
            let an_hour = spent.handshakes[purpose as usize] as f64 / secs / nodes * 3600.0;
            if purpose != Purpose::Answer {
                self.samples.add(format!("idle: of those for {name}"), "1/h", None, an_hour);
            }
            // Sent by one and received by another.
            let rate = 2.0 * spent.bytes[purpose as usize] as f64 / secs / nodes;
            self.samples.add(format!("idle: bytes of {name}, handshakes apart"), "B/s", None, rate);
        }
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
        self.samples.add("memory of a node: the most".into(), "KiB", at_most(64.0), most);
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
            // One that an operator would name: not a newcomer that knows nobody itself.
            let bootstrap = self.somebody(|world, other| {
                let machine = &world.machines[other as usize];
                machine.is_server && machine.joined.is_some_and(|joined| world.now - joined >= GROWN)
            });
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
    pub(super) fn look(&mut self, what: &str, way: Way, mut choose: impl FnMut(&mut Self) -> (u32, u32)) -> Vec<Ended> {
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

    pub(super) fn any_two(&mut self) -> (u32, u32) {
        let is_grown = |world: &World, number: u32| {
            let machine = &world.machines[number as usize];
            machine.joined.is_some() && world.now.saturating_sub(machine.born) >= GROWN
        };
        (self.somebody(is_grown), self.somebody(is_grown))
    }

    pub(super) fn note_success(&mut self, what: &str, ended: &[Ended], target: Option<f64>) {
        let right = ended.iter().filter(|ended| ended.is_right).count() as f64;
        let share = right / self.plan.lookups as f64;
        self.samples.add(format!("{what}: found the newest record"), "share", target.and_then(at_least), share);
    }

    pub(super) fn note_time(&mut self, what: &str, ended: &[Ended], target: Option<f64>) {
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
}
