//! The sockets that QUIC goes by: the packet plane's control sockets once there is one, sockets of our own before.
//!
//! The packet plane makes every socket of the port, so that they form one reuseport group, and hands the control sockets over. What is
//! marked as sealed data is dropped here unread: with the packet plane dead, a lone control socket receives all of the port.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;

use quinn_udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::contact::FIRST_BYTE;
use crate::quic::Transmit;

/// Bytes of one receive: a whole merged train.
const BUFFER_LEN: usize = 64 * 1024;
/// Messages of one system call.
const BATCH: usize = 8;
/// The first byte of a sealed datagram of ours is 0x20..0x3f (docs/wire-format.md); the packet plane's own, but for those of contact sessions.
const SEALED: std::ops::RangeInclusive<u8> = 0x20..=0x3f;

/// A socket of one family.
struct Socket {
    inner: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Socket {
    fn new(socket: StdUdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        Ok(Self { inner: UdpSocket::from_std(socket)?, state, local })
    }
}

/// A datagram that came in.
#[derive(Debug)]
pub struct Received<'a> {
    /// From where.
    pub from: SocketAddr,
    /// To which of our addresses.
    pub to: Option<std::net::IpAddr>,
    /// Its two bits of congestion notification.
    pub ecn: Option<u8>,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The sockets, IPv4 and IPv6 as far as there are any.
pub struct ControlSockets {
    sockets: Vec<Socket>,
    port: Option<u16>,
    /// The packet plane has made them, and not we.
    are_lent: bool,
    buffers: [Vec<u8>; BATCH],
    /// Sealed datagrams that came, at these sockets and those before them, and how many of them the log has told of.
    sealed: u64,
    sealed_told: u64,
}

impl ControlSockets {
    /// Sockets of our own on any free port, for a node that has no packet plane yet.
    ///
    /// # Errors
    /// When neither family can be used.
    pub fn unbound() -> io::Result<Self> {
        let bind = |address: SocketAddr| StdUdpSocket::bind(address);
        let v4 = bind((Ipv4Addr::UNSPECIFIED, 0).into());
        let v6 = bind((Ipv6Addr::UNSPECIFIED, 0).into());
        // A host may lack one family; without both there is nothing to speak with.
        let sockets: Vec<StdUdpSocket> = match (v4, v6) {
            (Err(error), Err(_)) => return Err(error),
            (v4, v6) => v4.into_iter().chain(v6).collect(),
        };
        Self::of(sockets, false)
    }

    /// The packet plane is gone: the sockets that it made go with it, for a lone control socket would receive all of the port, and the next
    /// packet plane could not have it. QUIC goes on when that hands over new ones of the same port. Sockets of our own stay.
    pub fn plane_gone(&mut self) {
        if self.are_lent {
            self.let_go();
        }
    }

    /// Lets the sockets go, and says what came to them that was nobody's.
    pub fn let_go(&mut self) {
        self.sockets = vec![];
        let count = self.sealed - std::mem::replace(&mut self.sealed_told, self.sealed);
        if count > 0 {
            tracing::info!(
                count,
                "sealed datagrams came to the control sockets while no worker took them; dropped unread"
            );
        }
    }

    /// Lets these sockets go for others, which go on counting.
    pub fn replace(&mut self, by: Self) {
        self.let_go();
        *self = Self { sealed: self.sealed, sealed_told: self.sealed_told, ..by };
    }

    /// Sealed datagrams that came since the start: nobody else was there to take them.
    pub const fn sealed(&self) -> u64 {
        self.sealed
    }

    /// The sockets that the packet plane handed over.
    ///
    /// # Errors
    /// When the kernel refuses an option or a registration.
    pub fn adopted(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        Self::of(descriptors.into_iter().map(StdUdpSocket::from).collect(), true)
    }

    fn of(sockets: Vec<StdUdpSocket>, are_lent: bool) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(Socket::new).collect::<io::Result<Vec<Socket>>>()?;
        let port = sockets.first().map(|socket| socket.local.port());
        let buffers = std::array::from_fn(|_| vec![0; BUFFER_LEN]);
        Ok(Self { sockets, port, are_lent, buffers, sealed: 0, sealed_told: 0 })
    }

    /// The port that peers see; the last one, while there are no sockets.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Waits until one of them has something.
    ///
    /// # Errors
    /// When the runtime cannot wait.
    pub async fn readable(&self) -> io::Result<()> {
        match self.sockets.as_slice() {
            [] => std::future::pending().await,
            [one] => one.inner.readable().await,
            [one, other, ..] => {
                tokio::select! {
                    ready = one.inner.readable() => ready,
                    ready = other.inner.readable() => ready,
                }
            }
        }
    }

