//! One end of the socket, message by message: for a shell that waits for many things at once and must not wait in here.
//!
//! ```text
//!   shell:   wait until readable ─▶ try_receive … until None ─▶ wait
//!            send ─▶ id; Err(Full): wait until writable, then send again
//! ```
//!
//! Nothing here blocks, whatever mode the descriptor is in. Which answer belongs to which request, and what an event means, is the caller's
//! business; [`Client`](super::Client) is the same socket for those who may wait.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recvmsg, send, socket_with,
};
use zeroize::Zeroize as _;

use super::client::ClientError;
use super::message::{Reply, Request};
use super::{MESSAGE_LEN_MAX, codec};

/// A message of the plane: the id of the request that it answers, what it says, and descriptors that came with it.
pub type Received = (u32, Reply, Vec<OwnedFd>);

/// A connection to a packet plane.
pub struct Connection {
    pub(super) socket: OwnedFd,
    next_id: u32,
    pub(super) buffer: Vec<u8>,
}

impl Connection {
    /// Connects. The first request must be [`Request::Hello`].
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let failed = |errno: Errno| ClientError::Connect { path: path.to_owned(), error: errno.into() };
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
        Ok(Self::of(socket))
    }

    /// A connection over a socket that is connected already.
    pub(super) fn of(socket: OwnedFd) -> Self {
        Self { socket, next_id: 1, buffer: vec![0; MESSAGE_LEN_MAX] }
    }

    /// Another descriptor of the same socket, for whoever waits on it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Sends a request. Returns the id that its answer will carry.
    ///
    /// # Errors
    /// [`ClientError::Full`] when the socket takes nothing now, and nothing was sent; otherwise as for any request.
    pub fn send(&mut self, request: &Request) -> Result<u32, ClientError> {
        match self.transmit(request, SendFlags::DONTWAIT) {
            Err(ClientError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(ClientError::Full),
            done => done,
        }
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// [`ClientError::Closed`] when there will be no more; [`ClientError::Decode`] for one that is not understood.
    pub fn try_receive(&mut self) -> Result<Option<Received>, ClientError> {
        match self.take(RecvFlags::DONTWAIT) {
            Ok(message) => message.ok_or(ClientError::Closed).map(Some),
            Err(ClientError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn transmit(&mut self, request: &Request, flags: SendFlags) -> Result<u32, ClientError> {
        let id = self.next_id;
        let encoded = codec::encode_to(&mut self.buffer, id, request);
        let sent = encoded.map(|len| {
            rustix::io::retry_on_intr(|| send(&self.socket, &self.buffer[..len], flags | SendFlags::NOSIGNAL))
        });
        // An install holds a secret.
        self.buffer[..].zeroize();
        sent??;
        // Id 0 is for events.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        Ok(id)
    }

    /// The next message; `None` when the plane has closed the connection.
    pub(super) fn take(&mut self, flags: RecvFlags) -> Result<Option<Received>, ClientError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [io::IoSliceMut::new(&mut self.buffer)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::io::retry_on_intr(|| recvmsg(&self.socket, &mut slices, &mut ancillary, flags))?;
        if got.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = vec![];
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let (id, reply) = codec::decode(&self.buffer[..got.bytes])?;
        Ok(Some((id, reply, descriptors)))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{recv, sendmsg, socketpair};

    use super::*;
    use crate::api::message::{Event, Incarnation, Install, Offer, ReservationId, Salt, Secret, SessionId};

    fn pair() -> (Connection, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Connection::of(ours), theirs)
    }

    #[test]
    fn a_sent_secret_is_erased() {
        let (mut connection, theirs) = pair();
        let peer =
            Offer { incarnation: Incarnation(1), salt: Salt::default(), indices: vec![], has_aes: true, lane_ports: 0 };
        let install = |sources: usize| {
            Request::Install(Box::new(Install {
                session: SessionId(1),
                reservation: ReservationId(1),
                incarnation: Incarnation(2),
                peer: peer.clone(),
                secret: Secret::new([0xa5; 32]),
                initiator: true,
                endpoint: "192.0.2.1:4646".parse().unwrap(),
                sources: vec!["10.0.0.0/8".parse().unwrap(); sources],
                datagram_len_max: 1472,
                inner_mtu: 1420,
                rate: None,
                activate: true,
                idle_after_s: 0,
            }))
        };
        connection.send(&install(1)).unwrap();
        let mut sent = vec![0; MESSAGE_LEN_MAX];
        let (len, _) = recv(&theirs, &mut sent[..], RecvFlags::empty()).unwrap();
        assert!(sent[..len].windows(32).any(|window| window == [0xa5; 32]));
        assert!(connection.buffer.len() == MESSAGE_LEN_MAX && connection.buffer.iter().all(|&byte| byte == 0));
        // One that is too long leaves nothing either.
        assert!(matches!(connection.send(&install(MESSAGE_LEN_MAX)), Err(ClientError::TooLong(_))));
        assert!(connection.buffer.iter().all(|&byte| byte == 0));
        drop(theirs);
        assert!(matches!(connection.send(&install(1)), Err(ClientError::Broken(_))));
        assert!(connection.buffer.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn nothing_waits_for_the_plane() {
        let (mut connection, theirs) = pair();
        assert!(connection.try_receive().unwrap().is_none());
        let echo = Reply::Event(Event::Idle(SessionId(7)));
        for (id, reply) in [(0, &echo), (1, &Reply::Done)] {
            send(&theirs, &codec::encode(id, reply).unwrap(), SendFlags::empty()).unwrap();
        }
        let mut received = || connection.try_receive().unwrap().map(|(id, reply, sockets)| (id, reply, sockets.len()));
        assert_eq!(received(), Some((0, echo, 0)));
        assert_eq!(received(), Some((1, Reply::Done, 0)));
        assert_eq!(received(), None);
        drop(theirs);
        assert!(matches!(connection.try_receive(), Err(ClientError::Closed)));
    }

    #[test]
    fn a_full_socket_takes_the_same_request_later_under_the_same_id() {
        let (mut connection, theirs) = pair();
        let mut sent = 0;
        while let Ok(id) = connection.send(&Request::Counters) {
            sent += 1;
            assert_eq!(id, sent);
        }
        assert!(matches!(connection.send(&Request::Counters), Err(ClientError::Full)));
        let mut bytes = vec![0; MESSAGE_LEN_MAX];
        for id in 1..=sent {
            let (len, _) = recv(&theirs, &mut bytes[..], RecvFlags::empty()).unwrap();
            assert_eq!(codec::decode::<Request>(&bytes[..len]).unwrap().0, id);
        }
        assert_eq!(connection.send(&Request::Counters).unwrap(), sent + 1);
    }

    #[test]
    fn descriptors_come_with_their_message() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
        let (mut connection, theirs) = pair();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let passed = [theirs.as_fd(), connection.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        let bytes = codec::encode(4, &Reply::ControlSockets { count: 2 }).unwrap();
        sendmsg(&theirs, &[io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        let (id, reply, sockets) = connection.try_receive().unwrap().unwrap();
        assert_eq!((id, reply, sockets.len()), (4, Reply::ControlSockets { count: 2 }, 2));
        assert!(connection.try_clone().is_ok());
    }
}
