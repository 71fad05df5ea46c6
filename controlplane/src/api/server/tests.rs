use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::api::client::{self, ClientError};
use crate::api::messages::SendRequest;
use crate::api::types::{Done, InviteRequest, Invited, Moment, PingRequest};
use crate::config::{self, Principal};
use crate::time::UnixSecs;

/// A socket path of this test's own, gone when it ends.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("weir-api-{}-{number}.sock", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Everybody has this role; the tests' own user among them.
fn access(role: Option<Role>) -> Access {
    let own = rustix::process::getuid().as_raw();
    let everybody = |lowest| if role == Some(lowest) { vec![Principal::Everybody] } else { Vec::new() };
    let api = config::Api {
        socket: "/unused".into(),
        read: everybody(Role::Read),
        operate: everybody(Role::Operate),
        admin: everybody(Role::Admin),
    };
    let (mut access, _) = Access::resolve(&api, "", "", own);
    access.forget_superuser();
    access
}

const QUICK: Limits = Limits {
    connections: 4,
    body_len: 1000,
    message_len: 2000,
    request: Duration::from_millis(300),
    answer: Duration::from_millis(300),
};

/// A server and a node that answers as it is told.
fn start(
    place: &Place,
    role: Option<Role>,
    limits: Limits,
    queue: usize,
    node: impl Fn(Request) -> Option<Request> + Send + 'static,
) -> mpsc::Sender<Request> {
    let (sender, mut receiver) = mpsc::channel::<Request>(queue);
    tokio::spawn(serve(bind(&place.0).unwrap(), access(role), sender.clone(), limits));
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(request) = receiver.recv().await {
            unanswered.extend(node(request));
        }
    });
    sender
}

fn answering(request: Request) -> Option<Request> {
    let answer = match &request.call {
        Call::Invite(invite) => Answer::Invited(Invited {
            invite: "00".into(),
            token: format!("token for {}", invite.name).as_str().into(),
            not_after: Moment(UnixSecs(1)),
        }),
        call => Answer::Done(Done { message: format!("{} by {}", call.name(), request.caller.uid) }),
    };
    request.answer.send(Ok(answer)).unwrap();
    None
}

fn holding(request: Request) -> Option<Request> {
    Some(request)
}

fn code(error: ClientError) -> ErrorCode {
    match error {
        ClientError::Refused(error) => {
            assert!(!error.message.is_empty() && !error.remedy.is_empty(), "{error:?}");
            error.code
        }
        other => panic!("{other}"),
    }
}

async fn call(place: &Place, call: Call) -> Result<serde_json::Value, ClientError> {
    client::call(&place.0, &call).await
}

/// What the server says to these bytes.
async fn raw(place: &Place, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&place.0).await.unwrap();
    // A server that has heard enough may close before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn invite() -> Call {
    Call::Invite(InviteRequest {
        name: "site".into(),
        subnet: None,
        groups: Vec::new(),
        roles: Vec::new(),
        ttl_secs: None,
        uses: None,
        replace: None,
    })
}

#[test]
fn calls_reach_the_node_with_their_caller_and_come_back() {
    run(async {
        let place = Place::new();
        start(&place, Some(Role::Admin), Limits::default(), QUEUE_LEN, answering);
        let uid = rustix::process::getuid().as_raw();
        let done: Done = client::read(&place.0, &call(&place, Call::Leave).await.unwrap()).unwrap();
        assert_eq!(done.message, format!("Leave by {uid}"));
        let invited: Invited = client::read(&place.0, &call(&place, invite()).await.unwrap()).unwrap();
        assert_eq!(invited.token, "token for site".into());
        let wrong = client::read::<Invited>(&place.0, &call(&place, Call::Leave).await.unwrap());
        assert!(matches!(wrong, Err(ClientError::Broken { .. })));
    });
}

#[test]
fn each_role_makes_its_own_calls_and_those_below() {
    run(async {
        for (role, allowed) in [
            (None, [false, false, false]),
            (Some(Role::Read), [true, false, false]),
            (Some(Role::Operate), [true, true, false]),
            (Some(Role::Admin), [true, true, true]),
        ] {
            let place = Place::new();
            start(&place, role, Limits::default(), QUEUE_LEN, answering);
            for (request, allowed) in [Call::Peers, invite(), Call::Leave].into_iter().zip(allowed) {
                match call(&place, request).await {
                    Ok(_) => assert!(allowed),
                    Err(error) => assert!(!allowed && code(error) == ErrorCode::Forbidden),
                }
            }
        }
    });
}

