//! The thread that answers questions about names: sockets around [`Server`].
//!
//! ```text
//!  UDP, TCP ─▶ ┌────────┐ ─ wanted, at most 256 ─▶ the control plane's loop
//!              │ Server │ ◀─ updates, at most 4,096 ─
//!              └────────┘
//! ```
//!
//! It shares nothing with the loop but these two queues and its counters, so handshakes do not hold answers up. TCP connections are limited in number and
//! time (RFC 7766 §6.2).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{timeout, timeout_at};

use crate::dns::catalog::{Update, Wanted};
use crate::dns::message::QUERY_LEN_MAX;
use crate::dns::server::{Asker, Counters, Output, Server, Transport};
use crate::random::Random;
use crate::time::{Now, UnixSecs};

/// Changes that wait for the thread. Ours: all members of a network of some thousands at once.
const UPDATES_MAX: usize = 4096;
/// Names that wait for the loop.
const WANTED_MAX: usize = 256;
/// Datagrams that are taken from one socket before others have their turn.
const BUDGET: usize = 64;
/// TCP connections at a time. Ours: what a site with some resolvers needs.
const CONNECTIONS_MAX: usize = 128;
/// Questions of one connection that wait for an answer, and questions and answers that wait between tasks.
const PIPELINE_MAX: usize = 32;
/// How long a connection may say nothing, or take nothing.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// An address at which questions cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("dns.listen: {address}: {error}; is another server there? `ss -lunp` shows which")]
pub struct ListenError {
    address: SocketAddr,
    error: io::Error,
}

/// Sockets that were opened while this process still could.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// One of each kind for each address.
    pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Self, ListenError> {
        let mut sockets = Self::default();
        for address in addresses {
            let wrong = |error| ListenError { address: *address, error };
            let udp = std::net::UdpSocket::bind(address).map_err(wrong)?;
            udp.set_nonblocking(true).map_err(wrong)?;
            // The same port, where the kernel chose one.
            let tcp = std::net::TcpListener::bind(udp.local_addr().map_err(wrong)?).map_err(wrong)?;
            tcp.set_nonblocking(true).map_err(wrong)?;
            sockets.udp.push(udp);
            sockets.tcp.push(tcp);
        }
        Ok(sockets)
    }
}

/// The way to the thread, if there is one.
pub(super) struct Names {
    updates: Option<mpsc::Sender<Update>>,
    wanted: mpsc::Receiver<Wanted>,
    counted: Arc<Counted>,
}

/// What the thread has counted, to be read from outside.
#[derive(Debug, Default)]
struct Counted {
    of: [AtomicU64; 10],
    lost: AtomicU64,
}

impl Counted {
    fn set(&self, counters: Counters) {
        for (of, (_, count)) in self.of.iter().zip(counters.named()) {
            of.store(count, Ordering::Relaxed);
        }
    }
}

impl Names {
    /// Starts the thread; none where there is no socket.
    pub(super) fn start(sockets: Sockets, random: &mut impl Random) -> io::Result<Self> {
        let (updates, changes) = mpsc::channel(UPDATES_MAX);
        let (wants, wanted) = mpsc::channel(WANTED_MAX);
        let counted = Arc::new(Counted::default());
        if sockets.udp.is_empty() {
            return Ok(Self { updates: None, wanted, counted });
        }
        let server = Server::new(random, Instant::now());
        let told = Arc::clone(&counted);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            let run = local.run_until(serve(sockets, server, changes, wants, &told));
            if let Err(error) = runtime.block_on(run) {
                tracing::error!(%error, "names are answered no more");
            }
        })?;
        Ok(Self { updates: Some(updates), wanted, counted })
    }

    /// Tells the thread something. Without a thread nobody asks.
    pub(super) fn tell(&self, update: Update) {
        let Some(updates) = &self.updates else { return };
        match updates.try_send(update) {
            Ok(()) => {}
            // Whoever waits for it is answered by what there is, and asks again.
            Err(TrySendError::Full(_)) => drop(self.counted.lost.fetch_add(1, Ordering::Relaxed)),
            Err(TrySendError::Closed(_)) => tracing::debug!("the thread that answers for names has ended"),
        }
    }

    /// Something is wanted; never, without a thread.
    pub(super) async fn wanted(&mut self) -> Wanted {
        match self.wanted.recv().await {
            Some(wanted) => wanted,
            None => std::future::pending().await,
        }
    }

    pub(super) fn try_wanted(&mut self) -> Option<Wanted> {
        self.wanted.try_recv().ok()
    }

    /// What a status tells of it.
    pub(super) fn counted(&self) -> Vec<(String, u64)> {
        let names = Counters::default().named();
        let all = names.iter().zip(&self.counted.of).map(|((name, _), count)| (*name, count));
        let all = all.chain([("dns_updates_lost", &self.counted.lost)]);
        let read = all.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)));
        read.filter(|(_, count)| *count > 0).collect()
    }
}

fn now() -> Now {
    // Before 1970 there was no machine.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: UnixSecs(since.as_secs()) }
}

/// A question that came by TCP, and where its answer goes.
type Asked = (Vec<u8>, SocketAddr, mpsc::Sender<Vec<u8>>);

/// What ended a wait.
enum Wake {
    Udp(usize),
    Tcp(Asked),
    Update(Update),
    Ended,
    Time,
}

