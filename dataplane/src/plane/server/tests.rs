use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, send, shutdown};

use super::*;
use crate::api::Client as ApiClient;
use crate::api::codec::{decode, encode};
use crate::api::message::{DumpItem, Incarnation, Install, Offer, ReservationId, Secret, SessionId};

/// A directory of a test's own, gone at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-server-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("plane.sock")
    }

    fn server(&self) -> Server {
        let server = Server::bind(&self.socket()).unwrap();
        server.listen().unwrap();
        server
    }

    /// A connection that sends whatever it is told to.
    fn connect(&self) -> Raw {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(self.socket()).unwrap()).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5))).unwrap();
        Raw(socket)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Raw(OwnedFd);

impl Raw {
    fn send(&self, bytes: &[u8]) {
        assert_eq!(send(&self.0, bytes, SendFlags::NOSIGNAL), Ok(bytes.len()));
    }

    fn request(&self, id: u32, request: &Request) {
        self.send(&encode(id, request).unwrap());
    }

    fn hello(&self, server: &mut Server) {
        self.request(1, &hello());
        turn(server);
        assert_eq!(self.reply(), Some((1, Reply::Done)));
    }

    /// The next reply, waited for; `None` when the server has closed.
    fn reply(&self) -> Option<(u32, Reply)> {
        let mut buffer = vec![0; MESSAGE_LEN_MAX];
        match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) | Err(Errno::CONNRESET) => None,
            Ok((len, _)) => Some(decode(&buffer[..len]).unwrap()),
            Err(errno) => panic!("no reply: {errno}"),
        }
    }

    fn is_silent(&self) -> bool {
        recv(&self.0, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK) == Err(Errno::AGAIN)
    }
}

fn hello() -> Request {
    Request::Hello { name: "test".to_owned() }
}

/// One turn of a plane that answers everything with `Done`. Returns what it was asked.
fn turn(server: &mut Server) -> Vec<Request> {
    let incoming = server.receive();
    for incoming in &incoming {
        server.reply(incoming.client, incoming.id, &Reply::Done, vec![]);
    }
    server.flush();
    incoming.into_iter().map(|incoming| incoming.request).collect()
}

#[test]
fn a_request_before_the_greeting_is_refused() {
    let directory = Directory::new();
    let mut server = directory.server();
    let client = directory.connect();
    client.request(7, &Request::Dump);
    assert_eq!(turn(&mut server).len(), 0);
    assert_eq!(client.reply(), Some((7, Reply::Refused(Refusal::NoHello))));
    client.hello(&mut server);
    client.request(8, &Request::Dump);
    assert!(matches!(turn(&mut server)[..], [Request::Dump]));
    assert_eq!(client.reply(), Some((8, Reply::Done)));
    // The greeting is each connection's own.
    let other = directory.connect();
    other.request(1, &Request::Dump);
    assert_eq!(turn(&mut server).len(), 0);
    assert_eq!(other.reply(), Some((1, Reply::Refused(Refusal::NoHello))));
}

#[test]
fn what_is_no_message_is_answered_and_the_connection_stays_usable() {
    let directory = Directory::new();
    let mut server = directory.server();
    let client = directory.connect();
    let good = encode(0x0102_0304, &hello()).unwrap();
    let unknown = [&good[..codec::HEADER_LEN], &[0x7f]].concat();
    let newer = [&[VERSION as u8 + 1][..], &good[1..]].concat();
    let longer = [&good[..], &[0]].concat();
    for (bytes, id) in [
        (&good[..1], 0),
        (&good[..codec::HEADER_LEN - 1], 0),
        (&good[..codec::HEADER_LEN], 0x0102_0304),
        (&good[..good.len() - 1], 0x0102_0304),
        (&longer, 0x0102_0304),
        (&unknown, 0x0102_0304),
        (&newer, 0x0102_0304),
    ] {
        client.send(bytes);
        assert_eq!(turn(&mut server).len(), 0, "{bytes:?}");
        let (answered, Reply::Refused(refusal)) = client.reply().unwrap() else { panic!("{bytes:?} is not refused") };
        let right = if bytes == newer {
            refusal == Refusal::Version { ours: VERSION, theirs: VERSION + 1 }
        } else {
            matches!(refusal, Refusal::Malformed(_))
        };
        assert!(answered == id && right, "{bytes:?}: {refusal}");
    }
    client.hello(&mut server);
}

