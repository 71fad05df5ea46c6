//! Messages on a control stream.
//!
//! Each side opens one unidirectional stream and says there all that it has to say, in order:
//!
//! ```text
//! +--------+----------------+-------------+----------------+-------------+ - -
//! | type=1 |   length (32)  | message     |   length (32)  | message     |
//! +--------+----------------+-------------+----------------+-------------+ - -
//!  once      big-endian, bytes of the message
//! ```
//!
//! Two streams rather than one of both directions, because the accepting side may speak first (at 0.5 RTT), and can open a stream of its
//! own but not answer on one that it has not seen. Streams of other types are refused with a code, and the link goes on: a later version
//! may have more of them.

/// Longest message.
pub const MESSAGE_LEN_MAX: usize = 1 << 20;
/// Longest message from somebody whose certificate was not shown: requests to join or renew are some kilobytes.
pub(super) const STRANGER_MESSAGE_LEN_MAX: usize = 64 << 10;

/// First byte of a control stream.
pub(super) const STREAM_TYPE_CONTROL: u8 = 1;

const LENGTH_LEN: usize = 4;

/// The peer announces a message that is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What precedes a message of `len` bytes, which is at most [`MESSAGE_LEN_MAX`].
pub(super) fn header(len: usize) -> [u8; LENGTH_LEN] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// Puts messages together from the pieces of a stream. Holds what arrived, never what was only announced.
#[derive(Debug)]
pub(super) struct Reader {
    len_max: usize,
    length: [u8; LENGTH_LEN],
    length_have: usize,
    message: Vec<u8>,
}

impl Reader {
    pub(super) fn new(len_max: usize) -> Self {
        Self { len_max, length: [0; LENGTH_LEN], length_have: 0, message: Vec::new() }
    }

    /// Bytes of the message that is not complete yet.
    pub(super) fn held(&self) -> usize {
        self.message.len()
    }

    /// Takes from `piece` up to the end of a message, and returns that message when it is complete.
    pub(super) fn take(&mut self, piece: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        while self.length_have < LENGTH_LEN {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(None) };
            self.length[self.length_have] = byte;
            self.length_have += 1;
            *piece = rest;
        }
        let len = usize::try_from(u32::from_be_bytes(self.length)).unwrap_or(usize::MAX);
        if len > self.len_max {
            return Err(TooLong);
        }
        let (now, rest) = piece.split_at(piece.len().min(len - self.message.len()));
        self.message.extend_from_slice(now);
        *piece = rest;
        if self.message.len() < len {
            return Ok(None);
        }
        self.length_have = 0;
        Ok(Some(std::mem::take(&mut self.message)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(reader: &mut Reader, mut piece: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut messages = Vec::new();
        loop {
            match reader.take(&mut piece)? {
                Some(message) => messages.push(message),
                None => return Ok(messages),
            }
        }
    }

    #[test]
    fn a_message_of_the_limit_is_read_and_one_byte_more_refused_at_its_length() {
        let mut reader = Reader::new(8);
        let whole = [&header(8)[..], &[7; 8]].concat();
        assert_eq!(read_all(&mut reader, &whole), Ok(vec![vec![7; 8]]));
        assert_eq!(read_all(&mut reader, &header(9)), Err(TooLong));
        assert_eq!(read_all(&mut Reader::new(MESSAGE_LEN_MAX), &[0xff; 4]), Err(TooLong));
    }

    #[test]
    fn what_is_only_announced_takes_no_memory() {
        let mut reader = Reader::new(MESSAGE_LEN_MAX);
        assert_eq!(read_all(&mut reader, &[&header(MESSAGE_LEN_MAX)[..], b"ab"].concat()), Ok(vec![]));
        assert_eq!(reader.held(), 2);
        assert!(reader.message.capacity() < 64);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1usize..50,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|m| [&header(m.len())[..], m].concat()).collect();
            let mut reader = Reader::new(40);
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                read.extend(read_all(&mut reader, piece).unwrap());
            }
            prop_assert_eq!(read, messages);
            prop_assert_eq!(reader.held(), 0);
        }
    }
}
