//! The control plane's process: one thread that waits, and gives everything to the node machine.
//!
//! ```text
//!   control sockets ──▶ quic::Driver ──events──▶ ┌──────┐ ──▶ store
//!   packet plane's socket ─────────────────────▶ │ Node │ ──▶ packet plane
//!   issuer's socket ───────────────────────────▶ │      │ ──▶ issuer
//!   netlink, clocks, mDNS ─────────────────────▶ │      │
//!   API server's queue ────────────────────────▶ └──────┘ ──▶ answers, supervisor
//! ```
//!
//! Each turn looks at its sources in one order, each with a budget: the packet plane, deadlines, the issuer, datagrams, people. So a flood
//! at one of them delays the ones before it by one turn at most.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hkdf;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout_at;

use zeroize::Zeroizing;

use crate::api::access::Access;
use crate::api::call::{Answer, Call};
use crate::api::server::{self, Limits, Request};
use crate::api::types::Error as ApiError;
use crate::config::{Config, Overlay, default_route_interface, plane_toml};
use crate::contact;
use crate::dns::catalog::Wanted;
use crate::issuer::Refused;
use crate::membership::{self, MembershipError};
use crate::node::candidates::Source;
use crate::node::driver_links::DriverLinks;
use crate::node::plane::PlaneInput;
use crate::node::{CallId, Node, NodeError, Output, Settings};
use crate::pki::key::PrivateKey;
use crate::quic::{self, Driver};
use crate::random::SystemRandom;
use crate::state_directory::{StateDirectory, StateError};
use crate::store::redb::RedbStore;
use crate::store::{Batch, Store, StoreError};
use crate::supervisor::{ORDER_LEN_MAX, Order};
use crate::time::{Now, UnixSecs};

pub mod confine;
mod dns;
pub mod frame;
pub mod host;
pub mod issuer;
pub mod lan;
pub mod mdns;
pub mod plane;
pub mod socket;

use dns::Names;
use host::HostWatch;
use issuer::{FromIssuer, ToIssuer};
use lan::Lan;
use mdns::FromMdns;
use plane::{FromPlane, ToPlane};
use socket::ControlSockets;

/// System calls for datagrams in one turn; each brings up to eight trains.
const DATAGRAM_BUDGET: usize = 16;
/// Calls of people in one turn.
const CALL_BUDGET: usize = 16;
/// Services of the local network in one turn.
const HEARD_BUDGET: usize = 16;
/// Names that are wanted, in one turn.
const WANTED_BUDGET: usize = 16;
/// Messages of the packet plane, and of the issuer, in one turn.
const MESSAGE_BUDGET: usize = 256;
/// Requests that wait for the packet plane beyond its queue: four snapshots of a million routes.
const BACKLOG_MAX: usize = 8192;
/// Longest datagram train to send.
const TRAIN_LEN_MAX: usize = 64 * 1024;
/// Bytes of headers around an inner packet on a path of 1,500 bytes: IPv6, UDP (RFC 8200 §3, RFC 768).
const OUTER_HEADERS: u16 = 48;
/// Length of the longest datagram that is tried on a path when the WAN's MTU is not known.
const LINK_MTU: u16 = 1500;

/// When this was written: no clock that shows less is right. The year of the sources is enough to tell 1970 from now.
const BUILD: UnixSecs = UnixSecs(1_795_000_000);

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Giving up what is not needed.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// Who we are.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// What is in it.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The packet plane is there and takes nothing.
    #[error("the packet plane takes no requests: {BACKLOG_MAX} wait")]
    Backlog,
    /// An address to answer questions at.
    #[error(transparent)]
    Listen(dns::ListenError),
    /// Anything else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> ShellError {
    move |error| ShellError::System { doing, error }
}