#[test]
fn a_message_over_the_limit_is_refused_whatever_it_says() {
    let directory = Directory::new();
    let mut server = directory.server();
    let client = directory.connect();
    let name = |len: usize| Request::Hello { name: "x".repeat(len) };
    let overhead = encode(0, &name(MESSAGE_LEN_MAX / 2)).unwrap().len() - MESSAGE_LEN_MAX / 2;
    let longest = encode(9, &name(MESSAGE_LEN_MAX - overhead)).unwrap();
    client.send(&longest);
    assert_eq!(turn(&mut server).len(), 1);
    assert_eq!(client.reply(), Some((9, Reply::Done)));
    // These decode but for their length: the first is whole, the second is cut to its size by the buffer.
    let mut over =
        postcard::to_extend(&name(MESSAGE_LEN_MAX - overhead + 1), longest[..codec::HEADER_LEN].to_vec()).unwrap();
    assert_eq!(over.len(), MESSAGE_LEN_MAX + 1);
    for _ in 0..2 {
        client.send(&over);
        assert_eq!(turn(&mut server).len(), 0);
        let Some((9, Reply::Refused(Refusal::Malformed(why)))) = client.reply() else { panic!("it is not refused") };
        assert!(why.contains(&MESSAGE_LEN_MAX.to_string()), "{why}");
        over.resize(3 * MESSAGE_LEN_MAX, 0);
    }
    client.hello(&mut server);
}

#[test]
fn a_received_secret_is_erased() {
    let directory = Directory::new();
    let mut server = directory.server();
    let client = directory.connect();
    client.hello(&mut server);
    let peer = Offer { incarnation: Incarnation(1), salt: [0; 16], indices: vec![1], has_aes: true, lane_ports: 0 };
    client.request(
        2,
        &Request::Install(Box::new(Install {
            session: SessionId(1),
            reservation: ReservationId(1),
            incarnation: Incarnation(2),
            peer,
            secret: Secret::new([0xa5; 32]),
            initiator: true,
            endpoint: "192.0.2.1:4646".parse().unwrap(),
            sources: vec![],
            datagram_len_max: 1472,
            inner_mtu: 1420,
            rate: None,
            activate: true,
            idle_after_s: 0,
        })),
    );
    let requests = turn(&mut server);
    let [Request::Install(install)] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(install.secret.expose(), &[0xa5; 32]);
    assert!(server.buffer.len() > MESSAGE_LEN_MAX && server.buffer.iter().all(|&byte| byte == 0));
}

#[test]
fn connections_are_limited_and_a_place_is_free_again() {
    let directory = Directory::new();
    let mut server = directory.server();
    let mut clients = vec![];
    for _ in 0..CLIENTS_MAX {
        let client = directory.connect();
        client.hello(&mut server);
        clients.push(client);
    }
    let refused = directory.connect();
    turn(&mut server);
    assert_eq!(server.clients.len(), CLIENTS_MAX);
    assert_eq!(refused.reply(), None);
    clients.pop();
    turn(&mut server);
    assert_eq!(server.clients.len(), CLIENTS_MAX - 1);
    directory.connect().hello(&mut server);
}

#[test]
fn a_turn_ends_at_its_limit() {
    let directory = Directory::new();
    let mut server = directory.server();
    let client = directory.connect();
    client.hello(&mut server);
    for id in 0..=REQUESTS_PER_TURN as u32 {
        client.request(id, &Request::Counters);
    }
    assert_eq!(turn(&mut server).len(), REQUESTS_PER_TURN);
    assert_eq!(turn(&mut server).len(), 1);
    for id in 0..=REQUESTS_PER_TURN as u32 {
        assert_eq!(client.reply(), Some((id, Reply::Done)));
    }
}

/// A connection for which so many messages wait in the server, none of them flushed, and its id.
fn behind(directory: &Directory, server: &mut Server, waiting: usize) -> (Raw, ClientId) {
    let client = directory.connect();
    client.hello(server);
    let id = server.clients.last().unwrap().id;
    (0..waiting).for_each(|n| server.reply(id, n as u32, &Reply::Done, vec![]));
    (client, id)
}

#[test]
fn who_does_not_read_is_not_read_and_loses_events_but_no_answer() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (client, id) = behind(&directory, &mut server, BACKLOG_MAX - 1);
    server.subscribe(id);
    let notice = Event::RekeyDue(SessionId(4));
    let reads = |server: &Server| server.interests().nth(1).unwrap().1;
    assert_eq!(reads(&server), Interest { read: true, write: true });
    server.publish(&notice);
    assert_eq!(reads(&server), Interest { read: false, write: true });
    server.publish(&notice);
    server.publish(&notice);
    client.request(77, &Request::Counters);
    assert_eq!(server.receive().len(), 0);
    assert_eq!((server.clients[0].waiting.len(), server.clients[0].lost_events), (BACKLOG_MAX, 2));
    // Another one is served meanwhile.
    let other = directory.connect();
    other.hello(&mut server);
    // Everything arrives, in order, as soon as it is read.
    for n in 0..BACKLOG_MAX as u32 - 1 {
        if client.is_silent() {
            server.flush();
        }
        assert_eq!(client.reply(), Some((n, Reply::Done)));
    }
    server.flush();
    assert_eq!(client.reply(), Some((0, Reply::Event(notice))));
    server.flush();
    assert_eq!(client.reply(), Some((0, Reply::Event(Event::Lost(2)))));
    assert_eq!(turn(&mut server).len(), 1);
    assert_eq!(client.reply(), Some((77, Reply::Done)));
}

