//! Bytes of messages and of signed documents: postcard, bounded and exact.
//!
//! A value has one encoding only as far as what is signed goes: signatures are made and checked over the bytes that travelled, never over
//! a value that was encoded again.

use postcard::ser_flavors::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than such a value may have.
    #[error("{len} bytes, at most {max} are read")]
    TooLong {
        /// How many there are.
        len: usize,
        /// How many there may be.
        max: usize,
    },
    /// Not the encoding of such a value.
    #[error("the bytes do not decode")]
    Malformed,
    /// A value, and bytes after it.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
}

/// Encodes a value.
///
/// # Panics
/// Never for the types of this crate: postcard fails only for sequences of unknown length and for writers that fail.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("a vector takes every value of a known length")
}

/// Encodes a value that holds secrets, with room for `more` bytes behind it. The bytes are erased when they are dropped, and as they are
/// never moved to a longer vector, no copy of them stays behind.
///
/// # Panics
/// Never, as [`encode`].
pub fn encode_secret<T: Serialize + ?Sized>(value: &T, more: usize) -> Zeroizing<Vec<u8>> {
    let len = postcard::serialize_with_flavor(value, Size::default()).expect("a counter takes every value");
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + more));
    bytes.resize(len, 0);
    postcard::to_slice(value, &mut bytes).expect("the value was measured");
    bytes
}

/// Decodes a value from exactly these bytes.
///
/// # Errors
/// [`DecodeError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong { len: bytes.len(), max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::Trailing(rest.len())),
        Err(_) => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_bytes_of_a_value_are_one() {
        let bytes = encode(&(7u32, "name"));
        assert_eq!(decode(&bytes, bytes.len()), Ok((7u32, "name".to_owned())));
        let max = bytes.len() - 1;
        assert_eq!(decode::<(u32, String)>(&bytes, max), Err(DecodeError::TooLong { len: bytes.len(), max }));
        assert_eq!(decode::<(u32, String)>(&bytes[..max], 64), Err(DecodeError::Malformed));
        assert_eq!(decode::<u32>(&bytes, 64), Err(DecodeError::Trailing(bytes.len() - 1)));
    }

    #[test]
    fn secrets_are_encoded_as_everything_is_and_once_only() {
        let value = (7u32, "name".repeat(100));
        let bytes = encode_secret(&value, 16);
        assert_eq!(*bytes, encode(&value));
        assert_eq!(bytes.capacity(), bytes.len() + 16);
    }
}
