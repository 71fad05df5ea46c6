//! What two members say about application messages.
//!
//! ```text
//!  sender                                            receiver
//!   Begin{life, pending} ─────────────────────────▶   what is not pending is forgotten, what was taken is kept in mind
//!   Offer{id, topic, len, …, start} ──────────────▶   room?  policy?  taken before?
//!                    ◀───────────────── Want{id, from}           room for all of it: go on from this byte
//!   Piece{id, at, bytes} ─────────────────────────▶
//!                    ◀───────────────── Credit(bytes)            so many bytes were read: as many more may come
//!                    ◀───────────────── Held{id}                 whole; it waits for an application
//!                    ◀───────────────── Taken{id} | Refused{id}  the end of it; on disk here before it is said
//!                    ◀───────────────── PutBack{id}              the room for it is another's now: no pieces, until it is wanted again
//!   Gone{id} ─────────────────────────────────────▶   deleted there, on disk: it need not be kept in mind any more
//!
//!   Datagram{topic, bytes} ───────────────────────▶   into the inbox, or nowhere
//! ```
//!
//! Both sides of a link are sender and receiver, each for itself. After a link was lost `Begin` comes first on the next one, and everything
//! that is not settled is offered again; `Want` says from which byte to go on.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::UnixSecs;

/// Longest body: what one call of the API and one answer carry without being cut.
pub const BODY_LEN_MAX: usize = 16 << 20;
/// Longest body of a datagram: it is one frame of a link that other things wait for.
pub const DATAGRAM_LEN_MAX: usize = 16 << 10;
/// Longest topic: it stands in every offer.
pub const TOPIC_LEN_MAX: usize = 64;
/// Longest body that may come with its offer, before anybody has asked for it.
pub const START_LEN_MAX: usize = 16 << 10;
/// Bytes of one piece: few enough that other messages of the link do not wait long behind one, many enough that their heads do not count.
pub const PIECE_LEN_MAX: usize = 64 << 10;
/// Bytes of bodies that one side may have sent on a link and got no credit for, at most: eight pieces are 5 MB/s over 100 ms, and far below what
/// a link's queue takes, so that the control plane's own messages find room.
pub const WINDOW_MAX: usize = 8 * PIECE_LEN_MAX;
/// The same on any link: what no credit was given for yet, being too little, leaves room for a piece.
pub const WINDOW_MIN: usize = 2 * PIECE_LEN_MAX;
/// Bytes that are read before credit is given: a message about each of many short ones would be as long as they are.
pub const CREDIT_MIN: usize = 32 << 10;
/// What a datagram counts for besides its bytes, so that empty ones have a limit too.
pub const DATAGRAM_OVERHEAD: usize = 128;
/// Offers of one link that are not settled.
pub const OFFERS_MAX: usize = 512;
/// The same of one topic, so that one that nobody reads leaves room for the others.
pub const OFFERS_TOPIC_MAX: usize = 16;
/// Messages that a sender keeps for one peer, and so the most that it may still offer.
pub const PENDING_MAX: usize = 1024;

/// Names a message among all of its sender's. Never given twice, and higher for a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId(pub u64);

/// Bits of an id below the second in which its message was accepted.
const ID_SUB_BITS: u32 = 20;

impl MessageId {
    /// The lowest of all that are given in this second.
    pub const fn first_of(second: UnixSecs) -> Self {
        Self(second.0.saturating_mul(1 << ID_SUB_BITS))
    }

    /// When its message was accepted.
    pub const fn accepted(self) -> UnixSecs {
        UnixSecs(self.0 >> ID_SUB_BITS)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for MessageId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(Self).ok_or("the id of a message is 16 hexadecimal digits")
    }
}

/// What a message is about, in the words of those who use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Topic(String);

/// A text that is no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a topic has 1 to {TOPIC_LEN_MAX} letters, digits, `-`, `_`, `.` and `/`")]
pub struct TopicError;

impl Topic {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The one of messages that name none.
impl Default for Topic {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl TryFrom<String> for Topic {
    type Error = TopicError;

    fn try_from(text: String) -> Result<Self, TopicError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
        if plain && (1..=TOPIC_LEN_MAX).contains(&text.len()) { Ok(Self(text)) } else { Err(TopicError) }
    }
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        text.to_owned().try_into()
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> Self {
        topic.0
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One topic, or with `*` at the end all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicPattern {
    start: String,
    is_open: bool,
}

impl TopicPattern {
    /// Every topic.
    pub const fn any() -> Self {
        Self { start: String::new(), is_open: true }
    }

    /// Whether it means this one.
    pub fn fits(&self, topic: &str) -> bool {
        if self.is_open { topic.starts_with(&self.start) } else { topic == self.start }
    }

    /// Whether it means all that the other one does.
    pub fn covers(&self, other: &Self) -> bool {
        if self.is_open { other.start.starts_with(&self.start) } else { self == other }
    }
}

impl FromStr for TopicPattern {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let (start, is_open) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        if !(is_open && start.is_empty()) {
            start.parse::<Topic>()?;
        }
        Ok(Self { start: start.to_owned(), is_open })
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.start, if self.is_open { "*" } else { "" })
    }
}

/// Bytes of a body, copied as a whole where a list would go byte by byte; the encoding is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Whole)
    }
}

