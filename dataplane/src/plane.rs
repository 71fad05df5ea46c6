//! The daemon: puts everything in place in the right order, serves the API, and takes everything away again.
//!
//! ```text
//!   start   privileges ▸ probe ▸ API path ▸ eBPF ▸ sockets ▸ steer ▸ TUN ▸ choice ▸ workers ▸ wan, lan ▸ routes ▸ listen
//!   serve   poll( API, signals, workers' events, netlink ) ▸ state machine ▸ effects ▸ replies
//!   stop    API closed ▸ workers joined ▸ programs detached, pins removed ▸ device routes gone with the TUN
//! ```
//!
//! Whatever a start has put in place before it failed goes again when the values here are dropped. The `unreachable` routes stay at a
//! stop, so that nothing leaves in clear while the plane is away; [`purge`] removes them.

mod attach;
pub mod calibration;
pub mod choice;
mod classify;
mod cores;
pub mod facts;
pub mod fib;
mod gro;
mod host;
mod indices;
mod lan;
mod server;
mod start;
pub mod state;
mod wall_clock;
mod xsk;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_abi::map::{self, flag};

use self::gro::GroForwarding;
use self::host::Host;
use self::lan::Lan;
use self::server::{ClientId, Incoming, Server, ServerError};
use self::state::{Effect, Random, State};
use self::wall_clock::WallClock;
use self::xsk::Xsk;
use crate::api::admission;
use crate::api::message::{AdmissionKey, Counters, DumpItem, NamedCount, Refusal, Reply, Request};
use crate::config::{Attach, Config, WanIo};
use crate::engine::counters::Snapshot;
use crate::io::bpf::{self, BpfError, Programs};
use crate::io::netlink::{Change, Changes, HostRoutes, Netlink};
use crate::io::socket::{Inherited, SocketError, Sockets};
use crate::io::tun::TunError;
use crate::io::xsk::XskError;
use crate::io::{netlink, privileges, probe};
use crate::worker::{Clock, Worker, WorkerError};

/// The name, among the engine's drops, of datagrams that the kernel dropped at the sockets of the port: a worker, or the control plane,
/// did not read as fast as they came.
const SOCKET_BUFFER_FULL: &str = "socket_buffer_full";
/// Most addresses of this host that `wan` is told; with more, datagrams to any address count as ours.
const LOCAL_ADDRESSES_MAX: usize = 1024;

/// Why the daemon does not run. Each message names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The machine or the process lacks something.
    #[error("{0}")]
    Blocked(String),
    /// Capabilities.
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    /// The API socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// eBPF.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// An eBPF object given by the configuration.
    #[error("cannot read the eBPF object {path}: {error}; check bpf.object")]
    Object {
        /// The path.
        path: std::path::PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TUN.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Links, addresses, routes, rules.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// AF_XDP sockets that the configuration insists on.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// More workers than there may be.
    #[error("no core to run a worker on: check workers.cores against the cores that this process may use")]
    NoCore,
    /// Something that only fails when the system is out of resources.
    #[error("{what}: {error}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> PlaneError {
    move |error| PlaneError::System { what, error }
}

/// The kernel's random numbers, through the library that makes the keys.
struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        // It cannot fail once the kernel's generator is seeded, and then only by ending the process: a plane without randomness must not run.
        aws_lc_rs::rand::fill(bytes).expect("the kernel has random numbers");
    }
}

/// Runs the packet plane until SIGTERM or SIGINT. `control_sockets` are descriptors that the process was started with: those that a
/// control plane took over from the packet plane before.
///
/// Must be called before any thread is started: capabilities are dropped first.
///
/// # Errors
/// [`PlaneError`]; nothing is left behind then.
pub fn run(config: &Config, control_sockets: &[RawFd]) -> Result<(), PlaneError> {
    let inherited = Inherited::take(control_sockets)?;
    privileges::drop_to_needed()?;
    let wishes = probe::Wishes {
        wan: &config.wan.interface,
        bpf: config.wan.attach != Attach::None,
        uring_only: config.wan.io == WanIo::Uring,
    };
    if let Some(blocker) = probe::probe(&wishes).first_blocker() {
        return Err(PlaneError::Blocked(blocker));
    }
    let signals = Signals::install()?;
    let mut plane = Plane::start(config, inherited)?;
    tracing::info!("ready at {}", config.api.socket.display());
    let served = plane.serve(&signals);
    plane.stop();
    served
}

