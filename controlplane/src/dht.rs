//! The DHT: members find each other by id, name or address, with nobody in the middle, while some of them lie.
//!
//! ```text
//!  sessions, messages ─▶ ┌─ Dht ──────────────────────────────────────────┐ ─▶ Send: a message to a contact
//!  get · publish · join ─▶ requests ─ look-ups ─ table ─ store ─ upkeep     │ ─▶ Found · Published · Joined
//!            timeout ─▶ └────────────────────────────────────────────────┘
//! ```
//!
//! Kademlia (Maymounkov, Mazières, IPTPS 2002) whose ids nobody can choose, whose records are signed, and whose sessions are between members
//! that know each other by certificate. How a session comes to be is not known here: what is sent waits for one, and what comes, comes by one.
//! The differences to the paper, and which attack each is for, are in `docs/discovery.md`.

mod bucket;
mod estimate;
#[cfg(test)]
mod fixture;
mod handover;
mod join;
mod limit;
mod lookup;
pub mod message;
mod pace;
pub mod place;
mod publish;
pub mod record;
mod serve;
mod shun;
pub mod store;
mod table;
mod tend;
#[cfg(test)]
mod tests;
mod upkeep;
pub mod value;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::estimate::Size;
pub use self::estimate::{REGION, region};
use self::handover::Handover;
use self::join::Bootstrap;
use self::limit::Limit;
use self::lookup::{Goal, Lookup, Next};
pub use self::lookup::{Hop, PATH_REQUESTS_MAX, PATHS, Progress, REQUESTS_MAX};
use self::message::{Answer, K, Message, Query, Refusal, Reply, Request};
use self::pace::Pace;
use self::place::{Contact, Key, Peer};
use self::publish::Publication;
pub use self::publish::{PUBLICATIONS_MAX, PublishError};
use self::record::{Judge, Kind, SignedRecord};
use self::shun::Shun;
use self::store::{Highest, Store};
pub use self::table::Table;
use self::upkeep::Upkeep;
use crate::pki::id::NodeId;
use crate::random::Random;
use crate::time::Now;
use crate::timer::Timers;

/// Look-ups at a time. Ours: a burst of a user's, and upkeep beside it.
pub const LOOKUPS_MAX: usize = 16;
/// Requests without an answer yet: all look-ups with all paths, and puts.
pub const OUTSTANDING_MAX: usize = 256;
/// Contacts that are kept to begin anew from.
pub const ANCHORS_MAX: usize = 20;
/// Room for outputs that stays when all are taken.
const OUTPUTS_KEPT: usize = 8;
/// A look-up that is not over by then ends with what it has.
const LOOKUP_MAX: Duration = Duration::from_secs(30);
/// Between two looks for somebody to ask while there is somebody. Ours: a table fills within seconds, and one message at a time.
const CHECK_GAP: Duration = Duration::from_millis(50);
/// Before somebody who failed once is asked again.
const DOUBT: Duration = Duration::from_secs(10);
/// Nodes next to ours that answer before a join is over. Ours: two for each path of a look-up.
const JOIN_WIDTH: usize = 2 * PATHS;
/// First and longest wait after a join that came to nothing.
const REJOIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Look-ups that fill the table after a join, at a time.
const FILLS_MAX: usize = 2;
/// For a look-up the region is half of that for a record: the two estimates differ, and by less than that as a rule.
const READ_SHARE: f64 = 0.5;

/// Whether we answer others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Others reach us: we keep records and stand in tables.
    Server,
    /// We only ask.
    Client,
}

/// Names a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LookupId(pub u64);

/// How a look-up ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The record of the highest sequence that was found.
    pub record: Option<SignedRecord>,
    /// Its sequence; 0 without a record.
    pub sequence: u64,
    /// Nodes that led to it, one after the other; 0 when it was here.
    pub hops: u8,
    /// Waits of the path that came to it, one after the other: for answers, and for what did not come in time.
    pub rounds: u8,
    /// Requests of all paths.
    pub requests: u16,
    /// Paths.
    pub paths: u8,
    /// From the call to this.
    pub took: Duration,
    /// Who was asked, path by path.
    pub trace: Vec<Hop>,
}