#[test]
fn what_is_no_request_is_refused_with_a_remedy() {
    run(async {
        let place = Place::new();
        start(&place, Some(Role::Admin), QUICK, QUEUE_LEN, answering);
        let post = |path: &str, body: &str| {
            format!("POST {path} HTTP/1.1\r\nhost: weir\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        };
        for (request, status, part) in [
            (post("/v1/ping", "{\"peer\""), "400", "bad_request"),
            (post("/v1/ping", "{\"peer\":\"a\",\"cuont\":1}"), "400", "unknown field"),
            (post("/v1/ping", "{\"peer\":7}"), "400", "expected a string"),
            (post("/v1/ping", "\u{0}"), "400", "bad_request"),
            (post("/v1/nowhere", ""), "404", "not_found"),
            (post("/v1/status", ""), "405", "method"),
            ("GET /v1/policy/explain?src=a HTTP/1.1\r\nhost: weir\r\n\r\n".into(), "400", "dst"),
            ("nonsense\r\n\r\n".into(), "400", ""),
        ] {
            let answer = raw(&place, request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(part), "{request}: {answer}");
        }
    });
}

#[test]
fn bodies_are_taken_up_to_the_limit_and_refused_beyond() {
    run(async {
        let place = Place::new();
        start(&place, Some(Role::Admin), QUICK, QUEUE_LEN, answering);
        let ping = |len: usize| {
            let frame = serde_json::json!({ "peer": "", "count": null }).to_string().len();
            Call::Ping(PingRequest { peer: "p".repeat(len - frame), count: None })
        };
        assert_eq!(ping(QUICK.body_len).arguments().to_string().len(), QUICK.body_len);
        assert!(call(&place, ping(QUICK.body_len)).await.is_ok());
        assert_eq!(code(call(&place, ping(QUICK.body_len + 1)).await.unwrap_err()), ErrorCode::TooLarge);
        // Only who sends a message may say more.
        let message = |len: usize| {
            let frame =
                SendRequest { to: "a".into(), topic: None, body: String::new(), ttl_secs: None, datagram: false };
            let frame_len = Call::SendMessage(frame.clone()).arguments().to_string().len();
            Call::SendMessage(SendRequest { body: "A".repeat(len - frame_len), ..frame })
        };
        assert!(call(&place, message(QUICK.message_len)).await.is_ok());
        assert_eq!(code(call(&place, message(QUICK.message_len + 1)).await.unwrap_err()), ErrorCode::TooLarge);
        for (len, is_taken) in [(QUICK.body_len, true), (QUICK.body_len + 1, false)] {
            let get =
                format!("GET /v1/messages HTTP/1.1\r\nhost: weir\r\ncontent-length: {len}\r\n\r\n{}", " ".repeat(len));
            assert_eq!(raw(&place, get.as_bytes()).await.contains("too_large"), !is_taken);
        }
        // A length that is not announced is no way around.
        let chunked = format!(
            "POST /v1/ping HTTP/1.1\r\nhost: weir\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            2000,
            " ".repeat(2000)
        );
        assert!(raw(&place, chunked.as_bytes()).await.contains("too_large"));
    });
}

#[test]
fn a_slow_client_is_thrown_out_and_others_are_served_meanwhile() {
    run(async {
        let place = Place::new();
        start(&place, Some(Role::Admin), QUICK, QUEUE_LEN, answering);
        let mut slow = Vec::new();
        for part in ["", "GET /v1/status", "POST /v1/ping HTTP/1.1\r\nhost: weir\r\ncontent-length: 9\r\n\r\n{"] {
            let mut stream = UnixStream::connect(&place.0).await.unwrap();
            stream.write_all(part.as_bytes()).await.unwrap();
            slow.push(stream);
        }
        assert!(call(&place, Call::Status).await.is_ok(), "one connection of four was free");
        for mut stream in slow {
            let mut answer = Vec::new();
            let read = timeout(QUICK.request * 5, stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "still connected; so far {:?}", String::from_utf8_lossy(&answer));
        }
    });
}

#[test]
fn connections_beyond_the_limit_wait_for_a_free_one() {
    run(async {
        let place = Place::new();
        let limits = Limits { connections: 1, request: Duration::from_secs(30), ..QUICK };
        start(&place, Some(Role::Admin), limits, QUEUE_LEN, answering);
        let first = UnixStream::connect(&place.0).await.unwrap();
        let second = call(&place, Call::Status);
        tokio::pin!(second);
        assert!(timeout(Duration::from_millis(200), &mut second).await.is_err(), "the limit is one");
        drop(first);
        assert!(second.await.is_ok());
    });
}

#[test]
fn a_full_queue_and_a_silent_node_are_told_apart() {
    run(async {
        let place = Place::new();
        // The node takes one call and keeps it; the queue holds another.
        let (sender, mut receiver) = mpsc::channel::<Request>(1);
        let limits = Limits { connections: 8, ..QUICK };
        tokio::spawn(serve(bind(&place.0).unwrap(), access(Some(Role::Admin)), sender, limits));
        let waiting = call(&place, Call::Status);
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(100), &mut waiting).await.is_err());
        assert_eq!(code(call(&place, Call::Peers).await.unwrap_err()), ErrorCode::Busy);
        assert_eq!(code(waiting.await.unwrap_err()), ErrorCode::NoAnswer);
        // Nobody waits for the answer any more; the node may still give it.
        let late = receiver.recv().await.unwrap();
        assert!(late.answer.send(Ok(Answer::Peers(Vec::new()))).is_err());
        drop(receiver);
        assert_eq!(code(call(&place, Call::Peers).await.unwrap_err()), ErrorCode::Busy);
    });
}