/// Keys of stateless resets and Retry tokens come from this: known to nobody else, and the same after a restart.
fn quic_key(identity: &PrivateKey) -> Zeroizing<[u8; 32]> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weir quic v1").extract(&*identity.seed());
    let mut key = Zeroizing::new([0; 32]);
    // One hash of output is within HKDF's limit (RFC 5869 §2.3).
    let expanded = secret.expand(&[b"reset and token"], hkdf::HKDF_SHA256).and_then(|output| output.fill(&mut *key));
    expanded.expect("32 bytes are within HKDF's limit");
    key
}

/// The clocks of this machine.
fn clocks() -> (Instant, UnixSecs) {
    // Before 1970 there was no machine.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), UnixSecs(since.as_secs()))
}

/// The kernel's routes, open since the start: this process can open nothing later.
struct RouteTables([Option<File>; 2]);

impl RouteTables {
    fn open() -> Self {
        // A kernel without IPv6 has no such table.
        Self(["/proc/net/route", "/proc/net/ipv6_route"].map(|path| File::open(path).ok()))
    }

    /// As they are now, IPv4 first; a table that cannot be read has no routes.
    fn read(&mut self) -> [String; 2] {
        self.0.each_mut().map(|table| {
            let mut text = String::new();
            let read = table.as_mut().map(|table| table.rewind().and_then(|()| table.read_to_string(&mut text)));
            if read.is_some_and(|read| read.is_ok()) { text } else { String::new() }
        })
    }

    /// The interface that packets leave by which no other route is for.
    fn default_interface(&mut self) -> Option<String> {
        let [ipv4, ipv6] = self.read();
        default_route_interface(&ipv4, &ipv6)
    }
}

/// What a status tells of links and sockets.
fn counted(links: &quic::Counters, sealed: u64) -> Vec<(String, u64)> {
    let links = links.iter().map(|(name, count)| (format!("quic_{name}"), count));
    links.chain([("control_sealed".to_owned(), sealed)]).collect()
}

/// What ended a wait.
enum Wake {
    Stop,
    Plane(FromPlane),
    Issuer(FromIssuer),
    Call(Request),
    Heard(FromMdns),
    Wanted(Wanted),
    /// Time, or datagrams.
    Other,
}

struct Shell {
    config: Config,
    store: RedbStore,
    node: Node<SystemRandom>,
    driver: Driver,
    sockets: ControlSockets,
    to_plane: mpsc::Sender<ToPlane>,
    plane_backlog: VecDeque<ToPlane>,
    from_plane: mpsc::Receiver<FromPlane>,
    to_issuer: mpsc::Sender<ToIssuer>,
    from_issuer: mpsc::Receiver<FromIssuer>,
    calls: mpsc::Receiver<Request>,
    waiting: HashMap<CallId, tokio::sync::oneshot::Sender<Result<Answer, ApiError>>>,
    next_call: u64,
    supervisor: Option<UnixStream>,
    routes: RouteTables,
    host: HostWatch,
    lan: Lan,
    names: Names,
    train: Vec<u8>,
}

/// Runs the control plane until a signal says to stop. `supervisor` is the socket that orders go by.
///
/// # Errors
/// [`ShellError`].
pub async fn run(config: Config, supervisor: Option<UnixStream>) -> Result<(), ShellError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("installing a signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("installing a signal handler"))?;
    let mut shell = Shell::start(config, supervisor).await?;
    shell.carry_out().await?;
    loop {
        let wake = shell.wait(&mut terminate, &mut interrupt).await?;
        if matches!(wake, Wake::Stop) {
            shell.sockets.let_go();
            tracing::info!("stopping");
            return Ok(());
        }
        shell.turn(wake).await?;
    }
}