/// What the machine wants done, and what it has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message by the session with this member; without one, make one at this address and no other, and tell
    /// [`Dht::handle_unreachable`] if that fails. The same bytes come again while no answer comes, and need not wait twice.
    Send {
        /// To whom.
        to: Contact,
        /// An encoded [`Message`].
        message: Vec<u8>,
    },
    /// As many have answered as disjoint paths need to begin with, or all that there are: look-ups work from now on.
    Joined,
    /// A look-up is over.
    Found {
        /// Which.
        id: LookupId,
        /// How.
        outcome: Box<Outcome>,
    },
    /// A record of ours was offered to the servers of its region.
    Published {
        /// Which.
        kind: Kind,
        /// Where it lies.
        key: Key,
        /// Servers that have it now.
        stored: u16,
        /// Servers that were asked to.
        asked: u16,
        /// A higher sequence than ours that one of them has seen: ours has to be above it.
        superseded: Option<u64>,
        /// Servers that refused it since they had another than the one to be replaced.
        conflicts: u16,
        /// The highest sequence that those had.
        instead: Option<u64>,
    },
}

/// As many look-ups as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{LOOKUPS_MAX} look-ups are under way")]
pub struct Busy;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that do not decode, or come under our own id.
    pub malformed: u64,
    /// Answers to nothing that was asked of this peer.
    pub unmatched: u64,
    /// Requests beyond what one peer may ask.
    pub limited: u64,
    /// Records in answers that are not to be believed, or not what was asked for.
    pub bad_records: u64,
    /// Records that were not kept for others.
    pub refused: u64,
    /// Requests that were given up.
    pub timeouts: u64,
    /// Requests that found no room among the outstanding.
    pub overflows: u64,
    /// Records that were given to servers that are new in their region.
    pub handed_over: u64,
}

impl Counters {
    /// All of them, by name.
    pub const fn named(self) -> [(&'static str, u64); 8] {
        let Self { malformed, unmatched, limited, bad_records, refused, timeouts, overflows, handed_over } = self;
        [
            ("malformed", malformed),
            ("unmatched", unmatched),
            ("limited", limited),
            ("bad_records", bad_records),
            ("refused", refused),
            ("timeouts", timeouts),
            ("overflows", overflows),
            ("handed_over", handed_over),
        ]
    }
}

/// What outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Contacts to begin from, those who have been here longest first.
    pub anchors: Vec<Contact>,
    /// The highest sequences that were seen.
    pub highest: Vec<Highest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    Request(u64),
    Lookup(LookupId),
    Check,
    Refresh,
    Publish(Kind, Key),
    Join,
    Handover,
}

/// Why there is a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Join,
    Refresh,
    Fill,
    Get,
    Publish(Kind, Key),
}

#[derive(Clone, Debug)]
struct Job {
    lookup: Lookup,
    why: Why,
    since: Instant,
}

/// For what a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Lookup(LookupId),
    Check,
    Put { kind: Kind, key: Key, round: u64 },
    Handover,
}

#[derive(Clone, Debug)]
struct Outstanding {
    to: Contact,
    purpose: Purpose,
    message: Vec<u8>,
    sent: Instant,
    /// Asked twice: the answer says nothing of the round trip.
    is_slow: bool,
    /// A session came since: its time began anew then, and does so once.
    has_session: bool,
}

/// The DHT of one node.
#[derive(Clone, Debug)]
pub struct Dht<R> {
    own: NodeId,
    mode: Mode,
    table: Table,
    store: Store,
    size: Size,
    pace: Pace,
    upkeep: Upkeep,
    limit: Limit,
    /// Where to begin, and to begin again.
    bootstrap: Bootstrap,
    rejoin_after: Duration,
    joined: Option<Instant>,
    /// Since when the network is another than we took it for.
    restless: Option<Instant>,
    /// The next bucket to be filled after a join, and to be refreshed later.
    fill: usize,
    refresh: usize,
    outstanding: BTreeMap<u64, Outstanding>,
    lookups: BTreeMap<LookupId, Job>,
    last_lookup: u64,
    publications: BTreeMap<(Kind, Key), Publication>,
    last_round: u64,
    handover: Handover,
    /// Contacts that are asked out of their turn, since others were found to be gone.
    suspects: usize,
    shun: Shun,
    timers: Timers<Timer>,
    outputs: VecDeque<Output>,
    counters: Counters,
    random: R,
}

