//! What nodes ask each other, and what they answer: one message a datagram, or a stream's frame when it is longer.
//!
//! ```text
//!  Request  0 │ transaction │ is server │ Ping 0 │ Find 1: target (32), alike │ Get 2: kind, key (32), alike
//!                                      │ Put 3: record, replaces?
//!  Answer   1 │ transaction │ Pong 0 │ Contacts 1: at most 20 │ Record 2: record │ Stored 3 │ Refused 4: why
//! ```
//!
//! In postcard's format; variants are only ever appended. Who sends is known from the session that a message comes by and stands nowhere in it.

use serde::{Deserialize, Serialize};

use super::place::{Contact, Key};
use super::record::{ENVELOPE_LEN_MAX, Kind, RecordError, SignedRecord};
use super::store::PutError;
use crate::codec::{self, DecodeError};
use crate::pki::statement;

/// Contacts in one answer, and in one bucket of a table (Maymounkov, Mazières, §2.2).
pub const K: usize = 20;
/// Longest message: the longest record, and what stands around it.
pub const MESSAGE_LEN_MAX: usize = ENVELOPE_LEN_MAX + statement::BODY_LEN_MAX + 256;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Somebody asks.
    Request(Request),
    /// Somebody answers.
    Answer(Answer),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Random; the answer repeats it.
    pub transaction: u64,
    /// Whether the one who asks answers requests itself.
    pub is_server: bool,
    /// The question.
    pub query: Query,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// Are you there?
    Ping,
    /// Whom do you know nearest to this place?
    Find {
        /// The place.
        target: Key,
        /// Leading bits in common with it from which on nodes are alike to the one who asks: of those any will do, not the nearest first.
        alike: u8,
    },
    /// What lies there, or who is nearest to it?
    Get {
        /// Of which kind.
        kind: Kind,
        /// Where.
        key: Key,
        /// As in [`Self::Find`].
        alike: u8,
    },
    /// Keep this.
    Put {
        /// The record.
        record: SignedRecord,
        /// The sequence that it is to replace, where that matters to the one who puts it.
        replaces: Option<u64>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request.
    pub transaction: u64,
    /// The answer.
    pub reply: Reply,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Here.
    Pong,
    /// Those who are nearest, of those who are known.
    Contacts(Vec<Contact>),
    /// What lies there.
    Record(SignedRecord),
    /// It is kept.
    Stored,
    /// It is not done.
    Refused(Refusal),
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The one who is asked answers no such requests.
    NotServer,
    /// Too many requests.
    Busy,
    /// The record is not to be believed.
    Record,
    /// The signer is no member.
    NotMember,
    /// It has ended.
    Expired,
    /// A newer one was here, of this sequence.
    Old(u64),
    /// Another is here than the one to be replaced.
    Conflict(Option<u64>),
    /// The signer has too much here.
    Quota,
    /// All that is here lies nearer.
    Full,
}

impl From<&PutError> for Refusal {
    fn from(error: &PutError) -> Self {
        match error {
            PutError::Record(RecordError::Statement(_)) => Self::NotMember,
            PutError::Record(RecordError::Expired(_)) => Self::Expired,
            PutError::Record(_) => Self::Record,
            PutError::Old { highest, .. } => Self::Old(*highest),
            PutError::Conflict { have, .. } => Self::Conflict(*have),
            PutError::Quota(_) => Self::Quota,
            PutError::Full => Self::Full,
        }
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// They do not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// More contacts than an answer may have.
    #[error("{0} contacts, at most {K}")]
    Contacts(usize),
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// The message of these bytes.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let message = codec::decode(bytes, MESSAGE_LEN_MAX)?;
        match &message {
            Self::Answer(Answer { reply: Reply::Contacts(contacts), .. }) if contacts.len() > K => {
                Err(MessageError::Contacts(contacts.len()))
            }
            Self::Answer(_) | Self::Request(_) => Ok(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture};
    use super::super::record::VALUE_LEN_MAX;
    use super::*;
    use crate::pki::id::NodeId;

    fn answer(reply: Reply) -> Message {
        Message::Answer(Answer { transaction: 9, reply })
    }

    #[test]
    fn every_message_travels_whole_and_the_longest_fits() {
        let record = Fixture::new().record(1, Kind::Node, u64::MAX, &[7; VALUE_LEN_MAX]);
        let request = |query| Message::Request(Request { transaction: u64::MAX, is_server: true, query });
        let (key, contacts) = (Key([7; 32]), vec![fixture::contact(NodeId([1; 32]), 1); K]);
        let messages = [
            request(Query::Ping),
            request(Query::Find { target: key, alike: 255 }),
            request(Query::Get { kind: Kind::Overlay, key, alike: 9 }),
            request(Query::Put { record: record.clone(), replaces: Some(u64::MAX) }),
            answer(Reply::Pong),
            answer(Reply::Contacts(contacts)),
            answer(Reply::Record(record)),
            answer(Reply::Stored),
            answer(Reply::Refused(Refusal::Conflict(Some(7)))),
        ];
        for message in messages {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    /// As the page of formats shows it.
    #[test]
    fn a_ping_and_its_answer_have_these_bytes() {
        let ping = Message::Request(Request { transaction: 0x81, is_server: true, query: Query::Ping });
        assert_eq!(ping.encode(), [0, 0x81, 0x01, 1, 0]);
        assert_eq!(answer(Reply::Pong).encode(), [1, 9, 0]);
        let get = Query::Get { kind: Kind::Zone, key: Key([7; 32]), alike: 9 };
        let get = Message::Request(Request { transaction: 1, is_server: false, query: get }).encode();
        assert_eq!((&get[..5], get.len()), (&[0, 1, 0, 2, 2][..], 38));
    }

    #[test]
    fn one_contact_too_many_is_refused() {
        let contact = fixture::contact(NodeId([1; 32]), 1);
        let bytes = answer(Reply::Contacts(vec![contact; K + 1])).encode();
        assert_eq!(Message::decode(&bytes), Err(MessageError::Contacts(K + 1)));
        let long = vec![0; MESSAGE_LEN_MAX + 1];
        let too_long = DecodeError::TooLong { len: MESSAGE_LEN_MAX + 1, max: MESSAGE_LEN_MAX };
        assert_eq!(Message::decode(&long), Err(MessageError::Decode(too_long)));
    }
}