#[test]
fn the_longest_answer_fits_on_top_of_the_longest_backlog() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (client, id) = behind(&directory, &mut server, BACKLOG_MAX - 1);
    (0..REQUESTS_PER_TURN).for_each(|n| client.request(n as u32, &Request::Dump));
    let requests = server.receive();
    assert_eq!(requests.len(), REQUESTS_PER_TURN);
    (1..requests.len()).for_each(|_| server.reply(id, 0, &Reply::Done, vec![]));
    (0..ANSWER_LEN_MAX).for_each(|_| server.reply(id, 0, &Reply::Dump(DumpItem::Routes(vec![])), vec![]));
    assert!(!server.clients[0].broken);
}

#[test]
fn a_connection_with_too_many_answers_is_closed_rather_than_left_with_a_gap() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (client, id) = behind(&directory, &mut server, REPLIES_MAX);
    let other = directory.connect();
    other.hello(&mut server);
    assert_eq!(server.clients.len(), 2, "at the limit it is not closed");
    let (sent, room) = (REPLIES_MAX - server.clients[0].waiting.len(), server.clients[0].waiting.len());
    (room..=REPLIES_MAX).for_each(|n| server.reply(id, n as u32, &Reply::Done, vec![]));
    assert_eq!(server.clients[0].waiting.len(), 0, "nothing is kept for it");
    server.flush();
    assert_eq!(server.clients.len(), 1);
    for n in 0..sent as u32 {
        assert_eq!(client.reply(), Some((n, Reply::Done)));
    }
    assert_eq!(client.reply(), None);
    other.hello(&mut server);
}

#[test]
fn an_answer_that_fits_no_message_closes_the_connection() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (client, id) = behind(&directory, &mut server, 0);
    let about = vec![(String::new(), "x".repeat(MESSAGE_LEN_MAX))];
    server.reply(id, 1, &Reply::Dump(DumpItem::Plane(about)), vec![]);
    server.reply(id, 1, &Reply::Done, vec![]);
    server.flush();
    assert_eq!(client.reply(), None);
    assert_eq!(server.clients.len(), 0);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_dump_harms_nobody() {
    let directory = Directory::new();
    let mut server = directory.server();
    let other = directory.connect();
    other.hello(&mut server);
    let (client, id) = behind(&directory, &mut server, 0);
    client.request(2, &Request::Dump);
    assert_eq!(server.receive().len(), 1);
    (0..5000).for_each(|_| server.reply(id, 2, &Reply::Dump(DumpItem::Routes(vec![])), vec![]));
    server.flush();
    assert!(server.clients[1].waiting.len() > 1000, "the socket does not take all at once");
    assert!(client.reply().is_some());
    // Closing would do, were there no other tests: one that starts a program at this moment has a copy of every descriptor for an instant.
    shutdown(&client.0, Shutdown::Both).unwrap();
    drop(client);
    server.flush();
    assert_eq!(server.clients.len(), 1);
    // What is still said to it goes nowhere.
    server.reply(id, 2, &Reply::Done, vec![]);
    other.hello(&mut server);
}

#[test]
fn only_subscribers_get_events() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (quiet, _) = behind(&directory, &mut server, 0);
    let (listening, id) = behind(&directory, &mut server, 0);
    server.subscribe(id);
    let event = Event::Closed(SessionId(3));
    server.publish(&event);
    server.flush();
    assert_eq!(listening.reply(), Some((0, Reply::Event(event))));
    assert!(quiet.is_silent());
}

#[test]
fn the_socket_is_the_users_own_and_goes_with_the_server() {
    let directory = Directory::new();
    let path = directory.0.join("made/for/it/plane.sock");
    let server = Server::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    drop(server);
    assert!(!path.exists());
}

#[test]
fn nobody_connects_before_the_server_listens() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket()).unwrap();
    let address = SocketAddrUnix::new(directory.socket()).unwrap();
    assert_eq!(connect(seqpacket().unwrap(), &address), Err(Errno::CONNREFUSED));
    server.listen().unwrap();
    assert_eq!(connect(seqpacket().unwrap(), &address), Ok(()));
}

