//! The server without its sockets: questions and changes go in, answers and wishes come out.
//!
//! ```text
//!  question ─▶ parse ─▶ catalog ─▶ answer
//!                          └─ missing ─▶ one wish for each thing, and the question waits ─▶ change, or two seconds ─▶ answer
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use domain::base::Serial;
use domain::base::opt::Cookie;

use super::catalog::{Catalog, Found, NoAnswer, Update, Wanted};
use super::limit::{Limit, Verdict};
use super::message::{self, Form, Malformed, Query, Said, TCP_LEN_MAX, refusal};
use crate::random::Random;
use crate::time::Now;

/// Questions that wait at a time. Ours: a page with a hundred names, for ten users.
pub const WAITING_MAX: usize = 1024;
/// How long one waits. Ours: less than the five seconds after which the C library asks again.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How old a cookie of ours may be (RFC 9018 §4.3), in seconds; and how far in the future.
const COOKIE_SECS: [u32; 2] = [3600, 300];

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// By UDP.
    Udp,
    /// By TCP, or TLS over it.
    Tcp,
}

/// From where, and where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asker {
    /// Its address.
    pub address: SocketAddr,
    /// How.
    pub transport: Transport,
    /// Of those who wait for answers, which socket or connection.
    pub port: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this.
    Reply(Asker, Vec<u8>),
    /// Ask for this; each once, until it has come or failed.
    Want(Wanted),
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Questions.
    pub queries: u64,
    /// Bytes that are none.
    pub malformed: u64,
    /// Answers with what was asked for, or the proof that it is not there.
    pub answered: u64,
    /// Of those, that there is no such name.
    pub denied: u64,
    /// Questions for other names.
    pub refused: u64,
    /// Without an answer.
    pub failed: u64,
    /// Questions that waited.
    pub waited: u64,
    /// Questions for which there was no room to wait: they are answered by what there is.
    pub overflows: u64,
    /// Answers that a network did not get, being too many.
    pub limited: u64,
    /// Told to ask by TCP.
    pub truncated: u64,
}