/// Which ports a start would choose on this machine as it is now. Changes nothing.
///
/// # Errors
/// [`PlaneError::Netlink`], as when the WAN interface is not there, and [`PlaneError::System`] for an unreadable calibration.
pub fn ports(config: &Config) -> Result<choice::Choice, PlaneError> {
    let mut netlink = Netlink::open()?;
    let costs = calibration::load(&config.calibration).map_err(system("reading the calibration"))?;
    let tables = netlink.tables(&config.routing)?;
    let facts = facts::Sources::open()?.gather(config, &mut netlink, &tables, costs)?;
    Ok(choice::choose(&facts::wanted(config), &facts))
}

/// Takes away what a stopped plane leaves on purpose: its rules and routes, and pins.
///
/// # Errors
/// [`PlaneError`]; a plane that runs is told from one that has stopped by its socket, and keeps what it has.
pub fn purge(config: &Config) -> Result<(), PlaneError> {
    let _nobody_starts = match config.api.socket.exists() {
        true => Some(Server::bind(&config.api.socket)?),
        false => None,
    };
    HostRoutes::purge(&config.routing, &mut Netlink::open()?)?;
    match &config.bpf.pin {
        Some(directory) => bpf::remove_pins(directory).map_err(system("removing pins")),
        None => Ok(()),
    }
}

/// SIGTERM and SIGINT as a readable descriptor.
struct Signals {
    readable: UnixStream,
}

impl Signals {
    fn install() -> Result<Self, PlaneError> {
        let (readable, writable) = UnixStream::pair().map_err(system("making a socket pair"))?;
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            let end = writable.try_clone().map_err(system("duplicating a socket"))?;
            signal_hook::low_level::pipe::register(signal, end).map_err(system("installing a signal handler"))?;
        }
        Ok(Self { readable })
    }
}

/// Everything that is in place while the plane runs. Fields are dropped in this order.
struct Plane {
    server: Server,
    workers: Vec<Worker>,
    programs: Programs,
    routes: HostRoutes,
    lan: Lan,
    netlink: Netlink,
    changes: Changes,
    state: State<SystemRandom>,
    control: Sockets,
    /// The workers', to count what the kernel drops at them.
    sockets: Vec<Arc<Sockets>>,
    events: Arc<Events>,
    map_config: map::Config,
    about: Vec<(String, String)>,
    clock: Clock,
    wall_clock: WallClock,
    config: Config,
    host: Host,
    gro: GroForwarding,
    xsk: Xsk,
    /// Index of each device that programs were attached to, by name: a device that comes again has another.
    attached: BTreeMap<String, u32>,
}

/// How workers wake the control thread.
struct Events {
    eventfd: OwnedFd,
    pending: AtomicBool,
}

