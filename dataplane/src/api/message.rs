//! The message set itself: plain data.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Prefix;
use super::policy::PolicyRule;

/// Names a session; chosen by the control plane, the same on both gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// One life of a packet plane; drawn at random when it starts. Keys are bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// A reservation of receiver indices; good for one [`Install`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReservationId(pub u64);

/// Random bytes that a plane adds to the key derivation of one reservation, so that no key is ever derived twice.
pub type Salt = [u8; 16];

/// The secret of a key exchange: 32 bytes of TLS exporter. Never printed, erased when dropped.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Wraps the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for key derivation only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A key under which members tag the first packets of their QUIC connections ([`admission`](super::admission)). Never printed, erased when
/// dropped.
#[derive(Clone, Serialize, Deserialize)]
pub struct AdmissionKey(Zeroizing<[u8; 16]>);

impl AdmissionKey {
    /// Wraps the bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for making tags only.
    pub fn expose(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Debug for AdmissionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdmissionKey(…)")
    }
}

/// What a gateway tells its peer about one reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The plane that reserved.
    pub incarnation: Incarnation,
    /// Its share of the key derivation's context.
    pub salt: Salt,
    /// Receiver index of each lane that the plane will open, by lane number.
    pub indices: Vec<u32>,
    /// Whether the plane's CPU has AES instructions. Both sides then use AES-256-GCM, otherwise ChaCha20-Poly1305.
    pub has_aes: bool,
    /// How many ports after its port the plane has for single workers, at most 15: worker `w` has the one at `port + w mod (lane_ports + 1)`.
    pub lane_ports: u8,
}

/// A session to bring up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Install {
    /// Its name.
    pub session: SessionId,
    /// The reservation that this uses up.
    pub reservation: ReservationId,
    /// The incarnation that the keys are for; refused unless it is the plane's own.
    pub incarnation: Incarnation,
    /// What the peer's plane offered.
    pub peer: Offer,
    /// The exchanged secret.
    pub secret: Secret,
    /// Whether this side began the exchange; the two sides must differ.
    pub initiator: bool,
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// Inner sources that the peer may use.
    pub sources: Vec<Prefix>,
    /// Longest UDP payload that may be tried on the path; what it carries is found out.
    pub datagram_len_max: u16,
    /// Largest inner packet that may be carried without telling its sender to send smaller ones; less where the path carries less.
    pub inner_mtu: u16,
    /// How much the peer may be sent; `None` for as much as there is.
    pub rate: Option<RateLimit>,
    /// Whether packets are sealed under these keys at once. With `false` only the lanes that this side opens are there; the session goes on
    /// under the keys before, and without any its packets wait, until [`Request::Activate`] or until the peer proves that it has the keys.
    pub activate: bool,
    /// After how many seconds without a packet either way [`Event::Idle`] is told; 0 for never.
    pub idle_after_s: u32,
}

/// How much a peer may be sent, all workers together. Inner packets count with their own headers, those of datagrams do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes per second in the long run, at least [`RATE_MIN`](super::RATE_MIN).
    pub bytes_per_s: u64,
    /// Bytes that may go at once, at least [`RATE_BURST_MIN`](super::RATE_BURST_MIN). Half of it is kept for what is above best effort.
    pub burst: u32,
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// To the local side: our own addresses and the networks behind us.
    Local,
    /// To a peer.
    Session(SessionId),
}

/// One entry of the routing snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destinations that it covers; the longest match wins.
    pub prefix: Prefix,
    /// Where they go.
    pub target: Target,
}

