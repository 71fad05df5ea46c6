//! The control plane's end of the socket: one request, one answer, and events in between.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};

use super::ROUTES_PER_MESSAGE;
use super::codec::{DecodeError, TooLong};
use super::connection::{Connection, Received};
use super::message::{Counters, DumpItem, Event, Incarnation, Offer, Refusal, Reply, Request, ReservationId, Route};
use super::policy::{self, PolicyRule};

/// Longest wait for an answer. The plane answers from memory; a second is already a sign of trouble.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most events that are kept for [`Client::next_event`] while answers are awaited.
const EVENTS_MAX: usize = 4096;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No plane listens there.
    #[error(
        "cannot reach the packet plane at {path}: {error}; is weir-dataplane running, and may this user open the socket?"
    )]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the packet plane broke: {0}")]
    Broken(#[from] io::Error),
    /// The plane closed the connection.
    #[error("the packet plane closed the connection")]
    Closed,
    /// The plane refused.
    #[error("the packet plane refused: {0}")]
    Refused(#[from] Refusal),
    /// The answer does not decode.
    #[error("the packet plane's answer is not understood: {0}")]
    Decode(#[from] DecodeError),
    /// The request is too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The plane does not read as fast as it is asked; only [`Connection::send`] says so.
    #[error(
        "the packet plane has not read what it was sent before: wait until the socket is writable, then send again"
    )]
    Full,
    /// An answer that does not belong to the request.
    #[error("the packet plane answered something else: {0:?}")]
    Unexpected(Box<Reply>),
}

impl From<rustix::io::Errno> for ClientError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Broken(errno.into())
    }
}

/// What the plane said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// This life of the plane.
    pub incarnation: Incarnation,
    /// Its worker threads.
    pub workers: u8,
    /// Its UDP port.
    pub port: u16,
    /// Version of the program.
    pub program: String,
}

/// A connection to a packet plane.
pub struct Client {
    connection: Connection,
    welcome: Welcome,
    events: VecDeque<Event>,
}

impl Client {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path, name: &str) -> Result<Self, ClientError> {
        let nobody = Welcome { incarnation: Incarnation(0), workers: 0, port: 0, program: String::new() };
        let mut client = Self { connection: Connection::open(path)?, welcome: nobody, events: VecDeque::new() };
        client.welcome = match client.request(&Request::Hello { name: name.to_owned() })? {
            Reply::Welcome { incarnation, workers, port, program } => Welcome { incarnation, workers, port, program },
            other => return Err(unexpected(other)),
        };
        Ok(client)
    }

    /// What the plane said of itself when the connection opened.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends a request and waits for its first answer. Events that arrive meanwhile are kept for [`Self::next_event`].
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] when the plane said no.
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let id = self.send(request)?;
        self.answer(id)
    }

    /// Sends a request that is answered by [`Reply::Done`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn order(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.request(request)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Reserves receiver indices for the lanes that a peer will seal.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reserve(&mut self, lanes: u8) -> Result<(ReservationId, Offer), ClientError> {
        match self.request(&Request::Reserve { lanes })? {
            Reply::Reserved { reservation, offer } => Ok((reservation, offer)),
            other => Err(unexpected(other)),
        }
    }

    /// Replaces the routing snapshot.
    ///
    /// # Errors
    /// [`ClientError`]; then the snapshot before is still in force.
    pub fn set_routes(&mut self, routes: &[Route]) -> Result<(), ClientError> {
        self.order(&Request::DiscardRoutes)?;
        for chunk in routes.chunks(ROUTES_PER_MESSAGE) {
            self.order(&Request::StageRoutes(chunk.to_vec()))?;
        }
        self.order(&Request::CommitRoutes)
    }

    /// Replaces the policy.
    ///
    /// # Errors
    /// [`ClientError`]; then the policy before is still in force.
    pub fn set_policy(&mut self, rules: &[PolicyRule], default_allow: bool, version: u64) -> Result<(), ClientError> {
        self.order(&Request::DiscardPolicy)?;
        for request in policy::stage(rules) {
            self.order(&request)?;
        }
        self.order(&Request::CommitPolicy { default_allow, version })
    }

    /// All counters of the plane.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn counters(&mut self) -> Result<Counters, ClientError> {
        match self.request(&Request::Counters)? {
            Reply::Counters(counters) => Ok(*counters),
            other => Err(unexpected(other)),
        }
    }

    /// Everything but keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dump(&mut self) -> Result<Vec<DumpItem>, ClientError> {
        let id = self.send(&Request::Dump)?;
        let mut items = vec![];
        loop {
            match self.answer(id)? {
                Reply::Dump(item) => items.push(item),
                Reply::Done => return Ok(items),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Takes the control sockets over, IPv4 first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn take_control_sockets(&mut self) -> Result<Vec<OwnedFd>, ClientError> {
        let id = self.send(&Request::TakeControlSockets)?;
        loop {
            let (answered, reply, descriptors) = self.receive(ANSWER_TIMEOUT)?.ok_or(ClientError::Closed)?;
            match reply {
                Reply::Event(event) => self.keep(event),
                Reply::ControlSockets { count } if answered == id && usize::from(count) == descriptors.len() => {
                    return Ok(descriptors);
                }
                Reply::Refused(refusal) if answered == id => return Err(refusal.into()),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// The next event, if one comes in time. Needs [`Request::Subscribe`] first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.receive(timeout) {
            Ok(Some((_, Reply::Event(event), _))) => Ok(Some(event)),
            Ok(Some((_, other, _))) => Err(unexpected(other)),
            Ok(None) => Err(ClientError::Closed),
            Err(ClientError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, request: &Request) -> Result<u32, ClientError> {
        self.connection.transmit(request, SendFlags::empty())
    }

    fn answer(&mut self, id: u32) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let (answered, reply, _) = self.receive(left)?.ok_or(ClientError::Closed)?;
            match reply {
                Reply::Event(event) => self.keep(event),
                Reply::Refused(refusal) if answered == id => return Err(refusal.into()),
                reply if answered == id => return Ok(reply),
                other => return Err(unexpected(other)),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else if let Some(Event::Lost(count)) = self.events.back_mut() {
            *count += 1;
        } else if let Some(last) = self.events.back_mut() {
            *last = Event::Lost(2);
        }
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<Received>, ClientError> {
        set_socket_timeout(&self.connection, Timeout::Recv, Some(timeout))?;
        self.connection.take(RecvFlags::empty())
    }
}

fn unexpected(reply: Reply) -> ClientError {
    ClientError::Unexpected(Box::new(reply))
}
