//! The API socket: connections in, messages out, every queue bounded. It knows no request's meaning.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, connect, listen, recv, sendmsg, socket_with,
};

use crate::api::codec::{self, DecodeError};
use crate::api::message::{Event, Refusal, Reply, Request};
use crate::api::{MESSAGE_LEN_MAX, VERSION};

/// Most connections at a time.
pub(super) const CLIENTS_MAX: usize = 32;
/// Most messages that wait for one connection. A dump of everything there can be fits; a reader that stands still loses events beyond it.
pub(super) const REPLIES_MAX: usize = 32 * 1024;
/// Most requests of one connection that are answered before the others are looked at.
pub(super) const REQUESTS_PER_TURN: usize = 64;

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another plane listens there.
    #[error("another packet plane already listens at {0}: stop it, or set api.socket to another path")]
    InUse(PathBuf),
    /// The path cannot be used.
    #[error("cannot listen at {path}: {error}; check that the directory exists and is writable, or set api.socket")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
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
}

/// The listening socket and its connections. The socket file goes when this is dropped.
pub(super) struct Server {
    socket: OwnedFd,
    path: PathBuf,
    clients: Vec<Client>,
    next_client: u64,
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
        let socket = seqpacket().map_err(|errno| failed(errno.into()))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                let probe = seqpacket().map_err(|errno| failed(errno.into()))?;
                // A socket that nobody listens at was left by a plane that was killed.
                if connect(&probe, &address) != Err(Errno::CONNREFUSED) {
                    return Err(ServerError::InUse(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(failed)?;
                bind(&socket, &address).map_err(|errno| failed(errno.into()))?;
            }
            done => done.map_err(|errno| failed(errno.into()))?,
        }
        let server = Self { socket, path: path.to_owned(), clients: vec![], next_client: 0 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(server)
    }

    /// Lets clients in.
    pub(super) fn listen(&self) -> Result<(), ServerError> {
        listen(&self.socket, CLIENTS_MAX as i32)
            .map_err(|errno| ServerError::Path { path: self.path.clone(), error: errno.into() })
    }

    /// What to wait for: the descriptors, each with whether it should be written to as well.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let clients = self.clients.iter().map(|client| (client.socket.as_fd(), !client.waiting.is_empty()));
        std::iter::once((self.socket.as_fd(), false)).chain(clients)
    }

    /// Takes new connections and reads requests. Undecodable ones are answered here.
    pub(super) fn receive(&mut self) -> Vec<Incoming> {
        self.accept();
        let mut requests = vec![];
        let mut gone = vec![];
        let mut buffer = vec![MaybeUninit::uninit(); MESSAGE_LEN_MAX + 1];
        for client in &mut self.clients {
            for _ in 0..REQUESTS_PER_TURN {
                // Who does not read answers gets no more of them.
                if client.waiting.len() >= REPLIES_MAX / 2 {
                    break;
                }
                match recv(&client.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok(((bytes, _), _)) if !bytes.is_empty() => match codec::decode(bytes) {
                        Ok((id, request)) => match client.admit(id, request) {
                            Some(request) => requests.push(Incoming { client: client.id, id, request }),
                            None => continue,
                        },
                        Err(error) => client.refuse(&error),
                    },
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
            });
        }
    }

    /// Queues an answer. A client that is gone needs none.
    pub(super) fn reply(&mut self, to: ClientId, id: u32, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == to) {
            client.push(id, reply, descriptors);
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
            if client.waiting.len() >= REPLIES_MAX / 2 {
                client.lost_events += 1;
            } else {
                client.push(0, &Reply::Event(event.clone()), vec![]);
            }
        }
    }

    /// Sends what the sockets take.
    pub(super) fn flush(&mut self) {
        self.clients.retain_mut(|client| client.flush().is_ok());
    }
}

impl Client {
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
        if self.waiting.len() >= REPLIES_MAX {
            self.lost_events += 1;
            return;
        }
        match codec::encode(id, reply) {
            Ok(bytes) => self.waiting.push_back(Outgoing { bytes, descriptors }),
            Err(error) => tracing::error!(%error, "a reply does not fit a message"),
        }
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