impl Events {
    fn notify(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // It fails only when the counter is full, and then the control thread is awake.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    fn clear(&self) {
        let mut count = [0; 8];
        // Nothing to read means that the next write will wake us all the same.
        let _ = rustix::io::read(&self.eventfd, &mut count);
        // Not a mere store: what a worker queued before it found the flag set must be seen by whoever looks after this.
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl Plane {
    /// Puts a fact among those that the API shows, in place of the last one of its name.
    fn tell(&mut self, name: String, text: String) {
        match self.about.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = text,
            None => self.about.push((name, text)),
        }
    }

    fn tell_choice(&mut self) {
        for (name, text) in self.host.choice().rows() {
            tracing::info!("{name}: {text}");
            self.tell(name.to_owned(), text);
        }
    }

    /// Installs routes and rules; a failure takes back what it did unless an earlier run had left them.
    fn install_routes(&mut self, config: &Config) -> Result<(), PlaneError> {
        let mut fresh = true;
        for family in netlink::Family::ALL {
            fresh &= self.netlink.routes(config.routing.table, family)?.is_empty();
        }
        self.routes.install(&mut self.netlink).map_err(|error| {
            if fresh && let Err(also) = HostRoutes::purge(&config.routing, &mut self.netlink) {
                tracing::warn!("while taking routes back: {also}");
            }
            error.into()
        })
    }

    /// Serves until a signal comes or a worker dies.
    fn serve(&mut self, signals: &Signals) -> Result<(), PlaneError> {
        loop {
            if self.wait(signals)? {
                tracing::info!("stopping");
                return Ok(());
            }
            self.events.clear();
            self.take_events();
            if let Some(worker) = self.workers.iter_mut().find(|worker| worker.is_dead()) {
                worker.join()?;
                return Err(PlaneError::Blocked("a worker ended without being told to".to_owned()));
            }
            self.watch_host()?;
            self.follow_wall_clock()?;
            for incoming in self.server.receive() {
                self.answer(incoming)?;
            }
            self.state.handle_timeout(self.clock.now());
            self.carry_out()?;
            self.server.flush();
        }
    }

    /// Waits for something to do; `true` when that is to stop.
    fn wait(&self, signals: &Signals) -> Result<bool, PlaneError> {
        let deadlines = [self.state.next_deadline(), self.host.next_deadline(), Some(self.wall_clock.next_deadline())];
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = deadline.map(|deadline| deadline.since(self.clock.now()));
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let mut descriptors = vec![
            PollFd::new(&signals.readable, PollFlags::IN),
            PollFd::new(&self.events.eventfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.changes.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.wall_clock.steps(), PollFlags::IN),
        ];
        descriptors.extend(self.host.ruleset().map(|ruleset| PollFd::from_borrowed_fd(ruleset, PollFlags::IN)));
        for (descriptor, interest) in self.server.interests() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
        }
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!descriptors[0].revents().is_empty()),
            Err(errno) => Err(system("waiting for events")(errno.into())),
        }
    }

    fn take_events(&mut self) {
        for worker in &self.workers {
            while let Some(event) = worker.poll_event() {
                if let Some(notice) = self.state.handle_event(event) {
                    self.server.publish(&notice);
                }
            }
        }
    }

    /// Follows changes of this host's addresses, and puts our routes and rules back when somebody took them away.
    fn watch_host(&mut self) -> Result<(), PlaneError> {
        let (mut addresses, mut routes, mut links) = (false, false, false);
        while let Some(change) = self.changes.poll_event()? {
            self.host.handle_change(&change);
            match change {
                Change::Link { index, ref name, removed: false, .. }
                    if self.attached.get(name).is_some_and(|known| *known != index) =>
                {
                    self.attach_again(name, index);
                    (routes, links) = (true, true);
                }
                Change::Address { .. } => addresses = true,
                Change::Route { removed, .. } | Change::Rule { removed, .. } => routes |= removed,
                Change::Link { .. } => (routes, links) = (true, true),
                Change::Neighbour { .. } | Change::KernelRoute | Change::Hook => {}
                Change::Lost => (addresses, routes, links) = (true, true, true),
            }
        }
        if links {
            self.follow_devices()?;
        }
        if addresses {
            if let Err(error) = set_local(&mut self.programs, &mut self.netlink, &mut self.map_config) {
                // Forwarding goes on without; until the next change every address counts as ours.
                tracing::error!("the addresses of this host are not known: {error}");
                self.map_config.flags &= !flag::LOCAL_KNOWN;
                self.programs.configure(self.map_config)?;
            }
            self.follow_lan()?;
        }
        if routes {
            match self.routes.restore(&mut self.netlink) {
                Ok(true) => tracing::warn!("somebody removed routes or rules of ours; they are back"),
                Ok(false) => {}
                Err(error) => tracing::error!("routes or rules of ours cannot be restored: {error}"),
            }
        }
        self.follow_host()
    }

    /// Takes the LAN back into the kernel while something forbids to go past its router, and gives it up again afterwards.
    fn follow_host(&mut self) -> Result<(), PlaneError> {
        let was_open = self.host.is_open();
        let changed = match self.host.settle(&mut self.netlink, self.clock.now()) {
            Ok(choice) => choice.is_some(),
            Err(error) => {
                tracing::error!("the host's routes and filters cannot be read: {error}");
                false
            }
        };
        if changed {
            self.tell_choice();
        }
        if self.host.is_open() != was_open {
            self.tell_lan()?;
        }
        if let Some(fib) = self.host.poll_fib() {
            self.xsk.publish(&fib);
            let (overlay, underlay, neighbours) = fib.sizes();
            tracing::debug!(epoch = fib.epoch, overlay, underlay, neighbours, "mirrored tables");
        }
        Ok(())
    }

    /// Tells `wan` the time of day when that may have changed.
    fn follow_wall_clock(&mut self) -> Result<(), BpfError> {
        match self.wall_clock.poll_offset(self.clock.now()) {
            Some(offset_ns) => self.programs.set_wall_clock(offset_ns),
            None => Ok(()),
        }
    }

    /// Tells `lan` which destinations it takes from the kernel's router: without any it passes everything.
    fn tell_lan(&mut self) -> Result<(), BpfError> {
        let prefixes = if self.host.is_open() { &self.config.routing.prefixes[..] } else { &[] };
        self.programs.set_overlay(prefixes, self.lan.networks())
    }

    /// Routes around the TUN what lies behind us now. Until that is done the routes stay as they were.
    fn follow_lan(&mut self) -> Result<(), BpfError> {
        match self.lan.refresh(&mut self.netlink) {
            Ok(None) => {}
            Ok(Some(routes)) => {
                self.routes = routes;
                match self.routes.install(&mut self.netlink) {
                    Ok(()) => tracing::info!("networks of the LAN interfaces: {}", self.lan),
                    Err(error) => tracing::error!("routes for the LAN's new networks cannot be installed: {error}"),
                }
                self.tell_lan()?;
            }
            Err(error) => tracing::error!("the LAN's networks cannot be read: {error}"),
        }
        Ok(())
    }

    fn answer(&mut self, incoming: Incoming) -> Result<(), PlaneError> {
        let Incoming { client, id, request } = incoming;
        let reply = |server: &mut Server, reply: &Reply| server.reply(client, id, reply, vec![]);
        match request {
            Request::Hello { name } => {
                tracing::debug!(name, "API connection");
                let fixed = self.state.fixed();
                let welcome = Reply::Welcome {
                    incarnation: fixed.incarnation,
                    workers: fixed.workers,
                    port: fixed.port,
                    program: env!("CARGO_PKG_VERSION").to_owned(),
                };
                reply(&mut self.server, &welcome);
            }
            Request::Subscribe => {
                self.server.subscribe(client);
                reply(&mut self.server, &Reply::Done);
            }
            Request::Counters => {
                let counters = self.counters()?;
                reply(&mut self.server, &Reply::Counters(Box::new(counters)));
            }
            Request::TakeControlSockets => self.hand_over(client, id),
            Request::SetAdmission { keys, node, skew_secs } => {
                let answer = self.set_admission(&keys, &node, skew_secs)?;
                reply(&mut self.server, &answer);
            }
            request => {
                let dump = matches!(request, Request::Dump);
                let replies = self.state.handle_request(request, self.clock.now());
                self.carry_out()?;
                if dump {
                    reply(&mut self.server, &Reply::Dump(DumpItem::Plane(self.about.clone())));
                }
                for answer in &replies {
                    reply(&mut self.server, answer);
                }
            }
        }
        Ok(())
    }

    fn set_admission(&mut self, keys: &[AdmissionKey], node: &[u8; 32], skew_secs: i64) -> Result<Reply, PlaneError> {
        if keys.len() > admission::KEYS_MAX {
            let what = "the number of admission keys".to_owned();
            return Ok(Reply::Refused(Refusal::Limit { what, limit: admission::KEYS_MAX as u64 }));
        }
        // The time first: no tag is to be judged by the last one.
        self.wall_clock.set_skew(skew_secs, self.clock.now());
        self.follow_wall_clock()?;
        self.programs.set_admission(keys, node)?;
        let text = match keys.len() {
            0 => "off: no keys".to_owned(),
            count => format!("keys: {count}; the network's clock is {skew_secs} s ahead of this machine's"),
        };
        self.tell("admission".to_owned(), text);
        Ok(Reply::Done)
    }

    fn hand_over(&mut self, client: ClientId, id: u32) {
        let duplicates: io::Result<Vec<OwnedFd>> = self.control.each().map(|socket| socket.duplicate()).collect();
        match duplicates {
            Ok(sockets) => {
                let count = sockets.len() as u8;
                self.server.reply(client, id, &Reply::ControlSockets { count }, sockets);
            }
            Err(error) => {
                let refusal = Refusal::Invalid(format!("the control sockets cannot be duplicated: {error}"));
                self.server.reply(client, id, &Reply::Refused(refusal), vec![]);
            }
        }
    }

    fn counters(&self) -> Result<Counters, PlaneError> {
        let engine = Snapshot::sum(self.workers.iter().map(Worker::counters));
        let bpf = self.programs.counters()?;
        let named = |name: &str, count: u64| NamedCount { name: name.to_owned(), count };
        let mut engine_drops = engine.engine_drops();
        let sockets = self.sockets.iter().map(Arc::as_ref).chain([&self.control]).flat_map(Sockets::each);
        // A kernel that cannot tell has nothing to show.
        match sockets.map(|socket| u64::from(socket.drops().unwrap_or(0))).sum() {
            0 => {}
            count => engine_drops.push(named(SOCKET_BUFFER_FULL, count)),
        }
        Ok(Counters {
            engine: engine.engine(),
            engine_drops,
            bpf: bpf.verdicts.iter().map(|(verdict, count)| named(verdict.name(), count.packets)).collect(),
            bpf_drops: bpf.drops.iter().map(|(reason, count)| named(reason.name(), count.packets)).collect(),
        })
    }

    fn carry_out(&mut self) -> Result<(), PlaneError> {
        while let Some(effect) = self.state.poll_effect() {
            match effect {
                Effect::Worker(worker, command) => {
                    if let Some(worker) = self.workers.get_mut(usize::from(worker)) {
                        worker.command(command)?;
                    }
                }
                Effect::Live(index, live) => self.programs.set_live(index, live)?,
            }
        }
        Ok(())
    }

    /// Takes everything away that does not go by being dropped, and says so where it fails.
    fn stop(&mut self) {
        for worker in &mut self.workers {
            if let Err(error) = worker.join() {
                tracing::error!("{error}");
            }
        }
        self.gro.restore();
        if let Err(error) = self.routes.uninstall(&mut self.netlink) {
            tracing::error!("{error}");
        }
        if let Err(error) = self.programs.unpin() {
            tracing::error!("{error}");
        }
    }
}

/// Tells `wan` which addresses are this host's.
fn set_local(programs: &mut Programs, netlink: &mut Netlink, config: &mut map::Config) -> Result<(), PlaneError> {
    let addresses: Vec<IpAddr> = netlink.addresses()?.iter().map(|known| known.address.address()).collect();
    if addresses.len() <= LOCAL_ADDRESSES_MAX {
        programs.set_local(&addresses)?;
        config.flags |= flag::LOCAL_KNOWN;
    } else {
        config.flags &= !flag::LOCAL_KNOWN;
    }
    Ok(programs.configure(*config)?)
}
