//! The API socket: connections in, messages out, every queue bounded. It knows no request's meaning.

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, connect, listen, recv, sendmsg, socket_with,
};
use zeroize::Zeroize as _;

use crate::api::codec::{self, DecodeError, TooLong};
use crate::api::message::{Event, Refusal, Reply, Request};
use crate::api::{MESSAGE_LEN_MAX, ROUTES_MAX, ROUTES_PER_MESSAGE, SESSIONS_MAX, VERSION};

/// Most connections at a time.
pub(super) const CLIENTS_MAX: usize = 32;
/// Most messages that wait for one connection. Who lets more answers than this pile up is disconnected: an answer that is left out would
/// be taken for the next one.
pub(super) const REPLIES_MAX: usize = 32 * 1024;
/// Messages that wait beyond which a connection is not read and loses events, so that one answer of any length still fits.
const BACKLOG_MAX: usize = REPLIES_MAX - ANSWER_LEN_MAX - REQUESTS_PER_TURN;
/// Messages of the longest answer: a dump of the plane, all sessions and all routes, and the word that it is done.
const ANSWER_LEN_MAX: usize = 1 + SESSIONS_MAX + ROUTES_MAX.div_ceil(ROUTES_PER_MESSAGE) + 1;
/// Most requests of one connection that are answered before the others are looked at.
pub(super) const REQUESTS_PER_TURN: usize = 64;

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another plane listens there.
    #[error(
        "another packet plane already listens, or is about to listen, at {0}: stop it, or set api.socket to another path"
    )]
    InUse(PathBuf),
    /// The path cannot be used.
    #[error("cannot listen at {path}: {error}; check that the directory exists and is writable, or set api.socket")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something at the path is no socket. It is not ours to remove.
    #[error("{0} is there already and is no socket: remove it, or set api.socket to another path")]
    NotASocket(PathBuf),
}

/// Names a connection for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientId(u64);

/// A request to answer.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) client: ClientId,
    pub(super) id: u32,
    pub(super) request: Request,
}

struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

struct Client {
    id: ClientId,
    socket: OwnedFd,
    greeted: bool,
    subscribed: bool,
    waiting: VecDeque<Outgoing>,
    lost_events: u64,
    /// An answer could not be queued, so nothing that follows would make sense.
    broken: bool,
}

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// The listening socket and its connections. The socket file goes when this is dropped.
pub(super) struct Server {
    socket: OwnedFd,
    path: PathBuf,
    clients: Vec<Client>,
    next_client: u64,
    /// One byte longer than a message may be, to tell those that are longer.
    buffer: Vec<u8>,
    _claim: Claim,
}

/// A locked file beside the socket: a plane that is still starting does not listen yet and must not be taken for a dead one. The lock goes
/// with the process however that ends; the file goes when this is dropped.
struct Claim {
    _locked: File,
    path: PathBuf,
}

impl Claim {
    /// The claim on a socket's path; `None` when another process has it.
    fn new(socket: &Path) -> io::Result<Option<Self>> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = File::options().create(true).append(true).mode(0o600).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let locked = file.metadata()?;
            // The one before may have removed the file after we opened it; then another can lock a new one.
            if std::fs::metadata(&path).is_ok_and(|named| named.dev() == locked.dev() && named.ino() == locked.ino()) {
                return Ok(Some(Self { _locked: file, path }));
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A file that stays is locked by nobody and in nobody's way.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

impl Server {
    /// Claims the path. Nobody can connect before [`Self::listen`].
    pub(super) fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |error: io::Error| ServerError::Path { path: path.to_owned(), error };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno.into()))?;
        let claim = Claim::new(path).map_err(failed)?.ok_or_else(|| ServerError::InUse(path.to_owned()))?;
        let socket = seqpacket().map_err(|errno| failed(errno.into()))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                let probe = seqpacket().map_err(|errno| failed(errno.into()))?;
                // A socket that nobody listens at was left by a plane that was killed.
                if connect(&probe, &address) != Err(Errno::CONNREFUSED) {
                    return Err(ServerError::InUse(path.to_owned()));
                }
                if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                    return Err(ServerError::NotASocket(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(failed)?;
                bind(&socket, &address).map_err(|errno| failed(errno.into()))?;
            }
            done => done.map_err(|errno| failed(errno.into()))?,
        }
        let buffer = vec![0; MESSAGE_LEN_MAX + 1];
        let server = Self { socket, path: path.to_owned(), clients: vec![], next_client: 0, buffer, _claim: claim };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(server)
    }

    /// Lets clients in.
    pub(super) fn listen(&self) -> Result<(), ServerError> {
        listen(&self.socket, CLIENTS_MAX as i32)
            .map_err(|errno| ServerError::Path { path: self.path.clone(), error: errno.into() })
    }

    /// The descriptors to wait for. One that would not be read is not waited for either, or the wait would not wait.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let clients = self.clients.iter().map(|client| {
            let interest = Interest { read: !client.is_behind(), write: !client.waiting.is_empty() };
            (client.socket.as_fd(), interest)
        });
        std::iter::once((self.socket.as_fd(), Interest { read: true, write: false })).chain(clients)
    }

    /// Takes new connections and reads requests. Undecodable ones are answered here.
    pub(super) fn receive(&mut self) -> Vec<Incoming> {
        self.accept();
        let mut requests = vec![];
        let mut gone = vec![];
        for client in &mut self.clients {
            for _ in 0..REQUESTS_PER_TURN {
                // Who does not read answers gets no more of them.
                if client.is_behind() {
                    break;
                }
                match recv(&client.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok((len, _)) if len > 0 => {
                        let request = client.take_in(&self.buffer[..len]);
                        // An install holds a secret.
                        self.buffer[..len].zeroize();
                        if let Some((id, request)) = request {
                            requests.push(Incoming { client: client.id, id, request });
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Ok(_) | Err(_) => {
                        gone.push(client.id);
                        break;
                    }
                }
            }
        }
        self.clients.retain(|client| !gone.contains(&client.id));
        requests
    }

    fn accept(&mut self) {
        // Anything but a connection means that there is none to be had now.
        while let Ok(socket) = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.clients.len() >= CLIENTS_MAX {
                // Closing is the answer: there is no room even to say why.
                tracing::warn!("refused an API connection: {CLIENTS_MAX} are open");
                continue;
            }
            self.next_client += 1;
            self.clients.push(Client {
                id: ClientId(self.next_client),
                socket,
                greeted: false,
                subscribed: false,
                waiting: VecDeque::new(),
                lost_events: 0,
                broken: false,
            });
        }
    }

    /// Queues an answer. A client that is gone needs none.
    pub(super) fn reply(&mut self, to: ClientId, id: u32, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == to) {
            if !descriptors.is_empty() && client.waiting.iter().any(|outgoing| !outgoing.descriptors.is_empty()) {
                // Descriptors are few in a process, and whoever waits for the first ones has no use for more.
                let refusal = Refusal::Limit { what: "answers with sockets that nobody has read".to_owned(), limit: 1 };
                client.push(id, &Reply::Refused(refusal), vec![]);
            } else {
                client.push(id, reply, descriptors);
            }
        }
    }

    /// From now on, sends events to this client.
    pub(super) fn subscribe(&mut self, client: ClientId) {
        if let Some(client) = self.clients.iter_mut().find(|c| c.id == client) {
            client.subscribed = true;
        }
    }

    /// Queues an event for everyone who wants it.
    pub(super) fn publish(&mut self, event: &Event) {
        for client in self.clients.iter_mut().filter(|client| client.subscribed) {
            if client.is_behind() {
                client.lost_events += 1;
            } else {
                client.push(0, &Reply::Event(event.clone()), vec![]);
            }
        }
    }

    /// Sends what the sockets take, and lets go of connections that are of no more use.
    pub(super) fn flush(&mut self) {
        self.clients.retain_mut(|client| !client.broken && client.flush().is_ok());
    }
}

