//! Messages to bytes and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MESSAGE_LEN_MAX, VERSION};

/// Bytes before the body: version and request id.
pub const HEADER_LEN: usize = 6;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header.
    #[error("{0} bytes are too few for a message")]
    Short(usize),
    /// Another version of the message set.
    #[error(
        "message set version {theirs} is not spoken here, this program speaks {VERSION}: upgrade the older program"
    )]
    Version {
        /// The version in the header.
        theirs: u16,
        /// The request id, for the answer.
        id: u32,
    },
    /// The body is not a message of this set.
    #[error("the body does not decode: {why}")]
    Body {
        /// What the decoder said.
        why: String,
        /// The request id, for the answer.
        id: u32,
    },
    /// Bytes follow the body.
    #[error("{count} bytes follow the message")]
    Trailing {
        /// How many.
        count: usize,
        /// The request id, for the answer.
        id: u32,
    },
}

/// A message that is longer than [`MESSAGE_LEN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is over the limit of {MESSAGE_LEN_MAX}")]
pub struct TooLong(pub usize);

/// The bytes of one message.
///
/// # Errors
/// [`TooLong`].
pub fn encode<T: Serialize>(id: u32, message: &T) -> Result<Vec<u8>, TooLong> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    let bytes = postcard::to_extend(message, bytes).map_err(|_| TooLong(usize::MAX))?;
    if bytes.len() > MESSAGE_LEN_MAX { Err(TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Writes one message to the beginning of `buffer`, and nowhere else: for messages whose bytes the caller has to erase. Returns its length.
///
/// # Errors
/// [`TooLong`] when it is longer than `buffer`, which then holds a part of it.
pub fn encode_to<T: Serialize>(buffer: &mut [u8], id: u32, message: &T) -> Result<usize, TooLong> {
    let too_long = || {
        let body = postcard::experimental::serialized_size(message).unwrap_or(usize::MAX - HEADER_LEN);
        TooLong(HEADER_LEN + body)
    };
    let (header, body) = buffer.split_first_chunk_mut::<HEADER_LEN>().ok_or_else(too_long)?;
    let [v0, v1] = VERSION.to_le_bytes();
    let [i0, i1, i2, i3] = id.to_le_bytes();
    *header = [v0, v1, i0, i1, i2, i3];
    let body_len = postcard::to_slice(message, body).map_err(|_| too_long())?.len();
    Ok(HEADER_LEN + body_len)
}

/// The message in `bytes`, and its request id.
///
/// # Errors
/// [`DecodeError`]; nothing of a message that is not whole and exact is used.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(u32, T), DecodeError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Err(DecodeError::Short(bytes.len()));
    };
    let [v0, v1, id @ ..] = *header;
    let id = u32::from_le_bytes(id);
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs != VERSION {
        return Err(DecodeError::Version { theirs, id });
    }
    match postcard::take_from_bytes::<T>(body) {
        Ok((message, [])) => Ok((id, message)),
        Ok((_, rest)) => Err(DecodeError::Trailing { count: rest.len(), id }),
        Err(error) => Err(DecodeError::Body { why: error.to_string(), id }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::message::{
        AdmissionKey, Incarnation, Install, Offer, ReservationId, Route, Secret, SessionId, Target,
    };
    use crate::api::{Reply, Request};

    fn install() -> Request {
        Request::Install(Box::new(Install {
            session: SessionId(7),
            reservation: ReservationId(u64::MAX),
            incarnation: Incarnation(3),
            peer: Offer {
                incarnation: Incarnation(4),
                salt: [9; 16],
                indices: vec![0, u32::MAX],
                has_aes: true,
                lane_ports: 0,
            },
            secret: Secret::new([0xa5; 32]),
            initiator: true,
            endpoint: "[2001:db8::1]:4646".parse().unwrap(),
            sources: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()],
            datagram_len_max: 1452,
            inner_mtu: 1420,
            rate: None,
            activate: true,
            idle_after_s: 0,
        }))
    }

    fn admission() -> Request {
        let keys = vec![AdmissionKey::new([0xa5; 16]), AdmissionKey::new([0xa6; 16])];
        Request::SetAdmission { keys, node: [1; 32], skew_secs: -70 }
    }

    #[test]
    fn messages_survive_the_round_trip() {
        let route = Route { prefix: "10.1.0.0/16".parse().unwrap(), target: Target::Session(SessionId(1)) };
        for request in [
            Request::Hello { name: "test".into() },
            Request::Reserve { lanes: 16 },
            install(),
            Request::StageRoutes(vec![route; 3]),
            Request::Counters,
            admission(),
        ] {
            let bytes = encode(77, &request).unwrap();
            let (id, back) = decode::<Request>(&bytes).unwrap();
            assert_eq!((id, encode(77, &back).unwrap()), (77, bytes), "{request:?}");
        }
    }

    #[test]
    fn a_message_is_the_same_in_a_buffer_of_the_callers() {
        let bytes = encode(5, &install()).unwrap();
        let mut buffer = vec![0xee; bytes.len() + 1];
        assert_eq!(encode_to(&mut buffer, 5, &install()), Ok(bytes.len()));
        assert_eq!(buffer, [&bytes[..], &[0xee]].concat());
        for short in [bytes.len() - 1, HEADER_LEN, HEADER_LEN - 1, 0] {
            assert_eq!(encode_to(&mut buffer[..short], 5, &install()), Err(TooLong(bytes.len())));
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let Request::Install(install) = install() else { unreachable!() };
        let shown = format!("{install:?}");
        assert!(shown.contains("Secret(…)") && !shown.contains("165") && !shown.contains("a5a5"), "{shown}");
        let shown = format!("{:?}", admission());
        assert!(shown.contains("AdmissionKey(…)") && !shown.contains("165") && !shown.contains("a5a5"), "{shown}");
    }

    #[test]
    fn what_is_not_exactly_one_message_is_refused() {
        let good = encode(5, &install()).unwrap();
        for len in 0..good.len() {
            assert!(decode::<Request>(&good[..len]).is_err(), "the first {len} bytes");
        }
        let longer = [good.clone(), vec![0]].concat();
        assert_eq!(decode::<Request>(&longer).unwrap_err(), DecodeError::Trailing { count: 1, id: 5 });
        let mut newer = good;
        newer[..2].copy_from_slice(&(VERSION + 1).to_le_bytes());
        assert_eq!(decode::<Request>(&newer).unwrap_err(), DecodeError::Version { theirs: VERSION + 1, id: 5 });
    }

    #[test]
    fn a_prefix_with_host_bits_does_not_decode() {
        let route = Route { prefix: "10.1.0.0/16".parse().unwrap(), target: Target::Local };
        let mut bytes = encode(0, &Request::StageRoutes(vec![route])).unwrap();
        assert!(decode::<Request>(&bytes).is_ok());
        let host = bytes.windows(4).position(|w| w == [10, 1, 0, 0]).unwrap() + 3;
        bytes[host] = 1;
        assert!(matches!(decode::<Request>(&bytes), Err(DecodeError::Body { .. })));
    }

    #[test]
    fn the_length_limit_holds_at_the_limit() {
        let name = |len: usize| Request::Hello { name: "x".repeat(len) };
        let overhead = encode(0, &name(MESSAGE_LEN_MAX / 2)).unwrap().len() - MESSAGE_LEN_MAX / 2;
        assert!(encode(0, &name(MESSAGE_LEN_MAX - overhead)).is_ok());
        assert_eq!(encode(0, &name(MESSAGE_LEN_MAX - overhead + 1)), Err(TooLong(MESSAGE_LEN_MAX + 1)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0usize..200, value in any::<u8>()) {
            let mut bytes = encode(1, &install()).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = decode::<Request>(&bytes);
        }
    }
}