impl<R: Random> Dht<R> {
    /// A node that knows nobody but whom it was left with.
    pub fn new(own: NodeId, mode: Mode, saved: Saved, mut random: R, now: Now) -> Self {
        Self {
            own,
            mode,
            table: Table::new(own.into()),
            store: Store::new(own.into(), saved.highest),
            size: Size::default(),
            pace: Pace::default(),
            upkeep: Upkeep::default(),
            limit: Limit::new(random.u64(), now.mono),
            bootstrap: Bootstrap::new(saved.anchors),
            rejoin_after: REJOIN[0],
            joined: None,
            restless: None,
            fill: 0,
            refresh: 0,
            outstanding: BTreeMap::new(),
            lookups: BTreeMap::new(),
            last_lookup: 0,
            publications: BTreeMap::new(),
            last_round: 0,
            handover: Handover::default(),
            suspects: 0,
            shun: Shun::default(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            random,
        }
    }

    /// Looks for a record.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn get(&mut self, kind: Kind, key: Key, now: Now) -> Result<LookupId, Busy> {
        let region = region(self.servers()) * READ_SHARE;
        let seeds = self.seeds(key, 2 * K);
        self.look_up(key, Goal::Value(kind), region, &seeds, Why::Get, now)
    }

    /// How far a look-up is; `None` when it is over.
    pub fn progress(&self, id: LookupId) -> Option<Progress> {
        self.lookups.get(&id).map(|job| job.lookup.progress())
    }

    /// A session with a member is there, so what was sent is on its way only now. A member that makes one after the other has no more time.
    pub fn handle_session(&mut self, peer: Peer, now: Now) {
        for (transaction, outstanding) in &mut self.outstanding {
            if outstanding.to.node == peer.contact.node && !outstanding.has_session {
                (outstanding.sent, outstanding.is_slow, outstanding.has_session) = (now.mono, false, true);
                self.timers.set(Timer::Request(*transaction), now.mono + self.pace.soft());
            }
        }
        // It was asked in vain before there was a session.
        if self.shun.answered(peer.contact) {
            self.heard_of(&[peer.contact], now.mono);
        }
    }

    /// No session with a member comes about at this address, which says nothing of others.
    pub fn handle_unreachable(&mut self, contact: Contact, now: Now) {
        self.give_up_all(|to| to == contact, now);
    }

    /// A member was revoked.
    pub fn handle_revoked(&mut self, node: NodeId, now: Now) {
        self.table.remove(node);
        self.bootstrap.remove(node);
        self.handover.remove(node);
        self.store.remove_signer(node);
        self.give_up_all(|to| to.node == node, now);
    }

    /// Bytes that a member sent by its session.
    pub fn handle_message(&mut self, peer: Peer, bytes: &[u8], judge: Judge<'_>, now: Now) {
        // Another life of ours with the same keys: what we would answer goes to nobody else.
        if peer.contact.node == self.own {
            self.counters.malformed += 1;
            return;
        }
        match Message::decode(bytes) {
            Ok(Message::Request(request)) => self.serve(peer, request, judge, now),
            Ok(Message::Answer(answer)) => self.answered(peer, answer, judge, now),
            Err(_) => self.counters.malformed += 1,
        }
    }

    fn answered(&mut self, peer: Peer, answer: Answer, judge: Judge<'_>, now: Now) {
        let node = peer.contact.node;
        if self.outstanding.get(&answer.transaction).is_none_or(|asked| asked.to.node != node) {
            self.counters.unmatched += 1;
            return;
        }
        let Some(asked) = self.outstanding.remove(&answer.transaction) else { return };
        self.timers.cancel(Timer::Request(answer.transaction));
        match asked.is_slow {
            true => self.pace.answered_late(),
            false => self.pace.answered(now.mono.saturating_duration_since(asked.sent)),
        }
        let known_since = self.table.entry(node).map(|entry| entry.heard);
        if let Some(heard) = known_since {
            self.upkeep.stayed(now.mono.saturating_duration_since(heard));
        }
        self.shun.answered(peer.contact);
        if answer.reply == Reply::Refused(Refusal::NotServer) {
            self.table.remove(node);
        } else {
            // Where the session is, it is; where it was asked is what somebody said.
            if self.table.answered(peer, now.mono) && known_since.is_none() {
                self.is_new_here(peer.contact, now);
            }
            self.somebody_serves(now);
        }
        match asked.purpose {
            Purpose::Check => {}
            Purpose::Handover => self.counters.handed_over += u64::from(answer.reply == Reply::Stored),
            Purpose::Put { kind, key, round } => self.put_answered((kind, key), round, &answer.reply, now),
            Purpose::Lookup(id) => self.look_up_answered(id, asked.to, answer.reply, judge, now),
        }
    }

