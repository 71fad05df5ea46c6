//! Messages on a unix stream between our own processes: a length, then that many bytes in postcard's format.
//!
//! ```text
//!  ┌───────────────┬──────────────┐
//!  │ length, 4 LE  │ message …    │      each direction has its limit; a longer message is not sent
//!  └───────────────┴──────────────┘
//! ```

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use zeroize::Zeroizing;

use crate::codec;

/// Bytes of the length.
const HEAD_LEN: usize = 4;

/// A message that its direction does not take. Nothing of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {len} bytes, of which {max} are possible")]
pub struct TooLong {
    /// How long it is.
    pub len: usize,
    /// How long it may be.
    pub max: usize,
}

/// Listens at a path, for our own user alone. One that was killed left its socket behind; that no other process of its kind runs is for the caller
/// to know.
///
/// # Errors
/// Of the file system.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A message with its length. What is sent may hold secrets, so the bytes are erased when they are dropped.
///
/// # Errors
/// [`TooLong`].
pub fn encode<T: Serialize>(message: &T, len_max: usize) -> Result<Zeroizing<Vec<u8>>, TooLong> {
    let message = codec::encode_secret(message, 0);
    let too_long = TooLong { len: message.len(), max: len_max };
    let len = u32::try_from(message.len()).ok().filter(|len| *len as usize <= len_max).ok_or(too_long)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_LEN + message.len()));
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&message);
    Ok(bytes)
}

/// Sends one message.
///
/// # Errors
/// When the other end is gone, or the message is too long.
pub async fn send<T: Serialize>(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &T,
    len_max: usize,
) -> io::Result<()> {
    let bytes = encode(message, len_max).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    to.write_all(&bytes).await
}

/// Receives one message; `None` when the other end has finished.
///
/// # Errors
/// When the connection breaks in the middle of a message, or what comes is none.
pub async fn receive<T: DeserializeOwned>(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    len_max: usize,
) -> io::Result<Option<T>> {
    let mut len = [0; HEAD_LEN];
    match from.read_exact(&mut len).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > len_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, TooLong { len, max: len_max }));
    }
    let mut bytes = Zeroizing::new(vec![0; len]);
    from.read_exact(&mut bytes).await?;
    let decoded = codec::decode(&bytes, len_max);
    decoded.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN_MAX: usize = 1000;

    #[tokio::test(flavor = "current_thread")]
    async fn messages_cross_whole_and_end_with_the_connection() {
        let (mut one, mut other) = tokio::io::duplex(64);
        let sender = async {
            send(&mut one, &(1u32, "text".to_owned()), LEN_MAX).await.unwrap();
            send(&mut one, &(2u32, "x".repeat(500)), LEN_MAX).await.unwrap();
            drop(one);
        };
        let receiver = async {
            assert_eq!(receive(&mut other, LEN_MAX).await.unwrap(), Some((1u32, "text".to_owned())));
            assert_eq!(receive(&mut other, LEN_MAX).await.unwrap(), Some((2u32, "x".repeat(500))));
            assert_eq!(receive::<(u32, String)>(&mut other, LEN_MAX).await.unwrap(), None);
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_too_long_or_no_message_is_an_error() {
        for bytes in [&u32::MAX.to_le_bytes()[..], &[5, 0, 0, 0, 1], &[1, 0, 0, 0, 0xff]] {
            let (mut one, mut other) = tokio::io::duplex(64);
            one.write_all(bytes).await.unwrap();
            drop(one);
            assert!(receive::<(u32, String)>(&mut other, LEN_MAX).await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_of_the_limit_crosses_and_one_byte_more_is_not_sent() {
        // Two bytes of the encoding are the text's own length.
        let (limit, over) = ("x".repeat(LEN_MAX - 2), "x".repeat(LEN_MAX - 1));
        let (mut one, mut other) = tokio::io::duplex(4 * LEN_MAX);
        let refused = encode(&over, LEN_MAX);
        assert_eq!(refused, Err(TooLong { len: LEN_MAX + 1, max: LEN_MAX }));
        assert_eq!(send(&mut one, &over, LEN_MAX).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        send(&mut one, &limit, LEN_MAX).await.unwrap();
        send(&mut one, &over, LEN_MAX + 1).await.unwrap();
        assert_eq!(receive(&mut other, LEN_MAX).await.unwrap(), Some(limit));
        assert_eq!(receive::<String>(&mut other, LEN_MAX).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