/// What a control plane may ask. Variants are only ever appended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Opens the conversation. Answer: [`Reply::Welcome`].
    Hello {
        /// Who speaks, for the log.
        name: String,
    },
    /// Reserves receiver indices for a session's lanes. Answer: [`Reply::Reserved`].
    Reserve {
        /// Lanes that the peer will seal: the larger of both sides' worker counts.
        lanes: u8,
    },
    /// Gives a reservation back unused. Answer: [`Reply::Done`].
    Release(ReservationId),
    /// Brings a session up. Installing a session that is already up replaces its keys: a rekey. Answer: [`Reply::Done`].
    Install(Box<Install>),
    /// Takes a session down and erases its keys. Answer: [`Reply::Done`].
    Remove(SessionId),
    /// Adds routes to the snapshot being built. Answer: [`Reply::Done`].
    StageRoutes(Vec<Route>),
    /// Makes the staged routes the current snapshot; the stage is empty again. Answer: [`Reply::Done`].
    CommitRoutes,
    /// Empties the stage. Answer: [`Reply::Done`].
    DiscardRoutes,
    /// Measures the round trip to a peer, inside the AEAD. Answer: [`Reply::Done`], later [`Event::Echo`].
    Echo(SessionId),
    /// Asks for counters. Answer: [`Reply::Counters`].
    Counters,
    /// Asks for everything but keys. Answer: any number of [`Reply::Dump`], then [`Reply::Done`].
    Dump,
    /// From now on, send events on this connection. Answer: [`Reply::Done`].
    Subscribe,
    /// Takes the control sockets over, by `SCM_RIGHTS`; the plane keeps its own duplicates. Answer: [`Reply::ControlSockets`].
    TakeControlSockets,
    /// Seals under the newest installed keys from now on. Nothing happens when that is so already. Answer: [`Reply::Done`].
    Activate(SessionId),
    /// Asks whether the peer is at an address, inside the AEAD. Answer: [`Reply::Done`], later [`Event::Probed`] if it is.
    Probe {
        /// Which session.
        session: SessionId,
        /// The address to ask at.
        endpoint: SocketAddr,
        /// Comes back with the event.
        token: u64,
    },
    /// Sends a session's datagrams to another address from now on, under the same keys. Path MTU and lane ports are found out anew there.
    /// Answer: [`Reply::Done`].
    Move {
        /// Which session.
        session: SessionId,
        /// Where the peer is.
        endpoint: SocketAddr,
    },
    /// Tells `wan` how to know members by the tags of their QUIC Initials, in place of what it was told before. Until then, and with no
    /// keys, Initials are judged as other long headers are. Answer: [`Reply::Done`].
    SetAdmission {
        /// The keys that are accepted, the newest first, at most [`KEYS_MAX`](super::admission::KEYS_MAX).
        keys: Vec<AdmissionKey>,
        /// This node's id, which the tags for it are made with.
        node: [u8; 32],
        /// How many seconds the clock of the network is ahead of this machine's. To be told anew when it changes; the plane follows the
        /// machine's clock by itself.
        skew_secs: i64,
    },
    /// Adds rules behind those of the policy being built. Answer: [`Reply::Done`].
    StagePolicy(Vec<PolicyRule>),
    /// Makes the staged rules the policy; the stage is empty again. Live flows that the new rules would not let open are cut. Answer:
    /// [`Reply::Done`].
    CommitPolicy {
        /// Whether a packet passes that no rule fits. Without a rule, this ends all checking.
        default_allow: bool,
        /// The version of the document behind the rules, for [`Reply::PolicyHits`] and nothing else.
        version: u64,
    },
    /// Empties the policy's stage. Answer: [`Reply::Done`].
    DiscardPolicy,
    /// Asks how often each rule has decided. Answer: [`Reply::PolicyHits`].
    PolicyHits,
}

/// What the plane answers. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome {
        /// This life of the plane.
        incarnation: Incarnation,
        /// Its worker threads.
        workers: u8,
        /// Its UDP port.
        port: u16,
        /// Version of the program.
        program: String,
    },
    /// To [`Request::Reserve`].
    Reserved {
        /// For [`Install::reservation`].
        reservation: ReservationId,
        /// To send to the peer.
        offer: Offer,
    },
    /// The request was carried out.
    Done,
    /// To [`Request::Counters`].
    Counters(Box<Counters>),
    /// To [`Request::Dump`].
    Dump(DumpItem),
    /// To [`Request::TakeControlSockets`]; the descriptors travel beside it, IPv4 first.
    ControlSockets {
        /// How many descriptors follow.
        count: u8,
    },
    /// The request was refused and changed nothing.
    Refused(Refusal),
    /// Something happened; id 0.
    Event(Event),
    /// To [`Request::PolicyHits`].
    PolicyHits {
        /// What [`Request::CommitPolicy`] said; zero before the first.
        version: u64,
        /// Decisions of each rule since it was committed, in order, and last those of the default; nothing while nothing is checked. What
        /// passes as part of a known flow is no decision.
        hits: Vec<u64>,
    },
}