    fn look_up_answered(&mut self, id: LookupId, from: Contact, mut reply: Reply, judge: Judge<'_>, now: Now) {
        if let Reply::Contacts(contacts) = &mut reply {
            contacts.iter_mut().for_each(|contact| *contact = self.as_known(*contact));
            self.heard_of(contacts, now.mono);
        }
        self.look_up_heard(id, from, reply, judge, now);
        self.pump(id, now);
    }

    fn look_up_heard(&mut self, id: LookupId, from: Contact, reply: Reply, judge: Judge<'_>, now: Now) {
        let shun = &self.shun;
        let Some(job) = self.lookups.get_mut(&id) else { return };
        match reply {
            Reply::Contacts(mut contacts) => {
                contacts.retain(|contact| !shun.has(*contact, now.mono));
                job.lookup.answered(from, &contacts);
                if job.why == Why::Join {
                    self.size.hear(&job.lookup.named_distances());
                }
            }
            Reply::Record(record) => {
                let (key, goal) = (job.lookup.target(), job.lookup.goal());
                match record.verify(judge) {
                    Ok(envelope) if goal == Goal::Value(envelope.kind) && envelope.key == key => {
                        job.lookup.answered_with(from, envelope, record);
                    }
                    judged => {
                        job.lookup.said_nothing(from);
                        self.counters.bad_records += 1;
                        let is_excused = judged.is_err_and(|error| error.is_of_the_moment());
                        // It contradicts its own signature, or what was asked: whatever else it says is worth as much.
                        if !is_excused || !matches!(goal, Goal::Value(_)) {
                            self.table.remove(from.node);
                            self.shun.liar(from.node, now.mono);
                        }
                    }
                }
            }
            Reply::Pong | Reply::Stored | Reply::Refused(_) => job.lookup.said_nothing(from),
        }
    }

    /// Somebody whom others name, where it has answered us; unless it is in doubt there.
    fn as_known(&self, named: Contact) -> Contact {
        self.table.entry(named.node).filter(|entry| entry.failures == 0).map_or(named, |entry| entry.contact)
    }

    /// Somebody named others: they wait for a place until we have asked them.
    fn heard_of(&mut self, contacts: &[Contact], now: Instant) {
        let mut is_worth_asking = false;
        for contact in contacts.iter().filter(|contact| contact.node != self.own) {
            is_worth_asking |= !self.shun.has(*contact, now) && self.table.named(*contact);
        }
        if is_worth_asking {
            self.timers.set_at_latest(Timer::Check, now + CHECK_GAP);
        }
    }

