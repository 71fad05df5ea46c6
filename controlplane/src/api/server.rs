//! The server: takes calls from the socket and hands them to the node.
//!
//! A connection carries one call. It has so much time to send it, the node so much to answer, and there are only so many connections at a
//! time; more wait in the kernel's queue. Who has no role at all is told so in one of a few places of their own, and takes none of the
//! others'. Nothing here knows what a call means.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{Request as HttpRequest, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::access::{Access, Caller};
use super::call::{Answer, Call, Input, Method, ROUTES, Route};
use super::types::{Error, ErrorCode, Role};
use crate::mail::wire::BODY_LEN_MAX;

/// Permissions of the socket: anybody may connect, and is judged by what the kernel says of him.
const SOCKET_MODE: u32 = 0o666;
/// Connections of callers without a role at a time; more are closed unheard. Ours: enough to tell a person what is missing.
pub const STRANGERS_MAX: usize = 4;
/// Where messages are sent, whose bodies may be longer than other calls'.
const MESSAGES_PATH: &str = "/v1/messages";
/// Calls that wait for the node. It answers most in microseconds.
pub const QUEUE_LEN: usize = 64;
/// How long to leave the socket alone after the system could not give us a connection: out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// How much one caller may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Bytes of a body: a policy of ten thousand rules, a bundle with all its versions.
    pub body_len: usize,
    /// Bytes of the body of a call that sends a message: the longest in base64, and what stands around it.
    pub message_len: usize,
    /// To send the whole request.
    pub request: Duration,
    /// For the node to answer: joining goes through the whole network.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            body_len: 4 << 20,
            message_len: BODY_LEN_MAX.div_ceil(3) * 4 + 4096,
            request: Duration::from_secs(5),
            answer: Duration::from_secs(60),
        }
    }
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub call: Call,
    /// Who asks, for the log.
    pub caller: Caller,
    /// Where the answer goes. Nobody may be there any more.
    pub answer: oneshot::Sender<Result<Answer, Error>>,
}

/// Opens the socket in place of one that nobody listens on any more.
///
/// # Errors
/// When somebody listens there, or the directory does not allow it.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                let message = "somebody listens here already: is `weir run` running? Two networks need two instances";
                return Err(named(io::Error::new(io::ErrorKind::AddrInUse, message)));
            }
            fs::remove_file(path).map_err(named)?;
        }
        Ok(_) => return Err(named(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket: move it away"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(error)),
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(named)?;
    Ok(listener)
}

#[derive(Debug)]
struct Shared {
    calls: mpsc::Sender<Request>,
    limits: Limits,
}

/// Serves the socket for as long as the future is polled. `calls` is the queue to the node.
pub async fn serve(listener: UnixListener, access: Access, calls: mpsc::Sender<Request>, limits: Limits) {
    let shared = Arc::new(Shared { calls, limits });
    let router = router(&shared);
    let free = Arc::new(Semaphore::new(limits.connections));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the API socket gives no connection");
                // A timer that nothing ends early.
                let _ = timeout(ACCEPT_RETRY, std::future::pending::<()>()).await;
                continue;
            }
        };
        let Ok(credentials) = stream.peer_cred() else { continue };
        let caller = Caller { uid: credentials.uid(), gid: credentials.gid() };
        let role = access.role(caller);
        let permit = match role {
            // Nobody closes this semaphore.
            Some(_) => Arc::clone(&free).acquire_owned().await.ok(),
            None => Arc::clone(&strangers).try_acquire_owned().ok(),
        };
        let Some(permit) = permit else { continue };
        let router = router.clone();
        tokio::spawn(async move {
            connection(stream, router, (caller, role), limits).await;
            drop(permit);
        });
    }
}

async fn connection(stream: UnixStream, router: Router, (caller, role): (Caller, Option<Role>), limits: Limits) {
    let service = TowerToHyperService::new(router.layer(Extension((caller, role))));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // The last part is for those who do not read their answer.
    let whole = match role {
        Some(_) => limits.request * 2 + limits.answer + limits.request,
        None => limits.request,
    };
    match timeout(whole, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, uid = caller.uid, "an API connection broke"),
        Err(_) => tracing::debug!(uid = caller.uid, "an API connection took too long"),
    }
}

fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let filter = match route.method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
        };
        let handler = move |State(shared): State<Arc<Shared>>,
                            Extension((caller, role)): Extension<(Caller, Option<Role>)>,
                            request: HttpRequest<Body>| async move {
            match answer(route, &shared, caller, role, request).await {
                Ok(answer) => Json(answer).into_response(),
                Err(error) => error.into_response(),
            }
        };
        router = router.route(route.path, on(filter, handler));
    }
    router
        .fallback(async || failure(ErrorCode::NotFound, "no such path", "docs/openapi.json has all of them"))
        .method_not_allowed_fallback(async || {
            failure(ErrorCode::Method, "this path has another method", "docs/openapi.json says which")
        })
        .with_state(Arc::clone(shared))
}

async fn answer(
    route: &'static Route,
    shared: &Shared,
    caller: Caller,
    role: Option<Role>,
    request: HttpRequest<Body>,
) -> Result<Answer, Error> {
    if role.is_none_or(|role| role < route.role) {
        let has = role.map_or("no role".into(), |role| format!("the role {role}"));
        let message = format!("{} needs the role {}; user {} has {has}", route.name, route.role, caller.uid);
        let remedy =
            format!("ask as root, or add the user to api.{} in weir's configuration and restart it", route.role);
        return Err(failure(ErrorCode::Forbidden, message, remedy));
    }
    let (head, body) = request.into_parts();
    let is_message = route.path == MESSAGES_PATH && matches!(route.method, Method::Post);
    let body_len = if is_message { shared.limits.message_len } else { shared.limits.body_len };
    let Ok(body) = timeout(shared.limits.request, Limited::new(body, body_len).collect()).await else {
        return Err(failure(ErrorCode::TooSlow, "the request did not come in time", "send it in one piece"));
    };
    let body = body.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            let message = format!("the body is longer than {body_len} bytes");
            return failure(ErrorCode::TooLarge, message, "send less");
        }
        failure(ErrorCode::BadRequest, format!("the body broke off: {error}"), "send all of it")
    })?;
    let input = Input { method: route.method, uri: &head.uri, body: &body.to_bytes() };
    let call = (route.read)(input).map_err(|what| {
        let remedy = format!("docs/openapi.json says what {} takes", route.name);
        failure(ErrorCode::BadRequest, what, remedy)
    })?;
    let (sender, receiver) = oneshot::channel();
    shared.calls.try_send(Request { call, caller, answer: sender }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => {
            failure(ErrorCode::Busy, format!("{QUEUE_LEN} calls wait already"), "ask again in a second, and less often")
        }
        mpsc::error::TrySendError::Closed(_) => stopping(),
    })?;
    match timeout(shared.limits.answer, receiver).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(stopping()),
        Err(_) => {
            let message = format!("no answer within {} s", shared.limits.answer.as_secs());
            Err(failure(ErrorCode::NoAnswer, message, "see weir's log for what it is busy with, then ask again"))
        }
    }
}

fn stopping() -> Error {
    failure(ErrorCode::Busy, "weir is stopping", "ask again when it has started")
}

/// An error in the words of the API.
pub fn failure(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error { code, message: message.into(), remedy: remedy.into() }
}

impl ErrorCode {
    /// As HTTP has it (RFC 9110 §15).
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoAnswer => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.code.status();
        // What was not read of the request would be taken for the next one.
        (status, [(header::CONNECTION, "close")], Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests;