impl Counters {
    /// With their names.
    pub fn named(self) -> [(&'static str, u64); 10] {
        let Self { queries, malformed, answered, denied, refused, failed, waited, overflows, limited, truncated } =
            self;
        [
            ("dns_queries", queries),
            ("dns_queries_malformed", malformed),
            ("dns_answered", answered),
            ("dns_denied", denied),
            ("dns_refused", refused),
            ("dns_failed", failed),
            ("dns_waited", waited),
            ("dns_overflows", overflows),
            ("dns_limited", limited),
            ("dns_truncated", truncated),
        ]
    }
}

struct Parked {
    asker: Asker,
    query: Query,
    until: Instant,
}

/// The machine.
pub struct Server {
    catalog: Catalog,
    secret: [u8; 16],
    limit: Limit,
    waiting: BTreeMap<Wanted, Vec<Parked>>,
    /// Wishes that were told and not heard of again.
    wanted: BTreeSet<Wanted>,
    parked: usize,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Server {
    /// One that knows nothing yet.
    pub fn new(random: &mut impl Random, now: Instant) -> Self {
        Self {
            catalog: Catalog::default(),
            secret: random.array(),
            limit: Limit::new(random.u64(), now),
            waiting: BTreeMap::new(),
            wanted: BTreeSet::new(),
            parked: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What it can answer for.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Bytes that somebody sent.
    pub fn handle_query(&mut self, bytes: &[u8], asker: Asker, now: Now) {
        self.counters.queries += 1;
        match Query::parse(bytes) {
            Ok(query) => self.answer(query, asker, false, now),
            Err(why) => {
                self.counters.malformed += 1;
                // An error is shorter than what it answers, so nobody gains by it.
                if let Some(reply) = refusal(bytes, why)
                    && why != Malformed::Silent
                    && judge(&mut self.limit, &mut self.counters, asker.transport == Transport::Tcp, asker, now)
                        == Verdict::Send
                {
                    self.outputs.push_back(Output::Reply(asker, reply));
                }
            }
        }
    }

    /// Something became known, or did not.
    pub fn handle_update(&mut self, update: Update, now: Now) {
        let is_failure = matches!(update, Update::Failed(_) | Update::Absent(_));
        for about in self.catalog.take(update, now.mono) {
            self.wanted.remove(&about);
            for parked in self.waiting.remove(&about).unwrap_or_default() {
                self.parked -= 1;
                self.answer(parked.query, parked.asker, is_failure, now);
            }
        }
    }

    /// Answers whoever has waited long enough, with what there is.
    pub fn handle_timeout(&mut self, now: Now) {
        let mut late = vec![];
        let wanted = &mut self.wanted;
        self.waiting.retain(|about, parked| {
            let before = late.len();
            late.extend(parked.extract_if(.., |parked| parked.until <= now.mono));
            // It may be asked for again.
            if late.len() != before {
                wanted.remove(about);
            }
            !parked.is_empty()
        });
        self.parked -= late.len();
        late.into_iter().for_each(|parked| self.answer(parked.query, parked.asker, true, now));
    }

    /// When [`Self::handle_timeout`] is wanted next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().flatten().map(|parked| parked.until).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn want(&mut self, wanted: Wanted) {
        // As many as can wait, and those that are fetched ahead.
        if self.wanted.len() < 2 * WAITING_MAX && self.wanted.insert(wanted.clone()) {
            self.outputs.push_back(Output::Want(wanted));
        }
    }

    fn answer(&mut self, query: Query, asker: Asker, is_late: bool, now: Now) {
        let secs = Serial(now.wall.0 as u32);
        let address = asker.address.ip().to_canonical();
        let is_young = |at: Serial| {
            let age = secs.into_int().wrapping_sub(at.into_int()) as i32;
            (-(COOKIE_SECS[1] as i32)..=COOKIE_SECS[0] as i32).contains(&age)
        };
        let has_cookie = query.cookie().is_some_and(|cookie| cookie.check_server_hash(address, &self.secret, is_young));
        let cookie: Option<Cookie> = query.cookie().map(|cookie| cookie.create_response(secs, address, &self.secret));
        let len_max = if asker.transport == Transport::Tcp { TCP_LEN_MAX } else { query.udp_len() };
        let form = Form { len_max, cookie: cookie.as_ref() };
        let is_proven = has_cookie || asker.transport == Transport::Tcp;

        let mut ahead = None;
        let found = self.catalog.find(&query.name, query.rtype, is_late, now);
        let said = match &found {
            Found::Missing(wanted) => {
                let wanted = wanted.clone();
                return self.park(query, asker, wanted, now);
            }
            Found::Reply(answer, wanted) => {
                ahead.clone_from(wanted);
                self.counters.answered += 1;
                self.counters.denied += u64::from(answer.is_denial());
                Said::Answer(answer)
            }
            // Never without proof to somebody who asks for it.
            Found::Absent if query.is_dnssec_ok() => {
                self.counters.failed += 1;
                Said::None(NoAnswer::NoProof)
            }
            Found::Absent => {
                (self.counters.answered, self.counters.denied) = (self.counters.answered + 1, self.counters.denied + 1);
                Said::NoSuchName
            }
            Found::None(why) => {
                match why {
                    NoAnswer::NotOurs => self.counters.refused += 1,
                    NoAnswer::NoProof | NoAnswer::NoZone | NoAnswer::Unreachable => self.counters.failed += 1,
                }
                Said::None(*why)
            }
        };
        // Before it is written: what is dropped costs no more than finding it.
        let reply = match judge(&mut self.limit, &mut self.counters, is_proven, asker, now) {
            Verdict::Send => Some(message::answer(&query, &said, form, now)),
            Verdict::Slip => Some(message::answer(&query, &Said::ByTcp, form, now)),
            Verdict::Drop => None,
        };
        if let Some(reply) = reply {
            self.counters.truncated += u64::from(reply.get(2).is_some_and(|flags| flags & 2 != 0));
            self.outputs.push_back(Output::Reply(asker, reply));
        }
        if let Some(wanted) = ahead {
            self.want(wanted);
        }
    }

    fn park(&mut self, query: Query, asker: Asker, wanted: Wanted, now: Now) {
        if self.parked >= WAITING_MAX {
            self.counters.overflows += 1;
            return self.answer(query, asker, true, now);
        }
        self.counters.waited += 1;
        self.parked += 1;
        let parked = Parked { asker, query, until: now.mono + PATIENCE };
        self.waiting.entry(wanted.clone()).or_default().push(parked);
        self.want(wanted);
    }
}

/// Whether an answer goes; always to one who has proven its address.
fn judge(limit: &mut Limit, counters: &mut Counters, is_proven: bool, asker: Asker, now: Now) -> Verdict {
    if is_proven {
        return Verdict::Send;
    }
    let verdict = limit.judge(asker.address.ip(), now.mono);
    counters.limited += u64::from(verdict != Verdict::Send);
    verdict
}

#[cfg(test)]
mod tests;