    /// What is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop(now.mono) {
            match timer {
                Timer::Request(transaction) => self.is_late(transaction, now),
                Timer::Lookup(id) => self.finish(id, now),
                Timer::Check => self.check(now),
                Timer::Refresh => self.refresh(now),
                Timer::Publish(kind, key) => self.publish_again((kind, key), now),
                Timer::Join => self.begin(now),
                Timer::Handover => self.hand_over(now),
            }
        }
    }

    fn is_late(&mut self, transaction: u64, now: Now) {
        let Some(outstanding) = self.outstanding.get_mut(&transaction) else { return };
        if outstanding.is_slow {
            return self.give_up(transaction, now);
        }
        outstanding.is_slow = true;
        let (to, message, purpose) = (outstanding.to, outstanding.message.clone(), outstanding.purpose);
        // Whatever others that are late do to the pace meanwhile.
        self.timers.set(Timer::Request(transaction), outstanding.sent + self.pace.hard());
        self.pace.late();
        self.outputs.push_back(Output::Send { to, message });
        if let Purpose::Lookup(id) = purpose {
            if let Some(job) = self.lookups.get_mut(&id) {
                job.lookup.slow(to);
            }
            self.pump(id, now);
        }
    }

    fn give_up_all(&mut self, is_lost: impl Fn(Contact) -> bool, now: Now) {
        let waiting = self.outstanding.iter().filter(|(_, outstanding)| is_lost(outstanding.to));
        let waiting: Vec<u64> = waiting.map(|(transaction, _)| *transaction).collect();
        waiting.into_iter().for_each(|transaction| self.give_up(transaction, now));
    }

    fn give_up(&mut self, transaction: u64, now: Now) {
        let Some(outstanding) = self.outstanding.remove(&transaction) else { return };
        let to = outstanding.to;
        self.timers.cancel(Timer::Request(transaction));
        self.counters.timeouts += 1;
        self.pace.lost();
        self.suspect_others(to, now);
        if let Some(silent) = self.table.failed(to, now.mono) {
            self.upkeep.departed(silent);
        }
        self.shun.unreachable(to, now.mono);
        self.timers.set_at_latest(Timer::Check, now.mono + DOUBT);
        match outstanding.purpose {
            Purpose::Check => {}
            Purpose::Handover => self.handover.remove(to.node),
            Purpose::Put { kind, key, round } => self.put_ended((kind, key), round, now),
            Purpose::Lookup(id) => {
                if let Some(job) = self.lookups.get_mut(&id) {
                    job.lookup.failed(to);
                }
                self.pump(id, now);
            }
        }
    }

    /// Asks somebody something. Without room for the answer nothing is asked.
    fn ask(&mut self, to: Contact, query: Query, purpose: Purpose, now: Now) -> bool {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.counters.overflows += 1;
            return false;
        }
        let transaction = self.random.u64();
        let request = Request { transaction, is_server: self.mode == Mode::Server, query };
        let message = Message::Request(request).encode();
        self.outputs.push_back(Output::Send { to, message: message.clone() });
        let sent = now.mono;
        let asked = Outstanding { to, purpose, message, sent, is_slow: false, has_session: false };
        self.outstanding.insert(transaction, asked);
        self.timers.set(Timer::Request(transaction), now.mono + self.pace.soft());
        self.table.tried(to, now.mono);
        true
    }

    /// Those whom a look-up begins with.
    fn seeds(&self, target: Key, count: usize) -> Vec<Contact> {
        let seeds = self.table.closest(target, count);
        if seeds.is_empty() { self.bootstrap.all().to_vec() } else { seeds }
    }

    fn look_up(
        &mut self,
        target: Key,
        goal: Goal,
        region: f64,
        seeds: &[Contact],
        why: Why,
        now: Now,
    ) -> Result<LookupId, Busy> {
        if self.lookups.len() >= LOOKUPS_MAX {
            return Err(Busy);
        }
        self.last_lookup += 1;
        let id = LookupId(self.last_lookup);
        let lookup = Lookup::new(self.own, target, goal, region, self.pace.alpha(), seeds);
        self.lookups.insert(id, Job { lookup, why, since: now.mono });
        self.timers.set(Timer::Lookup(id), now.mono + LOOKUP_MAX);
        self.pump(id, now);
        Ok(id)
    }

    /// Asks whomever a look-up wants to ask, and ends it when it is over.
    fn pump(&mut self, id: LookupId, now: Now) {
        loop {
            let Some(job) = self.lookups.get_mut(&id) else { return };
            match job.lookup.next(&mut self.random) {
                Next::Ask(contact) => {
                    let (target, alike) = (job.lookup.target(), job.lookup.alike());
                    let query = match job.lookup.goal() {
                        Goal::Near { .. } | Goal::Region => Query::Find { target, alike },
                        Goal::Value(kind) => Query::Get { kind, key: target, alike },
                    };
                    if !self.ask(contact, query, Purpose::Lookup(id), now)
                        && let Some(job) = self.lookups.get_mut(&id)
                    {
                        job.lookup.failed(contact);
                    }
                }
                Next::Double => {
                    let target = job.lookup.target();
                    let seeds = self.seeds(target, 4 * K);
                    if let Some(job) = self.lookups.get_mut(&id) {
                        job.lookup.double(&seeds);
                    }
                }
                Next::Wait => return,
                Next::Done => return self.finish(id, now),
            }
        }
    }

    fn finish(&mut self, id: LookupId, now: Now) {
        let Some(job) = self.lookups.remove(&id) else { return };
        self.timers.cancel(Timer::Lookup(id));
        if self.says_the_size(&job) {
            if self.is_restless() {
                self.size.forget_oldest();
            }
            self.size.sample(&job.lookup.known_distances());
            self.follow_size(now);
        }
        match job.why {
            Why::Get => {
                let outcome = Box::new(self.outcome(&job, now));
                self.outputs.push_back(Output::Found { id, outcome });
            }
            Why::Join => self.joined(&job.lookup, now),
            Why::Fill => self.fill(now),
            Why::Refresh => {}
            Why::Publish(kind, key) => self.put_everywhere((kind, key), &job.lookup, now),
        }
    }

    fn outcome(&self, job: &Job, now: Now) -> Outcome {
        let best = job.lookup.best();
        let (mut record, mut sequence) =
            best.map_or((None, 0), |found| (Some(found.record.clone()), found.envelope.sequence));
        let (mut hops, mut rounds) = best.map_or((0, 0), |found| (found.hops, found.rounds));
        // What is kept here counts as everybody's.
        if let Goal::Value(kind) = job.lookup.goal()
            && let Some((kept, own)) = self.store.get(kind, job.lookup.target(), now.wall)
            && (record.is_none() || kept > sequence)
        {
            (record, sequence, hops, rounds) = (Some(own.clone()), kept, 0, 0);
        }
        let count = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        Outcome {
            record,
            sequence,
            hops,
            rounds,
            requests: count(job.lookup.requests()),
            paths: count(job.lookup.paths()).min(u8::MAX.into()) as u8,
            took: now.mono.saturating_duration_since(job.since),
            trace: job.lookup.trace(),
        }
    }

    /// What is to be done, and what there is to tell.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            // A burst of them leaves no room taken.
            self.outputs.shrink_to(OUTPUTS_KEPT);
        }
        output
    }

    /// When [`Self::handle_timeout`] is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whom we know.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What we keep.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether we answer others.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether look-ups work: [`Output::Joined`] has come.
    pub fn is_joined(&self) -> bool {
        self.joined.is_some()
    }

    /// How many servers there seem to be: as many as we know, at least.
    pub fn servers(&self) -> f64 {
        self.size.servers().unwrap_or(0.0).max(self.table.len() as f64)
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Time after which half of those who are here now have gone, as far as we have seen.
    pub fn half_life(&self) -> Duration {
        self.upkeep.half_life()
    }

    /// What must outlive the process.
    pub fn save(&self) -> Saved {
        let own: Vec<Highest> = self.published_highest().collect();
        let is_own = |known: &Highest| own.iter().any(|own| (own.kind, own.key) == (known.kind, known.key));
        let others = self.store.highest().filter(|known| !is_own(known));
        Saved { anchors: self.anchors(), highest: own.iter().copied().chain(others).collect() }
    }

    /// Bytes of memory, without what is kept for others: the table, and the books of what is under way.
    pub fn memory_len(&self) -> usize {
        let requests: usize =
            self.outstanding.values().map(|asked| size_of::<Outstanding>() + asked.message.capacity()).sum();
        let lookups: usize = self.lookups.values().map(|job| size_of::<Job>() + job.lookup.heap_len()).sum();
        // A deadline stands in an ordered set and in a map.
        let timers = (self.outstanding.len() + self.lookups.len() + 8) * 4 * size_of::<(Instant, Timer)>();
        let heap = self.table.heap_len() + self.size.heap_len() + self.limit.heap_len();
        let lists = self.bootstrap.heap_len()
            + self.shun.heap_len()
            + self.handover.heap_len()
            + self.outputs.capacity() * size_of::<Output>();
        size_of::<Self>() + heap + lists + requests + lookups + timers
    }
}