impl Shell {
    async fn start(config: Config, supervisor: Option<UnixStream>) -> Result<Self, ShellError> {
        let state = StateDirectory::open(&config.node.state_directory)?;
        let mut store = state.node_store()?;
        let sockets = ControlSockets::unbound().map_err(system("opening UDP sockets"))?;
        let has_issuer = state.has_issuer_key()?;
        let listener = server::bind(&config.api.socket).map_err(system("opening the API socket"))?;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let own = rustix::process::getuid().as_raw();
        let (access, unknown) = Access::resolve(&config.api, &read("/etc/passwd"), &read("/etc/group"), own);
        for principal in unknown {
            tracing::debug!("the configuration gives {principal} a role in the API, and there is nobody of that name");
        }
        let names = dns::Sockets::bind(&config.dns.listen).map_err(ShellError::Listen)?;
        let mut routes = RouteTables::open();
        let host = HostWatch::open(&config.tun.name);
        // From here on no file can be opened.
        let (files, runtime) = confine::confine(&config.node.runtime_directory)?;
        let (mono, wall) = clocks();
        let settings = Settings {
            endpoints: lan::endpoints(&config.wan, host.view()),
            local_endpoints: lan::local_endpoints(&config.wan, routes.default_interface().as_deref(), host.view()),
            datagram_len_max: LINK_MTU - OUTER_HEADERS,
            inner_mtu: config.tun.mtu,
            idle_after_s: 300,
            legacy_kyber: config.peers.legacy_kyber.clone(),
            has_issuer,
            discovery: config.discovery.mode.part(),
            services: config.discovery.services.clone(),
            names: config.dns.records.clone(),
            unconfined: files.warning(),
            build: BUILD,
        };
        let mut random = SystemRandom;
        let key = quic_key(&membership::identity(&mut store, &mut random)?);
        let limits = quic::Limits::default();
        let accept_legacy_kyber = !config.peers.legacy_kyber.is_empty();
        let quic = quic::Config { identity: None, membership: None, key, accept_legacy_kyber, limits };
        let mut driver = Driver::new(quic, &mut random);
        let now = Now { mono, wall };
        let links = &mut DriverLinks { driver: &mut driver, now };
        let mut node = Node::new(settings, random, &mut store, links, now)?;
        node.handle_found(Source::Bootstrap, &config.discovery.bootstrap, links, now);
        let lan = Lan::start(&runtime, &config.discovery, host.view());
        let (to_node, calls) = mpsc::channel(server::QUEUE_LEN);
        tokio::spawn(server::serve(listener, access, to_node, Limits::default()));
        let (to_plane, requests) = mpsc::channel(plane::REQUESTS_MAX);
        let (inputs, from_plane) = mpsc::channel(plane::INPUTS_MAX);
        tokio::spawn(plane::maintain(runtime.join("plane.sock"), requests, inputs));
        let names =
            Names::start(names, &mut SystemRandom).map_err(system("starting the thread that answers for names"))?;
        let (to_issuer, asked) = mpsc::channel(issuer::QUEUE_MAX);
        let (replies, from_issuer) = mpsc::channel(issuer::QUEUE_MAX);
        if has_issuer {
            tokio::spawn(issuer::maintain(issuer::socket_path(&runtime), asked, replies));
        }
        Ok(Self {
            config,
            store,
            node,
            driver,
            sockets,
            to_plane,
            plane_backlog: VecDeque::new(),
            from_plane,
            to_issuer,
            from_issuer,
            calls,
            waiting: HashMap::new(),
            next_call: 0,
            supervisor,
            routes,
            host,
            lan,
            names,
            train: Vec::with_capacity(TRAIN_LEN_MAX),
        })
    }

    fn now(&mut self) -> Now {
        let (mono, wall) = clocks();
        self.node.now(mono, wall)
    }

