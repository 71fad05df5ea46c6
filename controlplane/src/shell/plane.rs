//! The connection to the packet plane: kept up, greeted, and turned into inputs of the node machine.
//!
//! ```text
//!  (not there) ── connect ─▶ Hello ─▶ Welcome ─▶ TakeControlSockets ─▶ sockets ─▶ Connected ── requests and replies ──▶ Gone ─▶ (not there)
//! ```
//!
//! A task of its own reads and writes; queues with limits lie between it and the shell.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::time::timeout;
use weir_dataplane::api::client::{ClientError, Welcome};
use weir_dataplane::api::connection::{Connection, Received};
use weir_dataplane::api::message::{Reply, Request};

use crate::node::Ticket;
use crate::node::plane::PlaneInput;

/// Requests that wait for the packet plane. A new snapshot of a million routes is a thousand of them.
pub const REQUESTS_MAX: usize = 4096;
/// Replies and events that wait for the node.
pub const INPUTS_MAX: usize = 4096;
/// First and longest wait between attempts to reach a packet plane that is not there.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// How long a packet plane may take to greet. It answers from memory.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Who we say we are.
const NAME: &str = "weir";

/// What comes from the packet plane.
#[derive(Debug)]
pub enum FromPlane {
    /// The control sockets, IPv4 first.
    Sockets(Vec<OwnedFd>),
    /// For the node.
    Input(Box<PlaneInput>),
}

/// A request with its ticket.
pub type ToPlane = (Ticket, Request);

/// Keeps a connection to the packet plane at `path` up, until the shell is gone.
pub async fn maintain(path: PathBuf, mut requests: mpsc::Receiver<ToPlane>, inputs: mpsc::Sender<FromPlane>) {
    let mut wait = RETRY_MIN;
    // One of another version says so at each attempt; the log says it once.
    let mut complaint = String::new();
    loop {
        match session(&path, &mut requests, &inputs).await {
            Ended::Shell => return,
            Ended::NotThere(error) => {
                tracing::trace!(%error, "no packet plane yet");
                wait = (wait * 2).min(RETRY_MAX);
            }
            Ended::Unusable(error) => {
                let said = error.to_string();
                if said != complaint {
                    tracing::error!(%error, "the packet plane cannot be used");
                }
                (complaint, wait) = (said, RETRY_MAX);
            }
            Ended::Broken(error) => {
                tracing::warn!(%error, "the connection to the packet plane ended");
                if inputs.send(FromPlane::Input(Box::new(PlaneInput::Gone))).await.is_err() {
                    return;
                }
                (complaint, wait) = (String::new(), RETRY_MIN);
            }
        }
        // Requests that were made for the connection before mean nothing to the next one. Waiting for them is also the pause.
        while let Ok(Some(_)) = timeout(wait, requests.recv()).await {}
        if requests.is_closed() {
            return;
        }
    }
}

enum Ended {
    /// The shell wants no more.
    Shell,
    /// There was no connection.
    NotThere(ClientError),
    /// There was one, and the greeting failed: another version, for one.
    Unusable(ClientError),
    /// There was one.
    Broken(ClientError),
}

async fn session(path: &Path, requests: &mut mpsc::Receiver<ToPlane>, inputs: &mpsc::Sender<FromPlane>) -> Ended {
    let (mut connection, watched) = match open(path) {
        Ok(opened) => opened,
        Err(error) => return Ended::NotThere(error),
    };
    let greeted = timeout(GREETING_TIMEOUT, greet(&mut connection, &watched)).await;
    let (welcome, sockets) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return Ended::Unusable(error),
        Err(_) => return Ended::NotThere(ClientError::Closed),
    };
    for input in [FromPlane::Sockets(sockets), FromPlane::Input(Box::new(PlaneInput::Connected(welcome)))] {
        if inputs.send(input).await.is_err() {
            return Ended::Shell;
        }
    }
    let mut tickets: HashMap<u32, Ticket> = HashMap::new();
    // What came while a request waited for room: a plane whose answers nobody reads takes no requests either.
    let mut came: Vec<(u32, Reply)> = vec![];
    loop {
        let outcome = tokio::select! {
            biased;
            request = requests.recv() => match request {
                None => return Ended::Shell,
                Some((ticket, request)) => send(&mut connection, &watched, &request, &mut came).await.map(|id| {
                    tickets.insert(id, ticket);
                }),
            },
            ready = watched.readable() => match ready {
                Err(error) => Err(ClientError::Broken(error)),
                Ok(()) => try_receive(&mut connection, &watched).map(|received| {
                    came.extend(received.map(|(id, reply, _)| (id, reply)));
                }),
            },
        };
        for (id, reply) in came.drain(..) {
            if !forward(id, reply, &mut tickets, inputs).await {
                return Ended::Shell;
            }
        }
        if let Err(error) = outcome {
            return Ended::Broken(error);
        }
    }
}

fn open(path: &Path) -> Result<(Connection, UnixDatagram), ClientError> {
    let connection = Connection::open(path)?;
    // Only waited with: what is read and written, the connection does itself. That it is a SOCK_SEQPACKET makes no difference to that.
    let watched = StdUnixDatagram::from(connection.try_clone()?);
    watched.set_nonblocking(true)?;
    Ok((connection, UnixDatagram::from_std(watched)?))
}