impl Client {
    /// Whether so much waits for the reader that it gets nothing new.
    fn is_behind(&self) -> bool {
        self.broken || self.waiting.len() >= BACKLOG_MAX
    }

    /// Decodes a message. Returns the request, unless it was answered at once.
    fn take_in(&mut self, bytes: &[u8]) -> Option<(u32, Request)> {
        // The buffer holds one byte more than a message may have, so this one was longer and perhaps cut.
        let decoded = match bytes.first_chunk() {
            Some(&[_, _, i0, i1, i2, i3]) if bytes.len() > MESSAGE_LEN_MAX => {
                let refusal = Refusal::Malformed(TooLong(bytes.len()).to_string());
                self.push(u32::from_le_bytes([i0, i1, i2, i3]), &Reply::Refused(refusal), vec![]);
                return None;
            }
            _ => codec::decode(bytes),
        };
        match decoded {
            Ok((id, request)) => self.admit(id, request).map(|request| (id, request)),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    /// Lets a request through, or answers it: the first one must be a greeting.
    fn admit(&mut self, id: u32, request: Request) -> Option<Request> {
        if matches!(request, Request::Hello { .. }) {
            self.greeted = true;
        }
        if self.greeted {
            return Some(request);
        }
        self.push(id, &Reply::Refused(Refusal::NoHello), vec![]);
        None
    }

    fn refuse(&mut self, error: &DecodeError) {
        let (id, refusal) = match error {
            DecodeError::Version { theirs, id } => (*id, Refusal::Version { ours: VERSION, theirs: *theirs }),
            DecodeError::Body { id, .. } | DecodeError::Trailing { id, .. } => {
                (*id, Refusal::Malformed(error.to_string()))
            }
            DecodeError::Short(_) => (0, Refusal::Malformed(error.to_string())),
        };
        self.push(id, &Reply::Refused(refusal), vec![]);
    }

    fn push(&mut self, id: u32, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if self.broken {
            return;
        }
        if self.waiting.len() >= REPLIES_MAX {
            tracing::warn!("closed an API connection: {REPLIES_MAX} answers wait and nobody reads them");
            self.give_up();
            return;
        }
        match codec::encode(id, reply) {
            Ok(bytes) => self.waiting.push_back(Outgoing { bytes, descriptors }),
            Err(error) => {
                tracing::error!(%error, "closed an API connection: an answer does not fit a message");
                self.give_up();
            }
        }
    }

    /// Sends nothing any more. The connection goes with the next flush.
    fn give_up(&mut self) {
        self.broken = true;
        self.waiting = VecDeque::new();
    }

    fn flush(&mut self) -> Result<(), Errno> {
        while let Some(outgoing) = self.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = outgoing.descriptors.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                tracing::error!("more descriptors than a reply carries");
            }
            match sendmsg(
                &self.socket,
                &[IoSlice::new(&outgoing.bytes)],
                &mut ancillary,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(_) => {
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if self.lost_events > 0 && self.subscribed {
            let lost = std::mem::take(&mut self.lost_events);
            self.push(0, &Reply::Event(Event::Lost(lost)), vec![]);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a file that somebody else has removed already.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