    /// Waits for something to do.
    async fn wait(&mut self, terminate: &mut Signal, interrupt: &mut Signal) -> Result<Wake, ShellError> {
        let deadlines = [self.node.next_deadline(), self.driver.next_deadline(), self.host.next_deadline()];
        let deadline = deadlines.into_iter().flatten().min();
        let Self { from_plane, from_issuer, sockets, calls, host, lan, names, .. } = self;
        let something = async {
            tokio::select! {
                biased;
                _ = terminate.recv() => Ok(Wake::Stop),
                _ = interrupt.recv() => Ok(Wake::Stop),
                Some(input) = from_plane.recv() => Ok(Wake::Plane(input)),
                Some(input) = from_issuer.recv() => Ok(Wake::Issuer(input)),
                happened = host.happened() => {
                    happened.map(|()| Wake::Other).map_err(system("waiting for changes of this host"))
                }
                ready = sockets.readable() => ready.map(|()| Wake::Other).map_err(system("waiting for datagrams")),
                heard = lan.heard() => Ok(Wake::Heard(heard)),
                wanted = names.wanted() => Ok(Wake::Wanted(wanted)),
                Some(request) = calls.recv() => Ok(Wake::Call(request)),
            }
        };
        match deadline {
            Some(deadline) => timeout_at(deadline.into(), something).await.unwrap_or(Ok(Wake::Other)),
            None => something.await,
        }
    }

    /// Looks at every source once, beginning with what ended the wait.
    async fn turn(&mut self, wake: Wake) -> Result<(), ShellError> {
        self.flush()?;
        let now = self.now();
        let (mut plane, mut issuer, mut call, mut heard, mut wanted) = (None, None, None, None, None);
        match wake {
            Wake::Plane(input) => plane = Some(input),
            Wake::Issuer(input) => issuer = Some(input),
            Wake::Call(request) => call = Some(request),
            Wake::Heard(told) => heard = Some(told),
            Wake::Wanted(name) => wanted = Some(name),
            Wake::Stop | Wake::Other => {}
        }
        for _ in 0..MESSAGE_BUDGET {
            match plane.take().or_else(|| self.from_plane.try_recv().ok()) {
                Some(FromPlane::Sockets(descriptors)) => self.adopt(descriptors, now).await?,
                Some(FromPlane::Input(input)) => {
                    if matches!(*input, PlaneInput::Gone) {
                        self.sockets.plane_gone();
                    }
                    self.node.handle_plane(*input, &mut DriverLinks { driver: &mut self.driver, now }, now)
                }
                None => break,
            }
        }
        self.look_at_host(now);
        self.node.handle_timeout(&mut DriverLinks { driver: &mut self.driver, now }, now);
        self.driver.handle_timeout(now);
        for _ in 0..MESSAGE_BUDGET {
            match issuer.take().or_else(|| self.from_issuer.try_recv().ok()) {
                Some(FromIssuer::Connected) => {
                    self.node.handle_issuer_connected(&mut DriverLinks { driver: &mut self.driver, now }, now)
                }
                Some(FromIssuer::Gone) => {
                    self.node.handle_issuer_gone(&mut DriverLinks { driver: &mut self.driver, now });
                }
                Some(FromIssuer::Reply(ticket, reply)) => {
                    self.node.handle_issuer(ticket, *reply, &mut DriverLinks { driver: &mut self.driver, now }, now);
                }
                None => break,
            }
        }
        let (driver, node) = (&mut self.driver, &mut self.node);
        self.sockets.receive(DATAGRAM_BUDGET, |datagram| match datagram.data.first() {
            Some(&contact::FIRST_BYTE) => {
                node.handle_datagram(datagram.from, datagram.data, &mut DriverLinks { driver, now }, now)
            }
            Some(_) | None => driver.handle_datagram(now, datagram.from, datagram.to, datagram.ecn, datagram.data),
        });
        for _ in 0..HEARD_BUDGET {
            let Some(told) = heard.take().or_else(|| self.lan.try_heard()) else { break };
            let found = self.lan.judge(told, self.host.view());
            let links = &mut DriverLinks { driver: &mut self.driver, now };
            self.node.handle_found(Source::Mdns, &found, links, now);
        }
        for _ in 0..WANTED_BUDGET {
            let Some(wanted) = wanted.take().or_else(|| self.names.try_wanted()) else { break };
            self.node.handle_wanted(wanted, &mut DriverLinks { driver: &mut self.driver, now }, now);
        }
        for _ in 0..CALL_BUDGET {
            let Some(Request { call, caller, answer }) = call.take().or_else(|| self.calls.try_recv().ok()) else {
                break;
            };
            self.next_call += 1;
            let id = CallId(self.next_call);
            self.waiting.insert(id, answer);
            if matches!(call, Call::Status) {
                let counted = counted(&self.driver.counters(), self.sockets.sealed());
                let all = counted.into_iter().chain(self.lan.counted()).chain(self.names.counted());
                self.node.handle_counted(all.collect());
            }
            let links = &mut DriverLinks { driver: &mut self.driver, now };
            self.node.handle_call(id, call, &format!("uid {}", caller.uid), links, now);
        }
        self.carry_out().await
    }

