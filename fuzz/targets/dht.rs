//! The DHT of a node, and members that say anything: bytes, bent records under good signatures, answers that nobody asked for.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::codec;
use weir_controlplane::dht::message::{Answer, K, Message, Query, Reply, Request};
use weir_controlplane::dht::place::{Contact, Key, Peer, Site};
use weir_controlplane::dht::record::{Envelope, Judge, Kind, ServiceValue, SignedRecord};
use weir_controlplane::dht::store::BYTES_MAX;
use weir_controlplane::dht::{Dht, Mode, OUTSTANDING_MAX, Output, Saved};
use weir_controlplane::pki::id::Nonce;
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::pki::seen::Seen;
use weir_controlplane::pki::signed::Signed;
use weir_controlplane::pki::statement::{MemberStatement, SignedStatement};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::time::UnixSecs;
use weir_fuzz::{Edit, NETWORK, NOW, edited, identity_key, key, later};

#[derive(Arbitrary, Debug)]
enum Step {
    Bytes {
        from: u8,
        bytes: Vec<u8>,
    },
    Ask {
        from: u8,
        is_server: bool,
        what: u8,
        target: [u8; 32],
        alike: u8,
    },
    Put {
        from: u8,
        record: Record,
        replaces: Option<u8>,
    },
    /// An answer to the request of this place among those that are open.
    Name {
        which: u8,
        others: Vec<u8>,
    },
    Give {
        which: u8,
        record: Record,
    },
    Look {
        kind: u8,
        member: u8,
    },
    Session {
        with: u8,
    },
    Unreachable {
        at: u8,
    },
    Revoked {
        node: u8,
    },
    Mode {
        is_server: bool,
    },
    Wait {
        secs: u16,
    },
}

/// A record, with changes to what is signed.
#[derive(Arbitrary, Debug)]
struct Record {
    member: u8,
    kind: u8,
    sequence: u8,
    value: Vec<u8>,
    statement: Vec<Edit>,
    body: Vec<Edit>,
}

fn kind(number: u8) -> Kind {
    Kind::ALL[usize::from(number) % Kind::ALL.len()]
}

fn peer(member: u8) -> Peer {
    let address = SocketAddr::from((Ipv4Addr::new(20, member, 0, 1), 4646));
    Peer {
        contact: Contact { node: NETWORK.node(member), address },
        site: (member % 2 == 0).then_some(Site(member.into())),
    }
}

fn statement(member: u8) -> MemberStatement {
    MemberStatement {
        network: NETWORK.id(),
        node: NETWORK.node(member),
        identity: identity_key(member).public(),
        nonce: Nonce([member; 16]),
        name: format!("site-{member}"),
        prefixes: vec![],
        groups: vec![],
        ds_digest: None,
        not_before: NOW,
        not_after: UnixSecs(NOW.0 + 30 * 86_400),
    }
}

fn place(kind: Kind, member: u8) -> Key {
    let value = ServiceValue { label: "_http._tcp".into(), port: 80, texts: vec![] };
    kind.key_of(&statement(member), &value.encode()).expect("a service")
}

