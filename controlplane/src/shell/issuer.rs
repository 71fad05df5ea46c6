//! The issuer's process and the way to it: one unix socket, requests in, replies out.
//!
//! ```text
//!   weir control ── (ticket, Asked) ──▶ issuer.sock ──▶ weir issuer: Seat::handle, one after the other
//!                ◀─ (ticket, reply) ──                     the signing key never leaves this process
//! ```
//!
//! A request or a reply that is longer than its direction takes is refused, and the connection stands. When the process ends, the node hears
//! of it at once, and what it asks until there is another is refused at once.
//!
//! The process has no other socket and opens none, nor any file once it listens. It serves one connection at a time: the control plane's.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::confine::{ConfineError, confine};
use super::frame::{self, TooLong};
use crate::config::Config;
use crate::issuer::{Asked, BACKUP_LEN_MAX, OpenIssuerError, Refused, Reply, Seat};
use crate::node::Ticket;
use crate::random::SystemRandom;
use crate::state_directory::{StateDirectory, StateError};
use crate::store::redb::RedbStore;
use crate::time::{Now, UnixSecs};

/// Requests that wait for the issuer, and its answers that wait for the node.
pub const QUEUE_MAX: usize = 1024;
/// Longest request: a policy, or a revocation list with all entries.
pub const REQUEST_LEN_MAX: usize = 2 << 20;
/// Longest reply: the longest backup, and what is around it.
pub const REPLY_LEN_MAX: usize = BACKUP_LEN_MAX + 64;
/// Longest wait between attempts to reach it.
const RETRY: Duration = Duration::from_millis(200);

/// Where the issuer listens, in the runtime directory.
pub fn socket_path(runtime: &Path) -> PathBuf {
    runtime.join("issuer.sock")
}

/// What comes from the issuer.
#[derive(Debug)]
pub enum FromIssuer {
    /// It is there.
    Connected,
    /// It is there no more; what was asked before and not answered is lost.
    Gone,
    /// It answered.
    Reply(Ticket, Box<Result<Reply, Refused>>),
}

/// A request with its ticket.
pub type ToIssuer = (Ticket, Asked);

/// Keeps a connection to the issuer up, until the shell is gone.
pub async fn maintain(path: PathBuf, mut requests: mpsc::Receiver<ToIssuer>, replies: mpsc::Sender<FromIssuer>) {
    while !replies.is_closed() && !requests.is_closed() {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                if replies.send(FromIssuer::Connected).await.is_err() {
                    return;
                }
                pass(stream, &mut requests, &replies).await;
                if replies.send(FromIssuer::Gone).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::trace!(%error, "no issuer yet"),
        }
        let again = tokio::time::Instant::now() + RETRY;
        while let Ok(Some((ticket, _))) = timeout_at(again, requests.recv()).await {
            if replies.send(refused(ticket, Refused::Absent)).await.is_err() {
                return;
            }
        }
    }
}

fn refused(ticket: Ticket, why: Refused) -> FromIssuer {
    FromIssuer::Reply(ticket, Box::new(Err(why)))
}

/// What is not sent because it is too long, in the words of the issuer.
fn too_long(what: &str, TooLong { len, max }: TooLong) -> Refused {
    Refused::Limit { what: what.to_owned(), found: len as u64, min: 0, max: max as u64 }
}

/// Passes requests and replies until the connection ends, at whichever side.
async fn pass(stream: UnixStream, requests: &mut mpsc::Receiver<ToIssuer>, replies: &mpsc::Sender<FromIssuer>) {
    let (read, mut write) = stream.into_split();
    // In a task of its own, since half a message must not be lost when there is something to send.
    let mut reader = tokio::spawn(read_replies(read, replies.clone()));
    loop {
        let request = tokio::select! {
            request = requests.recv() => request,
            _ = &mut reader => return tracing::warn!("the issuer has ended the connection"),
        };
        let Some((ticket, asked)) = request else { break };
        let sent = match frame::encode(&(ticket.0, asked), REQUEST_LEN_MAX) {
            Ok(bytes) => write.write_all(&bytes).await,
            Err(error) => {
                let why = too_long("bytes of a request to the issuer", error);
                // The shell is gone, or will be told more.
                let _ = replies.send(refused(ticket, why)).await;
                continue;
            }
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "the connection to the issuer ended");
            break;
        }
    }
    reader.abort();
}

async fn read_replies(mut from: OwnedReadHalf, to: mpsc::Sender<FromIssuer>) {
    loop {
        match frame::receive::<(u32, Result<Reply, Refused>)>(&mut from, REPLY_LEN_MAX).await {
            Ok(Some((ticket, reply))) => {
                if to.send(FromIssuer::Reply(Ticket(ticket), Box::new(reply))).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "the issuer's answer cannot be read"),
        }
    }
}

/// Why the issuer's process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum IssuerProcessError {
    /// What it keeps.
    #[error(transparent)]
    State(#[from] StateError),
    /// This node issues nothing.
    #[error("there is no issuer's key in the state directory: `weir init` and `weir ca issuer-key` make one")]
    NoKey,
    /// What is in there.
    #[error("{0}")]
    Open(#[from] crate::issuer::OpenIssuerError),
    /// Giving up what is not needed.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Its socket.
    #[error("cannot listen at {path}: {error}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Anything else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// This process has no network and so no other clock than the machine's.
fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: UnixSecs(since.as_secs()) }
}