    /// Carries out what the node wants and sends what QUIC made of it.
    async fn carry_out(&mut self) -> Result<(), ShellError> {
        let now = self.now();
        loop {
            while let Some(event) = self.driver.poll_event() {
                self.node.handle_link(event, &mut DriverLinks { driver: &mut self.driver, now }, now);
            }
            let mut any = false;
            // A commit waits for the disk, however little it writes: what a turn wants kept is kept by one, before anybody hears of it.
            let (mut batch, mut answers) = (Batch::default(), vec![]);
            while let Some(output) = self.node.poll_output() {
                any = true;
                match output {
                    Output::Store(more) => batch.0.extend(more.0),
                    answer @ Output::Answer(..) => answers.push(answer),
                    other => {
                        self.keep(&mut batch)?;
                        self.output(other).await?;
                    }
                }
            }
            self.keep(&mut batch)?;
            for answer in answers {
                self.output(answer).await?;
            }
            self.transmit(now);
            if !any {
                return Ok(());
            }
        }
    }

    /// Keeps what is to be kept. A store that fails ends the process: going on would mean to act upon what a restart forgets.
    fn keep(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        match batch.is_empty() {
            true => Ok(()),
            false => self.store.commit(std::mem::take(batch)),
        }
    }

    /// Tells the node what has become of this host.
    fn look_at_host(&mut self, now: Now) {
        let news = self.host.news(now.mono);
        let links = &mut DriverLinks { driver: &mut self.driver, now };
        if let Some(slept) = news.slept {
            tracing::info!(secs = slept.as_secs(), "this host has slept");
            self.node.handle_resumed(links, now);
        }
        if let Some(view) = news.changed {
            tracing::debug!("addresses of this host have changed");
            let local = lan::local_endpoints(&self.config.wan, self.routes.default_interface().as_deref(), &view);
            self.node.handle_host_changed(lan::endpoints(&self.config.wan, &view), local, links, now);
        }
        if news.slept.is_some() || self.lan.is_another(self.host.view()) {
            self.lan.begin_anew(self.host.view());
        }
    }

    fn transmit(&mut self, now: Now) {
        while let Some(transmit) = self.driver.poll_transmit(now, &mut self.train) {
            self.sockets.send(&transmit, &self.train[..transmit.len]);
            self.train.clear();
        }
    }