/// Why a receiver does not take a message. It is final: the sender keeps it no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The policy there has not let us send this for as long as it may take a policy to come to everybody.
    Policy,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "the policy at the receiver does not allow it",
        })
    }
}

/// What stands before a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which.
    pub id: MessageId,
    /// What about.
    pub topic: Topic,
    /// Length of the body.
    pub len: u32,
    /// When it was handed to the sender's node, by that one's clock.
    pub sent: UnixSecs,
    /// How long it is still worth something: two clocks need not agree for that.
    pub expires_in_secs: u32,
}

/// A message about messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// First of a sender on a link that has something to offer.
    Begin {
        /// When the sender's outbox was made, in seconds since 1970.
        life: u64,
        /// All that the sender has not settled, in order.
        pending: Vec<MessageId>,
    },
    /// There is this message.
    Offer {
        /// What it is.
        head: Head,
        /// All of the body, if it is short and the window has room; else nothing.
        start: Bytes,
    },
    /// The receiver has room for the whole message.
    Want {
        /// Which.
        id: MessageId,
        /// The first byte that is not there.
        from: u32,
    },
    /// A part of a body.
    Piece {
        /// Of which message.
        id: MessageId,
        /// Place of the first byte.
        at: u32,
        /// At most [`PIECE_LEN_MAX`].
        bytes: Bytes,
    },
    /// So many bytes of bodies were read, and [`DATAGRAM_OVERHEAD`] for each datagram.
    Credit(u32),
    /// It is whole, and waits for an application.
    Held {
        /// Which.
        id: MessageId,
    },
    /// An application has taken it.
    Taken {
        /// Which.
        id: MessageId,
    },
    /// It is not taken, now or later.
    Refused {
        /// Which.
        id: MessageId,
        /// Why.
        why: Refusal,
    },
    /// It will not be offered again: settled, or past its time.
    Gone {
        /// Which.
        id: MessageId,
    },
    /// At most once: nothing is said about it.
    Datagram {
        /// What about.
        topic: Topic,
        /// At most [`DATAGRAM_LEN_MAX`].
        bytes: Bytes,
    },
    /// Of what the receiver had of this one it keeps nothing: another needs the room, or the policy is against it now. It says [`Frame::Want`]
    /// when there is room again.
    PutBack {
        /// Which.
        id: MessageId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn topics_and_their_patterns_say_what_they_mean() {
        for text in ["a", "telemetry/site-a.v1", &"x".repeat(TOPIC_LEN_MAX)] {
            assert_eq!(text.parse::<Topic>().map(String::from), Ok(text.to_owned()));
        }
        for text in ["", "a b", "a*", "ü", "a\n", &"x".repeat(TOPIC_LEN_MAX + 1)] {
            assert_eq!(text.parse::<Topic>(), Err(TopicError), "{text:?}");
        }
        let pattern = |text: &str| text.parse::<TopicPattern>().unwrap();
        for (text, topic, fits) in
            [("a", "a", true), ("a", "ab", false), ("a*", "ab", true), ("a*", "b", false), ("*", "b", true)]
        {
            assert_eq!(pattern(text).fits(topic), fits, "{text} and {topic}");
            assert_eq!(pattern(text).to_string(), text);
        }
        assert!(pattern("a*").covers(&pattern("ab*")) && pattern("*").covers(&pattern("a")));
        assert!(!pattern("ab*").covers(&pattern("a*")) && !pattern("a").covers(&pattern("a*")));
        assert!("a*b".parse::<TopicPattern>().is_err() && "".parse::<TopicPattern>().is_err());
    }

    #[test]
    fn bytes_are_encoded_as_a_list_of_them() {
        let list = (0..=255).collect::<Vec<u8>>();
        let bytes = codec::encode(&Bytes(list.clone()));
        assert_eq!(bytes, codec::encode(&list));
        assert_eq!(codec::decode(&bytes, bytes.len()), Ok(Bytes(list)));
        assert!(codec::decode::<Bytes>(&[5, 1], 9).is_err());
    }

    #[test]
    fn a_topic_from_a_link_is_judged_as_one_from_a_person() {
        let bytes = codec::encode(&("a b".to_owned(), Bytes::default()));
        assert!(codec::decode::<(Topic, Bytes)>(&bytes, 99).is_err());
    }

    #[test]
    fn ids_are_read_back_from_their_text() {
        let id = MessageId(0x0012_3456_789a_bcde);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "12", "+012345678abcdef", "0123456789abcdefa", "012345678abcdefg"] {
            assert!(wrong.parse::<MessageId>().is_err(), "{wrong}");
        }
    }
}
