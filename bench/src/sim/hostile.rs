//! What members do that mean harm: real members with real sessions, who answer as they like.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use weir_controlplane::dht::message::{Answer, K, Message, Query, Reply, Request};
use weir_controlplane::dht::place::{Contact, Key};
use weir_controlplane::dht::record::SignedRecord;
use weir_controlplane::pki::id::NodeId;
use weir_controlplane::random::{Random, SeededRandom};

use super::members::address;

/// A kind of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// Answers nothing.
    Silent,
    /// Names its accomplices only, and denies every record.
    Lying,
    /// 32 ids next to one key, by whatever trick; they lie.
    Eclipse,
    /// Names members that do not exist, next to whatever is looked for.
    Sybil,
    /// Puts the longest records all the time.
    Flood,
    /// Gives the record before the last.
    Stale,
    /// Answers just before it would be given up.
    Slow,
    /// One owner who enrols again and again from one line, a new id each time; they lie.
    Reenrol,
}

impl Adversary {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Silent, Self::Lying, Self::Eclipse, Self::Sybil, Self::Flood, Self::Stale, Self::Slow, Self::Reenrol];

    /// As a person writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Lying => "lying",
            Self::Eclipse => "eclipse",
            Self::Sybil => "sybil",
            Self::Flood => "flood",
            Self::Stale => "stale",
            Self::Slow => "slow",
            Self::Reenrol => "reenrol",
        }
    }
}

impl std::str::FromStr for Adversary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|adversary| adversary.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("one of {} is needed", names.join(", "))
        })
    }
}

/// How much later a slow one answers: a request is given up after a second at the earliest.
const SLOW: Duration = Duration::from_millis(900);
/// Between two puts of one that floods.
pub(super) const FLOOD_INTERVAL: Duration = Duration::from_millis(100);

/// What all of one kind know.
#[derive(Clone, Debug, Default)]
pub(super) struct Gang {
    /// All members of it.
    pub(super) members: Vec<Contact>,
    /// Records that are not the last.
    pub(super) old: BTreeMap<Key, SignedRecord>,
}

/// What becomes of a request.
pub(super) enum Deed {
    /// It is answered as everybody would.
    Honest,
    /// It is answered as everybody would, but later.
    Late(Duration),
    /// This is answered; nothing if it is `None`.
    Instead(Option<Vec<u8>>),
}

/// What one of these does with a message; answers to what it asks itself it takes as anybody would.
pub(super) fn deed(adversary: Adversary, gang: &Gang, bytes: &[u8], random: &mut SeededRandom) -> Deed {
    let Ok(Message::Request(Request { transaction, query, .. })) = Message::decode(bytes) else { return Deed::Honest };
    let answer = |reply| Deed::Instead(Some(Message::Answer(Answer { transaction, reply }).encode()));
    let target = match &query {
        Query::Find { target, .. } => Some(*target),
        Query::Get { key, .. } => Some(*key),
        Query::Ping | Query::Put { .. } => None,
    };
    match (adversary, query, target) {
        (Adversary::Silent, ..) => Deed::Instead(None),
        (Adversary::Slow, ..) => Deed::Late(SLOW),
        (Adversary::Lying | Adversary::Eclipse | Adversary::Reenrol, _, Some(target)) => {
            answer(Reply::Contacts(gang.nearest(target)))
        }
        (Adversary::Lying | Adversary::Eclipse | Adversary::Reenrol, Query::Put { .. }, _) => answer(Reply::Stored),
        (Adversary::Sybil, _, Some(target)) => answer(Reply::Contacts(invented(target, random))),
        (Adversary::Stale, Query::Get { key, .. }, _) => match gang.old.get(&key) {
            Some(record) => answer(Reply::Record(record.clone())),
            None => Deed::Honest,
        },
        (
            Adversary::Lying
            | Adversary::Eclipse
            | Adversary::Reenrol
            | Adversary::Sybil
            | Adversary::Stale
            | Adversary::Flood,
            Query::Ping | Query::Find { .. } | Query::Get { .. } | Query::Put { .. },
            _,
        ) => Deed::Honest,
    }
}

impl Gang {
    fn nearest(&self, target: Key) -> Vec<Contact> {
        let mut near: Vec<_> =
            self.members.iter().map(|contact| (target.distance(contact.node.into()), *contact)).collect();
        let count = K.min(near.len());
        if count < near.len() {
            near.select_nth_unstable_by_key(count, |(distance, _)| *distance);
        }
        near.into_iter().take(count).map(|(_, contact)| contact).collect()
    }
}

/// Ids that share so many bytes with a key are nearer to it than anybody.
const SHARED_BYTES: usize = 6;

/// Contacts next to a key that no issuer has heard of.
fn invented(target: Key, random: &mut SeededRandom) -> Vec<Contact> {
    (0..K as u32)
        .map(|_| Contact { node: beside(target, random), address: address(random.u64() as u32 % 200_000) })
        .collect()
}

/// An id next to a key.
pub(super) fn beside(target: Key, random: &mut SeededRandom) -> NodeId {
    let mut node: [u8; 32] = random.array();
    node[..SHARED_BYTES].copy_from_slice(&target.0[..SHARED_BYTES]);
    NodeId(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adversaries_are_named_as_a_person_writes_them() {
        for adversary in Adversary::ALL {
            assert_eq!(adversary.name().parse(), Ok(adversary));
            assert_eq!(serde_json::to_value(adversary).unwrap(), adversary.name());
        }
        assert!("friend".parse::<Adversary>().unwrap_err().contains("eclipse"));
    }

    #[test]
    fn a_liar_names_its_accomplices_and_answers_a_ping() {
        let mut random = SeededRandom::new(1);
        let contact = |number: u32| Contact {
            node: beside(Key([number as u8; 32]), &mut SeededRandom::new(1)),
            address: address(number),
        };
        let gang = Gang { members: (0..40).map(contact).collect(), ..Gang::default() };
        let ask = |query| Message::Request(Request { transaction: 7, is_server: false, query }).encode();
        let find = ask(Query::Find { target: Key([9; 32]), alike: 9 });
        let Deed::Instead(Some(answer)) = deed(Adversary::Lying, &gang, &find, &mut random) else { panic!("it lies") };
        let Ok(Message::Answer(Answer { transaction: 7, reply: Reply::Contacts(named) })) = Message::decode(&answer)
        else {
            panic!("it names somebody")
        };
        assert!(named.len() == K && named.contains(&contact(9)));
        assert!(matches!(deed(Adversary::Lying, &gang, &ask(Query::Ping), &mut random), Deed::Honest));
        assert!(matches!(deed(Adversary::Silent, &gang, &ask(Query::Ping), &mut random), Deed::Instead(None)));
    }
}
