//! What others ask of us, and whether we answer.

use super::message::{Answer, K, Message, Query, Refusal, Reply, Request};
use super::place::{Contact, Peer, is_public};
use super::record::Judge;
use super::table::Met;
use super::{CHECK_GAP, Dht, Mode, Output, Timer};
use crate::random::Random;
use crate::time::Now;

impl<R: Random> Dht<R> {
    /// From now on others reach us, or do not. Who is a server no longer keeps nothing; who becomes one is made known to its neighbours.
    pub fn set_mode(&mut self, mode: Mode, now: Now) {
        if mode == self.mode {
            return;
        }
        self.mode = mode;
        match mode {
            Mode::Client => {
                self.store.let_all_go();
                self.handover.clear();
            }
            Mode::Server => {
                for publication in self.publications.values() {
                    self.store.keep_own(publication.record(), publication.until());
                }
                // Whom we ask for our neighbourhood learns by that that we answer.
                if self.joined.is_some() {
                    self.begin(now);
                }
            }
        }
    }

    pub(super) fn serve(&mut self, peer: Peer, request: Request, judge: Judge<'_>, now: Now) {
        let Request { transaction, is_server, query } = request;
        // It looks for its own neighbourhood: what it kept may be gone with an earlier life of it.
        let begins = matches!(&query, Query::Find { target, .. } if *target == peer.contact.node.into());
        let reply = if self.limit.admit(peer.contact.node, now.mono) {
            self.reply(peer, query, judge)
        } else {
            self.counters.limited += 1;
            Reply::Refused(Refusal::Busy)
        };
        // Whoever serves is worth knowing; it gets a place once it has answered us.
        if is_server && reply != Reply::Refused(Refusal::Busy) {
            match self.table.met(peer.contact, now.mono) {
                Met::Stays(silent) => {
                    self.upkeep.stayed(silent);
                    if begins {
                        self.is_new_here(peer.contact, now);
                    }
                }
                Met::Waits { has_room: true } => self.timers.set_at_latest(Timer::Check, now.mono + CHECK_GAP),
                Met::Waits { has_room: false } => {}
            }
        } else if !is_server {
            // It may have been one, before its last restart.
            self.table.remove(peer.contact.node);
        }
        let message = Message::Answer(Answer { transaction, reply }).encode();
        self.outputs.push_back(Output::Send { to: peer.contact, message });
    }

    fn reply(&mut self, peer: Peer, query: Query, judge: Judge<'_>) -> Reply {
        // A ping as well: whoever has us in its table has to know.
        if self.mode == Mode::Client {
            return Reply::Refused(Refusal::NotServer);
        }
        match query {
            Query::Ping => Reply::Pong,
            Query::Find { target, alike } => self.contacts(peer, target, alike),
            Query::Get { kind, key, alike } => match self.store.get(kind, key, judge.now) {
                Some((_, record)) => Reply::Record(record.clone()),
                None => self.contacts(peer, key, alike),
            },
            Query::Put { record, replaces } => match self.store.put(record, replaces, judge) {
                Ok(_) => Reply::Stored,
                Err(error) => {
                    self.counters.refused += 1;
                    Reply::Refused(Refusal::from(&error))
                }
            },
        }
    }

    fn contacts(&mut self, peer: Peer, to: super::place::Key, alike: u8) -> Reply {
        let mut near = self.table.some_near(to, K + 1, alike.into(), &mut self.random);
        let is_outside = is_public(peer.contact.address.ip());
        let is_of_use =
            |contact: &Contact| contact.node != peer.contact.node && (!is_outside || is_public(contact.address.ip()));
        near.retain(is_of_use);
        near.truncate(K);
        Reply::Contacts(near)
    }
}