impl Record {
    fn signed(&self) -> SignedRecord {
        let said = statement(self.member);
        let kind = kind(self.kind);
        // Of what is no value of its kind, that of one: what is signed may be edited below.
        let at = kind.key_of(&said, &self.value).unwrap_or_else(|_| place(kind, self.member));
        let envelope = Envelope {
            network: NETWORK.id(),
            kind,
            key: at,
            sequence: self.sequence.into(),
            not_after: UnixSecs(NOW.0 + 86_400),
            node: said.node,
            value: self.value.clone(),
        };
        let identity = identity_key(self.member);
        let statement: SignedStatement = match self.statement.is_empty() {
            true => Signed::sign(&said, &key(3)),
            false => weir_fuzz::signed(&edited(codec::encode(&said), &self.statement), &key(3)),
        };
        let good = SignedRecord::sign(&envelope, statement, &identity);
        if self.body.is_empty() {
            return good;
        }
        // Signed as one of its kind, whatever it says.
        let body = edited(good.body.clone(), &self.body);
        SignedRecord { signature: identity.sign(kind.domain(), &body), body, ..good }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let (start, mut secs) = (Instant::now(), 0);
    let (revoked, seen) = (RevocationSet::default(), Seen::new(1024));
    let own = NETWORK.node(0);
    let mut dht = Dht::new(own, Mode::Server, Saved::default(), SeededRandom::new(1), later(start, 0));
    dht.join(&[peer(1).contact], later(start, 0));
    let mut open: Vec<(Contact, u64)> = vec![];
    let mut highest: BTreeMap<(Kind, Key), u64> = BTreeMap::new();
    for step in steps.into_iter().take(64) {
        let now = later(start, secs);
        let judge = Judge {
            network: NETWORK.id(),
            bundle: NETWORK.chain.current(),
            revoked: &revoked,
            seen: &seen,
            now: now.wall,
        };
        let answer = |dht: &mut Dht<SeededRandom>, open: &mut Vec<(Contact, u64)>, which: u8, reply| {
            if open.is_empty() {
                return;
            }
            let (to, transaction) = open.swap_remove(usize::from(which) % open.len());
            let bytes = Message::Answer(Answer { transaction, reply }).encode();
            dht.handle_message(Peer { contact: to, site: None }, &bytes, judge, now);
        };
        match step {
            Step::Bytes { from, bytes } => dht.handle_message(peer(from), &bytes, judge, now),
            Step::Ask { from, is_server, what, target, alike } => {
                let target = Key(target);
                let query = match what % 3 {
                    0 => Query::Ping,
                    1 => Query::Find { target, alike },
                    _ => Query::Get { kind: kind(what), key: target, alike },
                };
                let bytes = Message::Request(Request { transaction: 5, is_server, query }).encode();
                dht.handle_message(peer(from), &bytes, judge, now);
            }
            Step::Put { from, record, replaces } => {
                let query = Query::Put { record: record.signed(), replaces: replaces.map(u64::from) };
                let bytes = Message::Request(Request { transaction: 6, is_server: false, query }).encode();
                dht.handle_message(peer(from), &bytes, judge, now);
            }
            Step::Name { which, others } => {
                let contacts = others.iter().take(K).map(|other| peer(*other).contact).collect();
                answer(&mut dht, &mut open, which, Reply::Contacts(contacts));
            }
            Step::Give { which, record } => answer(&mut dht, &mut open, which, Reply::Record(record.signed())),
            Step::Look { kind: number, member } => {
                let kind = kind(number);
                let _ = dht.get(kind, place(kind, member), now);
            }
            Step::Session { with } => dht.handle_session(peer(with), now),
            Step::Unreachable { at } => dht.handle_unreachable(peer(at).contact, now),
            Step::Revoked { node } => dht.handle_revoked(NETWORK.node(node), now),
            Step::Mode { is_server } => dht.set_mode(if is_server { Mode::Server } else { Mode::Client }, now),
            Step::Wait { secs: more } => {
                secs += u64::from(more % 1000);
                dht.handle_timeout(later(start, secs));
            }
        }
        let mut sent = 0;
        while let Some(output) = dht.poll_output() {
            match output {
                Output::Send { to, message } => {
                    sent += 1;
                    assert!(
                        to.node != own && sent < 4 * OUTSTANDING_MAX,
                        "one step asks for no more than there is room"
                    );
                    if let Ok(Message::Request(request)) = Message::decode(&message) {
                        open.push((to, request.transaction));
                    }
                }
                Output::Found { outcome, .. } => {
                    // What is told is to be believed, whatever was answered.
                    let believed =
                        outcome.record.map(|record| record.read(NETWORK.id(), NOW).expect("it was verified").sequence);
                    assert_eq!(believed.unwrap_or(0), outcome.sequence);
                }
                Output::Joined | Output::Published { .. } => {}
            }
        }
        // No sequence goes back, nothing grows without end, nobody is there twice.
        assert!(dht.store().bytes() <= BYTES_MAX && dht.memory_len() < 1 << 22);
        // What has ended is forgotten, with its sequence.
        let known: BTreeMap<(Kind, Key), u64> =
            dht.store().highest().map(|known| ((known.kind, known.key), known.sequence)).collect();
        assert!(known.iter().all(|(at, sequence)| highest.get(at).is_none_or(|before| before <= sequence)));
        highest = known;
        let anchors: Vec<_> = dht.save().anchors.iter().map(|contact| contact.node).collect();
        assert_eq!(anchors.len(), anchors.iter().collect::<BTreeSet<_>>().len());
    }
});