/// Runs the issuer until a signal says to stop.
///
/// # Errors
/// [`IssuerProcessError`].
pub async fn run(config: &Config) -> Result<(), IssuerProcessError> {
    let system = |doing| move |error| IssuerProcessError::System { doing, error };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("installing a signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("installing a signal handler"))?;
    let state = StateDirectory::open(&config.node.state_directory)?;
    let key = state.issuer_key()?.ok_or(IssuerProcessError::NoKey)?;
    let mut issuer = Seat::open(state.issuer_store()?, key, config.issuer.log_entries_max)?;
    if !issuer.is_taken() {
        tracing::info!("the key is no issuer's yet: `weir ca add-issuer` makes it one, in a ceremony");
    }
    let path = socket_path(&config.node.runtime_directory);
    // The store's lock says that no other issuer runs.
    let listener = frame::listen(&path).map_err(|error| IssuerProcessError::Socket { path: path.clone(), error })?;
    confine(&config.node.runtime_directory)?;
    tracing::info!("ready at {}", path.display());
    loop {
        let accepted = tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, _) = accepted.map_err(system("accepting a connection"))?;
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            served = serve(stream, &mut issuer) => {
                match served {
                    Ok(()) => {}
                    Err(Ended::Connection(error)) => tracing::warn!(%error, "a connection ended"),
                    Err(Ended::Issuer(error)) => return Err(error.into()),
                }
            }
        }
    }
}

/// Why a connection is served no more.
enum Ended {
    Connection(io::Error),
    Issuer(OpenIssuerError),
}

async fn serve(mut stream: UnixStream, issuer: &mut Seat<RedbStore>) -> Result<(), Ended> {
    let mut random = SystemRandom;
    while let Some((ticket, asked)) =
        frame::receive::<(u32, Asked)>(&mut stream, REQUEST_LEN_MAX).await.map_err(Ended::Connection)?
    {
        let reply = issuer.handle(asked, now(), &mut random).map_err(Ended::Issuer)?;
        let bytes = frame::encode(&(ticket, reply), REPLY_LEN_MAX).or_else(|error| {
            let refused: Result<Reply, Refused> = Err(too_long("bytes of the issuer's answer", error));
            frame::encode(&(ticket, refused), REPLY_LEN_MAX)
        });
        let bytes = bytes.map_err(|error| Ended::Connection(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        stream.write_all(&bytes).await.map_err(Ended::Connection)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::issuer::Request;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn asked(request: Request) -> Asked {
        Asked { by: "a test".into(), request }
    }

    async fn next(replies: &mut mpsc::Receiver<FromIssuer>) -> FromIssuer {
        timeout(PATIENCE, replies.recv()).await.expect("in time").expect("the task runs")
    }

    /// A dead issuer was noticed by the next request only, and that one was lost until there was another issuer. And a request or a reply of
    /// more than a mebibyte ended the connection, again after each attempt.
    #[tokio::test(flavor = "current_thread")]
    async fn the_end_of_an_issuer_is_told_at_once_and_what_is_too_long_is_refused() {
        let directory = std::env::temp_dir().join(format!("weir-issuer-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("issuer.sock");
        let listener = frame::listen(&path).unwrap();
        let (to, requests) = mpsc::channel(QUEUE_MAX);
        let (sender, mut replies) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(maintain(path.clone(), requests, sender));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(matches!(next(&mut replies).await, FromIssuer::Connected));

        let body = vec![0; REQUEST_LEN_MAX];
        to.send((Ticket(1), asked(Request::SignPolicy { version: 1, body }))).await.unwrap();
        let FromIssuer::Reply(Ticket(1), reply) = next(&mut replies).await else { panic!() };
        assert!(matches!(*reply, Err(Refused::Limit { max, .. }) if max == REQUEST_LEN_MAX as u64));

        // A long reply crosses; the connection is the same.
        to.send((Ticket(2), asked(Request::Status))).await.unwrap();
        let got = frame::receive::<(u32, Asked)>(&mut stream, REQUEST_LEN_MAX).await.unwrap();
        assert_eq!(got, Some((2, asked(Request::Status))));
        let long: Result<Reply, Refused> = Ok(Reply::Backup(vec![7; 3 << 20]));
        let bytes = frame::encode(&(2u32, &long), REPLY_LEN_MAX).unwrap();
        let (sent, reply) = tokio::join!(stream.write_all(&bytes), next(&mut replies));
        sent.unwrap();
        assert!(matches!(reply, FromIssuer::Reply(Ticket(2), reply) if *reply == long));

        drop((stream, listener));
        assert!(matches!(next(&mut replies).await, FromIssuer::Gone));
        to.send((Ticket(3), asked(Request::Status))).await.unwrap();
        let FromIssuer::Reply(Ticket(3), reply) = next(&mut replies).await else { panic!() };
        assert_eq!(*reply, Err(Refused::Absent));
        drop(to);
        timeout(PATIENCE, task).await.expect("in time").unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
