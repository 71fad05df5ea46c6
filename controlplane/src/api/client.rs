//! The client: one call, one connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::call::{Call, Method};
use super::types::Error;
use crate::issuer::BACKUP_LEN_MAX;

/// How long a call may take: longer than the server waits for the node.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest answer in bytes: a hundred thousand members, or the longest backup in base64.
pub const ANSWER_LEN_MAX: usize = BACKUP_LEN_MAX / 3 * 4 + 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("weir does not answer at {} ({source}): start it with `weir run`, or name its configuration with --config", .socket.display())]
    NotRunning {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket's directory is closed to this user.
    #[error("this user may not open {}: ask as root, or as a user that the directory lets in", .0.display())]
    NoEntry(PathBuf),
    /// The node says no.
    #[error("{}: {}", .0.message, .0.remedy)]
    Refused(Error),
    /// No answer in time.
    #[error("no answer within {} s: see weir's log for what it is busy with", CALL_TIMEOUT.as_secs())]
    TooSlow,
    /// The connection or the answer broke.
    #[error("the answer of {} makes no sense ({what}): is it weir of the same version?", .socket.display())]
    Broken {
        /// Who answered.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Makes a call and reads the answer as JSON.
///
/// # Errors
/// [`ClientError`].
pub async fn call(socket: &Path, call: &Call) -> Result<Value, ClientError> {
    match timeout(CALL_TIMEOUT, exchange(socket, call)).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::TooSlow),
    }
}

/// Reads an answer as what the table says that it is.
///
/// # Errors
/// [`ClientError::Broken`].
pub fn read<A: DeserializeOwned>(socket: &Path, answer: &Value) -> Result<A, ClientError> {
    A::deserialize(answer).map_err(|error| broken(socket, error))
}

fn broken(socket: &Path, what: impl ToString) -> ClientError {
    ClientError::Broken { socket: socket.into(), what: what.to_string() }
}

async fn exchange(socket: &Path, call: &Call) -> Result<Value, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NoEntry(socket.into()),
        _ => ClientError::NotRunning { socket: socket.into(), source },
    })?;
    let broken = |what: &dyn ToString| broken(socket, what.to_string());
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let (route, arguments) = (call.route(), call.arguments());
    let (uri, body) = match route.method {
        Method::Get => (format!("{}{}", route.path, query(&arguments)), Bytes::new()),
        Method::Post => (route.path.to_owned(), Bytes::from(arguments.to_string())),
    };
    // A call without arguments has no body; `null` is none.
    let body = if arguments.is_null() { Bytes::new() } else { body };
    let request = hyper::Request::builder()
        .method(route.method.name())
        .uri(uri)
        .header(header::HOST, "weir")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| broken(&error))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| broken(&error));
        }
        match serde_json::from_slice::<Error>(&body) {
            Ok(error) => Err(ClientError::Refused(error)),
            Err(_) => Err(broken(&format!("status {status}"))),
        }
    };
    tokio::pin!(answered);
    // The connection moves the bytes; it ends by itself when the answer is there, and may end before we have looked at that.
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        _ = connection => answered.await,
    }
}

/// Arguments as a query; what is left out stays out.
fn query(arguments: &Value) -> String {
    let Value::Object(arguments) = arguments else { return String::new() };
    let pairs = arguments.iter().filter_map(|(key, value)| {
        let text = match value {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(format!("{key}={}", percent_encoded(&text)))
    });
    let pairs: Vec<_> = pairs.collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// All but unreserved characters (RFC 3986 §2.3) in percent signs.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_it_was_given() {
        let arguments = serde_json::json!({ "src": "fd00::1", "dst": "a b&c=ü", "port": 443, "proto": null });
        assert_eq!(query(&arguments), "?dst=a%20b%26c%3D%C3%BC&port=443&src=fd00%3A%3A1");
        assert_eq!(query(&Value::Null), "");
        assert_eq!(query(&serde_json::json!({ "after": null })), "");
    }
}