    async fn output(&mut self, output: Output) -> Result<(), ShellError> {
        match output {
            Output::Store(mut batch) => self.keep(&mut batch)?,
            Output::Plane(ticket, request) => {
                self.plane_backlog.push_back((ticket, request));
                self.flush()?;
            }
            Output::Issuer(ticket, asked) => {
                // The node has at most a few hundred of these under way, and the queue takes more.
                if self.to_issuer.try_send((ticket, asked)).is_err() {
                    tracing::warn!("the issuer takes no more requests");
                    let now = self.now();
                    let links = &mut DriverLinks { driver: &mut self.driver, now };
                    self.node.handle_issuer(ticket, Err(Refused::Absent), links, now);
                }
            }
            Output::Datagram(to, bytes) => {
                let transmit = quic::Transmit { to, from_ip: None, ecn: None, len: bytes.len(), segment_len: None };
                self.sockets.send(&transmit, &bytes);
            }
            Output::Probe(to, bytes) => self.sockets.probe(to, &bytes),
            Output::Answer(call, answer) => {
                if let Some(reply) = self.waiting.remove(&call) {
                    // Whoever asked may have left, and what was given to him is there for others.
                    if reply.send(answer).is_err() {
                        let now = self.now();
                        self.node.handle_unheard(call, &mut DriverLinks { driver: &mut self.driver, now });
                    }
                }
            }
            Output::Configure { addresses, prefixes } => {
                let addresses = addresses.iter().map(|prefix| (prefix.address(), prefix.bit_len())).collect();
                self.order_plane(&Overlay { addresses, prefixes }).await;
            }
            Output::Membership(node, trust) => {
                self.lan.member_of(Some(trust.load().network), self.sockets.port());
                self.driver.set_membership(node, trust);
            }
            Output::Names(update) => self.names.tell(update),
            Output::Unconfigure => {
                // The last words leave by the port that they are expected from; whoever joins again has no packet plane to lend it sockets.
                let now = self.now();
                self.transmit(now);
                self.sockets.replace(ControlSockets::unbound().map_err(system("opening UDP sockets"))?);
                self.lan.member_of(None, None);
                self.order(&Order::NoPlane).await;
            }
        }
        Ok(())
    }

    /// Gives the packet plane's task what it takes. This loop never waits for it, since it waits for this loop to take its answers.
    fn flush(&mut self) -> Result<(), ShellError> {
        while let Some(request) = self.plane_backlog.pop_front() {
            match self.to_plane.try_send(request) {
                Ok(()) => {}
                Err(TrySendError::Full(request)) => {
                    self.plane_backlog.push_front(request);
                    break;
                }
                // The task ends with this process only.
                Err(TrySendError::Closed(_)) => break,
            }
        }
        if self.plane_backlog.len() > BACKLOG_MAX {
            return Err(ShellError::Backlog);
        }
        Ok(())
    }

    async fn order_plane(&mut self, overlay: &Overlay) {
        let route = self.routes.default_interface();
        match plane_toml(&self.config, overlay, route.as_deref()) {
            Ok(config) => self.order(&Order::Plane { config }).await,
            Err(error) => tracing::error!("the packet plane cannot be started: {error}"),
        }
    }

    async fn order(&mut self, order: &Order) {
        let Some(supervisor) = &mut self.supervisor else {
            return tracing::warn!("no supervisor: start weir-dataplane by hand");
        };
        if let Err(error) = frame::send(supervisor, order, ORDER_LEN_MAX).await {
            tracing::error!("the supervisor takes no orders: {error}");
        }
    }

    /// From now on QUIC goes by the packet plane's control sockets, unless we have left the network while it started.
    async fn adopt(&mut self, descriptors: Vec<OwnedFd>, now: Now) -> Result<(), ShellError> {
        if self.node.id().is_none() {
            return Ok(());
        }
        let sockets = ControlSockets::adopted(descriptors).map_err(system("taking the control sockets over"))?;
        if sockets.port() != self.sockets.port() {
            self.node.handle_port_change(&mut DriverLinks { driver: &mut self.driver, now }, now);
            Box::pin(self.carry_out()).await?;
        }
        self.sockets.replace(sockets);
        self.lan.moved_to(self.sockets.port());
        tracing::debug!(port = self.sockets.port(), "control sockets");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_counted_under_names_of_their_own() {
        let links = quic::Counters { retries: 3, certificates_refused: 2, ..quic::Counters::default() };
        let counted = counted(&links, 7);
        let of = |name: &str| counted.iter().filter(|(known, _)| known == name).map(|(_, n)| *n).collect::<Vec<_>>();
        let asked = ["quic_retries", "quic_certificates_refused", "quic_saturated", "control_sealed", "retries"];
        assert_eq!(asked.map(of), [vec![3], vec![2], vec![0], vec![7], vec![]]);
        assert_eq!(counted.len(), links.iter().count() + 1);
    }
}
