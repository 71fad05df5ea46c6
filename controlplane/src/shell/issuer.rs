//! The issuer's process and the way to it: one unix socket, requests in, replies out.
//!
//! ```text
//!   weir control ── (ticket, Asked) ──▶ issuer.sock ──▶ weir issuer: Issuer::handle, one after the other
//!                ◀─ (ticket, reply) ──                     the signing key never leaves this process
//! ```
//!
//! The process has no other socket and opens none, nor any file once it listens. It serves one connection at a time: the control plane's.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::confine::{ConfineError, confine};
use super::frame;
use crate::config::Config;
use crate::issuer::{Asked, OpenIssuerError, Refused, Reply, Seat};
use crate::node::Ticket;
use crate::random::SystemRandom;
use crate::state_directory::{StateDirectory, StateError};
use crate::store::redb::RedbStore;
use crate::time::{Now, UnixSecs};

/// Requests that wait for the issuer, and its answers that wait for the node.
pub const QUEUE_MAX: usize = 1024;
/// Longest wait between attempts to reach it.
const RETRY: Duration = Duration::from_millis(200);

/// Where the issuer listens.
pub fn socket_path(config: &Config) -> PathBuf {
    config.node.runtime_directory.join("issuer.sock")
}

/// What comes from the issuer.
#[derive(Debug)]
pub enum FromIssuer {
    /// It is there; what was asked before and not answered is lost.
    Connected,
    /// It answered.
    Reply(Ticket, Box<Result<Reply, Refused>>),
}

/// A request with its ticket.
pub type ToIssuer = (Ticket, Asked);

/// Keeps a connection to the issuer up, until the shell is gone.
pub async fn maintain(path: PathBuf, mut requests: mpsc::Receiver<ToIssuer>, replies: mpsc::Sender<FromIssuer>) {
    while !replies.is_closed() {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                if replies.send(FromIssuer::Connected).await.is_err() {
                    return;
                }
                let (read, mut write) = stream.into_split();
                let reader = tokio::spawn(read_replies(read, replies.clone()));
                while let Some((Ticket(ticket), asked)) = requests.recv().await {
                    if let Err(error) = frame::send(&mut write, &(ticket, asked)).await {
                        tracing::warn!(%error, "the connection to the issuer ended");
                        break;
                    }
                }
                reader.abort();
            }
            Err(error) => tracing::trace!(%error, "no issuer yet"),
        }
        // What was meant for the connection before is lost; that is said with the next one.
        while let Ok(Some(_)) = timeout(RETRY, requests.recv()).await {}
        if requests.is_closed() {
            return;
        }
    }
}

async fn read_replies(mut from: OwnedReadHalf, to: mpsc::Sender<FromIssuer>) {
    loop {
        match frame::receive::<(u32, Result<Reply, Refused>)>(&mut from).await {
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
    let mut issuer = Seat::open(state.issuer_store()?, key)?;
    if !issuer.is_taken() {
        tracing::info!("the key is no issuer's yet: `weir ca add-issuer` makes it one, in a ceremony");
    }
    let path = socket_path(config);
    let listener = listen(&path).map_err(|error| IssuerProcessError::Socket { path: path.clone(), error })?;
    confine()?;
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

fn listen(path: &Path) -> io::Result<UnixListener> {
    // One that was killed left its socket behind; the store's lock says that no other issuer runs.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Why a connection is served no more.
enum Ended {
    Connection(io::Error),
    Issuer(OpenIssuerError),
}

async fn serve(mut stream: UnixStream, issuer: &mut Seat<RedbStore>) -> Result<(), Ended> {
    let mut random = SystemRandom;
    while let Some((ticket, asked)) = frame::receive::<(u32, Asked)>(&mut stream).await.map_err(Ended::Connection)? {
        let reply = issuer.handle(asked, now(), &mut random).map_err(Ended::Issuer)?;
        frame::send(&mut stream, &(ticket, reply)).await.map_err(Ended::Connection)?;
    }
    Ok(())
}
