//! What bytes were for: told by the first bytes of a message, as `dht/message.rs` writes them.

/// What somebody wanted of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To know whether it is there.
    Ping,
    /// To hear of others: for a table, or for the servers of a region.
    Find,
    /// A record.
    Get,
    /// That it keeps a record.
    Put,
    /// An answer.
    Answer,
}

/// All of them.
pub(super) const PURPOSES: [(Purpose, &str); 5] = [
    (Purpose::Ping, "pings"),
    (Purpose::Find, "questions for others"),
    (Purpose::Get, "questions for records"),
    (Purpose::Put, "offers of records"),
    (Purpose::Answer, "answers"),
];

impl Purpose {
    /// Of a message as it is sent.
    pub(super) fn of(message: &[u8]) -> Self {
        let Some((0, rest)) = message.split_first().map(|(first, rest)| (*first, rest)) else { return Self::Answer };
        // The transaction is a varint: its last byte has no high bit. Then whether it is a server, and the number of the question.
        let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap_or(0);
        match rest.get(end + 2) {
            Some(0) => Self::Ping,
            Some(1) => Self::Find,
            Some(2) => Self::Get,
            _ => Self::Put,
        }
    }
}

/// What is counted for each purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Handshakes that it took, and bytes of messages, as each counts once.
    pub(super) handshakes: [u64; PURPOSES.len()],
    pub(super) bytes: [u64; PURPOSES.len()],
}

impl Tally {
    /// What came since.
    pub(super) fn since(&self, before: &Self) -> Self {
        let less =
            |now: &[u64; PURPOSES.len()], then: &[u64; PURPOSES.len()]| std::array::from_fn(|at| now[at] - then[at]);
        Self { handshakes: less(&self.handshakes, &before.handshakes), bytes: less(&self.bytes, &before.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use weir_controlplane::dht::message::{Answer, Message, Query, Reply, Request};
    use weir_controlplane::dht::place::Key;
    use weir_controlplane::dht::record::Kind;

    use super::*;

    #[test]
    fn a_message_is_known_by_its_first_bytes() {
        for transaction in [0, 0x80, u64::MAX] {
            let request = |query| Message::Request(Request { transaction, is_server: true, query }).encode();
            assert_eq!(Purpose::of(&request(Query::Ping)), Purpose::Ping);
            assert_eq!(Purpose::of(&request(Query::Find { target: Key([0; 32]), alike: 0 })), Purpose::Find);
            let get = Query::Get { kind: Kind::Node, key: Key([0; 32]), alike: 0 };
            assert_eq!(Purpose::of(&request(get)), Purpose::Get);
            let answer = Message::Answer(Answer { transaction, reply: Reply::Pong }).encode();
            assert_eq!(Purpose::of(&answer), Purpose::Answer);
        }
        assert_eq!(Purpose::of(&[]), Purpose::Answer);
    }
}