    /// Takes what waits, at most `budget` system calls for each socket.
    pub fn receive(&mut self, budget: usize, mut take: impl FnMut(Received<'_>)) {
        for socket in &self.sockets {
            for _ in 0..budget {
                let mut metas = [RecvMeta::default(); BATCH];
                let got = {
                    let mut slices = self.buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
                    socket.inner.try_io(Interest::READABLE, || {
                        socket.state.recv(UdpSockRef::from(&socket.inner), &mut slices, &mut metas)
                    })
                };
                // Nothing there, or an error of an earlier send to somebody, which is not the next datagram's business.
                let Ok(count) = got else { break };
                for (meta, buffer) in metas.iter().zip(&self.buffers).take(count) {
                    for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                        if datagram.first().is_none_or(|first| SEALED.contains(first) && *first != FIRST_BYTE) {
                            self.sealed += u64::from(!datagram.is_empty());
                            continue;
                        }
                        take(Received {
                            from: plain(meta.addr),
                            to: meta.dst_ip,
                            ecn: meta.ecn.map(|ecn| ecn as u8),
                            data: datagram,
                        });
                    }
                }
            }
        }
    }

    /// Sends what QUIC made. What the kernel does not take is lost, as on any network; QUIC sends again.
    pub fn send(&self, transmit: &Transmit, contents: &[u8]) {
        let of_its_family = |socket: &&Socket| socket.local.is_ipv4() == transmit.to.is_ipv4();
        let Some(socket) = self.sockets.iter().find(of_its_family) else { return };
        let transmit = quinn_udp::Transmit {
            destination: transmit.to,
            ecn: transmit.ecn.and_then(EcnCodepoint::from_bits),
            contents,
            segment_size: transmit.segment_len,
            src_ip: transmit.from_ip,
        };
        let _ = socket.state.try_send(UdpSockRef::from(&socket.inner), &transmit);
    }

    /// Sends a datagram from a port that nothing else is sent from. What the kernel does not take is lost.
    pub fn probe(&self, to: SocketAddr, contents: &[u8]) {
        if let Err(error) = send_from_elsewhere(to, contents) {
            tracing::debug!(%error, %to, "a probe is not sent");
        }
    }
}

/// Sends one datagram from a port of its own, which is let go again: to who has a firewall with a memory it comes from nobody.
fn send_from_elsewhere(to: SocketAddr, contents: &[u8]) -> io::Result<()> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = StdUdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.send_to(contents, to).map(drop)
}

/// An IPv4 address that came by an IPv6 socket, as the IPv4 address that it is.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(sockets: &mut ControlSockets) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = vec![];
        sockets.readable().await.unwrap();
        sockets.receive(4, |datagram| all.push((datagram.from, datagram.data.to_vec())));
        all
    }

    #[tokio::test(flavor = "current_thread")]
    async fn datagrams_cross_and_sealed_data_is_not_read() {
        let (mut one, other) = (ControlSockets::unbound().unwrap(), StdUdpSocket::bind("127.0.0.1:0").unwrap());
        let to: SocketAddr = (Ipv4Addr::LOCALHOST, one.port().unwrap()).into();
        other.send_to(&[0x20, 1, 2], to).unwrap();
        other.send_to(&[0xc0, 1, 2], to).unwrap();
        let mut all = vec![];
        while all.is_empty() {
            all = received(&mut one).await;
        }
        assert_eq!((all, one.sealed()), (vec![(other.local_addr().unwrap(), vec![0xc0, 1, 2])], 1));

        let to = other.local_addr().unwrap();
        one.send(&Transmit { to, from_ip: None, ecn: None, len: 3, segment_len: None }, b"abc");
        let mut buffer = [0; 16];
        assert_eq!(other.recv_from(&mut buffer).unwrap().0, 3);
        one.send(&Transmit { to, from_ip: None, ecn: None, len: 6, segment_len: Some(3) }, b"abcdef");
        assert_eq!((other.recv_from(&mut buffer).unwrap().0, other.recv_from(&mut buffer).unwrap().0), (3, 3));

        // Other sockets take their place and go on with the count.
        one.replace(ControlSockets::unbound().unwrap());
        assert_eq!((one.sealed(), one.sealed_told), (1, 1));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn sockets_go_with_the_packet_plane_that_made_them_and_our_own_stay() {
        let socket = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut sockets = ControlSockets::adopted(vec![socket.into()]).unwrap();
        sockets.plane_gone();
        assert_eq!(sockets.port(), Some(port), "what peers see stays");
        StdUdpSocket::bind(("127.0.0.1", port)).expect("the next packet plane can have the port");

        sockets.replace(ControlSockets::unbound().unwrap());
        sockets.plane_gone();
        assert!(!sockets.sockets.is_empty());
    }
}