/// Takes what is there. With nothing, the next wait waits.
fn try_receive(connection: &mut Connection, watched: &UnixDatagram) -> Result<Option<Received>, ClientError> {
    let mut outcome = Ok(None);
    let looked = watched.try_io(Interest::READABLE, || {
        outcome = connection.try_receive();
        if matches!(outcome, Ok(None)) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    // That there was nothing is the outcome's to tell.
    drop(looked);
    outcome
}

async fn send(
    connection: &mut Connection,
    watched: &UnixDatagram,
    request: &Request,
    came: &mut Vec<(u32, Reply)>,
) -> Result<u32, ClientError> {
    loop {
        let mut outcome = Err(ClientError::Full);
        let sent = watched.try_io(Interest::WRITABLE, || {
            outcome = connection.send(request);
            if matches!(outcome, Err(ClientError::Full)) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        drop(sent);
        if !matches!(outcome, Err(ClientError::Full)) {
            return outcome;
        }
        watched.ready(Interest::READABLE | Interest::WRITABLE).await?;
        came.extend(try_receive(connection, watched)?.map(|(id, reply, _)| (id, reply)));
    }
}

async fn receive(connection: &mut Connection, watched: &UnixDatagram) -> Result<Received, ClientError> {
    loop {
        watched.readable().await?;
        if let Some(received) = try_receive(connection, watched)? {
            return Ok(received);
        }
    }
}

async fn greet(connection: &mut Connection, watched: &UnixDatagram) -> Result<(Welcome, Vec<OwnedFd>), ClientError> {
    let mut came = vec![];
    send(connection, watched, &Request::Hello { name: NAME.to_owned() }, &mut came).await?;
    let welcome = match receive(connection, watched).await? {
        (_, Reply::Welcome { incarnation, workers, port, program }, _) => {
            Welcome { incarnation, workers, port, program }
        }
        (_, Reply::Refused(refusal), _) => return Err(refusal.into()),
        (_, other, _) => return Err(ClientError::Unexpected(Box::new(other))),
    };
    send(connection, watched, &Request::TakeControlSockets, &mut came).await?;
    match receive(connection, watched).await? {
        (_, Reply::ControlSockets { .. }, sockets) => Ok((welcome, sockets)),
        (_, Reply::Refused(refusal), _) => Err(refusal.into()),
        (_, other, _) => Err(ClientError::Unexpected(Box::new(other))),
    }
}

/// Passes a reply on; `false` when the shell is gone.
async fn forward(id: u32, reply: Reply, tickets: &mut HashMap<u32, Ticket>, inputs: &mpsc::Sender<FromPlane>) -> bool {
    let input = match reply {
        Reply::Event(event) => PlaneInput::Event(event),
        // One of many answers: the ticket stays until the last.
        Reply::Dump(_) => match tickets.get(&id) {
            Some(ticket) => PlaneInput::Reply(*ticket, reply),
            None => return true,
        },
        reply => match tickets.remove(&id) {
            Some(ticket) => PlaneInput::Reply(ticket, reply),
            None => return true,
        },
    };
    inputs.send(FromPlane::Input(Box::new(input))).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recv, send,
        socket_with,
    };
    use weir_dataplane::api::codec;
    use weir_dataplane::api::message::{Incarnation, Refusal};
    use weir_dataplane::api::{MESSAGE_LEN_MAX, VERSION};

    use super::*;

    /// Answers the requests of one connection after the other as packet planes of these versions would.
    fn planes(listener: &OwnedFd, versions: &[u16]) {
        for version in versions {
            let client = accept(listener).unwrap();
            let mut bytes = vec![0; MESSAGE_LEN_MAX];
            loop {
                let (len, _) = recv(&client, &mut bytes[..], RecvFlags::empty()).unwrap();
                if len == 0 {
                    break;
                }
                let (id, request) = codec::decode::<Request>(&bytes[..len]).unwrap();
                let reply = match request {
                    _ if *version != VERSION => Reply::Refused(Refusal::Version { ours: *version, theirs: VERSION }),
                    Request::Hello { .. } => {
                        let program = "0.1.0".to_owned();
                        Reply::Welcome { incarnation: Incarnation(9), workers: 1, port: 4646, program }
                    }
                    _ => Reply::ControlSockets { count: 0 },
                };
                let mut answer = codec::encode(id, &reply).unwrap();
                answer[..2].copy_from_slice(&version.to_le_bytes());
                // Who has seen the version may be gone.
                let _ = send(client.as_fd(), &answer, SendFlags::NOSIGNAL);
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_packet_plane_of_another_message_set_is_let_be_until_one_of_ours_comes() {
        let path = std::env::temp_dir().join(format!("weir-plane-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let others = [VERSION - 1, VERSION - 1, VERSION + 1, VERSION];
        let plane = std::thread::spawn(move || planes(&listener, &others));
        let (to_plane, requests) = mpsc::channel(REQUESTS_MAX);
        let (inputs, mut from_plane) = mpsc::channel(INPUTS_MAX);
        let maintained = tokio::spawn(maintain(path.clone(), requests, inputs));
        // The first thing that the node hears is of the last one: no sockets, no answers, no end of the others.
        assert!(matches!(from_plane.recv().await, Some(FromPlane::Sockets(sockets)) if sockets.is_empty()));
        let Some(FromPlane::Input(input)) = from_plane.recv().await else { panic!("a welcome") };
        assert!(matches!(*input, PlaneInput::Connected(welcome) if welcome.incarnation == Incarnation(9)));
        drop((to_plane, from_plane));
        maintained.await.unwrap();
        plane.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
