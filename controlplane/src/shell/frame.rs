//! Messages on a unix stream between our own processes: a length, then that many bytes in postcard's format.
//!
//! ```text
//!  ┌───────────────┬──────────────┐
//!  │ length, 4 LE  │ message …    │      at most 1 MiB; a longer one ends the connection
//!  └───────────────┴──────────────┘
//! ```

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::codec;

/// Longest message.
pub const FRAME_LEN_MAX: usize = 1 << 20;

/// Sends one message. What is sent may hold secrets, so the bytes are erased.
///
/// # Errors
/// When the other end is gone, or the message is too long.
pub async fn send<T: Serialize>(to: &mut (impl tokio::io::AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let bytes = Zeroizing::new(codec::encode(message));
    let len = u32::try_from(bytes.len()).ok().filter(|len| *len as usize <= FRAME_LEN_MAX);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message of more than 1 MiB"))?;
    to.write_all(&len.to_le_bytes()).await?;
    to.write_all(&bytes).await
}

/// Receives one message; `None` when the other end has finished.
///
/// # Errors
/// When the connection breaks in the middle of a message, or what comes is none.
pub async fn receive<T: DeserializeOwned>(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes")));
    }
    let mut bytes = Zeroizing::new(vec![0; len]);
    from.read_exact(&mut bytes).await?;
    let decoded = codec::decode(&bytes, FRAME_LEN_MAX);
    decoded.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn messages_cross_whole_and_end_with_the_connection() {
        let (mut one, mut other) = tokio::io::duplex(64);
        let sender = async {
            send(&mut one, &(1u32, "text".to_owned())).await.unwrap();
            send(&mut one, &(2u32, "x".repeat(500))).await.unwrap();
            drop(one);
        };
        let receiver = async {
            assert_eq!(receive(&mut other).await.unwrap(), Some((1u32, "text".to_owned())));
            assert_eq!(receive(&mut other).await.unwrap(), Some((2u32, "x".repeat(500))));
            assert_eq!(receive::<(u32, String)>(&mut other).await.unwrap(), None);
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_too_long_or_no_message_is_an_error() {
        for bytes in [&u32::MAX.to_le_bytes()[..], &[5, 0, 0, 0, 1], &[1, 0, 0, 0, 0xff]] {
            let (mut one, mut other) = tokio::io::duplex(64);
            one.write_all(bytes).await.unwrap();
            drop(one);
            assert!(receive::<(u32, String)>(&mut other).await.is_err(), "{bytes:?}");
        }
        let (mut one, _other) = tokio::io::duplex(64);
        let long = "x".repeat(FRAME_LEN_MAX + 1);
        assert_eq!(send(&mut one, &long).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