/// Why a request was refused: what was wrong and, where there is one, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The message did not decode.
    #[error("the message does not decode: {0}")]
    Malformed(String),
    /// Another version of the message set.
    #[error("message set version {theirs} is not spoken here; this plane speaks {ours}: upgrade the older program")]
    Version {
        /// What the plane speaks.
        ours: u16,
        /// What the message said.
        theirs: u16,
    },
    /// A request before [`Request::Hello`].
    #[error("the first request on a connection must be Hello")]
    NoHello,
    /// Keys for another life of the plane.
    #[error("the keys are for incarnation {theirs:#x}, this plane is {ours:#x}: make a fresh key exchange")]
    WrongIncarnation {
        /// The plane's own.
        ours: u64,
        /// The message's.
        theirs: u64,
    },
    /// The reservation was used, released, expired, or never made.
    #[error("the reservation is not open: reserve again and make a fresh key exchange")]
    NoReservation,
    /// No such session.
    #[error("no session {0}")]
    NoSession(u64),
    /// A limit was reached.
    #[error("{what} is limited to {limit}")]
    Limit {
        /// What there would be too much of.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// A field has a value that cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// Something that happened in the plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A peer answered an echo.
    Echo {
        /// Which session.
        session: SessionId,
        /// Round trip in nanoseconds.
        rtt_ns: u64,
    },
    /// A session has been used long enough: make a fresh key exchange.
    RekeyDue(SessionId),
    /// A session's keys are past their hard limit; it carries nothing any more.
    Expired(SessionId),
    /// The peer said that it has closed the session.
    Closed(SessionId),
    /// Events were lost because this connection did not read them.
    Lost(u64),
    /// The longest datagram of a session's path, or the inner MTU that follows from it, has changed.
    PathMtu {
        /// Which session.
        session: SessionId,
        /// Bytes of UDP payload that the path carries.
        datagram_len: u16,
        /// Largest inner packet that is carried without telling its sender to send smaller ones.
        inner_mtu: u16,
    },
    /// The peer has sealed under keys that were installed without being activated; this side does so as well now.
    Activated(SessionId),
    /// Packets wait for a session that is not there, or not activated. Told once, and again later as long as packets keep coming.
    Wanted(SessionId),
    /// No packet has passed either way for as long as [`Install::idle_after_s`] says. Told once, until there are packets again.
    Idle(SessionId),
    /// The peer has answered a probe from the address that was asked about.
    Probed {
        /// Which session.
        session: SessionId,
        /// The address.
        endpoint: SocketAddr,
        /// The probe's token.
        token: u64,
        /// Round trip in nanoseconds.
        rtt_ns: u64,
    },
    /// An authentic datagram of the session came from another address than its endpoint. Nothing follows from it by itself. Told at most once a
    /// second by each worker.
    Elsewhere {
        /// Which session.
        session: SessionId,
        /// Where it came from.
        from: SocketAddr,
    },
}

/// A named counter and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCount {
    /// As in `docs/drop-reasons.md`.
    pub name: String,
    /// Packets, datagrams or frames.
    pub count: u64,
}

/// All counters since the start of the plane, summed over workers and cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// What the engine did: packets and bytes in and out.
    pub engine: Vec<NamedCount>,
    /// Drops of the engine by reason, and `socket_buffer_full`: datagrams that the kernel dropped at the sockets of the port before anybody
    /// read them. Only those that happened.
    pub engine_drops: Vec<NamedCount>,
    /// Verdicts of the eBPF programs; only those that happened.
    pub bpf: Vec<NamedCount>,
    /// Drops of the eBPF programs by reason; only those that happened.
    pub bpf_drops: Vec<NamedCount>,
}

/// What stands before the port where [`DumpItem::Plane`] says, under `worker` and its number, that a worker has one for itself.
pub const LANE_PORT: &str = "lane port ";

/// A piece of the plane's state, without keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DumpItem {
    /// The plane itself: ports and attach modes in use, name and value.
    Plane(Vec<(String, String)>),
    /// A session.
    Session(SessionDump),
    /// Some of the current routes.
    Routes(Vec<Route>),
}

/// A session without its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionDump {
    /// Its name.
    pub session: SessionId,
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// Inner sources that the peer may use.
    pub sources: Vec<Prefix>,
    /// Receiver indices of the lanes that this side opens.
    pub indices: Vec<u32>,
    /// Receiver indices of the lanes that this side seals.
    pub peer_indices: Vec<u32>,
    /// Nanoseconds since the keys were installed.
    pub age_ns: u64,
    /// Last measured round trip in nanoseconds; zero when none was measured.
    pub rtt_ns: u64,
    /// Bytes of UDP payload of the longest datagram that is sent now.
    pub datagram_len: u16,
    /// Largest inner packet that is carried now without telling its sender to send smaller ones.
    pub inner_mtu: u16,
    /// How many of the lanes that this side seals go to a lane port of the peer now; the others share the common port.
    pub lanes_by_port: u8,
    /// Whether anything is sealed: `false` while the first keys wait for their activation.
    pub activated: bool,
    /// Whether newer keys wait for their activation.
    pub has_pending_keys: bool,
    /// Name of the AEAD (RFC 5116).
    pub algorithm: String,
    /// The newest generation of the keys that any worker seals under.
    pub generation: u8,
    /// Inner packets that were sealed for the peer since the session came up, over all its keys.
    pub tx_packets: u64,
    /// Bytes of them, with their own headers.
    pub tx_bytes: u64,
    /// Inner packets of the peer that were let in.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Nanoseconds since the last one was sealed; `None` before the first.
    pub tx_last_ns: Option<u64>,
    /// Nanoseconds since the last one came; `None` before the first.
    pub rx_last_ns: Option<u64>,
}