#[test]
fn a_call_that_the_node_drops_is_answered() {
    run(async {
        let place = Place::new();
        start(&place, Some(Role::Admin), QUICK, QUEUE_LEN, |request| {
            drop(request);
            None
        });
        let error = call(&place, Call::Status).await.unwrap_err();
        assert!(error.to_string().contains("weir is stopping"), "{error}");
        let other = Place::new();
        start(&other, Some(Role::Admin), QUICK, QUEUE_LEN, holding);
        assert_eq!(code(call(&other, Call::Status).await.unwrap_err()), ErrorCode::NoAnswer);
    });
}

#[test]
fn the_socket_is_taken_over_from_the_dead_and_from_nobody_else() {
    run(async {
        let place = Place::new();
        drop(bind(&place.0).unwrap());
        let listener = bind(&place.0).unwrap();
        assert_eq!(fs::metadata(&place.0).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        assert!(bind(&place.0).unwrap_err().to_string().contains("somebody listens here already"));
        drop(listener);
        fs::remove_file(&place.0).unwrap();
        fs::write(&place.0, "a file").unwrap();
        assert!(bind(&place.0).unwrap_err().to_string().contains("not a socket"));
        let error = client::call(Path::new("/nowhere/api.sock"), &Call::Status).await.unwrap_err().to_string();
        assert!(error.contains("start it with `weir run`"), "{error}");
    });
}

/// Whoever may not ask anything could have kept all who may from asking.
#[test]
fn strangers_take_no_place_of_those_who_have_a_role() {
    run(async {
        // There is no place for anybody with a role, and a stranger is told all the same.
        let (place, limits) = (Place::new(), Limits { connections: 0, request: Duration::from_millis(300), ..QUICK });
        let _node = start(&place, None, limits, QUEUE_LEN, answering);
        assert_eq!(code(call(&place, Call::Status).await.unwrap_err()), ErrorCode::Forbidden);
        let mut idle = Vec::new();
        for _ in 0..STRANGERS_MAX {
            idle.push(UnixStream::connect(&place.0).await.unwrap());
        }
        assert_eq!(raw(&place, b"").await, "", "one more is closed unheard");
        for stream in &mut idle {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        assert_eq!(code(call(&place, Call::Status).await.unwrap_err()), ErrorCode::Forbidden);
    });
}