#[test]
fn a_server_that_does_not_listen_yet_keeps_its_path() {
    let directory = Directory::new();
    let first = Server::bind(&directory.socket()).unwrap();
    assert!(matches!(Server::bind(&directory.socket()), Err(ServerError::InUse(_))));
    first.listen().unwrap();
    assert!(connect(seqpacket().unwrap(), &SocketAddrUnix::new(directory.socket()).unwrap()).is_ok());
    drop(first);
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0, "neither socket nor lock stays");
    Server::bind(&directory.socket()).unwrap();
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_refused() {
    let directory = Directory::new();
    let address = SocketAddrUnix::new(directory.socket()).unwrap();
    // Dropping a bare socket leaves its file, as a kill does.
    bind(seqpacket().unwrap(), &address).unwrap();
    assert!(directory.socket().exists());
    let mut server = directory.server();
    let Err(error) = Server::bind(&directory.socket()) else { panic!("a second server came up") };
    assert!(matches!(&error, ServerError::InUse(path) if *path == directory.socket()));
    assert!(error.to_string().contains("api.socket"), "{error}");
    directory.connect().hello(&mut server);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = Directory::new();
    std::fs::write(directory.socket(), "precious").unwrap();
    let Err(error) = Server::bind(&directory.socket()) else { panic!("the file was replaced") };
    assert!(matches!(error, ServerError::NotASocket(_)) && error.to_string().contains("api.socket"), "{error}");
    assert_eq!(std::fs::read(directory.socket()).unwrap(), b"precious");
}

#[test]
fn a_path_that_cannot_be_used_is_named_with_the_remedy() {
    let directory = Directory::new();
    std::fs::write(directory.0.join("file"), "").unwrap();
    for path in [directory.0.join("file/plane.sock"), directory.0.join("x".repeat(120))] {
        let Err(error) = Server::bind(&path) else { panic!("it came up at {}", path.display()) };
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("api.socket"), "{text}");
    }
}

#[test]
fn descriptors_arrive_with_their_answer() {
    let directory = Directory::new();
    let mut server = directory.server();
    let stop = AtomicBool::new(false);
    let (read, write) = std::io::pipe().unwrap();
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for Incoming { client, id, request } in server.receive() {
                    let duplicate = |fd: &OwnedFd| fd.try_clone().unwrap();
                    match request {
                        Request::Hello { .. } => {
                            let (incarnation, program) = (Incarnation(5), "test".to_owned());
                            let welcome = Reply::Welcome { incarnation, workers: 2, port: 4646, program };
                            server.reply(client, id, &welcome, vec![]);
                        }
                        _ => {
                            let both = vec![duplicate(&read), duplicate(&write)];
                            server.reply(client, id, &Reply::ControlSockets { count: 2 }, both);
                            server.flush();
                        }
                    }
                }
                server.flush();
                std::thread::yield_now();
            }
        });
        let taken = ApiClient::connect(&directory.socket(), "test").and_then(|mut client| {
            assert_eq!((client.welcome().incarnation, client.welcome().workers), (Incarnation(5), 2));
            client.take_control_sockets()
        });
        stop.store(true, Ordering::Relaxed);
        let taken = taken.unwrap();
        assert_eq!(taken.len(), 2);
        rustix::io::write(&taken[1], b"through").unwrap();
    });
    let mut bytes = [0; 16];
    assert_eq!(rustix::io::read(&read, &mut bytes), Ok(7));
    assert_eq!(&bytes[..7], b"through");
}

#[test]
fn a_client_that_does_not_read_cannot_hoard_descriptors() {
    let directory = Directory::new();
    let mut server = directory.server();
    let (client, id) = behind(&directory, &mut server, 0);
    let (read, _write) = std::io::pipe().unwrap();
    let read = OwnedFd::from(read);
    for request in 1..=3 {
        server.reply(id, request, &Reply::ControlSockets { count: 1 }, vec![read.try_clone().unwrap()]);
    }
    let held: usize = server.clients[0].waiting.iter().map(|outgoing| outgoing.descriptors.len()).sum();
    assert_eq!(held, 1);
    server.flush();
    assert_eq!(client.reply(), Some((1, Reply::ControlSockets { count: 1 })));
    assert!(matches!(client.reply(), Some((2, Reply::Refused(Refusal::Limit { limit: 1, .. })))));
    assert!(matches!(client.reply(), Some((3, Reply::Refused(Refusal::Limit { limit: 1, .. })))));
    server.reply(id, 4, &Reply::ControlSockets { count: 1 }, vec![read.try_clone().unwrap()]);
    server.flush();
    assert_eq!(client.reply(), Some((4, Reply::ControlSockets { count: 1 })));
}