async fn serve(
    sockets: Sockets,
    mut server: Server,
    mut updates: mpsc::Receiver<Update>,
    wants: mpsc::Sender<Wanted>,
    counted: &Counted,
) -> io::Result<()> {
    let udp: Vec<UdpSocket> = sockets.udp.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>()?;
    let (to_us, mut asked) = mpsc::channel::<Asked>(PIPELINE_MAX);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for listener in sockets.tcp {
        let (listener, to_us) = (TcpListener::from_std(listener)?, to_us.clone());
        tokio::task::spawn_local(accept(listener, to_us, Arc::clone(&connections)));
    }
    let mut buffer = vec![0; QUERY_LEN_MAX + 1];
    // Answers to what came by TCP, by the number of the question.
    let mut connected: std::collections::HashMap<u64, mpsc::Sender<Vec<u8>>> = std::collections::HashMap::new();
    let mut next = udp.len() as u64;
    loop {
        let wake = wait(&udp, &mut asked, &mut updates, server.next_deadline()).await?;
        // A flood by UDP holds up neither those who wait nor those who came by TCP.
        if server.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            server.handle_timeout(now());
        }
        let (first, wake) = match wake {
            Wake::Tcp(query) => (Some(query), Wake::Time),
            other => (asked.try_recv().ok(), other),
        };
        if let Some((query, address, back)) = first {
            next = next.wrapping_add(1).max(udp.len() as u64);
            connected.insert(next, back);
            server.handle_query(&query, Asker { address, transport: Transport::Tcp, port: next }, now());
        }
        match wake {
            Wake::Ended => return Ok(()),
            Wake::Update(update) => {
                server.handle_update(update, now());
                while let Ok(update) = updates.try_recv() {
                    server.handle_update(update, now());
                }
            }
            Wake::Udp(at) => {
                for _ in 0..BUDGET {
                    let (len, address) = match udp[at].try_recv_from(&mut buffer) {
                        Ok(received) => received,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        // An ICMP error for an earlier answer: the next datagram is another matter.
                        Err(_) => continue,
                    };
                    let asker = Asker { address, transport: Transport::Udp, port: at as u64 };
                    server.handle_query(&buffer[..len], asker, now());
                }
            }
            Wake::Time | Wake::Tcp(_) => {}
        }
        while let Some(output) = server.poll_output() {
            match output {
                Output::Reply(Asker { transport: Transport::Udp, port, address }, bytes) => {
                    // A full queue drops it, as the network may; whoever asked asks again.
                    let _ = udp[port as usize].try_send_to(&bytes, address);
                }
                Output::Reply(Asker { transport: Transport::Tcp, port, .. }, bytes) => {
                    if let Some(back) = connected.remove(&port) {
                        // Whoever has gone, or takes nothing, gets nothing.
                        let _ = back.try_send(bytes);
                    }
                }
                Output::Want(wanted) => {
                    if let Err(TrySendError::Full(wanted) | TrySendError::Closed(wanted)) = wants.try_send(wanted) {
                        server.handle_update(Update::Failed(wanted), now());
                    }
                }
            }
        }
        connected.retain(|_, back| !back.is_closed());
        counted.set(server.counters());
    }
}

async fn wait(
    udp: &[UdpSocket],
    asked: &mut mpsc::Receiver<Asked>,
    updates: &mut mpsc::Receiver<Update>,
    deadline: Option<Instant>,
) -> io::Result<Wake> {
    let something = async {
        tokio::select! {
            biased;
            update = updates.recv() => Ok(update.map_or(Wake::Ended, Wake::Update)),
            at = readable(udp) => at.map(Wake::Udp),
            Some(query) = asked.recv() => Ok(Wake::Tcp(query)),
        }
    };
    match deadline {
        Some(deadline) => timeout_at(deadline.into(), something).await.unwrap_or(Ok(Wake::Time)),
        None => something.await,
    }
}

/// Which socket has something; at most eight are asked.
async fn readable(udp: &[UdpSocket]) -> io::Result<usize> {
    std::future::poll_fn(|context| {
        for (at, socket) in udp.iter().enumerate() {
            if let std::task::Poll::Ready(ready) = socket.poll_recv_ready(context) {
                return std::task::Poll::Ready(ready.map(|()| at));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn accept(listener: TcpListener, to_us: mpsc::Sender<Asked>, connections: Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let to_us = to_us.clone();
                tokio::task::spawn_local(async move {
                    // Whatever it is, only this connection ends.
                    if let Err(error) = converse(stream, address, &to_us).await {
                        tracing::trace!(%address, %error, "a DNS connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => tracing::debug!(%error, "a DNS connection was not taken"),
        }
    }
}

/// Questions and answers of one connection (RFC 1035 §4.2.2); they go as they come (RFC 7766 §6.2.1.1).
async fn converse(stream: TcpStream, address: SocketAddr, to_us: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let (back, mut answers) = mpsc::channel::<Vec<u8>>(PIPELINE_MAX);
    let ask = async move {
        loop {
            let len = match timeout(IDLE_MAX, read.read_u16()).await? {
                Ok(len) => len,
                // It asks no more; what it has asked is answered still.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut query = vec![0; len.into()];
            timeout(IDLE_MAX, read.read_exact(&mut query)).await??;
            if to_us.send((query, address, back.clone())).await.is_err() {
                return Ok(());
            }
        }
    };
    let answer = async {
        // What is not answered ends the connection as well, also one that was closed on the other side.
        while let Some(bytes) = timeout(IDLE_MAX, answers.recv()).await? {
            let whole = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
            timeout(IDLE_MAX, write.write_all(&whole)).await??;
        }
        Ok(())
    };
    tokio::try_join!(ask, answer).map(drop)
}
